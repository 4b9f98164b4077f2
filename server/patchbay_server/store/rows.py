"""Values to rows and back, where a column is not simply a field of the same name."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import Row

from patchbay_server.errors import UpstreamFailure
from patchbay_server.store.protocol import AuditRow
from patchbay_server.store.tables import DamagedRow
from patchbay_server.types import (
    AttemptClosed,
    AttemptOpened,
    AttemptRow,
    CallClosed,
    CallOpened,
    CallRow,
    CallState,
    Connector,
    Policy,
    Preference,
    RoutingOutcome,
    Sealed,
    Token,
)
from patchbay_server.usage import Usage, UsageSource

Columns = dict[str, Any]

_COUNTS: Final = tuple(field for field in Usage.__struct_fields__ if field != "source")
_FAILURE: Final = UpstreamFailure.__struct_fields__
_ROUTING: Final = RoutingOutcome.__struct_fields__


def plain(value: msgspec.Struct) -> Columns:
    """The columns of a value whose fields are all columns."""
    return msgspec.structs.asdict(value)


def connector_columns(connector: Connector) -> Columns:
    columns = plain(connector)
    sealed = columns.pop("sealed")
    return columns | {"sealed_blob": sealed.blob, "sealed_key_id": sealed.key_id}


def connector_of(row: Row[Any]) -> Connector:
    columns = dict(row._mapping)
    sealed = Sealed(blob=columns.pop("sealed_blob"), key_id=columns.pop("sealed_key_id"))
    return Connector(sealed=sealed, **columns)


def token_of(row: Row[Any]) -> Token:
    return Token(**row._mapping)


def audit_row_of(row: Row[Any]) -> AuditRow:
    return AuditRow(**row._mapping)


def preference_of(row: Row[Any]) -> Preference:
    """From a preference's columns and the `id` of its connector."""
    columns = dict(row._mapping)
    return Preference(connector=f"owners/{row.owner}/connectors/{columns.pop('id')}", **columns)


def policy_document(policy: Policy) -> str:
    return msgspec.json.encode(policy, order="deterministic").decode()


def policy_of(row: Row[Any] | None) -> Policy:
    """Raises: DamagedRow when the row is gone or its document is not a policy."""
    if row is None:
        raise DamagedRow("policy")
    try:
        policy = msgspec.json.decode(row.document, type=Policy)
    except (msgspec.MsgspecError, UnicodeError, TypeError):
        raise DamagedRow("policy") from None
    if policy.updated_at.tzinfo is None:
        raise DamagedRow("policy")
    return msgspec.structs.replace(policy, version=row.version)


def usage_columns(usage: Usage | None) -> Columns:
    if usage is None:
        return dict.fromkeys(_COUNTS) | {"usage_source": None}
    columns = plain(usage)
    columns["usage_source"] = columns.pop("source")
    return columns


def _usage_of(columns: Columns) -> Usage | None:
    source: UsageSource | None = columns["usage_source"]
    return None if source is None else Usage(source=source, **{field: columns[field] for field in _COUNTS})


def failure_columns(failure: UpstreamFailure) -> Columns:
    return {f"failure_{field}": getattr(failure, field) for field in _FAILURE}


def _failure_of(columns: Columns) -> UpstreamFailure:
    stored = {field: columns[f"failure_{field}"] for field in _FAILURE}
    return UpstreamFailure(**{field: value for field, value in stored.items() if value is not None})


def call_columns(opened: CallOpened) -> Columns:
    columns = plain(opened)
    routing = columns.pop("routing")
    return columns | {f"routing_{field}": getattr(routing, field, None) for field in _ROUTING}


def _routing_of(columns: Columns) -> RoutingOutcome | None:
    if columns["routing_reserved_model"] is None:
        return None
    return RoutingOutcome(**{field: columns[f"routing_{field}"] for field in _ROUTING})


def call_of(row: Row[Any], attempts: Sequence[Row[Any]] = ()) -> CallRow:
    columns = dict(row._mapping)
    state: CallState = columns["state"]
    closed = None
    if state is not CallState.OPEN:
        fields = (field for field in CallClosed.__struct_fields__ if field != "usage")
        closed = CallClosed(usage=_usage_of(columns), **{field: columns[field] for field in fields})
    fields = (field for field in CallOpened.__struct_fields__ if field != "routing")
    opened = CallOpened(routing=_routing_of(columns), **{field: columns[field] for field in fields})
    return CallRow(opened=opened, state=state, closed=closed, attempts=tuple(map(attempt_of, attempts)))


def attempt_of(row: Row[Any]) -> AttemptRow:
    columns = dict(row._mapping)
    state: CallState = columns["state"]
    closed = None
    if state is not CallState.OPEN:
        fields = (field for field in AttemptClosed.__struct_fields__ if field not in {"usage", "failure"})
        closed = AttemptClosed(
            usage=_usage_of(columns), failure=_failure_of(columns), **{field: columns[field] for field in fields}
        )
    opened = AttemptOpened(**{field: columns[field] for field in AttemptOpened.__struct_fields__})
    return AttemptRow(opened=opened, state=state, closed=closed)
