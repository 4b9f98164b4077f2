# ruff: noqa: S101 -- a pytest suite states its rules with `assert`
"""What every store must do, as tests: the sentences of `store.protocol`.

A store's own tests make a class of it and give it a fixture `store`, an open and empty store that the fixture closes:

    class TestMyStore(StoreSuite):
        pass

The functions that make connectors, events and records are for other tests, too.
"""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

import pytest
from msgspec.structs import replace

from patchbay_server.errors import PatchbayError, Reason, UpstreamFailure
from patchbay_server.store import audit_chain
from patchbay_server.store.protocol import AuditHead, Page, Store
from patchbay_server.types import (
    AttemptClosed,
    AttemptOpened,
    Audited,
    AuditEvent,
    AuditType,
    CallClosed,
    CallOpened,
    CallState,
    CapMode,
    CapUse,
    CheckResult,
    Connector,
    ConnectorSettings,
    ConnectorState,
    ConnectorUsed,
    FallbackMode,
    FinishReason,
    Hold,
    Policy,
    Price,
    PrivateHttp,
    Record,
    ResolvedBy,
    RoutingOutcome,
    Scope,
    Sealed,
    Token,
)
from patchbay_server.usage import Usage, UsageSource

NOW: Final = datetime(2026, 11, 20, 12, 0, 0, 123456, tzinfo=UTC)
LATER: Final = NOW + timedelta(minutes=1)
MONTH: Final = "2026-11"
ALL: Final = Page(size=1000)

T = TypeVar("T")
Fields = dict[str, Any]

# --- values ---------------------------------------------------------------------------------------------------------


def a_connector(uid: str = "uid-1", owner: str = "alice", **fields: Any) -> Connector:
    """An active connector; id and display name come from the uid."""
    defaults: Fields = {
        "id": uid,
        "type": "openai",
        "display_name": f"The {uid}",
        "sealed": Sealed(b"sealed " + uid.encode(), "k1"),
    }
    times: Fields = {"rotated_at": NOW, "created_at": NOW, "updated_at": NOW}
    return Connector(uid=uid, owner=owner, **(defaults | times | fields))


def an_event(type: AuditType = AuditType.UPDATED, **fields: Any) -> AuditEvent:  # noqa: A002 -- the field's name
    defaults: Fields = {"at": NOW, "actor": "tokens/t", "subject": "owners/alice/connectors/c"}
    return AuditEvent(type=type, **(defaults | fields))


def a_token(name: str = "token-1", **fields: Any) -> Token:
    defaults: Fields = {
        "digest": b"\x00digest\xff",
        "display_name": "CI",
        "scopes": frozenset({Scope.CHAT}),
        "owner": "alice",
        "created_at": NOW,
    }
    return Token(id=name, **(defaults | fields))


def a_hold(call_id: str = "call-1", number: int = 1, **fields: Any) -> Hold:
    defaults: Fields = {"connector_uid": "uid-1", "tokens": 10, "expires_at": LATER}
    return Hold(call_id=call_id, number=number, **(defaults | fields))


def call_opened(call_id: str = "call-1", **fields: Any) -> CallOpened:
    defaults: Fields = {
        "process_id": "process-1",
        "caller": "token-1",
        "owner": "alice",
        "feature": "chat",
        "requested_model": "gpt",
        "streaming": True,
        "labels": {"team": "search"},
        "request_id": "",
        "started_at": NOW,
    }
    return CallOpened(call_id=call_id, **(defaults | fields))


def attempt_opened(call_id: str = "call-1", number: int = 1, **fields: Any) -> AttemptOpened:
    defaults: Fields = {"connector_uid": "uid-1", "provider": "openai", "model": "gpt", "started_at": NOW}
    return AttemptOpened(call_id=call_id, number=number, **(defaults | fields))


def attempt_closed(call_id: str = "call-1", number: int = 1, **fields: Any) -> AttemptClosed:
    defaults: Fields = {
        "state": CallState.SUCCEEDED,
        "reason": None,
        "failure": UpstreamFailure(),
        "usage": Usage(input_tokens=10, output_tokens=5, total_tokens=15),
        "first_output_s": 0.25,
        "latency_s": 1.5,
        "ended_at": LATER,
    }
    return AttemptClosed(call_id=call_id, number=number, **(defaults | fields))


def call_closed(call_id: str = "call-1", **fields: Any) -> CallClosed:
    defaults: Fields = {
        "state": CallState.SUCCEEDED,
        "reason": None,
        "connector_uid": "uid-1",
        "provider": "openai",
        "model": "gpt",
        "resolved_by": ResolvedBy.OWNER_DEFAULT,
        "finish_reason": FinishReason.STOP,
        "usage": Usage(input_tokens=10, output_tokens=5, total_tokens=15),
        "attempts": 1,
        "first_output_s": 0.25,
        "latency_s": 1.5,
        "ended_at": LATER,
    }
    return CallClosed(call_id=call_id, **(defaults | fields))


def a_whole_call(call_id: str = "call-1", **opened: Any) -> list[Record]:
    return [call_opened(call_id, **opened), attempt_opened(call_id), attempt_closed(call_id), call_closed(call_id)]


async def all_pages(read: Callable[[Page], Awaitable[Sequence[T]]], key: Callable[[T], str], size: int) -> list[T]:
    """Every row, read a page at a time."""
    rows: list[T] = []
    while page := await read(Page(size=size, after=key(rows[-1]) if rows else "")):
        assert len(page) <= size
        rows.extend(page)
    return rows


async def audit_types(store: Store) -> list[AuditType]:
    return [row.type for row in await store.list_audit(ALL)]


def reasons(results: Sequence[object]) -> list[Reason | None]:
    """What each of several tries together came to; None is success."""
    return [result.reason if isinstance(result, PatchbayError) else None for result in results]


# --- the suite ------------------------------------------------------------------------------------------------------


async def create(store: Store, *made: Connector) -> None:
    for connector in made:
        await store.create_connector(connector, an_event(AuditType.CREATED))


async def _stored(store: Store, connector: Connector) -> Connector:
    found = await store.find_connector(connector.owner, connector.id)
    assert found is not None
    return found


async def _point_at(store: Store, connector: Connector, *, policy_version: int = 1) -> None:
    """Let a default flag, two preferences and the organisation default point to the connector."""
    await store.set_default(connector.owner, connector.uid, an_event(AuditType.DEFAULT_SET))
    for feature in ("chat", "search"):
        await store.set_preference(connector.owner, feature, connector.uid, NOW, an_event(AuditType.PREFERENCE_SET))
    policy = Policy(organisation_default=connector.name, updated_at=NOW, version=policy_version + 1)
    await store.save_policy(policy, policy_version, an_event(AuditType.POLICY_CHANGED))


async def _assert_nothing_points(store: Store, owner: str) -> None:
    snapshot = await store.snapshot(owner)
    assert not any(connector.is_default for connector in snapshot.connectors)
    assert snapshot.preferences == {}
    assert await store.list_preferences(owner, ALL) == []
    assert snapshot.organisation_default is None
    assert snapshot.policy.organisation_default is None


async def refused(reason: Reason, attempt: Awaitable[object], field: str = "") -> None:
    with pytest.raises(PatchbayError) as caught:
        await attempt
    assert caught.value.reason is reason
    assert [violation.field for violation in caught.value.violations] == ([field] if field else [])


class StoreSuite:
    """Tests of a `Store`, given by the fixture `store`."""

    # --- life ---

    async def test_a_new_store_is_empty_and_has_the_default_policy(self, store: Store) -> None:
        await store.ping()
        assert await store.list_connectors(None, ALL) == []
        assert await store.list_tokens(ALL) == []
        assert await store.list_calls(ALL) == []
        assert await store.list_audit(ALL) == []
        assert await store.audit_head() == audit_chain.EMPTY
        assert await store.policy() == Policy(updated_at=datetime(1970, 1, 1, tzinfo=UTC), version=1)

    async def test_a_closed_store_is_unavailable_and_closes_again_in_peace(self, store: Store) -> None:
        await store.close()
        await store.close()
        await refused(Reason.DEPENDENCY_UNAVAILABLE, store.ping())
        await refused(Reason.DEPENDENCY_UNAVAILABLE, store.version())
        await refused(Reason.DEPENDENCY_UNAVAILABLE, store.write_records(a_whole_call()))
        await refused(Reason.DEPENDENCY_UNAVAILABLE, store.hold_tokens(a_hold(), 100, MONTH, NOW))

    async def test_every_change_raises_the_version(self, store: Store) -> None:
        one, two = a_connector("uid-1"), a_connector("uid-2")
        resealed = Sealed(b"anew", "k2")
        event = an_event()
        changes: list[Callable[[], Awaitable[object]]] = [
            lambda: store.create_connector(one, event),
            lambda: store.create_connector(two, event),
            lambda: store.save_connector(replace(one, model_hint="m", version=2), 1, [event]),
            lambda: store.set_default("alice", "uid-1", event),
            lambda: store.set_default("alice", "uid-2", event),
            lambda: store.set_default("alice", None, event),
            lambda: store.set_preference("alice", "chat", "uid-1", NOW, event),
            lambda: store.clear_preference("alice", "chat", event),
            lambda: store.save_policy(Policy(updated_at=NOW, version=2), 1, event),
            lambda: store.reseal_connector("uid-1", one.sealed, resealed),
            lambda: store.mark_auth_invalid("uid-1", resealed, NOW, event),
            lambda: store.delete_connector("uid-1", None, event),
        ]
        versions = [await store.version()]
        for change in changes:
            await change()
            versions.append(await store.version())
        assert all(before < after for before, after in itertools.pairwise(versions)), versions

    async def test_what_no_snapshot_depends_on_raises_no_version(self, store: Store) -> None:
        await create(store, a_connector())
        before = await store.version()
        await store.record_test("uid-1", NOW, CheckResult.OK)
        await store.write_records([*a_whole_call(), ConnectorUsed(connector_uid="uid-1", at=NOW), Audited(an_event())])
        await store.create_token(a_token(), an_event())
        await store.touch_token("token-1", NOW)
        await store.revoke_token("token-1", NOW, an_event())
        await store.close_interrupted("process-2", NOW)
        await store.hold_tokens(a_hold(), 100, MONTH, NOW)
        assert not await store.clear_preference("alice", "chat", an_event())
        assert not await store.reseal_connector("uid-1", Sealed(b"other", "k1"), Sealed(b"new", "k2"))
        assert await store.version() == before
        assert (await _stored(store, a_connector())).version == 1

    async def test_a_refused_change_raises_no_version_and_leaves_no_audit_event(self, store: Store) -> None:
        await create(store, a_connector())
        before, trail = await store.version(), await audit_types(store)
        event = an_event()
        await refused(
            Reason.ALREADY_EXISTS, store.create_connector(a_connector("uid-2", id="uid-1"), event), "connector_id"
        )
        await refused(Reason.ETAG_MISMATCH, store.delete_connector("uid-1", 7, event))
        await refused(Reason.CONNECTOR_NOT_FOUND, store.set_default("alice", "uid-9", event))
        await refused(Reason.ETAG_MISMATCH, store.save_policy(Policy(updated_at=NOW, version=8), 7, event))
        assert await store.version() == before
        assert await audit_types(store) == trail

    async def test_a_snapshot_holds_all_that_resolving_needs(self, store: Store) -> None:
        own, other = a_connector("uid-1"), a_connector("uid-2", state=ConnectorState.DISABLED)
        shared = a_connector("uid-3", owner="company")
        await create(store, other, own, shared, a_connector("uid-4", owner="bob"))
        await store.set_default("alice", "uid-1", an_event())
        await store.set_preference("alice", "chat", "uid-1", NOW, an_event())
        await store.set_preference("company", "chat", "uid-3", NOW, an_event())
        policy = Policy(organisation_default=shared.name, updated_at=NOW, version=2)
        await store.save_policy(policy, 1, an_event())
        snapshot = await store.snapshot("alice")
        assert snapshot.owner == "alice"
        assert snapshot.version == await store.version()
        assert snapshot.connectors == (replace(own, is_default=True), other)
        assert snapshot.preferences == {"chat": "uid-1"}
        assert snapshot.organisation_default == shared
        assert snapshot.policy == policy

    async def test_the_snapshot_of_an_unknown_owner_is_empty(self, store: Store) -> None:
        snapshot = await store.snapshot("nobody")
        assert (snapshot.connectors, snapshot.preferences, snapshot.organisation_default) == ((), {}, None)

    # --- connectors ---

    async def test_a_connector_is_read_as_it_was_written(self, store: Store) -> None:
        full = a_connector(
            type="bedrock",
            display_name="Ünïcode \U0001f600 'quoted' \"twice\"",
            sealed=Sealed(bytes(range(256)), "key-2"),
            model_hint="anthropic.claude",
            state=ConnectorState.AUTH_INVALID,
            settings=ConnectorSettings(idle_timeout_s=12.5),
            labels={"team": "search", "": "empty"},
            monthly_token_cap=2**62,
            cap_mode=CapMode.HARD,
            last_used_at=NOW,
            last_test_at=LATER,
            last_test_result=CheckResult.QUOTA_EXCEEDED,
            updated_at=LATER,
            version=41,
        )
        plain = a_connector("uid-2", monthly_token_cap=0)
        await create(store, full, plain)
        assert await store.find_connector("alice", "uid-1") == full
        assert await store.find_connector("alice", "uid-2") == plain

    async def test_another_owners_connector_is_not_found(self, store: Store) -> None:
        await create(store, a_connector())
        assert await store.find_connector("bob", "uid-1") is None
        assert await store.find_connector("alice", "uid-2") is None
        assert await store.list_connectors("bob", ALL) == []

    async def test_id_and_display_name_are_unique_per_owner(self, store: Store) -> None:
        await create(store, a_connector(id="main", display_name="Main"))
        same_id = a_connector("uid-2", id="main")
        await refused(Reason.ALREADY_EXISTS, store.create_connector(same_id, an_event()), "connector_id")
        same_name = a_connector("uid-2", display_name="Main")
        await refused(Reason.ALREADY_EXISTS, store.create_connector(same_name, an_event()), "connector.display_name")
        await create(store, a_connector("uid-3", owner="bob", id="main", display_name="Main"))

    async def test_of_many_that_create_one_name_together_one_succeeds(self, store: Store) -> None:
        made = [a_connector(f"uid-{i}", display_name="Main") for i in range(20)]
        results = await asyncio.gather(*(create(store, one) for one in made), return_exceptions=True)
        assert sorted(map(str, reasons(results))) == ["ALREADY_EXISTS"] * 19 + ["None"]
        assert len(await store.list_connectors("alice", ALL)) == 1

    async def test_connectors_are_listed_by_owner_and_id_in_code_point_order(self, store: Store) -> None:
        names = [("b", "a"), ("a-b", "c"), ("a", "b-1"), ("a", "b"), ("a", "b1"), ("ab", "a"), ("a", "a")]
        await create(store, *(a_connector(f"uid-{i}", owner=o, id=n) for i, (o, n) in enumerate(names)))
        listed = [(one.owner, one.id) for one in await store.list_connectors(None, ALL)]
        assert listed == sorted(names)
        assert [one.id for one in await store.list_connectors("a", ALL)] == ["a", "b", "b-1", "b1"]

    @pytest.mark.parametrize("owner", [None, "alice"])
    async def test_pages_of_connectors_have_each_once_even_when_the_last_seen_is_deleted(
        self, store: Store, owner: str | None
    ) -> None:
        await create(store, *(a_connector(f"uid-{i}", owner="alice") for i in range(5)))
        await create(store, *(a_connector(f"uid-{i}", owner="bob", id=f"uid-{i - 5}") for i in range(5, 10)))
        first = await store.list_connectors(owner, Page(size=3))
        await store.delete_connector(first[-1].uid, None, an_event())
        after = f"{first[-1].owner}/{first[-1].id}"
        rest = await all_pages(
            lambda page: store.list_connectors(owner, replace(page, after=page.after or after)),
            lambda one: f"{one.owner}/{one.id}",
            size=3,
        )
        assert [one.uid for one in [*first, *rest]] == [f"uid-{i}" for i in range(5 if owner else 10)]

    async def test_saving_replaces_a_connector_but_not_what_other_methods_own(self, store: Store) -> None:
        await create(store, a_connector())
        await store.set_default("alice", "uid-1", an_event())
        await store.record_test("uid-1", NOW, CheckResult.RATE_LIMITED)
        await store.write_records([ConnectorUsed(connector_uid="uid-1", at=NOW)])
        changed = a_connector(
            type="anthropic",
            display_name="New",
            sealed=Sealed(b"new", "k2"),
            model_hint="m",
            settings=ConnectorSettings(call_timeout_s=3.0),
            labels={"a": "b"},
            monthly_token_cap=5,
            rotated_at=LATER,
            updated_at=LATER,
            version=2,
        )
        await store.save_connector(changed, 1, [an_event(AuditType.ROTATED), an_event(AuditType.CAP_CHANGED)])
        observed = {"is_default": True, "last_used_at": NOW, "last_test_at": NOW}
        assert await _stored(store, changed) == replace(changed, last_test_result=CheckResult.RATE_LIMITED, **observed)
        assert (await audit_types(store))[-2:] == [AuditType.ROTATED, AuditType.CAP_CHANGED]

    async def test_saving_can_unset_what_is_optional(self, store: Store) -> None:
        await create(store, a_connector(model_hint="m", monthly_token_cap=5, labels={"a": "b"}))
        await store.save_connector(a_connector(version=2), 1, [])
        assert await _stored(store, a_connector()) == a_connector(version=2)

    async def test_saving_refuses_a_stale_version_a_missing_connector_and_a_taken_name(self, store: Store) -> None:
        await create(store, a_connector("uid-1"), a_connector("uid-2"))
        stale = a_connector("uid-1", version=1)
        await refused(Reason.ETAG_MISMATCH, store.save_connector(stale, 0, []))
        gone = a_connector("uid-9", version=2)
        await refused(Reason.CONNECTOR_NOT_FOUND, store.save_connector(gone, 1, []))
        taken = a_connector("uid-1", display_name="The uid-2", version=2)
        await refused(Reason.ALREADY_EXISTS, store.save_connector(taken, 1, []), "connector.display_name")
        assert await _stored(store, a_connector("uid-1")) == a_connector("uid-1")

    async def test_of_many_that_save_one_version_together_one_succeeds(self, store: Store) -> None:
        await create(store, a_connector())
        saves = [store.save_connector(a_connector(model_hint=f"m{i}", version=2), 1, [an_event()]) for i in range(20)]
        results = await asyncio.gather(*saves, return_exceptions=True)
        assert sorted(map(str, reasons(results))) == ["ETAG_MISMATCH"] * 19 + ["None"]
        winner = reasons(results).index(None)
        assert await _stored(store, a_connector()) == a_connector(model_hint=f"m{winner}", version=2)
        assert await audit_types(store) == [AuditType.CREATED, AuditType.UPDATED]

    @pytest.mark.parametrize("state", [ConnectorState.DISABLED, ConnectorState.REVOKED])
    async def test_a_connector_that_is_switched_off_loses_all_that_points_to_it(
        self, store: Store, state: ConnectorState
    ) -> None:
        one = a_connector()
        await create(store, one)
        await _point_at(store, one)
        off = replace(one, state=state, updated_at=LATER, version=2)
        await store.save_connector(off, 1, [an_event()])
        await _assert_nothing_points(store, "alice")
        policy = await store.policy()
        assert (policy.version, policy.updated_at) == (3, LATER)
        assert await _stored(store, one) == off

    async def test_a_connector_whose_key_is_refused_keeps_what_points_to_it(self, store: Store) -> None:
        one = a_connector()
        await create(store, one)
        await _point_at(store, one)
        await store.save_connector(replace(one, state=ConnectorState.AUTH_INVALID, version=2), 1, [])
        snapshot = await store.snapshot("alice")
        assert snapshot.connectors[0].is_default
        assert snapshot.preferences == {"chat": "uid-1", "search": "uid-1"}
        assert snapshot.organisation_default is not None
        assert snapshot.policy.version == 2

    async def test_deleting_clears_all_that_points_to_the_connector_and_nothing_else(self, store: Store) -> None:
        one, two, foreign = a_connector("uid-1"), a_connector("uid-2"), a_connector("uid-3", owner="bob")
        await create(store, one, two, foreign)
        await _point_at(store, one)
        await store.set_preference("alice", "kept", "uid-2", NOW, an_event())
        await store.set_default("bob", "uid-3", an_event())
        await store.delete_connector("uid-1", 1, an_event(AuditType.DELETED, at=LATER))
        snapshot = await store.snapshot("alice")
        assert snapshot.connectors == (two,)
        assert snapshot.preferences == {"kept": "uid-2"}
        assert snapshot.organisation_default is None
        assert snapshot.policy == Policy(updated_at=LATER, version=3)
        assert (await _stored(store, foreign)).is_default
        assert await store.find_connector("alice", "uid-1") is None

    async def test_audit_trail_calls_and_month_of_a_deleted_connector_stay(self, store: Store) -> None:
        await create(store, a_connector())
        await store.write_records(a_whole_call())
        await store.delete_connector("uid-1", None, an_event(AuditType.DELETED))
        assert await audit_types(store) == [AuditType.CREATED, AuditType.DELETED]
        assert await store.find_call("call-1") is not None
        assert await store.month_tokens(["uid-1"], MONTH) == {"uid-1": 15}

    async def test_deleting_refuses_a_stale_version_and_a_missing_connector(self, store: Store) -> None:
        await create(store, a_connector())
        await refused(Reason.ETAG_MISMATCH, store.delete_connector("uid-1", 2, an_event()))
        await refused(Reason.CONNECTOR_NOT_FOUND, store.delete_connector("uid-2", None, an_event()))
        await store.delete_connector("uid-1", 1, an_event())
        await refused(Reason.CONNECTOR_NOT_FOUND, store.delete_connector("uid-1", None, an_event()))

    async def test_id_and_name_of_a_deleted_connector_are_free_again(self, store: Store) -> None:
        await create(store, a_connector(id="main", display_name="Main"))
        await store.delete_connector("uid-1", None, an_event())
        await create(store, a_connector("uid-2", id="main", display_name="Main"))

    async def test_a_refused_key_is_marked_once_however_many_calls_fail_together(self, store: Store) -> None:
        one = a_connector()
        await create(store, one)
        event = an_event(AuditType.AUTH_INVALID)
        marks = await asyncio.gather(*(store.mark_auth_invalid("uid-1", one.sealed, LATER, event) for _ in range(50)))
        assert marks.count(True) == 1
        assert await audit_types(store) == [AuditType.CREATED, AuditType.AUTH_INVALID]
        assert await _stored(store, one) == replace(one, state=ConnectorState.AUTH_INVALID, updated_at=LATER, version=2)

    async def test_a_key_that_was_exchanged_meanwhile_is_not_marked(self, store: Store) -> None:
        await create(
            store, a_connector(sealed=Sealed(b"new", "k1")), a_connector("uid-2", state=ConnectorState.DISABLED)
        )
        event = an_event()
        assert not await store.mark_auth_invalid("uid-1", Sealed(b"old", "k1"), NOW, event)
        assert not await store.mark_auth_invalid("uid-1", Sealed(b"new", "k2"), NOW, event)
        assert not await store.mark_auth_invalid("uid-2", a_connector("uid-2").sealed, NOW, event)
        assert not await store.mark_auth_invalid("uid-9", Sealed(b"new", "k1"), NOW, event)
        assert (await store.snapshot("alice")).connectors[0].state is ConnectorState.ACTIVE
        assert await audit_types(store) == [AuditType.CREATED] * 2

    async def test_the_latest_test_of_a_connector_is_kept(self, store: Store) -> None:
        await create(store, a_connector())
        await store.record_test("uid-1", LATER, CheckResult.OK)
        await store.record_test("uid-1", NOW, CheckResult.ERROR)
        await store.record_test("uid-9", NOW, CheckResult.ERROR)
        tested = a_connector(last_test_at=LATER, last_test_result=CheckResult.OK)
        assert await _stored(store, tested) == tested

    async def test_resealing_exchanges_the_sealed_form_of_the_same_credential_only(self, store: Store) -> None:
        await create(store, a_connector())
        old, new = a_connector().sealed, Sealed(b"anew", "k2")
        assert await store.reseal_connector("uid-1", old, new)
        assert await _stored(store, a_connector()) == a_connector(sealed=new)
        assert not await store.reseal_connector("uid-1", old, Sealed(b"late", "k2"))
        assert not await store.reseal_connector("uid-9", new, new)
        assert (await _stored(store, a_connector())).sealed == new

    async def test_a_store_tells_how_many_credentials_each_master_key_seals(self, store: Store) -> None:
        assert (await store.describe()).credentials == {}
        keys = ["k1", "k2", "k1"]
        await create(store, *(a_connector(f"uid-{i}", sealed=Sealed(b"s", key)) for i, key in enumerate(keys)))
        assert (await store.describe()).credentials == {"k1": 2, "k2": 1}

    # --- default and preferences ---

    async def test_an_owner_has_one_default_which_can_be_switched_and_cleared(self, store: Store) -> None:
        await create(store, a_connector("uid-1"), a_connector("uid-2"), a_connector("uid-3", owner="bob"))
        await store.set_default("bob", "uid-3", an_event())
        for wanted in ("uid-1", "uid-2", None, "uid-1"):
            await store.set_default("alice", wanted, an_event())
            listed = await store.list_connectors(None, ALL)
            assert [one.uid for one in listed if one.is_default] == ([wanted] if wanted else []) + ["uid-3"]
            assert {one.version for one in listed} == {1}

    async def test_fifty_that_set_the_default_together_leave_exactly_one(self, store: Store) -> None:
        await create(store, *(a_connector(f"uid-{i}") for i in range(10)))
        await asyncio.gather(*(store.set_default("alice", f"uid-{i % 10}", an_event()) for i in range(50)))
        assert sum(one.is_default for one in await store.list_connectors("alice", ALL)) == 1

    async def test_a_default_that_stays_as_it_was_leaves_no_audit_event(self, store: Store) -> None:
        await create(store, a_connector())
        await store.set_default("alice", None, an_event(AuditType.DEFAULT_UNSET))
        await store.set_default("alice", "uid-1", an_event(AuditType.DEFAULT_SET))
        before = await store.version()
        await store.set_default("alice", "uid-1", an_event(AuditType.DEFAULT_SET))
        assert await audit_types(store) == [AuditType.CREATED, AuditType.DEFAULT_SET]
        assert await store.version() == before

    @pytest.mark.parametrize("state", [state for state in ConnectorState if state is not ConnectorState.ACTIVE])
    async def test_only_an_own_active_connector_can_be_chosen(self, store: Store, state: ConnectorState) -> None:
        await create(store, a_connector("uid-1", state=state), a_connector("uid-2", owner="bob"))
        for uid, reason in (("uid-1", Reason.CONNECTOR_INACTIVE), ("uid-2", Reason.CONNECTOR_NOT_FOUND)):
            await refused(reason, store.set_default("alice", uid, an_event()))
            await refused(reason, store.set_preference("alice", "chat", uid, NOW, an_event()))
        await _assert_nothing_points(store, "alice")

    async def test_a_preference_is_replaced_by_the_next(self, store: Store) -> None:
        await create(store, a_connector("uid-1"), a_connector("uid-2"))
        await store.set_preference("alice", "chat", "uid-1", NOW, an_event())
        await store.set_preference("alice", "chat", "uid-2", LATER, an_event())
        (preference,) = await store.list_preferences("alice", ALL)
        assert (preference.owner, preference.feature, preference.updated_at) == ("alice", "chat", LATER)
        assert preference.connector_uid == "uid-2"
        assert preference.connector == "owners/alice/connectors/uid-2"

    async def test_of_two_that_set_one_preference_together_the_last_wins_without_an_error(self, store: Store) -> None:
        await create(store, a_connector("uid-1"), a_connector("uid-2"))

        async def prefer(uid: str) -> None:
            for _ in range(10):
                await store.set_preference("alice", "chat", uid, NOW, an_event(connector_uid=uid))

        await asyncio.gather(prefer("uid-1"), prefer("uid-2"))
        last = (await store.list_audit(ALL))[-1]
        assert (await store.snapshot("alice")).preferences == {"chat": last.connector_uid}

    async def test_clearing_a_preference_says_whether_there_was_one(self, store: Store) -> None:
        await create(store, a_connector())
        await store.set_preference("alice", "chat", "uid-1", NOW, an_event(AuditType.PREFERENCE_SET))
        event = an_event(AuditType.PREFERENCE_CLEARED)
        assert not await store.clear_preference("bob", "chat", event)
        assert await store.clear_preference("alice", "chat", event)
        assert not await store.clear_preference("alice", "chat", event)
        trail = [AuditType.CREATED, AuditType.PREFERENCE_SET, AuditType.PREFERENCE_CLEARED]
        assert await audit_types(store) == trail

    async def test_preferences_are_listed_by_feature_in_pages(self, store: Store) -> None:
        await create(store, a_connector(), a_connector("uid-2", owner="bob"))
        features = ["b", "a_b", "a-b", "a.b", "ab", "a", "a1"]
        for feature in features:
            await store.set_preference("alice", feature, "uid-1", NOW, an_event())
        await store.set_preference("bob", "a2", "uid-2", NOW, an_event())
        read = await all_pages(lambda page: store.list_preferences("alice", page), lambda one: one.feature, size=2)
        assert [one.feature for one in read] == sorted(features)

    # --- policy ---

    async def test_a_policy_is_read_as_it_was_written(self, store: Store) -> None:
        policy = Policy(
            allowed_types=(),
            host_allow_list=("*.example.com", "llm.example"),
            private_http=PrivateHttp.PRIVATE,
            call_log_retention_days=365,
            default_fallback=FallbackMode.OWNER_CHAIN,
            model_aliases={"fast": "patchbay/cost"},
            quality_priors={"gpt": 0.75},
            price_overrides={"gpt": Price(input_usd_nanos=2**53 + 1)},
            updated_at=NOW,
            version=2,
        )
        await store.save_policy(policy, 1, an_event(AuditType.POLICY_CHANGED))
        assert await store.policy() == policy
        assert await audit_types(store) == [AuditType.POLICY_CHANGED]

    async def test_of_many_that_save_the_policy_together_one_succeeds(self, store: Store) -> None:
        saves = [
            store.save_policy(Policy(call_log_retention_days=days, updated_at=NOW, version=2), 1, an_event())
            for days in range(10, 30)
        ]
        results = await asyncio.gather(*saves, return_exceptions=True)
        assert sorted(map(str, reasons(results))) == ["ETAG_MISMATCH"] * 19 + ["None"]
        policy = await store.policy()
        assert (policy.version, policy.call_log_retention_days) == (2, 10 + reasons(results).index(None))

    async def test_the_organisation_default_must_be_an_active_connector(self, store: Store) -> None:
        one, off = a_connector("uid-1"), a_connector("uid-2", state=ConnectorState.DISABLED)
        await create(store, one, off)

        def naming(name: str) -> Awaitable[None]:
            return store.save_policy(Policy(organisation_default=name, updated_at=NOW, version=2), 1, an_event())

        await refused(Reason.CONNECTOR_INACTIVE, naming(off.name))
        for unknown in (
            "owners/alice/connectors/uid-9",
            "owners/bob/connectors/uid-1",
            "uid-1",
            "",
            "owners//connectors/",
        ):
            await refused(Reason.CONNECTOR_NOT_FOUND, naming(unknown))
        await naming(one.name)
        assert (await store.snapshot("bob")).organisation_default == one

    async def test_a_policy_can_be_saved_while_the_key_of_its_organisation_default_is_refused(
        self, store: Store
    ) -> None:
        one = a_connector()
        await create(store, one)
        await store.save_policy(Policy(organisation_default=one.name, updated_at=NOW, version=2), 1, an_event())
        await store.mark_auth_invalid("uid-1", one.sealed, NOW, an_event())
        kept = Policy(organisation_default=one.name, call_log_retention_days=90, updated_at=NOW, version=3)
        await store.save_policy(kept, 2, an_event())
        assert await store.policy() == kept

    # --- tokens ---

    async def test_a_token_is_read_as_it_was_written(self, store: Store) -> None:
        full = a_token(
            scopes=frozenset(Scope), expires_at=LATER, revoked_at=LATER, last_used_at=NOW, digest=bytes(range(256))
        )
        anybody = a_token("token-2", owner=None, scopes=frozenset())
        for token in (full, anybody):
            await store.create_token(token, an_event(AuditType.TOKEN_CREATED))
        assert await store.find_token("token-1") == full
        assert await store.find_token("token-2") == anybody
        assert await store.find_token("token-3") is None
        assert await audit_types(store) == [AuditType.TOKEN_CREATED] * 2

    async def test_a_token_id_is_given_once(self, store: Store) -> None:
        await store.create_token(a_token(), an_event())
        other = a_token(digest=b"other")
        await refused(Reason.ALREADY_EXISTS, store.create_token(other, an_event()), "token_id")
        assert await store.find_token("token-1") == a_token()

    async def test_tokens_are_counted_and_listed_by_id_in_pages(self, store: Store) -> None:
        assert await store.count_tokens() == 0
        for i in (3, 1, 4, 0, 2):
            await store.create_token(a_token(f"token-{i}"), an_event())
        assert await store.count_tokens() == 5
        read = await all_pages(store.list_tokens, lambda token: token.id, size=2)
        assert [token.id for token in read] == [f"token-{i}" for i in range(5)]

    async def test_a_token_is_revoked_once(self, store: Store) -> None:
        await store.create_token(a_token(), an_event(AuditType.TOKEN_CREATED))
        event = an_event(AuditType.TOKEN_REVOKED)
        revoked = await asyncio.gather(*(store.revoke_token("token-1", NOW, event) for _ in range(10)))
        assert revoked.count(True) == 1
        assert not await store.revoke_token("token-1", LATER, event)
        assert not await store.revoke_token("token-9", LATER, event)
        assert await store.find_token("token-1") == a_token(revoked_at=NOW)
        assert await audit_types(store) == [AuditType.TOKEN_CREATED, AuditType.TOKEN_REVOKED]

    async def test_the_latest_use_of_a_token_is_kept(self, store: Store) -> None:
        await store.create_token(a_token(), an_event())
        for at in (NOW, LATER, NOW):
            await store.touch_token("token-1", at)
        await store.touch_token("token-9", NOW)
        assert await store.find_token("token-1") == a_token(last_used_at=LATER)

    # --- records ---

    async def test_a_call_is_read_open_and_then_as_it_closed(self, store: Store) -> None:
        opened, attempt = call_opened(), attempt_opened()
        await store.write_records([opened, attempt])
        row = await store.find_call("call-1")
        assert row is not None
        assert (row.opened, row.state, row.closed) == (opened, CallState.OPEN, None)
        assert [(tried.opened, tried.state, tried.closed) for tried in row.attempts] == [
            (attempt, CallState.OPEN, None)
        ]

        usage = Usage(
            input_tokens=100,
            output_tokens=50,
            total_tokens=150,
            cached_input_tokens=0,
            cache_write_input_tokens=7,
            reasoning_tokens=9,
            cost_usd_nanos=12_345_678,
            source=UsageSource.PARTIAL,
        )
        failure = UpstreamFailure(
            provider="openai",
            connector="owners/alice/connectors/c",
            http_status=503,
            provider_code="overloaded",
            upstream_request_id="req_1",
            attempt_count=2,
        )
        reason = Reason.UPSTREAM_STREAM_BROKEN
        tried = attempt_closed(state=CallState.FAILED, reason=reason, failure=failure, usage=usage)
        ended = call_closed(
            state=CallState.FAILED,
            reason=reason,
            resolved_by=None,
            finish_reason=None,
            usage=usage,
            first_output_s=None,
        )
        await store.write_records([tried, ended])
        row = await store.find_call("call-1")
        assert row is not None
        assert (row.opened, row.state, row.closed) == (opened, CallState.FAILED, ended)
        assert [(one.opened, one.state, one.closed) for one in row.attempts] == [(attempt, CallState.FAILED, tried)]

    async def test_a_record_without_usage_is_read_without_usage(self, store: Store) -> None:
        await store.write_records(
            [call_opened(), attempt_opened(), attempt_closed(usage=None), call_closed(usage=None)]
        )
        row = await store.find_call("call-1")
        assert row is not None
        assert row.closed == call_closed(usage=None)
        assert row.attempts[0].closed == attempt_closed(usage=None)
        assert await store.month_tokens(["uid-1"], MONTH) == {}

    @pytest.mark.parametrize(
        "routing",
        [
            RoutingOutcome(
                reserved_model="patchbay/auto",
                quality_floor=0.5,
                candidate_count=3,
                eligible_count=2,
                connector_uid="uid-1",
                model="gpt",
                quality=0.75,
            ),
            RoutingOutcome(reserved_model="patchbay/cost", quality_floor=0.85, candidate_count=0, eligible_count=0),
        ],
        ids=["chosen", "nothing chosen"],
    )
    async def test_a_routed_call_is_read_with_what_routing_came_to(self, store: Store, routing: RoutingOutcome) -> None:
        routed, direct = call_opened(routing=routing), call_opened("call-2")
        await store.write_records([routed, direct])
        assert [row.opened for row in await store.list_calls(ALL)] == [routed, direct]
        await store.write_records([call_closed()])
        row = await store.find_call("call-1")
        assert row is not None
        assert (row.opened, row.closed) == (routed, call_closed())

    async def test_a_group_may_hold_whole_calls_of_several_attempts_in_any_mixture(self, store: Store) -> None:
        one: list[Record] = [
            call_opened("call-1"),
            attempt_opened("call-1", 1),
            attempt_closed("call-1", 1, state=CallState.FAILED, reason=Reason.UPSTREAM_UNAVAILABLE, usage=None),
            attempt_opened("call-1", 2, connector_uid="uid-2"),
            attempt_closed("call-1", 2),
            call_closed("call-1", attempts=2, connector_uid="uid-2"),
        ]
        two: list[Record] = [
            call_opened("call-2"),
            call_closed("call-2", connector_uid="", provider="", model="", attempts=0),
        ]
        await store.write_records([one[0], two[0], *one[1:4], two[1], *one[4:]])
        row = await store.find_call("call-1")
        assert row is not None
        assert [tried.state for tried in row.attempts] == [CallState.FAILED, CallState.SUCCEEDED]
        assert row.closed == one[-1]
        other = await store.find_call("call-2")
        assert other is not None
        assert (other.attempts, other.closed) == ((), two[1])

    async def test_an_empty_group_and_a_large_one_are_written(self, store: Store) -> None:
        await store.write_records([])
        await store.write_records([record for i in range(1100) for record in a_whole_call(f"call-{i:04}")])
        assert len(await store.list_calls(Page(size=2000))) == 1100
        assert await store.month_tokens(["uid-1"], MONTH) == {"uid-1": 1100 * 15}

    async def test_a_close_counts_once_and_the_first_one_stands(self, store: Store) -> None:
        await store.write_records(a_whole_call())
        late: list[Record] = [
            attempt_closed(state=CallState.FAILED, latency_s=9.0),
            call_closed(state=CallState.FAILED, latency_s=9.0),
        ]
        await store.write_records(late)
        await store.write_records([attempt_closed(), attempt_closed(), call_closed(), call_closed()])
        row = await store.find_call("call-1")
        assert row is not None
        assert (row.closed, row.attempts[0].closed) == (call_closed(), attempt_closed())
        assert await store.month_tokens(["uid-1"], MONTH) == {"uid-1": 15}

    async def test_two_closes_in_one_group_count_once(self, store: Store) -> None:
        await store.write_records([*a_whole_call(), attempt_closed(latency_s=9.0), call_closed(latency_s=9.0)])
        row = await store.find_call("call-1")
        assert row is not None
        assert (row.closed, row.attempts[0].closed) == (call_closed(), attempt_closed())
        assert await store.month_tokens(["uid-1"], MONTH) == {"uid-1": 15}

    @pytest.mark.parametrize(
        "group",
        [
            [call_closed("call-9")],
            [attempt_opened("call-9")],
            [attempt_closed("call-9")],
            [attempt_closed("call-1", 7)],
            [call_opened("call-1", feature="other")],
            [call_opened("call-1", process_id="process-2")],
            [attempt_opened("call-1", 1, model="other")],
            [call_opened("call-1"), attempt_opened("call-1", 1, started_at=LATER)],
            [call_opened("call-9"), call_opened("call-9")],
            [call_opened("call-1"), call_opened("call-1")],
            [attempt_opened("call-1", 1), attempt_opened("call-1", 1)],
            [call_closed("call-1"), call_opened("call-1")],
            [call_closed("call-9"), call_opened("call-9")],
            [attempt_opened("call-9"), call_opened("call-9")],
            [call_opened("call-9"), attempt_closed("call-9"), attempt_opened("call-9")],
        ],
        ids=lambda group: "+".join(type(record).__name__ for record in group),
    )
    async def test_a_record_out_of_order_is_our_error_and_nothing_of_its_group_is_written(
        self, store: Store, group: list[Record]
    ) -> None:
        await create(store, a_connector())
        before = a_whole_call()
        await store.write_records(before)
        trail = await store.audit_head()
        used = ConnectorUsed(connector_uid="uid-1", at=NOW)
        sound: list[Record] = [*a_whole_call("call-5"), Audited(an_event()), used]
        await refused(Reason.INTERNAL, store.write_records(sound + group))
        assert [row.opened.call_id for row in await store.list_calls(ALL)] == ["call-1"]
        assert await store.month_tokens(["uid-1"], MONTH) == {"uid-1": 15}
        assert await store.audit_head() == trail
        assert (await _stored(store, a_connector())).last_used_at is None

    async def test_a_group_may_be_written_again_and_counts_once(self, store: Store) -> None:
        """The answer to a commit can be lost: whoever waited for it does not know whether it was done."""
        await create(store, a_connector())
        fallback = Audited(an_event(AuditType.FALLBACK_TRIGGERED, qualifier="rate_limited", call_id="call-1"))
        routing = RoutingOutcome(
            reserved_model="patchbay/auto", quality_floor=0.6, candidate_count=2, eligible_count=1, quality=1 / 3
        )
        opened = call_opened(routing=routing, labels={"b": "2", "a": "1"}, requested_model="x" * 600)
        whole: list[Record] = [
            opened,
            attempt_opened(number=1),
            attempt_closed(number=1, state=CallState.FAILED),
            attempt_opened(number=2),
            ConnectorUsed(connector_uid="uid-1", at=NOW),
            fallback,
            attempt_closed(number=2),
            call_closed(attempts=2),
        ]
        await store.write_records(whole[:2])
        await store.write_records(whole[:2])
        assert await store.hold_tokens(a_hold(number=2), 100, MONTH, NOW)
        await store.write_records(whole[2:6])
        await store.write_records(whole[2:6])
        for _ in range(2):
            await store.write_records(whole[6:])
        row, trail = await store.find_call("call-1"), await store.list_audit(ALL)
        await store.write_records([*whole, *a_whole_call("call-2")])
        await store.write_records([*a_whole_call("call-2"), *whole])
        assert row is not None
        assert [tried.state for tried in row.attempts] == [CallState.FAILED, CallState.SUCCEEDED]
        assert await store.find_call("call-1") == row
        assert [event.type for event in trail] == [AuditType.CREATED, AuditType.FALLBACK_TRIGGERED]
        assert await store.list_audit(ALL) == trail
        assert await store.cap_use(["uid-1"], MONTH, NOW) == {"uid-1": CapUse(tokens=3 * 15)}

    async def test_an_event_of_its_own_is_written_beside_a_group_that_is_written_again(self, store: Store) -> None:
        await store.write_records([call_opened(), Audited(an_event(qualifier="a"))])
        await store.write_records([call_opened(), Audited(an_event(qualifier="b")), Audited(an_event(qualifier="a"))])
        await store.write_records([Audited(an_event(qualifier="a"))])
        assert [event.qualifier for event in await store.list_audit(ALL)] == ["a", "b", "a"]

    async def test_tokens_count_where_and_in_the_month_in_which_the_attempt_spent_them(self, store: Store) -> None:
        spent = Usage(input_tokens=3, output_tokens=4, total_tokens=99, cached_input_tokens=2, reasoning_tokens=1)
        new_year = datetime(2027, 1, 1, tzinfo=UTC)
        await store.write_records(
            [
                call_opened(started_at=new_year - timedelta(minutes=2)),
                attempt_opened(number=1, connector_uid="uid-1", started_at=new_year - timedelta(minutes=2)),
                attempt_closed(
                    number=1, state=CallState.FAILED, usage=spent, ended_at=new_year - timedelta(microseconds=1)
                ),
                attempt_opened(number=2, connector_uid="uid-2", started_at=new_year - timedelta(seconds=1)),
                attempt_closed(number=2, usage=spent, ended_at=new_year),
                call_closed(usage=Usage(input_tokens=6, output_tokens=8, total_tokens=14), connector_uid="uid-2"),
            ]
        )
        assert await store.month_tokens(["uid-1", "uid-2", "uid-3"], "2026-12") == {"uid-1": 7}
        assert await store.month_tokens(["uid-1", "uid-2", "uid-3"], "2027-01") == {"uid-2": 7}

    async def test_months_are_answered_for_any_number_of_connectors(self, store: Store) -> None:
        await store.write_records(a_whole_call())
        assert await store.month_tokens([], MONTH) == {}
        assert await store.month_tokens([f"uid-{i}" for i in range(40_000)], MONTH) == {"uid-1": 15}

    async def test_groups_written_together_all_count(self, store: Store) -> None:
        await asyncio.gather(*(store.write_records(a_whole_call(f"call-{i:02}")) for i in range(50)))
        assert len(await store.list_calls(ALL)) == 50
        assert await store.month_tokens(["uid-1"], MONTH) == {"uid-1": 50 * 15}

    async def test_the_latest_use_of_a_connector_is_kept(self, store: Store) -> None:
        await create(store, a_connector())
        await store.write_records([ConnectorUsed(connector_uid="uid-1", at=at) for at in (NOW, LATER, NOW)])
        await store.write_records(
            [ConnectorUsed(connector_uid="uid-1", at=NOW), ConnectorUsed(connector_uid="x", at=NOW)]
        )
        assert await _stored(store, a_connector()) == a_connector(last_used_at=LATER)

    async def test_an_audit_event_of_a_call_is_written_with_its_records(self, store: Store) -> None:
        event = an_event(
            AuditType.FALLBACK_TRIGGERED, qualifier="rate_limited", call_id="call-1", connector_uid="uid-1"
        )
        await store.write_records([*a_whole_call(), Audited(event)])
        (row,) = await store.list_audit(ALL)
        assert audit_chain.follow(audit_chain.EMPTY, event) == row

    @pytest.mark.parametrize("text", ["\x00", "\ud800x", "x" * 513, "\U0001f600" * 600, "tab\tand\nline"])
    async def test_no_record_is_lost_over_a_text(self, store: Store, text: str) -> None:
        await store.write_records(
            [
                call_opened(requested_model=text, request_id=text, labels={text: text}),
                attempt_opened(model=text),
                attempt_closed(failure=UpstreamFailure(provider_code=text, upstream_request_id=text)),
                call_closed(model=text),
                Audited(an_event(subject=text, changed_fields=(text,))),
            ]
        )
        await store.create_token(a_token(), an_event(subject=text, changed_fields=(text,)))
        row = await store.find_call("call-1")
        assert row is not None
        assert row.closed is not None
        stored = row.closed.model
        assert stored == text[:512].replace("\x00", "\ufffd").replace("\ud800", "\ufffd")
        assert row.opened.labels == {stored: stored}
        trail = await store.list_audit(ALL)
        assert [(event.subject, event.changed_fields) for event in trail] == [(stored, (stored,))] * 2
        _assert_chain(trail, trail, await store.audit_head())

    async def test_no_record_is_lost_over_a_count(self, store: Store) -> None:
        huge = Usage(input_tokens=2**70, output_tokens=-5, total_tokens=2**63, cost_usd_nanos=2**64)
        for i in range(3):
            group = a_whole_call(f"call-{i}")
            group[2:] = [attempt_closed(f"call-{i}", usage=huge), call_closed(f"call-{i}", usage=huge)]
            await store.write_records(group)
        row = await store.find_call("call-0")
        assert row is not None
        assert row.closed is not None
        assert row.closed.usage == Usage(input_tokens=10**15, total_tokens=10**15, cost_usd_nanos=10**15)
        assert await store.month_tokens(["uid-1"], MONTH) == {"uid-1": 3 * 10**15}

    async def test_calls_are_listed_by_id_in_pages_without_their_attempts(self, store: Store) -> None:
        for i in (3, 1, 4, 0, 2):
            await store.write_records(a_whole_call(f"call-{i}"))
        read = await all_pages(store.list_calls, lambda row: row.opened.call_id, size=2)
        assert [row.opened.call_id for row in read] == [f"call-{i}" for i in range(5)]
        assert {row.attempts for row in read} == {()}
        assert await store.find_call("call-9") is None

    async def test_open_calls_of_other_processes_are_closed_as_interrupted(self, store: Store) -> None:
        failed = attempt_closed("dead-2", 1, state=CallState.FAILED)
        await store.write_records(
            [
                call_opened("alive", process_id="me"),
                attempt_opened("alive"),
                call_opened("dead-1", process_id="gone"),
                call_opened("dead-2", process_id="gone"),
                attempt_opened("dead-2", 1),
                failed,
                attempt_opened("dead-2", 2, connector_uid="uid-2", provider="anthropic", model="claude"),
                *a_whole_call("done", process_id="gone"),
            ]
        )
        before = await store.month_tokens(["uid-1", "uid-2"], MONTH)
        assert await store.close_interrupted("me", LATER) == 2
        assert await store.close_interrupted("me", LATER) == 0

        ended = {
            "state": CallState.INTERRUPTED,
            "usage": None,
            "first_output_s": None,
            "latency_s": 60.0,
            "ended_at": LATER,
        }
        nothing = {"resolved_by": None, "finish_reason": None}
        one, two = await store.find_call("dead-1"), await store.find_call("dead-2")
        assert one is not None
        assert one.closed == call_closed(
            "dead-1", connector_uid="", provider="", model="", attempts=0, **ended, **nothing
        )
        assert two is not None
        last = {"connector_uid": "uid-2", "provider": "anthropic", "model": "claude", "attempts": 2}
        assert two.closed == call_closed("dead-2", **last, **ended, **nothing)
        assert [tried.closed for tried in two.attempts] == [failed, attempt_closed("dead-2", 2, **ended)]
        alive, done = await store.find_call("alive"), await store.find_call("done")
        assert alive is not None
        assert (alive.state, alive.attempts[0].state) == (CallState.OPEN, CallState.OPEN)
        assert done is not None
        assert done.closed == call_closed("done")
        assert await store.month_tokens(["uid-1", "uid-2"], MONTH) == before

    async def test_an_interrupted_call_lasts_no_negative_time(self, store: Store) -> None:
        await store.write_records([call_opened(started_at=LATER), attempt_opened(started_at=LATER)])
        await store.close_interrupted("me", NOW)
        row = await store.find_call("call-1")
        assert row is not None
        assert row.closed is not None
        assert row.closed.latency_s == 0.0

    async def test_a_close_that_comes_after_the_interruption_changes_and_counts_nothing(self, store: Store) -> None:
        await store.write_records([call_opened(), attempt_opened()])
        await store.close_interrupted("process-2", LATER)
        interrupted = await store.find_call("call-1")
        await store.write_records([attempt_closed(), call_closed()])
        assert await store.find_call("call-1") == interrupted
        assert await store.month_tokens(["uid-1"], MONTH) == {}

    async def test_calls_past_the_retention_are_purged_in_parts_and_months_stay(self, store: Store) -> None:
        await store.save_policy(Policy(call_log_retention_days=7, updated_at=NOW, version=2), 1, an_event())
        kept_since = NOW - timedelta(days=7)
        for i in range(5):
            await store.write_records(a_whole_call(f"call-{i}", started_at=kept_since - timedelta(seconds=5 - i)))
        await store.write_records([call_opened("call-5", started_at=kept_since - timedelta(microseconds=1))])
        await store.write_records(a_whole_call("call-6", started_at=kept_since))
        assert [await store.purge_calls(NOW, 2) for _ in range(4)] == [2, 2, 1, 0]
        assert [row.opened.call_id for row in await store.list_calls(ALL)] == ["call-5", "call-6"]
        assert await store.find_call("call-0") is None
        await store.write_records(a_whole_call("call-0"))  # its attempt went with it
        assert await store.month_tokens(["uid-1"], MONTH) == {"uid-1": 7 * 15}

    @pytest.mark.parametrize("days", [-1, 0, 6, 366, 10**9])
    async def test_a_retention_out_of_bounds_is_read_as_it_is_and_purges_nothing(self, store: Store, days: int) -> None:
        await store.save_policy(Policy(call_log_retention_days=days, updated_at=NOW, version=2), 1, an_event())
        await store.write_records(a_whole_call(started_at=NOW - timedelta(days=3650)))
        assert (await store.policy()).call_log_retention_days == days
        await refused(Reason.DEPENDENCY_UNAVAILABLE, store.purge_calls(NOW, 100))
        assert await store.find_call("call-1") is not None

    # --- audit ---

    async def test_the_trail_is_a_chain_in_the_order_of_writing(self, store: Store) -> None:
        events = [
            an_event(
                kind,
                at=NOW + timedelta(microseconds=i),
                owner="alice",
                connector_uid=f"uid-{i}",
                qualifier="q" * (i % 2),
                changed_fields=("model_hint", "labels")[: i % 3],
                call_id="call-1",
            )
            for i, kind in enumerate(AuditType)
        ]
        for i, event in enumerate(events):
            await store.create_token(a_token(f"token-{i}"), event)
        _assert_chain(await store.list_audit(ALL), events, await store.audit_head())

    async def test_events_written_together_by_changes_and_by_records_make_one_chain(self, store: Store) -> None:
        changes = [store.create_token(a_token(f"token-{i}"), an_event(qualifier=f"t{i}")) for i in range(15)]
        groups = [store.write_records([Audited(an_event(qualifier=f"r{i}{j}")) for j in "ab"]) for i in range(15)]
        await asyncio.gather(*itertools.chain.from_iterable(zip(changes, groups, strict=True)))
        rows = await store.list_audit(ALL)
        assert len(rows) == 45
        _assert_chain(rows, rows, await store.audit_head())

    async def test_the_trail_is_read_in_pages_by_sequence(self, store: Store) -> None:
        await store.write_records([Audited(an_event(qualifier=str(i))) for i in range(7)])
        rows = await all_pages(store.list_audit, lambda row: str(row.sequence), size=3)
        assert [row.qualifier for row in rows] == [str(i) for i in range(7)]

    @pytest.mark.parametrize("after", ["x", "-1", "1.0", " 1", "9" * 30, "٣"])
    async def test_a_page_key_of_the_trail_that_is_no_number_is_refused(self, store: Store, after: str) -> None:
        await refused(Reason.INVALID_REQUEST, store.list_audit(Page(size=1, after=after)), "page_token")


def _assert_chain(rows: Sequence[Any], events: Sequence[AuditEvent], head: AuditHead) -> None:
    end = audit_chain.EMPTY
    for row, follower in zip(rows, _followers(events), strict=True):
        assert row == follower
        end = audit_chain.head_of(row)
    assert head == end


def _followers(events: Sequence[AuditEvent]) -> Iterator[AuditEvent]:
    head = audit_chain.EMPTY
    for event in events:
        row = audit_chain.follow(head, event)
        head = audit_chain.head_of(row)
        yield row
