"""The answers of `POST /chat/completions` as canonical events, streamed or whole, from OpenAI and its copies.

A stream is a series of chunks and `[DONE]`; a whole answer is read as one chunk whose message is its delta, so that the
two cannot drift apart. Only the first choice is read.

Source: `ChatCompletionChunk` and `ChatCompletion` of openai 3.52.0; the streams of vLLM, llama.cpp, Ollama, LM Studio
and Mistral (read 2026-11-20).
"""

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import msgspec

from patchbay_server.adapters.failures import upstream_error
from patchbay_server.adapters.faults import Held, malformed, not_streamed, unfinished
from patchbay_server.adapters.folding import Parts
from patchbay_server.adapters.json_body import mended
from patchbay_server.adapters.openai_answer import (
    decoded,
    objects,
    picture,
    readable,
    whole_number,
)
from patchbay_server.adapters.openai_dialect import Dialect
from patchbay_server.adapters.openai_errors import explain_inside, is_error
from patchbay_server.adapters.openai_reasoning import ReasoningDetails
from patchbay_server.adapters.openai_tools import ToolCalls, ToolDelta
from patchbay_server.adapters.openai_usage import CHAT, UsageSoFar
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.types import Call, Event, Finished, FinishReason, Opened, UsageUpdated
from patchbay_server.wire.http import Frame

_FINISH_REASONS: Final[Mapping[str, FinishReason]] = MappingProxyType(
    {
        "stop": FinishReason.STOP,
        "eos": FinishReason.STOP,  # Together
        "length": FinishReason.MAX_OUTPUT_TOKENS,
        "tool_calls": FinishReason.TOOL_CALLS,
        "function_call": FinishReason.TOOL_CALLS,
        "content_filter": FinishReason.CONTENT_FILTER,
        "model_length": FinishReason.CONTEXT_LENGTH,
    }
)
_FAILED: Final = frozenset({"error", "abort", "insufficient_system_resource"})
"""Finish reasons of an answer that the server gave up: OpenRouter and Mistral, vLLM, DeepSeek.

Source of the last: DeepSeek's API reference, "Create Chat Completion" (read 2026-11-27).
"""

_DONE: Final = b"[DONE]"

# --- a chunk ---------------------------------------------------------------------------------------------------------


_NULL: Final = msgspec.Raw(b"null")


class _Function(msgspec.Struct, frozen=True, gc=False):
    name: str | None = None
    arguments: msgspec.Raw = _NULL


class _ToolCall(msgspec.Struct, frozen=True, gc=False):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Message(msgspec.Struct, frozen=True):
    """A delta, or the message of a whole answer. Content is a list where a server mixes text and thinking in it."""

    content: str | list[Any] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    reasoning_details: msgspec.Raw = _NULL
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None
    function_call: _Function | None = None
    images: list[Any] | None = None


class _Choice(msgspec.Struct, frozen=True):
    """`usage` stands here with Moonshot."""

    index: int | None = None
    delta: _Message | None = None
    message: _Message | None = None
    finish_reason: str | None = None
    usage: Any = None
    error: Any = None


class _Chunk(msgspec.Struct, frozen=True):
    """`x_groq` is where Groq says in a stream what others say beside the choices: usage and error."""

    object: str | None = None
    id: str | None = None
    model: str | None = None
    choices: list[_Choice] | None = None
    usage: Any = None
    error: Any = None
    x_groq: Any = None

    @property
    def failed(self) -> bool:
        return is_error(self.object, self.error)

    def usages(self) -> list[Any]:
        """Each usage object of the chunk; the plain one, which rules, comes last."""
        groq = self.x_groq.get("usage") if isinstance(self.x_groq, dict) else None
        return [groq, *(choice.usage for choice in self.choices or () if not choice.index), self.usage]


_decode_chunk: Final = msgspec.json.Decoder(_Chunk).decode
_decode_text: Final = msgspec.json.Decoder(str).decode


def _read_chunk(data: bytes) -> _Chunk | None:
    """The chunk in `data`, or None when it is not a JSON object.

    Typed first, for speed: 0.6 microseconds a chunk. What does not fit the types is read leniently: a count that is
    text or an index that is null must not end a usable stream.
    """
    try:
        return _decode_chunk(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        pass
    value = decoded(data)
    return _lenient_chunk(value) if isinstance(value, dict) else None


def _lenient_chunk(value: dict[str, Any]) -> _Chunk:
    return _Chunk(
        object=readable(value.get("object")),
        id=readable(value.get("id")),
        model=readable(value.get("model")),
        choices=[_lenient_choice(choice) for choice in objects(value.get("choices"))],
        usage=value.get("usage"),
        error=value.get("error"),
        x_groq=value.get("x_groq"),
    )


def _lenient_choice(value: dict[str, Any]) -> _Choice:
    delta, message = value.get("delta"), value.get("message")
    return _Choice(
        index=whole_number(value.get("index")),
        delta=_lenient_message(delta) if isinstance(delta, dict) else None,
        message=_lenient_message(message) if isinstance(message, dict) else None,
        finish_reason=readable(value.get("finish_reason")),
        usage=value.get("usage"),
        error=value.get("error"),
    )


def _lenient_message(value: dict[str, Any]) -> _Message:
    content = value.get("content")
    return _Message(
        content=[content] if isinstance(content, dict) else content if isinstance(content, list) else readable(content),
        reasoning_content=readable(value.get("reasoning_content")),
        reasoning=readable(value.get("reasoning")),
        reasoning_details=msgspec.Raw(json.dumps(value.get("reasoning_details")).encode()),
        refusal=readable(value.get("refusal")),
        tool_calls=[
            _ToolCall(
                index=whole_number(call.get("index")),
                id=readable(call.get("id")),
                function=_lenient_function(call.get("function")),
            )
            for call in objects(value.get("tool_calls"))
        ],
        function_call=_lenient_function(value.get("function_call")),
        images=objects(value.get("images")),
    )


def _lenient_function(value: Any) -> _Function | None:
    if not isinstance(value, dict):
        return None
    arguments = value.get("arguments")
    if isinstance(arguments, str):
        arguments = mended(arguments)
    return _Function(name=readable(value.get("name")), arguments=msgspec.Raw(json.dumps(arguments).encode()))


# --- the reader ------------------------------------------------------------------------------------------------------


class ChatReader:
    """Folds one answer. Parts stay open until its end, because servers may turn from one to another and back."""

    def __init__(self, call: Call, dialect: Dialect) -> None:
        self._dialect = dialect
        self._streaming = call.streaming
        self._parts = Parts(call.id)
        self._tools = ToolCalls(self._parts)
        self._details = ReasoningDetails()
        self._usage = UsageSoFar(CHAT, reasoning_outside=dialect.reasoning_outside_output, cost=dialect.cost)
        self._held = Held()
        self._awaits_usage = False
        self._opened = False
        self._began = False
        self._finish_reason = ""
        self._finished = False

    @property
    def finished(self) -> bool:
        return self._finished

    @property
    def failure(self) -> PatchbayError | None:
        return self._held.failure

    @property
    def wants_more(self) -> bool:
        return self._awaits_usage

    def feed(self, frame: Frame) -> Sequence[Event]:
        if self._finished:
            return ()
        if self._held.is_held:
            return self._after_failure(frame)
        if frame.whole:
            return self._whole(frame.data)
        if frame.data.startswith(_DONE):
            return self._end()
        if not frame.data.strip():
            # An event without data keeps a connection alive and says nothing.
            return ()
        if frame.event == "error":
            raise explain_inside(decoded(frame.data), self._dialect.type)
        chunk = _read_chunk(frame.data)
        if chunk is not None:
            return self._chunk(chunk, frame.data)
        if frame.event != "message":
            # An event of a name that the API does not have, in a form of its own.
            return ()
        raise malformed("the provider sent an event that is not a JSON object")

    def finish(self) -> Sequence[Event]:
        if self._finished:
            return ()
        self._held.check()
        if not self._began:
            raise unfinished(opened=False)
        if self._dialect.needs_done_marker or not self._finish_reason:
            raise unfinished(opened=True)
        return self._end()

    # --- one frame ---

    def _whole(self, data: bytes) -> list[Event]:
        if not data.strip():
            raise unfinished(opened=False)
        chunk = _read_chunk(data)
        if chunk is None:
            # A list that holds an error object is how Google's compatible surface refuses.
            value = decoded(data)
            first = value[0] if isinstance(value, list) and value else None
            if isinstance(first, dict) and is_error(first.get("object"), first.get("error")):
                raise explain_inside(first, self._dialect.type)
            raise malformed("the provider sent an answer that is not a JSON object")
        usage = self._report(chunk)
        try:
            self._refuse_errors(chunk, data)
            if not chunk.choices:
                raise malformed("the provider sent an answer without a choice")
            if self._streaming:
                raise not_streamed()
            events = [*self._choices(chunk), *usage, *self._end()]
        except PatchbayError as failure:
            return self._fail(failure, chunk, usage)
        return [*self._open(chunk), *events]

    def _chunk(self, chunk: _Chunk, data: bytes) -> list[Event]:
        usage = self._report(chunk)
        try:
            self._refuse_errors(chunk, data)
            events = self._choices(chunk)
        except PatchbayError as failure:
            return self._fail(failure, chunk, usage)
        return [*self._open(chunk), *events, *usage]

    def _fail(self, failure: PatchbayError, chunk: _Chunk, usage: Sequence[Event]) -> list[Event]:
        """The counts of a chunk that fails; the failure itself, unless there are some or will be."""
        if usage:
            return self._held.keep(failure, [*self._open(chunk), *usage])
        if not self._dialect.usage_after_errors:
            raise failure
        self._awaits_usage = True
        return self._held.keep(failure)

    def _after_failure(self, frame: Frame) -> list[Event]:
        """The counts that follow a failure, where some are to be expected."""
        if self._awaits_usage and not frame.data.strip():
            return []
        chunk = _read_chunk(frame.data) if self._awaits_usage else None
        if chunk is None:
            self._held.check()
            return []
        usage = self._report(chunk)
        self._awaits_usage = not usage
        return [*self._open(chunk), *usage] if usage else []

    def _open(self, chunk: _Chunk) -> list[Event]:
        if self._opened or not (chunk.id or chunk.model or chunk.choices or chunk.usage):
            return []
        self._opened = True
        return [Opened(upstream_id=chunk.id or "", model=chunk.model or "")]

    def _choices(self, chunk: _Chunk) -> list[Event]:
        events: list[Event] = []
        for choice in chunk.choices or ():
            if not choice.index:
                self._began = True
                events += self._message(choice.delta if self._streaming else choice.message)
                self._take_finish_reason(choice.finish_reason)
        return events

    def _report(self, chunk: _Chunk) -> list[Event]:
        """What the chunk says of tokens."""
        before = self._usage.usage
        for reported in chunk.usages():
            self._usage.take(reported)
        usage = self._usage.usage
        return [UsageUpdated(usage)] if usage is not None and usage != before else []

    def _refuse_errors(self, chunk: _Chunk, data: bytes) -> None:
        if chunk.failed:
            raise explain_inside(decoded(data), self._dialect.type)
        if isinstance(chunk.x_groq, dict) and chunk.x_groq.get("error"):
            raise explain_inside(chunk.x_groq, self._dialect.type)
        for choice in chunk.choices or ():
            if choice.error:
                raise explain_inside({"error": choice.error}, self._dialect.type)

    def _message(self, message: _Message | None) -> list[Event]:
        if message is None:
            return []
        events: list[Event] = []
        # Some servers send the same reasoning under both names.
        reasoning = message.reasoning_content or message.reasoning
        if self._dialect.reasoning_details:
            reasoning = self._take_details(message.reasoning_details, reasoning)
        if reasoning:
            events += self._parts.reasoning("reasoning", reasoning)
        if isinstance(message.content, list):
            events += self._contents(message.content)
        elif message.content:
            events += self._parts.text("text", message.content)
        for image in objects(message.images):
            address = image.get("image_url")
            part = picture(address.get("url") if isinstance(address, dict) else address)
            events += self._parts.media(part) if part is not None else ()
        if message.refusal:
            self._parts.refusal("refusal", message.refusal)
        # Who speaks both forms says the same call in both.
        if message.tool_calls:
            events += self._tools.take([_tool_delta(call.index, call.id, call.function) for call in message.tool_calls])
        elif message.function_call is not None:
            events += self._tools.take([_tool_delta(None, None, message.function_call)])
        return events

    def _take_details(self, details: msgspec.Raw, reasoning: str | None) -> str | None:
        """The reasoning to show: what the message says itself, else what its details say."""
        self._parts.count_chars(len(bytes(details)))
        shown = self._details.take(details)
        if self._details.began:
            # They may hold nothing that can be shown; then the part begins with them all the same.
            self._parts.reasoning("reasoning", "")
        return reasoning or shown

    def _contents(self, contents: Sequence[Any]) -> list[Event]:
        """Mistral's content: a list of `{"type": "text", "text"}` and `{"type": "thinking", "thinking": [texts]}`; a
        text may also stand for itself.
        """
        events: list[Event] = []
        contents = [{"text": content} if isinstance(content, str) else content for content in contents]
        for content in objects(contents):
            if text := readable(content.get("text")):
                events += self._parts.text("text", text)
            thinking = content.get("thinking")
            thoughts = [thought.get("text") for thought in objects(thinking)] or [thinking]
            for thought in thoughts:
                if text := readable(thought):
                    events += self._parts.reasoning("reasoning", text)
        return events

    def _take_finish_reason(self, reason: str | None) -> None:
        reason = (reason or "").strip()
        if reason in _FAILED:
            raise upstream_error(Reason.UPSTREAM_UNAVAILABLE, provider=self._dialect.type, http_status=200)
        self._finish_reason = reason or self._finish_reason

    # --- the end ---

    def _end(self) -> list[Event]:
        if not self._parts.began and not self._finish_reason:
            raise unfinished(opened=False)
        self._tools.complete()
        if self._details.began:
            self._parts.reasoning_state("reasoning", self._details.state())
        events = self._parts.complete_all()
        self._finished = True
        events.append(
            Finished(
                finish_reason=self._canonical(self._finish_reason),
                provider_finish_reason=self._finish_reason,
                usage=self._usage.usage,
                notices=self._parts.notices,
            )
        )
        return events

    def _canonical(self, raw: str) -> FinishReason:
        if _FINISH_REASONS.get(raw or "stop") is FinishReason.STOP:
            # A model that was made to call one tool says that it stopped; some servers say nothing at all.
            if self._parts.refused:
                return FinishReason.REFUSAL
            if self._parts.tool_calls:
                return FinishReason.TOOL_CALLS
        return _FINISH_REASONS.get(raw, FinishReason.OTHER)


def _tool_delta(index: int | None, call_id: str | None, function: _Function | None) -> ToolDelta:
    if function is None:
        return ToolDelta(index=index, id=call_id or "")
    return ToolDelta(index=index, id=call_id or "", name=function.name or "", arguments=_arguments(function.arguments))


def _arguments(raw: msgspec.Raw) -> str:
    """A piece of arguments: text as the API has it, or the object itself as some servers send it.

    Raises:
        PatchbayError: UPSTREAM_MALFORMED_RESPONSE for anything else.
    """
    data = bytes(raw).strip()
    if data == b"null":
        return ""
    if data.startswith(b'"'):
        return _decode_text(data)
    if data.startswith(b"{"):
        return data.decode()
    raise malformed("the provider sent tool call arguments that are neither text nor an object")
