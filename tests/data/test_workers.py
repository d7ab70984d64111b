"""Worker processes: results in order whatever their number, and a page that kills one costs only itself."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path

import pytest

from mickle.data import workers
from mickle.data.pages import RawPage, Skipped, removed_raw
from mickle.data.records import Page, Removed
from mickle.data.workers import Rules, process, process_all, read_outcome, receive, send

RULES = Rules(minimum_characters=20)
ENGLISH = "The river number {} runs past the old town, and nobody who lives there remembers a colder winter."
PAGES = [RawPage(f"u{i}", "d", "text", ENGLISH.format(i).encode()) for i in range(30)]


def test_order_and_results_do_not_depend_on_the_number_of_workers() -> None:
    gone, skipped = removed_raw(PAGES[0], "is damaged", 1.0), Skipped("request record")
    found = [*PAGES[:7], gone, skipped, *PAGES[7:]]
    alone = [page if not isinstance(page, RawPage) else process(page, RULES) for page in found]
    assert [isinstance(page, Page) and not isinstance(page, Removed) for page in alone].count(True) == 30
    assert list(process_all(found, RULES, 1)) == alone
    assert list(process_all(found, RULES, 2)) == alone


def test_a_page_that_kills_its_worker_is_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A module planted before trafilatura's own dies, loops or eats memory as the page says."""
    (tmp_path / "trafilatura.py").write_text(
        "import os, signal\n"
        "def extract(html, **settings):\n"
        "    if 'dies' in html: os.kill(os.getpid(), signal.SIGSEGV)\n"
        "    while 'loops' in html: pass\n"
        "    if 'eats' in html: bytearray(1 << 40)\n"
        "    if 'fails' in html: raise RecursionError\n"
        "    print('noise that must not be taken for an answer')\n"
        "    return html\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    texts = ["dies", ENGLISH, "loops", "eats", ENGLISH, "fails"]
    found = [RawPage(f"u{i}", "d", "html", text.encode()) for i, text in enumerate(texts)]
    rules = Rules(minimum_characters=20, page_seconds=0.5)
    reasons = [page.reason if isinstance(page, Removed) else "" for page in process_all(found, rules, 2)]
    assert reasons == [
        "ended by signal 11 (Segmentation fault)",
        "",
        "ran out of time",
        "ran out of memory",
        "",
        "extractor failed (RecursionError)",
    ]


def test_stopping_early_ends_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    crew: list[workers._Worker] = []
    original = workers._Worker.__init__

    def remember(self: workers._Worker, rules: Rules) -> None:
        original(self, rules)
        crew.append(self)

    monkeypatch.setattr(workers._Worker, "__init__", remember)
    outcomes = process_all(iter(PAGES), RULES, 2)
    next(outcomes)
    outcomes.close()  # type: ignore[attr-defined]
    assert len(crew) == 2
    assert all(worker.child is None or worker.child.poll() is not None for worker in crew)


def test_the_wire_carries_any_page_and_any_outcome() -> None:
    pages = [RawPage("u\n\ud800", "d", "html", b"\0\n\xff" * 5, "latin-1"), RawPage("", "", "record", b"")]
    stream = io.BytesIO()
    for page in pages:
        send(stream, page)
    stream.seek(0)
    assert [receive(stream), receive(stream), receive(stream)] == [*pages, None]
    for outcome in (
        Page("u", "d", "en", "t\n\u2028"),
        Removed("u", "d", "", "", "s", "r", 0.5, "t"),
        Skipped("x"),
    ):
        assert read_outcome(json.dumps([type(outcome).__name__, asdict(outcome)]).encode()) == outcome
