"""What Converse answers: a stream of events, a whole message or a failure, folded into canonical events.

A stream and a whole message go through the same steps, block by block, so that both give the same parts. Blocks that
have to come back unchanged in the next turn (signed or encrypted reasoning, and the traces of tools that the provider
runs itself) become reasoning parts whose `provider_state` is the block's JSON.

Source: botocore 1.44.5, service model `bedrock-runtime`, shapes `ConverseResponse` and `ConverseStreamOutput`
(read 2026-11-21).
"""

import base64
import binascii
from collections.abc import Hashable, Iterable, Mapping
from itertools import groupby
from types import MappingProxyType
from typing import Any, Final

import msgspec

from patchbay_server.adapters import json_body
from patchbay_server.adapters.bedrock_errors import failure_of, inner_error, is_error_body
from patchbay_server.adapters.counts import count
from patchbay_server.adapters.faults import RAW_REASON_CHARS_MAX, Held, decoded, malformed, not_streamed, unfinished
from patchbay_server.adapters.folding import PARTS_MAX, Parts
from patchbay_server.errors import PatchbayError
from patchbay_server.types import Call, Event, Finished, FinishReason, MediaPart, Opened, UsageUpdated
from patchbay_server.usage import Usage
from patchbay_server.wire.http import Frame

_FINISH_REASONS: Final[Mapping[str, FinishReason]] = MappingProxyType(
    {
        "end_turn": FinishReason.STOP,
        "stop_sequence": FinishReason.STOP,
        "max_tokens": FinishReason.MAX_OUTPUT_TOKENS,
        "model_context_window_exceeded": FinishReason.CONTEXT_LENGTH,
        "tool_use": FinishReason.TOOL_CALLS,
        "guardrail_intervened": FinishReason.CONTENT_FILTER,
        "content_filtered": FinishReason.CONTENT_FILTER,
    }
)
_PIECE_CHARS_MIN: Final = 256
"""What a kept piece costs at least, however little it says."""

_RUN_BY_THE_PROVIDER: Final = "server_tool_use"
"""The type of a tool's use that is none of the caller's. One that is the caller's has none, or `tool_use`.

Source: botocore 1.44.5, shape `ToolUseType`; strands-agents/harness-sdk pull request 1318 (read 2026-11-27).
"""

_UNUSABLE: Final = frozenset({"malformed_model_output", "malformed_tool_use"})
"""Ends that are no answer: the model wrote what the provider could not read."""

_CONTENT: Final[tuple[str, ...]] = ("input", "content", "source")
"""What of a block comes in deltas, by the block's name of it."""

# --- the wire: every leaf is `Any`, so that a null or a wrong type never costs a usable stream ------------------------


class _BlockStart(msgspec.Struct, gc=False, rename="camel"):
    start: dict[str, msgspec.Raw] | None = None
    content_block_index: Any = None


class _BlockDelta(msgspec.Struct, gc=False, rename="camel"):
    delta: dict[str, msgspec.Raw] | None = None
    content_block_index: Any = None


class _BlockStop(msgspec.Struct, gc=False, rename="camel"):
    content_block_index: Any = None


class _MessageStop(msgspec.Struct, gc=False, rename="camel"):
    stop_reason: Any = None


class _Metadata(msgspec.Struct, gc=False, rename="camel"):
    usage: Any = None


class _Message(msgspec.Struct, gc=False, rename="camel"):
    content: list[dict[str, msgspec.Raw]] | None = None


class _Output(msgspec.Struct, gc=False, rename="camel"):
    message: _Message | None = None


class _Answer(msgspec.Struct, gc=False, rename="camel"):
    output: _Output | None = None
    stop_reason: Any = None
    usage: Any = None


_block_start: Final = msgspec.json.Decoder(_BlockStart)
_block_delta: Final = msgspec.json.Decoder(_BlockDelta)
_block_stop: Final = msgspec.json.Decoder(_BlockStop)
_message_stop: Final = msgspec.json.Decoder(_MessageStop)
_metadata: Final = msgspec.json.Decoder(_Metadata)
_answer: Final = msgspec.json.Decoder(_Answer)
_members: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_anything: Final = msgspec.json.Decoder()


def whole_object(data: bytes) -> dict[str, Any]:
    """The members of a whole answer.

    Raises:
        PatchbayError: what an error in its place means; UPSTREAM_MALFORMED_RESPONSE when it is no object.
    """
    value = decoded(_anything, data)
    if not isinstance(value, dict):
        raise malformed("the provider sent an answer that is no object")
    if is_error_body(value):
        raise inner_error(value)
    return value


# --- blocks -----------------------------------------------------------------------------------------------------------


class _Block:
    """A content block that still grows: what of its start is needed at its end, and what deltas added.

    Args:
        kind: `text`, `reasoning`, `tool` (one that the caller runs), `kept_tool`, `kept_result`, `image` or `other`.
        members: of the block as it came at its start.
    """

    __slots__ = ("content", "data", "kind", "members", "pieces", "signature")

    def __init__(self, kind: str, members: dict[str, msgspec.Raw]) -> None:
        self.kind = kind
        self.members = members
        self.pieces: list[str] = []
        self.signature: list[str] = []
        self.data = bytearray()
        self.content: list[dict[str, Any]] = []


class Reader:
    """Folds one answer of Converse, streamed or whole.

    A stream's end is proven by `messageStop` and `metadata` together. Unknown events, blocks and deltas are skipped;
    citations have no place in the contract and are, too.
    """

    def __init__(self, call: Call) -> None:
        self._streaming = call.streaming
        self._parts = Parts(call.id)
        self._blocks: dict[Hashable, _Block] = {}
        self._begun = 0
        self._newest: Hashable = None
        self._usage: Usage | None = None
        self._opened = False
        self._stopped = False
        self._reported = False
        self._finished = False
        self._held = Held()
        self._stop_reason = ""

    @property
    def finished(self) -> bool:
        return self._finished

    @property
    def failure(self) -> PatchbayError | None:
        return self._held.failure

    @property
    def wants_more(self) -> bool:
        return False

    def feed(self, frame: Frame) -> list[Event]:
        if self._finished:
            return []
        self._held.check()
        if frame.whole:
            return self._feed_whole(frame.data)
        match frame.event:
            case "contentBlockDelta":
                delta = decoded(_block_delta, frame.data)
                return [*self._open(), *self._block_delta(delta.content_block_index, delta.delta or {})]
            case "contentBlockStart":
                start = decoded(_block_start, frame.data)
                return [*self._open(), *self._begin_block(start.content_block_index, start.start or {})]
            case "contentBlockStop":
                return self._end_block(self._key(decoded(_block_stop, frame.data).content_block_index))
            case "messageStart":
                return self._open()
            case "messageStop":
                return [*self._open(), *self._stop(decoded(_message_stop, frame.data).stop_reason)]
            case "metadata":
                return self._report(decoded(_metadata, frame.data).usage)
            case _:
                if failure := failure_of(frame):
                    raise failure
                return []

    def finish(self) -> list[Event]:
        if self._finished:
            return []
        self._held.check()
        raise unfinished(opened=self._opened)

    # --- whole answers ---

    def _feed_whole(self, data: bytes) -> list[Event]:
        if not data.strip():
            return []
        whole_object(data)
        answer = decoded(_answer, data)
        opened = self._open()
        try:
            events = self._whole_blocks(answer)
        except PatchbayError as failure:
            return self._fail(failure, opened, answer.usage)
        return [*opened, *events, *self._stop(answer.stop_reason), *self._report(answer.usage)]

    def _whole_blocks(self, answer: _Answer) -> list[Event]:
        if answer.output is None or answer.output.message is None:
            raise malformed("the provider sent an answer that is no message")
        if self._streaming:
            raise not_streamed()
        events: list[Event] = []
        for index, members in enumerate(answer.output.message.content or ()):
            events += self._whole_block(index, members)
            events += self._end_block(index)
        return events

    def _fail(self, failure: PatchbayError, told: list[Event], reported: Any) -> list[Event]:
        """What was counted of an answer that fails, after `told`; the failure itself when nothing was."""
        usage = _usage(reported)
        if usage is None:
            raise failure
        return self._held.keep(failure, [*told, UsageUpdated(usage)])

    def _whole_block(self, index: int, members: dict[str, msgspec.Raw]) -> list[Event]:
        for kind, value in members.items():
            match kind:
                case "toolUse" | "toolResult" | "image":
                    inner = _object(value)
                    content = {name: inner.pop(name) for name in _CONTENT if name in inner}
                    began = self._begin_block(index, {kind: msgspec.Raw(json_body.encode(inner))})
                    return began + self._whole_content(index, content)
                case "text" | "reasoningContent":
                    return self._block_delta(index, _as_delta(kind, value))
                case "citationsContent":
                    return self._add_text(index, _cited_text(value))
        return []

    def _whole_content(self, index: int, content: Mapping[str, msgspec.Raw]) -> list[Event]:
        """What deltas tell of a block in a stream."""
        block = self._blocks[index]
        match block.kind:
            case "tool" | "kept_tool" if "input" in content:
                # Decoded once to prove that the bytes are UTF-8; the text itself stays as the model wrote it.
                decoded(_anything, content["input"])
                return self._add_input(index, block, bytes(content["input"]).decode())
            case "kept_result" if "content" in content:
                self._add_content(block, decoded(_anything, content["content"]))
            case "image" if "source" in content:
                self._add_image(block, decoded(_anything, content["source"]))
        return []

    # --- blocks ---

    def _open(self) -> list[Event]:
        if self._opened:
            return []
        self._opened = True
        return [Opened()]

    def _key(self, index: Any) -> Hashable:
        """The block that an event speaks of: the one with its index, or the newest where the index is unusable."""
        return index if isinstance(index, int) else self._newest

    def _begin_block(self, index: Any, start: dict[str, msgspec.Raw]) -> list[Event]:
        # Blocks follow each other: one that cannot be told apart by its index ends where the next begins.
        events = self._end_block(self._key(index))
        key = index if isinstance(index, int) else ("without index", self._begun)
        if "toolUse" in start:
            members = _object(start["toolUse"])
            if _text(members.get("type")) == _RUN_BY_THE_PROVIDER:
                self._hold("kept_tool", key, members)
                return events + self._parts.reasoning(key, "")
            self._hold("tool", key, members)
            tool_id, name = _text(members.get("toolUseId")), _text(members.get("name"))
            return events + self._parts.tool_call(key, id=tool_id, name=name)
        if "toolResult" in start:
            self._hold("kept_result", key, _object(start["toolResult"]))
            return events + self._parts.reasoning(key, "")
        if "image" in start:
            self._hold("image", key, _object(start["image"]))
        else:
            self._hold("other", key, {})
        return events

    def _hold(self, kind: str, key: Hashable, members: dict[str, msgspec.Raw]) -> _Block:
        self._begun += 1
        if self._begun > PARTS_MAX:
            raise malformed("the provider sent more blocks than an answer can have")
        self._parts.count_chars(sum(map(len, members.values())))
        self._blocks[key] = block = _Block(kind, members)
        self._newest = key
        return block

    def _growing(self, index: Any, kind: str) -> tuple[Hashable, _Block, list[Event]]:
        """The open block of `kind` that a delta adds to. Text and reasoning begin with their first delta."""
        key = self._key(index)
        block = self._blocks.get(key)
        if block is not None and block.kind in (kind, "other"):
            block.kind = kind
            return key, block, []
        ended = self._end_block(key)
        return key, self._hold(kind, key, {}), ended

    def _block_delta(self, index: Any, delta: dict[str, msgspec.Raw]) -> list[Event]:
        events: list[Event] = []
        for kind, value in delta.items():
            match kind:
                case "text":
                    events += self._add_text(index, _text(value))
                case "reasoningContent":
                    events += self._add_reasoning(index, _object(value))
                case "toolUse":
                    events += self._add_input(self._key(index), self._open_tool(index), _member(value, "input"))
                case "toolResult" | "image":
                    self._add_to_open(index, kind, decoded(_anything, value))
        return events

    def _add_text(self, index: Any, text: str) -> list[Event]:
        if not text:
            return []
        key, _, ended = self._growing(index, "text")
        return ended + self._parts.text(key, text)

    def _add_reasoning(self, index: Any, piece: dict[str, msgspec.Raw]) -> list[Event]:
        key, block, ended = self._growing(index, "reasoning")
        if signature := _text(piece.get("signature")):
            self._parts.count_chars(len(signature))
            block.signature.append(signature)
        if encrypted := _text(piece.get("redactedContent")):
            self._append_data(block, encrypted)
        text = _text(piece.get("text"))
        if text:
            block.pieces.append(text)
        return ended + self._parts.reasoning(key, text)

    def _open_tool(self, index: Any) -> _Block:
        block = self._blocks.get(self._key(index))
        if block is None or block.kind not in ("tool", "kept_tool"):
            raise malformed("the provider sent a piece of a tool call that is not open")
        return block

    def _add_input(self, key: Hashable, block: _Block, text: str) -> list[Event]:
        if block.kind == "tool":
            return self._parts.arguments(key, text)
        if text:
            self._parts.count_chars(len(text))
            block.pieces.append(text)
        return []

    def _add_to_open(self, index: Any, kind: str, value: Any) -> None:
        block = self._blocks.get(self._key(index))
        if block is not None and block.kind == "kept_result" and kind == "toolResult":
            self._add_content(block, value)
        elif block is not None and block.kind == "image" and isinstance(value, dict):
            self._add_image(block, value.get("source"))

    def _add_content(self, block: _Block, content: Any) -> None:
        for piece in content if isinstance(content, list) else ():
            if isinstance(piece, dict) and piece:
                self._parts.count_chars(max(len(json_body.encode(piece)), _PIECE_CHARS_MIN))
                block.content.append(piece)

    def _add_image(self, block: _Block, source: Any) -> None:
        if isinstance(source, dict) and isinstance(source.get("bytes"), str):
            self._append_data(block, source["bytes"])

    def _append_data(self, block: _Block, encoded: str) -> None:
        self._parts.count_chars(len(encoded))
        try:
            block.data += base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError) as error:
            raise malformed("the provider sent binary data that is not base64") from error

    def _end_block(self, key: Hashable) -> list[Event]:
        block = self._blocks.pop(key, None)
        if block is None:
            return []
        match block.kind:
            case "reasoning":
                if state := _reasoning_state(block):
                    self._parts.reasoning_state(key, state)
            case "kept_tool" | "kept_result":
                if state := _kept_state(block):
                    self._parts.reasoning_state(key, state)
            case "image" if block.data:
                image_format = _text(block.members.get("format")) or "png"
                return self._parts.media(MediaPart(mime_type=f"image/{image_format}", data=bytes(block.data)))
        return self._parts.complete(key)

    # --- the end ---

    def _stop(self, stop_reason: Any) -> list[Event]:
        self._stopped = True
        self._stop_reason = stop_reason if isinstance(stop_reason, str) else ""
        return self._end()

    def _report(self, usage: Any) -> list[Event]:
        self._reported = True
        self._usage = _usage(usage)
        opened = self._open()
        try:
            return [*opened, *self._end()]
        except PatchbayError as failure:
            return self._fail(failure, opened, usage)

    def _end(self) -> list[Event]:
        if not (self._stopped and self._reported):
            return []
        events = self._open()
        for key in tuple(self._blocks):
            events += self._end_block(key)
        if self._stop_reason in _UNUSABLE:
            told = [*events, UsageUpdated(self._usage)] if self._usage else events
            return self._held.keep(
                malformed("the model wrote an answer that the provider could not read; try again"), told
            )
        self._finished = True
        finished = Finished(
            finish_reason=self._finish_reason(),
            provider_finish_reason=self._stop_reason[:RAW_REASON_CHARS_MAX],
            usage=self._usage,
            notices=self._parts.notices,
        )
        return [*events, finished]

    def _finish_reason(self) -> FinishReason:
        # Some models report a natural end, or nothing, where they wait for tools.
        if self._parts.tool_calls and self._stop_reason in ("", "end_turn"):
            return FinishReason.TOOL_CALLS
        return _FINISH_REASONS.get(self._stop_reason, FinishReason.OTHER)


def _reasoning_state(block: _Block) -> bytes:
    """The block to send back; nothing when the provider neither signed nor encrypted it."""
    if block.data:
        encrypted = base64.b64encode(block.data).decode("ascii")
        return json_body.encode({"reasoningContent": {"redactedContent": encrypted}})
    if block.signature:
        signed = {"text": "".join(block.pieces), "signature": "".join(block.signature)}
        return json_body.encode({"reasoningContent": {"reasoningText": signed}})
    return b""


def _kept_state(block: _Block) -> bytes:
    if block.kind == "kept_result":
        return json_body.encode({"toolResult": {**block.members, "content": _joined(block.content)}})
    text = "".join(block.pieces).encode() or b"{}"
    try:
        json_body.decode(text)
    except ValueError:
        # Cut off by the token limit: such a block cannot be sent back.
        return b""
    return json_body.encode({"toolUse": {**block.members, "input": msgspec.Raw(text)}})


def _joined(content: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The pieces of a result with texts that follow each other as the one that they are."""
    joined: list[dict[str, Any]] = []
    for is_text, group in groupby(content, key=lambda piece: isinstance(piece.get("text"), str)):
        pieces = list(group)
        joined += [{"text": "".join(piece["text"] for piece in pieces)}] if is_text else pieces
    return joined


def _as_delta(kind: str, value: msgspec.Raw) -> dict[str, msgspec.Raw]:
    """A whole block as the one delta that tells it."""
    if kind == "text":
        return {kind: value}
    members = _object(value)
    return {kind: members["reasoningText"]} if "reasoningText" in members else {kind: value}


def _cited_text(value: msgspec.Raw) -> str:
    content = decoded(_anything, value)
    pieces = content.get("content") if isinstance(content, dict) else None
    texts = (piece.get("text") for piece in pieces if isinstance(piece, dict)) if isinstance(pieces, list) else ()
    return "".join(text for text in texts if isinstance(text, str))


def _object(value: msgspec.Raw) -> dict[str, msgspec.Raw]:
    """The members of an object; none of anything else."""
    return decoded(_members, value) if bytes(value).lstrip()[:1] == b"{" else {}


def _text(value: msgspec.Raw | None) -> str:
    """The text that `value` is, or empty."""
    if value is None or bytes(value).lstrip()[:1] != b'"':
        return ""
    text: str = decoded(_anything, value)
    return text


def _member(value: msgspec.Raw, name: str) -> str:
    return _text(_object(value).get(name))


def _usage(value: Any) -> Usage | None:
    """The normal form, or None when nothing was reported. `inputTokens` of the wire leaves the cached part out."""
    if not isinstance(value, dict):
        return None
    names = ("inputTokens", "outputTokens", "cacheReadInputTokens", "cacheWriteInputTokens")
    fresh, output, cached, written = (count(value.get(name)) for name in names)
    if fresh is None and output is None and cached is None and written is None:
        return None
    total_input = (fresh or 0) + (cached or 0) + (written or 0)
    return Usage(
        input_tokens=total_input,
        output_tokens=output or 0,
        total_tokens=total_input + (output or 0),
        cached_input_tokens=cached,
        cache_write_input_tokens=written,
    )
