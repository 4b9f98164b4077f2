"""What is wrong with an answer itself: it cannot be read, ends too soon, or is of another kind than was asked for.

What a provider's own refusal means is no business of this module.
"""

from collections.abc import Sequence
from typing import Final, TypeVar

import msgspec

from patchbay_server.adapters import json_body
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.types import Event

ACCEPTED: Final = 200
"""The status of an answer that turns out to be, or to end in, a failure."""
RAW_REASON_CHARS_MAX: Final = 64
"""What is repeated of a provider's word for the end of an answer."""

_T = TypeVar("_T")


def decoded(decoder: msgspec.json.Decoder[_T], data: bytes | msgspec.Raw) -> _T:
    """The value of untrusted bytes.

    Raises:
        PatchbayError: UPSTREAM_MALFORMED_RESPONSE when they are not what `decoder` expects.
    """
    try:
        return json_body.typed(decoder, bytes(data))
    except ValueError as error:
        raise malformed("the provider sent data that is not the JSON it documents") from error


def malformed(message: str) -> PatchbayError:
    return PatchbayError(Reason.UPSTREAM_MALFORMED_RESPONSE, message)


def unfinished(*, opened: bool) -> PatchbayError:
    """What the end of an answer means before its end marker came."""
    if opened:
        return PatchbayError(Reason.UPSTREAM_TRUNCATED, "the provider's answer ended before its end marker; try again")
    return PatchbayError(Reason.UPSTREAM_EMPTY_STREAM, "the provider's answer held nothing; try again")


def not_streamed() -> PatchbayError:
    """What a whole answer to a streaming call means."""
    return PatchbayError(
        Reason.STREAMING_UNSUPPORTED, "the provider answered a streaming call with a whole message; use Chat"
    )


class Held:
    """The failure of an answer, kept until what the same frame told beside it has reached the caller: a provider that
    fails may count the tokens of its failure all the same. A reader checks it before each frame and at the end.
    """

    def __init__(self) -> None:
        self._failure: PatchbayError | None = None

    @property
    def is_held(self) -> bool:
        return self._failure is not None

    @property
    def failure(self) -> PatchbayError | None:
        return self._failure

    def keep(self, failure: PatchbayError, told: Sequence[Event] = ()) -> list[Event]:
        """`told`, which the failure follows."""
        self._failure = failure
        return list(told)

    def check(self) -> None:
        """Raises: PatchbayError: the failure, if there is one."""
        if self._failure is not None:
            raise self._failure


def unreadable_models() -> PatchbayError:
    return malformed("the provider sent a list of models that cannot be read")
