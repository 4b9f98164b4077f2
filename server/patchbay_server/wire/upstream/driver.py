"""Sends one request to a provider and hands up its answer in frames, within limits and egress rules.

Checks the URL, keeps the limits that are not about connecting, cuts bodies into frames and turns every failure into a
`PatchbayError`. Which library moves the bytes is the transport's secret.
"""

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from functools import lru_cache
from types import MappingProxyType
from typing import Final, Self

import httpx
import msgspec

from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.types import PrivateHttp
from patchbay_server.wire.egress import EgressRules, Target, check_url
from patchbay_server.wire.framing import Whole, cutter
from patchbay_server.wire.http import ERROR_BYTES_MAX, Frame, Framing, HttpAnswer, HttpRequest
from patchbay_server.wire.upstream.transport import AiohttpTransport, Resolver, SystemResolver, trusting_certifi

DRAIN_BYTES_MAX: Final = 64 * 1024
DRAIN_S_MAX: Final = 0.25


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How long to wait, in seconds.

    Args:
        connect_s: for a connection that is ready to use: a free place in the pool, name, TCP and TLS.
        first_byte_s: from sending the request to the first byte of the answer's body.
        idle_s: for each further read of the body.
    """

    connect_s: float = 10.0
    first_byte_s: float = 120.0
    idle_s: float = 60.0


class Upstream:
    """Sends requests to providers over pooled HTTP/1.1 connections.

    A connection is reused only for calls whose rules allow the same address ranges and that use the same scheme, so a
    policy that becomes stricter is never passed on an old connection.

    Args:
        now: the clock that stamps answers.
        resolver: None asks the operating system.
        tls: what certificates to trust; None trusts the authorities of certifi.
        connections_max: connections in use at once for each scheme and value of `private_http`; more calls wait, as
            part of `Limits.connect_s`.
    """

    def __init__(
        self,
        *,
        now: Callable[[], datetime],
        resolver: Resolver | None = None,
        tls: ssl.SSLContext | None = None,
        connections_max: int = 1000,
    ) -> None:
        self._now = now
        self._resolver = resolver or SystemResolver()
        self._tls = tls or trusting_certifi()
        self._connections_max = connections_max
        self._transports: dict[tuple[str, PrivateHttp], httpx.AsyncBaseTransport] = {}
        self._destination = lru_cache(maxsize=1024)(_destination)

    @asynccontextmanager
    async def send(self, request: HttpRequest, *, rules: EgressRules, limits: Limits) -> AsyncIterator["Answer"]:
        """Send `request`; gives the answer as soon as its status is known.

        Leaving the context before the end of the body closes the connection at once, which tells the provider to stop;
        after the end of the body the connection serves further calls. A redirect is an answer like others.

        A request is sent again by itself only when not a byte of it had left, because the pooled connection turned out
        to be closed, or when it is idempotent by its method. A POST that was sent is never repeated: nobody can tell
        whether the provider did the work before it hung up.

        Raises:
            PatchbayError: CONNECTOR_MISCONFIGURED for a URL, address or header that is never allowed, POLICY_DENIED for
                what `rules` forbid, UPSTREAM_UNAVAILABLE when there is no connection or it breaks before the status,
                UPSTREAM_TIMEOUT when the status takes more than `first_byte_s`, UPSTREAM_MALFORMED_RESPONSE for what
                is not HTTP or has a content encoding.
        """
        try:
            target, url = self._destination(request.url, rules)
        except PatchbayError as error:
            raise _at_call(error) from None
        transport = self._transport(target.scheme, rules.private_http)
        prepared = httpx.Request(
            request.method,
            url,
            headers=_headers(request, target),
            content=request.body,
            extensions={"timeout": {"connect": limits.connect_s, "read": limits.first_byte_s}},
        )
        response = await _response(transport, prepared, limits)
        try:
            answer = Answer(response, request.framing, limits, self._now)
            if answer.ok and answer.headers.get("content-encoding", "identity").lower() != "identity":
                message = "the provider compressed its answer, although it was asked not to"
                raise PatchbayError(Reason.UPSTREAM_MALFORMED_RESPONSE, message)
            yield answer
        finally:
            await response.aclose()

    async def close(self) -> None:
        """Close every connection, also those in use. Send nothing afterwards."""
        transports = list(self._transports.values())
        self._transports.clear()
        for transport in transports:
            await transport.aclose()

    def _transport(self, scheme: str, private_http: PrivateHttp) -> httpx.AsyncBaseTransport:
        transport = self._transports.get((scheme, private_http))
        if transport is None:
            transport = AiohttpTransport(
                scheme=scheme,
                rules=EgressRules(private_http=private_http),
                resolver=self._resolver,
                tls=self._tls,
                connections_max=self._connections_max,
            )
            self._transports[scheme, private_http] = transport
        return transport


class Answer:
    """An answer whose status and headers have arrived. Valid inside the `Upstream.send` that gave it; read once.

    Args:
        response: of a transport; its body has not been touched.
    """

    def __init__(self, response: httpx.Response, framing: Framing, limits: Limits, now: Callable[[], datetime]) -> None:
        self.status: Final = response.status_code
        self.headers: Final[Mapping[str, str]] = MappingProxyType(_joined(response.headers.raw))
        """Names in lower case; values of a repeated header are joined by a comma."""
        self._framing = framing
        self._limits = limits
        self._now = now
        self._chunks = aiter(response.stream)  # type: ignore[arg-type]  # an async transport gives an async stream
        sent_at: float = response.extensions["sent_at"]
        self._read_by: float | None = sent_at + limits.first_byte_s  # None once a first byte has come

    @property
    def ok(self) -> bool:
        return 200 <= self.status <= 299

    async def whole(self) -> HttpAnswer:
        """The whole answer.

        The body of an error is what arrived of it, at most `ERROR_BYTES_MAX`: its status counts even if it breaks off.

        Raises:
            PatchbayError: for a success only: UPSTREAM_TIMEOUT, UPSTREAM_STREAM_BROKEN, UPSTREAM_MALFORMED_RESPONSE
                (also for more than `ANSWER_BYTES_MAX`).
        """
        body = await (self._success_body() if self.ok else self._error_body())
        return HttpAnswer(status=self.status, headers=self.headers, body=body, received_at=self._now())

    def frames(self) -> "Frames":
        """The body of a success in frames, one list for each network read."""
        return Frames(self._framing, self._read)

    async def drain(self) -> None:
        """Read on for a moment when what matters has been seen, so that the connection can be reused.

        Gives up, and lets the connection be closed, after `DRAIN_BYTES_MAX` or `DRAIN_S_MAX`. Never fails.
        """
        left = DRAIN_BYTES_MAX
        try:
            async with asyncio.timeout(DRAIN_S_MAX):
                while left > 0 and (data := await anext(self._chunks, None)) is not None:
                    left -= len(data)
        except (TimeoutError, httpx.TransportError):
            return

    async def _success_body(self) -> bytes:
        whole = Whole()
        while (data := await self._read()) is not None:
            whole.feed(data)
        return whole.finish()[0].data

    async def _error_body(self) -> bytes:
        body = bytearray()
        try:
            while len(body) < ERROR_BYTES_MAX and (data := await self._read()) is not None:
                body += data
        except PatchbayError:
            pass  # What is known of the error is worth more than how its text ended.
        return bytes(body[:ERROR_BYTES_MAX])

    async def _read(self) -> bytes | None:
        """What the next network read gives; None at the end of the body."""
        read_by = self._read_by
        if read_by is None:
            read_by = asyncio.get_running_loop().time() + self._limits.idle_s
        try:
            async with asyncio.timeout_at(read_by):
                data = await anext(self._chunks, None)
        except TimeoutError:
            raise self._stalled() from None
        except httpx.RemoteProtocolError as error:
            raise PatchbayError(Reason.UPSTREAM_MALFORMED_RESPONSE, str(error)) from None
        except httpx.TransportError as error:
            raise PatchbayError(Reason.UPSTREAM_STREAM_BROKEN, str(error)) from None
        self._read_by = None
        return data

    def _stalled(self) -> PatchbayError:
        if self._read_by is not None:
            return _no_first_byte(self._limits)
        return PatchbayError(
            Reason.UPSTREAM_TIMEOUT,
            f"the provider sent nothing for {self._limits.idle_s:g} s in the middle of its answer",
        )


class Frames:
    """The frames of one body: an async iterator that gives one list for each network read.

    A list is empty when a read completed no frame, so that traffic can be seen. Nothing is read ahead: who does not ask
    slows the provider down. Owns nothing; the connection belongs to the answer's context.

    Raises:
        PatchbayError: UPSTREAM_TIMEOUT, UPSTREAM_STREAM_BROKEN, UPSTREAM_MALFORMED_RESPONSE.
    """

    def __init__(self, framing: Framing, read: Callable[[], Awaitable[bytes | None]]) -> None:
        self._cutter = cutter(framing)
        self._read = read
        self._ended = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[Frame]:
        if self._ended:
            raise StopAsyncIteration
        data = await self._read()
        if data is not None:
            return self._cutter.feed(data)
        self._ended = True
        return self._cutter.finish()

    async def aclose(self) -> None:
        """Give no more frames."""
        self._ended = True


# --- requests and failures --------------------------------------------------------------------------------------------

_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+")
_HEADER_VALUE: Final = re.compile(r"[\t\x20-\x7e]*")
_OF_THE_CONNECTION: Final = frozenset(
    {
        "connection",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)


def _destination(url: str, rules: EgressRules) -> tuple[Target, httpx.URL]:
    target = check_url(url, rules, query_allowed=True)
    return target, httpx.URL(target.url)


def _headers(request: HttpRequest, target: Target) -> list[tuple[str, str]]:
    """The headers to send; none of them can change how the request is framed or whom it is for."""
    headers = [("accept-encoding", "identity")]
    for name, value in request.headers:
        if name == "accept-encoding" or (name == "host" and value == target.authority):
            continue
        if name in _OF_THE_CONNECTION:
            raise _misconfigured(f"the header `{name}` belongs to the connection; a connector cannot set it")
        if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
            raise _misconfigured("a header of the connector has characters that HTTP does not allow")
        headers.append((name, value))
    return headers


async def _response(transport: httpx.AsyncBaseTransport, request: httpx.Request, limits: Limits) -> httpx.Response:
    try:
        return await transport.handle_async_request(request)
    except PatchbayError as error:
        raise _at_call(error) from None
    except httpx.ConnectTimeout:
        message = f"no connection to the provider within {limits.connect_s:g} s"
        raise PatchbayError(Reason.UPSTREAM_UNAVAILABLE, message) from None
    except httpx.TimeoutException:
        raise _no_first_byte(limits) from None
    except httpx.RemoteProtocolError as error:
        raise PatchbayError(Reason.UPSTREAM_MALFORMED_RESPONSE, str(error)) from None
    except httpx.TransportError as error:
        raise PatchbayError(Reason.UPSTREAM_UNAVAILABLE, str(error)) from None


def _joined(headers: Sequence[tuple[bytes, bytes]]) -> dict[str, str]:
    joined: dict[str, str] = {}
    for raw_name, raw_value in headers:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        joined[name] = f"{joined[name]}, {value}" if name in joined else value
    return joined


def _at_call(error: PatchbayError) -> PatchbayError:
    """What was wrong in a request when a connector was made is, at a call, wrong with the connector."""
    return _misconfigured(error.message) if error.reason is Reason.INVALID_REQUEST else error


def _misconfigured(message: str) -> PatchbayError:
    return PatchbayError(Reason.CONNECTOR_MISCONFIGURED, message)


def _no_first_byte(limits: Limits) -> PatchbayError:
    return PatchbayError(
        Reason.UPSTREAM_TIMEOUT, f"the provider did not begin its answer within {limits.first_byte_s:g} s"
    )
