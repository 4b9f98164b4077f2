"""The relatives of the OpenAI API through the whole gateway, over real connections."""

from pathlib import Path

import msgspec
import pytest
from tests.support import answers, make
from tests.support.bench import Bench

from patchbay_server.adapters.registry import BUILT_IN
from patchbay_server.types import AuditType, CheckResult, ConnectorState, FinishReason

GOLDEN = Path(__file__).parent.parent / "golden"


async def add(bench: Bench, connector_type: str, **fields: str) -> None:
    """A connector of the type, whose provider is the bench's."""
    connector = make.connector("relative", type=connector_type, model_hint="some-model")
    secret = {"endpoint": f"{bench.provider.url('relative')}/openai/v1", "api_key": "key-0123456789", **fields}
    sealed = bench.vault.seal(connector.uid, secret)
    await bench.store.create_connector(
        msgspec.structs.replace(connector, sealed=sealed), bench.audit(AuditType.CREATED, connector)
    )
    await bench.snapshots.refresh()


@pytest.mark.parametrize(
    ("connector_type", "case", "fields", "header"),
    [
        ("azure_openai", "tools", {"deployment": "chat-prod"}, ("api-key", "key-0123456789")),
        ("openrouter", "reasoning_details_before_a_tool", {}, ("authorization", "Bearer key-0123456789")),
        ("xai", "tools_in_one_chunk_and_an_empty_finish_reason", {}, ("authorization", "Bearer key-0123456789")),
    ],
)
async def test_an_answer_comes_through_and_is_recorded_once(
    bench: Bench, connector_type: str, case: str, fields: dict[str, str], header: tuple[str, str]
) -> None:
    await add(bench, connector_type, **fields)
    bench.provider.answer(
        [answers.EVENT_STREAM, (GOLDEN / connector_type / case / "wire.sse").read_bytes()], name="relative"
    )
    answer = await bench.streamed(connector="relative")
    assert answer.finish_reason is FinishReason.TOOL_CALLS
    [request] = bench.provider.asked("relative")
    assert request.path == "/relative/openai/v1/chat/completions"
    assert request.headers[header[0]] == header[1]
    await bench.check_invariants()


@pytest.mark.parametrize("connector_type", ["azure_openai", "openrouter", "xai"])
async def test_a_check_that_the_provider_answers_proves_the_key(bench: Bench, connector_type: str) -> None:
    await add(bench, connector_type, **({"deployment": "chat-prod"} if connector_type == "azure_openai" else {}))
    bench.provider.answer(answers.json_answer({"data": []}), answers.error(401), name="relative")
    for result in (CheckResult.OK, CheckResult.AUTH_INVALID):
        verdict, _ = await bench.connectors.test(make.caller(), make.OWNER, "relative", "")
        assert verdict.result is result


async def test_a_key_that_its_provider_has_blocked_is_found_out_by_a_check_with_status_200(bench: Bench) -> None:
    await add(bench, "xai")
    bench.provider.answer(answers.json_answer({"name": "ci", "api_key_blocked": True}), name="relative")
    verdict, view = await bench.connectors.test(make.caller(), make.OWNER, "relative", "")
    assert (verdict.result, view.connector.state) == (CheckResult.AUTH_INVALID, ConnectorState.AUTH_INVALID)


def test_every_type_of_the_contract_is_built_in() -> None:
    assert {adapter.info.type for adapter in BUILT_IN} == {
        "openai",
        "openai_compatible",
        "anthropic",
        "gemini",
        "azure_openai",
        "bedrock",
        "xai",
        "openrouter",
    }
