"""What a failed call raises: one class that carries everything the gateway said, and subclasses worth catching.

    try:
        answer = client.chat("Hello")
    except RateLimited as error:
        time.sleep(error.retry_after or 1.0)
    except NotFound as error:
        print(error.reason)           # "CONNECTOR_NOT_FOUND"
    except PatchbayError as error:    # everything else
        print(error)

Mistakes that are found before anything is sent, such as an unknown word for an enum, are ValueError or TypeError.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from patchbay.v1 import error_pb2
from patchbay_client.reading import Value, read
from patchbay_client.usage import Usage

CALL_ID_HEADER = "patchbay-call-id"

_DETAILS_TRAILER = "grpc-status-details-bin"
_DOMAIN = "patchbay"
_REASON_PREFIX = "ERROR_REASON_"


@dataclass(frozen=True)
class FieldViolation:
    """One field of the request that is wrong: its path in the contract's names, and what to do about it."""

    field: str
    description: str


@dataclass(frozen=True, kw_only=True)
class UpstreamFailure(Value[error_pb2.UpstreamFailure]):
    """How the provider failed. `http_status` is 0 when it did not answer."""

    provider: str
    connector: str
    http_status: int
    provider_code: str
    upstream_request_id: str
    attempt_count: int


@dataclass(frozen=True, kw_only=True)
class PartialResult(Value[error_pb2.PartialResult]):
    """What a stream had delivered before it failed: it stays valid, and `usage` was recorded."""

    call_id: str
    last_sequence: int
    usage: Usage


class PatchbayError(Exception):
    """A call failed.

    Attributes:
        message: one sentence for people.
        reason: the contract's ErrorReason without its prefix, such as "CAP_REACHED"; empty when the network or a proxy
            failed, not Patchbay. New reasons may appear: fall back on `code`.
        code: the gRPC status code.
        retry_after: seconds after which a retry may succeed; None when nobody said.
        violations: the request fields at fault.
        quota: what is used up, such as `owners/a/connectors/b:monthly_tokens`; empty when it is no quota.
        upstream: how the provider failed; None when it was not reached.
        partial: what was delivered before a stream failed; None when nothing was.
        metadata: further facts, by name.
        call_id: the call's id in the call log; empty when the call was not admitted.
        raw: the google.rpc.Status with every detail; None when there is none.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        code: grpc.StatusCode = grpc.StatusCode.UNKNOWN,
        call_id: str = "",
        raw: status_pb2.Status | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.code = code
        self.call_id = call_id
        self.raw = raw
        self.retry_after: float | None = None
        self.violations: tuple[FieldViolation, ...] = ()
        self.quota = ""
        self.upstream: UpstreamFailure | None = None
        self.partial: PartialResult | None = None
        self.metadata: Mapping[str, str] = {}

    def __str__(self) -> str:
        return f"{self.reason or self.code.name}: {self.message}"


class Unauthenticated(PatchbayError):
    """No caller token or certificate, or a wrong one."""


class PermissionDenied(PatchbayError):
    """The caller lacks a scope, the owner is not the caller's, or policy refuses."""


class NotFound(PatchbayError):
    """There is no such connector, model or other resource, as far as this caller may see."""


class AlreadyExists(PatchbayError):
    """The display name or id is taken."""


class InvalidRequest(PatchbayError):
    """The request is wrong; `violations` names the fields."""


class FeatureUnsupported(InvalidRequest):
    """The provider or model cannot do what a field asks for."""


class ContextLengthExceeded(InvalidRequest):
    """The prompt is longer than the model's context."""


class ContentPolicyViolation(InvalidRequest):
    """The provider's content policy refused the request."""


class PreconditionFailed(PatchbayError):
    """Something must be set right first: a connector, its credential, the provider's billing."""


class Conflict(PatchbayError):
    """The resource changed since its etag was read, or a request with this id is still running."""


class RateLimited(PatchbayError):
    """Patchbay's or the provider's rate limit; wait for `retry_after` seconds."""


class CapReached(PatchbayError):
    """The connector's monthly token cap is reached; `quota` names it."""


class Unavailable(PatchbayError):
    """The provider, the gateway or the way to it failed; a later retry may succeed."""


class TruncatedStream(Unavailable):
    """The stream ended without its last chunk: what came is not the whole answer."""


class DeadlineExceeded(PatchbayError):
    """It took too long: the call's timeout passed, or the provider was silent."""


class NotSupported(PatchbayError):
    """This server, or the connector's adapter, does not have the operation."""


class Cancelled(PatchbayError):
    """The call was cancelled."""


_BY_REASON: Mapping[str, type[PatchbayError]] = {
    "FEATURE_UNSUPPORTED": FeatureUnsupported,
    "CONTEXT_LENGTH_EXCEEDED": ContextLengthExceeded,
    "CONTENT_POLICY_VIOLATION": ContentPolicyViolation,
    "RATE_LIMITED": RateLimited,
    "UPSTREAM_RATE_LIMITED": RateLimited,
    "CAP_REACHED": CapReached,
}

_BY_CODE: Mapping[grpc.StatusCode, type[PatchbayError]] = {
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.FAILED_PRECONDITION: PreconditionFailed,
    grpc.StatusCode.ABORTED: Conflict,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.UNIMPLEMENTED: NotSupported,
    grpc.StatusCode.CANCELLED: Cancelled,
}


def from_rpc_error(error: grpc.RpcError) -> PatchbayError:
    """The failure that gRPC raised, as one of ours. Details that cannot be read are left out."""
    call = cast("_FailedCall", error)
    status = _status(call)
    info = _detail(status, error_details_pb2.ErrorInfo)
    reason = info.reason.removeprefix(_REASON_PREFIX) if info is not None and info.domain == _DOMAIN else ""
    error_class = _BY_REASON.get(reason) or _BY_CODE.get(call.code(), PatchbayError)
    failure = error_class(
        call.details() or "the server gave no explanation",
        reason=reason,
        code=call.code(),
        call_id=_text(call.initial_metadata(), CALL_ID_HEADER),
        raw=status,
    )
    _add_details(failure, status)
    if info is not None:
        failure.metadata = dict(info.metadata)
    return failure


def _add_details(failure: PatchbayError, status: status_pb2.Status | None) -> None:
    if retry := _detail(status, error_details_pb2.RetryInfo):
        failure.retry_after = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
    if bad := _detail(status, error_details_pb2.BadRequest):
        failure.violations = tuple(FieldViolation(each.field, each.description) for each in bad.field_violations)
    if quota := _detail(status, error_details_pb2.QuotaFailure):
        failure.quota = next((each.subject for each in quota.violations), "")
    if upstream := _detail(status, error_pb2.UpstreamFailure):
        failure.upstream = read(UpstreamFailure, upstream)
    if partial := _detail(status, error_pb2.PartialResult):
        failure.partial = read(PartialResult, partial)
        failure.call_id = failure.call_id or partial.call_id


Metadata = Sequence[tuple[str, str | bytes]] | None


class _FailedCall(Protocol):
    """What both of gRPC's errors, of its blocking and of its asyncio interface, can be asked."""

    def code(self) -> grpc.StatusCode: ...
    def details(self) -> str | None: ...
    def initial_metadata(self) -> Metadata: ...
    def trailing_metadata(self) -> Metadata: ...


def _status(call: _FailedCall) -> status_pb2.Status | None:
    for key, value in call.trailing_metadata() or ():
        if key == _DETAILS_TRAILER and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                return None
    return None


def _detail(status: status_pb2.Status | None, detail_class: type[Any]) -> Any:
    for packed in () if status is None else status.details:
        if packed.Is(detail_class.DESCRIPTOR):
            detail: Message = detail_class()
            try:
                packed.Unpack(detail)
            except DecodeError:
                return None
            return detail
    return None


def _text(metadata: Metadata, name: str) -> str:
    return next((value for key, value in metadata or () if key == name and isinstance(value, str)), "")
