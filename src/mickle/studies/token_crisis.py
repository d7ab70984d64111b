"""Token crisis: what many epochs of the same text cost, and how much of it dropout gives back.

"To Repeat or Not To Repeat: Insights from Scaling LLM under Token-Crisis" (arXiv 2305.13230): at a fixed number of
training tokens, fewer unique ones hurt, larger models more; of the regularisers only dropout helps (61.7 to 63.0 %
of tokens right where fresh text gives 64.6), it may begin late, and a mixture of experts finds its rate.

Every arm trains on equally many bytes of Python's standard library, in fixed windows, each epoch in an order of its
own: ``fresh`` reads each once; in the world ``few`` the others read a sixteenth of them 16 times, in ``many`` a
sixty-fourth 64 times. Files are held out whole. Arms with a strength try four; arms without one have nothing to try,
so their tuning cells are void, as are arms in worlds where nothing is asked of them. ``proxied`` is dropout at the
rate that was best for a narrow mixture of experts of as many parameters: in its tuning cells that model trains.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mickle.studies.declaration import Arm, Cell, Comparison, Measurements, Scale, Study, Taking
from mickle.studies.own import TEXTS
from mickle.studies.source_bytes import BYTES, enough_windows, held_out_windows, repeated_windows, unique_places

if TYPE_CHECKING:
    from torch import nn

    from mickle.models.shape import DecoderConfig

FRESH = ("fresh", "small-fresh")
PLAIN = (*FRESH, "none", "small")  # arms without a strength
ASKED = {"few": ("fresh", "none", "dropout")}  # in the other world all arms are
LEAST_DAMAGE = {"accuracy": 0.005, "loss": 0.02}  # shares of less would be shares of noise
DIVERGED = {"loss": 2 * math.log(BYTES), "accuracy": 0.0}  # what a run that blew up is said to have measured


def run_cell(cell: Cell, work: Path) -> Measurements:
    """One arm with one strength: train, and measure held-out loss and accuracy along the way."""
    values = cell.values
    tokens = values["steps"] * values["rows"] * values["length"]
    if cell.arm not in ASKED.get(cell.world, (cell.arm,)) or (values["tuning"] and cell.arm in PLAIN):
        return {"budget": tokens, "score": 0.0}  # void
    found = train_arm(cell)
    losses, accuracies = found["losses"], found["accuracies"]
    return {
        "budget": tokens,
        "score": -accuracies[-1],
        "loss": losses[-1],
        "accuracy": accuracies[-1],
        "best_loss": min(losses),
        "best_accuracy": max(accuracies),
        **found,
    }


def train_arm(cell: Cell) -> dict[str, Any]:
    """Train from the seed's weights on the seed's text; what was measured along the way."""
    from mickle.models.decoder import Decoder
    from mickle.studies.training import predicted, train
    from mickle.training.dropout import Dropout
    from mickle.training.objectives import next_token
    from mickle.training.optimizers import Schedule

    values, setting = cell.values, cell.setting
    steps, rows, length = values["steps"], values["rows"], values["length"]
    model = Decoder(shape(cell), seed=cell.seed)
    rate, start = setting.get("dropout", 0.0), values["late"] if cell.arm == "late" else 0.0
    epochs = 1 if cell.arm in FRESH else values["epochs"][cell.world]
    data = values.get("data", "")
    places = unique_places(cell.seed, steps * rows // epochs, length, data)
    held_out = [held_out_windows(values["held_out_rows"], length, data)]
    course = train(
        model,
        partial(next_token, smoothing=setting.get("smoothing", 0.0)),
        partial(repeated_windows, places, cell.seed, rows, length, data=data),
        optimizer(cell, model),
        steps=steps,
        worst=DIVERGED,
        schedule=Schedule(kind="cosine", warmup=0.05, floor=0.1),
        dropout=Dropout(rate=rate, start=start) if rate else None,
        evaluate=partial(predicted, batches=held_out),
        evaluate_every=max(1, steps // values["evaluations"]),
        seed=cell.seed,
        on_bad_numbers="skip",
        watch_loss=False,
    )
    last = [loss for loss in course.losses[-max(1, steps // 20) :] if math.isfinite(loss)]
    return {
        "evaluated": course.evaluated,
        "losses": course.curve("loss"),
        "accuracies": course.curve("accuracy"),
        "seconds": course.seconds,
        "training_loss": sum(last) / len(last) if last else DIVERGED["loss"],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def shape(cell: Cell) -> DecoderConfig:
    """The arm's decoder. In the tuning phase ``proxied`` is a narrow mixture of experts of as many parameters."""
    from mickle.studies.training import small_shape

    values = cell.values
    size = "small" if cell.arm.startswith("small") else "large"
    if cell.arm == "proxied" and values["tuning"]:
        size = "proxy"
    sizes = values["shapes"][size]
    extra = {name: sizes[name] for name in ("experts", "experts_per_token") if name in sizes}
    extra |= {name: cell.setting[name] for name in ("drop_path",) if name in cell.setting}
    return small_shape(sizes, BYTES, values["length"], **extra)


def optimizer(cell: Cell, model: nn.Module) -> Any:
    """AdamW; ``slower`` has another learning rate, ``decay`` another weight decay."""
    from mickle.training.optimizers import AdamW, build_optimizer

    values, setting = cell.values, cell.setting
    settings = AdamW(
        learning_rate=setting.get("learning_rate", values["learning_rate"]),
        betas=(0.9, 0.98),
        weight_decay=setting.get("weight_decay", values["weight_decay"]),
    )
    return build_optimizer(settings, model)


def damages(table: dict[str, Measurements]) -> dict[str, Measurements]:
    """Adds what repetition cost each arm in accuracy (``damage``), and which share of what it cost ``none`` an arm has
    not lost, in accuracy (``healed``) and loss (``healed_loss``), at the end.
    """
    if "accuracy" not in table["fresh"]:
        return table
    fresh, none = table["fresh"], table["none"]
    lost = max(fresh["accuracy"] - none["accuracy"], LEAST_DAMAGE["accuracy"])
    more = max(none["loss"] - fresh["loss"], LEAST_DAMAGE["loss"])
    found = {}
    for arm, measured in table.items():
        if "accuracy" not in measured:
            found[arm] = measured
            continue
        unharmed = table["small-fresh"] if arm.startswith("small") else fresh
        found[arm] = {
            **measured,
            "damage": unharmed["accuracy"] - measured["accuracy"],
            "healed": (measured["accuracy"] - none["accuracy"]) / lost,
            "healed_loss": (none["loss"] - measured["loss"]) / more,
        }
    return found


RATES = tuple({"dropout": rate} for rate in (0.05, 0.1, 0.25, 0.5))
VOID = tuple({"trial": trial} for trial in range(4))
SHAPES: dict[str, Any] = {
    "large": {"width": 64, "layers": 2, "heads": 2, "ffn_width": 192},
    "small": {"width": 32, "layers": 2, "heads": 1, "ffn_width": 96},
    "proxy": {"width": 32, "layers": 2, "heads": 1, "ffn_width": 68, "experts": 8, "experts_per_token": 2},
}
SIZES: dict[str, Any] = (
    {"tuning": False, "shapes": SHAPES}
    | {"steps": 512, "rows": 16, "length": 64, "epochs": {"few": 16, "many": 64}}
    | {"late": 0.5, "learning_rate": 2e-3, "weight_decay": 0.01}
    | {"held_out_rows": 256, "evaluations": 8}
)
GPU: dict[str, Any] = {
    "shapes": {
        "large": {"width": 512, "layers": 8, "heads": 8, "ffn_width": 1408},
        "small": {"width": 256, "layers": 4, "heads": 4, "ffn_width": 704},
        "proxy": {"width": 256, "layers": 8, "heads": 4, "ffn_width": 472, "experts": 8, "experts_per_token": 2},
    },
    **{"steps": 1024, "rows": 32, "length": 256, "learning_rate": 1e-3},
}


asked = partial(Comparison, better="higher", form="difference", worlds=("many",))
heals = partial(asked, says="heals {value:.0%} of the damage")
FEW, BOTH = ("few",), ("few", "many")
REPEATED = "64.6 to 61.7 % of tokens right, 256 epochs of 2^27 tokens"
HEALED = "dropout 61.7 to 63.0 % where fresh text has 64.6"
GAIN = "61.7 to 63.0 % of tokens right, at the end"
OTHERS = "the others added nothing to dropout's 61.7 to 63.0 %"

study = Study(
    name="token_crisis",
    title="To Repeat or Not To Repeat: Insights from Scaling LLM under Token-Crisis",
    paper="2305.13230",
    claim=(
        "At equally many training tokens, repeating few unique ones for many epochs degrades a model, larger ones more;"
        " of the regularisers only dropout heals, 45 % of the damage (61.7 to 63.0 % of tokens right where fresh text"
        " has 64.6), also when it begins in the second half, and a mixture of experts finds its rate."
    ),
    budget_unit="tokens",
    arms=(
        Arm("fresh", "every token read once, no regulariser", VOID),
        Arm("none", "the same tokens many times, no regulariser", VOID),
        Arm("dropout", "dropout on the embedding and on what each block adds", RATES),
        Arm("late", "the same dropout in the second half of the run only", RATES),
        Arm("decay", "weight decay", tuple({"weight_decay": decay} for decay in (0.1, 1.0, 3.0, 10.0))),
        Arm("drop-path", "stochastic depth", tuple({"drop_path": rate} for rate in (0.1, 0.2, 0.3, 0.5))),
        Arm("smoothing", "label smoothing", tuple({"smoothing": share} for share in (0.05, 0.1, 0.2, 0.3))),
        Arm(
            "slower", "a lower learning rate", tuple({"learning_rate": rate} for rate in (1e-3, 5e-4, 2.5e-4, 1.25e-4))
        ),
        Arm("proxied", "dropout at the rate that was best for a mixture of experts", RATES),
        Arm("small-fresh", "a third of the parameters, every token read once", VOID),
        Arm("small", "a third of the parameters, the same tokens many times", VOID),
    ),
    comparisons=(
        asked("fresh text against 16 epochs", "fresh", "none", "accuracy", 0.029, REPEATED, worlds=FEW),
        asked("fresh text against 64 epochs", "fresh", "none", "accuracy", 0.029, REPEATED),
        asked("damage of a model 3.5 times larger", "none", "small", "damage", 0.01, "figure, no number: a point"),
        heals("share of the damage that dropout heals", "dropout", "none", "healed", 0.45, HEALED, headline=True),
        heals("the same at 16 epochs", "dropout", "none", "healed", 0.45, HEALED, worlds=FEW),
        heals("the same in loss", "dropout", "none", "healed_loss", 0.45, HEALED),
        asked("dropout, both at their best checkpoints", "dropout", "none", "best_accuracy", 0.013, GAIN, worlds=BOTH),
        asked("dropout against weight decay", "dropout", "decay", "accuracy", 0.013, OTHERS),
        asked("dropout against stochastic depth", "dropout", "drop-path", "accuracy", 0.013, OTHERS),
        asked("dropout against label smoothing", "dropout", "smoothing", "accuracy", 0.013, OTHERS),
        asked("dropout against a lower learning rate", "dropout", "slower", "accuracy", 0.013, "not tried"),
        heals("share healed by late dropout", "late", "none", "healed", 0.45, "as dropout from the start"),
        heals("share healed at the rate of a mixture of experts", "proxied", "none", "healed", 0.45, "as dropout"),
    ),
    rule=(
        "Each strength is the best of four by final held-out accuracy on a seed that is not reported; the learning rate"
        " is one for all, so that arms differ in one thing. The headline is reproduced when dropout's interval of the"
        " share healed at the end of the run lies above 0 and its centre at 0.225 or more. The best checkpoint, at"
        " which one can stop for nothing, is asked separately, and so is every other regulariser: none can rescue it."
    ),
    scales={
        "quick": Scale(
            seeds=2,
            values={**SIZES, "steps": 96, "held_out_rows": 128, "evaluations": 4},
            tuning_values={"tuning": True},
            cell_seconds=120,
        ),
        "full": Scale(seeds=5, values=SIZES, tuning_values={"tuning": True}, cell_seconds=300),
        "gpu": Scale(seeds=5, values={**SIZES, **GPU}, tuning_values={"tuning": True}, cell_seconds=1800),
    },
    run_cell=run_cell,
    worlds=("few", "many"),
    tune_by="score",
    derive=damages,
    takes=Taking(data=TEXTS, worlds=("few", "many"), minutes=13, check=enough_windows),
    departures=(
        "a byte-level decoder of 0.12 million parameters on 8 or 32 thousand unique bytes of Python sources, 2^19 read"
        " (paper: T5 of 0.2 to 2.8 billion on 2^27 to 2^29 tokens of C4, 2^35 read)",
        "64 epochs for the strong damage and 16 for one of the paper's size (paper: 256 and 64)",
        "AdamW with a cosine (paper: Adafactor with an inverse square root)",
        "dropout on the embedding and on what blocks add; not inside attention and feed-forward (paper: all of them)",
        "each regulariser alone, at the best of four strengths (paper: added to dropout, one strength)",
        "a lower learning rate as a further control (paper: none)",
        "no fine-tuning on other tasks",
    ),
)
