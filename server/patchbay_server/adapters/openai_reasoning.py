"""Reasoning that comes in details: OpenRouter's common form of what its providers give, kept to be sent back.

The details of an earlier answer go back as they came, so that a signed or encrypted one stays valid. In a stream they
come in pieces, which are joined here.

Source: OpenRouter's guide to reasoning tokens, the types of openrouter 1.3.84 (read 2026-11-20).
"""

import json
from typing import Any, Final

import msgspec

from patchbay_server.adapters.json_body import decode_leniently, mended
from patchbay_server.errors import PatchbayError, Reason

DETAILS_MAX: Final = 4096
"""More details than any answer has; bounds what a hostile upstream can make us keep."""

_GROWING: Final = ("text", "summary", "data")
"""The members that come in pieces."""
_SHOWN: Final = ("text", "summary")

_decode_details: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode


class ReasoningDetails:
    """Joins the details of one answer.

    A piece continues the detail of its index, if that is of the same type and not plainly another by its id. Members
    that grow are put together, of others the last that is not null stays.
    """

    def __init__(self) -> None:
        self._only = b""
        self._takes = 0
        self._details: list[dict[str, Any]] = []
        self._by_place: dict[tuple[Any, Any], dict[str, Any]] = {}

    @property
    def began(self) -> bool:
        return bool(self._details)

    def take(self, raw: msgspec.Raw) -> str:
        """Fold in the details of one delta or message; gives the text in them that can be shown.

        Raises:
            PatchbayError: UPSTREAM_MALFORMED_RESPONSE for more details than an answer can have.
        """
        pieces = _objects(raw)
        if not pieces:
            return ""
        self._only = bytes(raw).strip()
        self._takes += 1
        for piece in pieces:
            self._join(piece)
        return "".join(mended(text) for piece in pieces for name in _SHOWN if (text := _text(piece.get(name))))

    def state(self) -> bytes:
        """The details as a JSON list: byte for byte where they came at once."""
        if self._takes == 1:
            return self._only
        return json.dumps([_whole(detail) for detail in self._details], separators=(",", ":")).encode()

    def _join(self, piece: dict[str, Any]) -> None:
        detail = self._by_place.get(_place(piece))
        if detail is None or not _may_be_one(detail, piece):
            if len(self._details) >= DETAILS_MAX:
                raise PatchbayError(
                    Reason.UPSTREAM_MALFORMED_RESPONSE, "the provider sent more reasoning details than an answer has"
                )
            detail = {}
            self._details.append(detail)
            self._by_place[_place(piece)] = detail
        for name, value in piece.items():
            if name in _GROWING and isinstance(value, str):
                if not isinstance(detail.get(name), list):
                    detail[name] = []
                detail[name].append(value)
            elif value is not None or name not in detail:
                detail[name] = value


def details_of(state: bytes) -> list[msgspec.Raw]:
    """The details in a state, each byte for byte.

    Raises:
        ValueError: it is no list of objects.
    """
    try:
        details = _decode_details(state)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise ValueError("not a list of details") from error
    if not details or not all(bytes(detail).lstrip().startswith(b"{") for detail in details):
        raise ValueError("not a list of details")
    return details


def _place(piece: dict[str, Any]) -> tuple[Any, Any]:
    index = piece.get("index")
    return (index if isinstance(index, int) else None, _text(piece.get("type")))


def _may_be_one(detail: dict[str, Any], piece: dict[str, Any]) -> bool:
    ours, theirs = detail.get("id"), piece.get("id")
    return ours is None or theirs is None or ours == theirs


def _whole(detail: dict[str, Any]) -> dict[str, Any]:
    grown = {name: "".join(detail[name]) for name in _GROWING if isinstance(detail.get(name), list)}
    return {**detail, **grown}


def _objects(raw: msgspec.Raw) -> list[dict[str, Any]]:
    try:
        value = decode_leniently(bytes(raw))
    except ValueError:
        return []
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
