"""How many calls run at once, and who is next when there is no room.

A process runs a bounded number of calls, and a bounded number of each owner's. A call that finds no room waits for a
short while in its owner's line; places that become free go round the owners in turn, so that one owner's rush does not
starve the others. What waits too long, or finds its line full, is refused: the caller is told to come back.
"""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import msgspec

from patchbay_server.errors import PatchbayError, Reason

RETRY_AFTER_S: Final = 1.0


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of calls in this process.

    `calls_max` run at once, `owner_calls_max` of one owner's. `queue_max` wait, at most `owner_queue_max` of one
    owner's, each for at most `wait_s` seconds.
    """

    calls_max: int = 2_000
    owner_calls_max: int = 500
    queue_max: int = 1_000
    owner_queue_max: int = 250
    wait_s: float = 2.0


class Admission:
    """The places of one process. Use it in one event loop."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._running = 0
        self._by_owner: Counter[str] = Counter()
        self._lines: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self._queued = 0
        self._refusal: PatchbayError | None = None

    @property
    def running(self) -> int:
        """Calls that have a place."""
        return self._running

    @property
    def queued(self) -> int:
        """Calls that wait for one."""
        return self._queued

    @property
    def closed(self) -> bool:
        return self._refusal is not None

    @asynccontextmanager
    async def place(self, owner: str, timeout_s: float | None = None) -> AsyncIterator[None]:
        """A place for one call, given back when the context is left.

        Args:
            timeout_s: seconds that the caller waits; None when it waits for ever.

        Raises:
            PatchbayError: OVERLOADED when none became free in time or too many wait already; what `close` was given.
        """
        if self._refusal is not None:
            raise _copy(self._refusal)
        if self._fits(owner) and owner not in self._lines:
            self._take(owner)
        else:
            await self._wait(owner, timeout_s)
        try:
            yield
        finally:
            self._give_back(owner)

    def close(self, refusal: PatchbayError) -> None:
        """Refuse new calls, and those that wait, with `refusal`."""
        self._refusal = refusal
        for line in self._lines.values():
            for waiting in line:
                if not waiting.done():
                    waiting.set_exception(_copy(refusal))

    def _fits(self, owner: str) -> bool:
        return self._running < self._room.calls_max and self._by_owner[owner] < self._room.owner_calls_max

    def _take(self, owner: str) -> None:
        self._running += 1
        self._by_owner[owner] += 1

    async def _wait(self, owner: str, timeout_s: float | None) -> None:
        """Wait in the owner's line until `_seat` has taken a place for this call."""
        line = self._lines.get(owner, deque())
        if self._queued >= self._room.queue_max or len(line) >= self._room.owner_queue_max:
            raise overloaded()
        self._lines.setdefault(owner, line)
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        line.append(waiting)
        self._queued += 1
        try:
            async with asyncio.timeout(self._room.wait_s if timeout_s is None else min(self._room.wait_s, timeout_s)):
                await waiting
        except BaseException as end:
            # The place may have been taken for this call in the very turn in which it stopped waiting.
            if waiting.done() and not waiting.cancelled() and waiting.exception() is None:
                self._give_back(owner)
            else:
                self._leave_line(owner, waiting)
            if isinstance(end, TimeoutError):
                raise overloaded() from None
            raise

    def _leave_line(self, owner: str, waiting: "asyncio.Future[None]") -> None:
        line = self._lines.get(owner, deque())
        if waiting not in line:
            return
        line.remove(waiting)
        self._queued -= 1
        if not line:
            del self._lines[owner]

    def _give_back(self, owner: str) -> None:
        self._running -= 1
        self._by_owner[owner] -= 1
        if not self._by_owner[owner]:
            del self._by_owner[owner]
        self._seat()

    def _seat(self) -> None:
        """Give what is free to the owners in turn, each line in its order."""
        turns = deque(self._lines)
        while turns and self._refusal is None:
            owner = turns.popleft()
            line = self._lines.get(owner)
            if not line or not self._fits(owner):
                continue
            waiting = line[0]
            self._leave_line(owner, waiting)
            if line:
                self._lines.move_to_end(owner)
                turns.append(owner)
            if not waiting.done():
                self._take(owner)
                waiting.set_result(None)


def overloaded() -> PatchbayError:
    """There is no room for one call more."""
    return PatchbayError(Reason.OVERLOADED, "the gateway is full; call again", retry_after_s=RETRY_AFTER_S)


def _copy(error: PatchbayError) -> PatchbayError:
    """An error of its own for each caller: one value raised in many tasks would chain their tracebacks."""
    return PatchbayError(error.reason, error.message, retry_after_s=error.retry_after_s)
