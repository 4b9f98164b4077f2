"""Azure OpenAI keeps the rules of the published suite, and its own: deployments, two kinds of key, two surfaces."""

import json
from pathlib import Path
from typing import Any

import pytest

from patchbay_server.adapters.azure_openai import ADAPTER
from patchbay_server.adapters.credentials import last_four, merge, require_usable, validate
from patchbay_server.adapters.openai_chat import OPENAI
from patchbay_server.adapters.protocol import NamesModel
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.testing.adapter_suite import NOW, AdapterSuite, ErrorCase, ModelSuite
from patchbay_server.types import (
    Call,
    GenerationConfig,
    JsonObjectFormat,
    Message,
    Prompt,
    ReasoningConfig,
    Role,
    Secret,
    TextPart,
)
from patchbay_server.wire.http import HttpAnswer

GOLDEN = Path(__file__).parent.parent / "golden"
KEYED = {"api_key": "0123456789abcdef0123456789abcdef", "resource": "acme-west", "deployment": "chat-prod"}
TOKEN = {"entra_token": "eyJ0eXAi.test.0123456789", "resource": "acme-west", "deployment": "chat-prod"}
DATED = {**KEYED, "api_version": "2024-10-21"}
V1 = "https://acme-west.openai.azure.com/openai/v1"


def error(
    status: int, reason: Reason, /, name: str, headers: dict[str, str] | None = None, **members: Any
) -> ErrorCase:
    """An answer in the envelope of Azure OpenAI."""
    body = json.dumps({"error": {"message": "canary", **members}})
    return ErrorCase(name=name, status=status, body=body, headers=headers or {}, reason=reason)


def gateway(status: int, reason: Reason, name: str, message: str) -> ErrorCase:
    """An answer in the envelope of the API management in front of it."""
    return ErrorCase(
        name=name, status=status, body=json.dumps({"statusCode": status, "message": message}), reason=reason
    )


POLICY, RATE, ADDRESS = Reason.CONTENT_POLICY_VIOLATION, Reason.UPSTREAM_RATE_LIMITED, Reason.CONNECTOR_MISCONFIGURED
ERRORS = (
    error(400, POLICY, "prompt filtered", code="content_filter", innererror={"code": "ResponsibleAIPolicyViolation"}),
    error(400, POLICY, "prompt filtered, told within", code=None, innererror={"code": "ResponsibleAIPolicyViolation"}),
    error(400, Reason.FEATURE_UNSUPPORTED, "operation of another model", code="OperationNotSupported"),
    error(404, Reason.MODEL_NOT_FOUND, "no such deployment", code="DeploymentNotFound"),
    error(404, ADDRESS, "no such path", code="404", message="Resource not found"),
    error(404, ADDRESS, "no such version", code="BadRequest", message="API version not supported"),
    error(
        401, Reason.UPSTREAM_CREDENTIAL_REJECTED, "wrong key", code="401", message="Access denied due to invalid key"
    ),
    error(401, Reason.UPSTREAM_REJECTED_REQUEST, "token without the role", code="PermissionDenied"),
    error(403, Reason.UPSTREAM_CREDENTIAL_REJECTED, "keys are switched off", code="AuthenticationTypeDisabled"),
    error(403, ADDRESS, "network", code="403", message="Access denied due to Virtual Network/Firewall rules."),
    error(429, RATE, "deployment's limit", {"retry-after": "17"}, code="429"),
    error(429, RATE, "deployment's limit, named", code="RateLimitReached"),
    error(429, RATE, "high demand", code="too_many_requests"),
    error(429, Reason.UPSTREAM_BILLING_EXHAUSTED, "quota", code="insufficient_quota"),
    error(400, Reason.CONTEXT_LENGTH_EXCEEDED, "too long", code="context_length_exceeded"),
    error(503, Reason.UPSTREAM_UNAVAILABLE, "busy", code="InternalServerError"),
    gateway(401, Reason.UPSTREAM_CREDENTIAL_REJECTED, "gateway, no key", "Access denied due to missing key."),
    gateway(429, RATE, "gateway, rate", "Rate limit is exceeded. Try again in 5 seconds."),
    gateway(403, Reason.UPSTREAM_BILLING_EXHAUSTED, "gateway, quota", "Out of call volume quota. Replenished in 1 h."),
    ErrorCase(
        name="a wait in milliseconds", status=429, headers={"retry-after-ms": "250"}, reason=RATE, retry_after_s=0.25
    ),
)


class TestAzure(AdapterSuite):
    adapter = ADAPTER
    secret = KEYED
    golden = GOLDEN / "azure_openai"
    model = "gpt-4.1"
    errors = ERRORS


def test_a_connector_names_its_deployment_so_that_a_call_needs_no_model() -> None:
    for fields in (KEYED, TOKEN, DATED):
        secret = Secret(fields)
        assert isinstance(ADAPTER, NamesModel)
        assert ADAPTER.model_of(secret) == "chat-prod"
        asked = ADAPTER.prepare(call(model=ADAPTER.model_of(secret)), secret, NOW).request
        assert json.loads(asked.body)["model"] == "chat-prod"
    assert OPENAI.model_of(Secret({"api_key": "sk-test"})) == ""


class TestAzureModelOfTodayWithAToken(ModelSuite):
    adapter = ADAPTER
    secret = TOKEN
    model = "gpt-5.6-sol"


class TestAzureUnderADatedVersion(ModelSuite):
    adapter = ADAPTER
    secret = DATED
    model = "chat-prod"
    # Nothing is known of what the deployment serves, so nothing is refused for it but what chat cannot say at all.


def call(model: str = "gpt-4.1", **prompt: Any) -> Call:
    hello = Message(role=Role.USER, parts=(TextPart(text="hello"),))
    return Call(id="01", model=model, prompt=Prompt(messages=(hello,), **prompt), streaming=False)


def url_of(secret: dict[str, str]) -> str:
    return ADAPTER.prepare(call(), Secret(secret), NOW).request.url


# --- names and addresses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("resource", "a"),
        ("resource", "-acme"),
        ("resource", "acme-"),
        ("resource", "a" * 65),
        ("resource", "acme.evil.example"),
        ("resource", "acme@evil.example"),
        ("resource", "evil.example/"),
        ("resource", "evil.example#"),
        ("resource", "evil.example?"),
        ("resource", "acme:443"),
        ("resource", "acme%2e"),
        ("resource", "acme_west"),
        ("deployment", "."),
        ("deployment", ".."),
        ("deployment", "../../x"),
        ("deployment", "a/b"),
        ("deployment", "a?b"),
        ("deployment", "a#b"),
        ("deployment", "a%2fb"),
        ("deployment", "a b"),
        ("deployment", "a" * 65),
        ("api_version", "2024-10-21&x=y"),
        ("api_version", "2024-10-21-preview-2"),
        ("api_version", "latest"),
    ],
)
def test_no_name_can_rewrite_the_address_at_creation_or_at_use(field: str, value: str) -> None:
    with pytest.raises(PatchbayError) as refused:
        validate(ADAPTER.info, {**KEYED, field: value})
    assert [violation.field for violation in refused.value.violations] == [field]
    with pytest.raises(PatchbayError) as stored:
        require_usable(ADAPTER.info, Secret({**KEYED, field: value}))
    assert stored.value.reason is Reason.CONNECTOR_MISCONFIGURED


@pytest.mark.parametrize("deployment", ["a", "gpt-4.1", "..a", "my_dep.v2", "a" * 64])
def test_ordinary_deployment_names_are_taken(deployment: str) -> None:
    assert validate(ADAPTER.info, {**DATED, "deployment": deployment})["deployment"] == deployment
    assert f"/deployments/{deployment}/chat" in url_of({**DATED, "deployment": deployment})


@pytest.mark.parametrize(
    ("more", "url"),
    [
        ({}, f"{V1}/chat/completions"),
        ({"api_version": "v1"}, f"{V1}/chat/completions"),
        ({"endpoint": "https://acme.openai.azure.com"}, "https://acme.openai.azure.com/openai/v1/chat/completions"),
        ({"endpoint": "https://acme.openai.azure.com/"}, "https://acme.openai.azure.com/openai/v1/chat/completions"),
        ({"endpoint": "https://llm.example/eu/openai/v1/"}, "https://llm.example/eu/openai/v1/chat/completions"),
        (
            {"api_version": "2024-10-21"},
            "https://acme-west.openai.azure.com/openai/deployments/chat-prod/chat/completions?api-version=2024-10-21",
        ),
        (
            {"api_version": "2025-04-01-preview", "endpoint": "http://localhost:9000"},
            "http://localhost:9000/openai/deployments/chat-prod/chat/completions?api-version=2025-04-01-preview",
        ),
        (
            {"api_version": "2024-10-21", "endpoint": "https://apim.example/llm/"},
            "https://apim.example/llm/deployments/chat-prod/chat/completions?api-version=2024-10-21",
        ),
    ],
)
def test_the_address_follows_from_resource_or_endpoint_and_from_the_version(more: dict[str, str], url: str) -> None:
    fields = {**KEYED, **more}
    ADAPTER.check_credential(validate(ADAPTER.info, fields))
    assert url_of(fields) == url


def test_a_dated_version_does_not_go_with_the_endpoint_of_the_v1_surface() -> None:
    with pytest.raises(PatchbayError) as refused:
        ADAPTER.check_credential({**DATED, "endpoint": f"{V1}/"})
    assert refused.value.violations[0].field == "endpoint"


@pytest.mark.parametrize(
    ("model", "endpoint", "right_type"),
    [("openai/gpt-5", "", "openrouter"), ("gpt-5", "https://api.openai.com/v1", "openai")],
)
def test_what_belongs_to_another_type_is_refused_with_its_name(model: str, endpoint: str, right_type: str) -> None:
    with pytest.raises(PatchbayError, match=right_type) as refused:
        ADAPTER.check_model(model, Secret({**KEYED, "endpoint": endpoint}))
    assert refused.value.reason is Reason.CONNECTOR_MISCONFIGURED


@pytest.mark.parametrize(
    "endpoint", ["", "https://r.openai.azure.com", "https://r.services.ai.azure.com", "https://r.openai.azure.us"]
)
def test_addresses_of_every_azure_cloud_are_taken(endpoint: str) -> None:
    ADAPTER.check_model("", Secret({**KEYED, "endpoint": endpoint}))


# --- keys ------------------------------------------------------------------------------------------------------------


def test_a_key_and_a_token_together_are_refused_and_one_of_them_is_needed() -> None:
    with pytest.raises(PatchbayError) as both:
        ADAPTER.check_credential({**KEYED, **TOKEN})
    assert (both.value.reason, both.value.violations[0].field) == (Reason.INVALID_REQUEST, "entra_token")
    for missing in ("api_key", "resource", "deployment"):
        fields = {name: value for name, value in KEYED.items() if name != missing}
        with pytest.raises(PatchbayError) as refused:
            validate(ADAPTER.info, fields)
        assert [violation.field for violation in refused.value.violations] == [missing]


def test_a_rotation_to_the_other_kind_of_key_removes_the_first() -> None:
    to_token = merge(ADAPTER.info, KEYED, {"entra_token": TOKEN["entra_token"]})
    assert to_token == TOKEN
    assert merge(ADAPTER.info, to_token, {"api_key": KEYED["api_key"]}) == KEYED


def test_each_kind_of_key_has_its_header_and_shows_its_own_end() -> None:
    for fields, header in (
        (KEYED, ("api-key", KEYED["api_key"])),
        (TOKEN, ("authorization", f"Bearer {TOKEN['entra_token']}")),
    ):
        sent = dict(ADAPTER.prepare(call(), Secret(fields), NOW).request.headers)
        assert {name: value for name, value in sent.items() if name in ("api-key", "authorization")} == dict([header])
        assert last_four(ADAPTER.info, Secret(fields)) == header[1][-4:]


# --- what the deployment takes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "deployment", "taken"),
    [
        ("gpt-4.1", "chat-prod", True),
        ("", "chat-prod", True),
        ("", "gpt-4.1", True),
        ("o4-mini", "chat-prod", False),
        ("", "o4-mini", False),
        ("default", "o4-mini", False),
        ("gpt-4.1", "o4-mini", True),
    ],
)
def test_the_calls_model_says_what_the_deployment_serves_else_its_name_may(
    model: str, deployment: str, taken: bool
) -> None:
    asked = call(model, config=GenerationConfig(temperature=0.2))
    secret = Secret({**KEYED, "deployment": deployment})
    if taken:
        body = json.loads(ADAPTER.prepare(asked, secret, NOW).request.body)
        assert (body["model"], body["temperature"]) == (deployment, 0.2)
    else:
        with pytest.raises(PatchbayError) as refused:
            ADAPTER.prepare(asked, secret, NOW)
        assert refused.value.violations[0].field == "config.temperature"


@pytest.mark.parametrize(
    ("version", "responses"), [("v1", True), ("2025-03-01-preview", True), ("2025-02-01-preview", False)]
)
def test_the_responses_api_is_used_where_the_surface_has_it(version: str, responses: bool) -> None:
    config = GenerationConfig(reasoning=ReasoningConfig(include_text=True))
    asked = call("o4-mini", config=config, drop_unsupported=True)
    url = ADAPTER.prepare(asked, Secret({**KEYED, "api_version": version}), NOW).request.url
    assert ("/openai/responses" in url or "/openai/v1/responses" in url) is responses
    assert "deployments" not in url or not responses


def test_a_format_is_said_on_every_surface() -> None:
    for fields in (KEYED, DATED):
        asked = call(response_format=JsonObjectFormat())
        assert json.loads(ADAPTER.prepare(asked, Secret(fields), NOW).request.body)["response_format"]


# --- checks and models -----------------------------------------------------------------------------------------------


def test_the_check_is_the_free_list_of_models_with_the_connectors_own_key() -> None:
    for fields, url in (
        (TOKEN, f"{V1}/models"),
        (DATED, "https://acme-west.openai.azure.com/openai/models?api-version=2024-10-21"),
    ):
        check = ADAPTER.prepare_check("gpt-4.1", Secret(fields), NOW)
        assert (check.method, check.url) == ("GET", url)
        assert ADAPTER.prepare_models("", Secret(fields), NOW) == check
    headers = dict(ADAPTER.prepare_check("", Secret(TOKEN), NOW).headers)
    assert headers["authorization"] == f"Bearer {TOKEN['entra_token']}"


def test_the_request_id_of_the_gateway_is_kept_where_there_is_no_other() -> None:
    for headers in ({"apim-request-id": "ab-1"}, {"apim-request-id": "other", "x-request-id": "ab-1"}):
        told = ADAPTER.explain(HttpAnswer(status=500, headers=headers, body=b"", received_at=NOW)).upstream
        assert told is not None
        assert told.upstream_request_id == "ab-1"
