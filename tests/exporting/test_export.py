"""What goes out is what went in: every form opened anew, run, and held to its source; nothing where it is not."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mickle.data.tokenizer import train_tokenizer
from mickle.errors import MickleError, UsageError
from mickle.events import Event, Noted, Warned
from mickle.exporting.export import Export
from mickle.exporting.proof import only_rounded
from mickle.models.adapters import open_adapter, save_adapter
from mickle.models.decoder import Decoder, DecoderConfig
from mickle.models.folder import end_tokens, open_model, open_tokenizer, save_model
from mickle.models.linear_layers import linear_layers
from mickle.models.lora import LoraLinear, attach_lora, lora_layers
from mickle.models.quantized import quantize_model, save_quantized
from mickle.step import execute

TEMPLATE = "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{{ eos_token }}{% endfor %}"
TEXT = "The reader opens 12 files and returns their lines; it's def add(a, b): once upon a time. " * 20


def make_base(folder: Path, tied: bool = True, width: int = 64, **settings: Any) -> Path:
    words = train_tokenizer([TEXT], 300)
    model = Decoder(
        DecoderConfig(words.size, width, 2, 4, 2, width // 4, 96, 64, initial_std=0.2, tied=tied, **settings), seed=3
    )
    save_model(model, folder, words)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def shake(model: nn.Module, size: float = 0.3) -> nn.Module:
    generator = torch.Generator().manual_seed(7)
    for layer in lora_layers(model).values():
        with torch.no_grad():
            layer.lora_B.normal_(std=size, generator=generator)
    return model


def make_adapter(base: Path, folder: Path, size: float = 0.3, **options: Any) -> Path:
    model = open_model(base)
    attach_lora(model, rank=4, alpha=4, **options)
    save_adapter(shake(model, size), folder, base)
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_base(tmp_path / "base")


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., tuple[Path, list[Event]]]:
    def export(model: Path, **settings: Any) -> tuple[Path, list[Event]]:
        events: list[Event] = []
        out = execute(Export(model=model, **settings), tmp_path / "out", events.append)
        return out, events

    return export


def logits(model: nn.Module) -> torch.Tensor:
    ids = torch.randint(0, 256, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.float()(ids)


@pytest.mark.parametrize("tied", [True, False])
def test_a_merged_adapter_is_a_plain_folder_that_transformers_computes_alike(
    tied: bool, tmp_path: Path, run: Any
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = make_base(tmp_path / "base", tied)
    adapter = make_adapter(base, tmp_path / "adapter")
    out, events = run(adapter)
    expected = logits(open_adapter(adapter))
    torch.testing.assert_close(logits(open_model(out)), expected, atol=1e-4, rtol=0)
    theirs, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = torch.randint(0, 256, (2, 40), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(theirs(ids).logits.detach(), expected, atol=1e-4, rtol=0)
    assert ("lm_head.weight" in load_file(out / "model.safetensors")) != tied
    words = AutoTokenizer.from_pretrained(out)
    assert words.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False).endswith(
        "<user>x<|endoftext|>"
    )
    assert end_tokens(out) == end_tokens(base) == [words.eos_token_id]
    assert json.loads((out / "config.json").read_text())["eos_token_id"] == words.eos_token_id
    said = [event.message for event in events if isinstance(event, Noted)]
    assert any("merged model.layers.0.self_attn.q_proj: change" in line for line in said)
    assert "the same greedy text on 3 of 3 prompts" in said[-1]
    result = json.loads((out / "export.json").read_text())
    assert len(result["merged"]) == 14 and 0 < result["proof"]["largest"] < 1e-4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_model_is_rounded_to_the_type_that_is_asked_for(dtype: str, base: Path, run: Any) -> None:
    out, _ = run(base, format={"kind": "huggingface", "dtype": dtype})
    kind = getattr(torch, dtype)
    before, after = load_file(base / "model.safetensors"), load_file(out / "model.safetensors")
    assert all(torch.equal(before[name].to(kind), after[name]) for name in before)
    proof = json.loads((out / "export.json").read_text())["proof"]
    low, high = {"float32": (0, 1e-9), "float16": (1e-6, 0.01), "bfloat16": (1e-4, 0.1)}[dtype]
    assert low <= proof["typical"] <= high
    assert proof["same_tokens"] > 0.9


@pytest.mark.parametrize("stored", [True, False])
def test_an_adapter_on_four_bits_goes_onto_what_it_was_trained_on_or_onto_the_original(
    stored: bool, base: Path, tmp_path: Path, run: Any
) -> None:
    quantized = open_model(base)
    quantize_model(quantized)
    home = base
    if stored:
        home = tmp_path / "small"
        save_quantized(quantized, home)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(base / name, home / name)
    attach_lora(quantized, rank=4, alpha=4)
    save_adapter(shake(quantized), tmp_path / "adapter", home, quantization=None if stored else {"code": "nf4"})
    out, _ = run(tmp_path / "adapter")
    trained = logits(open_adapter(tmp_path / "adapter"))
    torch.testing.assert_close(logits(open_model(out)), trained, atol=1e-3, rtol=0)
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    shutil.rmtree(out)
    if stored:
        with pytest.raises(UsageError, match="few bits only.*\n.*\n.*original-folder"):
            run(tmp_path / "adapter", base="original")
    out, events = run(tmp_path / "adapter", base="original", original_folder=base if stored else None)
    original = open_model(base)
    attach_lora(original, rank=4, alpha=4)
    torch.testing.assert_close(logits(open_model(out)), logits(shake(original)), atol=1e-3, rtol=0)
    assert (logits(open_model(out)) - trained).abs().max() > 0.1
    merged = json.loads((out / "export.json").read_text())["merged"]
    assert all(figures["base"] > 0 for figures in merged.values())
    assert any("base off by" in event.message for event in events if isinstance(event, Noted))


def test_a_change_that_rounding_drowns_is_warned_of(base: Path, tmp_path: Path, run: Any) -> None:
    adapter = make_adapter(base, tmp_path / "adapter", size=1e-5)
    _, events = run(adapter, format={"kind": "huggingface", "dtype": "bfloat16"})
    warned = [event.message for event in events if isinstance(event, Warned)]
    assert warned and "in 14 layers rounding to the stored type moves it by more than what was learned" in warned[0]


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_models_of_transformers_go_out_as_they_are_with_adapters_merged(kind: str, tmp_path: Path, run: Any) -> None:
    import transformers as t

    torch.manual_seed(1)
    if kind == "gpt2":
        config = t.GPT2Config(vocab_size=60, n_positions=64, n_embd=32, n_layer=2, n_head=4, initializer_range=0.2)
        model: Any = t.GPT2LMHeadModel(config)
    else:
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
        model = t.BertForMaskedLM(t.BertConfig(vocab_size=60, initializer_range=0.2, **sizes))
    model.save_pretrained(tmp_path / "base")
    adapter = make_adapter(tmp_path / "base", tmp_path / "adapter")
    out, _ = run(adapter)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(open_model(out)(ids), open_adapter(adapter)(ids), atol=1e-3, rtol=1e-4)
        theirs = type(model).from_pretrained(out).eval()
        torch.testing.assert_close(theirs(ids).logits, open_adapter(adapter)(ids), atol=1e-3, rtol=1e-4)


def test_an_export_that_computes_something_else_is_not_published_and_names_the_layer(
    base: Path, tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mickle.exporting import huggingface

    adapter = make_adapter(base, tmp_path / "adapter")
    honest = huggingface.write_huggingface

    def lying(model: Any, *arguments: Any) -> None:
        model.layers[1].mlp.up_proj.weight.data[3] += 0.01
        honest(model, *arguments)

    monkeypatch.setattr(huggingface, "write_huggingface", lying)
    with pytest.raises(UsageError, match=r"layer 'model.layers.1.mlp.up_proj' of the export computes something else"):
        run(adapter)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob("out.partial/model.safetensors"))


def test_outliers_of_a_layer_are_no_fault_of_its_export(base: Path, run: Any) -> None:
    """One weight of a block in which all others fall between its steps: what llama.cpp's own quantizer makes of it."""
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, ::32] = 60.0
    tensors["model.layers.1.mlp.down_proj.weight"][:, 3] = 0  # what the outliers make goes nowhere
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    out, _ = run(base, format={"kind": "gguf", "type": "Q8_0"})
    proof = json.loads((out / "export.json").read_text())["proof"]
    assert proof["off_layer"] > proof["bound"] and proof["layer"] == "model.layers.1.mlp.up_proj"


@pytest.mark.parametrize("layer", ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"])
def test_a_fault_beside_an_outlier_is_found(layer: str, base: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from mickle.exporting import proof

    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, ::32] = 60.0
    tensors["model.layers.1.mlp.down_proj.weight"][:, 3] = 0
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    honest = proof.layer_differences

    def broken(source: Any, exported: Any, texts: Any) -> Any:
        linear_layers(exported)[layer].weight.data[5, 7] += 1.0
        return honest(source, exported, texts)

    monkeypatch.setattr(proof, "layer_differences", broken)
    with pytest.raises(UsageError, match=f"layer '{layer}'(.|\n)*--bound"):
        run(base, format={"kind": "gguf", "type": "Q8_0"})


def two_matrices(folder: Path) -> Path:
    """A config that says tied beside a file with an output matrix of its own."""
    base = make_base(folder, tied=False)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    return base


def test_the_weight_of_a_layer_with_an_adapter_is_that_of_both() -> None:
    """A layer whose outputs cancel differs by more than the bound when only sums were in another order."""
    source = nn.Sequential(LoraLinear(nn.Linear(8, 8, bias=False), rank=2, alpha=2))
    nn.init.normal_(source[0].lora_B)
    merged = nn.Sequential(nn.Linear(8, 8, bias=False))
    merged[0].weight.data = source[0].weight.data + source[0].lora_B.data @ source[0].lora_A.data
    assert only_rounded(source, merged, "0", "float32")
    merged[0].weight.data[0, 0] += 1e-4
    assert not only_rounded(source, merged, "0", "float32")


def test_an_output_matrix_of_its_own_is_kept_whatever_the_config_says(tmp_path: Path, run: Any) -> None:
    from transformers import AutoModelForCausalLM

    base = two_matrices(tmp_path / "base")
    ids = torch.randint(0, 256, (2, 40), generator=torch.Generator().manual_seed(0))
    theirs = AutoModelForCausalLM.from_pretrained(base)(ids).logits.detach()
    torch.testing.assert_close(logits(open_model(base)), theirs, atol=1e-4, rtol=0)
    torch.testing.assert_close(
        logits(open_model(make_base(tmp_path / "untied", tied=False))), theirs, atol=1e-4, rtol=0
    )
    for model in (base, make_adapter(base, tmp_path / "adapter", size=0.0)):
        out, _ = run(model)
        assert "lm_head.weight" in load_file(out / "model.safetensors")
        torch.testing.assert_close(AutoModelForCausalLM.from_pretrained(out)(ids).logits, theirs, atol=1e-4, rtol=0)
        shutil.rmtree(out)
    tensors = load_file(base / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()  # a copy is tied, as it says
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    assert open_model(base).config.tied


def test_a_folder_that_transformers_reads_as_another_model_is_not_exported(
    base: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two copies of Mickle's that lost the same are alike; transformers on the folder as it came is not."""
    from mickle.models import decoder_folder

    base = make_base(base.with_name("other"), rope_theta=500.0)
    monkeypatch.setattr(decoder_folder, "from_settings", forgets_theta(decoder_folder.from_settings))
    with pytest.raises(UsageError, match=r"transformers reads another model: its logits are off by 0\.\d+"):
        run(base)


def test_an_export_is_refused_where_generate_writes_something_else(
    base: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The logits may be right and the writing wrong: each token that `generate` writes must be Mickle's likeliest."""
    from mickle.models import transformers_bridge

    honest = transformers_bridge.read_by_transformers

    def other_last(folder: Path, texts: Any, tokens: int) -> Any:
        read = honest(folder, texts, tokens)
        return dataclasses.replace(read, written=[[*text[:-1], (text[-1] + 1) % 256] for text in read.written])

    monkeypatch.setattr(transformers_bridge, "read_by_transformers", other_last)
    with pytest.raises(UsageError, match="generate writes .* which is not likeliest to Mickle"):
        run(base)


def test_a_token_0_in_a_text_is_no_padding(base: Path) -> None:
    from mickle.models.transformers_bridge import read_by_transformers

    (base / "generation_config.json").write_text('{"eos_token_id": 299}')
    texts = ([7, 0, 9, 0, 0], [0, 7, 0, 9])
    read = read_by_transformers(base, texts, tokens=3)
    for text, written in zip(texts, read.written, strict=True):
        scores = open_model(base).float()(torch.tensor([[*text, *written]]))[0, len(text) - 1 : -1]
        assert scores.argmax(-1).tolist() == written


def forgets_theta(honest: Any) -> Any:
    return lambda values: dataclasses.replace(honest(values), rope_theta=10_000.0)


def grown(base: Path, mark: str = "<pad>") -> Path:
    words = open_tokenizer(base)
    words.add_special_tokens([mark, "<call>"])
    (base / "tokenizer.json").write_text(words.to_str())
    return base


@pytest.mark.parametrize("form", [{"kind": "huggingface"}, {"kind": "gguf"}])
def test_a_tokenizer_with_ids_that_have_no_row_is_refused_by_their_names(
    form: dict[str, str], base: Path, tmp_path: Path, run: Any
) -> None:
    with pytest.raises(UsageError, match="no row for 2 of the tokenizer's tokens: '<pad>', '<call>'"):
        run(grown(base), format=form)
    adapter = make_adapter(make_base(tmp_path / "under"), tmp_path / "adapter")
    shutil.copy(base / "tokenizer.json", adapter)
    with pytest.raises(UsageError, match="no row for 2 .*: '<pad>'"):
        run(adapter, format=form)


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("tokenizer_config.json", {"pad_token": "<pad>"}),
        ("special_tokens_map.json", {"pad_token": "<pad>"}),
        ("added_tokens.json", {"<pad>": 300}),
    ],
)
def test_a_token_that_transformers_would_add_without_a_row_is_refused(
    file: str, values: dict[str, Any], base: Path, run: Any
) -> None:
    known = json.loads((base / file).read_text()) if (base / file).exists() else {}
    (base / file).write_text(json.dumps({**known, **values}))
    with pytest.raises(UsageError, match="no row for 1 of the tokenizer's tokens: '<pad>'"):
        run(base)


OWN = "{% for m in messages %}<s># {{ m.content }}{% endfor %}"


@pytest.mark.parametrize("where", ["adapter's settings", "adapter's file", "base's settings"])
def test_an_adapters_own_template_comes_before_its_bases(where: str, base: Path, tmp_path: Path, run: Any) -> None:
    from transformers import AutoTokenizer

    adapter = make_adapter(base, tmp_path / "adapter")
    settings = json.loads((base / "tokenizer_config.json").read_text())
    expected = "<s># hi"
    if where == "adapter's file":
        (adapter / "chat_template.jinja").write_text(OWN)
    elif where == "adapter's settings":
        shutil.copy(base / "tokenizer.json", adapter)
        (adapter / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": OWN}))
    else:
        (base / "chat_template.jinja").unlink()
        (base / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": TEMPLATE}))
        (adapter / "tokenizer_config.json").write_text(json.dumps(settings))
        expected = "<|endoftext|><user>hi<|endoftext|>"
    out, _ = run(adapter)
    chat = [{"role": "user", "content": "hi"}]
    assert AutoTokenizer.from_pretrained(out).apply_chat_template(chat, tokenize=False) == expected


def test_an_end_of_turn_that_ends_no_text_is_warned_of(base: Path, run: Any) -> None:
    words = open_tokenizer(base)
    vocabulary = words.get_vocab()
    mark = next(token for token, number in vocabulary.items() if number == len(vocabulary) - 1)
    words.add_special_tokens([mark])
    (base / "tokenizer.json").write_text(words.to_str())
    turn = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}MARK\n{% endfor %}".replace("MARK", mark)
    (base / "chat_template.jinja").write_text(turn)
    _, events = run(base)
    assert any(f"ends an answer with {mark!r}" in event.message for event in events if isinstance(event, Warned))


def test_the_same_export_is_done_once_and_another_base_makes_it_another(base: Path, tmp_path: Path, run: Any) -> None:
    adapter = make_adapter(base, tmp_path / "adapter")
    out, _ = run(adapter)
    _, events = run(adapter)
    assert [event.message for event in events if isinstance(event, Noted)] == [f"{out} is done already"]
    (adapter / "base.json").unlink()
    before = Export(model=adapter).identity()
    shutil.rmtree(base)
    make_base(base, tied=False)
    after = Export(model=adapter).identity()
    assert before["settings"] == after["settings"]
    assert before["fingerprint"] != after["fingerprint"]


def bad(base: Path, tmp_path: Path, what: str) -> dict[str, Any]:
    adapter = make_adapter(base, tmp_path / "adapter")
    if what == "no base":
        shutil.move(base, tmp_path / "gone")
    elif what == "missing shard":
        index = {"weight_map": dict.fromkeys(load_file(base / "model.safetensors"), "a.safetensors")}
        (base / "model.safetensors.index.json").write_text(json.dumps(index))
        (base / "model.safetensors").unlink()
        (adapter / "base.json").unlink()
    elif what == "wrong base":
        return {"model": adapter, "base_folder": make_base(tmp_path / "other", width=32)}
    elif what == "dora":
        path = adapter / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "use_dora": True}))
    elif what == "no folder":
        return {"model": tmp_path / "nothing"}
    elif what == "base of a model":
        return {"model": base, "base_folder": base}
    elif what == "step without journal":
        return {"model": base, "to_step": 3}
    elif what == "original unread":
        return {"model": adapter, "original_folder": base}
    elif what == "not llama":
        return {"model": make_base(tmp_path / "alibi", position="alibi"), "format": {"kind": "gguf"}}
    elif what == "experts":
        return {"model": make_base(tmp_path / "moe", experts=2), "format": {"kind": "gguf"}}
    elif what == "no words":
        (base / "tokenizer.json").unlink()
        return {"model": base, "format": {"kind": "gguf"}}
    return {"model": adapter}


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("no base", "base model of this adapter is not at"),
        ("missing shard", "lacks a.safetensors"),
        ("wrong base", "made on another model"),
        ("dora", "uses DoRA"),
        ("no folder", "no such"),
        ("base of a model", "is no adapter"),
        ("step without journal", "to_step needs a journal"),
        ("original unread", "add --base original"),
        ("not llama", "GGUF is not written of a mickle_decoder"),
        ("experts", "not written of a mixtral"),
        ("no words", "holds its tokenizer, and this folder has none"),
    ],
)
def test_what_cannot_be_exported_is_refused_in_a_sentence(
    what: str, said: str, base: Path, tmp_path: Path, run: Any
) -> None:
    settings = bad(base, tmp_path, what)
    with pytest.raises(MickleError, match=said) as caught:
        run(settings.pop("model"), **settings)
    assert len(str(caught.value).splitlines()) <= 4
    assert not (tmp_path / "out").exists()


def test_a_journal_is_replayed_on_its_base_to_any_step(base: Path, tmp_path: Path, run: Any) -> None:
    from mickle.training.journal import journal_of, write_journal
    from mickle.training.mezo import MeZO
    from mickle.training.replay import fingerprint

    model = open_model(base)
    ids = torch.arange(40)[None]
    optimizer = MeZO(model.named_parameters(), lr=1e-3, seed=5, base=fingerprint(model))
    for _ in range(6):
        with torch.no_grad():
            optimizer.step(lambda: model(ids).square().mean())
    write_journal(journal_of(optimizer, fingerprint(model)), tmp_path / "run.journal")
    out, _ = run(base, journal=tmp_path / "run.journal")
    moved = (logits(model) - logits(open_model(base))).abs().max()
    assert moved > 0.01
    torch.testing.assert_close(logits(open_model(out)), logits(model), atol=1e-3, rtol=0)
    shutil.rmtree(out)
    out, _ = run(base, journal=tmp_path / "run.journal", to_step=0)
    torch.testing.assert_close(logits(open_model(out)), logits(open_model(base)), atol=1e-5, rtol=0)
    shutil.rmtree(out)
    with pytest.raises(UsageError, match="has no step 7"):
        run(base, journal=tmp_path / "run.journal", to_step=7)
    with pytest.raises(UsageError, match="is an adapter; this journal is of all weights"):
        run(make_adapter(base, tmp_path / "adapter"), journal=tmp_path / "run.journal")
