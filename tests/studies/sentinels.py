"""One small cell of every study, whose numbers are recorded: what moves a study's numbers moves these.

    python tests/studies/sentinels.py [NAME ...]      # records them, for the versions of the studies as they stand

The record (``sentinels.json``) belongs to a version of its study. Where a change moves a number, either the change is
wrong, or the study's ``version`` is raised, its sentinel recorded anew, and its result run again or left stale.
Recording other numbers for the same cell under the same version is refused.

What the cells do not cover: sizes (each is less than a hundredth of a full one), arms and worlds that no cell names,
devices other than the CPU; and in the studies of compressed weights what their bases read: a base of seconds on a made
corpus stands in, with the size of the sources that a true one reads beside it. A cell that reads installed text is
compared only where the versions that it was recorded with are installed.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mickle import storage
from mickle.studies import base_model
from mickle.studies.declaration import Cell, Study, open_study
from mickle.studies.results import digest, version_read

RECORD = Path(__file__).with_name("sentinels.json")
# Relative tolerances. Of what was trained: processors add in other orders (seen between AVX-512 and none: up to 1.5e-4
# of a loss after some tens of steps), a wrong rate or mask moves the second or third digit.
CLOSED, TRAINED, MEASURED = 1e-6, 1e-3, 2e-2  # MEASURED: a rate found by trying, a distance near its end


@dataclass(frozen=True)
class Sentinel:
    """A cell as its study runs it at ``quick``, with smaller dials, and which of its measurements are held."""

    arm: str
    world: str
    values: dict[str, Any]
    measures: tuple[str, ...]
    setting: dict[str, Any] = field(default_factory=dict)
    tolerance: float = TRAINED
    tolerances: dict[str, float] = field(default_factory=dict)  # of single measurements
    reads: tuple[str, ...] = ()  # packages whose text the cell reads
    base: bool = False  # whether it needs a base decoder, for which a tiny one stands in

    def __str__(self) -> str:
        return f"{self.arm} in {self.world}"

    def cell(self, study: Study) -> Cell:
        """The cell; its seed is 0."""
        return Cell(self.arm, self.world, self.setting, 0, {**study.scales["quick"].values, **self.values})

    def versions(self) -> dict[str, str]:
        """What is installed of the packages that it reads."""
        return {name: version_read(name) for name in self.reads}

    def measure(self, study: Study) -> dict[str, Any]:
        """Run the cell; the measurements that are held."""
        with tempfile.TemporaryDirectory() as name, tiny_base(Path(name)) if self.base else nullcontext():
            work = Path(name) / "work"
            work.mkdir()
            measured = study.run_cell(self.cell(study), work)
        if self.base:
            measured["source_characters"] = sum(len(text) for _, text in base_model.source_texts())
        return {name: measured[name] for name in self.measures}


def entry(sentinel: Sentinel, study: Study) -> dict[str, Any]:
    """What is recorded of a cell."""
    return {
        "cell": str(sentinel),
        "dials": digest(asdict(sentinel.cell(study))),
        "reads": sentinel.versions(),
        "measured": sentinel.measure(study),
    }


def moved(sentinel: Sentinel, recorded: dict[str, Any], measured: dict[str, Any]) -> list[str]:
    """The measurements that are not the recorded ones, each in words; none where all are."""
    found = []
    for name in sentinel.measures:
        tolerance = sentinel.tolerances.get(name, sentinel.tolerance)
        before, now = (value if isinstance(value, list) else [value] for value in (recorded[name], measured[name]))
        close = [math.isclose(a, b, rel_tol=tolerance, abs_tol=1e-9) for a, b in zip(before, now)]
        if len(before) != len(now) or not all(close):
            found.append(f"{name}: {recorded[name]} -> {measured[name]}")
    return found


@contextmanager
def tiny_base(home: Path) -> Iterator[None]:
    """Bases of seconds in a cache of their own, on a made corpus; the task of ``qlora`` in one package's functions."""
    from mickle.data.records import Page, write_shards
    from mickle.studies import docstrings, qlora, spqr

    texts = [f"def function_{i}(x, y):\n    return x * {i} + y ** {i % 7}\n" * 12 for i in range(40)]
    pages = [Page(f"module_{i}", "sources", "", text) for i, text in enumerate(texts)]
    with storage.write_folder(home / "corpus", kind="corpus") as folder:
        write_shards(pages[:32], folder / "pages", Page)
        write_shards(pages[32:], folder / base_model.HELDOUT, Page)
    kept = (base_model.unrounded_nats, docstrings.described_functions, qlora.encoded, qlora.tuned, qlora.untuned)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home))
        patch.setattr(base_model, "corpus_folder", lambda: home / "corpus")
        patch.setattr(spqr, "corpus_folder", lambda: home / "corpus")
        patch.setattr(base_model, "all_processors", nullcontext)
        patch.setattr(docstrings, "PACKAGES", ("numba",))
        for function in kept:
            function.cache_clear()
        yield
        for function in kept:
            function.cache_clear()


NET = {"width": 32, "layers": 1, "heads": 2, "ffn_width": 48, "length": 32, "rows": 16}
BASE = {"base": {"name": "tiny", "parameters": 40_000, "vocabulary_size": 270, "sequence_length": 32,
                 "batch_tokens": 256, "steps": 12, "learning_rate": 4e-3}, "bases": 1, "heldout_pages": 4}  # fmt: skip
BYTES = ("python", "numpy", "torch", "pyarrow", "matplotlib")
LENGTHS = {"width": 32, "symbols": 4, "learning_rate": 0.01, "evaluate_every": 100, "test": 64, "validation": 64}
SENTINELS: dict[str, tuple[Sentinel, ...]] = {
    "doremi": (
        Sentinel("doremi", "planted", {"width": 32, "layers": 1, "length": 32, "steps": 16, "proxy_width": 16,
                 "proxy_layers": 1, "proxy_rows": 16, "proxy_steps": 16, "held_out_rows": 32},
                 ("mean_real", "mean_real_at_half", "worst_real", "mean_all", "weights"), reads=BYTES),
        Sentinel("reference", "natural", {"width": 32, "layers": 1, "length": 32, "steps": 4, "held_out_rows": 16},
                 ("mean_real", "weights"), reads=BYTES),
    ),
    "dropout_double_descent": (
        Sentinel("chosen", "isotropic", {"sizes": {"isotropic": (60, 95, 110, 200)}, "replicates": 2},
                 ("climb", "near_threshold", "at_largest", "rate"), tolerance=CLOSED),
        Sentinel("ridge", "features", {"sizes": {"features": (75, 150, 160, 225)}, "replicates": 1},
                 ("climb", "near_threshold", "at_largest", "rate"), tolerance=CLOSED),
        Sentinel("chosen", "digits_width", {"sizes": {"digits_width": (4, 16)}, "net_steps": 100, "net_replicates": 1},
                 ("near_threshold", "at_largest")),
    ),
    "dynamic_masking": (
        Sentinel("linear", "grammar", {**NET, "sentences": 2000, "steps": {"grammar": 32}, "half_runs": ("grammar",),
                 "held_out_rows": 64, "pairs": 8}, ("loss", "loss_at_half", "losses"), {"trial": 1}),
        Sentinel("subset", "docs", {**NET, "steps": {"docs": 24}, "half_runs": (), "packages": (), "vocabulary": 300,
                 "held_out_rows": 64}, ("loss",), {"trial": 1}, reads=("python", "tokenizers")),
    ),
    "mezo": (
        Sentinel("mezo", "k16", {"pretrain_steps": 60, "steps": 20, "test_documents": 200},
                 ("loss", "learning_rate", "memory", "journal_bytes"), {"place": 1},
                 tolerances={"learning_rate": MEASURED, "journal_bytes": MEASURED}),
        Sentinel("adam", "k512", {"pretrain_steps": 60, "adam_steps": 10, "test_documents": 200},
                 ("loss", "learning_rate", "memory"), {"place": 1}),
    ),
    "nope": (  # shares of 64 examples a length, while they are learned: one more or less is noise
        Sentinel("none", "rdc", {**LENGTHS, "steps": {"rdc": 100}, "layers": {"rdc": 1}, "longest": {"rdc": 4}},
                 ("in_distribution", "ood"), tolerance=0.08),
        Sentinel("rotary", "cmc", {**LENGTHS, "steps": {"cmc": 70}, "layers": {"cmc": 1}, "longest": {"cmc": 3}},
                 ("in_distribution", "exact"), tolerance=0.03),
    ),
    "qlora": (
        Sentinel("nf4-dq", "default", {**BASE, "steps": 6, "rows": 4, "heldout_examples": 16},
                 ("loss", "loss_before", "bits_per_weight", "source_characters"),
                 {"rate": 1}, reads=("python", "numba", "tokenizers"), base=True),
    ),
    "refinedweb": (
        Sentinel("refined", "default", {**NET, "pages": 300, "vocabulary": 300, "steps": 12, "windows": 8},
                 ("error", "bits_per_byte", "tokens", "documents", "kept_true", "truth_kept"),
                 reads=("python", "numpy", "tokenizers")),
    ),
    "sophia": (
        Sentinel("sophia-g", "pages", {**NET, "steps": 24, "held_out_rows": 32},
                 ("loss", "loss_at_half", "losses", "unclipped"), {"rate": 2, "gamma": 1.0}, reads=("python",)),
        Sentinel("sophia-h", "pages", {**NET, "steps": 12, "half_run": False, "held_out_rows": 32},
                 ("loss",), {"rate": 2, "gamma": 0.2}, reads=("python",)),
        Sentinel("adamw", "zipf-far", {"features": 20, "classes": 4, "examples": 300, "zipf_steps": 40},
                 ("left",), {"rate": 1, "beta2": 0.98}, tolerance=MEASURED),
    ),
    "spqr": (
        Sentinel("spqr-3", "planted", {"outputs": 64, "inputs": 64, "rows": 256},
                 ("error", "recall", "bits", "outliers")),
        Sentinel("spqr-4", "decoder", {**BASE, "calibration_windows": 8, "compared_windows": 2},
                 ("perplexity", "bits", "source_characters"), reads=("python", "tokenizers"), base=True),
    ),
    "token_crisis": (
        Sentinel("late", "many", {"steps": 32, "rows": 8, "length": 32, "epochs": {"many": 8}, "held_out_rows": 32,
                 "shapes": {"large": {"width": 32, "layers": 1, "heads": 2, "ffn_width": 48}}},
                 ("loss", "best_loss", "training_loss"), {"dropout": 0.25}, reads=("python",)),
        Sentinel("fresh", "few", {"steps": 8, "rows": 8, "length": 32, "epochs": {"few": 4}, "held_out_rows": 32,
                 "shapes": {"large": {"width": 32, "layers": 1, "heads": 2, "ffn_width": 48}}}, ("loss",),
                 reads=("python",)),
    ),
}  # fmt: skip


def record(names: list[str]) -> None:
    """Write the numbers of the studies named, or of all."""
    known = storage.read_json(RECORD) if RECORD.exists() else {}
    for name in names or SENTINELS:
        study = open_study(name)
        entries = [entry(sentinel, study) for sentinel in SENTINELS[name]]
        before = known.get(name, {"version": 0, "cells": []})
        if before["version"] == study.version:
            old = {(cell["cell"], cell["dials"], str(cell["reads"])): cell["measured"] for cell in before["cells"]}
            for sentinel, new in zip(SENTINELS[name], entries):
                key = new["cell"], new["dials"], str(new["reads"])
                if key in old and (changes := moved(sentinel, old[key], new["measured"])):
                    sys.exit(f"{name}, {sentinel}: {'; '.join(changes)}\nRaise the study's version first.")
        known[name] = {"version": study.version, "cells": entries}
        print(f"{name}, version {study.version}: {len(entries)} cells")
    storage.write_json(RECORD, dict(sorted(known.items())))


if __name__ == "__main__":
    record(sys.argv[1:])
