"""Adapters that others bring: found in packages and in a folder, and harmless when they are broken."""

import logging
import sys
from pathlib import Path

import pytest

from patchbay_server.adapters.openai_chat import OPENAI
from patchbay_server.adapters.plugins import load
from patchbay_server.adapters.registry import BUILT_IN, Registry

EXAMPLE = Path(__file__).parent / "plugins" / "example" / "patchbay_example.py"
GOOD = EXAMPLE.read_text()


def plug_in(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)


def install(folder: Path, name: str, module: str, entry_points: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a package with entry points on the import path, as an installer would."""
    plug_in(folder, f"{name}.py", module)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[patchbay.adapters]\n{entry_points}\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, name, raising=False)


def test_no_folder_loads_nothing() -> None:
    assert load(BUILT_IN).adapters == ()


def test_a_file_in_the_folder_is_loaded_and_can_be_registered(tmp_path: Path) -> None:
    plug_in(tmp_path, "example_adapter.py", GOOD)
    found = load(BUILT_IN, tmp_path)
    assert [loaded.types for loaded in found.loaded] == [("example",)]
    assert Registry([*BUILT_IN, *found.adapters]).get("example").info.type == "example"


def test_hidden_files_other_files_and_folders_within_are_left_alone(tmp_path: Path) -> None:
    within = tmp_path / "within"
    within.mkdir()
    plug_in(within, "example.py", GOOD)
    (tmp_path / "folder.py").mkdir()
    plug_in(tmp_path, "_example.py", "raise RuntimeError")
    plug_in(tmp_path, "example.txt", "raise RuntimeError")
    found = load(BUILT_IN, tmp_path)
    assert (found.adapters, found.loaded, found.skipped) == ((), (), ())


@pytest.mark.parametrize(
    "broken",
    [
        "raise RuntimeError('no')",
        "import a_module_that_does_not_exist",
        "this is not Python",
        "import sys; sys.exit(3)",
        "x = 1",
        "ADAPTER = object()",
        "ADAPTERS = 7",
        GOOD.replace('type="example"', 'type="Not A Name"'),
    ],
)
def test_a_broken_plug_in_is_logged_with_its_traceback_and_the_others_are_loaded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    plug_in(tmp_path, "a_broken.py", broken)
    plug_in(tmp_path, "b_good.py", GOOD)
    with caplog.at_level(logging.ERROR):
        found = load(BUILT_IN, tmp_path)
    assert [adapter.info.type for adapter in found.adapters] == ["example"]
    assert [skipped.source for skipped in found.skipped] == [str(tmp_path / "a_broken.py")]
    assert caplog.records[0].exc_info is not None
    assert "a_broken.py" in caplog.text


def test_a_plug_in_cannot_take_the_place_of_a_built_in_type(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plug_in(tmp_path, "shadow.py", GOOD.replace('type="example"', 'type="openai"'))
    found = load(BUILT_IN, tmp_path)
    assert found.adapters == ()
    assert "built in" in found.skipped[0].why
    assert "shadow.py" in caplog.text
    assert Registry([*BUILT_IN, *found.adapters]).get("openai") is OPENAI


def test_two_plug_ins_of_one_type_are_an_error_at_registration(tmp_path: Path) -> None:
    plug_in(tmp_path, "a.py", GOOD)
    plug_in(tmp_path, "b.py", GOOD)
    with pytest.raises(ValueError, match="registered twice"):
        Registry([*BUILT_IN, *load(BUILT_IN, tmp_path).adapters])


def test_a_file_hides_no_module_of_its_name(tmp_path: Path) -> None:
    plug_in(tmp_path, "json.py", GOOD)
    load(BUILT_IN, tmp_path)
    assert "example" not in dir(sys.modules.get("json", object()))
    assert not hasattr(sys.modules["json"], "ADAPTER")


@pytest.mark.parametrize(
    ("module", "entry_points"),
    [
        (GOOD, "example = patchbay_plug_in_test:ADAPTER"),
        (GOOD, "example = patchbay_plug_in_test"),
        (GOOD + "\nADAPTERS = (ADAPTER,)\ndel ADAPTER\n", "example = patchbay_plug_in_test"),
        (GOOD + "\nMINE = [ADAPTER]\n", "example = patchbay_plug_in_test:MINE"),
    ],
)
def test_an_installed_package_gives_adapters_by_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, entry_points: str
) -> None:
    install(tmp_path, "patchbay_plug_in_test", module, entry_points, monkeypatch)
    found = load(BUILT_IN)
    assert [adapter.info.type for adapter in found.adapters] == ["example"]
    assert "patchbay_plug_in_test" in found.loaded[0].source


def test_an_entry_point_that_cannot_be_imported_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install(tmp_path, "patchbay_plug_in_test", "", "gone = patchbay_plug_in_test:NOTHING", monkeypatch)
    found = load(BUILT_IN)
    assert found.adapters == ()
    assert "AttributeError" in found.skipped[0].why
    assert "Traceback" in caplog.text
