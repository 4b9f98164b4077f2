"""A clock that jumps at its n-th reading, for every n, once and again at each reading from then on."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

import pytest
from tests.faults.sweep import CASES, Case, run
from tests.support.clock import Clock

from patchbay_server.core import call as call_module
from patchbay_server.errors import Reason
from patchbay_server.types import CallState

PAST_THE_DEADLINE_S: Final = 3_600.0
PAST_THE_MONTH_S: Final = 15 * 24 * 3_600.0
"""More than is left of the month in which clocks of tests start."""


class JumpyClock(Clock):
    """A clock that jumps just before its n-th reading since it was armed, by the wall and, unless `wall_only`, by the
    other.
    """

    def __init__(self, nth: int, jump_s: float, *, wall_only: bool, from_then_on: bool) -> None:
        super().__init__()
        self._nth = nth
        self._jump_s = jump_s
        self._wall_only = wall_only
        self._from_then_on = from_then_on
        self._readings = 0
        self.armed = False

    @property
    def jumped(self) -> bool:
        return self._readings >= self._nth

    def now(self) -> datetime:
        self._read()
        return super().now()

    def monotonic(self) -> float:
        self._read()
        return super().monotonic()

    def _read(self) -> None:
        if not self.armed:
            return
        self._readings += 1
        if self._readings == self._nth or (self._from_then_on and self._readings > self._nth):
            if self._wall_only:
                self._now += timedelta(seconds=self._jump_s)
            else:
                self.jump(self._jump_s)


JUMPS: Final[dict[str, Callable[..., JumpyClock]]] = {
    "past the deadline": lambda nth, again: JumpyClock(nth, PAST_THE_DEADLINE_S, wall_only=False, from_then_on=again),
    "past the month": lambda nth, again: JumpyClock(nth, PAST_THE_MONTH_S, wall_only=False, from_then_on=again),
    "wall into the next month": lambda nth, again: JumpyClock(
        nth, PAST_THE_MONTH_S, wall_only=True, from_then_on=again
    ),
    "wall back": lambda nth, again: JumpyClock(nth, -PAST_THE_DEADLINE_S, wall_only=True, from_then_on=again),
    "wall back a month": lambda nth, again: JumpyClock(nth, -2 * PAST_THE_MONTH_S, wall_only=True, from_then_on=again),
}


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hard caps are asked for more in the middle of short answers."""
    monkeypatch.setattr(call_module, "OUTPUT_TOKENS_STEP", 2)


async def _jumped(case: Case, clock: JumpyClock, *, streaming: bool) -> bool:
    """Whether the clock jumped before the call had ended."""
    async with run(case, streaming=streaming, clock=clock) as this:
        clock.armed = True
        await this.make()
        await this.bench.recorder.flush()
        clock.armed = False
        row = await this.check()
        assert row is not None
        if this.answer is None:
            assert clock.jumped
            assert row.state is CallState.FAILED
            # A fallback for which no time is left does not start: then the first failure is what is told.
            assert this.reason is Reason.DEADLINE_EXCEEDED or case.attempts > 1
            assert this.reason not in {Reason.DEPENDENCY_UNAVAILABLE, Reason.CAP_REACHED}
        elif not clock.jumped:
            assert len(this.asked) == case.attempts
        return clock.jumped


async def _sweep(case: Case, jump: str, *, streaming: bool, from_then_on: bool) -> None:
    nth = 1
    while await _jumped(case, JUMPS[jump](nth, from_then_on), streaming=streaming):
        nth += 1
    assert nth > 5


@pytest.mark.parametrize("jump", ["past the deadline", "wall into the next month", "wall back a month"])
@pytest.mark.parametrize("streaming", [False, True], ids=["chat", "stream"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_a_call_whose_clock_jumps_at_any_reading_ends_once(case: Case, streaming: bool, jump: str) -> None:
    await _sweep(case, jump, streaming=streaming, from_then_on=False)


@pytest.mark.slow
@pytest.mark.parametrize("from_then_on", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("jump", JUMPS)
@pytest.mark.parametrize("streaming", [False, True], ids=["chat", "stream"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_a_call_whose_clock_jumps_again_and_again_ends_once(
    case: Case, streaming: bool, jump: str, from_then_on: bool
) -> None:
    await _sweep(case, jump, streaming=streaming, from_then_on=from_then_on)
