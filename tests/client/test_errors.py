"""What a failed call raises."""

import pickle
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from tests.client.fake_gateway import Driver, FakeGateway, Handler

from patchbay.v1 import error_pb2, usage_pb2
from patchbay_client import (
    AsyncPatchbayClient,
    CapReached,
    ContextLengthExceeded,
    FeatureUnsupported,
    InvalidRequest,
    NotFound,
    PatchbayError,
    PreconditionFailed,
    RateLimited,
    Unauthenticated,
    Unavailable,
)

CHAT = "GatewayService/Chat"
STATUS_CODES = {code.value[0]: code for code in grpc.StatusCode}


def fails(code: int, reason: str, *details: Message, domain: str = "patchbay") -> Handler:
    info = error_details_pb2.ErrorInfo(reason=reason, domain=domain, metadata={"connector": "c"})
    packed = [Packed() for _ in range(1 + len(details))]
    for target, detail in zip(packed, (info, *details), strict=True):
        target.Pack(detail)
    status = status_pb2.Status(code=code, message="what went wrong", details=packed)

    async def fail(_request: Any, context: Any) -> None:
        await context.abort(
            STATUS_CODES[code], "what went wrong", (("grpc-status-details-bin", status.SerializeToString()),)
        )

    return fail


async def failure(gateway: FakeGateway, driver: Driver, handler: Handler) -> PatchbayError:
    gateway.on(CHAT, handler)
    with pytest.raises(PatchbayError) as caught:
        await driver.call(lambda client: client.chat("Hi"))
    return caught.value


async def test_every_detail_of_the_status_reaches_the_caller(gateway: FakeGateway, driver: Driver) -> None:
    error = await failure(
        gateway,
        driver,
        fails(
            code_pb2.RESOURCE_EXHAUSTED,
            "ERROR_REASON_UPSTREAM_RATE_LIMITED",
            error_details_pb2.RetryInfo(retry_delay=Duration(seconds=2, nanos=500_000_000)),
            error_details_pb2.BadRequest(
                field_violations=[error_details_pb2.BadRequest.FieldViolation(field="config.seed", description="no")]
            ),
            error_details_pb2.QuotaFailure(
                violations=[error_details_pb2.QuotaFailure.Violation(subject="owners/a/connectors/c:monthly_tokens")]
            ),
            error_pb2.UpstreamFailure(provider="openai", http_status=429, attempt_count=2),
            error_pb2.PartialResult(
                call_id="call-1", last_sequence=4, usage=usage_pb2.Usage(input_tokens=9, total_tokens=9)
            ),
        ),
    )
    assert isinstance(error, RateLimited)
    assert (error.reason, error.message) == ("UPSTREAM_RATE_LIMITED", "what went wrong")
    assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(error) == "UPSTREAM_RATE_LIMITED: what went wrong"
    assert error.retry_after == 2.5
    assert [(each.field, each.description) for each in error.violations] == [("config.seed", "no")]
    assert error.quota == "owners/a/connectors/c:monthly_tokens"
    assert error.upstream is not None
    assert (error.upstream.provider, error.upstream.http_status, error.upstream.attempt_count) == ("openai", 429, 2)
    assert error.partial is not None
    assert (error.partial.last_sequence, error.partial.usage.total_tokens) == (4, 9)
    assert error.call_id == "call-1"
    assert error.metadata == {"connector": "c"}
    assert error.raw is not None


@pytest.mark.parametrize(
    ("code", "reason", "expected"),
    [
        (code_pb2.UNAUTHENTICATED, "CALLER_UNAUTHENTICATED", Unauthenticated),
        (code_pb2.NOT_FOUND, "CONNECTOR_NOT_FOUND", NotFound),
        (code_pb2.INVALID_ARGUMENT, "INVALID_REQUEST", InvalidRequest),
        (code_pb2.INVALID_ARGUMENT, "FEATURE_UNSUPPORTED", FeatureUnsupported),
        (code_pb2.INVALID_ARGUMENT, "CONTEXT_LENGTH_EXCEEDED", ContextLengthExceeded),
        (code_pb2.RESOURCE_EXHAUSTED, "CAP_REACHED", CapReached),
        (code_pb2.FAILED_PRECONDITION, "CONNECTOR_NOT_CONFIGURED", PreconditionFailed),
        (code_pb2.NOT_FOUND, "A_REASON_OF_NEXT_YEAR", NotFound),
        (code_pb2.DATA_LOSS, "A_REASON_OF_NEXT_YEAR", PatchbayError),
    ],
)
async def test_the_class_of_an_error_follows_its_reason_and_else_its_code(
    gateway: FakeGateway, driver: Driver, code: int, reason: str, expected: type[PatchbayError]
) -> None:
    error = await failure(gateway, driver, fails(code, f"ERROR_REASON_{reason}"))
    assert type(error) is expected
    assert error.reason == reason


async def test_a_failure_of_a_proxy_has_no_reason_of_ours(gateway: FakeGateway, driver: Driver) -> None:
    error = await failure(gateway, driver, fails(code_pb2.PERMISSION_DENIED, "RBAC", domain="proxy.example"))
    assert (error.reason, str(error)) == ("", "PERMISSION_DENIED: what went wrong")
    assert error.retry_after is None


async def test_details_that_cannot_be_read_do_not_hide_the_failure(gateway: FakeGateway, driver: Driver) -> None:
    async def fail(_request: Any, context: Any) -> None:
        await context.abort(grpc.StatusCode.NOT_FOUND, "gone", (("grpc-status-details-bin", b"\xff\xff\xff"),))

    error = await failure(gateway, driver, fail)
    assert isinstance(error, NotFound)
    assert (error.reason, error.message, error.raw) == ("", "gone", None)


async def test_a_gateway_that_is_not_there_is_unavailable() -> None:
    async with AsyncPatchbayClient("127.0.0.1:1", "token") as client:
        with pytest.raises(Unavailable) as caught:
            await client.connectors.delete("owners/a/connectors/c")
    assert caught.value.reason == ""


async def test_an_error_survives_the_way_to_another_process(gateway: FakeGateway, driver: Driver) -> None:
    error = await failure(gateway, driver, fails(code_pb2.NOT_FOUND, "ERROR_REASON_MODEL_NOT_FOUND"))
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is NotFound
    assert (copy.reason, copy.message, copy.metadata) == (error.reason, error.message, error.metadata)
