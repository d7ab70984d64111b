"""How a model is tuned: all of its weights, or low-rank adapters on a base that is frozen, as it is or in four bits.

- ``full``: every weight learns.
- ``lora``: "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv 2106.09685): beside each linear layer stands a
  product of two thin matrices, and only they learn (``models/lora.py``).
- ``qlora``: "QLoRA: Efficient Finetuning of Quantized LLMs" (arXiv 2305.14314): the same on a base stored in four bits.
- ``mezo``: forward passes only (``tuning/mezo.py``).

Learning rates. LoRA's papers take 2e-4 for models of 7 billion parameters; a tenth of it is usual where all weights
learn. Smaller models take larger steps: as in pretraining, the rate goes with parameters^(-1/4), which gives 6e-5 for
110 million parameters, where BERT's authors took 2e-5 to 5e-5 (arXiv 1810.04805, appendix A.3).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from mickle.config import Config
from mickle.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.optim import Optimizer

LARGE = 7e9  # parameters for which the rates below hold
RATES = {"full": 2e-5, "lora": 2e-4, "qlora": 2e-4}
CLIP_NORMS = {"full": 1.0, "lora": 1.0, "qlora": 0.3}  # the last as in QLoRA, appendix B


class Adam(Config):
    """AdamW (arXiv 1711.05101) as tuning wants it: no decay, and the averages of Adam's own paper."""

    betas: tuple[float, float] = Field((0.9, 0.999), description="decay of the two moving averages")
    eps: float = Field(1e-8, gt=0, description="added to the root of the second average")
    weight_decay: float = Field(0.0, ge=0, description="decay of matrices; norms, biases and embeddings have none")
    clip_norm: float | None = Field(
        None, gt=0, description="largest norm of a gradient (default: 1, with a base in four bits 0.3)"
    )


class Full(Config):
    """All weights learn."""

    kind: Literal["full"] = "full"


class Adapters(Config):
    """What adapters look like. The defaults reach what tuning all weights reaches (QLoRA, section 4)."""

    rank: int = Field(16, ge=1, le=4096, description="inner dimension of an adapter")
    alpha: float = Field(32.0, gt=0, description="adapters are scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="on what goes into an adapter")
    targets: Literal["all-linear"] | list[str] = Field(
        "all-linear", description="layers with adapters: all-linear, or ends of their names such as q_proj v_proj"
    )
    rslora: bool = Field(False, description="scale by alpha / sqrt(rank) instead (arXiv 2312.03732)")
    rank_pattern: dict[str, int] = Field(
        default_factory=dict, description="other ranks, by names of layers or regular expressions"
    )
    alpha_pattern: dict[str, float] = Field(default_factory=dict, description="other alphas, likewise")

    @field_validator("targets")
    @classmethod
    def _all(cls, targets: str | list[str]) -> str | list[str]:
        return "all-linear" if targets == ["all-linear"] else targets  # as the command line gives it


class Lora(Adapters):
    """Adapters on a frozen base."""

    kind: Literal["lora"] = "lora"


class Qlora(Adapters):
    """Adapters on a frozen base in four bits."""

    kind: Literal["qlora"] = "qlora"
    code: Literal["nf4", "fp4"] = Field("nf4", description="the 16 values of a weight")
    double: bool = Field(True, description="store the blocks' scales in 8 bits: 4.13 instead of 4.5 bits a weight")
    paged: bool = Field(False, description="keep the optimizer's averages outside the memory that training needs")


def derived_rate(kind: str, parameters: int) -> float:
    """The peak learning rate of a method for a model of so many parameters, by the rule above."""
    return RATES[kind] * (LARGE / max(parameters, 1)) ** 0.25


def prepare(model: nn.Module, method: Full | Lora | Qlora, seed: int) -> None:
    """Freeze, store in few bits and attach what the method wants, in place. Adapters depend on ``seed`` alone.

    Raises UsageError where the model is stored in few bits and all weights are to learn.
    """
    from mickle.models.lora import attach_lora
    from mickle.models.quantized import quantize_model

    if isinstance(method, Full):
        refuse_quantized(model)
        model.requires_grad_(True)
        return
    if isinstance(method, Qlora) and not is_quantized(model):
        quantize_model(model, code=method.code, double=method.double)
    attach_lora(
        model,
        rank=method.rank,
        alpha=method.alpha,
        dropout=method.dropout,
        targets=method.targets,
        rank_pattern=method.rank_pattern,
        alpha_pattern=method.alpha_pattern,
        rslora=method.rslora,
        seed=seed,
    )


def reduce_frozen(model: nn.Module, dtype: torch.dtype) -> None:
    """Store the frozen linear layers, adapters' bases among them, in ``dtype``: that of the products they are for.

    Embeddings and norms stay as they are: they are small, and what they make is summed over all layers.
    """
    from mickle.models.linear_layers import is_linear
    from mickle.models.lora import LoraLinear

    for module in model.modules():
        if isinstance(module, LoraLinear):
            base = module.base_layer
            if is_linear(base) and not hasattr(base, "dequantized"):
                base.to(dtype)


def is_quantized(model: nn.Module) -> bool:
    """Whether some of the model's layers are stored in few bits."""
    return any(hasattr(module, "stored_bytes") for module in model.modules())


def refuse_quantized(model: nn.Module) -> None:
    """UsageError where weights cannot learn because they are stored in few bits."""
    if is_quantized(model):
        raise UsageError(
            "This model's weights are stored in few bits; they cannot learn.",
            where="method",
            todo="tune adapters on it with --method qlora, or start from the model it was made from",
        )


def refuse_adapter(folder: Path) -> None:
    """UsageError for an adapter's folder: which base it has is for a merge to say."""
    from mickle.models.folder_check import is_adapter

    if is_adapter(folder):
        raise UsageError(
            "This is an adapter folder, not a model.",
            where=f"model: {folder}",
            todo=f"merge it first (mickle export {folder} --out MERGED), then tune MERGED",
        )


def optimizer_for(method: Any, settings: Adam, rate: float, model: nn.Module, scratch: Path) -> Optimizer:
    """The optimizer of a gradient method, over what learns; a paged one keeps its averages in ``scratch``."""
    from mickle.training.optimizers import AdamW, build_optimizer, decay_groups

    adam = AdamW(learning_rate=rate, betas=settings.betas, eps=settings.eps, weight_decay=settings.weight_decay)
    if isinstance(method, Qlora) and method.paged:
        from mickle.training.paged import paged_adamw

        groups = decay_groups(model, settings.weight_decay)
        return paged_adamw(groups, scratch / "paged", lr=rate, betas=settings.betas, eps=settings.eps)
    return build_optimizer(adam, model)


def clip_norm(method: Any, settings: Adam) -> float:
    """The largest norm of a gradient."""
    return settings.clip_norm or CLIP_NORMS.get(method.kind, 1.0)
