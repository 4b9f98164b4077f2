"""Calls of tools within what a Llama writes: told from text while both arrive in pieces.

Source: llama.com/docs, "Llama 3.1: JSON based tool calling"; the forms that models write in practice: vLLM 0.11,
`tool_parsers/llama_tool_parser.py` (read 2026-11-21).
"""

import json
import re
from collections.abc import Iterable
from typing import Final, NamedTuple

import msgspec

from patchbay_server.adapters import json_body

_PYTHON_TAG: Final = "<|python_tag|>"
_BETWEEN: Final = " \t\r\n;,[]"
"""What may stand around calls, as where a model writes several or puts them in a list."""
_ATTENTION: Final = re.compile(r'["\\{}]')
_ARGUMENTS: Final = re.compile(r'"(?:parameters|arguments)"\s*:\s*')

_members: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


class FoundCall(NamedTuple):
    """A call that the model wrote, with its arguments as it wrote them."""

    name: str
    arguments: str


Found = str | FoundCall


class CallFinder:
    """Tells calls of offered tools from text. Used for one answer.

    A call stands at the start of an answer or right after another: `{"name": ..., "parameters": {...}}`, perhaps with
    `"type": "function"` first. Text is held back only as long as it may become one; after other text none is looked
    for. Time is linear in the text.

    Args:
        names: of the tools that were offered; without any, all is text.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(names)
        self._starts = [f'{{{first}"name":"{name}"' for name in self._names for first in ("", '"type":"function",')]
        self._only_text = not self._names
        self._held = ""
        self._looked_at = 0  # characters of the object that is held
        self._depth = 0
        self._in_string = False
        self._calls = 0

    def feed(self, text: str) -> list[Found]:
        """What `text`, the next piece, makes certain, in order. No text is empty."""
        self._held += text
        found: list[Found] = []
        while (item := self._next()) is not None:
            found.append(item)
        return found

    def finish(self) -> list[Found]:
        """What is still held at the end: a call that was cut off within its arguments, or text."""
        held, self._held = self._held, ""
        if not held or self._only_text:
            return [held] if held else []
        cut_off = self._begun_call(held)
        if cut_off is not None:
            return [cut_off]
        return [] if self._calls and not held.strip(_BETWEEN) else [held]

    def _next(self) -> Found | None:
        """The next thing that is certain; None when more has to come first."""
        if self._only_text:
            text, self._held = self._held, ""
            return text or None
        start = _start(self._held)
        if start is None:
            return None
        if not self._may_be_call(start):
            return self._give_up()
        end = self._end(start)
        if end is None:
            return None
        call = self._call(self._held[start:end])
        if call is None:
            return self._give_up()
        self._held = self._held[end:]
        self._looked_at = self._depth = 0
        self._calls += 1
        return call

    def _give_up(self) -> Found | None:
        self._only_text = True
        return self._next()

    def _may_be_call(self, start: int) -> bool:
        """Whether what is held from `start` on can still become a call."""
        longest = max(map(len, self._starts))
        squeezed = "".join(self._held[start : start + 4 * longest].split())
        return any(known.startswith(squeezed) or squeezed.startswith(known) for known in self._starts)

    def _end(self, start: int) -> int | None:
        """Where the object that begins at `start` ends; None when it does not yet."""
        at = start + self._looked_at
        while (match := _ATTENTION.search(self._held, at)) is not None:
            at = match.end()
            if match[0] == "\\":
                if at == len(self._held):
                    # What is escaped has not come yet.
                    self._looked_at = match.start() - start
                    return None
                at += 1
            elif match[0] == '"':
                self._in_string = not self._in_string
            elif not self._in_string:
                self._depth += 1 if match[0] == "{" else -1
                if not self._depth:
                    return at
        self._looked_at = len(self._held) - start
        return None

    def _call(self, text: str) -> FoundCall | None:
        """The call that a whole object is; None when it is something else."""
        try:
            members = json_body.typed(_members, text.encode())
            name = json_body.decode(members.get("name", b""))
        except ValueError:
            return None
        arguments = bytes(members.get("parameters", members.get("arguments", b""))).decode()
        is_call = isinstance(name, str) and name in self._names and arguments[:1] in ("", "{", "n")
        return FoundCall(name, arguments) if is_call else None

    def _begun_call(self, held: str) -> FoundCall | None:
        start = _start(held)
        arguments = _ARGUMENTS.search(held, start) if start is not None else None
        if start is None or arguments is None:
            return None
        name = _name(held[start : arguments.start()])
        return FoundCall(name, held[arguments.end() :]) if name in self._names else None


def _start(held: str) -> int | None:
    """Where the first thing begins that is not between calls; None when it has not come."""
    rest = held.lstrip(_BETWEEN)
    if _PYTHON_TAG.startswith(rest):
        return None
    rest = rest.removeprefix(_PYTHON_TAG).lstrip(_BETWEEN)
    return len(held) - len(rest) if rest else None


def _name(head: str) -> str:
    """The name among the members that come before the arguments of a call that was cut off."""
    try:
        members = json.loads(head.rstrip().rstrip(",") + "}")
    except ValueError:
        return ""
    name = members.get("name")
    return name if isinstance(name, str) else ""
