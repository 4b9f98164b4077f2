"""Connectors and their credentials: create, show, change, rotate, test, pin, prefer, delete.

Credentials go in and never come out: what is shown of one is read from the sealed document each time, so that there is
no second place that could say something else.
"""

import secrets
import uuid
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from typing import Any, Final

import msgspec

from patchbay_server.adapters import credentials
from patchbay_server.adapters.protocol import Adapter, FieldKind, ListsModels, TypeInfo
from patchbay_server.adapters.registry import Registry
from patchbay_server.core.access import RateLimits, acting_owner, require
from patchbay_server.core.attempt import Exchange, rules_of
from patchbay_server.core.choose import may_answer, type_allowed
from patchbay_server.core.clock import Clock
from patchbay_server.core.draft import Draft, check_draft, checked_mask, next_state
from patchbay_server.core.health import Health, Verdict
from patchbay_server.core.listing import Field, Query, Result, all_rows, select
from patchbay_server.core.prompt import MODEL_CHARS_MAX
from patchbay_server.core.snapshots import Snapshots
from patchbay_server.errors import FieldViolation, PatchbayError, Reason
from patchbay_server.store.protocol import Store
from patchbay_server.types import (
    CONTROL,
    FEATURE,
    RESOURCE_ID,
    AuditEvent,
    AuditType,
    Caller,
    Connector,
    ConnectorState,
    ModelInfo,
    Policy,
    Preference,
    Scope,
    Secret,
)
from patchbay_server.vault import Vault
from patchbay_server.wire.egress import check_url
from patchbay_server.wire.http import HttpAnswer, HttpRequest

MODELS_AGE_MAX_S: Final = 3600.0
MODEL_PAGES_MAX: Final = 20
MODELS_MAX: Final = 10_000
"""More than any provider has; what a list holds beyond is left out."""
MODEL_LISTS_MAX: Final = 1_000


class Credential(msgspec.Struct, frozen=True, kw_only=True):
    """Credential fields as they came; only those that were given. Prints nothing of them."""

    type: str
    fields: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"Credential({self.type}, ***)"

    def __rich_repr__(self) -> list[tuple[str, str]]:
        return [("type", self.type)]


class ConnectorView(msgspec.Struct, frozen=True, kw_only=True):
    """A connector as its owner may see it. `settings` are the credential's fields that are not secret."""

    connector: Connector
    last_four: str = ""
    settings: Mapping[str, str] = {}


class TypeView(msgspec.Struct, frozen=True, kw_only=True):
    """A registered connector type, and whether policy allows the owner to create one."""

    info: TypeInfo
    allowed: bool
    built_in: bool


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """A connector's models. `stale` when the provider could not be asked and this is the last good list."""

    models: tuple[ModelInfo, ...]
    fetched_at: datetime
    stale: bool = False


_CONNECTOR_FIELDS: Final[Mapping[str, Field[Connector]]] = {
    "name": Field(read=lambda c, _: c.name, orders=True, filters=False),
    "display_name": Field(read=lambda c, _: c.display_name, orders=True),
    "type": Field(read=lambda c, _: c.type, orders=True),
    "state": Field(read=lambda c, _: c.state.value.upper()),
    "last_test_result": Field(read=lambda c, _: c.last_test_result.value.upper() if c.last_test_result else None),
    "labels.": Field(read=lambda c, key: c.labels.get(key)),
    "create_time": Field(read=lambda c, _: c.created_at, orders=True, filters=False),
    "last_used_time": Field(read=lambda c, _: c.last_used_at, orders=True, filters=False),
}
_PREFERENCE_FIELDS: Final[Mapping[str, Field[Preference]]] = {
    "feature": Field(read=lambda p, _: p.feature, orders=True),
    "connector": Field(read=lambda p, _: p.connector),
    "update_time": Field(read=lambda p, _: p.updated_at, orders=True, filters=False),
}
_MODEL_FIELDS: Final[Mapping[str, Field[ModelInfo]]] = {
    "id": Field(read=lambda m, _: m.id, orders=True),
    "owned_by": Field(read=lambda m, _: m.owned_by),
    "create_time": Field(read=lambda m, _: m.created_at, orders=True, filters=False),
}


class Connectors:
    """The owners' side of connectors. Every method raises CALLER_NOT_AUTHORIZED for a caller without scope or owner."""

    def __init__(
        self,
        *,
        store: Store,
        snapshots: Snapshots,
        registry: Registry,
        vault: Vault,
        exchange: Exchange,
        health: Health,
        rates: RateLimits,
        clock: Clock,
    ) -> None:
        self._store = store
        self._snapshots = snapshots
        self._registry = registry
        self._vault = vault
        self._exchange = exchange
        self._health = health
        self._rates = rates
        self._clock = clock
        self._models: OrderedDict[tuple[str, bytes], tuple[float, ModelList]] = OrderedDict()

    # --- life ---

    async def create(
        self,
        caller: Caller,
        owner: str,
        connector_id: str,
        draft: Draft,
        credential: Credential,
        *,
        validate_only: bool = False,
    ) -> ConnectorView:
        """A new active connector.

        Args:
            owner: "" for the caller's own.
            connector_id: "" for one that is assigned.
            validate_only: check everything and store nothing.

        Raises:
            PatchbayError: INVALID_REQUEST with every field at fault, POLICY_DENIED, ALREADY_EXISTS, RATE_LIMITED.
        """
        owner = self._owner(caller, owner, "parent")
        self._rates.spend(caller, "create_connector")
        policy = (await self._snapshots.get(owner)).policy
        adapter = self._adapter(credential.type, policy)
        if connector_id and not RESOURCE_ID.fullmatch(connector_id):
            raise PatchbayError(
                Reason.INVALID_REQUEST,
                "connector_id is 1 to 63 of a-z, 0-9 and -, starting with a letter and not ending with -",
                field="connector_id",
            )
        check_draft(draft, {"display_name", "model_hint", "settings", "labels"})
        with _under(f"credential.{credential.type}"):
            fields = credentials.validate(adapter.info, credential.fields)
            adapter.check_credential(fields)
            _check_urls(adapter.info, fields, policy)
        _check_hint(adapter, draft.model_hint.strip(), Secret(fields))
        uid = str(uuid.uuid4())
        now = self._clock.now()
        connector = Connector(
            uid=uid,
            owner=owner,
            id=connector_id or f"{credential.type.replace('_', '-')[:40]}-{secrets.token_hex(4)}",
            type=credential.type,
            display_name=draft.display_name.strip(),
            sealed=self._vault.seal(uid, fields),
            model_hint=draft.model_hint.strip() or None,
            settings=draft.settings,
            labels=draft.labels,
            rotated_at=now,
            created_at=now,
            updated_at=now,
        )
        if not validate_only:
            await self._store.create_connector(connector, self._event(AuditType.CREATED, caller, connector))
            await self._snapshots.refresh()
        return self._view(connector)

    async def get(self, caller: Caller, owner: str, connector_id: str) -> ConnectorView:
        """Raises: PatchbayError: CONNECTOR_NOT_FOUND, also for another owner's."""
        return self._view(await self._find(caller, owner, connector_id))

    async def list(self, caller: Caller, owner: str, query: Query) -> Result[ConnectorView]:
        """Raises: PatchbayError: INVALID_REQUEST naming the part of the query at fault."""
        owner = self._owner(caller, owner, "parent")
        found = await self._all(owner)
        query = msgspec.structs.replace(query, scope=f"connectors of {owner}")
        page = select(found, query, _CONNECTOR_FIELDS, key=lambda c: c.id, order="name")
        return Result(items=tuple(self._view(c) for c in page.items), next_page_token=page.next_page_token)

    async def update(
        self, caller: Caller, owner: str, connector_id: str, draft: Draft, mask: Sequence[str], etag: str
    ) -> ConnectorView:
        """Change what `mask` names, and check nothing else: a field left alone may be what today's rules would refuse.

        Raises:
            PatchbayError: INVALID_REQUEST, CONNECTOR_NOT_FOUND, ALREADY_EXISTS, ETAG_MISMATCH.
        """
        connector = await self._find(caller, owner, connector_id)
        paths = checked_mask(mask)
        check_draft(draft, paths)
        changes = self._changes(connector, draft, paths)
        changed = msgspec.structs.replace(
            connector, **changes, updated_at=self._clock.now(), version=connector.version + 1
        )
        event = self._event(AuditType.UPDATED, caller, connector, changed_fields=tuple(sorted(paths)))
        await self._store.save_connector(changed, expected_version(connector, etag), [event])
        return await self._refreshed(connector)

    async def delete(self, caller: Caller, owner: str, connector_id: str, etag: str) -> None:
        """Delete a connector and every place that points to it; its audit trail and its calls stay.

        Raises:
            PatchbayError: CONNECTOR_NOT_FOUND, ETAG_MISMATCH.
        """
        connector = await self._find(caller, owner, connector_id)
        expected = expected_version(connector, etag) if etag else None
        await self._store.delete_connector(connector.uid, expected, self._event(AuditType.DELETED, caller, connector))
        await self._snapshots.refresh()

    async def rotate(
        self, caller: Caller, owner: str, connector_id: str, credential: Credential, etag: str
    ) -> ConnectorView:
        """Exchange the given fields of the credential; an omitted field keeps its value. Clears AUTH_INVALID.

        Raises:
            PatchbayError: INVALID_REQUEST, CONNECTOR_NOT_FOUND, CONNECTOR_INACTIVE for a revoked one, ETAG_MISMATCH,
                RATE_LIMITED;
                CREDENTIAL_UNREADABLE when the old one cannot be opened and the new one does not stand alone.
        """
        connector = await self._find(caller, owner, connector_id)
        self._rates.spend(caller, "rotate_credential")
        if connector.state is ConnectorState.REVOKED:
            raise PatchbayError(
                Reason.CONNECTOR_INACTIVE, "a revoked connector stays revoked; create a new one", field="name"
            )
        if credential.type != connector.type:
            raise PatchbayError(
                Reason.INVALID_REQUEST,
                f"this connector is of type {connector.type!r}; give such a credential, or create another connector",
                field="credential",
            )
        policy = (await self._snapshots.get(connector.owner)).policy
        adapter = self._registry.get(connector.type)
        with _under(f"credential.{credential.type}"):
            fields = self._merged(adapter, connector, credential)
            adapter.check_credential(fields)
            _check_urls(adapter.info, {name: fields[name] for name in credential.fields if name in fields}, policy)
        now = self._clock.now()
        rotated = msgspec.structs.replace(
            connector,
            sealed=self._vault.seal(connector.uid, fields),
            state=ConnectorState.ACTIVE if connector.state is ConnectorState.AUTH_INVALID else connector.state,
            rotated_at=now,
            updated_at=now,
            version=connector.version + 1,
        )
        event = self._event(AuditType.ROTATED, caller, connector, changed_fields=tuple(sorted(credential.fields)))
        await self._store.save_connector(rotated, expected_version(connector, etag), [event])
        return await self._refreshed(connector)

    async def test(self, caller: Caller, owner: str, connector_id: str, model: str) -> tuple[Verdict, ConnectorView]:
        """One cheap real call to the provider, and the connector as it is after it.

        Raises:
            PatchbayError: CONNECTOR_NOT_FOUND, CONNECTOR_INACTIVE for a revoked one, INVALID_REQUEST, RATE_LIMITED.
        """
        connector = await self._find(caller, owner, connector_id)
        if len(model) > MODEL_CHARS_MAX or CONTROL.search(model):
            message = f"a model id has at most {MODEL_CHARS_MAX} characters and no control characters"
            raise PatchbayError(Reason.INVALID_REQUEST, message, field="model")
        self._rates.spend(caller, "test_connector")
        if connector.state is ConnectorState.REVOKED:
            raise PatchbayError(Reason.CONNECTOR_INACTIVE, "a revoked connector is not tested", field="name")
        policy = (await self._snapshots.get(connector.owner)).policy
        verdict = await self._health.check(connector, model, policy, actor=caller.id)
        return verdict, await self._refreshed(connector)

    # --- default and preferences ---

    async def set_default(self, caller: Caller, owner: str, connector_id: str) -> ConnectorView:
        """Raises: PatchbayError: CONNECTOR_NOT_FOUND, CONNECTOR_INACTIVE."""
        connector = await self._find(caller, owner, connector_id)
        event = self._event(AuditType.DEFAULT_SET, caller, connector)
        with naming("name"):
            await self._store.set_default(connector.owner, connector.uid, event)
        return await self._refreshed(connector)

    async def clear_default(self, caller: Caller, owner: str) -> None:
        """The owner has no default afterwards, whether or not there was one."""
        owner = self._owner(caller, owner, "parent")
        current = next((c for c in await self._all(owner) if c.is_default), None)
        if current is None:
            return
        await self._store.set_default(owner, None, self._event(AuditType.DEFAULT_UNSET, caller, current))
        await self._snapshots.refresh()

    async def set_preference(self, caller: Caller, owner: str, feature: str, connector: tuple[str, str]) -> Preference:
        """Let a connector of the owner answer the calls of `feature`.

        Args:
            connector: owner and id that the request names.

        Raises:
            PatchbayError: INVALID_REQUEST, CONNECTOR_NOT_FOUND, CONNECTOR_INACTIVE.
        """
        owner = self._owner(caller, owner, "parent")
        _check_feature(feature)
        if connector[0] != owner:
            raise not_found("connector")
        found = await self._find(caller, owner, connector[1], field="connector")
        at = self._clock.now()
        event = self._event(AuditType.PREFERENCE_SET, caller, found, qualifier=feature)
        with naming("connector"):
            await self._store.set_preference(owner, feature, found.uid, at, event)
        await self._snapshots.refresh()
        return Preference(owner=owner, feature=feature, connector_uid=found.uid, connector=found.name, updated_at=at)

    async def clear_preference(self, caller: Caller, owner: str, feature: str) -> None:
        """The feature has no preference afterwards, whether or not there was one."""
        owner = self._owner(caller, owner, "parent")
        _check_feature(feature)
        event = AuditEvent(
            type=AuditType.PREFERENCE_CLEARED,
            at=self._clock.now(),
            actor=caller.id,
            subject=f"owners/{owner}",
            owner=owner,
            qualifier=feature,
        )
        if await self._store.clear_preference(owner, feature, event):
            await self._snapshots.refresh()

    async def preferences(self, caller: Caller, owner: str, query: Query) -> Result[Preference]:
        owner = self._owner(caller, owner, "parent")
        found = await all_rows(partial(self._store.list_preferences, owner), key=lambda p: p.feature)
        query = msgspec.structs.replace(query, scope=f"preferences of {owner}")
        return select(found, query, _PREFERENCE_FIELDS, key=lambda p: p.feature, order="feature")

    # --- what there is ---

    async def effective_policy(self, caller: Caller, owner: str) -> tuple[Policy, tuple[str, ...], bool]:
        """What concerns the owner: the policy, the types that may be created, and whether there is an organisation
        default.
        """
        snapshot = await self._snapshots.get(self._owner(caller, owner, "parent"))
        allowed = tuple(info.type for info in self._registry.types() if type_allowed(info.type, snapshot.policy))
        shared = snapshot.organisation_default
        return snapshot.policy, allowed, shared is not None and may_answer(shared, snapshot.policy)

    async def types(self, caller: Caller, owner: str) -> tuple[TypeView, ...]:
        """Every registered type, in the order of registration."""
        policy = (await self._snapshots.get(self._owner(caller, owner, "parent"))).policy
        return tuple(
            TypeView(info=info, allowed=type_allowed(info.type, policy), built_in=self._registry.is_built_in(info.type))
            for info in self._registry.types()
        )

    async def models(
        self, caller: Caller, owner: str, connector_id: str, query: Query
    ) -> tuple[ModelList, Result[ModelInfo]]:
        """A connector's models, asked of the provider at most once an hour; the last good list when it cannot be asked.

        Raises:
            PatchbayError: CONNECTOR_NOT_FOUND, CONNECTOR_INACTIVE, NOT_IMPLEMENTED for a type without a model list, any
                UPSTREAM reason
                when no list was ever got.
        """
        connector = await self._find(caller, owner, connector_id, field="parent")
        if connector.state in {ConnectorState.REVOKED, ConnectorState.DISABLED}:
            raise PatchbayError(
                Reason.CONNECTOR_INACTIVE, f"connector {connector.name} is {connector.state.value}", field="parent"
            )
        models = await self._models_of(connector)
        query = msgspec.structs.replace(query, scope=f"models of {connector.uid}")
        return models, select(models.models, query, _MODEL_FIELDS, key=lambda m: m.id, order="id")

    async def _models_of(self, connector: Connector) -> ModelList:
        key = (connector.uid, connector.sealed.blob)
        now = self._clock.monotonic()
        held = self._models.get(key)
        if held is not None and now - held[0] < MODELS_AGE_MAX_S:
            return held[1]
        try:
            fresh = await self._fetch_models(connector)
        except PatchbayError as error:
            if error.reason is Reason.UPSTREAM_CREDENTIAL_REJECTED:
                await self._health.rejected(connector, actor="gateway")
            if held is None:
                raise
            return msgspec.structs.replace(held[1], stale=True)
        self._models[key] = (now, fresh)
        self._models.move_to_end(key)
        while len(self._models) > MODEL_LISTS_MAX:
            self._models.popitem(last=False)
        return fresh

    async def _fetch_models(self, connector: Connector) -> ModelList:
        adapter = self._registry.get(connector.type)
        if not isinstance(adapter, ListsModels):
            raise PatchbayError(Reason.NOT_IMPLEMENTED, f"connectors of type {connector.type!r} have no list of models")
        lister = adapter
        policy = (await self._snapshots.get(connector.owner)).policy
        models: list[ModelInfo] = []
        page = ""
        for _ in range(MODEL_PAGES_MAX):
            answer = await self._ask_page(connector, lister, page, policy)
            got = lister.read_models(answer)
            models += got.models
            page = got.next_page
            if not page or len(models) >= MODELS_MAX:
                break
        return ModelList(models=tuple(models[:MODELS_MAX]), fetched_at=self._clock.now())

    async def _ask_page(self, connector: Connector, lister: ListsModels, page: str, policy: Policy) -> HttpAnswer:
        def build(_: Adapter, secret: Secret, now: datetime) -> HttpRequest:
            return lister.prepare_models(page, secret, now)

        return await self._exchange.ask(connector, build, policy)

    # --- within ---

    def _owner(self, caller: Caller, owner: str, field: str) -> str:
        require(caller, Scope.CONNECTORS)
        return acting_owner(caller, owner, field=field)

    async def _find(self, caller: Caller, owner: str, connector_id: str, *, field: str = "name") -> Connector:
        """The connector, where "another owner's" and "none" look the same."""
        require(caller, Scope.CONNECTORS)
        if caller.owner is not None and owner != caller.owner:
            raise not_found(field)
        connector = await self._store.find_connector(owner, connector_id)
        if connector is None:
            raise not_found(field)
        return connector

    async def _all(self, owner: str) -> Sequence[Connector]:
        """The owner's connectors as the store has them now."""
        return await all_rows(partial(self._store.list_connectors, owner), key=address_key)

    async def _refreshed(self, connector: Connector) -> ConnectorView:
        await self._snapshots.refresh()
        found = await self._store.find_connector(connector.owner, connector.id)
        if found is None:
            raise not_found("name")
        return self._view(found)

    def _adapter(self, connector_type: str, policy: Policy) -> Adapter:
        adapter = self._registry.get(connector_type)
        if not type_allowed(connector_type, policy):
            raise PatchbayError(
                Reason.POLICY_DENIED,
                f"policy does not allow connectors of type {connector_type!r}; ask an administrator",
                field="credential",
            )
        return adapter

    def _view(self, connector: Connector) -> ConnectorView:
        return view_of(connector, self._registry, self._vault)

    def _merged(self, adapter: Adapter, connector: Connector, credential: Credential) -> dict[str, Any]:
        try:
            old = self._vault.open(connector.uid, connector.sealed).reveal()
        except PatchbayError as unreadable:
            try:
                return credentials.validate(adapter.info, credential.fields)
            except PatchbayError:
                raise unreadable from None
        return credentials.merge(adapter.info, old, credential.fields)

    def _changes(self, connector: Connector, draft: Draft, paths: frozenset[str]) -> dict[str, Any]:
        changes: dict[str, Any] = {}
        if "display_name" in paths:
            changes["display_name"] = draft.display_name.strip()
        if "model_hint" in paths:
            hint = draft.model_hint.strip()
            if hint:
                adapter = self._registry.get(connector.type)
                _check_hint(adapter, hint, self._vault.open(connector.uid, connector.sealed))
            changes["model_hint"] = hint or None
        if "state" in paths:
            changes["state"] = next_state(connector.state, draft.state)
        if "labels" in paths:
            changes["labels"] = draft.labels
        if "settings" in paths:
            changes["settings"] = draft.settings
        else:
            names = [path.removeprefix("settings.") + "_s" for path in paths if path.startswith("settings.")]
            given = {name: getattr(draft.settings, name) for name in names}
            if given:
                changes["settings"] = msgspec.structs.replace(connector.settings, **given)
        return changes

    def _event(
        self,
        type_: AuditType,
        caller: Caller,
        connector: Connector,
        *,
        changed_fields: tuple[str, ...] = (),
        qualifier: str = "",
    ) -> AuditEvent:
        event = connector_event(type_, caller, connector, self._clock.now())
        return msgspec.structs.replace(event, changed_fields=changed_fields, qualifier=qualifier)


def view_of(connector: Connector, registry: Registry, vault: Vault) -> ConnectorView:
    """A credential that cannot be opened, or whose type is not installed, shows nothing; the rest is shown all the
    same.
    """
    try:
        info = registry.get(connector.type).info
        secret = vault.open(connector.uid, connector.sealed)
    except PatchbayError:
        return ConnectorView(connector=connector)
    return ConnectorView(
        connector=connector,
        last_four=credentials.last_four(info, secret),
        settings=credentials.describe(info, secret),
    )


def connector_event(type_: AuditType, caller: Caller, connector: Connector, at: datetime) -> AuditEvent:
    """That the caller did something to the connector."""
    return AuditEvent(
        type=type_,
        at=at,
        actor=caller.id,
        subject=connector.name,
        owner=connector.owner,
        connector_uid=connector.uid,
    )


def address_key(connector: Connector) -> str:
    """The connector's page key in the store."""
    return f"{connector.owner}/{connector.id}"


@contextmanager
def naming(field: str) -> Iterator[None]:
    """Names the request field where the store refuses the connector that it named."""
    try:
        yield
    except PatchbayError as error:
        if error.reason not in {Reason.CONNECTOR_NOT_FOUND, Reason.CONNECTOR_INACTIVE}:
            raise
        raise PatchbayError(error.reason, error.message, field=field) from None


class _under:  # noqa: N801 -- reads as the statement it is used as
    """Puts the path of the enclosing message before the fields that an error names; names the message where it names
    none.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, PatchbayError):
            error.violations = tuple(
                FieldViolation(f"{self._path}.{violation.field}", violation.description)
                for violation in error.violations
            )
            if error.reason is Reason.INVALID_REQUEST and not error.violations:
                error.violations = (FieldViolation(self._path, error.message),)


def not_found(field: str) -> PatchbayError:
    return PatchbayError(Reason.CONNECTOR_NOT_FOUND, "there is no such connector", field=field)


def expected_version(connector: Connector, etag: str) -> int:
    """Raises: PatchbayError: ETAG_MISMATCH when an etag is given and the connector has another."""
    if etag and etag != str(connector.version):
        raise PatchbayError(
            Reason.ETAG_MISMATCH, "the connector was changed since it was read; read it again", field="etag"
        )
    return connector.version


def _check_feature(feature: str) -> None:
    if not FEATURE.fullmatch(feature):
        raise PatchbayError(
            Reason.INVALID_REQUEST,
            "a feature is 1 to 64 of a-z, 0-9, _, . and -, starting with a letter",
            field="feature",
        )


def _check_urls(info: TypeInfo, fields: Mapping[str, Any], policy: Policy) -> None:
    """Raises: PatchbayError: INVALID_REQUEST or POLICY_DENIED naming the credential field."""
    for field in info.fields:
        value = fields.get(field.name)
        if field.kind is FieldKind.URL and isinstance(value, str):
            try:
                check_url(value, rules_of(policy))
            except PatchbayError as error:
                raise PatchbayError(error.reason, error.message, field=field.name) from None


def _check_hint(adapter: Adapter, hint: str, secret: Secret) -> None:
    """The same judgement that a call gets, found when the mistake is made."""
    try:
        adapter.check_model(hint, secret)
    except PatchbayError as error:
        raise PatchbayError(Reason.INVALID_REQUEST, error.message, field="connector.model_hint") from None
