"""The memory that was forecast against the peak of whole commands in fresh processes: tune by every method, compress.

    python benchmarks/memory.py [--sizes 1m 24m 135m] [--works full lora qlora mezo spqr rtn nf4] [--precision bfloat16]

Models of random weights, the largest in the shape of SmolLM2-135M, stored and tuned in float32 unless asked otherwise;
one thread, two steps of 4 rows of 128 tokens; calibration on 16 rows, and the loss before and after. Prints a table and
writes `benchmarks/results/memory.json` after each command: what was measured stays where a later one is stopped, and
rows that are not asked for stay too, each with its commit.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from provenance import provenance

from mickle.compression.compress import HELDOUT, Compress
from mickle.data.heldout import write_pages
from mickle.data.records import Page
from mickle.data.tokenizer import train_tokenizer
from mickle.models.decoder import Decoder, DecoderConfig
from mickle.models.folder import save_model
from mickle.storage import read_json, read_manifest, write_json

RESULT = Path(__file__).parent / "results" / "memory.json"
SHAPES = {
    "1m": DecoderConfig(280, 128, 5, 4, 4, 32, 352, 256),
    "24m": DecoderConfig(8192, 384, 10, 6, 6, 64, 1024, 512),
    "135m": DecoderConfig(49152, 576, 30, 9, 3, 64, 1536, 2048),
}
COMPRESSING = ("spqr", "rtn", "nf4")
WORKS = ("full", "lora", "qlora", "mezo", *COMPRESSING)
TEXT = "the owl sees the hen and "


def command(work: str, model: Path, folder: Path, out: Path, precision: str) -> list[str]:
    """The command line of one piece of work."""
    if work in COMPRESSING:
        parts = ["compress", model, "--data", folder / "text.txt", "--samples", 16, "--length", 128, "--method", work]
    else:
        lengths = ["--sequence-length", 128, "--batch-tokens", 512, "--steps", 2, "--evaluate-every", 2, "--samples", 0]
        rate = ["--method.learning-rate", 1e-5] if work == "mezo" else []
        inputs = ["--data", folder / "rows.jsonl", "--general", folder / "pages.parquet", "--precision", precision]
        parts = ["tune", model, *inputs, *lengths, "--accumulate", 1, "--method", work, *rate]
    return [sys.executable, "-m", "mickle", *map(str, parts), "--out", str(out), "--quiet"]


def measured(work: str, model: Path, folder: Path, precision: str) -> dict[str, Any]:
    """Bytes forecast, and the most that the process held."""
    out = folder / f"{model.name}-{work}"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(command(work, model, folder, out, precision), env=environment, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{work} on {model.name} failed")
    if work in COMPRESSING:
        settings = {"samples": 16, "length": 128, "method": {"kind": work}}
        forecast = Compress(model=model, data=folder / "text.txt", **settings).dry_run()[0].memory_bytes
    else:
        forecast = read_manifest(out).meta["summary"]["forecast"]["memory_bytes"]
    shutil.rmtree(out)
    peak = 1024 * used.ru_maxrss
    found = {"forecast_bytes": forecast, "peak_bytes": peak, "ratio": peak / forecast}
    return {"model": model.name, "work": work, "precision": precision, **found}


def name_of(row: dict[str, Any]) -> tuple[str, ...]:
    """What a row is of."""
    return row["model"], row["work"], row["precision"]


def write_inputs(folder: Path) -> None:
    """Rows to tune on, general text, and text to calibrate on."""
    rows = (json.dumps({"text": f"{number} {TEXT * 5}"}) + "\n" for number in range(40))
    (folder / "rows.jsonl").write_text("".join(rows))
    (folder / "text.txt").write_text("\n\n".join(f"{number} {TEXT * 80}" for number in range(40)))
    write_pages(
        [Page(f"p{i}", "", "", f"Page {i} tells of a river. " * 20) for i in range(4)], folder / "pages.parquet"
    )


def main() -> None:
    """Every size by every piece of work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of the model, too")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    tokenizer, origin = train_tokenizer([TEXT], 280, or_fewer=True), provenance(__file__)
    rows = {name_of(row): row for row in read_json(options.out)["rows"]} if options.out.exists() else {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder)
        for size in options.sizes:
            save_model(Decoder(SHAPES[size]).to(getattr(torch, options.precision)), folder / size, tokenizer)
            shutil.copyfile(folder / "pages.parquet", folder / size / HELDOUT)
            for work in options.works:
                row = measured(work, folder / size, folder, options.precision) | {"commit": origin["commit"]}
                rows[name_of(row)] = row
                forecast, peak = row["forecast_bytes"] / 1e9, row["peak_bytes"] / 1e9
                print(f"| {size} | {work} | {forecast:.2f} | {peak:.2f} | {row['ratio']:.2f} |", flush=True)
                write_json(options.out, {**origin, "rows": list(rows.values())})


if __name__ == "__main__":
    main()
