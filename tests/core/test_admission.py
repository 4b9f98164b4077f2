"""Who gets a place, in which order, and who is sent away."""

import asyncio
from contextlib import AsyncExitStack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchbay_server.core.admission import Admission, Room
from patchbay_server.errors import PatchbayError, Reason

ROOM = Room(calls_max=2, owner_calls_max=2, queue_max=10, owner_queue_max=10, wait_s=5.0)
FULL = PatchbayError(Reason.DRAINING, "shutting down", retry_after_s=1.0)


class Calls:
    """Calls that hold their places until they are told to end."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.placed: list[str] = []
        self._ends: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def start(self, name: str, owner: str, timeout_s: float | None = None) -> None:
        """Start a call and let it run until it is placed or waits."""
        self._ends[name] = asyncio.Event()
        self._tasks[name] = asyncio.create_task(self._run(name, owner, timeout_s))
        await settle()

    async def end(self, name: str) -> None:
        self._ends[name].set()
        await self._tasks[name]
        await settle()

    async def cancel(self, name: str) -> None:
        self._tasks[name].cancel()
        await asyncio.gather(self._tasks[name], return_exceptions=True)
        await settle()

    async def refusal(self, name: str) -> PatchbayError:
        with pytest.raises(PatchbayError) as caught:
            await self._tasks[name]
        return caught.value

    async def _run(self, name: str, owner: str, timeout_s: float | None) -> None:
        async with self.admission.place(owner, timeout_s):
            self.placed.append(name)
            await self._ends[name].wait()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def calls(**room: float) -> Calls:
    return Calls(Admission(Room(**({name: getattr(ROOM, name) for name in ROOM.__struct_fields__} | room))))  # type: ignore[arg-type]


async def test_calls_run_at_once_up_to_the_bound_and_the_next_one_waits() -> None:
    seen = calls()
    for name in ("a1", "a2", "a3"):
        await seen.start(name, "a")
    assert (seen.placed, seen.admission.running, seen.admission.queued) == (["a1", "a2"], 2, 1)
    await seen.end("a1")
    assert seen.placed == ["a1", "a2", "a3"]
    await seen.end("a2")
    await seen.end("a3")
    assert (seen.admission.running, seen.admission.queued) == (0, 0)


async def test_places_go_round_the_owners_whoever_came_in_a_rush() -> None:
    seen = calls(calls_max=1, owner_calls_max=1)
    for name in ("a1", "a2", "a3", "a4", "b1", "c1"):
        await seen.start(name, name[0])
    for name in ("a1", "a2", "b1", "c1", "a3", "a4"):
        assert seen.placed[-1] == name
        await seen.end(name)


async def test_one_owner_cannot_take_all_places() -> None:
    seen = calls(calls_max=3, owner_calls_max=2)
    for name in ("a1", "a2", "a3", "b1"):
        await seen.start(name, name[0])
    assert seen.placed == ["a1", "a2", "b1"]
    await seen.end("b1")
    assert seen.placed == ["a1", "a2", "b1"]
    for name in ("a1", "a2", "a3"):
        await seen.end(name)
    assert seen.placed[-1] == "a3"


async def test_a_call_that_waits_too_long_is_refused_with_a_time_to_come_back() -> None:
    seen = calls(calls_max=1, owner_calls_max=1, wait_s=0.02)
    await seen.start("a1", "a")
    await seen.start("a2", "a")
    error = await seen.refusal("a2")
    assert (error.reason, error.retry_after_s) == (Reason.OVERLOADED, 1.0)
    assert seen.admission.queued == 0
    await seen.end("a1")


async def test_a_call_does_not_wait_past_its_own_deadline() -> None:
    seen = calls(calls_max=1, owner_calls_max=1, wait_s=60.0)
    await seen.start("a1", "a")
    await seen.start("a2", "a", timeout_s=0.02)
    assert (await asyncio.wait_for(seen.refusal("a2"), 5.0)).reason is Reason.OVERLOADED
    await seen.end("a1")


@pytest.mark.parametrize("bounds", [{"queue_max": 1}, {"owner_queue_max": 1}, {"queue_max": 1, "owner_queue_max": 1}])
async def test_a_full_line_refuses_at_once(bounds: dict[str, int]) -> None:
    seen = calls(calls_max=1, owner_calls_max=1, **bounds)
    for name in ("a1", "a2", "a3"):
        await seen.start(name, "a")
    assert (await seen.refusal("a3")).reason is Reason.OVERLOADED
    await seen.end("a1")
    await seen.end("a2")


async def test_one_owner_s_full_line_leaves_room_for_the_others() -> None:
    seen = calls(calls_max=1, owner_calls_max=1, queue_max=2, owner_queue_max=1)
    for name in ("a1", "a2", "a3", "b1"):
        await seen.start(name, name[0])
    assert (await seen.refusal("a3")).reason is Reason.OVERLOADED
    assert seen.admission.queued == 2
    for name in ("a1", "a2", "b1"):
        await seen.end(name)


async def test_a_call_that_is_cancelled_in_the_line_leaves_no_trace() -> None:
    seen = calls(calls_max=1, owner_calls_max=1)
    for name in ("a1", "a2", "a3"):
        await seen.start(name, "a")
    await seen.cancel("a2")
    assert seen.admission.queued == 1
    await seen.end("a1")
    assert seen.placed == ["a1", "a3"]
    await seen.end("a3")


async def test_a_place_that_came_in_the_turn_of_a_cancel_is_given_on() -> None:
    seen = calls(calls_max=1, owner_calls_max=1)
    for name in ("a1", "a2", "a3"):
        await seen.start(name, "a")
    seen._ends["a1"].set()
    await asyncio.sleep(0)  # a1 ends and seats a2, which has not run yet
    await seen.cancel("a2")
    assert "a3" in seen.placed
    await seen.end("a3")
    assert seen.admission.running == 0


async def test_closing_refuses_those_who_wait_and_those_who_come_and_lets_the_others_end() -> None:
    seen = calls(calls_max=1, owner_calls_max=1)
    await seen.start("a1", "a")
    await seen.start("a2", "a")
    seen.admission.close(FULL)
    await seen.start("a3", "a")
    for name in ("a2", "a3"):
        assert (await seen.refusal(name)).reason is Reason.DRAINING
    assert seen.admission.running == 1
    await seen.end("a1")
    assert (seen.admission.running, seen.admission.queued) == (0, 0)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["start", "end", "cancel"]), st.integers(0, 9))),
)
def test_whatever_comes_and_goes_the_bounds_hold_and_no_place_is_lost(
    calls_max: int, owner_max: int, steps: list[tuple[str, str, int]]
) -> None:
    async def run() -> None:
        seen = calls(calls_max=calls_max, owner_calls_max=owner_max, queue_max=4, owner_queue_max=2)
        alive: list[str] = []
        async with AsyncExitStack() as stack:
            for number, (owner, what, which) in enumerate(steps):
                if what == "start":
                    name = f"{owner}{number}"
                    await seen.start(name, owner)
                    if not seen._tasks[name].done():
                        alive.append(name)
                        stack.push_async_callback(seen.cancel, name)
                elif alive:
                    name = alive.pop(which % len(alive))
                    await (seen.end(name) if what == "end" and name in seen.placed else seen.cancel(name))
                running = [name for name in alive if name in seen.placed]
                assert seen.admission.running == len(running) <= calls_max
                assert seen.admission.queued == len(alive) - len(running)
                for each in "abc":
                    assert sum(name[0] == each for name in running) <= owner_max
                    waiting = sum(name[0] == each for name in alive if name not in seen.placed)
                    mine = sum(name[0] == each for name in running)
                    assert not waiting or mine == owner_max or len(running) == calls_max, "a place stands empty"
        refused = [task for task in seen._tasks.values() if task.done() and not task.cancelled()]
        assert all(isinstance(task.exception(), PatchbayError | None) for task in refused)

    asyncio.run(run())
