"""A Llama as one GGUF file (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), written and read back.

Names and metadata are those of the architecture "llama" there. Its rotary positions turn neighbouring pairs of a head's
numbers where Llama's folders turn the first half against the second, so the rows of the query and key matrices are
put in that order, pair by pair. A tied output matrix is left out: readers take the embedding for it.

The file and the quantized types are made by the package `gguf`, which llama.cpp's own converter uses. Norms stay in
float32. In Q4_0 the embedding and the output matrix are Q8_0; a matrix whose rows are no multiple of 32 is F16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mickle.errors import UsageError
from mickle.exporting.source import Source, chat_template, end_marks
from mickle.models.decoder import Decoder
from mickle.models.decoder_folder import from_settings
from mickle.models.folder import describe, open_tokenizer
from mickle.models.gguf_check import gguf_package, read_gguf_header
from mickle.models.gguf_folder import read_weights
from mickle.models.gguf_tokens import DEFAULT, MARKS, Vocabulary, read_vocabulary, rebuilt, vocabulary_in
from mickle.models.shape import DecoderConfig
from mickle.storage import check_space

FILE = "model.gguf"
BLOCK = 32  # numbers that share a scale in Q8_0 and Q4_0
SHAPE = {  # llama.cpp's -> ours
    "vocab_size": "vocab_size",
    "context_length": "max_length",
    "embedding_length": "width",
    "block_count": "layers",
    "feed_forward_length": "ffn_width",
    "attention.head_count": "heads",
    "attention.head_count_kv": "kv_heads",
    "attention.key_length": "head_width",
    "attention.value_length": "head_width",
    "rope.dimension_count": "head_width",
    "rope.freq_base": "rope_theta",
    "attention.layer_norm_rms_epsilon": "norm_eps",
}
FRACTIONS = ("rope_theta", "norm_eps")
# Texts in which ways of cutting differ: numbers, contractions, spaces at ends, other scripts and numerals.
AWKWARD = (
    "It's 12345 o'clock,  isn't it?\r\n\r\n\tYES  ",
    "x=3.14e-10; y[0]='a' ... #!/usr/bin/env\n\n\n",
    "naïve Ⅷ ½ ٣٤ 数字123 été 🙂🙂  <|endoftext|>",
)


def refuse_other_models(folder: Path) -> None:
    """UsageError where a folder is no plain Llama, or the package is missing. Reads no weights."""
    gguf_package("format")
    model = describe(folder)
    if model.model_type != "llama" or not model.ours:
        more = "" if model.model_type != "llama" else " with more than our decoder does (biases, scaled positions)"
        raise UsageError(
            f"GGUF is written of plain Llama models; this is a {model.model_type[:60]}{more}",
            where=str(folder),
            todo="export with --format huggingface and use llama.cpp's own converter on that folder",
        )


def write_gguf(model: Decoder, source: Source, work: Path, kind: str) -> list[str]:
    """Write `model`, a plain Llama, as `work`/model.gguf; returns what a user should know of the file."""
    gguf, home = gguf_package(), source.tokenizer_home
    if home is None:
        raise UsageError("a GGUF file holds its tokenizer, and this folder has none", where=str(source.folder))
    marks = end_marks(source, model.vocab_size)
    words = replace(read_vocabulary(home, model.vocab_size, marks), template=chat_template(source))
    check_space(work, 4 * sum(p.numel() for p in model.parameters()))
    writer = gguf.GGUFWriter(work / FILE, "llama")
    add_shape(writer, model.config)
    writer.add_file_type(gguf.LlamaFileType[f"ALL_{kind}" if kind == "F32" else f"MOSTLY_{kind}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_vocabulary(writer, words)
    uneven, names = [], file_names(model)
    for name, tensor in model.state_dict().items():
        target = type_of(name, tensor, kind)
        if tensor.dim() > 1 and target == "F16" and kind in ("Q8_0", "Q4_0"):
            uneven.append(name)
        data = as_read(name, tensor.float(), model.config).contiguous().cpu().numpy()
        number = gguf.GGMLQuantizationType[target]
        writer.add_tensor(names[name], gguf.quants.quantize(data, number), raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return [
        *([words.note] if words.note else []),
        *([f"{len(uneven)} matrices stay in F16: their rows are no multiple of {BLOCK}"] if uneven else []),
    ]


def add_shape(writer: Any, config: DecoderConfig) -> None:
    """The sizes of the model as llama.cpp's architecture "llama" names them."""
    for theirs, ours in SHAPE.items():
        add = writer.add_float32 if ours in FRACTIONS else writer.add_uint32
        add(f"llama.{theirs}", getattr(config, ours))


def add_vocabulary(writer: Any, words: Vocabulary) -> None:
    """Tokens, merges, marks and the chat template."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(words.pre)
    writer.add_token_list(words.tokens)
    writer.add_token_types(words.kinds)
    writer.add_token_merges(words.merges)
    for name, long in MARKS.items():
        if name in words.marks:
            writer.add_uint32(f"tokenizer.ggml.{long}_token_id", words.marks[name])
    writer.add_add_bos_token(words.begins)
    writer.add_add_eos_token(words.ends)
    writer.add_add_space_prefix(False)
    if words.template:
        writer.add_chat_template(words.template)


def type_of(name: str, tensor: torch.Tensor, kind: str) -> str:
    """The type in which a weight of ours is stored in a file of type `kind`."""
    if tensor.dim() == 1:
        return "F32"
    if kind not in ("Q8_0", "Q4_0"):
        return kind
    if tensor.shape[-1] % BLOCK:
        return "F16"
    return "Q8_0" if name.startswith(("embed_tokens", "lm_head")) else kind


def file_names(model: Decoder) -> dict[str, str]:
    """What a GGUF file calls each of our weights: "layers.3.self_attn.q_proj.weight" is "blk.3.attn_q.weight"."""
    gguf = gguf_package()
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, model.config.layers)
    return {name: table.get_name(model.folder_name(name), (".weight",)) for name in model.state_dict()}


def as_read(name: str, tensor: torch.Tensor, config: DecoderConfig) -> torch.Tensor:
    """A weight with its rows in llama.cpp's order. [heads * width, D] or any other.

    Inside a head the rows are 0, n/2, 1, n/2 + 1, ...
    """
    heads = {"q_proj": config.heads, "k_proj": config.kv_heads}.get(name.split(".")[-2])
    if heads is None:
        return tensor
    return tensor.reshape(heads, 2, config.head_width // 2, -1).transpose(1, 2).reshape(tensor.shape)


def open_gguf(folder: Path) -> Decoder:
    """The decoder that transformers' reader finds in a folder's file, in float32 and evaluation mode."""
    settings, tensors = read_weights(folder / FILE, read_gguf_header(folder / FILE))
    shape = from_settings(settings)
    assert shape is not None  # the file was written of a plain Llama
    with torch.device("meta"):
        model = Decoder(shape)
    model.load_state_dict({name: tensors[model.folder_name(name)] for name in model.state_dict()}, assign=True)
    return model.eval()


def read_back(folder: Path) -> Vocabulary:
    """The vocabulary that a folder's file holds."""
    return vocabulary_in(read_gguf_header(folder / FILE).metadata, str(folder / FILE))


def refuse_other_vocabulary(source: Source, folder: Path, prompts: Sequence[str]) -> None:
    """The file's vocabulary, read as its name for the cutting says, must give the source's tokens; its marks and chat
    template must be the source's.
    """
    assert source.tokenizer_home is not None  # the file could not have been written
    words, before = read_back(folder), open_tokenizer(source.tokenizer_home)
    if words.template != chat_template(source):
        raise UsageError("the file holds another chat template", where=str(folder))
    marks = end_marks(source, len(words.tokens))
    if words.marks != marks:
        raise UsageError(f"the file's marks are the tokens {words.marks}", where=str(folder), expected=str(marks))
    if words.pre == DEFAULT:
        return  # no reader's way is known; the user is told
    after = rebuilt(words)
    for text in (*prompts, *AWKWARD):
        one, other = (t.encode(text, add_special_tokens=False).ids for t in (before, after))
        if one != other:
            raise UsageError(
                f"a reader of the file would cut a text differently under {words.pre!r}", where=f"text {text[:60]!r}"
            )
