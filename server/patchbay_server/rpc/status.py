"""Failures as gRPC tells them: the only place that turns a `PatchbayError` into a status.

A status carries `google.rpc.Status` in its trailers. Metadata above about 8 KiB makes clients lose the real status, so
everything variable is bounded here, whatever an error brings.
"""

from collections.abc import Mapping
from math import isfinite
from typing import Any, Final, Never

import grpc
import grpc.aio
from google.protobuf.message import Message
from google.rpc import error_details_pb2 as details_pb  # type: ignore[import-untyped]  # ships no py.typed
from google.rpc import status_pb2

from patchbay.v1 import error_pb2
from patchbay_server.errors import Code, PatchbayError, UpstreamFailure
from patchbay_server.rpc.convert.answers import usage
from patchbay_server.rpc.convert.fields import duration

DOMAIN: Final = "patchbay"
CALL_ID_KEY: Final = "patchbay-call-id"
"""The header that names a call as soon as it is admitted."""
DETAILS_KEY: Final = "grpc-status-details-bin"
STATUS_BYTES_MAX: Final = 4_000
"""Bound of the packed status; 4096 is what clients are promised."""
MESSAGE_BYTES_MAX: Final = 512
"""Bound of the message, which travels a second time, percent-encoded, in a trailer of its own."""
_DESCRIPTION_BYTES_MAX: Final = 256
_NAME_BYTES_MAX: Final = 160
_RETRY_AFTER_S_MAX: Final = 86_400.0
_ANY_BYTES: Final = 64
"""More than what packing one more detail adds to it."""

_CODES: Final[Mapping[Code, grpc.StatusCode]] = {code: grpc.StatusCode[code.name] for code in Code}
_NO_RETRY: Final = ("grpc-retry-pushback-ms", "-1")


async def refuse(context: "grpc.aio.ServicerContext[Any, Any]", error: PatchbayError) -> Never:
    """End an RPC with `error`.

    Raises:
        grpc.aio.AbortError: always, which grpc expects to get; another `grpc.aio.BaseError` when the client has gone.
    """
    await context.abort(_CODES[error.rule.code], clipped(error.message, MESSAGE_BYTES_MAX), trailers(error))


def trailers(error: PatchbayError) -> tuple[tuple[str, str | bytes], ...]:
    """The trailing metadata that goes with `error`.

    Stock clients repeat UNAVAILABLE by themselves. A call that was admitted may have cost money: they are told not to.
    """
    packed = (DETAILS_KEY, describe(error).SerializeToString())
    admitted = error.partial is not None or error.upstream is not None
    return (packed, _NO_RETRY) if admitted else (packed,)


def describe(error: PatchbayError) -> status_pb2.Status:
    """`error` with its details, at most `STATUS_BYTES_MAX` packed: field violations that do not fit are left out."""
    status = status_pb2.Status(code=_CODES[error.rule.code].value[0], message=clipped(error.message, MESSAGE_BYTES_MAX))
    for detail in _details(error):
        status.details.add().Pack(detail)
    violations = _bad_request(error, STATUS_BYTES_MAX - status.ByteSize() - _ANY_BYTES)
    if violations.field_violations:
        status.details.add().Pack(violations)
    return status


def clipped(text: str, bytes_max: int) -> str:
    """`text`, or as much of its beginning as `bytes_max` bytes of UTF-8 hold; what UTF-8 cannot express becomes `?`."""
    encoded = text.encode("utf-8", "replace")
    return encoded[:bytes_max].decode("utf-8", "ignore")


def _details(error: PatchbayError) -> list[Message]:
    """Every detail of bounded size, the reason first."""
    call_id = {"call_id": error.partial.call_id} if error.partial else {}
    description = clipped(error.message, _DESCRIPTION_BYTES_MAX)
    found: list[Message] = [
        details_pb.ErrorInfo(reason=f"ERROR_REASON_{error.reason.value}", domain=DOMAIN, metadata=call_id)
    ]
    if error.retry_after_s is not None and isfinite(error.retry_after_s):
        delay_s = min(max(error.retry_after_s, 0.0), _RETRY_AFTER_S_MAX)
        found.append(details_pb.RetryInfo(retry_delay=duration(delay_s)))
    if error.quota:
        quota = details_pb.QuotaFailure.Violation(
            subject=clipped(error.quota, _NAME_BYTES_MAX), description=description
        )
        found.append(details_pb.QuotaFailure(violations=[quota]))
    if error.rule.code is Code.FAILED_PRECONDITION:
        condition = details_pb.PreconditionFailure.Violation(
            type=error.reason.value, subject=clipped(_subject(error), _NAME_BYTES_MAX), description=description
        )
        found.append(details_pb.PreconditionFailure(violations=[condition]))
    if error.upstream is not None:
        found.append(_upstream(error.upstream))
    if error.partial is not None and error.partial.last_sequence:
        found.append(
            error_pb2.PartialResult(
                call_id=error.partial.call_id,
                last_sequence=error.partial.last_sequence,
                usage=usage(error.partial.usage),
            )
        )
    return found


def _subject(error: PatchbayError) -> str:
    """What has to change before the request can succeed: the connector, else the field that names it."""
    if error.upstream is not None and error.upstream.connector:
        return error.upstream.connector
    return error.violations[0].field if error.violations else ""


def _upstream(failure: UpstreamFailure) -> error_pb2.UpstreamFailure:
    return error_pb2.UpstreamFailure(
        provider=clipped(failure.provider, _NAME_BYTES_MAX),
        connector=clipped(failure.connector, _NAME_BYTES_MAX),
        http_status=failure.http_status,
        provider_code=clipped(failure.provider_code, _NAME_BYTES_MAX),
        upstream_request_id=clipped(failure.upstream_request_id, 128),
        attempt_count=failure.attempt_count,
    )


def _bad_request(error: PatchbayError, bytes_left: int) -> details_pb.BadRequest:
    """As many of the fields at fault as fit into `bytes_left`."""
    found = details_pb.BadRequest()
    for violation in error.violations:
        told = details_pb.BadRequest.FieldViolation(
            field=clipped(violation.field, _NAME_BYTES_MAX),
            description=clipped(violation.description, _DESCRIPTION_BYTES_MAX),
        )
        bytes_left -= told.ByteSize() + 4
        if bytes_left < 0:
            break
        found.field_violations.append(told)
    return found
