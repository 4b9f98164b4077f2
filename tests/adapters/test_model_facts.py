"""What is known of models stands in data files, each row with where it was read; an unknown model is never refused."""

from importlib.resources import files

import pytest

from patchbay_server.adapters.model_facts import Row, load, parse

FAMILIES = sorted(
    path.name.removesuffix(".toml") for path in files("patchbay_server.adapters").joinpath("models").iterdir()
)


class Lamp(Row, frozen=True, kw_only=True):
    """A row of an invented maker."""

    watts: int = 0
    colours: frozenset[str] = frozenset()


LAMPS = """
[[model]]
names = ["lux-1", "lux-1.5"]
source = "the page of Lux 1"
watts = 5
colours = ["red"]

[[model]]
names = ["lux-1-mini"]
like = "lux-1"
source = "the page of Lux 1 mini"
watts = 2

[[model]]
names = ["lux-*", "lumen[0-9]*"]
source = "as lux-1"
"""


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("lux-1", "lux-1"),
        ("lux-1-2026-01-01", "lux-1"),
        ("lux-1.5-large", "lux-1"),
        ("lux-1-mini-2026", "lux-1-mini"),
        ("lux-1-minimal", "lux-1"),
        ("lux-10", "lux-*"),
        ("lumen3-large", "lux-*"),
    ],
)
def test_the_closest_name_decides(model: str, name: str) -> None:
    row = parse(LAMPS, Lamp).of(model)
    assert row is not None
    assert row.names[0] == name


def test_a_model_that_no_row_is_about_has_none() -> None:
    assert parse(LAMPS, Lamp).of("candle-1") is None
    assert parse(LAMPS, Lamp).of("") is None


def test_a_family_may_have_a_row_for_every_model() -> None:
    every = parse(LAMPS + '[[model]]\nnames = ["*"]\nsource = "no page"', Lamp)
    assert every.of_any("candle-1").source == "no page"
    with pytest.raises(LookupError):
        parse(LAMPS, Lamp).of_any("candle-1")


def test_a_row_takes_from_the_row_that_it_is_like_what_it_does_not_say() -> None:
    row = parse(LAMPS, Lamp).of("lux-1-mini")
    assert row == Lamp(names=("lux-1-mini",), source="the page of Lux 1 mini", watts=2, colours=frozenset({"red"}))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('[[model]]\nnames = ["a"]\nsource = "s"\nwatt = 1', "watt"),
        ('[[model]]\nnames = ["a"]\nsource = "s"\nwatts = "many"', "int"),
        ('[[model]]\nnames = ["a"]', "source"),
        ('[[model]]\nnames = ["a"]\nsource = "s"\nlike = "b"', "first named b"),
        ('[[model]]\nnames = ["a", "b"]\nsource = "s"\n[[model]]\nnames = ["c", "b"]\nsource = "s"', "two rows"),
        ('[[model]]\nnames = ["a"]\nsource = "s"\n[[model]]\nnames = ["a"]\nsource = "t"', "two rows"),
        ("", "model"),
        ("[[model", "Expected"),
    ],
)
def test_a_file_that_says_what_nobody_understands_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse(text, Lamp)


def test_there_are_families() -> None:
    assert {"anthropic", "bedrock", "gemini", "openai", "xai"} <= set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_row_of_each_family_says_where_it_was_read(family: str) -> None:
    class Any(Row, frozen=True, kw_only=True, forbid_unknown_fields=False):
        """A row whatever else it says."""

    rows = load(family, Any).rows
    assert rows
    assert all(row.names and row.source.strip() for row in rows)
