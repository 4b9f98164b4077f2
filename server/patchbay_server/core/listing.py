"""Filter, order and page a list that is held in memory, after the rules that every list of the API shares.

`filter` is comparisons joined by AND (`type = "openai" AND month_tokens > 1000`): texts are equal or not, numbers also
less or more. `order_by` is one field with an optional ` desc`. A page token names the last row seen, not a position, so
that rows which come or go meanwhile shift nothing; it is good for the same query only.
"""

import base64
import hashlib
import operator
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Generic, TypeVar

import msgspec

from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.store.protocol import Page

PAGE_SIZE_DEFAULT: Final = 50
PAGE_SIZE_MAX: Final = 1000
QUERY_CHARS_MAX: Final = 2_000

T = TypeVar("T")
Value = str | int | datetime | None
_Place = tuple[bool, str, str]
"""Where a row stands: whether it lacks a value, which comes last; its value; its key."""

_COMPARISON: Final = re.compile(
    r"\s*(?P<field>[a-z][a-z0-9_.-]*)\s*(?P<operator>!=|<=|>=|=|<|>)"
    r'\s*(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<bare>[A-Za-z0-9_.:/-]+))\s*'
)

_NUMBER: Final = re.compile(r"-?[0-9]{1,19}")
_SAME: Final[Mapping[str, Callable[[Any, Any], bool]]] = {"=": operator.eq, "!=": operator.ne}
_RANKED: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """A list request as it came. `scope` is what else the list depends on (the owner), so that tokens do not travel
    between lists.
    """

    page_size: int = 0
    page_token: str = ""
    filter: str = ""
    order_by: str = ""
    scope: str = ""


class Result(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    items: tuple[T, ...]
    next_page_token: str = ""


class Field(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """A field that may be filtered or ordered by. A key that ends in `.` stands for a map; its reader gets the rest of
    the path. `number` says that its values are 64-bit numbers, or None.
    """

    read: Callable[[T, str], Value]
    number: bool = False
    filters: bool = True
    orders: bool = False


class _Token(msgspec.Struct, frozen=True, array_like=True):
    query: str
    after: _Place


async def all_rows(read: Callable[[Page], Awaitable[Sequence[T]]], *, key: Callable[[T], str]) -> list[T]:
    """Every row of a list of the store, read in as few pages as it can be.

    Args:
        key: a row's page key.
    """
    found: list[T] = []
    while True:
        rows = await read(Page(size=PAGE_SIZE_MAX, after=key(found[-1]) if found else ""))
        found += rows
        if len(rows) < PAGE_SIZE_MAX:
            return found


def page_size(asked: int) -> int:
    """Raises: PatchbayError: INVALID_REQUEST for a negative size."""
    if asked < 0:
        raise PatchbayError(Reason.INVALID_REQUEST, "page_size must not be negative", field="page_size")
    return min(asked or PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)


def select(
    items: Iterable[T], query: Query, fields: Mapping[str, Field[T]], *, key: Callable[[T], str], order: str
) -> Result[T]:
    """The page of `items` that `query` asks for.

    Args:
        fields: what may be filtered and ordered by.
        key: a text that is unique in the list; the last order.
        order: the field ordered by where the query names none.

    Raises:
        PatchbayError: INVALID_REQUEST naming `page_size`, `page_token`, `filter` or `order_by`.
    """
    size = page_size(query.page_size)
    tests = _tests(query.filter, fields)
    wanted = [item for item in items if all(test(item) for test in tests)]
    read, descending = _order(query.order_by or order, fields)

    def place(item: T) -> _Place:
        value = read(item, "")
        return (value is None, _text(value), key(item))

    known = sorted((i for i in wanted if not place(i)[0]), key=place, reverse=descending)
    rows = known + sorted((i for i in wanted if place(i)[0]), key=place)
    start = _start(rows, _decode(query), place, descending=descending) if query.page_token else 0
    page = tuple(rows[start : start + size])
    more = start + size < len(rows)
    return Result(items=page, next_page_token=_encode(query, place(page[-1])) if more else "")


def _start(rows: Sequence[T], after: _Place, place: Callable[[T], _Place], *, descending: bool) -> int:
    """The index of the first row past `after`, whether or not that row still exists."""

    def passed(here: _Place) -> bool:
        unset = here[0]
        if unset != after[0]:
            return unset
        return here < after if descending and not unset else here > after

    return next((index for index, row in enumerate(rows) if passed(place(row))), len(rows))


def _tests(text: str, fields: Mapping[str, Field[T]]) -> list[Callable[[T], bool]]:
    if not text.strip():
        return []
    if len(text) > QUERY_CHARS_MAX:
        raise _bad_filter("it is too long", fields)
    tests: list[Callable[[T], bool]] = []
    rest = text
    while True:
        match = _COMPARISON.match(rest)
        if match is None:
            raise _bad_filter(f"cannot read {rest[:40]!r}", fields)
        tests.append(_test(match, fields))
        rest = rest[match.end() :]
        if not rest:
            return tests
        if not re.match(r"AND\b", rest):
            raise _bad_filter(f"expected AND before {rest[:40]!r}", fields)
        rest = rest[3:]


def _test(match: re.Match[str], fields: Mapping[str, Field[T]]) -> Callable[[T], bool]:
    name = match["field"]
    head, dot, tail = name.partition(".")
    field = fields.get(name) or fields.get(head + dot)
    if field is None or not field.filters:
        raise _bad_filter(f"there is no field {name!r} to filter by", fields)
    quoted = match["quoted"]
    value = match["bare"] if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
    read = field.read
    if same := _SAME.get(match["operator"]):
        wanted = _text(_number(name, value, fields)) if field.number and value else value
        return lambda item: same(_text(read(item, tail)), wanted)
    if not field.number:
        raise _bad_filter(f"{name} takes = and != only", fields)
    ranked, limit = _RANKED[match["operator"]], _number(name, value, fields)
    return lambda item: (here := read(item, tail)) is not None and ranked(here, limit)


def _number(name: str, value: str, fields: Mapping[str, Field[T]]) -> int:
    if not _NUMBER.fullmatch(value):
        raise _bad_filter(f"{name} is a whole number, not {value[:40]!r}", fields)
    return int(value)


def _bad_filter(what: str, fields: Mapping[str, Field[T]]) -> PatchbayError:
    names = ", ".join(name + "{key}" if name.endswith(".") else name for name, field in fields.items() if field.filters)
    return PatchbayError(
        Reason.INVALID_REQUEST,
        f'filter: {what}; write comparisons joined by AND, such as field = "value", over: {names}',
        field="filter",
    )


def _order(text: str, fields: Mapping[str, Field[T]]) -> tuple[Callable[[T, str], Value], bool]:
    name, _, direction = text.strip().partition(" ")
    field = fields.get(name)
    if field is None or not field.orders or direction.strip() not in {"", "asc", "desc"}:
        names = ", ".join(name for name, field in fields.items() if field.orders)
        raise PatchbayError(
            Reason.INVALID_REQUEST, f"order_by takes one of {names}, with ` desc` for descending", field="order_by"
        )
    return field.read, direction.strip() == "desc"


def _text(value: Value) -> str:
    if isinstance(value, datetime):
        return value.isoformat(timespec="microseconds")
    if isinstance(value, int):
        return f"{value + 2**63:020d}"  # in the order of the numbers, negative ones included
    return value or ""


def _query_digest(query: Query) -> str:
    text = "\0".join((query.scope, query.filter, query.order_by))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _encode(query: Query, after: _Place) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(_Token(_query_digest(query), after))).decode()


def _decode(query: Query) -> _Place:
    try:
        token = msgspec.json.decode(base64.urlsafe_b64decode(query.page_token.encode()), type=_Token)
    except (ValueError, msgspec.DecodeError):
        token = None
    if token is None or token.query != _query_digest(query):
        raise PatchbayError(
            Reason.INVALID_REQUEST,
            "page_token must come from the page before, with the other fields unchanged",
            field="page_token",
        )
    return token.after
