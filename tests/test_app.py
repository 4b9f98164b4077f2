"""Assembly: what stops a start, and how everything is taken down again."""

import asyncio
import socket
from pathlib import Path

import msgspec
import pytest
from tests.support import faults
from tests.support.clock import START

from patchbay_server import app
from patchbay_server.config import ConfigError, Settings
from patchbay_server.errors import PatchbayError, Reason
from patchbay_server.types import AuditEvent, AuditType, Price

SECRET = "swordfish4711"


def settings(tmp_path: Path, **given: object) -> Settings:
    return Settings(**({"listen": "127.0.0.1:0", "data_dir": tmp_path / "data", "drain_grace_s": 0.0} | given))


async def refusal(config: Settings) -> str:
    """The one line that a start is refused with."""

    async def start() -> None:
        async with app.serving(config):
            pytest.fail("it started")

    with pytest.raises(ConfigError) as caught:
        await start()
    line = str(caught.value)
    assert "\n" not in line
    assert SECRET not in line
    return line


async def test_an_address_in_use_stops_the_start_by_its_name(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert (await refusal(settings(tmp_path, listen=f"127.0.0.1:{port}"))).startswith("listen: ")


async def test_a_bad_first_token_stops_the_start_by_its_name(tmp_path: Path) -> None:
    assert (await refusal(settings(tmp_path, bootstrap_token=SECRET))).startswith("bootstrap_token: ")


@pytest.mark.parametrize("url", [f"mysql://u:{SECRET}@127.0.0.1:1/x", "sqlite:////no-such-folder/patchbay.db"])
async def test_a_database_that_cannot_be_used_stops_the_start_by_its_name(tmp_path: Path, url: str) -> None:
    assert (await refusal(settings(tmp_path, database_url=url))).startswith("database_url: ")


async def test_a_master_key_that_is_none_stops_the_start_by_its_name(tmp_path: Path) -> None:
    assert (await refusal(settings(tmp_path, master_keys=f"a:{SECRET}"))).startswith("master_keys: ")


async def test_a_second_server_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    async with app.serving(settings(tmp_path)):
        assert (await refusal(settings(tmp_path))).startswith("data_dir: ")
    async with app.serving(settings(tmp_path)) as (running, _):
        assert running.first_token is None, "the first administrator is there from the first start"


async def test_a_second_server_on_the_same_database_is_refused_whatever_its_folder(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    async with app.serving(settings(tmp_path, database_url=url)):
        assert (await refusal(settings(tmp_path, database_url=url, data_dir=tmp_path / "other"))).startswith(
            "database_url"
        )


async def test_a_database_that_several_servers_share_is_refused(tmp_path: Path) -> None:
    assert (await refusal(settings(tmp_path, database_url="postgresql://u@localhost/x"))).startswith("database_url: ")


async def test_a_first_token_replaces_a_file_that_others_could_read(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("old")
    path.chmod(0o644)
    async with app.serving(settings(tmp_path, bootstrap_token_file=path)):
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.read_text().startswith("pb_")


async def test_a_gateway_leaves_no_task_behind(tmp_path: Path) -> None:
    before = asyncio.all_tasks()
    async with app.serving(settings(tmp_path)) as (running, server):
        assert running.first_token is not None
        assert server.address
    await asyncio.sleep(0)
    assert asyncio.all_tasks() <= before


async def test_a_store_that_fails_at_the_end_does_not_keep_the_records_from_being_flushed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with app.serving(settings(tmp_path)) as (running, _):
        assert running.first_token is not None
        await running.service.access.authenticate(running.first_token)
        faults.fail(running.service.store, "touch_token")
        flushed = faults.count(running.service.recorder, "flush")
    assert len(flushed) == 1
    assert "could not be written" in caplog.text


async def test_a_background_task_that_breaks_takes_the_gateway_down_and_is_told(tmp_path: Path) -> None:
    async def run() -> None:
        async with app.serving(settings(tmp_path)) as (running, _):
            faults.fail(running.service.store, "version", error=lambda: RuntimeError("broken"))
            await asyncio.sleep(60)

    with pytest.raises(RuntimeError, match="broken"):
        await asyncio.wait_for(run(), 30)


async def test_what_the_body_raises_comes_out_as_it_is(tmp_path: Path) -> None:
    async def run() -> None:
        async with app.serving(settings(tmp_path)):
            raise PatchbayError(Reason.INTERNAL, "mine")

    with pytest.raises(PatchbayError, match="mine"):
        await run()


async def test_models_that_policy_says_are_free_are_announced_at_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with app.serving(settings(tmp_path)) as (running, _):
        store = running.service.store
        now = await store.policy()
        prices = {"*/free": Price(input_usd_nanos=0, output_usd_nanos=0), "*/paid": Price(input_usd_nanos=1)}
        changed = msgspec.structs.replace(now, price_overrides=prices, version=now.version + 1)
        event = AuditEvent(type=AuditType.POLICY_CHANGED, at=START, actor="test", subject="policy")
        await store.save_policy(changed, now.version, event)
    assert "cost nothing" not in caplog.text
    async with app.serving(settings(tmp_path)):
        pass
    (line,) = [record.getMessage() for record in caplog.records if "cost nothing" in record.getMessage()]
    assert line.endswith(": */free")
