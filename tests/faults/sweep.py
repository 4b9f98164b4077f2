"""What sweeps of faults share: the calls that they make, and what holds of a call whatever became of it."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from sqlalchemy import func, select
from tests.support import answers
from tests.support.bench import QUIET, Bench, assembled
from tests.support.clock import Clock
from tests.support.provider import Reset, Script, Wait

from patchbay_server.core.admission import Room
from patchbay_server.core.gateway import CallLimits
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.store.sql import SqlStore
from patchbay_server.store.tables import holds
from patchbay_server.testing.stream_rules import check_stream
from patchbay_server.types import (
    AuditType,
    CallClosed,
    CallOpened,
    CallRow,
    CallState,
    CapMode,
    ChatAnswer,
    ChatCompleted,
    ChatEvent,
    FallbackMode,
    Record,
    month_of,
)
from patchbay_server.wire.upstream import Limits

WIDE_CAP: Final = 100_000
NO_ROOM: Final = 1
ERROR_NOW: Final = {"retry-after-ms": "1"}
"""Headers of a failure after which a retry need not wait."""
LONG_AGO_S: Final = 7 * 24 * 3600.0
"""Time after which no hold and no breaker's rest can still count."""

OPERATIONS: Final = (
    "snapshot",
    "version",
    "month_tokens",
    "hold_tokens",
    "cap_use",
    "mark_auth_invalid",
    "write_records",
)
"""What calls ask of a store."""

# --- the calls --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One call on a gateway made for it.

    Attributes:
        arrange: makes the connectors and scripts their providers; it is given the whole answer as a script.
        request: fields of the request.
        attempts: how many are made when nothing disturbs the call.
        fallbacks: how many of them follow an attempt at another connector.
        started_elsewhere: whether the first attempt is itself a fallback, unless it is at `main` after all.
    """

    name: str
    arrange: Callable[[Bench, Script], Awaitable[None]]
    request: Mapping[str, Any] = field(default_factory=dict)
    attempts: int = 1
    fallbacks: int = 0
    started_elsewhere: bool = False
    room: Room = field(default_factory=Room)


async def _alone(bench: Bench, whole: Script) -> None:
    await bench.add(is_default=True)
    bench.provider.answer(whole)


async def shared(bench: Bench, whole: Script, *first: Script, **fields: Any) -> None:
    """A connector that fails as `first` says, and the organisation's default, which answers."""
    await bench.add(is_default=True)
    shared = await bench.add("shared", owner="company", **fields)
    await bench.policy(organisation_default=shared.name)
    bench.provider.answer(*first)
    bench.provider.answer(whole, name="shared")


async def _limited(bench: Bench, whole: Script) -> None:
    await shared(bench, whole, answers.error(429))


async def _rejected(bench: Bench, whole: Script) -> None:
    await shared(bench, whole, answers.error(401))


async def _twice(bench: Bench, whole: Script) -> None:
    await shared(bench, whole, *[answers.error(503, headers=ERROR_NOW)] * 2, monthly_token_cap=WIDE_CAP)


async def _chain(bench: Bench, whole: Script) -> None:
    """The second has no room under its cap and is passed over, the third breaks, the fourth answers."""
    await bench.add(is_default=True)
    await bench.add("b-full", monthly_token_cap=NO_ROOM, cap_mode=CapMode.HARD)
    await bench.add("c-broken", monthly_token_cap=WIDE_CAP, cap_mode=CapMode.HARD)
    await bench.add("d-whole", monthly_token_cap=WIDE_CAP, cap_mode=CapMode.HARD)
    bench.provider.answer(answers.error(500))
    bench.provider.answer([answers.EVENT_STREAM, Reset()], name="c-broken")
    bench.provider.answer(_streamed_anyway(whole), name="d-whole")


async def _routed(bench: Bench, whole: Script) -> None:
    await bench.policy(quality_priors={"*/cheap-model": 0.9, "*/dear-model": 0.8})
    await bench.add("cheap", model_hint="cheap-model", monthly_token_cap=WIDE_CAP)
    await bench.add("dear", model_hint="dear-model", monthly_token_cap=WIDE_CAP, cap_mode=CapMode.HARD)
    bench.provider.answer(answers.error(500), name="cheap")
    bench.provider.answer(_streamed_anyway(whole), name="dear")


async def _soft(bench: Bench, whole: Script) -> None:
    await bench.add(is_default=True, monthly_token_cap=WIDE_CAP)
    bench.provider.answer(whole)


async def _hard(bench: Bench, whole: Script) -> None:
    await bench.add(is_default=True, monthly_token_cap=WIDE_CAP, cap_mode=CapMode.HARD)
    bench.provider.answer(_streamed_anyway(whole))


async def _diverted(bench: Bench, whole: Script) -> None:
    await shared(bench, whole, answers.error(503))
    await _break(bench)


async def _probing(bench: Bench, whole: Script) -> None:
    await shared(bench, whole, answers.error(503))
    await _break(bench)
    bench.clock.jump(31.0)


async def _break(bench: Bench) -> None:
    """Let the breaker of the first connector open."""
    main = await bench.store.find_connector("acme", "main")
    assert main is not None
    for _ in range(5):
        bench.breakers.ended(main, "small", Reason.UPSTREAM_UNAVAILABLE, probe=False)
    assert bench.breakers.is_open(main.uid, "small")


def _streamed_anyway(whole: Script) -> Script:
    """An answer without a limit is streamed where a hard cap has to be watched."""
    return whole if whole[0] is answers.EVENT_STREAM else _dripping(answers.openai_stream())


def _dripping(script: Script) -> Script:
    """The same answer, each of its events a network read of its own."""
    head, *events = script
    return [head, *(step for event in events for step in (Wait(0.0), event))]


ORG_DEFAULT: Final = {"fallback": FallbackMode.ORG_DEFAULT}
OWNER_CHAIN: Final = {"fallback": FallbackMode.OWNER_CHAIN}
CASES: Final = {
    case.name: case
    for case in (
        Case("alone", _alone),
        Case("org default", _limited, ORG_DEFAULT, attempts=2, fallbacks=1),
        Case("rejected key", _rejected, ORG_DEFAULT, attempts=2, fallbacks=1),
        Case("retry", _twice, {"fallback": FallbackMode.RETRY_THEN_ORG_DEFAULT}, attempts=3, fallbacks=1),
        Case("owner chain", _chain, OWNER_CHAIN, attempts=3, fallbacks=2),
        Case("routed", _routed, {"model": "patchbay/auto", **OWNER_CHAIN}, attempts=2, fallbacks=1),
        Case("soft cap", _soft),
        Case("hard cap", _hard),
        Case("breaker open", _diverted, ORG_DEFAULT, fallbacks=1, started_elsewhere=True),
        Case("probe", _probing, ORG_DEFAULT, attempts=2, fallbacks=1),
        Case("queued", _alone, room=Room(calls_max=1)),
    )
}


@dataclass
class Run:
    """One call being made, what is seen of it from outside, and how it ended.

    Attributes:
        asked: the connectors that attempts were made at, in order.
        opened: ids of calls whose opening record was handed to the recorder.
        closing: whether its closing record was.
        answer, error: what its caller got.
        other: another call, which takes the only place for a while.
    """

    bench: Bench
    case: Case
    streaming: bool
    asked: list[str] = field(default_factory=list)
    opened: list[str] = field(default_factory=list)
    closing: bool = False
    answer: ChatAnswer | None = None
    error: BaseException | None = None
    other: "asyncio.Task[None] | None" = None

    @property
    def reason(self) -> Reason | None:
        return self.error.reason if isinstance(self.error, PatchbayError) else None

    async def make(self, *, leave_after: int | None = None) -> None:
        """Make the call; what ends it is kept.

        Args:
            leave_after: batches of events after which the caller of a stream leaves it.
        """
        try:
            self.answer = await self._call(leave_after)
        except (PatchbayError, asyncio.CancelledError) as error:
            self.error = error

    async def _call(self, leave_after: int | None) -> ChatAnswer | None:
        if not self.streaming:
            return await self.bench.chat(**self.case.request)
        events: list[ChatEvent] = []
        batches = 0
        async with aclosing(self.bench.batches(**self.case.request)) as following:  # type: ignore[type-var]
            async for batch in following:
                assert not any(isinstance(event, ChatCompleted) for event in events), "a stream went on after its end"
                events += batch
                batches += 1
                if batches == leave_after and not isinstance(events[-1], ChatCompleted):
                    return None
        check_stream(events)
        last = events[-1]
        assert isinstance(last, ChatCompleted)
        return last.answer

    def _watch(self) -> None:
        write, start = self.bench.recorder.write, self.bench.exchange.start

        def noting(*records: Record) -> asyncio.Future[None]:
            self.opened += [record.call_id for record in records if isinstance(record, CallOpened)]
            self.closing = self.closing or any(isinstance(record, CallClosed) for record in records)
            return write(*records)

        def starting(candidate: Any, *args: Any, **named: Any) -> Any:
            self.asked.append(candidate.connector.uid)
            return start(candidate, *args, **named)

        self.bench.recorder.write = noting  # type: ignore[method-assign]
        self.bench.exchange.start = starting  # type: ignore[method-assign]

    # --- what holds at its end ---

    async def check(self) -> CallRow | None:
        """What holds whatever was done to the call: nothing is left of it but its record, which tells the truth.

        A record that was given up because the store was gone is left to the next start, as the server does it.

        Returns:
            the call's record; None when none was opened, or none could be.
        """
        bench = self.bench
        if self.other is not None:
            await self.other
        await bench.recorder.flush()
        bench.records_lost = bench.recorder.calls_without_record
        assert bench.records_lost <= 1
        await bench.store.close_interrupted("the next process", bench.clock.now())
        assert bench.gateway.queued == 0
        assert bench.gateway._admission.running == 0, "a place was not given back"
        assert len(self.opened) <= 1, "a call was opened twice"
        row = await bench.store.find_call(self.opened[0]) if self.opened else None
        if row is None:
            assert not self.opened or bench.records_lost, "a call left no record"
            assert self.opened or not bench.provider.requests, "a provider was asked for a call without a record"
            assert self.answer is None
        else:
            await self._check_row(row)
        await self._check_holds(row)
        self._check_breakers()
        return row

    async def _check_row(self, row: CallRow) -> None:
        lost = self.bench.records_lost
        assert row.closed is not None
        assert row.state is not CallState.OPEN
        assert row.closed.attempts == len(row.attempts)
        assert all(attempt.closed is not None for attempt in row.attempts), "an attempt's record is still open"
        assert [attempt.opened.number for attempt in row.attempts] == [*range(1, len(row.attempts) + 1)]
        recorded = [attempt.opened.connector_uid for attempt in row.attempts]
        assert recorded == self.asked or (lost and recorded == self.asked[: len(recorded)])
        requests = Counter(f"uid-{owner_of(name)}-{name}" for name in map(_first_segment, self._paths()))
        assert lost or not requests - Counter(recorded), "a provider was asked without a record of the attempt"
        await self._check_fallbacks(row, recorded)
        await self._check_month(row)
        self._check_end(row, lost=bool(lost))

    async def _check_fallbacks(self, row: CallRow, recorded: Sequence[str]) -> None:
        events = [e for e in await self.bench.audits(AuditType.FALLBACK_TRIGGERED) if e.call_id == row.opened.call_id]
        elsewhere = self.case.started_elsewhere and recorded[:1] != ["uid-acme-main"]
        first = recorded[:1] if elsewhere else []
        followed = [after for before, after in pairwise(recorded) if after != before]
        assert [event.connector_uid for event in sorted(events, key=lambda e: e.sequence)] == [*first, *followed]

    async def _check_month(self, row: CallRow) -> None:
        """What connectors are said to have used is what their attempts used."""
        used: Counter[tuple[str, str]] = Counter()
        for attempt in row.attempts:
            assert attempt.closed is not None
            if attempt.closed.usage is not None:
                usage = attempt.closed.usage
                month = month_of(attempt.closed.ended_at)
                used[attempt.opened.connector_uid, month] += usage.input_tokens + usage.output_tokens
        for (uid, month), tokens in used.items():
            assert await self.bench.store.month_tokens([uid], month) == {uid: tokens}

    def _check_end(self, row: CallRow, *, lost: bool) -> None:
        """The caller was told what is recorded."""
        assert row.closed is not None
        if self.answer is not None:
            assert row.state is CallState.SUCCEEDED
            assert "".join(part.text for part in self.answer.message.parts) == answers.TEXT  # type: ignore[union-attr]
            assert row.attempts[-1].state is CallState.SUCCEEDED
            assert not lost, "an answer was given whose record was lost"
        elif isinstance(self.error, PatchbayError) and not lost:
            assert (row.state, row.closed.reason) == (CallState.FAILED, self.error.reason)
        if self.reason is not None:
            assert self.reason not in {Reason.INTERNAL, Reason.CANCELLED}
        assert row.closed.reason is not Reason.INTERNAL
        assert all(attempt.closed and attempt.closed.reason is not Reason.INTERNAL for attempt in row.attempts)

    async def _check_holds(self, row: CallRow | None) -> None:
        """Holds are given back with the record; those of a call whose opening was never written run out."""
        if row is None:
            self.bench.clock.jump(LONG_AGO_S)
        assert await held(self.bench, expired=row is not None) == 0, "tokens of a cap are still held"

    def _check_breakers(self) -> None:
        """Whatever became of a probe, another may go."""
        self.bench.clock.jump(LONG_AGO_S)
        assert all(state.half_open for state in self.bench.gateway.breakers)
        assert not [key for key in self.bench.breakers._failing if self.bench.breakers.is_open(*key)]

    def _paths(self) -> list[str]:
        return [request.path for request in self.bench.provider.requests]


def _first_segment(path: str) -> str:
    return path.split("/")[1]


def owner_of(name: str) -> str:
    return "company" if name == "shared" else "acme"


async def held(bench: Bench, *, expired: bool) -> int:
    """Tokens of caps that attempts hold; with `expired`, also those that time has freed and nobody has given back."""
    now = bench.clock.now()
    if not expired:
        uids = [connector.uid for owner in ("acme", "company") for connector in (await _connectors(bench, owner))]
        return sum(use.held for use in (await bench.store.cap_use(uids, month_of(now), now)).values())
    if isinstance(bench.store, SqlStore):
        total = select(func.coalesce(func.sum(holds.c.tokens), 0))
        return int(await bench.store._database.read(lambda tx: tx.execute(total).scalar_one()))
    return sum(hold.tokens for hold in bench.store._holds.values())


async def _connectors(bench: Bench, owner: str) -> Sequence[Any]:
    return (await bench.store.snapshot(owner)).connectors


@asynccontextmanager
async def run(
    case: Case, *, streaming: bool, sqlite: Path | None = None, clock: Clock | None = None, limits: Limits = QUIET
) -> AsyncIterator[Run]:
    """A call that is ready to be made. Leaving it checks the invariants of a bench; `Run.check` is the user's."""
    async with assembled(clock=clock, sqlite=sqlite, limits=limits, calls=CallLimits(room=case.room)) as bench:
        await case.arrange(bench, _dripping(answers.openai_stream()) if streaming else answers.openai_unary())
        for name in OPERATIONS:
            _answer_later(bench.store, name)
        this = Run(bench, case, streaming)
        this._watch()
        if case.room.calls_max == 1:
            taken = asyncio.Event()
            this.other = asyncio.create_task(_take_the_place(bench, taken))
            await taken.wait()
        yield this


def _answer_later(store: object, name: str) -> None:
    """Let the work of an operation be done a turn before its answer comes, as where a database does it."""
    real: Callable[..., Awaitable[Any]] = getattr(store, name)

    async def later(*args: Any, **named: Any) -> Any:
        answer = await real(*args, **named)
        await asyncio.sleep(0)
        return answer

    setattr(store, name, later)


async def _take_the_place(bench: Bench, taken: asyncio.Event) -> None:
    """Another call that runs a little longer."""
    async with bench.gateway._admission.place("another"):
        taken.set()
        await asyncio.sleep(0.003)
