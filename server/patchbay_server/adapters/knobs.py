"""Fields that a provider or model lacks: refused by name; knobs are left out instead where the caller allowed that."""

from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.types import Notice, NoticeCode


class Knobs:
    """What becomes of the fields of `config` that cannot be expressed. Content has no such choice: it is refused.

    Args:
        droppable: the caller allowed generation knobs to be left out.
    """

    def __init__(self, *, droppable: bool) -> None:
        self._droppable = droppable
        self._notices: list[Notice] = []

    @property
    def notices(self) -> tuple[Notice, ...]:
        """One for each field that was left out."""
        return tuple(self._notices)

    def refuse(self, field: str, message: str) -> None:
        """Leave the knob `field` out with a notice, if that is allowed.

        Raises:
            PatchbayError: FEATURE_UNSUPPORTED naming `field` when it is not.
        """
        if not self._droppable:
            raise unsupported(field, message)
        self._notices.append(Notice(code=NoticeCode.FIELD_DROPPED, message=message, field=field))


def unsupported(field: str, message: str) -> PatchbayError:
    """The refusal of a field that the provider or model cannot express."""
    return PatchbayError(Reason.FEATURE_UNSUPPORTED, message, field=field)
