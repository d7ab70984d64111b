"""Paged AdamW against torch's own, its memory, and its checkpoints in the loop."""

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mickle.errors import ResourceError
from mickle.training import checkpoint, paged
from mickle.training.loop import fit
from mickle.training.optimizers import decay_groups
from mickle.training.paged import PagedAdamW, paged_adamw


def model(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(300, 400), nn.Tanh(), nn.Linear(400, 3)).to(dtype)


def mean_square(network: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    y = network(batch["inputs"])
    return ((y - batch["labels"]) ** 2).sum(), torch.tensor(y.numel())


def batches(step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {"inputs": torch.randn(8, 300, generator=generator), "labels": torch.randn(8, 3, generator=generator)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_numbers_are_those_of_torch(tmp_path: Path, dtype: torch.dtype) -> None:
    ours, theirs = model(dtype), model(dtype)
    options = {"lr": 3e-3, "betas": (0.9, 0.95), "eps": 1e-7}
    own = paged_adamw(decay_groups(ours, 0.1), tmp_path / "new", **options)
    known = torch.optim.AdamW(decay_groups(theirs, 0.1), fused=True, **options)
    for step in range(5):
        for network, optimizer in ((ours, own), (theirs, known)):
            optimizer.zero_grad()
            batch = {name: value.to(dtype) for name, value in batches(step).items()}
            total, _ = mean_square(network, batch)
            total.backward()
            optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)
        for name in paged.AVERAGES:
            assert torch.equal(own.state[a][name], known.state[b][name])


def test_large_averages_are_mapped_and_small_ones_are_not(tmp_path: Path) -> None:
    network = model()
    optimizer = PagedAdamW(network.parameters(), tmp_path)
    mapped = [parameter.numel() for parameter in optimizer._maps]
    assert mapped == [120_000]
    assert list(tmp_path.iterdir()) == []  # no file is left where a process is killed


def resident(address: int, size: int) -> int:
    """Bytes of a part of this process's memory that are in RAM for it."""
    found = 0
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and ":" not in first:
            start, end = (int(part, 16) for part in first.split("-"))
            inside = start < address + size and end > address
        elif inside and first == "Rss:":
            found += 1024 * int(line.split()[1])
    return found


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux")
def test_pages_are_given_back_after_each_update(tmp_path: Path) -> None:
    network = model()
    optimizer = PagedAdamW(network.parameters(), tmp_path)
    total, _ = mean_square(network, batches(0))
    total.backward()
    optimizer.step()
    weight = network[0].weight
    state = optimizer.state[weight]
    size = weight.numel() * 8
    assert resident(state["exp_avg"].data_ptr(), size) == 0
    assert state["exp_avg"].abs().sum() > 0  # and it is there when it is looked at
    assert resident(state["exp_avg"].data_ptr(), size) > 0


def test_it_goes_on_from_a_checkpoint_as_if_never_stopped(tmp_path: Path) -> None:
    whole = model()
    list(fit(whole, mean_square, batches, paged_adamw(decay_groups(whole, 0.1), tmp_path / "a"), steps=6))
    stopped, folder = model(), tmp_path / "checkpoints"
    run = fit(
        stopped, mean_square, batches, paged_adamw(decay_groups(stopped, 0.1), tmp_path / "b"), steps=6,
        checkpoints=folder, save_every=3,
    )  # fmt: skip
    list(itertools.takewhile(lambda event: type(event).__name__ != "Saved", run))
    run.close()  # type: ignore[attr-defined]
    assert [path.name for path in checkpoint.saved(folder)] == ["step-00000003"]
    again = model()
    optimizer = paged_adamw(decay_groups(again, 0.1), tmp_path / "c")
    place = optimizer.state[again[0].weight]["exp_avg"].data_ptr()
    list(fit(again, mean_square, batches, optimizer, steps=6, checkpoints=folder, save_every=3))
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert optimizer.state[again[0].weight]["exp_avg"].data_ptr() == place  # restored into the file, not beside it


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(paged.os, "posix_fallocate", full)
    with pytest.raises(ResourceError, match="disk refused"):
        PagedAdamW(model().parameters(), tmp_path)
