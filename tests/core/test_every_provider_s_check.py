"""What each provider is asked to test a connector and to list its models: the request itself, for every type.

A check is the cheapest that proves the credential: it costs nothing, and it is no call with a limit on its tokens, as
models that reason would refuse one.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec
import pytest
from tests.support import answers, make
from tests.support.bench import PLANTED, Bench
from tests.support.provider import Script

from patchbay_server.adapters.registry import BUILT_IN
from patchbay_server.core.connectors import MODELS_AGE_MAX_S
from patchbay_server.core.listing import Query
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.types import CheckResult

ME: Final = make.caller()
KEY: Final = f"{PLANTED}-key-0001"
LIST: Final = {"object": "list", "data": [{"id": "b", "object": "model"}, {"id": "a", "object": "model"}]}


class Provider(msgspec.Struct, frozen=True, kw_only=True):
    """A provider, as the root of its API is asked.

    Attributes:
        credential: its fields beside the key and the address.
        model: of the connector.
        check: method and path of the request that tests a connector with that model.
        bare_check: the same of a connector without a model.
        lists: path and answer of each request that lists models, which come to "a" and "b".
    """

    credential: Mapping[str, Any] = {}
    address: str = "endpoint"
    model: str = "model-1"
    check: tuple[str, str]
    bare_check: tuple[str, str]
    lists: tuple[tuple[str, Any], ...] = (("/models", LIST),)
    key_header: tuple[str, str] = ("authorization", f"Bearer {KEY}")


def gemini(name: str) -> dict[str, Any]:
    return {"name": f"models/{name}", "supportedGenerationMethods": ["generateContent"]}


PROVIDERS: Final = {
    "openai": Provider(check=("GET", "/models/model-1"), bare_check=("GET", "/models")),
    "openai_compatible": Provider(address="base_url", check=("GET", "/models"), bare_check=("GET", "/models")),
    "anthropic": Provider(
        check=("GET", "/models/model-1"),
        bare_check=("GET", "/models?limit=1"),
        lists=(
            ("/models?limit=1000", {"data": [{"id": "b"}], "has_more": True, "last_id": "b"}),
            ("/models?limit=1000&after_id=b", {"data": [{"id": "a"}], "has_more": False, "last_id": "a"}),
        ),
        key_header=("x-api-key", KEY),
    ),
    "gemini": Provider(
        check=("GET", "/models/model-1"),
        bare_check=("GET", "/models?pageSize=1"),
        lists=(
            ("/models?pageSize=1000", {"models": [gemini("b")], "nextPageToken": "more"}),
            ("/models?pageSize=1000&pageToken=more", {"models": [gemini("a")]}),
        ),
        key_header=("x-goog-api-key", KEY),
    ),
    "azure_openai": Provider(
        credential={"deployment": "chat"},
        check=("GET", "/models"),
        bare_check=("GET", "/models"),
        key_header=("api-key", KEY),
    ),
    "bedrock": Provider(
        credential={"region": "us-east-1", "model_id": "amazon.nova-pro-v1:0"},
        check=("POST", "/model/model-1/count-tokens"),
        bare_check=("POST", "/model/amazon.nova-pro-v1%3A0/count-tokens"),
        lists=(
            ("/foundation-models?byOutputModality=TEXT", {"modelSummaries": [{"modelId": "b"}]}),
            ("/inference-profiles?maxResults=1000", {"inferenceProfileSummaries": [{"inferenceProfileId": "a"}]}),
        ),
    ),
    "openrouter": Provider(
        model="maker/model-1", check=("GET", "/key"), bare_check=("GET", "/key"), lists=(("/models", LIST),)
    ),
    "xai": Provider(check=("GET", "/api-key"), bare_check=("GET", "/api-key")),
}


def test_every_type_is_here() -> None:
    assert {adapter.info.type for adapter in BUILT_IN} == PROVIDERS.keys()


async def connect(bench: Bench, connector_type: str, model: str | None) -> Provider:
    """A connector `one` to the provider."""
    provider = PROVIDERS[connector_type]
    credential = {"api_key": KEY, **provider.credential, provider.address: bench.provider.url("one")}
    await bench.add("one", type=connector_type, credential=credential, model_hint=model)
    return provider


def scripts(provider: Provider) -> list[Script]:
    return [answers.json_answer(answer) for _, answer in provider.lists]


def check_requests(bench: Bench, provider: Provider, *expected: tuple[str, str]) -> None:
    made = bench.provider.asked("one")
    assert [(request.method, request.path.removeprefix("/one")) for request in made] == [*expected]
    name, value = provider.key_header
    assert {request.headers[name] for request in made} == {value}
    assert all(b"max" not in request.body.lower() for request in made), "no limit on tokens"
    assert all(KEY not in request.path for request in made)


@pytest.mark.parametrize("connector_type", PROVIDERS)
@pytest.mark.parametrize("with_model", [True, False], ids=["model", "bare"])
async def test_a_test_is_one_free_request(bench: Bench, connector_type: str, with_model: bool) -> None:
    provider = await connect(bench, connector_type, PROVIDERS[connector_type].model if with_model else None)
    bench.provider.answer(answers.json_answer(LIST), name="one")
    verdict, _ = await bench.connectors.test(ME, "acme", "one", "")
    assert verdict.result is CheckResult.OK
    check_requests(bench, provider, provider.check if with_model else provider.bare_check)


@pytest.mark.parametrize("connector_type", PROVIDERS)
@pytest.mark.parametrize(
    ("status", "result"),
    [
        (401, CheckResult.AUTH_INVALID),
        (429, CheckResult.RATE_LIMITED),
        (500, CheckResult.PROVIDER_UNAVAILABLE),
        (503, CheckResult.PROVIDER_UNAVAILABLE),
    ],
)
async def test_what_a_refused_check_means_is_told(
    bench: Bench, connector_type: str, status: int, result: CheckResult
) -> None:
    await connect(bench, connector_type, None)
    bench.provider.answer(answers.json_answer({}, status=status), name="one")
    verdict, _ = await bench.connectors.test(ME, "acme", "one", "")
    assert verdict.result is result


async def models(bench: Bench) -> tuple[list[str], bool]:
    held, page = await bench.connectors.models(ME, "acme", "one", Query())
    return [model.id.removeprefix("models/") for model in page.items], held.stale


@pytest.mark.parametrize("connector_type", PROVIDERS)
async def test_models_are_listed_page_by_page_and_then_held_for_an_hour(bench: Bench, connector_type: str) -> None:
    provider = await connect(bench, connector_type, None)
    bench.provider.answer(*scripts(provider), name="one")
    assert await models(bench) == (["a", "b"], False)
    bench.clock.jump(MODELS_AGE_MAX_S - 1)
    assert await models(bench) == (["a", "b"], False)
    check_requests(bench, provider, *(("GET", path) for path, _ in provider.lists))


@pytest.mark.parametrize("connector_type", PROVIDERS)
@pytest.mark.parametrize(
    "last", [answers.json_answer({}, status=500), answers.json_answer("no list")], ids=["unavailable", "unreadable"]
)
async def test_the_last_good_list_is_served_when_any_page_of_the_next_fails(
    bench: Bench, connector_type: str, last: Script
) -> None:
    provider = await connect(bench, connector_type, None)
    bench.provider.answer(*scripts(provider), *scripts(provider)[:-1], last, *scripts(provider), name="one")
    assert await models(bench) == (["a", "b"], False)
    bench.clock.jump(MODELS_AGE_MAX_S)
    assert await models(bench) == (["a", "b"], True)
    assert await models(bench) == (["a", "b"], False), "the provider is asked again at once"


@pytest.mark.parametrize("connector_type", PROVIDERS)
async def test_without_a_good_list_an_unreadable_one_is_told_as_that(bench: Bench, connector_type: str) -> None:
    await connect(bench, connector_type, None)
    bench.provider.answer(answers.json_answer("no list"), name="one")
    with pytest.raises(PatchbayError) as told:
        await models(bench)
    assert told.value.reason is Reason.UPSTREAM_MALFORMED_RESPONSE
