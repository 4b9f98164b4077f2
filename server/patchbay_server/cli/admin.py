"""`patchbay admin`: the connectors of all owners."""

from typing import Annotated

import typer

from patchbay_server.cli.connectors import FilterOption, show
from patchbay_server.cli.session import Session, confirm, fail

ConnectorArgument = Annotated[
    str, typer.Argument(metavar="OWNER/ID", help="The connector; or its resource name.", show_default=False)
]


def connectors(
    session: Session,
    *,
    filter_text: FilterOption = None,
    order_by: Annotated[
        str | None,
        typer.Option(metavar="FIELD", help="A field, with ' desc' for descending. Default: name, that is, by owner."),
    ] = None,
) -> None:
    """List the connectors of all owners with their health, their caps and this month's tokens.

    Filters: owner, type, state, display_name, last_test_result, monthly_token_cap, month_tokens. Orders: name,
    display_name, type, state, create_time, last_used_time, month_tokens.

    Examples:
        patchbay admin connectors
        patchbay admin connectors --filter 'month_tokens > 1000000' --order-by 'month_tokens desc'
        patchbay admin connectors --filter 'owner = "owners/search" AND state = AUTH_INVALID' -o json
    """
    options = {"filter": filter_text, "order_by": order_by}
    found = list(session.client.admin.connectors(**{name: text for name, text in options.items() if text}))
    rows = [
        (
            each.owner.removeprefix("owners/"),
            each.connector.id,
            each.connector.display_name,
            each.connector.type,
            each.connector.state,
            each.connector.last_test_result,
            each.month_tokens,
            each.reserved_tokens or None,
            each.connector.monthly_token_cap,
            each.connector.cap_mode,
            each.org_default,
            each.connector.last_used_time,
        )
        for each in found
    ]
    columns = (
        *("OWNER", "ID", "NAME", "TYPE", "STATE", "LAST TEST"),
        *("MONTH TOKENS", "RESERVED", "CAP", "CAP MODE", "ORG DEFAULT", "LAST USED"),
    )
    session.printer.table(columns, rows, found)


def revoke(
    session: Session,
    *,
    connector: ConnectorArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Revoke a connector for good: its credential is destroyed, and nothing points to it any more.

    Its call log and its audit trail stay.

    Examples:
        patchbay admin revoke search/main
        patchbay admin revoke search/main --yes
    """
    name = _named(connector)
    if not yes:
        confirm(f"Revoke {name} and destroy its credential?", otherwise="nothing is revoked")
    show(session.printer, session.client.admin.revoke_connector(name))


def cap(
    session: Session,
    *,
    connector: ConnectorArgument,
    tokens: Annotated[
        int | None,
        typer.Argument(help="Input and output tokens of one UTC month; 0 stops all calls.", show_default=False),
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="No cap any more.")] = False,
    hard: Annotated[
        bool | None,
        typer.Option(
            "--hard/--soft",
            help="Whether calls reserve their upper bound, so that they do not pass the cap together. Default: as "
            "before; soft for a connector that had no cap.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Set or clear a connector's monthly token cap. Calls in flight are not disturbed.

    Examples:
        patchbay admin cap search/main 1000000
        patchbay admin cap search/main 1000000 --hard
        patchbay admin cap search/main --clear
    """
    name = _named(connector)
    if clear == (tokens is not None):
        fail("give either a number of tokens or --clear")
    if tokens is not None:
        mode = None if hard is None else "hard" if hard else "soft"
        show(session.printer, session.client.admin.set_cap(name, tokens, mode=mode))
    elif hard is not None:
        fail("--clear takes neither --hard nor --soft")
    else:
        show(session.printer, session.client.admin.clear_cap(name))


def _named(connector: str) -> str:
    """The resource name of a connector that was given by it or as OWNER/ID."""
    parts = connector.split("/")
    if len(parts) == 2:
        parts = ["owners", parts[0], "connectors", parts[1]]
    if len(parts) != 4 or not all(parts):
        fail(f"{connector} is not OWNER/ID; see `patchbay admin connectors`")
    return "/".join(parts)
