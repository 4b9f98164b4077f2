"""From options, variables, files and questions to the fields of a credential. A secret is never an argument.

The gateway tells which fields a connector type has, so that a new type, plug-ins included, needs no change here.
"""

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from patchbay_client.connectors import ConnectorType, CredentialField, CredentialFieldKind
from patchbay_server.cli.session import ask, fail

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="A field that is not secret, such as an address. Repeatable."),
]
SecretEnvOption = Annotated[
    list[str] | None,
    typer.Option("--secret-env", metavar="FIELD=VARIABLE", help="A secret, from an environment variable. Repeatable."),
]
SecretFileOption = Annotated[
    list[str] | None,
    typer.Option(
        "--secret-file",
        metavar="FIELD=FILE",
        help="A secret, from a file, or with a dash from standard input. Repeatable.",
    ),
]

_SECRETS = frozenset({CredentialFieldKind.SECRET, CredentialFieldKind.HEADERS})
_FLAGS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def refuse_arguments(more: list[str]) -> None:
    """Ends the command when there are arguments that it does not take. One of them may be a key: none is repeated."""
    if more:
        fail("too many arguments; if one of them is a key: it is never an argument, it is asked for, or see --help")


@dataclass(frozen=True)
class Given:
    """What the command line says of a credential: options as they were typed."""

    plain: list[str] | None
    from_environment: list[str] | None
    from_files: list[str] | None

    def fields(self, connector_type: ConnectorType) -> dict[str, Any]:
        """The fields by their names; of headers, a mapping. Ends the command where a field is not the type's."""
        known = {field.name: field for field in connector_type.credential_fields}
        values: dict[str, Any] = {}
        for name, value in _pairs("--set", self.plain):
            _put(values, _field(known, name, connector_type), name, value, secret=False)
        for name, variable in _pairs("--secret-env", self.from_environment):
            if variable not in os.environ:
                fail(f"--secret-env: there is no variable {variable}")
            _put(values, _field(known, name, connector_type), name, os.environ[variable], secret=True)
        for name, path in _pairs("--secret-file", self.from_files):
            _put(values, _field(known, name, connector_type), name, _read(path), secret=True)
        return values


def ask_for_missing(connector_type: ConnectorType, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values and what a new credential needs besides: asked for at a terminal, else the command ends and says how.

    Required fields and one field of each group are asked for, and an optional key when nothing else proves who calls.
    """
    complete = dict(values)
    fields = connector_type.credential_fields
    for field in fields:
        if field.required and field.name not in complete:
            complete[field.name] = _ask(field, optional=False)
    for group in dict.fromkeys(field.one_of for field in fields if field.one_of):
        _ask_for_one([field for field in fields if field.one_of == group], complete)
    keys = [field for field in fields if field.kind is CredentialFieldKind.SECRET]
    if sys.stdin.isatty() and not any(key.name in complete or key.required or key.one_of for key in keys):
        _ask_for_one(keys[:1], complete, optional=True)
    return complete


def ask_for_replacement(connector_type: ConnectorType, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values to rotate; asked for at a terminal when none were given: each secret, of which any may be skipped."""
    if values:
        return dict(values)
    answers: dict[str, Any] = {}
    for field in connector_type.credential_fields:
        if field.kind is CredentialFieldKind.SECRET:
            _ask_for_one([field], answers, optional=sys.stdin.isatty())
    if not answers:
        fail("nothing to replace")
    return answers


def _ask_for_one(fields: Iterable[CredentialField], values: dict[str, Any], *, optional: bool = False) -> None:
    """Asks for one field after the other until one is given, unless one was."""
    candidates = list(fields)
    if any(field.name in values for field in candidates):
        return
    for field in candidates:
        answer = _ask(field, optional=optional or field is not candidates[-1])
        if answer:
            values[field.name] = answer
            return


def _ask(field: CredentialField, *, optional: bool) -> str:
    if not sys.stdin.isatty():
        fail(f"{field.name} is missing; give it by {_how_to_give(field)}, or run this at a terminal to be asked")
    question = field.label or field.name
    if optional:
        question += " (optional, Enter for none)"
    while True:
        answer = ask(question, hidden=field.kind in _SECRETS)
        if answer or optional:
            return answer


def _put(values: dict[str, Any], field: CredentialField, name: str, value: str, *, secret: bool) -> None:
    if field.kind in _SECRETS and not secret:
        fail(f"{field.name} is secret, and arguments are seen by others; give it by {_how_to_give(field)}")
    if field.name in values and field.kind is not CredentialFieldKind.HEADERS:
        fail(f"{field.name} is given twice")
    if not value.strip():
        fail(f"{name} is empty")
    if field.kind is CredentialFieldKind.HEADERS:
        values.setdefault(field.name, {})[name.partition(".")[2]] = value.strip()
    elif field.kind is CredentialFieldKind.FLAG:
        if value.lower() not in _FLAGS:
            fail(f"{field.name} is true or false, not {value}")
        values[field.name] = _FLAGS[value.lower()]
    elif field.kind is CredentialFieldKind.CHOICE and value not in field.choices:
        fail(f"{field.name} is one of {', '.join(field.choices)}, not {value}")
    else:
        values[field.name] = value.strip()


def _field(known: Mapping[str, CredentialField], name: str, connector_type: ConnectorType) -> CredentialField:
    """The field for a name as it was typed; a header is `headers.NAME`."""
    first, _, header = name.partition(".")
    field = known.get(first)
    if field is None:
        fail(f"{connector_type.type} has no field {first}; its fields are {', '.join(known)}")
    if bool(header) != (field.kind is CredentialFieldKind.HEADERS):
        fail(f"write {first}.NAME=..." if not header else f"{first} has no parts")
    return field


def _how_to_give(field: CredentialField) -> str:
    name = f"{field.name}.NAME" if field.kind is CredentialFieldKind.HEADERS else field.name
    if field.kind in _SECRETS:
        return f"--secret-env {name}=VARIABLE or --secret-file {name}=FILE"
    return f"--set {name}=VALUE"


def _pairs(option: str, texts: list[str] | None) -> list[tuple[str, str]]:
    pairs = [text.partition("=") for text in texts or ()]
    for name, separator, _ in pairs:
        if not separator or not name:
            fail(f"{option} takes FIELD=... , such as {option} endpoint=...")
    return [(name, value) for name, _, value in pairs]


def _read(path: str) -> str:
    try:
        return sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    except OSError as error:
        fail(f"cannot read {path}: {error.strerror}")
    except UnicodeDecodeError:
        fail(f"{path} is not text")
