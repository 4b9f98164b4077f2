"""How bodies are cut, by framing."""

import pytest

from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.wire.framing import cutter
from patchbay_server.wire.http import ANSWER_BYTES_MAX, Frame, Framing


def frames_of(framing: Framing, *reads: bytes) -> list[Frame]:
    body = cutter(framing)
    frames = [frame for read in reads for frame in body.feed(read)]
    return frames + body.finish()


def test_a_body_is_one_whole_frame() -> None:
    assert frames_of(Framing.BODY, b'{"a"', b":1}") == [Frame(b'{"a":1}', whole=True)]
    assert frames_of(Framing.BODY) == [Frame(b"", whole=True)]


@pytest.mark.parametrize("body", [b'{"error": 1}', b' \r\n\t["x"]', b"<html>\n\n</html>", b'\xef\xbb\xbf{"a":1}\n\n'])
def test_a_body_that_is_plainly_no_event_stream_is_one_whole_frame(body: bytes) -> None:
    assert frames_of(Framing.SSE, body) == [Frame(body, whole=True)]
    assert frames_of(Framing.SSE, *(body[i : i + 1] for i in range(len(body)))) == [Frame(body, whole=True)]


@pytest.mark.parametrize(
    "body", [b"data: a\n\n", b"\n\r\n\ndata: a\n\n", b": hi\n\ndata: a\n", b"\xef\xbb\xbfdata: a\n\n"]
)
def test_anything_else_is_an_event_stream(body: bytes) -> None:
    frames = [Frame(b"a", torn=not body.endswith(b"\n\n"))]
    assert frames_of(Framing.SSE, body) == frames
    assert frames_of(Framing.SSE, *(body[i : i + 1] for i in range(len(body)))) == frames


@pytest.mark.parametrize("body", [b"", b"\n", b"\xef\xbb", b" \r\n"])
def test_an_empty_stream_has_no_frame(body: bytes) -> None:
    assert frames_of(Framing.SSE, body) == []


def test_blanks_without_end_are_not_kept() -> None:
    body = cutter(Framing.SSE)
    for _ in range(100):
        assert body.feed(b"\n" * 1000) == []
    assert body.feed(b"data: a\n\n") == [Frame(b"a")]
    assert frames_of(Framing.SSE, b"\n" * 2000, b"{}") == []


@pytest.mark.parametrize("framing", list(Framing))
def test_a_whole_frame_is_bounded(framing: Framing) -> None:
    body = cutter(framing)
    body.feed(b"{" * ANSWER_BYTES_MAX)
    with pytest.raises(PatchbayError) as caught:
        body.feed(b"{")
    assert caught.value.reason is Reason.UPSTREAM_MALFORMED_RESPONSE


EVENTS_THEN_ERROR = b'data: {"a":1}\r\n\r\n: hi\r\ndata: [2]\r\n{\r\n  "error": {\r\n    "x": "data: 3"\r\n  }\r\n}\r\n'


def test_events_may_break_off_into_bare_json() -> None:
    bare = EVENTS_THEN_ERROR[EVENTS_THEN_ERROR.index(b"{\r\n") :]
    expected = [Frame(b'{"a":1}'), Frame(b"[2]", torn=True), Frame(bare, whole=True)]
    assert frames_of(Framing.SSE_THEN_JSON, EVENTS_THEN_ERROR) == expected
    for at in range(len(EVENTS_THEN_ERROR)):
        assert frames_of(Framing.SSE_THEN_JSON, EVENTS_THEN_ERROR[:at], b"", EVENTS_THEN_ERROR[at:]) == expected
    one_by_one = [EVENTS_THEN_ERROR[i : i + 1] for i in range(len(EVENTS_THEN_ERROR))]
    assert frames_of(Framing.SSE_THEN_JSON, *one_by_one) == expected


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
@pytest.mark.parametrize("bare", [b"[1]", b"{}"])
def test_bare_json_begins_at_any_line_end(end: bytes, bare: bytes) -> None:
    assert frames_of(Framing.SSE_THEN_JSON, b"data: a" + end, bare) == [Frame(b"a", torn=True), Frame(bare, whole=True)]


@pytest.mark.parametrize("body", [b"data: {\ndata: }\n\n", b"data:x\nid: {\n", b"event: e\n {\n\n", b"data: a\n\n"])
def test_without_bare_json_it_is_an_event_stream_like_any_other(body: bytes) -> None:
    assert frames_of(Framing.SSE_THEN_JSON, body) == frames_of(Framing.SSE, body)


def test_bare_json_within_events_is_skipped_where_no_server_writes_it() -> None:
    assert frames_of(Framing.SSE, EVENTS_THEN_ERROR) == [Frame(b'{"a":1}'), Frame(b"[2]", torn=True)]


def test_bare_json_after_events_is_bounded() -> None:
    body = cutter(Framing.SSE_THEN_JSON)
    body.feed(b"data: a\n\n{")
    body.feed(b" " * (ANSWER_BYTES_MAX - 1))
    with pytest.raises(PatchbayError) as caught:
        body.feed(b" ")
    assert caught.value.reason is Reason.UPSTREAM_MALFORMED_RESPONSE
