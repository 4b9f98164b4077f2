"""A call from its admission to its record: answers, usage, failures, who is let in."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import msgspec
import pytest
from tests.support import answers, faults, make
from tests.support.bench import PLANTED, Bench, assembled
from tests.support.clock import Clock
from tests.support.provider import Cut, Head, Pause, Reset, Script, Silence, Step

from patchbay_server.core import request_ids
from patchbay_server.core.admission import Room
from patchbay_server.core.gateway import CallLimits, new_call_id
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.types import (
    CallState,
    ChatEvent,
    ChatStarted,
    ConnectorSettings,
    ConnectorState,
    FinishReason,
    GenerationConfig,
    NoticeCode,
    ReasoningPart,
    ResolvedBy,
    Role,
    Scope,
    Sealed,
    TextDelta,
    TextPart,
    UpstreamMode,
)
from patchbay_server.usage import Usage, UsageSource

UUID = "123e4567-e89b-42d3-a456-426614174000"
REPORTED = Usage(input_tokens=11, output_tokens=4, total_tokens=15)


async def failure(bench: Bench, *, streaming: bool = True, **request: object) -> PatchbayError:
    with pytest.raises(PatchbayError) as caught:
        await (bench.stream(**request) if streaming else bench.chat(**request))
    return caught.value


async def seen_until_failure(bench: Bench, **request: object) -> tuple[list[ChatEvent], PatchbayError]:
    """What a streamed call delivered, and why it failed."""
    seen: list[ChatEvent] = []
    try:
        async for batch in bench.batches(**request):
            seen += batch
    except PatchbayError as error:
        return seen, error
    pytest.fail("the call did not fail")


# --- answers ---


async def test_a_streamed_answer_equals_the_unary_answer_of_the_same_provider(bench: Bench) -> None:
    bench.provider.answer(answers.openai_unary(), answers.openai_stream())
    unary, streamed = await bench.chat(), await bench.streamed()
    assert unary.message.parts == (TextPart(text=answers.TEXT),)
    for name in ("message", "finish_reason", "provider_finish_reason", "usage", "notices"):
        assert getattr(unary, name) == getattr(streamed, name)
    assert (unary.route.mode, streamed.route.mode) == (UpstreamMode.UNARY, UpstreamMode.STREAMING)


async def test_an_answer_tells_who_gave_it_and_how_it_came_to_that(bench: Bench) -> None:
    bench.provider.answer(answers.openai_unary())
    route = (await bench.chat(model="asked-for")).route
    assert (route.connector, route.provider) == ("owners/acme/connectors/main", "openai_compatible")
    assert (route.requested_model, route.model) == ("asked-for", "small-2026")
    assert route.resolved_by is ResolvedBy.LAST_USED
    assert [(attempt.connector, attempt.model, attempt.reason) for attempt in route.attempts] == [
        ("owners/acme/connectors/main", "asked-for", None)
    ]


async def test_a_stream_has_one_opening_then_deltas_as_they_come_and_one_end(bench: Bench) -> None:
    pauses = [Pause(), Pause()]
    head, *events = answers.openai_stream()
    bench.provider.answer([head, *events[:2], pauses[0], events[2], pauses[1], *events[3:]])
    seen = bench.batches()
    assert isinstance((await anext(seen))[0], ChatStarted)
    pauses[0].open()
    assert await anext(seen) == [TextDelta(0, answers.WORDS[1])]
    pauses[1].open()
    rest = [event async for batch in seen for event in batch]
    assert rest[0] == TextDelta(0, answers.WORDS[2])


async def test_another_provider_s_answer_folds_into_the_same_form(bench: Bench) -> None:
    await bench.add("claude", type="anthropic")
    bench.provider.answer(answers.anthropic_stream(), answers.anthropic_unary(), name="claude")
    streamed, unary = await bench.streamed(connector="claude"), await bench.chat(connector="claude")
    assert streamed.message == unary.message
    assert (streamed.finish_reason, streamed.usage.output_tokens) == (FinishReason.STOP, 4)


async def test_a_call_leaves_one_closed_record_with_what_it_used(bench: Bench) -> None:
    bench.provider.answer(answers.openai_stream())
    answer = await bench.streamed(feature="search", labels={"team": "a"}, model="large")
    row = await bench.call()
    assert row.closed is not None
    assert (row.opened.call_id, row.opened.owner, row.opened.caller) == (answer.call_id, "acme", "caller-1")
    assert (row.opened.feature, row.opened.labels, row.opened.requested_model) == ("search", {"team": "a"}, "large")
    assert (row.state, row.closed.usage, row.closed.finish_reason) == (
        CallState.SUCCEEDED,
        REPORTED,
        FinishReason.STOP,
    )
    assert row.attempts[0].closed is not None
    assert row.attempts[0].closed.usage == REPORTED


@pytest.mark.parametrize("streaming", [True, False])
async def test_the_end_is_told_only_when_the_record_is_durable(bench: Bench, streaming: bool) -> None:
    gate = faults.hold(bench.store, "write_records", before=True, only=faults.closes)
    bench.provider.answer(answers.openai_stream() if streaming else answers.openai_unary())
    call = asyncio.ensure_future(bench.streamed() if streaming else bench.chat())
    await gate.reached.wait()
    await asyncio.sleep(0.02)
    assert not call.done()
    gate.open()
    await call


async def test_nothing_is_told_before_the_opening_record_is_durable(bench: Bench) -> None:
    gate = faults.hold(bench.store, "write_records")
    bench.provider.answer(answers.openai_interrupted(Silence()))
    seen = bench.batches()
    first = asyncio.ensure_future(anext(seen))
    await gate.reached.wait()
    await bench.provider.received()
    await asyncio.sleep(0.05)
    assert not first.done()
    gate.open()
    assert isinstance((await first)[0], ChatStarted)
    await seen.aclose()


async def test_the_provider_is_asked_while_the_opening_record_is_being_written(bench: Bench) -> None:
    gate = faults.hold(bench.store, "write_records")
    bench.provider.answer(answers.openai_unary())
    call = asyncio.create_task(bench.chat())
    await asyncio.wait_for(bench.provider.received(), 1)
    gate.open()
    await call


async def test_a_connection_serves_one_call_after_the_other(bench: Bench) -> None:
    for _ in range(3):
        late = Pause()  # the end of the body comes a moment after the terminal marker
        bench.provider.answer([*answers.openai_stream(), late], answers.openai_unary())
        asyncio.get_running_loop().call_later(0.02, late.open)
        await bench.streamed()
        await bench.chat()
    assert len(bench.provider.connections) == 1


async def test_a_call_that_ends_well_leaves_no_connection_open_in_the_middle_of_an_answer(bench: Bench) -> None:
    bench.provider.answer([*answers.openai_stream(), Silence()])  # after the terminal marker the body goes on
    async with bench.gateway.stream(bench.caller, make.request()) as call:
        await call.answer()
    await asyncio.wait_for(bench.provider.connections[0].closed.wait(), 0.5)
    assert call.settled, "closed though the call is still held"


async def test_a_slow_reader_slows_the_provider(bench: Bench) -> None:
    flood = [answers.chunk({"content": "x" * 65_536}) for _ in range(400)]
    bench.provider.answer([*answers.openai_interrupted(), *flood, Silence()])
    seen = bench.batches()
    await anext(seen)
    await asyncio.sleep(0.1)
    (request,) = bench.provider.requests
    assert not request.answered
    await seen.aclose()


async def test_a_part_s_provider_state_goes_back_to_its_provider_and_to_nobody_else(bench: Bench) -> None:
    await bench.add("claude", type="anthropic")
    thinking = [
        answers.event(
            {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}}
        ),
        answers.event(
            {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "hm"}}
        ),
        answers.event(
            {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "SIG"}}
        ),
        answers.event({"type": "content_block_stop", "index": 0}),
    ]
    start, *rest = answers.anthropic_events(())
    bench.provider.answer([answers.EVENT_STREAM, start, *thinking, *rest[2:]], answers.anthropic_unary(), name="claude")
    thought = (await bench.streamed(connector="claude")).message.parts[0]
    assert isinstance(thought, ReasoningPart)
    turn = [make.message(), make.message(Role.ASSISTANT, thought, TextPart(text="so")), make.message()]
    back = await bench.chat(connector="claude", prompt=make.prompt(*turn))
    assert b"SIG" in bench.provider.asked("claude")[1].body
    assert back.notices == ()
    bench.provider.answer(answers.openai_unary())
    other = await bench.chat(connector="main", prompt=make.prompt(*turn))
    assert b"SIG" not in bench.provider.asked("main")[0].body
    assert {notice.code for notice in other.notices} == {NoticeCode.PROVIDER_STATE_LEFT_OUT}


# --- usage ---


@pytest.mark.parametrize("streaming", [True, False])
async def test_usage_that_no_provider_reported_is_estimated_and_marked_as_that(bench: Bench, streaming: bool) -> None:
    bench.provider.answer((answers.openai_stream if streaming else answers.openai_unary)(usage=None))
    answer = await (bench.streamed() if streaming else bench.chat())
    assert answer.usage.source is UsageSource.ESTIMATED
    assert answer.usage.input_tokens > 0
    assert answer.usage.output_tokens == -(-len(answers.TEXT) // 4)
    assert [notice.code for notice in answer.notices] == [NoticeCode.USAGE_ESTIMATED]


async def test_a_failed_stream_is_charged_what_it_delivered(bench: Bench) -> None:
    bench.provider.answer(answers.openai_interrupted(Cut()))
    error = await failure(bench)
    assert error.partial is not None
    assert error.partial.usage.output_tokens == -(-len(answers.TEXT) // 4)
    assert error.partial.usage.source is UsageSource.ESTIMATED
    closed = (await bench.call()).closed
    assert closed is not None
    assert closed.usage == error.partial.usage
    months = await bench.store.month_tokens(["uid-acme-main"], "2026-11")
    assert months == {"uid-acme-main": error.partial.usage.input_tokens + error.partial.usage.output_tokens}


async def test_running_totals_count_when_the_answer_breaks_off_after_them(bench: Bench) -> None:
    await bench.add("claude", type="anthropic")
    bench.provider.answer(answers.anthropic_interrupted(Reset()), name="claude")
    error = await failure(bench, connector="claude")
    assert error.partial is not None
    usage = error.partial.usage
    assert (usage.input_tokens, usage.output_tokens, usage.source) == (11, 4, UsageSource.ESTIMATED)


async def test_a_request_that_a_provider_refused_costs_nothing(bench: Bench) -> None:
    bench.provider.answer(answers.error(400))
    error = await failure(bench)
    assert error.partial is not None
    assert error.partial.usage == Usage()
    closed = (await bench.call()).closed
    assert closed is not None
    assert closed.usage is None


# --- failures ---

HTML: Script = [Head(200, {"content-type": "text/html", "content-length": "6"}), b"<html>"]
BEFORE_OUTPUT: list[tuple[Script, Reason]] = [
    (answers.error(400), Reason.UPSTREAM_REJECTED_REQUEST),
    (answers.error(400, "context_length_exceeded"), Reason.CONTEXT_LENGTH_EXCEEDED),
    (answers.error(401), Reason.UPSTREAM_CREDENTIAL_REJECTED),
    (answers.error(404, "model_not_found"), Reason.MODEL_NOT_FOUND),
    (answers.error(429), Reason.UPSTREAM_RATE_LIMITED),
    (answers.error(429, "insufficient_quota"), Reason.UPSTREAM_BILLING_EXHAUSTED),
    (answers.error(500), Reason.UPSTREAM_UNAVAILABLE),
    (answers.error(503), Reason.UPSTREAM_UNAVAILABLE),
    ([Reset()], Reason.UPSTREAM_UNAVAILABLE),
    ([Cut()], Reason.UPSTREAM_UNAVAILABLE),
    ([answers.EVENT_STREAM, Reset()], Reason.UPSTREAM_UNAVAILABLE),
    ([answers.EVENT_STREAM], Reason.UPSTREAM_EMPTY_STREAM),
    ([answers.EVENT_STREAM, answers.event("[DONE]")], Reason.UPSTREAM_EMPTY_STREAM),
    ([answers.EVENT_STREAM, b": ping\n\n"], Reason.UPSTREAM_EMPTY_STREAM),
    ([answers.EVENT_STREAM, answers.event("{no json")], Reason.UPSTREAM_MALFORMED_RESPONSE),
    ([answers.EVENT_STREAM, answers.event({"error": {"message": "m", "code": 500}})], Reason.UPSTREAM_UNAVAILABLE),
    (HTML, Reason.UPSTREAM_MALFORMED_RESPONSE),
]


@pytest.mark.parametrize(("script", "reason"), BEFORE_OUTPUT)
async def test_a_failure_before_any_output_is_told_as_what_it_is(bench: Bench, script: Script, reason: Reason) -> None:
    bench.provider.answer(script)
    error = await failure(bench)
    assert error.reason is reason
    row = await bench.call()
    assert (row.state, row.closed and row.closed.reason) == (CallState.FAILED, reason)


AFTER_OUTPUT: list[tuple[Script, Reason]] = [
    ([Cut()], Reason.UPSTREAM_STREAM_BROKEN),
    ([Reset()], Reason.UPSTREAM_STREAM_BROKEN),
    ([], Reason.UPSTREAM_TRUNCATED),
    ([answers.event("{no json")], Reason.UPSTREAM_MALFORMED_RESPONSE),
    ([answers.event({"error": {"message": "m", "code": 429}})], Reason.UPSTREAM_RATE_LIMITED),
]


@pytest.mark.parametrize(("then", "reason"), AFTER_OUTPUT)
async def test_a_failure_after_output_leaves_what_was_delivered_and_says_what_it_is(
    bench: Bench, then: Script, reason: Reason
) -> None:
    bench.provider.answer(answers.openai_interrupted(*then))
    seen, error = await seen_until_failure(bench)
    assert error.reason is reason
    assert "".join(event.text for event in seen if isinstance(event, TextDelta)) == answers.TEXT
    row = await bench.call()
    assert row.closed is not None
    assert (row.state, row.closed.reason, row.closed.first_output_s) == (CallState.FAILED, reason, 0.0)


async def test_deltas_that_came_with_the_failure_in_one_read_are_delivered(bench: Bench) -> None:
    together = b"".join([answers.chunk({"content": "seen"}), answers.event("{no json")])
    bench.provider.answer([answers.EVENT_STREAM, together])
    seen, _ = await seen_until_failure(bench)
    assert TextDelta(0, "seen") in seen


async def test_a_provider_s_words_and_our_key_stay_out_of_the_error(bench: Bench) -> None:
    bench.provider.answer(answers.error(400))
    error = await failure(bench)
    told = f"{error} {error.violations} {error.upstream} {error.partial}"
    assert "what the provider said" not in told
    assert PLANTED not in told


async def test_an_error_names_the_provider_the_connector_and_the_attempts(bench: Bench) -> None:
    bench.provider.answer(answers.error(500))
    error = await failure(bench)
    assert error.upstream is not None
    assert (error.upstream.provider, error.upstream.connector) == ("openai_compatible", "owners/acme/connectors/main")
    assert (error.upstream.http_status, error.upstream.attempt_count) == (500, 1)
    assert error.partial is not None
    assert error.partial.call_id == (await bench.call()).opened.call_id


async def test_a_refused_key_of_the_organisation_s_connector_does_not_name_it(bench: Bench) -> None:
    shared = await bench.add("shared", owner="platform")
    await bench.policy(organisation_default=shared.name)
    bench.provider.answer(answers.error(500), name="shared")
    bench.caller = make.caller("newcomer")
    error = await failure(bench)
    assert error.upstream is not None
    assert error.upstream.connector == ""


async def test_what_is_wrong_with_the_organisation_s_connector_is_told_to_nobody_else(bench: Bench) -> None:
    shared = await bench.add("shared", owner="platform")
    await bench.store.reseal_connector(shared.uid, shared.sealed, Sealed(b"damaged", shared.sealed.key_id))
    await bench.policy(organisation_default=shared.name)
    bench.caller = make.caller("newcomer")
    error = await failure(bench)
    assert error.reason is Reason.CREDENTIAL_UNREADABLE
    assert shared.uid not in error.message
    assert "shared" not in error.message


@pytest.mark.parametrize(
    ("credential", "reason"),
    [
        ({"base_url": "http://127.0.0.1:1/v1?x=y"}, Reason.CONNECTOR_MISCONFIGURED),
        ({"base_url": "http://user@127.0.0.1:1/v1"}, Reason.CONNECTOR_MISCONFIGURED),
        ({"base_url": " "}, Reason.CONNECTOR_MISCONFIGURED),
        ({"api_key": "a\nb"}, Reason.CONNECTOR_MISCONFIGURED),
        ({"headers": {"Host": "elsewhere"}}, Reason.CONNECTOR_MISCONFIGURED),
        ({"base_url": "http://169.254.169.254/v1"}, Reason.CONNECTOR_MISCONFIGURED),
        ({"base_url": "http://10.0.0.1/v1"}, Reason.POLICY_DENIED),
    ],
)
async def test_a_credential_is_judged_by_today_s_rules_whenever_it_is_used(
    bench: Bench, credential: dict[str, object], reason: Reason
) -> None:
    await bench.add("old", credential=credential)
    assert (await failure(bench, connector="old")).reason is reason


async def test_a_credential_that_cannot_be_opened_is_told_as_that(bench: Bench) -> None:
    await bench.add("alien")
    other = await bench.add("copied")
    stored = bench.store._connectors["uid-acme-alien"]
    bench.store._connectors["uid-acme-alien"] = msgspec.structs.replace(stored, sealed=other.sealed)
    await bench.policy()
    assert (await failure(bench, connector="alien")).reason is Reason.CREDENTIAL_UNREADABLE


async def test_a_field_that_the_provider_cannot_express_is_refused_before_anything_is_sent(bench: Bench) -> None:
    await bench.add("claude", type="anthropic")
    error = await failure(bench, connector="claude", config=GenerationConfig(seed=1))
    assert (error.reason, error.violations[0].field) == (Reason.FEATURE_UNSUPPORTED, "config.seed")
    assert bench.provider.requests == []
    assert (await bench.call()).state is CallState.FAILED


async def test_a_fault_of_ours_is_recorded_and_its_words_stay_in_the_log(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise RuntimeError("inside")

    monkeypatch.setattr(bench.health, "rejected", broken)
    bench.provider.answer(answers.error(401))
    error = await failure(bench)
    assert error.reason is Reason.INTERNAL
    assert "inside" not in str(error)
    assert (await bench.call()).state is CallState.FAILED


@pytest.mark.parametrize("thrown", [TimeoutError, ValueError])
async def test_whatever_breaks_in_the_hands_of_its_user_a_call_is_settled(
    bench: Bench, thrown: type[Exception]
) -> None:
    async def use() -> None:
        async with bench.gateway.stream(bench.caller, make.request()) as call, aclosing(call.events()) as batches:
            await anext(batches)
            raise thrown

    bench.provider.answer(answers.openai_interrupted(Silence()))
    with pytest.raises(PatchbayError) as caught:
        await use()
    assert caught.value.reason is Reason.INTERNAL
    assert (await bench.call()).state is CallState.FAILED


# --- who is let in ---


async def test_a_call_needs_the_scope_chat(bench: Bench) -> None:
    bench.caller = make.caller(scopes=frozenset({Scope.ADMIN, Scope.CONNECTORS}))
    assert (await failure(bench)).reason is Reason.CALLER_NOT_AUTHORIZED
    assert await bench.calls() == []


async def test_a_caller_bound_to_an_owner_cannot_call_for_another(bench: Bench) -> None:
    assert (await failure(bench, owner="other")).reason is Reason.CALLER_NOT_AUTHORIZED


async def test_a_caller_of_any_owner_calls_for_the_one_it_names(bench: Bench) -> None:
    bench.provider.answer(answers.openai_unary())
    bench.caller = make.caller(None)
    assert (await bench.chat(owner="acme")).route.connector == "owners/acme/connectors/main"


async def test_another_owner_s_connector_does_not_exist(bench: Bench) -> None:
    await bench.add("theirs", owner="other")
    assert (await failure(bench, connector="theirs")).reason is Reason.CONNECTOR_NOT_FOUND


async def test_a_malformed_request_is_refused_before_anything_is_opened(bench: Bench) -> None:
    assert (await failure(bench, feature="No Feature")).reason is Reason.INVALID_REQUEST
    assert await bench.calls() == []


async def test_a_disabled_connector_is_not_asked(bench: Bench) -> None:
    await bench.add("off", state=ConnectorState.DISABLED)
    assert (await failure(bench, connector="off")).reason is Reason.CONNECTOR_INACTIVE


@pytest.fixture
async def small(clock: Clock) -> AsyncIterator[Bench]:
    """A bench for two calls at once."""
    async with assembled(clock=clock, calls=CallLimits(room=Room(calls_max=2, queue_max=0))) as bench:
        await bench.add()
        yield bench


async def test_a_full_gateway_refuses_at_once_and_says_when_to_come_back(small: Bench) -> None:
    pause = Pause()
    small.provider.always_answer([pause, *answers.openai_unary()])
    running = [asyncio.create_task(small.chat()) for _ in range(2)]
    await small.provider.received(2)
    error = await failure(small)
    assert (error.reason, error.retry_after_s) == (Reason.OVERLOADED, 1.0)
    pause.open()
    await asyncio.gather(*running)
    await small.chat()


async def test_calls_that_arrive_together_cannot_pass_the_limit_together(small: Bench) -> None:
    pause = Pause()
    small.provider.always_answer([pause, *answers.openai_unary()])
    gate = faults.hold(small.store, "snapshot")
    small.snapshots._by_owner.clear()
    calls = [asyncio.create_task(small.chat()) for _ in range(10)]
    await gate.crowd(2)
    gate.open()
    done, running = await asyncio.wait(calls, timeout=0.1)
    assert len(running) == 2
    assert {getattr(call.exception(), "reason", None) for call in done} == {Reason.OVERLOADED}
    pause.open()
    await asyncio.gather(*running)


async def test_a_recorder_that_cannot_keep_up_lets_nobody_in(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("patchbay_server.core.record.WAITING_MAX", 0)
    assert (await failure(bench)).reason is Reason.OVERLOADED


async def test_a_reached_cap_refuses_without_asking_the_provider(bench: Bench) -> None:
    await bench.add("capped", monthly_token_cap=15)
    bench.provider.answer(answers.openai_unary(), name="capped")
    await bench.chat(connector="capped")
    error = await failure(bench, connector="capped")
    assert (error.reason, error.quota) == (Reason.CAP_REACHED, "owners/acme/connectors/capped:monthly_tokens")
    assert len(bench.provider.requests) == 1


# --- request ids ---


async def test_a_request_that_is_still_running_is_not_run_again(bench: Bench) -> None:
    pause = Pause()
    bench.provider.answer([pause, *answers.openai_unary()])
    running = asyncio.create_task(bench.chat(request_id=UUID, content_hash=b"1"))
    await pause.reached.wait()
    for same in (UUID, UUID.upper()):
        assert (await failure(bench, request_id=same, content_hash=b"1")).reason is Reason.REQUEST_IN_PROGRESS
    pause.open()
    await running
    assert len(bench.provider.requests) == 1


async def test_a_request_id_is_for_one_content_while_its_call_runs_and_after(bench: Bench) -> None:
    pause = Pause()
    bench.provider.answer([pause, *answers.openai_unary()], answers.openai_unary())
    running = asyncio.create_task(bench.chat(request_id=UUID, content_hash=b"1"))
    await pause.reached.wait()
    assert (await failure(bench, request_id=UUID, content_hash=b"2")).reason is Reason.REQUEST_ID_REUSED
    pause.open()
    await running
    assert (await failure(bench, request_id=UUID, content_hash=b"2")).reason is Reason.REQUEST_ID_REUSED
    await bench.chat(request_id=UUID, content_hash=b"1")


async def test_a_refused_repetition_does_not_free_the_id_of_the_running_call(bench: Bench) -> None:
    pause = Pause()
    bench.provider.answer([pause, *answers.openai_unary()])
    running = asyncio.create_task(bench.chat(request_id=UUID))
    await pause.reached.wait()
    for _ in range(2):
        assert (await failure(bench, request_id=UUID)).reason is Reason.REQUEST_IN_PROGRESS
    pause.open()
    await running


async def test_owners_do_not_share_request_ids(bench: Bench) -> None:
    await bench.add("main2", owner="other")
    bench.provider.answer(answers.openai_unary())
    bench.provider.answer(answers.openai_unary(), name="main2")
    await bench.chat(request_id=UUID, content_hash=b"1")
    bench.caller = make.caller("other")
    await bench.chat(request_id=UUID, content_hash=b"2")


async def test_however_many_ids_come_a_running_call_s_is_not_forgotten(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_ids, "REQUEST_IDS_MAX", 2)
    pause = Pause()
    bench.provider.answer([pause, *answers.openai_unary()])
    bench.provider.always_answer(answers.openai_unary())
    running = asyncio.create_task(bench.chat(request_id=UUID))
    await pause.reached.wait()
    for number in range(5):
        await bench.chat(request_id=UUID[:-1] + str(number + 1))
    assert (await failure(bench, request_id=UUID)).reason is Reason.REQUEST_IN_PROGRESS
    pause.open()
    await running
    assert len(bench.gateway._request_ids._past) == 2


async def test_call_ids_sort_by_time(clock: Clock) -> None:
    earlier = new_call_id(clock.now())
    clock.jump(0.002)
    later = new_call_id(clock.now())
    assert earlier < later
    assert len({len(earlier), len(later)}) == 1


# --- over SQL ---


async def test_the_same_holds_over_sql(clock: Clock, tmp_path: Path) -> None:
    async with assembled(clock=clock, sqlite=tmp_path / "patchbay.db") as bench:
        await bench.add()
        bench.provider.answer(answers.openai_stream(), answers.error(401))
        assert (await bench.streamed()).usage == REPORTED
        assert (await failure(bench)).reason is Reason.UPSTREAM_CREDENTIAL_REJECTED
        states = [row.state for row in await bench.calls()]
        assert sorted(states) == [CallState.FAILED, CallState.SUCCEEDED]


@pytest.mark.parametrize(
    "tail", [b'data: {"choices":[{"delta":{"content":"\xf0\x9f', b'data: {"cho', b"data: [DO", b'data: {"a":\n']
)
async def test_an_answer_that_ends_within_an_event_is_cut_off_and_not_malformed(bench: Bench, tail: bytes) -> None:
    bench.provider.answer(answers.openai_interrupted(tail))
    assert (await failure(bench)).reason is Reason.UPSTREAM_TRUNCATED


async def test_a_last_event_without_its_blank_line_counts(bench: Bench) -> None:
    *rest, last = answers.openai_stream()
    assert isinstance(last, bytes)
    bench.provider.answer([*rest, last.rstrip(b"\n")])
    assert (await bench.streamed()).usage.total_tokens == 15


@pytest.mark.parametrize("streaming", [True, False])
async def test_json_of_more_objects_than_anybody_needs_is_refused_before_it_is_decoded(
    bench: Bench, streaming: bool
) -> None:
    body = b'{"choices":[' + b"{}," * 2_000_000 + b"{}]}"
    head = answers.EVENT_STREAM if streaming else Head(200, {"content-type": "application/json"})
    bench.provider.answer([head, b"data: " + body + b"\n\n" if streaming else body])
    with pytest.raises(PatchbayError) as caught:
        await (bench.stream() if streaming else bench.chat())
    assert caught.value.reason is Reason.UPSTREAM_MALFORMED_RESPONSE
    assert "at once" in caught.value.message


async def test_words_that_came_count_though_the_provider_s_count_of_them_did_not(bench: Bench) -> None:
    await bench.add("claude", type="anthropic")
    bench.provider.answer(answers.anthropic_interrupted(Reset(), words=["word " * 200] * 10), name="claude")
    error = await failure(bench, connector="claude")
    assert error.partial is not None
    assert error.partial.usage.output_tokens >= 2_000


COUNTED_FAILURE = answers.event(
    {
        "id": "x",
        "choices": [{"index": 0, "delta": {}, "finish_reason": "error"}],
        "usage": {"prompt_tokens": 900, "completion_tokens": 80, "total_tokens": 980},
    }
)


@pytest.mark.parametrize("then", [[], [Silence()], [Reset()], [answers.event("[DONE]")]])
async def test_a_failure_that_tells_its_tokens_is_told_at_once_and_counted(bench: Bench, then: list[Step]) -> None:
    bench.provider.answer(answers.openai_interrupted(COUNTED_FAILURE, *then))
    error = await failure(bench)
    assert error.reason is not Reason.UPSTREAM_TIMEOUT
    assert error.reason is not Reason.UPSTREAM_STREAM_BROKEN
    assert error.partial is not None
    assert error.partial.usage.total_tokens == 980


@pytest.mark.parametrize("end", [[Reset()], [Silence()]])
async def test_an_error_whose_tokens_never_come_is_still_that_error(bench: Bench, end: list[Step]) -> None:
    quick = ConnectorSettings(idle_timeout_s=0.3)
    await bench.add("router", type="openrouter", model_hint="a/b", settings=quick)
    told = answers.event({"id": "x", "error": {"code": 429, "message": "slow down"}, "choices": []})
    bench.provider.answer(answers.openai_interrupted(told, *end), name="router")
    assert (await failure(bench, connector="router")).reason is Reason.UPSTREAM_RATE_LIMITED
