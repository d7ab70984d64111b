"""What `mickle compress` leaves: weights and config, the other files of the model, the report, the losses."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mickle import machine, storage
from mickle.compression.walk import ROUNDED, LayerFigures, block_settings
from mickle.evaluation.comparison import weight_bytes
from mickle.events import Emit, Noted
from mickle.figures import COLOURS, Figure, Line, Panel
from mickle.models.blocks import Blocks, read_tensor
from mickle.models.folder_check import CONFIG, INDEX, inspect_folder, regular_file
from mickle.models.folder_files import KEPT
from mickle.models.quantized_files import GROUPED, with_few_bits
from mickle.models.safetensors_check import read_header
from mickle.results import TABLE, Result, Table

PERCENT_TO_WARN = 3.0  # of outliers; above it more bits are the better buy
MEASURED_BYTES = 1 << 20  # of held-out text, read before and after


def write_weights(blocks: Blocks, work: Path, done: Path) -> None:
    """One file a block, one for all that is not in few bits, the index, and the config that names the method."""
    count = len(blocks)
    settings = block_settings(done, count)
    dense = [name for name in blocks.files.tensors if name.removesuffix(".weight") not in settings]
    names = [f"model-{number:05}-of-{count + 1:05}.safetensors" for number in range(1, count + 2)]
    if not (work / names[-1]).is_file():
        rest = {name: read_tensor(blocks.files, name) for name in dense}
        storage.save_tensors(work / names[-1], rest, {"format": "pt"})
    for index in range(count):
        storage.check_space(work, (done / f"{index:05}.safetensors").stat().st_size)
        shutil.copyfile(done / f"{index:05}.safetensors", work / names[index])
    entries = {name: read_header(work / name) for name in names}
    weight_map = {tensor: name for name, header in entries.items() for tensor in header}
    total = sum(entry.end - entry.start for header in entries.values() for entry in header.values())
    storage.write_json(work / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    quantization = {"quant_method": GROUPED, "layers": settings}
    storage.write_json(work / CONFIG, with_few_bits(blocks.files.config, quantization))


def copy_other_files(model: Path, work: Path) -> None:
    """Tokenizer, chat template, generation settings, held-out pages: as they are."""
    for name in (*KEPT, storage.HELDOUT, storage.HELDOUT_EXAMPLES):
        if (model / name).exists() and not (work / name).exists():
            storage.write_bytes(work / name, regular_file(model, name).read_bytes())


def losses(model: Path, work: Path, seed: int, emit: Emit) -> dict[str, Any]:
    """Loss on the model's own held-out pages before and after; empty where there are none, or no room for the model."""
    from mickle.data.heldout import read_pages
    from mickle.data.tokenizer import open_text_tokenizer
    from mickle.evaluation.loss import score, summarise
    from mickle.evaluation.measure import longest_text
    from mickle.models.folder import open_to_run

    if not (model / storage.HELDOUT).is_file():
        return {}
    pages, size = [], 0
    for page in (page for batch in read_pages(model / storage.HELDOUT) for page in batch):
        if size < MEASURED_BYTES:
            pages.append(page)
            size += len(page.text.encode("utf-8"))
    if 4 * inspect_folder(model).elements > machine.available_memory():
        emit(Noted("the loss is not measured: the whole model does not fit in memory"))
        return {}
    tokenizer = open_text_tokenizer(model)
    found = {}
    for when, folder in (("before", model), ("after", work)):
        opened = open_to_run(folder)
        if not opened.causal:
            return {}
        length = longest_text(opened, 2048)
        measured = summarise(
            score(opened, tokenizer, pages, length=length, stride=max(1, length // 2), emit=emit), seed
        )
        found[when] = {name: measured[name] for name in ("perplexity", "bits_per_byte", "documents", "tokens")}
        del opened
        machine.release_memory()  # before another model is opened
    return found


def result(work: Path, model: Path, method: str, figures: list[LayerFigures], loss: dict[str, Any]) -> Result:
    """What came of it: numbers, a row a layer, errors and bits by block, and sentences."""
    weights = sum(f.outputs * f.inputs for f in figures)
    stored = sum(f.bytes for f in figures)
    formula = sum(f.formula_bits * f.outputs * f.inputs for f in figures) / max(1, weights)
    worst = sorted(figures, key=lambda f: -f.error)[:3]
    summary: dict[str, Any] = {
        "method": method,
        "layers": len(figures),
        "weights_in_few_bits": weights,
        "bits_per_weight": 8 * stored / max(1, weights),
        "bits_per_weight_by_formula": formula,
        "outlier_share": sum(f.outliers for f in figures) / max(1, weights),
        "bytes_before": weight_bytes(model),
        "bytes_after": weight_bytes(work),
        "worst_layers": {f.name: f.error for f in worst},
        "remarks": {f.name: f.remark for f in figures if f.remark},
        "loss": loss,
    }
    warnings = []
    if (share := 100 * summary["outlier_share"]) > PERCENT_TO_WARN:
        better = "another bit for all is the better buy"
        warnings.append(f"{share:.1f} % of the weights are outliers, 32 bits each: {better}")
    head = "\n".join(f"{line}  " for line in _lines({**summary, "remarks": {}}))
    rows = [
        (
            f.name, f"{f.outputs} x {f.inputs}", f"{f.bits:.3f}", f"{100 * f.outlier_share:.2f} %", f"{f.error:.4f}",
            f"{f.tokens:,}", f"{f.damping:g}", f.remark,
        )
        for f in figures
    ]  # fmt: skip
    headings = ("layer", "size", "bits", "outliers", "output error", "tokens", "damping", "remark")
    return Result(
        summary,
        {**summary, "layers": [asdict(f) for f in figures]},
        [head, Table(headings, rows)],
        {"layers.svg": picture(figures)},
        file="layers.json",
        notes=_lines(summary),
        warnings=warnings,
        told=False,
    )


def _lines(summary: dict[str, Any]) -> list[str]:
    lines = [
        f"{summary['weights_in_few_bits']:,} weights of {summary['layers']} layers at "
        f"{summary['bits_per_weight']:.3f} bits, all counted "
        f"({summary['bits_per_weight_by_formula']:.3f} by the formula), "
        f"{100 * summary['outlier_share']:.2f} % outliers",
        f"weights on disk: {summary['bytes_before'] / 1e6:,.2f} MB before, "
        f"{summary['bytes_after'] / 1e6:,.2f} MB after",
        "largest errors of a layer's output: "
        + ", ".join(f"{name} {error:.4f}" for name, error in summary["worst_layers"].items()),
    ]
    rounded = [name for name, remark in summary["remarks"].items() if ROUNDED in remark]
    if rounded:
        lines.append(f"{len(rounded)} layers got no calibration token and were rounded, {rounded[0]} first")
    lines += [f"{name}: {remark}" for name, remark in list(summary["remarks"].items())[:5]]
    if len(summary["remarks"]) > 5:
        lines.append(f"and {len(summary['remarks']) - 5} more layers with remarks, in {TABLE}")
    if summary["loss"]:
        was, now = summary["loss"]["before"]["perplexity"], summary["loss"]["after"]["perplexity"]
        lines.append(
            f"perplexity on held-out pages: {was:.3f} before, {now:.3f} after ({100 * (now / was - 1):+.2f} %)"
        )
    return lines


def picture(figures: list[LayerFigures]) -> Figure:
    """Error and bits of every layer by its block, one line for each kind of layer."""
    kinds = sorted({f.name.rsplit(".", 1)[-1] for f in figures})
    errors, bits = [], []
    for number, kind in enumerate(kinds):
        own = [f for f in figures if f.name.endswith(kind)]
        style, colour = "o-" if number < len(COLOURS) else "o:", COLOURS[number % len(COLOURS)]
        errors.append(Line(range(len(own)), [f.error for f in own], kind, style, colour, size=3))
        bits.append(Line(range(len(own)), [f.bits for f in own], None, style, colour, size=3))
    legend = 7 if 1 < len(kinds) <= 8 else 0
    left = Panel("block", "relative output error", errors, whole_x=True, legend=legend)
    return Figure((left, Panel("block", "stored bits a weight", bits, whole_x=True)), width=9, height=3.2)
