"""The decoders under a fuzzer: every seed in the fast run, and for a bounded time whatever coverage leads it to."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import pytest
from tests.fuzz.targets import TARGETS
from tests.support.needs import needs

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parents[1]
FUZZ_S: Final = 30
EVENT_BYTES_MAX: Final = 1500
SEEDS: Final = sorted(path for path in (HERE / "seeds").glob("*/*"))


@pytest.mark.parametrize("seed", SEEDS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_a_seed_keeps_the_rules_whole_and_cut_off_anywhere(seed: Path) -> None:
    data = seed.read_bytes()
    for length in (*range(0, len(data), 7), len(data)):
        TARGETS[seed.parent.name](data[:length])


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_no_input_that_the_fuzzer_finds_breaks_a_rule(target: str, tmp_path: Path) -> None:
    needs(find_spec("atheris") is not None, "atheris is not installed: it has no wheel for this Python")
    found = tmp_path / "found"
    found.mkdir()
    options = (f"-max_total_time={FUZZ_S}", f"-max_len={EVENT_BYTES_MAX}", "-timeout=10", "-rss_limit_mb=1024")
    command = [sys.executable, "-m", "tests.fuzz.run", target, *options, f"-artifact_prefix={tmp_path}/", found]
    run = subprocess.run(
        [*command, HERE / "seeds" / target], cwd=ROOT, capture_output=True, text=True, check=False, timeout=FUZZ_S + 60
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert "Done " in run.stderr
    assert list(found.iterdir()), "it was led to nothing new"
