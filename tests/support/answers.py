"""Answers as OpenAI-compatible servers and Anthropic give them, as scripts of a `Provider`."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tests.support.provider import Head, Script, Step

WORDS = ("The sea ", "is ", "wide.")
TEXT = "".join(WORDS)
EVENT_STREAM = Head(200, {"content-type": "text/event-stream", "x-request-id": "req-1"})
USAGE = {"prompt_tokens": 11, "completion_tokens": 4, "total_tokens": 15}


def event(data: object, name: str = "") -> bytes:
    """One event of a stream."""
    text = data if isinstance(data, str) else json.dumps(data)
    return (f"event: {name}\n" if name else "").encode() + f"data: {text}\n\n".encode()


def json_answer(body: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Script:
    text = json.dumps(body).encode()
    told = {"content-type": "application/json", "content-length": str(len(text)), **(headers or {})}
    return [Head(status, told), text]


def error(status: int, code: str = "", *, headers: Mapping[str, str] | None = None) -> Script:
    """A refusal in OpenAI's form. Its words, which no caller may see, are `what the provider said`."""
    body = {"error": {"message": "what the provider said", "type": "x", "code": code or None}}
    return json_answer(body, status=status, headers=headers)


# --- OpenAI-compatible servers ---


def chunk(delta: Mapping[str, Any], finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": dict(delta), "finish_reason": finish}
    return event({"id": "chatcmpl-1", "model": "small-2026", "choices": [choice], **more})


def openai_events(words: Sequence[str] = WORDS, *, finish: str = "stop", usage: object = USAGE) -> list[bytes]:
    """The events of a streamed answer, one a piece; `usage` None leaves the usage out."""
    events = [chunk({"role": "assistant", "content": ""}), *(chunk({"content": word}) for word in words)]
    events.append(chunk({}, finish))
    if usage is not None:
        events.append(event({"id": "chatcmpl-1", "model": "small-2026", "choices": [], "usage": usage}))
    return [*events, event("[DONE]")]


def openai_stream(words: Sequence[str] = WORDS, **given: Any) -> Script:
    return [EVENT_STREAM, *openai_events(words, **given)]


def openai_interrupted(*then: Step, words: Sequence[str] = WORDS) -> Script:
    """An answer that gets as far as its first words, and then what `then` says."""
    return [EVENT_STREAM, *openai_events(words)[: 1 + len(words)], *then]


def openai_unary(text: str = TEXT, *, usage: object = USAGE, finish: str = "stop", **message: Any) -> Script:
    choice = {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": finish}
    body = {"id": "chatcmpl-1", "model": "small-2026", "choices": [choice]}
    return json_answer(body if usage is None else {**body, "usage": usage}, headers={"x-request-id": "req-1"})


# --- Anthropic ---


def anthropic_events(words: Sequence[str] = WORDS, *, stop_reason: str = "end_turn") -> list[bytes]:
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-2026", "content": []}
    return [
        event(
            {"type": "message_start", "message": {**message, "usage": {"input_tokens": 11, "output_tokens": 1}}},
            "message_start",
        ),
        event(
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
            "content_block_start",
        ),
        *(
            event(
                {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}},
                "content_block_delta",
            )
            for word in words
        ),
        event({"type": "content_block_stop", "index": 0}, "content_block_stop"),
        event(
            {
                "type": "message_delta",
                "delta": {"stop_reason": stop_reason, "stop_sequence": None},
                "usage": {"output_tokens": 4},
            },
            "message_delta",
        ),
        event({"type": "message_stop"}, "message_stop"),
    ]


def anthropic_stream(words: Sequence[str] = WORDS, **given: Any) -> Script:
    return [EVENT_STREAM, *anthropic_events(words, **given)]


def anthropic_interrupted(*then: Step, words: Sequence[str] = WORDS) -> Script:
    return [EVENT_STREAM, *anthropic_events(words)[: 2 + len(words)], *then]


def anthropic_unary(text: str = TEXT) -> Script:
    return json_answer(
        {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": "claude-2026",
            "content": [{"type": "text", "text": text}],
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": {"input_tokens": 11, "output_tokens": 4},
        },
        headers={"request-id": "req-1"},
    )
