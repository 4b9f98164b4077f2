"""What a caller asks of a provider that someone else simulates, over gRPC, and what the answers have in common."""

import json
from collections.abc import Mapping
from typing import Any, Final

import grpc.aio
import pytest
from tests.e2e.gateway import OWNER, GatewayHere, asking, read
from tests.rpc.bench import Failure, check_sequence, kinds

from patchbay.v1 import connector_service_pb2, content_pb2
from patchbay.v1 import gateway_service_pb2 as pb

SCHEMA: Final = (
    '{"type":"object","properties":{"city":{"type":"string"},"days":{"type":"integer"}},"required":["city"]}'
)
TOOL: Final = pb.Tool(function=pb.FunctionTool(name="forecast", description="weather", parameters_json_schema=SCHEMA))
MODES: Final = pytest.mark.parametrize("streaming", [False, True], ids=["unary", "streamed"])


async def answer_to(here: GatewayHere, request: pb.ChatRequest, *, streaming: bool) -> pb.ChatResponse:
    """The whole answer. That of a stream adds up from its deltas, which keep the order of the contract."""
    if not streaming:
        (answer,) = await read(here.client.chat(request=request))
        assert answer.route.upstream_mode == pb.UPSTREAM_MODE_UNARY
        return check(answer)
    asked = pb.ChatRequest()
    asked.CopyFrom(request)
    asked.stream_options.include_final_response = True
    chunks = await read(here.client.stream(request=asked))
    check_sequence(chunks)
    told = [kind for kind in kinds(chunks) if kind != "heartbeat"]
    assert (told[0], told[-1]) == ("started", "completed")
    assert told.count("completed") == 1
    answer = chunks[-1].completed.response
    assert answer.route.upstream_mode == pb.UPSTREAM_MODE_STREAMING
    assert "".join(chunk.text_delta.text for chunk in chunks) == text_of(answer)
    arguments = "".join(chunk.tool_call_delta.arguments_json for chunk in chunks)
    assert arguments in ("".join(call.arguments_json for call in calls_of(answer)), "")
    return check(answer)


def check(answer: pb.ChatResponse) -> pb.ChatResponse:
    """What holds of every answer that is whole."""
    assert answer.message.parts
    assert answer.finish_reason
    assert answer.provider_finish_reason
    assert answer.usage.input_tokens > 0
    assert answer.usage.output_tokens > 0
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    return answer


async def failure_of(here: GatewayHere, request: pb.ChatRequest, *, streaming: bool) -> tuple[Failure, str]:
    """How a call fails, and the text that came before."""
    got: list[Any] = []
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read((here.client.stream if streaming else here.client.chat)(request=request), got)
    if not streaming:
        assert got == []
        return Failure(caught.value), ""
    assert "completed" not in kinds(got)
    return Failure(caught.value), "".join(chunk.text_delta.text for chunk in got)


def text_of(answer: pb.ChatResponse) -> str:
    return "".join(part.text for part in answer.message.parts)


def calls_of(answer: pb.ChatResponse) -> list[content_pb2.ToolCall]:
    return [part.tool_call for part in answer.message.parts if part.HasField("tool_call")]


def forecast(connector: str) -> pb.ChatRequest:
    return asking(connector, "What will the weather be in Paris? Use forecast.", tools=[TOOL])


def with_result(request: pb.ChatRequest, answer: pb.ChatResponse) -> pb.ChatRequest:
    """The conversation after the tools that `answer` asked for were run."""
    calls = calls_of(answer)
    assert [call.name for call in calls] == ["forecast"]
    assert all(isinstance(json.loads(call.arguments_json), dict) and call.id for call in calls)
    results = [
        content_pb2.ContentPart(
            tool_result=content_pb2.ToolResult(
                tool_call_id=call.id, parts=[content_pb2.ContentPart(text="21 degrees in Paris")]
            )
        )
        for call in calls
    ]
    said = content_pb2.ChatMessage(role=content_pb2.ROLE_ASSISTANT, parts=answer.message.parts)
    told = content_pb2.ChatMessage(role=content_pb2.ROLE_TOOL, parts=results)
    later = pb.ChatRequest()
    later.CopyFrom(request)
    later.messages.extend([said, told])
    return later


async def connect(here: GatewayHere, connectors: Mapping[str, tuple[connector_service_pb2.Credential, str]]) -> None:
    """Connectors by name, each with its credential and its model."""
    for name, (credential, model) in connectors.items():
        await here.client.create(name, credential, model)


async def result_of_test(here: GatewayHere, connector: str) -> "connector_service_pb2.TestResult.ValueType":
    request = connector_service_pb2.TestConnectorRequest(name=f"{OWNER}/connectors/{connector}")
    answer = await here.client.connectors.TestConnector(request, metadata=here.client.metadata)
    return answer.result  # type: ignore[no-any-return] # the stub tells no types


async def models(here: GatewayHere, connector: str) -> list[str]:
    request = connector_service_pb2.ListConnectorModelsRequest(parent=f"{OWNER}/connectors/{connector}")
    listed = await here.client.connectors.ListConnectorModels(request, metadata=here.client.metadata)
    return [model.id for model in listed.models]
