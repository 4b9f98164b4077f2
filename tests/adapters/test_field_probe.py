"""The field probe leaves no field out: every one that an adapter can be given, and every one of the contract."""

from collections import Counter
from collections.abc import Iterator
from enum import StrEnum
from typing import Any, Final

import msgspec
import pytest
from google.protobuf.descriptor import Descriptor

from patchbay.v1 import content_pb2, gateway_service_pb2
from patchbay_server.testing.field_probe import PROBES, Probe
from patchbay_server.types import Effort, Prompt, Role, ToolMode

NO_CONTENT: Final = {
    "Prompt.drop_unsupported": "says what becomes of fields that are refused; the suite tests it with each of them",
    "ToolCallPart.id": "ties a result to its call, where the provider does not do so by name",
    "ToolResultPart.tool_call_id": "ties a result to its call, where the provider does not do so by name",
}

OF_THE_GATEWAY: Final = {
    *("owner", "feature", "connector", "model", "fallback", "min_quality"),
    *("labels", "request_id", "stream_options", "unsupported"),
}
"""Fields of a request that are settled before an adapter sees it, or are about how its answer is passed on."""

CONTRACT: Final = {
    gateway_service_pb2.ChatRequest: "Prompt",
    gateway_service_pb2.GenerationConfig: "GenerationConfig",
    gateway_service_pb2.ReasoningConfig: "ReasoningConfig",
    gateway_service_pb2.FunctionTool: "FunctionTool",
    gateway_service_pb2.ToolChoice: "ToolChoice",
    content_pb2.ChatMessage: "Message",
    content_pb2.Media: "MediaPart",
    content_pb2.Reasoning: "ReasoningPart",
    content_pb2.ToolCall: "ToolCallPart",
    content_pb2.ToolResult: "ToolResultPart",
    content_pb2.Refusal: "RefusalPart",
}
"""Messages of the contract, and the values that they become."""


def structs(kind: Any = None) -> Iterator[Any]:
    """Every struct that a prompt can hold, itself first."""
    kind = kind or msgspec.inspect.type_info(Prompt)
    match kind:
        case msgspec.inspect.StructType():
            yield kind.cls
            for field in kind.fields:
                yield from structs(field.type)
        case msgspec.inspect.VarTupleType():
            yield from structs(kind.item_type)
        case msgspec.inspect.UnionType():
            for one in kind.types:
                yield from structs(one)


def fields() -> set[str]:
    return {f"{struct.__name__}.{name}" for struct in structs() for name in struct.__struct_fields__}


def set_by(probe: Probe) -> Iterator[tuple[str, Any]]:
    yield from _changes(probe.without, probe.with_it)


def _changes(before: Any, after: Any) -> Iterator[tuple[str, Any]]:
    """Fields that differ, and their new values. Of a struct that is new: what has no default, or everything that is set
    where all of it has one.
    """
    if isinstance(after, tuple):
        for index, item in enumerate(after):
            yield from _changes(before[index] if isinstance(before, tuple) and index < len(before) else None, item)
    elif isinstance(after, msgspec.Struct):
        known = msgspec.structs.fields(after)
        fresh = type(before) is not type(after)
        required = any(field.required for field in known)
        for field in known:
            new = getattr(after, field.name)
            old = field.default if fresh else getattr(before, field.name)
            if new != old and not (fresh and required and not field.required):
                yield f"{type(after).__name__}.{field.name}", new
            if new != old:
                yield from _changes(old, new)


SET: Final = [change for probe in PROBES for change in set_by(probe)]


def test_every_field_that_an_adapter_can_be_given_is_probed() -> None:
    assert {name for name, _ in SET} | NO_CONTENT.keys() == fields()


@pytest.mark.parametrize("words", [Effort, Role, ToolMode])
def test_every_word_of_a_choice_is_probed(words: type[StrEnum]) -> None:
    probed = {value for _, value in SET if isinstance(value, words)}
    probed |= {message.role for probe in PROBES for message in probe.with_it.messages if words is Role}
    assert probed == set(words)


@pytest.mark.parametrize("message", CONTRACT, ids=lambda message: message.DESCRIPTOR.name)
def test_every_field_of_the_contract_is_one_of_these(message: Any) -> None:
    described: Descriptor = message.DESCRIPTOR
    own = {field.name for field in described.fields} - (OF_THE_GATEWAY if described.name == "ChatRequest" else set())
    known = {name.partition(".")[2] for name in fields() if name.startswith(f"{CONTRACT[message]}.")}
    assert own <= known, "the values lack a field of the contract, or the probe has to be told whose it is"


def test_every_kind_of_part_can_be_marked_for_the_prompt_cache() -> None:
    parts = {field.message_type.name if field.message_type else "Text" for field in _oneof("part")}
    marked = {name.removesuffix("Part.cache_breakpoint") for name, _ in SET if name.endswith(".cache_breakpoint")}
    assert marked == parts


def _oneof(name: str) -> list[Any]:
    return list(content_pb2.ContentPart.DESCRIPTOR.oneofs_by_name[name].fields)


def test_every_probe_has_a_name_of_its_own_and_a_path_of_the_request() -> None:
    names = Counter(probe.name for probe in PROBES)
    assert [name for name, count in names.items() if count > 1] == []
    roots = {field.name for field in gateway_service_pb2.ChatRequest.DESCRIPTOR.fields}
    assert {probe.path.split(".")[0].partition("[")[0] for probe in PROBES} <= roots - OF_THE_GATEWAY
