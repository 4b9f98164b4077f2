"""What the refusals of OpenAI and its relatives mean: structure first, status second, text where nothing else tells.

Source: OpenAI's error guide; the error types of openai 3.52.0; the error bodies of vLLM, llama.cpp, Ollama, LM Studio
and Mistral (read 2026-11-20).
"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import msgspec

from patchbay_server.adapters.failures import reason_of_status, upstream_error
from patchbay_server.adapters.json_body import decode
from patchbay_server.adapters.waits import retry_after_s, told_in_words_s
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.wire.http import HttpAnswer

_BY_KIND: Final = (
    # A quota that is used up comes with status 429, so it is told apart before rate limits.
    (
        Reason.UPSTREAM_BILLING_EXHAUSTED,
        frozenset(
            {
                "insufficient_quota",
                "credit_balance_exhausted",
                "organization_spend_limit_exceeded",
                "project_spend_limit_exceeded",
                "organization_usage_limit_exceeded",
                "billing_hard_limit_reached",
                "billing_not_active",
                "payment_required",
            }
        ),
    ),
    # A good key or token that may not do this: rotating it would change nothing.
    (
        Reason.UPSTREAM_REJECTED_REQUEST,
        frozenset({"missing_scope", "insufficient_permissions", "PermissionDenied"}),
    ),
    (
        Reason.UPSTREAM_CREDENTIAL_REJECTED,
        frozenset({"invalid_api_key", "invalid_client", "invalid_organization", "account_deactivated"}),
    ),
    (
        Reason.CONTEXT_LENGTH_EXCEEDED,
        frozenset({"context_length_exceeded", "exceed_context_size_error"}),
    ),
    (Reason.MODEL_NOT_FOUND, frozenset({"model_not_found", "DeploymentNotFound", "invalid_model"})),
    (
        Reason.FEATURE_UNSUPPORTED,
        frozenset(
            {
                "unsupported_parameter",
                "unsupported_value",
                "unknown_parameter",
                "extra_forbidden",
                "OperationNotSupported",
            }
        ),
    ),
    (
        Reason.CONTENT_POLICY_VIOLATION,
        frozenset(
            {
                "content_filter",
                "content_policy_violation",
                "image_content_policy_violation",
                "misalignment_policy_violation",
                "bio_policy",
                "refusal",
                "ResponsibleAIPolicyViolation",
            }
        ),
    ),
    (
        Reason.UPSTREAM_RATE_LIMITED,
        frozenset({"rate_limit_exceeded", "rate_limit_error", "slow_down", "too_many_requests"}),
    ),
    (
        Reason.UPSTREAM_UNAVAILABLE,
        frozenset(
            {
                "server_is_overloaded",
                "service_unavailable_error",
                "overloaded_error",
                "provider_unavailable",
                "provider_overloaded",
                "server_error",
                "InternalServerError",
                "capacity_exceeded",
            }
        ),
    ),
)
"""What a code or type means, in the order in which they are looked for: an answer may carry several."""

_THE_REQUEST: Final = frozenset(
    {
        "invalid_request_error",
        "invalid_prompt",
        "invalid_image",
        "invalid_image_format",
        "invalid_base64_image",
        "invalid_image_url",
        "invalid_image_mode",
        "image_too_large",
        "image_too_small",
        "image_parse_error",
        "image_file_too_large",
        "image_file_not_found",
        "unsupported_image_media_type",
        "empty_image_file",
        "failed_to_download_image",
        "data_residency_mismatch",
        "BadRequestError",
        "NotFoundError",
    }
)
"""Codes and types that blame the request. They decide only where no status does: a wrong key wears one of them too."""

_KNOWN: Final = frozenset().union(*(kinds for _, kinds in _BY_KIND)) | _THE_REQUEST
"""The only words of a provider that leave the gateway."""

_TOO_LONG: Final = re.compile(
    r"maximum (?:context|prompt) length|context (?:size|length|window)|prompt is too long|too large for model with",
    re.IGNORECASE,
)
_BY_TEXT: Final = tuple(
    (statuses, re.compile(text, re.IGNORECASE), reason)
    for statuses, text, reason in (
        # A good key that may not do this: rotating it would change nothing.
        ((401, 403), r"missing scopes", Reason.UPSTREAM_REJECTED_REQUEST),
        # What a model or a local server lacks, or was not started with. A path that is missing (`Invalid URL (POST
        # /v1/responses)`) is told otherwise.
        ((400, 404), r"(?:in|use) /?v1/responses\b", Reason.FEATURE_UNSUPPORTED),
        (
            (400, 500),
            r"does not support (?:tools?|functions?|thinking|reasoning|images?|vision|audio)\b"
            r"|only supported by certain models|requires? --(?:jinja|enable-auto-tool-choice)|not a multimodal model",
            Reason.FEATURE_UNSUPPORTED,
        ),
        # llama.cpp blames itself (500 `server_error`) for a model without eyes or ears; trying again changes nothing.
        ((), r"\b(?:image|audio) input is not supported", Reason.FEATURE_UNSUPPORTED),
        # Azure: the resource's network rules, an unknown version, and the quota of the API management in front of it.
        ((403,), r"virtual network|firewall rules|private endpoint", Reason.CONNECTOR_MISCONFIGURED),
        ((400, 404), r"api version not supported", Reason.CONNECTOR_MISCONFIGURED),
        ((403,), r"out of (?:call volume|bandwidth) quota", Reason.UPSTREAM_BILLING_EXHAUSTED),
        # OpenRouter: a limit of the key, and no route for the fields, for the account's settings, for the model.
        ((402, 403), r"key limit exceeded", Reason.UPSTREAM_BILLING_EXHAUSTED),
        ((404,), r"no endpoints found that (?:support|can handle)", Reason.FEATURE_UNSUPPORTED),
        ((404,), r"no allowed providers|data policy|privacy|guardrail", Reason.CONNECTOR_MISCONFIGURED),
        ((404,), r"no endpoints found for", Reason.MODEL_NOT_FOUND),
        ((400,), r"not a valid model id", Reason.MODEL_NOT_FOUND),
        # xAI tells a wrong key, an unknown model and a knob too many by status 400, a lack of money by 403 and 429.
        ((400,), r"incorrect api key", Reason.UPSTREAM_CREDENTIAL_REJECTED),
        ((400,), r"model not found", Reason.MODEL_NOT_FOUND),
        ((400,), r"does not support parameter|argument not supported", Reason.FEATURE_UNSUPPORTED),
        ((403, 429), r"\bany credits|all available credits|spending limit", Reason.UPSTREAM_BILLING_EXHAUSTED),
        ((403,), r"violates (?:our )?usage guidelines", Reason.CONTENT_POLICY_VIOLATION),
        ((403,), r"not have access to (?:the )?model", Reason.MODEL_NOT_FOUND),
    )
)
"""Texts, with the statuses that they come with (none: any), of refusals whose status and codes would mislead."""
_WAIT: Final = re.compile(r"(?:try again in|retry after|retry in) (?P<wait>[0-9][0-9a-z. ]{0,30})", re.IGNORECASE)
"""Source: messages of OpenAI, Groq, Azure and of Google's compatible surface with status 429 (read 2026-11-20)."""
_AT_CAPACITY: Final = 498
"""A status of Groq's own: its flexible tier has no room. Source: Groq's page "Flex Processing" (read 2026-11-27)."""
_NO_SUCH_MODEL: Final = re.compile(r"\bmodel\b", re.IGNORECASE)
_HEAD: Final = re.compile(r"(tools)\W*(\d+)|([a-z_]+)(?:\.([a-z_]+))?")

_FIELDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "model": "model",
        "messages": "messages",
        "input": "messages",
        "instructions": "messages",
        "max_tokens": "config.max_output_tokens",
        "max_completion_tokens": "config.max_output_tokens",
        "max_output_tokens": "config.max_output_tokens",
        "temperature": "config.temperature",
        "top_p": "config.top_p",
        "top_k": "config.top_k",
        "stop": "config.stop_sequences",
        "seed": "config.seed",
        "random_seed": "config.seed",
        "frequency_penalty": "config.frequency_penalty",
        "presence_penalty": "config.presence_penalty",
        "reasoning_effort": "config.reasoning.effort",
        "reasoning": "config.reasoning",
        "reasoning.effort": "config.reasoning.effort",
        "reasoning.summary": "config.reasoning.include_text",
        "parallel_tool_calls": "config.parallel_tool_calls",
        "tools": "tools",
        "tool_choice": "tool_choice",
        "response_format": "response_format",
        "text": "response_format",
        **dict.fromkeys(("stream", "stream_options", "store", "include"), ""),
    }
)
"""Their field -> ours; empty for those that no caller sets."""


class _Fault(msgspec.Struct, frozen=True, kw_only=True):
    """What an error body says, as far as it could be read.

    `status` is the one that it claims, or 0. `of_another` is set where it passes on what a provider behind it said.
    """

    kinds: tuple[str, ...] = ()
    param: str = ""
    text: str = ""
    status: int = 0
    of_another: bool = False


def explain(answer: HttpAnswer, provider: str) -> PatchbayError:
    """What an answer with an error status means."""
    try:
        fault = _fault_of(decode(answer.body))
    except ValueError:
        fault = _Fault()
    return _error(
        fault,
        answer.status,
        provider,
        http_status=answer.status,
        request_id=answer.headers.get("x-request-id") or answer.headers.get("apim-request-id", ""),
        wait_s=_wait_s(fault, retry_after_s(answer.headers, answer.received_at)),
    )


def explain_inside(body: Any, provider: str) -> PatchbayError:
    """What an error inside an answer with status 200 means, whole or in mid-stream.

    Args:
        body: the decoded object that holds the error.
    """
    fault = _fault_of(body)
    return _error(fault, fault.status, provider, http_status=200, wait_s=_wait_s(fault, None))


def _wait_s(fault: _Fault, told_s: float | None) -> float | None:
    """How long to wait: what the headers told, else what the error says in words."""
    if told_s is not None:
        return told_s
    found = _WAIT.search(fault.text)
    return told_in_words_s(found["wait"]) if found else None


def is_error(kind: Any, error: Any) -> bool:
    """Whether an object in a place where an answer is expected is an error instead, by its `object` and its `error`."""
    return bool(error) or (isinstance(kind, str) and kind.lower() == "error")


def _error(
    fault: _Fault, status: int, provider: str, *, http_status: int, request_id: str = "", wait_s: float | None = None
) -> PatchbayError:
    reason = _reason(fault, status)
    if fault.of_another and reason is Reason.UPSTREAM_CREDENTIAL_REJECTED:
        # Not the connector's key was refused but one that the account keeps for the provider behind.
        reason = Reason.CONNECTOR_MISCONFIGURED
    at_fault = reason in (Reason.FEATURE_UNSUPPORTED, Reason.UPSTREAM_REJECTED_REQUEST)
    return upstream_error(
        reason,
        provider=provider,
        http_status=http_status,
        provider_code=next((kind for kind in fault.kinds if kind in _KNOWN), ""),
        request_id=request_id,
        retry_after_s=wait_s,
        field=_our_field(fault.param) if at_fault else "",
    )


def _reason(fault: _Fault, status: int) -> Reason:
    for statuses, text, reason in _BY_TEXT:
        if (not statuses or status in statuses) and text.search(fault.text):
            return reason
    for reason, kinds in _BY_KIND:
        if kinds.intersection(fault.kinds):
            return reason
    if status in (0, 400, 413, 422) and _TOO_LONG.search(fault.text):
        return Reason.CONTEXT_LENGTH_EXCEEDED
    if status in (404, 405):
        return _reason_of_not_found(fault)
    if status == _AT_CAPACITY:
        return Reason.UPSTREAM_UNAVAILABLE
    if status:
        return reason_of_status(status)
    # Inside an answer that had begun, an error that says nothing of itself is the server's.
    at_fault = _THE_REQUEST.intersection(fault.kinds)
    return Reason.UPSTREAM_REJECTED_REQUEST if at_fault else Reason.UPSTREAM_UNAVAILABLE


def _reason_of_not_found(fault: _Fault) -> Reason:
    if fault.param == "model" or _NO_SUCH_MODEL.search(fault.text):
        return Reason.MODEL_NOT_FOUND
    if fault.param:
        return Reason.UPSTREAM_REJECTED_REQUEST
    # Nothing of the API's own: there is no such path below the connector's address.
    return Reason.CONNECTOR_MISCONFIGURED


def _our_field(param: str) -> str:
    """The request field that the provider's `param` stands for; what is not ours came with the caller's options."""
    head = _HEAD.match(param)
    if head is None:
        return ""
    tools, index, name, member = head.groups()
    if tools:
        return f"tools[{index}]"
    return _FIELDS.get(f"{name}.{member}") or _FIELDS.get(name, "provider_options_json")


def _fault_of(body: Any) -> _Fault:
    """Reads every shape that is in use: an object or text under `error`, its members at the top, validation details."""
    if isinstance(body, list) and body:
        body = body[0]
    if not isinstance(body, dict):
        return _Fault()
    error = body.get("error")
    if isinstance(error, dict):
        return _fault_of_members(error)
    if isinstance(error, str):
        return _fault_of_members({**body, "message": error, "code": body.get("code") or error})
    # Mistral puts what its validation says under `message`.
    message = body.get("message")
    for details in (body.get("detail"), message.get("detail") if isinstance(message, dict) else message):
        if isinstance(details, list):
            return _fault_of_validation(details)
    return _fault_of_members(body)


def _fault_of_members(error: Mapping[str, Any]) -> _Fault:
    code = error.get("code")
    more = [error.get(name) for name in ("metadata", "innererror")]
    kinds = [code, error.get("type")]
    kinds += [inner.get(name) for inner in more if isinstance(inner, dict) for name in ("error_type", "code")]
    metadata = error.get("metadata")
    if not isinstance(metadata, dict):
        metadata = {}
    if "flagged_input" in metadata:
        # OpenRouter's moderation: a 403 that is not about the key.
        kinds.append("content_policy_violation")
    statuses = (code, error.get("statusCode"), error.get("status_code"), error.get("status"))
    return _Fault(
        kinds=tuple(kind for kind in kinds if isinstance(kind, str)),
        param=_text(error.get("param")),
        text=_text(error.get("message")) or _text(error.get("detail")),
        of_another=bool(metadata.get("provider_name")),
        status=next((status for value in statuses if (status := _status(value))), 0),
    )


def _status(value: Any) -> int:
    """An HTTP status, as a number or, with Azure, as text; 0 for anything else."""
    if isinstance(value, str) and len(value) == len("429") and value.isdecimal():
        value = int(value)
    return value if isinstance(value, int) and 400 <= value <= 599 else 0


def _fault_of_validation(details: list[Any]) -> _Fault:
    """`{"detail": [{"type", "loc": ["body", "seed"], "msg"}]}`, as servers built on FastAPI answer."""
    first = details[0] if details and isinstance(details[0], dict) else {}
    places = first.get("loc")
    path = [str(place) for place in places if place != "body"] if isinstance(places, list) else []
    kind = first.get("type")
    return _Fault(kinds=(kind,) if isinstance(kind, str) else (), param=".".join(path), text=_text(first.get("msg")))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
