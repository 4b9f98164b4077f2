"""What the descriptors of the contract promise, looked up in the descriptors themselves."""

from collections.abc import Iterator

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, ServiceDescriptor

from patchbay.v1 import admin_service_pb2, connector_service_pb2, content_pb2, error_pb2, gateway_service_pb2, usage_pb2
from patchbay_server.errors import RULES, Reason
from patchbay_server.rpc.guard import LATER, METHODS
from patchbay_server.rpc.server import SERVICES

FILES = (admin_service_pb2, connector_service_pb2, content_pb2, error_pb2, gateway_service_pb2, usage_pb2)
CODES = {
    "INVALID_ARGUMENT": """INVALID_REQUEST FEATURE_UNSUPPORTED CONTEXT_LENGTH_EXCEEDED UPSTREAM_REJECTED_REQUEST
        CONTENT_POLICY_VIOLATION REQUEST_ID_REUSED""",
    "UNAUTHENTICATED": "CALLER_UNAUTHENTICATED",
    "PERMISSION_DENIED": "CALLER_NOT_AUTHORIZED POLICY_DENIED",
    "NOT_FOUND": "CONNECTOR_NOT_FOUND MODEL_NOT_FOUND RESOURCE_NOT_FOUND",
    "ALREADY_EXISTS": "ALREADY_EXISTS",
    "FAILED_PRECONDITION": """CONNECTOR_NOT_CONFIGURED CONNECTOR_INACTIVE CONNECTOR_MISCONFIGURED
        UPSTREAM_CREDENTIAL_REJECTED UPSTREAM_BILLING_EXHAUSTED NO_CANDIDATE""",
    "RESOURCE_EXHAUSTED": "CAP_REACHED RATE_LIMITED UPSTREAM_RATE_LIMITED",
    "UNAVAILABLE": """UPSTREAM_UNAVAILABLE UPSTREAM_EMPTY_STREAM UPSTREAM_STREAM_BROKEN UPSTREAM_TRUNCATED
        ALL_CANDIDATES_FAILED OVERLOADED DRAINING DEPENDENCY_UNAVAILABLE""",
    "DEADLINE_EXCEEDED": "UPSTREAM_TIMEOUT DEADLINE_EXCEEDED",
    "INTERNAL": "UPSTREAM_MALFORMED_RESPONSE CREDENTIAL_UNREADABLE INTERNAL",
    "UNIMPLEMENTED": "STREAMING_UNSUPPORTED NOT_IMPLEMENTED",
    "ABORTED": "REQUEST_IN_PROGRESS ETAG_MISMATCH",
    "CANCELLED": "CANCELLED",
}
SECRET_FIELDS = {
    "OpenaiCredential": {"api_key"},
    "OpenaiCompatibleCredential": {"api_key", "headers"},
    "AnthropicCredential": {"api_key"},
    "GeminiCredential": {"api_key"},
    "AzureOpenaiCredential": {"api_key", "entra_token"},
    "BedrockCredential": {"access_key_id", "secret_access_key", "session_token", "api_key"},
    "XaiCredential": {"api_key"},
    "OpenrouterCredential": {"api_key"},
    "PluginCredential": {"fields_json"},
    "CreateTokenResponse": {"secret"},
}
CONTENT = {"ChatMessage", "ContentPart", "Media", "Reasoning", "ToolCall", "ToolResult", "Refusal"}


def services() -> Iterator[ServiceDescriptor]:
    for file in FILES:
        yield from file.DESCRIPTOR.services_by_name.values()


def messages() -> Iterator[Descriptor]:
    for file in FILES:
        yield from file.DESCRIPTOR.message_types_by_name.values()


def reached(message: Descriptor) -> set[Descriptor]:
    """`message` and every message that its fields lead to."""
    found = {message}
    waiting = [message]
    while waiting:
        for field in waiting.pop().fields:
            inner = field.message_type
            if inner is not None and inner not in found:
                found.add(inner)
                waiting.append(inner)
    return found


def rpc_names() -> set[str]:
    return {f"/{service.full_name}/{method.name}" for service in services() for method in service.methods}


def test_every_rpc_has_a_row_in_the_guard_and_every_row_has_its_rpc() -> None:
    assert set(METHODS) == rpc_names()


def test_every_service_is_served() -> None:
    assert {service.full_name for service in services()} == set(SERVICES)


def test_only_rpcs_of_the_contract_are_left_for_later() -> None:
    assert rpc_names() >= LATER


def test_every_reason_has_a_value_on_the_wire_and_every_value_has_its_reason() -> None:
    values = {name.removeprefix("ERROR_REASON_") for name in error_pb2.ErrorReason.keys()}  # noqa: SIM118 -- not a dict
    assert values - {"UNSPECIFIED"} == {reason.value for reason in Reason}


@pytest.mark.parametrize("reason", list(Reason))
def test_each_reason_has_the_status_code_of_the_contract(reason: Reason) -> None:
    [code] = [code for code, reasons in CODES.items() if reason.value in reasons.split()]
    assert RULES[reason].code.name == code


def test_no_answer_leads_to_a_credential() -> None:
    credentials = set(reached(connector_service_pb2.DESCRIPTOR.message_types_by_name["Credential"]))
    for service in services():
        for method in service.methods:
            assert not reached(method.output_type) & credentials, method.full_name


def test_credentials_occur_in_create_and_rotate_requests_only() -> None:
    credential = connector_service_pb2.DESCRIPTOR.message_types_by_name["Credential"]
    takers = {m.input_type.name for s in services() for m in s.methods if credential in reached(m.input_type)}
    assert takers == {"CreateConnectorRequest", "RotateCredentialRequest"}


def redacted(field: FieldDescriptor) -> bool:
    return bool(field.GetOptions().debug_redact)


def test_every_secret_field_is_marked_as_one() -> None:
    marked = {message.name: {f.name for f in message.fields if redacted(f)} for message in messages()}
    assert {name: fields for name, fields in marked.items() if fields} == SECRET_FIELDS


def test_a_field_that_sounds_secret_is_marked() -> None:
    for message in messages():
        for field in message.fields:
            if field.name in set().union(*SECRET_FIELDS.values()) - {"headers"}:
                assert redacted(field), field.full_name


@pytest.mark.parametrize("name", ["CallRecord", "AttemptRecord", "AuditEvent", "UsageRow", "RoutingOutcome"])
def test_records_have_no_place_for_content(name: str) -> None:
    message = admin_service_pb2.DESCRIPTOR.message_types_by_name[name]
    led_to = reached(message)
    assert not {inner.name for inner in led_to} & CONTENT
    names = {field.name for inner in led_to for field in inner.fields}
    assert not names & {"text", "content", "prompt", "messages", "parts", "arguments_json", "data", "message"}
