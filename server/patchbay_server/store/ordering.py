"""The order in which a group's records may come, the same for every store."""

from collections.abc import Hashable, Sequence

from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.types import AttemptClosed, AttemptOpened, CallClosed, CallOpened, Record


def check_order(records: Sequence[Record]) -> None:
    """Whether the group's records of each call come in the order of their kinds, so that the group may be written kind
    by kind.

    Raises:
        INTERNAL for a record that opens what a record before it in the group opens or belongs to.
    """
    seen: set[Hashable] = set()
    for record in records:
        match record:
            case CallOpened(call_id=call_id):
                _open(call_id, seen)
            case AttemptOpened(call_id=call_id, number=number):
                seen.add(call_id)
                _open((call_id, number), seen)
            case AttemptClosed(call_id=call_id, number=number):
                seen.update((call_id, (call_id, number)))
            case CallClosed(call_id=call_id):
                seen.add(call_id)


def _open(key: Hashable, seen: set[Hashable]) -> None:
    if key in seen:
        raise PatchbayError(Reason.INTERNAL, f"the group opens {key} after a record of it")
    seen.add(key)
