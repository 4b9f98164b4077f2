"""The one exception of the service, its reasons, and the table that every transport derives its answers from.

Owns which reasons exist and what each means to a caller: gRPC code, HTTP status, whether another connector may be
tried. Knows no
transport: `rpc.status` and the HTTP edge are the only places that turn a `PatchbayError` into bytes.
"""

from collections.abc import Mapping, Sequence
from enum import Enum, StrEnum, auto
from types import MappingProxyType
from typing import Final

import msgspec

from patchbay_server.usage import Usage


class Code(Enum):
    """The canonical status codes in use, by the names that gRPC gives them."""

    INVALID_ARGUMENT = auto()
    UNAUTHENTICATED = auto()
    PERMISSION_DENIED = auto()
    NOT_FOUND = auto()
    ALREADY_EXISTS = auto()
    FAILED_PRECONDITION = auto()
    ABORTED = auto()
    RESOURCE_EXHAUSTED = auto()
    UNIMPLEMENTED = auto()
    UNAVAILABLE = auto()
    DEADLINE_EXCEEDED = auto()
    CANCELLED = auto()
    INTERNAL = auto()


class Reason(StrEnum):
    """Why a call failed. The values are the `ErrorReason` names of the contract without their prefix."""

    CALLER_UNAUTHENTICATED = "CALLER_UNAUTHENTICATED"
    CALLER_NOT_AUTHORIZED = "CALLER_NOT_AUTHORIZED"
    POLICY_DENIED = "POLICY_DENIED"
    INVALID_REQUEST = "INVALID_REQUEST"
    FEATURE_UNSUPPORTED = "FEATURE_UNSUPPORTED"
    CONTEXT_LENGTH_EXCEEDED = "CONTEXT_LENGTH_EXCEEDED"
    UPSTREAM_REJECTED_REQUEST = "UPSTREAM_REJECTED_REQUEST"
    CONTENT_POLICY_VIOLATION = "CONTENT_POLICY_VIOLATION"
    REQUEST_ID_REUSED = "REQUEST_ID_REUSED"
    CONNECTOR_NOT_FOUND = "CONNECTOR_NOT_FOUND"
    RESOURCE_NOT_FOUND = "RESOURCE_NOT_FOUND"
    MODEL_NOT_FOUND = "MODEL_NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    CONNECTOR_NOT_CONFIGURED = "CONNECTOR_NOT_CONFIGURED"
    CONNECTOR_INACTIVE = "CONNECTOR_INACTIVE"
    CONNECTOR_MISCONFIGURED = "CONNECTOR_MISCONFIGURED"
    UPSTREAM_CREDENTIAL_REJECTED = "UPSTREAM_CREDENTIAL_REJECTED"
    UPSTREAM_BILLING_EXHAUSTED = "UPSTREAM_BILLING_EXHAUSTED"
    NO_CANDIDATE = "NO_CANDIDATE"
    CAP_REACHED = "CAP_REACHED"
    RATE_LIMITED = "RATE_LIMITED"
    UPSTREAM_RATE_LIMITED = "UPSTREAM_RATE_LIMITED"
    UPSTREAM_UNAVAILABLE = "UPSTREAM_UNAVAILABLE"
    UPSTREAM_EMPTY_STREAM = "UPSTREAM_EMPTY_STREAM"
    UPSTREAM_STREAM_BROKEN = "UPSTREAM_STREAM_BROKEN"
    UPSTREAM_TRUNCATED = "UPSTREAM_TRUNCATED"
    UPSTREAM_TIMEOUT = "UPSTREAM_TIMEOUT"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    ALL_CANDIDATES_FAILED = "ALL_CANDIDATES_FAILED"
    OVERLOADED = "OVERLOADED"
    DRAINING = "DRAINING"
    UPSTREAM_MALFORMED_RESPONSE = "UPSTREAM_MALFORMED_RESPONSE"
    STREAMING_UNSUPPORTED = "STREAMING_UNSUPPORTED"
    NOT_IMPLEMENTED = "NOT_IMPLEMENTED"
    REQUEST_IN_PROGRESS = "REQUEST_IN_PROGRESS"
    ETAG_MISMATCH = "ETAG_MISMATCH"
    CREDENTIAL_UNREADABLE = "CREDENTIAL_UNREADABLE"
    DEPENDENCY_UNAVAILABLE = "DEPENDENCY_UNAVAILABLE"
    CANCELLED = "CANCELLED"
    INTERNAL = "INTERNAL"


class FallBack(Enum):
    """Whether another connector may answer after this failure."""

    NEVER = auto()
    BEFORE_OUTPUT = auto()
    """As long as no delta has been delivered to the caller."""


class Rule(msgspec.Struct, frozen=True):
    """What a reason means outside: gRPC code, HTTP status of the edge, and whether another connector may be tried."""

    code: Code
    http: int
    fall_back: FallBack = FallBack.NEVER


_BEFORE = FallBack.BEFORE_OUTPUT

RULES: Final[Mapping[Reason, Rule]] = MappingProxyType(
    {
        Reason.CALLER_UNAUTHENTICATED: Rule(Code.UNAUTHENTICATED, 401),
        Reason.CALLER_NOT_AUTHORIZED: Rule(Code.PERMISSION_DENIED, 403),
        Reason.POLICY_DENIED: Rule(Code.PERMISSION_DENIED, 403),
        Reason.INVALID_REQUEST: Rule(Code.INVALID_ARGUMENT, 400),
        Reason.FEATURE_UNSUPPORTED: Rule(Code.INVALID_ARGUMENT, 400),
        Reason.CONTEXT_LENGTH_EXCEEDED: Rule(Code.INVALID_ARGUMENT, 400),
        Reason.UPSTREAM_REJECTED_REQUEST: Rule(Code.INVALID_ARGUMENT, 400),
        Reason.CONTENT_POLICY_VIOLATION: Rule(Code.INVALID_ARGUMENT, 400),
        Reason.REQUEST_ID_REUSED: Rule(Code.INVALID_ARGUMENT, 422),
        Reason.CONNECTOR_NOT_FOUND: Rule(Code.NOT_FOUND, 404),
        Reason.RESOURCE_NOT_FOUND: Rule(Code.NOT_FOUND, 404),
        Reason.MODEL_NOT_FOUND: Rule(Code.NOT_FOUND, 404),
        Reason.ALREADY_EXISTS: Rule(Code.ALREADY_EXISTS, 409),
        Reason.CONNECTOR_NOT_CONFIGURED: Rule(Code.FAILED_PRECONDITION, 409),
        Reason.CONNECTOR_INACTIVE: Rule(Code.FAILED_PRECONDITION, 409),
        Reason.CONNECTOR_MISCONFIGURED: Rule(Code.FAILED_PRECONDITION, 409),
        Reason.UPSTREAM_CREDENTIAL_REJECTED: Rule(Code.FAILED_PRECONDITION, 424, _BEFORE),
        Reason.UPSTREAM_BILLING_EXHAUSTED: Rule(Code.FAILED_PRECONDITION, 402, _BEFORE),
        Reason.NO_CANDIDATE: Rule(Code.FAILED_PRECONDITION, 409),
        Reason.CAP_REACHED: Rule(Code.RESOURCE_EXHAUSTED, 429),
        Reason.RATE_LIMITED: Rule(Code.RESOURCE_EXHAUSTED, 429),
        Reason.UPSTREAM_RATE_LIMITED: Rule(Code.RESOURCE_EXHAUSTED, 429, _BEFORE),
        Reason.UPSTREAM_UNAVAILABLE: Rule(Code.UNAVAILABLE, 503, _BEFORE),
        Reason.UPSTREAM_EMPTY_STREAM: Rule(Code.UNAVAILABLE, 502, _BEFORE),
        Reason.UPSTREAM_STREAM_BROKEN: Rule(Code.UNAVAILABLE, 502),
        Reason.UPSTREAM_TRUNCATED: Rule(Code.UNAVAILABLE, 502, _BEFORE),
        Reason.UPSTREAM_TIMEOUT: Rule(Code.DEADLINE_EXCEEDED, 504, _BEFORE),
        Reason.DEADLINE_EXCEEDED: Rule(Code.DEADLINE_EXCEEDED, 504),
        Reason.ALL_CANDIDATES_FAILED: Rule(Code.UNAVAILABLE, 503),
        Reason.OVERLOADED: Rule(Code.UNAVAILABLE, 503),
        Reason.DRAINING: Rule(Code.UNAVAILABLE, 503),
        Reason.UPSTREAM_MALFORMED_RESPONSE: Rule(Code.INTERNAL, 502, _BEFORE),
        Reason.STREAMING_UNSUPPORTED: Rule(Code.UNIMPLEMENTED, 501),
        Reason.NOT_IMPLEMENTED: Rule(Code.UNIMPLEMENTED, 501),
        Reason.REQUEST_IN_PROGRESS: Rule(Code.ABORTED, 409),
        Reason.ETAG_MISMATCH: Rule(Code.ABORTED, 412),
        Reason.CREDENTIAL_UNREADABLE: Rule(Code.INTERNAL, 500),
        Reason.DEPENDENCY_UNAVAILABLE: Rule(Code.UNAVAILABLE, 503),
        Reason.CANCELLED: Rule(Code.CANCELLED, 499),
        Reason.INTERNAL: Rule(Code.INTERNAL, 500),
    }
)


class FieldViolation(msgspec.Struct, frozen=True):
    """One field of a request that is wrong: its path in proto names (`messages[0].parts[1].media.uri`) and what to do
    about it.
    """

    field: str
    description: str


class UpstreamFailure(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a provider's failure, without a word of its body.

    `provider_code` is a code from the adapter's allow-list or the empty string; `http_status` is 0 when no status was
    received.
    """

    provider: str = ""
    connector: str = ""
    http_status: int = 0
    provider_code: str = ""
    upstream_request_id: str = ""
    attempt_count: int = 0


class PartialResult(msgspec.Struct, frozen=True, kw_only=True):
    """What of a call was delivered before it failed: stays valid and stays accounted."""

    call_id: str
    last_sequence: int = 0
    usage: Usage = Usage()


class PatchbayError(Exception):
    """A failure that a caller can act on.

    `str(error)` is the message shown to the caller: one sentence that says what to do next, never a secret or a
    provider's words.

    Args:
        reason: what went wrong; decides code and fallback by `RULES`.
        message: for people.
        field: path of the one request field at fault; short for one violation with the message as its description.
        violations: all request fields at fault.
        retry_after_s: seconds after which a retry may succeed; None when nobody said.
        quota: subject of an exhausted quota such as `owners/a/connectors/b:monthly_tokens`, or empty.
        upstream: facts of the provider's failure.
        partial: what was delivered of the call before.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        field: str = "",
        violations: Sequence[FieldViolation] = (),
        retry_after_s: float | None = None,
        quota: str = "",
        upstream: UpstreamFailure | None = None,
        partial: PartialResult | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.violations = tuple(violations) or ((FieldViolation(field, message),) if field else ())
        self.retry_after_s = retry_after_s
        self.quota = quota
        self.upstream = upstream
        self.partial = partial

    @property
    def rule(self) -> Rule:
        return RULES[self.reason]

    def __repr__(self) -> str:
        return f"PatchbayError({self.reason.value}, {self.message!r})"
