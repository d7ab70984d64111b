"""The state of this machine in some seconds: versions, devices, measured speed, kernels held to their plain twins."""

from __future__ import annotations

import shutil
from pathlib import Path

from mickle import machine


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
    import torch

    if not torch.cuda.is_available():
        return "CPU (no CUDA device: everything works, training larger models takes long)"
    properties = torch.cuda.get_device_properties(0)
    return f"{properties.name}, {properties.total_memory / 2**30:.0f} GB"


def _speeds() -> list[str]:
    float32 = machine.matmul_flops("float32")
    bfloat16 = machine.matmul_flops("bfloat16")
    advice = (
        "training uses bfloat16"
        if machine.fast_bfloat16()
        else "training uses float32: bfloat16 is no faster here"
    )
    return [
        f"products   {float32 / 1e9:,.0f} GFLOP/s float32, {bfloat16 / 1e9:,.0f} bfloat16 ({advice})",
        f"memory     {machine.copy_bandwidth() / 1e9:.1f} GB/s copy",
    ]


def _kernels() -> list[str]:
    """Each fast kernel against its plain twin on this machine's own processor."""
    import torch

    from mickle.kernels import losses

    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(37, 24, generator=generator)
    weight = torch.randn(101, 24, generator=generator)
    labels = torch.randint(0, 101, (37,), generator=generator)
    fast, _ = losses.cross_entropy(hidden, weight, labels)
    plain = torch.nn.functional.cross_entropy(hidden @ weight.T, labels, reduction="sum")
    error = abs(float(fast) - float(plain)) / float(plain)
    verdict = "agrees with its plain twin" if error < 1e-5 else f"IS OFF by {error:.1e}: report it"
    return [f"kernels    cross-entropy {verdict}"]
