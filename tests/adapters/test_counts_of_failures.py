"""A provider that fails may count the tokens of its failure in the same breath: the counts are told before it is."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from patchbay_server.adapters import anthropic_answer, bedrock_answer, gemini_answer
from patchbay_server.adapters.openai_chat_reader import ChatReader
from patchbay_server.adapters.openai_dialect import COMPATIBLE, OPENAI, Dialect
from patchbay_server.adapters.openai_responses_reader import ResponsesReader
from patchbay_server.adapters.openrouter import ADAPTER as OPENROUTER
from patchbay_server.adapters.protocol import Reader
from patchbay_server.errors import Reason
from patchbay_server.testing.adapter_suite import read
from patchbay_server.types import Call, Opened, Prompt, UsageUpdated
from patchbay_server.usage import Usage
from patchbay_server.wire.http import Frame

COUNTED = Usage(input_tokens=900, output_tokens=80, total_tokens=980)
MALFORMED, UNAVAILABLE, NOT_STREAMED = (
    Reason.UPSTREAM_MALFORMED_RESPONSE,
    Reason.UPSTREAM_UNAVAILABLE,
    Reason.STREAMING_UNSUPPORTED,
)


def asked(*, streaming: bool) -> Call:
    return Call(id="01", model="m", prompt=Prompt(messages=()), streaming=streaming)


def whole(body: Any) -> Frame:
    return Frame(data=json.dumps(body).encode(), whole=True)


def chunk(body: Any, event: str = "message") -> Frame:
    return Frame(data=json.dumps(body).encode(), event=event)


def check(reader: Reader, frames: Sequence[Frame], reason: Reason) -> None:
    events, error = read(reader, frames)
    assert error is not None
    assert error.reason is reason
    assert [event.usage for event in events if isinstance(event, UsageUpdated)] == [COUNTED]
    assert [at for at, event in enumerate(events) if isinstance(event, Opened)] == [0]


# --- chat completions ------------------------------------------------------------------------------------------------

CHAT_USAGE = {"prompt_tokens": 900, "completion_tokens": 80, "total_tokens": 980}


def choice(name: str, arguments: Any = None, **members: Any) -> dict[str, Any]:
    called = {"tool_calls": [{"index": 0, "id": "1", "function": {"name": "f", "arguments": arguments}}]}
    return {"index": 0, name: called if arguments is not None else {"content": "a"}, **members}


CHAT_FAILURES: list[tuple[dict[str, Any], dict[str, Any], Reason]] = [
    ({"arguments": "[1]"}, {}, MALFORMED),
    ({"arguments": [1]}, {}, MALFORMED),
    ({"finish_reason": "error"}, {}, UNAVAILABLE),
    ({"finish_reason": "insufficient_system_resource"}, {}, UNAVAILABLE),
    ({"error": {"message": "x"}}, {}, UNAVAILABLE),
    ({}, {"error": {"message": "x"}}, UNAVAILABLE),
    ({}, {"x_groq": {"error": "x"}}, UNAVAILABLE),
]


@pytest.mark.parametrize(("of_choice", "of_chunk", "reason"), CHAT_FAILURES)
@pytest.mark.parametrize("dialect", [OPENAI, COMPATIBLE], ids=lambda dialect: dialect.type)
def test_a_failed_chat_completion_is_counted_streamed_or_whole(
    dialect: Dialect, of_choice: dict[str, Any], of_chunk: dict[str, Any], reason: Reason
) -> None:
    members = {"finish_reason": "stop", **of_choice}
    body = {"id": "c", "usage": CHAT_USAGE, **of_chunk}
    unary = whole({**body, "choices": [choice("message", **members)]})
    check(ChatReader(asked(streaming=False), dialect), [unary], reason)
    streamed = [chunk({**body, "choices": [choice("delta", **members)]}), Frame(data=b"[DONE]")]
    check(ChatReader(asked(streaming=True), dialect), streamed, reason)


def test_a_chat_completion_of_another_kind_is_counted() -> None:
    said = {"id": "c", "choices": [choice("message", finish_reason="stop")], "usage": CHAT_USAGE}
    check(ChatReader(asked(streaming=True), OPENAI), [whole(said)], NOT_STREAMED)
    check(ChatReader(asked(streaming=False), OPENAI), [whole({**said, "choices": []})], MALFORMED)


@pytest.mark.parametrize("between", [[], [chunk({"id": "c", "choices": []})], [Frame(data=b" ")]])
@pytest.mark.parametrize("begun", [True, False])
def test_counts_that_follow_an_error_are_waited_for_where_they_come(begun: bool, between: list[Frame]) -> None:
    def reader() -> Reader:
        return OPENROUTER.reader(asked(streaming=True))

    frames = [chunk({"id": "c", "choices": [choice("delta")]})] if begun else []
    frames.append(chunk({"id": "c", "error": {"code": 502, "message": "x"}, "choices": [choice("delta")]}))
    last = chunk({"id": "c", "choices": [], "usage": {**CHAT_USAGE, "cost": 0.5}})
    for end in ([], [Frame(data=b"[DONE]")], [chunk({"id": "c", "choices": []})]):
        events, error = read(reader(), [*frames, *between, last, *end])
        assert error is not None
        assert error.reason is UNAVAILABLE
        told = [event.usage for event in events if isinstance(event, UsageUpdated)]
        assert [(usage.total_tokens, usage.cost_usd_nanos) for usage in told] == [(980, 500_000_000)]
        assert isinstance(events[0], Opened)
        _, error = read(reader(), [*frames, *between, *end])
        assert error is not None
        assert error.reason is UNAVAILABLE


def test_nothing_is_read_behind_an_error_where_no_counts_come() -> None:
    reader = ChatReader(asked(streaming=True), COMPATIBLE)
    events, error = read(reader, [chunk({"error": {"message": "x"}}), chunk({"id": "c", "usage": CHAT_USAGE})])
    assert (events, error.reason if error else None) == ([], UNAVAILABLE)


# --- responses -------------------------------------------------------------------------------------------------------

RESPONSE = {"id": "r", "usage": {"input_tokens": 900, "output_tokens": 80, "total_tokens": 980}, "output": []}
BAD_CALL = {"type": "function_call", "id": "f", "call_id": "1", "name": "f", "arguments": "[1]"}


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ({"status": "failed", "error": {"code": "server_error", "message": "x"}}, UNAVAILABLE),
        ({"status": "failed"}, UNAVAILABLE),
        ({"status": "cancelled"}, UNAVAILABLE),
        ({"status": "completed", "output": [BAD_CALL]}, MALFORMED),
    ],
)
def test_a_failed_response_is_counted_streamed_or_whole(told: dict[str, Any], reason: Reason) -> None:
    response = {**RESPONSE, **told}
    check(ResponsesReader(asked(streaming=False), OPENAI), [whole(response)], reason)
    end = chunk({"type": f"response.{told['status']}", "response": response})
    check(ResponsesReader(asked(streaming=True), OPENAI), [end], reason)
    created = chunk({"type": "response.created", "response": {"id": "r"}})
    check(ResponsesReader(asked(streaming=True), OPENAI), [created, end, end], reason)


def test_a_response_of_another_kind_is_counted() -> None:
    check(ResponsesReader(asked(streaming=True), OPENAI), [whole({**RESPONSE, "status": "completed"})], NOT_STREAMED)
    check(ResponsesReader(asked(streaming=False), OPENAI), [whole({**RESPONSE, "output": None})], MALFORMED)


# --- anthropic, gemini, bedrock --------------------------------------------------------------------------------------

CLAUDE = {
    "type": "message",
    "id": "m",
    "content": [{"type": "text", "text": "a"}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 900, "output_tokens": 80},
}
CLAUDE_BAD = {**CLAUDE, "content": [{"type": "tool_use", "id": "1", "name": "f", "input": [1]}]}


def test_a_failed_message_is_counted_streamed_or_whole() -> None:
    error = {"type": "overloaded_error", "message": "x"}
    for body, reason in (
        (CLAUDE_BAD, MALFORMED),
        ({**CLAUDE, "error": error}, UNAVAILABLE),
        ({**CLAUDE, "content": None}, MALFORMED),
    ):
        check(anthropic_answer.Reader(asked(streaming=False)), [whole(body)], reason)
    check(anthropic_answer.Reader(asked(streaming=True)), [whole(CLAUDE)], NOT_STREAMED)
    start = chunk({"type": "message_start", "message": CLAUDE_BAD}, "message_start")
    check(anthropic_answer.Reader(asked(streaming=True)), [start], MALFORMED)
    stop = chunk({"type": "message_stop"}, "message_stop")
    check(anthropic_answer.Reader(asked(streaming=True)), [start, stop], MALFORMED)


GEMINI_COUNTS = {"promptTokenCount": 900, "candidatesTokenCount": 80, "totalTokenCount": 980}


def generated(part: dict[str, Any], **members: Any) -> dict[str, Any]:
    candidate = {"content": {"parts": [part]}, "finishReason": "STOP"}
    return {"responseId": "r", "candidates": [candidate], "usageMetadata": GEMINI_COUNTS, **members}


def test_a_failed_generation_is_counted_streamed_or_whole() -> None:
    error = {"code": 503, "status": "UNAVAILABLE", "message": "x"}
    good = generated({"text": "a"})
    for body, reason in (
        (generated({"functionCall": {"name": "f", "args": [1]}}), MALFORMED),
        (generated({"text": "a"}, error=error), UNAVAILABLE),
    ):
        check(gemini_answer.Reader(asked(streaming=False)), [whole(body)], reason)
        check(gemini_answer.Reader(asked(streaming=True)), [chunk(body)], reason)
        check(gemini_answer.Reader(asked(streaming=True)), [chunk(body), chunk(good)], reason)
    check(gemini_answer.Reader(asked(streaming=False)), [whole([good, {"error": error}])], UNAVAILABLE)
    check(gemini_answer.Reader(asked(streaming=True)), [whole(good)], NOT_STREAMED)


def converse(*content: dict[str, Any]) -> dict[str, Any]:
    usage = {"inputTokens": 900, "outputTokens": 80, "totalTokens": 980}
    return {"output": {"message": {"role": "assistant", "content": content}}, "stopReason": "end_turn", "usage": usage}


def test_a_failed_conversation_is_counted() -> None:
    bad = converse({"toolUse": {"toolUseId": "1", "name": "f", "input": [1]}})
    for body in (bad, {**bad, "output": None}):
        check(bedrock_answer.Reader(asked(streaming=False)), [whole(body)], MALFORMED)
    check(bedrock_answer.Reader(asked(streaming=True)), [whole(converse({"text": "a"}))], NOT_STREAMED)
    # A block that no event ended is ended by the last one.
    streamed = [
        chunk({"start": {"toolUse": {"toolUseId": "1", "name": "f"}}, "contentBlockIndex": 0}, "contentBlockStart"),
        chunk({"delta": {"toolUse": {"input": "[1]"}}, "contentBlockIndex": 0}, "contentBlockDelta"),
        chunk({"stopReason": "tool_use"}, "messageStop"),
        chunk({"usage": bad["usage"]}, "metadata"),
    ]
    check(bedrock_answer.Reader(asked(streaming=True)), streamed, MALFORMED)
