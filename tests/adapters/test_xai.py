"""xAI keeps the rules of the published suite, and its own: two APIs, what each Grok takes, errors in plain text."""

import json
from pathlib import Path
from typing import Any

import pytest

from patchbay_server.adapters.openai_usage import CHAT, UsageSoFar
from patchbay_server.adapters.xai import ADAPTER
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.testing.adapter_suite import NOW, AdapterSuite, ErrorCase, ModelSuite
from patchbay_server.types import (
    Call,
    Effort,
    FunctionTool,
    GenerationConfig,
    MediaPart,
    Message,
    Prompt,
    ProviderTool,
    ReasoningConfig,
    ReasoningPart,
    Role,
    Secret,
    TextPart,
)
from patchbay_server.wire.http import HttpAnswer

GOLDEN = Path(__file__).parent.parent / "golden"
KEY = {"api_key": "xai-test-0123456789"}
NOTHING_TO_SHOW = {"config.reasoning.include_text": "the model does not reason"}


def error(status: int, reason: Reason, /, name: str, text: str = "canary", code: str = "canary") -> ErrorCase:
    """An answer in xAI's envelope."""
    return ErrorCase(name=name, status=status, body=json.dumps({"code": code, "error": text}), reason=reason)


AUTH, QUOTA, MODEL = Reason.UPSTREAM_CREDENTIAL_REJECTED, Reason.UPSTREAM_BILLING_EXHAUSTED, Reason.MODEL_NOT_FOUND
REJECTED, UNSUPPORTED = Reason.UPSTREAM_REJECTED_REQUEST, Reason.FEATURE_UNSUPPORTED
NO_PERMISSION = "The caller does not have permission to execute the specified operation"

ERRORS = (
    error(400, AUTH, "wrong key", "Incorrect API key provided: xa***89.", "invalid-argument"),
    error(401, AUTH, "no key"),
    error(403, AUTH, "blocked key", "The API key is blocked.", NO_PERMISSION),
    error(403, QUOTA, "no credits yet", "Your newly created team doesn't have any credits yet.", NO_PERMISSION),
    error(429, QUOTA, "credits used up", "Your team has either used all available credits or reached its limit."),
    error(429, QUOTA, "spending limit", "You have reached your monthly spending limit."),
    error(429, Reason.UPSTREAM_RATE_LIMITED, "rate", "Too many requests", "Some resource has been exhausted"),
    error(403, Reason.CONTENT_POLICY_VIOLATION, "safety", "Content violates usage guidelines. Failed check: X"),
    error(403, MODEL, "model of others", "Your team does not have access to the model grok-9."),
    error(404, MODEL, "no such model", "The model grok-0 does not exist or your team has no access to it."),
    error(400, MODEL, "no such model, as 400", "Model not found: grok-0", "invalid-argument"),
    error(400, UNSUPPORTED, "effort", "Model grok-4 does not support parameter reasoningEffort.", "invalid-argument"),
    error(400, UNSUPPORTED, "stop", "Argument not supported on this model: stop", "invalid-argument"),
    error(400, REJECTED, "bad request", "Invalid request content", "invalid-argument"),
    error(422, REJECTED, "schema", "Failed to deserialize the JSON body"),
    error(415, REJECTED, "media type"),
    error(405, Reason.CONNECTOR_MISCONFIGURED, "method"),
    error(400, Reason.CONTEXT_LENGTH_EXCEEDED, "too long", "This model's maximum prompt length is 8 but there are 9."),
    error(500, Reason.UPSTREAM_UNAVAILABLE, "broken"),
    error(503, Reason.UPSTREAM_UNAVAILABLE, "at capacity", "The model is at capacity."),
    ErrorCase(
        name="OpenAI's envelope",
        status=400,
        body=json.dumps({"error": {"message": "Incorrect API key provided", "type": "invalid_request_error"}}),
        reason=AUTH,
    ),
)


class TestXai(AdapterSuite):
    adapter = ADAPTER
    secret = KEY
    golden = GOLDEN / "xai"
    model = "grok-4.3"
    errors = ERRORS


class TestXaiModelThatDoesNotReason(ModelSuite):
    adapter = ADAPTER
    secret = KEY
    model = "grok-3"
    without_effect = NOTHING_TO_SHOW


class TestXaiModelOfTomorrow(ModelSuite):
    adapter = ADAPTER
    secret = KEY
    model = "grok-9"


def call(model: str, *parts: Any, role: Role = Role.USER, **prompt: Any) -> Call:
    said = Message(role=role, parts=parts or (TextPart(text="hello"),))
    return Call(id="01", model=model, prompt=Prompt(messages=(said,), **prompt), streaming=False)


def url_of(asked: Call) -> str:
    return ADAPTER.prepare(asked, Secret(KEY), NOW).request.url


def body_of(asked: Call) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(ADAPTER.prepare(asked, Secret(KEY), NOW).request.body)
    return body


def refused_field(asked: Call) -> str:
    with pytest.raises(PatchbayError) as refused:
        ADAPTER.prepare(asked, Secret(KEY), NOW)
    assert refused.value.reason is Reason.FEATURE_UNSUPPORTED
    return refused.value.violations[0].field


# --- which API -------------------------------------------------------------------------------------------------------

TOOL = FunctionTool(name="add")
SEARCH = ProviderTool(json='{"type":"web_search"}')
STATE = ReasoningPart(provider_state=b'{"type":"reasoning","id":"rs_1"}')
SHOWN = GenerationConfig(reasoning=ReasoningConfig(include_text=True))
PDF = MediaPart(mime_type="application/pdf", data=b"%PDF-1.7")


@pytest.mark.parametrize(
    ("asked", "responses"),
    [
        (call("grok-4.3"), False),
        (call("grok-4.3", tools=(TOOL,)), True),
        (call("grok-4.3", config=SHOWN), True),
        (call("grok-4.3", config=GenerationConfig(reasoning=ReasoningConfig(effort=Effort.LOW))), True),
        (call("grok-4.3", config=GenerationConfig(reasoning=ReasoningConfig(effort=Effort.NONE))), False),
        (call("grok-4.3", STATE, role=Role.ASSISTANT), True),
        (call("grok-4-0709", tools=(TOOL,)), True),
        (call("grok-4-0709", tools=(TOOL,), config=GenerationConfig(seed=3)), False),
        (call("grok-9", tools=(TOOL,), config=GenerationConfig(seed=3)), False),
        (call("grok-4.3", STATE, role=Role.ASSISTANT, config=GenerationConfig(seed=3), drop_unsupported=True), True),
        (call("grok-9", tools=(TOOL,)), True),
        (call("grok-3", tools=(TOOL,)), False),
        (call("grok-4-fast-non-reasoning", tools=(TOOL,)), False),
        (call("grok-4.20-non-reasoning-latest", tools=(TOOL,)), False),
        (call("grok-4.20-multi-agent-latest"), True),
        (call("grok-3", config=SHOWN), False),
        (call("grok-3", tools=(SEARCH,)), True),
        (call("grok-3", PDF), True),
        (call("some-model", tools=(TOOL,)), False),
    ],
)
def test_the_responses_api_is_asked_for_what_it_alone_gives(asked: Call, responses: bool) -> None:
    path = "responses" if responses else "chat/completions"
    assert url_of(asked) == f"https://api.x.ai/v1/{path}"


# --- what each model takes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["grok-4", "grok-4-0709", "grok-4.20-0309-reasoning", "grok-3-mini", "grok-4.3-fast"])
@pytest.mark.parametrize(
    ("name", "value"), [("stop_sequences", ("x",)), ("frequency_penalty", 0.5), ("presence_penalty", 0.5)]
)
def test_a_model_that_reasons_refuses_what_xai_says_it_does(model: str, name: str, value: Any) -> None:
    assert refused_field(call(model, config=GenerationConfig(**{name: value}))) == f"config.{name}"
    for other in ("grok-3", "grok-4.20-0309-non-reasoning", "grok-9"):
        assert body_of(call(other, config=GenerationConfig(**{name: value})))


@pytest.mark.parametrize(
    ("model", "taken"),
    [
        ("grok-3", ()),
        ("grok-4", ()),
        ("grok-4-1-fast-reasoning", ()),
        ("grok-code-fast-1", ()),
        ("grok-build-0.1", ()),
        ("grok-3-mini-fast", (Effort.LOW, Effort.HIGH)),
        ("grok-4.20-multi-agent-0309", (Effort.LOW, Effort.MEDIUM, Effort.HIGH, Effort.XHIGH)),
        ("grok-4.7", (Effort.LOW, Effort.MEDIUM, Effort.HIGH, Effort.XHIGH)),
        ("grok-4.3", (Effort.NONE, Effort.LOW, Effort.MEDIUM, Effort.HIGH, Effort.XHIGH)),
        ("grok-9", tuple(Effort)),
    ],
)
def test_each_model_takes_its_own_efforts(model: str, taken: tuple[Effort, ...]) -> None:
    for effort in Effort:
        asked = call(model, config=GenerationConfig(reasoning=ReasoningConfig(effort=effort)))
        if effort in taken:
            body = body_of(asked)
            assert effort.value in (body.get("reasoning_effort"), body.get("reasoning", {}).get("effort"))
        elif effort is Effort.NONE and model == "grok-3":
            assert "reasoning_effort" not in body_of(asked)
        else:
            assert refused_field(asked) == "config.reasoning.effort"


def test_what_xai_has_no_place_for_is_refused_by_name() -> None:
    strict = FunctionTool(name="add", strict=True)
    for model in ("grok-3", "grok-4"):
        assert refused_field(call(model, tools=(strict,))) == "tools[0].function.strict"
        assert "strict" not in json.dumps(body_of(call(model, tools=(FunctionTool(name="add", strict=False),))))
    for mime_type in ("audio/wav", "audio/mpeg"):
        recording = MediaPart(mime_type=mime_type, data=b"RIFF")
        assert refused_field(call("grok-3", recording)).startswith("messages[0].parts[0].media")
    named = Message(role=Role.USER, parts=(TextPart(text="hi"),), author_name="ann")
    assert refused_field(Call(id="01", model="grok-3", prompt=Prompt(messages=(named,)), streaming=True)) == (
        "messages[0].author_name"
    )
    assert refused_field(call("grok-3", config=GenerationConfig(stop_sequences=tuple("abcdefghi")))) == (
        "config.stop_sequences"
    )


def test_an_answer_that_is_only_a_ticket_cannot_be_asked_for() -> None:
    with pytest.raises(PatchbayError) as refused:
        body_of(call("grok-3", provider_options_json='{"deferred":true}'))
    assert refused.value.violations[0].field == "provider_options_json"


@pytest.mark.parametrize(
    ("model", "endpoint", "right_type"),
    [("x-ai/grok-4", "", "openrouter"), ("grok-4", "https://api.openai.com/v1", "openai")],
)
def test_what_belongs_to_another_type_is_refused_with_its_name(model: str, endpoint: str, right_type: str) -> None:
    ADAPTER.check_model("grok-4", Secret({**KEY, "endpoint": "https://us.api.x.ai/v1"}))
    with pytest.raises(PatchbayError, match=right_type) as refused:
        ADAPTER.check_model(model, Secret({**KEY, "endpoint": endpoint}))
    assert refused.value.reason is Reason.CONNECTOR_MISCONFIGURED


# --- usage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "output"),
    [(None, 93), (105, 93), (15, 3), (999, 93)],
    ids=["no total", "a total with the reasoning", "a total that says it is inside", "a total of something else"],
)
def test_reasoning_is_added_to_the_output_unless_the_total_says_that_it_is_inside(
    total: int | None, output: int
) -> None:
    reported = {"prompt_tokens": 12, "completion_tokens": 3, "completion_tokens_details": {"reasoning_tokens": 90}}
    usage = UsageSoFar(CHAT, reasoning_outside=True).take({**reported, "total_tokens": total})
    assert usage is not None
    assert (usage.output_tokens, usage.reasoning_tokens) == (output, 90)


# --- checks and models -----------------------------------------------------------------------------------------------


def told(body: Any) -> HttpAnswer:
    return HttpAnswer(status=200, headers={}, body=json.dumps(body).encode(), received_at=NOW)


def test_the_check_asks_of_the_key_and_a_blocked_one_is_refused_whatever_the_status() -> None:
    assert ADAPTER.prepare_check("grok-4", Secret(KEY), NOW).url == "https://api.x.ai/v1/api-key"
    good = {"name": "ci", "acls": ["api-key:model:*"], "api_key_blocked": False, "team_blocked": False}
    bodies: tuple[Any, ...] = ({**good, "api_key_disabled": False}, good, {"disabled": "no"}, [], "x", None)
    for body in bodies:
        ADAPTER.read_check(told(body))
    for flag in ("api_key_blocked", "team_blocked", "api_key_disabled", "disabled"):
        with pytest.raises(PatchbayError) as refused:
            ADAPTER.read_check(told({**good, flag: True}))
        assert refused.value.reason is AUTH


def test_models_are_listed() -> None:
    assert ADAPTER.prepare_models("", Secret(KEY), NOW).url == "https://api.x.ai/v1/models"
    body = {"data": [{"id": "grok-4.3", "created": 1795000000, "owned_by": "xai", "context_length": 256_000}]}
    [model] = ADAPTER.read_models(told(body)).models
    assert (model.id, model.owned_by, model.max_input_tokens) == ("grok-4.3", "xai", 256_000)
