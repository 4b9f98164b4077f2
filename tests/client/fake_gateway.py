"""A gRPC server whose answers the test decides, and a way to drive both clients by the same test."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from patchbay.v1 import gateway_service_pb2 as pb
from patchbay_client import AsyncPatchbayClient, PatchbayClient, PatchbayError
from patchbay_client.channel import SERVICE_FILES

TOKEN = "pb_test_token"

Handler = Callable[[Any, Any], Awaitable[Any]]


def methods() -> Iterator[MethodDescriptor]:
    for file in SERVICE_FILES:
        for service in file.services_by_name.values():
            yield from service.methods


def short_name(method: MethodDescriptor) -> str:
    return f"{method.containing_service.name}/{method.name}"


@dataclass
class FakeGateway(grpc.GenericRpcHandler):
    """Answers every RPC of the contract with an empty message, or as the test says with `on`."""

    handlers: dict[str, Handler] = field(default_factory=dict)
    requests: defaultdict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    metadata: defaultdict[str, list[dict[str, str]]] = field(default_factory=lambda: defaultdict(list))
    time_left: defaultdict[str, list[float | None]] = field(default_factory=lambda: defaultdict(list))
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    def on(self, name: str, handler: Handler) -> None:
        """`handler(request, context)` answers the RPC; of a streaming one, it writes to the context."""
        self.handlers[name] = handler

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        method = next(each for each in methods() if details.method == f"/patchbay.v1.{short_name(each)}")
        make = grpc.unary_stream_rpc_method_handler if method.server_streaming else grpc.unary_unary_rpc_method_handler
        return make(
            self._recorder(method),
            request_deserializer=GetMessageClass(method.input_type).FromString,
            response_serializer=GetMessageClass(method.output_type).SerializeToString,
        )

    def _recorder(self, method: MethodDescriptor) -> Handler:
        name = short_name(method)

        async def answer(request: Any, context: Any) -> Any:
            self.requests[name].append(request)
            self.metadata[name].append(dict(context.invocation_metadata()))
            self.time_left[name].append(context.time_remaining())
            if name in self.handlers:
                return await self._watched(self.handlers[name], request, context)
            return None if method.server_streaming else GetMessageClass(method.output_type)()

        return answer

    async def _watched(self, handler: Handler, request: Any, context: Any) -> Any:
        try:
            return await handler(request, context)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


def chunks(*events: dict[str, Any]) -> list[pb.ChatResponseChunk]:
    """Chunks of these events, numbered as the contract says."""
    return [pb.ChatResponseChunk(sequence=number, **event) for number, event in enumerate(events, start=1)]


def streams(*written: Message) -> Handler:
    """A handler that writes these and ends with OK."""

    async def write(_: Any, context: Any) -> None:
        for message in written:
            await context.write(message)

    return write


def aborts(
    code: grpc.StatusCode, message: str = "no", *, headers: Sequence[tuple[str, str]] = (), **more: Any
) -> Handler:
    """A handler that fails before it has sent anything but, perhaps, headers."""

    async def abort(_: Any, context: Any) -> None:
        if headers:
            await context.send_initial_metadata(headers)
        await context.abort(code, message, **more)

    return abort


@dataclass
class Seen:
    """What came of a stream before it ended, and how it ended."""

    stream: Any
    items: list[Any] = field(default_factory=list)
    error: PatchbayError | None = None


class Driver:
    """Runs the same calls on either client: the blocking one in a thread, the other in the test's event loop."""

    def __init__(self, client: PatchbayClient | AsyncPatchbayClient) -> None:
        self.client: Any = client
        self.blocking = isinstance(client, PatchbayClient)

    async def call(self, ask: Callable[[Any], Any]) -> Any:
        """The result of `ask(client)`; of a list, its items."""
        if self.blocking:
            return await asyncio.to_thread(lambda: _items(ask(self.client)))
        answer = ask(self.client)
        return [each async for each in answer] if isinstance(answer, AsyncIterator) else await answer

    async def read(self, open_stream: Callable[[Any], Any]) -> Seen:
        """Reads the stream `open_stream(client)` to its end, good or bad."""
        seen = Seen(open_stream(self.client))
        try:
            if self.blocking:
                await asyncio.to_thread(lambda: _extend(seen.items, seen.stream))
            else:
                async with seen.stream as items:
                    async for item in items:
                        seen.items.append(item)
        except PatchbayError as error:
            seen.error = error
        return seen

    async def close(self) -> None:
        closed = self.client.close()
        if closed is not None:
            await closed


@asynccontextmanager
async def serving(gateway: FakeGateway, credentials: grpc.ServerCredentials | None = None) -> AsyncIterator[int]:
    """The port on which the gateway answers."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers([gateway])
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


def _items(answer: Any) -> Any:
    return list(answer) if isinstance(answer, Iterator) else answer


def _extend(items: list[Any], stream: Any) -> None:
    with stream as source:
        for item in source:  # one by one, so that they are kept when the stream fails
            items.append(item)  # noqa: PERF402
