"""The base of an adapter: where it is, whether it is the one, and what our own adapters say of it in `base.json`.

`base.json` holds the base's path seen from the adapter, a hash of its weights, and in which few bits it was held.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from mickle import storage
from mickle.errors import UsageError
from mickle.models import folder_check
from mickle.models.adapter_settings import read_settings
from mickle.models.folder_check import ADAPTER, is_adapter
from mickle.models.folder_files import write_tokenizer
from mickle.models.safetensors_check import refuse_not_finite

WEIGHTS, BASE = "adapter_model.safetensors", "base.json"


def write_adapter(
    folder: Path,
    base: Path,
    tensors: dict[str, Tensor],
    settings: Mapping[str, Any],
    tokenizer: Any = None,
    quantization: Mapping[str, Any] | None = None,
) -> None:
    """An adapter folder as PEFT has it: its tensors, the note on its base, tokenizer, and `adapter_config.json` last.

    NumericError where a number is not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    refuse_not_finite(tensors, folder)
    storage.save_tensors(folder / WEIGHTS, tensors, {"format": "pt"})
    beside = os.path.relpath(base, folder.resolve())
    note = {"path": beside, "weights": weights_digest(base), "quantization": dict(quantization or {}) or None}
    storage.write_json(folder / BASE, note)
    write_tokenizer(tokenizer, folder)
    storage.write_json(folder / ADAPTER, settings)


def adapter_base(folder: Path) -> Path:
    """The folder of the model that an adapter belongs to: where it says, or at the same place seen from the adapter.

    UsageError where there is none, or another model stands there. Nothing is ever fetched.
    """
    folder = Path(folder)
    values, note = read_settings(folder), base_note(folder)
    named = values.get("base_model_name_or_path")
    written = [Path(named)] if isinstance(named, str) and named else []
    beside = [folder / note["path"]] if note.get("path") else []
    places = [*written, *beside, *(folder / path for path in written if not path.is_absolute())]
    for place in places:
        if (place / folder_check.CONFIG).is_file():
            return checked_base(place, folder)
    raise UsageError(
        f"the base model of this adapter is not at {str(named)[:200]!r}"
        if named
        else "this adapter names no base model",
        where=str(folder / ADAPTER),
        todo="put the base's folder there, or give it: open_adapter(folder, base=...), on the command line base_folder",
    )


def tokenizer_folder(folder: Path) -> Path:
    """Where the tokenizer of a model or adapter folder is: the folder itself, or the base of an adapter without one."""
    folder = Path(folder)
    if (folder / folder_check.TOKENIZER).exists() or not is_adapter(folder):
        return folder
    return adapter_base(folder)


def base_in_few_bits(folder: Path, base: Path) -> Literal["", "stored", "made"]:
    """Whether an adapter's base is in few bits: in its folder ("stored"), or put there when opened ("made")."""
    if folder_check.read_config(base).get("quantization_config"):
        return "stored"
    return "made" if base_note(folder).get("quantization") else ""


def weights_digest(folder: Path) -> str:
    """One hash for the weights of a model folder: names, sizes and hashes of its safetensors files."""
    manifest = storage.read_manifest(folder)
    known = {} if manifest is None else {name: file.xxh3 for name, file in manifest.files.items()}
    lines = [
        f"{path.name} {path.stat().st_size} {known.get(path.name) or storage.hash_file(path)}"
        for path in sorted(folder.glob("*.safetensors"))
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def checked_base(base: Path, folder: Path, by_hash: bool = True) -> Path:
    """`base`, refused where the adapter was made on other weights, or where it is an adapter itself."""
    if is_adapter(base):
        raise UsageError(
            "the base of this adapter is an adapter itself", where=str(base), todo="export it merged first"
        )
    wanted = base_note(folder).get("weights") if by_hash else None
    if wanted and base.is_dir() and weights_digest(base) != wanted:
        raise UsageError(
            f"this adapter was made on another model than {base}: its weights have another hash",
            where=str(folder / BASE),
            todo=f"give the base it was made on; to use it on this one all the same, remove {BASE}",
        )
    return base


def base_note(folder: Path) -> dict[str, Any]:
    """What our own adapters say of their base; nothing for those of others."""
    if not (folder / BASE).exists():
        return {}
    path = folder_check.regular_file(folder, BASE)
    note = storage.read_json(path, folder_check.LARGEST_CONFIG)
    kinds: dict[str, Any] = {"path": str, "weights": str, "quantization": (dict, type(None))}
    if not isinstance(note, dict) or not all(isinstance(note.get(key), kind) for key, kind in kinds.items()):
        raise UsageError("this file does not say what the adapter's base is", where=str(path))
    return note
