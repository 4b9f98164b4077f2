"""Writes the list of prices that ships with the server, from the data of the PyPI package `genai-prices`.

    python gen/prices.py            write the list as of today, and pin the version it came from in pyproject.toml
    python gen/prices.py --check    write nothing; exit 1 when the list is not what the installed version gives

`make prices` installs the newest version first. Only facts are taken: models' names, prices, and the days and prompt
lengths from which they hold. What is taken:

- the providers that the gateway has a connector type for, and of these the models that answer text: a price for
  images, sound or video that a model makes, or none for text, leaves it out, as do the names in `NOT_CHAT`;
- standard prices: no batch, priority or other tiers of service; prompt caches that last five minutes;
- names that the package itself takes for that model, written as `market.names.forms` looks for them.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from importlib.metadata import version
from pathlib import Path
from typing import Final

import msgspec
from genai_prices import data, types

from patchbay_server.market.names import BEDROCK_VERSION, forms
from patchbay_server.market.prices import ListHead, ListRow, ListTier

ROOT: Final = Path(__file__).resolve().parent.parent
LIST: Final = ROOT / "server" / "patchbay_server" / "market" / "prices.jsonl"
PROJECT: Final = ROOT / "pyproject.toml"
SOURCE: Final = "genai-prices"

PROVIDERS: Final[Mapping[str, str]] = {
    "anthropic": "anthropic",
    "azure_openai": "azure",
    "bedrock": "aws",
    "gemini": "google",
    "openai": "openai",
    "openrouter": "openrouter",
    "xai": "x-ai",
}
"""Our connector types, and what the package calls them."""

NOT_CHAT: Final = re.compile(
    r"^ada$|audio|babbage|:batch$|claude-v1|computer-use|curie|davinci|embed|image|^gpt-3\.5-turbo-instruct|live|moderation|realtime|"
    r"robotics|sonic|transcribe|-tts|voice|whisper"
)
"""Models that are not asked by chat, or whose price by text tokens says little."""
TEXT: Final[Mapping[str, str]] = {
    "input_mtok": "input",
    "output_mtok": "output",
    "cache_read_mtok": "cached",
    "cache_write_mtok": "cache_write",
}
"""The package's names of the prices that are taken, and ours."""
OTHER_OUTPUT: Final = ("output_audio_mtok", "output_image_mtok", "output_reasoning_mtok", "output_video_mtok")
"""A model with one of these makes more than text, or bills some of its text apart."""
DECIMALS: Final = Decimal("0.000000001")
"""A billionth of a dollar: what the gateway counts in."""

HALF_DATE: Final = re.compile(r"(?<!-\d\d)-20\d{2}$|\.ft$|flash-0$")
"""What a rule of the package ends in where a date or a number would go on."""
AWS_REGION: Final = re.compile(r"^(regional|us-gov|us|eu|apac|au|jp|in)\.")
"""Beside `global.`, which has prices of its own."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Writes or checks the list of prices.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when the list is stale")
    if parser.parse_args().check:
        committed = LIST.read_bytes()
        if render(as_of(committed)) == committed:
            return 0
        sys.stderr.write(f"stale: {LIST.relative_to(ROOT)}; `make prices` writes it\n")
        return 1
    LIST.write_bytes(render(datetime.now(UTC).date()))
    pin = re.compile(rf'"{SOURCE}==[^"]*"')
    PROJECT.write_text(pin.sub(f'"{SOURCE}=={version(SOURCE)}"', PROJECT.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


def as_of(content: bytes) -> date:
    """The day of a list that was written before."""
    return msgspec.json.decode(content.split(b"\n", 1)[0], type=ListHead).as_of


def render(day: date) -> bytes:
    """The list's bytes for the installed version of the package and the prices that hold on `day` or are announced."""
    head = ListHead(source=SOURCE, version=version(SOURCE), as_of=day)
    encoder = msgspec.json.Encoder(decimal_format="number")
    return b"".join(encoder.encode(line) + b"\n" for line in (head, *rows(day)))


def rows(day: date) -> Iterator[ListRow]:
    """Every row, by provider, then in the package's order, then by the day from which a price holds."""
    packaged = {provider.id: provider for provider in data.providers}
    for connector_type, provider_id in PROVIDERS.items():
        provider = packaged[provider_id]
        priced = [
            (model, _rows(connector_type, model, day)) for model in provider.models if not NOT_CHAT.search(model.id)
        ]
        served = {model.id: _names(connector_type, provider, model) for model, found in priced if found}
        owners: dict[str, str] = {}
        for model_id, names in served.items():
            for name in names:
                if owners.setdefault(name, model_id) != model_id:
                    raise ValueError(f"{connector_type}: {name} would name both {owners[name]} and {model_id}")
        for model, found in priced:
            names = tuple(name for name in served.get(model.id, ()) if not _implied(connector_type, name, owners))
            yield from (msgspec.structs.replace(row, names=names) for row in found if names)


def _rows(connector_type: str, model: types.ModelInfo, day: date) -> list[ListRow]:
    """What a model costs, by the day from which it does; without names. Empty for one that the list does not hold."""
    free = connector_type == "openrouter" and model.id.endswith(":free")
    found = (_row(connector_type, start, price, free=free) for start, price in _periods(model, day))
    return [row for row in found if row is not None]


def _implied(connector_type: str, name: str, owners: Mapping[str, str]) -> bool:
    """Whether a look-up of `name` comes to its model by a shorter name too."""
    shorter = (form for form in forms(connector_type, name) if form != name and form in owners)
    return owners.get(next(shorter, "")) == owners[name]


def _periods(model: types.ModelInfo, day: date) -> Iterator[tuple[date | None, types.ModelPrice]]:
    """The price that holds on `day`, with no start, then those that are announced. Prices by the hour are not taken."""
    at = datetime(day.year, day.month, day.day, tzinfo=UTC)
    yield None, model.get_prices(at)
    if isinstance(model.prices, list):
        for conditional in model.prices:
            constraint = conditional.constraint
            if isinstance(constraint, types.StartDateConstraint) and constraint.start_date > day:
                yield constraint.start_date, conditional.prices


def _row(connector_type: str, start: date | None, price: types.ModelPrice, *, free: bool) -> ListRow | None:
    """None for a model that does not answer in text, or that has no price. `free` models need none."""
    given = {ours: getattr(price, theirs) for theirs, ours in TEXT.items()}
    if free and not any(given.values()):
        given |= {"input": Decimal(0), "output": Decimal(0)}
    if given["input"] is None or given["output"] is None or any(getattr(price, name) for name in OTHER_OUTPUT):
        return None
    tiers: dict[int, dict[str, Decimal]] = {}
    for kind, value in given.items():
        for tier in value.tiers if isinstance(value, types.TieredPrices) else ():
            tiers.setdefault(tier.start, {})[kind] = _dollars(tier.price)
    return ListRow(
        provider=connector_type,
        names=(),
        start=start,
        tiers=tuple(ListTier(above=above, **tiers[above]) for above in sorted(tiers)),
        **{kind: _dollars(_base(value)) for kind, value in given.items() if value is not None},
    )


def _base(value: Decimal | types.TieredPrices) -> Decimal:
    return value.base if isinstance(value, types.TieredPrices) else value


def _dollars(value: Decimal) -> Decimal:
    """Rounded to a billionth, without zeros at its end and without an exponent."""
    rounded = value.quantize(DECIMALS).normalize()
    return rounded.quantize(Decimal(1)) if rounded == rounded.to_integral_value() else rounded


# --- names ------------------------------------------------------------------------------------------------------------


def _names(connector_type: str, provider: types.Provider, model: types.ModelInfo) -> tuple[str, ...]:
    """The names under which the list knows a model; none when the connector type does not serve it."""
    if connector_type == "gemini" and not model.id.startswith(("gemini-", "gemma-")):
        return ()  # Vertex AI sells models of other makers, the Gemini API does not
    found: dict[str, None] = {}
    for literal in (model.id, *_literals(model.match)):
        served = provider.find_model(literal)
        if served is model or (served is None and literal == model.id):
            found[_name(connector_type, literal.lower())] = None
    return tuple(name for name in found if _fits(connector_type, name))


def _literals(match: types.MatchLogic) -> Iterator[str]:
    """The pieces of text in a rule of the package that may be names."""
    match match:
        case types.ClauseOr(or_=clauses) | types.ClauseAnd(and_=clauses):
            for clause in clauses:
                yield from _literals(clause)
        case types.ClauseEquals(equals=text) | types.ClauseStartsWith(starts_with=text):
            yield text
        case types.ClauseContains(contains=text) | types.ClauseEndsWith(ends_with=text):
            yield text
        case types.ClauseRegex():
            return


def _name(connector_type: str, literal: str) -> str:
    if connector_type == "bedrock":
        return BEDROCK_VERSION(AWS_REGION.sub("", literal))
    return re.sub(r"-0?$" if literal.startswith("ft:") else r"-$", "", literal)


def _fits(connector_type: str, name: str) -> bool:
    """Whether a name has the shape of that provider's names; parts of names do not."""
    match connector_type:
        case "openrouter":
            return "/" in name
        case "bedrock":
            return re.fullmatch(r"[\w-]+(\.[\w-]+)+", name) is not None and not name.startswith(("claude", "gpt"))
        case _:
            return re.fullmatch(r"(ft:)?[\w.-]+", name) is not None and not HALF_DATE.search(name)


if __name__ == "__main__":
    sys.exit(main())
