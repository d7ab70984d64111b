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

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from mickle.config import Config
from mickle.errors import UsageError
from mickle.step import command

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn
    from torch.optim import Optimizer

    from mickle.data.tokenizer import TextTokenizer
    from mickle.models.language import LanguageModel
    from mickle.training.run import TrainingRun
    from mickle.tuning.weights import Weights

BESIDE = {"modules_to_save", "trained_tokens"}  # settings of what learns beside adapters
LARGE = 7e9  # parameters for which the methods' rates hold
EPOCHS = 3


class Adam(Config):
    """AdamW (arXiv 1711.05101) as tuning wants it: no decay, and the averages of Adam's own paper."""

    betas: tuple[float, float] = Field((0.9, 0.999), description="decay of the two moving averages")
    eps: float = Field(1e-8, gt=0, description="added to the root of the second average")
    weight_decay: float = Field(0.0, ge=0, description="decay of matrices; norms, biases and embeddings have none")
    clip_norm: float | None = Field(
        None, gt=0, description="largest norm of a gradient (default: 1, with a base in four bits 0.3)"
    )


class Learning(Config):
    """What learns of a model, and what comes out: all of it (``whole``), or something beside a base that is frozen.

    milder: what forgets less, for a person.
    """

    whole: ClassVar[bool] = False
    milder: ClassVar[str] = ""

    if TYPE_CHECKING:
        kind: str  # a field of each, where it stands first or after others

    @property
    def adapted(self) -> str | list[str]:
        """Which linear layers get adapters, if any do: ends of their names."""
        return "all-linear"

    def count(self, weights: Weights) -> int:
        """How many parameters learn."""
        raise NotImplementedError

    def prepare(self, model: LanguageModel, seed: int) -> LanguageModel:
        """The model with what learns trainable and all else frozen; what is added depends on ``seed`` alone.

        Raises UsageError where the model cannot take it.
        """
        raise NotImplementedError

    @property
    def marks(self) -> list[str]:
        """Tokens, as they are spelt, whose rows of the embedding and the output matrix learn too."""
        return []

    @property
    def layers(self) -> list[str]:
        """Layers that learn whole beside others: ends of their names."""
        return []

    def prepare_beside(self, model: LanguageModel, tokenizer: TextTokenizer) -> None:
        """Let what ``marks`` and ``layers`` name learn. Raises UsageError where the model cannot take it."""
        from mickle.models.trained_layers import tables, train_rows, train_whole

        tokens: list[Any] = [tokenizer.tokenizer.token_to_id(mark) for mark in self.marks]
        train_rows(model, dict.fromkeys(tables(model), tokens) if tokens else {})
        train_whole(model, self.layers)

    def save(self, model: nn.Module, work: Path, base: Path, tokenizer: TextTokenizer) -> None:
        """A model folder, or an adapter's in PEFT's form with where its base is."""
        raise NotImplementedError

    def next_command(self, out: Path) -> str:
        """What to do with the result."""
        return command("export", out, "--out", f"{out}-merged")


class Everything(Learning):
    """All weights learn."""

    whole: ClassVar[bool] = True

    def count(self, weights: Weights) -> int:
        return weights.parameters

    def prepare(self, model: LanguageModel, seed: int) -> LanguageModel:
        if is_quantized(model):
            raise UsageError(
                "This model's weights are stored in few bits; they cannot learn.",
                where="method",
                todo="tune adapters on it with --method qlora, or start from the model it was made from",
            )
        return model.requires_grad_(True)

    def save(self, model: nn.Module, work: Path, base: Path, tokenizer: TextTokenizer) -> None:
        from mickle.models.folder import save_model

        save_model(model, work, tokenizer)

    def next_command(self, out: Path) -> str:
        return command("export", out, "--out", f"{out}-exported")


class BesideLinear(Learning):
    """Low-rank adapters beside linear layers learn (`models/lora.py`)."""

    if TYPE_CHECKING:
        rank: int
        targets: Literal["all-linear"] | list[str]

    @field_validator("targets", check_fields=False)
    @classmethod
    def _all(cls, targets: str | list[str]) -> str | list[str]:
        return "all-linear" if targets == ["all-linear"] else targets  # as the command line gives it

    @property
    def adapted(self) -> str | list[str]:
        return self.targets

    def count(self, weights: Weights) -> int:
        return self.rank * weights.sides + len(self.marks) * weights.row + weights.whole

    def prepare(self, model: LanguageModel, seed: int) -> LanguageModel:
        from mickle.models.lora import attach_lora

        attach_lora(model, seed=seed, **self.model_dump(include=set(Adapters.model_fields) - BESIDE))
        return model

    def save(self, model: nn.Module, work: Path, base: Path, tokenizer: TextTokenizer) -> None:
        from mickle.models.adapters import save_adapter

        save_adapter(model, work, base, tokenizer)


class TuningMethod(Learning):
    """What a way of tuning answers for itself; each one overrides where it differs.

    passes: FLOP a parameter and token. kept: of the activations that pretraining keeps, as measured, in our decoder and
    in models of transformers; None where nothing is kept, as there is no backward pass. large_rate: peak learning rate
    at 7 billion parameters. largest_norm: of a gradient. few_bits: whether the base is stored in few bits.
    stored_as_given: whether the weights are rounded to the type that the model came in.
    """

    passes: ClassVar[int] = 4
    kept: ClassVar[tuple[float, float] | None] = None
    large_rate: ClassVar[float] = 2e-4
    largest_norm: ClassVar[float] = 1.0
    few_bits: ClassVar[bool] = False
    stored_as_given: ClassVar[bool] = False

    @property
    def one_process(self) -> str:
        """Why processes cannot share it; "" where they can."""
        return ""

    @property
    def learns(self) -> Learning:
        """What learns by it."""
        return self

    @property
    def counts_answers(self) -> bool:
        """Whether the share of wrong answers is trained instead of the loss."""
        return False

    def rate(self, parameters: int) -> float:
        """The peak learning rate for a model of so many parameters, by the rule above."""
        return self.large_rate * (LARGE / max(parameters, 1)) ** 0.25

    def steps(self, epoch: float) -> int:
        """Steps where neither they nor epochs are asked for; ``epoch``: those of one."""
        return max(1, math.ceil(EPOCHS * epoch))

    def bytes_a_number(self, precision: str) -> float:
        """Bytes of a number in the base's linear layers."""
        return 4.0

    def unpacked_bytes(self, weights: Weights) -> int:
        """Bytes of weights that a step makes of those in few bits."""
        return 0

    def found_rate(self, given: float, file: Path, open_model: Callable[[], nn.Module], run: TrainingRun) -> float:
        """The learning rate: the one in the plan, or where there is none one that is measured and kept in ``file``."""
        return given

    def optimizer(self, model: nn.Module, rate: float, adam: Adam, scratch: Path, seed: int, steps: int) -> Optimizer:
        """The optimizer over what learns, for a run of so many steps; ``scratch``: for what it keeps on disk."""
        from mickle.training.optimizers import AdamW, build_optimizer

        settings = AdamW(learning_rate=rate, betas=adam.betas, eps=adam.eps, weight_decay=adam.weight_decay)
        return build_optimizer(settings, model)

    def journal(
        self, optimizer: Optimizer, model: nn.Module, kept: int, base: Path, checkpoints: Path, work: Path
    ) -> dict[str, Any]:
        """What the run wrote down of itself, into ``work``, and what the summary says of it: mostly nothing."""
        return {}


class Full(Everything, TuningMethod):
    """All weights learn."""

    milder: ClassVar[str] = "a lower learning rate, fewer epochs or --method lora"
    passes: ClassVar[int] = 6
    kept: ClassVar[tuple[float, float] | None] = (0.82, 0.85)
    large_rate: ClassVar[float] = 2e-5
    stored_as_given: ClassVar[bool] = True

    kind: Literal["full"] = "full"


class Adapters(BesideLinear, TuningMethod):
    """What adapters look like. The defaults reach what tuning all weights reaches (QLoRA, section 4)."""

    milder: ClassVar[str] = "a lower learning rate, fewer epochs or a smaller --method.rank"

    rank: int = Field(16, ge=1, le=4096, description="inner dimension of an adapter")
    alpha: float = Field(32.0, gt=0, description="adapters are scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on what goes into an adapter")
    targets: Literal["all-linear"] | list[str] = Field(
        "all-linear", description="layers with adapters: all-linear, or ends of their names such as q_proj v_proj"
    )
    rslora: bool = Field(False, description="scale by alpha / sqrt(rank) instead (arXiv 2312.03732)")
    rank_pattern: dict[str, int] = Field(
        default_factory=dict, description="ranks of single layers, by their names or regular expressions"
    )
    alpha_pattern: dict[str, float] = Field(
        default_factory=dict, description="alphas of single layers, by their names or regular expressions"
    )
    trained_tokens: list[str] = Field(
        default_factory=list,
        description="tokens whose rows of embedding and output matrix learn too, such as marks of a chat template; "
        "one that the tokenizer lacks is added where the model has a row to spare",
    )
    modules_to_save: list[str] = Field(
        default_factory=list, description="layers that learn whole, by the ends of their names: norm, lm_head"
    )

    @property
    def marks(self) -> list[str]:
        return list(dict.fromkeys(self.trained_tokens))

    @property
    def layers(self) -> list[str]:
        return self.modules_to_save

    @property
    def one_process(self) -> str:
        return "rows of a table are no process's share" if self.trained_tokens else ""

    def unpacked_bytes(self, weights: Weights) -> int:
        return 12 * weights.table if self.trained_tokens else 0  # the table with its rows put in, and gradients


class Lora(Adapters):
    """Adapters on a frozen base."""

    kept: ClassVar[tuple[float, float] | None] = (0.68, 1.0)

    kind: Literal["lora"] = "lora"

    def bytes_a_number(self, precision: str) -> float:
        return 2.0 if precision == "bfloat16" else 4.0


class Qlora(Adapters):
    """Adapters on a frozen base in four bits."""

    kept: ClassVar[tuple[float, float] | None] = (0.95, 1.2)
    largest_norm: ClassVar[float] = 0.3  # QLoRA, appendix B
    few_bits: ClassVar[bool] = True

    kind: Literal["qlora"] = "qlora"
    code: Literal["nf4", "fp4"] = Field("nf4", description="which 16 values a weight can take: nf4 or fp4")
    double: bool = Field(True, description="store the blocks' scales in 8 bits: 4.13 instead of 4.5 bits a weight")
    paged: bool = Field(False, description="keep the optimizer's averages outside the memory that training needs")

    @property
    def one_process(self) -> str:
        return "pages are of whole averages, not of a process's share" if self.paged else super().one_process

    def bytes_a_number(self, precision: str) -> float:
        return 4.127 / 8 if self.double else 4.5 / 8

    def unpacked_bytes(self, weights: Weights) -> int:
        return 4 * weights.largest + super().unpacked_bytes(weights)

    def prepare(self, model: LanguageModel, seed: int) -> LanguageModel:
        from mickle.models.quantized import quantize_model

        if not is_quantized(model):
            quantize_model(model, code=self.code, double=self.double)
        return super().prepare(model, seed)

    def optimizer(self, model: nn.Module, rate: float, adam: Adam, scratch: Path, seed: int, steps: int) -> Optimizer:
        if not self.paged:
            return super().optimizer(model, rate, adam, scratch, seed, steps)
        from mickle.training.optimizers import decay_groups
        from mickle.training.paged import paged_adamw

        groups = decay_groups(model, adam.weight_decay)
        return paged_adamw(groups, scratch / "paged", lr=rate, betas=adam.betas, eps=adam.eps)

    def save(self, model: nn.Module, work: Path, base: Path, tokenizer: TextTokenizer) -> None:
        from mickle.models.adapters import save_adapter
        from mickle.models.folder_check import read_config

        made_here = "quantization_config" not in read_config(base)
        how = {"code": self.code, "double": self.double} if made_here else None
        save_adapter(model, work, base, tokenizer, quantization=how)


def is_quantized(model: nn.Module) -> bool:
    """Whether some of the model's layers are stored in few bits."""
    return any(hasattr(module, "stored_bytes") for module in model.modules())
