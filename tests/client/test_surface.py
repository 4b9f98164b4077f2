"""Both clients have the same methods, and these reach every RPC and every field of the contract."""

import dataclasses
import inspect
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import ModuleType
from typing import Any, get_args, get_type_hints

import pytest
from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message
from tests.client.fake_gateway import Driver, FakeGateway, methods, short_name

import patchbay_client
from patchbay.v1 import admin_service_pb2 as admin_pb
from patchbay.v1 import connector_service_pb2 as connector_pb
from patchbay.v1 import gateway_service_pb2 as gateway_pb
from patchbay_client import admin as admin_values
from patchbay_client import aio, answer, client, connectors, errors, reading, request, usage
from patchbay_client.reading import Value, Word, read

NAME = "owners/a/connectors/c"

CALLS: dict[str, Callable[[Any], Any]] = {
    "GatewayService/Chat": lambda c: c.chat("Hi"),
    "GatewayService/Explain": lambda c: c.explain("Hi", model="m"),
    "GatewayService/ListModels": lambda c: c.models("a"),
    "GatewayService/CountTokens": lambda c: c.count_tokens("Hi"),
    "ConnectorService/CreateConnector": lambda c: c.connectors.create("xai", {"api_key": "k"}, display_name="x"),
    "ConnectorService/GetConnector": lambda c: c.connectors.get(NAME),
    "ConnectorService/ListConnectors": lambda c: c.connectors.list(),
    "ConnectorService/UpdateConnector": lambda c: c.connectors.update(NAME, display_name="y"),
    "ConnectorService/DeleteConnector": lambda c: c.connectors.delete(NAME),
    "ConnectorService/RotateCredential": lambda c: c.connectors.rotate(XAI, {"api_key": "k"}),
    "ConnectorService/TestConnector": lambda c: c.connectors.test(NAME),
    "ConnectorService/SetDefaultConnector": lambda c: c.connectors.set_default(NAME),
    "ConnectorService/ClearDefaultConnector": lambda c: c.connectors.clear_default(),
    "ConnectorService/SetFeaturePreference": lambda c: c.connectors.set_preference("search", NAME),
    "ConnectorService/ClearFeaturePreference": lambda c: c.connectors.clear_preference("search"),
    "ConnectorService/ListFeaturePreferences": lambda c: c.connectors.preferences(),
    "ConnectorService/GetEffectivePolicy": lambda c: c.connectors.effective_policy(),
    "ConnectorService/ListConnectorTypes": lambda c: c.connectors.types(),
    "ConnectorService/ListConnectorModels": lambda c: c.connectors.models(NAME),
    "AdminService/GetPolicy": lambda c: c.admin.policy(),
    "AdminService/UpdatePolicy": lambda c: c.admin.update_policy(private_http="loopback"),
    "AdminService/ListAllConnectors": lambda c: c.admin.connectors(),
    "AdminService/RevokeConnector": lambda c: c.admin.revoke_connector(NAME),
    "AdminService/SetConnectorCap": lambda c: c.admin.set_cap(NAME, 1000, mode="hard"),
    "AdminService/QueryUsage": lambda c: c.admin.usage(group_by=["owner", "day"]),
    "AdminService/ListCalls": lambda c: c.admin.calls(),
    "AdminService/GetCall": lambda c: c.admin.call("call-1"),
    "AdminService/ListAuditEvents": lambda c: c.admin.audit_events(order_by="sequence desc"),
    "AdminService/VerifyAudit": lambda c: c.admin.verify_audit(),
    "AdminService/CreateToken": lambda c: c.admin.create_token("t", ["chat"], owner="a"),
    "AdminService/ListTokens": lambda c: c.admin.tokens(),
    "AdminService/RevokeToken": lambda c: c.admin.revoke_token("tokens/t"),
    "AdminService/GetStatus": lambda c: c.admin.status(),
}
STREAMS: dict[str, Callable[[Any], Any]] = {
    "GatewayService/Stream": lambda c: c.stream("Hi"),
    "ConnectorService/WatchConnectors": lambda c: c.connectors.watch(),
    "AdminService/ExportCalls": lambda c: c.admin.export_calls(),
    "AdminService/ExportAuditEvents": lambda c: c.admin.export_audit_events(),
    "AdminService/RotateMasterKey": lambda c: c.admin.rotate_master_key(),
    "AdminService/RunHealthChecks": lambda c: c.admin.run_health_checks(),
}
XAI = read(connectors.Connector, connector_pb.Connector(name=NAME, type="xai"))


def test_every_rpc_has_a_method() -> None:
    assert {*CALLS, *STREAMS} == {short_name(method) for method in methods()}


@pytest.mark.parametrize("name", CALLS)
async def test_each_method_makes_its_rpc(gateway: FakeGateway, driver: Driver, name: str) -> None:
    await driver.call(CALLS[name])
    assert list(gateway.requests) == [name]


@pytest.mark.parametrize("name", STREAMS)
async def test_each_streaming_method_makes_its_rpc(gateway: FakeGateway, driver: Driver, name: str) -> None:
    await driver.read(STREAMS[name])
    assert list(gateway.requests) == [name]


@pytest.mark.parametrize(
    ("blocking", "asynchronous"),
    [
        (client.PatchbayClient, aio.AsyncPatchbayClient),
        (client.Connectors, aio.AsyncConnectors),
        (client.Admin, aio.AsyncAdmin),
        (patchbay_client.ChatStream, patchbay_client.AsyncChatStream),
    ],
)
def test_both_clients_have_the_same_methods_with_the_same_arguments(blocking: type, asynchronous: type) -> None:
    assert public(blocking).keys() == public(asynchronous).keys()
    for name, method in public(blocking).items():
        other = public(asynchronous)[name]
        assert arguments(method) == arguments(other), name
        assert plain(inspect.getdoc(method)) == plain(inspect.getdoc(other)), name


VALUES = [
    value
    for module in (answer, connectors, admin_values, errors, usage)
    for value in vars(module).values()
    if isinstance(value, type) and issubclass(value, Value) and value.__module__ == module.__name__
]


@pytest.mark.parametrize("value_class", VALUES, ids=lambda value: value.__name__)
def test_a_result_shows_every_field_of_its_message(value_class: type[Value[Any]]) -> None:
    message_class = message_of(value_class)
    shown = {field.name for field in dataclasses.fields(value_class)} - {"raw"}
    hidden = {"message"} if value_class is answer.ChatAnswer else set()  # shown as `parts`
    assert shown == set(message_class.DESCRIPTOR.fields_by_name) - hidden


@pytest.mark.parametrize("value_class", VALUES, ids=lambda value: value.__name__)
def test_a_result_is_read_whether_its_message_is_empty_or_full(value_class: type[Value[Any]]) -> None:
    message_class = message_of(value_class)
    empty = read(value_class, message_class())
    full = read(value_class, filled(message_class()))
    hints = get_type_hints(value_class)
    for field in dataclasses.fields(value_class):
        source = message_class.DESCRIPTOR.fields_by_name.get(field.name)
        if source is None:
            continue
        if source.has_presence and source.message_type is None:
            assert type(None) in get_args(hints[field.name]) or source.containing_oneof, field.name
            assert getattr(empty, field.name) is None or source.containing_oneof, field.name
        assert getattr(full, field.name) or source.containing_oneof, field.name


WORDS = [
    value
    for module in (answer, connectors, admin_values, usage)
    for value in vars(module).values()
    if isinstance(value, type) and issubclass(value, Word) and value.__module__ == module.__name__
]


@pytest.mark.parametrize("word_class", WORDS, ids=lambda value: value.__name__)
def test_a_word_class_has_the_names_of_its_enum(word_class: type[Word]) -> None:
    enum = enum_of(word_class.__name__)
    names = {reading.enum_name(enum, value.number) for value in enum.values} - {""}
    assert set(word_class.__members__) - {"OTHER"} == names - {"OTHER"}
    assert reading.read_enum(word_class, enum, 12345) is word_class.unknown()
    for word in word_class:
        if word != "OTHER":
            assert reading.read_enum(word_class, enum, reading.enum_number(enum, word.lower())) is word


def test_every_field_of_a_chat_request_can_be_said_by_keyword() -> None:
    tool = request.Tool("f", "what", {"type": "object"}, strict=True)
    options: dict[str, Any] = {
        "owner": "a",
        "feature": "search",
        "connector": XAI,
        "model": "m",
        "system": "Be brief.",
        "max_output_tokens": 5,
        "temperature": 0.0,
        "top_p": 0.5,
        "top_k": 3,
        "stop_sequences": ["END"],
        "seed": 0,
        "frequency_penalty": 0.1,
        "presence_penalty": 0.2,
        "reasoning": "low",
        "include_reasoning": True,
        "parallel_tool_calls": False,
        "tools": [tool, {"name": "g"}, request.ProviderTool({"type": "web_search"})],
        "tool_choice": tool,
        "response_format": {"type": "object"},
        "fallback": "owner_chain",
        "min_quality": 0.0,
        "labels": {"team": "x"},
        "request_id": "8f14e45f-ceea-467f-a9a5-3a3a5b6f7c10",
        "unsupported": "drop",
        "provider_options": {"x": 1},
        "coalescing": "off",
        "heartbeat_interval_s": 2,
    }
    assert options.keys() == request.StreamOptions.__annotations__.keys()
    made = request.chat_request("Hi", options)
    assert {field.name for field, _ in made.ListFields()} == set(gateway_pb.ChatRequest.DESCRIPTOR.fields_by_name)
    assert {field.name for field, _ in made.config.ListFields()} == set(
        gateway_pb.GenerationConfig.DESCRIPTOR.fields_by_name
    )
    assert made.connector == NAME
    assert [turn.role for turn in made.messages] == [1, 2]
    assert made.config.HasField("temperature")
    assert made.config.temperature == 0.0


def test_every_part_of_the_policy_can_be_changed() -> None:
    changes: admin_values.PolicyChanges = {
        "allowed_connector_types": [],
        "host_allow_list": ["*.example"],
        "private_http": "private",
        "org_default_connector": NAME,
        "call_log_retention_days": 30,
        "default_fallback": "none",
        "model_aliases": {"fast": "patchbay/cost"},
        "quality_priors": [{"model": "m", "quality": 0.7}],
        "price_overrides": [{"model": "m", "price": {"input_per_million_usd_nanos": 0}}],
        "etag": "1",
    }
    assert changes.keys() == set(admin_pb.Policy.DESCRIPTOR.fields_by_name) - {"update_time"}
    asked: Any = admin_values.update_policy(changes).request
    assert sorted(asked.update_mask.paths) == sorted(changes.keys() - {"etag"})
    assert {field.name for field, _ in asked.policy.ListFields()} == changes.keys()


def test_a_change_names_only_what_it_changes() -> None:
    asked: Any = connectors.update(NAME, {"model_hint": None, "settings": {"idle_timeout": 90, "call_timeout": None}})
    assert list(asked.request.update_mask.paths) == ["model_hint", "settings.idle_timeout", "settings.call_timeout"]
    assert asked.request.connector.settings.idle_timeout.seconds == 90
    assert not asked.request.connector.settings.HasField("call_timeout")
    whole: Any = connectors.update(NAME, {"settings": None, "labels": {"a": "b"}, "state": "disabled", "etag": "7"})
    assert sorted(whole.request.update_mask.paths) == ["labels", "settings", "state"]
    assert whole.request.connector.etag == "7"


def test_a_plugins_credential_travels_as_json_and_a_built_in_one_as_its_message() -> None:
    built_in = connectors.to_credential(
        "openai_compatible", {"base_url": "http://x", "headers": {"A": "b"}, "tools": False}
    )
    assert built_in.openai_compatible.headers == {"A": "b"}
    assert built_in.openai_compatible.HasField("tools")
    plugin = connectors.to_credential("acme", {"api_key": "k"})
    assert (plugin.plugin.type, plugin.plugin.fields_json) == ("acme", '{"api_key": "k"}')


def test_a_wrong_credential_is_refused_without_being_shown() -> None:
    with pytest.raises(ValueError, match="xai has no field key; its fields are api_key, endpoint") as unknown:
        connectors.to_credential("xai", {"key": "sk-very-secret"})
    with pytest.raises(TypeError, match="api_key cannot be a list") as wrong:
        connectors.to_credential("xai", {"api_key": ["sk-very-secret"]})
    assert "secret" not in str(unknown.value) + str(wrong.value)
    assert wrong.value.__cause__ is None


def test_a_token_needs_a_binding_and_does_not_show_its_secret() -> None:
    for binding in ({"owner": None, "any_owner": False}, {"owner": "a", "any_owner": True}):
        with pytest.raises(ValueError, match="either its owner or any_owner"):
            admin_values.create_token("t", ["chat"], expire_time=None, **binding)  # type: ignore[arg-type]
    new = read(admin_values.NewToken, admin_pb.CreateTokenResponse(secret="pb_very_secret"))
    assert new.secret == "pb_very_secret"
    assert "secret" not in repr(new).replace("NewToken", "")


def test_a_moment_without_a_time_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="no time zone"):
        admin_values.list_calls({"start_time": datetime(2026, 1, 1)})  # noqa: DTZ001
    asked: Any = admin_values.list_calls({"start_time": datetime(2026, 1, 1, tzinfo=UTC), "filter": "state = OPEN"})
    assert asked.request.start_time.ToDatetime(tzinfo=UTC) == datetime(2026, 1, 1, tzinfo=UTC)
    assert asked.request.filter == "state = OPEN"


# --- how the tests above read the contract -------------------------------------------------------------------------


def public(of: type) -> dict[str, Any]:
    return {name: value for name, value in vars(of).items() if not name.startswith("_") and callable(value)}


def arguments(method: Any) -> list[tuple[str, Any, Any]]:
    return [(each.name, each.default, each.annotation) for each in inspect.signature(method).parameters.values()]


def plain(doc: str | None) -> str:
    return (doc or "").replace("Async", "").replace("async ", "").replace("await ", "")


def message_of(value_class: type[Value[Any]]) -> type[Message]:
    """The message class that `value_class` reads, from `Value[...]` among its bases."""
    (message_class,) = get_args(value_class.__orig_bases__[0])  # type: ignore[attr-defined]
    return message_class  # type: ignore[no-any-return]


def enum_of(name: str) -> EnumDescriptor:
    modules: tuple[ModuleType, ...] = (gateway_pb, connector_pb, admin_pb, patchbay_client.usage.usage_pb2)
    for module in modules:
        if name in module.DESCRIPTOR.enum_types_by_name:
            found: EnumDescriptor = module.DESCRIPTOR.enum_types_by_name[name]
            return found
    raise LookupError(name)


def filled(message: Any, depth: int = 0) -> Any:
    """The message with something in every field; of a oneof, in its last."""
    for field in message.DESCRIPTOR.fields:
        fill(message, field, depth)
    return message


def fill(message: Any, field: FieldDescriptor, depth: int) -> None:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        getattr(message, field.name)["key"] = "value"
    elif field.message_type is not None and field.message_type.full_name == "google.protobuf.Duration":
        getattr(message, field.name).FromTimedelta(timedelta(milliseconds=1500))
    elif field.message_type is not None:
        inner = getattr(message, field.name).add() if field.is_repeated else getattr(message, field.name)
        inner.SetInParent()
        if depth < 4:
            filled(inner, depth + 1)
    else:
        value: Any = {field.CPPTYPE_STRING: "x", field.CPPTYPE_BOOL: True, field.CPPTYPE_DOUBLE: 0.5}.get(
            field.cpp_type, 1
        )
        if field.type == field.TYPE_BYTES:
            value = b"x"
        if field.is_repeated:
            getattr(message, field.name).append(value)
        else:
            setattr(message, field.name, value)
