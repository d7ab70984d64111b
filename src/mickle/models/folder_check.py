"""What a model folder holds, checked before anything is built from it: a folder from a stranger is hostile.

Nothing here, and nothing after it, runs code from a folder, unpickles, follows a name out of the folder or
opens a connection. Sizes are compared with the bytes that are really there before memory is taken.

Links: a file may be a symbolic link to another file of the same folder, or, in the Hugging Face cache layout
(`models--x/snapshots/REVISION/file` -> `models--x/blobs/HASH`), to a blob of the same repository. No other.
"""

import json
import re
import stat
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mickle.errors import UsageError
from mickle.models.safetensors_check import TensorEntry, read_header
from mickle.storage import MANIFEST, no_such, open_folder, read_json

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
TOKENIZER, TOKENIZER_SETTINGS, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
SETTINGS = "quantization_config"  # in config.json, of a model in few bits
GROUPED_TYPE = "mickle_grouped"  # the model_type of folders whose layers only Mickle can read
ADAPTER = "adapter_config.json"  # what makes a folder an adapter's
LARGEST_CONFIG = 4 << 20  # bytes
LARGEST_INDEX = 25 << 20
LARGEST_TEMPLATE = 256 << 10  # all of a folder; one is read up to 64 kB
LARGEST_DIMENSION = 1 << 24
PIECE = 16 << 20  # bytes read at a time
MOST_LAYERS = 2000
DEEPEST = 32
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")
SIZE_NAME = re.compile(r"size|dim|width|layers?$|heads?$|position|^n_|^num_|^d_|length|experts")
LAYER_NAME = re.compile(r"^(num_(hidden_|decoder_|encoder_)?|n_|(en|de)coder_)?layers?$")


@dataclass(frozen=True)
class ModelFiles:
    """The sound parts of a model folder: its configuration and, for each tensor, the file and its entry there."""

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, tuple[Path, TensorEntry]]

    @property
    def elements(self) -> int:
        """How many numbers the weight files hold."""
        return sum(entry.elements for _, entry in self.tensors.values())


def inspect_folder(folder: Path) -> ModelFiles:
    """Check a model folder from outside in. Raises UsageError naming the file and what is wrong with it."""
    if not folder.is_dir():
        expected = f"a folder with {CONFIG} and {WEIGHTS}"
        if not folder.exists():
            raise no_such(folder, "model folder", expected=expected)
        raise UsageError("this is a file, not a model folder", where=str(folder), expected=expected)
    sealed = (folder / MANIFEST).exists()
    if sealed:
        regular_file(folder, MANIFEST)
        open_folder(folder)
    config = read_config(folder)
    tensors = _find_tensors(folder)
    config = _untied(config, tensors)
    _check_layers(config, len(tensors), folder / CONFIG)
    if sealed:  # last, for it reads every byte
        open_folder(folder, check="hashes")
    return ModelFiles(folder, config, tensors)


def _untied(config: dict[str, Any], tensors: dict[str, tuple[Path, TensorEntry]]) -> dict[str, Any]:
    """The configuration, not tied where the files hold an output matrix that is not the embedding: as transformers
    takes it.
    """
    table, output = (tensors.get(name) for name in ("model.embed_tokens.weight", "lm_head.weight"))
    if not config.get("tie_word_embeddings") or table is None or output is None or _same(table, output):
        return config
    return {**config, "tie_word_embeddings": False}


def _same(one: tuple[Path, TensorEntry], other: tuple[Path, TensorEntry]) -> bool:
    """Whether two stored tensors are of one type and shape and hold the same bytes, of which few are read at a time."""
    (_, a), (_, b) = one, other
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    with ExitStack() as files:
        streams = [files.enter_context(open(path, "rb")) for path, _ in (one, other)]
        for stream, entry in zip(streams, (a, b), strict=True):
            stream.seek(8 + int.from_bytes(stream.read(8), "little") + entry.start)
        sizes = [min(PIECE, a.end - a.start - done) for done in range(0, a.end - a.start, PIECE)]
        return all(streams[0].read(size) == streams[1].read(size) for size in sizes)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, and no whole model."""
    return (folder / ADAPTER).exists()


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json`, refused where it is too large, too deep, names code to run or claims absurd sizes."""
    if is_adapter(folder):
        raise UsageError(
            "this is an adapter folder, not a whole model",
            where=str(folder),
            todo="merge the adapter into its base model first",
        )
    path = regular_file(folder, CONFIG)
    config = read_json(path, LARGEST_CONFIG)
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise UsageError("config names no model_type", where=str(path), expected="a JSON object with model_type")
    _check_values(config, path)
    if not config.get(SETTINGS, True):  # null, or nothing in it
        del config[SETTINGS]
    if config["model_type"] != GROUPED_TYPE:
        return config
    settings = config.get(SETTINGS)
    own = settings.get("model_type") if isinstance(settings, dict) else None
    if not isinstance(own, str):
        raise UsageError(
            f"{SETTINGS} does not say which model its layers are of", where=str(path), expected="model_type"
        )
    return {**config, "model_type": own}


def regular_file(folder: Path, name: str) -> Path:
    """The path of a plain file that belongs to the folder, links resolved as the module says."""
    path = folder / name
    if not path.exists():
        raise UsageError(f"model folder lacks {name}", where=str(folder), todo="fetch or write the folder again")
    target = path.resolve()
    home = folder.resolve()
    allowed = [home]
    if home.parent.name == "snapshots":
        allowed.append(home.parent.parent / "blobs")
    if not any(target.is_relative_to(place) for place in allowed):
        raise UsageError(
            f"{name} is a link to outside of the folder", where=str(path), todo="copy the file itself here"
        )
    if not stat.S_ISREG(target.stat().st_mode):
        raise UsageError(f"{name} is not a plain file", where=str(path))
    return path


def check_tokenizer(folder: Path) -> Path:
    """The path of `tokenizer.json`, refused where it is no file of the folder, or where a chat template beside it is
    absurdly large or settings name code to run. Its content is checked by who opens it (`untrusted/tokenizer.py`).
    """
    path = regular_file(folder, TOKENIZER)
    if (folder / TEMPLATE).exists():
        _check_template(regular_file(folder, TEMPLATE).stat().st_size, folder / TEMPLATE)
    settings = read_values(folder, TOKENIZER_SETTINGS)
    _refuse_code(settings, folder / TOKENIZER_SETTINGS)
    _check_template(len(json.dumps(settings.get("chat_template", ""))), folder / TOKENIZER_SETTINGS)
    return path


def read_values(folder: Path, name: str) -> dict[str, Any]:
    """What a small JSON file of the folder says; nothing where it is not there."""
    if not (folder / name).exists():
        return {}
    values = read_json(regular_file(folder, name), LARGEST_CONFIG)
    if not isinstance(values, dict):
        raise UsageError("this file holds no settings", where=str(folder / name), expected="a JSON object")
    return values


def _check_template(size: int, path: Path) -> None:
    if size > LARGEST_TEMPLATE:
        raise UsageError(f"chat template has {size:,} bytes", where=str(path), expected=f"at most {LARGEST_TEMPLATE:,}")


def _refuse_code(values: dict[str, Any], path: Path) -> None:
    if values.get("auto_map"):
        raise UsageError(
            "folder asks to run Python code of its own (auto_map); Mickle never does",
            where=str(path),
            todo="convert the model to an architecture that transformers has built in",
        )


def check_settings(config: dict[str, Any], tensors: int, path: Path) -> None:
    """UsageError for settings, from whatever file, that name code, claim absurd sizes, or more layers than tensors."""
    _check_values(config, path)
    _check_layers(config, tensors, path)


def _check_values(value: Any, path: Path, name: str = "", depth: int = 0) -> None:
    """Walk a configuration: no code, no kernels from elsewhere, no absurd sizes, no deep nesting."""
    if depth > DEEPEST:
        raise UsageError("config is nested too deeply", where=str(path), expected=f"at most {DEEPEST} levels")
    if isinstance(value, dict):
        _refuse_code(value, path)
        if depth and value.get("quantization_config"):
            raise UsageError("config asks for quantized weights in a part of the model only", where=str(path))
        for key, item in value.items():
            _check_values(item, path, str(key), depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check_values(item, path, name, depth + 1)
    elif isinstance(value, str):
        if "attn_implementation" in name and value not in ("eager", "sdpa", "flash_attention_2", "flex_attention"):
            raise UsageError(f"config asks for attention code from elsewhere: {value[:60]!r}", where=f"{path}, {name}")
    elif SIZE_NAME.search(name) and isinstance(value, (int, float)) and abs(value) > LARGEST_DIMENSION:
        raise UsageError(
            f"config claims {name[:60]} = {value:.3g}", where=str(path), expected=f"at most {LARGEST_DIMENSION:,}"
        )


def _check_layers(config: dict[str, Any], tensors: int, path: Path) -> None:
    """No more layers than weight files have tensors: building the empty frame alone takes time and memory."""
    for name, value in config.items():
        if isinstance(value, dict):
            _check_layers(value, tensors, path)
        elif LAYER_NAME.search(name) and isinstance(value, (int, float)) and value > min(tensors, MOST_LAYERS):
            raise UsageError(
                f"config claims {value:,} layers ({name}), the weights hold {tensors:,} tensors", where=str(path)
            )


def _find_tensors(folder: Path) -> dict[str, tuple[Path, TensorEntry]]:
    """Every tensor of the folder's weight file or shards; an index must agree with its shards exactly."""
    if (folder / WEIGHTS).exists() or (folder / WEIGHTS).is_symlink():
        path = regular_file(folder, WEIGHTS)
        return {name: (path, entry) for name, entry in read_header(path).items()}
    if not (folder / INDEX).exists():
        pickled = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLED)
        raise UsageError(
            f"weights are pickled ({pickled[0]}): loading them could run code"
            if pickled
            else "model folder has no weights",
            where=str(folder),
            expected=WEIGHTS,
            todo="save the model again as safetensors" if pickled else "fetch or write the folder again",
        )
    index = regular_file(folder, INDEX)
    values = read_json(index, LARGEST_INDEX)
    shards = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise UsageError("index has no weight_map of names to files", where=str(index))
    found: dict[str, tuple[Path, TensorEntry]] = {}
    for shard in sorted(set(shards.values())):
        if not re.fullmatch(r"[\w.-]{1,200}\.safetensors", shard, re.ASCII) or shard.startswith("."):
            raise UsageError(
                f"index names a shard {shard[:80]!r}", where=str(index), expected="a .safetensors file beside it"
            )
        path = regular_file(folder, shard)
        for name, entry in read_header(path).items():
            if shards.get(name) != shard:
                raise UsageError(f"index and shard disagree about tensor {name[:100]!r}", where=str(path))
            found[name] = path, entry
    missing = sorted(shards.keys() - found.keys())
    if missing:
        raise UsageError(f"tensor {missing[0][:100]!r} is in the index and in no shard", where=str(index))
    return found
