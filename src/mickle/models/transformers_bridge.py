"""Our decoder inside `transformers`, for the position schemes that no architecture there has.

    from mickle.models import transformers_bridge
    transformers_bridge.register()
    model = AutoModelForCausalLM.from_pretrained(folder)

Only folders with model_type "mickle_decoder" need this; with rotary positions, or none, a saved folder is a
plain Llama or SmolLM3. This module imports transformers, which takes seconds: it is imported where it is
needed and nowhere else.
"""

import contextlib
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

# Read by huggingface_hub at import: nothing here may reach the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    GenerationConfig,
    GenerationMixin,
    PreTrainedModel,
)
from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer
from transformers.modeling_gguf_pytorch_utils import (
    GGUF_SUPPORTED_ARCHITECTURES,
    GGUF_TO_TRANSFORMERS_MAPPING,
    TENSOR_PROCESSORS,
    load_gguf_checkpoint,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from mickle.errors import MickleError, UsageError
from mickle.models.decoder import Decoder
from mickle.models.decoder_folder import MODEL_TYPE, from_settings
from mickle.models.folder_check import CONFIG, ModelFiles, read_config
from mickle.models.language import fills_masks
from mickle.models.shape import DecoderConfig
from mickle.models.wrapped import WrappedModel


class MickleDecoderConfig(transformers.PretrainedConfig):
    """The settings of one of our decoders, as a `transformers` configuration."""

    model_type = MODEL_TYPE
    attribute_map = {
        "hidden_size": "width",
        "num_hidden_layers": "layers",
        "num_attention_heads": "heads",
        "num_key_value_heads": "kv_heads",
    }

    def __init__(self, **values: Any) -> None:
        super().__init__(**{"tie_word_embeddings": False, **values})

    def shape(self) -> DecoderConfig:
        """The decoder these settings describe."""
        shape = from_settings({**vars(self), "model_type": MODEL_TYPE})
        assert shape is not None  # our own type always has one
        return shape


class MickleDecoderForCausalLM(PreTrainedModel, GenerationMixin):
    """A `Decoder` with the call of `transformers`; `generate` reads the whole text anew for each token."""

    config_class = MickleDecoderConfig
    base_model_prefix = "model"

    def __init__(self, config: MickleDecoderConfig) -> None:
        super().__init__(config)
        self.model = Decoder(config.shape())
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """The decoder has given itself fresh weights already."""

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **_: Any
    ) -> CausalLMOutputWithPast:
        """input_ids, attention_mask (1 text, 0 padding), labels [B, T] -> logits [B, T, V]; with labels the loss."""
        documents = None if attention_mask is None else torch.where(attention_mask > 0, 0, -1)
        scores = self.model(input_ids, documents=documents)
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(scores[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(loss=loss, logits=scores)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any
    ) -> dict[str, Any]:
        """No cache: every step gets the whole text."""
        return {"input_ids": input_ids, "attention_mask": attention_mask}


def register() -> None:
    """Make AutoConfig and AutoModelForCausalLM know our decoder. Doing it twice does nothing."""
    AutoConfig.register(MODEL_TYPE, MickleDecoderConfig, exist_ok=True)
    AutoModelForCausalLM.register(MickleDecoderConfig, MickleDecoderForCausalLM, exist_ok=True)


def open_wrapped(files: ModelFiles, tensors: dict[str, Tensor]) -> WrappedModel:
    """The transformers model of a checked folder, built from its settings and these tensors alone.

    transformers sees neither the folder nor a name to look up, so it can load nothing else.
    """
    where = str(files.folder / CONFIG)
    with _quiet(where):
        model_class, config = _model_class(files.config, where)
        # Counted in an empty frame, where tied weights count twice, before memory is taken.
        claimed = sum(parameter.numel() for parameter in empty_frame(files).parameters())
        if claimed > 4 * files.elements + 10**6:
            what = f"config describes {claimed:,} parameters, the weight files hold {files.elements:,}"
            raise UsageError(what, where=where)
        model, info = model_class.from_pretrained(
            None, config=config, state_dict=tensors, output_loading_info=True, local_files_only=True
        )
    lacked = sorted(map(str, info["missing_keys"]))
    if lacked and not any(name.startswith(f"{model.base_model_prefix}.") for name in lacked):
        raise UsageError(
            f"these weights have no head that predicts tokens: {lacked[0][:120]!r} is missing",
            where=where,
            expected=" or ".join(_language_models(config)),
            todo="take the folder of the whole language model",
        )
    for problem in ("missing_keys", "mismatched_keys"):
        if info[problem]:
            name = str(sorted(info[problem], key=str)[0])[:120]
            raise UsageError(f"weights do not fit the config: {problem.replace('_', ' ')}, {name!r} first", where=where)
    return WrappedModel(model)


@dataclass(frozen=True)
class Read:
    """What transformers makes of a folder: the logits [T, V] of texts, and what it writes after each of them, up to a
    token of ``ends``.
    """

    logits: list[Tensor]
    written: list[list[int]]
    ends: list[int]


@torch.no_grad()
def read_by_transformers(folder: Path, texts: Sequence[Sequence[int]], tokens: int) -> Read:
    """A checked folder as it stands, opened by transformers' own `from_pretrained` in float32 and run on texts (token
    ids); causal models then write ``tokens`` greedy tokens at most by `generate`. UsageError where it cannot be opened.
    """
    masked = fills_masks(read_config(folder).get("architectures"))
    auto = AutoModelForMaskedLM if masked else AutoModelForCausalLM
    with _quiet(str(folder)):
        model = auto.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, use_safetensors=True, trust_remote_code=False
        ).eval()
        rows = [torch.tensor([list(text)]) for text in texts]
        logits = [model(input_ids=row).logits[0] for row in rows]
        named = getattr(model.generation_config, "eos_token_id", None)
        if masked or not model.can_generate():
            return Read(logits, [[] for _ in texts], [])
        # Of the folder's own settings the ends alone: others may sample, punish repetitions, or take all memory.
        model.generation_config = GenerationConfig(eos_token_id=named, pad_token_id=0)
        written = []
        for row in rows:  # with its mask: left to itself, `generate` takes a token 0 of a text for padding
            output = model.generate(row, attention_mask=torch.ones_like(row), max_new_tokens=tokens, do_sample=False)
            written.append(output[0, row.shape[1] :].tolist())
    ends = [] if named is None else named if isinstance(named, list) else [named]
    return Read(logits, written, ends)


def vocabulary_by_transformers(folder: Path) -> dict[str, int]:
    """Tokens and ids as transformers' tokenizer has them, which adds the marks that any of its files name. UsageError
    where it cannot be opened.
    """
    with _quiet(str(folder)):
        found = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False).get_vocab()
    return dict(found)


def read_gguf(
    file: Path, settled: Callable[[dict[str, Any]], dict[str, Any]]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The `config.json` and the weights, in float32, that transformers' reader makes of a checked GGUF file.

    settled: makes the reader's settings those that a model is made of.
    """
    where = str(file)
    if "smollm3" not in TENSOR_PROCESSORS:  # a Llama in all that its reader asks, which does not know it
        GGUF_SUPPORTED_ARCHITECTURES.append("smollm3")
        GGUF_TO_TRANSFORMERS_MAPPING["config"]["smollm3"] = GGUF_TO_TRANSFORMERS_MAPPING["config"]["llama"]
        TENSOR_PROCESSORS["smollm3"] = TENSOR_PROCESSORS["llama"]
    with _quiet(where), contextlib.redirect_stderr(io.StringIO()):  # its bar asks nobody
        settings = settled(load_gguf_checkpoint(where)["config"])
        with torch.device("meta"):
            model_class, config = _model_class(settings, where)
            frame = model_class(config)
        weights = load_gguf_checkpoint(where, return_tensors=True, model_to_load=frame)["tensors"]
        values = json.loads(config.to_json_string(use_diff=False))
    return {**values, "architectures": [model_class.__name__]}, weights


def full_settings(config: dict[str, Any], where: str) -> dict[str, Any]:
    """The settings of a `config.json` with what transformers takes where it says nothing."""
    with _quiet(where):
        values: dict[str, Any] = _model_class(config, where)[1].to_dict()
    return values


def tokenizer_of_gguf(file: Path) -> Tokenizer:
    """The tokenizer that transformers makes of a checked GGUF file."""
    with _quiet(str(file)):
        architecture, values, _ = get_gguf_tokenizer(str(file))
        return convert_gguf_tokenizer(architecture, values)[0]


def empty_frame(files: ModelFiles) -> WrappedModel:
    """The model of a checked folder without memory for its weights: what its layers are called, and their shapes."""
    where = str(files.folder / CONFIG)
    with _quiet(where), torch.device("meta"):
        model_class, config = _model_class(files.config, where)
        return WrappedModel(model_class(config))


def _model_class(values: dict[str, Any], where: str) -> tuple[Any, Any]:
    """The language model that these settings are for, masked or causal, and its configuration."""
    kind = values["model_type"]
    if kind not in transformers.CONFIG_MAPPING:
        raise UsageError(
            f"transformers {transformers.__version__} has no model type {kind[:60]!r}",
            where=where,
            todo="install a transformers that has it, or take another model",
        )
    values = transformers.PretrainedConfig._decode_special_floats(values)  # infinity, as its JSON has it
    config = AutoConfig.for_model(kind, **{name: value for name, value in values.items() if name != "model_type"})
    auto = AutoModelForMaskedLM if fills_masks(values.get("architectures")) else AutoModelForCausalLM
    mapping = auto._model_mapping
    if type(config) not in mapping:
        others = _language_models(config)
        raise UsageError(
            f"{kind} {'does not continue texts' if others else 'is no language model'} in transformers "
            f"{transformers.__version__}",
            where=where,
            expected=" or ".join(others) or "a model that continues texts, or fills in masks",
            todo="take a decoder such as Llama or a masked encoder such as BERT; models such as T5 are neither",
        )
    return mapping[type(config)], config


def _language_models(config: Any) -> list[str]:
    """The classes of transformers with these settings that predict tokens."""
    mappings = [auto._model_mapping for auto in (AutoModelForCausalLM, AutoModelForMaskedLM)]
    return [mapping[type(config)].__name__ for mapping in mappings if type(config) in mapping]


@contextlib.contextmanager
def _quiet(where: str) -> Iterator[None]:
    """No progress bars and reports from transformers: what is wrong with a folder is said in one error."""
    logging = transformers.utils.logging
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    except MickleError:
        raise
    except Exception as error:  # whatever transformers raises for settings or weights that do not fit
        message = " ".join(str(error).split())[:200]
        raise UsageError(f"transformers cannot open this model: {message}", where=where) from error
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
