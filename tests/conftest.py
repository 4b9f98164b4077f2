"""What every test may ask for."""

from collections.abc import AsyncIterator

import pytest
from tests.support.bench import Bench, assembled
from tests.support.clock import Clock


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
