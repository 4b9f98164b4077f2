"""What Anthropic answers: a stream of events, a whole message or an error, folded into canonical events.

A stream and a whole message go through the same steps, block by block, so that both give the same parts. Blocks that
have to come back unchanged in the next turn (thinking, and the traces of tools that the provider runs itself) become
reasoning parts whose `provider_state` is the block's JSON.

Source: anthropic-sdk-python 2.11.0, `types/raw_message_stream_event.py`, `types/content_block.py`,
`lib/streaming/_messages.py`, `types/shared/*_error.py`; platform.claude.com/docs, "Streaming messages" and "Errors"
(read 2026-11-20).
"""

from collections.abc import Hashable, Mapping
from types import MappingProxyType
from typing import Any, Final

import msgspec

from patchbay_server.adapters import json_body
from patchbay_server.adapters.counts import count
from patchbay_server.adapters.failures import reason_of_status, upstream_error
from patchbay_server.adapters.faults import (
    ACCEPTED,
    RAW_REASON_CHARS_MAX,
    Held,
    decoded,
    malformed,
    not_streamed,
    unfinished,
)
from patchbay_server.adapters.folding import PARTS_MAX, Parts
from patchbay_server.adapters.json_body import text_or_empty
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.types import Call, Event, Finished, FinishReason, Opened, UsageUpdated
from patchbay_server.usage import Usage
from patchbay_server.wire.http import Frame

PROVIDER: Final = "anthropic"

_FINISH_REASONS: Final[Mapping[str, FinishReason]] = MappingProxyType(
    {
        "end_turn": FinishReason.STOP,
        "stop_sequence": FinishReason.STOP,
        "max_tokens": FinishReason.MAX_OUTPUT_TOKENS,
        "model_context_window_exceeded": FinishReason.CONTEXT_LENGTH,
        "tool_use": FinishReason.TOOL_CALLS,
        "pause_turn": FinishReason.PAUSE,
        "compaction": FinishReason.PAUSE,
        "refusal": FinishReason.REFUSAL,
    }
)

# --- the wire: every leaf is `Any`, so that a null or a wrong type never costs a usable stream ------------------------


class _Message(msgspec.Struct, gc=False):
    """A whole answer; or the head of a streamed one, which has what there is of the answer before the stream."""

    type: Any = None
    id: Any = None
    model: Any = None
    content: list[dict[str, msgspec.Raw]] | None = None
    stop_reason: Any = None
    stop_details: Any = None
    usage: Any = None
    error: Any = None
    request_id: Any = None


class _MessageStart(msgspec.Struct, gc=False):
    message: _Message | None = None


class _BlockStart(msgspec.Struct, gc=False):
    content_block: dict[str, msgspec.Raw]
    index: Any = None


class _Piece(msgspec.Struct, gc=False):
    type: Any = None
    text: Any = None
    thinking: Any = None
    signature: Any = None
    partial_json: Any = None
    content: Any = None
    encrypted_content: Any = None


class _BlockDelta(msgspec.Struct, gc=False):
    delta: _Piece
    index: Any = None


class _BlockStop(msgspec.Struct, gc=False):
    index: Any = None


class _End(msgspec.Struct, gc=False):
    stop_reason: Any = None
    stop_details: Any = None


class _MessageDelta(msgspec.Struct, gc=False):
    delta: _End | None = None
    usage: Any = None


class _ErrorEnvelope(msgspec.Struct, gc=False):
    error: Any = None
    request_id: Any = None


class _Kind(msgspec.Struct, gc=False):
    type: Any = None
    error: Any = None


_message_start: Final = msgspec.json.Decoder(_MessageStart)
_block_start: Final = msgspec.json.Decoder(_BlockStart)
_block_delta: Final = msgspec.json.Decoder(_BlockDelta)
_block_stop: Final = msgspec.json.Decoder(_BlockStop)
_message_delta: Final = msgspec.json.Decoder(_MessageDelta)
_error_envelope: Final = msgspec.json.Decoder(_ErrorEnvelope)
_kind: Final = msgspec.json.Decoder(_Kind)
_message: Final = msgspec.json.Decoder(_Message)
_anything: Final = msgspec.json.Decoder()


def _member_text(members: Mapping[str, msgspec.Raw], name: str) -> str:
    """The member `name` if it is a text, else empty."""
    raw = members.get(name)
    return text_or_empty(decoded(_anything, raw)) if raw is not None else ""


def _embedded(text: str) -> msgspec.Raw:
    return msgspec.Raw(json_body.encode(text))


# --- blocks -----------------------------------------------------------------------------------------------------------

_KEPT: Final = frozenset(
    {
        "thinking",
        "redacted_thinking",
        "server_tool_use",
        "mcp_tool_use",
        "mcp_tool_listing",
        "container_upload",
        "compaction",
        "fallback",
    }
)


def is_kept_block(state: bytes) -> bool:
    """Whether a reasoning part's `provider_state` is a block of this dialect, to be sent back as it is."""
    try:
        value = json_body.decode(state)
    except ValueError:
        return False
    return isinstance(value, dict) and _is_kept(text_or_empty(value.get("type")))


def _is_kept(kind: str) -> bool:
    # `web_search_tool_result` and its kin are the provider's; a plain `tool_result` is the caller's.
    return kind in _KEPT or kind.endswith("_tool_result")


class _Block:
    """A content block that still grows: what of its start is needed at its end, and what deltas added.

    Args:
        members: of the block as it came at its start.
    """

    __slots__ = ("kind", "members", "pieces", "signature")

    def __init__(self, kind: str, members: dict[str, msgspec.Raw]) -> None:
        self.kind = kind
        self.members = members
        self.pieces: list[str] = []
        self.signature = ""

    def add(self, piece: str) -> None:
        # Endless empty pieces must not add up to anything.
        if piece:
            self.pieces.append(piece)


class _Tokens:
    """Token counts of one answer. Each report replaces what it names and leaves the rest: they are running totals."""

    __slots__ = ("cache_read", "cache_write", "input", "output", "thinking")

    def __init__(self) -> None:
        self.input: int | None = None
        self.cache_read: int | None = None
        self.cache_write: int | None = None
        self.output: int | None = None
        self.thinking: int | None = None

    def note(self, usage: Any) -> bool:
        """Take over the counts of a usage object; whether it had any."""
        if not isinstance(usage, dict):
            return False
        details = usage.get("output_tokens_details")
        reported = (
            count(usage.get("input_tokens")),
            count(usage.get("cache_read_input_tokens")),
            count(usage.get("cache_creation_input_tokens")),
            count(usage.get("output_tokens")),
            count(details.get("thinking_tokens")) if isinstance(details, dict) else None,
        )
        known = (self.input, self.cache_read, self.cache_write, self.output, self.thinking)
        self.input, self.cache_read, self.cache_write, self.output, self.thinking = (
            old if new is None else new for old, new in zip(known, reported, strict=True)
        )
        return any(new is not None for new in reported)

    def usage(self) -> Usage | None:
        """The normal form, or None when nothing was reported. `input_tokens` of the wire leaves the cached part out."""
        counts = (self.input, self.cache_read, self.cache_write, self.output)
        if all(value is None for value in counts):
            return None
        total_input = (self.input or 0) + (self.cache_read or 0) + (self.cache_write or 0)
        output = self.output or 0
        return Usage(
            input_tokens=total_input,
            output_tokens=output,
            total_tokens=total_input + output,
            cached_input_tokens=self.cache_read,
            cache_write_input_tokens=self.cache_write,
            reasoning_tokens=self.thinking,
        )


class Reader:
    """Folds one answer of the Messages API, streamed or whole.

    A stream's end is proven by `message_stop` alone. Unknown events, blocks and deltas are skipped, and so is `ping`.

    Args:
        provider: the connector type that failures inside the answer are reported of.
    """

    def __init__(self, call: Call, provider: str = PROVIDER) -> None:
        self._provider = provider
        self._streaming = call.streaming
        self._parts = Parts(call.id)
        self._blocks: dict[Hashable, _Block] = {}
        self._begun = 0
        self._newest: Hashable = None
        self._tokens = _Tokens()
        self._held = Held()
        self._opened = False
        self._finished = False
        self._stop_reason = ""
        self._refusal = ""

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
        # A proxy may drop `event:` lines; the data names its type too.
        kind = frame.event if frame.event != "message" else _kind_of(frame.data)
        match kind:
            case "content_block_delta":
                return self._block_delta(decoded(_block_delta, frame.data))
            case "content_block_start":
                start = decoded(_block_start, frame.data)
                return [*self._open(), *self._begin_block(start.index, start.content_block)]
            case "content_block_stop":
                return self._end_block(self._key(decoded(_block_stop, frame.data).index))
            case "message_start":
                return self._message_start(decoded(_message_start, frame.data).message or _Message())
            case "message_delta":
                return self._message_delta(decoded(_message_delta, frame.data))
            case "message_stop":
                return self._message_stop()
            case "error":
                envelope = decoded(_error_envelope, frame.data)
                raise self._failure(envelope.error, envelope.request_id)
            case _:
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
        message = decoded(_message, data)
        opened, usage = self._open(message.id, message.model), self._usage_update(message.usage)
        try:
            self._refuse(message)
            return [*opened, *self._told_at_once(message), *self._end()]
        except PatchbayError as failure:
            return self._fail(failure, opened, usage)

    def _refuse(self, message: _Message) -> None:
        """Raises: PatchbayError: a body that is no answer, or one that was not asked for."""
        if message.error is not None or message.type == "error":
            raise self._failure(message.error, message.request_id)
        if message.content is None or message.type not in (None, "message"):
            raise malformed("the provider sent an answer that is no message")
        if self._streaming:
            raise not_streamed()

    def _fail(self, failure: PatchbayError, opened: list[Event], usage: list[Event]) -> list[Event]:
        """What was counted of a message that fails; the failure itself when nothing was."""
        if not usage:
            raise failure
        return self._held.keep(failure, [*opened, *usage])

    def _told_at_once(self, message: _Message) -> list[Event]:
        events: list[Event] = []
        for index, block in enumerate(message.content or ()):
            events += self._begin_block(index, block)
            events += self._end_block(index)
        self._note_end(message.stop_reason, message.stop_details)
        return events

    def _failure(self, error: Any, request_id: Any) -> PatchbayError:
        return failure(error, http_status=ACCEPTED, request_id=request_id, provider=self._provider)

    # --- events of a stream ---

    def _message_start(self, head: _Message) -> list[Event]:
        opened, usage = self._open(head.id, head.model), self._usage_update(head.usage)
        try:
            return [*opened, *self._told_at_once(head), *usage]
        except PatchbayError as failure:
            return self._fail(failure, opened, usage)

    def _message_delta(self, event: _MessageDelta) -> list[Event]:
        if event.delta is not None:
            self._note_end(event.delta.stop_reason, event.delta.stop_details)
        return self._open() + self._usage_update(event.usage)

    def _message_stop(self) -> list[Event]:
        return self._end()

    def _usage_update(self, usage: Any) -> list[Event]:
        known = self._tokens.usage() if self._tokens.note(usage) else None
        return [UsageUpdated(known)] if known is not None else []

    def _open(self, upstream_id: Any = None, model: Any = None) -> list[Event]:
        if self._opened:
            return []
        self._opened = True
        return [Opened(upstream_id=text_or_empty(upstream_id), model=text_or_empty(model))]

    # --- blocks ---

    def _key(self, index: Any) -> Hashable:
        """The block that an event speaks of: the one with its index, or the newest where the index is unusable."""
        return index if isinstance(index, int) else self._newest

    def _begin_block(self, index: Any, members: dict[str, msgspec.Raw]) -> list[Event]:
        self._begun += 1
        if self._begun > PARTS_MAX:
            raise malformed("the provider sent more blocks than an answer can have")
        # Blocks follow each other: one that cannot be told apart by its index ends where the next begins.
        events = self._end_block(self._key(index))
        key = index if isinstance(index, int) else ("without index", self._begun)
        self._newest = key
        match _member_text(members, "type"):
            case "text":
                self._blocks[key] = _Block("text", {})
                return events + self._parts.text(key, _member_text(members, "text"))
            case "thinking":
                block = self._hold("thinking", key, members)
                block.signature = _member_text(members, "signature")
                return events + self._add_thinking(key, block, _member_text(members, "thinking"))
            case "tool_use":
                self._hold("tool_use", key, members)
                name = _member_text(members, "name")
                return events + self._parts.tool_call(key, id=_member_text(members, "id"), name=name)
            case kind if _is_kept(kind):
                self._hold(kind, key, members)
                return events + self._parts.reasoning(key, "")
            case kind:
                self._blocks[key] = _Block(kind, {})
                return events

    def _hold(self, kind: str, key: Hashable, members: dict[str, msgspec.Raw]) -> _Block:
        self._parts.count_chars(sum(map(len, members.values())))
        self._blocks[key] = block = _Block(kind, members)
        return block

    def _block_delta(self, event: _BlockDelta) -> list[Event]:
        key = self._key(event.index)
        block = self._blocks.get(key)
        if block is None:
            raise malformed("the provider sent a piece of a block that is not open")
        piece = event.delta
        match block.kind, piece.type:
            case "text", "text_delta":
                return self._parts.text(key, text_or_empty(piece.text))
            case "thinking", "thinking_delta":
                return self._add_thinking(key, block, text_or_empty(piece.thinking))
            case "thinking", "signature_delta":
                block.signature = text_or_empty(piece.signature)
            case "tool_use", "input_json_delta":
                return self._parts.arguments(key, text_or_empty(piece.partial_json))
            case "compaction", "compaction_delta":
                block.add(fragment := text_or_empty(piece.content))
                if encrypted := text_or_empty(piece.encrypted_content):
                    block.members["encrypted_content"] = _embedded(encrypted)
                self._parts.count_chars(len(fragment) + len(encrypted))
            case kind, "input_json_delta" if kind != "thinking" and _is_kept(kind):
                block.add(fragment := text_or_empty(piece.partial_json))
                self._parts.count_chars(len(fragment))
        return []

    def _add_thinking(self, key: Hashable, block: _Block, text: str) -> list[Event]:
        block.add(text)
        return self._parts.reasoning(key, text)

    def _end_block(self, key: Hashable) -> list[Event]:
        block = self._blocks.pop(key, None)
        if block is None:
            return []
        events: list[Event] = []
        match block.kind:
            case "thinking":
                block.members["thinking"] = _embedded("".join(block.pieces))
                block.members["signature"] = _embedded(block.signature)
                self._parts.reasoning_state(key, json_body.encode(block.members))
            case "tool_use":
                events = self._whole_input(key, block)
            case "compaction":
                if block.pieces:
                    block.members["content"] = _embedded("".join(block.pieces))
                self._parts.reasoning_state(key, json_body.encode(block.members))
            case kind if _is_kept(kind):
                self._keep(key, block)
        return events + self._parts.complete(key)

    def _whole_input(self, key: Hashable, block: _Block) -> list[Event]:
        """The input of a tool call that had no deltas: a whole answer has it in the block; a stream has `{}` there."""
        if self._parts.arguments_so_far(key) or "input" not in block.members:
            return []
        # Decoded once to prove that the bytes are UTF-8; the text itself stays as the model wrote it.
        value = decoded(_anything, block.members["input"])
        # Relays put what they have, the text of the arguments or an empty one, in the place of the object.
        text = value if isinstance(value, str) else bytes(block.members["input"]).decode()
        return self._parts.arguments(key, text) if text != "{}" else []

    def _keep(self, key: Hashable, block: _Block) -> None:
        text = "".join(block.pieces).encode()
        if text:
            try:
                json_body.decode(text)
            except ValueError:
                # Cut off by the token limit: such a block cannot be sent back.
                return
            block.members["input"] = msgspec.Raw(text)
        self._parts.reasoning_state(key, json_body.encode(block.members))

    # --- the end ---

    def _note_end(self, stop_reason: Any, stop_details: Any) -> None:
        self._stop_reason = text_or_empty(stop_reason) or self._stop_reason
        if isinstance(stop_details, dict):
            told = (text_or_empty(stop_details.get(name)) for name in ("explanation", "category"))
            self._refusal = next(filter(None, told), "")

    def _end(self) -> list[Event]:
        if not self._parts.began and not self._stop_reason:
            # A marker that ends nothing is no answer.
            raise unfinished(opened=False)
        events: list[Event] = []
        for key in tuple(self._blocks):
            events += self._end_block(key)
        if self._stop_reason == "refusal" and self._refusal:
            self._parts.refusal("refusal", self._refusal)
            events += self._parts.complete("refusal")
        self._finished = True
        finished = Finished(
            finish_reason=self._finish_reason(),
            provider_finish_reason=self._stop_reason[:RAW_REASON_CHARS_MAX],
            usage=self._tokens.usage(),
            notices=self._parts.notices,
        )
        return [*events, finished]

    def _finish_reason(self) -> FinishReason:
        # Compatible servers report a natural end, or nothing, where the model waits for tools.
        if self._parts.tool_calls and self._stop_reason in ("", "end_turn"):
            return FinishReason.TOOL_CALLS
        return _FINISH_REASONS.get(self._stop_reason, FinishReason.OTHER)


def _kind_of(data: bytes) -> str:
    # Not the API's own, but relays add both.
    if data.strip() in (b"", b"[DONE]"):
        return ""
    named = decoded(_kind, data)
    return text_or_empty(named.type) or ("error" if named.error is not None else "")


# --- errors -----------------------------------------------------------------------------------------------------------

_BY_CODE: Final[Mapping[str, Reason]] = MappingProxyType(
    {
        "contract_spend_limit_reached": Reason.UPSTREAM_BILLING_EXHAUSTED,
        "enforced_spend_limit_reached": Reason.UPSTREAM_BILLING_EXHAUSTED,
        "linked_organization_billing_unavailable": Reason.UPSTREAM_BILLING_EXHAUSTED,
        "linked_organization_spend_limit_reached": Reason.UPSTREAM_BILLING_EXHAUSTED,
        "ramp_limit_exceeded": Reason.UPSTREAM_RATE_LIMITED,
        # The provider has switched the account off: no call with this credential will succeed.
        "organization_on_hold": Reason.UPSTREAM_CREDENTIAL_REJECTED,
        "cmek_key_disabled": Reason.CONNECTOR_MISCONFIGURED,
        "cmek_key_network_blocked": Reason.CONNECTOR_MISCONFIGURED,
        "cmek_key_unreachable": Reason.UPSTREAM_UNAVAILABLE,
        "cmek_context_unavailable": Reason.UPSTREAM_UNAVAILABLE,
        "compaction_unavailable": Reason.UPSTREAM_UNAVAILABLE,
        "request_body_timeout": Reason.UPSTREAM_REJECTED_REQUEST,
    }
)
"""`error.details.error_code`: the finest statement, so it is looked at first."""

_BY_TYPE: Final[Mapping[str, Reason]] = MappingProxyType(
    {
        "authentication_error": Reason.UPSTREAM_CREDENTIAL_REJECTED,
        "permission_error": Reason.UPSTREAM_CREDENTIAL_REJECTED,
        "billing_error": Reason.UPSTREAM_BILLING_EXHAUSTED,
        "rate_limit_error": Reason.UPSTREAM_RATE_LIMITED,
        "overloaded_error": Reason.UPSTREAM_UNAVAILABLE,
        "api_error": Reason.UPSTREAM_UNAVAILABLE,
        "timeout_error": Reason.UPSTREAM_UNAVAILABLE,
        "conflict_error": Reason.UPSTREAM_UNAVAILABLE,
        "not_found_error": Reason.MODEL_NOT_FOUND,
        "request_too_large": Reason.UPSTREAM_REJECTED_REQUEST,
    }
)

_UNSPECIFIC: Final = "invalid_request_error"
"""Says no more than that the request failed: an empty account and a long prompt come as this type too."""


_BY_WORDS: Final[tuple[tuple[str, Reason], ...]] = (
    ("you have reached your specified api usage limits", Reason.UPSTREAM_BILLING_EXHAUSTED),
    ("credit balance is too low", Reason.UPSTREAM_BILLING_EXHAUSTED),
    ("prompt is too long", Reason.CONTEXT_LENGTH_EXCEEDED),
    ("exceed context limit", Reason.CONTEXT_LENGTH_EXCEEDED),
    ("blocked by content filtering policy", Reason.CONTENT_POLICY_VIOLATION),
)
"""What only the text of an `invalid_request_error` tells apart."""

_CODES: Final = frozenset(_BY_CODE) | frozenset(_BY_TYPE) | {_UNSPECIFIC}
"""What may be repeated to callers as the provider's code."""


def failure(
    error: Any,
    *,
    http_status: int,
    request_id: object = "",
    retry_after_s: float | None = None,
    provider: str = PROVIDER,
) -> PatchbayError:
    """What an error object means: its code first, then its type, then the status; words only where no code exists.

    Args:
        error: the untrusted `error` member of an envelope, whatever it is.
        http_status: of the answer; below 300 for an error inside it.
        provider: the connector type that it is reported of.
    """
    members = error if isinstance(error, dict) else {}
    details = members.get("details")
    code = text_or_empty(details.get("error_code")) if isinstance(details, dict) else ""
    kind = text_or_empty(members.get("type"))
    return upstream_error(
        _reason(code, kind, text_or_empty(members.get("message")), http_status),
        provider=provider,
        http_status=http_status,
        provider_code=next((name for name in (code, kind) if name in _CODES), ""),
        request_id=request_id,
        retry_after_s=retry_after_s,
    )


def _reason(code: str, kind: str, message: str, http_status: int) -> Reason:
    if code in _BY_CODE:
        return _BY_CODE[code]
    if kind in _BY_TYPE:
        return _BY_TYPE[kind]
    if kind == _UNSPECIFIC and (reason := _reason_of_words(message)):
        return reason
    if http_status in (404, 405) and not kind:
        # Not the API's own answer: there is no such path below the connector's address.
        return Reason.CONNECTOR_MISCONFIGURED
    if http_status >= 300:
        return reason_of_status(http_status)
    return Reason.UPSTREAM_REJECTED_REQUEST if kind == _UNSPECIFIC else Reason.UPSTREAM_UNAVAILABLE


def _reason_of_words(message: str) -> Reason | None:
    words = message.lower()
    return next((reason for phrase, reason in _BY_WORDS if phrase in words), None)
