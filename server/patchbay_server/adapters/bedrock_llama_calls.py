"""Calls of tools within what a Llama writes: told from text while both arrive in pieces.

Source: meta-llama/llama-stack, `models/llama/llama3_1/prompt_format.md`, "JSON based tool calling" (read 2026-11-21).
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
_HEAD_CHARS_MAX: Final = 1024
"""More than this many blanks begin no call."""
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
        self._head = ""  # what may become the start of a call
        self._object = _Object()
        self._calls = 0

    def feed(self, text: str) -> list[Found]:
        """What `text`, the next piece, makes certain, in order. No text is empty."""
        found: list[Found] = []
        while text:
            if self._only_text:
                found.append(text)
                break
            text = self._read(text, found) if self._object.begun else self._look(text, found)
        return found

    def finish(self) -> list[Found]:
        """What is still held at the end: a call that was cut off within its arguments, or text."""
        held = self._head + self._object.text
        cut_off = self._begun_call(self._object.text)
        if cut_off is not None:
            return [cut_off]
        return [held] if held.strip(_BETWEEN) or (held and not self._calls) else []

    def _look(self, text: str, found: list[Found]) -> str:
        """Look for the start of a call in what is held and `text`; what of it is still to be read."""
        self._head += text
        start = _start(self._head)
        if start is None and len(self._head) <= _HEAD_CHARS_MAX:
            return ""
        longest = max(map(len, self._starts))
        squeezed = "".join(self._head[start : (start or 0) + 4 * longest].split())
        if start is not None and any(squeezed.startswith(known) for known in self._starts):
            begun, self._head = self._head[start:], self._head[:start]
            self._object.begun = True
            return begun
        if start is None or not any(known.startswith(squeezed) for known in self._starts):
            self._give_up(found)
        return ""

    def _read(self, text: str, found: list[Found]) -> str:
        """Read on in the object that has begun; what comes after it."""
        rest = self._object.read(text)
        if rest is None:
            return ""
        call = self._call(self._object.text)
        if call is None:
            self._give_up(found)
        else:
            found.append(call)
            self._calls += 1
            self._head, self._object = "", _Object()
        return rest

    def _give_up(self, found: list[Found]) -> None:
        """All that is held is text, and so is what follows."""
        found.append(self._head + self._object.text)
        self._head, self._object = "", _Object()
        self._only_text = True

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

    def _begun_call(self, text: str) -> FoundCall | None:
        arguments = _ARGUMENTS.search(text)
        if arguments is None:
            return None
        name = _name(text[: arguments.start()])
        return FoundCall(name, text[arguments.end() :]) if name in self._names else None


class _Object:
    """A JSON object that comes in pieces, from its first brace to its last."""

    def __init__(self) -> None:
        self.begun = False
        self._pieces: list[str] = []
        self._depth = 0
        self._in_string = False
        self._escaped = False  # the next character is no quote and no brace, whatever it is

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    def read(self, text: str) -> str | None:
        """What of `text` comes after the object; None when it does not end within."""
        at = 1 if self._escaped else 0
        self._escaped = False
        while (match := _ATTENTION.search(text, at)) is not None:
            at = match.end()
            if match[0] == "\\":
                self._escaped = at == len(text)
                at += 1
            elif match[0] == '"':
                self._in_string = not self._in_string
            elif not self._in_string:
                self._depth += 1 if match[0] == "{" else -1
                if not self._depth:
                    self._pieces.append(text[:at])
                    return text[at:]
        self._pieces.append(text)
        return None


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
