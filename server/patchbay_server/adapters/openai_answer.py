"""What the readers of chat completions and of the Responses API share: JSON read without trust, and how to fail."""

from typing import Any

from patchbay_server.adapters.json_body import decode_leniently, mended
from patchbay_server.errors import PatchbayError, Reason


def decoded(data: bytes) -> Any:
    """The JSON value of `data`, read leniently; None when it cannot be read."""
    try:
        return decode_leniently(data)
    except ValueError:
        return None


def readable(value: Any) -> str | None:
    """`value` if it is text, fit to be passed on; None for anything else."""
    return mended(value) if isinstance(value, str) else None


def whole_number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def numbered_objects(value: Any) -> list[tuple[int, dict[str, Any]]]:
    """The objects of a list with their places in it; none of what is no list."""
    return [(at, item) for at, item in enumerate(value) if isinstance(item, dict)] if isinstance(value, list) else []


def objects(value: Any) -> list[dict[str, Any]]:
    return [item for _, item in numbered_objects(value)]


def empty() -> PatchbayError:
    return PatchbayError(Reason.UPSTREAM_EMPTY_STREAM, "the provider answered without an answer")


def truncated() -> PatchbayError:
    return PatchbayError(Reason.UPSTREAM_TRUNCATED, "the provider's answer broke off before its end")


def not_streamed() -> PatchbayError:
    return PatchbayError(Reason.STREAMING_UNSUPPORTED, "the provider answered at once instead of streaming; use Chat")


def malformed(message: str) -> PatchbayError:
    return PatchbayError(Reason.UPSTREAM_MALFORMED_RESPONSE, message)
