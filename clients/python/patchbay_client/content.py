"""What is said: messages and their parts, the same in prompts and answers.

A prompt is a text, or a list of turns, oldest first:

    "What is the capital of France?"

    [
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "content": ["What is in this picture?", Media.from_file("cat.png")]},
    ]

    [user("What is 2 + 2?"), answer, ToolResult(answer.tool_calls[0].id, "4")]

An answer is a turn as it is, so that reasoning and signatures go back to the provider unchanged.
"""

import json
import mimetypes
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar, cast, runtime_checkable

from patchbay.v1 import content_pb2
from patchbay_client.reading import enum_number

Made = TypeVar("Made")


@dataclass(frozen=True)
class Text:
    """Plain text. `cache_breakpoint`, in requests: the prompt up to here is worth caching."""

    text: str
    cache_breakpoint: bool = False


@dataclass(frozen=True, kw_only=True)
class Media:
    """An image, a recording or a document.

    It has exactly one of `data` (then with `mime_type`), a `uri` that the provider fetches, and the id of a file at the
    provider.
    """

    mime_type: str = ""
    data: bytes = b""
    uri: str = ""
    provider_file_id: str = ""
    file_name: str = ""
    cache_breakpoint: bool = False

    @classmethod
    def from_file(cls, path: str | Path, mime_type: str = "") -> "Media":
        """The content of a file; its type is guessed from its name unless given.

        Raises:
            ValueError: the type cannot be guessed, or the file is empty.
            OSError: the file cannot be read.
        """
        path = Path(path)
        guessed = mime_type or mimetypes.guess_type(path.name)[0]
        if guessed is None:
            raise ValueError(f"cannot tell the type of {path.name}; give mime_type")
        data = path.read_bytes()
        if not data:
            raise ValueError(f"{path.name} is empty")
        return cls(data=data, mime_type=guessed, file_name=path.name)

    def to_media(self) -> content_pb2.Media:
        """The media for a request.

        Raises:
            ValueError: not exactly one source, or data without its type.
        """
        if sum(map(bool, (self.data, self.uri, self.provider_file_id))) != 1:
            raise ValueError("media needs exactly one of data, uri and provider_file_id")
        if self.data and not self.mime_type:
            raise ValueError('media with data needs a mime_type such as "image/png"')
        media = content_pb2.Media(mime_type=self.mime_type, file_name=self.file_name)
        if self.data:
            media.data = self.data
        elif self.uri:
            media.uri = self.uri
        else:
            media.provider_file_id = self.provider_file_id
        return media


@dataclass(frozen=True, kw_only=True)
class Reasoning:
    """What the model thought; `text` is empty where the provider hides it. To be sent back unchanged."""

    text: str = ""
    provider_state: bytes = b""
    cache_breakpoint: bool = False


@dataclass(frozen=True, kw_only=True)
class ToolCall:
    """The model asks for a tool. Answer with `ToolResult(call.id, ...)`."""

    id: str
    name: str
    arguments_json: str = "{}"
    provider_state: bytes = b""
    cache_breakpoint: bool = False

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments, decoded.

        Raises:
            ValueError: the model left them unparsable, or its token limit cut them.
        """
        arguments = json.loads(self.arguments_json or "{}")
        if not isinstance(arguments, dict):
            raise ValueError(f"the arguments of {self.name} are not a JSON object")  # noqa: TRY004 - the text is at fault
        return arguments

    def to_tool_call(self) -> content_pb2.ToolCall:
        """The tool call for a request."""
        return content_pb2.ToolCall(
            id=self.id, name=self.name, arguments_json=self.arguments_json, provider_state=self.provider_state
        )


@dataclass(frozen=True)
class ToolResult:
    """The outcome of a tool call: a text, or text and media. `failed`: the content describes the failure."""

    tool_call_id: str
    content: "Content" = ""
    failed: bool = False
    cache_breakpoint: bool = False

    def to_message(self) -> content_pb2.ChatMessage:
        """A turn of its own, with this result."""
        return content_pb2.ChatMessage(role=content_pb2.ROLE_TOOL, parts=[_to_part(self)])


@dataclass(frozen=True)
class Refusal:
    """The model declined; `text` is its explanation and may be empty."""

    text: str = ""
    cache_breakpoint: bool = False


Part: TypeAlias = Text | Media | Reasoning | ToolCall | ToolResult | Refusal
"""One piece of a message."""

Content: TypeAlias = str | Part | Mapping[str, Any] | Sequence[str | Part | Mapping[str, Any]]
"""A text, a part, or several in order. As a mapping, a part is its kind and its fields: `{"media": {"uri": "https://..."}}`."""


@runtime_checkable
class Turn(Protocol):
    """Whatever can take its place in a conversation."""

    def to_message(self) -> content_pb2.ChatMessage: ...


@dataclass(frozen=True)
class Message:
    """One turn: who speaks ("system", "user", "assistant" or "tool"), what, and the name where several share a role."""

    role: str
    content: Content
    author_name: str = ""

    def to_message(self) -> content_pb2.ChatMessage:
        """The turn for a request.

        Raises:
            ValueError, TypeError: an unknown role or part.
        """
        role = enum_number(content_pb2.Role.DESCRIPTOR, self.role)
        parts = [_to_part(each) for each in _pieces(self.content)]
        return content_pb2.ChatMessage(role=content_pb2.Role.ValueType(role), parts=parts, author_name=self.author_name)


def system(content: Content) -> Message:
    """Instructions of the application."""
    return Message("system", content)


def user(*content: str | Part) -> Message:
    """What the person or program asks."""
    return Message("user", content)


def assistant(*content: str | Part) -> Message:
    """What the model said, where there is no answer of Patchbay to pass on."""
    return Message("assistant", content)


Prompt: TypeAlias = str | Turn | Sequence[Turn | content_pb2.ChatMessage | Mapping[str, Any]]
"""A text, which is one turn of the user, or turns: messages, answers, tool results, mappings, protobuf messages."""


def to_messages(prompt: Prompt) -> list[content_pb2.ChatMessage]:
    """The conversation for a request.

    Raises:
        ValueError, TypeError: something in it is no turn.
    """
    if isinstance(prompt, str):
        return [user(prompt).to_message()]
    if isinstance(prompt, Turn):
        return [prompt.to_message()]
    return [_to_message(turn) for turn in prompt]


def from_parts(parts: Iterable[content_pb2.ContentPart]) -> tuple[Part, ...]:
    """The parts of an answer; kinds that this client does not know are left out."""
    return tuple(part for part in map(from_part, parts) if part is not None)


def from_part(part: content_pb2.ContentPart) -> Part | None:
    """One part; None for a kind that this client does not know."""
    match part.WhichOneof("part"):
        case "text":
            return Text(part.text)
        case "media":
            return Media(**{each.name: value for each, value in part.media.ListFields()})
        case "reasoning":
            return Reasoning(text=part.reasoning.text, provider_state=part.reasoning.provider_state)
        case "tool_call":
            call = part.tool_call
            return ToolCall(
                id=call.id, name=call.name, arguments_json=call.arguments_json, provider_state=call.provider_state
            )
        case "tool_result":
            result = part.tool_result
            return ToolResult(result.tool_call_id, from_parts(result.parts), failed=result.failed)
        case "refusal":
            return Refusal(part.refusal.text)
        case _:
            return None


def _to_message(turn: Turn | content_pb2.ChatMessage | Mapping[str, Any]) -> content_pb2.ChatMessage:
    if isinstance(turn, content_pb2.ChatMessage):
        return turn
    if isinstance(turn, Mapping):
        return _from_mapping(Message, turn).to_message()
    if isinstance(turn, Turn):
        return turn.to_message()
    raise TypeError(f"a {type(turn).__name__} is no message; use a Message, an answer, a ToolResult or a mapping")


def _pieces(content: Content) -> Sequence[str | Part | Mapping[str, Any]]:
    if isinstance(content, str | Mapping) or not isinstance(content, Sequence):
        return [content]
    return content


def _to_part(piece: str | Part | Mapping[str, Any]) -> content_pb2.ContentPart:
    part = _part(piece)
    made = content_pb2.ContentPart(cache_breakpoint=part.cache_breakpoint)
    match part:
        case Text(text):
            made.text = text
        case Media():
            made.media.CopyFrom(part.to_media())
        case Reasoning():
            made.reasoning.CopyFrom(content_pb2.Reasoning(text=part.text, provider_state=part.provider_state))
        case ToolCall():
            made.tool_call.CopyFrom(part.to_tool_call())
        case ToolResult(tool_call_id, content, failed):
            parts = [_to_part(each) for each in _pieces(content)] if content else []
            made.tool_result.CopyFrom(
                content_pb2.ToolResult(tool_call_id=tool_call_id, parts=parts, failed=failed),
            )
        case Refusal(text):
            made.refusal.text = text
            made.refusal.SetInParent()
    return made


def _part(piece: str | Part | Mapping[str, Any]) -> Part:
    if isinstance(piece, str):
        return Text(piece)
    if isinstance(piece, Mapping):
        return _part_of_mapping(piece)
    if isinstance(piece, Part):
        return piece
    raise TypeError(f"a {type(piece).__name__} is no part of a message; use a text, Media, ToolResult or another part")


_KINDS: Mapping[str, type[Part]] = {
    "media": Media,
    "reasoning": Reasoning,
    "tool_call": ToolCall,
    "tool_result": ToolResult,
}


def _part_of_mapping(piece: Mapping[str, Any]) -> Part:
    if "text" in piece:
        return _from_mapping(Text, piece)
    if "refusal" in piece:
        return Refusal(piece["refusal"])
    for kind, part_class in _KINDS.items():
        if kind in piece:
            rest = {key: value for key, value in piece.items() if key != kind}
            return _from_mapping(part_class, {**piece[kind], **rest})
    raise ValueError(f"a part needs one of text, refusal, {', '.join(_KINDS)}; this one has {sorted(piece)}")


def _from_mapping(made_class: type[Made], mapping: Mapping[str, Any]) -> Made:
    known = [each.name for each in fields(cast("Any", made_class))]
    if unknown := mapping.keys() - set(known):
        raise ValueError(f"{', '.join(sorted(unknown))}: no such key; a {made_class.__name__} has {', '.join(known)}")
    return made_class(**mapping)
