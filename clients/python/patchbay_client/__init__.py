"""A client for the Patchbay gateway: any language model of any provider behind one call.

    from patchbay_client import PatchbayClient

    with PatchbayClient("localhost:50051", token) as client:
        answer = client.chat("What is the capital of France?")
        print(answer.text, answer.usage.total_tokens, answer.route.model)

        with client.stream("Tell me a story", max_output_tokens=500) as stream:
            for text in stream.text():
                print(text, end="", flush=True)

The same for asyncio:

    async with AsyncPatchbayClient("https://patchbay.example", token) as client:
        answer = await client.chat([system("Answer in one word."), user("The capital of France?")])

        async with client.stream("Tell me a story") as stream:
            async for text in stream.text():
                ...

Tools, where an answer is part of the next prompt as it is:

    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    weather = Tool("get_weather", "The weather of a city.", schema)
    turns = [user("How is the weather in Oslo?")]
    answer = client.chat(turns, tools=[weather])
    while answer.tool_calls:
        turns += [answer, *(ToolResult(call.id, look_up(**call.arguments)) for call in answer.tool_calls)]
        answer = client.chat(turns, tools=[weather])

`client.connectors` manages an owner's connectors, `client.admin` the gateway. Every failure of a call is a
`PatchbayError` with a `reason`; see `patchbay_client.errors` for the classes to catch.
"""

from patchbay_client.aio import AsyncPatchbayClient
from patchbay_client.answer import ChatAnswer, FinishReason, Model, Notice, Route
from patchbay_client.channel import TlsOptions
from patchbay_client.client import PatchbayClient
from patchbay_client.connectors import Connector
from patchbay_client.content import (
    Media,
    Message,
    Reasoning,
    Refusal,
    Text,
    ToolCall,
    ToolResult,
    assistant,
    system,
    user,
)
from patchbay_client.errors import (
    AlreadyExists,
    Cancelled,
    CapReached,
    Conflict,
    ContentPolicyViolation,
    ContextLengthExceeded,
    DeadlineExceeded,
    FeatureUnsupported,
    InvalidRequest,
    NotFound,
    NotSupported,
    PatchbayError,
    PermissionDenied,
    PreconditionFailed,
    RateLimited,
    TruncatedStream,
    Unauthenticated,
    Unavailable,
)
from patchbay_client.request import JsonSchema, ProviderTool, Tool
from patchbay_client.streams import AsyncChatStream, ChatStream
from patchbay_client.usage import Usage

__all__ = [
    "AlreadyExists",
    "AsyncChatStream",
    "AsyncPatchbayClient",
    "Cancelled",
    "CapReached",
    "ChatAnswer",
    "ChatStream",
    "Conflict",
    "Connector",
    "ContentPolicyViolation",
    "ContextLengthExceeded",
    "DeadlineExceeded",
    "FeatureUnsupported",
    "FinishReason",
    "InvalidRequest",
    "JsonSchema",
    "Media",
    "Message",
    "Model",
    "NotFound",
    "NotSupported",
    "Notice",
    "PatchbayClient",
    "PatchbayError",
    "PermissionDenied",
    "PreconditionFailed",
    "ProviderTool",
    "RateLimited",
    "Reasoning",
    "Refusal",
    "Route",
    "Text",
    "TlsOptions",
    "Tool",
    "ToolCall",
    "ToolResult",
    "TruncatedStream",
    "Unauthenticated",
    "Unavailable",
    "Usage",
    "assistant",
    "system",
    "user",
]
