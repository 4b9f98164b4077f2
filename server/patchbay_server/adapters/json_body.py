"""JSON between a caller, us and a provider: embedded text, merged options, and bodies read without trust.

JSON that a caller hands over as text is checked and embedded byte for byte: key order and integers of any size survive.
"""

import json
from collections.abc import Mapping
from typing import Any, Final, TypeVar

import msgspec

from patchbay_server.errors import PatchbayError, Reason

RESERVED_OPTIONS: Final = frozenset({"model", "messages", "stream"})
"""Body fields that provider options never override, whatever the dialect; a dialect adds more."""

# What msgspec raises on text that is not JSON, on bytes that are not UTF-8, and on nesting beyond its limit.
_UNDECODABLE: Final = (msgspec.DecodeError, UnicodeError, RecursionError)

_T = TypeVar("_T")

_decode_any: Final = msgspec.json.Decoder()
_decode_members: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


def encode(body: Any) -> bytes:
    """The JSON text of `body`; `msgspec.Raw` values in it are written as they are."""
    return msgspec.json.encode(body)


def embedded_object(text: str, field: str) -> msgspec.Raw:
    """The JSON object that a caller wrote, to be embedded byte for byte.

    Args:
        field: the request field that holds it, for the error.

    Raises:
        PatchbayError: INVALID_REQUEST naming `field` when the text is not one JSON object.
    """
    try:
        value = _decode_any.decode(text)
    except _UNDECODABLE as error:
        raise PatchbayError(Reason.INVALID_REQUEST, f"`{field}` is not valid JSON", field=field) from error
    if not isinstance(value, dict):
        raise PatchbayError(Reason.INVALID_REQUEST, f"`{field}` has to be a JSON object", field=field)
    return msgspec.Raw(text.encode())


def merged(body: Mapping[str, Any], options_json: str, reserved: frozenset[str] = RESERVED_OPTIONS) -> dict[str, Any]:
    """`body` with the caller's provider options merged in: objects member by member, everything else replaced.

    Args:
        reserved: fields of the body; `outer.inner` is a member of one that is an object.

    Raises:
        PatchbayError: INVALID_REQUEST naming `provider_options_json`: it is no JSON object, or sets a reserved field.
    """
    field = "provider_options_json"
    if not options_json.strip():
        return dict(body)
    options = _decode_members.decode(embedded_object(options_json, field))
    for name, option in options.items():
        inner = (f"{name}.{member}" for member in _members(option) or ())
        if not reserved.isdisjoint((name, *inner)):
            raise PatchbayError(Reason.INVALID_REQUEST, f"`{field}` cannot set `{name}`", field=field)
    return _merged_members(body, options)


def _merged_members(body: Mapping[str, Any], options: Mapping[str, msgspec.Raw]) -> dict[str, Any]:
    result = dict(body)
    for name, option in options.items():
        ours = _members(result[name]) if name in result else None
        theirs = _members(option)
        result[name] = option if ours is None or theirs is None else _merged_members(ours, theirs)
    return result


def _members(value: Any) -> Mapping[str, Any] | None:
    """The members of an object, or None when `value` is something else."""
    if isinstance(value, dict):
        return value
    if isinstance(value, msgspec.Raw) and bytes(value).lstrip()[:1] == b"{":
        return _decode_members.decode(value)
    return None


def decode(data: bytes) -> Any:
    """The JSON value of untrusted bytes.

    Raises:
        ValueError: it is not JSON, not UTF-8, or nested too deeply.
    """
    try:
        return _decode_any.decode(data)
    except _UNDECODABLE as error:
        raise ValueError("not JSON") from error


def typed(decoder: msgspec.json.Decoder[_T], data: bytes) -> _T:
    """The value of untrusted bytes as `decoder` types it.

    Raises:
        ValueError: it is not JSON, not UTF-8, nested too deeply, or of another shape.
    """
    try:
        return decoder.decode(data)
    except _UNDECODABLE as error:
        raise ValueError("not the expected JSON") from error


def object_or_empty(data: bytes) -> dict[str, Any]:
    """The JSON object of untrusted bytes; empty for anything else, as an error body may be HTML, cut or absent."""
    try:
        value = decode(data)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def compact(data: bytes) -> bytes:
    """The same JSON without the blanks between its tokens; texts and numbers stay byte for byte.

    Raises:
        ValueError: it is not JSON, not UTF-8, or nested too deeply.
    """
    try:
        return msgspec.json.format(data.decode(), indent=-1).encode()
    except _UNDECODABLE as error:
        raise ValueError("not JSON") from error


def text_or_empty(value: Any) -> str:
    """`value` if it is text; empty for anything else, as a member of untrusted JSON may be of any type."""
    return value if isinstance(value, str) else ""


def decode_leniently(data: bytes) -> Any:
    """As `decode`, but also what is not quite JSON and still clear: half a surrogate pair, NaN, a huge number.

    Texts may hold lone surrogates; `mended` makes them fit to be passed on.

    Raises:
        ValueError: it cannot be read at all.
    """
    try:
        return _decode_any.decode(data)
    except _UNDECODABLE:
        pass
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("not JSON") from error


def mended(text: str) -> str:
    """`text` with its surrogate pairs joined and U+FFFD in place of each half that stands alone."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
