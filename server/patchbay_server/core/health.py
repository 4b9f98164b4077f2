"""Whether a connector's credential works: the verdict of one cheap real call, and what happens when a provider refuses
a key.
"""

import logging
from datetime import datetime
from typing import Final

import msgspec

from patchbay_server.adapters.protocol import Adapter, Checks, JudgesChecks, ReadsChecks
from patchbay_server.core.attempt import Exchange
from patchbay_server.core.clock import Clock
from patchbay_server.core.snapshots import Snapshots
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.store.protocol import Store
from patchbay_server.types import AuditEvent, AuditType, CheckResult, Connector, Policy, Secret
from patchbay_server.wire.http import HttpRequest

log = logging.getLogger(__name__)

_RESULTS: Final = {
    Reason.UPSTREAM_CREDENTIAL_REJECTED: CheckResult.AUTH_INVALID,
    Reason.UPSTREAM_RATE_LIMITED: CheckResult.RATE_LIMITED,
    Reason.UPSTREAM_BILLING_EXHAUSTED: CheckResult.QUOTA_EXCEEDED,
    Reason.UPSTREAM_UNAVAILABLE: CheckResult.PROVIDER_UNAVAILABLE,
    Reason.UPSTREAM_TIMEOUT: CheckResult.PROVIDER_UNAVAILABLE,
    Reason.UPSTREAM_STREAM_BROKEN: CheckResult.PROVIDER_UNAVAILABLE,
}


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Outcome of one check. `failure` says why it is not OK."""

    result: CheckResult
    latency_s: float
    at: datetime
    failure: PatchbayError | None = None


class Health:
    def __init__(self, *, store: Store, snapshots: Snapshots, exchange: Exchange, clock: Clock) -> None:
        self._store = store
        self._snapshots = snapshots
        self._exchange = exchange
        self._clock = clock

    async def check(self, connector: Connector, model: str, policy: Policy, *, actor: str) -> Verdict:
        """Ask the provider whether the credential works, keep the result, and act on a refused key.

        Args:
            model: the model to prove access to; "" for the connector's hint, or for the credential alone.

        Raises:
            PatchbayError: DEPENDENCY_UNAVAILABLE when the result cannot be kept.
        """
        started = self._clock.monotonic()
        failure = await self._failure(connector, model or connector.model_hint or "", policy)
        latency_s = self._clock.monotonic() - started
        result = CheckResult.OK if failure is None else _RESULTS.get(failure.reason, CheckResult.ERROR)
        at = self._clock.now()
        await self._store.record_test(connector.uid, at, result)
        if result is CheckResult.AUTH_INVALID:
            await self.rejected(connector, actor=actor)
        return Verdict(result=result, latency_s=latency_s, at=at, failure=failure)

    async def rejected(self, connector: Connector, *, actor: str, call_id: str = "") -> None:
        """A provider refused the connector's key: it turns AUTH_INVALID, with one audit event for the transition.

        Never fails: what cannot be written now is written when the next call is refused.
        """
        event = AuditEvent(
            type=AuditType.AUTH_INVALID,
            at=self._clock.now(),
            actor=actor,
            subject=connector.name,
            owner=connector.owner,
            connector_uid=connector.uid,
            call_id=call_id,
        )
        try:
            if await self._store.mark_auth_invalid(connector.uid, connector.sealed, event.at, event):
                log.warning("%s: the provider rejects its credential; its owner has to rotate it", connector.name)
                await self._snapshots.refresh()
        except PatchbayError as error:
            log.warning("%s: that its credential is rejected could not be noted: %s", connector.name, error.message)

    async def _failure(self, connector: Connector, model: str, policy: Policy) -> PatchbayError | None:
        judge: JudgesChecks | None = None
        reader: ReadsChecks | None = None

        def build(adapter: Adapter, secret: Secret, now: datetime) -> HttpRequest:
            nonlocal judge, reader
            if not isinstance(adapter, Checks):
                raise PatchbayError(Reason.NOT_IMPLEMENTED, f"connectors of type {connector.type!r} offer no check")
            judge = adapter if isinstance(adapter, JudgesChecks) else None
            reader = adapter if isinstance(adapter, ReadsChecks) else None
            return adapter.prepare_check(model, secret, now)

        try:
            answer = await self._exchange.ask(connector, build, policy)
            if reader is not None:
                reader.read_check(answer)
        except PatchbayError as error:
            return None if judge is not None and judge.passes_check(error) else error
        return None
