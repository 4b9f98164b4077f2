"""GatewayService: calls of models."""

# ruff: noqa: N802 -- the methods are named by the contract

import logging
from contextlib import aclosing
from typing import Any, TypeAlias

import grpc.aio

from patchbay.v1 import gateway_service_pb2 as pb
from patchbay.v1 import gateway_service_pb2_grpc as pb_grpc
from patchbay_server.core.explain import Explanation
from patchbay_server.core.gateway import Gateway
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.rpc import guard
from patchbay_server.rpc.convert import answers, explanation, requests
from patchbay_server.rpc.outgoing import Outgoing

log = logging.getLogger(__name__)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class GatewayServicer(pb_grpc.GatewayServiceServicer):
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def Chat(self, request: pb.ChatRequest, context: Context) -> pb.ChatResponse:
        caller = guard.caller()
        asked = requests.chat_request(request, caller)
        async with (
            Outgoing(context) as outgoing,
            self._gateway.stream(caller, asked, context.time_remaining(), streaming=False) as call,
        ):
            outgoing.attend(call)
            answer = await call.answer()
        return answers.response(answer)

    async def Explain(self, request: pb.ExplainRequest, context: Context) -> pb.ExplainResponse:
        caller = guard.caller()
        try:
            asked = requests.chat_request(request.request, caller)
        except PatchbayError as error:
            if error.reason is Reason.CALLER_NOT_AUTHORIZED:
                raise
            return explanation.explanation(Explanation(owner="", failure=error))
        return explanation.explanation(await self._gateway.explain(caller, asked))

    async def Stream(self, request: pb.ChatRequest, context: Context) -> None:  # type: ignore[override]  # writes by itself
        """A coroutine rather than a generator: a cancel during a blocked send reaches this task and no other."""
        caller = guard.caller()
        asked = requests.chat_request(request, caller)
        outgoing = Outgoing(context, requests.delivery(request.stream_options))
        try:
            async with (
                outgoing,
                self._gateway.stream(caller, asked, context.time_remaining()) as call,
            ):
                outgoing.attend(call)
                async with aclosing(call.events()) as batches:
                    async for batch in batches:
                        await outgoing.write(batch)
        except PatchbayError as error:
            if not outgoing.completed:
                raise
            # The answer is whole, recorded and on its way; a limit that passes now is too late to change that.
            log.info("call %s failed after its end: %s", call.call_id, error.message)
