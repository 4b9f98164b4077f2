"""What a provider's refusal becomes: one error with a message of ours, and not a word of the provider's body.

Each dialect decides the reason from its own codes; the message, the bounds of what is repeated and the reading of a
bare status are the same for all.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from patchbay_server.adapters.upstream_ids import plain
from patchbay_server.errors import PatchbayError, Reason, UpstreamFailure

_MESSAGES: Final[Mapping[Reason, str]] = MappingProxyType(
    {
        Reason.UPSTREAM_CREDENTIAL_REJECTED: "the provider refused the stored credential; rotate it",
        Reason.UPSTREAM_BILLING_EXHAUSTED: "the provider account's credit or spending limit is used up; raise it there",
        Reason.UPSTREAM_RATE_LIMITED: "the provider limits the rate of this credential; try again later",
        Reason.UPSTREAM_UNAVAILABLE: "the provider cannot answer at the moment; try again later",
        Reason.UPSTREAM_TIMEOUT: "the provider took too long; try again later",
        Reason.UPSTREAM_REJECTED_REQUEST: "the provider refused the request as invalid; change it before trying again",
        Reason.CONTEXT_LENGTH_EXCEEDED: "the prompt is longer than the model takes; shorten it",
        Reason.CONTENT_POLICY_VIOLATION: "the provider's content policy refused the request; change its content",
        Reason.MODEL_NOT_FOUND: "the provider does not offer this model to this credential; choose another",
        Reason.FEATURE_UNSUPPORTED: "the provider or model cannot do what the request asks for",
        Reason.CONNECTOR_MISCONFIGURED: "the connector's address or account settings do not work; correct them",
        Reason.UPSTREAM_MALFORMED_RESPONSE: "the provider sent an answer that cannot be understood",
    }
)


def upstream_error(
    reason: Reason,
    *,
    provider: str,
    http_status: int = 0,
    provider_code: str = "",
    request_id: object = "",
    retry_after_s: float | None = None,
    field: str = "",
) -> PatchbayError:
    """The error of a provider's refusal, in our words.

    Args:
        http_status: 0 when no status was received.
        provider_code: a code from the dialect's allow-list, or empty.
        request_id: the provider's id of the request, untrusted: anything that does not look like one is left out.
        retry_after_s: what the provider said; it is passed on only where trying again can help.
        field: the request field at fault, in our words, where the provider's answer names one.
    """
    may_retry = reason in (Reason.UPSTREAM_RATE_LIMITED, Reason.UPSTREAM_UNAVAILABLE)
    return PatchbayError(
        reason,
        _MESSAGES[reason],
        field=field,
        retry_after_s=retry_after_s if may_retry else None,
        upstream=UpstreamFailure(
            provider=provider,
            http_status=http_status,
            provider_code=provider_code,
            upstream_request_id=plain(request_id),
        ),
    )


def reason_of_status(status: int) -> Reason:
    """What a status of 300 or above means where nothing else is known, as with a proxy's page instead of an error."""
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    if status >= 500:
        return Reason.UPSTREAM_UNAVAILABLE
    # Redirects are not followed: an address that redirects is not the API's.
    return Reason.UPSTREAM_REJECTED_REQUEST if status >= 400 else Reason.CONNECTOR_MISCONFIGURED


_BY_STATUS: Final[Mapping[int, Reason]] = MappingProxyType(
    {
        401: Reason.UPSTREAM_CREDENTIAL_REJECTED,
        402: Reason.UPSTREAM_BILLING_EXHAUSTED,
        403: Reason.UPSTREAM_CREDENTIAL_REJECTED,
        404: Reason.MODEL_NOT_FOUND,
        408: Reason.UPSTREAM_UNAVAILABLE,
        409: Reason.UPSTREAM_UNAVAILABLE,
        425: Reason.UPSTREAM_UNAVAILABLE,
        429: Reason.UPSTREAM_RATE_LIMITED,
    }
)
