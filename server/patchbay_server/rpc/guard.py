"""The door: every RPC is refused unless a row here lets it in, and nothing but a well-formed status ever gets out.

Callers are authenticated before their message is read, so that a stranger cannot make the gateway parse 32 MiB. Only
who is to be known by a certificate, which grpc has verified by then, is looked up afterwards: grpc shows it no earlier.
"""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, Final, TypeAlias

import grpc
import grpc.aio
import msgspec
from google.protobuf.message import DecodeError

from patchbay_server.core.access import Access, require
from patchbay_server.core.admission import overloaded
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.rpc import certificates, status
from patchbay_server.types import Caller, Scope

log = logging.getLogger(__name__)

TOKEN_CHARS_MAX: Final = 512
_BEARER: Final = "bearer "

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class Rule(msgspec.Struct, frozen=True):
    """What a caller needs for an RPC. `any_owner` refuses callers that are bound to one owner."""

    scope: Scope
    any_owner: bool = False


def _rules(service: str, rule: Rule, names: Iterable[str]) -> dict[str, Rule]:
    return {f"/patchbay.v1.{service}/{name}": rule for name in names}


METHODS: Final[Mapping[str, Rule]] = {
    **_rules("GatewayService", Rule(Scope.CHAT), ("Chat", "Stream", "Explain", "ListModels", "CountTokens")),
    **_rules(
        "ConnectorService",
        Rule(Scope.CONNECTORS),
        (
            "CreateConnector",
            "GetConnector",
            "ListConnectors",
            "UpdateConnector",
            "DeleteConnector",
            "RotateCredential",
            "TestConnector",
            "SetDefaultConnector",
            "ClearDefaultConnector",
            "SetFeaturePreference",
            "ClearFeaturePreference",
            "ListFeaturePreferences",
            "GetEffectivePolicy",
            "ListConnectorTypes",
            "ListConnectorModels",
            "WatchConnectors",
        ),
    ),
    **_rules(
        "AdminService",
        Rule(Scope.ADMIN),
        (
            "ListAllConnectors",
            "RevokeConnector",
            "SetConnectorCap",
            "QueryUsage",
            "ListCalls",
            "GetCall",
            "ExportCalls",
            "ListAuditEvents",
            "ExportAuditEvents",
            "RunHealthChecks",
        ),
    ),
    **_rules(
        "AdminService",
        Rule(Scope.ADMIN, any_owner=True),
        (
            "GetPolicy",
            "UpdatePolicy",
            "VerifyAudit",
            "CreateToken",
            "ListTokens",
            "RevokeToken",
            "RotateMasterKey",
            "GetStatus",
        ),
    ),
}
"""What each RPC of ours needs. One that is not here is refused."""

LATER: Final[frozenset[str]] = frozenset(
    {
        "/patchbay.v1.GatewayService/ListModels",
        "/patchbay.v1.GatewayService/CountTokens",
        "/patchbay.v1.ConnectorService/WatchConnectors",
        "/patchbay.v1.AdminService/QueryUsage",
        "/patchbay.v1.AdminService/ListCalls",
        "/patchbay.v1.AdminService/GetCall",
        "/patchbay.v1.AdminService/ExportCalls",
        "/patchbay.v1.AdminService/ListAuditEvents",
        "/patchbay.v1.AdminService/ExportAuditEvents",
        "/patchbay.v1.AdminService/VerifyAudit",
        "/patchbay.v1.AdminService/RotateMasterKey",
        "/patchbay.v1.AdminService/RunHealthChecks",
    }
)
"""RPCs of the contract that this version answers with NOT_IMPLEMENTED."""

_STATUS: Final = "/patchbay.v1.AdminService/GetStatus"
"""Answers to the end, and while everything is full: it tells how far the end is, and what is going on."""
_CALLS: Final = frozenset({"/patchbay.v1.GatewayService/Chat", "/patchbay.v1.GatewayService/Stream"})
"""Calls, whose number is bounded by the gateway itself."""
OTHERS_MAX: Final = 256
"""How many RPCs other than calls may be at work at once: as many that answer once, and as many that stream."""

_caller: ContextVar[Caller] = ContextVar("caller")


def caller() -> Caller:
    """Who makes the RPC that is being served. Each RPC has a context of its own."""
    return _caller.get()


class Guard(grpc.aio.ServerInterceptor):
    """Authenticates, authorises, and turns whatever a servicer raises into a status.

    Args:
        open_services: services that need no token, such as health; they pass through as they are.
        tokens_by_certificate: ids of the tokens that stand for callers with a verified certificate and no token of
            their own, by a name in the certificate.
    """

    def __init__(
        self, access: Access, *, open_services: Collection[str], tokens_by_certificate: Mapping[str, str]
    ) -> None:
        self._access = access
        self._open = tuple(f"/{service}/" for service in open_services)
        self._tokens = tokens_by_certificate
        self._guarded: dict[tuple[str, bool], Handler] = {}
        self._answering = _Room(OTHERS_MAX)
        self._streaming = _Room(OTHERS_MAX)
        self.draining = False
        """Whether RPCs are refused with DRAINING; those of open services and GetStatus are not."""

    async def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        method = handler_call_details.method
        if method.startswith(self._open):
            return await continuation(handler_call_details)
        try:
            known = await self._known(method, handler_call_details)
        except PatchbayError as error:
            return _refusal(error)
        except asyncio.CancelledError:
            if _cancelled_from_outside():
                raise
            return _refusal(_fault(method))
        except Exception:  # noqa: BLE001 -- the outer boundary: grpc would tell the caller what the exception says
            return _refusal(_fault(method))
        guarded = self._guarded.get((method, known))
        if guarded is None:
            handler = await continuation(handler_call_details)
            if handler is None:
                return None
            guarded = self._guarded[method, known] = self._guard(handler, method, known=known)
        return guarded

    async def _known(self, method: str, details: grpc.HandlerCallDetails) -> bool:
        """Admits who has a token; False for who has none and may be known by a certificate."""
        if self.draining and method != _STATUS:
            raise PatchbayError(Reason.DRAINING, "the gateway is shutting down; call again", retry_after_s=1.0)
        if self._tokens and not any(key == "authorization" for key, _ in details.invocation_metadata):
            return False
        self._admit(method, await self._access.authenticate(_token(details)))
        return True

    async def _certified(self, context: Context) -> Caller:
        token_id = certificates.token_of(context.auth_context(), self._tokens)
        return await self._access.authenticated(token_id)

    def _admit(self, method: str, found: Caller) -> None:
        rule = METHODS.get(method)
        if rule is None:
            raise PatchbayError(Reason.NOT_IMPLEMENTED, "there is no such RPC")
        require(found, rule.scope)
        if rule.any_owner and found.owner is not None:
            raise PatchbayError(
                Reason.CALLER_NOT_AUTHORIZED,
                "this concerns the whole gateway; it needs a token that may act for any owner",
            )
        if method in LATER:
            name = method.removeprefix("/patchbay.v1.").replace("/", ".")
            raise PatchbayError(Reason.NOT_IMPLEMENTED, f"{name} is not available in this version")
        _caller.set(found)

    def _guard(self, handler: Handler, method: str, *, known: bool) -> Handler:
        streams = handler.response_streaming
        behaviour: Any = handler.unary_stream if streams else handler.unary_unary
        room = self._streaming if streams else self._answering

        async def guarded(request: Any, context: Context) -> Any:
            try:
                if not known:
                    self._admit(method, await self._certified(context))
                _check_message(request)
                with nullcontext() if method in _CALLS or method == _STATUS else room.taken():
                    return await behaviour(request, context)
            except PatchbayError as error:
                await status.refuse(context, error)
            except asyncio.CancelledError:
                if _cancelled_from_outside():
                    raise
                await status.refuse(context, _fault(method))
            except Exception:  # noqa: BLE001 -- the outer boundary, as above
                await status.refuse(context, _fault(method))

        make = grpc.unary_stream_rpc_method_handler if streams else grpc.unary_unary_rpc_method_handler
        guarded_handler: Handler = make(
            guarded, request_deserializer=_reading(handler), response_serializer=handler.response_serializer
        )
        return guarded_handler


class _Room:
    """For so many RPCs at once."""

    def __init__(self, size: int) -> None:
        self._left = size

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Raises: PatchbayError: OVERLOADED."""
        if not self._left:
            raise overloaded()
        self._left -= 1
        try:
            yield
        finally:
            self._left += 1


def _token(details: grpc.HandlerCallDetails) -> str:
    """The text of the one bearer token.

    Raises:
        PatchbayError: CALLER_UNAUTHENTICATED when there is none, or more than one, or what cannot be one.
    """
    found: str | None = None
    for key, value in details.invocation_metadata:
        if key == "authorization":
            if found is not None or not isinstance(value, str):
                raise _unauthenticated("send one authorization header")
            found = value
    if found is None:
        raise _unauthenticated("send the header `authorization: Bearer <token>`")
    if len(found) > TOKEN_CHARS_MAX or found[: len(_BEARER)].lower() != _BEARER:
        raise _unauthenticated("the authorization header must be `Bearer` and a token")
    return found[len(_BEARER) :].strip()


def _unauthenticated(message: str) -> PatchbayError:
    return PatchbayError(Reason.CALLER_UNAUTHENTICATED, message)


def _refusal(error: PatchbayError) -> Handler:
    """A handler that refuses without reading a message, whatever kind the method is."""

    async def refuse(_: object, context: Context) -> None:
        await status.refuse(context, error)

    return grpc.stream_stream_rpc_method_handler(refuse)


def _reading(handler: Handler) -> Callable[[bytes], Any]:
    """Reads a message; None for what is none, because grpc would tell the caller what exception a reader raised."""
    read: Any = handler.request_deserializer

    def reading(data: bytes) -> Any:
        try:
            return read(data)
        except DecodeError:
            return None

    return reading


def _check_message(message: object) -> None:
    """Raises: PatchbayError: INVALID_REQUEST: what came is no message of the RPC."""
    if message is None:
        raise PatchbayError(Reason.INVALID_REQUEST, "this is no message of the RPC")


def _cancelled_from_outside() -> bool:
    """Whether a CancelledError is the end of this RPC. One that nobody asked for would leave the caller waiting."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _fault(method: str) -> PatchbayError:
    """The exception being handled, in the log only; the caller gets what finds it there."""
    fault_id = secrets.token_hex(8)
    log.exception("fault %s of the gateway in %s", fault_id, method)
    return PatchbayError(Reason.INTERNAL, f"the gateway failed; {fault_id} finds the cause in its log")
