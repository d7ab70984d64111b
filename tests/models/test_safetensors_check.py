"""The strict header reader: sound files pass, and no mutation gets more than a typed error."""

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file

from mickle.errors import NumericError, UsageError
from mickle.models.safetensors_check import read_header, refuse_not_finite
from mickle.storage import LARGEST_HEADER

TENSORS = {
    "half": torch.ones(3, 2, dtype=torch.float16),
    "matrix": torch.arange(6.0).view(2, 3),
    "none": torch.empty(0, 4),
    "number": torch.tensor(2.5),
    "whole": torch.arange(5),
}


def test_every_tensor_of_a_sound_file_is_found(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors", metadata={"format": "pt"})
    entries = read_header(tmp_path / "x.safetensors")
    assert {name: entry.shape for name, entry in entries.items()} == {k: tuple(t.shape) for k, t in TENSORS.items()}
    assert {name: entry.dtype for name, entry in entries.items()} == {
        "half": "F16",
        "matrix": "F32",
        "none": "F32",
        "number": "F32",
        "whole": "I64",
    }


def test_whatever_the_library_refuses_is_refused_and_nothing_crashes(tmp_path: Path) -> None:
    """1,000 mutated files: ours never lets through what safetensors itself refuses, and raises only UsageError."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    sound, chance, passed = save(TENSORS), random.Random(0), 0
    path = tmp_path / "x.safetensors"
    for _ in range(1000):
        mutated = _mutate(sound, chance)
        path.write_bytes(mutated)
        try:
            read_header(path)
        except UsageError:
            continue
        passed += 1
        try:
            load(mutated)
        except SafetensorError as error:
            pytest.fail(f"let through what safetensors refuses: {error}, {mutated!r}")
    assert 0 < passed < 500  # some mutations touch only numbers or names


def _mutate(sound: bytes, chance: random.Random) -> bytes:
    """One to three changes of a byte, a cut, an insertion or a repetition, mostly in the header."""
    data = bytearray(sound)
    header = 8 + int.from_bytes(sound[:8], "little")
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(header if chance.random() < 0.9 else len(data)) % max(len(data), 1)
        match chance.randrange(4):
            case 0:
                data[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                data[at : at + 1] = chance.choice([b"0", b"9", b'"', b"}", b"[", b",", b"-", b".", b"e9", b"null"])
            case 2:
                del data[at : at + chance.randint(1, 9)]
            case 3:
                data[at:at] = data[at : at + chance.randint(1, 40)]
    if chance.random() < 0.7 and len(data) > 8:  # keep the length true, to get past the first check
        data[:8] = max(0, len(data) - (len(sound) - header) - 8).to_bytes(8, "little")
    return bytes(data)


def test_a_header_larger_than_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with open(path, "wb") as stream:
        stream.write((LARGEST_HEADER + 1).to_bytes(8, "little"))
        stream.truncate(LARGEST_HEADER * 2)  # sparse
    with pytest.raises(UsageError, match="header claims"):
        read_header(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_one_bad_number_names_its_tensor(value: float, dtype: torch.dtype, tmp_path: Path) -> None:
    bad = torch.zeros(7, 9, dtype=dtype)
    refuse_not_finite({"fine": bad, "whole": torch.arange(3)}, tmp_path)
    bad[6, 8] = value
    with pytest.raises(NumericError, match="'layers.3.bad'"):
        refuse_not_finite({"fine": torch.ones(2), "layers.3.bad": bad}, tmp_path)


def test_names_and_metadata_are_plain_json(tmp_path: Path) -> None:
    header = json.dumps({"ünï": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    assert list(read_header(tmp_path / "x.safetensors")) == ["ünï"]
