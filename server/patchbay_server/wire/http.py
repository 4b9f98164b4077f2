"""The values between adapters and the upstream driver: one request, one whole answer, the frames a body is cut into."""

from collections.abc import Mapping
from datetime import datetime
from enum import Enum, auto
from typing import Final

import msgspec

ANSWER_BYTES_MAX: Final = 16 * 1024 * 1024
"""Bound of a whole unary answer, and of one event of a stream."""
ERROR_BYTES_MAX: Final = 64 * 1024
"""How much of an error answer is read; what comes after is left unread."""


class Framing(Enum):
    """How the body of a successful answer is cut into frames."""

    BODY = auto()
    """The whole body is one frame with `whole` set."""
    SSE = auto()
    """A WHATWG event stream. A body that is plainly not one (it starts with `{`, `[` or `<`) becomes one `whole` frame.
    """
    SSE_THEN_JSON = auto()
    """As SSE, from a server that may break an event stream off with bare JSON: what is left of the body, from the first
    line that starts with `{` or `[`, becomes one `whole` frame.
    """
    EVENT_STREAM = auto()
    """An AWS event stream, which is binary. A body that is plainly text becomes one `whole` frame."""


class HttpRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request to a provider, ready to send.

    Args:
        url: absolute, with no credentials in it.
        headers: names in lower case. They carry credentials, so this value never prints them.
        framing: how to cut a 2xx answer.
    """

    method: str
    url: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    framing: Framing = Framing.BODY

    def __repr__(self) -> str:
        return f"HttpRequest({self.method} {len(self.body)} bytes)"

    def __rich_repr__(self) -> list[tuple[str, str]]:
        return [("method", self.method)]


class HttpAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A whole answer.

    Header names are in lower case; the body is bounded and, for errors, may be cut at `ERROR_BYTES_MAX`.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    received_at: datetime

    def __repr__(self) -> str:
        return f"HttpAnswer({self.status} {len(self.body)} bytes)"

    def __rich_repr__(self) -> list[tuple[str, int]]:
        return [("status", self.status)]


class Frame(msgspec.Struct, frozen=True, gc=False):
    """One unit of an answer: the data of an event and its type, or (`whole`) the entire body. Of a `torn` event the end
    of the body came before its blank line, so that what it lacks was perhaps never received.
    """

    data: bytes
    event: str = "message"
    whole: bool = False
    torn: bool = False
