"""What administrators read and change, and the operations of AdminService."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Self, TypedDict

from google.protobuf.field_mask_pb2 import FieldMask

from patchbay.v1 import admin_service_pb2 as admin_pb
from patchbay.v1 import connector_service_pb2 as connector_pb
from patchbay.v1 import gateway_service_pb2 as gateway_pb
from patchbay_client.answer import FallbackMode, FinishReason, ModelPrice, ResolvedBy
from patchbay_client.connectors import Connector, PrivateHttp, TestResult
from patchbay_client.reading import Value, Word, enum_number, read, to_datetime, to_timestamp
from patchbay_client.request import ListOptions, Ref, owner_name, resource_name
from patchbay_client.transport import PAGE_SIZE, Limit, Operation
from patchbay_client.usage import NANOS_PER_USD, Usage


class Scope(Word):
    """What a caller may do."""

    CHAT = "CHAT"
    CONNECTORS = "CONNECTORS"
    ADMIN = "ADMIN"
    OTHER = "OTHER"


class UsageDimension(Word):
    """What usage is grouped by."""

    OWNER = "OWNER"
    CONNECTOR = "CONNECTOR"
    PROVIDER = "PROVIDER"
    MODEL = "MODEL"
    FEATURE = "FEATURE"
    LABEL = "LABEL"
    DAY = "DAY"
    OTHER = "OTHER"


class CallMethod(Word):
    """Which RPC a call came by."""

    CHAT = "CHAT"
    STREAM = "STREAM"
    OTHER = "OTHER"


class CallState(Word):
    """How a call or an attempt stands."""

    OPEN = "OPEN"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    INTERRUPTED = "INTERRUPTED"

    @classmethod
    def unknown(cls) -> Self:
        return cls["FAILED"]


class AuditFault(Word):
    """What is wrong with the audit trail."""

    MISSING = "MISSING"
    CHANGED = "CHANGED"
    UNLINKED = "UNLINKED"
    SHORTENED = "SHORTENED"
    OTHER = "OTHER"


@dataclass(frozen=True, kw_only=True)
class ConnectorTypeList(Value[admin_pb.ConnectorTypeList]):
    """Connector types; none at all when empty."""

    types: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class QualityPrior(Value[admin_pb.QualityPrior]):
    """How good a model is taken to be, 0.0 to 1.0; an empty provider is every provider."""

    provider: str
    model: str
    quality: float


@dataclass(frozen=True, kw_only=True)
class PriceOverride(Value[admin_pb.PriceOverride]):
    """What a model costs, in place of the built-in list; an empty provider is every provider."""

    provider: str
    model: str
    price: ModelPrice


@dataclass(frozen=True, kw_only=True)
class Policy(Value[admin_pb.Policy]):
    """The rules for all owners. `allowed_connector_types` is None when every type is allowed."""

    allowed_connector_types: ConnectorTypeList | None
    host_allow_list: tuple[str, ...]
    private_http: PrivateHttp | None
    org_default_connector: str
    call_log_retention_days: int
    default_fallback: FallbackMode | None
    model_aliases: dict[str, str]
    quality_priors: tuple[QualityPrior, ...]
    price_overrides: tuple[PriceOverride, ...]
    update_time: datetime | None
    etag: str


@dataclass(frozen=True, kw_only=True)
class ConnectorOverview(Value[admin_pb.ConnectorOverview]):
    """A connector as administrators see it, with the tokens of this UTC month."""

    connector: Connector
    owner: str
    month_tokens: int
    reserved_tokens: int
    org_default: bool


@dataclass(frozen=True, kw_only=True)
class UsageGroup(Value[admin_pb.UsageGroup]):
    """One dimension of a group and its value."""

    dimension: UsageDimension
    value: str


@dataclass(frozen=True, kw_only=True)
class UsageRow(Value[admin_pb.UsageRow]):
    """The usage of one group. `unpriced_calls` are not in the cost, which is None when no call's price is known."""

    groups: tuple[UsageGroup, ...]
    calls: int
    errors: int
    cancelled: int
    estimated_calls: int
    input_tokens: int
    output_tokens: int
    total_tokens: int
    cached_input_tokens: int
    cache_write_input_tokens: int
    reasoning_tokens: int
    cost_usd_nanos: int | None
    unpriced_calls: int
    latency_p50: timedelta | None
    latency_p95: timedelta | None
    latency_p99: timedelta | None
    first_output_p50: timedelta | None

    @property
    def cost_usd(self) -> Decimal | None:
        """The cost in US dollars, exactly; None when no call's price is known."""
        return None if self.cost_usd_nanos is None else Decimal(self.cost_usd_nanos) / NANOS_PER_USD


@dataclass(frozen=True)
class UsageReport:
    """The usage of a range, one row a group."""

    rows: tuple[UsageRow, ...]
    start_time: datetime | None
    end_time: datetime | None


@dataclass(frozen=True, kw_only=True)
class AttemptRecord(Value[admin_pb.AttemptRecord]):
    """What is kept of one attempt."""

    number: int
    connector: str
    provider: str
    model: str
    state: CallState
    error_reason: str
    http_status: int
    provider_code: str
    upstream_request_id: str
    usage: Usage
    start_time: datetime | None
    end_time: datetime | None
    latency: timedelta | None
    first_output_latency: timedelta | None


@dataclass(frozen=True, kw_only=True)
class RoutingOutcome(Value[admin_pb.RoutingOutcome]):
    """What routing among candidates came to."""

    reserved_model: str
    quality_floor: float
    candidate_count: int
    eligible_count: int
    connector: str
    model: str
    quality: float | None


@dataclass(frozen=True, kw_only=True)
class CallRecord(Value[admin_pb.CallRecord]):
    """What is kept of a call: who, where, how much, how it ended; never what was said."""

    id: str
    method: CallMethod
    owner: str
    caller: str
    feature: str
    labels: dict[str, str]
    request_id: str
    connector: str
    provider: str
    requested_model: str
    model: str
    resolved_by: ResolvedBy | None
    state: CallState
    error_reason: str
    finish_reason: FinishReason | None
    usage: Usage
    start_time: datetime | None
    end_time: datetime | None
    latency: timedelta | None
    first_output_latency: timedelta | None
    attempts: tuple[AttemptRecord, ...]
    direct: bool
    routing: RoutingOutcome | None
    trace_id: str


@dataclass(frozen=True, kw_only=True)
class AuditEvent(Value[admin_pb.AuditEvent]):
    """One event of the audit trail: who did what to what."""

    sequence: int
    event_time: datetime | None
    type: str
    actor: str
    owner: str
    subject: str
    connector_uid: str
    changed_fields: tuple[str, ...]
    call_id: str
    previous_hash: bytes
    hash: bytes


@dataclass(frozen=True, kw_only=True)
class AuditVerification(Value[admin_pb.VerifyAuditResponse]):
    """Whether the chain of the audit trail fits. Note `head_sequence` and `head_hash` for a later verification."""

    valid: bool
    event_count: int
    head_sequence: int
    head_hash: bytes
    fault_sequence: int
    fault: AuditFault | None


@dataclass(frozen=True, kw_only=True)
class CallerToken(Value[admin_pb.CallerToken]):
    """A bearer token by which callers authenticate, without its secret."""

    name: str
    display_name: str
    scopes: tuple[Scope, ...]
    owner: str
    any_owner: bool
    expire_time: datetime | None
    create_time: datetime | None
    last_used_time: datetime | None
    revoke_time: datetime | None


@dataclass(frozen=True, kw_only=True)
class NewToken(Value[admin_pb.CreateTokenResponse]):
    """A token with its secret, which is shown this once."""

    token: CallerToken
    secret: str = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class KeyRotationProgress(Value[admin_pb.RotateMasterKeyResponse]):
    """How far the re-sealing of credentials is; `unreadable` are connectors found since the message before."""

    key_id: str
    total_count: int
    resealed_count: int
    unreadable: tuple[str, ...]
    done: bool


@dataclass(frozen=True, kw_only=True)
class HealthCheck(Value[admin_pb.RunHealthChecksResponse]):
    """One connector's result; `connector` is empty in a last message that has no result of its own."""

    connector: str
    result: TestResult | None
    latency: timedelta | None
    error_reason: str
    checked_count: int
    total_count: int
    done: bool


@dataclass(frozen=True, kw_only=True)
class StoreStatus(Value[admin_pb.StoreStatus]):
    """How the store does."""

    kind: str
    reachable: bool
    schema_revision: str
    latency: timedelta | None


@dataclass(frozen=True, kw_only=True)
class KeyringStatus(Value[admin_pb.KeyringStatus]):
    """The keyring, without keys. `stale_count` credentials wait for `rotate_master_key`."""

    primary_key_id: str
    key_ids: tuple[str, ...]
    stale_count: int


@dataclass(frozen=True, kw_only=True)
class PluginStatus(Value[admin_pb.PluginStatus]):
    """A plug-in that was found, loaded or not."""

    name: str
    connector_type: str
    loaded: bool


@dataclass(frozen=True, kw_only=True)
class BreakerStatus(Value[admin_pb.BreakerStatus]):
    """A circuit breaker that is not closed."""

    connector: str
    model: str
    half_open: bool
    open_time: datetime | None


@dataclass(frozen=True, kw_only=True)
class Status(Value[admin_pb.GetStatusResponse]):
    """How the replica that answered does. `calls_without_record` other than 0 is a mistake in Patchbay."""

    version: str
    process_id: str
    start_time: datetime | None
    draining: bool
    store: StoreStatus
    keyring: KeyringStatus
    calls_open: int
    calls_queued: int
    calls_without_record: int
    plugins: tuple[PluginStatus, ...]
    breakers: tuple[BreakerStatus, ...]


class PolicyChanges(TypedDict, total=False):
    """What to change of the policy; what is left out stays. Lists and maps are replaced as a whole."""

    allowed_connector_types: Sequence[str] | None
    """None: every registered type; empty: none at all."""
    host_allow_list: Sequence[str]
    private_http: str
    """"none", "loopback" or "private"."""
    org_default_connector: Ref | None
    """None clears it."""
    call_log_retention_days: int
    """7 to 365."""
    default_fallback: str
    """"none", "org_default", "retry_then_org_default" or "owner_chain"."""
    model_aliases: Mapping[str, str]
    quality_priors: Sequence[Mapping[str, Any] | QualityPrior]
    """Mappings have the fields of a `QualityPrior`."""
    price_overrides: Sequence[Mapping[str, Any] | PriceOverride]
    """Mappings have the fields of a `PriceOverride`, its price those of a `ModelPrice`."""
    etag: str
    """The etag that was read: the change is refused when the policy has changed since."""


class ExportOptions(TypedDict, total=False):
    """Which records to export."""

    start_time: datetime
    """Records at or after it. Default: all."""
    end_time: datetime
    """Records before it. Default: until now."""
    filter: str
    """Comparisons joined by AND, as in the list of the same records."""


class RangeOptions(ExportOptions, total=False):
    """Which records to list, and in what order."""

    order_by: str
    """A field, with ` desc` for descending. Default: the list's own order."""


def get_policy() -> Operation[admin_pb.GetPolicyResponse, Policy]:
    return Operation(
        method="AdminService/GetPolicy",
        request=admin_pb.GetPolicyRequest(),
        response=admin_pb.GetPolicyResponse,
        read=lambda response: read(Policy, response.policy),
    )


def update_policy(changes: PolicyChanges) -> Operation[admin_pb.UpdatePolicyResponse, Policy]:
    policy = admin_pb.Policy(
        etag=changes.get("etag", ""),
        host_allow_list=changes.get("host_allow_list", ()),
        call_log_retention_days=changes.get("call_log_retention_days", 0),
        model_aliases=changes.get("model_aliases", {}),
        org_default_connector=resource_name(changes.get("org_default_connector") or ""),
        quality_priors=[_prior(each) for each in changes.get("quality_priors", ())],
        price_overrides=[_override(each) for each in changes.get("price_overrides", ())],
    )
    if (allowed := changes.get("allowed_connector_types")) is not None:
        policy.allowed_connector_types.CopyFrom(admin_pb.ConnectorTypeList(types=allowed))
    if "private_http" in changes:
        private_http = enum_number(connector_pb.PrivateHttp.DESCRIPTOR, changes["private_http"])
        policy.private_http = connector_pb.PrivateHttp.ValueType(private_http)
    if "default_fallback" in changes:
        fallback = enum_number(gateway_pb.FallbackMode.DESCRIPTOR, changes["default_fallback"])
        policy.default_fallback = gateway_pb.FallbackMode.ValueType(fallback)
    if unknown := changes.keys() - PolicyChanges.__annotations__.keys():
        raise TypeError(f"{', '.join(sorted(unknown))}: no such part of the policy")
    paths = sorted(changes.keys() - {"etag"})
    return Operation(
        method="AdminService/UpdatePolicy",
        request=admin_pb.UpdatePolicyRequest(policy=policy, update_mask=FieldMask(paths=paths)),
        response=admin_pb.UpdatePolicyResponse,
        read=lambda response: read(Policy, response.policy),
    )


def list_connectors(
    options: ListOptions,
) -> Operation[admin_pb.ListAllConnectorsResponse, tuple[ConnectorOverview, ...]]:
    return Operation(
        method="AdminService/ListAllConnectors",
        request=admin_pb.ListAllConnectorsRequest(page_size=PAGE_SIZE, **options),
        response=admin_pb.ListAllConnectorsResponse,
        read=lambda page: tuple(read(ConnectorOverview, each) for each in page.connectors),
    )


def revoke_connector(connector: Ref, etag: str) -> Operation[admin_pb.RevokeConnectorResponse, Connector]:
    return Operation(
        method="AdminService/RevokeConnector",
        request=admin_pb.RevokeConnectorRequest(name=resource_name(connector), etag=etag),
        response=admin_pb.RevokeConnectorResponse,
        read=lambda response: read(Connector, response.connector),
    )


def set_cap(
    connector: Ref, monthly_token_cap: int, mode: str | None, etag: str
) -> Operation[admin_pb.SetConnectorCapResponse, Connector]:
    number = 0 if mode is None else enum_number(connector_pb.CapMode.DESCRIPTOR, mode)
    return _change_cap(
        admin_pb.SetConnectorCapRequest(
            name=resource_name(connector),
            monthly_token_cap=monthly_token_cap,
            cap_mode=connector_pb.CapMode.ValueType(number),
            etag=etag,
        )
    )


def clear_cap(connector: Ref, etag: str) -> Operation[admin_pb.SetConnectorCapResponse, Connector]:
    return _change_cap(admin_pb.SetConnectorCapRequest(name=resource_name(connector), clear=True, etag=etag))


def query_usage(
    group_by: Sequence[str], label_key: str, options: RangeOptions
) -> Operation[admin_pb.QueryUsageResponse, admin_pb.QueryUsageResponse]:
    dimensions = [enum_number(admin_pb.UsageDimension.DESCRIPTOR, each) for each in group_by]
    return Operation(
        method="AdminService/QueryUsage",
        request=admin_pb.QueryUsageRequest(
            group_by=[admin_pb.UsageDimension.ValueType(each) for each in dimensions],
            label_key=label_key,
            page_size=PAGE_SIZE,
            **_times(options),
        ),
        response=admin_pb.QueryUsageResponse,
        read=lambda page: page,
    )


def read_usage(pages: Iterable[admin_pb.QueryUsageResponse]) -> UsageReport:
    """All pages, of which there is at least one, as one report."""
    every = list(pages)
    first = every[0]
    return UsageReport(
        rows=tuple(read(UsageRow, row) for page in every for row in page.rows),
        start_time=to_datetime(first.start_time) if first.HasField("start_time") else None,
        end_time=to_datetime(first.end_time) if first.HasField("end_time") else None,
    )


def list_calls(options: RangeOptions) -> Operation[admin_pb.ListCallsResponse, tuple[CallRecord, ...]]:
    return Operation(
        method="AdminService/ListCalls",
        request=admin_pb.ListCallsRequest(page_size=PAGE_SIZE, **_times(options)),
        response=admin_pb.ListCallsResponse,
        read=lambda page: tuple(read(CallRecord, each) for each in page.calls),
    )


def get_call(call_id: str) -> Operation[admin_pb.GetCallResponse, CallRecord]:
    return Operation(
        method="AdminService/GetCall",
        request=admin_pb.GetCallRequest(id=call_id),
        response=admin_pb.GetCallResponse,
        read=lambda response: read(CallRecord, response.call),
    )


def export_calls(options: ExportOptions) -> Operation[admin_pb.ExportCallsResponse, bytes]:
    return Operation(
        method="AdminService/ExportCalls",
        request=admin_pb.ExportCallsRequest(**_times(options)),
        response=admin_pb.ExportCallsResponse,
        read=lambda piece: piece.data,
        limit=Limit.NONE,
    )


def list_audit_events(
    options: RangeOptions,
) -> Operation[admin_pb.ListAuditEventsResponse, tuple[AuditEvent, ...]]:
    return Operation(
        method="AdminService/ListAuditEvents",
        request=admin_pb.ListAuditEventsRequest(page_size=PAGE_SIZE, **_times(options)),
        response=admin_pb.ListAuditEventsResponse,
        read=lambda page: tuple(read(AuditEvent, each) for each in page.events),
    )


def export_audit_events(options: ExportOptions) -> Operation[admin_pb.ExportAuditEventsResponse, bytes]:
    return Operation(
        method="AdminService/ExportAuditEvents",
        request=admin_pb.ExportAuditEventsRequest(**_times(options)),
        response=admin_pb.ExportAuditEventsResponse,
        read=lambda piece: piece.data,
        limit=Limit.NONE,
    )


def verify_audit(known_sequence: int, known_hash: bytes) -> Operation[admin_pb.VerifyAuditResponse, AuditVerification]:
    return Operation(
        method="AdminService/VerifyAudit",
        request=admin_pb.VerifyAuditRequest(known_sequence=known_sequence, known_hash=known_hash),
        response=admin_pb.VerifyAuditResponse,
        read=lambda response: read(AuditVerification, response),
        limit=Limit.NONE,
    )


def create_token(
    display_name: str, scopes: Sequence[str], owner: str | None, *, any_owner: bool, expire_time: datetime | None
) -> Operation[admin_pb.CreateTokenResponse, NewToken]:
    if any_owner == bool(owner):
        raise ValueError("a token needs either its owner or any_owner=True")
    token = admin_pb.CallerToken(
        display_name=display_name,
        scopes=[admin_pb.Scope.ValueType(enum_number(admin_pb.Scope.DESCRIPTOR, each)) for each in scopes],
        expire_time=None if expire_time is None else to_timestamp(expire_time),
    )
    if any_owner:
        token.any_owner = True
    else:
        token.owner = owner_name(owner)
    return Operation(
        method="AdminService/CreateToken",
        request=admin_pb.CreateTokenRequest(token=token),
        response=admin_pb.CreateTokenResponse,
        read=lambda response: read(NewToken, response),
    )


def list_tokens(options: ListOptions) -> Operation[admin_pb.ListTokensResponse, tuple[CallerToken, ...]]:
    return Operation(
        method="AdminService/ListTokens",
        request=admin_pb.ListTokensRequest(page_size=PAGE_SIZE, **options),
        response=admin_pb.ListTokensResponse,
        read=lambda page: tuple(read(CallerToken, each) for each in page.tokens),
    )


def revoke_token(token: Ref) -> Operation[admin_pb.RevokeTokenResponse, CallerToken]:
    return Operation(
        method="AdminService/RevokeToken",
        request=admin_pb.RevokeTokenRequest(name=resource_name(token)),
        response=admin_pb.RevokeTokenResponse,
        read=lambda response: read(CallerToken, response.token),
    )


def rotate_master_key(batch_size: int | None) -> Operation[admin_pb.RotateMasterKeyResponse, KeyRotationProgress]:
    return Operation(
        method="AdminService/RotateMasterKey",
        request=admin_pb.RotateMasterKeyRequest(batch_size=batch_size),
        response=admin_pb.RotateMasterKeyResponse,
        read=lambda progress: read(KeyRotationProgress, progress),
        limit=Limit.NONE,
    )


def run_health_checks(connector_filter: str) -> Operation[admin_pb.RunHealthChecksResponse, HealthCheck]:
    return Operation(
        method="AdminService/RunHealthChecks",
        request=admin_pb.RunHealthChecksRequest(filter=connector_filter),
        response=admin_pb.RunHealthChecksResponse,
        read=lambda progress: read(HealthCheck, progress),
        limit=Limit.NONE,
    )


def get_status() -> Operation[admin_pb.GetStatusResponse, Status]:
    return Operation(
        method="AdminService/GetStatus",
        request=admin_pb.GetStatusRequest(),
        response=admin_pb.GetStatusResponse,
        read=lambda response: read(Status, response),
    )


def _change_cap(
    request: admin_pb.SetConnectorCapRequest,
) -> Operation[admin_pb.SetConnectorCapResponse, Connector]:
    return Operation(
        method="AdminService/SetConnectorCap",
        request=request,
        response=admin_pb.SetConnectorCapResponse,
        read=lambda response: read(Connector, response.connector),
    )


def _times(options: ExportOptions) -> dict[str, Any]:
    return {name: to_timestamp(value) if isinstance(value, datetime) else value for name, value in options.items()}


def _prior(prior: Mapping[str, Any] | QualityPrior) -> admin_pb.QualityPrior:
    return prior.raw if isinstance(prior, QualityPrior) else admin_pb.QualityPrior(**prior)


def _override(override: Mapping[str, Any] | PriceOverride) -> admin_pb.PriceOverride:
    return override.raw if isinstance(override, PriceOverride) else admin_pb.PriceOverride(**override)
