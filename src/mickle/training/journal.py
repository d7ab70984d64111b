"""The journal of a forward-only run: a file of some kilobytes that turns the base into the tuned model.

Source: arXiv 2305.17333, section 2.1, "Storage efficiency": a trajectory is a seed and two bytes a step. Here it is a
file with a header that says all a replay needs, so that it is checked before it touches a weight:

    "MEZO" | format, 2 bytes | length of the header, 4 bytes | header | body | xxh3-64 of all before, 8 bytes
    (little-endian)

The header is JSON, compressed: for each run the base's fingerprint, the tuned weights' fingerprint, the rule (seed,
eps, draws, ...), the trained tensors (name, shape, type, whether it decays), steps and pieces; of a run that tuned an
adapter also what it was (kind, rank, seed, ...) and the hash of the weight files beneath it, for the fingerprints are
then of the adapter alone: a frozen base may be held in any type. The body has for each
run the rates as pieces of (steps, 4 bytes; rate, 2 bytes) and then the projections, 2 bytes each. 20,000 steps at a
constant rate take 0.04 MB.

Most journals hold one run. `merge` puts a run that began where another ended behind it.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import xxhash

from mickle import storage
from mickle.errors import UsageError
from mickle.kernels.philox import MOST_ELEMENTS
from mickle.training.mezo_rule import MOST_DRAWS, MezoRule, from_codes
from mickle.untrusted.values import MOST_VALUES, count_values

if TYPE_CHECKING:
    from mickle.training.mezo import MeZO

MAGIC, FORMAT = b"MEZO", 1
GENERATOR = "philox4x32-10/1"  # the directions of kernels/philox.py; the number rises if one bit of them changes
LARGEST = 16 << 20  # bytes of a file: eight million steps
LARGEST_HEADER = 8 << 20  # unpacked; what would unfold without end stops here
ADAPTERS = ("lora", "prefix")
MOST_RUNS, MOST_MEASURED = 10_000, 10_000
_START = struct.Struct("<4sHI")
_PIECE = struct.Struct("<IH")


class TrainedTensor(NamedTuple):
    """One tensor that the run trained, as its header lists it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    decayed: bool


@dataclass(frozen=True)
class MezoRun:
    """One run: where it began, by which rule, and what each step saw."""

    base: str  # fingerprint of the weights it began at (`training/replay.py`); "" where nobody took it
    tuned: str  # of those it ended at
    rule: MezoRule
    tensors: tuple[TrainedTensor, ...]
    measured: int  # directions that were tried for a learning rate before the first step
    rates: tuple[int, ...]  # two-byte codes, one a step
    projections: tuple[int, ...]  # rule.probes a step
    added: dict[str, Any] | None = None  # the adapter that was put onto a frozen base: its kind, seed, settings
    beneath: str = ""  # with `added`: hash of that base's weight files (`models/adapters.py:weights_digest`)

    @property
    def steps(self) -> int:
        """How many steps it has."""
        return len(self.rates)


@dataclass(frozen=True)
class Journal:
    """Runs that follow each other."""

    runs: tuple[MezoRun, ...]

    @property
    def steps(self) -> int:
        """Steps of all runs."""
        return sum(run.steps for run in self.runs)

    def step(self, asked: int | None) -> int:
        """The step that is meant, the last for None; UsageError where there is none."""
        step = self.steps if asked is None else asked
        if not 0 <= step <= self.steps:
            raise UsageError(f"the journal has no step {step}", where="to_step", expected=f"0 to {self.steps}")
        return step


def journal_of(optimizer: MeZO, tuned: str = "", added: dict[str, Any] | None = None, beneath: str = "") -> Journal:
    """What an optimizer did so far. tuned: fingerprint of the model now; `added` and `beneath` as in `MezoRun`."""
    decayed = optimizer.decayed()
    tensors = tuple(
        TrainedTensor(name, tuple(t.shape), str(t.dtype).removeprefix("torch."), name in decayed)
        for name, t in optimizer.named_tensors()
    )
    codes = tuple(optimizer.rates), tuple(optimizer.projections)
    run = MezoRun(optimizer.base, tuned, optimizer.rule, tensors, optimizer.measured, *codes, added, beneath)
    return Journal((run,))


def write_journal(journal: Journal, path: Path) -> None:
    """Write a journal, whole or not at all."""
    storage.write_bytes(path, encode(journal))


def read_journal(path: Path) -> Journal:
    """Read and check a journal; UsageError where it is none, cut, changed or hostile."""
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"no such file: {path}", todo="check the path")
    if path.stat().st_size > LARGEST:
        raise UsageError(f"a journal has at most {LARGEST >> 20} MB", where=str(path))
    try:
        return decode(path.read_bytes())
    except UsageError as error:
        raise UsageError(error.what, where=str(path), expected=error.expected, todo=error.todo) from None


def encode(journal: Journal) -> bytes:
    """A journal as bytes."""
    runs, body = [], []
    for run in journal.runs:
        pieces = [(len(list(same)), code) for code, same in groupby(run.rates)]
        runs.append({
            "base": run.base, "tuned": run.tuned, "rule": run.rule.model_dump(mode="json"), "tensors": run.tensors,
            "measured": run.measured, "steps": run.steps, "pieces": len(pieces), "added": run.added,
            "beneath": run.beneath,
        })  # fmt: skip
        body += [_PIECE.pack(*piece) for piece in pieces]
        body.append(struct.pack(f"<{len(run.projections)}H", *run.projections))
    header = zlib.compress(json.dumps({"generator": GENERATOR, "runs": runs}).encode(), 9)
    text = _START.pack(MAGIC, FORMAT, len(header)) + header + b"".join(body)
    return text + xxhash.xxh3_64_digest(text)


def decode(data: bytes) -> Journal:
    """The journal that bytes hold. Every length is checked before it is believed."""
    if len(data) < _START.size + 8 or data[:4] != MAGIC:
        raise UsageError("not a journal of MeZO", expected="a file that begins with MEZO")
    text = data[:-8]
    _, version, length = _START.unpack_from(text)
    if version > FORMAT:
        raise UsageError("the journal was written by a newer Mickle", todo="upgrade mickle")
    if xxhash.xxh3_64_digest(text) != data[-8:]:
        raise UsageError("the journal is cut or changed: its checksum differs")
    if length > len(text) - _START.size:
        raise _broken("its header is longer than the file")
    header = _header(text[_START.size : _START.size + length])
    if header["generator"] != GENERATOR:
        raise UsageError(
            f"the journal's directions are of generator {str(header['generator'])[:60]!r}", expected=GENERATOR
        )
    body, runs = memoryview(text)[_START.size + length :], []
    for values in header["runs"]:
        run, used = _run(values, body)
        runs.append(run)
        body = body[used:]
    if len(body):
        raise _broken(f"{len(body)} bytes are left over")
    if any((run.added, run.beneath) != (runs[0].added, runs[0].beneath) for run in runs):
        raise _broken("its runs are of different adapters or bases")
    return Journal(tuple(runs))


def cut(journal: Journal, step: int, tuned: str = "") -> Journal:
    """The journal of the first `step` steps: that checkpoint, for nothing.

    tuned: the fingerprint of the weights at that step, where it is known; without it the cut journal knows its base
    only, unless it ends where a run ended.
    """
    step = journal.step(step)
    kept: list[MezoRun] = []
    for run in journal.runs:
        steps = min(step, run.steps)
        step -= steps
        if steps == run.steps:
            kept.append(run)
        elif steps or not kept:
            projections = run.projections[: steps * run.rule.probes]
            kept.append(replace(run, tuned="", rates=run.rates[:steps], projections=projections))
            break
    if tuned:
        kept[-1] = replace(kept[-1], tuned=tuned)
    return Journal(tuple(kept))


def merge(first: Journal, second: Journal) -> Journal:
    """One journal of two, where the second began at the weights that the first ended at."""
    ended, began = first.runs[-1].tuned, second.runs[0].base
    if not ended or ended != began:
        raise UsageError(
            "the second journal did not begin where the first ended",
            expected=f"base {ended or '(the first journal does not say)'}, found {began or '(not said)'}",
        )
    one, other = first.runs[0], second.runs[0]
    if (one.added, one.beneath) != (other.added, other.beneath):
        raise UsageError("the journals are of different adapters or of different bases beneath them")
    return Journal(first.runs + second.runs)


def describe(journal: Journal) -> str:
    """What a person wants to know of a journal, in a few lines."""
    lines = []
    for number, run in enumerate(journal.runs, 1):
        rule, g = run.rule, abs(from_codes(run.projections))
        weights = sum(math.prod(t.shape) for t in run.tensors)
        rates, moved = from_codes(run.rates), ""
        if run.steps:
            moved = f", rate {rates.min():.3g} to {rates.max():.3g}, median |g| {float(sorted(g)[len(g) // 2]):.3g}"
        lines.append(
            f"run {number}: {run.steps:,} steps on {len(run.tensors):,} tensors ({weights:,} weights), {rule.variant}, "
            f"{rule.draws}, {rule.probes} probe{'s' if rule.probes > 1 else ''}, "
            f"eps {rule.eps:g}, seed {rule.seed}{moved}; "
            f"base {run.base or 'unknown'}, tuned {run.tuned or 'unknown'}"
        )
    return "\n".join(lines)


def _header(compressed: bytes) -> dict[str, Any]:
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(compressed, LARGEST_HEADER)
        if not unpacker.eof:
            raise _broken("its header is too large or cut")
        if count_values(text.decode("latin-1")) > MOST_VALUES:
            raise _broken("its header holds too many values")
        header = json.loads(text)
    except (zlib.error, ValueError, RecursionError):
        raise _broken("its header cannot be read") from None
    if not isinstance(header, dict) or header.keys() != {"generator", "runs"}:
        raise _broken("its header lacks generator or runs")
    if not isinstance(header["runs"], list) or not 1 <= len(header["runs"]) <= MOST_RUNS:
        raise _broken("it has no runs")
    return header


def _run(values: Any, body: memoryview) -> tuple[MezoRun, int]:
    """One run and how many bytes of the body it took."""
    fields = {"base", "tuned", "rule", "tensors", "measured", "steps", "pieces", "added", "beneath"}
    if not isinstance(values, dict) or values.keys() != fields:
        raise _broken(f"a run has the fields {', '.join(sorted(fields))}")
    base, tuned, beneath = values["base"], values["tuned"], values["beneath"]
    if not all(isinstance(text, str) and len(text) <= 64 for text in (base, tuned, beneath)):
        raise _broken("a fingerprint is no short text")
    steps, pieces, measured = values["steps"], values["pieces"], values["measured"]
    if any(type(n) is not int for n in (steps, pieces, measured)) or not 0 <= pieces <= steps <= MOST_DRAWS:
        raise _broken("its number of steps is none")
    if not 0 <= measured <= MOST_MEASURED:
        raise _broken("its learning rate was measured in no possible number of directions")
    rule = MezoRule.from_json(values["rule"])
    size = _PIECE.size * pieces
    whole = size + 2 * steps * rule.probes
    if whole > len(body):
        raise _broken(f"it holds {len(body):,} bytes of steps where its header says {whole:,}")
    counts = [_PIECE.unpack_from(body, place) for place in range(0, size, _PIECE.size)]
    if sum(count for count, _ in counts) != steps:
        raise _broken("its rates are not of as many steps")
    rates = tuple(code for count, code in counts for _ in range(count))
    projections = struct.unpack_from(f"<{steps * rule.probes}H", body, size)
    if any((code & 0x7F80) == 0x7F80 for code in (*projections, *(code for _, code in counts))):
        raise _broken("a number in it is not finite")
    tensors, added = _tensors(values["tensors"]), _added(values["added"])
    if (added is None) != (beneath == ""):
        raise _broken("it says one of what was added and to which base, and not the other")
    return MezoRun(base, tuned, rule, tensors, measured, rates, projections, added, beneath), whole


def _added(value: Any) -> dict[str, Any] | None:
    """What was added; its settings are checked by who adds it again (`tuning/mezo_journal.py`)."""
    if value is None:
        return None
    seed = value.get("seed") if isinstance(value, dict) else None
    if type(seed) is not int or not 0 <= seed < 1 << 63 or value.get("kind") not in ADAPTERS:
        raise _broken(f"what was added has no seed or is none of {', '.join(ADAPTERS)}")
    return dict(value)


def _tensors(values: Any) -> tuple[TrainedTensor, ...]:
    if not isinstance(values, list) or not values:
        raise _broken("it trains no tensor")
    found = []
    for value in values:
        if not (isinstance(value, list) and [type(v) for v in value] == [str, list, str, bool]):
            raise _broken("a tensor in it has no name, shape, type and decay")
        name, shape, dtype, decayed = value
        whole = len(shape) <= 16 and all(type(n) is int and 0 <= n <= MOST_ELEMENTS for n in shape)
        if not whole or math.prod(shape) > MOST_ELEMENTS or dtype not in ("float32", "float64"):
            raise _broken(f"tensor {name[:80]!r} in it has no possible shape or type")
        found.append(TrainedTensor(name, tuple(shape), dtype, decayed))
    if any(a == b for a, b in pairwise(sorted(tensor.name for tensor in found))):
        raise _broken("it names a tensor twice")
    return tuple(found)


def _broken(what: str) -> UsageError:
    return UsageError(f"the journal is broken: {what}")
