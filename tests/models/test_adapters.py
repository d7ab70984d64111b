"""Adapters go out and come in: ours through PEFT, PEFT's through ours, bit for bit and with the same logits."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mickle.errors import MickleError, NumericError, UsageError
from mickle.models.adapters import adapter_base, open_adapter, save_adapter, tokenizer_folder
from mickle.models.decoder import Decoder, DecoderConfig
from mickle.models.folder import open_model, save_model
from mickle.models.lora import attach_lora, lora_layers, merge_lora
from mickle.models.trained_layers import train_rows, train_whole, trained_rows

IDS = torch.randint(0, 60, (2, 17), generator=torch.Generator().manual_seed(0))


def decoder(**settings: Any) -> Decoder:
    return Decoder(DecoderConfig(60, 32, 2, 4, 2, 8, 48, 64, initial_std=0.2, **settings)).eval()


def shake(model: nn.Module) -> nn.Module:
    """Adapters that have learned something: every number different."""
    generator = torch.Generator().manual_seed(7)
    for layer in lora_layers(model).values():
        with torch.no_grad():
            layer.lora_B.normal_(generator=generator)
    return model


@pytest.fixture
def base(tmp_path: Path) -> Path:
    save_model(decoder(), tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    model = open_model(base)
    attach_lora(model, rank=4, alpha=8, rank_pattern={"o_proj": 2}, alpha_pattern={"q_proj": 3}, dropout=0.1)
    save_adapter(shake(model), tmp_path / "adapter", base)
    return tmp_path / "adapter"


def theirs(kind: str, folder: Path) -> Any:
    """A tiny model of transformers, saved into `folder`."""
    import transformers as t

    torch.manual_seed(1)
    if kind == "gpt2":
        config = t.GPT2Config(vocab_size=60, n_positions=64, n_embd=32, n_layer=2, n_head=4, initializer_range=0.2)
        model: Any = t.GPT2LMHeadModel(config)
    elif kind == "bert":
        model = t.BertForMaskedLM(
            t.BertConfig(
                vocab_size=60,
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=48,
                initializer_range=0.2,
            )
        )
    else:
        save_model(decoder(tied=kind == "llama"), folder)
        model = t.AutoModelForCausalLM.from_pretrained(folder)
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize("kind", ["llama", "untied", "gpt2", "bert"])
def test_what_we_write_peft_reads_bit_for_bit(kind: str, tmp_path: Path) -> None:
    from peft import PeftModel

    model = theirs(kind, tmp_path / "base")
    ours = open_model(tmp_path / "base")
    attach_lora(ours, rank=4, alpha=6, rslora=True, rank_pattern={r"(layers?|h)\.1\..*": 3})
    save_adapter(shake(ours), tmp_path / "adapter", tmp_path / "base")
    peft = PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    expected = peft(IDS).logits
    assert expected.abs().max() > 1
    torch.testing.assert_close(ours(IDS), expected, atol=2e-4, rtol=1e-5)
    peft.save_pretrained(tmp_path / "again")
    equal_files(tmp_path / "adapter", tmp_path / "again")
    again = open_adapter(tmp_path / "again")
    assert torch.equal(again(IDS), open_adapter(tmp_path / "adapter")(IDS))


BESIDE: dict[str, dict[str, Any]] = {
    "llama": {"tokens": {"model.embed_tokens": [7, 3]}, "whole": ["model.norm"]},  # tied
    "untied": {"tokens": {"model.embed_tokens": [3], "lm_head": [3, 59]}, "whole": ["layers.1.input_layernorm"]},
    "gpt2": {"tokens": {"transformer.wte": [0, 59]}, "whole": ["ln_f"]},
    "bert": {"tokens": {"bert.embeddings.word_embeddings": [5]}, "whole": ["cls.predictions.transform.LayerNorm"]},
    "head": {"tokens": {}, "whole": ["lm_head"]},
}


@pytest.mark.parametrize("kind", BESIDE)
def test_rows_and_layers_that_learn_beside_adapters_are_pefts_both_ways(kind: str, tmp_path: Path) -> None:
    """One step of training moves what is named and nothing else; PEFT computes it, and merged it is a plain model."""
    from peft import PeftModel

    shape, chosen = {"head": "untied"}.get(kind, kind), BESIDE[kind]
    model, ours = theirs(shape, tmp_path / "base"), open_model(tmp_path / "base")
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    attach_lora(ours, rank=2, targets=["q_proj", "c_attn", "query"])
    train_rows(ours, chosen["tokens"])
    train_whole(ours, chosen["whole"])
    ours(IDS).logsumexp(-1).sum().backward()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter -= 0.01 * parameter.grad if parameter.grad is not None else 0
        save_adapter(ours, tmp_path / "adapter", tmp_path / "base")
        peft = PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
        torch.testing.assert_close(ours(IDS), expected := peft(IDS).logits, atol=2e-4, rtol=1e-5)
        assert not torch.allclose(expected, open_model(tmp_path / "base")(IDS), atol=1e-3)
        peft.save_pretrained(tmp_path / "again")
        equal_files(tmp_path / "adapter", tmp_path / "again")
        again = open_adapter(tmp_path / "again", base=tmp_path / "base")
        assert torch.equal(again(IDS), open_adapter(tmp_path / "adapter")(IDS))
        save_adapter(again, tmp_path / "third", tmp_path / "base")
        equal_files(tmp_path / "adapter", tmp_path / "third")
        merge_lora(again)
        torch.testing.assert_close(again(IDS), expected, atol=2e-4, rtol=1e-5)
        for name, tensor in again.state_dict().items():
            rows = (tensor != before[name]).any(-1).nonzero() if tensor.ndim == 2 else torch.empty(0)
            tables = [tokens for table, tokens in chosen["tokens"].items() if table.split(".")[-1] in name]
            assert not tables or rows.flatten().tolist() == sorted(tables[0])
    learning = open_adapter(tmp_path / "adapter", trainable=True)
    assert {id(p) for p in learning.parameters() if p.requires_grad} >= {
        id(t.rows) for t in trained_rows(learning).values()
    }


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_what_peft_writes_we_read_bit_for_bit(kind: str, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = theirs(kind, tmp_path / "base")
    end = {"llama": "q_proj", "gpt2": "c_attn", "bert": "query"}[kind]
    config = LoraConfig(
        r=4,
        lora_alpha=5,
        target_modules="all-linear" if kind == "gpt2" else [end, "v_proj" if kind == "llama" else "value"],
        use_rslora=kind == "llama",
        rank_pattern={rf".*\.1\..*{end}": 2},
        alpha_pattern={end: 7},
        init_lora_weights=False,
        task_type=None if kind == "bert" else "CAUSAL_LM",
        fan_in_fan_out=kind == "gpt2",
    )
    peft = get_peft_model(model, config).eval()
    peft.save_pretrained(tmp_path / "adapter")
    ours = open_adapter(tmp_path / "adapter", base=tmp_path / "base")
    torch.testing.assert_close(ours(IDS), peft(IDS).logits, atol=2e-4, rtol=1e-5)
    save_adapter(ours, tmp_path / "again", tmp_path / "base")
    equal_files(tmp_path / "adapter", tmp_path / "again")


@pytest.mark.parametrize(
    "more",
    [
        {"target_modules": ["q_proj", "v_proj", "c_attn"]},  # a list for many architectures
        {"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["v_proj"]},
        {"target_modules": ["q_proj", "v_proj"], "exclude_modules": r".*\.1\..*|.*v_proj"},
        {"target_modules": "all-linear", "exclude_modules": ["o_proj"]},
        {"target_modules": ["q_proj", "layers.1.mlp.up_proj"], "layers_to_transform": [0]},
    ],
)
def test_what_a_list_leaves_out_makes_no_adapter_another(more: dict[str, Any], tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = theirs("llama", tmp_path / "base")
    peft = get_peft_model(model, LoraConfig(r=2, init_lora_weights=False, task_type="CAUSAL_LM", **more)).eval()
    peft.save_pretrained(tmp_path / "adapter")
    ours = open_adapter(tmp_path / "adapter", base=tmp_path / "base")
    torch.testing.assert_close(ours(IDS), peft(IDS).logits, atol=2e-4, rtol=1e-5)


def equal_files(one: Path, other: Path) -> None:
    first, second = (load_file(folder / "adapter_model.safetensors") for folder in (one, other))
    assert first.keys() == second.keys() and first
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_is_saved_is_opened_bit_for_bit(base: Path, adapter: Path) -> None:
    model = open_model(base)
    attach_lora(model, rank=4, alpha=8, rank_pattern={"o_proj": 2}, alpha_pattern={"q_proj": 3})
    again = open_model(adapter)  # the general door knows an adapter's folder
    with torch.no_grad():
        assert torch.equal(again(IDS), shake(model)(IDS))
    for name, layer in lora_layers(model).items():
        assert torch.equal(layer.lora_A, lora_layers(again)[name].lora_A)
        assert layer.scaling == lora_layers(again)[name].scaling
    settings = json.loads((adapter / "adapter_config.json").read_text())
    assert settings["target_modules"] == sorted(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )
    assert (settings["r"], settings["lora_alpha"], settings["lora_dropout"]) == (4, 8, 0.1)
    assert not again.training and not any(p.requires_grad for p in again.parameters())


def test_an_adapter_opened_for_training_trains_its_own_numbers_alone(adapter: Path) -> None:
    model = open_adapter(adapter, dtype=torch.bfloat16, trainable=True)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if "lora_" in name}
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert model(IDS).dtype == torch.bfloat16


def test_some_layers_alone_are_named_whole_where_their_ends_would_name_others(base: Path, tmp_path: Path) -> None:
    model = open_model(base)
    names = attach_lora(model, targets=[r"model.layers.1.self_attn.q_proj"])
    save_adapter(model, tmp_path / "adapter", base)
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert settings["target_modules"] == names


def test_base_and_adapter_may_be_moved_together_and_the_base_given(base: Path, adapter: Path, tmp_path: Path) -> None:
    assert adapter_base(adapter) == base.resolve()
    expected = open_adapter(adapter)(IDS)
    (tmp_path / "elsewhere").mkdir()
    for folder in (base, adapter):
        shutil.move(folder, tmp_path / "elsewhere" / folder.name)
    moved = tmp_path / "elsewhere" / "adapter"
    assert torch.equal(open_adapter(moved)(IDS), expected)
    shutil.move(tmp_path / "elsewhere" / "base", tmp_path / "there")
    with pytest.raises(UsageError, match="base model of this adapter is not at .*\n.*\n.*open_adapter.*base="):
        open_adapter(moved)
    assert torch.equal(open_adapter(moved, base=tmp_path / "there")(IDS), expected)


def test_where_an_adapter_is_written_is_no_part_of_it_and_moved_with_its_base_it_opens(
    base: Path, tmp_path: Path
) -> None:
    model = open_model(base)
    attach_lora(model, rank=2)
    for place in ("near", "runs/of/today"):
        save_adapter(model, tmp_path / "all" / place, base)
    near, far = ({f.name: f.read_bytes() for f in (tmp_path / "all" / p).iterdir()} for p in ("near", "runs/of/today"))
    assert near == far
    (tmp_path / "all" / "models").mkdir()
    shutil.move(base, tmp_path / "all" / "models" / base.name)
    save_model(Decoder(DecoderConfig(60, 32, 2, 4, 2, 8, 48, 64), seed=5), tmp_path / "all" / "runs" / base.name)
    shutil.copytree(tmp_path / "all" / "models" / base.name, tmp_path / "all" / base.name)
    assert adapter_base(tmp_path / "all" / "runs/of/today") == tmp_path / "all" / base.name  # not the other model


def test_the_tokenizer_is_the_adapters_own_or_its_bases(base: Path, adapter: Path) -> None:
    assert tokenizer_folder(base) == base
    assert tokenizer_folder(adapter) == base.resolve()
    (adapter / "tokenizer.json").write_text("{}")
    assert tokenizer_folder(adapter) == adapter


def change(folder: Path, **values: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def edit(folder: Path, edit_tensors: Any) -> None:
    tensors: dict[str, Tensor] = load_file(folder / "adapter_model.safetensors")
    edit_tensors(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


Q = "base_model.model.model.layers.0.self_attn.q_proj"
CONFIGS = {
    "DoRA": {"use_dora": True},
    "trains biases .bias 'all'": {"bias": "all"},
    "no layer is called 'lm_head'": {"modules_to_save": ["lm_head"]},
    "has not the tensors that its settings name: 'embed_tokens'": {"trainable_token_indices": {"embed_tokens": [1]}},
    "trainable_token_indices is .*1, 1": {"trainable_token_indices": [1, 1]},
    "modules_to_save is .3": {"modules_to_save": [3]},
    "layer_replication": {"layer_replication": [[0, 2]]},
    "Megatron": {"megatron_config": {"a": 1}},
    "began with 'pissa', which changes the base": {"init_lora_weights": "pissa"},
    "began with 'olora'": {"init_lora_weights": "olora"},
    "began with 'loftq'": {"init_lora_weights": "loftq"},
    "does not know, 'use_tomorrow'": {"use_tomorrow": 1},
    "kind 'LOHA'": {"peft_type": "LOHA"},
    "names no peft_type": {"peft_type": None},
    "r is 0": {"r": 0},
    "r is True": {"r": True},
    "lora_alpha is x": {"lora_alpha": "x"},
    "lora_dropout is 1.5": {"lora_dropout": 1.5},
    "use_rslora is 1": {"use_rslora": 1},
    "rank_pattern is no table": {"rank_pattern": [3]},
    "take too long": {"alpha_pattern": {"(a+)+x": 1}},
    "could take too long": {"rank_pattern": {".*.*.*.*.*.*x": 1}},
    "q_proj. is F32 of shape .4, 32.\n.*\n.*floats of .3, 32.": {"r": 3, "rank_pattern": {}},
}


@pytest.mark.parametrize("said", CONFIGS)
def test_settings_that_we_cannot_compute_are_refused_by_name(said: str, adapter: Path) -> None:
    change(adapter, **CONFIGS[said])
    with pytest.raises(UsageError, match=said):
        open_adapter(adapter)


TENSORS = {
    "lacks tensor .*q_proj.lora_B.weight": lambda t: t.pop(f"{Q}.lora_B.weight"),
    "no part of a LoRA: .*lora_magnitude": lambda t: t.update({f"{Q}.lora_magnitude_vector": torch.ones(3)}),
    "no linear layer 'lm_head'": lambda t: t.update(
        {f"base_model.model.lm_head.lora_{x}.weight": torch.ones(2, 2) for x in "AB"}
    ),
    "lora_A of .*q_proj' is F32 of shape .4, 31.": lambda t: t.update({f"{Q}.lora_A.weight": torch.ones(4, 31)}),
    "is I64 of shape": lambda t: t.update({f"{Q}.lora_A.weight": torch.ones(4, 32, dtype=torch.int64)}),
    "holds no tensors": lambda t: t.clear(),
    "no tensors for its target 'o_proj'": lambda t: [t.pop(name) for name in list(t) if "o_proj" in name],
}


@pytest.mark.parametrize("said", TENSORS)
def test_tensors_that_do_not_fit_are_refused_by_name(said: str, adapter: Path) -> None:
    edit(adapter, TENSORS[said])
    with pytest.raises(UsageError, match=said):
        open_adapter(adapter)


def test_a_number_that_is_not_finite_is_named_in_and_out(adapter: Path, base: Path, tmp_path: Path) -> None:
    edit(adapter, lambda tensors: tensors[f"{Q}.lora_B.weight"].fill_(float("nan")))
    with pytest.raises(NumericError, match=r"q_proj.lora_B.weight' holds numbers that are not finite"):
        open_adapter(adapter)
    model = open_model(base)
    attach_lora(model)
    next(iter(lora_layers(model).values())).lora_A.data[0, 0] = float("inf")
    with pytest.raises(NumericError, match=r"q_proj.lora_A.weight"):
        save_adapter(model, tmp_path / "other", base)
    assert not (tmp_path / "other" / "adapter_config.json").exists()


def test_another_base_is_refused_by_its_weights_or_by_the_layer_that_does_not_fit(
    adapter: Path, tmp_path: Path
) -> None:
    save_model(Decoder(DecoderConfig(60, 32, 2, 4, 2, 8, 48, 64), seed=5), tmp_path / "other")
    with pytest.raises(UsageError, match="made on another model than .*other"):
        open_adapter(adapter, base=tmp_path / "other")
    (adapter / "base.json").unlink()
    assert open_adapter(adapter, base=tmp_path / "other")(IDS).isfinite().all()
    save_model(Decoder(DecoderConfig(60, 40, 2, 4, 2, 8, 48, 64)), tmp_path / "wider")
    with pytest.raises(UsageError, match="lora_A of 'model.layers.0.*q_proj'.*\n.*\n.*expected: .*maps 40 to 32"):
        open_adapter(adapter, base=tmp_path / "wider")


HOW: dict[str, Any] = {
    "another argument": {"code": "nf4", "model": 3},
    "a code of no type": {"code": []},
    "a block of text": {"code": "nf4", "block": "64"},
    "numbers to skip": {"skip": [3]},
}


def broken_folders(folder: Path, name: str) -> None:
    if name == "no weights":
        (folder / "adapter_model.safetensors").unlink()
    elif name == "cut weights":
        path = folder / "adapter_model.safetensors"
        path.write_bytes(path.read_bytes()[:-10])
    elif name == "link out":
        shutil.move(folder / "adapter_model.safetensors", folder.parent / "out.safetensors")
        (folder / "adapter_model.safetensors").symlink_to(folder.parent / "out.safetensors")
    elif name == "no base":
        (folder / "base.json").unlink()
        change(folder, base_model_name_or_path="someone/some-model")
    elif name == "base is an adapter":
        shutil.copytree(folder, folder.parent / "first")
        (folder.parent / "first" / "config.json").write_text("{}")
        change(folder, base_model_name_or_path=str(folder.parent / "first"))
    elif name == "bad json":
        (folder / "adapter_config.json").write_text("{")
    elif name == "bad note":
        (folder / "base.json").write_text('{"path": 3}')
    elif name in HOW:
        note = json.loads((folder / "base.json").read_text())
        (folder / "base.json").write_text(json.dumps({**note, "quantization": HOW[name]}))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no weights", "lacks adapter_model.safetensors"),
        ("cut weights", "not a sound safetensors file"),
        ("link out", "link to outside"),
        ("no base", "base model of this adapter is not at 'someone/some-model'"),
        ("base is an adapter", "base of this adapter is an adapter itself"),
        ("bad json", "not valid JSON"),
        ("bad note", "does not say what the adapter's base is"),
        *((name, "in a way that is not known") for name in HOW),
    ],
)
def test_broken_folders_are_refused_in_a_sentence(name: str, said: str, adapter: Path) -> None:
    broken_folders(adapter, name)
    with pytest.raises(MickleError, match=said) as caught:
        open_adapter(adapter)
    assert len(str(caught.value).splitlines()) <= 4


def test_a_model_without_adapters_has_none_to_save(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no adapters to save"):
        save_adapter(open_model(base), tmp_path / "adapter", base)
