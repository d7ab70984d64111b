"""The web recipe at a small setting: from WARC files through all stages to a measured model and one page."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from mickle import recipe, storage
from mickle.data.warc import write_warc
from mickle.events import ignore

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "recipes" / "web.yaml"


def test_recipe_is_short_and_says_what_it_needs() -> None:
    lines = RECIPE.read_text().splitlines()
    assert len(lines) <= 40
    head = "\n".join(line for line in lines if line.startswith("#"))
    assert all(word in head for word in ("Needs:", "Takes:", "Gives:"))


def test_a_crawl_to_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "data"))
    import small_web as web

    crawl = tmp_path / "crawl"
    crawl.mkdir()
    write_warc(crawl / "a.warc.gz", [(url, content) for url, content, _ in web.pages()])
    values = yaml.safe_load(RECIPE.read_text())
    values["steps"]["corpus"] |= {"source": {"kind": "warc", "path": str(crawl)}, "workers": 1}
    values["steps"]["model"] |= {"size": 40_000, "steps": 6}
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(values))
    recipe.run(recipe.read(file, out=tmp_path / "runs"), ignore)
    page = (tmp_path / "runs" / "report.html").read_text()
    for words in ("The corpus", "near duplicates", "The training", "bits per byte"):
        assert words in page
    assert storage.open_folder(tmp_path / "runs" / "corpus").meta["summary"]["kept"] == 42
    del sys.modules["small_web"]
