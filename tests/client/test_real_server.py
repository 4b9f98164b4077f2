"""Both clients against the gateway itself; only the provider follows a script."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.client.fake_gateway import Driver
from tests.support.answers import TEXT, error, openai_interrupted, openai_stream, openai_unary
from tests.support.provider import Cut, Provider, Silence

from patchbay_client import (
    AlreadyExists,
    AsyncPatchbayClient,
    FinishReason,
    InvalidRequest,
    NotFound,
    PatchbayClient,
    PreconditionFailed,
    RateLimited,
    Unauthenticated,
    Unavailable,
)
from patchbay_client.connectors import ConnectorState
from patchbay_client.events import Completed, Started
from patchbay_server import app
from patchbay_server.config import Settings

ADMIN_TOKEN = "pb_0123456789ab_" + "a" * 43
OWNER = "acme"


@dataclass(frozen=True)
class Gateway:
    provider: Provider
    address: str


@pytest.fixture
async def real(tmp_path: Path) -> AsyncIterator[Gateway]:
    settings = Settings(
        listen="127.0.0.1:0",
        data_dir=tmp_path / "data",
        bootstrap_token=ADMIN_TOKEN,
        drain_grace_s=0.0,
        creates_per_minute=3,
    )
    async with Provider() as provider, app.serving(settings) as (_, server):
        async with AsyncPatchbayClient(server.address, ADMIN_TOKEN) as client:
            await client.admin.update_policy(private_http="loopback")
            credential = {"base_url": provider.url(), "api_key": "planted-secret-4711"}
            await client.connectors.create(
                "openai_compatible",
                credential,
                display_name="Main",
                connector_id="main",
                model_hint="small",
                owner=OWNER,
            )
        yield Gateway(provider, server.address)


@pytest.fixture(params=["blocking", "asyncio"])
async def caller(request: pytest.FixtureRequest, real: Gateway) -> AsyncIterator[Driver]:
    """Runs the test once with each client."""
    client_class = PatchbayClient if request.param == "blocking" else AsyncPatchbayClient
    driver = Driver(client_class(real.address, ADMIN_TOKEN))
    yield driver
    await driver.close()


async def test_a_stream_adds_up_to_what_a_unary_call_answers(real: Gateway, caller: Driver) -> None:
    real.provider.answer(openai_unary(), openai_stream())
    answer = await caller.call(lambda client: client.chat("Tell me about the sea.", owner=OWNER))
    seen = await caller.read(lambda client: client.stream("Tell me about the sea.", owner=OWNER))
    assert seen.error is None
    assert isinstance(seen.items[0], Started)
    assert isinstance(seen.items[-1], Completed)
    streamed = seen.stream.answer
    for each in (answer, streamed):
        assert (each.text, each.finish_reason) == (TEXT, FinishReason.STOP)
        assert (each.usage.input_tokens, each.usage.output_tokens) == (11, 4)
        assert (each.route.connector, each.route.upstream_mode) in {
            ("owners/acme/connectors/main", "UNARY"),
            ("owners/acme/connectors/main", "STREAMING"),
        }
    assert streamed.parts == answer.parts
    assert streamed.id != answer.id


async def test_a_provider_that_is_down_is_asked_once(real: Gateway, caller: Driver) -> None:
    real.provider.always_answer(error(503))
    with pytest.raises(Unavailable) as caught:
        await caller.call(lambda client: client.chat("Hi", owner=OWNER))
    assert caught.value.reason == "UPSTREAM_UNAVAILABLE"
    assert caught.value.upstream is not None
    assert (caught.value.upstream.http_status, caught.value.upstream.attempt_count) == (503, 1)
    assert caught.value.call_id
    seen = await caller.read(lambda client: client.stream("Hi", owner=OWNER))
    assert isinstance(seen.error, Unavailable)
    assert len(real.provider.requests) == 2


async def test_a_broken_stream_says_what_was_delivered(real: Gateway, caller: Driver) -> None:
    real.provider.answer(openai_interrupted(Cut()))
    seen = await caller.read(lambda client: client.stream("Hi", owner=OWNER))
    assert isinstance(seen.error, Unavailable)
    assert seen.error.partial is not None
    assert seen.error.partial.call_id == seen.items[0].id
    assert seen.error.partial.last_sequence >= len(seen.items)
    assert seen.stream.received_text == TEXT


async def test_leaving_a_stream_closes_the_providers_connection(real: Gateway, caller: Driver) -> None:
    real.provider.answer(openai_interrupted(Silence()))
    if caller.blocking:

        def first() -> None:
            with caller.client.stream("Hi", owner=OWNER) as stream:
                next(stream)

        await asyncio.to_thread(first)
    else:
        async with caller.client.stream("Hi", owner=OWNER) as stream:
            await anext(stream)
    await asyncio.wait_for(real.provider.connections[-1].closed.wait(), 20)


async def test_a_rate_limit_of_the_provider_says_when_to_come_back(real: Gateway, caller: Driver) -> None:
    real.provider.answer(error(429, headers={"retry-after": "3"}))
    with pytest.raises(RateLimited) as caught:
        await caller.call(lambda client: client.chat("Hi", owner=OWNER))
    assert (caught.value.reason, caught.value.retry_after) == ("UPSTREAM_RATE_LIMITED", pytest.approx(3, abs=0.5))


async def test_a_connector_lives_from_create_to_delete(real: Gateway, caller: Driver) -> None:
    credential = {"base_url": real.provider.url("second"), "api_key": "planted-secret-4712"}
    made = await caller.call(
        lambda client: client.connectors.create(
            "openai_compatible", credential, display_name="Second", owner=OWNER, labels={"team": "blue"}
        )
    )
    assert (made.type, made.state, made.labels) == ("openai_compatible", ConnectorState.ACTIVE, {"team": "blue"})
    assert made.credential_info.last_four == "4712"
    changed = await caller.call(
        lambda client: client.connectors.update(made, settings={"idle_timeout": 90}, model_hint="m", etag=made.etag)
    )
    assert (changed.settings.idle_timeout.total_seconds(), changed.model_hint) == (90, "m")
    rotated = await caller.call(lambda client: client.connectors.rotate(made.name, {"api_key": "planted-secret-9999"}))
    assert rotated.credential_info.last_four == "9999"
    assert rotated.credential_info.settings["base_url"] == real.provider.url("second")
    await caller.call(lambda client: client.connectors.set_default(rotated))
    await caller.call(lambda client: client.connectors.set_preference("search", rotated, owner=OWNER))
    (preference,) = await caller.call(lambda client: client.connectors.preferences(OWNER))
    assert (preference.feature, preference.connector) == ("search", made.name)
    listed = await caller.call(lambda client: client.connectors.list(OWNER, filter='display_name = "Second"'))
    assert [(each.name, each.owner_default) for each in listed] == [(made.name, True)]
    await caller.call(lambda client: client.connectors.delete(made))
    with pytest.raises(NotFound) as caught:
        await caller.call(lambda client: client.connectors.get(made))
    assert caught.value.reason == "CONNECTOR_NOT_FOUND"


async def test_refusals_name_their_reason_and_field(real: Gateway, caller: Driver) -> None:
    with pytest.raises(InvalidRequest) as wrong:
        await caller.call(lambda client: client.chat("Hi", owner=OWNER, temperature=9.0))
    assert wrong.value.reason == "INVALID_REQUEST"
    assert [each.field for each in wrong.value.violations] == ["config.temperature"]
    with pytest.raises(PreconditionFailed) as nothing:
        await caller.call(lambda client: client.chat("Hi", owner="somebody-else"))
    assert nothing.value.reason == "CONNECTOR_NOT_CONFIGURED"
    with pytest.raises(AlreadyExists):
        await caller.call(
            lambda client: client.connectors.create("anthropic", {"api_key": "k"}, display_name="Main", owner=OWNER)
        )

    async def create_many() -> None:
        for number in range(4):
            credential, name = {"api_key": "k"}, f"x{number}"
            await caller.call(partial(create, credential=credential, name=name))

    def create(client: Any, *, credential: dict[str, str], name: str) -> Any:
        return client.connectors.create("anthropic", credential, display_name=name, owner=OWNER)

    with pytest.raises(RateLimited) as often:
        await create_many()
    assert (often.value.reason, often.value.retry_after is not None) == ("RATE_LIMITED", True)
    assert not real.provider.requests


async def test_a_token_is_good_for_its_scope_and_until_it_is_revoked(real: Gateway, caller: Driver) -> None:
    made = await caller.call(lambda client: client.admin.create_token("ci", ["chat"], owner=OWNER))
    real.provider.answer(openai_unary())
    async with AsyncPatchbayClient(real.address, made.secret) as client:
        assert (await client.chat("Hi")).text == TEXT
        await caller.call(lambda admin: admin.admin.revoke_token(made.token))
        with pytest.raises(Unauthenticated) as caught:
            await client.chat("Hi")
    assert caught.value.reason == "CALLER_UNAUTHENTICATED"
    assert made.token.name in [each.name for each in await caller.call(lambda client: client.admin.tokens())]


async def test_types_models_and_policy_are_read(real: Gateway, caller: Driver) -> None:
    types = {each.type: each for each in await caller.call(lambda client: client.connectors.types(OWNER))}
    assert [field.name for field in types["openai"].credential_fields if field.required] == ["api_key"]
    policy = await caller.call(lambda client: client.connectors.effective_policy(OWNER))
    assert "openai" in policy.allowed_connector_types
    assert policy.private_http == "LOOPBACK"
    status = await caller.call(lambda client: client.admin.status())
    assert status.store.reachable
    assert status.calls_without_record == 0
