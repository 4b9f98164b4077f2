"""Who is calling, what they may do, how often."""

import asyncio
import hashlib
from datetime import timedelta

import pytest
from tests.support import faults, make
from tests.support.clock import START, Clock

from patchbay_server.core import access as access_module
from patchbay_server.core.access import (
    DEFAULT_OWNER,
    TOKEN_AGE_MAX_S,
    Access,
    RateLimits,
    RateRule,
    acting_owner,
    new_token_text,
    parse_token_text,
    require,
)
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.store.memory import MemoryStore
from patchbay_server.types import AuditEvent, AuditType, Scope, Token


def audit(type_: AuditType = AuditType.TOKEN_CREATED) -> AuditEvent:
    return AuditEvent(type=type_, at=START, actor="test", subject="tokens/t")


async def issue(store: MemoryStore, text: str | None = None, **given: object) -> tuple[str, str]:
    """A stored token: its id and its text."""
    token_id, told, digest = new_token_text(text)
    token = Token(
        **{
            "id": token_id,
            "digest": digest,
            "display_name": "a token",
            "scopes": frozenset({Scope.CHAT}),
            "owner": make.OWNER,
            "created_at": START,
            **given,
        }
    )
    await store.create_token(token, audit())
    return token_id, told


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def access(store: MemoryStore, clock: Clock) -> Access:
    return Access(store, clock)


async def refusal(access: Access, text: str) -> tuple[Reason, str]:
    with pytest.raises(PatchbayError) as caught:
        await access.authenticate(text)
    return caught.value.reason, caught.value.message


# --- tokens ---


async def test_a_token_stands_for_its_caller_without_its_text_only_while_it_is_good(
    store: MemoryStore, access: Access, clock: Clock
) -> None:
    token_id, text = await issue(store, expires_at=START + timedelta(hours=1))
    assert await access.authenticated(token_id) == await access.authenticate(text)
    clock.jump(3_600)
    for bad in (token_id, "nobodyknows"):
        with pytest.raises(PatchbayError) as caught:
            await access.authenticated(bad)
        assert caught.value.reason is Reason.CALLER_UNAUTHENTICATED


def test_a_new_token_has_256_bits_of_its_own_and_only_its_digest_is_kept() -> None:
    token_id, text, digest = new_token_text()
    assert parse_token_text(text) == token_id
    assert len(text.split("_", 2)[2]) == 43
    assert digest == hashlib.sha256(text.encode()).digest()
    assert new_token_text()[1] != text


@pytest.mark.parametrize(
    "text",
    ["pb_short_" + "a" * 40, "pb_abcdefgh_" + "a" * 31, "sk-abcdefgh_" + "a" * 40, "pb_ABCDEFGH_" + "a" * 40, " "],
)
def test_a_chosen_token_has_the_form_of_a_token(text: str) -> None:
    with pytest.raises(PatchbayError) as caught:
        new_token_text(text)
    assert caught.value.reason is Reason.INVALID_REQUEST
    assert text.strip() == "" or text not in caught.value.message


async def test_a_token_is_its_caller(store: MemoryStore, access: Access) -> None:
    token_id, text = await issue(store, scopes=frozenset({Scope.CHAT, Scope.ADMIN}), owner=None)
    caller = await access.authenticate(text)
    assert (caller.id, caller.owner, caller.scopes) == (token_id, None, {Scope.CHAT, Scope.ADMIN})


async def test_every_kind_of_bad_token_gets_the_same_answer(store: MemoryStore, access: Access, clock: Clock) -> None:
    _, good = await issue(store)
    _, expired = await issue(store, expires_at=START + timedelta(seconds=5))
    _, revoked = await issue(store, revoked_at=START)
    _, unknown, _ = new_token_text()
    clock.jump(5)
    texts = ["", "x", "\ud800", good[:-1] + ("a" if good[-1] != "a" else "b"), good + "a", expired, revoked, unknown]
    answers = {await refusal(access, text) for text in texts}
    assert len(answers) == 1
    ((reason, message),) = answers
    assert reason is Reason.CALLER_UNAUTHENTICATED
    assert not any(text and text in message for text in texts if text != "x")


async def test_a_token_of_any_length_is_refused_and_not_kept(store: MemoryStore, access: Access) -> None:
    asked = faults.count(store, "find_token")
    for text in ["pb_" + "a" * 10**6, "pb_abcdefgh_" + "a" * 10**6, "x" * 10**6]:
        await refusal(access, text)
    assert asked == []


async def test_a_token_works_until_the_moment_it_expires(store: MemoryStore, access: Access, clock: Clock) -> None:
    _, text = await issue(store, expires_at=START + timedelta(seconds=5))
    clock.jump(4.999)
    await access.authenticate(text)
    clock.jump(0.001)
    assert (await refusal(access, text))[0] is Reason.CALLER_UNAUTHENTICATED


async def test_a_token_is_read_from_the_store_once_and_believed_for_a_bounded_time(
    store: MemoryStore, access: Access, clock: Clock
) -> None:
    token_id, text = await issue(store)
    asked = faults.count(store, "find_token")
    for _ in range(5):
        await access.authenticate(text)
    assert len(asked) == 1
    await store.revoke_token(token_id, START, audit(AuditType.TOKEN_REVOKED))  # by another process
    clock.jump(TOKEN_AGE_MAX_S)
    assert (await refusal(access, text))[0] is Reason.CALLER_UNAUTHENTICATED


async def test_a_token_revoked_in_this_process_is_refused_at_once(store: MemoryStore, access: Access) -> None:
    token_id, text = await issue(store)
    await access.authenticate(text)
    await store.revoke_token(token_id, START, audit(AuditType.TOKEN_REVOKED))
    access.forget(token_id)
    assert (await refusal(access, text))[0] is Reason.CALLER_UNAUTHENTICATED


async def test_a_revocation_is_not_undone_by_a_request_that_was_reading_the_token_meanwhile(
    store: MemoryStore, access: Access
) -> None:
    token_id, text = await issue(store)
    gate = faults.hold(store, "find_token")
    slow = asyncio.create_task(access.authenticate(text))
    await gate.reached.wait()
    await store.revoke_token(token_id, START, audit(AuditType.TOKEN_REVOKED))
    access.forget(token_id)
    gate.open()
    await slow
    assert (await refusal(access, text))[0] is Reason.CALLER_UNAUTHENTICATED


async def test_a_store_that_is_down_is_told_as_such_and_not_as_a_bad_token(store: MemoryStore, access: Access) -> None:
    _, text = await issue(store)
    store.available = False
    assert (await refusal(access, text))[0] is Reason.DEPENDENCY_UNAVAILABLE


async def test_what_is_remembered_of_tokens_is_bounded(
    store: MemoryStore, access: Access, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_module, "TOKENS_CACHED_MAX", 2)
    texts = [(await issue(store))[1] for _ in range(3)]
    for text in texts:
        await access.authenticate(text)
    asked = faults.count(store, "find_token")
    await access.authenticate(texts[2])
    await access.authenticate(texts[1])
    assert asked == []
    await access.authenticate(texts[0])
    assert len(asked) == 1


async def test_when_a_token_was_last_used_is_written_from_the_background(
    store: MemoryStore, access: Access, clock: Clock
) -> None:
    token_id, text = await issue(store)
    await access.authenticate(text)
    clock.jump(1)
    await access.authenticate(text)
    written = faults.count(store, "touch_token")
    await access.write_last_used()
    await access.write_last_used()
    assert written == [(token_id, START + timedelta(seconds=1))]


async def test_last_uses_that_could_not_be_written_are_written_the_next_time(
    store: MemoryStore, access: Access
) -> None:
    tokens = [(await issue(store)) for _ in range(3)]
    for _, text in tokens:
        await access.authenticate(text)
    faults.fail(store, "touch_token", times=1)
    with pytest.raises(PatchbayError):
        await access.write_last_used()
    await access.write_last_used()
    for token_id, _ in tokens:
        found = await store.find_token(token_id)
        assert found is not None
        assert found.last_used_at == START


# --- what a caller may do ---


def test_a_scope_that_the_token_lacks_is_refused_by_its_name() -> None:
    caller = make.caller(scopes=frozenset({Scope.CHAT}))
    require(caller, Scope.CHAT)
    with pytest.raises(PatchbayError, match="`admin`") as caught:
        require(caller, Scope.ADMIN)
    assert caught.value.reason is Reason.CALLER_NOT_AUTHORIZED


@pytest.mark.parametrize(
    ("bound_to", "asked", "acts_for"),
    [("acme", "", "acme"), ("acme", "acme", "acme"), (None, "", DEFAULT_OWNER), (None, "other", "other")],
)
def test_a_caller_acts_for_its_own_owner_or_for_the_one_it_may_name(
    bound_to: str | None, asked: str, acts_for: str
) -> None:
    assert acting_owner(make.caller(bound_to), asked) == acts_for


def test_a_caller_bound_to_an_owner_may_not_act_for_another() -> None:
    with pytest.raises(PatchbayError) as caught:
        acting_owner(make.caller("acme"), "other")
    assert caught.value.reason is Reason.CALLER_NOT_AUTHORIZED


@pytest.mark.parametrize("owner", ["Acme", "1a", "a-", "-a", "a" * 64, "a/b", "a\n", "ä"])
def test_what_is_no_owner_id_is_refused_naming_the_field(owner: str) -> None:
    with pytest.raises(PatchbayError) as caught:
        acting_owner(make.caller(None), owner, field="parent")
    assert (caught.value.reason, caught.value.violations[0].field) == (Reason.INVALID_REQUEST, "parent")


# --- rate limits ---

ONE, TWO = make.caller(id="one"), make.caller(id="two")


@pytest.fixture
def rates(clock: Clock) -> RateLimits:
    return RateLimits({"create": RateRule(2), "test": RateRule(1, window_s=10.0)}, clock)


def limited(rates: RateLimits, caller: object, operation: str) -> PatchbayError | None:
    try:
        rates.spend(caller, operation)
    except PatchbayError as error:
        return error
    return None


def test_a_caller_may_spend_its_count_and_no_more(rates: RateLimits) -> None:
    assert [limited(rates, ONE, "create") is None for _ in range(3)] == [True, True, False]


def test_a_refused_request_is_told_when_to_come_back_and_what_for(rates: RateLimits, clock: Clock) -> None:
    rates.spend(ONE, "create")
    clock.jump(20)
    rates.spend(ONE, "create")
    error = limited(rates, ONE, "create")
    assert error is not None
    assert (error.reason, error.retry_after_s, error.quota) == (Reason.RATE_LIMITED, 40.0, "tokens/one:create")


def test_the_window_slides(rates: RateLimits, clock: Clock) -> None:
    rates.spend(ONE, "create")
    clock.jump(30)
    rates.spend(ONE, "create")
    clock.jump(30)
    rates.spend(ONE, "create")
    assert limited(rates, ONE, "create") is not None
    clock.jump(30)
    rates.spend(ONE, "create")


def test_a_refused_request_is_not_counted(rates: RateLimits, clock: Clock) -> None:
    rates.spend(ONE, "test")
    clock.jump(9)
    assert limited(rates, ONE, "test") is not None
    clock.jump(1)
    rates.spend(ONE, "test")


def test_callers_and_operations_are_counted_apart(rates: RateLimits) -> None:
    rates.spend(ONE, "test")
    rates.spend(TWO, "test")
    rates.spend(ONE, "create")


def test_an_operation_without_a_rule_is_not_limited(rates: RateLimits) -> None:
    for _ in range(100):
        rates.spend(ONE, "chat")


def test_what_is_remembered_of_callers_is_bounded(rates: RateLimits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RateLimits, "CALLERS_MAX", 2)
    for name in ("a", "b", "c"):
        rates.spend(make.caller(id=name), "test")
    assert limited(rates, make.caller(id="c"), "test") is not None
    assert limited(rates, make.caller(id="a"), "test") is None
