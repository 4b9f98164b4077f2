"""AWS Signature Version 4 for requests whose body is at hand. Knows no service; opens nothing and asks no clock.

Source: botocore 1.44.5, `botocore/auth.py`, `SigV4Auth`, and AWS's own signing vectors in its source distribution
(read 2026-11-21).
"""

import hashlib
import hmac
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final, NoReturn
from urllib.parse import quote, urlsplit

import msgspec

from patchbay_server.wire.http import HttpRequest

_ALGORITHM: Final = "AWS4-HMAC-SHA256"
_TERMINATOR: Final = "aws4_request"
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}

_SET_HERE: Final = frozenset({"authorization", "date", "host", "x-amz-date", "x-amz-security-token"})
_NEVER_SIGNED: Final = frozenset(
    {
        "baggage",
        "connection",
        "expect",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "traceparent",
        "tracestate",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "user-agent",
        "x-amzn-trace-id",
    }
)
"""Headers that hops on the way add or change."""


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """Who signs. `session_token` belongs to temporary keys and is empty for others. Prints as `***`."""

    access_key_id: str
    secret_access_key: str
    session_token: str = ""

    def __repr__(self) -> str:
        return "***"

    def __rich_repr__(self) -> list[tuple[str, str]]:
        return []

    def __reduce__(self) -> NoReturn:
        raise TypeError("credentials do not leave the process")


def signed(request: HttpRequest, credentials: Credentials, *, service: str, region: str, now: datetime) -> HttpRequest:
    """`request` with the headers that prove who sends it: `x-amz-date`, `x-amz-security-token`, `authorization`.

    Every header that the request has is signed, but for those that belong to single hops, and so is the host of its
    URL; headers that are added later are not covered. The path is signed as `request.url` has it, percent-encoded once
    more, with nothing normalised: it has to be ASCII and to go out as it is. The body is hashed unless a header
    `x-amz-content-sha256` gives its hash.

    Args:
        service: the service's signing name, such as `bedrock`.
        now: aware; the service refuses a time that is more than five minutes off.
    """
    moment = now.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
    own = [("x-amz-date", moment)]
    if credentials.session_token:
        own.append(("x-amz-security-token", credentials.session_token))
    headers = (*(header for header in request.headers if header[0] not in _SET_HERE), *own)
    scope = f"{moment[:8]}/{region}/{service}/{_TERMINATOR}"
    lines = _header_lines((("host", _host(request.url)), *headers))
    canonical = _canonical_request(request, lines)
    to_sign = "\n".join((_ALGORITHM, moment, scope, _hash(canonical.encode())))
    signature = _mac(_key(credentials.secret_access_key, scope), to_sign).hex()
    authorization = (
        f"{_ALGORITHM} Credential={credentials.access_key_id}/{scope}, "
        f"SignedHeaders={';'.join(lines)}, Signature={signature}"
    )
    return msgspec.structs.replace(request, headers=(*headers, ("authorization", authorization)))


def _canonical_request(request: HttpRequest, lines: dict[str, str]) -> str:
    parts = urlsplit(request.url)
    body_hash = next((value for name, value in request.headers if name == "x-amz-content-sha256"), None)
    return "\n".join(
        (
            request.method.upper(),
            quote(parts.path or "/", safe="/-_.~"),
            "&".join(_pairs(parts.query)),
            *(f"{name}:{value}" for name, value in lines.items()),
            "",
            ";".join(lines),
            body_hash or _hash(request.body),
        )
    )


def _pairs(query: str) -> Iterable[str]:
    """The parameters of a query as they are encoded, each with an equals sign, in order of name and then of value."""
    pairs = (pair.partition("=") for pair in query.split("&")) if query else ()
    return (f"{name}={value}" for name, value in sorted((name, value) for name, _, value in pairs))


def _header_lines(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The headers to sign, by name in order; values of a repeated one in theirs."""
    values: dict[str, list[str]] = {}
    for name, value in headers:
        if name not in _NEVER_SIGNED:
            values.setdefault(name, []).append(" ".join(value.split()))
    return {name: ",".join(values[name]) for name in sorted(values)}


def _host(url: str) -> str:
    parts = urlsplit(url)
    host = (parts.hostname or "").removesuffix(".")
    host = f"[{host}]" if ":" in host else host
    return host if parts.port in (None, _DEFAULT_PORTS.get(parts.scheme)) else f"{host}:{parts.port}"


def _key(secret: str, scope: str) -> bytes:
    key = f"AWS4{secret}".encode()
    for step in scope.split("/"):
        key = _mac(key, step)
    return key


def _mac(key: bytes, message: str) -> bytes:
    return hmac.digest(key, message.encode(), "sha256")


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
