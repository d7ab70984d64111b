"""Worker processes: results in order whatever their number, and a page that kills one costs only itself."""

from __future__ import annotations

import io
from pathlib import Path
from typing import IO

import pytest

from mickle.data.extraction import Extraction
from mickle.data.pages import RawPage, Skipped, removed_raw
from mickle.data.records import Failure, Page, Removed, piece
from mickle.data.refine import refine_page
from mickle.data.rules import Outcome, Rules
from mickle.data.workers import Crew, read_answer, receive, send, write_answer
from mickle.errors import MickleError, UsageError
from mickle.untrusted.child import Child

RULES = Rules(stages=["length", "language"], minimum_characters=20)
ENGLISH = "The river number {} runs past the old town, and nobody who lives there remembers a colder winter."
PAGES = [RawPage(f"u{i}", "d", "text", ENGLISH.format(i).encode()) for i in range(30)]


def test_order_and_results_do_not_depend_on_the_number_of_workers() -> None:
    gone, skipped = removed_raw(PAGES[0], "is damaged", 1.0), Skipped("request record")
    found = [*PAGES[:7], gone, skipped, *PAGES[7:]]
    alone = [[page] if not isinstance(page, RawPage) else refine_page(page, RULES) for page in found]
    assert [isinstance(page, Page) and not isinstance(page, Removed) for (page,) in alone].count(True) == 30
    for count in (1, 2):
        with Crew(RULES, count) as crew:
            assert list(crew.process(found)) == alone
            assert {"extraction", "language"} <= crew.taken_seconds().keys()


def test_pieces_cut_out_of_a_page_come_before_it() -> None:
    text = "\n".join(["3 likes", *(ENGLISH.format(i) + " It froze over and they walked across." for i in range(9))])
    rules = Rules(stages=["lines"])
    with Crew(rules, 1) as crew:
        ((cut, page),) = crew.process([RawPage("u", "d", "text", text.encode())])
    assert isinstance(cut, Removed)
    assert isinstance(page, Page)
    assert (cut.stage, cut.start, cut.text + page.text) == ("lines", 0, text)


def test_a_page_that_kills_its_worker_is_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In the worker trafilatura's function dies, loops or eats memory as the page says."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, trafilatura\n"
        "def extract(html, *given, **settings):\n"
        "    html = html if isinstance(html, str) else trafilatura.load_html(html).text_content()\n"
        "    if 'dies' in html: os.kill(os.getpid(), signal.SIGSEGV)\n"
        "    while 'loops' in html: pass\n"
        "    if 'eats' in html: bytearray(1 << 40)\n"
        "    if 'fails' in html: raise RecursionError\n"
        "    print('noise that must not be taken for an answer')\n"
        "    return html\n"
        "trafilatura.extract = trafilatura.bare_extraction = extract\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    texts = ["dies", ENGLISH, "loops", "eats", ENGLISH, "fails"]
    found = [RawPage(f"u{i}", "d", "html", text.encode()) for i, text in enumerate(texts)]
    rules = RULES.model_copy(update={"page_seconds": 0.5, "extraction": Extraction(method="trafilatura")})
    with Crew(rules, 2) as crew:
        outcomes = [outcomes[-1] for outcomes in crew.process(found)]
    reasons = [page.reason if isinstance(page, Removed) else "" for page in outcomes]
    assert reasons == [
        "ended by signal 11 (Segmentation fault)",
        "",
        "ran out of time",
        "ran out of memory",
        "",
        "extractor failed (RecursionError)",
    ]


@pytest.mark.parametrize("languages", [["en"], ["de"]])  # the second take the page out that a worker tries itself with
def test_what_is_wrong_with_the_settings_is_said_as_without_workers(languages: list[str], tmp_path: Path) -> None:
    bad = tmp_path / "set.jsonl"
    bad.write_text('{"text": "' + ENGLISH + '"}\nnonsense\n')
    rules = Rules(stages=["language", "decontamination"], languages=languages, decontamination={"against": [bad]})
    with pytest.raises(UsageError, match="not JSON") as caught, Crew(rules, 2) as crew:
        list(crew.process(PAGES))
    assert caught.value.where == f"{bad}:2"


def test_a_fault_of_ours_is_not_called_a_lack_of_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code = "import mickle.data.pages as p\ndef fail(*given, **named): raise KeyError('odd')\np.{} = fail\n"
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for broken in ("decode", "removed_raw"):  # met at once; met by a page alone
        (tmp_path / "sitecustomize.py").write_text(code.format(broken))
        with pytest.raises(MickleError, match="this is a bug in Mickle: KeyError") as caught, Crew(RULES, 1) as crew:
            list(crew.process([RawPage("u", "d", "text", b"")]))
        assert caught.value.exit_code == 1


def test_stopping_early_ends_the_workers() -> None:
    with Crew(RULES, 2) as crew:
        next(crew.process(iter(PAGES)))
    assert len(crew.crew) == 2
    assert all(worker.process is None or worker.process.poll() is not None for worker in crew.crew)


def test_the_wire_carries_any_page_and_any_outcome() -> None:
    pages = [RawPage("u\n\ud800", "d", "html", b"\0\n\xff" * 5, "latin-1"), RawPage("", "", "record", b"")]
    stream = io.BytesIO()
    for page in pages:
        send(stream, page)
    stream.seek(0)
    assert [receive(stream), receive(stream), receive(stream)] == [*pages, None]
    page = Page("u", "d", "en", "t\n\u2028", date="2023", language_score=0.5)
    gone = Removed("u", "d", "", "", "s", "r", 0.5, "t", limit=2.0)
    outcomes: list[Outcome] = [piece(page, "lines", Failure("a rule", 1, 2), 3, "cut"), gone, Skipped("x")]
    assert read_answer(write_answer((outcomes, {"lines": 0.25}))) == (outcomes, {"lines": 0.25})


def test_an_interrupted_question_leaves_no_answer_for_the_next() -> None:
    child = Child("mickle.data.template_program")

    def interrupted(stream: IO[bytes]) -> None:
        stream.write(b'{"source": "old", "variables": {}, "chats": [[]], "asked": [[0, 0, false, false]]}\n')
        stream.flush()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        child.ask(interrupted)
    question = b'{"source": "new", "variables": {}, "chats": [[]], "asked": [[0, 0, false, false]]}\n'
    assert child.ask(lambda stream: stream.write(question)) == b'[["text", "new"]]\n'
    child.end()
