"""The hash chain of the audit trail: each row's hash covers the row and the hash of the row before it.

Whoever changes, removes, inserts or reorders a row breaks every link after it; the head kept beside the rows shows rows
cut off the end.
"""

import hashlib
import re
from collections.abc import Iterator
from typing import Final

from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.store.moments import microseconds
from patchbay_server.store.protocol import AuditHead, AuditRow, Page
from patchbay_server.types import AuditEvent

EMPTY: Final = AuditHead(sequence=0, hash=bytes(32))
"""The head of a trail without rows."""


def audit_hash(previous_hash: bytes, event: AuditEvent, sequence: int) -> bytes:
    """The 32 bytes of SHA-256 over the canonical encoding of the row `sequence` that follows the row with
    `previous_hash`.

    The encoding is a sequence of netstrings: the length in bytes in decimal digits, a colon, the bytes; so no two rows
    encode alike. In order: `patchbay-audit-1`; the previous hash (32 bytes); then in UTF-8 the sequence, the moment in
    microseconds since 1970 UTC, type, actor, subject, owner, connector uid, qualifier, call id, the number of changed
    fields, each changed field. Numbers are decimal digits.
    """
    digest = hashlib.sha256()
    for field in _fields(previous_hash, event, sequence):
        digest.update(b"%d:" % len(field))
        digest.update(field)
    return digest.digest()


def follow(head: AuditHead, event: AuditEvent) -> AuditRow:
    """The row that `event` becomes after `head`."""
    sequence = head.sequence + 1
    return AuditRow(
        type=event.type,
        at=event.at,
        actor=event.actor,
        subject=event.subject,
        owner=event.owner,
        connector_uid=event.connector_uid,
        qualifier=event.qualifier,
        changed_fields=event.changed_fields,
        call_id=event.call_id,
        sequence=sequence,
        previous_hash=head.hash,
        hash=audit_hash(head.hash, event, sequence),
    )


def event_of(row: AuditRow) -> AuditEvent:
    """The event that became the row."""
    return AuditEvent(**{field: getattr(row, field) for field in AuditEvent.__struct_fields__})


def head_of(row: AuditRow) -> AuditHead:
    return AuditHead(sequence=row.sequence, hash=row.hash)


def sequence_after(page: Page) -> int:
    """The sequence number that a page of the trail continues after. Raises: INVALID_REQUEST."""
    if not page.after:
        return 0
    if not re.fullmatch(r"[0-9]{1,18}", page.after):
        raise PatchbayError(
            Reason.INVALID_REQUEST,
            "this is no place in the audit trail; start again without a page token",
            field="page_token",
        )
    return int(page.after)


def _fields(previous_hash: bytes, event: AuditEvent, sequence: int) -> Iterator[bytes]:
    yield b"patchbay-audit-1"
    yield previous_hash
    yield b"%d" % sequence
    yield b"%d" % microseconds(event.at)
    texts = (
        event.type.value,
        event.actor,
        event.subject,
        event.owner,
        event.connector_uid,
        event.qualifier,
        event.call_id,
    )
    for text in (*texts, str(len(event.changed_fields)), *event.changed_fields):
        yield text.encode()
