"""Adapters that others bring: packages with an entry point in `patchbay.adapters`, and the files of one folder.

A plug-in gives an adapter, several in an iterable, or a module or object with one as `ADAPTER` or several as
`ADAPTERS`. A broken one is logged and left out, so that it takes no working connector down with it.
"""

import importlib.util
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final

import msgspec

from patchbay_server.adapters.protocol import Adapter
from patchbay_server.adapters.registry import check_adapter

GROUP: Final = "patchbay.adapters"

_MODULE_PREFIX: Final = "_patchbay_plugin_"
_log: Final = logging.getLogger(__name__)


class Loaded(msgspec.Struct, frozen=True):
    """A plug-in that gave adapters: where it came from, and their connector types."""

    source: str
    types: tuple[str, ...]


class Skipped(msgspec.Struct, frozen=True):
    """A plug-in, or one adapter of it, that was left out, and why."""

    source: str
    why: str


class PlugIns(msgspec.Struct, frozen=True, kw_only=True):
    """What loading came to, so that a start can announce it."""

    adapters: tuple[Adapter, ...]
    loaded: tuple[Loaded, ...]
    skipped: tuple[Skipped, ...]


def load(built_in: Iterable[Adapter], folder: Path | None = None) -> PlugIns:
    """Every plug-in that can be found: installed packages by name, then the `*.py` files of `folder` by name.

    Files whose names start with `_` and folders within are left alone. Two plug-ins of one type are both given:
    registering them is an error.

    Args:
        built_in: adapters that a plug-in cannot take the place of.
        folder: None for no files.
    """
    reserved = {adapter.info.type for adapter in built_in}
    adapters: list[Adapter] = []
    loaded: list[Loaded] = []
    skipped: list[Skipped] = []
    for source, load_one in _sources(folder):
        try:
            given = [check_adapter(adapter) for adapter in _adapters_of(load_one())]
        except (Exception, SystemExit) as error:  # noqa: BLE001 -- the outer boundary to code of others
            _log.exception("plug-in %s could not be loaded and is left out: %s", source, error)
            skipped.append(Skipped(source, f"{type(error).__name__} while loading"))
            continue
        for adapter in given:
            if adapter.info.type in reserved:
                why = f"connector type {adapter.info.type!r} is built in and cannot be replaced"
                _log.error("plug-in %s: %s", source, why)
                skipped.append(Skipped(source, why))
        kept = [adapter for adapter in given if adapter.info.type not in reserved]
        if kept:
            adapters += kept
            loaded.append(Loaded(source, tuple(adapter.info.type for adapter in kept)))
    return PlugIns(adapters=tuple(adapters), loaded=tuple(loaded), skipped=tuple(skipped))


def _sources(folder: Path | None) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Each plug-in's name for people, and how to load it."""
    for entry_point in sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value)):
        yield f"{entry_point.name} ({entry_point.value})", entry_point.load
    if folder is not None:
        for file in sorted(folder.glob("*.py")):
            if file.is_file() and not file.name.startswith("_"):
                yield str(file), partial(_load_file, file)


def _load_file(file: Path) -> Any:
    """The module in `file`, under a name of its own, so that it hides no other module."""
    name = f"{_MODULE_PREFIX}{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is no Python file")
    module = importlib.util.module_from_spec(spec)
    # Classes look up their module by name while they are made.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _adapters_of(given: Any) -> list[Any]:
    """The adapters in what a plug-in gives; what they are is checked by the caller.

    Raises:
        ValueError: it gives none.
    """
    if isinstance(given, Adapter):
        return [given]
    adapters = [given.ADAPTER] if hasattr(given, "ADAPTER") else []
    adapters += getattr(given, "ADAPTERS", ())
    if not adapters and isinstance(given, Iterable):
        adapters = list(given)
    if not adapters:
        raise ValueError("a plug-in gives an adapter, or has ADAPTER or ADAPTERS")
    return adapters
