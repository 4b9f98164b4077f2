"""Model ids of Bedrock: whose model an id names, which API a call for it goes to, and the meaning of the rows in
the data file of what its maker's models take.

Converse serves every model and is the rule. InvokeModel takes what Converse cannot say, where the body that the maker's
models take is known: Anthropic's, and the prompt of Llama.

Source: botocore 1.44.5, service model `bedrock-runtime`. That Converse takes tool calls in a conversation only with
tools: pydantic/pydantic-ai issue 1966 (read 2026-11-21).
"""

import re
from collections.abc import Mapping
from enum import Enum, auto
from functools import cache
from typing import Final, Literal

import msgspec

from patchbay_server.adapters import json_body
from patchbay_server.adapters.anthropic_answer import is_kept_block
from patchbay_server.adapters.model_facts import ModelFacts, Row, load
from patchbay_server.types import (
    Call,
    Effort,
    Prompt,
    ProviderTool,
    ReasoningPart,
    ToolCallPart,
    ToolMode,
    ToolResultPart,
)

MODEL_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9:._/-]{0,2047}")
"""A model id, an inference profile's id or an ARN."""

# The part of an ARN that tells the model; other resources (application profiles, provisioned throughput) tell nothing.
_ARN: Final = re.compile(r"arn:aws[a-z-]*:bedrock:[a-z0-9-]*:[0-9]*:(?:foundation-model|inference-profile)/(?P<id>.+)")
# `us.`, `eu.`, `us-gov.`, `apac.`, `global.`: the regions of an inference profile.
_NAMED: Final = re.compile(r"(?:(?:global|apac|us-gov|[a-z]{2})\.)?(?P<maker>[a-z][a-z0-9-]*)\.(?P<name>[a-z0-9].*)")

_TO_HIGH: Final = frozenset({Effort.LOW, Effort.MEDIUM, Effort.HIGH})


class Surface(Enum):
    """The API that a call goes to."""

    CONVERSE = auto()
    CLAUDE = auto()
    """InvokeModel with the body of Anthropic's Messages API."""
    LLAMA = auto()
    """InvokeModel with a prompt in Llama's format."""


class EffortField(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a maker's models take an effort.

    Args:
        path: below `additionalModelRequestFields`.
        beside: what has to stand beside it.
        off_by_default: whether the model reasons only when it is told an effort.
        excluded: the knobs that are not taken together with an effort.
    """

    path: tuple[str, ...]
    beside: Mapping[str, str] = {}
    known: frozenset[Effort] = _TO_HIGH
    off_by_default: bool = False
    excluded: Mapping[Effort, frozenset[str]] = {}


class Llama(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to be known to write a Llama's prompt, and when there is need to.

    Args:
        marks: the generation of Llama whose tokens set a conversation.
        converse_tools: whether Converse offers tools to the model, which it does in whole answers only.
    """

    marks: Literal["llama3", "llama4"]
    converse_tools: bool
    max_output_tokens: int


class Traits(Row, frozen=True, kw_only=True):
    """What some models take beyond what all models of Converse do.

    Args:
        refuses: knobs that are not taken with any value but their default.
        top_k: where `top_k` goes below `additionalModelRequestFields`; empty when there is no such field.
        effort: None for the field of Converse itself.
        cache_points: whether cache points are taken; others leave the hint out.
        result_status: whether a tool's result can be marked as failed; others are told in words.
        recordings: whether sound and video are taken.
        late_system: whether a system message may stand within the conversation.
        llama: None for models that are asked on Converse only.
    """

    refuses: frozenset[str] = frozenset()
    top_k: tuple[str, ...] = ()
    effort: EffortField | None = None
    cache_points: bool = False
    result_status: bool = False
    recordings: bool = True
    late_system: bool = False
    llama: Llama | None = None


@cache
def _known() -> ModelFacts[Traits]:
    return load("bedrock", Traits)


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """What an id tells of its model. Both are empty where it tells nothing, as an application profile's ARN."""

    maker: str = ""
    name: str = ""

    @property
    def is_claude(self) -> bool:
        return self.maker == "anthropic"

    @property
    def traits(self) -> Traits:
        return _known().of_any(f"{self.maker}.{self.name}" if self.maker else "")


def model_of(model_id: str) -> Model:
    """What `model_id` tells of its model."""
    arn = _ARN.fullmatch(model_id)
    if arn is None and model_id.startswith("arn:"):
        return Model()
    named = _NAMED.fullmatch(arn["id"] if arn else model_id)
    return Model(maker=named["maker"], name=named["name"]) if named else Model()


def surface_of(call: Call) -> Surface:
    """The API that can say all of `call`; CONVERSE where none is known to, so that it refuses by name."""
    model = model_of(call.model)
    if model.is_claude and _beyond_converse(call.prompt):
        return Surface.CLAUDE
    llama = model.traits.llama
    if llama is not None and _needs_a_prompt(call, llama):
        return Surface.LLAMA
    return Surface.CONVERSE


def offers_tools(prompt: Prompt) -> bool:
    """Whether the model may call a tool."""
    return bool(prompt.tools) and (prompt.tool_choice is None or prompt.tool_choice.mode is not ToolMode.NONE)


def has_tool_history(prompt: Prompt) -> bool:
    """Whether a tool was called earlier in the conversation."""
    return any(isinstance(part, ToolCallPart | ToolResultPart) for message in prompt.messages for part in message.parts)


def is_converse_tool(tool: ProviderTool) -> bool:
    """Whether a provider's tool is one of Converse, rather than of the model's maker."""
    members = json_body.object_or_empty(tool.json.encode())
    return bool(members.keys() & {"toolSpec", "systemTool", "cachePoint"})


def _beyond_converse(prompt: Prompt) -> bool:
    """Whether the prompt holds what only the Messages API can say.

    Converse has no word for "call no tool" and none for "one at a time", takes tool calls in the conversation only
    together with tools, and knows no tools of Anthropic's own. A conversation that the Messages API has begun stays
    there, because its signed blocks are of that form.
    """
    if prompt.tools:
        makers_own = any(isinstance(tool, ProviderTool) and not is_converse_tool(tool) for tool in prompt.tools)
        return (
            makers_own
            or not offers_tools(prompt)
            or prompt.config.parallel_tool_calls is not None
            or _has_kept_blocks(prompt)
        )
    return has_tool_history(prompt) or _has_kept_blocks(prompt)


def _has_kept_blocks(prompt: Prompt) -> bool:
    return any(
        isinstance(part, ReasoningPart) and part.provider_state and is_kept_block(part.provider_state)
        for message in prompt.messages
        for part in message.parts
    )


def _needs_a_prompt(call: Call, llama: Llama) -> bool:
    if offers_tools(call.prompt):
        return call.streaming or not llama.converse_tools
    return has_tool_history(call.prompt)
