"""The messages of a call, for dialects that keep instructions apart from turns: what Anthropic's, Gemini's and
Bedrock's have in common.

How a part looks on the wire is each dialect's; where it stands, what of it may be left out and how that is told is the
same for all.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Final

import msgspec

from patchbay_server.adapters import json_body
from patchbay_server.adapters.knobs import unsupported
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.types import Message, Notice, NoticeCode, Part, Role, TextPart, ToolCallPart

CACHE_MARKS_MAX: Final = 4
"""As many as Anthropic and Bedrock take in one request."""

_TOOL_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Conversation:
    """The messages of one call, and the notices of what is left out of them."""

    def __init__(self, messages: Sequence[Message]) -> None:
        self.messages = messages
        self._notices: list[Notice] = []
        self._cache_marks = 0

    @property
    def notices(self) -> tuple[Notice, ...]:
        return tuple(self._notices)

    # --- where things stand ---

    def lead(self) -> int:
        """How many messages stand before the first that is not of role system.

        Raises:
            PatchbayError: INVALID_REQUEST when there is no other.
        """
        lead = next((i for i, message in enumerate(self.messages) if message.role is not Role.SYSTEM), None)
        if lead is None:
            raise PatchbayError(
                Reason.INVALID_REQUEST, "the provider needs a message that is not of role system", field="messages"
            )
        return lead

    def turns(self, start: int, wire_role: Callable[[Role], str]) -> Iterator[tuple[str, list[int]]]:
        """The messages from `start` on that follow each other in one role of the wire: that role and their indexes."""
        rest = range(start, len(self.messages))
        for role, indexes in groupby(rest, key=lambda i: wire_role(self.messages[i].role)):
            yield role, list(indexes)

    def parts(self, index: int) -> list[tuple[str, Part]]:
        """The parts of a message, each with its path in the request.

        Raises:
            PatchbayError: FEATURE_UNSUPPORTED when the message names who says it.
        """
        message = self.messages[index]
        if message.author_name:
            raise unsupported(f"messages[{index}].author_name", "the provider has no names of participants")
        return [(f"messages[{index}].parts[{j}]", part) for j, part in enumerate(message.parts)]

    def instructions(self, index: int) -> Iterator[tuple[str, TextPart]]:
        """The texts of a message of role system.

        Raises:
            PatchbayError: FEATURE_UNSUPPORTED for anything but a text.
        """
        for path, part in self.parts(index):
            if not isinstance(part, TextPart):
                raise unsupported(path, "the provider takes only text in system messages")
            yield path, part

    # --- what models do not take ---

    def check_last(self, *, continues: bool) -> None:
        """Refuse an answer that is to be continued, unless the model `continues` one."""
        index = len(self.messages) - 1
        if self.messages[index].role is Role.ASSISTANT and not continues:
            raise unsupported(
                f"messages[{index}]", "this model does not continue an assistant message; end with the user"
            )

    def check_late_system(self, index: int, *, taken: bool) -> None:
        """Refuse a message of role system within the conversation, unless the model takes it."""
        if not taken:
            raise unsupported(
                f"messages[{index}]", "this model takes system messages at the start of the conversation only"
            )

    def has_words(self, text: str, path: str, role: Role) -> bool:
        """Whether `text` can be sent; what has no word in it is left out where the model or a tool has written it.

        Raises:
            PatchbayError: INVALID_REQUEST when it is the caller's.
        """
        if text.strip():
            return True
        if role not in (Role.ASSISTANT, Role.TOOL):
            message = "the provider takes no text without a word in it; leave the part out"
            raise PatchbayError(Reason.INVALID_REQUEST, message, field=f"{path}.text")
        self.drop(f"{path}.text", "the provider takes no text without a word in it")
        return False

    def count_cache_mark(self, path: str) -> None:
        """Raises: PatchbayError: FEATURE_UNSUPPORTED for one mark too many."""
        self._cache_marks += 1
        if self._cache_marks > CACHE_MARKS_MAX:
            raise unsupported(f"{path}.cache_breakpoint", f"the provider takes at most {CACHE_MARKS_MAX} cache marks")

    # --- what is left out ---

    def leave_out_reasoning(self, path: str) -> None:
        self.leave_out(f"{path}.reasoning", "reasoning that this provider has not signed cannot be given to it")

    def leave_out_signature(self, part: ToolCallPart, path: str) -> None:
        """For providers that sign no tool calls: a signature is another one's."""
        if part.provider_state:
            self.leave_out(f"{path}.tool_call.provider_state", "this provider signs no tool calls")

    def leave_out(self, field: str, message: str) -> None:
        self._notices.append(Notice(code=NoticeCode.PROVIDER_STATE_LEFT_OUT, message=message, field=field))

    def drop(self, field: str, message: str) -> None:
        """Leave out what takes nothing from what is said."""
        self._notices.append(Notice(code=NoticeCode.FIELD_DROPPED, message=message, field=field))


def arguments_of(part: ToolCallPart, path: str) -> msgspec.Raw:
    """The arguments of a call as the object that they are.

    Raises:
        PatchbayError: INVALID_REQUEST when they are something else.
    """
    return json_body.embedded_object(part.arguments_json.strip() or "{}", f"{path}.tool_call.arguments_json")


def tool_id(foreign: str) -> str:
    """A tool call's id as strict providers take it: the same for a call and its result, whoever assigned it."""
    if _TOOL_ID.fullmatch(foreign):
        return foreign
    return f"call_{hashlib.sha256(foreign.encode()).hexdigest()[:32]}"
