"""A prompt in the words of `POST /chat/completions`.

Source: OpenAPI description 2026-08-21 and the types of the openai library 3.52.0 (read 2026-11-20).
"""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from patchbay_server.adapters.json_body import RESERVED_OPTIONS, merged
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
from patchbay_server.adapters.openai_reasoning import details_of
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.types import (
    Call,
    Effort,
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

RESERVED: Final = RESERVED_OPTIONS | {"api_key"}
"""`api_key` is no field of OpenAI's, but proxies that speak its language take credentials from it."""

Json = dict[str, Any]


def chat_body(call: Call, dialect: Dialect) -> tuple[Json, tuple[Notice, ...]]:
    """The request's JSON and what had to be left out of it.

    Raises:
        PatchbayError: FEATURE_UNSUPPORTED naming the field that cannot be said, INVALID_REQUEST.
    """
    return _ChatRequest(call, dialect).body()


class _ChatRequest:
    """One call on its way into the dialect."""

    def __init__(self, call: Call, dialect: Dialect) -> None:
        self._call = call
        self._prompt = call.prompt
        self._dialect = dialect
        self._family = dialect.family(call.model)
        self._left_out = LeftOut(call, dialect)

    def body(self) -> tuple[Json, tuple[Notice, ...]]:
        body: Json = {"model": self._dialect.deployment or self._call.model, "messages": self._messages()}
        body |= self._tools()
        body |= self._config()
        if self._prompt.response_format is not None:
            body["response_format"] = self._response_format(self._prompt.response_format)
        if self._dialect.requires_parameters and self._asks_for_more(body):
            body["provider"] = {"require_parameters": True}
        if self._call.streaming:
            body["stream"] = True
            if self._dialect.stream_options:
                body["stream_options"] = dict(self._dialect.stream_options)
        reserved = RESERVED | self._dialect.reserved
        return merged(body, self._prompt.provider_options_json, reserved), self._left_out.notices

    def _asks_for_more(self, body: Json) -> bool:
        """Whether something is asked for that a route could leave out against the caller's will."""
        if self._prompt.drop_unsupported:
            return not _MUST_BE_KEPT.isdisjoint(body)
        return not (_MUST_BE_KEPT | _MAY_BE_LACKING).isdisjoint(body)

    # --- messages ---

    def _messages(self) -> list[Json]:
        return [
            said
            for index, message in enumerate(self._prompt.messages)
            for said in self._message(f"messages[{index}]", message)
        ]

    def _message(self, path: str, message: Message) -> list[Json]:
        match message.role:
            case Role.SYSTEM:
                return [self._named(path, message, self._instructions(path, message))]
            case Role.USER:
                return [self._named(path, message, self._question(path, message))]
            case Role.ASSISTANT:
                return [self._named(path, message, self._answer(path, message))]
            case Role.TOOL:
                return self._results(path, message)

    def _named(self, path: str, message: Message, said: Json) -> Json:
        if not message.author_name:
            return said
        if not self._dialect.author_names:
            raise unsupported(f"{path}.author_name", f"{self._dialect.name} takes no names of authors")
        return {**said, "name": message.author_name}

    def _instructions(self, path: str, message: Message) -> Json:
        role = instructions_role(self._dialect, self._family)
        return {"role": role, "content": self._content(path, message.parts, (TextPart,))}

    def _question(self, path: str, message: Message) -> Json:
        return {"role": "user", "content": self._content(path, message.parts, (TextPart, MediaPart))}

    def _answer(self, path: str, message: Message) -> Json:
        said: list[Part] = []
        calls: list[Json] = []
        details: list[msgspec.Raw] = []
        paths: list[str] = []
        for index, part in enumerate(message.parts):
            where = f"{path}.parts[{index}]"
            match part:
                case ReasoningPart():
                    details += self._reasoning_back(where, part)
                case ToolCallPart():
                    calls.append(self._tool_call(where, part))
                case _:
                    said.append(part)
                    paths.append(where)
        contents = [self._part(where, part, (TextPart, RefusalPart)) for where, part in zip(paths, said, strict=True)]
        answer: Json = {"role": "assistant", "content": _joined(contents) if contents or not calls else None}
        if calls:
            answer["tool_calls"] = calls
        if details:
            answer["reasoning_details"] = details
        return answer

    def _reasoning_back(self, path: str, part: ReasoningPart) -> list[msgspec.Raw]:
        if part.cache_breakpoint:
            self._left_out.cache_breakpoint(path)
        if not part.provider_state or not self._dialect.reasoning_details:
            self._left_out.reasoning(f"{path}.reasoning")
            return []
        try:
            return details_of(part.provider_state)
        except ValueError as error:
            raise PatchbayError(
                Reason.INVALID_REQUEST,
                "send provider_state back byte for byte as it was received",
                field=f"{path}.reasoning.provider_state",
            ) from error

    def _tool_call(self, path: str, part: ToolCallPart) -> Json:
        if not self._dialect.tools:
            raise unsupported(f"{path}.tool_call", "this connector's server takes no tools")
        if part.provider_state:
            self._left_out.reasoning(f"{path}.tool_call.provider_state")
        if part.cache_breakpoint:
            self._left_out.cache_breakpoint(path)
        function = {"name": part.name, "arguments": part.arguments_json or "{}"}
        return {"id": part.id, "type": "function", "function": function}

    def _results(self, path: str, message: Message) -> list[Json]:
        if message.author_name:
            raise unsupported(f"{path}.author_name", f"{self._dialect.name} takes no name for a tool's result")
        results: list[Json] = []
        for index, part in enumerate(message.parts):
            where = f"{path}.parts[{index}]"
            if not isinstance(part, ToolResultPart):
                raise misplaced(where, part, self._dialect)
            if not self._dialect.tools:
                raise unsupported(f"{where}.tool_result", "this connector's server takes no tools")
            results.append(self._result(f"{where}.tool_result", part))
        return results

    def _result(self, path: str, part: ToolResultPart) -> Json:
        contents = [self._part(f"{path}.parts[{index}]", inner, (TextPart,)) for index, inner in enumerate(part.parts)]
        if part.failed:
            first = contents[0] if contents else {"type": "text", "text": "the tool failed"}
            contents[:1] = [{**first, "text": failed_text(first["text"])}]
        if part.cache_breakpoint:
            self._mark(contents[-1] if contents else {}, path)
        return {"role": "tool", "tool_call_id": part.tool_call_id, "content": _joined(contents)}

    # --- parts ---

    def _content(self, path: str, parts: Sequence[Part], allowed: tuple[type, ...]) -> str | list[Json]:
        return _joined([self._part(f"{path}.parts[{index}]", part, allowed) for index, part in enumerate(parts)])

    def _part(self, path: str, part: Part, allowed: tuple[type, ...]) -> Json:
        if not isinstance(part, allowed):
            raise misplaced(path, part, self._dialect)
        match part:
            case TextPart():
                said: Json = {"type": "text", "text": part.text}
            case RefusalPart() if self._dialect.refusal_parts:
                said = {"type": "refusal", "refusal": part.text}
            case RefusalPart():
                said = {"type": "text", "text": part.text}
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
        elif said.get("type") in self._dialect.cache_control:
            said["cache_control"] = {"type": "ephemeral"}
        else:
            self._left_out.cache_breakpoint(path)

    def _media(self, path: str, part: MediaPart) -> Json:
        kind = media_kind(part)
        if kind is not MediaKind.FILE and part.file_name:
            self._left_out.file_name(path)
        match kind:
            case MediaKind.IMAGE:
                return {"type": "image_url", "image_url": {"url": self._image_address(path, part)}}
            case MediaKind.AUDIO:
                return {"type": "input_audio", "input_audio": audio(part, path, self._dialect)}
            case MediaKind.FILE:
                return {"type": "file", "file": self._file(path, part)}

    def _image_address(self, path: str, part: MediaPart) -> str:
        if part.data is not None:
            return data_url(part, part.data)
        if part.uri is None:
            raise unsupported(
                f"{path}.media.provider_file_id", f"{self._dialect.name} takes images as data or address here"
            )
        return checked_address(part, path, self._dialect)

    def _file(self, path: str, part: MediaPart) -> Json:
        if part.provider_file_id is not None:
            if not self._dialect.file_ids:
                raise unsupported(f"{path}.media.provider_file_id", f"{self._dialect.name} keeps no files")
            named = {"filename": part.file_name} if part.file_name else {}
            return {"file_id": part.provider_file_id, **named}
        if part.data is None:
            raise unsupported(f"{path}.media.uri", f"{self._dialect.name} takes files as data or file id here")
        return {"filename": file_name(part), "file_data": data_url(part, part.data)}

    # --- tools ---

    def _tools(self) -> Json:
        prompt = self._prompt
        if not prompt.tools:
            # A choice among no tools says nothing, and the API refuses it.
            return {}
        if not self._dialect.tools:
            raise unsupported("tools", "this connector's server takes no tools")
        said: Json = {"tools": [self._tool(f"tools[{index}]", tool) for index, tool in enumerate(prompt.tools)]}
        check_tool_choice(self._call)
        if prompt.tool_choice is not None:
            if prompt.tool_choice.function_name is not None:
                function = {"name": prompt.tool_choice.function_name}
                said["tool_choice"] = {"type": "function", "function": function}
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
                function: Json = {"name": tool.name}
                if tool.description:
                    function["description"] = tool.description
                function["parameters"] = parameters(tool, path)
                if tool.strict is not None and takes_strict(tool, path, self._dialect):
                    function["strict"] = tool.strict
                return {"type": "function", "function": function}

    # --- knobs ---

    def _config(self) -> Json:
        config = self._prompt.config
        said: Json = {}
        if config.max_output_tokens is not None:
            said[self._dialect.max_tokens_field] = config.max_output_tokens
        taken = taken_knobs(config, dialect=self._dialect, family=self._family, left_out=self._left_out)
        stop = taken.pop("stop_sequences", ())
        said |= taken
        if stop and self._stop_fits(stop):
            said["stop"] = list(stop)
        if self._dialect.reasoning_details:
            return said | self._reasoning()
        if (effort := self._effort()) is not None:
            said["reasoning_effort"] = effort.value
        return said

    def _reasoning(self) -> Json:
        config = self._prompt.config.reasoning
        if config is None:
            return {}
        asked: Json = {}
        if (effort := self._effort()) is not None:
            asked["effort"] = effort.value
        if config.budget_tokens is not None:
            if effort is None:
                asked["max_tokens"] = config.budget_tokens
            else:
                self._left_out.knob(
                    "reasoning.budget_tokens", f"{self._dialect.name} takes a reasoning effort or a budget, not both"
                )
        if config.include_text:
            asked["summary"] = "auto"
        return {"reasoning": asked} if asked else {}

    def _stop_fits(self, stop: Sequence[str]) -> bool:
        most = self._dialect.stop_sequences_max
        if most is None or len(stop) <= most:
            return True
        self._left_out.knob("stop_sequences", f"{self._dialect.name} takes at most {most} stop sequences")
        return False

    def _effort(self) -> Effort | None:
        config = self._prompt.config
        if config.reasoning is not None and config.reasoning.include_text and not self._dialect.shows_reasoning:
            self._left_out.knob("reasoning.include_text", f"{self._dialect.name} shows no reasoning of this model here")
        return taken_effort(config, dialect=self._dialect, family=self._family, left_out=self._left_out)

    @staticmethod
    def _response_format(response_format: ResponseFormat) -> Json:
        said: Json = {"type": format_type(response_format)}
        if isinstance(response_format, JsonSchemaFormat):
            described: Json = {"name": response_format.name, "schema": schema(response_format)}
            if response_format.strict is not None:
                described["strict"] = response_format.strict
            said["json_schema"] = described
        return said


_MUST_BE_KEPT: Final = frozenset({"tools", "response_format"})
_MAY_BE_LACKING: Final = frozenset(
    {
        "temperature",
        "top_p",
        "top_k",
        "seed",
        "frequency_penalty",
        "presence_penalty",
        "stop",
        "reasoning",
    }
)
"""Knobs that not every route of a provider has. The limit of output tokens is one that all have."""

_MARKABLE: Final = frozenset({"text", "image_url", "input_audio", "file"})
"""The parts that hold a cache mark."""


def _joined(contents: list[Json]) -> str | list[Json]:
    """Parts as a message's content: a lone text as a string, which every server understands."""
    if not contents:
        return ""
    if len(contents) == 1 and contents[0].keys() == {"type", "text"}:
        text: str = contents[0]["text"]
        return text
    return contents
