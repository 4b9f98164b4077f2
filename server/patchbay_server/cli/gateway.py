"""`patchbay status`: how a gateway does."""

from patchbay_server.cli.session import Session


def status(session: Session) -> None:
    """Show how the gateway does: version, store, keys, calls.

    Examples:
        patchbay status
        patchbay status --address https://patchbay.example -o json
    """
    now = session.client.admin.status()
    pairs = [
        ("version", now.version),
        ("process", now.process_id),
        ("running since", now.start_time),
        ("draining", now.draining),
        ("store", f"{now.store.kind} {now.store.schema_revision}" if now.store.reachable else "DOES NOT ANSWER"),
        ("store latency", now.store.latency),
        ("master key", now.keyring.primary_key_id),
        ("other keys", [each for each in now.keyring.key_ids if each != now.keyring.primary_key_id]),
        ("sealed by them", now.keyring.stale_count or None),
        ("calls running", str(now.calls_open)),
        ("calls waiting", now.calls_queued or None),
        ("calls without a record", now.calls_without_record or None),
        ("plug-ins", [f"{each.name}{'' if each.loaded else ' (NOT LOADED)'}" for each in now.plugins]),
        ("breakers open", [f"{each.connector} {each.model}" for each in now.breakers]),
    ]
    session.printer.facts(pairs, now)
