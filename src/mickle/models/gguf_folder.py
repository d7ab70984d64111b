"""GGUF files opened wherever a model folder is: each is made a plain folder, once, in the user's cache.

The file is checked first (`models/gguf_check.py`), its weights are read and made dense by transformers' own reader, and
its tokenizer is built by the name that the file has for how text is cut (`models/gguf_tokens.py`), since transformers'
conversion knows too few of them. What that reader would leave out of a file (a tensor, scaled positions) is refused;
the factors that Llama 3.1 and later scale their positions by are recognized.

Folders stand in ``$XDG_CACHE_HOME`` or ``~/.cache``, ``mickle/gguf``, by the file's name and hash. They may be deleted
when nothing runs: an adapter that was trained on one needs the same file again (`base_folder`).
"""

from __future__ import annotations

import math
import os
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator

from mickle import storage
from mickle.config import IsInput
from mickle.errors import UsageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor

    from mickle.models.gguf_check import GgufHeader
    from mickle.models.gguf_tokens import Vocabulary

SUFFIX = ".gguf"
VERSION = 1  # of what is made of a file; raised by hand
NARROW = ("bfloat16", "float16")  # taken where they hold every number exactly
FACTORS = "rope_freqs.weight"  # what Llama 3.1 and later divide frequencies by
SCALINGS = (8.0, 32.0)  # by Llama 3.1 and 3.2, between
LOW, HIGH, LENGTH = 1.0, 4.0, 8192  # turns in so many tokens


def plain_folder(path: Path) -> Path:
    """The folder itself; of a GGUF file, or a folder with one and no `config.json`, the plain folder made of it."""
    path = Path(path)
    file = gguf_file(path)
    if file is None:
        return path
    name = re.sub(r"[^\w.-]", "_", file.stem)[:80]
    home = cache() / f"{name}-{storage.hash_file(file)[:16]}-{VERSION}"
    if not home.exists():
        home.parent.mkdir(parents=True, exist_ok=True)
        with storage.lock(home.parent / f".{home.name}.lock"):
            if not home.exists():
                write_plain(file, home)
    manifest = storage.read_manifest(home)
    said = manifest.meta["summary"]["said"] if manifest else ""
    warnings.warn(f"{file}: {said}; the plain folder is {home}", stacklevel=2)
    return home


Model = Annotated[Path, IsInput(), AfterValidator(plain_folder)]  # a setting that names a model


def gguf_file(path: Path) -> Path | None:
    """The GGUF file that a path means; None where it means none. UsageError where a folder holds several."""
    if path.suffix == SUFFIX and path.is_file():
        return path
    if not path.is_dir() or any((path / name).exists() for name in ("config.json", "adapter_config.json")):
        return None
    found = sorted(path.glob(f"*{SUFFIX}"))
    if len(found) > 1:
        raise UsageError(
            f"this folder holds {len(found)} GGUF files: {found[0].name}, {found[1].name}",
            where=str(path),
            todo="name the one that is meant",
        )
    return found[0] if found else None


def cache() -> Path:
    """Where plain folders of GGUF files are kept."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(given) if given else Path.home() / ".cache") / "mickle" / "gguf"


def write_plain(file: Path, home: Path) -> None:
    """The plain folder of a GGUF file, whole or not at all; UsageError for a file that is not sound, or not known."""
    import torch

    from mickle.models.folder_check import CONFIG, WEIGHTS
    from mickle.models.gguf_check import read_gguf_header
    from mickle.models.safetensors_check import refuse_not_finite

    header = read_gguf_header(file)
    words, tokenizer, note = read_words(file, header)
    storage.check_space(home.parent, 4 * sum(math.prod(shape) for shape, _ in header.tensors.values()))
    config, tensors = read_weights(file, header)
    refuse_not_finite(tensors, file)
    exact = (k for k in NARROW if all(torch.equal(t.to(getattr(torch, k)).float(), t) for t in tensors.values()))
    stored = next(exact, "float32")
    kinds = {kind for shape, kind in header.tensors.values() if len(shape) > 1}
    said = f"weights in {', '.join(sorted(kinds))} are {stored} here{note}"
    with storage.write_folder(home, kind="plain", parents={"gguf": str(file)}, summary={"said": said}) as work:
        dtype = getattr(torch, stored)
        storage.save_tensors(work / WEIGHTS, {n: t.to(dtype) for n, t in tensors.items()}, {"format": "pt"})
        storage.write_json(work / CONFIG, {**config, **write_words(words, tokenizer, work), "dtype": stored})


def read_weights(file: Path, header: GgufHeader) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """`config.json` and weights in float32 by transformers' names; UsageError where its reader leaves out a part."""
    from mickle.models.folder_check import check_settings
    from mickle.models.transformers_bridge import read_gguf

    if header.metadata.get("split.count", 0) > 1:
        raise UsageError("this file is one part of several", where=str(file), todo="llama-gguf-split --merge makes one")
    architecture = header.metadata.get("general.architecture")
    scaling = header.metadata.get(f"{architecture}.rope.scaling.type", "none")
    if scaling != "none":
        raise UsageError(
            f"positions of this model are scaled ({str(scaling)[:40]}), which transformers' reader leaves out",
            where=str(file),
            todo="take the model's own folder",
        )

    def settled(settings: dict[str, Any]) -> dict[str, Any]:
        """With what the reader leaves out of some architectures, and 1e-05 where 32 bits made it 9.9999997e-06."""
        check_settings(settings, len(header.tensors), file)
        settings = {k: float(f"{v:.7g}") if type(v) is float else v for k, v in settings.items()}
        width = header.metadata.get(f"{architecture}.attention.key_length")
        more = {"head_dim": width} if width is not None else {}
        return {**more, **({"n_positions": settings["n_ctx"]} if "n_ctx" in settings else {}), **settings}

    config, tensors = read_gguf(file, settled)
    left = len(header.tensors) - len(tensors) - (FACTORS in header.tensors)
    if left:
        raise UsageError(f"transformers' reader leaves out {left} tensors of this {architecture}", where=str(file))
    if FACTORS in header.tensors:
        config["rope_parameters"] = _scaling(file, config["rope_parameters"]["rope_theta"])
    return {name: value for name, value in config.items() if not name.startswith("_")}, tensors


def _scaling(file: Path, theta: float) -> dict[str, Any]:
    """The settings under which transformers divides frequencies by just the factors in the file."""
    import torch

    from mickle.models.gguf_check import gguf_package

    reader = gguf_package().GGUFReader(file)
    factors = torch.tensor(next(t.data for t in reader.tensors if t.name == FACTORS))
    waves = 2 * math.pi * theta ** (torch.arange(len(factors)) / len(factors))
    for factor in SCALINGS:
        smooth = ((LENGTH / waves - LOW) / (HIGH - LOW)).clamp(0, 1)
        if torch.allclose(factors, 1 / (smooth + (1 - smooth) / factor), rtol=1e-4):
            bounds = {"low_freq_factor": LOW, "high_freq_factor": HIGH, "original_max_position_embeddings": LENGTH}
            return {"rope_type": "llama3", "rope_theta": theta, "factor": factor, **bounds}
    raise UsageError("positions are scaled by factors that no known Llama has", where=str(file))


def read_words(file: Path, header: GgufHeader) -> tuple[Vocabulary, Tokenizer, str]:
    """The file's vocabulary, the tokenizer that it describes, and what a user should know of it."""
    from mickle.models.gguf_tokens import CUTS, SENTENCEPIECE, framed, mark_spaces, rebuilt, vocabulary_in

    words = vocabulary_in(header.metadata, str(file))
    if words.kind == "gpt2":
        tokenizer = rebuilt(words)
    else:
        from mickle.models.transformers_bridge import tokenizer_of_gguf

        tokenizer = tokenizer_of_gguf(file)
    if words.kind == SENTENCEPIECE:
        mark_spaces(tokenizer, header.metadata.get("tokenizer.ggml.add_space_prefix", True))
    framed(tokenizer, words)
    known = words.pre in CUTS or words.kind == SENTENCEPIECE
    return words, tokenizer, "" if known else "; text is cut as transformers has it, not as llama.cpp"


def write_words(words: Vocabulary, tokenizer: Tokenizer, work: Path) -> dict[str, Any]:
    """Tokenizer, chat template and ends of texts; what `config.json` says of the marks."""
    from mickle.models import folder_check
    from mickle.models.folder_files import GENERATION, write_end_tokens

    storage.write_text(work / folder_check.TOKENIZER, tokenizer.to_str())
    names = [name for name in ("bos", "eos", "pad") if name in words.marks]
    marks = {f"{name}_token": words.tokens[words.marks[name]] for name in names}
    storage.write_json(work / folder_check.TOKENIZER_SETTINGS, {"tokenizer_class": "PreTrainedTokenizerFast", **marks})
    if words.template:
        storage.write_text(work / folder_check.TEMPLATE, words.template)
    ids = {f"{name}_token_id": words.marks.get(name) for name in ("bos", "eos", "pad")}
    known = {name: number for name, number in ids.items() if number is not None}
    storage.write_json(work / GENERATION, known)
    if words.stops and words.stops != [words.marks.get("eos")]:
        write_end_tokens(work, words.stops)
    return ids
