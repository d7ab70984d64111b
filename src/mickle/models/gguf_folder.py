"""GGUF files opened wherever a model folder is: each is made a plain folder, once, in the user's cache.

The file is checked first (`models/gguf_check.py`), its weights are read and made dense by transformers' own reader, and
its tokenizer is built by the name that the file has for how text is cut (`models/gguf_tokens.py`), since transformers'
conversion knows too few of them. What that reader leaves out of the settings is added (`models/gguf_settings.py`); a
tensor that it would leave out is refused.

Folders stand in ``$XDG_CACHE_HOME`` or ``~/.cache``, ``mickle/gguf``, by the file's name and hash. They may be deleted
when nothing runs: an adapter that was trained on one needs the same file again (`base_folder`).
"""

from __future__ import annotations

import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator

from mickle import storage
from mickle.config import IsInput
from mickle.errors import UsageError, shortened

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor

    from mickle.models.gguf_check import GgufHeader
    from mickle.models.gguf_tokens import Vocabulary

SUFFIX = ".gguf"
VERSION = 2  # of what is made of a file; raised by hand
NARROW = ("bfloat16", "float16")  # taken where they hold every number exactly


def plain_folder(path: Path) -> Path:
    """The folder itself; of a GGUF file, or a folder with one and no `config.json`, the plain folder made of it."""
    file = gguf_file(Path(path))
    if file is None:
        return Path(path)
    home = _made(file, "", write_plain)
    manifest = storage.read_manifest(home)
    said = manifest.meta["summary"]["said"] if manifest else ""
    warnings.warn(f"{file}: {said}; the plain folder is {home}", stacklevel=2)
    return home


def words_folder(path: Path) -> Path:
    """As `plain_folder`, of a setting that names a tokenizer: what is made of a GGUF file holds that alone."""
    file = gguf_file(Path(path))
    return Path(path) if file is None else _made(file, "-words", write_words_alone)


Model = Annotated[Path, IsInput(), AfterValidator(plain_folder)]  # a setting that names a model
Words = Annotated[Path, IsInput(), AfterValidator(words_folder)]  # a setting that names a tokenizer


def _made(file: Path, what: str, write: Callable[[Path, Path], None]) -> Path:
    """The folder that `write` makes of a file, made where it is not there yet."""
    name = re.sub(r"[^\w.-]", "_", file.stem)[:80]
    home = cache() / f"{name}-{storage.hash_file(file)[:16]}-{VERSION}{what}"
    if not home.exists():
        home.parent.mkdir(parents=True, exist_ok=True)
        with storage.lock(home.parent / f".{home.name}.lock"):
            if not home.exists():
                write(file, home)
    return home


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


def write_words_alone(file: Path, home: Path) -> None:
    """The tokenizer, chat template and marks of a GGUF file, as a folder."""
    from mickle.models.gguf_check import read_gguf_header

    words, tokenizer, _ = read_words(file, read_gguf_header(file))
    with storage.write_folder(home, kind="tokenizer", parents={"gguf": str(file)}) as work:
        write_words(words, tokenizer, work)


def about(file: Path) -> str:
    """A few lines on a GGUF file, of its header alone: architecture, sizes, types of its numbers, words."""
    from mickle.models.gguf_check import read_gguf_header
    from mickle.models.gguf_tokens import vocabulary_in

    header = read_gguf_header(file)
    architecture, words = str(header.metadata.get("general.architecture")), vocabulary_in(header.metadata, str(file))
    own = {name.removeprefix(f"{architecture}."): value for name, value in header.metadata.items()}
    sizes = {
        "layers": own.get("block_count"),
        "width": own.get("embedding_length"),
        "heads": own.get("attention.head_count"),
        "over": own.get("attention.head_count_kv"),
        "positions": own.get("context_length"),
        "tokens": len(words.tokens),
    }
    counts = Counter(kind for _, kind in header.tensors.values())
    numbers = sum(math.prod(shape) for shape, _ in header.tensors.values())
    marks = ", ".join(f"{name} {words.tokens[number]!r}" for name, number in words.marks.items())
    rows = {
        "content": f"{numbers:,} numbers in {file.stat().st_size / 1e6:,.2f} MB; tensors: "
        + ", ".join(f"{count} in {kind}" for kind, count in counts.most_common()),
        "sizes": ", ".join(f"{name} {value:,}" for name, value in sizes.items() if type(value) is int),
        "words": f"{words.kind}, cut as {words.pre}; {marks}; {'a' if words.template else 'no'} chat template",
    }
    named = [
        shortened(" ".join(str(name).split()), 60)
        for name in (architecture, header.metadata.get("general.name", "unnamed"))
    ]
    return "\n".join([
        f"{file}: a GGUF file of a {named[0]} ({named[1]}), its header sound",
        *(f"  {title:<9} {shortened(line, 160)}" for title, line in rows.items()),
    ])  # fmt: skip


def read_weights(file: Path, header: GgufHeader) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """`config.json` and weights in float32 by transformers' names; UsageError where its reader leaves out a part."""
    from mickle.models.folder_check import check_settings
    from mickle.models.gguf_settings import completed
    from mickle.models.transformers_bridge import read_gguf

    if header.metadata.get("split.count", 0) > 1:
        raise UsageError("this file is one part of several", where=str(file), todo="llama-gguf-split --merge makes one")
    architecture = str(header.metadata.get("general.architecture"))
    own = {name.removeprefix(f"{architecture}."): value for name, value in header.metadata.items()}
    width = own.get("attention.key_length")

    def settled(settings: dict[str, Any]) -> dict[str, Any]:
        """With what the reader leaves out of some architectures, and 1e-05 where 32 bits made it 9.9999997e-06."""
        check_settings(settings, len(header.tensors), file)
        settings = {k: float(f"{v:.7g}") if type(v) is float else v for k, v in settings.items()}
        more = {"pad_token_id": None, **({} if width is None else {"head_dim": width})}  # not a type's own padding
        return {**more, **({"n_positions": settings["n_ctx"]} if "n_ctx" in settings else {}), **settings}

    config, tensors = read_gguf(file, settled)
    factors = _factors(file, header)
    left = len(header.tensors) - len(tensors) - len(factors)
    if left:
        raise UsageError(f"transformers' reader leaves out {left} tensors of this {architecture}", where=str(file))
    try:
        config = completed(config, own, factors)
    except UsageError as error:
        raise UsageError(error.what, where=str(file), todo=error.todo) from None
    return {name: value for name, value in config.items() if not name.startswith("_")}, tensors


def _factors(file: Path, header: GgufHeader) -> dict[str, Tensor]:
    """The tensors of a file that scale positions, which are no weights."""
    import torch

    from mickle.models.gguf_check import gguf_package
    from mickle.models.gguf_settings import FACTORS, LONG, SHORT

    wanted = {FACTORS, LONG, SHORT} & header.tensors.keys()
    if not wanted:
        return {}
    reader = gguf_package().GGUFReader(file)
    return {t.name: torch.tensor(t.data, dtype=torch.float32) for t in reader.tensors if t.name in wanted}


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
        mark_spaces(tokenizer, words.prefix)
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
