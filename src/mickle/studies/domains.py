"""Six domains of bytes that any installation holds, some worth reading and two that are not.

Real: sources of Python's standard library (``python``), documentation of numpy and torch (``prose``), C++ headers
(``headers``) and font tables (``tables``). Planted: random bytes (``noise``) and a loop of 16 bytes (``easy``).
"""

from __future__ import annotations

from functools import cache
from itertools import chain
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from mickle.data.installed import SITE, STDLIB, all_docstrings, package_files, parsed
from mickle.data.mixture import DomainMixture
from mickle.data.packing import TokenStream
from mickle.errors import UsageError
from mickle.studies.own import own_pages
from mickle.training.objectives import next_token

REAL = ("headers", "prose", "python", "tables")
PLANTED = ("easy", "noise")
BYTES = 256  # the vocabulary
MOST_BYTES = 1_000_000  # of a domain that are read
MOST_DOCUMENTATION = 2_000_000  # characters at which it ends: parsing it takes time
LEAST_PIECES, MOST_DOMAINS = 12, 40  # of a person's data
HELD_OUT_OF = 10  # one piece of 16 kB in so many is never trained on
PIECE = 16_384
SKIPPED = SITE | {"test", "tests", "idlelib", "pydoc_data"}  # of the standard library


def domains_of(world: str, data: str = "") -> list[str]:
    """The world's domains, in the order of names; those of a person's ``data``, where it is given (here and below)."""
    if data:
        return sorted(corpus(data))
    return sorted([*REAL, *PLANTED] if world == "planted" else REAL)


@cache
def corpus(data: str = "") -> dict[str, tuple[np.ndarray, np.ndarray, int]]:
    """Training bytes (uint8), held-out bytes and the size of all there is, by domain."""
    if data:
        return own_corpus(data)
    found = {
        "python": b"".join(map(Path.read_bytes, files_of(STDLIB, "*.py"))),
        "headers": b"".join(map(Path.read_bytes, files_of("pyarrow", "*.h"))),
        "tables": b"".join(map(Path.read_bytes, files_of("matplotlib", "*.afm"))),
        "prose": documentation(),
        # Uniform random printable bytes: nobody can learn more than their frequencies.
        "noise": np.random.default_rng(0).integers(32, 127, MOST_BYTES, dtype=np.uint8).tobytes(),
        "easy": b"abcdefgh01234567" * (MOST_BYTES // 16),
    }
    return {name: divided(data) for name, data in found.items()}


def own_corpus(data: str) -> dict[str, tuple[np.ndarray, np.ndarray, int]]:
    """A person's texts by the domain that their pages name: the host or the first folder. Small ones are left out."""
    texts: dict[str, list[str]] = {}
    for page in own_pages(Path(data)):
        texts.setdefault(page.domain, []).append(page.text)
    joined = {name: "\n\n".join(found).encode("utf-8", "replace") for name, found in texts.items()}
    large = {name: divided(text) for name, text in joined.items() if len(text) > LEAST_PIECES * PIECE}
    if not 2 <= len(large) <= MOST_DOMAINS:
        raise UsageError(
            f"There are {len(large)} domains of more than {LEAST_PIECES * PIECE:,} bytes",
            where=data,
            expected=f"2 to {MOST_DOMAINS}: a corpus with a column `domain`, or a folder in each",
        )
    return large


def files_of(package: str, pattern: str) -> list[Path]:
    """A package's files, in the order of their paths as text."""
    return sorted(package_files(package, SKIPPED if package == STDLIB else (), pattern), key=Path.as_posix)


def documentation() -> bytes:
    """Documentation strings of numpy and torch: no module of the standard library, whose sources are a domain."""
    parts: list[str] = []
    for path in chain(files_of("numpy", "*.py"), files_of("torch", "*.py")):
        if sum(map(len, parts)) > MOST_DOCUMENTATION:
            break
        if tree := parsed(path):
            parts += [text for text in all_docstrings(tree) if len(text) > 200]
    return "\n\n".join(parts).encode()


def divided(data: bytes) -> tuple[np.ndarray, np.ndarray, int]:
    """Every tenth piece held out; both sides no longer than is read; the size of it all."""
    there = np.frombuffer(data, dtype=np.uint8)
    pieces = [there[start : start + PIECE] for start in range(0, len(there), PIECE)]
    training = [piece for place, piece in enumerate(pieces) if place % HELD_OUT_OF]
    held_out = [piece for place, piece in enumerate(pieces) if place % HELD_OUT_OF == 0]
    return np.concatenate(training)[:MOST_BYTES], np.concatenate(held_out)[:MOST_BYTES], len(there)


def reference_weights(world: str, data: str = "") -> tuple[float, ...]:
    """What the baseline reads: as planted, or in proportion to what the installation holds."""
    names = domains_of(world, data)
    if world == "planted":
        return tuple(0.2 if name in PLANTED else 0.15 for name in names)
    sizes = [corpus(data)[name][2] for name in names]
    return tuple(size / sum(sizes) for size in sizes)


def mixture(world: str, weights: tuple[float, ...], rows: int, length: int, seed: int, data: str = "") -> DomainMixture:
    """Batches of the world's training bytes by weight."""
    streams = tuple(stream(corpus(data)[name][0]) for name in domains_of(world, data))
    return DomainMixture(streams, weights, rows, length, seed)


def stream(data: np.ndarray) -> TokenStream:
    """Bytes as one document."""
    return TokenStream(data, np.zeros(1, dtype=np.int64), end=BYTES)


@cache
def held_out_windows(name: str, length: int, rows: int, data: str = "") -> dict[str, Tensor]:
    """Windows of a domain's held-out bytes at equal distances, the same for all."""
    text = corpus(data)[name][1]
    starts = np.linspace(0, len(text) - length - 1, rows).astype(np.int64)
    return stream(text).windows(starts, length)


def held_out_losses(world: str, length: int, rows: int, model: nn.Module, data: str = "") -> dict[str, float]:
    """Mean loss of each domain in nats a byte, on windows spread over its held-out bytes, the same for all."""
    sums = {name: next_token(model, held_out_windows(name, length, rows, data)) for name in domains_of(world, data)}
    return {name: float(total / count) for name, (total, count) in sums.items()}
