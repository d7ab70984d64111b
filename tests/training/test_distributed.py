"""Two processes with sharded weights train as one does, and go on from each other's checkpoints (RELIABILITY 13)."""

from __future__ import annotations

import json
import os
import socket
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import OPTIMIZERS, decoder, losses, packed, train
from torch import nn
from torch.distributed.tensor import DTensor

from mickle.errors import UsageError
from mickle.training import distributed
from mickle.training.closure import Closure
from mickle.training.loop import fit
from mickle.training.objectives import next_token

STEPS, MIDDLE = 20, 10


def model() -> nn.Module:
    return decoder(dropout=0.0, layers=2)


def together(work: Callable[[distributed.Place], Any], folder: Path, joined: bool = True) -> list[Any]:
    """What ``work`` returns in each of two processes that torchrun's variables describe, as one group if ``joined``."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(2):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
                group = distributed.processes() if joined else nullcontext(distributed.Place(rank, 2))
                with group as place:
                    (folder / f"{rank}.json").write_text(json.dumps(work(place)))
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    assert codes == [0, 0]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def run(sharded: bool, **options: Any) -> list[float]:
    built = distributed.shard(model()) if sharded else model()
    _, events = train("next_token", model=built, steps=STEPS, accumulate=2, **options)
    return losses(events)


def held_out(trained: nn.Module) -> dict[str, float]:
    return {"loss": float(next_token(trained, packed(99))[0])}


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """Five rows for two processes: three and two, of unequal numbers of trained tokens, in two micro-batches."""
    alone = run(False, checkpoints=tmp_path / "alone", save_every=MIDDLE)
    halfway = tmp_path / "alone-halfway"
    halfway.mkdir()
    name = f"step-{MIDDLE:08d}"
    (tmp_path / "alone" / name).rename(halfway / name)

    def work(place: distributed.Place) -> Any:
        def bad_row(step: int) -> dict[str, torch.Tensor]:
            batch = packed(step)
            if step == 2:
                batch["labels"][4] = -100  # the second process has almost nothing to train
            return batch

        return {
            "from the start": run(True, checkpoints=tmp_path / "both", save_every=MIDDLE),
            "from one process": run(True, checkpoints=halfway),
            "uneven": run(True, batches=bad_row),
            "evaluated": run(True, evaluate=held_out, evaluate_every=1),
            "place": [place.rank, place.world],
        }

    first, second = together(work, tmp_path)
    assert [first["place"], second["place"]] == [[0, 2], [1, 2]]
    for told in (first, second):
        assert told["from the start"] == pytest.approx(alone, rel=1e-5)
        assert told["evaluated"] == pytest.approx(alone, rel=1e-5)  # a forward pass between steps changes nothing
        assert told["from one process"] == pytest.approx(alone[MIDDLE:], rel=1e-5)

    both_halfway = tmp_path / "both-halfway"
    both_halfway.mkdir()
    (tmp_path / "both" / name).rename(both_halfway / name)
    assert run(False, checkpoints=both_halfway) == pytest.approx(alone[MIDDLE:], rel=1e-5)


def test_every_process_stops_for_a_fault_in_one(tmp_path: Path) -> None:
    """A weight that is spoiled in the second process's shard only; a plain model is refused."""

    def work(place: distributed.Place) -> Any:
        said = []
        built = distributed.shard(model())
        with torch.no_grad():
            weight = built.embed_tokens.weight
            assert isinstance(weight, DTensor)
            if place.rank == 1:
                weight.to_local()[0, 0] = float("nan")
        for candidate in (built, model()):
            optimizer = OPTIMIZERS["sgd"](candidate)
            try:
                list(fit(candidate, next_token, packed, optimizer, steps=1))
            except Exception as error:
                said.append(f"{type(error).__name__}: {error}")
        return said

    first, second = together(work, tmp_path)
    assert "BadNumbers: step 1: a weight or the optimizer's state is not finite: in another process" in first[0]
    assert "not finite: embed_tokens.weight" in second[0]
    assert "several processes train an unsharded model" in first[1]


def test_one_process_is_left_alone() -> None:
    plain = model()
    with distributed.processes() as place:
        assert place == distributed.Place(0, 1)
        assert distributed.shard(plain) is plain
        assert not any(isinstance(p, DTensor) for p in plain.parameters())
        assert distributed.any_process(True)
        assert not distributed.any_process(False)
        values = torch.tensor([1.0, 2.0])
        assert distributed.sum_over_processes(values) is values
        assert distributed.gathered(values) is values
        assert distributed.local(values) is values


def test_rows_are_split_without_loss() -> None:
    batch = {"input_ids": torch.arange(7)[:, None], "share": torch.tensor(0.5)}
    parts = [distributed.rows_of(batch, part, 3) for part in range(3)]
    assert [part["input_ids"].flatten().tolist() for part in parts] == [[0, 1, 2], [3, 4], [5, 6]]
    assert all(part["share"] == 0.5 for part in parts)


def test_a_batch_needs_a_row_for_each_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "current", lambda: distributed.Place(0, 9))
    with pytest.raises(UsageError, match="batch 3 has 5 rows for 9 processes"):
        Closure(model(), next_token, packed(0), step=3)
