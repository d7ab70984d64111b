from __future__ import annotations

import io
import json
import math
import os
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from faults import Faults, Killed

from mickle.errors import UsageError
from mickle.events import (
    Console,
    Evaluated,
    JsonLines,
    Noted,
    Progressed,
    Saving,
    Started,
    Trained,
    Warned,
    as_warnings,
    several,
)
from mickle.trackers import Tracker

EVENTS = [Trained(s, 2.0 / s, 0.1, 1.0, 10 * s, 0.5 * s, {}) for s in (1, 2, 3)]


def test_metrics_hold_no_times_and_rewind_to_a_step(tmp_path: Path) -> None:
    sink = JsonLines(tmp_path / "m.jsonl")
    for event in [*EVENTS, Evaluated(3, {"loss": 1.0})]:
        sink(event)
    whole = (tmp_path / "m.jsonl").read_text()
    assert "seconds" not in whole
    assert [json.loads(line)["step"] for line in whole.splitlines()] == [1, 2, 3, 3]
    with open(tmp_path / "m.jsonl", "a") as stream:
        stream.write('{"event": "trai')  # cut by a kill
    sink.rewind(2)
    assert [json.loads(line)["step"] for line in (tmp_path / "m.jsonl").read_text().splitlines()] == [1, 2]
    for event in [EVENTS[2], Evaluated(3, {"loss": 1.0})]:
        sink(event)
    assert (tmp_path / "m.jsonl").read_text() == whole


def test_a_step_s_figures_have_the_digits_of_float32_and_an_evaluation_s_have_all(tmp_path: Path) -> None:
    sink = JsonLines(tmp_path / "m.jsonl")
    third = float(np.float32(1 / 3))
    sink(Trained(1, third, 1 / 3, math.inf, 10**9, 0.5, {"share": third}))
    sink(Evaluated(1, {"loss": 1 / 3}))
    trained, evaluated = (json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines())
    assert (trained["learning_rate"], trained["gradient_norm"], trained["tokens"]) == (0.333333333, math.inf, 10**9)
    assert np.float32(trained["loss"]) == np.float32(trained["extra"]["share"]) == np.float32(third)
    assert evaluated["values"] == {"loss": 1 / 3}


def test_a_kill_while_metrics_are_rewound_loses_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = JsonLines(tmp_path / "m.jsonl")
    for event in EVENTS:
        sink(event)
    whole = (tmp_path / "m.jsonl").read_text()
    for n in range(1, 10):
        with monkeypatch.context() as patch, Faults(patch, tmp_path, n, lasting=True) as disk, suppress(Killed):
            sink.rewind(2)
        if len(disk.calls) < n:
            break
        assert (tmp_path / "m.jsonl").read_text() in (whole, "".join(whole.splitlines(keepends=True)[:2]))
        (tmp_path / "m.jsonl").write_text(whole)
    assert n > 4


def test_metrics_are_durable_before_the_checkpoint_that_counts_on_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink, synced = JsonLines(tmp_path / "m.jsonl"), []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    sink(Saving(0))
    for event in [*EVENTS, Saving(3)]:
        sink(event)
    assert synced == [str(tmp_path / "m.jsonl")]


def test_console_without_a_terminal_prints_plain_lines() -> None:
    stream = io.StringIO()
    console = Console(stream, every=0.0)
    for event in [
        Started("training", 3, "steps"),
        *EVENTS,
        Warned("beware [of] brackets"),
        Noted("n"),
        Started("reading", 0, "pages"),
        Progressed(5, "half"),
    ]:
        console(event)
    console.close()
    said = stream.getvalue()
    assert "training: 3 steps" in said
    assert "loss 2.000" in said
    assert "20 tokens/s" in said
    assert "beware [of] brackets" in said
    assert "5 pages" in said
    assert "\x1b" not in said


def test_the_console_obeys_no_text_that_it_shows() -> None:
    stream = io.StringIO()
    console = Console(stream)
    for event in (Started("x\x1b[2J", 0, "y"), Warned("\x1b[31mred"), Noted("\x9b\u202ex")):
        console(event)
    assert stream.getvalue().splitlines() == [r"x\x1b[2J", r"warning: \x1b[31mred", r"  \x9b\u202ex"]


def test_warnings_are_said_to_the_quiet_and_to_callers_from_python() -> None:
    stream = io.StringIO()
    for event in (Started("training", 3, "steps"), *EVENTS, Noted("n"), Warned("beware")):
        Console(stream, every=0.0, quiet=True)(event)
    assert stream.getvalue() == "warning: beware\n"
    with pytest.warns(UserWarning, match="beware"):
        as_warnings(Warned("beware"))
    as_warnings(Noted("n"))


def test_several_readers_hear_all() -> None:
    first: list[object] = []
    second: list[object] = []
    several(first.append, second.append)(EVENTS[0])
    assert first == second == [EVENTS[0]]


def test_tensorboard_reads_the_same_events(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    sink = Tracker("tensorboard", tmp_path)
    for event in [*EVENTS, Evaluated(3, {"heldout_loss": 1.5})]:
        sink(event)
    sink.close()
    read = accumulator.EventAccumulator(str(tmp_path))
    read.Reload()
    assert next((scalar.step, scalar.value) for scalar in read.Scalars("train/loss")) == (1, 2.0)
    assert read.Scalars("heldout/heldout_loss")[0].value == 1.5


class Told:
    """Stands for wandb or trackio: keeps what it is told."""

    def __init__(self) -> None:
        self.runs: list[tuple[dict[str, Any], list[dict[str, float]]]] = []

    def init(self, **given: Any) -> Any:
        figures: list[dict[str, float]] = []
        self.runs.append((given, figures))

        def log(values: dict[str, float], step: int | None = None) -> None:
            figures.append(values if step is None else values | {"step": step})

        self.finish = lambda: figures.append({})  # trackio's; W&B's run has its own
        return SimpleNamespace(log=log, finish=lambda: figures.append({}), define_metric=lambda *_, **__: None)

    Settings, __spec__ = staticmethod(dict), object()


@pytest.mark.parametrize(("name", "asked"), [("wandb", {"mode": "offline"}), ("trackio", {"auto_log_cpu": False})])
def test_a_tracker_has_a_run_for_each_training_and_sends_nothing(
    name: str, asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, told := Told())  # type: ignore[misc]
    for variable in ("WANDB_ERROR_REPORTING", "TRACKIO_DIR"):
        monkeypatch.setenv(variable, "before")
    monkeypatch.setenv("TRACKIO_SPACE_ID", "someone/space")
    sink = Tracker(name, tmp_path)
    for event in 2 * [Started("training", 3, "steps"), *EVENTS, Evaluated(3, {"heldout_loss": 1.5})]:
        sink(event)
    sink.close()
    assert len(told.runs) == 2
    for given, figures in told.runs:
        assert asked.items() <= given.items()
        assert figures[0] == {"train/loss": 2.0, "train/learning_rate": 0.1, "train/gradient_norm": 1.0, "step": 1}
        assert figures[-2:] == [{"heldout/heldout_loss": 1.5, "step": 3}, {}]
    sent = "TRACKIO_SPACE_ID" in os.environ if name == "trackio" else os.environ["WANDB_ERROR_REPORTING"] != "false"
    assert not sent
    monkeypatch.setitem(sys.modules, name, None)  # as where it is not installed
    with pytest.raises(UsageError, match="is not installed"):
        Tracker(name, tmp_path)
