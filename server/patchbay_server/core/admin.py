"""The administrators' side: all owners' connectors, tokens, policy."""

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Final

import msgspec

from patchbay_server.adapters.registry import Registry
from patchbay_server.core.access import Access, TokenText, new_token_text, require
from patchbay_server.core.choose import RESERVED, ROUTED_PREFIX
from patchbay_server.core.clock import Clock
from patchbay_server.core.connectors import (
    ConnectorView,
    address_key,
    connector_event,
    expected_version,
    naming,
    not_found,
    view_of,
)
from patchbay_server.core.listing import Field, Query, Result, all_rows, select
from patchbay_server.core.snapshots import Snapshots
from patchbay_server.errors import FieldViolation, PatchbayError, Reason
from patchbay_server.store.protocol import Store
from patchbay_server.types import (
    CONTROL,
    RESOURCE_ID,
    AuditEvent,
    AuditType,
    Caller,
    CapMode,
    CapUse,
    Connector,
    ConnectorState,
    Policy,
    Scope,
    Token,
    month_of,
)
from patchbay_server.vault import Vault
from patchbay_server.wire.egress import check_allow_list_entry

NAME_CHARS_MAX: Final = 80
ENTRIES_MAX: Final = 1_000
MODEL_CHARS_MAX: Final = 256
RETENTION_DAYS: Final = (7, 365)
CAP_TOKENS_MAX: Final = 2**63 - 1
CHANGE_TRIES: Final = 10
"""How often a change of a connector is made anew, when others change the connector meanwhile."""
BOOTSTRAP: Final = "bootstrap"
"""The actor of what the service does by itself at its first start."""

POLICY_PATHS: Final[Mapping[str, str]] = {
    "allowed_connector_types": "allowed_types",
    "host_allow_list": "host_allow_list",
    "private_http": "private_http",
    "org_default_connector": "organisation_default",
    "call_log_retention_days": "call_log_retention_days",
    "default_fallback": "default_fallback",
    "model_aliases": "model_aliases",
    "quality_priors": "quality_priors",
    "price_overrides": "price_overrides",
}
"""Paths of an update mask, and the fields of `Policy` that they name."""

_TOKEN_FIELDS: Final[Mapping[str, Field[Token]]] = {
    "name": Field(read=lambda t, _: f"tokens/{t.id}", orders=True, filters=False),
    "display_name": Field(read=lambda t, _: t.display_name, orders=True),
    "owner": Field(read=lambda t, _: f"owners/{t.owner}" if t.owner else None),
    "create_time": Field(read=lambda t, _: t.created_at, orders=True, filters=False),
    "last_used_time": Field(read=lambda t, _: t.last_used_at, orders=True, filters=False),
    "expire_time": Field(read=lambda t, _: t.expires_at, orders=True, filters=False),
}


class ConnectorOverview(msgspec.Struct, frozen=True, kw_only=True):
    """A connector as administrators see it, with what is taken of its cap in this month."""

    view: ConnectorView
    use: CapUse
    organisation_default: bool

    @property
    def connector(self) -> Connector:
        return self.view.connector


class CapChange(msgspec.Struct, frozen=True, kw_only=True):
    """A new cap. `tokens` None clears it; `mode` None leaves it as it was, soft where there was no cap."""

    tokens: int | None
    mode: CapMode | None = None


_OVERVIEW_FIELDS: Final[Mapping[str, Field[ConnectorOverview]]] = {
    "name": Field(read=lambda o, _: o.connector.name, orders=True, filters=False),
    "owner": Field(read=lambda o, _: f"owners/{o.connector.owner}"),
    "display_name": Field(read=lambda o, _: o.connector.display_name, orders=True),
    "type": Field(read=lambda o, _: o.connector.type, orders=True),
    "state": Field(read=lambda o, _: o.connector.state.name, orders=True),
    "last_test_result": Field(
        read=lambda o, _: o.connector.last_test_result.name if o.connector.last_test_result else None
    ),
    "monthly_token_cap": Field(read=lambda o, _: o.connector.monthly_token_cap, number=True),
    "month_tokens": Field(read=lambda o, _: o.use.tokens, number=True, orders=True),
    "create_time": Field(read=lambda o, _: o.connector.created_at, orders=True, filters=False),
    "last_used_time": Field(read=lambda o, _: o.connector.last_used_at, orders=True, filters=False),
}


class Admin:
    """Every method raises CALLER_NOT_AUTHORIZED for a caller without the scope `admin`."""

    def __init__(
        self, *, store: Store, snapshots: Snapshots, registry: Registry, vault: Vault, access: Access, clock: Clock
    ) -> None:
        self._store = store
        self._vault = vault
        self._snapshots = snapshots
        self._registry = registry
        self._access = access
        self._clock = clock

    # --- connectors ---

    async def connectors(self, caller: Caller, query: Query) -> Result[ConnectorOverview]:
        """All owners' connectors, or those of the one owner that the caller is bound to.

        Raises:
            PatchbayError: INVALID_REQUEST naming the part of the query at fault.
        """
        require(caller, Scope.ADMIN)
        found = await all_rows(partial(self._store.list_connectors, caller.owner), key=address_key)
        now = self._clock.now()
        use = await self._store.cap_use([connector.uid for connector in found], month_of(now), now)
        named = (await self._store.policy()).organisation_default
        rows = [
            ConnectorOverview(
                view=ConnectorView(connector=connector),
                use=use[connector.uid],
                organisation_default=connector.name == named,
            )
            for connector in found
        ]
        query = msgspec.structs.replace(query, scope=f"all connectors for {caller.owner}")
        page = select(rows, query, _OVERVIEW_FIELDS, key=lambda o: o.connector.name, order="name")
        # Credentials are opened for the page only.
        shown = (msgspec.structs.replace(row, view=self._view(row.connector)) for row in page.items)
        return Result(items=tuple(shown), next_page_token=page.next_page_token)

    async def revoke_connector(self, caller: Caller, address: tuple[str, str], etag: str) -> ConnectorView:
        """Revoke a connector for good: its credential is destroyed and nothing points to it any more. Twice is once.

        Args:
            address: owner and id.

        Raises:
            PatchbayError: CONNECTOR_NOT_FOUND, also for an owner that the caller may not act for; ETAG_MISMATCH.
        """

        def revoked(connector: Connector) -> dict[str, Any]:
            if connector.state is ConnectorState.REVOKED:
                return {}
            return {"state": ConnectorState.REVOKED, "sealed": self._vault.seal(connector.uid, {})}

        return await self._change(caller, address, etag, revoked, AuditType.REVOKED)

    async def set_cap(self, caller: Caller, address: tuple[str, str], change: CapChange, etag: str) -> ConnectorView:
        """Set or clear a connector's monthly cap. Calls in flight go on; setting what is set changes nothing.

        Args:
            address: owner and id.

        Raises:
            PatchbayError: INVALID_REQUEST, CONNECTOR_NOT_FOUND, also for an owner that the caller may not act for;
                ETAG_MISMATCH.
        """
        _check_cap(change)

        def capped(connector: Connector) -> dict[str, Any]:
            had = CapMode.SOFT if connector.monthly_token_cap is None else connector.cap_mode
            wanted = {
                "monthly_token_cap": change.tokens,
                "cap_mode": CapMode.SOFT if change.tokens is None else change.mode or had,
            }
            return {field: value for field, value in wanted.items() if getattr(connector, field) != value}

        return await self._change(caller, address, etag, capped, AuditType.CAP_CHANGED)

    async def _change(
        self,
        caller: Caller,
        address: tuple[str, str],
        etag: str,
        change: Callable[[Connector], dict[str, Any]],
        type_: AuditType,
    ) -> ConnectorView:
        """Change what `change` answers, if anything, and leave an audit event that names the fields of it."""
        require(caller, Scope.ADMIN)
        tries = 1 if etag else CHANGE_TRIES
        while True:
            connector = await self._find(caller, *address)
            version = expected_version(connector, etag)
            changes = change(connector)
            if not changes:
                return self._view(connector)
            now = self._clock.now()
            event = msgspec.structs.replace(
                connector_event(type_, caller, connector, now), changed_fields=tuple(sorted(changes))
            )
            changed = msgspec.structs.replace(connector, **changes, updated_at=now, version=version + 1)
            try:
                await self._store.save_connector(changed, version, [event])
            except PatchbayError as error:
                # Who gave no etag means the connector as it is, whatever was changed since it was read here.
                tries -= 1
                if error.reason is Reason.ETAG_MISMATCH and tries:
                    continue
                raise
            await self._snapshots.refresh()
            return self._view(await self._find(caller, *address))

    async def _find(self, caller: Caller, owner: str, connector_id: str) -> Connector:
        """The connector, where "not the caller's to administer" and "none" look the same."""
        if caller.owner is not None and owner != caller.owner:
            raise not_found("name")
        connector = await self._store.find_connector(owner, connector_id)
        if connector is None:
            raise not_found("name")
        return connector

    def _view(self, connector: Connector) -> ConnectorView:
        return view_of(connector, self._registry, self._vault)

    # --- tokens ---

    async def create_token(
        self,
        caller: Caller,
        display_name: str,
        scopes: Collection[Scope],
        owner: str | None,
        expires_at: datetime | None,
    ) -> tuple[Token, TokenText]:
        """A new token and its text, which is shown this once and kept nowhere.

        Args:
            owner: the one owner that it may act for, or None for any.

        Raises:
            PatchbayError: INVALID_REQUEST naming every field at fault.
        """
        require(caller, Scope.ADMIN)
        now = self._clock.now()
        _check_token(display_name, scopes, owner, expires_at, now)
        token, text = _new_token(display_name.strip(), frozenset(scopes), owner, now, expires_at)
        await self._store.create_token(token, _token_event(AuditType.TOKEN_CREATED, caller.id, token.id, now))
        return token, text

    async def tokens(self, caller: Caller, query: Query) -> Result[Token]:
        """Raises: PatchbayError: INVALID_REQUEST naming the part of the query at fault."""
        require(caller, Scope.ADMIN)
        found = await all_rows(self._store.list_tokens, key=lambda t: t.id)
        query = msgspec.structs.replace(query, scope="tokens")
        return select(found, query, _TOKEN_FIELDS, key=lambda t: t.id, order="name")

    async def revoke_token(self, caller: Caller, token_id: str) -> Token:
        """Make a token useless from now on; in other processes within `access.TOKEN_AGE_MAX_S`. Revoking twice is once.

        Raises:
            PatchbayError: RESOURCE_NOT_FOUND.
        """
        require(caller, Scope.ADMIN)
        now = self._clock.now()
        event = _token_event(AuditType.TOKEN_REVOKED, caller.id, token_id, now)
        await self._store.revoke_token(token_id, now, event)
        self._access.forget(token_id)
        token = await self._store.find_token(token_id)
        if token is None:
            raise PatchbayError(Reason.RESOURCE_NOT_FOUND, "there is no such token", field="name")
        return token

    async def bootstrap(self, text: str | None) -> TokenText | None:
        """At the first start, make the administrator's token; None when there are tokens already.

        Args:
            text: the token's text from the configuration, or None to have one made.

        Raises:
            PatchbayError: INVALID_REQUEST when `text` is no token.
        """
        if await self._store.count_tokens():
            return None
        now = self._clock.now()
        token, made = _new_token("first administrator", frozenset(Scope), None, now, None, text=text)
        await self._store.create_token(token, _token_event(AuditType.TOKEN_CREATED, BOOTSTRAP, token.id, now))
        return made

    # --- policy ---

    async def policy(self, caller: Caller) -> Policy:
        require(caller, Scope.ADMIN)
        return await self._store.policy()

    async def update_policy(self, caller: Caller, wanted: Policy, mask: Sequence[str], etag: str) -> Policy:
        """Change what `mask` names; in this process at once, in others within `snapshots.POLL_S`.

        Raises:
            PatchbayError: INVALID_REQUEST naming every field at fault, ETAG_MISMATCH, CONNECTOR_NOT_FOUND,
                CONNECTOR_INACTIVE.
        """
        require(caller, Scope.ADMIN)
        unknown = sorted(set(mask) - set(POLICY_PATHS))
        if unknown or not mask:
            what = f"{unknown[0]!r} cannot be updated" if unknown else "name what is to change"
            raise PatchbayError(
                Reason.INVALID_REQUEST,
                f"update_mask: {what}; it takes {', '.join(sorted(POLICY_PATHS))}",
                field="update_mask",
            )
        self._check_policy(wanted, mask)
        current = await self._store.policy()
        if etag and etag != str(current.version):
            raise PatchbayError(
                Reason.ETAG_MISMATCH, "the policy was changed since it was read; read it again", field="policy.etag"
            )
        changes: dict[str, Any] = {POLICY_PATHS[path]: getattr(wanted, POLICY_PATHS[path]) for path in mask}
        now = self._clock.now()
        changed = msgspec.structs.replace(current, **changes, updated_at=now, version=current.version + 1)
        event = AuditEvent(
            type=AuditType.POLICY_CHANGED,
            at=now,
            actor=caller.id,
            subject="policy",
            changed_fields=tuple(sorted(set(mask))),
        )
        with naming("policy.org_default_connector"):
            await self._store.save_policy(changed, current.version, event)
        await self._snapshots.refresh()
        return changed

    def _check_policy(self, wanted: Policy, mask: Sequence[str]) -> None:
        violations: list[FieldViolation] = []
        for path in mask:
            violations += _POLICY_CHECKS[path](wanted) if path in _POLICY_CHECKS else []
        if "allowed_connector_types" in mask and wanted.allowed_types is not None:
            known = {info.type for info in self._registry.types()}
            violations += [
                FieldViolation("policy.allowed_connector_types", f"there is no connector type {name!r}")
                for name in wanted.allowed_types
                if name not in known
            ]
        if violations:
            first = violations[0]
            raise PatchbayError(
                Reason.INVALID_REQUEST, f"{first.field}: {first.description}", violations=violations[:20]
            )


def _check_cap(change: CapChange) -> None:
    """Raises: PatchbayError: INVALID_REQUEST."""
    if change.tokens is not None and not 0 <= change.tokens <= CAP_TOKENS_MAX:
        raise PatchbayError(
            Reason.INVALID_REQUEST,
            "a cap is a number of tokens, 0 or more; clear it to have none",
            field="monthly_token_cap",
        )
    if change.tokens is None and change.mode is not None:
        raise PatchbayError(Reason.INVALID_REQUEST, "there is no mode of no cap", field="cap_mode")


def _new_token(
    display_name: str,
    scopes: frozenset[Scope],
    owner: str | None,
    now: datetime,
    expires_at: datetime | None,
    *,
    text: str | None = None,
) -> tuple[Token, TokenText]:
    token_id, token_text, digest = new_token_text(text)
    token = Token(
        id=token_id,
        digest=digest,
        display_name=display_name,
        scopes=scopes,
        owner=owner,
        created_at=now,
        expires_at=expires_at,
    )
    return token, token_text


def _token_event(type_: AuditType, actor: str, token_id: str, at: datetime) -> AuditEvent:
    return AuditEvent(type=type_, at=at, actor=actor, subject=f"tokens/{token_id}")


def _check_token(
    display_name: str, scopes: Collection[Scope], owner: str | None, expires_at: datetime | None, now: datetime
) -> None:
    violations: list[FieldViolation] = []
    if not (0 < len(display_name.strip()) <= NAME_CHARS_MAX) or CONTROL.search(display_name):
        violations.append(
            FieldViolation("token.display_name", f"1 to {NAME_CHARS_MAX} characters, no control characters")
        )
    if not scopes or len(set(scopes)) != len(scopes):
        violations.append(FieldViolation("token.scopes", "at least one of CHAT, CONNECTORS and ADMIN, each once"))
    if owner is not None and not RESOURCE_ID.fullmatch(owner):
        violations.append(
            FieldViolation("token.owner", "an owner id is 1 to 63 of a-z, 0-9 and -, starting with a letter")
        )
    if expires_at is not None and expires_at <= now:
        violations.append(FieldViolation("token.expire_time", "must be in the future"))
    if violations:
        first = violations[0]
        raise PatchbayError(Reason.INVALID_REQUEST, f"{first.field}: {first.description}", violations=violations)


def _retention(policy: Policy) -> list[FieldViolation]:
    low, high = RETENTION_DAYS
    if low <= policy.call_log_retention_days <= high:
        return []
    return [FieldViolation("policy.call_log_retention_days", f"{low} to {high} days")]


def _hosts(policy: Policy) -> list[FieldViolation]:
    if len(policy.host_allow_list) > ENTRIES_MAX:
        return [FieldViolation("policy.host_allow_list", f"at most {ENTRIES_MAX} hosts")]
    return [
        FieldViolation("policy.host_allow_list", f"{host[:80]!r} is no host in lower case, nor `*.` and a domain")
        for host in policy.host_allow_list
        if not _canonical(host)
    ]


def _canonical(host: str) -> bool:
    """Whether an entry is written as hosts are compared; one that is not would never match."""
    try:
        return check_allow_list_entry(host) == host
    except PatchbayError:
        return False


def _aliases(policy: Policy) -> list[FieldViolation]:
    if len(policy.model_aliases) > ENTRIES_MAX:
        return [FieldViolation("policy.model_aliases", f"at most {ENTRIES_MAX} aliases")]
    violations = []
    for alias, model in policy.model_aliases.items():
        if alias == RESERVED or alias.startswith(ROUTED_PREFIX):
            violations.append(FieldViolation("policy.model_aliases", f"{alias[:80]!r} is reserved"))
        if not 0 < len(alias) <= MODEL_CHARS_MAX or not 0 < len(model) <= MODEL_CHARS_MAX:
            violations.append(
                FieldViolation("policy.model_aliases", f"names and targets are 1 to {MODEL_CHARS_MAX} characters")
            )
    return violations


def _model_keys(path: str, models: Collection[str]) -> list[FieldViolation]:
    if len(models) > ENTRIES_MAX:
        return [FieldViolation(path, f"at most {ENTRIES_MAX} entries")]
    return [
        FieldViolation(path, f"a model id is 1 to {MODEL_CHARS_MAX} characters")
        for model in models
        if not 0 < len(model) <= MODEL_CHARS_MAX
    ]


def _qualities(policy: Policy) -> list[FieldViolation]:
    path = "policy.quality_priors"
    return _model_keys(path, policy.quality_priors) or [
        FieldViolation(path, f"the quality of {model[:80]!r} must be between 0 and 1")
        for model, quality in policy.quality_priors.items()
        if not 0 <= quality <= 1
    ]


def _prices(policy: Policy) -> list[FieldViolation]:
    path = "policy.price_overrides"
    violations = _model_keys(path, policy.price_overrides)
    if violations:
        return violations
    for model, price in policy.price_overrides.items():
        values = [value for value in msgspec.structs.astuple(price) if value is not None]
        if not values or min(values) < 0:
            violations.append(FieldViolation(path, f"give {model[:80]!r} at least one price, none negative"))
    return violations


_POLICY_CHECKS: Final = {
    "call_log_retention_days": _retention,
    "host_allow_list": _hosts,
    "model_aliases": _aliases,
    "quality_priors": _qualities,
    "price_overrides": _prices,
}
