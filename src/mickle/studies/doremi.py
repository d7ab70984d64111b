"""DoReMi: do weights that a small robust proxy finds save a larger model steps?

"DoReMi: Optimizing Data Mixtures Speeds Up Language Model Pretraining" (arXiv 2305.10429): domain weights from a 280M
proxy take an 8B model to the baseline's accuracy in 2.6 times fewer steps. Two worlds of bytes that any installation
holds. ``planted``: sources of Python's standard library, documentation, C++ headers and font tables at .15 each, with
random bytes ("noise") and a loop of 16 bytes ("easy") at .20 each. ``natural``: the four real domains alone, in the
proportion of their sizes.

Each arm is a way to weights; the model trained on them, its first weights and its learning rate are the same. The
proxy has a fifth of the model's parameters. Every cell makes two whole runs, of S and of S/2 steps, each with its own
schedule; a line through an arm's two losses over log2(steps) says how many steps it needs for the loss that the
reference weights give after S (as in the study of Sophia, and with its function).
"""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mickle.studies.declaration import Arm, Cell, Comparison, Measurements, Scale, Study

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mickle.data.mixture import DomainMixture
    from mickle.data.packing import TokenStream

REAL = ("headers", "prose", "python", "tables")
PLANTED = ("easy", "noise")
BYTES = 256  # the vocabulary
MOST_BYTES = 1_000_000  # of a domain that are read
MOST_DOCUMENTATION = 2_000_000  # characters at which it ends: parsing it takes time
HELD_OUT_OF = 10  # one piece of 16 kB in so many is never trained on
PIECE = 16_384
SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idlelib", "__pycache__", "pydoc_data"}


def run_cell(cell: Cell, work: Path) -> Measurements:
    """Find the arm's weights, train the model on them twice, measure every domain of the world on held-out bytes."""
    names = domains_of(cell.world)
    found = weights_of(cell)
    whole = train_model(cell, found["weights"], cell.values["steps"])
    half = train_model(cell, found["weights"], cell.values["steps"] // 2, evaluations=1)
    last = whole["losses"][-1]
    real = [last[name] for name in REAL]
    return {
        "budget": cell.values["steps"],
        "mean_real": sum(real) / len(real),
        "mean_real_at_half": sum(half["losses"][-1][name] for name in REAL) / len(REAL),
        "worst_real": max(real),
        "mean_all": sum(last[name] for name in names) / len(names),
        "noise_weight": sum(found["weights"][names.index(n)] for n in names if n == "noise"),
        "weights": list(found["weights"]),
        "losses_by_domain": [last[name] for name in names],
        "evaluated": whole["evaluated"],
        "losses": [sum(values[name] for name in REAL) / len(REAL) for values in whole["losses"]],
        "proxy_steps": found["steps"],
    }


def domains_of(world: str) -> list[str]:
    """The world's domains, in the order of names."""
    return sorted([*REAL, *PLANTED] if world == "planted" else REAL)


def reference_weights(world: str) -> tuple[float, ...]:
    """What the baseline reads: as planted, or in proportion to what the installation holds."""
    names = domains_of(world)
    if world == "planted":
        return tuple(0.2 if name in PLANTED else 0.15 for name in names)
    sizes = [corpus()[name][2] for name in names]
    return tuple(size / sum(sizes) for size in sizes)


def weights_of(cell: Cell) -> dict[str, Any]:
    """The arm's weights, and the steps that finding them took."""
    names, baseline = domains_of(cell.world), reference_weights(cell.world)
    if cell.arm == "reference":
        return {"weights": baseline, "steps": 0}
    if cell.arm == "uniform":
        return {"weights": (1 / len(names),) * len(names), "steps": 0}
    if cell.arm == "by-hand":
        kept = [share if name in REAL else 0.0 for name, share in zip(names, baseline, strict=True)]
        return {"weights": tuple(share / sum(kept) for share in kept), "steps": 0}
    return robust_weights(cell, baseline)


def robust_weights(cell: Cell, baseline: tuple[float, ...]) -> dict[str, Any]:
    """DoReMi's steps 1 and 2 with a small model: a reference on the baseline's weights, then the proxy."""
    from mickle.training.doremi import ReferenceLosses, RobustObjective, RobustProxy, Rule

    values, names = cell.values, domains_of(cell.world)
    steps, rows = values["proxy_steps"], values["proxy_rows"]
    reference = small_model(cell)
    if cell.arm == "doremi":  # loss alone looks at no reference
        reference = trained_reference(cell, baseline)
    objective = RobustObjective(
        ReferenceLosses(reference), Rule(score="hardest" if cell.arm == "hardest" else "excess")
    )
    proxy = RobustProxy(small_model(cell), len(names), steps, BYTES)
    uniform = (1 / len(names),) * len(names)
    train(proxy, objective, mixture(cell, uniform, rows), values["proxy_rate"], steps, cell.seed, proxy)
    return {"weights": tuple(proxy.result(values["burn_in"]).tolist()), "steps": steps}


def trained_reference(cell: Cell, baseline: tuple[float, ...]) -> nn.Module:
    """A small model trained on the baseline's weights."""
    from mickle.training.objectives import next_token

    values, model = cell.values, small_model(cell)
    batches = mixture(cell, baseline, values["proxy_rows"])
    train(model, next_token, batches, values["proxy_rate"], values["proxy_steps"], cell.seed)
    return model


def small_model(cell: Cell) -> nn.Module:
    """A fresh proxy or reference."""
    values = cell.values
    return decoder(values["proxy_width"], values["proxy_layers"], values["length"], cell.seed)


def decoder(width: int, layers: int, length: int, seed: int) -> nn.Module:
    """A fresh byte-level decoder."""
    from mickle.models.decoder import Decoder, DecoderConfig

    heads = width // 16
    shape = DecoderConfig(
        vocab_size=BYTES,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=heads,
        head_width=16,
        ffn_width=3 * width,
        max_length=length,
    )
    return Decoder(shape, seed=seed)


def train_model(cell: Cell, weights: tuple[float, ...], steps: int, evaluations: int = 5) -> dict[str, Any]:
    """Train the main model on the weights; held-out losses by domain along the way."""
    from mickle.events import Evaluated
    from mickle.training.objectives import next_token

    values = cell.values
    model = decoder(values["width"], values["layers"], values["length"], cell.seed)
    names = domains_of(cell.world)
    events = train(
        model,
        next_token,
        mixture(cell, weights, values["rows"]),
        values["rate"],
        steps,
        cell.seed,
        evaluate=partial(held_out_losses, names, values["length"], values["held_out_rows"]),
        evaluate_every=max(1, steps // evaluations),
    )
    seen = [event for event in events if isinstance(event, Evaluated)]
    return {"evaluated": [event.step for event in seen], "losses": [event.values for event in seen]}


def train(
    model: nn.Module,
    objective: Any,
    batches: DomainMixture,
    rate: float,
    steps: int,
    seed: int,
    follows: Any = None,
    **options: Any,
) -> list[Any]:
    """One whole run with AdamW; its events."""
    from mickle.training.loop import fit
    from mickle.training.optimizers import AdamW, Schedule, build_optimizer

    optimizer = build_optimizer(AdamW(learning_rate=rate), model)
    if follows is not None:
        follows.follow(optimizer, objective)
    schedule = Schedule(kind="cosine", warmup=0.05, floor=0.05)
    return list(
        fit(
            model, objective, batches, optimizer, steps=steps, schedule=schedule, seed=seed, watch_loss=False, **options
        )
    )


def mixture(cell: Cell, weights: tuple[float, ...], rows: int) -> DomainMixture:
    """Batches of the world's training bytes by weight, from the cell's seed."""
    from mickle.data.mixture import DomainMixture

    streams = tuple(stream(corpus()[name][0]) for name in domains_of(cell.world))
    return DomainMixture(streams, weights, rows, cell.values["length"], cell.seed)


def stream(data: Any) -> TokenStream:
    """Bytes as one document."""
    import numpy as np

    from mickle.data.packing import TokenStream

    return TokenStream(data, np.zeros(1, dtype=np.int64), end=BYTES)


def held_out_losses(names: list[str], length: int, rows: int, model: nn.Module) -> dict[str, float]:
    """Mean loss of each domain in nats a byte, on windows spread over its held-out bytes, the same for all."""
    from mickle.training.objectives import next_token

    found = {}
    for name in names:
        batch: dict[str, Tensor] = held_out_windows(name, length, rows)
        total, count = next_token(model, batch)
        found[name] = float(total / count)
    return found


@cache
def held_out_windows(name: str, length: int, rows: int) -> dict[str, Tensor]:
    """Windows at equal distances."""
    import numpy as np

    data = corpus()[name][1]
    starts = np.linspace(0, len(data) - length - 1, rows).astype(np.int64)
    return stream(data).windows(starts, length)


@cache
def corpus() -> dict[str, tuple[Any, Any, int]]:
    """Training bytes (uint8), held-out bytes and the size of all there is, by domain."""
    found = {
        "python": b"".join(map(Path.read_bytes, files_of("stdlib", "*.py"))),
        "headers": b"".join(map(Path.read_bytes, files_of("pyarrow", "*.h"))),
        "tables": b"".join(map(Path.read_bytes, files_of("matplotlib", "*.afm"))),
        "prose": documentation(),
        "noise": printable_noise(),
        "easy": b"abcdefgh01234567" * (MOST_BYTES // 16),
    }
    return {name: divided(data) for name, data in found.items()}


def files_of(package: str, pattern: str) -> list[Path]:
    """A package's files, in an order that depends on their names alone."""
    import importlib.util
    import sysconfig

    if package == "stdlib":
        folder = Path(sysconfig.get_paths()["stdlib"])
    else:
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        folder = Path(spec.origin).parent
    paths = (p.relative_to(folder) for p in folder.rglob(pattern))
    kept = sorted(p.as_posix() for p in paths if package != "stdlib" or not SKIPPED & set(p.parts))
    return [folder / name for name in kept]


def documentation() -> bytes:
    """Documentation strings of numpy and torch: no module of the standard library, whose sources are a domain."""
    import ast

    parts: list[str] = []
    for path in [*files_of("numpy", "*.py"), *files_of("torch", "*.py")]:
        if sum(map(len, parts)) > MOST_DOCUMENTATION:
            break
        try:
            nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        except (SyntaxError, ValueError):  # a package's test of a syntax that this Python does not have
            continue
        said = [ast.get_docstring(n) for n in nodes if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef)]
        parts += [text for text in said if text and len(text) > 200]
    return "\n\n".join(parts).encode()


def printable_noise() -> bytes:
    """Uniform random printable bytes: nobody can learn more than their frequencies."""
    import numpy as np

    return np.random.default_rng(0).integers(32, 127, MOST_BYTES, dtype=np.uint8).tobytes()


def divided(data: bytes) -> tuple[Any, Any, int]:
    """Every tenth piece held out; both sides no longer than is read; the whole size."""
    import numpy as np

    whole = np.frombuffer(data, dtype=np.uint8)
    pieces = [whole[start : start + PIECE] for start in range(0, len(whole), PIECE)]
    training = [piece for place, piece in enumerate(pieces) if place % HELD_OUT_OF]
    held_out = [piece for place, piece in enumerate(pieces) if place % HELD_OUT_OF == 0]
    return np.concatenate(training)[:MOST_BYTES], np.concatenate(held_out)[:MOST_BYTES], len(whole)


def steps_to_baseline(table: dict[str, Measurements]) -> dict[str, Measurements]:
    """Adds the steps each arm needs for the mean real loss that the reference weights give after S steps."""
    from mickle.studies.sophia import steps_ratio

    target = table["reference"]["mean_real"]
    return {
        arm: {
            **measured,
            "steps_to_target": measured["budget"]
            * steps_ratio(measured["mean_real_at_half"], measured["mean_real"], target),
        }
        for arm, measured in table.items()
    }


FULL: dict[str, Any] = {
    "width": 64,
    "layers": 3,
    "length": 64,
    "rows": 16,
    "steps": 400,
    "rate": 4e-3,
    "proxy_width": 32,
    "proxy_layers": 2,
    "proxy_rows": 32,
    "proxy_steps": 300,
    "proxy_rate": 4e-3,
    "burn_in": 0.0,
    "held_out_rows": 128,
}
QUICK: dict[str, Any] = {**FULL, "steps": 120, "proxy_steps": 100, "held_out_rows": 64}
GPU: dict[str, Any] = {
    **FULL,
    "width": 768,
    "layers": 12,
    "length": 512,
    "rows": 64,
    "steps": 8000,
    "rate": 1e-3,
    "proxy_width": 256,
    "proxy_layers": 6,
    "proxy_rows": 128,
    "proxy_steps": 4000,
    "proxy_rate": 2e-3,
}


def compared(
    name: str,
    measure: str,
    effect: float,
    paper: str,
    *,
    baseline: str = "reference",
    world: str = "planted",
    headline: bool = False,
) -> Comparison:
    """DoReMi against another way to weights; lower is better in all of them."""
    return Comparison(
        name=name,
        method="doremi",
        baseline=baseline,
        measure=measure,
        better="lower",
        form="ratio" if measure == "steps_to_target" else "difference",
        paper_effect=effect,
        paper=paper,
        worlds=(world,),
        headline=headline,
    )


ABSTRACT = "abstract: 2.6x fewer steps to the baseline's accuracy, 8B on The Pile"
OURS = "the paper has no figure in nats; 0.05 is ours"

study = Study(
    name="doremi",
    title="DoReMi: Optimizing Data Mixtures Speeds Up Language Model Pretraining",
    paper="2305.10429",
    claim=(
        "Domain weights from a small proxy trained by group DRO take a 30 times larger model to the baseline's accuracy"
        " in 2.6 times fewer steps, with lower loss in every domain (abstract; 280M to 8B parameters)."
    ),
    budget_unit="steps of the model that is trained on the weights",
    arms=(
        Arm("reference", "the baseline's weights: .15 a real domain and .20 noise, easy; or by size"),
        Arm("uniform", "all domains alike"),
        Arm("doremi", "group DRO on the excess over a reference model, eta 1, c .001"),
        Arm("hardest", "group DRO on the proxy's own loss: the control without a reference"),
        Arm("by-hand", "the baseline's weights without noise and easy: what a person who knew would do"),
    ),
    comparisons=(
        compared("steps to the baseline's loss", "steps_to_target", 1 / 2.6, ABSTRACT, headline=True),
        compared("the same, natural domains only", "steps_to_target", 1 / 2.6, ABSTRACT, world="natural"),
        compared("worst real domain", "worst_real", 0.05, f"better in all 22 domains; {OURS}"),
        compared("worst domain, natural", "worst_real", 0.05, f"better in all 22 domains; {OURS}", world="natural"),
        compared("mean over all six domains", "mean_all", 0.05, f"better in all 22 domains; {OURS}"),
        compared("real domains, against uniform weights", "mean_real", 0.05, OURS, baseline="uniform"),
        compared(
            "real domains, against the proxy's loss alone",
            "mean_real",
            0.05,
            f"section 4: the excess does better than the loss alone; {OURS}",
            baseline="hardest",
        ),
    ),
    rule=(
        "The headline is reproduced when a model trained on DoReMi's weights needs at most .62 of the steps (half of"
        " the paper's effect, in logarithms) that it needs on the baseline's weights for their final mean loss over"
        " the real domains, with an interval below 1, in the world with planted noise. Part of such a gain is only"
        " less noise: the comparison with uniform weights, the natural world and the arm by hand say how much, and"
        " cannot rescue the headline."
    ),
    scales={
        "quick": Scale(seeds=2, values=QUICK, cell_seconds=120),
        "full": Scale(seeds=5, values=FULL, cell_seconds=600),
        "gpu": Scale(seeds=5, values=GPU, cell_seconds=7200),
    },
    run_cell=run_cell,
    reads=("python", "numpy", "torch", "pyarrow", "matplotlib"),
    worlds=("planted", "natural"),
    derive=steps_to_baseline,
    departures=(
        "bytes of a Python installation in four to six domains, not The Pile's 22",
        "a model five times the proxy's size and two runs of some hundred steps, not thirty times and 200,000",
        "steps to the baseline's mean held-out loss over real domains; the paper counts steps to one-shot accuracy",
        "one learning rate for all arms: the arms differ in data alone",
        "AdamW and a cosine schedule for reference, proxy and model; the paper has Adafactor",
    ),
)
