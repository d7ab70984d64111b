"""The NoPE study's runner against a plain transformers model in its Trainer, and against models stacked by vmap.

    python benchmarks/length.py                      # some 3 minutes on one quiet core
    python benchmarks/length.py --pairs 2 --steps 20

Trainer: the absolute arm of the study (`studies/nope.py`: batches made, packed, trained) against a GPT-2 of the same
shape (ReLU, learned positions) that gets the same instances through a dataset and a collator. Both run in this
process, in short segments in turn, the order swapped in each pair; the ratio is the median over pairs, once in wall
time and once in processor time. Set-up is left out on both sides. Stacking: one step of 5 models one after another
against one step of the same 5 as one batched model (torch.func). Writes `benchmarks/results/length.json`.
"""

import argparse
import copy
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mickle import machine
from mickle.data.length_tasks import symbol_tokenizer, training_examples
from mickle.evaluation.length_scores import encode_examples
from mickle.studies import nope
from mickle.studies.declaration import Cell
from mickle.training.loop import fit
from mickle.training.objectives import next_token
from mickle.training.optimizers import AdamW, build_optimizer

RESULT = Path(__file__).parent / "results" / "length.json"
CELL = Cell("sinusoidal", "rsc", {}, 0, nope.VALUES)
TASK = nope.task_of(CELL)
TOKENIZER = symbol_tokenizer(TASK)
BATCH = int(nope.VALUES["batch"])
STACKED = 5
Times = tuple[float, float]  # wall and processor seconds for one step


def instances(step: int) -> list[Any]:
    """The instances of one step as tokens: the same for both sides."""
    drawn = training_examples(TASK, CELL.seed, step, BATCH)
    return encode_examples(drawn, TOKENIZER.encode, TOKENIZER.start, TOKENIZER.end)


def batch(step: int) -> dict[str, Tensor]:
    """The same, packed as the study packs."""
    return nope.packed(instances(step), TOKENIZER.end)


def padded(step: int) -> dict[str, Tensor]:
    """The same, one to a row."""
    rows = [
        {"input_ids": list(row.ids[:-1]), "labels": [-100] * (row.prompt - 1) + list(row.ids[row.prompt :])}
        for row in instances(step)
    ]
    return collate(rows)


def now() -> Times:
    """Wall and processor clock."""
    return time.perf_counter(), time.process_time()


def per_step(clocks: list[Times]) -> Times:
    """The median time between two clock readings."""
    walls = [b[0] - a[0] for a, b in pairwise(clocks)]
    processors = [b[1] - a[1] for a, b in pairwise(clocks)]
    return statistics.median(walls), statistics.median(processors)


def mickle_segment(steps: int) -> Times:
    """One segment of the study's own training."""
    model = nope.decoder(CELL, TOKENIZER.size)
    optimizer = build_optimizer(AdamW(learning_rate=1e-3), model)
    clocks = [now() for _ in fit(model, next_token, batch, optimizer, steps=steps, watch_loss=False)]
    return per_step(clocks[2:])  # the first readings belong to setting up


class Instances(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """All instances of a segment, one a row, made when asked for, as a user of the Trainer would."""

    def __init__(self, steps: int) -> None:
        self.length = steps * BATCH

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        drawn = training_examples(TASK, CELL.seed, index, 1)
        row = encode_examples(drawn, TOKENIZER.encode, TOKENIZER.start, TOKENIZER.end)[0]
        labels = [-100] * row.prompt + list(row.ids[row.prompt :])
        return {"input_ids": list(row.ids), "labels": labels}


def trainer_segment(steps: int) -> Times:
    """One segment of the Trainer at its fastest fair settings: fused AdamW, no saving, logging or progress bar."""
    import transformers

    class Clock(transformers.TrainerCallback):
        def __init__(self) -> None:
            self.readings: list[Times] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.readings.append(now())

    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = transformers.Trainer(
            model=gpt2(),
            args=transformers.TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=BATCH,
                max_steps=steps,
                use_cpu=True,
                report_to=[],
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
                optim="adamw_torch_fused",
                learning_rate=1e-3,
            ),
            train_dataset=Instances(steps),
            data_collator=collate,
            callbacks=[clock],
        )
        trainer.train()
    return per_step(clock.readings[1:])


def gpt2() -> nn.Module:
    """A GPT-2 of the study's shape."""
    import transformers

    width, layers = nope.VALUES["width"], nope.VALUES["layers"]["rsc"]
    config = transformers.GPT2Config(
        vocab_size=TOKENIZER.size,
        n_positions=128,
        n_embd=width,
        n_layer=layers,
        n_head=nope.VALUES["heads"],
        n_inner=4 * width,
        activation_function="relu",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=TOKENIZER.start,
        eos_token_id=TOKENIZER.end,
    )
    return transformers.GPT2LMHeadModel(config)


def collate(rows: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    """Pad on the right."""
    longest = max(len(row["input_ids"]) for row in rows)

    def pad(name: str, filler: int) -> Tensor:
        return torch.tensor([row[name] + [filler] * (longest - len(row[name])) for row in rows])

    return {"input_ids": pad("input_ids", TOKENIZER.end), "labels": pad("labels", -100)}


def stacking(repetitions: int) -> float:
    """How many times faster one step of STACKED models is as one batched model than one after another."""
    models = [nope.decoder(CELL, TOKENIZER.size) for _ in range(STACKED)]
    batches = [padded(i) for i in range(STACKED)]
    longest = max(b["input_ids"].shape[1] for b in batches)
    ids = torch.stack([nn.functional.pad(b["input_ids"], (0, longest - b["input_ids"].shape[1])) for b in batches])
    labels = torch.stack(
        [nn.functional.pad(b["labels"], (0, longest - b["labels"].shape[1]), value=-100) for b in batches]
    )
    parameters, _ = torch.func.stack_module_state(models)  # type: ignore[arg-type]
    together = torch.optim.AdamW(list(parameters.values()), 1e-3, fused=True)
    apart = [torch.optim.AdamW(model.parameters(), 1e-3, fused=True) for model in models]
    template = copy.deepcopy(models[0])

    def one_by_one() -> None:
        for model, optimizer, x, y in zip(models, apart, ids, labels):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten()).backward()
            optimizer.step()

    def stacked() -> None:
        together.zero_grad()
        logits = torch.func.vmap(lambda p, x: torch.func.functional_call(template, p, (x,)))(parameters, ids)
        nn.functional.cross_entropy(logits.flatten(0, 2), labels.flatten()).backward()
        together.step()

    def seconds(step: Callable[[], None]) -> float:
        begun = time.process_time()
        step()
        return time.process_time() - begun

    one_by_one(), stacked()
    return statistics.median(seconds(one_by_one) / seconds(stacked) for _ in range(repetitions))


def main() -> None:
    """Run the pairs, print the ratios and write them down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(1)
    mickle_segment(5), trainer_segment(5)
    ours, theirs = [], []
    for pair in range(options.pairs):
        sides = [(ours, mickle_segment), (theirs, trainer_segment)]
        for times, segment in sides if pair % 2 == 0 else reversed(sides):
            times.append(segment(options.steps))
    found = {
        "pairs": options.pairs,
        "steps_in_a_segment": options.steps,
        "mickle_ms_a_step": 1e3 * statistics.median(wall for wall, _ in ours),
        "trainer_ms_a_step": 1e3 * statistics.median(wall for wall, _ in theirs),
        "steps_a_second_ratio": statistics.median(b[0] / a[0] for a, b in zip(ours, theirs)),
        "processor_time_ratio": statistics.median(b[1] / a[1] for a, b in zip(ours, theirs)),
        "stacked_models": STACKED,
        "stacking_ratio": stacking(3 * options.pairs),
        "machine": machine.describe(),
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps({name: value for name, value in found.items() if name != "machine"}, indent=2))


if __name__ == "__main__":
    main()
