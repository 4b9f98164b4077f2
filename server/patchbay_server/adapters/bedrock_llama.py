"""Llama on InvokeModel: the conversation as one prompt with the tools described in it, and the answer folded.

Converse does this by itself for whole answers; it offers no tools to a Llama in a stream, and none at all to some. Text
is only ever read as a call when tools were offered.

Source: docs.aws.amazon.com, Bedrock user guide, "Meta Llama models"; meta-llama/llama-stack,
`models/llama/llama3_1/prompt_format.md` (read 2026-11-21).
"""

import re
from collections.abc import Iterator, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import msgspec

from patchbay_server.adapters import json_body
from patchbay_server.adapters.bedrock_answer import whole_object
from patchbay_server.adapters.bedrock_invoke import InvokeOptions, blocked, guardrail_intervened, inner_frame
from patchbay_server.adapters.bedrock_llama_calls import CallFinder, Found
from patchbay_server.adapters.bedrock_models import Llama, offers_tools
from patchbay_server.adapters.conversation import Conversation, arguments_of
from patchbay_server.adapters.counts import count
from patchbay_server.adapters.demands import parameters_of
from patchbay_server.adapters.faults import RAW_REASON_CHARS_MAX, decoded, malformed, not_streamed, unfinished
from patchbay_server.adapters.folding import Parts
from patchbay_server.adapters.knobs import Knobs, unsupported
from patchbay_server.types import (
    Call,
    Effort,
    Event,
    Finished,
    FinishReason,
    FunctionTool,
    JsonObjectFormat,
    JsonSchemaFormat,
    MediaPart,
    Notice,
    Opened,
    Part,
    ReasoningConfig,
    ReasoningPart,
    RefusalPart,
    Role,
    TextPart,
    ToolCallPart,
    ToolMode,
    ToolResultPart,
)
from patchbay_server.usage import Usage
from patchbay_server.wire.http import Frame

RESERVED_OPTIONS: Final = json_body.RESERVED_OPTIONS | {"prompt"}

_TOOLS_HEAD: Final = (
    "You have access to the following functions. To call a function, answer with JSON for a function call and nothing"
    ' else, in the format {"name": function name, "parameters": dictionary of argument name and its value}. Do not use'
    " variables. To call several functions, write one such JSON for each, one after the other. Call a function only"
    " when it is needed to answer."
)
_TOOL_ROLE: Final = "ipython"
_SPECIAL: Final = re.compile(r"<\|(?=[a-z0-9_]+\|>)")
"""What begins a token that only the format itself may use."""


class _Marks(NamedTuple):
    """The tokens that a generation of Llama sets a conversation in."""

    begin: str
    before_role: str
    after_role: str
    end: str


_MARKS: Final = MappingProxyType(
    {
        "llama3": _Marks("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>"),
        "llama4": _Marks("<|begin_of_text|>", "<|header_start|>", "<|header_end|>\n\n", "<|eot|>"),
    }
)


def llama_body(call: Call, llama: Llama, options: InvokeOptions) -> tuple[dict[str, Any], tuple[Notice, ...]]:
    """The body that asks for `call`, and what of the call it leaves out.

    Raises:
        PatchbayError: FEATURE_UNSUPPORTED naming the field that the model cannot be told, INVALID_REQUEST.
    """
    turns = _Turns(call)
    knobs = Knobs(droppable=call.prompt.drop_unsupported)
    # Where the caller gives no limit the model's own is asked for, as the API's default is 512.
    limit = {"max_gen_len": call.prompt.config.max_output_tokens or llama.max_output_tokens}
    body = {"prompt": turns.prompt(_MARKS[llama.marks]), **limit, **_settings(call, knobs)}
    merged = json_body.merged(body, options.body_json, RESERVED_OPTIONS)
    return {**merged, **options.fields}, turns.notices + knobs.notices


# --- what is said -----------------------------------------------------------------------------------------------------


class _Turns:
    """The messages of one call as turns of a prompt."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._conversation = Conversation(call.prompt.messages)
        self._names = {
            part.id: part.name
            for message in call.prompt.messages
            for part in message.parts
            if isinstance(part, ToolCallPart)
        }

    @property
    def notices(self) -> tuple[Notice, ...]:
        return self._conversation.notices

    def prompt(self, marks: _Marks) -> str:
        """The whole conversation, up to where the model has to go on."""

        def head(role: str) -> str:
            return f"{marks.before_role}{role}{marks.after_role}"

        turns = "".join(f"{head(role)}{text}{marks.end}" for role, text in self._turns())
        return f"{marks.begin}{turns}{head('assistant')}"

    def _turns(self) -> Iterator[tuple[str, str]]:
        """Role and text of each turn: one for each message, and the tools at the head of the first system message."""
        said = [(_role(message.role), self._said(i)) for i, message in enumerate(self._call.prompt.messages)]
        tools = self._tools()
        if tools and said[0][0] == "system":
            tools = f"{tools}\n\n{said.pop(0)[1]}"
        if tools:
            yield "system", tools
        yield from (turn for turn in said if turn[1])

    def _said(self, index: int) -> str:
        texts: list[str] = []
        for path, part in self._conversation.parts(index):
            if part.cache_breakpoint:
                self._conversation.drop(f"{path}.cache_breakpoint", "this model takes no cache marks")
            texts.append(self._text(part, path))
        return "\n".join(filter(None, texts))

    def _text(self, part: Part, path: str) -> str:
        match part:
            case TextPart() | RefusalPart():
                return escaped(part.text)
            case MediaPart():
                raise unsupported(f"{path}.media", "this model takes media only without tools in the conversation")
            case ReasoningPart():
                self._conversation.leave_out_reasoning(path)
                return ""
            case ToolCallPart():
                return self._tool_call(part, path)
            case ToolResultPart():
                return self._result(part, path)

    def _tool_call(self, part: ToolCallPart, path: str) -> str:
        self._conversation.leave_out_signature(part, path)
        return escaped(json_body.encode({"name": part.name, "parameters": arguments_of(part, path)}).decode())

    def _result(self, part: ToolResultPart, path: str) -> str:
        """A result tells its function by name, as results have no ids here."""
        for k, inner in enumerate(part.parts):
            if isinstance(inner, MediaPart):
                raise unsupported(f"{path}.tool_result.parts[{k}].media", "this model takes results in words only")
            if inner.cache_breakpoint:
                field = f"{path}.tool_result.parts[{k}].cache_breakpoint"
                self._conversation.drop(field, "this model takes no cache marks")
        text = "\n".join(inner.text for inner in part.parts if isinstance(inner, TextPart))
        name = self._names.get(part.tool_call_id, "")
        return escaped(json_body.encode({"name": name, "error" if part.failed else "output": text}).decode())

    def _tools(self) -> str:
        """What the model is told of the tools; nothing when it may call none."""
        if not offers_tools(self._call.prompt):
            return ""
        self._check_choice()
        lines = [_described(tool, f"tools[{i}]") for i, tool in enumerate(self._call.prompt.tools)]
        return escaped("\n\n".join((_TOOLS_HEAD, *lines)))

    def _check_choice(self) -> None:
        choice = self._call.prompt.tool_choice
        if choice is not None and choice.function_name is not None:
            raise unsupported("tool_choice.function_name", "this model cannot be made to call a tool")
        if choice is not None and choice.mode is ToolMode.REQUIRED:
            raise unsupported("tool_choice.mode", "this model cannot be made to call a tool; leave the choice to it")


def _role(role: Role) -> str:
    return _TOOL_ROLE if role is Role.TOOL else role.value


def escaped(text: str) -> str:
    """`text` that cannot end its turn: what reads as one of the format's own tokens gets a space within."""
    return _SPECIAL.sub("< |", text)


def _described(tool: Any, path: str) -> str:
    if not isinstance(tool, FunctionTool):
        raise unsupported(f"{path}.provider_tool_json", "this model knows no tools of the provider's own")
    if tool.strict:
        raise unsupported(f"{path}.function.strict", "this model cannot be held to a schema")
    parameters = parameters_of(tool, f"{path}.function")
    function = {"name": tool.name, "description": tool.description, "parameters": parameters}
    return json_body.encode({"type": "function", "function": function}).decode()


# --- how to answer ----------------------------------------------------------------------------------------------------


def _settings(call: Call, knobs: Knobs) -> dict[str, Any]:
    config = call.prompt.config
    match call.prompt.response_format:
        case JsonObjectFormat():
            raise unsupported("response_format.json_object", "this model takes no form of the answer beside tools")
        case JsonSchemaFormat():
            raise unsupported("response_format.json_schema", "this model takes no form of the answer beside tools")
    taken: dict[str, Any] = {}
    if config.temperature is not None and config.temperature > 1:
        knobs.refuse("config.temperature", "the provider takes temperatures up to 1")
    elif config.temperature is not None:
        taken["temperature"] = config.temperature
    if config.top_p is not None:
        taken["top_p"] = config.top_p
    _refuse_unknown_knobs(call, knobs)
    return taken


def _refuse_unknown_knobs(call: Call, knobs: Knobs) -> None:
    config = call.prompt.config
    reasoning = config.reasoning or ReasoningConfig()
    for name, is_set in (
        ("top_k", config.top_k is not None),
        ("stop_sequences", bool(config.stop_sequences)),
        ("seed", config.seed is not None),
        ("frequency_penalty", bool(config.frequency_penalty)),
        ("presence_penalty", bool(config.presence_penalty)),
        ("parallel_tool_calls", config.parallel_tool_calls is False),
        ("reasoning.effort", reasoning.effort not in (None, Effort.NONE)),
        ("reasoning.budget_tokens", bool(reasoning.budget_tokens)),
    ):
        if is_set:
            knobs.refuse(f"config.{name}", f"this model takes no `{name}`")


# --- what is answered -------------------------------------------------------------------------------------------------


class _Generated(msgspec.Struct, gc=False):
    """A whole answer, or a piece of one."""

    generation: Any = None
    prompt_token_count: Any = None
    generation_token_count: Any = None
    stop_reason: Any = None
    metrics: Any = msgspec.field(default=None, name="amazon-bedrock-invocationMetrics")


_generated: Final = msgspec.json.Decoder(_Generated)
_FINISH_REASONS: Final = {"stop": FinishReason.STOP, "length": FinishReason.MAX_OUTPUT_TOKENS}


class Reader:
    """Folds one answer of a Llama, streamed or whole. A stop reason ends it."""

    def __init__(self, call: Call) -> None:
        self._streaming = call.streaming
        self._parts = Parts(call.id)
        offered = call.prompt.tools if offers_tools(call.prompt) else ()
        self._calls = CallFinder(tool.name for tool in offered if isinstance(tool, FunctionTool))
        self._texts = 0
        self._prompt_tokens: int | None = None
        self._generated_tokens: int | None = None
        self._opened = False
        self._finished = False
        self._intervened = False

    @property
    def finished(self) -> bool:
        return self._finished

    def feed(self, frame: Frame) -> list[Event]:
        if self._finished:
            return []
        if frame.whole:
            return self._feed_whole(frame.data)
        inner = inner_frame(frame)
        return self._add(inner.data) if inner is not None else []

    def finish(self) -> list[Event]:
        if self._finished:
            return []
        raise unfinished(opened=self._opened)

    def _feed_whole(self, data: bytes) -> list[Event]:
        if not data.strip():
            return []
        if not isinstance(whole_object(data).get("generation"), str):
            raise malformed("the provider sent an answer that is no text")
        if self._streaming:
            raise not_streamed()
        return self._add(data)

    def _add(self, data: bytes) -> list[Event]:
        piece = decoded(_generated, data)
        self._intervened = self._intervened or guardrail_intervened(data)
        # The service counts too, for when the model did not say.
        metrics = piece.metrics if isinstance(piece.metrics, dict) else {}
        self._prompt_tokens = _last(
            self._prompt_tokens, piece.prompt_token_count, unless_known=metrics.get("inputTokenCount")
        )
        self._generated_tokens = _last(
            self._generated_tokens, piece.generation_token_count, unless_known=metrics.get("outputTokenCount")
        )
        events: list[Event] = [] if self._opened else [Opened()]
        self._opened = True
        text = piece.generation if isinstance(piece.generation, str) else ""
        self._parts.count_chars(len(text))
        events += self._told(self._calls.feed(text))
        return events + self._end(piece.stop_reason) if isinstance(piece.stop_reason, str) else events

    def _told(self, found: Sequence[Found]) -> list[Event]:
        events: list[Event] = []
        for item in found:
            key = f"text {self._texts}"
            if isinstance(item, str):
                events += self._parts.text(key, item)
                continue
            events += self._parts.complete(key)
            self._texts += 1
            events += self._parts.tool_call("call", id="", name=item.name)
            events += self._parts.arguments("call", item.arguments)
            events += self._parts.complete("call")
        return events

    def _end(self, stop_reason: str) -> list[Event]:
        events = self._told(self._calls.finish()) + self._parts.complete_all()
        self._finished = True
        finished = Finished(
            finish_reason=self._finish_reason(stop_reason),
            provider_finish_reason=stop_reason[:RAW_REASON_CHARS_MAX],
            usage=self._usage(),
            notices=self._parts.notices,
        )
        return [*events, blocked(finished) if self._intervened else finished]

    def _finish_reason(self, stop_reason: str) -> FinishReason:
        if self._parts.tool_calls and stop_reason == "stop":
            return FinishReason.TOOL_CALLS
        return _FINISH_REASONS.get(stop_reason, FinishReason.OTHER)

    def _usage(self) -> Usage | None:
        if self._prompt_tokens is None and self._generated_tokens is None:
            return None
        prompt, generated = self._prompt_tokens or 0, self._generated_tokens or 0
        return Usage(input_tokens=prompt, output_tokens=generated, total_tokens=prompt + generated)


def _last(known: int | None, reported: Any, *, unless_known: Any) -> int | None:
    """The newest count that there is; `unless_known` where there is no other."""
    newest = count(reported)
    known = known if newest is None else newest
    return count(unless_known) if known is None else known
