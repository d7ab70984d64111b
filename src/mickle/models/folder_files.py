"""The files of a model folder, read and written whatever the model: tensors, settings, tokenizer, marks of texts' ends.

Only safetensors are read or written, nothing is fetched, and no folder's code is run (`models/folder_check.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor

from mickle import storage
from mickle.errors import UsageError
from mickle.models import folder_check
from mickle.models.folder_check import ModelFiles
from mickle.models.safetensors_check import refuse_not_finite
from mickle.untrusted import tokenizer as untrusted

if TYPE_CHECKING:
    from tokenizers import Tokenizer


NARROW = {"BF16": torch.bfloat16, "F16": torch.float16}  # the types in 16 bits, as files name them
GENERATION = "generation_config.json"  # what `generate` goes by, the ends of texts among it
WRITTEN = (folder_check.TOKENIZER, folder_check.TOKENIZER_SETTINGS)  # by a tokenizer itself
# What a folder may hold beside its weights that says how text becomes tokens and when it ends.
KEPT = (
    *WRITTEN,
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    folder_check.TEMPLATE,
    GENERATION,
)
LARGEST_KEPT = 64 << 20  # bytes


def read_tensors(files: ModelFiles) -> dict[str, Tensor]:
    """All tensors of a checked folder, as they are stored."""
    tensors: dict[str, Tensor] = {}
    for path in sorted({path for path, _ in files.tensors.values()}):
        tensors |= storage.load_tensors(path)
    return tensors


def read_tensor(files: ModelFiles, name: str) -> Tensor:
    """One tensor of a checked folder, without reading the others."""
    if name not in files.tensors:
        raise UsageError(f"weights lack tensor {name[:120]!r}", where=str(files.folder))
    with safe_open(files.tensors[name][0], framework="pt") as stream:
        found: Tensor = stream.get_tensor(name)
    return found


def write_model(
    folder: Path, tensors: dict[str, Tensor], settings: Mapping[str, Any], tokenizer: Any, dtype: torch.dtype
) -> None:
    """Weights first, settings last, with the marks that `tokenizer` names (`start`, `end`, `mask`)."""
    refuse_not_finite(tensors, folder)
    storage.save_tensors(folder / folder_check.WEIGHTS, tensors, {"format": "pt"})
    marks = {"bos_token_id": "start", "eos_token_id": "end"}
    ids = {key: getattr(tokenizer, attribute, None) for key, attribute in marks.items()}
    storage.write_json(folder / GENERATION, {k: v for k, v in ids.items() if v is not None})
    mask = getattr(tokenizer, "mask", None)
    if mask is not None:
        ids["mask_token_id"] = mask
    storage.write_json(folder / folder_check.CONFIG, {**settings, **ids, "dtype": str(dtype).removeprefix("torch.")})


def write_tokenizer(tokenizer: Any, folder: Path) -> None:
    """The files of a tokenizer: one of `data/tokenizer.py`, a plain `tokenizers.Tokenizer`, or none."""
    if hasattr(tokenizer, "start"):
        tokenizer.save(folder)
    elif tokenizer is not None:
        storage.write_text(folder / folder_check.TOKENIZER, tokenizer.to_str(pretty=True))


def keep_files(folders: Sequence[Path], work: Path, names: Sequence[str] = KEPT) -> list[str]:
    """Copy the small files that `folders` hold, the first that has one; returns their names."""
    kept = []
    for name in names:
        home = next((folder for folder in folders if (folder / name).exists()), None)
        if home is None:
            continue
        path = folder_check.regular_file(home, name)
        if name == folder_check.TOKENIZER:
            untrusted.check_tokenizer(folder_check.check_tokenizer(home))
        if path.stat().st_size > LARGEST_KEPT:
            raise UsageError(f"{name} has {path.stat().st_size:,} bytes", where=str(path))
        storage.write_bytes(work / name, path.read_bytes())
        kept.append(name)
    return kept


def keep_words(folder: Path, work: Path, taught: Sequence[int]) -> None:
    """Keep what belongs to the words of a model that was trained further, the tokenizer's own files aside; texts end
    as before, and at the tokens that were ``taught`` as ends.
    """
    keep_files([folder], work, [name for name in KEPT if name not in WRITTEN])
    ends = end_tokens(folder)
    more = [token for token in taught if token not in ends]
    if more:
        write_end_tokens(work, [*ends, *more])


def open_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a folder, its file checked first."""
    return untrusted.open_tokenizer(folder_check.check_tokenizer(Path(path)))


def end_tokens(path: Path) -> list[int]:
    """The token ids that end a text, as transformers' `generate` takes them: of `generation_config.json`, without one
    of `config.json`; none where it does not say.
    """
    name = GENERATION if (Path(path) / GENERATION).exists() else folder_check.CONFIG
    ids = folder_check.read_values(Path(path), name).get("eos_token_id")
    return [token for token in (ids if isinstance(ids, list) else [ids]) if type(token) is int]


def write_end_tokens(folder: Path, ids: Sequence[int]) -> None:
    """Let texts end at `ids`, in `generation_config.json`, whose other settings stay."""
    values = folder_check.read_values(folder, GENERATION)
    kept = {name: value for name, value in values.items() if name != "_from_model_config"}  # it is no longer
    storage.write_json(folder / GENERATION, {**kept, "eos_token_id": ids[0] if len(ids) == 1 else list(ids)})
