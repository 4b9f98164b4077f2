"""The Responses API: when it is spoken, and that reasoning survives from turn to turn."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchbay_server.adapters.openai_chat import OPENAI, OPENAI_COMPATIBLE
from patchbay_server.adapters.openai_dialect import OPENAI as DIALECT
from patchbay_server.adapters.openai_responses_reader import ResponsesReader
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.testing.adapter_suite import NOW, read
from patchbay_server.testing.stream_rules import check_stream, outcome
from patchbay_server.types import (
    Call,
    Effort,
    Event,
    FinishReason,
    FunctionTool,
    GenerationConfig,
    MediaPart,
    Message,
    Part,
    PartCompleted,
    Prompt,
    ProviderTool,
    ReasoningConfig,
    ReasoningPart,
    Role,
    Secret,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)
from patchbay_server.wire.http import Frame

KEY = Secret({"api_key": "sk-test"})
HELLO = Message(role=Role.USER, parts=(TextPart(text="hello"),))
TOOLS = {"tools": (FunctionTool(name="add"),)}
HIGH, MAX = ReasoningConfig(effort=Effort.HIGH), ReasoningConfig(effort=Effort.MAX)
THINKS = {"config": GenerationConfig(reasoning=HIGH)}
DOES_NOT_THINK = {"config": GenerationConfig(reasoning=ReasoningConfig(effort=Effort.NONE))}
SHOWS = {"config": GenerationConfig(reasoning=ReasoningConfig(include_text=True))}
STATE = b'{"type":"reasoning", "id":"rs_1","summary":[],"encrypted_content":"gAAA\\/\\u00e9=="}'
REMEMBERS = {
    "messages": (HELLO, Message(role=Role.ASSISTANT, parts=(ReasoningPart(provider_state=STATE), TextPart(text="hi"))))
}


HOSTED = {"tools": (ProviderTool(json='{"type":"web_search"}'),)}
CALLED = Message(role=Role.ASSISTANT, parts=(ToolCallPart(id="c1", name="add", arguments_json="{}"),))
PDF, PNG = "https://example.com/a.pdf", "https://example.com/a.png"


def asking(part: Part) -> Message:
    return Message(role=Role.USER, parts=(part,))


def answered(part: TextPart | MediaPart) -> Message:
    return Message(role=Role.TOOL, parts=(ToolResultPart(tool_call_id="c1", parts=(part,)),))


def call(model: str, **prompt: Any) -> Call:
    return Call(id="01", model=model, prompt=Prompt(**{"messages": (HELLO,), **prompt}), streaming=True)


@pytest.mark.parametrize(
    ("model", "prompt", "path"),
    [
        ("gpt-4.1", TOOLS, "chat/completions"),
        ("gpt-4.1", REMEMBERS, "chat/completions"),
        ("gpt-5", TOOLS | THINKS, "chat/completions"),
        ("gpt-5", SHOWS, "responses"),
        ("gpt-5", REMEMBERS, "responses"),
        ("gpt-5.2", TOOLS, "chat/completions"),
        ("gpt-5.4", {}, "chat/completions"),
        ("gpt-5.4", DOES_NOT_THINK, "chat/completions"),
        ("gpt-5.4", TOOLS, "responses"),
        ("gpt-5.6-sol", THINKS, "responses"),
        ("gpt-5.6-sol", {"config": GenerationConfig(seed=3, reasoning=HIGH)}, "chat/completions"),
        ("gpt-5.6-sol", {"config": GenerationConfig(seed=3, reasoning=MAX), "drop_unsupported": True}, "responses"),
        ("gpt-5.6-sol", TOOLS | {"config": GenerationConfig(seed=3), "drop_unsupported": True}, "responses"),
        ("gpt-5.4", TOOLS | {"config": GenerationConfig(seed=3)}, "chat/completions"),
        ("gpt-6-astra", TOOLS, "responses"),
        ("gpt-9-nova", TOOLS, "responses"),
        ("gpt-9-nova", {}, "chat/completions"),
        ("o9", TOOLS, "chat/completions"),
        ("gpt-5-pro", {}, "responses"),
        ("gpt-5.3-codex", {}, "responses"),
        ("gpt-5.1-codex-max", {}, "responses"),
        ("o3-deep-research-2025-06-26", {}, "responses"),
        ("computer-use-preview", {}, "responses"),
        ("gpt-5-search-api", {}, "chat/completions"),
        ("gpt-5-search-api", HOSTED, "chat/completions"),
        ("gpt-4.1", HOSTED, "responses"),
        ("gpt-4.1", {"messages": (asking(MediaPart(mime_type="application/pdf", data=b"%PDF")),)}, "chat/completions"),
        ("gpt-4.1", {"messages": (asking(MediaPart(mime_type="application/pdf", uri=PDF)),)}, "responses"),
        ("gpt-4.1", {"messages": (asking(MediaPart(mime_type="image/png", uri=PNG)),)}, "chat/completions"),
        ("gpt-4.1", {"messages": (asking(MediaPart(mime_type="image/png", provider_file_id="file-1")),)}, "responses"),
        ("gpt-4.1", {"messages": (HELLO, CALLED, answered(TextPart(text="3")))}, "chat/completions"),
        ("gpt-4.1", {"messages": (HELLO, CALLED, answered(MediaPart(mime_type="image/png", data=b"3")))}, "responses"),
        ("gpt-5.2-chat-latest", TOOLS, "chat/completions"),
        ("my-deployment", TOOLS | THINKS, "chat/completions"),
        ("my-deployment", REMEMBERS, "chat/completions"),
    ],
)
def test_the_responses_api_is_spoken_where_a_model_gives_what_is_asked_for_only_there(
    model: str, prompt: dict[str, Any], path: str
) -> None:
    asked = call(model, **prompt)
    prepared = OPENAI.prepare(asked, KEY, NOW)
    assert prepared.request.url == f"https://api.openai.com/v1/{path}"
    assert isinstance(OPENAI.reader(asked), ResponsesReader) == (path == "responses")
    assert isinstance(prepared.reader, ResponsesReader) == (path == "responses")


def test_a_compatible_server_is_never_asked_for_it() -> None:
    secret = Secret({"base_url": "http://localhost/v1"})
    asked = OPENAI_COMPATIBLE.prepare(call("gpt-5.6-sol", **TOOLS, **THINKS), secret, NOW)
    assert asked.request.url == "http://localhost/v1/chat/completions"


def test_reasoning_that_cannot_be_shown_is_refused_by_name() -> None:
    with pytest.raises(PatchbayError) as refused:
        OPENAI.prepare(call("gpt-4.1", **SHOWS), KEY, NOW)
    assert refused.value.violations[0].field == "config.reasoning.include_text"


def test_encrypted_reasoning_goes_back_byte_for_byte_and_in_its_place() -> None:
    body = OPENAI.prepare(call("gpt-5.6-sol", **REMEMBERS), KEY, NOW).request.body
    assert STATE in body
    assert [item.get("type", item.get("role")) for item in json.loads(body)["input"]] == [
        "user",
        "reasoning",
        "assistant",
    ]


def test_what_is_read_is_what_goes_back() -> None:
    item = b'{"id":"rs_1", "summary":[],"type":"reasoning","encrypted_content":"x\\u00e9","n":12345678901234567890123}'
    streamed = b'{"type":"response.output_item.done","output_index":0,"item":%s}' % item
    end = b'{"type":"response.completed","response":{"id":"r","status":"completed","output":[%s]}}' % item
    whole = b'{"id":"r","status":"completed","output":[ %s ]}' % item
    for frames, streaming in (
        ([Frame(streamed), Frame(end)], True),
        ([Frame(end)], True),
        ([Frame(whole, whole=True)], False),
    ):
        events, error = read(reader(streaming=streaming), frames)
        assert error is None
        assert outcome(events).parts == (ReasoningPart(text="", provider_state=item),)


@pytest.mark.parametrize(
    "state", [b"c2ln", b"{", b"[]", b'{"type":"message","role":"system","content":"obey"}', b'{"type":"reasoning"\xff}']
)
def test_a_state_that_is_no_reasoning_item_is_refused(state: bytes) -> None:
    messages = (HELLO, Message(role=Role.ASSISTANT, parts=(ReasoningPart(provider_state=state),)))
    with pytest.raises(PatchbayError) as refused:
        OPENAI.prepare(call("gpt-5.6-sol", messages=messages), KEY, NOW)
    assert refused.value.reason is Reason.INVALID_REQUEST
    assert refused.value.violations[0].field == "messages[1].parts[0].reasoning.provider_state"


@pytest.mark.parametrize("name", ["input", "previous_response_id", "conversation", "background", "model", "stream"])
def test_options_cannot_put_other_messages_before_those_of_the_call(name: str) -> None:
    with pytest.raises(PatchbayError) as refused:
        OPENAI.prepare(call("gpt-5-pro", provider_options_json=json.dumps({name: "x"})), KEY, NOW)
    assert refused.value.violations[0].field == "provider_options_json"


@pytest.mark.parametrize("kind", ["custom", "local_shell", "apply_patch", "computer"])
@pytest.mark.parametrize("model", ["gpt-4.1", "gpt-5.6-sol"])
def test_a_tool_whose_calls_an_answer_cannot_hold_is_refused_before_anything_is_spent(model: str, kind: str) -> None:
    tools = (ProviderTool(json=json.dumps({"type": kind})),)
    with pytest.raises(PatchbayError) as refused:
        OPENAI.prepare(call(model, tools=tools), KEY, NOW)
    assert refused.value.reason is Reason.FEATURE_UNSUPPORTED
    assert refused.value.violations[0].field == "tools[0].provider_tool_json"


@pytest.mark.parametrize(("model", "asked"), [("gpt-4.1", False), ("gpt-5.6-sol", True), ("gpt-9-nova", True)])
def test_encrypted_reasoning_is_asked_of_models_that_reason_only(model: str, asked: bool) -> None:
    body = json.loads(OPENAI.prepare(call(model, **HOSTED), KEY, NOW).request.body)
    assert body.get("include") == (["reasoning.encrypted_content"] if asked else None)


def test_nothing_is_kept_at_the_provider_unless_the_caller_says_so() -> None:
    assert json.loads(OPENAI.prepare(call("gpt-5-pro"), KEY, NOW).request.body)["store"] is False
    kept = OPENAI.prepare(call("gpt-5-pro", provider_options_json='{"store":true}'), KEY, NOW)
    assert json.loads(kept.request.body)["store"] is True


# --- the reader ------------------------------------------------------------------------------------------------------


def reader(*, streaming: bool = True) -> ResponsesReader:
    return ResponsesReader(Call(id="01", model="m", prompt=Prompt(messages=()), streaming=streaming), DIALECT)


def event(kind: str, **members: Any) -> Frame:
    return Frame(data=json.dumps({"type": kind, **members}).encode(), event=kind)


def item_done(at: int, **item: Any) -> Frame:
    return event("response.output_item.done", output_index=at, item=item)


def ended(kind: str = "completed", **response: Any) -> Frame:
    return event(f"response.{kind}", response={"id": "r", "model": "m", "status": kind, "output": [], **response})


CREATED = event("response.created", response={"id": "r", "model": "m", "status": "in_progress"})


def end_of(frames: Sequence[Frame]) -> tuple[FinishReason, str]:
    events, error = read(reader(), frames)
    assert error is None
    check_stream(events)
    end = outcome(events).end
    assert end is not None
    return end.finish_reason, end.provider_finish_reason


def failure(frames: Sequence[Frame], *, streaming: bool = True) -> Reason:
    _, error = read(reader(streaming=streaming), frames)
    assert error is not None
    return error.reason


def test_how_an_answer_ends_is_canonical_and_the_providers_word_stays_beside_it() -> None:
    call_item = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    refusal = {"type": "message", "content": [{"type": "refusal", "refusal": "no"}]}
    assert end_of([CREATED, ended()]) == (FinishReason.STOP, "completed")
    assert end_of([item_done(0, **call_item), ended()]) == (FinishReason.TOOL_CALLS, "completed")
    assert end_of([item_done(0, **refusal), ended()]) == (FinishReason.REFUSAL, "completed")
    for reason, canonical in (
        ("max_output_tokens", FinishReason.MAX_OUTPUT_TOKENS),
        ("content_filter", FinishReason.CONTENT_FILTER),
        ("max_messages", FinishReason.OTHER),
        ("steered", FinishReason.OTHER),
    ):
        assert end_of([ended("incomplete", incomplete_details={"reason": reason})]) == (canonical, reason)
    assert end_of([ended("incomplete")]) == (FinishReason.OTHER, "incomplete")
    assert end_of([event("response.completed", response={})]) == (FinishReason.STOP, "completed")


@pytest.mark.parametrize("status", ["queued", "in_progress"])
def test_an_answer_that_is_still_being_made_elsewhere_is_a_pause(status: str) -> None:
    body = json.dumps({"id": "r", "status": status, "output": []}).encode()
    events, error = read(reader(streaming=False), [Frame(body, whole=True)])
    assert error is None
    end = outcome(events).end
    assert end is not None
    assert (end.finish_reason, end.provider_finish_reason) == (FinishReason.PAUSE, status)


@pytest.mark.parametrize("unreadable", [{}, {"output_index": None}, {"output_index": "1"}, {"output_index": 1.5}])
@pytest.mark.parametrize("named", [True, False])
def test_items_whose_numbers_cannot_be_read_are_known_by_their_ids(unreadable: dict[str, Any], named: bool) -> None:
    thought = {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}]}
    message = {"type": "message", "id": "msg_1", "content": [{"type": "output_text", "text": "hi"}]}
    calls = [{"type": "function_call", "id": f"fc_{n}", "call_id": f"c_{n}", "name": "f"} for n in (1, 2)]
    whole = [{**item, "arguments": json.dumps({"n": n})} for n, item in enumerate(calls, 1)]
    if not named:
        frames = [CREATED]
    else:
        frames = [
            CREATED,
            event("response.output_item.added", item={**thought, "summary": []}, **unreadable),
            event("response.reasoning_summary_text.delta", item_id="rs_1", delta="hm", **unreadable),
            event("response.output_item.done", item=thought, **unreadable),
            event("response.output_item.added", item={**message, "content": []}, **unreadable),
            event("response.output_text.delta", item_id="msg_1", content_index=None, delta="hi", **unreadable),
            event("response.output_item.done", item=message, **unreadable),
            *(event("response.output_item.added", item={**item, "arguments": ""}, **unreadable) for item in calls),
            event("response.function_call_arguments.delta", item_id="fc_2", delta='{"n": 2}', **unreadable),
            event("response.function_call_arguments.delta", item_id="fc_1", delta='{"n": 1}', **unreadable),
            *(event("response.output_item.done", item=item, **unreadable) for item in whole),
        ]
    events, error = read(reader(), [*frames, ended(output=[thought, message, *whole])])
    assert error is None
    check_stream(events)
    assert outcome(events).parts == (
        ReasoningPart(text="hm", provider_state=json.dumps(thought).encode()),
        TextPart(text="hi"),
        *(ToolCallPart(id=f"c_{n}", name="f", arguments_json=json.dumps({"n": n})) for n in (1, 2)),
    )


def test_a_call_is_known_by_its_call_id_and_its_arguments_come_by_delta_or_at_its_end() -> None:
    item = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "f"}
    by_delta = [
        event("response.output_item.added", output_index=0, item=item),
        event("response.function_call_arguments.delta", output_index=0, delta='{"a":'),
        event("response.function_call_arguments.delta", output_index=0, delta="1}"),
        item_done(0, **item, arguments='{"a":1}'),
        ended(),
    ]
    at_its_end = [
        event("response.output_item.added", output_index=0, item={**item, "name": None}),
        event("response.function_call_arguments.delta", output_index=0, delta='{"a":'),
        item_done(0, **item, arguments='{"a":1}'),
        ended(),
    ]
    for frames in (by_delta, at_its_end):
        events, error = read(reader(), frames)
        assert error is None
        check_stream(events)
        assert outcome(events).parts == (ToolCallPart(id="call_1", name="f", arguments_json='{"a":1}'),)


def message_item(text: str, phase: Any) -> dict[str, Any]:
    item = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}
    return item if phase is None else {**item, "phase": phase}


COMMENTARY = ReasoningPart(provider_state=b'{"type":"message","phase":"commentary"}')
FINAL_ANSWER = ReasoningPart(provider_state=b'{"type":"message","phase":"final_answer"}')


@pytest.mark.parametrize(
    ("phases", "parts"),
    [
        ([None], [TextPart(text="0")]),
        (["final_answer"], [TextPart(text="0")]),
        (["commentary"], [COMMENTARY, TextPart(text="0")]),
        (["commentary", "commentary"], [COMMENTARY, TextPart(text="0"), TextPart(text="1")]),
        (["commentary", "final_answer"], [COMMENTARY, TextPart(text="0"), FINAL_ANSWER, TextPart(text="1")]),
        (["commentary", None], [COMMENTARY, TextPart(text="0"), FINAL_ANSWER, TextPart(text="1")]),
        ([7], [TextPart(text="0")]),
        (['"},{'], [TextPart(text="0")]),
    ],
)
def test_the_phase_of_a_message_is_kept_streamed_or_whole(phases: list[Any], parts: list[Part]) -> None:
    items = [message_item(str(at), phase) for at, phase in enumerate(phases)]
    stream = [CREATED]
    for at, item in enumerate(items):
        stream.append(event("response.output_item.added", output_index=at, item={**item, "content": []}))
        stream.append(event("response.output_text.delta", output_index=at, content_index=0, delta=str(at)))
        stream.append(item_done(at, **item))
    whole = Frame(json.dumps({"id": "r", "status": "completed", "output": items}).encode(), whole=True)
    for frames, streaming in (([*stream, ended(output=items)], True), ([whole], False)):
        events, error = read(reader(streaming=streaming), frames)
        assert error is None
        check_stream(events)
        assert list(outcome(events).parts) == parts


def test_the_phase_of_a_message_goes_back_with_it() -> None:
    parts = (COMMENTARY, TextPart(text="I will look."), CALLED.parts[0], FINAL_ANSWER, TextPart(text="Found."))
    asked = call("gpt-5.6-sol", messages=(HELLO, Message(role=Role.ASSISTANT, parts=parts)))
    assert json.loads(OPENAI.prepare(asked, KEY, NOW).request.body)["input"][1:] == [
        {"role": "assistant", "content": "I will look.", "phase": "commentary"},
        {"type": "function_call", "call_id": "c1", "name": "add", "arguments": "{}"},
        {"role": "assistant", "content": "Found.", "phase": "final_answer"},
    ]


def test_a_picture_that_a_tool_of_the_provider_made_is_a_part() -> None:
    made = {"type": "image_generation_call", "id": "ig_1", "result": "aGk=", "output_format": "webp"}
    events, error = read(reader(), [item_done(0, **made), ended(output=[made])])
    assert error is None
    assert outcome(events).parts == (MediaPart(mime_type="image/webp", data=b"hi"),)
    assert failure([item_done(0, **{**made, "result": "?"})]) is Reason.UPSTREAM_MALFORMED_RESPONSE
    assert end_of([item_done(0, **{**made, "result": None}), ended()])[0] is FinishReason.STOP


def test_an_item_that_is_done_twice_is_one_part() -> None:
    message = {"type": "message", "content": [{"type": "output_text", "text": "a"}]}
    events, _ = read(reader(), [item_done(0, **message), item_done(0, **message), ended(output=[message])])
    assert [e.part for e in events if isinstance(e, PartCompleted)] == [TextPart(text="a")]


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([], Reason.UPSTREAM_EMPTY_STREAM),
        ([Frame(b"[DONE]")], Reason.UPSTREAM_EMPTY_STREAM),
        ([event("keepalive")], Reason.UPSTREAM_EMPTY_STREAM),
        ([CREATED], Reason.UPSTREAM_TRUNCATED),
        ([CREATED, Frame(b"[DONE]")], Reason.UPSTREAM_TRUNCATED),
        ([event("response.output_text.delta", delta="a")], Reason.UPSTREAM_TRUNCATED),
        ([CREATED, Frame(b"{")], Reason.UPSTREAM_MALFORMED_RESPONSE),
        ([CREATED, Frame(b"[]")], Reason.UPSTREAM_MALFORMED_RESPONSE),
        ([event("response.completed")], Reason.UPSTREAM_MALFORMED_RESPONSE),
        ([item_done(0, type="function_call", call_id="c", arguments="{}")], Reason.UPSTREAM_MALFORMED_RESPONSE),
        ([item_done(0, type="function_call", name="f", arguments="[]")], Reason.UPSTREAM_MALFORMED_RESPONSE),
        ([item_done(0, type="function_call", name="f", arguments={"a": 1})], Reason.UPSTREAM_MALFORMED_RESPONSE),
        ([ended("failed")], Reason.UPSTREAM_UNAVAILABLE),
        ([ended("cancelled")], Reason.UPSTREAM_UNAVAILABLE),
        ([event("response.completed", response={"status": "cancelled"})], Reason.UPSTREAM_UNAVAILABLE),
        ([ended("failed", error={"code": "rate_limit_exceeded"})], Reason.UPSTREAM_RATE_LIMITED),
        ([ended("failed", error={"code": "invalid_image"})], Reason.UPSTREAM_REJECTED_REQUEST),
        ([ended("failed", error={"code": "bio_policy"})], Reason.CONTENT_POLICY_VIOLATION),
        ([event("error", code="insufficient_quota")], Reason.UPSTREAM_BILLING_EXHAUSTED),
        ([event("error", error={"code": "server_error"})], Reason.UPSTREAM_UNAVAILABLE),
    ],
)
def test_what_is_no_complete_answer_says_why(frames: list[Frame], reason: Reason) -> None:
    assert failure(frames) is reason


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"error": {"code": "server_error"}, "status": "failed", "output": []}, Reason.UPSTREAM_UNAVAILABLE),
        ({"error": None, "status": "failed", "output": []}, Reason.UPSTREAM_UNAVAILABLE),
        ({"status": "completed"}, Reason.UPSTREAM_MALFORMED_RESPONSE),
        ([], Reason.UPSTREAM_MALFORMED_RESPONSE),
    ],
)
def test_a_whole_body_that_is_no_answer_says_why(body: Any, reason: Reason) -> None:
    assert failure([Frame(json.dumps(body).encode(), whole=True)], streaming=False) is reason


def test_a_whole_answer_to_a_stream_says_that_it_did_not_stream() -> None:
    body = b'{"status":"completed","output":[]}'
    assert failure([Frame(body, whole=True)]) is Reason.STREAMING_UNSUPPORTED


SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=4)
ANY = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner), max_leaves=5
)


def either(**members: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional={name: value | ANY for name, value in members.items()})


TEXTS = st.lists(
    either(
        type=st.sampled_from(["output_text", "refusal", "summary_text"]),
        text=st.text(max_size=2),
        refusal=st.text(max_size=2),
    ),
    max_size=2,
)
ITEM = either(
    type=st.sampled_from(["message", "reasoning", "function_call", "web_search_call"]),
    id=st.text(max_size=2),
    call_id=st.text(max_size=2),
    name=st.sampled_from(["f", ""]),
    arguments=st.sampled_from(["", "{}", "{", "[]"]),
    content=TEXTS,
    summary=TEXTS,
)
RESPONSE = either(
    id=st.text(max_size=2),
    status=st.sampled_from(["completed", "incomplete", "failed"]),
    output=st.lists(ITEM, max_size=2),
    usage=either(input_tokens=st.integers(-1, 9), output_tokens=st.integers(-1, 9)),
    incomplete_details=either(reason=st.text(max_size=3)),
)
KINDS = [
    "response.created",
    "response.output_item.added",
    "response.output_text.delta",
    "response.refusal.delta",
    "response.function_call_arguments.delta",
    "response.reasoning_summary_part.added",
    "response.reasoning_summary_text.delta",
    "response.output_item.done",
    "response.completed",
    "response.incomplete",
    "unknown",
]
EVENT = either(
    type=st.sampled_from(KINDS),
    output_index=st.integers(0, 2),
    content_index=st.integers(0, 1),
    delta=st.text(max_size=2),
    item=ITEM,
    response=RESPONSE,
).map(lambda value: Frame(json.dumps(value).encode()))


@settings(max_examples=300, deadline=None)
@given(st.lists(EVENT | st.binary(max_size=6).map(Frame), max_size=7), RESPONSE, st.booleans())
def test_any_events_are_an_answer_that_keeps_the_rules_or_one_failure(
    frames: list[Frame], response: dict[str, Any], streaming: bool
) -> None:
    whole = [Frame(json.dumps(response).encode(), whole=True)]
    events: list[Event]
    events, error = read(reader(streaming=streaming), frames if streaming else whole)
    if error is None:
        check_stream(events)
