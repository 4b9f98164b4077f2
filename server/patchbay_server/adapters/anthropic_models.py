"""What each Claude model takes: facts as rows, each with its source, so that a new model is a new row and no code.

`GET /v1/models/{id}` tells some of this at run time, but an adapter asks nobody; what is not known here is sent as it
is, for the provider to judge.
"""

import re
from collections.abc import Mapping
from enum import Enum, auto
from types import MappingProxyType
from typing import Final

import msgspec

from patchbay_server.types import Effort


class ForcedTools(Enum):
    """Whether the model can be made to call a tool (`tool_choice` of type `any` or `tool`)."""

    ALWAYS = auto()
    WITHOUT_THINKING = auto()
    NEVER = auto()


class ThinkingOff(Enum):
    """The `thinking.type` that turns thinking off."""

    DISABLED = "disabled"
    BETWEEN_TOOLS = "between_tools"
    """Thinks no more up front; what it writes between tool calls stays thinking."""
    IMPOSSIBLE = ""


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a model takes.

    Args:
        efforts: accepted values of `output_config.effort`; empty when it takes none.
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
    max_output_tokens: int | None


_TO_HIGH: Final = frozenset({Effort.LOW, Effort.MEDIUM, Effort.HIGH})
_TO_MAX: Final = _TO_HIGH | {Effort.MAX}
_ALL: Final = _TO_MAX | {Effort.XHIGH}

# Source of every row: platform.claude.com/docs, pages "Thinking", "Effort", "Models overview" and each model's "What's
# new" and migration guide; where a row has more sources they stand beside it (all read 2026-11-21).

_UNKNOWN: Final = ModelFacts(
    efforts=_ALL,
    adaptive=True,
    budgets=True,
    thinking_off=ThinkingOff.DISABLED,
    sampling=True,
    forced_tools=ForcedTools.ALWAYS,
    prefill=True,
    late_system=True,
    max_output_tokens=None,
)
"""A model that is not in the table, such as one of a compatible server: everything is sent, the provider judges."""

# Retired or about to be. 4096 is the smallest limit among them (Claude 3).
_EARLIER: Final = ModelFacts(
    efforts=frozenset(),
    adaptive=False,
    budgets=True,
    thinking_off=ThinkingOff.DISABLED,
    sampling=True,
    forced_tools=ForcedTools.WITHOUT_THINKING,
    prefill=True,
    late_system=False,
    max_output_tokens=4096,
)

# "Migrating to Claude 4": `temperature` or `top_p`, not both, since Sonnet 4.5.
_GENERATION_4_5: Final = ModelFacts(
    efforts=frozenset(),
    adaptive=False,
    budgets=True,
    thinking_off=ThinkingOff.DISABLED,
    sampling=True,
    one_sampling=True,
    forced_tools=ForcedTools.WITHOUT_THINKING,
    prefill=True,
    late_system=False,
    max_output_tokens=64_000,
)

# "What's new in Claude 4.5": the only 4.5 model with effort, up to high.
_OPUS_4_5: Final = msgspec.structs.replace(_GENERATION_4_5, efforts=_TO_HIGH)

# 128k output: also Effect-TS/effect release ai-anthropic 4.0.0-beta.106 (4.6, 4.7, 4.8).
_GENERATION_4_6: Final = ModelFacts(
    efforts=_TO_MAX,
    adaptive=True,
    budgets=True,
    thinking_off=ThinkingOff.DISABLED,
    sampling=True,
    forced_tools=ForcedTools.WITHOUT_THINKING,
    prefill=False,
    late_system=False,
    max_output_tokens=128_000,
)

# "What's new in Claude Opus 4.7": no sampling, no budgets, effort xhigh.
_OPUS_4_7: Final = ModelFacts(
    efforts=_ALL,
    adaptive=True,
    budgets=False,
    thinking_off=ThinkingOff.DISABLED,
    sampling=False,
    forced_tools=ForcedTools.ALWAYS,
    prefill=False,
    late_system=False,
    max_output_tokens=128_000,
)

# "Mid-conversation system messages"; models: langchain-ai/langchainjs release @langchain/anthropic 1.5.13.
_OPUS_4_8: Final = msgspec.structs.replace(_OPUS_4_7, late_system=True)
_OPUS_5: Final = _OPUS_4_8
_SONNET_5: Final = _OPUS_4_8

# Always thinks: docs.aws.amazon.com, Bedrock user guide, "Adaptive thinking" (Fable 5, Mythos 5). Takes forced tools:
# anomalyco/opencode issue 46735 (measured against the API).
_FABLE_5: Final = msgspec.structs.replace(_OPUS_4_8, thinking_off=ThinkingOff.IMPOSSIBLE)

# "What's new in Claude Opus 5.5", the same for Fable 5.1 and Mythos 5.1: no `disabled`, forced tools 400.
_OPUS_5_5: Final = msgspec.structs.replace(_FABLE_5, forced_tools=ForcedTools.NEVER)
_FABLE_5_1: Final = _OPUS_5_5

# "What's new in Claude Sonnet 5.5": `between_tools` instead of `disabled`, forced tools 400.
_SONNET_5_5: Final = msgspec.structs.replace(_OPUS_5_5, thinking_off=ThinkingOff.BETWEEN_TOOLS)

# "What's new in Claude Haiku 5.5": `disabled` stays possible at effort high or below, forced tools stay.
_HAIKU_5_5: Final = _OPUS_4_8

_BY_FAMILY: Final[Mapping[str, Mapping[tuple[int, int], ModelFacts]]] = MappingProxyType(
    {
        "opus": {
            (4, 5): _OPUS_4_5,
            (4, 6): _GENERATION_4_6,
            (4, 7): _OPUS_4_7,
            (4, 8): _OPUS_4_8,
            (5, 0): _OPUS_5,
            (5, 5): _OPUS_5_5,
        },
        "sonnet": {
            (4, 5): _GENERATION_4_5,
            (4, 6): _GENERATION_4_6,
            (5, 0): _SONNET_5,
            (5, 5): _SONNET_5_5,
        },
        "haiku": {(4, 5): _GENERATION_4_5, (5, 5): _HAIKU_5_5},
        "fable": {(5, 0): _FABLE_5, (5, 1): _FABLE_5_1},
        "mythos": {(5, 0): _FABLE_5, (5, 1): _FABLE_5_1},
    }
)

# `claude-opus-5-5`, `claude-haiku-4-5-20251001`, `claude-opus-4-20250514`; a cloud's prefix and suffix may surround it.
_NAMED: Final = re.compile(r"claude-(?P<family>[a-z]+)-(?P<major>[0-9]{1,2})(?:-(?P<minor>[0-9]{1,2}))?(?![0-9])")
# `claude-3-5-sonnet-20241022`: until Claude 3.7 the version came first.
_VERSION_FIRST: Final = re.compile(r"claude-(?:[0-3]|instant)(?![0-9])")


def facts(model: str) -> ModelFacts:
    """What `model` takes: the row of its version, or of the last known version before it in its family."""
    if _VERSION_FIRST.search(model):
        return _EARLIER
    named = _NAMED.search(model)
    rows = _BY_FAMILY.get(named["family"]) if named else None
    if named is None or rows is None:
        return _UNKNOWN
    version = (int(named["major"]), int(named["minor"] or 0))
    known = [known for known in rows if known <= version]
    return rows[max(known)] if known else _EARLIER
