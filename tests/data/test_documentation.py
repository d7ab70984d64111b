"""Documentation of modules that misbehave: each costs its own page and nothing else."""

from __future__ import annotations

import os
import sys
import textwrap
import time
import types
from pathlib import Path

import pytest

from mickle.data.documentation import Limits, Module, is_test, list_modules, render, versions
from mickle.data.module_pages import docstring_blocks, render_module, without_traces
from mickle.errors import UsageError

PLANTED = {
    "good": '''
        """A good module with a path {folder} and an object."""
        import os
        def greet(name="{folder}/x", thing=object(), environ=os.environ):
            """Says hello.

            >>> greet("you")
            hello you
            """
        class Bell(dict):
            """Rings."""
            def ring(self, times):
                """Rings so many times."""
            def _hidden(self):
                """Not shown."""
        def _private():
            """Not shown either."""
    ''',
    "prints": """
        import sys
        print("noise" * 9999, sys.stdin.read())
        sys.stderr.write("noise")
    """,
    "leaves": "import sys\nsys.exit(3)",
    "vanishes": "import os\nos._exit(0)",
    "loops": "while True: pass",
    "sleeps": "import time\ntime.sleep(999)",
    "eats": "x = bytearray(1 << 40)",
    "breaks": "raise RuntimeError('no')",
    "crashes": "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)",
    "connects": "import socket\nsocket.create_connection(('127.0.0.1', 9))",
    "starts": "import subprocess, sys\nsubprocess.run([sys.executable, '-c', ''])",
    "forks": """
        import os, time
        for _ in range(2):
            if os.fork() == 0:
                os.setsid()
                open("{folder}/pids", "a").write(f"{os.getpid()} ")
                time.sleep(999)
        time.sleep(0.2)
    """,
    "_private": '"""Not listed."""',
    "tests": '"""Not listed."""',
}  # fmt: skip


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package on PYTHONPATH with one module for every way to misbehave."""
    folder = tmp_path_factory.mktemp("planted")
    (folder / "planted").mkdir()
    (folder / "planted" / "__init__.py").write_text('"""Planted."""\n')
    for name, source in PLANTED.items():
        text = textwrap.dedent(source).replace("{folder}", str(folder))
        (folder / "planted" / f"{name}.py").write_text(text)
    return folder


@pytest.fixture(scope="module")
def rendered(package: Path) -> tuple[dict[str, str], Path]:
    """Reason by module's last name, and the folder of pages."""
    patch = pytest.MonkeyPatch()
    patch.setenv("PYTHONPATH", str(package))
    patch.syspath_prepend(str(package))
    out = package / "pages"
    counts: list[int] = []
    outcomes = render(list_modules(["planted"]), out, Limits(5.0, 2, 512 << 20), 2, counts.append)
    patch.undo()
    assert counts[-1] == len(outcomes)
    return {module.name.rpartition(".")[2]: reason for module, reason in outcomes}, out


def test_every_module_has_a_page_or_a_reason(rendered: tuple[dict[str, str], Path]) -> None:
    reasons, _ = rendered
    assert reasons == {
        "planted": "",
        "good": "",
        "prints": "",
        "forks": "",
        "leaves": "raised SystemExit",
        "vanishes": "ended the process",
        "loops": "ran out of time",
        "sleeps": "ran out of time",
        "eats": "ran out of memory",
        "breaks": "raised RuntimeError",
        "crashes": "was ended by signal 11 (Segmentation fault)",
        "connects": "raised PermissionError",
        "starts": "raised PermissionError",
    }


def test_children_of_a_module_do_not_outlive_it(rendered: tuple[dict[str, str], Path], package: Path) -> None:
    pids = [int(pid) for pid in (package / "pids").read_text().split()]
    assert len(pids) == 2
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and any(alive(pid) for pid in pids):
        time.sleep(0.05)
    assert not any(alive(pid) for pid in pids)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_page_holds_no_trace_of_this_machine(rendered: tuple[dict[str, str], Path]) -> None:
    _, folder = rendered
    pages = "".join(path.read_text() for path in folder.glob("*.html"))
    assert "Says hello" in pages
    assert "Rings so many times" in pages
    assert "Not shown" not in pages
    assert " at 0x" not in pages
    assert "environ({" not in pages
    assert os.path.expanduser("~") + "/" not in pages or len(os.path.expanduser("~")) <= 4


def test_a_second_call_takes_what_is_there(rendered: tuple[dict[str, str], Path]) -> None:
    _, folder = rendered
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    modules = [Module("planted", f"planted.{i}") for i in range(len(before))]
    outcomes = render(modules, folder, Limits(), 1, lambda done: None)
    assert len(outcomes) == len(before)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_listing_imports_nothing_and_leaves_out_private_modules_and_tests() -> None:
    before = set(sys.modules)
    names = [module.name for module in list_modules(["stdlib"])]
    assert {"json.encoder", "os", "math", "xml.etree.ElementTree", "this"} <= set(names)
    assert not any(part.startswith("_") for name in names for part in name.split("."))
    assert not any(is_test(name) for name in names)
    assert names == sorted(set(names))
    assert {name for name in set(sys.modules) - before if name in names} == set()


def test_a_distribution_may_be_named_instead_of_its_module() -> None:
    names = {module.name for module in list_modules(["PyYAML"])}
    assert "yaml.loader" in names
    assert versions(["stdlib", "yaml"])["yaml"] != "unknown"


def test_a_package_that_is_not_installed_is_one_clear_sentence() -> None:
    with pytest.raises(UsageError, match="'no_such_package_at_all' is not installed"):
        list_modules(["stdlib", "no_such_package_at_all"])


def test_addresses_are_under_a_name_that_nobody_can_own() -> None:
    assert Module("scikit_learn", "sklearn.svm").url == "https://scikit-learn.pydoc.invalid/sklearn.svm.html"


def test_docstrings_keep_the_layout_that_carries_meaning() -> None:
    module = types.ModuleType(
        "m", "First line\nof a paragraph.\n\nHead\n----\n- one\n- two\n\n>>> 1 < 2\nTrue\n\n  indented & kept"
    )
    assert docstring_blocks(module) == [
        "<p>First line of a paragraph.</p>",
        "<h4>Head</h4>",
        "<ul><li>one</li><li>two</li></ul>",
        "<pre>&gt;&gt;&gt; 1 &lt; 2\nTrue\n\n  indented &amp; kept</pre>",
    ]


def test_what_a_module_only_passes_on_stays_on_its_home_page() -> None:
    module = types.ModuleType("m", "Doc.")
    vars(module).update({"render_module": render_module, "Path": Path})
    page = render_module(module, "m", ["n"], "origin")
    assert "render_module" not in page
    assert '<a href="n.html">' in page


def test_traces_are_taken_out_by_rule() -> None:
    page = without_traces(
        "<f object at 0x7f00ab> /opt/py/lib/x environ({'A': 'b'})", [("/opt/py/lib", "<stdlib>"), ("/opt/py", "P")]
    )
    assert page == "<f object> <stdlib>/x environ"
