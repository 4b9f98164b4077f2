"""What the refusals of the Gemini API mean: reason first, then quota, words where nothing else tells, and status.

The API answers in Google's common form of errors: a status by name, and details that are told apart by their `@type`.

Source: google.rpc `error_details.proto` and `code.proto`, google.api `error_reason.proto` (googleapis-common-protos
1.76.0); google-genai 3.4.0, `errors.py`; ai.google.dev/gemini-api/docs, "Troubleshooting" and "Rate limits"; the error
bodies in issues of google-gemini/gemini-cli and googleapis/python-genai (all read 2026-11-21).
"""

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

import msgspec

from patchbay_server.adapters.failures import reason_of_status, upstream_error
from patchbay_server.adapters.json_body import text_or_empty
from patchbay_server.adapters.waits import WAIT_S_MAX
from patchbay_server.errors import PatchbayError, Reason

PROVIDER: Final = "gemini"

_BY_REASON: Final[Mapping[str, Reason]] = MappingProxyType(
    {
        # No call with this key will succeed from here: it is unknown, out of date, blocked or bound to other callers.
        "API_KEY_INVALID": Reason.UPSTREAM_CREDENTIAL_REJECTED,
        "API_KEY_SERVICE_BLOCKED": Reason.UPSTREAM_CREDENTIAL_REJECTED,
        "API_KEY_HTTP_REFERRER_BLOCKED": Reason.UPSTREAM_CREDENTIAL_REJECTED,
        "API_KEY_IP_ADDRESS_BLOCKED": Reason.UPSTREAM_CREDENTIAL_REJECTED,
        "API_KEY_ANDROID_APP_BLOCKED": Reason.UPSTREAM_CREDENTIAL_REJECTED,
        "API_KEY_IOS_APP_BLOCKED": Reason.UPSTREAM_CREDENTIAL_REJECTED,
        "CREDENTIALS_MISSING": Reason.UPSTREAM_CREDENTIAL_REJECTED,
        "CREDENTIAL_TYPE_UNSUPPORTED": Reason.UPSTREAM_CREDENTIAL_REJECTED,
        "ACCESS_TOKEN_EXPIRED": Reason.UPSTREAM_CREDENTIAL_REJECTED,
        "ACCESS_TOKEN_TYPE_UNSUPPORTED": Reason.UPSTREAM_CREDENTIAL_REJECTED,
        "ACCOUNT_STATE_INVALID": Reason.UPSTREAM_CREDENTIAL_REJECTED,
        "CONSUMER_INVALID": Reason.UPSTREAM_CREDENTIAL_REJECTED,
        "CONSUMER_SUSPENDED": Reason.UPSTREAM_CREDENTIAL_REJECTED,
        "GCP_SUSPENDED": Reason.UPSTREAM_CREDENTIAL_REJECTED,
        # A good key that may not do this: rotating it would change nothing.
        "ACCESS_TOKEN_SCOPE_INSUFFICIENT": Reason.UPSTREAM_REJECTED_REQUEST,
        "IAM_PERMISSION_DENIED": Reason.UPSTREAM_REJECTED_REQUEST,
        # The project is not set up for the API, or policy keeps this place from it.
        "SERVICE_DISABLED": Reason.CONNECTOR_MISCONFIGURED,
        "SERVICE_NOT_VISIBLE": Reason.CONNECTOR_MISCONFIGURED,
        "USER_PROJECT_DENIED": Reason.CONNECTOR_MISCONFIGURED,
        "RESOURCE_PROJECT_INVALID": Reason.CONNECTOR_MISCONFIGURED,
        "LOCATION_POLICY_VIOLATED": Reason.CONNECTOR_MISCONFIGURED,
        "LOCATION_ORG_POLICY_VIOLATED": Reason.CONNECTOR_MISCONFIGURED,
        "LOCATION_TAX_POLICY_VIOLATED": Reason.CONNECTOR_MISCONFIGURED,
        "SECURITY_POLICY_VIOLATED": Reason.CONNECTOR_MISCONFIGURED,
        "RESOURCE_USAGE_RESTRICTION_VIOLATED": Reason.CONNECTOR_MISCONFIGURED,
        "OVERLOADED_CREDENTIALS": Reason.CONNECTOR_MISCONFIGURED,
        "BILLING_DISABLED": Reason.UPSTREAM_BILLING_EXHAUSTED,
    }
)
"""`reason` of an `ErrorInfo`: the finest statement, so it is looked at first."""

_QUOTA: Final = "RESOURCE_EXHAUSTED"

_BY_STATUS: Final[Mapping[str, Reason]] = MappingProxyType(
    {
        "INVALID_ARGUMENT": Reason.UPSTREAM_REJECTED_REQUEST,
        "FAILED_PRECONDITION": Reason.UPSTREAM_REJECTED_REQUEST,
        "OUT_OF_RANGE": Reason.UPSTREAM_REJECTED_REQUEST,
        "ALREADY_EXISTS": Reason.UPSTREAM_REJECTED_REQUEST,
        "UNIMPLEMENTED": Reason.UPSTREAM_REJECTED_REQUEST,
        "UNAUTHENTICATED": Reason.UPSTREAM_CREDENTIAL_REJECTED,
        "PERMISSION_DENIED": Reason.UPSTREAM_CREDENTIAL_REJECTED,
        "NOT_FOUND": Reason.MODEL_NOT_FOUND,
        _QUOTA: Reason.UPSTREAM_RATE_LIMITED,
        "CANCELLED": Reason.UPSTREAM_UNAVAILABLE,
        "UNKNOWN": Reason.UPSTREAM_UNAVAILABLE,
        "DEADLINE_EXCEEDED": Reason.UPSTREAM_UNAVAILABLE,
        "ABORTED": Reason.UPSTREAM_UNAVAILABLE,
        "INTERNAL": Reason.UPSTREAM_UNAVAILABLE,
        "UNAVAILABLE": Reason.UPSTREAM_UNAVAILABLE,
        "DATA_LOSS": Reason.UPSTREAM_UNAVAILABLE,
    }
)

_BY_WORDS: Final = (
    ("INVALID_ARGUMENT", "exceeds the maximum number of tokens", Reason.CONTEXT_LENGTH_EXCEEDED),
    ("INVALID_ARGUMENT", "api key not valid", Reason.UPSTREAM_CREDENTIAL_REJECTED),
    ("INVALID_ARGUMENT", "api key expired", Reason.UPSTREAM_CREDENTIAL_REJECTED),
    ("INVALID_ARGUMENT", "multiple authentication credentials", Reason.CONNECTOR_MISCONFIGURED),
    ("FAILED_PRECONDITION", "location is not supported", Reason.CONNECTOR_MISCONFIGURED),
    ("FAILED_PRECONDITION", "enable billing", Reason.CONNECTOR_MISCONFIGURED),
    # What the request names belongs to another project, or is gone; the key is good.
    ("PERMISSION_DENIED", "permission to access the file", Reason.UPSTREAM_REJECTED_REQUEST),
    ("PERMISSION_DENIED", "cachedcontent not found", Reason.UPSTREAM_REJECTED_REQUEST),
    ("PERMISSION_DENIED", "permission to access tuned model", Reason.MODEL_NOT_FOUND),
    (_QUOTA, "prepayment credits are depleted", Reason.UPSTREAM_BILLING_EXHAUSTED),
    (_QUOTA, "spending cap", Reason.UPSTREAM_BILLING_EXHAUSTED),
)
"""What only the text tells apart: within a status, a phrase of it in lower case."""

_NO_QUOTA_AT_ALL: Final = re.compile(r"\blimit: 0(?![.0-9])")
_DURATION: Final = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?)s")

_CODES: Final = _BY_REASON.keys() | _BY_STATUS.keys()
"""What may be repeated to callers as the provider's code."""


class _Fault(msgspec.Struct, frozen=True, kw_only=True):
    """What an error says, as far as it could be read. `code` is the HTTP status that it claims, or 0."""

    code: int
    status: str
    text: str
    reasons: tuple[str, ...]
    quotas: tuple[Mapping[str, Any], ...]
    retry_delay_s: float | None


def error_of(body: Any) -> Any:
    """The `error` member of a body, or of the first member of a list of bodies; None when there is none."""
    if isinstance(body, list) and body:
        body = body[0]
    return body.get("error") if isinstance(body, dict) else None


def failure(error: Any, *, http_status: int, retry_after_s: float | None = None) -> PatchbayError:
    """What an error object means.

    Args:
        error: the untrusted `error` member of a body, whatever it is.
        http_status: of the answer; below 300 for an error inside it.
        retry_after_s: what the headers say; the body's own word is finer.
    """
    fault = _fault_of(error)
    return upstream_error(
        _reason(fault, http_status),
        provider=PROVIDER,
        http_status=http_status,
        provider_code=next((name for name in (*fault.reasons, fault.status) if name in _CODES), ""),
        retry_after_s=retry_after_s if fault.retry_delay_s is None else fault.retry_delay_s,
    )


def _reason(fault: _Fault, http_status: int) -> Reason:
    for name in fault.reasons:
        if name in _BY_REASON:
            return _BY_REASON[name]
    # A quota of a day comes with a delay to retry after, as one of a minute does: the quota tells.
    if (fault.status == _QUOTA or 429 in (http_status, fault.code)) and _is_used_up(fault):
        return Reason.UPSTREAM_BILLING_EXHAUSTED
    if reason := _reason_of_words(fault):
        return reason
    if fault.status in _BY_STATUS:
        return _BY_STATUS[fault.status]
    if http_status in (404, 405):
        # Not the API's own answer: there is no such path below the connector's address.
        return Reason.CONNECTOR_MISCONFIGURED
    status = http_status if http_status >= 300 else fault.code
    return reason_of_status(status) if status else Reason.UPSTREAM_UNAVAILABLE


def _is_used_up(fault: _Fault) -> bool:
    """Whether a quota is gone for longer than a retry could wait, or was never granted."""
    return bool(_NO_QUOTA_AT_ALL.search(fault.text)) or any(
        "PerDay" in text_or_empty(quota.get("quotaId")) or quota.get("quotaValue") == "0" for quota in fault.quotas
    )


def _reason_of_words(fault: _Fault) -> Reason | None:
    words = fault.text.lower()
    return next(
        (reason for status, phrase, reason in _BY_WORDS if status == fault.status and phrase in words),
        None,
    )


def _fault_of(error: Any) -> _Fault:
    members: dict[str, Any] = error if isinstance(error, dict) else {}
    code = members.get("code")
    return _Fault(
        code=code if isinstance(code, int) and 300 <= code <= 599 else 0,
        status=text_or_empty(members.get("status")),
        text=text_or_empty(members.get("message")),
        reasons=tuple(text_or_empty(info.get("reason")) for info in _details(members, "ErrorInfo")),
        quotas=tuple(quota for failed in _details(members, "QuotaFailure") for quota in _objects(failed, "violations")),
        retry_delay_s=next((_seconds(info.get("retryDelay")) for info in _details(members, "RetryInfo")), None),
    )


def _details(error: Mapping[str, Any], kind: str) -> Iterator[dict[str, Any]]:
    """The details of one google.rpc type, such as `type.googleapis.com/google.rpc.RetryInfo`."""
    name = f"google.rpc.{kind}"
    return (one for one in _objects(error, "details") if text_or_empty(one.get("@type")).endswith(name))


def _objects(holder: Mapping[str, Any], name: str) -> Iterator[dict[str, Any]]:
    values = holder.get(name)
    return (value for value in values if isinstance(value, dict)) if isinstance(values, list) else iter(())


def _seconds(duration: Any) -> float | None:
    """A protobuf Duration as JSON has it, such as `17s` or `1.5s`; at most one day, None for anything else."""
    match = _DURATION.fullmatch(duration) if isinstance(duration, str) else None
    return min(float(match[1]), WAIT_S_MAX) if match else None
