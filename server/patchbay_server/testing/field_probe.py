"""Does every field of a request change what is sent, or is it refused by name? Asked of an adapter, field by field.

The suite for adapters holds each of them to that rule; the table of the documentation shows what came of it.
"""

import json
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

import msgspec

from patchbay_server.adapters.protocol import Adapter, Prepared
from patchbay_server.errors import PatchbayError
from patchbay_server.types import (
    Call,
    Effort,
    FunctionTool,
    GenerationConfig,
    JsonObjectFormat,
    JsonSchemaFormat,
    MediaPart,
    Message,
    Part,
    Prompt,
    ProviderTool,
    ReasoningConfig,
    ReasoningPart,
    RefusalPart,
    Role,
    Secret,
    TextFormat,
    TextPart,
    ToolCallPart,
    ToolChoice,
    ToolMode,
    ToolResultPart,
)

NOW: Final = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)


class Probe(msgspec.Struct, frozen=True):
    """One field of a request: a prompt without it, the same prompt with it, its path in proto names, and what it says.

    `says_the_default`: by its meaning it may change nothing, as it asks for what most providers do anyway.
    """

    path: str
    what: str
    without: Prompt
    with_it: Prompt
    says_the_default: bool = False

    @property
    def name(self) -> str:
        return f"{self.path}: {self.what}"


class Outcome(StrEnum):
    """What came of a field."""

    SENT = "sent"
    """It changes what is sent."""
    LEFT_OUT = "left_out"
    """The same is sent with it and without it, and a notice says so."""
    REFUSED = "refused"
    """The call is refused, naming it or what it belongs to."""
    WITHOUT_EFFECT = "without_effect"
    """The same is sent with it and without it, and nothing is said of it."""


class Probed(msgspec.Struct, frozen=True, kw_only=True):
    """What an adapter made of the two prompts of a probe."""

    without: Prepared | PatchbayError
    with_it: Prepared | PatchbayError

    @property
    def outcome(self) -> Outcome:
        if isinstance(self.with_it, PatchbayError):
            return Outcome.REFUSED
        if isinstance(self.without, PatchbayError) or self.without.request != self.with_it.request:
            return Outcome.SENT
        return Outcome.WITHOUT_EFFECT if self.without.notices == self.with_it.notices else Outcome.LEFT_OUT


def ask(adapter: Adapter, secret: Secret, model: str, probe: Probe) -> Probed:
    """What `adapter` makes of one field of a streamed call for `model`."""

    def prepared(prompt: Prompt) -> Prepared | PatchbayError:
        try:
            return adapter.prepare(Call(id="01", model=model, prompt=prompt, streaming=True), secret, NOW)
        except PatchbayError as refusal:
            return refusal

    return Probed(without=prepared(probe.without), with_it=prepared(probe.with_it))


def written(prepared: Prepared) -> dict[str, Any]:
    """A prepared request as the `request.json` of a golden transcript has it."""
    request = prepared.request
    shown: dict[str, Any] = {
        "method": request.method,
        "url": request.url,
        "headers": dict(request.headers),
        "body": json.loads(request.body) if request.body else None,
    }
    if prepared.notices:
        shown["notices"] = msgspec.to_builtins(list(prepared.notices))
    return shown


# --- prompts ---------------------------------------------------------------------------------------------------------


def said(*parts: Part, role: Role = Role.USER, author_name: str = "") -> Message:
    return Message(role=role, parts=parts, author_name=author_name)


HELLO: Final = said(TextPart(text="hello"))
PLAIN: Final = Prompt(messages=(HELLO,))
SCHEMA: Final = '{"type":"object","properties":{"b":{"type":"integer"},"a":{"const":12345678901234567890123}}}'
_HI: Final = said(TextPart(text="hi"), role=Role.ASSISTANT)
_TOOL: Final = FunctionTool(name="add", description="adds", parameters_json_schema='{"type":"object"}')
_SUM: Final = msgspec.structs.replace(_TOOL, name="sum")
_WITH_TOOL: Final = Prompt(messages=(HELLO,), tools=(_TOOL,))
_CALLED: Final = ToolCallPart(id="call_1", name="add", arguments_json='{"a":1}')
_RESULT: Final = ToolResultPart(tool_call_id="call_1", parts=(TextPart(text="2"),))
_IMAGE: Final = MediaPart(mime_type="image/png", data=bytes.fromhex("89504e470d0a1a0a0000000d49484452"))
_PDF: Final = MediaPart(mime_type="application/pdf", data=b"%PDF-1.7")
_THOUGHT: Final = ReasoningPart(text="hm", provider_state=b"c2ln")
_FORMAT: Final = JsonSchemaFormat(name="sum", schema_json=SCHEMA)
_MARK: Final = "mark for the prompt cache"


def _marked(part: Part) -> Part:
    return msgspec.structs.replace(part, cache_breakpoint=True)


def _prompt(path: str, what: str, without: Prompt = PLAIN, *, says_the_default: bool = False, **fields: Any) -> Probe:
    return Probe(path, what, without, msgspec.structs.replace(without, **fields), says_the_default)


def _config(name: str, value: Any, what: str = "", without: Prompt = PLAIN, *, says_the_default: bool = False) -> Probe:
    config = GenerationConfig(**{name: value})
    return _prompt(f"config.{name}", what or f"{value}", without, says_the_default=says_the_default, config=config)


def _reasoning(name: str, value: Any, *, says_the_default: bool = False) -> Probe:
    config = GenerationConfig(reasoning=ReasoningConfig(**{name: value}))
    return _prompt(f"config.reasoning.{name}", f"{value}".lower(), says_the_default=says_the_default, config=config)


def _of_user(path: str, what: str, part: Part) -> Probe:
    """One more part of the user's message."""
    return _prompt(f"messages[0].parts[1].{path}", what, messages=(said(TextPart(text="hello"), part),))


def _changed(path: str, what: str, without: Part, with_it: Part) -> Probe:
    """The only part of the user's message, in two forms."""
    before, after = Prompt(messages=(said(without),)), Prompt(messages=(said(with_it),))
    return Probe(f"messages[0].parts[0].{path}", what, before, after)


def _of_assistant(path: str, what: str, with_it: Part, without: Part | None = None) -> Probe:
    """The second part of an assistant's message between two of the user, in two forms; None for no second part."""

    def prompt(*parts: Part) -> Prompt:
        return Prompt(messages=(HELLO, said(TextPart(text="hi"), *parts, role=Role.ASSISTANT), HELLO))

    before = prompt() if without is None else prompt(without)
    return Probe(f"messages[1].parts[1].{path}", what, before, prompt(with_it))


def _of_tools(path: str, what: str, call: ToolCallPart = _CALLED, result: ToolResultPart = _RESULT) -> Probe:
    """A call of the model's and its result."""

    def prompt(call: ToolCallPart, result: ToolResultPart) -> Prompt:
        called, answered = said(call, role=Role.ASSISTANT), said(result, role=Role.TOOL)
        return Prompt(messages=(HELLO, called, answered), tools=(_TOOL, _SUM))

    return Probe(path, what, prompt(_CALLED, _RESULT), prompt(call, result))


def _call(path: str, what: str, **fields: Any) -> Probe:
    return _of_tools(f"messages[1].parts[0].{path}", what, call=msgspec.structs.replace(_CALLED, **fields))


def _result(path: str, what: str, **fields: Any) -> Probe:
    path = f"messages[2].parts[0].tool_result.{path}"
    return _of_tools(path, what, result=msgspec.structs.replace(_RESULT, **fields))


def _tool(name: str, value: Any, what: str, *, says_the_default: bool = False) -> Probe:
    tool = msgspec.structs.replace(_TOOL, **{name: value})
    return _prompt(f"tools[0].function.{name}", what, _WITH_TOOL, says_the_default=says_the_default, tools=(tool,))


def _format(name: str, value: Any, what: str, *, says_the_default: bool = False) -> Probe:
    without = Prompt(messages=(HELLO,), response_format=_FORMAT)
    with_it = msgspec.structs.replace(_FORMAT, **{name: value})
    path = f"response_format.json_schema.{name}"
    return _prompt(path, what, without, says_the_default=says_the_default, response_format=with_it)


# --- every field -----------------------------------------------------------------------------------------------------

PROBES: Final[tuple[Probe, ...]] = (
    _prompt("messages", "two in a row of one role", messages=(HELLO, HELLO)),
    _prompt("messages[0]", "system", messages=(said(TextPart(text="be brief"), role=Role.SYSTEM), HELLO)),
    _prompt("messages", "system after the start", messages=(HELLO, said(TextPart(text="be brief"), role=Role.SYSTEM))),
    _prompt("messages[0].author_name", "of a user", messages=(said(TextPart(text="hello"), author_name="ann"),)),
    _prompt(
        "messages[1].author_name",
        "of an assistant",
        Prompt(messages=(HELLO, _HI, HELLO)),
        messages=(HELLO, msgspec.structs.replace(_HI, author_name="bot"), HELLO),
    ),
    _of_user("text", "second text", TextPart(text="more")),
    _of_user("media", "image, bytes", _IMAGE),
    _of_user("media", "image, address", MediaPart(mime_type="image/png", uri="https://example.com/a.png")),
    _of_user("media", "image, file id", MediaPart(mime_type="image/png", provider_file_id="file-1")),
    _of_user("media", "address alone", MediaPart(uri="https://example.com/a")),
    _of_user("media", "file id alone", MediaPart(provider_file_id="file-1")),
    _of_user("media", "WAV, bytes", MediaPart(mime_type="audio/wav", data=b"RIFF")),
    _of_user("media", "MP3, bytes", MediaPart(mime_type="audio/mpeg", data=b"ID3")),
    _of_user("media", "FLAC, bytes", MediaPart(mime_type="audio/flac", data=b"fLaC")),
    _of_user("media", "WAV, address", MediaPart(mime_type="audio/wav", uri="https://example.com/a.wav")),
    _of_user("media", "video, bytes", MediaPart(mime_type="video/mp4", data=b"mp4")),
    _of_user("media", "plain text, bytes", MediaPart(mime_type="text/plain", data=b"text")),
    _of_user("media", "PDF, bytes", _PDF),
    _of_user("media", "PDF, address", MediaPart(mime_type="application/pdf", uri="https://example.com/a.pdf")),
    _of_user("media", "PDF, file id", MediaPart(mime_type="application/pdf", provider_file_id="file-1")),
    _changed("media.file_name", "of a PDF", _PDF, msgspec.structs.replace(_PDF, file_name="report.pdf")),
    _changed("media.file_name", "of an image", _IMAGE, msgspec.structs.replace(_IMAGE, file_name="cat.png")),
    _changed("cache_breakpoint", f"{_MARK}, on text", TextPart(text="hello"), _marked(TextPart(text="hello"))),
    _changed("cache_breakpoint", f"{_MARK}, on an image", _IMAGE, _marked(_IMAGE)),
    _of_assistant("text", "second text of an assistant", TextPart(text="more")),
    _of_assistant("media", "image of an assistant", _IMAGE),
    _of_assistant("reasoning", "text alone", ReasoningPart(text="hm")),
    _of_assistant("reasoning", "with a state of another provider's", _THOUGHT),
    _of_assistant("cache_breakpoint", f"{_MARK}, on reasoning", _marked(_THOUGHT), _THOUGHT),
    _of_assistant("tool_call", "a call", _CALLED),
    _of_assistant(
        "tool_call",
        "with a state of another provider's",
        msgspec.structs.replace(_CALLED, provider_state=b"c2ln"),
        _CALLED,
    ),
    _of_assistant("cache_breakpoint", f"{_MARK}, on a call", _marked(_CALLED), _CALLED),
    _of_assistant("refusal", "a refusal", RefusalPart(text="no")),
    _of_assistant(
        "cache_breakpoint", f"{_MARK}, on a refusal", _marked(RefusalPart(text="no")), RefusalPart(text="no")
    ),
    _call("tool_call.name", "another of the tools", name="sum"),
    _call("tool_call.arguments_json", "other arguments", arguments_json='{"a":12345678901234567890123}'),
    _call("tool_call.arguments_json", "arguments that are no JSON", arguments_json='{"a":'),
    _result("parts", "another text", parts=(TextPart(text="3"),)),
    _result("parts", "two texts", parts=(TextPart(text="2"), TextPart(text="3"))),
    _result("parts", "nothing", parts=()),
    _result("parts[1].media", "image", parts=(TextPart(text="2"), _IMAGE)),
    _result("parts[1].media", "PDF", parts=(TextPart(text="2"), _PDF)),
    _result("failed", "true", failed=True),
    _result("cache_breakpoint", _MARK, cache_breakpoint=True),
    _config("max_output_tokens", 777),
    *(_config(name, value) for name in ("temperature", "top_p") for value in (0.25, 0.0)),
    *(
        _config(name, value, says_the_default=not value)
        for name in ("frequency_penalty", "presence_penalty")
        for value in (0.5, 0.0)
    ),
    _config("top_k", 7),
    _config("stop_sequences", ("END",), "one"),
    _config("stop_sequences", tuple("abcdefghij"), "ten"),
    _config("seed", 7),
    _config("seed", 0),
    _config("parallel_tool_calls", False, "false", _WITH_TOOL),
    _config("parallel_tool_calls", True, "true", _WITH_TOOL, says_the_default=True),
    *(_reasoning("effort", effort, says_the_default=effort is Effort.NONE) for effort in Effort),
    _reasoning("budget_tokens", 2048),
    _reasoning("budget_tokens", 0, says_the_default=True),
    _reasoning("include_text", True),
    _prompt("tools", "a function", tools=(_TOOL,)),
    _prompt(
        "tools",
        "one of the provider's",
        tools=(ProviderTool(json='{"type":"example_search","n":12345678901234567890123}'),),
    ),
    _tool("name", "sum", "another"),
    _tool("description", "sums", "another"),
    _tool("parameters_json_schema", SCHEMA, "another"),
    _tool("strict", True, "true"),
    _tool("strict", False, "false", says_the_default=True),
    _prompt("tool_choice.mode", "auto", _WITH_TOOL, says_the_default=True, tool_choice=ToolChoice(mode=ToolMode.AUTO)),
    _prompt("tool_choice.mode", "none", _WITH_TOOL, tool_choice=ToolChoice(mode=ToolMode.NONE)),
    _prompt("tool_choice.mode", "required", _WITH_TOOL, tool_choice=ToolChoice(mode=ToolMode.REQUIRED)),
    _prompt("tool_choice.function_name", "one of the tools", _WITH_TOOL, tool_choice=ToolChoice(function_name="add")),
    _prompt("response_format.text", "text", says_the_default=True, response_format=TextFormat()),
    _prompt("response_format.json_object", "any object", response_format=JsonObjectFormat()),
    _prompt("response_format.json_schema", "a schema", response_format=_FORMAT),
    _format("schema_json", '{"type":"object","properties":{"b":{"type":"string"}}}', "another"),
    # Most providers hold every answer to the schema that was given.
    *(_format("strict", strict, f"{strict}".lower(), says_the_default=True) for strict in (True, False)),
    _prompt(
        "provider_options_json",
        "an option",
        provider_options_json='{"example_option":{"deep":12345678901234567890123}}',
    ),
)
"""Every field of a request that a caller can set, once per way in which providers treat it differently."""
