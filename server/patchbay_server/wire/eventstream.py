"""Bytes of an AWS event stream to frames. What the payload of an event means is the reader's business.

Source: botocore 1.44.5, `botocore/eventstream.py` (read 2026-11-21).
"""

from binascii import crc32
from struct import Struct
from typing import Final

from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.wire.http import ANSWER_BYTES_MAX, Frame

CONTENT_TYPE: Final = "application/vnd.amazon.eventstream"
EXCEPTION: Final = "exception:"
"""What `Frame.event` starts with for an exception that the service models: `exception:throttlingException`."""
ERROR: Final = "error:"
"""What `Frame.event` starts with for any other failure: `error:` and its code; the data is its text."""

HEADERS_BYTES_MAX: Final = 128 * 1024
HEADERS_MAX: Final = 256

_KNOWN_MAX: Final = 32
_KNOWN_BYTES_MAX: Final = 1024

_PRELUDE: Final = Struct("!III")
_CRC: Final = Struct("!I")
_BARE_BYTES: Final = _PRELUDE.size + _CRC.size
"""A message without headers and payload."""

_STRING: Final = 7
_COUNTED: Final = frozenset({6, _STRING})
"""Header types whose value begins with its length: bytes and text."""
_VALUE_BYTES: Final = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}
"""Bytes of a value by header type: true, false, the four integers, a time and a UUID."""


class Decoder:
    """Cuts one event stream into frames, however the network cut it into reads. Used once; does no I/O.

    Each message is one frame: its payload, and as `Frame.event` its `:event-type`, or `EXCEPTION` or `ERROR` with what
    failed. Messages of a kind that the protocol does not define are skipped. Both checksums are verified, the first one
    before the lengths that it protects are believed.

    Time and memory are linear in the bytes fed.

    Args:
        message_bytes_max: bound of one message with everything that belongs to it.
    """

    def __init__(self, *, message_bytes_max: int = ANSWER_BYTES_MAX) -> None:
        self._message_bytes_max = message_bytes_max
        self._buffer = bytearray()
        self._total = 0  # of the message at the start of the buffer, once its prelude has been checked
        self._headers = 0
        self._known: dict[bytes, dict[str, str]] = {}

    def feed(self, data: bytes) -> list[Frame]:
        """The messages that `data`, the next bytes of the stream, completes.

        Raises:
            PatchbayError: UPSTREAM_MALFORMED_RESPONSE for a wrong checksum, a length out of bounds or broken headers;
                feed no more then.
        """
        self._buffer += data
        frames: list[Frame] = []
        start = 0
        while len(self._buffer) - start >= (self._total or _PRELUDE.size):
            if not self._total:
                self._read_prelude(start)
            else:
                frames += self._message(start)
                start += self._total
                self._total = 0
        del self._buffer[:start]
        return frames

    def finish(self) -> list[Frame]:
        """Nothing: a stream ends after a whole message.

        Raises:
            PatchbayError: UPSTREAM_TRUNCATED when it ends within one.
        """
        if self._buffer:
            raise PatchbayError(
                Reason.UPSTREAM_TRUNCATED, "the provider's answer ended in the middle of an event; try again"
            )
        return []

    def _read_prelude(self, start: int) -> None:
        total, headers, crc = _PRELUDE.unpack_from(self._buffer, start)
        if crc != crc32(self._buffer[start : start + _PRELUDE.size - _CRC.size]):
            raise _malformed("an event whose first checksum is wrong")
        if total > self._message_bytes_max:
            raise PatchbayError(
                Reason.UPSTREAM_MALFORMED_RESPONSE,
                f"the provider sent an event of more than {self._message_bytes_max} bytes; ask for a shorter answer",
            )
        if headers > min(HEADERS_BYTES_MAX, total - _BARE_BYTES):
            raise _malformed("an event whose lengths cannot be right")
        self._total, self._headers = total, headers

    def _message(self, start: int) -> list[Frame]:
        message = bytes(memoryview(self._buffer)[start : start + self._total])
        end = len(message) - _CRC.size
        if _CRC.unpack_from(message, end)[0] != crc32(memoryview(message)[:end]):
            raise _malformed("an event whose checksum is wrong")
        payload_at = _PRELUDE.size + self._headers
        return _framed(self._texts(message[_PRELUDE.size : payload_at]), message[payload_at:end])

    def _texts(self, block: bytes) -> dict[str, str]:
        # A stream has a handful of header blocks, each of them many times.
        texts = self._known.get(block)
        if texts is None:
            texts = _texts(block)
            if len(block) <= _KNOWN_BYTES_MAX and len(self._known) < _KNOWN_MAX:
                self._known[block] = texts
        return texts


def _framed(headers: dict[str, str], payload: bytes) -> list[Frame]:
    match headers.get(":message-type", "event"):
        case "event":
            return [Frame(payload, headers.get(":event-type", ""))]
        case "exception":
            return [Frame(payload, EXCEPTION + headers.get(":exception-type", ""))]
        case "error":
            return [Frame(headers.get(":error-message", "").encode(), ERROR + headers.get(":error-code", ""))]
        case _:
            return []


def _texts(data: bytes) -> dict[str, str]:
    """The headers that are texts; those of other types are checked and left out, as none of them names an event."""
    texts: dict[str, str] = {}
    names: set[bytes] = set()
    block = _Block(data)
    while block.more:
        name = block.take(block.take(1)[0])
        kind = block.take(1)[0]
        value = block.take(_value_bytes(kind, block))
        if not name or name in names or len(names) == HEADERS_MAX:
            raise _malformed("an event whose headers cannot be read")
        names.add(name)
        if kind == _STRING:
            texts[_decoded(name)] = _decoded(value)
    return texts


class _Block:
    """The header block of one message, taken apart from its start."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def more(self) -> bool:
        return self._at < len(self._data)

    def take(self, size: int) -> bytes:
        """The next `size` bytes.

        Raises:
            PatchbayError: UPSTREAM_MALFORMED_RESPONSE when there are fewer.
        """
        end = self._at + size
        if end > len(self._data):
            raise _malformed("an event whose headers cannot be read")
        taken, self._at = self._data[self._at : end], end
        return taken


def _value_bytes(kind: int, block: _Block) -> int:
    if kind in _COUNTED:
        return int.from_bytes(block.take(2), "big")
    if kind not in _VALUE_BYTES:
        raise _malformed("an event whose headers cannot be read")
    return _VALUE_BYTES[kind]


def _decoded(text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise _malformed("an event whose headers cannot be read") from error


def _malformed(what: str) -> PatchbayError:
    return PatchbayError(Reason.UPSTREAM_MALFORMED_RESPONSE, f"the provider sent {what}")
