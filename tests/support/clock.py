"""A clock that stands still until a test jumps it."""

from datetime import UTC, datetime, timedelta

START = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)


class Clock:
    """A `core.clock.Clock`. Only what asks it is affected: waits on the event loop go on by themselves."""

    def __init__(self, now: datetime = START) -> None:
        self._now = now
        self._monotonic = 1_000.0

    def now(self) -> datetime:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    def jump(self, seconds: float) -> None:
        """Let `seconds` pass at once."""
        self._now += timedelta(seconds=seconds)
        self._monotonic += seconds
