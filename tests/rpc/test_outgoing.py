"""Joining and cutting deltas."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchbay_server.rpc.outgoing import DELTA_CHARS_MAX, coalesced, pieces
from patchbay_server.types import (
    ChatEvent,
    PartCompleted,
    ReasoningDelta,
    TextDelta,
    TextPart,
    ToolCallDelta,
    ToolCallStarted,
    UsageUpdated,
)
from patchbay_server.usage import Usage

DELTAS = st.one_of(
    st.builds(TextDelta, st.integers(0, 1), st.text(max_size=3)),
    st.builds(ReasoningDelta, st.integers(0, 1), st.text(max_size=3)),
    st.builds(ToolCallDelta, st.integers(0, 1), st.text(max_size=3)),
)
OTHERS = st.sampled_from(
    [ToolCallStarted(1, "id", "f"), PartCompleted(0, TextPart(text="a")), UsageUpdated(Usage(input_tokens=1))]
)


def told(events: list[ChatEvent]) -> list[tuple[object, ...]]:
    """The events letter by letter, which joining must not change."""
    found: list[tuple[object, ...]] = []
    for event in events:
        match event:
            case TextDelta() | ReasoningDelta():
                found += [(type(event), event.part_index, letter) for letter in event.text]
            case ToolCallDelta():
                found += [(type(event), event.part_index, letter) for letter in event.arguments_json]
            case _:
                found.append((event,))
    return found


@given(st.lists(st.one_of(DELTAS, OTHERS), max_size=12))
def test_joining_changes_neither_order_nor_content(batch: list[ChatEvent]) -> None:
    joined = list(coalesced(batch))
    assert told(joined) == told(batch)
    for left, right in pairwise(joined):
        if isinstance(left, TextDelta | ReasoningDelta | ToolCallDelta) and type(left) is type(right):
            assert left.part_index != right.part_index


def test_neighbours_of_one_part_become_one_delta() -> None:
    batch: list[ChatEvent] = [TextDelta(0, "a"), TextDelta(0, "b"), TextDelta(1, "c"), ToolCallDelta(1, "{")]
    assert coalesced(batch) == [TextDelta(0, "ab"), TextDelta(1, "c"), ToolCallDelta(1, "{")]


@pytest.mark.parametrize("letter", ["a", "€", "𝄞"])
@pytest.mark.parametrize("length", [DELTA_CHARS_MAX, DELTA_CHARS_MAX + 1, 3 * DELTA_CHARS_MAX])
def test_long_deltas_are_cut_into_pieces_of_at_most_256_kib(letter: str, length: int) -> None:
    text = letter * length
    cut = [piece for piece in pieces(TextDelta(3, text)) if isinstance(piece, TextDelta)]
    assert "".join(piece.text for piece in cut) == text
    assert len(cut) == -(-length // DELTA_CHARS_MAX)
    assert all(len(piece.text.encode()) <= 256 * 1024 and piece.part_index == 3 for piece in cut)


def test_reasoning_and_arguments_are_cut_alike() -> None:
    text = "a" * (DELTA_CHARS_MAX + 1)
    assert pieces(ReasoningDelta(0, text)) == [ReasoningDelta(0, text[:-1]), ReasoningDelta(0, "a")]
    assert pieces(ToolCallDelta(0, text)) == [ToolCallDelta(0, text[:-1]), ToolCallDelta(0, "a")]
    whole = PartCompleted(0, TextPart(text=text))
    assert pieces(whole) == (whole,)
