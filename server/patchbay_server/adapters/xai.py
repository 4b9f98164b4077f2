"""The connector type `xai`: the Grok models, on xAI's Responses API where they reason and on chat completions else.

Source: xAI's API reference and its guide to reasoning; litellm's and genai-prices' maps of its usage (read 2026-11-20).
"""

from typing import Final

from patchbay_server.adapters.openai_chat import OpenAiAdapter
from patchbay_server.adapters.openai_dialect import Dialect
from patchbay_server.adapters.protocol import Capability, CredentialField, FieldKind, TypeInfo

ROOT: Final = "https://api.x.ai/v1"

_DIALECT: Final = Dialect(
    type="xai",
    name="xAI",
    root=ROOT,
    root_field="endpoint",
    check_path=("api-key",),
    key_flags=frozenset({"api_key_blocked", "api_key_disabled", "disabled", "team_blocked"}),
    models="xai",
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
