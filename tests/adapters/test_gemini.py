"""The dialect of Gemini: what it asks, what it makes of answers, and what its errors mean."""

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

import msgspec
import pytest
from google.api.error_reason_pb2 import ErrorReason  # type: ignore[import-untyped]  # ships no py.typed
from google.rpc.code_pb2 import Code  # type: ignore[import-untyped]  # ships no py.typed
from hypothesis import given, settings
from hypothesis import strategies as st

from patchbay_server.adapters import folding
from patchbay_server.adapters.gemini import ADAPTER
from patchbay_server.adapters.gemini_errors import _BY_REASON
from patchbay_server.adapters.protocol import Checks, ListsModels
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.testing.adapter_suite import NOW, AdapterSuite, ErrorCase, ModelSuite, golden_cases, read
from patchbay_server.testing.stream_rules import check_stream
from patchbay_server.types import (
    Call,
    Effort,
    Event,
    Finished,
    FinishReason,
    FunctionTool,
    GenerationConfig,
    JsonObjectFormat,
    JsonSchemaFormat,
    MediaPart,
    Message,
    NoticeCode,
    Opened,
    Part,
    PartCompleted,
    Prompt,
    ProviderTool,
    ReasoningConfig,
    ReasoningPart,
    RefusalPart,
    Role,
    Secret,
    TextDelta,
    TextPart,
    ToolCallPart,
    ToolChoice,
    ToolMode,
    ToolResultPart,
    UsageUpdated,
)
from patchbay_server.usage import Usage
from patchbay_server.wire.http import Frame, Framing, HttpAnswer

GOLDEN: Final = Path(__file__).parents[1] / "golden" / "gemini"
SECRET: Final = {"api_key": "AQ.test-0123456789"}
HELLO: Final = Message(role=Role.USER, parts=(TextPart(text="hello"),))
ADD: Final = FunctionTool(name="add")
SIGNATURE: Final = "CiQBjz1rX0c+bm9/aGVyIHNpZ25hdHVyZQ=="

# --- what errors mean -------------------------------------------------------------------------------------------------

QUOTA: Final = "RESOURCE_EXHAUSTED"


def error_body(code: int, status: str, message: str = "words of the provider", **details: Any) -> str:
    """An error as the API writes it; `details` are the members of each detail by the name of its type."""
    written = [{"@type": f"type.googleapis.com/google.rpc.{kind}", **members} for kind, members in details.items()]
    return json.dumps({"error": {"code": code, "message": message, "status": status, "details": written}})


def error_case(
    code: int, status: str, reason: Reason, message: str = "", wait: float | None = None, **details: Any
) -> ErrorCase:
    name = " ".join(filter(None, (str(code), status, message[:30], json.dumps(details) if details else "")))
    body = error_body(code, status, message, **details)
    return ErrorCase(name=name, status=code, body=body, reason=reason, retry_after_s=wait)


def info(reason: str) -> dict[str, Any]:
    return {"reason": reason, "domain": "googleapis.com"}


def quotas(*ids: str, value: str = "250") -> dict[str, Any]:
    return {"violations": [{"quotaMetric": "generativelanguage", "quotaId": one, "quotaValue": value} for one in ids]}


PER_DAY: Final = "GenerateRequestsPerDayPerProjectPerModel-FreeTier"
PER_MINUTE: Final = "GenerateContentInputTokensPerModelPerMinute-FreeTier"
INVALID: Final = "INVALID_ARGUMENT"
DENIED: Final = "PERMISSION_DENIED"
UNMET: Final = "FAILED_PRECONDITION"

ERRORS: Final = (
    error_case(400, INVALID, Reason.UPSTREAM_CREDENTIAL_REJECTED, ErrorInfo=info("API_KEY_INVALID")),
    error_case(400, INVALID, Reason.UPSTREAM_CREDENTIAL_REJECTED, "API key not valid. Please pass a valid API key."),
    error_case(400, INVALID, Reason.UPSTREAM_CREDENTIAL_REJECTED, "API key expired. Please renew the API key."),
    error_case(400, INVALID, Reason.CONNECTOR_MISCONFIGURED, "Multiple authentication credentials received."),
    error_case(401, "UNAUTHENTICATED", Reason.UPSTREAM_CREDENTIAL_REJECTED),
    error_case(
        401,
        "UNAUTHENTICATED",
        Reason.UPSTREAM_CREDENTIAL_REJECTED,
        ErrorInfo=info("ACCESS_TOKEN_TYPE_UNSUPPORTED"),
    ),
    error_case(403, DENIED, Reason.UPSTREAM_CREDENTIAL_REJECTED, "Your API key was reported as leaked."),
    error_case(403, DENIED, Reason.UPSTREAM_CREDENTIAL_REJECTED, ErrorInfo=info("API_KEY_IP_ADDRESS_BLOCKED")),
    error_case(403, DENIED, Reason.UPSTREAM_CREDENTIAL_REJECTED, ErrorInfo=info("CONSUMER_SUSPENDED")),
    # A good key that lacks a permission, or names what is not its own.
    error_case(403, DENIED, Reason.UPSTREAM_REJECTED_REQUEST, ErrorInfo=info("IAM_PERMISSION_DENIED")),
    error_case(
        403,
        DENIED,
        Reason.UPSTREAM_REJECTED_REQUEST,
        "You do not have permission to access the File abc or it may not exist.",
    ),
    error_case(403, DENIED, Reason.UPSTREAM_REJECTED_REQUEST, "CachedContent not found (or permission denied)"),
    error_case(403, DENIED, Reason.MODEL_NOT_FOUND, "You do not have permission to access tuned model tunedModels/x."),
    error_case(403, DENIED, Reason.CONNECTOR_MISCONFIGURED, ErrorInfo=info("SERVICE_DISABLED")),
    error_case(403, DENIED, Reason.UPSTREAM_BILLING_EXHAUSTED, ErrorInfo=info("BILLING_DISABLED")),
    error_case(400, UNMET, Reason.CONNECTOR_MISCONFIGURED, "User location is not supported for the API use."),
    error_case(400, UNMET, Reason.CONNECTOR_MISCONFIGURED, "Please enable billing on your project."),
    error_case(400, UNMET, Reason.UPSTREAM_REJECTED_REQUEST, "The File abc is not in an ACTIVE state."),
    error_case(400, INVALID, Reason.UPSTREAM_REJECTED_REQUEST, "Penalty is not enabled for this model"),
    error_case(
        400,
        INVALID,
        Reason.CONTEXT_LENGTH_EXCEEDED,
        "The input token count (1200293) exceeds the maximum number of tokens allowed (1048576).",
    ),
    # Words count within the status that they are known from.
    error_case(500, "INTERNAL", Reason.UPSTREAM_UNAVAILABLE, "It exceeds the maximum number of tokens."),
    error_case(404, "NOT_FOUND", Reason.MODEL_NOT_FOUND, "models/gemini-0 is not found for API version v1beta"),
    error_case(429, QUOTA, Reason.UPSTREAM_RATE_LIMITED, "Resource has been exhausted (e.g. check quota)."),
    error_case(429, QUOTA, Reason.UPSTREAM_RATE_LIMITED, wait=17, RetryInfo={"retryDelay": "17s"}),
    error_case(429, QUOTA, Reason.UPSTREAM_RATE_LIMITED, wait=1.5, RetryInfo={"retryDelay": "1.5s"}),
    error_case(
        429,
        QUOTA,
        Reason.UPSTREAM_RATE_LIMITED,
        wait=45.578569677,
        QuotaFailure=quotas(PER_MINUTE),
        RetryInfo={"retryDelay": "45.578569677s"},
    ),
    error_case(
        429,
        QUOTA,
        Reason.UPSTREAM_BILLING_EXHAUSTED,
        QuotaFailure=quotas(PER_MINUTE, PER_DAY),
        RetryInfo={"retryDelay": "47s"},
    ),
    error_case(429, QUOTA, Reason.UPSTREAM_BILLING_EXHAUSTED, QuotaFailure=quotas(PER_MINUTE, value="0")),
    error_case(429, QUOTA, Reason.UPSTREAM_BILLING_EXHAUSTED, "* Quota exceeded for metric: x, limit: 0, model: y"),
    error_case(429, QUOTA, Reason.UPSTREAM_RATE_LIMITED, "* Quota exceeded for metric: x, limit: 05, model: y"),
    error_case(429, QUOTA, Reason.UPSTREAM_BILLING_EXHAUSTED, "Your prepayment credits are depleted. Please go to"),
    error_case(429, QUOTA, Reason.UPSTREAM_BILLING_EXHAUSTED, "Your project has exceeded its monthly spending cap."),
    error_case(402, "", Reason.UPSTREAM_BILLING_EXHAUSTED),
    error_case(499, "CANCELLED", Reason.UPSTREAM_UNAVAILABLE),
    error_case(500, "INTERNAL", Reason.UPSTREAM_UNAVAILABLE),
    error_case(503, "UNAVAILABLE", Reason.UPSTREAM_UNAVAILABLE, wait=3, RetryInfo={"retryDelay": "3s"}),
    error_case(504, "DEADLINE_EXCEEDED", Reason.UPSTREAM_UNAVAILABLE),
    # An unknown status leaves the word to the number.
    error_case(529, "A_FUTURE_STATUS", Reason.UPSTREAM_UNAVAILABLE),
    error_case(400, "A_FUTURE_STATUS", Reason.UPSTREAM_REJECTED_REQUEST),
    ErrorCase(
        name="400 in a list",
        status=400,
        body=f"[{error_body(400, INVALID, ErrorInfo=info('API_KEY_INVALID'))}]",
        reason=Reason.UPSTREAM_CREDENTIAL_REJECTED,
    ),
    ErrorCase(name="403 proxy", status=403, body="<html>no</html>", reason=Reason.UPSTREAM_CREDENTIAL_REJECTED),
    ErrorCase(name="404 proxy", status=404, body="<html>no</html>", reason=Reason.CONNECTOR_MISCONFIGURED),
    ErrorCase(name="408", status=408, reason=Reason.UPSTREAM_UNAVAILABLE),
    ErrorCase(name="422", status=422, reason=Reason.UPSTREAM_REJECTED_REQUEST),
    ErrorCase(name="301", status=301, reason=Reason.CONNECTOR_MISCONFIGURED),
)


class TestGemini(AdapterSuite):
    """A model of the newest generation, and all golden transcripts."""

    adapter = ADAPTER
    secret: ClassVar[Mapping[str, Any]] = SECRET
    golden = GOLDEN
    model = "gemini-3.8-flash"
    errors: ClassVar[Sequence[ErrorCase]] = ERRORS


class TestArgon(ModelSuite):
    """A model that refuses most knobs: each has to be refused by name."""

    adapter = ADAPTER
    secret: ClassVar[Mapping[str, Any]] = SECRET
    model = "models/gemini-4-argon"


class TestGeminiWithBudgets(ModelSuite):
    """A model of the generation that thinks within a budget."""

    adapter = ADAPTER
    secret: ClassVar[Mapping[str, Any]] = SECRET
    model = "gemini-2.5-flash"


class TestGeminiWithoutThoughts(ModelSuite):
    """A model from before thinking."""

    adapter = ADAPTER
    secret: ClassVar[Mapping[str, Any]] = SECRET
    model = "gemini-2.0-flash-001"


class TestUnknownModel(ModelSuite):
    """A model that nothing is known of: everything is sent for the provider to judge."""

    adapter = ADAPTER
    secret: ClassVar[Mapping[str, Any]] = SECRET
    model = "tunedModels/my-model"


def explained(status: int, body: str, headers: Mapping[str, str] | None = None) -> PatchbayError:
    return ADAPTER.explain(HttpAnswer(status=status, headers=headers or {}, body=body.encode(), received_at=NOW))


def test_an_error_names_its_reason_and_no_word_of_the_provider() -> None:
    error = explained(400, error_body(400, INVALID, ErrorInfo=info("API_KEY_INVALID")))
    assert error.upstream is not None
    assert error.upstream.provider_code == "API_KEY_INVALID"
    assert "words" not in error.message


def test_an_error_without_a_reason_names_its_status() -> None:
    error = explained(503, error_body(503, "UNAVAILABLE"))
    assert error.upstream is not None
    assert error.upstream.provider_code == "UNAVAILABLE"


def test_an_unknown_reason_or_status_is_not_repeated() -> None:
    error = explained(400, error_body(400, "CANARY", ErrorInfo=info("CANARY")))
    assert error.upstream is not None
    assert error.upstream.provider_code == ""


def test_the_wait_of_the_body_is_finer_than_that_of_the_headers() -> None:
    body = error_body(429, QUOTA, RetryInfo={"retryDelay": "1.5s"})
    assert explained(429, body, {"retry-after": "60"}).retry_after_s == 1.5
    assert explained(429, error_body(429, QUOTA), {"retry-after": "60"}).retry_after_s == 60


@pytest.mark.parametrize("delay", ["", "soon", "-1s", "1e9s", "5", 5, None, "1.5", {"seconds": 3}])
def test_a_wait_that_cannot_be_read_says_nothing(delay: Any) -> None:
    assert explained(429, error_body(429, QUOTA, RetryInfo={"retryDelay": delay})).retry_after_s is None


def test_a_wait_is_at_most_a_day() -> None:
    assert explained(429, error_body(429, QUOTA, RetryInfo={"retryDelay": "999999s"})).retry_after_s == 86_400


def test_a_quota_of_the_day_says_nothing_of_a_retry() -> None:
    body = error_body(429, QUOTA, QuotaFailure=quotas(PER_DAY), RetryInfo={"retryDelay": "47s"})
    assert explained(429, body).retry_after_s is None


def code_of(body: str) -> str:
    upstream = explained(200, body).upstream
    assert upstream is not None
    return upstream.provider_code


def test_every_status_of_google_has_a_meaning_of_its_own() -> None:
    # With a number that says nothing, only the status can have told.
    silent = {name for name in Code.DESCRIPTOR.values_by_name if code_of(error_body(0, name)) != name}
    assert silent == {"OK"}


def test_every_reason_that_is_known_is_one_of_google() -> None:
    of_google = set(ErrorReason.DESCRIPTOR.values_by_name)
    assert set(_BY_REASON) <= of_google
    assert {name for name in of_google if code_of(error_body(0, "", ErrorInfo=info(name))) == name} == set(_BY_REASON)


# --- what is asked ----------------------------------------------------------------------------------------------------


def call(*messages: Message, model: str = "gemini-3.8-flash", streaming: bool = True, **prompt: Any) -> Call:
    return Call(id="01", model=model, prompt=Prompt(messages=messages or (HELLO,), **prompt), streaming=streaming)


def body_of(asked: Call) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(ADAPTER.prepare(asked, Secret(SECRET), NOW).request.body)
    return body


def contents_of(asked: Call) -> list[tuple[str, list[Any]]]:
    return [(content["role"], content["parts"]) for content in body_of(asked)["contents"]]


def refused(asked: Call) -> tuple[Reason, str]:
    with pytest.raises(PatchbayError) as refusal:
        ADAPTER.prepare(asked, Secret(SECRET), NOW)
    return refusal.value.reason, refusal.value.violations[0].field


def notices_of(asked: Call) -> list[tuple[NoticeCode, str]]:
    return [(notice.code, notice.field) for notice in ADAPTER.prepare(asked, Secret(SECRET), NOW).notices]


def assistant(*parts: Part) -> Message:
    return Message(role=Role.ASSISTANT, parts=parts)


def results(*parts: ToolResultPart) -> Message:
    return Message(role=Role.TOOL, parts=parts)


def result(call_id: str, *texts: str, failed: bool = False) -> ToolResultPart:
    return ToolResultPart(tool_call_id=call_id, parts=tuple(TextPart(text=text) for text in texts), failed=failed)


def state(**members: Any) -> bytes:
    return json.dumps(members, separators=(",", ":")).encode()


def with_config(model: str, **config: Any) -> Call:
    return call(model=model, config=GenerationConfig(**config))


def with_reasoning(model: str, **reasoning: Any) -> Call:
    return with_config(model, reasoning=ReasoningConfig(**reasoning))


@pytest.mark.parametrize(
    ("model", "path"),
    [
        ("gemini-3.8-flash", "models/gemini-3.8-flash"),
        ("models/gemini-3.8-flash", "models/gemini-3.8-flash"),
        ("tunedModels/my-model", "tunedModels/my-model"),
        ("a/b?c:d", "models/a%2Fb%3Fc%3Ad"),
    ],
)
def test_a_model_is_asked_by_its_path_and_nothing_of_it_can_leave_the_path(model: str, path: str) -> None:
    root = "https://generativelanguage.googleapis.com/v1beta"
    streamed = ADAPTER.prepare(call(model=model), Secret(SECRET), NOW).request
    whole = ADAPTER.prepare(call(model=model, streaming=False), Secret(SECRET), NOW).request
    assert streamed.url == f"{root}/{path}:streamGenerateContent?alt=sse"
    assert whole.url == f"{root}/{path}:generateContent"
    assert (streamed.framing, whole.framing) == (Framing.SSE_THEN_JSON, Framing.BODY)


@pytest.mark.parametrize("endpoint", ["https://proxy.example.com/g/v1", "https://proxy.example.com/g/v1/"])
def test_an_endpoint_replaces_the_root(endpoint: str) -> None:
    secret = Secret({**SECRET, "endpoint": endpoint})
    urls = (
        ADAPTER.prepare(call(streaming=False), secret, NOW).request.url,
        ADAPTER.prepare_check("gemini-x", secret, NOW).url,
        ADAPTER.prepare_models("", secret, NOW).url,
    )
    assert all(url.startswith("https://proxy.example.com/g/v1/models") for url in urls)


def test_the_key_goes_in_its_header_and_nowhere_else() -> None:
    secret = Secret(SECRET)
    for request in (
        ADAPTER.prepare(call(), secret, NOW).request,
        ADAPTER.prepare_check("gemini-x", secret, NOW),
        ADAPTER.prepare_models("p", secret, NOW),
    ):
        assert dict(request.headers)["x-goog-api-key"] == SECRET["api_key"]
        assert "authorization" not in dict(request.headers)
        assert SECRET["api_key"] not in request.url
        assert SECRET["api_key"].encode() not in request.body


# --- what is asked: thinking ---

OFF: Final = {"thinkingBudget": 0}


@pytest.mark.parametrize(
    ("model", "reasoning", "thinking"),
    [
        ("gemini-3.8-flash", {}, None),
        ("gemini-3.8-flash", {"effort": Effort.LOW}, {"thinkingLevel": "LOW"}),
        ("gemini-3.8-flash", {"include_text": True}, {"includeThoughts": True}),
        ("gemini-4-argon", {"effort": Effort.MEDIUM}, {"thinkingLevel": "MEDIUM"}),
        ("models/gemini-3.6-flash", {"effort": Effort.MINIMAL}, {"thinkingLevel": "MINIMAL"}),
        ("gemini-3.5-flash-lite", {"effort": Effort.MINIMAL}, {"thinkingLevel": "MINIMAL"}),
        ("gemini-3-flash-preview", {"effort": Effort.MEDIUM}, {"thinkingLevel": "MEDIUM"}),
        ("gemini-3.1-pro-preview-customtools", {"effort": Effort.MEDIUM}, {"thinkingLevel": "MEDIUM"}),
        ("gemini-3-pro-preview", {"effort": Effort.HIGH, "include_text": True}, {"thinkingLevel": "HIGH"}),
        ("gemini-2.5-pro", {"budget_tokens": 128}, {"thinkingBudget": 128}),
        ("gemini-2.5-flash-preview-05-20", {"budget_tokens": 1}, {"thinkingBudget": 1}),
        ("gemini-2.5-flash", {"effort": Effort.NONE}, OFF),
        ("gemini-2.5-flash-lite", {"budget_tokens": 0}, OFF),
        ("gemini-2.0-flash", {"effort": Effort.NONE}, None),
        ("gemma-4-31b-it", {"effort": Effort.HIGH}, {"thinkingLevel": "HIGH"}),
        ("gemini-5-neon", {"effort": Effort.XHIGH}, {"thinkingLevel": "XHIGH"}),
        ("gemini-flash-latest", {"budget_tokens": 7}, {"thinkingBudget": 7}),
        ("gemini-3-pro-image", {"effort": Effort.NONE}, OFF),
    ],
)
def test_reasoning_is_asked_for_as_the_model_takes_it(
    model: str, reasoning: dict[str, Any], thinking: dict[str, Any] | None
) -> None:
    asked = body_of(with_reasoning(model, **reasoning)).get("generationConfig", {}).get("thinkingConfig")
    shown = {"includeThoughts": True} if reasoning.get("include_text") else {}
    assert asked == ({**thinking, **shown} if thinking is not None else None)


@pytest.mark.parametrize(
    ("model", "reasoning", "field"),
    [
        ("gemini-3.8-flash", {"effort": Effort.NONE}, "effort"),
        ("gemini-3.8-flash", {"budget_tokens": 0}, "budget_tokens"),
        ("gemini-3.8-flash", {"budget_tokens": 1024}, "budget_tokens"),
        ("gemini-3.8-flash", {"effort": Effort.MINIMAL}, "effort"),
        ("models/gemini-3.7-flash", {"effort": Effort.MINIMAL}, "effort"),
        ("gemini-3.9-flash", {"effort": Effort.MINIMAL}, "effort"),
        ("gemini-4-argon", {"effort": Effort.XHIGH}, "effort"),
        ("gemini-4-argon", {"budget_tokens": 1024}, "budget_tokens"),
        ("gemini-3-pro-preview", {"effort": Effort.MEDIUM}, "effort"),
        ("gemini-3.1-pro-preview", {"effort": Effort.MINIMAL}, "effort"),
        ("gemini-2.5-pro", {"effort": Effort.NONE}, "effort"),
        ("gemini-2.5-pro", {"budget_tokens": 127}, "budget_tokens"),
        ("gemini-2.5-pro", {"budget_tokens": 32_769}, "budget_tokens"),
        ("gemini-2.5-flash", {"effort": Effort.LOW}, "effort"),
        ("gemini-2.5-flash", {"budget_tokens": 24_577}, "budget_tokens"),
        ("gemini-2.5-flash-lite", {"budget_tokens": 511}, "budget_tokens"),
        ("gemini-2.0-flash", {"budget_tokens": 10}, "budget_tokens"),
        ("gemini-2.0-flash", {"include_text": True}, "include_text"),
        ("gemini-1.5-pro", {"effort": Effort.LOW}, "effort"),
        ("gemma-4-31b-it", {"effort": Effort.LOW}, "effort"),
        ("an-unknown-model", {"effort": Effort.MAX}, "effort"),
    ],
)
def test_reasoning_that_the_model_lacks_is_refused_by_name(model: str, reasoning: dict[str, Any], field: str) -> None:
    assert refused(with_reasoning(model, **reasoning)) == (Reason.FEATURE_UNSUPPORTED, f"config.reasoning.{field}")


# --- what is asked: knobs ---


@pytest.mark.parametrize(
    ("knob", "value", "wire_name"),
    [
        ("temperature", 0.0, "temperature"),
        ("top_p", 0.5, "topP"),
        ("top_k", 40, "topK"),
        ("seed", -(2**31), "seed"),
        ("max_output_tokens", 1, "maxOutputTokens"),
        ("stop_sequences", tuple("abcde"), "stopSequences"),
    ],
)
def test_knobs_have_their_place(knob: str, value: Any, wire_name: str) -> None:
    sent = json.loads(json.dumps(value))
    assert body_of(with_config("gemini-2.5-pro", **{knob: value}))["generationConfig"] == {wire_name: sent}


@pytest.mark.parametrize("model", ["gemini-3.6-flash", "gemini-3.5-flash-lite", "gemini-4-argon", "gemini-3.9-flash"])
@pytest.mark.parametrize(("knob", "value"), [("temperature", 0.7), ("top_p", 0.95), ("top_k", 64)])
def test_models_that_ignore_sampling_refuse_it_by_name(model: str, knob: str, value: float) -> None:
    assert refused(with_config(model, **{knob: value})) == (Reason.FEATURE_UNSUPPORTED, f"config.{knob}")


def test_the_default_temperature_is_left_out_where_it_is_ignored() -> None:
    assert "generationConfig" not in body_of(with_config("gemini-4-argon", temperature=1.0))
    assert body_of(with_config("gemini-3.5-flash", temperature=1.0))["generationConfig"] == {"temperature": 1.0}


@pytest.mark.parametrize("knob", ["presence_penalty", "frequency_penalty"])
def test_penalties_are_for_models_that_know_them(knob: str) -> None:
    assert refused(with_config("gemini-2.5-pro", **{knob: 0.1})) == (Reason.FEATURE_UNSUPPORTED, f"config.{knob}")
    assert body_of(with_config("gemini-2.5-pro", **{knob: 0.0})) == body_of(call())
    assert list(body_of(with_config("gemini-2.0-flash", **{knob: 0.1}))["generationConfig"].values()) == [0.1]


@pytest.mark.parametrize("seed", [2**31, -(2**31) - 1])
def test_a_seed_of_more_than_32_bits_is_refused(seed: int) -> None:
    assert refused(with_config("gemini-3.8-flash", seed=seed)) == (Reason.FEATURE_UNSUPPORTED, "config.seed")


def test_a_sixth_stop_sequence_is_refused() -> None:
    asked = with_config("gemini-3.8-flash", stop_sequences=tuple("abcdef"))
    assert refused(asked) == (Reason.FEATURE_UNSUPPORTED, "config.stop_sequences")


def test_json_without_a_schema_is_a_media_type() -> None:
    body = body_of(call(response_format=JsonObjectFormat()))
    assert body["generationConfig"] == {"responseMimeType": "application/json"}


def test_a_schema_cannot_be_a_mere_wish() -> None:
    wish = JsonSchemaFormat(name="a", schema_json="{}", strict=False)
    assert refused(call(response_format=wish)) == (Reason.FEATURE_UNSUPPORTED, "response_format.json_schema.strict")


@pytest.mark.parametrize("options", ['{"contents":[]}', '{"systemInstruction":{}}', '{"system_instruction":{}}'])
def test_options_that_replace_the_conversation_are_refused(options: str) -> None:
    assert refused(call(provider_options_json=options)) == (Reason.INVALID_REQUEST, "provider_options_json")


def test_options_are_merged_into_what_is_asked() -> None:
    options = '{"generationConfig":{"mediaResolution":"MEDIA_RESOLUTION_LOW"},"cachedContent":"cachedContents/a"}'
    body = body_of(call(config=GenerationConfig(max_output_tokens=9), provider_options_json=options))
    assert body["generationConfig"] == {"maxOutputTokens": 9, "mediaResolution": "MEDIA_RESOLUTION_LOW"}
    assert body["cachedContent"] == "cachedContents/a"


# --- what is asked: tools ---


@pytest.mark.parametrize(
    ("choice", "strict", "expected"),
    [
        (None, None, None),
        (None, False, None),
        (None, True, {"mode": "VALIDATED"}),
        (ToolChoice(mode=ToolMode.AUTO), None, {"mode": "AUTO"}),
        (ToolChoice(mode=ToolMode.AUTO), True, {"mode": "VALIDATED"}),
        (ToolChoice(mode=ToolMode.NONE), True, {"mode": "NONE"}),
        (ToolChoice(mode=ToolMode.REQUIRED), True, {"mode": "ANY"}),
        (ToolChoice(function_name="add"), None, {"mode": "ANY", "allowedFunctionNames": ["add"]}),
    ],
)
def test_a_tool_choice_and_strict_arguments_are_modes(
    choice: ToolChoice | None, strict: bool | None, expected: dict[str, Any] | None
) -> None:
    tool = FunctionTool(name="add", strict=strict)
    config = body_of(call(tools=(tool,), tool_choice=choice)).get("toolConfig")
    assert config == ({"functionCallingConfig": expected} if expected else None)


def test_without_tools_nothing_is_said_of_choosing_them() -> None:
    config = GenerationConfig(parallel_tool_calls=False)
    assert body_of(call(tool_choice=ToolChoice(mode=ToolMode.AUTO), config=config)) == body_of(call())


def test_parallel_calls_cannot_be_switched_off_and_need_not_be_switched_on() -> None:
    off, on = (GenerationConfig(parallel_tool_calls=value) for value in (False, True))
    assert refused(call(tools=(ADD,), config=off)) == (Reason.FEATURE_UNSUPPORTED, "config.parallel_tool_calls")
    assert body_of(call(tools=(ADD,), config=on)) == body_of(call(tools=(ADD,)))


SEARCH: Final = ProviderTool(json='{"googleSearch":{}}')


def test_tools_of_the_provider_stand_beside_the_functions() -> None:
    sub = FunctionTool(name="sub", parameters_json_schema='{"$defs":{}}')
    tools = body_of(call(tools=(ADD, SEARCH, sub)))["tools"]
    functions = [{"name": "add"}, {"name": "sub", "parametersJsonSchema": {"$defs": {}}}]
    assert tools == [{"googleSearch": {}}, {"functionDeclarations": functions}]


@pytest.mark.parametrize(
    ("tools", "mode"), [((SEARCH,), ToolMode.NONE), ((ADD, SEARCH), ToolMode.NONE), ((SEARCH,), ToolMode.REQUIRED)]
)
def test_tools_of_the_provider_can_be_neither_forbidden_nor_required(tools: Any, mode: ToolMode) -> None:
    asked = call(tools=tools, tool_choice=ToolChoice(mode=mode))
    assert refused(asked) == (Reason.FEATURE_UNSUPPORTED, "tool_choice.mode")


@pytest.mark.parametrize("name", ["1st", "-add"])
def test_a_function_s_name_starts_with_a_letter(name: str) -> None:
    assert refused(call(tools=(FunctionTool(name=name),))) == (Reason.FEATURE_UNSUPPORTED, "tools[0].function.name")


# --- what is asked: the conversation ---

SYSTEM: Final = Message(role=Role.SYSTEM, parts=(TextPart(text="in French"),))


def test_system_messages_are_taken_at_the_start_only() -> None:
    assert refused(call(SYSTEM, HELLO, SYSTEM)) == (Reason.FEATURE_UNSUPPORTED, "messages[2]")
    assert refused(call(SYSTEM)) == (Reason.INVALID_REQUEST, "messages")


def test_consecutive_messages_of_one_role_stay_apart_and_in_order() -> None:
    other = Message(role=Role.USER, parts=(TextPart(text="again"),))
    said = contents_of(call(HELLO, other, assistant(TextPart(text="a")), assistant(TextPart(text="b")), HELLO))
    assert [(role, parts[0]["text"]) for role, parts in said] == [
        ("user", "hello"),
        ("user", "again"),
        ("model", "a"),
        ("model", "b"),
        ("user", "hello"),
    ]


@pytest.mark.parametrize("model", ["gemini-3.6-flash", "gemini-3.5-flash-lite", "gemini-4-argon"])
def test_an_answer_to_be_continued_is_refused_where_the_model_cannot(model: str) -> None:
    asked = call(HELLO, assistant(TextPart(text="The answer is")), model=model)
    assert refused(asked) == (Reason.FEATURE_UNSUPPORTED, "messages[1]")


def test_an_answer_to_be_continued_is_sent_where_the_model_can() -> None:
    said = contents_of(call(HELLO, assistant(TextPart(text="The answer is")), model="gemini-3.5-flash"))
    assert said[-1] == ("model", [{"text": "The answer is"}])


def test_a_participant_s_name_is_refused() -> None:
    named = Message(role=Role.USER, parts=(TextPart(text="hi"),), author_name="ann")
    assert refused(call(HELLO, named)) == (Reason.FEATURE_UNSUPPORTED, "messages[1].author_name")


def test_a_refusal_goes_back_as_text_and_an_empty_one_not_at_all() -> None:
    said = contents_of(call(HELLO, assistant(RefusalPart(text="no")), assistant(RefusalPart(text="")), HELLO))
    assert said[1:-1] == [("model", [{"text": "no"}])]


def test_one_notice_speaks_for_all_cache_marks() -> None:
    marked = Message(role=Role.USER, parts=tuple(TextPart(text=str(i), cache_breakpoint=True) for i in range(3)))
    assert notices_of(call(marked)) == [(NoticeCode.FIELD_DROPPED, "messages[0].parts[0].cache_breakpoint")]


@pytest.mark.parametrize(
    ("part", "wire"),
    [
        (MediaPart(mime_type="video/mp4", data=b"mp4"), {"inlineData": {"mimeType": "video/mp4", "data": "bXA0"}}),
        (MediaPart(uri="gs://bucket/a.png"), {"fileData": {"fileUri": "gs://bucket/a.png"}}),
        (
            MediaPart(provider_file_id="abc-1"),
            {"fileData": {"fileUri": "https://generativelanguage.googleapis.com/v1beta/files/abc-1"}},
        ),
        (
            MediaPart(provider_file_id="files/a/../b?c"),
            {"fileData": {"fileUri": "https://generativelanguage.googleapis.com/v1beta/files/a%2F..%2Fb%3Fc"}},
        ),
        (MediaPart(provider_file_id="https://example.com/f"), {"fileData": {"fileUri": "https://example.com/f"}}),
    ],
)
def test_media_is_data_or_an_address(part: MediaPart, wire: dict[str, Any]) -> None:
    assert contents_of(call(Message(role=Role.USER, parts=(part,)))) == [("user", [wire])]


@pytest.mark.parametrize("uri", ["http://example.com/a.png", "data:image/png;base64,AA==", "file:///etc/passwd"])
def test_an_address_that_the_provider_does_not_fetch_is_refused(uri: str) -> None:
    asked = call(Message(role=Role.USER, parts=(MediaPart(mime_type="image/png", uri=uri),)))
    assert refused(asked) == (Reason.FEATURE_UNSUPPORTED, "messages[0].parts[0].media.uri")


# --- what is asked: tool calls and their results ---


def a_call(call_id: str, name: str = "add", **more: Any) -> ToolCallPart:
    return ToolCallPart(id=call_id, name=name, **more)


def responses(asked: Call) -> list[dict[str, Any]]:
    return [part["functionResponse"] for _, parts in contents_of(asked) for part in parts if "functionResponse" in part]


def test_a_result_names_the_function_that_its_id_stands_for() -> None:
    asked = call(HELLO, assistant(a_call("x", "add"), a_call("y", "sub")), results(result("y", "1"), result("x", "2")))
    assert [(one["id"], one["name"], one["response"]) for one in responses(asked)] == [
        ("x", "add", {"output": "2"}),
        ("y", "sub", {"output": "1"}),
    ]


def test_an_id_that_is_used_again_means_the_latest_call() -> None:
    messages = (HELLO, assistant(a_call("0", "add")), results(result("0", "1")))
    asked = call(*messages, assistant(a_call("0", "sub")), results(result("0", "2")))
    assert [one["name"] for one in responses(asked)] == ["add", "sub"]


def test_results_follow_their_calls_in_one_content_and_the_user_s_words_come_after() -> None:
    asked = call(
        HELLO,
        assistant(a_call("x"), a_call("y")),
        HELLO,
        results(result("y", "2")),
        HELLO,
        results(result("x", "1")),
    )
    said = contents_of(asked)[2:]
    assert [(role, [*parts[0]]) for role, parts in said] == [
        ("user", ["functionResponse"]),
        ("user", ["text"]),
        ("user", ["text"]),
    ]
    assert [part["functionResponse"]["response"]["output"] for part in said[0][1]] == ["1", "2"]


def test_an_id_of_ours_is_not_sent_and_results_are_told_apart_by_their_place() -> None:
    asked_before = call(tools=(ADD,))
    two = chunk({"functionCall": {"name": "add", "args": {"a": 1}}}, {"functionCall": {"name": "add"}}, finish="STOP")
    first, second = parts_of(streamed(two, asked=asked_before))
    assert isinstance(first, ToolCallPart)
    assert isinstance(second, ToolCallPart)
    assert first.id != second.id
    asked = call(
        HELLO, assistant(first, second), results(result(second.id, "of 2")), results(result(first.id, "of 1")), HELLO
    )
    body = json.dumps(body_of(asked))
    assert first.id not in body
    assert second.id not in body
    assert [one["response"]["output"] for one in responses(asked)] == ["of 1", "of 2"]


def test_a_result_of_no_call_is_refused_by_name() -> None:
    for messages in ((HELLO, results(result("x", "1"))), (results(result("x", "1")), assistant(a_call("x")), HELLO)):
        where = next(i for i, message in enumerate(messages) if message.role is Role.TOOL)
        field = f"messages[{where}].parts[0].tool_result.tool_call_id"
        assert refused(call(*messages)) == (Reason.INVALID_REQUEST, field)


@pytest.mark.parametrize(
    ("part", "response"),
    [
        (result("x"), {"output": ""}),
        (result("x", "a"), {"output": "a"}),
        (result("x", "a", "b"), {"output": ["a", "b"]}),
        (result("x", "a", failed=True), {"error": "a"}),
        (result("x", failed=True), {"error": ""}),
    ],
)
def test_a_response_is_an_object(part: ToolResultPart, response: dict[str, Any]) -> None:
    (sent,) = responses(call(HELLO, assistant(a_call("x")), results(part)))
    assert sent["response"] == response


def test_media_in_results_is_for_models_that_take_it() -> None:
    image = MediaPart(mime_type="image/png", data=b"\x89PNG", file_name="cat.png")
    messages = (HELLO, assistant(a_call("x")), results(ToolResultPart(tool_call_id="x", parts=(image,))))
    (sent,) = responses(call(*messages))
    assert sent["parts"] == [{"inlineData": {"mimeType": "image/png", "data": "iVBORw=="}}]
    assert refused(call(*messages, model="gemini-2.5-pro")) == (
        Reason.FEATURE_UNSUPPORTED,
        "messages[2].parts[0].tool_result.parts[0].media",
    )


@pytest.mark.parametrize(
    ("model", "signature"),
    [
        ("gemini-3-flash-preview", "skip_thought_signature_validator"),
        ("gemini-4-argon", "skip_thought_signature_validator"),
        ("gemini-flash-latest", "skip_thought_signature_validator"),
        ("gemini-5-neon", "skip_thought_signature_validator"),
        ("gemini-3.1-flash-image", "skip_thought_signature_validator"),
        ("gemini-2.5-pro", None),
        ("gemini-2.5-computer-use-preview-10-2025", None),
        ("an-unknown-model", None),
    ],
)
def test_the_first_call_of_an_answer_is_signed_where_the_model_demands_it(model: str, signature: str | None) -> None:
    asked = call(HELLO, assistant(a_call("x"), a_call("y")), results(result("x"), result("y")), model=model)
    calls = contents_of(asked)[1][1]
    assert [part.get("thoughtSignature") for part in calls] == [signature, None]


def test_a_signature_goes_back_byte_for_byte() -> None:
    raw = rb'{"thoughtSignature":"Ci\u002bQ\/+=","partMetadata":{"a":[1.0,12345678901234567890]}}'
    asked = call(HELLO, assistant(a_call("x", provider_state=raw)), results(result("x")))
    sent = ADAPTER.prepare(asked, Secret(SECRET), NOW).request.body
    assert rb'"thoughtSignature":"Ci\u002bQ\/+="' in sent
    assert b'"partMetadata":{"a":[1.0,12345678901234567890]}' in sent


def test_a_state_cannot_take_the_place_of_the_call() -> None:
    forged = state(functionCall={"name": "rm"}, thoughtSignature=SIGNATURE)
    asked = call(HELLO, assistant(a_call("x", provider_state=forged)), results(result("x")))
    assert contents_of(asked)[1][1][0]["functionCall"]["name"] == "add"


@pytest.mark.parametrize("foreign", [b"c2ln", b"\xff", b"[]", b"{}", b"1", b'{"thoughtSignature":', b'{"a":"\xff"}'])
def test_a_state_that_is_not_the_provider_s_is_left_out_with_a_notice(foreign: bytes) -> None:
    called = a_call("x", provider_state=foreign)
    thought = ReasoningPart(text="hm", provider_state=foreign)
    asked = call(HELLO, assistant(thought, called), results(result("x")), model="gemini-2.5-pro")
    assert contents_of(asked)[1][1] == [{"functionCall": {"id": "x", "name": "add", "args": {}}}]
    assert notices_of(asked) == [
        (NoticeCode.PROVIDER_STATE_LEFT_OUT, "messages[1].parts[0].reasoning"),
        (NoticeCode.PROVIDER_STATE_LEFT_OUT, "messages[1].parts[1].tool_call.provider_state"),
    ]


@pytest.mark.parametrize("thought", [ReasoningPart(text="hm"), ReasoningPart(text="hm", provider_state=state(a=1))])
def test_reasoning_of_others_is_left_out_with_a_notice(thought: ReasoningPart) -> None:
    asked = call(HELLO, assistant(thought, TextPart(text="hi")), HELLO)
    assert contents_of(asked)[1] == ("model", [{"text": "hi"}])
    assert notices_of(asked) == [(NoticeCode.PROVIDER_STATE_LEFT_OUT, "messages[1].parts[0].reasoning")]


def sent_back(*parts: Part) -> list[Any]:
    return contents_of(call(HELLO, assistant(*parts), HELLO))[1][1]


SIGNED: Final = ReasoningPart(provider_state=state(thoughtSignature=SIGNATURE))


def test_a_signature_goes_back_on_the_text_or_media_that_it_came_on() -> None:
    image = MediaPart(mime_type="image/png", data=b"\x89")
    assert sent_back(TextPart(text="a"), SIGNED, TextPart(text="b"), image, SIGNED) == [
        {"text": "a", "thoughtSignature": SIGNATURE},
        {"text": "b"},
        {"inlineData": {"mimeType": "image/png", "data": "iQ=="}, "thoughtSignature": SIGNATURE},
    ]


def test_a_signature_whose_text_is_gone_goes_back_on_an_empty_one() -> None:
    thought = ReasoningPart(text="hm", provider_state=state(thought=True))
    assert sent_back(thought, SIGNED, SIGNED) == [
        {"text": "hm", "thought": True},
        {"text": "", "thoughtSignature": SIGNATURE},
        {"text": "", "thoughtSignature": SIGNATURE},
    ]


def test_an_unfinished_answer_is_gone_on_with_by_its_newest_token() -> None:
    tokens = [ReasoningPart(provider_state=state(continuationToken=token)) for token in ("b25l", "dHdv")]
    asked = call(HELLO, *(assistant(TextPart(text="a"), token) for token in tokens), model="gemini-4-argon")
    assert body_of(asked)["continuationToken"] == "dHdv"
    assert contents_of(asked) == [("user", [{"text": "hello"}])]


def test_an_answer_that_was_gone_on_with_is_history_like_any_other() -> None:
    token = ReasoningPart(provider_state=state(continuationToken="b25l"))
    asked = call(HELLO, assistant(TextPart(text="a"), token), assistant(TextPart(text="b")), HELLO)
    assert "continuationToken" not in body_of(asked)
    assert [parts for role, parts in contents_of(asked) if role == "model"] == [[{"text": "a"}], [{"text": "b"}]]
    assert notices_of(asked) == []


# --- what belongs elsewhere -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "endpoint", "right_type"),
    [
        ("google/gemini-3.8-flash", "", "openrouter"),
        ("models/google/gemini-3.8-flash", "", "openrouter"),
        ("gemini-3.8-flash", "https://openrouter.ai/api/v1", "openrouter"),
        ("gemini-3.8-flash", "https://api.openai.com/v1", "openai"),
        ("gemini-3.8-flash", "https://api.anthropic.com/v1", "anthropic"),
    ],
)
def test_what_belongs_to_another_type_is_refused_with_its_name(model: str, endpoint: str, right_type: str) -> None:
    with pytest.raises(PatchbayError) as refusal:
        ADAPTER.check_model(model, Secret({**SECRET, "endpoint": endpoint}))
    assert refusal.value.reason is Reason.CONNECTOR_MISCONFIGURED
    assert f"`{right_type}`" in refusal.value.message


@pytest.mark.parametrize("model", ["publishers/google/models/gemini-x", "projects/p/locations/l/models/gemini-x"])
def test_a_path_of_google_s_other_platform_is_refused(model: str) -> None:
    with pytest.raises(PatchbayError, match="by its id alone") as refusal:
        ADAPTER.check_model(model, Secret(SECRET))
    assert refusal.value.reason is Reason.CONNECTOR_MISCONFIGURED


@pytest.mark.parametrize("model", ["gemini-3.8-flash", "models/gemini-3.8-flash", "tunedModels/my-model", "gemma-4"])
@pytest.mark.parametrize("endpoint", ["", "https://generativelanguage.googleapis.com/v1", "https://proxy.example/v1"])
def test_a_model_in_the_provider_s_own_spelling_is_accepted(model: str, endpoint: str) -> None:
    ADAPTER.check_model(model, Secret({**SECRET, "endpoint": endpoint}))


@pytest.mark.parametrize("path", ["/openai", "/openai/", "/models", "/models/gemini-x:generateContent"])
def test_an_endpoint_below_the_root_is_refused_by_name(path: str) -> None:
    with pytest.raises(PatchbayError) as refusal:
        ADAPTER.check_credential({**SECRET, "endpoint": f"https://generativelanguage.googleapis.com/v1beta{path}"})
    assert refusal.value.reason is Reason.INVALID_REQUEST
    assert refusal.value.violations[0].field == "endpoint"


def test_an_endpoint_that_is_a_root_is_accepted() -> None:
    ADAPTER.check_credential({**SECRET, "endpoint": "https://generativelanguage.googleapis.com/v1/"})
    ADAPTER.check_credential(SECRET)


# --- what is read -----------------------------------------------------------------------------------------------------


def chunk(*parts: Any, finish: Any = None, **members: Any) -> Frame:
    candidate = {"content": {"role": "model", "parts": list(parts)}, "index": 0}
    if finish is not None:
        candidate["finishReason"] = finish
    return frame({"candidates": [candidate], **members})


def frame(value: Any) -> Frame:
    return Frame(data=json.dumps(value, separators=(",", ":")).encode())


STOP: Final = chunk(finish="STOP")


def streamed(*frames: Frame, asked: Call | None = None) -> list[Event]:
    events, error = read(ADAPTER.reader(asked or call()), frames)
    assert error is None, error
    check_stream(events)
    return events


def failed(*frames: Frame, streaming: bool = True) -> Reason:
    _, error = read(ADAPTER.reader(call(streaming=streaming)), frames)
    assert error is not None
    return error.reason


def parts_of(events: Sequence[Event]) -> list[Part]:
    return [event.part for event in events if isinstance(event, PartCompleted)]


def finish_of(events: Sequence[Event]) -> Finished:
    assert isinstance(events[-1], Finished)
    return events[-1]


def kept(part: Part) -> Any:
    assert isinstance(part, ReasoningPart)
    return json.loads(part.provider_state)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ("STOP", FinishReason.STOP),
        ("MAX_TOKENS", FinishReason.MAX_OUTPUT_TOKENS),
        ("SAFETY", FinishReason.CONTENT_FILTER),
        ("RECITATION", FinishReason.CONTENT_FILTER),
        ("PROHIBITED_CONTENT", FinishReason.CONTENT_FILTER),
        ("CONTINUATION", FinishReason.PAUSE),
        ("OTHER", FinishReason.OTHER),
        ("FINISH_REASON_UNSPECIFIED", FinishReason.OTHER),
        ("A_FUTURE_REASON", FinishReason.OTHER),
    ],
)
def test_stop_reasons_keep_the_provider_s_word_beside_ours(raw: str, reason: FinishReason) -> None:
    finished = finish_of(streamed(chunk({"text": "hi"}, finish=raw)))
    assert (finished.finish_reason, finished.provider_finish_reason) == (reason, raw)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ("MALFORMED_FUNCTION_CALL", Reason.UPSTREAM_MALFORMED_RESPONSE),
        ("UNEXPECTED_TOOL_CALL", Reason.UPSTREAM_MALFORMED_RESPONSE),
        ("TOO_MANY_TOOL_CALLS", Reason.UPSTREAM_MALFORMED_RESPONSE),
        ("MALFORMED_RESPONSE", Reason.UPSTREAM_MALFORMED_RESPONSE),
        ("MISSING_THOUGHT_SIGNATURE", Reason.UPSTREAM_REJECTED_REQUEST),
    ],
)
@pytest.mark.parametrize("whole", [True, False])
def test_an_answer_that_cannot_be_used_is_a_failure_whose_tokens_are_known(
    raw: str, reason: Reason, whole: bool
) -> None:
    usage = {"promptTokenCount": 3, "candidatesTokenCount": 2, "totalTokenCount": 5}
    last = msgspec.structs.replace(chunk({"text": "hi"}, finish=raw, usageMetadata=usage), whole=whole)
    events, error = read(ADAPTER.reader(call(streaming=not whole)), [last])
    assert error is not None
    assert error.reason is reason
    assert error.upstream is not None
    assert error.upstream.provider_code == raw
    assert events[-1] == UsageUpdated(Usage(input_tokens=3, output_tokens=2, total_tokens=5))


@pytest.mark.parametrize("raw", ["STOP", "MAX_TOKENS"])
def test_a_natural_end_with_tool_calls_waits_for_them(raw: str) -> None:
    finished = finish_of(streamed(chunk({"functionCall": {"name": "now"}}), chunk(finish=raw)))
    wanted = FinishReason.TOOL_CALLS if raw == "STOP" else FinishReason.MAX_OUTPUT_TOKENS
    assert finished.finish_reason is wanted


def test_the_end_of_a_stream_is_given_at_its_end() -> None:
    reader = ADAPTER.reader(call())
    before = reader.feed(chunk({"text": "hi"}, finish="STOP"))
    assert (any(isinstance(event, Finished) for event in before), reader.finished) == (False, False)
    reader.feed(frame({"usageMetadata": {"promptTokenCount": 9, "totalTokenCount": 9}}))
    assert finish_of(reader.finish()).usage == Usage(input_tokens=9, total_tokens=9)
    assert (reader.finished, reader.finish(), reader.feed(STOP)) == (True, [], [])


def blocked(reason: Any) -> Frame:
    return frame({"promptFeedback": {"blockReason": reason}, "modelVersion": "gemini-x"})


@pytest.mark.parametrize("raw", ["SAFETY", "OTHER", "BLOCKLIST", "PROHIBITED_CONTENT", "JAILBREAK", "A_FUTURE_REASON"])
def test_a_blocked_prompt_is_an_answer_of_the_filter(raw: str) -> None:
    finished = finish_of(streamed(blocked(raw)))
    assert (finished.finish_reason, finished.provider_finish_reason) == (FinishReason.CONTENT_FILTER, raw)


@pytest.mark.parametrize("feedback", [{"safetyRatings": []}, {"blockReason": "OTHER"}])
def test_an_answer_in_spite_of_feedback_ends_as_it_says(feedback: dict[str, Any]) -> None:
    finished = finish_of(streamed(frame({"promptFeedback": feedback}), chunk({"text": "a"}, finish="STOP")))
    assert (finished.finish_reason, finished.provider_finish_reason) == (FinishReason.STOP, "STOP")


# --- what is read: counts ---


def usage_of(*reports: Any) -> Usage | None:
    return finish_of(streamed(*(frame({"usageMetadata": report}) for report in reports), STOP)).usage


@pytest.mark.parametrize(
    ("report", "usage"),
    [
        (
            {"promptTokenCount": 4, "candidatesTokenCount": 6, "thoughtsTokenCount": 9, "totalTokenCount": 19},
            Usage(input_tokens=4, output_tokens=15, total_tokens=19, reasoning_tokens=9),
        ),
        (
            {"promptTokenCount": 4, "toolUsePromptTokenCount": 10, "candidatesTokenCount": 1, "totalTokenCount": 15},
            Usage(input_tokens=14, output_tokens=1, total_tokens=15),
        ),
        (
            {"promptTokenCount": 100, "cachedContentTokenCount": 90, "totalTokenCount": 100},
            Usage(input_tokens=100, total_tokens=100, cached_input_tokens=90),
        ),
        # The total tells that the thoughts are among the candidates already.
        (
            {"promptTokenCount": 4, "candidatesTokenCount": 15, "thoughtsTokenCount": 9, "totalTokenCount": 19},
            Usage(input_tokens=4, output_tokens=15, total_tokens=19, reasoning_tokens=9),
        ),
        # The total tells what was written where no other count does.
        ({"promptTokenCount": 4, "totalTokenCount": 10}, Usage(input_tokens=4, output_tokens=6, total_tokens=10)),
        (
            {"promptTokenCount": 4, "thoughtsTokenCount": 3, "totalTokenCount": 7},
            Usage(input_tokens=4, output_tokens=3, total_tokens=7, reasoning_tokens=3),
        ),
        ({"promptTokenCount": 4, "candidatesTokenCount": 2}, Usage(input_tokens=4, output_tokens=2, total_tokens=6)),
        ({"totalTokenCount": 3, "promptTokenCount": 5}, Usage(input_tokens=5, total_tokens=5)),
        ({"promptTokenCount": "4", "candidatesTokenCount": -1, "totalTokenCount": None}, None),
        ([], None),
        (7, None),
    ],
)
def test_counts_come_into_the_normal_form(report: Any, usage: Usage | None) -> None:
    assert usage_of(report) == usage


def test_the_last_report_wins_and_the_same_one_again_says_nothing() -> None:
    report = {"promptTokenCount": 4, "candidatesTokenCount": 2, "totalTokenCount": 6}
    frames = [frame({"usageMetadata": one}) for one in (report, report, {**report, "candidatesTokenCount": None})]
    last = frame({"usageMetadata": {"promptTokenCount": 4, "candidatesTokenCount": 3, "totalTokenCount": 7}})
    events = streamed(*frames, last, STOP)
    assert [event.usage.output_tokens for event in events if isinstance(event, UsageUpdated)] == [2, 3]


def test_an_answer_without_counts_has_no_usage() -> None:
    assert finish_of(streamed(chunk({"text": "hi"}, finish="STOP"))).usage is None


# --- what is read: parts ---


def test_pieces_of_one_kind_are_one_part_and_another_kind_ends_it() -> None:
    thought = {"thought": True}
    events = streamed(
        chunk({"text": "a", **thought}),
        chunk({"text": "b", **thought}, {"text": "c"}),
        chunk({"text": "d"}),
        chunk({"text": "e", **thought}),
        chunk({"text": "f"}),
        STOP,
    )
    own = state(thought=True)
    assert parts_of(events) == [
        ReasoningPart(text="ab", provider_state=own),
        TextPart(text="cd"),
        ReasoningPart(text="e", provider_state=own),
        TextPart(text="f"),
    ]


def test_a_signed_thought_is_whole() -> None:
    signed = {"text": "a", "thought": True, "thoughtSignature": SIGNATURE}
    first, second = parts_of(streamed(chunk(signed), chunk({"text": "b", "thought": True}), STOP))
    assert kept(first) == {"thought": True, "thoughtSignature": SIGNATURE}
    assert kept(second) == {"thought": True}


def test_a_part_of_the_provider_s_own_is_apart_from_the_thought_before_it() -> None:
    code = {"executableCode": {"code": "1"}}
    thought, own = parts_of(streamed(chunk({"text": "a", "thought": True}, code), STOP))
    assert thought == ReasoningPart(text="a", provider_state=state(thought=True))
    assert kept(own) == code


def test_a_signature_on_text_ends_the_text_and_comes_after_it() -> None:
    events = streamed(
        chunk({"text": "a"}), chunk({"text": "b", "thoughtSignature": SIGNATURE}), chunk({"text": "c"}), STOP
    )
    text, signature, rest = parts_of(events)
    assert (text, rest) == (TextPart(text="ab"), TextPart(text="c"))
    assert kept(signature) == {"thoughtSignature": SIGNATURE}


def test_a_signature_on_an_empty_text_is_kept_as_a_part_of_its_own() -> None:
    events = streamed(chunk({"text": "a"}), chunk({"text": "", "thoughtSignature": SIGNATURE}, finish="STOP"))
    text, signature = parts_of(events)
    assert text == TextPart(text="a")
    assert kept(signature) == {"text": "", "thoughtSignature": SIGNATURE}


@pytest.mark.parametrize(
    "part",
    [
        {"text": ""},
        {"text": None},
        {},
        {"text": "", "thoughtSignature": None},
        {"text": "", "thought": True},
        {"functionCall": None},
    ],
)
def test_a_part_that_says_nothing_is_none(part: dict[str, Any]) -> None:
    assert parts_of(streamed(chunk(part), STOP)) == []


@pytest.mark.parametrize(
    "part",
    [
        {"executableCode": {"language": "PYTHON", "code": "1"}, "thoughtSignature": SIGNATURE},
        {"codeExecutionResult": {"outcome": "OUTCOME_OK", "output": "1"}},
        {"toolCall": {"toolType": "GOOGLE_SEARCH", "id": "1", "args": {}}},
        {"aFuturePart": {"n": 12345678901234567890}},
        {"inlineData": {"mimeType": "image/png", "data": "AA=="}, "thought": True},
        {"text": "", "thought": True, "thoughtSignature": SIGNATURE},
    ],
)
def test_parts_of_the_provider_s_own_come_back_as_they_came(part: dict[str, Any]) -> None:
    (one,) = parts_of(streamed(chunk(part), STOP))
    assert one == ReasoningPart(provider_state=json.dumps(part, separators=(",", ":")).encode())
    assert sent_back(one) == [part]


def test_a_picture_is_given_whole_and_its_signature_after_it() -> None:
    picture = {"inlineData": {"mimeType": "image/png", "data": base64.b64encode(b"\x89PNG").decode()}}
    first, signature, second = parts_of(streamed(chunk({**picture, "thoughtSignature": SIGNATURE}, picture), STOP))
    assert first == second == MediaPart(mime_type="image/png", data=b"\x89PNG")
    assert kept(signature) == {"thoughtSignature": SIGNATURE}


@pytest.mark.parametrize("blob", [{"data": "%"}, {"data": "A"}, {"data": 1}, {}, [], {"data": "ä"}])
def test_media_that_is_no_base64_is_malformed(blob: Any) -> None:
    assert failed(chunk({"inlineData": blob}), STOP) is Reason.UPSTREAM_MALFORMED_RESPONSE


def test_arguments_stay_as_they_came() -> None:
    args = b'{ "b": 12345678901234567890, "a":1.0 }'
    called = b'{"functionCall":{"args":%s,"name":"f","id":"1"}}' % args
    (part,) = parts_of(streamed(Frame(data=b'{"candidates":[{"content":{"parts":[%s]}}]}' % called), STOP))
    assert isinstance(part, ToolCallPart)
    assert part.arguments_json == args.decode()


def test_the_indentation_of_a_whole_answer_is_not_kept() -> None:
    part = {"functionCall": {"name": "f", "id": "1", "args": {"b": ["x  y"], "a": 1.0}}, "thoughtSignature": SIGNATURE}
    body = json.dumps({"candidates": [{"content": {"parts": [part]}, "finishReason": "STOP"}]}, indent=2)
    events, _ = whole(Frame(data=body.encode()))
    assert parts_of(events) == parts_of(streamed(chunk(part, finish="STOP")))


@pytest.mark.parametrize("args", [None, {}])
def test_absent_arguments_are_an_empty_object(args: Any) -> None:
    (part,) = parts_of(streamed(chunk({"functionCall": {"name": "now", "id": "1", "args": args}}), STOP))
    assert part == ToolCallPart(id="1", name="now", arguments_json="{}")


@pytest.mark.parametrize("args", [[1], 3, "a", True])
def test_arguments_that_are_no_object_are_malformed(args: Any) -> None:
    called = chunk({"functionCall": {"name": "now", "args": args}})
    assert failed(called, STOP) is Reason.UPSTREAM_MALFORMED_RESPONSE


@pytest.mark.parametrize("called", [{}, {"name": ""}, {"name": 3}, {"name": None}, [], "now"])
def test_a_call_without_a_name_is_malformed(called: Any) -> None:
    assert failed(chunk({"functionCall": called}), STOP) is Reason.UPSTREAM_MALFORMED_RESPONSE


@pytest.mark.parametrize("piece", [{"willContinue": True}, {"partialArgs": [{"jsonPath": "$.a", "numberValue": 1}]}])
def test_a_call_in_pieces_is_malformed_and_never_one_without_arguments(piece: dict[str, Any]) -> None:
    called = chunk({"functionCall": {"name": "now", **piece}})
    assert failed(called, STOP) is Reason.UPSTREAM_MALFORMED_RESPONSE


def test_calls_of_one_id_are_kept_apart() -> None:
    one = {"functionCall": {"name": "now", "id": "0"}}
    ids = [part.id for part in parts_of(streamed(chunk(one, one), chunk(one), STOP)) if isinstance(part, ToolCallPart)]
    assert len(set(ids)) == 3
    assert ids[0] == "0"


def test_only_the_first_candidate_is_read() -> None:
    second = {"content": {"parts": [{"text": "b"}]}, "finishReason": "SAFETY", "index": 1}
    first = {"content": {"parts": [{"text": "a"}]}, "finishReason": "STOP"}
    events = streamed(frame({"candidates": [second, first]}))
    assert parts_of(events) == [TextPart(text="a")]
    assert finish_of(events).finish_reason is FinishReason.STOP


@pytest.mark.parametrize("index", [None, "0", 1.5, [], -1])
def test_an_unusable_index_means_the_first(index: Any) -> None:
    events = streamed(frame({"candidates": [{"content": {"parts": [{"text": "a"}]}, "index": index}]}), STOP)
    assert parts_of(events) == [TextPart(text="a")]


@pytest.mark.parametrize("content", [None, {}, {"role": "model"}, {"parts": None}, {"parts": []}])
def test_a_candidate_may_say_nothing(content: Any) -> None:
    events = streamed(frame({"candidates": [{"content": content, "finishReason": "MAX_TOKENS"}]}))
    assert parts_of(events) == []
    assert finish_of(events).finish_reason is FinishReason.MAX_OUTPUT_TOKENS


def test_the_opening_names_what_the_first_chunk_names() -> None:
    opened = streamed(chunk({"text": "a"}, responseId="r", modelVersion="gemini-x"), STOP)[0]
    assert opened == Opened(upstream_id="r", model="gemini-x")
    assert streamed(chunk({"text": "a"}, responseId=1, modelVersion=None), STOP)[:2] == [Opened(), TextDelta(0, "a")]


# --- what is read: failures ---


@pytest.mark.parametrize(
    "frames", [(), (frame({}),), (Frame(data=b"[DONE]"),), (Frame(data=b" "),), (Frame(data=b" \n", whole=True),)]
)
def test_a_stream_that_holds_nothing_is_empty(frames: tuple[Frame, ...]) -> None:
    assert failed(*frames) is Reason.UPSTREAM_EMPTY_STREAM


@pytest.mark.parametrize(
    "frames",
    [
        (chunk({"text": "a"}),),
        (chunk({"text": "a"}, finish=""),),
        (chunk({"text": "a"}, finish=7),),
        (chunk({"functionCall": {"name": "now"}}), Frame(data=b"[DONE]")),
        (frame({"usageMetadata": {"promptTokenCount": 1}}),),
        (blocked(None),),
        (frame({"promptFeedback": 7}),),
    ],
)
def test_a_stream_without_its_end_marker_is_truncated(frames: tuple[Frame, ...]) -> None:
    assert failed(*frames) is Reason.UPSTREAM_TRUNCATED


@pytest.mark.parametrize("data", [b"{", b"[]", b'"text"', b"null", b"\xff", b'{"candidates":7}'])
def test_data_that_is_no_chunk_is_malformed(data: bytes) -> None:
    assert failed(chunk({"text": "a"}), Frame(data=data)) is Reason.UPSTREAM_MALFORMED_RESPONSE


OVERLOADED: Final = json.loads(error_body(503, "UNAVAILABLE", RetryInfo={"retryDelay": "3s"}))


@pytest.mark.parametrize(
    "broken_off",
    [
        frame(OVERLOADED),
        Frame(data=json.dumps(OVERLOADED, indent=2).encode(), whole=True),
        Frame(data=json.dumps([OVERLOADED], indent=2).encode(), whole=True),
    ],
)
def test_an_error_inside_an_answer_is_that_error(broken_off: Frame) -> None:
    events, error = read(ADAPTER.reader(call()), [chunk({"text": "a"}), broken_off])
    assert TextDelta(0, "a") in events
    assert error is not None
    assert error.reason is Reason.UPSTREAM_UNAVAILABLE
    assert error.retry_after_s == 3
    assert error.upstream is not None
    assert (error.upstream.http_status, error.upstream.provider_code) == (200, "UNAVAILABLE")


@pytest.mark.parametrize("streaming", [True, False])
def test_a_whole_error_with_status_200_is_that_error(streaming: bool) -> None:
    body = error_body(429, QUOTA, QuotaFailure=quotas(PER_DAY)).encode()
    assert failed(Frame(data=body, whole=True), streaming=streaming) is Reason.UPSTREAM_BILLING_EXHAUSTED


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ({}, Reason.UPSTREAM_UNAVAILABLE),
        ("overloaded", Reason.UPSTREAM_UNAVAILABLE),
        ({"code": 429}, Reason.UPSTREAM_RATE_LIMITED),
        ({"code": 429, "message": "Quota exceeded, limit: 0"}, Reason.UPSTREAM_BILLING_EXHAUSTED),
        ({"code": 400}, Reason.UPSTREAM_REJECTED_REQUEST),
        ({"code": 200}, Reason.UPSTREAM_UNAVAILABLE),
        ({"code": "429"}, Reason.UPSTREAM_UNAVAILABLE),
    ],
)
def test_an_error_inside_an_answer_is_told_by_what_it_says_of_itself(error: Any, reason: Reason) -> None:
    assert failed(frame({"error": error})) is reason


def test_something_else_after_events_is_malformed() -> None:
    rest = Frame(data=b'{"candidates":[{}]}', whole=True)
    assert failed(chunk({"text": "a"}, finish="STOP"), rest) is Reason.UPSTREAM_MALFORMED_RESPONSE


@pytest.mark.parametrize("body", [[{"candidates": [{"finishReason": "STOP"}]}], {"candidates": [{}]}])
def test_a_whole_answer_to_a_streaming_call_is_told(body: Any) -> None:
    whole = Frame(data=json.dumps(body).encode(), whole=True)
    assert failed(whole) is Reason.STREAMING_UNSUPPORTED


def whole(*frames: Frame) -> tuple[list[Event], PatchbayError | None]:
    return read(ADAPTER.reader(call(streaming=False)), [msgspec.structs.replace(one, whole=True) for one in frames])


def test_a_whole_answer_is_complete_even_without_its_reason() -> None:
    events, error = whole(chunk({"text": "a"}))
    assert error is None
    assert parts_of(events) == [TextPart(text="a")]
    finished = finish_of(events)
    assert (finished.finish_reason, finished.provider_finish_reason) == (FinishReason.OTHER, "")


def test_a_list_of_chunks_is_a_whole_answer_too() -> None:
    chunks = [{"candidates": [{"content": {"parts": [{"text": text}]}}]} for text in "ab"]
    events, error = whole(frame(chunks))
    assert error is None
    assert parts_of(events) == [TextPart(text="ab")]


def test_a_whole_answer_without_a_candidate_is_empty() -> None:
    bodies: list[Any] = [{"usageMetadata": {"promptTokenCount": 1}}, {"promptFeedback": {"safetyRatings": []}}]
    for body in bodies:
        _, error = whole(frame(body))
        assert error is not None
        assert error.reason is Reason.UPSTREAM_EMPTY_STREAM


@pytest.mark.parametrize("body", [{}, {"modelVersion": "gemini-x"}, [], [{}], {"candidates": []}])
def test_a_whole_body_that_is_no_answer_is_malformed(body: Any) -> None:
    _, error = whole(frame(body))
    assert error is not None
    assert error.reason is Reason.UPSTREAM_MALFORMED_RESPONSE


@pytest.mark.parametrize("streaming", [True, False])
def test_bytes_that_are_no_utf_8_are_malformed_wherever_they_are(streaming: bool) -> None:
    data = chunk({"functionCall": {"name": "now", "args": {"a": "?"}}}, finish="STOP").data.replace(b"?", b"\xff")
    assert failed(Frame(data=data, whole=not streaming), streaming=streaming) is Reason.UPSTREAM_MALFORMED_RESPONSE


def test_pictures_count_against_the_bound_of_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "ANSWER_CHARS_MAX", 10)
    picture = {"inlineData": {"data": base64.b64encode(b"x" * 6).decode()}}
    assert len(parts_of(streamed(chunk(picture), STOP))) == 1
    assert failed(chunk(picture), chunk(picture)) is Reason.UPSTREAM_MALFORMED_RESPONSE


def test_more_parts_than_an_answer_has_are_malformed() -> None:
    unknown = [{"hologram": i} for i in range(5000)]
    assert failed(chunk(*unknown)) is Reason.UPSTREAM_MALFORMED_RESPONSE


# --- answers without trust --------------------------------------------------------------------------------------------

JUNK: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FRAMES: Final = [case.frames(Framing.SSE_THEN_JSON) for case in golden_cases(GOLDEN, SECRET)]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, member in inner for place in places(member, (*path, key)))]


def replaced(value: Any, path: tuple[Any, ...], junk: Any) -> Any:
    if not path:
        return junk
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], junk)
    return copy


def check_read(frames: Sequence[Frame], *, streaming: bool) -> None:
    """Whatever came, it was read by the rules or refused in our words."""
    events, error = read(ADAPTER.reader(call(streaming=streaming)), frames)
    if error is None:
        check_stream(events)


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_any_value_in_any_place_of_an_answer_is_read_or_refused(data: st.DataObject) -> None:
    frames = list(data.draw(st.sampled_from(FRAMES)))
    position = data.draw(st.integers(0, len(frames) - 1))
    value = json.loads(frames[position].data)
    path = data.draw(st.sampled_from(places(value)))
    changed = json.dumps(replaced(value, path, data.draw(JUNK))).encode()
    frames[position] = msgspec.structs.replace(frames[position], data=changed)
    for streaming in (True, False):
        check_read(frames, streaming=streaming)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_byte_of_a_whole_answer_may_be_wrong(data: st.DataObject) -> None:
    body = data.draw(st.sampled_from([case.body for case in golden_cases(GOLDEN, SECRET) if case.body]))
    position = data.draw(st.integers(0, len(body) - 1))
    changed = body[:position] + bytes([data.draw(st.integers(0, 255))]) + body[position + 1 :]
    check_read([Frame(data=changed, whole=True)], streaming=False)


@settings(max_examples=200, deadline=None)
@given(parts=st.lists(st.dictionaries(st.sampled_from(["text", "thought", "thoughtSignature", "x"]), JUNK), max_size=6))
def test_what_is_read_can_be_sent_back(parts: list[dict[str, Any]]) -> None:
    events, error = read(ADAPTER.reader(call()), [chunk(*parts, finish="STOP")])
    if error is None:
        check_stream(events)
        ADAPTER.prepare(call(HELLO, assistant(*parts_of(events)), HELLO), Secret(SECRET), NOW)


@given(junk=JUNK, status=st.integers(300, 599))
def test_any_error_body_is_explained(junk: Any, status: int) -> None:
    detail = {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [{"quotaId": junk}, junk]}
    retry = {"@type": "google.rpc.RetryInfo", "retryDelay": junk}
    for body in (junk, [junk], {"error": junk}, {"error": {"status": junk, "message": junk, "details": junk}}):
        assert explained(status, json.dumps(body)).upstream is not None
    assert explained(status, json.dumps({"error": {"details": [junk, detail, retry]}})).upstream is not None


# --- abilities beside calls -------------------------------------------------------------------------------------------


def test_it_checks_and_lists() -> None:
    assert isinstance(ADAPTER, Checks)
    assert isinstance(ADAPTER, ListsModels)


@pytest.mark.parametrize(
    ("model", "path"),
    [
        ("gemini-3.8-flash", "models/gemini-3.8-flash"),
        ("models/gemini-3.8-flash", "models/gemini-3.8-flash"),
        ("tunedModels/x", "tunedModels/x"),
        ("", "models?pageSize=1"),
        ("a/b?c", "models/a%2Fb%3Fc"),
    ],
)
def test_the_check_reads_one_model_and_costs_nothing(model: str, path: str) -> None:
    request = ADAPTER.prepare_check(model, Secret(SECRET), NOW)
    assert (request.method, request.url) == ("GET", f"https://generativelanguage.googleapis.com/v1beta/{path}")
    assert request.body == b""


def listed(body: bytes) -> Any:
    return ADAPTER.read_models(HttpAnswer(status=200, headers={}, body=body, received_at=NOW))


def test_models_are_listed_page_by_page() -> None:
    first = ADAPTER.prepare_models("", Secret(SECRET), NOW)
    assert first.url == "https://generativelanguage.googleapis.com/v1beta/models?pageSize=1000"
    entry = {
        "name": "models/gemini-3.8-flash",
        "version": "001",
        "displayName": "Gemini 3.8 Flash",
        "inputTokenLimit": 1_048_576,
        "outputTokenLimit": 65_536,
        "supportedGenerationMethods": ["generateContent", "countTokens"],
        "thinking": True,
    }
    tuned = {"name": "tunedModels/x", "displayName": 3, "inputTokenLimit": None}
    page = listed(json.dumps({"models": [entry, tuned], "nextPageToken": "a b&c"}).encode())
    newest, own = page.models
    assert (newest.id, newest.display_name, newest.owned_by) == ("gemini-3.8-flash", "Gemini 3.8 Flash", "google")
    assert (newest.max_input_tokens, newest.max_output_tokens) == (1_048_576, 65_536)
    assert (own.id, own.display_name, own.max_input_tokens) == ("tunedModels/x", "", None)
    second = ADAPTER.prepare_models(page.next_page, Secret(SECRET), NOW)
    assert second.url.endswith("&pageToken=a%20b%26c")


@pytest.mark.parametrize("body", [b'{"models":[]}', b"{}", b'{"models":[],"nextPageToken":7}'])
def test_the_last_page_has_no_next(body: bytes) -> None:
    assert listed(body).next_page == ""


@pytest.mark.parametrize("body", [b"", b"[]", b'{"models":1}', b'{"models":[{"name":1}]}', b"<html>"])
def test_a_list_of_models_that_cannot_be_read_is_malformed(body: bytes) -> None:
    with pytest.raises(PatchbayError) as refusal:
        listed(body)
    assert refusal.value.reason is Reason.UPSTREAM_MALFORMED_RESPONSE


@pytest.mark.parametrize("config", ["generationConfig", "generation_config"])
@pytest.mark.parametrize("count", ["candidateCount", "candidate_count"])
def test_options_cannot_ask_for_answers_that_are_not_read(config: str, count: str) -> None:
    with pytest.raises(PatchbayError) as refused:
        body_of(call(provider_options_json=json.dumps({config: {count: 2}})))
    assert refused.value.reason is Reason.INVALID_REQUEST
    assert refused.value.violations[0].field == "provider_options_json"
