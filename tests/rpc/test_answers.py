"""To the wire: what an answer and its chunks say."""

from collections.abc import Callable
from datetime import UTC, datetime

import msgspec
import pytest
from google.protobuf.json_format import MessageToDict

from patchbay.v1 import content_pb2 as content_pb
from patchbay.v1 import gateway_service_pb2 as pb
from patchbay.v1 import usage_pb2
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.rpc.convert import answers
from patchbay_server.rpc.convert.fields import timestamp
from patchbay_server.types import (
    Attempt,
    ChatAnswer,
    ChatCompleted,
    ChatEvent,
    ChatStarted,
    FinishReason,
    MediaPart,
    Message,
    Notice,
    NoticeCode,
    Part,
    PartCompleted,
    ReasoningDelta,
    ReasoningPart,
    RefusalPart,
    ResolvedBy,
    Role,
    Route,
    TextDelta,
    TextPart,
    ToolCallDelta,
    ToolCallPart,
    ToolCallStarted,
    UpstreamMode,
    UsageUpdated,
)
from patchbay_server.usage import Usage, UsageSource

AT = datetime(2026, 11, 20, 12, 0, 0, 123456, tzinfo=UTC)
ROUTE = Route(
    connector="owners/acme/connectors/main",
    provider="openai",
    requested_model="small",
    model="small-2026",
    upstream_request_id="req-1",
    resolved_by=ResolvedBy.OWNER_DEFAULT,
    mode=UpstreamMode.STREAMING,
    attempts=(
        Attempt(connector="", model="big", reason=Reason.UPSTREAM_RATE_LIMITED, latency_s=0.25),
        Attempt(connector="owners/acme/connectors/main", model="small", reason=None, latency_s=1.5),
    ),
)
ANSWER = ChatAnswer(
    call_id="call-1",
    created_at=AT,
    route=ROUTE,
    message=Message(role=Role.ASSISTANT, parts=(TextPart(text="hello"),)),
    finish_reason=FinishReason.STOP,
    provider_finish_reason="stop",
    usage=Usage(input_tokens=3, output_tokens=2, total_tokens=5, cached_input_tokens=0),
    notices=(Notice(code=NoticeCode.USAGE_ESTIMATED, message="estimated", field="usage"),),
)


def chunk(event: ChatEvent, *, final_response: bool = False) -> pb.ChatResponseChunk:
    """The chunk as a client gets it."""
    made = answers.chunk(event, 7, final_response=final_response)
    return pb.ChatResponseChunk.FromString(made.SerializeToString())


def test_an_answer_says_everything() -> None:
    assert MessageToDict(answers.response(ANSWER), preserving_proto_field_name=True) == {
        "id": "call-1",
        "create_time": "2026-11-20T12:00:00.123456Z",
        "route": {
            "connector": "owners/acme/connectors/main",
            "provider": "openai",
            "requested_model": "small",
            "model": "small-2026",
            "upstream_request_id": "req-1",
            "resolved_by": "RESOLVED_BY_OWNER_DEFAULT",
            "upstream_mode": "UPSTREAM_MODE_STREAMING",
            "attempts": [
                {"model": "big", "error_reason": "ERROR_REASON_UPSTREAM_RATE_LIMITED", "latency": "0.250s"},
                {"connector": "owners/acme/connectors/main", "model": "small", "latency": "1.500s"},
            ],
        },
        "message": {"role": "ROLE_ASSISTANT", "parts": [{"text": "hello"}]},
        "finish_reason": "FINISH_REASON_STOP",
        "provider_finish_reason": "stop",
        "usage": {
            "input_tokens": "3",
            "output_tokens": "2",
            "total_tokens": "5",
            "source": "USAGE_SOURCE_PROVIDER",
            "cached_input_tokens": "0",
        },
        "notices": [{"code": "NOTICE_CODE_USAGE_ESTIMATED", "message": "estimated", "field": "usage"}],
    }


def test_counts_that_nobody_reported_stay_unset() -> None:
    made = answers.usage(Usage(input_tokens=1, source=UsageSource.PARTIAL))
    assert made == usage_pb2.Usage(input_tokens=1, source=usage_pb2.USAGE_SOURCE_PARTIAL)
    assert not made.HasField("cost_usd_nanos")
    assert answers.usage(Usage(cost_usd_nanos=0)).HasField("cost_usd_nanos")


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (TextDelta(0, "a"), pb.ChatResponseChunk(text_delta=pb.TextDelta(text="a"))),
        (ReasoningDelta(2, "a"), pb.ChatResponseChunk(reasoning_delta=pb.ReasoningDelta(part_index=2, text="a"))),
        (ToolCallDelta(0, ""), pb.ChatResponseChunk(tool_call_delta=pb.ToolCallDelta())),
        (
            ToolCallStarted(1, "id", "f"),
            pb.ChatResponseChunk(tool_call_started=pb.ToolCallStarted(part_index=1, id="id", name="f")),
        ),
        (
            PartCompleted(0, TextPart(text="")),
            pb.ChatResponseChunk(part_completed=pb.PartCompleted(part=content_pb.ContentPart(text=""))),
        ),
        (
            UsageUpdated(Usage()),
            pb.ChatResponseChunk(
                usage_updated=pb.UsageUpdated(usage=usage_pb2.Usage(source=usage_pb2.USAGE_SOURCE_PROVIDER))
            ),
        ),
        (
            ChatStarted(call_id="call-1", created_at=AT, route=ROUTE),
            pb.ChatResponseChunk(
                started=pb.ChatStarted(id="call-1", create_time=timestamp(AT), route=answers.route(ROUTE))
            ),
        ),
    ],
)
def test_each_event_is_one_chunk_with_its_sequence(event: ChatEvent, expected: pb.ChatResponseChunk) -> None:
    expected.sequence = 7
    assert chunk(event) == expected
    assert chunk(event).WhichOneof("event") == expected.WhichOneof("event")


def test_the_last_chunk_repeats_the_answer_only_when_asked() -> None:
    bare = chunk(ChatCompleted(answer=ANSWER)).completed
    assert not bare.HasField("response")
    assert (bare.finish_reason, bare.provider_finish_reason) == (pb.FINISH_REASON_STOP, "stop")
    assert bare.route == answers.route(ROUTE)
    whole = chunk(ChatCompleted(answer=ANSWER), final_response=True).completed
    assert whole.response == answers.response(ANSWER)
    assert (whole.usage, list(whole.notices)) == (whole.response.usage, list(whole.response.notices))


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (TextPart(text="a"), content_pb.ContentPart(text="a")),
        (RefusalPart(text="no"), content_pb.ContentPart(refusal=content_pb.Refusal(text="no"))),
        (
            ReasoningPart(text="so", provider_state=b"\x00"),
            content_pb.ContentPart(reasoning=content_pb.Reasoning(text="so", provider_state=b"\x00")),
        ),
        (
            ToolCallPart(id="1", name="f", arguments_json="{}", provider_state=b"s"),
            content_pb.ContentPart(
                tool_call=content_pb.ToolCall(id="1", name="f", arguments_json="{}", provider_state=b"s")
            ),
        ),
        (
            MediaPart(mime_type="image/png", data=b"png", file_name="a.png"),
            content_pb.ContentPart(media=content_pb.Media(mime_type="image/png", data=b"png", file_name="a.png")),
        ),
        (MediaPart(uri="gs://a"), content_pb.ContentPart(media=content_pb.Media(uri="gs://a"))),
    ],
)
def test_a_part_keeps_everything(part: Part, expected: content_pb.ContentPart) -> None:
    assert answers.part(part) == expected


HUGE = TextPart(text="a" * (answers.MESSAGE_BYTES_MAX + 1))
HUGE_ANSWER = msgspec.structs.replace(ANSWER, message=Message(role=Role.ASSISTANT, parts=(HUGE,)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: answers.response(HUGE_ANSWER),
        lambda: answers.chunk(PartCompleted(0, HUGE), 1, final_response=False),
        lambda: answers.chunk(ChatCompleted(answer=HUGE_ANSWER), 1, final_response=True),
    ],
)
def test_what_no_message_can_hold_is_a_failure_and_no_broken_connection(make: Callable[[], object]) -> None:
    with pytest.raises(PatchbayError) as caught:
        make()
    assert caught.value.reason is Reason.UPSTREAM_MALFORMED_RESPONSE
