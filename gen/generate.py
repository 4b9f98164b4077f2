"""Writes the generated code under `gen/` from `protos/`, or checks that what is committed is what would be written.

    python gen/generate.py            write
    python gen/generate.py --check    write nothing; exit 1 and list every file that is stale, missing or left over

Needs grpcio-tools and mypy-protobuf in the running Python, in the versions that pyproject.toml pins: another version
may write other bytes. `buf` is not needed. The output folder is owned by this script: a file in it that no .proto gives
rise to is removed.
"""

import argparse
import os
import subprocess
import sys
import sysconfig
import tempfile
from importlib.resources import files
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
PYTHON = ROOT / "gen" / "python"

# Type checkers read the stubs of an installed package only where this marker lies beside them.
TYPED_MARKER = Path("patchbay", "v1", "py.typed")


def generate(out: Path) -> None:
    """Writes the Python code of every .proto file into `out`, which must exist and be empty.

    Neither `patchbay` nor `patchbay/v1` gets an `__init__.py`: both are namespace packages.

    Raises:
        subprocess.CalledProcessError: protoc or a plug-in failed; it has printed why.
    """
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    well_known = files("grpc_tools") / "_proto"
    command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={PROTOS}", f"--proto_path={well_known}"]
    command += [
        f"--python_out={out}",
        f"--grpc_python_out={out}",
        f"--mypy_out=quiet:{out}",
        f"--mypy_grpc_out=quiet:{out}",
    ]
    # protoc finds protoc-gen-mypy on PATH, and a virtual environment need not be activated to run this script.
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
    subprocess.run([*command, *sources], check=True, env={**os.environ, "PATH": path})  # noqa: S603 -- nothing from outside
    (out / TYPED_MARKER).touch()


def content(root: Path) -> dict[Path, bytes]:
    """Every file below `root` by its relative path, except what the interpreter caches."""
    paths = (path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(root): path.read_bytes() for path in paths}


def differences(fresh: dict[Path, bytes], committed: dict[Path, bytes]) -> list[str]:
    """One line for each file that differs, sorted by path; empty when both are equal."""
    lines = []
    for path in sorted(fresh.keys() | committed.keys()):
        if path not in committed:
            lines.append(f"missing: {path}")
        elif path not in fresh:
            lines.append(f"left over: {path}")
        elif fresh[path] != committed[path]:
            lines.append(f"stale: {path}")
    return lines


def write(fresh: dict[Path, bytes], committed: dict[Path, bytes], root: Path) -> None:
    """Makes the files below `root`, which are `committed`, equal to `fresh`; equal files are not touched."""
    for path in committed.keys() - fresh.keys():
        (root / path).unlink()
    for path, data in fresh.items():
        if committed.get(path) != data:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(data)


def main() -> int:
    parser = argparse.ArgumentParser(description="Writes or checks the generated code under gen/.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a file is not as generated")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh = content(Path(folder))
    committed = content(PYTHON)
    lines = differences(fresh, committed)
    if not check:
        write(fresh, committed, PYTHON)
    sys.stdout.writelines(f"{line}\n" for line in lines)
    return 1 if check and lines else 0


if __name__ == "__main__":
    sys.exit(main())
