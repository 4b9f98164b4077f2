"""Every command that the documents tell people to type is run here, in their order, against a real gateway.

A command that no rule below knows fails, so that none can be added without being run.
"""

import asyncio
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
from tests.support.answers import openai_stream
from tests.support.needs import needs
from tests.support.provider import Provider

from patchbay_server.config import SETTINGS
from patchbay_server.local import LocalModelError, check_installed

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
TOOLS = Path(sys.executable).parent
BLOCK = re.compile(r"```(console|python|toml)\n(.*?)```", re.DOTALL)

STARTS = ("make run", "patchbay serve", "PATCHBAY_PLUGIN_DIR=/etc/patchbay/plugins patchbay serve")
"""Commands that start what the others talk to: `quick` does so; tests/faults stops `patchbay serve`."""
TESTS = ("make test", "make check")
"""Commands that would start this very run."""


RUN_S_MAX = 200.0
"""A small model may speak until its context is full, and a busy machine computes slowly."""
pytestmark = pytest.mark.timeout(900)


def commands(document: Path) -> list[str]:
    found = []
    for kind, text in BLOCK.findall(document.read_text(encoding="utf-8")):
        if kind == "console":
            joined = text.replace("\\\n", " ")
            found += [line.removeprefix("$ ") for line in joined.splitlines() if line.startswith("$ ")]
    return found


def installed() -> bool:
    try:
        check_installed()
    except LocalModelError:
        return False
    return True


@pytest.fixture
async def quick(tmp_path: Path) -> AsyncIterator[str]:
    """What `make run` starts, in an empty folder with the same tools; gives its address."""
    needs(installed(), "the local model is not installed: `make run` installs it")
    (tmp_path / ".venv").symlink_to(TOOLS.parent)
    process = await asyncio.create_subprocess_exec(
        TOOLS / "patchbay",
        "quickstart",
        cwd=tmp_path,
        env=environment({"PATCHBAY_LISTEN": "127.0.0.1:0", "PATCHBAY_DRAIN_GRACE_S": "0"}),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            welcome = await process.stdout.readuntil(b"Ctrl-C stops it.")
        (tmp_path / "welcome").write_bytes(welcome)
        match = re.search(rb"ready on (\S+)", welcome)
        assert match is not None
        yield match[1].decode()
    finally:
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            await process.communicate()
    assert process.returncode == 0


def environment(more: Mapping[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PATCHBAY_")}
    return {**kept, "PATH": f"{TOOLS}:{os.environ['PATH']}", **more}


async def run(command: list[str] | str, folder: Path, more: Mapping[str, str]) -> str:
    """Run as a shell would, in `folder`; what it printed, once it has succeeded."""
    shell = command if isinstance(command, str) else None
    start = (
        asyncio.create_subprocess_shell(shell, cwd=folder, env=environment(more), stdout=-1, stderr=-2, stdin=-3)
        if shell
        else asyncio.create_subprocess_exec(*command, cwd=folder, env=environment(more), stdout=-1, stderr=-2, stdin=-3)
    )
    process = await start
    async with asyncio.timeout(RUN_S_MAX):
        output, _ = await process.communicate()
    assert process.returncode == 0, f"{command}\n{output.decode()}"
    return output.decode()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
async def test_the_commands_of_a_document_work_in_their_order(document: Path, tmp_path: Path, quick: str) -> None:
    async with Provider() as provider:
        provider.always_answer(openai_stream(), name="v1")
        # A stand-in for the provider, whose key the terminal would ask for.
        stand_in = f"--set endpoint={provider.url('v1')} --secret-env api_key=TEAM_KEY"
        for command in commands(document):
            if command in STARTS or command in TESTS:
                continue
            if command.startswith(".venv/bin/patchbay connectors add openai "):
                command = f"{command} {stand_in}"  # noqa: PLW2901 -- the rest of the loop runs the changed one
            assert re.match(r"(\.venv/bin/)?(patchbay|grpcurl|python) ", command), f"no rule runs {command!r}"
            more = {"PATCHBAY_ADDRESS": quick, "TEAM_KEY": "sk-team-0123456789abcdef"}
            assert await run(command.replace("localhost:50051", quick), tmp_path, more)
        assert not provider.unexpected


async def test_the_lines_that_make_run_prints_work_as_they_are_printed(tmp_path: Path, quick: str) -> None:
    _, _, told = (tmp_path / "welcome").read_text().partition("Try, in another terminal:")
    lines = [line for line in told.replace("\\\n", " ").splitlines() if line.startswith("  ")]
    assert len(lines) == 3
    for line in lines:
        assert quick in line
        assert await run(line.strip(), tmp_path, {})


@pytest.mark.parametrize("document", ["README.md", "docs/python.md"])
async def test_the_python_of_a_document_runs_as_it_stands(document: str, tmp_path: Path, quick: str) -> None:
    blocks = [text for kind, text in BLOCK.findall((ROOT / document).read_text()) if kind == "python"]
    assert blocks
    for block in blocks:
        assert await run([sys.executable, "-c", block.replace("localhost:50051", quick)], tmp_path, {})


def test_the_settings_file_of_the_documents_names_real_settings() -> None:
    blocks = [
        text
        for document in DOCUMENTS
        for kind, text in BLOCK.findall(document.read_text())
        if kind == "toml" and "entry-points" not in text
    ]
    assert blocks
    for block in blocks:
        assert set(tomllib.loads(block)) <= set(SETTINGS)


@pytest.mark.parametrize(
    "document", [*DOCUMENTS, *ROOT.glob("*.md"), *(ROOT / "docs/adr").glob("*.md")], ids=lambda path: path.name
)
def test_every_link_between_documents_leads_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
        assert "://" in target or (document.parent / target).exists(), target


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_make_run_answers_in_a_fresh_clone(tmp_path: Path) -> None:
    """The first of the two commands, with nothing installed before."""
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    more = {"PATCHBAY_LISTEN": "127.0.0.1:0", "PATCHBAY_DRAIN_GRACE_S": "0", "PYTHON": sys.executable}
    with subprocess.Popen(
        ["make", "run"], cwd=clone, env=environment(more), stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            assert process.stdout is not None
            address = next(found[1] for line in process.stdout if (found := re.search(r"ready on (\S+)", line)))
            answer = subprocess.run(
                [".venv/bin/patchbay", "chat", "What is the capital of France?"],
                cwd=clone,
                env={**environment({}), "PATCHBAY_ADDRESS": address},
                capture_output=True,
                text=True,
                timeout=60,
                check=True,
            )
            assert answer.stdout.strip()
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.communicate(timeout=60)
