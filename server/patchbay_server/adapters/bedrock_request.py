"""A call as the body of Converse.

Converse wants turns of the user and of the assistant to alternate: messages of one side that follow each other become
one turn with their blocks in order, tool results first. Text without a word, which it refuses, is left out with a
notice where it is the model's or a tool's, and refused where it is the caller's.

Source: botocore 1.44.5, service model `bedrock-runtime`, shape `ConverseRequest` with its documentation; text without a
word: NousResearch/hermes-agent pull request 67978 (read 2026-11-21).
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

import msgspec

from patchbay_server.adapters import json_body
from patchbay_server.adapters.anthropic_models import facts
from patchbay_server.adapters.anthropic_request import settings_of
from patchbay_server.adapters.bedrock_models import Model, Traits, model_of, offers_tools
from patchbay_server.adapters.conversation import Conversation, arguments_of, tool_id
from patchbay_server.adapters.demands import enforced_schema, parameters_of, refuse_seed_and_penalties
from patchbay_server.adapters.knobs import Knobs, unsupported
from patchbay_server.types import (
    Call,
    Effort,
    FunctionTool,
    JsonSchemaFormat,
    MediaPart,
    Notice,
    Part,
    ProviderTool,
    ReasoningConfig,
    ReasoningPart,
    RefusalPart,
    ResponseFormat,
    Role,
    TextPart,
    Tool,
    ToolCallPart,
    ToolChoice,
    ToolMode,
    ToolResultPart,
)

RESERVED_OPTIONS: Final = json_body.RESERVED_OPTIONS | {"modelId", "system"}

_NAME_CHARS_MAX: Final = 64
_DOCUMENT_NAME_CHARS_MAX: Final = 200
_KEPT: Final = frozenset({"reasoningContent", "toolUse", "toolResult"})
_DEFAULT_SAMPLING: Final = 1.0
"""The temperature and the share of `top_p` that models take where none is given."""
_CACHE_POINT: Final = {"cachePoint": {"type": "default"}}
_EFFORTS: Final = frozenset({Effort.LOW, Effort.MEDIUM, Effort.HIGH, Effort.XHIGH, Effort.MAX})
_NOT_IN_A_NAME: Final = re.compile(r"[^A-Za-z0-9()\[\]-]+")

_IMAGES: Final = MappingProxyType(
    {"image/png": "png", "image/jpeg": "jpeg", "image/jpg": "jpeg", "image/gif": "gif", "image/webp": "webp"}
)
_DOCUMENTS: Final = MappingProxyType(
    {
        "application/pdf": "pdf",
        "text/csv": "csv",
        "application/msword": "doc",
        "application/vnd.openxmlformats-officedocument.wordprocessingml.document": "docx",
        "application/vnd.ms-excel": "xls",
        "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": "xlsx",
        "text/html": "html",
        "text/plain": "txt",
        "text/markdown": "md",
    }
)
_VIDEOS: Final = MappingProxyType(
    {
        "video/mp4": "mp4",
        "video/quicktime": "mov",
        "video/x-matroska": "mkv",
        "video/webm": "webm",
        "video/x-flv": "flv",
        "video/mpeg": "mpeg",
        "video/x-ms-wmv": "wmv",
        "video/3gpp": "three_gp",
    }
)
_SOUNDS: Final = MappingProxyType(
    {
        "audio/mpeg": "mp3",
        "audio/mp3": "mp3",
        "audio/opus": "opus",
        "audio/wav": "wav",
        "audio/x-wav": "wav",
        "audio/wave": "wav",
        "audio/vnd.wave": "wav",
        "audio/aac": "aac",
        "audio/x-aac": "x-aac",
        "audio/flac": "flac",
        "audio/mp4": "mp4",
        "audio/m4a": "m4a",
        "audio/x-m4a": "m4a",
        "audio/ogg": "ogg",
        "audio/pcm": "pcm",
        "audio/webm": "webm",
        "audio/x-matroska": "mka",
    }
)
_MEDIA: Final[tuple[tuple[str, Mapping[str, str]], ...]] = (
    ("image", _IMAGES),
    ("document", _DOCUMENTS),
    ("video", _VIDEOS),
    ("audio", _SOUNDS),
)

_Block = dict[str, Any]

_members: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


def converse_body(call: Call) -> tuple[dict[str, Any], tuple[Notice, ...]]:
    """The body that asks for `call`, provider options merged in, and what of the call it leaves out.

    Raises:
        PatchbayError: FEATURE_UNSUPPORTED naming the field that the provider or model cannot express, INVALID_REQUEST.
    """
    model = model_of(call.model)
    told = _Told(call, model)
    settings = _ClaudeSettings(call) if model.is_claude else _Settings(call, model.traits)
    body = {
        **told.fields(),
        "inferenceConfig": settings.inference,
        "toolConfig": _tool_config(call, settings.tool_choice),
        "outputConfig": settings.output,
        "additionalModelRequestFields": settings.additional,
    }
    said = {name: value for name, value in body.items() if value}
    merged = json_body.merged(said, call.prompt.provider_options_json, RESERVED_OPTIONS)
    return merged, told.notices + settings.notices


# --- what is said -----------------------------------------------------------------------------------------------------


class _Told:
    """The messages of one call as `system` and `messages`."""

    def __init__(self, call: Call, model: Model) -> None:
        self._call = call
        self._conversation = Conversation(call.prompt.messages)
        self._traits = model.traits
        claude = facts(call.model) if model.is_claude else None
        self._continues = claude is None or claude.prefill
        self._late_system = claude.late_system if claude else self._traits.late_system
        self._names: Counter[str] = Counter()

    @property
    def notices(self) -> tuple[Notice, ...]:
        return self._conversation.notices

    def fields(self) -> dict[str, Any]:
        lead = self._conversation.lead()
        self._conversation.check_last(continues=self._continues)
        system = [block for i in range(lead) for block in self._system(i)]
        return {"system": system, "messages": [turn for turn in self._turns(lead) if turn["content"]]}

    def _turns(self, start: int) -> Iterator[dict[str, Any]]:
        for role, run in self._conversation.turns(start, _wire_role):
            if role == "system":
                self._conversation.check_late_system(run[0], taken=self._late_system)
                content = [block for i in run for block in self._system(i)]
            else:
                content = [block for i in run for block in self._blocks(i, results=True)]
                content += [block for i in run for block in self._blocks(i, results=False)]
                self._check_documents(content, run)
            yield {"role": role, "content": content}

    def _check_documents(self, content: list[_Block], run: list[int]) -> None:
        if any("document" in block for block in content) and not any("text" in block for block in content):
            parts = (pair for i in run for pair in self._conversation.parts(i))
            path = next(path for path, part in parts if isinstance(part, MediaPart) and _kind(part)[0] == "document")
            raise unsupported(f"{path}.media", "the provider takes a document only together with a text")

    # --- parts ---

    def _system(self, index: int) -> Iterator[_Block]:
        for path, part in self._conversation.instructions(index):
            yield from self._text(part, path, Role.SYSTEM)

    def _blocks(self, index: int, *, results: bool) -> Iterator[_Block]:
        role = self._conversation.messages[index].role
        for path, part in self._conversation.parts(index):
            if isinstance(part, ToolResultPart) is results:
                yield from self._block(part, path, role)

    def _block(self, part: Part, path: str, role: Role) -> Iterator[_Block]:
        match part:
            case TextPart():
                yield from self._text(part, path, role)
            case MediaPart() if role is Role.ASSISTANT:
                raise unsupported(f"{path}.media", "the provider takes no media in assistant messages")
            case MediaPart():
                yield self._media(part, f"{path}.media")
                yield from self._cache_point(part, path)
            case ReasoningPart():
                yield from self._reasoning(part, path)
            case ToolCallPart():
                yield self._tool_call(part, path)
                yield from self._cache_point(part, path)
            case ToolResultPart():
                yield self._result(part, path)
                yield from self._cache_point(part, path)
            case RefusalPart():
                yield from self._text(TextPart(text=part.text, cache_breakpoint=part.cache_breakpoint), path, role)

    def _text(self, part: TextPart, path: str, role: Role) -> Iterator[_Block]:
        if self._conversation.has_words(part.text, path, role):
            yield {"text": part.text}
        yield from self._cache_point(part, path)

    def _media(self, part: MediaPart, path: str) -> _Block:
        kind, block_format = _kind(part)
        if not kind or (kind in ("video", "audio") and not self._traits.recordings):
            raise unsupported(
                f"{path}.mime_type",
                "the model takes no media of this type" if part.mime_type else "say which type of media it is",
            )
        block = {"format": block_format, "source": _source(part, path)}
        if kind == "document":
            block["name"] = self._document_name(part.file_name)
        elif part.file_name:
            self._conversation.drop(f"{path}.file_name", "only documents have a name here")
        return {kind: block}

    def _document_name(self, file_name: str) -> str:
        """The name in the characters that are allowed, without its suffix, and different from those before it."""
        stem = file_name.rpartition(".")[0] or file_name
        name = _NOT_IN_A_NAME.sub(" ", stem).strip()[:_DOCUMENT_NAME_CHARS_MAX].rstrip() or "document"
        self._names[name] += 1
        return name if self._names[name] == 1 else f"{name} {self._names[name]}"

    def _reasoning(self, part: ReasoningPart, path: str) -> Iterator[_Block]:
        if part.cache_breakpoint:
            self._conversation.drop(f"{path}.cache_breakpoint", "the provider takes no cache mark on reasoning")
        kept = _kept_block(part.provider_state)
        if kept is None:
            self._conversation.leave_out_reasoning(path)
        else:
            yield kept

    def _tool_call(self, part: ToolCallPart, path: str) -> _Block:
        self._check_tools(f"{path}.tool_call")
        _check_name(part.name, f"{path}.tool_call.name")
        self._conversation.leave_out_signature(part, path)
        return {"toolUse": {"toolUseId": tool_id(part.id), "name": part.name, "input": arguments_of(part, path)}}

    def _result(self, part: ToolResultPart, path: str) -> _Block:
        self._check_tools(f"{path}.tool_result")
        content: list[_Block] = []
        for k, inner in enumerate(part.parts):
            where = f"{path}.tool_result.parts[{k}]"
            if inner.cache_breakpoint:
                self._conversation.drop(
                    f"{where}.cache_breakpoint", "the provider takes a cache mark on a whole result only"
                )
            content += self._block(msgspec.structs.replace(inner, cache_breakpoint=False), where, Role.TOOL)
        result: dict[str, Any] = {"toolUseId": tool_id(part.tool_call_id), "content": content}
        if part.failed and self._traits.result_status:
            result["status"] = "error"
        elif part.failed:
            content.insert(0, {"text": "The tool failed."})
        return {"toolResult": result}

    def _check_tools(self, path: str) -> None:
        if offers_tools(self._call.prompt):
            return
        if self._call.prompt.tools:
            path = "tool_choice.mode"
        raise unsupported(path, "the provider takes tool calls in the conversation only while tools may be called")

    def _cache_point(self, part: Part, path: str) -> Iterator[_Block]:
        if not part.cache_breakpoint:
            return
        if not self._traits.cache_points:
            self._conversation.drop(f"{path}.cache_breakpoint", "this model takes no cache marks")
            return
        self._conversation.count_cache_mark(path)
        yield _CACHE_POINT


def _wire_role(role: Role) -> str:
    return "user" if role is Role.TOOL else role.value


def _kept_block(state: bytes) -> _Block | None:
    """The block of Converse that a reasoning part's state is, to be sent back as it is; None for anything else."""
    members = json_body.object_or_empty(state)
    if len(members) != 1 or not isinstance(members.get(next(iter(members))), dict) or not members.keys() & _KEPT:
        return None
    return _members.decode(state)


def _kind(part: MediaPart) -> tuple[str, str]:
    """The block and the format that media become, or empty."""
    mime_type = part.mime_type.partition(";")[0].strip().lower()
    return next(((kind, formats[mime_type]) for kind, formats in _MEDIA if mime_type in formats), ("", ""))


def _source(part: MediaPart, path: str) -> dict[str, Any]:
    if part.data is not None:
        # Encoded as base64 when the body is written.
        return {"bytes": part.data}
    if part.uri is not None and part.uri.startswith("s3://"):
        return {"s3Location": {"uri": part.uri}}
    source = "uri" if part.uri is not None else "provider_file_id"
    raise unsupported(f"{path}.{source}", "the provider takes data and s3:// addresses only; send the data")


# --- how to answer ----------------------------------------------------------------------------------------------------


def _tool_config(call: Call, tool_choice: _Block) -> _Block:
    if not offers_tools(call.prompt):
        return {}
    tools = [_tool(tool, f"tools[{i}]") for i, tool in enumerate(call.prompt.tools)]
    return {"tools": tools, "toolChoice": tool_choice} if tool_choice else {"tools": tools}


def _tool(tool: Tool, path: str) -> Any:
    match tool:
        case ProviderTool():
            return json_body.embedded_object(tool.json, f"{path}.provider_tool_json")
        case FunctionTool():
            _check_name(tool.name, f"{path}.function.name")
            spec: dict[str, Any] = {"name": tool.name}
            if tool.description.strip():
                spec["description"] = tool.description
            spec["inputSchema"] = {"json": parameters_of(tool, f"{path}.function")}
            if tool.strict is not None:
                spec["strict"] = tool.strict
            return {"toolSpec": spec}


def _check_name(name: str, path: str) -> None:
    if len(name) > _NAME_CHARS_MAX:
        raise unsupported(path, f"the provider takes names of tools of at most {_NAME_CHARS_MAX} characters")


def _wire_choice(choice: ToolChoice | None) -> _Block:
    if choice is None:
        return {}
    if choice.function_name is not None:
        return {"tool": {"name": choice.function_name}}
    match choice.mode:
        case ToolMode.AUTO:
            return {"auto": {}}
        case ToolMode.REQUIRED:
            return {"any": {}}
        case _:
            return {}


def _text_format(response_format: ResponseFormat | None) -> _Block:
    if enforced_schema(response_format) is None or not isinstance(response_format, JsonSchemaFormat):
        return {}
    # The schema is text within the body.
    schema = {"schema": response_format.schema_json, "name": response_format.name}
    return {"textFormat": {"type": "json_schema", "structure": {"jsonSchema": schema}}}


class _ClaudeSettings:
    """The settings of the Messages API, which decides what each Claude takes, in the places that Converse has."""

    def __init__(self, call: Call) -> None:
        fields, self.notices = settings_of(call)
        output = fields.get("output_config", {})
        taken = {
            "maxTokens": call.prompt.config.max_output_tokens,
            "temperature": fields.get("temperature"),
            "topP": fields.get("top_p"),
            "stopSequences": fields.get("stop_sequences"),
        }
        self.inference = {name: value for name, value in taken.items() if value is not None}
        self.output = {
            **({"effort": output["effort"]} if "effort" in output else {}),
            **_text_format(call.prompt.response_format),
        }
        self.additional = {name: fields[name] for name in ("thinking", "top_k") if name in fields}
        self.tool_choice = _wire_choice(call.prompt.tool_choice)


class _Settings:
    """What Converse takes for models of other makers."""

    def __init__(self, call: Call, traits: Traits) -> None:
        self._config = call.prompt.config
        self._traits = traits
        self._knobs = Knobs(droppable=call.prompt.drop_unsupported)
        self.output: dict[str, Any] = {}
        self.additional: dict[str, Any] = {}
        alone = self._reason(self._config.reasoning or ReasoningConfig())
        self.inference = self._inference(alone)
        self.output |= _text_format(call.prompt.response_format)
        self.tool_choice = _wire_choice(call.prompt.tool_choice)
        self._top_k()
        self._refuse_unknown_knobs()

    @property
    def notices(self) -> tuple[Notice, ...]:
        return self._knobs.notices

    def _inference(self, alone: frozenset[str]) -> dict[str, Any]:
        """The knobs that Converse has for every model, but for those that exclude the effort that was asked for."""
        config = self._config
        taken: dict[str, Any] = {}
        for name, wire_name, value in (
            ("max_output_tokens", "maxTokens", config.max_output_tokens),
            ("temperature", "temperature", config.temperature),
            ("top_p", "topP", config.top_p),
        ):
            if value is None:
                continue
            if name in self._traits.refuses:
                # Left out, the provider's default says the same.
                if value != _DEFAULT_SAMPLING:
                    self._knobs.refuse(f"config.{name}", f"this model takes no `{name}`")
            elif name in alone:
                self._knobs.refuse(f"config.{name}", f"this model takes no `{name}` at this reasoning effort")
            elif name == "temperature" and value > 1:
                self._knobs.refuse(f"config.{name}", "the provider takes temperatures up to 1")
            else:
                taken[wire_name] = value
        if config.stop_sequences and "stop_sequences" in self._traits.refuses:
            self._knobs.refuse("config.stop_sequences", "this model takes no stop sequences")
        elif config.stop_sequences:
            taken["stopSequences"] = config.stop_sequences
        return taken

    def _reason(self, reasoning: ReasoningConfig) -> frozenset[str]:
        """Ask for the effort; the knobs that it excludes."""
        if reasoning.budget_tokens is not None:
            self._knobs.refuse("config.reasoning.budget_tokens", "this model takes an effort, not a budget")
        effort, own = reasoning.effort, self._traits.effort
        if effort is None or (effort is Effort.NONE and own is not None and own.off_by_default):
            return frozenset()
        known = own.known if own else _EFFORTS
        if effort not in known:
            names = ", ".join(level.value for level in Effort if level in known)
            self._knobs.refuse("config.reasoning.effort", f"this model knows these levels of effort: {names}")
        elif own is None:
            self.output["effort"] = effort.value
        else:
            self.additional |= _nested(own.path, effort.value, own.beside)
            return own.excluded.get(effort, frozenset())
        return frozenset()

    def _top_k(self) -> None:
        if self._config.top_k is None:
            return
        if self._traits.top_k:
            self.additional |= _nested(self._traits.top_k, self._config.top_k, {})
        else:
            self._knobs.refuse("config.top_k", "no field for `top_k` is known of this model")

    def _refuse_unknown_knobs(self) -> None:
        config = self._config
        if config.parallel_tool_calls is False:
            self._knobs.refuse("config.parallel_tool_calls", "the provider cannot keep this model to one call")
        refuse_seed_and_penalties(config, self._knobs)


def _nested(path: tuple[str, ...], value: Any, beside: Mapping[str, str]) -> dict[str, Any]:
    """`value` at `path`, with the members `beside` it."""
    name, *rest = path
    return {name: _nested(tuple(rest), value, beside)} if rest else {**beside, name: value}
