"""Connectors as values, and the operations of ConnectorService."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Self, TypeAlias, TypedDict

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from patchbay.v1 import connector_service_pb2 as connector_pb
from patchbay_client.answer import Capability, FallbackMode, Model
from patchbay_client.reading import Value, Word, enum_number, read, to_datetime, to_duration
from patchbay_client.request import ListOptions, Ref, owner_name, resource_name
from patchbay_client.transport import PAGE_SIZE, Limit, Operation


class ConnectorState(Word):
    """Whether a connector can be used."""

    ACTIVE = "ACTIVE"
    AUTH_INVALID = "AUTH_INVALID"
    DISABLED = "DISABLED"
    REVOKED = "REVOKED"
    OTHER = "OTHER"


class TestResult(Word):
    """What a test call to the provider came to."""

    __test__ = False  # pytest would collect it as tests

    OK = "OK"
    AUTH_INVALID = "AUTH_INVALID"
    RATE_LIMITED = "RATE_LIMITED"
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED"
    PROVIDER_UNAVAILABLE = "PROVIDER_UNAVAILABLE"
    ERROR = "ERROR"

    @classmethod
    def unknown(cls) -> Self:
        return cls["ERROR"]


class CapMode(Word):
    """What happens when a call would pass the monthly token cap."""

    SOFT = "SOFT"
    HARD = "HARD"
    OTHER = "OTHER"


class PrivateHttp(Word):
    """Which addresses plain http may go to."""

    NONE = "NONE"
    LOOPBACK = "LOOPBACK"
    PRIVATE = "PRIVATE"
    OTHER = "OTHER"


class CredentialFieldKind(Word):
    """How a form asks for a credential field."""

    SECRET = "SECRET"  # noqa: S105 - a kind of field
    TEXT = "TEXT"
    URL = "URL"
    HEADERS = "HEADERS"
    FLAG = "FLAG"
    CHOICE = "CHOICE"

    @classmethod
    def unknown(cls) -> Self:
        return cls["SECRET"]


class ConnectorEventKind(Word):
    """What happened to a connector."""

    EXISTING = "EXISTING"
    SYNCED = "SYNCED"
    RESET = "RESET"
    HEARTBEAT = "HEARTBEAT"
    CREATED = "CREATED"
    UPDATED = "UPDATED"
    ROTATED = "ROTATED"
    DELETED = "DELETED"
    REVOKED = "REVOKED"
    AUTH_INVALID = "AUTH_INVALID"
    HEALTH_FAILED = "HEALTH_FAILED"
    HEALTH_RECOVERED = "HEALTH_RECOVERED"
    CAP_CHANGED = "CAP_CHANGED"
    CAP_REACHED = "CAP_REACHED"

    @classmethod
    def unknown(cls) -> Self:
        return cls["UPDATED"]


@dataclass(frozen=True, kw_only=True)
class CredentialInfo(Value[connector_pb.CredentialInfo]):
    """What may be shown of a credential: never the credential itself."""

    last_four: str
    key_id: str
    rotate_time: datetime | None
    settings: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class ConnectorSettings(Value[connector_pb.ConnectorSettings]):
    """Limits of one connector's calls; None is the gateway's own."""

    connect_timeout: timedelta | None
    first_byte_timeout: timedelta | None
    idle_timeout: timedelta | None
    call_timeout: timedelta | None


@dataclass(frozen=True, kw_only=True)
class Connector(Value[connector_pb.Connector]):
    """An owner's credential for one provider, with a model hint.

    Wherever a connector is asked for, this object will do, and so will its `name`.
    """

    name: str
    uid: str
    type: str
    display_name: str
    model_hint: str
    state: ConnectorState
    owner_default: bool
    credential_info: CredentialInfo
    settings: ConnectorSettings
    labels: dict[str, str]
    monthly_token_cap: int | None
    cap_mode: CapMode | None
    last_used_time: datetime | None
    last_test_time: datetime | None
    last_test_result: TestResult | None
    create_time: datetime | None
    update_time: datetime | None
    etag: str

    @property
    def id(self) -> str:
        """The last part of the name."""
        return self.name.rpartition("/")[2]


@dataclass(frozen=True, kw_only=True)
class TestReport(Value[connector_pb.TestConnectorResponse]):
    """What a test came to. `error_reason` and `message` are empty when it is OK; `connector` is as it is now."""

    __test__ = False  # pytest would collect it as tests

    result: TestResult
    latency: timedelta | None
    error_reason: str
    message: str
    connector: Connector


@dataclass(frozen=True, kw_only=True)
class FeaturePreference(Value[connector_pb.FeaturePreference]):
    """An owner's choice of connector for a feature."""

    feature: str
    connector: str
    update_time: datetime | None


@dataclass(frozen=True, kw_only=True)
class EffectivePolicy(Value[connector_pb.EffectivePolicy]):
    """The part of the policy that concerns an owner."""

    allowed_connector_types: tuple[str, ...]
    host_allow_list: tuple[str, ...]
    private_http: PrivateHttp | None
    org_default_available: bool
    default_fallback: FallbackMode | None
    model_aliases: dict[str, str]
    call_log_retention_days: int


@dataclass(frozen=True, kw_only=True)
class CredentialField(Value[connector_pb.CredentialField]):
    """One field of a type's credential, for a form."""

    name: str
    label: str
    help: str
    kind: CredentialFieldKind
    required: bool
    one_of: str
    choices: tuple[str, ...]
    pattern: str
    length_max: int


@dataclass(frozen=True, kw_only=True)
class ConnectorType(Value[connector_pb.ConnectorTypeInfo]):
    """A registered connector type and what its credential is made of."""

    type: str
    display_name: str
    description: str
    built_in: bool
    allowed: bool
    credential_fields: tuple[CredentialField, ...]
    capabilities: tuple[Capability, ...]
    self_hosted: bool
    documentation_uri: str


@dataclass(frozen=True, kw_only=True)
class ConnectorEvent(Value[connector_pb.WatchConnectorsResponse]):
    """What happened to a connector, and where to resume. `connector` is None for kinds that are about none."""

    kind: ConnectorEventKind
    connector: Connector | None
    event_time: datetime | None
    resume_token: str


@dataclass(frozen=True)
class ConnectorModels:
    """A connector's models by the provider's own list. `stale`: the last refresh failed, and the list is older."""

    models: tuple[Model, ...]
    fetch_time: datetime | None
    stale: bool


Credential: TypeAlias = Mapping[str, Any] | connector_pb.Credential
"""A credential's fields by their names, such as `{"api_key": "..."}`; `ConnectorType.credential_fields` tells them."""

Settings: TypeAlias = Mapping[str, timedelta | float | None]
"""Limits by their names in `ConnectorSettings`, numbers in seconds; None takes the gateway's own."""


class NewConnector(TypedDict, total=False):
    """What may be said about a new connector besides its type, credential and display name."""

    connector_id: str
    """The last part of its name: lower case, RFC 1034, at most 63 characters. Default: assigned."""
    model_hint: str
    """The model of calls that name none."""
    settings: Settings
    """Limits of its calls."""
    labels: Mapping[str, str]
    """The owner's own marks."""
    owner: str
    """Whose it is. Default: the caller's own owner."""
    validate_only: bool
    """True: everything is checked and nothing stored."""


class ConnectorChanges(TypedDict, total=False):
    """What to change; what is left out stays, None unsets."""

    display_name: str
    model_hint: str | None
    state: str
    """"disabled", or "active" to switch it on again."""
    settings: Settings | None
    """Only the limits that are named change."""
    labels: Mapping[str, str] | None
    """Replaced as a whole."""
    etag: str
    """The etag that was read: the change is refused when the connector has changed since."""


def create(
    connector_type: str, credential: Credential, display_name: str, options: NewConnector
) -> Operation[connector_pb.CreateConnectorResponse, Connector]:
    connector = connector_pb.Connector(
        display_name=display_name,
        model_hint=options.get("model_hint", ""),
        labels=options.get("labels", {}),
        settings=_settings(options["settings"]) if "settings" in options else None,
    )
    return Operation(
        method="ConnectorService/CreateConnector",
        request=connector_pb.CreateConnectorRequest(
            parent=owner_name(options.get("owner")),
            connector_id=options.get("connector_id", ""),
            connector=connector,
            credential=to_credential(connector_type, credential),
            validate_only=options.get("validate_only", False),
        ),
        response=connector_pb.CreateConnectorResponse,
        read=lambda response: read(Connector, response.connector),
    )


def get(connector: Ref) -> Operation[connector_pb.GetConnectorResponse, Connector]:
    return Operation(
        method="ConnectorService/GetConnector",
        request=connector_pb.GetConnectorRequest(name=resource_name(connector)),
        response=connector_pb.GetConnectorResponse,
        read=lambda response: read(Connector, response.connector),
    )


def list_(
    owner: str | None, options: ListOptions
) -> Operation[connector_pb.ListConnectorsResponse, tuple[Connector, ...]]:
    return Operation(
        method="ConnectorService/ListConnectors",
        request=connector_pb.ListConnectorsRequest(parent=owner_name(owner), page_size=PAGE_SIZE, **options),
        response=connector_pb.ListConnectorsResponse,
        read=lambda page: tuple(read(Connector, each) for each in page.connectors),
    )


def update(connector: Ref, changes: ConnectorChanges) -> Operation[connector_pb.UpdateConnectorResponse, Connector]:
    wanted = connector_pb.Connector(name=resource_name(connector), etag=changes.get("etag", ""))
    paths: list[str] = []
    for field in ("display_name", "model_hint"):
        if field in changes:
            paths.append(field)
            setattr(wanted, field, changes[field] or "")
    if "state" in changes:
        paths.append("state")
        state = enum_number(connector_pb.ConnectorState.DESCRIPTOR, changes["state"])
        wanted.state = connector_pb.ConnectorState.ValueType(state)
    if "labels" in changes:
        paths.append("labels")
        wanted.labels.update(changes["labels"] or {})
    if "settings" in changes:
        settings = changes["settings"]
        paths += ["settings"] if settings is None else [f"settings.{name}" for name in settings]
        wanted.settings.CopyFrom(_settings(settings or {}))
    return Operation(
        method="ConnectorService/UpdateConnector",
        request=connector_pb.UpdateConnectorRequest(connector=wanted, update_mask=FieldMask(paths=paths)),
        response=connector_pb.UpdateConnectorResponse,
        read=lambda response: read(Connector, response.connector),
    )


def delete(connector: Ref, etag: str) -> Operation[connector_pb.DeleteConnectorResponse, None]:
    return Operation(
        method="ConnectorService/DeleteConnector",
        request=connector_pb.DeleteConnectorRequest(name=resource_name(connector), etag=etag),
        response=connector_pb.DeleteConnectorResponse,
        read=_nothing,
    )


def rotate(
    connector: Connector, credential: Credential, etag: str
) -> Operation[connector_pb.RotateCredentialResponse, Connector]:
    return Operation(
        method="ConnectorService/RotateCredential",
        request=connector_pb.RotateCredentialRequest(
            name=connector.name, credential=to_credential(connector.type, credential), etag=etag
        ),
        response=connector_pb.RotateCredentialResponse,
        read=lambda response: read(Connector, response.connector),
    )


def test(connector: Ref, model: str) -> Operation[connector_pb.TestConnectorResponse, TestReport]:
    return Operation(
        method="ConnectorService/TestConnector",
        request=connector_pb.TestConnectorRequest(name=resource_name(connector), model=model),
        response=connector_pb.TestConnectorResponse,
        read=lambda response: read(TestReport, response),
        limit=Limit.PROVIDER,
    )


def set_default(connector: Ref) -> Operation[connector_pb.SetDefaultConnectorResponse, Connector]:
    return Operation(
        method="ConnectorService/SetDefaultConnector",
        request=connector_pb.SetDefaultConnectorRequest(name=resource_name(connector)),
        response=connector_pb.SetDefaultConnectorResponse,
        read=lambda response: read(Connector, response.connector),
    )


def clear_default(owner: str | None) -> Operation[connector_pb.ClearDefaultConnectorResponse, None]:
    return Operation(
        method="ConnectorService/ClearDefaultConnector",
        request=connector_pb.ClearDefaultConnectorRequest(parent=owner_name(owner)),
        response=connector_pb.ClearDefaultConnectorResponse,
        read=_nothing,
    )


def set_preference(
    feature: str, connector: Ref, owner: str | None
) -> Operation[connector_pb.SetFeaturePreferenceResponse, FeaturePreference]:
    return Operation(
        method="ConnectorService/SetFeaturePreference",
        request=connector_pb.SetFeaturePreferenceRequest(
            parent=owner_name(owner), feature=feature, connector=resource_name(connector)
        ),
        response=connector_pb.SetFeaturePreferenceResponse,
        read=lambda response: read(FeaturePreference, response.preference),
    )


def clear_preference(feature: str, owner: str | None) -> Operation[connector_pb.ClearFeaturePreferenceResponse, None]:
    return Operation(
        method="ConnectorService/ClearFeaturePreference",
        request=connector_pb.ClearFeaturePreferenceRequest(parent=owner_name(owner), feature=feature),
        response=connector_pb.ClearFeaturePreferenceResponse,
        read=_nothing,
    )


def preferences(
    owner: str | None, options: ListOptions
) -> Operation[connector_pb.ListFeaturePreferencesResponse, tuple[FeaturePreference, ...]]:
    return Operation(
        method="ConnectorService/ListFeaturePreferences",
        request=connector_pb.ListFeaturePreferencesRequest(parent=owner_name(owner), page_size=PAGE_SIZE, **options),
        response=connector_pb.ListFeaturePreferencesResponse,
        read=lambda page: tuple(read(FeaturePreference, each) for each in page.preferences),
    )


def effective_policy(owner: str | None) -> Operation[connector_pb.GetEffectivePolicyResponse, EffectivePolicy]:
    return Operation(
        method="ConnectorService/GetEffectivePolicy",
        request=connector_pb.GetEffectivePolicyRequest(parent=owner_name(owner)),
        response=connector_pb.GetEffectivePolicyResponse,
        read=lambda response: read(EffectivePolicy, response.policy),
    )


def types(owner: str | None) -> Operation[connector_pb.ListConnectorTypesResponse, tuple[ConnectorType, ...]]:
    return Operation(
        method="ConnectorService/ListConnectorTypes",
        request=connector_pb.ListConnectorTypesRequest(parent=owner_name(owner), page_size=PAGE_SIZE),
        response=connector_pb.ListConnectorTypesResponse,
        read=lambda page: tuple(read(ConnectorType, each) for each in page.connector_types),
    )


def models(
    connector: Ref, options: ListOptions
) -> Operation[connector_pb.ListConnectorModelsResponse, connector_pb.ListConnectorModelsResponse]:
    return Operation(
        method="ConnectorService/ListConnectorModels",
        request=connector_pb.ListConnectorModelsRequest(
            parent=resource_name(connector), page_size=PAGE_SIZE, **options
        ),
        response=connector_pb.ListConnectorModelsResponse,
        read=lambda page: page,
        limit=Limit.PROVIDER,
    )


def read_models(pages: Iterable[connector_pb.ListConnectorModelsResponse]) -> ConnectorModels:
    """All pages, of which there is at least one, as one list."""
    every = list(pages)
    return ConnectorModels(
        models=tuple(read(Model, model) for page in every for model in page.models),
        fetch_time=to_datetime(every[0].fetch_time) if every[0].HasField("fetch_time") else None,
        stale=any(page.stale for page in every),
    )


def watch(owner: str | None, resume_token: str) -> Operation[connector_pb.WatchConnectorsResponse, ConnectorEvent]:
    return Operation(
        method="ConnectorService/WatchConnectors",
        request=connector_pb.WatchConnectorsRequest(parent=owner_name(owner), resume_token=resume_token),
        response=connector_pb.WatchConnectorsResponse,
        read=lambda event: read(ConnectorEvent, event),
        limit=Limit.NONE,
    )


def to_credential(connector_type: str, credential: Credential) -> connector_pb.Credential:
    """The credential for a request. Messages of errors name fields, never what is in them.

    Raises:
        ValueError: a field that the type does not have.
        TypeError: a field of a wrong type.
    """
    if isinstance(credential, connector_pb.Credential):
        return credential
    made = connector_pb.Credential()
    case = connector_pb.Credential.DESCRIPTOR.fields_by_name.get(connector_type)
    if case is None or connector_type == "plugin":
        made.plugin.type = connector_type
        made.plugin.fields_json = json.dumps(dict(credential))
        return made
    message = getattr(made, connector_type)
    message.SetInParent()
    known = message.DESCRIPTOR.fields_by_name
    for name, value in credential.items():
        if name not in known:
            raise ValueError(f"{connector_type} has no field {name}; its fields are {', '.join(known)}")
        _set_field(message, known[name], value)
    return made


def _set_field(message: Message, field: FieldDescriptor, value: object) -> None:
    try:
        if field.is_repeated:
            getattr(message, field.name).update(value)
        else:
            setattr(message, field.name, value)
    except (TypeError, ValueError):
        # Without its cause, whose text may show the value.
        raise TypeError(f"{field.name} cannot be a {type(value).__name__}") from None


def _settings(settings: Settings) -> connector_pb.ConnectorSettings:
    lengths = {name: to_duration(length) for name, length in settings.items() if length is not None}
    return connector_pb.ConnectorSettings(**lengths)


def _nothing(_: Message) -> None:
    return None
