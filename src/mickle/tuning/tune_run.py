"""The parts of a tuning run: what is known before the model is opened, the model made ready, measured and saved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer

from mickle import machine, storage
from mickle.data.records import Page
from mickle.data.tokenizer import TextTokenizer, open_text_tokenizer
from mickle.errors import NumericError, UsageError
from mickle.evaluation.inputs import check_vocabulary
from mickle.machine import Forecast
from mickle.models.folder import describe, end_tokens, open_model, save_model
from mickle.models.folder_check import check_tokenizer, read_config, regular_file
from mickle.models.language import Description
from mickle.training.objectives import Batch, Objective
from mickle.tuning import measures, methods, tune_plan
from mickle.tuning.mezo import Mezo, build_mezo, prepare_mezo
from mickle.tuning.tune_data import Task, example_objective, read_task, steps_an_epoch
from mickle.tuning.tune_labels import (
    LabelTask,
    label_objective,
    longest_of_labels,
    read_labels,
    rows_of_labels,
    steps_an_epoch_of_labels,
)
from mickle.tuning.tune_plan import Plan

if TYPE_CHECKING:
    from mickle.tuning.tune import Tune

KEPT_FILES = ("generation_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
TEMPLATE = "chat_template.jinja"
KEPT_CHECKPOINTS = 2
EFFICIENCY = 0.5  # of a training step's products against one large product
LARGEST_KEPT = 4 << 20  # bytes of such a file


@dataclass(frozen=True)
class Ready:
    """What a run knows before the model is opened."""

    task: Task | LabelTask
    tokenizer: TextTokenizer
    plan: Plan
    forecast: Forecast
    causal: bool
    longest: int  # tokens that the model was made for

    def with_forecast(self, forecast: Forecast) -> Ready:
        """The same with another forecast, the one that was made first."""
        return replace(self, forecast=forecast)


def get_ready(settings: Tune, plan: Plan | None = None) -> Ready:
    """Read and check everything but the weights; ``plan``: that of a run which goes on."""
    shape = describe(settings.model)
    check_tokenizer(settings.model)
    tokenizer = open_text_tokenizer(settings.model)
    if tokenizer.size > shape.vocab_size:
        raise UsageError(
            f"The tokenizer has {tokenizer.size:,} tokens, the model {shape.vocab_size:,}.",
            where=str(settings.model),
            todo="use the tokenizer that belongs to the model",
        )
    most = tune_plan.longest_row(settings, shape)
    task = (read_labels if settings.prompt else read_task)(settings, tokenizer, most, shape.causal)
    _import_libraries(settings, shape)
    weights = tune_plan.weigh(settings.model, getattr(settings.method, "targets", "all-linear"))
    if plan is None:
        length, rows, epoch = _batches(settings, task, most)
        plan = tune_plan.resolve(settings, weights, shape, length, rows, epoch, len(task.training.tokens))
    time_needed = seconds(settings.method, plan)  # first: what it takes is then held
    needed = tune_plan.memory(settings.method, plan, weights, shape)
    disk = (KEPT_CHECKPOINTS + 2) * 12 * plan.learning + 4 * plan.learning + weights.file_bytes
    forecast = Forecast(needed, time_needed, disk)
    return Ready(task, tokenizer, plan, forecast, shape.causal, min(shape.longest, tune_plan.LONGEST))


def _import_libraries(settings: Tune, model: Description) -> None:
    """Libraries that the run will need: the forecast counts them with what the process holds."""
    import mickle.training.loop

    if not model.ours:
        import mickle.models.transformers_bridge
    if settings.method.kind == "qlora" or "quantization_config" in read_config(settings.model):
        import mickle.models.quantized  # noqa: F401


def _batches(settings: Tune, task: Task | LabelTask, most: int) -> tuple[int, int, float]:
    """Tokens of a row, rows of a step, and steps of an epoch."""
    if isinstance(task, LabelTask):
        rows = rows_of_labels(settings.batch_tokens, task.lengths)
        return longest_of_labels(task), rows, steps_an_epoch_of_labels(task, rows)
    length = tune_plan.row_length(settings, max(task.lengths), most)
    rows = tune_plan.batch_rows(settings, length, task.lengths)
    return length, rows, steps_an_epoch(task, length, rows)


def objective_and_batches(settings: Tune, ready: Ready) -> tuple[Objective, Callable[[int], Batch]]:
    """What is trained, and on which batches."""
    task, plan, seed = ready.task, ready.plan, settings.seed
    if isinstance(task, LabelTask):
        return label_objective(task, settings.method, plan.batch_size, seed)
    return example_objective(task, plan, seed, ready.causal, ready.tokenizer)


def seconds(method: Any, plan: Plan) -> float:
    """Seconds of the training: its products at half the rate of one large product, which is measured now.

    A token costs 2 FLOP a parameter forward, as many for the gradient of what goes in, and as many for that of the
    weights where they learn (Kaplan et al., arXiv 2001.08361, section 2.1); activations computed twice, 2 more.
    """
    passes = {"full": 6, "lora": 4, "qlora": 4, "mezo": 4}[method.kind] + (2 if plan.recompute else 0)
    tokens = plan.steps * plan.batch_size * plan.sequence_length
    return passes * plan.parameters * tokens / (EFFICIENCY * machine.matmul_flops(plan.precision))


def open_model_to_tune(settings: Tune, ready: Ready) -> Any:
    """The model on this machine's device, with what learns in float32 and the rest as small as the method allows.

    It is opened in its files' own precision, so that a model of 16 bits is never held in 32 when most of it is frozen.
    """
    method = settings.method
    try:
        model = open_model(settings.model, device=machine.device())
    except NumericError as error:  # here it is the folder that is wrong, and nothing has been begun
        raise UsageError(error.what, where=error.where, todo="take an earlier copy of this model") from None
    check_vocabulary(model, ready.tokenizer, settings.model)
    if whole(method):
        methods.refuse_quantized(model)
        model.float()
    if isinstance(method, Mezo):
        model = prepare_mezo(method, model, settings.seed)
    else:
        methods.prepare(model, method, settings.seed)
    if not whole(method):
        _widen(model)
        methods.reduce_frozen(model, torch.bfloat16 if ready.plan.precision == "bfloat16" else torch.float32)
    if ready.plan.recompute:
        model.recompute_activations()
    return model


def whole(method: Any) -> bool:
    """Whether all of the model's weights learn, so that a model comes out and no adapter."""
    return method.kind == "full" or (isinstance(method, Mezo) and method.parameters.kind == "full")


def build_optimizer(
    settings: Tune, ready: Ready, model: nn.Module, scratch: Path, objective: Objective, batches: Callable[[int], Batch]
) -> Optimizer:
    """The method's optimizer over what learns."""
    if not isinstance(settings.method, Mezo):
        return methods.optimizer_for(settings.method, settings.optimizer, ready.plan.learning_rate, model, scratch)
    from mickle.tuning.tune_mezo import kept_rate

    method = kept_rate(
        settings, ready.plan, scratch / "rate.json", lambda: open_model_to_tune(settings, ready), objective, batches
    )
    return build_mezo(method, model, settings.seed, ready.plan.steps)


def _widen(model: nn.Module) -> None:
    """Everything that is a float and no layer's store of few bits becomes float32."""
    for module in model.modules():
        if not hasattr(module, "stored_bytes"):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.float()


def quick_measure(ready: Ready, tokens: int) -> Callable[[nn.Module], dict[str, float]]:
    """A measure for the run: mean loss of the first held-out examples, some ``tokens`` of them."""

    def measured(model: nn.Module) -> dict[str, float]:
        scores = measures.example_scores(model, ready.task, ready.tokenizer, ready.plan.sequence_length, tokens)
        nats, count, right = scores.sum(0)
        return {"heldout_loss": nats / max(count, 1), "heldout_accuracy": right / max(count, 1)}

    return measured


def measure(settings: Tune, model: nn.Module, ready: Ready, pages: list[Page]) -> dict[str, Any]:
    """Scores of every held-out example and of every page, and samples, as JSON holds them."""
    task, tokenizer, longest = ready.task, ready.tokenizer, ready.longest
    with measures.measuring(model, ready.plan.precision):
        scores = measures.example_scores(model, task, tokenizer, ready.plan.sequence_length)
        general = measures.page_scores(model, pages, tokenizer, min(longest, ready.plan.sequence_length))
        written = measures.samples(model, task, tokenizer, settings.samples, end_tokens(settings.model), longest)
    return {"task": measures.as_lists(scores), "general": measures.as_lists(general), "samples": written}


def save_tuned(settings: Tune, model: nn.Module, work: Path, ready: Ready) -> None:
    """A plain model folder, or an adapter folder in PEFT's form; tokenizer, chat template and the ends of texts too."""
    method, template = settings.method, ready.task.template
    if whole(method):
        save_model(model, work, ready.tokenizer)
    elif isinstance(method, Mezo) and method.parameters.kind == "prefix":
        from mickle.models.prefix import save_prefix

        save_prefix(model, work, settings.model)
        ready.tokenizer.save(work)
    else:
        from mickle.models.adapters import save_adapter

        how = None
        if isinstance(method, methods.Qlora) and "quantization_config" not in read_config(settings.model):
            how = {"code": method.code, "double": method.double}
        save_adapter(model, work, settings.model, ready.tokenizer, quantization=how)
    for name in KEPT_FILES:
        if (settings.model / name).exists():
            path = regular_file(settings.model, name)
            if path.stat().st_size <= LARGEST_KEPT:
                storage.write_bytes(work / name, path.read_bytes())
    if template is not None and template.builtin:
        storage.write_text(work / TEMPLATE, template.source)


def peak_memory() -> int:
    """The most bytes held: on the accelerator where the model is there, else by the process."""
    if machine.device().type == "cuda":
        return torch.cuda.max_memory_allocated()
    return machine.peak_memory()
