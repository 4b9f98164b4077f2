"""What an owner says about a connector besides its credential, and what of it may be changed."""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from patchbay_server.errors import FieldViolation, PatchbayError, Reason
from patchbay_server.types import (
    CONTROL,
    LABEL_KEY,
    LABEL_VALUE_CHARS_MAX,
    LABELS_MAX,
    ConnectorSettings,
    ConnectorState,
)

NAME_CHARS_MAX: Final = 80
_TIMEOUT_RANGES_S: Final = {
    "connect_timeout": (0.1, 60.0),
    "first_byte_timeout": (1.0, 3600.0),
    "idle_timeout": (1.0, 3600.0),
    "call_timeout": (1.0, 86_400.0),
}
UPDATABLE: Final = frozenset({"display_name", "model_hint", "state", "settings", "labels"}) | frozenset(
    f"settings.{name}" for name in _TIMEOUT_RANGES_S
)
"""Paths of an update mask."""


class Draft(msgspec.Struct, frozen=True, kw_only=True):
    """What an owner says about a connector, besides its credential."""

    display_name: str = ""
    model_hint: str = ""
    state: ConnectorState | None = None
    settings: ConnectorSettings = ConnectorSettings()
    labels: Mapping[str, str] = {}


def checked_mask(mask: Sequence[str]) -> frozenset[str]:
    paths = frozenset(mask)
    unknown = sorted(paths - UPDATABLE)
    if unknown or not paths:
        what = f"{unknown[0]!r} cannot be updated" if unknown else "name what is to change"
        raise PatchbayError(
            Reason.INVALID_REQUEST, f"update_mask: {what}; it takes {', '.join(sorted(UPDATABLE))}", field="update_mask"
        )
    return paths


def check_draft(draft: Draft, paths: frozenset[str] | set[str]) -> None:
    violations: list[FieldViolation] = []
    name = draft.display_name.strip()
    if "display_name" in paths and not (0 < len(name) <= NAME_CHARS_MAX and not CONTROL.search(name)):
        violations.append(
            FieldViolation("connector.display_name", f"1 to {NAME_CHARS_MAX} characters, no control characters")
        )
    hint = draft.model_hint.strip()
    if "model_hint" in paths and (len(hint) > NAME_CHARS_MAX or CONTROL.search(hint)):
        violations.append(
            FieldViolation("connector.model_hint", f"at most {NAME_CHARS_MAX} characters, no control characters")
        )
    for field, (low, high) in _TIMEOUT_RANGES_S.items():
        value: float | None = getattr(draft.settings, field + "_s")
        if {"settings", f"settings.{field}"} & paths and value is not None and not low <= value <= high:
            violations.append(FieldViolation(f"connector.settings.{field}", f"{low:g} to {high:g} seconds"))
    if "labels" in paths:
        violations += _label_violations(draft.labels)
    if violations:
        first = violations[0]
        raise PatchbayError(Reason.INVALID_REQUEST, f"{first.field}: {first.description}", violations=violations[:20])


def next_state(now: ConnectorState, wanted: ConnectorState | None) -> ConnectorState:
    if wanted is ConnectorState.DISABLED and now is not ConnectorState.REVOKED:
        return wanted
    if wanted is ConnectorState.ACTIVE and now in {ConnectorState.DISABLED, ConnectorState.ACTIVE}:
        return wanted
    hint = "; rotate its credential" if now is ConnectorState.AUTH_INVALID else ""
    raise PatchbayError(
        Reason.INVALID_REQUEST,
        f"an update can disable a connector, or activate a disabled one; this one is {now.value}{hint}",
        field="connector.state",
    )


def _label_violations(labels: Mapping[str, str]) -> list[FieldViolation]:
    violations = []
    if len(labels) > LABELS_MAX:
        violations.append(FieldViolation("connector.labels", "at most 16 labels"))
    for key, value in labels.items():
        if not LABEL_KEY.fullmatch(key) or len(value) > LABEL_VALUE_CHARS_MAX or CONTROL.search(value):
            violations.append(
                FieldViolation(
                    "connector.labels",
                    "keys are 1 to 63 of a-z, 0-9, _, . and -, starting with a letter; values at most 128 characters",
                )
            )
    return violations
