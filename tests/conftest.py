"""What every test may ask for."""

import signal
from collections.abc import AsyncIterator, Iterator

import pytest
from hypothesis import HealthCheck, settings
from tests.support.bench import Bench, assembled
from tests.support.clock import Clock

# How long an example takes says more of the machine than of the code; what must be fast has tests of its own.
settings.register_profile("patient", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_is_heard() -> Iterator[None]:
    """Processes inherit whether SIGINT is ignored, and a run in the background of a script is started with that."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def clock() -> Clock:
    """A clock that stands still until the test jumps it."""
    return Clock()


@pytest.fixture
async def bench(clock: Clock) -> AsyncIterator[Bench]:
    """A gateway's core at work with one connector, `main`. Its invariants are checked when the test is over."""
    async with assembled(clock=clock) as assembled_bench:
        await assembled_bench.add()
        yield assembled_bench
