"""What the reader of chat completions makes of good, odd and hostile streams."""

import json
import time
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchbay_server.adapters.folding import PARTS_MAX, Parts
from patchbay_server.adapters.openai_chat_reader import ChatReader
from patchbay_server.adapters.openai_dialect import COMPATIBLE, OPENAI
from patchbay_server.adapters.openai_tools import ToolCalls, ToolDelta
from patchbay_server.adapters.openai_usage import CHAT, Cost, UsageSoFar
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.testing.adapter_suite import read
from patchbay_server.testing.stream_rules import check_stream, outcome
from patchbay_server.types import (
    Call,
    Event,
    FinishReason,
    MediaPart,
    Prompt,
    TextPart,
    ToolCallPart,
    UsageUpdated,
)
from patchbay_server.usage import Usage
from patchbay_server.wire.http import Frame
from patchbay_server.wire.sse import Decoder


def reader(*, streaming: bool = True, compatible: bool = True) -> ChatReader:
    call = Call(id="01", model="m", prompt=Prompt(messages=()), streaming=streaming)
    return ChatReader(call, COMPATIBLE if compatible else OPENAI)


def frame(value: Any) -> Frame:
    return Frame(data=value if isinstance(value, bytes) else json.dumps(value).encode())


def delta(finish: str | None = None, **members: Any) -> Frame:
    return frame({"id": "c", "choices": [{"index": 0, "delta": members, "finish_reason": finish}]})


DONE = frame(b"[DONE]")


def failure(frames: Sequence[Frame], **kind: bool) -> Reason:
    _, error = read(reader(**kind), frames)
    assert error is not None
    return error.reason


# --- ends ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "canonical"),
    [
        ("stop", FinishReason.STOP),
        ("eos", FinishReason.STOP),
        ("length", FinishReason.MAX_OUTPUT_TOKENS),
        ("content_filter", FinishReason.CONTENT_FILTER),
        ("tool_calls", FinishReason.TOOL_CALLS),
        ("function_call", FinishReason.TOOL_CALLS),
        ("model_length", FinishReason.CONTEXT_LENGTH),
        ("repetition", FinishReason.OTHER),
        ("load", FinishReason.OTHER),
        ("end_turn", FinishReason.OTHER),
        ("STOP", FinishReason.OTHER),
    ],
)
def test_a_finish_reason_becomes_canonical_and_an_unknown_one_is_other(raw: str, canonical: FinishReason) -> None:
    events, _ = read(reader(), [delta(content="a"), delta(raw), DONE])
    end = outcome(events).end
    assert end is not None
    assert (end.finish_reason, end.provider_finish_reason) == (canonical, raw)


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [DONE],
        [delta(role="assistant"), DONE],
        [delta(), DONE],
        [frame({"id": "c", "choices": [], "usage": {"prompt_tokens": 3}}), DONE],
        [frame({"id": "c", "choices": [], "usage": {"prompt_tokens": 3}})],
        [frame({"choices": [], "prompt_filter_results": [{}]})],
        [frame(b""), frame(b"  ")],
        [frame({})],
    ],
)
@pytest.mark.parametrize("compatible", [True, False])
def test_nothing_of_an_answer_is_never_an_answer(frames: list[Frame], compatible: bool) -> None:
    assert failure(frames, compatible=compatible) is Reason.UPSTREAM_EMPTY_STREAM


def test_a_finish_reason_is_the_end_only_where_no_marker_is_needed() -> None:
    frames = [delta(content="a"), delta("stop")]
    assert failure(frames, compatible=False) is Reason.UPSTREAM_TRUNCATED
    events, error = read(reader(compatible=True), frames)
    assert error is None
    check_stream(events)


@pytest.mark.parametrize("frames", [[delta(role="assistant")], [delta(content="a")], [delta("", content="a")]])
def test_an_end_without_a_finish_reason_is_a_cut(frames: list[Frame]) -> None:
    assert failure(frames) is Reason.UPSTREAM_TRUNCATED


def test_what_follows_the_marker_is_not_read() -> None:
    it = reader()
    it.feed(delta("stop", content="a"))
    it.feed(frame(b"[DONE] "))
    assert it.finished
    assert list(it.feed(frame(b"garbage"))) == []
    assert list(it.finish()) == []


def test_usage_that_came_before_a_failure_was_told_by_then() -> None:
    events, error = read(reader(), [frame({"id": "c", "choices": [], "usage": {"prompt_tokens": 3}}), frame(b"{")])
    assert error is not None
    assert [type(event).__name__ for event in events] == ["Opened", "UsageUpdated"]


# --- data that is not as it should be --------------------------------------------------------------------------------


@pytest.mark.parametrize("blank", ["", " ", "\n"])
def test_a_blank_finish_reason_says_nothing(blank: str) -> None:
    tool = {"index": 0, "id": "1", "function": {"name": "f", "arguments": "{}"}}
    for frames, canonical in (
        ([delta(tool_calls=[tool]), delta(blank), DONE], FinishReason.TOOL_CALLS),
        ([delta(content="a"), delta("stop"), delta(blank), DONE], FinishReason.STOP),
        ([delta(content="a"), delta(blank), DONE], FinishReason.OTHER),
    ):
        events, error = read(reader(), frames)
        assert error is None
        end = outcome(events).end
        assert end is not None
        assert end.finish_reason is canonical
    assert failure([delta(content="a"), delta(blank)]) is Reason.UPSTREAM_TRUNCATED


GROQ_USAGE = {"queue_time": 0.1, "prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}


@pytest.mark.parametrize(
    "last",
    [
        {"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "x_groq": {"usage": GROQ_USAGE}},
        {"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "usage": GROQ_USAGE}]},
        {
            "id": "c",
            "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}],
            "x_groq": {"usage": {**GROQ_USAGE, "completion_tokens": 4, "total_tokens": 13}},
            "usage": GROQ_USAGE,
        },
        {"id": "c", "choices": [{"index": "0", "delta": {}, "finish_reason": "stop", "usage": GROQ_USAGE}]},
        {"id": 7, "choices": [{"delta": {}, "finish_reason": "stop"}], "x_groq": {"id": "r", "usage": GROQ_USAGE}},
    ],
    ids=["groq", "moonshot", "groq's twice", "moonshot, read leniently", "groq, read leniently"],
)
def test_usage_is_found_where_groq_and_moonshot_put_it(last: dict[str, Any]) -> None:
    first = {"id": "c", "choices": [{"index": 0, "delta": {"content": "a"}}], "x_groq": {"id": "req_1"}}
    events, error = read(reader(), [frame(first), frame(last), DONE])
    assert error is None
    assert [event.usage for event in events if isinstance(event, UsageUpdated)] == [
        Usage(input_tokens=9, output_tokens=5, total_tokens=14)
    ]


def test_usage_of_another_choice_is_not_that_of_the_answer() -> None:
    other = {"id": "c", "choices": [{"index": 1, "delta": {}, "finish_reason": "stop", "usage": GROQ_USAGE}]}
    events, _ = read(reader(), [delta("stop", content="a"), frame(other), DONE])
    end = outcome(events).end
    assert end is not None
    assert end.usage is None


@pytest.mark.parametrize(
    ("reported", "cached"),
    [
        ({"prompt_cache_hit_tokens": 6, "prompt_cache_miss_tokens": 3}, 6),
        ({"prompt_cache_hit_tokens": 6, "prompt_tokens_details": {"cached_tokens": 5}}, 5),
        ({"prompt_cache_hit_tokens": 6, "prompt_tokens_details": {"cached_tokens": None}}, 6),
        ({"prompt_cache_hit_tokens": 6, "prompt_tokens_details": None}, 6),
        ({"cached_tokens": 4}, 4),
        ({}, None),
    ],
)
def test_cached_tokens_are_found_where_deepseek_and_moonshot_put_them(
    reported: dict[str, Any], cached: int | None
) -> None:
    usage = UsageSoFar(CHAT).take({"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14, **reported})
    assert usage is not None
    assert (usage.input_tokens, usage.cached_input_tokens) == (9, cached)


@pytest.mark.parametrize(
    ("reported", "usd_nanos"),
    [
        ({"cost": 0.00001}, 10_000),
        ({"cost": 0}, 0),
        ({"cost": 1.5, "is_byok": False}, 1_500_000_000),
        ({"cost": 0.00001, "is_byok": True}, None),
        ({"cost": None}, None),
        ({"cost": "0.1"}, None),
        ({"cost": True}, None),
        ({"cost": -1}, None),
        ({"cost": 1e300}, None),
        ({"cost": float("nan")}, None),
        ({}, None),
    ],
)
def test_a_cost_that_the_provider_says_is_told_in_billionths_of_a_dollar(
    reported: dict[str, Any], usd_nanos: int | None
) -> None:
    usage = UsageSoFar(CHAT, cost=Cost(field="cost", nanos=1e9, partial_if="is_byok"))
    took = usage.take({"prompt_tokens": 9, "completion_tokens": 5, **reported})
    assert took is not None
    assert took.cost_usd_nanos == usd_nanos


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"error": "Service unavailable"}, Reason.UPSTREAM_UNAVAILABLE),
        ({"error": {"message": "x", "code": "rate_limit_exceeded"}}, Reason.UPSTREAM_RATE_LIMITED),
        ({"error": {"code": "tool_use_failed", "type": "invalid_request_error"}}, Reason.UPSTREAM_REJECTED_REQUEST),
    ],
)
def test_an_error_is_found_where_groq_puts_it(said: dict[str, Any], reason: Reason) -> None:
    broken = {"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "x_groq": {"id": "r", **said}}
    assert failure([delta(content="a"), frame(broken), DONE]) is reason


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"object": "Error", "message": "no", "type": "x", "code": 3001}, Reason.UPSTREAM_UNAVAILABLE),
        ({"error": {"message": "x", "type": "x", "status_code": 400}}, Reason.UPSTREAM_REJECTED_REQUEST),
        ({"error": {"message": "x", "status": 429}}, Reason.UPSTREAM_RATE_LIMITED),
    ],
)
def test_an_error_in_mid_stream_means_what_it_says_of_itself(body: dict[str, Any], reason: Reason) -> None:
    assert failure([delta(content="a"), frame(body), DONE]) is reason


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'error: {"code":400,"type":"exceed_context_size_error"}\n\n', Reason.CONTEXT_LENGTH_EXCEEDED),
        (
            b'data: {"choices":[{"delta":{"content":"a"}}]}\n\nerror: {"code":500,"message":"x"}\n\n',
            Reason.UPSTREAM_UNAVAILABLE,
        ),
    ],
)
def test_an_error_in_a_line_of_its_own_is_that_error(body: bytes, reason: Reason) -> None:
    decoder = Decoder()
    assert failure([*decoder.feed(body), *decoder.finish()]) is reason


@pytest.mark.parametrize(
    "content",
    [["a", "b"], [{"type": "text", "text": "a"}, "b"], [{"type": "text", "text": "ab"}, {"type": "reference"}]],
)
def test_texts_of_a_content_list_are_one_text(content: list[Any]) -> None:
    events, _ = read(reader(), [delta(content=content), delta("stop"), DONE])
    assert outcome(events).parts == (TextPart(text="ab"),)


def test_content_that_is_one_object_is_read_as_a_list_of_it() -> None:
    events, _ = read(reader(), [delta(content={"type": "text", "text": "ab"}), delta("stop"), DONE])
    assert outcome(events).parts == (TextPart(text="ab"),)


@pytest.mark.parametrize(
    ("images", "parts"),
    [
        ([{"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}], [("image/png", b"hi")]),
        ([{"image_url": "data:image/png;charset=x;base64,aGk="}], [("image/png", b"hi")]),
        ([{"image_url": {"url": "https://a.example/b"}}, {"image_url": {}}, {}, 7], []),
        (None, []),
        ("x", []),
    ],
)
@pytest.mark.parametrize("streaming", [True, False])
def test_pictures_in_a_message_are_parts(images: Any, parts: list[tuple[str, bytes]], streaming: bool) -> None:
    said = {"content": "here", "images": images}
    whole = {"choices": [{"message": said, "finish_reason": "stop"}]}
    frames = [delta(**said), delta("stop"), DONE] if streaming else [Frame(json.dumps(whole).encode(), whole=True)]
    events, error = read(reader(streaming=streaming), frames)
    assert error is None
    check_stream(events)
    assert outcome(events).parts == (
        TextPart(text="here"),
        *(MediaPart(mime_type=mime_type, data=data) for mime_type, data in parts),
    )


def test_a_picture_that_is_not_base64_is_malformed() -> None:
    images = [{"image_url": {"url": "data:image/png;base64,?"}}]
    assert failure([delta(images=images), DONE]) is Reason.UPSTREAM_MALFORMED_RESPONSE


def test_a_call_that_is_said_in_both_forms_is_one() -> None:
    function = {"name": "f", "arguments": '{"a":1}'}
    said = delta(tool_calls=[{"index": 0, "id": "1", "function": function}], function_call=function)
    events, _ = read(reader(), [said, delta("tool_calls"), DONE])
    assert outcome(events).parts == (ToolCallPart(id="1", name="f", arguments_json='{"a":1}'),)


@pytest.mark.parametrize("data", [b"{", b"[]", b'"a"', b"7", b"null", b"OK", b'{"a":1}}', b"\xff"])
def test_data_that_is_no_object_is_malformed(data: bytes) -> None:
    assert failure([delta(content="a"), frame(data)]) is Reason.UPSTREAM_MALFORMED_RESPONSE


def test_an_event_of_an_unknown_name_and_form_is_skipped() -> None:
    frames = [delta(content="a"), Frame(data=b"pong", event="ping"), Frame(data=b"{}", event="x"), delta("stop"), DONE]
    assert read(reader(), frames)[1] is None


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", Reason.UPSTREAM_EMPTY_STREAM),
        (b" \n", Reason.UPSTREAM_EMPTY_STREAM),
        (b"<html></html>", Reason.UPSTREAM_MALFORMED_RESPONSE),
        (b"[]", Reason.UPSTREAM_MALFORMED_RESPONSE),
        (b"{}", Reason.UPSTREAM_MALFORMED_RESPONSE),
        (b'{"choices":[]}', Reason.UPSTREAM_MALFORMED_RESPONSE),
        (b'{"error":{"type":"insufficient_quota"}}', Reason.UPSTREAM_BILLING_EXHAUSTED),
        (b'{"error":"model is loading"}', Reason.UPSTREAM_UNAVAILABLE),
        (b'[{"error":{"code":429,"status":"RESOURCE_EXHAUSTED"}}]', Reason.UPSTREAM_RATE_LIMITED),
        (b'{"object":"error","code":400,"message":"no"}', Reason.UPSTREAM_REJECTED_REQUEST),
    ],
)
@pytest.mark.parametrize("streaming", [True, False])
def test_a_whole_body_that_is_no_answer_says_why(body: bytes, reason: Reason, streaming: bool) -> None:
    assert failure([Frame(data=body, whole=True)], streaming=streaming) is reason


def test_a_whole_answer_to_a_stream_says_that_the_server_cannot_stream() -> None:
    body = b'{"choices":[{"message":{"content":"a"},"finish_reason":"stop"}]}'
    assert failure([Frame(data=body, whole=True)]) is Reason.STREAMING_UNSUPPORTED
    assert read(reader(streaming=False), [Frame(data=body, whole=True)])[1] is None


def test_a_falsy_error_is_none() -> None:
    falsy: list[Any] = [None, "", {}, False, 0]
    for nothing in falsy:
        chunk = {"id": "c", "choices": [{"delta": {"content": "a"}, "finish_reason": "stop"}], "error": nothing}
        assert read(reader(), [frame(chunk), DONE])[1] is None


@pytest.mark.parametrize("arguments", [[], [1], 7, True, 1.5])
def test_arguments_of_another_kind_are_malformed(arguments: Any) -> None:
    call = {"index": 0, "id": "1", "function": {"name": "f", "arguments": arguments}}
    assert failure([delta(tool_calls=[call]), DONE]) is Reason.UPSTREAM_MALFORMED_RESPONSE


@pytest.mark.parametrize("text", ["[1]", "true", "7", '"a"', " [] "])
def test_arguments_that_are_json_but_no_object_are_malformed(text: str) -> None:
    call = {"index": 0, "id": "1", "function": {"name": "f", "arguments": text}}
    assert failure([delta(tool_calls=[call]), delta("tool_calls"), DONE]) is Reason.UPSTREAM_MALFORMED_RESPONSE


# --- tool calls ------------------------------------------------------------------------------------------------------


def joined(*chunks: Sequence[ToolDelta]) -> list[tuple[str, str, str]]:
    """The calls that the deltas come to, by id, name and arguments."""
    parts = Parts("01")
    calls = ToolCalls(parts)
    events: list[Event] = []
    for chunk in chunks:
        events += calls.take(chunk)
    calls.complete()
    events += parts.complete_all()
    whole = outcome(events).parts
    return [(p.id, p.name, p.arguments_json) for p in whole if isinstance(p, ToolCallPart)]


def d(index: int | None = None, call_id: str = "", name: str = "", arguments: str = "") -> ToolDelta:
    return ToolDelta(index=index, id=call_id, name=name, arguments=arguments)


TWO = [("1", "f", '{"a":1}'), ("2", "g", '{"b":2}')]


@pytest.mark.parametrize(
    "chunks",
    [
        # By index, as the API has it, one after the other and turn by turn.
        ([d(0, "1", "f")], [d(0, arguments='{"a":1}')], [d(1, "2", "g")], [d(1, arguments='{"b":2}')]),
        ([d(0, "1", "f"), d(1, "2", "g")], [d(1, arguments='{"b":2}')], [d(0, arguments='{"a":1}')]),
        # Always index 0.
        ([d(0, "1", "f", '{"a":1}')], [d(0, "2", "g", '{"b":2}')]),
        ([d(0, "1", "f")], [d(0, arguments='{"a":1}')], [d(0, "2", "g")], [d(0, arguments='{"b":2}')]),
        ([d(0, "1", "f", '{"a":1}'), d(0, "2", "g", '{"b":2}')],),
        # No index.
        ([d(None, "1", "f", '{"a":1}'), d(None, "2", "g", '{"b":2}')],),
        ([d(None, "1", "f")], [d(None, arguments='{"a":1}')], [d(None, "2", "g")], [d(None, arguments='{"b":2}')]),
        # An index that counts on.
        ([d(0, "1", "f")], [d(1, arguments='{"a":')], [d(2, arguments="1}")], [d(3, "2", "g", '{"b":2}')]),
        # Id and name in every delta.
        ([d(0, "1", "f", '{"a"')], [d(0, "1", "f", ":1}")], [d(1, "2", "g", '{"b"')], [d(1, "2", "g", ":2}")]),
        # The id first, the name later.
        ([d(0, "1")], [d(0, name="f", arguments='{"a":1}')], [d(1, "2")], [d(1, "", "g"), d(1, arguments='{"b":2}')]),
        # An empty last piece that says the name again.
        ([d(0, "1", "f", '{"a":1}')], [d(0, "", "f")], [d(1, "2", "g", '{"b":2}')], [d(0)]),
    ],
)
def test_parallel_calls_are_kept_apart_however_a_server_numbers_them(chunks: Sequence[Sequence[ToolDelta]]) -> None:
    assert joined(*chunks) == TWO


@pytest.mark.parametrize(
    "chunks",
    [
        ([d(None, "", "f", '{"a":1}')], [d(None, "", "g", '{"b":2}')]),
        ([d(0, "", "f", '{"a":1}')], [d(0, "", "g", '{"b":2}')]),
        ([d(None, "", "f"), d(None, "", "g")], [d(None, "", "", '{"a":1}'), d(None, "", "", '{"b":2}')]),
        ([d(None, "", "f")], [d(None, "", "", '{"a":1}')], [d(None, "", "g", '{"b":2}')]),
    ],
)
def test_calls_without_ids_are_told_apart_by_name_and_whole_arguments(chunks: Sequence[Sequence[ToolDelta]]) -> None:
    assert [call[1:] for call in joined(*chunks)] == [call[1:] for call in TWO]
    assert len({call[0] for call in joined(*chunks)}) == 2


def test_the_same_function_called_twice_without_ids_is_two_calls() -> None:
    calls = joined([d(0, "", "f", '{"a":1}')], [d(0, "", "f", '{"a":2}')])
    assert [call[2] for call in calls] == ['{"a":1}', '{"a":2}']


def test_an_id_that_two_calls_share_is_given_to_the_first_only() -> None:
    calls = joined([d(0, "same", "f", '{"a":1}')], [d(1, "same", "f", '{"a":2}')], [d(1, "same", "", "")])
    assert [call[2] for call in calls] == ['{"a":1}', '{"a":2}']
    assert calls[0][0] == "same"
    assert calls[1][0] not in ("", "same")


@pytest.mark.parametrize(
    "chunks",
    [
        ([d(0, "", "", '{"a":1}')],),
        ([d(None, "", "", "x")],),
        ([d(0, "1", "", '{"a":1}')],),
        ([d(0, "1")],),
    ],
)
def test_a_call_that_never_gets_a_name_is_malformed(chunks: Sequence[Sequence[ToolDelta]]) -> None:
    with pytest.raises(PatchbayError) as refused:
        joined(*chunks)
    assert refused.value.reason is Reason.UPSTREAM_MALFORMED_RESPONSE


def test_empty_deltas_and_null_arguments_change_nothing() -> None:
    assert joined([d()], [d(0, "1", "f")], [d(0)], [d(0, arguments="nu")], [d(0, arguments="ll")], [d(5)]) == [
        ("1", "f", "{}")
    ]


def test_a_server_that_names_its_call_in_every_piece_does_not_keep_the_gateway_busy() -> None:
    calls = ToolCalls(Parts("01"))
    pieces = 80_000
    started_at = time.process_time()
    calls.take([d(0, "", "f", "{")])
    for _ in range(pieces):
        calls.take([d(0, "", "f", "x}")])
    assert time.process_time() - started_at < 3  # some 13 s when each piece has all of them read again


def test_the_number_of_calls_is_bounded() -> None:
    calls = ToolCalls(Parts("01"))
    for number in range(PARTS_MAX):
        calls.take([d(number, str(number), "f")])
    with pytest.raises(PatchbayError) as refused:
        calls.take([d(PARTS_MAX, "one more", "f")])
    assert refused.value.reason is Reason.UPSTREAM_MALFORMED_RESPONSE


# --- anything at all -------------------------------------------------------------------------------------------------

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def either(**members: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with some of `members`, each as it should be or as anything."""
    return st.fixed_dictionaries({}, optional={name: value | JSON for name, value in members.items()})


FUNCTION = either(
    name=st.sampled_from(["f", "g", ""]), arguments=st.sampled_from(["", "{", "}", "{}", '{"a":1}', "null"])
)
TOOL_CALL = either(index=st.integers(0, 2), id=st.sampled_from(["", "1", "2"]), function=FUNCTION)
MESSAGE = either(
    content=st.text(max_size=3),
    reasoning=st.text(max_size=3),
    reasoning_content=st.text(max_size=3),
    refusal=st.text(max_size=3),
    tool_calls=st.lists(TOOL_CALL, max_size=3),
    function_call=FUNCTION,
)
FINISH = st.sampled_from([None, "", "stop", "tool_calls", "length", "error"])
CHOICE = either(index=st.integers(0, 1), delta=MESSAGE, message=MESSAGE, finish_reason=FINISH)
COUNT = st.integers(-5, 50)
USAGE = either(
    prompt_tokens=COUNT,
    completion_tokens=COUNT,
    total_tokens=COUNT,
    completion_tokens_details=either(reasoning_tokens=COUNT),
)
CHUNK = either(id=st.text(max_size=3), model=st.text(max_size=3), choices=st.lists(CHOICE, max_size=2), usage=USAGE)
FRAMES = st.lists(CHUNK.map(frame) | JSON.map(frame) | st.binary(max_size=8).map(frame) | st.just(DONE), max_size=6)


@settings(max_examples=300, deadline=None)
@given(FRAMES, st.booleans(), st.booleans())
def test_any_frames_are_an_answer_that_keeps_the_rules_or_one_failure(
    frames: list[Frame], streaming: bool, compatible: bool
) -> None:
    whole = [Frame(data=frames[0].data, whole=True)] if frames and not streaming else frames
    events, error = read(reader(streaming=streaming, compatible=compatible), whole)
    if error is None:
        check_stream(events)
    for event in events:
        json.dumps(str(event)).encode()
