"""The core's bench behind a real gRPC server on loopback, and a client that looks closely at what comes back."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import grpc.aio
from google.protobuf.message import Message
from google.rpc import error_details_pb2 as details_pb  # type: ignore[import-untyped]  # ships no py.typed
from google.rpc import status_pb2
from grpc_health.v1 import health_pb2_grpc
from tests.support.bench import Bench
from tests.support.clock import START
from tests.support.make import OWNER

from patchbay.v1 import (
    admin_service_pb2_grpc,
    connector_service_pb2_grpc,
    content_pb2,
    error_pb2,
    gateway_service_pb2_grpc,
)
from patchbay.v1 import gateway_service_pb2 as pb
from patchbay_server.core.access import new_token_text
from patchbay_server.core.service import Facts, Service
from patchbay_server.rpc.server import RpcServer, RpcSettings
from patchbay_server.types import AuditType, Scope, Token

Metadata = tuple[tuple[str, str], ...]
DETAILS = (
    details_pb.ErrorInfo,
    details_pb.RetryInfo,
    details_pb.QuotaFailure,
    details_pb.BadRequest,
    details_pb.PreconditionFailure,
    error_pb2.UpstreamFailure,
    error_pb2.PartialResult,
)


class Rpc:
    """A gateway by gRPC. `owner_token` has every scope for one owner, `root_token` for any."""

    def __init__(self, core: Bench, server: RpcServer, service: Service, channel: grpc.aio.Channel) -> None:
        self.core = core
        self.server = server
        self.service = service
        self.channel = channel
        self.gateway = gateway_service_pb2_grpc.GatewayServiceStub(channel)
        self.connectors = connector_service_pb2_grpc.ConnectorServiceStub(channel)
        self.admin = admin_service_pb2_grpc.AdminServiceStub(channel)
        self.health: Any = health_pb2_grpc.HealthStub(channel)
        self.owner_token: Metadata = ()
        self.root_token: Metadata = ()

    async def token(self, *scopes: Scope, owner: str | None = OWNER, expires_at: datetime | None = None) -> Metadata:
        """Metadata with a fresh token."""
        token_id, text, digest = new_token_text(None)
        token = Token(
            id=token_id,
            digest=digest,
            display_name="test",
            scopes=frozenset(scopes),
            owner=owner,
            created_at=START,
            expires_at=expires_at,
        )
        await self.core.store.create_token(token, self.core.audit(AuditType.TOKEN_CREATED))
        return (("authorization", f"Bearer {text}"),)

    def stream(self, request: pb.ChatRequest | None = None, **options: Any) -> Any:
        asked: dict[str, Any] = {"metadata": self.owner_token, "timeout": 10.0} | options
        return self.gateway.Stream(request or chat_request(), **asked)

    def chat_as_stream(self, request: pb.ChatRequest | None = None, **options: Any) -> Any:
        """Chat by a client that shows the header when it comes; the stock one shows it with the answer."""
        asked: dict[str, Any] = {"metadata": self.owner_token, "timeout": 10.0} | options
        method = self.channel.unary_stream(
            "/patchbay.v1.GatewayService/Chat", pb.ChatRequest.SerializeToString, pb.ChatResponse.FromString
        )
        return method(request or chat_request(), **asked)

    def chat(self, request: pb.ChatRequest | None = None, **options: Any) -> Any:
        asked: dict[str, Any] = {"metadata": self.owner_token, "timeout": 10.0} | options
        return self.gateway.Chat(request or chat_request(), **asked)


def chat_request(said: str = "Hi", **fields: Any) -> pb.ChatRequest:
    message = content_pb2.ChatMessage(role=content_pb2.ROLE_USER, parts=[content_pb2.ContentPart(text=said)])
    return pb.ChatRequest(messages=[message], **fields)


def settings(**given: Any) -> RpcSettings:
    """Settings that listen on a free port and end at once."""
    told: dict[str, Any] = {"address": "127.0.0.1:0", "grace_s": 0.0, "drain_s": 5.0}
    return RpcSettings(**(told | given))


def service_of(core: Bench) -> Service:
    return Service(
        facts=Facts(version="1.2.3", process_id="bench", started_at=START, key_ids=("key-1",), plugins=()),
        clock=core.clock,
        store=core.store,
        access=core.access,
        gateway=core.gateway,
        connectors=core.connectors,
        admin=core.admin,
        snapshots=core.snapshots,
        recorder=core.recorder,
    )


@asynccontextmanager
async def serving(core: Bench, **given: Any) -> AsyncIterator[Rpc]:
    """`core` behind a server of its own, and a channel to it; `given` are of the server's settings."""
    before = asyncio.all_tasks()
    service = service_of(core)
    server = RpcServer(service, settings(**given))
    await server.start()
    server.set_serving(True)
    try:
        async with grpc.aio.insecure_channel(server.address) as channel:
            rpc = Rpc(core, server, service, channel)
            rpc.owner_token = await rpc.token(*Scope)
            rpc.root_token = await rpc.token(*Scope, owner=None)
            yield rpc
    finally:
        await server.stop()
        # grpc's tasks for RPCs that were cancelled take another moment.
        if left := asyncio.all_tasks() - before - {asyncio.current_task()}:
            await asyncio.wait(left, timeout=1)


# --- what a client sees -----------------------------------------------------------------------------------------------


class Failure:
    """A status as a client gets it, with its details unpacked by name."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        self.code = error.code()
        self.message = error.details()
        self.headers: dict[str, Any] = dict(error.initial_metadata())
        self.trailers: dict[str, Any] = dict(error.trailing_metadata())
        self.status = status_pb2.Status.FromString(self.trailers["grpc-status-details-bin"])
        assert self.status.code == self.code.value[0]
        assert self.status.message == self.message
        self.details: dict[str, Any] = {}
        for packed in self.status.details:
            [kind] = [kind for kind in DETAILS if packed.Is(kind.DESCRIPTOR)]
            unpacked: Message = kind()
            packed.Unpack(unpacked)
            self.details[kind.DESCRIPTOR.name] = unpacked

    @property
    def reason(self) -> str:
        info = self.details["ErrorInfo"]
        assert info.domain == "patchbay"
        return str(info.reason.removeprefix("ERROR_REASON_"))

    @property
    def fields(self) -> list[str]:
        return [violation.field for violation in self.details["BadRequest"].field_violations]


async def failure_of(call: Awaitable[Any]) -> Failure:
    """How an RPC fails."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        return Failure(error)
    raise AssertionError(f"it answered: {answer}")


async def following(call: Any) -> Any:
    """The next message of a stream. (The client's `read` would pass over messages once it knows the status.)"""
    return await anext(aiter(call))


async def read(call: Any, got: list[pb.ChatResponseChunk] | None = None) -> list[pb.ChatResponseChunk]:
    """All chunks of a stream, also into `got`; raises what ends it."""
    got = [] if got is None else got
    async for chunk in call:
        got.append(chunk)
    return got


def kinds(chunks: list[pb.ChatResponseChunk]) -> list[str | None]:
    return [chunk.WhichOneof("event") for chunk in chunks]


def check_sequence(chunks: list[pb.ChatResponseChunk]) -> None:
    assert [chunk.sequence for chunk in chunks] == list(range(1, len(chunks) + 1))
