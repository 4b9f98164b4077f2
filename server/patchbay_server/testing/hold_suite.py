# ruff: noqa: S101 -- a pytest suite states its rules with `assert`
"""What every store owes to hard caps: holds that never pass a cap together, and that are given back."""

import asyncio
from datetime import timedelta

from patchbay_server.errors import Reason
from patchbay_server.store.protocol import Store
from patchbay_server.testing.store_suite import (
    LATER,
    MONTH,
    NOW,
    a_connector,
    a_hold,
    a_whole_call,
    an_event,
    attempt_closed,
    attempt_opened,
    call_closed,
    call_opened,
    create,
    refused,
)
from patchbay_server.types import CapUse
from patchbay_server.usage import Usage


class HoldSuite:
    """To be made a class of beside `StoreSuite`, with the same fixture `store`."""

    async def test_of_many_holds_that_are_asked_for_together_no_more_are_granted_than_the_cap_has(
        self, store: Store
    ) -> None:
        await create(store, a_connector())
        holds = [a_hold(f"call-{i:03}", tokens=100) for i in range(200)]
        granted = await asyncio.gather(*(store.hold_tokens(hold, 1099, MONTH, NOW) for hold in holds))
        assert granted.count(True) == 10
        assert await store.cap_use(["uid-1"], MONTH, NOW) == {"uid-1": CapUse(held=1000)}
        assert await store.hold_tokens(a_hold("last", tokens=99), 1099, MONTH, NOW)
        assert not await store.hold_tokens(a_hold("one too many", tokens=1), 1099, MONTH, NOW)

    async def test_holds_that_are_asked_for_while_others_settle_never_pass_the_cap(self, store: Store) -> None:
        await create(store, a_connector())
        spent = Usage(input_tokens=60, output_tokens=40, total_tokens=100)

        async def call(call_id: str) -> bool:
            if not await store.hold_tokens(a_hold(call_id, tokens=100), 1000, MONTH, NOW):
                return False
            await store.write_records([call_opened(call_id), attempt_opened(call_id)])
            await store.write_records([attempt_closed(call_id, usage=spent), call_closed(call_id, usage=spent)])
            return True

        granted = await asyncio.gather(*(call(f"call-{i:02}") for i in range(40)))
        assert granted.count(True) == 10
        assert await store.cap_use(["uid-1"], MONTH, NOW) == {"uid-1": CapUse(tokens=1000)}

    async def test_a_hold_counts_beside_the_tokens_of_the_month_and_for_its_connector_only(self, store: Store) -> None:
        await store.write_records(a_whole_call())  # 15 tokens in this month
        assert not await store.hold_tokens(a_hold("call-2", tokens=11), 25, MONTH, NOW)
        assert await store.hold_tokens(a_hold("call-2", tokens=10), 25, MONTH, NOW)
        assert not await store.hold_tokens(a_hold("call-2", 2, tokens=1), 25, MONTH, NOW)
        assert await store.hold_tokens(a_hold("call-3", connector_uid="uid-2", tokens=25), 25, MONTH, NOW)
        assert await store.hold_tokens(a_hold("call-4", tokens=15), 25, "2026-12", NOW)
        assert await store.cap_use(["uid-1", "uid-2", "uid-3"], MONTH, NOW) == {
            "uid-1": CapUse(tokens=15, held=25),
            "uid-2": CapUse(held=25),
            "uid-3": CapUse(),
        }
        assert await store.cap_use(["uid-1"], "2026-12", NOW) == {"uid-1": CapUse(held=25)}

    async def test_a_cap_of_zero_grants_nothing_but_nothing(self, store: Store) -> None:
        assert not await store.hold_tokens(a_hold(tokens=1), 0, MONTH, NOW)
        assert await store.hold_tokens(a_hold(tokens=0), 0, MONTH, NOW)

    async def test_a_hold_that_has_expired_counts_nothing(self, store: Store) -> None:
        assert await store.hold_tokens(a_hold(tokens=10, expires_at=LATER), 10, MONTH, NOW)
        just_before = LATER - timedelta(microseconds=1)
        assert not await store.hold_tokens(a_hold("call-2", tokens=1), 10, MONTH, just_before)
        assert await store.cap_use(["uid-1"], MONTH, just_before) == {"uid-1": CapUse(held=10)}
        assert await store.cap_use(["uid-1"], MONTH, LATER) == {"uid-1": CapUse()}
        after = a_hold("call-2", tokens=10, expires_at=LATER + timedelta(hours=1))
        assert await store.hold_tokens(after, 10, MONTH, LATER)

    async def test_holds_that_have_expired_are_removed_whosever_they_were(self, store: Store) -> None:
        """A clock that goes back does not bring them back."""
        for i in range(3):
            assert await store.hold_tokens(a_hold(f"call-{i}", connector_uid=f"uid-{i}"), 10, MONTH, NOW)
        assert not await store.hold_tokens(a_hold("call-9", connector_uid="uid-9"), 0, MONTH, LATER)
        uids = ["uid-0", "uid-1", "uid-2"]
        assert await store.cap_use(uids, MONTH, NOW) == dict.fromkeys(uids, CapUse())

    async def test_a_hold_is_changed_within_the_cap_and_stays_as_it_was_past_it(self, store: Store) -> None:
        assert await store.hold_tokens(a_hold(tokens=10), 30, MONTH, NOW)
        assert await store.hold_tokens(a_hold("call-2", tokens=10), 30, MONTH, NOW)
        later = LATER + timedelta(hours=1)
        assert await store.hold_tokens(a_hold(tokens=20, expires_at=later), 30, MONTH, NOW)
        assert not await store.hold_tokens(a_hold(tokens=21, expires_at=LATER), 30, MONTH, NOW)
        assert await store.cap_use(["uid-1"], MONTH, LATER) == {"uid-1": CapUse(held=20)}
        assert await store.hold_tokens(a_hold(tokens=5, expires_at=later), 30, MONTH, NOW)
        assert await store.cap_use(["uid-1"], MONTH, LATER) == {"uid-1": CapUse(held=5)}

    async def test_a_call_that_closes_gives_back_what_is_held_for_it_also_for_attempts_that_never_opened(
        self, store: Store
    ) -> None:
        assert await store.hold_tokens(a_hold("call-1", 1, tokens=10), 100, MONTH, NOW)
        assert await store.hold_tokens(a_hold("call-1", 2, tokens=20), 100, MONTH, NOW)
        assert await store.hold_tokens(a_hold("call-2", 1, tokens=30), 100, MONTH, NOW)
        await store.write_records([call_opened(), call_closed()])
        assert await store.cap_use(["uid-1"], MONTH, NOW) == {"uid-1": CapUse(held=30)}

    async def test_an_attempt_that_closes_turns_its_hold_into_what_it_used(self, store: Store) -> None:
        for number in (1, 2):
            assert await store.hold_tokens(a_hold(number=number, tokens=100), 200, MONTH, NOW)
        await store.write_records([call_opened(), attempt_opened(number=1), attempt_opened(number=2)])
        assert await store.cap_use(["uid-1"], MONTH, NOW) == {"uid-1": CapUse(held=200)}
        await store.write_records([attempt_closed(number=1)])
        assert await store.cap_use(["uid-1"], MONTH, NOW) == {"uid-1": CapUse(tokens=15, held=100)}
        await store.write_records([attempt_closed(number=2, usage=None), call_closed()])
        assert await store.cap_use(["uid-1"], MONTH, NOW) == {"uid-1": CapUse(tokens=15)}

    async def test_a_group_that_is_refused_settles_nothing(self, store: Store) -> None:
        assert await store.hold_tokens(a_hold(tokens=100), 100, MONTH, NOW)
        await store.write_records([call_opened(), attempt_opened()])
        await refused(Reason.INTERNAL, store.write_records([attempt_closed(), call_closed("call-9")]))
        assert await store.cap_use(["uid-1"], MONTH, NOW) == {"uid-1": CapUse(held=100)}

    async def test_the_holds_of_interrupted_calls_are_free_again(self, store: Store) -> None:
        for call_id, process in (("dead-1", "gone"), ("dead-2", "gone"), ("alive", "me")):
            assert await store.hold_tokens(a_hold(call_id, tokens=10), 1000, MONTH, NOW)
            await store.write_records([call_opened(call_id, process_id=process)])
        await store.write_records([attempt_opened("dead-2"), attempt_opened("alive")])
        assert await store.hold_tokens(a_hold("not yet written", tokens=3), 1000, MONTH, NOW)
        await store.close_interrupted("me", NOW)
        assert await store.cap_use(["uid-1"], MONTH, NOW) == {"uid-1": CapUse(held=13)}

    async def test_holds_outlive_their_connector_until_they_expire(self, store: Store) -> None:
        await create(store, a_connector())
        assert await store.hold_tokens(a_hold(tokens=10), 10, MONTH, NOW)
        await store.delete_connector("uid-1", None, an_event())
        assert await store.cap_use(["uid-1"], MONTH, NOW) == {"uid-1": CapUse(held=10)}
        assert await store.cap_use(["uid-1"], MONTH, LATER) == {"uid-1": CapUse()}

    async def test_huge_holds_add_up(self, store: Store) -> None:
        for i in range(3):
            assert await store.hold_tokens(a_hold(f"call-{i}", tokens=2**70), 2**62, MONTH, NOW)
        assert await store.cap_use(["uid-1"], MONTH, NOW) == {"uid-1": CapUse(held=3 * 10**15)}

    async def test_the_use_of_caps_is_answered_for_any_number_of_connectors(self, store: Store) -> None:
        assert await store.cap_use([], MONTH, NOW) == {}
        await store.write_records(a_whole_call())
        assert await store.hold_tokens(a_hold("call-2", connector_uid="uid-39999", tokens=7), 10, MONTH, NOW)
        use = await store.cap_use([f"uid-{i}" for i in range(40_000)], MONTH, NOW)
        assert len(use) == 40_000
        assert {uid: taken for uid, taken in use.items() if taken != CapUse()} == {
            "uid-1": CapUse(tokens=15),
            "uid-39999": CapUse(held=7),
        }
