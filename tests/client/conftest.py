"""A fake gateway and both clients, connected to it."""

from collections.abc import AsyncIterator

import pytest
from tests.client.fake_gateway import TOKEN, Driver, FakeGateway, serving

from patchbay_client import AsyncPatchbayClient, PatchbayClient


@pytest.fixture
def gateway() -> FakeGateway:
    return FakeGateway()


@pytest.fixture
async def port(gateway: FakeGateway) -> AsyncIterator[int]:
    async with serving(gateway) as port:
        yield port


@pytest.fixture(params=["blocking", "asyncio"])
async def driver(request: pytest.FixtureRequest, port: int) -> AsyncIterator[Driver]:
    """Runs the test once with each client."""
    client_class = PatchbayClient if request.param == "blocking" else AsyncPatchbayClient
    driver = Driver(client_class(f"127.0.0.1:{port}", TOKEN))
    yield driver
    await driver.close()
