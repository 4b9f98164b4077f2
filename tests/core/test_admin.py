"""The administrators' side: tokens and policy."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from tests.support import faults, make
from tests.support.bench import Bench
from tests.support.clock import START

from patchbay_server.core.admin import POLICY_PATHS
from patchbay_server.core.listing import Query
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.types import (
    AuditType,
    ConnectorState,
    FallbackMode,
    Policy,
    Price,
    PrivateHttp,
    Scope,
)

ROOT = make.caller(None, id="root")
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
    ]:
        assert (await refused(attempt)).reason is Reason.CALLER_NOT_AUTHORIZED


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
