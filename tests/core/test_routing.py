"""Routed calls from end to end: who answers, what is recorded, what it cost."""

import asyncio
from typing import Any

import msgspec
import pytest
from tests.support import answers, make
from tests.support.bench import Bench
from tests.support.provider import Pause, Silence

from patchbay_server.core.choose import Candidate
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.types import (
    AuditType,
    CallState,
    CapMode,
    ChatStarted,
    FallbackMode,
    GenerationConfig,
    Price,
    ResolvedBy,
    Sealed,
    UsageUpdated,
)
from patchbay_server.usage import UsageSource

AUTO = "patchbay/auto"
DOLLAR = 10**9


def priced(dollars: int) -> Price:
    return Price(input_usd_nanos=dollars * DOLLAR, output_usd_nanos=dollars * DOLLAR)


@pytest.fixture
async def bench(bench: Bench) -> Bench:
    """Beside `main`, whose quality is unknown: `cheap`, and `dear`, which is better."""
    await bench.add("cheap", model_hint="cheap-model")
    await bench.add("dear", model_hint="dear-model")
    await bench.policy(
        quality_priors={"*/cheap-model": 0.6, "*/dear-model": 0.9},
        price_overrides={"*/cheap-model": priced(1), "*/dear-model": priced(9)},
    )
    return bench


async def test_the_cheapest_that_clears_the_floor_answers_and_one_outcome_is_kept(bench: Bench) -> None:
    bench.provider.answer(answers.openai_stream(), name="cheap")
    answer = await bench.streamed(model=AUTO)
    assert (answer.route.resolved_by, answer.route.requested_model) == (ResolvedBy.ROUTING, AUTO)
    assert b'"cheap-model"' in bench.provider.asked("cheap")[0].body
    row = await bench.call()
    routing = row.opened.routing
    assert routing is not None
    assert (routing.connector_uid, routing.model, routing.quality) == ("uid-acme-cheap", "cheap-model", 0.6)
    assert (routing.candidate_count, routing.eligible_count, routing.quality_floor) == (3, 2, 0.5)
    assert row.closed is not None
    assert row.closed.resolved_by is ResolvedBy.ROUTING


async def test_a_call_that_names_its_model_is_direct(bench: Bench) -> None:
    bench.provider.answer(answers.openai_unary(), name="cheap")
    await bench.chat(connector="cheap", model="cheap-model")
    assert (await bench.call()).opened.routing is None


async def test_an_explicit_quality_wins_over_the_price(bench: Bench) -> None:
    bench.provider.answer(answers.openai_unary(), name="dear")
    await bench.chat(model=AUTO, min_quality=0.61)
    assert len(bench.provider.asked("dear")) == 1


async def test_no_candidate_is_recorded_with_its_outcome(bench: Bench) -> None:
    with pytest.raises(PatchbayError) as caught:
        await bench.chat(model=AUTO, min_quality=0.99)
    assert caught.value.reason is Reason.NO_CANDIDATE
    row = await bench.call()
    assert (row.state, row.closed and row.closed.reason, row.attempts) == (CallState.FAILED, Reason.NO_CANDIDATE, ())
    assert row.opened.routing is not None
    assert (row.opened.routing.connector_uid, row.opened.routing.eligible_count) == ("", 0)


async def test_a_routed_call_is_recorded_whatever_its_candidates_are_refused_for(bench: Bench) -> None:
    await bench.policy(host_allow_list=("llm.example",))
    with pytest.raises(PatchbayError) as caught:
        await bench.chat(model=AUTO)
    assert caught.value.reason is Reason.POLICY_DENIED
    row = await bench.call()
    assert (row.state, row.attempts) == (CallState.FAILED, ())
    assert row.opened.routing is not None
    assert (row.opened.routing.candidate_count, row.opened.routing.eligible_count) == (3, 0)
    assert not row.opened.routing.connector_uid


async def test_the_next_candidate_answers_when_the_first_cannot(bench: Bench) -> None:
    bench.provider.answer(answers.error(503), name="cheap")
    bench.provider.answer(answers.openai_stream(), name="dear")
    answer = await bench.streamed(model=AUTO)
    assert [attempt.reason for attempt in answer.route.attempts] == [Reason.UPSTREAM_UNAVAILABLE, None]
    (event,) = await bench.audits(AuditType.FALLBACK_TRIGGERED)
    assert (event.subject, event.qualifier) == ("owners/acme/connectors/dear", "provider_unavailable")


async def test_when_every_candidate_fails_each_reason_is_told(bench: Bench) -> None:
    bench.provider.answer(answers.error(503), name="cheap")
    bench.provider.answer(answers.error(429), name="dear")
    with pytest.raises(PatchbayError) as caught:
        await bench.stream(model=AUTO)
    assert caught.value.reason is Reason.ALL_CANDIDATES_FAILED
    assert "UPSTREAM_UNAVAILABLE, UPSTREAM_RATE_LIMITED" in caught.value.message


async def test_a_routed_call_without_fallback_asks_one(bench: Bench) -> None:
    bench.provider.answer(answers.error(503), name="cheap")
    with pytest.raises(PatchbayError) as caught:
        await bench.stream(model=AUTO, fallback=FallbackMode.NONE)
    assert caught.value.reason is Reason.UPSTREAM_UNAVAILABLE
    assert bench.provider.asked("dear") == []


@pytest.mark.parametrize("cap_mode", [CapMode.SOFT, CapMode.HARD])
async def test_a_candidate_whose_cap_is_reached_is_not_routed_to(bench: Bench, cap_mode: CapMode) -> None:
    await bench.add("free", model_hint="free-model", monthly_token_cap=0, cap_mode=cap_mode)
    policy = await bench.store.policy()
    await bench.policy(
        quality_priors={**policy.quality_priors, "*/free-model": 0.9},
        price_overrides={**policy.price_overrides, "*/free-model": priced(0)},
    )
    bench.provider.answer(answers.openai_unary(), name="cheap")
    answer = await bench.chat(model=AUTO, config=GenerationConfig(max_output_tokens=5))
    assert answer.route.connector.endswith("/cheap")
    routing = (await bench.call()).opened.routing
    assert routing is not None
    assert routing.connector_uid == "uid-acme-cheap"


async def test_a_candidate_that_cannot_express_the_request_is_not_routed_to(bench: Bench) -> None:
    await bench.add("claude", type="anthropic", model_hint="claude-haiku-4-5")
    await bench.policy(
        quality_priors={"*/claude-haiku-4-5": 0.9, "*/cheap-model": 0.6},
        price_overrides={"*/claude-haiku-4-5": priced(0), "*/cheap-model": priced(1)},
    )
    bench.provider.answer(answers.openai_unary(), name="cheap")
    answer = await bench.chat(model=AUTO, config=GenerationConfig(seed=1))
    assert answer.route.connector.endswith("/cheap")


async def test_a_routed_call_that_is_cancelled_has_its_one_outcome(bench: Bench) -> None:
    bench.provider.answer([Silence()], name="cheap")
    call = asyncio.create_task(bench.chat(model=AUTO))
    await bench.provider.received()
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    row = await bench.call()
    assert row.state is CallState.CANCELLED
    assert row.opened.routing is not None


# --- what it cost ---


async def test_an_answer_and_its_records_tell_what_it_cost(bench: Bench) -> None:
    bench.provider.answer(answers.openai_unary(), name="cheap")
    answer = await bench.chat(connector="cheap")
    expected = 15 * DOLLAR // 10**6
    assert answer.usage.cost_usd_nanos == expected
    row = await bench.call()
    assert row.closed is not None
    assert row.closed.usage == answer.usage
    attempt = row.attempts[0].closed
    assert attempt is not None
    assert attempt.usage == answer.usage


async def test_an_unknown_price_is_no_price_and_not_zero(bench: Bench) -> None:
    bench.provider.answer(answers.openai_unary())
    assert (await bench.chat(connector="main")).usage.cost_usd_nanos is None


async def test_a_call_of_several_attempts_used_and_cost_what_they_did_together(bench: Bench) -> None:
    usage = {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150}
    told = answers.event({"id": "x", "model": "m", "choices": [], "usage": usage})
    bench.provider.answer([answers.EVENT_STREAM, told], name="cheap")
    bench.provider.answer(answers.openai_stream(), name="dear")
    events = await bench.stream(connector="cheap", fallback=FallbackMode.OWNER_CHAIN, model="")
    row = await bench.call()
    assert row.closed is not None
    assert row.closed.usage is not None
    total = row.closed.usage
    first = row.attempts[0].closed
    assert first is not None
    assert first.usage is not None
    assert first.usage.source is UsageSource.PARTIAL
    assert total.input_tokens == 100 + 11
    assert total.output_tokens == 50 + 4
    assert total.source is UsageSource.PARTIAL
    updates = [event.usage for event in events if isinstance(event, UsageUpdated)]
    assert updates[-1].input_tokens == 111


async def test_a_cancelled_stream_costs_what_it_is_estimated_to_have_used(bench: Bench) -> None:
    pause = Pause()
    bench.provider.answer(answers.openai_interrupted(pause, Silence()), name="cheap")
    call = asyncio.create_task(bench.stream(connector="cheap"))
    await pause.reached.wait()
    await asyncio.sleep(0.02)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    row = await bench.call()
    assert row.closed is not None
    assert row.closed.usage is not None
    assert row.closed.usage.source is UsageSource.ESTIMATED
    assert row.closed.usage.cost_usd_nanos


async def test_a_stream_starts_with_the_route_that_routing_found(bench: Bench) -> None:
    bench.provider.answer(answers.openai_stream(), name="cheap")
    first = (await bench.stream(model=AUTO))[0]
    assert isinstance(first, ChatStarted)
    assert first.route.connector == make.connector("cheap").name


# --- what must not stop a routed call ---


def break_adapter(bench: Bench, monkeypatch: pytest.MonkeyPatch, connector_id: str) -> None:
    """Let the adapter fail by a fault of its own for one connector."""
    prepare = bench.exchange._prepare

    def broken(candidate: Candidate, *args: Any, **named: Any) -> Any:
        if candidate.connector.id == connector_id:
            raise ZeroDivisionError("of the adapter")
        return prepare(candidate, *args, **named)

    monkeypatch.setattr(bench.exchange, "_prepare", broken)


async def test_an_adapter_s_fault_takes_no_other_candidate_down(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    break_adapter(bench, monkeypatch, "cheap")
    bench.provider.answer(answers.openai_unary(), name="dear")
    assert (await bench.chat(model=AUTO)).route.connector.endswith("/dear")
    found = await bench.gateway.explain(bench.caller, make.request(model=AUTO))
    assert [p.failure.reason for p in found.refused if p.candidate.connector.id == "cheap" and p.failure] == [
        Reason.INTERNAL
    ]
    assert "ZeroDivisionError" in caplog.text


async def test_a_routed_call_whose_only_adapter_fails_is_recorded(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_adapter(bench, monkeypatch, "dear")
    with pytest.raises(PatchbayError) as caught:
        await bench.chat(model=AUTO, connector="dear")
    assert caught.value.reason is Reason.INTERNAL
    assert (await bench.call()).state is CallState.FAILED


async def test_a_candidate_that_turns_out_unfit_in_its_turn_is_passed_over(bench: Bench) -> None:
    await bench.add("claude", type="anthropic", model_hint="claude-haiku-4-5")
    await bench.policy(
        quality_priors={"*/cheap-model": 0.6, "*/claude-haiku-4-5": 0.9, "*/dear-model": 0.9},
        price_overrides={"*/cheap-model": priced(1), "*/claude-haiku-4-5": priced(2), "*/dear-model": priced(9)},
    )
    bench.provider.answer(answers.error(503), name="cheap")
    bench.provider.answer(answers.openai_stream(), name="dear")
    answer = await bench.streamed(model=AUTO, config=GenerationConfig(seed=1))
    assert [attempt.reason for attempt in answer.route.attempts] == [
        Reason.UPSTREAM_UNAVAILABLE,
        Reason.FEATURE_UNSUPPORTED,
        None,
    ]


async def test_candidates_after_the_first_that_fits_are_not_looked_at_before_their_turn(bench: Bench) -> None:
    looked_at: list[str] = []
    rehearse = bench.exchange.rehearse

    def noting(candidate: Candidate, *args: Any, **named: Any) -> Any:
        looked_at.append(candidate.connector.id)
        return rehearse(candidate, *args, **named)

    bench.exchange.rehearse = noting  # type: ignore[method-assign]
    bench.provider.answer(answers.openai_unary(), name="cheap")
    await bench.chat(model=AUTO)
    assert looked_at == ["cheap"]


@pytest.mark.parametrize("model", ["", AUTO])
async def test_another_owner_s_credential_is_not_described(bench: Bench, model: str) -> None:
    shared = await bench.add(
        "hush",
        owner="platform",
        type="azure_openai",
        model_hint="cheap-model" if model else None,
        credential={"deployment": "d", "resource": "r"},
    )
    lost = msgspec.structs.replace(shared, sealed=Sealed(b"x", "key-lost"), version=shared.version + 1)
    await bench.store.save_connector(lost, shared.version, [bench.audit(AuditType.ROTATED, shared)])
    await bench.policy(organisation_default=shared.name)
    newcomer = make.caller("newcomer")
    told = await bench.gateway.explain(newcomer, make.request(model=model))
    with pytest.raises(PatchbayError) as caught:
        await bench.chat(caller=newcomer, model=model)
    failures = [caught.value, told.failure, *(prospect.failure for prospect in (*told.plan, *told.refused))]
    assert told.failure is not None
    assert not [failure for failure in failures if failure is not None and "hush" in failure.message]
