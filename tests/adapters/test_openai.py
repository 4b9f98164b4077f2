"""The OpenAI family keeps the rules of the published suite, and its own."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from patchbay_server.adapters.openai_chat import OPENAI, OPENAI_COMPATIBLE
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.testing.adapter_suite import NOW, AdapterSuite, ErrorCase, ModelSuite
from patchbay_server.types import (
    Call,
    Effort,
    FunctionTool,
    GenerationConfig,
    MediaPart,
    Message,
    NoticeCode,
    Prompt,
    ReasoningConfig,
    Role,
    Secret,
    TextPart,
    ToolCallPart,
    ToolChoice,
    ToolMode,
    ToolResultPart,
)
from patchbay_server.wire.http import HttpAnswer

GOLDEN = Path(__file__).parent.parent / "golden"
KEY = {"api_key": "sk-proj-test-0123456789"}
SHOWN_UNASKED = {"config.reasoning.include_text": "servers that show reasoning show it unasked"}
LOCAL = {"base_url": "http://localhost:8000/v1", "api_key": "local-test-0123456789"}

TOOLLESS = {**LOCAL, "tools": False}


def error(status: int, reason: Reason, /, name: str, field: str = "", **members: Any) -> ErrorCase:
    """An answer in OpenAI's own envelope."""
    envelope = {"message": "canary", "type": "invalid_request_error", "param": None, "code": None, **members}
    return ErrorCase(name=name, status=status, body=json.dumps({"error": envelope}), reason=reason, field=field)


def shaped(status: int, reason: Reason, /, name: str, body: Any, field: str = "") -> ErrorCase:
    """An answer in another server's shape."""
    text = body if isinstance(body, str) else json.dumps(body)
    return ErrorCase(name=name, status=status, body=text, reason=reason, field=field)


QUOTA, AUTH, RATE = (
    Reason.UPSTREAM_BILLING_EXHAUSTED,
    Reason.UPSTREAM_CREDENTIAL_REJECTED,
    Reason.UPSTREAM_RATE_LIMITED,
)
BUSY, REJECTED, MODEL = Reason.UPSTREAM_UNAVAILABLE, Reason.UPSTREAM_REJECTED_REQUEST, Reason.MODEL_NOT_FOUND
LONG, UNSUPPORTED, POLICY = (
    Reason.CONTEXT_LENGTH_EXCEEDED,
    Reason.FEATURE_UNSUPPORTED,
    Reason.CONTENT_POLICY_VIOLATION,
)
ADDRESS = Reason.CONNECTOR_MISCONFIGURED

OPENAI_ERRORS = (
    error(401, AUTH, "wrong key", code="invalid_api_key"),
    error(401, AUTH, "not a member", code="invalid_organization"),
    error(401, AUTH, "address not allowed", code="ip_not_authorized"),
    error(401, REJECTED, "restricted key", message="Missing scopes: model.request"),
    error(403, REJECTED, "restricted key, as 403", message="You have insufficient permissions. Missing scopes: x"),
    error(403, AUTH, "country", code="unsupported_country_region_territory"),
    error(403, MODEL, "project without the model", code="model_not_found"),
    *(
        error(429, QUOTA, f"quota {code}", type="insufficient_quota", code=code)
        for code in (
            None,
            "insufficient_quota",
            "credit_balance_exhausted",
            "organization_spend_limit_exceeded",
            "project_spend_limit_exceeded",
            "organization_usage_limit_exceeded",
        )
    ),
    error(429, QUOTA, "quota, older form", code="insufficient_quota"),
    error(429, QUOTA, "hard limit", code="billing_hard_limit_reached"),
    error(402, QUOTA, "payment required"),
    error(429, RATE, "tokens a minute", type="tokens", code="rate_limit_exceeded"),
    error(429, RATE, "slow down", type="rate_limit_error", code="slow_down"),
    ErrorCase(
        name="a wait in milliseconds", status=429, headers={"retry-after-ms": "1500"}, reason=RATE, retry_after_s=1.5
    ),
    ErrorCase(
        name="a wait in words",
        status=429,
        body='{"error":{"message":"Limit reached. Please try again in 1m7.5s. Visit y.","code":"rate_limit_exceeded"}}',
        reason=RATE,
        retry_after_s=67.5,
    ),
    ErrorCase(
        name="a wait in a header and in words",
        status=429,
        headers={"retry-after": "3"},
        body='{"error":{"message":"Please retry after 17 seconds."}}',
        reason=RATE,
        retry_after_s=3,
    ),
    error(404, UNSUPPORTED, "the other API", message="This model is only supported in v1/responses and not in ..."),
    error(
        400,
        UNSUPPORTED,
        "the other API, for tools",
        message="Function tools with reasoning_effort are not supported. Please use /v1/responses or ...",
    ),
    error(404, ADDRESS, "no such API", message="Invalid URL (POST /v1/responses)"),
    error(400, UNSUPPORTED, "no eyes", message="Invalid content type. image_url is only supported by certain models."),
    error(400, LONG, "too long", code="context_length_exceeded", param="messages"),
    error(404, MODEL, "model", code="model_not_found"),
    error(404, MODEL, "model, told by param", param="model"),
    error(404, ADDRESS, "no such path", message="Invalid URL (POST /v1/v1/chat/completions)"),
    error(404, REJECTED, "no such file", param="messages[0].content[1].file.file_id", field="messages"),
    error(400, UNSUPPORTED, "limit", "config.max_output_tokens", code="unsupported_parameter", param="max_tokens"),
    error(400, UNSUPPORTED, "temperature", "config.temperature", code="unsupported_value", param="temperature"),
    error(400, UNSUPPORTED, "stop", "config.stop_sequences", code="unsupported_parameter", param="stop"),
    error(400, UNSUPPORTED, "effort", "config.reasoning.effort", code="unsupported_value", param="reasoning_effort"),
    error(400, UNSUPPORTED, "effort 2", "config.reasoning.effort", code="unsupported_value", param="reasoning.effort"),
    error(
        400,
        UNSUPPORTED,
        "a tool's schema",
        "tools[3]",
        code="unsupported_value",
        param="tools[3].function.parameters",
    ),
    error(400, UNSUPPORTED, "an option", "provider_options_json", code="unknown_parameter", param="frobnicate"),
    error(400, REJECTED, "bad request naming a field", "response_format", param="response_format"),
    error(400, REJECTED, "bad request naming none"),
    error(400, REJECTED, "invalid prompt", code="invalid_prompt"),
    error(400, POLICY, "content policy", code="content_policy_violation"),
    shaped(
        400,
        POLICY,
        "content filter of Azure",
        {"error": {"code": "content_filter", "innererror": {"code": "ResponsibleAIPolicyViolation"}}},
    ),
    error(500, BUSY, "server error", type="server_error"),
    error(503, BUSY, "overloaded", type="service_unavailable_error", code="server_is_overloaded"),
    shaped(
        400,
        UNSUPPORTED,
        "tools with a model of Ollama's that has none",
        {"error": {"message": "registry.ollama.ai/library/x does not support tools", "type": "api_error"}},
    ),
    shaped(
        400,
        UNSUPPORTED,
        "tools with a vLLM that was not started for them",
        {
            "object": "error",
            "message": '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set',
            "type": "BadRequestError",
            "param": None,
            "code": 400,
        },
    ),
    shaped(
        500,
        UNSUPPORTED,
        "tools with a llama.cpp that was not started for them",
        {"error": {"code": 500, "message": "tools param requires --jinja flag", "type": "server_error"}},
    ),
    shaped(
        422,
        UNSUPPORTED,
        "validation of Mistral",
        {
            "object": "error",
            "message": {"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "canary", "input": 7}]},
            "type": "invalid_request_error",
            "param": None,
            "code": None,
        },
        "config.seed",
    ),
    shaped(
        422,
        UNSUPPORTED,
        "validation of Mistral, flat",
        {
            "object": "Error",
            "message": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "canary"}],
            "type": "invalid_request_error",
            "code": 3001,
        },
        "config.seed",
    ),
    shaped(401, AUTH, "oauth", {"error": "invalid_client", "error_description": "canary"}),
    shaped(301, ADDRESS, "a redirect", ""),
)
COMPATIBLE_ERRORS = (
    shaped(
        400,
        LONG,
        "vllm too long",
        {"object": "error", "message": "This model's maximum context length is 4096 tokens.", "code": 400},
    ),
    shaped(400, LONG, "llama.cpp too long", {"error": {"code": 400, "type": "exceed_context_size_error"}}),
    shaped(
        400,
        LONG,
        "mistral too long",
        {"object": "error", "message": "Prompt contains 9 tokens, too large for model with 8 maximum context length"},
    ),
    shaped(404, MODEL, "vllm model", {"error": {"message": "The model `x` does not exist.", "type": "NotFoundError"}}),
    shaped(404, MODEL, "ollama model", {"error": {"message": 'model "x" not found, try pulling it first'}}),
    shaped(404, MODEL, "ollama native", {"error": "model 'x' not found"}),
    shaped(498, BUSY, "groq flex", {"error": {"message": "canary", "code": "capacity_exceeded"}}),
    shaped(498, BUSY, "groq flex, bare", ""),
    shaped(400, MODEL, "mistral model", {"object": "error", "type": "invalid_model", "code": "1500"}),
    shaped(404, ADDRESS, "fastapi without such a path", {"detail": "Not Found"}),
    shaped(404, ADDRESS, "a page", "<html>not here</html>"),
    shaped(405, ADDRESS, "method not allowed", {"detail": "Method Not Allowed"}),
    shaped(
        422,
        UNSUPPORTED,
        "mistral extra field",
        {"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "canary"}]},
        field="config.seed",
    ),
    shaped(422, REJECTED, "fastapi validation", {"detail": [{"type": "missing", "loc": ["body", "messages"]}]}),
    shaped(401, AUTH, "azure gateway", {"statusCode": 401, "message": "canary"}),
    shaped(
        500,
        UNSUPPORTED,
        "llama.cpp without eyes",
        {"error": {"code": 500, "message": "image input is not supported - hint: ...", "type": "server_error"}},
    ),
    shaped(503, BUSY, "llama.cpp loads", {"error": {"code": 503, "message": "Loading model", "type": "unavailable"}}),
    shaped(403, AUTH, "a page of a firewall", "<html>canary</html>"),
    shaped(402, QUOTA, "openrouter credits", {"error": {"code": 402, "message": "canary"}}),
    shaped(429, RATE, "google's list", [{"error": {"code": 429, "status": "RESOURCE_EXHAUSTED"}}]),
)


class TestOpenAi(AdapterSuite):
    adapter = OPENAI
    secret = KEY
    golden = GOLDEN / "openai"
    model = "gpt-4.1"
    errors = OPENAI_ERRORS


class TestOpenAiModelThatAlwaysReasons(ModelSuite):
    adapter = OPENAI
    secret = KEY
    model = "o4-mini"


class TestOpenAiModelOfToday(ModelSuite):
    adapter = OPENAI
    secret = KEY
    model = "gpt-5.6-sol"


class TestOpenAiModelOnTheResponsesApiOnly(ModelSuite):
    adapter = OPENAI
    secret = KEY
    model = "gpt-5-pro"


class TestOpenAiModelOfTomorrow(ModelSuite):
    adapter = OPENAI
    secret = KEY
    model = "gpt-9-nova"


class TestOpenAiCompatible(AdapterSuite):
    adapter = OPENAI_COMPATIBLE
    secret = LOCAL
    golden = GOLDEN / "openai_compatible"
    without_effect = SHOWN_UNASKED
    errors = COMPATIBLE_ERRORS


class TestOpenAiCompatibleWithoutTools(ModelSuite):
    adapter = OPENAI_COMPATIBLE
    secret = TOOLLESS
    without_effect = SHOWN_UNASKED

    @pytest.mark.skip(reason="the connector's switch says that its server takes no tools")
    def test_embedded_json_keeps_its_key_order_and_its_integers(self) -> None: ...

    @pytest.mark.skip(reason="the connector's switch says that its server takes no tools")
    def test_a_schema_that_is_not_an_object_is_refused_by_name(self) -> None: ...


# --- what each model takes -------------------------------------------------------------------------------------------


def call(model: str, *, streaming: bool = True, **prompt: Any) -> Call:
    hello = Message(role=Role.USER, parts=(TextPart(text="hello"),))
    return Call(id="01", model=model, prompt=Prompt(**{"messages": (hello,), **prompt}), streaming=streaming)


def body_of(asked: Call, secret: dict[str, Any] = KEY) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(OPENAI.prepare(asked, Secret(secret), NOW).request.body)
    return body


def refused_field(asked: Call) -> str:
    with pytest.raises(PatchbayError) as refused:
        OPENAI.prepare(asked, Secret(KEY), NOW)
    assert refused.value.reason is Reason.FEATURE_UNSUPPORTED
    return refused.value.violations[0].field


def effort(level: Effort) -> ReasoningConfig:
    return ReasoningConfig(effort=level)


@pytest.mark.parametrize(
    ("model", "config"),
    [
        ("gpt-4o-mini", GenerationConfig(temperature=0.3, top_p=0.5, stop_sequences=("x",))),
        ("ft:gpt-4o-mini:acme::9x", GenerationConfig(temperature=0.3)),
        ("chatgpt-4o-latest", GenerationConfig(temperature=0.3)),
        ("gpt-5-chat-latest", GenerationConfig(temperature=0.3)),
        ("gpt-5.2-chat-latest", GenerationConfig(temperature=0.3, reasoning=effort(Effort.MEDIUM))),
        ("gpt-5.1", GenerationConfig(temperature=0.3)),
        ("gpt-5.2-2025-12-11", GenerationConfig(temperature=0.3, reasoning=effort(Effort.NONE))),
        ("gpt-5.6-sol", GenerationConfig(temperature=0.3, reasoning=effort(Effort.NONE))),
        ("gpt-9-nova", GenerationConfig(temperature=0.3, stop_sequences=("x",))),
        ("o9", GenerationConfig(temperature=0.3, stop_sequences=("x",))),
        ("some-deployment", GenerationConfig(temperature=0.3, stop_sequences=("x",))),
    ],
)
def test_a_knob_that_the_model_takes_is_sent(model: str, config: GenerationConfig) -> None:
    body = body_of(call(model, config=config))
    assert body["temperature"] == 0.3
    assert body.get("stop", ["x"]) == ["x"]


@pytest.mark.parametrize(
    ("model", "config", "field"),
    [
        ("o3", GenerationConfig(temperature=0.3), "config.temperature"),
        ("o4-mini-2025-04-16", GenerationConfig(stop_sequences=("x",)), "config.stop_sequences"),
        ("gpt-5-mini", GenerationConfig(temperature=0.3), "config.temperature"),
        ("gpt-5-nano", GenerationConfig(top_p=0.5), "config.top_p"),
        ("o3", GenerationConfig(parallel_tool_calls=False), "config.parallel_tool_calls"),
        ("gpt-5", GenerationConfig(presence_penalty=1.0), "config.presence_penalty"),
        ("gpt-5", GenerationConfig(reasoning=effort(Effort.NONE)), "config.reasoning.effort"),
        ("gpt-5", GenerationConfig(reasoning=effort(Effort.XHIGH)), "config.reasoning.effort"),
        ("gpt-5.1", GenerationConfig(temperature=0.3, reasoning=effort(Effort.LOW)), "config.temperature"),
        ("gpt-5.1", GenerationConfig(reasoning=effort(Effort.MINIMAL)), "config.reasoning.effort"),
        ("gpt-5.2", GenerationConfig(reasoning=effort(Effort.MINIMAL)), "config.reasoning.effort"),
        ("gpt-5-search-api", GenerationConfig(temperature=0.3), "config.temperature"),
        ("gpt-4o-mini-search-preview-2025-03-11", GenerationConfig(seed=3), "config.seed"),
        ("gpt-5.6-sol", GenerationConfig(temperature=0.3), "config.temperature"),
        ("gpt-5.6-sol", GenerationConfig(stop_sequences=("x",)), "config.stop_sequences"),
        ("gpt-6-astra", GenerationConfig(temperature=0.3), "config.temperature"),
        ("gpt-4.1", GenerationConfig(reasoning=effort(Effort.LOW)), "config.reasoning.effort"),
        ("gpt-4.1", GenerationConfig(reasoning=ReasoningConfig(budget_tokens=9)), "config.reasoning.budget_tokens"),
        ("gpt-4.1", GenerationConfig(top_k=3), "config.top_k"),
        ("gpt-4.1", GenerationConfig(stop_sequences=tuple("abcde")), "config.stop_sequences"),
    ],
)
def test_a_knob_that_the_model_refuses_is_refused_before_anything_is_sent(
    model: str, config: GenerationConfig, field: str
) -> None:
    assert refused_field(call(model, config=config, tools=(FunctionTool(name="f"),))) == field


def test_a_knob_at_its_default_is_never_refused() -> None:
    config = GenerationConfig(temperature=1.0, top_p=1.0, frequency_penalty=0.0, presence_penalty=0.0)
    assert "temperature" not in body_of(call("o3", config=config))
    assert body_of(call("gpt-4.1", config=config))["temperature"] == 1.0


def test_a_model_that_does_not_reason_need_not_be_told_so() -> None:
    config = GenerationConfig(reasoning=effort(Effort.NONE))
    assert "reasoning_effort" not in body_of(call("gpt-4.1", config=config))
    assert body_of(call("gpt-5.1", config=config))["reasoning_effort"] == "none"


@pytest.mark.parametrize(
    ("model", "role"), [("gpt-4o", "system"), ("gpt-5", "developer"), ("o3", "developer"), ("my-deployment", "system")]
)
def test_instructions_have_the_role_that_the_model_wants(model: str, role: str) -> None:
    messages = (Message(role=Role.SYSTEM, parts=(TextPart(text="be brief"),)),)
    assert body_of(call(model, messages=messages))["messages"][0]["role"] == role


def test_a_cache_mark_goes_where_the_model_takes_one_and_is_left_out_with_one_notice_elsewhere() -> None:
    marked = TextPart(text="long", cache_breakpoint=True)
    messages = (Message(role=Role.USER, parts=(marked, marked)),)
    content = body_of(call("gpt-5.6-sol", messages=messages))["messages"][0]["content"]
    assert [part["prompt_cache_breakpoint"] for part in content] == [{"mode": "explicit"}] * 2
    prepared = OPENAI.prepare(call("gpt-4.1", messages=messages), Secret(KEY), NOW)
    assert [(n.code, n.field) for n in prepared.notices] == [
        (NoticeCode.FIELD_DROPPED, "messages[0].parts[0].cache_breakpoint")
    ]
    assert b"cache" not in prepared.request.body


# --- requests --------------------------------------------------------------------------------------------------------


def test_a_choice_of_a_tool_that_is_not_offered_is_refused() -> None:
    tools = (FunctionTool(name="add"),)
    with pytest.raises(PatchbayError) as refused:
        body_of(call("gpt-4.1", tools=tools, tool_choice=ToolChoice(function_name="sub")))
    assert refused.value.reason is Reason.INVALID_REQUEST
    assert refused.value.violations[0].field == "tool_choice.function_name"


def test_parallel_tool_calls_are_spoken_of_only_when_there_are_tools() -> None:
    config = GenerationConfig(parallel_tool_calls=False)
    assert "parallel_tool_calls" not in body_of(call("gpt-4.1", config=config))
    tools = (FunctionTool(name="add"),)
    assert body_of(call("gpt-4.1", config=config, tools=tools))["parallel_tool_calls"] is False


@pytest.mark.parametrize("uri", ["gs://bucket/a.png", "s3://bucket/a.png", "file:///etc/passwd", "a.png"])
def test_an_address_that_the_provider_does_not_fetch_is_refused(uri: str) -> None:
    messages = (Message(role=Role.USER, parts=(MediaPart(mime_type="image/png", uri=uri),)),)
    assert refused_field(call("gpt-4.1", messages=messages)) == "messages[0].parts[0].media.uri"


def test_a_key_in_the_options_is_refused() -> None:
    with pytest.raises(PatchbayError) as refused:
        body_of(call("gpt-4.1", provider_options_json='{"api_key":"sk-other"}'))
    assert refused.value.violations[0].field == "provider_options_json"


def test_extra_headers_never_replace_the_key() -> None:
    secret = Secret({**LOCAL, "headers": {"Authorization": "Bearer other", "X-Team": "blue"}})
    headers = OPENAI_COMPATIBLE.prepare(call("m"), secret, NOW).request.headers
    assert [value for name, value in headers if name == "authorization"] == [f"Bearer {LOCAL['api_key']}"]
    assert ("x-team", "blue") in headers


# --- addresses, checks, models ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "endpoint", "right_type"),
    [
        ("anthropic/claude-opus-5.5", "", "openrouter"),
        ("gpt-5", "https://openrouter.ai/api/v1", "openrouter"),
        ("gpt-5", "https://API.X.AI/v1", "xai"),
        ("gpt-5", "https://api.groq.com/openai/v1", "openai_compatible"),
        ("gpt-5", "https://api.anthropic.com./v1", "anthropic"),
        ("gpt-5", "https://my-res.openai.azure.com/openai/v1", "azure_openai"),
        ("gpt-5", "https://generativelanguage.googleapis.com/v1beta/openai", "gemini"),
    ],
)
def test_what_belongs_to_another_type_is_refused_with_its_name(model: str, endpoint: str, right_type: str) -> None:
    with pytest.raises(PatchbayError, match=right_type) as refused:
        OPENAI.check_model(model, Secret({**KEY, "endpoint": endpoint}))
    assert refused.value.reason is Reason.CONNECTOR_MISCONFIGURED


def test_proxies_regions_and_any_model_of_a_compatible_server_are_taken() -> None:
    for endpoint in ("", "https://eu.api.openai.com/v1", "https://gateway.example/openai/v1", "http://[::1"):
        OPENAI.check_model("ft:gpt-4o:acme::1", Secret({**KEY, "endpoint": endpoint}))
    OPENAI_COMPATIBLE.check_model("Qwen/Qwen3-8B", Secret({"base_url": "https://openrouter.ai/api/v1"}))


@pytest.mark.parametrize("url", ["http://x/v1/chat/completions", "http://x/v1/models/", "http://x/v1/Responses"])
def test_the_address_of_a_method_is_not_the_root(url: str) -> None:
    with pytest.raises(PatchbayError) as refused:
        OPENAI_COMPATIBLE.check_credential({"base_url": url})
    assert refused.value.violations[0].field == "base_url"


def asked_at(base_url: str, asked: Call, **switches: bool) -> dict[str, Any]:
    secret = Secret({**LOCAL, "base_url": base_url, **switches})
    body: dict[str, Any] = json.loads(OPENAI_COMPATIBLE.prepare(asked, secret, NOW).request.body)
    return body


def test_a_service_that_refuses_what_it_does_not_know_is_told_nothing_else() -> None:
    asked = call("mistral-large-latest", config=GenerationConfig(seed=3, max_output_tokens=9), streaming=True)
    for base_url in ("https://api.mistral.ai/v1", "https://API.mistral.ai./v1/"):
        assert asked_at(base_url, asked).keys() == {"model", "messages", "max_tokens", "random_seed", "stream"}
        assert asked_at(base_url, asked, stream_usage=True)["stream_options"] == {"include_usage": True}
    elsewhere = asked_at("https://api.mistral.ai.example/v1", asked)
    assert elsewhere.keys() == {"model", "messages", "max_tokens", "seed", "stream", "stream_options"}
    named = Message(role=Role.USER, parts=(TextPart(text="hello"),), author_name="ann")
    for base_url in ("https://api.mistral.ai/v1", "https://api.groq.com/openai/v1"):
        with pytest.raises(PatchbayError) as refused:
            asked_at(base_url, call("m", messages=(named,)))
        assert refused.value.violations[0].field == "messages[0].author_name"


def test_a_server_that_would_pass_over_a_choice_or_an_address_is_not_sent_one() -> None:
    picture = Message(role=Role.USER, parts=(MediaPart(mime_type="image/png", uri="https://example.com/a.png"),))
    tools = (FunctionTool(name="f"),)
    for asked, field in (
        (call("qwen3", messages=(picture,)), "messages[0].parts[0].media.uri"),
        (call("qwen3", tools=tools, tool_choice=ToolChoice(function_name="f")), "tool_choice"),
        (call("qwen3", tools=tools, tool_choice=ToolChoice(mode=ToolMode.REQUIRED)), "tool_choice"),
        (call("qwen3", tools=tools, tool_choice=ToolChoice(mode=ToolMode.NONE)), "tool_choice"),
    ):
        with pytest.raises(PatchbayError) as refused:
            asked_at("http://localhost:11434/v1", asked)
        assert refused.value.violations[0].field == field
        assert asked_at("http://localhost:8000/v1", asked)["model"] == "qwen3"
    auto = call("qwen3", tools=tools, tool_choice=ToolChoice(mode=ToolMode.AUTO))
    assert asked_at("http://localhost:11434/v1", auto)["tool_choice"] == "auto"


def test_the_check_asks_for_the_model_where_that_is_possible() -> None:
    model = "ft:gpt-4o:acme::a/b?c#d"
    request = OPENAI.prepare_check(model, Secret(KEY), NOW)
    assert (request.method, request.url) == (
        "GET",
        "https://api.openai.com/v1/models/ft%3Agpt-4o%3Aacme%3A%3Aa%2Fb%3Fc%23d",
    )
    for nothing in ("", ".", ".."):
        assert OPENAI.prepare_check(nothing, Secret(KEY), NOW).url == "https://api.openai.com/v1/models"
    assert OPENAI_COMPATIBLE.prepare_check("m", Secret(LOCAL), NOW).url == "http://localhost:8000/v1/models"


def test_a_limit_of_output_that_the_list_does_not_say_is_told_where_it_is_known() -> None:
    entries = [
        {"id": "gpt-4o-2024-11-20"},
        {"id": "gpt-5-pro"},
        {"id": "gpt-9"},
        {"id": "o3", "max_completion_tokens": 9},
    ]
    answer = HttpAnswer(status=200, headers={}, body=json.dumps({"data": entries}).encode(), received_at=NOW)
    assert [model.max_output_tokens for model in OPENAI.read_models(answer).models] == [16_384, 272_000, None, 9]


def models(body: Any) -> list[dict[str, Any]]:
    answer = HttpAnswer(status=200, headers={}, body=json.dumps(body).encode(), received_at=NOW)
    page = OPENAI_COMPATIBLE.read_models(answer)
    assert page.next_page == ""
    return [
        {name: value for name in model.__struct_fields__ if (value := getattr(model, name)) not in ("", None)}
        for model in page.models
    ]


def test_models_are_read_from_every_servers_list() -> None:
    found = models(
        {
            "object": "list",
            "data": [
                {"id": "gpt-5", "created": 1754425777, "owned_by": "system", "shutdown_date": "2026-12-11"},
                {"id": "Qwen/Qwen3-8B", "created": 0, "max_model_len": 40960, "owned_by": "vllm"},
                {"id": "/models/m.gguf", "meta": {"n_ctx_train": 8192}},
                {"id": "mistral-small", "max_context_length": 32768},
                {"id": "a/b", "name": "B", "context_length": 1000, "created": 10**18},
                {"id": "odd", "created": "soon", "owned_by": 7, "shutdown_date": 3, "max_model_len": "many"},
                {"id": ""},
                {"id": 7},
                "gpt-4",
                None,
            ],
        }
    )
    assert [model["id"] for model in found] == [
        "gpt-5",
        "Qwen/Qwen3-8B",
        "/models/m.gguf",
        "mistral-small",
        "a/b",
        "odd",
    ]
    assert found[0]["created_at"].isoformat() == "2025-08-05T20:29:37+00:00"
    assert found[0]["retires_at"].isoformat() == "2026-12-11T00:00:00+00:00"
    assert [model.get("max_input_tokens") for model in found] == [None, 40960, 8192, 32768, 1000, None]
    assert found[4] == {"id": "a/b", "display_name": "B", "max_input_tokens": 1000}
    assert found[5] == {"id": "odd"}


def test_an_empty_or_bare_list_of_models_is_a_list() -> None:
    assert models({"data": None}) == []
    assert models({"object": "list"}) == []
    assert models([{"id": "m"}]) == [{"id": "m"}]


@pytest.mark.parametrize("body", [{"data": 7}, {"data": "x"}, "x", 7, None])
def test_a_list_of_models_that_cannot_be_read_is_malformed(body: Any) -> None:
    with pytest.raises(PatchbayError) as refused:
        models(body)
    assert refused.value.reason is Reason.UPSTREAM_MALFORMED_RESPONSE


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("envelope", "code"),
    [
        ({"code": "context_length_exceeded"}, "context_length_exceeded"),
        ({"code": None, "type": "insufficient_quota"}, "insufficient_quota"),
        ({"code": "canary", "type": "invalid_request_error"}, "invalid_request_error"),
        ({"code": "canary"}, ""),
    ],
)
def test_only_known_codes_of_a_provider_are_passed_on(envelope: dict[str, Any], code: str) -> None:
    body = json.dumps({"error": envelope}).encode()
    headers = {"x-request-id": "req_011C"}
    told = OPENAI.explain(HttpAnswer(status=400, headers=headers, body=body, received_at=NOW)).upstream
    assert told is not None
    assert (told.provider_code, told.upstream_request_id, told.http_status) == (code, "req_011C", 400)


@pytest.mark.parametrize(
    ("base_url", "chars", "kept"),
    [("https://api.mistral.ai/v1", 9, "aB3dE6gH9"), ("", 40, "c" * 40), ("http://localhost:8000/v1", None, "c" * 41)],
)
def test_a_tool_call_s_id_takes_the_form_that_the_server_takes(base_url: str, chars: int | None, kept: str) -> None:
    ids = [kept, "call_" + "x" * 60, "call_" + "y" * 60]
    calls = tuple(ToolCallPart(id=call_id, name="f", arguments_json="{}") for call_id in ids)
    results = tuple(ToolResultPart(tool_call_id=call_id, parts=(TextPart(text="1"),)) for call_id in ids)
    asked = call("gpt-4o", messages=(Message(role=Role.ASSISTANT, parts=calls), Message(role=Role.TOOL, parts=results)))
    secret = Secret({"base_url": base_url} if base_url else {"api_key": "k"})
    body = json.loads((OPENAI_COMPATIBLE if base_url else OPENAI).prepare(asked, secret, NOW).request.body)
    sent = [said["id"] for said in body["messages"][0]["tool_calls"]]
    assert sent == [said["tool_call_id"] for said in body["messages"][1:]]
    assert sent[0] == kept
    if chars is None:
        assert sent == ids
    else:
        assert all(re.fullmatch(rf"[A-Za-z0-9]{{{chars}}}", call_id) for call_id in sent[1:])
        assert len(set(sent)) == 3


@pytest.mark.parametrize(
    ("param", "field"),
    [
        ("stream", ""),
        ("stream_options", ""),
        ("stream_options.include_usage", ""),
        ("store", ""),
        ("include", ""),
        ("logit_bias", "provider_options_json"),
        ("temperature", "config.temperature"),
    ],
)
def test_a_caller_is_not_blamed_for_a_field_that_the_gateway_set(param: str, field: str) -> None:
    case = error(400, Reason.FEATURE_UNSUPPORTED, "unknown", code="unknown_parameter", param=param)
    explained = OPENAI.explain(case.answer())
    assert explained.reason is Reason.FEATURE_UNSUPPORTED
    assert [violation.field for violation in explained.violations if violation.field] == ([field] if field else [])


@pytest.mark.parametrize("options", ['{"n":2}', '{"n":1}', '{"stream_options":{"include_usage":false}}'])
def test_options_cannot_ask_for_answers_or_streams_that_are_not_read(options: str) -> None:
    for adapter, secret in ((OPENAI, KEY), (OPENAI_COMPATIBLE, LOCAL)):
        with pytest.raises(PatchbayError) as refused:
            adapter.prepare(call("gpt-4o", provider_options_json=options), Secret(secret), NOW)
        assert refused.value.reason is Reason.INVALID_REQUEST
        assert refused.value.violations[0].field == "provider_options_json"
