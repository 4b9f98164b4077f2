"""AdminService: connectors of all owners, policy, caller tokens, the state of this process."""

# ruff: noqa: N802 -- the methods are named by the contract

from typing import Any, TypeAlias

import grpc.aio

from patchbay.v1 import admin_service_pb2 as pb
from patchbay.v1 import admin_service_pb2_grpc as pb_grpc
from patchbay_server.core.service import Service
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.rpc import guard
from patchbay_server.rpc.convert import admin as convert
from patchbay_server.rpc.convert.connectors import connector, query
from patchbay_server.rpc.convert.fields import Faults, connector_name

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class AdminServicer(pb_grpc.AdminServiceServicer):
    def __init__(self, service: Service) -> None:
        self._service = service
        self._admin = service.admin

    async def GetPolicy(self, request: pb.GetPolicyRequest, context: Context) -> pb.GetPolicyResponse:
        return pb.GetPolicyResponse(policy=convert.policy(await self._admin.policy(guard.caller())))

    async def UpdatePolicy(self, request: pb.UpdatePolicyRequest, context: Context) -> pb.UpdatePolicyResponse:
        wanted, paths = convert.policy_change(request)
        changed = await self._admin.update_policy(guard.caller(), wanted, paths, request.policy.etag)
        return pb.UpdatePolicyResponse(policy=convert.policy(changed))

    async def ListAllConnectors(
        self, request: pb.ListAllConnectorsRequest, context: Context
    ) -> pb.ListAllConnectorsResponse:
        page = await self._admin.connectors(guard.caller(), query(request))
        return pb.ListAllConnectorsResponse(
            connectors=[convert.overview(one) for one in page.items], next_page_token=page.next_page_token
        )

    async def RevokeConnector(self, request: pb.RevokeConnectorRequest, context: Context) -> pb.RevokeConnectorResponse:
        faults = Faults()
        address = connector_name(request.name, "name", faults)
        faults.check()
        view = await self._admin.revoke_connector(guard.caller(), address, request.etag)
        return pb.RevokeConnectorResponse(connector=connector(view))

    async def SetConnectorCap(self, request: pb.SetConnectorCapRequest, context: Context) -> pb.SetConnectorCapResponse:
        faults = Faults()
        address = connector_name(request.name, "name", faults)
        change = convert.cap_change(request, faults)
        faults.check()
        view = await self._admin.set_cap(guard.caller(), address, change, request.etag)
        return pb.SetConnectorCapResponse(connector=connector(view))

    async def CreateToken(self, request: pb.CreateTokenRequest, context: Context) -> pb.CreateTokenResponse:
        draft = convert.token_draft(request.token)
        token, text = await self._admin.create_token(
            guard.caller(), draft.display_name, draft.scopes, draft.owner, draft.expires_at
        )
        return pb.CreateTokenResponse(token=convert.token(token), secret=text)

    async def ListTokens(self, request: pb.ListTokensRequest, context: Context) -> pb.ListTokensResponse:
        page = await self._admin.tokens(guard.caller(), query(request))
        return pb.ListTokensResponse(
            tokens=[convert.token(token) for token in page.items], next_page_token=page.next_page_token
        )

    async def RevokeToken(self, request: pb.RevokeTokenRequest, context: Context) -> pb.RevokeTokenResponse:
        token = await self._admin.revoke_token(guard.caller(), _token_id(request.name))
        return pb.RevokeTokenResponse(token=convert.token(token))

    async def GetStatus(self, request: pb.GetStatusRequest, context: Context) -> pb.GetStatusResponse:
        return convert.status(await self._service.status(guard.caller()))


def _token_id(name: str) -> str:
    """Raises: PatchbayError: INVALID_REQUEST."""
    if not name.startswith("tokens/") or len(name) == len("tokens/"):
        raise PatchbayError(Reason.INVALID_REQUEST, "must be tokens/{token}", field="name")
    return name.removeprefix("tokens/")
