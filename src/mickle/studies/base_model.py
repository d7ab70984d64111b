"""Base decoders for the studies of compressed weights: trained by Mickle itself, once, and kept.

A study of 4-bit weights needs a base that has learnt so much that rounding hurts: weights that still resemble their
random start lose nothing in 3 bits, and a pass with them proves nothing. So each base is a small decoder that has read
many tokens for each of its parameters, of the sources of Python's standard library, docstrings and comments included.

    folder = base_folder(SMALL, seed=0)     # trains it, or finds it
    pages = heldout_pages()                 # modules whose source no base has read

Bases stand in the user's cache (``$XDG_CACHE_HOME`` or ``~/.cache``, ``mickle/bases``), each named by the hash of all
that it depends on. The verbs' own steps make them, so a killed training goes on and a finished one is found whole;
processes that ask for the same base at once wait for the one that makes it. ``python -m mickle.studies.base_model``
makes what the studies need at full scale.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mickle import machine
from mickle.data import installed
from mickle.data.records import Page, read_shards, write_shards
from mickle.errors import LockedError
from mickle.events import Emit, Noted, ignore
from mickle.step import Step, execute, identity_hash

if TYPE_CHECKING:
    from torch import nn

    from mickle.evaluation.texts import ScoredText

SKIPPED = installed.SITE | {"test", "tests", "idle_test"}
HELD_OUT_OF = 10  # one module in so many is never trained on
HELDOUT = "heldout"
PAGE_CHARACTERS = 6000  # of a held-out page that are measured
LARGEST_FILE = 1 << 19  # bytes; above it are tables, not programs
SECONDS_BETWEEN_TRIES = 1.0  # while another process makes the base


@dataclass(frozen=True)
class Base:
    """What is trained: the settings of a pretraining that decide its size and length."""

    name: str
    parameters: int
    vocabulary_size: int
    sequence_length: int
    batch_tokens: int
    steps: int
    learning_rate: float


SMALL = Base("small", 500_000, 1024, 256, 4096, 500, 4e-3)
LARGE = Base("large", 25_000_000, 8192, 512, 32768, 20000, 1e-3)  # for one GPU
FULL_BASES = 5  # as many as the studies have seeds
FULL = Base("full", 500_000, 1024, 256, 4096, 1500, 4e-3)


def base_folder(base: Base, seed: int, emit: Emit = ignore) -> Path:
    """The model folder of a base; trained if it is not there, which takes minutes."""
    return made(base_step(base, seed), f"{base.name}-{seed}", emit)


def base_step(base: Base, seed: int) -> Step:
    """The pretraining that makes a base."""
    from mickle.training.pretrain import Pretrain

    return Pretrain(
        data=corpus_folder(),
        size=base.parameters,
        vocabulary_size=base.vocabulary_size,
        sequence_length=base.sequence_length,
        batch_tokens=base.batch_tokens,
        steps=base.steps,
        learning_rate=base.learning_rate,
        heldout_share=0,  # whole modules are held out here
        weights="last",
        save_every=max(1, base.steps // 10),
        seed=seed,
    )


@cache
def corpus_folder() -> Path:
    """The corpus folder of :class:`SourceCorpus`, made if it is not there."""
    return made(SourceCorpus(), "corpus")


def heldout_pages() -> list[Page]:
    """Sources of the modules that no base has read."""
    return list(read_shards(corpus_folder() / HELDOUT, Page))


def measured_pages(count: int) -> list[Page]:
    """Beginnings of ``count`` held-out pages, chosen by a hash of their text."""
    ranked = sorted(heldout_pages(), key=lambda page: hashlib.sha256(page.text.encode("utf-8", "replace")).digest())
    return [replace(page, text=page.text[:PAGE_CHARACTERS]) for page in ranked[:count]]


Nats = tuple[tuple[float, ...], tuple[int, ...]]  # of each page: the sum over its tokens, and how many they are


def page_nats(model: nn.Module, folder: Path, count: int) -> Nats:
    """How a model predicts ``count`` held-out pages; ``folder`` has its tokenizer."""
    from mickle.data.tokenizer import open_text_tokenizer
    from mickle.evaluation.loss import score

    config: Any = model.config
    length = int(config.max_length)  # tokens that a base was trained to read at a time
    pages = measured_pages(count)
    scored = score(model, open_text_tokenizer(folder), pages, length=length, stride=length)
    return tuple(float(page.nats.sum()) for page in scored), tuple(len(page.nats) for page in scored)


@cache
def unrounded_nats(folder: Path, count: int) -> Nats:
    """The same by the base as it was trained."""
    from mickle.models.folder import open_model

    return page_nats(open_model(folder), folder, count)


def rounding(folder: Path, model: nn.Module, pages: int) -> dict[str, float]:
    """What rounding the base costs before any tuning, on held-out modules: nats a token, and how sure that is.

    ``rounding_z`` is the mean difference to the unrounded base over its standard error over pages.
    """
    plain, counts = unrounded_nats(folder, pages)
    nats, _ = page_nats(model, folder, pages)
    differences = (np.array(nats) - np.array(plain)) / np.mean(counts)
    error = float(differences.std(ddof=1)) / math.sqrt(len(differences))
    mean = float(differences.mean())
    return {
        "base_loss": sum(nats) / sum(counts),
        "rounding_cost": mean,
        "rounding_z": mean / error if error > 0 else 0.0,
    }


def differences(folder: Path, model: nn.Module, windows: int) -> dict[str, float]:
    """How else a model differs from its base: KL divergence (nats a token) and share of likeliest tokens changed."""
    from mickle.evaluation import comparison, paired
    from mickle.models.folder import open_model

    texts = held_out_windows(folder, windows)
    sums = paired.compare(open_model(folder), model, texts, length=len(texts[0].tokens) - 1, emit=ignore)
    found = comparison.differences(sums)
    return {"divergence": found["kl"], "changed": found["changed"]}


@cache
def held_out_windows(folder: Path, windows: int) -> list[ScoredText]:
    """Beginnings of held-out pages, each as many tokens as a base reads and the next one."""
    from mickle.data.tokenizer import open_text_tokenizer
    from mickle.evaluation.texts import ScoredText
    from mickle.models.folder import describe

    length = describe(folder).longest
    texts = [page.text for page in measured_pages(1000)]
    documents = open_text_tokenizer(folder).encode_documents(texts)
    long = [document[: length + 1] for document in documents if len(document) > length]
    return [ScoredText(tokens, np.arange(len(tokens)) > 0, 0) for tokens in long[:windows]]


def made(step: Step, name: str, emit: Emit = ignore) -> Path:
    """The finished folder of a step in the cache. Where another process is at it, its end is waited for."""
    out = bases_home() / f"{name}-{identity_hash(step.identity())}"
    out.parent.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            with all_processors():
                return execute(step, out, emit)
        except LockedError:  # of a process that dies the lock is gone, and its work is gone on with here
            time.sleep(SECONDS_BETWEEN_TRIES)


def bases_home() -> Path:
    """Where bases are kept."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(given) if given else Path.home() / ".cache") / "mickle" / "bases"


@contextmanager
def all_processors() -> Iterator[None]:
    """Let torch use every processor for a while: a study's workers have one thread, and all wait for the base."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(machine.cores())
    try:
        yield
    finally:
        torch.set_num_threads(before)


class SourceCorpus(Step):
    """The sources of the standard library's modules as pages, some modules held out."""

    kind: ClassVar[str] = "corpus"

    def fingerprint(self) -> dict[str, Any]:
        """The sources' content in one word."""
        digest = hashlib.sha256()
        for name, text in source_texts():
            digest.update(f"{name}\n{text}".encode("utf-8", "replace"))
        return {"sources": digest.hexdigest()}

    def run(self, work: Path, emit: Emit) -> dict[str, Any]:
        """Write ``pages`` for training and ``heldout``."""
        sources = [Page(name, "sources", "", text) for name, text in source_texts()]
        training = [page for page in sources if not held_out(page.url)]
        heldout = [page for page in sources if held_out(page.url)]
        counts = {
            "pages": write_shards(training, work / "pages", Page),
            "heldout": write_shards(heldout, work / HELDOUT, Page),
        }
        emit(Noted(f"{counts['pages']:,} pages to train on, {counts['heldout']:,} held out"))
        return counts


def source_texts() -> Iterator[tuple[str, str]]:
    """Dotted name and source of every module of the standard library, in order; tests and tables are left out."""
    root = installed.package_folder(installed.STDLIB)
    for path in installed.package_files(installed.STDLIB, SKIPPED):
        text = "" if path.stat().st_size > LARGEST_FILE else path.read_bytes().decode("utf-8", "replace")
        if text.strip():
            yield installed.module_name(path.relative_to(root)), text


def held_out(module: str) -> bool:
    """Whether a module is never trained on; it follows from its name alone."""
    return installed.held_out(module, HELD_OUT_OF)


def main() -> None:
    """Make every base of the full scale, and say where it is."""
    for seed in range(FULL_BASES):
        print(base_folder(FULL, seed))


if __name__ == "__main__":
    main()
