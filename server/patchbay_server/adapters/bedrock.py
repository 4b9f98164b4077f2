"""Connectors of type `bedrock`: the models of AWS Bedrock, through Converse and, for what that cannot say, InvokeModel.

Provider options are members of Converse's body, whichever of the two a call goes to: `guardrailConfig`,
`additionalModelRequestFields` and its like.

Source: botocore 1.44.5, service models `bedrock-runtime` and `bedrock`, `partitions.json`. What counts tokens and what
does not: pydantic/pydantic-ai issue 4001, BerriAI/litellm issues 32683 and 34272 (read 2026-11-21).
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote, urlsplit, urlunsplit

import msgspec

from patchbay_server.adapters import bedrock_errors, bedrock_llama, belonging, json_body
from patchbay_server.adapters.bedrock_answer import Reader as ConverseReader
from patchbay_server.adapters.bedrock_errors import PROVIDER
from patchbay_server.adapters.bedrock_invoke import ClaudeReader, claude_body, invoke_options
from patchbay_server.adapters.bedrock_llama import llama_body
from patchbay_server.adapters.bedrock_models import MODEL_ID, Surface, model_of, surface_of
from patchbay_server.adapters.bedrock_request import converse_body
from patchbay_server.adapters.faults import unreadable_models
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
from patchbay_server.types import Call, ModelInfo, Notice, Secret
from patchbay_server.wire import eventstream
from patchbay_server.wire.http import Framing, HttpAnswer, HttpRequest
from patchbay_server.wire.sigv4 import Credentials, signed

REGION: Final = r"[a-z]{2,8}(-[a-z0-9]+)+-[0-9]{1,2}"
MODELS_PER_PAGE: Final = 1000

_SERVICE: Final = "bedrock"
"""The name that requests to both planes are signed for."""
_RUNTIME: Final = "bedrock-runtime"
_CONTROL: Final = "bedrock"
_DNS_SUFFIX: Final = "amazonaws.com"
_DNS_SUFFIXES: Final = (
    ("cn-", "amazonaws.com.cn"),
    ("eusc-", "amazonaws.eu"),
    ("us-iso-", "c2s.ic.gov"),
    ("us-isob-", "sc2s.sgov.gov"),
    ("us-isof-", "csp.hci.ic.gov"),
    ("eu-isoe-", "cloud.adc-e.uk"),
)
"""Regions of AWS's other partitions, by how their names begin."""

_PROFILES: Final = "profiles"
"""The page of a model list that inference profiles begin on."""
_ELSEWHERE: Final = (
    (re.compile(r"claude-"), "anthropic"),
    (re.compile(r"(?:gpt|chatgpt)-"), "openai"),
    (re.compile(r"gemini-"), "gemini"),
    (re.compile(r"grok-"), "xai"),
)
"""How models are called where their makers serve them."""

_INFO: Final = TypeInfo(
    type=PROVIDER,
    display_name="AWS Bedrock",
    description="Models of Anthropic, Amazon, Meta, Mistral and others on AWS Bedrock.",
    fields=(
        CredentialField(
            name="region",
            label="Region",
            help="Such as eu-central-1.",
            kind=FieldKind.TEXT,
            required=True,
            pattern=REGION,
            length_max=32,
        ),
        CredentialField(
            name="model_id",
            label="Model",
            help="A model id, an inference profile's id or an ARN; asked where a call and the connector name no model.",
            kind=FieldKind.TEXT,
            required=True,
            pattern=MODEL_ID.pattern,
            length_max=2048,
        ),
        CredentialField(
            name="access_key_id",
            label="Access key id",
            help="Of an IAM access key; starts with AKIA, or with ASIA for a temporary one.",
            kind=FieldKind.SECRET,
            one_of="key",
            pattern=r"[A-Za-z0-9_]{16,128}",
            replaces=("api_key", "session_token"),
        ),
        CredentialField(
            name="secret_access_key",
            label="Secret access key",
            help="The access key's secret.",
            kind=FieldKind.SECRET,
            pattern=r"[A-Za-z0-9/+=]{16,128}",
        ),
        CredentialField(
            name="session_token",
            label="Session token",
            help="Of a temporary access key.",
            kind=FieldKind.SECRET,
            pattern=r"[A-Za-z0-9/+=_-]+",
            length_max=8192,
        ),
        CredentialField(
            name="api_key",
            label="Bedrock API key",
            help="Instead of an access key; starts with ABSK or bedrock-api-key-.",
            kind=FieldKind.SECRET,
            one_of="key",
            pattern=r"[\x21-\x7e]+",
            length_max=8192,
            replaces=("access_key_id", "secret_access_key", "session_token"),
        ),
        CredentialField(
            name="endpoint",
            label="Endpoint",
            help=f"Replaces https://{_RUNTIME}.{{region}}.{_DNS_SUFFIX}: a private link, a proxy or a test server.",
            kind=FieldKind.URL,
            length_max=2048,
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
    documentation_uri="https://docs.aws.amazon.com/bedrock/latest/userguide/",
)


class _Lifecycle(msgspec.Struct, rename="camel"):
    start_of_life_time: Any = None
    end_of_life_time: Any = None


class _Model(msgspec.Struct, rename="camel"):
    model_id: str
    model_name: Any = None
    provider_name: Any = None
    inference_types_supported: Any = None
    model_lifecycle: _Lifecycle | None = None


class _Profile(msgspec.Struct, rename="camel"):
    inference_profile_id: str
    inference_profile_arn: Any = None
    inference_profile_name: Any = None
    type: Any = None
    created_at: Any = None


class _Models(msgspec.Struct, rename="camel"):
    """A list of one of the two."""

    model_summaries: list[_Model] | None = None
    inference_profile_summaries: list[_Profile] | None = None
    next_token: Any = None


_models: Final = msgspec.json.Decoder(_Models)


class Adapter:
    """The dialect of Bedrock."""

    @property
    def info(self) -> TypeInfo:
        return _INFO

    def check_credential(self, fields: Mapping[str, Any]) -> None:
        given = {name for name in ("access_key_id", "secret_access_key", "session_token") if fields.get(name)}
        if fields.get("api_key") and given:
            raise _refused(min(given), "give an access key or a Bedrock API key, not both")
        for name in ("access_key_id", "secret_access_key"):
            if given and name not in given:
                raise _refused(name, "an access key is an id and its secret; give both")

    def check_model(self, model: str, secret: Secret) -> None:
        belonging.check_address(secret.text("endpoint"), PROVIDER)
        model_id = model or self.model_of(secret)
        shown = f"the model id `{model_id[:64]}`"
        if "/" in model_id and not model_id.startswith("arn:"):
            raise belonging.misplaced(shown, PROVIDER, "openrouter")
        for pattern, right_type in _ELSEWHERE:
            if pattern.match(model_id):
                raise belonging.misplaced(shown, PROVIDER, right_type)

    def model_of(self, secret: Secret) -> str:
        return secret.text("model_id").strip()

    def prepare(self, call: Call, secret: Secret, now: datetime) -> Prepared:
        call = msgspec.structs.replace(call, model=call.model or self.model_of(secret))
        if not MODEL_ID.fullmatch(call.model):
            raise PatchbayError(
                Reason.INVALID_REQUEST, "a model is named by its id, an inference profile or an ARN", field="model"
            )
        surface = surface_of(call)
        body, notices, more_headers = _body(call, surface)
        request = HttpRequest(
            method="POST",
            url=f"{_runtime(secret)}/model/{_segment(call.model)}/{_operation(surface, streaming=call.streaming)}",
            headers=(("content-type", "application/json"), *_accept(surface, call), *more_headers),
            body=json_body.encode(body),
            framing=Framing.EVENT_STREAM if call.streaming else Framing.BODY,
        )
        return Prepared(request=_authorized(request, secret, now), notices=notices, reader=self.reader(call))

    def reader(self, call: Call) -> Reader:
        match surface_of(call):
            case Surface.CONVERSE:
                return ConverseReader(call)
            case Surface.CLAUDE:
                return ClaudeReader(call)
            case Surface.LLAMA:
                return bedrock_llama.Reader(call)

    def explain(self, answer: HttpAnswer) -> PatchbayError:
        return bedrock_errors.explain(answer)

    # --- abilities beside calls ---

    def prepare_check(self, model: str, secret: Secret, now: datetime) -> HttpRequest:
        """Asks for the tokens of a word: free, and on the address that calls go to, with the right to do so or not."""
        said = {"messages": [{"role": "user", "content": [{"text": "hello"}]}]}
        request = HttpRequest(
            method="POST",
            url=f"{_runtime(secret)}/model/{_segment(model or self.model_of(secret))}/count-tokens",
            headers=(("content-type", "application/json"), ("accept", "application/json")),
            body=json_body.encode({"input": {"converse": said}}),
        )
        return _authorized(request, secret, now)

    def passes_check(self, failure: PatchbayError) -> bool:
        """Whether the provider knew who asked and only could not, or would not, count.

        Most models and all inference profiles have no counting, and a role may be allowed to do nothing but ask models:
        both are told after the credential has been found good.
        """
        code = failure.upstream.provider_code if failure.upstream else ""
        uncounted = code == "ValidationException" and failure.reason is not Reason.MODEL_NOT_FOUND
        denied = code == "AccessDeniedException" and failure.reason is Reason.UPSTREAM_REJECTED_REQUEST
        return uncounted or denied

    def prepare_models(self, page: str, secret: Secret, now: datetime) -> HttpRequest:
        path = "foundation-models?byOutputModality=TEXT"
        if page:
            token = page.removeprefix(_PROFILES).removeprefix(":")
            path = f"inference-profiles?maxResults={MODELS_PER_PAGE}"
            path += f"&nextToken={quote(token, safe='')}" if token else ""
        request = HttpRequest(method="GET", url=f"{_control(secret)}/{path}", headers=(("accept", "application/json"),))
        return _authorized(request, secret, now)

    def read_models(self, answer: HttpAnswer) -> ModelPage:
        try:
            page = json_body.typed(_models, answer.body)
        except ValueError:
            page = _Models()
        if page.model_summaries is not None:
            models = (_model_info(model) for model in page.model_summaries if _on_demand(model))
            return ModelPage(models=tuple(models), next_page=_PROFILES)
        if page.inference_profile_summaries is not None:
            token = json_body.text_or_empty(page.next_token)
            return ModelPage(
                models=tuple(map(_profile_info, page.inference_profile_summaries)),
                next_page=f"{_PROFILES}:{token}" if token else "",
            )
        raise unreadable_models()


ADAPTER: Final = Adapter()


# --- requests ---------------------------------------------------------------------------------------------------------


def _body(call: Call, surface: Surface) -> tuple[dict[str, Any], tuple[Notice, ...], tuple[tuple[str, str], ...]]:
    """The body of a call, what of the call it leaves out, and the headers that options become."""
    if surface is Surface.CONVERSE:
        return *converse_body(call), ()
    options = invoke_options(call.prompt)
    llama = model_of(call.model).traits.llama
    body, notices = llama_body(call, llama, options) if llama else claude_body(call, options)
    return body, notices, options.headers


def _operation(surface: Surface, *, streaming: bool) -> str:
    if surface is Surface.CONVERSE:
        return "converse-stream" if streaming else "converse"
    return "invoke-with-response-stream" if streaming else "invoke"


def _accept(surface: Surface, call: Call) -> tuple[tuple[str, str], ...]:
    if not call.streaming:
        return (("accept", "application/json"),)
    accept = ("accept", eventstream.CONTENT_TYPE)
    return (accept,) if surface is Surface.CONVERSE else (accept, ("x-amzn-bedrock-accept", "application/json"))


def _authorized(request: HttpRequest, secret: Secret, now: datetime) -> HttpRequest:
    """`request` with a Bedrock API key, or signed by an access key.

    Raises:
        PatchbayError: CONNECTOR_MISCONFIGURED when the credential is neither.
    """
    api_key = secret.text("api_key").strip()
    access_key = Credentials(
        access_key_id=secret.text("access_key_id").strip(),
        secret_access_key=secret.text("secret_access_key").strip(),
        session_token=secret.text("session_token").strip(),
    )
    if api_key and not access_key.access_key_id:
        return msgspec.structs.replace(request, headers=(*request.headers, ("authorization", f"Bearer {api_key}")))
    if api_key or not (access_key.access_key_id and access_key.secret_access_key):
        raise PatchbayError(
            Reason.CONNECTOR_MISCONFIGURED, "the connector needs an access key with its secret, or a Bedrock API key"
        )
    return signed(request, access_key, service=_SERVICE, region=_region(secret), now=now)


def _region(secret: Secret) -> str:
    region = secret.text("region").strip()
    if not re.fullmatch(REGION, region):
        raise PatchbayError(Reason.CONNECTOR_MISCONFIGURED, "the connector's region is no region of AWS; correct it")
    return region


def _runtime(secret: Secret) -> str:
    """The root of the API that models are asked on."""
    return secret.text("endpoint").strip().rstrip("/") or _default_root(_RUNTIME, secret)


def _control(secret: Secret) -> str:
    """The root of the API that tells about models; a proxy or a test server is taken to serve both."""
    endpoint = secret.text("endpoint").strip().rstrip("/")
    if not endpoint:
        return _default_root(_CONTROL, secret)
    parts = urlsplit(endpoint)
    host = _CONTROL + parts.netloc.removeprefix(_RUNTIME) if parts.netloc.startswith(_RUNTIME) else parts.netloc
    return urlunsplit(parts._replace(netloc=host))


def _default_root(service: str, secret: Secret) -> str:
    region = _region(secret)
    suffix = next((suffix for start, suffix in _DNS_SUFFIXES if region.startswith(start)), _DNS_SUFFIX)
    return f"https://{service}.{region}.{suffix}"


def _segment(model_id: str) -> str:
    """A model id as one segment of a path, whatever it holds."""
    return quote(model_id, safe="")


# --- models -----------------------------------------------------------------------------------------------------------


def _on_demand(model: _Model) -> bool:
    """Whether the model can be asked by its own id; others are offered through inference profiles."""
    types = model.inference_types_supported
    return not isinstance(types, list) or "ON_DEMAND" in types


def _model_info(model: _Model) -> ModelInfo:
    lifecycle = model.model_lifecycle or _Lifecycle()
    return ModelInfo(
        id=model.model_id,
        display_name=json_body.text_or_empty(model.model_name),
        owned_by=json_body.text_or_empty(model.provider_name),
        created_at=_moment(lifecycle.start_of_life_time),
        retires_at=_moment(lifecycle.end_of_life_time),
    )


def _profile_info(profile: _Profile) -> ModelInfo:
    # An application's profile is asked for by its ARN only.
    arn = json_body.text_or_empty(profile.inference_profile_arn)
    return ModelInfo(
        id=arn if profile.type == "APPLICATION" and arn else profile.inference_profile_id,
        display_name=json_body.text_or_empty(profile.inference_profile_name),
        created_at=_moment(profile.created_at),
    )


def _moment(value: Any) -> datetime | None:
    """An ISO 8601 time; None for anything else."""
    try:
        moment = datetime.fromisoformat(json_body.text_or_empty(value))
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _refused(field: str, message: str) -> PatchbayError:
    return PatchbayError(Reason.INVALID_REQUEST, message, field=field)
