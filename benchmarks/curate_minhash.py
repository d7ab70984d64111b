"""MinHash of `mickle curate` against datatrove and rensa: speed, memory, and whether they find the same duplicates.

    python benchmarks/curate_minhash.py              # some 2 minutes on one quiet core
    python benchmarks/curate_minhash.py --rounds 3

Everything on one thread, the arms of a pair in turn in one process, ratios as medians of the rounds' own ratios. The
texts are the first 20,000 characters of each copyright file of a Debian machine (or of the files that `--texts` names):
real near-duplicates in plenty.

**Signature**: text to 112 minima (14 x 8, FineWeb's) by datatrove's own functions (`get_shingles`, `get_signature`;
spaCy splits the words) on a part of the texts, and by ours to band hashes. **Minima**: from the same hashed shingles,
by 128 and 9,000 functions, against rensa's matrix of digests and datasketch. rensa 0.5 seems not to compute 128
functions of each shingle but to deal the shingles out to 128 bins and look at each once: its minimizers are all
different and the variance of its estimate is under J(1-J)/k (inferred, its source was not read). No loop over functions
can keep up with that where shingles are many more than functions. `from_text` is the same with what a user has to do
first: rensa takes shingles as Python strings.
**Floor**: the paper's 9,000 functions on all texts, against the rate of the inner loop alone on data in the cache.
**Agreement**: pairs in one cluster, against pairs whose true similarity (all pairs, no hash functions) is at least 0.8,
and against datatrove's clusters; beside it ours against ours of other seeds, which is the luck of the draw: one pair of
0.6 joins two clusters or does not. **Memory**: how far each lifts its own process's resident high-water mark.

Targets: signature >= 50 x datatrove; minima >= 1.2 x rensa. Writes `benchmarks/results/curate_minhash.json`.
"""

import os

os.environ.update(RAYON_NUM_THREADS="1", OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")

import argparse
import importlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from glob import glob
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from mickle.data.near_duplicates import clusters, match_probability, signatures
from mickle.data.rules import NearDuplicates
from mickle.kernels import signatures as kernel
from mickle.machine import describe, peak_memory, reset_peak_memory
from mickle.storage import write_json

RESULT = Path(__file__).parent / "results" / "curate_minhash.json"
TEXTS = "/usr/share/doc/*/copyright"
CHARACTERS = 20_000
FINEWEB, PAPER = NearDuplicates(bands=14, rows=8), NearDuplicates()
PART = 100  # texts for datatrove, which takes over a second for them
EDGES = (0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 1.0)
ARMS = ("mickle", "datatrove", "rensa", "datasketch")


def peer(name: str) -> Any:
    """A peer's module."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise SystemExit(f"{error}: this benchmark compares with it; pip install 'mickle[bench]'") from None


def read_texts(pattern: str) -> list[str]:
    """The first characters of each file."""
    texts = [Path(file).read_text(errors="replace")[:CHARACTERS] for file in sorted(glob(pattern))]
    if len(texts) < PART:
        raise SystemExit(f"{len(texts)} files match {pattern!r}: at least {PART} are needed; name others by --texts")
    return texts


def timed(work: Callable[[], Any]) -> float:
    """Seconds of one call."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def rounds_of(works: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each, in turn, the order reversed in every other round; all are warmed up."""
    for work in works.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds):
        for name in list(works)[:: -1 if turn % 2 else 1]:
            seconds[name].append(timed(works[name]))
    return seconds


def ratio(slow: list[float], fast: list[float]) -> float:
    """How many times as long the first takes: median over the rounds."""
    return round(statistics.median(s / f for s, f in zip(slow, fast)), 3)


# -- what is timed ---------------------------------------------------------------------------------------------------


def datatrove_signer(settings: NearDuplicates) -> Callable[[str], list[list[int]] | None]:
    """Text to datatrove's minima by bucket; None for a text that it has no shingles of."""
    module = peer("datatrove.pipeline.dedup.minhash")
    config = module.MinhashConfig(n_grams=settings.shingle, num_buckets=settings.bands, hashes_per_bucket=settings.rows)
    step = module.MinhashDedupSignature(tempfile.mkdtemp(), config)

    def sign(text: str) -> list[list[int]] | None:
        found = step.get_shingles(text)
        return step.get_signature(found) if found.size else None

    return sign


def words_of(text: str) -> list[str]:
    """5-grams as strings, as rensa's users make them: the least that can be done."""
    words = text.lower().split()
    return [" ".join(words[first : first + 5]) for first in range(len(words) - 4)]


def measure_signature(texts: list[str], rounds: int) -> dict[str, Any]:
    """Megabytes of text a second to 112 minima, ours on one thread against datatrove's."""
    sign = datatrove_signer(FINEWEB)
    part = texts[:: max(1, len(texts) // PART)][:PART]
    works = {"mickle": lambda: signatures(part, FINEWEB), "datatrove": lambda: [sign(text) for text in part]}
    seconds = rounds_of(works, rounds)
    size = sum(len(text.encode()) for text in part) / 1e6
    rates = {f"{name}_megabytes_a_second": round(size / statistics.median(s), 2) for name, s in seconds.items()}
    return {"texts": len(part), **rates, "times_datatrove": ratio(seconds["datatrove"], seconds["mickle"])}


def measure_minima(sets: list[kernel.Hashes], count: int, rounds: int) -> dict[str, Any]:
    """Functions x shingles a second, in thousand millions, from hashed shingles."""
    rensa, datasketch = peer("rensa").RMinHash, peer("datasketch").MinHash
    a, b = kernel.functions(0, count)
    flat, offsets = np.concatenate(sets), np.cumsum([0] + [one.size for one in sets]).astype(np.uint64)
    few = sets[:20]  # datasketch is slow
    lists = [one.astype(np.uint32).tolist() for one in few]

    def by_datasketch() -> None:
        for one in lists:
            datasketch(num_perm=count, hashfunc=int).update_batch(one)

    works: dict[str, Callable[[], Any]] = {
        "mickle": lambda: [kernel.minima(one, a, b) for one in sets],
        "rensa": lambda: rensa.digest_matrix_from_flat_token_hashes(flat, offsets, count, 42),
    }
    if count <= 128:
        works["datasketch"] = by_datasketch
    seconds = rounds_of(works, rounds)
    sizes = dict.fromkeys(works, flat.size) | {"datasketch": sum(one.size for one in few)}
    rates = {
        f"{name}_giga_a_second": round(sizes[name] * count / statistics.median(s) / 1e9, 3)
        for name, s in seconds.items()
    }
    return {
        "functions": count,
        "shingles_a_text": round(flat.size / len(sets)),
        **rates,
        "times_rensa": ratio(seconds["rensa"], seconds["mickle"]),
    }


def measure_from_text(texts: list[str], rounds: int) -> dict[str, Any]:
    """Text to 128 minima: shingles as Python strings for rensa, made within and without the time taken."""
    rensa = peer("rensa").RMinHash
    settings = NearDuplicates(bands=16, rows=8)
    ready = [words_of(text) for text in texts]
    works: dict[str, Callable[[], Any]] = {
        "mickle": lambda: signatures(texts, settings),
        "rensa": lambda: rensa.digest_matrix_from_token_sets([words_of(text) for text in texts], 128, 42),
        "rensa_strings_ready": lambda: rensa.digest_matrix_from_token_sets(ready, 128, 42),
    }
    seconds = rounds_of(works, rounds)
    size = sum(len(text.encode()) for text in texts) / 1e6
    rates = {f"{name}_megabytes_a_second": round(size / statistics.median(s), 1) for name, s in seconds.items()}
    ratios = {f"times_{name}": ratio(seconds[name], seconds["mickle"]) for name in works if name != "mickle"}
    return {**rates, **ratios}


def measure_floor(texts: list[str], sets: list[kernel.Hashes], rounds: int) -> dict[str, Any]:
    """The paper's 9,000 functions from texts, and the inner loop alone on 512 shingles."""
    count = PAPER.bands * PAPER.rows
    a, b = kernel.functions(0, count)
    hot = np.concatenate(sets)[:512].copy()
    distinct = sum(one.size for one in sets)
    works: dict[str, Callable[[], Any]] = {
        "text": lambda: signatures(texts, PAPER),
        "hot": lambda: kernel.minima(hot, a, b),
    }
    seconds = rounds_of(works, rounds)
    size = sum(len(text.encode()) for text in texts) / 1e6
    hot_rate = hot.size * count / min(seconds["hot"])
    return {
        "functions": count,
        "lane_operations_a_shingle": 3 * count,  # multiply, add, minimum of 64 bits
        "distinct_shingles": distinct,
        "megabytes_a_second": round(size / statistics.median(seconds["text"]), 2),
        "giga_a_second": round(distinct * count / statistics.median(seconds["text"]) / 1e9, 2),
        "inner_loop_giga_a_second": round(hot_rate / 1e9, 2),
        "share_of_inner_loop": round(distinct * count / hot_rate / statistics.median(seconds["text"]), 3),
        "bytes_of_band_hashes_a_text": 8 * PAPER.bands,
    }


# -- agreement -------------------------------------------------------------------------------------------------------


def similarities(sets: list[kernel.Hashes]) -> np.ndarray:
    """True Jaccard similarity of all pairs, [N, N], by counting which sets hold each shingle."""
    ids = np.unique(np.concatenate(sets), return_inverse=True)[1]
    owner = np.repeat(np.arange(len(sets)), [one.size for one in sets])
    order = np.argsort(ids, kind="stable")
    common = np.zeros((len(sets), len(sets)), np.int64)
    for group in np.split(owner[order], np.flatnonzero(np.diff(ids[order])) + 1):
        if group.size > 1:
            common[np.ix_(group, group)] += 1
    sizes = np.array([one.size for one in sets])
    np.fill_diagonal(common, sizes)
    return common / np.maximum(1, sizes[:, None] + sizes[None, :] - common)


def pairs_of(labels: np.ndarray) -> set[tuple[int, int]]:
    """All pairs in one cluster."""
    groups = [np.flatnonzero(labels == label).tolist() for label in np.unique(labels)]
    return {pair for group in groups for pair in combinations(group, 2)}


def compared(found: set[tuple[int, int]], truth: set[tuple[int, int]]) -> dict[str, float]:
    """Share of the found pairs that are true, and of the true ones that are found."""
    both = len(found & truth)
    return {"precision": round(both / max(1, len(found)), 4), "recall": round(both / max(1, len(truth)), 4)}


def datatrove_labels(texts: list[str], settings: NearDuplicates) -> np.ndarray:
    """Clusters of datatrove's minima: equal buckets are edges."""
    sign = datatrove_signer(settings)
    columns = np.zeros((settings.bands, len(texts)), np.uint64)
    numbers: list[dict[tuple[int, ...], int]] = [{} for _ in range(settings.bands)]
    for place, text in enumerate(texts):
        for band, minima in enumerate(sign(text) or []):
            columns[band, place] = numbers[band].setdefault(tuple(minima), len(numbers[band]) + 1)
    return clusters(columns, len(texts))


def measure_agreement(texts: list[str], sets: list[kernel.Hashes]) -> dict[str, Any]:
    """Clusters of 14 x 8 and 450 x 20 against the true similarities, and 14 x 8 against datatrove's."""
    true = similarities(sets)
    upper = np.triu(np.ones_like(true, bool), 1)
    truth = {limit: set(zip(*(x.tolist() for x in np.nonzero(upper & (true >= limit))))) for limit in (0.7, 0.8)}
    found = {"datatrove_14x8": pairs_of(datatrove_labels(texts, FINEWEB))}
    result: dict[str, Any] = {"texts": len(texts), "pairs_from_0.8": len(truth[0.8])}
    for name, settings in (("mickle_14x8", FINEWEB), ("mickle_450x20", PAPER)):
        bands = signatures(texts, settings)
        labels = clusters(bands.T, len(texts))
        found[name] = pairs_of(labels)
        result[f"{name}_kept"] = int((labels == np.arange(len(texts))).sum())
        result[f"{name}_hits"] = hits(bands, true, upper, settings)
    for name, pairs in found.items():
        result[name] = {"pairs": len(pairs)} | {
            f"{kind}_{limit}": value
            for limit, pairs_true in truth.items()
            for kind, value in compared(pairs, pairs_true).items()
        }
    result["mickle_against_datatrove_14x8"] = compared(found["mickle_14x8"], found["datatrove_14x8"])
    again = [pairs_of(clusters(signatures(texts, FINEWEB, seed).T, len(texts))) for seed in range(1, 5)]
    result["mickle_against_its_other_seeds_14x8"] = [
        {"pairs": len(one), **compared(found["mickle_14x8"], one)} for one in again
    ]
    return result


def hits(bands: kernel.Hashes, true: np.ndarray, upper: np.ndarray, settings: NearDuplicates) -> list[dict[str, float]]:
    """By true similarity: pairs, the share that meets in a band, and the mean of what the curve says."""
    meet = np.array([(bands == one).any(axis=1) & (one != 0).any() for one in bands])
    found = []
    for low, high in zip(EDGES, [*EDGES[1:], 2.0]):
        inside = upper & (true >= low) & (true < high)
        if inside.any():
            curve = np.mean([match_probability(s, settings.bands, settings.rows) for s in true[inside]])
            share = round(float(meet[inside].mean()), 4)
            found.append({"from": low, "pairs": int(inside.sum()), "met": share, "curve": round(float(curve), 4)})
    return found


# -- memory ----------------------------------------------------------------------------------------------------------


def peak_bytes(arm: str, texts: list[str]) -> int:
    """How far signing the texts by 112 or 128 functions lifts this process's resident high-water mark."""
    if arm == "mickle":
        work: Callable[[list[str]], Any] = lambda part: signatures(part, FINEWEB)  # noqa: E731
    elif arm == "datatrove":
        sign = datatrove_signer(FINEWEB)
        work = lambda part: [sign(text) for text in part]  # noqa: E731
    elif arm == "rensa":
        rensa = peer("rensa").RMinHash
        work = lambda part: rensa.digest_matrix_from_token_sets([words_of(t) for t in part], 128, 42)  # noqa: E731
    else:
        datasketch = peer("datasketch").MinHash
        work = lambda part: [  # noqa: E731
            datasketch(num_perm=128).update_batch([gram.encode() for gram in words_of(text)]) for text in part
        ]
    work(texts[:3])  # libraries loaded, code compiled
    reset_peak_memory()
    before = peak_memory()
    work(texts)
    return peak_memory() - before


def measure_memory(pattern: str) -> dict[str, float]:
    """Megabytes of each arm, in a process of its own; all hold the texts before the mark."""
    found = {}
    for arm in ARMS:
        command = [sys.executable, __file__, "--peak", arm, "--texts", pattern]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found[f"{arm}_megabytes"] = round(int(output.split()[-1]) / 1e6, 1)
    return found


def measure(rounds: int, pattern: str = TEXTS) -> dict[str, Any]:
    """All parts, with the versions of the peers."""
    for name in ARMS[1:]:
        peer(name)
    texts = read_texts(pattern)
    sets = [one for text in texts if (one := np.unique(kernel.shingles(text, 5))).size]
    return {
        "versions": {name: version(name) for name in ARMS[1:]},
        "texts": {"count": len(texts), "bytes": sum(len(text.encode()) for text in texts)},
        "signature": measure_signature(texts, rounds),
        "minima": [measure_minima(sets, 128, rounds), measure_minima(sets[:200], 9000, rounds)],
        "from_text": measure_from_text(texts, rounds),
        "floor": measure_floor(texts, sets, rounds),
        "agreement": measure_agreement(texts, [np.unique(kernel.shingles(text, 5)) for text in texts]),
        "memory": measure_memory(pattern),
    }


def main() -> None:
    """Measure, print, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--texts", default=TEXTS, help="files to compare on, as a pattern")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--peak", choices=ARMS, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.peak:
        print(peak_bytes(chosen.peak, read_texts(chosen.texts)))
        return
    result = {"machine": describe(), **measure(chosen.rounds, chosen.texts)}
    print(json.dumps(result, indent=2))
    write_json(chosen.out, result)


if __name__ == "__main__":
    main()
