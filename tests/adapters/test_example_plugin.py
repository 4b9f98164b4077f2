"""The example of a plug-in, as its author would have it: installed by pip, found by a gateway, passed by the suite."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
from tests.e2e.gateway import COMMAND, OWNER, GatewayProcess, asking, fresh_key, read
from tests.support.provider import Head, Provider

from patchbay.v1 import connector_service_pb2 as pb

EXAMPLE: Final = Path(__file__).parent / "plugins" / "example"
DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "plugins.md"
KEY: Final = "example-key-0123456789"

JSON: Final = Head(headers={"content-type": "application/json"})
SSE: Final = Head(headers={"content-type": "text/event-stream"})


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package's sources, which building must not soil."""
    return shutil.copytree(EXAMPLE, tmp_path_factory.mktemp("package") / "example")


@pytest.fixture(scope="module")
def installed(package: Path) -> Path:
    """The folder that the package was installed into."""
    folder = package.parent / "installed"
    offline = ("--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check")
    command = [sys.executable, "-m", "pip", "install", "--quiet", *offline, "--target", str(folder), str(package)]
    subprocess.run(command, check=True, timeout=60)
    return folder


async def test_a_gateway_finds_the_installed_package_and_answers_through_it(installed: Path, tmp_path: Path) -> None:
    command = ("env", f"PYTHONPATH={installed}", *COMMAND)
    async with (
        Provider() as provider,
        GatewayProcess(tmp_path / "data", command=command, master_keys=f"key-1:{fresh_key()}") as gateway,
        gateway.client() as client,
    ):
        assert "example (patchbay_example:ADAPTER)" in gateway.log, "plug-ins are announced"
        await client.allow(pb.PRIVATE_HTTP_LOOPBACK)
        fields = {"api_key": KEY, "endpoint": provider.url()}
        plugged = pb.PluginCredential(type="example", fields_json=json.dumps(fields))
        await client.create("made-up", pb.Credential(plugin=plugged), "m")

        whole = b'{"text": "Hello", "done": true, "tokens_in": 3, "tokens_out": 2}'
        provider.answer([JSON, b'{"models": ["m", "n"]}'], [JSON, b'{"models": ["m", "n"]}'])
        provider.answer(
            [JSON, whole], [SSE, b'data: {"text": "Hel"}\n\n', b'data: {"text": "lo"}\n\ndata: {"done": true}']
        )

        name = f"{OWNER}/connectors/made-up"
        tested = await client.connectors.TestConnector(pb.TestConnectorRequest(name=name), metadata=client.metadata)
        assert tested.result == pb.TEST_RESULT_OK
        request = pb.ListConnectorModelsRequest(parent=name)
        listed = await client.connectors.ListConnectorModels(request, metadata=client.metadata)
        assert [model.id for model in listed.models] == ["m", "n"]

        (answer,) = await read(client.chat(request=asking("made-up")))
        assert [part.text for part in answer.message.parts] == ["Hello"]
        assert (answer.usage.input_tokens, answer.usage.output_tokens) == (3, 2)
        chunks = await read(client.stream(request=asking("made-up")))
        assert "".join(chunk.text_delta.text for chunk in chunks) == "Hello"

        assert {made.headers["authorization"] for made in provider.requests} == {f"Bearer {KEY}"}
        assert KEY not in gateway.log


def test_the_package_passes_its_own_tests(package: Path, installed: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-ra", "-q", "tests"]
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    run = subprocess.run(command, cwd=package, env=environment, capture_output=True, text=True, check=False, timeout=90)
    assert run.returncode == 0, run.stdout
    assert int(re.findall(r"(\d+) passed", run.stdout)[-1]) > 100, run.stdout
    assert re.findall(r"^SKIPPED .*: (.*)$", run.stdout, re.MULTILINE) == ["the adapter declares no tools"], run.stdout


@pytest.mark.parametrize("file", ["pyproject.toml", "patchbay_example.py", "tests/test_example.py"])
def test_the_document_shows_the_package_as_it_is(file: str) -> None:
    assert f"\n{(EXAMPLE / file).read_text(encoding='utf-8')}```\n" in DOCUMENT.read_text(encoding="utf-8")
