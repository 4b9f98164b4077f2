"""The one path of every call: admit, open the record, try connectors in their order, pass events up, settle.

`Chat` and `Stream` are the same path; a unary answer is a stream of events that nobody watched, so the two cannot
drift. Whatever ends a call, `Gateway.stream` settles it: upstream closed, record closed, once.
"""

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from datetime import datetime
from typing import Final

import msgspec

from patchbay_server.core import prompt as prompts
from patchbay_server.core.access import acting_owner, require
from patchbay_server.core.attempt import Exchange
from patchbay_server.core.choose import Candidate, Plan, plan
from patchbay_server.core.clock import Clock
from patchbay_server.core.health import Health
from patchbay_server.core.meter import Meter
from patchbay_server.core.progress import Progress
from patchbay_server.core.record import CallRecord, Recorder
from patchbay_server.core.request_ids import RequestIds
from patchbay_server.core.snapshots import Snapshots
from patchbay_server.errors import FallBack, PartialResult, PatchbayError, Reason, UpstreamFailure
from patchbay_server.types import (
    Attempt as AttemptSummary,
)
from patchbay_server.types import (
    AuditEvent,
    AuditType,
    Caller,
    CallOpened,
    CallState,
    ChatAnswer,
    ChatCompleted,
    ChatEvent,
    ChatRequest,
    ChatStarted,
    Connector,
    Finished,
    Message,
    Notice,
    NoticeCode,
    Role,
    Route,
    Scope,
    Snapshot,
    UpstreamMode,
)
from patchbay_server.usage import Usage

log = logging.getLogger(__name__)

DEADLINE_MARGIN_S: Final = 0.05
"""A caller's deadline is answered this much before it passes, so that the answer with its details still arrives."""
RETRY_WAIT_S: Final = 0.5
"""Wait before the retry of a connector whose provider named no time."""
ATTEMPT_TIME_MIN_S: Final = 1.0
"""No further attempt starts with less time than this left."""

_TRIGGERS: Final = {
    Reason.UPSTREAM_RATE_LIMITED: "rate_limited",
    Reason.UPSTREAM_CREDENTIAL_REJECTED: "auth_invalid",
    Reason.UPSTREAM_BILLING_EXHAUSTED: "quota_exceeded",
}


class CallLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of calls: the seconds that one may take at the most, and how many may run at once in this process."""

    call_s: float = 600.0
    calls_max: int = 2_000


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


class Gateway:
    """Runs calls. One per process."""

    def __init__(
        self,
        *,
        exchange: Exchange,
        snapshots: Snapshots,
        recorder: Recorder,
        meter: Meter,
        health: Health,
        clock: Clock,
        limits: CallLimits,
        process_id: str,
    ) -> None:
        self._exchange = exchange
        self._snapshots = snapshots
        self._recorder = recorder
        self._meter = meter
        self._health = health
        self._clock = clock
        self._limits = limits
        self._process_id = process_id
        self._running: set[RunningCall] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = False
        self._request_ids = RequestIds()

    @property
    def running(self) -> int:
        """Calls in flight."""
        return len(self._running)

    @property
    def draining(self) -> bool:
        """Whether new calls are refused because the process is stopping."""
        return self._draining

    async def chat(self, caller: Caller, request: ChatRequest, timeout_s: float | None = None) -> ChatAnswer:
        """The whole answer to one request.

        Args:
            timeout_s: seconds until the caller stops waiting; None when it waits for ever.

        Raises:
            PatchbayError: any reason of the contract.
        """
        async with self.stream(caller, request, timeout_s, streaming=False) as call:
            answer = await call.answer()
        return answer  # noqa: RET504 -- the type checker cannot know that the context lets errors through

    @asynccontextmanager
    async def stream(
        self, caller: Caller, request: ChatRequest, timeout_s: float | None = None, *, streaming: bool = True
    ) -> AsyncIterator["RunningCall"]:
        """Admit one call and own it: leaving the context by return, error or cancel closes the upstream and the record,
        once.

        Args:
            timeout_s: as for `chat`.
            streaming: whether the provider is asked to stream.

        Raises:
            PatchbayError: any reason of the contract. What the call delivered before is in `partial`.
        """
        admitted = await self._admit(caller, request, timeout_s, streaming=streaming)
        call = self._open(admitted)
        try:
            async with call.limited():
                yield call
        except (asyncio.CancelledError, GeneratorExit):
            # A deadline that passes at the caller's side first arrives here as a cancel. A caller's generator that is
            # closed is a cancel too.
            if call.overdue:
                await call.fail(_deadline_passed())
            else:
                await call.cancel()
            raise
        except PatchbayError as error:
            if error.reason is Reason.CANCELLED:
                await call.cancel()
                raise
            raise await call.fail(error) from None
        except Exception:
            # The boundary of a call: whatever broke, the call is recorded, and what broke is in the log only.
            log.exception("call %s failed by a fault of the gateway", admitted.call_id)
            fault = PatchbayError(Reason.INTERNAL, "the gateway failed; the call id finds the cause in its log")
            raise await call.fail(fault) from None
        else:
            await call.leave()
        finally:
            self._close(call)

    async def drain(self, timeout_s: float) -> None:
        """Refuse new calls, wait for those in flight, and after `timeout_s` end what still runs with DRAINING."""
        self._draining = True
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            for call in self._running:
                call.cut(PatchbayError(Reason.DRAINING, "the gateway is shutting down; call again", retry_after_s=1.0))
            await self._idle.wait()

    async def _admit(
        self, caller: Caller, request: ChatRequest, timeout_s: float | None, *, streaming: bool
    ) -> Admitted:
        require(caller, Scope.CHAT)
        owner = acting_owner(caller, request.owner)
        self._check_room()
        asked_at = self._clock.monotonic()
        prompts.check(request)
        snapshot = await self._snapshots.get(owner)
        chosen = plan(snapshot, request, self._snapshots.recent)
        await self._meter.check_cap(chosen.candidates[0].connector, owner)
        if timeout_s is not None:
            timeout_s -= self._clock.monotonic() - asked_at
        now = self._clock.now()
        return Admitted(
            call_id=new_call_id(now),
            created_at=now,
            caller=caller,
            owner=owner,
            request=request,
            snapshot=snapshot,
            plan=chosen,
            streaming=streaming,
            call_s=self._call_s(chosen, timeout_s),
        )

    def _check_room(self) -> None:
        """Raises: PatchbayError: DRAINING, OVERLOADED."""
        if self._draining:
            raise PatchbayError(Reason.DRAINING, "the gateway is shutting down; call again", retry_after_s=1.0)
        if len(self._running) >= self._limits.calls_max or self._recorder.full:
            raise PatchbayError(Reason.OVERLOADED, "the gateway is full; call again", retry_after_s=1.0)

    def _call_s(self, chosen: Plan, timeout_s: float | None) -> float:
        own = chosen.candidates[0].connector.settings.call_timeout_s
        longest = own or self._limits.call_s
        if timeout_s is None:
            return longest
        return max(0.0, min(longest, timeout_s - min(DEADLINE_MARGIN_S, timeout_s / 10)))

    def _open(self, admitted: Admitted) -> "RunningCall":
        """Awaits nothing, and checks again what may have changed since admission: no two calls pass that together."""
        self._check_room()
        request = admitted.request
        self._request_ids.take(admitted.owner, request.request_id, request.content_hash)
        record = CallRecord(
            self._recorder,
            self._clock,
            CallOpened(
                call_id=admitted.call_id,
                process_id=self._process_id,
                caller=admitted.caller.id,
                owner=admitted.owner,
                feature=request.feature,
                requested_model=request.model,
                streaming=admitted.streaming,
                labels=request.labels,
                request_id=request.request_id,
                started_at=admitted.created_at,
            ),
        )
        call = RunningCall(admitted, record, self._exchange, self._meter, self._health, self._snapshots, self._clock)
        self._running.add(call)
        self._idle.clear()
        return call

    def _close(self, call: "RunningCall") -> None:
        self._running.discard(call)
        if not self._running:
            self._idle.set()
        self._request_ids.release(call.admitted.owner, call.admitted.request.request_id)


class RunningCall:
    """One admitted call. Made by `Gateway.stream` and valid inside it."""

    def __init__(
        self,
        admitted: Admitted,
        record: CallRecord,
        exchange: Exchange,
        meter: Meter,
        health: Health,
        snapshots: Snapshots,
        clock: Clock,
    ) -> None:
        self.admitted = admitted
        self._limit: asyncio.Timeout | None = None
        self._cut_by: PatchbayError | None = None
        self._record = record
        self._exchange = exchange
        self._meter = meter
        self._health = health
        self._snapshots = snapshots
        self._clock = clock
        self._ends_at = clock.monotonic() + admitted.call_s
        self._upstream = AsyncExitStack()
        self._failed_tries: list[AttemptSummary] = []
        self._try: Progress | None = None

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
            raise self._cut_by or _deadline_passed() from None

    def cut(self, error: PatchbayError) -> None:
        """End the call with `error` from another task, unless it is ending already."""
        if self._limit is not None and not self._limit.expired():
            self._cut_by = error
            self._limit.reschedule(asyncio.get_running_loop().time())

    async def events(self) -> AsyncGenerator[list[ChatEvent]]:
        """`ChatStarted`, deltas, `ChatCompleted`; what arrived in one network read comes together. Used once, and
        closed by its user.

        Raises:
            PatchbayError: why the call failed; `Gateway.stream` completes and records it.
        """
        if self.overdue:
            raise _deadline_passed()
        waiting = deque(self.admitted.plan.candidates)
        may_retry = self.admitted.plan.retry_first
        audit: AuditEvent | None = None
        while True:
            candidate = waiting.popleft()
            this = self._try = Progress(candidate, self._clock.monotonic(), alone=not waiting and not may_retry)
            try:
                async with aclosing(self._attempt(this, audit)) as batches:
                    async for batch in batches:
                        yield batch
            except PatchbayError as error:
                failure = this.failure = this.judged(error)
                await self._note_rejection(candidate, failure)
                if this.committed or failure.rule.fall_back is FallBack.NEVER:
                    raise failure from None
                again = may_retry and _worth_a_retry(failure) and self._time_for(failure)
                may_retry = False
                self._failed_tries.append(self._summary(this, failure.reason))
                await self._drop_capped(waiting)
                if not again and (not waiting or self._left_s < ATTEMPT_TIME_MIN_S):
                    raise self._all_failed(failure) from None
                await self._end_try(this, failure)
                if again:
                    waiting.appendleft(candidate)
                    audit = None
                    await asyncio.sleep(_retry_wait_s(failure))
                else:
                    audit = self._fallback_event(failure, waiting[0].connector)
            else:
                return

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

    async def fail(self, error: PatchbayError) -> PatchbayError:
        """Settle a call that failed: the error as the caller is to see it, once its record is durable."""
        this = self._try
        usage = this.spent(self.admitted.request.prompt) if this else None
        failure = self._described(this.judged(error) if this else error, usage)
        durable = self._settle(CallState.FAILED, failure.reason, usage, failure.upstream)
        await self._upstream.aclose()
        if durable is not None:
            await _written(durable)
        return failure

    async def cancel(self) -> None:
        """Settle a call whose caller has gone. Nobody waits for its record, which is queued when this returns."""
        usage = self._try.spent(self.admitted.request.prompt) if self._try else None
        self._settle(CallState.CANCELLED, Reason.CANCELLED, usage)
        await self._upstream.aclose()

    async def leave(self) -> None:
        """Close what the call opened. A caller that leaves before the end has gone."""
        if self.settled:
            await self._upstream.aclose()
        else:
            await self.cancel()

    def _settle(
        self, state: CallState, reason: Reason, usage: Usage | None, failure: UpstreamFailure | None = None
    ) -> asyncio.Future[None] | None:
        """Close the record unless it is closed. Awaits nothing, so that no second cancel can come in between."""
        if self.settled:
            return None
        this = self._try
        self._count(this, usage)
        own = this.failure.reason if this and this.failure else reason
        return self._record.close(state, reason, attempt_reason=own, failure=failure, usage=usage)

    @property
    def _left_s(self) -> float:
        return self._ends_at - self._clock.monotonic()

    async def _attempt(self, this: Progress, audit: AuditEvent | None) -> AsyncGenerator[list[ChatEvent]]:
        """One candidate's answer. Events are held until the first that a caller would miss, unless no other candidate
        is left.
        """
        admitted = self.admitted
        self._record.open_attempt(this.candidate, audit)
        self._snapshots.used(this.candidate.connector.uid, self._clock.now())
        attempt = await self._upstream.enter_async_context(
            self._exchange.start(
                this.candidate,
                admitted.request.prompt,
                call_id=admitted.call_id,
                streaming=admitted.streaming,
                policy=admitted.snapshot.policy,
            )
        )
        this.accepted = True
        async with aclosing(attempt.batches()) as batches:
            async for batch in batches:
                events = this.take(batch)
                if this.has_output:
                    self._record.note_output()
                if not this.committed and this.may_commit:
                    await self._record.durable
                    this.committed = True
                    events = [self._started(this), *this.held, *events]
                if this.committed and events:
                    yield events
                elif events:
                    # Nothing but running totals comes before output, and the last ones count.
                    this.held = events[-1:]
                if this.finished is not None:
                    yield [await self._complete(this, this.finished, attempt.notices)]
        if this.finished is None:
            raise PatchbayError(Reason.UPSTREAM_TRUNCATED, "the provider's answer ended before it was complete")

    def _started(self, this: Progress) -> ChatStarted:
        return ChatStarted(
            call_id=self.call_id,
            created_at=self.admitted.created_at,
            route=self._route(this, tuple(self._failed_tries)),
        )

    async def _complete(self, this: Progress, finished: Finished, notices: tuple[Notice, ...]) -> ChatCompleted:
        """The terminal event, once its record is durable."""
        usage = finished.usage or this.reported
        notices += finished.notices
        if usage is None:
            usage = this.estimate(self.admitted.request.prompt)
            notices += (_ESTIMATED,)
        self._count(this, usage)
        answering = self._summary(this, None)
        durable = self._record.close(CallState.SUCCEEDED, usage=usage, finish_reason=finished.finish_reason)
        await durable
        return ChatCompleted(
            answer=ChatAnswer(
                call_id=self.call_id,
                created_at=self.admitted.created_at,
                route=self._route(this, (*self._failed_tries, answering)),
                message=Message(role=Role.ASSISTANT, parts=tuple(this.parts[index] for index in sorted(this.parts))),
                finish_reason=finished.finish_reason,
                provider_finish_reason=finished.provider_finish_reason,
                usage=usage,
                notices=notices,
            )
        )

    def _route(self, this: Progress, attempts: tuple[AttemptSummary, ...]) -> Route:
        candidate = this.candidate
        return Route(
            connector=self._visible_name(candidate.connector),
            provider=candidate.connector.type,
            requested_model=self.admitted.request.model,
            model=this.model or candidate.model,
            upstream_request_id=this.upstream_id,
            resolved_by=candidate.resolved_by,
            mode=UpstreamMode.STREAMING if self.admitted.streaming else UpstreamMode.UNARY,
            attempts=attempts,
        )

    def _visible_name(self, connector: Connector) -> str:
        """A connector's name as the caller may see it: another owner's stays unnamed."""
        return connector.name if connector.owner == self.admitted.owner else ""

    def _summary(self, this: Progress, reason: Reason | None) -> AttemptSummary:
        return AttemptSummary(
            connector=self._visible_name(this.candidate.connector),
            model=this.candidate.model,
            reason=reason,
            latency_s=self._clock.monotonic() - this.started,
        )

    async def _end_try(self, this: Progress, failure: PatchbayError) -> None:
        """Close an attempt that another one follows."""
        usage = this.spent(self.admitted.request.prompt)
        self._count(this, usage)
        self._record.close_attempt(CallState.FAILED, failure.reason, failure.upstream or UpstreamFailure(), usage)
        self._try = None
        await self._upstream.aclose()

    def _count(self, this: Progress | None, usage: Usage | None) -> None:
        if this is not None and usage is not None:
            self._meter.add(this.candidate.connector.uid, usage.input_tokens + usage.output_tokens)

    async def _note_rejection(self, candidate: Candidate, failure: PatchbayError) -> None:
        if failure.reason is Reason.UPSTREAM_CREDENTIAL_REJECTED:
            await self._health.rejected(candidate.connector, actor=self.admitted.caller.id, call_id=self.call_id)

    def _time_for(self, failure: PatchbayError) -> bool:
        return _retry_wait_s(failure) + ATTEMPT_TIME_MIN_S <= self._left_s

    async def _drop_capped(self, waiting: "deque[Candidate]") -> None:
        """Pass over candidates whose cap is reached or cannot be known: they are not asked, and the answer says why."""
        while waiting:
            try:
                await self._meter.check_cap(waiting[0].connector, self.admitted.owner)
            except PatchbayError as error:
                skipped = Progress(waiting.popleft(), self._clock.monotonic(), alone=False)
                self._failed_tries.append(self._summary(skipped, error.reason))
            else:
                return

    def _fallback_event(self, failure: PatchbayError, to: Connector) -> AuditEvent:
        return AuditEvent(
            type=AuditType.FALLBACK_TRIGGERED,
            at=self._clock.now(),
            actor=self.admitted.caller.id,
            subject=to.name,
            owner=to.owner,
            connector_uid=to.uid,
            qualifier=_TRIGGERS.get(failure.reason, "provider_unavailable"),
            call_id=self.call_id,
        )

    def _all_failed(self, failure: PatchbayError) -> PatchbayError:
        """The last failure itself when only one connector could be asked, else one that names each attempt's reason."""
        if len({attempt.connector for attempt in self._failed_tries}) == 1:
            return failure
        told = ", ".join(attempt.reason.value for attempt in self._failed_tries if attempt.reason is not None)
        return PatchbayError(
            Reason.ALL_CANDIDATES_FAILED,
            f"all candidates failed: {told}",
            retry_after_s=failure.retry_after_s,
            upstream=failure.upstream,
        )

    def _described(self, error: PatchbayError, usage: Usage | None) -> PatchbayError:
        """`error` with what the call knows: which connector, how many attempts, what was delivered."""
        upstream = error.upstream
        message, violations = error.message, error.violations
        foreign = self._try is not None and not self._visible_name(self._try.candidate.connector)
        if foreign and error.reason in _ABOUT_A_CONNECTOR:
            message, violations = "the organisation's default connector cannot answer; tell an administrator", ()
        if self._try is not None and (upstream is not None or error.reason.value.startswith("UPSTREAM_")):
            connector = self._try.candidate.connector
            upstream = msgspec.structs.replace(
                upstream or UpstreamFailure(),
                provider=connector.type,
                connector=self._visible_name(connector),
                attempt_count=self._record.attempts,
            )
        return PatchbayError(
            error.reason,
            message,
            violations=violations,
            retry_after_s=error.retry_after_s,
            quota=error.quota,
            upstream=upstream,
            partial=PartialResult(call_id=self.call_id, usage=usage or Usage()),
        )


_ABOUT_A_CONNECTOR: Final = frozenset(
    {
        Reason.CREDENTIAL_UNREADABLE,
        Reason.CONNECTOR_MISCONFIGURED,
        Reason.POLICY_DENIED,
        Reason.UPSTREAM_UNAVAILABLE,
    }
)
"""Reasons whose message may tell of a connector's credential or address, which is its owner's business alone."""

_ESTIMATED: Final = Notice(
    code=NoticeCode.USAGE_ESTIMATED, message="the provider reported no usage; it is estimated", field="usage"
)


def new_call_id(now: datetime) -> str:
    """An id that sorts by time: 12 hexadecimal digits of milliseconds, 20 of randomness."""
    return f"{int(now.timestamp() * 1000):012x}{secrets.token_hex(10)}"


def _worth_a_retry(failure: PatchbayError) -> bool:
    return failure.reason not in {Reason.UPSTREAM_CREDENTIAL_REJECTED, Reason.UPSTREAM_BILLING_EXHAUSTED}


def _retry_wait_s(failure: PatchbayError) -> float:
    return RETRY_WAIT_S if failure.retry_after_s is None else failure.retry_after_s


def _deadline_passed() -> PatchbayError:
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
