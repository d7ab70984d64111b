"""A model as one GGUF file (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), written and read back.

Names are those of llama.cpp's architecture for the family (`exporting/gguf_families.py` says what it is told), types
of numbers as `exporting/gguf_quants.py` chooses. A tied output matrix is left out: readers take the embedding for it.
Norms and biases stay in float32. The file is made by the package `gguf`, which llama.cpp's own converter uses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from mickle.errors import UsageError
from mickle.exporting.gguf_families import Told, as_told, family_of, told
from mickle.exporting.gguf_quants import quantize, type_of
from mickle.exporting.source import Source, chat_template, end_marks
from mickle.models.architectures import checked_frame
from mickle.models.folder import open_tokenizer
from mickle.models.folder_check import SETTINGS, ModelFiles, read_config
from mickle.models.gguf_check import gguf_package, read_gguf_header
from mickle.models.gguf_folder import read_weights, read_words
from mickle.models.gguf_tokens import DEFAULT, MARKS, SENTENCEPIECE, UNKNOWN, Vocabulary, read_vocabulary, vocabulary_in
from mickle.models.language import LanguageModel
from mickle.models.safetensors_check import TensorEntry
from mickle.storage import check_space

FILE = "model.gguf"
TABLE, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"
EVEN = {1: (256,), 2: (256, 256)}  # a shape that every type can store
# Texts in which ways of cutting differ: numbers, contractions, spaces at ends, other scripts and numerals.
AWKWARD = (
    "It's 12345 o'clock,  isn't it?\r\n\r\n\tYES  ",
    "x=3.14e-10; y[0]='a' ... #!/usr/bin/env\n\n\n",
    "naïve Ⅷ ½ ٣٤ 数字123 été 🙂🙂  <|endoftext|>",
)


def settings_of(folder: Path) -> dict[str, Any]:
    """The settings of a folder's model, those that it leaves to its family included."""
    from mickle.models.transformers_bridge import full_settings

    config = {name: value for name, value in read_config(folder).items() if name != SETTINGS}
    family_of(config["model_type"])  # first: transformers may not know it
    return full_settings(config, str(folder))


def refuse_other_models(folder: Path) -> None:
    """UsageError where llama.cpp does not compute a folder's model, or the package is missing. Reads no weights."""
    gguf_package("format")
    try:
        told(settings_of(folder))
    except UsageError as error:
        where = ", ".join(part for part in (str(folder), error.where) if part)
        raise UsageError(error.what, where=where, expected=error.expected, todo=error.todo) from None


def write_gguf(model: LanguageModel, source: Source, work: Path, kind: str) -> list[str]:
    """Write `model`, plain and of a known family, as `work`/model.gguf; returns what a user should know of the file."""
    gguf, home = gguf_package(), source.tokenizer_home
    if home is None:
        raise UsageError("a GGUF file holds its tokenizer, and this folder has none", where=str(source.folder))
    marks = end_marks(source, model.vocab_size)
    words = replace(read_vocabulary(home, model.vocab_size, marks), template=chat_template(source))
    weights = {model.folder_name(name): weight for name, weight in model.state_dict().items()}
    tied = OUTPUT not in weights or weights[OUTPUT].data_ptr() == weights[TABLE].data_ptr()
    if tied:
        weights.pop(OUTPUT, None)
    settings = {**settings_of(source.base), "tie_word_embeddings": tied}
    said = told(settings)
    check_space(work, 4 * sum(weight.numel() for weight in weights.values()))
    writer = gguf.GGUFWriter(work / FILE, said.family.architecture)
    add_values(writer, said)
    writer.add_file_type(gguf.LlamaFileType[f"ALL_{kind}" if kind == "F32" else f"MOSTLY_{kind}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_vocabulary(writer, words)
    notes = add_weights(writer, weights, settings, said, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return [note for note in (words.note, said.note, *notes) if note]


def add_values(writer: Any, said: Told) -> None:
    """Sizes, positions and windows under the architecture's name."""
    for name, value in said.values.items():
        add = {float: writer.add_float32, int: writer.add_uint32, str: writer.add_string}[type(value)]
        add(f"{said.family.architecture}.{name}", value)


def add_weights(writer: Any, weights: dict[str, Tensor], settings: dict[str, Any], said: Told, kind: str) -> list[str]:
    """All tensors; sentences on those that are stored in another type than they would be, for their rows."""
    gguf, layers, tied = gguf_package(), settings["num_hidden_layers"], OUTPUT not in weights
    for name, factors in said.tensors.items():
        writer.add_tensor(name, factors.numpy())
    names, other = file_names(said.family.architecture, layers, weights), Counter[tuple[str, int]]()
    for name, weight in weights.items():
        data = as_told(said.family, name, weight.float(), settings).contiguous().cpu().numpy()
        stored, wanted = (type_of(names[name], shape, kind, layers, tied) for shape in (data.shape, EVEN[data.ndim]))
        if stored != wanted:
            block, _ = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[wanted]]
            other[stored, block] += 1
        writer.add_tensor(names[name], quantize(data, stored), raw_dtype=gguf.GGMLQuantizationType[stored])
    return [
        f"{count} matrices {'stay in' if stored == 'F16' else 'are'} {stored}: their rows are no multiple of {block}"
        for (stored, block), count in other.items()
    ]


def add_vocabulary(writer: Any, words: Vocabulary) -> None:
    """Tokens, merges or scores, marks and the chat template."""
    writer.add_tokenizer_model(words.kind)
    writer.add_tokenizer_pre(words.pre)
    writer.add_token_list(words.tokens)
    writer.add_token_types(words.kinds)
    if words.kind == SENTENCEPIECE:
        writer.add_token_scores(words.scores)
        writer.add_unk_token_id(words.kinds.index(UNKNOWN))
    else:
        writer.add_token_merges(words.merges)
    for name, long in MARKS.items():
        if name in words.marks:
            writer.add_uint32(f"tokenizer.ggml.{long}_token_id", words.marks[name])
    writer.add_add_bos_token(words.begins)
    writer.add_add_eos_token(words.ends)
    writer.add_add_space_prefix(words.prefix)
    if words.template:
        writer.add_chat_template(words.template)


def file_names(architecture: str, layers: int, names: Iterable[str]) -> dict[str, str]:
    """What a GGUF file calls each of a folder's weights: "model.layers.3.self_attn.q_proj.weight" is
    "blk.3.attn_q.weight". UsageError for one that has no name there.
    """
    gguf = gguf_package()
    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    table = gguf.get_tensor_name_map(kind, layers)
    found = {name: table.get_name(name, (".weight", ".bias")) for name in names}
    nameless = [name for name, theirs in found.items() if theirs is None]
    if nameless:
        raise UsageError(f"llama.cpp has no place for the weight {nameless[0][:120]!r} in a {architecture}")
    return found


def open_gguf(folder: Path) -> LanguageModel:
    """The model that transformers' reader finds in a folder's file, in float32 and evaluation mode."""
    file = folder / FILE
    config, tensors = read_weights(file, read_gguf_header(file))
    entries = {
        name: (file, TensorEntry("F32", tuple(tensor.shape), 0, 4 * tensor.numel())) for name, tensor in tensors.items()
    }
    files = ModelFiles(folder, config, entries)
    model: LanguageModel | None = checked_frame(files)
    if model is None:
        from mickle.models.transformers_bridge import open_wrapped

        return open_wrapped(files, tensors).eval()
    model.load_state_dict({name: tensors[model.folder_name(name)] for name in model.state_dict()}, assign=True)
    return model.eval()


def refuse_other_vocabulary(source: Source, folder: Path, prompts: Sequence[str]) -> None:
    """The file's vocabulary, read as its name for the cutting says, must give the source's tokens; its marks and chat
    template must be the source's.
    """
    assert source.tokenizer_home is not None  # the file could not have been written
    header = read_gguf_header(folder / FILE)
    words, before = vocabulary_in(header.metadata, str(folder / FILE)), open_tokenizer(source.tokenizer_home)
    if words.template != chat_template(source):
        raise UsageError("the file holds another chat template", where=str(folder))
    marks = end_marks(source, len(words.tokens))
    if words.marks != marks:
        raise UsageError(f"the file's marks are the tokens {words.marks}", where=str(folder), expected=str(marks))
    if words.pre == DEFAULT and words.kind != SENTENCEPIECE:
        return  # no reader's way is known; the user is told
    after = read_words(folder / FILE, header)[1]
    for text in (*prompts, *AWKWARD):
        one, other = (t.encode(text, add_special_tokens=False).ids for t in (before, after))
        if one != other:
            raise UsageError(
                f"a reader of the file would cut a text differently under {words.pre!r}", where=f"text {text[:60]!r}"
            )
