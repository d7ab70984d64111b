from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mickle import storage, verbs
from mickle.data.pages import Skipped
from mickle.data.records import Page, Removed
from mickle.data.tally import Tally
from mickle.errors import UsageError
from mickle.evaluation.evaluate import beside_baselines
from mickle.figures import Bars, Figure, Line, Panel, panels_of
from mickle.report import LARGEST, render, stamp, write_report
from mickle.step import Step

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</pre><script src=//evil.invalid/x.js></script>",
    "<svg onload=alert(1)>",
    "[x](javascript:alert(1))",
    "![x](http://evil.invalid/beacon.png)",
    "{{ 7 * 7 }}{% for x in range(9) %}{% endfor %}",
    "\u202e\u0000\U0001f600&lt;script&gt;",
    "</title><iframe src=http://evil.invalid>",
    "<style>@import 'http://evil.invalid/x.css'</style>",
]


class Elements(HTMLParser):
    """Which elements a page makes and what it would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.fetched: list[str] = []
        self.handlers: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attributes:
            if name in ("src", "href", "action", "data") and value is not None:
                self.fetched.append(value)
            if name.startswith("on"):
                self.handlers.append(name)


def _folders(root: Path, text: str) -> dict[str, Path]:
    """A corpus, a model's records, a measure and samples, all of whose words are ``text``."""
    folders = {name: root / name for name in ("corpus", "model", "loss", "text")}
    made = {"kept": 1, "records": 3}
    with storage.write_folder(folders["corpus"], kind="corpus", identity={"verb": "curate"}, summary=made) as folder:
        tally = Tally(["language"])
        tally.add(Skipped(text))
        tally.add(Removed(text, text, "", text, "language", text, 0.1, text))
        tally.add(Page(text, text, text, text))
        tally.add(Page("other", "other", "en", "words"))
        card = tally.card({"source": {"kind": "warc"}}, {})
        storage.write_json(folder / "card.json", card)
    summary = {"parameters": 1000, "tokens_read": 64, "note": text}
    with storage.write_folder(
        folders["model"], kind="model", identity={"verb": "pretrain"}, summary=summary, seconds=3.0
    ) as folder:
        lines = [
            {"event": "trained", "step": s, "loss": 3.0 / s, "learning_rate": 0.1, "gradient_norm": 1.0, "tokens": s}
            for s in range(1, 9)
        ] + [{"event": "evaluated", "step": 8, "values": {"heldout_loss": 0.5}}]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / "settings.yaml").write_text(f"data: {json.dumps(text)}\n")
    summary = {"bits_per_byte": 2.0, "perplexity": 9.0, "baselines": {text: 3.0}}
    with storage.write_folder(
        folders["loss"], kind="evaluation", identity={"verb": "evaluate"}, summary=summary
    ) as folder:
        (folder / "loss.svg").write_text(f"<svg xmlns='http://www.w3.org/2000/svg'><text>{text}</text></svg>")
    with storage.write_folder(folders["text"], kind="samples", identity={"verb": "sample"}) as folder:
        row = {"prompt": text, "text": text, "untrained": text}
        (folder / "samples.jsonl").write_text(json.dumps(row) + "\n")
    return folders


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_that_was_written_becomes_markup(tmp_path: Path, text: str) -> None:
    safe, hostile = Elements(), Elements()
    safe.feed(render("title", _folders(tmp_path / "safe", "plain words"), "mickle run x.yaml"))
    hostile.feed(render(text, _folders(tmp_path / "hostile", text.replace("\u0000", "")), text))
    assert hostile.tags == safe.tags
    assert hostile.tags.isdisjoint({"script", "iframe", "svg", "object", "link", "form"})
    assert hostile.handlers == []
    assert all(source.startswith("data:image/svg+xml,") for source in hostile.fetched)
    assert len(hostile.fetched) == len(safe.fetched)


def test_page_is_small_and_asks_nothing_of_the_network(tmp_path: Path) -> None:
    page = render("title", _folders(tmp_path, "words"), "mickle run x.yaml")
    assert len(page.encode()) < LARGEST
    assert "default-src 'none'" in page
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", page)
    for expected in ("33%", "after training", "before training", "mickle run x.yaml", "2.000"):
        assert expected in page


def test_a_compressor_that_wins_is_explained() -> None:
    summary = {
        "bits_per_byte": 2.0,
        "bits_per_byte_interval": [1.9, 2.1],
        "baselines": {"lzma after training pages": 1.6},
    }
    assert "The baseline is the better one. It has every training page before it" in beside_baselines(summary)


@pytest.mark.parametrize(
    ("interval", "says"), [([1.9, 2.1], "The model is the better one"), ([1.0, 3.5], "neither is clearly better")]
)
def test_a_difference_within_the_interval_is_no_difference(interval: list[float], says: str) -> None:
    summary = {"bits_per_byte": 2.0, "bits_per_byte_interval": interval, "baselines": {"zlib": 3.0}}
    assert says in beside_baselines(summary)


def test_a_folder_that_no_verb_made_is_shown_plainly(tmp_path: Path) -> None:
    with storage.write_folder(
        tmp_path / "old", kind="corpus", summary={"pages_kept": 12_345, "text": "a page"}
    ) as folder:
        (folder / "a.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    page = render("title", {"old": tmp_path / "old"})
    assert "<td>pages kept</td>" in page and "12,345" in page and "a page" not in page
    assert page.count("data:image/svg+xml,") == 1


@pytest.mark.parametrize("name", verbs.STEPS)
def test_every_verb_has_a_part_of_its_own(name: str) -> None:
    cls = verbs.step_class(name)
    assert verbs.made_by({"verb": cls.__name__.lower()}) is cls
    assert cls.title != Step.title or "section" in vars(cls)


def test_stamp_follows_the_folders(tmp_path: Path) -> None:
    folders = _folders(tmp_path, "words")
    page = write_report(tmp_path / "report.html", "title", folders)
    assert stamp(page) == stamp(folders) != stamp({"corpus": folders["corpus"]})
    assert stamp(tmp_path / "none.html") == ""


def test_a_folder_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    folders = _folders(tmp_path, "words")
    (folders["text"] / "samples.jsonl").unlink()
    with pytest.raises(UsageError, match="missing"):
        render("title", folders)


def test_answers_stand_beside_each_other_and_panels_below_each_other(tmp_path: Path) -> None:
    """A picture of two panels is two pictures of half its width, the second with the right half."""
    panels = (Panel("left", lines=[Line([0, 1], [0, 1])]), Panel("right", bars=Bars(["a", "b"], [1.0, 2.0])))
    whole = Figure(panels, width=9, height=3).svg()
    left, right = panels_of(whole)
    assert 'width="324pt"' in left and 'viewBox="0 0 324 216"' in left
    assert 'width="324pt"' in right and 'viewBox="324 0 324 216"' in right
    assert panels_of(left) != [whole] and panels_of("<svg/>") == ["<svg/>"]
    folder = tmp_path / "text"
    with storage.write_folder(folder, kind="samples", identity={"verb": "sample"}) as work:
        row = {"prompt": "p", "question": "why?", "reference": "so", "text": "after", "untrained": "before"}
        (work / "samples.jsonl").write_text(json.dumps(row) + "\n")
    page = render("title", {"text": folder})
    kinds = re.findall(r'<div class="(\w+)"><h3>[^<]*</h3><pre>(\S+)</pre>', page)
    assert kinds == [("prompt", "why?"), ("reference", "so"), ("before", "before"), ("after", "after")]
