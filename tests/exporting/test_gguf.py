"""A GGUF file, read by llama.cpp's own package, holds the model, the tokenizer and the template that went into it."""

import ctypes
import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from llama_cpp import Llama, library, needs_llama_cpp
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from mickle.data.tokenizer import train_tokenizer
from mickle.errors import UsageError
from mickle.events import Event, Warned
from mickle.exporting import gguf_file
from mickle.exporting.export import Export
from mickle.exporting.gguf_families import FAMILIES, as_told
from mickle.exporting.gguf_file import FILE, open_gguf
from mickle.exporting.gguf_quants import kept_of
from mickle.models.adapters import save_adapter
from mickle.models.decoder import Decoder, DecoderConfig
from mickle.models.folder import open_model, open_tokenizer, save_model
from mickle.models.gguf_check import read_gguf_header
from mickle.models.gguf_tokens import LLAMA3, QWEN2, Vocabulary, read_vocabulary, rebuilt, vocabulary_in
from mickle.models.lora import attach_lora, lora_layers
from mickle.models.quantized import quantize_model, quantized_layers
from mickle.step import execute
from mickle.storage import read_manifest

TEXT = "The reader opens 12 files and returns their lines; it's def add(a, b): once upon a time. " * 20
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"


def make_base(
    folder: Path,
    *,
    width: int = 64,
    head_width: int = 16,
    tied: bool = True,
    extra: int = 0,
    layers: int = 2,
    std: float = 0.2,
) -> Path:
    words = train_tokenizer([TEXT], 300)
    shape = DecoderConfig(words.size + extra, width, layers, 4, 2, head_width, 96, 64, initial_std=std, tied=tied)
    save_model(Decoder(shape, seed=3), folder, words)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def export(model: Path, out: Path, kind: str | None, bound: float | None = None) -> list[Event]:
    events: list[Event] = []
    execute(Export(model=model, format={"kind": "gguf", "type": kind}, bound=bound), out, events.append)  # type: ignore[arg-type]
    return events


def read_back(out: Path) -> Vocabulary:
    return vocabulary_in(read_gguf_header(out / FILE).metadata, str(out))


def proof(out: Path) -> dict[str, Any]:
    return json.loads((out / "export.json").read_text())["proof"]


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [("F32", 0, 1e-9), ("F16", 1e-6, 0.01), ("BF16", 1e-4, 0.1), ("Q8_0", 1e-3, 0.1), ("Q4_0", 0.05, 1.0)],
)
def test_each_type_holds_the_model_within_its_bound(kind: str, low: float, high: float, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", tied=kind != "Q4_0")
    export(base, tmp_path / "out", kind)
    assert low <= proof(tmp_path / "out")["typical"] <= high
    reader = gguf.GGUFReader(tmp_path / "out" / "model.gguf")
    found = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert found["blk.1.ffn_gate.weight"] == kind
    assert found["blk.1.ffn_norm.weight"] == found["output_norm.weight"] == "F32"
    assert found["token_embd.weight"] == ("Q8_0" if kind == "Q4_0" else kind)
    assert ("output.weight" in found) == (kind == "Q4_0")
    if kind == "F32":
        ours, theirs = open_model(base).state_dict(), open_gguf(tmp_path / "out").state_dict()
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@needs_llama_cpp
@pytest.mark.parametrize(
    ("kind", "number", "width", "tied"),
    [("Q4_K_M", 15, 256, True), ("Q6_K", 18, 256, False), ("Q4_K_M", 15, 96, False)],
)
def test_types_stand_where_llama_cpps_program_puts_them(
    kind: str, number: int, width: int, tied: bool, tmp_path: Path
) -> None:
    base = make_base(tmp_path / "base", width=width, tied=tied, layers=9)
    export(base, tmp_path / "wide", "F32")
    export(base, tmp_path / "ours", kind, bound=20)
    settings = library().llama_model_quantize_default_params()
    settings.bytes[0] = 1 + (number << 32)  # one thread; the type of the file
    names = [str(tmp_path / name).encode() for name in ("wide/model.gguf", "theirs.gguf")]
    assert library().llama_model_quantize(*names, ctypes.byref(settings)) == 0
    one, other = (
        {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / name).tensors}
        for name in ("ours/model.gguf", "theirs.gguf")
    )
    assert one == other


@needs_llama_cpp
@pytest.mark.parametrize("kind", ["Q8_0", "Q6_K", "Q4_K_M", "Q4_0"])
def test_llama_cpp_reads_the_numbers_that_were_written(kind: str, tmp_path: Path) -> None:
    """To what it rounds itself: between layers it computes in 8 bits."""
    base = make_base(tmp_path / "base", width=256, std=0.06)
    export(base, tmp_path / "out", kind)
    ids = list(range(20))
    with torch.no_grad():
        ours = open_gguf(tmp_path / "out")(torch.tensor([ids]))[0, -1].numpy()
    theirs = np.array(Llama(tmp_path / "out" / "model.gguf").greedy(ids, 1)[1])
    assert np.sqrt(((theirs - ours) ** 2).mean()) < 0.04 * ours.std()
    with torch.no_grad():
        rounded = ours - open_model(base)(torch.tensor([ids]))[0, -1].numpy()
    assert np.sqrt((rounded**2).mean()) > (0.002 if kind in ("Q8_0", "Q6_K") else 0.02) * ours.std()


def test_metadata_says_the_shape_the_tokens_and_the_template(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", head_width=32, extra=3)
    export(base, tmp_path / "out", "F16")
    fields = gguf.GGUFReader(tmp_path / "out" / "model.gguf").fields
    values = {name: field.contents() for name, field in fields.items() if "tokens" not in name and "merges" not in name}
    expected = {
        "general.architecture": "llama",
        "general.file_type": 1,
        "llama.block_count": 2,
        "llama.context_length": 64,
        "llama.embedding_length": 64,
        "llama.feed_forward_length": 96,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 32,
        "llama.attention.value_length": 32,
        "llama.rope.dimension_count": 32,
        "llama.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.chat_template": TEMPLATE,
    }
    assert {name: values[name] for name in expected} == expected
    words = read_back(tmp_path / "out")
    assert len(words.tokens) == 303 and words.tokens[-1] == "[PAD302]"
    assert words.kinds[-3:] == [gguf.TokenType.UNUSED] * 3
    mark = open_tokenizer(base).token_to_id("<|endoftext|>")
    assert words.kinds[mark] == gguf.TokenType.CONTROL
    assert words.marks == {"bos": mark, "eos": mark}
    assert values["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(open_model(base).config.norm_eps, rel=1e-6)


def test_marks_are_the_tokenizers_and_not_a_configs_defaults(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", extra=2)
    words = open_tokenizer(base)
    words.add_special_tokens(["<begin>", "<stop>"])
    (base / "tokenizer.json").write_text(words.to_str())
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<begin>", "eos_token": "<stop>"}
    (base / "tokenizer_config.json").write_text(json.dumps(named))
    for name in ("config.json", "generation_config.json"):
        values = json.loads((base / name).read_text())
        (base / name).write_text(json.dumps({**values, "bos_token_id": 1, "eos_token_id": [2, 0]}))
    export(base, tmp_path / "out", "F16")
    begin, stop = (words.token_to_id(mark) for mark in ("<begin>", "<stop>"))
    assert read_back(tmp_path / "out").marks == {"bos": begin, "eos": stop, "eot": 0}  # 2 is a letter


def test_rows_of_queries_go_pair_by_pair_as_neighbouring_rotations_want() -> None:
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    rows = torch.arange(12.0)[:, None].expand(12, 8)
    order = as_told(FAMILIES["llama"], "model.layers.0.self_attn.q_proj.weight", rows, heads)[:, 0].tolist()
    assert order == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
    biases = as_told(FAMILIES["llama"], "model.layers.0.self_attn.k_proj.bias", rows[:6, 0], heads)
    assert biases.tolist() == [0, 3, 1, 4, 2, 5]
    for family, part in (("llama", "v_proj"), ("qwen2", "q_proj")):
        assert torch.equal(as_told(FAMILIES[family], f"model.layers.0.self_attn.{part}.weight", rows, heads), rows)


def test_a_rotation_of_neighbours_over_these_rows_is_llamas_rotation_of_halves(tmp_path: Path) -> None:
    """llama.cpp's attention, written out, gives our scores of queries and keys."""
    base = make_base(tmp_path / "base")
    export(base, tmp_path / "out", "F32")
    reader = gguf.GGUFReader(tmp_path / "out" / "model.gguf")
    tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    x = np.random.default_rng(0).normal(size=(5, 64)).astype(np.float32)
    angles = np.arange(5)[:, None] * 10000.0 ** (-np.arange(0, 16, 2) / 16)  # [T, pairs]

    def turned(weight: np.ndarray, heads: int) -> np.ndarray:
        pairs = (x @ weight.T).reshape(5, heads, 8, 2)
        turn = (pairs[..., 0] + 1j * pairs[..., 1]) * np.exp(1j * angles)[:, None]
        return np.stack([turn.real, turn.imag], -1).reshape(5, heads, 16)

    theirs = np.einsum(
        "thd,shd->hts", turned(tensors["blk.0.attn_q.weight"], 4)[:, ::2], turned(tensors["blk.0.attn_k.weight"], 2)
    )
    from mickle.kernels.rotary import rotate_pairs_plain
    from mickle.models.positions import rotary_angles

    attention = open_model(base).layers[0].self_attn
    rotation = rotary_angles(torch.arange(5), 16, 10000.0)
    q, k = (
        rotate_pairs_plain(layer(torch.from_numpy(x)).view(1, 5, heads, 16).transpose(1, 2), *rotation)[0]
        for layer, heads in ((attention.q_proj, 4), (attention.k_proj, 2))
    )
    ours = torch.einsum("htd,hsd->hts", q[::2], k)
    np.testing.assert_allclose(theirs, ours.detach().numpy(), atol=1e-3)


def test_an_adapter_goes_into_the_file_merged(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    model = open_model(base)
    attach_lora(model, rank=4)
    torch.manual_seed(0)  # as the bound below is for numbers of this size
    for layer in lora_layers(model).values():
        torch.nn.init.normal_(layer.lora_B, std=0.3)
    save_adapter(model, tmp_path / "adapter", base)
    export(tmp_path / "adapter", tmp_path / "out", "F32")
    ids = torch.arange(40)[None]
    with torch.no_grad():
        torch.testing.assert_close(open_gguf(tmp_path / "out")(ids), model(ids), atol=1e-3, rtol=0)


def test_a_model_in_few_bits_goes_into_the_nearest_type_and_that_is_said(tmp_path: Path) -> None:
    model = open_model(make_base(tmp_path / "base"))
    assert kept_of(model, None) == ("F16", "") and kept_of(model, "Q6_K") == ("Q6_K", "")
    quantize_model(model, double=False)
    kind, said = kept_of(model, "F16")
    assert kind == "F16" and said.endswith("F16 (asked for): each number stays, codes do not")
    save_model(model, tmp_path / "few", open_tokenizer(tmp_path / "base"))
    next(iter(quantized_layers(model).values())).values = torch.ones(1)  # as one with outliers has it
    assert kept_of(model, None)[1].endswith("each number is rounded once more, and outliers no longer stand apart")
    events = export(tmp_path / "few", tmp_path / "out", None)
    manifest = read_manifest(tmp_path / "out")
    assert manifest is not None and Warned(manifest.meta["summary"]["kept"]) in events
    said = "14 matrices of 4.62 bits a weight become Q4_K_M (the nearest type; --format.type names another)"
    assert manifest.meta["summary"]["kept"] == f"{said}: each number is rounded once more"
    assert gguf.GGUFReader(tmp_path / "out" / "model.gguf").fields["general.file_type"].contents() == 15


def test_rows_that_blocks_do_not_divide_stay_in_f16_and_that_is_said(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", width=40)
    events = export(base, tmp_path / "out", "Q8_0")
    said = [event.message for event in events if isinstance(event, Warned)]
    assert said == ["11 matrices stay in F16: their rows are no multiple of 32"]
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "out" / "model.gguf").tensors}
    assert (kinds["blk.0.ffn_up.weight"], kinds["blk.0.ffn_down.weight"]) == ("F16", "Q8_0")


def test_a_file_with_rows_in_the_wrong_order_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = make_base(tmp_path / "base")
    monkeypatch.setattr(gguf_file, "as_told", lambda family, name, tensor, settings: tensor)
    with pytest.raises(UsageError, match="layer 'model.layers.*_proj' of the export computes something else"):
        export(base, tmp_path / "out", "Q4_0")
    assert not (tmp_path / "out").exists()


CUTS = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)]),
    "llama-bpe": pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(LLAMA3), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    ),
    "qwen2": pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(QWEN2), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    ),
    "default": pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(False)]),
}


@pytest.mark.parametrize("name", CUTS)
def test_how_text_is_cut_is_named_only_where_the_name_means_just_that(name: str, tmp_path: Path) -> None:
    words = train_tokenizer([TEXT], 300)
    words.tokenizer.pre_tokenizer = CUTS[name]
    words.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    values = json.loads(path.read_text())
    values["model"]["ignore_merges"] = name == "llama-bpe"
    path.write_text(json.dumps(values))
    found = read_vocabulary(tmp_path, 300, {})
    assert found.pre == name
    assert bool(found.note) == (name == "default")
    if name != "default":
        text = "It's 12345 files,  isn't it?\r\n\r\n the reader  "
        assert rebuilt(found).encode(text).ids == open_tokenizer(tmp_path).encode(text, add_special_tokens=False).ids
    values["model"]["ignore_merges"] = name != "llama-bpe"  # then no name is right
    path.write_text(json.dumps(values))
    assert read_vocabulary(tmp_path, 300, {}).pre == "default"


def test_an_unknown_way_of_cutting_is_exported_and_said(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    opened = open_tokenizer(base)
    opened.pre_tokenizer = CUTS["default"]
    (base / "tokenizer.json").write_text(opened.to_str())
    events = export(base, tmp_path / "out", "F16")
    assert "will read some texts as other tokens" in next(e.message for e in events if isinstance(e, Warned))
    assert json.loads((tmp_path / "out" / "export.json").read_text())["notes"]


def test_a_vocabulary_that_is_no_byte_level_bpe_is_refused(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    (base / "tokenizer.json").write_text(Tokenizer(models.WordLevel({"a": 0, "<|endoftext|>": 1}, "a")).to_str())
    with pytest.raises(UsageError, match="no byte-level BPE and none of SentencePiece's .WordLevel"):
        export(base, tmp_path / "out", "F16")


def test_without_the_package_the_command_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UsageError, match=r"need the package gguf\n.*\n.*pip install 'mickle\[gguf\]'"):
        export(make_base(tmp_path / "base"), tmp_path / "out", "F16")
    shutil.rmtree(tmp_path / "base")
