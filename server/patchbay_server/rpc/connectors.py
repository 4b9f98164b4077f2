"""ConnectorService: an owner's connectors."""

# ruff: noqa: N802 -- the methods are named by the contract

from typing import Any, Final, TypeAlias

import grpc.aio
import msgspec

from patchbay.v1 import connector_service_pb2 as pb
from patchbay.v1 import connector_service_pb2_grpc as pb_grpc
from patchbay_server.core.connectors import Connectors, TypeView
from patchbay_server.core.listing import Field, Query, Result, select
from patchbay_server.rpc import guard
from patchbay_server.rpc.convert import connectors as convert
from patchbay_server.rpc.convert.fields import Faults, connector_name, owner_id, timestamp

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_PLACE: Final = Field[tuple[int, TypeView]](read=lambda placed, _: f"{placed[0]:06d}", orders=True, filters=False)


class ConnectorServicer(pb_grpc.ConnectorServiceServicer):
    def __init__(self, connectors: Connectors) -> None:
        self._connectors = connectors

    async def CreateConnector(self, request: pb.CreateConnectorRequest, context: Context) -> pb.CreateConnectorResponse:
        faults = Faults()
        owner = owner_id(request.parent, "parent", faults)
        draft = convert.draft(request.connector, faults)
        credential = convert.credential(request.credential, faults)
        faults.check()
        view = await self._connectors.create(
            guard.caller(), owner, request.connector_id, draft, credential, validate_only=request.validate_only
        )
        made = convert.unstored(view) if request.validate_only else convert.connector(view)
        return pb.CreateConnectorResponse(connector=made)

    async def GetConnector(self, request: pb.GetConnectorRequest, context: Context) -> pb.GetConnectorResponse:
        view = await self._connectors.get(guard.caller(), *_named(request.name))
        return pb.GetConnectorResponse(connector=convert.connector(view))

    async def ListConnectors(self, request: pb.ListConnectorsRequest, context: Context) -> pb.ListConnectorsResponse:
        page = await self._connectors.list(guard.caller(), _owner(request.parent), convert.query(request))
        return pb.ListConnectorsResponse(
            connectors=[convert.connector(view) for view in page.items], next_page_token=page.next_page_token
        )

    async def UpdateConnector(self, request: pb.UpdateConnectorRequest, context: Context) -> pb.UpdateConnectorResponse:
        faults = Faults()
        owner, connector_id = connector_name(request.connector.name, "connector.name", faults)
        draft = convert.draft(request.connector, faults)
        faults.check()
        view = await self._connectors.update(
            guard.caller(), owner, connector_id, draft, request.update_mask.paths, request.connector.etag
        )
        return pb.UpdateConnectorResponse(connector=convert.connector(view))

    async def DeleteConnector(self, request: pb.DeleteConnectorRequest, context: Context) -> pb.DeleteConnectorResponse:
        await self._connectors.delete(guard.caller(), *_named(request.name), request.etag)
        return pb.DeleteConnectorResponse()

    async def RotateCredential(
        self, request: pb.RotateCredentialRequest, context: Context
    ) -> pb.RotateCredentialResponse:
        faults = Faults()
        owner, connector_id = connector_name(request.name, "name", faults)
        credential = convert.credential(request.credential, faults)
        faults.check()
        view = await self._connectors.rotate(guard.caller(), owner, connector_id, credential, request.etag)
        return pb.RotateCredentialResponse(connector=convert.connector(view))

    async def TestConnector(self, request: pb.TestConnectorRequest, context: Context) -> pb.TestConnectorResponse:
        verdict, view = await self._connectors.test(guard.caller(), *_named(request.name), request.model)
        return convert.verdict(verdict, view)

    async def SetDefaultConnector(
        self, request: pb.SetDefaultConnectorRequest, context: Context
    ) -> pb.SetDefaultConnectorResponse:
        view = await self._connectors.set_default(guard.caller(), *_named(request.name))
        return pb.SetDefaultConnectorResponse(connector=convert.connector(view))

    async def ClearDefaultConnector(
        self, request: pb.ClearDefaultConnectorRequest, context: Context
    ) -> pb.ClearDefaultConnectorResponse:
        await self._connectors.clear_default(guard.caller(), _owner(request.parent))
        return pb.ClearDefaultConnectorResponse()

    async def SetFeaturePreference(
        self, request: pb.SetFeaturePreferenceRequest, context: Context
    ) -> pb.SetFeaturePreferenceResponse:
        faults = Faults()
        owner = owner_id(request.parent, "parent", faults)
        connector = connector_name(request.connector, "connector", faults)
        faults.check()
        preference = await self._connectors.set_preference(guard.caller(), owner, request.feature, connector)
        return pb.SetFeaturePreferenceResponse(preference=convert.preference(preference))

    async def ClearFeaturePreference(
        self, request: pb.ClearFeaturePreferenceRequest, context: Context
    ) -> pb.ClearFeaturePreferenceResponse:
        await self._connectors.clear_preference(guard.caller(), _owner(request.parent), request.feature)
        return pb.ClearFeaturePreferenceResponse()

    async def ListFeaturePreferences(
        self, request: pb.ListFeaturePreferencesRequest, context: Context
    ) -> pb.ListFeaturePreferencesResponse:
        page = await self._connectors.preferences(guard.caller(), _owner(request.parent), convert.query(request))
        return pb.ListFeaturePreferencesResponse(
            preferences=[convert.preference(one) for one in page.items], next_page_token=page.next_page_token
        )

    async def GetEffectivePolicy(
        self, request: pb.GetEffectivePolicyRequest, context: Context
    ) -> pb.GetEffectivePolicyResponse:
        policy, allowed, available = await self._connectors.effective_policy(guard.caller(), _owner(request.parent))
        return pb.GetEffectivePolicyResponse(
            policy=convert.effective_policy(policy, allowed, org_default_available=available)
        )

    async def ListConnectorTypes(
        self, request: pb.ListConnectorTypesRequest, context: Context
    ) -> pb.ListConnectorTypesResponse:
        views = await self._connectors.types(guard.caller(), _owner(request.parent))
        page = _page_of_types(views, msgspec.structs.replace(convert.query(request), scope="connector types"))
        return pb.ListConnectorTypesResponse(
            connector_types=[convert.connector_type(view) for _, view in page.items],
            next_page_token=page.next_page_token,
        )

    async def ListConnectorModels(
        self, request: pb.ListConnectorModelsRequest, context: Context
    ) -> pb.ListConnectorModelsResponse:
        named = _named(request.parent, field="parent")
        models, page = await self._connectors.models(guard.caller(), *named, convert.query(request))
        view = await self._connectors.get(guard.caller(), *named)
        return pb.ListConnectorModelsResponse(
            models=[
                convert.model(model, connector=view.connector.name, provider=view.connector.type)
                for model in page.items
            ],
            next_page_token=page.next_page_token,
            fetch_time=timestamp(models.fetched_at),
            stale=models.stale,
        )


def _named(name: str, *, field: str = "name") -> tuple[str, str]:
    """Owner and id. Raises: PatchbayError: INVALID_REQUEST."""
    faults = Faults()
    named = connector_name(name, field, faults)
    faults.check()
    return named


def _owner(parent: str) -> str:
    """The owner's id, or "" for the caller's own. Raises: PatchbayError: INVALID_REQUEST."""
    faults = Faults()
    owner = owner_id(parent, "parent", faults)
    faults.check()
    return owner


def _page_of_types(views: tuple[TypeView, ...], query: Query) -> Result[tuple[int, TypeView]]:
    """Built-in types first, each group in the order of registration."""
    placed = enumerate(sorted(views, key=lambda view: not view.built_in))
    return select(placed, query, {"place": _PLACE}, key=lambda item: item[1].info.type, order="place")
