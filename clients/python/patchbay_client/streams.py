"""Results that come one by one, blocking and for asyncio; whoever opens a stream closes it, by `with` or by its end."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

import grpc

from patchbay.v1.gateway_service_pb2 import ChatResponseChunk
from patchbay_client.answer import ChatAnswer
from patchbay_client.errors import Cancelled, from_rpc_error
from patchbay_client.events import AnswerBuilder, StreamEvent, TextDelta

T = TypeVar("T")


class Call(Protocol):
    """gRPC's call of a stream, as far as it is used here."""

    def __next__(self) -> Any: ...
    def cancel(self) -> Any: ...


class AsyncCall(Protocol):
    """gRPC's call of a stream under asyncio, as far as it is used here."""

    def __aiter__(self) -> AsyncIterator[Any]: ...
    def cancel(self) -> Any: ...


class ServerStream(Generic[T]):
    """Results as they come: a context manager and an iterator. Leaving the context early cancels the call.

    with client.admin.export_calls() as pieces:
        for piece in pieces:
            file.write(piece)
    """

    def __init__(self, start: Callable[[], Call], read: Callable[[Any], T]) -> None:
        self._start = start
        self._read = read
        self._call: Call | None = None
        self._closed = False

    def __enter__(self) -> Self:
        self._started()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        try:
            return self._read(next(self._started()))
        except StopIteration:
            raise
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        except BaseException:  # Ctrl-C, or whatever else a signal handler raised: the call must not go on
            self.close()
            raise

    def close(self) -> None:
        """Cancels the call unless it has ended."""
        self._closed = True
        if self._call is not None:
            self._call.cancel()

    def _started(self) -> Call:
        if self._call is None:
            self._call = self._start()
            if self._closed:  # before, or by another thread while the call was starting
                self._call.cancel()
        return self._call


class ChatStream:
    """An answer as it comes.

    Nothing is sent before it is entered or iterated; leaving the context early cancels the call.

        with client.stream("Tell me a story") as stream:
            for text in stream.text():
                print(text, end="", flush=True)
        print(stream.answer.usage)

    Iterating gives events: `Started` first, `Completed` last. A failure is raised whenever it happens; the error's
    `partial` says what had been used, and `received_text` holds what had come.
    """

    def __init__(self, chunks: ServerStream[ChatResponseChunk]) -> None:
        self._chunks = chunks
        self._builder = AnswerBuilder()

    @property
    def answer(self) -> ChatAnswer:
        """The whole answer, equal to what `chat` would have given.

        Raises:
            RuntimeError: the stream has not been read to its end.
        """
        return _whole(self._builder)

    @property
    def received_text(self) -> str:
        """The text so far; it stays after a failure."""
        return self._builder.text

    def text(self) -> Iterator[str]:
        """The answer's text, piece by piece, as it comes."""
        for event in self:
            if isinstance(event, TextDelta):
                yield event.text

    def collect(self) -> ChatAnswer:
        """Reads the stream to its end and gives the whole answer."""
        for _ in self:
            pass
        return self.answer

    def __enter__(self) -> Self:
        self._chunks.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> StreamEvent:
        for chunk in self._chunks:
            event = self._builder.feed(chunk)
            if event is not None:
                return event
        self._builder.finish()
        raise StopIteration

    def close(self) -> None:
        """Cancels the call unless it has ended."""
        self._chunks.close()


class AsyncServerStream(Generic[T]):
    """Results as they come: an async context manager and iterator. Leaving the context early cancels the call.

    async with client.admin.export_calls() as pieces:
        async for piece in pieces:
            file.write(piece)
    """

    def __init__(self, start: Callable[[], AsyncCall], read: Callable[[Any], T]) -> None:
        self._start = start
        self._read = read
        self._call: AsyncCall | None = None
        self._messages: AsyncIterator[Any] | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        self._started()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        self._check_open()
        try:
            return self._read(await anext(self._started()))
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        except asyncio.CancelledError:
            # gRPC raises it for a call that `close` cancelled while it was read, too; then this task goes on.
            if not _being_cancelled():
                self._check_open()
            raise

    def close(self) -> None:
        """Cancels the call unless it has ended."""
        self._closed = True
        if self._call is not None:
            self._call.cancel()

    def _check_open(self) -> None:
        if self._closed:
            raise Cancelled("the stream was closed", code=grpc.StatusCode.CANCELLED)

    def _started(self) -> AsyncIterator[Any]:
        if self._messages is None:
            self._call = self._start()
            self._messages = aiter(self._call)
        return self._messages


class AsyncChatStream:
    """An answer as it comes.

    Nothing is sent before it is entered or iterated; leaving the context early cancels the call.

        async with client.stream("Tell me a story") as stream:
            async for text in stream.text():
                print(text, end="", flush=True)
        print(stream.answer.usage)

    Iterating gives events: `Started` first, `Completed` last. A failure is raised whenever it happens; the error's
    `partial` says what had been used, and `received_text` holds what had come. Cancelling the task cancels the call.
    """

    def __init__(self, chunks: AsyncServerStream[ChatResponseChunk]) -> None:
        self._chunks = chunks
        self._builder = AnswerBuilder()

    @property
    def answer(self) -> ChatAnswer:
        """The whole answer, equal to what `chat` would have given.

        Raises:
            RuntimeError: the stream has not been read to its end.
        """
        return _whole(self._builder)

    @property
    def received_text(self) -> str:
        """The text so far; it stays after a failure."""
        return self._builder.text

    async def text(self) -> AsyncIterator[str]:
        """The answer's text, piece by piece, as it comes."""
        async for event in self:
            if isinstance(event, TextDelta):
                yield event.text

    async def collect(self) -> ChatAnswer:
        """Reads the stream to its end and gives the whole answer."""
        async for _ in self:
            pass
        return self.answer

    async def __aenter__(self) -> Self:
        await self._chunks.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StreamEvent:
        async for chunk in self._chunks:
            event = self._builder.feed(chunk)
            if event is not None:
                return event
        self._builder.finish()
        raise StopAsyncIteration

    def close(self) -> None:
        """Cancels the call unless it has ended."""
        self._chunks.close()


def _whole(builder: AnswerBuilder) -> ChatAnswer:
    if builder.answer is None:
        raise RuntimeError("the answer is not whole; read the stream to its end first")
    return builder.answer


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
