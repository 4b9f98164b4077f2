"""Addresses, TLS, and where a token may go."""

import datetime
import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.client.fake_gateway import TOKEN, Driver, FakeGateway, serving

from patchbay_client import AsyncPatchbayClient, PatchbayClient, TlsOptions, Unavailable
from patchbay_client.channel import channel_options, is_loopback, target


@dataclass(frozen=True)
class Identity:
    cert: bytes
    key: bytes


def issue(
    name: str, issuer: tuple[x509.Name, ec.EllipticCurvePrivateKey] | None = None
) -> tuple[Identity, x509.Name, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer_name, issuer_key = issuer or (subject, key)
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer_name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName(name), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), True)
        .sign(issuer_key, hashes.SHA256())
    )
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return Identity(certificate.public_bytes(serialization.Encoding.PEM), pem), subject, key


def pki() -> tuple[bytes, Identity, Identity]:
    """An authority's certificate, a server and a client that it vouches for."""
    authority, name, key = issue("authority.test")
    return authority.cert, issue("patchbay.test", (name, key))[0], issue("client.test", (name, key))[0]


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("localhost:50051", "localhost:50051"),
        ("127.0.0.1:1", "127.0.0.1:1"),
        ("[::1]:50051", "[::1]:50051"),
        ("http://127.0.0.1:50051/", "127.0.0.1:50051"),
        ("http://localhost", "localhost:50051"),
        ("unix:/run/patchbay.sock", "unix:/run/patchbay.sock"),
    ],
)
def test_plain_addresses(address: str, name: str) -> None:
    dialled = target(address, TOKEN, None, insecure=False)
    assert (dialled.name, dialled.credentials) == (name, None)


@pytest.mark.parametrize(
    ("address", "name"),
    [("https://patchbay.example", "patchbay.example:443"), ("https://patchbay.example:8443", "patchbay.example:8443")],
)
def test_https_is_tls(address: str, name: str) -> None:
    dialled = target(address, TOKEN, None, insecure=False)
    assert dialled.name == name
    assert dialled.credentials is not None


@pytest.mark.parametrize(
    "address",
    ["", "patchbay", "localhost:port", "localhost:99999", "ftp://localhost:1", "https://a/b", "https://u@a", "a:1?b"],
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match=r"address|port"):
        target(address, None, None, insecure=False)


@pytest.mark.parametrize(
    "address", ["10.0.0.7:50051", "patchbay.example:50051", "http://patchbay.example:80", "[fe80::1]:1"]
)
@pytest.mark.parametrize("client_class", [PatchbayClient, AsyncPatchbayClient])
def test_a_token_is_not_sent_to_another_machine_in_plain_text(
    address: str, client_class: Callable[..., object]
) -> None:
    with pytest.raises(ValueError, match="refusing to send the token") as caught:
        client_class(address, TOKEN)
    assert TOKEN not in str(caught.value)
    assert target(address, TOKEN, None, insecure=True).credentials is None
    assert target(address, None, None, insecure=False).credentials is None


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("LOCALHOST.", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost.example", False),
        ("0.0.0.0", False),
        ("127.0.0.1.example", False),
    ],
)
def test_loopback_is_told_by_the_name_alone(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize("token", ["", "a b", "a\nb", "schlüssel"])
def test_a_token_that_cannot_be_one_is_refused_without_being_shown(token: str) -> None:
    with pytest.raises(ValueError, match="token") as caught:
        PatchbayClient("localhost:1", token)
    assert not token or token not in str(caught.value)


def test_plain_text_and_tls_options_contradict_each_other() -> None:
    with pytest.raises(ValueError, match="use https"):
        target("http://localhost:1", None, TlsOptions(), insecure=False)


def test_half_a_client_certificate_is_refused() -> None:
    with pytest.raises(ValueError, match="belong together"):
        TlsOptions(client_cert=b"pem").credentials()


def test_options_keep_silent_connections_alive_and_allow_large_messages() -> None:
    options = dict(channel_options())
    assert options["grpc.keepalive_time_ms"] == 30_000
    assert options["grpc.keepalive_timeout_ms"] == 10_000
    assert options["grpc.keepalive_permit_without_calls"] == 1
    assert options["grpc.max_receive_message_length"] == options["grpc.max_send_message_length"] == 32 * 1024 * 1024


@pytest.mark.parametrize("client_class", [PatchbayClient, AsyncPatchbayClient])
async def test_mutual_tls_carries_the_token_and_the_certificate(
    gateway: FakeGateway, tmp_path: Path, client_class: Callable[..., PatchbayClient]
) -> None:
    authority, server, client = pki()
    credentials = grpc.ssl_server_credentials([(server.key, server.cert)], authority, require_client_auth=True)
    ca = tmp_path / "ca.pem"
    ca.write_bytes(authority)
    tls = TlsOptions(ca=ca, client_cert=client.cert, client_key=client.key, server_name="patchbay.test")
    async with serving(gateway, credentials) as port:
        driver = Driver(client_class(f"https://127.0.0.1:{port}", TOKEN, tls=tls))
        await driver.call(lambda client: client.chat("Hi"))
        await driver.close()
    assert gateway.metadata["GatewayService/Chat"][0]["authorization"] == f"Bearer {TOKEN}"


async def test_a_server_that_nobody_vouches_for_is_not_talked_to(gateway: FakeGateway) -> None:
    _, server, _ = pki()
    stranger, _, _ = pki()
    credentials = grpc.ssl_server_credentials([(server.key, server.cert)])
    async with (
        serving(gateway, credentials) as port,
        AsyncPatchbayClient(f"https://127.0.0.1:{port}", TOKEN, tls=TlsOptions(ca=stranger)) as client,
    ):
        with pytest.raises(Unavailable):
            await client.connectors.delete("owners/a/connectors/c")
    assert not gateway.requests
