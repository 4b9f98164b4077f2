"""A whole gateway to be tested from outside: a server process, or one in this process where a test has to look inside.

Both are what `patchbay serve` runs: real sockets, an SQLite file, real keys. Only the provider follows a script.
"""

import asyncio
import gc
import os
import re
import secrets
import signal
import sqlite3
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any, Final, Self

import aiohttp
import grpc.aio
import psutil
from cryptography.fernet import Fernet
from google.protobuf.field_mask_pb2 import FieldMask
from grpc_health.v1 import health_pb2_grpc
from tests.rpc.bench import Metadata, chat_request
from tests.support.provider import Provider

from patchbay.v1 import (
    admin_service_pb2,
    admin_service_pb2_grpc,
    connector_service_pb2,
    connector_service_pb2_grpc,
    gateway_service_pb2_grpc,
)
from patchbay.v1 import gateway_service_pb2 as pb
from patchbay_server import app, config

COMMAND: Final = (sys.executable, "-m", "patchbay_server.cli", "serve")
START_S_MAX: Final = 60.0
END_S_MAX: Final = 60.0
OWNER: Final = "owners/acme"
TABLES: Final = ("connectors", "preferences", "policies", "tokens", "audit_events", "calls", "attempts", "months")
_LISTENING: Final = re.compile(r"listening on ([0-9.:]+)")


def fresh_token() -> str:
    return f"pb_{secrets.token_hex(6)}_{secrets.token_urlsafe(32)}"


def fresh_key() -> str:
    return Fernet.generate_key().decode()


class Client:
    """Stubs for one gateway, and the token that they are used with."""

    def __init__(self, channel: grpc.aio.Channel, token: str) -> None:
        self.channel = channel
        self.metadata: Metadata = (("authorization", f"Bearer {token}"),) if token else ()
        # Any: the types of stubs do not know which of their options are meant where several are given by name.
        self.gateway: Any = gateway_service_pb2_grpc.GatewayServiceStub(channel)
        self.connectors: Any = connector_service_pb2_grpc.ConnectorServiceStub(channel)
        self.admin: Any = admin_service_pb2_grpc.AdminServiceStub(channel)
        self.health: Any = health_pb2_grpc.HealthStub(channel)

    def stream(self, connector: str = "main", *, request: pb.ChatRequest | None = None, **options: Any) -> Any:
        """A streamed call, begun."""
        return self.gateway.Stream(request or asking(connector), **self._asked(options))

    def chat(self, connector: str = "main", *, request: pb.ChatRequest | None = None, **options: Any) -> Any:
        """A unary call, begun. Unlike the stock stub's, its header can be read as soon as it comes."""
        method = self.channel.unary_stream(
            "/patchbay.v1.GatewayService/Chat", pb.ChatRequest.SerializeToString, pb.ChatResponse.FromString
        )
        return method(request or asking(connector), **self._asked(options))

    async def add_connector(
        self,
        address: str,
        connector_id: str = "main",
        *,
        model: str = "small",
        key: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """A connector to an OpenAI-compatible server, whose API has its root at `address`."""
        credential = connector_service_pb2.OpenaiCompatibleCredential(base_url=address, headers=headers or {})
        if key:
            credential.api_key = key
        await self.create(connector_id, connector_service_pb2.Credential(openai_compatible=credential), model)

    async def create(self, connector_id: str, credential: connector_service_pb2.Credential, model_hint: str) -> None:
        """A connector of any type."""
        await self.connectors.CreateConnector(
            connector_service_pb2.CreateConnectorRequest(
                parent=OWNER,
                connector_id=connector_id,
                connector=connector_service_pb2.Connector(display_name=connector_id, model_hint=model_hint),
                credential=credential,
            ),
            metadata=self.metadata,
        )

    async def allow(self, private_http: "connector_service_pb2.PrivateHttp.ValueType") -> None:
        """Set how far connectors may reach into private networks."""
        policy = admin_service_pb2.Policy(private_http=private_http)
        mask = FieldMask(paths=["private_http"])
        request = admin_service_pb2.UpdatePolicyRequest(policy=policy, update_mask=mask)
        await self.admin.UpdatePolicy(request, metadata=self.metadata)

    async def status(self) -> admin_service_pb2.GetStatusResponse:
        status: admin_service_pb2.GetStatusResponse = await self.admin.GetStatus(
            admin_service_pb2.GetStatusRequest(), metadata=self.metadata
        )
        return status

    async def idle(self) -> admin_service_pb2.GetStatusResponse:
        """The server's state once no call runs there any more."""

        async def nothing_runs() -> bool:
            return not (await self.status()).calls_open

        await until(nothing_runs)
        return await self.status()

    def _asked(self, options: dict[str, Any]) -> dict[str, Any]:
        return {"metadata": self.metadata, "timeout": 30.0} | options


def asking(connector: str = "main", said: str = "Tell me about the sea.", **fields: Any) -> pb.ChatRequest:
    return chat_request(said, owner=OWNER, connector=connector, **fields)


async def until(holds: Callable[[], Awaitable[bool]], within_s: float = END_S_MAX) -> None:
    """Wait until that holds of something that cannot say so by itself."""
    async with asyncio.timeout(within_s):
        while not await holds():  # noqa: ASYNC110 -- another process sets no event of ours
            await asyncio.sleep(0.01)


async def read(call: Any, got: list[Any] | None = None) -> list[Any]:
    """All messages of a call that has been begun, also into `got`; raises what ends it."""
    got = [] if got is None else got
    while (message := await call.read()) is not grpc.aio.EOF:
        got.append(message)
    return got


class Records:
    """What a gateway's database file holds, read past the gateway."""

    def __init__(self, data_dir: Path) -> None:
        self.file = data_dir / "patchbay.db"

    def query(self, statement: str, parameters: Sequence[Any] = ()) -> list[Any]:
        with closing(sqlite3.connect(self.file)) as database:
            database.execute("PRAGMA query_only=ON")
            database.row_factory = sqlite3.Row
            return database.execute(statement, parameters).fetchall()

    def states(self) -> dict[str, str]:
        """Each call's state, by its id."""
        found = self.query("SELECT call_id, state FROM calls")
        assert len({row["call_id"] for row in found}) == len(found), "a call was recorded twice"
        return {row["call_id"]: row["state"] for row in found}

    def counts(self) -> dict[str, int]:
        """Rows by table."""
        return {table: self.query(f"SELECT count(*) FROM {table}")[0][0] for table in TABLES}

    def check_closed(self) -> None:
        """Every call and every attempt has ended, and every call knows how many attempts it made."""
        open_rows = self.query(
            "SELECT call_id FROM calls WHERE state = 'open' OR ended_at IS NULL"
            " UNION ALL SELECT call_id FROM attempts WHERE state = 'open' OR ended_at IS NULL"
        )
        assert not open_rows, f"{len(open_rows)} records are still open"
        counted = Counter(row["call_id"] for row in self.query("SELECT call_id FROM attempts"))
        for row in self.query("SELECT call_id, attempts FROM calls WHERE attempts IS NOT NULL"):
            assert row["attempts"] == counted[row["call_id"]]


class GatewayProcess:
    """`patchbay serve` as a process of its own on one data folder; it may be started again after its end.

    Attributes:
        log: everything that the process has written so far, to its output and its errors, over all its starts.
        begun_at: where in the log the last start begins.
    """

    def __init__(self, data_dir: Path, *, command: Sequence[str] = COMMAND, **settings: str) -> None:
        self.data_dir = data_dir
        self.token = fresh_token()
        self.log = ""
        self.begun_at = 0
        self.records = Records(data_dir)
        self._command = command
        self._settings = {
            "data_dir": str(data_dir),
            "listen": "127.0.0.1:0",
            "bootstrap_token": self.token,
            "log_level": "debug",
            "creates_per_minute": "1000",
            "rotations_per_minute": "1000",
            "tests_per_minute": "1000",
        } | settings
        self.address = ""
        self._reading: asyncio.Task[None] | None = None
        self._said = asyncio.Event()

    async def start(self) -> None:
        """Returns when it listens."""
        await self._launch()
        try:
            await self.says("listening on")
        except BaseException:
            await self.kill()
            raise
        found = _LISTENING.findall(self.log)
        self.address = found[-1]

    @asynccontextmanager
    async def launched(self) -> AsyncIterator[None]:
        """The process, made and not waited for; it does not outlive the context."""
        await self._launch()
        try:
            yield
        finally:
            await self._end()

    async def _launch(self) -> None:
        self.process = await asyncio.create_subprocess_exec(
            *self._command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env=self._environment()
        )
        self.begun_at = len(self.log)
        self._reading = asyncio.create_task(self._read())

    async def says(self, text: str) -> None:
        """Wait until the process, since it was launched, has said that."""
        async with asyncio.timeout(START_S_MAX):
            while text not in self.log[self.begun_at :]:
                assert self._reading is not None
                assert not self._reading.done(), f"the server has ended:\n{self.log[-4000:]}"
                self._said.clear()
                await self._said.wait()

    async def ended(self) -> int:
        """The exit code, once the process has ended and all that it said is in the log."""
        assert self._reading is not None
        async with asyncio.timeout(END_S_MAX):
            await self._reading
            return await self.process.wait()

    async def stop(self) -> int:
        """The exit code of an orderly end."""
        self.terminate()
        return await self.ended()

    def terminate(self) -> None:
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)

    async def kill(self) -> None:
        with suppress(ProcessLookupError):
            self.process.kill()
        await self.ended()

    @property
    def inside(self) -> psutil.Process:
        return psutil.Process(self.process.pid)

    @property
    def resident_bytes(self) -> int:
        return int(self.inside.memory_info().rss)

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        """The administrator, on a connection of its own."""
        # Without an own pool of subchannels, clients that come one after another share their first one's connection.
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", 32 * 1024 * 1024)]
        async with grpc.aio.insecure_channel(self.address, options=options) as channel:
            yield Client(channel, self.token)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._end()

    async def _end(self) -> None:
        if self.process.returncode is None:
            await self.kill()

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while data := await self.process.stdout.read(65536):
            self.log += data.decode(errors="replace")
            self._said.set()
        self._said.set()

    def _environment(self) -> dict[str, str]:
        given = {f"PATCHBAY_{name.upper()}": value for name, value in self._settings.items()}
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PATCHBAY_")}
        return inherited | {name: value for name, value in given.items() if value}


class GatewayHere:
    """A server in this process, and the administrator's client of it."""

    def __init__(
        self, running: app.Running, address: str, settings: config.Settings, client: Client, provider: Provider
    ) -> None:
        self.service = running.service
        self.address = address
        self.token = settings.bootstrap_token
        self.settings = settings
        self.client = client
        self.provider = provider
        self.records = Records(settings.data_dir)
        self._tasks_before = _kinds_of_tasks()

    async def check_nothing_is_left(self) -> None:
        """Wait until no call runs; then every record is closed, and no task and no response of any call is left."""
        status = await self.client.idle()
        assert status.calls_without_record == 0
        await self.service.recorder.flush()
        self.records.check_closed()

        async def no_task_is_left() -> bool:
            return not _kinds_of_tasks() - self._tasks_before

        await until(no_task_is_left, 1)
        gc.collect()
        responses = [thing for thing in gc.get_objects() if isinstance(thing, aiohttp.ClientResponse)]
        assert all(response.closed for response in responses), "a response is still open"


def _kinds_of_tasks() -> Counter[str]:
    """How many tasks of each kind there are. Those in which grpc waits for its next call or event come and go."""
    tasks = (task for task in asyncio.all_tasks() if task is not asyncio.current_task())
    names = (task.get_coro().__qualname__ for task in tasks)  # type: ignore[union-attr]
    return Counter(name for name in names if not name.startswith("AioServer."))


@asynccontextmanager
async def gateway_here(data_dir: Path, **given: Any) -> AsyncIterator[GatewayHere]:
    """A gateway with a connector `main` to a provider that follows scripts; `given` are settings."""
    token = fresh_token()
    told: dict[str, Any] = {
        "data_dir": data_dir,
        "listen": "127.0.0.1:0",
        "bootstrap_token": token,
        "master_keys": f"key-1:{fresh_key()}",
        "drain_grace_s": 0.0,
        "creates_per_minute": 1000,
        "rotations_per_minute": 1000,
        "tests_per_minute": 1000,
    }
    settings = config.Settings(**(told | given))
    async with (
        Provider() as provider,
        app.serving(settings) as (running, server),
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        client = Client(channel, token)
        await client.allow(connector_service_pb2.PRIVATE_HTTP_LOOPBACK)
        await client.add_connector(provider.url() + "/v1")
        yield GatewayHere(running, server.address, settings, client, provider)
