"""The names one model goes by: a caller's or provider's spelling turned into the spellings of a list.

Knows how providers decorate a model's name; knows no model. Cuts only what leaves the model the same for its price and
quality: an unknown name is better than a wrong one.
"""

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Final, NamedTuple

EVERY_PROVIDER: Final = "*"
"""In a policy's keys `{provider}/{model}`: the entry holds for every provider."""


class _Cut(NamedTuple):
    pattern: re.Pattern[str]
    replacement: str = ""

    def __call__(self, name: str) -> str:
        return self.pattern.sub(self.replacement, name)


class _Spelling(NamedTuple):
    """How one provider decorates names. `endings` are cut one after the other, what comes before stays; then each form
    so far is tried without each of the `beginnings` too.
    """

    endings: tuple[_Cut, ...] = ()
    beginnings: tuple[_Cut, ...] = ()


REMEMBERED: Final = 1024
"""So many pairs of provider and model are taken apart once only: a gateway sees few, and each call asks again."""

_SNAPSHOT: Final = _Cut(re.compile(r"-(20\d{2}-\d{2}-\d{2}|20\d{6})$"))
"""The date of a snapshot. A list that prices a snapshot apart names it in full."""

BEDROCK_VERSION: Final = _Cut(re.compile(r"(-v\d+)?(:\d+(:\w+)?)?$"))
"""The version of a model on Bedrock, and the length of context after it."""

_SPELLINGS: Final[Mapping[str, _Spelling]] = {
    # `-latest` stands for the newest snapshot of one version, as in `claude-3-5-haiku-latest`.
    "anthropic": _Spelling(endings=(_Cut(re.compile(r"-latest$")), _SNAPSHOT)),
    # Inference profiles are named after the model, behind a group of regions. Source: Amazon Bedrock user guide,
    # Supported Regions and models for inference profiles (read 2026-11-27). ARNs of other kinds name no model.
    "bedrock": _Spelling(
        endings=(BEDROCK_VERSION, _SNAPSHOT),
        beginnings=(
            _Cut(re.compile(r"^arn:aws[\w-]*:bedrock:[^/]*:(foundation-model|inference-profile)/")),
            _Cut(re.compile(r"^(us-gov|us|eu|apac|au|jp|in|ca|sa|global)\.(?=[a-z0-9-]+\.)")),
        ),
    ),
    # Three digits are a stable version. Source: Google Cloud, Model versions and lifecycle (read 2026-11-27). Previews
    # end in a month and a day or a year, as in `gemini-2.5-flash-preview-09-2025`.
    "gemini": _Spelling(
        endings=(_SNAPSHOT, _Cut(re.compile(r"-(\d{3}|\d{2}-\d{2,4})$")), _Cut(re.compile(r"-(preview|exp)$"))),
        beginnings=(_Cut(re.compile(r"^models/")),),
    ),
    # `ft:{base}:{organisation}:{suffix}:{id}`. Source: OpenAI API reference, Create fine-tuning job (read 2026-11-27).
    "openai": _Spelling(
        endings=(
            _Cut(re.compile(r"^(ft:[^:]+):.*$"), r"\1"),
            _SNAPSHOT,
            _Cut(re.compile(r"^(ft:.+)-\d{4}$"), r"\1"),
        ),
    ),
    # Routing variants choose among the hosts of a model or add a search; catalog variants, such as `:free`, are entries
    # with prices of their own. Source: OpenRouter, Model variants (read 2026-11-27).
    "openrouter": _Spelling(endings=(_Cut(re.compile(r":(nitro|floor|exacto|online)$")), _SNAPSHOT)),
}
_PLAIN: Final = _Spelling(endings=(_SNAPSHOT,))
"""For every other provider."""


@lru_cache(maxsize=REMEMBERED)
def forms(provider: str, model: str) -> tuple[str, ...]:
    """The names that `model` may stand under in a list, the most exact first; the first is `model` itself.

    All but the first are in lower case.

    Args:
        provider: a connector's type.
        model: as a caller wrote it or a provider answered it.
    """
    spelling = _SPELLINGS.get(provider, _PLAIN)
    found = [model, model.lower()]
    for cut in spelling.endings:
        found.append(cut(found[-1]))
    for cut in spelling.beginnings:
        found += [cut(form) for form in found]
    return tuple(form for form in dict.fromkeys(found) if form)


def policy_keys(provider: str, model: str) -> Iterator[str]:
    """The keys under which a policy may speak of `model`, the one to be believed most first.

    A more exact name goes before a less exact one; for the same name, the provider's own entry before everyone's.
    """
    for form in forms(provider, model):
        yield f"{provider}/{form}"
        yield f"{EVERY_PROVIDER}/{form}"
