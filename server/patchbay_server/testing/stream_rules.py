"""The rules that every stream of events keeps, whoever made it: a provider's reader or the gateway."""

from collections.abc import Iterable
from typing import Any

import msgspec

from patchbay_server.types import (
    ChatCompleted,
    ChatEvent,
    ChatStarted,
    Event,
    Finished,
    MediaPart,
    Opened,
    Part,
    PartCompleted,
    ReasoningDelta,
    ReasoningPart,
    RefusalPart,
    TextDelta,
    TextPart,
    ToolCallDelta,
    ToolCallPart,
    ToolCallStarted,
    UsageUpdated,
)

_OPENINGS = (Opened, ChatStarted)
_TERMINALS = (Finished, ChatCompleted)


class _Growing:
    """A part as its deltas tell it so far."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.text = ""
        self.id = ""
        self.name = ""


def check_stream(events: Iterable[Event | ChatEvent]) -> None:
    """Refuse a stream that breaks a rule, for use in tests.

    One opening, first; part indexes that count 0, 1, 2, ... without a gap and in the order in which parts are first
    seen to grow; deltas that are never empty and add up to their part; each part completed once; one terminal, last.

    Raises:
        AssertionError: the rule that is broken, and where.
    """
    seen = list(events)
    _require(bool(seen), "the stream is empty")
    _require(isinstance(seen[0], _OPENINGS), f"the stream starts with {seen[0]!r}")
    _require(isinstance(seen[-1], _TERMINALS), f"the stream ends with {seen[-1]!r}")
    growing: dict[int, _Growing] = {}
    whole: dict[int, Part] = {}
    for position, event in enumerate(seen):
        if isinstance(event, _OPENINGS):
            _require(position == 0, f"event {position} opens the stream again")
        elif isinstance(event, _TERMINALS):
            _require(position == len(seen) - 1, f"event {position} ends the stream before its last event")
        elif isinstance(event, PartCompleted):
            _complete(event, growing, whole, position)
        elif not isinstance(event, UsageUpdated):
            _grow(event, growing, whole, position)
    _require(set(growing) <= set(whole), f"parts {sorted(set(growing) - set(whole))} were never completed")
    _require(sorted(whole) == list(range(len(whole))), f"part indexes {sorted(whole)} leave a gap")


def _grow(event: Any, growing: dict[int, _Growing], whole: dict[int, Part], position: int) -> None:
    index = event.part_index
    _require(index not in whole, f"event {position} adds to part {index}, which is complete")
    kind = _kind(event)
    if index not in growing:
        # A part without deltas may have begun unseen, so an index may be skipped here and must not be at the end.
        _require(index > max(growing, default=-1), f"event {position} begins part {index} out of order")
        _require(not isinstance(event, ToolCallDelta), f"event {position} is a tool call's delta before its start")
        growing[index] = _Growing(kind)
    elif isinstance(event, ToolCallStarted):
        _require(False, f"event {position} starts tool call {index} again")
    part = growing[index]
    _require(part.kind == kind, f"event {position} is {kind} within a {part.kind} part")
    if isinstance(event, ToolCallStarted):
        part.id, part.name = event.id, event.name
        _require(bool(event.id and event.name), f"event {position} starts a tool call without an id or a name")
    else:
        piece = event.arguments_json if isinstance(event, ToolCallDelta) else event.text
        _require(bool(piece), f"event {position} is an empty delta")
        part.text += piece


def _kind(event: Any) -> str:
    match event:
        case TextDelta():
            return "text"
        case ReasoningDelta():
            return "reasoning"
        case ToolCallStarted() | ToolCallDelta():
            return "tool_call"
        case _:
            raise AssertionError(f"{event!r} is no event of a stream")


def _complete(event: PartCompleted, growing: dict[int, _Growing], whole: dict[int, Part], position: int) -> None:
    index, part = event.part_index, event.part
    _require(index not in whole, f"event {position} completes part {index} again")
    # Nothing was told of a part without deltas: a refusal, a signature alone.
    told = growing.get(index) or _Growing("")
    match part:
        case TextPart() | ReasoningPart():
            _require(part.text == told.text, f"part {index} is not what its deltas add up to")
        case ToolCallPart():
            same = (part.id, part.name, part.arguments_json) == (told.id, told.name, told.text)
            _require(same, f"tool call {index} is not what its deltas add up to")
        case RefusalPart():
            _require(not told.text, f"refusal {index} has deltas")
        case MediaPart(data=bytes()):
            _require(index not in growing, f"media {index} has deltas")
        case _:
            _require(False, f"part {index} is {part!r}, which no model writes")
    whole[index] = part


def _require(holds: bool, rule: str) -> None:
    if not holds:
        raise AssertionError(rule)


class Outcome(msgspec.Struct, frozen=True):
    """What a caller keeps of a stream: its whole parts and how it ended. The same for any way of cutting one answer."""

    parts: tuple[Part, ...]
    end: Finished | None


def outcome(events: Iterable[Event]) -> Outcome:
    """The whole parts of a reader's events, in the order in which they began, and their terminal event."""
    seen = list(events)
    completed = sorted((event for event in seen if isinstance(event, PartCompleted)), key=lambda done: done.part_index)
    ends = [event for event in seen if isinstance(event, Finished)]
    return Outcome(parts=tuple(done.part for done in completed), end=ends[-1] if ends else None)
