"""The cutters: how the bytes of a successful answer become frames, one class for each `Framing`."""

from typing import Final, Protocol, assert_never

from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.wire import sse
from patchbay_server.wire.http import ANSWER_BYTES_MAX, Frame, Framing

_BLANK: Final = b" \t\r\n"
_BOM: Final = b"\xef\xbb\xbf"
_BLANK_BYTES_MAX: Final = 1024
_NOT_EVENTS: Final = (b"{", b"[", b"<")


class Cutter(Protocol):
    """Cuts one body into frames, however the network cut it into reads. Used once."""

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that `data`, the next bytes of the body, completes.

        Raises:
            PatchbayError: UPSTREAM_MALFORMED_RESPONSE when a bound is passed.
        """
        ...

    def finish(self) -> list[Frame]:
        """The frames that the end of the body completes."""
        ...


def cutter(framing: Framing) -> Cutter:
    """A new cutter for one body."""
    match framing:
        case Framing.BODY:
            return Whole()
        case Framing.SSE:
            return EventsOrWhole()
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
    """

    def __init__(self) -> None:
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
        self._cutter = Whole() if first in _NOT_EVENTS else sse.Decoder()
        return self._cutter.feed(self._blank)

    def finish(self) -> list[Frame]:
        return [] if self._cutter is None else self._cutter.finish()


def too_long() -> PatchbayError:
    """What to raise when a whole answer is longer than `ANSWER_BYTES_MAX`."""
    return PatchbayError(
        Reason.UPSTREAM_MALFORMED_RESPONSE,
        f"the provider sent an answer of more than {ANSWER_BYTES_MAX} bytes; ask for a shorter answer",
    )
