"""Makes the tables and the longer examples of the documentation from the code they describe, so that they cannot tell
something else.

`python docs/generate.py` writes them; `--check` names the files that are not current, and exits 1 if there are any. A
table stands between `<!-- generated: NAME -->` and `<!-- end -->`.
"""

import argparse
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import field_support
import msgspec

from patchbay_server.config import PREFIX, SETTINGS, Settings
from patchbay_server.errors import RULES, FallBack, Reason

DOCS: Final = Path(__file__).parent
ROOT: Final = DOCS.parent
EXAMPLE: Final = ROOT / "tests/adapters/plugins/example"
_BLOCK: Final = re.compile(r"(<!-- generated: (?P<name>[a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when something is not current")
    check = parser.parse_args().check
    stale = [path for path in sorted(DOCS.glob("*.md")) if not _bring_up(path, write=not check)]
    for path in stale:
        sys.stdout.write(f"{'stale' if check else 'written'}: {path.relative_to(ROOT)}\n")
    return 1 if check and stale else 0


def _bring_up(path: Path, *, write: bool) -> bool:
    """Whether the file was current; if not, it is written anew."""
    old = path.read_text(encoding="utf-8")
    new = _BLOCK.sub(lambda match: match[1] + TABLES[match["name"]]() + match[3], old)
    if new != old and write:
        path.write_text(new, encoding="utf-8")
    return new == old


def _table(*rows: tuple[str, ...]) -> str:
    head, *body = rows
    lines = [head, tuple("---" for _ in head), *body]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def _settings() -> str:
    defaults = {field.name: field for field in msgspec.structs.fields(Settings)}
    rows = []
    for name, setting in SETTINGS.items():
        default = defaults[name].default
        shown = "" if default in {None, ""} else f"`{str(default).lower() if isinstance(default, bool) else default}`"
        bounds = ", ".join(f"`{choice}`" for choice in setting.choices)
        if setting.low is not None and setting.high is not None:
            bounds = f"{setting.low:.10g} to {setting.high:.10g}"
        rows.append((f"`{name}`", f"`{PREFIX}{name.upper()}`", shown, bounds, setting.help))
    return _table(("setting", "variable", "default", "allowed", "meaning"), *rows)


_ENTRY: Final = re.compile(r"(?P<comment>(?:^  //[^\n]*\n)+)  ERROR_REASON_(?P<name>[A-Z_]+) = \d+;", re.MULTILINE)


def _errors() -> str:
    proto = (ROOT / "protos/patchbay/v1/error.proto").read_text(encoding="utf-8")
    comments = {
        match["name"]: " ".join(line.strip().removeprefix("//").strip() for line in match["comment"].splitlines())
        for match in _ENTRY.finditer(proto)
    }
    rows = [
        (
            f"`{reason.value}`",
            rule.code.name,
            str(rule.http),
            "before output" if rule.fall_back is FallBack.BEFORE_OUTPUT else "",
            comments[reason.value].removeprefix(f"{rule.code.name}. "),
        )
        for reason, rule in ((reason, RULES[reason]) for reason in Reason)
    ]
    return _table(("reason", "gRPC code", "HTTP", "another connector may answer", "meaning, and what to do"), *rows)


def _example(file: str, language: str) -> Callable[[], str]:
    """A file of the example package, as it stands."""

    def block() -> str:
        return f"```{language}\n{(EXAMPLE / file).read_text(encoding='utf-8')}```\n"

    return block


TABLES: Final[Mapping[str, Callable[[], str]]] = {
    "settings": _settings,
    "errors": _errors,
    "probed-models": lambda: _table(("type", "models"), *field_support.models()),
    "field-support": lambda: _table(*field_support.rows()),
    "example-adapter": _example("patchbay_example.py", "python"),
    "example-package": _example("pyproject.toml", "toml"),
    "example-tests": _example("tests/test_example.py", "python"),
}


if __name__ == "__main__":
    raise SystemExit(main())
