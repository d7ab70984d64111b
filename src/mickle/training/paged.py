"""AdamW whose two averages stay out of the memory that the model needs.

QLoRA: Efficient Finetuning of Quantized LLMs, arXiv 2305.14314, section 3, "Paged Optimizers": state lies where there
is room and comes to where it is needed when it is needed, tensor by tensor. The paper uses unified memory of NVIDIA's
driver. Here, of a parameter on a

- CPU, both averages are a file in memory (`mmap`): after a tensor's update its pages are given back, and the system
  writes them to disk when memory is short. The file has no name, its space is taken at once, and it is gone with the
  process; what lasts is in the checkpoints.
- GPU, they lie in pinned host memory and pass through the device one tensor at a time.

Parameters of fewer than 100,000 numbers keep theirs beside them, as in the reference code. The numbers are those of
`torch.optim.AdamW`, bit for bit: the update is its own.
"""

import mmap
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from mickle import storage

SMALL = 100_000  # numbers, as in the reference code
AVERAGES = ("exp_avg", "exp_avg_sq")


class PagedAdamW(Optimizer):
    """`torch.optim.AdamW` (arXiv 1711.05101) with its state in a file or in pinned host memory.

    `folder` is where the file's space is taken; ResourceError where there is too little.
    """

    def __init__(
        self,
        params: Iterable[Any],
        folder: Path,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self._folder = Path(folder)
        self._maps: dict[Tensor, mmap.mmap] = {}
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = {"step": torch.zeros(()), **self._averages(parameter)}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient; returns what the closure does."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a saved state over into the memory that this optimizer has."""
        places = {p: {name: self.state[p][name] for name in AVERAGES} for p in list(self.state)}
        super().load_state_dict(state_dict)
        for parameter, averages in places.items():
            for name, place in averages.items():
                saved = self.state[parameter].get(name)
                if saved is None:
                    place.zero_()
                else:
                    place.copy_(saved)
                self.state[parameter][name] = place
            self.state[parameter].setdefault("step", torch.zeros(()))
            self._give_back(parameter)

    def _averages(self, parameter: Tensor) -> dict[str, Tensor]:
        """Both averages of a parameter, 0, where they are to lie."""
        if parameter.numel() < SMALL:
            return {name: torch.zeros_like(parameter, requires_grad=False) for name in AVERAGES}
        if parameter.device.type != "cpu":
            pinned = parameter.device.type == "cuda"
            return {name: torch.zeros(parameter.shape, dtype=parameter.dtype, pin_memory=pinned) for name in AVERAGES}
        size = parameter.numel() * parameter.element_size()
        self._maps[parameter] = mapped = _nameless(self._folder, 2 * size)
        flat = torch.from_numpy(np.frombuffer(mapped, np.uint8)).view(parameter.dtype)
        return {name: half.view(parameter.shape) for name, half in zip(AVERAGES, flat.chunk(2), strict=True)}

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state, device = self.state[parameter], parameter.device
        held = [state[name] for name in AVERAGES]
        near = [average.to(device, non_blocking=True) for average in held]
        beta1, beta2 = group["betas"]
        state["step"] = state["step"].to(device if device.type == "cuda" else "cpu")
        adamw(
            [parameter], [parameter.grad], [near[0]], [near[1]], [], [state["step"]],
            fused=device.type in ("cpu", "cuda"), amsgrad=False, beta1=beta1, beta2=beta2, lr=group["lr"],
            weight_decay=group["weight_decay"], eps=group["eps"], maximize=False,
        )  # fmt: skip
        for place, average in zip(held, near, strict=True):
            if place is not average:
                place.copy_(average)
        self._give_back(parameter)

    def _give_back(self, parameter: Tensor) -> None:
        """Let go of the pages of a parameter's averages; the file still has what was written."""
        if parameter in self._maps:
            self._maps[parameter].madvise(mmap.MADV_DONTNEED)


def paged_adamw(groups: Iterable[Any], folder: Path, **options: Any) -> PagedAdamW:
    """`PagedAdamW` of parameter groups (`training/optimizers.py:decay_groups`), its file in `folder`, which is made."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    return PagedAdamW(groups, folder, **options)


def _nameless(folder: Path, size: int) -> mmap.mmap:
    """`size` zero bytes of a file without a name, whose space is taken: a full disk is found out here, not later."""
    with storage.disk_errors(folder):
        storage.check_space(folder, size)
        with tempfile.TemporaryFile(dir=folder) as stream:
            os.posix_fallocate(stream.fileno(), 0, size)
            return mmap.mmap(stream.fileno(), size)
