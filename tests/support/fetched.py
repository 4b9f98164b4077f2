"""Work of others that tests measure ours by and that is not in this repository: fetched once, kept in `.fetched`."""

import fcntl
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.support.needs import needs

HOME: Final = Path(__file__).parents[2] / ".fetched"
FETCH_S_MAX: Final = 100

NODE_PACKAGES: Final = ("@copilotkit/aimock@1.43.0", "@smithy/core@3.41.1", "@smithy/eventstream-codec@4.5.2")


def node_packages() -> Path:
    """The folder that Node finds the packages in."""
    needs(shutil.which("npm") is not None, "Node is not installed")

    def install(folder: Path) -> None:
        quiet = ("--silent", "--no-audit", "--no-fund", "--ignore-scripts")
        _run("npm", "install", *quiet, "--prefix", str(folder), *NODE_PACKAGES)

    return _fetched("node", ",".join(NODE_PACKAGES), install) / "node_modules"


def sources(project: str, version: str, within: str) -> Path:
    """The part of a Python project's source distribution that lies in the folder `within`."""

    def unpack(folder: Path) -> None:
        quiet = ("--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation")
        _run(
            sys.executable,
            "-m",
            "pip",
            "download",
            *quiet,
            "--no-binary",
            ":all:",
            "-d",
            folder,
            f"{project}=={version}",
        )
        with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
            top = f"{archive.getnames()[0].split('/')[0]}/{within}"
            archive.extractall(folder, [one for one in archive if one.name.startswith(top)], filter="data")
            (folder / top).rename(folder / "within")

    return _fetched(project, f"{version} {within}", unpack) / "within"


class _NotFetchedError(Exception):
    pass


def _run(*command: str | Path) -> None:
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=FETCH_S_MAX)
    if run.returncode:
        raise _NotFetchedError(run.stderr.strip()[-500:])


def _fetched(name: str, what: str, fetch: Callable[[Path], None]) -> Path:
    """The folder that `fetch` has filled with `what`, now or in an earlier run."""
    folder, mark = HOME / name, HOME / f"{name}.fetched"
    with _alone(name):
        if not mark.exists() or mark.read_text(encoding="utf-8") != what:
            mark.unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            try:
                fetch(folder)
            except (_NotFetchedError, subprocess.TimeoutExpired) as error:
                needs(False, f"{what} cannot be fetched: {error}")
            mark.write_text(what, encoding="utf-8")
    return folder


@contextmanager
def _alone(name: str) -> Iterator[None]:
    """Several processes run tests."""
    HOME.mkdir(exist_ok=True)
    with (HOME / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
