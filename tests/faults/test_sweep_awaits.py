"""A call that is stopped wherever it waits: at its n-th suspension for every n, once and again from then on."""

import asyncio
import types
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from typing import Any

import pytest
from tests.faults.sweep import CASES, Case, Run, run

from patchbay_server.core import call as call_module
from patchbay_server.core.call import deadline_passed
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.types import CallState

SUSPENSIONS_MAX = 500
"""A sweep that goes on for so long goes on for ever."""


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hard caps are asked for more in the middle of short answers."""
    monkeypatch.setattr(call_module, "OUTPUT_TOKENS_STEP", 2)


@types.coroutine
def _stepped(
    work: Coroutine[Any, Any, None], at: Callable[[int, "asyncio.Future[Any] | None"], None]
) -> Generator[Any, Any, None]:
    """Drive `work`, and tell `at` of each suspension: its number, and what is waited for (None: for the next turn)."""
    step: Callable[[], Any] = partial(work.send, None)
    suspensions = 0
    while True:
        try:
            waited = step()
        except StopIteration:
            return
        suspensions += 1
        at(suspensions, waited)
        try:
            yield waited
        except BaseException as error:  # noqa: BLE001 -- whatever it is, it is for the work
            step = partial(work.throw, error)
        else:
            step = partial(work.send, None)


class Stop:
    """What stops a call at its n-th suspension; `reached` when there was one.

    Attributes:
        too_late: whether the call's closing record was queued by then.
    """

    def __init__(self, this: Run, nth: int, *, from_then_on: bool) -> None:
        self._this = this
        self._nth = nth
        self._from_then_on = from_then_on
        self.reached = False
        self.too_late = False
        self.task: asyncio.Task[None] | None = None

    def at(self, suspension: int, waited: "asyncio.Future[Any] | None") -> None:
        if suspension == self._nth:
            self.reached = True
            self.too_late = self._this.closing
            self.act(waited)
        elif suspension > self._nth and self._from_then_on:
            self.act(waited)
        assert suspension < SUSPENSIONS_MAX

    def act(self, waited: "asyncio.Future[Any] | None") -> None:
        raise NotImplementedError

    def cancel(self) -> None:
        assert self.task is not None
        self.task.cancel()

    def expected(self) -> tuple[CallState, Reason]:
        return CallState.CANCELLED, Reason.CANCELLED


class Cancel(Stop):
    """The caller goes while something is waited for."""

    def act(self, waited: "asyncio.Future[Any] | None") -> None:
        self.cancel()


class CancelAsItWakes(Stop):
    """The caller goes when what was waited for has come and the call has not taken it yet."""

    def act(self, waited: "asyncio.Future[Any] | None") -> None:
        if waited is None:
            self.cancel()
        else:
            waited.add_done_callback(lambda _: self.cancel())


class CallersDeadline(Stop):
    """The deadline passes at the caller's side, which cancels the call here."""

    def act(self, waited: "asyncio.Future[Any] | None") -> None:
        self._this.bench.clock.jump(3600.0)
        self.cancel()

    def expected(self) -> tuple[CallState, Reason]:
        return CallState.FAILED, Reason.DEADLINE_EXCEEDED


class Cut(Stop):
    """The deadline passes here, or the server stops."""

    error = staticmethod(deadline_passed)

    def act(self, waited: "asyncio.Future[Any] | None") -> None:
        self._this.bench.clock.jump(3600.0)
        for call in self._this.bench.gateway._running:
            call.cut(self.error())

    def expected(self) -> tuple[CallState, Reason]:
        return CallState.FAILED, self.error().reason


class Drain(Cut):
    @staticmethod
    def error() -> PatchbayError:
        return PatchbayError(Reason.DRAINING, "stopping")

    def act(self, waited: "asyncio.Future[Any] | None") -> None:
        for call in self._this.bench.gateway._running:
            call.cut(self.error())


async def _stopped(case: Case, stop: type[Stop], nth: int, *, streaming: bool, from_then_on: bool) -> bool:
    """Whether the call was stopped before it ended."""
    async with run(case, streaming=streaming) as this:
        stopping = stop(this, nth, from_then_on=from_then_on)

        async def driven() -> None:
            await _stepped(this.make(), stopping.at)

        stopping.task = asyncio.create_task(driven())
        await asyncio.wait([stopping.task], timeout=10.0)
        assert stopping.task.done(), "the call hangs"
        if not stopping.task.cancelled():
            stopping.task.result()
        row = await this.check()
        if not stopping.reached:
            assert this.answer is not None
            assert (len(this.asked), this.error) == (case.attempts, None)
        elif row is not None and row.closed is not None and not stopping.too_late:
            assert this.answer is None or isinstance(stopping, Cut)
            if this.answer is None:
                assert (row.state, row.closed.reason) == stopping.expected()
        return stopping.reached


@pytest.mark.parametrize("from_then_on", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("stop", [Cancel, CancelAsItWakes, CallersDeadline, Cut, Drain])
@pytest.mark.parametrize("streaming", [False, True], ids=["chat", "stream"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_a_call_that_is_stopped_wherever_it_waits_ends_once(
    case: Case, streaming: bool, stop: type[Stop], from_then_on: bool
) -> None:
    nth = 1
    while await _stopped(case, stop, nth, streaming=streaming, from_then_on=from_then_on):
        nth += 1
    assert nth > 5


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_a_stream_whose_caller_leaves_after_any_batch_is_cancelled(case: Case) -> None:
    left = 0
    while True:
        async with run(case, streaming=True) as this:
            await this.make(leave_after=left + 1)
            row = await this.check()
            if this.answer is not None:
                break
            assert row is not None
            assert row.state is CallState.CANCELLED
            left += 1
    assert left > 2
