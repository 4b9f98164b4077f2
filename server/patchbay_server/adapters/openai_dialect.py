"""How the relatives of the OpenAI API differ: one value each, so that what they share is written once."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import msgspec

from patchbay_server.adapters.belonging import host_of, port_of
from patchbay_server.adapters.openai_models import UNKNOWN, Family, family_of
from patchbay_server.adapters.openai_usage import Cost
from patchbay_server.types import Secret

OPENAI_ROOT: Final = "https://api.openai.com/v1"


class Dialect(msgspec.Struct, frozen=True, kw_only=True):
    """One relative of the OpenAI API.

    Args:
        type: the connector type.
        name: the provider as a caller reads it in a message.
        root: the API's root up to and including the version; empty where the connector always brings it.
        root_field: the credential field that replaces `root`; empty where `root` is one connector's own.
        query: what follows the path of every address, without the question mark.
        chat_path: the path of chat completions below the root.
        check_path: what a check asks for; empty where that is the list of models.
        key_flags: members of a check's answer that say, when true, that the key is not taken.
        deployment: the one model that a connector asks, whatever a call's model is; empty: the call's.
        key_field: the credential field that holds the key.
        key_header: the header that carries the key.
        key_prefix: what stands before the key in it.
        credential_headers: credential field -> header, for the optional ones.
        one_provider: whether the type speaks with one provider, so that what shows another one is a mistake.
        slashed_models: whether the provider's model ids hold slashes.
        models: the data file of what its models take; empty where any model may live.
        seed_field: where the seed goes.
        tool_call_ids: the form of the ids of tool calls that chat completions take; any where empty.
        tool_call_id_chars: how long an id is that takes the place of one of another form.
        max_tokens_field: where the limit of output tokens goes.
        stream_options: sent with streams; empty where the server does not know them.
        responses_stream_options: the same for the Responses API.
        tools: whether the server knows tools.
        refuses: knobs of `config` that the API has no field for.
        reserved: body fields that provider options never set, beside those that no relative's may.
        stop_sequences_max: None when unbounded.
        refusal_parts: whether an assistant's refusal has a part type of its own; else it is sent as text.
        author_names: whether messages may carry their author's name.
        strict_tools: whether a tool may be strict.
        audio: whether recordings are taken.
        responses: whether the Responses API is there beside chat completions.
        chat_files: whether chat completions take files; else the Responses API does.
        references_on_responses: whether files by address, images by id and results of tools that hold more than text
            are taken on the Responses API only; else nowhere, or on both.
        chat_provider_tools: whether chat completions take tools of the provider's own; else the Responses API does.
        needs_done_marker: whether a stream without `[DONE]` is cut off; else a finish reason is enough.
        model_by_id: whether `GET /models/{id}` exists.
        shows_reasoning: whether reasoning that can be shown is shown unasked.
        reasoning_outside_output: whether chat completions count reasoning beside the output, not in it.
        cost: where usage says what a call cost; None when it does not.
        usage_after_errors: whether a stream of chat completions tells its counts in a chunk behind its error.
        reasoning_details: whether chat completions ask for reasoning with an object, and give it in details that are
            sent back as they came.
        requires_parameters: whether the provider leaves out what a route does not know unless it is told not to.
        cache_control: the types of content parts that may carry the cache mark `cache_control`.
        tool_choice: whether a choice among tools is heeded.
        image_addresses: whether images may be named by their address.
        file_addresses: whether chat completions take the address of a file in place of its data.
        file_ids: whether files can be named by an id.
    """

    type: str
    name: str
    root: str
    root_field: str
    query: str = ""
    chat_path: tuple[str, ...] = ("chat", "completions")
    check_path: tuple[str, ...] = ()
    key_flags: frozenset[str] = frozenset()
    deployment: str = ""
    key_field: str = "api_key"
    key_header: str = "authorization"
    key_prefix: str = "Bearer "
    credential_headers: tuple[tuple[str, str], ...] = ()
    one_provider: bool = True
    slashed_models: bool = False
    models: str = ""
    tool_call_ids: str = ""
    tool_call_id_chars: int = 0
    max_tokens_field: str = "max_completion_tokens"
    seed_field: str = "seed"
    stream_options: Mapping[str, bool] = {}
    responses_stream_options: Mapping[str, bool] = {}
    tools: bool = True
    refuses: frozenset[str] = frozenset()
    reserved: frozenset[str] = frozenset()
    stop_sequences_max: int | None = None
    refusal_parts: bool = True
    author_names: bool = True
    strict_tools: bool = True
    audio: bool = True
    responses: bool = False
    chat_files: bool = True
    references_on_responses: bool = False
    chat_provider_tools: bool = True
    needs_done_marker: bool = True
    model_by_id: bool = False
    shows_reasoning: bool = False
    reasoning_outside_output: bool = False
    cost: Cost | None = None
    usage_after_errors: bool = False
    reasoning_details: bool = False
    requires_parameters: bool = False
    cache_control: frozenset[str] = frozenset()
    tool_choice: bool = True
    image_addresses: bool = True
    file_addresses: bool = False
    file_ids: bool = True

    def family(self, model: str) -> Family:
        """What a call's model takes; where its name says nothing, that of the deployment may."""
        if not self.models:
            return UNKNOWN
        return family_of(model, self.models) or family_of(self.deployment, self.models) or UNKNOWN


OPENAI: Final = Dialect(
    type="openai",
    name="OpenAI",
    root=OPENAI_ROOT,
    root_field="endpoint",
    credential_headers=(("organization", "openai-organization"), ("project", "openai-project")),
    models="openai",
    # A longer one is refused: 400 "Expected a string with maximum length 40". Source: microsoft/autogen issue 6377,
    # vercel/ai issue 8132 (read 2026-11-27).
    tool_call_ids=r"(?s:.{1,40})",
    tool_call_id_chars=40,
    stream_options={"include_usage": True, "include_obfuscation": False},
    responses_stream_options={"include_obfuscation": False},
    refuses=frozenset({"top_k", "reasoning.budget_tokens"}),
    stop_sequences_max=4,
    responses=True,
    chat_provider_tools=False,
    references_on_responses=True,
    model_by_id=True,
)

COMPATIBLE: Final = Dialect(
    type="openai_compatible",
    name="an OpenAI-compatible server",
    root="",
    root_field="base_url",
    one_provider=False,
    max_tokens_field="max_tokens",
    stream_options={"include_usage": True},
    refuses=frozenset({"reasoning.budget_tokens"}),
    refusal_parts=False,
    needs_done_marker=False,
    shows_reasoning=True,
)
"""Before a connector's switches: what any server understands."""

MAX_TOKENS_FIELDS: Final = ("max_tokens", "max_completion_tokens")


_OLLAMA: Final = ":11434"
_AT_HOSTS: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        # Refuses fields that it does not know (422 `extra_forbidden`) and counts tokens in streams unasked. Source:
        # Mistral's API reference, Chat; anon-kode issue 53 and openai-agents-python issue 442 (read 2026-11-27).
        "api.mistral.ai": {
            "seed_field": "random_seed",
            "stream_options": {},
            "refuses": COMPATIBLE.refuses | {"top_k"},
            "author_names": False,
            # 400 "must be a-z, A-Z, 0-9, with a length of 9". Source: langchain pull request 24668 (read 2026-11-27).
            "tool_call_ids": r"[A-Za-z0-9]{9}",
            "tool_call_id_chars": 9,
        },
        # Source: Ollama's openai/openai.go at v0.13, which leaves the choice unread and fetches no address (read
        # 2026-11-20).
        _OLLAMA: {"tool_choice": False, "image_addresses": False},
        # Source: Groq's page "OpenAI compatibility", "Currently unsupported OpenAI features" (read 2026-11-27).
        "api.groq.com": {"author_names": False},
    }
)
"""What is known of servers that `openai_compatible` connectors reach: host, or the port that such a server listens on
by default -> how it differs from any server.
"""


def compatible(secret: Secret) -> Dialect:
    """The dialect of one `openai_compatible` connector, by its host and its switches."""
    root = secret.text(COMPATIBLE.root_field).strip()
    known = _AT_HOSTS.get(host_of(root)) or _AT_HOSTS.get(f":{port_of(root)}") or {}
    base = msgspec.structs.replace(COMPATIBLE, **known)
    counts = secret.flag("stream_usage", default=bool(base.stream_options))
    return msgspec.structs.replace(
        base,
        tools=secret.flag("tools", default=True),
        stream_options=COMPATIBLE.stream_options if counts else {},
        needs_done_marker=secret.flag("requires_done_marker", default=COMPATIBLE.needs_done_marker),
        max_tokens_field=secret.text("max_tokens_field") or COMPATIBLE.max_tokens_field,
    )


def address(dialect: Dialect, secret: Secret, *segments: str, query: str = "") -> str:
    """The URL of a path below the API's root, with or without trailing slashes.

    Segments and `query`, which follows that of the dialect, are already encoded.
    """
    root = secret.text(dialect.root_field).strip() or dialect.root
    url = "/".join((root.rstrip("/"), *segments))
    queries = "&".join(filter(None, (dialect.query, query)))
    return f"{url}?{queries}" if queries else url


def headers(dialect: Dialect, secret: Secret) -> tuple[tuple[str, str], ...]:
    """The headers that say who asks: the connector's extra headers, and the key, which they never replace."""
    own: dict[str, str] = {}
    if key := secret.text(dialect.key_field).strip():
        own[dialect.key_header] = dialect.key_prefix + key
    for field, header in dialect.credential_headers:
        if value := secret.text(field).strip():
            own[header] = value
    extra = {name.lower(): value for name, value in secret.pairs("headers").items()}
    return tuple({**extra, **own}.items())
