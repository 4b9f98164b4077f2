"""The checker of streams finds each way in which a stream can be wrong."""

from collections.abc import Sequence

import pytest

from patchbay_server.testing.stream_rules import check_stream
from patchbay_server.types import (
    Event,
    Finished,
    FinishReason,
    MediaPart,
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
    UsageUpdated,
)
from patchbay_server.usage import Usage

OPENED = Opened()
END = Finished(finish_reason=FinishReason.STOP)
TEXT = PartCompleted(0, TextPart(text="ab"))
CALL = PartCompleted(1, ToolCallPart(id="1", name="f", arguments_json="{}"))
GOOD: list[Event] = [
    OPENED,
    TextDelta(0, "a"),
    ToolCallStarted(1, "1", "f"),
    UsageUpdated(Usage()),
    TextDelta(0, "b"),
    ToolCallDelta(1, "{}"),
    TEXT,
    CALL,
    PartCompleted(2, RefusalPart(text="no")),
    ReasoningDelta(4, "seen before the part that begins unseen is whole"),
    PartCompleted(3, ReasoningPart(provider_state=b"s")),
    PartCompleted(4, ReasoningPart(text="seen before the part that begins unseen is whole")),
    PartCompleted(5, MediaPart(mime_type="image/png", data=b"png")),
    END,
]


def test_a_good_stream_passes() -> None:
    check_stream(GOOD)


@pytest.mark.parametrize(
    ("broken", "rule"),
    [
        ([], "empty"),
        ([END], "starts with"),
        ([OPENED], "ends with"),
        ([OPENED, OPENED, END], "opens the stream again"),
        ([OPENED, END, END], "before its last event"),
        ([OPENED, TextDelta(1, "a"), PartCompleted(1, TextPart(text="a")), END], "a gap"),
        ([OPENED, TextDelta(1, "a"), TextDelta(0, "a"), END], "out of order"),
        ([OPENED, TextDelta(0, "a"), END], "never completed"),
        ([OPENED, TextDelta(0, ""), PartCompleted(0, TextPart(text="")), END], "empty delta"),
        ([OPENED, TextDelta(0, "a"), TEXT, END], "add up to"),
        ([OPENED, TextDelta(0, "ab"), TEXT, TEXT, END], "completes part 0 again"),
        ([OPENED, TextDelta(0, "ab"), TEXT, TextDelta(0, "c"), END], "which is complete"),
        ([OPENED, ToolCallDelta(0, "{}"), END], "before its start"),
        ([OPENED, ToolCallStarted(0, "1", "f"), ToolCallStarted(0, "1", "f"), END], "again"),
        ([OPENED, ToolCallStarted(0, "1", ""), END], "without an id or a name"),
        ([OPENED, ToolCallStarted(0, "1", "f"), TextDelta(0, "a"), END], "within a tool_call part"),
        ([OPENED, ToolCallStarted(0, "1", "f"), PartCompleted(0, CALL.part), END], "add up to"),
        ([OPENED, PartCompleted(1, RefusalPart(text="no")), END], "a gap"),
        ([OPENED, TextDelta(0, "a"), PartCompleted(0, RefusalPart(text="no")), END], "has deltas"),
        ([OPENED, PartCompleted(0, MediaPart(uri="https://x")), END], "no model writes"),
        ([OPENED, TextDelta(0, "a"), PartCompleted(0, MediaPart(data=b"a")), END], "has deltas"),
    ],
)
def test_each_broken_rule_is_named(broken: Sequence[Event], rule: str) -> None:
    with pytest.raises(AssertionError, match=rule):
        check_stream(broken)
