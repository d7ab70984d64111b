"""Folders in 4 bits: ours in transformers and theirs in ours with the same logits, and folders made to harm."""

import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mickle.errors import NumericError, UsageError
from mickle.models.decoder import Decoder, DecoderConfig
from mickle.models.folder import open_model, save_model
from mickle.models.linear_layers import linear_layers
from mickle.models.lora import merge_lora
from mickle.models.quantized import (
    bits_per_weight,
    linear_bytes,
    quantize_model,
    quantized_layers,
    save_quantized,
)
from mickle.quantization.nf4_linear import NF4Linear

IDS = torch.tensor([[5, 9, 200, 31, 7, 7, 64, 1, 0, 255, 18, 90]])
MODEL = DecoderConfig(256, 64, 2, 4, 2, 16, 192, 64)
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


def decoder(tied: bool = True) -> Decoder:
    shape = DecoderConfig(**{**vars(MODEL), "tied": tied})
    return Decoder(shape, seed=1).eval()


def wrapped(kind: str) -> nn.Module:
    import transformers

    from mickle.models.wrapped import WrappedModel

    torch.manual_seed(0)
    if kind == "gpt2":
        shape: Any = transformers.GPT2Config(
            vocab_size=256, n_embd=64, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0,
            attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0,
        )  # fmt: skip
        return WrappedModel(transformers.GPT2LMHeadModel(shape)).eval()
    shape = transformers.BertConfig(
        vocab_size=256, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return WrappedModel(transformers.BertForMaskedLM(shape)).eval()


@torch.no_grad()
def scores(model: nn.Module) -> Tensor:
    return model(IDS)


# -- our own way round -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "double"), [("nf4", True), ("fp4", False)])
@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_decoder_opens_as_it_was(tmp_path: Path, code: str, double: bool, tied: bool) -> None:
    model = decoder(tied)
    names = quantize_model(model, code, double)
    assert names == list(linear_layers(model))
    assert len(names) == 14
    assert not any("lm_head" in name or "embed" in name for name in names)
    assert isinstance(model.embed_tokens, nn.Embedding)
    save_quantized(model, tmp_path / "model")
    opened = open_model(tmp_path / "model")
    assert isinstance(opened, Decoder)
    assert not opened.training
    assert torch.equal(scores(opened), scores(model))
    assert linear_bytes(opened) == linear_bytes(model)
    merge_lora(opened)
    assert not quantized_layers(opened)
    torch.testing.assert_close(scores(opened), scores(model), rtol=1e-4, atol=1e-5)


def test_saving_after_decoding_writes_the_same_bytes(tmp_path: Path) -> None:
    model = decoder()
    quantize_model(model, double=False)
    save_quantized(model, tmp_path / "before")
    cache = model.new_cache()
    with torch.no_grad():
        model(IDS[:, :1], cache=cache)
    assert any(layer.in_strips for layer in model.modules() if isinstance(layer, NF4Linear))
    save_quantized(model, tmp_path / "after")
    name = "model.safetensors"
    assert (tmp_path / "before" / name).read_bytes() == (tmp_path / "after" / name).read_bytes()


def test_layers_are_left_out_by_the_end_of_their_name() -> None:
    model = decoder()
    names = quantize_model(model, skip=("down_proj", "o_proj"))
    assert len(names) == 10
    assert isinstance(model.layers[0].mlp.down_proj, nn.Linear)
    assert quantize_model(model, skip=("down_proj",)) == [f"model.layers.{i}.self_attn.o_proj" for i in (0, 1)]


def test_a_dense_weight_is_let_go_before_the_next_is_quantized(monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder()
    layers = [weakref.ref(layer) for layer in linear_layers(model).values()]
    alive: list[int] = []
    made = NF4Linear.from_dense

    def from_dense(*arguments: Any) -> NF4Linear:
        alive.append(sum(layer() is not None for layer in layers))
        return made(*arguments)

    monkeypatch.setattr(NF4Linear, "from_dense", from_dense)
    quantize_model(model)
    assert alive == list(range(14, 0, -1))


def test_errors_by_layer_show_outliers() -> None:
    model = decoder()
    with torch.no_grad():
        model.layers[1].self_attn.k_proj.weight[:, ::64] = 100.0
    errors: dict[str, float] = {}
    names = quantize_model(model, errors=errors)
    assert list(errors) == names
    loud = "model.layers.1.self_attn.k_proj"
    assert all(0.08 < error < 0.12 for name, error in errors.items() if name != loud)
    flat = model.layers[1].self_attn.k_proj.dequantized()
    assert not flat[:, 1:].any()  # every other number became 0


def test_adapters_on_4_bits_begin_at_the_base() -> None:
    """B = 0: the output is the base's, A gets no gradient and B does."""
    from mickle.models.lora import attach_lora, lora_layers

    model = decoder()
    quantize_model(model)
    base = scores(model)
    attach_lora(model, rank=4, seed=0)
    torch.testing.assert_close(scores(model), base, rtol=1e-5, atol=1e-6)
    assert len(quantized_layers(model)) == 14
    model.train()(IDS).square().sum().backward()
    for layer in lora_layers(model).values():
        gradients = {name: p.grad for name, p in layer.named_parameters() if p.requires_grad}
        assert len(gradients) == 2
        for name, gradient in gradients.items():
            assert gradient is not None
            assert bool(gradient.any()) == ("B" in name or "b." in name)


def test_bits_and_bytes_of_a_model() -> None:
    model = decoder()
    assert (linear_bytes(model), bits_per_weight(model)) == (0, 0.0)
    weights = sum(layer.weight.numel() for layer in linear_layers(model).values())  # type: ignore[union-attr, operator]
    quantize_model(model, double=False)
    assert linear_bytes(model) == weights // 2 + 4 * weights // 64 + 14 * 64
    assert bits_per_weight(model) == pytest.approx(8 * linear_bytes(model) / weights)


def test_memory_of_a_loaded_base(tmp_path: Path) -> None:
    """At most 0.516 bytes a linear weight and 2 of any other, 2 % over, where layers are not tiny."""
    model = Decoder(DecoderConfig(64, 512, 1, 4, 4, 128, 2048, 64), seed=0).to(torch.bfloat16)
    linear = sum(layer.weight.numel() for layer in linear_layers(model).values())  # type: ignore[union-attr, operator]
    others = sum(p.numel() for p in model.parameters()) - linear
    quantize_model(model)
    save_quantized(model, tmp_path / "model")
    opened = open_model(tmp_path / "model")
    held = [*opened.parameters(), *(b for m in opened.modules() if isinstance(m, NF4Linear) for b in m.buffers())]
    assert sum(t.numel() * t.element_size() for t in held) <= 1.02 * (0.516 * linear + 2 * others)
    stored = (tmp_path / "model" / "model.safetensors").stat().st_size
    assert stored <= 1.02 * (0.516 * linear + 2 * others) + 20_000  # header and tables


def test_a_weight_that_is_not_finite_is_named() -> None:
    model = decoder()
    with torch.no_grad():
        model.layers[1].mlp.up_proj.weight[3, 5] = float("nan")
    with pytest.raises(NumericError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        quantize_model(model)


def test_study_codes_and_mixed_codes_are_not_written(tmp_path: Path) -> None:
    model = decoder()
    quantize_model(model, "int3")
    with pytest.raises(UsageError, match="int3"):
        save_quantized(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    mixed = decoder()
    quantize_model(mixed, "nf4", skip=("down_proj",))
    quantize_model(mixed, "fp4")
    with pytest.raises(UsageError, match="several ways"):
        save_quantized(mixed, tmp_path / "model")


# -- transformers and bitsandbytes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_ours_in_theirs_and_theirs_in_ours(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bitsandbytes")
    import transformers

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, double = ("fp4", False) if kind == "gpt2" else ("nf4", True)
    model = decoder(tied=False) if kind == "llama" else wrapped(kind)
    save_model(model, tmp_path / "dense")
    names = quantize_model(model, code, double)
    save_quantized(model, tmp_path / "ours")
    assert torch.equal(scores(open_model(tmp_path / "ours")), scores(model))

    auto = transformers.AutoModelForMaskedLM if kind == "bert" else transformers.AutoModelForCausalLM
    theirs = auto.from_pretrained(tmp_path / "ours")
    four = [name for name, m in theirs.named_modules() if type(m).__name__ == "Linear4bit"]
    assert four == names
    theirs.train()  # without dropout; in evaluation its layers compute in bfloat16
    with torch.no_grad():
        assert torch.equal(theirs(IDS).logits, scores(model))

    settings = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=code, bnb_4bit_use_double_quant=double,
        bnb_4bit_quant_storage=torch.bfloat16 if kind == "llama" else torch.uint8,
    )  # fmt: skip
    own = auto.from_pretrained(tmp_path / "dense", quantization_config=settings)
    own.train().save_pretrained(tmp_path / "theirs")
    with torch.no_grad():
        assert torch.equal(scores(open_model(tmp_path / "theirs")), own(IDS).logits)


def test_a_dense_gpt2_comes_back_from_4_bits(tmp_path: Path) -> None:
    model = wrapped("gpt2")
    quantize_model(model)
    before = scores(model)
    merge_lora(model)
    save_model(model, tmp_path / "dense")
    torch.testing.assert_close(scores(open_model(tmp_path / "dense")), before, rtol=1e-4, atol=1e-5)


# -- made to harm ----------------------------------------------------------------------------------------------------


def tensors(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        values = load_file(folder / "model.safetensors")
        change(values)
        save_file(values, folder / "model.safetensors", {"format": "pt"})

    return apply


def state(text: str | bytes) -> Callable[[Path], None]:
    raw = text.encode() if isinstance(text, str) else text
    name = f"{Q_PROJ}.quant_state.bitsandbytes__nf4"
    return tensors(lambda t: t.update({name: torch.tensor(list(raw), dtype=torch.uint8)}))


def fields(**values: Any) -> Callable[[Path], None]:
    """Change fields of one state."""

    def change(t: dict[str, Tensor]) -> None:
        name = f"{Q_PROJ}.quant_state.bitsandbytes__nf4"
        found = json.loads(bytes(t[name].tolist()))
        t[name] = torch.tensor(list(json.dumps({**found, **values}).encode()), dtype=torch.uint8)

    return tensors(change)


def settings(**values: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "config.json"
        found = json.loads(path.read_text())
        found["quantization_config"] = {**found["quantization_config"], **values}
        path.write_text(json.dumps(found))

    return apply


HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "no state": (tensors(lambda t: t.pop(f"{Q_PROJ}.quant_state.bitsandbytes__nf4")), "tensor"),
    "two states": (
        tensors(lambda t: t.update({f"{Q_PROJ}.quant_state.bitsandbytes__fp4": torch.zeros(9, dtype=torch.uint8)})),
        "2 states",
    ),
    "an unknown state": (
        tensors(lambda t: t.update({f"{Q_PROJ}.quant_state.bitsandbytes__af4": torch.zeros(9, dtype=torch.uint8)})),
        "tensor",
    ),
    "no scales": (tensors(lambda t: t.pop(f"{Q_PROJ}.absmax")), "no such tensor"),
    "scales cut": (tensors(lambda t: t.update({f"{Q_PROJ}.absmax": t[f"{Q_PROJ}.absmax"][:-1].clone()})), "63 numbers"),
    "scales of another type": (
        tensors(lambda t: t.update({f"{Q_PROJ}.absmax": t[f"{Q_PROJ}.absmax"].float()})), "float32",
    ),
    "nested scales cut": (
        tensors(lambda t: t.update({f"{Q_PROJ}.nested_absmax": torch.zeros(0)})), "0 numbers",
    ),
    "a map of 15": (tensors(lambda t: t.update({f"{Q_PROJ}.quant_map": torch.zeros(15)})), "15 numbers"),
    "a map of other values": (tensors(lambda t: t.update({f"{Q_PROJ}.quant_map": torch.ones(16)})), "another code"),
    "a nested map of other values": (
        tensors(lambda t: t.update({f"{Q_PROJ}.nested_quant_map": torch.ones(256)})), "another code",
    ),
    "scales that are not finite": (
        tensors(lambda t: t[f"{Q_PROJ}.nested_absmax"].fill_(float("nan"))), "not finite",
    ),
    "bytes cut": (tensors(lambda t: t.update({Q_PROJ: t[Q_PROJ][:-1].clone()})), "2,047 bytes"),
    "no bytes": (tensors(lambda t: t.pop(Q_PROJ)), "no such tensor"),
    "no JSON": (state("{"), "no JSON"),
    "no object": (state("[1, 2]"), "cannot be"),
    "JSON of 1,000 levels": (state("[" * 2000 + "]" * 2000), "sound"),
    "JSON of a megabyte": (state(b" " * (1 << 20)), "at most 4096"),
    "not UTF-8": (state(b"\xff\xfe\xfd"), "no JSON"),
    "a number of 4,000 digits": (state('{"shape": ' + "9" * 4000 + "}"), "sound"),
    "a shape of another size": (fields(shape=[128, 64]), "2,048 bytes"),
    "a shape that turns the weight": (fields(shape=[32, 128]), "[32, 128]"),
    "a huge shape": (fields(shape=[2**31, 2**31]), "cannot be"),
    "a negative shape": (fields(shape=[-64, -64]), "cannot be"),
    "a shape of truths": (fields(shape=[True, True]), "cannot be"),
    "a block of 0": (fields(blocksize=0), "cannot be"),
    "a block of 1e9": (fields(blocksize=10**9), "cannot be"),
    "an attribute of torch": (fields(dtype="load"), "cannot be"),
    "an offset that is infinite": (fields(nested_offset=float("inf")), "cannot be"),
    "nested blocks of 1": (fields(nested_blocksize=1), "cannot be"),
    "another method": (settings(quant_method="gptq"), "gptq"),
    "no method": (settings(quant_method=None), "None"),
    "8 bits": (settings(load_in_8bit=True), "8 bits"),
    "a method without layers": (settings(quant_method="mickle-grouped"), "table of layers"),
    "settings that are a list": (
        lambda folder: (folder / "config.json").write_text(
            json.dumps({**json.loads((folder / "config.json").read_text()), "quantization_config": [1]})
        ) and None,
        "cannot be opened",
    ),
    "a weight too many": (tensors(lambda t: t.update({"model.extra.weight": torch.zeros(2)})), "unknown"),
    "a weight too few": (tensors(lambda t: t.pop("model.norm.weight")), "lack"),
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = decoder()
    quantize_model(model)
    folder = tmp_path_factory.mktemp("whole") / "model"
    save_quantized(model, folder)
    return folder


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_folders_get_one_sentence(whole: Path, tmp_path: Path, name: str) -> None:
    change, words = HOSTILE[name]
    for file in whole.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    open_model(tmp_path)
    change(tmp_path)
    with pytest.raises((UsageError, NumericError)) as caught:
        open_model(tmp_path)
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 4
