"""The dialect of Anthropic: what it asks, what it makes of answers, and what its errors mean."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Final

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchbay_server.adapters.anthropic import ADAPTER
from patchbay_server.adapters.protocol import Checks, ListsModels
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.testing.adapter_suite import NOW, AdapterSuite, ErrorCase, ModelSuite, golden_cases, read
from patchbay_server.types import (
    Call,
    Effort,
    Event,
    Finished,
    FinishReason,
    FunctionTool,
    GenerationConfig,
    JsonSchemaFormat,
    MediaPart,
    Message,
    NoticeCode,
    Opened,
    Part,
    PartCompleted,
    Prompt,
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
from patchbay_server.wire.http import Frame, HttpAnswer

GOLDEN: Final = Path(__file__).parents[1] / "golden" / "anthropic"
SECRET: Final = {"api_key": "sk-ant-test-0123456789"}
HELLO: Final = Message(role=Role.USER, parts=(TextPart(text="hello"),))
ADD: Final = FunctionTool(name="add")

# --- what errors mean -------------------------------------------------------------------------------------------------


def error_body(kind: str, message: str = "words of the provider", code: str = "") -> str:
    error: dict[str, Any] = {"type": kind, "message": message}
    if code:
        error["details"] = {"error_code": code}
    return json.dumps({"type": "error", "error": error, "request_id": "req_011"})


def error_case(status: int, kind: str, reason: Reason, message: str = "", code: str = "") -> ErrorCase:
    name = " ".join(filter(None, (str(status), kind, code, message[:20])))
    return ErrorCase(name=name, status=status, body=error_body(kind, message, code), reason=reason)


INVALID: Final = "invalid_request_error"

ERRORS: Final = (
    error_case(401, "authentication_error", Reason.UPSTREAM_CREDENTIAL_REJECTED),
    error_case(403, "permission_error", Reason.UPSTREAM_CREDENTIAL_REJECTED),
    error_case(400, INVALID, Reason.UPSTREAM_CREDENTIAL_REJECTED, code="organization_on_hold"),
    error_case(402, "billing_error", Reason.UPSTREAM_BILLING_EXHAUSTED),
    error_case(402, "billing_error", Reason.UPSTREAM_BILLING_EXHAUSTED, code="linked_organization_spend_limit_reached"),
    error_case(429, "rate_limit_error", Reason.UPSTREAM_BILLING_EXHAUSTED, code="enforced_spend_limit_reached"),
    error_case(429, "rate_limit_error", Reason.UPSTREAM_BILLING_EXHAUSTED, code="contract_spend_limit_reached"),
    error_case(
        400,
        INVALID,
        Reason.UPSTREAM_BILLING_EXHAUSTED,
        "You have reached your specified API usage limits. You will regain access on 2026-12-01 at 00:00 UTC.",
    ),
    error_case(
        400,
        INVALID,
        Reason.UPSTREAM_BILLING_EXHAUSTED,
        "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing to upgrade.",
    ),
    error_case(429, "rate_limit_error", Reason.UPSTREAM_RATE_LIMITED),
    error_case(429, "rate_limit_error", Reason.UPSTREAM_RATE_LIMITED, code="ramp_limit_exceeded"),
    error_case(529, "overloaded_error", Reason.UPSTREAM_UNAVAILABLE),
    error_case(529, "overloaded_error", Reason.UPSTREAM_UNAVAILABLE, code="compaction_unavailable"),
    error_case(500, "api_error", Reason.UPSTREAM_UNAVAILABLE),
    error_case(503, "api_error", Reason.UPSTREAM_UNAVAILABLE, code="cmek_key_unreachable"),
    error_case(400, INVALID, Reason.CONNECTOR_MISCONFIGURED, code="cmek_key_disabled"),
    error_case(504, "timeout_error", Reason.UPSTREAM_UNAVAILABLE),
    error_case(409, "conflict_error", Reason.UPSTREAM_UNAVAILABLE),
    error_case(404, "not_found_error", Reason.MODEL_NOT_FOUND, "model: claude-nought"),
    error_case(413, "request_too_large", Reason.UPSTREAM_REJECTED_REQUEST),
    error_case(400, INVALID, Reason.UPSTREAM_REJECTED_REQUEST, "max_tokens: must be at least 1"),
    error_case(400, INVALID, Reason.UPSTREAM_REJECTED_REQUEST, code="request_body_timeout"),
    error_case(400, INVALID, Reason.CONTEXT_LENGTH_EXCEEDED, "prompt is too long: 205000 tokens > 200000 maximum"),
    error_case(
        400, INVALID, Reason.CONTEXT_LENGTH_EXCEEDED, "input length and `max_tokens` exceed context limit: 1 + 2 > 2"
    ),
    error_case(400, INVALID, Reason.CONTENT_POLICY_VIOLATION, "Output blocked by content filtering policy"),
    # An unspecific type leaves the word to the status.
    error_case(401, INVALID, Reason.UPSTREAM_CREDENTIAL_REJECTED),
    error_case(529, "a_future_error", Reason.UPSTREAM_UNAVAILABLE),
    ErrorCase(name="403 proxy", status=403, body="<html>no</html>", reason=Reason.UPSTREAM_CREDENTIAL_REJECTED),
    ErrorCase(name="404 proxy", status=404, body="<html>no</html>", reason=Reason.CONNECTOR_MISCONFIGURED),
    ErrorCase(name="408", status=408, reason=Reason.UPSTREAM_UNAVAILABLE),
    ErrorCase(name="422", status=422, reason=Reason.UPSTREAM_REJECTED_REQUEST),
    ErrorCase(name="301", status=301, reason=Reason.CONNECTOR_MISCONFIGURED),
)


class TestMostObligingClaude(AdapterSuite):
    """A model of the generation that takes the most: sampling, budgets, forced tools. And all golden transcripts."""

    adapter = ADAPTER
    secret: ClassVar[Mapping[str, Any]] = SECRET
    golden = GOLDEN
    model = "claude-opus-4-6"
    errors: ClassVar[Sequence[ErrorCase]] = ERRORS


class TestNewestClaude(ModelSuite):
    """A model that refuses most knobs: each has to be refused by name."""

    adapter = ADAPTER
    secret: ClassVar[Mapping[str, Any]] = SECRET
    model = "claude-opus-5-5"


class TestOldestClaude(ModelSuite):
    """A model without effort and without adaptive thinking."""

    adapter = ADAPTER
    secret: ClassVar[Mapping[str, Any]] = SECRET
    model = "claude-haiku-4-5"


def explained(status: int, body: str, headers: Mapping[str, str] | None = None) -> PatchbayError:
    return ADAPTER.explain(HttpAnswer(status=status, headers=headers or {}, body=body.encode(), received_at=NOW))


def test_an_error_names_its_code_and_request_and_no_word_of_the_provider() -> None:
    body = error_body("rate_limit_error", "Number of request tokens has exceeded", "ramp_limit_exceeded")
    error = explained(429, body, {"request-id": "req_header", "retry-after": "12"})
    assert error.upstream is not None
    assert error.upstream.provider_code == "ramp_limit_exceeded"
    assert error.upstream.upstream_request_id == "req_header"
    assert error.retry_after_s == 12
    assert "tokens" not in error.message


def test_the_request_id_of_the_body_serves_where_no_header_has_one() -> None:
    error = explained(500, error_body("api_error"))
    assert error.upstream is not None
    assert error.upstream.upstream_request_id == "req_011"


def test_an_exhausted_account_says_nothing_of_a_retry() -> None:
    body = error_body("rate_limit_error", code="contract_spend_limit_reached")
    assert explained(429, body, {"retry-after": "5"}).retry_after_s is None


def test_an_unknown_error_type_is_not_repeated() -> None:
    error = explained(400, error_body("canary_error"))
    assert error.upstream is not None
    assert error.upstream.provider_code == ""


# --- what is asked ----------------------------------------------------------------------------------------------------


def call(*messages: Message, model: str = "claude-opus-5-5", streaming: bool = True, **prompt: Any) -> Call:
    return Call(id="01", model=model, prompt=Prompt(messages=messages or (HELLO,), **prompt), streaming=streaming)


def body_of(asked: Call) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(ADAPTER.prepare(asked, Secret(SECRET), NOW).request.body)
    return body


def headers_of(asked: Call) -> dict[str, str]:
    return dict(ADAPTER.prepare(asked, Secret(SECRET), NOW).request.headers)


def refused(asked: Call) -> tuple[Reason, str]:
    with pytest.raises(PatchbayError) as refusal:
        ADAPTER.prepare(asked, Secret(SECRET), NOW)
    return refusal.value.reason, refusal.value.violations[0].field


def assistant(*parts: Part) -> Message:
    return Message(role=Role.ASSISTANT, parts=parts)


@pytest.mark.parametrize(
    ("model", "max_tokens"),
    [
        ("claude-opus-5-5", 128_000),
        ("claude-opus-4-6", 128_000),
        ("claude-sonnet-4-5-20250929", 64_000),
        ("claude-3-5-haiku-20241022", 4096),
        ("claude-opus-4-20250514", 4096),
        ("claude-opus-7", 128_000),
        ("some-local-model", 4096),
    ],
)
def test_a_call_without_a_limit_gets_the_largest_that_is_known(model: str, max_tokens: int) -> None:
    assert body_of(call(model=model))["max_tokens"] == max_tokens


def with_config(model: str, **config: Any) -> Call:
    return call(model=model, config=GenerationConfig(**config))


def with_reasoning(model: str, **reasoning: Any) -> Call:
    return with_config(model, reasoning=ReasoningConfig(**reasoning))


@pytest.mark.parametrize(
    ("model", "reasoning", "thinking", "effort"),
    [
        ("claude-opus-5-5", {}, None, None),
        ("claude-opus-5-5", {"effort": Effort.LOW}, {"type": "adaptive"}, "low"),
        ("claude-opus-5-5", {"include_text": True}, {"type": "adaptive", "display": "summarized"}, None),
        ("claude-sonnet-5-5", {"effort": Effort.NONE}, {"type": "between_tools"}, None),
        ("claude-haiku-5-5", {"effort": Effort.NONE}, {"type": "disabled"}, None),
        ("claude-opus-5", {"budget_tokens": 0}, {"type": "disabled"}, None),
        ("claude-opus-4-6", {"effort": Effort.MAX}, {"type": "adaptive"}, "max"),
        ("claude-opus-4-6", {"budget_tokens": 1024}, {"type": "enabled", "budget_tokens": 1024}, None),
        ("claude-opus-4-5", {"effort": Effort.HIGH}, None, "high"),
        (
            "claude-haiku-4-5",
            {"budget_tokens": 2000, "include_text": True},
            {"type": "enabled", "budget_tokens": 2000, "display": "summarized"},
            None,
        ),
        ("some-local-model", {"budget_tokens": 8000}, {"type": "enabled", "budget_tokens": 8000}, None),
    ],
)
def test_reasoning_is_asked_for_as_the_model_takes_it(
    model: str, reasoning: dict[str, Any], thinking: dict[str, Any] | None, effort: str | None
) -> None:
    body = body_of(with_reasoning(model, **reasoning))
    assert body.get("thinking") == thinking
    assert body.get("output_config", {}).get("effort") == effort


@pytest.mark.parametrize(
    ("model", "reasoning", "field"),
    [
        ("claude-opus-5-5", {"effort": Effort.NONE}, "effort"),
        ("claude-fable-5", {"effort": Effort.NONE}, "effort"),
        ("claude-mythos-5-2", {"budget_tokens": 0}, "budget_tokens"),
        ("claude-opus-5-5", {"effort": Effort.MINIMAL}, "effort"),
        ("claude-opus-5-5", {"budget_tokens": 4096}, "budget_tokens"),
        ("claude-opus-4-8", {"budget_tokens": 4096}, "budget_tokens"),
        ("claude-opus-4-9", {"budget_tokens": 4096}, "budget_tokens"),
        ("claude-sonnet-4-7", {"budget_tokens": 4096}, "budget_tokens"),
        ("claude-opus-4-6", {"effort": Effort.XHIGH}, "effort"),
        ("claude-opus-4-5", {"effort": Effort.MAX}, "effort"),
        ("claude-sonnet-4-5", {"effort": Effort.LOW}, "effort"),
        ("claude-sonnet-4-5", {"include_text": True}, "include_text"),
        ("claude-sonnet-4-5", {"budget_tokens": 1023}, "budget_tokens"),
        ("claude-sonnet-4-5", {"budget_tokens": 64_000}, "budget_tokens"),
    ],
)
def test_reasoning_that_the_model_lacks_is_refused_by_name(model: str, reasoning: dict[str, Any], field: str) -> None:
    assert refused(with_reasoning(model, **reasoning)) == (Reason.FEATURE_UNSUPPORTED, f"config.reasoning.{field}")


@pytest.mark.parametrize("model", ["claude-opus-4-7", "claude-opus-5", "claude-sonnet-5-5", "claude-haiku-5-5"])
@pytest.mark.parametrize(("knob", "value"), [("temperature", 0.7), ("top_p", 0.5), ("top_k", 1)])
def test_models_without_sampling_refuse_it_by_name(model: str, knob: str, value: float) -> None:
    assert refused(with_config(model, **{knob: value})) == (Reason.FEATURE_UNSUPPORTED, f"config.{knob}")


def test_the_default_temperature_is_left_out_where_the_field_is_refused() -> None:
    assert "temperature" not in body_of(with_config("claude-opus-5-5", temperature=1.0, top_p=1.0))


def test_sampling_and_thinking_exclude_each_other() -> None:
    config = {"temperature": 0.5, "reasoning": ReasoningConfig(budget_tokens=2048)}
    assert refused(with_config("claude-sonnet-4-5", **config)) == (Reason.FEATURE_UNSUPPORTED, "config.temperature")


def test_the_4_5_generation_takes_one_way_of_sampling() -> None:
    asked = with_config("claude-haiku-4-5", temperature=0.5, top_p=0.5)
    assert refused(asked) == (Reason.FEATURE_UNSUPPORTED, "config.top_p")


def test_a_temperature_above_one_is_refused() -> None:
    assert refused(with_config("claude-opus-4-6", temperature=1.5)) == (
        Reason.FEATURE_UNSUPPORTED,
        "config.temperature",
    )


@pytest.mark.parametrize(
    ("asked", "version"),
    [
        (call(model="claude-opus-4-6"), "2026-10-21"),
        (with_config("claude-opus-4-6", top_k=3), "2023-06-01"),
        (call(model="claude-opus-4-6", provider_options_json='{"temperature":0.1}'), "2023-06-01"),
        (with_config("claude-opus-5-5", temperature=1.0), "2026-10-21"),
    ],
)
def test_the_version_is_the_newest_that_takes_the_request(asked: Call, version: str) -> None:
    assert headers_of(asked)["anthropic-version"] == version


FORCED: Final = (ToolChoice(mode=ToolMode.REQUIRED), ToolChoice(function_name="add"))


@pytest.mark.parametrize("choice", FORCED)
@pytest.mark.parametrize("model", ["claude-opus-5-5", "claude-sonnet-5-5", "claude-fable-5-1", "claude-mythos-5-2"])
def test_models_that_cannot_be_forced_refuse_the_choice(model: str, choice: ToolChoice) -> None:
    assert refused(call(model=model, tools=(ADD,), tool_choice=choice)) == (Reason.FEATURE_UNSUPPORTED, "tool_choice")


@pytest.mark.parametrize("choice", FORCED)
def test_thinking_excludes_a_forced_tool_on_older_models(choice: ToolChoice) -> None:
    thinks = GenerationConfig(reasoning=ReasoningConfig(budget_tokens=2048))
    asked = call(model="claude-opus-4-6", tools=(ADD,), tool_choice=choice, config=thinks)
    assert refused(asked) == (Reason.FEATURE_UNSUPPORTED, "tool_choice")


@pytest.mark.parametrize(
    ("choice", "parallel", "expected"),
    [
        (None, None, None),
        (ToolChoice(mode=ToolMode.AUTO), None, {"type": "auto"}),
        (ToolChoice(mode=ToolMode.NONE), False, {"type": "none"}),
        (ToolChoice(mode=ToolMode.REQUIRED), None, {"type": "any"}),
        (ToolChoice(function_name="add"), False, {"type": "tool", "name": "add", "disable_parallel_tool_use": True}),
        (None, False, {"type": "auto", "disable_parallel_tool_use": True}),
        (None, True, {"type": "auto", "disable_parallel_tool_use": False}),
    ],
)
def test_a_tool_choice_and_its_parallel_calls(
    choice: ToolChoice | None, parallel: bool | None, expected: dict[str, Any] | None
) -> None:
    config = GenerationConfig(parallel_tool_calls=parallel)
    asked = call(model="claude-haiku-5-5", tools=(ADD,), tool_choice=choice, config=config)
    assert body_of(asked).get("tool_choice") == expected


def test_without_tools_nothing_is_said_of_choosing_them() -> None:
    config = GenerationConfig(parallel_tool_calls=False)
    assert "tool_choice" not in body_of(call(tool_choice=ToolChoice(mode=ToolMode.AUTO), config=config))


SYSTEM: Final = Message(role=Role.SYSTEM, parts=(TextPart(text="in French"),))


@pytest.mark.parametrize("model", ["claude-opus-4-7", "claude-sonnet-4-6", "claude-haiku-4-5"])
def test_older_models_take_system_messages_at_the_start_only(model: str) -> None:
    assert refused(call(SYSTEM, HELLO, SYSTEM, model=model)) == (Reason.FEATURE_UNSUPPORTED, "messages[2]")


@pytest.mark.parametrize("model", ["claude-opus-4-8", "claude-sonnet-5", "claude-haiku-5-5", "claude-fable-5"])
def test_newer_models_take_system_messages_within_the_conversation(model: str) -> None:
    roles = [message["role"] for message in body_of(call(SYSTEM, HELLO, SYSTEM, model=model))["messages"]]
    assert roles == ["user", "system"]


def test_a_conversation_of_system_messages_alone_is_refused() -> None:
    assert refused(call(SYSTEM)) == (Reason.INVALID_REQUEST, "messages")


@pytest.mark.parametrize("model", ["claude-opus-4-6", "claude-opus-5-5"])
def test_an_answer_to_be_continued_is_refused_where_the_model_cannot(model: str) -> None:
    asked = call(HELLO, assistant(TextPart(text="The answer is")), model=model)
    assert refused(asked) == (Reason.FEATURE_UNSUPPORTED, "messages[1]")


def test_an_answer_to_be_continued_is_sent_where_the_model_can() -> None:
    body = body_of(call(HELLO, assistant(TextPart(text="The answer is")), model="claude-haiku-4-5"))
    assert body["messages"][-1] == {"role": "assistant", "content": [{"type": "text", "text": "The answer is"}]}


def test_consecutive_messages_of_one_role_stay_apart_and_in_order() -> None:
    other = Message(role=Role.USER, parts=(TextPart(text="again"),))
    messages = body_of(call(HELLO, other, HELLO))["messages"]
    assert [message["content"][0]["text"] for message in messages] == ["hello", "again", "hello"]


STATE: Final = (
    b'{ "type":"thinking", "signature":"c2ln",  "thinking":"h\\u006d", "future": [1.0, 12345678901234567890] }'
)


def test_a_thinking_block_goes_back_byte_for_byte() -> None:
    asked = call(HELLO, assistant(ReasoningPart(text="hm", provider_state=STATE), TextPart(text="hi")), HELLO)
    assert STATE in ADAPTER.prepare(asked, Secret(SECRET), NOW).request.body


@pytest.mark.parametrize(
    "state",
    [
        b"",
        b"c2ln",
        b"\xff",
        b'{"type":"text","text":"injected"}',
        b'{"type":"tool_result"}',
        b"[]",
        b'{"type":"thinking"',
    ],
)
def test_reasoning_that_is_not_the_provider_s_is_left_out_with_a_notice(state: bytes) -> None:
    asked = call(HELLO, assistant(ReasoningPart(text="hm", provider_state=state)), HELLO)
    prepared = ADAPTER.prepare(asked, Secret(SECRET), NOW)
    roles = [message["role"] for message in json.loads(prepared.request.body)["messages"]]
    assert roles == ["user", "user"]
    assert [(n.code, n.field) for n in prepared.notices] == [
        (NoticeCode.PROVIDER_STATE_LEFT_OUT, "messages[1].parts[0].reasoning")
    ]


def test_another_provider_s_signature_of_a_tool_call_is_left_out_with_a_notice() -> None:
    signed = ToolCallPart(id="call_1", name="add", provider_state=b"c2ln")
    asked = call(HELLO, assistant(signed), Message(role=Role.TOOL, parts=(ToolResultPart(tool_call_id="call_1"),)))
    (notice,) = ADAPTER.prepare(asked, Secret(SECRET), NOW).notices
    assert (notice.code, notice.field) == (
        NoticeCode.PROVIDER_STATE_LEFT_OUT,
        "messages[1].parts[0].tool_call.provider_state",
    )


def test_hints_that_have_no_place_are_left_out_with_a_notice() -> None:
    image = MediaPart(mime_type="image/png", data=b"\x89PNG", file_name="cat.png")
    thought = ReasoningPart(provider_state=STATE, cache_breakpoint=True)
    asked = call(Message(role=Role.USER, parts=(image,)), assistant(thought), HELLO)
    notices = ADAPTER.prepare(asked, Secret(SECRET), NOW).notices
    assert [(notice.code, notice.field) for notice in notices] == [
        (NoticeCode.FIELD_DROPPED, "messages[0].parts[0].media.file_name"),
        (NoticeCode.FIELD_DROPPED, "messages[1].parts[0].cache_breakpoint"),
    ]


def test_a_foreign_tool_id_is_the_same_in_call_and_result_and_unlike_others() -> None:
    foreign = ["call|1/ä", "call|2/ä", "functions.add:0"]
    calls = assistant(*(ToolCallPart(id=name, name="add") for name in foreign))
    results = (Message(role=Role.TOOL, parts=(ToolResultPart(tool_call_id=name),)) for name in reversed(foreign))
    messages = body_of(call(HELLO, calls, *results, tools=(ADD,)))["messages"]
    called = [block["id"] for block in messages[1]["content"]]
    answered = [block["tool_use_id"] for block in messages[2]["content"]]
    assert called == answered[::-1]
    assert len(set(called)) == len(foreign)
    assert all(name.replace("_", "").isalnum() and name.isascii() for name in called)


@pytest.mark.parametrize("text", ["", " \n"])
@pytest.mark.parametrize("role", [Role.USER, Role.SYSTEM])
def test_a_text_without_a_word_is_refused_by_name(text: str, role: Role) -> None:
    asked = call(Message(role=role, parts=(TextPart(text=text),)), HELLO)
    assert refused(asked) == (Reason.INVALID_REQUEST, "messages[0].parts[0].text")


def test_what_the_model_or_a_tool_wrote_without_a_word_is_left_out_with_a_notice() -> None:
    used = assistant(TextPart(text="\n\n"), ToolCallPart(id="a", name="add", arguments_json="{}"))
    empty = Message(role=Role.TOOL, parts=(ToolResultPart(tool_call_id="a", parts=(TextPart(text=""),)),))
    prepared = ADAPTER.prepare(call(HELLO, used, empty), Secret(SECRET), NOW)
    assert [(notice.code, notice.field) for notice in prepared.notices] == [
        (NoticeCode.FIELD_DROPPED, "messages[2].parts[0].tool_result.parts[0].text"),
        (NoticeCode.FIELD_DROPPED, "messages[1].parts[0].text"),
    ][::-1]
    said = json.loads(prepared.request.body)["messages"]
    assert [block["type"] for block in said[1]["content"]] == ["tool_use"]
    assert said[2]["content"] == [{"type": "tool_result", "tool_use_id": "a"}]


def test_a_blank_beside_words_stays() -> None:
    said = (TextPart(text=" "), TextPart(text="a"), TextPart(text=""))
    messages = body_of(call(HELLO, assistant(*said), HELLO))["messages"]
    assert [block["text"] for block in messages[1]["content"]] == [" ", "a"]


def test_an_image_is_known_by_the_name_that_people_give_its_type_too() -> None:
    picture = Message(role=Role.USER, parts=(MediaPart(mime_type="image/jpg", data=b"x"),))
    (block,) = body_of(call(picture))["messages"][0]["content"]
    assert block["source"]["media_type"] == "image/jpeg"


def test_a_refusal_goes_back_as_text_and_an_empty_one_not_at_all() -> None:
    body = body_of(call(HELLO, assistant(RefusalPart(text="no")), assistant(RefusalPart(text="")), HELLO))
    assert [message["content"] for message in body["messages"][1:-1]] == [[{"type": "text", "text": "no"}]]


@pytest.mark.parametrize(
    ("part", "field"),
    [
        (MediaPart(mime_type="audio/wav", data=b"RIFF"), "media.mime_type"),
        (MediaPart(mime_type="image/tiff", data=b"II"), "media.mime_type"),
        (MediaPart(uri="https://example.com/a"), "media.mime_type"),
        (MediaPart(provider_file_id="file_1"), "media.mime_type"),
        (MediaPart(mime_type="image/png", uri="gs://bucket/a.png"), "media.uri"),
        (MediaPart(mime_type="image/png", uri="http://example.com/a.png"), "media.uri"),
        (MediaPart(mime_type="text/plain", uri="https://example.com/a.txt"), "media.uri"),
    ],
)
def test_media_that_the_provider_cannot_take_is_refused_by_name(part: MediaPart, field: str) -> None:
    asked = call(Message(role=Role.USER, parts=(part,)))
    assert refused(asked) == (Reason.FEATURE_UNSUPPORTED, f"messages[0].parts[0].{field}")


def test_media_in_an_assistant_message_is_refused() -> None:
    asked = call(HELLO, assistant(MediaPart(mime_type="application/pdf", data=b"%PDF")), HELLO)
    assert refused(asked) == (Reason.FEATURE_UNSUPPORTED, "messages[1].parts[0].media")


def test_a_text_document_has_to_be_utf_8() -> None:
    asked = call(Message(role=Role.USER, parts=(MediaPart(mime_type="text/plain", data=b"\xff"),)))
    assert refused(asked) == (Reason.INVALID_REQUEST, "messages[0].parts[0].media.data")


def test_the_fifth_cache_mark_is_refused() -> None:
    marked = Message(role=Role.USER, parts=tuple(TextPart(text=str(i), cache_breakpoint=True) for i in range(5)))
    assert refused(call(marked)) == (Reason.FEATURE_UNSUPPORTED, "messages[0].parts[4].cache_breakpoint")


def test_a_participant_s_name_is_refused() -> None:
    named = Message(role=Role.USER, parts=(TextPart(text="hi"),), author_name="ann")
    assert refused(call(HELLO, named)) == (Reason.FEATURE_UNSUPPORTED, "messages[1].author_name")


def test_a_schema_cannot_be_a_mere_wish() -> None:
    wish = JsonSchemaFormat(name="a", schema_json="{}", strict=False)
    assert refused(call(response_format=wish)) == (Reason.FEATURE_UNSUPPORTED, "response_format.json_schema.strict")


def test_penalties_of_zero_are_no_penalties() -> None:
    assert body_of(with_config("claude-opus-5-5", presence_penalty=0.0, frequency_penalty=0.0)) == body_of(call())


@pytest.mark.parametrize("options", ['{"system":"other"}', '{"betas":"a"}', '{"betas":["a b"]}', '{"betas":[]}'])
def test_options_that_replace_the_conversation_or_break_headers_are_refused(options: str) -> None:
    assert refused(call(provider_options_json=options)) == (Reason.INVALID_REQUEST, "provider_options_json")


# --- what belongs elsewhere -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "endpoint", "right_type"),
    [
        ("anthropic/claude-opus-5.5", "", "openrouter"),
        ("us.anthropic.claude-opus-4-6-v1", "", "bedrock"),
        ("claude-opus-5-5", "https://openrouter.ai/api/v1", "openrouter"),
        ("claude-opus-5-5", "https://api.openai.com/v1", "openai"),
        ("claude-opus-5-5", "https://res.openai.azure.com./openai/v1", "azure_openai"),
    ],
)
def test_what_belongs_to_another_type_is_refused_with_its_name(model: str, endpoint: str, right_type: str) -> None:
    with pytest.raises(PatchbayError) as refusal:
        ADAPTER.check_model(model, Secret({**SECRET, "endpoint": endpoint}))
    assert refusal.value.reason is Reason.CONNECTOR_MISCONFIGURED
    assert f"`{right_type}`" in refusal.value.message


@pytest.mark.parametrize(
    "endpoint", ["", "https://api.anthropic.com/v1", "https://proxy.example.com/v1", "http://[::1"]
)
def test_a_model_of_its_own_is_accepted_at_any_address_that_is_not_another_provider_s(endpoint: str) -> None:
    ADAPTER.check_model("claude-opus-5-5", Secret({**SECRET, "endpoint": endpoint}))


# --- what is read -----------------------------------------------------------------------------------------------------


def frame(event: Mapping[str, Any], name: str | None = None) -> Frame:
    return Frame(data=json.dumps(event).encode(), event=event["type"] if name is None else name)


START: Final = frame(
    {"type": "message_start", "message": {"id": "msg_1", "model": "claude-x", "usage": {"input_tokens": 1}}}
)
STOP: Final = frame({"type": "message_stop"})


def block_start(index: Any, **block: Any) -> Frame:
    return frame({"type": "content_block_start", "index": index, "content_block": block})


def block_delta(index: Any, **delta: Any) -> Frame:
    return frame({"type": "content_block_delta", "index": index, "delta": delta})


def block_stop(index: Any) -> Frame:
    return frame({"type": "content_block_stop", "index": index})


def end(stop_reason: Any, **usage: Any) -> Frame:
    return frame({"type": "message_delta", "delta": {"stop_reason": stop_reason}, "usage": usage})


def streamed(*frames: Frame) -> list[Event]:
    events, error = read(ADAPTER.reader(call()), frames)
    assert error is None, error
    return events


def failed(*frames: Frame) -> Reason:
    _, error = read(ADAPTER.reader(call()), frames)
    assert error is not None
    return error.reason


def parts_of(events: Sequence[Event]) -> list[Part]:
    return [event.part for event in events if isinstance(event, PartCompleted)]


def finish_of(events: Sequence[Event]) -> Finished:
    assert isinstance(events[-1], Finished)
    return events[-1]


TEXT: Final = (block_start(0, type="text", text=""), block_delta(0, type="text_delta", text="hi"), block_stop(0))


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ("end_turn", FinishReason.STOP),
        ("stop_sequence", FinishReason.STOP),
        ("max_tokens", FinishReason.MAX_OUTPUT_TOKENS),
        ("model_context_window_exceeded", FinishReason.CONTEXT_LENGTH),
        ("tool_use", FinishReason.TOOL_CALLS),
        ("pause_turn", FinishReason.PAUSE),
        ("compaction", FinishReason.PAUSE),
        ("refusal", FinishReason.REFUSAL),
        ("a_future_reason", FinishReason.OTHER),
        (None, FinishReason.OTHER),
        (7, FinishReason.OTHER),
    ],
)
def test_stop_reasons_keep_the_provider_s_word_beside_ours(raw: Any, reason: FinishReason) -> None:
    finished = finish_of(streamed(START, *TEXT, end(raw), STOP))
    assert finished.finish_reason is reason
    assert finished.provider_finish_reason == (raw if isinstance(raw, str) else "")


def test_a_natural_end_with_tool_calls_waits_for_them() -> None:
    tool = (block_start(0, type="tool_use", id="toolu_1", name="now", input={}), block_stop(0))
    assert finish_of(streamed(START, *tool, end("end_turn"), STOP)).finish_reason is FinishReason.TOOL_CALLS


def test_unusable_counts_do_not_cost_the_stream() -> None:
    usage = {
        "input_tokens": "12",
        "cache_read_input_tokens": -1,
        "cache_creation_input_tokens": True,
        "output_tokens": 4.0,
        "output_tokens_details": 3,
    }
    assert finish_of(streamed(START, *TEXT, end("end_turn", **usage), STOP)).usage == Usage(
        input_tokens=1, output_tokens=4, total_tokens=5
    )


def test_an_answer_without_counts_has_no_usage() -> None:
    opening = frame({"type": "message_start", "message": {"usage": None}})
    events = streamed(opening, *TEXT, frame({"type": "message_delta", "delta": {"stop_reason": "end_turn"}}), STOP)
    assert finish_of(events).usage is None
    assert not any(isinstance(event, UsageUpdated) for event in events)


@pytest.mark.parametrize("index", [None, "0", 1.5, []])
def test_an_unusable_index_means_the_newest_block(index: Any) -> None:
    events = streamed(
        START,
        block_start(index, type="text", text=""),
        block_delta(index, type="text_delta", text="a"),
        block_start(index, type="text", text="b"),
        block_delta(index, type="text_delta", text="c"),
        block_stop(index),
        end("end_turn"),
        STOP,
    )
    assert parts_of(events) == [TextPart(text="a"), TextPart(text="bc")]


def test_blocks_that_are_never_closed_end_with_the_message() -> None:
    assert parts_of(streamed(START, *TEXT[:2], end("end_turn"), STOP)) == [TextPart(text="hi")]


def test_interleaved_blocks_are_kept_apart() -> None:
    events = streamed(
        START,
        block_start(0, type="tool_use", id="toolu_1", name="a", input={}),
        block_start(1, type="tool_use", id="toolu_2", name="b", input={}),
        block_delta(0, type="input_json_delta", partial_json='{"x":'),
        block_delta(1, type="input_json_delta", partial_json='{"y":2}'),
        block_delta(0, type="input_json_delta", partial_json="1}"),
        block_stop(1),
        block_stop(0),
        end("tool_use"),
        STOP,
    )
    calls = {part.name: part.arguments_json for part in parts_of(events) if isinstance(part, ToolCallPart)}
    assert calls == {"a": '{"x":1}', "b": '{"y":2}'}


def test_a_tool_call_without_an_id_gets_one_and_without_a_name_is_malformed() -> None:
    nameless = block_start(0, type="tool_use", id="toolu_1", name=None, input={})
    assert failed(START, nameless) is Reason.UPSTREAM_MALFORMED_RESPONSE
    without_id = block_start(0, type="tool_use", name="now", input={})
    (part,) = parts_of(streamed(START, without_id, block_stop(0), end("tool_use"), STOP))
    assert isinstance(part, ToolCallPart)
    assert part.id


@pytest.mark.parametrize("text", ["[1]", "3", '"a"', "true"])
def test_arguments_that_are_json_but_no_object_are_malformed(text: str) -> None:
    tool = block_start(0, type="tool_use", id="toolu_1", name="now", input={})
    arguments = block_delta(0, type="input_json_delta", partial_json=text)
    assert failed(START, tool, arguments, block_stop(0)) is Reason.UPSTREAM_MALFORMED_RESPONSE


def test_a_server_tool_that_was_cut_off_leaves_nothing_to_send_back() -> None:
    tool = block_start(0, type="server_tool_use", id="srvtoolu_1", name="web_search", input={})
    arguments = block_delta(0, type="input_json_delta", partial_json='{"query":"a')
    (part,) = parts_of(streamed(START, tool, arguments, block_stop(0), end("max_tokens"), STOP))
    assert part == ReasoningPart()


@pytest.mark.parametrize(
    ("text", "arguments"),
    [('""', "{}"), ("null", "{}"), ("{ }", "{ }"), ('{"a": 1}', '{"a": 1}'), ('"{\\"a\\":1}"', '{"a":1}')],
)
def test_an_input_that_is_whole_at_its_start_needs_no_pieces(text: str, arguments: str) -> None:
    start = (
        '{"type":"content_block_start","index":0,"content_block":{"type":"tool_use","id":"t","name":"n","input":%s}}'
    )
    events = streamed(START, Frame(data=(start % text).encode()), block_stop(0), end("tool_use"), STOP)
    assert parts_of(events) == [ToolCallPart(id="t", name="n", arguments_json=arguments)]


def test_pieces_are_the_input_where_the_start_has_one_too() -> None:
    tool = block_start(0, type="tool_use", id="t", name="n", input={"a": 0})
    pieces = (block_delta(0, type="input_json_delta", partial_json=text) for text in ("", '{"a', '": 1}'))
    (part,) = parts_of(streamed(START, tool, *pieces, block_stop(0), end("tool_use"), STOP))
    assert part == ToolCallPart(id="t", name="n", arguments_json='{"a": 1}')


@pytest.mark.parametrize(
    "block",
    [
        {"type": "container_upload", "file_id": "file_1"},
        {"type": "fallback", "from": {"model": "a"}, "to": {"model": "b"}, "trigger": {"type": "refusal"}},
        {"type": "mcp_tool_listing", "mcp_server_name": "s", "tools": []},
        {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": [{"url": "u"}], "caller": {}},
        {"type": "code_execution_tool_result", "tool_use_id": "srvtoolu_1", "content": {"stdout": ""}},
        {"type": "mcp_tool_result", "tool_use_id": "mcptoolu_1", "is_error": False, "content": []},
        {"type": "redacted_thinking", "data": "ZW5j"},
        {"type": "compaction", "content": None},
    ],
)
def test_blocks_of_the_provider_s_own_come_back_unchanged(block: dict[str, Any]) -> None:
    (part,) = parts_of(streamed(START, block_start(0, **block), block_stop(0), end("pause_turn"), STOP))
    assert isinstance(part, ReasoningPart)
    assert json.loads(part.provider_state) == block
    sent = body_of(call(HELLO, assistant(part), model="some-local-model"))["messages"][1]["content"]
    assert sent == [block]


def test_a_compaction_comes_back_with_its_summary() -> None:
    start = block_start(0, type="compaction", content=None, signature="c2ln")
    summary = (
        block_delta(0, type="compaction_delta", content="so ", encrypted_content=None),
        block_delta(0, type="compaction_delta", content="far", encrypted_content="ZW5j"),
    )
    (part,) = parts_of(streamed(START, start, *summary, block_stop(0), end("compaction"), STOP))
    assert isinstance(part, ReasoningPart)
    assert json.loads(part.provider_state) == {
        "type": "compaction",
        "content": "so far",
        "encrypted_content": "ZW5j",
        "signature": "c2ln",
    }


def test_blocks_and_deltas_that_nobody_knows_are_passed_over() -> None:
    unknown = (block_start(0, type="hologram", beam=1), block_delta(0, type="beam_delta", beam=2), block_stop(0))
    text = (
        block_start(1, type="text", text="", citations=[]),
        block_delta(1, type="text_delta", text="hi"),
        block_delta(1, type="citations_delta", citation={"type": "web_search_result_location", "url": "u"}),
        block_delta(1, type="input_json_delta", partial_json="{"),
        block_stop(1),
    )
    events = streamed(START, *unknown, *text, frame({"type": "message_hint"}), end("end_turn"), STOP)
    assert parts_of(events) == [TextPart(text="hi")]


def test_unknown_members_of_a_thinking_block_are_kept() -> None:
    thinking = block_start(0, type="thinking", thinking="", signature="", future={"a": [1]})
    signature = block_delta(0, type="signature_delta", signature="c2ln")
    (part,) = parts_of(streamed(START, thinking, signature, block_stop(0), end("end_turn"), STOP))
    assert isinstance(part, ReasoningPart)
    assert json.loads(part.provider_state) == {
        "type": "thinking",
        "thinking": "",
        "signature": "c2ln",
        "future": {"a": [1]},
    }


def test_a_refusal_without_words_names_its_category() -> None:
    details = {"type": "refusal", "category": "cyber", "explanation": None}
    ending = frame({"type": "message_delta", "delta": {"stop_reason": "refusal", "stop_details": details}})
    assert parts_of(streamed(START, ending, STOP)) == [RefusalPart(text="cyber")]


def test_a_piece_of_a_block_that_never_began_is_malformed() -> None:
    assert failed(START, block_delta(3, type="text_delta", text="hi")) is Reason.UPSTREAM_MALFORMED_RESPONSE


def test_what_the_opening_tells_already_is_part_of_the_answer() -> None:
    ran = {"type": "code_execution_tool_result", "tool_use_id": "srvtoolu_1", "content": {"stdout": "7"}}
    called = {"type": "tool_use", "id": "toolu_1", "name": "add", "input": {"a": 1}}
    message = {"id": "msg_1", "type": "message", "content": [ran, called], "stop_reason": "tool_use"}
    events = streamed(frame({"type": "message_start", "message": message}), STOP)
    kept, part = parts_of(events)
    assert isinstance(kept, ReasoningPart)
    assert json.loads(kept.provider_state) == ran
    assert part == ToolCallPart(id="toolu_1", name="add", arguments_json='{"a": 1}')
    assert finish_of(events).finish_reason is FinishReason.TOOL_CALLS


def test_an_opening_that_comes_twice_opens_once() -> None:
    events = streamed(START, START, *TEXT, end("end_turn", output_tokens=2), STOP)
    assert [event for event in events if isinstance(event, Opened)] == events[:1]
    assert parts_of(events) == [TextPart(text="hi")]


def test_a_stream_without_its_opening_is_opened_all_the_same() -> None:
    events = streamed(*TEXT, end("end_turn"), STOP)
    assert events[:2] == [Opened(), TextDelta(0, "hi")]


@pytest.mark.parametrize(
    "frames",
    [
        (),
        (frame({"type": "ping"}),),
        (STOP,),
        (Frame(data=b"[DONE]"),),
        (Frame(data=b""), Frame(data=b" ")),
        (Frame(data=b" \n", whole=True),),
    ],
)
def test_a_stream_that_holds_nothing_is_empty(frames: tuple[Frame, ...]) -> None:
    assert failed(*frames) is Reason.UPSTREAM_EMPTY_STREAM


def test_an_end_marker_that_ends_nothing_is_no_answer() -> None:
    assert failed(START, STOP) is Reason.UPSTREAM_EMPTY_STREAM


def test_an_empty_answer_that_the_model_chose_to_give_is_one() -> None:
    assert parts_of(streamed(START, end("end_turn"), STOP)) == []


@pytest.mark.parametrize("data", [b"{", b"[]", b'"text"', b"null", b"\xff"])
@pytest.mark.parametrize("name", ["message", "message_start", "content_block_delta", "message_delta", "error"])
def test_data_that_is_no_object_is_malformed(name: str, data: bytes) -> None:
    assert failed(START, Frame(data=data, event=name)) is Reason.UPSTREAM_MALFORMED_RESPONSE


def test_an_error_without_an_event_name_is_that_error() -> None:
    unnamed = Frame(data=b'{"error":{"type":"authentication_error","message":"no"}}')
    assert failed(START, unnamed) is Reason.UPSTREAM_CREDENTIAL_REJECTED


def test_an_error_inside_a_stream_tells_its_code_and_request() -> None:
    _, error = read(ADAPTER.reader(call()), [Frame(data=error_body("overloaded_error").encode(), event="error")])
    assert error is not None
    assert error.upstream is not None
    assert (error.upstream.provider_code, error.upstream.upstream_request_id) == ("overloaded_error", "req_011")


@pytest.mark.parametrize("streaming", [True, False])
def test_a_whole_error_with_status_200_is_that_error(streaming: bool) -> None:
    whole = Frame(data=error_body("rate_limit_error").encode(), whole=True)
    _, error = read(ADAPTER.reader(call(streaming=streaming)), [whole])
    assert error is not None
    assert error.reason is Reason.UPSTREAM_RATE_LIMITED


def test_more_blocks_than_an_answer_has_are_malformed() -> None:
    reader = ADAPTER.reader(call())
    blocks = (block_start(i, type="hologram", beams="x") for i in range(5000))
    _, error = read(reader, [START, *blocks])
    assert error is not None
    assert error.reason is Reason.UPSTREAM_MALFORMED_RESPONSE


# --- answers without trust --------------------------------------------------------------------------------------------

JUNK: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FRAMES: Final = [case.frames() for case in golden_cases(GOLDEN, SECRET)]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, member in inner for place in places(member, (*path, key)))]


def replaced(value: Any, path: tuple[Any, ...], junk: Any) -> Any:
    if not path:
        return junk
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], junk)
    return copy


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_any_value_in_any_place_of_an_answer_is_read_or_refused(data: st.DataObject) -> None:
    frames = list(data.draw(st.sampled_from(FRAMES)))
    position = data.draw(st.integers(0, len(frames) - 1))
    event = json.loads(frames[position].data)
    path = data.draw(st.sampled_from(places(event)))
    changed = json.dumps(replaced(event, path, data.draw(JUNK))).encode()
    frames[position] = msgspec.structs.replace(frames[position], data=changed)
    for streaming in (True, False):
        read(ADAPTER.reader(call(streaming=streaming)), frames)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_byte_of_a_whole_answer_may_be_wrong(data: st.DataObject) -> None:
    body = data.draw(st.sampled_from([case.body for case in golden_cases(GOLDEN, SECRET) if case.body]))
    position = data.draw(st.integers(0, len(body) - 1))
    changed = body[:position] + bytes([data.draw(st.integers(0, 255))]) + body[position + 1 :]
    read(ADAPTER.reader(call(streaming=False)), [Frame(data=changed, whole=True)])


@given(junk=JUNK, status=st.integers(300, 599))
def test_any_error_body_is_explained(junk: Any, status: int) -> None:
    for body in (junk, {"error": junk}, {"error": {"type": junk, "message": junk, "details": {"error_code": junk}}}):
        assert explained(status, json.dumps(body)).upstream is not None


# --- abilities beside calls -------------------------------------------------------------------------------------------


def test_it_checks_and_lists() -> None:
    assert isinstance(ADAPTER, Checks)
    assert isinstance(ADAPTER, ListsModels)


@pytest.mark.parametrize(
    ("model", "path"),
    [("claude-opus-5-5", "models/claude-opus-5-5"), ("", "models?limit=1"), ("a/b?c", "models/a%2Fb%3Fc")],
)
def test_the_check_reads_one_model_and_costs_nothing(model: str, path: str) -> None:
    request = ADAPTER.prepare_check(model, Secret(SECRET), NOW)
    assert (request.method, request.url) == ("GET", f"https://api.anthropic.com/v1/{path}")
    assert dict(request.headers)["x-api-key"] == SECRET["api_key"]


def test_models_are_listed_page_by_page() -> None:
    first = ADAPTER.prepare_models("", Secret(SECRET), NOW)
    assert first.url == "https://api.anthropic.com/v1/models?limit=1000"
    entry = {
        "id": "claude-opus-5-5",
        "type": "model",
        "display_name": "Claude Opus 5.5",
        "created_at": "2026-09-22T00:00:00Z",
        "retires_at": None,
        "max_input_tokens": 1_000_000,
        "max_tokens": 128_000,
        "capabilities": {"batch": {"supported": True}},
    }
    old = {"id": "claude-x", "created_at": "1970-01-01T00:00:00Z", "max_tokens": None, "display_name": 3}
    body = json.dumps({"data": [entry, old], "has_more": True, "first_id": "a", "last_id": "claude x"}).encode()
    page = ADAPTER.read_models(HttpAnswer(status=200, headers={}, body=body, received_at=NOW))
    assert page.next_page == "claude x"
    newest, oldest = page.models
    assert (newest.id, newest.display_name, newest.owned_by) == ("claude-opus-5-5", "Claude Opus 5.5", "anthropic")
    assert newest.created_at == datetime(2026, 9, 22, tzinfo=UTC)
    assert (newest.max_input_tokens, newest.max_output_tokens) == (1_000_000, 128_000)
    assert (oldest.created_at, oldest.display_name, oldest.max_output_tokens) == (None, "", None)
    second = ADAPTER.prepare_models(page.next_page, Secret(SECRET), NOW)
    assert second.url.endswith("&after_id=claude%20x")


@pytest.mark.parametrize("body", [b"", b"[]", b'{"data":1}', b'{"data":[{"id":1}]}', b"<html>"])
def test_a_list_of_models_that_cannot_be_read_is_malformed(body: bytes) -> None:
    with pytest.raises(PatchbayError) as refusal:
        ADAPTER.read_models(HttpAnswer(status=200, headers={}, body=body, received_at=NOW))
    assert refusal.value.reason is Reason.UPSTREAM_MALFORMED_RESPONSE


def test_the_last_page_has_no_next() -> None:
    body = b'{"data":[],"has_more":false,"last_id":"claude-x"}'
    assert ADAPTER.read_models(HttpAnswer(status=200, headers={}, body=body, received_at=NOW)).next_page == ""


@pytest.mark.parametrize("streaming", [True, False])
def test_an_answer_that_holds_nothing_but_its_marker_is_empty(streaming: bool) -> None:
    message = {"type": "message", "id": "m", "content": [], "stop_reason": None, "usage": {"input_tokens": 3}}
    frames = [
        Frame(data=json.dumps({"type": "message_start", "message": message}).encode()),
        Frame(data=b'{"type":"message_stop"}'),
    ]
    whole = [Frame(data=json.dumps(message).encode(), whole=True)]
    _, error = read(ADAPTER.reader(call(streaming=streaming)), frames if streaming else whole)
    assert error is not None
    assert error.reason is Reason.UPSTREAM_EMPTY_STREAM
