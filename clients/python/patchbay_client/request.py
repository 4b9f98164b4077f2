"""What is asked: from a prompt and keyword arguments to the contract's ChatRequest."""

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, TypedDict, runtime_checkable

from patchbay.v1 import gateway_service_pb2 as gateway_pb
from patchbay_client import content
from patchbay_client.reading import enum_number, to_duration

Json: TypeAlias = Mapping[str, Any] | str
"""A JSON object, or the JSON text of one, which keeps key order and large integers as they are."""


@runtime_checkable
class Named(Protocol):
    """A resource that was read, such as a `Connector`."""

    @property
    def name(self) -> str: ...


Ref: TypeAlias = str | Named
"""A resource, or its name."""


def resource_name(ref: Ref) -> str:
    return ref if isinstance(ref, str) else ref.name


def owner_name(owner: str | None) -> str:
    """`owners/acme` for "acme"; a full name stays as it is, None is empty: the caller's own owner."""
    if not owner or owner.startswith("owners/"):
        return owner or ""
    return f"owners/{owner}"


class ListOptions(TypedDict, total=False):
    """Which resources to list, and in what order; the contract tells each list's fields."""

    filter: str
    """Comparisons joined by AND, such as `state = ACTIVE AND type = "openai"`. Default: all."""
    order_by: str
    """A field, with ` desc` for descending. Default: the list's own order."""


@dataclass(frozen=True)
class Tool:
    """A function that the model may ask you to run.

    Attributes:
        name: `[a-zA-Z0-9_-]{1,128}`.
        description: what it does and when to use it.
        parameters: a JSON Schema of type object; None: no parameters.
        strict: True: the arguments must follow the schema; None: the provider's default.
    """

    name: str
    description: str = ""
    parameters: Json | None = None
    strict: bool | None = None


@dataclass(frozen=True)
class ProviderTool:
    """A tool that the provider runs, as the JSON object that the provider documents."""

    definition: Json


@dataclass(frozen=True)
class JsonSchema:
    """The form of an answer. `strict`: True: the provider enforces it; None: enforced where it can be."""

    schema: Json
    name: str = "answer"
    strict: bool | None = None


class ChatOptions(TypedDict, total=False):
    """The keyword arguments of `chat`, `stream`, `explain` and `count_tokens`. What is left out has its default."""

    owner: str
    """Whose connectors are used, "acme" or "owners/acme". Default: the caller's own."""
    feature: str
    """What the call is for, such as "search": selects the owner's preference and groups usage."""
    connector: Ref
    """A connector, its resource name, or the bare id of one of the owner's. Default: the gateway resolves it."""
    model: str
    """The provider's model id, an alias, or patchbay/auto, /quality, /balanced, /cost. Default: the model hint."""
    system: content.Content
    """Instructions, put before the prompt as a system message."""
    max_output_tokens: int
    """The most tokens to produce, reasoning included."""
    temperature: float
    """0.0 to 2.0."""
    top_p: float
    """0.0 to 1.0."""
    top_k: int
    """At least 1."""
    stop_sequences: Sequence[str]
    """At most 16; the answer ends before them."""
    seed: int
    """Equal seeds make equal answers more likely."""
    frequency_penalty: float
    """-2.0 to 2.0."""
    presence_penalty: float
    """-2.0 to 2.0."""
    reasoning: str | int
    """How much to think: "none", "minimal", "low", "medium", "high", "xhigh", "max", or a budget in tokens."""
    include_reasoning: bool
    """True: ask for readable reasoning."""
    parallel_tool_calls: bool
    """Whether one answer may hold several tool calls."""
    tools: Sequence[Tool | ProviderTool | Mapping[str, Any]]
    """What the model may call; a mapping has the fields of a `Tool`."""
    tool_choice: Literal["auto", "none", "required"] | Tool
    """Whether to call tools; a `Tool` is the one to call. Default: "auto" when there are tools."""
    response_format: Literal["text", "json"] | JsonSchema | Mapping[str, Any]
    """The form of the answer: "json" is any JSON object, a mapping is a JSON Schema. Default: "text"."""
    fallback: str
    """"none", "org_default", "retry_then_org_default" or "owner_chain". Default: the policy's."""
    min_quality: float
    """0.0 to 1.0: the quality floor for the models patchbay/..."""
    labels: Mapping[str, str]
    """For usage reports; kept in the call log, so no content and no secret."""
    request_id: str
    """A UUID that makes retries safe. Default: a fresh one."""
    unsupported: Literal["reject", "drop"]
    """A knob that the provider lacks makes the call fail (default), or is left out with a notice."""
    provider_options: Json
    """Merged into the provider's body; cannot set authentication, model, messages or streaming."""


class StreamOptions(ChatOptions, total=False):
    """The keyword arguments of `stream`: those of `chat`, and how the stream is delivered."""

    coalescing: Literal["auto", "off"]
    """"auto": deltas that arrive together are joined (default); "off": one event for each of the provider's."""
    heartbeat_interval_s: float
    """A heartbeat, which is not shown, after so many seconds of silence; 0 for none. Default: 15."""


_CONFIG_FIELDS = frozenset(
    {
        "max_output_tokens",
        "temperature",
        "top_p",
        "top_k",
        "stop_sequences",
        "seed",
        "frequency_penalty",
        "presence_penalty",
        "parallel_tool_calls",
    }
)
_PLAIN_FIELDS = frozenset({"feature", "model", "min_quality", "labels"})


def chat_request(prompt: content.Prompt | gateway_pb.ChatRequest, options: Mapping[str, Any]) -> gateway_pb.ChatRequest:
    """The request for a prompt and its options. A ChatRequest is taken as it is, for whoever wants the whole contract.

    Raises:
        TypeError: an unknown option, a value of a wrong type, or options beside a ChatRequest.
        ValueError: an unknown word, or a prompt that cannot be expressed.
    """
    if isinstance(prompt, gateway_pb.ChatRequest):
        if options:
            raise TypeError("a ChatRequest carries its own options; set them there")
        return prompt
    if unknown := options.keys() - StreamOptions.__annotations__.keys():
        raise TypeError(f"{', '.join(sorted(unknown))}: no such option")
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    request = gateway_pb.ChatRequest(
        messages=content.to_messages(prompt),
        owner=owner_name(given.get("owner")),
        connector=resource_name(given.get("connector", "")),
        request_id=given.get("request_id") or str(uuid.uuid4()),
        tools=[_tool(each) for each in given.get("tools", ())],
        **{name: given[name] for name in _PLAIN_FIELDS & given.keys()},
    )
    if "system" in given:
        request.messages.insert(0, content.system(given["system"]).to_message())
    _set_config(request, given)
    _set_choices(request, given)
    _set_stream_options(request, given)
    return request


def to_json(value: Json) -> str:
    """The JSON text; a text is taken as it is."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, allow_nan=False)


def _set_config(request: gateway_pb.ChatRequest, given: Mapping[str, Any]) -> None:
    knobs = {name: given[name] for name in _CONFIG_FIELDS & given.keys()}
    if knobs:
        request.config.CopyFrom(gateway_pb.GenerationConfig(**knobs))
    reasoning = given.get("reasoning")
    if isinstance(reasoning, str):
        effort = enum_number(gateway_pb.ReasoningEffort.DESCRIPTOR, reasoning)
        request.config.reasoning.effort = gateway_pb.ReasoningEffort.ValueType(effort)
    elif reasoning is not None:
        request.config.reasoning.budget_tokens = reasoning
    if "include_reasoning" in given:
        request.config.reasoning.include_text = given["include_reasoning"]


def _set_choices(request: gateway_pb.ChatRequest, given: Mapping[str, Any]) -> None:
    if "tool_choice" in given:
        request.tool_choice.CopyFrom(_tool_choice(given["tool_choice"]))
    if "response_format" in given:
        request.response_format.CopyFrom(_response_format(given["response_format"]))
    if "fallback" in given:
        fallback = enum_number(gateway_pb.FallbackMode.DESCRIPTOR, given["fallback"])
        request.fallback = gateway_pb.FallbackMode.ValueType(fallback)
    if "unsupported" in given:
        unsupported = enum_number(gateway_pb.UnsupportedAction.DESCRIPTOR, given["unsupported"])
        request.unsupported = gateway_pb.UnsupportedAction.ValueType(unsupported)
    if "provider_options" in given:
        request.provider_options_json = to_json(given["provider_options"])


def _set_stream_options(request: gateway_pb.ChatRequest, given: Mapping[str, Any]) -> None:
    if "coalescing" in given:
        coalescing = enum_number(gateway_pb.Coalescing.DESCRIPTOR, given["coalescing"])
        request.stream_options.coalescing = gateway_pb.Coalescing.ValueType(coalescing)
    if "heartbeat_interval_s" in given:
        request.stream_options.heartbeat_interval.CopyFrom(to_duration(given["heartbeat_interval_s"]))


def _tool(tool: Tool | ProviderTool | Mapping[str, Any]) -> gateway_pb.Tool:
    if isinstance(tool, ProviderTool):
        return gateway_pb.Tool(provider_tool_json=to_json(tool.definition))
    if isinstance(tool, Mapping):
        tool = Tool(**tool)
    schema = None if tool.parameters is None else to_json(tool.parameters)
    return gateway_pb.Tool(
        function=gateway_pb.FunctionTool(
            name=tool.name, description=tool.description, parameters_json_schema=schema or "", strict=tool.strict
        )
    )


def _tool_choice(choice: str | Tool) -> gateway_pb.ToolChoice:
    if isinstance(choice, Tool):
        return gateway_pb.ToolChoice(function_name=choice.name)
    mode = enum_number(gateway_pb.ToolChoiceMode.DESCRIPTOR, choice)
    return gateway_pb.ToolChoice(mode=gateway_pb.ToolChoiceMode.ValueType(mode))


def _response_format(wanted: str | JsonSchema | Mapping[str, Any]) -> gateway_pb.ResponseFormat:
    if isinstance(wanted, Mapping):
        wanted = JsonSchema(wanted)
    if isinstance(wanted, JsonSchema):
        return gateway_pb.ResponseFormat(
            json_schema=gateway_pb.JsonSchemaFormat(
                name=wanted.name, schema_json=to_json(wanted.schema), strict=wanted.strict
            )
        )
    if wanted == "text":
        return gateway_pb.ResponseFormat(text=gateway_pb.TextFormat())
    if wanted == "json":
        return gateway_pb.ResponseFormat(json_object=gateway_pb.JsonObjectFormat())
    raise ValueError(f'{wanted!r} is not one of "text", "json", a JsonSchema or a mapping')
