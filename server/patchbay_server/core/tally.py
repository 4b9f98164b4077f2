"""What is counted of calls since the process started, for those who watch it. Numbers and our own words only."""

from collections import Counter

from patchbay_server.errors import Reason
from patchbay_server.types import CallState


class Tally:
    """Counts that only grow. One per process."""

    def __init__(self) -> None:
        self.ends: Counter[tuple[CallState, Reason | None]] = Counter()
        """Calls that ended, by how and why."""
        self.fallbacks: Counter[str] = Counter()
        """Attempts at another connector, by what triggered them."""
        self.unpriced = 0
        """Attempts that used tokens whose price is unknown."""
