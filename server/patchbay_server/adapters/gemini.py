"""Connectors of type `gemini`: the Gemini API of Google, or a server that speaks it.

Provider options are members of the request's body, in the spelling of its JSON, such as `safetySettings`,
`cachedContent` or `generationConfig`.

Source: google-genai 3.4.0, `_api_client.py` and `models.py`; ai.google.dev/api, "Generating content" and "Models"
(read 2026-11-21).
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final
from urllib.parse import quote

import msgspec

from patchbay_server.adapters import belonging, json_body
from patchbay_server.adapters.counts import count
from patchbay_server.adapters.faults import unreadable_models
from patchbay_server.adapters.gemini_answer import Reader
from patchbay_server.adapters.gemini_errors import PROVIDER, error_of, failure
from patchbay_server.adapters.gemini_request import content_body
from patchbay_server.adapters.json_body import text_or_empty
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

ROOT: Final = "https://generativelanguage.googleapis.com/v1beta"
"""The aliases `gemini-*-latest` are served by this version only."""

_MODELS: Final = "models/"
_TUNED_MODELS: Final = "tunedModels/"
_MODELS_PER_PAGE: Final = 1000
# The address that Google's other platform gives to the same models.
_RESOURCE_PATHS: Final = ("projects/", "publishers/")
# Below the root lie methods, and a copy of OpenAI's API, which is not this one.
_NOT_ROOTS: Final = ("/models", "/openai", ":generatecontent", ":streamgeneratecontent")

_INFO: Final = TypeInfo(
    type=PROVIDER,
    display_name="Google Gemini",
    description="Gemini models through Google's Gemini API, or a server that speaks it.",
    fields=(
        CredentialField(
            name="api_key",
            label="API key",
            help="From Google AI Studio; new keys start with AQ.",
            kind=FieldKind.SECRET,
            required=True,
        ),
        CredentialField(
            name="endpoint",
            label="Endpoint",
            help=f"Root of the API up to and including the version; {ROOT} when empty.",
            kind=FieldKind.URL,
        ),
    ),
    capabilities=frozenset(
        {
            Capability.STREAMING,
            Capability.TOOLS,
            Capability.IMAGES,
            Capability.AUDIO,
            Capability.FILES,
            Capability.REASONING,
            Capability.STRUCTURED_OUTPUT,
            Capability.MODEL_LIST,
        }
    ),
    documentation_uri="https://ai.google.dev/gemini-api/docs",
)


class _Model(msgspec.Struct, rename="camel"):
    name: str
    display_name: Any = None
    input_token_limit: Any = None
    output_token_limit: Any = None


class _Models(msgspec.Struct, rename="camel"):
    # Left out when there are none.
    models: list[_Model] = []
    next_page_token: Any = None


_models: Final = msgspec.json.Decoder(_Models)


class Adapter:
    """The dialect of Google's own API."""

    @property
    def info(self) -> TypeInfo:
        return _INFO

    def check_credential(self, fields: Mapping[str, Any]) -> None:
        if text_or_empty(fields.get("endpoint")).rstrip("/").lower().endswith(_NOT_ROOTS):
            raise PatchbayError(
                Reason.INVALID_REQUEST,
                "`endpoint` is the API's root up to and including the version, without the path of a method",
                field="endpoint",
            )

    def check_model(self, model: str, secret: Secret) -> None:
        belonging.check_address(secret.text("endpoint"), PROVIDER)
        if model.startswith(_RESOURCE_PATHS):
            raise PatchbayError(
                Reason.CONNECTOR_MISCONFIGURED, "name the model by its id alone, such as `gemini-flash-latest`"
            )
        if "/" in _bare(model):
            raise belonging.misplaced(f"the model id `{model[:64]}`", PROVIDER, "openrouter")

    def prepare(self, call: Call, secret: Secret, now: datetime) -> Prepared:
        body, notices = content_body(call)
        method = "streamGenerateContent?alt=sse" if call.streaming else "generateContent"
        request = HttpRequest(
            method="POST",
            url=f"{_root(secret)}/{_path(call.model)}:{method}",
            headers=(
                ("content-type", "application/json"),
                ("accept", "text/event-stream" if call.streaming else "application/json"),
                _key(secret),
            ),
            body=json_body.encode(body),
            framing=Framing.SSE_THEN_JSON if call.streaming else Framing.BODY,
        )
        return Prepared(request=request, notices=notices)

    def reader(self, call: Call) -> Reader:
        return Reader(call)

    def explain(self, answer: HttpAnswer) -> PatchbayError:
        try:
            body = json_body.decode(answer.body)
        except ValueError:
            # A proxy's page, or a body that was cut at its bound.
            body = None
        return failure(
            error_of(body),
            http_status=answer.status,
            retry_after_s=retry_after_s(answer.headers, answer.received_at),
        )

    # --- abilities beside calls ---

    def prepare_check(self, model: str, secret: Secret, now: datetime) -> HttpRequest:
        """Reads what the provider says of `model`, or of any one: free, and proves key and model."""
        return _get(secret, _path(model) if model else "models?pageSize=1")

    def prepare_models(self, page: str, secret: Secret, now: datetime) -> HttpRequest:
        after = f"&pageToken={quote(page, safe='')}" if page else ""
        return _get(secret, f"models?pageSize={_MODELS_PER_PAGE}{after}")

    def read_models(self, answer: HttpAnswer) -> ModelPage:
        try:
            page = json_body.typed(_models, answer.body)
        except ValueError as error:
            raise unreadable_models() from error
        return ModelPage(models=tuple(map(_model_info, page.models)), next_page=text_or_empty(page.next_page_token))


ADAPTER: Final = Adapter()


def _root(secret: Secret) -> str:
    return (secret.text("endpoint").strip() or ROOT).rstrip("/")


def _key(secret: Secret) -> tuple[str, str]:
    return ("x-goog-api-key", secret.text("api_key").strip())


def _bare(model: str) -> str:
    """A model id without the collection that the provider's own spelling puts before it."""
    return model.removeprefix(_MODELS).removeprefix(_TUNED_MODELS)


def _path(model: str) -> str:
    collection = _TUNED_MODELS if model.startswith(_TUNED_MODELS) else _MODELS
    return collection + quote(model.removeprefix(collection), safe="")


def _get(secret: Secret, path: str) -> HttpRequest:
    headers = (("accept", "application/json"), _key(secret))
    return HttpRequest(method="GET", url=f"{_root(secret)}/{path}", headers=headers)


def _model_info(model: _Model) -> ModelInfo:
    return ModelInfo(
        id=model.name.removeprefix(_MODELS),
        display_name=text_or_empty(model.display_name),
        owned_by="google",
        max_input_tokens=count(model.input_token_limit),
        max_output_tokens=count(model.output_token_limit),
    )
