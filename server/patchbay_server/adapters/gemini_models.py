"""What each model of the Gemini API takes: the meaning of the rows in its data file, so that a new model is a new row.

`GET /v1beta/models/{id}` tells little of this, and an adapter asks nobody; what is not known here is sent as it is, for
the provider to judge.
"""

from functools import cache

import msgspec

from patchbay_server.adapters.model_facts import ModelFacts, Row, load
from patchbay_server.types import Effort


class Budget(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The values of `thinkingBudget` that a model takes, in tokens, beside 0.

    `off` is whether it takes 0, which turns thinking off.
    """

    tokens_min: int
    tokens_max: int
    off: bool


class Gemini(Row, frozen=True, kw_only=True):
    """What some models take.

    Args:
        levels: accepted values of `thinkingLevel`; empty when they take none.
        budget: accepted values of `thinkingBudget`; None when they take none.
        sampling: whether `temperature`, `topP` and `topK` have an effect.
        penalties: whether `presencePenalty` and `frequencyPenalty` are taken.
        continues: whether the conversation may end with an answer of the model to be continued.
        signed_calls: whether the first function call of each answer needs a `thoughtSignature`.
        media_results: whether the result of a function may hold media.
    """

    levels: frozenset[Effort]
    budget: Budget | None = None
    sampling: bool
    penalties: bool
    continues: bool
    signed_calls: bool
    media_results: bool

    @property
    def thinks(self) -> bool:
        return bool(self.levels) or self.budget is not None


@cache
def _known() -> ModelFacts[Gemini]:
    return load("gemini", Gemini)


def facts(model: str) -> Gemini:
    """What `model` takes, in either spelling of its name."""
    return _known().of_any(model.removeprefix("models/"))
