"""What OpenAI's model families take: facts as rows, each known by the prefixes of its models' names.

The API refuses what a family does not take (400 `unsupported_parameter`, `unsupported_value`); the table refuses it
before anything is sent. A model that the table does not know is never refused anything: the provider judges it.

Source: OpenAI's API reference and model pages, litellm's model map 2026-11 (read 2026-11-20).
"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import msgspec

from patchbay_server.types import Effort, Prompt, ReasoningPart


class Family(msgspec.Struct, frozen=True, kw_only=True):
    """What the models of one family take.

    Args:
        prefixes: names that a model's name starts with, up to its end or a dash.
        refuses: knobs that are not taken with any value but their default.
        refuses_while_reasoning: knobs that are taken only with reasoning effort `none`.
        efforts: the reasoning efforts that are taken; empty for models that take none, None when unknown.
        reasons_by_default: whether a call that names no effort reasons.
        developer_role: whether instructions are given in the role `developer` instead of `system`.
        prefers_responses: whether tools and reasoning need the Responses API.
        only_responses: whether the family exists on the Responses API only.
        gives_reasoning: whether the Responses API gives its reasoning, to be read and to be sent back.
        cache_breakpoints: whether content parts may be marked as ends of a cached prefix.
    """

    prefixes: tuple[str, ...] = ()
    refuses: frozenset[str] = frozenset()
    refuses_while_reasoning: frozenset[str] = frozenset()
    efforts: frozenset[Effort] | None = None
    reasons_by_default: bool = True
    developer_role: bool = True
    prefers_responses: bool = False
    only_responses: bool = False
    gives_reasoning: bool = True
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


_SAMPLING: Final = frozenset({"temperature", "top_p"})
_STOPPING: Final = frozenset({"stop_sequences", "frequency_penalty", "presence_penalty"})
_LOW_TO_HIGH: Final = frozenset({Effort.LOW, Effort.MEDIUM, Effort.HIGH})

FAMILIES: Final = (
    Family(
        prefixes=("gpt-3.5", "gpt-4", "gpt-4o", "gpt-4.1", "chatgpt-4o"),
        efforts=frozenset(),
        reasons_by_default=False,
        developer_role=False,
        gives_reasoning=False,
    ),
    # Models beside the reasoning line: nothing is known that they refuse, and they are served on chat completions.
    Family(prefixes=("gpt-5-chat", "gpt-audio", "gpt-oss"), developer_role=False, gives_reasoning=False),
    Family(prefixes=("o1", "o3", "o4"), refuses=_SAMPLING | _STOPPING, efforts=_LOW_TO_HIGH),
    Family(prefixes=("gpt-5",), refuses=_SAMPLING | _STOPPING, efforts=_LOW_TO_HIGH | {Effort.MINIMAL}),
    Family(
        prefixes=("gpt-5.1",),
        refuses=_STOPPING,
        refuses_while_reasoning=_SAMPLING,
        efforts=_LOW_TO_HIGH | {Effort.NONE, Effort.MINIMAL},
        reasons_by_default=False,
    ),
    Family(
        prefixes=("gpt-5.2",),
        refuses=_STOPPING,
        refuses_while_reasoning=_SAMPLING,
        efforts=_LOW_TO_HIGH | {Effort.NONE, Effort.MINIMAL, Effort.XHIGH},
        reasons_by_default=False,
    ),
    Family(
        prefixes=("gpt-5.4",),
        refuses=_STOPPING,
        refuses_while_reasoning=_SAMPLING,
        efforts=_LOW_TO_HIGH | {Effort.NONE, Effort.XHIGH},
        reasons_by_default=False,
        prefers_responses=True,
    ),
    Family(
        prefixes=("gpt-5.5",),
        refuses=_STOPPING,
        refuses_while_reasoning=_SAMPLING,
        efforts=_LOW_TO_HIGH | {Effort.NONE, Effort.XHIGH, Effort.MAX},
        prefers_responses=True,
    ),
    Family(
        prefixes=("gpt-5.6", "gpt-6-sol", "gpt-6-luna", "gpt-6.1-terra"),
        refuses=_STOPPING,
        refuses_while_reasoning=_SAMPLING,
        efforts=_LOW_TO_HIGH | {Effort.NONE, Effort.XHIGH, Effort.MAX},
        prefers_responses=True,
        cache_breakpoints=True,
    ),
    Family(
        prefixes=("gpt-6-astra", "gpt-6.1-sol"),
        refuses=_SAMPLING | _STOPPING,
        efforts=_LOW_TO_HIGH | {Effort.XHIGH, Effort.MAX},
        prefers_responses=True,
        cache_breakpoints=True,
    ),
    Family(
        prefixes=(
            *("o1-pro", "o3-pro", "gpt-5-pro", "gpt-5.2-pro", "gpt-5.4-pro", "gpt-5.5-pro"),
            *("gpt-5-codex", "gpt-5.1-codex", "gpt-5.2-codex", "gpt-5.3-codex"),
        ),
        refuses=_SAMPLING | _STOPPING,
        prefers_responses=True,
        only_responses=True,
    ),
)

_BY_PREFIX: Final[Mapping[str, Family]] = MappingProxyType(
    {prefix: family for family in FAMILIES for prefix in family.prefixes}
)
_NEWEST_GPT: Final = Family(prefers_responses=True)
"""A `gpt-` model that the table does not know: spoken to as the newest ones are, refused nothing."""
_NEWEST_O: Final = Family()
UNKNOWN: Final = Family(developer_role=False, gives_reasoning=False)
"""A model of no line that is known: another maker's, or a deployment's name."""

_O_LINE: Final = re.compile(r"o[0-9]")

DEFAULTS: Final[Mapping[str, float]] = MappingProxyType(
    {"temperature": 1, "top_p": 1, "frequency_penalty": 0, "presence_penalty": 0}
)
"""Values that say the same as leaving the knob out, also to models that refuse the knob."""


def family_of(model: str) -> Family:
    """The family of an OpenAI model, by the longest prefix that it has; a fine-tuned one is of its base's family."""
    name = model.removeprefix("ft:").split(":", 1)[0]
    family = by_prefix(name, _BY_PREFIX)
    if family is not None:
        return family
    if name.startswith("gpt-"):
        return _NEWEST_GPT
    return _NEWEST_O if _O_LINE.match(name) else UNKNOWN


def by_prefix(name: str, families: Mapping[str, Family]) -> Family | None:
    """The family of the longest prefix that `name` has, up to its end or a dash; None when it has none."""
    while name:
        if name in families:
            return families[name]
        name = name.rpartition("-")[0]
    return None


def unknown_family(_model: str) -> Family:
    """Of a server that any model may live on."""
    return UNKNOWN


def wants_responses(prompt: Prompt, family: Family) -> bool:
    """Whether what is asked of a model is to be had on the Responses API only.

    Newer models refuse tools together with reasoning on chat completions, and reasoning that can be read, or that
    survives from one turn to the next, exists on the Responses API alone.

    Source: OpenAI's migration guide to the Responses API; error texts of gpt-5.4 and later (read 2026-11-20).
    """
    if family.only_responses:
        return True
    reasoning = prompt.config.reasoning
    thinks = reasoning is not None and reasoning.effort not in (None, Effort.NONE)
    shows = (reasoning is not None and reasoning.include_text) or _holds_reasoning(prompt)
    return (family.prefers_responses and (bool(prompt.tools) or thinks)) or (family.gives_reasoning and shows)


def _holds_reasoning(prompt: Prompt) -> bool:
    return any(
        isinstance(part, ReasoningPart) and part.provider_state for message in prompt.messages for part in message.parts
    )
