"""Where a part's opaque provider state comes from.

A provider's signature or encrypted reasoning means something to that provider only. On the way to the caller each state
is marked with the connector type that gave it; on the way back the mark is taken off, and what another provider gave is
left out with a notice.
"""

from typing import Final

import msgspec

from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.types import Notice, NoticeCode, Part, Prompt, ReasoningPart, ToolCallPart

_MARK: Final = b"pb1:"


def mark(part: Part, connector_type: str) -> Part:
    """`part` as callers get it: its state, if any, carries the connector type that it belongs to."""
    if isinstance(part, ReasoningPart | ToolCallPart) and part.provider_state:
        state = _MARK + connector_type.encode() + b":" + part.provider_state
        return msgspec.structs.replace(part, provider_state=state)
    return part


def check(prompt: Prompt) -> None:
    """Raises: PatchbayError: INVALID_REQUEST when a state is not one that the gateway gave out."""
    for path, part in _states(prompt):
        if _split(part.provider_state) is None:
            raise PatchbayError(
                Reason.INVALID_REQUEST,
                "send provider_state back byte for byte as it was received, or leave it out",
                field=f"{path}.provider_state",
            )


def for_type(prompt: Prompt, connector_type: str) -> tuple[Prompt, tuple[Notice, ...]]:
    """`prompt` with the bare states of `connector_type`, and a notice for each other state that was left out."""
    notices = tuple(
        Notice(
            code=NoticeCode.PROVIDER_STATE_LEFT_OUT,
            message="this state belongs to another provider than the one that answers",
            field=f"{path}.provider_state",
        )
        for path, part in _states(prompt)
        if _owner(part.provider_state) != connector_type
    )
    if not notices and not any(True for _ in _states(prompt)):
        return prompt, ()
    messages = tuple(
        msgspec.structs.replace(message, parts=tuple(_bare(part, connector_type) for part in message.parts))
        for message in prompt.messages
    )
    return msgspec.structs.replace(prompt, messages=messages), notices


def _states(prompt: Prompt) -> list[tuple[str, ReasoningPart | ToolCallPart]]:
    return [
        (f"messages[{i}].parts[{j}].{'reasoning' if isinstance(part, ReasoningPart) else 'tool_call'}", part)
        for i, message in enumerate(prompt.messages)
        for j, part in enumerate(message.parts)
        if isinstance(part, ReasoningPart | ToolCallPart) and part.provider_state
    ]


def _split(state: bytes) -> tuple[str, bytes] | None:
    if not state.startswith(_MARK):
        return None
    connector_type, colon, bare = state[len(_MARK) :].partition(b":")
    if not colon or not connector_type.isascii():
        return None
    return connector_type.decode("ascii"), bare


def _owner(state: bytes) -> str:
    split = _split(state)
    return split[0] if split else ""


def _bare(part: Part, connector_type: str) -> Part:
    if not isinstance(part, ReasoningPart | ToolCallPart) or not part.provider_state:
        return part
    split = _split(part.provider_state)
    bare = split[1] if split and split[0] == connector_type else b""
    return msgspec.structs.replace(part, provider_state=bare)
