"""One running gateway as the transports see it: the parts that answer requests, and what can be told of the process."""

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import Final

import msgspec

from patchbay_server.core.access import Access, require
from patchbay_server.core.admin import Admin
from patchbay_server.core.breaker import BreakerState
from patchbay_server.core.clock import Clock
from patchbay_server.core.connectors import Connectors
from patchbay_server.core.gateway import Gateway
from patchbay_server.core.record import Recorder
from patchbay_server.core.snapshots import Snapshots
from patchbay_server.errors import PatchbayError
from patchbay_server.store.protocol import Store, StoreInfo
from patchbay_server.types import Caller, Scope

PING_TIMEOUT_S: Final = 1.0


class PluginStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A plug-in that was found. `connector_type` is "" when it was not loaded."""

    name: str
    connector_type: str
    loaded: bool


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What does not change while the process runs."""

    version: str
    process_id: str
    started_at: datetime
    key_ids: tuple[str, ...]
    """The ids of the master keys, the one that seals first."""
    plugins: Sequence[PluginStatus]


class Status(msgspec.Struct, frozen=True, kw_only=True):
    facts: Facts
    draining: bool
    store: StoreInfo | None
    """None when the store did not answer."""
    store_latency_s: float | None
    """None when the store did not answer within a second."""
    calls_open: int
    calls_queued: int
    calls_without_record: int
    breakers: Sequence[BreakerState]

    @property
    def stale_credentials(self) -> int:
        """Credentials that are not sealed under the primary key."""
        if self.store is None:
            return 0
        return sum(count for key_id, count in self.store.credentials.items() if key_id != self.facts.key_ids[0])


class Service(msgspec.Struct, frozen=True, kw_only=True):
    facts: Facts
    clock: Clock
    store: Store
    access: Access
    gateway: Gateway
    connectors: Connectors
    admin: Admin
    snapshots: Snapshots
    recorder: Recorder

    async def store_latency_s(self) -> float | None:
        """Seconds that the store takes to answer; None when it does not answer within `PING_TIMEOUT_S`."""
        started = self.clock.monotonic()
        try:
            async with asyncio.timeout(PING_TIMEOUT_S):
                await self.store.ping()
        except (PatchbayError, TimeoutError):
            return None
        return self.clock.monotonic() - started

    async def status(self, caller: Caller) -> Status:
        """The state of this process, also while the store is down.

        Raises:
            PatchbayError: CALLER_NOT_AUTHORIZED.
        """
        require(caller, Scope.ADMIN)
        latency_s = await self.store_latency_s()
        try:
            store = await self.store.describe() if latency_s is not None else None
        except PatchbayError:
            store = None
        return Status(
            facts=self.facts,
            draining=self.gateway.draining,
            store=store,
            store_latency_s=latency_s,
            calls_open=self.gateway.running,
            calls_queued=self.gateway.queued,
            calls_without_record=self.recorder.calls_without_record,
            breakers=self.gateway.breakers,
        )
