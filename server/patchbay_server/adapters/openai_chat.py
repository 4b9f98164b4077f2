"""The connector types `openai` and `openai_compatible`: what they are, and the adapter that both are values of.

The `openai` type speaks chat completions, and the Responses API where a model gives what is asked for only there.
"""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote

from patchbay_server.adapters import belonging
from patchbay_server.adapters.counts import count
from patchbay_server.adapters.failures import upstream_error
from patchbay_server.adapters.faults import unreadable_models
from patchbay_server.adapters.json_body import decode, encode, object_or_empty
from patchbay_server.adapters.openai_chat_reader import ChatReader
from patchbay_server.adapters.openai_chat_request import chat_body
from patchbay_server.adapters.openai_dialect import (
    COMPATIBLE,
    MAX_TOKENS_FIELDS,
    OPENAI_ROOT,
    Dialect,
    address,
    compatible,
    headers,
)
from patchbay_server.adapters.openai_dialect import OPENAI as OPENAI_DIALECT
from patchbay_server.adapters.openai_errors import explain
from patchbay_server.adapters.openai_models import wants_responses
from patchbay_server.adapters.openai_prompt import MediaKind, media_kind
from patchbay_server.adapters.openai_responses_reader import ResponsesReader
from patchbay_server.adapters.openai_responses_request import responses_body
from patchbay_server.adapters.protocol import (
    Capability,
    CredentialField,
    FieldKind,
    ModelPage,
    Prepared,
    Reader,
    TypeInfo,
)
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.types import Call, MediaPart, ModelInfo, Prompt, ProviderTool, Secret, ToolResultPart
from patchbay_server.wire.http import Framing, HttpAnswer, HttpRequest

MODELS_MAX: Final = 10_000
"""More models than any provider has; what a list holds beyond is left out."""

_QUERY: Final = re.compile(r"[A-Za-z0-9_.~%=&+-]{1,512}")
_PATHS: Final = ("/chat/completions", "/completions", "/responses", "/models", "/embeddings")
"""What is appended to an API's root; a root that ends with one of them was copied one step too far."""


class OpenAiAdapter:
    """One relative of the OpenAI API.

    Args:
        dialect: what all connectors of the type share.
        of_connector: the dialect of one connector, by its credential.
        check_fields: what a credential of the type has to keep besides, as `Adapter.check_credential` has it.
    """

    def __init__(
        self,
        info: TypeInfo,
        dialect: Dialect,
        of_connector: Callable[[Secret], Dialect] | None = None,
        check_fields: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        self._info = info
        self._dialect = dialect
        self._of_connector = of_connector or (lambda _secret: dialect)
        self._check_fields = check_fields or (lambda _fields: None)

    @property
    def info(self) -> TypeInfo:
        return self._info

    def check_credential(self, fields: Mapping[str, Any]) -> None:
        name = self._dialect.root_field
        root = fields.get(name)
        if isinstance(root, str) and root.rstrip("/").lower().endswith(_PATHS):
            raise PatchbayError(
                Reason.INVALID_REQUEST,
                f"`{name}` is the API's root up to and including the version, without the path of a method",
                field=name,
            )
        self._check_fields(fields)

    def check_model(self, model: str, secret: Secret) -> None:
        if not self._dialect.one_provider:
            return
        belonging.check_address(secret.text(self._dialect.root_field), self._info.type)
        if "/" in model and not self._dialect.slashed_models:
            raise belonging.misplaced("a model id with a slash", self._info.type, "openrouter")

    def model_of(self, secret: Secret) -> str:
        return self._of_connector(secret).deployment

    def prepare(self, call: Call, secret: Secret, now: datetime) -> Prepared:
        dialect = self._of_connector(secret)
        if _on_responses(call, dialect):
            path: tuple[str, ...] = ("responses",)
            body, notices = responses_body(call, dialect)
        else:
            path = dialect.chat_path
            body, notices = chat_body(call, dialect)
        request = HttpRequest(
            method="POST",
            url=address(dialect, secret, *path),
            headers=(
                *headers(dialect, secret),
                ("content-type", "application/json"),
                ("accept", "text/event-stream" if call.streaming else "application/json"),
            ),
            body=encode(body),
            framing=Framing.SSE if call.streaming else Framing.BODY,
        )
        return Prepared(request=request, notices=notices, reader=_reader(call, dialect))

    def reader(self, call: Call) -> Reader:
        return _reader(call, self._dialect)

    def explain(self, answer: HttpAnswer) -> PatchbayError:
        return explain(answer, self._info.type)

    # --- checks and models ---

    def prepare_check(self, model: str, secret: Secret, now: datetime) -> HttpRequest:
        if self._dialect.check_path:
            return self._get(secret, *self._dialect.check_path)
        # A name of dots alone would climb the path, however it is encoded.
        named = self._dialect.model_by_id and model.strip(".")
        return self._get(secret, "models", *([quote(model, safe="")] if named else []))

    def read_check(self, answer: HttpAnswer) -> None:
        told = object_or_empty(answer.body)
        if any(told.get(flag) is True for flag in self._dialect.key_flags):
            raise upstream_error(
                Reason.UPSTREAM_CREDENTIAL_REJECTED, provider=self._info.type, http_status=answer.status
            )

    def prepare_models(self, page: str, secret: Secret, now: datetime) -> HttpRequest:
        return self._get(secret, "models", query=quote(page, safe="=&+%~"))

    def read_models(self, answer: HttpAnswer) -> ModelPage:
        try:
            body = decode(answer.body)
        except ValueError:
            body = None
        # Some servers answer with the bare list, some with null for an empty one.
        entries = body.get("data", ()) or () if isinstance(body, dict) else body
        if not isinstance(entries, list | tuple):
            raise unreadable_models()
        models = (_model(entry, self._dialect) for entry in entries[:MODELS_MAX] if isinstance(entry, dict))
        return ModelPage(
            models=tuple(model for model in models if model is not None),
            next_page=_next_page(body) if isinstance(body, dict) else "",
        )

    def _get(self, secret: Secret, *segments: str, query: str = "") -> HttpRequest:
        dialect = self._of_connector(secret)
        return HttpRequest(
            method="GET",
            url=address(dialect, secret, *segments, query=query),
            headers=(*headers(dialect, secret), ("accept", "application/json")),
        )


def _on_responses(call: Call, dialect: Dialect) -> bool:
    family = dialect.family(call.model)
    if not dialect.responses or family.only_chat:
        return False
    return wants_responses(call.prompt, family) or _beyond_chat(call.prompt, dialect)


def _beyond_chat(prompt: Prompt, dialect: Dialect) -> bool:
    """Whether a prompt holds what this relative takes on its Responses API only."""
    if not dialect.chat_provider_tools and any(isinstance(tool, ProviderTool) for tool in prompt.tools):
        return True
    parts = [part for message in prompt.messages for part in message.parts]
    results = [inner for part in parts if isinstance(part, ToolResultPart) for inner in part.parts]
    if dialect.references_on_responses and any(isinstance(inner, MediaPart) for inner in results):
        return True
    return any(isinstance(part, MediaPart) and _is_beyond_chat(part, dialect) for part in parts)


def _is_beyond_chat(part: MediaPart, dialect: Dialect) -> bool:
    match media_kind(part):
        case MediaKind.FILE:
            return not dialect.chat_files or (dialect.references_on_responses and part.uri is not None)
        case MediaKind.IMAGE:
            return dialect.references_on_responses and part.provider_file_id is not None
        case MediaKind.AUDIO:
            return False


def _reader(call: Call, dialect: Dialect) -> Reader:
    return ResponsesReader(call, dialect) if _on_responses(call, dialect) else ChatReader(call, dialect)


def _model(entry: dict[str, Any], dialect: Dialect) -> ModelInfo | None:
    """One entry of a model list; None when it has no id. What else it says differs from server to server; a limit that
    it does not say may be known all the same.
    """
    model_id = entry.get("id")
    if not isinstance(model_id, str) or not model_id:
        return None
    known = dialect.family(model_id).max_output_tokens
    own, top = entry.get("meta"), entry.get("top_provider")
    limits = [entry.get("max_completion_tokens"), top.get("max_completion_tokens") if isinstance(top, dict) else None]
    sizes = [entry.get(name) for name in ("max_model_len", "context_length", "max_context_length")]
    sizes.append(own.get("n_ctx_train") if isinstance(own, dict) else None)
    return ModelInfo(
        id=model_id,
        display_name=_text(entry.get("name")),
        owned_by=_text(entry.get("owned_by")),
        created_at=_moment(entry.get("created")),
        retires_at=_day(entry.get("shutdown_date")),
        max_input_tokens=next((size for value in sizes if (size := count(value))), None),
        max_output_tokens=next((limit for value in limits if (limit := count(value))), known),
    )


def _next_page(body: Mapping[str, Any]) -> str:
    """The query of the link to the next page, which is all that is taken of it; empty after the last page.

    Source: `ModelsListResponse` of openrouter 1.3.84; others give the whole list (read 2026-11-20).
    """
    links = body.get("links")
    link = links.get("next") if isinstance(links, dict) else None
    query = _text(link).partition("?")[2]
    return query if _QUERY.fullmatch(query) else ""


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _moment(seconds: Any) -> datetime | None:
    """A Unix time; None for 0, which servers that do not know send, and for what is no time."""
    try:
        return datetime.fromtimestamp(count(seconds) or 0, UTC) if count(seconds) else None
    except (OverflowError, ValueError, OSError):
        return None


def _day(date: Any) -> datetime | None:
    """A date or moment in ISO 8601; without a zone it is UTC."""
    try:
        moment = datetime.fromisoformat(_text(date))
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


# --- the types -------------------------------------------------------------------------------------------------------


def key_field(help: str, *, required: bool = True) -> CredentialField:  # noqa: A002 -- the field's name
    return CredentialField(name="api_key", label="API key", help=help, kind=FieldKind.SECRET, required=required)


def endpoint_field(root: str, *, such_as: str) -> CredentialField:
    """The field that replaces the API's root `root`."""
    return CredentialField(
        name="endpoint", label="Endpoint", help=f"Replaces {root}: {such_as}.", kind=FieldKind.URL, length_max=2048
    )


OPENAI: Final = OpenAiAdapter(
    TypeInfo(
        type="openai",
        display_name="OpenAI",
        description="OpenAI's own API.",
        fields=(
            key_field("Starts with sk-."),
            CredentialField(
                name="organization",
                label="Organisation",
                help="The organisation's id, where the key belongs to several.",
                kind=FieldKind.TEXT,
                length_max=256,
            ),
            CredentialField(
                name="project",
                label="Project",
                help="The project's id, where the key belongs to several.",
                kind=FieldKind.TEXT,
                length_max=256,
            ),
            endpoint_field(OPENAI_ROOT, such_as="a proxy, a regional or a test server"),
        ),
        capabilities=frozenset(Capability),
        documentation_uri="https://platform.openai.com/docs",
    ),
    OPENAI_DIALECT,
)

OPENAI_COMPATIBLE: Final = OpenAiAdapter(
    TypeInfo(
        type="openai_compatible",
        display_name="OpenAI-compatible server",
        description="Any server that speaks OpenAI's chat protocol: vLLM, llama.cpp, Ollama, LM Studio and others.",
        fields=(
            CredentialField(
                name="base_url",
                label="Base URL",
                help="The root that /chat/completions is appended to, such as http://localhost:8000/v1.",
                kind=FieldKind.URL,
                required=True,
                length_max=2048,
            ),
            key_field("Sent as a bearer token. Empty: none is sent.", required=False),
            CredentialField(
                name="headers",
                label="Extra headers",
                help="Sent with every request, for servers behind a gateway.",
                kind=FieldKind.HEADERS,
            ),
            CredentialField(
                name="tools",
                label="Knows tools",
                help="Off: requests with tools are refused. On by default.",
                kind=FieldKind.FLAG,
            ),
            CredentialField(
                name="stream_usage",
                label="Counts tokens in streams",
                help="Off: stream_options.include_usage is not sent. On by default.",
                kind=FieldKind.FLAG,
            ),
            CredentialField(
                name="requires_done_marker",
                label="Ends streams with [DONE]",
                help="On: a stream without it counts as cut off. Off by default: a finish reason is enough.",
                kind=FieldKind.FLAG,
            ),
            CredentialField(
                name="max_tokens_field",
                label="Field of the token limit",
                help="max_tokens by default.",
                kind=FieldKind.CHOICE,
                choices=MAX_TOKENS_FIELDS,
            ),
        ),
        capabilities=frozenset(Capability),
        self_hosted=True,
    ),
    COMPATIBLE,
    compatible,
)
