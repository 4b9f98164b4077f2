"""The connector type `xai`: the Grok models, on xAI's Responses API where they reason and on chat completions else.

Source: xAI's API reference and its guide to reasoning; litellm's and genai-prices' maps of its usage (read 2026-11-20).
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from patchbay_server.adapters.openai_chat import OpenAiAdapter
from patchbay_server.adapters.openai_dialect import Dialect
from patchbay_server.adapters.openai_models import UNKNOWN, Family, by_prefix
from patchbay_server.adapters.protocol import Capability, CredentialField, FieldKind, TypeInfo
from patchbay_server.types import Effort

ROOT: Final = "https://api.x.ai/v1"

_REFUSED: Final = frozenset({"stop_sequences", "frequency_penalty", "presence_penalty"})
"""What no model takes that reasons. Source: xAI's guide to reasoning (read 2026-11-20)."""
_LOW_TO_XHIGH: Final = frozenset({Effort.LOW, Effort.MEDIUM, Effort.HIGH, Effort.XHIGH})


def _reasoning(*prefixes: str, efforts: frozenset[Effort] | None) -> Family:
    """A family that reasons. Its reasoning is kept from turn to turn on the Responses API only."""
    return Family(prefixes=prefixes, refuses=_REFUSED, efforts=efforts, developer_role=False, prefers_responses=True)


_PLAIN: Final = Family(
    prefixes=("grok-2", "grok-3"),
    efforts=frozenset(),
    reasons_by_default=False,
    developer_role=False,
    gives_reasoning=False,
)
_NEWEST: Final = Family(developer_role=False, prefers_responses=True)
"""A Grok model that the table does not know: spoken to as the newest ones are, refused nothing."""

FAMILIES: Final = (
    _PLAIN,
    # These reason always and as they like: they refuse the effort (400 "does not support parameter reasoningEffort").
    # Source: xAI's guide to reasoning, and refusals that its API gave in May 2026 (read 2026-11-20).
    _reasoning("grok-4", "grok-4-fast", "grok-4-1-fast", "grok-4.20", efforts=frozenset()),
    _reasoning("grok-code-fast", "grok-build-0.1", efforts=frozenset()),
    _reasoning("grok-3-mini", efforts=frozenset({Effort.LOW, Effort.HIGH})),
    _reasoning("grok-4.20-multi-agent", "grok-4.7", efforts=_LOW_TO_XHIGH),
    _reasoning("grok-4.3", efforts=_LOW_TO_XHIGH | {Effort.NONE}),
)
_BY_PREFIX: Final[Mapping[str, Family]] = MappingProxyType(
    {prefix: family for family in FAMILIES for prefix in family.prefixes}
)


def grok_family(model: str) -> Family:
    """The family of one of xAI's models, by the longest prefix that it has."""
    if not model.startswith("grok-"):
        return UNKNOWN
    if model.endswith("-non-reasoning"):
        return _PLAIN
    return by_prefix(model, _BY_PREFIX) or _NEWEST


_DIALECT: Final = Dialect(
    type="xai",
    name="xAI",
    root=ROOT,
    root_field="endpoint",
    check_path=("api-key",),
    key_flags=frozenset({"api_key_blocked", "api_key_disabled", "disabled", "team_blocked"}),
    families=grok_family,
    stream_options={"include_usage": True},
    refuses=frozenset({"top_k", "reasoning.budget_tokens"}),
    # It answers with a ticket for an answer.
    reserved=frozenset({"deferred"}),
    stop_sequences_max=8,
    refusal_parts=False,
    author_names=False,
    strict_tools=False,
    audio=False,
    responses=True,
    chat_files=False,
    chat_provider_tools=False,
    shows_reasoning=True,
    reasoning_outside_output=True,
)

ADAPTER: Final = OpenAiAdapter(
    TypeInfo(
        type=_DIALECT.type,
        display_name="xAI",
        description="The Grok models on xAI's own API.",
        fields=(
            CredentialField(
                name="api_key", label="API key", help="Starts with xai-.", kind=FieldKind.SECRET, required=True
            ),
            CredentialField(
                name="endpoint",
                label="Endpoint",
                help=f"Replaces {ROOT}: a proxy, a regional or a test server.",
                kind=FieldKind.URL,
                length_max=2048,
            ),
        ),
        capabilities=frozenset(Capability) - {Capability.AUDIO},
        documentation_uri="https://docs.x.ai",
    ),
    _DIALECT,
)
