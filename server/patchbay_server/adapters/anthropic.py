"""Connectors of type `anthropic`: the Messages API of Anthropic, or a server that speaks it.

Provider options are members of the request's body, with one exception: `betas`, a list of names as in Anthropic's own
libraries, becomes the header `anthropic-beta`.

Source: anthropic-sdk-python 2.11.0; platform.claude.com/docs, "API overview", "Versions", "Migrating to API version
2026-10-21", "Models" (read 2026-11-20).
"""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final
from urllib.parse import quote

import msgspec

from patchbay_server.adapters import belonging, json_body
from patchbay_server.adapters.anthropic_answer import PROVIDER, Reader, failure
from patchbay_server.adapters.anthropic_request import messages_body
from patchbay_server.adapters.counts import count
from patchbay_server.adapters.faults import unreadable_models
from patchbay_server.adapters.protocol import (
    Capability,
    CredentialField,
    FieldKind,
    ModelPage,
    Prepared,
    TypeInfo,
)
from patchbay_server.adapters.waits import retry_after_s
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.types import Call, ModelInfo, Secret
from patchbay_server.wire.http import Framing, HttpAnswer, HttpRequest

ROOT: Final = "https://api.anthropic.com/v1"
VERSION: Final = "2026-10-21"
VERSION_WITH_SAMPLING: Final = "2023-06-01"
"""The last version that takes `temperature`, `top_p` and `top_k`."""

_SAMPLING: Final = frozenset({"temperature", "top_p", "top_k"})
_BETAS_MAX: Final = 64
_BETA: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
_MODELS_PER_PAGE: Final = 1000
# `anthropic.claude-opus-4-6-v1`, `us.anthropic.claude-...`: a model id of AWS.
_BEDROCK_MODEL: Final = re.compile(r"(?:[a-z-]+\.)?anthropic\.")

_INFO: Final = TypeInfo(
    type=PROVIDER,
    display_name="Anthropic",
    description="Claude models through Anthropic's Messages API, or a server that speaks it.",
    fields=(
        CredentialField(
            name="api_key",
            label="API key",
            help="From the Claude Console; it starts with sk-ant-.",
            kind=FieldKind.SECRET,
            required=True,
        ),
        CredentialField(
            name="endpoint",
            label="Endpoint",
            help=f"Root of the API up to and including the version; {ROOT} when empty.",
            kind=FieldKind.URL,
        ),
        CredentialField(
            name="workspace_id",
            label="Workspace",
            help="Only for keys that can act on several workspaces; such as wrkspc_011CZkZa.",
            kind=FieldKind.TEXT,
            pattern=r"[A-Za-z0-9_-]{1,128}",
        ),
    ),
    capabilities=frozenset(
        {
            Capability.STREAMING,
            Capability.TOOLS,
            Capability.IMAGES,
            Capability.FILES,
            Capability.REASONING,
            Capability.STRUCTURED_OUTPUT,
            Capability.MODEL_LIST,
        }
    ),
    documentation_uri="https://platform.claude.com/docs/en/api/overview",
)


class _Model(msgspec.Struct):
    id: str
    display_name: Any = None
    created_at: Any = None
    retires_at: Any = None
    max_input_tokens: Any = None
    max_tokens: Any = None


class _Models(msgspec.Struct):
    data: list[_Model]
    has_more: Any = None
    last_id: Any = None


_models: Final = msgspec.json.Decoder(_Models)
_names: Final = msgspec.json.Decoder(list[str])


class Adapter:
    """The dialect of Anthropic's own API."""

    @property
    def info(self) -> TypeInfo:
        return _INFO

    def check_credential(self, fields: Mapping[str, Any]) -> None:
        """Nothing beyond what `info.fields` says can be known to fail."""

    def check_model(self, model: str, secret: Secret) -> None:
        belonging.check_address(secret.text("endpoint"), PROVIDER)
        if "/" in model:
            raise belonging.misplaced(f"the model id {_shown(model)}", PROVIDER, "openrouter")
        if _BEDROCK_MODEL.match(model):
            raise belonging.misplaced(f"the model id {_shown(model)}", PROVIDER, "bedrock")

    def prepare(self, call: Call, secret: Secret, now: datetime) -> Prepared:
        body, notices = messages_body(call)
        betas = _beta_header(body.pop("betas", None))
        version = VERSION_WITH_SAMPLING if _SAMPLING & body.keys() else VERSION
        request = HttpRequest(
            method="POST",
            url=f"{_root(secret)}/messages",
            headers=(
                ("content-type", "application/json"),
                ("accept", "text/event-stream" if call.streaming else "application/json"),
                *_headers(secret, version),
                *betas,
            ),
            body=json_body.encode(body),
            framing=Framing.SSE if call.streaming else Framing.BODY,
        )
        return Prepared(request=request, notices=notices)

    def reader(self, call: Call) -> Reader:
        return Reader(call)

    def explain(self, answer: HttpAnswer) -> PatchbayError:
        envelope = json_body.object_or_empty(answer.body)
        return failure(
            envelope.get("error"),
            http_status=answer.status,
            request_id=answer.headers.get("request-id") or envelope.get("request_id"),
            retry_after_s=retry_after_s(answer.headers, answer.received_at),
        )

    # --- abilities beside calls ---

    def prepare_check(self, model: str, secret: Secret, now: datetime) -> HttpRequest:
        """Reads what the provider says of `model`, or of any one: free, and proves key and model."""
        path = f"models/{quote(model, safe='')}" if model else "models?limit=1"
        return _get(secret, path)

    def prepare_models(self, page: str, secret: Secret, now: datetime) -> HttpRequest:
        after = f"&after_id={quote(page, safe='')}" if page else ""
        return _get(secret, f"models?limit={_MODELS_PER_PAGE}{after}")

    def read_models(self, answer: HttpAnswer) -> ModelPage:
        try:
            page = json_body.typed(_models, answer.body)
        except ValueError as error:
            raise unreadable_models() from error
        next_page = page.last_id if page.has_more is True and isinstance(page.last_id, str) else ""
        return ModelPage(models=tuple(map(_model_info, page.data)), next_page=next_page)


ADAPTER: Final = Adapter()


def _root(secret: Secret) -> str:
    return (secret.text("endpoint").strip() or ROOT).rstrip("/")


def _headers(secret: Secret, version: str) -> tuple[tuple[str, str], ...]:
    """Who asks, and in which version of the API."""
    headers = (("x-api-key", secret.text("api_key").strip()), ("anthropic-version", version))
    workspace = secret.text("workspace_id").strip()
    return (*headers, ("anthropic-workspace-id", workspace)) if workspace else headers


def _get(secret: Secret, path: str) -> HttpRequest:
    headers = (("accept", "application/json"), *_headers(secret, VERSION))
    return HttpRequest(method="GET", url=f"{_root(secret)}/{path}", headers=headers)


def _beta_header(betas: msgspec.Raw | None) -> tuple[tuple[str, str], ...]:
    """The header for the provider option `betas`; none when it is not set.

    Raises:
        PatchbayError: INVALID_REQUEST naming `provider_options_json` for anything but a list of names.
    """
    if betas is None:
        return ()
    try:
        names = json_body.typed(_names, betas)
    except ValueError:
        names = []
    if not 0 < len(names) <= _BETAS_MAX or not all(map(_BETA.fullmatch, names)):
        raise PatchbayError(
            Reason.INVALID_REQUEST,
            f"`betas` is a list of 1 to {_BETAS_MAX} names of Anthropic's beta features",
            field="provider_options_json",
        )
    return (("anthropic-beta", ",".join(names)),)


def _model_info(model: _Model) -> ModelInfo:
    return ModelInfo(
        id=model.id,
        display_name=model.display_name if isinstance(model.display_name, str) else "",
        owned_by=PROVIDER,
        created_at=_moment(model.created_at),
        retires_at=_moment(model.retires_at),
        max_input_tokens=count(model.max_input_tokens),
        max_output_tokens=count(model.max_tokens),
    )


def _moment(value: Any) -> datetime | None:
    """An RFC 3339 time; None for anything else, and for the epoch, which stands for an unknown one."""
    try:
        moment = msgspec.convert(value, datetime)
    except msgspec.ValidationError:
        return None
    return moment if moment.tzinfo is not None and moment.timestamp() > 0 else None


def _shown(model: str) -> str:
    return f"`{model[:64]}`"
