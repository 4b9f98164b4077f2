"""Credentials, tokens, prompts and answers are planted everywhere, everything is made to fail, and then looked for."""

import asyncio
import base64
import json
import resource
import secrets
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from rich.pretty import pretty_repr
from tests.e2e.gateway import OWNER, Client, GatewayProcess, asking, fresh_key, read
from tests.support import answers
from tests.support.provider import Cut, Head, Provider, Reset, Script, Silence

from patchbay.v1 import admin_service_pb2 as admin_pb
from patchbay.v1 import connector_service_pb2 as connector_pb
from patchbay.v1 import content_pb2, gateway_service_pb2
from patchbay_server.adapters.protocol import Prepared
from patchbay_server.app import Running
from patchbay_server.config import Settings
from patchbay_server.core.access import TokenText
from patchbay_server.core.connectors import Credential
from patchbay_server.types import Secret
from patchbay_server.vault import Keyring, Vault
from patchbay_server.wire.http import HttpRequest

SEEN_S = 2.0
"""After which a change of the database by somebody else is seen."""
PROOF = "damaged-value"
PLUGINS = Path(__file__).parent / "plugins"

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass
class Planted:
    """What must never be told, by what it is. None has a prefix that the log's redactor could know it by."""

    api_key: str = field(default_factory=lambda: f"planted{secrets.token_hex(16)}key")
    rotated_key: str = field(default_factory=lambda: f"planted{secrets.token_hex(16)}rotated")
    header: str = field(default_factory=lambda: f"planted{secrets.token_hex(16)}header")
    wrong_token: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    master_key: str = field(default_factory=fresh_key)

    prompt: str = field(default_factory=lambda: f"planted{secrets.token_hex(16)}prompt")
    answer: str = field(default_factory=lambda: f"planted{secrets.token_hex(16)}answer")
    tokens: list[str] = field(default_factory=list)

    @property
    def credentials(self) -> list[str]:
        return [self.api_key, self.rotated_key, self.header, self.wrong_token, self.master_key, *self.tokens]

    @property
    def content(self) -> list[str]:
        return [self.prompt, self.answer]


def forms(text: str) -> Iterator[bytes]:
    """The ways in which a text may stand somewhere without being recognised at a glance."""
    raw = text.encode()
    yield raw
    yield raw.hex().encode()
    yield raw[::-1]
    for shift in range(3):
        yield base64.b64encode(b"\0" * shift + raw)[4:-4]


def look_for(planted: Sequence[str], data: bytes, where: str) -> None:
    for text in planted:
        for form in forms(text):
            at = data.find(form)
            around = data[max(at - 300, 0) : at + len(form) + 100]
            assert at < 0, f"{where} holds a secret: {around!r}"


class Replies:
    """Everything that callers were told, whole answers apart."""

    def __init__(self) -> None:
        self.told = b""
        self.failures: list[str] = []

    def hear(self, message: Message) -> None:
        self.told += message.SerializeToString() + str(message).encode()

    async def failure(self, call: Awaitable[Any]) -> None:
        """Hear how a call fails."""
        try:
            answer = await call
        except grpc.aio.AioRpcError as error:
            trailers = [*(error.initial_metadata() or ()), *(error.trailing_metadata() or ())]
            self.told += f"{error!r} {error} {error.details()} {trailers}".encode()
            self.told += b"".join(value if isinstance(value, bytes) else value.encode() for _, value in trailers)
            self.failures.append(f"{error.code().name}: {error.details()}")
        else:
            raise AssertionError(f"it answered: {answer}")


@dataclass
class Scene:
    """One server for all tests of this file. What one of them makes it tell, the next ones find, too."""

    planted: Planted
    gateway: GatewayProcess
    client: Client
    provider: Provider
    replies: Replies = field(default_factory=Replies)

    async def rotated(self, api_key: str) -> connector_pb.Connector:
        rotate = connector_pb.RotateCredentialRequest(
            name=f"{OWNER}/connectors/main", credential=self.credential(api_key=api_key)
        )
        answer = await self.client.connectors.RotateCredential(rotate, metadata=self.client.metadata)
        self.replies.hear(answer)
        connector: connector_pb.Connector = answer.connector
        return connector

    async def asked(self, *, connector: str = "main", **fields: Any) -> None:
        """Chat and Stream, and how each fails."""
        request = asking(connector, f"say {self.planted.prompt}", **fields)
        await self.replies.failure(read(self.client.stream(request=request)))
        await self.replies.failure(read(self.client.chat(request=request)))

    def credential(self, **given: Any) -> connector_pb.Credential:
        own = {
            "base_url": self.provider.url() + "/v1",
            "api_key": self.planted.api_key,
            "headers": {"x-team": self.planted.header},
        }
        return connector_pb.Credential(openai_compatible=connector_pb.OpenaiCompatibleCredential(**(own | given)))

    def create(self, credential: connector_pb.Credential, connector_id: str = "", **connector: Any) -> Any:
        told = {"display_name": connector_id or "another", "model_hint": "small"} | connector
        request = connector_pb.CreateConnectorRequest(
            parent=OWNER, connector_id=connector_id, connector=connector_pb.Connector(**told), credential=credential
        )
        return self.client.connectors.CreateConnector(request, metadata=self.client.metadata)

    def look(self) -> None:
        """Look everywhere for what was planted."""
        planted = self.planted
        look_for(planted.credentials, self.replies.told, "a reply")
        look_for(planted.content, self.replies.told, "a failure")
        log = self.gateway.log.encode()
        look_for(planted.credentials, log, "the log")
        look_for(planted.content, log, "the log")
        files = list(self.gateway.data_dir.iterdir())
        assert {"patchbay.db", "patchbay.db-wal"} <= {file.name for file in files}
        for file in files:
            look_for(planted.credentials + planted.content, file.read_bytes(), file.name)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    planted = Planted()
    settings = {
        "master_keys": f"key-1:{planted.master_key}",
        "plugin_dir": str(PLUGINS),
        "first_byte_timeout_s": "0.3",
        "idle_timeout_s": "0.3",
        "drain_grace_s": "0",
    }
    async with (
        Provider() as provider,
        GatewayProcess(tmp_path_factory.mktemp("secrets") / "data", **settings) as gateway,
        gateway.client() as client,
    ):
        planted.tokens.append(gateway.token)
        await client.allow(connector_pb.PRIVATE_HTTP_LOOPBACK)
        scene = Scene(planted, gateway, client, provider)
        yield scene
        assert await gateway.stop() == 0
        for file in (gateway.records.file, *gateway.data_dir.glob("*-wal")):
            look_for(planted.credentials + planted.content, file.read_bytes(), file.name)
        look_for(planted.credentials + planted.content, gateway.log.encode(), "the log")


@pytest_asyncio.fixture(loop_scope="module")
async def scene(stage: Scene) -> AsyncIterator[Scene]:
    """The server with a fresh connector `main`, and nobody told anything yet."""
    stage.replies = Replies()
    stage.replies.hear(await stage.create(stage.credential(), "main"))
    try:
        yield stage
        stage.look()
        assert not stage.provider.unexpected, "the provider was asked more often than scripted"
    finally:
        main = connector_pb.DeleteConnectorRequest(name=f"{OWNER}/connectors/main")
        await stage.client.connectors.DeleteConnector(main, metadata=stage.client.metadata)


# --- looking works ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["reply", "log", "file"])
@pytest.mark.parametrize("encoded", [str.encode, lambda text: base64.b64encode(b"x" + text.encode() + b"yz")])
async def test_what_is_planted_would_be_found(scene: Scene, place: str, encoded: Any) -> None:
    leak = encoded(scene.planted.api_key)
    leaking = scene.gateway.data_dir / "leak"
    match place:
        case "reply":
            scene.replies.told += leak
        case "log":
            scene.gateway.log += leak.decode()
        case "file":
            leaking.write_bytes(leak)
    with pytest.raises(AssertionError, match="holds a secret"):
        scene.look()
    scene.replies.told = b""
    scene.gateway.log = scene.gateway.log.removesuffix(leak.decode())
    leaking.unlink(missing_ok=True)


# --- what a provider says ---------------------------------------------------------------------------------------------


async def test_a_provider_that_echoes_everything_in_its_errors_is_not_quoted(scene: Scene) -> None:
    planted = scene.planted
    echo = f"{planted.api_key} {planted.header} {planted.prompt} {planted.answer}"
    headers = {
        "x-request-id": planted.api_key,
        "retry-after": planted.api_key,
        "location": f"http://{planted.api_key}/",
    }
    for status in (302, 400, 401, 402, 403, 404, 408, 413, 422, 429, 500, 503, 529):
        error = {"message": echo, "type": planted.api_key, "code": planted.header, "param": planted.prompt}
        for body in ({"error": error}, {"error": echo}, {"detail": [{"loc": ["body", echo], "msg": echo}]}, [echo]):
            for call in (scene.client.stream, scene.client.chat):
                scene.provider.answer(answers.json_answer(body, status=status, headers=headers))
                await scene.replies.failure(read(call(request=asking(said=planted.prompt))))
                if status in (401, 403):
                    await scene.rotated(planted.api_key)
    assert len({*scene.replies.failures}) == 6, "the statuses were not told apart"


async def test_an_answer_that_breaks_is_not_quoted(scene: Scene) -> None:
    planted = scene.planted
    echo = f"{planted.api_key} {planted.answer}"
    streams: list[Script] = [
        [answers.EVENT_STREAM, answers.event({"error": {"message": echo, "code": planted.api_key}})],
        [answers.EVENT_STREAM, answers.event(f'{{"choices": {echo}')],
        [answers.EVENT_STREAM, answers.chunk({"content": planted.answer}), answers.event(f'["{echo}')],
        [answers.EVENT_STREAM, answers.event({"choices": [{"index": 0, "delta": {"content": [echo]}}]})],
        [answers.EVENT_STREAM, answers.chunk({"tool_calls": [{"index": echo, "function": echo}]})],
        [answers.EVENT_STREAM, answers.chunk({"content": planted.answer}), Cut()],
        [answers.EVENT_STREAM, answers.chunk({"content": planted.answer}), Reset()],
        [answers.EVENT_STREAM, answers.chunk({"content": planted.answer}), Silence()],
        [answers.EVENT_STREAM, answers.chunk({"content": planted.answer})],
        [answers.EVENT_STREAM, answers.event(f": {echo}")],
        [Head(200, {"content-type": "text/html", "x-echo": echo}), f"<html>{echo}".encode()],
        [Head(200, {"content-encoding": planted.api_key}), echo.encode()],
        [Silence()],
        [Reset()],
    ]
    for script in streams:
        scene.provider.answer(script, script)
        await scene.asked()
    assert len({*scene.replies.failures}) >= 4, scene.replies.failures


@asynccontextmanager
async def speaks_no_http(said: bytes) -> AsyncIterator[str]:
    """The address of a server that answers anything with `said`."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"


async def test_an_answer_that_is_no_http_is_not_quoted(scene: Scene) -> None:
    key = scene.planted.api_key
    for number, said in enumerate(
        [
            f"{key}\r\n\r\n",
            f"HTTP/1.1 {key} x\r\n\r\n",
            f"HTTP/1.1 200 OK\r\n{key}\r\n\r\n",
            f"HTTP/1.1 200 OK\r\nx: {key * 2000}\r\n\r\n",
            f"HTTP/1.1 200 OK\r\ncontent-length: {key}\r\n\r\n",
            f"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{key}\r\n",
        ]
    ):
        async with speaks_no_http(said.encode()) as address:
            await scene.create(scene.credential(base_url=address), f"strange-{number}")
            await scene.asked(connector=f"strange-{number}")


async def test_an_answer_is_passed_on_and_kept_nowhere(scene: Scene) -> None:
    planted = scene.planted
    scene.provider.answer(answers.openai_stream([planted.answer]), answers.openai_unary(planted.answer))
    request = asking(said=planted.prompt)
    tool = gateway_service_pb2.FunctionTool(name="f", description=planted.prompt, parameters_json_schema="{}")
    request.tools.append(gateway_service_pb2.Tool(function=tool))
    request.messages[0].parts.append(content_pb2.ContentPart(text=planted.prompt))
    chunks = await read(scene.client.stream(request=request))
    assert planted.answer in str(chunks)
    assert planted.answer in str(await read(scene.client.chat(request=request)))
    [asked] = {request.headers["authorization"] for request in scene.provider.requests}
    assert asked == f"Bearer {planted.api_key}"


async def test_a_cancelled_call_is_kept_without_its_words(scene: Scene) -> None:
    scene.provider.always_answer([answers.EVENT_STREAM, answers.chunk({"content": scene.planted.answer}), Silence()])
    for _ in range(5):
        call = scene.client.stream(request=asking(said=scene.planted.prompt))
        await call.read()
        call.cancel()
    await scene.client.idle()


# --- what is broken inside --------------------------------------------------------------------------------------------


async def test_an_adapter_that_breaks_with_a_key_in_its_hands_does_not_tell_it(scene: Scene) -> None:
    planted = scene.planted
    fields = {"base_url": scene.provider.url() + "/v1", "api_key": planted.api_key}

    def breaking(**more: Any) -> connector_pb.Credential:
        plugin = connector_pb.PluginCredential(type="breaking", fields_json=json.dumps(fields | more))
        return connector_pb.Credential(plugin=plugin)

    await scene.create(breaking(), "breaking")
    await scene.replies.failure(scene.create(breaking(tools=False)))
    await scene.replies.failure(scene.create(breaking(), model_hint="break-check_model"))
    for place in ("check_model", "prepare"):
        await scene.asked(connector="breaking", model=f"break-{place}")
    scene.provider.answer(answers.openai_stream([planted.answer]), answers.openai_unary(planted.answer))
    await scene.asked(connector="breaking", model="break-feed")
    scene.provider.answer(*[answers.json_answer({"error": planted.api_key}, status=400)] * 2)
    await scene.asked(connector="breaking", model="break-explain")
    test = connector_pb.TestConnectorRequest(name=f"{OWNER}/connectors/breaking")
    await scene.replies.failure(scene.client.connectors.TestConnector(test, metadata=scene.client.metadata))
    assert all(failure.startswith("INTERNAL") for failure in scene.replies.failures), scene.replies.failures
    # What helps to find the fault is there all the same.
    for told in ("breaking_adapter.py", "KeyError", "LookupError", "RuntimeError"):
        assert told in scene.gateway.log


def damage(file: Path, *statements: str) -> None:
    """Change the database past the gateway."""
    with closing(sqlite3.connect(file)) as database:
        for statement in (*statements, "UPDATE heads SET version = version + 1"):
            database.execute(statement)
        database.commit()


async def test_a_credential_that_cannot_be_opened_is_not_quoted(scene: Scene) -> None:
    for connector_id in ("swapped", "lost", "damaged"):
        await scene.create(scene.credential(), connector_id)
    damage(
        scene.gateway.records.file,
        "UPDATE connectors SET sealed_key_id = 'gone' WHERE id = 'lost'",
        "UPDATE connectors SET sealed_blob = (SELECT sealed_blob FROM connectors WHERE id = 'main')"
        " WHERE id = 'swapped'",
    )
    await asyncio.sleep(SEEN_S)
    await scene.asked(connector="lost")
    await scene.asked(connector="swapped")
    damage(scene.gateway.records.file, f"UPDATE connectors SET settings = '{{\"{PROOF}' WHERE id = 'damaged'")
    await asyncio.sleep(SEEN_S)
    await scene.asked(connector="damaged")
    damage(scene.gateway.records.file, "DELETE FROM connectors WHERE id = 'damaged'")
    await asyncio.sleep(SEEN_S)
    assert [failure.partition(":")[0] for failure in scene.replies.failures] == ["INTERNAL"] * 4 + ["UNAVAILABLE"] * 2
    assert PROOF not in scene.gateway.log
    assert not any(PROOF in failure for failure in scene.replies.failures)


async def test_a_statement_that_fails_is_not_quoted(scene: Scene) -> None:
    inside = scene.gateway.inside
    before = inside.rlimit(resource.RLIMIT_FSIZE)
    inside.rlimit(resource.RLIMIT_FSIZE, (1, before[1]))
    try:
        await scene.replies.failure(scene.create(scene.credential(), "other"))
        rotate = connector_pb.RotateCredentialRequest(
            name=f"{OWNER}/connectors/main", credential=scene.credential(api_key=scene.planted.rotated_key)
        )
        await scene.replies.failure(scene.client.connectors.RotateCredential(rotate, metadata=scene.client.metadata))
    finally:
        inside.rlimit(resource.RLIMIT_FSIZE, before)


# --- what callers say -------------------------------------------------------------------------------------------------


async def test_a_refused_credential_is_not_quoted(scene: Scene) -> None:
    planted = scene.planted
    key, openai = planted.api_key, connector_pb.OpenaiCredential
    refused = [
        scene.credential(api_key=key + "\n"),
        scene.credential(api_key=key + "é"),
        scene.credential(api_key=key * 200),
        scene.credential(base_url=key),
        scene.credential(base_url=f"https://{key}@llm.example/v1"),
        scene.credential(base_url=f"https://user:{key}@llm.example/v1"),
        scene.credential(base_url=f"https://llm.example/v1?key={key}"),
        scene.credential(base_url=f"https://llm.example/v1#{key}"),
        scene.credential(base_url=f"http://{key}_ .example/v1"),
        scene.credential(headers={f"{key} ": "x"}),
        scene.credential(headers={"authorization": f"Bearer {key}"}),
        scene.credential(headers={"x-team": key + "\r\nx: y"}),
        scene.credential(headers={f"x{n}": planted.header * 10 for n in range(40)}),
        scene.credential(max_tokens_field=key),
        connector_pb.Credential(openai=openai(api_key=f"sk-ant-{key}")),
        connector_pb.Credential(openai=openai(api_key=f"sk-admin-{key}")),
        connector_pb.Credential(openai=openai(api_key=key, organization=key + "\x00")),
        connector_pb.Credential(
            plugin=connector_pb.PluginCredential(type="breaking", fields_json=f'{{"api_key": {key}')
        ),
        connector_pb.Credential(plugin=connector_pb.PluginCredential(type=key, fields_json=f'{{"api_key": "{key}"}}')),
    ]
    for credential in refused:
        await scene.replies.failure(scene.create(credential))
        rotate = connector_pb.RotateCredentialRequest(name=f"{OWNER}/connectors/main", credential=credential)
        await scene.replies.failure(scene.client.connectors.RotateCredential(rotate, metadata=scene.client.metadata))


async def test_a_key_in_a_place_where_none_belongs_is_told_to_its_sender_at_the_most(scene: Scene) -> None:
    key, fail, client = scene.planted.api_key, scene.replies.failure, scene.client
    ok = scene.credential()
    token = {"metadata": client.metadata}
    for connector_id, fields in (
        (key, {}),
        ("", {"display_name": key * 3}),
        ("", {"display_name": f"{key}\n{key}"}),
        ("", {"model_hint": key * 3}),
        ("", {"labels": {key + " ": "x"}}),
        ("", {"labels": {"x": key + "\n"}}),
    ):
        await fail(scene.create(ok, connector_id and f"{key}_", **fields))
    for name in (key, f"owners/{key}", f"{OWNER}/connectors/{key}", f"owners/{key}/connectors/main"):
        await fail(client.connectors.GetConnector(connector_pb.GetConnectorRequest(name=name), **token))
        await fail(read(client.stream(request=asking(name))))
    listings: list[dict[str, Any]] = [
        {"filter": key},
        {"filter": f'{key} = "x"'},
        {"order_by": key},
        {"page_token": key},
    ]
    for fields in listings:
        await fail(
            client.connectors.ListConnectors(connector_pb.ListConnectorsRequest(parent=OWNER, **fields), **token)
        )
    update = connector_pb.UpdateConnectorRequest(
        connector=connector_pb.Connector(name=f"{OWNER}/connectors/main", etag=key),
        update_mask=FieldMask(paths=["display_name"]),
    )
    await fail(client.connectors.UpdateConnector(update, **token))
    requests: list[dict[str, Any]] = [
        {"model": key * 9},
        {"feature": key.upper()},
        {"labels": {key + " ": "x"}},
        {"request_id": key},
        {"provider_options_json": f"[{key}"},
        {"provider_options_json": f'["{key}"]'},
        {"tool_choice": gateway_service_pb2.ToolChoice(function_name=key)},
        {"tools": [gateway_service_pb2.Tool(provider_tool_json=f'"{key}"')]},
    ]
    for fields in requests:
        await scene.asked(**fields)
    policy = admin_pb.Policy(host_allow_list=[f"https://{key}/"], model_aliases={"default": key})
    mask = FieldMask(paths=["host_allow_list", "model_aliases"])
    await fail(client.admin.UpdatePolicy(admin_pb.UpdatePolicyRequest(policy=policy, update_mask=mask), **token))
    scene.replies.told = b""


async def test_tokens_are_told_once_and_kept_nowhere(scene: Scene) -> None:
    client, planted = scene.client, scene.planted
    asked = admin_pb.CreateTokenRequest(
        token=admin_pb.CallerToken(display_name="chat", owner=OWNER, scopes=[admin_pb.SCOPE_CHAT])
    )
    made = await client.admin.CreateToken(asked, metadata=client.metadata)
    planted.tokens.append(made.secret)
    own = Client(client.channel, made.secret)
    scene.provider.answer(answers.openai_stream())
    await read(own.stream())
    await scene.replies.failure(own.status())
    await client.admin.RevokeToken(admin_pb.RevokeTokenRequest(name=made.token.name), metadata=client.metadata)
    for text in (made.secret, made.secret[:-1] + "x", planted.wrong_token, f"pb_0123456789ab_{planted.wrong_token}"):
        await scene.replies.failure(read(Client(client.channel, text).stream()))
        for header in (text, f"Basic {text}", f"Bearer  {text} {text}"):
            metadata = (("authorization", header),)
            await scene.replies.failure(client.admin.GetStatus(admin_pb.GetStatusRequest(), metadata=metadata))
    scene.replies.hear(await client.admin.ListTokens(admin_pb.ListTokensRequest(), metadata=client.metadata))


async def test_what_can_be_read_shows_no_credential(scene: Scene) -> None:
    client, token = scene.client, {"metadata": scene.client.metadata}
    name = f"{OWNER}/connectors/main"
    hear = scene.replies.hear
    hear(await client.connectors.GetConnector(connector_pb.GetConnectorRequest(name=name), **token))
    hear(await client.connectors.ListConnectors(connector_pb.ListConnectorsRequest(parent=OWNER), **token))
    rotated = await scene.rotated(scene.planted.rotated_key)
    assert rotated.credential_info.last_four == scene.planted.rotated_key[-4:]
    test = connector_pb.TestConnectorRequest(name=name)
    for status in (200, 401, 429, 500):
        scene.provider.answer(answers.json_answer({"error": scene.planted.api_key}, status=status))
        hear(await client.connectors.TestConnector(test, **token))
    scene.provider.answer(answers.json_answer({"data": [{"id": "small"}]}))
    hear(await client.connectors.ListConnectorModels(connector_pb.ListConnectorModelsRequest(parent=name), **token))
    hear(await client.admin.GetPolicy(admin_pb.GetPolicyRequest(), **token))
    hear(await client.status())


async def test_nothing_that_holds_a_secret_prints_it() -> None:
    planted = Planted()
    key, master, token = planted.api_key, planted.master_key, planted.wrong_token
    secret = Secret({"api_key": key, "headers": {"x-team": planted.header}})
    request = HttpRequest(method="POST", url="https://llm.example/v1", headers=(("authorization", key),))
    keyring = Keyring([("key-1", master.encode())])
    holders = [
        secret,
        request,
        Prepared(request=request),
        Credential(type="openai", fields={"api_key": key}),
        keyring,
        Vault(keyring),
        Vault(keyring).seal("uid", {"api_key": key}),
        Settings(master_keys=f"key-1:{master}", bootstrap_token=token, database_url=f"postgresql://u:{token}@h/d"),
        Running(service=None, first_token=TokenText(token)),  # type: ignore[arg-type]
    ]
    for holder in holders:
        for told in (repr(holder), str(holder), f"{holder}", f"{[holder]} { ({'a': holder}) }", pretty_repr(holder)):
            look_for(planted.credentials, told.encode(), f"the text of a {type(holder).__name__}")
