"""Open and save model folders: ours, Llama's, and those of every other language model in `transformers`.

A decoder with rotary positions is written as a plain Llama folder (with none in some layers or all: as
SmolLM3; with experts: as Mixtral), which transformers, vLLM and llama.cpp's converter read; an encoder with rotary
positions as a plain EuroBERT folder. Other decoders are written with their own model type
(`models/transformers_bridge.py`). Only safetensors are read or written, nothing is fetched, and no
folder's code is run (`models/folder_check.py`).
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mickle import storage
from mickle.errors import UsageError
from mickle.models import architectures, folder_check
from mickle.models.decoder import Decoder
from mickle.models.safetensors_check import refuse_not_finite
from mickle.models.shape import DecoderConfig
from mickle.quantization.layer import QuantizedLinear

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ADAPTER = "adapter_config.json"  # what makes a folder an adapter's


def open_model(path: Path, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> nn.Module:
    """The model of a folder, in evaluation mode: a `Decoder` where ours can compute it, else a
    `WrappedModel`.

    Both take `model(input_ids, documents=, cache=, head=)`. `dtype` None keeps the dtype of the files.
    Raises UsageError for a folder that is not whole, not safe or not a language model, and NumericError for
    weights that are not finite; both name the file or tensor.
    """
    if (Path(path) / ADAPTER).exists():
        from mickle.models.adapters import open_adapter

        return open_adapter(Path(path), dtype=dtype, device=device)
    files = folder_check.inspect_folder(Path(path))
    if "quantization_config" in files.config:
        from mickle.models.quantized import open_quantized

        return open_quantized(files, dtype=dtype, device=device)
    shape = decoder_shape(files.config, files.folder)
    if shape is not None:
        refuse_misfit(shape, files)
    tensors = _read_tensors(files)
    if shape is None:
        from mickle.models.transformers_bridge import open_wrapped

        return open_wrapped(files, tensors).to(device=device, dtype=dtype).eval()
    with torch.device("meta"):
        model = Decoder(shape)
    names = _folder_tensors(shape)
    model.load_state_dict({name: tensors[there] for name, (there, _) in names.items()}, assign=True)
    return model.to(device=device, dtype=dtype).eval()


def model_config(path: Path) -> DecoderConfig | dict[str, Any]:
    """The shape of a folder's decoder, or the plain `config.json` of any other model. Reads no weights."""
    path = Path(path)
    if not path.is_dir():
        raise UsageError(f"no such model folder: {path}", todo="check the path")
    config = folder_check.read_config(path)
    return decoder_shape(config, path) or config


def open_tokenizer(path: Path) -> "Tokenizer":
    """The tokenizer of a folder, its file checked first."""
    from tokenizers import Tokenizer

    file = folder_check.check_tokenizer(Path(path))
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises bare Exception for whatever is wrong
        raise UsageError(f"tokenizer cannot be read: {str(error)[:200]}", where=str(file)) from error


def end_tokens(path: Path) -> list[int]:
    """The token ids that end a text, as `generation_config.json` has them; none where it does not say."""
    if not (Path(path) / "generation_config.json").exists():
        return []
    file = folder_check.regular_file(Path(path), "generation_config.json")
    values = storage.read_json(file, folder_check.LARGEST_CONFIG)
    ids = values.get("eos_token_id") if isinstance(values, dict) else None
    return [token for token in (ids if isinstance(ids, list) else [ids]) if type(token) is int]


def save_model(model: nn.Module, folder: Path, tokenizer: Any = None) -> None:
    """Write `config.json`, `model.safetensors`, `generation_config.json` and the tokenizer's files into
    `folder`.

    `tokenizer` has `save(folder)`, `start`, `end` and `mask` (`data/tokenizer.py`), or is a plain
    `tokenizers.Tokenizer`. The folder is made if need be; the caller seals it. Layers in few bits are written as they
    are stored. Raises NumericError where a weight is not finite, UsageError for a model with adapters.
    """
    if any(isinstance(module, QuantizedLinear) for module in model.modules()):
        from mickle.models.quantized import save_quantized

        save_quantized(model, folder, tokenizer)
    else:
        save_dense(model, folder, tokenizer)


def save_dense(model: nn.Module, folder: Path, tokenizer: Any = None) -> None:
    """As `save_model`, all but the weights of layers in few bits, which are no parameters."""
    if any(name.endswith(".lora_A") for name, _ in model.named_parameters()):
        raise UsageError(
            "the model has adapters", todo="save them with save_adapter, or merge them with merge_lora first"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(model, Decoder):
        _save_decoder(model, folder, {"bos_token_id": "start", "eos_token_id": "end"}, tokenizer)
    else:
        refuse_not_finite(dict(model.named_parameters()), folder)
        model.model.save_pretrained(folder)
    if tokenizer is not None and hasattr(tokenizer, "start"):
        tokenizer.save(folder)
    elif tokenizer is not None:
        storage.write_text(folder / folder_check.TOKENIZER, tokenizer.to_str(pretty=True))
        storage.write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})


def untrained(model: nn.Module, seed: int) -> nn.Module:
    """A model of the same shape with fresh weights that depend on `seed` alone, in evaluation mode."""
    if isinstance(model, Decoder):
        return Decoder(model.config, seed=seed).eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return type(model)(type(model.model)(model.config)).eval()


def _save_decoder(model: Decoder, folder: Path, marks: dict[str, str], tokenizer: Any) -> None:
    """Weights first, settings last."""
    tensors = {architectures.folder_name(model.config, name): tensor for name, tensor in model.state_dict().items()}
    refuse_not_finite(tensors, folder)
    storage.save_tensors(folder / folder_check.WEIGHTS, tensors, {"format": "pt"})
    ids = {key: getattr(tokenizer, attribute, None) for key, attribute in marks.items()}
    storage.write_json(folder / "generation_config.json", {k: v for k, v in ids.items() if v is not None})
    settings = architectures.to_settings(model.config)
    mask = getattr(tokenizer, "mask", None)
    if mask is not None:
        ids["mask_token_id"] = mask
    dtype = str(model.embed_tokens.weight.dtype).removeprefix("torch.")
    storage.write_json(folder / folder_check.CONFIG, {**settings, **ids, "dtype": dtype})


def decoder_shape(config: dict[str, Any], folder: Path) -> DecoderConfig | None:
    """The decoder that a `config.json` describes, or None where it is not one of ours."""
    where = str(folder / folder_check.CONFIG)
    try:
        return architectures.from_settings(config)
    except UsageError as error:
        raise UsageError(error.what, where=where, expected=error.expected, todo=error.todo) from None
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UsageError(f"config holds values of a wrong kind: {error}", where=where) from None


def _folder_tensors(config: DecoderConfig) -> dict[str, tuple[str, tuple[int, ...]]]:
    """For each weight of a decoder, its name in the folder and its shape."""
    with torch.device("meta"):
        weights = Decoder(config).state_dict()
    return {name: (architectures.folder_name(config, name), tuple(weight.shape)) for name, weight in weights.items()}


def refuse_misfit(config: DecoderConfig, files: folder_check.ModelFiles) -> None:
    """Every weight the decoder needs must be in the files with its shape, and nothing else, before memory is
    taken.
    """
    where = str(files.folder)
    if config.parameters() > 2 * files.elements:
        raise UsageError(
            f"config describes {config.parameters():,} parameters, the weight files hold {files.elements:,}",
            where=where,
        )
    if config.layers * config.experts > len(files.tensors):  # before that many modules are made
        raise UsageError(
            f"config describes {config.layers * config.experts:,} experts in all, the weights hold "
            f"{len(files.tensors):,} tensors",
            where=where,
        )
    wanted = dict(_folder_tensors(config).values())
    extra = files.tensors.keys() - wanted.keys() - _ignored(config)
    missing = sorted(wanted.keys() - files.tensors.keys())
    if missing or extra:
        name = missing[0] if missing else sorted(extra)[0]
        raise UsageError(f"weights {'lack' if missing else 'have an unknown'} tensor {name[:100]!r}", where=where)
    for name, shape in wanted.items():
        found = files.tensors[name][1]
        if found.shape != shape or found.dtype not in ("F32", "F16", "BF16", "F64"):
            raise UsageError(
                f"tensor {name!r} is {found.dtype} of shape {list(found.shape)}",
                where=where,
                expected=f"floats of {list(shape)}",
            )


def _ignored(config: DecoderConfig) -> set[str]:
    """Tensors older folders carry beside the weights: a tied head's copy and rotary frequencies."""
    frequencies = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq" for layer in range(config.layers)}
    return frequencies | ({"lm_head.weight"} if config.tied else set())


def _read_tensors(files: folder_check.ModelFiles) -> dict[str, Tensor]:
    """All tensors of a checked folder; refused where one is not finite."""
    tensors: dict[str, Tensor] = {}
    for path in sorted({path for path, _ in files.tensors.values()}):
        tensors |= storage.load_tensors(path)
    refuse_not_finite(tensors, files.folder)
    return tensors
