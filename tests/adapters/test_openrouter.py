"""OpenRouter keeps the rules of the published suite, and its own: routes, reasoning in details, errors of others."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from patchbay_server.adapters.openai_reasoning import DETAILS_MAX
from patchbay_server.adapters.openrouter import ADAPTER
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.testing.adapter_suite import NOW, AdapterSuite, ErrorCase, read
from patchbay_server.types import (
    Call,
    Effort,
    GenerationConfig,
    MediaPart,
    Message,
    PartCompleted,
    Prompt,
    ReasoningConfig,
    ReasoningDelta,
    ReasoningPart,
    Role,
    Secret,
    TextPart,
)
from patchbay_server.wire.http import Frame, HttpAnswer

GOLDEN = Path(__file__).parent.parent / "golden"
KEY = {"api_key": "sk-or-v1-test-0123456789"}


def error(status: int, reason: Reason, /, name: str, message: str = "canary", **metadata: Any) -> ErrorCase:
    """An answer in OpenRouter's envelope."""
    body: dict[str, Any] = {"error": {"code": status, "message": message}, "user_id": "user_1"}
    if metadata:
        body["error"]["metadata"] = metadata
    return ErrorCase(name=name, status=status, body=json.dumps(body), reason=reason)


AUTH, QUOTA, RATE = (
    Reason.UPSTREAM_CREDENTIAL_REJECTED,
    Reason.UPSTREAM_BILLING_EXHAUSTED,
    Reason.UPSTREAM_RATE_LIMITED,
)
BUSY, REJECTED, MODEL = Reason.UPSTREAM_UNAVAILABLE, Reason.UPSTREAM_REJECTED_REQUEST, Reason.MODEL_NOT_FOUND
SETTINGS, POLICY = Reason.CONNECTOR_MISCONFIGURED, Reason.CONTENT_POLICY_VIOLATION

ERRORS = (
    error(401, AUTH, "wrong key", "User not found."),
    error(401, AUTH, "no key", "No auth credentials found", error_type="authentication"),
    error(401, SETTINGS, "a key behind it", "Provider returned error", provider_name="OpenAI", raw="invalid_api_key"),
    error(403, SETTINGS, "a right behind it", "Provider returned error", provider_name="Azure"),
    error(502, BUSY, "a key behind it, told within", error_type="authentication", provider_name="OpenAI"),
    error(402, QUOTA, "credits", "Insufficient credits"),
    error(402, QUOTA, "credits, typed", error_type="payment_required"),
    error(403, QUOTA, "the key's limit", "Key limit exceeded (daily limit). Manage it in the settings."),
    error(403, POLICY, "moderation", reasons=["violence"], flagged_input="canary", provider_name="OpenAI"),
    error(403, POLICY, "moderation, typed", error_type="content_policy_violation"),
    error(400, POLICY, "refusal", error_type="refusal"),
    error(400, MODEL, "no model id", "acme/none is not a valid model ID"),
    error(404, MODEL, "no such model", "No endpoints found for acme/none."),
    error(404, Reason.FEATURE_UNSUPPORTED, "tools nowhere", "No endpoints found that support tool use. To learn more"),
    error(
        404, Reason.FEATURE_UNSUPPORTED, "knobs nowhere", "No endpoints found that can handle the requested parameters."
    ),
    error(404, SETTINGS, "data policy", "No endpoints found matching your data policy (Free model publication)."),
    error(404, SETTINGS, "providers", "No allowed providers are available for the selected model."),
    error(400, REJECTED, "bad request", error_type="invalid_request"),
    error(400, Reason.CONTEXT_LENGTH_EXCEEDED, "too long", error_type="context_length_exceeded"),
    error(400, Reason.CONTEXT_LENGTH_EXCEEDED, "too long, told", "This endpoint's maximum context length is 8 tokens."),
    error(413, REJECTED, "too large", error_type="payload_too_large"),
    error(422, REJECTED, "unprocessable", error_type="unprocessable"),
    error(408, BUSY, "took too long", error_type="timeout"),
    error(429, RATE, "rate", error_type="rate_limit_exceeded"),
    error(429, RATE, "rate behind it", "Provider returned error", provider_name="Google", raw="quota"),
    error(502, BUSY, "provider down", error_type="provider_unavailable"),
    error(503, BUSY, "no provider fits", error_type="provider_overloaded"),
    error(524, BUSY, "edge timeout", error_type="timeout"),
)


class TestOpenRouter(AdapterSuite):
    adapter = ADAPTER
    secret = KEY
    golden = GOLDEN / "openrouter"
    model = "anthropic/claude-opus-5.5"
    errors = ERRORS


def call(*messages: Message, streaming: bool = True, **prompt: Any) -> Call:
    hello = Message(role=Role.USER, parts=(TextPart(text="hello"),))
    return Call(id="01", model="a/b", prompt=Prompt(messages=messages or (hello,), **prompt), streaming=streaming)


def body_of(asked: Call) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(ADAPTER.prepare(asked, Secret(KEY), NOW).request.body)
    return body


# --- requests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["openrouter/auto", "meta-llama/llama-4:free", "~anthropic/claude-latest", "gpt-5"])
def test_model_ids_with_slashes_are_taken_and_addresses_of_others_are_not(model: str) -> None:
    ADAPTER.check_model(model, Secret(KEY))
    with pytest.raises(PatchbayError, match="openai") as refused:
        ADAPTER.check_model(model, Secret({**KEY, "endpoint": "https://api.openai.com/v1"}))
    assert refused.value.reason is Reason.CONNECTOR_MISCONFIGURED


@pytest.mark.parametrize("options", ['{"models":["a/b"]}', '{"preset":"x"}', '{"model":"a/b"}'])
def test_options_cannot_name_other_models(options: str) -> None:
    with pytest.raises(PatchbayError) as refused:
        body_of(call(provider_options_json=options))
    assert refused.value.violations[0].field == "provider_options_json"


@pytest.mark.parametrize(
    ("config", "dropping", "required"),
    [
        (GenerationConfig(), False, False),
        (GenerationConfig(max_output_tokens=9), False, False),
        (GenerationConfig(temperature=0.0), False, True),
        (GenerationConfig(seed=1), False, True),
        (GenerationConfig(stop_sequences=("x",)), False, True),
        (GenerationConfig(reasoning=ReasoningConfig(effort=Effort.LOW)), False, True),
        (GenerationConfig(seed=1), True, False),
    ],
)
def test_a_route_has_to_know_what_the_caller_set_unless_it_may_be_left_out(
    config: GenerationConfig, dropping: bool, required: bool
) -> None:
    body = body_of(call(config=config, drop_unsupported=dropping))
    assert body.get("provider") == ({"require_parameters": True} if required else None)


def test_a_caller_may_still_choose_routes_and_plug_ins() -> None:
    options = '{"provider":{"require_parameters":false,"zdr":true},"plugins":[{"id":"web"}]}'
    body = body_of(call(config=GenerationConfig(seed=1), provider_options_json=options))
    assert body["provider"] == {"require_parameters": False, "zdr": True}
    assert body["plugins"] == [{"id": "web"}]


def test_reasoning_is_asked_for_by_effort_or_by_budget_and_not_by_both() -> None:
    for config, asked in (
        (ReasoningConfig(effort=Effort.MAX), {"effort": "max"}),
        (ReasoningConfig(budget_tokens=2048, include_text=True), {"max_tokens": 2048, "summary": "auto"}),
    ):
        assert body_of(call(config=GenerationConfig(reasoning=config)))["reasoning"] == asked
    both = GenerationConfig(reasoning=ReasoningConfig(effort=Effort.LOW, budget_tokens=9))
    with pytest.raises(PatchbayError) as refused:
        body_of(call(config=both))
    assert refused.value.violations[0].field == "config.reasoning.budget_tokens"
    assert body_of(call(config=both, drop_unsupported=True))["reasoning"] == {"effort": "low"}


def test_a_file_that_is_kept_elsewhere_is_refused() -> None:
    part = MediaPart(mime_type="application/pdf", provider_file_id="file-1")
    with pytest.raises(PatchbayError) as refused:
        body_of(call(Message(role=Role.USER, parts=(part,))))
    assert refused.value.violations[0].field == "messages[0].parts[0].media.provider_file_id"


# --- reasoning in details --------------------------------------------------------------------------------------------


def stream(*deltas: dict[str, Any]) -> list[Frame]:
    chunks = [{"id": "gen-1", "model": "a/b", "choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    end = {"id": "gen-1", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    return [*(Frame(data=json.dumps(chunk).encode()) for chunk in (*chunks, end)), Frame(data=b"[DONE]")]


def reasoning_of(frames: Sequence[Frame], *, streaming: bool = True) -> tuple[str, ReasoningPart]:
    """The deltas of an answer's reasoning, joined, and the whole part."""
    events, failure = read(ADAPTER.reader(call(streaming=streaming)), frames)
    assert failure is None
    [part] = [e.part for e in events if isinstance(e, PartCompleted) and isinstance(e.part, ReasoningPart)]
    return "".join(event.text for event in events if isinstance(event, ReasoningDelta)), part


def details(*pieces: dict[str, Any]) -> list[dict[str, Any]]:
    """What the state holds after a stream of `pieces`, one in each delta."""
    _, part = reasoning_of(stream(*({"reasoning_details": [piece]} for piece in pieces)))
    kept: list[dict[str, Any]] = json.loads(part.provider_state)
    return kept


def test_pieces_of_one_index_are_one_detail_whatever_comes_between() -> None:
    assert details(
        {"type": "reasoning.text", "index": 0, "text": "a", "signature": None},
        {"type": "reasoning.summary", "index": 1, "summary": "x"},
        {"type": "reasoning.text", "index": 0, "text": "b", "format": "f"},
        {"type": "reasoning.summary", "index": 1, "summary": "y"},
        {"type": "reasoning.text", "index": 0, "signature": "s", "format": None},
    ) == [
        {"type": "reasoning.text", "index": 0, "text": "ab", "signature": "s", "format": "f"},
        {"type": "reasoning.summary", "index": 1, "summary": "xy"},
    ]


def test_details_of_another_type_or_another_id_are_others_even_under_one_index() -> None:
    pieces = (
        {"type": "reasoning.summary", "index": 0, "summary": "x"},
        {"type": "reasoning.encrypted", "index": 0, "id": "rs_1", "data": "a"},
        {"type": "reasoning.encrypted", "index": 0, "id": "rs_2", "data": "b"},
    )
    assert details(*pieces) == list(pieces)


def test_pieces_without_an_index_continue_the_last_one_of_their_type() -> None:
    assert details({"type": "reasoning.text", "text": "a"}, {"type": "reasoning.text", "text": "b"}) == [
        {"type": "reasoning.text", "text": "ab"}
    ]


def test_details_of_a_whole_answer_are_kept_byte_for_byte() -> None:
    raw = b'[ {"type":"reasoning.text", "text":"\\u00e9", "n":12345678901234567890123, "signature":"a\\/b"} ]'
    body = b'{"choices":[{"message":{"content":"hi","reasoning_details":%s},"finish_reason":"stop"}]}' % raw
    shown, part = reasoning_of([Frame(data=body, whole=True)], streaming=False)
    assert (shown, part.provider_state) == ("é", raw)
    message = Message(role=Role.ASSISTANT, parts=(part,))
    sent = ADAPTER.prepare(call(message), Secret(KEY), NOW).request.body
    assert raw.strip(b"[ ]") in sent


def test_the_text_of_details_is_shown_where_nothing_else_shows_it() -> None:
    piece = {"type": "reasoning.summary", "index": 0, "summary": "hm"}
    assert reasoning_of(stream({"reasoning_details": [piece]}))[0] == "hm"
    assert reasoning_of(stream({"reasoning": "hm", "reasoning_details": [piece]}))[0] == "hm"


def test_half_a_character_at_the_end_of_a_piece_is_joined_with_the_other_half() -> None:
    frames = [
        Frame(data=b'{"choices":[{"delta":{"reasoning_details":[{"index":0,"text":"%s"}]}}]}' % half)
        for half in (b"\\ud83d", b"\\ude00")
    ]
    end = Frame(data=b'{"choices":[{"delta":{},"finish_reason":"stop"}]}')
    _, part = reasoning_of([*frames, end, Frame(data=b"[DONE]")])
    assert json.loads(part.provider_state) == [{"index": 0, "text": "\N{GRINNING FACE}"}]


@pytest.mark.parametrize("junk", [None, 7, "x", {}, [], [1, None], [[]]])
def test_details_that_are_none_do_not_end_a_usable_stream(junk: Any) -> None:
    events, failure = read(ADAPTER.reader(call()), stream({"content": "hi", "reasoning_details": junk}))
    assert failure is None
    assert not [event for event in events if isinstance(event, PartCompleted) and isinstance(event.part, ReasoningPart)]


def test_more_details_than_an_answer_can_have_are_malformed() -> None:
    frames = stream({"reasoning_details": [{"index": index, "text": "x"} for index in range(DETAILS_MAX + 1)]})
    _, failure = read(ADAPTER.reader(call()), frames)
    assert failure is not None
    assert failure.reason is Reason.UPSTREAM_MALFORMED_RESPONSE


def test_details_of_several_parts_go_back_together_and_in_order() -> None:
    first, second = (
        ReasoningPart(provider_state=b'[{"index":0,"text":"a"}]'),
        ReasoningPart(text="b", provider_state=b'[{"index":0,"text":"b"},{"index":1}]'),
    )
    message = Message(role=Role.ASSISTANT, parts=(first, TextPart(text="hi"), second))
    assert body_of(call(message))["messages"] == [
        {
            "role": "assistant",
            "content": "hi",
            "reasoning_details": [{"index": 0, "text": "a"}, {"index": 0, "text": "b"}, {"index": 1}],
        }
    ]


@pytest.mark.parametrize("state", [b"x", b"{}", b"[]", b"[1]", b'[{"a":1},null]', b"\xff", b"[" * 5000])
def test_a_state_that_was_never_given_is_refused(state: bytes) -> None:
    message = Message(role=Role.ASSISTANT, parts=(ReasoningPart(provider_state=state),))
    with pytest.raises(PatchbayError) as refused:
        body_of(call(message))
    assert refused.value.reason is Reason.INVALID_REQUEST
    assert refused.value.violations[0].field == "messages[0].parts[0].reasoning.provider_state"


# --- checks and models -----------------------------------------------------------------------------------------------


def test_the_check_asks_what_needs_the_key() -> None:
    for secret, url in (
        (KEY, "https://openrouter.ai/api/v1/key"),
        ({**KEY, "endpoint": "http://localhost:1/v1/"}, "http://localhost:1/v1/key"),
    ):
        request = ADAPTER.prepare_check("a/b", Secret(secret), NOW)
        assert (request.method, request.url) == ("GET", url)
        assert dict(request.headers)["authorization"] == f"Bearer {KEY['api_key']}"


def test_models_are_listed_with_what_they_take() -> None:
    entry = {
        "id": "anthropic/claude-opus-5.5",
        "name": "Anthropic: Claude Opus 5.5",
        "created": 1795000000,
        "context_length": 1_000_000,
        "top_provider": {"context_length": 200_000, "max_completion_tokens": 64_000},
        "pricing": {"prompt": "0.000003"},
    }
    bare = {"id": "a/b", "context_length": None, "top_provider": None}
    body = json.dumps({"data": [entry, bare], "total_count": 2}).encode()
    assert ADAPTER.prepare_models("", Secret(KEY), NOW).url == "https://openrouter.ai/api/v1/models"
    page = ADAPTER.read_models(HttpAnswer(status=200, headers={}, body=body, received_at=NOW))
    model, plain = page.models
    assert (model.display_name, model.max_input_tokens, model.max_output_tokens) == (
        "Anthropic: Claude Opus 5.5",
        1_000_000,
        64_000,
    )
    assert msgspec.structs.asdict(plain)["max_input_tokens"] is None


@pytest.mark.parametrize(
    ("links", "next_page"),
    [
        ({"next": "https://openrouter.ai/api/v1/models?offset=500&limit=500"}, "offset=500&limit=500"),
        ({"next": "/api/v1/models?cursor=a%2Fb"}, "cursor=a%2Fb"),
        ({"next": "https://attacker.example/?a=b#c"}, ""),
        ({"next": "https://attacker.example/?a=b c"}, ""),
        ({"next": None}, ""),
        ({"next": 7}, ""),
        ({}, ""),
        ([], ""),
        (None, ""),
    ],
)
def test_of_the_link_to_the_next_page_only_the_query_is_taken(links: Any, next_page: str) -> None:
    body = json.dumps({"data": [{"id": "a/b"}], "links": links}).encode()
    page = ADAPTER.read_models(HttpAnswer(status=200, headers={}, body=body, received_at=NOW))
    assert page.next_page == next_page
    root = "https://openrouter.ai/api/v1/models"
    assert ADAPTER.prepare_models(page.next_page, Secret(KEY), NOW).url == (
        f"{root}?{next_page}" if next_page else root
    )


def test_a_file_may_be_named_by_its_address() -> None:
    file = MediaPart(mime_type="application/pdf", uri="https://example.com/a.pdf")
    asked = Call(
        id="01", model="a/b", prompt=Prompt(messages=(Message(role=Role.USER, parts=(file,)),)), streaming=False
    )
    body = json.loads(ADAPTER.prepare(asked, Secret(KEY), NOW).request.body)
    assert body["messages"][0]["content"] == [
        {"type": "file", "file": {"filename": "file.pdf", "file_data": "https://example.com/a.pdf"}}
    ]
    with pytest.raises(PatchbayError):
        ADAPTER.prepare(
            msgspec.structs.replace(
                asked,
                prompt=Prompt(
                    messages=(
                        Message(
                            role=Role.USER, parts=(MediaPart(mime_type="application/pdf", uri="gs://bucket/a.pdf"),)
                        ),
                    )
                ),
            ),
            Secret(KEY),
            NOW,
        )


# --- errors ----------------------------------------------------------------------------------------------------------


def test_a_refused_key_of_another_in_mid_stream_is_not_ours() -> None:
    fault = {"error": {"code": 401, "message": "canary", "metadata": {"provider_name": "OpenAI"}}}
    for metadata, reason in ((fault, SETTINGS), ({"error": {"code": 401, "message": "canary"}}, AUTH)):
        _, failure = read(ADAPTER.reader(call()), [Frame(data=json.dumps(metadata).encode())])
        assert failure is not None
        assert failure.reason is reason
