"""Masked training against transformers: tokens per second of a step, and nanoseconds a token of the masking alone.

    python benchmarks/masking.py                    # some 12 minutes on two quiet cores
    python benchmarks/masking.py --pairs 3 --shapes small --precisions float32

Steps. Three arms train encoders of the same width, layers, heads, feed-forward and vocabulary on the same tokens at a
masking rate of 15 %: Mickle's encoder in Mickle's loop, transformers' BertForMaskedLM in Mickle's loop (where its
vocabulary projection runs on the masked tokens alone), and BertForMaskedLM in the Trainer with its collator. An arm is
a process that stays alive; the parent lets them run short segments in turn, order turned around in each round, so a
machine that slows down slows all. Ratios are medians over rounds. The Trainer gets its best fair settings: sdpa
attention, fused AdamW, no evaluation, saving, logging or progress bar, batches made in its own process as ours are. No
arm has dropout. At the end the two BERTs, which began with the same weights, must have about the same loss.

Masking. Processor time of `mask_batch` on a batch of 256 x 128 tokens, in pairs with the collator as the Trainer calls
it (a list of rows), and with its arithmetic alone (`torch_mask_tokens` on a stacked batch, special tokens given).

Writes `benchmarks/results/masking.json`.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from segments import Arm, Gate, alternate

RESULT = Path(__file__).parent / "results" / "masking.json"
LEARNING_RATE = 1e-4
RATE = 0.15
VOCABULARY = 30_000
ARMS = ("mickle", "mickle-bert", "transformers")
SHAPES: dict[str, dict[str, int]] = {
    "small": {"width": 256, "layers": 4, "heads": 4, "ffn": 1024, "batch": 16, "length": 128, "steps": 2},
    "medium": {"width": 512, "layers": 8, "heads": 8, "ffn": 2048, "batch": 8, "length": 128, "steps": 1},
}


# -- one arm, in its own process -----------------------------------------------------------------------------------


def run_arm(arm: str, shape: dict[str, int], precision: str, weights: Path, answers: int, threads: int) -> None:
    """Train under the gate until told to end, then report the loss on one fixed masked batch."""
    import torch

    torch.set_num_threads(threads)
    gate = Gate(answers)
    train = train_transformers if arm == "transformers" else train_mickle
    gate.tell(loss=train(shape, precision, weights, gate, arm))


def train_mickle(shape: dict[str, int], precision: str, weights: Path, gate: Gate, arm: str) -> float:
    """Mickle's loop on Mickle's encoder, or on BertForMaskedLM; the final loss."""
    from mickle.data.masking import Constant, MaskedBatches, Masking, vocabulary_of
    from mickle.data.tokenizer import open_text_tokenizer
    from mickle.models.decoder import Decoder, DecoderConfig
    from mickle.models.folder import open_model
    from mickle.training.loop import fit
    from mickle.training.objectives import masked_token
    from mickle.training.optimizers import AdamW, Schedule, build_optimizer

    if arm == "mickle":
        model: Any = Decoder(
            DecoderConfig(
                VOCABULARY, shape["width"], shape["layers"], shape["heads"], shape["heads"],
                shape["width"] // shape["heads"], shape["ffn"], shape["length"], causal=False, activation="gelu",
            )
        )  # fmt: skip
    else:
        model = open_model(weights)
    optimizer = build_optimizer(AdamW(learning_rate=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0), model)
    batches = MaskedBatches(
        lambda step: {"input_ids": tokens(shape, step)},
        vocabulary_of(open_text_tokenizer(weights)),
        Masking(rate=Constant(rate=RATE)),
        10**6,
        0,
    )
    events = fit(
        model, masked_token, batches, optimizer, steps=10**6, schedule=Schedule(kind="constant", warmup=0.0),
        precision=precision, watch_loss=False,
    )  # fmt: skip
    for event in events:
        if type(event).__name__ == "Trained" and gate.step_done():
            break
    events.close()  # type: ignore[attr-defined]
    return fixed_loss(model if arm == "mickle" else model.model, shape, weights)


def train_transformers(shape: dict[str, int], precision: str, weights: Path, gate: Gate, arm: str) -> float:
    """The Trainer with its collator; the final loss."""
    import torch
    from transformers import (
        AutoTokenizer,
        BertForMaskedLM,
        DataCollatorForLanguageModeling,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

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
            return {"input_ids": self.rows[item % shape["batch"]]}

    model = BertForMaskedLM.from_pretrained(weights, dtype=torch.float32, attn_implementation="sdpa")
    collate = DataCollatorForLanguageModeling(AutoTokenizer.from_pretrained(weights), mlm_probability=RATE)
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder, use_cpu=True, bf16=precision == "bfloat16", per_device_train_batch_size=shape["batch"],
            max_steps=10**6, optim="adamw_torch_fused", learning_rate=LEARNING_RATE, weight_decay=0.0,
            adam_beta1=0.9, adam_beta2=0.98, max_grad_norm=1.0, lr_scheduler_type="constant", save_strategy="no",
            eval_strategy="no", logging_strategy="no", report_to="none", disable_tqdm=True,
            dataloader_pin_memory=False, train_sampling_strategy="sequential", remove_unused_columns=False,
        )  # fmt: skip
        Trainer(model, settings, collate, Rows(), callbacks=[Gated()]).train()
    return fixed_loss(model, shape, weights)


def fixed_loss(model: Any, shape: dict[str, int], weights: Path) -> float:
    """Mean loss on one batch that no arm trains on, with one fixed mask."""
    import torch

    from mickle.data.masking import Masking, fixed_masks, vocabulary_of
    from mickle.data.tokenizer import open_text_tokenizer

    vocabulary = vocabulary_of(open_text_tokenizer(weights))
    batch = fixed_masks({"input_ids": tokens(shape, -1)}, 0, Masking(), vocabulary)
    model.eval()
    with torch.no_grad():
        logits = model(batch["input_ids"])
    logits = getattr(logits, "logits", logits)
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), batch["labels"].flatten()))


def tokens(shape: dict[str, int], step: int) -> Any:
    """Batch of a step, [B, T]: frequencies fall like 1 / rank, as words' do; no special tokens."""
    import torch

    generator = torch.Generator().manual_seed(step % 2**31)
    uniform = torch.rand(shape["batch"], shape["length"], generator=generator, dtype=torch.float64)
    return ((VOCABULARY - SPECIALS) ** uniform - 1).long().clamp_(0, VOCABULARY - SPECIALS - 1) + SPECIALS


SPECIALS = 5


def write_folder(shape: dict[str, int], folder: Path) -> int:
    """A BERT folder with fresh weights and a tokenizer of 30,000 words; returns its parameters."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = {word: i for i, word in enumerate(marks + [f"w{i}" for i in range(SPECIALS, VOCABULARY)])}
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="[UNK]")),
        **{f"{name}_token": mark for name, mark in zip(("pad", "unk", "cls", "sep", "mask"), marks, strict=True)},
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=shape["width"], num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"], intermediate_size=shape["ffn"], hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, max_position_embeddings=shape["length"],
    )  # fmt: skip
    model = BertForMaskedLM(config)
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


# -- the parent ----------------------------------------------------------------------------------------------------


def compare(shape_name: str, precision: str, pairs: int, threads: int) -> dict[str, Any]:
    """All arms on one shape in one precision."""
    shape = SHAPES[shape_name]
    with tempfile.TemporaryDirectory() as folder:
        parameters = write_folder(shape, Path(folder))
        arms = {name: Arm(__file__, name, shape_name, precision, Path(folder), threads) for name in ARMS}
        segments, ends = alternate(arms, shape["steps"], pairs)
    losses = {name: said["loss"] for name, said in ends.items()}
    if abs(losses["mickle-bert"] / losses["transformers"] - 1) > 0.03:
        raise SystemExit(f"the two BERTs did not do the same work: losses {losses}")
    seconds = {name: statistics.median(s["wall"] for s in segments[name]) / shape["steps"] for name in ARMS}
    return {
        "shape": shape_name,
        "precision": precision,
        "threads": threads,
        "parameters_of_bert": parameters,
        **shape,
        "vocabulary": VOCABULARY,
        "rate": RATE,
        "tokens_per_second": {name: shape["batch"] * shape["length"] / seconds[name] for name in ARMS},
        "ratios_to_trainer": {name: ratios(segments, name, "wall") for name in ARMS[:2]},
        "processor_ratios_to_trainer": {name: ratios(segments, name, "processor") for name in ARMS[:2]},
        "final_loss": losses,
    }


def ratios(segments: dict[str, list[dict[str, float]]], name: str, clock: str) -> dict[str, float]:
    """Median and quartiles of the Trainer's time over the arm's, segment by segment."""
    found = sorted(t[clock] / o[clock] for o, t in zip(segments[name], segments["transformers"], strict=True))
    places = {"low": 0.25, "median": 0.5, "high": 0.75}
    return {place: found[round(share * (len(found) - 1))] for place, share in places.items()}


def masking_alone(rounds: int) -> dict[str, Any]:
    """Nanoseconds of processor time a token, ours and the collator's in turn."""
    import numpy as np
    import torch
    from transformers import AutoTokenizer, DataCollatorForLanguageModeling

    from mickle.data.masking import Masking, mask_batch, vocabulary_of
    from mickle.data.tokenizer import open_text_tokenizer

    shape = {**SHAPES["small"], "batch": 256}
    batch = tokens(shape, 0)
    with tempfile.TemporaryDirectory() as folder:
        write_folder(shape, Path(folder))
        collate = DataCollatorForLanguageModeling(AutoTokenizer.from_pretrained(folder), mlm_probability=RATE)
        vocabulary = vocabulary_of(open_text_tokenizer(Path(folder)))
    rows = [{"input_ids": row} for row in batch]
    samples = np.arange(len(batch))
    ways: dict[str, Any] = {
        f"mickle {unit}": lambda unit=unit: mask_batch(
            {"input_ids": batch}, samples, RATE, Masking(unit=unit), vocabulary, 0
        )
        for unit in ("token", "word", "span")
    }
    ways["collator"] = lambda: collate(rows)
    special = torch.from_numpy(vocabulary.special[batch.numpy()])
    ways["collator, masking alone"] = lambda: collate.torch_mask_tokens(batch.clone(), special.clone())
    torch.set_num_threads(1)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name in list(ways)[:: 1 if turn % 2 else -1]:
            begun = time.process_time_ns()
            for _ in range(10):
                ways[name]()
            if turn:
                times[name].append((time.process_time_ns() - begun) / 10 / batch.numel())
    ours = times["mickle token"]
    return {
        "nanoseconds_a_token": {name: statistics.median(found) for name, found in times.items()},
        "speed_ratio": statistics.median(t / o for t, o in zip(times["collator"], ours, strict=True)),
        "speed_ratio_masking_alone": statistics.median(
            t / o for t, o in zip(times["collator, masking alone"], ours, strict=True)
        ),
        "rounds": rounds,
        "tokens": batch.numel(),
    }


def lines(masking: dict[str, Any], rows: list[dict[str, Any]]) -> Iterator[str]:
    """The results for a person."""
    for name, nanoseconds in masking["nanoseconds_a_token"].items():
        yield f"masking: {name:24} {nanoseconds:7.2f} ns a token"
    yield f"masking: {masking['speed_ratio']:.1f} times as fast as the collator (target 10), "
    yield f"         {masking['speed_ratio_masking_alone']:.1f} times its masking alone"
    for row in rows:
        speeds = ", ".join(f"{name} {speed:,.0f}" for name, speed in row["tokens_per_second"].items())
        yield f"step, {row['shape']}, {row['precision']}: {speeds} tokens/s"
        for name, found in row["ratios_to_trainer"].items():
            quartiles = f"{found['low']:.2f} to {found['high']:.2f}"
            yield f"  {name}: {found['median']:.2f} times the Trainer ({quartiles}; target 1.5)"


def main() -> None:
    """Run every asked combination, print the results, write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="*", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--precisions", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=RESULT)
    for hidden in ("--arm", "--weights", "--answers"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.arm:
        shape, precision = SHAPES[chosen.shapes[0]], chosen.precisions[0]
        run_arm(chosen.arm, shape, precision, Path(chosen.weights), int(chosen.answers), chosen.threads)
        return
    from provenance import provenance

    from mickle.storage import write_json

    masking = masking_alone(max(5, chosen.pairs))
    rows = [
        compare(shape, precision, chosen.pairs, chosen.threads)
        for shape in chosen.shapes
        for precision in chosen.precisions
    ]
    for line in lines(masking, rows):
        print(line)
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(chosen.out, {**provenance(__file__), "masking": masking, "steps": rows})


if __name__ == "__main__":
    main()
