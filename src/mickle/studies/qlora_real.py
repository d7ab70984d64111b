"""QLoRA on a real model: what the study ``qlora`` asks, of a model folder that people use.

The base is the folder's model, in 16 bits or as it is (SmolLM2 from its GGUF file was rounded to Q4_1 once), its linear
layers in NF4 with double quantization, or in 3-bit integers. The task is that of the small study, from a function's
signature to the first line of its docstring (``docstrings``), or a person's conversations, completions or texts. Every
arm takes as many steps on the same batches; all take the rate that is best over the base as it is.
"""

from __future__ import annotations

import json
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mickle import machine
from mickle.studies.declaration import Arm, Cell, Comparison, Measurements, Scale, Study, Taking
from mickle.studies.own import MODEL
from mickle.studies.qlora import ALLOWED, BITS, COST, COSTS, LEAST_COST, MATCHES, OF_16, round_base, study

if TYPE_CHECKING:
    from torch import nn

    from mickle.data.example_batches import Encoded

CODES: dict[str, dict[str, Any]] = {
    "lora": {},
    "nf4-dq": {"code": "nf4", "double": True},
    "int3": {"code": "int3", "double": True},
}
RATES = (3e-4, 1e-3, 3e-3, 1e-2)


def run_cell(cell: Cell, work: Path) -> Measurements:
    """One arm: put the base in its code, tune adapters on all linear layers, measure. In the tuning phase the arms are
    one, over the base as it is, and share their runs.
    """
    arm = "lora" if cell.values["tuning"] else cell.arm
    return dict(tuned(arm, RATES[cell.setting["rate"]], cell.seed, json.dumps(cell.values)))


@cache
def tuned(arm: str, rate: float, seed: int, dials: str) -> Measurements:
    """What an arm measures, before and after."""
    values = json.loads(dials)
    model, bits = coded(values["model"], arm)
    training, heldout = lesson(values["model"], values.get("data", ""), values["length"])
    before = {} if values["tuning"] else untuned(values["model"], arm, dials)
    budget = tune(model, rate, seed, values, training)
    after = measured(model, heldout, values["heldout_examples"])
    return {**bits, **before, **after, "budget": budget, "score": after["loss"]}


@cache
def untuned(folder: str, arm: str, dials: str) -> Measurements:
    """A base in its code before any tuning; the same for all seeds."""
    values = json.loads(dials)
    heldout = lesson(folder, values.get("data", ""), values["length"])[1]
    found = measured(coded(folder, arm)[0], heldout, values["heldout_examples"])
    return {f"{name}_before": value for name, value in found.items()}


def coded(folder: str, arm: str) -> tuple[nn.Module, Measurements]:
    """The model with its linear layers in the arm's code, and the bits a weight of them."""
    from mickle.models.folder import open_model

    model = open_model(Path(folder), device=machine.device())
    return model, round_base(model, CODES[arm])


@cache
def lesson(folder: str, data: str, length: int) -> tuple[Encoded, Encoded]:
    """What is learnt and what is measured, in the model's tokens; at most ``length`` of an example."""
    from mickle.data.tokenizer import open_text_tokenizer
    from mickle.tuning.data_files import DataFile
    from mickle.tuning.task import Sources
    from mickle.tuning.tune_data import read_task

    tokenizer = open_text_tokenizer(Path(folder))
    if data:
        task = read_task(Sources([DataFile(path=Path(data))]), Path(folder), tokenizer, length, causal=True)
        return task.training, task.heldout
    return documentation(folder)


def documentation(folder: str) -> tuple[Encoded, Encoded]:
    """Signatures and the first lines of their docstrings, in the model's tokens."""
    import numpy as np

    from mickle.data.example_batches import Encoded
    from mickle.studies.docstrings import encoded

    training, heldout = (
        Encoded([tokens for tokens, _ in side], [np.arange(len(tokens)) >= prompt for tokens, prompt in side])
        for side in encoded(Path(folder))
    )
    return training, heldout


def tune(model: nn.Module, rate: float, seed: int, values: dict[str, Any], training: Encoded) -> int:
    """Train adapters of rank 16 on all linear layers; the tokens that were read."""
    import torch

    from mickle.data.example_batches import ExampleBatches
    from mickle.models.lora import attach_lora
    from mickle.studies.training import train
    from mickle.training.objectives import trained_tokens
    from mickle.training.optimizers import Schedule

    attach_lora(model, rank=16, alpha=32.0, targets="all-linear", seed=seed)
    learns = [parameter for parameter in model.parameters() if parameter.requires_grad]
    batches = ExampleBatches(training, values["length"], values["rows"], seed)
    optimizer = torch.optim.AdamW(learns, lr=rate, betas=(0.9, 0.999), weight_decay=0.0)
    schedule = Schedule(kind="cosine", warmup=0.05, floor=0.0)
    options: dict[str, Any] = {"schedule": schedule, "seed": seed, "on_bad_numbers": "skip", "watch_loss": False}
    train(model, trained_tokens, batches, optimizer, steps=values["steps"], worst={}, **options)
    return int(values["steps"] * values["rows"] * values["length"])


def measured(model: nn.Module, heldout: Encoded, count: int) -> dict[str, float]:
    """Nats a token of held-out answers, and the share of their tokens that is right."""
    from mickle.tuning.measures import answer_scores

    model.eval()
    nats, tokens, right = answer_scores(model, heldout, count).sum(0).tolist()
    return {"loss": nats / tokens, "accuracy": right / tokens}


def costs(table: dict[str, Measurements]) -> dict[str, Measurements]:
    """Adds what rounding costs an arm after tuning, as a share of what 3 bits cost (``cost``); that of 3 bits is set to
    what is allowed, a quarter.
    """
    if "loss_before" not in table["lora"]:
        return table
    most = max(table["int3"]["loss"] - table["lora"]["loss"], LEAST_COST)
    return {
        arm: {**found, "cost": ALLOWED if arm == "int3" else (found["loss"] - table["lora"]["loss"]) / most}
        for arm, found in table.items()
    }


GRID = tuple({"rate": place} for place in range(len(RATES)))
asked = partial(Comparison, better="lower", form="difference")
HURTS = "no claim: asked for a quarter of a nat, so that a quarter of it can be told"
NATS = "{change:+.3f} nats a token"

real = Study(
    name="qlora",
    title=study.title,
    paper=study.paper,
    claim=study.claim,
    budget_unit="tokens",
    arms=(
        Arm("lora", "adapters of rank 16 on all linear layers, base as it is", GRID),
        Arm("nf4-dq", "QLoRA: the same over NF4, scales quantized too", GRID),
        Arm("int3", "over 3-bit integers, scales quantized", GRID),
    ),
    comparisons=(
        asked(COST, "nf4-dq", "int3", "cost", ALLOWED, MATCHES, headline=True, says=COSTS),
        asked("control: 3 bits hurt after tuning", "lora", "int3", "loss", 0.25, HURTS, says=NATS),
        asked("control: 3 bits hurt the base that is not tuned", "lora", "int3", "loss_before", 0.25, HURTS, says=NATS),
        asked("adapters over 16 bits against QLoRA", "lora", "nf4-dq", "loss", 0.05, "none", no_gain=True, says=NATS),
        asked(
            "bits a weight of the base", "nf4-dq", "lora", "bits_per_weight", 4.127 / 16, BITS, form="ratio", says=OF_16
        ),
    ),
    rule=(
        "As in the study of small bases: the headline is reproduced when the interval of what NF4 + DQ costs against"
        " adapters over the base as it is, as a share of what 3-bit integers cost, lies below a quarter and its centre"
        " is at most an eighth; partly when only the interval does. It says nothing unless 3 bits cost after tuning."
    ),
    scales={
        "real": Scale(
            seeds=6,
            values={"tuning": False, "steps": 24, "rows": 4, "length": 128, "heldout_examples": 160},
            tuning_values={"tuning": True, "steps": 12},
            cell_seconds=3600,
        )
    },
    run_cell=run_cell,
    reads=("numpy", "numba", "torch", "tokenizers"),
    tune_by="score",
    derive=costs,
    takes=Taking(
        data="conversations, prompts with completions, or texts, as `mickle tune` reads them",
        model=MODEL,
        minutes=30,
        check=lambda values: lesson(values["model"], values.get("data", ""), values["length"]),
    ),
    departures=(
        "SmolLM2-135M-Instruct (or the model given), not LLaMA of 7B to 65B; its weights were rounded to Q4_1 before",
        "the score is a held-out loss on one supervised task, not MMLU or Vicuna's benchmark",
        "equivalence is asked as costing less than a quarter of what 3-bit integers cost; the paper shows equal scores",
        "a pilot of 4 steps on seed 0 was seen before the first run",
        "some tens of steps of adapters of rank 16; one base for all seeds, which differ in adapters and batches",
    ),
)
