"""How many tokens a connector has used this month, and whether its cap lets it use more.

A soft cap is checked before a call: counts are kept here as calls end and read from the store now and then, and a call
that was admitted may pass the cap. Under a hard cap each attempt first holds, in the store, as many tokens as it can
use at the most; the attempt's record gives the hold back as it counts what was really used. Holds that nobody gives
back expire.
"""

from collections.abc import Sequence
from typing import Final

from patchbay_server.core.clock import Clock
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.store.protocol import Store
from patchbay_server.types import CapMode, Connector, Hold, month_of

AGE_MAX_S: Final = 5.0
"""How long counts are believed before the store is asked again: what other processes used is seen within this time."""
CONNECTORS_MAX: Final = 50_000
HOLD_MARGIN_S: Final = 60.0
"""How much longer than its call a hold lasts, so that none expires while its record is being written."""
_FOREIGN: Final = "the organisation's default connector has reached its cap"


def is_hard(connector: Connector) -> bool:
    """Whether attempts at this connector have to hold tokens."""
    return connector.monthly_token_cap is not None and connector.cap_mode is CapMode.HARD


class Meter:
    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._month = ""
        self._counts: dict[str, tuple[float, int]] = {}

    async def check_cap(self, connector: Connector, owner: str) -> None:
        """Refuse a connector that has a cap which this month's tokens have reached.

        Args:
            owner: on whose behalf; another owner's connector is not named to it.

        Raises:
            PatchbayError: CAP_REACHED, DEPENDENCY_UNAVAILABLE.
        """
        cap = connector.monthly_token_cap
        if cap is not None and await self._used(connector.uid) >= cap:
            raise cap_reached(connector, owner)

    async def check_room(self, connector: Connector, owner: str, tokens: int) -> None:
        """Refuse a connector that an attempt which may use so many tokens could not be made at, as things stand.

        Raises:
            PatchbayError: CAP_REACHED, DEPENDENCY_UNAVAILABLE.
        """
        await self.check_cap(connector, owner)
        if is_hard(connector) and (await self.headroom([connector]))[connector.uid] < tokens:
            raise cap_reached(connector, owner, wanted=tokens)

    async def hold(self, connector: Connector, owner: str, hold: Hold) -> None:
        """Hold tokens of a hard cap for one attempt, or make the hold that it has so large.

        Raises:
            PatchbayError: CAP_REACHED when that many are not left; DEPENDENCY_UNAVAILABLE.
        """
        cap = connector.monthly_token_cap
        if cap is None:
            return
        now = self._clock.now()
        if not await self._store.hold_tokens(hold, cap, month_of(now), now):
            raise cap_reached(connector, owner, wanted=hold.tokens)

    async def headroom(self, connectors: Sequence[Connector]) -> dict[str, int]:
        """Tokens that each connector may still use this month, by uid; those without a cap are left out.

        Raises:
            PatchbayError: DEPENDENCY_UNAVAILABLE.
        """
        capped = {c.uid: c for c in connectors if c.monthly_token_cap is not None}
        if not capped:
            return {}
        now = self._clock.now()
        uses = await self._store.cap_use(list(capped), month_of(now), now)
        left: dict[str, int] = {}
        for uid, connector in capped.items():
            taken = uses[uid].tokens + (uses[uid].held if is_hard(connector) else 0)
            left[uid] = max(0, (connector.monthly_token_cap or 0) - taken)
        return left

    def add(self, uid: str, tokens: int) -> None:
        """Count the tokens of an attempt that ended; only connectors with a cap are counted."""
        held = self._counts.get(uid)
        if held is not None:
            self._counts[uid] = (held[0], held[1] + tokens)

    async def _used(self, uid: str) -> int:
        month = month_of(self._clock.now())
        if month != self._month or len(self._counts) > CONNECTORS_MAX:
            self._month = month
            self._counts.clear()
        now = self._clock.monotonic()
        held = self._counts.get(uid)
        if held is not None and now - held[0] < AGE_MAX_S:
            return held[1]
        before = held[1] if held is not None else 0
        # What ends while the store is read may not be in its answer: it is counted beside it, twice rather than never.
        self._counts[uid] = (now - AGE_MAX_S, before)
        used = (await self._store.month_tokens([uid], month)).get(uid, 0)
        used += self._counts[uid][1] - before if uid in self._counts else 0
        self._counts[uid] = (now, used)
        return used


def cap_reached(connector: Connector, owner: str, *, wanted: int = 0) -> PatchbayError:
    """CAP_REACHED as `owner`'s callers may be told of it; `wanted` are the tokens that a hard cap could not give."""
    own = connector.owner == owner
    reached = f"connector {connector.id!r} has reached its cap of {connector.monthly_token_cap} tokens"
    if wanted:
        reached = (
            f"connector {connector.id!r} has fewer than the {wanted} tokens left that this call may use,"
            f" of its hard cap of {connector.monthly_token_cap},"
        )
    return PatchbayError(
        Reason.CAP_REACHED,
        f"{reached if own else _FOREIGN} this month; it is free again on the 1st"
        " (UTC), or when an administrator raises the cap",
        quota=f"{connector.name if own else 'organisation_default'}:monthly_tokens",
    )
