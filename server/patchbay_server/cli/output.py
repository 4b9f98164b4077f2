"""What commands print: tables for people, plain columns for pipes, JSON for programs, one line for a failure.

What comes from a gateway is printed without its control characters: a model's answer must not drive the terminal.
"""

import base64
import dataclasses
import json
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TextIO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text as Styled

from patchbay_client import ChatAnswer, Media, Reasoning, Refusal, Text, ToolCall, ToolResult

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_NOT_SHOWN = frozenset({"raw", "cache_breakpoint"})


class Printer:
    """Prints results to standard output, as `json` or for people, and remarks to standard error."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self._out = Console(highlight=False, emoji=False, markup=False)
        self._errors = Console(stderr=True, highlight=False, emoji=False, markup=False)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]], values: Sequence[object]) -> None:
        """Many things: their cells for people, at a terminal without empty columns; their values as a JSON array."""
        if self.as_json:
            self.json([to_plain(value) for value in values])
        elif self._out.is_terminal:
            self._bordered(columns, rows)
        else:
            _write_columns(sys.stdout, [columns, *rows])

    def facts(self, pairs: Sequence[tuple[str, object]], value: object) -> None:
        """One thing: names and values for people, without those that are empty; one JSON object."""
        if self.as_json:
            self.json(to_plain(value))
            return
        shown = [(name, cell(each)) for name, each in pairs if cell(each)]
        if self._out.is_terminal:
            grid = Table.grid(padding=(0, 2))
            grid.add_column(style="dim", no_wrap=True)
            for name, text in shown:
                grid.add_row(name, Styled(text))
            self._out.print(grid)
        else:
            _write_columns(sys.stdout, shown)

    def json(self, value: object, *, indent: int | None = 2) -> None:
        """JSON text and a line feed; without indentation it is one line."""
        sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=indent) + "\n")
        sys.stdout.flush()

    def line(self, text: str) -> None:
        """One line of result."""
        self.write(text + "\n")

    def write(self, text: str) -> None:
        """A piece of an answer, at once; for a terminal without its control characters."""
        sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
        sys.stdout.flush()

    def aside(self, text: str) -> None:
        """A piece of something that is not the answer, dim, at once."""
        self._errors.print(Styled(printable(text), style="dim"), end="", soft_wrap=True)

    def remark(self, text: str) -> None:
        """Something beside the result, dim."""
        self._errors.print(Styled(printable(text), style="dim"), soft_wrap=True)

    def failure(self, text: str) -> None:
        """Why the command failed, on one line."""
        line = Styled.assemble(("patchbay: ", "bold red"), " ".join(printable(text).split()))
        self._errors.print(line, soft_wrap=True)

    def _bordered(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        cells = [[cell(each) for each in row] for row in rows]
        shown = [index for index in range(len(columns)) if any(row[index] for row in cells)]
        if not shown:
            self.remark("there are none")
            return
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for index in shown:
            table.add_column(columns[index], overflow="fold")
        for row in cells:
            table.add_row(*(Styled(row[index]) for index in shown))
        self._out.print(table)


def printable(text: str) -> str:
    """The text without characters that drive a terminal; tabs and line feeds stay."""
    return _CONTROLS.sub(_REPLACEMENT, text)


def cell(value: object) -> str:
    """The value for people; empty for what is not set."""
    match value:
        case None | False:
            return ""
        case True:
            return "yes"
        case datetime():
            return f"{value:%Y-%m-%d %H:%M} UTC"
        case timedelta():
            return seconds(value.total_seconds())
        case int() | float():
            return f"{value:,}"
        case str():
            return printable(value).replace("\n", " ").replace("\t", " ")
        case Mapping():
            return ", ".join(f"{cell(name)}={cell(each)}" for name, each in value.items())
        case _ if isinstance(value, Sequence):
            return ", ".join(cell(each) for each in value)
        case _:
            return cell(str(value))


def seconds(length: float) -> str:
    """A length of time for people: "0.4 ms", "850 ms" or "1.2 s"."""
    if length < 0.01:
        return f"{length * 1000:.1f} ms"
    return f"{length * 1000:.0f} ms" if length < 1 else f"{length:.1f} s"


def to_plain(value: object) -> Any:
    """The value as JSON can hold it.

    Results become objects with the contract's names, times RFC 3339, lengths of time seconds, bytes base64.
    """
    match value:
        case ChatAnswer():
            return _answer(value)
        case Text() | Media() | Reasoning() | ToolCall() | ToolResult() | Refusal():
            return {"kind": snake_case(type(value).__name__), **_fields(value)}
        case datetime():
            return value.isoformat().replace("+00:00", "Z")
        case timedelta():
            return value.total_seconds()
        case bytes():
            return base64.b64encode(value).decode()
        case Mapping():
            return {name: to_plain(each) for name, each in value.items()}
        case tuple() | list():
            return [to_plain(each) for each in value]
        case _ if dataclasses.is_dataclass(value):
            return _fields(value)
        case _:
            return value


def snake_case(name: str) -> str:
    """`text_delta` for "TextDelta"."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def _fields(value: Any) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(value)]
    return {name: to_plain(getattr(value, name)) for name in names if name not in _NOT_SHOWN}


def _answer(answer: ChatAnswer) -> dict[str, Any]:
    said = {
        "id": answer.id,
        "create_time": answer.create_time,
        "text": answer.text,
        "reasoning": answer.reasoning,
        "refusal": answer.refusal,
        "tool_calls": [
            {"id": call.id, "name": call.name, "arguments_json": call.arguments_json} for call in answer.tool_calls
        ],
        "finish_reason": answer.finish_reason,
        "provider_finish_reason": answer.provider_finish_reason,
        "usage": answer.usage,
        "route": answer.route,
        "notices": answer.notices,
    }
    return {name: to_plain(each) for name, each in said.items()}


def _write_columns(stream: TextIO, rows: Sequence[Sequence[object]]) -> None:
    """Aligned columns, two spaces apart, no line longer than its content, nothing cut."""
    cells = [[cell(each) for each in row] for row in rows]
    widths = [max(len(row[index]) for row in cells) for index in range(len(cells[0]))] if cells else []
    for row in cells:
        padded = (text.ljust(width) for text, width in zip(row, widths, strict=True))
        stream.write("  ".join(padded).rstrip() + "\n")
