"""The documentation of installed packages as a WARC file: real pages that every machine has.

Modules are listed without importing anything; each is imported and rendered in a bounded child process
(``module_pages.py``). Pages of one package share a host under the reserved name ``.invalid``, which no server
can have: ``https://stdlib.pydoc.invalid/json.encoder.html``. The same machine writes the same bytes every
time.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import pkgutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mickle.errors import ResourceError, UsageError

STDLIB = "stdlib"
TEST_FOLDERS = {"test", "tests", "idle_test"}


@dataclass(frozen=True)
class Module:
    """One module to document: the package it belongs to (``stdlib`` for the standard library) and its dotted
    name.
    """

    package: str
    name: str

    @property
    def url(self) -> str:
        """Address of the module's page."""
        return f"https://{self.package.replace('_', '-').lower()}.pydoc.invalid/{self.name}.html"


@dataclass(frozen=True)
class Limits:
    """What one module may use while it is imported and rendered."""

    wall_seconds: float = 20.0
    cpu_seconds: int = 15
    memory_bytes: int = 4 << 30


def list_modules(packages: list[str], include_tests: bool = False) -> list[Module]:
    """Public modules of the packages, in order, without importing any; :class:`UsageError` for one not
    installed.
    """
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
    """Top-level modules of a package given by its import name or its distribution's name (scikit-learn:
    sklearn).
    """
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


def render(
    modules: list[Module], folder: Path, limits: Limits, workers: int, done: Callable[[int], None]
) -> list[tuple[Module, str]]:
    """Writes ``folder/<index>.html`` for every module that can be documented; returns (module, why not) for
    all of them.

    The reason is empty where there is a page. What an earlier, killed call left in ``folder`` is taken as it
    is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    outcomes = {index: left for index in range(len(modules)) if (left := _outcome(folder, index)) is not None}
    done(len(outcomes))
    missing = [(index, module.name) for index, module in enumerate(modules) if index not in outcomes]
    if missing:
        job = _job(modules, missing, folder, limits, workers)
        with tempfile.TemporaryDirectory() as home:
            job["places"] = [(home, "~"), *_places()]
            for index in _serve(job, home):
                outcomes[index] = _outcome(folder, index) or ""
                done(len(outcomes))
    if len(outcomes) < len(modules):
        raise ResourceError(
            f"documenting stopped after {len(outcomes)} of {len(modules)} modules",
            where=str(folder),
            todo="see that disk and memory are free and run the same command again: it goes on",
        )
    return [(module, outcomes[index]) for index, module in enumerate(modules)]


def _outcome(folder: Path, index: int) -> str | None:
    if (folder / f"{index}.html").exists():
        return ""
    failed = folder / f"{index}.failed"
    return (failed.read_text() or "ended the process") if failed.exists() else None


def _job(modules: list[Module], missing: list[tuple[int, str]], folder: Path, limits: Limits, workers: int) -> dict:
    siblings: dict[tuple[str, str], list[str]] = {}
    for module in modules:
        siblings.setdefault((module.package, module.name.rpartition(".")[0]), []).append(module.name)
    around = [siblings[module.package, module.name.rpartition(".")[0]][:50] for module in modules]
    return {
        "modules": missing,
        "siblings": around,
        "folder": str(folder.absolute()),
        "places": [],
        "origin": f"Made from the documentation strings of packages installed for Python {sys.version.split()[0]}.",
        "concurrency": workers,
        "wall_seconds": limits.wall_seconds,
        "cpu_seconds": limits.cpu_seconds,
        "memory_bytes": limits.memory_bytes,
    }


def _places() -> list[tuple[str, str]]:
    """Paths of this machine, longest first, and the neutral name that stands for each in a page."""
    paths = sysconfig.get_paths()
    named = {paths["stdlib"]: "<stdlib>", paths["platlib"]: "<packages>", paths["purelib"]: "<packages>"}
    named |= {sys.prefix: "<prefix>", sys.base_prefix: "<prefix>", str(Path.home()): "~"}
    named |= {os.path.realpath(path): name for path, name in named.items()}
    return sorted(((p, n) for p, n in named.items() if len(p) > 4), key=lambda pair: (-len(pair[0]), pair[0]))


def _serve(job: dict, home: str) -> Iterator[int]:
    """Runs ``module_pages.py`` on the job; yields the index of each module as it is done."""
    program = Path(__file__).with_name("module_pages.py")
    kept = {name: os.environ[name] for name in ("PYTHONPATH", "LD_LIBRARY_PATH", "SYSTEMROOT") if name in os.environ}
    environment = kept | {
        "HOME": home, "TMPDIR": home, "PATH": os.path.join(home, "no-programs"), "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8",
        "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MPLBACKEND": "agg", "TZ": "UTC",
        "COLUMNS": "80", "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    process = subprocess.Popen(
        # -P: neither the program's own folder nor the working folder may shadow a module's name.
        [sys.executable, "-P", "-W", "ignore", str(program)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=home, env=environment, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(job))
        process.stdin.close()
        for line in process.stdout:
            yield int(line.split("\t")[0])
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()
