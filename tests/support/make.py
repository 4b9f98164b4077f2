"""Values for tests, each complete and valid, with what matters to a test said by the test."""

from datetime import datetime
from typing import Any

from tests.support.clock import START

from patchbay_server.types import (
    Caller,
    ChatRequest,
    Connector,
    Message,
    Part,
    Policy,
    Prompt,
    Role,
    Scope,
    Sealed,
    Snapshot,
    TextPart,
)

OWNER = "acme"
EVERY_SCOPE = frozenset(Scope)


def connector(id: str = "main", *, owner: str = OWNER, **given: Any) -> Connector:  # noqa: A002 -- the field's name
    told: dict[str, Any] = {
        "uid": f"uid-{owner}-{id}",
        "owner": owner,
        "id": id,
        "type": "openai_compatible",
        "display_name": f"{owner} {id}",
        "sealed": Sealed(b"sealed", "key-1"),
        "model_hint": "small",
        "rotated_at": START,
        "created_at": START,
        "updated_at": START,
    }
    return Connector(**(told | given))


def policy(**given: Any) -> Policy:
    return Policy(**({"updated_at": START} | given))


def snapshot(
    *connectors: Connector,
    owner: str = OWNER,
    preferences: dict[str, str] | None = None,
    organisation_default: Connector | None = None,
    **policy_fields: Any,
) -> Snapshot:
    """`preferences` are by the connector's id, and as in a store the policy names the organisation default."""
    uids = {c.id: c.uid for c in connectors}
    return Snapshot(
        version=1,
        owner=owner,
        connectors=connectors,
        preferences={feature: uids.get(id_, id_) for feature, id_ in (preferences or {}).items()},
        organisation_default=organisation_default,
        policy=policy(
            organisation_default=organisation_default.name if organisation_default else None, **policy_fields
        ),
    )


def message(role: Role = Role.USER, *parts: Part) -> Message:
    return Message(role=role, parts=parts or (TextPart(text="Tell me about the sea."),))


def prompt(*messages: Message, **given: Any) -> Prompt:
    return Prompt(messages=messages or (message(),), **given)


def request(*messages: Message, **given: Any) -> ChatRequest:
    """A request of one short message; fields of `Prompt` may be given beside those of `ChatRequest`."""
    inner = {name: given.pop(name) for name in tuple(given) if name in Prompt.__struct_fields__}
    return ChatRequest(prompt=given.pop("prompt", None) or prompt(*messages, **inner), **given)


def caller(owner: str | None = OWNER, *, id: str = "caller-1", scopes: frozenset[Scope] = EVERY_SCOPE) -> Caller:  # noqa: A002
    return Caller(id=id, owner=owner, scopes=scopes)


def at(text: str) -> datetime:
    """A moment written as `2026-11-30T23:59:59Z`."""
    return datetime.fromisoformat(text)
