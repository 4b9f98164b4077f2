"""The door: who gets in, what the others hear, and what never gets out."""

import asyncio
import logging
from datetime import timedelta
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2
from tests.rpc.bench import Failure, Metadata, Rpc, chat_request, failure_of, serving
from tests.support import answers
from tests.support.bench import Bench
from tests.support.clock import START
from tests.support.faults import count, fail, hold
from tests.support.provider import Silence

from patchbay.v1 import admin_service_pb2 as admin_pb
from patchbay.v1 import connector_service_pb2 as connector_pb
from patchbay.v1 import gateway_service_pb2 as gateway_pb
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.rpc.guard import LATER, METHODS, TOKEN_CHARS_MAX
from patchbay_server.types import Scope

FILES = (gateway_pb, connector_pb, admin_pb)
RPCS = {
    f"/{service.full_name}/{method.name}": method
    for file in FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}


async def ask(rpc: Rpc, name: str, metadata: Metadata = ()) -> Any:
    """Any RPC with an empty request."""
    method = RPCS[name]
    package = next(file for file in FILES if method.input_type.name in file.DESCRIPTOR.message_types_by_name)
    request = getattr(package, method.input_type.name)()
    multicallable: Any = rpc.channel.unary_stream(name, lambda message: message.SerializeToString(), bytes)
    return await multicallable(request, metadata=metadata, timeout=5).read()


async def refusal(rpc: Rpc, name: str, metadata: Metadata = ()) -> Failure:
    return await failure_of(ask(rpc, name, metadata))


# --- who gets in ------------------------------------------------------------------------------------------------------


async def test_no_rpc_answers_without_a_token(rpc: Rpc) -> None:
    for name in RPCS:
        failure = await refusal(rpc, name)
        assert (failure.code, failure.reason) == (grpc.StatusCode.UNAUTHENTICATED, "CALLER_UNAUTHENTICATED"), name


async def test_no_rpc_answers_without_its_scope(rpc: Rpc) -> None:
    without = {scope: await rpc.token(*(set(Scope) - {scope}), owner=None) for scope in Scope}
    for name in RPCS:
        failure = await refusal(rpc, name, without[METHODS[name].scope])
        assert (failure.code, failure.reason) == (grpc.StatusCode.PERMISSION_DENIED, "CALLER_NOT_AUTHORIZED"), name


WHOLE_GATEWAY = [
    "GetPolicy",
    "UpdatePolicy",
    "VerifyAudit",
    "CreateToken",
    "ListTokens",
    "RevokeToken",
    "RotateMasterKey",
    "GetStatus",
]


async def test_what_concerns_the_whole_gateway_is_not_for_callers_of_one_owner(rpc: Rpc) -> None:
    token = await rpc.token(Scope.ADMIN, owner="acme")
    for name in WHOLE_GATEWAY:
        assert (await refusal(rpc, f"/patchbay.v1.AdminService/{name}", token)).reason == "CALLER_NOT_AUTHORIZED", name


async def test_what_comes_later_says_so_by_its_name(rpc: Rpc) -> None:
    for name in LATER:
        failure = await refusal(rpc, name, rpc.root_token)
        assert (failure.code, failure.reason) == (grpc.StatusCode.UNIMPLEMENTED, "NOT_IMPLEMENTED")
        assert name.rpartition("/")[2] in str(failure.message)


async def test_what_is_there_judges_the_request(rpc: Rpc) -> None:
    """An empty request is answered or found wanting, and never meets a method that is missing."""
    for name in set(RPCS) - LATER:
        try:
            await ask(rpc, name, rpc.root_token)
        except grpc.aio.AioRpcError as error:
            assert Failure(error).reason == "INVALID_REQUEST", name  # noqa: PT017 -- or it answers


@pytest.mark.parametrize(
    "metadata",
    [
        (("authorization", ""),),
        (("authorization", "Bearer"),),
        (("authorization", "Bearer "),),
        (("authorization", "Bearer pb_000000000000_" + "a" * 43),),
        (("authorization", "Basic dXNlcjpwYXNz"),),
        (("authorization", "Bearer " + "a" * 5_000),),
        (("x-api-key", "sk"),),
    ],
)
async def test_a_bad_token_is_refused_and_not_repeated(rpc: Rpc, metadata: Metadata) -> None:
    failure = await failure_of(rpc.chat(metadata=metadata))
    assert failure.reason == "CALLER_UNAUTHENTICATED"
    assert "aaaa" not in str(failure.status)


async def test_two_tokens_are_refused(rpc: Rpc) -> None:
    failure = await failure_of(rpc.chat(metadata=rpc.owner_token + rpc.root_token))
    assert failure.reason == "CALLER_UNAUTHENTICATED"


async def test_an_overlong_token_is_not_even_looked_at(rpc: Rpc) -> None:
    looked_at = count(rpc.core.access, "authenticate")
    token = "Bearer pb_000000000000_" + "a" * TOKEN_CHARS_MAX
    assert (await failure_of(rpc.chat(metadata=(("authorization", token),)))).reason == "CALLER_UNAUTHENTICATED"
    assert not looked_at


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_the_scheme_is_read_without_case(rpc: Rpc, scheme: str) -> None:
    rpc.core.provider.answer(answers.openai_unary())
    token = rpc.owner_token[0][1].removeprefix("Bearer ")
    await rpc.chat(metadata=(("authorization", f"{scheme} {token}"),))


async def test_an_expired_token_is_refused(rpc: Rpc) -> None:
    token = await rpc.token(Scope.CHAT, expires_at=START + timedelta(seconds=10))
    rpc.core.clock.jump(11)
    assert (await failure_of(rpc.chat(metadata=token))).reason == "CALLER_UNAUTHENTICATED"


async def test_a_stranger_is_refused_before_his_message_is_read(rpc: Rpc) -> None:
    """Most of the 30 MB is still on its way when the answer comes, and nothing of it is parsed."""
    request = chat_request("x" * 30_000_000)
    failure = await failure_of(rpc.chat(request, metadata=()))
    assert failure.reason == "CALLER_UNAUTHENTICATED"


async def test_an_unknown_rpc_is_unimplemented(rpc: Rpc) -> None:
    call: Any = rpc.channel.unary_unary("/patchbay.v1.GatewayService/Nothing")
    failure = await failure_of(call(b"", metadata=rpc.root_token))
    assert (failure.code, failure.reason) == (grpc.StatusCode.UNIMPLEMENTED, "NOT_IMPLEMENTED")


async def test_callers_at_the_same_time_are_kept_apart(rpc: Rpc) -> None:
    other = await rpc.token(Scope.CONNECTORS, owner="other")
    mine = rpc.connectors.ListConnectors(connector_pb.ListConnectorsRequest(), metadata=rpc.owner_token)
    theirs = rpc.connectors.ListConnectors(connector_pb.ListConnectorsRequest(), metadata=other)
    found: Any = await asyncio.gather(mine, theirs)
    assert [len(answer.connectors) for answer in found] == [1, 0]


# --- what gets out ----------------------------------------------------------------------------------------------------


async def test_a_fault_while_authenticating_is_an_internal_error(rpc: Rpc, caplog: pytest.LogCaptureFixture) -> None:
    fail(rpc.core.store, "find_token", error=lambda: RuntimeError("the inner workings"))
    failure = await failure_of(rpc.chat())
    assert failure.reason == "INTERNAL"
    assert "inner workings" not in str(failure.status)
    assert "inner workings" in caplog.text


async def test_a_store_that_is_down_is_said_to_be(rpc: Rpc) -> None:
    fail(rpc.core.store, "find_token")
    assert (await failure_of(rpc.chat())).reason == "DEPENDENCY_UNAVAILABLE"


@pytest.mark.parametrize("method", ["find_token", "list_connectors"])
async def test_a_cancel_that_nobody_asked_for_is_an_internal_error(rpc: Rpc, method: str) -> None:
    """Left alone it would leave the caller waiting for ever."""
    fail(rpc.core.store, method, error=asyncio.CancelledError)  # type: ignore[arg-type]
    call = rpc.connectors.ListConnectors(connector_pb.ListConnectorsRequest(), metadata=rpc.owner_token, timeout=5)
    assert (await failure_of(call)).reason == "INTERNAL"


async def test_the_callers_own_cancel_stays_one(rpc: Rpc, caplog: pytest.LogCaptureFixture) -> None:
    gate = hold(rpc.core.store, "list_connectors")
    call = rpc.connectors.ListConnectors(connector_pb.ListConnectorsRequest(), metadata=rpc.owner_token)
    await asyncio.wait_for(gate.reached.wait(), 10)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.sleep(0.05)
    gate.open()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_failure_that_the_caller_no_longer_waits_for_is_no_fault(
    rpc: Rpc, caplog: pytest.LogCaptureFixture
) -> None:
    rpc.core.provider.answer([Silence()])
    call = rpc.chat(timeout=None)
    await rpc.core.provider.received()
    [running] = rpc.core.gateway._running
    running.cut(PatchbayError(Reason.DRAINING, "leaving"))
    call.cancel()
    await asyncio.wait_for(rpc.core.gateway._idle.wait(), 10)
    await asyncio.sleep(0.05)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


# --- how many at once ---


async def test_more_rpcs_than_there_is_room_for_are_refused_and_calls_are_not(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("patchbay_server.rpc.guard.OTHERS_MAX", 2)
    bench.provider.always_answer(answers.openai_unary())
    request = connector_pb.ListConnectorsRequest()
    async with serving(bench) as rpc:
        gate = hold(bench.store, "list_connectors")
        busy = [
            asyncio.ensure_future(rpc.connectors.ListConnectors(request, metadata=rpc.owner_token)) for _ in range(2)
        ]
        await gate.crowd(2)
        full = await failure_of(rpc.connectors.ListConnectors(request, metadata=rpc.owner_token))
        assert (full.code, full.reason) == (grpc.StatusCode.UNAVAILABLE, "OVERLOADED")
        assert full.details["RetryInfo"].retry_delay.seconds == 1
        await rpc.chat()
        await rpc.admin.GetStatus(admin_pb.GetStatusRequest(), metadata=rpc.root_token)
        gate.open()
        await asyncio.gather(*busy)
        fail(bench.store, "list_connectors", times=3, error=RuntimeError)
        for _ in range(3):
            failed = await failure_of(rpc.connectors.ListConnectors(request, metadata=rpc.owner_token))
            assert failed.reason == "INTERNAL"
        await rpc.connectors.ListConnectors(request, metadata=rpc.owner_token)


# --- open services ----------------------------------------------------------------------------------------------------


async def test_health_can_be_closed_to_strangers(bench: Bench) -> None:
    async with serving(bench, open_health=False) as rpc:
        failure = await failure_of(rpc.health.Check(health_pb2.HealthCheckRequest()))
        assert failure.reason == "CALLER_UNAUTHENTICATED"
