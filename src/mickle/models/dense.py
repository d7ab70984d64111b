"""Model folders of plain weights, opened and saved, and how any folder of ours begins: an empty frame that fits it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from mickle import storage
from mickle.errors import UsageError
from mickle.models.architectures import architecture_of
from mickle.models.folder_check import CONFIG, ModelFiles
from mickle.models.folder_files import read_tensors, write_tokenizer
from mickle.models.safetensors_check import refuse_not_finite


def open_dense(files: ModelFiles, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> nn.Module:
    """The model of a checked folder of plain weights, in evaluation mode; `dtype` None keeps the files'."""
    frame = checked_frame(files)
    tensors = read_tensors(files)
    refuse_not_finite(tensors, files.folder)
    if frame is None:
        from mickle.models.transformers_bridge import open_wrapped

        return open_wrapped(files, tensors).to(device=device, dtype=dtype).eval()
    names = {name: frame.folder_name(name) for name in frame.state_dict()}
    frame.load_state_dict({name: tensors[there] for name, there in names.items()}, assign=True)
    return frame.to(device=device, dtype=dtype).eval()


def save_dense(model: Any, folder: Path, tokenizer: Any = None) -> None:
    """As `save_model`, all but the weights of layers in few bits, which are no parameters."""
    if any(name.endswith(".lora_A") for name, _ in model.named_parameters()):
        raise UsageError(
            "the model has adapters", todo="save them with save_adapter, or merge them with merge_lora first"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model.save(folder, tokenizer)
    write_tokenizer(tokenizer, folder)
    if tokenizer is not None and not hasattr(tokenizer, "start"):
        storage.write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})


def checked_frame(files: ModelFiles) -> Any:
    """The model that a checked folder is for, without memory for its weights; None where it is not one of ours.

    Every weight the model needs must be in the files with its shape, and nothing else: UsageError before memory is
    taken.
    """
    where = str(files.folder)
    found = architecture_of(files.config, files.folder / CONFIG)
    if found is None:
        return None
    model_class, shape = found
    if shape.parameters() > 2 * files.elements:
        raise UsageError(
            f"config describes {shape.parameters():,} parameters, the weight files hold {files.elements:,}",
            where=where,
        )
    shape.refuse_fewer_tensors(len(files.tensors), where)  # before that many modules are made
    with torch.device("meta"):
        frame = model_class(shape)
    wanted = {frame.folder_name(name): tuple(weight.shape) for name, weight in frame.state_dict().items()}
    extra = files.tensors.keys() - wanted.keys() - frame.ignored_tensors()
    missing = sorted(wanted.keys() - files.tensors.keys())
    if missing or extra:
        name = missing[0] if missing else sorted(extra)[0]
        raise UsageError(f"weights {'lack' if missing else 'have an unknown'} tensor {name[:100]!r}", where=where)
    for name, size in wanted.items():
        entry = files.tensors[name][1]
        if entry.shape != size or entry.dtype not in ("F32", "F16", "BF16", "F64"):
            raise UsageError(
                f"tensor {name!r} is {entry.dtype} of shape {list(entry.shape)}",
                where=where,
                expected=f"floats of {list(size)}",
            )
    return frame
