"""What has to hold of the decoders whatever bytes they are fed. Each target raises when it does not.

A decoder gives the same frames however a stream is cut into reads, or fails for the same reason, and fails with nothing
but `PatchbayError`.
"""

from binascii import crc32
from collections.abc import Callable, Sequence
from random import Random
from struct import pack
from typing import Final

from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.wire import eventstream, sse
from patchbay_server.wire.http import Frame

BOUND: Final = 512
"""Bytes of an event that decoders take here: small enough for a fuzzer to pass it."""
CUTS: Final = 4

Decoder = sse.Decoder | eventstream.Decoder
Outcome = tuple[list[Frame], Reason | None]


def sse_target(data: bytes) -> None:
    check(lambda: sse.Decoder(event_bytes_max=BOUND), data)


def eventstream_target(data: bytes) -> None:
    """The bytes as they come, and once more with the checksums that fit them, which no fuzzer would guess."""
    check(lambda: eventstream.Decoder(message_bytes_max=BOUND), data)
    check(lambda: eventstream.Decoder(message_bytes_max=BOUND), sealed(data))


TARGETS: Final = {"sse": sse_target, "eventstream": eventstream_target}


def check(make: Callable[[], Decoder], data: bytes) -> None:
    frames, reason = decoded(make(), [data[at : at + 1] for at in range(len(data))])
    assert reason in {None, Reason.UPSTREAM_MALFORMED_RESPONSE, Reason.UPSTREAM_TRUNCATED}
    assert sum(len(frame.data) for frame in frames) <= 3 * len(data), "a byte becomes U+FFFD at most"
    chance = Random(crc32(data))
    for _ in range(CUTS):
        places = sorted(chance.randrange(len(data) + 1) for _ in range(chance.randrange(4)))
        reads = [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]
        own_frames, own_reason = decoded(make(), reads)
        assert own_reason is reason
        # A read that fails gives none of the frames that it completed.
        assert own_frames == (frames if reason is None else frames[: len(own_frames)])


def decoded(decoder: Decoder, reads: Sequence[bytes]) -> Outcome:
    frames: list[Frame] = []
    try:
        for read in reads:
            frames += decoder.feed(read)
        frames += decoder.finish()
    except PatchbayError as error:
        return frames, error.reason
    return frames, None


def sealed(data: bytes) -> bytes:
    """The messages that the lengths in `data` mark off, with right checksums; what is no message stays as it is."""
    made = b""
    while len(data) >= 16:
        total = int.from_bytes(data[:4], "big")
        if not 16 <= total <= len(data):
            break
        body = data[:8] + pack("!I", crc32(data[:8])) + data[12 : total - 4]
        made += body + pack("!I", crc32(body))
        data = data[total:]
    return made + data
