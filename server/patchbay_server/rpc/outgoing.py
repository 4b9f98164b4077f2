"""One RPC's way back to its caller: the header, then chunks, with heartbeats in the silences.

grpc takes one operation of a kind at a time, and none may be abandoned half-way if another of that kind is to follow.
So all writing goes through one lock, the header is sent by one task that is never cancelled while it sends, and nothing
is written after a write was cut off.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import groupby
from types import TracebackType
from typing import Any, Final, Self, TypeAlias

import grpc.aio
import msgspec

from patchbay.v1.gateway_service_pb2 import ChatResponseChunk
from patchbay_server.core.call import RunningCall
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.rpc.convert import answers
from patchbay_server.rpc.convert.requests import Delivery
from patchbay_server.rpc.status import CALL_ID_KEY
from patchbay_server.types import ChatCompleted, ChatEvent, ReasoningDelta, TextDelta, ToolCallDelta

DELTA_CHARS_MAX: Final = 64 * 1024
"""Longer deltas are sent in pieces: at most 256 KiB in UTF-8, whatever the script."""

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class Outgoing:
    """What one call sends. Use it around the call, so that it outlives the call and knows what was sent until its end.

    A `PatchbayError` that passes through learns the sequence of the last chunk.

    Args:
        delivery: how chunks are sent; None for an RPC whose one message is its return value.
    """

    def __init__(self, context: Context, delivery: Delivery | None = None) -> None:
        self._context = context
        self._delivery = delivery or Delivery(heartbeat_s=None)
        self._lock = asyncio.Lock()
        self._opened = asyncio.Event()
        self._attendant: asyncio.Task[None] | None = None
        self._call: RunningCall | None = None
        self._cut = False
        self._written_at = 0.0
        self.sequence = 0
        """The last chunk's."""
        self.completed = False
        """Whether the terminal chunk was sent, or is on its way."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        await self._dismiss()
        if isinstance(error, PatchbayError) and error.partial is not None:
            error.partial = msgspec.structs.replace(error.partial, last_sequence=self.sequence)

    def attend(self, call: RunningCall) -> None:
        """Send the header as soon as the call is admitted for all to see, whatever its provider does meanwhile."""
        self._call = call
        self._attendant = asyncio.create_task(self._attend(call))

    async def write(self, batch: Sequence[ChatEvent]) -> None:
        """Send a batch of events; returns when the transport has taken them, so that a slow caller slows the provider.

        Raises:
            PatchbayError: CANCELLED when the caller has gone.
        """
        if not self._opened.is_set():
            await self._opened.wait()
        events = coalesced(batch) if self._delivery.coalescing else batch
        final_response = self._delivery.final_response
        async with self._lock:
            for event in events:
                for piece in pieces(event):
                    chunk = answers.chunk(piece, self.sequence + 1, final_response=final_response)
                    self.completed = isinstance(piece, ChatCompleted)
                    if self.completed and self._call is not None:
                        self._call.say_last()
                    await self._send(chunk)

    async def _dismiss(self) -> None:
        """End the attendant, but not within an operation; a call that was admitted gets its header first."""
        if self._attendant is None or self._call is None:
            return
        try:
            if self._call.durable.done():
                await self._opened.wait()
            async with self._lock:
                self._cut = True
        finally:
            self._attendant.cancel()

    async def _send(self, chunk: ChatResponseChunk) -> None:
        self.sequence += 1
        try:
            await self._context.write(chunk)
        except grpc.aio.BaseError:
            self._cut = True
            raise PatchbayError(Reason.CANCELLED, "the caller has gone") from None
        except BaseException:
            # Cut off within the write: the chunk is on its way all the same, and no other may follow it.
            self._cut = True
            raise
        self._written_at = asyncio.get_running_loop().time()

    async def _attend(self, call: RunningCall) -> None:
        try:
            await asyncio.shield(call.durable)  # which is not the attendant's to cancel
            async with self._lock:
                await self._context.send_initial_metadata(((CALL_ID_KEY, call.call_id),))
        except PatchbayError:
            return  # The call meets the same failure and reports it.
        except grpc.aio.BaseError:
            return  # The caller has gone: the next write notices, and grpc cancels the RPC.
        finally:
            self._opened.set()
        if self._delivery.heartbeat_s is not None:
            await self._beat(self._delivery.heartbeat_s)

    async def _beat(self, interval_s: float) -> None:
        """A heartbeat whenever nothing was sent for `interval_s`, from the first chunk on."""
        loop = asyncio.get_running_loop()
        while not self._cut:
            silence_s = loop.time() - self._written_at if self.sequence else 0.0
            if silence_s < interval_s:
                await asyncio.sleep(interval_s - silence_s)
                continue
            async with self._lock:
                if not self._cut and loop.time() - self._written_at >= interval_s:
                    with suppress(PatchbayError):
                        await self._send(answers.heartbeat(self.sequence + 1))


def coalesced(batch: Sequence[ChatEvent]) -> Sequence[ChatEvent]:
    """`batch` with neighbouring deltas of the same part joined."""
    if len(batch) < 2:
        return batch
    joined: list[ChatEvent] = []
    for is_delta, run in groupby(batch, _delta_of):
        if is_delta:
            joined.append(_joined(list(run)))
        else:
            joined += run
    return joined


def pieces(event: ChatEvent) -> Sequence[ChatEvent]:
    """`event`, cut where it is a delta of more than `DELTA_CHARS_MAX`."""
    match event:
        case TextDelta(index, text) if len(text) > DELTA_CHARS_MAX:
            return [TextDelta(index, piece) for piece in _cut(text)]
        case ReasoningDelta(index, text) if len(text) > DELTA_CHARS_MAX:
            return [ReasoningDelta(index, piece) for piece in _cut(text)]
        case ToolCallDelta(index, text) if len(text) > DELTA_CHARS_MAX:
            return [ToolCallDelta(index, piece) for piece in _cut(text)]
        case _:
            return (event,)


def _delta_of(event: ChatEvent) -> tuple[type, int] | None:
    """What the deltas that may be joined have in common; None for any other event."""
    match event:
        case TextDelta() | ReasoningDelta() | ToolCallDelta():
            return type(event), event.part_index
        case _:
            return None


def _joined(run: Sequence[ChatEvent]) -> ChatEvent:
    """Deltas of one kind and part as one."""
    first = run[0]
    if len(run) == 1:
        return first
    match first:
        case TextDelta(index):
            return TextDelta(index, "".join(event.text for event in run if isinstance(event, TextDelta)))
        case ReasoningDelta(index):
            return ReasoningDelta(index, "".join(event.text for event in run if isinstance(event, ReasoningDelta)))
        case ToolCallDelta(index):
            fragments = (event.arguments_json for event in run if isinstance(event, ToolCallDelta))
            return ToolCallDelta(index, "".join(fragments))
        case _:
            raise AssertionError("only deltas are joined")


def _cut(text: str) -> Iterator[str]:
    """Pieces by characters, so that none can end within one."""
    return (text[start : start + DELTA_CHARS_MAX] for start in range(0, len(text), DELTA_CHARS_MAX))
