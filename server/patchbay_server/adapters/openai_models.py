"""What the models take that the OpenAI family of providers serves: the meaning of the rows in their data files.

A model that no row is about is refused nothing: the provider judges it.
"""

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Final

from patchbay_server.adapters.model_facts import ModelFacts, Row, load
from patchbay_server.types import Effort, Prompt, ReasoningPart


class Family(Row, frozen=True, kw_only=True):
    """What some models take.

    Args:
        refuses: knobs that are not taken with any value but their default.
        refuses_while_reasoning: knobs that are taken only with reasoning effort `none`.
        efforts: the reasoning efforts that are taken; empty for models that take none, None when unknown.
        reasons_by_default: whether a call that names no effort reasons.
        developer_role: whether instructions are given in the role `developer` instead of `system`.
        prefers_responses: whether tools and reasoning are better had on the Responses API.
        reasons_over_tools_on_chat: whether chat completions take tools of a model that reasons all the same.
        only_chat: whether they are served on chat completions only.
        only_responses: whether they exist on the Responses API only.
        gives_reasoning: whether the Responses API gives its reasoning, to be read and to be sent back.
        max_output_tokens: the largest limit of output tokens; None when unknown.
        cache_breakpoints: whether content parts may be marked as ends of a cached prefix.
    """

    refuses: frozenset[str] = frozenset()
    refuses_while_reasoning: frozenset[str] = frozenset()
    efforts: frozenset[Effort] | None = None
    reasons_by_default: bool = True
    developer_role: bool = True
    prefers_responses: bool = False
    reasons_over_tools_on_chat: bool = False
    only_chat: bool = False
    only_responses: bool = False
    gives_reasoning: bool = True
    max_output_tokens: int | None = None
    cache_breakpoints: bool = False

    def reasons(self, effort: Effort | None) -> bool:
        """Whether a call that names this effort (or none) makes the model reason."""
        unasked = effort is None or self.efforts == frozenset()
        return self.reasons_by_default if unasked else effort is not Effort.NONE

    def takes_knob(self, name: str, effort: Effort | None) -> bool:
        """Whether the knob `name` of `GenerationConfig` may differ from its default, given the effort asked for."""
        if name in self.refuses:
            return False
        return name not in self.refuses_while_reasoning or not self.reasons(effort)

    def takes_effort(self, effort: Effort) -> bool:
        return self.efforts is None or effort in self.efforts


UNKNOWN: Final = Family(names=("*",), source="what any server understands", developer_role=False, gives_reasoning=False)
"""A model of no line that is known: another maker's, or a deployment's name."""

DEFAULTS: Final[Mapping[str, float]] = MappingProxyType(
    {"temperature": 1, "top_p": 1, "frequency_penalty": 0, "presence_penalty": 0}
)
"""Values that say the same as leaving the knob out, also to models that refuse the knob."""


@cache
def facts(family: str) -> ModelFacts[Family]:
    """What is known of the models of one maker, by the name of its data file."""
    return load(family, Family)


def family_of(model: str, family: str) -> Family | None:
    """The row of a model among those of one maker; None when it has none. A fine-tuned model is of its base's row."""
    return facts(family).of(model.removeprefix("ft:").split(":", 1)[0])


def wants_responses(prompt: Prompt, family: Family) -> bool:
    """Whether what is asked of a model is to be had on the Responses API only.

    Newer models refuse tools together with reasoning on chat completions, and reasoning that can be read, or that
    survives from one turn to the next, exists on the Responses API alone.

    Source: OpenAI's migration guide to the Responses API; error texts of gpt-5.4 and later (read 2026-11-20).
    """
    if family.only_responses:
        return True
    reasoning = prompt.config.reasoning
    effort = reasoning.effort if reasoning is not None else None
    shows = (reasoning is not None and reasoning.include_text) or _holds_reasoning(prompt)
    if family.gives_reasoning and shows:
        return True
    if not family.prefers_responses:
        return False
    if prompt.config.seed is None or effort is Effort.MAX:
        return bool(prompt.tools) or effort not in (None, Effort.NONE)
    # A seed is taken on chat completions only, which do wherever nothing is asked for that they refuse.
    taken = effort if effort is None or family.takes_effort(effort) else None
    return bool(prompt.tools) and family.reasons(taken) and not family.reasons_over_tools_on_chat


def _holds_reasoning(prompt: Prompt) -> bool:
    return any(
        isinstance(part, ReasoningPart) and part.provider_state for message in prompt.messages for part in message.parts
    )
