"""Which connectors may answer a call, in which order."""

from datetime import datetime, timedelta
from functools import cache
from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import make
from tests.support.clock import START

from patchbay_server.core.choose import Outcome, Plan, Refusal, Surroundings, may_answer, plan, refusals
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.market.prices import PriceList
from patchbay_server.market.qualities import QualityList
from patchbay_server.types import (
    ChatRequest,
    Connector,
    ConnectorState,
    FallbackMode,
    Price,
    ResolvedBy,
    RoutingOutcome,
    Snapshot,
)

INACTIVE = [ConnectorState.AUTH_INVALID, ConnectorState.DISABLED, ConnectorState.REVOKED]


def ids(chosen: Plan) -> list[str]:
    return [candidate.connector.id for candidate in chosen.candidates]


def models(chosen: Plan) -> list[str]:
    return [candidate.model for candidate in chosen.candidates]


@cache
def around() -> Surroundings:
    return Surroundings(prices=PriceList.bundled(), qualities=QualityList.bundled())


def resolve(snapshot: Snapshot, recent: dict[str, datetime] | None = None, **request: object) -> Plan:
    surroundings = msgspec.structs.replace(around(), recent=recent or {})
    return plan(snapshot, make.request(**request), surroundings).checked()


def first(chosen: Plan) -> tuple[str, ResolvedBy]:
    return chosen.candidates[0].connector.id, chosen.candidates[0].resolved_by


def refusal(snapshot: Snapshot, **request: object) -> PatchbayError:
    with pytest.raises(PatchbayError) as caught:
        resolve(snapshot, **request)
    return caught.value


# --- the order of resolution ---


def test_a_named_connector_wins_over_everything_else() -> None:
    snapshot = make.snapshot(
        make.connector("named"),
        make.connector("pinned", is_default=True),
        make.connector("preferred", last_used_at=START),
        preferences={"search": "preferred"},
    )
    assert first(resolve(snapshot, connector="named", feature="search")) == ("named", ResolvedBy.REQUEST)


def test_the_preference_for_the_feature_wins_over_the_default() -> None:
    snapshot = make.snapshot(
        make.connector("pinned", is_default=True), make.connector("preferred"), preferences={"search": "preferred"}
    )
    assert first(resolve(snapshot, feature="search")) == ("preferred", ResolvedBy.FEATURE_PREFERENCE)


def test_a_preference_counts_for_its_own_feature_only() -> None:
    snapshot = make.snapshot(
        make.connector("pinned", is_default=True), make.connector("preferred"), preferences={"search": "preferred"}
    )
    assert first(resolve(snapshot, feature="mail")) == ("pinned", ResolvedBy.OWNER_DEFAULT)
    assert first(resolve(snapshot)) == ("pinned", ResolvedBy.OWNER_DEFAULT)


def test_the_default_wins_over_the_most_recently_used() -> None:
    snapshot = make.snapshot(make.connector("pinned", is_default=True), make.connector("used", last_used_at=START))
    assert first(resolve(snapshot)) == ("pinned", ResolvedBy.OWNER_DEFAULT)


def test_without_a_default_the_most_recently_used_answers() -> None:
    snapshot = make.snapshot(
        make.connector("a", last_used_at=START),
        make.connector("b", last_used_at=START + timedelta(hours=1)),
        make.connector("c", last_used_at=START - timedelta(hours=1)),
    )
    assert first(resolve(snapshot)) == ("b", ResolvedBy.LAST_USED)


def test_a_connector_that_was_never_used_comes_last() -> None:
    snapshot = make.snapshot(make.connector("a"), make.connector("z", last_used_at=START - timedelta(days=900)))
    assert first(resolve(snapshot)) == ("z", ResolvedBy.LAST_USED)


def test_what_this_process_used_lately_counts_before_what_the_snapshot_knows() -> None:
    a = make.connector("a")
    snapshot = make.snapshot(a, make.connector("b", last_used_at=START))
    assert first(resolve(snapshot, {a.uid: START + timedelta(seconds=1)}))[0] == "a"
    assert first(resolve(snapshot, {a.uid: START - timedelta(seconds=1)}))[0] == "b"


def test_connectors_used_at_the_same_moment_are_taken_by_id_in_every_process() -> None:
    one, two, three = (make.connector(id_, last_used_at=START) for id_ in ("a", "b", "c"))
    assert first(resolve(make.snapshot(three, one, two)))[0] == "a"
    assert first(resolve(make.snapshot(two, three, one)))[0] == "a"


def test_the_organisation_default_answers_an_owner_who_has_nothing() -> None:
    shared = make.connector("shared", owner="platform")
    assert first(resolve(make.snapshot(organisation_default=shared))) == ("shared", ResolvedBy.ORG_DEFAULT)


def test_an_owner_s_own_connector_wins_over_the_organisation_default() -> None:
    snapshot = make.snapshot(make.connector("own"), organisation_default=make.connector("shared", owner="platform"))
    assert first(resolve(snapshot)) == ("own", ResolvedBy.LAST_USED)


def test_nothing_that_can_answer_is_connector_not_configured() -> None:
    assert refusal(make.snapshot()).reason is Reason.CONNECTOR_NOT_CONFIGURED


@pytest.mark.parametrize("state", INACTIVE)
def test_an_inactive_preference_default_or_organisation_default_is_passed_over(state: ConnectorState) -> None:
    preferred = make.connector("preferred", state=state)
    pinned = make.connector("pinned", state=state, is_default=True)
    shared = make.connector("shared", owner="platform", state=state)
    last = make.connector("last")
    found = make.snapshot(preferred, pinned, last, preferences={"f": "preferred"}, organisation_default=shared)
    assert first(resolve(found, feature="f")) == ("last", ResolvedBy.LAST_USED)
    nothing = make.snapshot(preferred, pinned, preferences={"f": "preferred"}, organisation_default=shared)
    assert refusal(nothing, feature="f").reason is Reason.CONNECTOR_NOT_CONFIGURED


def test_a_preference_whose_connector_is_gone_is_passed_over() -> None:
    snapshot = make.snapshot(make.connector("pinned", is_default=True), preferences={"f": "uid-of-a-deleted-one"})
    assert first(resolve(snapshot, feature="f")) == ("pinned", ResolvedBy.OWNER_DEFAULT)


def test_a_type_that_policy_does_not_allow_is_passed_over() -> None:
    snapshot = make.snapshot(
        make.connector("barred", type="openai", is_default=True),
        make.connector("allowed"),
        organisation_default=make.connector("shared", owner="platform", type="openai"),
        allowed_types=("openai_compatible",),
        preferences={"f": "barred"},
    )
    assert first(resolve(snapshot, feature="f")) == ("allowed", ResolvedBy.LAST_USED)


# --- what a request may name ---


def test_a_connector_that_does_not_exist_is_not_found() -> None:
    error = refusal(make.snapshot(make.connector("main")), connector="other")
    assert (error.reason, error.violations[0].field) == (Reason.CONNECTOR_NOT_FOUND, "connector")


def test_the_organisation_default_of_another_owner_cannot_be_named() -> None:
    snapshot = make.snapshot(organisation_default=make.connector("shared", owner="platform"))
    assert refusal(snapshot, connector="shared").reason is Reason.CONNECTOR_NOT_FOUND


def test_what_a_request_names_does_not_swell_the_error() -> None:
    assert len(refusal(make.snapshot(), connector="x" * 1_000_000).message) < 200


@pytest.mark.parametrize("state", INACTIVE)
def test_a_named_connector_that_is_not_active_is_refused_and_not_replaced(state: ConnectorState) -> None:
    snapshot = make.snapshot(make.connector("named", state=state), make.connector("other"))
    error = refusal(snapshot, connector="named", fallback=FallbackMode.OWNER_CHAIN)
    assert (error.reason, error.violations[0].field) == (Reason.CONNECTOR_INACTIVE, "connector")


def test_an_owner_of_a_connector_with_a_refused_key_is_told_to_rotate_it() -> None:
    snapshot = make.snapshot(make.connector("named", state=ConnectorState.AUTH_INVALID))
    assert "rotate" in refusal(snapshot, connector="named").message


def test_a_named_connector_of_a_barred_type_is_denied_by_policy() -> None:
    snapshot = make.snapshot(make.connector("named"), allowed_types=())
    assert refusal(snapshot, connector="named").reason is Reason.POLICY_DENIED


def test_a_named_connector_whose_row_is_damaged_is_not_said_to_be_gone() -> None:
    snapshot = msgspec.structs.replace(make.snapshot(make.connector("main")), unreadable=frozenset({"torn"}))
    assert refusal(snapshot, connector="torn").reason is Reason.DEPENDENCY_UNAVAILABLE
    assert refusal(snapshot, connector="gone").reason is Reason.CONNECTOR_NOT_FOUND


def test_the_word_default_means_resolve() -> None:
    snapshot = make.snapshot(make.connector("a", last_used_at=START), make.connector("pinned", is_default=True))
    assert first(resolve(snapshot, connector="default")) == ("pinned", ResolvedBy.OWNER_DEFAULT)


def test_a_connector_whose_id_is_default_wins_over_the_word() -> None:
    snapshot = make.snapshot(make.connector("default"), make.connector("pinned", is_default=True))
    assert first(resolve(snapshot, connector="default")) == ("default", ResolvedBy.REQUEST)


# --- models ---


@pytest.mark.parametrize(("asked", "model"), [("", "hint"), ("default", "hint"), ("large", "large")])
def test_the_model_is_the_request_s_or_else_the_connector_s(asked: str, model: str) -> None:
    assert models(resolve(make.snapshot(make.connector(model_hint="hint")), model=asked)) == [model]


def test_a_model_called_default_is_asked_for_where_the_connector_has_none_of_its_own() -> None:
    assert models(resolve(make.snapshot(make.connector(model_hint=None)), model="default")) == ["default"]


def test_without_any_model_the_request_is_refused_naming_the_field() -> None:
    error = refusal(make.snapshot(make.connector("main", model_hint=None)))
    assert (error.reason, error.violations[0].field) == (Reason.INVALID_REQUEST, "model")
    assert "main" in error.message


def test_the_missing_model_of_another_owner_s_connector_does_not_give_its_id_away() -> None:
    shared = make.connector("hush", owner="platform", model_hint=None)
    assert "hush" not in refusal(make.snapshot(organisation_default=shared)).message


def test_an_alias_stands_for_its_model() -> None:
    snapshot = make.snapshot(make.connector(), model_aliases={"fast": "small-2", "small-2": "never"})
    assert models(resolve(snapshot, model="fast")) == ["small-2"]


def test_the_model_that_a_credential_names_is_asked_for_where_nobody_else_names_one() -> None:
    naming = msgspec.structs.replace(around(), own_model=lambda connector: f"deployment-of-{connector.id}")
    snapshot = make.snapshot(make.connector("a", model_hint=None), make.connector("b", model_hint="hint"))
    request = make.request(connector="a", fallback=FallbackMode.OWNER_CHAIN)
    assert models(plan(snapshot, request, naming).checked()) == ["deployment-of-a", "hint"]


def test_a_credential_that_cannot_be_opened_to_find_its_model_is_the_failure() -> None:
    def unreadable(_: Connector) -> str:
        raise PatchbayError(Reason.CREDENTIAL_UNREADABLE, "sealed under a key that is missing")

    broken = msgspec.structs.replace(around(), own_model=unreadable)
    alone = make.snapshot(make.connector("a", model_hint=None))
    failure = plan(alone, make.request(), broken).failure
    assert failure is not None
    assert failure.reason is Reason.CREDENTIAL_UNREADABLE
    with_others = make.snapshot(make.connector("a", model_hint=None), make.connector("b", model_hint="hint"))
    request = make.request(connector="b", fallback=FallbackMode.OWNER_CHAIN)
    assert ids(plan(with_others, request, broken).checked()) == ["b"]


# --- what is told of it ---


def told(chosen: Plan) -> dict[ResolvedBy, Outcome]:
    return {step.rule: step.outcome for step in chosen.steps}


def test_each_rule_says_what_it_came_to() -> None:
    snapshot = make.snapshot(
        make.connector("off", state=ConnectorState.DISABLED),
        make.connector("pinned", is_default=True),
        preferences={"f": "off"},
    )
    chosen = resolve(snapshot, feature="f")
    assert told(chosen) == {
        ResolvedBy.REQUEST: Outcome.NOT_SET,
        ResolvedBy.FEATURE_PREFERENCE: Outcome.SKIPPED,
        ResolvedBy.OWNER_DEFAULT: Outcome.CHOSEN,
        ResolvedBy.LAST_USED: Outcome.NOT_REACHED,
        ResolvedBy.ORG_DEFAULT: Outcome.NOT_REACHED,
    }
    skipped = chosen.steps[1]
    assert skipped.connector is not None
    assert (skipped.connector.id, "disabled" in skipped.message) == ("off", True)


def test_a_plan_that_fails_tells_its_steps_too() -> None:
    named = plan(make.snapshot(make.connector("a")), make.request(connector="x"), around())
    assert named.steps[0].outcome is Outcome.SKIPPED
    assert {step.outcome for step in named.steps[1:]} == {Outcome.NOT_REACHED}
    nothing = plan(make.snapshot(), make.request(), around())
    assert {step.outcome for step in nothing.steps} == {Outcome.NOT_SET}


def test_connectors_that_cannot_answer_are_told_with_their_reasons() -> None:
    snapshot = make.snapshot(
        make.connector("main"),
        make.connector("off", state=ConnectorState.AUTH_INVALID),
        make.connector("barred", type="openai"),
        organisation_default=make.connector("hush", owner="platform", state=ConnectorState.REVOKED),
        allowed_types=("openai_compatible",),
    )
    found = refusals(snapshot, resolve(snapshot))
    assert {each.candidate.connector.id: each.failure.reason for each in found} == {
        "off": Reason.CONNECTOR_INACTIVE,
        "barred": Reason.POLICY_DENIED,
        "hush": Reason.CONNECTOR_INACTIVE,
    }
    assert "hush" not in next(f.failure.message for f in found if f.candidate.connector.id == "hush")


# --- breakers ---


def broken_at(*connectors: str) -> Surroundings:
    uids = {f"uid-{make.OWNER}-{id_}" for id_ in connectors}
    return msgspec.structs.replace(around(), is_open=lambda uid, _: uid in uids)


def test_candidates_that_failed_of_late_come_last_in_their_order() -> None:
    snapshot = make.snapshot(*(make.connector(id_) for id_ in "abc"))
    request = make.request(connector="a", fallback=FallbackMode.OWNER_CHAIN)
    chosen = plan(snapshot, request, broken_at("a", "b"))
    assert ids(chosen) == ["c", "a", "b"]
    assert [candidate.breaker_open for candidate in chosen.candidates] == [False, True, True]


def test_the_only_candidate_is_never_refused_for_its_breaker() -> None:
    assert ids(plan(make.snapshot(make.connector("a")), make.request(), broken_at("a")).checked()) == ["a"]


# --- routing ---

AUTO, QUALITY, BALANCED, COST = (f"patchbay/{dial}" for dial in ("auto", "quality", "balanced", "cost"))


def priced(input_usd: int) -> Price:
    return Price(input_usd_nanos=input_usd * 10**9, output_usd_nanos=input_usd * 10**9)


def market(**models: tuple[float | None, int | None]) -> Snapshot:
    """A connector for each model, with that quality and that price in dollars a million tokens."""
    return make.snapshot(
        *(make.connector(name, model_hint=f"{name}-model") for name in models),
        quality_priors={f"*/{name}-model": quality for name, (quality, _) in models.items() if quality is not None},
        price_overrides={f"*/{name}-model": priced(price) for name, (_, price) in models.items() if price is not None},
    )


def test_the_cheapest_candidate_that_clears_the_floor_answers_and_the_next_ones_follow() -> None:
    snapshot = market(poor=(0.4, 1), cheap=(0.55, 2), good=(0.8, 5), best=(0.95, 9))
    chosen = resolve(snapshot, model=AUTO)
    assert ids(chosen) == ["cheap", "good", "best"]
    assert {candidate.resolved_by for candidate in chosen.candidates} == {ResolvedBy.ROUTING}
    assert models(chosen)[0] == "cheap-model"
    assert [(each.candidate.connector.id, each.failure.reason) for each in chosen.refused] == [
        ("poor", Reason.NO_CANDIDATE)
    ]


@pytest.mark.parametrize(
    ("model", "min_quality", "floor"),
    [
        (AUTO, None, 0.50),
        (BALANCED, None, 0.50),
        (QUALITY, None, 0.60),
        (COST, None, 0.50),
        (COST, 0.3, 0.3),
        (QUALITY, 0.1, 0.1),
        (AUTO, 0.99, 0.99),
        (AUTO, 0.0, 0.0),
    ],
)
def test_the_dial_moves_the_floor_and_an_explicit_one_wins(model: str, min_quality: float | None, floor: float) -> None:
    snapshot = market(one=(1.0, 1))
    routing = resolve(snapshot, model=model, min_quality=min_quality).routing
    assert routing is not None
    assert routing.quality_floor == pytest.approx(floor)


def test_a_quality_of_exactly_the_floor_clears_it() -> None:
    assert ids(resolve(market(edge=(0.6, 1)), model=QUALITY)) == ["edge"]


def test_a_model_of_unknown_quality_is_not_routed_to_and_one_of_unknown_price_comes_last() -> None:
    snapshot = market(unknown=(None, 1), unpriced=(0.9, None), dear=(0.9, 500))
    chosen = resolve(snapshot, model=AUTO)
    assert ids(chosen) == ["dear", "unpriced"]
    assert "nothing is known of the quality" in chosen.refused[0].failure.message


def test_a_free_model_is_cheaper_than_any_other() -> None:
    assert ids(resolve(market(paid=(0.9, 1), free=(0.9, 0)), model=AUTO)) == ["free", "paid"]


def test_of_equal_prices_the_better_model_answers() -> None:
    assert ids(resolve(market(a=(0.6, 1), b=(0.7, 1)), model=AUTO)) == ["b", "a"]


def test_no_candidate_says_why_and_leaves_an_outcome() -> None:
    chosen = plan(market(poor=(0.2, 1), worse=(0.1, 1)), make.request(model=AUTO), around())
    assert chosen.failure is not None
    assert chosen.failure.reason is Reason.NO_CANDIDATE
    assert "0.20" in chosen.failure.message
    assert chosen.candidates == ()
    assert chosen.routing == RoutingOutcome(reserved_model=AUTO, quality_floor=0.5, candidate_count=2, eligible_count=0)


def test_an_owner_without_anything_has_no_candidate() -> None:
    assert refusal(make.snapshot(), model=AUTO).reason is Reason.NO_CANDIDATE


def test_the_outcome_names_what_was_chosen_of_how_many() -> None:
    routing = resolve(market(poor=(0.2, 1), good=(0.7, 1), best=(0.9, 2)), model=COST).routing
    assert routing == RoutingOutcome(
        reserved_model=COST,
        quality_floor=0.5,
        candidate_count=3,
        eligible_count=2,
        connector_uid=f"uid-{make.OWNER}-good",
        model="good-model",
        quality=0.7,
    )


def test_inactive_connectors_and_barred_types_are_no_candidates() -> None:
    snapshot = make.snapshot(
        make.connector("off", state=ConnectorState.DISABLED),
        make.connector("barred", type="openai"),
        make.connector("on"),
        allowed_types=("openai_compatible",),
        quality_priors={"*/small": 0.9},
    )
    chosen = resolve(snapshot, model=AUTO)
    assert ids(chosen) == ["on"]
    assert {each.failure.reason for each in chosen.refused} == {Reason.CONNECTOR_INACTIVE, Reason.POLICY_DENIED}


def test_the_organisation_default_is_a_candidate_only_where_the_owner_has_none() -> None:
    shared = make.connector("shared", owner="platform")
    priors = {"*/small": 0.9}
    assert ids(resolve(make.snapshot(organisation_default=shared, quality_priors=priors), model=AUTO)) == ["shared"]
    own = make.snapshot(make.connector("own"), organisation_default=shared, quality_priors=priors)
    assert ids(resolve(own, model=AUTO)) == ["own"]


def test_a_named_connector_is_the_only_candidate() -> None:
    snapshot = market(cheap=(0.9, 1), dear=(0.9, 9))
    assert ids(resolve(snapshot, model=AUTO, connector="dear")) == ["dear"]
    assert refusal(snapshot, model=AUTO, connector="nobody").reason is Reason.CONNECTOR_NOT_FOUND


def test_a_routed_call_without_fallback_has_one_candidate() -> None:
    chosen = resolve(market(a=(0.9, 1), b=(0.9, 2)), model=AUTO, fallback=FallbackMode.NONE).without([])
    assert ids(chosen) == ["a"]
    assert chosen.routing is not None
    assert chosen.routing.eligible_count == 2


def test_an_unknown_reserved_model_is_not_found_and_not_sent_anywhere() -> None:
    error = refusal(make.snapshot(make.connector()), model="patchbay/cheapest")
    assert (error.reason, error.violations[0].field) == (Reason.MODEL_NOT_FOUND, "model")
    assert "patchbay/cost" in error.message


def test_an_alias_may_stand_for_a_reserved_model() -> None:
    snapshot = market(cheap=(0.9, 1), dear=(0.9, 9))
    policy = msgspec.structs.replace(snapshot.policy, model_aliases={"saver": COST})
    routing = resolve(msgspec.structs.replace(snapshot, policy=policy), model="saver").routing
    assert routing is not None
    assert routing.reserved_model == COST


def test_a_connector_s_own_model_of_a_reserved_name_wins_over_the_word() -> None:
    snapshot = make.snapshot(make.connector("chained", model_hint=AUTO))
    chosen = resolve(snapshot, model=AUTO)
    assert (models(chosen), chosen.routing) == ([AUTO], None)


def test_candidates_of_routing_that_failed_of_late_come_last() -> None:
    chosen = plan(market(a=(0.9, 1), b=(0.9, 2)), make.request(model=AUTO), broken_at("a"))
    assert ids(chosen) == ["b", "a"]


def test_a_plan_without_its_first_candidate_names_the_next_in_its_outcome() -> None:
    chosen = resolve(market(a=(0.9, 1), b=(0.8, 2)), model=AUTO)
    capped = Refusal(candidate=chosen.candidates[0], failure=PatchbayError(Reason.CAP_REACHED, "full"))
    left = chosen.without([capped])
    assert left.routing is not None
    assert (ids(left), left.routing.connector_uid, left.routing.quality) == (["b"], f"uid-{make.OWNER}-b", 0.8)
    assert left.routing.eligible_count == 1
    nothing = left.without([Refusal(candidate=left.candidates[0], failure=capped.failure)])
    assert nothing.failure is capped.failure
    assert nothing.routing is not None
    assert (nothing.routing.connector_uid, nothing.routing.quality) == ("", None)


# --- fallback ---

SHARED = make.connector("shared", owner="platform", model_hint="shared-model")


def test_without_fallback_there_is_one_candidate() -> None:
    snapshot = make.snapshot(make.connector("a"), make.connector("b"), organisation_default=SHARED)
    chosen = resolve(snapshot, fallback=FallbackMode.NONE)
    assert (len(chosen.candidates), chosen.retry_first) == (1, False)


def test_org_default_adds_the_organisation_default_with_its_own_model() -> None:
    snapshot = make.snapshot(make.connector("own"), organisation_default=SHARED)
    chosen = resolve(snapshot, fallback=FallbackMode.ORG_DEFAULT)
    assert (ids(chosen), models(chosen), chosen.retry_first) == (["own", "shared"], ["small", "shared-model"], False)
    assert chosen.candidates[1].resolved_by is ResolvedBy.FALLBACK


def test_retry_then_org_default_allows_one_retry_first() -> None:
    snapshot = make.snapshot(make.connector("own"), organisation_default=SHARED)
    chosen = resolve(snapshot, fallback=FallbackMode.RETRY_THEN_ORG_DEFAULT)
    assert (ids(chosen), chosen.retry_first) == (["own", "shared"], True)


def test_the_organisation_default_does_not_fall_back_to_itself() -> None:
    chosen = resolve(make.snapshot(organisation_default=SHARED), fallback=FallbackMode.ORG_DEFAULT)
    assert ids(chosen) == ["shared"]


def test_owner_chain_tries_the_owner_s_default_and_then_the_most_recently_used() -> None:
    snapshot = make.snapshot(
        make.connector("never"),
        make.connector("first"),
        make.connector("lately", last_used_at=START),
        make.connector("longago", last_used_at=START - timedelta(days=9)),
        make.connector("pinned", is_default=True),
        organisation_default=SHARED,
    )
    chosen = resolve(snapshot, connector="first", fallback=FallbackMode.OWNER_CHAIN)
    assert ids(chosen) == ["first", "pinned", "lately", "longago", "never"]


def test_policy_s_fallback_counts_where_the_request_says_none_of_its_own() -> None:
    snapshot = make.snapshot(
        make.connector("a", last_used_at=START), make.connector("b"), default_fallback=FallbackMode.OWNER_CHAIN
    )
    assert ids(resolve(snapshot)) == ["a", "b"]
    assert ids(resolve(snapshot, fallback=FallbackMode.NONE)) == ["a"]


def test_the_requested_model_is_kept_only_for_connectors_of_the_same_type() -> None:
    snapshot = make.snapshot(
        make.connector("first"),
        make.connector("other", type="anthropic", model_hint="other-model"),
        make.connector("same", model_hint="hint"),
        make.connector("without", type="anthropic", model_hint=None),
    )
    chosen = resolve(snapshot, connector="first", model="asked", fallback=FallbackMode.OWNER_CHAIN)
    told = {c.connector.id: c.model for c in chosen.candidates}
    assert told == {"first": "asked", "same": "asked", "other": "other-model"}


@pytest.mark.parametrize("asked", ["", "default", "usual"])
def test_each_connector_s_own_model_is_asked_for_where_the_request_leaves_it_open(asked: str) -> None:
    snapshot = make.snapshot(
        make.connector("first", model_hint="one"),
        make.connector("same", model_hint="two"),
        model_aliases={"usual": "default"},
    )
    chosen = resolve(snapshot, connector="first", model=asked, fallback=FallbackMode.OWNER_CHAIN)
    assert models(chosen) == ["one", "two"]


def test_an_alias_is_resolved_for_the_other_candidates_too() -> None:
    snapshot = make.snapshot(make.connector("a"), make.connector("b"), model_aliases={"fast": "quick"})
    chosen = resolve(snapshot, connector="a", model="fast", fallback=FallbackMode.OWNER_CHAIN)
    assert models(chosen) == ["quick", "quick"]


# --- for all snapshots and requests ---

MOMENTS = st.none() | st.integers(0, 5).map(lambda hours: START + timedelta(hours=hours))
IDS = ["a", "b", "c", "default"]


def connectors(owner: str, id_: str) -> st.SearchStrategy[Connector]:
    return st.builds(
        make.connector,
        st.just(id_),
        owner=st.just(owner),
        type=st.sampled_from(["openai", "anthropic"]),
        state=st.sampled_from(ConnectorState),
        is_default=st.booleans(),
        model_hint=st.sampled_from([None, "small"]),
        last_used_at=MOMENTS,
    )


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    chosen = draw(st.lists(st.sampled_from(IDS), unique=True))
    own = [draw(connectors(make.OWNER, id_)) for id_ in chosen]
    return make.snapshot(
        *own,
        preferences={"f": draw(st.sampled_from(["gone", *chosen]))},
        organisation_default=draw(st.none() | connectors("platform", "shared") | st.sampled_from([None, *own])),
        allowed_types=draw(st.sampled_from([None, (), ("openai",), ("openai", "anthropic")])),
        default_fallback=draw(st.sampled_from(FallbackMode)),
    )


REQUESTS = st.builds(
    make.request,
    connector=st.sampled_from(["", "other", *IDS]),
    feature=st.sampled_from(["", "f", "g"]),
    model=st.sampled_from(["", "default", "large"]),
    fallback=st.none() | st.sampled_from(FallbackMode),
)


@given(snapshots(), REQUESTS)
def test_a_plan_holds_each_usable_connector_of_the_owner_or_the_organisation_at_most_once(
    snapshot: Snapshot, request: ChatRequest
) -> None:
    try:
        chosen = plan(snapshot, request, around()).checked()
    except PatchbayError:
        return
    usable = {c.uid for c in snapshot.connectors} | {c.uid for c in [snapshot.organisation_default] if c is not None}
    uids = [candidate.connector.uid for candidate in chosen.candidates]
    assert set(uids) <= usable
    assert len(set(uids)) == len(uids) >= 1
    assert all(may_answer(candidate.connector, snapshot.policy) for candidate in chosen.candidates)
    assert all(candidate.model for candidate in chosen.candidates)


@given(snapshots(), REQUESTS)
def test_a_named_connector_answers_or_nobody_does(snapshot: Snapshot, request: ChatRequest) -> None:
    named = next((c for c in snapshot.connectors if c.id == request.connector), None)
    if named is None:
        return
    try:
        chosen = plan(snapshot, request, around()).checked()
    except PatchbayError as error:
        assert error.reason in {Reason.CONNECTOR_INACTIVE, Reason.POLICY_DENIED, Reason.INVALID_REQUEST}  # noqa: PT017
    else:
        assert chosen.candidates[0].connector == named


@given(snapshots(), REQUESTS, st.randoms(use_true_random=False))
def test_planning_is_pure_and_blind_to_the_order_of_the_snapshot(
    snapshot: Snapshot, request: ChatRequest, random: Random
) -> None:
    def outcome(of: Snapshot) -> object:
        try:
            return plan(of, request, around()).checked()
        except PatchbayError as error:
            return error.reason, error.message

    defaults = [c for c in snapshot.connectors if c.is_default]
    if len(defaults) > 1:
        return  # no store lets that happen
    before = msgspec.json.encode(snapshot)
    expected = outcome(snapshot)
    shuffled = list(snapshot.connectors)
    random.shuffle(shuffled)
    assert outcome(msgspec.structs.replace(snapshot, connectors=tuple(shuffled))) == expected
    assert msgspec.json.encode(snapshot) == before


PRICES = st.none() | st.integers(0, 3).map(priced)
QUALITIES = st.none() | st.sampled_from([0.0, 0.4, 0.5, 0.6, 0.85, 1.0])


@st.composite
def markets(draw: st.DrawFn) -> Snapshot:
    """Connectors of models with and without known prices and qualities, under any policy."""
    snapshot = draw(snapshots())
    keys = [f"{provider}/{model}" for provider in ("*", "openai", "anthropic") for model in ("small", "large")]
    qualities = {key: value for key in keys if (value := draw(QUALITIES)) is not None}
    prices = {key: value for key in keys if (value := draw(PRICES)) is not None}
    policy = msgspec.structs.replace(snapshot.policy, quality_priors=qualities, price_overrides=prices)
    return msgspec.structs.replace(snapshot, policy=policy)


def encoded(chosen: Plan) -> bytes:
    """All of a plan as bytes, failures by what they say."""
    failure = (chosen.failure.reason, chosen.failure.message) if chosen.failure else None
    refused = [(each.candidate, each.failure.reason, each.failure.message) for each in chosen.refused]
    routing = msgspec.structs.replace(chosen.routing, reserved_model="") if chosen.routing else None
    return msgspec.json.encode([chosen.candidates, chosen.steps, chosen.retry_first, refused, routing, failure])


@given(markets(), REQUESTS, st.none() | st.floats(0, 1))
def test_balanced_is_byte_for_byte_no_dial_at_all(
    snapshot: Snapshot, request: ChatRequest, min_quality: float | None
) -> None:
    auto, balanced = (
        plan(snapshot, msgspec.structs.replace(request, model=model, min_quality=min_quality), around())
        for model in (AUTO, BALANCED)
    )
    assert encoded(auto) == encoded(balanced)


@given(markets(), REQUESTS, st.sampled_from([AUTO, QUALITY, BALANCED, COST]), st.none() | st.floats(0, 1))
def test_a_routed_plan_keeps_its_floor_and_has_one_outcome_and_candidates_or_a_failure(
    snapshot: Snapshot, request: ChatRequest, model: str, min_quality: float | None
) -> None:
    chosen = plan(snapshot, msgspec.structs.replace(request, model=model, min_quality=min_quality), around())
    assert bool(chosen.candidates) == (chosen.failure is None)
    if chosen.routing is None:
        assert chosen.failure is not None  # the named connector cannot answer
        return
    floor = chosen.routing.quality_floor
    assert floor == min_quality or (min_quality is None and 0.5 <= floor <= 0.85)
    assert all(candidate.quality is not None and candidate.quality >= floor for candidate in chosen.candidates)
    assert all(may_answer(candidate.connector, snapshot.policy) for candidate in chosen.candidates)
