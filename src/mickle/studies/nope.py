"""NoPE: does a decoder without position encoding carry what it learned to longer texts?

"The Impact of Positional Encoding on Length Generalization in Transformers" (arXiv 2305.19466): decoders that differ
only in how they are told positions learn short instances of a task and are tested on longer ones. Each world here is
one task; the budget is optimizer steps on the same fresh examples; a run ends when it has learned the training lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mickle.data.length_tasks import Task, buckets, smaller, training_examples
from mickle.studies.declaration import Arm, Cell, Comparison, Measurements, Scale, Study, Taking

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mickle.evaluation.length_scores import Encoded
    from mickle.models.decoder import Decoder

LEARNED = 0.99  # in-distribution accuracy at which a run ends
POSITIONS: dict[str, dict[str, Any]] = {
    "none": {"position": "none"},
    "t5": {"position": "t5"},
    "alibi": {"position": "alibi"},
    "rotary": {"position": "rotary", "rotary_fraction": 0.25},
    "rotary-full": {"position": "rotary"},
    "sinusoidal": {"position": "sinusoidal"},
}


def run_cell(cell: Cell, work: Path) -> Measurements:
    """Train one decoder on one task until it has learned the training lengths; measure every length."""
    from mickle.data.length_tasks import symbol_tokenizer
    from mickle.evaluation.length_scores import encode_examples, mean_accuracy, score

    task = task_of(cell)
    tokenizer = symbol_tokenizer(task)

    def instances(name: str, lengths: Sequence[int], count: int) -> list[Encoded]:
        drawn = list(buckets(task, f"{name} {cell.seed}", lengths, count))
        return encode_examples(drawn, tokenizer.encode, tokenizer.start, tokenizer.end)

    def batch(step: int) -> dict[str, Tensor]:
        drawn = training_examples(task, cell.seed, step, cell.values["batch"])
        return packed(encode_examples(drawn, tokenizer.encode, tokenizer.start, tokenizer.end), tokenizer.end)

    validation = instances("validation", task.train, cell.values["validation"])
    longest_trained = task.train[-1]

    def missed(model: nn.Module) -> dict[str, float]:
        found = mean_accuracy(score(model, validation, tokenizer.end, longest_trained), seen=True)
        return {"missed": 1 - (found or 0.0)}

    model = decoder(cell, tokenizer.size)
    steps, reached = learn(model, batch, missed, cell)
    test = instances("test", task.train + task.test, cell.values["test"])
    scores = score(model, test, tokenizer.end, longest_trained)
    beyond = [found for found in scores if not found.seen]
    return {
        "budget": steps,
        "reached": float(reached),
        "in_distribution": mean_accuracy(scores, seen=True) or 0.0,
        "ood": mean_accuracy(scores, seen=False) or 0.0,
        "wrong_stop": sum(s.stopped_early + s.ran_on for s in beyond) / len(beyond),
        "lengths": [found.length for found in scores],
        "exact": [found.exact for found in scores],
    }


def task_of(cell: Cell) -> Task:
    """The world's task at this scale: fewer symbols and shorter lengths than the paper's."""
    longest = cell.values["longest"][cell.world]
    return smaller(cell.world, range(1, longest + 1), range(longest + 1, 2 * longest + 1), cell.values["symbols"])


def decoder(cell: Cell, vocabulary: int) -> Decoder:
    """The paper's kind of decoder, small: ReLU, no biases, tied embeddings. Same seed, same weights in all arms."""
    from mickle.studies.training import small_decoder

    values = cell.values
    return small_decoder(
        {**values, "layers": values["layers"][cell.world], "ffn_width": 4 * values["width"]},
        vocabulary,
        length=128,
        seed=cell.seed,
        norm_eps=1e-6,
        activation="relu",
        initial_std=values["initial_std"],
        **POSITIONS[cell.arm],
    )


def learn(
    model: nn.Module,
    batch: Callable[[int], dict[str, Tensor]],
    missed: Callable[[nn.Module], dict[str, float]],
    cell: Cell,
) -> tuple[int, bool]:
    """Train until the training lengths are learned or the steps are spent; returns (steps done, learned)."""
    from mickle.studies.training import train
    from mickle.training.objectives import next_token
    from mickle.training.optimizers import AdamW, Schedule, build_optimizer

    def learned(found: dict[str, float]) -> bool:
        return found["missed"] <= 1 - LEARNED

    settings = AdamW(learning_rate=cell.values["learning_rate"], betas=(0.9, 0.98), weight_decay=0.05)
    course = train(
        model,
        next_token,
        batch,
        build_optimizer(settings, model),
        steps=cell.values["steps"][cell.world],
        until=learned,
        schedule=Schedule(kind="linear", warmup=0.06, floor=0.0),
        evaluate=missed,
        evaluate_every=cell.values["evaluate_every"],
        seed=cell.seed,
        watch_loss=False,
    )
    return course.evaluated[-1], learned(course.measured[-1])


def packed(rows: Sequence[Encoded], filler: int) -> dict[str, Tensor]:
    """One batch, several instances to a row as documents of their own; only target tokens are trained.

    Lengths differ so much that padding would be a third of all tokens. First fit, longest first, into rows
    as long as the longest instance: ``input_ids``, ``labels``, ``documents`` [B, T]. What is left of a row
    is document -1.
    """
    import torch

    from mickle.data.example_batches import first_fit

    rows = sorted(rows, key=lambda row: -len(row.ids))
    width = len(rows[0].ids) - 1
    shelves: list[list[Encoded]] = []
    for row, place in zip(rows, first_fit([len(row.ids) - 1 for row in rows], width), strict=True):
        shelves += [[]] if place == len(shelves) else []
        shelves[place].append(row)
    input_ids = torch.full((len(shelves), width), filler)
    labels, documents = torch.full_like(input_ids, -100), torch.full_like(input_ids, -1)
    for i, shelf in enumerate(shelves):
        begin = 0
        for number, row in enumerate(shelf):
            ids = torch.tensor(row.ids)
            end = begin + len(ids) - 1
            input_ids[i, begin:end] = ids[:-1]
            labels[i, begin + row.prompt - 1 : end] = ids[row.prompt :]
            documents[i, begin:end] = number
            begin = end
    return {"input_ids": input_ids, "labels": labels, "documents": documents}


def add_ranks(table: dict[str, Measurements]) -> dict[str, Measurements]:
    """Each arm's 1/rank by accuracy beyond the training lengths, in one world with one seed; equals share ranks."""
    from mickle.evaluation.length_scores import mean_reciprocal_rank

    ranks = mean_reciprocal_rank([{arm: measured["ood"] for arm, measured in table.items()}])
    return {arm: {**measured, "reciprocal_rank": ranks[arm]} for arm, measured in table.items()}


WORLDS = ("rsc", "rdc", "cmc", "mc")
VALUES: dict[str, Any] = (
    {"width": 64, "layers": {"rsc": 2, "rdc": 2, "cmc": 3, "mc": 3}, "heads": 4, "initial_std": 0.06}
    | {"symbols": 20, "longest": {"rsc": 12, "rdc": 10, "cmc": 8, "mc": 6}}
    | {"learning_rate": 2e-3, "batch": 32, "steps": {"rsc": 800, "rdc": 1000, "cmc": 2000, "mc": 2000}}
    | {"evaluate_every": 100, "validation": 32, "test": 32}
)
# Enough to learn the two repeating tasks; the others run, and say by `reached` that they were not learned.
QUICK = {**VALUES, "steps": {"rsc": 600, "rdc": 600, "cmc": 200, "mc": 200}, "validation": 8, "test": 16}
GPU: dict[str, Any] = (
    {**VALUES, "width": 512, "layers": dict.fromkeys(WORLDS, 6), "heads": 8, "initial_std": 0.02}
    | {"symbols": 100, "longest": dict.fromkeys(WORLDS, 20)}
    | {"learning_rate": 3e-4, "batch": 64, "steps": dict.fromkeys(WORLDS, 20_000)}
    | {"evaluate_every": 500, "test": 128}
)

asked = partial(Comparison, better="higher", form="difference", worlds=WORLDS)
OOD = "{points:+.1f} points of longer instances right"
FOUR = "mean over these four tasks, its result files"
QUARTER = "its figure for a quarter of the dimensions; all of them it did not try"
RANKS = "0.687 and 0.330, all tasks without scratchpad"

study = Study(
    name="nope",
    title="The Impact of Positional Encoding on Length Generalization in Transformers",
    paper="2305.19466",
    claim=(
        "A causal decoder without any position encoding answers longer instances than it was trained on more often"
        " than with rotary, absolute, ALiBi or T5-relative positions (figure 2, mean reciprocal rank)."
    ),
    budget_unit="steps",
    arms=(
        Arm("none", "no position encoding: the causal mask alone"),
        Arm("t5", "T5's learned bias for buckets of distances"),
        Arm("alibi", "scores that fall linearly with the distance"),
        Arm("rotary", "rotary on the first quarter of a head's dimensions, the paper's"),
        Arm("rotary-full", "rotary on every dimension of a head, as in Llama"),
        Arm("sinusoidal", "sinusoids added to the embedding, the paper's absolute"),
    ),
    comparisons=(
        asked("beyond training, against rotary", "none", "rotary", "ood", 0.596, FOUR, headline=True, says=OOD),
        asked(
            "beyond training, against rotary on all dimensions", "none", "rotary-full", "ood", 0.596, QUARTER, says=OOD
        ),
        asked("beyond training, against absolute", "none", "sinusoidal", "ood", 0.609, FOUR, says=OOD),
        asked("beyond training, against ALiBi", "none", "alibi", "ood", 0.382, FOUR, says=OOD),
        asked("beyond training, against T5 bias", "none", "t5", "ood", 0.029, FOUR, says=OOD),
        asked("reciprocal rank, against rotary", "none", "rotary", "reciprocal_rank", 0.357, RANKS),
    ),
    rule=(
        "Every arm trains on the same batches from the same weights until 99 % of held-out instances of the training"
        " lengths are right, or to the cap of steps; accuracy is the mean over all longer lengths (to twice the"
        " training length), then over the tasks. An arm that met the cap counts with what it"
        " has, and the page says where that was: it can only be against the claim where that arm is `none`."
    ),
    scales={
        "quick": Scale(seeds=1, values=QUICK, cell_seconds=170),
        "full": Scale(seeds=5, values=VALUES, cell_seconds=900),
        "gpu": Scale(seeds=5, values=GPU, cell_seconds=7200),
    },
    run_cell=run_cell,
    reads=("numpy", "torch"),
    worlds=WORLDS,
    derive=add_ranks,
    takes=Taking(
        instead="its tasks are made, so that every length is known; `mickle evaluate --task length` takes yours"
    ),
    departures=(
        "model: 2 or 3 layers of width 64, 0.1 million parameters (paper: 12 layers, 768, 110 million)",
        "lengths: 1-12, 1-10, 1-8, 1-6 and twice these (paper: 2-20 and 21-40)",
        "four tasks (paper: 17 and scratchpads); SCAN is not learned to 99 % in the time that `full` has",
        "symbols: 20 (paper: 100); one token each, own vocabulary (paper: t5-base's SentencePiece)",
        "attention scores are divided by the root of the head width, weights start at 0.06 (paper: T5's scaling)",
        "AdamW 2e-3, betas 0.9 and 0.98, batch 32, no dropout (paper: 3e-5, batch 64, dropout 0.1, 40,000 steps)",
        "training examples are fresh at each step (paper: 100,000, repeated), packed as documents (paper: padded)",
        "a run ends when the training lengths are learned (paper: 40,000 steps, best checkpoint)",
        "the mean reciprocal rank is over six arms, with a second rotary one (paper: five)",
        "steps, width and learning rate were chosen on seed 0, which is one of those reported",
        "equal accuracies share the mean of their ranks (paper's code: the order of its table)",
    ),
)
