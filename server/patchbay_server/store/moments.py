"""Moments as databases keep them: whole microseconds since 1970 UTC, alike and sortable in every one of them."""

from datetime import UTC, datetime, timedelta
from typing import Final

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def microseconds(moment: datetime) -> int:
    """Raises: TypeError for a moment without a time zone, which is nobody's moment."""
    return (moment - EPOCH) // _MICROSECOND


def moment(stored: int) -> datetime:
    """Raises: OverflowError, TypeError for what is not a number of microseconds within the years 1 to 9999."""
    return EPOCH + timedelta(microseconds=stored)
