"""`patchbay connectors`: an owner's credentials for providers."""

from typing import Annotated

import typer

from patchbay_client import Connector
from patchbay_client.connectors import ConnectorChanges, ConnectorType, NewConnector, TestResult
from patchbay_server.cli import credential
from patchbay_server.cli.output import Printer
from patchbay_server.cli.session import ExitCode, Session, confirm, connector_name, fail

ConnectorArgument = Annotated[
    str, typer.Argument(help="The connector: its id, display name or resource name.", show_default=False)
]
OwnerOption = Annotated[str | None, typer.Option("--owner", help="Whose. Default: your token's owner.")]
FilterOption = Annotated[
    str | None, typer.Option("--filter", metavar="TEXT", help="""Such as 'state = ACTIVE AND type = "openai"'.""")
]

_TEST_EXIT_CODES = {
    TestResult.OK: ExitCode.OK,
    TestResult.AUTH_INVALID: ExitCode.INVALID,
    TestResult.RATE_LIMITED: ExitCode.LIMITED,
    TestResult.QUOTA_EXCEEDED: ExitCode.INVALID,
    TestResult.PROVIDER_UNAVAILABLE: ExitCode.UNAVAILABLE,
    TestResult.ERROR: ExitCode.ERROR,
}


def add(  # noqa: PLR0913 - options of a command
    session: Session,
    *,
    connector_type: Annotated[str, typer.Argument(metavar="TYPE", help="See `patchbay connectors types`.")],
    context: typer.Context,
    name: Annotated[str, typer.Option(help="What people call it, at most 80 characters; unique for the owner.")],
    model: Annotated[str, typer.Option(help="The model of calls that name none.")] = "",
    connector_id: Annotated[str, typer.Option("--id", help="Its id. Default: one is assigned.")] = "",
    plain: credential.SetOption = None,
    secret_env: credential.SecretEnvOption = None,
    secret_file: credential.SecretFileOption = None,
    owner: OwnerOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, store nothing.")] = False,
) -> None:
    """Plug in a credential. At a terminal its secrets are asked for; they can never be arguments.

    Examples:
        patchbay connectors add openai --name "Team key" --model gpt-5.1 --id main
        patchbay connectors add anthropic --name Claude --secret-env api_key=ANTHROPIC_API_KEY
        patchbay connectors add openai_compatible --name vLLM --set base_url=http://10.0.0.7:8000/v1
    """
    credential.refuse_arguments(context.args)
    known = _connector_type(session, connector_type, owner)
    given = credential.Given(plain, secret_env, secret_file).fields(known)
    options: NewConnector = {"connector_id": connector_id, "model_hint": model, "validate_only": dry_run}
    if owner is not None:
        options["owner"] = owner
    fields = credential.ask_for_missing(known, given)
    made = session.client.connectors.create(known.type, fields, display_name=name, **options)
    show(session.printer, made)
    if not dry_run:
        session.printer.remark(f"try it: patchbay connectors test {made.id}")


def list_(session: Session, *, owner: OwnerOption = None, filter_text: FilterOption = None) -> None:
    """List connectors.

    Examples:
        patchbay connectors list
        patchbay connectors list --filter 'state = AUTH_INVALID' -o json
    """
    options = {"filter": filter_text} if filter_text else {}
    found = list(session.client.connectors.list(owner, **options))
    rows = [
        (
            each.id,
            each.display_name,
            each.type,
            each.model_hint,
            each.state,
            each.owner_default,
            each.credential_info.last_four,
            each.last_test_result,
            each.last_used_time,
        )
        for each in found
    ]
    columns = ("ID", "NAME", "TYPE", "MODEL", "STATE", "DEFAULT", "KEY ENDS", "LAST TEST", "LAST USED")
    session.printer.table(columns, rows, found)


def get(session: Session, *, connector: ConnectorArgument, owner: OwnerOption = None) -> None:
    """Show one connector.

    Examples:
        patchbay connectors get main
        patchbay connectors get owners/search/connectors/main -o json
    """
    show(session.printer, session.client.connectors.get(connector_name(session, connector, owner)))


def edit(
    session: Session,
    *,
    connector: ConnectorArgument,
    name: Annotated[str | None, typer.Option(help="A new display name.")] = None,
    model: Annotated[str | None, typer.Option(help="A new model hint; empty: none.")] = None,
    state: Annotated[str | None, typer.Option(help="disabled, or active to switch it on again.")] = None,
    owner: OwnerOption = None,
) -> None:
    """Change a connector's name, model or state. Its credential is changed by `rotate`.

    Examples:
        patchbay connectors edit main --model gpt-5.1-mini
        patchbay connectors edit main --state disabled
    """
    changes: ConnectorChanges = {}
    if name is not None:
        changes["display_name"] = name
    if model is not None:
        changes["model_hint"] = model or None
    if state is not None:
        changes["state"] = state
    if not changes:
        fail("nothing to change; give --name, --model or --state")
    show(session.printer, session.client.connectors.update(connector_name(session, connector, owner), **changes))


def probe(
    session: Session,
    *,
    connector: ConnectorArgument,
    model: Annotated[str, typer.Option(help="The model to ask. Default: the connector's, or a cheap one.")] = "",
    owner: OwnerOption = None,
) -> None:
    """Call the provider once, as cheaply as it can be done, and report.

    Exit codes: 0 it works, 5 the key or the quota is not good, 6 a rate limit, 7 the provider is not available.

    Examples:
        patchbay connectors test main
        patchbay connectors test main --model gpt-5.1-mini
    """
    report = session.client.connectors.test(connector_name(session, connector, owner), model=model)
    pairs = [
        ("connector", report.connector.id),
        ("result", report.result),
        ("latency", report.latency),
        ("reason", report.error_reason),
        ("message", report.message),
        ("state", report.connector.state),
    ]
    session.printer.facts(pairs, report)
    raise typer.Exit(_TEST_EXIT_CODES[report.result])


def rotate(
    session: Session,
    *,
    connector: ConnectorArgument,
    context: typer.Context,
    plain: credential.SetOption = None,
    secret_env: credential.SecretEnvOption = None,
    secret_file: credential.SecretFileOption = None,
    owner: OwnerOption = None,
) -> None:
    """Replace parts of a credential; what is not given stays. Makes a connector with a refused key active again.

    Examples:
        patchbay connectors rotate main
        patchbay connectors rotate main --secret-env api_key=NEW_KEY
    """
    credential.refuse_arguments(context.args)
    known = session.client.connectors.get(connector_name(session, connector, owner))
    connector_type = _connector_type(session, known.type, owner)
    given = credential.Given(plain, secret_env, secret_file).fields(connector_type)
    fields = credential.ask_for_replacement(connector_type, given)
    show(session.printer, session.client.connectors.rotate(known, fields))


def default(
    session: Session,
    *,
    connector: Annotated[str | None, typer.Argument(help="The connector to pin.", show_default=False)] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Pin none.")] = False,
    owner: OwnerOption = None,
) -> None:
    """Pin the connector that answers unless a call says otherwise; without one, show which it is.

    Examples:
        patchbay connectors default main
        patchbay connectors default --clear
    """
    if clear and connector is not None:
        fail("give a connector or --clear, not both")
    if clear:
        session.client.connectors.clear_default(owner)
        session.printer.remark("no default is pinned now")
    elif connector is not None:
        name = connector_name(session, connector, owner)
        show(session.printer, session.client.connectors.set_default(name))
    else:
        pinned = [each for each in session.client.connectors.list(owner) if each.owner_default]
        if not pinned:
            fail("no default is pinned", ExitCode.NOT_FOUND)
        show(session.printer, pinned[0])


def prefer(
    session: Session,
    *,
    feature: Annotated[str | None, typer.Argument(help="The feature, such as search.", show_default=False)] = None,
    connector: Annotated[str | None, typer.Argument(help="The connector for it.", show_default=False)] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Prefer none for the feature.")] = False,
    owner: OwnerOption = None,
) -> None:
    """Prefer a connector for a feature; without any, list the preferences.

    Examples:
        patchbay connectors prefer
        patchbay connectors prefer search main
        patchbay connectors prefer search --clear
    """
    if clear and feature is not None and connector is None:
        session.client.connectors.clear_preference(feature, owner=owner)
        session.printer.remark(f"no connector is preferred for {feature} now")
    elif clear:
        fail("--clear takes a feature and no connector")
    elif feature is not None and connector is not None:
        name = connector_name(session, connector, owner)
        chosen = session.client.connectors.set_preference(feature, name, owner=owner)
        session.printer.facts([("feature", chosen.feature), ("connector", chosen.connector)], chosen)
    elif feature is not None:
        fail("which connector? give one, or --clear")
    else:
        found = list(session.client.connectors.preferences(owner))
        rows = [(each.feature, each.connector, each.update_time) for each in found]
        session.printer.table(("FEATURE", "CONNECTOR", "SINCE"), rows, found)


def remove(
    session: Session,
    *,
    connector: ConnectorArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    owner: OwnerOption = None,
) -> None:
    """Delete a connector, its credential, and whatever points to it. The call log and the audit trail stay.

    Examples:
        patchbay connectors rm main
        patchbay connectors rm main --yes
    """
    name = connector_name(session, connector, owner)
    if not yes:
        confirm(f"Delete {name} and its credential?", otherwise="nothing is deleted")
    session.client.connectors.delete(name)
    session.printer.remark(f"{name} is deleted")


def models(session: Session, *, connector: ConnectorArgument, owner: OwnerOption = None) -> None:
    """List the models behind a connector.

    Examples:
        patchbay connectors models main
        patchbay connectors models main -o json
    """
    found = session.client.connectors.models(connector_name(session, connector, owner))
    rows = [
        (
            each.id,
            each.display_name,
            each.owned_by,
            each.max_input_tokens,
            [str(can).lower() for can in each.capabilities],
        )
        for each in found.models
    ]
    session.printer.table(("MODEL", "NAME", "OWNED BY", "CONTEXT", "CAN"), rows, found.models)
    if found.stale:
        session.printer.remark("the provider could not be asked just now; this is its last list")


def types(
    session: Session,
    *,
    connector_type: Annotated[
        str | None, typer.Argument(metavar="TYPE", help="Show its fields.", show_default=False)
    ] = None,
    owner: OwnerOption = None,
) -> None:
    """List the connector types, or the fields of one.

    Examples:
        patchbay connectors types
        patchbay connectors types azure_openai
    """
    if connector_type is not None:
        _show_type(session.printer, _connector_type(session, connector_type, owner))
        return
    found = list(session.client.connectors.types(owner))
    rows = [(each.type, each.display_name, each.allowed, each.built_in, each.description) for each in found]
    session.printer.table(("TYPE", "NAME", "ALLOWED", "BUILT IN", "WHAT"), rows, found)


def _connector_type(session: Session, wanted: str, owner: str | None) -> ConnectorType:
    found = {each.type: each for each in session.client.connectors.types(owner)}
    if wanted not in found:
        fail(f"there is no connector type {wanted}; there are {', '.join(found)}")
    return found[wanted]


def _show_type(printer: Printer, shown: ConnectorType) -> None:
    if printer.as_json:
        printer.facts([], shown)
        return
    rows = [
        (
            field.name,
            "required" if field.required else f"one of {field.one_of}" if field.one_of else "",
            str(field.kind).lower(),
            field.label,
            field.help,
        )
        for field in shown.credential_fields
    ]
    printer.table(("FIELD", "NEEDED", "KIND", "LABEL", "HELP"), rows, shown.credential_fields)


def show(printer: Printer, connector: Connector) -> None:
    """One connector, as every command that changes one shows it."""
    info = connector.credential_info
    pairs = [
        ("name", connector.name),
        ("display name", connector.display_name),
        ("type", connector.type),
        ("model", connector.model_hint),
        ("state", connector.state),
        ("default", connector.owner_default),
        ("key ends", info.last_four),
        *info.settings.items(),
        ("labels", connector.labels),
        ("monthly cap", connector.monthly_token_cap),
        ("cap mode", connector.cap_mode),
        ("last used", connector.last_used_time),
        ("last test", connector.last_test_time),
        ("test result", connector.last_test_result),
        ("created", connector.create_time),
        ("rotated", info.rotate_time),
    ]
    printer.facts(pairs, connector)
