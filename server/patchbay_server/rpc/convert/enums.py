"""The enums of the contract beside ours."""

from typing import Final

from patchbay.v1 import admin_service_pb2 as admin_pb
from patchbay.v1 import connector_service_pb2 as connector_pb
from patchbay.v1 import content_pb2, error_pb2, usage_pb2
from patchbay.v1 import gateway_service_pb2 as gateway_pb
from patchbay_server.adapters.protocol import Capability, FieldKind
from patchbay_server.core.choose import Outcome
from patchbay_server.errors import Reason
from patchbay_server.rpc.convert.fields import EnumTable
from patchbay_server.types import (
    CapMode,
    CheckResult,
    ConnectorState,
    Effort,
    FallbackMode,
    FinishReason,
    NoticeCode,
    PrivateHttp,
    ResolvedBy,
    Role,
    Scope,
    ToolMode,
    UpstreamMode,
)
from patchbay_server.usage import UsageSource

ROLES: Final = EnumTable(content_pb2.Role, Role)
EFFORTS: Final = EnumTable(gateway_pb.ReasoningEffort, Effort)
TOOL_MODES: Final = EnumTable(gateway_pb.ToolChoiceMode, ToolMode)
FALLBACK_MODES: Final = EnumTable(gateway_pb.FallbackMode, FallbackMode)
FINISH_REASONS: Final = EnumTable(gateway_pb.FinishReason, FinishReason)
NOTICE_CODES: Final = EnumTable(gateway_pb.NoticeCode, NoticeCode)
RESOLVED_BY: Final = EnumTable(gateway_pb.ResolvedBy, ResolvedBy)
OUTCOMES: Final = EnumTable(gateway_pb.ResolutionOutcome, Outcome)
UPSTREAM_MODES: Final = EnumTable(gateway_pb.UpstreamMode, UpstreamMode)
CAPABILITIES: Final = EnumTable(gateway_pb.Capability, Capability)
USAGE_SOURCES: Final = EnumTable(usage_pb2.UsageSource, UsageSource)
CAP_MODES: Final = EnumTable(connector_pb.CapMode, CapMode)
CONNECTOR_STATES: Final = EnumTable(connector_pb.ConnectorState, ConnectorState)
TEST_RESULTS: Final = EnumTable(connector_pb.TestResult, CheckResult)
PRIVATE_HTTP: Final = EnumTable(connector_pb.PrivateHttp, PrivateHttp)
FIELD_KINDS: Final = EnumTable(connector_pb.CredentialFieldKind, FieldKind)
SCOPES: Final = EnumTable(admin_pb.Scope, Scope)
REASONS: Final = EnumTable(error_pb2.ErrorReason, Reason)


def error_reason(reason: Reason | None) -> error_pb2.ErrorReason.ValueType:
    """UNSPECIFIED when nothing failed."""
    return error_pb2.ERROR_REASON_UNSPECIFIED if reason is None else REASONS.to_wire[reason]
