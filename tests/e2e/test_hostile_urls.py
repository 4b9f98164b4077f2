# ruff: noqa: RUF001 -- characters that look like others are what is tested
"""Owners who point a connector at what the gateway must not touch: whichever way they try, nothing is ever dialled.

A listener on every address of this machine counts who comes, and an audit hook of the interpreter tells of every
connection that the gateway so much as tries to make.
"""

import asyncio
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
import pytest
from tests.e2e.gateway import OWNER, GatewayHere, asking, read
from tests.rpc.bench import Failure, failure_of
from tests.support import answers
from tests.support.make import connector
from tests.support.provider import Cut, Head, Provider

from patchbay.v1 import admin_service_pb2 as admin_pb
from patchbay.v1 import connector_service_pb2 as connector_pb
from patchbay.v1 import content_pb2
from patchbay_server.types import AuditEvent, AuditType
from patchbay_server.vault import Keyring, Vault

NONE = connector_pb.PRIVATE_HTTP_NONE
LOOPBACK = connector_pb.PRIVATE_HTTP_LOOPBACK
PRIVATE = connector_pb.PRIVATE_HTTP_PRIVATE

SPELLINGS = [
    # loopback: short, decimal, octal, hexadecimal, dotted, escaped, in other digits and dots, with invisible characters
    *("127.1", "127.0.1", "0", "2130706433", "4294967297", "017700000001", "0x7f000001", "0x7f.1", "0177.0.0.1"),
    *("127.0.0.1.", "127.000.000.001", "127.0.0.01", "00127.0.0.1", "%31%32%37.0.0.1", "127%2e0%2e0%2e1"),
    *("１２７.0.0.1", "①②⑦.⓪.⓪.①", "127。0。0。1", "127．0．0．1", "127.0.0.\u00ad1", "127.0.0.1\u200b", "𝟏𝟐𝟕.𝟎.𝟎.𝟏"),
    *("[::ffff:127.1]", "[::1%lo]", "[::1%25lo]", "[127.0.0.1]", "::1", "[0:0:0:0:0:0:0:0:1]:x"),
    # user information, and what is not a host
    *("user@127.0.0.1", "user:pass@127.0.0.1", "llm.example@127.0.0.1", "llm.example\\@127.0.0.1", "@127.0.0.1"),
    *("127.0.0.1\t", "127.0.0.1\n", " 127.0.0.1", "127.0.0.1\x00", "127.0.0.1#@llm.example", "127.0.0.1?@llm.example"),
    # unspecified, link-local, metadata, multicast, broadcast, reserved
    *("0.0.0.0", "0.0.0.1", "[::]", "[::ffff:0.0.0.0]", "169.254.169.254", "169.254.1.1", "2852039166", "0xa9fea9fe"),
    *("[::ffff:169.254.169.254]", "[::ffff:a9fe:a9fe]", "[fe80::1]", "[fd00:ec2::254]", "[64:ff9b::7f00:1]"),
    *("224.0.0.1", "239.255.255.250", "[ff02::1]", "255.255.255.255", "240.0.0.1", "100.100.100.200", "192.0.0.192"),
    *("[2002:7f00:1::]", "[::127.0.0.1.5]", "[2001:db8::1]"),
]
"""Hosts that no policy allows, under any scheme."""
OWN = ["127.0.0.1", "127.0.0.2", "[::1]", "[::ffff:127.0.0.1]", "localhost", "LOCALHOST", "a.localhost", "localhost."]
"""Hosts that policy LOOPBACK allows and NONE does not."""
NEIGHBOURS = ["10.0.0.1", "172.16.0.1", "192.168.1.1", "[::ffff:10.0.0.1]"]
"""Hosts that only policy PRIVATE allows."""


@dataclass
class Watch:
    """What was dialled."""

    tried: list[Any] = field(default_factory=list)
    came: int = 0
    port: int = 0
    on: bool = False

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.on and event == "socket.connect":
            self.tried.append(arguments[1])


_watch = Watch()


@pytest.fixture(scope="session")
def watching() -> Watch:
    sys.addaudithook(_watch.hook)  # for the rest of the process: a hook cannot be taken back
    return _watch


@pytest.fixture
async def watch(watching: Watch) -> AsyncIterator[Watch]:
    """Everything that is dialled during the test; nothing at all, unless the test clears it."""

    def came(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        watching.came += 1
        writer.close()

    watching.tried.clear()
    watching.came = 0
    both = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    watching.port = both.getsockname()[1]
    async with await asyncio.start_server(came, sock=both):
        watching.on = True
        yield watching
        watching.on = False
    assert not watching.tried, "the gateway has dialled"
    assert not watching.came, "somebody was reached"


def urls(hosts: list[str], port: int) -> Iterator[str]:
    for host in hosts:
        for scheme in ("http", "https"):
            yield f"{scheme}://{host}:{port}/v1"


def credentials(url: str) -> Iterator[tuple[str, connector_pb.Credential]]:
    """Every credential that can name an address, with the field's path."""
    compatible = connector_pb.OpenaiCompatibleCredential(base_url=url)
    yield "credential.openai_compatible.base_url", connector_pb.Credential(openai_compatible=compatible)
    openai = connector_pb.OpenaiCredential(api_key="key-0123456789", endpoint=url)
    yield "credential.openai.endpoint", connector_pb.Credential(openai=openai)
    anthropic = connector_pb.AnthropicCredential(api_key="key-0123456789", endpoint=url)
    yield "credential.anthropic.endpoint", connector_pb.Credential(anthropic=anthropic)


async def create(here: GatewayHere, credential: connector_pb.Credential) -> Failure:
    request = connector_pb.CreateConnectorRequest(
        parent=OWNER, connector=connector_pb.Connector(display_name="hostile"), credential=credential
    )
    return await failure_of(here.client.connectors.CreateConnector(request, metadata=here.client.metadata))


async def rotate(here: GatewayHere, credential: connector_pb.Credential) -> Failure:
    request = connector_pb.RotateCredentialRequest(name=f"{OWNER}/connectors/main", credential=credential)
    return await failure_of(here.client.connectors.RotateCredential(request, metadata=here.client.metadata))


# --- when it is made --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [NONE, LOOPBACK, PRIVATE])
async def test_what_is_never_allowed_makes_no_connector(here: GatewayHere, watch: Watch, policy: Any) -> None:
    await here.client.allow(policy)
    before = here.records.counts()
    for url in urls(SPELLINGS, watch.port):
        for path, credential in credentials(url):
            failure = await create(here, credential)
            assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"), url
            assert failure.fields == [path]
        failure = await rotate(here, next(credentials(url))[1])
        assert failure.reason == "INVALID_REQUEST"
    assert here.records.counts() == before


@pytest.mark.parametrize(
    ("policy", "hosts"), [(NONE, OWN + NEIGHBOURS), (LOOPBACK, NEIGHBOURS)], ids=["none", "loopback"]
)
async def test_what_policy_forbids_makes_no_connector(
    here: GatewayHere, watch: Watch, policy: Any, hosts: list[str]
) -> None:
    await here.client.allow(policy)
    before = here.records.counts()
    for url in urls(hosts, watch.port):
        for path, credential in credentials(url):
            failure = await create(here, credential)
            assert (failure.code, failure.reason) == (grpc.StatusCode.PERMISSION_DENIED, "POLICY_DENIED"), url
            assert failure.fields == [path]
        assert (await rotate(here, next(credentials(url))[1])).reason == "POLICY_DENIED"
    assert here.records.counts() == before


@pytest.mark.parametrize("url", ["http://8.8.8.8/v1", "http://llm.example/v1", "http://[2606:4700::1111]/v1"])
async def test_plain_http_goes_nowhere_in_public(here: GatewayHere, watch: Watch, url: str) -> None:
    await here.client.allow(NONE)
    for path, credential in credentials(url):
        failure = await create(here, credential)
        assert failure.reason in {"INVALID_REQUEST", "POLICY_DENIED"}
        assert failure.fields == [path]


# --- when it is called ------------------------------------------------------------------------------------------------


async def plant(here: GatewayHere, url: str, connector_id: str, type_: str = "openai_compatible") -> None:
    """Put a connector into the store past all checks, as a database from elsewhere would have it."""
    vault = Vault(Keyring.parse(here.settings.master_keys))
    fields = {"openai_compatible": {"base_url": url}}.get(type_, {"endpoint": url, "api_key": "key-0123456789"})
    uid = f"uid-{connector_id}"
    planted = connector(connector_id, uid=uid, type=type_, sealed=vault.seal(uid, fields), display_name=connector_id)
    event = AuditEvent(type=AuditType.CREATED, at=planted.created_at, actor="test", subject=planted.name)
    await here.service.store.create_connector(planted, event)


async def reasons(here: GatewayHere, connector_id: str) -> set[str]:
    """How every RPC fails that would have the gateway ask the connector's provider."""
    name = f"{OWNER}/connectors/{connector_id}"
    token = {"metadata": here.client.metadata}
    test = await here.client.connectors.TestConnector(connector_pb.TestConnectorRequest(name=name), **token)
    assert test.result not in {connector_pb.TEST_RESULT_OK, connector_pb.TEST_RESULT_PROVIDER_UNAVAILABLE}
    models = connector_pb.ListConnectorModelsRequest(parent=name)
    failures = [
        await failure_of(read(here.client.stream(connector_id))),
        await failure_of(read(here.client.chat(connector_id))),
        await failure_of(here.client.connectors.ListConnectorModels(models, **token)),
    ]
    return {failure.reason for failure in failures}


@pytest.mark.parametrize("policy", [NONE, PRIVATE])
async def test_what_is_never_allowed_is_not_called_either(here: GatewayHere, watch: Watch, policy: Any) -> None:
    await here.client.allow(policy)
    for number, url in enumerate(urls(SPELLINGS, watch.port)):
        await plant(here, url, f"hostile-{number}", ("openai_compatible", "openai", "anthropic")[number % 3])
    await here.service.snapshots.refresh()
    for number, url in enumerate(urls(SPELLINGS, watch.port)):
        assert await reasons(here, f"hostile-{number}") == {"CONNECTOR_MISCONFIGURED"}, url


async def test_what_policy_forbids_today_is_not_called_though_it_was_allowed_once(
    here: GatewayHere, watch: Watch
) -> None:
    here.provider.always_answer(answers.openai_stream())
    await read(here.client.stream())  # its connection stays in the pool
    for number, url in enumerate(urls(OWN, watch.port)):
        await plant(here, url, f"own-{number}")
    for number, url in enumerate(urls(NEIGHBOURS, watch.port)):
        await plant(here, url, f"neighbour-{number}")
    await here.service.snapshots.refresh()
    watch.tried.clear()
    for number, _ in enumerate(urls(NEIGHBOURS, 0)):
        assert await reasons(here, f"neighbour-{number}") == {"POLICY_DENIED"}
    await here.client.allow(NONE)
    for number, _ in enumerate(urls(OWN, 0)):
        assert await reasons(here, f"own-{number}") == {"POLICY_DENIED"}
    asked = len(here.provider.requests)
    assert await reasons(here, "main") == {"POLICY_DENIED"}
    assert len(here.provider.requests) == asked


async def test_the_allow_list_judges_addresses_that_were_given_before_it(here: GatewayHere, watch: Watch) -> None:
    policy = admin_pb.Policy(host_allow_list=["llm.example", "*.llm.example"])
    request = admin_pb.UpdatePolicyRequest(policy=policy)
    request.update_mask.paths.append("host_allow_list")
    await here.client.admin.UpdatePolicy(request, metadata=here.client.metadata)
    assert await reasons(here, "main") == {"POLICY_DENIED"}
    assert (await create(here, next(credentials("https://elsewhere.example/v1"))[1])).reason == "POLICY_DENIED"
    assert not here.provider.requests


# --- names ------------------------------------------------------------------------------------------------------------


class Names:
    """What the operating system answers for names below `.test`, in turn; the last answer stays."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers: list[list[str]] = []
        self.asked = 0
        self._real = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self._look_up)

    def _look_up(self, host: Any, port: Any, *more: Any, **named: Any) -> Any:
        if not (isinstance(host, str) and host.endswith(".test")):
            return self._real(host, port, *more, **named)
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return [found for address in answer for found in self._real(address, port, type=socket.SOCK_STREAM)]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    return Names(monkeypatch)


HANGS_UP = [*answers.openai_stream(), Cut()]
"""An answer after which the provider closes the connection, so that the next call needs another."""


async def named(here: GatewayHere, scheme: str = "http", port: int | None = None) -> None:
    await here.client.add_connector(f"{scheme}://provider.test:{port or here.provider.port}/main/v1", "named")
    here.provider.always_answer(HANGS_UP)


@pytest.mark.parametrize(
    ("then", "reason"),
    [
        (["169.254.169.254"], "CONNECTOR_MISCONFIGURED"),
        (["10.0.0.1"], "POLICY_DENIED"),
        (["8.8.8.8"], "CONNECTOR_MISCONFIGURED"),
        (["0.0.0.0"], "CONNECTOR_MISCONFIGURED"),
        (["::"], "CONNECTOR_MISCONFIGURED"),
        (["fe80::1"], "CONNECTOR_MISCONFIGURED"),
        (["::ffff:169.254.169.254"], "CONNECTOR_MISCONFIGURED"),
        (["127.0.0.1", "169.254.169.254"], "CONNECTOR_MISCONFIGURED"),
        (["127.0.0.1", "10.0.0.1"], "POLICY_DENIED"),
    ],
)
async def test_a_name_that_changes_its_answer_after_a_good_call_is_not_followed(
    here: GatewayHere, watch: Watch, names: Names, then: list[str], reason: str
) -> None:
    names.answers = [["127.0.0.1"], then]
    await named(here)
    await read(here.client.stream("named"))
    assert watch.tried == [("127.0.0.1", here.provider.port)]
    watch.tried.clear()
    assert await reasons(here, "named") == {reason}
    assert len(here.provider.requests) == 1


async def test_a_name_is_asked_for_once_and_the_answer_that_was_checked_is_dialled(
    here: GatewayHere, watch: Watch, names: Names
) -> None:
    """A second look-up between check and connection would get the second answer."""
    names.answers = [["127.0.0.1"], ["169.254.169.254"]]
    await named(here)
    await read(here.client.stream("named"))
    assert names.asked == 1
    assert watch.tried == [("127.0.0.1", here.provider.port)]
    watch.tried.clear()


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "0.0.0.0"])
async def test_a_public_name_for_a_forbidden_address_is_not_dialled(
    here: GatewayHere, watch: Watch, names: Names, address: str
) -> None:
    await here.client.allow(NONE)
    names.answers = [[address]]
    await named(here, "https", watch.port)
    [reason] = await reasons(here, "named")
    assert reason in {"POLICY_DENIED", "CONNECTOR_MISCONFIGURED"}


# --- what a provider or a caller says ---------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(here: GatewayHere, watch: Watch, status: int) -> None:
    location = f"http://127.0.0.1:{watch.port}/v1"
    here.provider.always_answer([Head(status, {"location": location, "content-length": "0"})])
    assert await reasons(here, "main") == {"CONNECTOR_MISCONFIGURED"}
    forget_the_provider(watch, here.provider)


async def test_an_image_s_address_is_the_provider_s_to_fetch(here: GatewayHere, watch: Watch) -> None:
    here.provider.answer(answers.openai_stream())
    request = asking()
    for url in (f"http://127.0.0.1:{watch.port}/x.png", f"http://169.254.169.254:{watch.port}/x.png"):
        media = content_pb2.Media(mime_type="image/png", uri=url)
        request.messages[0].parts.append(content_pb2.ContentPart(media=media))
    call = here.client.stream(request=request)
    try:
        await read(call)
    except grpc.aio.AioRpcError:
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
    forget_the_provider(watch, here.provider)


def forget_the_provider(watch: Watch, provider: Provider) -> None:
    """The one that was meant to be dialled."""
    watch.tried[:] = [address for address in watch.tried if address != ("127.0.0.1", provider.port)]


async def test_the_watch_sees_what_is_dialled(here: GatewayHere, watch: Watch) -> None:
    await here.client.add_connector(f"http://127.0.0.2:{watch.port}/v1", "heard")
    assert await failure_of(read(here.client.stream("heard")))
    assert watch.tried == [("127.0.0.2", watch.port)]
    assert watch.came == 1
    watch.tried.clear()
    watch.came = 0
