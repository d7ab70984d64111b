"""``mickle compress``: a model folder in, the same model in 2 to 4 bits a weight out, block by block.

SpQR, GPTQ, rounding and NF4, by size or by threshold. Linear layers inside blocks are stored in few bits; embeddings,
norms and the output matrix stay as they are. What the layers' errors are, which needed more damping or saw no text,
what the loss on held-out pages was before and is now: all of it is in the folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from mickle.compression.methods import Method, Spqr
from mickle.config import Input
from mickle.events import Emit
from mickle.machine import Forecast
from mickle.models.gguf_folder import Model
from mickle.results import Finding
from mickle.step import Step, command
from mickle.storage import HELDOUT

if TYPE_CHECKING:
    from mickle.compression.calibration import Calibration
    from mickle.models.blocks import Blocks


class Compress(Step):
    """Store a model's weights in 2 to 4 bits, near to lossless, and say what it cost."""

    version: ClassVar[int] = 2  # 2: a model_type that others refuse, all small files, NF4 in blocks only
    kind: ClassVar[str] = "compressed"
    title: ClassVar[str] = "The compression"
    lead: ClassVar[str] = (
        "The same model in few bits: what each layer takes, and how far its output moved on the calibration text."
    )
    cpu_only: ClassVar[bool] = True
    positional: ClassVar[str] = "model"
    example: ClassVar[str] = "mickle compress model --data corpus --method spqr --method.target-bits 4.2"
    reported: ClassVar[bool] = True

    model: Model = Field(description="model folder, Mickle's or any other, or GGUF file")
    data: Input | None = Field(
        None, description="calibration text: corpus, .parquet or text file, not what the model is measured on"
    )
    method: Method = Field(default_factory=Spqr, description="spqr, gptq, rtn or nf4, and its settings")
    samples: int = Field(128, ge=1, le=100_000, description="most sequences of calibration text")
    length: int | None = Field(
        None, ge=1, le=1 << 20, description="tokens of a calibration sequence (default: the model's, at most 2048)"
    )
    evaluate: bool = Field(True, description="measure the loss before and after on the model's held-out pages")

    @model_validator(mode="after")
    def _agree(self) -> Compress:
        if self.data is None and self.method.needs_text:
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

        figures, seconds = self.method.compress(self.model, self._calibration, work, emit)
        outcome.copy_other_files(self.model, work)
        losses = outcome.losses(self.model, work, self.seed, emit) if self.evaluate else {}
        summary = outcome.result(work, self.model, self.method.kind, figures, losses).write(work, emit)
        return {**summary, "seconds_a_block": [round(s, 2) for s in seconds]}

    def dry_run(self) -> tuple[Forecast, str]:
        from mickle.compression.calibration import said
        from mickle.compression.forecast import forecast
        from mickle.models.blocks import open_blocks, weights_of

        blocks = open_blocks(self.model)
        calibration = self._calibration(blocks)
        settings = self.method.sweep([size for _, size in weights_of(blocks)])
        ids = None if calibration is None else calibration.ids
        measured = self.evaluate and (self.model / HELDOUT).is_file()
        return forecast(blocks, ids, settings, measured), said(calibration) if self.method.reads_text else ""

    def after(self, out: Path) -> str:
        return command("evaluate", self.model, "--task", "compare", "--task.others", out)

    def _calibration(self, blocks: Blocks) -> Calibration | None:
        from mickle.compression.calibration import read_calibration
        from mickle.data.heldout import read_pages
        from mickle.data.tokenizer import open_text_tokenizer
        from mickle.evaluation.measure import longest_text
        from mickle.models.language import check_vocabulary

        if self.data is None or not self.method.reads_text:
            return None
        tokenizer = open_text_tokenizer(self.model)
        check_vocabulary(blocks.model, tokenizer.size, self.model)
        heldout = self.model / HELDOUT
        texts = [page.text for batch in read_pages(heldout) for page in batch] if heldout.is_file() else []
        length = self.length or min(2048, longest_text(blocks.model, 2048))
        return read_calibration(self.data, tokenizer, texts, samples=self.samples, length=length, seed=self.seed)
