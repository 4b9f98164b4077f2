"""Conversations with all eight types of provider as `aimock` simulates them, and the faults that it knows."""

import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

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
    text_of,
    with_result,
)
from tests.oracles.simulators import free_port, simulator
from tests.support.fetched import node_packages
from tests.support.needs import needs

from patchbay.v1 import connector_service_pb2 as pb
from patchbay.v1 import gateway_service_pb2

pytestmark = pytest.mark.slow

FIXTURES: Final = Path(__file__).parent / "aimock.json"
KEY: Final = "example-key-0123456789"


def connectors(root: str) -> dict[str, tuple[pb.Credential, str]]:
    """A connector of every type, and of some types one for each of their APIs, with a model."""
    openai = pb.Credential(openai=pb.OpenaiCredential(api_key=KEY, endpoint=f"{root}/v1"))
    azure = pb.AzureOpenaiCredential(api_key=KEY, endpoint=root, deployment="chat", api_version="2024-10-21")

    def bedrock(model: str) -> tuple[pb.Credential, str]:
        credential = pb.BedrockCredential(region="us-east-1", model_id=model, api_key=KEY, endpoint=root)
        return pb.Credential(bedrock=credential), model

    return {
        "chat": (openai, "gpt-4.1"),
        "responses": (openai, "gpt-5-pro"),
        "compatible": (
            pb.Credential(openai_compatible=pb.OpenaiCompatibleCredential(base_url=f"{root}/v1", api_key=KEY)),
            "small",
        ),
        "anthropic": (
            pb.Credential(anthropic=pb.AnthropicCredential(api_key=KEY, endpoint=f"{root}/v1")),
            "claude-opus-4-6",
        ),
        "gemini": (
            pb.Credential(gemini=pb.GeminiCredential(api_key=KEY, endpoint=f"{root}/v1beta")),
            "gemini-2.5-flash",
        ),
        "azure": (pb.Credential(azure_openai=azure), "gpt-4.1"),
        "nova": bedrock("amazon.nova-pro-v1:0"),
        "claude": bedrock("anthropic.claude-sonnet-4-20250514-v1:0"),
        "xai": (pb.Credential(xai=pb.XaiCredential(api_key=KEY, endpoint=f"{root}/v1")), "grok-3"),
        "openrouter": (
            pb.Credential(openrouter=pb.OpenrouterCredential(api_key=KEY, endpoint=f"{root}/api/v1")),
            "openai/gpt-4.1",
        ),
    }


NAMES: Final = tuple(connectors(""))


@pytest.fixture(autouse=True)
async def aimock(here: GatewayHere) -> AsyncIterator[str]:
    """The root of the simulated APIs, with a connector to each."""
    needs(shutil.which("node") is not None, "Node is not installed")
    script = node_packages() / "@copilotkit" / "aimock" / "dist" / "cli.js"
    port = free_port()
    command = ("node", script, "--port", str(port), "--fixtures", FIXTURES, "--strict", "--log-level", "silent")
    async with simulator(command, port, "/health") as client:
        root = str(client.base_url).rstrip("/")
        await connect(here, connectors(root))
        yield root


@MODES
async def test_text_is_answered(here: GatewayHere, streaming: bool) -> None:
    for name in NAMES:
        answer = await answer_to(here, asking(name, "hello"), streaming=streaming)
        assert text_of(answer) == "Hello, größe 你好 🙂, from the other side.", name
        assert (answer.usage.input_tokens, answer.usage.output_tokens) == (11, 7), name
        assert answer.finish_reason == gateway_service_pb2.FINISH_REASON_STOP, name


@MODES
async def test_a_tool_is_called_and_its_result_is_answered(here: GatewayHere, streaming: bool) -> None:
    for name in NAMES:
        request = forecast(name)
        called = await answer_to(here, request, streaming=streaming)
        if name != "gemini":  # aimock has a finish reason of its own there, which the API does not know
            assert called.finish_reason == gateway_service_pb2.FINISH_REASON_TOOL_CALLS, name
        assert [json.loads(call.arguments_json) for call in calls_of(called)] == [{"city": "Paris", "days": 12}], name
        answer = await answer_to(here, with_result(request, called), streaming=streaming)
        assert text_of(answer) == "It is 21 degrees.", name


@MODES
async def test_two_calls_of_one_answer_are_kept_apart(here: GatewayHere, streaming: bool) -> None:
    for name in NAMES:
        request = forecast(name)
        request.messages[0].parts[0].text = "both"
        answer = await answer_to(here, request, streaming=streaming)
        calls = calls_of(answer)
        assert text_of(answer) == "Let me look twice.", name
        assert [json.loads(call.arguments_json)["city"] for call in calls] == ["Paris", "Rome"], name
        assert len({call.id for call in calls}) == 2, name


@MODES
async def test_an_answer_that_met_its_limit_says_so(here: GatewayHere, streaming: bool) -> None:
    for name in NAMES:
        answer = await answer_to(here, asking(name, "limit"), streaming=streaming)
        if name == "responses":  # aimock does not say there why the answer is incomplete
            assert answer.provider_finish_reason == "incomplete"
            continue
        assert answer.finish_reason == gateway_service_pb2.FINISH_REASON_MAX_OUTPUT_TOKENS, name


@MODES
async def test_an_error_status_is_told_as_what_it_means(here: GatewayHere, streaming: bool) -> None:
    for name in NAMES:
        failure, _ = await failure_of(here, asking(name, "status 429"), streaming=streaming)
        assert failure.reason == "UPSTREAM_RATE_LIMITED", name
        assert failure.details["RetryInfo"].retry_delay.seconds == 7, name
        failure, _ = await failure_of(here, asking(name, "status 500"), streaming=streaming)
        assert failure.reason == "UPSTREAM_UNAVAILABLE", name


async def test_a_stream_that_breaks_off_is_never_an_answer(here: GatewayHere) -> None:
    for name in NAMES:
        failure, before = await failure_of(here, asking(name, "break off"), streaming=True)
        assert "one two three four five six seven eight nine ten".startswith(before), name
        assert failure.reason == ("UPSTREAM_STREAM_BROKEN" if before else "UPSTREAM_UNAVAILABLE"), name


@MODES
async def test_garbage_and_a_dropped_connection_are_never_an_answer(here: GatewayHere, streaming: bool) -> None:
    for name in NAMES:
        failure, before = await failure_of(here, asking(name, "garbage"), streaming=streaming)
        assert (failure.reason, before) == ("UPSTREAM_MALFORMED_RESPONSE", ""), name
        failure, before = await failure_of(here, asking(name, "hang up"), streaming=streaming)
        assert (failure.reason, before) == ("UPSTREAM_UNAVAILABLE", ""), name


@MODES
async def test_reasoning_is_kept_apart_from_text(here: GatewayHere, streaming: bool) -> None:
    for name in ("compatible", "anthropic", "gemini", "openrouter", "nova"):
        answer = await answer_to(here, asking(name, "reason"), streaming=streaming)
        assert text_of(answer) == "Four.", name
        assert "".join(part.reasoning.text for part in answer.message.parts) == "Two and two.", name


async def test_models_are_listed(here: GatewayHere) -> None:
    for name in ("chat", "compatible", "openrouter"):
        assert await models(here, name), name
