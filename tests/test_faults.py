"""Whichever change of the disk fails, alone or with all that follow, the same command then ends as a quiet run does.

`make faults` tries every call of every verb with both kinds of failure; without it each verb has one call tried.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from faults import Faults, Killed

from mickle import machine, storage, verbs
from mickle.errors import MickleError
from mickle.events import ignore
from mickle.planning import repeats
from mickle.step import Step, execute
from mickle.studies import results, runner, workers
from mickle.studies import study as verb_of_studies
from mickle.studies.declaration import Arm, Cell, Comparison, Measurements, Scale, Study

EVERY = int(os.environ.get("MICKLE_FAULTS_EVERY", "0"))  # every such call is tried; 0: one of each verb
REAL: dict[str, dict[str, Any]] = {
    "curate": {"source": {"kind": "files", "path": "pages"}, "workers": 1},
    "pretrain": {"data": "corpus", "size": 40_000, "steps": 4, "save_every": 2, "evaluate_every": 2},
    "evaluate": {"model": "model"},
    "sample": {"model": "model", "prompts": ["a"], "max_tokens": 4},
    "tune": {"model": "model", "data": "rows.jsonl", "steps": 2, "save_every": 1, "samples": 1},
    "compress": {"model": "model", "method": {"kind": "rtn"}, "evaluate": False},
    "export": {"model": "model", "format": {"kind": "gguf"}},
    "plan": {"data": "corpus"},
    "mix": {
        "data": "domains.parquet", "size": 36_000, "vocabulary_size": 280, "sequence_length": 16, "batch_tokens": 192,
        "steps": 4, "save_every": 2, "precision": "float32",
    },
    "study": {"name": "toy", "workers": 0},
}  # fmt: skip


def run_cell(cell: Cell, work: Path) -> Measurements:
    """The method halves the loss."""
    storage.write_text(work / "leftover", "of the cell")
    return {"loss": (1.0 if cell.arm == "method" else 2.0) + cell.seed, "budget": 10}


TOY = Study(
    name="toy", title="A toy", paper="0000.00000", claim="half the loss", budget_unit="steps", rule="at most 0.71",
    arms=(Arm("method", "halves", ({"rate": 1}, {"rate": 2})), Arm("baseline", "does not", ({"rate": 1}, {"rate": 2}))),
    worlds=("easy",),
    comparisons=(Comparison("all", "method", "baseline", "loss", 0.5, "table 1", "lower", "ratio", ("easy",), True),),
    scales={"quick": Scale(2), "full": Scale(5)}, run_cell=run_cell, tune_by="loss",
)  # fmt: skip


def quiet(step: Step, out: Path) -> tuple[str, list[str]]:
    """The digest of a run that nothing disturbs, and its changes of the disk."""
    with pytest.MonkeyPatch.context() as patch, Faults(patch, out.parent) as disk:
        return storage.content_digest(execute(step, out, ignore)), disk.calls


def goes_on_after(step: Step, out: Path, n: int, dead: bool, digest: str) -> None:
    """Refuse the n-th change of the disk, then run again in peace: it ends as if nothing had been."""
    with (
        pytest.MonkeyPatch.context() as patch,
        Faults(patch, out.parent, n, lasting=dead),
        pytest.raises((Killed, MickleError)) as caught,
    ):
        execute(step, out, ignore)
        raise Killed("the last call removes the lock, on which nothing depends")
    assert isinstance(caught.value, Killed) or caught.value.exit_code == 3, str(caught.value)
    if out.exists():
        storage.open_folder(out, check="hashes")
    execute(step, out, ignore)
    assert storage.open_folder(out, check="hashes").digest == digest
    assert not list(out.rglob(".tmp*"))


@pytest.mark.parametrize("dead", [True, False], ids=["all calls fail from then on", "one call fails"])
def test_a_step_goes_on_from_a_failure_at_any_call(toy: Any, tmp_path: Path, dead: bool) -> None:
    digest, calls = quiet(toy.Write(), tmp_path / "quiet" / "w")
    assert len(calls) > 40
    for n in range(1, len(calls) + 1):
        goes_on_after(toy.Write(), tmp_path / str(n) / "w", n, dead, digest)


@pytest.fixture
def place(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the verbs above read, and a machine whose clock stands: what two runs measure of it is the same."""
    from mickle.data.heldout import write_pages
    from mickle.data.records import Page

    monkeypatch.chdir(made)
    rows = (f'{{"prompt": "What is {i}?", "completion": "One more than {i - 1}."}}\n' for i in range(20))
    (made / "rows.jsonl").write_text("".join(rows))
    pages = [
        Page(f"https://{domain}/{i}", domain, "en", f"{domain} has {i} owls, {i * i} hens and one fox. " * 3)
        for i in range(30)
        for domain in ("words.org", "sums.net")
    ]
    write_pages(pages, made / "domains.parquet")
    still = SimpleNamespace(monotonic=lambda: 0.0, gmtime=lambda: None, strftime=lambda form, moment: "2026-11-28")
    for module in (results, workers, verb_of_studies):
        monkeypatch.setattr(module, "time", still)
    monkeypatch.setattr(results, "source_state", lambda: {"commit": "", "dirty": True})
    for module in (verb_of_studies, runner):
        monkeypatch.setattr(module, "code_digest", lambda study: "of 300 files, read for every cell")
    monkeypatch.setattr(machine, "peak_memory", lambda: 1 << 30)
    monkeypatch.setattr(repeats, "measured_speed", lambda parameters, text: repeats.Speed(1e9, 1_000_000))
    monkeypatch.setattr(verb_of_studies, "open_study", lambda *_: TOY)


def tried(verb: str, calls: int) -> list[tuple[int, bool]]:
    """Which calls fail, and whether all after them do."""
    if EVERY:
        return [(n, dead) for n in range(1, calls + 1, EVERY) for dead in (True, False)]
    return [(calls * (4 + list(REAL).index(verb)) // 14, True)]


@pytest.mark.parametrize("verb", REAL)
def test_every_verb_goes_on_from_a_failure(verb: str, place: None, tmp_path: Path) -> None:
    step = verbs.step_class(verb)(**REAL[verb])
    digest, calls = quiet(step, tmp_path / "quiet" / "out")
    cases, failed = tried(verb, len(calls)), []
    for number, (n, dead) in enumerate(cases, start=1):
        what = f"{verb}: {'all calls from' if dead else 'only call'} {n} of {len(calls)}, {calls[n - 1]}"
        try:
            goes_on_after(step, tmp_path / "again" / "out", n, dead, digest)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) or not EVERY:
                raise
            failed.append(f"{what}: {type(error).__name__}: {str(error)[:400]}")
        storage.remove(tmp_path / "again")
        if EVERY:
            print(f"{number} of {len(cases)}, {len(failed)} failed; {what}", file=sys.stderr, flush=True)
    assert not failed, "\n".join(failed)
