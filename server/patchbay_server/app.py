"""Assembly: builds every part from the settings, runs them, and takes them down in order. The only place that knows all
of them.
"""

import asyncio
import fcntl
import logging
import os
import secrets
import signal
import ssl
import sys
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import msgspec

from patchbay_server import telemetry
from patchbay_server.adapters import plugins
from patchbay_server.adapters.plugins import PlugIns
from patchbay_server.adapters.registry import BUILT_IN, Registry
from patchbay_server.config import DATABASE, ConfigError, Settings
from patchbay_server.core.access import Access, RateLimits, RateRule, TokenText, new_token_text
from patchbay_server.core.admin import Admin
from patchbay_server.core.admission import Room
from patchbay_server.core.attempt import Exchange
from patchbay_server.core.breaker import Breakers
from patchbay_server.core.call import Means
from patchbay_server.core.clock import Clock, SystemClock
from patchbay_server.core.connectors import Connectors
from patchbay_server.core.gateway import CallLimits, Gateway
from patchbay_server.core.health import Health
from patchbay_server.core.meter import Meter
from patchbay_server.core.record import Recorder
from patchbay_server.core.service import Facts, PluginStatus, Service
from patchbay_server.core.snapshots import Snapshots
from patchbay_server.core.tally import Tally
from patchbay_server.errors import PatchbayError
from patchbay_server.market.prices import PriceList
from patchbay_server.market.qualities import QualityList
from patchbay_server.metrics import serving_metrics
from patchbay_server.rpc.server import RpcServer, RpcSettings, Tls
from patchbay_server.store.sql import SqlStore
from patchbay_server.types import Policy
from patchbay_server.vault import Keyring, Vault, load_or_create_key_file
from patchbay_server.wire.upstream import Limits, Upstream

LAST_USED_EVERY_S: Final = 30.0
STORE_PING_EVERY_S: Final = 2.0

log = logging.getLogger(__name__)


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """A gateway that runs: its service, and the administrator's token if this is the first start."""

    service: Service
    first_token: TokenText | None

    def __repr__(self) -> str:
        return f"Running(first_token={'***' if self.first_token else None})"

    def __rich_repr__(self) -> list[tuple[str, str]]:
        return [("first_token", "***")] if self.first_token else []


def run(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; the process's exit code.

    Raises:
        ConfigError: when a setting turns out to be unusable.
    """
    telemetry.set_up_logging(level=settings.log_level, style=settings.log_format)
    return asyncio.run(_serve_until_stopped(settings))


async def _serve_until_stopped(settings: Settings) -> int:
    stopped = stop_asked()
    async with serving(settings) as (running, server):
        log.info("listening on %s", server.address)
        await stopped.wait()
        log.info("stopping with %d calls in flight", running.service.gateway.running)
    log.info("stopped")
    return 0


def stop_asked() -> asyncio.Event:
    """Set by SIGTERM or SIGINT from now on. Ask for it before starting anything: a start, too, may be told to stop."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    return stopped


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[tuple[Running, RpcServer]]:
    """A gateway that answers gRPC; leaving the context drains it.

    Raises:
        ConfigError: when the address cannot be listened on, the data folder not be used, or the keys not be read.
    """
    announce(settings)
    async with assemble(settings, SystemClock()) as running:
        server = RpcServer(running.service, _rpc_settings(settings))
        await _announce_unknown_tokens(settings, running.service)
        try:
            await server.start()
        except RuntimeError as error:
            raise ConfigError(f"listen: cannot listen on {settings.listen}: {error}") from None
        except OSError as error:
            raise ConfigError(f"tls_certificate_file: cannot be used with tls_key_file: {error}") from None
        follow = asyncio.create_task(_follow_store(running.service, server), name="store-health")
        try:
            async with _metrics(settings, running.service):
                yield running, server
        finally:
            follow.cancel()
            await server.stop()


@asynccontextmanager
async def _metrics(settings: Settings, service: Service) -> AsyncIterator[None]:
    if not settings.metrics_listen:
        yield
        return
    async with serving_metrics(service, settings.metrics_listen) as port:
        log.info("metrics at port %d of %s", port, settings.metrics_listen.rpartition(":")[0])
        yield


@asynccontextmanager
async def assemble(settings: Settings, clock: Clock) -> AsyncIterator[Running]:
    """Every part but the transports, running; leaving the context writes what waits and closes what was opened."""
    _make_private_folder(settings.data_dir)
    keyring, made = _keyring(settings)
    with _alone(settings):
        store = await _open_store(settings)
        upstream = Upstream(now=clock.now, tls=_upstream_tls(settings))
        try:
            await _check_keys(settings, store, keyring, made=made)
            service = await _build(settings, clock, store, upstream, keyring)
            background = (
                service.recorder.run(),
                service.snapshots.watch(),
                _write_last_used(service.access),
            )
            async with _tasks(*background):
                try:
                    yield Running(service=service, first_token=await _first_token(settings, service))
                finally:
                    await service.recorder.flush()
                    await _try_write_last_used(service.access)
        finally:
            await upstream.close()
            await store.close()


async def _open_store(settings: Settings) -> SqlStore:
    try:
        return await SqlStore.open(settings.store_url)
    except PatchbayError as error:
        # A URL may hold a password.
        where = "" if settings.database_url else f" ({settings.data_dir / DATABASE})"
        raise ConfigError(f"database_url{where}: {error.message}") from None


async def _first_token(settings: Settings, service: Service) -> TokenText | None:
    """At the first start, the administrator's token. It is handed over before it is stored: one that was stored and
    then lost on its way would lock everybody out.
    """
    if await service.store.count_tokens():
        return None
    try:
        _, token, _ = new_token_text(settings.bootstrap_token or None)
    except PatchbayError as error:
        raise ConfigError(f"bootstrap_token: {error.message}") from None
    if not settings.bootstrap_token:
        _hand_over(token, settings.bootstrap_token_file)
    return await service.admin.bootstrap(token)


def _hand_over(token: TokenText, path: Path | None) -> None:
    """Write the administrator's token to its file, or once to the terminal. Never to the log."""
    if path is None:
        sys.stderr.write(f"\nThe administrator's token, shown this once:\n\n    {token}\n\n")
        sys.stderr.flush()
        return
    try:
        write_private(path, token + "\n")
    except OSError as error:
        raise ConfigError(f"bootstrap_token_file: cannot write {path}: {error.strerror}") from None
    log.info("the administrator's token is in %s", path)


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, in place of whatever was there."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(text)


async def _build(settings: Settings, clock: Clock, store: SqlStore, upstream: Upstream, keyring: Keyring) -> Service:
    found = plugins.load(BUILT_IN, settings.plugin_dir)
    _announce_plugins(found)
    _announce_free_models(await store.policy())
    registry = Registry((*BUILT_IN, *found.adapters))
    vault = Vault(keyring)
    process_id = secrets.token_hex(8)
    interrupted = await store.close_interrupted(process_id, clock.now())
    if interrupted:
        log.warning("%d calls of a process that died are recorded as interrupted", interrupted)
    recorder = Recorder(store)
    snapshots = Snapshots(store)
    limits = Limits(
        connect_s=settings.connect_timeout_s, first_byte_s=settings.first_byte_timeout_s, idle_s=settings.idle_timeout_s
    )
    exchange = Exchange(registry=registry, vault=vault, upstream=upstream, clock=clock, limits=limits)
    health = Health(store=store, snapshots=snapshots, exchange=exchange, clock=clock)
    means = Means(
        exchange=exchange,
        snapshots=snapshots,
        meter=Meter(store, clock),
        health=health,
        breakers=Breakers(clock),
        tally=Tally(),
        prices=PriceList.bundled(),
        qualities=QualityList.bundled(),
        clock=clock,
    )
    access = Access(store, clock)
    rates = RateLimits(
        {
            "create_connector": RateRule(settings.creates_per_minute),
            "test_connector": RateRule(settings.tests_per_minute),
            "rotate_credential": RateRule(settings.rotations_per_minute),
        },
        clock,
    )
    return Service(
        facts=Facts(
            version=metadata.version("patchbay-gateway"),
            process_id=process_id,
            started_at=clock.now(),
            key_ids=keyring.ids,
            plugins=_statuses(found),
        ),
        clock=clock,
        store=store,
        access=access,
        recorder=recorder,
        snapshots=snapshots,
        gateway=Gateway(means=means, recorder=recorder, limits=_call_limits(settings), process_id=process_id),
        connectors=Connectors(
            store=store,
            snapshots=snapshots,
            registry=registry,
            vault=vault,
            exchange=exchange,
            health=health,
            rates=rates,
            clock=clock,
        ),
        admin=Admin(store=store, snapshots=snapshots, registry=registry, vault=vault, access=access, clock=clock),
    )


def _call_limits(settings: Settings) -> CallLimits:
    room = Room(
        calls_max=settings.calls_max,
        owner_calls_max=settings.owner_calls_max,
        queue_max=settings.queue_max,
        owner_queue_max=settings.owner_queue_max,
        wait_s=settings.queue_wait_s,
    )
    return CallLimits(call_s=settings.call_timeout_s, room=room)


def _rpc_settings(settings: Settings) -> RpcSettings:
    tls = None
    if settings.tls_certificate_file is not None and settings.tls_key_file is not None:
        if settings.tls_client_ca_file is not None:
            _trusting("tls_client_ca_file", settings.tls_client_ca_file)
        tls = Tls(
            certificate_file=settings.tls_certificate_file,
            key_file=settings.tls_key_file,
            client_ca_file=settings.tls_client_ca_file,
            client_tokens=settings.client_tokens,
        )
    return RpcSettings(
        address=settings.listen,
        tls=tls,
        reflection=settings.reflection,
        grace_s=settings.drain_grace_s,
        drain_s=settings.drain_timeout_s,
    )


def announce(settings: Settings) -> None:
    """Say at the start what an operator must not overlook."""
    if settings.beyond_loopback and settings.tls_certificate_file is None:
        log.warning("listening on %s WITHOUT TLS: tokens and prompts cross the network in the clear", settings.listen)


async def _announce_unknown_tokens(settings: Settings, service: Service) -> None:
    """A token may still be made while the gateway runs, so that this does not stop the start."""
    for name, token_id in settings.client_tokens.items():
        if await service.store.find_token(token_id) is None:
            log.warning("tls_clients: there is no token %s, so that %s is let in by a token only", token_id, name)


def _announce_free_models(policy: Policy) -> None:
    free = sorted(
        model for model, price in policy.price_overrides.items() if 0 in {price.input_usd_nanos, price.output_usd_nanos}
    )
    if free:
        log.warning("policy says that these models cost nothing; what they use counts as $0: %s", ", ".join(free[:20]))


def _announce_plugins(found: PlugIns) -> None:
    for plugin in found.loaded:
        log.warning(
            "plug-in %s is enabled and sees the credentials of its connectors: %s",
            plugin.source,
            ", ".join(plugin.types),
        )


def _statuses(found: PlugIns) -> tuple[PluginStatus, ...]:
    loaded = [
        PluginStatus(name=plugin.source, connector_type=type_, loaded=True)
        for plugin in found.loaded
        for type_ in plugin.types
    ]
    skipped = [PluginStatus(name=plugin.source, connector_type="", loaded=False) for plugin in found.skipped]
    return (*loaded, *skipped)


def _upstream_tls(settings: Settings) -> ssl.SSLContext | None:
    return None if settings.upstream_ca_file is None else _trusting("upstream_ca_file", settings.upstream_ca_file)


def _trusting(setting: str, authorities: Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=authorities)
    except OSError as error:  # ssl.SSLError is one, too
        raise ConfigError(f"{setting}: {authorities}: {error}") from None


def _keyring(settings: Settings) -> tuple[Keyring, bool]:
    """The master keys, and whether they were made just now."""
    try:
        if settings.master_keys:
            return Keyring.parse(settings.master_keys), False
        return load_or_create_key_file(settings.key_file)
    except PatchbayError as error:
        raise ConfigError(f"master_keys: {error.message}") from None


async def _check_keys(settings: Settings, store: SqlStore, keyring: Keyring, *, made: bool) -> None:
    """A lost key file must not go unnoticed until the first call fails."""
    stored = (await store.describe()).credentials
    missing = sorted(set(stored) - set(keyring.ids))
    if made and missing:
        settings.key_file.unlink()
        raise ConfigError(
            f"master_key_file: there is no {settings.key_file}, but stored credentials are sealed under"
            f" {', '.join(missing)}; restore that file from its backup"
        )
    if missing:
        count = sum(stored[key_id] for key_id in missing)
        log.error("%d credentials are sealed under keys that are missing: %s", count, ", ".join(missing))
    if made:
        log.warning(
            "made a master key in %s: back it up, without it no stored credential can be opened", settings.key_file
        )


def _make_private_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"data_dir: cannot use {folder}: {error.strerror}") from None


@contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    """Hold the database: a second server on the same file would take the first one's calls for dead.

    Raises:
        ConfigError: another server holds it, or it is none that one server can hold.
    """
    scheme, _, path = settings.store_url.partition(":///")
    if scheme != "sqlite" or not path:
        raise ConfigError("database_url: this version serves from sqlite:///PATH only")
    database = Path(path.partition("?")[0])
    setting = "database_url" if settings.database_url else "data_dir"
    try:
        lock = database.with_name(f"{database.name}.lock").open("w")
    except OSError as error:
        raise ConfigError(f"{setting}: cannot use {database.parent}: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{setting}: another server uses {database}; stop it, or set another {setting}") from None
        yield


@asynccontextmanager
async def _tasks(*works: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run `works` beside the body. One that ends by itself has failed, and takes the body down with it."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in works]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
    except BaseExceptionGroup as failed:
        # A single failure, the body's above all, is told as it is.
        if len(failed.exceptions) == 1:
            raise failed.exceptions[0] from None
        raise


async def _write_last_used(access: Access) -> None:
    while True:
        await asyncio.sleep(LAST_USED_EVERY_S)
        await _try_write_last_used(access)


async def _try_write_last_used(access: Access) -> None:
    try:
        await access.write_last_used()
    except PatchbayError as error:
        log.warning("when tokens were last used could not be written: %s", error.message)


async def _follow_store(service: Service, server: RpcServer) -> None:
    """SERVING only while the store answers."""
    while True:
        server.set_serving(await service.store_latency_s() is not None)
        await asyncio.sleep(STORE_PING_EVERY_S)
