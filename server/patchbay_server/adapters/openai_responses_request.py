"""A prompt in the words of `POST /responses`.

Nothing is kept at the provider (`store` is false), so reasoning travels with the conversation: each reasoning item
comes back as the provider gave it, in its place.

Source: OpenAPI description 2026-08-21 and the types of the openai library 3.52.0 (read 2026-11-20).
"""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from patchbay_server.adapters.json_body import RESERVED_OPTIONS, merged, object_or_empty
from patchbay_server.adapters.knobs import unsupported
from patchbay_server.adapters.openai_dialect import Dialect
from patchbay_server.adapters.openai_prompt import (
    CACHE_MARK,
    LeftOut,
    MediaKind,
    audio,
    check_tool_choice,
    checked_address,
    data_url,
    failed_text,
    file_name,
    format_type,
    instructions_role,
    media_kind,
    misplaced,
    parameters,
    provider_tool,
    schema,
    taken_effort,
    taken_knobs,
    takes_strict,
)
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.types import (
    Call,
    FunctionTool,
    JsonSchemaFormat,
    MediaPart,
    Message,
    Notice,
    Part,
    ProviderTool,
    ReasoningPart,
    RefusalPart,
    ResponseFormat,
    Role,
    TextPart,
    Tool,
    ToolCallPart,
    ToolMode,
    ToolResultPart,
)

RESERVED: Final = RESERVED_OPTIONS | {"input", "conversation", "previous_response_id", "background", "api_key"}
"""What stands for the messages here, what would put others before them, and what would answer before the answer."""

MAX_OUTPUT_TOKENS_MIN: Final = 16

_LACKING: Final = frozenset({"stop_sequences", "seed", "frequency_penalty", "presence_penalty"})
_MARKABLE: Final = frozenset({"input_text", "input_image", "input_file"})

Json = dict[str, Any]


def responses_body(call: Call, dialect: Dialect) -> tuple[Json, tuple[Notice, ...]]:
    """The request's JSON and what had to be left out of it.

    Raises:
        PatchbayError: FEATURE_UNSUPPORTED naming the field that cannot be said, INVALID_REQUEST.
    """
    return _ResponsesRequest(call, dialect).body()


class _ResponsesRequest:
    """One call on its way into the dialect."""

    def __init__(self, call: Call, dialect: Dialect) -> None:
        self._call = call
        self._prompt = call.prompt
        self._dialect = dialect
        self._family = dialect.family(call.model)
        self._left_out = LeftOut(call, dialect)

    def body(self) -> tuple[Json, tuple[Notice, ...]]:
        body: Json = {"model": self._dialect.deployment or self._call.model, "input": self._input(), "store": False}
        body["include"] = ["reasoning.encrypted_content"]
        body |= self._tools()
        body |= self._config()
        if self._prompt.response_format is not None:
            body["text"] = {"format": self._format(self._prompt.response_format)}
        if self._call.streaming:
            body["stream"] = True
            if self._dialect.responses_stream_options:
                body["stream_options"] = dict(self._dialect.responses_stream_options)
        reserved = RESERVED | self._dialect.reserved
        return merged(body, self._prompt.provider_options_json, reserved), self._left_out.notices

    # --- input ---

    def _input(self) -> list[Any]:
        items: list[Any] = []
        for index, message in enumerate(self._prompt.messages):
            path = f"messages[{index}]"
            if message.author_name:
                raise unsupported(f"{path}.author_name", f"{self._dialect.name} takes no name with tools or reasoning")
            items += self._items(path, message)
        return items

    def _items(self, path: str, message: Message) -> list[Any]:
        match message.role:
            case Role.SYSTEM:
                role = instructions_role(self._dialect, self._family)
                return [{"role": role, "content": self._content(path, message.parts, (TextPart,))}]
            case Role.USER:
                return [{"role": "user", "content": self._content(path, message.parts, (TextPart, MediaPart))}]
            case Role.ASSISTANT:
                return self._answer(path, message.parts)
            case Role.TOOL:
                return [self._result(f"{path}.parts[{index}]", part) for index, part in enumerate(message.parts)]

    def _answer(self, path: str, parts: Sequence[Part]) -> list[Any]:
        """An earlier answer, item by item in its order; texts and refusals that follow one another are one message."""
        items: list[Any] = []
        said: list[Json] = []
        for index, part in enumerate(parts):
            where = f"{path}.parts[{index}]"
            if isinstance(part, TextPart | RefusalPart):
                said.append(self._said(where, part))
                continue
            items += _answered(said)
            said = []
            match part:
                case ReasoningPart():
                    items += self._reasoning(f"{where}.reasoning", part)
                case ToolCallPart():
                    items.append(self._tool_call(where, part))
                case _:
                    raise misplaced(where, part, self._dialect)
        return items + _answered(said)

    def _said(self, path: str, part: TextPart | RefusalPart) -> Json:
        if part.cache_breakpoint:
            self._left_out.cache_breakpoint(path)
        if isinstance(part, RefusalPart) and self._dialect.refusal_parts:
            return {"type": "refusal", "refusal": part.text}
        return {"type": "output_text", "text": part.text}

    def _reasoning(self, path: str, part: ReasoningPart) -> list[msgspec.Raw]:
        if part.cache_breakpoint:
            self._left_out.cache_breakpoint(path.removesuffix(".reasoning"))
        if not part.provider_state:
            self._left_out.reasoning(path)
            return []
        if not _is_reasoning_item(part.provider_state):
            raise PatchbayError(
                Reason.INVALID_REQUEST,
                "send provider_state back byte for byte as it was received",
                field=f"{path}.provider_state",
            )
        return [msgspec.Raw(part.provider_state)]

    def _tool_call(self, path: str, part: ToolCallPart) -> Json:
        if part.provider_state:
            self._left_out.reasoning(f"{path}.tool_call.provider_state")
        if part.cache_breakpoint:
            self._left_out.cache_breakpoint(path)
        arguments = part.arguments_json or "{}"
        return {"type": "function_call", "call_id": part.id, "name": part.name, "arguments": arguments}

    def _result(self, path: str, part: Part) -> Json:
        if not isinstance(part, ToolResultPart):
            raise misplaced(path, part, self._dialect)
        where = f"{path}.tool_result"
        contents = [
            self._part(f"{where}.parts[{index}]", inner, (TextPart, MediaPart))
            for index, inner in enumerate(part.parts)
        ]
        if part.failed:
            contents = _failed(contents)
        if part.cache_breakpoint:
            self._mark(contents[-1] if contents else {}, where)
        return {"type": "function_call_output", "call_id": part.tool_call_id, "output": _joined(contents)}

    # --- parts ---

    def _content(self, path: str, parts: Sequence[Part], allowed: tuple[type, ...]) -> str | list[Json]:
        return _joined([self._part(f"{path}.parts[{index}]", part, allowed) for index, part in enumerate(parts)])

    def _part(self, path: str, part: Part, allowed: tuple[type, ...]) -> Json:
        if not isinstance(part, allowed):
            raise misplaced(path, part, self._dialect)
        match part:
            case TextPart():
                said: Json = {"type": "input_text", "text": part.text}
            case MediaPart():
                said = self._media(path, part)
            case _:
                raise misplaced(path, part, self._dialect)
        if part.cache_breakpoint:
            self._mark(said, path)
        return said

    def _mark(self, said: Json, path: str) -> None:
        """Say that the prompt is worth caching up to and including `said`."""
        if self._family.cache_breakpoints and said.get("type") in _MARKABLE:
            said["prompt_cache_breakpoint"] = CACHE_MARK
        else:
            self._left_out.cache_breakpoint(path)

    def _media(self, path: str, part: MediaPart) -> Json:
        kind = media_kind(part)
        if part.file_name and kind is not MediaKind.FILE:
            self._left_out.file_name(path)
        match kind:
            case MediaKind.IMAGE:
                return {"type": "input_image", **self._image_source(path, part)}
            case MediaKind.AUDIO:
                return {"type": "input_audio", "input_audio": audio(part, path, self._dialect)}
            case MediaKind.FILE:
                return {"type": "input_file", **self._file_source(path, part)}

    def _image_source(self, path: str, part: MediaPart) -> Json:
        if part.provider_file_id is not None:
            return {"file_id": part.provider_file_id, "detail": "auto"}
        if part.data is not None:
            return {"image_url": data_url(part, part.data), "detail": "auto"}
        return {"image_url": checked_address(part, path, self._dialect), "detail": "auto"}

    def _file_source(self, path: str, part: MediaPart) -> Json:
        named = {"filename": part.file_name} if part.file_name else {}
        if part.provider_file_id is not None:
            return {"file_id": part.provider_file_id, **named}
        if part.data is not None:
            return {"filename": file_name(part), "file_data": data_url(part, part.data)}
        return {"file_url": checked_address(part, path, self._dialect), **named}

    # --- tools ---

    def _tools(self) -> Json:
        prompt = self._prompt
        if not prompt.tools:
            return {}
        said: Json = {"tools": [self._tool(f"tools[{index}]", tool) for index, tool in enumerate(prompt.tools)]}
        check_tool_choice(self._call)
        if prompt.tool_choice is not None:
            if prompt.tool_choice.function_name is not None:
                said["tool_choice"] = {"type": "function", "name": prompt.tool_choice.function_name}
            else:
                said["tool_choice"] = (prompt.tool_choice.mode or ToolMode.AUTO).value
        if prompt.config.parallel_tool_calls is not None:
            said["parallel_tool_calls"] = prompt.config.parallel_tool_calls
        return said

    def _tool(self, path: str, tool: Tool) -> Any:
        match tool:
            case ProviderTool():
                return provider_tool(tool, path)
            case FunctionTool():
                # Here a function is strict unless it says otherwise, and the key is required.
                said: Json = {"type": "function", "name": tool.name}
                if tool.description:
                    said["description"] = tool.description
                said["parameters"] = parameters(tool, path)
                return {**said, "strict": bool(tool.strict)} if takes_strict(tool, path, self._dialect) else said

    # --- knobs ---

    def _config(self) -> Json:
        config = self._prompt.config
        dialect, family, left_out = self._dialect, self._family, self._left_out
        said = taken_knobs(config, dialect=dialect, family=family, left_out=left_out, lacking=_LACKING)
        if config.max_output_tokens is not None:
            if config.max_output_tokens >= MAX_OUTPUT_TOKENS_MIN:
                said["max_output_tokens"] = config.max_output_tokens
            else:
                left_out.knob(
                    "max_output_tokens", f"{dialect.name} takes no limit below {MAX_OUTPUT_TOKENS_MIN} tokens here"
                )
        reasoning: Json = {}
        if (effort := taken_effort(config, dialect=dialect, family=family, left_out=left_out)) is not None:
            reasoning["effort"] = effort.value
        if config.reasoning is not None and config.reasoning.include_text and not dialect.shows_reasoning:
            reasoning["summary"] = "auto"
        return {**said, "reasoning": reasoning} if reasoning else said

    @staticmethod
    def _format(response_format: ResponseFormat) -> Json:
        said: Json = {"type": format_type(response_format)}
        if isinstance(response_format, JsonSchemaFormat):
            said |= {"name": response_format.name, "schema": schema(response_format)}
            if response_format.strict is not None:
                said["strict"] = response_format.strict
        return said


def _is_reasoning_item(state: bytes) -> bool:
    """Whether a state is what `ResponsesReader` gave; nothing else may stand among the items."""
    return object_or_empty(state).get("type") == "reasoning"


def _answered(said: list[Json]) -> list[Json]:
    return [{"role": "assistant", "content": _joined(said)}] if said else []


def _failed(contents: list[Json]) -> list[Json]:
    if contents and contents[0]["type"] == "input_text":
        return [{**contents[0], "text": failed_text(contents[0]["text"])}, *contents[1:]]
    return [{"type": "input_text", "text": failed_text("the tool failed")}, *contents]


def _joined(contents: list[Json]) -> str | list[Json]:
    """Parts as content: a lone text as a string."""
    if not contents:
        return ""
    if len(contents) == 1 and contents[0].keys() == {"type", "text"}:
        text: str = contents[0]["text"]
        return text
    return contents
