"""Tokens where no provider counted them: a rough guess, and always marked as one."""

from typing import Final

from patchbay_server.types import (
    MediaPart,
    Part,
    Prompt,
    ReasoningPart,
    RefusalPart,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)
from patchbay_server.usage import Usage, UsageSource

CHARS_PER_TOKEN: Final = 4
MEDIA_TOKENS: Final = 1_000
"""Of one image, sound or file."""


def usage(prompt: Prompt, chars_written: int) -> Usage:
    """What a call used that sent `prompt` and got `chars_written` characters of answer."""
    given = sum(_tokens(part) for message in prompt.messages for part in message.parts)
    written = _of_chars(chars_written)
    return Usage(input_tokens=given, output_tokens=written, total_tokens=given + written, source=UsageSource.ESTIMATED)


def _tokens(part: Part) -> int:
    match part:
        case TextPart() | ReasoningPart() | RefusalPart():
            return _of_chars(len(part.text))
        case ToolCallPart():
            return _of_chars(len(part.name) + len(part.arguments_json))
        case ToolResultPart():
            return sum(_tokens(inner) for inner in part.parts)
        case MediaPart():
            return MEDIA_TOKENS


def _of_chars(count: int) -> int:
    return -(-count // CHARS_PER_TOKEN)
