"""Credential fields checked against what a connector type declares, at creation, at rotation and at use.

Knows no provider: what a key's prefix says is `belonging`'s, what an address may be is checked where connections are
made. Messages never repeat a value.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

from patchbay_server.adapters.belonging import type_of_key
from patchbay_server.adapters.protocol import CredentialField, FieldKind, TypeInfo
from patchbay_server.errors import FieldViolation, PatchbayError, Reason
from patchbay_server.types import Secret

HEADERS_MAX: Final = 32
HEADER_NAME_CHARS_MAX: Final = 128
HEADERS_BYTES_MAX: Final = 16 * 1024
LAST_FOUR_CHARS_MIN: Final = 12
"""A shorter key shows nothing: four characters would be too much of it."""

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""A header's name. Source: RFC 9110, 5.6.2 (read 2026-11-20)."""

_ADMIN_PREFIXES: Final = ("sk-admin-", "sk-ant-admin")
_SHORT_NAME_CHARS_MAX: Final = 64

# Headers that frame the message, name the host, carry our own credential or speak for one hop only.
# Source: RFC 9110, 7.6.1 (read 2026-11-20).
_REFUSED_HEADERS: Final = frozenset(
    {
        "accept",
        "accept-encoding",
        "authorization",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "cookie",
        "expect",
        "host",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_REFUSED_HEADER_PREFIX: Final = "proxy-"

_NATIVE: Final = frozenset({"openai", "anthropic", "gemini", "azure_openai", "bedrock", "xai", "openrouter"})
"""Types that talk to one provider, whose keys are known. Others take any key."""


def validate(info: TypeInfo, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a new credential as they are to be sealed: without unset ones, texts without surrounding spaces.

    Raises:
        PatchbayError: INVALID_REQUEST naming every field at fault.
    """
    violations = list(_unknown(info, fields))
    kept: dict[str, Any] = {}
    for field in info.fields:
        value = _trimmed(fields.get(field.name))
        if not _is_blank(value):
            kept[field.name] = value
            violations += _wrong(info, field, value)
    violations += _missing(info, kept)
    _refuse(violations)
    return kept


def merge(info: TypeInfo, old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The fields after a rotation: an omitted one keeps its value unless one that is given replaces it. What changes is
    checked, and what is required.

    Raises:
        PatchbayError: INVALID_REQUEST naming every field at fault: one that is given empty, or all when none is given.
    """
    if not new:
        raise PatchbayError(Reason.INVALID_REQUEST, "a rotation changes at least one credential field")
    violations = list(_unknown(info, new))
    merged = dict(old)
    for field in info.fields:
        if field.name not in new:
            continue
        value = _trimmed(new[field.name])
        if _is_blank(value):
            violations.append(FieldViolation(field.name, "leave the field out to keep its value; it cannot be emptied"))
            continue
        merged[field.name] = value
        for replaced in set(field.replaces) - new.keys():
            merged.pop(replaced, None)
        violations += _wrong(info, field, value)
    violations += _missing(info, merged)
    _refuse(violations)
    return merged


def require_usable(info: TypeInfo, secret: Secret) -> None:
    """Refuse a stored credential that today's rules would not accept, before it is used.

    Raises:
        PatchbayError: CONNECTOR_MISCONFIGURED naming every field at fault.
    """
    try:
        validate(info, secret.reveal())
    except PatchbayError as error:
        raise PatchbayError(
            Reason.CONNECTOR_MISCONFIGURED,
            "the connector's credential is not valid; rotate the fields that are named",
            violations=error.violations,
        ) from None


def describe(info: TypeInfo, secret: Secret) -> dict[str, str]:
    """What may be shown of a credential, by field: texts, addresses, flags as `true` or `false`, header names."""
    fields = secret.reveal()
    shown = {field.name: _SHOWN[field.kind](fields[field.name]) for field in info.fields if field.name in fields}
    return {name: text for name, text in shown.items() if text}


def last_four(info: TypeInfo, secret: Secret) -> str:
    """The last four characters of the key, or "" when there is none or it is too short to show any of it."""
    for field in info.fields:
        value = secret.text(field.name)
        if field.kind is FieldKind.SECRET and value:
            return value[-4:] if len(value) >= LAST_FOUR_CHARS_MIN else ""
    return ""


# --- the rules -------------------------------------------------------------------------------------------------------

_Violations = Iterable[FieldViolation]


def _unknown(info: TypeInfo, fields: Mapping[str, Any]) -> _Violations:
    known = {field.name for field in info.fields}
    for name in fields:
        if name not in known:
            short = _CONTROL.sub("?", name[:_SHORT_NAME_CHARS_MAX])
            yield FieldViolation(short, f"a credential of type {info.type!r} has no such field")


def _missing(info: TypeInfo, kept: Mapping[str, Any]) -> _Violations:
    groups: dict[str, list[str]] = {}
    for field in info.fields:
        if field.required and _is_blank(kept.get(field.name)):
            yield FieldViolation(field.name, f"{field.label} is needed")
        if field.one_of:
            groups.setdefault(field.one_of, []).append(field.name)
    for names in groups.values():
        if all(_is_blank(kept.get(name)) for name in names):
            yield FieldViolation(names[0], f"one of {', '.join(names)} is needed")


def _wrong(info: TypeInfo, field: CredentialField, value: Any) -> _Violations:
    match field.kind:
        case FieldKind.HEADERS:
            return (FieldViolation(field.name, why) for why in _wrong_headers(value))
        case FieldKind.FLAG:
            return () if isinstance(value, bool) else (FieldViolation(field.name, "must be true or false"),)
        case FieldKind.CHOICE:
            fits = isinstance(value, str) and value in field.choices
            return () if fits else (FieldViolation(field.name, f"must be one of {', '.join(field.choices)}"),)
        case FieldKind.SECRET | FieldKind.TEXT | FieldKind.URL:
            why = _wrong_text(info, field, value)
            return (FieldViolation(field.name, why),) if why else ()


def _wrong_text(info: TypeInfo, field: CredentialField, value: Any) -> str:
    if not isinstance(value, str):
        return "must be text"
    if len(value) > field.length_max:
        return f"must have at most {field.length_max} characters"
    if _CONTROL.search(value):
        return "must not hold control characters, such as the line end of a pasted key"
    if field.kind is not FieldKind.URL and not value.isascii():
        # It is sent in a header, which holds no more.
        return "must be plain ASCII"
    if field.pattern and not re.fullmatch(field.pattern, value):
        return f"does not look like a value of {field.label}"
    return _wrong_key(info, value) if field.kind is FieldKind.SECRET else ""


def _wrong_key(info: TypeInfo, key: str) -> str:
    """Why a key plainly belongs elsewhere. An unfamiliar prefix is no reason: proxies hand out keys of their own."""
    if info.type not in _NATIVE:
        return ""
    if key.startswith(_ADMIN_PREFIXES):
        return "this is an administration key, which cannot ask models; create an ordinary API key"
    owner = type_of_key(key)
    if owner and owner != info.type:
        return f"this is a key for a connector of type {owner!r}"
    return ""


def _wrong_headers(headers: Any) -> Iterable[str]:
    if not isinstance(headers, Mapping):
        yield "must be a map of header names to values"
        return
    if len(headers) > HEADERS_MAX:
        yield f"must have at most {HEADERS_MAX} headers"
        return
    seen: set[str] = set()
    size = 0
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str):
            yield "must be a map of text to text"
            return
        size += len(name) + len(value)
        yield from _wrong_header(name, value)
        if name.lower() in seen:
            yield "names a header twice"
        seen.add(name.lower())
    if size > HEADERS_BYTES_MAX:
        yield f"must be at most {HEADERS_BYTES_MAX} bytes together"


def _wrong_header(name: str, value: str) -> Iterable[str]:
    if len(name) > HEADER_NAME_CHARS_MAX or not _TOKEN.fullmatch(name):
        yield "has a name that is no header name"
        return
    if name.lower() in _REFUSED_HEADERS or name.lower().startswith(_REFUSED_HEADER_PREFIX):
        yield f"cannot set the header {name.lower()}, which is the gateway's own"
    if _CONTROL.search(value) or not value.isascii():
        yield f"has a value for {name.lower()} that is not plain ASCII text"


def _refuse(violations: list[FieldViolation]) -> None:
    if not violations:
        return
    first = violations[0]
    more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
    raise PatchbayError(Reason.INVALID_REQUEST, f"{first.field}: {first.description}{more}", violations=violations[:20])


def _trimmed(value: Any) -> Any:
    return value.strip(" ") if isinstance(value, str) else value


def _is_blank(value: Any) -> bool:
    """Whether a value is as good as not given. False is a value."""
    return value is None or (isinstance(value, str) and not value.strip()) or value == {}


_SHOWN: Final[Mapping[FieldKind, Callable[[Any], str]]] = MappingProxyType(
    {
        FieldKind.SECRET: lambda _value: "",
        FieldKind.TEXT: str,
        FieldKind.URL: str,
        FieldKind.CHOICE: str,
        FieldKind.FLAG: lambda value: "true" if value else "false",
        FieldKind.HEADERS: lambda value: ", ".join(sorted(value)),
    }
)
