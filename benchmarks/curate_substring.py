"""Repeated text by hashed windows against divsufsort and, where it is built, the paper's own program.

    python benchmarks/curate_substring.py                               # some 2 minutes on two quiet cores
    python benchmarks/curate_substring.py --rounds 1 --megabytes 4
    python benchmarks/curate_substring.py --rust target/release/dedup_dataset

On the same bytes, the standard library's sources: the whole search for spans of 100 bytes ("spans"). Peers, both by
suffix arrays: pydivsufsort (with its Kasai pass and numpy for the spans), and deduplicate-text-datasets, whose figures
include its files. Every measurement is a process of its own that warms up on little first; the order turns
round in each round; figures are medians over rounds, ratios medians of the rounds' ratios. "words" is what a user
gets: 50 word-like pieces, texts in, characters out, scratch files and all; "bytes, 2 threads" the same with
bytes for pieces. Memory is the process's peak less what it had before, in bytes per byte of text; the program's is
the peak of its largest process. Peers that are not there are left out. Writes
`benchmarks/results/curate_substring.json`.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

RESULT = Path(__file__).parent / "results" / "curate_substring.json"
LENGTH = 100  # bytes: 50 tokens of the paper
WARM = 200_000  # bytes to load compiled code with

SPANS = ("mickle spans", "divsufsort spans", "rust spans")
OTHERS = ("bytes, 2 threads", "words, 1 thread", "words, 2 threads")
Answer = Any  # what is compared between peers: spans [n, 2], or nothing


def write_corpus(path: Path, size: int) -> None:
    """The sources of the standard library as UTF-8, one after another with a zero byte between, cut at ``size``."""
    written = 0
    with path.open("wb") as file:
        for source in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
            if written < size and "site-packages" not in source.parts:
                text = source.read_text(encoding="utf-8", errors="ignore").replace("\0", "")
                written += file.write(text.encode()[: size - written] + b"\0")


def mickle_spans(path: Path) -> Answer:
    from mickle.kernels.repeated_windows import repeated, spans

    tokens = np.fromfile(path, dtype=np.uint8)
    others = repeated(tokens, LENGTH)
    others += 1
    return spans(others, 0, len(tokens), LENGTH, False)[:, :2]


def divsufsort_spans(path: Path) -> Answer:
    from pydivsufsort import divsufsort, kasai

    tokens = np.fromfile(path, dtype=np.uint8)
    order = divsufsort(tokens)
    alike = kasai(tokens, order)[:-1] >= LENGTH
    found = np.unique(np.concatenate([order[:-1][alike], order[1:][alike]])).astype(np.int64)
    return merged(found)


def merged(found: np.ndarray) -> np.ndarray:
    """Sorted starts of windows as spans [n, 2]."""
    opens = np.ones(len(found), bool)
    opens[1:] = found[1:] > found[:-1] + LENGTH
    closes = np.roll(opens, -1)
    return np.stack([found[opens], found[closes] + LENGTH], axis=1)


def mickle_threads(path: Path, threads: int) -> Answer:
    """Bytes as documents of their own, in parts of a scratch folder: two parts on two threads."""
    from mickle.data.repeated_spans import find_spans
    from mickle.data.repeated_text import RepeatedText

    documents = (np.frombuffer(one, np.uint8) for one in path.read_bytes().split(b"\0"))
    with tempfile.TemporaryDirectory() as scratch:
        for _ in find_spans(documents, RepeatedText(length=LENGTH), Path(scratch), threads):
            pass


def words(path: Path, threads: int) -> Answer:
    from mickle.data.repeated_spans import find_repeated
    from mickle.data.repeated_text import RepeatedText

    texts = (one.decode(errors="ignore") for one in path.read_bytes().split(b"\0"))
    with tempfile.TemporaryDirectory() as scratch:
        for _ in find_repeated(texts, RepeatedText(), Path(scratch), threads):
            pass


def run_rust(rust: Path, command: str, **options: Any) -> str:
    """Output of one command of the program."""
    flags = [str(f) for name, value in options.items() for f in ("--" + name.replace("_", "-"), value)]
    done = subprocess.run([str(rust), command, *flags], check=True, capture_output=True, text=True)
    return done.stdout


def rust_spans(path: Path, rust: Path) -> Answer:
    run_rust(rust, "make", data_file=path)
    return rust_collect(path, rust)


def rust_collect(path: Path, rust: Path) -> np.ndarray:
    cache = path.parent / "cache"
    run_rust(rust, "self-similar", data_file=path, length_threshold=LENGTH, cache_dir=cache, num_threads=1)
    out = run_rust(rust, "collect", data_file=path, cache_dir=cache, length_threshold=LENGTH)
    return np.array([line.split() for line in out.split("out\n")[1].split("\n") if line], dtype=np.int64)


def subject(name: str, rust: Path | None) -> Callable[[Path], Answer]:
    """The function that is measured under ``name``."""
    plain: dict[str, Callable[[Path], Answer]] = {
        "mickle spans": mickle_spans,
        "divsufsort spans": divsufsort_spans,
        "bytes, 2 threads": lambda path: mickle_threads(path, 2),
        "words, 1 thread": lambda path: words(path, 1),
        "words, 2 threads": lambda path: words(path, 2),
    }
    if rust:
        plain["rust spans"] = lambda path: rust_spans(path, rust)
    return plain[name]


def measure_here(name: str, corpus: Path, rust: Path | None) -> dict[str, Any]:
    """Runs one subject in this process: seconds, peak memory in bytes, and a number that stands for its spans."""
    run = subject(name, rust)
    with tempfile.TemporaryDirectory() as folder:
        small, whole = Path(folder, "small"), Path(folder, "whole")
        shutil.copy(corpus, whole)
        if not name.startswith("rust"):
            small.write_bytes(corpus.read_bytes()[:WARM])
            run(small)
        who = resource.RUSAGE_CHILDREN if name.startswith("rust") else resource.RUSAGE_SELF
        before = resource.getrusage(who).ru_maxrss
        start = time.perf_counter()
        spans = run(whole)
        seconds = time.perf_counter() - start
    peak = (resource.getrusage(who).ru_maxrss - before) * 1024
    digest = None if spans is None else [len(spans), int((spans[:, 1] - spans[:, 0]).sum()), int(spans.sum())]
    return {"seconds": seconds, "peak": peak, "spans": digest}


def measure(rounds: int, megabytes: float = 16, rust: Path | None = None) -> dict[str, Any]:
    """All subjects that are there, ``rounds`` times; see the module."""
    peers = {"pydivsufsort": _version("pydivsufsort"), "rust": "given" if rust else None}
    missing = {"divsufsort": peers["pydivsufsort"] is None, "rust": rust is None}
    names = [n for n in SPANS + OTHERS if not missing.get(n.split()[0], False)]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder, "corpus")
        write_corpus(corpus, int(megabytes * 1e6))
        size = corpus.stat().st_size
        for turn in range(rounds):
            for name in names if turn % 2 == 0 else names[::-1]:
                command = [sys.executable, __file__, "--one", name, "--corpus", str(corpus)]
                command += ["--rust", str(rust)] if rust else []
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                runs[name].append(json.loads(done.stdout))
    figures = {
        name: {
            "MB/s": round(size / 1e6 / statistics.median(run["seconds"] for run in found), 2),
            "bytes of memory per byte": round(statistics.median(run["peak"] for run in found) / size, 1),
        }
        for name, found in runs.items()
    }
    return {
        "bytes": size,
        "rounds": rounds,
        "peers": peers,
        "figures": figures,
        "times as fast as the peer": {
            f"{SPANS[0]} / {peer}": round(_ratio(runs[peer], runs[SPANS[0]]), 2) for peer in SPANS[1:] if peer in runs
        },
        "same spans": len({str(run["spans"]) for n in SPANS if n in runs for run in runs[n]}) == 1,
        "spans": runs["mickle spans"][0]["spans"],
    }


def _ratio(slower: list[dict[str, Any]], faster: list[dict[str, Any]]) -> float:
    return statistics.median(a["seconds"] / b["seconds"] for a, b in zip(slower, faster, strict=True))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def main() -> None:
    """Measures and writes the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=float, default=16)
    parser.add_argument("--rust", type=Path, help="built dedup_dataset of google-research")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--corpus", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure_here(arguments.one, arguments.corpus, arguments.rust)))
        return
    found = measure(arguments.rounds, arguments.megabytes, arguments.rust)
    RESULT.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
