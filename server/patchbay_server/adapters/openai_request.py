"""A prompt on its way into a request: what chat completions and the Responses API say alike, written once.

The two differ in the names of things and in where they stand, which is all that their own modules say.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Final

import msgspec

from patchbay_server.adapters.json_body import RESERVED_OPTIONS, merged
from patchbay_server.adapters.knobs import unsupported
from patchbay_server.adapters.openai_dialect import Dialect
from patchbay_server.adapters.openai_prompt import (
    LeftOut,
    MediaKind,
    audio,
    check_tool_choice,
    failed_text,
    format_type,
    instructions_role,
    media_kind,
    misplaced,
    provider_tool,
    schema,
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
    TextPart,
    ToolCallPart,
    ToolMode,
    ToolResultPart,
)

RESERVED: Final = RESERVED_OPTIONS | {"api_key", "n", "stream_options.include_usage"}
"""`api_key` is no field of OpenAI's, but proxies that speak its language take credentials from it. Of `n` answers only
the first would be read, and all be paid for; whether a stream's tokens are counted is the gateway's to say.
"""

_CACHE_MARK: Final = {"mode": "explicit"}

Json = dict[str, Any]


class Request(ABC):
    """One call on its way into one of the two APIs.

    `text_type` is the type of a text part of a question, `markable` are the types of parts that hold a cache mark,
    `reserved` the fields that provider options never set.
    """

    text_type: ClassVar[str]
    markable: ClassVar[frozenset[str]]
    reserved: ClassVar[frozenset[str]] = RESERVED

    def __init__(self, call: Call, dialect: Dialect) -> None:
        self._call = call
        self._prompt = call.prompt
        self._dialect = dialect
        self._family = dialect.family(call.model)
        self._left_out = LeftOut(call, dialect)

    def body(self) -> tuple[Json, tuple[Notice, ...]]:
        """The request's JSON and what had to be left out of it.

        Raises:
            PatchbayError: FEATURE_UNSUPPORTED naming the field that cannot be said, INVALID_REQUEST.
        """
        body: Json = {"model": self._dialect.deployment or self._call.model}
        body |= self._conversation()
        body |= self._tools()
        body |= self._config()
        if self._prompt.response_format is not None:
            body |= self._response_format(self._prompt.response_format)
        body |= self._routing(body)
        if self._call.streaming:
            body["stream"] = True
            if options := self._stream_options():
                body["stream_options"] = dict(options)
        reserved = self.reserved | self._dialect.reserved
        return merged(body, self._prompt.provider_options_json, reserved), self._left_out.notices

    # --- what each API says in its own way ---

    @abstractmethod
    def _conversation(self) -> Json:
        """The fields that say the messages."""

    @abstractmethod
    def _config(self) -> Json:
        """The fields that say the knobs."""

    @abstractmethod
    def _response_format(self, response_format: ResponseFormat) -> Json:
        """The field that says the format."""

    @abstractmethod
    def _stream_options(self) -> Mapping[str, bool]: ...

    @abstractmethod
    def _function(self, path: str, tool: FunctionTool) -> Json: ...

    @abstractmethod
    def _chosen(self, function: str) -> Json:
        """The choice of one function."""

    @abstractmethod
    def _image(self, path: str, part: MediaPart) -> Json: ...

    @abstractmethod
    def _file(self, path: str, part: MediaPart) -> Json: ...

    def _routing(self, _body: Json) -> Json:
        """What else the request needs, given all that it asks for."""
        return {}

    # --- messages ---

    def _instructions(self, path: str, message: Message) -> Json:
        role = instructions_role(self._dialect, self._family)
        return {"role": role, "content": self._content(path, message.parts, (TextPart,))}

    def _question(self, path: str, message: Message) -> Json:
        return {"role": "user", "content": self._content(path, message.parts, (TextPart, MediaPart))}

    def _call_back(self, path: str, part: ToolCallPart) -> Json:
        """Name and arguments of a function that was called in an earlier answer."""
        if not self._dialect.tools:
            raise unsupported(f"{path}.tool_call", "this connector's server takes no tools")
        if part.provider_state:
            self._left_out.reasoning(f"{path}.tool_call.provider_state")
        if part.cache_breakpoint:
            self._left_out.cache_breakpoint(path)
        return {"name": part.name, "arguments": part.arguments_json or "{}"}

    def _reasoning_back(
        self, path: str, part: ReasoningPart, items: Callable[[bytes], list[msgspec.Raw]]
    ) -> list[msgspec.Raw]:
        """The reasoning of an earlier answer byte for byte, as `items` finds it in its state.

        Raises:
            PatchbayError: INVALID_REQUEST where `items` raises ValueError.
        """
        if part.cache_breakpoint:
            self._left_out.cache_breakpoint(path)
        if not part.provider_state:
            self._left_out.reasoning(f"{path}.reasoning")
            return []
        try:
            return items(part.provider_state)
        except ValueError as error:
            raise PatchbayError(
                Reason.INVALID_REQUEST,
                "send provider_state back byte for byte as it was received",
                field=f"{path}.reasoning.provider_state",
            ) from error

    def _result(self, path: str, part: Part, allowed: tuple[type, ...]) -> tuple[str, str | list[Json]]:
        """The id and the content of a tool's result."""
        if not isinstance(part, ToolResultPart):
            raise misplaced(path, part, self._dialect)
        where = f"{path}.tool_result"
        if not self._dialect.tools:
            raise unsupported(where, "this connector's server takes no tools")
        contents = self._contents(where, part.parts, allowed)
        if part.failed:
            contents = self._failed(contents)
        if part.cache_breakpoint:
            self._mark(contents[-1] if contents else {}, where)
        return part.tool_call_id, joined(contents)

    def _failed(self, contents: list[Json]) -> list[Json]:
        if contents and contents[0]["type"] == self.text_type:
            return [{**contents[0], "text": failed_text(contents[0]["text"])}, *contents[1:]]
        return [{"type": self.text_type, "text": failed_text("the tool failed")}, *contents]

    # --- parts ---

    def _content(self, path: str, parts: Sequence[Part], allowed: tuple[type, ...]) -> str | list[Json]:
        return joined(self._contents(path, parts, allowed))

    def _contents(self, path: str, parts: Sequence[Part], allowed: tuple[type, ...]) -> list[Json]:
        return [self._part(f"{path}.parts[{index}]", part, allowed) for index, part in enumerate(parts)]

    def _part(self, path: str, part: Part, allowed: tuple[type, ...], text_type: str = "") -> Json:
        if not isinstance(part, allowed):
            raise misplaced(path, part, self._dialect)
        match part:
            case RefusalPart() if self._dialect.refusal_parts:
                said: Json = {"type": "refusal", "refusal": part.text}
            case TextPart() | RefusalPart():
                said = {"type": text_type or self.text_type, "text": part.text}
            case MediaPart():
                said = self._media(path, part)
            case _:
                raise misplaced(path, part, self._dialect)
        if part.cache_breakpoint:
            self._mark(said, path)
        return said

    def _media(self, path: str, part: MediaPart) -> Json:
        kind = media_kind(part)
        if kind is not MediaKind.FILE and part.file_name:
            self._left_out.file_name(path)
        match kind:
            case MediaKind.IMAGE:
                return self._image(path, part)
            case MediaKind.AUDIO:
                return {"type": "input_audio", "input_audio": audio(part, path, self._dialect)}
            case MediaKind.FILE:
                return self._file(path, part)

    def _mark(self, said: Json, path: str) -> None:
        """Say that the prompt is worth caching up to and including `said`."""
        if self._family.cache_breakpoints and said.get("type") in self.markable:
            said["prompt_cache_breakpoint"] = _CACHE_MARK
        elif said.get("type") in self._dialect.cache_control:
            said["cache_control"] = {"type": "ephemeral"}
        else:
            self._left_out.cache_breakpoint(path)

    # --- tools ---

    def _tools(self) -> Json:
        prompt = self._prompt
        if not prompt.tools:
            # A choice among no tools says nothing, and the API refuses it.
            return {}
        if not self._dialect.tools:
            raise unsupported("tools", "this connector's server takes no tools")
        said: Json = {
            "tools": [
                provider_tool(tool, f"tools[{index}]")
                if isinstance(tool, ProviderTool)
                else self._function(f"tools[{index}]", tool)
                for index, tool in enumerate(prompt.tools)
            ]
        }
        check_tool_choice(self._call)
        if prompt.tool_choice is not None:
            named = prompt.tool_choice.function_name
            mode = prompt.tool_choice.mode or ToolMode.AUTO
            if not self._dialect.tool_choice and (named is not None or mode is not ToolMode.AUTO):
                raise unsupported("tool_choice", "this connector's server lets its model choose by itself")
            said["tool_choice"] = mode.value if named is None else self._chosen(named)
        parallel = prompt.config.parallel_tool_calls
        if "parallel_tool_calls" in self._family.refuses:
            if parallel is False:
                self._left_out.knob("parallel_tool_calls", "this model calls as many tools at once as it likes")
        elif parallel is not None:
            said["parallel_tool_calls"] = parallel
        return said


def typed_format(response_format: ResponseFormat, *, within: str) -> Json:
    """A format with its type; what describes its schema stands in the member `within`, or beside the type if empty."""
    said: Json = {"type": format_type(response_format)}
    if not isinstance(response_format, JsonSchemaFormat):
        return said
    described: Json = {"name": response_format.name, "schema": schema(response_format)}
    if response_format.strict is not None:
        described["strict"] = response_format.strict
    return said | ({within: described} if within else described)


def joined(contents: list[Json]) -> str | list[Json]:
    """Parts as a message's content: a lone text as a string, which every server understands."""
    if not contents:
        return ""
    if len(contents) == 1 and contents[0].keys() == {"type", "text"}:
        text: str = contents[0]["text"]
        return text
    return contents
