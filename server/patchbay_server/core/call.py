"""One admitted call, from its first attempt to its record: the one state machine that every end of a call goes through.

Tries the plan's candidates in their order, passes events up, keeps deadlines and hard caps, and settles: upstream
closed, record closed, holds given back, once, whatever ended the call.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from datetime import datetime, timedelta
from typing import Final

import msgspec

from patchbay_server.core import estimate
from patchbay_server.core.attempt import Exchange
from patchbay_server.core.breaker import Breakers
from patchbay_server.core.choose import Candidate, Plan, as_seen_by, visible_name
from patchbay_server.core.clock import Clock
from patchbay_server.core.health import Health
from patchbay_server.core.meter import HOLD_MARGIN_S, Meter, is_hard
from patchbay_server.core.progress import Progress
from patchbay_server.core.record import CallRecord
from patchbay_server.core.snapshots import Snapshots
from patchbay_server.core.tally import Tally
from patchbay_server.errors import FallBack, PartialResult, PatchbayError, Reason, UpstreamFailure
from patchbay_server.market.prices import PriceList
from patchbay_server.market.qualities import QualityList
from patchbay_server.types import (
    Attempt as AttemptSummary,
)
from patchbay_server.types import (
    AuditEvent,
    AuditType,
    Caller,
    CallState,
    ChatAnswer,
    ChatCompleted,
    ChatEvent,
    ChatRequest,
    ChatStarted,
    Connector,
    Event,
    Finished,
    Hold,
    Message,
    Notice,
    NoticeCode,
    ResolvedBy,
    Role,
    Route,
    Snapshot,
    UpstreamMode,
    UsageUpdated,
)
from patchbay_server.usage import Usage, total

log = logging.getLogger(__name__)

RETRY_WAIT_S: Final = 0.5
"""Wait before the retry of a connector whose provider named no time."""
RETRY_WAIT_S_MAX: Final = 60.0
"""A provider that wants more time is not waited for."""
ATTEMPT_TIME_MIN_S: Final = 1.0
"""No further attempt starts with less time than this left."""
WHOLE_ANSWER_SHARE: Final = 0.75
"""How much of the time that is left a whole answer may take while others could still be asked."""
OUTPUT_TOKENS_STEP: Final = 4_096
"""What is held of a hard cap for an answer without a limit, at first and each time that it comes to the end of it; less
where no more is left.
"""

_TRIGGERS: Final = {
    Reason.UPSTREAM_RATE_LIMITED: "rate_limited",
    Reason.UPSTREAM_CREDENTIAL_REJECTED: "auth_invalid",
    Reason.UPSTREAM_BILLING_EXHAUSTED: "quota_exceeded",
}
_BREAKER_OPEN: Final = "breaker_open"
"""What a fallback is triggered by when the first candidate was passed over because it failed of late."""


class Means(msgspec.Struct, frozen=True, kw_only=True):
    """What calls are made with, one set per process."""

    exchange: Exchange
    snapshots: Snapshots
    meter: Meter
    health: Health
    breakers: Breakers
    tally: Tally
    prices: PriceList
    qualities: QualityList
    clock: Clock


class Admitted(msgspec.Struct, frozen=True, kw_only=True):
    """A call as admitted: who, what, and which connectors may answer. Nothing of it changes afterwards."""

    call_id: str
    created_at: datetime
    caller: Caller
    owner: str
    request: ChatRequest
    snapshot: Snapshot
    plan: Plan
    streaming: bool
    call_s: float
    """Seconds that the call may take from now."""


class RunningCall:
    """One admitted call. Made by `Gateway.stream` and valid inside it."""

    def __init__(self, admitted: Admitted, record: CallRecord, means: Means) -> None:
        self.admitted = admitted
        self._limit: asyncio.Timeout | None = None
        self._cut_by: PatchbayError | None = None
        self._record = record
        self._means = means
        self._clock = means.clock
        self._ends_at = means.clock.monotonic() + admitted.call_s
        self._upstream = AsyncExitStack()
        self._waiting = deque(admitted.plan.candidates)
        self._failed_tries: list[AttemptSummary] = []
        self._try: Progress | None = None
        self._upcoming: Progress | None = None
        """An attempt that is ready and not opened yet."""
        self._ready = False
        self._said_last = False

    @property
    def call_id(self) -> str:
        return self.admitted.call_id

    @property
    def durable(self) -> asyncio.Future[None]:
        """Done when the call's opening record is durable: from then on the call is admitted for all to see.

        Raises:
            PatchbayError: DEPENDENCY_UNAVAILABLE when it cannot be written.
        """
        return self._record.durable

    @property
    def settled(self) -> bool:
        return self._record.closed

    @property
    def overdue(self) -> bool:
        return self._left_s <= 0

    @asynccontextmanager
    async def limited(self) -> AsyncIterator[None]:
        """The time that the call may take. Raises: PatchbayError: DEADLINE_EXCEEDED, or what it was cut by."""
        try:
            async with asyncio.timeout(self.admitted.call_s) as limit:
                self._limit = limit
                try:
                    yield
                finally:
                    self._limit = None
        except TimeoutError:
            if not limit.expired():
                raise
            raise self._cut_by or deadline_passed() from None

    def cut(self, error: PatchbayError) -> None:
        """End the call with `error` from another task, unless it is ending already. A call whose end is being recorded
        is cut once its last words are on their way.
        """
        if self._limit is not None and not self._limit.expired():
            self._cut_by = error
            if not self.settled or self._said_last:
                self._limit.reschedule(asyncio.get_running_loop().time())

    def say_last(self) -> None:
        """The terminal event is on its way to the caller. From now on the limits hold again: they cannot change any
        more what the call came to, and a caller that does not read must not keep it for ever.
        """
        self._said_last = True
        if self._limit is not None and not self._limit.expired():
            left_s = 0.0 if self._cut_by is not None else max(self._left_s, 0.0)
            self._limit.reschedule(asyncio.get_running_loop().time() + left_s)

    async def get_ready(self) -> None:
        """Make the first attempt ready, before anything is asked or told. Once, and before `events`.

        Raises:
            PatchbayError: why the call cannot start: the plan's failure, CAP_REACHED, DEPENDENCY_UNAVAILABLE.
        """
        self.admitted.plan.checked()
        self._try = await self._next_try(may_retry=self.admitted.plan.retry_first)
        self._ready = True

    async def events(self) -> AsyncGenerator[list[ChatEvent]]:
        """`ChatStarted`, deltas, `ChatCompleted`; what arrived in one network read comes together. Used once, and
        closed by its user.

        Raises:
            PatchbayError: why the call failed; `Gateway.stream` completes and records it.
        """
        if self.overdue:
            raise deadline_passed()
        if self._try is None:
            raise AssertionError("a call is made ready before it is followed")
        this = self._try
        may_retry = self.admitted.plan.retry_first
        audit = self._diverted(this)
        while True:
            try:
                async with aclosing(self._attempt(this, audit)) as batches:
                    async for batch in batches:
                        yield batch
            except PatchbayError as error:
                failure = this.failure = this.judged(error)
            else:
                return
            await self._note_rejection(this.candidate, failure)
            if this.committed or failure.reason in _OF_THE_GATEWAY:
                raise failure
            again = may_retry and self._worth_a_retry(this, failure)
            may_retry = False
            self._failed_tries.append(self._summary(this.candidate, this.started, failure.reason))
            if failure.rule.fall_back is FallBack.NEVER:
                refused = self._waiting or failure.reason is Reason.CONTENT_POLICY_VIOLATION
                raise failure if refused else self._all_failed(failure)
            following = None if again else await self._fallback(failure)
            if not again and following is None:
                raise self._all_failed(failure)
            await self._end_try(this, failure)
            if following is None:
                await asyncio.sleep(_retry_wait_s(failure))
                self._waiting.appendleft(this.candidate)
                try:
                    following = await self._next_try(may_retry=False)
                except PatchbayError:
                    raise self._all_failed(failure) from None
            same = following.candidate is this.candidate
            audit = None if same else self._fallback_event(failure.reason, following.candidate.connector)
            this = self._try = following

    async def answer(self) -> ChatAnswer:
        """The events folded into the one answer that ends them. Used once, in place of `events`; raises as it does."""
        answer: ChatAnswer | None = None
        async with aclosing(self.events()) as batches:
            async for batch in batches:
                if isinstance(batch[-1], ChatCompleted):
                    answer = batch[-1].answer
        if answer is None:
            raise AssertionError("a stream of events ends with ChatCompleted or an error")
        return answer

    # --- the ends ---

    async def fail(self, error: PatchbayError) -> PatchbayError:
        """Settle a call that failed: the error as the caller is to see it, once its record is durable."""
        judged = self._try.judged(error) if self._try else error
        upstream = self._upstream_failure(judged)
        durable = self._settle(CallState.FAILED, judged.reason, upstream)
        failure = self._described(judged, upstream)
        await self._upstream.aclose()
        if durable is not None:
            await _written(durable)
        return failure

    async def cancel(self) -> None:
        """Settle a call whose caller has gone. Nobody waits for its record, which is queued when this returns."""
        self._settle(CallState.CANCELLED, Reason.CANCELLED)
        await self._upstream.aclose()

    async def leave(self) -> None:
        """Close what the call opened. A caller that leaves before the end has gone."""
        if self.settled:
            await self._upstream.aclose()
        else:
            await self.cancel()

    def _settle(
        self, state: CallState, reason: Reason, failure: UpstreamFailure | None = None
    ) -> asyncio.Future[None] | None:
        """Close the record unless it is closed. Awaits nothing, so that no second cancel can come in between."""
        if self.settled:
            return None
        self._let_go_of_probe()
        this = self._try
        own = this.failure.reason if this and this.failure else reason
        usage = self._ended(this, own, self._spent(this)) if this and self._record.attempt_open else None
        self._means.tally.ends[state, reason] += 1
        return self._record.close(state, reason, attempt_reason=own, failure=failure, usage=usage)

    def _let_go_of_probe(self) -> None:
        """The attempt that was about to be made is not: another call may probe the connector."""
        this = self._upcoming
        if this is not None:
            self._means.breakers.ended(
                this.candidate.connector, this.candidate.model, Reason.CANCELLED, probe=this.probe
            )

    async def _end_try(self, this: Progress, failure: PatchbayError) -> None:
        """Close an attempt that another one follows."""
        usage = self._ended(this, failure.reason, self._spent(this))
        self._record.close_attempt(CallState.FAILED, failure.reason, failure.upstream or UpstreamFailure(), usage)
        self._try = None
        await self._upstream.aclose()

    async def _complete(self, this: Progress, finished: Finished, notices: tuple[Notice, ...]) -> ChatCompleted:
        """The terminal event, once its record is durable."""
        usage = finished.usage or this.reported
        notices += finished.notices
        if usage is None:
            usage = this.estimate()
            notices += (_ESTIMATED,)
        usage = self._ended(this, None, self._priced(this, usage))
        answering = self._summary(this.candidate, this.started, None)
        durable = self._record.close(CallState.SUCCEEDED, usage=usage, finish_reason=finished.finish_reason)
        if self._limit is not None and not self._limit.expired():
            # Nobody may be told that the call failed whose record, on its way to the disk, says that it succeeded.
            self._limit.reschedule(None)
        try:
            await durable
        except PatchbayError as error:
            self._means.tally.ends[CallState.FAILED, error.reason] += 1
            raise
        self._means.tally.ends[CallState.SUCCEEDED, None] += 1
        return ChatCompleted(
            answer=ChatAnswer(
                call_id=self.call_id,
                created_at=self.admitted.created_at,
                route=self._route(this, (*self._failed_tries, answering)),
                message=Message(role=Role.ASSISTANT, parts=tuple(this.parts[index] for index in sorted(this.parts))),
                finish_reason=finished.finish_reason,
                provider_finish_reason=finished.provider_finish_reason,
                usage=self._record.usage or Usage(),
                notices=notices,
            )
        )

    def _ended(self, this: Progress, reason: Reason | None, usage: Usage | None) -> Usage | None:
        """Count an attempt that ended, and what it used, wherever that is counted; its record is the caller's."""
        candidate = this.candidate
        told = Reason.DEADLINE_EXCEEDED if this.cut_short else reason
        self._means.breakers.ended(candidate.connector, candidate.model, told, probe=this.probe)
        if usage is not None:
            self._means.meter.add(candidate.connector.uid, usage.input_tokens + usage.output_tokens)
            self._means.tally.unpriced += usage.cost_usd_nanos is None
        return usage

    def _spent(self, this: Progress) -> Usage | None:
        spent = this.spent()
        return None if spent is None else self._priced(this, spent)

    def _priced(self, this: Progress, usage: Usage) -> Usage:
        candidate, policy = this.candidate, self.admitted.snapshot.policy
        cost = self._means.prices.cost_usd_nanos(
            candidate.connector.type, candidate.model, usage, policy, on=self.admitted.created_at.date()
        )
        return msgspec.structs.replace(usage, cost_usd_nanos=cost)

    # --- one attempt ---

    async def _attempt(self, this: Progress, audit: AuditEvent | None) -> AsyncGenerator[list[ChatEvent]]:
        """One candidate's answer. Events are held until the first that a caller would miss, unless no other candidate
        is left; until then the attempt has its share of the time, no more.
        """
        candidate = this.candidate
        self._upcoming = None
        self._record.open_attempt(candidate, audit)
        self._means.snapshots.used(candidate.connector.uid, self._clock.now())
        try:
            async with asyncio.timeout(self._share_s(this)) as share:
                attempt = await self._upstream.enter_async_context(
                    self._means.exchange.start(
                        candidate,
                        self.admitted.request.prompt,
                        call_id=self.call_id,
                        streaming=this.streaming,
                        whole_welcome=not self.admitted.streaming,
                        policy=self.admitted.snapshot.policy,
                    )
                )
                this.accepted = True
                async with aclosing(attempt.batches()) as batches:
                    async for batch in batches:
                        events = self._taken(this, batch)
                        if this.has_output or this.finished is not None:
                            share.reschedule(None)
                        if not this.committed and this.may_commit:
                            await asyncio.shield(self._record.durable)  # which others wait for, too
                            this.committed = True
                            events = [self._started(this), *this.held, *events]
                        if this.committed and events:
                            yield events
                        elif events:
                            # Of running totals the last count; a whole answer holds its other events anyway.
                            this.held = events[-1:]
                        if this.finished is not None:
                            yield [await self._complete(this, this.finished, attempt.notices)]
                            return
                        await self._keep_within_cap(this)
        except TimeoutError:
            if not share.expired():
                raise
            this.cut_short = True
            raise PatchbayError(
                Reason.UPSTREAM_TIMEOUT,
                "the provider was silent for its share of the call's time; the rest is for other connectors",
            ) from None
        raise PatchbayError(Reason.UPSTREAM_TRUNCATED, "the provider's answer ended before it was complete")

    def _taken(self, this: Progress, batch: list[Event]) -> list[ChatEvent]:
        """The provider's events as the caller's, counted; running totals are the whole call's."""
        events = this.take(batch)
        if this.has_output:
            self._record.note_output()
        before = self._record.usage
        if before is None:
            return events
        return [
            UsageUpdated(total(before, event.usage) or event.usage) if isinstance(event, UsageUpdated) else event
            for event in events
        ]

    def _share_s(self, this: Progress) -> float | None:
        """Seconds in which an attempt must begin to answer, so that those after it get their chance; None where there
        are none. A provider that does not stream begins when it is done: it gets the greater part.
        """
        if not self._waiting:
            return None
        part = 1 / (len(self._waiting) + 1) if this.streaming else WHOLE_ANSWER_SHARE
        return max(self._left_s * part, ATTEMPT_TIME_MIN_S)

    def _started(self, this: Progress) -> ChatStarted:
        return ChatStarted(
            call_id=self.call_id,
            created_at=self.admitted.created_at,
            route=self._route(this, tuple(self._failed_tries)),
        )

    # --- who is next ---

    async def _next_try(self, *, may_retry: bool) -> Progress:
        """The next candidate that its cap lets answer, with what it has to hold. Those passed over are named in the
        answer.

        Raises:
            PatchbayError: CAP_REACHED, DEPENDENCY_UNAVAILABLE of the last that could not be asked.
        """
        while True:
            candidate = self._waiting.popleft()
            try:
                self._check_fit(candidate)
                hold = await self._claim(candidate)
            except PatchbayError as error:
                if not self._waiting or not (self._failed_tries or self.admitted.plan.routing):
                    raise
                self._failed_tries.append(self._summary(candidate, self._clock.monotonic(), error.reason))
                continue
            if self._better_asked_last(candidate):
                self._waiting.append(candidate)
                continue
            this = Progress(
                candidate,
                self.admitted.request.prompt,
                self._clock.monotonic(),
                alone=not self._waiting and not may_retry,
                streaming=self._streams(candidate),
                delivers=self.admitted.streaming,
            )
            this.hold = hold
            this.probe = self._means.breakers.started(candidate.connector.uid, candidate.model)
            self._upcoming = this
            return this

    def _check_fit(self, candidate: Candidate) -> None:
        """Of a routed call: whether a candidate can take the request. The first one was looked at when it was chosen.

        Raises:
            PatchbayError: why it cannot.
        """
        admitted = self.admitted
        if admitted.plan.routing is not None and candidate is not admitted.plan.candidates[0]:
            self._means.exchange.rehearse(
                candidate,
                admitted.request.prompt,
                owner=admitted.owner,
                streaming=admitted.streaming,
                policy=admitted.snapshot.policy,
            )

    def _better_asked_last(self, candidate: Candidate) -> bool:
        """Whether a candidate's breaker has opened since the plan was made, while another's has not."""
        is_open = self._means.breakers.is_open
        others = any(not is_open(other.connector.uid, other.model) for other in self._waiting)
        return others and is_open(candidate.connector.uid, candidate.model)

    async def _fallback(self, failure: PatchbayError) -> Progress | None:
        """The attempt that follows a failed one; None when nobody is left who can be asked in time."""
        if not self._waiting or self._left_s < ATTEMPT_TIME_MIN_S:
            return None
        last = self._waiting[-1]
        try:
            return await self._next_try(may_retry=False)
        except PatchbayError as error:
            log.debug("call %s: nobody is left to fall back to: %s", self.call_id, error.reason.value)
            self._failed_tries.append(self._summary(last, self._clock.monotonic(), error.reason))
            return None

    async def _claim(self, candidate: Candidate) -> Hold | None:
        """Have the cap's leave for an attempt: under a hard cap, by holding what it can use at the most."""
        connector = candidate.connector
        if not is_hard(connector):
            await self._means.meter.check_cap(connector, self.admitted.owner)
            return None
        # What is held for a call that is not recorded, nobody could give back if the process died now.
        await asyncio.shield(self._record.durable)
        prompt = self.admitted.request.prompt
        limit = estimate.output_limit(prompt)
        hold = Hold(
            call_id=self.call_id,
            number=self._record.attempts + 1,
            connector_uid=connector.uid,
            tokens=estimate.input_bound(prompt) + (limit or 0),
            expires_at=self._clock.now() + timedelta(seconds=max(self._left_s, 0.0) + HOLD_MARGIN_S),
        )
        if limit is None:
            return await self._hold_some_more(connector, hold)
        await self._means.meter.hold(connector, self.admitted.owner, hold)
        return hold

    async def _hold_some_more(self, connector: Connector, hold: Hold) -> Hold:
        """`hold` with a step more, or with less where no whole step is left. Raises: PatchbayError: CAP_REACHED."""
        for step in (OUTPUT_TOKENS_STEP, OUTPUT_TOKENS_STEP // 16, 1):
            larger = msgspec.structs.replace(hold, tokens=hold.tokens + max(step, 1))
            try:
                await self._means.meter.hold(connector, self.admitted.owner, larger)
            except PatchbayError as error:
                if error.reason is not Reason.CAP_REACHED or step <= 1:
                    raise
            else:
                return larger
        raise AssertionError("the last step is granted or raises")

    async def _keep_within_cap(self, this: Progress) -> None:
        """Hold more when an answer outgrows what is held for it. Raises: PatchbayError: CAP_REACHED."""
        if this.hold is None:
            return
        tokens = this.tokens()
        if tokens >= this.hold.tokens:
            used = msgspec.structs.replace(this.hold, tokens=tokens)
            this.hold = await self._hold_some_more(this.candidate.connector, used)

    def _streams(self, candidate: Candidate) -> bool:
        """Whether the provider is asked to stream: also for a whole answer, where a hard cap must be kept while it
        grows.
        """
        unlimited = estimate.output_limit(self.admitted.request.prompt) is None
        watched = is_hard(candidate.connector) and unlimited and self._means.exchange.can_stream(candidate.connector)
        return self.admitted.streaming or watched

    def _worth_a_retry(self, this: Progress, failure: PatchbayError) -> bool:
        """Whether the same connector may be asked once more: it could answer, and there is time to wait and ask."""
        candidate = this.candidate
        wait_s = _retry_wait_s(failure)
        needed_s = wait_s + ATTEMPT_TIME_MIN_S * (1 + len(self._waiting))
        return (
            failure.rule.fall_back is not FallBack.NEVER
            and failure.reason not in _NO_BETTER_AGAIN
            and wait_s <= RETRY_WAIT_S_MAX
            and needed_s <= self._left_s
            and not self._means.breakers.is_open(candidate.connector.uid, candidate.model)
        )

    async def _note_rejection(self, candidate: Candidate, failure: PatchbayError) -> None:
        if failure.reason is Reason.UPSTREAM_CREDENTIAL_REJECTED:
            await self._means.health.rejected(candidate.connector, actor=self.admitted.caller.id, call_id=self.call_id)

    def _diverted(self, this: Progress) -> AuditEvent | None:
        """The audit event of a call that starts at a fallback, because the breaker of the first choice is open."""
        if this.candidate.resolved_by is not ResolvedBy.FALLBACK:
            return None
        return self._fallback_event(None, this.candidate.connector)

    def _fallback_event(self, trigger: Reason | None, to: Connector) -> AuditEvent:
        qualifier = _TRIGGERS.get(trigger, "provider_unavailable") if trigger else _BREAKER_OPEN
        self._means.tally.fallbacks[qualifier] += 1
        return AuditEvent(
            type=AuditType.FALLBACK_TRIGGERED,
            at=self._clock.now(),
            actor=self.admitted.caller.id,
            subject=to.name,
            owner=to.owner,
            connector_uid=to.uid,
            qualifier=qualifier,
            call_id=self.call_id,
        )

    # --- what is told ---

    @property
    def _left_s(self) -> float:
        return self._ends_at - self._clock.monotonic()

    def _route(self, this: Progress, attempts: tuple[AttemptSummary, ...]) -> Route:
        candidate = this.candidate
        return Route(
            connector=visible_name(candidate.connector, self.admitted.owner),
            provider=candidate.connector.type,
            requested_model=self.admitted.request.model,
            model=this.model or candidate.model,
            upstream_request_id=this.upstream_id,
            resolved_by=candidate.resolved_by,
            mode=UpstreamMode.STREAMING if this.streaming else UpstreamMode.UNARY,
            attempts=attempts,
        )

    def _summary(self, candidate: Candidate, started: float, reason: Reason | None) -> AttemptSummary:
        return AttemptSummary(
            connector=visible_name(candidate.connector, self.admitted.owner),
            model=candidate.model,
            reason=reason,
            latency_s=self._clock.monotonic() - started,
        )

    def _all_failed(self, failure: PatchbayError) -> PatchbayError:
        """The last failure itself when only one connector could be asked, else one that names each attempt's reason."""
        if len({(attempt.connector, attempt.model) for attempt in self._failed_tries}) == 1:
            return failure
        told = ", ".join(attempt.reason.value for attempt in self._failed_tries if attempt.reason is not None)
        return PatchbayError(
            Reason.ALL_CANDIDATES_FAILED,
            f"all candidates failed: {told}",
            retry_after_s=failure.retry_after_s,
            upstream=failure.upstream,
        )

    def _upstream_failure(self, error: PatchbayError) -> UpstreamFailure | None:
        """What is known of the provider's part in a failure, with what the call adds to it."""
        if self._try is None or not (error.upstream or error.reason.value.startswith("UPSTREAM_")):
            return error.upstream
        connector = self._try.candidate.connector
        return msgspec.structs.replace(
            error.upstream or UpstreamFailure(),
            provider=connector.type,
            connector=visible_name(connector, self.admitted.owner),
            attempt_count=self._record.attempts,
        )

    def _described(self, error: PatchbayError, upstream: UpstreamFailure | None) -> PatchbayError:
        """`error` as the caller is to see it, with what was delivered before; without that where nothing was attempted,
        so that the caller may simply call again.
        """
        if self._try is not None:
            error = as_seen_by(error, self._try.candidate.connector, self.admitted.owner)
        return PatchbayError(
            error.reason,
            error.message,
            violations=error.violations,
            retry_after_s=error.retry_after_s,
            quota=error.quota,
            upstream=upstream,
            partial=PartialResult(call_id=self.call_id, usage=self._record.usage or Usage()) if self._ready else None,
        )


_NO_BETTER_AGAIN: Final = frozenset(
    {Reason.UPSTREAM_CREDENTIAL_REJECTED, Reason.UPSTREAM_BILLING_EXHAUSTED, Reason.UPSTREAM_TIMEOUT}
)
"""Failures after which asking the same connector again would waste what time is left."""
_OF_THE_GATEWAY: Final = frozenset({Reason.DEPENDENCY_UNAVAILABLE, Reason.INTERNAL})
"""Failures that say nothing of the connector that was asked: no other one would fare better."""
_ESTIMATED: Final = Notice(
    code=NoticeCode.USAGE_ESTIMATED, message="the provider reported no usage; it is estimated", field="usage"
)


def _retry_wait_s(failure: PatchbayError) -> float:
    return RETRY_WAIT_S if failure.retry_after_s is None else failure.retry_after_s


def deadline_passed() -> PatchbayError:
    return PatchbayError(
        Reason.DEADLINE_EXCEEDED,
        "the deadline, or the longest time that a call may take, passed before the answer was complete",
    )


async def _written(durable: asyncio.Future[None]) -> None:
    """Wait for a record of a failure; the failure is what the caller hears, even if its record cannot be written."""
    try:
        await durable
    except PatchbayError as error:
        log.debug("the record of a failed call was given up: %s", error.message)
