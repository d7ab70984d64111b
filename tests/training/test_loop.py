"""The loop: what it adds up, what it says, and that the split of a batch changes nothing."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import (
    CASES,
    OPTIMIZERS,
    classifier,
    decoder,
    distance,
    losses,
    packed,
    points,
    steps_saved,
    still,
    train,
    weights,
)
from torch import nn

from mickle import storage
from mickle.errors import LockedError, ResourceError, UsageError
from mickle.events import Evaluated, Event, JsonLines, Progressed, Saved, Started, Trained, Warned
from mickle.training import checkpoint
from mickle.training.closure import Closure, derived_seed
from mickle.training.interruption import Interruption
from mickle.training.loop import fit
from mickle.training.objectives import Batch, classification, next_token


@pytest.mark.parametrize("case", CASES)
def test_splits_of_a_batch_give_one_result(case: str) -> None:
    """RELIABILITY 11: rows of unequal counts, a last micro-batch with fewer rows, more parts than rows."""
    optimizer = "adamw" if CASES[case].differentiable else "mezo"
    whole, told = train(case, optimizer, model=still(case))
    for accumulate in (3, 8):
        split, told_split = train(case, optimizer, model=still(case), accumulate=accumulate)
        assert losses(told_split) == pytest.approx(losses(told), rel=1e-6)
        assert distance(whole, split) < 1e-5


NO_MEMORY = [
    MemoryError(),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to allocate"
    ),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
]


class Short:
    """An objective for which memory does not do for more than some rows at a time, from its n-th call on."""

    def __init__(self, case: str, rows: int, error: Exception, after: int = 0) -> None:
        self.objective, self.rows, self.error, self.left = CASES[case].objective, rows, error, after

    def __call__(self, model: nn.Module, batch: Batch) -> Any:
        total, count = self.objective(model, batch)
        self.left -= 1
        if self.left < 0 and len(batch["labels"]) > self.rows:
            raise self.error
        return total, count


@pytest.mark.parametrize("error", NO_MEMORY, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("optimizer", ["adamw", "sophia_g", "mezo"])
def test_memory_that_runs_out_lowers_the_part_and_changes_nothing(
    error: Exception, optimizer: str, tmp_path: Path
) -> None:
    """RELIABILITY 24: 5 rows, of which 2 fit: as if it had been begun in 4 parts; a run that goes on keeps them."""
    case = "next_token"
    model, told = train(case, optimizer, model=still(case), accumulate=4, steps=6)
    short = Short(case, 2, error, after=3)
    lowered, told_lowered = train(
        case, optimizer, model=still(case), objective=short, steps=6, checkpoints=tmp_path, save_every=1
    )
    assert losses(told_lowered) == pytest.approx(losses(told), rel=1e-6)
    assert distance(model, lowered) < 1e-6
    said = [event.message for event in told_lowered if isinstance(event, Warned)]
    assert len(said) == 1
    assert "in 4 parts, with the same sums" in said[0]
    _, on = train(case, optimizer, model=still(case), objective=short, steps=8, checkpoints=tmp_path)
    assert [event for event in on if isinstance(event, Warned)] == []


def test_memory_that_is_never_enough_is_an_error_and_other_errors_stay() -> None:
    for error, raised in [(NO_MEMORY[0], ResourceError), (RuntimeError("shapes differ"), RuntimeError)]:
        with pytest.raises(raised):
            train("next_token", model=still("next_token"), objective=Short("next_token", 0, error))


def test_memory_that_runs_out_in_an_update_ends_the_run_and_it_goes_on(tmp_path: Path) -> None:
    case, errors = "next_token", iter([None, None, None, NO_MEMORY[1]])
    model, _ = train(case, "adamw", model=still(case), steps=6)

    def ends(*given: object) -> None:
        if (error := next(errors)) is not None:
            raise error

    def short(model: nn.Module) -> torch.optim.Optimizer:
        optimizer = OPTIMIZERS["adamw"](model)
        optimizer.register_step_post_hook(ends)
        return optimizer

    options: dict[str, Any] = {"steps": 6, "checkpoints": tmp_path, "save_every": 1}
    with pytest.raises(ResourceError, match=r"update of step 4: .*can't allocate memory"):
        train(case, short, model=still(case), **options)
    again, told = train(case, "adamw", model=still(case), **options)
    assert len(losses(told)) == 3
    assert distance(model, again) == 0


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="memory and files are counted on Linux alone")
@pytest.mark.parametrize(("case", "optimizer"), [("next_token", "adamw"), ("classification", "mezo")])
def test_a_long_run_takes_no_more_with_every_step(case: str, optimizer: str, tmp_path: Path) -> None:
    """RELIABILITY 25, at 300 steps: resident memory, open files, and 200 bytes of log for each step."""
    write, held, opened = JsonLines(tmp_path / "metrics.jsonl"), {}, {}

    def hear(event: Event) -> None:
        write(event)
        if isinstance(event, Trained):
            held[event.step] = int(Path("/proc/self/statm").read_text().split()[1])
            opened[event.step] = len(os.listdir("/proc/self/fd"))

    train(
        case, optimizer, steps=300, on_event=hear, checkpoints=tmp_path / "checkpoints", save_every=50,
        evaluate=lambda model: {"loss": 1.0}, evaluate_every=50,
    )  # fmt: skip
    assert held[300] <= 1.02 * held[100]
    assert opened[300] == opened[100]
    assert (tmp_path / "metrics.jsonl").stat().st_size <= 200 * 300


def test_padding_changes_nothing() -> None:
    def padded(step: int) -> dict[str, torch.Tensor]:
        batch = packed(step)
        grown = {name: nn.functional.pad(t, (0, 4), value=0) for name, t in batch.items()}
        grown["labels"][:, -4:] = -100
        grown["documents"][:, -4:] = 99
        return grown

    _, plain = train("next_token", model=still("next_token"))
    _, with_padding = train("next_token", model=still("next_token"), batches=padded, accumulate=2)
    assert losses(with_padding) == pytest.approx(losses(plain), rel=1e-6)


def test_one_step_by_hand() -> None:
    """Loss (w - y)^2 at w = 2, y = 0, 1 and 3: mean 2, gradient 2 (2 - 4/3) = 4/3; clipped to 1; w = 2 - 0.5."""

    class Point(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor(2.0))

    def squared(model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        return ((model.w - batch["y"]) ** 2).sum(), torch.tensor(len(batch["y"]))

    model = Point()
    batch = {"y": torch.tensor([0.0, 1.0, 3.0])}
    events = list(
        fit(model, squared, lambda _: batch, torch.optim.SGD(model.parameters(), lr=0.5), steps=1, accumulate=2)
    )
    trained = events[-1]
    assert isinstance(trained, Trained)
    assert trained.loss == pytest.approx(2.0)
    assert trained.gradient_norm == pytest.approx(4 / 3)
    assert trained.learning_rate == 0.5
    assert trained.tokens == 3
    assert model.w.item() == pytest.approx(1.5)


def test_gradient_is_torchs_own() -> None:
    model = still("next_token")
    batch = packed(0)
    closure = Closure(model, next_token, batch, step=0, accumulate=3)
    loss = closure()
    ours = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    logits = model(batch["input_ids"], documents=batch["documents"])
    plain = nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
    plain.backward()
    assert loss == pytest.approx(plain.item(), rel=1e-6)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-4, atol=1e-7)
    norm = nn.utils.get_total_norm(p.grad for p in model.parameters())
    assert closure.gradient_norm == pytest.approx(norm.item(), rel=1e-5)
    assert closure.mean_loss() == pytest.approx(loss, rel=1e-6)


def test_clipping_is_torchs_own() -> None:
    model = still("classification")
    Closure(model, classification, points(0), step=0, clip_norm=0.01)()
    assert nn.utils.get_total_norm(p.grad for p in model.parameters()).item() == pytest.approx(0.01, rel=1e-5)


def test_dropout_depends_on_seed_step_and_part_alone() -> None:
    model = classifier(dropout=0.5)
    first = Closure(model, classification, points(0), step=3, accumulate=2)
    again = Closure(model, classification, points(0), step=3, accumulate=2)
    assert first() == pytest.approx(again.mean_loss(), rel=1e-6)
    others = [Closure(model, classification, points(0), step=s, seed=r, accumulate=2)() for s, r in ((4, 0), (3, 1))]
    assert first.loss not in others
    assert len({derived_seed(a, b, c) for a in range(9) for b in range(9) for c in range(9)}) == 729


def test_same_command_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    """RELIABILITY 12."""
    for name in ("one", "two"):
        train("next_token", steps=5, checkpoints=tmp_path / name)
    one, two = (storage.hash_file(tmp_path / n / "step-00000005" / checkpoint.MODEL) for n in ("one", "two"))
    assert one == two


def test_events_of_a_run(tmp_path: Path) -> None:
    values = iter([3.0, 1.0, 2.0])
    _, events = train(
        steps=6, checkpoints=tmp_path, save_every=4, keep=1,
        evaluate=lambda model: {"loss": next(values)}, evaluate_every=2,
    )  # fmt: skip
    assert events[0] == Started("training", 6, "steps")
    assert [e.step for e in events if isinstance(e, Trained)] == [1, 2, 3, 4, 5, 6]
    assert [e.values["loss"] for e in events if isinstance(e, Evaluated)] == [3.0, 1.0, 2.0]
    # 2 and 4 were each the best so far, 6 is the last; 4 stays beside the newest because it is the best.
    assert [e.step for e in events if isinstance(e, Saved)] == [2, 4, 6]
    assert steps_saved(tmp_path) == [4, 6]
    assert checkpoint.best(tmp_path)[0] == tmp_path / "step-00000004"


def test_evaluation_sees_a_quiet_model_and_leaves_no_trace() -> None:
    seen = []

    def evaluate(model: nn.Module) -> dict[str, float]:
        seen.append((model.training, torch.is_grad_enabled(), torch.rand(1).item()))
        return {"x": 0.0}

    evaluated, _ = train(steps=6, evaluate=evaluate, evaluate_every=2)
    plain, _ = train(steps=6)
    assert distance(evaluated, plain) == 0.0
    assert [s[:2] for s in seen] == [(False, False)] * 3


def test_best_weights_come_back(tmp_path: Path) -> None:
    values = iter([1.0, 2.0])
    kept: dict[int, dict[str, torch.Tensor]] = {}

    def evaluate(model: nn.Module) -> dict[str, float]:
        kept[len(kept)] = weights(model)
        return {"loss": next(values)}

    model, _ = train(steps=4, checkpoints=tmp_path, keep=1, evaluate=evaluate, evaluate_every=2)
    path, _ = checkpoint.best(tmp_path)
    assert path is not None
    checkpoint.load_weights(path, model)
    assert all(torch.equal(t, kept[0][name]) for name, t in model.state_dict().items())


def test_bfloat16_keeps_float32_weights_and_follows_the_loss() -> None:
    """Products in bfloat16 (8 bits) move a loss near 2.5 by less than 2 %."""
    exact, told = train("next_token", model=still("next_token"))
    reduced, told_reduced = train("next_token", model=still("next_token"), precision="bfloat16")
    assert losses(told_reduced) == pytest.approx(losses(told), rel=0.02)
    assert losses(told_reduced) != losses(told)
    assert {p.dtype for p in reduced.parameters()} == {torch.float32}
    assert distance(exact, reduced) > 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_then_interrupts(number: int, tmp_path: Path) -> None:
    """RELIABILITY 8: the step in which it arrives is finished and saved."""
    model = classifier()
    run = fit(model, classification, points, OPTIMIZERS["sgd"](model), steps=9, checkpoints=tmp_path)
    before = signal.getsignal(number)
    told = []
    with pytest.raises(KeyboardInterrupt):
        for event in run:
            told.append(event)
            if isinstance(event, Trained) and event.step == 5:
                os.kill(os.getpid(), number)
    assert isinstance(told[-1], Saved)
    assert steps_saved(tmp_path) == [5]
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("at", [1, 2], ids=["between", "at the end"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_does_not_wait_for_an_evaluation_which_is_made_later(number: int, at: int, tmp_path: Path) -> None:
    """RELIABILITY 8: an evaluation may take minutes. Nothing of it is lost, the best checkpoint neither."""

    def run(folder: Path, signalled: int) -> tuple[nn.Module, list[Event]]:
        calls = []

        def evaluate(model: nn.Module) -> dict[str, float]:
            calls.append(1)
            if len(calls) == signalled:
                os.kill(os.getpid(), number)
                pytest.fail("the evaluation went on")
            return {"loss": float(sum(p.abs().sum() for p in model.parameters()))}

        often = {"evaluate_every": 4, "save_every": 4}
        return train(steps=8, checkpoints=folder, evaluate=evaluate, stop_at=99, **often)

    never, quiet = run(tmp_path / "quiet", 0)
    _, before = run(tmp_path / "stopped", at)
    assert isinstance(before[-1], Saved)
    assert before[-1].step == 4 * at
    resumed, after = run(tmp_path / "stopped", 0)
    assert distance(never, resumed) == 0.0
    values = [event.values for event in quiet if isinstance(event, Evaluated)]
    assert [event.values for event in (*before, *after) if isinstance(event, Evaluated)] == values
    one, two = (checkpoint.newest(tmp_path / name)[0] for name in ("quiet", "stopped"))
    assert one is not None
    assert two is not None
    assert (one.counters["best_step"], one.step) == (two.counters["best_step"], two.step)


def test_a_second_signal_does_what_it_always_did() -> None:
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.signalled
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_left_run_gives_back_lock_and_handlers(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    model = classifier()
    run = fit(model, classification, points, OPTIMIZERS["sgd"](model), steps=9, checkpoints=tmp_path)
    next(run)
    assert signal.getsignal(signal.SIGINT) != before
    with pytest.raises(LockedError, match="another process"):
        train(steps=2, checkpoints=tmp_path)
    run.close()
    assert signal.getsignal(signal.SIGINT) == before
    train(steps=2, checkpoints=tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": -1}, "steps is too small"),
        ({"accumulate": 0}, "accumulate is too small"),
        ({"on_bad_numbers": "back"}, "needs checkpoints"),
        ({"batches": lambda i: {**points(i), "labels": torch.full((7,), -100)}}, "batch 0 trains nothing"),
        ({"objective": lambda m, b: (b["inputs"].sum().requires_grad_(), torch.tensor(1))}, "no parameter has"),
        ({"evaluate": lambda m: {}}, "measured nothing"),
    ],
)
def test_wrong_use_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        train(**{"steps": 1, **options})


def test_memory_is_flat() -> None:
    """RELIABILITY 25, in small: no tensor and no open file stays from a step to the next."""
    import gc

    def held() -> tuple[int, int]:
        gc.collect()
        return sum(type(o) is torch.Tensor for o in gc.get_objects()), len(os.listdir("/proc/self/fd"))

    seen: dict[int, tuple[int, int]] = {}

    def note(event: object) -> None:
        if isinstance(event, Trained) and event.step in (10, 60):
            seen[event.step] = held()

    train(steps=60, on_event=note)
    assert seen[10] == seen[60]


def test_compiled_model_trains_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through torch.compile's tracing; its "eager" backend runs the traced graphs without a C++ compiler."""
    compile_plain: Callable[..., None] = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: compile_plain(self, backend="eager"))
    plain, told = train("classification", model=still("classification"), steps=3)
    compiled, told_compiled = train("classification", model=still("classification"), steps=3, compile=True)
    assert losses(told_compiled) == pytest.approx(losses(told), rel=1e-5)
    assert math.isclose(distance(plain, compiled), 0.0, abs_tol=1e-5)
    assert list(compiled.state_dict()) == list(plain.state_dict())


def test_progress_says_where_it_goes_on(tmp_path: Path) -> None:
    train(steps=2, checkpoints=tmp_path)
    _, events = train(steps=3, checkpoints=tmp_path)
    assert events[:2] == [Started("training", 3, "steps"), Progressed(2, "going on from a checkpoint")]


def test_learning_rate_follows_the_schedule() -> None:
    _, events = train(steps=4, schedule=lambda step, steps: (step + 1) / steps)
    rates = [e.learning_rate for e in events if isinstance(e, Trained)]
    assert rates == pytest.approx([0.0025, 0.005, 0.0075, 0.01])


def test_decoder_learns_a_rule() -> None:
    """Each token is followed by its double modulo 11: a bigram rule that a decoder learns to near zero."""

    def doubling(step: int) -> dict[str, torch.Tensor]:
        draw = torch.Generator().manual_seed(step)
        first = torch.randint(1, 11, (8, 1), generator=draw)
        tokens = first * torch.tensor([pow(2, k, 11) for k in range(9)]) % 11
        return {"input_ids": tokens[:, :-1], "labels": tokens[:, 1:]}

    _, events = train("next_token", model=decoder(dropout=0.0), steps=80, batches=doubling)
    assert losses(events)[0] > 2.0
    assert losses(events)[-1] < 0.3
