"""Verbs that train give the losses of one process when torchrun starts two, and end as the first of them ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_distributed import together
from test_mix import SMALL as SMALL_MIX
from test_mix import corpus as domains  # noqa: F401
from test_pretrain import SMALL, corpus  # noqa: F401

from mickle import storage
from mickle.data.domains import read_weights
from mickle.errors import MickleError
from mickle.events import ignore
from mickle.models.folder import open_model
from mickle.step import Step, execute
from mickle.training import distributed
from mickle.training.mix import Mix
from mickle.training.pretrain import Pretrain
from mickle.tuning.tune import Tune

LENGTH = {"steps": 4, "evaluate_every": 2, "save_every": 2, "precision": "float32"}


def losses(metrics: Path) -> list[float]:
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    return [line["loss"] if line["event"] == "trained" else line["values"]["heldout_loss"] for line in lines]


def shared(steps: list[tuple[Step, Path]], folder: Path) -> list[list[str]]:
    """What each of two processes says of each step: "" or its error. They do not wait for each other in between."""

    def work(step: Step, out: Path) -> str:
        try:
            assert execute(step, out, ignore) == out
        except MickleError as error:
            return f"{error.exit_code}: {error.what}"
        return ""

    return both(lambda: [work(step, out) for step, out in steps], folder)


def both(work: Any, folder: Path) -> list[Any]:
    """As :func:`together`, of verbs, which join the group themselves."""
    return together(lambda place: work(), folder, joined=False)


@pytest.fixture(scope="module")
def alone(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    return execute(Pretrain(data=corpus, **{**SMALL, **LENGTH}), tmp_path_factory.mktemp("alone") / "model", ignore)


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("examples") / "texts.jsonl"
    rows = [{"text": f"Row {i}: the owl sees the hen and {i % 7} more."} for i in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("*.safetensors")
    return storage.load_tensors(file)


def same_weights(one: Path, other: Path) -> bool:
    found, wanted = weights(other), weights(one)
    assert found.keys() == wanted.keys()
    return all(torch.allclose(found[name], wanted[name], atol=1e-5) for name in wanted)


def test_two_processes_pretrain_and_tune_as_one(alone: Path, corpus: Path, examples: Path, tmp_path: Path) -> None:  # noqa: F811
    tuned = {
        kind: Tune(
            model=alone, data=examples, method={"kind": kind}, batch_tokens=512, samples=1, accumulate=2, **LENGTH
        )
        for kind in ("lora", "qlora", "full")
    }
    for kind, step in tuned.items():
        execute(step, tmp_path / kind, ignore)
    pretrain = Pretrain(data=corpus, **{**SMALL, **LENGTH})
    steps = [(pretrain, tmp_path / "both"), *((step, tmp_path / f"both-{kind}") for kind, step in tuned.items())]
    assert shared([*steps, steps[0]], tmp_path) == [[""] * 5] * 2  # what is done is not done again
    for one, two in ((alone, "both"), *((tmp_path / kind, f"both-{kind}") for kind in tuned)):
        assert losses(tmp_path / two / "metrics.jsonl") == pytest.approx(losses(one / "metrics.jsonl"), rel=1e-5)
        assert same_weights(one, tmp_path / two)
        assert (
            storage.open_folder(tmp_path / two, check="hashes").meta["identity"]
            == (storage.open_folder(one).meta["identity"])
        )
    assert open_model(tmp_path / "both-full").causal


def test_two_processes_find_the_weights_of_one(domains: Path, tmp_path: Path) -> None:  # noqa: F811
    step = Mix(data=domains, **{**SMALL_MIX, "steps": 4, "accumulate": 2})
    execute(step, tmp_path / "one", ignore)
    assert shared([(step, tmp_path / "two")], tmp_path) == [[""]] * 2
    for log in ("round-1/reference.jsonl", "round-1/proxy.jsonl"):
        assert losses(tmp_path / "two" / log) == pytest.approx(losses(tmp_path / "one" / log), rel=1e-5)
    assert read_weights(tmp_path / "two").weights == pytest.approx(read_weights(tmp_path / "one").weights, rel=1e-4)


def test_all_processes_end_as_the_first(alone: Path, corpus: Path, examples: Path, tmp_path: Path) -> None:  # noqa: F811
    """Methods that cannot be shared, settings that do not fit, verbs that do not train: the same word from both."""
    common = {"model": alone, "data": examples, "samples": 0, **LENGTH}
    steps = [
        (Tune(**common, method={"kind": "qlora", "paged": True}), tmp_path / "a"),
        (Tune(**common, method={"kind": "mezo", "learning_rate": 1e-4}), tmp_path / "b"),
        (Pretrain(data=corpus, **{**SMALL, **LENGTH, "sequence_length": 1 << 20}), tmp_path / "c"),
        (Pretrain(data=corpus, **SMALL), alone),
    ]
    first, second = shared(steps, tmp_path)
    for word, part in zip(first, ("qlora tunes in one", "mezo tunes in one", "too few", "other settings"), strict=True):
        assert word.startswith("2: ")
        assert part in word
    assert [word.split("\n")[0] for word in second] == first
    assert not [path for path in tmp_path.iterdir() if path.is_dir() and path.name != "alone"]


def test_torchrun_on_the_command_line(alone: Path, corpus: Path, tmp_path: Path) -> None:  # noqa: F811
    """One process speaks; what it says is what one process alone says."""
    settings = {**SMALL, **LENGTH}
    flags = [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "mickle", "pretrain"]
    run = [*command, str(corpus), *flags, "--out", str(tmp_path / "model")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(run, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done: ") == 1
    assert done.stderr.count("weights of step") == 1
    assert losses(tmp_path / "model" / "metrics.jsonl") == pytest.approx(losses(alone / "metrics.jsonl"), rel=1e-5)


def test_alone_there_is_no_first(tmp_path: Path) -> None:
    assert distributed.after_first(lambda: 3) == 3
