"""What the failures of Bedrock mean: answers with an error status, exceptions within a stream, errors instead of one.

Source: botocore 1.44.5, service model `bedrock-runtime`, `botocore/parsers.py`, `botocore/retries/standard.py`; texts
that only words tell apart: strands-agents/harness-sdk issue 1241, langchain-ai/langchain-aws issues 140 and 447,
pydantic/pydantic-ai issue 4001, anomalyco/opencode issue 47073 (read 2026-11-21).
"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from patchbay_server.adapters import json_body
from patchbay_server.adapters.failures import reason_of_status, upstream_error
from patchbay_server.adapters.faults import ACCEPTED
from patchbay_server.adapters.json_body import text_or_empty
from patchbay_server.adapters.waits import retry_after_s
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.wire import eventstream
from patchbay_server.wire.http import Frame, HttpAnswer

PROVIDER: Final = "bedrock"

_THROTTLED: Final = frozenset(
    {
        "BandwidthLimitExceeded",
        "EC2ThrottledException",
        "LimitExceededException",
        "PriorRequestNotComplete",
        "ProvisionedThroughputExceededException",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "SlowDown",
        "ThrottledException",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
        "TransactionInProgressException",
    }
)
"""A rate limit at any status; Bedrock sends it with 400 as well as with 429."""

_BY_CODE: Final[Mapping[str, Reason]] = MappingProxyType(
    {
        **dict.fromkeys(_THROTTLED, Reason.UPSTREAM_RATE_LIMITED),
        "ExpiredToken": Reason.UPSTREAM_CREDENTIAL_REJECTED,
        "ExpiredTokenException": Reason.UPSTREAM_CREDENTIAL_REJECTED,
        "InvalidClientTokenId": Reason.UPSTREAM_CREDENTIAL_REJECTED,
        "MissingAuthenticationTokenException": Reason.UPSTREAM_CREDENTIAL_REJECTED,
        "UnrecognizedClientException": Reason.UPSTREAM_CREDENTIAL_REJECTED,
        "ServiceQuotaExceededException": Reason.UPSTREAM_BILLING_EXHAUSTED,
        "InternalFailure": Reason.UPSTREAM_UNAVAILABLE,
        "InternalServerException": Reason.UPSTREAM_UNAVAILABLE,
        "ModelNotReadyException": Reason.UPSTREAM_UNAVAILABLE,
        "ModelTimeoutException": Reason.UPSTREAM_UNAVAILABLE,
        "ServiceUnavailable": Reason.UPSTREAM_UNAVAILABLE,
        "ServiceUnavailableException": Reason.UPSTREAM_UNAVAILABLE,
        "ResourceNotFoundException": Reason.MODEL_NOT_FOUND,
        # There is no such API at the connector's address.
        "UnknownOperationException": Reason.CONNECTOR_MISCONFIGURED,
        "ConflictException": Reason.UPSTREAM_REJECTED_REQUEST,
        "IncompleteSignatureException": Reason.UPSTREAM_REJECTED_REQUEST,
        "SerializationException": Reason.UPSTREAM_REJECTED_REQUEST,
    }
)

_DENIED: Final = "AccessDeniedException"
_INVALID: Final = "ValidationException"
_WRONG_SIGNATURE: Final = frozenset({"InvalidSignatureException", "SignatureDoesNotMatch"})
_MODEL_FAILED: Final = frozenset({"ModelErrorException", "ModelStreamErrorException"})

_CODES: Final = frozenset(_BY_CODE) | _WRONG_SIGNATURE | _MODEL_FAILED | {_DENIED, _INVALID}
"""What may be repeated to callers as the provider's code."""

_DENIALS: Final[tuple[tuple[str, Reason], ...]] = (
    ("invalid_payment_instrument", Reason.UPSTREAM_BILLING_EXHAUSTED),
    # Reading about models is another right than asking them: its lack says nothing of the credential.
    ("perform: bedrock:list", Reason.UPSTREAM_REJECTED_REQUEST),
    ("perform: bedrock:get", Reason.UPSTREAM_REJECTED_REQUEST),
    ("perform: bedrock:counttokens", Reason.UPSTREAM_REJECTED_REQUEST),
    ("model", Reason.MODEL_NOT_FOUND),
    ("not authorized to", Reason.CONNECTOR_MISCONFIGURED),
)
"""What the text of a denial tells apart. A good credential that lacks a right, or access to a model, stays good."""

_INVALIDITIES: Final[tuple[tuple[str, Reason], ...]] = (
    ("input is too long", Reason.CONTEXT_LENGTH_EXCEEDED),
    ("input tokens exceeded", Reason.CONTEXT_LENGTH_EXCEEDED),
    ("too many input tokens", Reason.CONTEXT_LENGTH_EXCEEDED),
    ("prompt is too long", Reason.CONTEXT_LENGTH_EXCEEDED),
    ("exceed context limit", Reason.CONTEXT_LENGTH_EXCEEDED),
    ("maximum context length", Reason.CONTEXT_LENGTH_EXCEEDED),
    ("exceeds the maximum number of tokens", Reason.CONTEXT_LENGTH_EXCEEDED),
    ("model identifier is invalid", Reason.MODEL_NOT_FOUND),
    # The model is offered through an inference profile only.
    ("with on-demand throughput", Reason.MODEL_NOT_FOUND),
    ("end of its life", Reason.MODEL_NOT_FOUND),
    ("blocked by our content filters", Reason.CONTENT_POLICY_VIOLATION),
    ("blocked by content filtering policy", Reason.CONTENT_POLICY_VIOLATION),
    ("too many tokens, please wait", Reason.UPSTREAM_RATE_LIMITED),
)
"""What only the text of a validation failure tells apart."""

_LACKS: Final = re.compile(r"(?:doesn't|does not|isn't|is not) support|unsupported|not supported|unknown parameter")
_FIELDS: Final[tuple[tuple[str, str], ...]] = (
    ("toolchoice", "tool_choice"),
    ("tool", "tools"),
    ("stopsequences", "config.stop_sequences"),
    ("stop sequences", "config.stop_sequences"),
    ("temperature", "config.temperature"),
    ("topp", "config.top_p"),
    ("top_p", "config.top_p"),
    ("top_k", "config.top_k"),
    ("maxtokens", "config.max_output_tokens"),
    ("effort", "config.reasoning.effort"),
    ("thinking", "config.reasoning"),
    ("reasoning", "config.reasoning"),
    ("textformat", "response_format"),
    ("outputconfig", "response_format"),
    ("additionalmodelrequestfields", "provider_options_json"),
    ("system", "messages"),
    ("document", "messages"),
    ("image", "messages"),
    ("content", "messages"),
)
"""What the provider calls a thing, and the request field that it comes from; longer words first."""


def explain(answer: HttpAnswer) -> PatchbayError:
    """What an answer with an error status means."""
    body = json_body.object_or_empty(answer.body)
    return failure(
        answer.headers.get("x-amzn-errortype") or body.get("__type") or body.get("code"),
        body,
        http_status=answer.status,
        request_id=answer.headers.get("x-amzn-requestid", ""),
        wait_s=retry_after_s(answer.headers, answer.received_at),
    )


def failure(
    name: Any, body: Mapping[str, Any], *, http_status: int, request_id: object = "", wait_s: float | None = None
) -> PatchbayError:
    """What a failure means: its code first, its words where a code says too little, the status where there is none.

    Args:
        name: the code, untrusted, with or without the namespace before it and the address after it; the first letter
            may be small, as within a stream.
        body: the untrusted members beside it.
        http_status: of the answer; below 300 for a failure inside it.
        wait_s: what the provider asked to wait, in seconds.
    """
    code = _plain_code(name)
    words = text_or_empty(body.get("message")) or text_or_empty(body.get("Message"))
    reason = _reason(code, words.lower(), body, http_status)
    return upstream_error(
        reason,
        provider=PROVIDER,
        http_status=http_status,
        provider_code=code if code in _CODES else "",
        request_id=request_id,
        retry_after_s=wait_s,
        field=_field(words.lower()) if reason is Reason.FEATURE_UNSUPPORTED else "",
    )


def failure_of(frame: Frame) -> PatchbayError | None:
    """What a message of a stream means that is a failure; None for an event."""
    if frame.event.startswith(eventstream.EXCEPTION):
        body = json_body.object_or_empty(frame.data)
        return failure(frame.event.removeprefix(eventstream.EXCEPTION), body, http_status=ACCEPTED)
    if frame.event.startswith(eventstream.ERROR):
        words = frame.data.decode(errors="replace")
        return failure(frame.event.removeprefix(eventstream.ERROR), {"message": words}, http_status=ACCEPTED)
    return None


def is_error_body(body: Mapping[str, Any]) -> bool:
    """Whether the members of a whole answer with a good status are those of an error."""
    output = body.get("Output")
    return "__type" in body or isinstance(body.get("message", body.get("Message")), str) or _has_type(output)


def inner_error(body: Mapping[str, Any]) -> PatchbayError:
    """What an error body in the place of an answer means."""
    output = body.get("Output")
    name = output.get("__type") if isinstance(output, dict) else body.get("__type") or body.get("code")
    return failure(name, body, http_status=ACCEPTED)


def _has_type(value: Any) -> bool:
    return isinstance(value, dict) and "__type" in value


def _plain_code(name: Any) -> str:
    code = text_or_empty(name).partition(":")[0].rpartition("#")[2].strip()
    return code[:1].upper() + code[1:]


def _reason(code: str, words: str, body: Mapping[str, Any], http_status: int) -> Reason:
    if code in _BY_CODE:
        return _BY_CODE[code]
    if code in _WRONG_SIGNATURE:
        # The clocks disagree, which is nobody's key.
        skewed = "expired" in words or "not yet current" in words
        return Reason.UPSTREAM_UNAVAILABLE if skewed else Reason.UPSTREAM_CREDENTIAL_REJECTED
    if code in _MODEL_FAILED or (http_status == 424 and not code):
        original = text_or_empty(body.get("originalMessage")).lower()
        return _reason_of_model(words + original, body.get("originalStatusCode"))
    if code == _DENIED or (http_status == 403 and not code):
        return _spoken(_DENIALS, words) or Reason.UPSTREAM_CREDENTIAL_REJECTED
    if code == _INVALID or (http_status == 400 and not code):
        return _reason_of_invalidity(words)
    if not code and http_status < 300 and (reason := _spoken(_INVALIDITIES, words)):
        return reason
    if http_status == 404 and not code and ("model" in words or "profile" in words):
        return Reason.MODEL_NOT_FOUND
    if http_status in (404, 405) and not code:
        # Not the API's own answer: there is no such path below the connector's address.
        return Reason.CONNECTOR_MISCONFIGURED
    return reason_of_status(http_status) if http_status >= 300 else Reason.UPSTREAM_UNAVAILABLE


def _reason_of_invalidity(words: str) -> Reason:
    if reason := _spoken(_INVALIDITIES, words):
        return reason
    return Reason.FEATURE_UNSUPPORTED if _LACKS.search(words) else Reason.UPSTREAM_REJECTED_REQUEST


def _reason_of_model(words: str, status: Any) -> Reason:
    """What the failure of the model behind the service means, by the status that it gave there."""
    match status:
        case 429:
            return Reason.UPSTREAM_RATE_LIMITED
        case 400 | 413 | 422:
            return _reason_of_invalidity(words)
        case _:
            # Also a refusal there: between the service and the model, no credential of the caller is in use.
            return Reason.UPSTREAM_UNAVAILABLE


def _spoken(table: tuple[tuple[str, Reason], ...], words: str) -> Reason | None:
    return next((reason for phrase, reason in table if phrase in words), None)


def _field(words: str) -> str:
    return next((field for word, field in _FIELDS if word in words), "")
