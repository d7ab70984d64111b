"""Other architectures behind our call: documents apart, padding harmless, the cache exact."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from mickle.errors import UsageError
from mickle.models.folder import describe, open_model, save_model
from mickle.models.wrapped import WrappedModel
from mickle.training.dropout import set_dropout
from mickle.training.objectives import masked_token

IDS = torch.randint(0, 60, (2, 11), generator=torch.Generator().manual_seed(0))
PACKED = torch.tensor([[0] * 4 + [1] * 7, [-1] * 3 + [0] * 8])
SMALL = {"vocab_size": 60, "hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 48}
SMALL |= {"initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
CAUSAL: dict[str, dict[str, Any]] = {
    "GPT2": {},
    "Bloom": {},
    "GPTNeoX": {},
    "OPT": {"ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 64},
    "Qwen2": {"num_key_value_heads": 1},
    "Mamba": {"state_size": 4},
}


def make(name: str, kind: str, folder: Path) -> tuple[Any, WrappedModel]:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SMALL, **CAUSAL.get(name, {}))
    theirs = getattr(transformers, f"{name}{kind}")(config).eval()
    theirs.save_pretrained(folder)
    model = open_model(folder)
    assert isinstance(model, WrappedModel)
    return theirs, model


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", CAUSAL)
def test_a_causal_model_gives_its_own_logits(name: str, tmp_path: Path) -> None:
    theirs, model = make(name, "LMHeadModel" if name == "GPT2" else "ForCausalLM", tmp_path)
    assert model.causal
    assert model.vocab_size == 60
    with torch.no_grad():
        close(model(IDS), theirs(IDS).logits)


def test_a_masked_model_opens_and_says_that_it_is_not_causal(tmp_path: Path) -> None:
    theirs, model = make("Bert", "ForMaskedLM", tmp_path)
    assert not model.causal
    close(model(IDS), theirs(IDS).logits)
    close(model(IDS, documents=PACKED)[1, 3:], model(IDS[1:, 3:])[0])


def test_the_head_gets_logits_and_no_matrix_and_gradients_flow(tmp_path: Path) -> None:
    _, model = make("GPT2", "LMHeadModel", tmp_path)
    scores, weight = model(IDS, documents=PACKED, head=lambda scores, weight: (scores, weight))
    assert weight is None
    scores.square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_wrapped_model_is_saved_as_what_it_is(tmp_path: Path) -> None:
    theirs, model = make("GPT2", "LMHeadModel", tmp_path / "in")
    save_model(model, tmp_path / "out")
    close(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")(IDS).logits, theirs(IDS).logits)
    found = describe(tmp_path / "out")
    assert found.model_type == "gpt2"
    assert not found.ours


def test_two_documents_in_a_cached_row_are_refused(tmp_path: Path) -> None:
    _, model = make("GPT2", "LMHeadModel", tmp_path)
    with pytest.raises(UsageError, match="one document"):
        model(IDS, documents=PACKED, cache=model.new_cache())


@pytest.mark.parametrize(
    ("name", "lacks", "expected"),
    [
        ("BertModel", "'cls.predictions.bias' is missing", "BertForMaskedLM"),
        ("BertForSequenceClassification", "'cls.predictions.bias' is missing", "BertForMaskedLM"),
        ("GPTNeoXModel", "'lm_head.weight' is missing", "GPTNeoXForCausalLM"),
        ("LlamaModel", "'lm_head.weight', the head that predicts tokens", None),
        ("T5ForConditionalGeneration", "t5 is no language model", "continues texts"),
        ("ViTModel", "vit is no language model", "continues texts"),
    ],
)
def test_a_folder_without_its_head_says_what_to_do(name: str, lacks: str, expected: str | None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    kind = getattr(transformers, name)
    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_heads": 2, "num_layers": 2, "vocab_size": 60}
    kind(kind.config_class(**(sizes if name.startswith("T5") else SMALL))).save_pretrained(tmp_path)
    with pytest.raises(UsageError) as found:
        open_model(tmp_path)
    assert lacks in found.value.what and found.value.todo.startswith("take ")
    assert expected is None or expected in found.value.expected


def test_weights_that_lack_a_tensor_are_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    make("GPT2", "LMHeadModel", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["transformer.h.1.mlp.c_fc.bias"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match=r"h\.1\.mlp\.c_fc\.bias"):
        open_model(tmp_path)


MASKED: dict[str, dict[str, Any]] = {
    "Bert": SMALL | {"max_position_embeddings": 64},
    "Roberta": SMALL | {"max_position_embeddings": 64},
    "DistilBert": {"vocab_size": 60, "dim": 32, "n_heads": 2, "n_layers": 2, "hidden_dim": 48, "pad_token_id": 0}
    | {"initializer_range": 0.2},
    "ModernBert": SMALL | {"cls_token_id": 1, "sep_token_id": 2, "local_attention": 8, "global_attn_every_n_layers": 2},
}
CHOSEN = torch.tensor([[0, 1, 0, 1, 0, 0, 1, 0, 0, 1, 1], [0, 0, 1, 1, 0, 0, 0, 1, 0, 0, 0]], dtype=torch.bool)


def fresh(name: str) -> WrappedModel:
    torch.manual_seed(0)
    if name in MASKED:
        settings, kind = MASKED[name], "ForMaskedLM"
    else:
        settings, kind = SMALL | CAUSAL.get(name, {}), "LMHeadModel" if name == "GPT2" else "ForCausalLM"
    config = getattr(transformers, f"{name}Config")(**settings)
    return WrappedModel(getattr(transformers, f"{name}{kind}")(config)).eval()


@pytest.mark.parametrize("name", [*MASKED, "Llama", "GPT2"])
@pytest.mark.parametrize("packed", [False, True])
def test_the_output_layer_runs_on_the_chosen_positions_alone(name: str, packed: bool) -> None:
    """Dynamic masking, oracle 6: loss and gradients of the gathered head are those of all logits."""
    model = fresh(name)
    documents = PACKED if packed else None
    widths: list[torch.Size] = []
    hook = model.model.get_output_embeddings().register_forward_hook(
        lambda _module, _inputs, output: widths.append(output.shape)
    )
    found = []
    for gathered in (False, True):
        model.zero_grad(set_to_none=True)
        scores = (
            model(IDS, documents=documents, positions=CHOSEN) if gathered else model(IDS, documents=documents)[CHOSEN]
        )
        loss = nn.functional.cross_entropy(scores, IDS[CHOSEN])
        loss.backward()
        found.append((scores, loss, [w.grad for w in model.parameters() if w.grad is not None]))
    hook.remove()
    rows = int(CHOSEN.sum()) - (int((CHOSEN & (PACKED < 0)).sum()) if packed else 0)  # padding is not read
    assert widths[1] == (rows, 60)
    close(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], atol=1e-5, rtol=1e-5)
    assert len(found[0][2]) == len(found[1][2]) > 10
    for whole, some in zip(found[0][2], found[1][2], strict=True):
        torch.testing.assert_close(whole, some, atol=1e-5, rtol=1e-4)
    assert model(IDS, documents=documents, positions=torch.zeros_like(CHOSEN)).shape == (0, 60)
    assert not model.model.get_output_embeddings()._forward_pre_hooks


def test_without_an_output_layer_of_that_shape_the_finished_logits_are_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fresh("Bert")
    whole = model(IDS, documents=PACKED)[CHOSEN]
    for layer in (None, nn.Identity()):  # no such layer; a layer that the model does not call
        monkeypatch.setattr(model.model, "get_output_embeddings", lambda layer=layer: layer)
        close(model(IDS, documents=PACKED, positions=CHOSEN), whole)


def test_positions_with_a_cache() -> None:
    model = fresh("GPT2")
    whole = model(IDS)
    cache = model.new_cache()
    model(IDS[:, :6], cache=cache)
    close(model(IDS[:, 6:], cache=cache, positions=CHOSEN[:, 6:]), whole[:, 6:][CHOSEN[:, 6:]])


@pytest.mark.parametrize("name", MASKED)
def test_a_masked_model_trains_and_is_saved_as_what_it_is(name: str, tmp_path: Path) -> None:
    fresh(name).model.save_pretrained(tmp_path / "in")
    model = open_model(tmp_path / "in")
    assert isinstance(model, WrappedModel)
    model.train()
    set_dropout(model, 0.0)
    labels = torch.where(CHOSEN & (PACKED >= 0), IDS, -100)
    batch = {"input_ids": torch.where(labels >= 0, 3, IDS), "labels": labels, "documents": PACKED}
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    values = []
    for _ in range(25):
        total, count = masked_token(model, batch)
        assert count == (labels >= 0).sum()
        values.append(float(total.detach() / count))
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
    assert values[-1] < values[0] / 3
    set_dropout(model, 0.5)
    assert float(masked_token(model, batch)[0].detach()) != float(masked_token(model, batch)[0].detach())
    save_model(model.eval(), tmp_path / "out")
    theirs, info = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    close(theirs(IDS).logits, model(IDS))
