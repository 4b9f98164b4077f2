"""A provider's answer that ends, breaks or stalls after its n-th byte, for every n, in each dialect.

What comes before the terminal marker is never sold as a whole answer, and never told as a fault of the gateway's.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec
import pytest
from tests.faults.sweep import Case, run, shared
from tests.support import answers
from tests.support.bench import QUIET, Bench, assembled
from tests.support.provider import Cut, Raw, Reset, Script, Silence, Step

from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.types import Call, CallRow, CallState, ChatAnswer, ChatRequest, FallbackMode
from patchbay_server.wire.upstream import Limits

GOLDEN: Final = Path(__file__).parents[1] / "golden"
HASTY: Final = Limits(connect_s=2.0, first_byte_s=0.01, idle_s=0.01)
STRIDE: Final = 29
"""How many bytes are stepped over before a commit. None is in the slow tests, but where time has to pass."""
CALLS_MAX: Final = 200
"""Calls on one bench: its store in memory is not made for many."""

# --- answers as bytes -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wire:
    """A recorded answer.

    Attributes:
        marker: the bytes without which the streamed answer is not whole; what follows them may be missing.
    """

    name: str
    type: str
    folder: str
    marker: bytes
    media: str = "text/event-stream"
    credential: Mapping[str, str] = field(default_factory=dict)

    def request(self) -> ChatRequest:
        call = msgspec.json.decode((GOLDEN / self.folder / "call.json").read_bytes(), type=Call)
        return ChatRequest(prompt=call.prompt, model=call.model)

    def body(self, *, streaming: bool) -> bytes:
        (streamed,) = (GOLDEN / self.folder).glob("wire.*")
        return streamed.read_bytes() if streaming else (GOLDEN / self.folder / "body.json").read_bytes().strip()

    def media_of(self, *, streaming: bool) -> str:
        return self.media if streaming else "application/json"


WIRES: Final = {
    wire.name: wire
    for wire in (
        Wire("openai", "openai", "openai/text", b"[DONE]"),
        Wire("responses", "openai", "openai/responses_items_only_at_the_end", b'"type":"response.completed"'),
        Wire(
            "compatible", "openai_compatible", "openai_compatible/vllm_usage_on_every_chunk", b'"finish_reason":"stop"'
        ),
        Wire("anthropic", "anthropic", "anthropic/text", b"event: message_stop"),
        Wire("gemini", "gemini", "gemini/text", b'"finishReason":"STOP"'),
        Wire(
            "bedrock",
            "bedrock",
            "bedrock/text",
            b'"stopReason":"end_turn"',
            media="application/vnd.amazon.eventstream",
            credential={"region": "eu-central-1", "model_id": "amazon.nova-pro-v1:0"},
        ),
    )
}


def framed(body: bytes, media: str, *, closed: bool) -> bytes:
    """A whole HTTP answer: in two chunks, or with `closed` as long as the connection lasts."""
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {media}\r\n".encode()
    if closed:
        return head + b"connection: close\r\n\r\n" + body
    half = len(body) // 2
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:half], body[half:]))
    return head + b"transfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


# --- ends -------------------------------------------------------------------------------------------------------------

_NO_STATUS: Final = {Reason.UPSTREAM_UNAVAILABLE, Reason.UPSTREAM_MALFORMED_RESPONSE}
ENDS: Final[Mapping[str, tuple[Step, bool, set[Reason]]]] = {
    "cut": (Cut(), False, _NO_STATUS | {Reason.UPSTREAM_STREAM_BROKEN}),
    "reset": (Reset(), False, _NO_STATUS | {Reason.UPSTREAM_STREAM_BROKEN}),
    "stall": (Silence(), False, {Reason.UPSTREAM_TIMEOUT}),
    "as if whole": (
        Cut(),
        True,
        _NO_STATUS | {Reason.UPSTREAM_TRUNCATED, Reason.UPSTREAM_EMPTY_STREAM, Reason.UPSTREAM_STREAM_BROKEN},
    ),
}
"""What follows the n-th byte, whether the answer is one that ends with its connection, and what it may be called."""


async def _asked(bench: Bench, request: ChatRequest, *, streaming: bool) -> ChatAnswer | PatchbayError:
    """What the caller of one call gets."""
    try:
        async with bench.gateway.stream(bench.caller, request, streaming=streaming) as call:
            return await call.answer()
    except PatchbayError as error:
        return error


async def _row(bench: Bench, end: ChatAnswer | PatchbayError) -> CallRow:
    if isinstance(end, PatchbayError):
        assert end.partial is not None
    call_id = end.partial.call_id if isinstance(end, PatchbayError) and end.partial else end.call_id  # type: ignore[union-attr]
    row = await bench.store.find_call(call_id)
    assert row is not None
    assert row.closed is not None
    return row


async def _sweep(wire: Wire, end: str, *, streaming: bool, stride: int) -> None:
    raw = framed(wire.body(streaming=streaming), wire.media_of(streaming=streaming), closed=ENDS[end][1])
    for lengths in batched(range(0, len(raw), stride), CALLS_MAX):
        async with assembled(limits=HASTY if end == "stall" else QUIET) as bench:
            await bench.add(type=wire.type, credential=dict(wire.credential), model_hint="")
            await _ended_after(bench, wire, raw, lengths, end, streaming=streaming)


async def _ended_after(
    bench: Bench, wire: Wire, raw: bytes, lengths: Sequence[int], end: str, *, streaming: bool
) -> None:
    """Let the answer `raw` end after each of `lengths` bytes."""
    step, _, reasons = ENDS[end]
    body = wire.body(streaming=streaming)
    whole_from = raw.rindex(wire.marker) + 1 if streaming else raw.rindex(body[-1:])
    request = wire.request()
    bench.provider.answer([Raw(raw), Cut()])
    whole = await _asked(bench, request, streaming=streaming)
    assert isinstance(whole, ChatAnswer)
    for length in lengths:
        bench.provider.answer([Raw(raw[:length]), step])
        got = await _asked(bench, request, streaming=streaming)
        row = await _row(bench, got)
        assert len(row.attempts) == 1
        if isinstance(got, ChatAnswer):
            assert length >= whole_from, f"{raw[:length]!r} is not whole"
            assert (got.message, got.finish_reason) == (whole.message, whole.finish_reason)
            assert row.state is CallState.SUCCEEDED
        else:
            assert got.reason in reasons, f"{got} after {raw[:length]!r}"
            assert (row.state, row.closed and row.closed.reason) == (CallState.FAILED, got.reason)


def batched(numbers: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (numbers[start : start + size] for start in range(0, len(numbers), size))


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("name", WIRES)
async def test_an_answer_that_ends_early_is_no_answer(name: str, streaming: bool, end: str) -> None:
    await _sweep(WIRES[name], end, streaming=streaming, stride=STRIDE * 3 if end == "stall" else STRIDE)


@pytest.mark.slow
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("name", WIRES)
async def test_an_answer_that_ends_at_any_byte_is_no_answer(name: str, streaming: bool, end: str) -> None:
    await _sweep(WIRES[name], end, streaming=streaming, stride=STRIDE if end == "stall" else 1)


# --- with somebody to fall back to ------------------------------------------------------------------------------------


def _broken_first(script: Script) -> Case:
    """A call whose first provider answers with `script`, and for which another one is there."""

    async def arrange(bench: Bench, whole: Script) -> None:
        await shared(bench, whole, script)

    return Case("broken first", arrange, {"fallback": FallbackMode.ORG_DEFAULT}, attempts=2, fallbacks=1)


async def _sweep_fallback(end: str, *, streaming: bool, stride: int) -> None:
    step, closed, reasons = ENDS[end]
    events = answers.openai_events()
    body = b"".join(events) if streaming else answers.openai_unary()[1]
    assert isinstance(body, bytes)
    raw = framed(body, "text/event-stream" if streaming else "application/json", closed=closed)
    # Of a whole answer nothing was told before it was whole.
    first_word_at = raw.index(b"The sea") if streaming else len(raw)
    for length in range(0, len(raw), stride):
        case = _broken_first([Raw(raw[:length]), step])
        async with run(case, streaming=streaming, limits=HASTY if end == "stall" else QUIET) as this:
            await this.make()
            await this.check()
            if length <= first_word_at:
                assert (len(this.asked), this.error) == (2, None), "somebody else could have answered"
            if this.error is not None:
                assert this.reason in reasons
                assert len(this.asked) == 1, "what was begun by one connector is not ended by another"


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("streaming", [False, True], ids=["chat", "stream"])
async def test_an_answer_that_ends_before_its_first_word_is_another_s_to_give(streaming: bool, end: str) -> None:
    await _sweep_fallback(end, streaming=streaming, stride=STRIDE)


@pytest.mark.slow
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("streaming", [False, True], ids=["chat", "stream"])
async def test_an_answer_that_ends_at_any_byte_before_its_first_word_is_another_s_to_give(
    streaming: bool, end: str
) -> None:
    await _sweep_fallback(end, streaming=streaming, stride=STRIDE if end == "stall" else 1)
