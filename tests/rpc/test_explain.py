"""Explain by gRPC, and what GetStatus tells of calls that wait and of breakers."""

import asyncio

from tests.rpc.bench import Rpc, chat_request, failure_of
from tests.support import answers, make
from tests.support.provider import Pause

from patchbay.v1 import admin_service_pb2 as admin_pb
from patchbay.v1 import error_pb2
from patchbay.v1 import gateway_service_pb2 as pb
from patchbay_server.core.breaker import COOL_DOWN_S, FAILURES_MAX
from patchbay_server.errors import Reason
from patchbay_server.types import ConnectorState, Price


async def explained(rpc: Rpc, request: pb.ChatRequest, token: object = None) -> pb.ExplainResponse:
    answer: pb.ExplainResponse = await rpc.gateway.Explain(
        pb.ExplainRequest(request=request), metadata=token or rpc.owner_token, timeout=10.0
    )
    return answer


async def test_a_call_is_explained_without_being_made(rpc: Rpc) -> None:
    await rpc.core.policy(
        price_overrides={"*/small": Price(input_usd_nanos=10**9, output_usd_nanos=10**9)},
        quality_priors={"*/small": 0.7},
    )
    await rpc.core.add("off", state=ConnectorState.DISABLED)
    request = chat_request(model="patchbay/auto", config=pb.GenerationConfig(max_output_tokens=1_000_000))
    found = await explained(rpc, request)
    assert found.error_reason == error_pb2.ERROR_REASON_UNSPECIFIED
    assert [step.outcome for step in found.steps] == [pb.RESOLUTION_OUTCOME_NOT_REACHED] * 5 + [
        pb.RESOLUTION_OUTCOME_CHOSEN
    ]
    (candidate,) = found.plan
    assert (candidate.connector, candidate.provider, candidate.model) == (
        "owners/acme/connectors/main",
        "openai_compatible",
        "small",
    )
    assert candidate.resolved_by == pb.RESOLVED_BY_ROUTING
    assert candidate.quality == 0.7
    assert candidate.worst_case_cost_usd_nanos > 10**9
    assert not candidate.HasField("cap_headroom_tokens")
    (refused,) = found.refused
    assert refused.error_reason == error_pb2.ERROR_REASON_CONNECTOR_INACTIVE
    assert await rpc.core.calls() == []


async def test_a_failure_that_chat_would_meet_is_told_in_an_ok_answer(rpc: Rpc) -> None:
    nobody = await explained(rpc, chat_request(connector="nobody"))
    assert (nobody.error_reason, nobody.error_field) == (error_pb2.ERROR_REASON_CONNECTOR_NOT_FOUND, "connector")
    malformed = await explained(rpc, chat_request(config=pb.GenerationConfig(temperature=9)))
    assert (malformed.error_reason, malformed.error_field) == (
        error_pb2.ERROR_REASON_INVALID_REQUEST,
        "config.temperature",
    )
    unreadable = await explained(rpc, chat_request(owner="nothing/like/an/owner"))
    assert unreadable.error_reason == error_pb2.ERROR_REASON_INVALID_REQUEST


async def test_a_caller_that_may_not_ask_gets_a_status(rpc: Rpc) -> None:
    foreign = pb.ExplainRequest(request=chat_request(owner="owners/somebody"))
    failure = await failure_of(rpc.gateway.Explain(foreign, metadata=rpc.owner_token, timeout=10.0))
    assert failure.reason == "CALLER_NOT_AUTHORIZED"


async def test_another_owner_s_default_connector_stays_unnamed_with_its_headroom(rpc: Rpc) -> None:
    shared = await rpc.core.add("hush", owner="platform", monthly_token_cap=1_000)
    await rpc.core.policy(organisation_default=shared.name)
    found = await explained(rpc, chat_request(owner="owners/newcomer"), rpc.root_token)
    (candidate,) = found.plan
    assert (candidate.connector, candidate.model) == ("", "small")
    assert not candidate.HasField("cap_headroom_tokens")
    assert "hush" not in str(found)


async def status(rpc: Rpc) -> admin_pb.GetStatusResponse:
    answer: admin_pb.GetStatusResponse = await rpc.admin.GetStatus(
        admin_pb.GetStatusRequest(), metadata=rpc.root_token, timeout=10.0
    )
    return answer


async def test_breakers_that_are_not_closed_are_in_the_status(rpc: Rpc) -> None:
    main = await rpc.core.found(make.connector("main"))
    for _ in range(FAILURES_MAX):
        rpc.core.breakers.ended(main, "small", Reason.UPSTREAM_UNAVAILABLE, probe=False)
    (breaker,) = (await status(rpc)).breakers
    assert (breaker.connector, breaker.model, breaker.half_open) == (main.name, "small", False)
    assert breaker.open_time.ToDatetime() == rpc.core.clock.now().replace(tzinfo=None)
    rpc.core.clock.jump(COOL_DOWN_S)
    (breaker,) = (await status(rpc)).breakers
    assert breaker.half_open


async def test_calls_that_run_are_in_the_status(rpc: Rpc) -> None:
    pause = Pause()
    rpc.core.provider.answer([pause, *answers.openai_unary()])
    call = asyncio.ensure_future(rpc.chat())
    await pause.reached.wait()
    now = await status(rpc)
    assert (now.calls_open, now.calls_queued, now.calls_without_record) == (1, 0, 0)
    pause.open()
    await call
