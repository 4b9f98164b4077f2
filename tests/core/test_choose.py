"""Which connectors may answer a call, in which order."""

from datetime import datetime, timedelta
from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import make
from tests.support.clock import START

from patchbay_server.core.choose import Plan, may_answer, plan
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.types import ChatRequest, Connector, ConnectorState, FallbackMode, ResolvedBy, Snapshot

INACTIVE = [ConnectorState.AUTH_INVALID, ConnectorState.DISABLED, ConnectorState.REVOKED]


def ids(chosen: Plan) -> list[str]:
    return [candidate.connector.id for candidate in chosen.candidates]


def models(chosen: Plan) -> list[str]:
    return [candidate.model for candidate in chosen.candidates]


def resolve(snapshot: Snapshot, recent: dict[str, datetime] | None = None, **request: object) -> Plan:
    return plan(snapshot, make.request(**request), recent or {})


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


def test_a_routed_model_is_refused_rather_than_sent_to_a_provider() -> None:
    snapshot = make.snapshot(make.connector(), model_aliases={"cheap": "patchbay/cost"})
    assert refusal(snapshot, model="patchbay/auto").reason is Reason.NOT_IMPLEMENTED
    assert refusal(snapshot, model="cheap").reason is Reason.NOT_IMPLEMENTED


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
        chosen = plan(snapshot, request, {})
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
        chosen = plan(snapshot, request, {})
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
            return plan(of, request, {})
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
