"""What a call answers: messages, routes, usage, and the chunks of a stream."""

from typing import Final, TypeVar, assert_never

from patchbay.v1 import content_pb2 as content_pb
from patchbay.v1 import gateway_service_pb2 as pb
from patchbay.v1 import usage_pb2
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.rpc.convert.enums import (
    FINISH_REASONS,
    NOTICE_CODES,
    RESOLVED_BY,
    ROLES,
    UPSTREAM_MODES,
    USAGE_SOURCES,
    error_reason,
)
from patchbay_server.rpc.convert.fields import duration, timestamp
from patchbay_server.types import (
    ChatAnswer,
    ChatCompleted,
    ChatEvent,
    ChatStarted,
    MediaPart,
    Message,
    Notice,
    Part,
    PartCompleted,
    ReasoningDelta,
    ReasoningPart,
    RefusalPart,
    Route,
    TextDelta,
    TextPart,
    ToolCallDelta,
    ToolCallPart,
    ToolCallStarted,
    ToolResultPart,
    UsageUpdated,
)
from patchbay_server.usage import Usage

MESSAGE_BYTES_MAX: Final = 32 * 1024 * 1024
"""The longest message in either direction."""


def usage(value: Usage) -> usage_pb2.Usage:
    return usage_pb2.Usage(
        input_tokens=value.input_tokens,
        output_tokens=value.output_tokens,
        total_tokens=value.total_tokens,
        source=USAGE_SOURCES.to_wire[value.source],
        cached_input_tokens=value.cached_input_tokens,
        cache_write_input_tokens=value.cache_write_input_tokens,
        reasoning_tokens=value.reasoning_tokens,
        cost_usd_nanos=value.cost_usd_nanos,
    )


def route(value: Route) -> pb.Route:
    return pb.Route(
        connector=value.connector,
        provider=value.provider,
        requested_model=value.requested_model,
        model=value.model,
        upstream_request_id=value.upstream_request_id,
        resolved_by=RESOLVED_BY.to_wire[value.resolved_by],
        upstream_mode=UPSTREAM_MODES.to_wire[value.mode],
        attempts=[
            pb.Attempt(
                connector=attempt.connector,
                model=attempt.model,
                error_reason=error_reason(attempt.reason),
                latency=duration(attempt.latency_s),
            )
            for attempt in value.attempts
        ],
    )


def response(answer: ChatAnswer) -> pb.ChatResponse:
    """Raises: PatchbayError: UPSTREAM_MALFORMED_RESPONSE when the answer does not fit into a message."""
    return _fitting(_response(answer))


def chunk(event: ChatEvent, sequence: int, *, final_response: bool) -> pb.ChatResponseChunk:
    """One event as a chunk; deltas must be short enough, which `pieces` sees to.

    Args:
        final_response: whether the last chunk repeats the whole answer.

    Raises:
        PatchbayError: UPSTREAM_MALFORMED_RESPONSE when a part or the answer does not fit into a message.
    """
    made = pb.ChatResponseChunk()
    made.sequence = sequence
    # Deltas are most of a stream; filling fields in place costs half of what constructor arguments do.
    match event:
        case TextDelta():
            text = made.text_delta
            text.part_index = event.part_index
            text.text = event.text
        case ToolCallDelta():
            arguments = made.tool_call_delta
            arguments.part_index = event.part_index
            arguments.arguments_json = event.arguments_json
        case ReasoningDelta():
            reasoning = made.reasoning_delta
            reasoning.part_index = event.part_index
            reasoning.text = event.text
        case UsageUpdated():
            made.usage_updated.usage.CopyFrom(usage(event.usage))
        case ToolCallStarted():
            tool_call = made.tool_call_started
            tool_call.part_index = event.part_index
            tool_call.id = event.id
            tool_call.name = event.name
        case PartCompleted():
            made.part_completed.part_index = event.part_index
            made.part_completed.part.CopyFrom(part(event.part))
            return _fitting(made)
        case ChatStarted():
            made.started.id = event.call_id
            made.started.create_time.CopyFrom(timestamp(event.created_at))
            made.started.route.CopyFrom(route(event.route))
        case ChatCompleted():
            made.completed.CopyFrom(_completed(event.answer, final_response=final_response))
            return _fitting(made)
        case _:
            assert_never(event)
    return made


def heartbeat(sequence: int) -> pb.ChatResponseChunk:
    return pb.ChatResponseChunk(sequence=sequence, heartbeat=pb.Heartbeat())


def part(value: Part) -> content_pb.ContentPart:
    match value:
        case TextPart():
            return content_pb.ContentPart(text=value.text)
        case MediaPart():
            return content_pb.ContentPart(media=_media(value))
        case ReasoningPart():
            reasoning = content_pb.Reasoning(text=value.text, provider_state=value.provider_state)
            return content_pb.ContentPart(reasoning=reasoning)
        case ToolCallPart():
            tool_call = content_pb.ToolCall(
                id=value.id,
                name=value.name,
                arguments_json=value.arguments_json,
                provider_state=value.provider_state,
            )
            return content_pb.ContentPart(tool_call=tool_call)
        case ToolResultPart():
            tool_result = content_pb.ToolResult(
                tool_call_id=value.tool_call_id, parts=[part(inner) for inner in value.parts], failed=value.failed
            )
            return content_pb.ContentPart(tool_result=tool_result)
        case RefusalPart():
            return content_pb.ContentPart(refusal=content_pb.Refusal(text=value.text))
        case _:
            assert_never(value)


def _media(value: MediaPart) -> content_pb.Media:
    made = content_pb.Media(mime_type=value.mime_type, file_name=value.file_name)
    if value.data is not None:
        made.data = value.data
    elif value.uri is not None:
        made.uri = value.uri
    elif value.provider_file_id is not None:
        made.provider_file_id = value.provider_file_id
    return made


def _message(value: Message) -> content_pb.ChatMessage:
    return content_pb.ChatMessage(
        role=ROLES.to_wire[value.role], parts=[part(one) for one in value.parts], author_name=value.author_name
    )


def notice(value: Notice) -> pb.Notice:
    return pb.Notice(code=NOTICE_CODES.to_wire[value.code], message=value.message, field=value.field)


def _response(answer: ChatAnswer) -> pb.ChatResponse:
    return pb.ChatResponse(
        id=answer.call_id,
        create_time=timestamp(answer.created_at),
        route=route(answer.route),
        message=_message(answer.message),
        finish_reason=FINISH_REASONS.to_wire[answer.finish_reason],
        provider_finish_reason=answer.provider_finish_reason,
        usage=usage(answer.usage),
        notices=[notice(each) for each in answer.notices],
    )


def _completed(answer: ChatAnswer, *, final_response: bool) -> pb.ChatCompleted:
    return pb.ChatCompleted(
        finish_reason=FINISH_REASONS.to_wire[answer.finish_reason],
        provider_finish_reason=answer.provider_finish_reason,
        usage=usage(answer.usage),
        notices=[notice(each) for each in answer.notices],
        response=_response(answer) if final_response else None,
        route=route(answer.route),
    )


_M = TypeVar("_M", pb.ChatResponse, pb.ChatResponseChunk)


def _fitting(made: _M) -> _M:
    if made.ByteSize() > MESSAGE_BYTES_MAX:
        raise PatchbayError(
            Reason.UPSTREAM_MALFORMED_RESPONSE,
            "the provider's answer is longer than the 32 MiB that a message can hold",
        )
    return made
