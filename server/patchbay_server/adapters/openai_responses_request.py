"""A prompt in the words of `POST /responses`.

Nothing is kept at the provider (`store` is false), so reasoning travels with the conversation: each reasoning item
comes back as the provider gave it, in its place.

Source: OpenAPI description 2026-08-21 and the types of the openai library 3.52.0 (read 2026-11-20).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from patchbay_server.adapters.json_body import object_or_empty
from patchbay_server.adapters.knobs import unsupported
from patchbay_server.adapters.openai_answer import phase_of
from patchbay_server.adapters.openai_dialect import Dialect
from patchbay_server.adapters.openai_prompt import (
    checked_address,
    data_url,
    file_name,
    misplaced,
    parameters,
    taken_effort,
    taken_knobs,
    takes_strict,
)
from patchbay_server.adapters.openai_request import RESERVED, Json, Request, joined, typed_format
from patchbay_server.types import (
    Call,
    FunctionTool,
    MediaPart,
    Message,
    Notice,
    Part,
    ReasoningPart,
    RefusalPart,
    ResponseFormat,
    Role,
    TextPart,
    ToolCallPart,
)

MAX_OUTPUT_TOKENS_MIN: Final = 16

_LACKING: Final = frozenset({"stop_sequences", "seed", "frequency_penalty", "presence_penalty"})


def responses_body(call: Call, dialect: Dialect) -> tuple[Json, tuple[Notice, ...]]:
    """As `Request.body` has it."""
    return _ResponsesRequest(call, dialect).body()


class _ResponsesRequest(Request):
    text_type = "input_text"
    markable = frozenset({"input_text", "input_image", "input_file"})
    # What stands for the messages here, what would put others before them, what would answer before the answer.
    reserved = RESERVED | {"input", "conversation", "previous_response_id", "background"}

    def _stream_options(self) -> Mapping[str, bool]:
        return self._dialect.responses_stream_options

    # --- input ---

    def _conversation(self) -> Json:
        items: list[Any] = []
        for index, message in enumerate(self._prompt.messages):
            path = f"messages[{index}]"
            if message.author_name:
                raise unsupported(f"{path}.author_name", f"{self._dialect.name} takes no name with tools or reasoning")
            items += self._items(path, message)
        said: Json = {"input": items, "store": False}
        # A model that does not reason refuses to be asked for it (400 "Encrypted content is not supported").
        return {**said, "include": ["reasoning.encrypted_content"]} if self._family.gives_reasoning else said

    def _items(self, path: str, message: Message) -> list[Any]:
        match message.role:
            case Role.SYSTEM:
                return [self._instructions(path, message)]
            case Role.USER:
                return [self._question(path, message)]
            case Role.ASSISTANT:
                return self._answer(path, message.parts)
            case Role.TOOL:
                return [self._output(f"{path}.parts[{index}]", part) for index, part in enumerate(message.parts)]

    def _answer(self, path: str, parts: Sequence[Part]) -> list[Any]:
        """An earlier answer, item by item in its order; texts and refusals that follow one another are one message."""
        items: list[Any] = []
        said: list[Json] = []
        phase = ""
        for index, part in enumerate(parts):
            where = f"{path}.parts[{index}]"
            if isinstance(part, TextPart | RefusalPart):
                said.append(self._part(where, part, (TextPart, RefusalPart), "output_text"))
                continue
            items += _answered(said, phase)
            said = []
            match part:
                case ReasoningPart() if kept := phase_of(part.provider_state):
                    phase = kept
                case ReasoningPart():
                    items += self._reasoning_back(where, part, _reasoning_items)
                case ToolCallPart():
                    items.append({"type": "function_call", "call_id": part.id, **self._call_back(where, part)})
                case _:
                    raise misplaced(where, part, self._dialect)
        return items + _answered(said, phase)

    def _output(self, path: str, part: Part) -> Json:
        call_id, output = self._result(path, part, (TextPart, MediaPart))
        return {"type": "function_call_output", "call_id": call_id, "output": output}

    # --- parts ---

    def _image(self, path: str, part: MediaPart) -> Json:
        return {"type": "input_image", **self._image_source(path, part)}

    def _file(self, path: str, part: MediaPart) -> Json:
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

    def _chosen(self, function: str) -> Json:
        return {"type": "function", "name": function}

    def _function(self, path: str, tool: FunctionTool) -> Json:
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

    def _response_format(self, response_format: ResponseFormat) -> Json:
        return {"text": {"format": typed_format(response_format, within="")}}


def _reasoning_items(state: bytes) -> list[msgspec.Raw]:
    """The one item of a state that `ResponsesReader` gave; nothing else may stand among the items.

    Raises:
        ValueError: it is no such item.
    """
    if object_or_empty(state).get("type") != "reasoning":
        raise ValueError("not a reasoning item")
    return [msgspec.Raw(state)]


def _answered(said: list[Json], phase: str) -> list[Json]:
    if not said:
        return []
    message: Json = {"role": "assistant", "content": joined(said)}
    return [{**message, "phase": phase} if phase else message]
