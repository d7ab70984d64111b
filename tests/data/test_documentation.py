"""Documentation of modules that would misbehave if they ran: they are read, and none does."""

from __future__ import annotations

import html
import re
import sys
import textwrap
from pathlib import Path

import pytest

from mickle.data import documentation_questions
from mickle.data.documentation import Module, is_test, list_modules, render, versions
from mickle.data.module_pages import docstring_blocks
from mickle.errors import UsageError

PLANTED = {
    "good": '''
        """A good module."""
        import os
        def greet(name="x", thing=object(), environ=os.environ):
            """Says hello.

            >>> greet("you")
            hello you
            """
        class Bell(dict):
            """Rings."""
            def ring(self, times: int = 1) -> None:
                """Rings so many times."""
            strike = ring
            @property
            def loud(self):
                """Whether it is."""
            @loud.setter
            def loud(self, value):
                """Not shown."""
            def _hidden(self):
                """Not shown."""
        def _private():
            """Not shown either."""
        if os:
            async def wait():
                """Waits."""
        if __name__ == "__main__":
            def main():
                """Not shown."""
    ''',
    "exports": """
        from ._private import shown, hidden, _named as renamed
        from .good import greet
        __all__ = ["shown", "renamed", "greet"]
    """,
    "broken": "def :",
    "deep": "x = " + "(" * 5000 + ")" * 5000,
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
    "_private": '''
        """Not listed."""
        def shown():
            """Shown."""
        def hidden():
            """Not shown."""
        def _named():
            """Shown by another name."""
    ''',
    "tests": '"""Not listed."""',
}  # fmt: skip
RUNNING = (
    "prints",
    "leaves",
    "vanishes",
    "loops",
    "sleeps",
    "eats",
    "breaks",
    "crashes",
    "connects",
    "starts",
    "forks",
)


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
def rendered(package: Path) -> dict[str, tuple[str, str]]:
    """Page and why there is none, by a module's last name."""
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(package))
    outcomes = list(render(list_modules(["planted"])))
    patch.undo()
    return {module.name.rpartition(".")[2]: (page, problem) for module, page, problem in outcomes}


def test_every_module_has_a_page_or_a_reason_and_none_runs(rendered: dict[str, tuple[str, str]], package: Path) -> None:
    told = {name: problem for name, (_, problem) in rendered.items() if problem}
    assert told == {"broken": "cannot be parsed", "deep": "cannot be parsed"}
    assert all(bool(page) != bool(problem) for page, problem in rendered.values())
    assert {"planted", "good", "exports", *RUNNING} <= set(rendered)
    assert not (package / "pids").exists()
    assert not any(name.startswith("planted") for name in sys.modules)


def test_a_page_shows_what_is_public_with_its_signature(rendered: dict[str, tuple[str, str]]) -> None:
    page, _ = rendered["good"]
    headings = re.findall(r"<h[1-4]>(.*?)</h[1-4]>", page)
    assert [html.unescape(heading) for heading in headings] == [
        "planted.good",
        "greet(name='x', thing=object(), environ=os.environ)",
        "class Bell(dict)",
        "ring(self, times: int=1) -> None",
        "strike(self, times: int=1) -> None",
        "loud",
        "wait()",
    ]
    assert "Says hello" in page
    assert "hello you</pre>" in page
    assert "Not shown" not in page
    assert '<a href="planted.exports.html">' in page


def test_what_a_module_takes_over_from_a_private_one_is_on_its_page_and_from_a_public_one_is_not(
    rendered: dict[str, tuple[str, str]],
) -> None:
    page, _ = rendered["exports"]
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["shown()", "renamed()"]


def test_a_module_without_source_is_told_and_the_same_pages_come_twice() -> None:
    modules = [Module("stdlib", name) for name in ("json.decoder", "math", "collections.abc")]
    (_, decoder, _), (_, nothing, problem), (_, passed, _) = found = list(render(modules))
    assert (nothing, problem) == ("", "has no Python source")
    assert "Simple JSON &lt;" in decoder
    assert "class Callable" not in passed  # it has no docstring
    assert "class KeysView" not in passed
    assert "class ByteString(Sequence)" in passed
    assert list(render(modules)) == found


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
    text = "First line\nof a paragraph.\n\nHead\n----\n- one\n- two\n\n>>> 1 < 2\nTrue\n\n  indented & kept"
    assert docstring_blocks(text) == [
        "<p>First line of a paragraph.</p>",
        "<h4>Head</h4>",
        "<ul><li>one</li><li>two</li></ul>",
        "<pre>&gt;&gt;&gt; 1 &lt; 2\nTrue\n\n  indented &amp; kept</pre>",
    ]


def test_questions_name_what_is_public_and_are_answered_by_its_docstring(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(package))
    monkeypatch.setattr(documentation_questions, "SHORTEST", 5)
    found = {item.question: item.answer for item in documentation_questions.questions("planted.good")}
    assert found == {
        "What is the Python module `planted.good` for?": "A good module.",
        "What does `planted.good.greet(name='x', thing=object(), environ=os.environ)` do in Python?": "Says hello.",
        "What is the Python class `planted.good.Bell` for?": "Rings.",
        "What does `planted.good.Bell.ring(times: int=1) -> None` do in Python?": "Rings so many times.",
        "What does `planted.good.Bell.strike(times: int=1) -> None` do in Python?": "Rings so many times.",
        "What does `planted.good.Bell.loud` do in Python?": "Whether it is.",
        "What does `planted.good.wait()` do in Python?": "Waits.",
    }
    first = documentation_questions.first_paragraph
    assert [first(text) for text in ("One\nline.\n\nMore.", "Use it so:\n\n  >>> 1", "- a\n- b")] == [
        "One line.",
        "",
        "",
    ]


def test_answers_held_out_are_of_other_modules_and_are_like_none_to_learn() -> None:
    names = [module.name for module in list_modules(["email", "http", "xml", "asyncio", "logging"])]
    training, heldout = documentation_questions.two_sides(names, 200)
    assert (len(training), len(heldout)) == (180, 20)
    assert not {item.module for item in training} & {item.module for item in heldout}

    def runs(text: str) -> set[tuple[str, ...]]:
        words = re.findall(r"\w+", text.lower())
        return {tuple(words[at : at + 8]) for at in range(max(1, len(words) - 7))}

    learnt = set().union(*(runs(item.answer) for item in training))
    assert not any(runs(item.answer) & learnt for item in heldout)
    assert documentation_questions.two_sides(names, 200) == (training, heldout)
