"""`mickle compress`: whole folders in few bits, killed anywhere, of every kind, with one sentence for what is wrong."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mickle
from mickle import storage
from mickle.compression import walk as walking
from mickle.compression.compress import Compress
from mickle.compression.target import Budget, error_counts, group_for, taus
from mickle.config import validate
from mickle.errors import NumericError, ResourceError, UsageError
from mickle.events import Noted, Warned, ignore
from mickle.models.decoder import Decoder, DecoderConfig
from mickle.models.folder import open_model, save_model
from mickle.models.lora import attach_lora
from mickle.quantization.grouped_linear import GroupedLinear
from mickle.step import execute

IDS = torch.randint(0, 250, (2, 20), generator=torch.Generator().manual_seed(0))


def compress(model: Path, data: Path | None, out: Path, emit: Any = ignore, **settings: Any) -> Path:
    given = {"model": model, "data": data, "samples": 4, "length": 32, **settings}
    return execute(validate(Compress, given), out, emit)


def sentences(heard: list[Any]) -> str:
    return "\n".join(event.message for event in heard if isinstance(event, (Noted, Warned)))


def results(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = storage.read_json(out / "layers.json")
    return found


@pytest.fixture(scope="module")
def small(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a decoder with weights that matter, odd widths, three blocks; the tokenizer of `made`."""
    from mickle.data.tokenizer import open_text_tokenizer

    tokenizer = open_text_tokenizer(made / "model")
    folder = tmp_path_factory.mktemp("small") / "model"
    shape = DecoderConfig(tokenizer.size, 40, 3, 5, 5, 8, 72, 64, initial_std=0.1, tied=True)
    save_model(Decoder(shape), folder, tokenizer)
    return folder


@pytest.mark.parametrize(
    ("method", "most"),
    [
        ({"kind": "spqr", "bits": 4}, 0.08),
        ({"kind": "spqr", "bits": 3, "statistics": 16, "group": 32, "act_order": False}, 0.2),
        ({"kind": "gptq", "bits": 4, "group": 0}, 0.1),
        ({"kind": "rtn", "bits": 4, "group": 16}, 0.12),
        ({"kind": "nf4"}, 0.12),
    ],
)
def test_a_compressed_folder_is_the_model_in_few_bits(
    small: Path, made: Path, method: dict[str, Any], most: float, tmp_path: Path
) -> None:
    out = compress(small, made / "corpus", tmp_path / "out", method=method)
    dense, opened = open_model(small), open_model(out)
    with torch.no_grad():
        exact, found = dense(IDS), opened(IDS)
    assert 0 < float((found - exact).norm() / exact.norm()) < 4 * most
    said = results(out)
    assert len(said["layers"]) == 21
    assert all(0 < layer["error"] < most for layer in said["layers"])
    assert said["bytes_after"] < said["bytes_before"]
    assert (out / "tokenizer.json").read_bytes() == (small / "tokenizer.json").read_bytes()
    assert "quantization_config" in json.loads((out / "config.json").read_text())


def test_bytes_are_those_of_the_files(small: Path, made: Path, tmp_path: Path) -> None:
    out = compress(small, made / "corpus", tmp_path / "out", method={"kind": "spqr", "tau": 0.1})
    from mickle.models.safetensors_check import read_header

    entries = {n: e for path in out.glob("*.safetensors") for n, e in read_header(path).items()}
    for layer in results(out)["layers"]:
        own = [e for name, e in entries.items() if name.startswith(f"{layer['name']}.")]
        assert sum(e.end - e.start for e in own) == layer["bytes"]
    assert layer["outliers"] > 0
    assert "lm_head.weight" not in entries  # tied, and no linear layer of a block
    assert entries["model.embed_tokens.weight"].dtype == "F32"


def test_it_evaluates_samples_and_is_tuned(made: Path, tmp_path: Path) -> None:
    out = compress(made / "model", made / "corpus", tmp_path / "out")
    said = results(out)["loss"]
    assert said["after"]["perplexity"] == pytest.approx(said["before"]["perplexity"], rel=0.05)
    scored = mickle.evaluate(model=out, out=tmp_path / "scored")
    assert results_of(scored)["model"]["perplexity"] == pytest.approx(said["after"]["perplexity"], rel=1e-3)
    mickle.sample(model=out, prompts=["The"], max_tokens=5, out=tmp_path / "text")
    model = open_model(out)
    assert attach_lora(model, rank=2)
    model.train()
    model(IDS).square().mean().backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert trained and any(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)


def results_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = storage.read_json(folder / "results.json")
    return found


def test_killed_after_each_block_it_goes_on_to_the_same_bytes(
    small: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = {"kind": "spqr", "outliers": 0.02}
    whole = compress(small, made / "corpus", tmp_path / "whole", method=method)
    for last in range(3):
        real, swept = walking._write_block, []

        def write(folder: Path, index: int, *rest: Any, last: int = last, real: Any = real) -> None:
            real(folder, index, *rest)
            if index == last:
                raise KeyboardInterrupt

        def counting(*arguments: Any, real: Any = walking._quantize_block, swept: Any = swept) -> Any:
            swept.append(arguments[2])
            return real(*arguments)

        out = tmp_path / f"killed-{last}"
        with monkeypatch.context() as patch:
            patch.setattr(walking, "_write_block", write)
            with pytest.raises(KeyboardInterrupt):
                compress(small, made / "corpus", out, method=method)
        with monkeypatch.context() as patch:
            patch.setattr(walking, "_quantize_block", counting)
            compress(small, made / "corpus", out, method=method)
        assert swept == list(range(last + 1, 3))
        assert storage.content_digest(out) == storage.content_digest(whole)


def test_a_disk_that_fills_in_the_middle_is_one_sentence_and_goes_on(
    small: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = storage.save_tensors

    def full(path: Path, *rest: Any) -> None:
        if path.name == "00001.safetensors":
            with storage.disk_errors(path):
                raise OSError(28, "no space left")
        real(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "save_tensors", full)
        with pytest.raises(ResourceError, match="disk refused"):
            compress(small, made / "corpus", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    out = compress(small, made / "corpus", tmp_path / "out")
    quiet = compress(small, made / "corpus", tmp_path / "quiet")
    assert storage.content_digest(out) == storage.content_digest(quiet)


def test_a_size_is_met_and_never_exceeded(small: Path, made: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="without outliers it takes") as refused:
        compress(small, made / "corpus", tmp_path / "no", method={"kind": "spqr", "target_bits": 2.0})
    least = float(refused.value.expected.removeprefix("at least ").split(",")[0])
    for more in (0.0, 0.3, 0.8, 1.5):
        wish = least + more
        method = {"kind": "spqr", "target_bits": wish}
        found = results(compress(small, made / "corpus", tmp_path / f"{more}", method=method))
        assert 0.98 * wish <= found["bits_per_weight"] <= wish


def test_sizes_that_cannot_be_reached_and_shares(small: Path, made: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot be reached.*without outliers it takes"):
        compress(small, made / "corpus", tmp_path / "no", method={"kind": "spqr", "target_bits": 2.0})
    with pytest.raises(UsageError, match="cannot be reached"):
        compress(small, None, tmp_path / "no", method={"kind": "rtn", "target_bits": 2.0})
    share = results(compress(small, made / "corpus", tmp_path / "share", method={"kind": "spqr", "outliers": 0.02}))
    assert share["outlier_share"] == pytest.approx(0.02, rel=0.15)


def test_the_smallest_group_that_fits() -> None:
    sizes = [(64, 256)]
    assert group_for(sizes, 4, 4.5, ordered=False) == 64
    assert group_for(sizes, 4, 4.49, ordered=False) == 128
    assert group_for(sizes, 4, 6.1, ordered=False) == 16
    assert group_for(sizes, 4, 4.2, ordered=False) == 0


def test_budget_counts_and_corrects() -> None:
    errors = torch.linspace(-3, 3, 1001).double().numpy()
    counts = error_counts(errors, 1.0)
    place = int(abs(taus() - 4.0).argmin())
    assert counts[place] == int((errors**2 > taus()[place]).sum())
    budget = Budget(600, [counts, counts])
    first = budget.tau()
    assert 2 * counts[int(abs(taus() - first).argmin())] <= 600
    budget.spend(first, 450)  # half as many again as predicted
    assert budget.left == 150
    assert budget.tau() > first


def test_a_budget_spends_exactly_what_is_left_and_nothing_when_it_is_overdrawn() -> None:
    counts = error_counts(np.sqrt(np.array([1e-3] * 3 + [1e-1] * 4)), 1.0)
    above = {count: float(taus()[counts.index(count)]) for count in (7, 4, 0)}  # the smallest tau with so many
    for left, expected in ((7, 7), (6, 4), (4, 4), (3, 0), (0, 0), (-5, 0)):
        assert Budget(left, [counts]).tau() == above[expected], left
    assert (
        Budget(0, [error_counts(np.array([0.1]), 1.0)]).tau()
        > 0.01
        > Budget(1, [error_counts(np.array([0.1]), 1.0)]).tau()
    )
    # From 50 predicted on, what they became corrects what is predicted: a tenth of them, so ten times as many fit.
    assert Budget(1, [counts], predicted=50, spent=5).tau() == above[7]
    assert Budget(1, [counts], predicted=49, spent=5).tau() == above[0]
    assert Budget(1, [counts], predicted=50, spent=0).tau() == above[0]


def test_experts_without_tokens_are_rounded_and_named(made: Path, tmp_path: Path) -> None:
    from mickle.data.tokenizer import open_text_tokenizer

    tokenizer = open_text_tokenizer(made / "model")
    shape = DecoderConfig(tokenizer.size, 32, 1, 4, 4, 8, 48, 64, initial_std=0.2, experts=8, experts_per_token=1)
    save_model(Decoder(shape), tmp_path / "model", tokenizer)
    text = tmp_path / "ten.txt"
    text.write_text("a b")
    heard: list[Any] = []
    out = compress(tmp_path / "model", text, tmp_path / "out", heard.append, length=4)
    said = results(out)
    rounded = [layer for layer in said["layers"] if "rounded" in layer["remark"]]
    assert rounded and all("experts" in layer["name"] and layer["tokens"] == 0 for layer in rounded)
    assert any("only" in layer["remark"] for layer in said["layers"])
    assert "tokens of calibration text say little" in sentences(heard)
    assert "rounded" in sentences(heard)
    assert torch.isfinite(open_model(out)(IDS)).all()


def test_gpt2_and_biases_through_the_wrapper(made: Path, tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    shape = {"n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 64}
    theirs = GPT2LMHeadModel(GPT2Config(vocab_size=600, initializer_range=0.2, **shape))
    theirs.save_pretrained(tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(made / "model" / name, tmp_path / "model" / name)
    heard: list[Any] = []
    out = compress(
        tmp_path / "model", made / "corpus", tmp_path / "out", heard.append, method={"kind": "spqr", "bits": 4}
    )
    assert "opened whole" in sentences(heard)
    assert "transformer.h.1.mlp.c_proj" in {layer["name"] for layer in results(out)["layers"]}
    with torch.no_grad():
        exact, found = open_model(tmp_path / "model")(IDS), open_model(out)(IDS)
    assert 0 < float((found - exact).norm() / exact.norm()) < 0.2


def test_later_layers_see_what_earlier_ones_became(small: Path, made: Path, tmp_path: Path) -> None:
    """The last block's reported error is that on inputs from the compressed blocks before it."""
    from mickle.compression.calibration import read_calibration
    from mickle.compression.hessian import gather
    from mickle.compression.sweep import relative_error
    from mickle.data.tokenizer import open_text_tokenizer
    from mickle.models.linear_layers import dense_weight, linear_layers

    out = compress(small, made / "corpus", tmp_path / "out", method={"kind": "spqr", "bits": 2, "tau": 1e9})
    ids = read_calibration(made / "corpus", open_text_tokenizer(small), [], samples=4, length=32, seed=0).ids
    opened, dense = open_model(out), open_model(small)
    name = "model.layers.2.self_attn.q_proj"
    layers = linear_layers(opened)
    with gather({name: layers[name]}) as gathered, torch.no_grad():
        opened(ids)
    layer = layers[name]
    assert isinstance(layer, GroupedLinear)
    weight = dense_weight(linear_layers(dense)[name])
    found = relative_error(weight, layer.dequantized(), gathered.hessian(name))
    said = {figures["name"]: figures["error"] for figures in results(out)["layers"]}
    assert said[name] == pytest.approx(found, rel=1e-3)


def test_what_cannot_be_calibrated_on_is_refused(made: Path, small: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="held-out pages"):
        compress(made / "model", made / "model" / "heldout.parquet", tmp_path / "out")
    from mickle.data.heldout import read_pages

    held = next(read_pages(made / "model" / "heldout.parquet"))[0].text
    (tmp_path / "leak.txt").write_text(f"Something else first. {held}")
    with pytest.raises(UsageError, match="held-out pages"):
        compress(made / "model", tmp_path / "leak.txt", tmp_path / "out")
    (tmp_path / "empty.txt").write_text(" ")
    with pytest.raises(UsageError, match="no calibration text"):
        compress(small, tmp_path / "empty.txt", tmp_path / "out")
    (tmp_path / "image.png").write_text("x")
    with pytest.raises(UsageError, match="cannot be read"):
        compress(small, tmp_path / "image.png", tmp_path / "out")
    with pytest.raises(UsageError, match="needs calibration text"):
        compress(small, None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_that_are_not_finite_are_named_before_anything(small: Path, made: Path, tmp_path: Path) -> None:
    tensors = storage.load_tensors(small / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 3] = float("nan")
    shutil.copytree(small, tmp_path / "model")
    storage.save_tensors(tmp_path / "model" / "model.safetensors", tensors, {"format": "pt"})
    with pytest.raises(NumericError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        compress(tmp_path / "model", made / "corpus", tmp_path / "out")


def test_a_compressed_folder_is_not_compressed_again(small: Path, made: Path, tmp_path: Path) -> None:
    out = compress(small, None, tmp_path / "out", method={"kind": "rtn"})
    for method in ("spqr", "nf4"):
        with pytest.raises(UsageError, match="few bits already"):
            compress(out, made / "corpus", tmp_path / "again", method={"kind": method})


def test_transformers_refuses_what_only_mickle_can_read(small: Path, made: Path, tmp_path: Path) -> None:
    """It would ignore the method that it does not know, and draw the weights at random."""
    from transformers import AutoModelForCausalLM

    (small / "tokenizer.model").write_bytes(b"sentencepiece")
    out = compress(small, made / "corpus", tmp_path / "out")
    assert (out / "tokenizer.model").read_bytes() == b"sentencepiece"
    with pytest.raises(ValueError, match="mickle_grouped"):
        AutoModelForCausalLM.from_pretrained(out)
    again = tmp_path / "again"
    save_model(open_model(out), again)  # from a model too
    with pytest.raises(ValueError, match="mickle_grouped"):
        AutoModelForCausalLM.from_pretrained(again)
    expected = open_model(out)(IDS)
    assert torch.equal(open_model(again)(IDS), expected)
    config = json.loads((again / "config.json").read_text())
    settings = config["quantization_config"]
    config |= {"model_type": settings.pop("model_type")}  # as folders were before
    (again / "config.json").write_text(json.dumps(config))
    assert torch.equal(open_model(again)(IDS), expected)
    (again / "config.json").write_text(json.dumps({**config, "model_type": "mickle_grouped"}))
    with pytest.raises(UsageError, match="does not say which model"):
        open_model(again)


@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
def test_layers_that_are_read_by_their_weight_stay_as_they_are(kind: str, made: Path, tmp_path: Path) -> None:
    """Of a state-space model's mixers only what leads in is stored in few bits or adapted: no other can be."""
    import transformers as t

    from mickle.models.quantized import quantize_model

    sizes = {"vocab_size": 600, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "bos_token_id": 0}
    torch.manual_seed(0)
    if kind == "mamba":
        theirs: Any = t.MambaForCausalLM(t.MambaConfig(**sizes))
    else:  # its settings hold an infinity, which JSON has not
        theirs = t.Mamba2ForCausalLM(t.Mamba2Config(**sizes, num_heads=4, head_dim=16, n_groups=1))
    theirs.eval().save_pretrained(tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(made / "model" / name, tmp_path / "model" / name)
    names = {f"backbone.layers.{n}.mixer.in_proj" for n in range(2)}
    with torch.no_grad():
        exact = theirs(IDS).logits
    for method in ("gptq", "nf4"):
        out = compress(tmp_path / "model", made / "corpus", tmp_path / method, method={"kind": method})
        assert {layer["name"] for layer in results(out)["layers"]} == names
        with torch.no_grad():
            assert 0 < float((open_model(out)(IDS) - exact).norm() / exact.norm()) < 0.4
    model = open_model(tmp_path / "model")
    assert set(quantize_model(model)) == set(attach_lora(model, rank=2)) == names
    model.train()
    model(IDS).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_every_method_covers_the_layers_inside_blocks(made: Path, tmp_path: Path) -> None:
    """OPT leads in and out of its blocks by linear layers; no method stores those in few bits."""
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 600}
    OPTForCausalLM(OPTConfig(**shape, word_embed_proj_dim=24, init_std=0.2)).save_pretrained(tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(made / "model" / name, tmp_path / "model" / name)
    covered = [
        {
            layer["name"]
            for layer in results(compress(tmp_path / "model", None, tmp_path / m, method={"kind": m}))["layers"]
        }
        for m in ("rtn", "nf4")
    ]
    assert covered[0] == covered[1] and len(covered[0]) == 12
    with torch.no_grad():
        exact, found = open_model(tmp_path / "model")(IDS), open_model(tmp_path / "nf4")(IDS)
    assert 0 < float((found - exact).norm() / exact.norm()) < 0.5


def test_a_dry_run_says_size_memory_and_text(small: Path, made: Path) -> None:
    forecast, preview = validate(Compress, {"model": small, "data": made / "corpus", "samples": 4}).dry_run()
    assert forecast.memory_bytes > 0 and forecast.disk_bytes > 0
    assert "3 blocks" in forecast.notes[0]
    assert "4 sequences of 64 tokens" in preview
