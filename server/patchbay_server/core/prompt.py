"""What makes a request well-formed whoever is to answer it: checked once, before anything is spent."""

import json
import math
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final
from uuid import UUID

import msgspec

from patchbay_server.core import origin
from patchbay_server.errors import FieldViolation, PatchbayError, Reason
from patchbay_server.types import (
    CONTROL,
    FEATURE,
    LABEL_KEY,
    LABEL_VALUE_CHARS_MAX,
    LABELS_MAX,
    ChatRequest,
    FunctionTool,
    GenerationConfig,
    JsonSchemaFormat,
    MediaPart,
    Message,
    Part,
    Prompt,
    ProviderTool,
    ReasoningPart,
    RefusalPart,
    Role,
    TextPart,
    ToolCallPart,
    ToolChoice,
    ToolMode,
    ToolResultPart,
)

MESSAGES_MAX: Final = 100_000
PARTS_MAX: Final = 10_000
TOOLS_MAX: Final = 1_024
STOP_SEQUENCES_MAX: Final = 16
MODEL_CHARS_MAX: Final = 256
VIOLATIONS_MAX: Final = 20
"""How many a refusal names; what comes after is not looked at."""

_ALLOWED: Final[dict[Role, tuple[type, ...]]] = {
    Role.SYSTEM: (TextPart,),
    Role.USER: (TextPart, MediaPart),
    Role.ASSISTANT: (TextPart, MediaPart, ReasoningPart, ToolCallPart, RefusalPart),
    Role.TOOL: (ToolResultPart,),
}
_RANGES: Final[dict[str, tuple[float, float]]] = {
    "max_output_tokens": (1, 2**31 - 1),
    "temperature": (0, 2),
    "top_p": (0, 1),
    "top_k": (1, 2**31 - 1),
    "frequency_penalty": (-2, 2),
    "presence_penalty": (-2, 2),
}

Violations = Iterator[FieldViolation]


def check(request: ChatRequest) -> None:
    """Refuse a malformed request, naming the fields at fault: the first `VIOLATIONS_MAX` of them.

    Raises:
        PatchbayError: INVALID_REQUEST.
    """
    violations = list(islice(_request(request), VIOLATIONS_MAX))
    if violations:
        first = violations[0]
        more = " (and more)" if len(violations) > 1 else ""
        raise PatchbayError(Reason.INVALID_REQUEST, f"{first.field}: {first.description}{more}", violations=violations)
    origin.check(request.prompt)


def _request(request: ChatRequest) -> Violations:
    if request.feature and not FEATURE.fullmatch(request.feature):
        yield FieldViolation("feature", "a feature is 1 to 64 of a-z, 0-9, _, . and -, starting with a letter")
    if len(request.model) > MODEL_CHARS_MAX or CONTROL.search(request.model):
        yield FieldViolation("model", f"a model id has at most {MODEL_CHARS_MAX} characters and no control characters")
    if request.min_quality is not None and not 0 <= request.min_quality <= 1:
        yield FieldViolation("min_quality", "must be between 0 and 1")
    if request.request_id and not _is_uuid(request.request_id):
        yield FieldViolation("request_id", "must be a UUID such as 123e4567-e89b-42d3-a456-426614174000")
    yield from _labels(request)
    yield from _prompt(request.prompt)


def _labels(request: ChatRequest) -> Violations:
    if len(request.labels) > LABELS_MAX:
        yield FieldViolation("labels", f"at most {LABELS_MAX} labels")
    for key, value in request.labels.items():
        if not LABEL_KEY.fullmatch(key):
            yield FieldViolation("labels", "a label's key is 1 to 63 of a-z, 0-9, _, . and -, starting with a letter")
        if len(value) > LABEL_VALUE_CHARS_MAX or CONTROL.search(value):
            yield FieldViolation(
                f"labels[{key[:63]!r}]", f"at most {LABEL_VALUE_CHARS_MAX} characters and no control characters"
            )


def _prompt(prompt: Prompt) -> Violations:
    if not prompt.messages:
        yield FieldViolation("messages", "at least one message is needed")
    if len(prompt.messages) > MESSAGES_MAX:
        yield FieldViolation("messages", f"at most {MESSAGES_MAX} messages")
    for index, message in enumerate(prompt.messages):
        yield from _message(f"messages[{index}]", message)
    yield from _config(prompt.config)
    yield from _tools(prompt)
    if isinstance(prompt.response_format, JsonSchemaFormat):
        yield from _json_object("response_format.json_schema.schema_json", prompt.response_format.schema_json)
        if not prompt.response_format.name:
            yield FieldViolation("response_format.json_schema.name", "a name is needed")
    if prompt.provider_options_json:
        yield from _json_object("provider_options_json", prompt.provider_options_json)


def _message(path: str, message: Message) -> Violations:
    if not message.parts:
        yield FieldViolation(f"{path}.parts", "at least one part is needed")
    if len(message.parts) > PARTS_MAX:
        yield FieldViolation(f"{path}.parts", f"at most {PARTS_MAX} parts")
    allowed = _ALLOWED[message.role]
    for index, part in enumerate(message.parts):
        where = f"{path}.parts[{index}]"
        if not isinstance(part, allowed):
            yield FieldViolation(where, f"a message of role {message.role.value} cannot hold this kind of part")
        yield from _part(where, part)


def _part(path: str, part: Part) -> Violations:
    match part:
        case MediaPart():
            yield from _media(f"{path}.media", part)
        case ToolCallPart():
            if not part.id:
                yield FieldViolation(f"{path}.tool_call.id", "the id that the model gave is needed")
            if not part.name:
                yield FieldViolation(f"{path}.tool_call.name", "a name is needed")
        case ToolResultPart():
            if not part.tool_call_id:
                yield FieldViolation(f"{path}.tool_result.tool_call_id", "the id of the tool call is needed")
            for index, inner in enumerate(part.parts):
                yield from _part(f"{path}.tool_result.parts[{index}]", inner)
        case TextPart() | ReasoningPart() | RefusalPart():
            pass


def _media(path: str, part: MediaPart) -> Violations:
    sources = [source for source in (part.data, part.uri, part.provider_file_id) if source]
    if len(sources) != 1:
        yield FieldViolation(path, "exactly one of data, uri and provider_file_id is needed, and not empty")
    if part.data and not part.mime_type:
        yield FieldViolation(f"{path}.mime_type", "data needs a media type such as image/png")
    if part.mime_type and not re.fullmatch(r"[a-zA-Z0-9!#$&^_.+-]+/[a-zA-Z0-9!#$&^_.+-]+", part.mime_type):
        yield FieldViolation(f"{path}.mime_type", "must be a media type such as image/png")


def _config(config: GenerationConfig) -> Violations:
    for name, (low, high) in _RANGES.items():
        value = getattr(config, name)
        if value is not None and not (math.isfinite(value) and low <= value <= high):
            yield FieldViolation(f"config.{name}", f"must be between {low:g} and {high:g}")
    if len(config.stop_sequences) > STOP_SEQUENCES_MAX:
        yield FieldViolation("config.stop_sequences", f"at most {STOP_SEQUENCES_MAX} stop sequences")
    if "" in config.stop_sequences:
        yield FieldViolation("config.stop_sequences", "a stop sequence must not be empty")
    reasoning = config.reasoning
    if reasoning is not None and reasoning.budget_tokens is not None and reasoning.budget_tokens < 0:
        yield FieldViolation("config.reasoning.budget_tokens", "must not be negative")


def _tools(prompt: Prompt) -> Violations:
    if len(prompt.tools) > TOOLS_MAX:
        yield FieldViolation("tools", f"at most {TOOLS_MAX} tools")
    names: set[str] = set()
    for index, tool in enumerate(prompt.tools):
        match tool:
            case FunctionTool():
                path = f"tools[{index}].function"
                if not re.fullmatch(r"[A-Za-z0-9_-]{1,128}", tool.name):
                    yield FieldViolation(f"{path}.name", "1 to 128 of A-Z, a-z, 0-9, _ and -")
                if tool.name in names:
                    yield FieldViolation(f"{path}.name", "this name is used twice")
                names.add(tool.name)
                if tool.parameters_json_schema:
                    yield from _schema_of_object(f"{path}.parameters_json_schema", tool.parameters_json_schema)
            case ProviderTool():
                yield from _json_object(f"tools[{index}].provider_tool_json", tool.json)
    if prompt.tool_choice is not None:
        yield from _tool_choice(prompt.tool_choice, names, has_tools=bool(prompt.tools))


def _tool_choice(choice: ToolChoice, names: Iterable[str], *, has_tools: bool) -> Violations:
    if choice.function_name is not None and choice.function_name not in names:
        yield FieldViolation("tool_choice.function_name", "this function is not among the tools")
    if choice.mode is ToolMode.REQUIRED and not has_tools:
        yield FieldViolation("tool_choice.mode", "a tool can be required only when tools are offered")


def _json_object(path: str, text: str) -> Violations:
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError):
        yield FieldViolation(path, "must be a JSON object")
        return
    if not isinstance(value, dict):
        yield FieldViolation(path, f"must be a JSON object, not {json.dumps(value)[:20]}")


def _schema_of_object(path: str, text: str) -> Violations:
    """Arguments are an object. A schema that does not say so yet may do it by a reference or a combination."""
    faults = list(_json_object(path, text))
    yield from faults
    if faults:
        return
    kinds = msgspec.json.decode(text).get("type", "object")
    if kinds != "object" and not (isinstance(kinds, list) and "object" in kinds):
        yield FieldViolation(path, "a function's parameters are a JSON Schema of type object")


def _is_uuid(text: str) -> bool:
    try:
        return str(UUID(text)) == text.lower()
    except ValueError:
        return False
