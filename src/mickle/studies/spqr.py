"""SpQR: is a decoder as good in 4.7 bits a weight as in 16, and better than by rounding or GPTQ at equal size?

"SpQR: A Sparse-Quantized Representation for Near-Lossless LLM Weight Compression" (arXiv 2306.03078): GPTQ with groups
of 16, whose scales and zeros are in 3 bits themselves, and the most harmful weights in 16 bits, raises perplexity by
about 1 % at 4.6 to 4.7 bits a weight, and at 3.9 bits by half of what GPTQ does at 4.

World ``decoder``: bases trained by Mickle (``base_model``), compressed by the verb itself, block by block with inputs
from blocks that are compressed already; held-out perplexity. World ``planted``: one matrix whose outliers are known
(``planted_outliers``). Arms stand at sizes; an arm of SpQR keeps as many outliers as its size leaves room for.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mickle.events import ignore
from mickle.step import execute
from mickle.studies.base_model import (
    FULL,
    LARGE,
    SMALL,
    Base,
    base_folder,
    corpus_folder,
    differences,
    page_nats,
    unrounded_nats,
)
from mickle.studies.declaration import Arm, Cell, Comparison, Measurements, Scale, Study, Taking

if TYPE_CHECKING:
    from torch import nn

ALLOWED = 1.0  # per cent that perplexity may rise
LEAST_INCREASE = 0.02  # per cent: ratios of less would be ratios of noise


def run_cell(cell: Cell, work: Path) -> Measurements:
    """One arm at its size in one world."""
    if cell.world == "decoder":
        return decoder(cell, work)
    from mickle.studies.planted_outliers import measured

    found = measured(ARMS[cell.arm], cell.seed, cell.values)
    return {**found, "budget": found["bits"]}


def decoder(cell: Cell, work: Path) -> Measurements:
    """Perplexity before and after compressing the base of the seed, calibrated on the seed's draw of training text."""
    from mickle.models.folder import open_model
    from mickle.studies.planted_outliers import NOT_ROUNDED

    values, method = cell.values, ARMS[cell.arm]
    folder = base_folder(Base(**values["base"]), cell.seed % values["bases"])
    plain, counts = unrounded_nats(folder, values["heldout_pages"])
    if method:
        model = compressed(folder, method, cell.seed, values["calibration_windows"], work)
        sizes = sizes_of_model(model)
    else:
        model, sizes = open_model(folder), NOT_ROUNDED
    nats, _ = page_nats(model, folder, values["heldout_pages"])
    increase = 100 * math.expm1((sum(nats) - sum(plain)) / sum(counts))
    return {
        **sizes,
        **differences(folder, model, values["compared_windows"]),
        "budget": sizes["bits"],
        "perplexity": math.exp(sum(nats) / sum(counts)),
        "increase": increase if method else ALLOWED,  # of the base itself: what is allowed
        "increase_floored": max(increase, LEAST_INCREASE),
    }


def compressed(folder: Path, method: dict[str, Any], seed: int, windows: int, work: Path) -> nn.Module:
    """The base after ``mickle compress``, opened from its folder."""
    from mickle.compression.compress import Compress
    from mickle.models.folder import open_model

    settings = {"model": folder, "data": corpus_folder(), "method": method, "samples": windows, "seed": seed}
    step = Compress.model_validate({**settings, "evaluate": False})
    return open_model(execute(step, work / "compressed", ignore))


def sizes_of_model(model: nn.Module) -> Measurements:
    """Bits a weight, all that is stored (``bits``) and as the paper counts (``formula_bits``); share of outliers."""
    from mickle.models.quantized import bits_per_weight, quantized_layers
    from mickle.quantization.grouped_linear import GroupedLinear
    from mickle.studies.planted_outliers import NF4_BITS, sizes_of

    layers = list(quantized_layers(model).values())
    grouped = [layer.grouped for layer in layers if isinstance(layer, GroupedLinear)]
    if not grouped:
        return {"bits": bits_per_weight(model), "formula_bits": NF4_BITS, "outliers": 0.0}
    return sizes_of(grouped)


# The verb's search for a threshold overshoots by a tenth of a per cent of a small model's weights: less is asked for.
THREE_BITS, FOUR_BITS = {"kind": "spqr", "bits": 3}, {"kind": "spqr", "bits": 4}
ONE_PERCENT = {**THREE_BITS, "outliers": 0.0091}  # 3.95 bits by the formula
NO_OUTLIERS = 1e30
GROUPS = ((3, 64), (3, 32), (4, 128), (4, 64), (4, 32))  # 3.5, 4, 4.25, 4.5, 5 bits with statistics in 16
ROUNDING = "rounding to nearest, statistics of a group in 16 bits"
GPTQ = "GPTQ, most active inputs first, statistics of a group in 16 bits"
STORED = "SpQR, 3 bits, outliers until it stores what gptq-4-g128 does"
NEAR_LOSSLESS = "SpQR, 4 bits, 0.2 % outliers (4.69 bits): the paper's near-lossless point"
TABLE: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("base", "the base as it was trained", {}),
    *((f"rtn-{b}-g{g}", f"{ROUNDING}: rtn-{b}-g{g}", {"kind": "rtn", "bits": b, "group": g}) for b, g in GROUPS),
    *((f"gptq-{b}-g{g}", f"{GPTQ}: gptq-{b}-g{g}", {"kind": "gptq", "bits": b, "group": g}) for b, g in GROUPS),
    ("nf4", "NF4 with double quantization", {"kind": "nf4"}),
    ("spqr-3-none", "SpQR, 3 bits, groups of 16, no outliers (3.625 bits)", {**THREE_BITS, "tau": NO_OUTLIERS}),
    ("spqr-3", "SpQR, 3 bits, 1 % outliers (3.95 bits)", ONE_PERCENT),
    # So that all stored is gptq-4-g128's 4.344; then 4.25 bits by the formula.
    ("spqr-3-stored", STORED, {**THREE_BITS, "target_bits": 4.30}),
    ("spqr-3-more", "SpQR, 3 bits, 1.95 % outliers (4.25 bits)", {**THREE_BITS, "outliers": 0.0184}),
    ("spqr-4-none", "SpQR, 4 bits, no outliers (4.625 bits)", {**FOUR_BITS, "tau": NO_OUTLIERS}),
    ("spqr-4", NEAR_LOSSLESS, {**FOUR_BITS, "outliers": 0.0012}),
    ("no-leave-one-out", "spqr-3 without leaving outliers out of the fits", {**ONE_PERCENT, "leave_one_out": False}),
    ("no-second-level", "spqr-3 with statistics in 16 bits (5.33 bits)", {**ONE_PERCENT, "statistics": 16}),
    ("as-they-stand", "spqr-3 with columns in their own order", {**ONE_PERCENT, "act_order": False}),
    ("damping-0.1", "spqr-3 with lambda 0.1, not 0.01", {**ONE_PERCENT, "damping": 0.1}),
    ("damping-1", "spqr-3 with lambda 1", {**ONE_PERCENT, "damping": 1.0}),
)
ARMS = {name: method for name, _, method in TABLE}
SIZES: dict[str, Any] = {
    "base": asdict(FULL),
    "bases": 5,
    "calibration_windows": 256,
    "heldout_pages": 60,
    "compared_windows": 32,
} | {"outputs": 512, "inputs": 512, "planted_share": 0.01, "rows": 2048}


less = partial(Comparison, better="lower", form="ratio", worlds=("decoder",))  # of an increase or error
rise = partial(less, form="difference")
PLANTED = ("planted",)
found = partial(Comparison, better="higher", form="difference", worlds=PLANTED)
INCREASE = "increase_floored"
HALF = "LLaMA-7B, WikiText-2 (unverified): 3.94 bits raise perplexity by 3.3 %, GPTQ's 4 bits by 7.9 %"
LOSSLESS = "LLaMA-7B, WikiText-2 (unverified): 5.68 to 5.73 at 4.63 bits; 0.12 % of room below 1 %"
ROUNDED = "LLaMA-7B, WikiText-2 (unverified): 3.94 bits raise perplexity by 3.3 %, rounding to 4 bits by 13.2 %"
NONE = "no number at equal size: asked for a tenth less"
CONTROL = "no claim: asked so that 1.5 % are enough; LLaMA-7B rounded to 4 bits: 13 % (unverified)"
RECALL = "no number: outliers are what harms most; asked for half of them"
RISE = "perplexity rises by less than 1 % at 4.69 bits (per cent of room)"
ERROR = "planted outliers: error in 3.95 bits against GPTQ in 4"
FOUND = "planted outliers found among as many, leaving out against not"
ABOVE = "control: rounding to 4.25 bits costs more than that 1 % (per cent above it)"

study = Study(
    name="spqr",
    version=2,  # the bases read sources alone; before, pages of documentation too, which follow curation's rules
    title="SpQR: A Sparse-Quantized Representation for Near-Lossless LLM Weight Compression",
    paper="2306.03078",
    claim=(
        "At 4.7 bits a weight or less perplexity rises by less than 1 %, and less than with rounding or GPTQ at equal"
        " size (abstract, tables 1 and 2; LLaMA and Falcon of 7B to 65B)."
    ),
    budget_unit="bits a weight, all that is stored,",
    arms=tuple(Arm(name, what) for name, what, _ in TABLE),
    comparisons=(
        rise(
            RISE, "spqr-4", "base", "increase", 0.12, LOSSLESS, headline=True, says="perplexity rises by {value:.2f} %"
        ),
        rise(ABOVE, "base", "rtn-4-g128", "increase", 1.0, CONTROL, says="{gain:.2f} % above the 1 %"),
        less(
            "4.69 bits against GPTQ in 5 bits, which stores a little more", "spqr-4", "gptq-4-g32", INCREASE, 0.42, HALF
        ),
        less("4.69 bits against GPTQ in 4.5 bits, which stores less", "spqr-4", "gptq-4-g64", INCREASE, 0.42, HALF),
        less("3.95 bits against GPTQ in 4 bits", "spqr-3", "gptq-3-g32", INCREASE, 0.42, HALF),
        less("4.25 bits by the formula against GPTQ's", "spqr-3-more", "gptq-4-g128", INCREASE, 0.42, HALF),
        less(
            "equal bytes, all counted, against GPTQ in 4.25 bits", "spqr-3-stored", "gptq-4-g128", INCREASE, 0.42, HALF
        ),
        less("3.625 bits without outliers against GPTQ in 3.5", "spqr-3-none", "gptq-3-g64", INCREASE, 0.42, HALF),
        less("4.25 bits by the formula against rounding's", "spqr-3-more", "rtn-4-g128", INCREASE, 0.25, ROUNDED),
        less("3.95 bits against NF4 in 4.127", "spqr-3", "nf4", INCREASE, 0.9, NONE),
        less("the paper's lambda of 1 against 0.01", "damping-1", "spqr-3", INCREASE, 0.9, "its command's own setting"),
        less("leaving outliers out of the fits", "spqr-3", "no-leave-one-out", INCREASE, 0.9, NONE),
        less("most active inputs first", "spqr-3", "as-they-stand", INCREASE, 0.9, NONE),
        less(ERROR, "spqr-3", "gptq-3-g32", "error", 0.42, HALF, worlds=PLANTED),
        found(FOUND, "spqr-3", "no-leave-one-out", "recall", 0.5, RECALL),
    ),
    rule=(
        "The headline is reproduced when the interval of the rise in perplexity at 4.69 bits (measured, counted as the"
        " paper does, at most 4.7) lies below 1 % and its centre at 0.94 % or less. It is a claim about size only"
        " together with the rows on equal size: where GPTQ is as good there, the page says so. Where the control is"
        " not reproduced, and rounding is within 1 % itself, it says nothing."
    ),
    scales={
        "quick": Scale(
            seeds=2,
            values={**SIZES, "base": asdict(SMALL), "bases": 1, "calibration_windows": 64, "heldout_pages": 20},
            cell_seconds=600,
        ),
        "full": Scale(seeds=5, values=SIZES, cell_seconds=1800),
        "gpu": Scale(seeds=5, values={**SIZES, "base": asdict(LARGE)}, cell_seconds=20000),
    },
    run_cell=run_cell,
    reads=("python", "numpy", "torch", "tokenizers"),
    worlds=("decoder", "planted"),
    takes=Taking(instead="its bases are made, so that rounding hurts; --scale real takes a model and data of yours"),
    departures=(
        "decoders of 0.5 million parameters that Mickle trained on the standard library, matrices 128 to 352 wide, not"
        " LLaMA and Falcon of 4,096 and more",
        "sizes are the paper's formula; pointers of rows and orders of columns, nothing in a wide matrix, are 0.3 bits"
        " in these; both figures are in the result, and one row is at equal bytes with all counted",
        "256 calibration sequences of 256 tokens of the base's own training text, not 128 of 2,048",
        "lambda 0.01, not the command's 1.0, which is an arm",
        "no perplexity on WikiText-2, C4 and PTB: held-out modules of the standard library",
    ),
)
