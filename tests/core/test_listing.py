"""Filtering, ordering and paging of lists."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchbay_server.core.listing import (
    PAGE_SIZE_DEFAULT,
    PAGE_SIZE_MAX,
    Field,
    Query,
    Result,
    all_rows,
    page_size,
    select,
)
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.store.protocol import Page

MORNING = datetime(2026, 1, 1, 8, tzinfo=UTC)


class Row(msgspec.Struct, frozen=True):
    id: str
    kind: str = "a"
    used_at: datetime | None = None
    tokens: int | None = None
    labels: dict[str, str] = {}


FIELDS: dict[str, Field[Row]] = {
    "name": Field(read=lambda row, _: row.id, orders=True, filters=False),
    "kind": Field(read=lambda row, _: row.kind, orders=True),
    "used_time": Field(read=lambda row, _: row.used_at, orders=True, filters=False),
    "tokens": Field(read=lambda row, _: row.tokens, number=True, orders=True),
    "labels.": Field(read=lambda row, key: row.labels.get(key)),
}


def page(rows: list[Row], **query: object) -> Result[Row]:
    return select(rows, Query(**query), FIELDS, key=lambda row: row.id, order="name")


def found(rows: list[Row], **query: object) -> list[str]:
    return [row.id for row in page(rows, **query).items]


def refused(**query: object) -> str:
    """The field that a refused query is refused for."""
    with pytest.raises(PatchbayError) as caught:
        page([Row("1")], **query)
    assert caught.value.reason is Reason.INVALID_REQUEST
    return caught.value.violations[0].field


def rows_of(*ids: str, **given: object) -> list[Row]:
    return [Row(id_, **given) for id_ in ids]


# --- filter ---

MIXED = [
    Row("1", "a", labels={"team": "search", "env": "x y"}),
    Row("2", "b", labels={"team": 'qu"ote'}),
    Row("3", "a", labels={"team": "mail", "dotted.key": "v"}),
]


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("", ["1", "2", "3"]),
        ("   ", ["1", "2", "3"]),
        ('kind = "a"', ["1", "3"]),
        ("kind=a", ["1", "3"]),
        ("kind != a", ["2"]),
        ('kind = "a" AND labels.team = mail', ["3"]),
        ('kind="a"AND labels.team="mail"', ["3"]),
        ('labels.team = search AND kind = a AND labels.env = "x y"', ["1"]),
        ('labels.team = "qu\\"ote"', ["2"]),
        ("labels.dotted.key = v", ["3"]),
        ("labels.absent = x", []),
        ('labels.absent = ""', ["1", "2", "3"]),
        ("labels.team != search", ["2", "3"]),
        ('kind = "AND"', []),
    ],
)
def test_a_filter_keeps_what_all_its_comparisons_hold_for(text: str, ids: list[str]) -> None:
    assert found(MIXED, filter=text) == ids


COUNTED = [Row(str(index), tokens=tokens) for index, tokens in enumerate([None, 0, 9, 10, 100, 2**63 - 1, -5], start=1)]


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("tokens = 9", "3"),
        ("tokens = 009", "3"),
        ("tokens != 9", "124567"),
        ("tokens > 9", "456"),
        ("tokens >= 9", "3456"),
        ("tokens < 9", "27"),
        ("tokens <= 9", "237"),
        ("tokens<=9 AND tokens>=0", "23"),
        ("tokens > -6", "234567"),
        ('tokens = ""', "1"),
        ('tokens != ""', "234567"),
        ("tokens > 9223372036854775806", "6"),
    ],
)
def test_numbers_are_compared_as_numbers_and_one_that_is_not_set_is_neither_less_nor_more(text: str, ids: str) -> None:
    assert "".join(found(COUNTED, filter=text)) == ids


@pytest.mark.parametrize(("order_by", "ids"), [("tokens", "7234561"), ("tokens desc", "6543271")])
def test_numbers_are_ordered_as_numbers(order_by: str, ids: str) -> None:
    assert "".join(found(COUNTED, order_by=order_by)) == ids
    one = page(COUNTED, order_by=order_by, page_size=3)
    assert "".join(row.id for row in page(COUNTED, order_by=order_by, page_token=one.next_page_token).items) == ids[3:]


@pytest.mark.parametrize(
    "text",
    [
        "kind",
        "kind > a",
        "labels.team <= a",
        "tokens = many",
        "tokens > 1.5",
        'tokens > ""',
        "tokens => 1",
        "tokens > 10000000000000000000",
        "tokens = \N{ARABIC-INDIC DIGIT ONE}",
        "kind = ",
        "kind ~ a",
        'kind = "a',
        "kind = a OR kind = b",
        "kind = a kind = b",
        "kind = a AND",
        "kind = a ANDkind = b",
        "unknown = a",
        "name = 1",
        "kind.sub = a",
        "labels = a",
        "NOT kind = a",
        "(kind = a)",
        "kind = a" + " " * 2_000,
    ],
)
def test_what_is_no_filter_is_refused_naming_the_field(text: str) -> None:
    assert refused(filter=text) == "filter"


def test_a_wrong_filter_is_refused_even_when_there_is_nothing_to_filter() -> None:
    with pytest.raises(PatchbayError):
        page([], filter="unknown = a")


def test_a_refused_filter_says_what_can_be_filtered_by() -> None:
    with pytest.raises(PatchbayError, match=r"kind, tokens, labels\.\{key\}"):
        page([], filter="unknown = a")


# --- order ---

TIMED = [
    Row("1", used_at=MORNING),
    Row("2"),
    Row("3", used_at=MORNING - timedelta(hours=1)),
    Row("4", used_at=MORNING),
    Row("5"),
]


@pytest.mark.parametrize(
    ("order_by", "ids"),
    [
        ("", "12345"),
        ("name desc", "54321"),
        ("name  desc ", "54321"),
        ("name asc", "12345"),
        ("used_time", "31425"),
        ("used_time desc", "41325"),
    ],
)
def test_rows_are_ordered_with_the_key_last_and_rows_without_a_value_at_the_end(order_by: str, ids: str) -> None:
    assert "".join(found(TIMED, order_by=order_by)) == ids


@pytest.mark.parametrize("order_by", ["unknown", "labels.team", "name down", "name desc, kind", "name,kind"])
def test_an_order_that_does_not_exist_is_refused_naming_the_field(order_by: str) -> None:
    assert refused(order_by=order_by) == "order_by"


# --- pages ---


@pytest.mark.parametrize("count", [0, 1, PAGE_SIZE_MAX - 1, PAGE_SIZE_MAX, 2 * PAGE_SIZE_MAX + 1])
async def test_all_rows_of_a_store_are_read_in_as_few_pages_as_it_can_be(count: int) -> None:
    stored = [f"{number:05}" for number in range(count)]
    asked: list[Page] = []

    async def read(page: Page) -> list[str]:
        asked.append(page)
        return [row for row in stored if row > page.after][: page.size]

    assert await all_rows(read, key=str) == stored
    assert len(asked) == count // PAGE_SIZE_MAX + 1


def test_a_page_has_fifty_rows_unless_asked_otherwise_and_never_more_than_a_thousand() -> None:
    assert [page_size(0), page_size(7), page_size(10**9)] == [PAGE_SIZE_DEFAULT, 7, PAGE_SIZE_MAX]
    assert (PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX) == (50, 1000)


def test_a_negative_page_size_is_refused_naming_the_field() -> None:
    assert refused(page_size=-1) == "page_size"


def test_the_last_page_has_no_token() -> None:
    assert page(rows_of("1", "2"), page_size=2).next_page_token == ""
    assert page([]).next_page_token == ""


def test_a_page_goes_on_where_the_last_one_ended_though_its_last_row_is_gone() -> None:
    for order_by in ["name", "name desc", " name  desc "]:
        rows = rows_of("1", "2", "3", "4")
        one = page(rows, page_size=2, order_by=order_by)
        left = [row for row in rows if row != one.items[-1]]
        two = page(left, page_size=2, order_by=order_by, page_token=one.next_page_token)
        assert {row.id for row in (*one.items, *two.items)} == {"1", "2", "3", "4"}


@given(
    before=st.lists(st.integers(0, 30), unique=True),
    gone=st.sets(st.integers(0, 30)),
    come=st.sets(st.integers(31, 60)),
    size=st.integers(1, 7),
    order=st.sampled_from(["name", "name desc", "used_time", "used_time desc"]),
)
def test_rows_that_stay_are_each_seen_once_however_others_come_and_go(
    before: list[int], gone: set[int], come: set[int], size: int, order: str
) -> None:
    def row(number: int) -> Row:
        return Row(f"{number * 7 % 61:02}", used_at=MORNING + timedelta(hours=number % 4) if number % 3 else None)

    rows = [row(number) for number in before]
    one = page(rows, page_size=size, order_by=order)
    rows = [row(number) for number in before if number not in gone] + [row(number) for number in come]
    seen = list(one.items)
    token = one.next_page_token
    while token:
        rest = page(rows, page_size=size, order_by=order, page_token=token)
        assert rest.next_page_token != token
        seen += rest.items
        token = rest.next_page_token
    ids = [row.id for row in seen]
    assert len(set(ids)) == len(ids)
    if one.next_page_token:
        assert {row(number).id for number in before if number not in gone} <= set(ids)
    whole = page([row(number) for number in range(61)], page_size=1000, order_by=order)
    rank = {row.id: index for index, row in enumerate(whole.items)}
    assert all(rank[a] < rank[b] for a, b in pairwise(ids))


def test_a_token_is_good_for_its_own_query_only() -> None:
    rows = rows_of("1", "2", "3")
    token = page(rows, page_size=1, scope="owner a").next_page_token
    assert found(rows, page_token=token, page_size=2, scope="owner a") == ["2", "3"]
    for other in [{"scope": "owner b"}, {"filter": "kind = a"}, {"order_by": "name desc"}]:
        assert refused(page_token=token, **({"scope": "owner a"} | other)) == "page_token"


@pytest.mark.parametrize("token", ["x", "AAAA", "e30=", "W10=", "\N{SNOWMAN}", "\ud800", "WyJhIixbMSwyLDNdXQ=="])
def test_a_made_up_token_is_refused_naming_the_field(token: str) -> None:
    assert refused(page_token=token) == "page_token"
