"""Main text of `mickle curate` against trafilatura with the paper's settings and against Resiliparse alone.

    python benchmarks/curate_extraction.py                     # some 3 minutes on one quiet core
    python benchmarks/curate_extraction.py --pages FOLDER ...  # real pages from elsewhere
    python benchmarks/curate_extraction.py --annotated FOLDER  # pages with a human's truth
    python benchmarks/curate_extraction.py --segments FOLDER   # pages with segments that belong to the text or not

Everything on one core, the arms in turn on the same pages in one process, ratios as medians of the rounds' own ratios.

**Known text**: articles from the standard library's documentation in the page families that no rule was tuned on
(`studies/templates.py`, `HELDOUT`): precision, recall and F of the multiset of 4-grams of words, means over pages,
and F of each family. Whoever wrote the rules also wrote the families; so see the next two.
**Real pages**: HTML found under the folders, and pydoc's pages of the standard library, the half whose hash of the
path is even (rules were tuned on the other). Nobody knows their main text: the figures are agreement with what
trafilatura takes, which is not right everywhere either (it loses lists of release notes, for one).
**Annotated**: a folder with `ground-truth.json` (name -> `articleBody`) and `html/NAME.html.gz`, such as
scrapinghub's article-extraction-benchmark (181 news pages); again the half not used in tuning.
**Segments**: the folder `tests` of trafilatura's repository, 990 pages with a few segments each that a text should hold
or not: F of the segments, mean over pages, all pages (rules were tuned on half of them).
**Doubtful**: the share of pages that `fast` hands to trafilatura. **Memory**: each arm in its own process, over the
real pages twice: resident high-water mark, and growth of the resident size from the first pass to the second.

Targets: at least 4 x trafilatura's pages/s, F within 0.01 of its. Writes `benchmarks/results/curate_extraction.json`.
"""

import argparse
import gzip
import hashlib
import importlib
import json
import pydoc
import re
import statistics
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from known_articles import articles

from mickle.data import extraction
from mickle.data.charsets import decode
from mickle.data.extraction import Extraction, main_text, tidy
from mickle.machine import describe, peak_memory
from mickle.storage import write_json
from mickle.studies.blocks import truth
from mickle.studies.templates import HELDOUT, wrap

RESULT = Path(__file__).parent / "results" / "curate_extraction.json"
FOLDERS = ("/usr/share/doc", "/usr/share/gtk-doc", "/usr/share/javascript")
PER_FOLDER, LARGEST = 40, 1_000_000  # pages of one folder; bytes of one page
FAST, REFERENCE = Extraction(), Extraction(method="trafilatura")
NO_MODULES = ("antigravity", "this", "idlelib")  # they do something when imported
Page = tuple[str, str, str]  # group, HTML, true text or nothing


def resiliparse(html: str) -> str:
    """Resiliparse's main content."""
    from resiliparse.extract.html2text import extract_plain_text

    return tidy(extract_plain_text(html, main_content=True, alt_texts=False, links=False, form_fields=False))


ARMS: dict[str, Callable[[str], str]] = {
    "mickle": lambda html: main_text(html, FAST),
    "trafilatura": lambda html: main_text(html, REFERENCE),
    "resiliparse": resiliparse,
}


def is_reported(name: str) -> bool:
    """Whether a page is in the half that no rule was tuned on."""
    return hashlib.sha256(name.encode()).digest()[0] % 2 == 0


def known_pages(each: int) -> list[Page]:
    """Pages of the families held out, ``each`` of every family."""
    return [
        (family, wrap(blocks, seed, family), truth(blocks))
        for number, family in enumerate(HELDOUT)
        for seed, blocks in enumerate(articles(each, seed=1000 + number))
    ]


def real_pages(folders: Sequence[str]) -> list[Page]:
    """HTML files, at most ``PER_FOLDER`` of each folder inside the folders, and as many of pydoc's pages."""
    groups: dict[str, set[Path]] = defaultdict(set)
    for folder in map(Path, folders):
        for path in folder.glob("**/*.htm*"):
            file = path.resolve()
            if file.is_file() and is_reported(str(file)) and 300 <= file.stat().st_size <= LARGEST:
                groups[path.relative_to(folder).parts[0]].add(file)
    pages = [
        (group, file.read_text(encoding="utf-8", errors="replace"), "")
        for group, files in sorted(groups.items())
        for file in sorted(files, key=lambda file: hashlib.sha256(str(file).encode()).digest())[:PER_FOLDER]
    ]
    names = [name for name in sorted(sys.stdlib_module_names - set(NO_MODULES)) if name[0] != "_"]
    for name in [name for name in names if is_reported(name)][:PER_FOLDER]:
        try:
            pages.append(("pydoc", pydoc.html.document(importlib.import_module(name), name), ""))
        except Exception:  # modules of other systems cannot be imported
            continue
    return pages


def annotated_pages(folder: Path) -> list[Page]:
    """Pages with a human's truth."""
    truths = json.loads((folder / "ground-truth.json").read_text(encoding="utf-8"))
    return [
        (
            "annotated",
            gzip.open(folder / "html" / f"{name}.html.gz").read().decode("utf-8", "replace"),
            known["articleBody"],
        )
        for name, known in sorted(truths.items())
        if int(name[:2], 16) % 2
    ]


def grams(text: str) -> Counter[tuple[str, ...]]:
    """The multiset of 4-grams of words; shorter texts are one gram."""
    words = re.findall(r"\w+", text)
    return Counter(tuple(words[i : i + 4]) for i in range(max(len(words) - 3, min(len(words), 1))))


def agreement(text: str, wanted: str) -> tuple[float, float, float]:
    """Precision, recall and F of the 4-grams; all 1 where both are empty."""
    found, true = grams(text), grams(wanted)
    if not found or not true:
        return (1.0, 1.0, 1.0) if found == true else (0.0, 0.0, 0.0)
    shared = (found & true).total()
    precision, recall = shared / found.total(), shared / true.total()
    return precision, recall, 2 * shared / (found.total() + true.total())


def segment_pages(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """HTML, and the segments "with" and "without" that belong to its text."""
    known = json.loads((folder / "evaldata.json").read_text(encoding="utf-8"))
    places = [(folder / "cache" / item["file"], folder / "eval" / item["file"], item) for item in known.values()]
    return [(decode((one if one.exists() else other).read_bytes(), html=True), item) for one, other, item in places]


def segments_found(text: str, item: dict[str, Any]) -> float:
    """F of the segments of one page."""
    text = " ".join(text.split())
    held, wrong = (sum(" ".join(s.split()) in text for s in item[kind]) for kind in ("with", "without"))
    return 2 * held / (held + wrong + len(item["with"]))


def compare_segments(pages: Sequence[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """Every arm's mean F, and its rate in relation to trafilatura's."""
    scores: dict[str, list[float]] = defaultdict(list)
    seconds: dict[str, float] = defaultdict(float)
    for html, item in pages:
        for arm, extract in ARMS.items():
            begun = time.process_time()
            text = extract(html)
            seconds[arm] += time.process_time() - begun
            scores[arm].append(segments_found(text, item))
    return {
        arm: {"F": statistics.mean(found), "ratio_to_trafilatura": seconds["trafilatura"] / seconds[arm]}
        for arm, found in scores.items()
    }


def compare(pages: Sequence[Page], rounds: int) -> dict[str, Any]:
    """All arms on the same pages: rates, ratios to trafilatura, and scores against the truth or trafilatura."""
    rates: dict[str, list[float]] = defaultdict(list)
    texts: dict[str, list[str]] = {}
    for _ in range(rounds):
        for arm, extract in ARMS.items():
            begun = time.process_time()
            texts[arm] = [extract(html) for _, html, _ in pages]
            rates[arm].append(len(pages) / (time.process_time() - begun))
    wanted = [true or texts["trafilatura"][place] for place, (_, _, true) in enumerate(pages)]
    doubtful = [extraction.fast(html, FAST)[1] for _, html, _ in pages]
    result: dict[str, Any] = {
        "pages": len(pages),
        "characters": sum(len(html) for _, html, _ in pages),
        "doubtful": sum(doubtful) / len(pages),
        "empty": {arm: sum(not text for text in found) / len(pages) for arm, found in texts.items()},
    }
    for arm, found in texts.items():
        scores = [agreement(text, true) for text, true in zip(found, wanted, strict=True)]
        groups: dict[str, list[float]] = defaultdict(list)
        for (group, _, _), (_, _, f) in zip(pages, scores, strict=True):
            groups[group].append(f)
        result[arm] = {
            "pages_per_second": statistics.median(rates[arm]),
            "ratio_to_trafilatura": statistics.median(
                rate / base for rate, base in zip(rates[arm], rates["trafilatura"], strict=True)
            ),
            **{name: statistics.mean(column) for name, column in zip("PRF", zip(*scores, strict=True), strict=True)},
            "F_of_groups": {group: statistics.mean(values) for group, values in groups.items() if len(values) > 4},
        }
    return result


def memory(arm: str, folders: Sequence[str]) -> dict[str, int]:
    """Resident bytes of an arm in this process: the high-water mark, and growth from one pass to the next."""
    pages = real_pages(folders)
    sizes = []
    for _ in range(2):
        for _, html, _ in pages:
            ARMS[arm](html)
        sizes.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4096)
    return {"peak": peak_memory(), "growth": sizes[1] - sizes[0]}


def in_its_own_process(arm: str, folders: Sequence[str]) -> dict[str, int]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--memory", arm, "--pages", *folders]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return {str(name): int(value) for name, value in json.loads(lines[-1]).items()}


def measure(
    rounds: int = 3,
    each: int = 25,
    folders: Sequence[str] = FOLDERS,
    annotated: Path | None = None,
    segments: Path | None = None,
) -> dict[str, Any]:
    """Every figure that the module's docstring names, for `benchmarks/curate.py` and for a person."""
    known = known_pages(each)
    for extract in ARMS.values():
        extract(known[0][1])  # imports
    result: dict[str, Any] = {
        "versions": {name: version(name) for name in ("trafilatura", "Resiliparse", "lxml")},
        "rounds": rounds,
        "known": compare(known, rounds),
    }
    if real := real_pages(folders):
        result["real"] = compare(real, 1)
    if annotated is not None:
        result["annotated"] = compare(annotated_pages(annotated), rounds)
    if segments is not None:
        result["segments"] = compare_segments(segment_pages(segments))
    result["memory"] = {arm: in_its_own_process(arm, folders) for arm in ARMS}
    return result


def main() -> None:
    """Measures, prints and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--each", type=int, default=25, help="pages of every family")
    parser.add_argument("--pages", nargs="*", default=FOLDERS, help="folders with HTML files")
    parser.add_argument("--annotated", type=Path, help="folder of pages with a human's truth")
    parser.add_argument("--segments", type=Path, help="trafilatura's folder of tests, with evaldata.json")
    parser.add_argument("--memory", choices=ARMS, help="measure only this arm's memory")
    asked = parser.parse_args()
    if asked.memory:
        print(json.dumps(memory(asked.memory, asked.pages)))
        return
    result = {"machine": describe(), **measure(asked.rounds, asked.each, asked.pages, asked.annotated, asked.segments)}
    print(json.dumps(result, indent=1))
    RESULT.parent.mkdir(exist_ok=True)
    write_json(RESULT, result)


if __name__ == "__main__":
    main()
