"""500 server processes die by SIGKILL at random moments among calls, one after the other on one data folder.

After each start every call that was admitted before has exactly one record, which names its end, and nothing is held of
any cap. The servers are whole ones, with their gRPC and their file, but forked from a process that has loaded the code
(see `forked_servers`), because loading it anew would take most of the time; `test_killed` kills servers that were
started as users start them.
"""

import asyncio
import json
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import grpc.aio
import psutil
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from tests.e2e.gateway import OWNER, Client, Records, asking, fresh_key, fresh_token, until
from tests.faults import forked_servers
from tests.support import answers
from tests.support.provider import Provider, Script, Silence, Step, Wait

from patchbay.v1 import admin_service_pb2, connector_service_pb2
from patchbay.v1 import gateway_service_pb2 as pb
from patchbay_server.store.audit_chain import event_of, follow, head_of
from patchbay_server.store.protocol import AuditHead, Page
from patchbay_server.store.sql import SqlStore

KILLS: Final = 500
BATCHES: Final = 4
AT_ONCE: Final = 14
LIFE_S: Final = (-0.02, 0.12)
"""Bounds of the time from a call's admission to the kill, about as long as calls take; below 0 no call need be
admitted.
"""
EVENTS: Final = answers.openai_events([str(n) for n in range(12)])


def _dripping(wait_s: float) -> list[Step]:
    return [answers.EVENT_STREAM, *(step for event in EVENTS for step in (Wait(wait_s), event))]


SCRIPTS: Final[dict[str, Script]] = {
    "quick": answers.openai_stream(),
    "dripping": _dripping(0.004),
    "whole": [Wait(0.02), *answers.openai_unary()],
    "failing": [Wait(0.005), *answers.error(503)],
    "endless": answers.openai_interrupted(Silence()),
    "hard": _dripping(0.003),
    "shared": _dripping(0.002),
}
"""What the provider of each connector answers, always."""
FALLING_BACK: Final = {"failing"}
UNARY: Final = {"whole"}
CALLED: Final = ("quick", "dripping", "whole", "failing", "endless", "hard", "failing")


@dataclass
class Told:
    """What the caller of one call has been told."""

    connector: str
    call_id: str = ""
    completed: bool = False


class Servers:
    """Server processes on one data folder, one after the other."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.token = fresh_token()
        self._environment = {
            "PATCHBAY_DATA_DIR": str(data_dir),
            "PATCHBAY_LISTEN": "127.0.0.1:0",
            "PATCHBAY_BOOTSTRAP_TOKEN": self.token,
            "PATCHBAY_MASTER_KEYS": f"key-1:{fresh_key()}",
            "PATCHBAY_CREATES_PER_MINUTE": "1000",
        }
        self.pid = 0
        self.address = ""

    async def start(self) -> None:
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        self._parent.stdin.write(json.dumps(self._environment).encode() + b"\n")
        await self._parent.stdin.drain()
        async with asyncio.timeout(20):
            line = await self._parent.stdout.readline()
        pid, self.address = line.decode().split()
        self.pid = int(pid)

    async def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        while psutil.pid_exists(self.pid):  # noqa: ASYNC110 -- a process of another one's tells us nothing
            await asyncio.sleep(0.001)
        self.pid = 0

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(self.address, options=options) as channel:
            yield Client(channel, self.token)

    async def __aenter__(self) -> Self:
        self._parent = await asyncio.create_subprocess_exec(
            sys.executable,
            forked_servers.__file__,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.pid:
            await self.kill()
        assert self._parent.stdin is not None
        self._parent.stdin.close()
        await self._parent.wait()


async def _arrange(client: Client, provider: Provider) -> None:
    await client.allow(connector_service_pb2.PRIVATE_HTTP_LOOPBACK)
    for name, script in SCRIPTS.items():
        provider.always_answer(script, name=name)
        await client.add_connector(provider.url(name) + "/v1", name)
    for name in ("hard", "shared"):
        cap = admin_service_pb2.SetConnectorCapRequest(
            name=f"{OWNER}/connectors/{name}",
            monthly_token_cap=10**9,
            cap_mode=connector_service_pb2.CAP_MODE_HARD,
        )
        await client.admin.SetConnectorCap(cap, metadata=client.metadata)
    policy = admin_service_pb2.Policy(org_default_connector=f"{OWNER}/connectors/shared")
    mask = FieldMask(paths=["org_default_connector"])
    request = admin_service_pb2.UpdatePolicyRequest(policy=policy, update_mask=mask)
    await client.admin.UpdatePolicy(request, metadata=client.metadata)


async def _caller(client: Client, connector: str, told: list[Told], gone: asyncio.Event) -> None:
    """Makes one call after the other until the server is gone."""
    fallback = pb.FALLBACK_MODE_ORG_DEFAULT if connector in FALLING_BACK else pb.FALLBACK_MODE_NONE
    request = asking(connector, fallback=fallback)
    with suppress(grpc.aio.AioRpcError):
        while not gone.is_set():
            this = Told(connector)
            told.append(this)
            call = (client.chat if connector in UNARY else client.stream)(request=request)
            this.call_id = dict(await call.initial_metadata()).get("patchbay-call-id", "")
            while (message := await call.read()) is not grpc.aio.EOF:
                this.completed = connector in UNARY or message.HasField("completed")


async def _admitted(told: Sequence[Told]) -> bool:
    return any(call.call_id for call in told)


async def _killed_among_calls(servers: Servers, after_s: float) -> list[Told]:
    told: list[Told] = []
    gone = asyncio.Event()
    async with servers.client() as client:
        calling = asyncio.gather(*(_caller(client, CALLED[n % len(CALLED)], told, gone) for n in range(AT_ONCE)))
        if after_s > 0:
            await until(lambda: _admitted(told))
            await asyncio.sleep(after_s)
        gone.set()
        await servers.kill()
        await calling
    return told


async def _check(records: Records, client: Client, told: list[Told]) -> None:
    """After the start that follows a kill."""
    states = records.states()
    for call in told:
        if call.completed:
            assert states.get(call.call_id) == "succeeded", f"{call} was completed"
        elif call.call_id:
            allowed = {"interrupted"} if call.connector == "endless" else {"interrupted", "succeeded"}
            assert states.get(call.call_id) in allowed, f"{call} was admitted"
    records.check_closed()
    assert records.query("SELECT count(*) FROM holds")[0][0] == 0, "a dead call holds tokens"
    assert (await client.status()).calls_without_record == 0


def _check_whole(records: Records) -> None:
    """What the file holds at the end adds up."""
    assert records.query("PRAGMA integrity_check")[0][0] == "ok"
    used = records.query(
        "SELECT connector_uid, sum(input_tokens + output_tokens) AS tokens FROM attempts GROUP BY 1 HAVING tokens > 0"
    )
    counted = records.query("SELECT connector_uid, sum(tokens) AS tokens FROM months GROUP BY 1 HAVING tokens > 0")
    assert {tuple(row) for row in used} == {tuple(row) for row in counted}
    switches = records.query(
        "SELECT a.call_id FROM attempts a JOIN attempts b ON a.call_id = b.call_id AND b.number = a.number + 1"
        " WHERE a.connector_uid <> b.connector_uid"
    )
    # Nobody asks for `shared`: a call that began there was diverted from a connector whose breaker was open.
    diverted = records.query(
        "SELECT call_id FROM attempts JOIN connectors ON uid = connector_uid WHERE number = 1 AND id = 'shared'"
    )
    events = records.query("SELECT call_id FROM audit_events WHERE type = 'fallback_triggered'")
    assert sorted(row[0] for row in (*switches, *diverted)) == sorted(row[0] for row in events)
    assert switches


async def _check_trail(data_dir: Path) -> None:
    """Each row of the audit trail follows the row before, up to the head that is kept apart."""
    store = await SqlStore.open(f"sqlite:///{data_dir / 'patchbay.db'}")
    try:
        head = AuditHead(sequence=0, hash=bytes(32))
        while rows := await store.list_audit(Page(size=1000, after=str(head.sequence))):
            for row in rows:
                assert row == follow(head, event_of(row))
                head = head_of(row)
        assert head == await store.audit_head()
    finally:
        await store.close()


async def _kill_often(data_dir: Path, times: int, seed: int) -> None:
    chance = random.Random(seed)
    admitted = completed = 0
    print(f"seed {seed}")
    async with Provider() as provider, Servers(data_dir) as servers:
        records = Records(data_dir)
        told: list[Told] = []
        for kill in range(times + 1):
            await servers.start()
            async with servers.client() as client:
                if not kill:
                    await _arrange(client, provider)
                await _check(records, client, told)
                if kill == times:
                    break
            told = await _killed_among_calls(servers, chance.uniform(*LIFE_S))
            admitted += sum(bool(call.call_id) for call in told)
            completed += sum(call.completed for call in told)
        _check_whole(records)
        states = [*records.states().values()]
    await _check_trail(data_dir)
    assert admitted > times, "too few calls were admitted to prove anything"
    assert completed
    assert states.count("interrupted") > times
    assert set(states) == {"interrupted", "succeeded"}


async def test_servers_that_are_killed_one_after_the_other_lose_no_call(tmp_path: Path) -> None:
    await _kill_often(tmp_path / "data", times=10, seed=7)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(BATCHES))
async def test_500_killed_servers_lose_no_call(tmp_path: Path, seed: int) -> None:
    await _kill_often(tmp_path / "data", times=KILLS // BATCHES, seed=seed)
