"""The administrators' side: all owners' connectors, tokens and policy."""

import asyncio
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from tests.support import answers, faults, make
from tests.support.bench import Bench
from tests.support.clock import START
from tests.support.provider import Pause

from patchbay_server.core.admin import CHANGE_TRIES, POLICY_PATHS, CapChange
from patchbay_server.core.listing import Query
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.testing.store_suite import attempt_closed, attempt_opened, call_closed, call_opened
from patchbay_server.types import (
    AuditType,
    Caller,
    CapMode,
    ChatCompleted,
    Connector,
    ConnectorState,
    FallbackMode,
    Hold,
    Policy,
    Price,
    PrivateHttp,
    Scope,
    Sealed,
)
from patchbay_server.usage import Usage

ROOT = make.caller(None, id="root")
BOUND = make.caller("acme", id="bound")
MAIN = ("acme", "main")
CHOSEN = "pb_bootstrap01_" + "A" * 40


async def refused(coroutine: Any) -> PatchbayError:
    with pytest.raises(PatchbayError) as caught:
        await coroutine
    return caught.value


def fields(error: PatchbayError) -> list[str]:
    assert error.reason is Reason.INVALID_REQUEST
    return [violation.field for violation in error.violations]


async def issue(bench: Bench, **given: Any) -> Any:
    told = {"display_name": "ci", "scopes": [Scope.CHAT], "owner": "acme", "expires_at": None} | given
    return await bench.admin.create_token(ROOT, **told)


async def change(bench: Bench, mask: list[str], etag: str = "", **policy: Any) -> Policy:
    return await bench.admin.update_policy(ROOT, make.policy(**policy), mask, etag)


async def test_everything_needs_the_scope_admin(bench: Bench) -> None:
    stranger = make.caller(None, scopes=frozenset({Scope.CHAT, Scope.CONNECTORS}))
    for attempt in [
        bench.admin.create_token(stranger, "x", [Scope.CHAT], None, None),
        bench.admin.tokens(stranger, Query()),
        bench.admin.revoke_token(stranger, "x"),
        bench.admin.policy(stranger),
        bench.admin.update_policy(stranger, make.policy(), ["host_allow_list"], ""),
        bench.admin.connectors(stranger, Query()),
        bench.admin.revoke_connector(stranger, MAIN, ""),
        bench.admin.set_cap(stranger, MAIN, CapChange(tokens=1), ""),
    ]:
        assert (await refused(attempt)).reason is Reason.CALLER_NOT_AUTHORIZED


# --- connectors ---


async def overview(bench: Bench, caller: Caller = ROOT, **query: Any) -> list[str]:
    """The names of the listed connectors, shortened to owner/id."""
    page = await bench.admin.connectors(caller, Query(**query))
    return [f"{one.connector.owner}/{one.connector.id}" for one in page.items]


async def fleet(bench: Bench) -> None:
    """Connectors of two owners beside acme/main, of which some have used tokens."""
    await bench.add("second", display_name="A", monthly_token_cap=100)
    await bench.add("x", owner="zoo", type="openai", state=ConnectorState.DISABLED, monthly_token_cap=9)
    for connector_id, tokens in (("main", 20), ("second", 7)):
        await use(bench, f"uid-acme-{connector_id}", tokens)


async def use(bench: Bench, uid: str, tokens: int) -> None:
    usage = Usage(input_tokens=tokens, total_tokens=tokens)
    call_id = f"call of {uid}"
    await bench.store.write_records(
        [
            call_opened(call_id),
            attempt_opened(call_id, connector_uid=uid),
            attempt_closed(call_id, usage=usage, ended_at=bench.clock.now()),
            call_closed(call_id),
        ]
    )


async def test_an_overview_tells_of_all_owners_with_what_is_taken_of_each_cap(bench: Bench) -> None:
    await fleet(bench)
    await change(bench, ["org_default_connector"], organisation_default="owners/acme/connectors/second")
    held = Hold(
        call_id="running", number=1, connector_uid="uid-acme-second", tokens=30, expires_at=START + timedelta(hours=1)
    )
    assert await bench.store.hold_tokens(held, 100, "2026-11", START)
    asked = faults.count(bench.store, "cap_use")
    page = await bench.admin.connectors(ROOT, Query())
    told = [(one.connector.name, one.use.tokens, one.use.held, one.organisation_default) for one in page.items]
    assert told == [
        ("owners/acme/connectors/main", 20, 0, False),
        ("owners/acme/connectors/second", 7, 30, True),
        ("owners/zoo/connectors/x", 0, 0, False),
    ]
    assert len(asked) == 1
    assert [len(one.view.last_four) for one in page.items] == [4, 4, 4]


async def test_what_was_used_in_another_month_is_not_told(bench: Bench) -> None:
    await use(bench, "uid-acme-main", 20)
    bench.clock.jump((make.at("2026-12-01T00:00:00Z") - START).total_seconds())
    assert await overview(bench, filter="month_tokens > 0") == []


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({"filter": 'owner = "owners/zoo"'}, ["zoo/x"]),
        ({"filter": "type = openai"}, ["zoo/x"]),
        ({"filter": "state != ACTIVE"}, ["zoo/x"]),
        ({"filter": 'display_name = "A"'}, ["acme/second"]),
        ({"filter": 'last_test_result = ""'}, ["acme/main", "acme/second", "zoo/x"]),
        ({"filter": "last_test_result = OK"}, []),
        ({"filter": 'monthly_token_cap = ""'}, ["acme/main"]),
        ({"filter": "monthly_token_cap < 100"}, ["zoo/x"]),
        ({"filter": "state = ACTIVE AND month_tokens > 6 AND month_tokens <= 19"}, ["acme/second"]),
        ({"order_by": "name desc"}, ["zoo/x", "acme/second", "acme/main"]),
        ({"order_by": "display_name"}, ["acme/second", "acme/main", "zoo/x"]),
        ({"order_by": "type"}, ["zoo/x", "acme/main", "acme/second"]),
        ({"order_by": "state desc"}, ["zoo/x", "acme/second", "acme/main"]),
        ({"order_by": "month_tokens"}, ["zoo/x", "acme/second", "acme/main"]),
        ({"order_by": "month_tokens desc"}, ["acme/main", "acme/second", "zoo/x"]),
        ({"order_by": "create_time"}, ["acme/main", "acme/second", "zoo/x"]),
        ({"order_by": "last_used_time"}, ["acme/main", "acme/second", "zoo/x"]),
    ],
)
async def test_connectors_are_filtered_and_ordered(bench: Bench, query: dict[str, str], found: list[str]) -> None:
    await fleet(bench)
    assert await overview(bench, **query) == found
    one = await bench.admin.connectors(ROOT, Query(page_size=1, **query))
    rest = await overview(bench, page_token=one.next_page_token, **query) if one.next_page_token else []
    assert [*(f"{first.connector.owner}/{first.connector.id}" for first in one.items), *rest] == found


@pytest.mark.parametrize(
    ("query", "at_fault"),
    [
        ({"filter": "name = x"}, ["filter"]),
        ({"filter": "reserved_tokens > 1"}, ["filter"]),
        ({"filter": "state > ACTIVE"}, ["filter"]),
        ({"filter": "month_tokens > many"}, ["filter"]),
        ({"order_by": "owner"}, ["order_by"]),
        ({"order_by": "monthly_token_cap"}, ["order_by"]),
        ({"page_size": -1}, ["page_size"]),
        ({"page_token": "x"}, ["page_token"]),
    ],
)
async def test_what_is_wrong_with_a_query_is_named(bench: Bench, query: dict[str, Any], at_fault: list[str]) -> None:
    assert fields(await refused(bench.admin.connectors(ROOT, Query(**query)))) == at_fault


async def test_an_administrator_of_one_owner_sees_and_changes_that_owner_s_only(bench: Bench) -> None:
    await fleet(bench)
    assert await overview(bench, BOUND) == ["acme/main", "acme/second"]
    assert await overview(bench, BOUND, filter='owner = "owners/zoo"') == []
    token = (await bench.admin.connectors(ROOT, Query(page_size=1))).next_page_token
    assert fields(await refused(overview(bench, BOUND, page_token=token))) == ["page_token"]
    theirs = [
        bench.admin.revoke_connector(BOUND, ("zoo", "x"), ""),
        bench.admin.set_cap(BOUND, ("zoo", "x"), CapChange(tokens=1), "1"),
    ]
    none = [
        bench.admin.revoke_connector(BOUND, ("acme", "none"), ""),
        bench.admin.set_cap(BOUND, ("acme", "none"), CapChange(tokens=1), "1"),
    ]
    told = {(error.reason, error.message) for error in [await refused(attempt) for attempt in (*theirs, *none)]}
    assert {reason for reason, _ in told} == {Reason.CONNECTOR_NOT_FOUND}
    assert len(told) == 1
    await bench.admin.set_cap(BOUND, MAIN, CapChange(tokens=1), "")


async def test_a_revoked_connector_has_no_credential_and_nothing_points_to_it(bench: Bench) -> None:
    main = await bench.found(make.connector())
    await bench.store.set_default("acme", main.uid, bench.audit(AuditType.DEFAULT_SET, main))
    await bench.store.set_preference("acme", "search", main.uid, START, bench.audit(AuditType.PREFERENCE_SET, main))
    await change(bench, ["org_default_connector"], organisation_default=main.name)
    view = await bench.admin.revoke_connector(ROOT, MAIN, str(main.version))
    assert (view.connector.state, view.connector.is_default) == (ConnectorState.REVOKED, False)
    assert (view.last_four, view.settings) == ("", {})
    assert list(bench.vault.open(main.uid, view.connector.sealed)) == []
    snapshot = await bench.store.snapshot("acme")
    assert (snapshot.preferences, snapshot.organisation_default) == ({}, None)
    assert snapshot.policy.organisation_default is None
    (event,) = await bench.audits(AuditType.REVOKED)
    assert (event.actor, event.subject, event.owner, event.connector_uid) == ("root", main.name, "acme", main.uid)
    assert (await refused(bench.chat(connector="main"))).reason is Reason.CONNECTOR_INACTIVE
    assert (await refused(bench.chat())).reason is Reason.CONNECTOR_NOT_CONFIGURED


async def test_revoking_twice_changes_nothing(bench: Bench) -> None:
    once = await bench.admin.revoke_connector(ROOT, MAIN, "")
    assert await bench.admin.revoke_connector(ROOT, MAIN, str(once.connector.version)) == once
    assert len(await bench.audits(AuditType.REVOKED)) == 1


async def test_a_connector_whose_credential_nobody_can_open_is_revoked_all_the_same(bench: Bench) -> None:
    await bench.add("broken")
    found = await bench.found(make.connector("broken"))
    assert await bench.store.reseal_connector(found.uid, found.sealed, Sealed(b"rubbish", "key-0"))
    view = await bench.admin.revoke_connector(ROOT, ("acme", "broken"), "")
    assert view.connector.sealed.key_id == "key-1"


CAPS: list[tuple[dict[str, Any], CapChange, tuple[int | None, CapMode], tuple[str, ...]]] = [
    ({}, CapChange(tokens=5), (5, CapMode.SOFT), ("monthly_token_cap",)),
    ({}, CapChange(tokens=0), (0, CapMode.SOFT), ("monthly_token_cap",)),
    ({}, CapChange(tokens=5, mode=CapMode.HARD), (5, CapMode.HARD), ("cap_mode", "monthly_token_cap")),
    ({"monthly_token_cap": 5}, CapChange(tokens=5, mode=CapMode.HARD), (5, CapMode.HARD), ("cap_mode",)),
    (
        {"monthly_token_cap": 5, "cap_mode": CapMode.HARD},
        CapChange(tokens=6),
        (6, CapMode.HARD),
        ("monthly_token_cap",),
    ),
    ({"cap_mode": CapMode.HARD}, CapChange(tokens=6), (6, CapMode.SOFT), ("cap_mode", "monthly_token_cap")),
    (
        {"monthly_token_cap": 5, "cap_mode": CapMode.HARD},
        CapChange(tokens=None),
        (None, CapMode.SOFT),
        ("cap_mode", "monthly_token_cap"),
    ),
]


@pytest.mark.parametrize(("before", "cap", "after", "named"), CAPS)
async def test_a_cap_is_set_and_cleared_and_the_fields_that_changed_are_in_the_trail(
    bench: Bench, before: dict[str, Any], cap: CapChange, after: tuple[int | None, CapMode], named: tuple[str, ...]
) -> None:
    await bench.add("capped", **before)
    made = (await bench.admin.set_cap(ROOT, ("acme", "capped"), cap, "1")).connector
    assert (made.monthly_token_cap, made.cap_mode, made.version) == (*after, 2)
    (event,) = await bench.audits(AuditType.CAP_CHANGED)
    assert (event.changed_fields, event.actor, event.subject) == (named, "root", made.name)


async def test_a_cap_that_is_as_it_was_changes_nothing(bench: Bench) -> None:
    await bench.add("capped", monthly_token_cap=5, cap_mode=CapMode.HARD)
    for cap in (CapChange(tokens=5), CapChange(tokens=5, mode=CapMode.HARD)):
        assert (await bench.admin.set_cap(ROOT, ("acme", "capped"), cap, "")).connector.version == 1
    assert await bench.audits(AuditType.CAP_CHANGED) == []


@pytest.mark.parametrize(
    ("cap", "at_fault"),
    [
        (CapChange(tokens=-1), ["monthly_token_cap"]),
        (CapChange(tokens=2**63), ["monthly_token_cap"]),
        (CapChange(tokens=None, mode=CapMode.HARD), ["cap_mode"]),
    ],
)
async def test_what_is_wrong_with_a_cap_is_named(bench: Bench, cap: CapChange, at_fault: list[str]) -> None:
    assert fields(await refused(bench.admin.set_cap(ROOT, MAIN, cap, ""))) == at_fault


async def test_a_cap_counts_for_the_next_call(bench: Bench) -> None:
    await bench.admin.set_cap(ROOT, MAIN, CapChange(tokens=0), "")
    assert (await refused(bench.chat())).reason is Reason.CAP_REACHED
    await bench.admin.set_cap(ROOT, MAIN, CapChange(tokens=None), "")
    bench.provider.answer(answers.openai_unary())
    assert await bench.chat()


async def test_a_cap_that_is_set_while_a_call_runs_does_not_disturb_it(bench: Bench) -> None:
    gate = Pause()
    head, *said = answers.openai_stream()
    bench.provider.answer([head, *said[:2], gate, *said[2:]])
    events: list[Any] = []
    async for batch in bench.batches():
        events += batch
        if not gate.opened.is_set():
            await bench.admin.set_cap(ROOT, MAIN, CapChange(tokens=0), "")
            gate.open()
    assert isinstance(events[-1], ChatCompleted)
    assert (await refused(bench.chat())).reason is Reason.CAP_REACHED


async def test_an_old_etag_of_a_connector_is_refused(bench: Bench) -> None:
    await bench.admin.set_cap(ROOT, MAIN, CapChange(tokens=5), "1")
    for attempt in (
        bench.admin.set_cap(ROOT, MAIN, CapChange(tokens=6), "1"),
        bench.admin.revoke_connector(ROOT, MAIN, "1"),
    ):
        error = await refused(attempt)
        assert (error.reason, [violation.field for violation in error.violations]) == (Reason.ETAG_MISMATCH, ["etag"])


async def changed_meanwhile(bench: Bench, times: int) -> None:
    """Let somebody else change acme/main between the reading and the saving of it, so many times."""
    real, left = bench.store.find_connector, [times]

    async def find(owner: str, connector_id: str) -> Connector | None:
        found = await real(owner, connector_id)
        if found is not None and left[0]:
            left[0] -= 1
            hint = msgspec.structs.replace(found, model_hint=f"hint {left[0]}", version=found.version + 1)
            await bench.store.save_connector(hint, found.version, [bench.audit(AuditType.UPDATED, found)])
        return found

    bench.store.find_connector = find  # type: ignore[method-assign]


async def test_a_revocation_without_an_etag_holds_whatever_others_change_meanwhile(bench: Bench) -> None:
    await changed_meanwhile(bench, CHANGE_TRIES - 1)
    view = await bench.admin.revoke_connector(ROOT, MAIN, "")
    assert (view.connector.state, view.connector.model_hint) == (ConnectorState.REVOKED, "hint 0")
    assert len(await bench.audits(AuditType.REVOKED)) == 1


async def test_a_change_that_others_keep_from_being_made_is_told_in_the_end(bench: Bench) -> None:
    await changed_meanwhile(bench, CHANGE_TRIES)
    assert (await refused(bench.admin.revoke_connector(ROOT, MAIN, ""))).reason is Reason.ETAG_MISMATCH
    await changed_meanwhile(bench, 1)
    version = str((await bench.found(make.connector())).version)
    assert (await refused(bench.admin.revoke_connector(ROOT, MAIN, version))).reason is Reason.ETAG_MISMATCH


# --- tokens ---


async def test_a_new_token_works_and_its_text_is_kept_nowhere(bench: Bench) -> None:
    token, text = await issue(bench, display_name=" ci ")
    caller = await bench.access.authenticate(text)
    assert (caller.id, caller.owner, caller.scopes) == (token.id, "acme", {Scope.CHAT})
    stored = await bench.store.find_token(token.id)
    assert stored is not None
    assert stored.display_name == "ci"
    assert text.encode() not in stored.digest
    assert text.split("_", 2)[2] not in repr(stored)
    (event,) = await bench.audits(AuditType.TOKEN_CREATED)
    assert (event.subject, event.actor) == (f"tokens/{token.id}", "root")


@pytest.mark.parametrize(
    ("given", "at_fault"),
    [
        ({"display_name": " "}, ["token.display_name"]),
        ({"display_name": "x" * 81}, ["token.display_name"]),
        ({"display_name": "a\x00"}, ["token.display_name"]),
        ({"scopes": []}, ["token.scopes"]),
        ({"scopes": [Scope.CHAT, Scope.CHAT]}, ["token.scopes"]),
        ({"owner": "Acme"}, ["token.owner"]),
        ({"owner": ""}, ["token.owner"]),
        ({"expires_at": START}, ["token.expire_time"]),
        ({"display_name": "", "scopes": []}, ["token.display_name", "token.scopes"]),
    ],
)
async def test_what_is_wrong_with_a_token_is_named(bench: Bench, given: dict[str, Any], at_fault: list[str]) -> None:
    assert fields(await refused(issue(bench, **given))) == at_fault


async def test_a_revoked_token_is_refused_at_once_and_revoking_twice_is_once(bench: Bench) -> None:
    token, text = await issue(bench)
    await bench.access.authenticate(text)
    await bench.admin.revoke_token(ROOT, token.id)
    assert (await refused(bench.access.authenticate(text))).reason is Reason.CALLER_UNAUTHENTICATED
    again = await bench.admin.revoke_token(ROOT, token.id)
    assert again.revoked_at == START
    assert len(await bench.audits(AuditType.TOKEN_REVOKED)) == 1


async def test_a_token_that_does_not_exist_cannot_be_revoked(bench: Bench) -> None:
    assert (await refused(bench.admin.revoke_token(ROOT, "nobody00"))).reason is Reason.RESOURCE_NOT_FOUND
    assert await bench.audits(AuditType.TOKEN_REVOKED) == []


async def test_tokens_are_listed_in_pages_without_their_secrets(bench: Bench) -> None:
    texts = [(await issue(bench, display_name=name, expires_at=START + timedelta(days=1)))[1] for name in "abc"]
    one = await bench.admin.tokens(ROOT, Query(page_size=2, order_by="display_name"))
    two = await bench.admin.tokens(ROOT, Query(page_size=2, order_by="display_name", page_token=one.next_page_token))
    assert [token.display_name for token in (*one.items, *two.items)] == ["a", "b", "c"]
    assert not any(text in repr(one) + repr(two) for text in texts)
    only = await bench.admin.tokens(ROOT, Query(filter='owner = "owners/acme" AND display_name = b'))
    assert [token.display_name for token in only.items] == ["b"]


async def test_the_first_start_makes_one_administrator(bench: Bench) -> None:
    text = await bench.admin.bootstrap(None)
    assert text is not None
    caller = await bench.access.authenticate(text)
    assert (caller.owner, caller.scopes) == (None, frozenset(Scope))
    assert await bench.admin.bootstrap(None) is None
    assert await bench.admin.bootstrap(CHOSEN) is None


async def test_the_first_administrator_s_token_may_be_chosen(bench: Bench) -> None:
    assert fields(await refused(bench.admin.bootstrap("password"))) == []
    assert await bench.admin.bootstrap(CHOSEN) == CHOSEN
    assert (await bench.access.authenticate(CHOSEN)).owner is None


# --- policy ---


async def test_an_update_changes_what_its_mask_names(bench: Bench) -> None:
    before = await bench.admin.policy(ROOT)
    after = await change(bench, ["call_log_retention_days"], call_log_retention_days=90, host_allow_list=("a.test",))
    assert (after.call_log_retention_days, after.host_allow_list) == (90, before.host_allow_list)
    assert after.version == before.version + 1
    assert after == await bench.admin.policy(ROOT)
    event = (await bench.audits(AuditType.POLICY_CHANGED))[-1]
    assert (event.changed_fields, event.actor) == (("call_log_retention_days",), "root")


async def test_every_path_of_the_mask_names_a_field_of_the_policy(bench: Bench) -> None:
    assert set(POLICY_PATHS.values()) | {"updated_at", "version"} == set(Policy.__struct_fields__)


async def test_policy_counts_for_the_next_call(bench: Bench) -> None:
    await change(bench, ["allowed_connector_types"], allowed_types=())
    assert (await refused(bench.chat(connector="main"))).reason is Reason.POLICY_DENIED


@pytest.mark.parametrize(
    ("path", "given"),
    [
        ("call_log_retention_days", {"call_log_retention_days": 6}),
        ("call_log_retention_days", {"call_log_retention_days": 366}),
        ("host_allow_list", {"host_allow_list": ("LLM.example",)}),
        ("host_allow_list", {"host_allow_list": ("http://a.test",)}),
        ("host_allow_list", {"host_allow_list": ("*",)}),
        ("host_allow_list", {"host_allow_list": ("a..b",)}),
        ("host_allow_list", {"host_allow_list": ("*.10.0.0.1",)}),
        ("host_allow_list", {"host_allow_list": ("a.test",) * 1_001}),
        ("allowed_connector_types", {"allowed_types": ("openai", "nobody")}),
        ("model_aliases", {"model_aliases": {"default": "x"}}),
        ("model_aliases", {"model_aliases": {"patchbay/auto": "x"}}),
        ("model_aliases", {"model_aliases": {"": "x"}}),
        ("model_aliases", {"model_aliases": {"a": "x" * 257}}),
        ("quality_priors", {"quality_priors": {"m": 1.1}}),
        ("quality_priors", {"quality_priors": {"m": float("nan")}}),
        ("quality_priors", {"quality_priors": {"m" * 257: 0.5}}),
        ("quality_priors", {"quality_priors": {f"m{n}": 0.5 for n in range(1_001)}}),
        ("price_overrides", {"price_overrides": {"m": Price()}}),
        ("price_overrides", {"price_overrides": {"m": Price(input_usd_nanos=-1)}}),
        ("price_overrides", {"price_overrides": {"": Price(input_usd_nanos=1)}}),
    ],
)
async def test_what_is_wrong_with_a_policy_is_named(bench: Bench, path: str, given: dict[str, Any]) -> None:
    assert set(fields(await refused(change(bench, [path], **given)))) == {f"policy.{path}"}


@pytest.mark.parametrize(
    ("path", "given"),
    [
        ("call_log_retention_days", {"call_log_retention_days": 7}),
        ("call_log_retention_days", {"call_log_retention_days": 365}),
        ("host_allow_list", {"host_allow_list": ("*.a.test", "b.test", "10.0.0.1", "2606:4700::1111")}),
        ("private_http", {"private_http": PrivateHttp.PRIVATE}),
        ("default_fallback", {"default_fallback": FallbackMode.OWNER_CHAIN}),
        ("model_aliases", {"model_aliases": {"fast": "patchbay/cost"}}),
        ("quality_priors", {"quality_priors": {"m": 0.0}}),
        ("price_overrides", {"price_overrides": {"m": Price(input_usd_nanos=0)}}),
        ("allowed_connector_types", {"allowed_types": None}),
    ],
)
async def test_a_good_policy_is_kept(bench: Bench, path: str, given: dict[str, Any]) -> None:
    ((field, value),) = given.items()
    assert getattr(await change(bench, [path], **given), field) == value


@pytest.mark.parametrize("mask", [[], ["version"], ["call_log_retention_days", "nothing"]])
async def test_a_mask_names_what_can_be_updated(bench: Bench, mask: list[str]) -> None:
    assert fields(await refused(change(bench, mask))) == ["update_mask"]


async def test_an_old_etag_is_refused(bench: Bench) -> None:
    now = await bench.admin.policy(ROOT)
    await change(bench, ["default_fallback"], str(now.version))
    assert (await refused(change(bench, ["default_fallback"], str(now.version)))).reason is Reason.ETAG_MISMATCH


async def test_of_two_updates_at_once_one_is_told_to_read_again(bench: Bench) -> None:
    gate = faults.hold(bench.store, "policy")
    both = [asyncio.create_task(change(bench, ["default_fallback"])) for _ in range(2)]
    await gate.crowd(2)
    gate.open()
    results = await asyncio.gather(*both, return_exceptions=True)
    assert [getattr(result, "reason", None) for result in results].count(Reason.ETAG_MISMATCH) == 1


async def test_the_organisation_default_exists_and_is_active(bench: Bench) -> None:
    await bench.add("off", state=ConnectorState.DISABLED)
    mask = ["org_default_connector"]
    for name, reason in {
        "owners/acme/connectors/none": Reason.CONNECTOR_NOT_FOUND,
        "rubbish": Reason.CONNECTOR_NOT_FOUND,
        "owners/acme/connectors/off": Reason.CONNECTOR_INACTIVE,
    }.items():
        assert (await refused(change(bench, mask, organisation_default=name))).reason is reason
    await change(bench, mask, organisation_default="owners/acme/connectors/main")
    assert (await change(bench, mask, organisation_default=None)).organisation_default is None
