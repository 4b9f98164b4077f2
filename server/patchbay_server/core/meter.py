"""How many tokens a connector has used this month, for caps: counted here as calls end, read from the store now and
then.

A soft cap needs no more than that: a call that was admitted may pass it.
"""

from typing import Final

from patchbay_server.core.clock import Clock
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.store.protocol import Store
from patchbay_server.types import Connector, month_of

AGE_MAX_S: Final = 5.0
"""How long counts are believed before the store is asked again: what other processes used is seen within this time."""
CONNECTORS_MAX: Final = 50_000
_FOREIGN: Final = "the organisation's default connector has reached its cap"


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
        if cap is None or await self._used(connector.uid) < cap:
            return
        own = connector.owner == owner
        which = f"connector {connector.id!r} has reached its cap of {cap} tokens"
        raise PatchbayError(
            Reason.CAP_REACHED,
            f"{which if own else _FOREIGN} this month; it is free again on the 1st"
            " (UTC), or when an administrator raises the cap",
            quota=f"{connector.name if own else 'organisation_default'}:monthly_tokens",
        )

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
        used = (await self._store.month_tokens([uid], month)).get(uid, 0)
        self._counts[uid] = (now, used)
        return used
