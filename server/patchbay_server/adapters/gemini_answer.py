"""What the Gemini API answers: a stream of chunks, a whole answer or an error, folded into canonical events.

A whole answer is one chunk, so that it cannot drift apart from a stream; only the first candidate is read. The end is
given at the end of the body, because counts may follow the chunk that ends the answer.

What has to come back in the next turn and has no other place in the contract is kept as `provider_state`: the JSON of
those members of a wire part that nothing else holds, byte for byte.

    tool call           what stood beside the call: `{"thoughtSignature": "..."}`
    reasoning           what stood beside the thought's text: `{"thought": true, "thoughtSignature": "..."}`
    reasoning, no text  the signature of the text or media before it: `{"thoughtSignature": "..."}`;
                        or a part of its own: `{"text": "", "thoughtSignature": "..."}`, `{"executableCode": {...}}`;
                        or, last of all, how to go on with an unfinished answer: `{"continuationToken": "..."}`

Source: google-genai 3.4.0, `types.py` (`GenerateContentResponse`, `Part`, `FinishReason`) and `_api_client.py`;
ai.google.dev/gemini-api/docs, "Thought signatures" and "Gemini 4 Argon" (read 2026-11-21).
"""

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import msgspec

from patchbay_server.adapters import json_body
from patchbay_server.adapters.counts import count
from patchbay_server.adapters.failures import upstream_error
from patchbay_server.adapters.faults import (
    ACCEPTED,
    RAW_REASON_CHARS_MAX,
    Held,
    decoded,
    malformed,
    not_streamed,
    unfinished,
)
from patchbay_server.adapters.folding import Kind, Parts
from patchbay_server.adapters.gemini_errors import PROVIDER, failure
from patchbay_server.adapters.json_body import text_or_empty
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.types import Call, Event, Finished, FinishReason, MediaPart, Opened, UsageUpdated
from patchbay_server.usage import Usage
from patchbay_server.wire.http import Frame

SIGNATURE: Final = "thoughtSignature"
THOUGHT: Final = "thought"
CONTINUATION: Final = "continuationToken"

_DONE: Final = b"[DONE]"
_NULL: Final = b"null"

_FINISH_REASONS: Final[Mapping[str, FinishReason]] = MappingProxyType(
    {
        "STOP": FinishReason.STOP,
        "MAX_TOKENS": FinishReason.MAX_OUTPUT_TOKENS,
        "CONTINUATION": FinishReason.PAUSE,
        **dict.fromkeys(
            (
                "SAFETY",
                "RECITATION",
                "LANGUAGE",
                "BLOCKLIST",
                "PROHIBITED_CONTENT",
                "SPII",
                "MODEL_ARMOR",
                "IMAGE_SAFETY",
                "IMAGE_PROHIBITED_CONTENT",
                "IMAGE_RECITATION",
                "PUP_LIMITED_DISABLED",
                "ESCALATION",
            ),
            FinishReason.CONTENT_FILTER,
        ),
    }
)

_FAILED: Final[Mapping[str, Reason]] = MappingProxyType(
    {
        "MALFORMED_FUNCTION_CALL": Reason.UPSTREAM_MALFORMED_RESPONSE,
        "UNEXPECTED_TOOL_CALL": Reason.UPSTREAM_MALFORMED_RESPONSE,
        "TOO_MANY_TOOL_CALLS": Reason.UPSTREAM_MALFORMED_RESPONSE,
        "MALFORMED_RESPONSE": Reason.UPSTREAM_MALFORMED_RESPONSE,
        "MISSING_THOUGHT_SIGNATURE": Reason.UPSTREAM_REJECTED_REQUEST,
    }
)
"""Finish reasons of an answer that the model or the server gave up: what there is of it cannot be used."""

# --- the wire: every leaf is `Any`, so that a null or a wrong type never costs a usable stream ------------------------

_Part = dict[str, msgspec.Raw]


class _Content(msgspec.Struct, gc=False):
    parts: list[_Part] | None = None


class _Candidate(msgspec.Struct, gc=False, rename="camel"):
    content: _Content | None = None
    finish_reason: Any = None
    index: Any = None
    continuation_token: msgspec.Raw = msgspec.Raw(_NULL)


class _Chunk(msgspec.Struct, gc=False, rename="camel"):
    candidates: list[_Candidate] | None = None
    prompt_feedback: Any = None
    usage_metadata: Any = None
    model_version: Any = None
    response_id: Any = None
    error: Any = None

    @property
    def says_something(self) -> bool:
        return bool(self.candidates or self.prompt_feedback or self.usage_metadata)


class _FunctionCall(msgspec.Struct, gc=False, rename="camel"):
    id: Any = None
    name: Any = None
    args: msgspec.Raw = msgspec.Raw(_NULL)
    partial_args: Any = None
    will_continue: Any = None


class _Blob(msgspec.Struct, gc=False, rename="camel"):
    data: str
    mime_type: Any = None


_chunk: Final = msgspec.json.Decoder(_Chunk)
_chunks: Final = msgspec.json.Decoder(list[_Chunk])
_function_call: Final = msgspec.json.Decoder(_FunctionCall)
_blob: Final = msgspec.json.Decoder(_Blob)
_anything: Final = msgspec.json.Decoder()


def _whole_chunks(data: bytes) -> list[_Chunk]:
    """The chunks of a whole body: one, or a list, which is how the API streams to those who do not ask for events."""
    try:
        # Whole bodies are indented for people, and what is kept of them as it came is for models.
        data = json_body.compact(data)
    except ValueError as error:
        raise malformed("the provider sent an answer that is not JSON") from error
    return decoded(_chunks, data) if data.startswith(b"[") else [decoded(_chunk, data)]


def _member(part: _Part, name: str) -> Any:
    return decoded(_anything, part[name]) if name in part else None


def _is_given(part: _Part, name: str) -> bool:
    return name in part and bytes(part[name]) != _NULL


def _beside(part: _Part, *names: str) -> bytes:
    """The JSON of the members of `part` but `names`; empty when there are none."""
    rest = {name: value for name, value in part.items() if name not in names and _is_given(part, name)}
    return json_body.encode(rest) if rest else b""


def _opening(chunk: _Chunk) -> Opened:
    return Opened(upstream_id=text_or_empty(chunk.response_id), model=text_or_empty(chunk.model_version))


# --- token counts -----------------------------------------------------------------------------------------------------


class _Tokens:
    """Token counts of one answer: running totals, of which each report replaces what it names; zeros are left out."""

    __slots__ = ("_counts", "_noted")

    _NAMES: Final = (
        "promptTokenCount",
        "toolUsePromptTokenCount",
        "cachedContentTokenCount",
        "candidatesTokenCount",
        "thoughtsTokenCount",
        "totalTokenCount",
    )

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._noted: Usage | None = None

    def note(self, usage: Any) -> Usage | None:
        """The totals after a usage object, or None when it tells nothing new."""
        if not isinstance(usage, dict):
            return None
        self._counts |= {name: number for name in self._NAMES if (number := count(usage.get(name))) is not None}
        before, self._noted = self._noted, self.usage()
        return self._noted if self._noted != before else None

    def usage(self) -> Usage | None:
        """The normal form, or None when nothing was reported. `candidatesTokenCount` leaves the thoughts out."""
        if not self._counts:
            return None
        prompt, tools, cached, candidates, thoughts, total = map(self._counts.get, self._NAMES)
        read = (prompt or 0) + (tools or 0)
        written = (candidates or 0) + (thoughts or 0)
        if total is not None and candidates is None:
            written = max(written, total - read)
        elif total == read + (candidates or 0):
            # A proxy has counted the thoughts among the candidates: the total tells.
            written = candidates or 0
        return Usage(
            input_tokens=read,
            output_tokens=written,
            total_tokens=max(total or 0, read + written),
            cached_input_tokens=cached,
            reasoning_tokens=thoughts,
        )


# --- the reader -------------------------------------------------------------------------------------------------------


class Reader:
    """Folds one answer of `generateContent` or `streamGenerateContent`.

    A stream's end is proven by a finish reason, or by the reason why the prompt was blocked, and the end of the body.
    """

    def __init__(self, call: Call) -> None:
        self._streaming = call.streaming
        self._parts = Parts(call.id)
        self._growing: tuple[Kind, int] | None = None
        self._begun = 0
        self._call_ids: set[str] = set()
        self._tokens = _Tokens()
        self._held = Held()
        self._opened = False
        self._whole = False
        self._answered = False
        self._finished = False
        self._finish_reason = ""
        self._block_reason = ""
        self._continuation = b""

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
        # Not the API's own, but relays add it.
        if frame.data.strip() in (b"", _DONE):
            return []
        chunks = [decoded(_chunk, frame.data)]
        return self._counted(chunks, self._feed_chunks)

    def finish(self) -> list[Event]:
        if self._finished:
            return []
        self._held.check()
        if not self._opened or (self._whole and not self._answered and not self._block_reason):
            raise unfinished(opened=False)
        if self._finish_reason in _FAILED:
            raise upstream_error(
                _FAILED[self._finish_reason],
                provider=PROVIDER,
                http_status=ACCEPTED,
                provider_code=self._finish_reason,
            )
        # Of a whole answer the JSON itself proves the end.
        if not (self._finish_reason or self._block_reason or self._whole):
            raise unfinished(opened=True)
        return self._end()

    # --- whole bodies ---

    def _feed_whole(self, data: bytes) -> list[Event]:
        if not data.strip():
            return []
        return self._counted(_whole_chunks(data), self._feed_all)

    def _feed_all(self, chunks: Sequence[_Chunk]) -> list[Event]:
        for chunk in chunks:
            if chunk.error is not None:
                raise failure(chunk.error, http_status=ACCEPTED)
        if self._opened or not any(chunk.says_something for chunk in chunks):
            raise malformed("the provider sent an answer that is none")
        if self._streaming:
            raise not_streamed()
        self._whole = True
        return self._feed_chunks(chunks)

    # --- chunks ---

    def _counted(self, chunks: Sequence[_Chunk], feed: Callable[[Sequence[_Chunk]], list[Event]]) -> list[Event]:
        """What `feed` makes of chunks; of chunks that fail, what they counted, if they did."""
        opened, before = self._opened, self._tokens.usage()
        try:
            return feed(chunks)
        except PatchbayError as failure:
            for chunk in chunks:
                self._tokens.note(chunk.usage_metadata)
            usage = self._tokens.usage()
            if usage is None or usage == before:
                raise
            told: list[Event] = [] if opened else [_opening(chunks[0])]
            return self._held.keep(failure, [*told, UsageUpdated(usage)])

    def _feed_chunks(self, chunks: Sequence[_Chunk]) -> list[Event]:
        return [event for chunk in chunks for event in self._feed_chunk(chunk)]

    def _feed_chunk(self, chunk: _Chunk) -> list[Event]:
        if chunk.error is not None:
            raise failure(chunk.error, http_status=ACCEPTED)
        events: list[Event] = []
        if not self._opened and chunk.says_something:
            self._opened = True
            events.append(_opening(chunk))
        for candidate in chunk.candidates or ():
            if not count(candidate.index):
                self._answered = True
                events += self._candidate(candidate)
        if isinstance(chunk.prompt_feedback, dict):
            self._block_reason = text_or_empty(chunk.prompt_feedback.get("blockReason")) or self._block_reason
        usage = self._tokens.note(chunk.usage_metadata)
        return [*events, UsageUpdated(usage)] if usage is not None else events

    def _candidate(self, candidate: _Candidate) -> list[Event]:
        events: list[Event] = []
        if candidate.content is not None:
            for part in candidate.content.parts or ():
                events += self._part(part)
        self._finish_reason = text_or_empty(candidate.finish_reason) or self._finish_reason
        if bytes(candidate.continuation_token) != _NULL:
            self._continuation = json_body.encode({CONTINUATION: candidate.continuation_token})
        return events

    # --- parts ---

    def _part(self, part: _Part) -> list[Event]:
        if _is_given(part, "functionCall"):
            return self._function_call(part)
        if _member(part, THOUGHT) is True:
            return self._thought(part)
        if _is_given(part, "text"):
            return self._text(part)
        if _is_given(part, "inlineData"):
            return self._media(part)
        return self._keep(_beside(part))

    def _text(self, part: _Part) -> list[Event]:
        text = text_or_empty(_member(part, "text"))
        if not text:
            return self._keep(_beside(part)) if _is_given(part, SIGNATURE) else []
        events = self._grow("text")
        events += self._parts.text(self._growing, text)
        return events + self._keep_signature(part)

    def _thought(self, part: _Part) -> list[Event]:
        text = text_or_empty(_member(part, "text"))
        if not text:
            return self._keep(_beside(part)) if _beside(part, "text", THOUGHT) else []
        events = self._grow("reasoning")
        events += self._parts.reasoning(self._growing, text)
        self._parts.reasoning_state(self._growing, _beside(part, "text"))
        # What is signed is whole: a later thought is another part.
        return events + self._close() if _is_given(part, SIGNATURE) else events

    def _function_call(self, part: _Part) -> list[Event]:
        call = decoded(_function_call, part["functionCall"])
        if call.partial_args or call.will_continue is True:
            raise malformed("the provider sent a tool call in pieces, which was not asked for")
        call_id = text_or_empty(call.id)
        if call_id in self._call_ids:
            call_id = ""
        self._call_ids.add(call_id)
        events = self._grow("tool_call")
        events += self._parts.tool_call(self._growing, id=call_id, name=text_or_empty(call.name))
        self._parts.tool_state(self._growing, _beside(part, "functionCall"))
        # Decoded once to prove that the bytes are UTF-8; the text itself stays as it came.
        decoded(_anything, call.args)
        events += self._parts.arguments(self._growing, bytes(call.args).decode())
        return events + self._close()

    def _media(self, part: _Part) -> list[Event]:
        blob = decoded(_blob, part["inlineData"])
        try:
            data = base64.b64decode(blob.data, validate=True)
        except (binascii.Error, ValueError) as error:
            raise malformed("the provider sent media that is not base64") from error
        media = MediaPart(mime_type=text_or_empty(blob.mime_type), data=data)
        return self._close() + self._parts.media(media) + self._keep_signature(part)

    def _keep_signature(self, part: _Part) -> list[Event]:
        """Keep the signature of a text or of media, if it has one."""
        return self._keep(json_body.encode({SIGNATURE: part[SIGNATURE]})) if _is_given(part, SIGNATURE) else []

    def _keep(self, state: bytes) -> list[Event]:
        """Keep what has to come back in the next turn and has no other place in the contract."""
        if not state:
            return []
        events = self._grow("reasoning", anew=True)
        self._parts.reasoning_state(self._growing, state)
        return events + self._close()

    def _grow(self, kind: Kind, *, anew: bool = False) -> list[Event]:
        """Make the part that grows one of `kind`; pieces of one kind in a row are one part, but for tool calls."""
        if self._growing is not None and self._growing[0] == kind and not anew:
            return []
        events = self._close()
        self._begun += 1
        self._growing = (kind, self._begun)
        return events

    def _close(self) -> list[Event]:
        growing, self._growing = self._growing, None
        return self._parts.complete(growing) if growing is not None else []

    # --- the end ---

    def _end(self) -> list[Event]:
        events = self._close()
        if self._finish_reason == "CONTINUATION":
            events += self._keep(self._continuation)
        self._finished = True
        raw = self._finish_reason or self._block_reason
        finished = Finished(
            finish_reason=self._canonical(),
            provider_finish_reason=raw[:RAW_REASON_CHARS_MAX],
            usage=self._tokens.usage(),
            notices=self._parts.notices,
        )
        return [*events, finished]

    def _canonical(self) -> FinishReason:
        if self._block_reason and not self._finish_reason:
            return FinishReason.CONTENT_FILTER
        if self._parts.tool_calls and self._finish_reason in ("", "STOP"):
            return FinishReason.TOOL_CALLS
        return _FINISH_REASONS.get(self._finish_reason, FinishReason.OTHER)
