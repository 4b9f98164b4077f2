"""ConnectorService: what arrives in the core, and what comes back of it."""

import json
from typing import Any

import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from tests.rpc.bench import Rpc, failure_of
from tests.support import answers, make
from tests.support.bench import PLANTED
from tests.support.provider import Silence

from patchbay.v1 import connector_service_pb2 as pb
from patchbay.v1 import error_pb2
from patchbay.v1 import gateway_service_pb2 as gateway_pb
from patchbay_server.core.connectors import Credential
from patchbay_server.errors import PatchbayError
from patchbay_server.rpc.convert import connectors as convert
from patchbay_server.rpc.convert.fields import Faults
from patchbay_server.types import ConnectorSettings, ConnectorState

MAIN = "owners/acme/connectors/main"
UNKNOWN: Any = 99
"""A value of an enum that a later contract may have."""


async def ask(rpc: Rpc, method: str, request: Any) -> Any:
    return await getattr(rpc.connectors, method)(request, metadata=rpc.owner_token, timeout=5)


def creation(rpc: Rpc, **fields: Any) -> pb.CreateConnectorRequest:
    compatible = pb.OpenaiCompatibleCredential(base_url=rpc.core.provider.url() + "/v1", api_key="sk-0123456789-abcd")
    given: dict[str, Any] = {
        "connector_id": "second",
        "connector": pb.Connector(display_name="Second", model_hint="small", labels={"team": "sea"}),
        "credential": pb.Credential(openai_compatible=compatible),
    }
    return pb.CreateConnectorRequest(**(given | fields))


# --- credentials ------------------------------------------------------------------------------------------------------


def converted(credential: pb.Credential) -> Credential:
    faults = Faults()
    made = convert.credential(credential, faults)
    faults.check()
    return made


def faulty(credential: pb.Credential) -> list[str]:
    with pytest.raises(PatchbayError) as caught:
        converted(credential)
    return [violation.field for violation in caught.value.violations]


def test_only_the_given_fields_of_a_credential_arrive() -> None:
    given = pb.OpenaiCompatibleCredential(base_url="", tools=False, headers={"x-a": "1"})
    assert converted(pb.Credential(openai_compatible=given)).fields == {
        "base_url": "",
        "tools": False,
        "headers": {"x-a": "1"},
    }
    assert converted(pb.Credential(openai=pb.OpenaiCredential())) == Credential(type="openai", fields={})


@pytest.mark.parametrize("case", [field.name for field in pb.Credential.DESCRIPTOR.oneofs_by_name["provider"].fields])
def test_the_case_is_the_type_and_every_field_of_it_arrives(case: str) -> None:
    if case == "plugin":
        return
    message = pb.Credential()
    inner = getattr(message, case)
    for field in inner.DESCRIPTOR.fields:
        if field.message_type is not None:
            getattr(inner, field.name)["x-a"] = "1"
        else:
            setattr(inner, field.name, False if field.cpp_type == field.CPPTYPE_BOOL else "given")
    made = converted(message)
    assert made.type == case
    assert set(made.fields) == {field.name for field in inner.DESCRIPTOR.fields}


def test_a_plugins_fields_are_the_members_of_its_json() -> None:
    plugin = pb.PluginCredential(type="acme", fields_json='{"api_key": "k", "nested": {"a": 1}}')
    assert converted(pb.Credential(plugin=plugin)) == Credential(
        type="acme", fields={"api_key": "k", "nested": {"a": 1}}
    )


@pytest.mark.parametrize(
    ("credential", "fields"),
    [
        (pb.Credential(), ["credential"]),
        (pb.Credential(plugin=pb.PluginCredential(fields_json="{}")), ["credential.plugin.type"]),
        (pb.Credential(plugin=pb.PluginCredential(type="openai", fields_json="{}")), ["credential.plugin.type"]),
        (pb.Credential(plugin=pb.PluginCredential(type="plugin", fields_json="{}")), ["credential.plugin.type"]),
        (pb.Credential(plugin=pb.PluginCredential(type="acme")), ["credential.plugin.fields_json"]),
        (pb.Credential(plugin=pb.PluginCredential(type="acme", fields_json="[]")), ["credential.plugin.fields_json"]),
        (
            pb.Credential(plugin=pb.PluginCredential(type="acme", fields_json="[" * 60_000)),
            ["credential.plugin.fields_json"],
        ),
        (
            pb.Credential(plugin=pb.PluginCredential(type="acme", fields_json=json.dumps({"k": "€" * 30_000}))),
            ["credential.plugin.fields_json"],
        ),
    ],
)
def test_an_unfit_credential_is_refused_by_its_path(credential: pb.Credential, fields: list[str]) -> None:
    assert faulty(credential) == fields


def test_a_refusal_repeats_nothing_of_a_credential() -> None:
    secret = pb.PluginCredential(type="acme", fields_json='{"api_key": "planted-in-json"')
    with pytest.raises(PatchbayError) as caught:
        converted(pb.Credential(plugin=secret))
    assert "planted" not in f"{caught.value!r} {caught.value.violations}"
    assert "planted" not in repr(converted(pb.Credential(openai=pb.OpenaiCredential(api_key="planted"))))


# --- life -------------------------------------------------------------------------------------------------------------


async def test_a_created_connector_comes_back_whole_and_without_its_key(rpc: Rpc) -> None:
    settings = pb.ConnectorSettings(idle_timeout=Duration(seconds=90, nanos=500_000_000))
    request = creation(rpc)
    request.connector.settings.CopyFrom(settings)
    made = (await ask(rpc, "CreateConnector", request)).connector
    assert made.name == "owners/acme/connectors/second"
    assert (made.type, made.display_name, made.model_hint) == ("openai_compatible", "Second", "small")
    assert made.state == pb.CONNECTOR_STATE_ACTIVE
    assert made.settings == settings
    assert dict(made.labels) == {"team": "sea"}
    assert made.credential_info.last_four == "abcd"
    assert made.credential_info.settings["base_url"] == rpc.core.provider.url() + "/v1"
    assert made.credential_info.key_id == "key-1"
    assert (made.etag, made.cap_mode) == ("1", pb.CAP_MODE_UNSPECIFIED)
    assert made.uid
    assert made.HasField("create_time")
    for unset in ("monthly_token_cap", "last_used_time", "last_test_time"):
        assert not made.HasField(unset)
    assert b"sk-0123456789" not in made.SerializeToString()
    assert (await ask(rpc, "GetConnector", pb.GetConnectorRequest(name=made.name))).connector == made


async def test_a_connector_that_is_only_checked_has_nothing_of_a_stored_one(rpc: Rpc) -> None:
    made = (await ask(rpc, "CreateConnector", creation(rpc, validate_only=True))).connector
    assert made.name == "owners/acme/connectors/second"
    assert (made.uid, made.etag) == ("", "")
    for unset in ("create_time", "update_time"):
        assert not made.HasField(unset)
    assert not made.credential_info.HasField("rotate_time")
    failure = await failure_of(ask(rpc, "GetConnector", pb.GetConnectorRequest(name=made.name)))
    assert failure.reason == "CONNECTOR_NOT_FOUND"


async def test_faults_of_all_parts_of_a_creation_are_told_at_once(rpc: Rpc) -> None:
    bad = pb.Connector(state=UNKNOWN, settings=pb.ConnectorSettings(idle_timeout=Duration(seconds=1, nanos=-1)))
    request = creation(rpc, parent="owners/No", connector=bad, credential=None)
    failure = await failure_of(ask(rpc, "CreateConnector", request))
    assert failure.fields == ["parent", "connector.state", "connector.settings.idle_timeout", "credential"]


async def test_a_fault_within_a_credential_has_its_whole_path(rpc: Rpc) -> None:
    empty = pb.Credential(openai_compatible=pb.OpenaiCompatibleCredential(api_key="sk-0123456789"))
    failure = await failure_of(ask(rpc, "CreateConnector", creation(rpc, credential=empty)))
    assert failure.fields == ["credential.openai_compatible.base_url"]


async def test_an_update_changes_what_its_mask_names(rpc: Rpc) -> None:
    changed = pb.Connector(name=MAIN, display_name="New", model_hint="ignored", state=pb.CONNECTOR_STATE_DISABLED)
    mask = FieldMask(paths=["display_name", "state"])
    made = (await ask(rpc, "UpdateConnector", pb.UpdateConnectorRequest(connector=changed, update_mask=mask))).connector
    assert (made.display_name, made.model_hint, made.state) == ("New", "small", pb.CONNECTOR_STATE_DISABLED)


async def test_one_setting_can_be_changed_or_unset_alone(rpc: Rpc) -> None:
    await rpc.core.add("timed", settings=ConnectorSettings(idle_timeout_s=9, call_timeout_s=90))
    changed = pb.Connector(name="owners/acme/connectors/timed")
    changed.settings.call_timeout.FromSeconds(80)
    mask = FieldMask(paths=["settings.call_timeout", "settings.idle_timeout"])
    made = (await ask(rpc, "UpdateConnector", pb.UpdateConnectorRequest(connector=changed, update_mask=mask))).connector
    assert made.settings.call_timeout.seconds == 80
    assert not made.settings.HasField("idle_timeout")


@pytest.mark.parametrize("paths", [[], ["*"], ["uid"], ["credential_info"]])
async def test_a_mask_names_what_can_be_updated(rpc: Rpc, paths: list[str]) -> None:
    request = pb.UpdateConnectorRequest(connector=pb.Connector(name=MAIN), update_mask=FieldMask(paths=paths))
    assert (await failure_of(ask(rpc, "UpdateConnector", request))).fields == ["update_mask"]


async def test_an_old_etag_is_refused(rpc: Rpc) -> None:
    request = pb.DeleteConnectorRequest(name=MAIN, etag="7")
    failure = await failure_of(ask(rpc, "DeleteConnector", request))
    assert (failure.code, failure.reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
    update = pb.UpdateConnectorRequest(connector=pb.Connector(name=MAIN, display_name="New", etag="7"))
    update.update_mask.paths.append("display_name")
    assert (await failure_of(ask(rpc, "UpdateConnector", update))).reason == "ETAG_MISMATCH"
    await ask(rpc, "DeleteConnector", pb.DeleteConnectorRequest(name=MAIN, etag="1"))


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("GetConnector", pb.GetConnectorRequest(name="owners/other/connectors/main")),
        ("DeleteConnector", pb.DeleteConnectorRequest(name="owners/other/connectors/main")),
        ("TestConnector", pb.TestConnectorRequest(name="owners/other/connectors/main")),
        ("SetDefaultConnector", pb.SetDefaultConnectorRequest(name="owners/other/connectors/main")),
        ("ListConnectorModels", pb.ListConnectorModelsRequest(parent="owners/other/connectors/main")),
    ],
)
async def test_another_owners_connector_looks_like_none(rpc: Rpc, method: str, request_: Any) -> None:
    await rpc.core.add(owner="other")
    failure = await failure_of(ask(rpc, method, request_))
    assert (failure.code, failure.reason) == (grpc.StatusCode.NOT_FOUND, "CONNECTOR_NOT_FOUND")


@pytest.mark.parametrize("name", ["", "main", "owners/acme", "owners/acme/connectors/", "owners/a/connectors/b/c"])
async def test_a_name_that_is_none_is_refused(rpc: Rpc, name: str) -> None:
    assert (await failure_of(ask(rpc, "GetConnector", pb.GetConnectorRequest(name=name)))).fields == ["name"]


async def test_rotation_exchanges_what_is_given(rpc: Rpc) -> None:
    rotated = pb.Credential(openai_compatible=pb.OpenaiCompatibleCredential(api_key="sk-0123456789-wxyz"))
    made = (await ask(rpc, "RotateCredential", pb.RotateCredentialRequest(name=MAIN, credential=rotated))).connector
    assert made.credential_info.last_four == "wxyz"
    assert made.credential_info.settings["base_url"] == rpc.core.provider.url() + "/v1"


# --- tests and models -------------------------------------------------------------------------------------------------


async def test_a_providers_failure_is_a_tests_result(rpc: Rpc) -> None:
    rpc.core.provider.always_answer(answers.error(401, "invalid_api_key"))
    tested = await ask(rpc, "TestConnector", pb.TestConnectorRequest(name=MAIN))
    assert tested.result == pb.TEST_RESULT_AUTH_INVALID
    assert tested.error_reason == error_pb2.ERROR_REASON_UPSTREAM_CREDENTIAL_REJECTED
    assert tested.message
    assert "what the provider said" not in tested.message
    assert tested.connector.state == pb.CONNECTOR_STATE_AUTH_INVALID
    assert tested.connector.last_test_result == pb.TEST_RESULT_AUTH_INVALID


async def test_a_good_test_has_no_error(rpc: Rpc) -> None:
    rpc.core.provider.always_answer(answers.json_answer({"object": "list", "data": [{"id": "small"}]}))
    tested = await ask(rpc, "TestConnector", pb.TestConnectorRequest(name=MAIN))
    assert (tested.result, tested.error_reason, tested.message) == (pb.TEST_RESULT_OK, 0, "")
    assert tested.HasField("latency")


async def test_models_are_listed_with_their_connector_and_provider(rpc: Rpc) -> None:
    models = {"object": "list", "data": [{"id": "b", "created": 1_700_000_000, "owned_by": "sea"}, {"id": "a"}]}
    rpc.core.provider.always_answer(answers.json_answer(models))
    page = await ask(rpc, "ListConnectorModels", pb.ListConnectorModelsRequest(parent=MAIN, page_size=1))
    assert [(m.id, m.connector, m.provider) for m in page.models] == [("a", MAIN, "openai_compatible")]
    assert page.HasField("fetch_time")
    assert not page.stale
    rest = pb.ListConnectorModelsRequest(parent=MAIN, page_size=1, page_token=page.next_page_token)
    [model] = (await ask(rpc, "ListConnectorModels", rest)).models
    assert isinstance(model, gateway_pb.ModelInfo)
    assert (model.id, model.owned_by, model.create_time.seconds) == ("b", "sea", 1_700_000_000)


# --- lists ------------------------------------------------------------------------------------------------------------


async def test_connectors_are_listed_filtered_and_paged(rpc: Rpc) -> None:
    for name in ("b", "c", "d"):
        await rpc.core.add(name, state=ConnectorState.DISABLED if name == "c" else ConnectorState.ACTIVE)
    request = pb.ListConnectorsRequest(filter="state = ACTIVE", order_by="name desc", page_size=2)
    first = await ask(rpc, "ListConnectors", request)
    assert [c.name.rpartition("/")[2] for c in first.connectors] == ["main", "d"]
    request.page_token = first.next_page_token
    second = await ask(rpc, "ListConnectors", request)
    assert [c.name.rpartition("/")[2] for c in second.connectors] == ["b"]
    assert not second.next_page_token


@pytest.mark.parametrize(
    ("fields", "at_fault"),
    [
        ({"page_size": -1}, "page_size"),
        ({"page_token": "x"}, "page_token"),
        ({"filter": "a b"}, "filter"),
        ({"order_by": "uid"}, "order_by"),
        ({"parent": "owners/"}, "parent"),
    ],
)
async def test_a_bad_list_request_names_its_field(rpc: Rpc, fields: dict[str, Any], at_fault: str) -> None:
    assert (await failure_of(ask(rpc, "ListConnectors", pb.ListConnectorsRequest(**fields)))).fields == [at_fault]


async def test_types_are_listed_and_paged_built_in_ones_first(rpc: Rpc) -> None:
    whole = await ask(rpc, "ListConnectorTypes", pb.ListConnectorTypesRequest())
    names = [one.type for one in whole.connector_types]
    assert {"openai", "openai_compatible", "anthropic"} <= set(names)
    assert [one.built_in for one in whole.connector_types] == [True] * len(names)
    paged: list[str] = []
    request = pb.ListConnectorTypesRequest(page_size=1)
    while True:
        page = await ask(rpc, "ListConnectorTypes", request)
        paged += [one.type for one in page.connector_types]
        request.page_token = page.next_page_token
        if not request.page_token:
            break
    assert paged == names


async def test_a_type_says_enough_to_draw_a_form(rpc: Rpc) -> None:
    await rpc.core.policy(allowed_types=("anthropic",))
    listed = (await ask(rpc, "ListConnectorTypes", pb.ListConnectorTypesRequest())).connector_types
    by_type = {one.type: one for one in listed}
    compatible = by_type["openai_compatible"]
    fields = {field.name: field for field in compatible.credential_fields}
    case: Any = pb.Credential.DESCRIPTOR.fields_by_name["openai_compatible"].message_type
    assert set(fields) == {field.name for field in case.fields}
    assert fields["base_url"].kind == pb.CREDENTIAL_FIELD_KIND_URL
    assert fields["base_url"].required
    assert fields["api_key"].kind == pb.CREDENTIAL_FIELD_KIND_SECRET
    assert gateway_pb.CAPABILITY_STREAMING in compatible.capabilities
    assert [one.allowed for one in (compatible, by_type["anthropic"])] == [False, True]


# --- defaults, preferences, policy ------------------------------------------------------------------------------------


async def test_a_default_is_set_and_cleared(rpc: Rpc) -> None:
    set_ = await ask(rpc, "SetDefaultConnector", pb.SetDefaultConnectorRequest(name=MAIN))
    assert set_.connector.owner_default
    await ask(rpc, "ClearDefaultConnector", pb.ClearDefaultConnectorRequest(parent="owners/acme"))
    assert not (await ask(rpc, "GetConnector", pb.GetConnectorRequest(name=MAIN))).connector.owner_default


async def test_a_preference_is_set_listed_and_cleared(rpc: Rpc) -> None:
    request = pb.SetFeaturePreferenceRequest(feature="search", connector=MAIN)
    made = (await ask(rpc, "SetFeaturePreference", request)).preference
    assert (made.feature, made.connector) == ("search", MAIN)
    listed = await ask(rpc, "ListFeaturePreferences", pb.ListFeaturePreferencesRequest(filter='feature = "search"'))
    assert list(listed.preferences) == [made]
    await ask(rpc, "ClearFeaturePreference", pb.ClearFeaturePreferenceRequest(feature="search"))
    assert not (await ask(rpc, "ListFeaturePreferences", pb.ListFeaturePreferencesRequest())).preferences


async def test_an_owner_sees_his_part_of_the_policy(rpc: Rpc) -> None:
    await rpc.core.policy(allowed_types=("openai",), model_aliases={"fast": "small"}, host_allow_list=("a.example",))
    seen = (await ask(rpc, "GetEffectivePolicy", pb.GetEffectivePolicyRequest())).policy
    assert list(seen.allowed_connector_types) == ["openai"]
    assert dict(seen.model_aliases) == {"fast": "small"}
    assert list(seen.host_allow_list) == ["a.example"]
    assert seen.private_http == pb.PRIVATE_HTTP_LOOPBACK
    assert seen.default_fallback == gateway_pb.FALLBACK_MODE_NONE
    assert seen.call_log_retention_days == 30
    assert not seen.org_default_available


async def test_no_answer_shows_a_stored_credential(rpc: Rpc) -> None:
    rpc.core.provider.always_answer([Silence()])
    everything = [
        await ask(rpc, "GetConnector", pb.GetConnectorRequest(name=MAIN)),
        await ask(rpc, "ListConnectors", pb.ListConnectorsRequest()),
        await ask(rpc, "SetDefaultConnector", pb.SetDefaultConnectorRequest(name=MAIN)),
    ]
    assert not [answer for answer in everything if PLANTED.encode() in answer.SerializeToString()]
    assert make.OWNER in str(everything[0])
