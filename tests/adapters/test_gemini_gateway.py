"""Gemini behind the whole gateway, over real sockets: the way of a signature, of an error and of a broken stream."""

import json
from typing import Any

import pytest
from tests.support import make
from tests.support.answers import json_answer
from tests.support.bench import Bench
from tests.support.provider import Head, Script

from patchbay_server.core.listing import Query
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.types import (
    CallState,
    CheckResult,
    ConnectorState,
    FinishReason,
    FunctionTool,
    Message,
    ReasoningPart,
    Role,
    TextPart,
    ToolCallPart,
    ToolResultPart,
    UpstreamMode,
)

SIGNATURE = "CiQBjz1rX0c+bm9/aGVyIHNpZ25hdHVyZQ=="
ADD = FunctionTool(name="add")
EVENTS = Head(headers={"content-type": "text/event-stream"})


def event(*parts: dict[str, Any], finish: str | None = None, **members: Any) -> bytes:
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": parts}, "index": 0}
    if finish:
        candidate["finishReason"] = finish
    return f"data: {json.dumps({'candidates': [candidate], **members})}\r\n\r\n".encode()


def counted(prompt: int, candidates: int) -> dict[str, int]:
    return {"promptTokenCount": prompt, "candidatesTokenCount": candidates, "totalTokenCount": prompt + candidates}


def signed_call() -> Script:
    called = {"functionCall": {"name": "add", "args": {"a": 1}}, "thoughtSignature": SIGNATURE}
    return [EVENTS, event({"text": "hm", "thought": True}), event(called, finish="STOP", usageMetadata=counted(5, 7))]


@pytest.fixture
async def gemini(bench: Bench) -> Bench:
    """A gateway whose only active connector is of type gemini."""
    await bench.add("google", type="gemini", model_hint="gemini-3.8-flash", is_default=True)
    return bench


async def test_a_signed_call_goes_to_the_caller_and_back_to_the_provider_as_it_came(gemini: Bench) -> None:
    gemini.provider.answer(signed_call(), [EVENTS, event({"text": "2"}, finish="STOP")], name="google")
    prompt = make.prompt(tools=(ADD,))
    first = await gemini.streamed(prompt=prompt)
    thought, call = first.message.parts
    assert isinstance(thought, ReasoningPart)
    assert isinstance(call, ToolCallPart)
    assert (first.finish_reason, first.route.mode) == (FinishReason.TOOL_CALLS, UpstreamMode.STREAMING)
    result = ToolResultPart(tool_call_id=call.id, parts=(TextPart(text="2"),))
    answered = Message(role=Role.TOOL, parts=(result,))
    second = await gemini.streamed(prompt=make.prompt(*prompt.messages, first.message, answered, tools=(ADD,)))
    assert second.message.parts == (TextPart(text="2"),)
    asked = gemini.provider.asked("google")[1]
    assert asked.path == "/google/v1/models/gemini-3.8-flash:streamGenerateContent?alt=sse"
    _, model, user = json.loads(asked.body)["contents"]
    assert model["parts"] == [
        {"text": "hm", "thought": True},
        {"functionCall": {"name": "add", "args": {"a": 1}}, "thoughtSignature": SIGNATURE},
    ]
    assert user["parts"] == [{"functionResponse": {"name": "add", "response": {"output": "2"}}}]


async def test_a_bare_error_in_a_stream_ends_it_with_what_was_delivered_on_record(gemini: Bench) -> None:
    error = {"error": {"code": 503, "status": "UNAVAILABLE", "message": "overloaded"}}
    broken_off = json.dumps(error, indent=2).encode()
    text = event({"text": "Once"}, usageMetadata=counted(5, 2))
    gemini.provider.answer([EVENTS, text, broken_off[:9], broken_off[9:]], name="google")
    with pytest.raises(PatchbayError) as failed:
        await gemini.stream()
    assert failed.value.upstream is not None
    assert failed.value.upstream.provider_code == "UNAVAILABLE"
    closed = (await gemini.call()).closed
    assert closed is not None
    assert closed.state is CallState.FAILED
    assert closed.usage is not None
    assert (closed.usage.input_tokens, closed.usage.output_tokens) == (5, 2)


async def test_a_stream_that_ends_without_its_marker_is_no_answer(gemini: Bench) -> None:
    gemini.provider.answer([EVENTS, event({"text": "Once"})], name="google")
    with pytest.raises(PatchbayError) as failed:
        await gemini.stream()
    assert failed.value.reason in {Reason.UPSTREAM_TRUNCATED, Reason.UPSTREAM_STREAM_BROKEN}


async def test_an_invalid_key_that_comes_as_a_bad_request_puts_the_connector_away(gemini: Bench) -> None:
    info = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}
    error = {"error": {"code": 400, "status": "INVALID_ARGUMENT", "message": "API key not valid.", "details": [info]}}
    gemini.provider.answer(json_answer(error, status=400), name="google")
    with pytest.raises(PatchbayError) as failed:
        await gemini.chat()
    assert failed.value.reason is Reason.UPSTREAM_CREDENTIAL_REJECTED
    assert (await gemini.found(make.connector("google"))).state is ConnectorState.AUTH_INVALID


async def test_a_blocked_prompt_is_an_answer_and_not_a_failure(gemini: Bench) -> None:
    gemini.provider.answer(json_answer({"promptFeedback": {"blockReason": "SAFETY"}}), name="google")
    answer = await gemini.chat()
    assert (answer.finish_reason, answer.provider_finish_reason) == (FinishReason.CONTENT_FILTER, "SAFETY")
    assert answer.message.parts == ()


async def test_the_connector_is_tested_and_its_models_listed(gemini: Bench) -> None:
    page = {"models": [{"name": "models/gemini-3.8-flash"}], "nextPageToken": "more"}
    gemini.provider.answer(
        json_answer({"name": "models/gemini-3.8-flash"}),
        json_answer(page),
        json_answer({"models": [{"name": "models/gemini-4-argon"}]}),
        name="google",
    )
    verdict, _ = await gemini.connectors.test(gemini.caller, make.OWNER, "google", "")
    assert verdict.result is CheckResult.OK
    models, _ = await gemini.connectors.models(gemini.caller, make.OWNER, "google", Query())
    assert [model.id for model in models.models] == ["gemini-3.8-flash", "gemini-4-argon"]
    assert [request.path for request in gemini.provider.asked("google")] == [
        "/google/v1/models/gemini-3.8-flash",
        "/google/v1/models?pageSize=1000",
        "/google/v1/models?pageSize=1000&pageToken=more",
    ]
    assert all("key=" not in request.path for request in gemini.provider.asked("google"))
