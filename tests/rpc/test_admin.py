"""AdminService: connectors of all owners, policy, tokens and status over the wire."""

from datetime import timedelta
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from tests.rpc.bench import Rpc, failure_of
from tests.support import answers
from tests.support.clock import START
from tests.support.faults import fail

from patchbay.v1 import admin_service_pb2 as pb
from patchbay.v1 import connector_service_pb2 as connector_pb
from patchbay.v1 import gateway_service_pb2 as gateway_pb
from patchbay_server.rpc.convert.fields import timestamp
from patchbay_server.types import Hold, Scope

FULL = pb.Policy(
    allowed_connector_types=pb.ConnectorTypeList(types=["openai", "openai_compatible"]),
    host_allow_list=["a.example", "*.b.example"],
    private_http=connector_pb.PRIVATE_HTTP_PRIVATE,
    org_default_connector="owners/acme/connectors/main",
    call_log_retention_days=90,
    default_fallback=gateway_pb.FALLBACK_MODE_ORG_DEFAULT,
    model_aliases={"fast": "small"},
    quality_priors=[
        pb.QualityPrior(provider="openai", model="gpt", quality=0.0),
        pb.QualityPrior(model="openai/gpt", quality=0.75),
    ],
    price_overrides=[
        pb.PriceOverride(provider="openai", model="gpt", price=gateway_pb.ModelPrice(input_per_million_usd_nanos=0)),
        pb.PriceOverride(
            model="gpt",
            price=gateway_pb.ModelPrice(
                output_per_million_usd_nanos=2,
                cached_input_per_million_usd_nanos=3,
                cache_write_input_per_million_usd_nanos=4,
            ),
        ),
    ],
)
PATHS = [field.name for field in pb.Policy.DESCRIPTOR.fields if field.name not in {"update_time", "etag"}]


async def ask(rpc: Rpc, method: str, request: Any) -> Any:
    return await getattr(rpc.admin, method)(request, metadata=rpc.root_token, timeout=5)


def update(*paths: str, clear_org_default: bool = False, **fields: Any) -> pb.UpdatePolicyRequest:
    return pb.UpdatePolicyRequest(
        policy=pb.Policy(**fields), update_mask=FieldMask(paths=paths), clear_org_default=clear_org_default
    )


async def fields_at_fault(rpc: Rpc, request: pb.UpdatePolicyRequest) -> list[str]:
    failure = await failure_of(ask(rpc, "UpdatePolicy", request))
    assert failure.reason == "INVALID_REQUEST"
    return failure.fields


# --- connectors -------------------------------------------------------------------------------------------------------

MAIN = "owners/acme/connectors/main"


def cap(name: str = MAIN, **fields: Any) -> pb.SetConnectorCapRequest:
    return pb.SetConnectorCapRequest(name=name, **fields)


async def test_connectors_of_all_owners_are_listed_page_by_page_with_their_tokens(rpc: Rpc) -> None:
    await rpc.core.add("x", owner="zoo")
    rpc.core.provider.answer(answers.openai_unary())
    await rpc.chat()
    hold = Hold(
        call_id="running", number=1, connector_uid="uid-zoo-x", tokens=30, expires_at=START + timedelta(hours=1)
    )
    assert await rpc.core.store.hold_tokens(hold, 100, "2026-11", START)
    await ask(rpc, "UpdatePolicy", update("org_default_connector", org_default_connector=MAIN))
    first = await ask(rpc, "ListAllConnectors", pb.ListAllConnectorsRequest(page_size=1))
    rest = await ask(rpc, "ListAllConnectors", pb.ListAllConnectorsRequest(page_token=first.next_page_token))
    (main,), (other,) = first.connectors, rest.connectors
    assert not rest.next_page_token
    got = await rpc.connectors.GetConnector(
        connector_pb.GetConnectorRequest(name=MAIN), metadata=rpc.root_token, timeout=5
    )
    assert main.connector == got.connector
    used = answers.USAGE["prompt_tokens"] + answers.USAGE["completion_tokens"]
    assert (main.owner, main.month_tokens, main.reserved_tokens, main.org_default) == ("owners/acme", used, 0, True)
    assert (other.owner, other.month_tokens, other.reserved_tokens, other.org_default) == ("owners/zoo", 0, 30, False)
    busy = pb.ListAllConnectorsRequest(filter="month_tokens > 0", order_by="month_tokens desc")
    assert [one.connector.name for one in (await ask(rpc, "ListAllConnectors", busy)).connectors] == [MAIN]


async def test_an_administrator_of_one_owner_is_shown_that_owner_s_connectors_only(rpc: Rpc) -> None:
    await rpc.core.add("x", owner="zoo")
    listed = await rpc.admin.ListAllConnectors(pb.ListAllConnectorsRequest(), metadata=rpc.owner_token, timeout=5)
    assert [one.owner for one in listed.connectors] == ["owners/acme"]
    theirs = "owners/zoo/connectors/x"
    for method, request in (
        ("RevokeConnector", pb.RevokeConnectorRequest(name=theirs)),
        ("SetConnectorCap", cap(theirs, clear=True)),
    ):
        failure = await failure_of(getattr(rpc.admin, method)(request, metadata=rpc.owner_token, timeout=5))
        assert (failure.reason, failure.fields) == ("CONNECTOR_NOT_FOUND", ["name"])


async def test_administering_connectors_needs_the_scope_admin(rpc: Rpc) -> None:
    metadata = await rpc.token(Scope.CHAT, Scope.CONNECTORS, owner=None)
    for method, request in (
        ("ListAllConnectors", pb.ListAllConnectorsRequest()),
        ("RevokeConnector", pb.RevokeConnectorRequest(name=MAIN)),
        ("SetConnectorCap", cap(clear=True)),
    ):
        failure = await failure_of(getattr(rpc.admin, method)(request, metadata=metadata, timeout=5))
        assert failure.reason == "CALLER_NOT_AUTHORIZED"


async def test_a_revoked_connector_answers_no_call_and_keeps_no_key(rpc: Rpc) -> None:
    request = pb.RevokeConnectorRequest(name=MAIN, etag="1")
    revoked = (await ask(rpc, "RevokeConnector", request)).connector
    assert revoked.state == connector_pb.CONNECTOR_STATE_REVOKED
    assert (revoked.credential_info.last_four, revoked.credential_info.settings) == ("", {})
    assert (await failure_of(rpc.chat())).reason == "CONNECTOR_NOT_CONFIGURED"
    again = (await ask(rpc, "RevokeConnector", pb.RevokeConnectorRequest(name=MAIN))).connector
    assert again == revoked
    assert (await failure_of(ask(rpc, "RevokeConnector", request))).reason == "ETAG_MISMATCH"


async def test_a_cap_is_set_kept_and_cleared(rpc: Rpc) -> None:
    capped = (await ask(rpc, "SetConnectorCap", cap(monthly_token_cap=0))).connector
    assert (capped.monthly_token_cap, capped.cap_mode) == (0, connector_pb.CAP_MODE_SOFT)
    assert capped.HasField("monthly_token_cap")
    failure = await failure_of(rpc.chat())
    assert failure.reason == "CAP_REACHED"
    hard = (
        await ask(rpc, "SetConnectorCap", cap(monthly_token_cap=2**40, cap_mode=connector_pb.CAP_MODE_HARD))
    ).connector
    assert (hard.monthly_token_cap, hard.cap_mode) == (2**40, connector_pb.CAP_MODE_HARD)
    lower = (await ask(rpc, "SetConnectorCap", cap(monthly_token_cap=5, etag=hard.etag))).connector
    assert (lower.monthly_token_cap, lower.cap_mode) == (5, connector_pb.CAP_MODE_HARD)
    cleared = (await ask(rpc, "SetConnectorCap", cap(clear=True))).connector
    assert (cleared.HasField("monthly_token_cap"), cleared.cap_mode) == (False, connector_pb.CAP_MODE_UNSPECIFIED)
    rpc.core.provider.answer(answers.openai_unary())
    await rpc.chat()


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        (cap(), ["monthly_token_cap"]),
        (cap(cap_mode=connector_pb.CAP_MODE_HARD), ["monthly_token_cap"]),
        (cap(clear=False), ["clear"]),
        (cap(clear=True, cap_mode=connector_pb.CAP_MODE_SOFT), ["cap_mode"]),
        (cap(monthly_token_cap=-1), ["monthly_token_cap"]),
        (cap(monthly_token_cap=1, cap_mode=99), ["cap_mode"]),  # type: ignore[arg-type]  # of a later contract
        (cap("", monthly_token_cap=1), ["name"]),
        (cap("owners/acme", clear=False), ["name", "clear"]),
    ],
)
async def test_an_unfit_cap_is_refused_by_its_fields_and_changes_nothing(
    rpc: Rpc, request_: pb.SetConnectorCapRequest, fields: list[str]
) -> None:
    await ask(rpc, "SetConnectorCap", cap(monthly_token_cap=7))
    failure = await failure_of(ask(rpc, "SetConnectorCap", request_))
    assert (failure.reason, failure.fields) == ("INVALID_REQUEST", fields)
    (listed,) = (await ask(rpc, "ListAllConnectors", pb.ListAllConnectorsRequest())).connectors
    assert listed.connector.monthly_token_cap == 7


async def test_an_old_etag_of_a_cap_is_refused(rpc: Rpc) -> None:
    await ask(rpc, "SetConnectorCap", cap(monthly_token_cap=7, etag="1"))
    failure = await failure_of(ask(rpc, "SetConnectorCap", cap(monthly_token_cap=8, etag="1")))
    assert (failure.reason, failure.fields) == ("ETAG_MISMATCH", ["etag"])


# --- policy -----------------------------------------------------------------------------------------------------------


async def test_a_policy_comes_back_as_it_was_set(rpc: Rpc) -> None:
    request = pb.UpdatePolicyRequest(policy=FULL, update_mask=FieldMask(paths=PATHS))
    changed = (await ask(rpc, "UpdatePolicy", request)).policy
    assert changed.update_time == timestamp(START)
    assert changed == (await ask(rpc, "GetPolicy", pb.GetPolicyRequest())).policy
    for name in ("update_time", "etag"):
        changed.ClearField(name)
    assert changed == FULL


async def test_a_policy_that_was_never_set_has_no_time_of_change(rpc: Rpc) -> None:
    assert not (await ask(rpc, "GetPolicy", pb.GetPolicyRequest())).policy.HasField("update_time")


async def test_what_the_mask_does_not_name_is_neither_changed_nor_judged(rpc: Rpc) -> None:
    before = (await ask(rpc, "GetPolicy", pb.GetPolicyRequest())).policy
    request = update("call_log_retention_days", call_log_retention_days=60, org_default_connector="nonsense")
    after = (await ask(rpc, "UpdatePolicy", request)).policy
    assert after.call_log_retention_days == 60
    for name in ("call_log_retention_days", "etag", "update_time"):
        before.ClearField(name)
        after.ClearField(name)
    assert after == before


async def test_no_types_and_every_type_are_told_apart(rpc: Rpc) -> None:
    none = update("allowed_connector_types", allowed_connector_types=pb.ConnectorTypeList())
    policy = (await ask(rpc, "UpdatePolicy", none)).policy
    assert policy.HasField("allowed_connector_types")
    every = (await ask(rpc, "UpdatePolicy", update("allowed_connector_types"))).policy
    assert not every.HasField("allowed_connector_types")


@pytest.mark.parametrize("clearing", [update("org_default_connector"), update(clear_org_default=True)])
async def test_the_organisation_default_is_cleared(rpc: Rpc, clearing: pb.UpdatePolicyRequest) -> None:
    main = "owners/acme/connectors/main"
    set_ = (await ask(rpc, "UpdatePolicy", update("org_default_connector", org_default_connector=main))).policy
    assert set_.org_default_connector == main
    assert not (await ask(rpc, "UpdatePolicy", clearing)).policy.org_default_connector


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        (update(), ["update_mask"]),
        (update("*"), ["update_mask"]),
        (update("etag"), ["update_mask"]),
        (update("private_http"), ["policy.private_http"]),
        (update("default_fallback", "private_http"), ["policy.default_fallback", "policy.private_http"]),
        (update("default_fallback", default_fallback=99), ["policy.default_fallback"]),
        (update("org_default_connector", org_default_connector="main"), ["policy.org_default_connector"]),
        (update(clear_org_default=True, org_default_connector="owners/a/connectors/b"), ["clear_org_default"]),
        (
            update("allowed_connector_types", allowed_connector_types=pb.ConnectorTypeList(types=["openai"] * 2)),
            ["policy.allowed_connector_types.types"],
        ),
        (
            update("quality_priors", quality_priors=[pb.QualityPrior(model="m")]),
            ["policy.quality_priors[0].quality"],
        ),
        (
            update("quality_priors", quality_priors=[pb.QualityPrior(model="m", quality=0.5)] * 2),
            ["policy.quality_priors[1]"],
        ),
        (
            update("quality_priors", quality_priors=[pb.QualityPrior(provider="a/b", quality=0.5)]),
            ["policy.quality_priors[0].provider", "policy.quality_priors[0].model"],
        ),
        (
            update("price_overrides", price_overrides=[pb.PriceOverride(model="m")]),
            ["policy.price_overrides[0].price"],
        ),
    ],
)
async def test_an_unfit_policy_is_refused_by_its_paths(
    rpc: Rpc, request_: pb.UpdatePolicyRequest, fields: list[str]
) -> None:
    assert await fields_at_fault(rpc, request_) == fields


async def test_an_old_etag_of_the_policy_is_refused(rpc: Rpc) -> None:
    request = update("call_log_retention_days", call_log_retention_days=60, etag="999")
    assert (await failure_of(ask(rpc, "UpdatePolicy", request))).reason == "ETAG_MISMATCH"


# --- tokens -----------------------------------------------------------------------------------------------------------


def token(**fields: Any) -> pb.CreateTokenRequest:
    given = {"display_name": "t", "scopes": [pb.SCOPE_CHAT], "owner": "owners/acme"}
    return pb.CreateTokenRequest(token=pb.CallerToken(**(given | fields)))


async def test_a_created_token_opens_the_door_until_it_is_revoked(rpc: Rpc) -> None:
    rpc.core.provider.answer(answers.openai_unary())
    made = await ask(rpc, "CreateToken", token(expire_time=timestamp(START + timedelta(days=1))))
    assert made.token.name.startswith("tokens/")
    assert list(made.token.scopes) == [pb.SCOPE_CHAT]
    assert made.token.owner == "owners/acme"
    metadata = (("authorization", f"Bearer {made.secret}"),)
    await rpc.chat(metadata=metadata)
    revoked = (await ask(rpc, "RevokeToken", pb.RevokeTokenRequest(name=made.token.name))).token
    assert revoked.revoke_time == timestamp(START)
    assert (await failure_of(rpc.chat(metadata=metadata))).reason == "CALLER_UNAUTHENTICATED"


async def test_a_token_for_any_owner_says_so(rpc: Rpc) -> None:
    made = await ask(rpc, "CreateToken", token(owner=None, any_owner=True, scopes=[pb.SCOPE_ADMIN, pb.SCOPE_CHAT]))
    assert made.token.WhichOneof("binding") == "any_owner"
    assert list(made.token.scopes) == [pb.SCOPE_CHAT, pb.SCOPE_ADMIN]


async def test_tokens_are_listed_without_their_secrets(rpc: Rpc) -> None:
    made = await ask(rpc, "CreateToken", token(display_name="listed"))
    page = await ask(rpc, "ListTokens", pb.ListTokensRequest(order_by="create_time desc"))
    assert made.token in page.tokens
    assert made.secret.encode() not in page.SerializeToString()


@pytest.mark.parametrize(
    ("fields", "at_fault"),
    [
        ({"owner": None}, ["token"]),
        ({"owner": None, "any_owner": False}, ["token"]),
        ({"owner": ""}, ["token"]),
        ({"owner": "owners/No"}, ["token.owner"]),
        ({"scopes": [0]}, ["token.scopes[0]"]),
        ({"scopes": [1, 99]}, ["token.scopes[1]"]),
        ({"scopes": []}, ["token.scopes"]),
        ({"scopes": [1, 1]}, ["token.scopes"]),
        ({"expire_time": timestamp(START)}, ["token.expire_time"]),
        ({"display_name": ""}, ["token.display_name"]),
    ],
)
async def test_an_unfit_token_is_refused_by_its_paths(rpc: Rpc, fields: dict[str, Any], at_fault: list[str]) -> None:
    assert (await failure_of(ask(rpc, "CreateToken", token(**fields)))).fields == at_fault


@pytest.mark.parametrize(("name", "reason"), [("x", "INVALID_REQUEST"), ("tokens/0", "RESOURCE_NOT_FOUND")])
async def test_only_a_token_that_exists_is_revoked(rpc: Rpc, name: str, reason: str) -> None:
    failure = await failure_of(ask(rpc, "RevokeToken", pb.RevokeTokenRequest(name=name)))
    assert (failure.reason, failure.fields) == (reason, ["name"])


# --- status -----------------------------------------------------------------------------------------------------------


async def test_the_status_tells_of_the_process_and_its_store(rpc: Rpc) -> None:
    status = await ask(rpc, "GetStatus", pb.GetStatusRequest())
    assert (status.version, status.process_id) == ("1.2.3", "bench")
    assert status.start_time == timestamp(START)
    assert status.store.reachable
    assert status.store.kind == "memory"
    assert (status.keyring.primary_key_id, list(status.keyring.key_ids)) == ("key-1", ["key-1"])
    assert (status.calls_open, status.calls_without_record, status.draining) == (0, 0, False)


async def test_the_status_is_told_while_the_store_is_down(rpc: Rpc) -> None:
    await ask(rpc, "GetStatus", pb.GetStatusRequest())  # so that the token is known
    fail(rpc.core.store, "ping")
    status = await ask(rpc, "GetStatus", pb.GetStatusRequest())
    assert not status.store.reachable
    assert not status.store.HasField("latency")
