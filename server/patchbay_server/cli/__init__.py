"""The command `patchbay`: runs a gateway, asks models through one, and manages it.

Each command group is a module of functions; this one assembles them. Commands know a gateway through `patchbay_client`
only, over gRPC, so that whatever they can do a program can do.
"""

import inspect
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperCommand, TyperGroup

from patchbay_server.cli import admin, chat, connectors, explain, gateway, policy, serving, tokens
from patchbay_server.cli.session import connected

_HELP = """Patchbay: one gateway to every language model.

Commands find a gateway by their option --address or by PATCHBAY_ADDRESS, and the caller by PATCHBAY_TOKEN or a token
file; a token is never an argument.

Examples:
    patchbay quickstart
    patchbay chat "What is the capital of France?"
    patchbay connectors add openai --name "Team key" --model gpt-5.1

Exit codes: 0 done; 1 another error; 2 wrong usage or configuration; 3 not authenticated or not authorised; 4 not found;
5 invalid, or something must be set right first; 6 a rate limit or cap; 7 provider or gateway not available; 130
interrupted.
"""


def main() -> None:
    """Runs the command line and ends the process."""
    build()(prog_name="patchbay")


def build() -> typer.Typer:
    """The whole command line."""
    app = _group(_HELP)
    app.callback()(_root)
    _add(app, "serve", serving.serve)
    _add(app, "quickstart", serving.quickstart)
    _add(app, "local", serving.local)
    _add(app, "chat", connected(chat.chat))
    _add(app, "explain", connected(explain.explain))
    _add(app, "status", connected(gateway.status))
    app.add_typer(_connectors(), name="connectors")
    app.add_typer(_admin(), name="admin")
    app.add_typer(_tokens(), name="tokens")
    app.add_typer(_policy(), name="policy")
    return app


def _connectors() -> typer.Typer:
    group = _group("Credentials for providers, and which of them is used when.")
    _add(group, "add", connected(connectors.add), allow_extra_args=True)
    _add(group, "list", connected(connectors.list_))
    _add(group, "get", connected(connectors.get))
    _add(group, "edit", connected(connectors.edit))
    _add(group, "test", connected(connectors.probe))
    _add(group, "rotate", connected(connectors.rotate), allow_extra_args=True)
    _add(group, "default", connected(connectors.default))
    _add(group, "prefer", connected(connectors.prefer))
    _add(group, "rm", connected(connectors.remove))
    _add(group, "models", connected(connectors.models))
    _add(group, "types", connected(connectors.types))
    return group


def _admin() -> typer.Typer:
    group = _group("The connectors of all owners. Needs scope admin.")
    _add(group, "connectors", connected(admin.connectors))
    _add(group, "revoke", connected(admin.revoke))
    _add(group, "cap", connected(admin.cap))
    return group


def _tokens() -> typer.Typer:
    group = _group("Who may call the gateway. Needs scope admin.")
    _add(group, "create", connected(tokens.create))
    _add(group, "list", connected(tokens.list_))
    _add(group, "revoke", connected(tokens.revoke))
    return group


def _policy() -> typer.Typer:
    group = _group("The rules for all owners. Needs scope admin.")
    _add(group, "get", connected(policy.get))
    _add(group, "set", connected(policy.set_))
    return group


def _add(group: typer.Typer, name: str, command: Callable[..., None], *, allow_extra_args: bool = False) -> None:
    settings = {"allow_extra_args": allow_extra_args}  # where the command refuses them itself
    described = _laid_out(inspect.getdoc(command) or "")
    group.command(name, cls=_Command, help=described, context_settings=settings)(command)


def _laid_out(text: str) -> str:
    """The help as typer should show it: paragraphs on one line, for it to wrap, and examples as they are typed."""
    # What stands in square brackets would be taken for a style.
    return "\n\n".join(_paragraph(each) for each in escape(text).split("\n\n"))


def _paragraph(text: str) -> str:
    first, *rest = text.splitlines()
    if first == "Examples:":
        return "\n".join([first, *(f"$ {line.strip()}" for line in rest)])
    return " ".join([first, *rest])


def _group(help_text: str) -> typer.Typer:
    # A traceback with local variables, which typer would print for a mistake of ours, could show a secret.
    return typer.Typer(
        cls=_Group,
        help=_laid_out(help_text),
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


class _PlainFlags:
    """Shows a switch without `<bool>`: it takes no value."""

    def get_params(self, ctx: Any) -> list[Any]:
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]  # of the command that this is mixed into
        for each in params:
            if getattr(each, "is_flag", False) and each.metavar is None:
                each.metavar = ""
        return params


class _Command(_PlainFlags, TyperCommand):
    pass


class _Group(_PlainFlags, TyperGroup):
    pass


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(version("patchbay-gateway"))
        raise typer.Exit


def _root(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass
