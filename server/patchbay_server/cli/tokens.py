"""`patchbay tokens`: who may call the gateway."""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from patchbay_client.admin import CallerToken
from patchbay_server.cli.session import Session, fail

_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


def create(
    session: Session,
    *,
    name: Annotated[str, typer.Argument(help="Who or what it is for.")],
    scope: Annotated[list[str], typer.Option(metavar="SCOPE", help="chat, connectors or admin. Repeatable.")],
    owner: Annotated[str | None, typer.Option(help="The owner that the caller acts for.")] = None,
    any_owner: Annotated[bool, typer.Option("--any-owner", help="The caller may act for every owner.")] = False,
    expires: Annotated[
        str | None, typer.Option(metavar="WHEN", help="Such as 12h, 30d, 8w, or 2027-01-31. Default: never.")
    ] = None,
) -> None:
    """Create a caller token. Its secret goes to standard output, this once, and everything else to standard error.

    Examples:
        patchbay tokens create "search service" --scope chat --owner search > search.token
        patchbay tokens create operators --scope admin --scope connectors --any-owner --expires 30d
    """
    if any_owner == (owner is not None):
        fail("give either --owner or --any-owner")
    made = session.client.admin.create_token(
        name, scope, owner=owner, any_owner=any_owner, expire_time=None if expires is None else _moment(expires)
    )
    if session.printer.as_json:
        session.printer.facts([], made)
        return
    session.printer.line(made.secret)
    session.printer.remark(
        f"{made.token.name} may {_scopes(made.token)} for {_binding(made.token)}; keep it, it is not shown again"
    )


def list_(session: Session) -> None:
    """List the caller tokens, without their secrets.

    Examples:
        patchbay tokens list
        patchbay tokens list -o json
    """
    found = list(session.client.admin.tokens())
    rows = [
        (
            each.name.rpartition("/")[2],
            each.display_name,
            _scopes(each),
            _binding(each),
            _state(each),
            each.expire_time,
            each.last_used_time,
        )
        for each in found
    ]
    session.printer.table(("ID", "NAME", "SCOPES", "OWNER", "STATE", "EXPIRES", "LAST USED"), rows, found)


def revoke(
    session: Session, token: Annotated[str, typer.Argument(help="The token's id, as `patchbay tokens list` shows it.")]
) -> None:
    """Revoke a caller token, for good.

    Examples:
        patchbay tokens revoke 0ae8b9f85d6b
    """
    revoked = session.client.admin.revoke_token(token if "/" in token else f"tokens/{token}")
    pairs = [("token", revoked.name), ("name", revoked.display_name), ("revoked", revoked.revoke_time)]
    session.printer.facts(pairs, revoked)


def _moment(text: str) -> datetime:
    if match := re.fullmatch(r"(\d{1,5})([hdw])", text):
        return datetime.now(UTC) + int(match[1]) * _UNITS[match[2]]
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        fail(f"--expires: {text} is not a moment; write 12h, 30d, 8w, or a date such as 2027-01-31")
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _scopes(token: CallerToken) -> str:
    return ", ".join(str(scope).lower() for scope in token.scopes)


def _binding(token: CallerToken) -> str:
    return "any owner" if token.any_owner else token.owner.removeprefix("owners/")


def _state(token: CallerToken) -> str:
    if token.revoke_time is not None:
        return "revoked"
    expired = token.expire_time is not None and token.expire_time <= datetime.now(UTC)
    return "expired" if expired else "good"
