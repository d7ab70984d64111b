"""Two seconds of mutated files of every kind that strangers give; MICKLE_FUZZ_SECONDS asks for more (`make fuzz`)."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from mutations import mutated
from pyarrow import parquet

from mickle import storage
from mickle.data.chat_template import open_template
from mickle.data.heldout import read_pages
from mickle.data.tokenizer import open_text_tokenizer, train_tokenizer
from mickle.errors import MickleError
from mickle.models.decoder import Decoder, DecoderConfig
from mickle.models.folder import open_model, save_model
from mickle.show import show
from mickle.training.journal import Journal, MezoRun, TrainedTensor, encode, read_journal
from mickle.training.mezo_rule import MezoRule
from mickle.yaml_files import read_yaml

PIECES = [b"0", b"-1", b"1e9", b"null", b"true", b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\u0000", b"\x00", b"\xff"]
READERS: dict[str, Callable[[Path], object]] = {
    "model.safetensors": lambda path: open_model(path.parent),
    "config.json": lambda path: open_model(path.parent),
    "tokenizer.json": lambda path: open_text_tokenizer(path.parent).encode(["a cat, a mat"]),
    "tokenizer_config.json": lambda path: open_template(path.parent),
    "chat_template.jinja": lambda path: open_template(path.parent),
    "manifest.json": lambda path: show(path.parent),
    "pages.parquet": lambda path: list(read_pages(path)),
    "run.mezo": read_journal,
    "settings.yaml": read_yaml,
}  # fmt: skip


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sound file of every kind."""
    folder = tmp_path_factory.mktemp("sound") / "all"
    tokenizer = train_tokenizer(["the cat sat on the mat " * 9], 262, or_fewer=True)
    save_model(Decoder(DecoderConfig(tokenizer.size, 32, 2, 4, 2, 8, 48, 64)), folder, tokenizer)
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    parquet.write_table(pa.table({"text": ["a page", "and another"] * 20}), folder / "pages.parquet")
    (folder / "settings.yaml").write_text("steps: 3\nmodel: {kind: decoder, size: [1, 2]}\n")
    run = MezoRun("", "", MezoRule(), (TrainedTensor("w", (2, 3), "float32", True),), 0, (1, 1), (2, 3))
    (folder / "run.mezo").write_bytes(encode(Journal((run,))))
    storage.seal(folder, kind="model", summary={"text": "x"}, parents={"data": "y"}, identity={"settings": {}})
    for name, read in READERS.items():
        read(folder / name)
    return folder


def test_a_mutated_file_is_read_or_is_one_error(sound: Path, tmp_path: Path) -> None:
    """Each file in turn, in a folder without a manifest, which would notice all."""
    seconds = float(os.environ.get("MICKLE_FUZZ_SECONDS", "2"))
    draw = random.Random(os.environ.get("MICKLE_FUZZ_SEED", "0"))
    begun, count = time.monotonic(), 0
    while time.monotonic() - begun < seconds:
        for name, read in READERS.items():
            folder = tmp_path / f"{count % 9}"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(sound, folder)
            if name != "manifest.json":
                (folder / "manifest.json").unlink()
            content = mutated((sound / name).read_bytes(), draw, PIECES, most=4, longest=30)
            (folder / name).write_bytes(content)
            try:
                read(folder / name)
            except MickleError as error:
                if len(str(error).splitlines()) > 4:
                    pytest.fail(f"{name}: {error}")
            except BaseException as error:
                pytest.fail(f"{name}: {error!r} of {content[:3000]!r}")
            count += 1
    assert count > len(READERS) or seconds < 1
    assert json.loads((sound / "manifest.json").read_text())
