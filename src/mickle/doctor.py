"""The state of this machine in some seconds: versions, devices, measured speed, kernels held to their plain twins."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mickle import machine
from mickle.kernels import components, masking, repeated_windows, repetitions, signatures
from mickle.kernels.dispatch import plain_kernels
from mickle.kernels.sophia_update import SophiaRule, Tensors, sophia_update, update_plain
from mickle.kernels.token_losses import token_losses, token_losses_plain
from mickle.models.decoder import Decoder, DecoderConfig
from mickle.quantization.nf4_linear import kernels_error
from mickle.training.objectives import next_token


def doctor() -> str:
    """Lines on the machine; a thing that is wrong says so and what to do."""
    facts = machine.describe()
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    disk = shutil.disk_usage(Path.cwd())
    lines = [
        f"machine    {facts['processor']}, {facts['cores']} cores, {facts['memory_gb']} GB memory"
        f" ({machine.available_memory() / 2**30:.1f} free), {disk.free / 1e9:.0f} GB disk free here",
        f"system     {facts['system']}, Python {facts['python']}",
        f"versions   {versions}",
        f"device     {_device()}",
        *_speeds(),
        *_kernels(),
    ]
    return "\n".join(lines)


def _device() -> str:
    if not torch.cuda.is_available():
        return "CPU (no CUDA device: everything works, training larger models takes long)"
    properties = torch.cuda.get_device_properties(0)
    return f"{properties.name}, {properties.total_memory / 2**30:.0f} GB"


def _speeds() -> list[str]:
    float32 = machine.matmul_flops("float32")
    # Without instructions for it a product of 1024 takes seconds, and a small one tells the same.
    bfloat16 = machine.matmul_flops("bfloat16", size=1024 if machine.fast_bfloat16() else 256)
    advice = (
        "training uses bfloat16"
        if machine.fast_bfloat16()
        else "training uses float32: the processor has no bfloat16 products"
    )
    return [
        f"products   {float32 / 1e9:,.0f} GFLOP/s float32, {bfloat16 / 1e9:,.0f} bfloat16 ({advice})",
        f"memory     {machine.copy_bandwidth() / 1e9:.1f} GB/s copy",
    ]


def _kernels() -> list[str]:
    """The fast kernels against their plain twins on this machine's own processor: a training step, Sophia's update."""
    fast = _one_step()
    with plain_kernels():
        plain = _one_step()
    worst = max(float((a - b).norm() / b.norm().clamp(min=1e-30)) for a, b in zip(fast, plain, strict=True))
    return [
        f"kernels    loss, attention, norm, rotation: {_verdict(worst)}",
        f"           Sophia's update: {_verdict(_sophia_error())}",
        f"           signatures, components, repeated windows, repetitions: {_verdict(float(_curation_differs()))}",
        f"           loss token by token: {_verdict(_token_losses_error())}",
        f"           masking: {_verdict(_masking_differs())}",
        f"           4-bit layers: {_verdict(kernels_error())}",
    ]


def _verdict(error: float) -> str:
    if error < 1e-4:
        return f"as their plain twins (relative difference {error:.0e})"
    return f"OFF from their plain twins by {error:.1e}: report it"


def _one_step() -> list[Tensor]:
    """Loss and gradients of a small decoder."""
    model = Decoder(DecoderConfig.for_size(200_000, 300, 128), seed=0)
    ids = torch.randint(0, 300, (4, 129), generator=torch.Generator().manual_seed(0))
    loss, count = next_token(model, {"input_ids": ids[:, :-1], "labels": ids[:, 1:]})
    (loss / count).backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return [(loss / count).detach(), *gradients]


def _sophia_error() -> float:
    rule = SophiaRule(lr=0.01, beta=0.9, gamma=0.05, eps=1e-12, weight_decay=0.1)
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(10_001, generator=generator) for _ in range(4)]
    fast, plain = (Tensors(*(value.clone() for value in values)) for _ in range(2))
    sophia_update([fast], rule)
    update_plain(plain, rule)
    return float((fast.parameter - plain.parameter).norm() / plain.parameter.norm())


def _token_losses_error() -> float:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 16, generator=generator, requires_grad=True) for n in (50, 300))
    scale, labels = torch.rand(50, generator=generator), torch.arange(50)
    found = []
    for losses in (token_losses, token_losses_plain):
        total = (scale * losses(hidden, weight, labels)).sum()
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(total, (hidden, weight))]))
    return float((found[0] - found[1]).norm() / found[1].norm())


def _masking_differs() -> float:
    """1 where the masking kernel, which is exact, differs from its plain twin."""
    special = np.arange(40) < 3
    vocabulary = masking.Vocabulary(2, special, np.arange(3, 40), np.arange(40) % 3 == 0)
    tokens = np.random.default_rng(0).integers(0, 40, (6, 70))
    differs = False
    for unit in (masking.TOKEN, masking.WORD, masking.SPAN):
        given = (tokens, np.arange(6), 1, vocabulary, masking.cuts(0.3, 0.8, 0.1, unit), unit)
        differs |= not np.array_equal(masking.mask_tokens(*given), masking.mask_tokens_plain(*given))
    return float(differs)


def _curation_differs() -> bool:
    """Whether a kernel of `mickle curate`, all of which are exact, differs from its plain twin."""
    draw = np.random.default_rng(0)
    words = [("river", "bridge", "Größe", "of", "the")[i] for i in draw.integers(0, 5, 300)]
    text, tokens = " ".join(words), draw.integers(0, 2, 400).astype(np.uint8)
    left, right = draw.integers(0, 200, (2, 150))
    pairs: list[tuple[Any, Any]] = [
        (signatures.signatures([text, ""], 5, 14, 8, 0), signatures.signatures_plain([text, ""], 5, 14, 8, 0)),
        (components.connected(left, right, 200), components.connected_plain(left, right, 200)),
        (repeated_windows.repeated(tokens, 8), repeated_windows.repeated_plain(tokens, 8)),
        (repetitions.most_frequent(repetitions.join(words, " "), 3), repetitions.most_frequent_plain(words, 3)),
        (repetitions.repeated(repetitions.join(words), 5, "greedy"), repetitions.repeated_plain(words, 5, "greedy")),
    ]
    return not all(np.array_equal(fast, plain) for fast, plain in pairs)
