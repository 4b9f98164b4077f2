"""What `patchbay serve`, `quickstart` and `local` run. Importing this loads the whole server."""

import os
from pathlib import Path

from patchbay_server import app, config, quickstart
from patchbay_server import local as local_model
from patchbay_server.cli.output import Printer
from patchbay_server.cli.session import ExitCode, fail


def serve(config_file: Path | None) -> int:
    """The gateway's exit code, once it has stopped."""
    try:
        return app.run(config.load(config_file, os.environ))
    except config.ConfigError as error:
        fail(str(error))


def serve_with_model(config_file: Path | None) -> int:
    """As `serve`, with a local model behind it."""
    try:
        return quickstart.run(config.load(config_file, os.environ))
    except config.ConfigError as error:
        fail(str(error))
    except local_model.LocalModelError as error:
        fail(str(error), ExitCode.ERROR)


def serve_model(*, host: str, port: int, threads: int, context_tokens: int, model_path: Path | None) -> None:
    """Serves the model alone, until the process ends."""
    try:
        local_model.serve(
            host=host,
            port=port,
            threads=threads,
            context_tokens=context_tokens,
            model_path=model_path,
            announce=_announce,
        )
    except local_model.LocalModelError as error:
        fail(str(error), ExitCode.ERROR)


def _announce(model: local_model.LocalModel) -> None:
    printer = Printer(as_json=False)
    printer.line(model.base_url)
    printer.remark(
        f'use it: patchbay connectors add openai_compatible --name "{model.model}" --set base_url={model.base_url}'
    )
