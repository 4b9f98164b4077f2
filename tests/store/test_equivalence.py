"""Any sequence of operations comes to the same in every store: the fake is as good as the real one."""

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from patchbay_server.errors import PatchbayError
from patchbay_server.store.memory import MemoryStore
from patchbay_server.store.protocol import Page, Store
from patchbay_server.store.sql import SqlStore
from patchbay_server.testing.store_suite import (
    ALL,
    MONTH,
    NOW,
    a_connector,
    a_hold,
    a_token,
    an_event,
    attempt_closed,
    attempt_opened,
    call_closed,
    call_opened,
)
from patchbay_server.types import (
    Audited,
    CallState,
    CheckResult,
    ConnectorState,
    ConnectorUsed,
    Policy,
    RoutingOutcome,
    Sealed,
)

OWNERS = ("alice", "bob")
FEATURES = ("chat", "search")
TOKENS = ("token-1", "token-2")
CALLS = ("call-1", "call-2")

owners = st.sampled_from(OWNERS)
features = st.sampled_from(FEATURES)
token_names = st.sampled_from(TOKENS)
uids = st.integers(1, 5).map("uid-{}".format)
moments = st.integers(0, 3).map(lambda minutes: NOW + timedelta(minutes=minutes))
versions = st.integers(1, 4)
sealed = st.sampled_from([Sealed(b"a", "k1"), Sealed(b"b", "k1"), Sealed(b"a", "k2")])
states = st.sampled_from([*ConnectorState, ConnectorState.ACTIVE, ConnectorState.ACTIVE])
pages = st.builds(Page, size=st.integers(1, 3), after=st.sampled_from(["", "0", "1", "alice/b", "bob", "c", "call-1"]))

records = st.one_of(
    st.builds(
        call_opened,
        st.sampled_from(CALLS),
        process_id=st.sampled_from(["p1", "p2"]),
        started_at=moments,
        routing=st.one_of(
            st.none(),
            st.builds(
                RoutingOutcome,
                reserved_model=st.sampled_from(["patchbay/auto", "patchbay/cost"]),
                quality_floor=st.just(0.5),
                candidate_count=st.integers(0, 3),
                eligible_count=st.integers(0, 3),
                quality=st.one_of(st.none(), st.floats(0, 1)),
            ),
        ),
    ),
    st.builds(attempt_opened, st.sampled_from(CALLS), st.integers(1, 2), connector_uid=uids, started_at=moments),
    st.builds(attempt_closed, st.sampled_from(CALLS), st.integers(1, 2), ended_at=moments),
    st.builds(call_closed, st.sampled_from(CALLS), state=st.sampled_from([CallState.SUCCEEDED, CallState.FAILED])),
    st.builds(ConnectorUsed, connector_uid=uids, at=moments),
    st.builds(Audited, st.builds(an_event, call_id=st.sampled_from(CALLS))),
)

Operation = Callable[[Store], Awaitable[Any]]


def operation(method: str, *arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Operation]:
    return st.tuples(*arguments).map(lambda drawn: lambda store: getattr(store, method)(*drawn))


def create(number: int, owner: str, connector_id: str, name: str, state: ConnectorState, seal: Sealed) -> Operation:
    async def run(store: Store) -> None:
        uid = f"uid-{number}"
        if not any(connector.uid == uid for connector in await store.list_connectors(None, ALL)):
            made = a_connector(uid, owner, id=connector_id, display_name=name, state=state, sealed=seal)
            await store.create_connector(made, an_event(qualifier="create"))

    return run


def save(uid: str, version: int, name: str, state: ConnectorState, seal: Sealed) -> Operation:
    async def run(store: Store) -> None:
        stored = {connector.uid: connector for connector in await store.list_connectors(None, ALL)}.get(uid)
        address = {"owner": stored.owner, "id": stored.id} if stored else {}
        changed = a_connector(uid, display_name=name, state=state, sealed=seal, version=version + 1, **address)
        await store.save_connector(changed, version, [an_event(qualifier="save")])

    return run


def save_policy(version: int, named: str | None, days: int) -> Operation:
    policy = Policy(organisation_default=named, call_log_retention_days=days, updated_at=NOW, version=version + 1)
    return lambda store: store.save_policy(policy, version, an_event(qualifier="policy"))


event = st.builds(an_event, at=moments)
ids = st.sampled_from(["a", "b", "c"])
connector_names = st.sampled_from(["N", "M", "O"])
resource_names = st.one_of(st.none(), st.builds("owners/{}/connectors/{}".format, owners, ids))
operations = st.one_of(
    st.builds(create, st.integers(1, 5), owners, ids, connector_names, states, sealed),
    st.builds(create, st.integers(1, 5), owners, ids, connector_names, st.just(ConnectorState.ACTIVE), sealed),
    st.builds(save, uids, versions, connector_names, states, sealed),
    operation("delete_connector", uids, st.one_of(st.none(), versions), event),
    operation("mark_auth_invalid", uids, sealed, moments, event),
    operation("record_test", uids, moments, st.sampled_from(CheckResult)),
    operation("reseal_connector", uids, sealed, sealed),
    operation("set_default", owners, st.one_of(st.none(), uids), event),
    operation("set_preference", owners, features, uids, moments, event),
    operation("clear_preference", owners, features, event),
    st.builds(save_policy, versions, resource_names, st.sampled_from([6, 7, 30])),
    operation("create_token", st.builds(a_token, token_names), event),
    operation("revoke_token", token_names, moments, event),
    operation("touch_token", token_names, moments),
    operation("write_records", st.lists(records, max_size=6)),
    operation("close_interrupted", st.sampled_from(["p1", "p2"]), moments),
    operation(
        "hold_tokens",
        st.builds(
            a_hold,
            st.sampled_from(CALLS),
            st.integers(1, 2),
            connector_uid=uids,
            tokens=st.integers(0, 20),
            expires_at=moments,
        ),
        st.integers(0, 40),
        st.sampled_from([MONTH, "2026-12"]),
        moments,
    ),
    operation("cap_use", st.lists(uids, max_size=3), st.just(MONTH), moments),
    operation("purge_calls", moments.map(lambda at: at + timedelta(days=7)), st.integers(1, 2)),
    operation("list_connectors", st.one_of(st.none(), owners), pages),
    operation("list_preferences", owners, pages),
    operation("list_calls", pages),
    operation("list_audit", pages),
)


@given(st.lists(operations, min_size=1, max_size=40))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_sequence_of_operations_comes_to_the_same_in_both_stores(sequence: list[Operation]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(_compare(sequence, f"sqlite:///{directory}/patchbay.db"))


async def _compare(sequence: list[Operation], url: str) -> None:
    memory, sql = MemoryStore(), await SqlStore.open(url)
    try:
        for step in sequence:
            assert await _outcome(step, sql) == await _outcome(step, memory)
        assert await _contents(sql) == await _contents(memory)
    finally:
        await sql.close()


async def _outcome(step: Operation, store: Store) -> object:
    try:
        return await step(store)
    except PatchbayError as error:
        return error.reason


async def _contents(store: Store) -> dict[str, object]:
    return {
        "version": await store.version(),
        "snapshots": [await store.snapshot(owner) for owner in OWNERS],
        "preferences": [await store.list_preferences(owner, ALL) for owner in OWNERS],
        "tokens": await store.list_tokens(ALL),
        "calls": [await store.find_call(call_id) for call_id in CALLS],
        "months": await store.month_tokens([f"uid-{i}" for i in range(1, 6)], MONTH),
        "caps": await store.cap_use([f"uid-{i}" for i in range(1, 6)], MONTH, NOW),
        "audit": await store.list_audit(ALL),
        "head": await store.audit_head(),
    }
