"""Servers that others wrote to stand for providers, as processes of their own on loopback."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx

START_S_MAX = 60.0


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@asynccontextmanager
async def simulator(
    command: Sequence[str | Path], port: int, path: str, settings: Mapping[str, str] | None = None
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the server that `command` starts on `port`; it runs until the context is left.

    Args:
        path: what the server answers, with whatever status, once it is ready.
    """
    quiet = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(
        *command, stdin=quiet, stdout=quiet, stderr=quiet, env={**os.environ, **(settings or {})}
    )
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            async with asyncio.timeout(START_S_MAX):
                while not await _answers(client, path):
                    assert process.returncode is None, f"{command[0]} has ended"
                    await asyncio.sleep(0.05)
            yield client
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _answers(client: httpx.AsyncClient, path: str) -> bool:
    try:
        await client.get(path)
    except httpx.TransportError:
        return False
    return True
