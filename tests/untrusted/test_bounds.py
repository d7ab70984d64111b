"""Small files that ask for much: each is one typed error, in little time and memory."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mickle import storage
from mickle.data.chat_template import open_template
from mickle.data.decontamination import Decontamination, index_of
from mickle.data.pages import RawPage, extract
from mickle.data.rows import read_rows
from mickle.data.sources import Files, Rows, Warc
from mickle.data.tokenizer import train_tokenizer
from mickle.errors import UsageError
from mickle.models.adapter_folder import plain_lora, read_settings
from mickle.models.decoder import Decoder, DecoderConfig
from mickle.models.folder import open_model, save_model
from mickle.models.safetensors_check import read_header
from mickle.planning.rate import Rate, read_arrays
from mickle.show import show
from mickle.untrusted.values import read_json
from mickle.yaml_files import read_yaml

Bounded = Callable[[Callable[[], object]], str]
Reads = Callable[[Path], object]
LISTS = "[" + "[]," * 5_000_000 + "[]]"  # 15 MB, which would take 350 MB


def file(name: str, *content: str | bytes | tuple[str, int]) -> Callable[[Path], Path]:
    """A file of pieces; a pair is a text and how often it stands there."""

    def make(folder: Path) -> Path:
        with open(folder / name, "wb") as stream:
            for piece in content:
                text = piece[0] * piece[1] if isinstance(piece, tuple) else piece
                stream.write(text.encode() if isinstance(text, str) else text)
        return folder / name

    return make


def tensors(header: str) -> Callable[[Path], Path]:
    """A safetensors file of one byte with this header."""
    return file("x.safetensors", len(header).to_bytes(8, "little") + header.encode() + b"\0")


def holes(name: str, size: int, written: bytes = b"") -> Callable[[Path], Path]:
    """A file that is a hole but for what was written at its beginning and its end."""

    def make(folder: Path) -> Path:
        with open(folder / name, "wb") as stream:
            stream.write(written)
            stream.truncate(size)
            stream.seek(size - len(written))
            stream.write(written)
        return folder / name

    return make


def zeros(folder: Path) -> Path:
    np.savez_compressed(folder / "x.npz", X=np.zeros((96 << 20, 1), np.int8), y=np.zeros(9))
    return folder / "x.npz"


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "x.json")
    return folder / "x.json"


def template(source: str) -> Callable[[Path], Path]:
    """A folder with a tokenizer and this chat template."""

    def make(folder: Path) -> Path:
        train_tokenizer(["a text " * 9], 260, or_fewer=True).save(folder)
        (folder / "chat_template.jinja").write_text(source)
        return folder

    return make


def lora(folder: Path) -> object:
    return plain_lora(read_settings(folder.parent), folder)


PATTERNS = json.dumps(
    {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "alpha_pattern": {f"l{i}": 1 for i in range(50_000)}}
)
CASES: dict[str, tuple[Callable[[Path], Path], Reads, str]] = {
    "JSON of lists": (file("x.json", LISTS), read_json, "holds 10,000,"),
    "JSON of objects": (file("x.json", LISTS.replace("[]", "{}")), read_json, "holds 10,000,"),
    "JSON of 65 MB": (holes("x.json", 65 << 20), read_json, "at most"),
    "JSON that is a pipe": (pipe, read_json, "no plain file"),
    "JSON nested": (file("x.json", '{"a":' * 100_000), read_json, "not valid JSON"),
    "manifest of lists": (file("manifest.json", LISTS), lambda path: show(path.parent), "holds 10,000,"),
    "manifest of 60 MB": (holes("manifest.json", 60 << 20), lambda path: show(path.parent), "JSON file has"),
    "config of lists": (file("config.json", LISTS[:3_999_999] + "]"), lambda path: open_model(path.parent), "values"),
    "header of 25 MB": (
        holes("x.safetensors", 26 << 20, (25 << 20).to_bytes(8, "little")),
        read_header,
        "header claims",
    ),
    "header of sizes": (tensors('{"t":{"shape":[' + "1," * 3_000_000 + "1]}}"), read_header, "header holds"),
    "header of arrays": (
        holes("x.safetensors", 26 << 20, (25 << 20).to_bytes(8, "little")), storage.load_tensors, "header claims"
    ),
    "arrays that unfold": (zeros, lambda path: read_arrays(Rate(data=path)), "expands to more than 200 times"),
    "60 GB of nothing": (holes("x.jsonl", 60 << 30), storage.content_digest, "of which 0 were written"),
    "60 GB of little": (holes("x.jsonl", 60 << 30, b"{}\n"), storage.content_digest, "were written"),
    "patterns": (file("adapter_config.json", PATTERNS), lora, "at most 2,000 layers"),
    "YAML of 60,000 keys": (file("x.yaml", "".join(f"k{i}: 1\n" for i in range(60_000))), read_yaml,"more than 20,000"),
    "YAML of lists": (file("x.yaml", "a: [" + "[]," * 300_000 + "]"), read_yaml, "YAML of more"),
    "template of 250 kB": (template("{{ 1 if true else 2 }}\n" * 11_000), open_template, "at most 65,536"),
    "template that rounds": (template("{{ 1|round(99999999,'ceil') }}"), open_template, "chat template was stopped"),
    "array of lists": (file("x.json", LISTS), lambda path: list(read_rows(path)), "holds 10,000,"),
    "items of lists": (file("x.json", LISTS), lambda path: index_of(Decontamination(against=[path])), "holds 10,000,"),
    "rows of lists": (
        file("x.jsonl", '{"text":' + LISTS + "}\n"),
        lambda path: list(Rows(path=path, text="text").read([path], 4 << 20, lambda count: None)),
        "more than 1,000,000 values",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_small_file_that_asks_for_much_is_refused(name: str, tmp_path: Path, bounded: Bounded) -> None:
    make, read, says = CASES[name]
    path = make(tmp_path)
    assert says in bounded(lambda: read(path))


def test_a_row_of_lists_is_a_bad_row(tmp_path: Path) -> None:
    path = file("x.jsonl", '{"text":' + LISTS + '}\n{"text":"a"}\n')(tmp_path)
    assert [row.problem for row in read_rows(path)] == ["row holds more than 1,000,000 values", ""]


def test_weights_that_are_a_hole_are_looked_at_and_not_read(tmp_path: Path, bounded: Bounded) -> None:
    """A sound header over 60 GB of nothing, in a folder whose manifest says so."""
    folder = tmp_path / "model"
    save_model(Decoder(DecoderConfig(60, 32, 2, 4, 2, 8, 48, 64)), folder)
    header = json.dumps({"t": {"dtype": "U8", "shape": [60 << 30], "data_offsets": [0, 60 << 30]}}).encode()
    weights = folder / "model.safetensors"
    weights.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(weights, weights.stat().st_size + (60 << 30))
    said = {weights.name: {"bytes": weights.stat().st_size, "xxh3": "0" * 32}}
    (folder / storage.MANIFEST).write_text(json.dumps({"kind": "model", "format": 1, "files": said}))
    assert str(folder) in bounded(lambda: open_model(folder))
    assert "of which" in bounded(lambda: show(folder))


def test_holes_that_are_small_or_written_over_are_nothing_special(tmp_path: Path) -> None:
    path = holes("x", 1 << 20)(tmp_path)
    assert storage.hash_file(path) == storage.hash_file(file("y", b"\0" * (1 << 20))(tmp_path))
    with pytest.raises(UsageError):
        storage.hash_file(holes("z", 1 << 30, b"x")(tmp_path))


def record(body: bytes, length: int) -> bytes:
    http = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + body
    header = f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://a.org/\r\nContent-Length: {length}\r\n\r\n"
    return header.encode() + http


GOOD = record(b"<p>hello", 52) + b"\r\n\r\n"


def bomb(folder: Path) -> Path:
    """10 MB of gzip that hold 10 GB, and a record behind them."""
    packing = zlib.compressobj(9, wbits=31)
    opening = packing.compress(record(b"", 10 << 30)) + packing.flush(zlib.Z_FULL_FLUSH)
    zeros = packing.compress(bytes(16 << 20)) + packing.flush(zlib.Z_FULL_FLUSH)
    return file("x.warc.gz", opening + zeros * 640 + gzip.compress(GOOD))(folder)


def endless_record(folder: Path) -> Path:
    with open(folder / "x.warc", "wb") as stream:
        stream.write(record(b"", 100 << 20))
        stream.seek(100 << 20, os.SEEK_CUR)
        stream.write(b"\r\n\r\n" + GOOD)
    return folder / "x.warc"


def found(path: Path) -> list[str]:
    """Of each page of a crawl, a table or a folder: "page", or why there is none."""
    kind = Warc if ".warc" in path.name else Rows if ".jsonl" in path.name else Files
    pages = kind(path=path).read([path], 10 << 20, lambda count: None)
    return [getattr(item, "reason", "page") for item in pages]


def extracted(path: Path) -> str:
    return getattr(extract(RawPage("u", "", "html", path.read_bytes()), 20 << 20), "reason", "page")


LARGE: dict[str, tuple[Callable[[Path], Path], Reads, object]] = {
    "10 GB in a member": (bomb, found, ["record is too large", "compressed data expands too far", "page"]),
    "a record of 100 MB": (endless_record, found, ["record is too large", "page"]),
    "a length that is wrong": (
        file("x.warc", record(b"<p>a", 9) + b"\r\n\r\n" + GOOD), found, ["Content-Length is wrong", "page"]
    ),
    "a last member cut": (
        file("x.warc.gz", gzip.compress(GOOD) * 2 + gzip.compress(GOOD)[:-20]),
        found,
        ["page", "page", "compressed data is cut off"],
    ),
    "a million tags": (file("x.html", "<body>", ("<div>", 1_000_000), "a"), extracted, "no main text"),
    "a million open tags": (file("x.html", "<body>", ("<b><svg>", 500_000), "a"), extracted, "no main text"),
    "a million attributes": (file("x.html", "<body><p ", ("a=b ", 1_000_000), ">a"), extracted, "no main text"),
    "a row of 50 MB": (
        file("x.jsonl", '{"text":"', ("a", 50 << 20), '"}\n{"text":"a"}\n'), found, ["page is too large", "page"]
    ),
    "a line of 50 MB": (holes("x.txt", 50 << 20), found, ["page is too large"]),
    "a line of a table of 50 MB": (
        file("x.csv", "a,b\n", ("x", 50 << 20), ",1\n2,3\n"),
        lambda path: [row.problem for row in read_rows(path)],
        ["row is larger than 16 MB", ""],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LARGE)
def test_what_is_too_large_is_counted_and_the_rest_is_read(name: str, tmp_path: Path, in_bounds: Bounded) -> None:
    make, read, right = LARGE[name]
    path = make(tmp_path)
    assert in_bounds(lambda: read(path)) == str(right)
