"""How long a provider asks to be left alone, read from the headers of its answer."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

WAIT_S_MAX: Final = 86_400.0
"""One day. A longer wait is shortened to it, so that a hostile header cannot put a connector away for good."""

_NUMBER: Final = re.compile(r"[0-9]{1,12}(?:\.[0-9]{0,9})?")
_UNITS_S: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001, "second": 1.0, "seconds": 1.0, "minutes": 60.0}
_PIECE: Final = re.compile(
    rf" ?(?P<number>[0-9]{{1,12}}(?:\.[0-9]{{1,9}})?) ?(?P<unit>{'|'.join(_UNITS_S)})(?![A-Za-z])"
)
_DATE_CHARS_MAX: Final = 64


def retry_after_s(headers: Mapping[str, str], now: datetime) -> float | None:
    """Seconds to wait before the next try, or None when the provider did not say.

    Reads `retry-after-ms` (milliseconds), then `retry-after` (seconds, whole or not, or an HTTP date). Past dates give
    0.0; at most one day. Negative numbers and text say nothing.

    Args:
        headers: names in lower case.
        now: when the answer was received, aware.

    Source: RFC 9110, 10.2.3; the wait rules of the openai library 3.52.0 for `retry-after-ms` (read 2026-11-20).
    """
    milliseconds = _number(headers.get("retry-after-ms", ""))
    if milliseconds is not None:
        return min(milliseconds / 1000, WAIT_S_MAX)
    value = headers.get("retry-after", "").strip()
    seconds = _number(value)
    if seconds is None:
        seconds = _seconds_until(value, now)
    return None if seconds is None else min(seconds, WAIT_S_MAX)


def told_in_words_s(text: str) -> float | None:
    """Seconds of the duration that `text` starts with, such as `1m30.5s`, `20ms` or `17 seconds`; None without one.

    At most one day.
    """
    seconds, at = None, 0
    while piece := _PIECE.match(text, at):
        seconds = (seconds or 0.0) + float(piece["number"]) * _UNITS_S[piece["unit"]]
        at = piece.end()
    return None if seconds is None else min(seconds, WAIT_S_MAX)


def _number(value: str) -> float | None:
    value = value.strip()
    return float(value) if _NUMBER.fullmatch(value) else None


def _seconds_until(value: str, now: datetime) -> float | None:
    # A date holds letters; what is left of the numbers by now (a sign, an exponent) is no date either.
    if not value or len(value) > _DATE_CHARS_MAX or not value[0].isalpha():
        return None
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, OverflowError, IndexError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - now).total_seconds())
