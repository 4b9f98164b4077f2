"""How good a model is taken to be: a hand-kept list that ships with the package, and a policy's own priors."""

import re
from collections.abc import Iterable
from fnmatch import translate
from functools import lru_cache
from importlib.resources import files
from typing import Final, Self

import msgspec

from patchbay_server.market.names import REMEMBERED, forms, policy_keys
from patchbay_server.types import Policy

_FILE: Final = "qualities.toml"

_VENDOR: Final = re.compile(r"^(.*/|[a-z0-9-]+\.(?=[a-z]))")
"""Who made or sells a model, where its name says so: `anthropic/` at OpenRouter, `anthropic.` on Bedrock."""

_CHOICE: Final = re.compile(r"\[[^\]]*\]")
"""In a pattern: one of several characters."""

_MAKERS: Final = frozenset({"anthropic", "azure_openai", "bedrock", "gemini", "openai", "openrouter", "xai"})
"""Providers whose names mean the models that the list means by them."""


class QualityRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line of the list: a model or a family of them.

    `names` are patterns of whole names as `_plain` writes them; `*` is any text. Where several rows fit, the one whose
    pattern says most holds. `anywhere` is whether a server that is not the maker's may be believed when it calls a
    model so: weights that anyone may run keep their name, while `gpt-4` on a private server is a nickname. `why` names
    the ground for the number.
    """

    names: tuple[str, ...]
    quality: float
    anywhere: bool = False
    why: str


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    models: tuple[QualityRow, ...]


class QualityList:
    """Qualities by model. Immutable; looking up does no I/O."""

    def __init__(self, rows: Iterable[QualityRow]) -> None:
        patterns = ((pattern, row) for row in rows for pattern in row.names)
        ordered = sorted(patterns, key=lambda one: _says(one[0]), reverse=True)
        self._patterns = tuple((re.compile(translate(pattern)), row) for pattern, row in ordered)
        self._listed = lru_cache(maxsize=REMEMBERED)(self._search)

    @classmethod
    def bundled(cls) -> Self:
        """The list that ships with the package; read anew at each call."""
        content = files(__package__).joinpath(_FILE).read_bytes()
        return cls(msgspec.toml.decode(content, type=_File).models)

    def quality(self, provider: str, model: str, policy: Policy) -> float | None:
        """From 0.0, of no use, to 1.0, as good as models are; None when nobody has said.

        Args:
            provider: the connector's type.
            model: as the caller wrote it or the provider answered it.
            policy: its priors win over the list.
        """
        for key in policy_keys(provider, model):
            if key in policy.quality_priors:
                return policy.quality_priors[key]
        return self._listed(provider, model)

    def _search(self, provider: str, model: str) -> float | None:
        for name in dict.fromkeys(_plain(form) for form in forms(provider, model)):
            for pattern, row in self._patterns:
                if pattern.match(name) and (row.anywhere or provider in _MAKERS):
                    return row.quality
        return None


def _says(pattern: str) -> tuple[int, bool]:
    """How much a pattern says: how many characters of a name it fixes, then whether these are all."""
    return len(_CHOICE.sub("?", pattern).replace("*", "")), "*" not in pattern


def _plain(name: str) -> str:
    """A model's name without its vendor, in lower case, with `-` for `.` and `_`: there, makers and sellers differ."""
    return re.sub(r"[._]", "-", _VENDOR.sub("", name.lower()))
