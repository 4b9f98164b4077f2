"""Hard caps: what is held before an attempt, what becomes of it, and that calls together never pass the cap."""

import asyncio
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from tests.support import answers, faults, make
from tests.support.bench import Bench, assembled
from tests.support.clock import Clock
from tests.support.provider import Pause, Reset, Silence, Wait

from patchbay_server.core import call as call_module
from patchbay_server.core.breaker import COOL_DOWN_S, FAILURES_MAX
from patchbay_server.core.estimate import tokens_needed
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.types import (
    AuditType,
    CallState,
    CapMode,
    CapUse,
    ChatCompleted,
    ChatRequest,
    Connector,
    FallbackMode,
    GenerationConfig,
    Hold,
    TextDelta,
    UpstreamMode,
    month_of,
)

LIMITED = GenerationConfig(max_output_tokens=10)
BOUND = tokens_needed(make.request(config=LIMITED).prompt)
USED = 15
"""Tokens of `answers.openai_unary` and `answers.openai_stream`, as their usage says."""


async def hard(bench: Bench, cap: int, id: str = "hard", **fields: object) -> Connector:  # noqa: A002
    return await bench.add(id, monthly_token_cap=cap, cap_mode=CapMode.HARD, **fields)


async def use(bench: Bench, connector: Connector) -> CapUse:
    await bench.recorder.flush()
    now = bench.clock.now()
    return (await bench.store.cap_use([connector.uid], month_of(now), now))[connector.uid]


async def refusal(bench: Bench, **request: object) -> PatchbayError:
    with pytest.raises(PatchbayError) as caught:
        await bench.stream(**request)
    return caught.value


async def test_an_attempt_holds_its_bound_and_settles_what_it_used(bench: Bench) -> None:
    connector = await hard(bench, 10_000)
    pause = Pause()
    bench.provider.answer([pause, *answers.openai_unary()], name="hard")
    call = asyncio.create_task(bench.chat(connector="hard", config=LIMITED))
    await pause.reached.wait()
    assert await use(bench, connector) == CapUse(tokens=0, held=BOUND)
    pause.open()
    await call
    assert await use(bench, connector) == CapUse(tokens=USED, held=0)


async def test_a_bound_that_is_not_left_is_refused_before_anything_is_asked(bench: Bench) -> None:
    connector = await hard(bench, BOUND - 1)
    error = await refusal(bench, connector="hard", config=LIMITED)
    assert (error.reason, error.quota) == (Reason.CAP_REACHED, f"{connector.name}:monthly_tokens")
    assert bench.provider.requests == []
    row = await bench.call()
    assert (row.state, row.closed and row.closed.reason, row.attempts) == (CallState.FAILED, Reason.CAP_REACHED, ())
    assert await use(bench, connector) == CapUse()


async def test_a_hard_cap_of_zero_lets_nothing_through(bench: Bench) -> None:
    await hard(bench, 0)
    assert (await refusal(bench, connector="hard", config=LIMITED)).reason is Reason.CAP_REACHED


@pytest.mark.parametrize("sql", [False, True])
async def test_200_first_calls_at_once_against_a_cap_for_10_never_hold_a_token_more(
    clock: Clock, tmp_path: Path, sql: bool
) -> None:
    async with assembled(clock=clock, sqlite=tmp_path / "patchbay.db" if sql else None) as bench:
        connector = await hard(bench, 10 * BOUND)
        pause = Pause()
        bench.provider.always_answer([pause, *answers.openai_unary()], name="hard")
        calls = [asyncio.create_task(bench.chat(connector="hard", config=LIMITED)) for _ in range(200)]
        await bench.provider.received(10)
        _, running = await asyncio.wait(calls, timeout=10.0, return_when=asyncio.FIRST_COMPLETED)
        while len(running) > 10:
            _, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        assert len(bench.provider.requests) == 10
        assert await use(bench, connector) == CapUse(tokens=0, held=10 * BOUND)
        pause.open()
        ends = await asyncio.gather(*calls, return_exceptions=True)
        refused = [end for end in ends if isinstance(end, PatchbayError)]
        assert (len(refused), {error.reason for error in refused}) == (190, {Reason.CAP_REACHED})
        assert await use(bench, connector) == CapUse(tokens=10 * USED, held=0)


@pytest.mark.parametrize("end", ["cancel", "reset", "silence"])
async def test_whatever_ends_an_attempt_gives_its_hold_back(bench: Bench, end: str) -> None:
    connector = await hard(bench, 10_000)
    pause = Pause()
    script = {"reset": [Reset()], "silence": [Silence()], "cancel": [Silence()]}[end]
    bench.provider.answer([pause, *script], name="hard")
    call = asyncio.create_task(refusal(bench, connector="hard", config=LIMITED, timeout_s=0.3))
    await pause.reached.wait()
    assert (await use(bench, connector)).held == BOUND
    pause.open()
    if end == "cancel":
        call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    assert (await use(bench, connector)).held == 0


async def test_a_call_cancelled_while_it_asks_for_its_hold_leaves_none(bench: Bench) -> None:
    connector = await hard(bench, 10_000)
    gate = faults.hold(bench.store, "hold_tokens")
    call = asyncio.create_task(bench.chat(connector="hard", config=LIMITED))
    await gate.reached.wait()
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    gate.open()
    assert (await use(bench, connector)).held == 0


async def test_nothing_is_held_for_a_call_before_its_record_is_durable(bench: Bench) -> None:
    """A process that died in between would leave a hold of a call that nobody knows, which no start could free."""
    await hard(bench, 10_000)
    gate = faults.hold(bench.store, "write_records", before=True, only=faults.opens)
    holds = faults.count(bench.store, "hold_tokens")
    bench.provider.answer(answers.openai_unary(), name="hard")
    call = asyncio.create_task(bench.chat(connector="hard", config=LIMITED))
    await gate.reached.wait()
    await asyncio.sleep(0.01)
    assert holds == []
    gate.open()
    await call
    assert len(holds) == 1


async def test_a_hold_that_nobody_gives_back_expires(bench: Bench) -> None:
    connector = await hard(bench, BOUND)
    lost = Hold(
        call_id="of-a-process-that-died",
        number=1,
        connector_uid=connector.uid,
        tokens=BOUND,
        expires_at=bench.clock.now() + timedelta(seconds=600),
    )
    await bench.meter.hold(connector, make.OWNER, lost)
    assert (await refusal(bench, connector="hard", config=LIMITED)).reason is Reason.CAP_REACHED
    bench.clock.jump(601)
    bench.provider.answer(answers.openai_stream(), name="hard")
    await bench.stream(connector="hard", config=LIMITED)


async def test_a_retry_and_a_fallback_hold_for_themselves(bench: Bench) -> None:
    first, second = await hard(bench, 10_000), await hard(bench, 10_000, "second", last_used_at=make.START)
    pause = Pause()
    bench.provider.answer(answers.error(503), name="hard")
    bench.provider.answer([pause, *answers.openai_stream()], name="second")
    call = asyncio.create_task(bench.stream(connector="hard", fallback=FallbackMode.OWNER_CHAIN, config=LIMITED))
    await pause.reached.wait()
    assert ((await use(bench, first)).held, (await use(bench, second)).held) == (0, BOUND)
    pause.open()
    await call
    assert (await use(bench, second)) == CapUse(tokens=USED, held=0)


async def test_a_candidate_without_room_under_its_hard_cap_is_passed_over(bench: Bench) -> None:
    await hard(bench, BOUND - 1, "full", last_used_at=make.START)
    await bench.add("third")
    bench.provider.answer(answers.error(503))
    bench.provider.answer(answers.openai_unary(), name="third")
    answer = await bench.chat(connector="main", fallback=FallbackMode.OWNER_CHAIN, config=LIMITED)
    assert [attempt.reason for attempt in answer.route.attempts] == [
        Reason.UPSTREAM_UNAVAILABLE,
        Reason.CAP_REACHED,
        None,
    ]


# --- answers without a limit ---


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> int:
    """A small step, so that short answers outgrow it."""
    monkeypatch.setattr(call_module, "OUTPUT_TOKENS_STEP", 20)
    return 20


def long_answer(words: int) -> list[object]:
    return [
        answers.EVENT_STREAM,
        *(answers.chunk({"content": "abcdefgh " * 4}) for _ in range(words)),
    ]


async def test_a_stream_that_outgrows_its_hold_holds_more_while_there_is_more(bench: Bench, step: int) -> None:
    connector = await hard(bench, 10_000)
    pause = Pause()
    bench.provider.answer([*long_answer(100), pause, Silence()], name="hard")
    call = asyncio.create_task(bench.stream(connector="hard"))
    await pause.reached.wait()
    await asyncio.sleep(0.05)
    assert (await use(bench, connector)).held >= 100 * 9
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    assert (await use(bench, connector)).held == 0


async def test_a_running_stream_that_would_pass_the_cap_ends_with_what_it_delivered(bench: Bench, step: int) -> None:
    bound = tokens_needed(make.request().prompt)
    connector = await hard(bench, bound + 100)
    bench.provider.answer([*long_answer(200), Silence()], name="hard")
    seen: list[str] = []

    async def read() -> None:
        async for batch in bench.batches(connector="hard"):
            seen.extend(event.text for event in batch if isinstance(event, TextDelta))

    with pytest.raises(PatchbayError) as caught:
        await read()
    assert caught.value.reason is Reason.CAP_REACHED
    assert caught.value.partial is not None
    assert seen
    row = await bench.call()
    assert row.closed is not None
    assert (row.state, row.closed.reason) == (CallState.FAILED, Reason.CAP_REACHED)
    assert row.closed.usage == caught.value.partial.usage
    taken = await use(bench, connector)
    assert taken.held == 0
    assert bound < taken.tokens


async def test_a_whole_answer_without_a_limit_is_streamed_so_that_the_cap_is_kept_while_it_grows(
    bench: Bench, step: int
) -> None:
    await hard(bench, 10_000)
    bench.provider.answer(answers.openai_stream(), name="hard")
    answer = await bench.chat(connector="hard")
    assert answer.route.mode is UpstreamMode.STREAMING
    bench.provider.answer(answers.openai_unary(), name="hard")
    limited = await bench.chat(connector="hard", config=LIMITED)
    assert limited.route.mode is UpstreamMode.UNARY


async def test_a_cap_that_is_edited_does_not_disturb_a_call_within_its_hold(bench: Bench) -> None:
    connector = await hard(bench, 10_000)
    pause = Pause()
    bench.provider.answer([*answers.openai_interrupted(pause), *answers.openai_stream()[-3:]], name="hard")
    call = asyncio.create_task(bench.stream(connector="hard", config=GenerationConfig(max_output_tokens=500)))
    await pause.reached.wait()
    stored = await bench.found(connector)
    lowered = msgspec.structs.replace(stored, monthly_token_cap=0, version=stored.version + 1)
    await bench.store.save_connector(lowered, stored.version, [bench.audit(AuditType.CAP_CHANGED, connector)])
    await bench.snapshots.refresh()
    pause.open()
    events = await call
    assert isinstance(events[-1], ChatCompleted)
    assert (await refusal(bench, connector="hard", config=LIMITED)).reason is Reason.CAP_REACHED


# --- months ---


async def test_a_new_month_has_the_whole_cap_but_for_what_is_held(bench: Bench, clock: Clock) -> None:
    await hard(bench, BOUND + USED)
    bench.provider.answer(answers.openai_stream(), name="hard")
    await bench.stream(connector="hard", config=LIMITED)
    await bench.recorder.flush()
    bench.provider.answer(answers.openai_stream(), name="hard")
    await bench.stream(connector="hard", config=LIMITED)
    assert (await refusal(bench, connector="hard", config=LIMITED)).reason is Reason.CAP_REACHED
    clock.jump((make.at("2026-12-01T00:00:00+00:00") - clock.now()).total_seconds())
    bench.provider.answer(answers.openai_stream(), name="hard")
    await bench.stream(connector="hard", config=LIMITED)


def test_the_bound_covers_every_part_of_a_request() -> None:
    def bound(**given: object) -> int:
        request: ChatRequest = make.request(config=LIMITED, **given)
        return tokens_needed(request.prompt)

    assert bound() >= len("Tell me about the sea.") + 10
    assert bound(provider_options_json='{"a": 1}') == bound() + 8 - 10 + 1, "options may lift the limit"


# --- what could lift a cap ---


async def test_a_stream_ended_by_its_cap_counts_what_it_wrote_and_not_what_was_reported_first(
    bench: Bench, step: int
) -> None:
    connector = await hard(bench, tokens_needed(make.request().prompt) + 100, type="anthropic", model_hint="m")
    bench.provider.answer(answers.anthropic_interrupted(Silence(), words=["abcdefgh " * 4] * 200), name="hard")
    assert (await refusal(bench, connector="hard")).reason is Reason.CAP_REACHED
    assert (await use(bench, connector)).tokens >= (connector.monthly_token_cap or 0) - 2 * step


async def test_options_that_lift_the_limit_do_not_lift_the_cap(bench: Bench, step: int) -> None:
    connector = await hard(bench, 500)
    bench.provider.answer([*long_answer(400), Silence()], name="hard")
    error = await refusal(bench, connector="hard", config=LIMITED, provider_options_json='{"max_tokens": 100000}')
    assert error.reason is Reason.CAP_REACHED
    assert (await use(bench, connector)).held == 0


@pytest.mark.parametrize("whole", [True, False])
async def test_a_whole_answer_is_taken_also_from_a_server_that_does_not_stream(bench: Bench, whole: bool) -> None:
    connector = await hard(bench, 100_000)
    bench.provider.answer(answers.openai_unary() if whole else answers.openai_stream(), name="hard")
    answer = await bench.chat(connector="hard")
    assert answer.usage.total_tokens == USED
    assert (await use(bench, connector)) == CapUse(tokens=USED)


async def test_a_stream_within_its_cap_is_not_ended_for_want_of_a_whole_step(bench: Bench) -> None:
    await hard(bench, 6_000)
    usage = {"prompt_tokens": 11, "completion_tokens": 5_000, "total_tokens": 5_011}
    events = answers.openai_events(usage=usage)
    bench.provider.answer([answers.EVENT_STREAM, *events[:-1], Wait(0.05), events[-1]], name="hard")
    assert (await bench.chat(connector="hard")).usage.total_tokens == 5_011


async def test_what_is_left_is_enough_for_a_call_without_a_limit(bench: Bench) -> None:
    await hard(bench, tokens_needed(make.request().prompt) + 30)
    bench.provider.answer(answers.openai_stream(), name="hard")
    await bench.stream(connector="hard")


async def test_text_of_many_tokens_a_character_ends_at_the_cap(bench: Bench, step: int) -> None:
    connector = await hard(bench, 500)
    words = [part for _ in range(100) for part in (answers.chunk({"content": "海" * 15}), Wait(0.001))]
    bench.provider.answer([answers.EVENT_STREAM, *words, Silence()], name="hard")
    assert (await refusal(bench, connector="hard")).reason is Reason.CAP_REACHED
    assert (await use(bench, connector)).tokens <= 500 + 20


async def test_one_probe_goes_however_many_calls_ask_for_their_hold_at_once(bench: Bench) -> None:
    await hard(bench, 10**7)
    await bench.add("second", last_used_at=make.START)
    chain = FallbackMode.OWNER_CHAIN
    bench.provider.always_answer(answers.error(503), name="hard")
    bench.provider.always_answer(answers.openai_stream(), name="second")
    for _ in range(FAILURES_MAX):
        await bench.stream(connector="hard", fallback=chain, config=LIMITED)
    bench.clock.jump(COOL_DOWN_S)
    calls = [bench.stream(connector="hard", fallback=chain, config=LIMITED) for _ in range(20)]
    await asyncio.gather(*calls)
    assert len(bench.provider.asked("hard")) == FAILURES_MAX + 1


async def test_a_call_that_is_cancelled_before_its_probe_lets_another_probe(bench: Bench) -> None:
    connector = await hard(bench, 10**7)
    for _ in range(FAILURES_MAX):
        bench.breakers.ended(connector, "small", Reason.UPSTREAM_UNAVAILABLE, probe=False)
    bench.clock.jump(COOL_DOWN_S)
    async with bench.gateway.stream(bench.caller, make.request(connector="hard", config=LIMITED)):
        assert bench.breakers.is_open(connector.uid, "small"), "the probe is this call's"
    assert not bench.breakers.is_open(connector.uid, "small")
    assert (await use(bench, connector)).held == 0
