"""`pretrain` beyond the plain run: masked, by domain weights, from a model folder, regularised, with experts."""

import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from test_pretrain import SMALL, corpus  # noqa: F401

from mickle import storage
from mickle.config import load, to_yaml
from mickle.errors import UsageError
from mickle.events import Noted, ignore
from mickle.step import execute
from mickle.training.pretrain import Pretrain

MASKED = {"objective": {"kind": "masked", "rate": {"kind": "linear", "start": 0.4, "end": 0.2}}}


class Killed(BaseException):
    """Ends a run as abruptly as an exception can."""


@pytest.fixture(scope="module")
def encoder(corpus, tmp_path_factory):  # noqa: F811
    return execute(Pretrain(data=corpus, **SMALL, **MASKED), tmp_path_factory.mktemp("masked") / "model", ignore)


def lines(folder, event):
    told = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in told if line["event"] == event]


def test_transformers_loads_the_encoder(encoder):
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    from mickle.models.folder import open_model

    theirs, tokenizer = AutoModelForMaskedLM.from_pretrained(encoder), AutoTokenizer.from_pretrained(encoder)
    assert tokenizer.mask_token_id is not None
    ids = tokenizer(f"The {tokenizer.mask_token} sees the dog", return_tensors="pt")["input_ids"]
    assert (ids == tokenizer.mask_token_id).sum() == 1
    ours = open_model(encoder)
    assert not ours.causal
    with torch.no_grad():
        assert torch.allclose(theirs.eval()(ids).logits, ours(ids), atol=1e-4)


def test_the_rate_falls_and_is_written_down(encoder):
    trained = lines(encoder, "trained")
    shares = [line["count"] / 128 for line in trained]
    assert sum(shares[:4]) / 4 == pytest.approx(0.4 - 0.2 * 1.5 / 12, abs=0.09)  # 4 binomial deviations
    assert sum(shares[8:]) / 4 == pytest.approx(0.4 - 0.2 * 9.5 / 12, abs=0.09)
    assert sum(shares[:4]) > sum(shares[8:])
    assert list(lines(encoder, "evaluated")[0]["values"]) == ["heldout_loss"]
    assert trained[-1]["loss"] < trained[0]["loss"]


def test_a_masked_run_that_was_cut_off_ends_as_one_that_was_not(encoder, corpus, tmp_path):  # noqa: F811
    def cut(event):
        if getattr(event, "step", 0) == 7:
            raise Killed

    step = Pretrain(data=corpus, **SMALL, **MASKED)
    with pytest.raises(Killed):
        execute(step, tmp_path / "model", cut)
    execute(step, tmp_path / "model", ignore)
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (tmp_path / "model" / name).read_bytes() == (encoder / name).read_bytes(), name


def further(corpus, start, **settings):  # noqa: F811
    given = {k: v for k, v in SMALL.items() if k not in ("size", "vocabulary_size")}
    return Pretrain(data=corpus, start=start, **{**given, **settings})


def test_a_model_of_ours_goes_on_from_its_weights(encoder, corpus, tmp_path):  # noqa: F811
    out = execute(further(corpus, encoder, **MASKED), tmp_path / "model", ignore)
    assert lines(out, "trained")[0]["loss"] == pytest.approx(lines(encoder, "trained")[-1]["loss"], abs=0.4)
    summaries = [storage.open_folder(folder).meta["summary"] for folder in (out, encoder)]
    assert summaries[0]["parameters"] == summaries[1]["parameters"]


def test_a_model_that_goes_on_keeps_its_ends_its_template_and_its_small_files(corpus, tmp_path):  # noqa: F811
    from mickle.models.folder import end_tokens

    start = execute(Pretrain(data=corpus, **{**SMALL, "steps": 2}), tmp_path / "start", ignore)
    (start / "manifest.json").unlink()
    (start / "generation_config.json").write_text('{"eos_token_id": [7, 9], "temperature": 0.5}')
    (start / "chat_template.jinja").write_text("{{ messages }}")
    (start / "tokenizer.model").write_bytes(b"pieces")
    end = json.loads((start / "config.json").read_text())["eos_token_id"]
    out = execute(further(corpus, start, steps=2), tmp_path / "model", ignore)
    assert end_tokens(out) == [7, 9, end]
    assert json.loads((out / "generation_config.json").read_text())["temperature"] == 0.5
    for name in ("chat_template.jinja", "tokenizer.model"):
        assert (out / name).read_bytes() == (start / name).read_bytes()


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A BERT folder as transformers writes it, with a WordPiece tokenizer."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    pieces.normalizer, pieces.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    words = ["the cat sees a dog and an owl . it is number 0 1 2 3 4 5 6 7 8 9 page fox hen cow ant"]
    pieces.train_from_iterator(words, trainers.WordPieceTrainer(vocab_size=90, special_tokens=special))
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=pieces, mask_token="[MASK]", **names).save_pretrained(folder)
    settings = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(vocab_size=pieces.get_vocab_size(), max_position_embeddings=40, **settings))
    model.save_pretrained(folder)
    return folder


def test_a_bert_goes_on_and_stays_a_bert(bert, corpus, tmp_path):  # noqa: F811
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    from mickle.models.folder import open_model

    step = further(corpus, bert, learning_rate=0.02, objective={"kind": "masked", "unit": "word"})
    forecast, preview = step.dry_run()
    assert forecast.memory_bytes > 0 and "[MASK]" in preview.replace("\\", "")
    out = execute(step, tmp_path / "model", ignore)
    assert json.loads((out / "config.json").read_text())["model_type"] == "bert"
    trained = lines(out, "trained")
    assert trained[-1]["loss"] < trained[0]["loss"] - 0.3
    theirs = AutoModelForMaskedLM.from_pretrained(out).eval()
    ids = AutoTokenizer.from_pretrained(out)("the [MASK] sees", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert torch.allclose(theirs(ids).logits, open_model(out)(ids), atol=1e-4)


def test_domains_are_sampled_by_their_weights(corpus, tmp_path):  # noqa: F811
    weights = tmp_path / "weights.yaml"
    weights.write_text("weights: {d0: 0.5, d1: 0.5, d2: 0.0}\n")
    said = []
    out = execute(Pretrain(data=corpus, mixture=weights, **SMALL), tmp_path / "model", said.append)
    assert any("d0 0.500" in e.message for e in said if isinstance(e, Noted))
    assert lines(out, "trained")[-1]["loss"] < 5.2


def test_regularisers_and_experts(corpus, tmp_path):  # noqa: F811
    from transformers import AutoModelForCausalLM

    settings = {
        **SMALL,
        "size": 95_000,
        "objective": {"kind": "next", "smoothing": 0.1},
        "dropout": {"rate": 0.2, "start": 0.5},
        "architecture": {"experts": 4, "drop_path": 0.1},
        "optimizer": {"kind": "adamw", "weight_decay": 1.0},
    }
    out = execute(Pretrain(data=corpus, **settings), tmp_path / "model", ignore)
    assert json.loads((out / "config.json").read_text())["model_type"] == "mixtral"
    assert AutoModelForCausalLM.from_pretrained(out).config.num_local_experts == 4


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"objective": {"kind": "masked", "rate": {"kind": "constant", "rate": 1.0}}}, "rate"),
        ({"objective": {"kind": "masked", "rate": {"kind": "constant", "rate": 0.0}}}, "rate"),
        ({"objective": {"kind": "maskd"}}, "maskd"),
        ({"start": "model", "size": 40_000}, "leave that out"),
        ({"architecture": {"drop_path": 1.0}}, "drop_path"),
        ({"dropout": {"rate": 0.1, "start": 0.7, "ramp": 0.7}}, "together at most 1"),
    ],
)
def test_settings_that_cannot_be(settings, said):
    with pytest.raises(ValidationError, match=said):
        Pretrain(data=Path("corpus"), **settings)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ("d0: 0.5\nd1: 0.5\n", "d2"),
        ("weights: {d0: 0.5, d1: 0.2, d2: 0.2, e: 0.1}\n", "'e'"),
        ("weights: {d0: 0.5, d1: 0.5, d2: 0.5}\n", "1.5"),
        ("weights: {d0: -0.5, d1: 1.0, d2: 0.5}\n", "-0.5"),
        ("weights: [1, 2]\n", "weight"),
        ("", "weights"),
    ],
)
def test_weights_that_will_not_do(corpus, tmp_path, weights, said):  # noqa: F811
    (tmp_path / "weights.yaml").write_text(weights)
    step = Pretrain(data=corpus, mixture=tmp_path / "weights.yaml", **SMALL)
    with pytest.raises(UsageError, match=said) as caught:
        execute(step, tmp_path / "model", ignore)
    assert len(str(caught.value).splitlines()) <= 4
    assert not (tmp_path / "model").exists()


def test_models_and_tokenizers_that_do_not_fit_the_objective(encoder, bert, corpus, tmp_path):  # noqa: F811
    with pytest.raises(UsageError, match="sees both sides"):
        execute(further(corpus, bert), tmp_path / "model", ignore)
    plain = execute(Pretrain(data=corpus, **{**SMALL, "steps": 1}), tmp_path / "plain", ignore)
    with pytest.raises(UsageError, match="sees one side"):
        execute(further(corpus, plain, **MASKED), tmp_path / "model", ignore)
    with pytest.raises(UsageError, match="no mask token"):
        without = {**SMALL, "vocabulary_size": None, "tokenizer": plain, **MASKED}
        execute(Pretrain(data=corpus, **without), tmp_path / "model", ignore)
    with pytest.raises(UsageError, match="at most 40"):
        execute(further(corpus, bert, sequence_length=64, **MASKED), tmp_path / "model", ignore)
    assert not (tmp_path / "model").exists()


def test_the_settings_that_a_run_leaves_are_read_back(tmp_path):
    step = Pretrain(data="corpus", start="model", steps=3)
    (tmp_path / "settings.yaml").write_text(to_yaml(step))
    assert load(Pretrain, tmp_path / "settings.yaml") == step
