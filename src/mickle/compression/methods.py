"""How `mickle compress` may store weights: settings of each method, and how it goes over a model."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from mickle.config import Config
from mickle.events import Emit, Noted, Warned
from mickle.storage import SCRATCH, check_space

if TYPE_CHECKING:
    from mickle.compression.calibration import Calibration
    from mickle.compression.sweep import SweepSettings
    from mickle.compression.walk import LayerFigures
    from mickle.models.blocks import Blocks
    from mickle.quantization.grouped import Layout

Group = Literal[0, 8, 16, 32, 64, 128]  # columns; 0 is a whole row
Sizes = Sequence[tuple[int, int]]  # outputs and inputs of each layer


class BlockByBlock(Config):
    """What the methods share that go block by block and sweep the columns of a layer."""

    needs_text: ClassVar[bool] = True
    reads_text: ClassVar[bool] = True

    def sweep(self, sizes: Sizes) -> SweepSettings:
        """How layers of ``sizes`` are swept; a threshold that follows from a size is not in it yet."""
        raise NotImplementedError

    def outlier_room(self, layouts: Sequence[Layout], ordered: bool) -> tuple[int, bool] | None:
        """Outliers that all layers may have together, and whether more are never taken; None: a threshold decides."""
        return None

    def compress(
        self, model: Path, calibrate: Callable[[Blocks], Calibration | None], work: Path, emit: Emit
    ) -> tuple[list[LayerFigures], list[float]]:
        """The folder's weights and config; figures of all layers, and seconds of each block."""
        from mickle.compression.calibration import said
        from mickle.compression.forecast import forecast
        from mickle.compression.outcome import write_weights
        from mickle.compression.sweep import layout_of
        from mickle.compression.walk import spending, walk
        from mickle.models.blocks import check_finite, open_blocks, weights_of

        blocks = open_blocks(model)
        check_finite(blocks.files)
        if blocks.in_memory:
            emit(
                Noted("this architecture is opened whole: memory is that of the model in float32 and one block's more")
            )
        calibration = calibrate(blocks)
        if calibration is not None:
            emit(Noted(said(calibration)))
            if calibration.tokens < 2048:
                emit(Warned(f"{calibration.tokens:,} tokens of calibration text say little about the model's inputs"))
        ids = None if calibration is None else calibration.ids
        sizes = [size for _, size in weights_of(blocks)]
        settings = self.sweep(sizes)
        room = self.outlier_room([layout_of(settings, size) for size in sizes], settings.act_order)
        allowed = None
        if room is not None:
            assert ids is not None
            allowed = spending(blocks, ids, settings, *room, work / SCRATCH / "survey.json", emit)
        done = work / SCRATCH / "blocks"
        if not done.exists():
            check_space(work, forecast(blocks, None, settings).disk_bytes)
        figures, seconds = walk(blocks, ids, settings, done, emit, allowed)
        write_weights(blocks, work, done)
        return figures, seconds


class PlainGroups(BlockByBlock):
    """What the methods share whose only question of size is that of a group."""

    kind: Literal["gptq", "rtn"]
    bits: Literal[2, 3, 4] = Field(4, description="bits of a weight's code")
    group: Group = Field(64, description="columns that share a scale; 0 is a whole row")
    target_bits: float | None = Field(
        None, gt=0, le=16, description="instead of group: the smallest group that takes no more bits a weight"
    )

    def group_of(self, sizes: Sizes, ordered: bool) -> int:
        """The group that was asked for, or that the size asked for leads to."""
        from mickle.compression.target import group_for

        if self.target_bits is None:
            return self.group
        return group_for(sizes, self.bits, self.target_bits, ordered)


class Spqr(BlockByBlock):
    """SpQR (arXiv 2306.03078): small groups, statistics in 3 bits, the most harmful weights in 16."""

    kind: Literal["spqr"] = "spqr"
    bits: Literal[2, 3, 4] = Field(3, description="bits of a weight's code")
    group: Group = Field(16, description="columns that share a scale; 0 is a whole row")
    statistics: Literal[3, 16] = Field(
        3, description="bits of a group's scale and zero; with 3 they are themselves grouped"
    )
    target_bits: float | None = Field(
        None, gt=0, le=16, description="stored bits a weight, reached by the number of outliers"
    )
    outliers: float | None = Field(
        None, ge=0, le=0.2, description="share of weights kept in 16 bits, instead of target_bits"
    )
    tau: float | None = Field(
        None,
        ge=0,
        description="the paper's threshold for outliers, instead of target_bits; larger means fewer (default: 0.2)",
    )
    leave_one_out: bool = Field(True, description="fit a group's scale without its outliers")
    act_order: bool = Field(True, description="quantize the most active inputs first")
    damping: float = Field(0.01, gt=0, le=10, description="share of the mean diagonal added to the Hessian")

    @model_validator(mode="after")
    def _agree(self) -> Spqr:
        if sum(value is not None for value in (self.target_bits, self.outliers, self.tau)) > 1:
            raise ValueError("give one of target_bits, outliers and tau")
        return self

    def sweep(self, sizes: Sizes) -> SweepSettings:
        from mickle.compression.sweep import SweepSettings

        return SweepSettings(
            self.bits, self.group, self.statistics == 3, 0.2 if self.tau is None else self.tau, self.leave_one_out,
            act_order=self.act_order, damping=self.damping,
        )  # fmt: skip

    def outlier_room(self, layouts: Sequence[Layout], ordered: bool) -> tuple[int, bool] | None:
        from mickle.compression.target import outlier_budget

        if self.target_bits is not None:
            return outlier_budget(layouts, self.target_bits, ordered), True
        if self.outliers is not None:
            return round(self.outliers * sum(layout.outputs * layout.inputs for layout in layouts)), False
        return None


class Gptq(PlainGroups):
    """GPTQ (arXiv 2210.17323): later columns make up for earlier errors; statistics in 16 bits."""

    kind: Literal["gptq"] = "gptq"
    act_order: bool = Field(True, description="quantize the most active inputs first")
    damping: float = Field(0.01, gt=0, le=10, description="share of the mean diagonal added to the Hessian")

    def sweep(self, sizes: Sizes) -> SweepSettings:
        from mickle.compression.sweep import gptq

        group = self.group_of(sizes, self.act_order)
        return gptq(self.bits, group, act_order=self.act_order, damping=self.damping)


class Rtn(PlainGroups):
    """Rounding to nearest: the control. Needs no calibration text; with one, it reports output errors."""

    needs_text: ClassVar[bool] = False

    kind: Literal["rtn"] = "rtn"

    def sweep(self, sizes: Sizes) -> SweepSettings:
        from mickle.compression.sweep import rounding

        return rounding(self.bits, self.group_of(sizes, ordered=False))


class Nf4(Config):
    """NF4 of QLoRA (arXiv 2305.14314) in blocks of 64, the format of bitsandbytes. Needs no calibration text."""

    needs_text: ClassVar[bool] = False
    reads_text: ClassVar[bool] = False

    kind: Literal["nf4"] = "nf4"
    double: bool = Field(True, description="store the scales of blocks in 8 bits as well")

    def sweep(self, sizes: Sizes) -> None:
        """Its codes are looked up, not swept."""

    def compress(
        self, model: Path, calibrate: Callable[[Blocks], Calibration | None], work: Path, emit: Emit
    ) -> tuple[list[LayerFigures], list[float]]:
        """The model, opened whole; errors are those of the weights."""
        from mickle.compression.sweep import relative_error
        from mickle.compression.walk import LayerFigures
        from mickle.models.blocks import refuse_few_bits
        from mickle.models.folder import open_model
        from mickle.models.folder_check import read_config
        from mickle.models.linear_layers import dense_weight, linear_layers
        from mickle.models.quantized import quantize_model, quantized_layers, save_quantized

        begun = time.monotonic()
        refuse_few_bits(read_config(model), model)
        opened = open_model(model)
        layers = linear_layers(opened)
        inside = {id(module) for module in opened.blocks.modules()}  # as the other methods: no layer outside of blocks
        before = {name: dense_weight(layer).clone() for name, layer in layers.items() if id(layer) in inside}
        outside = layers.keys() - before.keys()
        del layers  # or they would all be held while they are replaced
        quantize_model(opened, double=self.double, skip=outside)
        figures = []
        for name, layer in quantized_layers(opened).items():
            size, stored = (layer.out_features, layer.in_features), layer.stored_bytes()
            error, bits = relative_error(before[name], layer.dequantized(), None), 8 * stored / math.prod(size)
            figures.append(LayerFigures(name, *size, bits, bits, 0, 0.0, error, 0, 0.0, None, stored, ""))
        save_quantized(opened, work)
        return figures, [time.monotonic() - begun]


Method = Annotated[Spqr | Gptq | Rtn | Nf4, Field(discriminator="kind")]
