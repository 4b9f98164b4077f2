"""Holding and breaking single methods of a real part, to look at what others do meanwhile."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.types import CallClosed, CallOpened, Record


class Gate:
    """Where calls of a held method wait."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()
        self.waiting = 0

    def open(self) -> None:
        self.opened.set()

    async def crowd(self, count: int) -> None:
        """Wait until that many calls wait here."""
        while self.waiting < count:
            self.reached.clear()
            await self.reached.wait()


def hold(part: object, method: str, *, before: bool = False, only: Callable[..., bool] = lambda *_, **__: True) -> Gate:
    """Let the calls of `part.method` that `only` holds for wait, until the gate opens.

    Their work is done by then; with `before` it is not.
    """
    real: Callable[..., Awaitable[Any]] = getattr(part, method)
    gate = Gate()

    async def held(*args: Any, **named: Any) -> Any:
        if not only(*args, **named):
            return await real(*args, **named)
        result = None if before else await real(*args, **named)
        gate.waiting += 1
        gate.reached.set()
        await gate.opened.wait()
        gate.waiting -= 1
        return await real(*args, **named) if before else result

    setattr(part, method, held)
    return gate


def fail(
    part: object,
    method: str,
    *,
    times: int | None = None,
    error: Callable[[], Exception] = lambda: PatchbayError(
        Reason.DEPENDENCY_UNAVAILABLE, "the store is broken by a test"
    ),
    only: Callable[..., bool] = lambda *_, **__: True,
) -> list[Any]:
    """Let `part.method` raise for its next `times` calls (None: for ever) that `only` holds for.

    Returns:
        a list that grows by the arguments of each call that was made to fail.
    """
    real: Callable[..., Awaitable[Any]] = getattr(part, method)
    failed: list[Any] = []

    async def failing(*args: Any, **named: Any) -> Any:
        if (times is None or len(failed) < times) and only(*args, **named):
            failed.append(args)
            await asyncio.sleep(0)
            raise error()
        return await real(*args, **named)

    setattr(part, method, failing)
    return failed


def count(part: object, method: str) -> list[Any]:
    """A list that grows by the arguments of each call of `part.method`."""
    real: Callable[..., Awaitable[Any]] = getattr(part, method)
    calls: list[Any] = []

    async def counting(*args: Any, **named: Any) -> Any:
        calls.append(args)
        return await real(*args, **named)

    setattr(part, method, counting)
    return calls


def opens(records: Sequence[Record]) -> bool:
    """Whether these records open a call."""
    return any(isinstance(record, CallOpened) for record in records)


def closes(records: Sequence[Record]) -> bool:
    """Whether these records close a call."""
    return any(isinstance(record, CallClosed) for record in records)
