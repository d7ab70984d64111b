"""Open, describe and save model folders: ours, Llama's, those of every other model of `transformers`, adapters.

A decoder with rotary positions is written as a plain Llama folder (with none in some layers or all: as SmolLM3; with
experts: as Mixtral), which transformers, vLLM and llama.cpp's converter read; an encoder with rotary positions as a
plain EuroBERT folder. Other decoders are written with their own model type (`models/transformers_bridge.py`).
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch

from mickle import machine
from mickle.errors import NumericError, SpoiledError
from mickle.models import folder_check
from mickle.models.architectures import architecture_of, description_of
from mickle.models.folder_check import is_adapter
from mickle.models.folder_files import NARROW, end_tokens, open_tokenizer
from mickle.models.gguf_folder import plain_folder
from mickle.models.language import Description, LanguageModel, described
from mickle.models.quantized import open_base, save_model
from mickle.storage import no_such

__all__ = ["describe", "end_tokens", "open_model", "open_to_run", "open_tokenizer", "save_model", "widened_bytes"]


def open_model(path: Path, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> LanguageModel:
    """The model of a folder or GGUF file, in evaluation mode: one of ours where it can compute it, else a
    `WrappedModel`.

    All take `model(input_ids, documents=, cache=, head=)` (`models/language.py`). `dtype` None keeps the dtype of the
    files. Raises UsageError for a folder that is not whole, not safe or not a language model, and SpoiledError for
    weights that are not finite; both name the file or tensor.
    """
    path = plain_folder(Path(path))
    try:
        if is_adapter(path):
            from mickle.models.adapters import open_adapter

            return open_adapter(path, dtype=dtype, device=device)
        return open_base(path, dtype, device)
    except NumericError as error:
        raise SpoiledError(error.what, where=error.where, todo="take an earlier copy of this model") from None


def open_to_run(path: Path) -> LanguageModel:
    """As `open_model`, on the device in use, to be scored or sampled.

    Weights in 16 bits become float32, which holds the same numbers, on a processor without instructions for such
    products (they take some eight times as long there) and where they then take less than half of the memory there is.
    """
    model = open_model(path, device=machine.device())
    counts: Counter[torch.dtype] = Counter()
    for part in model.parameters():
        counts[part.dtype] += part.numel()
    return model.float() if widened_bytes(counts) else model


def widened_bytes(counts: Mapping[torch.dtype, int]) -> int:
    """Bytes of float32 that `open_to_run` makes of so many numbers of each dtype; 0 where they stay as they are."""
    narrow = {dtype: counts.get(dtype, 0) for dtype in NARROW.values()}
    size = 4 * sum(narrow.values())
    if machine.device().type != "cpu" or all(machine.fast_16_bits(dtype) for dtype, n in narrow.items() if n):
        return 0
    return size if size < machine.total_memory() / 2 else 0


def describe(path: Path) -> Description:
    """What a folder's settings say of its model. Reads no weights."""
    path = plain_folder(Path(path))
    if not path.is_dir():
        raise no_such(path, "model folder")
    config = folder_check.read_config(path)
    found = architecture_of(config, path)
    return described(config) if found is None else description_of(found[1])
