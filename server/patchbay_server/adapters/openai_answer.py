"""What the readers of chat completions and of the Responses API share: JSON read without trust, pictures, phases."""

import base64
import binascii
import re
from typing import Any, Final

from patchbay_server.adapters.faults import malformed
from patchbay_server.adapters.json_body import decode_leniently, encode, mended, object_or_empty
from patchbay_server.types import MediaPart

FINAL: Final = "final_answer"
"""The phase of a message that says nothing of its phase."""

_PHASE: Final = re.compile(r"[a-z_]{1,32}")
_DATA_URL: Final = re.compile(r"data:(?P<mime_type>[^;,]+)(?:;[^;,]*)*?;base64,")


def decoded(data: bytes) -> Any:
    """The JSON value of `data`, read leniently; None when it cannot be read."""
    try:
        return decode_leniently(data)
    except ValueError:
        return None


def readable(value: Any) -> str | None:
    """`value` if it is text, fit to be passed on; None for anything else."""
    return mended(value) if isinstance(value, str) else None


def whole_number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def numbered_objects(value: Any) -> list[tuple[int, dict[str, Any]]]:
    """The objects of a list with their places in it; none of what is no list."""
    return [(at, item) for at, item in enumerate(value) if isinstance(item, dict)] if isinstance(value, list) else []


def objects(value: Any) -> list[dict[str, Any]]:
    return [item for _, item in numbered_objects(value)]


def picture(address: Any) -> MediaPart | None:
    """The picture that an address holds; None for any other address, which a provider's answer has no use for."""
    found = _DATA_URL.match(address) if isinstance(address, str) else None
    return None if found is None else picture_of(address[found.end() :], found["mime_type"])


def picture_of(data: str, mime_type: str) -> MediaPart:
    """A picture in base64.

    Raises:
        PatchbayError: UPSTREAM_MALFORMED_RESPONSE when it is none.
    """
    try:
        return MediaPart(mime_type=mime_type, data=base64.b64decode(data, validate=True))
    except (binascii.Error, ValueError) as error:
        raise malformed("the provider sent a picture that is not base64") from error


def phase_state(phase: Any) -> bytes:
    """The state that keeps the phase of the messages after it; empty for what is no phase.

    Source: OpenAI's guide to the Responses API: assistant messages are either commentary or the final answer, which is
    to be said again when they are sent back (read 2026-11-20).
    """
    known = isinstance(phase, str) and _PHASE.fullmatch(phase)
    return encode({"type": "message", "phase": phase}) if known else b""


def phase_of(state: bytes) -> str:
    """The phase that a state keeps; empty when it is another state."""
    kept = object_or_empty(state)
    phase = kept.get("phase")
    return phase if isinstance(phase, str) and kept.keys() == {"type", "phase"} and phase_state(phase) else ""
