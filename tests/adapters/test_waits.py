"""How long a provider asks to be left alone."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchbay_server.adapters.waits import WAIT_S_MAX, retry_after_s, told_in_words_s

NOW = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": " 7 "}, 7.0),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": "Fri, 20 Nov 2026 12:01:00 GMT"}, 60.0),
        ({"retry-after": "Fri, 20 Nov 2026 13:01:00 +0100"}, 60.0),
        ({"retry-after": "Friday, 20-Nov-26 12:01:00 GMT"}, 60.0),
        ({"retry-after": "Fri Nov 20 12:01:00 2026"}, 60.0),
        ({"retry-after": "Fri, 20 Nov 2026 11:59:00 GMT"}, 0.0),
        ({"retry-after": "Fri, 20 Nov 2099 11:59:00 GMT"}, WAIT_S_MAX),
        ({"retry-after": "999999"}, WAIT_S_MAX),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "1e3"}, None),
        ({"retry-after": "1_0"}, None),
        ({"retry-after": "\u0663"}, None),
        ({"retry-after": "5 Nov 99999 1:1:1"}, None),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after-ms": "-1", "retry-after": "7"}, 7.0),
        ({"retry-after-ms": "999999999999"}, WAIT_S_MAX),
    ],
)
def test_the_wait_is_read_from_milliseconds_seconds_or_a_date(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers, NOW) == seconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("20ms. Visit the page", 0.02),
        ("1.898s", 1.898),
        ("6m0s.", 360.0),
        ("1h2m3s", 3723.0),
        ("1m30.5s", 90.5),
        ("17 seconds.", 17.0),
        ("1 second", 1.0),
        ("5 minutes", 300.0),
        ("99h", WAIT_S_MAX),
        ("17", None),
        ("17 tokens", None),
        ("a while", None),
        ("", None),
    ],
)
def test_a_wait_in_words_is_read_by_its_units(text: str, seconds: float | None) -> None:
    assert told_in_words_s(text) == (None if seconds is None else pytest.approx(seconds))


@given(st.text() | st.from_regex(r"\A[A-Za-z]{3}, \d+ \w+ \d+ \d+:\d+:\d+ ?\S*\Z"))
def test_any_header_gives_a_bounded_wait_or_none(value: str) -> None:
    seconds = retry_after_s({"retry-after": value, "retry-after-ms": value[::-1]}, NOW)
    assert seconds is None or 0 <= seconds <= WAIT_S_MAX
