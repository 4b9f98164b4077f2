"""`patchbay policy`: the rules for all owners."""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from patchbay_client.admin import Policy, PolicyChanges
from patchbay_server.cli.output import Printer
from patchbay_server.cli.session import Session, fail

_NOTHING = frozenset({"", "none"})
_ALL = "all"
_ALIAS = "alias."


def get(session: Session) -> None:
    """Show the policy.

    Examples:
        patchbay policy get
        patchbay policy get -o json > policy.json
    """
    _show(session.printer, session.client.admin.policy())


def set_(
    session: Session,
    *,
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE...", help="What to change.", show_default=False)
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSON as `policy get -o json` prints it; a dash is standard input."),
    ] = None,
) -> None:
    """Change the policy. What is not named stays.

    Keys: allowed_connector_types (names by commas, or all), host_allow_list (hosts by commas, or nothing), private_http
    (none, loopback, private), org_default (a connector's resource name, or none), call_log_retention_days (7 to 365),
    default_fallback (none, org_default, retry_then_org_default, owner_chain), alias.NAME (a model; nothing removes it).

    Quality priors and prices are set by --file: take what `policy get -o json` prints, edit it, and give it back. It is
    refused if somebody else has changed the policy in between.

    Examples:
        patchbay policy set private_http=loopback org_default=owners/acme/connectors/main
        patchbay policy set allowed_connector_types=openai,anthropic alias.fast=gpt-5.1-mini
        patchbay policy set --file policy.json
    """
    if bool(changes) == (file is not None):
        fail("give either KEY=VALUE or --file")
    wanted = _from_file(file) if file is not None else _from_pairs(session, changes or [])
    _show(session.printer, session.client.admin.update_policy(**wanted))


def _show(printer: Printer, policy: Policy) -> None:
    types = policy.allowed_connector_types
    pairs = [
        ("allowed_connector_types", _ALL if types is None else ", ".join(types.types) or "none"),
        ("host_allow_list", policy.host_allow_list or "any public host"),
        ("private_http", policy.private_http),
        ("org_default", policy.org_default_connector or "none"),
        ("call_log_retention_days", policy.call_log_retention_days),
        ("default_fallback", policy.default_fallback),
        *((f"{_ALIAS}{name}", target) for name, target in sorted(policy.model_aliases.items())),
        ("quality_priors", len(policy.quality_priors)),
        ("price_overrides", len(policy.price_overrides)),
        ("changed", policy.update_time),
    ]
    printer.facts(pairs, policy)


def _from_pairs(session: Session, texts: list[str]) -> PolicyChanges:
    changes: dict[str, Any] = {}
    aliases: dict[str, str] = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator:
            fail(f"{text} is not KEY=VALUE")
        if key.startswith(_ALIAS):
            aliases[key.removeprefix(_ALIAS)] = value
        elif key in _READERS:
            name, read = _READERS[key]
            changes[name] = read(value)
        else:
            fail(f"the policy has no {key}; its keys are {', '.join(_READERS)}, {_ALIAS}NAME")
    if aliases:
        now = session.client.admin.policy()
        merged = {**now.model_aliases, **aliases}
        changes["model_aliases"] = {name: target for name, target in merged.items() if target}
        changes["etag"] = now.etag  # they are replaced as a whole: nobody else's change must get lost
    return changes  # type: ignore[return-value]  # the keys are those of _READERS


def _from_file(path: Path) -> PolicyChanges:
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
        document = json.loads(text)
    except OSError as error:
        fail(f"cannot read {path}: {error.strerror}")
    except ValueError as error:
        fail(f"{path} is not JSON: {error}")
    if not isinstance(document, dict):
        fail(f"{path} is not a policy, which is a JSON object")
    document.pop("update_time", None)
    if isinstance(types := document.get("allowed_connector_types"), dict):
        document["allowed_connector_types"] = types.get("types")
    return document  # type: ignore[return-value]  # unknown keys are refused by the client


def _types(value: str) -> list[str] | None:
    return None if value == _ALL else _list(value)


def _list(value: str) -> list[str]:
    return [] if value.lower() in _NOTHING else [each.strip() for each in value.split(",") if each.strip()]


def _connector(value: str) -> str | None:
    return None if value.lower() in _NOTHING else value


def _days(value: str) -> int:
    if not value.isdigit():
        fail(f"call_log_retention_days is a number from 7 to 365, not {value}")
    return int(value)


_READERS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "allowed_connector_types": ("allowed_connector_types", _types),
    "host_allow_list": ("host_allow_list", _list),
    "private_http": ("private_http", str),
    "org_default": ("org_default_connector", _connector),
    "call_log_retention_days": ("call_log_retention_days", _days),
    "default_fallback": ("default_fallback", str),
}
