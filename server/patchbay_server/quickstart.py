"""A first answer within a minute: a local model, a gateway beside it, and the three lines to try. Behind `make run`.

Everything is kept in the data folder, so that a second start finds the same token and the same connector.
"""

import asyncio
import shutil
import sys
import time
from pathlib import Path
from typing import Final

import msgspec

from patchbay_server import telemetry
from patchbay_server.app import serving, stop_asked, write_private
from patchbay_server.config import Settings
from patchbay_server.core.access import Access
from patchbay_server.core.connectors import Credential
from patchbay_server.core.draft import Draft
from patchbay_server.core.service import Service
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.local import LocalModel, start
from patchbay_server.types import Caller, PrivateHttp, Scope

OWNER: Final = "default"
CONNECTOR: Final = "local"
TOKEN_FILE: Final = "token"  # noqa: S105 -- the name of a file
SETTER_UP: Final = Caller(id="quickstart", owner=None, scopes=frozenset(Scope))
"""The actor of what is set up here, as the audit trail names it."""


def run(settings: Settings) -> int:
    """Serve with a local model as the organisation's default until SIGTERM or SIGINT; the process's exit code.

    Raises:
        ConfigError: when a setting turns out to be unusable.
        LocalModelError: when the model is not installed or does not start.
    """
    began = time.monotonic()
    telemetry.set_up_logging(level="warning", style="text")
    token_file = settings.data_dir / TOKEN_FILE
    earlier = token_file.read_text(encoding="ascii").strip() if token_file.is_file() else ""
    with start() as model:
        return asyncio.run(_serve(settings, model, token_file, earlier, began))


async def _serve(settings: Settings, model: LocalModel, token_file: Path, earlier: str, began: float) -> int:
    stopped = stop_asked()
    # The service hands a first token over itself; this one's place is the file.
    settings = msgspec.structs.replace(settings, bootstrap_token_file=token_file)
    async with serving(settings) as (running, server):
        token = running.first_token or await _if_good(running.service.access, earlier)
        if token is None:
            _, token = await running.service.admin.create_token(SETTER_UP, "quickstart", frozenset(Scope), None, None)
        write_private(token_file, token + "\n")
        await _set_up(running.service, model)
        sys.stdout.write(_welcome(server.address, model, token_file, token, time.monotonic() - began))
        sys.stdout.flush()
        await stopped.wait()
        sys.stdout.write("\nstopping: running calls may finish\n")
    return 0


async def _if_good(access: Access, token: str) -> str | None:
    """The token of an earlier start, if it still works."""
    try:
        await access.authenticate(token)
    except PatchbayError:
        return None
    return token


async def _set_up(service: Service, model: LocalModel) -> None:
    """Let connectors reach loopback, and let the local model answer whoever has no connector of their own."""
    policy = await service.admin.policy(SETTER_UP)
    loopback = msgspec.structs.replace(policy, private_http=PrivateHttp.LOOPBACK)
    if policy.private_http is PrivateHttp.NONE:
        await service.admin.update_policy(SETTER_UP, loopback, ["private_http"], "")
    credential = Credential(type="openai_compatible", fields={"base_url": model.base_url})
    try:
        await service.connectors.rotate(SETTER_UP, OWNER, CONNECTOR, credential, "")
    except PatchbayError as error:
        if error.reason is not Reason.CONNECTOR_NOT_FOUND:
            raise
        draft = Draft(display_name="Local model", model_hint=model.model)
        await service.connectors.create(SETTER_UP, OWNER, CONNECTOR, draft, credential)
    if policy.organisation_default is None:
        name = f"owners/{OWNER}/connectors/{CONNECTOR}"
        wanted = msgspec.structs.replace(policy, organisation_default=name)
        await service.admin.update_policy(SETTER_UP, wanted, ["org_default_connector"], "")


def _welcome(address: str, model: LocalModel, token_file: Path, token: str, seconds: float) -> str:
    tools = Path(sys.executable).parent
    question = "What is the capital of France?"
    grpcurl = shutil.which("grpcurl", path=str(tools)) or "grpcurl"
    client = f"PatchbayClient('{address}', open('{token_file}').read().strip())"
    return f"""
Patchbay is ready on {address} with the model {model.model} ({seconds:.1f} s)

  token  {token}
         kept in {token_file}; it may do everything

Try, in another terminal:

  {_short(tools / "patchbay")} chat{_options(address, token_file)} "{question}"

  {_short(Path(grpcurl))} -plaintext -H "authorization: Bearer $(cat {token_file})" \\
    -d '{{"messages":[{{"role":"ROLE_USER","parts":[{{"text":"{question}"}}]}}]}}' \\
    {address} patchbay.v1.GatewayService/Stream

  {_short(tools / "python")} -c "from patchbay_client import PatchbayClient; print({client}.chat('{question}').text)"

Ctrl-C stops it.
"""


def _options(address: str, token_file: Path) -> str:
    """What the command line does not find by itself."""
    here = "" if address in {"127.0.0.1:50051", "localhost:50051"} else f" --address {address}"
    return here if token_file == Path(".patchbay") / TOKEN_FILE else f"{here} --token-file {token_file}"


def _short(path: Path) -> str:
    """A path below this folder as people would type it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
