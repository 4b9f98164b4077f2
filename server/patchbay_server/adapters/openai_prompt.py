"""What chat completions and the Responses API share in saying a prompt: knobs, media, tools, what is left out."""

import base64
from collections.abc import Iterable
from enum import Enum, auto
from typing import Any, Final

import msgspec

from patchbay_server.adapters.json_body import decode, embedded_object
from patchbay_server.adapters.knobs import Knobs, unsupported
from patchbay_server.adapters.openai_dialect import Dialect
from patchbay_server.adapters.openai_models import DEFAULTS, Family
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.types import (
    Call,
    Effort,
    FunctionTool,
    GenerationConfig,
    JsonObjectFormat,
    JsonSchemaFormat,
    MediaPart,
    Notice,
    NoticeCode,
    Part,
    ProviderTool,
    ResponseFormat,
    TextFormat,
    Tool,
)

_AUDIO_FORMATS: Final = {
    "audio/wav": "wav",
    "audio/x-wav": "wav",
    "audio/wave": "wav",
    "audio/vnd.wave": "wav",
    "audio/mpeg": "mp3",
    "audio/mp3": "mp3",
}
_ADDRESS_SCHEMES: Final = ("https://", "http://", "data:")

_CALLED_OTHERWISE: Final = frozenset({"custom", "local_shell", "apply_patch", "computer", "computer_use_preview"})
"""Tools that the caller would have to run and whose calls are free text, patches or clicks."""

_KNOBS: Final = (
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "frequency_penalty",
    "presence_penalty",
    "stop_sequences",
)

NO_PARAMETERS: Final = {"type": "object", "properties": {}}
NO_PARAMETERS_STRICT: Final = {**NO_PARAMETERS, "additionalProperties": False, "required": []}


class MediaKind(Enum):
    IMAGE = auto()
    AUDIO = auto()
    FILE = auto()


class LeftOut:
    """What of a call is not in its request, each with a notice; content that cannot be said is refused instead."""

    def __init__(self, call: Call, dialect: Dialect) -> None:
        self._dialect = dialect
        self._knobs = Knobs(droppable=call.prompt.drop_unsupported)
        self._notices: list[Notice] = []
        self._hinted = False

    @property
    def notices(self) -> tuple[Notice, ...]:
        return (*self._knobs.notices, *self._notices)

    def knob(self, name: str, why: str) -> None:
        """Raises: PatchbayError: FEATURE_UNSUPPORTED unless the caller allowed knobs to be left out."""
        self._knobs.refuse(f"config.{name}", why)

    def reasoning(self, path: str) -> None:
        """Reasoning of an earlier turn, which this API has no place for."""
        self._notices.append(
            Notice(
                code=NoticeCode.PROVIDER_STATE_LEFT_OUT,
                message=f"{self._dialect.name} does not take reasoning back here",
                field=path,
            )
        )

    def cache_breakpoint(self, path: str) -> None:
        """A hint, so it is never refused; one notice speaks for all of a call."""
        if self._hinted:
            return
        self._hinted = True
        self._notices.append(
            Notice(
                code=NoticeCode.FIELD_DROPPED,
                message="the model takes no cache marks; where the provider caches prompts, it does so by itself",
                field=f"{path}.cache_breakpoint",
            )
        )

    def file_name(self, path: str) -> None:
        self._notices.append(
            Notice(
                code=NoticeCode.FIELD_DROPPED,
                message="only files have a name here; images and recordings have none",
                field=f"{path}.media.file_name",
            )
        )


def kind_of(part: Part) -> str:
    """The part's field in the contract, such as `text`."""
    return str(part.__struct_config__.tag)


def misplaced(path: str, part: Part, dialect: Dialect) -> PatchbayError:
    """The refusal of a part in a message that has no place for it."""
    kind = kind_of(part)
    return unsupported(f"{path}.{kind}", f"{dialect.name} has no place for a {kind} part in a message of this role")


def media_kind(part: MediaPart) -> MediaKind:
    """What a media part is. An address without a media type is taken for an image, which every relative fetches."""
    mime_type = part.mime_type.lower()
    if mime_type.startswith("image/") or (not mime_type and part.uri is not None):
        return MediaKind.IMAGE
    return MediaKind.AUDIO if mime_type.startswith("audio/") else MediaKind.FILE


def data_url(part: MediaPart, data: bytes) -> str:
    return f"data:{part.mime_type};base64,{base64.b64encode(data).decode('ascii')}"


def file_name(part: MediaPart) -> str:
    """The name of inline data, which the API asks for."""
    if part.file_name:
        return part.file_name
    return "file.pdf" if part.mime_type.lower() == "application/pdf" else "file"


def checked_address(part: MediaPart, path: str, dialect: Dialect) -> str:
    """Raises: PatchbayError: FEATURE_UNSUPPORTED for an address of a scheme that the provider does not fetch."""
    uri = part.uri or ""
    if not uri.lower().startswith(_ADDRESS_SCHEMES):
        raise unsupported(f"{path}.media.uri", f"{dialect.name} fetches https addresses only; send the data instead")
    return uri


def audio(part: MediaPart, path: str, dialect: Dialect) -> dict[str, str]:
    """The value of an `input_audio` part.

    Raises:
        PatchbayError: FEATURE_UNSUPPORTED for anything but wav and mp3 data.
    """
    if not dialect.audio:
        raise unsupported(f"{path}.media", f"{dialect.name} takes no recordings")
    if part.data is None:
        source = "uri" if part.uri is not None else "provider_file_id"
        raise unsupported(f"{path}.media.{source}", f"{dialect.name} takes recordings as data only")
    audio_format = _AUDIO_FORMATS.get(part.mime_type.lower())
    if audio_format is None:
        raise unsupported(f"{path}.media.mime_type", f"{dialect.name} takes recordings as wav or mp3 only")
    return {"data": base64.b64encode(part.data).decode("ascii"), "format": audio_format}


def parameters(tool: FunctionTool, path: str) -> Any:
    """The schema of a function's parameters, as the caller wrote it."""
    if tool.parameters_json_schema:
        return embedded_object(tool.parameters_json_schema, f"{path}.function.parameters_json_schema")
    return NO_PARAMETERS_STRICT if tool.strict else NO_PARAMETERS


def takes_strict(tool: FunctionTool, path: str, dialect: Dialect) -> bool:
    """Whether to say of a function if it is strict.

    Raises:
        PatchbayError: FEATURE_UNSUPPORTED for a strict one where there are none.
    """
    if tool.strict and not dialect.strict_tools:
        raise unsupported(f"{path}.function.strict", f"{dialect.name} knows no strict tools")
    return dialect.strict_tools


def provider_tool(tool: ProviderTool, path: str) -> msgspec.Raw:
    """A tool of the provider's own, as the caller wrote it.

    Raises:
        PatchbayError: FEATURE_UNSUPPORTED for a tool whose calls the contract has no part for, INVALID_REQUEST.
    """
    field = f"{path}.provider_tool_json"
    raw = embedded_object(tool.json, field)
    if decode(bytes(raw)).get("type") in _CALLED_OTHERWISE:
        raise unsupported(field, "calls of this tool are no function calls, which is all that an answer can hold")
    return raw


def check_tool_choice(call: Call) -> None:
    """Raises: PatchbayError: INVALID_REQUEST when the choice asks for a tool that is not offered."""
    choice = call.prompt.tool_choice
    if choice is None or choice.function_name is None:
        return
    if choice.function_name not in function_names(call.prompt.tools):
        raise PatchbayError(
            Reason.INVALID_REQUEST, "this function is not among the tools", field="tool_choice.function_name"
        )


def function_names(tools: Iterable[Tool]) -> frozenset[str]:
    return frozenset(tool.name for tool in tools if isinstance(tool, FunctionTool))


def schema(response_format: JsonSchemaFormat) -> msgspec.Raw:
    return embedded_object(response_format.schema_json, "response_format.json_schema.schema_json")


def format_type(response_format: ResponseFormat) -> str:
    match response_format:
        case TextFormat():
            return "text"
        case JsonObjectFormat():
            return "json_object"
        case JsonSchemaFormat():
            return "json_schema"


def taken_knobs(
    config: GenerationConfig,
    *,
    dialect: Dialect,
    family: Family,
    left_out: LeftOut,
    lacking: frozenset[str] = frozenset(),
) -> dict[str, Any]:
    """The sampling and stopping knobs that are set and that API, dialect and family take, by name.

    Args:
        lacking: knobs that the API has no field for, beside those of the dialect.

    Raises:
        PatchbayError: FEATURE_UNSUPPORTED for one that is not taken, unless the caller allowed it to be left out.
    """
    effort = config.reasoning.effort if config.reasoning else None
    taken: dict[str, Any] = {}
    for name in _KNOBS:
        value = getattr(config, name)
        if value is None or value == ():
            continue
        if name in lacking and value == DEFAULTS.get(name):
            continue
        if name in dialect.refuses | lacking:
            left_out.knob(name, f"{dialect.name} has no `{name}` here")
        elif family.takes_knob(name, effort):
            taken[name] = value
        elif value == DEFAULTS.get(name):
            continue
        elif name in family.refuses:
            left_out.knob(name, f"this model takes no `{name}`")
        else:
            left_out.knob(name, f"this model takes `{name}` only without reasoning; set the effort to NONE")
    return taken


def taken_effort(config: GenerationConfig, *, dialect: Dialect, family: Family, left_out: LeftOut) -> Effort | None:
    """The reasoning effort to ask for, or None to say nothing of it.

    Raises:
        PatchbayError: FEATURE_UNSUPPORTED for a budget or an effort that is not taken, unless it may be left out.
    """
    reasoning = config.reasoning
    if reasoning is None:
        return None
    if reasoning.budget_tokens is not None and "reasoning.budget_tokens" in dialect.refuses:
        left_out.knob("reasoning.budget_tokens", f"{dialect.name} takes a reasoning effort, not a budget of tokens")
    effort = reasoning.effort
    if effort is None or family.takes_effort(effort):
        return effort
    if effort is Effort.NONE and not family.reasons(None):
        # A model that does not reason by itself is already doing what is asked.
        return None
    left_out.knob("reasoning.effort", f"this model does not take the reasoning effort {effort.value}")
    return None


def instructions_role(dialect: Dialect, family: Family) -> str:
    return "developer" if family.developer_role else "system"


def failed_text(text: str) -> str:
    """What a failed tool said, for an API that has no flag for a failure."""
    return f"Error: {text}"
