"""A streamed answer: its events, and how they add up to the answer that `chat` would have given."""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TypeAlias

import grpc

from patchbay.v1 import content_pb2
from patchbay.v1 import gateway_service_pb2 as gateway_pb
from patchbay_client.answer import ChatAnswer, FinishReason, Route
from patchbay_client.content import Part, from_part
from patchbay_client.errors import PatchbayError, TruncatedStream
from patchbay_client.reading import read
from patchbay_client.usage import Usage


@dataclass(frozen=True)
class Started:
    """The answer begins: the call's id, and the connector that answers as far as it is known."""

    id: str
    route: Route


@dataclass(frozen=True)
class TextDelta:
    """More text of the part with this index."""

    part_index: int
    text: str


@dataclass(frozen=True)
class ReasoningDelta:
    """More reasoning of the part with this index."""

    part_index: int
    text: str


@dataclass(frozen=True)
class ToolCallStarted:
    """A tool call begins."""

    part_index: int
    id: str
    name: str


@dataclass(frozen=True)
class ToolCallDelta:
    """More arguments, which are not valid JSON by themselves."""

    part_index: int
    arguments_json: str


@dataclass(frozen=True)
class PartCompleted:
    """A part is whole. `part` is None for a kind that this client does not know."""

    part_index: int
    part: Part | None


@dataclass(frozen=True)
class UsageUpdated:
    """Running totals; each replaces the one before."""

    usage: Usage


@dataclass(frozen=True)
class Completed:
    """The answer is whole."""

    finish_reason: FinishReason
    usage: Usage
    answer: ChatAnswer = field(repr=False)


StreamEvent: TypeAlias = (
    Started | TextDelta | ReasoningDelta | ToolCallStarted | ToolCallDelta | PartCompleted | UsageUpdated | Completed
)


class AnswerBuilder:
    """Turns chunks into events and adds them up.

    Feed every chunk in order, then `finish`. Events that this client does not know are skipped, as the contract asks.
    """

    def __init__(self) -> None:
        self._sequence = 0
        self._started = gateway_pb.ChatStarted()
        self._fragments: defaultdict[int, list[str]] = defaultdict(list)
        self._tool_calls: dict[int, gateway_pb.ToolCallStarted] = {}
        self._reasoning: set[int] = set()
        self._parts: dict[int, content_pb2.ContentPart] = {}
        self._answer: ChatAnswer | None = None

    @property
    def answer(self) -> ChatAnswer | None:
        """The whole answer; None before the last chunk."""
        return self._answer

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(part.text for _, part in sorted(self._all_parts().items()) if part.WhichOneof("part") == "text")

    def feed(self, chunk: gateway_pb.ChatResponseChunk) -> StreamEvent | None:
        """The chunk's event; None when there is nothing to see.

        Raises:
            PatchbayError: the stream breaks the contract, with reason STREAM_MALFORMED.
        """
        self._check_order(chunk)
        match chunk.WhichOneof("event"):
            case "started":
                self._started = chunk.started
                return Started(chunk.started.id, read(Route, chunk.started.route))
            case "text_delta":
                delta = chunk.text_delta
                self._fragments[delta.part_index].append(delta.text)
                return TextDelta(delta.part_index, delta.text)
            case "reasoning_delta":
                thought = chunk.reasoning_delta
                self._reasoning.add(thought.part_index)
                self._fragments[thought.part_index].append(thought.text)
                return ReasoningDelta(thought.part_index, thought.text)
            case "tool_call_started":
                call = chunk.tool_call_started
                self._tool_calls[call.part_index] = call
                return ToolCallStarted(call.part_index, call.id, call.name)
            case "tool_call_delta":
                arguments = chunk.tool_call_delta
                self._fragments[arguments.part_index].append(arguments.arguments_json)
                return ToolCallDelta(arguments.part_index, arguments.arguments_json)
            case "part_completed":
                whole = chunk.part_completed
                self._parts[whole.part_index] = whole.part
                return PartCompleted(whole.part_index, from_part(whole.part))
            case "usage_updated":
                return UsageUpdated(read(Usage, chunk.usage_updated.usage))
            case "completed":
                self._answer = read(ChatAnswer, self._response(chunk.completed))
                return Completed(self._answer.finish_reason, self._answer.usage, self._answer)
            case _:
                return None

    def finish(self) -> None:
        """Call when the stream has ended with OK.

        Raises:
            TruncatedStream: the last chunk never came.
        """
        if self._answer is None:
            raise TruncatedStream(
                f"the stream ended after chunk {self._sequence} without its last one; the answer is not whole",
                reason="STREAM_TRUNCATED",
                code=grpc.StatusCode.UNAVAILABLE,
                call_id=self._started.id,
            )

    def _check_order(self, chunk: gateway_pb.ChatResponseChunk) -> None:
        if chunk.sequence != self._sequence + 1:
            raise self._malformed(f"chunk {chunk.sequence} came after chunk {self._sequence}")
        if self._answer is not None:
            raise self._malformed("a chunk came after the last one")
        self._sequence = chunk.sequence

    def _malformed(self, message: str) -> PatchbayError:
        return PatchbayError(
            message, reason="STREAM_MALFORMED", code=grpc.StatusCode.INTERNAL, call_id=self._started.id
        )

    def _response(self, completed: gateway_pb.ChatCompleted) -> gateway_pb.ChatResponse:
        if completed.HasField("response"):
            return completed.response
        parts = self._all_parts()
        return gateway_pb.ChatResponse(
            id=self._started.id,
            create_time=self._started.create_time if self._started.HasField("create_time") else None,
            route=completed.route if completed.HasField("route") else self._started.route,
            message=content_pb2.ChatMessage(
                role=content_pb2.ROLE_ASSISTANT, parts=[parts[index] for index in sorted(parts)]
            ),
            finish_reason=completed.finish_reason,
            provider_finish_reason=completed.provider_finish_reason,
            usage=completed.usage,
            notices=completed.notices,
        )

    def _all_parts(self) -> dict[int, content_pb2.ContentPart]:
        """The whole parts, and the others as far as they have come."""
        growing = (self._fragments.keys() | self._tool_calls.keys()) - self._parts.keys()
        return {**{index: self._growing(index) for index in growing}, **self._parts}

    def _growing(self, index: int) -> content_pb2.ContentPart:
        so_far = "".join(self._fragments.get(index, ()))
        if index in self._tool_calls:
            call = self._tool_calls[index]
            return content_pb2.ContentPart(
                tool_call=content_pb2.ToolCall(id=call.id, name=call.name, arguments_json=so_far or "{}")
            )
        if index in self._reasoning:
            return content_pb2.ContentPart(reasoning=content_pb2.Reasoning(text=so_far))
        return content_pb2.ContentPart(text=so_far)
