"""The one door to every call: admit it, run it, settle it; or say what would become of it.

`Chat` and `Stream` are the same path; a unary answer is a stream of events that nobody watched, so the two cannot
drift. `Explain` goes the same way as far as the first attempt. Whatever ends a call, `Gateway.stream` settles it.
"""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Final

import msgspec

from patchbay_server.core import choose, estimate, explain
from patchbay_server.core import prompt as prompts
from patchbay_server.core.access import acting_owner, require
from patchbay_server.core.admission import Admission, Room, overloaded
from patchbay_server.core.breaker import BreakerState
from patchbay_server.core.call import Admitted, Means, RunningCall, deadline_passed
from patchbay_server.core.choose import Plan, Refusal, Surroundings
from patchbay_server.core.explain import Explanation
from patchbay_server.core.meter import is_hard
from patchbay_server.core.record import CallRecord, Recorder
from patchbay_server.core.request_ids import RequestIds
from patchbay_server.core.tally import Tally
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.types import Caller, CallOpened, ChatAnswer, ChatRequest, ResolvedBy, Scope, Snapshot

log = logging.getLogger(__name__)

DEADLINE_MARGIN_S: Final = 0.05
"""A caller's deadline is answered this much before it passes, so that the answer with its details still arrives."""


_NOT_ADMITTED: Final = frozenset(
    {
        Reason.INVALID_REQUEST,
        Reason.CONNECTOR_NOT_FOUND,
        Reason.CONNECTOR_INACTIVE,
        Reason.CONNECTOR_NOT_CONFIGURED,
        Reason.MODEL_NOT_FOUND,
        Reason.POLICY_DENIED,
    }
)
"""Failures of a request that names what it cannot have: no call comes of it, so that none is recorded. A routed call
whose candidates all fall out is one, with its outcome.
"""


_CHOSEN_BY_THE_GATEWAY: Final = frozenset({ResolvedBy.ROUTING, ResolvedBy.FALLBACK})


class CallLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of calls: the seconds that one may take at the most, and how many may run and wait in this process."""

    call_s: float = 600.0
    room: Room = Room()


class Gateway:
    """Runs calls. One per process."""

    def __init__(self, *, means: Means, recorder: Recorder, limits: CallLimits, process_id: str) -> None:
        self._means = means
        self._recorder = recorder
        self._limits = limits
        self._process_id = process_id
        self._clock = means.clock
        self._admission = Admission(limits.room)
        self._running: set[RunningCall] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._request_ids = RequestIds()

    @property
    def running(self) -> int:
        """Calls in flight."""
        return len(self._running)

    @property
    def queued(self) -> int:
        """Calls that wait for a place."""
        return self._admission.queued

    @property
    def draining(self) -> bool:
        """Whether new calls are refused because the process is stopping."""
        return self._admission.closed

    @property
    def breakers(self) -> list[BreakerState]:
        """The circuit breakers that are not closed."""
        return self._means.breakers.not_closed()

    @property
    def tally(self) -> Tally:
        """What was counted of calls since the process started."""
        return self._means.tally

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
    ) -> AsyncIterator[RunningCall]:
        """Admit one call and own it: leaving the context by return, error or cancel closes the upstream and the record,
        once.

        Args:
            timeout_s: as for `chat`.
            streaming: whether the provider is asked to stream.

        Raises:
            PatchbayError: any reason of the contract. What the call delivered before is in `partial`.
        """
        asked_at = self._clock.monotonic()
        require(caller, Scope.CHAT)
        owner = acting_owner(caller, request.owner)
        prompts.check(request)
        self._check_recorder()
        async with self._admission.place(owner, timeout_s):
            snapshot, plan = await self._plan(owner, request, streaming=streaming)
            if (refusal := _refusal(plan)) is not None:
                raise refusal
            if timeout_s is not None:
                timeout_s -= self._clock.monotonic() - asked_at
            now = self._clock.now()
            admitted = Admitted(
                call_id=new_call_id(now),
                created_at=now,
                caller=caller,
                owner=owner,
                request=request,
                snapshot=snapshot,
                plan=plan,
                streaming=streaming,
                call_s=self._call_s(plan, timeout_s),
            )
            async with self._settling(admitted) as call:
                yield call

    async def explain(self, caller: Caller, request: ChatRequest) -> Explanation:
        """What `chat` would do with a request, by the same code, without asking a provider or recording a call.

        Raises:
            PatchbayError: CALLER_NOT_AUTHORIZED; DEPENDENCY_UNAVAILABLE. What else `chat` would meet is in the answer.
        """
        require(caller, Scope.CHAT)
        owner = acting_owner(caller, request.owner)
        try:
            prompts.check(request)
        except PatchbayError as error:
            return Explanation(owner=owner, failure=error)
        snapshot, plan = await self._plan(owner, request, streaming=False)
        found = await explain.explain(snapshot, request, plan, self._means)
        if _refusal(plan) is None:
            try:
                self._request_ids.check(owner, request.request_id, request.content_hash)
            except PatchbayError as error:
                return msgspec.structs.replace(found, failure=error)
        return found

    async def drain(self, timeout_s: float) -> None:
        """Refuse new calls, wait for those in flight, and after `timeout_s` end what still runs with DRAINING."""
        self._admission.close(_draining())
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            for call in self._running:
                call.cut(_draining())
            await self._idle.wait()

    async def _plan(self, owner: str, request: ChatRequest, *, streaming: bool) -> tuple[Snapshot, Plan]:
        """The owner's snapshot, and which connectors may answer as things stand now.

        Where it is the gateway's choice which one answers, it chooses one that can: that takes the request and has not
        reached its cap.
        """
        means = self._means
        snapshot = await means.snapshots.get(owner)
        around = Surroundings(
            prices=means.prices,
            qualities=means.qualities,
            on=self._clock.now().date(),
            recent=means.snapshots.recent,
            own_model=means.exchange.own_model,
            is_open=means.breakers.is_open,
        )
        plan = choose.plan(snapshot, request, around)
        return snapshot, plan.without(await self._unfit(plan, snapshot, request, streaming=streaming))

    async def _unfit(
        self, plan: Plan, snapshot: Snapshot, request: ChatRequest, *, streaming: bool
    ) -> Sequence[Refusal]:
        """The candidates before the first that can answer, of those that are the gateway's choice: in a routed call all
        are, else those that come before the caller's own choice because that one failed of late.
        """
        means, owner = self._means, snapshot.owner
        unfit: list[Refusal] = []
        for candidate in plan.candidates:
            if candidate.resolved_by not in _CHOSEN_BY_THE_GATEWAY:
                break
            connector = candidate.connector
            try:
                means.exchange.rehearse(
                    candidate, request.prompt, owner=owner, streaming=streaming, policy=snapshot.policy
                )
                needed = estimate.tokens_needed(request.prompt) if is_hard(connector) else 0
                await means.meter.check_room(connector, owner, needed)
            except PatchbayError as error:
                unfit.append(Refusal(candidate=candidate, failure=error))
            else:
                break
        return unfit

    def _check_recorder(self) -> None:
        """Raises: PatchbayError: OVERLOADED when records pile up."""
        if self._recorder.full:
            raise overloaded()

    def _call_s(self, plan: Plan, timeout_s: float | None) -> float:
        own = plan.candidates[0].connector.settings.call_timeout_s if plan.candidates else None
        longest = own or self._limits.call_s
        if timeout_s is None:
            return longest
        return max(0.0, min(longest, timeout_s - min(DEADLINE_MARGIN_S, timeout_s / 10)))

    @asynccontextmanager
    async def _settling(self, admitted: Admitted) -> AsyncIterator[RunningCall]:
        """A call with its record open, until whatever ends it has settled it."""
        call = self._open(admitted)
        try:
            async with call.limited():
                await call.get_ready()
                yield call
        except (asyncio.CancelledError, GeneratorExit):
            # A deadline that passes at the caller's side first arrives here as a cancel. A caller's generator that is
            # closed is a cancel too.
            if call.overdue:
                await call.fail(deadline_passed())
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
            self._running.discard(call)
            if not self._running:
                self._idle.set()
            self._request_ids.release(admitted.owner, admitted.request.request_id)

    def _open(self, admitted: Admitted) -> RunningCall:
        """Awaits nothing, and checks again what may have changed since admission: no two calls pass that together."""
        if self._admission.closed:
            raise _draining()
        self._check_recorder()
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
                routing=admitted.plan.routing,
            ),
        )
        call = RunningCall(admitted, record, self._means)
        self._running.add(call)
        self._idle.clear()
        return call


def new_call_id(now: datetime) -> str:
    """An id that sorts by time: 12 hexadecimal digits of milliseconds, 20 of randomness."""
    return f"{int(now.timestamp() * 1000):012x}{secrets.token_hex(10)}"


def _refusal(plan: Plan) -> PatchbayError | None:
    """Why no call comes of a request; None when one does, however it ends."""
    failure = plan.failure
    return failure if failure is not None and plan.routing is None and failure.reason in _NOT_ADMITTED else None


def _draining() -> PatchbayError:
    return PatchbayError(Reason.DRAINING, "the gateway is shutting down; call again", retry_after_s=1.0)
