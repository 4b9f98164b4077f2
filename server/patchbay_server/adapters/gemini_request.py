"""A call as the body of `generateContent` and `streamGenerateContent`, which is the same.

Source: google-genai 3.4.0, `types.py` and `models.py` (`_GenerateContentParameters_to_mldev`); ai.google.dev/api,
"Generating content"; ai.google.dev/gemini-api/docs, "Function calling", "Structured output", "Thought signatures" and
"Long decodes" of Gemini 4 (read 2026-11-21).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import quote

import msgspec

from patchbay_server.adapters import json_body
from patchbay_server.adapters.conversation import Conversation, arguments_of
from patchbay_server.adapters.demands import schema_of
from patchbay_server.adapters.folding import is_assigned
from patchbay_server.adapters.gemini_answer import CONTINUATION, SIGNATURE, THOUGHT
from patchbay_server.adapters.gemini_models import Gemini, facts
from patchbay_server.adapters.knobs import Knobs, unsupported
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.types import (
    Call,
    Effort,
    FunctionTool,
    JsonObjectFormat,
    JsonSchemaFormat,
    MediaPart,
    Message,
    Notice,
    Part,
    Prompt,
    ProviderTool,
    ReasoningConfig,
    ReasoningPart,
    RefusalPart,
    Role,
    TextPart,
    ToolCallPart,
    ToolChoice,
    ToolMode,
    ToolResultPart,
)

STOP_SEQUENCES_MAX: Final = 5
RESERVED_OPTIONS: Final = json_body.RESERVED_OPTIONS | {
    "contents",
    "systemInstruction",
    "system_instruction",
    *(
        f"{config}.{count}"
        for config in ("generationConfig", "generation_config")
        for count in ("candidateCount", "candidate_count")
    ),
}
"""The conversation is the caller's messages, and one answer is read; in either spelling that the API takes."""

FILES_ROOT: Final = "https://generativelanguage.googleapis.com/v1beta/files/"
"""The address of an uploaded file is this one, whatever endpoint the request goes to."""

_UNSIGNED: Final = "skip_thought_signature_validator"
"""Stands for the signature of a call that another provider or model has made.

Source: ai.google.dev/gemini-api/docs/thought-signatures, "FAQs" (read 2026-11-21).
"""

_DEFAULT_TEMPERATURE: Final = 1.0
_SEED_MIN: Final = -(2**31)
_SEED_MAX: Final = 2**31 - 1
_FUNCTION_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.:-]{0,127}")
_SAMPLING: Final = (("temperature", "temperature"), ("top_p", "topP"), ("top_k", "topK"))
_PENALTIES: Final = (("presence_penalty", "presencePenalty"), ("frequency_penalty", "frequencyPenalty"))
_MODES: Final[Mapping[ToolMode, str]] = MappingProxyType(
    {ToolMode.AUTO: "AUTO", ToolMode.NONE: "NONE", ToolMode.REQUIRED: "ANY"}
)

_SIGNABLE: Final = ({"text"}, {"inlineData"})

_WirePart = dict[str, Any]
_Content = dict[str, Any]


def content_body(call: Call) -> tuple[dict[str, Any], tuple[Notice, ...]]:
    """The body that asks for `call`, provider options merged in, and what of the call it leaves out.

    Raises:
        PatchbayError: FEATURE_UNSUPPORTED naming the field that the provider or model cannot express, INVALID_REQUEST.
    """
    contents = _Contents(call)
    settings = _Settings(call)
    body = {**contents.fields(), **settings.fields()}
    merged = json_body.merged(body, call.prompt.provider_options_json, RESERVED_OPTIONS)
    return merged, contents.notices + settings.notices


# --- what is said -----------------------------------------------------------------------------------------------------


class _Called(msgspec.Struct, frozen=True):
    """A tool call of the conversation: the function's name, and which call it was, counted from 0."""

    name: str
    position: int


class _Contents:
    """The messages of one call as `systemInstruction` and `contents`."""

    def __init__(self, call: Call) -> None:
        messages, self._continuation = _to_be_continued(call.prompt.messages)
        self._conversation = Conversation(messages)
        self._facts = facts(call.model)
        self._called: dict[str, _Called] = {}
        self._calls = 0
        self._hinted = False

    @property
    def notices(self) -> tuple[Notice, ...]:
        return self._conversation.notices

    def fields(self) -> dict[str, Any]:
        lead = self._conversation.lead()
        system = [{"text": part.text} for i in range(lead) for _, part in self._instructions(i)]
        contents = [content for content in self._contents(lead) if content["parts"]]
        self._conversation.check_last(continues=self._facts.continues)
        fields: dict[str, Any] = {"contents": contents}
        if system:
            fields["systemInstruction"] = {"parts": system}
        if self._continuation is not None:
            fields[CONTINUATION] = self._continuation
        return fields

    def _contents(self, start: int) -> Iterator[_Content]:
        # Results have to follow their calls at once, all in one content; what the user says besides comes after.
        for role, run in self._conversation.turns(start, _wire_role):
            match role:
                case "user":
                    yield {"role": role, "parts": self._results(run)}
                    yield from ({"role": role, "parts": self._said(i)} for i in run)
                case "model":
                    yield from ({"role": role, "parts": self._answer(i)} for i in run)
                case _:
                    self._conversation.check_late_system(run[0], taken=False)

    def _parts(self, index: int) -> Sequence[tuple[str, Part]]:
        parts = self._conversation.parts(index)
        for path, part in parts:
            if part.cache_breakpoint:
                self._drop_hint(path)
        return parts

    # --- by role ---

    def _instructions(self, index: int) -> Iterator[tuple[str, TextPart]]:
        for path, part in self._conversation.instructions(index):
            if part.cache_breakpoint:
                self._drop_hint(path)
            yield path, part

    def _said(self, index: int) -> list[_WirePart]:
        said: list[_WirePart] = []
        for path, part in self._parts(index):
            match part:
                case TextPart():
                    said.append({"text": part.text})
                case MediaPart():
                    said.append(self._media(part, f"{path}.media"))
                case ToolResultPart():
                    continue
                case ReasoningPart() | ToolCallPart() | RefusalPart():
                    raise unsupported(path, "the provider takes this from the model only")
        return said

    def _answer(self, index: int) -> list[_WirePart]:
        said: list[_WirePart] = []
        for path, part in self._parts(index):
            match part:
                case TextPart():
                    said.append({"text": part.text})
                case RefusalPart():
                    # It may have come without words; there is nothing to send of it then.
                    said += [{"text": part.text}] if part.text else []
                case MediaPart():
                    said.append(self._media(part, f"{path}.media"))
                case ReasoningPart():
                    self._reasoning(part, f"{path}.reasoning", said)
                case ToolCallPart():
                    said.append(self._tool_call(part, path))
                case ToolResultPart():
                    raise unsupported(path, "the provider takes results from the user only")
        if self._facts.signed_calls:
            _sign_first_call(said)
        return said

    def _results(self, run: Sequence[int]) -> list[_WirePart]:
        """The results in some messages, in the order of their calls: a call without an id is told by its place."""
        found: list[tuple[int, _WirePart]] = []
        for index in run:
            for j, part in enumerate(self._conversation.messages[index].parts):
                if isinstance(part, ToolResultPart):
                    path = f"messages[{index}].parts[{j}].tool_result"
                    called = self._call_of(part, path)
                    found.append((called.position, self._result(part, called, path)))
        return [result for _, result in sorted(found, key=lambda one: one[0])]

    # --- parts ---

    def _media(self, part: MediaPart, path: str) -> _WirePart:
        if part.file_name:
            self._conversation.drop(f"{path}.file_name", "the provider takes no names of files")
        return media_part(part, path)

    def _reasoning(self, part: ReasoningPart, path: str, said: list[_WirePart]) -> None:
        state = _state_of(part.provider_state)
        if state is None or (part.text and THOUGHT not in state):
            self._conversation.leave_out(path, "reasoning that this provider has not given cannot be given to it")
        elif part.text:
            said.append({**state, "text": part.text})
        elif state.keys() != {SIGNATURE}:
            # How to go on with an answer that was gone on with since is no part.
            said += [] if CONTINUATION in state else [state]
        elif said and said[-1].keys() in _SIGNABLE:
            said[-1] |= state
        else:
            said.append({**state, "text": ""})

    def _tool_call(self, part: ToolCallPart, path: str) -> _WirePart:
        self._called[part.id] = _Called(part.name, self._calls)
        self._calls += 1
        call: dict[str, Any] = {} if is_assigned(part.id) else {"id": part.id}
        call["name"] = part.name
        call["args"] = arguments_of(part, path)
        state = _state_of(part.provider_state)
        if state is None and part.provider_state:
            self._conversation.leave_out(
                f"{path}.tool_call.provider_state", "a state that this provider has not given cannot be given to it"
            )
        return {**(state or {}), "functionCall": call}

    def _call_of(self, part: ToolResultPart, path: str) -> _Called:
        called = self._called.get(part.tool_call_id)
        if called is None:
            raise PatchbayError(
                Reason.INVALID_REQUEST,
                "the conversation holds no tool call of this id before, and the provider needs the function's name",
                field=f"{path}.tool_call_id",
            )
        return called

    def _result(self, part: ToolResultPart, called: _Called, path: str) -> _WirePart:
        texts: list[str] = []
        media: list[_WirePart] = []
        for k, inner in enumerate(part.parts):
            where = f"{path}.parts[{k}]"
            if inner.cache_breakpoint:
                self._drop_hint(where)
            match inner:
                case TextPart():
                    texts.append(inner.text)
                case MediaPart() if self._facts.media_results:
                    media.append(self._media(inner, f"{where}.media"))
                case MediaPart():
                    raise unsupported(f"{where}.media", "this model takes only text in the results of tools")
        response: dict[str, Any] = {} if is_assigned(part.tool_call_id) else {"id": part.tool_call_id}
        response["name"] = called.name
        said: Any = texts if len(texts) > 1 else "".join(texts)
        response["response"] = {"error" if part.failed else "output": said}
        if media:
            response["parts"] = media
        return {"functionResponse": response}

    # --- what is left out ---

    def _drop_hint(self, path: str) -> None:
        """One notice speaks for all cache marks of a call."""
        if not self._hinted:
            self._hinted = True
            self._conversation.drop(
                f"{path}.cache_breakpoint", "the provider takes no cache marks; it caches prompts by itself"
            )


def _wire_role(role: Role) -> str:
    match role:
        case Role.SYSTEM:
            return "system"
        case Role.USER | Role.TOOL:
            return "user"
        case Role.ASSISTANT:
            return "model"


def _to_be_continued(messages: Sequence[Message]) -> tuple[Sequence[Message], msgspec.Raw | None]:
    """The conversation to send, and the token that goes on with an unfinished answer at its end.

    The provider has kept what it wrote of such an answer: it is asked with the conversation before it.
    """
    token: msgspec.Raw | None = None
    end = len(messages)
    while end and messages[end - 1].role is Role.ASSISTANT and messages[end - 1].parts:
        last = messages[end - 1].parts[-1]
        state = _state_of(last.provider_state) if isinstance(last, ReasoningPart) else None
        if state is None or CONTINUATION not in state:
            break
        token = state[CONTINUATION] if token is None else token
        end -= 1
    return messages[:end], token


def _state_of(provider_state: bytes) -> dict[str, msgspec.Raw] | None:
    """The members that the reader of answers put into a state; None when it is not one of its states."""
    try:
        members = json_body.typed(_members, provider_state)
        json_body.decode(provider_state)
    except ValueError:
        return None
    return members or None


_members: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


def _sign_first_call(said: Sequence[_WirePart]) -> None:
    """Give the first call of an answer, which has to be signed, the sign of one that is not the model's own."""
    first = next((part for part in said if "functionCall" in part), None)
    if first is not None:
        first.setdefault(SIGNATURE, _UNSIGNED)


def media_part(part: MediaPart, path: str) -> _WirePart:
    """A picture, recording, film or document.

    Raises:
        PatchbayError: FEATURE_UNSUPPORTED naming the address that the provider does not fetch.
    """
    if part.data is not None:
        # Encoded as base64 when the body is written.
        return {"inlineData": {"mimeType": part.mime_type, "data": part.data}}
    uri = part.uri
    if uri is None:
        file_id = (part.provider_file_id or "").removeprefix("files/")
        uri = file_id if file_id.startswith("https://") else FILES_ROOT + quote(file_id, safe="")
    elif not uri.startswith(("https://", "gs://")):
        raise unsupported(f"{path}.uri", "the provider takes https and gs addresses only; send the data instead")
    file_data = {"fileUri": uri}
    return {"fileData": {"mimeType": part.mime_type, **file_data} if part.mime_type else file_data}


# --- how to answer ----------------------------------------------------------------------------------------------------


class _Settings:
    """Everything of one call beside its messages."""

    def __init__(self, call: Call) -> None:
        self._prompt: Prompt = call.prompt
        self._config = call.prompt.config
        self._facts: Gemini = facts(call.model)
        self._knobs = Knobs(droppable=call.prompt.drop_unsupported)

    @property
    def notices(self) -> tuple[Notice, ...]:
        return self._knobs.notices

    def fields(self) -> dict[str, Any]:
        calling = self._function_calling()
        fields = {
            "tools": self._tools(),
            "toolConfig": {"functionCallingConfig": calling} if calling else {},
            "generationConfig": {
                **self._limits(),
                **self._chance(),
                **self._format(),
                **self._thinking(),
            },
        }
        return {name: value for name, value in fields.items() if value}

    # --- limits and chance ---

    def _limits(self) -> dict[str, Any]:
        limits: dict[str, Any] = {}
        if self._config.max_output_tokens is not None:
            limits["maxOutputTokens"] = self._config.max_output_tokens
        if len(self._config.stop_sequences) > STOP_SEQUENCES_MAX:
            self._knobs.refuse("config.stop_sequences", f"the provider takes at most {STOP_SEQUENCES_MAX} of them")
        elif self._config.stop_sequences:
            limits["stopSequences"] = self._config.stop_sequences
        return limits

    def _chance(self) -> dict[str, Any]:
        chance: dict[str, Any] = {}
        for name, wire_name in _SAMPLING:
            value = getattr(self._config, name)
            if value is None:
                continue
            if self._facts.sampling:
                chance[wire_name] = value
            elif name != "temperature" or value != _DEFAULT_TEMPERATURE:
                self._knobs.refuse(f"config.{name}", f"this model takes no `{name}`")
        for name, wire_name in _PENALTIES:
            value = getattr(self._config, name)
            if value and self._facts.penalties:
                chance[wire_name] = value
            elif value:
                self._knobs.refuse(f"config.{name}", "this model knows no penalties")
        if self._config.seed is not None:
            if _SEED_MIN <= self._config.seed <= _SEED_MAX:
                chance["seed"] = self._config.seed
            else:
                self._knobs.refuse("config.seed", "the provider takes seeds of 32 bits")
        return chance

    # --- the form of the answer ---

    def _format(self) -> dict[str, Any]:
        match self._prompt.response_format:
            case JsonObjectFormat():
                return {"responseMimeType": "application/json"}
            case JsonSchemaFormat() as schema:
                return {"responseMimeType": "application/json", "responseJsonSchema": schema_of(schema)}
            case _:
                return {}

    # --- thinking ---

    def _thinking(self) -> dict[str, Any]:
        reasoning = self._config.reasoning or ReasoningConfig()
        thinking: dict[str, Any] = {}
        if reasoning.effort is Effort.NONE or reasoning.budget_tokens == 0:
            thinking = self._no_thinking(reasoning)
        elif reasoning.effort is not None:
            thinking = self._level(reasoning.effort)
        elif reasoning.budget_tokens is not None:
            thinking = self._budget(reasoning.budget_tokens)
        if reasoning.include_text and self._facts.thinks:
            thinking["includeThoughts"] = True
        elif reasoning.include_text:
            self._knobs.refuse("config.reasoning.include_text", "this model does not think")
        return {"thinkingConfig": thinking} if thinking else {}

    def _no_thinking(self, reasoning: ReasoningConfig) -> dict[str, Any]:
        if not self._facts.thinks:
            return {}
        if self._facts.budget is not None and self._facts.budget.off:
            return {"thinkingBudget": 0}
        name = "effort" if reasoning.effort is Effort.NONE else "budget_tokens"
        self._knobs.refuse(f"config.reasoning.{name}", "this model always thinks; ask for little")
        return {}

    def _level(self, effort: Effort) -> dict[str, Any]:
        if effort in self._facts.levels:
            return {"thinkingLevel": effort.value.upper()}
        known = ", ".join(level.value for level in Effort if level in self._facts.levels) or "none"
        self._knobs.refuse("config.reasoning.effort", f"this model knows these levels of effort: {known}")
        return {}

    def _budget(self, tokens: int) -> dict[str, Any]:
        budget, field = self._facts.budget, "config.reasoning.budget_tokens"
        if budget is None:
            self._knobs.refuse(field, "this model takes no budget of tokens")
        elif not budget.tokens_min <= tokens <= budget.tokens_max:
            self._knobs.refuse(field, f"this model takes {budget.tokens_min} to {budget.tokens_max} tokens")
        else:
            return {"thinkingBudget": tokens}
        return {}

    # --- tools ---

    def _tools(self) -> list[Any]:
        """The provider's own tools one by one, and the functions as one tool."""
        tools: list[Any] = []
        functions: list[dict[str, Any]] = []
        for i, tool in enumerate(self._prompt.tools):
            match tool:
                case ProviderTool():
                    tools.append(json_body.embedded_object(tool.json, f"tools[{i}].provider_tool_json"))
                case FunctionTool():
                    functions.append(_function(tool, f"tools[{i}].function"))
        return [*tools, {"functionDeclarations": functions}] if functions else tools

    def _function_calling(self) -> dict[str, Any]:
        """Who chooses. Strict arguments are a mode of their own, in which the model chooses as with AUTO."""
        functions = [tool for tool in self._prompt.tools if isinstance(tool, FunctionTool)]
        choice = self._prompt.tool_choice or ToolChoice()
        self._check_parallel(functions)
        self._check_choice(choice, functions)
        if not functions:
            # A choice among no functions says nothing.
            return {}
        if choice.function_name is not None:
            return {"mode": "ANY", "allowedFunctionNames": [choice.function_name]}
        mode = choice.mode and _MODES[choice.mode]
        if mode in (None, "AUTO") and any(tool.strict for tool in functions):
            mode = "VALIDATED"
        return {"mode": mode} if mode else {}

    def _check_choice(self, choice: ToolChoice, functions: Sequence[FunctionTool]) -> None:
        own = len(self._prompt.tools) > len(functions)
        if own and choice.mode is ToolMode.NONE:
            raise unsupported("tool_choice.mode", "the provider's own tools cannot be forbidden; leave them out")
        if own and not functions and choice.mode is ToolMode.REQUIRED:
            raise unsupported("tool_choice.mode", "the use of the provider's own tools cannot be required")

    def _check_parallel(self, functions: Sequence[FunctionTool]) -> None:
        if functions and self._config.parallel_tool_calls is False:
            self._knobs.refuse("config.parallel_tool_calls", "the provider cannot be kept to one tool call")


def _function(tool: FunctionTool, path: str) -> dict[str, Any]:
    if not _FUNCTION_NAME.fullmatch(tool.name):
        raise unsupported(f"{path}.name", "the provider takes names that start with a letter or an underscore")
    function: dict[str, Any] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    if tool.parameters_json_schema.strip():
        field = f"{path}.parameters_json_schema"
        function["parametersJsonSchema"] = json_body.embedded_object(tool.parameters_json_schema, field)
    return function
