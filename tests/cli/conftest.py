"""A gateway and a terminal."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.cli.terminal import Terminal, terminal_here


@pytest.fixture
async def terminal(tmp_path: Path) -> AsyncIterator[Terminal]:
    async with terminal_here(tmp_path) as terminal:
        yield terminal
