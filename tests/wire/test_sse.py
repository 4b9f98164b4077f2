"""Every claim of the decoder against a plain reading of the standard, however the network cuts the stream."""

import re
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.wire.http import ANSWER_BYTES_MAX, Frame
from patchbay_server.wire.sse import Decoder


def by_the_standard(stream: bytes) -> list[Frame]:
    """HTML standard, 9.2.6, step by step over the decoded stream; an event without its blank line counts, too."""
    text = stream.decode("utf-8", "replace").removeprefix("\ufeff")
    frames: list[Frame] = []
    data, event = "", ""
    lines = re.split("\r\n|\r|\n", text)
    for number, line in enumerate([*lines, ""], start=1):
        if line == "":
            if data:
                torn = number >= len(lines)  # what follows the last line end is no line yet
                frames.append(Frame(data.removesuffix("\n").encode(), event or "message", torn=torn))
            data, event = "", ""
        elif not line.startswith(":"):
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "data":
                data += value + "\n"
            elif name == "event":
                event = value
    return frames


def decoded(*reads: bytes, event_bytes_max: int = ANSWER_BYTES_MAX) -> list[Frame]:
    decoder = Decoder(event_bytes_max=event_bytes_max)
    frames = [frame for read in reads for frame in decoder.feed(read)]
    return frames + decoder.finish()


def cut(stream: bytes, at: list[int]) -> list[bytes]:
    places = sorted({min(place, len(stream)) for place in at})
    return [stream[a:b] for a, b in zip([0, *places], [*places, len(stream)], strict=True)]


LINES = st.sampled_from(
    [
        *(
            b"data: a",
            b"data: b",
            b"data:c",
            b"data",
            b'data: {"a": 1}',
            b"event: ping",
            b"event",
            b"id: 1",
            b"retry: 5",
        ),
        *(b"", b"", b": comment", b":", b"other: x", b" data: x", b"data : x", b"id:\x00"),
        *("data: é你好".encode(), "data: \u2028\u0085\v\f".encode(), b"\xef\xbb\xbfdata: bom", b"data: \xff\xe4\xbd"),
    ]
)
ENDS = st.sampled_from([b"\n", b"\n", b"\n\n", b"\r", b"\r\n", b"\r\n\r\n", b"\r\r", b""])
STREAMS = st.lists(st.tuples(LINES, ENDS).map(b"".join), max_size=12).map(b"".join)
PLACES = st.lists(st.integers(0, 120), max_size=12)


@given(stream=STREAMS, at=PLACES)
@example(stream=b"data: a\r\ndata: b\r\n\r\n", at=[8, 9, 18, 19])
@example(stream=b"data: a\ndata: b\n\n", at=[8])
@example(stream=b"event: x\ndata: b\n\n", at=[9])
@example(stream=b"\xef\xbb\xbfdata: a\n\n", at=[1, 2])
@example(stream="data: 你\n\n".encode(), at=[7, 8])
def test_any_split_gives_what_the_standard_says(stream: bytes, at: list[int]) -> None:
    assert decoded(*cut(stream, at)) == by_the_standard(stream)


@given(stream=st.binary(max_size=300), at=st.lists(st.integers(0, 300), max_size=6))
def test_any_bytes_give_what_the_standard_says(stream: bytes, at: list[int]) -> None:
    assert decoded(*cut(stream, at)) == by_the_standard(stream)


@given(stream=STREAMS, at=PLACES, bound=st.integers(1, 40))
def test_the_bound_does_not_depend_on_the_split(stream: bytes, at: list[int], bound: int) -> None:
    def outcome(*reads: bytes) -> list[Frame] | Reason:
        try:
            return decoded(*reads, event_bytes_max=bound)
        except PatchbayError as error:
            return error.reason

    assert outcome(*cut(stream, at)) == outcome(stream)


@pytest.mark.parametrize(
    ("stream", "frames"),
    [
        (b"data: a\n\ndata: b\n\n", [Frame(b"a"), Frame(b"b")]),
        (b"data: a\r\rdata: b\r\n\r\n", [Frame(b"a"), Frame(b"b")]),
        (b'data: {"a":\ndata: 1}\n\n', [Frame(b'{"a":\n1}')]),
        (b"data:  two spaces\n\n", [Frame(b" two spaces")]),
        (b"data:none\n\n", [Frame(b"none")]),
        (b"data\n\n", [Frame(b"")]),
        (b"data\ndata\n\n", [Frame(b"\n")]),
        (b": ping\n\n: ping\n\n", []),
        (b"event: gone\n\ndata: a\n\n", [Frame(b"a")]),
        (b"event: x\ndata: a\n\ndata: b\n\n", [Frame(b"a", "x"), Frame(b"b")]),
        (b"data: a\nevent: x\nid: 7\nretry: 9\n\n", [Frame(b"a", "x")]),
        (b"\xef\xbb\xbfdata: a\n\n\xef\xbb\xbfdata: b\n\n", [Frame(b"a")]),
        ("data: a\u2028b\u0085c\vd\fe\n\n".encode(), [Frame("a\u2028b\u0085c\vd\fe".encode())]),
        (b"data: \xff\n\n", [Frame("\ufffd".encode())]),
        (b"data: a\n", [Frame(b"a", torn=True)]),
        (b"data: a", [Frame(b"a", torn=True)]),
        (b"", []),
        (b"error: {}\n\n", []),
        (b"error: unset\n\n", []),
        (b'data: a\n\nerror: {"code":500}\n\n', [Frame(b"a"), Frame(b'{"code":500}', "error")]),
        (b'error:{"code":500}', [Frame(b'{"code":500}', "error", torn=True)]),
    ],
)
def test_the_rules_by_example(stream: bytes, frames: list[Frame]) -> None:
    assert decoded(stream) == frames
    assert decoded(*(stream[i : i + 1] for i in range(len(stream)))) == frames


def test_an_event_is_given_with_the_read_that_completes_it() -> None:
    decoder = Decoder()
    assert decoder.feed(b"data: a\r\n\r") == [Frame(b"a")]
    assert decoder.feed(b"\ndata: b\n") == []
    assert decoder.feed(b"\n") == [Frame(b"b")]


@pytest.mark.parametrize(
    "stream",
    [
        b"data: " + b"x" * 95,
        b": " + b"x" * 99,
        b"data: " + b"x" * 95 + b"\n\n",
        b"data: " + b"x" * 60 + b"\ndata:" + b"x" * 60,
    ],
)
def test_a_line_or_an_event_beyond_the_bound_is_malformed(stream: bytes) -> None:
    with pytest.raises(PatchbayError) as caught:
        decoded(stream, event_bytes_max=100)
    assert caught.value.reason is Reason.UPSTREAM_MALFORMED_RESPONSE


def test_a_line_that_does_not_end_is_refused_while_it_grows() -> None:
    decoder = Decoder(event_bytes_max=100)
    decoder.feed(b"data: " + b"x" * 94)
    with pytest.raises(PatchbayError):
        decoder.feed(b"x")


def test_the_bound_is_for_each_event_and_not_for_the_stream() -> None:
    events = b"data: a\ndata: b\n\n" * 50
    assert decoded(events, event_bytes_max=10) == [Frame(b"a\nb")] * 50


def test_an_event_at_the_bound_passes() -> None:
    assert decoded(b"data: " + b"x" * 94 + b"\n\n", event_bytes_max=100) == [Frame(b"x" * 94)]


@pytest.mark.parametrize("read_bytes", [512, 64 * 1024])
def test_the_longest_line_takes_linear_time(read_bytes: int) -> None:
    line = b"data: " + b"x" * (ANSWER_BYTES_MAX - 6)
    decoder = Decoder()
    started = time.process_time()
    for at in range(0, len(line), read_bytes):
        assert decoder.feed(line[at : at + read_bytes]) == []
    assert len(decoder.feed(b"\n\n")[0].data) == ANSWER_BYTES_MAX - 6
    assert time.process_time() - started < 2.0


def test_whole_events_cost_about_a_microsecond() -> None:
    event = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"Hello"},"finish_reason":null}]}\n\n'
    decoder = Decoder()
    started = time.process_time()
    for _ in range(1000):
        decoder.feed(event * 20)
    per_event_s = (time.process_time() - started) / 20_000
    assert per_event_s < 10e-6  # measured 0.8; the rest is for a busy machine
