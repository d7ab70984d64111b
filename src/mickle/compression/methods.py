"""How `mickle compress` may store weights: settings of each method."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mickle.config import Config

Group = Literal[0, 8, 16, 32, 64, 128]  # columns; 0 is a whole row
SHARE_TO_WARN = 0.03  # of outliers; above it more bits are the better buy


class Spqr(Config):
    """SpQR (arXiv 2306.03078): small groups, statistics in 3 bits, the most harmful weights in 16."""

    kind: Literal["spqr"] = "spqr"
    bits: Literal[2, 3, 4] = Field(3, description="of a code")
    group: Group = Field(16, description="columns of a group; 0 is a whole row")
    statistics: Literal[3, 16] = Field(3, description="bits of a group's scale and zero; 3 has a second level")
    target_bits: float | None = Field(None, gt=0, le=16, description="stored bits a weight to reach by outliers")
    outliers: float | None = Field(None, ge=0, le=0.2, description="or the share of weights to keep in 16 bits")
    tau: float | None = Field(None, ge=0, description="or the paper's threshold; larger means fewer (default: 0.2)")
    leave_one_out: bool = Field(True, description="fit a group without its outliers")
    act_order: bool = Field(True, description="most active inputs first")
    damping: float = Field(0.01, gt=0, le=10, description="share of the mean diagonal added to the Hessian")

    @model_validator(mode="after")
    def _agree(self) -> Spqr:
        if sum(value is not None for value in (self.target_bits, self.outliers, self.tau)) > 1:
            raise ValueError("give one of target_bits, outliers and tau")
        return self


class Gptq(Config):
    """GPTQ (arXiv 2210.17323): later columns make up for earlier errors; statistics in 16 bits."""

    kind: Literal["gptq"] = "gptq"
    bits: Literal[2, 3, 4] = Field(4, description="of a code")
    group: Group = Field(64, description="columns of a group; 0 is a whole row")
    target_bits: float | None = Field(
        None, gt=0, le=16, description="instead of group: the smallest group that takes no more bits a weight"
    )
    act_order: bool = Field(True, description="most active inputs first")
    damping: float = Field(0.01, gt=0, le=10, description="share of the mean diagonal added to the Hessian")


class Rtn(Config):
    """Rounding to nearest: the control. Needs no calibration text; with one, it reports output errors."""

    kind: Literal["rtn"] = "rtn"
    bits: Literal[2, 3, 4] = Field(4, description="of a code")
    group: Group = Field(64, description="columns of a group; 0 is a whole row")
    target_bits: float | None = Field(
        None, gt=0, le=16, description="instead of group: the smallest group that takes no more bits a weight"
    )


class Nf4(Config):
    """NF4 of QLoRA (arXiv 2305.14314) in blocks of 64, the format of bitsandbytes. Needs no calibration text."""

    kind: Literal["nf4"] = "nf4"
    double: bool = Field(True, description="quantize the blocks' scales too")


Method = Annotated[Spqr | Gptq | Rtn | Nf4, Field(discriminator="kind")]
