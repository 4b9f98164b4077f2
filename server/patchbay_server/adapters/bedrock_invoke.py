"""InvokeModel: provider options as it takes them, the frames that it wraps a maker's own stream in, and Claude on it.

Provider options are those of Converse whatever the API, so that a guardrail holds for every call: what Converse has in
its body goes into headers here.

Source: botocore 1.44.5, service model `bedrock-runtime`, shapes `InvokeModelRequest` and `ResponseStream` with their
documentation; guardrails in answers: maximhq/bifrost pull request 7339, langchain-ai/langchain-aws pull request 937
(read 2026-11-21).
"""

import base64
import binascii
import json
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec

from patchbay_server.adapters import anthropic_answer, json_body
from patchbay_server.adapters.anthropic_request import messages_body
from patchbay_server.adapters.bedrock_answer import whole_object
from patchbay_server.adapters.bedrock_errors import PROVIDER, failure_of
from patchbay_server.adapters.faults import decoded, malformed
from patchbay_server.adapters.knobs import unsupported
from patchbay_server.types import (
    Call,
    Event,
    Finished,
    FinishReason,
    FunctionTool,
    MediaPart,
    Message,
    Notice,
    Part,
    Prompt,
    ReasoningPart,
    ToolCallPart,
    ToolChoice,
    ToolMode,
    ToolResultPart,
)
from patchbay_server.wire.http import Frame

ANTHROPIC_VERSION: Final = "bedrock-2023-05-31"
METADATA_CHARS_MAX: Final = 8500

_OPTIONS: Final = "provider_options_json"
_INTERVENED: Final = "guardrail_intervened"
_GUARDRAIL_ACTION: Final = "amazon-bedrock-guardrailAction"
_GUARDRAIL_MODES: Final = MappingProxyType({"sync": "SYNCHRONOUS", "async": "ASYNCHRONOUS"})


# --- options ----------------------------------------------------------------------------------------------------------


class _Guardrail(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    guardrail_identifier: Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9:/-]{1,2048}\Z")]
    guardrail_version: Annotated[str, msgspec.Meta(pattern=r"\A(?:[1-9][0-9]{0,7}|DRAFT)\Z")]
    trace: Literal["enabled", "disabled", "enabled_full"] | None = None
    stream_processing_mode: Literal["sync", "async"] | None = None


class _Performance(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    latency: Literal["standard", "optimized"]


class _Tier(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    type: Literal["priority", "default", "flex", "reserved"]


_MetadataText = Annotated[str, msgspec.Meta(pattern=r"\A[a-zA-Z0-9\s:_@$#=/+,.-]{0,256}\Z")]


class _Options(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    additional_model_request_fields: msgspec.Raw = msgspec.Raw(b"")
    guardrail_config: _Guardrail | None = None
    performance_config: _Performance | None = None
    service_tier: _Tier | None = None
    request_metadata: Annotated[dict[_MetadataText, _MetadataText], msgspec.Meta(max_length=16)] | None = None


_options: Final = msgspec.json.Decoder(_Options)


class InvokeOptions(NamedTuple):
    """`body_json` holds members of the model's own body, `fields` those that the service adds to it."""

    body_json: str
    fields: Mapping[str, Any]
    headers: tuple[tuple[str, str], ...]


def invoke_options(prompt: Prompt) -> InvokeOptions:
    """The provider options of a call, which are Converse's, as InvokeModel takes them.

    Raises:
        PatchbayError: INVALID_REQUEST or FEATURE_UNSUPPORTED naming `provider_options_json`.
    """
    text = prompt.provider_options_json
    if not text.strip():
        return InvokeOptions("", {}, ())
    # Refuses what is no object and what the gateway decides.
    json_body.merged({}, text)
    try:
        options = json_body.typed(_options, text.encode())
    except ValueError as error:
        raise unsupported(
            _OPTIONS,
            "this call is one for InvokeModel, which takes of the options of Converse `additionalModelRequestFields`,"
            " `guardrailConfig`, `performanceConfig`, `serviceTier` and `requestMetadata`, each in its documented form",
        ) from error
    body_json = bytes(options.additional_model_request_fields).decode()
    return InvokeOptions(body_json, dict(_fields(options)), tuple(_headers(options)))


def _fields(options: _Options) -> Iterator[tuple[str, Any]]:
    guardrail = options.guardrail_config
    if guardrail is not None and guardrail.stream_processing_mode is not None:
        mode = _GUARDRAIL_MODES[guardrail.stream_processing_mode]
        yield "amazon-bedrock-guardrailConfig", {"streamProcessingMode": mode}


def _headers(options: _Options) -> Iterator[tuple[str, str]]:
    if (guardrail := options.guardrail_config) is not None:
        yield "x-amzn-bedrock-guardrailidentifier", guardrail.guardrail_identifier
        yield "x-amzn-bedrock-guardrailversion", guardrail.guardrail_version
        if guardrail.trace is not None:
            yield "x-amzn-bedrock-trace", guardrail.trace.upper()
    if options.performance_config is not None:
        yield "x-amzn-bedrock-performanceconfig-latency", options.performance_config.latency
    if options.service_tier is not None:
        yield "x-amzn-bedrock-service-tier", options.service_tier.type
    if options.request_metadata is not None:
        metadata = json.dumps(options.request_metadata)
        if len(metadata) > METADATA_CHARS_MAX:
            raise unsupported(_OPTIONS, f"`requestMetadata` has at most {METADATA_CHARS_MAX} characters here")
        yield "x-amzn-bedrock-request-metadata", metadata


# --- Claude -----------------------------------------------------------------------------------------------------------


def claude_body(call: Call, options: InvokeOptions) -> tuple[dict[str, Any], tuple[Notice, ...]]:
    """The body of the Messages API as InvokeModel takes it, and what of the call it leaves out.

    Raises:
        PatchbayError: FEATURE_UNSUPPORTED naming the field that the provider or model cannot express, INVALID_REQUEST.
    """
    _check_media(call.prompt)
    prompt = msgspec.structs.replace(
        _with_used_tools(call.prompt),
        messages=tuple(map(_in_its_form, call.prompt.messages)),
        provider_options_json=options.body_json,
    )
    body, notices = messages_body(msgspec.structs.replace(call, prompt=prompt))
    own = {name: value for name, value in body.items() if name not in ("model", "stream")}
    return {"anthropic_version": ANTHROPIC_VERSION, **own, **options.fields}, notices


def _check_media(prompt: Prompt) -> None:
    for path, part in _media(prompt):
        if part.data is None:
            source = "uri" if part.uri is not None else "provider_file_id"
            raise unsupported(f"{path}.media.{source}", "the provider takes media as data only here")


def _media(prompt: Prompt) -> Iterator[tuple[str, MediaPart]]:
    for i, message in enumerate(prompt.messages):
        for j, part in enumerate(message.parts):
            path = f"messages[{i}].parts[{j}]"
            if isinstance(part, MediaPart):
                yield path, part
            elif isinstance(part, ToolResultPart):
                inner = enumerate(part.parts)
                yield from ((f"{path}.tool_result.parts[{k}]", p) for k, p in inner if isinstance(p, MediaPart))


def _with_used_tools(prompt: Prompt) -> Prompt:
    """`prompt` with the tools that were called earlier, none of which may be called now, where it offers none.

    The API takes calls in the conversation only while their tools are there.
    """
    if prompt.tools:
        return prompt
    calls = (part for message in prompt.messages for part in message.parts if isinstance(part, ToolCallPart))
    tools = tuple(FunctionTool(name=name) for name in dict.fromkeys(call.name for call in calls))
    if not tools:
        return prompt
    return msgspec.structs.replace(prompt, tools=tools, tool_choice=ToolChoice(mode=ToolMode.NONE))


def _in_its_form(message: Message) -> Message:
    return msgspec.structs.replace(message, parts=tuple(map(_thinking, message.parts)))


def _thinking(part: Part) -> Part:
    """Reasoning that Converse gave as the block that it was for the model; encrypted one has no such form."""
    if not isinstance(part, ReasoningPart):
        return part
    block = json_body.object_or_empty(part.provider_state).get("reasoningContent")
    text = block.get("reasoningText") if isinstance(block, dict) else None
    if not isinstance(text, dict):
        return part
    thinking = {"type": "thinking", "thinking": text.get("text"), "signature": text.get("signature")}
    return msgspec.structs.replace(part, provider_state=json_body.encode(thinking))


class _Chunk(msgspec.Struct, gc=False):
    bytes: Any = None


_chunk: Final = msgspec.json.Decoder(_Chunk)


def inner_frame(frame: Frame) -> Frame | None:
    """What a message of the stream holds of the model's own; None when it holds nothing of it.

    Raises:
        PatchbayError: what a failure within the stream means; UPSTREAM_MALFORMED_RESPONSE.
    """
    if failure := failure_of(frame):
        raise failure
    if frame.event != "chunk":
        return None
    encoded = decoded(_chunk, frame.data).bytes
    if not isinstance(encoded, str):
        return None
    try:
        return Frame(base64.b64decode(encoded, validate=True))
    except (binascii.Error, ValueError) as error:
        raise malformed("the provider sent binary data that is not base64") from error


def guardrail_intervened(data: bytes) -> bool:
    """Whether an inner event, or a whole answer, tells that a guardrail put its own words in the place of others."""
    return _GUARDRAIL_ACTION.encode() in data and json_body.object_or_empty(data).get(_GUARDRAIL_ACTION) == "INTERVENED"


def blocked(finished: Finished) -> Finished:
    """The end of an answer that a guardrail stepped into."""
    return msgspec.structs.replace(
        finished, finish_reason=FinishReason.CONTENT_FILTER, provider_finish_reason=_INTERVENED
    )


class ClaudeReader:
    """Folds one answer of Claude on InvokeModel, streamed or whole: the Messages API in the frames of the service."""

    def __init__(self, call: Call) -> None:
        self._inner = anthropic_answer.Reader(call, PROVIDER)
        self._intervened = False

    @property
    def finished(self) -> bool:
        return self._inner.finished

    def feed(self, frame: Frame) -> list[Event]:
        if self.finished:
            return []
        inner: Frame | None = frame
        if not frame.whole:
            inner = inner_frame(frame)
        elif frame.data.strip():
            whole_object(frame.data)
        if inner is None:
            return []
        self._intervened = self._intervened or guardrail_intervened(inner.data)
        return [self._judged(event) for event in self._inner.feed(inner)]

    def finish(self) -> list[Event]:
        return self._inner.finish()

    def _judged(self, event: Event) -> Event:
        if not isinstance(event, Finished):
            return event
        return blocked(event) if self._intervened or event.provider_finish_reason == _INTERVENED else event
