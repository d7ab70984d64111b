"""What an adapter folder says: PEFT's settings, and what its base is.

Of `adapter_config.json` a plain LoRA is computed by, all else is refused by name. Our own folders hold `base.json` too:
a hash of the base's weights, and in which few bits it was held (in older ones also its path, seen from the adapter). A
folder from a stranger is hostile: no regular expression of his is matched before it was found short and simple.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from mickle import storage
from mickle.errors import UsageError
from mickle.models import folder_check
from mickle.models.folder_check import ADAPTER, is_adapter
from mickle.models.folder_files import write_tokenizer
from mickle.models.safetensors_check import refuse_not_finite

WEIGHTS, BASE = "adapter_model.safetensors", "base.json"

PARENTS = 5  # folders above an adapter, and last parts of a path, that are looked through for its base
HOW: dict[str, Any] = {
    "code": str,
    "double": bool,
    "block": int,
    "skip": list,
}  # arguments of `models.quantized.quantize_model`
MOST_PATTERNS = 2000  # each is held to the name of each layer
KINDS = ("LORA", "PREFIX_TUNING")
# Settings that say how an adapter was begun or is held, not what it computes.
HARMLESS = {
    *("peft_type", "base_model_name_or_path", "r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern"),
    *("alpha_pattern", "target_modules", "task_type", "bias", "init_lora_weights", "fan_in_fan_out", "auto_mapping"),
    *("revision", "inference_mode", "peft_version", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "qalora_group_size"),
    *("runtime_config", "ensure_weight_tying", "dora_ephemeral_gpu_offload"),
    *("modules_to_save", "trainable_token_indices"),
}
STARTS = (True, False, None, "gaussian", "orthogonal", "eva")  # ways to begin that leave the base as it is
VARIANTS = {
    "use_dora": "DoRA",
    "layer_replication": "layers used twice (layer_replication)",
    "megatron_config": "layers of Megatron",
    "target_parameters": "adapters on bare parameters (target_parameters)",
    "lora_bias": "a bias inside the adapter (lora_bias)",
    "use_qalora": "QALoRA",
    "alora_invocation_tokens": "aLoRA",
}


@dataclass(frozen=True)
class AdapterSettings:
    """What `adapter_config.json` says that a LoRA is computed by."""

    rank: int
    alpha: float
    dropout: float
    rslora: bool
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, float]
    targets: list[str] | None  # None: a regular expression, or "all-linear"; the tensors say which
    some_left_out: bool  # whether layers that targets name have no adapter by rights
    whole: list[str]  # ends of the names of layers that are trained whole
    tokens: dict[str, list[int]]  # ends of the names of tables -> their trained rows; "" stands for any


def read_settings(folder: Path) -> dict[str, Any]:
    """`adapter_config.json` of an adapter folder, its kind known and its sizes in bounds. Reads no weights."""
    if not folder.is_dir():
        raise UsageError(f"no such adapter folder: {folder}", todo="check the path")
    if (folder / storage.MANIFEST).exists():
        folder_check.regular_file(folder, storage.MANIFEST)
        storage.open_folder(folder, check="hashes")
    path = folder_check.regular_file(folder, ADAPTER)
    values = storage.read_json(path, folder_check.LARGEST_CONFIG)
    if not isinstance(values, dict) or not isinstance(values.get("peft_type"), str):
        raise UsageError("adapter names no peft_type", where=str(path), expected="a JSON object as PEFT writes it")
    if values["peft_type"] not in KINDS:
        raise UsageError(
            f"adapter is of the kind {values['peft_type'][:40]!r}",
            where=str(path),
            expected="LORA or PREFIX_TUNING",
            todo="merge it with PEFT, then use the merged folder",
        )
    return values


def plain_lora(values: dict[str, Any], path: Path) -> AdapterSettings:
    """The settings of a plain LoRA; every variant that would compute something else is refused by name."""
    for key, value in values.items():
        if value and (key in VARIANTS or key not in HARMLESS):
            what = VARIANTS.get(key, f"a setting that Mickle does not know, {key[:60]!r}")
            raise UsageError(f"adapter uses {what}", where=str(path), todo="merge it with PEFT, then use that folder")
    if values.get("bias", "none") != "none":
        raise UsageError(f"adapter trains biases (bias {str(values['bias'])[:20]!r})", where=str(path), expected="none")
    start = values.get("init_lora_weights", True)
    if not any(start is one or (isinstance(one, str) and start == one) for one in STARTS):
        raise UsageError(
            f"adapter began with {str(start)[:40]!r}, which changes the base model",
            where=str(path),
            todo="convert it to a plain LoRA with PEFT (path_initial_model_for_weight_conversion)",
        )
    targets, rslora = values.get("target_modules"), values.get("use_rslora", False)
    dropout = values.get("lora_dropout", 0.0)
    share = type(dropout) in (int, float) and 0 <= dropout < 1
    whole: Any = values.get("modules_to_save") or []
    tokens: Any = values.get("trainable_token_indices") or {}
    tokens = {"": tokens} if isinstance(tokens, list) else tokens
    return AdapterSettings(
        rank=_count(values.get("r"), "r", path),
        alpha=_number(values.get("lora_alpha"), "lora_alpha", path),
        dropout=float(_checked(dropout, "lora_dropout", path, "at least 0, below 1", share)),
        rslora=_checked(rslora, "use_rslora", path, "true or false", isinstance(rslora, bool)),
        rank_pattern={k: _count(v, "rank_pattern", path) for k, v in _patterns(values, "rank_pattern", path).items()},
        alpha_pattern={
            k: _number(v, "alpha_pattern", path) for k, v in _patterns(values, "alpha_pattern", path).items()
        },
        targets=[str(target) for target in targets] if isinstance(targets, list) else None,
        some_left_out=any(values.get(key) not in (None, []) for key in ("exclude_modules", "layers_to_transform")),
        whole=_checked(whole, "modules_to_save", path, "a list of names", _holds(whole, list, str)),
        tokens=_checked(tokens, "trainable_token_indices", path, "lists of tokens", _are_tokens(tokens)),
    )


def _holds(values: Any, kind: type, item: type) -> bool:
    found: Any = values if isinstance(values, kind) else None
    return found is not None and all(type(value) is item for value in found)


def _are_tokens(tokens: Any) -> bool:
    """Whether a table has lists of different tokens by names."""
    lists: list[Any] = [*tokens.values()] if _holds(tokens, dict, str) else [None]
    return all(_holds(some, list, int) and len(set(some)) == len(some) > 0 for some in lists)


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
    note = {"weights": weights_digest(base), "quantization": dict(quantization or {}) or None}
    storage.write_json(folder / BASE, note)
    write_tokenizer(tokenizer, folder)
    storage.write_json(folder / ADAPTER, settings)


def adapter_base(folder: Path) -> Path:
    """The folder of the model that an adapter belongs to: where it says, or, of one of ours, near the adapter: both may
    have been moved together.

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
    for place in _nearby(folder, written) if note else []:
        if (place / folder_check.CONFIG).is_file() and weights_digest(place) == note["weights"]:
            return place
    raise UsageError(
        f"the base model of this adapter is not at {str(named)[:200]!r}"
        if named
        else "this adapter names no base model",
        where=str(folder / ADAPTER),
        todo="put the base's folder there, or give it: open_adapter(folder, base=...), on the command line base_folder",
    )


def _nearby(folder: Path, written: list[Path]) -> list[Path]:
    """Places that end as the written path does, under the folders above the adapter, the nearest first."""
    return [
        above.joinpath(*path.parts[-count:])
        for above in folder.resolve().parents[:PARENTS]
        for path in written
        for count in range(1, min(PARENTS, len(path.parts) - 1) + 1)
    ]


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
    kinds: dict[str, Any] = {"path": (str, type(None)), "weights": str, "quantization": (dict, type(None))}
    if not isinstance(note, dict) or not all(isinstance(note.get(key), kind) for key, kind in kinds.items()):
        raise UsageError("this file does not say what the adapter's base is", where=str(path))
    for key, value in (note["quantization"] or {}).items():
        if type(value) is not HOW.get(key) or (key == "skip" and not all(isinstance(end, str) for end in value)):
            raise UsageError(
                f"the base was put into few bits in a way that is not known: {key[:40]!r} {str(value)[:40]!r}",
                where=str(path),
                expected=", ".join(HOW),
            )
    return note


def _patterns(values: dict[str, Any], key: str, path: Path) -> dict[str, Any]:
    """A table by regular expressions, each short and without what makes matching take for ever."""
    table = values.get(key) or {}
    if not isinstance(table, dict) or len(table) > MOST_PATTERNS:
        raise UsageError(f"{key} is no table of at most {MOST_PATTERNS:,} layers", where=str(path))
    for pattern in table:
        repeats = len(re.findall(r"[*+{]", pattern))
        if len(pattern) > 1000 or repeats > 4 or re.search(r"\)[*+{]", pattern):
            raise UsageError(
                f"{key} holds a pattern that could take too long to match: {pattern[:60]!r}",
                where=str(path),
                expected="layer names, or patterns with at most 4 repeats, none of a group",
            )
    return table


def _count(value: Any, key: str, path: Path) -> int:
    return _checked(value, key, path, "a whole number, at least 1", type(value) is int and 1 <= value <= 1 << 16)


def _number(value: Any, key: str, path: Path) -> float:
    return _checked(value, key, path, "a number", type(value) in (int, float) and abs(value) < 1e9)


def _checked(value: Any, key: str, path: Path, expected: str, fine: bool) -> Any:
    if not fine:
        raise UsageError(f"{key} is {str(value)[:40]}", where=str(path), expected=expected)
    return value
