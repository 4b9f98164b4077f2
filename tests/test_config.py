"""Settings: from the file and the environment, checked before anything starts."""

import io
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from patchbay_server.config import PREFIX, SETTINGS, ConfigError, Settings, load

SECRET = "swordfish-4711"


@pytest.fixture
def samples(tmp_path: Path) -> dict[str, Any]:
    """For each setting a value that is good and not its default."""
    pem = tmp_path / "tls.pem"
    pem.touch()
    return {
        "listen": "[::]:443",
        "data_dir": str(tmp_path / "data"),
        "database_url": f"postgresql://u:{SECRET}@db/patchbay",
        "master_keys": f"a:{SECRET}",
        "master_key_file": str(tmp_path / "keys"),
        "bootstrap_token": f"pb_{SECRET}",
        "bootstrap_token_file": str(tmp_path / "token"),
        "tls_certificate_file": str(pem),
        "upstream_ca_file": str(pem),
        "tls_key_file": str(pem),
        "reflection": False,
        "plugin_dir": str(tmp_path),
        "connect_timeout_s": 0.5,
        "first_byte_timeout_s": 1.5,
        "idle_timeout_s": 2.5,
        "call_timeout_s": 3.5,
        "calls_max": 7,
        "owner_calls_max": 5,
        "queue_max": 6,
        "owner_queue_max": 4,
        "queue_wait_s": 0.5,
        "drain_grace_s": 0.0,
        "drain_timeout_s": 8.5,
        "creates_per_minute": 9,
        "tests_per_minute": 11,
        "rotations_per_minute": 12,
        "log_level": "debug",
        "log_format": "text",
    }


def write(path: Path, **settings: Any) -> Path:
    """A configuration file with these settings."""
    lines = [f"{name} = {msgspec.json.encode(value).decode()}" for name, value in settings.items()]
    path.write_text("\n".join(lines))
    return path


def variables(**settings: Any) -> dict[str, str]:
    return {PREFIX + name.upper(): str(value) for name, value in settings.items()}


def refused(file: Path | None = None, **environ: str) -> str:
    """The one line that a wrong configuration is refused with."""
    with pytest.raises(ConfigError) as caught:
        load(file, environ)
    line = str(caught.value)
    assert "\n" not in line
    return line


def partners(name: str, samples: dict[str, Any]) -> dict[str, Any]:
    """The sample of a setting, and of those it needs beside it."""
    pair = ("tls_certificate_file", "tls_key_file")
    return {one: samples[one] for one in (pair if name in pair else (name,))}


# --- where settings come from ---


def test_the_list_of_settings_is_complete() -> None:
    assert set(SETTINGS) == set(Settings.__struct_fields__)


def test_without_anything_set_the_defaults_hold() -> None:
    assert load(None, {}) == Settings()


@pytest.mark.parametrize("name", SETTINGS)
def test_each_setting_comes_from_the_file(name: str, samples: dict[str, Any], tmp_path: Path) -> None:
    settings = load(write(tmp_path / "patchbay.toml", **partners(name, samples)), {})
    found = getattr(settings, name)
    assert found != getattr(Settings(), name)
    assert (str(found) if isinstance(found, Path) else found) == samples[name]


@pytest.mark.parametrize("name", SETTINGS)
def test_each_setting_comes_from_the_environment(name: str, samples: dict[str, Any]) -> None:
    settings = load(None, variables(**partners(name, samples)))
    found = getattr(settings, name)
    assert (str(found) if isinstance(found, Path) else found) == samples[name]


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    file = write(tmp_path / "a.toml", calls_max=1, log_level="debug")
    settings = load(file, variables(calls_max=2))
    assert (settings.calls_max, settings.log_level) == (2, "debug")


def test_the_file_can_be_named_by_the_environment_and_the_command_line_wins(tmp_path: Path) -> None:
    one, two = write(tmp_path / "1.toml", calls_max=1), write(tmp_path / "2.toml", calls_max=2)
    environ = {"PATCHBAY_CONFIG": str(one)}
    assert load(None, environ).calls_max == 1
    assert load(two, environ).calls_max == 2


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("1", True), ("YES", True), ("false", False), ("0", False), (" No ", False)]
)
def test_a_switch_is_written_in_any_usual_way(text: str, value: bool) -> None:
    assert load(None, {"PATCHBAY_REFLECTION": text}).reflection is value


def test_a_path_may_start_at_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load(None, {"PATCHBAY_DATA_DIR": "~/data"}).data_dir == tmp_path / "data"


# --- what is refused ---


def test_an_unknown_variable_is_refused_with_what_was_meant() -> None:
    assert "PATCHBAY_IDLE_TIMEOUT_S" in refused(PATCHBAY_IDLE_TIMEOUT="60")
    assert refused(PATCHBAY_XYZZY="1") == "PATCHBAY_XYZZY: there is no such setting"


def test_an_unknown_name_in_the_file_is_refused_with_what_was_meant(tmp_path: Path) -> None:
    line = refused(write(tmp_path / "a.toml", call_max=1))
    assert "a.toml" in line
    assert "'calls_max'" in line


def test_a_setting_within_a_table_of_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("[server]\ncalls_max = 1\n")
    assert "'server'" in refused(tmp_path / "a.toml")


@pytest.mark.parametrize(
    "variable",
    [
        "PATCHBAY_SERVICE_HOST=10.0.0.1",
        "PATCHBAY_SERVICE_PORT=50051",
        "PATCHBAY_SERVICE_PORT_GRPC=50051",
        "PATCHBAY_PORT=tcp://10.0.0.1:50051",
        "PATCHBAY_PORT_50051_TCP=tcp://10.0.0.1:50051",
        "PATCHBAY_PORT_50051_TCP_PROTO=tcp",
        "PATCHBAY_PORT_50051_TCP_ADDR=10.0.0.1",
        "PATCHBAY_DB_SERVICE_HOST=10.0.0.1",
        "PATCHBAY_DB_SERVICE_PORT_POSTGRES=5432",
        "PATCHBAY_DB_PORT=tcp://10.0.0.1:5432",
        "PATCHBAY_DB_PORT_5432_TCP_PORT=5432",
    ],
)
def test_what_kubernetes_puts_into_every_pod_is_passed_over(variable: str) -> None:
    name, _, value = variable.partition("=")
    assert load(None, {name: value}) == Settings()


@pytest.mark.parametrize("variable", ["PATCHBAY_PORT=8080", "PATCHBAY_SERVICE=x", "PATCHBAY_PORTS=tcp://x"])
def test_what_only_looks_like_kubernetes_is_not(variable: str) -> None:
    name, _, value = variable.partition("=")
    assert name in refused(**{name: value})


@pytest.mark.parametrize("name", ["ADDRESS", "TOKEN", "TOKEN_FILE", "CONFIG", "TEST_PG"])
def test_the_client_s_and_the_tests_variables_are_passed_over(name: str, tmp_path: Path) -> None:
    empty = tmp_path / "empty.toml"
    empty.touch()
    assert load(None, {PREFIX + name: str(empty)}) == Settings()


def test_other_programs_variables_are_none_of_ours() -> None:
    assert load(None, {"PATH": "/bin", "PATCH": "1", "XPATCHBAY_LISTEN": "x"}) == Settings()


@pytest.mark.parametrize("name", [name for name, setting in SETTINGS.items() if setting.low is not None])
def test_a_number_has_bounds_which_belong_to_it(name: str) -> None:
    setting = SETTINGS[name]
    assert setting.low is not None
    assert setting.high is not None
    variable = PREFIX + name.upper()
    for good in (setting.low, setting.high):
        load(None, {variable: f"{good:g}" if good < 1000 else str(int(good))})
    for bad in (
        setting.low - 0.05 if "_s" in name else setting.low - 1,
        setting.high + 1,
        "nan",
        "inf",
        "x",
        "",
        "1e400",
    ):
        assert refused(**{variable: str(bad)}).startswith(variable)


@pytest.mark.parametrize("name", [name for name, setting in SETTINGS.items() if setting.choices])
def test_a_choice_is_one_of_those_that_the_refusal_names(name: str) -> None:
    line = refused(**{PREFIX + name.upper(): "loud"})
    assert all(choice in line for choice in SETTINGS[name].choices)


@pytest.mark.parametrize("name", SETTINGS)
def test_an_empty_setting_is_refused_rather_than_taken_for_unset(name: str) -> None:
    for empty in ("", "  "):
        assert refused(**{PREFIX + name.upper(): empty}).startswith(PREFIX + name.upper())


@pytest.mark.parametrize("name", SETTINGS)
def test_a_value_of_the_wrong_kind_in_the_file_is_refused_by_its_name(name: str, tmp_path: Path) -> None:
    assert refused(write(tmp_path / "a.toml", **{name: []})).startswith(f"{name} in ")


@pytest.mark.parametrize(
    "listen",
    ["50051", ":50051", "localhost", "localhost:", "host:port", "host:65536", "host:-1", "host:²", "h:" + "9" * 5000],
)
def test_an_address_is_a_host_and_a_port(listen: str) -> None:
    assert refused(PATCHBAY_LISTEN=listen).startswith("listen:")


@pytest.mark.parametrize("text", ["maybe", "2", "on"])
def test_a_switch_is_true_or_false(text: str) -> None:
    assert "true or false" in refused(PATCHBAY_REFLECTION=text)


def test_tls_needs_both_files_and_they_have_to_exist(tmp_path: Path) -> None:
    pem = tmp_path / "tls.pem"
    pem.touch()
    assert "tls_key_file" in refused(PATCHBAY_TLS_CERTIFICATE_FILE=str(pem))
    missing = {"PATCHBAY_TLS_CERTIFICATE_FILE": str(pem), "PATCHBAY_TLS_KEY_FILE": str(tmp_path / "no")}
    assert refused(**missing).startswith("tls_key_file:")


def test_a_plug_in_folder_has_to_exist(tmp_path: Path) -> None:
    assert refused(PATCHBAY_PLUGIN_DIR=str(tmp_path / "no")).startswith("plugin_dir:")


def test_the_home_of_nobody_is_refused() -> None:
    assert refused(PATCHBAY_DATA_DIR="~nobody-of-that-name/x").startswith("PATCHBAY_DATA_DIR")


def test_a_file_that_cannot_be_read_is_refused_by_its_path(tmp_path: Path) -> None:
    assert "no.toml" in refused(tmp_path / "no.toml")
    assert str(tmp_path) in refused(tmp_path)
    (tmp_path / "bad.toml").write_bytes(b"\xff")
    assert "bad.toml" in refused(tmp_path / "bad.toml")
    (tmp_path / "worse.toml").write_text(f'master_keys = "{SECRET}\n')
    line = refused(tmp_path / "worse.toml")
    assert "worse.toml" in line
    assert SECRET not in line


# --- secrets ---


@pytest.mark.parametrize("name", [name for name, setting in SETTINGS.items() if setting.secret])
def test_a_secret_is_in_no_error(name: str, tmp_path: Path) -> None:
    assert SECRET not in refused(write(tmp_path / "a.toml", **{name: [SECRET]}))


def test_settings_print_no_secret(samples: dict[str, Any]) -> None:
    settings = load(None, variables(**samples))
    out = io.StringIO()
    Console(file=out, width=1000).print(settings)
    for text in (repr(settings), str(settings), f"{settings}", out.getvalue()):
        assert SECRET not in text
        assert "calls_max=7" in text
        assert "***" in text


# --- what follows from settings ---


def test_the_store_is_in_the_data_folder_unless_an_address_is_set(tmp_path: Path) -> None:
    assert Settings(data_dir=tmp_path).store_url == f"sqlite:///{tmp_path}/patchbay.db"
    assert Settings(database_url="postgresql://db/x").store_url == "postgresql://db/x"


def test_the_master_key_is_in_the_data_folder_unless_a_file_is_set(tmp_path: Path) -> None:
    assert Settings(data_dir=tmp_path).key_file == tmp_path / "master.keys"
    assert Settings(master_key_file=tmp_path / "k").key_file == tmp_path / "k"


@pytest.mark.parametrize(
    ("listen", "beyond"),
    [
        ("127.0.0.1:1", False),
        ("127.8.9.1:1", False),
        ("[::1]:1", False),
        ("localhost:1", False),
        ("0.0.0.0:1", True),
        ("[::]:1", True),
        ("10.0.0.1:1", True),
        ("gateway.example:1", True),
    ],
)
def test_whether_other_machines_can_connect(listen: str, beyond: bool) -> None:
    assert Settings(listen=listen).beyond_loopback is beyond
