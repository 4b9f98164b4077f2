"""What resolving needs, held in memory: no call waits for a query.

A snapshot is good as long as the store's version has not moved. This process's own changes are seen at once; another
process's within `POLL_S`, because a task asks for the version that often.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Mapping
from datetime import datetime
from typing import Final

from patchbay_server.errors import PatchbayError
from patchbay_server.store.protocol import Store
from patchbay_server.types import Snapshot

POLL_S: Final = 1.0
OWNERS_MAX: Final = 5_000
RECENT_MAX: Final = 50_000

log = logging.getLogger(__name__)


class Snapshots:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._version = -1
        self._by_owner: OrderedDict[str, Snapshot] = OrderedDict()
        self._recent: OrderedDict[str, datetime] = OrderedDict()

    @property
    def recent(self) -> Mapping[str, datetime]:
        """When this process last used a connector, by uid: newer than what a snapshot says."""
        return self._recent

    async def get(self, owner: str) -> Snapshot:
        """Raises: PatchbayError: DEPENDENCY_UNAVAILABLE when it is not held and the store does not answer."""
        held = self._by_owner.get(owner)
        if held is not None and held.version == self._version:
            self._by_owner.move_to_end(owner)
            return held
        snapshot = await self._store.snapshot(owner)
        self._version = max(self._version, snapshot.version)
        self._by_owner[owner] = snapshot
        while len(self._by_owner) > OWNERS_MAX:
            self._by_owner.popitem(last=False)
        return snapshot

    async def refresh(self) -> None:
        """Learn the store's version now; called after each change this process makes."""
        self._version = max(self._version, await self._store.version())

    def used(self, uid: str, at: datetime) -> None:
        """Remember that a connector was used, for the rule that the most recently used one answers."""
        self._recent[uid] = at
        self._recent.move_to_end(uid)
        while len(self._recent) > RECENT_MAX:
            self._recent.popitem(last=False)

    async def watch(self) -> None:
        """Follow other processes' changes until cancelled. While the store is down the last good snapshots go on
        serving.
        """
        down = False
        while True:
            await asyncio.sleep(POLL_S)
            try:
                await self.refresh()
            except PatchbayError as error:
                if not down:
                    log.warning("store does not answer, serving from memory: %s", error.message)
                down = True
            else:
                down = False
