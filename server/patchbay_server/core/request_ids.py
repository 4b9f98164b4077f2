"""Request ids: the same request is not run twice at once, and an id is not used for two contents.

Within one process and while it runs; nothing of a request but a hash is kept.
"""

from collections import OrderedDict
from typing import Final

from patchbay_server.errors import PatchbayError, Reason

REQUEST_IDS_MAX: Final = 100_000
"""Ids of calls that are over; the oldest are forgotten. Those of running calls never are."""

_Key = tuple[str, str]
"""An owner, and a request id of one of its callers."""


class RequestIds:
    def __init__(self) -> None:
        self._running: dict[_Key, bytes] = {}
        self._past: OrderedDict[_Key, bytes] = OrderedDict()

    def check(self, owner: str, request_id: str, content_hash: bytes) -> None:
        """Whether a call with this id may begin. Raises as `take`."""
        if not request_id:
            return
        key = (owner, request_id.lower())
        running = self._running.get(key)
        known = self._past.get(key) if running is None else running
        if known is not None and known != content_hash:
            raise PatchbayError(
                Reason.REQUEST_ID_REUSED,
                "this request id was used for another request; make a new one",
                field="request_id",
            )
        if running is not None:
            raise PatchbayError(
                Reason.REQUEST_IN_PROGRESS, "the same request is still running; wait for its answer", retry_after_s=1.0
            )

    def take(self, owner: str, request_id: str, content_hash: bytes) -> None:
        """A call with this id begins.

        Args:
            request_id: a UUID in any case, or "" for a call without one.

        Raises:
            PatchbayError: REQUEST_IN_PROGRESS while the same request runs, REQUEST_ID_REUSED for other content.
        """
        self.check(owner, request_id, content_hash)
        if request_id:
            self._running[(owner, request_id.lower())] = content_hash

    def release(self, owner: str, request_id: str) -> None:
        """The call that took this id is over."""
        key = (owner, request_id.lower())
        content_hash = self._running.pop(key, None)
        if content_hash is None:
            return
        self._past[key] = content_hash
        self._past.move_to_end(key)
        while len(self._past) > REQUEST_IDS_MAX:
            self._past.popitem(last=False)
