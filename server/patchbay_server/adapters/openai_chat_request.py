"""A prompt in the words of `POST /chat/completions`.

Source: OpenAPI description 2026-08-21 and the types of the openai library 3.52.0 (read 2026-11-20).
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from patchbay_server.adapters.knobs import unsupported
from patchbay_server.adapters.openai_dialect import Dialect
from patchbay_server.adapters.openai_prompt import (
    checked_address,
    data_url,
    file_name,
    parameters,
    taken_effort,
    taken_knobs,
    takes_strict,
)
from patchbay_server.adapters.openai_reasoning import details_of
from patchbay_server.adapters.openai_request import Json, Request, joined, typed_format
from patchbay_server.types import (
    Call,
    Effort,
    FunctionTool,
    MediaPart,
    Message,
    Notice,
    ReasoningPart,
    RefusalPart,
    ResponseFormat,
    Role,
    TextPart,
    ToolCallPart,
)


def chat_body(call: Call, dialect: Dialect) -> tuple[Json, tuple[Notice, ...]]:
    """As `Request.body` has it."""
    return _ChatRequest(call, dialect).body()


class _ChatRequest(Request):
    text_type = "text"
    markable = frozenset({"text", "image_url", "input_audio", "file"})

    def _stream_options(self) -> Mapping[str, bool]:
        return self._dialect.stream_options

    def _routing(self, body: Json) -> Json:
        if self._dialect.requires_parameters and self._asks_for_more(body):
            return {"provider": {"require_parameters": True}}
        return {}

    def _asks_for_more(self, body: Json) -> bool:
        """Whether something is asked for that a route could leave out against the caller's will."""
        if self._prompt.drop_unsupported:
            return not _MUST_BE_KEPT.isdisjoint(body)
        return not (_MUST_BE_KEPT | _MAY_BE_LACKING).isdisjoint(body)

    # --- messages ---

    def _conversation(self) -> Json:
        messages = enumerate(self._prompt.messages)
        return {
            "messages": [said for index, message in messages for said in self._message(f"messages[{index}]", message)]
        }

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

    def _answer(self, path: str, message: Message) -> Json:
        contents: list[Json] = []
        calls: list[Json] = []
        details: list[msgspec.Raw] = []
        for index, part in enumerate(message.parts):
            where = f"{path}.parts[{index}]"
            match part:
                case ReasoningPart():
                    details += self._reasoning(where, part)
                case ToolCallPart():
                    called = self._call_back(where, part)
                    calls.append({"id": self._call_id(part.id), "type": "function", "function": called})
                case _:
                    contents.append(self._part(where, part, (TextPart, RefusalPart)))
        answer: Json = {"role": "assistant", "content": joined(contents) if contents or not calls else None}
        if calls:
            answer["tool_calls"] = calls
        if details:
            answer["reasoning_details"] = details
        return answer

    def _reasoning(self, path: str, part: ReasoningPart) -> list[msgspec.Raw]:
        if not self._dialect.reasoning_details:
            part = msgspec.structs.replace(part, provider_state=b"")
        return self._reasoning_back(path, part, details_of)

    def _results(self, path: str, message: Message) -> list[Json]:
        if message.author_name:
            raise unsupported(f"{path}.author_name", f"{self._dialect.name} takes no name for a tool's result")
        results = [
            self._result(f"{path}.parts[{index}]", part, (TextPart,)) for index, part in enumerate(message.parts)
        ]
        return [
            {"role": "tool", "tool_call_id": self._call_id(call_id), "content": content} for call_id, content in results
        ]

    def _call_id(self, foreign: str) -> str:
        """A tool call's id in the form that the server takes: the same for a call and its result."""
        form = self._dialect.tool_call_ids
        if not form or re.fullmatch(form, foreign):
            return foreign
        return hashlib.sha256(foreign.encode()).hexdigest()[: self._dialect.tool_call_id_chars]

    # --- parts ---

    def _image(self, path: str, part: MediaPart) -> Json:
        return {"type": "image_url", "image_url": {"url": self._image_address(path, part)}}

    def _image_address(self, path: str, part: MediaPart) -> str:
        if part.data is not None:
            return data_url(part, part.data)
        if part.uri is None:
            raise unsupported(
                f"{path}.media.provider_file_id", f"{self._dialect.name} takes images as data or address here"
            )
        if not self._dialect.image_addresses and not part.uri.lower().startswith("data:"):
            raise unsupported(f"{path}.media.uri", "this connector's server fetches no images; send the data instead")
        return checked_address(part, path, self._dialect)

    def _file(self, path: str, part: MediaPart) -> Json:
        return {"type": "file", "file": self._file_source(path, part)}

    def _file_source(self, path: str, part: MediaPart) -> Json:
        if part.provider_file_id is not None:
            if not self._dialect.file_ids:
                raise unsupported(f"{path}.media.provider_file_id", f"{self._dialect.name} keeps no files")
            named = {"filename": part.file_name} if part.file_name else {}
            return {"file_id": part.provider_file_id, **named}
        if part.data is None and self._dialect.file_addresses:
            return {"filename": file_name(part), "file_data": checked_address(part, path, self._dialect)}
        if part.data is None:
            raise unsupported(f"{path}.media.uri", f"{self._dialect.name} takes files as data or file id here")
        return {"filename": file_name(part), "file_data": data_url(part, part.data)}

    # --- tools ---

    def _chosen(self, function: str) -> Json:
        return {"type": "function", "function": {"name": function}}

    def _function(self, path: str, tool: FunctionTool) -> Json:
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
        if "seed" in taken:
            said[self._dialect.seed_field] = taken.pop("seed")
        said |= taken
        if stop and self._stop_fits(stop):
            said["stop"] = list(stop)
        if self._dialect.reasoning_details:
            return said | self._asked_reasoning()
        if (effort := self._effort()) is not None:
            said["reasoning_effort"] = effort.value
        return said

    def _asked_reasoning(self) -> Json:
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

    def _response_format(self, response_format: ResponseFormat) -> Json:
        return {"response_format": typed_format(response_format, within="json_schema")}


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
