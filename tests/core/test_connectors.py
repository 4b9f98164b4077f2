"""Connectors and their credentials, from an owner's side."""

import asyncio
import io
from typing import Any

import msgspec
import pytest
from rich.console import Console
from tests.support import answers, faults, make
from tests.support.bench import PLANTED, Bench, assembled
from tests.support.clock import Clock
from tests.support.provider import Head, Pause, Silence

from patchbay_server.core import attempt as attempt_module
from patchbay_server.core import connectors as connectors_module
from patchbay_server.core.connectors import MODELS_AGE_MAX_S, ConnectorView, Credential
from patchbay_server.core.draft import Draft
from patchbay_server.core.listing import Query
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.store.protocol import Page
from patchbay_server.types import (
    AuditType,
    CheckResult,
    ConnectorSettings,
    ConnectorState,
    Scope,
)

ME = make.caller()
KEY = f"{PLANTED}-key-0001"


def credential(bench: Bench, name: str = "main", **fields: Any) -> Credential:
    return Credential(
        type="openai_compatible", fields={"base_url": bench.provider.url(name) + "/v1", "api_key": KEY} | fields
    )


async def create(bench: Bench, id: str = "made", *, caller: Any = ME, **given: Any) -> ConnectorView:  # noqa: A002
    draft = Draft(**({"display_name": f"Made {id}", "model_hint": "small"} | given.pop("draft", {})))
    owner = given.pop("owner", "acme")
    return await bench.connectors.create(caller, owner, id, draft, given.pop("credential", credential(bench)), **given)


async def refused(coroutine: Any) -> PatchbayError:
    with pytest.raises(PatchbayError) as caught:
        await coroutine
    return caught.value


def fields(error: PatchbayError) -> list[str]:
    assert error.reason is Reason.INVALID_REQUEST
    return [violation.field for violation in error.violations]


@pytest.fixture
async def bare() -> Any:
    """A bench without any connector, and a clock of its own."""
    clock = Clock()
    async with assembled(clock=clock) as bench:
        yield bench


# --- create ---


async def test_a_created_connector_answers_at_once(bare: Bench) -> None:
    view = await create(bare)
    assert (view.connector.state, view.connector.version) == (ConnectorState.ACTIVE, 1)
    bare.provider.answer(answers.openai_unary())
    assert (await bare.chat()).route.connector == "owners/acme/connectors/made"


async def test_nothing_that_is_shown_holds_the_key(bare: Bench) -> None:
    view = await create(bare)
    out = io.StringIO()
    Console(file=out, width=400).print(view, credential(bare), Draft())
    for shown in (
        repr(view),
        str(msgspec.to_builtins(view, builtin_types=(bytes,))),
        out.getvalue(),
        repr(credential(bare)),
    ):
        assert KEY not in shown
    assert view.last_four == KEY[-4:]
    assert view.settings["base_url"] == bare.provider.url() + "/v1"
    assert "api_key" not in view.settings


async def test_the_stored_form_is_bound_to_its_connector(bare: Bench) -> None:
    one, two = await create(bare, "one"), await create(bare, "two")
    assert KEY.encode() not in one.connector.sealed.blob
    with pytest.raises(PatchbayError):
        bare.vault.open(two.connector.uid, one.connector.sealed)


async def test_an_id_is_assigned_where_none_is_chosen(bare: Bench) -> None:
    view = await create(bare, "", draft={"display_name": "x"})
    assert view.connector.id.startswith("openai-compatible-")


@pytest.mark.parametrize(
    ("given", "at_fault"),
    [
        ({"id": "Bad Id"}, ["connector_id"]),
        ({"draft": {"display_name": " "}}, ["connector.display_name"]),
        ({"draft": {"display_name": "x" * 81}}, ["connector.display_name"]),
        ({"draft": {"display_name": "a\nb"}}, ["connector.display_name"]),
        ({"draft": {"model_hint": "m" * 81}}, ["connector.model_hint"]),
        ({"draft": {"settings": ConnectorSettings(idle_timeout_s=0.5)}}, ["connector.settings.idle_timeout"]),
        ({"draft": {"settings": ConnectorSettings(connect_timeout_s=61)}}, ["connector.settings.connect_timeout"]),
        ({"draft": {"settings": ConnectorSettings(call_timeout_s=float("nan"))}}, ["connector.settings.call_timeout"]),
        ({"draft": {"labels": {"Team": "x"}}}, ["connector.labels"]),
        ({"draft": {"labels": {f"k{n}": "" for n in range(17)}}}, ["connector.labels"]),
        ({"draft": {"display_name": "", "labels": {"": ""}}}, ["connector.display_name", "connector.labels"]),
    ],
)
async def test_what_is_wrong_is_named(bare: Bench, given: dict[str, Any], at_fault: list[str]) -> None:
    assert fields(await refused(create(bare, **given))) == at_fault
    assert await bare.store.list_connectors("acme", Page(size=1)) == []


@pytest.mark.parametrize(
    ("fields_", "at_fault"),
    [
        ({"base_url": " "}, "credential.openai_compatible.base_url"),
        ({"base_url": "http://u@127.0.0.1/v1"}, "credential.openai_compatible.base_url"),
        ({"base_url": "http://127.0.0.1/v1?a=b"}, "credential.openai_compatible.base_url"),
        ({"base_url": "ftp://127.0.0.1/v1"}, "credential.openai_compatible.base_url"),
        ({"api_key": "a\nb"}, "credential.openai_compatible.api_key"),
        ({"unheard_of": "x"}, "credential.openai_compatible.unheard_of"),
    ],
)
async def test_a_credential_s_field_at_fault_is_named_in_full(
    bare: Bench, fields_: dict[str, Any], at_fault: str
) -> None:
    error = await refused(create(bare, credential=credential(bare, **fields_)))
    assert fields(error) == [at_fault]
    assert KEY not in f"{error} {error.violations}"


async def test_an_address_that_policy_forbids_is_denied(bare: Bench) -> None:
    error = await refused(create(bare, credential=credential(bare, base_url="http://10.0.0.1/v1")))
    assert error.reason is Reason.POLICY_DENIED
    await bare.policy(host_allow_list=("llm.example",))
    error = await refused(create(bare, "other"))
    assert error.reason is Reason.POLICY_DENIED


async def test_a_type_that_policy_forbids_is_denied(bare: Bench) -> None:
    await bare.policy(allowed_types=("anthropic",))
    assert (await refused(create(bare))).reason is Reason.POLICY_DENIED


async def test_a_type_that_does_not_exist_is_refused(bare: Bench) -> None:
    error = await refused(create(bare, credential=Credential(type="nobody", fields={})))
    assert error.reason is Reason.INVALID_REQUEST


async def test_a_mistaken_type_is_found_when_it_is_made(bare: Bench) -> None:
    openai = Credential(type="openai", fields={"api_key": KEY})
    error = await refused(create(bare, credential=openai, draft={"model_hint": "meta-llama/llama-3"}))
    assert fields(error) == ["connector.model_hint"]
    assert "openrouter" in error.message


@pytest.mark.parametrize(
    ("id_", "name", "field"), [("made", "Other", "connector_id"), ("other", "Made made", "connector.display_name")]
)
async def test_what_is_taken_is_told_as_that(bare: Bench, id_: str, name: str, field: str) -> None:
    await create(bare)
    error = await refused(create(bare, id_, draft={"display_name": name}))
    assert (error.reason, error.violations[0].field) == (Reason.ALREADY_EXISTS, field)


async def test_validate_only_checks_everything_and_keeps_nothing(bare: Bench) -> None:
    await create(bare, validate_only=True)
    assert await bare.store.list_connectors("acme", Page(size=1)) == []
    assert await bare.audits(AuditType.CREATED) == []
    assert fields(await refused(create(bare, validate_only=True, draft={"display_name": ""})))


async def test_a_caller_creates_five_a_minute(bare: Bench) -> None:
    for number in range(5):
        await create(bare, f"c{number}")
    assert (await refused(create(bare, "c5"))).reason is Reason.RATE_LIMITED
    bare.clock.jump(60)
    await create(bare, "c5")


# --- whose they are ---

OPERATIONS = {
    "get": lambda bench, owner: bench.connectors.get(ME, owner, "theirs"),
    "update": lambda bench, owner: bench.connectors.update(
        ME, owner, "theirs", Draft(display_name="x"), ["display_name"], ""
    ),
    "delete": lambda bench, owner: bench.connectors.delete(ME, owner, "theirs", ""),
    "rotate": lambda bench, owner: bench.connectors.rotate(ME, owner, "theirs", credential(bench), ""),
    "test": lambda bench, owner: bench.connectors.test(ME, owner, "theirs", ""),
    "set_default": lambda bench, owner: bench.connectors.set_default(ME, owner, "theirs"),
    "models": lambda bench, owner: bench.connectors.models(ME, owner, "theirs", Query()),
    "prefer": lambda bench, owner: bench.connectors.set_preference(ME, "acme", "f", (owner, "theirs")),
}


@pytest.mark.parametrize("name", OPERATIONS)
async def test_another_owner_s_connector_looks_like_none_at_all(bench: Bench, name: str) -> None:
    await bench.add("theirs", owner="other")
    theirs = await refused(OPERATIONS[name](bench, "other"))
    nobodys = await refused(OPERATIONS[name](bench, "nobody"))
    none = await refused(OPERATIONS[name](bench, "acme"))
    assert theirs.reason is Reason.CONNECTOR_NOT_FOUND
    assert {(error.reason, error.message, error.violations) for error in (theirs, nobodys, none)} == {
        (theirs.reason, theirs.message, theirs.violations)
    }


async def test_everything_needs_the_scope_connectors(bench: Bench) -> None:
    stranger = make.caller(scopes=frozenset({Scope.CHAT, Scope.ADMIN}))
    for attempt in [
        bench.connectors.get(stranger, "acme", "main"),
        bench.connectors.list(stranger, "acme", Query()),
        bench.connectors.clear_default(stranger, "acme"),
        bench.connectors.clear_preference(stranger, "acme", "f"),
        bench.connectors.preferences(stranger, "acme", Query()),
        bench.connectors.effective_policy(stranger, "acme"),
        bench.connectors.types(stranger, "acme"),
        create(bench, caller=stranger),
    ]:
        assert (await refused(attempt)).reason is Reason.CALLER_NOT_AUTHORIZED


async def test_a_list_holds_the_owner_s_own_only(bench: Bench) -> None:
    await bench.add("theirs", owner="other")
    page = await bench.connectors.list(ME, "", Query())
    assert [view.connector.id for view in page.items] == ["main"]
    assert (await refused(bench.connectors.list(ME, "other", Query()))).reason is Reason.CALLER_NOT_AUTHORIZED


async def test_a_list_can_be_filtered_and_ordered(bench: Bench) -> None:
    await bench.add("claude", type="anthropic", labels={"team": "a"}, display_name="A")
    await bench.add("off", state=ConnectorState.DISABLED, display_name="B")
    for text, ids in {
        "type = anthropic": ["claude"],
        "state = DISABLED": ["off"],
        "labels.team = a": ["claude"],
        "state = ACTIVE AND type != anthropic": ["main"],
    }.items():
        page = await bench.connectors.list(ME, "acme", Query(filter=text))
        assert [view.connector.id for view in page.items] == ids
    page = await bench.connectors.list(ME, "acme", Query(order_by="display_name desc"))
    assert [view.connector.id for view in page.items] == ["main", "off", "claude"]


async def test_a_credential_that_cannot_be_opened_hides_nothing_but_itself(bench: Bench) -> None:
    connector = await bench.add("alien")
    bench.store._connectors[connector.uid] = msgspec.structs.replace(
        connector, sealed=msgspec.structs.replace(connector.sealed, key_id="lost")
    )
    view = await bench.connectors.get(ME, "acme", "alien")
    assert (view.connector.id, view.last_four, view.settings) == ("alien", "", {})


# --- update ---


async def test_an_update_changes_what_its_mask_names_and_nothing_else(bench: Bench) -> None:
    before = (await bench.connectors.get(ME, "acme", "main")).connector
    draft = Draft(display_name=" New ", model_hint="large", labels={"a": "b"})
    after = (await bench.connectors.update(ME, "acme", "main", draft, ["display_name"], "")).connector
    assert after.display_name == "New"
    assert (after.model_hint, after.labels, after.sealed) == (before.model_hint, before.labels, before.sealed)
    assert after.version == before.version + 1
    (event,) = await bench.audits(AuditType.UPDATED)
    assert event.changed_fields == ("display_name",)


async def test_a_field_that_is_left_alone_is_not_judged(bench: Bench) -> None:
    await bench.add("old", display_name="x" * 200)
    after = await bench.connectors.update(ME, "acme", "old", Draft(model_hint="m"), ["model_hint"], "")
    assert after.connector.model_hint == "m"


async def test_one_limit_can_be_changed_alone(bench: Bench) -> None:
    await bench.add("slow", settings=ConnectorSettings(idle_timeout_s=5, call_timeout_s=50))
    draft = Draft(settings=ConnectorSettings(idle_timeout_s=9))
    after = await bench.connectors.update(ME, "acme", "slow", draft, ["settings.idle_timeout"], "")
    assert after.connector.settings == ConnectorSettings(idle_timeout_s=9, call_timeout_s=50)


async def test_a_blank_model_hint_is_unset(bench: Bench) -> None:
    after = await bench.connectors.update(ME, "acme", "main", Draft(model_hint="  "), ["model_hint"], "")
    assert after.connector.model_hint is None


@pytest.mark.parametrize("mask", [[], ["name"], ["display_name", "etag"], ["monthly_token_cap"], ["settings.unknown"]])
async def test_a_mask_names_what_can_be_updated(bench: Bench, mask: list[str]) -> None:
    error = await refused(bench.connectors.update(ME, "acme", "main", Draft(display_name="x"), mask, ""))
    assert fields(error) == ["update_mask"]


async def test_an_old_etag_is_refused(bench: Bench) -> None:
    await bench.connectors.update(ME, "acme", "main", Draft(model_hint="a"), ["model_hint"], "1")
    error = await refused(bench.connectors.update(ME, "acme", "main", Draft(model_hint="b"), ["model_hint"], "1"))
    assert error.reason is Reason.ETAG_MISMATCH
    assert (await refused(bench.connectors.delete(ME, "acme", "main", "1"))).reason is Reason.ETAG_MISMATCH


@pytest.mark.parametrize(
    ("now", "wanted", "allowed"),
    [
        (ConnectorState.ACTIVE, ConnectorState.DISABLED, True),
        (ConnectorState.DISABLED, ConnectorState.ACTIVE, True),
        (ConnectorState.AUTH_INVALID, ConnectorState.DISABLED, True),
        (ConnectorState.AUTH_INVALID, ConnectorState.ACTIVE, False),
        (ConnectorState.REVOKED, ConnectorState.ACTIVE, False),
        (ConnectorState.REVOKED, ConnectorState.DISABLED, False),
        (ConnectorState.ACTIVE, ConnectorState.REVOKED, False),
        (ConnectorState.ACTIVE, ConnectorState.AUTH_INVALID, False),
        (ConnectorState.ACTIVE, None, False),
    ],
)
async def test_an_owner_disables_and_activates_and_no_more(
    bench: Bench, now: ConnectorState, wanted: ConnectorState | None, allowed: bool
) -> None:
    await bench.add("one", state=now)
    change = bench.connectors.update(ME, "acme", "one", Draft(state=wanted), ["state"], "")
    if allowed:
        assert (await change).connector.state is wanted
    else:
        assert fields(await refused(change)) == ["connector.state"]


# --- rotate ---


async def test_a_rotation_keeps_what_it_does_not_name(bench: Bench) -> None:
    new = Credential(type="openai_compatible", fields={"api_key": f"{PLANTED}-new-9999"})
    view = await bench.connectors.rotate(ME, "acme", "main", new, "")
    assert (view.last_four, view.settings["base_url"]) == ("9999", bench.provider.url() + "/v1")
    bench.provider.answer(answers.openai_unary())
    await bench.chat()
    assert bench.provider.requests[0].headers["authorization"] == f"Bearer {PLANTED}-new-9999"
    (event,) = await bench.audits(AuditType.ROTATED)
    assert event.changed_fields == ("api_key",)


async def test_a_rotation_makes_a_connector_with_a_refused_key_active_again(bench: Bench) -> None:
    bench.provider.answer(answers.error(401), answers.openai_unary())
    await refused(bench.chat())
    view = await bench.connectors.rotate(ME, "acme", "main", credential(bench), "")
    assert view.connector.state is ConnectorState.ACTIVE
    await bench.chat()


@pytest.mark.parametrize("given", [{}, {"api_key": ""}, {"api_key": "  "}, {"base_url": ""}])
async def test_a_rotation_to_nothing_is_refused(bench: Bench, given: dict[str, Any]) -> None:
    new = Credential(type="openai_compatible", fields=given)
    assert (await refused(bench.connectors.rotate(ME, "acme", "main", new, ""))).reason is Reason.INVALID_REQUEST


async def test_a_rotation_does_not_change_the_type_nor_raise_the_revoked(bench: Bench) -> None:
    other = Credential(type="anthropic", fields={"api_key": KEY})
    assert fields(await refused(bench.connectors.rotate(ME, "acme", "main", other, ""))) == ["credential"]
    await bench.add("gone", state=ConnectorState.REVOKED)
    error = await refused(bench.connectors.rotate(ME, "acme", "gone", credential(bench), ""))
    assert error.reason is Reason.CONNECTOR_INACTIVE


async def test_a_credential_that_cannot_be_opened_is_replaced_by_one_that_stands_alone(bench: Bench) -> None:
    connector = await bench.add("alien")
    bench.store._connectors[connector.uid] = msgspec.structs.replace(
        connector, sealed=msgspec.structs.replace(connector.sealed, key_id="lost")
    )
    part = Credential(type="openai_compatible", fields={"api_key": KEY})
    error = await refused(bench.connectors.rotate(ME, "acme", "alien", part, ""))
    assert error.reason is Reason.CREDENTIAL_UNREADABLE
    view = await bench.connectors.rotate(ME, "acme", "alien", credential(bench), "")
    assert view.last_four == KEY[-4:]


# --- default and preferences ---


async def test_the_default_is_one_and_is_switched(bench: Bench) -> None:
    await bench.add("second")
    await bench.connectors.set_default(ME, "acme", "main")
    view = await bench.connectors.set_default(ME, "acme", "second")
    assert view.connector.is_default
    assert not (await bench.connectors.get(ME, "acme", "main")).connector.is_default


async def test_a_default_that_another_process_set_can_be_cleared(bench: Bench) -> None:
    stale = bench.snapshots._version
    await bench.store.set_default("acme", "uid-acme-main", bench.audit(AuditType.DEFAULT_SET))
    assert bench.snapshots._version == stale, "this process has not heard of it"
    await bench.connectors.clear_default(ME, "acme")
    assert not (await bench.connectors.get(ME, "acme", "main")).connector.is_default
    await bench.connectors.clear_default(ME, "acme")
    assert len(await bench.audits(AuditType.DEFAULT_UNSET)) == 1


async def test_a_preference_is_set_replaced_listed_and_cleared(bench: Bench) -> None:
    await bench.add("second")
    await bench.connectors.set_preference(ME, "", "search", ("acme", "main"))
    preference = await bench.connectors.set_preference(ME, "", "search", ("acme", "second"))
    assert preference.connector == "owners/acme/connectors/second"
    page = await bench.connectors.preferences(ME, "", Query())
    assert [(item.feature, item.connector) for item in page.items] == [("search", "owners/acme/connectors/second")]
    await bench.connectors.clear_preference(ME, "", "search")
    await bench.connectors.clear_preference(ME, "", "search")
    assert (await bench.connectors.preferences(ME, "", Query())).items == ()
    assert len(await bench.audits(AuditType.PREFERENCE_CLEARED)) == 1


@pytest.mark.parametrize("feature", ["", "Search", "1a", "a" * 65, "a b"])
async def test_a_feature_has_the_form_of_one(bench: Bench, feature: str) -> None:
    for attempt in (
        bench.connectors.set_preference(ME, "", feature, ("acme", "main")),
        bench.connectors.clear_preference(ME, "", feature),
    ):
        assert fields(await refused(attempt)) == ["feature"]


async def test_deleting_clears_what_points_to_it_and_keeps_the_trail(bench: Bench) -> None:
    await bench.connectors.set_default(ME, "acme", "main")
    await bench.connectors.set_preference(ME, "", "search", ("acme", "main"))
    await bench.connectors.delete(ME, "acme", "main", "")
    assert (await bench.connectors.preferences(ME, "", Query())).items == ()
    assert (await refused(bench.chat())).reason is Reason.CONNECTOR_NOT_CONFIGURED
    assert len(await bench.audits(AuditType.DELETED)) == 1


# --- what there is ---


async def test_what_may_be_created_is_computed_as_it_is_enforced(bench: Bench) -> None:
    await bench.policy(allowed_types=("anthropic",))
    policy, allowed, has_default = await bench.connectors.effective_policy(ME, "")
    assert (policy.allowed_types, allowed, has_default) == (("anthropic",), ("anthropic",), False)
    views = await bench.connectors.types(ME, "")
    assert {view.info.type: view.allowed for view in views} == {
        info.type: info.type == "anthropic" for info in bench.registry.types()
    }


async def test_an_organisation_default_that_cannot_answer_is_none(bench: Bench) -> None:
    shared = await bench.add("shared", owner="platform")
    await bench.policy(organisation_default=shared.name)
    assert (await bench.connectors.effective_policy(ME, ""))[2]
    await bench.policy(allowed_types=())
    assert not (await bench.connectors.effective_policy(ME, ""))[2]


def model_page(*ids: str) -> list[Any]:
    return list(answers.json_answer({"object": "list", "data": [{"id": id_, "object": "model"} for id_ in ids]}))


async def listed(bench: Bench, id: str = "main") -> tuple[list[str], bool]:  # noqa: A002
    models, page = await bench.connectors.models(ME, "acme", id, Query())
    return [model.id for model in page.items], models.stale


async def test_models_are_asked_for_once_an_hour(bench: Bench) -> None:
    bench.provider.answer(model_page("a", "b"), model_page("c"))
    assert await listed(bench) == (["a", "b"], False)
    bench.clock.jump(MODELS_AGE_MAX_S - 1)
    assert await listed(bench) == (["a", "b"], False)
    bench.clock.jump(1)
    assert await listed(bench) == (["c"], False)


async def test_the_last_good_list_is_served_when_the_provider_cannot_be_asked(bench: Bench) -> None:
    bench.provider.answer(model_page("a"), answers.error(503), answers.error(401), model_page("b"))
    await listed(bench)
    bench.clock.jump(MODELS_AGE_MAX_S)
    assert await listed(bench) == (["a"], True)
    faults.fail(bench.store, "mark_auth_invalid")
    assert await listed(bench) == (["a"], True)
    assert await listed(bench) == (["b"], False)


async def test_without_a_good_list_the_failure_is_told(bench: Bench) -> None:
    bench.provider.answer(answers.error(503))
    assert (await refused(listed(bench))).reason is Reason.UPSTREAM_UNAVAILABLE


async def test_a_refused_key_is_noted_when_models_are_asked_for(bench: Bench) -> None:
    bench.provider.answer(answers.error(401))
    assert (await refused(listed(bench))).reason is Reason.UPSTREAM_CREDENTIAL_REJECTED
    assert len(await bench.audits(AuditType.AUTH_INVALID)) == 1


async def test_a_rotated_credential_has_a_list_of_its_own(bench: Bench) -> None:
    bench.provider.answer(model_page("a"), model_page("b"))
    await listed(bench)
    await bench.connectors.rotate(ME, "acme", "main", credential(bench), "")
    assert await listed(bench) == (["b"], False)


async def test_a_list_that_a_caller_changes_is_not_the_cached_one(bench: Bench) -> None:
    bench.provider.answer(model_page("a"))
    models, _ = await bench.connectors.models(ME, "acme", "main", Query())
    assert isinstance(models.models, tuple)
    with pytest.raises(AttributeError):
        models.models[0].id = "changed"  # type: ignore[misc]


@pytest.mark.parametrize("state", [ConnectorState.DISABLED, ConnectorState.REVOKED])
async def test_a_connector_that_is_off_is_not_asked_for_models(bench: Bench, state: ConnectorState) -> None:
    await bench.add("off", state=state)
    assert (await refused(listed(bench, "off"))).reason is Reason.CONNECTOR_INACTIVE


async def test_what_is_kept_of_lists_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connectors_module, "MODEL_LISTS_MAX", 2)
    monkeypatch.setattr(connectors_module, "MODELS_MAX", 3)
    for name in ("a", "b", "c"):
        await bench.add(name)
        bench.provider.answer(model_page("1", "2", "3", "4"), name=name)
        assert (await listed(bench, name))[0] == ["1", "2", "3"]
    assert len(bench.connectors._models) == 2


# --- tests of connectors ---


@pytest.mark.parametrize(
    ("script", "result"),
    [
        (model_page("small"), CheckResult.OK),
        (answers.error(401), CheckResult.AUTH_INVALID),
        (answers.error(429), CheckResult.RATE_LIMITED),
        (answers.error(429, "insufficient_quota"), CheckResult.QUOTA_EXCEEDED),
        (answers.error(503), CheckResult.PROVIDER_UNAVAILABLE),
        (answers.error(400), CheckResult.ERROR),
    ],
)
async def test_a_test_reports_what_a_real_call_shows_and_keeps_it(
    bench: Bench, script: Any, result: CheckResult
) -> None:
    bench.provider.always_answer(script)
    verdict, view = await bench.connectors.test(ME, "acme", "main", "")
    assert (verdict.result, view.connector.last_test_result) == (result, result)
    assert view.connector.last_test_at == bench.clock.now()
    invalid = result is CheckResult.AUTH_INVALID
    assert (view.connector.state is ConnectorState.AUTH_INVALID) == invalid
    assert len(await bench.audits(AuditType.AUTH_INVALID)) == int(invalid)
    assert view.connector.version == (2 if invalid else 1), "an observation is no change"


async def test_a_test_that_fails_again_is_audited_once(bench: Bench) -> None:
    bench.provider.always_answer(answers.error(401))
    for _ in range(3):
        await bench.connectors.test(ME, "acme", "main", "")
    assert len(await bench.audits(AuditType.AUTH_INVALID)) == 1


async def test_a_caller_tests_so_often_and_no_more(bench: Bench) -> None:
    bench.provider.always_answer(model_page("small"))
    for _ in range(5):
        await bench.connectors.test(ME, "acme", "main", "")
    error = await refused(bench.connectors.test(ME, "acme", "main", ""))
    assert (error.reason, error.retry_after_s) == (Reason.RATE_LIMITED, 60.0)


async def test_a_revoked_connector_is_not_tested(bench: Bench) -> None:
    await bench.add("gone", state=ConnectorState.REVOKED)
    assert (await refused(bench.connectors.test(ME, "acme", "gone", ""))).reason is Reason.CONNECTOR_INACTIVE


@pytest.mark.parametrize("model", ["m" * 257, "a\nb"])
async def test_a_test_s_model_is_checked(bench: Bench, model: str) -> None:
    assert fields(await refused(bench.connectors.test(ME, "acme", "main", model))) == ["model"]
    assert bench.provider.requests == []


async def test_a_provider_that_drips_its_answer_does_not_hold_a_test_for_ever(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt_module, "ASK_S_MAX", 0.05)
    bench.provider.answer([Head(200), b"{", Silence()], [Head(200), b"{", Silence()])
    async with asyncio.timeout(0.5):
        verdict, _ = await bench.connectors.test(ME, "acme", "main", "")
    assert verdict.result is CheckResult.PROVIDER_UNAVAILABLE
    assert verdict.failure is not None
    assert verdict.failure.reason is Reason.UPSTREAM_TIMEOUT


async def test_a_key_that_was_rotated_meanwhile_is_not_blamed(bench: Bench) -> None:
    pause = Pause()
    bench.provider.answer([pause, *answers.error(401)])
    call = asyncio.create_task(refused(bench.chat()))
    await pause.reached.wait()
    await bench.connectors.rotate(ME, "acme", "main", credential(bench), "")
    pause.open()
    assert (await call).reason is Reason.UPSTREAM_CREDENTIAL_REJECTED
    assert (await bench.connectors.get(ME, "acme", "main")).connector.state is ConnectorState.ACTIVE
    assert await bench.audits(AuditType.AUTH_INVALID) == []
