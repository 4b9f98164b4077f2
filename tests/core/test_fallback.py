"""What happens when a connector fails: who answers instead, and what is written about it."""

import asyncio

import pytest
from tests.support import answers, faults, make
from tests.support.bench import Bench
from tests.support.clock import Clock
from tests.support.provider import Cut, Head, Pause, Reset, Script, Silence, Wait
from tests.support.stopwatch import Stopwatch

from patchbay_server.core import call as call_module
from patchbay_server.core.breaker import COOL_DOWN_S, FAILURES_MAX
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.types import (
    AuditType,
    CallState,
    CapMode,
    ChatStarted,
    Connector,
    ConnectorState,
    FallbackMode,
    GenerationConfig,
    ResolvedBy,
    TextDelta,
)
from patchbay_server.usage import UsageSource

ORG, RETRY, CHAIN = FallbackMode.ORG_DEFAULT, FallbackMode.RETRY_THEN_ORG_DEFAULT, FallbackMode.OWNER_CHAIN
SOON = {"retry-after-ms": "5"}


@pytest.fixture
async def shared(bench: Bench) -> Connector:
    """The organisation's default connector, which belongs to another owner."""
    connector = await bench.add("shared", owner="platform", model_hint="shared-model")
    await bench.policy(organisation_default=connector.name)
    return connector


async def failure(bench: Bench, **request: object) -> PatchbayError:
    with pytest.raises(PatchbayError) as caught:
        await bench.stream(**request)
    return caught.value


async def fallbacks(bench: Bench) -> list[tuple[str, str]]:
    """Each fallback's target and trigger, as audited."""
    return [(row.subject, row.qualifier) for row in await bench.audits(AuditType.FALLBACK_TRIGGERED)]


# --- who answers ---

TRIGGERS: list[tuple[Script, Reason, str]] = [
    (answers.error(429), Reason.UPSTREAM_RATE_LIMITED, "rate_limited"),
    (answers.error(401), Reason.UPSTREAM_CREDENTIAL_REJECTED, "auth_invalid"),
    (answers.error(429, "insufficient_quota"), Reason.UPSTREAM_BILLING_EXHAUSTED, "quota_exceeded"),
    (answers.error(503), Reason.UPSTREAM_UNAVAILABLE, "provider_unavailable"),
    ([Reset()], Reason.UPSTREAM_UNAVAILABLE, "provider_unavailable"),
    ([answers.EVENT_STREAM, Cut()], Reason.UPSTREAM_UNAVAILABLE, "provider_unavailable"),
    ([answers.EVENT_STREAM], Reason.UPSTREAM_EMPTY_STREAM, "provider_unavailable"),
    ([answers.EVENT_STREAM, answers.chunk({"role": "assistant"})], Reason.UPSTREAM_TRUNCATED, "provider_unavailable"),
    ([Head(200), b"<html>"], Reason.UPSTREAM_MALFORMED_RESPONSE, "provider_unavailable"),
]


@pytest.mark.parametrize(("script", "reason", "trigger"), TRIGGERS)
async def test_a_connector_that_cannot_answer_is_replaced_and_the_reason_is_audited(
    bench: Bench, shared: Connector, script: Script, reason: Reason, trigger: str
) -> None:
    bench.provider.answer(script)
    bench.provider.answer(answers.openai_stream(), name="shared")
    answer = await bench.streamed(connector="main", fallback=ORG)
    assert [attempt.reason for attempt in answer.route.attempts] == [reason, None]
    assert answer.route.resolved_by is ResolvedBy.FALLBACK
    assert await fallbacks(bench) == [(shared.name, trigger)]


NO_TRIGGERS: list[tuple[Script, Reason]] = [
    (answers.error(400), Reason.UPSTREAM_REJECTED_REQUEST),
    (answers.error(400, "context_length_exceeded"), Reason.CONTEXT_LENGTH_EXCEEDED),
    (answers.error(400, "content_policy_violation"), Reason.CONTENT_POLICY_VIOLATION),
    (answers.error(404, "model_not_found"), Reason.MODEL_NOT_FOUND),
]


@pytest.mark.parametrize(("script", "reason"), NO_TRIGGERS)
async def test_a_request_that_is_at_fault_itself_is_not_taken_elsewhere(
    bench: Bench, shared: Connector, script: Script, reason: Reason
) -> None:
    bench.provider.answer(script)
    assert (await failure(bench, connector="main", fallback=RETRY)).reason is reason
    assert len(bench.provider.requests) == 1


async def test_a_field_that_the_first_cannot_express_is_not_taken_elsewhere(bench: Bench, shared: Connector) -> None:
    await bench.add("claude", type="anthropic")
    error = await failure(bench, connector="claude", fallback=ORG, config=GenerationConfig(seed=1))
    assert error.reason is Reason.FEATURE_UNSUPPORTED
    assert bench.provider.requests == []


@pytest.mark.parametrize("finish", ["content_filter", "stop"])
async def test_a_refusal_is_an_answer_and_not_a_failure(bench: Bench, shared: Connector, finish: str) -> None:
    bench.provider.answer(answers.openai_stream(("I cannot help.",), finish=finish))
    assert (await bench.streamed(connector="main", fallback=RETRY)).route.connector.endswith("/main")


async def test_without_fallback_nobody_else_is_asked(bench: Bench, shared: Connector) -> None:
    bench.provider.answer(answers.error(503))
    error = await failure(bench, connector="main", fallback=FallbackMode.NONE)
    assert error.reason is Reason.UPSTREAM_UNAVAILABLE
    assert await fallbacks(bench) == []


async def test_the_organisation_s_connector_answers_with_its_own_model_and_stays_unnamed(
    bench: Bench, shared: Connector
) -> None:
    bench.provider.answer(answers.error(503))
    bench.provider.answer(answers.openai_stream(), name="shared")
    answer = await bench.streamed(connector="main", fallback=ORG)
    assert b'"shared-model"' in bench.provider.asked("shared")[0].body
    assert answer.route.connector == ""
    assert [attempt.connector for attempt in answer.route.attempts] == ["owners/acme/connectors/main", ""]


async def test_the_owner_s_chain_is_followed_until_somebody_answers(bench: Bench) -> None:
    for name in ("second", "third"):
        await bench.add(name)
    bench.provider.answer(answers.error(503))
    bench.provider.answer(answers.error(429), name="second")
    bench.provider.answer(answers.openai_unary(), name="third")
    answer = await bench.chat(connector="main", fallback=CHAIN)
    assert [attempt.reason for attempt in answer.route.attempts] == [
        Reason.UPSTREAM_UNAVAILABLE,
        Reason.UPSTREAM_RATE_LIMITED,
        None,
    ]
    assert await fallbacks(bench) == [
        ("owners/acme/connectors/second", "provider_unavailable"),
        ("owners/acme/connectors/third", "rate_limited"),
    ]
    row = await bench.call()
    assert [attempt.state for attempt in row.attempts] == [CallState.FAILED, CallState.FAILED, CallState.SUCCEEDED]


async def test_the_audit_event_names_the_call_and_the_caller(bench: Bench, shared: Connector) -> None:
    bench.provider.answer(answers.error(503))
    bench.provider.answer(answers.openai_stream(), name="shared")
    answer = await bench.streamed(connector="main", fallback=ORG)
    (row,) = await bench.audits(AuditType.FALLBACK_TRIGGERED)
    assert (row.call_id, row.actor, row.connector_uid, row.owner) == (
        answer.call_id,
        "caller-1",
        shared.uid,
        "platform",
    )


# --- a stream ---


@pytest.mark.parametrize(
    ("then", "reason"),
    [
        ([Reset()], Reason.UPSTREAM_STREAM_BROKEN),
        ([], Reason.UPSTREAM_TRUNCATED),
        ([answers.event({"error": {"message": "m", "code": 429}})], Reason.UPSTREAM_RATE_LIMITED),
        ([answers.event("{no json")], Reason.UPSTREAM_MALFORMED_RESPONSE),
    ],
)
async def test_a_stream_is_taken_over_only_before_its_first_delta(
    bench: Bench, shared: Connector, then: Script, reason: Reason
) -> None:
    bench.provider.answer(answers.openai_interrupted(*then))
    error = await failure(bench, connector="main", fallback=RETRY)
    assert error.reason is reason
    assert len(bench.provider.requests) == 1


async def test_nothing_of_the_one_that_failed_is_seen(bench: Bench, shared: Connector) -> None:
    await bench.add("claude", type="anthropic")
    bench.provider.answer([answers.EVENT_STREAM, *answers.anthropic_events()[:2], Reset()], name="claude")
    bench.provider.answer(answers.openai_stream(), name="shared")
    events = await bench.stream(connector="claude", fallback=ORG)
    assert isinstance(events[0], ChatStarted)
    assert events[0].route.provider == "openai_compatible"
    assert [attempt.reason for attempt in events[0].route.attempts] == [Reason.UPSTREAM_UNAVAILABLE]
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == answers.TEXT


async def test_a_stream_with_somebody_to_fall_back_to_is_committed_with_its_first_delta_and_not_before(
    bench: Bench, shared: Connector
) -> None:
    bench.provider.answer([answers.EVENT_STREAM, answers.chunk({"role": "assistant"}), Silence()])
    seen = bench.batches(connector="main", fallback=ORG)
    first = asyncio.ensure_future(anext(seen))
    await bench.provider.received()
    await asyncio.sleep(0.05)
    assert not first.done()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first


# --- the retry ---


async def test_the_first_connector_is_tried_once_more_before_the_organisation_s(
    bench: Bench, shared: Connector
) -> None:
    bench.provider.answer(answers.error(503, headers=SOON), answers.error(503, headers=SOON))
    bench.provider.answer(answers.openai_stream(), name="shared")
    answer = await bench.streamed(connector="main", fallback=RETRY)
    assert [attempt.reason for attempt in answer.route.attempts] == [
        Reason.UPSTREAM_UNAVAILABLE,
        Reason.UPSTREAM_UNAVAILABLE,
        None,
    ]
    assert await fallbacks(bench) == [(shared.name, "provider_unavailable")]


async def test_a_retry_that_succeeds_is_no_fallback(bench: Bench, shared: Connector) -> None:
    bench.provider.answer(answers.error(429, headers=SOON), answers.openai_stream())
    answer = await bench.streamed(connector="main", fallback=RETRY)
    assert [attempt.reason for attempt in answer.route.attempts] == [Reason.UPSTREAM_RATE_LIMITED, None]
    assert await fallbacks(bench) == []


async def test_a_retry_waits_as_long_as_the_provider_said(bench: Bench, shared: Connector) -> None:
    bench.provider.answer(answers.error(429, headers={"retry-after-ms": "120"}), answers.openai_stream())
    loop, watch = asyncio.get_running_loop(), Stopwatch()
    started = loop.time()
    await bench.streamed(connector="main", fallback=RETRY)
    assert loop.time() - started >= 0.11
    assert watch.seconds < 0.5


async def test_a_provider_that_wants_more_time_than_is_left_is_not_waited_for(bench: Bench, shared: Connector) -> None:
    bench.provider.answer(answers.error(429, headers={"retry-after": "30"}))
    bench.provider.answer(answers.openai_stream(), name="shared")
    answer = await bench.streamed(connector="main", fallback=RETRY, timeout_s=20.0)
    assert [attempt.reason for attempt in answer.route.attempts] == [Reason.UPSTREAM_RATE_LIMITED, None]


@pytest.mark.parametrize(("status", "code"), [(401, ""), (429, "insufficient_quota")])
async def test_a_refused_key_or_an_empty_account_is_not_tried_again(
    bench: Bench, shared: Connector, status: int, code: str
) -> None:
    bench.provider.answer(answers.error(status, code))
    bench.provider.answer(answers.openai_stream(), name="shared")
    await bench.streamed(connector="main", fallback=RETRY)
    assert len(bench.provider.asked("main")) == 1


async def test_no_attempt_starts_that_cannot_finish(
    bench: Bench, shared: Connector, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.provider.answer(answers.error(503))
    error = await failure(bench, connector="main", fallback=ORG, timeout_s=call_module.ATTEMPT_TIME_MIN_S * 0.9)
    assert error.reason is Reason.UPSTREAM_UNAVAILABLE
    assert bench.provider.asked("shared") == []


# --- when all fail ---


async def test_when_all_fail_each_attempt_s_reason_is_told(bench: Bench, shared: Connector) -> None:
    bench.provider.answer(answers.error(503))
    bench.provider.answer(answers.error(429, headers={"retry-after": "7"}), name="shared")
    error = await failure(bench, connector="main", fallback=ORG)
    assert (error.reason, error.retry_after_s) == (Reason.ALL_CANDIDATES_FAILED, 7.0)
    assert "UPSTREAM_UNAVAILABLE, UPSTREAM_RATE_LIMITED" in error.message
    assert error.upstream is not None
    assert (error.upstream.attempt_count, error.upstream.connector) == (2, "")
    row = await bench.call()
    assert row.closed is not None
    assert row.closed.reason is Reason.ALL_CANDIDATES_FAILED
    assert [attempt.closed and attempt.closed.reason for attempt in row.attempts] == [
        Reason.UPSTREAM_UNAVAILABLE,
        Reason.UPSTREAM_RATE_LIMITED,
    ]


async def test_the_failure_of_the_only_connector_is_told_as_it_is_however_often_it_was_asked(bench: Bench) -> None:
    bench.provider.answer(answers.error(429, headers=SOON), answers.error(429, headers=SOON))
    error = await failure(bench, connector="main", fallback=RETRY)
    assert error.reason is Reason.UPSTREAM_RATE_LIMITED
    assert error.upstream is not None
    assert error.upstream.attempt_count == 2


# --- caps ---


async def test_a_candidate_whose_cap_is_reached_is_passed_over_and_named(bench: Bench) -> None:
    await bench.add("capped", monthly_token_cap=1, last_used_at=make.START)
    await bench.add("third")
    bench.provider.answer(answers.openai_unary(), name="capped")
    await bench.chat(connector="capped")
    bench.provider.answer(answers.error(503))
    bench.provider.answer(answers.openai_unary(), name="third")
    answer = await bench.chat(connector="main", fallback=CHAIN)
    assert [(attempt.connector.split("/")[-1], attempt.reason) for attempt in answer.route.attempts] == [
        ("main", Reason.UPSTREAM_UNAVAILABLE),
        ("capped", Reason.CAP_REACHED),
        ("third", None),
    ]
    assert len(bench.provider.asked("capped")) == 1


async def test_when_only_capped_candidates_are_left_all_have_failed(bench: Bench) -> None:
    await bench.add("capped", monthly_token_cap=0)
    bench.provider.answer(answers.error(503))
    error = await failure(bench, connector="main", fallback=CHAIN)
    assert error.reason is Reason.ALL_CANDIDATES_FAILED
    assert error.message.endswith("UPSTREAM_UNAVAILABLE, CAP_REACHED")


async def test_a_cap_that_cannot_be_known_passes_its_connector_over(bench: Bench) -> None:
    await bench.add("capped", monthly_token_cap=10**9)
    faults.fail(bench.store, "month_tokens")
    bench.provider.answer(answers.error(503))
    error = await failure(bench, connector="main", fallback=CHAIN)
    assert error.message.endswith("UPSTREAM_UNAVAILABLE, DEPENDENCY_UNAVAILABLE")


async def test_a_reached_cap_of_the_first_is_told_and_not_fallen_back_from(bench: Bench, shared: Connector) -> None:
    await bench.add("capped", monthly_token_cap=0)
    assert (await failure(bench, connector="capped", fallback=ORG)).reason is Reason.CAP_REACHED


# --- refused keys ---


async def test_a_refused_key_turns_the_connector_auth_invalid_once_however_many_calls_fail_together(
    bench: Bench,
) -> None:
    connector = await bench.add("refused")
    bench.provider.always_answer(answers.error(401), name="refused")
    results = await asyncio.gather(*[bench.chat(connector="refused") for _ in range(20)], return_exceptions=True)
    assert {getattr(result, "reason", None) for result in results} == {Reason.UPSTREAM_CREDENTIAL_REJECTED}
    assert (await bench.found(connector)).state is ConnectorState.AUTH_INVALID
    assert len(await bench.audits(AuditType.AUTH_INVALID)) == 1
    assert (await failure(bench, connector="refused")).reason is Reason.CONNECTOR_INACTIVE


async def test_a_refused_key_is_noted_though_somebody_else_answers(bench: Bench, shared: Connector) -> None:
    bench.provider.answer(answers.error(401))
    bench.provider.answer(answers.openai_stream(), name="shared")
    await bench.streamed(connector="main", fallback=ORG)
    assert [row.subject for row in await bench.audits(AuditType.AUTH_INVALID)] == ["owners/acme/connectors/main"]


async def test_a_store_that_cannot_note_a_refused_key_neither_hides_it_nor_stops_the_fallback(
    bench: Bench, shared: Connector
) -> None:
    faults.fail(bench.store, "mark_auth_invalid")
    bench.provider.answer(answers.error(401), answers.error(401))
    bench.provider.answer(answers.openai_stream(), name="shared")
    assert (await failure(bench, connector="main")).reason is Reason.UPSTREAM_CREDENTIAL_REJECTED
    answer = await bench.streamed(connector="main", fallback=ORG)
    assert answer.route.resolved_by is ResolvedBy.FALLBACK


async def test_a_lack_of_permission_does_not_turn_the_connector_off(bench: Bench) -> None:
    bench.provider.answer(answers.error(403, "insufficient_permissions"), answers.openai_stream())
    assert (await failure(bench)).reason is Reason.UPSTREAM_REJECTED_REQUEST
    await bench.streamed()


async def test_what_is_left_of_the_time_is_shared_with_those_who_may_follow(bench: Bench, shared: Connector) -> None:
    bench.provider.answer([Silence()])
    bench.provider.answer(answers.openai_stream(), name="shared")
    loop = asyncio.get_running_loop()
    started = loop.time()
    answer = await bench.streamed(connector="main", fallback=ORG, timeout_s=2.6)
    assert [attempt.reason for attempt in answer.route.attempts] == [Reason.UPSTREAM_TIMEOUT, None]
    assert 1.2 <= loop.time() - started < 2.6


async def test_an_answer_that_has_begun_is_not_held_to_its_share(bench: Bench, shared: Connector) -> None:
    slow = [Wait(1.4), *answers.openai_stream()[-4:]]
    bench.provider.answer([*answers.openai_interrupted(), *slow])
    answer = await bench.streamed(connector="main", fallback=ORG, timeout_s=2.4)
    assert answer.route.resolved_by is ResolvedBy.REQUEST


async def test_a_retry_takes_nothing_of_the_first_attempt_s_time(bench: Bench) -> None:
    bench.provider.answer([Wait(0.8), *answers.openai_stream()])
    answer = await bench.streamed(connector="main", fallback=RETRY, timeout_s=1.5)
    assert [attempt.reason for attempt in answer.route.attempts] == [None]


async def test_a_silent_provider_is_not_asked_again(bench: Bench, shared: Connector) -> None:
    bench.provider.answer([Silence()])
    bench.provider.answer(answers.openai_stream(), name="shared")
    answer = await bench.streamed(connector="main", fallback=RETRY, timeout_s=2.6)
    assert [attempt.reason for attempt in answer.route.attempts] == [Reason.UPSTREAM_TIMEOUT, None]
    assert len(bench.provider.asked("main")) == 1


async def test_a_provider_that_wants_very_long_is_not_waited_for(bench: Bench, shared: Connector) -> None:
    bench.provider.answer(answers.error(429, headers={"retry-after": "61"}))
    bench.provider.answer(answers.openai_stream(), name="shared")
    answer = await bench.streamed(connector="main", fallback=RETRY)
    assert [attempt.reason for attempt in answer.route.attempts] == [Reason.UPSTREAM_RATE_LIMITED, None]


async def test_a_fallback_that_rejects_the_request_fails_with_each_reason(bench: Bench, shared: Connector) -> None:
    bench.provider.answer(answers.error(503))
    bench.provider.answer(answers.error(400), name="shared")
    error = await failure(bench, connector="main", fallback=ORG)
    assert error.reason is Reason.ALL_CANDIDATES_FAILED
    assert "UPSTREAM_UNAVAILABLE, UPSTREAM_REJECTED_REQUEST" in error.message


# --- breakers ---


async def broken(bench: Bench) -> None:
    """The breaker of `main` is open."""
    for _ in range(FAILURES_MAX):
        bench.provider.answer(answers.error(503))
        await failure(bench, connector="main")
    assert [state.half_open for state in bench.gateway.breakers] == [False]


async def test_a_call_goes_straight_to_its_fallback_while_the_breaker_is_open(bench: Bench, shared: Connector) -> None:
    await broken(bench)
    bench.provider.answer(answers.openai_stream(), name="shared")
    answer = await bench.streamed(connector="main", fallback=ORG)
    assert [attempt.reason for attempt in answer.route.attempts] == [None]
    assert len(bench.provider.asked("main")) == FAILURES_MAX
    assert await fallbacks(bench) == [(shared.name, "breaker_open")]


async def test_a_connector_alone_is_asked_whatever_its_breaker_says_and_an_answer_closes_it(bench: Bench) -> None:
    await broken(bench)
    bench.provider.answer(answers.openai_stream())
    await bench.streamed(connector="main")
    assert bench.gateway.breakers == []


async def test_a_flapping_connector_is_probed_by_one_call_at_a_time(
    bench: Bench, shared: Connector, clock: Clock
) -> None:
    await broken(bench)
    clock.jump(COOL_DOWN_S)
    pause = Pause()
    bench.provider.answer([pause, *answers.openai_stream()])
    bench.provider.always_answer(answers.openai_stream(), name="shared")
    probe = asyncio.create_task(bench.streamed(connector="main", fallback=ORG))
    await pause.reached.wait()
    beside = await bench.streamed(connector="main", fallback=ORG)
    assert beside.route.resolved_by is ResolvedBy.FALLBACK
    pause.open()
    assert (await probe).route.resolved_by is ResolvedBy.REQUEST
    assert bench.gateway.breakers == []


async def test_a_cancelled_probe_lets_the_next_one_go(bench: Bench, shared: Connector, clock: Clock) -> None:
    await broken(bench)
    clock.jump(COOL_DOWN_S)
    bench.provider.answer([Silence()], answers.openai_stream())
    probe = asyncio.create_task(bench.streamed(connector="main", fallback=ORG))
    await bench.provider.received(FAILURES_MAX + 1)
    probe.cancel()
    await asyncio.gather(probe, return_exceptions=True)
    answer = await bench.streamed(connector="main", fallback=ORG)
    assert answer.route.resolved_by is ResolvedBy.REQUEST


@pytest.mark.parametrize(
    ("then", "reason"),
    [
        ([Reset()], Reason.UPSTREAM_UNAVAILABLE),
        ([], Reason.UPSTREAM_TRUNCATED),
        ([answers.event("{no json")], Reason.UPSTREAM_MALFORMED_RESPONSE),
    ],
)
async def test_a_whole_answer_that_a_hard_cap_lets_stream_is_taken_over_as_any_whole_answer(
    bench: Bench, shared: Connector, then: Script, reason: Reason
) -> None:
    """Nothing of it was delivered, whatever the provider has sent."""
    await bench.add("capped", monthly_token_cap=10**6, cap_mode=CapMode.HARD)
    bench.provider.answer(answers.openai_interrupted(*then), name="capped")
    bench.provider.answer(answers.openai_unary(), name="shared")
    answer = await bench.chat(connector="capped", fallback=ORG)
    assert [attempt.reason for attempt in answer.route.attempts] == [reason, None]
    assert answer.usage.source is not UsageSource.PROVIDER, "what the failed one used is counted by an estimate"


async def test_a_first_choice_that_failed_of_late_answers_when_those_before_it_cannot(
    bench: Bench, clock: Clock
) -> None:
    await bench.add("capped", monthly_token_cap=0, last_used_at=make.START)
    await bench.add("claude", type="anthropic")
    await broken(bench)
    bench.provider.answer(answers.openai_stream())
    answer = await bench.streamed(connector="main", fallback=CHAIN, config=GenerationConfig(seed=1))
    assert answer.route.connector.endswith("/main")
    assert await fallbacks(bench) == []


async def test_an_attempt_that_was_cut_to_leave_time_for_others_says_nothing_of_the_provider(bench: Bench) -> None:
    await bench.add("second", last_used_at=make.START)
    bench.provider.always_answer([Wait(1.3), *answers.openai_stream()])
    bench.provider.always_answer(answers.openai_stream(), name="second")
    asked = [bench.stream(connector="main", fallback=CHAIN, timeout_s=2.2) for _ in range(FAILURES_MAX)]
    await asyncio.gather(*asked)
    assert bench.gateway.breakers == []


async def test_a_fallback_whose_breaker_opened_meanwhile_is_asked_last(bench: Bench) -> None:
    await bench.add("b", last_used_at=make.START)
    await bench.add("c")
    pause = Pause()
    bench.provider.answer([pause, *answers.error(503)])
    bench.provider.always_answer(answers.error(503), name="b")
    bench.provider.answer(answers.openai_stream(), name="c")
    call = asyncio.create_task(bench.stream(connector="main", fallback=CHAIN))
    await pause.reached.wait()
    for _ in range(FAILURES_MAX):
        await failure(bench, connector="b")
    pause.open()
    await call
    assert len(bench.provider.asked("b")) == FAILURES_MAX


async def test_a_whole_answer_may_take_most_of_the_time(bench: Bench, shared: Connector) -> None:
    bench.provider.answer([Wait(1.3), *answers.openai_unary()])
    answer = await bench.chat(connector="main", fallback=ORG, timeout_s=2.4)
    assert [attempt.reason for attempt in answer.route.attempts] == [None]


async def test_a_refusal_by_a_fallback_is_the_answer_and_not_a_reason_to_call_again(
    bench: Bench, shared: Connector
) -> None:
    bench.provider.answer(answers.error(503))
    bench.provider.answer(answers.error(400, "content_policy_violation"), name="shared")
    error = await failure(bench, connector="main", fallback=ORG)
    assert error.reason is Reason.CONTENT_POLICY_VIOLATION


async def test_not_all_failed_where_somebody_was_not_asked(bench: Bench) -> None:
    await bench.add("b", last_used_at=make.START)
    await bench.add("c")
    bench.provider.answer(answers.error(503))
    bench.provider.answer(answers.error(400), name="b")
    error = await failure(bench, connector="main", fallback=CHAIN)
    assert error.reason is Reason.UPSTREAM_REJECTED_REQUEST
    assert bench.provider.asked("c") == []


async def test_a_retry_that_the_cap_forbids_leaves_the_failure_as_it_was(bench: Bench) -> None:
    await bench.add("soft", monthly_token_cap=5)
    bench.provider.answer([answers.EVENT_STREAM, answers.chunk({"role": "assistant"}), Cut()], name="soft")
    error = await failure(bench, connector="soft", fallback=RETRY)
    assert error.reason is Reason.UPSTREAM_UNAVAILABLE
