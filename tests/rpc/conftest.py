"""Fixtures of the gRPC tests."""

from collections.abc import AsyncIterator

import pytest
from tests.rpc.bench import Rpc, serving
from tests.support.bench import Bench


@pytest.fixture
async def rpc(bench: Bench) -> AsyncIterator[Rpc]:
    """A gateway with the connector `main`, by gRPC."""
    async with serving(bench) as made:
        yield made
