"""Hidden tokens: the loss is a brute force's, batches and padding change nothing, any masked folder, refusals."""

import json
import math

import numpy as np
import pytest
import torch

from mickle.data.heldout import write_pages
from mickle.data.masking import EVALUATION_SEED, Masking, mask_batch, vocabulary_of
from mickle.data.records import Page
from mickle.data.tokenizer import train_tokenizer
from mickle.errors import UsageError
from mickle.evaluation import masked
from mickle.evaluation.evaluate import Evaluate
from mickle.evaluation.masked import pieces_of, score
from mickle.events import ignore
from mickle.models.decoder import Decoder
from mickle.models.folder import open_model, save_model
from mickle.models.shape import DecoderConfig
from mickle.step import execute

PAGES = [Page(f"u{i}", "d", "en", f"page {i} tells of {i * i} birds " + "and a tree " * (i % 7)) for i in range(24)]
TOKENIZER = train_tokenizer([page.text for page in PAGES], 270, or_fewer=True, mask=True)


def encoder(seed: int = 0, std: float = 0.3) -> Decoder:
    shape = DecoderConfig(TOKENIZER.size, 32, 2, 2, 2, 16, 64, max_length=40, causal=False, initial_std=std)
    return Decoder(shape, seed=seed).eval()


@pytest.fixture
def folder(tmp_path):
    save_model(encoder(), tmp_path / "model", TOKENIZER)
    write_pages(PAGES[:6], tmp_path / "model" / "heldout.parquet")
    return tmp_path / "model"


def brute_force(model, rate, length):
    """One piece at a time, all logits, by the definition."""
    found = np.zeros((len(PAGES), 3))
    for sample, (page, tokens) in enumerate(pieces_of(TOKENIZER, [p.text for p in PAGES], length)):
        batch = {"input_ids": torch.from_numpy(tokens)[None]}
        made = mask_batch(batch, np.array([sample]), rate, Masking(), vocabulary_of(TOKENIZER), EVALUATION_SEED)
        with torch.no_grad():
            logits = model(made["input_ids"]).double()[0]
        for at, label in enumerate(made["labels"][0].tolist()):
            if label >= 0:
                right = int(logits[at].argmax()) == label
                found[page] += -float(logits[at].log_softmax(-1)[label]), right, 1
    return found


@pytest.mark.parametrize(("rate", "length"), [(0.15, 40), (0.5, 9)])
def test_the_loss_is_a_brute_force_s(rate, length, monkeypatch):
    model = encoder()
    wanted = brute_force(model, rate, length)
    for batch_tokens, head_bytes in ((8192, 32 << 20), (30, 4 * TOKENIZER.size * 3)):
        monkeypatch.setattr(masked, "BATCH_TOKENS", batch_tokens)
        monkeypatch.setattr(masked, "HEAD_BYTES", head_bytes)
        assert score(model, TOKENIZER, PAGES, rate=rate, length=length) == pytest.approx(wanted, abs=1e-3)
    assert wanted[:, 2].sum() > 50


def test_a_model_that_knows_nothing_has_the_vocabulary_s_logarithm():
    found = masked.summarise(score(encoder(std=1e-4), TOKENIZER, PAGES, rate=0.3, length=40))
    assert found["nats_per_token"] == pytest.approx(math.log(TOKENIZER.size), abs=1e-3)


def test_pieces_have_their_marks_and_every_token_once():
    texts = [page.text for page in PAGES]
    for length in (3, 10, 1000):
        found = list(pieces_of(TOKENIZER, texts, length))
        assert all(len(tokens) <= length and tokens[0] == TOKENIZER.start for _, tokens in found)
        for number, ids in enumerate(TOKENIZER.encode(texts)):
            parts = [tokens[1:] for page, tokens in found if page == number]
            assert np.concatenate(parts).tolist() == ids.tolist()


def test_numbers_table_and_figure(folder, tmp_path):
    out = execute(Evaluate(model=folder, task={"kind": "masked", "rates": [0.5, 0.15]}), tmp_path / "out", ignore)
    results = json.loads((out / "results.json").read_text())
    low, high = results["scores"]
    assert [low["rate"], high["rate"]] == [0.15, 0.5]
    assert low["hidden_tokens"] < high["hidden_tokens"]
    assert low["interval"][0] <= low["nats_per_token"] <= low["interval"][1]
    assert low["perplexity"] == pytest.approx(math.exp(low["nats_per_token"]))
    assert "| 15% |" in (out / "table.md").read_text()
    assert (out / "masked.svg").read_text().count("<svg") == 1
    again = execute(Evaluate(model=folder, task={"kind": "masked", "rates": [0.5, 0.15]}), tmp_path / "two", ignore)
    assert (again / "results.json").read_bytes() == (out / "results.json").read_bytes()


def bert(folder, tokenizer, **settings):
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(vocab_size=tokenizer.size, max_position_embeddings=24, initializer_range=0.3, **shape)
    BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save(folder)
    return open_model(folder)


def test_a_bert_folder_of_transformers(tmp_path):
    model = bert(tmp_path / "bert", TOKENIZER)
    assert score(model, TOKENIZER, PAGES, rate=0.3, length=20) == pytest.approx(brute_force(model, 0.3, 20), abs=1e-3)
    write_pages(PAGES, tmp_path / "pages.parquet")
    task = {"kind": "masked", "data": tmp_path / "pages.parquet"}
    out = execute(Evaluate(model=tmp_path / "bert", task=task), tmp_path / "out", ignore)
    assert json.loads((out / "results.json").read_text())["length"] == 24


def test_a_roberta_reads_no_further_than_its_positions_go(tmp_path):
    from transformers import RobertaConfig, RobertaForMaskedLM

    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = RobertaConfig(vocab_size=TOKENIZER.size, max_position_embeddings=14, pad_token_id=1, **shape)
    RobertaForMaskedLM(config).save_pretrained(tmp_path / "model")
    TOKENIZER.save(tmp_path / "model")
    write_pages(PAGES, tmp_path / "pages.parquet")
    task = {"kind": "masked", "data": tmp_path / "pages.parquet"}
    out = execute(Evaluate(model=tmp_path / "model", task=task), tmp_path / "out", ignore)
    assert json.loads((out / "results.json").read_text())["length"] == 12


def test_refusals(folder, tmp_path):
    def run(model, said, **task):
        with pytest.raises(UsageError, match=said):
            execute(Evaluate(model=model, task={"kind": "masked", **task}), tmp_path / "out", ignore)

    run(folder, "no such file or folder", data=tmp_path / "nowhere.parquet")
    with pytest.raises(UsageError, match="sees both sides") as caught:
        execute(Evaluate(model=folder), tmp_path / "out", ignore)
    assert "--task masked" in caught.value.todo
    (folder / "heldout.parquet").unlink()
    run(folder, "no held-out pages")
    causal = tmp_path / "causal"
    save_model(Decoder(DecoderConfig(TOKENIZER.size, 32, 1, 2, 2, 16, 64, max_length=40)), causal, TOKENIZER)
    write_pages(PAGES, causal / "heldout.parquet")
    run(causal, "sees one side")
    without = train_tokenizer([page.text for page in PAGES], 260)
    without.save(folder)
    write_pages(PAGES, folder / "heldout.parquet")
    run(folder, "no mask token")


def test_rates_outside_are_refused_by_name():
    from mickle.config import validate

    for rates in ([0.0], [1.0], []):
        with pytest.raises(UsageError, match="rates"):
            validate(masked.Masked, {"rates": rates})
