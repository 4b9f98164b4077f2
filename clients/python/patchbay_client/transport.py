"""Makes RPCs and turns gRPC's failures into ours: once for the blocking client, once for the asyncio client.

What the clients ask is an `Operation`, which is built without any I/O; both transports carry out the same ones, so that
the two clients cannot drift apart.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Generic, TypeVar, cast

import grpc
import grpc.aio
from google.protobuf.message import Message

from patchbay_client.channel import Target
from patchbay_client.errors import from_rpc_error
from patchbay_client.streams import AsyncCall, AsyncServerStream, Call, ServerStream

PAGE_SIZE = 200
"""How many items a list is asked for at a time."""

R = TypeVar("R", bound=Message)
T = TypeVar("T")


class Limit(Enum):
    """How long an operation may take."""

    PROVIDER = auto()
    """It waits for a provider: the client's `timeout`."""
    GATEWAY = auto()
    """The gateway answers by itself: the client's `management_timeout`."""
    NONE = auto()
    """It ends when it ends: exports, watching, work on all connectors."""


@dataclass(frozen=True, kw_only=True)
class Operation(Generic[R, T]):
    """One RPC to make: its method as `Service/Method`, the request, the class of the response and how that is read."""

    method: str
    request: Message
    response: type[R]
    read: Callable[[R], T]
    limit: Limit = Limit.GATEWAY

    @property
    def path(self) -> str:
        return f"/patchbay.v1.{self.method}"

    def next_page(self, response: R) -> bool:
        """Turns the request to the page after `response`; False when that was the last."""
        token = cast(Any, response).next_page_token
        cast(Any, self.request).page_token = token
        return bool(token)


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What goes with every call: its metadata, and limits in seconds, where None is no limit."""

    metadata: tuple[tuple[str, str], ...]
    provider_timeout: float | None
    gateway_timeout: float | None

    def timeout(self, operation: Operation[R, T], wanted: float | None) -> float | None:
        if wanted is not None:
            return wanted
        limits = {Limit.PROVIDER: self.provider_timeout, Limit.GATEWAY: self.gateway_timeout, Limit.NONE: None}
        return limits[operation.limit]


class Transport:
    """Makes operations on a blocking channel, which it owns. Several threads may use it."""

    def __init__(self, target: Target, terms: Terms) -> None:
        self._terms = terms
        if target.credentials is None:
            self._channel = grpc.insecure_channel(target.name, options=target.options)
        else:
            self._channel = grpc.secure_channel(target.name, target.credentials, options=target.options)

    def unary(self, operation: Operation[R, T], timeout: float | None = None) -> T:
        """The result.

        Raises:
            PatchbayError: the call failed.
        """
        return operation.read(self._response(operation, timeout))

    def pages(self, operation: Operation[R, T]) -> Iterator[T]:
        """The result of each page, fetched as they are asked for.

        Raises:
            PatchbayError: a call failed.
        """
        more = True
        while more:
            response = self._response(operation, None)
            yield operation.read(response)
            more = operation.next_page(response)

    def stream(self, operation: Operation[R, T], timeout: float | None = None) -> ServerStream[T]:
        """The results as they come; nothing is sent before the stream is entered or iterated."""
        method = self._channel.unary_stream(
            operation.path,
            request_serializer=type(operation.request).SerializeToString,
            response_deserializer=operation.response.FromString,
        )
        limit = self._terms.timeout(operation, timeout)

        def start() -> Call:
            return cast("Call", method(operation.request, timeout=limit, metadata=self._terms.metadata))

        return ServerStream(start, operation.read)

    def close(self) -> None:
        self._channel.close()

    def _response(self, operation: Operation[R, T], timeout: float | None) -> R:
        method = self._channel.unary_unary(
            operation.path,
            request_serializer=type(operation.request).SerializeToString,
            response_deserializer=operation.response.FromString,
        )
        limit = self._terms.timeout(operation, timeout)
        call = method.future(operation.request, timeout=limit, metadata=self._terms.metadata)
        try:
            return call.result()
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        except BaseException:  # Ctrl-C, or whatever else a signal handler raised: the call must not go on
            call.cancel()
            raise


class AsyncTransport:
    """Makes operations on an asyncio channel, which it owns, in the event loop of the first one."""

    def __init__(self, target: Target, terms: Terms) -> None:
        self._target = target
        self._terms = terms
        self._channel: grpc.aio.Channel | None = None

    async def unary(self, operation: Operation[R, T], timeout: float | None = None) -> T:
        """The result.

        Raises:
            PatchbayError: the call failed.
        """
        return operation.read(await self._response(operation, timeout))

    async def pages(self, operation: Operation[R, T]) -> AsyncIterator[T]:
        """The result of each page, fetched as they are asked for.

        Raises:
            PatchbayError: a call failed.
        """
        more = True
        while more:
            response = await self._response(operation, None)
            yield operation.read(response)
            more = operation.next_page(response)

    def stream(self, operation: Operation[R, T], timeout: float | None = None) -> AsyncServerStream[T]:
        """The results as they come; nothing is sent before the stream is entered or iterated."""
        limit = self._terms.timeout(operation, timeout)

        def start() -> AsyncCall:
            method = self._open().unary_stream(
                operation.path,
                request_serializer=type(operation.request).SerializeToString,
                response_deserializer=operation.response.FromString,
            )
            return cast("AsyncCall", method(operation.request, timeout=limit, metadata=self._terms.metadata))

        return AsyncServerStream(start, operation.read)

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel.close()

    async def _response(self, operation: Operation[R, T], timeout: float | None) -> R:
        method = self._open().unary_unary(
            operation.path,
            request_serializer=type(operation.request).SerializeToString,
            response_deserializer=operation.response.FromString,
        )
        limit = self._terms.timeout(operation, timeout)
        try:
            return await method(operation.request, timeout=limit, metadata=self._terms.metadata)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error

    def _open(self) -> grpc.aio.Channel:
        """The channel; made here because gRPC binds it to the event loop that runs at that moment."""
        if self._channel is None:
            target = self._target
            if target.credentials is None:
                self._channel = grpc.aio.insecure_channel(target.name, options=target.options)
            else:
                self._channel = grpc.aio.secure_channel(target.name, target.credentials, options=target.options)
        return self._channel
