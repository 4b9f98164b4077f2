"""Connectors and what belongs to them: credentials on the way in, views without credentials on the way out."""

from collections.abc import Mapping
from typing import Any, Final, Protocol

import msgspec

from patchbay.v1 import connector_service_pb2 as pb
from patchbay.v1 import gateway_service_pb2 as gateway_pb
from patchbay_server.adapters.protocol import CredentialField
from patchbay_server.core.connectors import ConnectorView, Credential, TypeView
from patchbay_server.core.draft import Draft
from patchbay_server.core.health import Verdict
from patchbay_server.core.listing import Query
from patchbay_server.rpc.convert.enums import (
    CAP_MODES,
    CAPABILITIES,
    CONNECTOR_STATES,
    FALLBACK_MODES,
    FIELD_KINDS,
    PRIVATE_HTTP,
    TEST_RESULTS,
    error_reason,
)
from patchbay_server.rpc.convert.fields import Faults, duration, maybe_timestamp, seconds, timestamp
from patchbay_server.types import ConnectorSettings, ModelInfo, Policy, Preference

FIELDS_JSON_BYTES_MAX: Final = 64 * 1024
VERDICT_CHARS_MAX: Final = 500
_TIMEOUTS: Final = ("connect_timeout", "first_byte_timeout", "idle_timeout", "call_timeout")
_PLUGIN: Final = "plugin"
_PROVIDERS: Final = tuple(field.name for field in pb.Credential.DESCRIPTOR.oneofs_by_name["provider"].fields)
"""Connector types that have a message of their own, and `plugin`."""


class ListRequest(Protocol):
    """The fields that list requests share."""

    page_size: int
    page_token: str


def query(request: ListRequest) -> Query:
    """A list request's own words; fields that it lacks are as if unset."""
    return Query(
        page_size=request.page_size,
        page_token=request.page_token,
        filter=getattr(request, "filter", ""),
        order_by=getattr(request, "order_by", ""),
    )


# --- in ---------------------------------------------------------------------------------------------------------------


def draft(connector: pb.Connector, faults: Faults) -> Draft:
    return Draft(
        display_name=connector.display_name,
        model_hint=connector.model_hint,
        state=CONNECTOR_STATES.given(connector.state, "connector.state", faults),
        settings=_settings_in(connector.settings, faults),
        labels=dict(connector.labels),
    )


def credential(message: pb.Credential, faults: Faults) -> Credential:
    """The given fields only: presence decides between "keep" and "refuse" at rotation."""
    case = message.WhichOneof("provider")
    if case is None:
        faults.add("credential", f"set exactly one of {', '.join(_PROVIDERS)}")
        return Credential(type="", fields={})
    if case == _PLUGIN:
        return _plugin_credential(message.plugin, faults)
    fields = {
        field.name: dict(value) if isinstance(value, Mapping) else value
        for field, value in getattr(message, case).ListFields()
    }
    return Credential(type=case, fields=fields)


def _plugin_credential(plugin: pb.PluginCredential, faults: Faults) -> Credential:
    if not plugin.type:
        faults.add("credential.plugin.type", "name the connector type, as ListConnectorTypes does")
    elif plugin.type in _PROVIDERS:
        faults.add("credential.plugin.type", f"this type is built in: use credential.{plugin.type}")
    return Credential(type=plugin.type, fields=_plugin_fields(plugin.fields_json, faults))


def _plugin_fields(text: str, faults: Faults) -> dict[str, Any]:
    path = "credential.plugin.fields_json"
    encoded = text.encode()
    if len(encoded) > FIELDS_JSON_BYTES_MAX:
        faults.add(path, "at most 64 KiB")
        return {}
    try:
        return msgspec.json.decode(encoded, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        faults.add(path, "must be a JSON object of the type's credential fields by name")
        return {}


def _settings_in(settings: pb.ConnectorSettings, faults: Faults) -> ConnectorSettings:
    given = {
        f"{name}_s": seconds(getattr(settings, name), f"connector.settings.{name}", faults)
        for name in _TIMEOUTS
        if settings.HasField(name)
    }
    return ConnectorSettings(**given)


# --- out --------------------------------------------------------------------------------------------------------------


def connector(view: ConnectorView) -> pb.Connector:
    value = view.connector
    return pb.Connector(
        name=value.name,
        uid=value.uid,
        type=value.type,
        display_name=value.display_name,
        model_hint=value.model_hint or "",
        state=CONNECTOR_STATES.to_wire[value.state],
        owner_default=value.is_default,
        credential_info=pb.CredentialInfo(
            last_four=view.last_four,
            key_id=value.sealed.key_id,
            rotate_time=timestamp(value.rotated_at),
            settings=view.settings,
        ),
        settings=_settings_out(value.settings),
        labels=value.labels,
        monthly_token_cap=value.monthly_token_cap,
        cap_mode=pb.CAP_MODE_UNSPECIFIED if value.monthly_token_cap is None else CAP_MODES.to_wire[value.cap_mode],
        last_used_time=maybe_timestamp(value.last_used_at),
        last_test_time=maybe_timestamp(value.last_test_at),
        last_test_result=(
            pb.TEST_RESULT_UNSPECIFIED
            if value.last_test_result is None
            else TEST_RESULTS.to_wire[value.last_test_result]
        ),
        create_time=timestamp(value.created_at),
        update_time=timestamp(value.updated_at),
        etag=str(value.version),
    )


def unstored(view: ConnectorView) -> pb.Connector:
    """A connector that was only checked: nothing in it that a stored one would have got."""
    made = connector(view)
    for name in ("uid", "etag", "create_time", "update_time"):
        made.ClearField(name)
    made.credential_info.ClearField("rotate_time")
    return made


def _settings_out(value: ConnectorSettings) -> pb.ConnectorSettings | None:
    given = {name: duration(limit_s) for name in _TIMEOUTS if (limit_s := getattr(value, f"{name}_s")) is not None}
    return pb.ConnectorSettings(**given) if given else None


def verdict(value: Verdict, view: ConnectorView) -> pb.TestConnectorResponse:
    failure = value.failure
    return pb.TestConnectorResponse(
        result=TEST_RESULTS.to_wire[value.result],
        latency=duration(value.latency_s),
        error_reason=error_reason(failure.reason if failure else None),
        message=failure.message[:VERDICT_CHARS_MAX] if failure else "",
        connector=connector(view),
    )


def preference(value: Preference) -> pb.FeaturePreference:
    return pb.FeaturePreference(
        feature=value.feature, connector=value.connector, update_time=timestamp(value.updated_at)
    )


def effective_policy(
    policy: Policy, allowed_types: tuple[str, ...], *, org_default_available: bool
) -> pb.EffectivePolicy:
    return pb.EffectivePolicy(
        allowed_connector_types=allowed_types,
        host_allow_list=policy.host_allow_list,
        private_http=PRIVATE_HTTP.to_wire[policy.private_http],
        org_default_available=org_default_available,
        default_fallback=FALLBACK_MODES.to_wire[policy.default_fallback],
        model_aliases=policy.model_aliases,
        call_log_retention_days=policy.call_log_retention_days,
    )


def connector_type(view: TypeView) -> pb.ConnectorTypeInfo:
    info = view.info
    return pb.ConnectorTypeInfo(
        type=info.type,
        display_name=info.display_name,
        description=info.description,
        built_in=view.built_in,
        allowed=view.allowed,
        credential_fields=[_credential_field(field) for field in info.fields],
        capabilities=sorted(CAPABILITIES.to_wire[capability] for capability in info.capabilities),
        self_hosted=info.self_hosted,
        documentation_uri=info.documentation_uri,
    )


def _credential_field(field: CredentialField) -> pb.CredentialField:
    return pb.CredentialField(
        name=field.name,
        label=field.label,
        help=field.help,
        kind=FIELD_KINDS.to_wire[field.kind],
        required=field.required,
        one_of=field.one_of,
        choices=field.choices,
        pattern=field.pattern,
        length_max=field.length_max,
    )


def model(value: ModelInfo, *, connector: str, provider: str) -> gateway_pb.ModelInfo:
    return gateway_pb.ModelInfo(
        id=value.id,
        display_name=value.display_name,
        connector=connector,
        provider=provider,
        owned_by=value.owned_by,
        max_input_tokens=value.max_input_tokens,
        max_output_tokens=value.max_output_tokens,
        create_time=maybe_timestamp(value.created_at),
        retire_time=maybe_timestamp(value.retires_at),
    )
