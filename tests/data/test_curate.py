"""The verb whole: counts that add up, the same bytes after kills and with any number of workers, bad input."""

from __future__ import annotations

import doctest
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import small_web as web

from mickle import storage
from mickle.config import applying, validate, without_effect
from mickle.data import passes
from mickle.data.curate import Curate
from mickle.data.documentation import Module
from mickle.data.records import Removed, read_corpus, read_removed
from mickle.data.rules import STAGES
from mickle.data.sources import Documentation
from mickle.data.tally import Tally
from mickle.data.warc import write_warc
from mickle.errors import UsageError
from mickle.events import Event, Noted, Progressed, Started, Warned, ignore
from mickle.step import execute

ENGLISH = "The river number {0} runs past the old town, and nobody who lives there remembers a colder winter. " * 3
GERMAN = "Der Fluss fließt an der alten Stadt vorbei, und niemand erinnert sich an einen kälteren Winter. " * 3
RESULT = ("pages/00000.parquet", "removed/00000.parquet", "card.json", "README.md")
PLAIN_STAGES = ["length", "language", "exact_duplicates"]


def html(text: str) -> bytes:
    return f"<html><body><nav><a href='/'>menu</a></nav><main><p>{text}</p></main></body></html>".encode()


@pytest.fixture
def crawl(tmp_path: Path) -> Path:
    """A WARC file: 30 good pages, a German one, a short one, a repeated one, and a cut record."""
    pages = [(f"https://a.org/{i}", html(ENGLISH.format(i))) for i in range(30)]
    pages += [
        ("https://b.org/de", html(GERMAN)),
        ("https://b.org/short", html("")),
        ("https://c.org/again", html(ENGLISH.format(7))),
    ]
    path = tmp_path / "crawl.warc.gz"
    write_warc(path, [*pages, ("https://c.org/cut", html(ENGLISH))])
    path.write_bytes(path.read_bytes()[:-40])
    return path


def step(kind: str, path: Path, **settings: Any) -> Curate:
    given = {"source": {"kind": kind, "path": str(path)}, "workers": 1, "stages": PLAIN_STAGES}
    return validate(Curate, given | settings)


def test_every_record_is_kept_removed_or_skipped_and_the_twin_is_named(crawl: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    out = execute(step("warc", crawl), tmp_path / "out", events.append)
    card = storage.read_json(out / "card.json")
    assert card["records"] == 35
    assert card["skipped"] == {"warcinfo record": 1}
    assert card["removed"] == {
        "exact duplicates": {"same text as a kept page": 1},
        "extraction": {"no main text": 1},
        "language": {"other language": 1},
        "reading": {"compressed data is cut off": 1},
    }
    assert (card["kept"], card["languages"], card["domains"]["a.org"]["pages"]) == (30, {"en": 30}, 30)
    assert [page.url for page in read_corpus(out)] == [f"https://a.org/{i}" for i in range(30)]
    removed = {page.url: page for page in read_removed(out)}
    assert removed["https://c.org/again"].twin == "https://a.org/7"
    assert removed["https://b.org/de"].language == "de"
    assert "menu" not in next(read_corpus(out)).text
    assert "**30**" in (out / "README.md").read_text()
    started = [event for event in events if isinstance(event, Started)]
    assert [event.what for event in started] == ["extract and filter", "sign pages", "write the corpus"]
    assert started[0].total == crawl.stat().st_size // 1000
    assert any(isinstance(event, Progressed) and event.done <= started[0].total for event in events)
    notes = [event.message for event in events if isinstance(event, Noted)]
    assert any(re.match("kept 30 of 35 records, .*; copies merged: 1, into 1 of them$", note) for note in notes)
    summary = storage.open_folder(out, kind="corpus").meta["summary"]
    assert (summary["records"], summary["kept"]) == (35, 30)


RUN = """
import sys
from pathlib import Path
from mickle.config import applying, validate, without_effect
from mickle.data import chunks, curate
from mickle.events import Progressed
from mickle.step import execute

def say(event):
    if isinstance(event, Progressed):
        print("progress", flush=True)

chunks.RECORDS = 4
settings = {"source": {"kind": "warc", "path": sys.argv[1]}, "workers": int(sys.argv[3])}
settings["near_duplicates"] = {"bands": 14, "rows": 8}
settings["repeated_text"] = {"part_tokens": 500}
execute(validate(curate.Curate, settings), Path(sys.argv[2]), say)
"""


def run_and_kill(crawl: Path, out: Path, workers: int, after: int) -> bool:
    """Runs curate in a process of its own and kills it after so many progress events; true when it ended by itself."""
    process = subprocess.Popen([sys.executable, "-c", RUN, str(crawl), str(out), str(workers)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    for _ in range(after):
        if not process.stdout.readline():
            break
    else:
        os.kill(process.pid, signal.SIGKILL)
    process.stdout.close()
    return process.wait() == 0


def result(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in RESULT}


ARTICLE = web.article(1)
KILLS = int(os.environ.get("MICKLE_KILLS", "5"))


def test_killed_runs_end_with_the_same_bytes_with_one_worker_or_two(tmp_path: Path) -> None:
    """All stages; 20 kills with MICKLE_KILLS=20."""
    crawl = tmp_path / "crawl"
    crawl.mkdir()
    pages = [(url, content) for url, content, _ in web.pages()]
    write_warc(crawl / "a.warc.gz", pages[:30])
    write_warc(crawl / "b.warc.gz", pages[30:])
    assert run_and_kill(crawl, tmp_path / "plain", 1, after=10**6)
    killed = tmp_path / "killed"
    draw = random.Random(0)
    kills = 0
    while kills < KILLS:
        if not run_and_kill(crawl, killed, 1 + kills % 2, after=draw.randrange(1, 14)):
            kills += 1
        else:  # it came to its end before the kill did
            assert result(killed) == result(tmp_path / "plain")
            shutil.rmtree(killed)
    run_and_kill(crawl, killed, 2, after=10**6)
    assert result(killed) == result(tmp_path / "plain")


@pytest.mark.parametrize("moment", ["sign", "write_corpus", "keep_earlier"])
def test_a_run_killed_between_its_passes_goes_on(moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = [(url, content) for url, content, _ in web.pages(12)]
    write_warc(tmp_path / "web.warc.gz", pages)
    write_warc(tmp_path / "before.warc.gz", pages[:4])
    before = execute(step("warc", tmp_path / "before.warc.gz"), tmp_path / "before", ignore)
    all_stages = step("warc", tmp_path / "web.warc.gz", stages=None, earlier=[str(before)])
    whole = execute(all_stages, tmp_path / "whole", ignore)
    original = getattr(passes, moment)

    def die(*given: Any, **named: Any) -> None:
        if moment == "keep_earlier":
            original(*given, **named)
        raise KeyboardInterrupt

    monkeypatch.setattr(passes, moment, die)
    with pytest.raises(KeyboardInterrupt):
        execute(all_stages, tmp_path / "killed", ignore)
    monkeypatch.setattr(passes, moment, original)
    assert result(execute(all_stages, tmp_path / "killed", ignore)) == result(whole)


def test_documentation_becomes_a_warc_and_a_corpus_and_is_the_same_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["textwrap", "statistics", "this", "antigravity", "turtle"]
    modules = [Module("stdlib", name) for name in names]
    monkeypatch.setattr("mickle.data.documentation.list_modules", lambda packages, tests: modules)
    first = execute(Curate(workers=2), tmp_path / "a", ignore)
    second = execute(Curate(workers=1), tmp_path / "b", ignore)
    assert result(first) == result(second)
    assert (first / "source.warc.gz").read_bytes() == (second / "source.warc.gz").read_bytes()
    card = storage.read_json(first / "card.json")
    undocumented = sum(len(names) for names in card["undocumented_modules"].values())
    assert card["records"] == 1 + len(names) - undocumented  # the file's own warcinfo record
    texts = {page.url: page.text for page in read_corpus(first)}
    assert "Text wrapping and filling." in texts["https://stdlib.pydoc.invalid/textwrap.html"]
    assert str(tmp_path) not in "".join(texts.values())


def test_pages_of_one_address_removed_by_one_rule_are_counted(tmp_path: Path) -> None:
    """Whatever else they have: other dates, other values, a text or none, pieces at one place."""
    tally = Tally(STAGES)
    for value, date, text in (
        (1.0, "2023", ""),
        (2.0, "2022", ""),
        (2.0, "", "x"),
        (0.0, "2024", ""),
        (2.0, "2022", ""),
    ):
        for start in (-1, 7):
            tally.add(Removed("https://a.org/", "", "", text, "urls", "hard word", value, date=date, start=start))
    assert (tally.removed_pages, len(tally.samples())) == (5, 3)
    old = [
        "WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: https://a.org/sexcam\r\n"
        f"WARC-Date: {year}-01-01T00:00:00Z\r\nContent-Length: 0\r\n\r\n\r\n\r\n"
        for year in range(2020, 2025)
    ]
    write_warc(tmp_path / "a.warc.gz", [("https://b.org/", html(ARTICLE))])
    (tmp_path / "b.warc").write_text("".join(old), newline="")
    out = execute(step("warc", tmp_path, stages=["urls", "length"]), tmp_path / "out", ignore)
    assert storage.read_json(out / "card.json")["removed"]["urls"].popitem()[1] == 5


def rows(path: Path, *texts: str) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_files_that_are_not_read_are_told(tmp_path: Path) -> None:
    rows(tmp_path / "a.jsonl", ARTICLE)
    (tmp_path / "b.csv").write_text("text\nx\n")
    (tmp_path / "c.docx").write_bytes(b"PK")
    events: list[Event] = []
    out = execute(step("rows", tmp_path), tmp_path.parent / "out-told", events.append)
    notes = [event.message for event in events if isinstance(event, Noted)]
    assert f"2 files of {tmp_path} are not read by this kind of source: *.csv (1), *.docx (1)" in notes
    assert storage.read_json(out / "card.json")["skipped"] == {"file named *.csv": 1, "file named *.docx": 1}
    assert "no page: file named *.csv" in (out / "README.md").read_text().replace("\\", "")


def test_names_that_are_no_text_and_records_that_are_no_pages(tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    for name in (b"caf\xe9.txt", b"a\nb.md", b"x.p\xe9f"):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_text(ARTICLE + str(name))
    out = execute(step("files", folder), tmp_path / "out", ignore)
    assert {page.url for page in read_corpus(out)} == {"caf\ufffd.txt", "a\nb.md"}
    (tmp_path / "a.warc").write_text("WARC/1.0\r\nWARC-Type: request\r\nContent-Length: 0\r\n\r\n\r\n\r\n", newline="")
    with pytest.raises(UsageError, match="no page is left of 1 records") as caught:
        execute(step("warc", tmp_path / "a.warc"), tmp_path / "none", ignore)
    assert caught.value.where.endswith("no page: request record (1)")


NO_TEXT, OTHER, TWIN = "no main text", "other language", "same text as a kept page"
STORY = {number: web.article(number) for number in range(40, 50)}
ODD_FILES: dict[str, tuple[bytes, str]] = {  # what is in it, and why it is removed; "" where it is kept
    "-rf.md": (STORY[40].encode(), ""),
    "again.html": (f"<main><p>{STORY[40]}</main>".encode(), TWIN),
    "again.txt": (STORY[40].encode(), TWIN),
    "archive.txt": (b"PK\x03\x04" + random.Random(0).randbytes(3000), OTHER),
    "blank.txt": (b" \r\n\t\n", NO_TEXT),
    "control characters.txt": (bytes(range(1, 32)) * 40, NO_TEXT),
    "empty.txt": (b"", NO_TEXT),
    "mark alone.txt": (b"\xef\xbb\xbf", NO_TEXT),
    "na\u00efve \u202e name.TXT": (STORY[41].encode(), ""),
    "no space.txt": (b"x" * 30_000, OTHER),
    "nul inside.txt": (f"{STORY[42][:50]}\0{STORY[42][50:]}".encode(), ""),
    "nuls.txt": (b"\0" * 500, NO_TEXT),
    "old lines.txt": (STORY[43].replace("\n", "\r").encode(), ""),
    "one token.txt": (b"word", "text is too short"),
    "picture.html": (b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 9, OTHER),
    "tags alone.html": (b"<html><body>" + b"<div>" * 2000, NO_TEXT),
    "unclosed.html": (f"<html><body><div><p>{STORY[44]}".encode(), ""),
    "unknown language.txt": (b"qxz kvrt " + b"zgrbl mnptk vrxq " * 60, OTHER),
    "utf-16.txt": (STORY[45].encode("utf-16"), ""),
    "utf-16-be.html": (f"\ufeff<p>{STORY[46]}".encode("utf-16-be"), ""),
}


def test_every_odd_file_is_kept_or_removed_for_its_reason(tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    (folder / "folder.txt").mkdir(parents=True)
    for name, (content, _) in ODD_FILES.items():
        (folder / name).write_bytes(content)
    for name, target in (("dangling.txt", "nowhere"), ("round.md", "round.md"), ("up.md", "..")):
        (folder / name).symlink_to(target)
    out = execute(step("files", folder), tmp_path / "out", ignore)
    texts = {page.url: page.text for page in read_corpus(out)}
    reasons = {page.url: page.reason for page in read_removed(out)} | dict.fromkeys(texts, "")
    assert reasons == {name: reason for name, (_, reason) in ODD_FILES.items()}
    assert texts["utf-16.txt"] == STORY[45]
    assert "\0" not in texts["nul inside.txt"]
    assert storage.read_json(out / "card.json")["skipped"] == {"link to nothing": 2}


def test_nothing_left_is_one_sentence_with_the_commonest_reasons(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no page is left of 2 records") as caught:
        execute(step("rows", rows(tmp_path / "a.jsonl", "Hi.", GERMAN)), tmp_path / "out", ignore)
    assert "text is too short (1)" in caught.value.where
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("texts", "kept"), [([ENGLISH], 1), ([ENGLISH] * 3, 1)])
def test_one_page_and_all_duplicates_warn(texts: list[str], kept: int, tmp_path: Path) -> None:
    events: list[Event] = []
    out = execute(step("rows", rows(tmp_path / "a.jsonl", *texts)), tmp_path / "out", events.append)
    assert len(list(read_corpus(out))) == kept
    warning = next(event.message for event in events if isinstance(event, Warned))
    assert warning.startswith(f"one page is left of {len(texts)} records")


@pytest.mark.parametrize("kind", ["warc", "files", "rows"])
def test_bad_sources_end_in_usage_errors(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        execute(step(kind, tmp_path / "none"), tmp_path / "out", ignore)
    (tmp_path / "x.jsonl").write_bytes(b"")
    (tmp_path / "x.txt").write_bytes(b"")
    (tmp_path / "x.warc").write_bytes(b"\0\1\2" * 99)
    with pytest.raises(UsageError):
        execute(step(kind, tmp_path), tmp_path / "out", ignore)
    assert not (tmp_path / "out").exists()


def test_a_package_that_is_not_installed_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not installed"):
        execute(Curate(source=Documentation(packages=["no_such_package_at_all"])), tmp_path / "out", ignore)


def test_settings_of_stages_that_do_not_run_are_said_to_do_nothing(crawl: Path) -> None:
    assert set(without_effect(step("files", crawl, quality={"least_words": 9}, minimum_characters=9))) == {"quality"}
    shown = applying(step("warc", crawl, stages=["language", "lines"]))
    assert {"languages", "lines"} <= shown.keys() and not {"quality", "near_duplicates", "urls"} & shown.keys()


def test_the_forecast_and_the_next_command(crawl: Path) -> None:
    forecast, preview = step("warc", crawl).dry_run()
    assert forecast.memory_bytes > 0
    assert "crawl.warc.gz" in preview
    _, preview = Curate().dry_run()
    assert "modules of stdlib" in preview
    assert Curate().after(Path("corpus")).startswith("mickle pretrain")


def test_workers_change_nothing_and_python_does() -> None:
    assert Curate(workers=1).identity() == Curate(workers=7, ray="auto").identity()
    assert Curate().fingerprint()["python"] == sys.version.split()[0]


def test_settings_import_nothing_heavy() -> None:
    heavy = "{'torch', 'pyarrow', 'trafilatura', 'numpy', 'py3langid', 'numba', 'resiliparse', 'ray', 'lxml'}"
    code = f"import sys, mickle.data.curate; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_the_page_of_documentation_is_right() -> None:
    page = Path(__file__).parents[2] / "docs" / "curate.md"
    assert doctest.testfile(str(page), module_relative=False).failed == 0


@pytest.mark.parametrize(
    ("texts", "kept"),
    [([ARTICLE], 1), ([ARTICLE] * 4, 1), ([ARTICLE, "word", "x", ""], 1), ([ARTICLE, GERMAN], 1)],
)  # fmt: skip
def test_odd_sources_go_through_all_stages(texts: list[str], kept: int, tmp_path: Path) -> None:
    path = rows(tmp_path / "a.jsonl", *[text or " " for text in texts])
    out = execute(step("rows", path, stages=list(STAGES)), tmp_path / "out", ignore)
    card = storage.read_json(out / "card.json")
    assert (card["records"], card["kept"]) == (len(texts), kept)
