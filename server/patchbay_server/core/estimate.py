"""Tokens where no provider counted them: a rough guess that is always marked as one, and a bound that is none.

The guess stands in for counts that never came. The bound is for promises made before a call: it errs on the high side.
"""

from typing import Final

from patchbay_server.types import (
    FunctionTool,
    JsonSchemaFormat,
    MediaPart,
    Part,
    Prompt,
    ProviderTool,
    ReasoningPart,
    RefusalPart,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)
from patchbay_server.usage import Usage, UsageSource

UNITS_PER_TOKEN: Final = 4
"""Of `weight`: four Latin letters are about a token, a Chinese character is somewhat more than one."""
MEDIA_TOKENS: Final = 1_000
"""Of one image, sound or file."""
MEDIA_TOKENS_BOUND: Final = 8_192
"""The most that one image is taken to cost, and the least that a sound or file is."""
MEDIA_BYTES_PER_TOKEN: Final = 32
"""Of sounds and files; compressed speech has several hundred bytes a token, plain text in a file about four."""
FRAME_TOKENS_BOUND: Final = 16
"""What a provider may add around a message, a part or a tool."""


def usage(given: int, weight_written: int) -> Usage:
    """A guess at what a call used that was given so many tokens and wrote text of that `weight`."""
    written = _tokens_of(weight_written)
    return Usage(input_tokens=given, output_tokens=written, total_tokens=given + written, source=UsageSource.ESTIMATED)


def input_tokens(prompt: Prompt) -> int:
    """A guess at the tokens of a prompt's messages."""
    return sum(_tokens(part) for message in prompt.messages for part in message.parts)


def weight(text: str) -> int:
    """How much of a text there is for a tokenizer, in quarters of a token: 1 for a Latin letter, 3 for a Greek or
    Cyrillic one, 5 for a Chinese character.
    """
    return len(text) if text.isascii() else 2 * _bytes(text) - len(text)


def input_bound(prompt: Prompt) -> int:
    """More input tokens than a provider will count, but for media: no tokenizer makes more of a text than its bytes."""
    messages = sum(
        FRAME_TOKENS_BOUND + _bytes(message.author_name) + sum(_bound(part) for part in message.parts)
        for message in prompt.messages
    )
    tools = sum(_tool_bound(tool) for tool in prompt.tools)
    schema = _bytes(prompt.response_format.schema_json) if isinstance(prompt.response_format, JsonSchemaFormat) else 0
    return messages + tools + schema + _bytes(prompt.provider_options_json)


def output_limit(prompt: Prompt) -> int | None:
    """The most tokens that an answer can have, reasoning included; None where nothing that we know of limits it.

    What a caller passes on to the provider unread may say otherwise than `max_output_tokens`.
    """
    return None if prompt.provider_options_json else prompt.config.max_output_tokens


def tokens_needed(prompt: Prompt) -> int:
    """What must be left of a hard cap for an attempt: all that it can use, or, without a limit, the first token."""
    return input_bound(prompt) + (output_limit(prompt) or 1)


def _tokens(part: Part) -> int:
    match part:
        case TextPart() | ReasoningPart() | RefusalPart():
            return _tokens_of(weight(part.text))
        case ToolCallPart():
            return _tokens_of(weight(part.name) + weight(part.arguments_json))
        case ToolResultPart():
            return sum(_tokens(inner) for inner in part.parts)
        case MediaPart():
            return MEDIA_TOKENS


def _bound(part: Part) -> int:
    match part:
        case TextPart() | RefusalPart():
            return FRAME_TOKENS_BOUND + _bytes(part.text)
        case ReasoningPart():
            return FRAME_TOKENS_BOUND + _bytes(part.text) + len(part.provider_state)
        case ToolCallPart():
            return FRAME_TOKENS_BOUND + _bytes(part.name) + _bytes(part.arguments_json) + len(part.provider_state)
        case ToolResultPart():
            return FRAME_TOKENS_BOUND + sum(_bound(inner) for inner in part.parts)
        case MediaPart():
            if part.mime_type.startswith("image/"):
                return MEDIA_TOKENS_BOUND
            return max(MEDIA_TOKENS_BOUND, len(part.data or b"") // MEDIA_BYTES_PER_TOKEN)


def _tool_bound(tool: FunctionTool | ProviderTool) -> int:
    if isinstance(tool, ProviderTool):
        return FRAME_TOKENS_BOUND + _bytes(tool.json)
    text = _bytes(tool.name) + _bytes(tool.description) + _bytes(tool.parameters_json_schema)
    return FRAME_TOKENS_BOUND + text


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _tokens_of(units: int) -> int:
    return -(-units // UNITS_PER_TOKEN)
