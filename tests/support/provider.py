"""A provider that follows a script: a bare HTTP/1.1 server on loopback.

What it sends is a list of steps, so that a test can stop an answer anywhere, cut it, or wait in the middle of it. Each
connection is remembered with its requests and with the moment at which the gateway closed it.
"""

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Head:
    """Status line and headers. The body that follows is chunked, unless the headers give its length."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Pause:
    """The script waits here until the test opens it."""

    reached: asyncio.Event = field(default_factory=asyncio.Event)
    opened: asyncio.Event = field(default_factory=asyncio.Event)

    def open(self) -> None:
        self.opened.set()


@dataclass(frozen=True)
class Wait:
    """The script goes on after so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Silence:
    """Nothing more is sent, and the connection stays open until the gateway closes it."""


@dataclass(frozen=True)
class Reset:
    """The connection is reset."""


@dataclass(frozen=True)
class Cut:
    """The connection ends properly, the answer does not."""


@dataclass(frozen=True)
class Raw:
    """Bytes as they are: of status line, headers, framing and body, or of a part of them."""

    data: bytes


Step = Head | bytes | Raw | Pause | Wait | Silence | Reset | Cut
Script = Sequence[Step]
"""Steps of one answer; bytes are pieces of its body. After the last step the answer is whole."""


@dataclass(eq=False)
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    answered: bool = False
    """Whether the whole script was sent."""


@dataclass(eq=False)
class Connection:
    requests: list[Request] = field(default_factory=list)
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the gateway's end of the connection is closed."""

    @property
    def abandoned(self) -> bool:
        """Whether it is open in the middle of an answer."""
        return not self.closed.is_set() and any(not request.answered for request in self.requests)


class Provider:
    """Use as a context manager. The first segment of a request's path names the script that answers it."""

    def __init__(self) -> None:
        self.connections: list[Connection] = []
        self.unexpected: list[Request] = []
        """Requests that no script was left for; they are answered with status 500."""
        self._once: dict[str, deque[Script]] = {}
        self._always: dict[str, Script] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._transports: set[asyncio.Transport] = set()
        self._server: asyncio.Server | None = None
        self._came = asyncio.Event()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Protocol(self), LOOPBACK, 0)
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for transport in list(self._transports):
            transport.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def url(self, name: str = "main") -> str:
        """The root of an API whose requests the scripts of `name` answer."""
        return f"http://{LOOPBACK}:{self.port}/{name}"

    def answer(self, *scripts: Script, name: str = "main") -> None:
        """Answer the next requests with these scripts, one each."""
        self._once.setdefault(name, deque()).extend(scripts)

    def always_answer(self, script: Script, *, name: str = "main") -> None:
        """Answer with this script whenever no other is left."""
        self._always[name] = script

    @property
    def requests(self) -> list[Request]:
        return [request for connection in self.connections for request in connection.requests]

    @property
    def tasks(self) -> frozenset["asyncio.Task[None]"]:
        """The tasks that scripts run in."""
        return frozenset(self._tasks)

    def asked(self, name: str = "main") -> list[Request]:
        """The requests that scripts of `name` answered, or are answering."""
        return [request for request in self.requests if request.path.startswith(f"/{name}/")]

    async def received(self, count: int = 1) -> None:
        """Wait until that many requests have come."""
        while len(self.requests) < count:
            self._came.clear()
            await self._came.wait()

    def _script_for(self, request: Request) -> Script:
        name = request.path.split("/")[1]
        if once := self._once.get(name):
            return once.popleft()
        if name in self._always:
            return self._always[name]
        self.unexpected.append(request)
        return [Head(500), b"no script is left"]


class _Protocol(asyncio.Protocol):
    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._connection = Connection()
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._task: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._provider.connections.append(self._connection)
        self._provider._transports.add(transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        request = self._take_request()
        if request is not None:
            self._connection.requests.append(request)
            script = self._provider._script_for(request)
            self._task = asyncio.get_running_loop().create_task(self._follow(script, request))
            self._provider._tasks.add(self._task)
            self._task.add_done_callback(self._provider._tasks.discard)
            self._provider._came.set()

    def eof_received(self) -> None:
        self._gone()

    def connection_lost(self, error: Exception | None) -> None:
        self._provider._transports.discard(self._transport)
        self._gone()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def _gone(self) -> None:
        self._connection.closed.set()
        if self._task is not None:
            self._task.cancel()

    def _take_request(self) -> Request | None:
        head, blank, rest = self._buffer.partition(b"\r\n\r\n")
        if not blank:
            return None
        first, *lines = head.decode("latin-1").split("\r\n")
        method, path, _ = first.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", "0"))
        if len(rest) < length:
            return None
        self._buffer = rest[length:]
        return Request(method, path, headers, rest[:length])

    async def _follow(self, script: Script, request: Request) -> None:
        chunked = False
        for step in script:
            await self._writable.wait()
            if self._transport.is_closing():
                # A lost connection never asks to pause: an endless script would keep the loop from noticing.
                return
            match step:
                case Head():
                    chunked = "content-length" not in step.headers
                    self._transport.write(_head(step, chunked=chunked))
                case bytes():
                    self._transport.write(b"%x\r\n%s\r\n" % (len(step), step) if chunked else step)
                case Raw():
                    self._transport.write(step.data)
                case Pause():
                    step.reached.set()
                    await step.opened.wait()
                case Wait():
                    await asyncio.sleep(step.seconds)
                case Silence():
                    await asyncio.Event().wait()
                case Reset():
                    self._reset()
                    return
                case Cut():
                    self._transport.close()
                    return
        if chunked:
            self._transport.write(b"0\r\n\r\n")
        request.answered = True

    def _reset(self) -> None:
        raw: socket.socket = self._transport.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()


def _head(step: Head, *, chunked: bool) -> bytes:
    headers = dict(step.headers) | ({"transfer-encoding": "chunked"} if chunked else {})
    lines = [f"HTTP/1.1 {step.status} x", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")
