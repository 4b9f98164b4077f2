"""From what people write to the messages of the contract, and back."""

from pathlib import Path
from typing import Any

import pytest

from patchbay.v1 import content_pb2 as pb
from patchbay.v1 import gateway_service_pb2 as gateway_pb
from patchbay_client import Media, Message, Reasoning, Refusal, Text, ToolCall, ToolResult, assistant, system, user
from patchbay_client.content import from_parts, to_messages
from patchbay_client.request import JsonSchema, Tool, chat_request

IMAGE = Media(data=b"\x89PNG", mime_type="image/png", file_name="cat.png")
PARTS: list[Any] = [
    Text("hello"),
    IMAGE,
    Media(uri="https://example/cat.png"),
    Media(provider_file_id="file-1", mime_type="application/pdf"),
    Reasoning(text="hm", provider_state=b"\x00\xff"),
    ToolCall(id="t", name="f", arguments_json='{"a": 1}', provider_state=b"s"),
    ToolResult("t", (Text("4"),), failed=True),
    Refusal("no"),
    Refusal(),
]


@pytest.mark.parametrize("part", PARTS, ids=repr)
def test_a_part_survives_the_way_to_the_contract_and_back(part: Any) -> None:
    (message,) = to_messages([Message("assistant", part)])
    assert from_parts(message.parts) == (part,)


@pytest.mark.parametrize(
    "prompt",
    [
        "hello",
        user("hello"),
        [user("hello")],
        [{"role": "user", "content": "hello"}],
        [{"role": "USER", "content": ["hello"]}],
        [{"role": "user", "content": [{"text": "hello"}]}],
        [{"role": "user", "content": Text("hello")}],
        [pb.ChatMessage(role=pb.ROLE_USER, parts=[pb.ContentPart(text="hello")])],
    ],
)
def test_there_are_many_ways_to_say_hello(prompt: Any) -> None:
    assert to_messages(prompt) == [pb.ChatMessage(role=pb.ROLE_USER, parts=[pb.ContentPart(text="hello")])]


def test_mappings_say_whatever_parts_can() -> None:
    prompt = [
        {
            "role": "user",
            "author_name": "Ann",
            "content": [{"media": {"uri": "https://x/y"}, "cache_breakpoint": True}],
        },
        {"role": "assistant", "content": [{"tool_call": {"id": "t", "name": "f"}}, {"refusal": "no"}]},
        {"role": "tool", "content": [{"tool_result": {"tool_call_id": "t", "content": ["4", IMAGE]}}]},
    ]
    first, second, third = to_messages(prompt)
    assert first.author_name == "Ann"
    assert first.parts[0].cache_breakpoint
    assert second.parts[0].tool_call.arguments_json == "{}"
    assert second.parts[1].refusal.text == "no"
    assert [part.WhichOneof("part") for part in third.parts[0].tool_result.parts] == ["text", "media"]


def test_turns_of_one_role_stay_apart_and_in_order() -> None:
    messages = to_messages([system("a"), system("b"), user("c"), user("d"), assistant("e")])
    assert [(message.role, message.parts[0].text) for message in messages] == [
        (pb.ROLE_SYSTEM, "a"),
        (pb.ROLE_SYSTEM, "b"),
        (pb.ROLE_USER, "c"),
        (pb.ROLE_USER, "d"),
        (pb.ROLE_ASSISTANT, "e"),
    ]


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ([{"role": "robot", "content": "x"}], "SYSTEM, USER, ASSISTANT, TOOL"),
        ([{"role": "unspecified", "content": "x"}], "is not one of"),
        ([{"role": "user", "text": "x"}], "role, content, author_name"),
        ([{"role": "user", "content": [{"image": "x"}]}], "a part needs one of"),
        ([{"role": "user", "content": [{"media": {"url": "x"}}]}], "url: no such key"),
        ([Message("user", Media(mime_type="image/png"))], "exactly one of data"),
        ([Message("user", Media(data=b"x"))], "needs a mime_type"),
    ],
)
def test_what_is_no_prompt_is_refused_with_what_would_be(prompt: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        to_messages(prompt)


@pytest.mark.parametrize("prompt", [[1], [["x"]], [Message("user", [1])]])  # type: ignore[list-item]
def test_things_that_are_no_turns_are_type_errors(prompt: Any) -> None:
    with pytest.raises(TypeError, match="is no"):
        to_messages(prompt)


def test_a_file_becomes_media_of_its_type(tmp_path: Path) -> None:
    image = tmp_path / "cat.png"
    image.write_bytes(b"\x89PNG")
    assert Media.from_file(image) == IMAGE
    strange = tmp_path / "cat.unknown-type"
    strange.write_bytes(b"x")
    with pytest.raises(ValueError, match="give mime_type"):
        Media.from_file(strange)
    assert Media.from_file(strange, "image/png").mime_type == "image/png"
    (tmp_path / "empty.png").touch()
    with pytest.raises(ValueError, match="is empty"):
        Media.from_file(tmp_path / "empty.png")


def test_options_that_are_left_out_are_left_out() -> None:
    request = chat_request("Hi", {"temperature": None, "tools": []})
    assert {field.name for field, _ in request.ListFields()} == {"messages", "request_id"}
    assert request.request_id != chat_request("Hi", {}).request_id


def test_schemas_keep_their_text_and_key_order() -> None:
    exact = '{"type":"object", "properties":{"z":{},"a":{}}, "x": 9007199254740993}'
    request = chat_request(
        "Hi", {"tools": [Tool("f", parameters=exact)], "response_format": JsonSchema({"z": 1, "a": 2})}
    )
    assert request.tools[0].function.parameters_json_schema == exact
    assert request.response_format.json_schema.schema_json == '{"z": 1, "a": 2}'
    assert not request.response_format.json_schema.HasField("strict")


@pytest.mark.parametrize(
    ("options", "case"),
    [
        ({"response_format": "json"}, "json_object"),
        ({"response_format": "text"}, "text"),
        ({"response_format": {"type": "object"}}, "json_schema"),
    ],
)
def test_the_form_of_an_answer(options: dict[str, Any], case: str) -> None:
    assert chat_request("Hi", options).response_format.WhichOneof("format") == case


def test_reasoning_is_a_level_or_a_budget() -> None:
    level = chat_request("Hi", {"reasoning": "high"}).config.reasoning
    budget = chat_request("Hi", {"reasoning": 0}).config.reasoning
    assert (level.WhichOneof("budget"), level.effort) == ("effort", gateway_pb.REASONING_EFFORT_HIGH)
    assert (budget.WhichOneof("budget"), budget.budget_tokens) == ("budget_tokens", 0)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"temprature": 1}, TypeError, "temprature: no such option"),
        ({"reasoning": "lots"}, ValueError, "MINIMAL"),
        ({"fallback": "maybe"}, ValueError, "OWNER_CHAIN"),
        ({"tool_choice": "f"}, ValueError, "REQUIRED"),
        ({"response_format": "yaml"}, ValueError, "JsonSchema"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        chat_request("Hi", options)


def test_a_whole_request_is_taken_as_it_is_and_alone() -> None:
    request = gateway_pb.ChatRequest(owner="owners/a")
    assert chat_request(request, {}) is request
    with pytest.raises(TypeError, match="its own options"):
        chat_request(request, {"model": "m"})
