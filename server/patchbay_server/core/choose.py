"""Which connectors may answer a call, in which order: a pure function over a snapshot.

Order of resolution: the connector that the request names; the owner's preference for the feature; the owner's default;
the owner's most recently used active connector; the organisation's default.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Final

import msgspec

from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.types import (
    ChatRequest,
    Connector,
    ConnectorState,
    FallbackMode,
    Policy,
    ResolvedBy,
    Snapshot,
)

RESERVED: Final = "default"
"""As a connector it means "resolve", as a model "the connector's own"; a connector of that id wins."""
ROUTED_PREFIX: Final = "patchbay/"
_NEVER: Final = datetime.min.replace(tzinfo=UTC)


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """One connector to try, the model to ask it for, and why it is in the plan."""

    connector: Connector
    model: str
    resolved_by: ResolvedBy


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """At least one candidate, in order. `retry_first` allows one more try at the first before the others."""

    candidates: tuple[Candidate, ...]
    retry_first: bool = False


def plan(snapshot: Snapshot, request: ChatRequest, recent: Mapping[str, datetime]) -> Plan:
    """The attempts that `request` allows, best first.

    Args:
        recent: last use by connector uid where it is newer than the snapshot's.

    Raises:
        PatchbayError: CONNECTOR_NOT_FOUND, CONNECTOR_INACTIVE or POLICY_DENIED for a named connector;
            CONNECTOR_NOT_CONFIGURED when nothing resolves; INVALID_REQUEST when no model is known; NOT_IMPLEMENTED for
            the models `patchbay/...`.
    """
    model = snapshot.policy.model_aliases.get(request.model, request.model)
    if model.startswith(ROUTED_PREFIX):
        raise PatchbayError(
            Reason.NOT_IMPLEMENTED,
            f"routing by {model!r} is not available in this version; name a model",
            field="model",
        )
    connector, resolved_by = _resolve(snapshot, request, recent)
    first = Candidate(connector=connector, model=_model(connector, model, snapshot.owner), resolved_by=resolved_by)
    mode = request.fallback or snapshot.policy.default_fallback
    others = (
        Candidate(connector=other, model=other_model, resolved_by=ResolvedBy.FALLBACK)
        for other in _others(snapshot, connector, mode, recent)
        if (other_model := _fallback_model(other, first, model))
    )
    return Plan(candidates=(first, *others), retry_first=mode is FallbackMode.RETRY_THEN_ORG_DEFAULT)


def _resolve(snapshot: Snapshot, request: ChatRequest, recent: Mapping[str, datetime]) -> tuple[Connector, ResolvedBy]:
    if request.connector:
        named = next((c for c in snapshot.connectors if c.id == request.connector), None)
        if named is not None:
            _check_named(named, snapshot.policy)
            return named, ResolvedBy.REQUEST
        if request.connector != RESERVED:
            raise PatchbayError(Reason.CONNECTOR_NOT_FOUND, "there is no such connector", field="connector")
    usable = {c.uid: c for c in snapshot.connectors if may_answer(c, snapshot.policy)}
    preferred = usable.get(snapshot.preferences.get(request.feature, "")) if request.feature else None
    if preferred is not None:
        return preferred, ResolvedBy.FEATURE_PREFERENCE
    default = next((c for c in usable.values() if c.is_default), None)
    if default is not None:
        return default, ResolvedBy.OWNER_DEFAULT
    by_use = _most_recent_first(usable.values(), recent)
    if by_use:
        return by_use[0], ResolvedBy.LAST_USED
    shared = snapshot.organisation_default
    if shared is not None and may_answer(shared, snapshot.policy):
        return shared, ResolvedBy.ORG_DEFAULT
    raise PatchbayError(
        Reason.CONNECTOR_NOT_CONFIGURED,
        "no active connector can answer: create one, activate one, or ask an administrator for an organisation default",
    )


def may_answer(connector: Connector, policy: Policy) -> bool:
    """Whether a connector may be picked: active, and of a type that policy allows."""
    return connector.state is ConnectorState.ACTIVE and type_allowed(connector.type, policy)


def type_allowed(connector_type: str, policy: Policy) -> bool:
    return policy.allowed_types is None or connector_type in policy.allowed_types


def _check_named(connector: Connector, policy: Policy) -> None:
    if connector.state is not ConnectorState.ACTIVE:
        raise PatchbayError(
            Reason.CONNECTOR_INACTIVE,
            f"connector {connector.name} is {connector.state.value}"
            + ("; rotate its credential" if connector.state is ConnectorState.AUTH_INVALID else ""),
            field="connector",
        )
    if not type_allowed(connector.type, policy):
        raise PatchbayError(
            Reason.POLICY_DENIED, f"policy does not allow connectors of type {connector.type!r}", field="connector"
        )


def _most_recent_first(connectors: Iterable[Connector], recent: Mapping[str, datetime]) -> list[Connector]:
    """Latest use first, never used last; ties by id so that every process picks the same."""
    return sorted(
        sorted(connectors, key=lambda c: c.id),
        key=lambda c: max(recent.get(c.uid, _NEVER), c.last_used_at or _NEVER),
        reverse=True,
    )


def _model(connector: Connector, requested: str, owner: str) -> str:
    model = requested if _names_a_model(requested) else connector.model_hint or requested
    if model:
        return model
    which = f"connector {connector.id!r}" if connector.owner == owner else "the organisation's default connector"
    raise PatchbayError(
        Reason.INVALID_REQUEST,
        f"{which} has no model of its own: name one in `model`, or set the connector's `model_hint`",
        field="model",
    )


def _names_a_model(requested: str) -> bool:
    """Whether a request says which model, rather than leaving it to the connector that answers."""
    return requested not in {"", RESERVED}


def _fallback_model(other: Connector, first: Candidate, requested: str) -> str:
    """The model to ask another connector for: the requested one where it can mean the same, else the other's own, else
    none.
    """
    if _names_a_model(requested) and other.type == first.connector.type:
        return first.model
    return other.model_hint or ""


def _others(
    snapshot: Snapshot, first: Connector, mode: FallbackMode, recent: Mapping[str, datetime]
) -> list[Connector]:
    match mode:
        case FallbackMode.NONE:
            return []
        case FallbackMode.ORG_DEFAULT | FallbackMode.RETRY_THEN_ORG_DEFAULT:
            shared = snapshot.organisation_default
            usable = shared is not None and shared.uid != first.uid and may_answer(shared, snapshot.policy)
            return [shared] if usable and shared is not None else []
        case FallbackMode.OWNER_CHAIN:
            own = (c for c in snapshot.connectors if c.uid != first.uid and may_answer(c, snapshot.policy))
            return sorted(_most_recent_first(own, recent), key=lambda c: not c.is_default)
