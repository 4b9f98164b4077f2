"""What the server's modules may hold and do, read from their sources. Who may import whom is the import linter's."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVER = ROOT / "server"
PACKAGE = SERVER / "patchbay_server"

LINES_MAX = 700
LONGER = {
    "types": 800,  # the one vocabulary; a second file would split it in the middle of a thought
    "testing.store_suite": 1_200,  # a list of independent tests
}

PURE = {
    "asyncio": "opens and waits",
    "httpx": "opens",
    "logging": "tells",
    "os": "reads the machine",
    "random": "is not repeatable",
    "secrets": "is not repeatable",
    "socket": "opens",
    "subprocess": "opens",
    "threading": "runs on",
    "time": "reads a clock",
}
"""What an adapter has no use for, as it only translates."""
LOADS_PLUGINS = "adapters.plugins"


def modules() -> Iterator[tuple[str, Path]]:
    """Each module's name within the package, and its file."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        yield name.removesuffix(".__init__") if name != "__init__" else "", path


MODULES = dict(modules())


@cache
def tree(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text(encoding="utf-8"))


@cache
def imports(name: str) -> set[str]:
    """Full names of what a module imports, `from a import b` as `a.b`, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own(name: str) -> set[str]:
    """What a module imports of this package, by its name within it."""
    prefix = "patchbay_server."
    return {one.removeprefix(prefix) for one in imports(name) if one.startswith(prefix)}


def within(name: str, place: str) -> bool:
    return name == place or name.startswith(place + ".")


@pytest.mark.parametrize("name", MODULES)
def test_a_module_says_what_it_is_for(name: str) -> None:
    assert ast.get_docstring(tree(name)), f"{MODULES[name]} has no docstring"


@pytest.mark.parametrize("name", MODULES)
def test_a_module_can_be_read_in_one_sitting(name: str) -> None:
    lines = MODULES[name].read_text(encoding="utf-8").count("\n")
    assert lines <= LONGER.get(name, LINES_MAX)


@pytest.mark.parametrize("name", [name for name in MODULES if within(name, "adapters") and name != LOADS_PLUGINS])
def test_an_adapter_only_translates(name: str) -> None:
    found = {one.split(".")[0] for one in imports(name)}
    assert not found & set(PURE), [f"{one} {PURE[one]}" for one in found & set(PURE)]
    assert not any(within(one, place) for one in own(name) for place in ("wire.upstream", "vault", "core", "config"))


@pytest.mark.parametrize(
    "name",
    [name for name in MODULES if (within(name, "core") or within(name, "adapters")) and name != "core.clock"],
)
def test_no_clock_is_read_but_the_one_that_is_passed_in(name: str) -> None:
    assert not any(within(one, "time") for one in imports(name))
    asked = {ast.unparse(node.func) for node in ast.walk(tree(name)) if isinstance(node, ast.Call)}
    assert not asked & {"datetime.now", "datetime.utcnow", "date.today"}


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__main__")])
def test_a_module_only_defines(name: str) -> None:
    """No statement at the top of a module but imports, definitions and constants, and no `global`."""
    for node in tree(name).body:
        match node:
            case ast.Import() | ast.ImportFrom() | ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                continue
            case ast.Expr(value=ast.Constant()):
                continue
            case ast.Assign(targets=[ast.Name()]) | ast.AnnAssign(target=ast.Name()):
                continue
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                continue
            case ast.If() if ast.unparse(node.test) == "__name__ == '__main__'":
                continue
            case ast.Expr(value=ast.Call()) if ast.unparse(node).startswith("pytest.register_assert_rewrite("):
                continue
            case ast.Expr(value=ast.Call(func=ast.Name(id="Index"))) if name == "store.tables":
                continue  # how SQLAlchemy declares one
            case _ if within(name, "store.migrations"):
                continue  # the form of these files is the migration tool's
        pytest.fail(f"{name}:{node.lineno}: {ast.unparse(node)[:80]}")
    assert not any(isinstance(node, ast.Global) for node in ast.walk(tree(name)))


ADAPTER_METHODS = {"prepare", "reader", "explain", "feed", "prepare_check", "prepare_models", "read_models", "model_of"}
"""What only somebody does who is about to ask a provider, or reads its answer."""
REACH_PROVIDERS = {"core.attempt"}
"""The one place from which calls reach adapters, credentials and the network."""
BESIDE_CALLS = {
    "core.health": {"prepare_check"},
    "core.connectors": {"prepare_models", "read_models"},
}
"""Small requests beside the calls, which go through `core.attempt.Exchange.ask` all the same."""


def called(name: str) -> set[str]:
    """The methods that a module calls, by their bare names."""
    nodes = (node.func for node in ast.walk(tree(name)) if isinstance(node, ast.Call))
    return {node.attr for node in nodes if isinstance(node, ast.Attribute)}


ABOVE_ADAPTERS = [name for name in MODULES if any(within(name, room) for room in ("core", "rpc", "cli", "app"))]


@pytest.mark.parametrize("name", [name for name in ABOVE_ADAPTERS if name not in REACH_PROVIDERS])
def test_nothing_but_the_exchange_can_reach_an_adapter_a_credential_or_the_network(name: str) -> None:
    explains = {"core.gateway", "rpc.gateway", "cli.explain"}  # a call, to its caller
    allowed = BESIDE_CALLS.get(name, set()) | ({"explain"} if name in explains else set())
    assert not called(name) & ADAPTER_METHODS - allowed
    if name != "app":  # which builds the parts
        assert not any(within(one, "wire.upstream") for one in own(name))


def test_every_call_is_opened_by_the_gateway_and_closed_by_its_one_state_machine() -> None:
    """No other code can make a record, so that none can be lost, or kept twice."""
    makers = {
        maker: sorted(name for name in MODULES if f"{maker}(" in MODULES[name].read_text(encoding="utf-8"))
        for maker in ("CallRecord", "RunningCall", "CallOpened", "CallClosed", "AttemptOpened", "AttemptClosed")
    }
    makers = {
        maker: [name for name in names if not name.startswith(("testing", "store")) and name != "types"]
        for maker, names in makers.items()
    }
    assert makers == {
        "CallRecord": ["core.gateway"],
        "RunningCall": ["core.gateway"],
        "CallOpened": ["core.gateway"],
        "CallClosed": ["core.record"],
        "AttemptOpened": ["core.record"],
        "AttemptClosed": ["core.record"],
    }


WATCHED_IMPORT = """
import logging, os, signal, sys, threading
seen = []
def watch(event, args):
    if event.startswith(("socket.", "subprocess.", "os.system", "shutil.", "sqlite3.")):
        seen.append((event, str(args)[:100]))
    if event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
        seen.append((event, str(args)[:100]))
environ, handlers = dict(os.environ), list(logging.getLogger().handlers)
signals = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
sys.addaudithook(watch)
import importlib
for name in sys.argv[1:]:
    importlib.import_module(name)
assert not seen, seen
assert threading.active_count() == 1, threading.enumerate()
assert dict(os.environ) == environ
assert logging.getLogger().handlers == handlers
assert signals == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
"""


def test_importing_the_server_does_nothing_but_define() -> None:
    names = [
        f"patchbay_server.{name}".rstrip(".")
        for name in MODULES
        if not name.startswith(("store.migrations", "testing")) and not name.endswith("__main__")
    ]
    done = subprocess.run(
        [
            sys.executable,
            "-I",
            "-B",
            "-c",
            f"import sys; sys.path.insert(0, {str(SERVER)!r})\n{WATCHED_IMPORT}",
            *names,
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout + done.stderr == ""
