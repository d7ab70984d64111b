"""The parts of a tuning run: what is known before the model is opened, the model made ready, measured and saved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mickle import machine, storage
from mickle.data.conversations import write_examples
from mickle.data.label_prompts import LabelPrompt
from mickle.data.records import Page
from mickle.data.tokenizer import TextTokenizer, open_text_tokenizer
from mickle.errors import UsageError
from mickle.machine import Forecast
from mickle.models.folder import describe, end_tokens, open_model
from mickle.models.folder_check import TEMPLATE, check_tokenizer, inspect_folder, is_adapter, read_config
from mickle.models.folder_files import NARROW, keep_words
from mickle.models.language import Description, LanguageModel, check_vocabulary
from mickle.models.linear_layers import is_linear
from mickle.models.lora import LoraLinear
from mickle.step import command
from mickle.training.run import Asked
from mickle.tuning import measures, tune_plan
from mickle.tuning.methods import TuningMethod
from mickle.tuning.task import Sources, Task
from mickle.tuning.tune_data import read_task
from mickle.tuning.tune_labels import read_labels
from mickle.tuning.tune_plan import LONGEST, TunePlan
from mickle.tuning.weights import Weights, weigh

OPENING = 16  # tokens


@dataclass(frozen=True)
class Known:
    """What a run knows before the model is opened: its task, and what the model's folder says of it."""

    folder: Path
    method: TuningMethod
    task: Task
    tokenizer: TextTokenizer
    shape: Description
    weights: Weights
    most: int  # tokens that one example may have

    @cached_property
    def ends(self) -> list[int]:
        """The tokens that end a text of the tuned model: those of its folder, and those that the examples teach."""
        given = end_tokens(self.folder)
        return given + [token for token in self.task.ends if token not in given]

    @property
    def longest(self) -> int:
        """Tokens that the model was made for."""
        return min(self.shape.longest, LONGEST)

    def plan(self, asked: Asked, recompute: bool | None) -> tuple[TunePlan, Forecast]:
        """The run's numbers, and what it will need."""
        batching = self.task.batching(asked, self.most)
        plan = tune_plan.resolve(asked, self.method, self.weights, self.shape, batching, recompute)
        time_needed = tune_plan.seconds(self.method, plan)  # first: what it takes is then held
        needed = tune_plan.memory(self.method, plan, self.weights, self.shape)
        return replace(plan, dropout=drops_units(self.folder, self.method)), Forecast(
            needed, time_needed, tune_plan.disk(plan, self.weights)
        )


def read_inputs(
    folder: Path, method: TuningMethod, sources: Sources, prompt: LabelPrompt | None, length: int | None
) -> Known:
    """Read and check everything but the weights. ``length``: tokens of a row, where they were asked for."""
    if is_adapter(folder):  # which base it has is for a merge to say
        raise UsageError(
            "This is an adapter folder, not a model.",
            where=f"model: {folder}",
            todo=f"merge it first ({command('export', folder, '--out', 'MERGED')}), then tune MERGED",
        )
    shape = describe(folder)
    check_tokenizer(folder)
    tokenizer = open_text_tokenizer(folder)
    if new := [mark for mark in method.learns.marks if tokenizer.tokenizer.token_to_id(mark) is None]:
        tokenizer.tokenizer.add_special_tokens(new)
    check_vocabulary(shape, tokenizer.size, folder)
    most = tune_plan.longest_row(length, shape)
    task: Task
    if prompt is not None:
        task = read_labels(sources, prompt, tokenizer, most, shape.causal)
    else:
        task = read_task(sources, folder, tokenizer, most, shape.causal)
    _import_libraries(shape.ours, method.few_bits or "quantization_config" in read_config(folder))
    return Known(
        folder, method, task, tokenizer, shape, weigh(folder, method.learns.adapted, method.learns.layers), most
    )


def drops_units(folder: Path, method: TuningMethod) -> bool:
    """Whether training has dropout, as the settings of model or adapters say; MeZO has none."""
    heads = ("summary", "classifier")  # which language models do not have
    settings = {name: rate for name, rate in read_config(folder).items() if not name.startswith(heads)}
    rates = [rate for name, rate in settings.items() if "drop" in name] + [getattr(method, "dropout", 0.0)]
    return method.kept is not None and any(isinstance(rate, (int, float)) and rate > 0 for rate in rates)


def _import_libraries(ours: bool, few_bits: bool) -> None:
    """Libraries that the run will need: the forecast counts them with what the process holds."""
    import mickle.training.loop

    if not ours:
        import mickle.models.transformers_bridge
    if few_bits:
        import mickle.models.quantized  # noqa: F401


def open_model_to_tune(known: Known, plan: TunePlan, seed: int) -> LanguageModel:
    """The model on this machine's device, with what learns in float32 and the rest as small as the method allows.

    It is opened in its files' own precision, so that a model of 16 bits is never held in 32 when most of it is frozen.
    """
    learns = known.method.learns
    model = open_model(known.folder, device=machine.device())
    check_vocabulary(model, known.tokenizer.size, known.folder)
    prepared = learns.prepare(model, seed)
    learns.prepare_beside(prepared, known.tokenizer)
    if learns.whole:
        prepared.float()
    else:
        _widen(prepared, copy=known.method.few_bits)
        reduce_frozen(prepared, torch.bfloat16 if plan.precision == "bfloat16" else torch.float32)
    if plan.recompute:
        prepared.recompute_activations()
    machine.release_memory()
    return prepared


def reduce_frozen(model: nn.Module, dtype: torch.dtype) -> None:
    """Store the frozen linear layers, adapters' bases among them, in ``dtype``: that of the products they are for.

    Embeddings and norms stay as they are: they are small, and what they make is summed over all layers.
    """
    for module in model.modules():
        if isinstance(module, LoraLinear):
            base = module.base_layer
            if is_linear(base) and not hasattr(base, "dequantized"):
                base.to(dtype)


def _widen(model: nn.Module, copy: bool) -> None:
    """Everything that is a float and no layer's store of few bits becomes float32.

    Weights that were opened are parts of one mapped file, which stays in memory as long as any of them does: with
    ``copy`` they are taken out of it.
    """
    for module in model.modules():
        if not hasattr(module, "stored_bytes"):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(torch.float32, copy=copy)


def quick_measure(task: Task, length: int, tokens: int) -> Callable[[nn.Module], dict[str, float]]:
    """A measure for the run: mean loss of the first held-out examples, some ``tokens`` of them."""

    return lambda model: mean_scores(task.scores(model, length, tokens))


def mean_scores(scores: np.ndarray) -> dict[str, float]:
    """Mean loss and share of right guesses, of the scores [n, 3] of some held-out examples."""
    nats, count, right = scores.sum(0)
    return {"heldout_loss": nats / max(count, 1), "heldout_accuracy": right / max(count, 1)}


def measure(known: Known, plan: TunePlan, model: nn.Module, pages: Sequence[Page], samples: int) -> dict[str, Any]:
    """Scores of every held-out example and of every page, and samples, as JSON holds them."""
    task, length = known.task, plan.sequence_length
    with measures.measuring(model, plan.precision):
        scores = task.scores(model, length)
        general = measures.page_scores(model, pages, known.tokenizer, min(known.longest, length))
        told = samples and task.heldout_lengths
        written = task.samples(model, samples, known.ends, known.longest) if told else []
    machine.release_memory()
    return {"task": measures.as_lists(scores), "general": measures.as_lists(general), "samples": written}


@torch.no_grad()
def round_as_given(known: Known, model: nn.Module) -> torch.dtype:
    """Round the weights to the type that most of the model's folder is stored in, which is returned: what is measured
    is then what is written. The weights stay in float32.
    """
    sizes: Counter[str] = Counter()
    for _, entry in inspect_folder(known.folder).tensors.values():
        sizes[entry.dtype] += entry.elements
    given = NARROW.get(max(sizes, key=sizes.__getitem__), torch.float32)
    for parameter in model.parameters():
        parameter.copy_(parameter.to(given))
    return given


def save_tuned(known: Known, model: nn.Module, work: Path) -> None:
    """A plain model folder, or an adapter folder in PEFT's form; tokenizer, chat template, ends of texts and the
    examples that were held out, too.
    """
    template = known.task.template
    known.method.learns.save(model, work, known.folder, known.tokenizer)
    keep_words(known.folder, work, known.task.ends)
    if template is not None and template.builtin:
        storage.write_text(work / TEMPLATE, template.source)
    if known.task.heldout_examples:
        write_examples(work / storage.HELDOUT_EXAMPLES, known.task.heldout_examples)


def runs_on(known: Known, work: Path) -> str:
    """A sentence where transformers' `generate`, asked with the folder that was written, does not end a text where the
    examples do; "" where it does, or where what was written is no whole model that writes.
    """
    if not (known.method.learns.whole and known.shape.causal and known.task.ends):
        return ""
    if 4 * known.weights.parameters > machine.available_memory() // 2:
        return "no memory to open what was written: whether transformers ends texts where the examples do is not known"
    from mickle.models.transformers_bridge import MODEL_TYPE, read_by_transformers

    if known.shape.model_type == MODEL_TYPE:  # no other program opens it
        return ""
    opening = [int(token) for token in known.task.training.tokens[0][:OPENING]]
    try:
        read = read_by_transformers(work, [opening], OPENING)
    except UsageError as error:
        return f"transformers does not open what was written, so it is not known where its texts end: {error.what}"
    passed = {token for text in read.written for token in text[:-1]}  # what was written and gone on behind
    missing = {end for end in known.task.ends if end not in read.ends or end in passed}
    return f"transformers' generate does not end a text at {sorted(missing)}, where the examples end" if missing else ""


def peak_memory() -> int:
    """The most bytes held: on the accelerator where the model is there, else by the process."""
    if machine.device().type == "cuda":
        return torch.cuda.max_memory_allocated()
    return machine.peak_memory()
