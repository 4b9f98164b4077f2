"""The answers of `POST /responses` as canonical events, streamed or whole.

A stream names its events and ends with one that holds the whole response; there is no `[DONE]`. What an item is in the
end is what `response.output_item.done` says: its `added` event may hold less, and no delta may have come at all. A
whole answer is read as the items of its output, each of them done.

Source: `ResponseStreamEvent` and `Response` of openai 3.52.0 (read 2026-11-20).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import msgspec

from patchbay_server.adapters.failures import upstream_error
from patchbay_server.adapters.faults import Held, malformed, not_streamed, unfinished
from patchbay_server.adapters.folding import Parts
from patchbay_server.adapters.json_body import mended
from patchbay_server.adapters.openai_answer import (
    FINAL,
    decoded,
    numbered_objects,
    objects,
    phase_state,
    picture_of,
    readable,
    whole_number,
)
from patchbay_server.adapters.openai_dialect import Dialect
from patchbay_server.adapters.openai_errors import explain_inside
from patchbay_server.adapters.openai_usage import RESPONSES, UsageSoFar
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.types import Call, Event, Finished, FinishReason, Opened, UsageUpdated
from patchbay_server.wire.http import Frame

ITEMS_MAX: Final = 4096
"""More items than any answer has; bounds what a hostile upstream can make us keep."""

_INCOMPLETE: Final[Mapping[str, FinishReason]] = MappingProxyType(
    {"max_output_tokens": FinishReason.MAX_OUTPUT_TOKENS, "content_filter": FinishReason.CONTENT_FILTER}
)
_GIVEN_UP: Final = frozenset({"failed", "cancelled"})
_GOING_ON: Final = frozenset({"queued", "in_progress"})
"""Of an answer that is made in the background, which the caller has to ask for again."""
_NULL: Final = msgspec.Raw(b"null")
_SUMMARY_BREAK: Final = "\n\n"


class _Event(msgspec.Struct, frozen=True):
    """What of an event is read, whichever event it is."""

    type: str | None = None
    output_index: int | None = None
    content_index: int | None = None
    item_id: str | None = None
    delta: str | None = None
    item: msgspec.Raw = _NULL
    response: msgspec.Raw = _NULL
    error: Any = None


_decode_event: Final = msgspec.json.Decoder(_Event).decode


def _read_event(data: bytes) -> _Event | None:
    """The event in `data`, or None when it is not a JSON object. Typed first, leniently where that fails."""
    try:
        return _decode_event(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        pass
    value = _object(data)
    if value is None:
        return None
    return _Event(
        type=readable(value.get("type")),
        output_index=whole_number(value.get("output_index")),
        content_index=whole_number(value.get("content_index")),
        item_id=readable(value.get("item_id")),
        delta=readable(value.get("delta")),
        item=_raw(value.get("item")),
        response=_raw(value.get("response")),
        error=value.get("error"),
    )


class ResponsesReader:
    """Folds one answer. Items are told apart by their place in the output."""

    def __init__(self, call: Call, dialect: Dialect) -> None:
        self._dialect = dialect
        self._streaming = call.streaming
        self._parts = Parts(call.id)
        self._usage = UsageSoFar(RESPONSES, cost=dialect.cost)
        self._held = Held()
        self._opened = False
        self._places: dict[str, int] = {}
        self._done: set[int] = set()
        self._phase = FINAL
        self._finished = False
        self._handlers: Mapping[str, Callable[[_Event], list[Event]]] = {
            "response.created": self._open,
            "response.in_progress": self._open,
            "response.queued": self._open,
            "response.output_item.added": self._added,
            "response.output_text.delta": self._text_delta,
            "response.refusal.delta": self._refusal_delta,
            "response.function_call_arguments.delta": self._arguments_delta,
            "response.reasoning_summary_part.added": self._summary_began,
            "response.reasoning_summary_text.delta": self._reasoning_delta,
            "response.reasoning_text.delta": self._reasoning_delta,
            "response.output_item.done": self._item_done,
            "response.completed": self._end,
            "response.incomplete": self._end,
            "response.failed": self._end,
            "response.cancelled": self._end,
        }

    @property
    def finished(self) -> bool:
        return self._finished

    @property
    def failure(self) -> PatchbayError | None:
        return self._held.failure

    @property
    def wants_more(self) -> bool:
        return False

    def feed(self, frame: Frame) -> Sequence[Event]:
        if self._finished:
            return ()
        self._held.check()
        if frame.whole:
            return self._whole(frame.data)
        if not frame.data.strip() or frame.data.startswith(b"[DONE]"):
            # A marker that proxies add out of habit: the API's own end is an event.
            return ()
        event = _read_event(frame.data)
        if event is None:
            raise malformed("the provider sent an event that is not a JSON object")
        kind = event.type or frame.event
        if kind == "error" or event.error:
            raise explain_inside(_object(frame.data), self._dialect.type)
        handle = self._handlers.get(kind)
        return handle(event) if handle is not None else ()

    def finish(self) -> Sequence[Event]:
        if self._finished:
            return ()
        self._held.check()
        if not self._opened and not self._parts.began:
            raise unfinished(opened=False)
        raise unfinished(opened=True)

    # --- a whole answer ---

    def _whole(self, data: bytes) -> list[Event]:
        if not data.strip():
            raise unfinished(opened=False)
        response = _object(data)
        if response is None:
            raise malformed("the provider sent an answer that is not a JSON object")
        return self._ended(_Event(response=msgspec.Raw(data)), response, whole=True)

    # --- events ---

    def _open(self, event: _Event) -> list[Event]:
        if self._opened:
            return []
        self._opened = True
        response = _object(event.response) or {}
        return [Opened(upstream_id=readable(response.get("id")) or "", model=readable(response.get("model")) or "")]

    def _added(self, event: _Event) -> list[Event]:
        item = _object(event.item) or {}
        place = self._place(event, item)
        if item.get("type") == "message":
            return [*self._open(event), *self._take_phase(item)]
        if item.get("type") != "function_call" or not readable(item.get("name")):
            return []
        return [*self._open(event), *self._begin_call(place, item)]

    def _begin_call(self, place: int, item: Mapping[str, Any]) -> list[Event]:
        call_id = readable(item.get("call_id")) or readable(item.get("id")) or ""
        return self._parts.tool_call(place, id=call_id, name=readable(item.get("name")) or "")

    def _text_delta(self, event: _Event) -> list[Event]:
        return [*self._open(event), *self._parts.text(self._content_key("text", event), event.delta or "")]

    def _refusal_delta(self, event: _Event) -> list[Event]:
        opened = self._open(event)
        if event.delta:
            self._parts.refusal(self._content_key("refusal", event), event.delta)
        return opened

    def _arguments_delta(self, event: _Event) -> list[Event]:
        # Arguments of a call that is not known yet: its end will say them whole.
        place = self._place(event)
        return self._parts.arguments(place, event.delta or "") if self._parts.is_open(place) else []

    def _summary_began(self, event: _Event) -> list[Event]:
        place = self._place(event)
        return self._parts.reasoning(place, _SUMMARY_BREAK) if self._parts.is_open(place) else []

    def _reasoning_delta(self, event: _Event) -> list[Event]:
        return [*self._open(event), *(self._parts.reasoning(self._place(event), event.delta) if event.delta else ())]

    def _item_done(self, event: _Event) -> list[Event]:
        item = _object(event.item)
        if item is None or (place := self._place(event, item)) in self._done:
            return []
        return [*self._open(event), *self._complete(place, item, bytes(event.item))]

    def _content_key(self, kind: str, event: _Event) -> tuple[str, int, int]:
        return (kind, self._place(event), event.content_index or 0)

    def _place(self, event: _Event, item: Mapping[str, Any] | None = None) -> int:
        """Where the item of an event stands in the output. One whose number cannot be read is known by its id, and
        stands after those that came before it.
        """
        item_id = event.item_id or readable((item or {}).get("id")) or ""
        place = event.output_index
        if place is None:
            place = self._places.get(item_id)
        if place is None:
            place = max(self._places.values(), default=-1) + bool(item_id or not self._places)
        if item_id and item_id not in self._places:
            if len(self._places) >= ITEMS_MAX:
                raise _too_many_items()
            self._places[item_id] = place
        return place

    # --- items ---

    def _complete(self, place: int, item: Mapping[str, Any], raw: bytes) -> list[Event]:
        """The events of an item that is whole: what no delta told, and the end of its parts."""
        if len(self._done) >= ITEMS_MAX:
            raise _too_many_items()
        self._done.add(place)
        match item.get("type"):
            case "message":
                return self._complete_message(place, item)
            case "reasoning":
                return self._complete_reasoning(place, item, raw)
            case "function_call":
                return self._complete_call(place, item)
            case "image_generation_call":
                return self._complete_picture(item)
            case _:
                # An item of a tool that the provider ran itself.
                return []

    def _complete_message(self, place: int, item: Mapping[str, Any]) -> list[Event]:
        told = any(self._parts.is_open((kind, place, 0)) for kind in ("text", "refusal"))
        events = [] if told else self._take_phase(item)
        for index, content in numbered_objects(item.get("content")):
            kind = "refusal" if content.get("type") == "refusal" else "text"
            key = (kind, place, index)
            text = readable(content.get(kind))
            if text and not self._parts.is_open(key):
                if kind == "refusal":
                    self._parts.refusal(key, text)
                else:
                    events += self._parts.text(key, text)
            events += self._parts.complete(key)
        return events

    def _take_phase(self, item: Mapping[str, Any]) -> list[Event]:
        """Keep the phase of a message, if it is another than that of the message before it."""
        phase = item.get("phase") or FINAL
        state = phase_state(phase)
        if not state or phase == self._phase:
            return []
        self._phase = phase
        self._parts.reasoning_state("phase", state)
        return self._parts.complete("phase")

    def _complete_picture(self, item: Mapping[str, Any]) -> list[Event]:
        result = item.get("result")
        if not isinstance(result, str) or not result:
            return []
        file_type = readable(item.get("output_format")) or "png"
        return self._parts.media(picture_of(result, f"image/{file_type}"))

    def _complete_reasoning(self, place: int, item: Mapping[str, Any], raw: bytes) -> list[Event]:
        events: list[Event] = []
        if not self._parts.is_open(place):
            pieces = [*objects(item.get("summary")), *objects(item.get("content"))]
            texts = [text for piece in pieces if (text := readable(piece.get("text")))]
            events += self._parts.reasoning(place, _SUMMARY_BREAK.join(texts))
        self._parts.reasoning_state(place, raw)
        return [*events, *self._parts.complete(place)]

    def _complete_call(self, place: int, item: Mapping[str, Any]) -> list[Event]:
        events: list[Event] = []
        if not self._parts.is_open(place):
            events += self._begin_call(place, item)
        arguments = item.get("arguments")
        if arguments and not isinstance(arguments, str):
            raise malformed("the provider sent tool call arguments that are not text")
        if arguments and not self._parts.arguments_so_far(place):
            events += self._parts.arguments(place, mended(arguments))
        return [*events, *self._parts.complete(place)]

    # --- the end ---

    def _end(self, event: _Event) -> list[Event]:
        response = _object(event.response)
        if response is None:
            raise malformed("the provider ended its answer without the response")
        return self._ended(event, response, whole=False)

    def _ended(self, event: _Event, response: Mapping[str, Any], *, whole: bool) -> list[Event]:
        """The end of an answer: what was counted, whatever else the response turns out to be."""
        status = readable(response.get("status")) or (event.type or "").removeprefix("response.")
        usage = self._usage.take(response.get("usage"))
        told: list[Event] = [] if usage is None else [UsageUpdated(usage)]
        try:
            self._refuse(response, status, whole=whole)
            missed = self._missed(response, event.response)
            completed = self._parts.complete_all()
        except PatchbayError as failure:
            if not told:
                raise
            return self._held.keep(failure, [*self._open(event), *told])
        events = [*self._open(event), *missed, *told, *completed]
        details = response.get("incomplete_details")
        reason = readable(details.get("reason")) if isinstance(details, dict) else None
        self._finished = True
        events.append(
            Finished(
                finish_reason=self._canonical(status, reason),
                provider_finish_reason=reason or status,
                usage=usage,
                notices=self._parts.notices,
            )
        )
        return events

    def _refuse(self, response: Mapping[str, Any], status: str, *, whole: bool) -> None:
        if response.get("error"):
            raise explain_inside(response, self._dialect.type)
        if whole and not isinstance(response.get("output"), list):
            raise malformed("the provider sent an answer without output")
        if whole and self._streaming:
            raise not_streamed()
        if status in _GIVEN_UP:
            raise upstream_error(Reason.UPSTREAM_UNAVAILABLE, provider=self._dialect.type, http_status=200)

    def _missed(self, response: Mapping[str, Any], raw: msgspec.Raw) -> list[Event]:
        """The items of the response that no event of their own told of: all of them in a whole answer."""
        missed = [(at, item) for at, item in numbered_objects(response.get("output")) if at not in self._done]
        if not missed:
            return []
        events: list[Event] = []
        raws = _raw_output(raw)
        for place, item in missed:
            events += self._complete(place, item, bytes(raws[place]) if place < len(raws) else _written(item))
        return events

    def _canonical(self, status: str, reason: str | None) -> FinishReason:
        if status in _GOING_ON:
            return FinishReason.PAUSE
        if status == "completed":
            if self._parts.tool_calls:
                return FinishReason.TOOL_CALLS
            return FinishReason.REFUSAL if self._parts.refused else FinishReason.STOP
        return _INCOMPLETE.get(reason or "", FinishReason.OTHER)


class _Output(msgspec.Struct, frozen=True):
    output: list[msgspec.Raw] = []


_decode_output: Final = msgspec.json.Decoder(_Output).decode


def _raw_output(raw: msgspec.Raw) -> list[msgspec.Raw]:
    """The items of a response byte for byte, as their state is to be sent back; none when they cannot be cut out."""
    try:
        return _decode_output(raw).output
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return []


def _object(data: bytes | msgspec.Raw) -> dict[str, Any] | None:
    value = decoded(bytes(data))
    return value if isinstance(value, dict) else None


def _raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(_written(value))


def _written(value: Any) -> bytes:
    """JSON text of a value that was read leniently and so may hold half a surrogate pair."""
    return json.dumps(value).encode()


def _too_many_items() -> PatchbayError:
    return malformed("the provider sent more items than an answer can have")
