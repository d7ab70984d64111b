"""The documentation of installed packages as pages: real text that every machine has.

Modules are listed and read without importing anything (``module_pages.py``). Pages of one package share a host under
the reserved name ``.invalid``, which no server can have: ``https://stdlib.pydoc.invalid/json.encoder.html``. The same
machine makes the same bytes every time.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import pkgutil
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mickle.data.installed import STDLIB
from mickle.data.module_pages import render_module
from mickle.data.warc import write_warc
from mickle.errors import UsageError
from mickle.events import Emit, Noted, Progressed, Started

TEST_FOLDERS = {"test", "tests", "idle_test"}
MOST_SIBLINGS = 50  # links of a page to those beside it


@dataclass(frozen=True)
class Module:
    """One module to document: the package it belongs to (``stdlib`` for the standard library) and its dotted name."""

    package: str
    name: str

    @property
    def url(self) -> str:
        """Address of the module's page."""
        return f"https://{self.package.replace('_', '-').lower()}.pydoc.invalid/{self.name}.html"

    @property
    def family(self) -> tuple[str, str]:
        """What it has in common with the modules beside it: package and parent."""
        return self.package, self.name.rpartition(".")[0]


def list_modules(packages: list[str], include_tests: bool = False) -> list[Module]:
    """Public modules of the packages, in order, without importing any; :class:`UsageError` for one not installed."""
    modules = []
    for package in packages:
        names = _standard_library() if package == STDLIB else _package_modules(package)
        public = [name for name in names if include_tests or not is_test(name)]
        modules += [Module(package, name) for name in public]
    return list(dict.fromkeys(modules))


def is_test(name: str) -> bool:
    """Whether a dotted name belongs to a test-suite."""
    return any(part in TEST_FOLDERS or part.startswith("test_") for part in name.split("."))


def _standard_library() -> list[str]:
    places = sysconfig.get_paths()
    folders = [places["stdlib"], sysconfig.get_config_var("DESTSHARED") or "", places["platstdlib"]]
    names = {name for name in sys.builtin_module_names if not name.startswith("_")}
    for folder in folders:
        names |= {name for name in _walk([folder], "") if name.split(".")[0] in sys.stdlib_module_names}
    return sorted(names)


def _package_modules(package: str) -> list[str]:
    names = []
    for root in _import_names(package):
        spec = importlib.util.find_spec(root)
        if spec is None:
            continue
        names += [root, *_walk(list(spec.submodule_search_locations or ()), root + ".")]
    if not names:
        raise UsageError(
            f"package {package!r} is not installed",
            where="source.packages",
            expected="'stdlib' or packages of this Python",
            todo=f"pip install {package}, or take it out of the list",
        )
    return names


def _import_names(package: str) -> list[str]:
    """Top-level modules of a package given by its import name or its distribution's name (scikit-learn: sklearn)."""
    if package.isidentifier() and importlib.util.find_spec(package) is not None:
        return [package]
    wanted = package.replace("_", "-").lower()
    owners = importlib.metadata.packages_distributions()
    return sorted(
        name
        for name, distributions in owners.items()
        if not name.startswith("_") and wanted in {d.replace("_", "-").lower() for d in distributions}
    )


def _walk(folders: list[str], prefix: str) -> Iterator[str]:
    for found in sorted(pkgutil.iter_modules(folders), key=lambda found: found.name):
        if found.name.startswith("_") or not found.name.isidentifier():
            continue
        yield prefix + found.name
        if found.ispkg:
            inside = [os.path.join(folder, found.name) for folder in folders]
            yield from _walk(inside, f"{prefix}{found.name}.")


def versions(packages: list[str]) -> dict[str, str]:
    """Version of Python and of each package, read from installed metadata; nothing is imported."""
    found = {"python": sys.version.split()[0]}
    owners = importlib.metadata.packages_distributions() if set(packages) - {STDLIB} else {}
    for package in packages:
        if package != STDLIB:
            distribution = owners.get(package, [package])[0]
            try:
                found[package] = importlib.metadata.version(distribution)
            except importlib.metadata.PackageNotFoundError:
                found[package] = "unknown"
    return found


def render(modules: list[Module]) -> Iterator[tuple[Module, str, str]]:
    """Each module with its HTML page and, where that is empty, why there is none."""
    origin = f"Made from the documentation strings of packages installed for Python {sys.version.split()[0]}."
    siblings: dict[tuple[str, str], list[str]] = {}
    for module in modules:
        siblings.setdefault(module.family, []).append(module.name)
    for module in modules:
        page, problem = render_module(module.name, siblings[module.family][:MOST_SIBLINGS], origin)
        yield module, page, problem


def write(modules: list[Module], path: Path, emit: Emit) -> dict[str, list[str]]:
    """Writes the modules' pages to a WARC file; returns the modules without a page by reason."""
    emit(Started("document modules", len(modules), "modules"))
    undocumented: dict[str, list[str]] = {}

    def pages() -> Iterator[tuple[str, bytes]]:
        for done, (module, page, problem) in enumerate(render(modules), start=1):
            emit(Progressed(done))
            if problem:
                undocumented.setdefault(problem, []).append(module.name)
            else:
                yield module.url, page.encode("utf-8", "replace")

    partial = path.with_name(f"{path.name}.partial")
    write_warc(partial, pages())
    partial.rename(path)
    if undocumented:
        count = sum(map(len, undocumented.values()))
        emit(Noted(f"{count} of {len(modules)} modules could not be documented: the card says why"))
    return undocumented
