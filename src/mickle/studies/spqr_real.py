"""SpQR on a real model: at equal stored bytes, is it better than GPTQ and NF4?

The base is a model folder that people use (SmolLM2 from its GGUF file was rounded to Q4_1 once, in groups of 32: no arm
here has that grid). Arms are compressed by the verb itself, calibrated on a draw of documentation of this Python and
its packages, or of a person's texts; perplexity is measured on a draw of what is held out of it. Sizes count every
byte that is stored of the linear layers: two arms of SpQR take as much as GPTQ in groups of 128, and as NF4.
"""

from __future__ import annotations

import math
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mickle.studies.declaration import Arm, Cell, Comparison, Measurements, Scale, Study, Taking
from mickle.studies.own import MODEL, TEXTS, own_texts
from mickle.studies.spqr import HALF, LEAST_INCREASE, NONE, ROUNDED, sizes_of_model, study

if TYPE_CHECKING:
    from torch import nn

PACKAGES = ("stdlib", "torch", "numpy")  # whose documentation is read
TABLES = 4 * (16 + 256 + 1)  # bytes of a layer in NF4 beside codes and scales: two tables and a mean
METHODS: dict[str, dict[str, Any]] = {
    "base": {},
    "rtn-4-g128": {"kind": "rtn", "bits": 4, "group": 128},
    "gptq-4-g128": {"kind": "gptq", "bits": 4, "group": 128},
    "nf4": {"kind": "nf4"},
    "spqr-as-gptq": {"kind": "spqr", "bits": 3, "as": "gptq-4-g128"},
    "spqr-as-nf4": {"kind": "spqr", "bits": 3, "as": "nf4"},
}


def run_cell(cell: Cell, work: Path) -> Measurements:
    """One arm: compress, and measure perplexity on the seed's draw of held-out text."""
    from mickle.compression.compress import Compress
    from mickle.data.heldout import write_pages
    from mickle.data.records import Page
    from mickle.events import ignore
    from mickle.models.folder import open_to_run
    from mickle.step import execute
    from mickle.studies.planted_outliers import NOT_ROUNDED

    values, method = cell.values, dict(METHODS[cell.arm])
    data, folder = values.get("data", ""), Path(values["model"])
    if "as" in method:
        method["target_bits"] = stored_bits(folder)[method.pop("as")]
    model, sizes = open_to_run(folder), NOT_ROUNDED
    if method:
        write_pages((Page("", "", "", text) for text in texts(data)[0]), work / "text.parquet")
        settings = {"model": folder, "data": work / "text.parquet", "method": method, "seed": cell.seed}
        settings |= {"samples": values["samples"], "length": values["length"], "evaluate": False}
        model = open_to_run(execute(Compress.model_validate(settings), work / "compressed", ignore))
        sizes = sizes_of_model(model)
    nats = nats_a_token(model, folder, data, values["measured"], values["length"], cell.seed)
    return {**sizes, "budget": sizes["bits"], "nats": nats, "perplexity": math.exp(nats)}


@cache
def stored_bits(folder: Path) -> dict[str, float]:
    """What two arms store of this model's linear layers, in bits a weight."""
    from mickle.models.blocks import open_blocks, weights_of
    from mickle.quantization.grouped import Layout
    from mickle.studies.planted_outliers import NF4_BITS

    sizes = [size for _, size in weights_of(open_blocks(folder))]
    weights = sum(outputs * inputs for outputs, inputs in sizes)
    gptq = sum(
        Layout(outputs, inputs, 4, min(128, inputs), False).stored_bytes(None, True) for outputs, inputs in sizes
    )
    return {"gptq-4-g128": 8 * gptq / weights, "nf4": NF4_BITS + 8 * TABLES * len(sizes) / weights}


@cache
def texts(data: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Texts to calibrate on, and to measure on: a person's, or a module's documentation each."""
    from mickle.studies.prose import sources

    if data:
        return own_texts(data)
    found = [(source.held_out, "\n\n".join(source.paragraphs)) for package in PACKAGES for source in sources(package)]
    return tuple(text for held, text in found if not held), tuple(text for held, text in found if held)


def nats_a_token(model: nn.Module, folder: Path, data: str, windows: int, length: int, seed: int) -> float:
    """Mean loss over windows of held-out text at places that the seed draws, the same for all arms."""
    import numpy as np
    import torch

    from mickle.data.packing import stream_of
    from mickle.data.tokenizer import open_text_tokenizer
    from mickle.studies.training import predicted

    tokenizer = open_text_tokenizer(folder)
    stream = stream_of(tokenizer.encode_documents(list(texts(data)[1])), tokenizer)
    places = np.random.default_rng(seed).permutation(len(stream) // length)[:windows] * length
    with torch.no_grad():
        return predicted(model, (stream.windows(places[at : at + 1], length) for at in range(len(places))))["loss"]


def increases(table: dict[str, Measurements]) -> dict[str, Measurements]:
    """Adds by how many per cent an arm raises the base's perplexity, no less than what is above noise."""
    base = table["base"]["nats"]
    return {
        arm: {**found, "increase": max(100 * math.expm1(found["nats"] - base), LEAST_INCREASE)}
        for arm, found in table.items()
    }


less = partial(
    Comparison, measure="increase", better="lower", form="ratio", says="{ratio:.0%} of the rise in perplexity"
)
BYTES = "control: bytes stored, of the other arm's"
stored = partial(
    Comparison, measure="bits", better="lower", form="ratio", no_gain=True, paper_effect=0.99, paper="equal by design"
)

real = Study(
    name="spqr",
    title=study.title,
    paper=study.paper,
    claim=study.claim,
    budget_unit="bits a weight, all that is stored,",
    arms=(
        Arm("base", "the model as it is"),
        Arm("rtn-4-g128", "rounding to nearest in 4 bits, groups of 128"),
        Arm("gptq-4-g128", "GPTQ in 4 bits, groups of 128, most active inputs first"),
        Arm("nf4", "NF4 with double quantization"),
        Arm("spqr-as-gptq", "SpQR, 3 bits, outliers until it stores what gptq-4-g128 does"),
        Arm("spqr-as-nf4", "SpQR, 3 bits, outliers until it stores what nf4 does"),
    ),
    comparisons=(
        less(
            "equal bytes, SpQR against GPTQ",
            "spqr-as-gptq",
            "gptq-4-g128",
            paper_effect=0.42,
            paper=HALF,
            headline=True,
        ),
        less("equal bytes, SpQR against NF4", "spqr-as-nf4", "nf4", paper_effect=0.9, paper=NONE),
        less("GPTQ against rounding, equal bytes", "gptq-4-g128", "rtn-4-g128", paper_effect=0.6, paper=ROUNDED),
        stored(f"{BYTES}, SpQR and GPTQ", "spqr-as-gptq", "gptq-4-g128"),
        stored(f"{BYTES}, SpQR and NF4", "spqr-as-nf4", "nf4"),
    ),
    rule=(
        "Perplexity's rise over the base at equal stored bytes, on held-out text that the seed draws. The headline is"
        " reproduced when SpQR's rise is at most 0.65 of GPTQ's (half of the paper's effect, in logarithms) with an"
        " interval below 1. Bytes are equal where the controls see no difference of half a per cent."
    ),
    scales={
        "real": Scale(
            seeds=5,
            values={"samples": 12, "length": 512, "measured": 20},
            cell_seconds=3600,
        )
    },
    run_cell=run_cell,
    reads=("python", "numpy", "torch", "tokenizers"),
    derive=increases,
    takes=Taking(
        data=TEXTS,
        model=MODEL,
        minutes=35,
        dials=("samples", "measured"),
        check=lambda values: texts(values.get("data", "")),
    ),
    departures=(
        "SmolLM2-135M-Instruct (or the model given), matrices 576 to 1,536 wide, not LLaMA of 4,096 and more",
        "its weights were rounded to Q4_1 before",
        "12 calibration sequences of 512 tokens of documentation, not 128 of 2,048 of the training text",
        "lambda 0.01, not the command's 1.0; 3 bits and as many outliers as equal bytes leave room for",
        "a pilot on seed 0 (3 windows, 3 calibration samples) was seen before the first run; its rule is older",
        "no perplexity on WikiText-2, C4 and PTB: held-out documentation of Python, torch and numpy",
    ),
)
