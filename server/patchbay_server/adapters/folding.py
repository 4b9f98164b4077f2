"""Folding deltas into parts: the bookkeeping that every reader shares.

Part indexes count the parts of one answer in the order in which they begin. A reader names its parts by keys of its own
(a block index, a tool call's slot); `Parts` turns them into indexes, gives each delta as it comes and each part once it
is whole.
"""

import re
from collections.abc import Hashable
from typing import Final, Literal

import msgspec

from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.types import (
    Event,
    MediaPart,
    Notice,
    NoticeCode,
    PartCompleted,
    ReasoningDelta,
    ReasoningPart,
    RefusalPart,
    TextDelta,
    TextPart,
    ToolCallDelta,
    ToolCallPart,
    ToolCallStarted,
)

PARTS_MAX: Final = 4096
"""More parts than any answer has; bounds what a hostile upstream can make us keep."""
ANSWER_CHARS_MAX: Final = 64 * 1024 * 1024
"""All text of one answer; bounds memory of one call."""

_NO_ARGUMENTS: Final = frozenset({"", "null"})
_JSON_SPACE: Final = " \t\r\n"

_ASSIGNED_ID: Final = re.compile(r"call_[0-9A-Za-z]{1,16}_[0-9]{1,4}")

Kind = Literal["text", "reasoning", "refusal", "tool_call"]


def is_assigned(tool_call_id: str) -> bool:
    """Whether a tool call's id has the form of those that `Parts` gives to calls that came without one."""
    return _ASSIGNED_ID.fullmatch(tool_call_id) is not None


class _Open:
    """A part that still grows."""

    __slots__ = ("delivering", "id", "index", "kind", "name", "pieces", "state")

    def __init__(self, index: int, kind: Kind, *, id: str = "", name: str = "") -> None:  # noqa: A002 -- the field's name
        self.index = index
        self.kind = kind
        self.id = id
        self.name = name
        self.pieces: list[str] = []
        self.state = b""
        self.delivering = False


class Parts:
    """The parts of one answer.

    Args:
        call_id: makes the ids of tool calls that came without one unique across a conversation.
    """

    def __init__(self, call_id: str) -> None:
        self._call_id = call_id
        self._open: dict[Hashable, _Open] = {}
        self._count = 0
        self._chars = 0
        self._notices: list[Notice] = []
        self.tool_calls = 0
        self.refused = False

    @property
    def began(self) -> bool:
        """Whether any part has begun."""
        return self._count > 0

    @property
    def notices(self) -> tuple[Notice, ...]:
        return tuple(self._notices)

    def is_open(self, key: Hashable) -> bool:
        return key in self._open

    def text(self, key: Hashable, text: str) -> list[Event]:
        """Append to the text part `key`, which begins with its first non-empty piece."""
        if not text:
            return []
        part = self._part(key, "text")
        self._append(part, text)
        return [TextDelta(part.index, text)]

    def reasoning(self, key: Hashable, text: str) -> list[Event]:
        """Append to the reasoning part `key`. An empty piece begins the part without a delta: a signature may be all
        that comes.
        """
        part = self._part(key, "reasoning")
        if not text:
            return []
        self._append(part, text)
        return [ReasoningDelta(part.index, text)]

    def reasoning_state(self, key: Hashable, state: bytes) -> None:
        """Set the provider's opaque state of the reasoning part `key`, beginning it if need be."""
        part = self._part(key, "reasoning")
        self.count_chars(len(state))
        part.state = state

    def refusal(self, key: Hashable, text: str) -> None:
        """Append to the refusal `key`; refusals are given whole, as the contract has no delta for them."""
        self._append(self._part(key, "refusal"), text)
        self.refused = True

    def media(self, part: MediaPart) -> list[Event]:
        """A picture or recording, which comes whole and is given whole."""
        self.count_chars(len(part.data or b""))
        return [PartCompleted(self._next_index(), part)]

    def tool_call(self, key: Hashable, *, id: str, name: str) -> list[Event]:  # noqa: A002 -- the field's name
        """Begin the tool call `key`. Without an id it gets one of ours, with a notice.

        Raises:
            PatchbayError: UPSTREAM_MALFORMED_RESPONSE when the name is missing.
        """
        if not name:
            raise PatchbayError(Reason.UPSTREAM_MALFORMED_RESPONSE, "the provider sent a tool call without a name")
        if not id:
            id = f"call_{self._call_id[-16:]}_{self._count}"  # noqa: A001 -- the field's name
            self._notices.append(
                Notice(
                    code=NoticeCode.TOOL_CALL_ID_ASSIGNED,
                    message="the provider gave this tool call no id",
                    field=f"message.parts[{self._count}].tool_call.id",
                )
            )
        self.count_chars(len(id) + len(name))
        part = self._part(key, "tool_call", id=id, name=name)
        self.tool_calls += 1
        return [ToolCallStarted(part.index, part.id, part.name)]

    def tool_state(self, key: Hashable, state: bytes) -> None:
        """Set the provider's opaque state of the open tool call `key`."""
        self.count_chars(len(state))
        self._tool_call(key).state = state

    def arguments(self, key: Hashable, fragment: str) -> list[Event]:
        """Append to the arguments of the open tool call `key`.

        What may yet turn out to mean "no arguments" is held back, so that deltas always add up to the whole.
        """
        if not fragment:
            return []
        part = self._tool_call(key)
        self._append(part, fragment)
        if part.delivering:
            return [ToolCallDelta(part.index, fragment)]
        if not fragment.strip(_JSON_SPACE):
            return []
        so_far = "".join(part.pieces)
        if "null".startswith(so_far.strip(_JSON_SPACE)):
            return []
        part.delivering = True
        return [ToolCallDelta(part.index, so_far)]

    def arguments_so_far(self, key: Hashable) -> str:
        return "".join(self._tool_call(key).pieces)

    def complete(self, key: Hashable) -> list[Event]:
        """The part `key` is whole; nothing when it never began.

        Raises:
            PatchbayError: UPSTREAM_MALFORMED_RESPONSE when a tool call's arguments are JSON but not an object.
        """
        part = self._open.pop(key, None)
        if part is None:
            return []
        text = "".join(part.pieces)
        match part.kind:
            case "text":
                return [PartCompleted(part.index, TextPart(text=text))]
            case "reasoning":
                return [PartCompleted(part.index, ReasoningPart(text=text, provider_state=part.state))]
            case "refusal":
                return [PartCompleted(part.index, RefusalPart(text=text))]
            case "tool_call":
                return self._complete_tool_call(part, text)

    def complete_all(self) -> list[Event]:
        """Every open part is whole, in the order in which they began."""
        events: list[Event] = []
        for key in sorted(self._open, key=lambda key: self._open[key].index):
            events += self.complete(key)
        return events

    def _complete_tool_call(self, part: _Open, text: str) -> list[Event]:
        events: list[Event] = []
        if text.strip(_JSON_SPACE) in _NO_ARGUMENTS:
            text = "{}"
            events.append(ToolCallDelta(part.index, text))
        else:
            if not part.delivering:
                events.append(ToolCallDelta(part.index, text))
            self._judge_arguments(part, text)
        whole = ToolCallPart(id=part.id, name=part.name, arguments_json=text, provider_state=part.state)
        return [*events, PartCompleted(part.index, whole)]

    def _judge_arguments(self, part: _Open, text: str) -> None:
        try:
            value = msgspec.json.decode(text)
        except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
            self._notices.append(
                Notice(
                    code=NoticeCode.TOOL_ARGUMENTS_INVALID_JSON,
                    message="the model wrote arguments that are not JSON; they are delivered as they came",
                    field=f"message.parts[{part.index}].tool_call.arguments_json",
                )
            )
            return
        if not isinstance(value, dict):
            raise PatchbayError(
                Reason.UPSTREAM_MALFORMED_RESPONSE,
                "the provider sent tool call arguments that are JSON but not an object",
            )

    def _part(self, key: Hashable, kind: Kind, *, id: str = "", name: str = "") -> _Open:  # noqa: A002 -- the field's name
        part = self._open.get(key)
        if part is not None:
            return _of_kind(part, kind)
        part = _Open(self._next_index(), kind, id=id, name=name)
        self._open[key] = part
        return part

    def _next_index(self) -> int:
        if self._count >= PARTS_MAX:
            raise PatchbayError(
                Reason.UPSTREAM_MALFORMED_RESPONSE, "the provider sent more parts than an answer can have"
            )
        self._count += 1
        return self._count - 1

    def _tool_call(self, key: Hashable) -> _Open:
        return _of_kind(self._open[key], "tool_call")

    def _append(self, part: _Open, piece: str) -> None:
        self.count_chars(len(piece))
        part.pieces.append(piece)

    def count_chars(self, count: int) -> None:
        """Count what is kept of this answer, here or by its reader, against the bound of one answer.

        Raises:
            PatchbayError: UPSTREAM_MALFORMED_RESPONSE beyond it.
        """
        self._chars += count
        if self._chars > ANSWER_CHARS_MAX:
            raise PatchbayError(Reason.UPSTREAM_MALFORMED_RESPONSE, "the provider sent an answer longer than 64 MiB")


def _of_kind(part: _Open, kind: Kind) -> _Open:
    """`part`, if what comes for it is what it began as."""
    if part.kind != kind:
        raise PatchbayError(
            Reason.UPSTREAM_MALFORMED_RESPONSE, f"the provider sent {kind} for a part that began as {part.kind}"
        )
    return part
