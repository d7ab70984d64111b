"""Minimal pairs: pseudo-log-likelihood by brute force, BLiMP's fields, Wilson's interval, and lines that are wrong."""

import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mickle.data.tokenizer import train_tokenizer
from mickle.errors import UsageError
from mickle.evaluation import pairs as module
from mickle.evaluation.evaluate import Evaluate
from mickle.evaluation.pairs import (
    Pair,
    accuracies,
    log_likelihoods,
    pseudo_log_likelihoods,
    read_pairs,
    score_pairs,
    wilson,
)
from mickle.events import ignore
from mickle.models.decoder import Decoder
from mickle.models.folder import save_model
from mickle.models.shape import DecoderConfig
from mickle.step import execute

TEXTS = [f"the cats {verb} and {n} dogs {verb} the birds" for n in range(9) for verb in ("see", "hear", "chase")]
TOKENIZER = train_tokenizer(TEXTS, 275, or_fewer=True, mask=True)


def model(causal: bool, std: float = 0.3) -> Decoder:
    shape = DecoderConfig(TOKENIZER.size, 32, 2, 2, 2, 16, 64, max_length=64, causal=causal, initial_std=std)
    return Decoder(shape, seed=0).eval()


@torch.no_grad()
def test_pll_is_a_loop_over_positions_masked_one_at_a_time(monkeypatch):
    encoder = model(causal=False)
    wanted = []
    for (ids,) in ([ids] for ids in TOKENIZER.encode(TEXTS[:8])):
        total = 0.0
        for at, token in enumerate(ids):
            row = np.concatenate([[TOKENIZER.start], ids])
            row[at + 1] = TOKENIZER.mask
            logits = encoder(torch.from_numpy(row)[None])[0, at + 1].double()
            total += float(logits.log_softmax(-1)[token])
        wanted.append(total)
    assert len({round(total, 3) for total in wanted}) > 4
    for batch_tokens in (8192, 40):
        monkeypatch.setattr(module, "BATCH_TOKENS", batch_tokens)
        assert pseudo_log_likelihoods(encoder, TOKENIZER, TEXTS[:8]) == pytest.approx(wanted, abs=1e-4)


def test_a_uniform_model_gives_minus_l_log_v():
    lengths = np.array([len(ids) for ids in TOKENIZER.encode(TEXTS)])
    for rule, causal in ((pseudo_log_likelihoods, False), (log_likelihoods, True)):
        scores = rule(model(causal, std=1e-5), TOKENIZER, TEXTS)
        assert scores == pytest.approx(-lengths * math.log(TOKENIZER.size), abs=1e-3)


@torch.no_grad()
def test_a_causal_model_s_score_is_the_chain_rule():
    decoder = model(causal=True)
    (ids,) = TOKENIZER.encode(TEXTS[:1])
    row = torch.from_numpy(np.concatenate([[TOKENIZER.start], ids]))
    table = decoder(row[None])[0].double().log_softmax(-1)
    wanted = sum(float(table[at, token]) for at, token in enumerate(ids))
    assert log_likelihoods(decoder, TOKENIZER, TEXTS[:3])[0] == pytest.approx(wanted, abs=1e-4)


def test_a_masked_model_of_transformers_with_marks_of_its_own(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForMaskedLM

    from mickle.data.tokenizer import open_text_tokenizer
    from mickle.models.folder import open_model

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({w for text in TEXTS for w in text.split()})]
    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    plain.add_special_tokens(words[:5])
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    theirs = BertForMaskedLM(
        BertConfig(vocab_size=len(words), max_position_embeddings=16, initializer_range=0.4, **shape)
    ).eval()
    theirs.save_pretrained(tmp_path)
    plain.save(str(tmp_path / "tokenizer.json"))
    marks = {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(marks))
    texts = ["the cats see the birds", "the dogs hear"]
    found = pseudo_log_likelihoods(open_model(tmp_path), open_text_tokenizer(tmp_path), texts)
    for text, score in zip(texts, found, strict=True):
        ids = [2, *plain.encode(text).ids, 3]
        total = 0.0
        for at in range(1, len(ids) - 1):
            row = torch.tensor(ids)
            row[at] = 4
            with torch.no_grad():
                logits = theirs(row[None]).logits[0, at].double()
            total += float(logits.log_softmax(-1)[ids[at]])
        assert score == pytest.approx(total, abs=1e-4)


def test_wilson_s_interval_solves_its_equation():
    for successes, n in ((0, 10), (7, 10), (10, 10), (40.5, 81), (999, 1000)):
        share = successes / n
        for bound in wilson(successes, n):
            assert 0 <= bound <= 1
            if 1e-9 < bound < 1 - 1e-9:
                assert abs(share - bound) == pytest.approx(1.959964 * math.sqrt(bound * (1 - bound) / n))
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe 1998, table I


def test_ties_count_half_and_kinds_are_told_apart():
    some = [Pair("g", "b", kind, "") for kind in ("x", "x", "y", "y")]
    overall, x, y = accuracies(some, np.array([[-1.0, -2.0], [-3.0, -3.0], [-5.0, -4.0], [-1.0, -4.0]]))
    assert (overall["kind"], overall["pairs"], overall["accuracy"], overall["ties"]) == ("all", 4, 0.625, 1)
    assert (x["kind"], x["accuracy"], y["kind"], y["accuracy"]) == ("x", 0.75, "y", 0.5)
    assert y["margin"] == pytest.approx(1.0)
    assert len(accuracies(some[:2], np.zeros((2, 2)))) == 1


OURS = {"good": "the cats see", "bad": "the cats sees", "kind": "number"}
BLIMP = {"sentence_good": "a b", "sentence_bad": "b a", "UID": "order", "linguistics_term": "islands", "field": "x"}


def test_every_format_says_the_same(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in (OURS, BLIMP)) + "\n\n")
    (tmp_path / "a.json").write_text(json.dumps([OURS, BLIMP]))
    names = {**BLIMP, **OURS}
    pq.write_table(pa.table({name: [names[name]] for name in ("good", "bad", "kind")}), tmp_path / "a.parquet")
    lines = read_pairs(tmp_path / "a.jsonl")
    assert [(p.good, p.bad, p.kind) for p in lines] == [
        ("the cats see", "the cats sees", "number"),
        ("a b", "b a", "islands"),
    ]
    assert [p.where for p in lines] == [f"{tmp_path / 'a.jsonl'}:1", f"{tmp_path / 'a.jsonl'}:2"]
    assert [p.good for p in read_pairs(tmp_path / "a.json")] == ["the cats see", "a b"]
    assert read_pairs(tmp_path / "a.parquet")[0].kind == "number"
    (tmp_path / "b.jsonl").write_text(json.dumps(BLIMP))
    assert read_pairs(tmp_path / "b.jsonl", by="UID")[0].kind == "order"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not JSON"),
        ("7", "a number, not an object"),
        ('{"good": "a"}', "lacks a good or a bad"),
        ('{"good": "a", "bad": 3}', "empty or no text"),
        ('{"good": "a", "bad": " "}', "empty or no text"),
        ('{"good": "a", "bad": "a"}', "the same"),
        ("[" * 5000, "not JSON|inside each other"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, said):
    (tmp_path / "a.jsonl").write_text(json.dumps(OURS) + "\n" + line)
    with pytest.raises(UsageError, match=said) as caught:
        read_pairs(tmp_path / "a.jsonl")
    assert caught.value.where.endswith("a.jsonl:2")


def test_files_that_are_none(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "latin.jsonl").write_bytes(b'{"good": "\xe9"}')
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    wrong = {"empty.jsonl": "no pairs", "latin.jsonl": "UTF-8", "a.parquet": "not a whole Parquet", "x": "no file"}
    for name, said in wrong.items():
        with pytest.raises(UsageError, match=said):
            read_pairs(tmp_path / name)
    (tmp_path / "by.jsonl").write_text(json.dumps(OURS))
    with pytest.raises(UsageError, match="no field 'UID'"):
        read_pairs(tmp_path / "by.jsonl", by="UID")


def test_a_sentence_longer_than_the_model_reads_is_named():
    some = [Pair("the cats see", "the cat see", "", "pairs:1"), Pair("cats " * 70, "dogs", "", "pairs:2")]
    with pytest.raises(UsageError, match="the model reads 64") as caught:
        score_pairs(model(causal=False), TOKENIZER, some)
    assert caught.value.where == "pairs:2"


@pytest.mark.parametrize("causal", [False, True])
def test_numbers_table_figure_and_every_pair_s_scores(tmp_path, causal):
    save_model(model(causal), tmp_path / "model", TOKENIZER)
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in (OURS, BLIMP)))
    task = {"kind": "pairs", "data": tmp_path / "a.jsonl"}
    out = execute(Evaluate(model=tmp_path / "model", task=task), tmp_path / "out", ignore)
    results = json.loads((out / "results.json").read_text())
    assert results["score"] == ("log-likelihood" if causal else "pseudo-log-likelihood")
    assert [found["kind"] for found in results["kinds"]] == ["all", "islands", "number"]
    rows = [json.loads(line) for line in (out / "pairs.jsonl").read_text().splitlines()]
    preferred = np.mean([row["score_good"] > row["score_bad"] for row in rows])
    assert results["kinds"][0]["accuracy"] == pytest.approx(preferred)
    assert "| islands | 1 |" in (out / "table.md").read_text()
    assert (out / "pairs.svg").read_text().count("<svg") == 1
