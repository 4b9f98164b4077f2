"""Which tool call a delta belongs to: servers number them well, badly or not at all."""

from collections.abc import Sequence
from typing import Final

import msgspec

from patchbay_server.adapters.faults import malformed
from patchbay_server.adapters.folding import PARTS_MAX, Parts
from patchbay_server.types import Event

_LOOKS_MAX: Final = 64
"""How often the arguments of one call are read again as a whole: looking at each of many pieces would be quadratic."""


class ToolDelta(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of a tool call. `index` is None when there was none; texts are empty when there were none."""

    index: int | None = None
    id: str = ""
    name: str = ""
    arguments: str = ""


class _Slot:
    """A tool call that grows. It begins with its name."""

    __slots__ = ("chars", "closes", "given_id", "id", "index", "looks", "name")

    def __init__(self, delta: ToolDelta) -> None:
        self.index = delta.index
        self.given_id = delta.id
        self.id = delta.id
        self.name = ""
        self.chars = 0  # of the arguments so far
        self.closes = False  # whether they end with a brace
        self.looks = 0  # how often they were looked at whole


class ToolCalls:
    """Joins the deltas of parallel tool calls.

    A call is known by its id, else by its index. A delta with a new id opens a call; so does one with a name when the
    call it would continue has another name or is whole. A delta of arguments alone continues the call of its index,
    else the one opened last. Calls without an index that come in one delta are told apart by their position.

    Source: observed: Ollama numbers parallel calls all 0, Gemini's compatible surface and old Ollama give no index,
    Nebius and Cerebras count on for continuations (openai-python issue 2806, ollama issues 7881 and 15457, read
    2026-11-20).
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._slots: list[_Slot] = []
        self._by_index: dict[int, _Slot] = {}
        self._by_id: dict[str, _Slot] = {}
        self._by_position: dict[int, _Slot] = {}
        self._last: _Slot | None = None

    def take(self, deltas: Sequence[ToolDelta]) -> list[Event]:
        """The events that the tool deltas of one chunk complete.

        Raises:
            PatchbayError: UPSTREAM_MALFORMED_RESPONSE for arguments that belong to no call, or too many calls.
        """
        events: list[Event] = []
        alone = len(deltas) == 1
        for position, delta in enumerate(deltas):
            if delta.id or delta.name or delta.arguments:
                events += self._grow(self._slot(delta, None if alone else position), delta)
        return events

    def complete(self) -> None:
        """No more will come.

        Raises:
            PatchbayError: UPSTREAM_MALFORMED_RESPONSE when a call never got its name.
        """
        if not all(slot.name for slot in self._slots):
            raise malformed("the provider sent a tool call without a name")

    def _grow(self, slot: _Slot, delta: ToolDelta) -> list[Event]:
        if slot.name:
            return [] if self._repeats(slot, delta) else self._append(slot, delta.arguments)
        if delta.id and not slot.given_id:
            slot.id = slot.given_id = delta.id
        if not delta.name:
            if delta.arguments:
                raise malformed("the provider sent a tool call without a name")
            return []
        slot.name = delta.name
        return [
            *self._parts.tool_call(slot, id=slot.id, name=slot.name),
            *self._append(slot, delta.arguments),
        ]

    def _append(self, slot: _Slot, fragment: str) -> list[Event]:
        if fragment:
            slot.chars += len(fragment)
            slot.closes = fragment.rstrip().endswith("}")
        return self._parts.arguments(slot, fragment)

    def _slot(self, delta: ToolDelta, position: int | None) -> _Slot:
        slot = self._known(delta, position)
        if slot is None or self._begins_another(slot, delta):
            slot = self._open(delta, position)
        self._last = slot
        return slot

    def _known(self, delta: ToolDelta, position: int | None) -> _Slot | None:
        """The call that the delta would continue, or None when it can only be a new one."""
        numbered = None if delta.index is None else self._by_index.get(delta.index)
        if numbered is not None and delta.id in ("", numbered.given_id):
            return numbered
        if delta.id in self._by_id:
            return self._by_id[delta.id]
        if delta.index is not None:
            return numbered if numbered is not None or delta.id or delta.name else self._last
        return self._last if position is None or delta.id else self._by_position.get(position)

    def _begins_another(self, slot: _Slot, delta: ToolDelta) -> bool:
        if delta.id and slot.given_id and delta.id != slot.given_id:
            return True
        if not delta.name or not slot.name:
            return False
        if delta.id and delta.index in (None, slot.index):
            return not slot.given_id
        return delta.name != slot.name or (bool(delta.arguments) and self._is_whole(slot))

    def _is_whole(self, slot: _Slot) -> bool:
        """Whether the arguments so far are one JSON object, so that more of them would belong to another call."""
        if not slot.closes or slot.looks >= _LOOKS_MAX:
            return False
        slot.looks += 1
        try:
            return isinstance(msgspec.json.decode(self._parts.arguments_so_far(slot)), dict)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return False

    def _repeats(self, slot: _Slot, delta: ToolDelta) -> bool:
        """Whether a delta that names its call again only says its whole arguments again."""
        if not slot.closes or not (delta.id or delta.name) or len(delta.arguments) != slot.chars:
            return False
        return delta.arguments == self._parts.arguments_so_far(slot)

    def _open(self, delta: ToolDelta, position: int | None) -> _Slot:
        if not delta.id and not delta.name:
            raise malformed("the provider sent tool call arguments that belong to no call")
        if len(self._slots) >= PARTS_MAX:
            raise malformed("the provider sent more tool calls than an answer can have")
        slot = _Slot(delta)
        if delta.id in self._by_id:
            # An id that two calls share cannot tell their results apart: this one gets one of ours.
            slot.id = ""
        elif delta.id:
            self._by_id[delta.id] = slot
        if delta.index is not None:
            self._by_index[delta.index] = slot
        elif position is not None:
            self._by_position[position] = slot
        self._slots.append(slot)
        return slot
