"""Failures as gRPC tells them: code, details, bounds."""

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2 as details_pb  # type: ignore[import-untyped]  # ships no py.typed
from google.rpc import status_pb2

from patchbay.v1 import error_pb2
from patchbay_server.errors import RULES, FieldViolation, PartialResult, PatchbayError, Reason, UpstreamFailure
from patchbay_server.rpc import status
from patchbay_server.usage import Usage

KINDS: tuple[type[Message], ...] = (
    details_pb.ErrorInfo,
    details_pb.RetryInfo,
    details_pb.QuotaFailure,
    details_pb.BadRequest,
    details_pb.PreconditionFailure,
    error_pb2.UpstreamFailure,
    error_pb2.PartialResult,
)


def details(error: PatchbayError) -> dict[str, Message]:
    """The details by their names; each occurs once."""
    found: dict[str, Message] = {}
    for packed in status.describe(error).details:
        [kind] = [kind for kind in KINDS if packed.Is(kind.DESCRIPTOR)]
        assert kind.DESCRIPTOR.name not in found
        unpacked = kind()
        packed.Unpack(unpacked)
        found[kind.DESCRIPTOR.name] = unpacked
    return found


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_is_told_once_with_its_code(reason: Reason) -> None:
    error = PatchbayError(reason, "what to do")
    told = status.describe(error)
    assert told.code == grpc.StatusCode[RULES[reason].code.name].value[0]
    assert told.message == "what to do"
    assert details(error)["ErrorInfo"] == details_pb.ErrorInfo(reason=f"ERROR_REASON_{reason.value}", domain="patchbay")


def test_what_is_not_known_is_not_told() -> None:
    assert set(details(PatchbayError(Reason.OVERLOADED, "full"))) == {"ErrorInfo"}


@pytest.mark.parametrize(("retry_after_s", "told_s"), [(1.5, 1.5), (0.0, 0.0), (-3.0, 0.0), (1e12, 86_400.0)])
def test_a_wait_is_told_within_bounds(retry_after_s: float, told_s: float) -> None:
    told = details(PatchbayError(Reason.RATE_LIMITED, "wait", retry_after_s=retry_after_s))["RetryInfo"]
    assert isinstance(told, details_pb.RetryInfo)
    assert told.retry_delay.ToMilliseconds() / 1000 == told_s


@pytest.mark.parametrize("retry_after_s", [None, float("nan"), float("inf")])
def test_a_wait_that_nobody_named_is_not_told(retry_after_s: float | None) -> None:
    assert "RetryInfo" not in details(PatchbayError(Reason.RATE_LIMITED, "wait", retry_after_s=retry_after_s))


def test_fields_at_fault_are_named_with_what_to_do() -> None:
    violations = [FieldViolation("messages[0].role", "set it"), FieldViolation("model", "too long")]
    told = details(PatchbayError(Reason.INVALID_REQUEST, "two faults", violations=violations))["BadRequest"]
    assert isinstance(told, details_pb.BadRequest)
    assert [(v.field, v.description) for v in told.field_violations] == [
        ("messages[0].role", "set it"),
        ("model", "too long"),
    ]


def test_an_exhausted_quota_is_named() -> None:
    quota = "owners/a/connectors/b:monthly_tokens"
    told = details(PatchbayError(Reason.CAP_REACHED, "raise the cap", quota=quota))["QuotaFailure"]
    assert isinstance(told, details_pb.QuotaFailure)
    assert [(v.subject, v.description) for v in told.violations] == [(quota, "raise the cap")]


@pytest.mark.parametrize("reason", list(Reason))
def test_failed_preconditions_say_which(reason: Reason) -> None:
    told = details(PatchbayError(reason, "rotate it", field="connector")).get("PreconditionFailure")
    if RULES[reason].code.name != "FAILED_PRECONDITION":
        assert told is None
        return
    assert isinstance(told, details_pb.PreconditionFailure)
    assert [(v.type, v.subject, v.description) for v in told.violations] == [(reason.value, "connector", "rotate it")]


def test_an_upstream_failure_is_told_without_its_body() -> None:
    upstream = UpstreamFailure(
        provider="openai",
        connector="owners/a/connectors/b",
        http_status=429,
        provider_code="rate_limit_exceeded",
        upstream_request_id="req-1",
        attempt_count=2,
    )
    assert details(PatchbayError(Reason.UPSTREAM_RATE_LIMITED, "wait", upstream=upstream))[
        "UpstreamFailure"
    ] == error_pb2.UpstreamFailure(
        provider="openai",
        connector="owners/a/connectors/b",
        http_status=429,
        provider_code="rate_limit_exceeded",
        upstream_request_id="req-1",
        attempt_count=2,
    )


def test_a_partial_result_is_told_once_something_was_sent() -> None:
    def told(last_sequence: int) -> dict[str, Message]:
        partial = PartialResult(call_id="call-1", last_sequence=last_sequence, usage=Usage(input_tokens=3))
        return details(PatchbayError(Reason.UPSTREAM_TRUNCATED, "cut", partial=partial))

    assert "PartialResult" not in told(0)
    partial = told(4)["PartialResult"]
    assert isinstance(partial, error_pb2.PartialResult)
    assert (partial.call_id, partial.last_sequence, partial.usage.input_tokens) == ("call-1", 4, 3)


def test_a_call_that_failed_can_be_found_by_its_id_even_before_output() -> None:
    error = PatchbayError(Reason.INTERNAL, "failed", partial=PartialResult(call_id="call-1"))
    told = details(error)["ErrorInfo"]
    assert isinstance(told, details_pb.ErrorInfo)
    assert dict(told.metadata) == {"call_id": "call-1"}


@pytest.mark.parametrize(
    ("error", "pushed_back"),
    [
        (PatchbayError(Reason.OVERLOADED, "full"), False),
        (PatchbayError(Reason.DRAINING, "leaving"), False),
        (PatchbayError(Reason.DRAINING, "cut", partial=PartialResult(call_id="c")), True),
        (PatchbayError(Reason.UPSTREAM_UNAVAILABLE, "down", upstream=UpstreamFailure(provider="openai")), True),
    ],
)
def test_stock_clients_are_kept_from_repeating_what_may_have_cost_money(
    error: PatchbayError, pushed_back: bool
) -> None:
    trailers = dict(status.trailers(error))
    assert (trailers.get("grpc-retry-pushback-ms") == "-1") is pushed_back


LONG = "€" * 5_000


@pytest.mark.parametrize("violations", [0, 1, 20, 1_000])
@pytest.mark.parametrize("text", ["a" * 20_000, LONG, "\ud800" * 5_000, "𝄞" * 5_000])
def test_a_status_stays_below_4_kib_whatever_it_is_given(text: str, violations: int) -> None:
    error = PatchbayError(
        Reason.UPSTREAM_CREDENTIAL_REJECTED,
        text,
        violations=[FieldViolation(text, text)] * violations,
        retry_after_s=1.0,
        quota=text,
        upstream=UpstreamFailure(
            provider=text,
            connector=text,
            http_status=599,
            provider_code=text,
            upstream_request_id=text,
            attempt_count=2**31 - 1,
        ),
        partial=PartialResult(
            call_id="0" * 32,
            last_sequence=2**31 - 1,
            usage=Usage(
                input_tokens=10**15,
                output_tokens=10**15,
                total_tokens=10**15,
                cached_input_tokens=10**15,
                cache_write_input_tokens=10**15,
                reasoning_tokens=10**15,
                cost_usd_nanos=10**18,
            ),
        ),
    )
    packed = status.describe(error).SerializeToString()
    assert len(packed) <= status.STATUS_BYTES_MAX < 4096
    told = status_pb2.Status.FromString(packed)
    assert len(told.message.encode()) <= status.MESSAGE_BYTES_MAX
    assert set(details(error)) >= {"ErrorInfo", "UpstreamFailure", "PartialResult"}
    assert ("BadRequest" in details(error)) is (violations > 0)


@pytest.mark.parametrize("bytes_max", range(8))
def test_text_is_cut_between_characters(bytes_max: int) -> None:
    assert status.clipped("a€𝄞", bytes_max) == ["", "a", "a", "a", "a€", "a€", "a€", "a€"][bytes_max]
    assert status.clipped("a€𝄞", 8) == "a€𝄞"
