"""The only network code: `Upstream` sends requests to providers. The home of httpx and aiohttp."""

from patchbay_server.wire.upstream.driver import Answer, Frames, Limits, Upstream
from patchbay_server.wire.upstream.transport import Resolver, SystemResolver

__all__ = ["Answer", "Frames", "Limits", "Resolver", "SystemResolver", "Upstream"]
