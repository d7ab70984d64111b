"""``mickle compress``: a model folder in, the same model in 2 to 4 bits a weight out, block by block.

SpQR, GPTQ, rounding and NF4, by size or by threshold. Linear layers inside blocks are stored in few bits; embeddings,
norms and the output matrix stay as they are. What the layers' errors are, which needed more damping or saw no text,
what the loss on held-out pages was before and is now: all of it is in the folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from mickle.compression.methods import SHARE_TO_WARN, Gptq, Method, Nf4, Rtn, Spqr
from mickle.config import Input
from mickle.events import Emit, Noted, Warned
from mickle.machine import Forecast
from mickle.results import Finding
from mickle.step import Step
from mickle.storage import SCRATCH

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from mickle.compression.calibration import Calibration
    from mickle.compression.sweep import SweepSettings
    from mickle.compression.walk import Allowed, LayerFigures
    from mickle.models.blocks import Blocks

HELDOUT = "heldout.parquet"


class Compress(Step):
    """Store a model's weights in 2 to 4 bits, near to lossless, and say what it cost."""

    kind: ClassVar[str] = "compressed"
    title: ClassVar[str] = "The compression"
    lead: ClassVar[str] = (
        "The same model in few bits: what each layer takes, and how far its output moved on the calibration text."
    )
    positional: ClassVar[str] = "model"
    example: ClassVar[str] = "mickle compress model --data corpus --method spqr --method.target-bits 4.2"
    reported: ClassVar[bool] = True

    model: Input = Field(description="model folder, Mickle's or any other")
    data: Input | None = Field(
        None, description="calibration text: corpus, .parquet or text file, not what the model is measured on"
    )
    method: Method = Field(default_factory=Spqr, description="spqr, gptq, rtn or nf4, and its settings")
    samples: int = Field(128, ge=1, le=100_000, description="sequences of calibration text, at most")
    length: int | None = Field(
        None, ge=1, le=1 << 20, description="tokens of a sequence (default: the model's, at most 2048)"
    )
    evaluate: bool = Field(True, description="measure the loss before and after on the model's held-out pages")

    @model_validator(mode="after")
    def _agree(self) -> Compress:
        if self.data is None and self.method.kind in ("spqr", "gptq"):
            raise ValueError(f"{self.method.kind} needs calibration text: name it with data")
        return self

    def fingerprint(self) -> dict[str, Any]:
        from importlib.metadata import version

        return {"torch": version("torch")}

    @classmethod
    def findings(cls, summary: dict[str, Any]) -> list[Finding]:
        """Bits a weight."""
        return [Finding(f"{summary.get('bits_per_weight', 0):.2f}", "bits a weight, all counted")]

    def run(self, work: Path, emit: Emit) -> dict[str, Any]:
        from mickle.compression import outcome

        if isinstance(self.method, Nf4):
            figures, seconds = outcome.compress_nf4(self.model, self.method.double, work)
        else:
            figures, seconds = self._walk(work, emit)
        outcome.copy_other_files(self.model, work)
        losses = outcome.losses(self.model, work, self.seed, emit) if self.evaluate else {}
        summary = outcome.write_report(work, self.model, self.method.kind, figures, losses)
        for line in summary.pop("lines"):
            emit(Noted(line))
        if summary["outlier_share"] > SHARE_TO_WARN:
            emit(
                Warned(
                    f"{100 * summary['outlier_share']:.1f} % of the weights are outliers, 32 bits each: "
                    "another bit for all is the better buy"
                )
            )
        return {**summary, "seconds_a_block": [round(s, 2) for s in seconds]}

    def dry_run(self) -> tuple[Forecast, str]:
        from mickle.compression.forecast import forecast
        from mickle.models.blocks import open_blocks

        blocks = open_blocks(self.model)
        calibration = self._calibration(blocks)
        if isinstance(self.method, Nf4):
            return forecast(blocks, None, None), ""
        settings = self._settings(blocks)
        return forecast(blocks, None if calibration is None else calibration.ids, settings), _said(calibration)

    def after(self, out: Path) -> str:
        return f"mickle evaluate {self.model} --task compare --task.others {out}"

    def _walk(self, work: Path, emit: Emit) -> tuple[list[LayerFigures], list[float]]:
        """All blocks, and the folder's weights and config."""
        from mickle.compression import outcome
        from mickle.compression.walk import walk
        from mickle.models.blocks import check_finite, open_blocks

        blocks = open_blocks(self.model)
        check_finite(blocks.files)
        if blocks.in_memory:
            emit(
                Noted("this architecture is opened whole: memory is that of the model in float32 and one block's more")
            )
        calibration = self._calibration(blocks)
        if calibration is not None:
            emit(Noted(_said(calibration)))
            if calibration.tokens < 2048:
                emit(Warned(f"{calibration.tokens:,} tokens of calibration text say little about the model's inputs"))
        settings = self._settings(blocks)
        ids = None if calibration is None else calibration.ids
        allowed = self._thresholds(blocks, ids, settings, work / SCRATCH, emit)
        figures, seconds = walk(blocks, ids, settings, work / SCRATCH / "blocks", emit, allowed)
        outcome.write_weights(blocks, work, work / SCRATCH / "blocks")
        return figures, seconds

    def _calibration(self, blocks: Blocks) -> Calibration | None:
        from mickle.compression.calibration import read_calibration
        from mickle.data.heldout import read_pages
        from mickle.data.tokenizer import open_text_tokenizer
        from mickle.evaluation.inputs import check_vocabulary, longest_text

        if self.data is None or isinstance(self.method, Nf4):
            return None
        tokenizer = open_text_tokenizer(self.model)
        check_vocabulary(blocks.model, tokenizer, self.model)
        heldout = self.model / HELDOUT
        texts = [page.text for batch in read_pages(heldout) for page in batch] if heldout.is_file() else []
        length = self.length or min(2048, longest_text(blocks.model, 2048))
        return read_calibration(self.data, tokenizer, texts, samples=self.samples, length=length, seed=self.seed)

    def _settings(self, blocks: Blocks) -> SweepSettings:
        """How layers are swept; a threshold that follows from a size is not in it yet."""
        from mickle.compression.sweep import SweepSettings, gptq, rounding
        from mickle.compression.target import group_for
        from mickle.models.blocks import weights_of

        method = self.method
        if isinstance(method, Spqr):
            tau = 0.2 if method.tau is None else method.tau
            return SweepSettings(
                method.bits, method.group, method.statistics == 3, tau, method.leave_one_out,
                act_order=method.act_order, damping=method.damping,
            )  # fmt: skip
        assert isinstance(method, Gptq | Rtn)
        group: int = method.group
        if method.target_bits is not None:
            sizes = [size for _, size in weights_of(blocks)]
            ordered = isinstance(method, Gptq) and method.act_order
            group = group_for(sizes, method.bits, method.target_bits, ordered)
        if isinstance(method, Rtn):
            return rounding(method.bits, group)
        return gptq(method.bits, group, act_order=method.act_order, damping=method.damping)

    def _thresholds(
        self, blocks: Blocks, ids: Tensor | None, settings: SweepSettings, scratch: Path, emit: Emit
    ) -> Callable[[list[LayerFigures]], Allowed]:
        """What the next layer may take, given the figures of those before it."""
        from dataclasses import replace

        from mickle.compression.target import Budget, outlier_budget
        from mickle.compression.walk import NO_OUTLIERS, Allowed, survey
        from mickle.models.blocks import weights_of
        from mickle.quantization.grouped import Layout

        method = self.method
        if not isinstance(method, Spqr) or (method.target_bits is None and method.outliers is None):
            return lambda before: Allowed(settings.tau)
        sizes = [size for _, size in weights_of(blocks)]
        layouts = [Layout(o, i, settings.bits, min(settings.group or i, i), settings.two_level) for o, i in sizes]
        if method.target_bits is not None:
            room = outlier_budget(layouts, method.target_bits, settings.act_order)
        else:
            assert method.outliers is not None
            room = round(method.outliers * sum(o * i for o, i in sizes))
        assert ids is not None
        counts = survey(blocks, ids, replace(settings, tau=float("inf")), scratch / "survey.json", emit)

        def allowed(before: list[LayerFigures]) -> Allowed:
            budget = Budget(room, list(counts))
            for figures in before:
                budget.spend(figures.tau or float("inf"), figures.outliers)
            most = None if method.target_bits is None else budget.left
            return Allowed(min(budget.tau(), NO_OUTLIERS), most)

        return allowed


def _said(calibration: Calibration | None) -> str:
    if calibration is None:
        return "no calibration text"
    rows, length = calibration.ids.shape
    left_out = f"; {calibration.left_out:,} held-out pages of the model left out" if calibration.left_out else ""
    return f"calibration: {rows:,} sequences of {length:,} tokens from {calibration.pages:,} pages{left_out}"
