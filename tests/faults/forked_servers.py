"""A process that has loaded the server once, and makes a server process of each line it reads.

A line is a JSON object of environment variables; the server that is forked for it serves as `patchbay serve` does with
them, and says so on the output: its process id and its address. It runs until it is killed. So hundreds of servers can
be started, killed and started again in the time that loading a few takes.

Nothing is shared between one server and the next but the code: neither a thread, nor a loop, nor a connection exists
in this process.
"""

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Mapping

from patchbay_server import app, config


async def _serve(settings: config.Settings) -> None:
    async with app.serving(settings) as (_, server):
        sys.stdout.write(f"{os.getpid()} {server.address}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


def _become_server(environment: Mapping[str, str]) -> None:
    """Never returns."""
    try:
        asyncio.run(_serve(config.load(None, environment)))
    finally:
        sys.stderr.flush()
        os._exit(1)


def main() -> None:
    logging.basicConfig(level=logging.ERROR)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the killed leave nothing to be collected
    for line in iter(sys.stdin.readline, ""):
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _become_server(json.loads(line))


if __name__ == "__main__":
    main()
