"""DoReMi: do weights that a small robust proxy finds save a larger model steps?

"DoReMi: Optimizing Data Mixtures Speeds Up Language Model Pretraining" (arXiv 2305.10429): domain weights from a 280M
proxy take an 8B model to the baseline's accuracy in 2.6 times fewer steps. Two worlds of ``domains``. ``planted``:
sources of Python's standard library, documentation, C++ headers and font tables at .15 each, with random bytes
("noise") and a loop of 16 bytes ("easy") at .20 each. ``natural``: the four real domains alone, in the proportion of
their sizes.

Each arm is a way to weights; the model trained on them, its first weights and its learning rate are the same. The
proxy has a fifth of the model's parameters. Every cell makes two whole runs, which say how many steps an arm needs for
the loss that the reference weights give after S (``steps_to_loss``).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mickle.studies.declaration import Arm, Cell, Comparison, Measurements, Scale, Study, Taking
from mickle.studies.steps_to_loss import with_steps

if TYPE_CHECKING:
    from torch import nn

    from mickle.data.mixture import DomainMixture
    from mickle.models.decoder import Decoder
    from mickle.studies.training import Course


def run_cell(cell: Cell, work: Path) -> Measurements:
    """Find the arm's weights, train the model on them twice, measure every domain of the world on held-out bytes."""
    from mickle.studies.domains import PLANTED, domains_of

    data = cell.values.get("data", "")
    names = domains_of(cell.world, data)
    real = [name for name in names if data or name not in PLANTED]
    found = weights_of(cell)
    course = train_model(cell, found["weights"], cell.values["steps"])
    half = train_model(cell, found["weights"], cell.values["steps"] // 2, evaluations=1)
    last = course.measured[-1]
    means = [sum(values[name] for name in real) / len(real) for values in course.measured]
    return {
        "budget": cell.values["steps"],
        "mean_real": means[-1],
        "mean_real_at_half": sum(half.measured[-1][name] for name in real) / len(real),
        "worst_real": max(last[name] for name in real),
        "mean_all": sum(last[name] for name in names) / len(names),
        "noise_weight": sum(found["weights"][names.index(n)] for n in names if n == "noise"),
        "weights": list(found["weights"]),
        "losses_by_domain": [last[name] for name in names],
        "evaluated": course.evaluated,
        "losses": means,
        "proxy_steps": found["steps"],
    }


def own_domains(values: Mapping[str, Any]) -> list[str]:
    """The domains of a person's data; UsageError where they are too few or too small."""
    from mickle.studies.domains import domains_of

    return domains_of("natural", values["data"])


def weights_of(cell: Cell) -> dict[str, Any]:
    """The arm's weights, and the steps that finding them took."""
    from mickle.studies.domains import PLANTED, domains_of, reference_weights

    data = cell.values.get("data", "")
    names, baseline = domains_of(cell.world, data), reference_weights(cell.world, data)
    if cell.arm == "reference":
        return {"weights": baseline, "steps": 0}
    if cell.arm == "uniform":
        return {"weights": (1 / len(names),) * len(names), "steps": 0}
    if cell.arm == "by-hand":
        kept = [0.0 if name in PLANTED and not data else share for name, share in zip(names, baseline, strict=True)]
        return {"weights": tuple(share / sum(kept) for share in kept), "steps": 0}
    return robust_weights(cell, baseline)


def robust_weights(cell: Cell, baseline: tuple[float, ...]) -> dict[str, Any]:
    """DoReMi's steps 1 and 2 with a small model: a reference on the baseline's weights, then the proxy."""
    from mickle.studies.domains import BYTES, mixture
    from mickle.training.doremi import ReferenceLosses, RobustObjective, RobustProxy
    from mickle.training.objectives import next_token
    from mickle.training.robust import RobustRule

    values, count = cell.values, len(baseline)
    steps, rows = values["proxy_steps"], values["proxy_rows"]
    reference = decoder(cell, "proxy_")
    read = partial(mixture, cell.world, rows=rows, length=values["length"], seed=cell.seed, data=values.get("data", ""))
    if cell.arm == "doremi":  # loss alone looks at no reference
        train_on(reference, next_token, read(baseline), values["proxy_rate"], steps, cell.seed)
    objective = RobustObjective(
        ReferenceLosses(reference), RobustRule(score="hardest" if cell.arm == "hardest" else "excess")
    )
    proxy = RobustProxy(decoder(cell, "proxy_"), count, steps, BYTES)
    train_on(proxy, objective, read((1 / count,) * count), values["proxy_rate"], steps, cell.seed, proxy)
    return {"weights": tuple(proxy.result(values["burn_in"]).tolist()), "steps": steps}


def decoder(cell: Cell, which: str = "") -> Decoder:
    """The seed's byte-level decoder before training; ``which`` is "proxy_" for a fresh proxy or reference."""
    from mickle.studies.domains import BYTES
    from mickle.studies.training import small_decoder

    values = cell.values
    width, layers = values[f"{which}width"], values[f"{which}layers"]
    sizes = {"width": width, "layers": layers, "heads": width // 16, "ffn_width": 3 * width}
    return small_decoder(sizes, BYTES, values["length"], cell.seed)


def train_model(cell: Cell, weights: tuple[float, ...], steps: int, evaluations: int = 5) -> Course:
    """Train the main model on the weights; held-out losses by domain along the way."""
    from mickle.studies.domains import held_out_losses, mixture
    from mickle.training.objectives import next_token

    values = cell.values
    data = values.get("data", "")
    batches = mixture(cell.world, weights, values["rows"], values["length"], cell.seed, data)
    measure = partial(held_out_losses, cell.world, values["length"], values["held_out_rows"], data=data)
    every = max(1, steps // evaluations)
    return train_on(
        decoder(cell), next_token, batches, values["rate"], steps, cell.seed, evaluate=measure, evaluate_every=every
    )


def train_on(
    model: nn.Module,
    objective: Any,
    batches: DomainMixture,
    rate: float,
    steps: int,
    seed: int,
    follows: Any = None,
    **options: Any,
) -> Course:
    """One whole run with AdamW; ``follows`` is a proxy whose weights of domains change with the optimizer's steps."""
    from mickle.studies.training import train
    from mickle.training.optimizers import AdamW, Schedule, build_optimizer

    optimizer = build_optimizer(AdamW(learning_rate=rate), model)
    if follows is not None:
        follows.follow(optimizer, objective)
    schedule = Schedule(kind="cosine", warmup=0.05, floor=0.05)
    return train(
        model, objective, batches, optimizer, steps=steps, schedule=schedule, seed=seed, watch_loss=False, **options
    )


FULL: dict[str, Any] = (
    {"width": 64, "layers": 3, "length": 64, "rows": 16, "steps": 400, "rate": 4e-3}
    | {"proxy_width": 32, "proxy_layers": 2, "proxy_rows": 32, "proxy_steps": 300, "proxy_rate": 4e-3}
    | {"burn_in": 0.0, "held_out_rows": 128}
)
QUICK: dict[str, Any] = {**FULL, "steps": 120, "proxy_steps": 100, "held_out_rows": 64}
GPU: dict[str, Any] = {**FULL, "width": 768, "layers": 12, "length": 512, "rows": 64, "steps": 8000, "rate": 1e-3} | {
    "proxy_width": 256,
    "proxy_layers": 6,
    "proxy_rows": 128,
    "proxy_steps": 4000,
    "proxy_rate": 2e-3,
}


asked = partial(Comparison, better="lower", form="ratio", worlds=("planted",))
less = partial(asked, form="difference")
STEPS, NEEDS = "steps_to_target", "needs {ratio:.0%} of the baseline's steps"
NATURAL = ("natural",)
ABSTRACT = "abstract: 2.6x fewer steps to the baseline's accuracy, 8B on The Pile"
OURS = "the paper has no figure in nats; 0.05 is ours"
BETTER = f"better in all 22 domains; {OURS}"
EXCESS = f"section 4: the excess does better than the loss alone; {OURS}"

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
        asked(
            "steps to the baseline's loss", "doremi", "reference", STEPS, 1 / 2.6, ABSTRACT, headline=True, says=NEEDS
        ),
        asked("the same, natural domains only", "doremi", "reference", STEPS, 1 / 2.6, ABSTRACT, worlds=NATURAL),
        less("worst real domain", "doremi", "reference", "worst_real", 0.05, BETTER),
        less("worst domain, natural", "doremi", "reference", "worst_real", 0.05, BETTER, worlds=NATURAL),
        less("mean over all six domains", "doremi", "reference", "mean_all", 0.05, BETTER),
        less("real domains, against uniform weights", "doremi", "uniform", "mean_real", 0.05, OURS),
        less("real domains, against the proxy's loss alone", "doremi", "hardest", "mean_real", 0.05, EXCESS),
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
    derive=partial(with_steps, baseline="reference", loss="mean_real"),
    takes=Taking(
        data="texts of several domains: a corpus whose pages name theirs, or a folder of text files in folders",
        worlds=("natural",),
        minutes=6,
        dials=("steps", "proxy_steps"),
        check=own_domains,
    ),
    departures=(
        "bytes of a Python installation in four to six domains, not The Pile's 22",
        "a model five times the proxy's size and two runs of some hundred steps, not thirty times and 200,000",
        "steps to the baseline's mean held-out loss over real domains; the paper counts steps to one-shot accuracy",
        "one learning rate for all arms: the arms differ in data alone",
        "AdamW and a cosine schedule for reference, proxy and model; the paper has Adafactor",
    ),
)
