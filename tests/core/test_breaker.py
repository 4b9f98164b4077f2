"""When a circuit breaker opens, half-opens and closes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import make
from tests.support.clock import Clock

from patchbay_server.core import breaker as breaker_module
from patchbay_server.core.breaker import COOL_DOWN_S, FAILURES_MAX, FORGET_S, WINDOW_S, Breakers
from patchbay_server.errors import Reason

MAIN = make.connector("main")
MODEL = "small"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breakers(clock: Clock) -> Breakers:
    return Breakers(clock)


def attempt(breakers: Breakers, reason: Reason | None, model: str = MODEL) -> None:
    probe = breakers.started(MAIN.uid, model)
    breakers.ended(MAIN, model, reason, probe=probe)


def fail(breakers: Breakers, times: int = FAILURES_MAX, reason: Reason = Reason.UPSTREAM_UNAVAILABLE) -> None:
    for _ in range(times):
        attempt(breakers, reason)


def is_open(breakers: Breakers, model: str = MODEL) -> bool:
    return breakers.is_open(MAIN.uid, model)


def test_it_opens_after_so_many_failures_in_a_row_and_not_before(breakers: Breakers) -> None:
    fail(breakers, FAILURES_MAX - 1)
    assert not is_open(breakers)
    fail(breakers, 1)
    assert is_open(breakers)


def test_an_answer_in_between_starts_the_count_anew(breakers: Breakers) -> None:
    fail(breakers, FAILURES_MAX - 1)
    attempt(breakers, None)
    fail(breakers, FAILURES_MAX - 1)
    assert not is_open(breakers)


def test_failures_far_apart_do_not_open_it(breakers: Breakers, clock: Clock) -> None:
    for _ in range(FAILURES_MAX * 2):
        fail(breakers, 1)
        clock.jump(WINDOW_S / 2)
    assert not is_open(breakers)


@pytest.mark.parametrize(
    "reason",
    [Reason.UPSTREAM_REJECTED_REQUEST, Reason.CONTEXT_LENGTH_EXCEEDED, Reason.CANCELLED, Reason.DEADLINE_EXCEEDED],
)
def test_what_the_request_or_its_caller_is_to_blame_for_does_not_open_it(breakers: Breakers, reason: Reason) -> None:
    fail(breakers, FAILURES_MAX * 2, reason)
    assert not is_open(breakers)
    assert breakers.not_closed() == []


def test_models_of_one_connector_are_judged_apart(breakers: Breakers) -> None:
    fail(breakers)
    assert not is_open(breakers, "large")


def test_after_the_cool_down_one_probe_may_go_and_the_others_wait_for_it(breakers: Breakers, clock: Clock) -> None:
    fail(breakers)
    clock.jump(COOL_DOWN_S - 0.001)
    assert is_open(breakers)
    clock.jump(0.001)
    assert not is_open(breakers)
    assert breakers.started(MAIN.uid, MODEL)
    assert is_open(breakers)
    assert not breakers.started(MAIN.uid, MODEL)


def test_a_probe_that_is_answered_closes_it(breakers: Breakers, clock: Clock) -> None:
    fail(breakers)
    clock.jump(COOL_DOWN_S)
    attempt(breakers, None)
    assert not is_open(breakers)
    assert breakers.not_closed() == []
    fail(breakers, FAILURES_MAX - 1)
    assert not is_open(breakers)


def test_a_probe_that_fails_opens_it_for_another_cool_down(breakers: Breakers, clock: Clock) -> None:
    fail(breakers)
    clock.jump(COOL_DOWN_S)
    fail(breakers, 1)
    assert is_open(breakers)
    clock.jump(COOL_DOWN_S - 0.001)
    assert is_open(breakers)
    clock.jump(0.001)
    assert not is_open(breakers)


def test_a_probe_that_tells_nothing_lets_the_next_one_go(breakers: Breakers, clock: Clock) -> None:
    fail(breakers)
    clock.jump(COOL_DOWN_S)
    attempt(breakers, Reason.CANCELLED)
    assert not is_open(breakers)
    assert breakers.started(MAIN.uid, MODEL)


def test_a_call_beside_the_probe_does_not_end_it(breakers: Breakers, clock: Clock) -> None:
    fail(breakers)
    clock.jump(COOL_DOWN_S)
    assert breakers.started(MAIN.uid, MODEL)
    attempt(breakers, Reason.CANCELLED)
    assert is_open(breakers)


def test_those_that_are_not_closed_are_told(breakers: Breakers, clock: Clock) -> None:
    opened_at = clock.now()
    fail(breakers)
    (state,) = breakers.not_closed()
    assert (state.connector, state.model, state.half_open, state.opened_at) == (MAIN.name, MODEL, False, opened_at)
    clock.jump(COOL_DOWN_S)
    (state,) = breakers.not_closed()
    assert (state.half_open, state.opened_at) == (True, opened_at)


def test_a_breaker_that_nobody_probes_is_forgotten(breakers: Breakers, clock: Clock) -> None:
    fail(breakers)
    clock.jump(COOL_DOWN_S + FORGET_S)
    assert len(breakers.not_closed()) == 1
    clock.jump(1)
    assert breakers.not_closed() == []


def test_what_is_remembered_is_bounded(breakers: Breakers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaker_module, "BREAKERS_MAX", 3)
    for number in range(10):
        attempt(breakers, Reason.UPSTREAM_TIMEOUT, f"model-{number}")
    assert len(breakers._failing) == 3


OUTCOMES = [None, Reason.UPSTREAM_UNAVAILABLE, Reason.UPSTREAM_TIMEOUT, Reason.CANCELLED, Reason.MODEL_NOT_FOUND]


@given(st.lists(st.tuples(st.sampled_from(OUTCOMES), st.sampled_from([0.0, 1.0, COOL_DOWN_S, WINDOW_S]))))
def test_whatever_happens_at_most_one_probe_is_under_way_and_an_answer_closes(
    steps: list[tuple[Reason | None, float]],
) -> None:
    clock = Clock()
    breakers = Breakers(clock)
    for reason, wait_s in steps:
        clock.jump(wait_s)
        probe = breakers.started(MAIN.uid, MODEL)
        assert not probe or not breakers.started(MAIN.uid, MODEL)
        breakers.ended(MAIN, MODEL, reason, probe=probe)
        if reason is None:
            assert breakers.not_closed() == []
