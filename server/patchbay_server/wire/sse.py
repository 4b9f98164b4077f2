"""Bytes of a WHATWG event stream to frames. What the data of an event means is the reader's business."""

from typing import Final

from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.wire.http import ANSWER_BYTES_MAX, Frame

_BOM: Final = b"\xef\xbb\xbf"
_MESSAGE: Final = "message"


class Decoder:
    """Cuts one event stream into frames, however the network cut it into reads. Used once; does no I/O.

    Follows the standard to the letter, but for two things that providers do. An event that the end of the stream leaves
    without its blank line (even its last line without a line end) is given instead of dropped. And a field `error` that
    holds an object is an event of that name: so did llama.cpp's server end a stream that failed, until 2025. `id` and
    `retry` serve reconnecting, which nobody does here, and are ignored like unknown fields and comments. `Frame.data`
    is valid UTF-8: what is not becomes U+FFFD.

    Time and memory are linear in the bytes fed: an unfinished line is kept in one growing buffer and never searched
    twice.

    Args:
        event_bytes_max: bound of the data of one event, and of one line that waits for its end.

    Source: https://html.spec.whatwg.org/multipage/server-sent-events.html, 9.2.5 and 9.2.6 (read 2026-11-20).
    """

    def __init__(self, *, event_bytes_max: int = ANSWER_BYTES_MAX) -> None:
        self._event_bytes_max = event_bytes_max
        self._line = bytearray()  # of the line whose end has not come; no LF in it
        self._after_cr = False  # the last read ended with CR: an LF that comes next belongs to it
        self._at_start = True  # no line has ended yet, so a BOM may lead
        self._event = ""
        self._data: list[bytes] = []
        self._data_bytes = 0  # each line with the LF that joins it to the next

    def feed(self, data: bytes) -> list[Frame]:
        """The events that `data`, the next bytes of the stream, completes.

        Raises:
            PatchbayError: UPSTREAM_MALFORMED_RESPONSE when an event or a line is too long; feed no more then.
        """
        data = self._with_lf_only(data)
        end = data.rfind(b"\n") + 1
        if not end:
            self._keep(data)
            return []
        if self._line:
            self._keep(data[: data.find(b"\n")])
            lines = bytes(self._line) + data[data.find(b"\n") : end]
            self._line.clear()
        else:
            lines = data[:end]
        self._keep(data[end:])
        return self._events(lines)

    def finish(self) -> list[Frame]:
        """The event that the end of the stream leaves without its blank line, if any.

        Raises:
            PatchbayError: as `feed`.
        """
        self._line += b"\n"
        frames = self._events(bytes(self._line))
        self._line.clear()
        self._dispatch(frames)
        return [Frame(frame.data, frame.event, torn=True) for frame in frames]

    def _with_lf_only(self, data: bytes) -> bytes:
        if self._after_cr and data:
            self._after_cr = False
            if data.startswith(b"\n"):
                data = data[1:]
        if b"\r" in data:
            self._after_cr = data.endswith(b"\r")
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        return data

    def _keep(self, part: bytes) -> None:
        if len(self._line) + len(part) > self._event_bytes_max:
            raise self._too_long()
        self._line += part

    def _events(self, lines: bytes) -> list[Frame]:
        """The events that `lines`, whole lines each with its LF, complete."""
        # A line end also ends any broken character, so whole lines can be judged on their own.
        if not lines.isascii():
            lines = _valid_utf8(lines)
        if len(lines) > self._event_bytes_max and any(len(line) > self._event_bytes_max for line in lines.split(b"\n")):
            raise self._too_long()
        if self._at_start:
            self._at_start = False
            lines = lines.removeprefix(_BOM)
        blocks = lines.split(b"\n\n")
        unfinished = blocks.pop()
        frames: list[Frame] = []
        for block in blocks:
            # Most events by far are one short data line, and nothing of the event came before.
            if block.startswith(b"data:") and b"\n" not in block and not self._data and not self._event:
                frames.append(Frame(block[6:] if block.startswith(b" ", 5) else block[5:]))
            else:
                self._interpret(block, frames)
                self._dispatch(frames)
        if unfinished:
            self._interpret(unfinished[:-1], frames)
        return frames

    def _interpret(self, block: bytes, frames: list[Frame]) -> None:
        """Takes in the lines of `block`, which LF parts; appends the events that blank lines complete to `frames`."""
        for line in block.split(b"\n"):
            if not line:
                self._dispatch(frames)
                continue
            name, _, value = line.partition(b":")
            if name == b"data":
                self._append_data(value.removeprefix(b" "))
            elif name == b"event":
                self._event = value.removeprefix(b" ").decode()
            elif name == b"error" and value.lstrip(b" ").startswith(b'{"'):
                self._event = "error"
                self._append_data(value.removeprefix(b" "))

    def _append_data(self, value: bytes) -> None:
        self._data.append(value)
        self._data_bytes += len(value) + 1
        if self._data_bytes - 1 > self._event_bytes_max:
            raise self._too_long()

    def _dispatch(self, frames: list[Frame]) -> None:
        if self._data:
            frames.append(Frame(b"\n".join(self._data), self._event or _MESSAGE))
            self._data.clear()
            self._data_bytes = 0
        self._event = ""

    def _too_long(self) -> PatchbayError:
        return PatchbayError(
            Reason.UPSTREAM_MALFORMED_RESPONSE,
            f"the provider sent an event of more than {self._event_bytes_max} bytes; ask for a shorter answer",
        )


def _valid_utf8(data: bytes) -> bytes:
    try:
        data.decode()
    except UnicodeDecodeError:
        return data.decode(errors="replace").encode()
    return data
