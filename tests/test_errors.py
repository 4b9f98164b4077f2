"""The one table of failures."""

import pytest

from patchbay.v1 import error_pb2
from patchbay_server.errors import (
    RULES,
    Code,
    FallBack,
    FieldViolation,
    PatchbayError,
    Reason,
)

NEVER, BEFORE = FallBack.NEVER, FallBack.BEFORE_OUTPUT

CONTRACT: dict[Reason, tuple[Code, FallBack]] = {
    Reason.CALLER_UNAUTHENTICATED: (Code.UNAUTHENTICATED, NEVER),
    Reason.CALLER_NOT_AUTHORIZED: (Code.PERMISSION_DENIED, NEVER),
    Reason.POLICY_DENIED: (Code.PERMISSION_DENIED, NEVER),
    Reason.INVALID_REQUEST: (Code.INVALID_ARGUMENT, NEVER),
    Reason.FEATURE_UNSUPPORTED: (Code.INVALID_ARGUMENT, NEVER),
    Reason.CONTEXT_LENGTH_EXCEEDED: (Code.INVALID_ARGUMENT, NEVER),
    Reason.UPSTREAM_REJECTED_REQUEST: (Code.INVALID_ARGUMENT, NEVER),
    Reason.CONTENT_POLICY_VIOLATION: (Code.INVALID_ARGUMENT, NEVER),
    Reason.REQUEST_ID_REUSED: (Code.INVALID_ARGUMENT, NEVER),
    Reason.CONNECTOR_NOT_FOUND: (Code.NOT_FOUND, NEVER),
    Reason.RESOURCE_NOT_FOUND: (Code.NOT_FOUND, NEVER),
    Reason.MODEL_NOT_FOUND: (Code.NOT_FOUND, NEVER),
    Reason.ALREADY_EXISTS: (Code.ALREADY_EXISTS, NEVER),
    Reason.CONNECTOR_NOT_CONFIGURED: (Code.FAILED_PRECONDITION, NEVER),
    Reason.CONNECTOR_INACTIVE: (Code.FAILED_PRECONDITION, NEVER),
    Reason.CONNECTOR_MISCONFIGURED: (Code.FAILED_PRECONDITION, NEVER),
    Reason.UPSTREAM_CREDENTIAL_REJECTED: (Code.FAILED_PRECONDITION, BEFORE),
    Reason.UPSTREAM_BILLING_EXHAUSTED: (Code.FAILED_PRECONDITION, BEFORE),
    Reason.NO_CANDIDATE: (Code.FAILED_PRECONDITION, NEVER),
    Reason.CAP_REACHED: (Code.RESOURCE_EXHAUSTED, NEVER),
    Reason.RATE_LIMITED: (Code.RESOURCE_EXHAUSTED, NEVER),
    Reason.UPSTREAM_RATE_LIMITED: (Code.RESOURCE_EXHAUSTED, BEFORE),
    Reason.UPSTREAM_UNAVAILABLE: (Code.UNAVAILABLE, BEFORE),
    Reason.UPSTREAM_EMPTY_STREAM: (Code.UNAVAILABLE, BEFORE),
    Reason.UPSTREAM_STREAM_BROKEN: (Code.UNAVAILABLE, NEVER),
    Reason.UPSTREAM_TRUNCATED: (Code.UNAVAILABLE, BEFORE),
    Reason.UPSTREAM_TIMEOUT: (Code.DEADLINE_EXCEEDED, BEFORE),
    Reason.DEADLINE_EXCEEDED: (Code.DEADLINE_EXCEEDED, NEVER),
    Reason.ALL_CANDIDATES_FAILED: (Code.UNAVAILABLE, NEVER),
    Reason.OVERLOADED: (Code.UNAVAILABLE, NEVER),
    Reason.DRAINING: (Code.UNAVAILABLE, NEVER),
    Reason.UPSTREAM_MALFORMED_RESPONSE: (Code.INTERNAL, BEFORE),
    Reason.STREAMING_UNSUPPORTED: (Code.UNIMPLEMENTED, NEVER),
    Reason.NOT_IMPLEMENTED: (Code.UNIMPLEMENTED, NEVER),
    Reason.REQUEST_IN_PROGRESS: (Code.ABORTED, NEVER),
    Reason.ETAG_MISMATCH: (Code.ABORTED, NEVER),
    Reason.CREDENTIAL_UNREADABLE: (Code.INTERNAL, NEVER),
    Reason.DEPENDENCY_UNAVAILABLE: (Code.UNAVAILABLE, NEVER),
    Reason.CANCELLED: (Code.CANCELLED, NEVER),
    Reason.INTERNAL: (Code.INTERNAL, NEVER),
}
"""What the contract promises, spelled out a second time: a change of the table has to be meant."""


def test_every_reason_has_a_rule_and_is_in_the_contract() -> None:
    assert set(RULES) == set(Reason) == set(CONTRACT)


@pytest.mark.parametrize("reason", Reason)
def test_each_reason_means_what_the_contract_promises(reason: Reason) -> None:
    assert (RULES[reason].code, RULES[reason].fall_back) == CONTRACT[reason]


def test_every_reason_is_a_value_of_the_proto_and_the_other_way_round() -> None:
    prefix = "ERROR_REASON_"
    values = {name.removeprefix(prefix) for name in error_pb2.ErrorReason.DESCRIPTOR.values_by_name}
    assert values - {"UNSPECIFIED"} == {reason.value for reason in Reason}
    assert all(reason.name == reason.value for reason in Reason)


HTTP_FAMILY: dict[Code, set[int]] = {
    Code.INVALID_ARGUMENT: {400, 422},
    Code.UNAUTHENTICATED: {401},
    Code.PERMISSION_DENIED: {403},
    Code.NOT_FOUND: {404},
    Code.ALREADY_EXISTS: {409},
    Code.FAILED_PRECONDITION: {402, 409, 424},
    Code.ABORTED: {409, 412},
    Code.RESOURCE_EXHAUSTED: {429},
    Code.UNIMPLEMENTED: {501},
    Code.UNAVAILABLE: {502, 503},
    Code.DEADLINE_EXCEEDED: {504},
    Code.CANCELLED: {499},
    Code.INTERNAL: {500, 502},
}


@pytest.mark.parametrize("reason", Reason)
def test_the_http_status_goes_with_the_code(reason: Reason) -> None:
    assert RULES[reason].http in HTTP_FAMILY[RULES[reason].code]


def test_a_refused_upstream_key_is_not_told_as_a_refused_caller() -> None:
    assert RULES[Reason.UPSTREAM_CREDENTIAL_REJECTED].code is not Code.UNAUTHENTICATED
    assert RULES[Reason.UPSTREAM_CREDENTIAL_REJECTED].http != 401


def test_only_failures_of_providers_fall_back() -> None:
    falling = {reason for reason, rule in RULES.items() if rule.fall_back is not NEVER}
    assert all(reason.value.startswith("UPSTREAM_") for reason in falling)


def test_an_error_shows_its_reason_and_its_message() -> None:
    error = PatchbayError(Reason.INVALID_REQUEST, "name a model", field="model")
    assert str(error) == "name a model"
    assert repr(error) == "PatchbayError(INVALID_REQUEST, 'name a model')"
    assert error.rule is RULES[Reason.INVALID_REQUEST]


def test_one_field_at_fault_is_short_for_one_violation() -> None:
    error = PatchbayError(Reason.INVALID_REQUEST, "name a model", field="model")
    assert error.violations == (FieldViolation("model", "name a model"),)
    both = (FieldViolation("a", "x"), FieldViolation("b", "y"))
    assert PatchbayError(Reason.INVALID_REQUEST, "two", violations=both).violations == both
    assert PatchbayError(Reason.INTERNAL, "none").violations == ()
