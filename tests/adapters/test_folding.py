"""Folding deltas into parts, for every reader."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchbay_server.adapters import folding
from patchbay_server.adapters.folding import Parts
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.testing.stream_rules import check_stream
from patchbay_server.types import (
    Event,
    Finished,
    FinishReason,
    NoticeCode,
    Opened,
    PartCompleted,
    ReasoningDelta,
    ReasoningPart,
    RefusalPart,
    TextDelta,
    TextPart,
    ToolCallDelta,
    ToolCallPart,
    ToolCallStarted,
)

CALL_ID = "0123456789abcdef0123456789abcdef"
INVALID = NoticeCode.TOOL_ARGUMENTS_INVALID_JSON


@pytest.fixture
def parts() -> Parts:
    return Parts(CALL_ID)


def keeps_the_rules(events: list[Event]) -> None:
    check_stream([Opened(), *events, Finished(finish_reason=FinishReason.STOP)])


def refused(act: object) -> PatchbayError:
    with pytest.raises(PatchbayError) as caught:
        act()  # type: ignore[operator]
    assert caught.value.reason is Reason.UPSTREAM_MALFORMED_RESPONSE
    return caught.value


def call_with(*fragments: str) -> tuple[Parts, list[Event]]:
    """A tool call whose arguments came in these fragments."""
    parts = Parts(CALL_ID)
    events = parts.tool_call("t", id="call_1", name="look_up")
    for fragment in fragments:
        events += parts.arguments("t", fragment)
    return parts, events + parts.complete("t")


def arguments_of(events: list[Event]) -> str:
    whole = events[-1]
    assert isinstance(whole, PartCompleted)
    assert isinstance(whole.part, ToolCallPart)
    assert "".join(event.arguments_json for event in events if isinstance(event, ToolCallDelta)) == (
        whole.part.arguments_json
    )
    return whole.part.arguments_json


# --- text, reasoning, refusals ---


def test_parts_are_numbered_in_the_order_in_which_they_begin(parts: Parts) -> None:
    events = [
        *parts.reasoning("r", "hm"),
        *parts.text("t", "so "),
        *parts.reasoning("r", "m"),
        *parts.text("t", "it is"),
        *parts.complete_all(),
    ]
    assert events == [
        ReasoningDelta(0, "hm"),
        TextDelta(1, "so "),
        ReasoningDelta(0, "m"),
        TextDelta(1, "it is"),
        PartCompleted(0, ReasoningPart(text="hmm")),
        PartCompleted(1, TextPart(text="so it is")),
    ]
    keeps_the_rules(events)


def test_nothing_begins_a_text_part_but_text(parts: Parts) -> None:
    assert parts.text("t", "") == []
    assert not parts.began
    assert parts.complete("t") == []
    assert parts.complete_all() == []


def test_reasoning_may_be_a_signature_and_nothing_else(parts: Parts) -> None:
    assert parts.reasoning("r", "") == []
    parts.reasoning_state("r", b"sig")
    assert parts.began
    assert parts.complete("r") == [PartCompleted(0, ReasoningPart(text="", provider_state=b"sig"))]


def test_a_refusal_is_given_whole(parts: Parts) -> None:
    parts.refusal("r", "I can")
    parts.refusal("r", "not")
    assert parts.refused
    assert parts.complete_all() == [PartCompleted(0, RefusalPart(text="I cannot"))]


def test_a_key_can_be_used_again_once_its_part_is_whole(parts: Parts) -> None:
    events = [*parts.text("t", "a"), *parts.complete("t"), *parts.text("t", "b"), *parts.complete("t")]
    assert [event.part_index for event in events if isinstance(event, PartCompleted)] == [0, 1]
    keeps_the_rules(events)


@pytest.mark.parametrize("first", ["text", "reasoning", "refusal", "tool_call"])
@pytest.mark.parametrize("second", ["text", "reasoning", "reasoning_state", "refusal", "arguments", "tool_state"])
def test_a_part_stays_what_it_began_as(parts: Parts, first: str, second: str) -> None:
    if first == "tool_call":
        parts.tool_call("k", id="1", name="f")
    else:
        getattr(parts, first)("k", "x")
    value = b"state" if second.endswith("state") else "more"
    same = {"reasoning_state": "reasoning", "arguments": "tool_call", "tool_state": "tool_call"}
    if same.get(second, second) == first:
        getattr(parts, second)("k", value)
    else:
        refused(lambda: getattr(parts, second)("k", value))


# --- tool calls ---


def test_parallel_calls_are_kept_apart(parts: Parts) -> None:
    events = [
        *parts.tool_call(0, id="a", name="f"),
        *parts.tool_call(1, id="b", name="g"),
        *parts.arguments(1, '{"y":'),
        *parts.arguments(0, '{"x":1}'),
        *parts.arguments(1, "2}"),
        *parts.complete_all(),
    ]
    keeps_the_rules(events)
    assert [event.part for event in events if isinstance(event, PartCompleted)] == [
        ToolCallPart(id="a", name="f", arguments_json='{"x":1}'),
        ToolCallPart(id="b", name="g", arguments_json='{"y":2}'),
    ]
    assert parts.tool_calls == 2


def test_a_call_without_a_name_is_malformed(parts: Parts) -> None:
    refused(lambda: parts.tool_call("t", id="1", name=""))


def test_calls_without_ids_get_ids_of_ours_which_differ_between_calls_and_conversations() -> None:
    ids = set()
    for call_id in (CALL_ID, CALL_ID[::-1]):
        parts = Parts(call_id)
        for key in (0, 1):
            (started,) = parts.tool_call(key, id="", name="f")
            assert isinstance(started, ToolCallStarted)
            ids.add(started.id)
        assert [(notice.code, notice.field) for notice in parts.notices] == [
            (NoticeCode.TOOL_CALL_ID_ASSIGNED, "message.parts[0].tool_call.id"),
            (NoticeCode.TOOL_CALL_ID_ASSIGNED, "message.parts[1].tool_call.id"),
        ]
    assert len(ids) == 4
    assert all(0 < len(id_) <= 40 for id_ in ids)


def test_a_call_s_state_goes_with_it(parts: Parts) -> None:
    parts.tool_call("t", id="1", name="f")
    parts.tool_state("t", b"sig")
    (*_, whole) = parts.complete("t")
    assert isinstance(whole, PartCompleted)
    assert whole.part == ToolCallPart(id="1", name="f", arguments_json="{}", provider_state=b"sig")


@pytest.mark.parametrize(
    "fragments", [(), ("",), ("null",), ("nu", "ll"), (" ", "\n"), (" null ",), ("n", "u", "l", "l", " ")]
)
def test_absent_empty_and_null_arguments_mean_an_empty_object(fragments: tuple[str, ...]) -> None:
    parts, events = call_with(*fragments)
    assert arguments_of(events) == "{}"
    assert parts.notices == ()
    keeps_the_rules(events)


@pytest.mark.parametrize("text", ["[]", "[1]", "true", "false", "1", '"x"', " 1.5 "])
def test_json_that_is_no_object_is_malformed_and_never_quietly_empty(text: str) -> None:
    refused(lambda: call_with(text))


@pytest.mark.parametrize(
    "text", ["{", '{"a":', "nul", "nullx", "n u l l", "x", "{'a': 1}", "\u00a0", '{"a":"\ud800"}', "[" * 100_000]
)
def test_what_the_model_left_unparsable_is_delivered_as_it_came_with_a_notice(text: str) -> None:
    parts, events = call_with(text)
    assert arguments_of(events) == text
    assert [(notice.code, notice.field) for notice in parts.notices] == [
        (INVALID, "message.parts[0].tool_call.arguments_json")
    ]
    keeps_the_rules(events)


@given(st.lists(st.text('nul{}":1a \n', max_size=4), max_size=8))
def test_deltas_add_up_to_the_arguments_however_they_are_cut(fragments: list[str]) -> None:
    try:
        parts, events = call_with(*fragments)
    except PatchbayError as error:
        assert error.reason is Reason.UPSTREAM_MALFORMED_RESPONSE  # noqa: PT017
        return
    text = "".join(fragments)
    assert arguments_of(events) == ("{}" if text.strip(" \n") in {"", "null"} else text)
    keeps_the_rules(events)
    whole = call_with(text)
    assert (whole[1][-1], whole[0].notices) == (events[-1], parts.notices)


def test_arguments_leave_as_soon_as_they_cannot_mean_none(parts: Parts) -> None:
    parts.tool_call("t", id="1", name="f")
    assert parts.arguments("t", " n") == []
    assert parts.arguments("t", "o") == [ToolCallDelta(0, " no")]
    assert parts.arguments("t", "t") == [ToolCallDelta(0, "t")]
    assert parts.arguments_so_far("t") == " not"


# --- bounds ---


def test_the_parts_of_an_answer_are_bounded(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "PARTS_MAX", 2)
    parts.text(0, "a")
    parts.text(1, "b")
    parts.text(1, "more of b")
    refused(lambda: parts.text(2, "c"))


@pytest.mark.parametrize("kind", ["text", "reasoning", "refusal", "reasoning_state", "arguments", "tool_state"])
def test_the_text_of_an_answer_is_bounded_whatever_it_is_part_of(
    parts: Parts, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folding, "ANSWER_CHARS_MAX", 10)
    if kind in {"arguments", "tool_state"}:
        parts.tool_call("k", id="1", name="f")
        monkeypatch.setattr(folding, "ANSWER_CHARS_MAX", 10 + len("1f"))
    piece = b"x" * 5 if kind.endswith("state") else "x" * 5
    for _ in range(2):
        getattr(parts, kind)("k", piece)
    refused(lambda: getattr(parts, kind)("k", piece))


def test_the_names_of_tool_calls_count_as_text_of_the_answer(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "ANSWER_CHARS_MAX", 10)
    parts.tool_call(0, id="1", name="f" * 9)
    refused(lambda: parts.tool_call(1, id="2", name="f"))


def test_a_provider_that_sends_blanks_for_arguments_does_not_keep_the_gateway_busy(parts: Parts) -> None:
    parts.tool_call("t", id="1", name="f")
    started = time.process_time()
    for _ in range(50_000):
        parts.arguments("t", " \n")
    assert time.process_time() - started < 1.0
