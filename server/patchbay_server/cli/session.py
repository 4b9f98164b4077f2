"""What every command that talks to a gateway shares: where it is, who asks, and how a failure ends the process."""

import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from patchbay_client import (
    AlreadyExists,
    CapReached,
    Conflict,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    PatchbayClient,
    PatchbayError,
    PermissionDenied,
    PreconditionFailed,
    RateLimited,
    TlsOptions,
    Unauthenticated,
    Unavailable,
)
from patchbay_server.cli.output import Printer, seconds

DEFAULT_ADDRESS = "localhost:50051"
TOKEN_FILE = "token"  # noqa: S105 - the name of a file


class ExitCode(IntEnum):
    """How the process ends; documented in `patchbay --help`."""

    OK = 0
    ERROR = 1
    USAGE = 2
    DENIED = 3
    NOT_FOUND = 4
    INVALID = 5
    LIMITED = 6
    UNAVAILABLE = 7
    INTERRUPTED = 130


class Output(StrEnum):
    """The form of results."""

    TABLE = "table"
    JSON = "json"


_EXIT_CODES: Mapping[type[PatchbayError], ExitCode] = {
    Unauthenticated: ExitCode.DENIED,
    PermissionDenied: ExitCode.DENIED,
    NotFound: ExitCode.NOT_FOUND,
    InvalidRequest: ExitCode.INVALID,
    PreconditionFailed: ExitCode.INVALID,
    AlreadyExists: ExitCode.INVALID,
    Conflict: ExitCode.INVALID,
    RateLimited: ExitCode.LIMITED,
    CapReached: ExitCode.LIMITED,
    Unavailable: ExitCode.UNAVAILABLE,
    DeadlineExceeded: ExitCode.UNAVAILABLE,
}

_ADVICE: Mapping[str, str] = {
    "CALLER_UNAUTHENTICATED": "set PATCHBAY_TOKEN, or name a file by --token-file",
    "CALLER_NOT_AUTHORIZED": "use a token with the scope and the owner that this needs",
    "CONNECTOR_NOT_CONFIGURED": "add one with `patchbay connectors add`",
    "CONNECTOR_NOT_FOUND": "see `patchbay connectors list`",
    "UPSTREAM_CREDENTIAL_REJECTED": "replace the key with `patchbay connectors rotate`",
    "STREAMING_UNSUPPORTED": "use --no-stream",
}


def fail(message: str, code: ExitCode = ExitCode.USAGE) -> NoReturn:
    """Ends the command with one line on standard error."""
    Printer(as_json=False).failure(message)
    raise typer.Exit(code)


@dataclass(frozen=True, kw_only=True)
class Session:
    """A command at work: the client to ask, and the printer to answer with."""

    client: PatchbayClient
    printer: Printer


@dataclass(frozen=True, kw_only=True)
class Connection:
    """The options by which every command finds its gateway."""

    address: Annotated[
        str,
        typer.Option(
            envvar="PATCHBAY_ADDRESS",
            metavar="ADDRESS",
            help="The gateway: host:port, or https://host for TLS.",
            rich_help_panel="Connection",
        ),
    ] = DEFAULT_ADDRESS
    token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A file with the caller token. Default: the variable PATCHBAY_TOKEN, the file that "
            "PATCHBAY_TOKEN_FILE names, or .patchbay/token.",
            show_default=False,
            rich_help_panel="Connection",
        ),
    ] = None
    ca: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="PEM authorities that may have signed the gateway's certificate. Default: the public ones.",
            show_default=False,
            rich_help_panel="Connection",
        ),
    ] = None
    client_cert: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="PEM certificate for mutual TLS.", rich_help_panel="Connection"),
    ] = None
    client_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="PEM key of that certificate.", rich_help_panel="Connection")
    ] = None
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure", help="Send the token over plain text to another machine.", rich_help_panel="Connection"
        ),
    ] = False
    output: Annotated[
        Output, typer.Option("--output", "-o", help="Tables for people, or JSON.", rich_help_panel="Connection")
    ] = Output.TABLE

    @contextmanager
    def open(self) -> Iterator[Session]:
        """A session. Failures of calls and mistakes in options end the process with their exit code and one line."""
        printer = Printer(as_json=self.output is Output.JSON)
        try:
            with self._client() as client:
                yield Session(client=client, printer=printer)
        except PatchbayError as error:
            printer.failure(self._explained(error))
            raise typer.Exit(exit_code(error)) from None
        except (ValueError, TypeError) as error:  # what the client refuses before it sends anything
            printer.failure(str(error))
            raise typer.Exit(ExitCode.USAGE) from None
        except KeyboardInterrupt:  # typer's own exit code for it has changed over time
            raise typer.Exit(ExitCode.INTERRUPTED) from None

    def _client(self) -> PatchbayClient:
        token = find_token(self.token_file, os.environ)
        if token is None and self.client_cert is None:
            fail("no token: set PATCHBAY_TOKEN, name a file by --token-file, or run this where .patchbay/token is")
        tls = None
        if self.ca is not None or self.client_cert is not None:
            tls = TlsOptions(ca=self.ca, client_cert=self.client_cert, client_key=self.client_key)
        try:
            return PatchbayClient(self.address, token, tls=tls, insecure=self.insecure)
        except OSError as error:
            fail(f"cannot read {error.filename}: {error.strerror}")

    def _explained(self, error: PatchbayError) -> str:
        if not error.reason and isinstance(error, Unavailable):
            return f"UNAVAILABLE: no gateway answers at {self.address}; is it running? start one with `patchbay serve`"
        parts = [str(error)]
        if error.retry_after is not None:
            parts.append(f"retry in {seconds(error.retry_after)}")
        if advice := _ADVICE.get(error.reason):
            parts.append(advice)
        return "; ".join(parts)


def exit_code(error: PatchbayError) -> ExitCode:
    """The exit code for a failed call."""
    found = (code for error_class, code in _EXIT_CODES.items() if isinstance(error, error_class))
    if error.code.name == "RESOURCE_EXHAUSTED":
        return ExitCode.LIMITED
    return next(found, ExitCode.ERROR)


def find_token(token_file: Path | None, environ: Mapping[str, str]) -> str | None:
    """The caller token, from the first place that has one; None when there is none."""
    if token_file is None and environ.get("PATCHBAY_TOKEN"):
        return environ["PATCHBAY_TOKEN"].strip()
    named = token_file or (Path(environ["PATCHBAY_TOKEN_FILE"]) if environ.get("PATCHBAY_TOKEN_FILE") else None)
    usual = Path(environ.get("PATCHBAY_DATA_DIR") or ".patchbay") / TOKEN_FILE
    if named is None and not usual.is_file():
        return None
    path = named or usual
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        fail(f"cannot read the token in {path}: {getattr(error, 'strerror', None) or 'it is not text'}")


def ask(question: str, *, hidden: bool = False) -> str:
    """What a person at the terminal answers. The question goes to standard error: standard output is for results."""
    if hidden:
        return str(typer.prompt(question, default="", show_default=False, hide_input=True, err=True)).strip()
    sys.stderr.write(f"{question}: ")
    sys.stderr.flush()
    answer = sys.stdin.readline()
    if not answer:
        fail("no answer", ExitCode.ERROR)
    return answer.strip()


def confirm(question: str, *, otherwise: str) -> None:
    """Goes on if a person at the terminal says yes; else ends the command, telling `otherwise`."""
    if not sys.stdin.isatty():
        fail("this asks first; give --yes where nobody can answer")
    if ask(f"{question} [y/N]").lower() not in {"y", "yes"}:
        fail(otherwise, ExitCode.ERROR)


def connected(command: Callable[..., None]) -> Callable[..., None]:
    """The command as typer takes it: with the options of a `Connection` in place of its session."""
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
    shared = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in _connection_parameters()]

    def run(**options: Any) -> None:
        connection = Connection(**{each.name: options.pop(each.name) for each in shared})
        with connection.open() as session:
            command(session, **options)

    parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own] + shared
    run.__name__ = command.__name__
    run.__doc__ = command.__doc__
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what inspect.signature looks for
    return run


def _connection_parameters() -> list[inspect.Parameter]:
    return list(inspect.signature(Connection, eval_str=True).parameters.values())


def connector_name(session: Session, connector: str, owner: str | None = None) -> str:
    """The resource name of a connector that was given by it, by its id, or by its display name.

    Without an owner an id is looked for among the connectors of the token's own owner.
    """
    if "/" in connector:
        return connector
    for each in session.client.connectors.list(owner):
        if connector in {each.id, each.display_name}:
            return each.name
    fail(f"there is no connector {connector}; see `patchbay connectors list`", ExitCode.NOT_FOUND)
