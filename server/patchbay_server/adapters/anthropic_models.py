"""What each Claude model takes: the meaning of the rows in its data file, so that a new model is a new row and no code.

`GET /v1/models/{id}` tells some of this at run time, but an adapter asks nobody; what is not known here is sent as it
is, for the provider to judge.
"""

import re
from enum import StrEnum
from functools import cache
from typing import Final

from patchbay_server.adapters.model_facts import ModelFacts, Row, load
from patchbay_server.types import Effort


class ForcedTools(StrEnum):
    """Whether the model can be made to call a tool (`tool_choice` of type `any` or `tool`)."""

    ALWAYS = "always"
    WITHOUT_THINKING = "without_thinking"
    NEVER = "never"


class ThinkingOff(StrEnum):
    """The `thinking.type` that turns thinking off."""

    DISABLED = "disabled"
    BETWEEN_TOOLS = "between_tools"
    """Thinks no more up front; what it writes between tool calls stays thinking."""
    IMPOSSIBLE = ""


class Claude(Row, frozen=True, kw_only=True):
    """What some models take.

    Args:
        efforts: accepted values of `output_config.effort`; empty when they take none.
        adaptive: whether `thinking.type` may be `adaptive`.
        budgets: whether `thinking.type` may be `enabled` with `budget_tokens`.
        sampling: whether `temperature`, `top_p` and `top_k` may differ from their defaults.
        one_sampling: whether `temperature` and `top_p` exclude each other.
        prefill: whether the conversation may end with an assistant message to be continued.
        late_system: whether a system message may stand within the conversation.
        max_output_tokens: the largest `max_tokens`; None when unknown.
    """

    efforts: frozenset[Effort]
    adaptive: bool
    budgets: bool
    thinking_off: ThinkingOff
    sampling: bool
    one_sampling: bool = False
    forced_tools: ForcedTools
    prefill: bool
    late_system: bool
    max_output_tokens: int | None = None


# `claude-opus-5-5`, `claude-haiku-4-5-20251001`; a cloud's prefix and suffix may surround it.
_NAME: Final = re.compile(r"claude-[a-z0-9.-]+")


@cache
def _known() -> ModelFacts[Claude]:
    return load("anthropic", Claude)


def facts(model: str) -> Claude:
    """What `model` takes, whoever serves it."""
    named = _NAME.search(model)
    return _known().of_any(named[0] if named else model)
