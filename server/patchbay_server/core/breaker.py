"""Which connectors and models fail repeatedly, so that calls ask others first.

A breaker opens after `FAILURES_MAX` failures in a row within `WINDOW_S`. After `COOL_DOWN_S` it is half-open: one call
may probe, and what becomes of that call closes it or opens it anew. Breakers order candidates and refuse none; each
process has its own.
"""

from collections import OrderedDict
from collections.abc import Iterator
from datetime import datetime
from typing import Final

import msgspec

from patchbay_server.core.clock import Clock
from patchbay_server.errors import Reason
from patchbay_server.types import Connector

FAILURES_MAX: Final = 5
WINDOW_S: Final = 60.0
COOL_DOWN_S: Final = 30.0
FORGET_S: Final = 3_600.0
"""A breaker that nobody probed for so long after its cool-down is forgotten: its connector may be gone."""
BREAKERS_MAX: Final = 10_000
"""Connectors and models that failed last; the oldest are forgotten."""

_FAILURES: Final = frozenset(
    {
        Reason.UPSTREAM_UNAVAILABLE,
        Reason.UPSTREAM_TIMEOUT,
        Reason.UPSTREAM_RATE_LIMITED,
        Reason.UPSTREAM_BILLING_EXHAUSTED,
        Reason.UPSTREAM_EMPTY_STREAM,
        Reason.UPSTREAM_STREAM_BROKEN,
        Reason.UPSTREAM_TRUNCATED,
        Reason.UPSTREAM_MALFORMED_RESPONSE,
    }
)
"""Reasons that say something of the provider rather than of the request."""
_ANSWERS: Final = frozenset(
    {
        Reason.UPSTREAM_REJECTED_REQUEST,
        Reason.UPSTREAM_CREDENTIAL_REJECTED,
        Reason.CONTEXT_LENGTH_EXCEEDED,
        Reason.CONTENT_POLICY_VIOLATION,
        Reason.MODEL_NOT_FOUND,
    }
)
"""Reasons that only a provider in good health gives. What is in neither set tells nothing of it."""


class BreakerState(msgspec.Struct, frozen=True, kw_only=True):
    """A breaker that is not closed. `half_open`: one probe is under way, or may go."""

    connector_uid: str
    connector: str
    model: str
    half_open: bool
    opened_at: datetime


class Breakers:
    """The breakers of one process, by connector uid and model."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._failing: OrderedDict[tuple[str, str], _Breaker] = OrderedDict()

    def is_open(self, uid: str, model: str) -> bool:
        """Whether calls should ask somebody else: it is open, or a probe is under way."""
        breaker = self._failing.get((uid, model))
        if breaker is None or breaker.opened_at is None:
            return False
        return breaker.probing or self._clock.monotonic() < breaker.retry_at

    def started(self, uid: str, model: str) -> bool:
        """An attempt starts; whether it is the probe of a half-open breaker. Each start is followed by `ended`."""
        breaker = self._failing.get((uid, model))
        if breaker is None or breaker.opened_at is None or self.is_open(uid, model):
            return False
        breaker.probing = True
        return True

    def ended(self, connector: Connector, model: str, reason: Reason | None, *, probe: bool) -> None:
        """What became of an attempt.

        Args:
            reason: why it failed; None when it answered. One that tells nothing of the provider's health (the caller
                has gone, the time was up) only ends the probe.
            probe: what `started` said.
        """
        key = (connector.uid, model)
        breaker = self._failing.get(key)
        if breaker is not None and probe:
            breaker.probing = False
        if reason in _FAILURES:
            self._failed(key, connector.name, probe=probe)
        elif breaker is not None and (reason is None or reason in _ANSWERS):
            del self._failing[key]

    def not_closed(self) -> list[BreakerState]:
        """Every breaker that is open or half-open, the longest open first."""
        now = self._clock.monotonic()
        for key, breaker in list(self._failing.items()):
            if breaker.opened_at is not None and not breaker.probing and now - breaker.retry_at > FORGET_S:
                del self._failing[key]
        return sorted(self._not_closed(), key=lambda state: state.opened_at)

    def _failed(self, key: tuple[str, str], name: str, *, probe: bool) -> None:
        now = self._clock.monotonic()
        breaker = self._failing.setdefault(key, _Breaker(name, now))
        self._failing.move_to_end(key)
        while len(self._failing) > BREAKERS_MAX:
            self._failing.popitem(last=False)
        if breaker.opened_at is None and now - breaker.since > WINDOW_S:
            breaker.failures, breaker.since = 0, now
        breaker.failures += 1
        if probe or (breaker.opened_at is None and breaker.failures >= FAILURES_MAX):
            breaker.retry_at = now + COOL_DOWN_S
            breaker.opened_at = breaker.opened_at or self._clock.now()

    def _not_closed(self) -> Iterator[BreakerState]:
        for (uid, model), breaker in self._failing.items():
            if breaker.opened_at is not None:
                yield BreakerState(
                    connector_uid=uid,
                    connector=breaker.name,
                    model=model,
                    half_open=breaker.probing or self._clock.monotonic() >= breaker.retry_at,
                    opened_at=breaker.opened_at,
                )


class _Breaker:
    def __init__(self, name: str, since: float) -> None:
        self.name = name
        self.since = since
        self.failures = 0
        self.opened_at: datetime | None = None
        self.retry_at = 0.0
        self.probing = False
