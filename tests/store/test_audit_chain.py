"""The hash chain of the audit trail."""

import hashlib
import itertools
from datetime import timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from patchbay_server.store import audit_chain
from patchbay_server.store.audit_chain import audit_hash
from patchbay_server.testing.store_suite import NOW, an_event
from patchbay_server.types import AuditEvent, AuditType

EVENT = an_event(
    AuditType.ROTATED,
    at=NOW,
    actor="tokens/ä",
    subject="s",
    owner="alice",
    connector_uid="uid-1",
    qualifier="q",
    changed_fields=("api_key", "region"),
    call_id="call-1",
)


def test_the_encoding_is_the_documented_one() -> None:
    previous = bytes(range(32))
    moment = str(int(NOW.timestamp()) * 10**6 + NOW.microsecond)
    texts = ["7", moment, "rotated", "tokens/ä", "s", "alice", "uid-1", "q", "call-1", "2", "api_key", "region"]
    fields = [b"patchbay-audit-1", previous, *(text.encode() for text in texts)]
    encoded = b"".join(str(len(field)).encode() + b":" + field for field in fields)
    assert audit_hash(previous, EVENT, 7) == hashlib.sha256(encoded).digest()


@pytest.mark.parametrize(
    "change",
    [
        {"type": AuditType.DELETED},
        {"at": NOW + timedelta(microseconds=1)},
        {"actor": "other"},
        {"subject": "other"},
        {"owner": "bob"},
        {"connector_uid": "uid-2"},
        {"qualifier": ""},
        {"changed_fields": ("api_key",)},
        {"changed_fields": ("api_keyregion",)},
        {"changed_fields": ("region", "api_key")},
        {"call_id": ""},
    ],
    ids=str,
)
def test_every_field_is_in_the_hash(change: dict[str, Any]) -> None:
    assert audit_hash(bytes(32), replace(EVENT, **change), 1) != audit_hash(bytes(32), EVENT, 1)


def test_no_field_of_an_event_is_left_out_of_the_test_above() -> None:
    assert set(AuditEvent.__struct_fields__) == {
        *("type", "at", "actor", "subject", "owner", "connector_uid", "qualifier", "changed_fields", "call_id")
    }


def test_text_that_moves_from_field_to_field_changes_the_hash() -> None:
    cuts = [replace(EVENT, actor="abcd"[:i], subject="abcd"[i:j], owner="abcd"[j:]) for i, j in _cuts()]
    assert len({audit_hash(bytes(32), event, 1) for event in cuts}) == len(cuts)


def _cuts() -> list[tuple[int, int]]:
    return list(itertools.combinations_with_replacement(range(5), 2))


def test_previous_hash_and_place_are_in_the_hash() -> None:
    assert audit_hash(bytes(32), EVENT, 1) != audit_hash(bytes(31) + b"\1", EVENT, 1)
    assert audit_hash(bytes(32), EVENT, 1) != audit_hash(bytes(32), EVENT, 2)


def test_a_row_follows_the_head_before_it() -> None:
    first = audit_chain.follow(audit_chain.EMPTY, EVENT)
    second = audit_chain.follow(audit_chain.head_of(first), EVENT)
    assert (first.sequence, first.previous_hash) == (1, bytes(32))
    assert (second.sequence, second.previous_hash) == (2, first.hash)
    assert second.hash == audit_hash(first.hash, EVENT, 2)
    assert second.changed_fields == EVENT.changed_fields
