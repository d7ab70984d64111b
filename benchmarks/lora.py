"""LoRA tuning against PEFT and transformers' Trainer: tokens per second, and peak memory.

    python benchmarks/lora.py                       # some 20 minutes on two quiet cores
    python benchmarks/lora.py --pairs 3 --shapes small --precisions bfloat16

Three arms tune adapters of rank 16 on all linear layers of one Llama folder, on the same examples in the same
steps: of each some tokens are a question and the rest, a third on average, the answer that is trained. ``mickle``
packs a step's examples into rows, as ``mickle tune`` does; ``mickle-padded`` gets them as the Trainer does, one a
row, padded to the step's longest; ``peft`` is PEFT in the Trainer with a plain padding collator. Tokens are those of
examples, padding left out.

The Trainer gets its best fair settings: sdpa attention, fused AdamW, the base in bfloat16 where products are (adapters
in float32, as both have them), no evaluation, saving, logging or progress bar, batches made in its own process. Arms
are processes that stay alive; the parent lets them run short segments in turn, order turned around in each round.
Ratios are medians over rounds. Memory is the peak of each process: whole, and less what it held before the model was
opened, since the libraries' own part is large beside a small model. At the end all arms must have about the same loss
on the same examples.

Writes `benchmarks/results/lora.json`.
"""

import argparse
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from segments import Arm, Gate, alternate, beside

RESULT = Path(__file__).parent / "results" / "lora.json"
LEARNING_RATE, RANK, ALPHA = 1e-3, 16, 32
VOCABULARY, LONGEST = 8192, 256
ARMS = ("mickle", "mickle-padded", "peft")
SHAPES: dict[str, dict[str, int]] = {
    "small": {"width": 320, "layers": 6, "heads": 5, "ffn": 896, "batch": 8, "steps": 2},  # some 10 million parameters
    "medium": {"width": 512, "layers": 8, "heads": 8, "ffn": 1408, "batch": 8, "steps": 1},  # some 30 million
}


# -- the same examples for all arms ----------------------------------------------------------------------------------


def examples(step: int, batch: int) -> list[tuple[Any, int]]:
    """The examples of a step: tokens, and where the answer begins. Frequencies fall like 1 / rank, as words' do."""
    import numpy as np

    draw = np.random.default_rng(step + 1)
    found = []
    for length in draw.integers(48, LONGEST + 1, batch):
        tokens = np.minimum((VOCABULARY - 1) ** draw.random(length), VOCABULARY - 2).astype(np.int64) + 1
        found.append((tokens, int(length * draw.uniform(0.5, 0.8))))
    return found


def encoded(step: int, batch: int) -> Any:
    """The same as Mickle's own."""
    import numpy as np

    from mickle.data.example_batches import Encoded

    some = examples(step, batch)
    trained = [np.arange(len(tokens)) >= answer for tokens, answer in some]
    return Encoded([tokens for tokens, _ in some], trained)


# -- one arm, in its own process -------------------------------------------------------------------------------------


def run_arm(arm: str, shape: dict[str, int], precision: str, folder: Path, answers: int, threads: int) -> None:
    """Tune under the gate until told to end, then report the loss on fixed examples and the memory."""
    if arm != "peft":  # as a user imports it: before torch, whose threads it tells how to wait
        import mickle  # noqa: F401
    import torch

    from mickle import machine

    torch.set_num_threads(threads)
    gate = Gate(answers)
    if arm == "peft":
        import peft  # noqa: F401
        import transformers  # noqa: F401
    machine.reset_peak_memory()
    held = machine.peak_memory()
    tune = tune_peft if arm == "peft" else tune_mickle
    loss = tune(shape, precision, folder, gate, arm)
    gate.tell(loss=loss, peak=machine.peak_memory(), held=held)


def tune_mickle(shape: dict[str, int], precision: str, folder: Path, gate: Gate, arm: str) -> float:
    """The loop and layers of ``mickle tune``; the final loss."""
    import numpy as np
    import torch

    from mickle.data.example_batches import packed, rows_of
    from mickle.models.folder import open_model
    from mickle.training.loop import fit
    from mickle.training.objectives import trained_tokens
    from mickle.training.optimizers import Schedule
    from mickle.tuning.methods import Adam, Lora
    from mickle.tuning.tune_run import reduce_frozen

    def batches(step: int) -> dict[str, Any]:
        found = encoded(step, shape["batch"])
        lengths = np.array([len(tokens) for tokens in found.tokens])
        alone = [[number] for number in range(len(lengths))]
        return rows_of(found, packed(lengths, LONGEST, np.random.default_rng(0)) if arm == "mickle" else alone)

    model = open_model(folder)
    Lora(rank=RANK, alpha=ALPHA).prepare(model, 0)
    if precision == "bfloat16":
        reduce_frozen(model, torch.bfloat16)
    events = fit(
        model, trained_tokens, batches, Lora().optimizer(model, LEARNING_RATE, Adam(), folder, 0, 0), steps=10**6,
        schedule=Schedule(kind="constant", warmup=0.0), precision=precision, watch_loss=False,
    )  # fmt: skip
    for event in events:
        if type(event).__name__ == "Trained" and gate.step_done():
            break
    events.close()  # type: ignore[attr-defined]
    batch = batches(-1)
    model.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        total, count = trained_tokens(model, batch)
    return float(total / count)


def tune_peft(shape: dict[str, int], precision: str, folder: Path, gate: Gate, arm: str) -> float:
    """PEFT in the Trainer; the final loss."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    class Gated(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            control.should_training_stop = gate.step_done()
            return control

    class Rows(torch.utils.data.Dataset):
        """Example b of step s is item s * batch + b."""

        step, rows = -2, []

        def __len__(self) -> int:
            return 10**6 * shape["batch"]

        def __getitem__(self, item: int) -> tuple[Any, int]:
            if item // shape["batch"] != self.step:
                self.step = item // shape["batch"]
                self.rows = examples(self.step, shape["batch"])
            return self.rows[item % shape["batch"]]

    def collate(some: list[tuple[Any, int]]) -> dict[str, Any]:
        longest = max(len(tokens) for tokens, _ in some)
        ids = torch.zeros(len(some), longest, dtype=torch.int64)
        labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
        for row, (tokens, answer) in enumerate(some):
            ids[row, : len(tokens)] = torch.from_numpy(tokens)
            labels[row, answer : len(tokens)] = ids[row, answer : len(tokens)]
            mask[row, : len(tokens)] = 1
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    reduced = precision == "bfloat16"
    base = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16 if reduced else torch.float32, attn_implementation="sdpa"
    )
    settings = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, settings)
    with tempfile.TemporaryDirectory() as out:
        arguments = TrainingArguments(
            out, use_cpu=True, bf16=reduced, per_device_train_batch_size=shape["batch"], max_steps=10**6,
            optim="adamw_torch_fused", learning_rate=LEARNING_RATE, weight_decay=0.0, max_grad_norm=1.0,
            lr_scheduler_type="constant", save_strategy="no", eval_strategy="no", logging_strategy="no", 
            report_to="none",
            disable_tqdm=True, dataloader_pin_memory=False, train_sampling_strategy="sequential",
            remove_unused_columns=False,
        )  # fmt: skip
        Trainer(model, arguments, collate, Rows(), callbacks=[Gated()]).train()
    model.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=reduced):
        return float(model(**collate(examples(-1, shape["batch"]))).loss)


def write_folder(shape: dict[str, int], folder: Path) -> int:
    """A Llama folder with fresh weights; returns its parameters."""
    from mickle.models.decoder import Decoder, DecoderConfig
    from mickle.models.folder import save_model

    model = Decoder(
        DecoderConfig(
            VOCABULARY, shape["width"], shape["layers"], shape["heads"], shape["heads"],
            shape["width"] // shape["heads"], shape["ffn"], 1024,
        )
    )  # fmt: skip
    save_model(model, folder)
    return sum(parameter.numel() for parameter in model.parameters())


# -- the parent ------------------------------------------------------------------------------------------------------


def compare(shape_name: str, precision: str, pairs: int, threads: int, busy: int) -> dict[str, Any]:
    """All arms on one shape in one precision."""
    shape = SHAPES[shape_name]
    with tempfile.TemporaryDirectory() as folder:
        parameters = write_folder(shape, Path(folder))
        arms = {name: Arm(__file__, name, shape_name, precision, Path(folder), threads) for name in ARMS}
        with beside(busy):
            segments, ends = alternate(arms, shape["steps"], pairs)
    losses = {name: said["loss"] for name, said in ends.items()}
    if max(losses.values()) / min(losses.values()) > 1.05:
        raise SystemExit(f"the arms did not do the same work: losses {losses}")
    tokens = shape["batch"] * (48 + LONGEST) / 2  # a step's on average; all arms have the same ones
    seconds = {name: statistics.median(s["wall"] for s in segments[name]) / shape["steps"] for name in ARMS}
    added = {name: said["peak"] - said["held"] for name, said in ends.items()}
    return {
        "shape": shape_name,
        "precision": precision,
        "threads": threads,
        "busy": busy,
        "parameters": parameters,
        **shape,
        "rank": RANK,
        "vocabulary": VOCABULARY,
        "tokens_per_second": {name: tokens / seconds[name] for name in ARMS},
        "ratios_to_peft": {name: ratios(segments, name, "wall") for name in ARMS[:2]},
        "processor_ratios_to_peft": {name: ratios(segments, name, "processor") for name in ARMS[:2]},
        "peak_bytes": {name: said["peak"] for name, said in ends.items()},
        "added_bytes": added,
        "memory_to_peft": {name: ends[name]["peak"] / ends["peft"]["peak"] for name in ARMS[:2]},
        "added_memory_to_peft": {name: added[name] / added["peft"] for name in ARMS[:2]},
        "final_loss": losses,
    }


def ratios(segments: dict[str, list[dict[str, float]]], name: str, clock: str) -> dict[str, float]:
    """Median and quartiles of PEFT's time over the arm's, segment by segment."""
    found = sorted(t[clock] / o[clock] for o, t in zip(segments[name], segments["peft"], strict=True))
    places = {"low": 0.25, "median": 0.5, "high": 0.75}
    return {place: found[round(share * (len(found) - 1))] for place, share in places.items()}


def main() -> None:
    """Run every asked combination, print the results, write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="*", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--precisions", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--busy", type=int, default=0, help="processes that never rest, beside it")
    parser.add_argument("--out", type=Path, default=RESULT)
    for hidden in ("--arm", "--weights", "--answers"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.arm:
        shape, precision = SHAPES[chosen.shapes[0]], chosen.precisions[0]
        run_arm(chosen.arm, shape, precision, Path(chosen.weights), int(chosen.answers), chosen.threads)
        return
    from importlib.metadata import version

    from provenance import provenance

    from mickle.storage import write_json

    rows = [
        compare(shape, precision, chosen.pairs, chosen.threads, chosen.busy)
        for shape in chosen.shapes
        for precision in chosen.precisions
    ]
    for row in rows:
        print(f"{row['shape']}, {row['precision']}, {row['parameters']:,} parameters:")
        for name in ARMS[:2]:
            found = row["ratios_to_peft"][name]
            print(
                f"  {name}: {row['tokens_per_second'][name]:,.0f} tokens/s, {found['median']:.2f} times PEFT "
                f"({found['low']:.2f} to {found['high']:.2f}; target 1.3); memory {row['memory_to_peft'][name]:.2f} "
                f"(target 0.9), added {row['added_memory_to_peft'][name]:.2f}"
            )
    versions = {name: version(name) for name in ("peft", "transformers", "accelerate")}
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(chosen.out, {**provenance(__file__), "versions": versions, "rows": rows})


if __name__ == "__main__":
    main()
