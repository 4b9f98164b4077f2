"""The gRPC server: assembly, listening, and an orderly end."""

import asyncio
import logging
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import grpc
import grpc.aio
import msgspec
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from patchbay.v1 import (
    admin_service_pb2,
    admin_service_pb2_grpc,
    connector_service_pb2,
    connector_service_pb2_grpc,
    gateway_service_pb2,
    gateway_service_pb2_grpc,
)
from patchbay_server.core.service import Service
from patchbay_server.rpc.admin import AdminServicer
from patchbay_server.rpc.connectors import ConnectorServicer
from patchbay_server.rpc.convert.answers import MESSAGE_BYTES_MAX
from patchbay_server.rpc.gateway import GatewayServicer
from patchbay_server.rpc.guard import Guard
from patchbay_server.rpc.health import HealthServicer

log = logging.getLogger(__name__)

SERVICES: Final = (
    gateway_service_pb2.DESCRIPTOR.services_by_name["GatewayService"].full_name,
    connector_service_pb2.DESCRIPTOR.services_by_name["ConnectorService"].full_name,
    admin_service_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name,
)
HEALTH: Final = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
CONNECTION_AGE_MS: Final = 7 * 60 * 1000
"""After which a connection is replaced, so that load spreads over new replicas; grpc varies it by a tenth. Calls that
run at that moment end in peace."""
STOP_S: Final = 5.0
"""What RPCs other than calls get to end in, once calls have ended."""


class Tls(msgspec.Struct, frozen=True, kw_only=True):
    """Files in PEM. They are read again at a handshake after they changed.

    `client_ca_file` turns on mutual TLS: only clients with a certificate of that authority get in. `client_tokens` are
    ids of the tokens that stand for them where they send none, by a name in their certificate.
    """

    certificate_file: Path
    key_file: Path
    client_ca_file: Path | None = None
    client_tokens: Mapping[str, str] = msgspec.field(default_factory=dict)


class RpcSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where and how to listen, and how to end.

    `address` is as grpc takes it, such as `127.0.0.1:8080` or `[::]:0`; port 0 picks a free one. `reuse_port` lets
    several processes share a port. `open_health` and `open_reflection` answer without a token. `grace_s` is for how
    long calls are still taken after health has said NOT_SERVING; `drain_s` is what calls in flight then get to end in.
    """

    address: str
    tls: Tls | None = None
    reuse_port: bool = False
    reflection: bool = True
    open_health: bool = True
    open_reflection: bool = True
    grace_s: float = 5.0
    drain_s: float = 30.0


class RpcServer:
    """`service` by gRPC. Made in the event loop that is to serve; `start` makes it listen, `stop` ends it for good."""

    def __init__(self, service: Service, settings: RpcSettings) -> None:
        self._settings = settings
        self._gateway = service.gateway
        self._guard = Guard(
            service.access,
            open_services=_open_services(settings),
            tokens_by_certificate=settings.tls.client_tokens if settings.tls else {},
        )
        self._health = HealthServicer(SERVICES)
        self._server = grpc.aio.server(interceptors=[self._guard], options=_options(settings))
        self._port = 0
        self._stopping = False
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        _add_services(service, self._server)
        if settings.reflection:
            reflection.enable_server_reflection((*SERVICES, HEALTH, reflection.SERVICE_NAME), self._server)

    @property
    def address(self) -> str:
        """Where it listens once it is started, with the port that was picked."""
        host, _, _ = self._settings.address.rpartition(":")
        return f"{host}:{self._port}"

    async def start(self) -> None:
        """Listen. Health says NOT_SERVING until `set_serving`.

        Raises:
            OSError: the TLS files cannot be read, or are no certificate and key that belong together.
            RuntimeError: the address cannot be bound.
        """
        self._port = _bind(self._server, self._settings)
        await self._server.start()

    def set_serving(self, serving: bool) -> None:
        """What health answers, for the server and for each service; NOT_SERVING for good once the server stops."""
        self._health.set_serving(serving and not self._stopping)

    async def stop(self) -> None:
        """End without breaking calls: health first, so that balancers look elsewhere, then refuse, wait, close.

        Calls that outlast `drain_s` end with DRAINING and what they delivered.
        """
        self._stopping = True
        self._health.set_serving(False)
        await asyncio.sleep(self._settings.grace_s)
        self._guard.draining = True
        await self._gateway.drain(self._settings.drain_s)
        self._health.end_watches()
        await self._server.stop(STOP_S)


def _open_services(settings: RpcSettings) -> list[str]:
    health = [HEALTH] if settings.open_health else []
    return [*health, reflection.SERVICE_NAME] if settings.reflection and settings.open_reflection else health


def _add_services(service: Service, server: grpc.aio.Server) -> None:
    # The guard refuses the RPCs that the servicers leave out.
    gateway = GatewayServicer(service.gateway)  # type: ignore[abstract]
    gateway_service_pb2_grpc.add_GatewayServiceServicer_to_server(gateway, server)
    connectors = ConnectorServicer(service.connectors)  # type: ignore[abstract]
    connector_service_pb2_grpc.add_ConnectorServiceServicer_to_server(connectors, server)
    admin = AdminServicer(service)  # type: ignore[abstract]
    admin_service_pb2_grpc.add_AdminServiceServicer_to_server(admin, server)


def _options(settings: RpcSettings) -> list[tuple[str, int]]:
    return [
        # With 1 a second server would bind the same port without a word.
        ("grpc.so_reuseport", int(settings.reuse_port)),
        ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
        ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # No max_connection_age_grace_ms: it would cut long streams.
        ("grpc.max_connection_age_ms", CONNECTION_AGE_MS),
    ]


def _bind(server: grpc.aio.Server, settings: RpcSettings) -> int:
    if settings.tls is None:
        return server.add_insecure_port(settings.address)
    certificates = _Certificates(settings.tls)
    credentials = grpc.dynamic_ssl_server_credentials(
        certificates.read(),
        certificates.changed,  # type: ignore[arg-type]  # None means "as before"
        require_client_authentication=settings.tls.client_ca_file is not None,
    )
    return server.add_secure_port(settings.address, credentials)


class _Certificates:
    """The TLS files as they are now. `changed` is called at each handshake, in a thread of grpc's."""

    def __init__(self, tls: Tls) -> None:
        self._tls = tls
        self._seen = self._state()

    def read(self) -> grpc.ServerCertificateConfiguration:
        """Raises: OSError, ssl.SSLError: the files cannot be used."""
        tls = self._tls
        # grpc would take files that do not belong together and fail at every handshake.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # Without a password, even an empty one, OpenSSL would ask the terminal for that of an encrypted key.
        context.load_cert_chain(tls.certificate_file, tls.key_file, password="")
        if tls.client_ca_file:
            context.load_verify_locations(tls.client_ca_file)
        authority = tls.client_ca_file.read_bytes() if tls.client_ca_file else None
        return grpc.ssl_server_certificate_configuration(
            [(tls.key_file.read_bytes(), tls.certificate_file.read_bytes())], authority
        )

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """The new files, or None to go on with those in use: they are the same, or the new ones are no good yet."""
        try:
            state = self._state()
            if state == self._seen:
                return None
            self._seen = state
            configuration = self.read()
        except OSError:  # ssl.SSLError is one, too
            log.exception("the TLS files changed and cannot be used; the old ones stay")
            return None
        log.info("the TLS files changed; new connections use the new ones")
        return configuration

    def _state(self) -> list[tuple[int, int, int]]:
        """What changes whenever a file does."""
        files = [self._tls.certificate_file, self._tls.key_file]
        if self._tls.client_ca_file:
            files.append(self._tls.client_ca_file)
        stats = [file.stat() for file in files]
        return [(stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in stats]
