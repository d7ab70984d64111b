"""The whole pipeline, WARC files to a deduplicated corpus, against datatrove with the same stages, on two processes.

    make bench                                             # an environment with the peers: build/bench
    build/bench/bin/python benchmarks/curate.py            # some 10 minutes on two quiet cores
    build/bench/bin/python benchmarks/curate.py --pages 500 --rounds 1

Pages are real HTML found on this machine, one in seven of them again with a few words edited. Each arm runs as a
process of its own, the arms in turn within a round; ratios are of rounds. Stages of both: addresses, main text,
language, repetitions, quality, MinHash in 14 bands of 8. datatrove's language filter wants to download its model, so
both use py3langid; its line rules and exact substrings (which need an outside program) are left out of both. The
second measure gives both the same extracted texts as JSON Lines, so that extraction is not in it. Times include each
arm's start. Target: at least 3 x datatrove's pages a second. Writes `benchmarks/results/curate.json`; extraction,
MinHash and exact substrings have benchmarks of their own beside this one.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "curate.json"
WORKERS = 2
LARGEST_PAGE = 300_000
STAGES = ("urls", "language", "repetitions", "quality", "near_duplicates")
ROOTS = ("/usr/share/doc", "/usr/share/doc-base", "/usr/local/share/doc")


def find_pages(roots: list[Path], count: int) -> list[Path]:
    """``count`` HTML files under the folders, chosen by a hash of their path."""
    found = [
        path
        for root in roots
        for path in root.rglob("*.html")
        if path.is_file() and 1000 < path.stat().st_size < LARGEST_PAGE
    ]
    ordered = sorted(found, key=lambda path: hashlib.sha1(str(path).encode()).digest())
    return ordered[:count]


def documents(paths: list[Path]) -> Iterator[tuple[str, bytes]]:
    """(address, HTML); every seventh page comes again at the end, with one word in fifty edited."""
    again = []
    for number, path in enumerate(paths):
        content = path.read_bytes()
        yield f"https://docs{number % 97}.example.org/{number}.html", content
        if number % 7 == 0:
            again.append((number, content))
    for number, content in again:
        draw = random.Random(number)
        words = content.decode("utf-8", "replace").split(" ")
        edited = [word if "<" in word or ">" in word or draw.random() > 0.02 else "edited" for word in words]
        yield f"https://copies.example.org/{number}.html", " ".join(edited).encode()


def prepare(folder: Path, paths: list[Path]) -> int:
    """Two WARC files and two files of JSON Lines of the same pages; returns how many pages."""
    from mickle.data.extraction import main_text
    from mickle.data.pages import decode
    from mickle.data.warc import write_warc

    pages = list(documents(paths))
    (folder / "warc").mkdir()
    (folder / "rows").mkdir()
    for part in range(WORKERS):
        chosen = pages[part::WORKERS]
        write_warc(folder / "warc" / f"{part}.warc.gz", chosen)
        with open(folder / "rows" / f"{part}.jsonl", "w", encoding="utf-8") as stream:
            for url, content in chosen:
                text = main_text(decode(content)).encode("utf-8", "replace").decode()
                stream.write(json.dumps({"text": text or "empty", "id": url, "metadata": {"url": url}}) + "\n")
    return len(pages)


def run_mickle(form: str, folder: Path, out: Path) -> dict[str, Any]:
    """Our arm, in this process."""
    from mickle import storage
    from mickle.config import validate
    from mickle.data.curate import Curate
    from mickle.events import ignore
    from mickle.step import execute

    settings = {
        "source": {"kind": form, "path": str(folder / form)},
        "stages": list(STAGES),
        "near_duplicates": {"bands": 14, "rows": 8},
        "workers": WORKERS,
    }
    done = execute(validate(Curate, settings), out / "corpus", ignore)
    card = storage.read_json(done / "card.json")
    return {"kept": card["kept"], "removed": {s: sum(r.values()) for s, r in card["removed"].items()}}


def run_datatrove(form: str, folder: Path, out: Path) -> dict[str, Any]:
    """The peer's arm, in this process and the ones it starts."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from datatrove.data import Document
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import (
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.extractors import Trafilatura
    from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter, LambdaFilter, URLFilter
    from datatrove.pipeline.readers import JsonlReader, WarcReader
    from datatrove.pipeline.writers import JsonlWriter

    from mickle.data.filters import language_of

    def english(document: Document) -> bool:
        code, probability = language_of(document.text)
        return code == "en" and probability >= 0.65

    read = WarcReader(str(folder / form)) if form == "warc" else JsonlReader(str(folder / form))
    extract = [Trafilatura(favour_precision=True, timeout=20)] if form == "warc" else []
    config = MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8)
    kept, work = str(out / "kept"), str(out / "minhash")
    steps = [
        [
            read, URLFilter(), *extract, LambdaFilter(english), GopherRepetitionFilter(), GopherQualityFilter(),
            JsonlWriter(kept),
        ],
        [JsonlReader(kept), MinhashDedupSignature(f"{work}/signatures", config=config)],
        [MinhashDedupBuckets(f"{work}/signatures", f"{work}/buckets", config=config)],
        [MinhashDedupCluster(f"{work}/buckets", f"{work}/remove", config=config)],
        [JsonlReader(kept), MinhashDedupFilter(f"{work}/remove"), JsonlWriter(str(out / "final"))],
    ]  # fmt: skip
    tasks = [WORKERS, WORKERS, 14, 1, WORKERS]
    for number, (pipeline, count) in enumerate(zip(steps, tasks)):
        executor = LocalPipelineExecutor(pipeline, tasks=count, workers=WORKERS, logging_dir=str(out / f"log{number}"))
        executor.run()
    return {"kept": _count(out / "final"), "before_duplicates": _count(out / "kept")}


def _count(folder: Path) -> int:
    total = 0
    for path in folder.glob("*.jsonl.gz"):
        with gzip.open(path) as lines:
            total += sum(1 for _ in lines)
    return total


def one(arm: str, form: str, folder: Path, out: Path) -> None:
    """Runs an arm and prints what came out, seconds, and the largest process's memory."""
    begun = time.perf_counter()
    found = (run_mickle if arm == "mickle" else run_datatrove)(form, folder, out)
    found["seconds"] = time.perf_counter() - begun
    usage = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    found["largest_process_mb"] = round(usage / 1024)
    print("RESULT " + json.dumps(found))


def measure(pages: int, rounds: int, roots: list[Path]) -> dict[str, Any]:
    """Pages a second of both arms with and without extraction, and the ratios of rounds."""
    paths = find_pages(roots, pages)
    if len(paths) < 100:
        raise SystemExit(f"only {len(paths)} HTML files under {', '.join(map(str, roots))}: name more with --roots")
    result: dict[str, Any] = {"workers": WORKERS, "stages": STAGES}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        result["pages"] = prepare(folder, paths)
        for form in ("warc", "rows"):
            runs: dict[str, list[dict[str, Any]]] = {"mickle": [], "datatrove": []}
            for round_ in range(rounds):
                for arm, found in runs.items():
                    with tempfile.TemporaryDirectory() as out:
                        command = [sys.executable, __file__, "--one", arm, form, str(folder), out]
                        done = subprocess.run(command, capture_output=True, text=True, check=False)
                    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
                    if not lines:
                        raise SystemExit(f"{arm} failed:\n{done.stderr[-3000:]}")
                    found.append(json.loads(lines[0].removeprefix("RESULT ")))
                    print(form, round_, arm, found[-1], file=sys.stderr)
            result["with extraction" if form == "warc" else "without extraction"] = _summary(runs, result["pages"])
    return result


def _summary(runs: dict[str, list[dict[str, Any]]], pages: int) -> dict[str, Any]:
    ratios = [b["seconds"] / a["seconds"] for a, b in zip(runs["mickle"], runs["datatrove"])]
    shown: dict[str, Any] = {
        "times_faster": round(statistics.median(ratios), 2),
        "ratios": [round(r, 2) for r in ratios],
    }
    for arm, found in runs.items():
        seconds = statistics.median(run["seconds"] for run in found)
        shown[arm] = {
            "pages_a_second": round(pages / seconds, 1),
            "largest_process_mb": max(run["largest_process_mb"] for run in found),
            **{name: value for name, value in found[-1].items() if name not in ("seconds", "largest_process_mb")},
        }
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--roots", type=Path, nargs="+", default=[Path(root) for root in ROOTS])
    parser.add_argument("--one", nargs=4, metavar=("ARM", "FORM", "PAGES", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        arm, form, folder, out = options.one
        one(arm, form, Path(folder), Path(out))
    else:
        from importlib.metadata import version

        from mickle.machine import describe
        from mickle.storage import write_json

        versions = {name: version(name) for name in ("datatrove", "trafilatura", "spacy")}
        result = {"machine": describe(), "versions": versions}
        result |= measure(options.pages, options.rounds, options.roots)
        print(json.dumps(result, indent=2))
        write_json(RESULT, result)


if __name__ == "__main__":
    main()
