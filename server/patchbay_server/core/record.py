"""The record of every call: exactly one, durable before the terminal answer, cheap because calls in flight share a
commit.

`Recorder` is the one writer of a process: it takes everything that waits, writes one transaction, wakes everybody who
waited for it. `CallRecord` is the one state machine that every end of a call goes through, so that no call can be
recorded twice or not at all.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

from patchbay_server.core.choose import Candidate
from patchbay_server.core.clock import Clock
from patchbay_server.errors import PatchbayError, Reason, UpstreamFailure
from patchbay_server.store.protocol import Store
from patchbay_server.types import (
    AttemptClosed,
    AttemptOpened,
    Audited,
    AuditEvent,
    CallClosed,
    CallOpened,
    CallState,
    ConnectorUsed,
    FinishReason,
    Record,
)
from patchbay_server.usage import Usage, total

GROUP_MAX: Final = 1_000
"""Record batches in one transaction; bounds how long a commit can take."""
WAITING_MAX: Final = 20_000
"""Record batches that may wait; past that new calls are refused."""
RETRY_WAITS_S: Final = (0.05, 0.2, 0.5, 1.0)
"""Waits between tries to write a group while the store is unavailable."""

log = logging.getLogger(__name__)


class Recorder:
    """Writes records in groups. `run` must be running in a task while `write` is used."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: list[_Batch] = []
        self._writing: Sequence[_Batch] = ()
        self._stopped = False
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self.calls_without_record = 0
        """Calls whose close could not be written. An open record that remains of one is closed as interrupted at the
        next start.
        """

    @property
    def full(self) -> bool:
        return len(self._waiting) >= WAITING_MAX

    def write(self, *records: Record) -> asyncio.Future[None]:
        """Queue records, to be written together. The future is done when they are durable, or holds why they are not.

        Nobody has to await it: a failure is logged and counted here.
        """
        durable: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._stopped:
            self._give_up(records, durable, _STOPPED)
            return durable
        self._waiting.append((records, durable))
        self._idle.clear()
        self._wake.set()
        return durable

    async def run(self) -> None:
        """Write groups until cancelled; `flush` first, else what waits is lost, and whoever waits for it is told so."""
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._waiting:
                    self._writing, self._waiting = self._waiting[:GROUP_MAX], self._waiting[GROUP_MAX:]
                    await self._write_group(self._writing)
                    self._writing = ()
                self._idle.set()
        finally:
            self._stopped = True
            for records, durable in (*self._writing, *self._waiting):
                if not durable.done() or durable.cancelled():
                    self._give_up(records, durable, _STOPPED)
            self._waiting.clear()
            self._idle.set()

    async def flush(self) -> None:
        """Wait until everything queued so far has been written or given up."""
        await self._idle.wait()

    async def _write_group(self, group: Sequence["_Batch"]) -> None:
        failure = await self._try([record for records, _ in group for record in records])
        if failure is None:
            for _, durable in group:
                _resolve(durable, None)
        elif failure.reason is Reason.DEPENDENCY_UNAVAILABLE or len(group) == 1:
            for records, durable in group:
                self._give_up(records, durable, failure)
        else:
            # One unwritable batch must not take its neighbours down with it. Halves find it in few transactions.
            half = len(group) // 2
            await self._write_group(group[:half])
            await self._write_group(group[half:])

    async def _try(self, records: Sequence[Record]) -> PatchbayError | None:
        for wait_s in (*RETRY_WAITS_S, None):
            try:
                await self._store.write_records(records)
            except PatchbayError as error:
                if error.reason is not Reason.DEPENDENCY_UNAVAILABLE or wait_s is None:
                    return error
                await asyncio.sleep(wait_s)
            except Exception:
                # The boundary of the one writer: a record that breaks the store is that call's loss, not everybody's.
                log.exception("the store failed by a fault of its own")
                return PatchbayError(Reason.INTERNAL, "the store failed; its log has the cause")
            else:
                return None
        raise AssertionError("the last try returns")

    def _give_up(self, records: Sequence[Record], durable: asyncio.Future[None], failure: PatchbayError) -> None:
        closes = sum(isinstance(record, CallClosed) for record in records)
        self.calls_without_record += closes
        log.error("could not write %d call records: %s", len(records), failure.message)
        _resolve(durable, failure)


_Batch = tuple[Sequence[Record], asyncio.Future[None]]
"""Records to be written together, and who waits for that."""
_STOPPED: Final = PatchbayError(Reason.DEPENDENCY_UNAVAILABLE, "the gateway has stopped writing records")


def _resolve(durable: asyncio.Future[None], failure: PatchbayError | None) -> None:
    if durable.done():
        return
    if failure is None:
        durable.set_result(None)
        return
    # An error of its own for each that waits: one value raised in many tasks would chain their tracebacks.
    durable.set_exception(PatchbayError(failure.reason, failure.message))
    durable.exception()  # retrieved, so that a future nobody awaits (a cancelled call's) is not reported as lost


class CallRecord:
    """One call's way through the record: opened, attempts opened and closed, closed; each step exactly once.

    `durable` is done when the opening record is.
    """

    def __init__(self, recorder: Recorder, clock: Clock, opened: CallOpened) -> None:
        self._recorder = recorder
        self._clock = clock
        self._opened = opened
        self._started = clock.monotonic()
        self._attempt_started = 0.0
        self._candidate: Candidate | None = None
        self._attempt_open = False
        self._first_output_s: float | None = None
        self._attempt_first_output_s: float | None = None
        self._closed = False
        self.attempts = 0
        self.usage: Usage | None = None
        """What the attempts that ended used, together; None when none of them used anything."""
        self.durable = recorder.write(opened)

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def attempt_open(self) -> bool:
        return self._attempt_open

    def open_attempt(self, candidate: Candidate, audit: AuditEvent | None) -> None:
        """An attempt at `candidate` starts; `audit` is the event of a fallback that led to it."""
        if self._attempt_open or self._closed:
            raise AssertionError("an attempt is opened once, within an open call")
        now = self._clock.now()
        self._candidate = candidate
        self._attempt_open = True
        self._attempt_started = self._clock.monotonic()
        self._attempt_first_output_s = None
        self.attempts += 1
        opened = AttemptOpened(
            call_id=self._opened.call_id,
            number=self.attempts,
            connector_uid=candidate.connector.uid,
            provider=candidate.connector.type,
            model=candidate.model,
            started_at=now,
        )
        used = ConnectorUsed(connector_uid=candidate.connector.uid, at=now)
        self._recorder.write(opened, used, *([Audited(audit)] if audit else []))

    def note_output(self) -> None:
        """The first delta of the attempt arrived."""
        if self._attempt_first_output_s is None:
            now = self._clock.monotonic()
            self._attempt_first_output_s = now - self._attempt_started
            if self._first_output_s is None:
                self._first_output_s = now - self._started

    def close_attempt(
        self, state: CallState, reason: Reason | None, failure: UpstreamFailure, usage: Usage | None
    ) -> None:
        """The open attempt ended and the call goes on."""
        if not self._attempt_open:
            raise AssertionError("an attempt is closed once")
        latency_s = self._clock.monotonic() - self._attempt_started
        self._attempt_open = False
        self._recorder.write(self._attempt_closed(state, reason, failure, usage, latency_s))

    def close(
        self,
        state: CallState,
        reason: Reason | None = None,
        *,
        attempt_reason: Reason | None = None,
        failure: UpstreamFailure | None = None,
        usage: Usage | None = None,
        finish_reason: FinishReason | None = None,
    ) -> asyncio.Future[None]:
        """End the call, and with it the attempt that is still open. The future is done when that is durable.

        `usage` is the open attempt's; the call's is the sum over its attempts. `attempt_reason` is the attempt's own
        where it is not the call's.
        """
        if self._closed:
            raise AssertionError("a call is closed once")
        self._closed = True
        records: list[Record] = []
        if self._attempt_open:
            self._attempt_open = False
            latency_s = self._clock.monotonic() - self._attempt_started
            own = attempt_reason or reason
            records.append(self._attempt_closed(state, own, failure or UpstreamFailure(), usage, latency_s))
        candidate = self._candidate
        records.append(
            CallClosed(
                call_id=self._opened.call_id,
                state=state,
                reason=reason,
                connector_uid=candidate.connector.uid if candidate else "",
                provider=candidate.connector.type if candidate else "",
                model=candidate.model if candidate else "",
                resolved_by=candidate.resolved_by if candidate else None,
                finish_reason=finish_reason,
                usage=self.usage,
                attempts=self.attempts,
                first_output_s=self._first_output_s,
                latency_s=self._clock.monotonic() - self._started,
                ended_at=self._clock.now(),
            )
        )
        return self._recorder.write(*records)

    def _attempt_closed(
        self,
        state: CallState,
        reason: Reason | None,
        failure: UpstreamFailure,
        usage: Usage | None,
        latency_s: float,
    ) -> AttemptClosed:
        self.usage = total(self.usage, usage)
        return AttemptClosed(
            call_id=self._opened.call_id,
            number=self.attempts,
            state=state,
            reason=reason,
            failure=failure,
            usage=usage,
            first_output_s=self._attempt_first_output_s,
            latency_s=latency_s,
            ended_at=self._clock.now(),
        )
