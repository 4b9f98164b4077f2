"""Every claim of the event stream decoder, with botocore's own as the judge."""

import time
from binascii import crc32
from collections.abc import Iterable
from contextlib import suppress
from struct import pack
from typing import Any
from uuid import UUID

import pytest
from botocore.eventstream import EventStreamBuffer
from hypothesis import given
from hypothesis import strategies as st
from tests.support.eventstream import error, event, exception, header, message, raw_header

from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.wire.eventstream import HEADERS_BYTES_MAX, HEADERS_MAX, Decoder
from patchbay_server.wire.framing import cutter
from patchbay_server.wire.http import ANSWER_BYTES_MAX, Frame, Framing

# Three messages as Bedrock sends them, with their checksums.
CHUNK = bytes.fromhex(
    "000000870000004b87ea2bf30b3a6576656e742d747970650700056368756e6b0d3a636f6e74656e742d747970650700106170706c69636174"
    "696f6e2f6a736f6e0d3a6d6573736167652d747970650700056576656e747b226279746573223a2265794a306558426c496a6f696257567a63"
    "32466e5a56397a64473977496e303d227dba48ab22"
)
THROTTLED = bytes.fromhex(
    "000000b0000000614f5086b30f3a657863657074696f6e2d747970650700137468726f74746c696e67457863657074696f6e0d3a636f6e7465"
    "6e742d747970650700106170706c69636174696f6e2f6a736f6e0d3a6d6573736167652d74797065070009657863657074696f6e7b226d6573"
    "73616765223a22546f6f206d616e7920746f6b656e732c20706c656173652077616974206265666f726520747279696e6720616761696e2e22"
    "7df70ae57f"
)
STOPPED = bytes.fromhex(
    "0000007a00000051ca2c46650b3a6576656e742d7479706507000b6d65737361676553746f700d3a636f6e74656e742d747970650700106170"
    "706c69636174696f6e2f6a736f6e0d3a6d6573736167652d747970650700056576656e747b2273746f70526561736f6e223a22656e645f7475"
    "726e227d5fbf09fc"
)
FRAMES = [
    Frame(b'{"bytes":"eyJ0eXBlIjoibWVzc2FnZV9zdG9wIn0="}', "chunk"),
    Frame(b'{"message":"Too many tokens, please wait before trying again."}', "exception:throttlingException"),
    Frame(b'{"stopReason":"end_turn"}', "messageStop"),
]


def decoded(*reads: bytes, message_bytes_max: int = ANSWER_BYTES_MAX) -> list[Frame]:
    decoder = Decoder(message_bytes_max=message_bytes_max)
    frames = [frame for read in reads for frame in decoder.feed(read)]
    return frames + decoder.finish()


def refused(*reads: bytes, **bounds: int) -> Reason:
    with pytest.raises(PatchbayError) as caught:
        decoded(*reads, **bounds)
    return caught.value.reason


def by_botocore(reads: Iterable[bytes]) -> list[Any]:
    buffer = EventStreamBuffer()
    messages = []
    for read in reads:
        buffer.add_data(read)
        messages += list(buffer)
    return messages


def resealed(body: bytes) -> bytes:
    """A message whose bytes were changed, with checksums that fit them."""
    start = body[:8] + pack("!I", crc32(body[:8])) + body[12:-4]
    return start + pack("!I", crc32(start))


# --- what a message becomes -------------------------------------------------------------------------------------------


def test_messages_of_the_service_become_frames() -> None:
    assert decoded(CHUNK + THROTTLED + STOPPED) == FRAMES


@pytest.mark.parametrize("at", range(len(CHUNK + THROTTLED + STOPPED)))
def test_a_cut_anywhere_gives_the_same_frames(at: int) -> None:
    stream = CHUNK + THROTTLED + STOPPED
    assert decoded(stream[:at], stream[at:]) == FRAMES


def test_a_frame_is_given_with_the_read_that_completes_it() -> None:
    decoder = Decoder()
    assert decoder.feed(CHUNK[:-1]) == []
    assert decoder.feed(CHUNK[-1:] + STOPPED[:20]) == FRAMES[:1]
    assert decoder.feed(STOPPED[20:]) == FRAMES[2:]


def test_a_failure_that_the_service_does_not_model_has_its_code_and_its_text() -> None:
    assert decoded(error("InternalError", "no more")) == [Frame(b"no more", "error:InternalError")]


def test_a_message_of_an_unknown_kind_is_skipped() -> None:
    unknown = message([header(":message-type", "weather"), header(":event-type", "rain")], b"{}")
    assert decoded(unknown + STOPPED) == FRAMES[2:]


def test_a_message_without_headers_is_an_event_without_a_name() -> None:
    assert decoded(message([], b"{}")) == [Frame(b"{}", "")]


EVERY_TYPE = (
    raw_header(b"yes", 0, b""),
    raw_header(b"no", 1, b""),
    raw_header(b"int8", 2, b"\xff"),
    raw_header(b"int16", 3, b"\xff\x00"),
    raw_header(b"int32", 4, b"\xff\x00\xff\x00"),
    raw_header(b"int64", 5, b"\xff" * 8),
    raw_header(b"bytes", 6, b"\x00\x03abc"),
    raw_header(b"time", 8, b"\x00" * 8),
    raw_header(b"uuid", 9, UUID(int=1).bytes),
)


def test_headers_of_every_type_are_passed_over() -> None:
    body = message([*EVERY_TYPE, header(":event-type", "ping"), header("größe", "ä")], b"{}")
    assert decoded(body) == [Frame(b"{}", "ping")]
    (judged,) = by_botocore([body])
    assert judged.headers[":event-type"] == "ping"


@given(
    names=st.lists(st.text(min_size=1, max_size=20), max_size=6, unique=True),
    kind=st.text(max_size=30),
    payload=st.binary(max_size=300),
    at=st.lists(st.integers(0, 600), max_size=6),
)
def test_botocore_reads_the_same_from_any_message(names: list[str], kind: str, payload: bytes, at: list[int]) -> None:
    headers = [header(name, name) for name in names if name != ":event-type"]
    stream = message([*headers, header(":event-type", kind)], payload) + STOPPED
    places = sorted({min(place, len(stream)) for place in at})
    reads = [stream[a:b] for a, b in zip([0, *places], [*places, len(stream)], strict=True)]
    judged = [(each.headers.get(":event-type"), each.payload) for each in by_botocore(reads)]
    kept = ":message-type" not in names
    assert [(frame.event, frame.data) for frame in decoded(*reads)] == (judged if kept else judged[1:])


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", range(len(STOPPED)))
def test_any_wrong_byte_is_noticed(position: int) -> None:
    wrong = bytearray(STOPPED)
    wrong[position] ^= 0x01
    assert refused(bytes(wrong)) is Reason.UPSTREAM_MALFORMED_RESPONSE


def test_a_wrong_length_is_noticed_before_it_is_waited_for() -> None:
    decoder = Decoder()
    with pytest.raises(PatchbayError):
        decoder.feed(b"\x00\x0f\xff\xff" + STOPPED[4:12])


@pytest.mark.parametrize(
    "headers",
    [
        b"\x00\x07\x00\x00",  # no name
        b"\x01a",  # no type
        b"\x01a\x0a",  # unknown type
        b"\x01a\x07\x00",  # half a length
        b"\x01a\x07\x00\x05ab",  # longer than the headers
        b"\x05ab",  # name longer than the headers
        b"\x01a\x05\x00",  # half an integer
        b"\x01a\x00\x01a\x01",  # given twice
        b"\x01a\x07\x00\x01\xff",  # not UTF-8
        b"\x01\xff\x07\x00\x01a",
    ],
)
def test_headers_that_cannot_be_read_are_malformed(headers: bytes) -> None:
    assert refused(message([headers], b"{}")) is Reason.UPSTREAM_MALFORMED_RESPONSE


def test_more_headers_than_any_message_has_are_malformed() -> None:
    many = [raw_header(b"%d" % number, 0, b"") for number in range(HEADERS_MAX + 1)]
    assert decoded(message(many[1:], b"")) == [Frame(b"", "")]
    assert refused(message(many, b"")) is Reason.UPSTREAM_MALFORMED_RESPONSE


def test_headers_are_bounded_before_they_are_waited_for() -> None:
    lengths = pack("!II", HEADERS_BYTES_MAX + 100, HEADERS_BYTES_MAX + 1)
    assert refused(lengths + pack("!I", crc32(lengths))) is Reason.UPSTREAM_MALFORMED_RESPONSE


@pytest.mark.parametrize(("total", "headers"), [(0, 0), (15, 0), (16, 1), (100, 85), (100, 2**32 - 1)])
def test_lengths_that_contradict_each_other_are_malformed(total: int, headers: int) -> None:
    lengths = pack("!II", total, headers)
    stream = lengths + pack("!I", crc32(lengths)) + b"\x00" * 100
    assert refused(stream) is Reason.UPSTREAM_MALFORMED_RESPONSE


def test_a_message_beyond_the_bound_is_refused_by_its_prelude() -> None:
    assert refused(CHUNK[:12], message_bytes_max=len(CHUNK) - 1) is Reason.UPSTREAM_MALFORMED_RESPONSE
    assert decoded(CHUNK, message_bytes_max=len(CHUNK)) == FRAMES[:1]


@pytest.mark.parametrize("length", range(1, len(STOPPED)))
def test_an_end_within_a_message_is_a_truncation(length: int) -> None:
    assert refused(CHUNK, STOPPED[:length]) is Reason.UPSTREAM_TRUNCATED


@given(body=st.binary(max_size=200), at=st.integers(0, 200))
def test_whatever_the_bytes_the_failure_is_ours(body: bytes, at: int) -> None:
    changed = resealed(STOPPED[:12] + body + STOPPED[12 + len(body) :])
    with suppress(PatchbayError):
        assert len(decoded(changed[:at], changed[at:])) <= 1


@given(block=st.binary(min_size=1, max_size=40), payload=st.binary(max_size=10))
def test_headers_that_are_accepted_here_are_accepted_by_botocore(block: bytes, payload: bytes) -> None:
    stream = message([block], payload)
    try:
        decoded(stream)
    except PatchbayError:
        return
    (judged,) = by_botocore([stream])
    assert judged.payload == payload


# --- bounds and cost --------------------------------------------------------------------------------------------------


def test_the_longest_message_takes_linear_time() -> None:
    payload = b"x" * (ANSWER_BYTES_MAX - 16)
    stream = message([], payload)
    decoder = Decoder()
    started = time.process_time()
    frames: list[Frame] = []
    for at in range(0, len(stream), 1024):
        frames += decoder.feed(stream[at : at + 1024])
    assert len(frames[0].data) == len(payload)
    assert time.process_time() - started < 2.0


def test_many_messages_in_one_read_cost_a_few_microseconds_each() -> None:
    started = time.process_time()
    assert len(decoded(CHUNK * 20_000)) == 20_000
    assert time.process_time() - started < 2.0  # measured 0.1; the rest is for a busy machine


# --- how a body is cut ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b'{"message":"no"}', b" \n[]", b"<html>", b"\xef\xbb\xbf{}"])
def test_a_body_that_is_plainly_text_is_one_whole_frame(body: bytes) -> None:
    for reads in ([body], [body[i : i + 1] for i in range(len(body))]):
        own = cutter(Framing.EVENT_STREAM)
        frames = [frame for read in reads for frame in own.feed(read)]
        assert frames + own.finish() == [Frame(body, whole=True)]


def test_an_event_stream_is_cut_into_messages() -> None:
    own = cutter(Framing.EVENT_STREAM)
    assert own.feed(b"") == []
    assert own.feed(CHUNK + STOPPED) == [FRAMES[0], FRAMES[2]]
    assert own.finish() == []


def test_an_empty_body_has_no_frame() -> None:
    assert cutter(Framing.EVENT_STREAM).finish() == []


def test_the_support_of_these_tests_writes_what_the_service_writes() -> None:
    assert event("messageStop", {"stopReason": "end_turn"}) == STOPPED
    assert exception("throttlingException", FRAMES[1].data) == THROTTLED
