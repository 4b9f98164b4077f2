"""Connectors of all owners, policy, caller tokens and the state of a process."""

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from patchbay.v1 import admin_service_pb2 as pb
from patchbay.v1 import gateway_service_pb2 as gateway_pb
from patchbay_server.core.admin import CapChange, ConnectorOverview
from patchbay_server.core.service import Status
from patchbay_server.rpc.convert.connectors import connector
from patchbay_server.rpc.convert.enums import CAP_MODES, FALLBACK_MODES, PRIVATE_HTTP, SCOPES
from patchbay_server.rpc.convert.fields import (
    Faults,
    connector_name,
    duration,
    maybe_timestamp,
    moment,
    owner_id,
    timestamp,
)
from patchbay_server.types import FallbackMode, Policy, Price, PrivateHttp, Scope, Token

EVERY_PROVIDER: Final = "*"
"""In keys of priors and prices: the entry holds for every provider."""
_NEVER: Final = datetime(1970, 1, 1, tzinfo=UTC)
_PROVIDER: Final = re.compile(r"[a-z][a-z0-9_.-]{0,62}")
_MODEL_CHARS_MAX: Final = 256
_PRICES: Final[Mapping[str, str]] = {
    "input_per_million_usd_nanos": "input_usd_nanos",
    "output_per_million_usd_nanos": "output_usd_nanos",
    "cached_input_per_million_usd_nanos": "cached_input_usd_nanos",
    "cache_write_input_per_million_usd_nanos": "cache_write_usd_nanos",
}
"""Fields of `ModelPrice`, and those of `Price` that they are."""


class TokenDraft(msgspec.Struct, frozen=True, kw_only=True):
    """A token to be created. `owner` None acts for any owner."""

    display_name: str
    scopes: Sequence[Scope]
    owner: str | None
    expires_at: datetime | None


# --- connectors -------------------------------------------------------------------------------------------------------


def overview(value: ConnectorOverview) -> pb.ConnectorOverview:
    return pb.ConnectorOverview(
        connector=connector(value.view),
        owner=f"owners/{value.connector.owner}",
        month_tokens=value.use.tokens,
        reserved_tokens=value.use.held,
        org_default=value.organisation_default,
    )


def cap_change(request: pb.SetConnectorCapRequest, faults: Faults) -> CapChange:
    mode = CAP_MODES.given(request.cap_mode, "cap_mode", faults)
    match request.WhichOneof("change"):
        case "monthly_token_cap":
            return CapChange(tokens=request.monthly_token_cap, mode=mode)
        case "clear" if request.clear:
            return CapChange(tokens=None, mode=mode)
        case "clear":
            faults.add("clear", "must be true; to set a cap, give monthly_token_cap")
        case _:
            faults.add("monthly_token_cap", "give a cap, or set clear to true")
    return CapChange(tokens=None)


# --- policy -----------------------------------------------------------------------------------------------------------


def policy_change(request: pb.UpdatePolicyRequest) -> tuple[Policy, Sequence[str]]:
    """The wanted values of what is to change, and the paths of that; fields that no path names are not looked at.

    Raises:
        PatchbayError: INVALID_REQUEST naming every field at fault.
    """
    faults = Faults()
    paths = list(dict.fromkeys(request.update_mask.paths))
    if request.clear_org_default:
        if request.policy.org_default_connector:
            faults.add("clear_org_default", "clear the organisation default or set one, not both")
        paths += [] if "org_default_connector" in paths else ["org_default_connector"]
    wanted: dict[str, Any] = {}
    for path in paths:
        read = _POLICY_READERS.get(path)
        if read is not None:
            wanted.update(read(request.policy, faults))
    faults.check()
    return Policy(updated_at=_NEVER, **wanted), paths


def policy(value: Policy) -> pb.Policy:
    return pb.Policy(
        allowed_connector_types=(
            None if value.allowed_types is None else pb.ConnectorTypeList(types=value.allowed_types)
        ),
        host_allow_list=value.host_allow_list,
        private_http=PRIVATE_HTTP.to_wire[value.private_http],
        org_default_connector=value.organisation_default or "",
        call_log_retention_days=value.call_log_retention_days,
        default_fallback=FALLBACK_MODES.to_wire[value.default_fallback],
        model_aliases=value.model_aliases,
        quality_priors=[_prior(key, quality) for key, quality in value.quality_priors.items()],
        price_overrides=[_price_override(key, price) for key, price in value.price_overrides.items()],
        update_time=None if value.updated_at == _NEVER else timestamp(value.updated_at),
        etag=str(value.version),
    )


def _allowed_types(message: pb.Policy, faults: Faults) -> dict[str, Any]:
    if not message.HasField("allowed_connector_types"):
        return {"allowed_types": None}
    types = tuple(message.allowed_connector_types.types)
    if len(set(types)) < len(types):
        faults.add("policy.allowed_connector_types.types", "name each type once")
    return {"allowed_types": types}


def _private_http(message: pb.Policy, faults: Faults) -> dict[str, Any]:
    chosen = PRIVATE_HTTP.required(message.private_http, "policy.private_http", faults)
    return {"private_http": chosen or PrivateHttp.NONE}


def _organisation_default(message: pb.Policy, faults: Faults) -> dict[str, Any]:
    if message.org_default_connector:
        connector_name(message.org_default_connector, "policy.org_default_connector", faults)
    return {"organisation_default": message.org_default_connector or None}


def _default_fallback(message: pb.Policy, faults: Faults) -> dict[str, Any]:
    chosen = FALLBACK_MODES.required(message.default_fallback, "policy.default_fallback", faults)
    return {"default_fallback": chosen or FallbackMode.NONE}


def _quality_priors(message: pb.Policy, faults: Faults) -> dict[str, Any]:
    priors: dict[str, float] = {}
    for index, prior in enumerate(message.quality_priors):
        path = f"policy.quality_priors[{index}]"
        if not prior.HasField("quality"):
            faults.add(f"{path}.quality", "a quality from 0 to 1 is needed")
        key = _model_key(prior.provider, prior.model, path, priors, faults)
        priors[key] = prior.quality
    return {"quality_priors": priors}


def _price_overrides(message: pb.Policy, faults: Faults) -> dict[str, Any]:
    prices: dict[str, Price] = {}
    for index, override in enumerate(message.price_overrides):
        path = f"policy.price_overrides[{index}]"
        given = {
            ours: getattr(override.price, name)
            for name, ours in _PRICES.items()
            if override.price.HasField(name)  # type: ignore[arg-type]  # a literal each
        }
        if not given:
            faults.add(f"{path}.price", "at least one price is needed")
        key = _model_key(override.provider, override.model, path, prices, faults)
        prices[key] = Price(**given)
    return {"price_overrides": prices}


_POLICY_READERS: Final[Mapping[str, Callable[[pb.Policy, Faults], dict[str, Any]]]] = {
    "allowed_connector_types": _allowed_types,
    "host_allow_list": lambda message, _: {"host_allow_list": tuple(message.host_allow_list)},
    "private_http": _private_http,
    "org_default_connector": _organisation_default,
    "call_log_retention_days": lambda message, _: {"call_log_retention_days": message.call_log_retention_days},
    "default_fallback": _default_fallback,
    "model_aliases": lambda message, _: {"model_aliases": dict(message.model_aliases)},
    "quality_priors": _quality_priors,
    "price_overrides": _price_overrides,
}
"""What each path of an update mask reads. Paths that are not here are the core's to refuse."""


def _model_key(provider: str, model: str, path: str, taken: Mapping[str, object], faults: Faults) -> str:
    """`{provider}/{model}`, with `*` for every provider. Model ids may hold slashes, providers never do."""
    if provider and not _PROVIDER.fullmatch(provider):
        faults.add(f"{path}.provider", "must be a connector type, or empty for every provider")
    if not 0 < len(model) <= _MODEL_CHARS_MAX:
        faults.add(f"{path}.model", f"a model id of 1 to {_MODEL_CHARS_MAX} characters is needed")
    key = f"{provider or EVERY_PROVIDER}/{model}"
    if key in taken:
        faults.add(path, "this provider and model are there twice")
    return key


def _provider_and_model(key: str) -> tuple[str, str]:
    provider, _, model = key.partition("/")
    return "" if provider == EVERY_PROVIDER else provider, model


def _prior(key: str, quality: float) -> pb.QualityPrior:
    provider, model = _provider_and_model(key)
    return pb.QualityPrior(provider=provider, model=model, quality=quality)


def _price_override(key: str, price: Price) -> pb.PriceOverride:
    provider, model = _provider_and_model(key)
    given = {name: getattr(price, ours) for name, ours in _PRICES.items()}
    return pb.PriceOverride(provider=provider, model=model, price=gateway_pb.ModelPrice(**given))


# --- tokens -----------------------------------------------------------------------------------------------------------


def token_draft(token: pb.CallerToken) -> TokenDraft:
    """Raises: PatchbayError: INVALID_REQUEST naming every field at fault."""
    faults = Faults()
    scopes = [SCOPES.required(scope, f"token.scopes[{index}]", faults) for index, scope in enumerate(token.scopes)]
    made = TokenDraft(
        display_name=token.display_name,
        scopes=[scope for scope in scopes if scope is not None],
        owner=_bound_owner(token, faults),
        expires_at=(moment(token.expire_time, "token.expire_time", faults) if token.HasField("expire_time") else None),
    )
    faults.check()
    return made


def _bound_owner(token: pb.CallerToken, faults: Faults) -> str | None:
    """The one owner, or None for any; which of the two must be said."""
    match token.WhichOneof("binding"):
        case "owner" if token.owner:
            return owner_id(token.owner, "token.owner", faults)
        case "any_owner" if token.any_owner:
            return None
        case _:
            faults.add("token", "set owner to owners/{owner}, or any_owner to true")
            return None


def token(value: Token) -> pb.CallerToken:
    made = pb.CallerToken(
        name=f"tokens/{value.id}",
        display_name=value.display_name,
        scopes=sorted(SCOPES.to_wire[scope] for scope in value.scopes),
        expire_time=maybe_timestamp(value.expires_at),
        create_time=timestamp(value.created_at),
        last_used_time=maybe_timestamp(value.last_used_at),
        revoke_time=maybe_timestamp(value.revoked_at),
    )
    if value.owner is None:
        made.any_owner = True
    else:
        made.owner = f"owners/{value.owner}"
    return made


# --- status -----------------------------------------------------------------------------------------------------------


def status(value: Status) -> pb.GetStatusResponse:
    facts = value.facts
    store = value.store
    return pb.GetStatusResponse(
        version=facts.version,
        process_id=facts.process_id,
        start_time=timestamp(facts.started_at),
        draining=value.draining,
        store=pb.StoreStatus(
            kind="" if store is None else store.kind,
            reachable=store is not None,
            schema_revision="" if store is None else store.schema_revision,
            latency=None if value.store_latency_s is None else duration(value.store_latency_s),
        ),
        keyring=pb.KeyringStatus(
            primary_key_id=facts.key_ids[0], key_ids=facts.key_ids, stale_count=value.stale_credentials
        ),
        calls_open=value.calls_open,
        calls_queued=value.calls_queued,
        calls_without_record=value.calls_without_record,
        plugins=[
            pb.PluginStatus(
                name=plugin.name,
                connector_type=plugin.connector_type,
                loaded=plugin.loaded,
            )
            for plugin in facts.plugins
        ],
        breakers=[
            pb.BreakerStatus(
                connector=breaker.connector,
                model=breaker.model,
                half_open=breaker.half_open,
                open_time=timestamp(breaker.opened_at),
            )
            for breaker in value.breakers
        ],
    )
