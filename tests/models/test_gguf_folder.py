"""GGUF files are opened as the models that went into them, with their words; hostile ones are refused before that."""

import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from llama_cpp import Llama, needs_llama_cpp
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from mickle.data.tokenizer import open_text_tokenizer, train_tokenizer
from mickle.errors import UsageError
from mickle.events import ignore
from mickle.exporting.export import Export
from mickle.models.decoder import Decoder, DecoderConfig
from mickle.models.folder import describe, end_tokens, open_model, open_tokenizer, save_model
from mickle.models.gguf_check import read_gguf_header
from mickle.models.gguf_folder import VERSION, plain_folder, read_weights, write_plain
from mickle.models.gguf_tokens import ALIASES, CUTS, LOOSE, rebuilt, vocabulary_in
from mickle.sampling.sample import Sample
from mickle.show import show
from mickle.step import execute
from mickle.training.pretrain import Pretrain

TEXT = "The reader opens 12 files and returns their lines; it's def add(a, b): once upon a time. " * 20
AWKWARD = (
    "It's 12345 o'clock,  isn't it?\r\n\r\n\tYES  ",
    "x=3.14e-10; y[0]='a' ... #!/usr/bin/env\n\n\n",
    "naïve Ⅷ ½ ٣٤ 数字123 été 🙂🙂  ",
    "def f(x):\n    return x**2  # 2026-11-29, 1,000,000.00",
    "   leading\u00a0a\u2003b I'LL we'Ve e\u0301 日本語のテキスト、テスト。",
    "\n\n\n",
)
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `base` with a model, and `out` with the GGUF file that Mickle makes of it, in float16."""
    home = tmp_path_factory.mktemp("gguf")
    words = train_tokenizer([TEXT], 300)
    model = Decoder(DecoderConfig(words.size, 64, 2, 4, 2, 16, 96, 64, initial_std=0.2), seed=3)
    save_model(model.half(), home / "base", words)
    (home / "base" / "chat_template.jinja").write_text(TEMPLATE)
    execute(Export(model=home / "base", format={"kind": "gguf"}), home / "out", ignore)  # type: ignore[arg-type]
    return home


def test_a_file_and_a_folder_with_one_are_the_model_that_went_in(exported: Path, tmp_path: Path) -> None:
    base, file = exported / "base", exported / "out" / "model.gguf"
    with pytest.warns(UserWarning, match="weights in F16 are float16 here; the plain folder is "):
        model = open_model(file)
    ours = open_model(base).state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in model.state_dict().items())
    spread = describe(base).shape.initial_std  # of fresh weights: no file says it
    assert replace(describe(exported / "out").shape, initial_std=spread) == describe(base).shape
    home = plain_folder(exported / "out")
    assert home == plain_folder(file) and plain_folder(base) == base
    assert open_tokenizer(home).encode(TEXT).ids == open_tokenizer(base).encode(TEXT).ids
    assert (home / "chat_template.jinja").read_text() == TEMPLATE
    assert end_tokens(home) == end_tokens(base)
    found = transformers.AutoModelForCausalLM.from_pretrained(home)
    assert found.dtype == torch.float16 and found.config.eos_token_id == end_tokens(base)[0]


def test_verbs_take_the_file(exported: Path, tmp_path: Path) -> None:
    file = exported / "out" / "model.gguf"
    texts = [
        (execute(Sample(model=folder, prompts=("The reader",), max_tokens=4, temperature=0.0), tmp_path / name, ignore))
        for name, folder in (("one", file), ("other", exported / "base"))
    ]
    one, other = ((text / "samples.jsonl").read_text() for text in texts)
    assert one == other
    out = execute(Export(model=file), tmp_path / "plain", ignore)
    assert json.loads((out / "export.json").read_text())["proof"]["typical"] < 1e-6
    assert json.loads((out / "config.json").read_text())["model_type"] == "llama"


def test_a_file_is_shown_by_its_header_and_is_a_tokenizer(exported: Path, tmp_path: Path) -> None:
    file = exported / "out" / "model.gguf"
    said = show(file)
    assert said.startswith(f"{file}: a GGUF file of a llama (unnamed), its header sound\n  content   ")
    assert "tensors: 15 in F16, 5 in F32" in said and "layers 2, width 64, heads 4, over 2, positions 64" in said
    assert "gpt2, cut as smollm; bos '<|endoftext|>', eos '<|endoftext|>'; a chat template" in said
    assert said.split("\n", 1)[1] in show(exported / "out")
    shutil.copy(file, tmp_path / "a.gguf")
    assert show(tmp_path).endswith(said.split("\n", 1)[1])
    step = Pretrain(data=exported, tokenizer=file)  # type: ignore[arg-type]
    assert step.tokenizer is not None and not (step.tokenizer / "model.safetensors").exists()
    ours = open_text_tokenizer(step.tokenizer)
    assert ours.end == open_text_tokenizer(exported / "base").end
    assert ours.tokenizer.encode(TEXT).ids == open_text_tokenizer(exported / "base").tokenizer.encode(TEXT).ids


def test_several_files_in_a_folder_are_refused(exported: Path, tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(UsageError, match=r"holds 2 GGUF files: a.gguf, b.gguf"):
        open_model(tmp_path)


# A file by hand: what the format says, and each of its parts as a stranger might have it.


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def entry(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: str = "a", sides: tuple[int, ...] = (4, 2), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(sides)}QIQ", len(sides), *sides, kind, offset)


def file_of(
    entries: list[bytes],
    tensors: list[bytes],
    data: bytes = bytes(64),
    *,
    version: int = 3,
    more: tuple[int, int] = (0, 0),
) -> bytes:
    counts = struct.pack("<IQQ", version, len(tensors) + more[0], len(entries) + more[1])
    header = b"GGUF" + counts + b"".join(entries) + b"".join(tensors)
    return header + b"\0" * (-len(header) % 32) + data


NAME = entry("general.architecture", 8, text("llama"))
HOSTILE = {
    "not begin with GGUF": b"GGML" + bytes(40),
    "it has 7 bytes": b"GGUF\3\0\0",
    "its version is 4": file_of([NAME], [], version=4),
    "claims 18,446": file_of([NAME], [], more=(2**64 - 1, 0)),
    "and 1,099,511,627,777 entries": file_of([NAME], [], more=(0, 2**40)),
    "ends inside its header": file_of([NAME], [], b"")[:60],
    "a text in its header claims 4,611,686": file_of([struct.pack("<Q", 2**62)], []),
    "a list in its header claims 4,611,686": file_of([entry("a", 9, struct.pack("<IQ", 4, 2**62))], []),
    "its header holds more than": file_of([entry("a", 9, struct.pack("<IQ", 4, 2_000_000))] * 2, []),
    "has the type 9": file_of([entry("a", 9, struct.pack("<IQIQ", 9, 1, 4, 1))], []),
    "has the type 77": file_of([entry("a", 77, b"")], []),
    "not UTF-8": file_of([struct.pack("<Q", 2) + b"\xff\xfe"], []),
    "'general.architecture' stands in it twice": file_of([NAME, NAME], []),
    "tensor 'a' stands in it twice": file_of([NAME], [tensor(), tensor(offset=32)]),
    "has the sides .4611686018427387904, 4611686018427387904.": file_of([NAME], [tensor(sides=(2**62, 2**62))]),
    "has the sides .0, 4.": file_of([NAME], [tensor(sides=(4, 0))]),
    "has the sides .1, 1, 1, 1, 1.": file_of([NAME], [tensor(sides=(1,) * 5)]),
    "the type 999": file_of([NAME], [tensor(kind=999)]),
    "no multiple of 32": file_of([NAME], [tensor(kind=8)]),
    "outside of the file": file_of([NAME], [tensor(offset=2**50)]),
    "lies on another one": file_of([NAME], [tensor(), tensor("b")]),
    "'a' lies on another one, or outside": file_of([NAME], [tensor(offset=3)]),
    "its alignment is 3": file_of([NAME, entry("general.alignment", 4, struct.pack("<I", 3))], [tensor()]),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_file_is_refused_by_what_is_wrong_with_it(what: str, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(HOSTILE[what])
    with pytest.raises(UsageError, match=f"not a sound GGUF file: .*{what}"):
        open_model(tmp_path / "model.gguf")
    assert not list(tmp_path.glob(f"cache/mickle/gguf/*-{VERSION}"))


def test_a_sound_file_is_read_as_the_library_reads_it(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(file_of([NAME], [tensor(), tensor("b", (32,), 8, 32)], bytes(32 + 34)))
    assert read_gguf_header(tmp_path / "a.gguf").tensors == {"a": ((2, 4), "F32"), "b": ((32,), "Q8_0")}
    header = read_gguf_header(exported / "out" / "model.gguf")
    reader = gguf.GGUFReader(exported / "out" / "model.gguf")
    theirs = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert header.metadata == theirs
    assert header.tensors == {t.name: (tuple(reversed(t.shape.tolist())), t.tensor_type.name) for t in reader.tensors}


def test_any_cut_of_a_sound_file_is_refused(exported: Path, tmp_path: Path) -> None:
    whole = (exported / "out" / "model.gguf").read_bytes()
    for size in (*range(24, len(whole), len(whole) // 40), len(whole) - 1):
        (tmp_path / "a.gguf").write_bytes(whole[:size])
        with pytest.raises(UsageError, match="not a sound GGUF file"):
            read_gguf_header(tmp_path / "a.gguf")


# Files of models of transformers, written tensor by tensor as llama.cpp's converter writes them.


def byte_level(tokens: list[str], merges: list[str], pre: str) -> Callable[[gguf.GGUFWriter], None]:
    def say(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(tokens)
        writer.add_token_types([1] * len(tokens))
        if merges:
            writer.add_token_merges(merges)

    return say


def write_file(
    model: Any, path: Path, arch: str, shape: dict[str, Any], turned: Any = lambda name, data: data, words: Any = None
) -> Path:
    writer = gguf.GGUFWriter(path, arch)
    for name, value in shape.items():
        (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(f"{arch}.{name}", value)
    (words or byte_level([f"{n}" for n in range(model.config.vocab_size)], [], "qwen2"))(writer)
    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    names = gguf.get_tensor_name_map(kind, model.config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), turned(name, weight.numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


SIZES = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
}  # fmt: skip
SHAPE = {
    "context_length": 64, "embedding_length": 32, "block_count": 2, "feed_forward_length": 48,
    "attention.head_count": 4, "attention.head_count_kv": 2, "attention.key_length": 8,
    "attention.value_length": 8, "rope.freq_base": 10000.0, "attention.layer_norm_rms_epsilon": 1e-6,
}  # fmt: skip


def gemma_norms(name: str, data: np.ndarray) -> np.ndarray:
    return data + 1 if name.endswith("norm.weight") else data


def gpt2_rows(name: str, data: np.ndarray) -> np.ndarray:
    turns = name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))
    return np.ascontiguousarray(data.T) if turns else data


FAMILIES = {
    "qwen2": (transformers.Qwen2Config, SIZES, SHAPE, lambda name, data: data),
    "qwen3": (transformers.Qwen3Config, SIZES, SHAPE, lambda name, data: data),
    "gemma2": (transformers.Gemma2Config, {**SIZES, "query_pre_attn_scalar": 8}, SHAPE, gemma_norms),
    "gemma3": (transformers.Gemma3TextConfig, {**SIZES, "query_pre_attn_scalar": 8}, SHAPE, gemma_norms),
    "gpt2": (
        transformers.GPT2Config,
        {"vocab_size": 60, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
        {"context_length": 64, "embedding_length": 32, "block_count": 2, "feed_forward_length": 128,
         "attention.head_count": 4, "attention.layer_norm_epsilon": 1e-5},
        gpt2_rows,
    ),
}  # fmt: skip


@pytest.mark.parametrize("arch", FAMILIES)
def test_models_of_other_families_are_those_of_transformers(arch: str, tmp_path: Path) -> None:
    config_class, sizes, shape, turned = FAMILIES[arch]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config_class(**sizes, initializer_range=0.2)).eval()
    for weight in model.parameters():
        if weight.dim() == 1:
            torch.nn.init.normal_(weight.data, 0.5, 0.2)
    opened = open_model(write_file(model, tmp_path / "model.gguf", arch, shape, turned))
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(opened(ids), model(ids).logits, atol=2e-4, rtol=2e-4)


def test_what_the_reader_would_leave_out_is_refused(exported: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SIZES))
    file = write_file(model, tmp_path / "model.gguf", "qwen2", {**SHAPE, "rope.scaling.factor": 4.0})
    header = read_gguf_header(file)
    scaled = replace(header, metadata={**header.metadata, "qwen2.rope.scaling.type": "yarn"})
    with pytest.raises(UsageError, match=r"positions of this model are scaled .yarn"):
        read_weights(file, scaled)
    with pytest.raises(UsageError, match="one part of several"):
        read_weights(file, replace(header, metadata={**header.metadata, "split.count": 2}))
    with pytest.raises(UsageError, match="leaves out 1 tensors of this qwen2"):
        read_weights(file, replace(header, tensors={**header.tensors, "more": ((1,), "F32")}))


@pytest.mark.parametrize(("factor", "known"), [(8.0, True), (16.0, True), (0.5, False)])
def test_the_factors_of_llama_3_are_its_settings(factor: float, known: bool, exported: Path, tmp_path: Path) -> None:
    """The tensor is made as llama.cpp's converter makes it, frequency by frequency."""
    reader = gguf.GGUFReader(exported / "out" / "model.gguf")
    frequencies = 1 / 10000.0 ** (np.arange(0, 16, 2) / 16)
    factors = []
    for wave in 2 * np.pi / frequencies:
        smooth = (8192 / wave - 1) / (4 - 1)
        factors.append(1 if wave < 8192 / 4 else factor if wave > 8192 else 1 / ((1 - smooth) / factor + smooth))
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    for name, field in reader.fields.items():
        if not name.startswith(("GGUF.", "general.architecture")):
            writer.add_key_value(name, field.contents(), field.types[0], field.types[1] if field.types[1:] else None)
    for one in reader.tensors:
        writer.add_tensor(one.name, np.array(one.data))
    writer.add_tensor("rope_freqs.weight", np.array(factors, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if not known:
        with pytest.raises(UsageError, match="factors that no known Llama has"):
            plain_folder(tmp_path / "model.gguf")
        return
    config = transformers.AutoConfig.from_pretrained(plain_folder(tmp_path / "model.gguf"))
    assert config.rope_parameters["rope_type"] == "llama3" and config.rope_parameters["factor"] == factor
    assert not describe(tmp_path / "model.gguf").ours  # transformers computes it


def test_an_unknown_way_of_cutting_is_refused(exported: Path) -> None:
    metadata = read_gguf_header(exported / "out" / "model.gguf").metadata
    words = vocabulary_in({**metadata, "tokenizer.ggml.pre": "never-heard-of"}, "here")
    with pytest.raises(UsageError, match="no reader here knows how 'never-heard-of' cuts text"):
        rebuilt(words)
    for name, other in ALIASES.items():
        assert vocabulary_in({**metadata, "tokenizer.ggml.pre": name}, "here").pre == other
    with pytest.raises(UsageError, match="holds a token twice"):
        vocabulary_in({**metadata, "tokenizer.ggml.tokens": ["a", "a"], "tokenizer.ggml.token_type": [1, 1]}, "here")
    with pytest.raises(UsageError, match="no sound tokenizer.ggml.tokens"):
        vocabulary_in({"tokenizer.ggml.model": "gpt2"}, "here")


def test_without_an_end_of_turn_marks_of_that_spelling_end_texts(exported: Path) -> None:
    metadata = read_gguf_header(exported / "out" / "model.gguf").metadata
    words = vocabulary_in(metadata, "here")
    turn = replace(words, tokens=[*words.tokens[:-1], "<|im_end|>"], kinds=[*words.kinds[:-1], 3])
    assert turn.stops == [words.marks["eos"], len(words.tokens) - 1]
    assert replace(turn, marks={**words.marks, "eot": 5}).stops == [words.marks["eos"], 5]


def test_without_the_package_a_file_says_how_to_get_it(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UsageError, match=r"need the package gguf\n.*model.gguf\n.*pip install 'mickle\[gguf\]'"):
        write_plain(exported / "out" / "model.gguf", tmp_path / "plain")


@pytest.fixture(scope="module")
def crossing() -> tuple[list[str], list[str]]:
    """Tokens and merges that were learned without any cutting, so that every way of cutting shows."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words.train_from_iterator([TEXT, *AWKWARD * 3], trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet))
    values = json.loads(words.to_str())["model"]
    return list(values["vocab"]), [" ".join(merge) for merge in values["merges"]]


@needs_llama_cpp
@pytest.mark.parametrize("pre", [*CUTS, *ALIASES, *LOOSE, "dbrx", "smaug-bpe"])
def test_tokens_are_llama_cpps_under_every_name(
    pre: str, crossing: tuple[list[str], list[str]], tmp_path: Path
) -> None:
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**SIZES, "vocab_size": len(crossing[0])}))
    file = write_file(
        model, tmp_path / "model.gguf", "llama", {**SHAPE, "rope.dimension_count": 8}, words=byte_level(*crossing, pre)
    )
    theirs, ours = Llama(file), rebuilt(vocabulary_in(read_gguf_header(file).metadata, "here"))
    for awkward in (TEXT, *(text for text in AWKWARD if pre not in LOOSE or "\u0301" not in text)):
        assert ours.encode(awkward, add_special_tokens=False).ids == theirs.tokens(awkward, special=True), awkward


@needs_llama_cpp
@pytest.mark.parametrize("prefix", [True, False])
def test_tokens_of_a_sentencepiece_vocabulary_are_llama_cpps(prefix: bool, tmp_path: Path) -> None:
    texts = ("the reader opens 12 files", "  leading", "it's done\n\tnext 数字 é", "trailing  ", "", "\n\n", "a<s> b")
    pieces = ["th", "the", "▁the", "re", "ad", "er", "reader", "▁re", "▁reader", "op", "en", "▁op", "▁open", "▁▁"]
    pieces += ["▁▁▁", "in", "ing", "it", "▁it", "ne", "do", "▁do", "▁o", "▁r", "▁t"]
    letters = ["▁", *sorted({letter for text in texts for letter in text if letter.isascii() and letter > " "})]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces, *letters]
    rest = len(pieces) + len(letters)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**SIZES, "vocab_size": len(tokens)}))

    def said(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("llama")
        writer.add_token_scores([0.0] * 259 + [-float(place) for place in range(rest)])
        writer.add_token_list(tokens)
        writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * rest])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_add_space_prefix(prefix)

    shape = {**SHAPE, "rope.dimension_count": 8}
    file = write_file(model, tmp_path / "model.gguf", "llama", shape, words=said)
    theirs, ours = Llama(file), open_tokenizer(plain_folder(file))
    for one in texts:
        assert ours.encode(one).ids == theirs.tokens(one, special=True, marks=True), one
