"""A gateway for servers that stand for providers."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.e2e.gateway import GatewayHere, gateway_here


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[GatewayHere]:
    async with gateway_here(tmp_path / "data") as gateway:
        yield gateway
        await gateway.check_nothing_is_left()
