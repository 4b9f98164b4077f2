"""What `Explain` tells, held against what `Chat` then does."""

from datetime import timedelta

import pytest
from tests.support import answers, faults, make
from tests.support.bench import Bench
from tests.support.clock import START

from patchbay_server.core.breaker import FAILURES_MAX
from patchbay_server.core.explain import Explanation
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.types import (
    CapMode,
    ConnectorState,
    FallbackMode,
    GenerationConfig,
    Hold,
    NoticeCode,
    Price,
)

CHAIN = FallbackMode.OWNER_CHAIN
DOLLAR = 10**9


async def explain(bench: Bench, **request: object) -> Explanation:
    """The explanation, after which nothing was asked, written or held."""
    found = await bench.gateway.explain(bench.caller, make.request(**request))
    assert bench.provider.requests == []
    assert await bench.calls() == []
    assert bench.gateway.running == 0
    return found


def ids(found: Explanation) -> list[str]:
    return [prospect.candidate.connector.id for prospect in found.plan]


def reason(found: Explanation) -> Reason | None:
    return found.failure.reason if found.failure else None


@pytest.fixture
async def bench(bench: Bench) -> Bench:
    await bench.add("other", last_used_at=START - timedelta(days=1))
    return bench


async def test_it_tells_the_attempts_that_chat_then_makes(bench: Bench) -> None:
    found = await explain(bench, connector="main", fallback=CHAIN)
    bench.provider.answer(answers.error(503))
    bench.provider.answer(answers.openai_unary(), name="other")
    answer = await bench.chat(connector="main", fallback=CHAIN)
    told = [prospect.candidate.connector.name for prospect in found.plan]
    assert told == [attempt.connector for attempt in answer.route.attempts]
    assert found.failure is None


FAILURES: list[tuple[dict[str, object], Reason]] = [
    ({"connector": "nobody"}, Reason.CONNECTOR_NOT_FOUND),
    ({"connector": "off"}, Reason.CONNECTOR_INACTIVE),
    ({"connector": "hintless"}, Reason.INVALID_REQUEST),
    ({"connector": "shut"}, Reason.CAP_REACHED),
    ({"connector": "hard", "config": GenerationConfig(max_output_tokens=999)}, Reason.CAP_REACHED),
    ({"connector": "claude", "config": GenerationConfig(seed=1)}, Reason.FEATURE_UNSUPPORTED),
    ({"model": "patchbay/auto"}, Reason.NO_CANDIDATE),
    ({"model": "patchbay/never"}, Reason.MODEL_NOT_FOUND),
    ({"feature": "Not A Feature"}, Reason.INVALID_REQUEST),
]


@pytest.mark.parametrize(("request_fields", "expected"), FAILURES)
async def test_it_tells_the_failure_that_chat_then_meets(
    bench: Bench, request_fields: dict[str, object], expected: Reason
) -> None:
    await bench.add("off", state=ConnectorState.DISABLED)
    await bench.add("hintless", model_hint=None)
    await bench.add("shut", monthly_token_cap=0)
    await bench.add("hard", monthly_token_cap=999, cap_mode=CapMode.HARD)
    await bench.add("claude", type="anthropic")
    found = await explain(bench, **request_fields)
    assert reason(found) is expected
    with pytest.raises(PatchbayError) as caught:
        await bench.chat(**request_fields)
    assert found.failure is not None
    assert (caught.value.reason, caught.value.message) == (expected, found.failure.message)
    assert caught.value.violations == found.failure.violations


async def test_a_request_id_that_was_used_for_other_content_is_told(bench: Bench) -> None:
    request_id = "123e4567-e89b-42d3-a456-426614174000"
    bench.provider.answer(answers.openai_unary())
    await bench.chat(connector="main", request_id=request_id, content_hash=b"one")
    found = await bench.gateway.explain(bench.caller, make.request(request_id=request_id, content_hash=b"two"))
    assert reason(found) is Reason.REQUEST_ID_REUSED


async def test_a_caller_that_may_not_ask_is_not_answered(bench: Bench) -> None:
    with pytest.raises(PatchbayError) as caught:
        await bench.gateway.explain(make.caller("somebody"), make.request(owner=make.OWNER))
    assert caught.value.reason is Reason.CALLER_NOT_AUTHORIZED


async def test_what_would_be_lost_is_told_of_each_candidate(bench: Bench) -> None:
    await bench.add("claude", type="anthropic", last_used_at=START - timedelta(days=2))
    config = GenerationConfig(seed=1)
    found = await explain(bench, connector="main", fallback=CHAIN, config=config, drop_unsupported=True)
    lost = {p.candidate.connector.id: [notice.code for notice in p.notices] for p in found.plan}
    assert lost == {"main": [], "other": [], "claude": [NoticeCode.FIELD_DROPPED]}
    strict = await explain(bench, connector="main", fallback=CHAIN, config=config)
    refused = {p.candidate.connector.id: p.failure.reason for p in strict.plan if p.failure}
    assert refused == {"claude": Reason.FEATURE_UNSUPPORTED}
    assert strict.failure is None


async def test_caps_are_told_with_what_is_left_of_them(bench: Bench) -> None:
    capped = await bench.add("capped", monthly_token_cap=1_000, cap_mode=CapMode.HARD)
    hold = Hold(
        call_id="x", number=1, connector_uid=capped.uid, tokens=300, expires_at=bench.clock.now() + timedelta(hours=1)
    )
    await bench.meter.hold(capped, make.OWNER, hold)
    found = await explain(bench, connector="capped", config=GenerationConfig(max_output_tokens=100))
    assert found.plan[0].headroom_tokens == 700
    assert found.failure is None
    too_much = await explain(bench, connector="capped", config=GenerationConfig(max_output_tokens=700))
    assert reason(too_much) is Reason.CAP_REACHED
    unlimited = await explain(bench, connector="main")
    assert unlimited.plan[0].headroom_tokens is None


async def test_the_worst_case_costs_the_bound_of_the_prompt_and_the_whole_output(bench: Bench) -> None:
    price = Price(input_usd_nanos=2 * DOLLAR, output_usd_nanos=10 * DOLLAR)
    await bench.policy(price_overrides={"*/small": price})
    found = await explain(bench, connector="main", config=GenerationConfig(max_output_tokens=1_000_000))
    worst = found.plan[0].worst_case_usd_nanos
    assert worst is not None
    assert 10 * DOLLAR < worst < 10 * DOLLAR + 2 * DOLLAR
    assert (await explain(bench, connector="main")).plan[0].worst_case_usd_nanos is None
    await bench.policy(price_overrides={})
    unpriced = await explain(bench, connector="main", config=GenerationConfig(max_output_tokens=1))
    assert unpriced.plan[0].worst_case_usd_nanos is None


async def test_a_breaker_that_is_open_is_told(bench: Bench) -> None:
    main = await bench.found(make.connector("main"))
    for _ in range(FAILURES_MAX):
        bench.breakers.ended(main, "small", Reason.UPSTREAM_UNAVAILABLE, probe=False)
    found = await explain(bench, connector="main", fallback=CHAIN)
    assert ids(found) == ["other", "main"]
    assert [prospect.candidate.breaker_open for prospect in found.plan] == [False, True]


async def test_refused_candidates_of_routing_are_told_with_their_quality(bench: Bench) -> None:
    await bench.add("better", model_hint="better")
    await bench.policy(quality_priors={"*/small": 0.3, "*/better": 0.8})
    found = await explain(bench, model="patchbay/auto")
    assert ids(found) == ["better"]
    assert {p.candidate.connector.id: p.candidate.quality for p in found.refused} == {"main": 0.3, "other": 0.3}
    assert {p.failure.reason for p in found.refused if p.failure} == {Reason.NO_CANDIDATE}


async def test_another_owner_s_connector_is_explained_without_its_name(bench: Bench) -> None:
    shared = await bench.add("hush", owner="platform", state=ConnectorState.DISABLED)
    await bench.policy(organisation_default=None)
    assert "hush" not in repr([p.failure for p in (await explain(bench)).refused])
    assert shared.owner == "platform"


async def test_caps_that_cannot_be_known_are_a_failure_and_no_guess(bench: Bench) -> None:
    await bench.add("capped", monthly_token_cap=1)
    faults.fail(bench.store, "cap_use")
    with pytest.raises(PatchbayError) as caught:
        await bench.gateway.explain(bench.caller, make.request(connector="capped"))
    assert caught.value.reason is Reason.DEPENDENCY_UNAVAILABLE


async def test_holds_from_when_a_cap_was_hard_do_not_count_once_it_is_soft(bench: Bench) -> None:
    connector = await bench.add("capped", monthly_token_cap=800)
    hold = Hold(
        call_id="x",
        number=1,
        connector_uid=connector.uid,
        tokens=800,
        expires_at=bench.clock.now() + timedelta(hours=1),
    )
    await bench.meter.hold(connector, make.OWNER, hold)
    found = await explain(bench, connector="capped")
    assert (found.failure, found.plan[0].headroom_tokens) == (None, 800)


async def test_a_limit_that_options_may_lift_bounds_no_cost(bench: Bench) -> None:
    await bench.policy(price_overrides={"*/small": Price(input_usd_nanos=1, output_usd_nanos=1)})
    limited = GenerationConfig(max_output_tokens=5)
    found = await explain(bench, connector="main", config=limited, provider_options_json='{"n": 50}')
    assert found.plan[0].worst_case_usd_nanos is None
