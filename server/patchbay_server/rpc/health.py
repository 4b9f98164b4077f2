"""The standard health service, which load balancers ask and which needs no token.

Differs from grpc's own in that it starts NOT_SERVING, that no watcher can hold up a change, and that watches can be
ended: an open `Watch` would hold up the server's stop.
"""

# ruff: noqa: N802 -- the methods are named by the contract

import asyncio
from collections.abc import Iterable
from typing import Any, Final, Never, TypeAlias

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2 as pb
from grpc_health.v1 import health_pb2_grpc as pb_grpc

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

OVERALL: Final = ""
"""The name by which the server as a whole is asked for."""


class HealthServicer(pb_grpc.HealthServicer):
    def __init__(self, services: Iterable[str]) -> None:
        self._services = (OVERALL, *services)
        self._serving = False
        self._ended = False
        self._changed = asyncio.Event()

    def set_serving(self, serving: bool) -> None:
        self._serving = serving
        self._announce()

    def end_watches(self) -> None:
        """End every `Watch`, now and from now on, with UNAVAILABLE, at which clients look for another replica."""
        self._ended = True
        self._announce()

    async def Check(self, request: pb.HealthCheckRequest, context: Context) -> pb.HealthCheckResponse:
        if request.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such service")
        return pb.HealthCheckResponse(status=self._status(request.service))

    async def Watch(self, request: pb.HealthCheckRequest, context: Context) -> Never:
        told = None
        while True:
            changed = self._changed
            status = self._status(request.service)
            if status != told:
                await context.write(pb.HealthCheckResponse(status=status))
                told = status
            if self._ended:
                break
            await changed.wait()
        await context.abort(grpc.StatusCode.UNAVAILABLE, "the gateway is shutting down")

    def _status(self, service: str) -> int:
        if service not in self._services:
            return pb.HealthCheckResponse.SERVICE_UNKNOWN
        return pb.HealthCheckResponse.SERVING if self._serving else pb.HealthCheckResponse.NOT_SERVING

    def _announce(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
