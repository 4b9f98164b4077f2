"""A gateway's core with nothing replaced but the provider, the clock and, unless a test asks for SQL, the database."""

import asyncio
import logging
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from cryptography.fernet import Fernet
from tests.support import make
from tests.support.clock import Clock
from tests.support.provider import Provider
from tests.support.stopwatch import Stopwatch

from patchbay_server.adapters.protocol import Adapter
from patchbay_server.adapters.registry import BUILT_IN, Registry
from patchbay_server.core.access import Access, RateLimits, RateRule
from patchbay_server.core.admin import Admin
from patchbay_server.core.attempt import Exchange
from patchbay_server.core.breaker import Breakers
from patchbay_server.core.call import Means
from patchbay_server.core.connectors import Connectors
from patchbay_server.core.gateway import CallLimits, Gateway
from patchbay_server.core.health import Health
from patchbay_server.core.meter import Meter
from patchbay_server.core.record import Recorder
from patchbay_server.core.snapshots import Snapshots
from patchbay_server.core.tally import Tally
from patchbay_server.market.prices import PriceList
from patchbay_server.market.qualities import QualityList
from patchbay_server.store.memory import MemoryStore
from patchbay_server.store.protocol import AuditRow, Page
from patchbay_server.store.sql import SqlStore
from patchbay_server.testing.stream_rules import check_stream
from patchbay_server.types import (
    AuditEvent,
    AuditType,
    Caller,
    CallOpened,
    CallRow,
    CallState,
    ChatAnswer,
    ChatCompleted,
    ChatEvent,
    ChatRequest,
    Connector,
    PrivateHttp,
    Record,
)
from patchbay_server.vault import Keyring, Vault
from patchbay_server.wire.upstream import Limits, Upstream

PLANTED = "planted-secret-4f1c9a7e"
"""Part of every credential here; nothing that is logged may hold it."""
INVARIANTS_S_MAX = 20.0
QUIET = Limits(connect_s=20.0, first_byte_s=20.0, idle_s=20.0)


class Bench:
    """One gateway's core at work. Made by `assembled`.

    Attributes:
        records_lost: how many closing records a test lets get lost; the invariants expect that number.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        provider: Provider,
        store: MemoryStore | SqlStore,
        limits: Limits,
        calls: CallLimits,
        adapters: tuple[Adapter, ...],
    ) -> None:
        self.clock = clock
        self.provider = provider
        self.store = store
        self.caller = make.caller()
        self.records_lost = 0
        self.registry = Registry((*BUILT_IN, *adapters))
        self.vault = Vault(Keyring([("key-1", Fernet.generate_key())]))
        self.upstream = Upstream(now=clock.now, tls=_no_authorities())
        self.recorder = Recorder(store)
        self.snapshots = Snapshots(store)
        self.exchange = Exchange(
            registry=self.registry, vault=self.vault, upstream=self.upstream, clock=clock, limits=limits
        )
        self.health = Health(store=store, snapshots=self.snapshots, exchange=self.exchange, clock=clock)
        self.access = Access(store, clock)
        rules = {name: RateRule(5) for name in ("create_connector", "test_connector", "rotate_credential")}
        self.rates = RateLimits(rules, clock)
        self.meter = Meter(store, clock)
        self.breakers = Breakers(clock)
        means = Means(
            exchange=self.exchange,
            snapshots=self.snapshots,
            meter=self.meter,
            health=self.health,
            breakers=self.breakers,
            tally=Tally(),
            prices=_prices(),
            qualities=_qualities(),
            clock=clock,
        )
        self.gateway = Gateway(means=means, recorder=self.recorder, limits=calls, process_id="bench")
        self.connectors = Connectors(
            store=store,
            snapshots=self.snapshots,
            registry=self.registry,
            vault=self.vault,
            exchange=self.exchange,
            health=self.health,
            rates=self.rates,
            clock=clock,
        )
        self.admin = Admin(
            store=store,
            snapshots=self.snapshots,
            registry=self.registry,
            vault=self.vault,
            access=self.access,
            clock=clock,
        )
        self._opened: list[str] = []
        self._logged: list[str] = []
        self._tasks_before: frozenset[asyncio.Task[Any]] = frozenset()

    # --- what there is ---

    async def policy(self, **fields: Any) -> None:
        """Change the policy. Connectors may always reach loopback."""
        now = await self.store.policy()
        changed = msgspec.structs.replace(now, private_http=PrivateHttp.LOOPBACK, **fields, version=now.version + 1)
        await self.store.save_policy(changed, now.version, self.audit(AuditType.POLICY_CHANGED))
        await self.snapshots.refresh()

    async def add(
        self,
        id: str = "main",  # noqa: A002 -- the field's name
        *,
        owner: str = make.OWNER,
        type: str = "openai_compatible",  # noqa: A002 -- the field's name
        is_default: bool = False,
        credential: dict[str, Any] | None = None,
        **fields: Any,
    ) -> Connector:
        """A connector whose provider answers with the scripts of the connector's id."""
        fields_of_type = {field.name for field in self.registry.get(type).info.fields}
        address = "endpoint" if "endpoint" in fields_of_type else "base_url"
        plain = {"api_key": f"{PLANTED}-{id}", address: self.provider.url(id) + "/v1", **(credential or {})}
        connector = make.connector(id, owner=owner, type=type, **fields)
        connector = msgspec.structs.replace(connector, sealed=self.vault.seal(connector.uid, plain))
        await self.store.create_connector(connector, self.audit(AuditType.CREATED, connector))
        if is_default:
            await self.store.set_default(owner, connector.uid, self.audit(AuditType.DEFAULT_SET, connector))
        await self.snapshots.refresh()
        return connector

    async def found(self, connector: Connector) -> Connector:
        """The connector as it is now."""
        stored = await self.store.find_connector(connector.owner, connector.id)
        assert stored is not None
        return stored

    def audit(self, type_: AuditType, connector: Connector | None = None) -> AuditEvent:
        subject = connector.name if connector else "policy"
        uid = connector.uid if connector else ""
        return AuditEvent(type=type_, at=self.clock.now(), actor="test", subject=subject, connector_uid=uid)

    # --- calls ---

    async def chat(self, *, timeout_s: float | None = None, caller: Caller | None = None, **request: Any) -> ChatAnswer:
        """The whole answer to one request, which is made of `make.request`'s fields."""
        return await self.gateway.chat(caller or self.caller, make.request(**request), timeout_s)

    async def batches(
        self, request: ChatRequest | None = None, *, timeout_s: float | None = None, **fields: Any
    ) -> AsyncIterator[list[ChatEvent]]:
        """The events of one streamed call as they come."""
        asked = request or make.request(**fields)
        async with (
            self.gateway.stream(self.caller, asked, timeout_s) as call,
            aclosing(call.events()) as batches,
        ):
            async for batch in batches:
                yield batch

    async def stream(
        self, request: ChatRequest | None = None, *, timeout_s: float | None = None, **fields: Any
    ) -> list[ChatEvent]:
        """The events of one streamed call, which keep the rules of streams."""
        events = [event async for batch in self.batches(request, timeout_s=timeout_s, **fields) for event in batch]
        check_stream(events)
        return events

    async def streamed(self, **request: Any) -> ChatAnswer:
        """The answer at the end of one streamed call."""
        last = (await self.stream(**request))[-1]
        assert isinstance(last, ChatCompleted)
        return last.answer

    # --- what is left of them ---

    async def calls(self) -> list[CallRow]:
        """Every call's record with its attempts, oldest first."""
        await self.recorder.flush()
        rows = [await self.store.find_call(call_id) for call_id in dict.fromkeys(self._opened)]
        return sorted((row for row in rows if row is not None), key=lambda row: row.opened.call_id)

    async def call(self) -> CallRow:
        """The record of the only call."""
        (row,) = await self.calls()
        return row

    async def audits(self, type_: AuditType) -> list[AuditRow]:
        return [row for row in await self.store.list_audit(Page(size=1000)) if row.type is type_]

    async def check_invariants(self) -> None:
        """What holds whatever happened: each call recorded once, nothing left open, no secret told."""
        await self.recorder.flush()
        assert self.gateway.running == 0, "calls are still running"
        assert self.recorder.calls_without_record == self.records_lost
        twice = [call_id for call_id, times in Counter(self._opened).items() if times > 1]
        assert not twice, "a call was opened twice"
        if not self.records_lost:
            await self._check_records()
        await self._check_connections()
        assert not self.provider.unexpected, "the provider was asked more often than scripted"
        tasks = asyncio.all_tasks() - self._tasks_before - self.provider.tasks
        assert not [task for task in tasks if task is not asyncio.current_task() and not task.done()]
        told = [line for line in self._logged if PLANTED in line]
        assert not told, f"a secret was logged: {told[0]}"

    async def _check_records(self) -> None:
        rows = await self.calls()
        assert [row.opened.call_id for row in rows] == sorted(self._opened), "a call left no record"
        for row in rows:
            assert row.state is not CallState.OPEN, "a call's record is still open"
            assert row.closed is not None
            assert row.closed.attempts == len(row.attempts)
            assert all(attempt.closed is not None for attempt in row.attempts), "an attempt's record is still open"
            assert [attempt.opened.number for attempt in row.attempts] == [*range(1, len(row.attempts) + 1)]

    async def _check_connections(self) -> None:
        watch = Stopwatch()
        for connection in self.provider.connections:
            if connection.abandoned:
                await connection.closed.wait()
        # The tests of cancelling hold it to 100 ms; here, after whatever a test did, it must only not linger.
        assert watch.seconds < 0.5, "a connection was not closed at once"

    def note(self, records: tuple[Record, ...]) -> None:
        self._opened += [record.call_id for record in records if isinstance(record, CallOpened)]

    def start_watching(self, handler: "_Lines") -> None:
        self._logged = handler.lines
        self._tasks_before = frozenset(asyncio.all_tasks())


@asynccontextmanager
async def assembled(
    *,
    clock: Clock | None = None,
    sqlite: Path | None = None,
    limits: Limits = QUIET,
    calls: CallLimits = CallLimits(),  # noqa: B008 -- immutable
    adapters: tuple[Adapter, ...] = (),
) -> AsyncIterator[Bench]:
    """A bench at work; leaving it checks the invariants.

    Args:
        sqlite: the file of an SQLite database to be used in place of memory.
        adapters: connector types beside the built-in ones.
    """
    handler = _Lines()
    logging.getLogger().addHandler(handler)
    store = await SqlStore.open(f"sqlite:///{sqlite}") if sqlite else MemoryStore()
    try:
        async with Provider() as provider:
            bench = Bench(
                clock=clock or Clock(), provider=provider, store=store, limits=limits, calls=calls, adapters=adapters
            )
            _watch_openings(bench)
            writing = asyncio.create_task(bench.recorder.run(), name="recorder")
            bench.start_watching(handler)
            try:
                await bench.policy()
                yield bench
                async with asyncio.timeout(INVARIANTS_S_MAX):
                    await bench.check_invariants()
            finally:
                writing.cancel()
                await asyncio.gather(writing, return_exceptions=True)
                await bench.upstream.close()
    finally:
        logging.getLogger().removeHandler(handler)
        await store.close()


def _watch_openings(bench: Bench) -> None:
    write = bench.recorder.write

    def noting(*records: Record) -> asyncio.Future[None]:
        bench.note(records)
        return write(*records)

    bench.recorder.write = noting  # type: ignore[method-assign]


@cache
def _prices() -> PriceList:
    return PriceList.bundled()


@cache
def _qualities() -> QualityList:
    return QualityList.bundled()


@cache
def _no_authorities() -> ssl.SSLContext:
    """Trusts nobody, which spares each bench the reading of a hundred certificates."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


class _Lines(logging.Handler):
    """Keeps what is logged as it would be written without the redactor, tracebacks included."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []
        self.setFormatter(logging.Formatter())

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))
