"""Conversations with ten providers as `llmock` simulates them, and every fault that it knows; it judges us, too."""

import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from tests.e2e.gateway import GatewayHere, asking
from tests.oracles.conversation import (
    MODES,
    answer_to,
    calls_of,
    connect,
    failure_of,
    forecast,
    models,
    result_of_test,
    text_of,
    with_result,
)
from tests.oracles.simulators import free_port, simulator

from patchbay.v1 import connector_service_pb2 as pb
from patchbay.v1 import gateway_service_pb2

pytestmark = pytest.mark.slow

KEY: Final = "example-key-0123456789"


def connectors(root: str) -> dict[str, tuple[pb.Credential, str]]:
    """A connector for everything that llmock simulates and that we speak, with a model."""

    def compatible(path: str) -> pb.Credential:
        return pb.Credential(openai_compatible=pb.OpenaiCompatibleCredential(base_url=f"{root}{path}", api_key=KEY))

    openai = pb.Credential(openai=pb.OpenaiCredential(api_key=KEY, endpoint=f"{root}/v1"))
    return {
        "chat": (openai, "gpt-4.1"),
        "responses": (openai, "gpt-5-pro"),
        "anthropic": (
            pb.Credential(anthropic=pb.AnthropicCredential(api_key=KEY, endpoint=f"{root}/anthropic/v1")),
            "claude-opus-4-6",
        ),
        "gemini": (
            pb.Credential(gemini=pb.GeminiCredential(api_key=KEY, endpoint=f"{root}/gemini/v1beta")),
            "gemini-2.5-flash",
        ),
        "xai": (pb.Credential(xai=pb.XaiCredential(api_key=KEY, endpoint=f"{root}/xai/v1")), "grok-3"),
        "mistral": (compatible("/mistral/v1"), "mistral-large-latest"),
        "groq": (compatible("/groq/openai/v1"), "openai/gpt-oss-120b"),
        "together": (compatible("/together/v1"), "meta-llama/Llama-3.3-70B-Instruct-Turbo"),
        "perplexity": (compatible("/perplexity/v1"), "sonar"),
        "ai21": (compatible("/ai21/v1"), "jamba-large"),
    }


NAMES: Final = tuple(connectors(""))


class Llmock:
    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client
        self.root = str(client.base_url).rstrip("/")

    async def next(self, **behaviour: Any) -> None:
        """What the next request meets."""
        answer = await self.client.post("/_llmock/scenario", json={"behaviors": [behaviour]})
        assert answer.status_code == 201, answer.text

    async def nothing_waits(self) -> None:
        assert (await self.client.get("/_llmock/scenario")).json() == {"pending": []}

    async def faults_found(self) -> set[str]:
        """What it holds against its clients. That a broken stream was not asked for again is no fault of a gateway
        whose caller was told of it.
        """
        verdict = (await self.client.get("/_llmock/verdict")).json()
        found = {finding["code"] for finding in verdict["findings"]}
        return found - {"truncated_stream_accepted", "malformed_chunk_ignored", "gave_up"}


@pytest.fixture
async def llmock(here: GatewayHere) -> AsyncIterator[Llmock]:
    port = free_port()
    command = (Path(sys.executable).parent / "llmock", "serve", "--port", str(port), "--log-level", "critical")
    async with simulator(command, port, "/health") as client:
        llmock = Llmock(client)
        await connect(here, connectors(llmock.root))
        yield llmock
        await llmock.nothing_waits()
        assert await llmock.faults_found() == set()


@MODES
async def test_text_is_answered(llmock: Llmock, here: GatewayHere, streaming: bool) -> None:
    for name in NAMES:
        await llmock.next(type="reply", text=f"Hello from {name}: größe 🙂")
        answer = await answer_to(here, asking(name), streaming=streaming)
        assert text_of(answer) == f"Hello from {name}: größe 🙂"
        assert answer.finish_reason == gateway_service_pb2.FINISH_REASON_STOP, name


@MODES
async def test_a_tool_is_called_and_its_result_is_answered(llmock: Llmock, here: GatewayHere, streaming: bool) -> None:
    for name in NAMES:
        request = forecast(name)
        called = await answer_to(here, request, streaming=streaming)
        assert called.finish_reason == gateway_service_pb2.FINISH_REASON_TOOL_CALLS, name
        answer = await answer_to(here, with_result(request, called), streaming=streaming)
        assert answer.finish_reason == gateway_service_pb2.FINISH_REASON_STOP, name
        assert text_of(answer)


@MODES
async def test_arguments_that_are_no_json_are_delivered_with_a_notice(
    llmock: Llmock, here: GatewayHere, streaming: bool
) -> None:
    for name in ("chat", "responses", "xai", "mistral"):
        await llmock.next(type="tool_fault", kind="malformed_arguments")
        answer = await answer_to(here, forecast(name), streaming=streaming)
        codes = [notice.code for notice in answer.notices]
        assert codes == [gateway_service_pb2.NOTICE_CODE_TOOL_ARGUMENTS_INVALID_JSON], name
        assert [call.name for call in calls_of(answer)] == ["forecast"]


@MODES
@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (400, "UPSTREAM_REJECTED_REQUEST"),
        (403, "UPSTREAM_CREDENTIAL_REJECTED"),
        (500, "UPSTREAM_UNAVAILABLE"),
        (503, "UPSTREAM_UNAVAILABLE"),
    ],
)
async def test_an_error_status_is_told_as_what_it_means(
    llmock: Llmock, here: GatewayHere, status: int, reason: str, streaming: bool
) -> None:
    for name in NAMES:
        await llmock.next(type="fail", status=status)
        failure, _ = await failure_of(here, asking(name), streaming=streaming)
        assert failure.reason == reason, name
        assert failure.details["UpstreamFailure"].http_status == status


@MODES
async def test_a_wrong_key_is_told_as_that_once_and_then_not_used(
    llmock: Llmock, here: GatewayHere, streaming: bool
) -> None:
    for name in NAMES:
        await llmock.next(type="fail", status=401)
        failure, _ = await failure_of(here, asking(name), streaming=streaming)
        assert failure.reason == "UPSTREAM_CREDENTIAL_REJECTED", name
        failure, _ = await failure_of(here, asking(name), streaming=streaming)
        assert failure.reason == "CONNECTOR_INACTIVE", name


@MODES
async def test_a_rate_limit_says_when_to_come_back(llmock: Llmock, here: GatewayHere, streaming: bool) -> None:
    for name in NAMES:
        await llmock.next(type="fail", status=429, retry_after=7)
        failure, _ = await failure_of(here, asking(name), streaming=streaming)
        assert failure.reason == "UPSTREAM_RATE_LIMITED", name
        assert failure.details["RetryInfo"].retry_delay.seconds == 7, name


@pytest.mark.parametrize(
    ("kind", "reasons"),
    [
        # What was sent may be lost together with the connection; before any output it is the provider that is away.
        ("disconnect", {True: "UPSTREAM_STREAM_BROKEN", False: "UPSTREAM_UNAVAILABLE"}),
        ("truncate", {True: "UPSTREAM_TRUNCATED"}),
        ("malformed", {True: "UPSTREAM_MALFORMED_RESPONSE"}),
    ],
    ids=["disconnect", "truncate", "malformed"],
)
async def test_a_broken_stream_is_told_after_what_came_of_it(
    llmock: Llmock, here: GatewayHere, kind: str, reasons: dict[bool, str]
) -> None:
    text = "one two three four five six seven eight nine ten"
    for name in NAMES:
        await llmock.next(type="reply", text=text)
        await llmock.next(type="stream_fault", kind=kind, after_chunks=6)
        failure, before = await failure_of(here, asking(name), streaming=True)
        assert text.startswith(before), name
        assert failure.reason == reasons.get(bool(before)), (name, before)


async def test_connectors_pass_their_check_and_list_their_models(llmock: Llmock, here: GatewayHere) -> None:
    """llmock has no single models and no keys to ask after: a check that asks for one is told so."""
    for name in ("mistral", "groq", "together"):
        assert await result_of_test(here, name) == pb.TEST_RESULT_OK, name
    for name in ("chat", "anthropic", "gemini", "xai", "mistral", "groq"):
        assert await models(here, name), name
