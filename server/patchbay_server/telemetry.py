"""What the process tells about itself: structured logs that hold no credential and no content.

Nothing here takes prompt or answer text. As the last line of defence, whatever looks like a provider's key or one of
our tokens is masked before a line is written, tracebacks included.
"""

import logging
import re
import sys
import traceback
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Final, TextIO

import msgspec

from patchbay_server.errors import PatchbayError

call_id: ContextVar[str] = ContextVar("call_id", default="")
"""The call that the current task works for; every log line of the task carries it."""

LINE_CHARS_MAX: Final = 16_000
CHAIN_MAX: Final = 10
"""Exceptions that led to one, and exceptions of one group, that are told."""

_SECRETS: Final = re.compile(
    r"""(?x)
    (?P<kind> \b (?: pb_[a-z0-9]{8,32}_ | sk-(?:ant-|proj-|svcacct-|admin-|or-)? | xai- | gsk_ | AIza | AKIA | ASIA
                    | ABSK | eyJ ) )
    [A-Za-z0-9_\-]{8,} [A-Za-z0-9_\-.+/=]*
    | (?P<scheme> (?i:bearer|basic) \s+ ) [A-Za-z0-9._~+/=-]{8,}
    | (?P<login> :// [^\s:/@]* : ) [^\s/@]+ (?= @ )
    """
)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


def redact(text: str) -> str:
    """`text` with everything that looks like a credential masked but for its kind."""
    return _SECRETS.sub(lambda match: f"{match['kind'] or match['scheme'] or match['login']}***", text)


def told_of(error: BaseException) -> str:
    """The types and places of an exception and of those that led to it. Not their words: code of others quotes what it
    had in its hands, a key or a prompt. Only the gateway's own errors, which hold neither, keep their message.
    """
    return "".join(_told_of(error, CHAIN_MAX))


def _told_of(error: BaseException, links_left: int) -> Iterator[str]:
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None and links_left:
        yield from _told_of(before, links_left - 1)
        yield "\nwhich led to\n\n"
    yield "Traceback (most recent call last):\n"
    yield from traceback.format_tb(error.__traceback__)
    message = f": {error.reason}: {error.message}" if isinstance(error, PatchbayError) else ""
    yield f"{type(error).__qualname__}{message}\n"
    if isinstance(error, BaseExceptionGroup) and links_left:
        for number, inner in enumerate(error.exceptions[:CHAIN_MAX], start=1):
            yield f"\nexception {number} of {len(error.exceptions)} in it:\n\n"
            yield from _told_of(inner, links_left - 1)


class _Lines(logging.Formatter):
    def formatException(self, ei: Any) -> str:  # noqa: N802 -- the name that `logging` calls
        return "" if ei[1] is None else told_of(ei[1])


class JsonLines(_Lines):
    """One JSON object a line: time, level, logger, message, call_id, error."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redact(record.getMessage())[:LINE_CHARS_MAX],
        }
        if current := call_id.get():
            line["call_id"] = current
        if record.exc_info:
            line["error"] = redact(self.formatException(record.exc_info))[-LINE_CHARS_MAX:]
        return msgspec.json.encode({name: _whole(text) for name, text in line.items()}).decode()


class TextLines(_Lines):
    """A line for people; a message cannot begin another."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 -- the name that `logging` calls
        record.message = _CONTROL.sub(" ", record.message)[:LINE_CHARS_MAX]
        return super().formatMessage(record)


def _whole(text: str) -> str:
    """`text` without halves of characters, which names of files can hold and JSON cannot."""
    return text if text.isascii() else text.encode(errors="replace").decode()


def set_up_logging(*, level: str, style: str, stream: TextIO = sys.stderr) -> None:
    """Send the process's log to `stream`, through the redactor, whoever writes it."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines() if style == "json" else TextLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # Their debug lines show headers and statements, which are none of a log's business.
    for noisy in ("asyncio", "aiohttp", "httpx", "httpcore", "sqlalchemy", "alembic", "grpc"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLogger().level))
