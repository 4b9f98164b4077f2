"""Facts about models, read from data files: one TOML file for each family in `models/`, one row for some models.

A file holds an array of tables `model`. Each table is a row: `names`, `source`, and what the family's row type adds.
A row may begin as another one: `like` is the first name of a row above it, whose facts it takes where it says nothing.

A name is a model's id, which it means with whatever follows a dash (`gpt-5` means `gpt-5-2026-01-01`, not `gpt-5.1`),
or a pattern of the shell that means the whole id (`gpt-*`). Of several names that mean a model, the one with the most
letters of its own decides; so a short pattern is what an unknown model of its line is taken for.

Nothing is read at import: a family's module loads its file at the first look-up.
"""

import re
import tomllib
from fnmatch import translate
from importlib.resources import files
from typing import Any, Final, Generic, TypeVar

import msgspec


class Row(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is known of some models; a family's own row type adds the facts.

    Args:
        names: the models that it is about, as the module's docstring has it.
        source: where the facts were read, and when.
    """

    names: tuple[str, ...]
    source: str


RowT = TypeVar("RowT", bound=Row)

_WILD: Final = re.compile(r"\*|\?|\[[^]]*\]")


class ModelFacts(Generic[RowT]):
    """The rows of one family."""

    def __init__(self, rows: tuple[RowT, ...]) -> None:
        named = [(name, row) for row in rows for name in row.names]
        if len({name for name, _ in named}) < len(named):
            raise ValueError("a model has two rows")
        named.sort(key=lambda pair: len(_WILD.sub("", pair[0])), reverse=True)
        self._rows: Final = rows
        self._named: Final = tuple((_meaning(name), row) for name, row in named)

    @property
    def rows(self) -> tuple[RowT, ...]:
        """In the file's order."""
        return self._rows

    def of(self, model: str) -> RowT | None:
        """The row that says most closely what `model` is; None when none does, which a row named `*` excludes."""
        return next((row for meaning, row in self._named if meaning(model)), None)

    def of_any(self, model: str) -> RowT:
        """As `of`, for a family that has a row named `*`.

        Raises:
            LookupError: it has none.
        """
        row = self.of(model)
        if row is None:
            raise LookupError("the family has no row for every model")
        return row


def load(family: str, row_type: type[RowT]) -> ModelFacts[RowT]:
    """The facts in `models/{family}.toml`.

    Raises:
        ValueError: the file is no such table, or holds a fact that `row_type` does not know.
    """
    path = files("patchbay_server.adapters").joinpath("models", f"{family}.toml")
    return parse(path.read_text(encoding="utf-8"), row_type)


def parse(text: str, row_type: type[RowT]) -> ModelFacts[RowT]:
    """The facts in the text of a file, as `load` has it."""
    tables = tomllib.loads(text).get("model")
    if not tables:
        raise ValueError("there is no row: a file is an array of tables `model`")
    told: list[dict[str, Any]] = []
    for table in tables:
        like = table.pop("like", None)
        above = next((row for row in told if row["names"][:1] == [like]), None)
        if like is not None and above is None:
            raise ValueError(f"no row above {table.get('names')} is first named {like}")
        told.append({**(above or {}), **table})
    return ModelFacts(msgspec.convert(tuple(told), tuple[row_type, ...]))  # type: ignore[valid-type]


def _meaning(name: str) -> Any:
    if _WILD.search(name):
        return re.compile(translate(name)).match
    return re.compile(rf"{re.escape(name)}(?:-|\Z)").match
