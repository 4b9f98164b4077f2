"""The golden transcripts of every type once more, from a socket and through the whole core: in one piece, a byte at a
time, and cancelled in their middle.
"""

import asyncio
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from tests.support.bench import Bench
from tests.support.provider import Head, Script, Silence

from patchbay_server.adapters.folding import is_assigned
from patchbay_server.adapters.registry import BUILT_IN
from patchbay_server.core.origin import mark
from patchbay_server.errors import PatchbayError
from patchbay_server.testing.adapter_suite import GoldenCase, golden_cases
from patchbay_server.testing.stream_rules import outcome
from patchbay_server.types import CallState, ChatCompleted, ChatRequest, Part, TextDelta, ToolCallPart
from patchbay_server.wire.eventstream import CONTENT_TYPE

GOLDEN: Final = Path(__file__).parents[1] / "golden"
CLOSED_S_MAX: Final = 1.0
SECRETS: Final[dict[str, dict[str, Any]]] = {
    "azure_openai": {"deployment": "chat"},
    "bedrock": {"region": "us-east-1", "model_id": "amazon.nova-pro-v1:0"},
}
CASES: Final = {
    f"{adapter.info.type}-{case.path.name}": (adapter.info.type, case)
    for adapter in BUILT_IN
    for case in golden_cases(GOLDEN / adapter.info.type, SECRETS.get(adapter.info.type, {}))
    if case.wire is not None and case.call.streaming
}


def longest(connector_type: str) -> GoldenCase:
    """The transcript with the most deltas of text."""
    own = [case for type_, case in CASES.values() if type_ == connector_type and case.expected.error is None]
    return max(own, key=lambda case: sum(isinstance(event, TextDelta) for event in case.expected.events))


def head(case: GoldenCase) -> Head:
    return Head(headers={"content-type": CONTENT_TYPE if (case.path / "wire.aws").exists() else "text/event-stream"})


async def connect(bench: Bench, connector_type: str, case: GoldenCase, script: Script) -> ChatRequest:
    """A connector whose provider answers so, and the request of the case for it."""
    # The key is the bench's, so that it notices where it is told.
    kept = {name: value for name, value in case.secret.reveal().items() if "key" not in name and "token" not in name}
    kept = SECRETS.get(connector_type, {}) | kept
    address = {name: bench.provider.url("one") for name in ("endpoint", "base_url") if name in kept}
    await bench.add("one", type=connector_type, credential=kept | address)
    bench.provider.answer(script, name="one")
    messages = tuple(
        msgspec.structs.replace(message, parts=tuple(mark(part, connector_type) for part in message.parts))
        for message in case.call.prompt.messages
    )
    prompt = msgspec.structs.replace(case.call.prompt, messages=messages)
    return ChatRequest(prompt=prompt, owner="acme", connector="one", model=case.call.model)


def without_own_ids(part: Part) -> Part:
    """Ids that a provider did not give are made of the call's, which differs; what is left of them is their number."""
    if isinstance(part, ToolCallPart) and is_assigned(part.id):
        return msgspec.structs.replace(part, id=part.id.rpartition("_")[2])
    return part


@pytest.mark.parametrize(
    "bytewise", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["in one piece", "a byte at a time"]
)
@pytest.mark.parametrize("name", CASES)
async def test_a_transcript_is_the_same_answer_through_the_gateway(bench: Bench, name: str, bytewise: bool) -> None:
    connector_type, case = CASES[name]
    assert case.wire is not None
    pieces = [case.wire[at : at + 1] for at in range(len(case.wire))] if bytewise else [case.wire]
    request = await connect(bench, connector_type, case, [head(case), *pieces])
    if case.expected.error is not None:
        with pytest.raises(PatchbayError) as failed:
            await bench.stream(request)
        assert failed.value.reason is case.expected.error.reason
        return
    expected = outcome(case.expected.events)
    assert expected.end is not None
    last = (await bench.stream(request))[-1]
    assert isinstance(last, ChatCompleted)
    answer = last.answer
    given = [without_own_ids(part) for part in answer.message.parts]
    assert given == [without_own_ids(mark(part, connector_type)) for part in expected.parts]
    assert answer.finish_reason is expected.end.finish_reason
    assert answer.provider_finish_reason == expected.end.provider_finish_reason
    if expected.end.usage is not None:
        assert answer.usage.total_tokens == expected.end.usage.total_tokens


@pytest.mark.parametrize("connector_type", [adapter.info.type for adapter in BUILT_IN])
async def test_a_cancel_lets_every_provider_go(bench: Bench, connector_type: str) -> None:
    case = longest(connector_type)
    assert case.wire is not None
    request = await connect(bench, connector_type, case, [head(case), case.wire[: len(case.wire) * 2 // 3], Silence()])
    begun = asyncio.Event()

    async def read() -> None:
        async for batch in bench.batches(request):
            assert batch
            begun.set()

    call = asyncio.create_task(read())
    async with asyncio.timeout(CLOSED_S_MAX):
        await bench.provider.received()
        await begun.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await bench.provider.connections[-1].closed.wait()
    assert (await bench.call()).state is CallState.CANCELLED
