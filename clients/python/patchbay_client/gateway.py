"""The operations of GatewayService."""

from patchbay.v1 import gateway_service_pb2 as gateway_pb
from patchbay_client.answer import ChatAnswer, Explanation, TokenCount
from patchbay_client.reading import read
from patchbay_client.request import ListOptions, owner_name
from patchbay_client.transport import PAGE_SIZE, Limit, Operation


def chat(request: gateway_pb.ChatRequest) -> Operation[gateway_pb.ChatResponse, ChatAnswer]:
    return Operation(
        method="GatewayService/Chat",
        request=request,
        response=gateway_pb.ChatResponse,
        read=lambda response: read(ChatAnswer, response),
        limit=Limit.PROVIDER,
    )


def stream(
    request: gateway_pb.ChatRequest,
) -> Operation[gateway_pb.ChatResponseChunk, gateway_pb.ChatResponseChunk]:
    return Operation(
        method="GatewayService/Stream",
        request=request,
        response=gateway_pb.ChatResponseChunk,
        read=lambda chunk: chunk,
        limit=Limit.PROVIDER,
    )


def explain(request: gateway_pb.ChatRequest) -> Operation[gateway_pb.ExplainResponse, Explanation]:
    return Operation(
        method="GatewayService/Explain",
        request=gateway_pb.ExplainRequest(request=request),
        response=gateway_pb.ExplainResponse,
        read=lambda response: read(Explanation, response),
    )


def count_tokens(request: gateway_pb.ChatRequest) -> Operation[gateway_pb.CountTokensResponse, TokenCount]:
    return Operation(
        method="GatewayService/CountTokens",
        request=gateway_pb.CountTokensRequest(request=request),
        response=gateway_pb.CountTokensResponse,
        read=lambda response: read(TokenCount, response),
        limit=Limit.PROVIDER,
    )


def list_models(
    owner: str | None, options: ListOptions
) -> Operation[gateway_pb.ListModelsResponse, gateway_pb.ListModelsResponse]:
    return Operation(
        method="GatewayService/ListModels",
        request=gateway_pb.ListModelsRequest(owner=owner_name(owner), page_size=PAGE_SIZE, **options),
        response=gateway_pb.ListModelsResponse,
        read=lambda page: page,
        limit=Limit.PROVIDER,
    )
