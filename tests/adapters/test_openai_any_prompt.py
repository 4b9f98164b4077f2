"""Any prompt becomes a request that says everything, or is refused by name."""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from patchbay_server.adapters.openai_chat import OPENAI, OPENAI_COMPATIBLE
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.testing.adapter_suite import NOW
from patchbay_server.types import (
    Call,
    Effort,
    FunctionTool,
    GenerationConfig,
    JsonObjectFormat,
    JsonSchemaFormat,
    MediaPart,
    Message,
    Prompt,
    ProviderTool,
    ReasoningConfig,
    ReasoningPart,
    RefusalPart,
    Role,
    Secret,
    TextFormat,
    TextPart,
    ToolCallPart,
    ToolChoice,
    ToolMode,
    ToolResultPart,
)

SECRETS = {
    "openai": Secret({"api_key": "sk-test"}),
    "openai_compatible": Secret({"base_url": "http://localhost/v1"}),
}
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
NAME = st.sampled_from(["f", "g"])
SCHEMA = st.sampled_from(["", "{}", '{"type":"object"}', "[]", "{", '{"z":99999999999999999999,"a":1}'])
MIME = st.sampled_from(["", "image/png", "IMAGE/JPEG", "audio/wav", "audio/ogg", "application/pdf", "text/plain"])
FLAG = st.booleans()

TEXT_PART = st.builds(TextPart, text=TEXT, cache_breakpoint=FLAG)
MEDIA = st.one_of(
    st.builds(MediaPart, mime_type=MIME, data=st.binary(max_size=4), file_name=TEXT, cache_breakpoint=FLAG),
    st.builds(MediaPart, mime_type=MIME, uri=st.sampled_from(["https://x/a", "gs://b/a", "data:x"]), file_name=TEXT),
    st.builds(MediaPart, mime_type=MIME, provider_file_id=st.just("file-1"), file_name=TEXT),
)
RESULT = st.builds(
    ToolResultPart,
    tool_call_id=st.just("1"),
    parts=st.lists(TEXT_PART | MEDIA, max_size=2).map(tuple),
    failed=FLAG,
    cache_breakpoint=FLAG,
)
PART = st.one_of(
    TEXT_PART,
    MEDIA,
    st.builds(ReasoningPart, text=TEXT, provider_state=st.binary(max_size=3)),
    st.builds(ToolCallPart, id=st.just("1"), name=NAME, arguments_json=TEXT, provider_state=st.binary(max_size=3)),
    RESULT,
    st.builds(RefusalPart, text=TEXT),
)
MESSAGE = st.builds(Message, role=st.sampled_from(Role), parts=st.lists(PART, max_size=3).map(tuple), author_name=TEXT)
REASONING = st.one_of(
    st.none(),
    st.builds(ReasoningConfig, effort=st.none() | st.sampled_from(Effort), include_text=FLAG),
    st.builds(ReasoningConfig, budget_tokens=st.integers(0, 9)),
)
UNIT = st.none() | st.sampled_from([0.0, 0.5, 1.0])
CONFIG = st.builds(
    GenerationConfig,
    max_output_tokens=st.none() | st.integers(1, 99),
    temperature=UNIT,
    top_p=UNIT,
    top_k=st.none() | st.integers(1, 9),
    stop_sequences=st.lists(TEXT.filter(bool), max_size=5).map(tuple),
    seed=st.none() | st.integers(-(2**63), 2**63 - 1),
    frequency_penalty=UNIT,
    presence_penalty=UNIT,
    reasoning=REASONING,
    parallel_tool_calls=st.none() | FLAG,
)
TOOL = st.one_of(
    st.builds(FunctionTool, name=NAME, description=TEXT, parameters_json_schema=SCHEMA, strict=st.none() | FLAG),
    st.builds(ProviderTool, json=SCHEMA),
)
FORMAT = st.one_of(
    st.none(),
    st.just(TextFormat()),
    st.just(JsonObjectFormat()),
    st.builds(JsonSchemaFormat, name=NAME, schema_json=SCHEMA, strict=st.none() | FLAG),
)
CHOICE = st.one_of(
    st.none(), st.builds(ToolChoice, mode=st.sampled_from(ToolMode)), st.builds(ToolChoice, function_name=NAME)
)
PROMPT = st.builds(
    Prompt,
    messages=st.lists(MESSAGE, max_size=3).map(tuple),
    config=CONFIG,
    tools=st.lists(TOOL, max_size=2).map(tuple),
    tool_choice=CHOICE,
    response_format=FORMAT,
    drop_unsupported=FLAG,
    provider_options_json=st.sampled_from(["", "{}", '{"a":{"b":1}}', '{"model":1}', "[]", '{"tools":7}']),
)
MODEL = st.sampled_from(["gpt-4.1", "o3", "gpt-5", "gpt-5.4", "gpt-5.6-sol", "gpt-6-astra", "gpt-9", "gpt-5-pro", "x"])


@settings(max_examples=400, deadline=None)
@given(PROMPT, MODEL, st.sampled_from([OPENAI, OPENAI_COMPATIBLE]), FLAG)
def test_any_prompt_is_a_request_or_a_refusal_that_names_a_field(
    prompt: Prompt, model: str, adapter: Any, streaming: bool
) -> None:
    call = Call(id="01", model=model, prompt=prompt, streaming=streaming)
    try:
        prepared = adapter.prepare(call, SECRETS[adapter.info.type], NOW)
    except PatchbayError as error:
        refusal: PatchbayError | None = error
    else:
        refusal = None
        body = json.loads(prepared.request.body)
        assert body["model"] == model
        assert body.get("stream", False) == streaming
    if refusal is not None:
        assert refusal.reason in (Reason.FEATURE_UNSUPPORTED, Reason.INVALID_REQUEST)
        assert refusal.violations[0].field
