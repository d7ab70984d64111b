"""The reader of installed packages' texts: what it finds, in which order, and that nothing is run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mickle.data.installed import all_docstrings, docstrings, module_name, package_files, package_folder, parsed
from mickle.errors import UsageError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that must not be imported."""
    package = tmp_path / "must_not_run"
    for name in ("__init__.py", "b.py", "a/__init__.py", "a/z.py", "tests/t.py", "a/tests/t.py", "a/table.txt"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text("raise SystemExit('was run')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return package


def test_files_come_in_the_order_of_their_paths_and_skipped_folders_are_passed_over(folder: Path) -> None:
    assert package_folder("must_not_run") == folder
    inside = [path.relative_to(folder).as_posix() for path in package_files("must_not_run", {"tests"})]
    assert inside == ["__init__.py", "a/__init__.py", "a/z.py", "b.py"]
    assert [path.name for path in package_files("must_not_run", pattern="*.txt")] == ["table.txt"]
    assert "must_not_run" not in sys.modules


def test_the_standard_library_has_no_installed_packages_in_it() -> None:
    inside = [path.relative_to(package_folder("stdlib")) for path in package_files("stdlib")]
    assert Path("json/encoder.py") in inside
    assert not any("site-packages" in path.parts for path in inside)


@pytest.mark.parametrize("name", ["no_such_package_at_all", "os.path", "../etc", ""])
def test_what_is_no_installed_package_is_one_clear_sentence(name: str) -> None:
    with pytest.raises(UsageError, match="is not installed"):
        package_files(name)


@pytest.mark.parametrize(
    ("path", "name"), [("json/__init__.py", "json"), ("json/encoder.py", "json.encoder"), ("os.py", "os")]
)
def test_the_name_of_a_module_follows_from_its_path(path: str, name: str) -> None:
    assert module_name(Path(path)) == name


def test_docstrings_in_the_order_of_the_file_or_wherever_they_stand(tmp_path: Path) -> None:
    source = tmp_path / "m.py"
    source.write_text(
        '"""M."""\nclass A:\n    """A."""\n    def a(self):\n        """a."""\nif A:\n    def c():\n        """c."""\n'
        'async def b():\n    """b."""\n'
    )
    tree = parsed(source)
    assert tree is not None
    assert list(docstrings(tree)) == ["M.", "A.", "a.", "b."]
    assert sorted(all_docstrings(tree)) == ["A.", "M.", "a.", "b.", "c."]


@pytest.mark.parametrize("content", [b"def :", b"\0", b"# coding: none-such\n", b"\xff\xfe'"])
def test_a_file_that_does_not_parse_has_no_tree(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.py").write_bytes(content)
    assert parsed(tmp_path / "m.py") is None
    assert parsed(tmp_path / "missing.py") is None
