"""What each model of the Gemini API takes: facts as rows, each with its source, so that a new model is a new row.

`GET /v1beta/models/{id}` tells little of this, and an adapter asks nobody; what is not known here is sent as it is, for
the provider to judge.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import msgspec

from patchbay_server.types import Effort


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """The values of `thinkingBudget` that a model takes, in tokens, beside 0.

    `off` is whether it takes 0, which turns thinking off.
    """

    tokens_min: int
    tokens_max: int
    off: bool


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a model takes.

    Args:
        levels: accepted values of `thinkingLevel`; empty when it takes none.
        budget: accepted values of `thinkingBudget`; None when it takes none.
        sampling: whether `temperature`, `topP` and `topK` have an effect.
        penalties: whether `presencePenalty` and `frequencyPenalty` are taken.
        continues: whether the conversation may end with an answer of the model to be continued.
        signed_calls: whether the first function call of each answer needs a `thoughtSignature`.
        media_results: whether the result of a function may hold media.
    """

    levels: frozenset[Effort]
    budget: Budget | None
    sampling: bool
    penalties: bool
    continues: bool
    signed_calls: bool
    media_results: bool

    @property
    def thinks(self) -> bool:
        return bool(self.levels) or self.budget is not None


_LOW_HIGH: Final = frozenset({Effort.LOW, Effort.HIGH})
_FROM_LOW: Final = _LOW_HIGH | {Effort.MEDIUM}
_FROM_MINIMAL: Final = _FROM_LOW | {Effort.MINIMAL}

# Source of every row: ai.google.dev/gemini-api/docs, "Thinking" (levels and budgets), "Thought signatures" and each
# model's "What's new"; cloud.google.com, "Thinking" of Gemini Enterprise Agent Platform, which has the same table of
# levels; where a row has more sources they stand beside it (all read 2026-11-21).

_UNKNOWN: Final = ModelFacts(
    levels=_FROM_MINIMAL | {Effort.XHIGH},
    budget=Budget(tokens_min=1, tokens_max=2**31 - 1, off=True),
    sampling=True,
    penalties=True,
    continues=True,
    signed_calls=False,
    media_results=True,
)
"""A model that is not in the table, such as a tuned one: everything is sent, the provider judges."""

_EARLIER: Final = ModelFacts(
    levels=frozenset(),
    budget=None,
    sampling=True,
    penalties=True,
    continues=True,
    signed_calls=False,
    media_results=False,
)

# Penalties answer 400 from 2.5 on: google-gemini/cookbook issue 1290, BerriAI/litellm pull request 32273.
_PRO_2_5: Final = msgspec.structs.replace(
    _EARLIER, budget=Budget(tokens_min=128, tokens_max=32_768, off=False), penalties=False
)
_FLASH_2_5: Final = msgspec.structs.replace(_PRO_2_5, budget=Budget(tokens_min=1, tokens_max=24_576, off=True))
_FLASH_LITE_2_5: Final = msgspec.structs.replace(_PRO_2_5, budget=Budget(tokens_min=512, tokens_max=24_576, off=True))

# "Gemini 3 developer guide": levels in place of budgets, signatures that are validated, media in function responses.
# Budgets are taken for compatibility alone, and are an error from 4 on.
_PRO_3: Final = ModelFacts(
    levels=_LOW_HIGH,
    budget=None,
    sampling=True,
    penalties=False,
    continues=True,
    signed_calls=True,
    media_results=True,
)
_FLASH_3: Final = msgspec.structs.replace(_PRO_3, levels=_FROM_MINIMAL)
_PRO_3_1: Final = msgspec.structs.replace(_PRO_3, levels=_FROM_LOW)
_FLASH_LITE_3_1: Final = _FLASH_3
_FLASH_3_5: Final = _FLASH_3

# "What's new in Gemini 3.6 Flash and 3.5 Flash-Lite", which speaks of every later model too: sampling has no effect any
# more, and a conversation that ends with the model's turn is an error.
_FLASH_3_6: Final = msgspec.structs.replace(_FLASH_3, sampling=False, continues=False)
_FLASH_LITE_3_5: Final = _FLASH_3_6

# "Developer's guide to Gemini 3.7 Flash" and "3.8 Flash": minimal is gone.
_FLASH_3_7: Final = msgspec.structs.replace(_FLASH_3_6, levels=_FROM_LOW)
_FLASH_3_8: Final = _FLASH_3_7

# "What's new in Gemini 4 Argon".
_ARGON_4: Final = _FLASH_3_7

# earendil-works/pi issue 2812 and livekit/agents pull request 7095 (measured against the API): two levels, no budget.
_GEMMA_4: Final = msgspec.structs.replace(_EARLIER, levels=frozenset({Effort.MINIMAL, Effort.HIGH}))

_BY_FAMILY: Final[Mapping[str, Mapping[tuple[int, int], ModelFacts]]] = MappingProxyType(
    {
        "pro": {(2, 5): _PRO_2_5, (3, 0): _PRO_3, (3, 1): _PRO_3_1},
        "flash": {
            (2, 5): _FLASH_2_5,
            (3, 0): _FLASH_3,
            (3, 5): _FLASH_3_5,
            (3, 6): _FLASH_3_6,
            (3, 7): _FLASH_3_7,
            (3, 8): _FLASH_3_8,
        },
        "flash-lite": {(2, 5): _FLASH_LITE_2_5, (3, 1): _FLASH_LITE_3_1, (3, 5): _FLASH_LITE_3_5},
        "argon": {(4, 0): _ARGON_4},
        "gemma": {(4, 0): _GEMMA_4},
    }
)

# `gemini-3.8-flash`, `gemini-3-pro-preview`, `gemini-2.5-flash-lite-preview-06-17`, `gemini-2.0-flash-001`. What makes
# pictures or speech (`gemini-3-pro-image`) is another model under a similar name.
_GEMINI: Final = re.compile(
    r"gemini-(?P<major>[0-9]{1,2})(?:\.(?P<minor>[0-9]{1,2}))?-(?P<family>flash-lite|[a-z]+)"
    r"(?:-(?:preview|exp|latest|customtools|[0-9]+))*"
)
_GEMMA: Final = re.compile(r"(?P<family>gemma)-(?P<major>[0-9]{1,2})(?:\.(?P<minor>[0-9]{1,2}))?(?:-[0-9a-z-]+)?")


def facts(model: str) -> ModelFacts:
    """What `model` takes: the row of its version, or of the last known version before it in its family."""
    name = model.removeprefix("models/")
    named = _GEMINI.fullmatch(name) or _GEMMA.fullmatch(name)
    rows = _BY_FAMILY.get(named["family"]) if named else None
    if named is None or rows is None:
        return _UNKNOWN
    version = (int(named["major"]), int(named["minor"] or 0))
    known = [known for known in rows if known <= version]
    return rows[max(known)] if known else _EARLIER
