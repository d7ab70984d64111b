"""QLoRA: does tuning adapters over a base in 4 bits reach what they reach over the base in 16?

"QLoRA: Efficient Finetuning of Quantized LLMs" (arXiv 2305.14314): with the base in NF4, its scales quantized once
more, and adapters on all linear layers, fine-tuning loses nothing against 16 bits (tables 2 to 4), at 4.127 bits
a weight; adapters on the query and value matrices alone fall behind full tuning (figure 2); NF4 is better than FP4 and
Int4.

The bases are small decoders trained by Mickle until rounding to 3 bits visibly hurts (``base_model``). The task is
new to them: from a function's signature to the first line of its docstring, in packages outside the standard library
(``docstrings``). "As good as" cannot be shown by a difference that is not seen; so the study measures what an arm costs
against adapters over the unrounded base as a share of what 3 bits cost, and asks for clearly less than a quarter.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mickle import machine
from mickle.studies.base_model import FULL, LARGE, SMALL, Base, base_folder, rounding
from mickle.studies.declaration import Arm, Cell, Comparison, Measurements, Scale, Study, Taking
from mickle.studies.docstrings import Example, batch, encoded, measure

if TYPE_CHECKING:
    from torch import nn


DENSE_BITS = 16.0  # a weight of the base that is not rounded, as the paper stores it
ALLOWED = 0.25  # of what 3 bits cost
LEAST_COST = 0.004  # nats: shares of less would be shares of noise
TUNED_APART = ("full", "nf4-dq-qv")  # the other arms of adapters take the rate that is best over the unrounded base


def run_cell(cell: Cell, work: Path) -> Measurements:
    """One arm: round the base, measure it, tune it on the task, measure it again."""
    arm, values, setting = cell.arm, cell.values, cell.setting
    if values["tuning"]:
        if arm == "nf4-dq-none":
            return {"budget": 1, "score": 0.0}  # void: nothing is tuned
        arm = arm if arm in TUNED_APART else "lora"
    return dict(tuned(arm, setting["rate"], cell.seed, json.dumps(values)))


@cache
def tuned(arm: str, rate: int, seed: int, dials: str) -> Measurements:
    """What an arm measures; kept, since in the tuning phase arms share their runs."""
    from mickle.models.folder import open_model

    values, options = json.loads(dials), ARMS[arm]
    folder = base_folder(Base(**values["base"]), seed % values["bases"])
    found: Measurements = {"budget": 1, "seconds": 0.0}  # 1 stands for none: ratios are taken
    if not values["tuning"]:
        code, double = options.get("code", ""), options.get("double", False)
        found |= untuned(folder, code, double, values["heldout_pages"], values["heldout_examples"])
    model = open_model(folder, device=machine.device())
    found |= round_base(model, options)
    training, heldout = encoded(folder)
    if arm != "nf4-dq-none":
        found |= tune(model, arm, RATES[arm == "full"][rate], seed, values, training)
    found |= measure(model, heldout, values["heldout_examples"])
    return found | {"score": found["loss"]}


@cache
def untuned(folder: Path, code: str, double: bool, pages: int, count: int) -> Measurements:
    """A base in a code before any tuning: on the task, and what rounding costs it; the same for many arms."""
    from mickle.models.folder import open_model

    model = open_model(folder, device=machine.device())
    round_base(model, {"code": code, "double": double})
    before = measure(model, encoded(folder)[1], count)
    return {**rounding(folder, model, pages), **{f"{name}_before": value for name, value in before.items()}}


def round_base(model: nn.Module, options: dict[str, Any]) -> Measurements:
    """Put the linear layers into the arm's code. Bits a weight of them: indices and scales, with all scales of scales
    (``bits_per_weight``), and what is stored with each layer's tables of 16 and 256 values too (``stored_bits``).
    """
    from mickle.models.quantized import bits_per_weight, quantize_model, quantized_layers

    if not options.get("code"):
        return {"bits_per_weight": DENSE_BITS, "stored_bits": DENSE_BITS}
    quantize_model(model, code=options["code"], double=options.get("double", False))
    size = weights = 0
    for layer in quantized_layers(model).values():
        parts = [part for name in ("packed", "absmax", "nested") if (part := getattr(layer, name)) is not None]
        size += sum(part.numel() * part.element_size() for part in parts)
        weights += layer.in_features * layer.out_features
    return {"bits_per_weight": 8 * size / weights, "stored_bits": bits_per_weight(model)}


def tune(
    model: nn.Module, arm: str, rate: float, seed: int, values: dict[str, Any], examples: list[Example]
) -> Measurements:
    """Tune adapters, or for ``full`` every weight; the base stays as it is."""
    import torch

    from mickle.models.lora import attach_lora
    from mickle.studies.training import train
    from mickle.training.objectives import next_token
    from mickle.training.optimizers import Schedule

    options = ARMS[arm]
    if arm != "full":
        rank = options.get("rank", RANK)
        targets = options.get("targets", "all-linear")
        attach_lora(model, rank=rank, alpha=2.0 * rank, targets=targets, seed=seed)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    course = train(
        model,
        next_token,
        partial(batch, examples, seed, values["rows"]),
        torch.optim.AdamW(trained, lr=rate, betas=(0.9, 0.999), weight_decay=0.0),
        steps=values["steps"],
        worst={},  # three steps in a row whose numbers were bad: the weights are those before them
        schedule=Schedule(kind="cosine", warmup=0.05, floor=0.0),
        seed=seed,
        on_bad_numbers="skip",
        watch_loss=False,
    )
    found = {"trained": sum(parameter.numel() for parameter in trained), "budget": values["steps"] * values["rows"]}
    return found | {"seconds": course.seconds} | ({"diverged": 1} if course.diverged else {})


def costs(table: dict[str, Measurements]) -> dict[str, Measurements]:
    """Adds what rounding costs an arm after tuning, as a share of what 3 bits cost (``cost``), and the share of full
    tuning's gain that it has (``gained``). The 3-bit arm's own ``cost`` is set to what is allowed, a quarter.
    """
    if "loss_before" not in table["lora"]:
        return table
    lora, full = table["lora"], table["full"]
    most = max(table["int3"]["loss"] - lora["loss"], LEAST_COST)
    gain = max(lora["loss_before"] - full["loss"], LEAST_COST)
    found = {}
    for arm, measured in table.items():
        cost = (measured["loss"] - lora["loss"]) / most
        found[arm] = {
            **measured,
            "cost": ALLOWED if arm == "int3" else cost,
            "cost_nats": measured["loss"] - lora["loss"],
            "gained": (lora["loss_before"] - measured["loss"]) / gain,
        }
    return found


RANK = 16
NF4_DQ: dict[str, Any] = {"code": "nf4", "double": True}
QV = {"targets": ["q_proj", "v_proj"]}
TABLE: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("full", "every weight tuned, base in 16 bits or more", {}),
    ("lora", "adapters of rank 16 on all linear layers, base as it is", {}),
    ("nf4", "the same over NF4, scales in 32 bits", {"code": "nf4"}),
    ("nf4-dq", "QLoRA: the same over NF4, scales quantized too", NF4_DQ),
    ("fp4", "over FP4 (E2M1), scales quantized", {"code": "fp4", "double": True}),
    ("int4", "over 4-bit integers, scales quantized", {"code": "int4", "double": True}),
    ("int3", "over 3-bit integers, scales quantized", {"code": "int3", "double": True}),
    ("nf4-dq-qv", "QLoRA with adapters on query and value matrices alone", {**NF4_DQ, **QV}),
    ("nf4-dq-none", "the base in NF4, not tuned", NF4_DQ),
    ("nf4-dq-r4", "QLoRA of rank 4", {**NF4_DQ, "rank": 4}),
    ("nf4-dq-r64", "QLoRA of rank 64", {**NF4_DQ, "rank": 64}),
)
ARMS = {name: options for name, _, options in TABLE}
RATES = {False: (3e-3, 1e-2, 2e-2), True: (1e-3, 3e-3, 1e-2)}  # of adapters, of all weights
GRID = tuple({"rate": place} for place in range(3))
SIZES: dict[str, Any] = (
    {"tuning": False, "base": asdict(FULL), "bases": 5}
    | {"steps": 200, "rows": 32}
    | {"heldout_examples": 2000, "heldout_pages": 60}
)
QUICK = {"base": asdict(SMALL), "bases": 1, "steps": 60, "rows": 16, "heldout_examples": 200, "heldout_pages": 15}


COSTS = "costs {value:.0%} of what 3-bit integers cost"
asked = partial(Comparison, better="lower", form="difference")
MATCHES = "tables 2 to 4: NF4 with double quantization matches 16 bits; asked here: costs less than a quarter of int3"
CODES = "table 2, mean perplexity (unverified): 34.34 Int4, 31.07 FP4, 27.41 NF4 + DQ"
CONTROL = "no claim: asked so that 5 standard errors are half of it"
COST = "NF4 + DQ costs less than a quarter of what 3 bits cost, after tuning"
HURT = "control: 3 bits hurt the base that is not tuned, in standard errors"
SHARE = "share of full tuning's gain that QLoRA has"
OF_16 = "{ratio:.1%} of 16 bits"
BITS = "closed form: 4.127 of 16"
GAINED = "tables 3 and 4: all of it"
LAYERS = "figure 2, no number in nats"

study = Study(
    name="qlora",
    version=2,  # the bases read sources alone; before, pages of documentation too, which follow curation's rules
    title="QLoRA: Efficient Finetuning of Quantized LLMs",
    paper="2305.14314",
    claim=(
        "Adapters on all linear layers over a base in 4-bit NormalFloat with double quantization, 4.127 bits a weight,"
        " match 16-bit fine-tuning (tables 2 to 4; up to 65B parameters)."
    ),
    budget_unit="examples",
    arms=tuple(Arm(name, what, GRID) for name, what, _ in TABLE),
    comparisons=(
        asked(COST, "nf4-dq", "int3", "cost", ALLOWED, MATCHES, headline=True, says=COSTS),
        asked("the same without double quantization", "nf4", "int3", "cost", ALLOWED, MATCHES, says=COSTS),
        asked(HURT, "lora", "int3", "rounding_z", 10.0, CONTROL, says="{gain:.3g} standard errors"),
        asked(
            "bits a weight of the base", "nf4-dq", "lora", "bits_per_weight", 4.127 / 16, BITS, form="ratio", says=OF_16
        ),
        asked(SHARE, "nf4-dq", "nf4-dq-none", "gained", 1.0, GAINED, better="higher", says="{change:.0%} of its gain"),
        asked("adapters on all layers against query and value", "nf4-dq", "nf4-dq-qv", "loss", 0.02, LAYERS),
        asked("NF4 against FP4, not tuned", "nf4-dq", "fp4", "rounding_cost", 0.125, CODES),
        asked("NF4 against 4-bit integers, not tuned", "nf4-dq", "int4", "rounding_cost", 0.225, CODES),
        asked("NF4 against FP4, tuned", "nf4-dq", "fp4", "loss", 0.125, CODES),
        asked("NF4 against 4-bit integers, tuned", "nf4-dq", "int4", "loss", 0.225, CODES),
    ),
    rule=(
        "The headline is reproduced when the interval of what NF4 + DQ costs against adapters over the unrounded base,"
        " as a share of what 3-bit integers cost, lies below a quarter and its centre is at most an eighth; partly when"
        " only the interval does. It says nothing, whatever its row, unless the control is reproduced (3 bits hurt the"
        " base by 5 standard errors or more) and the base is measured at 4.2 bits a weight or less."
    ),
    scales={
        "quick": Scale(
            seeds=2, values={**SIZES, **QUICK}, tuning_values={"tuning": True, "steps": 30}, cell_seconds=600
        ),
        "full": Scale(seeds=5, values=SIZES, tuning_values={"tuning": True, "steps": 100}, cell_seconds=1800),
        "gpu": Scale(
            seeds=5,
            values={**SIZES, "base": asdict(LARGE), "steps": 2000, "rows": 64},
            tuning_values={"tuning": True, "steps": 1000},
            cell_seconds=20000,
        ),
    },
    run_cell=run_cell,
    reads=("python", "numpy", "numba", "torch", "tokenizers"),
    tune_by="score",
    derive=costs,
    takes=Taking(instead="its bases are made, so that rounding hurts; --scale real takes a model and data of yours"),
    departures=(
        "decoders of 0.5 million parameters trained on the standard library, not LLaMA of 7B to 65B",
        "the score is a held-out loss on one supervised task, not MMLU or Vicuna's benchmark: the 99.3 % of ChatGPT's"
        " score, judged by GPT-4, cannot be shown offline",
        "equivalence is asked as costing less than a quarter of what 3-bit integers cost; the paper shows equal scores",
        "adapters in float32 of rank 16, alpha twice the rank, not rank 64 and alpha 16; AdamW in memory, not paged",
        "learning rates are chosen by full tuning, by adapters over the unrounded base (for all arms of adapters on all"
        " layers) and by query-and-value adapters, among three each",
        "3-bit integers are the control and stand in 4 bits each: what they would save is not measured",
        "sizes leave out the tables of 16 and 256 values, the same in every layer, which are 0.3 bits in layers this"
        " small and nothing in large ones; both figures are in the result",
    ),
)
