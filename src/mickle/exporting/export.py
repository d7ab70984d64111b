"""``mickle export``: a model, an adapter or a journal in, a folder for other tools out, proven equal by running it.

An adapter is merged into its base: by default into the weights it was trained on, so that the merged model is what was
measured in training; with ``--base original`` into the 16-bit weights that a base in few bits was made of. Nothing is
published where the proof fails (``exporting/proof.py``). With a journal of MeZO the folder is first moved to a step
of it; where the journal is of an adapter, an adapter folder comes out (``exporting/huggingface.py``).
"""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from mickle.config import Config, Input
from mickle.errors import UsageError
from mickle.events import Emit, Noted, Warned
from mickle.machine import Forecast
from mickle.models.gguf_folder import Model, about, gguf_file
from mickle.results import Finding
from mickle.step import Step, command
from mickle.storage import write_json

if TYPE_CHECKING:
    from torch import nn

    from mickle.exporting.proof import Proof
    from mickle.exporting.source import Source

RESULTS = "export.json"
LIBRARIES = 600_000_000  # bytes that torch and transformers take
PROMPTS = ("Once upon a time", "def add(a, b):", "The answer to 12 + 30 is")


class HuggingFace(Config):
    """A plain folder for transformers, vLLM and whatever reads such folders."""

    kind: Literal["huggingface"] = "huggingface"
    dtype: Literal["stored", "float32", "bfloat16", "float16"] = Field(
        "stored", description="type of the weights (stored: as the model has them)"
    )


class Gguf(Config):
    """One file for llama.cpp and its kin; needs the package gguf."""

    kind: Literal["gguf"] = "gguf"
    type: Literal["F32", "F16", "BF16", "Q8_0", "Q6_K", "Q4_K_M", "Q4_0"] | None = Field(
        None, description="number type of the matrices (default: F16; of a model in few bits the nearest)"
    )


class Export(Step):
    """Write a model, or an adapter merged into its base, for other tools, and prove it equal by running it."""

    version: ClassVar[int] = 3  # 3: GGUF says more of a model, and of one in few bits has the nearest type
    kind: ClassVar[str] = "exported"
    title: ClassVar[str] = "The export"
    lead: ClassVar[str] = (
        "The exported model was opened anew and run beside its source; this is how far they are apart. Where "
        "transformers knows such models, it opened the folder and made the same of it."
    )
    cpu_only: ClassVar[bool] = True
    positional: ClassVar[str] = "model"
    reported: ClassVar[bool] = True
    example: ClassVar[str] = "mickle export adapter --format gguf --format.type Q8_0 --out exported"

    model: Model = Field(
        description="folder of a model or adapter, or GGUF file; with a journal, what its run began with or made"
    )
    format: Annotated[HuggingFace | Gguf, Field(discriminator="kind")] = Field(
        default_factory=HuggingFace, description="huggingface or gguf, and its settings"
    )
    base: Literal["dequantized", "original"] = Field(
        "dequantized", description="what an adapter on a base in few bits is merged into"
    )
    base_folder: Model | None = Field(None, description="folder of the adapter's base, where it has moved")
    original_folder: Model | None = Field(
        None, description="with base original: the model that the base in few bits was made of"
    )
    journal: Input | None = Field(None, description="a journal of MeZO: replayed on the base, undone on the tuned")
    to_step: int | None = Field(None, ge=0, description="step of the journal to stop at (default: its end)")
    check_prompts: list[str] = Field(
        list(PROMPTS), min_length=1, max_length=100, description="texts that the proof runs both models on"
    )
    check_tokens: int = Field(24, ge=1, le=1000, description="greedy tokens of the proof after each prompt")
    bound: float | None = Field(
        None,
        gt=0,
        description="largest typical difference of logits, in units of their spread (default: by the type of weights)",
    )

    def source(self) -> Source:
        """What is to be exported; UsageError where the settings do not fit it."""
        from mickle.exporting.source import find_source

        return find_source(self.model, self.base, self.base_folder, self.original_folder, self.journal, self.to_step)

    def fingerprint(self) -> dict[str, Any]:
        """The weights beneath an adapter, wherever they stand."""
        from mickle.models.adapters import weights_digest

        source = self.source()
        return {"base": weights_digest(source.base)} if source.adapter else {}

    def dry_run(self) -> tuple[Forecast, str]:
        from mickle.tuning.weights import weigh

        source = self.source()
        weights = weigh(source.base)
        what = f"{source.folder} on {source.base}" if source.adapter else str(source.folder)
        form = "adapter" if source.moves_adapter else self.format.kind
        wide, stored = 4 * weights.parameters, weights.file_bytes
        # The proof holds two models in float32, and the file of one that is stored in another type.
        memory = 2 * wide + (stored if stored < wide else 0) + LIBRARIES
        return Forecast(memory, disk_bytes=max(2 * stored, wide)), f"{what} -> {form}\n"

    @classmethod
    def findings(cls, summary: dict[str, Any]) -> list[Finding]:
        """How alike it is."""
        return [
            Finding(f"{summary.get('same_tokens', 0):.1%}", "of the exported model's first choices equal its source's")
        ]

    @classmethod
    def shown(cls, folder: Path) -> list[str]:
        """What the header of a GGUF file in it says."""
        file = gguf_file(folder)
        return [] if file is None else about(file).splitlines()[1:]

    def run(self, work: Path, emit: Emit) -> dict[str, Any]:
        from mickle.exporting.huggingface import refuse_missing_rows, write_huggingface
        from mickle.exporting.source import runs_on
        from mickle.models.folder import open_tokenizer
        from mickle.models.folder_check import TOKENIZER

        source = self.source()
        check_format(self.format, source)
        if source.moves_adapter:
            from mickle.exporting.huggingface import write_adapter

            moved, how = write_adapter(source, work, emit)
            write_json(work / RESULTS, {"journal": moved, "notes": [how]})
            return {"type": "adapter", **moved}
        model, how = source.open_moved() if source.journal else (source.open(), "")
        if (home := source.tokenizer_home) is not None:
            refuse_missing_rows(open_tokenizer(home).get_vocab(), model.vocab_size, home / TOKENIZER)
        if how:
            emit(Noted(how))
        kept = ""
        if isinstance(self.format, Gguf):
            from mickle.exporting.gguf_file import write_gguf
            from mickle.exporting.gguf_quants import kept_of

            kind, kept = kept_of(model, self.format.type)
            merged = merge(model, source, self.format, emit)
            notes = write_gguf(model, source, work, kind)
        else:
            merged, notes = merge(model, source, self.format, emit), []
            write_huggingface(model, source, work)
            kind = _type(model)
        for note in filter(None, (kept, *notes, runs_on(source))):
            emit(Warned(note))
        again = model if source.journal and _type(model) == "float32" else None  # not replayed twice
        del model  # two models at a time are enough
        proof = check(source, work, self, kind, emit, again)
        emit(Noted(proof.line()))
        write_json(work / RESULTS, {"merged": merged, "proof": asdict(proof), "notes": notes})
        return {
            "type": kind,
            "difference": proof.typical,
            "largest_difference": proof.largest,
            "same_tokens": proof.same_tokens,
            **({"kept": kept} if kept else {}),
        }

    def after(self, out: Path) -> str:
        from mickle.models.folder import describe

        if isinstance(self.format, Gguf):
            return shlex.join(["llama-cli", "-m", f"{out}/model.gguf"])
        return command("chat", out) if describe(out).causal else command("evaluate", out, "--task", "masked")


def merge(model: nn.Module, source: Source, form: HuggingFace | Gguf, emit: Emit) -> dict[str, dict[str, float]]:
    """Make `model` plain and of the type it is stored in, in place; figures by merged layer, told as they are.

    With the original base the figures compare it with the one in few bits, layer by layer.
    """
    import torch

    from mickle.models.linear_layers import dense_weight, stored_type
    from mickle.models.lora import lora_layers, merge_lora

    stored = stored_type(model)
    wanted = torch.float32 if isinstance(form, Gguf) else getattr(torch, form.dtype, stored)
    trained_on = source.trained_on()
    if trained_on is not None:
        beneath = {name: dense_weight(layer.base_layer) for name, layer in lora_layers(model).items()}
        compared = merge_lora(trained_on, beneath, only_adapted=True)
    figures = merge_lora(model, dtype=wanted)
    model.to(wanted)
    if trained_on is not None:
        figures = {name: {**layer, "base": compared[name]["base"]} for name, layer in figures.items()}
    if figures:
        for line in told(figures):
            emit(line)
    return figures


def told(figures: dict[str, dict[str, float]]) -> list[Noted | Warned]:
    """A line for each merged layer, the largest first, and a warning where the change is drowned."""
    ranked = sorted(figures.items(), key=lambda item: -item[1]["base"] / max(item[1]["change"], 1e-30))
    lines: list[Noted | Warned] = [
        Noted(
            f"merged {name}: change {f['change']:.3g} of weight {f['weight']:.3g}"
            + (f", base off by {f['base'] / max(f['change'], 1e-30):.2g} changes" if f["base"] else "")
        )
        for name, f in ranked[:20]
    ]
    if len(ranked) > 20:
        lines.append(Noted(f"and {len(ranked) - 20} more layers; all are in {RESULTS}"))
    for key, why in (("base", "the base it is put onto differs"), ("rounding", "rounding to the stored type moves it")):
        drowned = [name for name, f in figures.items() if f[key] > f["change"]]
        if drowned:
            lines.append(Warned(f"in {len(drowned)} layers {why} by more than what was learned; first {drowned[0]}"))
    return lines


def check_format(form: HuggingFace | Gguf, source: Source) -> None:
    """Refuse what the format cannot hold, before weights are read."""
    if source.moves_adapter and form != HuggingFace():
        raise UsageError(
            "this journal is of an adapter, and an adapter folder comes out",
            where="format",
            todo="leave format out; then export that folder in this format",
        )
    if isinstance(form, Gguf):
        from mickle.exporting.gguf_file import refuse_other_models

        refuse_other_models(source.base)


def check(source: Source, work: Path, step: Export, kind: str, emit: Emit, opened: nn.Module | None = None) -> Proof:
    """Open what was written anew, run it beside the source (`opened`, or opened now), and compare; what transformers
    makes of the source's folder, and of a written one, must be the same. UsageError where they differ.
    """
    from mickle.exporting.huggingface import refuse_other_words
    from mickle.exporting.proof import prove, refuse_other_reading
    from mickle.models.folder import open_model

    prompts = token_prompts(source, step.check_prompts, step.check_tokens)
    if isinstance(step.format, Gguf):
        from mickle.exporting.gguf_file import open_gguf, refuse_other_vocabulary

        exported: nn.Module = open_gguf(work)
        refuse_other_vocabulary(source, work, step.check_prompts)
    else:
        refuse_other_words(source, work, step.check_prompts, emit)
        refuse_other_reading(work, prompts, emit, source.ends)
        exported = open_model(work)
    refuse_other_reading(source.base, prompts, emit)
    return prove(opened or source.open(), exported, prompts, kind, step.bound, step.check_tokens)


def token_prompts(source: Source, texts: list[str], room: int) -> list[list[int]]:
    """Token ids of the prompts, cut so that `room` more fit a short model; counted ones where there is no tokenizer."""
    from mickle.models.folder import describe, open_tokenizer

    model, home = describe(source.base), source.tokenizer_home
    longest = max(1, model.longest - room - 4)
    if home is None:
        return [[(7 * k + 3 * n) % model.vocab_size for k in range(min(12, longest))] for n in range(len(texts))]
    found = [open_tokenizer(home).encode(text).ids[:longest] for text in texts]
    if not all(found):
        raise UsageError("a prompt has no tokens", where="check_prompts")
    return found


def _type(model: nn.Module) -> str:
    from mickle.models.linear_layers import stored_type

    return str(stored_type(model)).removeprefix("torch.")
