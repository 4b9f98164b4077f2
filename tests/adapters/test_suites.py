"""Every connector type of the gateway passes the whole of the published suite, with transcripts of every kind."""

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from patchbay_server.adapters.registry import BUILT_IN
from patchbay_server.testing.adapter_suite import AdapterSuite, golden_cases

HERE = Path(__file__).parent
GOLDEN = HERE.parent / "golden"
TYPES = [adapter.info.type for adapter in BUILT_IN]


def suites() -> dict[str, list[type[AdapterSuite]]]:
    """The suites that are run here, by the connector type that they are run over."""
    found: dict[str, list[type[AdapterSuite]]] = {type_: [] for type_ in TYPES}
    for file in sorted(HERE.glob("test_*.py")):
        if "(AdapterSuite):" in file.read_text(encoding="utf-8"):
            for value in vars(import_module(f"tests.adapters.{file.stem}")).values():
                if isinstance(value, type) and issubclass(value, AdapterSuite) and value is not AdapterSuite:
                    found[value.adapter.info.type].append(value)
    return found


@pytest.mark.parametrize("connector_type", TYPES)
def test_a_type_passes_the_whole_suite_with_all_its_transcripts(connector_type: str) -> None:
    (suite,) = suites()[connector_type]
    assert suite.golden == GOLDEN / connector_type
    assert suite.errors, "the errors of the provider's own documentation"
    cases: list[Any] = golden_cases(suite.golden, suite.secret)
    assert len(cases) == len(list(suite.golden.iterdir())), "a folder without a call is no case"
    assert [case for case in cases if case.wire and case.body], "a stream and the whole answer that equals it"
    assert [case for case in cases if case.wire and case.expected.error], "a stream that fails"
    assert [case for case in cases if case.call.prompt.tools and case.wire], "a stream about tools"


def test_no_transcript_is_left_lying() -> None:
    assert {path.name for path in GOLDEN.iterdir()} == set(TYPES)
