"""A gateway that runs, and the command line as people use it: in this process, as a process, and at a terminal."""

import asyncio
import os
import pty
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.process import started
from tests.support.provider import Provider
from typer.testing import CliRunner

from patchbay_server import app
from patchbay_server.cli import build
from patchbay_server.config import Settings

ADMIN_TOKEN = "pb_0123456789ab_" + "a" * 43
KEY = "sk-proj-planted-secret-4711"
WAIT_S = 60.0


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Terminal:
    """Runs `patchbay` against one gateway."""

    environment: Mapping[str, str]
    provider: Provider
    folder: Path
    processes: AsyncExitStack
    """Ends those that still run when the test is over."""

    async def run(self, *arguments: str, stdin: str = "", **more: str) -> Result:
        """The command in this process; `more` are further variables of the environment."""
        environment = {**self.environment, **more}
        result = await asyncio.to_thread(CliRunner().invoke, build(), list(arguments), input=stdin, env=environment)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Result(result.exit_code, result.stdout, result.stderr)

    async def done(self, *arguments: str, **more: str) -> str:
        """What the command prints, which must succeed."""
        result = await self.run(*arguments, **more)
        assert result.code == 0, result.err
        return result.out

    async def start(self, *arguments: str, **streams: Any) -> asyncio.subprocess.Process:
        """The command as a process of its own, in the folder of the test."""
        environment = {**os.environ, **self.environment}
        command = [sys.executable, "-m", "patchbay_server.cli", *arguments]
        pipe = asyncio.subprocess.PIPE
        given = {"stdin": asyncio.subprocess.DEVNULL, "stdout": pipe, "stderr": pipe} | streams
        return await self.processes.enter_async_context(started(*command, cwd=self.folder, env=environment, **given))

    async def type_in(self, *arguments: str, answers: Mapping[str, str]) -> Result:
        """The command at a terminal, where each of `answers` is typed as soon as its question is shown.

        `err` is all that the terminal shows, echo included.
        """
        keyboard, screen = pty.openpty()
        process = await self.start(*arguments, stdin=screen, stderr=screen)
        os.close(screen)
        shown = b""  # what is read may end within a character
        waiting = list(answers.items())
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(keyboard, "rb")
        )
        try:
            with suppress(OSError):  # the terminal's other end is gone: the process has ended
                while data := await asyncio.wait_for(reader.read(4096), WAIT_S):
                    shown += data
                    if waiting and waiting[0][0].encode() in shown:
                        os.write(keyboard, f"{waiting.pop(0)[1]}\n".encode())
            out, _ = await asyncio.wait_for(process.communicate(), WAIT_S)
        finally:
            transport.close()
        assert process.returncode is not None
        return Result(process.returncode, out.decode(), shown.decode())


@asynccontextmanager
async def terminal_here(folder: Path) -> AsyncIterator[Terminal]:
    """A gateway in this process with a provider that follows a script, and no connector yet."""
    settings = Settings(
        listen="127.0.0.1:0",
        data_dir=folder / "data",
        bootstrap_token=ADMIN_TOKEN,
        drain_grace_s=0.0,
        creates_per_minute=1_000,
    )
    async with Provider() as provider, app.serving(settings) as (_, server), AsyncExitStack() as processes:
        environment = {
            "PATCHBAY_ADDRESS": server.address,
            "PATCHBAY_TOKEN": ADMIN_TOKEN,
            "PATCHBAY_DATA_DIR": str(folder / "nothing"),
            "NO_COLOR": "1",
            "TERM": "dumb",
        }
        terminal = Terminal(environment, provider, folder, processes)
        await terminal.done("policy", "set", "private_http=loopback")
        yield terminal


async def add_main(terminal: Terminal) -> None:
    """A connector `main` to the scripted provider."""
    address = f"base_url={terminal.provider.url()}"
    await terminal.done(
        *("connectors", "add", "openai_compatible", "--name", "Main", "--id", "main", "--model", "small"),
        *("--set", address, "--secret-env", "api_key=KEY"),
        KEY=KEY,
    )
