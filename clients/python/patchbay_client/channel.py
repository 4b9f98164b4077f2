"""Where the gateway is and how it is reached: addresses, TLS, channel options, retries.

Retries follow from the contract: RPCs without side effects are repeated when the gateway is UNAVAILABLE, with a growing
delay. Chat and Stream are repeated too, but only as long as the gateway has not admitted the call: with every failure
after that it sends `grpc-retry-pushback-ms: -1`, which forbids a repetition. Its headers, which come at admission, do
not suffice: gRPC still repeats when they arrive in one read with the failure. A connection that breaks before the
headers are here tells nothing, and the call is repeated. Every request carries a request id, so that a repetition
that overtakes its original is refused rather than paid twice. Everything else is never repeated.
"""

import ipaddress
import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions

from patchbay.v1 import admin_service_pb2, connector_service_pb2, gateway_service_pb2

MESSAGE_BYTES_MAX = 32 * 1024 * 1024
KEEPALIVE_INTERVAL_MS = 30_000
KEEPALIVE_TIMEOUT_MS = 10_000

SERVICE_FILES: tuple[FileDescriptor, ...] = (
    gateway_service_pb2.DESCRIPTOR,
    connector_service_pb2.DESCRIPTOR,
    admin_service_pb2.DESCRIPTOR,
)

_REPEATED_BEFORE_ADMISSION = frozenset({"patchbay.v1.GatewayService.Chat", "patchbay.v1.GatewayService.Stream"})
_RETRY_POLICY = {
    "maxAttempts": 4,
    "initialBackoff": "0.1s",
    "maxBackoff": "2s",
    "backoffMultiplier": 3,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
_RETRY_THROTTLING = {"maxTokens": 20, "tokenRatio": 0.5}

_PLAIN_SCHEMES = frozenset({"http", "unix"})
_SECURE_SCHEMES = frozenset({"https"})
_DEFAULT_PORTS = {"http": 50051, "https": 443}


@dataclass(frozen=True, kw_only=True)
class TlsOptions:
    """How TLS is spoken. Each is PEM, as bytes or as a file.

    Attributes:
        ca: the authorities that may have signed the server's certificate; None: the well-known public ones.
        client_cert, client_key: for mutual TLS; both or neither.
        server_name: the name that the server's certificate must have; empty: the address's host.
    """

    ca: Path | bytes | None = None
    client_cert: Path | bytes | None = None
    client_key: Path | bytes | None = None
    server_name: str = ""

    def __repr__(self) -> str:
        return f"TlsOptions(client_cert={self.client_cert is not None}, server_name={self.server_name!r})"

    def credentials(self) -> grpc.ChannelCredentials:
        """The credentials, read from their files now.

        Raises:
            ValueError: a client certificate without its key, or the other way round.
            OSError: a file cannot be read.
        """
        if (self.client_cert is None) != (self.client_key is None):
            raise ValueError("a client certificate and its key belong together")
        return grpc.ssl_channel_credentials(_pem(self.ca), _pem(self.client_key), _pem(self.client_cert))


@dataclass(frozen=True, kw_only=True)
class Target:
    """What to dial: gRPC's name for it, and with which credentials; None is plain text."""

    name: str
    credentials: grpc.ChannelCredentials | None
    options: tuple[tuple[str, Any], ...]


def target(address: str, token: str | None, tls: TlsOptions | None, *, insecure: bool) -> Target:
    """The target for an address: `host:port`, `https://host[:port]`, `http://host[:port]` or `unix:/path`.

    `https` or `tls` make it TLS. Otherwise it is plain text, and a token goes to this machine only, unless `insecure`.

    Raises:
        ValueError: not an address, or the token would be sent in the clear.
        OSError: a file of `tls` cannot be read.
    """
    scheme, rest = _split(address)
    secure = tls is not None or scheme in _SECURE_SCHEMES
    if secure and scheme in _PLAIN_SCHEMES:
        raise ValueError(f"{address} is plain text, but TLS options were given; use https://")
    if scheme == "unix":
        return Target(name=address, credentials=None, options=channel_options())
    host, port = _host_and_port(address, scheme, rest)
    if not secure and token and not insecure and not is_loopback(host):
        raise ValueError(
            f"refusing to send the token to {host} in plain text; use https://{host}, "
            "or allow it with insecure if the network is yours"
        )
    options = channel_options()
    if tls is not None and tls.server_name:
        options += (("grpc.ssl_target_name_override", tls.server_name),)
    credentials = (tls or TlsOptions()).credentials() if secure else None
    return Target(
        name=f"[{host}]:{port}" if ":" in host else f"{host}:{port}", credentials=credentials, options=options
    )


def is_loopback(host: str) -> bool:
    """Whether the host is this machine by what it is called, without asking anyone."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def call_metadata(token: str | None) -> tuple[tuple[str, str], ...]:
    """The metadata that goes with every call.

    Raises:
        ValueError: the token cannot be one; the message does not show it.
    """
    if token is None:
        return ()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError("the token is empty or has characters that a token cannot have")
    return (("authorization", f"Bearer {token}"),)


def channel_options() -> tuple[tuple[str, Any], ...]:
    """gRPC's settings: large messages, silent connections that are found dead within 40 s, retries."""
    return (
        ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
        ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
        ("grpc.keepalive_time_ms", KEEPALIVE_INTERVAL_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.primary_user_agent", f"patchbay-python/{_version()}"),
        ("grpc.enable_retries", 1),
        ("grpc.service_config", json.dumps(service_config())),
    )


def service_config() -> dict[str, Any]:
    """gRPC's service config: what is repeated, and when."""
    names = [_method_name(each) for each in _repeatable_methods()]
    return {
        "methodConfig": [{"name": names, "retryPolicy": _RETRY_POLICY}],
        "retryThrottling": _RETRY_THROTTLING,
    }


def _repeatable_methods() -> Iterable[str]:
    for file in SERVICE_FILES:
        for service in file.services_by_name.values():
            for method in service.methods:
                read_only = method.GetOptions().idempotency_level == MethodOptions.NO_SIDE_EFFECTS
                if read_only or method.full_name in _REPEATED_BEFORE_ADMISSION:
                    yield method.full_name


def _method_name(full_name: str) -> dict[str, str]:
    service, _, method = full_name.rpartition(".")
    return {"service": service, "method": method}


def _split(address: str) -> tuple[str, str]:
    if address.startswith("unix:"):
        return "unix", address.removeprefix("unix:")
    scheme, separator, rest = address.partition("://")
    return (scheme.lower(), rest) if separator else ("", address)


def _host_and_port(address: str, scheme: str, rest: str) -> tuple[str, int]:
    wrong = ValueError(f"{address!r} is not an address; use host:port or https://host:port")
    if scheme not in {"", *_PLAIN_SCHEMES, *_SECURE_SCHEMES}:
        raise wrong
    parts = urlsplit(f"//{rest}")
    if parts.username is not None or parts.path.rstrip("/") or parts.query or parts.fragment or not parts.hostname:
        raise wrong
    try:
        port = parts.port or _DEFAULT_PORTS.get(scheme)
    except ValueError:
        raise wrong from None
    if port is None:
        raise ValueError(f"{address!r} has no port; use host:port, such as {rest}:50051")
    return parts.hostname, port


def _pem(source: Path | bytes | None) -> bytes | None:
    return source.read_bytes() if isinstance(source, Path) else source


def _version() -> str:
    try:
        return version("patchbay-gateway")
    except PackageNotFoundError:  # the sources were copied, not installed
        return "unknown"
