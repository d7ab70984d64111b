"""Mickle's training loop against the transformers Trainer: tokens per second, peak memory, share of the peak.

    python benchmarks/pretrain.py            # all shapes and precisions, some 25 minutes on two quiet cores
    python benchmarks/pretrain.py --pairs 3 --shapes laptop --precisions bfloat16

Both arms train the same Llama-shaped model from the same weights on the same batches, each in a process of its own
that stays alive; the parent lets them run short segments in turn (first one, then the other, order swapped in each
pair), so a machine that slows down slows both. The rate's ratio is the median over pairs. Peak memory is the resident
high-water mark of the whole process, and the same less what was resident after the imports. After the last segment
both models' losses on one fixed batch are compared, as proof that they did the same work.

The Trainer gets its best fair settings: sdpa attention, fused AdamW, no evaluation, saving, logging or progress bar,
tensors that need no collation work. Writes `benchmarks/results/pretrain.json`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from segments import Arm, Gate, alternate, beside

RESULT = Path(__file__).parent / "results" / "pretrain.json"
LEARNING_RATE = 3e-4
ARMS = ("mickle", "transformers")
# size is given to DecoderConfig.for_size; batch x length tokens a step; steps to a segment of about two seconds.
SHAPES: dict[str, dict[str, int | str]] = {
    "laptop": {"size": "small", "vocabulary": 8192, "batch": 16, "length": 256, "steps": 3},
    "larger": {"size": 40_000_000, "vocabulary": 16384, "batch": 8, "length": 512, "steps": 1},
}


# -- one arm, in its own process -----------------------------------------------------------------------------------


def run_arm(arm: str, shape: dict[str, Any], precision: str, weights: Path, answers: int, threads: int) -> None:
    """Train under the gate until told to end, then report the loss on a fixed batch and the memory."""
    if arm == "mickle":  # as a user imports it: before torch, whose threads it tells how to wait
        import mickle  # noqa: F401
    import torch

    from mickle import machine

    torch.set_num_threads(threads)
    train = train_mickle if arm == "mickle" else train_transformers
    setting_up = train(shape, precision, weights, Gate(answers))
    next(setting_up)  # imports
    imported = _resident()
    machine.reset_peak_memory()
    loss = next(setting_up)
    with os.fdopen(os.dup(answers), "w") as out:
        print(json.dumps({"loss": loss, "imported": imported, "peak": machine.peak_memory()}), file=out)


def train_mickle(shape: dict[str, Any], precision: str, weights: Path, gate: Gate) -> Iterator[Any]:
    """Mickle's own loop: yields once after the imports, then the final loss."""
    import torch

    from mickle.models.folder import open_model
    from mickle.training.loop import fit
    from mickle.training.objectives import next_token
    from mickle.training.optimizers import AdamW, Schedule, build_optimizer

    yield None
    model = open_model(weights)
    optimizer = build_optimizer(AdamW(learning_rate=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0), model)
    schedule = Schedule(kind="constant", warmup=0.0)
    events = fit(
        model, next_token, lambda step: shifted(shape, step), optimizer, steps=10**6, schedule=schedule,
        clip_norm=1.0, precision=precision, evaluate=None, evaluate_every=0, checkpoints=None, save_every=0,
    )  # fmt: skip
    for event in events:
        if type(event).__name__ == "Trained" and gate.step_done():
            break
    events.close()
    with torch.no_grad():
        total, count = next_token(model, shifted(shape, -1))
    yield float(total / count)


def train_transformers(shape: dict[str, Any], precision: str, weights: Path, gate: Gate) -> Iterator[Any]:
    """The Trainer: yields once after the imports, then the final loss."""
    import torch
    from transformers import LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments, default_data_collator

    class Gated(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            control.should_training_stop = gate.step_done()
            return control

    class Rows(torch.utils.data.Dataset):
        """Row b of step s is item s * batch + b; each step's batch is drawn once."""

        step, rows = -1, torch.empty(0)

        def __len__(self) -> int:
            return 10**6 * shape["batch"]

        def __getitem__(self, item: int) -> dict[str, Any]:
            if item // shape["batch"] != self.step:
                self.step = item // shape["batch"]
                self.rows = tokens(shape, self.step)
            row = self.rows[item % shape["batch"]]
            return {"input_ids": row[:-1], "labels": row[:-1], "shift_labels": row[1:]}

    yield None
    model = LlamaForCausalLM.from_pretrained(weights, dtype=torch.float32, attn_implementation="sdpa")
    model.config.use_cache = False
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder, use_cpu=True, bf16=precision == "bfloat16", per_device_train_batch_size=shape["batch"],
            max_steps=10**6, optim="adamw_torch_fused", learning_rate=LEARNING_RATE, weight_decay=0.0,
            adam_beta1=0.9, adam_beta2=0.95, max_grad_norm=1.0, lr_scheduler_type="constant", save_strategy="no",
            eval_strategy="no", logging_strategy="no", report_to="none", disable_tqdm=True,
            dataloader_pin_memory=False, train_sampling_strategy="sequential", remove_unused_columns=False,
        )  # fmt: skip
        trainer = Trainer(model, settings, default_data_collator, Rows(), callbacks=[Gated()])
        trainer.train()
    batch = shifted(shape, -1)
    with torch.no_grad():
        logits = model(batch["input_ids"]).logits
    yield float(torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), batch["labels"].flatten()))


def tokens(shape: dict[str, Any], step: int) -> Any:
    """Batch of a step, [B, T + 1]: frequencies fall like 1 / rank, as words' do."""
    import torch

    generator = torch.Generator().manual_seed(step % 2**31)
    uniform = torch.rand(shape["batch"], shape["length"] + 1, generator=generator, dtype=torch.float64)
    return (shape["vocabulary"] ** uniform - 1).long().clamp_(0, shape["vocabulary"] - 1)


def shifted(shape: dict[str, Any], step: int) -> dict[str, Any]:
    """The same batch as inputs and labels [B, T]."""
    rows = tokens(shape, step)
    return {"input_ids": rows[:, :-1].contiguous(), "labels": rows[:, 1:].contiguous()}


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# -- the parent ----------------------------------------------------------------------------------------------------


def compare(shape_name: str, precision: str, pairs: int, threads: int, busy: int) -> dict[str, Any]:
    """Both arms on one shape in one precision."""
    shape = SHAPES[shape_name]
    with tempfile.TemporaryDirectory() as folder:
        config = _write_weights(shape, Path(folder))
        arms = {name: Arm(__file__, name, shape_name, precision, Path(folder), threads) for name in ARMS}
        with beside(busy):
            segments, ends = alternate(arms, int(shape["steps"]), pairs)
    return {"threads": threads, "busy": busy, **_summary(shape_name, precision, config, segments, ends)}


def _write_weights(shape: dict[str, Any], folder: Path) -> Any:
    """A Llama folder that both arms open."""
    from mickle.models.decoder import Decoder, DecoderConfig
    from mickle.models.folder import save_model

    config = DecoderConfig.for_size(shape["size"], shape["vocabulary"], shape["length"])
    save_model(Decoder(config), folder)
    return config


def _summary(
    shape_name: str, precision: str, config: Any, segments: dict[str, list[Any]], ends: dict[str, Any]
) -> dict[str, Any]:
    from mickle import machine

    shape = SHAPES[shape_name]
    step_tokens = int(shape["batch"]) * int(shape["length"])
    products = step_flops(config, int(shape["batch"]), int(shape["length"]))
    peak = machine.matmul_flops(precision, 2048)
    ratios, processor_ratios = (
        [theirs[clock] / ours[clock] for ours, theirs in zip(*(segments[name] for name in ARMS), strict=True)]
        for clock in ("wall", "processor")
    )
    step_seconds = {
        name: statistics.median(segment["wall"] for segment in segments[name]) / int(shape["steps"]) for name in ARMS
    }
    losses = {name: ends[name]["loss"] for name in ARMS}
    if abs(losses["mickle"] / losses["transformers"] - 1) > 0.01:
        raise SystemExit(f"the arms did not do the same work: losses {losses}")
    return {
        "shape": shape_name,
        "precision": precision,
        "parameters": config.parameters(),
        "batch": shape["batch"],
        "length": shape["length"],
        "tokens_per_second": {name: step_tokens / step_seconds[name] for name in ARMS},
        "speed_ratio": statistics.median(ratios),
        "speed_ratio_quartiles": [_quantile(ratios, 0.25), _quantile(ratios, 0.75)],
        "processor_time_ratio": statistics.median(processor_ratios),
        "pairs": len(ratios),
        "product_flop_per_step": products,
        "product_flop_per_second_measured": peak,
        "share_of_peak": {name: products / step_seconds[name] / peak for name in ARMS},
        "peak_bytes": {name: ends[name]["peak"] for name in ARMS},
        "memory_ratio": ends["mickle"]["peak"] / ends["transformers"]["peak"],
        "peak_bytes_after_imports": {name: ends[name]["peak"] - ends[name]["imported"] for name in ARMS},
        "memory_ratio_after_imports": (ends["mickle"]["peak"] - ends["mickle"]["imported"])
        / (ends["transformers"]["peak"] - ends["transformers"]["imported"]),
        "final_loss": losses,
    }


def step_flops(config: Any, batch: int, length: int) -> float:
    """Floating-point operations of one step's matrix products: 6 a weight and token, and causal attention's share.

    Attention, forward: 2 products of 2 H K T^2 / 2 (half of the square is masked); backward twice that.
    """
    matrices = config.parameters() - (2 * config.layers + 1) * config.width
    if not config.tied:
        matrices -= config.vocab_size * config.width  # looking up an embedding is no product
    attention = 6 * config.heads * config.head_width * length * length * config.layers
    return float(6 * matrices * batch * length + attention * batch)


def _quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def show(rows: list[dict[str, Any]]) -> None:
    """The table."""
    print(f"{'shape':8} {'precision':9} {'tokens/s':>17} {'ratio':>6} {'cpu':>6} {'peak MB':>13} {'ratio':>6}", end="")
    print(f" {'after imports':>15} {'ratio':>6} {'share of peak':>14}")
    for row in rows:
        speed, whole = row["tokens_per_second"], row["peak_bytes"]
        own, share = row["peak_bytes_after_imports"], row["share_of_peak"]
        print(f"{row['shape']:8} {row['precision']:9}", end=" ")
        print(f"{speed['mickle']:8,.0f} {speed['transformers']:8,.0f} {row['speed_ratio']:6.2f}", end=" ")
        print(f"{row['processor_time_ratio']:6.2f}", end=" ")
        print(f"{whole['mickle'] / 1e6:6.0f} {whole['transformers'] / 1e6:6.0f} {row['memory_ratio']:6.2f}", end=" ")
        print(f"{own['mickle'] / 1e6:7.0f} {own['transformers'] / 1e6:7.0f}", end=" ")
        print(f"{row['memory_ratio_after_imports']:6.2f}", end=" ")
        print(f"{share['mickle']:6.0%} {share['transformers']:7.0%}")


def main() -> None:
    """Run every asked combination, print the table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
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
    from mickle import machine
    from mickle.storage import write_json

    rows = [
        compare(shape, precision, chosen.pairs, chosen.threads, chosen.busy)
        for shape in chosen.shapes
        for precision in chosen.precisions
    ]
    show(rows)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=RESULT.parent).stdout
    command = " ".join(["python", "benchmarks/pretrain.py", *sys.argv[1:]])
    about = {"machine": machine.describe(), "commit": commit.strip(), "command": command}
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(chosen.out, {**about, "date": time.strftime("%Y-%m-%d"), "rows": rows})


if __name__ == "__main__":
    main()
