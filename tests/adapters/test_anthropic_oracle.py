"""Anthropic's own library as the judge: it sends the same requests and reads the same answers from the same bytes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import anthropic
import httpx2
import jiter
import pytest
from anthropic._streaming import SSEDecoder

from patchbay_server.adapters.anthropic import ADAPTER
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.testing.adapter_suite import GoldenCase, cut, golden_cases, read
from patchbay_server.types import (
    Event,
    Finished,
    PartCompleted,
    ReasoningPart,
    RefusalPart,
    TextPart,
    ToolCallPart,
)
from patchbay_server.usage import Usage

CASES: Final = {
    case.path.name: case
    for case in golden_cases(Path(__file__).parents[1] / "golden" / "anthropic", {"api_key": "sk-ant-test-0123456789"})
}
NOT_IN_THE_LIBRARY: Final = {
    "without_event_names": "the library skips events without a name",
    "ended_without_its_marker": "the library takes any end of the bytes for the end of the answer",
}
STREAMED: Final = [name for name, case in CASES.items() if case.wire is not None and name not in NOT_IN_THE_LIBRARY]
WHOLE: Final = [name for name, case in CASES.items() if case.wire is not None and case.body is not None]
REFUSED: Final = {
    Reason.UPSTREAM_UNAVAILABLE: "overloaded_error",
    Reason.UPSTREAM_BILLING_EXHAUSTED: "rate_limit_error",
}
# Gone from the library's parameters with API version 2026-10-21.
NO_PARAMETERS: Final = frozenset({"temperature", "top_p", "top_k"})


class Wire:
    """The provider's side of one exchange: keeps what the library sends and answers with the case's bytes."""

    def __init__(self, answer: bytes, content_type: str) -> None:
        self._answer = answer
        self._content_type = content_type
        self.sent: dict[str, Any] = {}
        self.url = ""

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.sent = json.loads(request.read())
        self.url = str(request.url)
        return httpx2.Response(200, headers={"content-type": self._content_type}, content=self._pieces())

    def _pieces(self) -> Iterator[bytes]:
        half = len(self._answer) // 2
        yield self._answer[:half]
        yield self._answer[half:]

    def client(self) -> anthropic.Anthropic:
        # With a timeout of its own the library does not insist on streaming for large answers.
        transport = httpx2.MockTransport(self)
        return anthropic.Anthropic(
            api_key="sk-ant-test", max_retries=0, timeout=10, http_client=httpx2.Client(transport=transport)
        )


def parameters(case: GoldenCase) -> dict[str, Any]:
    """The golden body as the library's own parameters; an unknown name would be a TypeError."""
    body = {name: value for name, value in case.request["body"].items() if name != "stream"}
    extra = {name: body.pop(name) for name in NO_PARAMETERS & body.keys()}
    return {**body, "extra_body": extra} if extra else body


def asked(case: GoldenCase, wire: Wire) -> Any:
    """The message that the library makes of the case's stream."""
    with wire.client() as client, client.messages.stream(**parameters(case)) as stream:
        return stream.get_final_message()


def ours(case: GoldenCase) -> tuple[list[Event], PatchbayError | None]:
    return read(ADAPTER.reader(case.call), case.frames())


def blocks_of(message: Any) -> list[Any]:
    """What a message says, in a form that both sides can be brought to."""
    return [said for said in map(_said, message.content) if said is not None]


def _said(block: Any) -> Any:
    match block.type:
        case "text":
            return block.text or None
        case "tool_use":
            return (block.id, block.name, block.input)
        case "thinking" | "redacted_thinking" | "server_tool_use":
            return block.to_dict(mode="json")
        case kind if kind.endswith("_tool_result"):
            return block.to_dict(mode="json")
        case _:
            return None


def parts_of(events: list[Event]) -> list[Any]:
    return [_told(event.part) for event in events if isinstance(event, PartCompleted) if _told(event.part) is not None]


def _told(part: object) -> Any:
    match part:
        case TextPart(text=text):
            return text
        case ToolCallPart(id=id, name=name, arguments_json=arguments):
            return (id, name, jiter.from_json(arguments.encode(), partial_mode=True))
        case ReasoningPart(text=text, provider_state=state):
            block = json.loads(state)
            assert block.get("thinking", "") == text
            return block
        case RefusalPart():
            # The library keeps it beside the content.
            return None
    raise AssertionError(f"{part!r} is nothing that a model says")


def check_agreement(message: Any, events: list[Event]) -> None:
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert parts_of(events) == blocks_of(message)
    assert finished.provider_finish_reason == message.stop_reason
    usage = message.usage
    details = usage.output_tokens_details
    prompt = usage.input_tokens + (usage.cache_read_input_tokens or 0) + (usage.cache_creation_input_tokens or 0)
    assert finished.usage == Usage(
        input_tokens=prompt,
        output_tokens=usage.output_tokens,
        total_tokens=prompt + usage.output_tokens,
        cached_input_tokens=usage.cache_read_input_tokens,
        cache_write_input_tokens=usage.cache_creation_input_tokens,
        reasoning_tokens=details.thinking_tokens if details else None,
    )
    if message.stop_details is not None:
        refusals = [event.part for event in events if isinstance(event, PartCompleted)]
        assert RefusalPart(text=message.stop_details.explanation) in refusals


@pytest.mark.parametrize("name", STREAMED)
def test_the_library_sends_the_same_request_and_reads_the_same_stream(name: str) -> None:
    case = CASES[name]
    wire = Wire(case.wire or b"", "text/event-stream")
    events, error = ours(case)
    if error is None:
        check_agreement(asked(case, wire), events)
    else:
        with pytest.raises(anthropic.APIStatusError) as refused:
            asked(case, wire)
        assert refused.value.type == REFUSED[error.reason]
    assert wire.sent == case.request["body"]
    assert wire.url == case.request["url"]


@pytest.mark.parametrize("name", WHOLE)
def test_the_library_reads_the_same_whole_answer(name: str) -> None:
    case = CASES[name]
    body = case.body or b""
    with Wire(body, "application/json").client() as client:
        message = client.messages.create(**parameters(case))
    check_agreement(message, ours(case)[0])


@pytest.mark.parametrize("name", STREAMED)
def test_the_library_sees_the_same_events_however_the_bytes_are_cut(name: str) -> None:
    bytes_ = CASES[name].wire or b""
    whole = [(frame.event, frame.data) for frame in cut(bytes_, ())]
    for at in range(1, len(bytes_)):
        theirs = [
            (event.event, event.data.encode()) for event in SSEDecoder().iter_bytes(iter((bytes_[:at], bytes_[at:])))
        ]
        assert theirs == whole, f"cut at byte {at}"
        assert [(frame.event, frame.data) for frame in cut(bytes_, (at,))] == whole, f"cut at byte {at}"
