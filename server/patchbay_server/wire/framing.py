"""The cutters: how the bytes of a successful answer become frames, one class for each `Framing`."""

import re
from collections.abc import Callable
from typing import Final, Protocol, assert_never

from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.wire import eventstream, sse
from patchbay_server.wire.http import ANSWER_BYTES_MAX, Frame, Framing

_BLANK: Final = b" \t\r\n"
_BOM: Final = b"\xef\xbb\xbf"
_BLANK_BYTES_MAX: Final = 1024
_NOT_EVENTS: Final = (b"{", b"[", b"<")
_JSON: Final = (b"{", b"[")
_LINE_ENDS: Final = (b"\r", b"\n")
_JSON_LINE: Final = re.compile(rb"[\r\n][{\[]")
_TEXT: Final = frozenset(b"{[<\xef" + _BLANK)
"""First bytes of JSON and HTML, with or without a BOM or blanks before it."""


class Cutter(Protocol):
    """Cuts one body into frames, however the network cut it into reads. Used once."""

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that `data`, the next bytes of the body, completes.

        Raises:
            PatchbayError: UPSTREAM_MALFORMED_RESPONSE when a bound is passed.
        """
        ...

    def finish(self) -> list[Frame]:
        """The frames that the end of the body completes.

        Raises:
            PatchbayError: as `feed`, and UPSTREAM_TRUNCATED where the framing itself tells that the end is missing.
        """
        ...


def cutter(framing: Framing) -> Cutter:
    """A new cutter for one body."""
    match framing:
        case Framing.BODY:
            return Whole()
        case Framing.SSE:
            return EventsOrWhole(sse.Decoder)
        case Framing.SSE_THEN_JSON:
            return EventsOrWhole(EventsThenJson)
        case Framing.EVENT_STREAM:
            return MessagesOrWhole()
        case _:
            assert_never(framing)


class Whole:
    """The body as one `whole` frame, also when it is empty."""

    def __init__(self) -> None:
        self._body = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        if len(self._body) + len(data) > ANSWER_BYTES_MAX:
            raise too_long()
        self._body += data
        return []

    def finish(self) -> list[Frame]:
        return [Frame(bytes(self._body), whole=True)]


class EventsOrWhole:
    """Events, or one `whole` frame when the body is plainly no event stream: it starts, but for blanks, with {, [ or <.

    The content type does not decide, because servers send errors as JSON under `text/event-stream` and events under
    other types. No line of an event stream that means anything begins with one of the three.

    Args:
        events: makes the cutter of a body that is an event stream.
    """

    def __init__(self, events: Callable[[], Cutter]) -> None:
        self._events = events
        self._cutter: Cutter | None = None
        self._blank = b""  # until decided

    def feed(self, data: bytes) -> list[Frame]:
        if self._cutter is not None:
            return self._cutter.feed(data)
        self._blank += data
        if _BOM.startswith(self._blank):
            return []
        first = self._blank.removeprefix(_BOM).lstrip(_BLANK)[:1]
        if not first and len(self._blank) <= _BLANK_BYTES_MAX:
            return []
        self._cutter = Whole() if first in _NOT_EVENTS else self._events()
        return self._cutter.feed(self._blank)

    def finish(self) -> list[Frame]:
        return [] if self._cutter is None else self._cutter.finish()


class EventsThenJson:
    """Events, then what is left as one `whole` frame from the first line on that starts with { or [.

    Such a line means nothing in an event stream, where it would be skipped as a field of an unknown name.
    """

    def __init__(self) -> None:
        self._cutter: Cutter = sse.Decoder()
        self._broken_off = False
        self._at_line_start = True

    def feed(self, data: bytes) -> list[Frame]:
        start = -1 if self._broken_off else self._start_of_json(data)
        if start < 0:
            return self._cutter.feed(data)
        frames = self._cutter.feed(data[:start]) + self._cutter.finish()
        self._broken_off, self._cutter = True, Whole()
        return frames + self._cutter.feed(data[start:])

    def finish(self) -> list[Frame]:
        return self._cutter.finish()

    def _start_of_json(self, data: bytes) -> int:
        """Where in `data` the line starts that is no event's; -1 when there is none."""
        if self._at_line_start and data.startswith(_JSON):
            return 0
        if data:
            self._at_line_start = data.endswith(_LINE_ENDS)
        found = _JSON_LINE.search(data)
        return found.start() + 1 if found else -1


class MessagesOrWhole:
    """Messages of an AWS event stream, or one `whole` frame when the body is plainly text.

    One byte decides: a message begins with its length, whose first byte is 0 or 1 within the bound of a message.
    """

    def __init__(self) -> None:
        self._cutter: Cutter | None = None

    def feed(self, data: bytes) -> list[Frame]:
        if self._cutter is None and data:
            self._cutter = Whole() if data[0] in _TEXT else eventstream.Decoder()
        return [] if self._cutter is None else self._cutter.feed(data)

    def finish(self) -> list[Frame]:
        return [] if self._cutter is None else self._cutter.finish()


def too_long() -> PatchbayError:
    """What to raise when a whole answer is longer than `ANSWER_BYTES_MAX`."""
    return PatchbayError(
        Reason.UPSTREAM_MALFORMED_RESPONSE,
        f"the provider sent an answer of more than {ANSWER_BYTES_MAX} bytes; ask for a shorter answer",
    )
