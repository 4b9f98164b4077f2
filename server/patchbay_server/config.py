"""Settings: from a TOML file and from `PATCHBAY_*` variables, which win; all checked before anything starts.

A setting `idle_timeout_s` is the key `idle_timeout_s` of the file and the variable `PATCHBAY_IDLE_TIMEOUT_S`.
`SETTINGS` is the one list: the documentation's table is made from it.
"""

import difflib
import ipaddress
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

PREFIX: Final = "PATCHBAY_"
DATABASE: Final = "patchbay.db"
"""The file in the data folder, unless another database is set."""
_OTHERS: Final = frozenset({"ADDRESS", "TOKEN", "TOKEN_FILE", "CONFIG"})
"""Variables of the command line, not of the server."""
_TESTS: Final = "TEST_"
"""Begins the variables of the tests."""
_ORCHESTRATOR: Final = re.compile(
    r"(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)=.*"
    r"|(\w+_)?PORT=(tcp|udp|sctp)://.*",
    re.ASCII | re.DOTALL,
)
"""What Kubernetes gives every pod of a namespace, as `variable=value` without our prefix: for a service called
`patchbay` there is `PATCHBAY_PORT`, for one called `patchbay-db` there is `PATCHBAY_DB_SERVICE_HOST`.

Source: https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables (read 2026-11-20).
"""


_TOKEN_ID: Final = re.compile(r"[a-z0-9]{8,32}")


class ConfigError(Exception):
    """A setting is wrong. Its text is the one line that names it."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that can be set. Durations are in seconds. Prints no secret."""

    listen: str = "127.0.0.1:50051"
    metrics_listen: str = ""
    data_dir: Path = Path(".patchbay")
    database_url: str = ""
    master_keys: str = ""
    master_key_file: Path | None = None
    bootstrap_token: str = ""
    bootstrap_token_file: Path | None = None
    tls_certificate_file: Path | None = None
    tls_key_file: Path | None = None
    tls_client_ca_file: Path | None = None
    tls_clients: str = ""
    reflection: bool = True
    upstream_ca_file: Path | None = None
    plugin_dir: Path | None = None
    connect_timeout_s: float = 10.0
    first_byte_timeout_s: float = 120.0
    idle_timeout_s: float = 60.0
    call_timeout_s: float = 600.0
    calls_max: int = 2_000
    owner_calls_max: int = 500
    queue_max: int = 1_000
    owner_queue_max: int = 250
    queue_wait_s: float = 2.0
    drain_grace_s: float = 5.0
    drain_timeout_s: float = 30.0
    creates_per_minute: int = 5
    tests_per_minute: int = 10
    rotations_per_minute: int = 5
    log_level: str = "info"
    log_format: str = "json"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        given = {name: getattr(self, name) for name in SETTINGS}
        return [(name, "***" if SETTINGS[name].secret and value else value) for name, value in given.items()]

    def __repr__(self) -> str:
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"

    @property
    def store_url(self) -> str:
        """The database's address: the one that was set, else a file in the data folder."""
        return self.database_url or f"sqlite:///{(self.data_dir / DATABASE).absolute()}"

    @property
    def key_file(self) -> Path:
        return self.master_key_file or self.data_dir / "master.keys"

    @property
    def client_tokens(self) -> Mapping[str, str]:
        """Token ids by certificate name, names that are no URI in lower case.

        Raises:
            ConfigError: an entry is malformed, or a name occurs twice.
        """
        found: dict[str, str] = {}
        entries = [entry for entry in re.split(r"[,\n]", self.tls_clients) if entry.strip()]
        for number, entry in enumerate(entries, start=1):
            name, _, token_id = (part.strip() for part in entry.rpartition("="))
            if not name or not _TOKEN_ID.fullmatch(token_id):
                # Not quoted: it may be the token's text.
                raise ConfigError(f"tls_clients: entry {number} is not `certificate name=token id`")
            name = name if "://" in name else name.lower()
            if name in found:
                raise ConfigError(f"tls_clients: {name} occurs twice")
            found[name] = token_id
        return found

    @property
    def host(self) -> str:
        return self.listen.rpartition(":")[0]

    @property
    def beyond_loopback(self) -> bool:
        """Whether other machines can connect."""
        host = self.host.strip("[]")
        try:
            return not ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host != "localhost"


class Setting(msgspec.Struct, frozen=True):
    """How one setting is described and bounded; `low` and `high` are inclusive."""

    help: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    secret: bool = False


_TIMEOUT: Final = (0.1, 86_400.0)

SETTINGS: Final[Mapping[str, Setting]] = {
    "listen": Setting("Address and port of the gRPC server. Port 0 takes a free one."),
    "metrics_listen": Setting("Address and port of `/metrics` for Prometheus. Default: none."),
    "data_dir": Setting("Folder of the embedded database and the master key file; made if it is missing."),
    "database_url": Setting("Database, as an SQLAlchemy URL. Default: an SQLite file in `data_dir`.", secret=True),
    "master_keys": Setting(
        "Master keys that seal credentials: `id:key` by commas or lines; the first one seals. Wins over the file.",
        secret=True,
    ),
    "master_key_file": Setting(
        "File of master keys, mode 0600. Default: `master.keys` in `data_dir`, made at the first start."
    ),
    "bootstrap_token": Setting(
        "Text of the first administrator's token. Default: one is made at the first start and printed once.",
        secret=True,
    ),
    "bootstrap_token_file": Setting(
        "File to write the first administrator's token to, mode 0600, instead of printing it."
    ),
    "tls_certificate_file": Setting("PEM certificate chain; read again when it changes. Needs `tls_key_file`."),
    "tls_key_file": Setting("PEM private key of the certificate."),
    "tls_client_ca_file": Setting(
        "PEM certificate authorities of clients: turns on mutual TLS, which lets in nobody else. Read again as above."
    ),
    "tls_clients": Setting(
        "Tokens that stand for clients that send none: `certificate name=token id`, by commas or lines."
    ),
    "reflection": Setting("Whether gRPC server reflection answers, for grpcurl and its like."),
    "upstream_ca_file": Setting(
        "PEM certificate authorities that providers' certificates are checked against. Default: the public ones."
    ),
    "plugin_dir": Setting("Folder whose `*.py` files are loaded as adapter plug-ins. Default: none."),
    "connect_timeout_s": Setting("Until a connection to a provider stands.", *_TIMEOUT),
    "first_byte_timeout_s": Setting("From sending a request until the first byte of the answer.", *_TIMEOUT),
    "idle_timeout_s": Setting("Longest silence within an answer.", *_TIMEOUT),
    "call_timeout_s": Setting("Longest time of a whole call; the caller's deadline may be shorter.", *_TIMEOUT),
    "calls_max": Setting("Calls that may run at once in this process; more wait in a line.", 1, 1_000_000),
    "owner_calls_max": Setting("Of these, calls of one owner.", 1, 1_000_000),
    "queue_max": Setting("Calls that may wait for a place; more are OVERLOADED.", 0, 1_000_000),
    "owner_queue_max": Setting("Of these, calls of one owner.", 0, 1_000_000),
    "queue_wait_s": Setting("How long a call waits for a place before it is OVERLOADED.", 0, 600),
    "drain_grace_s": Setting("After SIGTERM: how long new calls are still served, so that balancers notice.", 0, 3_600),
    "drain_timeout_s": Setting("After that: how long running calls may take to finish.", 0, 86_400),
    "creates_per_minute": Setting("Connectors that one caller may create.", 1, 1_000_000),
    "tests_per_minute": Setting("Connector tests that one caller may run.", 1, 1_000_000),
    "rotations_per_minute": Setting("Credential rotations that one caller may do.", 1, 1_000_000),
    "log_level": Setting("How much is logged.", choices=("debug", "info", "warning", "error")),
    "log_format": Setting("JSON lines, or text for people.", choices=("json", "text")),
}


def load(config_file: Path | None, environ: Mapping[str, str]) -> Settings:
    """The settings of the file, overlaid by those of the environment.

    Args:
        config_file: a TOML file, or None for `PATCHBAY_CONFIG` or none at all.

    Raises:
        ConfigError: for the first setting that is unknown, malformed or out of bounds, by its name.
    """
    path = config_file or (Path(environ[PREFIX + "CONFIG"]) if environ.get(PREFIX + "CONFIG") else None)
    given = {**_from_file(path), **_from_environment(environ)}
    values = {name: _checked(name, origin, value) for name, (origin, value) in given.items()}
    settings = Settings(**values)
    _check_together(settings)
    return settings


def _from_file(path: Path | None) -> dict[str, tuple[str, Any]]:
    if path is None:
        return {}
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"configuration file {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration file {path}: {error}") from None
    for name in document:
        if name not in SETTINGS:
            raise ConfigError(f"configuration file {path}: there is no setting {name!r}{_meant(name)}")
    return {name: (f"{name} in {path}", value) for name, value in document.items()}


def _from_environment(environ: Mapping[str, str]) -> dict[str, tuple[str, Any]]:
    given: dict[str, tuple[str, Any]] = {}
    for variable, value in environ.items():
        if not variable.startswith(PREFIX):
            continue
        rest = variable.removeprefix(PREFIX)
        name = rest.lower()
        if name in SETTINGS:
            given[name] = (variable, value)
        elif not (rest in _OTHERS or rest.startswith(_TESTS) or _ORCHESTRATOR.fullmatch(f"{rest}={value}")):
            raise ConfigError(f"{variable}: there is no such setting{_meant(name)}")
    return given


def _meant(name: str) -> str:
    close = difflib.get_close_matches(name, SETTINGS, n=1)
    return f"; did you mean {close[0]!r} ({PREFIX}{close[0].upper()})?" if close else ""


def _checked(name: str, origin: str, value: Any) -> Any:
    setting = SETTINGS[name]
    field = next(field for field in msgspec.structs.fields(Settings) if field.name == name)
    if isinstance(value, str) and not value.strip():
        raise ConfigError(f"{origin}: is empty; leave it out for the default")
    try:
        if field.type is bool and isinstance(value, str):
            value = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[
                value.strip().lower()
            ]
        if field.type in (Path, Path | None):
            return Path(msgspec.convert(value, str)).expanduser()  # RuntimeError: a user who does not exist
        typed = msgspec.convert(value, field.type, strict=False)
    except KeyError:
        raise ConfigError(f"{origin}: must be true or false") from None
    except RuntimeError:
        raise ConfigError(f"{origin}: names the home of a user who does not exist") from None
    except msgspec.ValidationError as error:
        told = "is not what this setting takes" if setting.secret else str(error).lower()
        raise ConfigError(f"{origin}: {told}") from None
    if setting.choices and typed not in setting.choices:
        raise ConfigError(f"{origin}: must be one of {', '.join(setting.choices)}")
    if setting.low is not None and setting.high is not None and not setting.low <= typed <= setting.high:
        raise ConfigError(f"{origin}: must be between {setting.low:g} and {setting.high:g}")
    return typed


def _check_together(settings: Settings) -> None:
    for name in ("listen", "metrics_listen"):
        address: str = getattr(settings, name)
        host, _, port = address.rpartition(":")
        if address and (not host or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65_535):
            raise ConfigError(f"{name}: must be host:port, such as 127.0.0.1:50051 or [::]:50051")
    if (settings.tls_certificate_file is None) != (settings.tls_key_file is None):
        raise ConfigError("tls_certificate_file and tls_key_file: set both or neither")
    if settings.tls_client_ca_file is not None and settings.tls_certificate_file is None:
        raise ConfigError("tls_client_ca_file: needs tls_certificate_file and tls_key_file")
    if settings.client_tokens and settings.tls_client_ca_file is None:
        raise ConfigError("tls_clients: needs tls_client_ca_file")
    for name in ("tls_certificate_file", "tls_key_file", "tls_client_ca_file", "upstream_ca_file"):
        path: Path | None = getattr(settings, name)
        if path is not None and not path.is_file():
            raise ConfigError(f"{name}: there is no file {path}")
    if settings.plugin_dir is not None and not settings.plugin_dir.is_dir():
        raise ConfigError(f"plugin_dir: there is no folder {settings.plugin_dir}")
