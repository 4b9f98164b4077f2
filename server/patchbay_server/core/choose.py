"""Which connectors may answer a call, in which order, and why: a pure function over a snapshot.

Order of resolution: the connector that the request names; the owner's preference for the feature; the owner's default;
the owner's most recently used active connector; the organisation's default. A reserved model is routed instead: the
cheapest of the owner's candidates that clears the quality floor answers. `Chat` follows the plan, `Explain` shows it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Final

import msgspec

from patchbay_server.core import estimate
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.market.prices import PriceList
from patchbay_server.market.qualities import QualityList
from patchbay_server.types import (
    ChatRequest,
    Connector,
    ConnectorState,
    FallbackMode,
    Policy,
    ResolvedBy,
    RoutingOutcome,
    Snapshot,
)
from patchbay_server.usage import Usage

RESERVED: Final = "default"
"""As a connector it means "resolve", as a model "the connector's own"; a connector of that id wins."""
ROUTED_PREFIX: Final = "patchbay/"
DIALS: Final[Mapping[str, float]] = MappingProxyType(
    {
        f"{ROUTED_PREFIX}auto": 0.0,
        f"{ROUTED_PREFIX}balanced": 0.0,
        f"{ROUTED_PREFIX}quality": 0.10,
        f"{ROUTED_PREFIX}cost": -0.10,
    }
)
"""The reserved models, and how far each moves the quality floor."""
FLOOR: Final = 0.50
FLOOR_MIN: Final = 0.50
FLOOR_MAX: Final = 0.85
OUTPUT_TOKENS_TYPICAL: Final = 1_000
"""What candidates are compared by where the request allows as much or more."""
_NEVER: Final = datetime.min.replace(tzinfo=UTC)


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """One connector to try, the model to ask it for, and why it is in the plan.

    `quality` is None where nothing is known of the model, or nobody asked. `breaker_open`: it failed repeatedly of
    late and is tried after the others.
    """

    connector: Connector
    model: str
    resolved_by: ResolvedBy
    quality: float | None = None
    breaker_open: bool = False


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """A candidate that is not asked, and why."""

    candidate: Candidate
    failure: PatchbayError


class Outcome(StrEnum):
    """What a rule of the resolution came to."""

    CHOSEN = "chosen"
    NOT_SET = "not_set"
    SKIPPED = "skipped"
    NOT_REACHED = "not_reached"


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One rule of the resolution. `connector` is the one that it points to, if any."""

    rule: ResolvedBy
    outcome: Outcome
    message: str
    connector: Connector | None = None


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The attempts that a call may make, in order, and how it came to them.

    `retry_first` allows one more try at the first candidate before the others. `failure` is why the call cannot start;
    there are candidates if and only if there is none. `routing` is set when a reserved model was asked for, and
    `first_only` when no other candidate may follow the one that routing picked.
    """

    candidates: tuple[Candidate, ...] = ()
    retry_first: bool = False
    first_only: bool = False
    steps: tuple[Step, ...] = ()
    refused: tuple[Refusal, ...] = ()
    routing: RoutingOutcome | None = None
    failure: PatchbayError | None = None

    def checked(self) -> "Plan":
        """This plan. Raises: PatchbayError: its failure."""
        if self.failure is not None:
            raise self.failure
        return self

    def without(self, refusals: Sequence[Refusal]) -> "Plan":
        """The plan without candidates that turned out not to be able to answer, and without those that may not follow
        the first. With none left, the first of the refusals is its failure.
        """
        if not refusals and not self.first_only:
            return self
        gone = {refusal.candidate.connector.uid for refusal in refusals}
        left = tuple(candidate for candidate in self.candidates if candidate.connector.uid not in gone)
        routing = self.routing
        if routing is not None:
            routing = _outcome(routing, left, routing.eligible_count - len(refusals))
        return msgspec.structs.replace(
            self,
            candidates=left[:1] if self.first_only else left,
            refused=(*self.refused, *refusals),
            routing=routing,
            failure=refusals[0].failure if refusals and not left else self.failure,
        )


class Surroundings(msgspec.Struct, frozen=True, kw_only=True):
    """What resolving looks at beside the snapshot and the request."""

    prices: PriceList
    qualities: QualityList
    on: date | None = None
    """The day of the call, for prices that change; None is the day of the price list."""
    recent: Mapping[str, datetime] = MappingProxyType({})
    """Last use by connector uid, where it is newer than the snapshot's."""
    own_model: Callable[[Connector], str] = lambda _: ""
    """The model that a connector's credential names, or ""; raises CREDENTIAL_UNREADABLE."""
    is_open: Callable[[str, str], bool] = lambda _uid, _model: False
    """Whether the circuit breaker of a connector (by uid) and model is open."""


def plan(snapshot: Snapshot, request: ChatRequest, around: Surroundings) -> Plan:
    """The attempts that `request` allows, best first. Never raises: what stands against the call is in the plan.

    Its failure is CONNECTOR_NOT_FOUND, CONNECTOR_INACTIVE, POLICY_DENIED or DEPENDENCY_UNAVAILABLE (its row is damaged)
    for a named connector; CONNECTOR_NOT_CONFIGURED when nothing resolves; INVALID_REQUEST when no model is known;
    MODEL_NOT_FOUND for an unknown reserved model; NO_CANDIDATE when routing finds none.
    """
    model = snapshot.policy.model_aliases.get(request.model, request.model)
    if model.startswith(ROUTED_PREFIX) and not _is_literal(model, snapshot):
        return _routed(model, snapshot, request, around)
    return _direct(model, snapshot, request, around)


def refusals(snapshot: Snapshot, chosen: Plan) -> tuple[Refusal, ...]:
    """What the plan refused, and each further connector that is not in it because of its own state or its type."""
    known = {refusal.candidate.connector.uid for refusal in chosen.refused}
    known |= {candidate.connector.uid for candidate in chosen.candidates}
    found = list(chosen.refused)
    for connector in _all(snapshot):
        failure = why_not(connector, snapshot)
        if failure is not None and connector.uid not in known:
            rule = ResolvedBy.LAST_USED if connector.owner == snapshot.owner else ResolvedBy.ORG_DEFAULT
            candidate = Candidate(connector=connector, model=connector.model_hint or "", resolved_by=rule)
            found.append(Refusal(candidate=candidate, failure=failure))
    return tuple(found)


def may_answer(connector: Connector, policy: Policy) -> bool:
    """Whether a connector may be picked: active, and of a type that policy allows."""
    return connector.state is ConnectorState.ACTIVE and type_allowed(connector.type, policy)


def type_allowed(connector_type: str, policy: Policy) -> bool:
    return policy.allowed_types is None or connector_type in policy.allowed_types


def visible_name(connector: Connector, owner: str) -> str:
    """A connector's name as callers that act for `owner` may see it: another owner's stays unnamed."""
    return connector.name if connector.owner == owner else ""


def as_seen_by(error: PatchbayError, connector: Connector, owner: str) -> PatchbayError:
    """`error`, which a connector gave, without what is its owner's business alone where `owner` is another."""
    if connector.owner == owner or error.reason not in _ABOUT_A_CONNECTOR:
        return error
    return PatchbayError(
        error.reason,
        "the organisation's default connector cannot answer; tell an administrator",
        retry_after_s=error.retry_after_s,
        upstream=error.upstream,
    )


_ABOUT_A_CONNECTOR: Final = frozenset(
    {
        Reason.CREDENTIAL_UNREADABLE,
        Reason.CONNECTOR_MISCONFIGURED,
        Reason.POLICY_DENIED,
        Reason.UPSTREAM_UNAVAILABLE,
    }
)
"""Reasons whose message may tell of a connector's credential or address."""


def why_not(connector: Connector, snapshot: Snapshot) -> PatchbayError | None:
    """Why a connector must not answer the snapshot's owner; None when it may."""
    own = connector.owner == snapshot.owner
    which = f"connector {connector.name}" if own else "the organisation's default connector"
    if connector.state is not ConnectorState.ACTIVE:
        advice = "; rotate its credential" if own and connector.state is ConnectorState.AUTH_INVALID else ""
        return PatchbayError(
            Reason.CONNECTOR_INACTIVE, f"{which} is {connector.state.value}{advice}", field="connector"
        )
    if not type_allowed(connector.type, snapshot.policy):
        return PatchbayError(
            Reason.POLICY_DENIED, f"policy does not allow connectors of type {connector.type!r}", field="connector"
        )
    return None


# --- one connector, and whom the call may fall back to ----------------------------------------------------------------


def _direct(model: str, snapshot: Snapshot, request: ChatRequest, around: Surroundings) -> Plan:
    steps, connector, failure = _resolve(snapshot, request, around.recent)
    if connector is None:
        return Plan(steps=steps, failure=failure)
    try:
        first = Candidate(
            connector=connector,
            model=_model(connector, model, snapshot.owner, around),
            resolved_by=next(step.rule for step in steps if step.outcome is Outcome.CHOSEN),
        )
    except PatchbayError as no_model:
        return Plan(steps=steps, failure=as_seen_by(no_model, connector, snapshot.owner))
    mode = request.fallback or snapshot.policy.default_fallback
    others = (
        Candidate(connector=other, model=other_model, resolved_by=ResolvedBy.FALLBACK)
        for other in _others(snapshot, connector, mode, around.recent)
        if (other_model := _fallback_model(other, first, model, around))
    )
    retry_first = mode is FallbackMode.RETRY_THEN_ORG_DEFAULT
    return Plan(candidates=_healthy_first((first, *others), around), retry_first=retry_first, steps=steps)


def _resolve(
    snapshot: Snapshot, request: ChatRequest, recent: Mapping[str, datetime]
) -> tuple[tuple[Step, ...], Connector | None, PatchbayError | None]:
    """Each rule in its order, the connector that one of them chose, and why none did."""
    steps: list[Step] = []
    for rule, find in _RULES:
        found = find(snapshot, request, recent)
        steps.append(Step(rule=rule, outcome=found.outcome, message=found.message, connector=found.connector))
        if found.outcome is Outcome.CHOSEN or found.failure is not None:
            steps += [
                Step(rule=later, outcome=Outcome.NOT_REACHED, message="an earlier rule decided")
                for later, _ in _RULES[len(steps) :]
            ]
            return tuple(steps), None if found.failure else found.connector, found.failure
    failure = PatchbayError(
        Reason.CONNECTOR_NOT_CONFIGURED,
        "no active connector can answer: create one, activate one, or ask an administrator for an organisation default",
    )
    return tuple(steps), None, failure


class _Found(msgspec.Struct, frozen=True):
    outcome: Outcome
    message: str
    connector: Connector | None = None
    failure: PatchbayError | None = None


_Rule = Callable[[Snapshot, ChatRequest, Mapping[str, datetime]], _Found]


def _named(snapshot: Snapshot, request: ChatRequest, _: Mapping[str, datetime]) -> _Found:
    if not request.connector:
        return _Found(Outcome.NOT_SET, "the request names no connector")
    named = next((c for c in snapshot.connectors if c.id == request.connector), None)
    if named is None and request.connector == RESERVED:
        return _Found(Outcome.NOT_SET, f"{RESERVED!r} leaves it to the rules below")
    if named is None and request.connector in snapshot.unreadable:
        failure = PatchbayError(
            Reason.DEPENDENCY_UNAVAILABLE,
            "the stored connector cannot be read; an administrator has to restore it",
            field="connector",
        )
        return _Found(Outcome.SKIPPED, failure.message, None, failure)
    if named is None:
        failure = PatchbayError(Reason.CONNECTOR_NOT_FOUND, "there is no such connector", field="connector")
        return _Found(Outcome.SKIPPED, failure.message, None, failure)
    refused = why_not(named, snapshot)
    if refused is not None:
        return _Found(Outcome.SKIPPED, refused.message, named, refused)
    return _Found(Outcome.CHOSEN, "the request names it", named)


def _preferred(snapshot: Snapshot, request: ChatRequest, _: Mapping[str, datetime]) -> _Found:
    if not request.feature:
        return _Found(Outcome.NOT_SET, "the request names no feature")
    uid = snapshot.preferences.get(request.feature)
    if uid is None:
        return _Found(Outcome.NOT_SET, f"there is no preference for {request.feature!r}")
    preferred = next((c for c in snapshot.connectors if c.uid == uid), None)
    if preferred is None:
        return _Found(Outcome.SKIPPED, "the preferred connector is gone")
    return _judged(preferred, snapshot, f"it is preferred for {request.feature!r}")


def _pinned(snapshot: Snapshot, _: ChatRequest, __: Mapping[str, datetime]) -> _Found:
    pinned = next((c for c in snapshot.connectors if c.is_default), None)
    if pinned is None:
        return _Found(Outcome.NOT_SET, "the owner pinned no default")
    return _judged(pinned, snapshot, "it is the owner's pinned default")


def _last_used(snapshot: Snapshot, _: ChatRequest, recent: Mapping[str, datetime]) -> _Found:
    usable = _most_recent_first((c for c in snapshot.connectors if may_answer(c, snapshot.policy)), recent)
    if not usable:
        return _Found(Outcome.NOT_SET, "the owner has no active connector")
    return _Found(Outcome.CHOSEN, "it is the owner's most recently used active connector", usable[0])


def _shared(snapshot: Snapshot, _: ChatRequest, __: Mapping[str, datetime]) -> _Found:
    shared = snapshot.organisation_default
    if shared is None:
        return _Found(Outcome.NOT_SET, "policy names no organisation default")
    return _judged(shared, snapshot, "it is the organisation's default")


def _judged(connector: Connector, snapshot: Snapshot, why: str) -> _Found:
    refused = why_not(connector, snapshot)
    if refused is None:
        return _Found(Outcome.CHOSEN, why, connector)
    return _Found(Outcome.SKIPPED, refused.message, connector)


_RULES: Final[tuple[tuple[ResolvedBy, _Rule], ...]] = (
    (ResolvedBy.REQUEST, _named),
    (ResolvedBy.FEATURE_PREFERENCE, _preferred),
    (ResolvedBy.OWNER_DEFAULT, _pinned),
    (ResolvedBy.LAST_USED, _last_used),
    (ResolvedBy.ORG_DEFAULT, _shared),
)


def _most_recent_first(connectors: Iterable[Connector], recent: Mapping[str, datetime]) -> list[Connector]:
    """Latest use first, never used last; ties by id so that every process picks the same."""
    return sorted(
        sorted(connectors, key=lambda c: c.id),
        key=lambda c: max(recent.get(c.uid, _NEVER), c.last_used_at or _NEVER),
        reverse=True,
    )


def _model(connector: Connector, requested: str, owner: str, around: Surroundings) -> str:
    """The model to ask for: the requested one, else the connector's own.

    Raises:
        PatchbayError: INVALID_REQUEST when neither is known; CREDENTIAL_UNREADABLE.
    """
    if _names_a_model(requested):
        return requested
    model = connector.model_hint or around.own_model(connector) or requested
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


def _fallback_model(other: Connector, first: Candidate, requested: str, around: Surroundings) -> str:
    """The model to ask another connector for: the requested one where it can mean the same, else the other's own, else
    none, as where its credential cannot be opened.
    """
    if _names_a_model(requested) and other.type == first.connector.type:
        return first.model
    try:
        return _model(other, "", other.owner, around)
    except PatchbayError:
        return ""


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


def _healthy_first(candidates: Sequence[Candidate], around: Surroundings) -> tuple[Candidate, ...]:
    """Those whose breaker is open after the others, in their order: an open breaker never refuses the only one."""
    marked = [
        msgspec.structs.replace(c, breaker_open=True) if around.is_open(c.connector.uid, c.model) else c
        for c in candidates
    ]
    return tuple(sorted(marked, key=lambda c: c.breaker_open))


def _all(snapshot: Snapshot) -> list[Connector]:
    """The owner's connectors by id, and the organisation's default if it is somebody else's."""
    own = sorted(snapshot.connectors, key=lambda c: c.id)
    shared = snapshot.organisation_default
    return [*own, shared] if shared is not None and shared.owner != snapshot.owner else own


# --- routing ----------------------------------------------------------------------------------------------------------


def floor_of(reserved_model: str, min_quality: float | None) -> float:
    """The quality that a candidate must have. An explicit one wins and is never lowered."""
    if min_quality is not None:
        return min_quality
    return min(max(FLOOR + DIALS[reserved_model], FLOOR_MIN), FLOOR_MAX)


def _is_literal(model: str, snapshot: Snapshot) -> bool:
    """Whether a connector has a model of this very name, which wins over the reserved word."""
    return any(connector.model_hint == model for connector in _all(snapshot))


def _routed(model: str, snapshot: Snapshot, request: ChatRequest, around: Surroundings) -> Plan:
    steps = _ROUTING_STEPS
    if model not in DIALS:
        failure = PatchbayError(
            Reason.MODEL_NOT_FOUND, f"there is no such reserved model; there are {', '.join(DIALS)}", field="model"
        )
        return Plan(steps=steps, failure=failure)
    pool, unusable = _pool(snapshot, request)
    if unusable is not None:
        return Plan(steps=steps, failure=unusable)
    floor = floor_of(model, request.min_quality)
    ranked: list[tuple[tuple[object, ...], Candidate]] = []
    refused: list[Refusal] = []
    likely = _likely(request)
    for connector in pool:
        candidate, unable = _valued(connector, snapshot, around)
        against = unable or _below(candidate, floor, snapshot.owner)
        if against is not None:
            refused.append(Refusal(candidate=candidate, failure=against))
            continue
        cost = around.prices.cost_usd_nanos(connector.type, candidate.model, likely, snapshot.policy, on=around.on)
        ranked.append(((cost is None, cost or 0, -(candidate.quality or 0.0), connector.id), candidate))
    best_first = [candidate for _, candidate in sorted(ranked, key=lambda pair: pair[0])]
    candidates = _healthy_first(best_first, around)
    asked = RoutingOutcome(reserved_model=model, quality_floor=floor, candidate_count=len(pool), eligible_count=0)
    routing = _outcome(asked, candidates, len(candidates))
    if not candidates:
        return Plan(steps=steps, refused=tuple(refused), routing=routing, failure=_no_candidate(floor, refused))
    first_only = request.fallback is FallbackMode.NONE
    return Plan(candidates=candidates, first_only=first_only, steps=steps, refused=tuple(refused), routing=routing)


def _pool(snapshot: Snapshot, request: ChatRequest) -> tuple[Sequence[Connector], PatchbayError | None]:
    """The connectors that routing picks among: the named one, else all of the owner's, else the organisation's
    default.
    """
    if request.connector:
        found = _named(snapshot, request, {})
        if found.failure is not None:
            return (), found.failure
        if found.connector is not None:
            return (found.connector,), None
    own = sorted(snapshot.connectors, key=lambda c: c.id)
    shared = snapshot.organisation_default
    if shared is not None and not any(may_answer(c, snapshot.policy) for c in own):
        own = [*(c for c in own if c.uid != shared.uid), shared]
    return own, None


def _valued(connector: Connector, snapshot: Snapshot, around: Surroundings) -> tuple[Candidate, PatchbayError | None]:
    """A connector as a candidate for routing, and why it cannot be one if it cannot."""
    failure = why_not(connector, snapshot)
    model = connector.model_hint or ""
    if failure is None:
        try:
            model = _model(connector, "", snapshot.owner, around)
        except PatchbayError as no_model:
            failure = as_seen_by(no_model, connector, snapshot.owner)
    quality = around.qualities.quality(connector.type, model, snapshot.policy) if model else None
    return Candidate(connector=connector, model=model, resolved_by=ResolvedBy.ROUTING, quality=quality), failure


def _below(candidate: Candidate, floor: float, owner: str) -> PatchbayError | None:
    """Why a candidate does not clear the floor; None when it does."""
    own = candidate.connector.owner == owner
    which = f"model {candidate.model!r} of connector {candidate.connector.id!r}" if own else "the organisation's model"
    if candidate.quality is None:
        return PatchbayError(
            Reason.NO_CANDIDATE, f"nothing is known of the quality of {which}: an administrator can set it in policy"
        )
    if candidate.quality < floor:
        return PatchbayError(
            Reason.NO_CANDIDATE, f"the quality of {which} is {candidate.quality:.2f}, below the floor of {floor:.2f}"
        )
    return None


def _no_candidate(floor: float, refused: Sequence[Refusal]) -> PatchbayError:
    if not refused:
        return PatchbayError(
            Reason.NO_CANDIDATE, "there is no connector to route to: create one, or ask for an organisation default"
        )
    return PatchbayError(
        Reason.NO_CANDIDATE,
        f"none of {len(refused)} candidates is allowed and clears the quality floor of {floor:.2f}:"
        f" {refused[0].failure.message}; Explain shows them all",
    )


def _outcome(routing: RoutingOutcome, candidates: Sequence[Candidate], eligible: int) -> RoutingOutcome:
    """`routing` as it stands with these candidates left."""
    if not candidates:
        return msgspec.structs.replace(routing, eligible_count=eligible, connector_uid="", model="", quality=None)
    first = candidates[0]
    return msgspec.structs.replace(
        routing,
        eligible_count=eligible,
        connector_uid=first.connector.uid,
        model=first.model,
        quality=first.quality,
    )


def _likely(request: ChatRequest) -> Usage:
    """What the call will probably use: all candidates are compared by the cost of the same tokens."""
    allowed = request.prompt.config.max_output_tokens or OUTPUT_TOKENS_TYPICAL
    given, written = estimate.input_tokens(request.prompt), min(allowed, OUTPUT_TOKENS_TYPICAL)
    return Usage(input_tokens=given, output_tokens=written, total_tokens=given + written)


_ROUTING_STEPS: Final = (
    *(Step(rule=rule, outcome=Outcome.NOT_REACHED, message="a reserved model is routed") for rule, _ in _RULES),
    Step(rule=ResolvedBy.ROUTING, outcome=Outcome.CHOSEN, message="the model is reserved: quality and price decide"),
)
