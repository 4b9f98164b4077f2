"""The provider's id of a request reaches the caller from every provider, with an answer and with a failure."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec
import pytest
from tests.support import answers, make
from tests.support.bench import PLANTED, Bench, assembled
from tests.support.clock import Clock
from tests.support.provider import Cut, Script

from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.types import AuditType

CLAUDE_ANSWER = {"type": "message", "id": "msg_1", "model": "claude-x", "content": [], "stop_reason": "end_turn"}
GEMINI_ANSWER = {"candidates": [{"content": {}, "finishReason": "STOP"}], "responseId": "r-1"}
CONVERSE_ANSWER = {"output": {"message": {"role": "assistant", "content": [{"text": "hi"}]}}, "stopReason": "end_turn"}
CHAT_ANSWER = {
    "id": "chatcmpl-1",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
}
RESPONSES_ANSWER = {"id": "resp_1", "status": "completed", "output": []}

PROVIDERS = {
    "openai": ("gpt-4o", "x-request-id", CHAT_ANSWER),
    "openai_compatible": ("small", "x-request-id", CHAT_ANSWER),
    "azure_openai": ("gpt-4o", "apim-request-id", CHAT_ANSWER),
    "xai": ("grok-3", "x-request-id", CHAT_ANSWER),
    "openrouter": ("some/model", "x-request-id", CHAT_ANSWER),
    "anthropic": ("claude-opus-5-5", "request-id", CLAUDE_ANSWER),
    "gemini": ("gemini-3.8-flash", "x-goog-request-id", GEMINI_ANSWER),
    "bedrock": ("mistral.mistral-large-3", "x-amzn-requestid", CONVERSE_ANSWER),
}
"""By connector type: a model, the header that names the request, and a short answer."""


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    """A gateway without a connector."""
    async with assembled(clock=Clock()) as bench:
        yield bench


async def add(bench: Bench, connector_type: str) -> None:
    root = bench.provider.url("main")
    own = {
        "openai_compatible": {"base_url": root},
        "azure_openai": {"deployment": "gpt-4o", "endpoint": root},
        "bedrock": {"region": "eu-central-1", "model_id": "mistral.mistral-large-3", "endpoint": root},
    }
    fields: dict[str, Any] = own.get(connector_type, {"endpoint": root})
    connector = make.connector("main", type=connector_type)
    sealed = bench.vault.seal(connector.uid, {"api_key": f"{PLANTED}-main", **fields})
    connector = msgspec.structs.replace(connector, sealed=sealed)
    await bench.store.create_connector(connector, bench.audit(AuditType.CREATED, connector))
    await bench.snapshots.refresh()


def answered(connector_type: str, id_: str, *, body: Mapping[str, Any] | None = None, status: int = 200) -> Script:
    _, header, answer = PROVIDERS[connector_type]
    return answers.json_answer(answer if body is None else body, status=status, headers={header: id_})


@pytest.mark.parametrize("connector_type", PROVIDERS)
async def test_the_route_names_the_request_as_the_provider_does(bench: Bench, connector_type: str) -> None:
    await add(bench, connector_type)
    bench.provider.answer(answered(connector_type, "req-1"))
    answer = await bench.chat(model=PROVIDERS[connector_type][0])
    assert answer.route.upstream_request_id == "req-1"


@pytest.mark.parametrize("connector_type", PROVIDERS)
async def test_a_failure_names_the_request_as_the_provider_does(bench: Bench, connector_type: str) -> None:
    await add(bench, connector_type)
    bench.provider.answer(answered(connector_type, "req-1", body={}, status=500))
    with pytest.raises(PatchbayError) as caught:
        await bench.chat(model=PROVIDERS[connector_type][0])
    assert caught.value.upstream is not None
    assert caught.value.upstream.upstream_request_id == "req-1"


@pytest.mark.parametrize(
    "script",
    [
        answers.openai_interrupted(Cut()),
        answers.openai_interrupted(),
        answers.openai_interrupted(answers.event({"error": {"message": "x", "code": 500}})),
        [answers.EVENT_STREAM],
        [answers.EVENT_STREAM, answers.event("no JSON")],
    ],
    ids=["cut", "without its end", "error within", "empty", "malformed"],
)
async def test_an_answer_that_fails_on_its_way_names_its_request_and_status(bench: Bench, script: Script) -> None:
    await add(bench, "openai_compatible")
    bench.provider.answer(script)
    with pytest.raises(PatchbayError) as caught:
        await bench.stream()
    failure = caught.value.upstream
    assert failure is not None
    assert (failure.upstream_request_id, failure.http_status) == ("req-1", 200)
    recorded = await bench.call()
    assert recorded.attempts[-1].closed.failure.upstream_request_id == "req-1"


@pytest.mark.parametrize("header", ["", "with blanks in it", "x" * 129])
async def test_what_looks_like_no_id_is_not_repeated_and_the_body_names_the_answer(bench: Bench, header: str) -> None:
    await add(bench, "gemini")
    bench.provider.answer(answered("gemini", header))
    answer = await bench.chat(model="gemini-3.8-flash")
    assert answer.route.upstream_request_id == "r-1"


async def test_a_key_that_the_provider_repeats_as_its_id_is_hidden(bench: Bench) -> None:
    await add(bench, "anthropic")
    key = f"{PLANTED}-main"
    bench.provider.answer(answered("anthropic", key), answered("anthropic", key, body={}, status=400))
    answer = await bench.chat(model="claude-opus-5-5")
    assert answer.route.upstream_request_id == "***"
    with pytest.raises(PatchbayError) as caught:
        await bench.chat(model="claude-opus-5-5")
    assert caught.value.reason is Reason.UPSTREAM_REJECTED_REQUEST
    assert caught.value.upstream is not None
    assert caught.value.upstream.upstream_request_id == "***"
