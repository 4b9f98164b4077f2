"""The connector type `openrouter`: models of many makers behind one API and one bill.

OpenRouter passes a request on to one of several providers and leaves out what that one does not know. Whoever sets a
field wants it kept, so such requests go to providers only that know all of it.

Source: OpenRouter's API reference and guides, the types of openrouter 1.3.84 (read 2026-11-20).
"""

from typing import Final

from patchbay_server.adapters.openai_chat import OpenAiAdapter, endpoint_field, key_field
from patchbay_server.adapters.openai_dialect import Dialect
from patchbay_server.adapters.openai_usage import Cost
from patchbay_server.adapters.protocol import Capability, TypeInfo

ROOT: Final = "https://openrouter.ai/api/v1"

_DIALECT: Final = Dialect(
    type="openrouter",
    name="OpenRouter",
    root=ROOT,
    root_field="endpoint",
    # The list of models needs no key; this does, and tells of it.
    check_path=("key",),
    slashed_models=True,
    # Both name models of their own, past the one that was chosen.
    reserved=frozenset({"models", "preset"}),
    refusal_parts=False,
    file_ids=False,
    file_addresses=True,
    shows_reasoning=True,
    # With a key of one's own for the provider behind, this is OpenRouter's fee alone.
    cost=Cost(field="cost", nanos=1e9, partial_if="is_byok"),
    usage_after_errors=True,
    reasoning_details=True,
    requires_parameters=True,
    cache_control=frozenset({"text"}),
)

ADAPTER: Final = OpenAiAdapter(
    TypeInfo(
        type=_DIALECT.type,
        display_name="OpenRouter",
        description="Models of many makers through OpenRouter; model ids look like vendor/model.",
        fields=(
            key_field("Starts with sk-or-."),
            endpoint_field(ROOT, such_as="a proxy or a test server"),
        ),
        capabilities=frozenset(Capability),
        documentation_uri="https://openrouter.ai/docs",
    ),
    _DIALECT,
)
