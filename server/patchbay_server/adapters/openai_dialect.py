"""How the relatives of the OpenAI API differ: one value each, so that what they share is written once."""

from collections.abc import Mapping
from typing import Final

import msgspec

from patchbay_server.adapters.openai_models import UNKNOWN, Family, family_of
from patchbay_server.types import Secret

OPENAI_ROOT: Final = "https://api.openai.com/v1"


class Dialect(msgspec.Struct, frozen=True, kw_only=True):
    """One relative of the OpenAI API.

    Args:
        type: the connector type.
        name: the provider as a caller reads it in a message.
        root: the API's root up to and including the version; empty where the connector always brings it.
        root_field: the credential field that replaces `root`.
        key_header: the header that carries the key.
        key_prefix: what stands before the key in it.
        credential_headers: credential field -> header, for the optional ones.
        openai_models: whether models are OpenAI's, so that `openai_models` knows what they take.
        max_tokens_field: where the limit of output tokens goes.
        stream_options: sent with streams; empty where the server does not know them.
        tools: whether the server knows tools.
        refuses: knobs of `config` that the API has no field for.
        stop_sequences_max: None when unbounded.
        refusal_parts: whether an assistant's refusal has a part type of its own; else it is sent as text.
        responses: whether the Responses API is there beside chat completions.
        needs_done_marker: whether a stream without `[DONE]` is cut off; else a finish reason is enough.
        model_by_id: whether `GET /models/{id}` exists.
    """

    type: str
    name: str
    root: str
    root_field: str
    key_header: str = "authorization"
    key_prefix: str = "Bearer "
    credential_headers: tuple[tuple[str, str], ...] = ()
    openai_models: bool = False
    max_tokens_field: str = "max_completion_tokens"
    stream_options: Mapping[str, bool] = {}
    tools: bool = True
    refuses: frozenset[str] = frozenset()
    stop_sequences_max: int | None = None
    refusal_parts: bool = True
    responses: bool = False
    needs_done_marker: bool = True
    model_by_id: bool = False

    def family(self, model: str) -> Family:
        return family_of(model) if self.openai_models else UNKNOWN


OPENAI: Final = Dialect(
    type="openai",
    name="OpenAI",
    root=OPENAI_ROOT,
    root_field="endpoint",
    credential_headers=(("organization", "openai-organization"), ("project", "openai-project")),
    openai_models=True,
    stream_options={"include_usage": True, "include_obfuscation": False},
    refuses=frozenset({"top_k", "reasoning.budget_tokens"}),
    stop_sequences_max=4,
    responses=True,
    model_by_id=True,
)

COMPATIBLE: Final = Dialect(
    type="openai_compatible",
    name="an OpenAI-compatible server",
    root="",
    root_field="base_url",
    max_tokens_field="max_tokens",
    stream_options={"include_usage": True},
    refuses=frozenset({"reasoning.budget_tokens"}),
    refusal_parts=False,
    needs_done_marker=False,
)
"""Before a connector's switches: what any server understands."""

MAX_TOKENS_FIELDS: Final = ("max_tokens", "max_completion_tokens")


def compatible(secret: Secret) -> Dialect:
    """The dialect of one `openai_compatible` connector, by its switches."""
    return msgspec.structs.replace(
        COMPATIBLE,
        tools=secret.flag("tools", default=True),
        stream_options=COMPATIBLE.stream_options if secret.flag("stream_usage", default=True) else {},
        needs_done_marker=secret.flag("requires_done_marker", default=COMPATIBLE.needs_done_marker),
        max_tokens_field=secret.text("max_tokens_field") or COMPATIBLE.max_tokens_field,
    )


def address(dialect: Dialect, secret: Secret, *segments: str) -> str:
    """The URL of a path below the API's root, with or without trailing slashes; segments are already encoded."""
    root = secret.text(dialect.root_field).strip() or dialect.root
    return "/".join((root.rstrip("/"), *segments))


def headers(dialect: Dialect, secret: Secret) -> tuple[tuple[str, str], ...]:
    """The headers that say who asks: the connector's extra headers, and the key, which they never replace."""
    own: dict[str, str] = {}
    if key := secret.text("api_key").strip():
        own[dialect.key_header] = dialect.key_prefix + key
    for field, header in dialect.credential_headers:
        if value := secret.text(field).strip():
            own[header] = value
    extra = {name.lower(): value for name, value in secret.pairs("headers").items()}
    return tuple({**extra, **own}.items())
