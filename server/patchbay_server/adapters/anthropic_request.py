"""A call as the body of the Messages API: what every surface that serves Claude is asked, whatever carries it.

Source: anthropic-sdk-python 2.11.0, `types/message_create_params.py` and `types/*_param.py`; platform.claude.com/docs,
"Messages", "Handling tool calls", "Prompt caching", "Thinking" (read 2026-11-20).
"""

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from patchbay_server.adapters import json_body
from patchbay_server.adapters.anthropic_answer import is_kept_block
from patchbay_server.adapters.anthropic_models import ForcedTools, ThinkingOff, facts
from patchbay_server.adapters.conversation import Conversation, arguments_of, tool_id
from patchbay_server.adapters.demands import enforced_schema, parameters_of, refuse_seed_and_penalties
from patchbay_server.adapters.knobs import Knobs, unsupported
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.types import (
    Call,
    Effort,
    FunctionTool,
    MediaPart,
    Notice,
    Part,
    ProviderTool,
    ReasoningConfig,
    ReasoningPart,
    RefusalPart,
    Role,
    TextPart,
    Tool,
    ToolCallPart,
    ToolChoice,
    ToolMode,
    ToolResultPart,
)

MAX_TOKENS: Final = 4096
"""`max_tokens` where neither the caller nor the table of models says one: the field is required."""
BUDGET_TOKENS_MIN: Final = 1024
RESERVED_OPTIONS: Final = json_body.RESERVED_OPTIONS | {"system"}
"""System messages are messages, wherever the dialect puts them."""

_IMAGE_TYPES: Final = frozenset({"image/jpeg", "image/png", "image/gif", "image/webp"})
_TYPES_BY_SUFFIX: Final = (
    ((".jpg", ".jpeg"), "image/jpeg"),
    ((".png",), "image/png"),
    ((".gif",), "image/gif"),
    ((".webp",), "image/webp"),
    ((".pdf",), "application/pdf"),
)
_PDF: Final = "application/pdf"
_PLAIN_TEXT: Final = "text/plain"
_SAMPLING_DEFAULTS: Final = {"temperature": 1.0, "top_p": 1.0}

_Block = dict[str, Any] | msgspec.Raw
_Turn = dict[str, Any]


def messages_body(call: Call) -> tuple[dict[str, Any], tuple[Notice, ...]]:
    """The body that asks for `call`, provider options merged in, and what of the call it leaves out.

    Raises:
        PatchbayError: FEATURE_UNSUPPORTED naming the field that the provider or model cannot express, INVALID_REQUEST.
    """
    prompt = call.prompt
    told = _Told(call)
    settings = _Settings(call)
    body = {"model": call.model, **settings.limits(), **told.fields(), **settings.fields()}
    if call.streaming:
        body["stream"] = True
    merged = json_body.merged(body, prompt.provider_options_json, RESERVED_OPTIONS)
    return merged, told.notices + settings.notices


def settings_of(call: Call) -> tuple[dict[str, Any], tuple[Notice, ...]]:
    """How to answer, as members of the body: all but who is asked what and in which form. `max_tokens` is always there.

    Raises:
        PatchbayError: as `messages_body`.
    """
    own = _Settings(call)
    return {**own.limits(), **own.fields()}, own.notices


# --- what is said -----------------------------------------------------------------------------------------------------


class _Told:
    """The messages of one call as `system` and `messages`."""

    def __init__(self, call: Call) -> None:
        self._conversation = Conversation(call.prompt.messages)
        self._facts = facts(call.model)

    @property
    def notices(self) -> tuple[Notice, ...]:
        return self._conversation.notices

    def fields(self) -> dict[str, Any]:
        lead = self._conversation.lead()
        system = [block for i in range(lead) for block in self._system(i)]
        turns = [turn for turn in self._turns(lead) if turn["content"]]
        self._conversation.check_last(continues=self._facts.prefill or self._ends_in_kept_blocks())
        return {"system": system, "messages": turns} if system else {"messages": turns}

    def _turns(self, start: int) -> Iterator[_Turn]:
        # Tool results and the user's words share a role on the wire, and results come first in it.
        for role, run in self._conversation.turns(start, _wire_role):
            match role:
                case "user":
                    yield {"role": role, "content": [block for i in run for block in self._results(i)]}
                    yield from ({"role": role, "content": self._blocks(i, results=False)} for i in run)
                case "assistant":
                    yield from ({"role": role, "content": self._blocks(i, results=True)} for i in run)
                case _:
                    yield from ({"role": role, "content": self._late_system(i)} for i in run)

    def _ends_in_kept_blocks(self) -> bool:
        """Whether the last message is a paused turn, which any model goes on with."""
        last = self._conversation.messages[-1]
        return any(isinstance(part, ReasoningPart) and part.provider_state for part in last.parts)

    def _late_system(self, index: int) -> list[_Block]:
        self._conversation.check_late_system(index, taken=self._facts.late_system)
        return self._system(index)

    def _system(self, index: int) -> list[_Block]:
        texts = (self._text(part, path, Role.SYSTEM) for path, part in self._conversation.instructions(index))
        return [block for block in texts if block is not None]

    def _results(self, index: int) -> list[_Block]:
        return [
            self._result(part, path)
            for path, part in self._conversation.parts(index)
            if isinstance(part, ToolResultPart)
        ]

    def _blocks(self, index: int, *, results: bool) -> list[_Block]:
        parts = self._conversation.parts(index)
        wanted = [(path, part) for path, part in parts if results or not isinstance(part, ToolResultPart)]
        # Between words a blank may stand, and signed thoughts beside it hold only while it does.
        spoken = any(isinstance(part, TextPart) and part.text.strip() for _, part in wanted)
        role = self._conversation.messages[index].role
        blocks = [self._block(part, path, role, spoken=spoken) for path, part in wanted]
        return [block for block in blocks if block is not None]

    def _block(self, part: Part, path: str, role: Role, *, spoken: bool = False) -> _Block | None:
        match part:
            case TextPart():
                return self._text(part, path, role, spoken=spoken)
            case MediaPart() if role is Role.ASSISTANT:
                raise unsupported(f"{path}.media", "the provider takes no media in assistant messages")
            case MediaPart():
                return self._marked(self._media(part, f"{path}.media"), part, path)
            case ReasoningPart():
                return self._reasoning(part, path)
            case ToolCallPart():
                return self._tool_call(part, path)
            case ToolResultPart():
                return self._result(part, path)
            case RefusalPart():
                # A refusal may have come without words; there is nothing to send of it then.
                return self._marked({"type": "text", "text": part.text}, part, path) if part.text.strip() else None

    def _text(self, part: TextPart, path: str, role: Role, *, spoken: bool = False) -> _Block | None:
        """A text, unless it is empty or, where the message is not `spoken` in other words, blank."""
        if not (spoken and part.text) and not self._conversation.has_words(part.text, path, role):
            return None
        return self._marked({"type": "text", "text": part.text}, part, path)

    def _media(self, part: MediaPart, path: str) -> dict[str, Any]:
        block = media_block(part, path)
        if part.file_name and block["type"] == "image":
            self._conversation.drop(f"{path}.file_name", "only documents have a name here")
        return block

    def _reasoning(self, part: ReasoningPart, path: str) -> _Block | None:
        if part.cache_breakpoint:
            self._conversation.drop(f"{path}.cache_breakpoint", "the provider takes no cache mark on reasoning")
        if part.provider_state and is_kept_block(part.provider_state):
            return msgspec.Raw(part.provider_state)
        self._conversation.leave_out_reasoning(path)
        return None

    def _tool_call(self, part: ToolCallPart, path: str) -> _Block:
        self._conversation.leave_out_signature(part, path)
        block = {"type": "tool_use", "id": tool_id(part.id), "name": part.name, "input": arguments_of(part, path)}
        return self._marked(block, part, path)

    def _result(self, part: ToolResultPart, path: str) -> _Block:
        block: dict[str, Any] = {"type": "tool_result", "tool_use_id": tool_id(part.tool_call_id)}
        inner = enumerate(part.parts)
        content = [self._block(piece, f"{path}.tool_result.parts[{k}]", Role.TOOL) for k, piece in inner]
        if told := [piece for piece in content if piece is not None]:
            block["content"] = told
        if part.failed:
            block["is_error"] = True
        return self._marked(block, part, path)

    def _marked(self, block: dict[str, Any], part: Part, path: str) -> dict[str, Any]:
        if part.cache_breakpoint:
            self._conversation.count_cache_mark(path)
            block["cache_control"] = {"type": "ephemeral"}
        return block


def _wire_role(role: Role) -> str:
    return "user" if role is Role.TOOL else role.value


def media_block(part: MediaPart, path: str) -> dict[str, Any]:
    """An image or document block.

    Raises:
        PatchbayError: FEATURE_UNSUPPORTED naming the field that is not expressible, INVALID_REQUEST.
    """
    mime_type = _mime_type(part)
    if mime_type in _IMAGE_TYPES:
        return {"type": "image", "source": _source(part, mime_type, path)}
    if mime_type in (_PDF, _PLAIN_TEXT):
        block = {"type": "document", "source": _source(part, mime_type, path)}
        return {**block, "title": part.file_name} if part.file_name else block
    raise unsupported(
        f"{path}.mime_type",
        f"the provider takes {', '.join(sorted(_IMAGE_TYPES))}, {_PDF} and {_PLAIN_TEXT}"
        + ("" if mime_type else "; say which it is"),
    )


def _mime_type(part: MediaPart) -> str:
    """The type that the caller gave, else the one that an address shows; empty when nothing tells."""
    if part.mime_type or part.uri is None:
        mime_type = part.mime_type.partition(";")[0].strip().lower()
        return "image/jpeg" if mime_type == "image/jpg" else mime_type
    path = part.uri.partition("?")[0].partition("#")[0].lower()
    return next((mime_type for suffixes, mime_type in _TYPES_BY_SUFFIX if path.endswith(suffixes)), "")


def _source(part: MediaPart, mime_type: str, path: str) -> dict[str, Any]:
    if part.provider_file_id is not None:
        return {"type": "file", "file_id": part.provider_file_id}
    if part.uri is not None:
        if mime_type == _PLAIN_TEXT or not part.uri.lower().startswith("https://"):
            raise unsupported(f"{path}.uri", "the provider takes https addresses of images and PDFs only")
        return {"type": "url", "url": part.uri}
    data = part.data or b""
    if mime_type != _PLAIN_TEXT:
        # Encoded as base64 when the body is written.
        return {"type": "base64", "media_type": mime_type, "data": data}
    try:
        return {"type": "text", "media_type": mime_type, "data": data.decode()}
    except UnicodeDecodeError as error:
        raise PatchbayError(Reason.INVALID_REQUEST, "a text document has to be UTF-8", field=f"{path}.data") from error


# --- how to answer ----------------------------------------------------------------------------------------------------


class _Settings:
    """Everything of one call beside its messages."""

    def __init__(self, call: Call) -> None:
        self._prompt = call.prompt
        self._config = call.prompt.config
        self._reasoning = call.prompt.config.reasoning or ReasoningConfig()
        self._facts = facts(call.model)
        self._knobs = Knobs(droppable=call.prompt.drop_unsupported)

    @property
    def notices(self) -> tuple[Notice, ...]:
        return self._knobs.notices

    def limits(self) -> dict[str, Any]:
        return {"max_tokens": self._max_tokens}

    @property
    def _max_tokens(self) -> int:
        return (
            self._config.max_output_tokens
            or self._facts.max_output_tokens
            or MAX_TOKENS + (self._reasoning.budget_tokens or 0)
        )

    def fields(self) -> dict[str, Any]:
        effort = self._effort()
        thinking = self._thinking(effort)
        thinks = thinking.get("type") in ("adaptive", "enabled")
        output_config = {**({"effort": effort.value} if effort else {}), **self._format()}
        refuse_seed_and_penalties(self._config, self._knobs)
        fields = {
            "tools": [_tool(tool, f"tools[{i}]") for i, tool in enumerate(self._prompt.tools)],
            "tool_choice": self._tool_choice(thinks=thinks),
            "thinking": thinking,
            "output_config": output_config,
            "stop_sequences": self._stop_sequences(),
            **self._sampling(thinks=thinks),
        }
        return {name: value for name, value in fields.items() if value not in ({}, [])}

    # --- thinking ---

    def _effort(self) -> Effort | None:
        """The level to ask for, or None to say nothing of it."""
        effort = self._reasoning.effort
        if effort is None or effort is Effort.NONE:
            return None
        if effort in self._facts.efforts:
            return effort
        known = ", ".join(level.value for level in Effort if level in self._facts.efforts) or "none"
        self._knobs.refuse("config.reasoning.effort", f"this model knows these levels of effort: {known}")
        return None

    def _thinking(self, effort: Effort | None) -> dict[str, Any]:
        if self._reasoning.effort is Effort.NONE or self._reasoning.budget_tokens == 0:
            return self._no_thinking()
        thinking = self._budget()
        if not thinking and self._facts.adaptive and (effort or self._reasoning.include_text):
            thinking = {"type": "adaptive"}
        if self._reasoning.include_text:
            if thinking:
                return {**thinking, "display": "summarized"}
            self._knobs.refuse("config.reasoning.include_text", "this model thinks only within a `budget_tokens`")
        return thinking

    def _no_thinking(self) -> dict[str, Any]:
        if self._facts.thinking_off is ThinkingOff.IMPOSSIBLE:
            name = "effort" if self._reasoning.effort is Effort.NONE else "budget_tokens"
            self._knobs.refuse(f"config.reasoning.{name}", "this model always thinks; ask for a low effort")
            return {}
        return {"type": self._facts.thinking_off.value}

    def _budget(self) -> dict[str, Any]:
        budget, field = self._reasoning.budget_tokens, "config.reasoning.budget_tokens"
        if budget is None:
            return {}
        if not self._facts.budgets:
            self._knobs.refuse(field, "this model takes an effort, not a budget")
        elif not BUDGET_TOKENS_MIN <= budget < self._max_tokens:
            self._knobs.refuse(field, f"a budget is at least {BUDGET_TOKENS_MIN} and below the most tokens to produce")
        else:
            return {"type": "enabled", "budget_tokens": budget}
        return {}

    # --- tools ---

    def _tool_choice(self, *, thinks: bool) -> dict[str, Any]:
        choice, parallel = self._wire_choice(self._prompt.tool_choice), self._config.parallel_tool_calls
        if choice.get("type") in ("any", "tool"):
            self._check_forced(thinks=thinks)
        elif not self._prompt.tools:
            # Without tools none can be called, and nothing can be called side by side.
            return {}
        if parallel is not None and choice.get("type") != "none":
            return {"type": "auto", **choice, "disable_parallel_tool_use": not parallel}
        return choice

    @staticmethod
    def _wire_choice(choice: ToolChoice | None) -> dict[str, Any]:
        if choice is None:
            return {}
        if choice.function_name is not None:
            return {"type": "tool", "name": choice.function_name}
        names = {ToolMode.AUTO: "auto", ToolMode.NONE: "none", ToolMode.REQUIRED: "any"}
        return {"type": names[choice.mode]} if choice.mode is not None else {}

    def _check_forced(self, *, thinks: bool) -> None:
        match self._facts.forced_tools:
            case ForcedTools.NEVER:
                raise unsupported("tool_choice", "this model cannot be made to call a tool; leave the choice to it")
            case ForcedTools.WITHOUT_THINKING if thinks:
                raise unsupported("tool_choice", "this model cannot be made to call a tool while it thinks")

    # --- the form of the answer ---

    def _format(self) -> dict[str, Any]:
        schema = enforced_schema(self._prompt.response_format)
        return {"format": {"type": "json_schema", "schema": schema}} if schema is not None else {}

    def _stop_sequences(self) -> list[str]:
        kept = []
        for i, sequence in enumerate(self._config.stop_sequences):
            if sequence.strip():
                kept.append(sequence)
            else:
                self._knobs.refuse(f"config.stop_sequences[{i}]", "the provider takes no stop sequence of white space")
        return kept

    # --- chance ---

    def _sampling(self, *, thinks: bool) -> dict[str, Any]:
        sent: dict[str, Any] = {}
        for name in ("temperature", "top_p", "top_k"):
            value = getattr(self._config, name)
            if value is None:
                continue
            if not self._facts.sampling or thinks:
                # Left out, the provider's default says the same.
                if value != _SAMPLING_DEFAULTS.get(name):
                    when = " while it thinks" if self._facts.sampling else ""
                    self._knobs.refuse(f"config.{name}", f"this model takes no `{name}`{when}")
            elif name == "temperature" and value > 1:
                self._knobs.refuse(f"config.{name}", "the provider takes temperatures up to 1")
            elif name == "top_p" and "temperature" in sent and self._facts.one_sampling:
                self._knobs.refuse(f"config.{name}", "this model takes either `temperature` or `top_p`")
            else:
                sent[name] = value
        return sent


def _tool(tool: Tool, path: str) -> dict[str, Any] | msgspec.Raw:
    match tool:
        case ProviderTool():
            return json_body.embedded_object(tool.json, f"{path}.provider_tool_json")
        case FunctionTool():
            function: dict[str, Any] = {"name": tool.name}
            if tool.description:
                function["description"] = tool.description
            function["input_schema"] = parameters_of(tool, f"{path}.function")
            if tool.strict is not None:
                function["strict"] = tool.strict
            return function
