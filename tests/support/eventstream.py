"""AWS event stream messages as the service writes them."""

import json
from binascii import crc32
from collections.abc import Iterable, Mapping
from struct import pack
from typing import Any

TEXT = 7


def header(name: str, value: str) -> bytes:
    """A header of type text."""
    return raw_header(name.encode(), TEXT, pack("!H", len(value.encode())) + value.encode())


def raw_header(name: bytes, kind: int, value: bytes) -> bytes:
    return bytes([len(name)]) + name + bytes([kind]) + value


def message(headers: Iterable[bytes], payload: bytes) -> bytes:
    """One message with its two checksums."""
    block = b"".join(headers)
    lengths = pack("!II", 16 + len(block) + len(payload), len(block))
    body = lengths + pack("!I", crc32(lengths)) + block + payload
    return body + pack("!I", crc32(body))


def event(kind: str, data: Mapping[str, Any] | bytes) -> bytes:
    return _named(":event-type", kind, "event", data)


def exception(kind: str, data: Mapping[str, Any] | bytes) -> bytes:
    return _named(":exception-type", kind, "exception", data)


def error(code: str, text: str) -> bytes:
    """A failure that the service does not model."""
    return message([header(":error-code", code), header(":error-message", text), header(":message-type", "error")], b"")


def _named(name: str, kind: str, message_type: str, data: Mapping[str, Any] | bytes) -> bytes:
    payload = data if isinstance(data, bytes) else json.dumps(data, separators=(",", ":"), ensure_ascii=False).encode()
    headers = (
        header(name, kind),
        header(":content-type", "application/json"),
        header(":message-type", message_type),
    )
    return message(headers, payload)
