"""The dialect of Bedrock: what it asks and of which API, what it makes of answers, and what its failures mean."""

import base64
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Final

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.eventstream import error, event, exception

from patchbay_server.adapters import credentials
from patchbay_server.adapters.bedrock import ADAPTER
from patchbay_server.adapters.bedrock_models import Model, Surface, model_of, surface_of
from patchbay_server.adapters.protocol import Checks, JudgesChecks, ListsModels, NamesModel
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.testing.adapter_suite import NOW, AdapterSuite, ErrorCase, ModelSuite, cut, golden_cases, read
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
)
from patchbay_server.usage import Usage
from patchbay_server.wire.http import Frame, Framing, HttpAnswer

GOLDEN: Final = Path(__file__).parents[1] / "golden" / "bedrock"
SECRET: Final = {
    "region": "us-east-1",
    "model_id": "anthropic.claude-opus-4-6-v1",
    "access_key_id": "AKIDEXAMPLE0123456",
    "secret_access_key": "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
}
API_KEY: Final = {"region": "eu-central-1", "model_id": "amazon.nova-pro-v1:0", "api_key": "ABSKexample0123456789"}
ARN: Final = "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/a1b2c3"
CLAUDE: Final = "us.anthropic.claude-opus-4-6-v1"
NOVA: Final = "amazon.nova-pro-v1:0"
LLAMA: Final = "us.meta.llama3-1-8b-instruct-v1:0"
HELLO: Final = Message(role=Role.USER, parts=(TextPart(text="hello"),))
ADD: Final = FunctionTool(name="add")
SHOWN_UNASKED: Final = {"config.reasoning.include_text": "models that show reasoning show it unasked"}

# --- what errors mean -------------------------------------------------------------------------------------------------


def error_case(
    status: int, code: str, reason: Reason, words: str = "", /, field: str = "", **members: Any
) -> ErrorCase:
    """An answer with its code in the header, as the service sends it, with an address behind the code."""
    return ErrorCase(
        name=" ".join(filter(None, (str(status), code, words[:40], *map(str, members.values())))),
        status=status,
        headers={"x-amzn-errortype": f"{code}:http://internal.amazon.com/coral/com.amazon.bedrock/"},
        body=json.dumps({"message": words, **members}),
        reason=reason,
        field=field,
    )


AUTH, RATE, QUOTA = (
    Reason.UPSTREAM_CREDENTIAL_REJECTED,
    Reason.UPSTREAM_RATE_LIMITED,
    Reason.UPSTREAM_BILLING_EXHAUSTED,
)
BUSY, REJECTED, MODEL = Reason.UPSTREAM_UNAVAILABLE, Reason.UPSTREAM_REJECTED_REQUEST, Reason.MODEL_NOT_FOUND
LONG, UNSUPPORTED, POLICY = (
    Reason.CONTEXT_LENGTH_EXCEEDED,
    Reason.FEATURE_UNSUPPORTED,
    Reason.CONTENT_POLICY_VIOLATION,
)
ADDRESS: Final = Reason.CONNECTOR_MISCONFIGURED
DENIED, INVALID = "AccessDeniedException", "ValidationException"
ROLE: Final = "User: arn:aws:iam::123456789012:user/x is not authorized to perform: "

ERRORS: Final = (
    error_case(403, "UnrecognizedClientException", AUTH, "The security token included in the request is invalid."),
    error_case(403, "ExpiredTokenException", AUTH, "The security token included in the request is expired"),
    error_case(403, "MissingAuthenticationTokenException", AUTH),
    error_case(403, "InvalidSignatureException", AUTH, "The request signature we calculated does not match"),
    error_case(403, "InvalidSignatureException", BUSY, "Signature expired: 20261121T120000Z is now earlier than"),
    error_case(403, "InvalidSignatureException", BUSY, "Signature not yet current: 20261121T120000Z is still later"),
    error_case(400, "IncompleteSignatureException", REJECTED),
    error_case(403, DENIED, AUTH, "Bearer Token has expired"),
    error_case(403, DENIED, AUTH),
    error_case(403, DENIED, MODEL, "You don't have access to the model with the specified model ID."),
    error_case(403, DENIED, MODEL, f"{ROLE}bedrock:InvokeModel on resource: arn:aws:bedrock:::foundation-model/x"),
    error_case(403, DENIED, REJECTED, f"{ROLE}bedrock:ListFoundationModels because no identity-based policy allows it"),
    error_case(403, DENIED, REJECTED, f"{ROLE}bedrock:GetInferenceProfile because no identity-based policy allows it"),
    error_case(403, DENIED, REJECTED, f"{ROLE}bedrock:CountTokens on resource: arn:aws:bedrock:::foundation-model/x"),
    error_case(403, DENIED, ADDRESS, "Your account is not authorized to invoke this API operation."),
    error_case(403, DENIED, QUOTA, "Model access is denied due to INVALID_PAYMENT_INSTRUMENT: A valid payment"),
    ErrorCase(
        name="403 key",
        status=403,
        body='{"Message":"Authentication failed: Please make sure your API Key is valid."}',
        reason=AUTH,
    ),
    ErrorCase(name="403 list", status=403, body=json.dumps({"Message": f"{ROLE}bedrock:ListX"}), reason=REJECTED),
    error_case(429, "ThrottlingException", RATE, "Too many requests, please wait before trying again."),
    error_case(400, "ThrottlingException", RATE, "Too many tokens, please wait before trying again."),
    error_case(503, "TooManyRequestsException", RATE),
    error_case(400, "ServiceQuotaExceededException", QUOTA),
    error_case(429, "ModelNotReadyException", BUSY, "Model is not ready for inference. Wait and try your request"),
    error_case(408, "ModelTimeoutException", BUSY),
    error_case(500, "InternalServerException", BUSY),
    error_case(503, "ServiceUnavailableException", BUSY),
    error_case(424, "ModelErrorException", BUSY, "no"),
    error_case(424, "ModelErrorException", BUSY, "no", originalStatusCode=500),
    error_case(424, "ModelErrorException", BUSY, "no", originalStatusCode=403),
    error_case(424, "ModelErrorException", RATE, "no", originalStatusCode=429),
    error_case(424, "ModelErrorException", REJECTED, "no", originalStatusCode=400),
    error_case(
        424, "ModelStreamErrorException", LONG, "no", originalStatusCode=400, originalMessage="Prompt is too long"
    ),
    error_case(404, "ResourceNotFoundException", MODEL, "Could not resolve the foundation model from the identifier."),
    error_case(404, "ResourceNotFoundException", MODEL, "Model use case details have not been submitted"),
    error_case(404, "UnknownOperationException", ADDRESS),
    error_case(400, "ConflictException", REJECTED),
    error_case(400, "SerializationException", REJECTED),
    error_case(400, INVALID, REJECTED, "The text field in the ContentBlock object at messages.0.content.0 is blank."),
    error_case(400, INVALID, LONG, "Input is too long for requested model."),
    error_case(400, INVALID, LONG, "The model returned the following errors: prompt is too long: 3 tokens > 2 maximum"),
    error_case(400, INVALID, LONG, "This model's maximum context length is 8192 tokens. Please reduce the length"),
    error_case(400, INVALID, RATE, "Too many tokens, please wait before trying again."),
    error_case(400, INVALID, MODEL, "The provided model identifier is invalid."),
    error_case(400, INVALID, MODEL, "Invocation of model ID x with on-demand throughput isn't supported. Retry"),
    error_case(400, INVALID, POLICY, "This request has been blocked by our content filters."),
    error_case(400, INVALID, UNSUPPORTED, "This model doesn't support tool use in streaming mode.", "tools"),
    error_case(
        400, INVALID, UNSUPPORTED, "This model doesn't support the toolConfig.toolChoice.any field.", "tool_choice"
    ),
    error_case(
        400, INVALID, UNSUPPORTED, "This model doesn't support the stopSequences field", "config.stop_sequences"
    ),
    error_case(400, INVALID, UNSUPPORTED, "This model doesn't support documents.", "messages"),
    error_case(
        400,
        INVALID,
        UNSUPPORTED,
        'The model returned the following errors: {"error":{"message":"Unknown parameter: \'reasoning_effort\'."}}',
        "config.reasoning.effort",
    ),
    error_case(400, INVALID, UNSUPPORTED, "The model is unsupported for streaming."),
    error_case(529, "a_future_error", BUSY),
    error_case(418, "a_future_error", REJECTED),
    *(
        ErrorCase(name=f"code as {spelt}", status=400, headers={"x-amzn-errortype": spelt}, body="{}", reason=RATE)
        for spelt in (
            "ThrottlingException",
            "throttlingException",
            "ThrottlingException:",
            "com.amazonaws.bedrock#ThrottlingException",
            "com.amazonaws.bedrock#ThrottlingException:http://internal.amazon.com/coral/com.amazonaws.bedrock#x/",
            " ThrottlingException ",
        )
    ),
    *(
        ErrorCase(name=f"code in the body: {body}", status=400, body=body, reason=RATE)
        for body in (
            '{"__type":"ThrottlingException"}',
            '{"__type":"com.amazon.coral#ThrottlingException","Message":"no"}',
            '{"__type":"com.amazon.coral.service#throttlingException:http://x#y"}',
            '{"code":"ThrottlingException"}',
        )
    ),
    # A relay may take the header away, and the body names no code.
    ErrorCase(name="400 long", status=400, body='{"message":"Input is too long for requested model."}', reason=LONG),
    ErrorCase(name="400 rate", status=400, body='{"message":"Too many tokens, please wait before"}', reason=RATE),
    ErrorCase(
        name="400 model", status=400, body='{"message":"The provided model identifier is invalid."}', reason=MODEL
    ),
    ErrorCase(
        name="400 field",
        status=400,
        body='{"message":"This model doesn\'t support the temperature field. Remove temperature and try again."}',
        reason=UNSUPPORTED,
        field="config.temperature",
    ),
    ErrorCase(name="400", status=400, body='{"message":"no"}', reason=REJECTED),
    ErrorCase(name="404 model", status=404, body='{"message":"Could not resolve the foundation model"}', reason=MODEL),
    ErrorCase(name="424", status=424, body='{"message":"no","originalStatusCode":500}', reason=BUSY),
    ErrorCase(name="424 rate", status=424, body='{"message":"no","originalStatusCode":429}', reason=RATE),
    ErrorCase(name="404 proxy", status=404, body="<html>no</html>", reason=ADDRESS),
    ErrorCase(name="413", status=413, reason=REJECTED),
    ErrorCase(name="301", status=301, reason=ADDRESS),
)


class TestClaude(AdapterSuite):
    """The Claude that takes most of what can be asked, and all transcripts."""

    adapter = ADAPTER
    secret: ClassVar[Mapping[str, Any]] = SECRET
    golden = GOLDEN
    model = CLAUDE
    errors: ClassVar[Sequence[ErrorCase]] = ERRORS


class TestNewestClaude(ModelSuite):
    """A Claude that refuses most knobs: each has to be refused by name."""

    adapter = ADAPTER
    secret: ClassVar[Mapping[str, Any]] = SECRET
    model = "anthropic.claude-opus-5-5"


class TestNova(ModelSuite):
    adapter = ADAPTER
    secret: ClassVar[Mapping[str, Any]] = API_KEY
    model = NOVA
    without_effect: ClassVar[Mapping[str, str]] = SHOWN_UNASKED


class TestReasoningNova(ModelSuite):
    adapter = ADAPTER
    secret: ClassVar[Mapping[str, Any]] = API_KEY
    model = "us.amazon.nova-2-lite-v1:0"
    without_effect: ClassVar[Mapping[str, str]] = SHOWN_UNASKED


class TestLlama(ModelSuite):
    """A model that takes tools in a stream only within its prompt."""

    adapter = ADAPTER
    secret: ClassVar[Mapping[str, Any]] = SECRET
    model = LLAMA
    without_effect: ClassVar[Mapping[str, str]] = SHOWN_UNASKED

    def test_embedded_json_keeps_its_key_order_and_its_integers(self) -> None:
        schema = '{"b":{"const":12345678901234567890123},"a":{}}'
        tool = FunctionTool(name="add", parameters_json_schema=schema)
        assert schema in body_of(call(model=LLAMA, tools=(tool,)))["prompt"]


class TestModelOfAnotherMaker(ModelSuite):
    adapter = ADAPTER
    secret: ClassVar[Mapping[str, Any]] = SECRET
    model = "qwen.qwen3-32b-v1:0"
    without_effect: ClassVar[Mapping[str, str]] = SHOWN_UNASKED


class TestProfileThatTellsNothing(ModelSuite):
    adapter = ADAPTER
    secret: ClassVar[Mapping[str, Any]] = {**SECRET, "session_token": "IQoJb3JpZ2luX2VjEXAMPLE/+=="}
    model = ARN
    without_effect: ClassVar[Mapping[str, str]] = SHOWN_UNASKED


def explained(status: int, body: str, headers: Mapping[str, str] | None = None) -> PatchbayError:
    return ADAPTER.explain(HttpAnswer(status=status, headers=headers or {}, body=body.encode(), received_at=NOW))


def test_an_error_names_its_code_and_request_and_no_word_of_the_provider() -> None:
    headers = {"x-amzn-errortype": "ThrottlingException", "x-amzn-requestid": "0b9c-1", "retry-after": "3"}
    failure = explained(429, '{"message":"Too many tokens"}', headers)
    assert failure.upstream is not None
    assert failure.upstream.provider_code == "ThrottlingException"
    assert failure.upstream.upstream_request_id == "0b9c-1"
    assert failure.retry_after_s == 3
    assert "tokens" not in failure.message


def test_an_unknown_code_is_not_repeated() -> None:
    failure = explained(400, "{}", {"x-amzn-errortype": "CanaryException"})
    assert failure.upstream is not None
    assert failure.upstream.provider_code == ""


# --- credentials ------------------------------------------------------------------------------------------------------


def refused_credential(**changes: Any) -> list[str]:
    """The fields that a new credential is refused for."""
    given_fields = {name: value for name, value in {**SECRET, **changes}.items() if value is not None}
    with pytest.raises(PatchbayError) as refusal:
        ADAPTER.check_credential(credentials.validate(ADAPTER.info, given_fields))
    assert refusal.value.reason is Reason.INVALID_REQUEST
    return [violation.field for violation in refusal.value.violations]


@pytest.mark.parametrize("region", ["us-east-1", "eu-central-2", "us-gov-west-1", "ap-southeast-7", "eusc-de-east-1"])
def test_regions_of_aws_are_taken(region: str) -> None:
    credentials.validate(ADAPTER.info, {**SECRET, "region": region})


@pytest.mark.parametrize(
    "region",
    [
        "",
        "useast1",
        "US-EAST-1",
        "us-east-1.evil.example",
        "us-east-1/..",
        "us-east-1#",
        "us_east_1",
        "x" * 40,
        "us-1:2",
    ],
)
def test_what_is_no_region_is_refused(region: str) -> None:
    assert refused_credential(region=region) == ["region"]


@pytest.mark.parametrize("model_id", ["", "a b", "..", ".", "/x", "a?b", "a#b", "a%2F", "a@b", "a" * 2049])
def test_what_is_no_model_id_is_refused(model_id: str) -> None:
    assert refused_credential(model_id=model_id) == ["model_id"]


def test_an_access_key_is_both_its_halves_or_an_api_key_takes_its_place() -> None:
    assert refused_credential(secret_access_key=None) == ["secret_access_key"]
    assert refused_credential(access_key_id=None, api_key="ABSKexample0123456789") == ["secret_access_key"]
    assert refused_credential(access_key_id=None) == ["access_key_id"]
    assert refused_credential(access_key_id=None, secret_access_key=None) == ["access_key_id"]
    assert refused_credential(api_key="ABSKexample0123456789") == ["access_key_id"]
    ADAPTER.check_credential(credentials.validate(ADAPTER.info, API_KEY))


def test_a_key_of_another_provider_is_refused_naming_its_type() -> None:
    with pytest.raises(PatchbayError, match="anthropic"):
        credentials.validate(ADAPTER.info, {**API_KEY, "api_key": "sk-ant-0123456789"})


def rotated(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    fields = credentials.merge(ADAPTER.info, old, new)
    ADAPTER.check_credential(fields)
    return fields


def test_a_rotation_to_the_other_kind_of_key_removes_the_first() -> None:
    temporary = {**SECRET, "session_token": "token"}
    api_key = {"api_key": "ABSKexample0123456789"}
    both = {name: SECRET[name] for name in ("region", "model_id")} | api_key
    assert rotated(temporary, api_key) == both
    access_key = {name: SECRET[name] for name in ("access_key_id", "secret_access_key")}
    assert rotated(both, access_key) == SECRET
    assert rotated(both, {**access_key, "session_token": "token"}) == temporary


def test_a_rotation_of_the_access_key_removes_the_old_session() -> None:
    new_key = {"access_key_id": "AKIDEXAMPLE9999999", "secret_access_key": "another0123456789"}
    assert rotated({**SECRET, "session_token": "token"}, new_key) == {**SECRET, **new_key}
    assert rotated({**SECRET, "session_token": "old"}, {"session_token": "new"})["session_token"] == "new"


def test_a_rotation_to_both_kinds_of_key_is_refused() -> None:
    with pytest.raises(PatchbayError) as refusal:
        rotated(SECRET, {**SECRET, "api_key": "ABSKexample0123456789"})
    assert refusal.value.reason is Reason.INVALID_REQUEST


def test_no_part_of_the_credential_is_shown_but_where_it_belongs() -> None:
    shown = credentials.describe(ADAPTER.info, Secret({**SECRET, "session_token": "token"}))
    assert shown == {"region": "us-east-1", "model_id": "anthropic.claude-opus-4-6-v1"}
    assert credentials.last_four(ADAPTER.info, Secret(SECRET)) == "3456"


@pytest.mark.parametrize("missing", ["access_key_id", "secret_access_key"])
def test_a_stored_credential_that_is_not_whole_is_misconfigured(missing: str) -> None:
    half = {name: value for name, value in SECRET.items() if name != missing}
    with pytest.raises(PatchbayError) as refusal:
        ADAPTER.prepare(call(), Secret(half), NOW)
    assert refusal.value.reason is Reason.CONNECTOR_MISCONFIGURED


def test_a_stored_region_cannot_lead_elsewhere() -> None:
    with pytest.raises(PatchbayError) as refusal:
        ADAPTER.prepare(call(), Secret({**SECRET, "region": "us-east-1.evil.example/"}), NOW)
    assert refusal.value.reason is Reason.CONNECTOR_MISCONFIGURED


# --- models and addresses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model_id", "maker", "name"),
    [
        ("anthropic.claude-opus-5-5", "anthropic", "claude-opus-5-5"),
        ("us.anthropic.claude-sonnet-4-20250514-v1:0", "anthropic", "claude-sonnet-4-20250514-v1:0"),
        ("global.amazon.nova-2-lite-v1:0", "amazon", "nova-2-lite-v1:0"),
        ("us-gov.anthropic.claude-x", "anthropic", "claude-x"),
        ("apac.amazon.nova-pro-v1:0", "amazon", "nova-pro-v1:0"),
        ("zai.glm-4.6", "zai", "glm-4.6"),
        ("openai.gpt-oss-120b-1:0", "openai", "gpt-oss-120b-1:0"),
        ("arn:aws:bedrock:us-east-1::foundation-model/meta.llama3-8b-instruct-v1:0", "meta", "llama3-8b-instruct-v1:0"),
        ("arn:aws-us-gov:bedrock:us-gov-west-1:123456789012:inference-profile/us.meta.llama4-x", "meta", "llama4-x"),
        (ARN, "", ""),
        ("arn:aws:bedrock:us-east-1:123456789012:provisioned-model/a.b", "", ""),
        ("my-model", "", ""),
    ],
)
def test_ids_tell_the_maker(model_id: str, maker: str, name: str) -> None:
    assert model_of(model_id) == Model(maker=maker, name=name)


@pytest.mark.parametrize(
    ("model_id", "marks", "converse_tools"),
    [
        ("meta.llama3-8b-instruct-v1:0", "llama3", False),
        ("us.meta.llama3-1-405b-instruct-v1:0", "llama3", True),
        ("us.meta.llama3-2-1b-instruct-v1:0", "llama3", False),
        ("us.meta.llama3-2-90b-instruct-v1:0", "llama3", True),
        ("us.meta.llama3-3-70b-instruct-v1:0", "llama3", True),
        ("us.meta.llama4-scout-17b-instruct-v1:0", "llama4", True),
        ("us.meta.llama6-scout-17b-instruct-v1:0", "llama4", True),
    ],
)
def test_llamas_are_told_apart_and_unknown_ones_are_taken_for_the_newest(
    model_id: str, marks: str, converse_tools: bool
) -> None:
    llama = model_of(model_id).traits.llama
    assert llama is not None
    assert (llama.marks, llama.converse_tools) == (marks, converse_tools)


@pytest.mark.parametrize("model_id", ["meta.llama2-13b-chat-v1", "mistral.llama3-8b", "amazon.nova-pro-v1:0", ARN])
def test_other_models_are_no_llama(model_id: str) -> None:
    assert model_of(model_id).traits.llama is None


@pytest.mark.parametrize(
    ("model", "right_type"),
    [
        ("anthropic/claude-opus-5-5", "openrouter"),
        ("claude-opus-5-5", "anthropic"),
        ("gpt-6", "openai"),
        ("gemini-3-pro", "gemini"),
        ("grok-5", "xai"),
    ],
)
def test_a_model_of_another_type_is_refused_naming_it(model: str, right_type: str) -> None:
    for named, secret in ((model, SECRET), ("", {**SECRET, "model_id": model})):
        with pytest.raises(PatchbayError, match=f"`{right_type}`") as refusal:
            ADAPTER.check_model(named, Secret(secret))
        assert refusal.value.reason is Reason.CONNECTOR_MISCONFIGURED


@pytest.mark.parametrize("model", ["", ARN, NOVA, CLAUDE, "arn:aws:bedrock:::prompt-router/anthropic.claude:1"])
def test_its_own_models_are_accepted(model: str) -> None:
    ADAPTER.check_model(model, Secret(SECRET))


def test_an_address_of_another_provider_is_refused_naming_its_type() -> None:
    with pytest.raises(PatchbayError, match="`anthropic`"):
        ADAPTER.check_model(CLAUDE, Secret({**SECRET, "endpoint": "https://api.anthropic.com/v1"}))


def url_of(asked: Call, **secret: Any) -> str:
    return ADAPTER.prepare(asked, Secret({**SECRET, **secret}), NOW).request.url


@pytest.mark.parametrize(
    ("region", "host"),
    [
        ("us-east-1", "bedrock-runtime.us-east-1.amazonaws.com"),
        ("cn-north-1", "bedrock-runtime.cn-north-1.amazonaws.com.cn"),
        ("eusc-de-east-1", "bedrock-runtime.eusc-de-east-1.amazonaws.eu"),
    ],
)
def test_each_partition_has_its_hosts(region: str, host: str) -> None:
    assert url_of(call(), region=region).startswith(f"https://{host}/model/")


def test_a_credential_names_its_model() -> None:
    assert isinstance(ADAPTER, NamesModel)
    assert ADAPTER.model_of(Secret({**SECRET, "model_id": f" {NOVA} "})) == NOVA


def test_a_call_without_a_model_asks_the_connector_s_own() -> None:
    assert "/model/anthropic.claude-opus-4-6-v1/converse-stream" in url_of(call(model=""))


def test_a_model_id_is_one_segment_of_the_path() -> None:
    assert url_of(call(model=ARN)).endswith(
        "/model/arn%3Aaws%3Abedrock%3Aus-east-1%3A123456789012%3Aapplication-inference-profile%2Fa1b2c3/converse-stream"
    )


@pytest.mark.parametrize("model", ["..", "a?b", "a#b", "a b", "a\\b", "é"])
def test_a_model_that_is_no_id_is_refused_by_name(model: str) -> None:
    assert refused(call(model=model)) == (Reason.INVALID_REQUEST, "model")


def test_an_endpoint_replaces_the_root() -> None:
    assert url_of(call(model=NOVA), endpoint="https://proxy.example/bedrock/").startswith(
        "https://proxy.example/bedrock/model/amazon.nova-pro-v1%3A0/"
    )


def test_an_api_key_is_sent_as_it_is_and_nothing_is_signed() -> None:
    headers = dict(ADAPTER.prepare(call(model=NOVA), Secret(API_KEY), NOW).request.headers)
    assert headers["authorization"] == f"Bearer {API_KEY['api_key']}"
    assert "x-amz-date" not in headers


# --- which API --------------------------------------------------------------------------------------------------------


def call(*messages: Message, model: str = CLAUDE, streaming: bool = True, **prompt: Any) -> Call:
    return Call(id="01", model=model, prompt=Prompt(messages=messages or (HELLO,), **prompt), streaming=streaming)


def body_of(asked: Call) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(ADAPTER.prepare(asked, Secret(SECRET), NOW).request.body)
    return body


def headers_of(asked: Call) -> dict[str, str]:
    return dict(ADAPTER.prepare(asked, Secret(SECRET), NOW).request.headers)


def notices_of(asked: Call) -> list[tuple[NoticeCode, str]]:
    return [(notice.code, notice.field) for notice in ADAPTER.prepare(asked, Secret(SECRET), NOW).notices]


def refused(asked: Call) -> tuple[Reason, str]:
    with pytest.raises(PatchbayError) as refusal:
        ADAPTER.prepare(asked, Secret(SECRET), NOW)
    return refusal.value.reason, refusal.value.violations[0].field


def assistant(*parts: Part) -> Message:
    return Message(role=Role.ASSISTANT, parts=parts)


def user(*parts: Part) -> Message:
    return Message(role=Role.USER, parts=parts)


CALLED: Final = assistant(ToolCallPart(id="call_1", name="add", arguments_json='{"a":1}'))
RESULT: Final = Message(role=Role.TOOL, parts=(ToolResultPart(tool_call_id="call_1", parts=(TextPart(text="2"),)),))
HISTORY: Final = (HELLO, CALLED, RESULT)
NO_CALL: Final = ToolChoice(mode=ToolMode.NONE)
THINKING: Final = b'{"type":"thinking","thinking":"hm","signature":"c2ln"}'
REASONED: Final = b'{"reasoningContent":{"reasoningText":{"text":"hm","signature":"c2ln"}}}'
ONE_BY_ONE: Final = GenerationConfig(parallel_tool_calls=False)
BASH: Final = ProviderTool(json='{"type":"bash_20250124","name":"bash"}')
GROUNDING: Final = ProviderTool(json='{"systemTool":{"name":"nova_grounding"}}')


@pytest.mark.parametrize(
    ("asked", "surface"),
    [
        (call(), Surface.CONVERSE),
        (call(tools=(ADD,)), Surface.CONVERSE),
        (call(*HISTORY, tools=(ADD,)), Surface.CONVERSE),
        (call(tools=(GROUNDING,)), Surface.CONVERSE),
        (call(tools=(BASH,)), Surface.CLAUDE),
        (call(tools=(ADD,), tool_choice=NO_CALL), Surface.CLAUDE),
        (call(tools=(ADD,), config=ONE_BY_ONE), Surface.CLAUDE),
        (call(config=ONE_BY_ONE), Surface.CONVERSE),
        (call(*HISTORY), Surface.CLAUDE),
        (call(HELLO, assistant(ReasoningPart(provider_state=THINKING)), HELLO), Surface.CLAUDE),
        (call(HELLO, assistant(ReasoningPart(provider_state=REASONED)), HELLO), Surface.CONVERSE),
        (call(model=NOVA, tools=(ADD,), tool_choice=NO_CALL), Surface.CONVERSE),
        (call(model=LLAMA), Surface.CONVERSE),
        (call(model=LLAMA, tools=(ADD,)), Surface.LLAMA),
        (call(model=LLAMA, tools=(ADD,), streaming=False), Surface.CONVERSE),
        (call(model="meta.llama3-8b-instruct-v1:0", tools=(ADD,), streaming=False), Surface.LLAMA),
        (call(model=LLAMA, tools=(ADD,), tool_choice=NO_CALL), Surface.CONVERSE),
        (call(*HISTORY, model=LLAMA), Surface.LLAMA),
        (call(*HISTORY, model=LLAMA, tools=(ADD,), streaming=False), Surface.CONVERSE),
        (call(*HISTORY, model=LLAMA, tools=(ADD,), tool_choice=NO_CALL, streaming=False), Surface.LLAMA),
    ],
)
def test_converse_is_the_rule_and_what_it_cannot_say_goes_where_it_can_be_said(asked: Call, surface: Surface) -> None:
    assert surface_of(asked) is surface


@pytest.mark.parametrize(
    ("asked", "accept"),
    [
        (call(), {"accept": "application/vnd.amazon.eventstream"}),
        (call(streaming=False), {"accept": "application/json"}),
        (
            call(tools=(BASH,)),
            {"accept": "application/vnd.amazon.eventstream", "x-amzn-bedrock-accept": "application/json"},
        ),
        (call(tools=(BASH,), streaming=False), {"accept": "application/json"}),
    ],
)
def test_the_form_of_the_answer_is_asked_for(asked: Call, accept: dict[str, str]) -> None:
    headers = headers_of(asked)
    assert {name: value for name, value in headers.items() if name.endswith("accept")} == accept
    framing = ADAPTER.prepare(asked, Secret(SECRET), NOW).request.framing
    assert framing is (Framing.EVENT_STREAM if asked.streaming else Framing.BODY)


@pytest.mark.parametrize("model", [NOVA, "mistral.mistral-large-2407-v1:0", ARN])
def test_tools_in_the_conversation_alone_are_refused_where_no_api_takes_them(model: str) -> None:
    assert refused(call(*HISTORY, model=model)) == (Reason.FEATURE_UNSUPPORTED, "messages[1].parts[0].tool_call")
    asked = call(*HISTORY, model=model, tools=(ADD,), tool_choice=NO_CALL)
    assert refused(asked) == (Reason.FEATURE_UNSUPPORTED, "tool_choice.mode")


def test_without_a_conversation_of_tools_none_may_be_called_when_none_is_told_of() -> None:
    assert "toolConfig" not in body_of(call(model=NOVA, tools=(ADD,), tool_choice=NO_CALL))


# --- Converse ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, None),
        (ToolChoice(mode=ToolMode.AUTO), {"auto": {}}),
        (ToolChoice(mode=ToolMode.REQUIRED), {"any": {}}),
        (ToolChoice(function_name="add"), {"tool": {"name": "add"}}),
    ],
)
@pytest.mark.parametrize("model", [CLAUDE, NOVA])
def test_tool_choices_become_the_provider_s(
    model: str, choice: ToolChoice | None, expected: dict[str, Any] | None
) -> None:
    assert body_of(call(model=model, tools=(ADD,), tool_choice=choice))["toolConfig"].get("toolChoice") == expected


def test_claude_refuses_a_forced_tool_where_the_model_does() -> None:
    for choice in (ToolChoice(mode=ToolMode.REQUIRED), ToolChoice(function_name="add")):
        asked = call(model="anthropic.claude-opus-5-5", tools=(ADD,), tool_choice=choice)
        assert refused(asked) == (Reason.FEATURE_UNSUPPORTED, "tool_choice")


def test_turns_alternate_with_their_blocks_in_order() -> None:
    late = user(TextPart(text="b"), TextPart(text="c"))
    messages = body_of(call(HELLO, late, assistant(TextPart(text="d")), assistant(TextPart(text="e")), HELLO))[
        "messages"
    ]
    assert [(turn["role"], [block["text"] for block in turn["content"]]) for turn in messages] == [
        ("user", ["hello", "b", "c"]),
        ("assistant", ["d", "e"]),
        ("user", ["hello"]),
    ]


def test_system_messages_stand_first_and_later_ones_go_to_models_that_take_them() -> None:
    system = Message(role=Role.SYSTEM, parts=(TextPart(text="be brief"),))
    asked = (HELLO, assistant(TextPart(text="hi")), HELLO, system)
    for model in (CLAUDE, NOVA, "mistral.mistral-large-2407-v1:0"):
        assert refused(call(*asked, model=model)) == (Reason.FEATURE_UNSUPPORTED, "messages[3]")
    body = body_of(call(system, *asked, model="anthropic.claude-opus-4-8"))
    assert body["system"] == [{"text": "be brief"}]
    assert body["messages"][-1] == {"role": "system", "content": [{"text": "be brief"}]}
    assert refused(call(system)) == (Reason.INVALID_REQUEST, "messages")


@pytest.mark.parametrize("text", ["", " \n"])
def test_blank_text_is_refused_from_the_caller_and_left_out_of_what_was_answered(text: str) -> None:
    assert refused(call(user(TextPart(text=text)))) == (Reason.INVALID_REQUEST, "messages[0].parts[0].text")
    asked = call(HELLO, assistant(TextPart(text=text), TextPart(text="hi")), HELLO)
    assert body_of(asked)["messages"][1]["content"] == [{"text": "hi"}]
    assert notices_of(asked) == [(NoticeCode.FIELD_DROPPED, "messages[1].parts[0].text")]
    only = call(HELLO, assistant(TextPart(text=text)), HELLO, model=NOVA)
    assert [turn["role"] for turn in body_of(only)["messages"]] == ["user", "user"]


def test_an_empty_result_stays_a_result() -> None:
    empty = Message(role=Role.TOOL, parts=(ToolResultPart(tool_call_id="call_1", parts=(TextPart(text=""),)),))
    body = body_of(call(HELLO, CALLED, empty, tools=(ADD,)))
    assert body["messages"][2]["content"] == [{"toolResult": {"toolUseId": "call_1", "content": []}}]


def test_a_failed_result_is_told_in_words_where_there_is_no_flag() -> None:
    failed = Message(
        role=Role.TOOL, parts=(ToolResultPart(tool_call_id="call_1", parts=(TextPart(text="no"),), failed=True),)
    )
    asked = {
        model: body_of(call(HELLO, CALLED, failed, model=model, tools=(ADD,)))["messages"][2]["content"][0][
            "toolResult"
        ]
        for model in (CLAUDE, "mistral.mistral-large-2407-v1:0")
    }
    assert [(result.get("status"), result["content"]) for result in asked.values()] == [
        ("error", [{"text": "no"}]),
        (None, [{"text": "The tool failed."}, {"text": "no"}]),
    ]


@pytest.mark.parametrize("tool_call_id", ["x" * 65, "call/1", "call:1", "é"])
def test_a_foreign_id_is_the_same_for_a_call_and_its_result(tool_call_id: str) -> None:
    called = assistant(ToolCallPart(id=tool_call_id, name="add"))
    result = Message(role=Role.TOOL, parts=(ToolResultPart(tool_call_id=tool_call_id),))
    turns = body_of(call(HELLO, called, result, tools=(ADD,)))["messages"]
    sent = turns[1]["content"][0]["toolUse"]["toolUseId"]
    assert sent == turns[2]["content"][0]["toolResult"]["toolUseId"]
    assert sent.startswith("call_")
    assert len(sent) <= 64


def test_names_that_are_too_long_are_refused_by_name() -> None:
    long = FunctionTool(name="a" * 65)
    assert refused(call(tools=(ADD, long))) == (Reason.FEATURE_UNSUPPORTED, "tools[1].function.name")
    called = assistant(ToolCallPart(id="1", name="a" * 65))
    assert refused(call(HELLO, called, tools=(ADD,), model=NOVA)) == (
        Reason.FEATURE_UNSUPPORTED,
        "messages[1].parts[0].tool_call.name",
    )


@pytest.mark.parametrize("state", [b"c2ln", b"{}", b"[]", b'{"reasoningContent":1}', b'{"text":{"a":1}}', THINKING])
def test_reasoning_that_is_not_of_converse_is_left_out_with_a_notice(state: bytes) -> None:
    asked = call(
        HELLO, assistant(ReasoningPart(text="hm", provider_state=state), TextPart(text="a")), HELLO, model=NOVA
    )
    assert body_of(asked)["messages"][1]["content"] == [{"text": "a"}]
    assert notices_of(asked) == [(NoticeCode.PROVIDER_STATE_LEFT_OUT, "messages[1].parts[0].reasoning")]


def test_reasoning_goes_back_byte_for_byte() -> None:
    state = b'{"reasoningContent": {"reasoningText": {"signature":"c2ln\\/==","text":"h\\u006d"}}}'
    asked = call(HELLO, assistant(ReasoningPart(text="hm", provider_state=state), TextPart(text="a")), HELLO)
    sent = ADAPTER.prepare(asked, Secret(SECRET), NOW).request.body
    assert b'{"reasoningText": {"signature":"c2ln\\/==","text":"h\\u006d"}}' in sent


def test_a_refusal_goes_back_as_text() -> None:
    asked = call(HELLO, assistant(RefusalPart(text="no")), HELLO)
    assert body_of(asked)["messages"][1]["content"] == [{"text": "no"}]


def media(mime_type: str, **given_fields: Any) -> Call:
    part = MediaPart(mime_type=mime_type, **(given_fields or {"data": b"x"}))
    return call(user(TextPart(text="see"), part), model=NOVA)


@pytest.mark.parametrize(
    ("mime_type", "kind", "block_format"),
    [
        ("image/png", "image", "png"),
        ("image/jpeg; q=1", "image", "jpeg"),
        ("IMAGE/WEBP", "image", "webp"),
        ("application/pdf", "document", "pdf"),
        ("text/markdown", "document", "md"),
        ("video/mp4", "video", "mp4"),
        ("audio/wav", "audio", "wav"),
        ("audio/x-m4a", "audio", "m4a"),
    ],
)
def test_media_become_the_blocks_of_their_kind(mime_type: str, kind: str, block_format: str) -> None:
    block = body_of(media(mime_type))["messages"][0]["content"][1]
    assert list(block) == [kind]
    assert block[kind]["format"] == block_format
    assert block[kind]["source"] == {"bytes": "eA=="}


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        (media("image/tiff"), "mime_type"),
        (media("", uri="https://example.com/a.png"), "mime_type"),
        (media("image/png", uri="https://example.com/a.png"), "uri"),
        (media("image/png", provider_file_id="file-1"), "provider_file_id"),
    ],
)
def test_media_that_cannot_be_given_are_refused_by_name(asked: Call, field: str) -> None:
    assert refused(asked) == (Reason.FEATURE_UNSUPPORTED, f"messages[0].parts[1].media.{field}")


def test_media_have_places_where_they_are_taken() -> None:
    picture = MediaPart(mime_type="image/png", data=b"x")
    asked = call(HELLO, assistant(picture), HELLO)
    assert refused(asked) == (Reason.FEATURE_UNSUPPORTED, "messages[1].parts[0].media")
    sound = call(user(MediaPart(mime_type="audio/wav", data=b"x")))
    assert refused(sound) == (Reason.FEATURE_UNSUPPORTED, "messages[0].parts[0].media.mime_type")
    document = user(picture, MediaPart(mime_type="application/pdf", data=b"x"))
    assert refused(call(document)) == (Reason.FEATURE_UNSUPPORTED, "messages[0].parts[1].media")
    assert body_of(call(document, HELLO))["messages"][0]["content"][2] == {"text": "hello"}


@pytest.mark.parametrize(
    ("file_names", "names"),
    [
        (("report.pdf",), ["report"]),
        (("a_b  c!.v2.pdf",), ["a b c v2"]),
        (("x.pdf", "x.pdf", ""), ["x", "x 2", "document"]),
        (("", "", "報告.pdf"), ["document", "document 2", "document 3"]),
        (("n" * 300,), ["n" * 200]),
    ],
)
def test_documents_have_names_that_the_provider_takes_and_tells_apart(
    file_names: Sequence[str], names: list[str]
) -> None:
    documents = (MediaPart(mime_type="application/pdf", data=b"x", file_name=name) for name in file_names)
    content = body_of(call(user(TextPart(text="see"), *documents)))["messages"][0]["content"]
    assert [block["document"]["name"] for block in content[1:]] == names


def test_cache_marks_follow_what_they_close_and_are_four_at_most() -> None:
    marked = TextPart(text="a", cache_breakpoint=True)
    point = {"cachePoint": {"type": "default"}}
    assert body_of(call(user(marked), model=NOVA))["messages"][0]["content"] == [{"text": "a"}, point]
    assert refused(call(user(*[marked] * 5))) == (
        Reason.FEATURE_UNSUPPORTED,
        "messages[0].parts[4].cache_breakpoint",
    )
    other = call(user(marked), model="mistral.mistral-large-2407-v1:0")
    assert body_of(other)["messages"][0]["content"] == [{"text": "a"}]
    assert notices_of(other) == [(NoticeCode.FIELD_DROPPED, "messages[0].parts[0].cache_breakpoint")]


def with_config(model: str, **config: Any) -> Call:
    return call(model=model, config=GenerationConfig(**config))


def with_reasoning(model: str, **reasoning: Any) -> Call:
    return with_config(model, reasoning=ReasoningConfig(**reasoning))


@pytest.mark.parametrize(
    ("asked", "output", "additional"),
    [
        (
            with_reasoning("anthropic.claude-opus-5-5", effort=Effort.LOW),
            {"effort": "low"},
            {"thinking": {"type": "adaptive"}},
        ),
        (with_reasoning(CLAUDE, budget_tokens=2048), None, {"thinking": {"type": "enabled", "budget_tokens": 2048}}),
        (with_reasoning(CLAUDE, effort=Effort.NONE), None, {"thinking": {"type": "disabled"}}),
        (with_config(CLAUDE, top_k=3), None, {"top_k": 3}),
        (with_config(NOVA, top_k=3), None, {"inferenceConfig": {"topK": 3}}),
        (with_config("cohere.command-r-v1:0", top_k=3), None, {"k": 3}),
        (
            with_reasoning("us.amazon.nova-2-lite-v1:0", effort=Effort.HIGH),
            None,
            {"reasoningConfig": {"type": "enabled", "maxReasoningEffort": "high"}},
        ),
        (with_reasoning("us.amazon.nova-2-lite-v1:0", effort=Effort.NONE), None, None),
        (with_reasoning("openai.gpt-oss-20b-1:0", effort=Effort.LOW), None, {"reasoning_effort": "low"}),
        (with_reasoning("us.openai.gpt-5.6-sol", effort=Effort.NONE), None, {"reasoning": {"effort": "none"}}),
        (with_reasoning("openai.gpt-7", effort=Effort.MAX), None, {"reasoning": {"effort": "max"}}),
        (with_config("us.openai.gpt-5.6-sol", temperature=1.0, top_p=1.0), None, None),
        (with_reasoning(ARN, effort=Effort.XHIGH), {"effort": "xhigh"}, None),
    ],
)
def test_knobs_go_where_the_maker_s_models_take_them(
    asked: Call, output: dict[str, Any] | None, additional: dict[str, Any] | None
) -> None:
    body = body_of(asked)
    assert body.get("outputConfig") == output
    assert body.get("additionalModelRequestFields") == additional


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        (with_config("anthropic.claude-opus-5-5", temperature=0.5), "config.temperature"),
        (with_config(NOVA, temperature=1.5), "config.temperature"),
        (with_config(NOVA, seed=1), "config.seed"),
        (with_config(NOVA, frequency_penalty=0.5), "config.frequency_penalty"),
        (with_config(CLAUDE, seed=1), "config.seed"),
        (with_config(NOVA, parallel_tool_calls=False), "config.parallel_tool_calls"),
        (with_config("ai21.jamba-1-5-large-v1:0", top_k=3), "config.top_k"),
        (with_reasoning(NOVA, budget_tokens=2048), "config.reasoning.budget_tokens"),
        (with_reasoning("openai.gpt-oss-20b-1:0", effort=Effort.MAX), "config.reasoning.effort"),
        (with_reasoning("openai.gpt-oss-20b-1:0", effort=Effort.NONE), "config.reasoning.effort"),
        (with_reasoning("openai.gpt-6-astra", effort=Effort.NONE), "config.reasoning.effort"),
        (with_reasoning("us.openai.gpt-5.6-sol", effort=Effort.MINIMAL), "config.reasoning.effort"),
        (with_config("us.openai.gpt-5.6-sol", temperature=0.2), "config.temperature"),
        (with_config("us.openai.gpt-5.6-sol", top_p=0.2), "config.top_p"),
        (with_config("us.openai.gpt-5.6-sol", stop_sequences=("a",)), "config.stop_sequences"),
        (
            with_config("amazon.nova-2-lite-v1:0", max_output_tokens=9, reasoning=ReasoningConfig(effort=Effort.HIGH)),
            "config.max_output_tokens",
        ),
        (call(model=NOVA, response_format=JsonObjectFormat()), "response_format.json_object"),
        (
            call(model=NOVA, response_format=JsonSchemaFormat(name="a", schema_json="{}", strict=False)),
            "response_format.json_schema.strict",
        ),
    ],
)
def test_what_a_model_lacks_is_refused_by_name(asked: Call, field: str) -> None:
    assert refused(asked) == (Reason.FEATURE_UNSUPPORTED, field)


def test_limits_are_sent_only_where_they_are_given() -> None:
    assert "inferenceConfig" not in body_of(call())
    assert body_of(with_config(CLAUDE, max_output_tokens=7))["inferenceConfig"] == {"maxTokens": 7}


def test_options_are_merged_into_the_body_and_cannot_name_another_model() -> None:
    options = '{"guardrailConfig":{"guardrailIdentifier":"a"},"additionalModelRequestFields":{"top_k":5,"x":1}}'
    asked = call(config=GenerationConfig(top_k=3), provider_options_json=options)
    assert body_of(asked)["additionalModelRequestFields"] == {"top_k": 5, "x": 1}
    for reserved in ("system", "modelId", "messages"):
        asked = call(provider_options_json=json.dumps({reserved: []}))
        assert refused(asked) == (Reason.INVALID_REQUEST, "provider_options_json")


# --- InvokeModel ------------------------------------------------------------------------------------------------------


def options(**given_options: Any) -> Call:
    return call(tools=(BASH,), provider_options_json=json.dumps(given_options))


GUARDRAIL: Final = {"guardrailIdentifier": "gr1abc", "guardrailVersion": "1"}


def test_a_guardrail_holds_on_every_api() -> None:
    headers = headers_of(options(guardrailConfig={**GUARDRAIL, "trace": "enabled_full"}))
    assert headers["x-amzn-bedrock-guardrailidentifier"] == "gr1abc"
    assert headers["x-amzn-bedrock-guardrailversion"] == "1"
    assert headers["x-amzn-bedrock-trace"] == "ENABLED_FULL"
    signed_names = headers["authorization"].partition("SignedHeaders=")[2].partition(",")[0].split(";")
    assert "x-amzn-bedrock-guardrailidentifier" in signed_names
    assert "guardrailConfig" not in body_of(options(guardrailConfig=GUARDRAIL))


def test_options_for_the_model_are_merged_into_its_body() -> None:
    assert body_of(options(additionalModelRequestFields={"top_p": 0.3}))["top_p"] == 0.3
    assert refused(options(additionalModelRequestFields={"messages": []})) == (
        Reason.INVALID_REQUEST,
        "provider_options_json",
    )


@pytest.mark.parametrize(
    "given_options",
    [
        {"outputConfig": {"effort": "low"}},
        {"guardrailConfig": {"guardrailIdentifier": "a\r\nx: y", "guardrailVersion": "1"}},
        {"guardrailConfig": {"guardrailIdentifier": "a\n", "guardrailVersion": "1"}},
        {"guardrailConfig": {"guardrailIdentifier": "a"}},
        {"guardrailConfig": {**GUARDRAIL, "more": 1}},
        {"serviceTier": {"type": "turbo"}},
        {"requestMetadata": {"a": "é"}},
        {"requestMetadata": {"a": 1}},
        {"requestMetadata": {f"k{n}": "v" for n in range(17)}},
        {"requestMetadata": {f"{n}{'k' * 250}": "v" * 256 * 2 for n in range(16)}},
    ],
)
def test_options_that_have_no_place_are_refused_by_name(given_options: dict[str, Any]) -> None:
    assert refused(options(**given_options)) == (Reason.FEATURE_UNSUPPORTED, "provider_options_json")


def test_claude_s_body_has_no_model_and_a_version() -> None:
    body = body_of(call(tools=(BASH,)))
    assert body["anthropic_version"] == "bedrock-2023-05-31"
    assert body["tools"] == [{"type": "bash_20250124", "name": "bash"}]
    assert not body.keys() & {"model", "stream"}


@pytest.mark.parametrize("source", [{"uri": "https://example.com/a.png"}, {"provider_file_id": "file_1"}])
def test_claude_takes_media_as_data_only(source: dict[str, str]) -> None:
    picture = MediaPart(mime_type="image/png", **source)
    (field,) = source
    assert refused(call(user(picture), tools=(BASH,))) == (
        Reason.FEATURE_UNSUPPORTED,
        f"messages[0].parts[0].media.{field}",
    )
    result = Message(role=Role.TOOL, parts=(ToolResultPart(tool_call_id="call_1", parts=(picture,)),))
    assert refused(call(HELLO, CALLED, result, tools=(BASH,))) == (
        Reason.FEATURE_UNSUPPORTED,
        f"messages[2].parts[0].tool_result.parts[0].media.{field}",
    )


def test_a_conversation_that_began_with_one_api_can_go_on_with_the_other() -> None:
    asked = call(
        HELLO, assistant(ReasoningPart(text="hm", provider_state=REASONED), TextPart(text="a")), HELLO, tools=(BASH,)
    )
    block = body_of(asked)["messages"][1]["content"][0]
    assert block == {"type": "thinking", "thinking": "hm", "signature": "c2ln"}


# --- what is read -----------------------------------------------------------------------------------------------------


def frames_of(*messages: bytes) -> list[Frame]:
    return cut(b"".join(messages), (), Framing.EVENT_STREAM)


START: Final = event("messageStart", {"role": "assistant"})
METADATA: Final = event("metadata", {"usage": {"inputTokens": 1, "outputTokens": 2, "totalTokens": 3}})


def delta(index: Any, **piece: Any) -> bytes:
    return event("contentBlockDelta", {"contentBlockIndex": index, "delta": piece})


def block_start(index: Any, **start: Any) -> bytes:
    return event("contentBlockStart", {"contentBlockIndex": index, "start": start})


def block_stop(index: Any) -> bytes:
    return event("contentBlockStop", {"contentBlockIndex": index})


def stop(reason: Any) -> bytes:
    return event("messageStop", {"stopReason": reason})


def streamed(*messages: bytes) -> list[Event]:
    events, failure = read(ADAPTER.reader(call()), frames_of(*messages))
    assert failure is None, failure
    return events


def failed(*messages: bytes) -> Reason:
    _, failure = read(ADAPTER.reader(call()), frames_of(*messages))
    assert failure is not None
    return failure.reason


def parts_of(events: Sequence[Event]) -> list[Part]:
    return [each.part for each in events if isinstance(each, PartCompleted)]


def finish_of(events: Sequence[Event]) -> Finished:
    assert isinstance(events[-1], Finished)
    return events[-1]


TEXT: Final = (delta(0, text="hi"), block_stop(0))


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ("end_turn", FinishReason.STOP),
        ("stop_sequence", FinishReason.STOP),
        ("max_tokens", FinishReason.MAX_OUTPUT_TOKENS),
        ("model_context_window_exceeded", FinishReason.CONTEXT_LENGTH),
        ("tool_use", FinishReason.TOOL_CALLS),
        ("guardrail_intervened", FinishReason.CONTENT_FILTER),
        ("content_filtered", FinishReason.CONTENT_FILTER),
        ("a_future_reason", FinishReason.OTHER),
        (None, FinishReason.OTHER),
        (7, FinishReason.OTHER),
    ],
)
def test_stop_reasons_keep_the_provider_s_word_beside_ours(raw: Any, reason: FinishReason) -> None:
    finished = finish_of(streamed(START, *TEXT, stop(raw), METADATA))
    assert finished.finish_reason is reason
    assert finished.provider_finish_reason == (raw if isinstance(raw, str) else "")


@pytest.mark.parametrize("raw", ["malformed_model_output", "malformed_tool_use"])
def test_an_end_that_is_no_answer_is_a_failure_after_its_usage(raw: str) -> None:
    events, failure = read(ADAPTER.reader(call()), frames_of(START, *TEXT, stop(raw), METADATA, *TEXT))
    assert failure is not None
    assert failure.reason is Reason.UPSTREAM_MALFORMED_RESPONSE
    assert [type(each).__name__ for each in events] == ["Opened", "TextDelta", "PartCompleted", "UsageUpdated"]


def test_the_two_last_events_may_change_places() -> None:
    assert streamed(START, *TEXT, METADATA, stop("end_turn")) == streamed(START, *TEXT, stop("end_turn"), METADATA)


@pytest.mark.parametrize("last", [(), (stop("end_turn"),), (METADATA,)])
def test_an_end_without_both_markers_is_truncated(last: tuple[bytes, ...]) -> None:
    assert failed(START, *TEXT, *last) is Reason.UPSTREAM_TRUNCATED


def test_unusable_counts_do_not_cost_the_stream() -> None:
    usage = {"inputTokens": "12", "outputTokens": 4.0, "cacheReadInputTokens": -1, "cacheWriteInputTokens": True}
    finished = finish_of(streamed(START, *TEXT, stop("end_turn"), event("metadata", {"usage": usage})))
    assert finished.usage == Usage(output_tokens=4, total_tokens=4)
    for nothing in ({}, {"usage": None}, {"usage": []}, {"usage": {}}):
        assert finish_of(streamed(START, *TEXT, stop("end_turn"), event("metadata", nothing))).usage is None


@pytest.mark.parametrize("index", [None, "0", 1.5, []])
def test_an_unusable_index_means_the_newest_block(index: Any) -> None:
    tool = block_start(index, toolUse={"toolUseId": "t1", "name": "now"})
    arguments = delta(index, toolUse={"input": "{}"})
    events = streamed(
        *(delta(index, text="a"), delta(index, text="b"), tool, arguments, block_stop(index)),
        *(delta(index, text="c"), stop("end_turn"), METADATA),
    )
    assert parts_of(events) == [TextPart(text="ab"), ToolCallPart(id="t1", name="now"), TextPart(text="c")]


def test_a_block_that_changes_its_kind_is_two_parts() -> None:
    reasoning = delta(0, reasoningContent={"text": "hm"})
    events = streamed(reasoning, delta(0, text="a"), block_stop(0), stop("end_turn"), METADATA)
    assert parts_of(events) == [ReasoningPart(text="hm"), TextPart(text="a")]


def test_a_text_block_may_begin_with_an_empty_start_or_never_end() -> None:
    events = streamed(
        event("contentBlockStart", {"start": {}, "contentBlockIndex": 0}), TEXT[0], stop("end_turn"), METADATA
    )
    assert parts_of(events) == [TextPart(text="hi")]


def test_interleaved_blocks_are_kept_apart() -> None:
    events = streamed(
        *(
            block_start(0, toolUse={"toolUseId": "a", "name": "x"}),
            block_start(1, toolUse={"toolUseId": "b", "name": "y"}),
        ),
        *(
            delta(0, toolUse={"input": '{"x":'}),
            delta(1, toolUse={"input": '{"y":2}'}),
            delta(0, toolUse={"input": "1}"}),
        ),
        *(block_stop(1), block_stop(0), stop("tool_use"), METADATA),
    )
    calls = {part.name: part.arguments_json for part in parts_of(events) if isinstance(part, ToolCallPart)}
    assert calls == {"x": '{"x":1}', "y": '{"y":2}'}


def test_a_tool_call_without_an_id_gets_one_and_without_a_name_is_malformed() -> None:
    nameless = block_start(0, toolUse={"toolUseId": "a", "name": None})
    assert failed(START, nameless) is Reason.UPSTREAM_MALFORMED_RESPONSE
    events = streamed(block_start(0, toolUse={"name": "now"}), block_stop(0), stop("tool_use"), METADATA)
    (part,) = parts_of(events)
    assert isinstance(part, ToolCallPart)
    assert part.id


@pytest.mark.parametrize("text", ["[1]", "3", '"a"', "true"])
def test_arguments_that_are_json_but_no_object_are_malformed(text: str) -> None:
    tool = block_start(0, toolUse={"toolUseId": "a", "name": "now"})
    assert failed(START, tool, delta(0, toolUse={"input": text}), block_stop(0)) is Reason.UPSTREAM_MALFORMED_RESPONSE
    block = {"toolUse": {"toolUseId": "a", "name": "now", "input": json.loads(text)}}
    body = json.dumps({"output": {"message": {"content": [block]}}, "stopReason": "tool_use"}).encode()
    _, failure = read(ADAPTER.reader(call(streaming=False)), [Frame(body, whole=True)])
    assert failure is not None
    assert failure.reason is Reason.UPSTREAM_MALFORMED_RESPONSE


def test_a_piece_of_a_tool_call_that_never_began_is_malformed() -> None:
    assert failed(START, delta(3, toolUse={"input": "{}"})) is Reason.UPSTREAM_MALFORMED_RESPONSE
    assert failed(START, delta(0, text="a"), delta(0, toolUse={"input": "{}"})) is Reason.UPSTREAM_MALFORMED_RESPONSE


@pytest.mark.parametrize("piece", [{"redactedContent": "%%%"}, {"redactedContent": "abc"}])
def test_binary_data_that_is_none_is_malformed(piece: dict[str, str]) -> None:
    assert failed(START, delta(0, reasoningContent=piece)) is Reason.UPSTREAM_MALFORMED_RESPONSE


@pytest.mark.parametrize("kind", ["tool_use", "a_future_use", "", None])
def test_a_tool_is_the_caller_s_unless_the_provider_says_that_it_runs_it(kind: str | None) -> None:
    use = {"toolUseId": "t1", "name": "add", "type": kind}
    (part,) = parts_of(
        streamed(START, block_start(0, toolUse=use), delta(0, toolUse={"input": "{}"}), stop("tool_use"), METADATA)
    )
    assert part == ToolCallPart(id="t1", name="add", arguments_json="{}")
    body = {
        "output": {"message": {"role": "assistant", "content": [{"toolUse": {**use, "input": {"a": 1}}}]}},
        "stopReason": "tool_use",
    }
    events, failure = read(ADAPTER.reader(call(streaming=False)), [Frame(json.dumps(body).encode(), whole=True)])
    assert failure is None
    assert parts_of(events) == [ToolCallPart(id="t1", name="add", arguments_json='{"a": 1}')]
    assert finish_of(events).finish_reason is FinishReason.TOOL_CALLS


def test_a_provider_s_tool_that_was_cut_off_leaves_nothing_to_send_back() -> None:
    tool = block_start(0, toolUse={"toolUseId": "a", "name": "search", "type": "server_tool_use"})
    events = streamed(tool, delta(0, toolUse={"input": '{"q'}), block_stop(0), stop("max_tokens"), METADATA)
    assert parts_of(events) == [ReasoningPart()]


def test_a_stream_without_its_opening_is_opened_all_the_same() -> None:
    assert streamed(*TEXT, stop("end_turn"), METADATA)[:2] == [Opened(), TextDelta(0, "hi")]


def test_an_empty_answer_that_the_model_chose_to_give_is_one() -> None:
    assert parts_of(streamed(START, stop("end_turn"), METADATA)) == []


@pytest.mark.parametrize("messages", [(), (event("aFutureEvent", {}),)])
def test_a_stream_that_holds_nothing_is_empty(messages: tuple[bytes, ...]) -> None:
    assert failed(*messages) is Reason.UPSTREAM_EMPTY_STREAM


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (exception("throttlingException", {"message": "Too many tokens"}), RATE),
        (exception("internalServerException", {"message": "no"}), BUSY),
        (exception("serviceUnavailableException", {"message": "no"}), BUSY),
        (exception("modelTimeoutException", {"message": "no"}), BUSY),
        (exception("modelStreamErrorException", {"message": "no", "originalStatusCode": 429}), RATE),
        (exception("modelStreamErrorException", {"message": "no"}), BUSY),
        (exception("validationException", {"message": "Input is too long"}), LONG),
        (exception("validationException", b"not json"), REJECTED),
        (exception("aFutureException", {"message": "no"}), BUSY),
        (error("ThrottlingException", "no"), RATE),
        (error("InternalFailure", "no"), BUSY),
        (error("", ""), BUSY),
    ],
)
def test_a_failure_within_a_stream_is_judged_by_its_name(message: bytes, reason: Reason) -> None:
    for asked in (call(), call(tools=(BASH,)), call(model=LLAMA, tools=(ADD,))):
        _, failure = read(ADAPTER.reader(asked), frames_of(START, message))
        assert failure is not None
        assert failure.reason is reason
        assert failure.upstream is not None
        assert failure.upstream.provider == "bedrock"


@pytest.mark.parametrize("data", [b"{", b"[]", b'"text"', b"null", b"\xff", b""])
@pytest.mark.parametrize(
    "name", ["contentBlockStart", "contentBlockDelta", "contentBlockStop", "messageStop", "metadata", "chunk"]
)
def test_data_that_is_no_object_is_malformed(name: str, data: bytes) -> None:
    asked = call(tools=(BASH,)) if name == "chunk" else call()
    _, failure = read(ADAPTER.reader(asked), frames_of(event(name, data)))
    assert failure is not None
    assert failure.reason is Reason.UPSTREAM_MALFORMED_RESPONSE


WHOLE_ERRORS: Final = (
    (b'{"message":"Too many tokens, please wait","__type":"ThrottlingException"}', RATE),
    (b'{"Output":{"__type":"com.amazon.coral.service#UnknownOperationException"},"Version":"1.0"}', ADDRESS),
    (b'{"message":null}', Reason.UPSTREAM_MALFORMED_RESPONSE),
    (b'{"message":"no"}', BUSY),
    (b'{"message":"Input is too long for requested model."}', LONG),
)


@pytest.mark.parametrize(("body", "reason"), WHOLE_ERRORS)
@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("tools", [(), (BASH,)])
def test_a_whole_error_with_status_200_is_that_error(
    tools: tuple[ProviderTool, ...], streaming: bool, body: bytes, reason: Reason
) -> None:
    _, failure = read(ADAPTER.reader(call(tools=tools, streaming=streaming)), [Frame(body, whole=True)])
    assert failure is not None
    assert failure.reason is reason


def test_more_blocks_than_an_answer_has_are_malformed() -> None:
    reader = ADAPTER.reader(call())
    many = frames_of(START, *(block_start(i, hologram={}) for i in range(5000)))
    _, failure = read(reader, many)
    assert failure is not None
    assert failure.reason is Reason.UPSTREAM_MALFORMED_RESPONSE


def chunk(data: Any) -> bytes:
    return event("chunk", {"bytes": base64.b64encode(json.dumps(data).encode()).decode()})


@pytest.mark.parametrize("data", [{}, {"bytes": None}, {"bytes": 3}, {"p": "abc"}])
def test_a_chunk_that_holds_nothing_is_passed_over(data: dict[str, Any]) -> None:
    _, failure = read(ADAPTER.reader(call(tools=(BASH,))), frames_of(event("chunk", data)))
    assert failure is not None
    assert failure.reason is Reason.UPSTREAM_EMPTY_STREAM


def test_a_failure_of_claude_s_own_is_reported_of_this_provider() -> None:
    overloaded = chunk({"type": "error", "error": {"type": "overloaded_error", "message": "no"}})
    _, failure = read(ADAPTER.reader(call(tools=(BASH,))), frames_of(overloaded))
    assert failure is not None
    assert failure.reason is Reason.UPSTREAM_UNAVAILABLE
    assert failure.upstream is not None
    assert (failure.upstream.provider, failure.upstream.provider_code) == ("bedrock", "overloaded_error")


def test_a_guardrail_s_own_stop_reason_is_one_of_content() -> None:
    messages = (
        chunk({"type": "message_start", "message": {"id": "m", "usage": {"input_tokens": 1}}}),
        chunk(
            {"type": "message_delta", "delta": {"stop_reason": "guardrail_intervened"}, "usage": {"output_tokens": 1}}
        ),
        chunk({"type": "message_stop"}),
    )
    events, failure = read(ADAPTER.reader(call(tools=(BASH,))), frames_of(*messages))
    assert failure is None
    assert finish_of(events).finish_reason is FinishReason.CONTENT_FILTER


# --- answers without trust --------------------------------------------------------------------------------------------

JUNK: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
CASES: Final = [case for case in golden_cases(GOLDEN, SECRET) if case.wire and not case.wire.startswith(b"{")]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, member in inner for place in places(member, (*path, key)))]


def replaced(value: Any, path: tuple[Any, ...], junk: Any) -> Any:
    if not path:
        return junk
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], junk)
    return copy


def inner_of(frame: Frame) -> Any:
    """What a frame says, with what a chunk wraps in the place of its base64."""
    value = json.loads(frame.data) if frame.data.startswith(b"{") else None
    if frame.event == "chunk":
        return json.loads(base64.b64decode(value["bytes"]))
    return value


def framed(frame: Frame, value: Any) -> Frame:
    data = json.dumps(value).encode()
    if frame.event == "chunk":
        data = json.dumps({"bytes": base64.b64encode(data).decode()}).encode()
    return msgspec.structs.replace(frame, data=data)


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_any_value_in_any_place_of_an_answer_is_read_or_refused(data: st.DataObject) -> None:
    case = data.draw(st.sampled_from(CASES))
    frames = case.frames(Framing.EVENT_STREAM)
    position = data.draw(st.integers(0, len(frames) - 1))
    value = inner_of(frames[position])
    path = data.draw(st.sampled_from(places(value)))
    frames[position] = framed(frames[position], replaced(value, path, data.draw(JUNK)))
    for streaming in (True, False):
        asked = msgspec.structs.replace(case.call, streaming=streaming)
        read(ADAPTER.reader(asked), frames)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_value_in_any_place_of_a_whole_answer_is_read_or_refused(data: st.DataObject) -> None:
    case = data.draw(st.sampled_from([case for case in golden_cases(GOLDEN, SECRET) if case.body]))
    value = json.loads(case.body or b"")
    path = data.draw(st.sampled_from(places(value)))
    body = json.dumps(replaced(value, path, data.draw(JUNK))).encode()
    read(ADAPTER.reader(msgspec.structs.replace(case.call, streaming=False)), [Frame(body, whole=True)])


@given(junk=JUNK, status=st.integers(300, 599), code=st.text(max_size=10))
def test_any_error_body_is_explained(junk: Any, status: int, code: str) -> None:
    for body in (junk, {"message": junk, "__type": junk, "originalStatusCode": junk}):
        assert explained(status, json.dumps(body), {"x-amzn-errortype": code}).upstream is not None
        assert explained(status, json.dumps(body)).upstream is not None


# --- abilities beside calls -------------------------------------------------------------------------------------------


def test_it_checks_and_lists() -> None:
    assert isinstance(ADAPTER, Checks)
    assert isinstance(ADAPTER, JudgesChecks)
    assert isinstance(ADAPTER, ListsModels)


@pytest.mark.parametrize(("model", "segment"), [("", "anthropic.claude-opus-4-6-v1"), ("a:b/c?d", "a%3Ab%2Fc%3Fd")])
def test_the_check_counts_the_tokens_of_a_word(model: str, segment: str) -> None:
    request = ADAPTER.prepare_check(model, Secret({**SECRET, "endpoint": "https://proxy.example"}), NOW)
    assert (request.method, request.url) == ("POST", f"https://proxy.example/model/{segment}/count-tokens")
    assert json.loads(request.body) == {
        "input": {"converse": {"messages": [{"role": "user", "content": [{"text": "hello"}]}]}}
    }


@pytest.mark.parametrize(
    ("case", "passes"),
    [
        (error_case(400, INVALID, UNSUPPORTED, "The provided model doesn't support counting tokens."), True),
        (error_case(400, INVALID, REJECTED, "Operation not allowed"), True),
        (error_case(400, INVALID, MODEL, "The provided model identifier is invalid."), False),
        (error_case(403, DENIED, REJECTED, f"{ROLE}bedrock:CountTokens on resource: x"), True),
        (error_case(403, DENIED, MODEL, "You don't have access to the model with the specified model ID."), False),
        (error_case(403, DENIED, AUTH, "Bearer Token has expired"), False),
        (error_case(403, "UnrecognizedClientException", AUTH), False),
        (error_case(429, "ThrottlingException", RATE), False),
        (error_case(500, "InternalServerException", BUSY), False),
        (ErrorCase(name="proxy", status=404, reason=ADDRESS), False),
    ],
    ids=lambda value: value.name if isinstance(value, ErrorCase) else None,
)
def test_a_refusal_to_count_proves_the_credential_that_it_was_made_to(case: ErrorCase, passes: bool) -> None:
    failure = ADAPTER.explain(case.answer())
    assert failure.reason is case.reason
    assert ADAPTER.passes_check(failure) is passes


def models_of(body: Any) -> Any:
    answer = HttpAnswer(status=200, headers={}, body=json.dumps(body).encode(), received_at=NOW)
    return ADAPTER.read_models(answer)


def test_models_are_those_that_can_be_asked_by_their_id_and_then_the_profiles() -> None:
    first = ADAPTER.prepare_models("", Secret(SECRET), NOW)
    assert (first.method, first.url) == (
        "GET",
        "https://bedrock.us-east-1.amazonaws.com/foundation-models?byOutputModality=TEXT",
    )
    page = models_of(
        {
            "modelSummaries": [
                {
                    "modelId": NOVA,
                    "modelName": "Nova Pro",
                    "providerName": "Amazon",
                    "inferenceTypesSupported": ["ON_DEMAND"],
                    "modelLifecycle": {
                        "status": "LEGACY",
                        "endOfLifeTime": "2027-01-31T00:00:00Z",
                        "startOfLifeTime": 1,
                    },
                },
                {"modelId": f"{NOVA}:300k", "inferenceTypesSupported": ["PROVISIONED"]},
                {"modelId": "x.y", "modelName": 3, "modelLifecycle": None},
            ]
        }
    )
    assert [model.id for model in page.models] == [NOVA, "x.y"]
    assert (page.models[0].display_name, page.models[0].owned_by) == ("Nova Pro", "Amazon")
    assert page.models[0].retires_at == datetime(2027, 1, 31, tzinfo=UTC)
    second = ADAPTER.prepare_models(page.next_page, Secret(SECRET), NOW)
    assert second.url == "https://bedrock.us-east-1.amazonaws.com/inference-profiles?maxResults=1000"
    profiles = models_of(
        {
            "inferenceProfileSummaries": [
                {"inferenceProfileId": "us.x.y", "inferenceProfileName": "US Y", "type": "SYSTEM_DEFINED"},
                {"inferenceProfileId": "a1b2c3", "inferenceProfileArn": ARN, "type": "APPLICATION"},
            ],
            "nextToken": "a+b/c==",
        }
    )
    assert [model.id for model in profiles.models] == ["us.x.y", ARN]
    third = ADAPTER.prepare_models(profiles.next_page, Secret(SECRET), NOW)
    assert third.url.endswith("?maxResults=1000&nextToken=a%2Bb%2Fc%3D%3D")
    assert models_of({"inferenceProfileSummaries": []}).next_page == ""


@pytest.mark.parametrize(
    ("endpoint", "root"),
    [
        ("https://bedrock-runtime-fips.us-east-1.amazonaws.com", "https://bedrock-fips.us-east-1.amazonaws.com"),
        ("https://bedrock-runtime.us-east-1.api.aws/", "https://bedrock.us-east-1.api.aws"),
        ("https://proxy.example/aws/", "https://proxy.example/aws"),
    ],
)
def test_the_list_is_where_the_endpoint_is(endpoint: str, root: str) -> None:
    url = ADAPTER.prepare_models("", Secret({**SECRET, "endpoint": endpoint}), NOW).url
    assert url == f"{root}/foundation-models?byOutputModality=TEXT"


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"modelSummaries":1}', b'{"modelSummaries":[{}]}', b"<html>"])
def test_a_list_of_models_that_cannot_be_read_is_malformed(body: bytes) -> None:
    with pytest.raises(PatchbayError) as refusal:
        ADAPTER.read_models(HttpAnswer(status=200, headers={}, body=body, received_at=NOW))
    assert refusal.value.reason is Reason.UPSTREAM_MALFORMED_RESPONSE
