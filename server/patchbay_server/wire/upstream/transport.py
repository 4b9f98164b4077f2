"""HTTP/1.1 to providers over aiohttp, and the dialler that connects to checked addresses only.

The part to exchange for another HTTP implementation: callers see an `httpx.AsyncBaseTransport`. The dialler resolves a
name once for each connection, checks every address and connects to a checked one, so that a name that answers
differently between check and use gains nothing. Environment variables (proxies, certificates, netrc), cookies,
redirects and content encodings play no part.
"""

import asyncio
import select
import socket
import ssl
import sys
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Final, Protocol, Self

import aiohttp
import certifi
import httpx
import yarl
from aiohttp.abc import AbstractResolver, AbstractStreamWriter, ResolveResult
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.http import HttpProcessingError
from multidict import CIMultiDict

from patchbay_server.wire.egress import EgressRules, check_address

_KEEP_ALIVE_S: Final = 15.0
_BUFFER_BYTES: Final = 32 * 1024  # aiohttp stops reading at twice that
_UPLOAD_BYTES: Final = 64 * 1024
_HEADER_BYTES_MAX: Final = 32 * 1024


class Resolver(Protocol):
    """Turns a host name into IP addresses."""

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        """The addresses of `host` as text, best first. Raises: OSError when there are none."""
        ...


class SystemResolver:
    """Asks the operating system."""

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return list(dict.fromkeys(str(address[0]) for *_, address in found))


class AiohttpTransport(httpx.AsyncBaseTransport):
    """HTTP/1.1 for one scheme under one set of address rules; aiohttp does the parsing and the pooling.

    Reads the request extension `timeout` (seconds): `connect` bounds the time to a usable connection, `read` the time
    from sending to the status. Sets the response extension `sent_at`: when sending began, by the loop's clock. Closing
    a response before its end aborts the connection, unsent data included. The messages of the `httpx.TransportError`s
    that it raises are fit for callers, and none refers to an exception of aiohttp, because those hold the request's
    headers. A `PatchbayError` of the address check comes through as it is.
    """

    def __init__(
        self, *, scheme: str, rules: EgressRules, resolver: Resolver, tls: ssl.SSLContext, connections_max: int
    ) -> None:
        dialler = _Dialler(resolver, scheme, rules)
        self._lines: dict[ResponseHandler, _Line] = {}
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                resolver=dialler,
                socket_factory=dialler.open_socket,
                use_dns_cache=False,
                ssl=tls,
                limit=connections_max,
                keepalive_timeout=_KEEP_ALIVE_S,
            ),
            request_class=_Request,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
            skip_auto_headers=("accept", "accept-encoding", "content-type", "user-agent"),
            auto_decompress=False,
            trust_env=False,
            read_bufsize=_BUFFER_BYTES,
            max_field_size=_HEADER_BYTES_MAX,
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        limits = request.extensions["timeout"]
        sending: _Sending | None = None
        failure: httpx.TransportError
        try:
            async with asyncio.timeout(limits["connect"]) as limit:
                sending = _Sending(self._lines, limit, limits["read"], request.content)
                return await self._send(request, sending)
        except aiohttp.ClientError as error:
            failure = _before_status(error)
        except TimeoutError:
            sent = sending is not None and sending.sent_at is not None
            failure = httpx.ReadTimeout("no answer in time") if sent else httpx.ConnectTimeout("no connection in time")
        raise failure

    async def aclose(self) -> None:
        for protocol in list(self._lines):
            protocol.abort()
        await self._session.close()

    async def _send(self, request: httpx.Request, sending: "_Sending") -> httpx.Response:
        token = _SENDING.set(sending)
        try:
            response = await self._request(request, sending)
        except BaseException:
            sending.abort()
            raise
        finally:
            _SENDING.reset(token)
        return httpx.Response(
            response.status,
            headers=response.raw_headers,
            stream=_Body(response, sending),
            extensions={"sent_at": sending.sent_at},
        )

    async def _request(self, request: httpx.Request, sending: "_Sending") -> aiohttp.ClientResponse:
        url = yarl.URL(str(request.url), encoded=True)
        headers = CIMultiDict((name.decode("ascii"), value.decode("ascii")) for name, value in request.headers.raw)
        while True:
            try:
                return await self._session.request(
                    request.method, url, headers=headers, data=sending.upload, allow_redirects=False
                )
            except _StaleError:
                continue  # It has left the pool; each turn takes out one, and the connect limit bounds them all.


class _StaleError(Exception):
    """A pooled connection can serve no more; nothing was sent on it."""


class _Upload(aiohttp.Payload):
    """A request's body, written piece by piece so that a big one does not hold up the loop."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self._content = content
        self._size = len(content)
        self.done = False

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return self._content.decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        self.done = False
        content = memoryview(self._content)
        for start in range(0, len(content), _UPLOAD_BYTES):
            await writer.write(content[start : start + _UPLOAD_BYTES])
        self.done = True


_Closed = asyncio.Future[None]


class _Line:
    """One connection, from its first request until it is lost."""

    def __init__(self, lines: "dict[ResponseHandler, _Line]", protocol: ResponseHandler, closed: _Closed) -> None:
        self._lines = lines
        self._protocol = protocol
        self._closed = closed
        self._content: aiohttp.StreamReader | None = None
        self.reset = False  # lost by an error, not by a proper end
        lines[protocol] = self
        closed.add_done_callback(self._on_closed)

    @property
    def lost(self) -> bool:
        return self._closed.done()

    def carry(self, content: aiohttp.StreamReader) -> None:
        """Watch over the body of the answer that is being read from this connection."""
        self._content = content
        if self._protocol not in self._lines:
            self._fail_content()

    def is_stale(self) -> bool:
        """Whether a connection from the pool ended or said something while nobody had asked."""
        transport = self._protocol.transport
        return (
            transport is None
            or self._protocol.should_close
            or _is_readable(transport.get_extra_info("socket").fileno())
        )

    def _on_closed(self, closed: _Closed) -> None:
        self._lines.pop(self._protocol, None)
        self.reset = not closed.cancelled() and closed.exception() is not None
        self._fail_content()

    def _fail_content(self) -> None:
        # aiohttp leaves the reader of a body waiting for ever when a chunk's frame is not valid.
        content = self._content
        if content is not None and not content.is_eof() and content.exception() is None:
            error = self._protocol.exception()
            content.set_exception(error if isinstance(error, HttpProcessingError) else aiohttp.ClientPayloadError())


class _Sending:
    """One request on its way: when it was sent, on which connection, and the limit that it runs under."""

    def __init__(
        self,
        lines: dict[ResponseHandler, _Line],
        limit: asyncio.Timeout,
        status_s: float,
        content: bytes,
    ) -> None:
        self._lines = lines
        self._limit = limit
        self._status_s = status_s
        self._transport: asyncio.Transport | None = None
        self.upload = _Upload(content) if content else None
        self.sent_at: float | None = None
        self.line: _Line | None = None

    @property
    def uploaded(self) -> bool:
        return self.upload is None or self.upload.done

    def begin(self, connection: Connection) -> None:
        """Called when a connection is there, before the first byte. Raises: _StaleError."""
        protocol = connection.protocol
        if protocol is None or (closed := protocol.closed) is None:
            return  # It was lost as soon as it was made; aiohttp says so when it writes.
        line = self._lines.get(protocol)
        if line is None:
            line = _Line(self._lines, protocol, closed)
        elif line.is_stale():
            raise _StaleError
        self.line = line
        self._transport = connection.transport
        if self.sent_at is None:
            self.sent_at = asyncio.get_running_loop().time()
            if not self._limit.expired():
                self._limit.reschedule(self.sent_at + self._status_s)

    def abort(self) -> None:
        """Close the connection now: no farewell to the peer, no wait for unsent data."""
        # asyncio's transport fails when it is aborted after an end that had to wait for its buffer to be sent.
        if self._transport is not None and self.line is not None and not self.line.lost:
            self._transport.abort()


# aiohttp makes its request objects itself and hands them nothing of ours.
_SENDING: Final[ContextVar[_Sending]] = ContextVar("_SENDING")


class _Request(aiohttp.ClientRequest):
    async def send(self, conn: Connection) -> aiohttp.ClientResponse:
        _SENDING.get().begin(conn)
        return await super().send(conn)


class _Body(httpx.AsyncByteStream):
    """The body of one answer, one item for each network read."""

    def __init__(self, response: aiohttp.ClientResponse, sending: _Sending) -> None:
        self._response = response
        self._sending = sending
        self._until_close = "content-length" not in response.headers and "transfer-encoding" not in response.headers
        if sending.line is not None:
            sending.line.carry(response.content)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        failure: httpx.TransportError
        try:
            data = await self._response.content.readany()
        except HttpProcessingError:
            failure = httpx.RemoteProtocolError("the provider's answer is not valid HTTP")
        except aiohttp.ClientError:
            failure = httpx.ReadError(_BROKEN)
        else:
            if data:
                return data
            line = self._sending.line
            if not (self._until_close and line is not None and line.reset):
                raise StopAsyncIteration
            failure = httpx.ReadError(_BROKEN)
        raise failure

    async def aclose(self) -> None:
        whole = self._response.content.is_eof() and self._sending.uploaded
        self._response.close()
        if not whole:
            self._sending.abort()


_BROKEN: Final = "the provider's answer broke off before its end"


def _before_status(error: aiohttp.ClientError) -> httpx.TransportError:
    match error:
        case aiohttp.ClientConnectorDNSError():
            return httpx.ConnectError("the provider's host name cannot be resolved")
        case aiohttp.ClientConnectorCertificateError():
            return httpx.ConnectError("the provider's TLS certificate is not trusted or is for another host")
        case aiohttp.ClientSSLError():
            return httpx.ConnectError("TLS with the provider failed")
        case aiohttp.ClientConnectorError():
            return httpx.ConnectError("the provider cannot be reached")
        case aiohttp.ClientResponseError():
            return httpx.RemoteProtocolError("the provider's answer is not valid HTTP")
        case _:
            return httpx.ReadError("the provider closed the connection without an answer")


# --- dialling ---------------------------------------------------------------------------------------------------------


class _Dialler(AbstractResolver):
    """Resolves names and opens sockets, to checked addresses only."""

    def __init__(self, resolver: Resolver, scheme: str, rules: EgressRules) -> None:
        self._resolver = resolver
        self._scheme = scheme
        self._rules = rules

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Every address of `host`, or none: one that is forbidden spoils them all, as chance would pick among them."""
        addresses = await self._resolver.resolve(host, port)
        for address in addresses:
            check_address(address, self._scheme, self._rules)
        if not addresses:
            raise OSError("no address")
        return [_resolved(host, address, port) for address in addresses]

    async def close(self) -> None:
        pass

    def open_socket(self, address: aiohttp.AddrInfoType) -> socket.socket:
        """A socket for what is about to be dialled. A literal address in the URL comes here without `resolve`."""
        family, kind, protocol, _, destination = address
        check_address(str(destination[0]), self._scheme, self._rules)
        return socket.socket(family, kind, protocol)


def _resolved(host: str, address: str, port: int) -> ResolveResult:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    numeric = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    return ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=numeric)


def trusting_certifi() -> ssl.SSLContext:
    # Not ssl.create_default_context, which heeds SSL_CERT_FILE and writes session keys to SSLKEYLOGFILE.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(certifi.where())
    context.set_alpn_protocols(["http/1.1"])
    return context


def _is_readable(descriptor: int) -> bool:
    if sys.platform == "win32":
        return bool(select.select([descriptor], [], [], 0)[0])
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))
