"""Processes that tests start."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any


@asynccontextmanager
async def started(*command: str | Path, **options: Any) -> AsyncIterator[asyncio.subprocess.Process]:
    """The command as a process that does not outlive its test, however that ends; options as asyncio takes them."""
    process = await asyncio.create_subprocess_exec(*command, **options)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()  # closes its pipes, too
