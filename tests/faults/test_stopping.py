"""The orderly end of a server process, and starts that cannot be."""

import re
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from tests.e2e.gateway import Client, GatewayProcess, fresh_key, read, until
from tests.rpc.bench import failure_of, kinds
from tests.support import answers
from tests.support.provider import Pause, Provider, Silence

from patchbay.v1 import connector_service_pb2

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def connect(client: Client, provider: Provider) -> None:
    await client.allow(connector_service_pb2.PRIVATE_HTTP_LOOPBACK)
    await client.add_connector(provider.url() + "/v1")


async def health(client: Client) -> int:
    answer = await client.health.Check(health_pb2.HealthCheckRequest())
    return int(answer.status)


# --- an orderly end ---------------------------------------------------------------------------------------------------


async def test_a_stream_outlives_sigterm_and_ends_whole(tmp_path: Path) -> None:
    more = Pause()
    head, *events = answers.openai_stream()
    async with (
        Provider() as provider,
        GatewayProcess(tmp_path / "data", drain_grace_s="2", drain_timeout_s="20") as gateway,
        gateway.client() as client,
    ):
        await connect(client, provider)
        await until(lambda: serves(client))
        provider.answer([head, *events[:2], more, *events[2:]])
        provider.always_answer(answers.openai_unary())
        stream = client.stream()
        first = [await stream.read(), await stream.read()]
        gateway.terminate()
        await until(lambda: serves_no_more(client))
        [in_grace] = await read(client.chat())
        assert in_grace.message.parts[0].text == answers.TEXT, "calls are served until balancers have noticed"
        await until(lambda: refuses(client))
        late = await failure_of(read(client.chat()))
        assert (late.code, late.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        assert late.details["RetryInfo"].retry_delay.seconds == 1
        assert await health(client) == NOT_SERVING
        more.open()
        chunks = await read(stream, first)
        assert kinds(chunks)[-1] == "completed"
        assert await gateway.ended() == 0
    assert gateway.records.states()[chunks[0].started.id] == "succeeded"
    gateway.records.check_closed()


async def serves(client: Client) -> bool:
    return await health(client) == SERVING


async def serves_no_more(client: Client) -> bool:
    return await health(client) == NOT_SERVING


async def refuses(client: Client) -> bool:
    call = client.chat()
    with suppress(grpc.aio.AioRpcError):
        await read(call)
    return await call.code() is not grpc.StatusCode.OK


async def test_a_stream_that_outlasts_the_drain_ends_with_what_it_delivered(tmp_path: Path) -> None:
    async with (
        Provider() as provider,
        GatewayProcess(tmp_path / "data", drain_grace_s="0", drain_timeout_s="0.3") as gateway,
        gateway.client() as client,
    ):
        await connect(client, provider)
        provider.answer(answers.openai_interrupted(Silence()), [Silence()])
        stream = client.stream()
        delivered = [await stream.read() for _ in range(2)]
        chat = client.chat()
        await chat.initial_metadata()
        watch = client.health.Watch(health_pb2.HealthCheckRequest())
        await watch.read()
        gateway.terminate()
        cut = await failure_of(read(stream, delivered))
        assert (cut.code, cut.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        partial = cut.details["PartialResult"]
        assert partial.call_id == delivered[0].started.id
        assert partial.last_sequence == delivered[-1].sequence
        assert partial.usage.output_tokens > 0
        assert cut.trailers["grpc-retry-pushback-ms"] == "-1", "what was paid for is not to be repeated by itself"
        assert (await failure_of(read(chat))).reason == "DRAINING"
        assert (await watch.read()).status == NOT_SERVING
        assert (await failed_code(watch.read())) is grpc.StatusCode.UNAVAILABLE
        assert await gateway.ended() == 0
        assert all(connection.closed.is_set() for connection in provider.connections)
    rows = gateway.records.query("SELECT state, reason, output_tokens FROM calls ORDER BY call_id")
    assert [(row["state"], row["reason"]) for row in rows] == [("failed", "DRAINING")] * 2
    assert rows[0]["output_tokens"] > 0
    gateway.records.check_closed()


async def failed_code(call: Any) -> grpc.StatusCode:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    raise AssertionError("it answered")


async def test_records_of_calls_that_ended_just_before_are_kept(tmp_path: Path) -> None:
    """Nobody waits for the record of a cancelled call but the server's end."""
    async with (
        Provider() as provider,
        GatewayProcess(tmp_path / "data", drain_grace_s="0") as gateway,
        gateway.client() as client,
    ):
        await connect(client, provider)
        provider.always_answer([Silence()])
        calls = [client.stream() for _ in range(50)]
        for call in calls:
            await call.initial_metadata()
        for call in calls:
            call.cancel()
        assert await gateway.stop() == 0
    assert [*gateway.records.states().values()] == ["cancelled"] * 50
    gateway.records.check_closed()


async def test_a_server_can_be_stopped_while_it_starts(tmp_path: Path) -> None:
    gateway = GatewayProcess(tmp_path / "data", drain_grace_s="0")
    async with gateway.launched():
        await gateway.says("made a master key")
        assert await gateway.stop() == 0
    assert "Traceback" not in gateway.log


# --- starts that cannot be --------------------------------------------------------------------------------------------


_GRPC = re.compile(r"[EW]\d{4} ")
"""How lines of grpc's own begin, which it writes past everybody."""


async def refused(gateway: GatewayProcess) -> str:
    """The one line with which a start is refused."""
    async with gateway.launched():
        assert await gateway.ended() == 2, gateway.log
    said = gateway.log[gateway.begun_at :]
    lines = [line for line in said.splitlines() if '"level":"warning"' not in line and not _GRPC.match(line)]
    assert len(lines) == 1, said
    return lines[0]


async def test_a_second_server_on_the_same_folder_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    async with (
        Provider() as provider,
        GatewayProcess(tmp_path / "data", drain_grace_s="0") as gateway,
        gateway.client() as client,
    ):
        await connect(client, provider)
        provider.answer(answers.openai_interrupted(Silence()))
        stream = client.stream()
        await stream.read()
        line = await refused(GatewayProcess(tmp_path / "data"))
        assert "data_dir" in line
        assert str(tmp_path / "data") in line
        assert [*gateway.records.states().values()] == ["open"], "the second took the first one's calls for dead"
        stream.cancel()
        await client.idle()


def folder_that_is_a_file(folder: Path) -> dict[str, str]:
    (folder / "file").touch()
    return {"data_dir": str(folder / "file")}


def folder_within_a_file(folder: Path) -> dict[str, str]:
    (folder / "file").touch()
    return {"data_dir": str(folder / "file" / "data")}


def unknown_key_in_the_file(folder: Path) -> dict[str, str]:
    (folder / "patchbay.toml").write_text("idle_timeout = 5\n")
    return {"config": str(folder / "patchbay.toml")}


def file_that_is_no_toml(folder: Path) -> dict[str, str]:
    (folder / "patchbay.toml").write_text("idle_timeout_s: 5\n")
    return {"config": str(folder / "patchbay.toml")}


def key_file_that_others_can_read(folder: Path) -> dict[str, str]:
    (folder / "keys").write_text(f"key-1:{fresh_key()}\n")
    (folder / "keys").chmod(0o644)
    return {"master_key_file": str(folder / "keys")}


def key_file_without_keys(folder: Path) -> dict[str, str]:
    (folder / "keys").touch(mode=0o600)
    return {"master_key_file": str(folder / "keys")}


def certificate_that_is_none(folder: Path) -> dict[str, str]:
    (folder / "cert").write_text("hello")
    (folder / "key").write_text("hello")
    return {"tls_certificate_file": str(folder / "cert"), "tls_key_file": str(folder / "key")}


def certificate_without_key(folder: Path) -> dict[str, str]:
    (folder / "cert").write_text("hello")
    return {"tls_certificate_file": str(folder / "cert")}


def client_authorities_that_are_none(folder: Path) -> dict[str, str]:
    (folder / "clients").write_text("hello")
    return certificate_that_is_none(folder) | {"tls_client_ca_file": str(folder / "clients")}


def database_that_is_none(folder: Path) -> dict[str, str]:
    (folder / "data").mkdir()
    (folder / "data" / "patchbay.db").write_bytes(b"not a database at all" * 1000)
    return {}


def database_of_a_newer_gateway(folder: Path) -> dict[str, str]:
    (folder / "data").mkdir()
    with closing(sqlite3.connect(folder / "data" / "patchbay.db")) as database:
        database.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        database.execute("INSERT INTO alembic_version VALUES ('9999')")
        database.commit()
    return {}


def token_file_in_no_folder(folder: Path) -> dict[str, str]:
    return {"bootstrap_token": "", "bootstrap_token_file": str(folder / "none" / "token")}


WRONG: dict[str, tuple[Callable[[Path], dict[str, str]], str]] = {
    "no number": (lambda _: {"idle_timeout_s": "soon"}, "PATCHBAY_IDLE_TIMEOUT_S"),
    "out of bounds": (lambda _: {"idle_timeout_s": "0"}, "PATCHBAY_IDLE_TIMEOUT_S"),
    "not finite": (lambda _: {"idle_timeout_s": "nan"}, "PATCHBAY_IDLE_TIMEOUT_S"),
    "empty": (lambda _: {"idle_timeout_s": " "}, "PATCHBAY_IDLE_TIMEOUT_S"),
    "misspelled": (lambda _: {"idel_timeout_s": "5"}, "PATCHBAY_IDEL_TIMEOUT_S"),
    "no choice": (lambda _: {"log_level": "loud"}, "PATCHBAY_LOG_LEVEL"),
    "no address": (lambda _: {"listen": "here"}, "listen"),
    "an address that is not ours": (lambda _: {"listen": "203.0.113.7:0"}, "listen"),
    "a folder that is a file": (folder_that_is_a_file, "data_dir"),
    "a folder within a file": (folder_within_a_file, "data_dir"),
    "no database URL": (lambda _: {"database_url": "here"}, "database_url"),
    "a database URL with a password": (lambda _: {"database_url": "mysql://root:hunter2@db/x"}, "database_url"),
    "a database in no folder": (lambda f: {"database_url": f"sqlite:///{f}/none/patchbay.db"}, "database_url"),
    "a damaged database": (database_that_is_none, "patchbay.db"),
    "a newer database": (database_of_a_newer_gateway, "newer"),
    "no master key": (lambda _: {"master_keys": "key-1:secret"}, "master_keys"),
    "a key file for all to read": (key_file_that_others_can_read, "master_key"),
    "a key file without keys": (key_file_without_keys, "master_key"),
    "no token": (lambda _: {"bootstrap_token": "hunter2"}, "bootstrap_token"),
    "a token file in no folder": (token_file_in_no_folder, "bootstrap_token_file"),
    "no certificate": (certificate_that_is_none, "tls_certificate_file"),
    "no authorities of clients": (client_authorities_that_are_none, "tls_client_ca_file"),
    "certificates of clients without TLS": (lambda _: {"tls_clients": "a=0123456789ab"}, "tls_clients"),
    "half of TLS": (certificate_without_key, "tls_certificate_file"),
    "no plug-in folder": (lambda f: {"plugin_dir": str(f / "none")}, "plugin_dir"),
    "an unknown key in the file": (unknown_key_in_the_file, "idle_timeout"),
    "a file that is no TOML": (file_that_is_no_toml, "patchbay.toml"),
    "no file": (lambda f: {"config": str(f / "none.toml")}, "none.toml"),
}


QUICK = ("misspelled", "a damaged database", "a token file in no folder", "no certificate")
"""Enough of them for the run before a commit: each takes the start of a process."""


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case in QUICK else pytest.mark.slow) for case in WRONG]
)
async def test_a_wrong_setting_stops_the_start_with_one_line_that_names_it(tmp_path: Path, case: str) -> None:
    make, named = WRONG[case]
    settings = make(tmp_path)
    data_dir = Path(settings.pop("data_dir", tmp_path / "data"))
    line = await refused(GatewayProcess(data_dir, **settings))
    assert named in line
    assert "hunter2" not in line


async def test_a_port_that_is_taken_stops_the_start(tmp_path: Path) -> None:
    async with GatewayProcess(tmp_path / "first", drain_grace_s="0") as gateway:
        line = await refused(GatewayProcess(tmp_path / "second", listen=gateway.address))
    assert "listen" in line
    assert gateway.address in line


async def test_a_lost_key_file_stops_the_start_before_anything_is_sealed_anew(tmp_path: Path) -> None:
    gateway = GatewayProcess(tmp_path / "data", drain_grace_s="0")
    async with gateway, gateway.client() as client:
        await client.add_connector("https://llm.example/v1", key="k" * 40)
        assert await gateway.stop() == 0
    key_file = tmp_path / "data" / "master.keys"
    keys = key_file.read_text()
    key_file.unlink()
    assert "master_key_file" in await refused(gateway)
    assert not key_file.exists()
    key_file.write_text(keys)
    key_file.chmod(0o600)
    async with gateway:
        assert await gateway.stop() == 0
