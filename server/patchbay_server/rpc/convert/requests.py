"""What a call asks for: `ChatRequest` in the gateway's words, and how its stream is to be delivered.

Every field of the message arrives here or is refused; nothing is dropped silently.
"""

import hashlib
from collections.abc import Iterable
from typing import Final, assert_never

import msgspec

from patchbay.v1 import content_pb2 as content_pb
from patchbay.v1 import gateway_service_pb2 as pb
from patchbay_server.core.access import acting_owner
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.rpc.convert.enums import EFFORTS, FALLBACK_MODES, ROLES, TOOL_MODES
from patchbay_server.rpc.convert.fields import Faults, connector_name, owner_id, seconds
from patchbay_server.types import (
    Caller,
    ChatRequest,
    Effort,
    FunctionTool,
    GenerationConfig,
    JsonObjectFormat,
    JsonSchemaFormat,
    MediaPart,
    Message,
    Part,
    Prompt,
    ProviderTool,
    ReasoningConfig,
    ReasoningPart,
    RefusalPart,
    ResponseFormat,
    TextFormat,
    TextPart,
    Tool,
    ToolCallPart,
    ToolChoice,
    ToolResultPart,
)

HEARTBEAT_S: Final = 15.0
_HEARTBEAT_S_RANGE: Final = (1.0, 300.0)
_KNOBS: Final = (
    "max_output_tokens",
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "frequency_penalty",
    "presence_penalty",
    "parallel_tool_calls",
)


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """How a stream reaches its caller. `heartbeat_s` is the silence that a heartbeat ends; None sends none."""

    coalescing: bool = True
    heartbeat_s: float | None = HEARTBEAT_S
    final_response: bool = False


def chat_request(request: pb.ChatRequest, caller: Caller) -> ChatRequest:
    """The request of a `Chat` or `Stream`. Clears `request_id` of a message that has one.

    Raises:
        PatchbayError: INVALID_REQUEST naming every field at fault; CONNECTOR_NOT_FOUND for another owner's connector.
    """
    faults = Faults()
    owner = owner_id(request.owner, "owner", faults)
    named_owner, connector = _connector(request.connector, faults)
    made = ChatRequest(
        prompt=_prompt(request, faults),
        owner=owner,
        feature=request.feature,
        connector=connector,
        model=request.model,
        fallback=FALLBACK_MODES.given(request.fallback, "fallback", faults),
        min_quality=request.min_quality if request.HasField("min_quality") else None,
        labels=dict(request.labels),
        request_id=request.request_id,
        content_hash=_content_hash(request),
    )
    faults.check()
    if named_owner and named_owner != acting_owner(caller, owner):
        raise PatchbayError(
            Reason.CONNECTOR_NOT_FOUND, "the owner of this call has no such connector", field="connector"
        )
    return made


def delivery(options: pb.StreamOptions) -> Delivery:
    """Raises: PatchbayError: INVALID_REQUEST naming every field at fault."""
    faults = Faults()
    if options.coalescing not in pb.Coalescing.values():
        faults.add("stream_options.coalescing", "must be COALESCING_AUTO or COALESCING_OFF")
    made = Delivery(
        coalescing=options.coalescing != pb.COALESCING_OFF,
        heartbeat_s=_heartbeat_s(options, faults),
        final_response=options.include_final_response,
    )
    faults.check()
    return made


def _heartbeat_s(options: pb.StreamOptions, faults: Faults) -> float | None:
    if not options.HasField("heartbeat_interval"):
        return HEARTBEAT_S
    path = "stream_options.heartbeat_interval"
    interval_s = seconds(options.heartbeat_interval, path, faults)
    low, high = _HEARTBEAT_S_RANGE
    if interval_s and not low <= interval_s <= high:
        faults.add(path, f"must be {low:g} s to {high:g} s, or 0 for no heartbeats")
    return interval_s or None


def _content_hash(request: pb.ChatRequest) -> bytes:
    """What tells a retry from another request under the same id: everything but the id."""
    if not request.request_id:
        return b""
    request.ClearField("request_id")
    return hashlib.sha256(request.SerializeToString(deterministic=True)).digest()


def _connector(name: str, faults: Faults) -> tuple[str, str]:
    """Owner and id; the owner is "" where a bare id is given, which is looked for among the acting owner's."""
    return connector_name(name, "connector", faults) if "/" in name else ("", name)


def _prompt(request: pb.ChatRequest, faults: Faults) -> Prompt:
    if request.unsupported not in pb.UnsupportedAction.values():
        faults.add("unsupported", "must be UNSUPPORTED_ACTION_REJECT or UNSUPPORTED_ACTION_DROP")
    return Prompt(
        messages=_messages(request.messages, faults),
        config=_config(request.config, faults) if request.HasField("config") else GenerationConfig(),
        tools=_tools(request.tools, faults),
        tool_choice=_tool_choice(request.tool_choice, faults) if request.HasField("tool_choice") else None,
        response_format=(
            _response_format(request.response_format, faults) if request.HasField("response_format") else None
        ),
        drop_unsupported=request.unsupported == pb.UNSUPPORTED_ACTION_DROP,
        provider_options_json=request.provider_options_json,
    )


# --- messages ---------------------------------------------------------------------------------------------------------


def _messages(messages: Iterable[content_pb.ChatMessage], faults: Faults) -> tuple[Message, ...]:
    made = []
    for index, message in enumerate(messages):
        path = f"messages[{index}]"
        role = ROLES.required(message.role, f"{path}.role", faults)
        parts = _parts(message.parts, path, faults)
        if role is not None:
            made.append(Message(role=role, parts=parts, author_name=message.author_name))
    return tuple(made)


def _parts(parts: Iterable[content_pb.ContentPart], path: str, faults: Faults) -> tuple[Part, ...]:
    made = (_part(part, f"{path}.parts[{index}]", faults) for index, part in enumerate(parts))
    return tuple(part for part in made if part is not None)


def _part(part: content_pb.ContentPart, path: str, faults: Faults) -> Part | None:
    mark = part.cache_breakpoint
    kind = part.WhichOneof("part")
    match kind:
        case "text":
            return TextPart(text=part.text, cache_breakpoint=mark)
        case "media":
            return _media(part.media, f"{path}.media", faults, cache_breakpoint=mark)
        case "reasoning":
            reasoning = part.reasoning
            return ReasoningPart(text=reasoning.text, provider_state=reasoning.provider_state, cache_breakpoint=mark)
        case "tool_call":
            tool_call = part.tool_call
            return ToolCallPart(
                id=tool_call.id,
                name=tool_call.name,
                arguments_json=tool_call.arguments_json or "{}",
                provider_state=tool_call.provider_state,
                cache_breakpoint=mark,
            )
        case "tool_result":
            return _tool_result(part.tool_result, f"{path}.tool_result", faults, cache_breakpoint=mark)
        case "refusal":
            return RefusalPart(text=part.refusal.text, cache_breakpoint=mark)
        case None:
            faults.add(path, "set exactly one of text, media, reasoning, tool_call, tool_result and refusal")
            return None
        case _:
            assert_never(kind)


def _media(media: content_pb.Media, path: str, faults: Faults, *, cache_breakpoint: bool) -> MediaPart | None:
    source = media.WhichOneof("source")
    if source is None:
        faults.add(path, "set exactly one of data, uri and provider_file_id")
        return None
    return MediaPart(
        mime_type=media.mime_type,
        data=media.data if source == "data" else None,
        uri=media.uri if source == "uri" else None,
        provider_file_id=media.provider_file_id if source == "provider_file_id" else None,
        file_name=media.file_name,
        cache_breakpoint=cache_breakpoint,
    )


def _tool_result(result: content_pb.ToolResult, path: str, faults: Faults, *, cache_breakpoint: bool) -> ToolResultPart:
    parts: list[TextPart | MediaPart] = []
    for index, part in enumerate(result.parts):
        where = f"{path}.parts[{index}]"
        match part.WhichOneof("part"):
            case "text":
                parts.append(TextPart(text=part.text, cache_breakpoint=part.cache_breakpoint))
            case "media":
                media = _media(part.media, f"{where}.media", faults, cache_breakpoint=part.cache_breakpoint)
                parts += [] if media is None else [media]
            case _:
                faults.add(where, "a tool's result holds text and media only")
    return ToolResultPart(
        tool_call_id=result.tool_call_id,
        parts=tuple(parts),
        failed=result.failed,
        cache_breakpoint=cache_breakpoint,
    )


# --- knobs and tools --------------------------------------------------------------------------------------------------


def _config(config: pb.GenerationConfig, faults: Faults) -> GenerationConfig:
    given = {name: getattr(config, name) for name in _KNOBS if config.HasField(name)}
    return GenerationConfig(
        **given,
        stop_sequences=tuple(config.stop_sequences),
        reasoning=_reasoning(config.reasoning, faults) if config.HasField("reasoning") else None,
    )


def _reasoning(reasoning: pb.ReasoningConfig, faults: Faults) -> ReasoningConfig:
    effort: Effort | None = None
    budget_tokens: int | None = None
    match reasoning.WhichOneof("budget"):
        case "effort":
            effort = EFFORTS.required(reasoning.effort, "config.reasoning.effort", faults)
        case "budget_tokens":
            budget_tokens = reasoning.budget_tokens
    return ReasoningConfig(effort=effort, budget_tokens=budget_tokens, include_text=reasoning.include_text)


def _tools(tools: Iterable[pb.Tool], faults: Faults) -> tuple[Tool, ...]:
    made: list[Tool] = []
    for index, tool in enumerate(tools):
        match tool.WhichOneof("tool"):
            case "function":
                made.append(_function(tool.function))
            case "provider_tool_json":
                made.append(ProviderTool(json=tool.provider_tool_json))
            case None:
                faults.add(f"tools[{index}]", "set exactly one of function and provider_tool_json")
    return tuple(made)


def _function(function: pb.FunctionTool) -> FunctionTool:
    return FunctionTool(
        name=function.name,
        description=function.description,
        parameters_json_schema=function.parameters_json_schema,
        strict=function.strict if function.HasField("strict") else None,
    )


def _tool_choice(choice: pb.ToolChoice, faults: Faults) -> ToolChoice | None:
    match choice.WhichOneof("choice"):
        case "mode":
            return ToolChoice(mode=TOOL_MODES.required(choice.mode, "tool_choice.mode", faults))
        case "function_name":
            return ToolChoice(function_name=choice.function_name)
        case None:
            faults.add("tool_choice", "set exactly one of mode and function_name")
            return None


def _response_format(form: pb.ResponseFormat, faults: Faults) -> ResponseFormat | None:
    match form.WhichOneof("format"):
        case "text":
            return TextFormat()
        case "json_object":
            return JsonObjectFormat()
        case "json_schema":
            schema = form.json_schema
            return JsonSchemaFormat(
                name=schema.name,
                schema_json=schema.schema_json,
                strict=schema.strict if schema.HasField("strict") else None,
            )
        case None:
            faults.add("response_format", "set exactly one of text, json_object and json_schema")
            return None
