"""From the wire: every field of a request arrives, or is refused by its path."""

from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from tests.support import make

from patchbay.v1 import content_pb2 as content_pb
from patchbay.v1 import gateway_service_pb2 as pb
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.rpc.convert.requests import Delivery, chat_request, delivery
from patchbay_server.types import (
    ChatRequest,
    Effort,
    FallbackMode,
    GenerationConfig,
    MediaPart,
    ReasoningConfig,
    Role,
    TextPart,
    ToolCallPart,
    ToolMode,
    ToolResultPart,
)

ANYONE = make.caller(None)
UNKNOWN: Any = 99
"""A value of an enum that a later contract may have."""
BASES: dict[str, Any] = {
    "ChatMessage": content_pb.ChatMessage(role=content_pb.ROLE_USER, parts=[content_pb.ContentPart(text="base")]),
    "ContentPart": content_pb.ContentPart(text="base"),
    "Media": content_pb.Media(uri="https://base.example"),
    "Tool": pb.Tool(function=pb.FunctionTool(name="base")),
    "ToolChoice": pb.ToolChoice(mode=pb.TOOL_CHOICE_MODE_NONE),
    "ResponseFormat": pb.ResponseFormat(json_schema=pb.JsonSchemaFormat(name="base", schema_json="{}")),
}
"""What makes a message whole, so that one field more is all that differs."""
BASE = pb.ChatRequest(messages=[BASES["ChatMessage"]])


def converted(request: pb.ChatRequest) -> tuple[ChatRequest, Delivery]:
    copied = pb.ChatRequest()
    copied.CopyFrom(request)
    return chat_request(copied, ANYONE), delivery(copied.stream_options)


def refused(request: pb.ChatRequest) -> PatchbayError:
    with pytest.raises(PatchbayError) as caught:
        converted(request)
    assert caught.value.reason is Reason.INVALID_REQUEST
    return caught.value


def fields_at_fault(request: pb.ChatRequest) -> list[str]:
    return [violation.field for violation in refused(request).violations]


# --- the walk ---------------------------------------------------------------------------------------------------------

Step = tuple[Any, ...]
"""Field descriptors, outermost first."""


def leaves(path: Step = ()) -> Iterator[Step]:
    """Every field of ChatRequest that holds a value itself, by the fields that lead to it."""
    message = path[-1].message_type if path else pb.ChatRequest.DESCRIPTOR
    if [step.message_type.name for step in path].count("ContentPart") > 2:
        return  # Parts of a tool's result have been looked into; they lead to parts again.
    for field in message.fields:
        inner = field.message_type
        is_leaf = inner is None or not inner.fields or inner.GetOptions().map_entry or inner.name == "Duration"
        if is_leaf:
            yield (*path, field)
        else:
            yield from leaves((*path, field))


def name_of(steps: Step) -> str:
    *through, last = steps
    return ".".join([*(f"{step.name}[0]" if step.is_repeated else step.name for step in through), last.name])


def container(request: pb.ChatRequest, steps: Step) -> Any:
    """The message that holds the last field, whole, with those that lead to it."""
    here: Any = request
    for step in steps[:-1]:
        inner = getattr(here, step.name)
        if step.is_repeated:
            del inner[:]
            here = inner.add()
        else:
            here = inner
            here.SetInParent()
        if step.message_type.name in BASES:
            here.CopyFrom(BASES[step.message_type.name])
    return here


def set_probe(here: Any, field: Any) -> None:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        getattr(here, field.name)["probe"] = "probe"
    elif field.is_repeated:
        getattr(here, field.name).append("probe")
    elif field.message_type is not None and field.message_type.name == "Duration":
        getattr(here, field.name).seconds = 42
    elif field.message_type is not None:
        getattr(here, field.name).SetInParent()
    else:
        setattr(here, field.name, probe(field))


def probe(field: Any) -> Any:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_ENUM:
            return field.enum_type.values[-1].number
        case FieldDescriptor.CPPTYPE_STRING:
            return b"probe" if field.type == FieldDescriptor.TYPE_BYTES else "probe"
        case FieldDescriptor.CPPTYPE_BOOL:
            return True
        case FieldDescriptor.CPPTYPE_DOUBLE:
            return 0.25
        case _:
            return 42


def attempted(request: pb.ChatRequest) -> object:
    """What the request becomes, or the fields by which it is refused."""
    try:
        return converted(request)
    except PatchbayError as error:
        return [violation.field for violation in error.violations]


@pytest.mark.parametrize("steps", [pytest.param(steps, id=name_of(steps)) for steps in leaves()])
def test_every_field_of_a_request_arrives_or_is_refused_by_name(steps: Step) -> None:
    request = pb.ChatRequest()
    request.CopyFrom(BASE)
    here = container(request, steps)
    before = attempted(request)
    set_probe(here, steps[-1])
    after = attempted(request)
    if isinstance(after, list):
        assert after, "a refusal names the field"
        assert any(name_of(steps).startswith(field) for field in after)
    else:
        assert after != before


def test_the_walk_sees_the_fields_that_matter() -> None:
    names = {name_of(steps) for steps in leaves()}
    assert {
        "owner",
        "messages[0].parts[0].media.data",
        "messages[0].parts[0].tool_result.parts[0].text",
        "config.reasoning.effort",
        "tools[0].function.strict",
        "response_format.json_schema.schema_json",
        "labels",
        "stream_options.heartbeat_interval",
        "provider_options_json",
    } <= names


# --- what arrives -----------------------------------------------------------------------------------------------------


def with_request(**fields: Any) -> pb.ChatRequest:
    request = pb.ChatRequest(**fields)
    if not request.messages:
        request.messages.add().CopyFrom(BASES["ChatMessage"])
    return request


def with_message(**fields: Any) -> pb.ChatRequest:
    return with_request(messages=[content_pb.ChatMessage(**fields)])


def with_part(**fields: Any) -> pb.ChatRequest:
    return with_message(role=content_pb.ROLE_USER, parts=[content_pb.ContentPart(**fields)])


def test_a_bare_request_asks_for_nothing_but_its_messages() -> None:
    request, options = converted(BASE)
    assert request == make.request(make.message(Role.USER, TextPart(text="base")))
    assert options == Delivery(coalescing=True, heartbeat_s=15.0, final_response=False)


def test_zero_and_unset_are_told_apart() -> None:
    request, _ = converted(
        with_request(config=pb.GenerationConfig(temperature=0.0, seed=0, parallel_tool_calls=False), min_quality=0.0)
    )
    assert request.prompt.config == GenerationConfig(temperature=0.0, seed=0, parallel_tool_calls=False)
    assert request.min_quality == 0.0


def test_json_that_is_not_ours_stays_as_it_was_written() -> None:
    text = '{"z": 1,  "a":9007199254740993}'
    request, _ = converted(with_request(provider_options_json=text, tools=[pb.Tool(provider_tool_json=text)]))
    assert request.prompt.provider_options_json == text
    assert request.prompt.tools[0].json == text  # type: ignore[union-attr]


def test_a_tool_call_without_arguments_has_an_empty_object() -> None:
    call = content_pb.ToolCall(id="1", name="f", provider_state=b"\x00\xff")
    request, _ = converted(with_part(tool_call=call, cache_breakpoint=True))
    assert request.prompt.messages[0].parts == (
        ToolCallPart(id="1", name="f", arguments_json="{}", provider_state=b"\x00\xff", cache_breakpoint=True),
    )


def test_a_tool_result_holds_text_and_media() -> None:
    result = content_pb.ToolResult(
        tool_call_id="1",
        failed=True,
        parts=[
            content_pb.ContentPart(text="no"),
            content_pb.ContentPart(media=content_pb.Media(data=b"png", mime_type="image/png")),
        ],
    )
    request, _ = converted(with_part(tool_result=result))
    media = MediaPart(data=b"png", mime_type="image/png")
    assert request.prompt.messages[0].parts == (
        ToolResultPart(tool_call_id="1", parts=(TextPart(text="no"), media), failed=True),
    )


def test_enums_arrive_by_their_names() -> None:
    request, options = converted(
        with_request(
            fallback=pb.FALLBACK_MODE_OWNER_CHAIN,
            tool_choice=pb.ToolChoice(mode=pb.TOOL_CHOICE_MODE_REQUIRED),
            config=pb.GenerationConfig(reasoning=pb.ReasoningConfig(effort=pb.REASONING_EFFORT_XHIGH)),
            unsupported=pb.UNSUPPORTED_ACTION_DROP,
            stream_options=pb.StreamOptions(coalescing=pb.COALESCING_OFF),
        )
    )
    assert request.fallback is FallbackMode.OWNER_CHAIN
    assert request.prompt.tool_choice is not None
    assert request.prompt.tool_choice.mode is ToolMode.REQUIRED
    assert request.prompt.config.reasoning == ReasoningConfig(effort=Effort.XHIGH)
    assert request.prompt.drop_unsupported
    assert not options.coalescing


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (with_message(parts=[BASES["ContentPart"]]), "messages[0].role"),
        (with_part(), "messages[0].parts[0]"),
        (with_part(media=content_pb.Media(mime_type="image/png")), "messages[0].parts[0].media"),
        (
            with_part(tool_result=content_pb.ToolResult(parts=[content_pb.ContentPart()])),
            "messages[0].parts[0].tool_result.parts[0]",
        ),
        (with_request(tools=[pb.Tool()]), "tools[0]"),
        (with_request(tool_choice=pb.ToolChoice()), "tool_choice"),
        (with_request(tool_choice=pb.ToolChoice(mode=pb.TOOL_CHOICE_MODE_UNSPECIFIED)), "tool_choice.mode"),
        (with_request(response_format=pb.ResponseFormat()), "response_format"),
        (
            with_request(
                config=pb.GenerationConfig(reasoning=pb.ReasoningConfig(effort=pb.REASONING_EFFORT_UNSPECIFIED))
            ),
            "config.reasoning.effort",
        ),
        (with_request(fallback=UNKNOWN), "fallback"),
        (with_request(unsupported=UNKNOWN), "unsupported"),
        (with_request(owner="owners/No"), "owner"),
        (with_request(owner="owners/a/connectors/b"), "owner"),
        (with_request(connector="owners/a/connectors/"), "connector"),
        (with_request(stream_options=pb.StreamOptions(coalescing=UNKNOWN)), "stream_options.coalescing"),
    ],
)
def test_what_the_wire_leaves_open_is_refused_by_its_path(request_: pb.ChatRequest, field: str) -> None:
    assert fields_at_fault(request_) == [field]


def test_all_faults_are_told_at_once() -> None:
    request = with_request(owner="Owners", fallback=99, tools=[pb.Tool(), pb.Tool()])
    assert fields_at_fault(request) == ["owner", "tools[0]", "tools[1]", "fallback"]
    assert "(and 3 more)" in refused(request).message


def test_the_faults_that_are_told_are_bounded() -> None:
    error = refused(with_request(tools=[pb.Tool() for _ in range(1000)]))
    assert len(error.violations) == 20
    assert "(and 999 more)" in error.message


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("owner", ["owners/acme", "acme"])
@pytest.mark.parametrize("connector", ["owners/acme/connectors/main", "main"])
def test_names_may_be_whole_or_bare(owner: str, connector: str) -> None:
    request, _ = converted(with_request(owner=owner, connector=connector))
    assert (request.owner, request.connector) == ("acme", "main")


@pytest.mark.parametrize("owner", ["", "owners/acme"])
def test_another_owners_connector_is_not_found(owner: str) -> None:
    request = with_request(owner=owner, connector="owners/other/connectors/main")
    with pytest.raises(PatchbayError) as caught:
        chat_request(request, make.caller("acme"))
    assert caught.value.reason is Reason.CONNECTOR_NOT_FOUND
    assert caught.value.violations[0].field == "connector"


def test_a_callers_own_owner_needs_no_naming() -> None:
    request = with_request(connector="owners/acme/connectors/main")
    assert chat_request(request, make.caller("acme")).connector == "main"


# --- request ids ------------------------------------------------------------------------------------------------------

ID = "123e4567-e89b-42d3-a456-426614174000"


def hash_of(**fields: Any) -> bytes:
    return converted(with_request(**fields))[0].content_hash


def test_content_is_hashed_only_under_a_request_id() -> None:
    assert hash_of(model="m") == b""
    assert len(hash_of(model="m", request_id=ID)) == 32


def test_the_hash_depends_on_the_content_and_not_on_the_id() -> None:
    other = ID.replace("1", "2")
    assert hash_of(model="m", request_id=ID) == hash_of(model="m", request_id=other)
    assert hash_of(model="m", request_id=ID) != hash_of(model="n", request_id=ID)


def test_the_hash_does_not_depend_on_the_order_in_which_labels_were_set() -> None:
    there = {"a": "1", "b": "2", "c": "3", "d": "4"}
    back = dict(reversed(there.items()))
    assert hash_of(labels=there, request_id=ID) == hash_of(labels=back, request_id=ID)


# --- heartbeats -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("interval", "heartbeat_s"),
    [
        (Duration(seconds=1), 1.0),
        (Duration(seconds=300), 300.0),
        (Duration(seconds=2, nanos=500_000_000), 2.5),
        (Duration(), None),
    ],
)
def test_a_heartbeat_interval_is_kept(interval: Duration, heartbeat_s: float | None) -> None:
    _, options = converted(with_request(stream_options=pb.StreamOptions(heartbeat_interval=interval)))
    assert options.heartbeat_s == heartbeat_s


@pytest.mark.parametrize(
    "interval",
    [
        Duration(nanos=999_999_999),
        Duration(seconds=300, nanos=1),
        Duration(seconds=-5),
        Duration(seconds=1, nanos=-1),
        Duration(seconds=1, nanos=1_500_000_000),
    ],
)
def test_an_unfit_heartbeat_interval_is_refused(interval: Duration) -> None:
    request = with_request(stream_options=pb.StreamOptions(heartbeat_interval=interval))
    assert fields_at_fault(request) == ["stream_options.heartbeat_interval"]
