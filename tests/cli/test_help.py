"""What `--help` tells, and what the command line cannot be given."""

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from patchbay_server import local
from patchbay_server.cli import build
from patchbay_server.cli.session import ExitCode


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command below `command` with the words that call it, groups included."""
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*path, name))


ALL = list(commands(typer.main.get_command(build())))
LEAVES = [(path, command) for path, command in ALL if not hasattr(command, "commands")]


@pytest.mark.parametrize("path", [path for path, _ in ALL], ids=" ".join)
def test_every_command_has_help(path: tuple[str, ...]) -> None:
    result = CliRunner().invoke(build(), [*path, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == 0
    assert "Usage: " in result.stdout


@pytest.mark.parametrize("path", [path for path, _ in LEAVES], ids=" ".join)
def test_every_command_shows_how_it_is_typed(path: tuple[str, ...]) -> None:
    result = CliRunner().invoke(build(), [*path, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert f"patchbay {' '.join(path)}" in result.stdout.partition("Examples:")[2]


@pytest.mark.parametrize("code", ExitCode)
def test_every_exit_code_is_documented(code: ExitCode) -> None:
    result = CliRunner().invoke(build(), ["--help"], env={"COLUMNS": "2000", "TERM": "dumb"})
    assert f" {int(code)} " in result.stdout.partition("Exit codes:")[2].partition("Options")[0]


@pytest.mark.parametrize("command", ["local", "quickstart"])
def test_square_brackets_are_shown(command: str) -> None:
    result = CliRunner().invoke(build(), [command, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert "pip install 'patchbay-gateway[local]'" in result.stdout


@pytest.mark.parametrize("path", [path for path, _ in ALL], ids=" ".join)
def test_a_switch_is_shown_without_a_value(path: tuple[str, ...]) -> None:
    result = CliRunner().invoke(build(), [*path, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert "bool" not in result.stdout.lower()


def test_the_local_model_is_offered_as_it_runs_by_itself() -> None:
    """The command spells the defaults out, so that whoever does not run it need not load it."""
    [command] = [command for path, command in LEAVES if path == ("local",)]
    serve = inspect.signature(local.serve).parameters
    options = {option.name: option for option in command.params}
    for name in ("host", "port", "threads", "context_tokens"):
        assert options[name].default == serve[name].default, name
    bounds = (local._CONTEXT_TOKENS_MIN, local._CONTEXT_TOKENS_MAX)
    assert (options["context_tokens"].min, options["context_tokens"].max) == bounds


def test_every_option_is_explained() -> None:
    unexplained = [
        (" ".join(path), option.name)
        for path, command in LEAVES
        for option in command.params
        if not (option.help or getattr(option, "hidden", False))
    ]
    assert unexplained == []


def test_no_option_takes_a_secret() -> None:
    suspicious = {
        option.name
        for _, command in LEAVES
        for option in command.params
        if any(word in option.name for word in ("token", "key", "secret", "password", "credential"))
    }
    # Names of files and variables; the number of a model's tokens; a cap; the id of a token to revoke.
    assert suspicious == {
        "token_file",
        "client_key",
        "secret_env",
        "secret_file",
        "max_tokens",
        "context_tokens",
        "tokens",
        "token",
    }


def test_the_version_is_shown() -> None:
    result = CliRunner().invoke(build(), ["--version"])
    assert result.exit_code == 0
    assert result.stdout.strip().count(".") == 2
