"""A server on loopback that does to its peers, byte for byte, what a test scripts."""

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from tests.support.stopwatch import Stopwatch

AT_ONCE_S = 0.1


class Peer:
    """One connection, as the server sees it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer
        self._socket: socket.socket = writer.get_extra_info("socket")
        self.requests: list[bytes] = []
        self.sent = 0

    async def request(self) -> bytes:
        """The next request, head and body; empty when the peer hung up instead."""
        try:
            head = await self._reader.readuntil(b"\r\n\r\n")
            length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            request = head + await self._reader.readexactly(int(length or 0))
        except (asyncio.IncompleteReadError, ConnectionError):
            return b""
        self.requests.append(request)
        return request

    async def send(self, *parts: bytes, pause_s: float = 0.0) -> None:
        """Send `parts`, each on its own."""
        for part in parts:
            self.writer.write(part)
            await self.writer.drain()
            self.sent += len(part)
            await asyncio.sleep(pause_s)

    async def answer(self, body: bytes = b"{}", status: str = "200 OK", headers: bytes = b"") -> None:
        await self.send(f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n".encode() + headers + b"\r\n" + body)

    async def start_chunked(self, content_type: str = "text/event-stream") -> None:
        await self.send(
            f"HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\ntransfer-encoding: chunked\r\n\r\n".encode()
        )

    async def chunk(self, data: bytes) -> None:
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def end(self) -> None:
        await self.send(b"0\r\n\r\n")

    async def gone(self) -> None:
        """Wait until the peer has closed the connection."""
        with suppress(ConnectionError):
            while await self._reader.read(65536):
                pass

    def reset(self) -> None:
        """Hang up without a farewell."""
        linger = struct.pack("ii", 1, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.abort()

    def abort(self) -> None:
        """Close the connection, unless it is closed: asyncio's transport may fail when it is aborted after its end."""
        if self._socket.fileno() >= 0:
            self.writer.transport.abort()

    def shut(self) -> None:
        """Send the end of the stream within this very call."""
        self._socket.shutdown(socket.SHUT_WR)


Script = Callable[[Peer], Awaitable[None]]


class RawServer:
    """Plays `script` to each connection and then closes it."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        self.peers: list[Peer] = []
        self.open = 0
        self.errors: list[BaseException] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def requests(self) -> list[bytes]:
        return [request for peer in self.peers for request in peer.requests]

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._play(Peer(reader, writer)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _play(self, peer: Peer) -> None:
        self.peers.append(peer)
        self.open += 1
        try:
            await self._script(peer)
        except ConnectionError:
            pass
        except Exception as error:  # noqa: BLE001 -- shown by the fixture
            self.errors.append(error)
        finally:
            self.open -= 1
            peer.writer.close()

    @asynccontextmanager
    async def running(self, tls: ssl.SSLContext | None, host: str) -> "AsyncIterator[RawServer]":
        server = await asyncio.start_server(self._accept, host, 0, ssl=tls, limit=2**24)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for peer in self.peers:
                peer.abort()
            await asyncio.sleep(0)
        assert not self.errors, self.errors


async def until(fact: Callable[[], bool], within_s: float = 5.0) -> None:
    """Wait until `fact` holds, which must be within so many seconds of this process's time."""
    watch = Stopwatch()
    while not fact():
        assert watch.seconds < within_s, "it does not come true in time"
        await asyncio.sleep(0.002)
