"""What makes a request well-formed, whoever is to answer it."""

from typing import Any

import pytest
from tests.support import make

from patchbay_server.core import prompt as prompts
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.types import (
    ChatRequest,
    FunctionTool,
    GenerationConfig,
    JsonObjectFormat,
    JsonSchemaFormat,
    MediaPart,
    Message,
    Part,
    Prompt,
    ProviderTool,
    ReasoningConfig,
    ReasoningPart,
    RefusalPart,
    Role,
    TextPart,
    ToolCallPart,
    ToolChoice,
    ToolMode,
    ToolResultPart,
)

UUID = "123e4567-e89b-42d3-a456-426614174000"
TEXT = TextPart(text="hello")
IMAGE = MediaPart(mime_type="image/png", data=b"\x89PNG")
CALL = ToolCallPart(id="call_1", name="look_up")
RESULT = ToolResultPart(tool_call_id="call_1", parts=(TEXT,))
WEATHER = FunctionTool(name="weather", parameters_json_schema='{"type":"object"}')


def fields(request: ChatRequest) -> list[str]:
    """The fields that a request is refused for."""
    try:
        prompts.check(request)
    except PatchbayError as error:
        assert error.reason is Reason.INVALID_REQUEST  # noqa: PT017
        return [violation.field for violation in error.violations]
    return []


def with_part(part: Part, role: Role = Role.USER) -> ChatRequest:
    return make.request(Message(role=role, parts=(part,)))


def with_config(**config: Any) -> ChatRequest:
    return make.request(config=GenerationConfig(**config))


GOOD: dict[str, ChatRequest] = {
    "a plain question": make.request(),
    "everything at once": make.request(
        make.message(Role.SYSTEM),
        make.message(Role.USER, TEXT, IMAGE, MediaPart(uri="https://x.test/a.png")),
        make.message(Role.ASSISTANT, ReasoningPart(text="hm"), TEXT, CALL, RefusalPart(text="no")),
        make.message(Role.TOOL, RESULT),
        make.message(Role.ASSISTANT),
        tools=(WEATHER, ProviderTool(json='{"type":"web_search"}')),
        tool_choice=ToolChoice(function_name="weather"),
        response_format=JsonSchemaFormat(name="answer", schema_json="{}"),
        provider_options_json='{"x":1}',
        config=GenerationConfig(
            max_output_tokens=1, temperature=2, top_p=0, top_k=1, stop_sequences=("a",) * 16, frequency_penalty=-2
        ),
        feature="search.web_2-a",
        model="m" * 256,
        request_id=UUID,
        min_quality=1.0,
        labels={"team": "x" * 128},
    ),
    "a file by the provider's id": with_part(MediaPart(provider_file_id="file-1")),
    "a required tool": make.request(tools=(WEATHER,), tool_choice=ToolChoice(mode=ToolMode.REQUIRED)),
    "no tools wanted": make.request(tool_choice=ToolChoice(mode=ToolMode.NONE)),
    "any JSON": make.request(response_format=JsonObjectFormat()),
    "an empty tool result": with_part(ToolResultPart(tool_call_id="call_1"), Role.TOOL),
    "no budget": with_config(reasoning=ReasoningConfig(budget_tokens=0)),
    "an upper-case request id": make.request(request_id=UUID.upper()),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_well_formed_request_passes(name: str) -> None:
    assert fields(GOOD[name]) == []


BAD: list[tuple[str, ChatRequest]] = [
    ("feature", make.request(feature="Search")),
    ("feature", make.request(feature="1search")),
    ("feature", make.request(feature="a" * 65)),
    ("feature", make.request(feature="a\n")),
    ("model", make.request(model="m" * 257)),
    ("model", make.request(model="m\n")),
    ("model", make.request(model="m\x7f")),
    ("min_quality", make.request(min_quality=1.01)),
    ("min_quality", make.request(min_quality=float("nan"))),
    ("request_id", make.request(request_id="1")),
    ("request_id", make.request(request_id=f"{{{UUID}}}")),
    ("request_id", make.request(request_id=UUID.replace("-", ""))),
    ("labels", make.request(labels={f"k{number}": "v" for number in range(17)})),
    ("labels", make.request(labels={"Team": "v"})),
    ("labels['team']", make.request(labels={"team": "x" * 129})),
    ("labels['team']", make.request(labels={"team": "a\nb"})),
    ("messages", ChatRequest(prompt=Prompt(messages=()))),
    ("messages[0].parts", make.request(Message(role=Role.USER, parts=()))),
    ("messages[1].parts[0]", make.request(make.message(), Message(role=Role.SYSTEM, parts=(IMAGE,)))),
    ("messages[0].parts[0]", with_part(CALL, Role.USER)),
    ("messages[0].parts[0]", with_part(TEXT, Role.TOOL)),
    ("messages[0].parts[0]", with_part(RESULT, Role.ASSISTANT)),
    ("messages[0].parts[0].media", with_part(MediaPart())),
    ("messages[0].parts[0].media", with_part(MediaPart(mime_type="image/png", data=b""))),
    ("messages[0].parts[0].media", with_part(MediaPart(mime_type="image/png", data=b"x", uri="https://x.test"))),
    ("messages[0].parts[0].media.mime_type", with_part(MediaPart(data=b"x"))),
    ("messages[0].parts[0].media.mime_type", with_part(MediaPart(data=b"x", mime_type="png"))),
    ("messages[0].parts[0].media.mime_type", with_part(MediaPart(data=b"x", mime_type="image/png\r\nx: y"))),
    ("messages[0].parts[0].tool_call.id", with_part(ToolCallPart(id="", name="f"), Role.ASSISTANT)),
    ("messages[0].parts[0].tool_call.name", with_part(ToolCallPart(id="1", name=""), Role.ASSISTANT)),
    ("messages[0].parts[0].tool_result.tool_call_id", with_part(ToolResultPart(tool_call_id=""), Role.TOOL)),
    (
        "messages[0].parts[0].tool_result.parts[1].media",
        with_part(ToolResultPart(tool_call_id="1", parts=(TEXT, MediaPart())), Role.TOOL),
    ),
    ("config.max_output_tokens", with_config(max_output_tokens=0)),
    ("config.max_output_tokens", with_config(max_output_tokens=2**31)),
    ("config.temperature", with_config(temperature=-0.1)),
    ("config.temperature", with_config(temperature=float("inf"))),
    ("config.top_p", with_config(top_p=1.1)),
    ("config.top_p", with_config(top_p=float("nan"))),
    ("config.top_k", with_config(top_k=0)),
    ("config.frequency_penalty", with_config(frequency_penalty=2.1)),
    ("config.presence_penalty", with_config(presence_penalty=-2.1)),
    ("config.stop_sequences", with_config(stop_sequences=("a",) * 17)),
    ("config.stop_sequences", with_config(stop_sequences=("a", ""))),
    ("config.reasoning.budget_tokens", with_config(reasoning=ReasoningConfig(budget_tokens=-1))),
    ("tools[0].function.name", make.request(tools=(FunctionTool(name="a b"),))),
    ("tools[0].function.name", make.request(tools=(FunctionTool(name=""),))),
    ("tools[1].function.name", make.request(tools=(WEATHER, WEATHER))),
    (
        "tools[0].function.parameters_json_schema",
        make.request(tools=(FunctionTool(name="f", parameters_json_schema="["),)),
    ),
    (
        "tools[0].function.parameters_json_schema",
        make.request(tools=(FunctionTool(name="f", parameters_json_schema="1"),)),
    ),
    ("tools[0].provider_tool_json", make.request(tools=(ProviderTool(json="[]"),))),
    ("tool_choice.function_name", make.request(tools=(WEATHER,), tool_choice=ToolChoice(function_name="other"))),
    ("tool_choice.function_name", make.request(tool_choice=ToolChoice(function_name="weather"))),
    ("tool_choice.mode", make.request(tool_choice=ToolChoice(mode=ToolMode.REQUIRED))),
    (
        "response_format.json_schema.schema_json",
        make.request(response_format=JsonSchemaFormat(name="a", schema_json="x")),
    ),
    ("response_format.json_schema.name", make.request(response_format=JsonSchemaFormat(name="", schema_json="{}"))),
    ("provider_options_json", make.request(provider_options_json="null")),
    ("provider_options_json", make.request(provider_options_json="[" * 100_000)),
    ("provider_options_json", make.request(provider_options_json='{"a":"\ud800"}')),
    ("messages[0].parts[0].reasoning.provider_state", with_part(ReasoningPart(provider_state=b"raw"), Role.ASSISTANT)),
    (
        "messages[0].parts[0].tool_call.provider_state",
        with_part(ToolCallPart(id="1", name="f", provider_state=b"pb1:openai"), Role.ASSISTANT),
    ),
]


@pytest.mark.parametrize(("field", "request_"), BAD, ids=[f"{index}-{field}" for index, (field, _) in enumerate(BAD)])
def test_each_violation_names_its_field(field: str, request_: ChatRequest) -> None:
    assert fields(request_) == [field]


@pytest.mark.parametrize(
    ("limit", "field", "given"),
    [
        ("MESSAGES_MAX", "messages", {"messages": (make.message(),) * 3}),
        ("PARTS_MAX", "messages[0].parts", {"messages": (make.message(Role.USER, TEXT, TEXT, TEXT),)}),
        ("TOOLS_MAX", "tools", {"tools": tuple(FunctionTool(name=name) for name in "abc")}),
    ],
)
def test_what_can_be_many_is_bounded(
    monkeypatch: pytest.MonkeyPatch, limit: str, field: str, given: dict[str, Any]
) -> None:
    monkeypatch.setattr(prompts, limit, 2)
    assert fields(make.request(prompt=Prompt(**({"messages": (make.message(),)} | given)))) == [field]


def test_a_refusal_tells_the_first_fault_in_words_and_names_the_others() -> None:
    with pytest.raises(PatchbayError, match=r"^feature: .* \(and more\)$") as caught:
        prompts.check(make.request(feature="A", model="m" * 300))
    assert [violation.field for violation in caught.value.violations] == ["feature", "model"]


def test_a_request_with_a_million_faults_is_refused_as_cheaply_as_one_with_few() -> None:
    looked_at = 0

    class Faulty(tuple[Message, ...]):
        def __iter__(self) -> Any:
            nonlocal looked_at
            for message in super().__iter__():
                looked_at += 1
                yield message

    messages = Faulty((Message(role=Role.USER, parts=()),) * 1_000)
    assert len(fields(make.request(prompt=Prompt(messages=messages)))) == prompts.VIOLATIONS_MAX
    assert looked_at <= prompts.VIOLATIONS_MAX


def test_a_refusal_repeats_no_more_of_a_value_than_a_glance() -> None:
    with pytest.raises(PatchbayError) as caught:
        prompts.check(make.request(provider_options_json='["' + "x" * 10_000 + '"]'))
    assert len(str(caught.value)) < 200
