"""What this machine is and can do: devices, seeds, memory, measured speeds, and forecasts built on them."""

from __future__ import annotations

import os
import platform
import re
import resource
import statistics
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mickle.errors import ResourceError, UsageError, first_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import torch

T = TypeVar("T")
DEVICE = "MICKLE_DEVICE"  # in the environment, so that worker processes compute there too
DEVICES = "auto, cpu, cuda or cuda:1"
RETRIES = 4  # where memory runs out, in pieces of half the size each time


@dataclass(frozen=True)
class Forecast:
    """What a piece of work will need: peak memory and disk in bytes, wall time in seconds, and why; and the settings
    that were left out, as they will be.
    """

    memory_bytes: int = 0
    seconds: float = 0.0
    disk_bytes: int = 0
    notes: tuple[str, ...] = ()
    derived: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = []
        if self.seconds:
            parts.append(f"{self.seconds / 60:.1f} min" if self.seconds >= 90 else f"{self.seconds:.0f} s")
        if self.memory_bytes:
            parts.append(f"{self.memory_bytes / 1e9:.2f} GB memory")
        if self.disk_bytes:
            parts.append(f"{self.disk_bytes / 1e6:,.0f} MB disk")
        return ", ".join(parts) or "nothing to speak of"


def device() -> torch.device:
    """Where models are: what was chosen (:func:`computing_on`), else CUDA if there is one, else the CPU."""
    import torch

    chosen = os.environ.get(DEVICE, "")
    found = torch.device(chosen or ("cuda" if torch.cuda.is_available() else "cpu"))
    if found.index is not None:
        torch.cuda.set_device(found)  # kernels of our own run where the thread is
    return found


@contextmanager
def computing_on(name: str | None) -> Iterator[None]:
    """Choose the device inside: cpu, cuda, cuda:1, or auto for the fastest; None leaves what is chosen.

    Raises UsageError for one that is not here.
    """
    before = os.environ.get(DEVICE)
    if name is not None:
        os.environ[DEVICE] = "" if name == "auto" else _refuse_device(name)
    try:
        yield
    finally:
        os.environ.pop(DEVICE, None)
        os.environ.update({} if before is None else {DEVICE: before})


def _refuse_device(name: str) -> str:
    """The name of a device that is here."""
    if not re.fullmatch(r"cpu|cuda(:[0-9]{1,3})?", name):
        raise UsageError(f"there is no device '{name[:40]}'", where="device", expected=DEVICES)
    if name == "cpu":
        return name
    import torch

    count, leave = torch.cuda.device_count(), "leave --device out, or take --device cpu"
    if not count:
        built = "no CUDA device is found" if torch.version.cuda else "this torch is built without CUDA"
        todo = "look at nvidia-smi and CUDA_VISIBLE_DEVICES" if torch.version.cuda else "install torch for CUDA"
        raise UsageError(f"{name} is not here: {built}", where="device", todo=f"{todo}; or {leave}")
    if ":" not in name:
        return name
    if int(name[5:]) >= count:
        raise UsageError(f"{name} is not here", where="device", expected=f"cuda:0 to cuda:{count - 1}", todo=leave)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("each process of torchrun has a device of its own", where="device", todo="take --device cuda")
    return name


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators."""
    import random

    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def cores() -> int:
    """Processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def total_memory() -> int:
    """Bytes of memory this process may use: the machine's, or its control group's limit where that is lower."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = _read(path).strip()
        if text.isdigit():
            limits.append(int(text))
    return min(limits)


def available_memory() -> int:
    """Bytes that can be taken now without swapping."""
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return min(int(line.split()[1]) * 1024, total_memory())
    return total_memory()


def peak_memory() -> int:
    """The most bytes this process has held resident since :func:`reset_peak_memory`, or since it began."""
    for line in _read("/proc/self/status").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: Python's error, a GPU's, or that of torch's allocator for the CPU."""
    said = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, MemoryError) or (
        isinstance(error, (RuntimeError, OSError)) and any(words in str(error).lower() for words in said)
    )


def retried(work: Callable[[], T], smaller: Callable[[], bool]) -> T:
    """What ``work`` gives. Where memory runs out, ``smaller`` cuts it into smaller pieces and it is done again.

    ResourceError after RETRIES times, or where ``smaller`` gives False: it cannot be cut.
    """
    for left in range(RETRIES, -1, -1):
        try:
            return work()
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            said = first_line(error)
        # Only here, after the error is gone, are the frames that it held, and with them their tensors.
        if not left or not smaller():
            break
    raise ResourceError(
        f"Memory ran out, in the smallest pieces that were tried too: {said}",
        todo="end other programs, or choose a smaller batch, shorter texts or a smaller model",
    )


def reset_peak_memory() -> None:
    """Begin a new peak, where the kernel allows it (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def release_memory() -> None:
    """Give back to the system what was freed: glibc keeps freed blocks below 32 MiB, hundreds of megabytes of them when
    a model has been made smaller. Elsewhere nothing happens.
    """
    import ctypes
    import gc

    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def matmul_flops(dtype: str = "float32", size: int = 1024, repeats: int = 5) -> float:
    """Measured FLOP per second of a square matrix product on the device in use (median of ``repeats``)."""
    import torch

    where = device()
    kind = getattr(torch, dtype)
    a = torch.randn(size, size, device=where).to(kind)
    b = torch.randn(size, size, device=where).to(kind)
    return 2 * size**3 / _median_seconds(lambda: a @ b, repeats)


def copy_bandwidth(bytes_copied: int = 64 << 20, repeats: int = 5) -> float:
    """Measured bytes per second (read + written) of a copy too large for the caches."""
    import torch

    source = torch.ones(bytes_copied // 4, device=device())
    target = torch.empty_like(source)
    return 2 * bytes_copied / _median_seconds(lambda: target.copy_(source), repeats)


def fast_bfloat16() -> bool:
    """Whether the device has instructions for bfloat16 products. Not timed: a busy machine must not change it."""
    import torch

    return fast_16_bits(torch.bfloat16)


def fast_16_bits(dtype: torch.dtype) -> bool:
    """The same of bfloat16 or float16."""
    import torch

    if device().type == "cuda":
        return dtype == torch.float16 or torch.cuda.is_bf16_supported(including_emulation=False)
    flags = next((line for line in _read("/proc/cpuinfo").splitlines() if line.startswith(("flags", "Features"))), "")
    wanted = {"avx512_fp16", "amx_fp16", "fphp"} if dtype == torch.float16 else {"avx512_bf16", "amx_bf16", "bf16"}
    return bool(wanted & set(flags.split()))


def describe() -> dict[str, Any]:
    """The machine and the versions that results depend on; names nobody."""
    names = ("mickle", "torch", "transformers", "tokenizers", "numba", "numpy")
    return {
        "processor": processor(),
        "cores": cores(),
        "memory_gb": round(total_memory() / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version for name in names if (version := installed_version(name))},
    }


def installed_version(package: str) -> str:
    """The version of a package; "" where it is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def processor() -> str:
    """The processor's model name."""
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _median_seconds(work: Any, repeats: int) -> float:
    import torch

    def once() -> float:
        begun = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - begun

    once()
    return max(statistics.median(once() for _ in range(repeats)), 1e-9)


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
