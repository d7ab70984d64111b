"""Small random models of each family that GGUF is written of, proven by transformers' reader and run in llama.cpp."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from llama_cpp import Llama, needs_llama_cpp
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from mickle.data.tokenizer import train_tokenizer
from mickle.errors import UsageError
from mickle.events import ignore
from mickle.exporting.export import Export
from mickle.exporting.gguf_families import told
from mickle.exporting.gguf_file import open_gguf, refuse_other_vocabulary, write_gguf
from mickle.exporting.source import Source, find_source
from mickle.models.folder import open_model
from mickle.models.gguf_tokens import read_vocabulary
from mickle.step import execute

TEXT = "The reader opens 12 files and returns their lines; it's def add(a, b): once upon a time. " * 20
TEXTS = ("the reader opens 12 files", "  leading", "it's done\n\tnext 数字 é", "trailing  ", "a", "a<s> b")
SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.2, "rms_norm_eps": 1e-5,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
WIDE = {**SIZES, "head_dim": 32, "tie_word_embeddings": False}
GEMMA = {**WIDE, "query_pre_attn_scalar": 32, "tie_word_embeddings": True}
FACTORS = [1.0 + 0.1 * place for place in range(6)]
SCALED = {"rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
LONG = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": FACTORS, "long_factor": [9.0] * 6}
FAMILIES: dict[str, tuple[Any, dict[str, Any], str]] = {  # configuration, its settings, kind of vocabulary
    "llama": (transformers.LlamaConfig, SIZES, "bytes"),
    "llama-3.1": (
        transformers.LlamaConfig,
        {**WIDE, "rope_parameters": {"rope_type": "llama3", "original_max_position_embeddings": 8192, **SCALED}},
        "bytes",
    ),
    "llama-linear": (
        transformers.LlamaConfig,
        {**SIZES, "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
        "bytes",
    ),
    "mistral": (transformers.MistralConfig, {**WIDE, "sliding_window": None}, "pieces"),
    "qwen2": (transformers.Qwen2Config, {**SIZES, "tie_word_embeddings": True}, "bytes"),
    "qwen2-yarn": (transformers.Qwen2Config, {**SIZES, "rope_parameters": YARN}, "bytes"),
    "qwen3": (transformers.Qwen3Config, WIDE, "bytes"),
    "smollm3": (transformers.SmolLM3Config, SIZES, "bytes"),
    "gemma2": (transformers.Gemma2Config, {**GEMMA, "sliding_window": 8, "final_logit_softcapping": 20.0}, "pieces"),
    "gemma3": (
        transformers.Gemma3TextConfig,
        {**GEMMA, "num_hidden_layers": 7, "sliding_window": 8, "rope_parameters": {
            "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        }},
        "pieces",
    ),
    "phi3": (transformers.Phi3Config, {**SIZES, "sliding_window": None}, "pieces, one space first"),
    "phi3-long": (
        transformers.Phi3Config,
        {**SIZES, "original_max_position_embeddings": 1024, "max_position_embeddings": 4096, "sliding_window": None,
         "rope_parameters": {**LONG, "partial_rotary_factor": 0.75}},
        "bytes",
    ),
}  # fmt: skip


def pieces(prefix: bool) -> Tokenizer:
    """A vocabulary of SentencePiece as folders have it: all merges that its pieces allow, the first piece first."""
    joined = ["th", "the", "▁the", "re", "ad", "er", "reader", "▁re", "▁reader", "op", "en", "▁op", "▁open", "▁▁"]
    joined += ["▁▁▁", "in", "ing", "it", "▁it", "ne", "do", "▁do", "▁o", "▁r", "▁t"]
    letters = ["▁", *sorted({letter for text in TEXTS for letter in text if letter.isascii() and letter > " "})]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *joined, *letters]
    ids = {token: number for number, token in enumerate(tokens)}
    merges = [(t[:n], t[n:]) for t in joined for n in range(1, len(t)) if t[:n] in ids and t[n:] in ids]
    words = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    space = normalizers.Replace(" ", "▁")
    words.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), space]) if prefix else space
    words.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    words.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in tokens[:3]])
    words.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return words


def make(folder: Path, config_class: Any, sizes: dict[str, Any], vocabulary: str) -> Path:
    words = train_tokenizer([TEXT], 300) if vocabulary == "bytes" else pieces("first" in vocabulary)
    size = words.size if vocabulary == "bytes" else words.get_vocab_size()
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config_class(**sizes, vocab_size=size)).eval()
    for name, weight in model.named_parameters():
        if weight.dim() == 1:
            torch.nn.init.normal_(weight.data, 0.5, 0.2 if name.endswith("weight") else 1.0)
    model.save_pretrained(folder)
    if vocabulary == "bytes":
        words.save(folder)
    else:
        (folder / "tokenizer.json").write_text(words.to_str())
        marks = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
        (folder / "tokenizer_config.json").write_text(json.dumps(marks))
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """By family: the folder of a model, and the one with its file in float32."""

    @cache
    def made(family: str) -> tuple[Path, Path]:
        home = tmp_path_factory.mktemp(family)
        base = make(home / "base", *FAMILIES[family])
        (home / "out").mkdir()
        assert write_gguf(open_model(base), source_of(base), home / "out", "F32") == []
        return base, home / "out"

    return made


def source_of(base: Path) -> Source:
    return find_source(base, "dequantized", None, None, None, None)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_of_each_family_is_the_model_and_its_words(
    family: str, written: Callable[[str], tuple[Path, Path]]
) -> None:
    base, out = written(family)
    ids = torch.arange(60)[None]
    with torch.no_grad():
        torch.testing.assert_close(open_gguf(out)(ids), open_model(base)(ids), atol=2e-5, rtol=1e-4)
    refuse_other_vocabulary(source_of(base), out, TEXTS)
    architecture = gguf.GGUFReader(out / "model.gguf").fields["general.architecture"].contents()
    assert architecture == {"mistral": "llama"}.get(family, family.split("-")[0])


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_spaces_before_texts_are_said_where_llama_cpp_puts_others(scheme: str, tmp_path: Path) -> None:
    words = pieces(False)
    words.normalizer, words.pre_tokenizer = None, pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)  # type: ignore[assignment, arg-type]
    (tmp_path / "tokenizer.json").write_text(words.to_str())
    found = read_vocabulary(tmp_path, words.get_vocab_size(), {"bos": 1, "eos": 2})
    assert (found.kind, found.prefix, found.begins) == ("llama", scheme != "never", True)
    assert ("before the first only" in found.note, bool(found.note)) == (scheme == "first", scheme != "never")


def test_a_model_of_transformers_with_pieces_is_exported_and_proven(tmp_path: Path) -> None:
    base = make(tmp_path / "base", *FAMILIES["gemma2"])
    step = Export(model=base, format={"kind": "gguf", "type": "Q8_0"}, check_prompts=["the reader"], check_tokens=4)  # type: ignore[arg-type]
    proof = json.loads((execute(step, tmp_path / "out", ignore) / "export.json").read_text())["proof"]
    assert 1e-4 < proof["typical"] < 0.05


@needs_llama_cpp
@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_computes_what_transformers_does(family: str, written: Callable[[str], tuple[Path, Path]]) -> None:
    """Tokens, logits after a text longer than the windows, and greedy text."""
    base, out = written(family)
    theirs, words = Llama(out / "model.gguf"), Tokenizer.from_file(str(base / "tokenizer.json"))
    for text in TEXTS:
        assert theirs.tokens(text, special=True, marks=True) == words.encode(text).ids, text
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    ids = words.encode(TEXT[:120]).ids[:60]
    row = torch.tensor([ids])
    with torch.no_grad():
        logits = model(row).logits[0, -1].numpy()
        written = model.generate(row, attention_mask=torch.ones_like(row), max_new_tokens=8, do_sample=False)
    text, scores = theirs.greedy(ids, 8)
    within = 3e-3 if family.startswith("gemma") else 1e-4  # llama.cpp looks GELU up in a table of 16 bits
    np.testing.assert_allclose(scores, logits, atol=within * logits.std(), rtol=0)
    assert text == written[0, len(ids) :].tolist()


REFUSED = {
    "a gemma, and no Gemma 2": ("gemma2", {"model_type": "gemma"}, "GGUF is not written of a gemma"),
    "scale": ("gemma2", {"query_pre_attn_scalar": 100}, "query_pre_attn_scalar is 100"),
    "windows": ("gemma3", {"layer_types": ["full_attention"] * 7}, "layer_types is .'full_attention'"),
    "caps": ("gemma2", {"attn_logit_softcapping": None}, "scores are not capped"),
    "both ways": ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
    "positions everywhere": ("smollm3", {"no_rope_layers": [1] * 4}, "no_rope_layers is .1, 1, 1, 1."),
    "biases": ("llama", {"attention_bias": True}, "attention_bias is True"),
    "activation": ("mistral", {"hidden_act": "gelu"}, "hidden_act is gelu"),
    "scaling": ("qwen3", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4}}, "scaled by 'dynamic'"),
    "part": (
        "llama",
        {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
        "only a part of each head",
    ),
    "yarn": ("qwen2-yarn", {"rope_parameters": {**YARN, "beta_fast": 8.0}}, "YaRN with beta_fast 8"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_llama_cpp_does_not_compute_is_refused_by_name(what: str) -> None:
    family, changed, message = REFUSED[what]
    config_class, sizes, _ = FAMILIES[family]
    settings = config_class(**sizes).to_dict()
    told(settings)
    with pytest.raises(UsageError, match=message):
        told({**settings, **changed})


def test_a_window_of_all_layers_is_the_length_that_a_file_is_for() -> None:
    settings = transformers.MistralConfig(**{**WIDE, "sliding_window": 48}).to_dict()
    assert told(settings).values["context_length"] == 48
    assert "texts of up to 48 tokens" in told(settings).note
    assert told({**settings, "sliding_window": 4096}).values["context_length"] == 128
