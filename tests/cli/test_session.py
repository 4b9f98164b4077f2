"""Where a gateway is found, who asks, and how a command ends."""

import asyncio
import json
import signal
import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest
import typer
from tests.cli.terminal import ADMIN_TOKEN, WAIT_S, Terminal
from tests.client.test_channel import pki
from tests.support.provider import Provider

import patchbay_client
from patchbay_client import PatchbayError
from patchbay_server import app
from patchbay_server.cli.output import Printer, cell, printable
from patchbay_server.cli.session import ExitCode, exit_code, find_token
from patchbay_server.config import Settings


def test_a_token_comes_from_the_first_place_that_has_one(tmp_path: Path) -> None:
    named, pointed, usual = tmp_path / "named", tmp_path / "pointed", tmp_path / "data"
    usual.mkdir()
    for file, token in ((named, "from-option"), (pointed, "from-file-variable"), (usual / "token", "from-usual-place")):
        file.write_text(f"{token}\n")
    everything = {
        "PATCHBAY_TOKEN": "from-variable",
        "PATCHBAY_TOKEN_FILE": str(pointed),
        "PATCHBAY_DATA_DIR": str(usual),
    }
    assert find_token(named, everything) == "from-option"
    assert find_token(None, everything) == "from-variable"
    del everything["PATCHBAY_TOKEN"]
    assert find_token(None, everything) == "from-file-variable"
    del everything["PATCHBAY_TOKEN_FILE"]
    assert find_token(None, everything) == "from-usual-place"
    assert find_token(None, {"PATCHBAY_DATA_DIR": str(tmp_path)}) is None
    with pytest.raises(typer.Exit) as caught:
        find_token(tmp_path / "missing", {})
    assert caught.value.exit_code == ExitCode.USAGE


async def test_the_token_of_a_file_is_used(terminal: Terminal, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{ADMIN_TOKEN}\n")
    assert (await terminal.run("status", "--token-file", str(file), PATCHBAY_TOKEN="")).code == 0
    nothing = await terminal.run("status", PATCHBAY_TOKEN="")
    assert (nothing.code, "no token: set PATCHBAY_TOKEN" in nothing.err) == (2, True)


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--address", "127.0.0.1:1"), 7, "no gateway answers at 127.0.0.1:1"),
        (("--address", "nonsense"), 2, "has no port"),
        (("--address", "192.0.2.1:50051"), 2, "refusing to send the token"),
        (("--address", "https://localhost:1", "--ca", "/no/such/file"), 2, "cannot read /no/such/file"),
    ],
)
async def test_a_gateway_that_cannot_be_asked_is_explained(
    terminal: Terminal, options: tuple[str, ...], code: int, said: str
) -> None:
    result = await terminal.run("status", *options)
    assert result.code == code
    assert said in result.err
    assert result.err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (patchbay_client.Unauthenticated, 3),
        (patchbay_client.PermissionDenied, 3),
        (patchbay_client.NotFound, 4),
        (patchbay_client.InvalidRequest, 5),
        (patchbay_client.FeatureUnsupported, 5),
        (patchbay_client.PreconditionFailed, 5),
        (patchbay_client.AlreadyExists, 5),
        (patchbay_client.Conflict, 5),
        (patchbay_client.RateLimited, 6),
        (patchbay_client.CapReached, 6),
        (patchbay_client.Unavailable, 7),
        (patchbay_client.TruncatedStream, 7),
        (patchbay_client.DeadlineExceeded, 7),
        (patchbay_client.NotSupported, 1),
        (PatchbayError, 1),
    ],
)
def test_each_failure_has_its_exit_code(error: type[PatchbayError], code: int) -> None:
    assert exit_code(error("no")) == code


def test_a_reason_of_the_future_is_told_by_its_status_code() -> None:
    assert exit_code(PatchbayError("no", code=grpc.StatusCode.RESOURCE_EXHAUSTED)) == ExitCode.LIMITED


def test_a_wrong_setting_stops_serve_with_one_line(tmp_path: Path) -> None:
    for command in ("serve", "quickstart"):
        result = subprocess.run(
            [sys.executable, "-m", "patchbay_server.cli", command],
            cwd=tmp_path,
            env={"PATCHBAY_LISTEN": "nowhere", "PATH": "/usr/bin"},
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=False,
        )
        assert result.returncode == 2
        assert result.stderr.startswith("patchbay: listen: ")
        assert result.stderr.count("\n") == 1
        assert result.stdout == ""


async def test_serve_runs_a_gateway_until_it_is_told_to_stop(terminal: Terminal, tmp_path: Path) -> None:
    settings = tmp_path / "patchbay.toml"
    settings.write_text(
        f'listen = "127.0.0.1:0"\ndata_dir = "{tmp_path / "served"}"\nbootstrap_token = "{ADMIN_TOKEN}"\n'
        'drain_grace_s = 0\nlog_format = "text"\n'
    )
    process = await terminal.start("serve", "--config", str(settings))
    assert process.stderr is not None
    while b"listening on" not in (line := await asyncio.wait_for(process.stderr.readline(), WAIT_S)):
        assert line, "it ended"
    address = line.decode().split("listening on ")[1].split()[0]
    assert (await terminal.run("status", PATCHBAY_ADDRESS=address)).code == 0
    process.send_signal(signal.SIGTERM)
    await asyncio.wait_for(process.communicate(), WAIT_S)
    assert process.returncode == 0


def test_what_a_model_says_cannot_drive_the_terminal() -> None:
    assert printable("a\x1b[2Jb\x07\x9bc\r\n\td") == "a\N{REPLACEMENT CHARACTER}[2Jb\N{REPLACEMENT CHARACTER}" + (
        "\N{REPLACEMENT CHARACTER}c\N{REPLACEMENT CHARACTER}\n\td"
    )
    assert cell("two\nlines\x1b") == "two lines\N{REPLACEMENT CHARACTER}"


def test_pipes_get_plain_columns(capsys: pytest.CaptureFixture[str]) -> None:
    Printer(as_json=False).table(("ID", "N"), [("a", 1), ("long [bold]name[/]", None), ("b", 1234567)], [])
    assert capsys.readouterr().out == (
        "ID                  N\na                   1\nlong [bold]name[/]\nb                   1,234,567\n"
    )


async def test_a_certificate_stands_for_a_token(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    authority, server, client = pki()
    pem = {"ca": authority, "crt": server.cert, "key": server.key, "own-crt": client.cert, "own-key": client.key}
    files = {name: tmp_path / f"{name}.pem" for name in pem}
    for name, path in files.items():
        path.write_bytes(pem[name])
    token_id = ADMIN_TOKEN.split("_")[1]
    settings = Settings(
        listen="127.0.0.1:0",
        data_dir=tmp_path / "data",
        bootstrap_token=ADMIN_TOKEN,
        drain_grace_s=0.0,
        tls_certificate_file=files["crt"],
        tls_key_file=files["key"],
        tls_client_ca_file=files["ca"],
        tls_clients=f"client.test={token_id}, other.test=000000000000",
    )
    async with Provider() as provider, app.serving(settings) as (_, rpc_server), AsyncExitStack() as processes:
        environment = {"PATCHBAY_ADDRESS": f"https://{rpc_server.address}", "PATCHBAY_DATA_DIR": str(tmp_path / "none")}
        terminal = Terminal(environment, provider, tmp_path, processes)
        held = ("--client-cert", str(files["own-crt"]), "--client-key", str(files["own-key"]))
        listed = json.loads(await terminal.done("tokens", "list", "-o", "json", "--ca", str(files["ca"]), *held))
        assert [token["name"] for token in listed] == [f"tokens/{token_id}"]
        result = await terminal.run("tokens", "list", "--ca", str(files["ca"]), PATCHBAY_TOKEN=ADMIN_TOKEN)
        assert result.code == 7, "a client without a certificate got in"
    assert "there is no token 000000000000" in caplog.text
