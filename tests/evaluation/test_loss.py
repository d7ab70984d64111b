"""Loss against what is known: uniform and perfect models, a plain loop without windows, shapes of window lists."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mickle.data.records import Page
from mickle.data.tokenizer import TextTokenizer, train_tokenizer
from mickle.errors import NumericError, ResourceError, UsageError
from mickle.evaluation.loss import Scored, bootstrap_ratio, by_position, score, summarise, token_nats, windows_of
from mickle.events import Warned
from mickle.models.decoder import Decoder
from mickle.models.shape import DecoderConfig

TEXTS = [f"page {i} says: {'words and ' * (i % 7)}more of {i}, é" for i in range(12)]
PAGES = [Page(f"u{i}", "even" if i % 2 == 0 else "odd", "en", text) for i, text in enumerate(TEXTS)]
TOKENIZER = train_tokenizer(TEXTS, 270)


class Fixed(nn.Module):
    """Logits from a function of the inputs [B, T]: a model whose loss is known."""

    def __init__(self, logits):
        super().__init__()
        self.logits, self.anything = logits, nn.Parameter(torch.zeros(1))

    def forward(self, input_ids, *, head, documents=None):
        return head(self.logits(input_ids), None)


def test_a_uniform_model_costs_log2_of_the_vocabulary_a_token():
    model = Fixed(lambda ids: torch.zeros(*ids.shape, TOKENIZER.size))
    summary = summarise(score(model, TOKENIZER, PAGES, length=16, stride=8))
    assert summary["perplexity"] == pytest.approx(TOKENIZER.size, rel=1e-5)
    assert summary["tokens"] == sum(len(ids) for ids in TOKENIZER.encode(TEXTS))
    assert summary["bytes"] == sum(len(text.encode()) for text in TEXTS)
    expected = summary["tokens"] * math.log2(TOKENIZER.size) / summary["bytes"]
    assert summary["bits_per_byte"] == pytest.approx(expected, rel=1e-5)


def test_unknown_words_cost_their_bytes_besides_and_are_told():
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "clay": 2, "bowl": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = TextTokenizer(words, 1, 1, {})
    pages = [Page("", "", "el", "πηλός"), Page("", "", "en", "clay bowl clay")]
    model, heard = Fixed(lambda ids: torch.zeros(*ids.shape, 4)), []
    found = score(model, tokenizer, pages, length=8, stride=4, emit=heard.append)
    assert [document.nats.sum() / math.log(2) for document in found] == pytest.approx([2 + 80, 6])
    warned = [event.message for event in heard if isinstance(event, Warned)]
    assert warned == [
        "25.0% of the tokens are <unk>: text that the tokenizer does not know; its bytes are counted at 8 bits each"
    ]


def test_a_model_that_knows_the_text_costs_nothing():
    text = "abcdefgh" * 20  # every token has one successor
    (ids,) = TOKENIZER.encode([text])
    successor = dict(zip([TOKENIZER.start, *ids.tolist()], ids.tolist()))

    def logits(input_ids):
        known = torch.tensor([[successor[int(i)] for i in row] for row in input_ids])
        return 1e4 * nn.functional.one_hot(known, TOKENIZER.size).float()

    successor.setdefault(0, 0)
    found = score(Fixed(logits), TOKENIZER, [Page("", "", "", text)], length=32, stride=8)
    assert summarise(found)["bits_per_byte"] == 0


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 80), st.integers(1, 20), st.data())
def test_windows_score_every_token_once_with_enough_context(size, length, data):
    stride = data.draw(st.integers(1, length))
    tokens = np.arange(size + 1)
    scored = []
    for window in windows_of(0, tokens, length, stride):
        assert len(window.tokens) - 1 <= length
        labels = window.tokens[-window.scored :]
        assert labels[0] == window.at
        context = window.at - window.tokens[0]
        assert context >= min(window.at, length - stride + 1)
        scored += labels.tolist()
    assert scored == list(range(1, size + 1))


def decoder(position="none"):
    config = DecoderConfig(TOKENIZER.size, 32, 2, 2, 2, 16, 64, max_length=256, position=position)
    return Decoder(config, seed=1).eval()


def test_one_window_agrees_with_a_plain_call():
    model = decoder("rotary")
    found = score(model, TOKENIZER, PAGES, length=256, stride=128, batch_tokens=600)
    for page, ids in zip(found, TOKENIZER.encode(TEXTS), strict=True):
        inputs = torch.tensor([[TOKENIZER.start, *ids[:-1]]])
        with torch.no_grad():
            chances = model(inputs).log_softmax(-1)[0]
        plain = -chances[torch.arange(len(ids)), torch.from_numpy(ids)]
        np.testing.assert_allclose(page.nats, plain.numpy(), rtol=1e-4, atol=1e-4)


def test_a_stride_of_one_gives_every_token_its_full_window():
    model, length = decoder("rotary"), 6
    (found,) = score(model, TOKENIZER, PAGES[6:7], length=length, stride=1)
    ids = [TOKENIZER.start, *TOKENIZER.encode(TEXTS[6:7])[0].tolist()]
    with torch.no_grad():
        for i in range(1, len(ids)):
            chances = model(torch.tensor([ids[max(0, i - length) : i]]))[0, -1].log_softmax(-1)
            assert found.nats[i - 1] == pytest.approx(-float(chances[ids[i]]), rel=1e-4)


def test_batches_do_not_change_the_result():
    model = decoder()
    one = score(model, TOKENIZER, PAGES, length=12, stride=6, batch_tokens=1)
    many = score(model, TOKENIZER, PAGES, length=12, stride=6, batch_tokens=4096)
    for a, b in zip(one, many, strict=True):
        np.testing.assert_allclose(a.nats, b.nats, rtol=1e-5, atol=1e-5)


def test_memory_that_runs_out_lowers_the_batch_and_is_told():
    """RELIABILITY 24: the same figures, a warning for each halving, and an error where one row is too much."""
    model, heard = decoder(), []
    whole = score(model, TOKENIZER, PAGES, length=12, stride=6)
    plain, most = model.forward, 5

    def short(ids, **options):
        if len(ids) > most:
            raise MemoryError
        return plain(ids, **options)

    model.forward = short
    for a, b in zip(score(model, TOKENIZER, PAGES, length=12, stride=6, batch_tokens=240, emit=heard.append), whole):
        np.testing.assert_allclose(a.nats, b.nats, rtol=1e-5, atol=1e-5)
    assert [e.message.split(" are")[0] for e in heard if isinstance(e, Warned)] == [
        f"memory ran out: {rows} rows of 13 tokens" for rows in (9, 4)
    ]
    most = 0
    with pytest.warns(UserWarning, match="memory ran out"), pytest.raises(ResourceError):
        score(model, TOKENIZER, PAGES, length=12, stride=6)


def test_token_nats_leaves_out_and_chunks(monkeypatch):
    hidden, weight = torch.randn(2, 9, 4), torch.randn(11, 4)
    labels = torch.randint(0, 11, (2, 9))
    labels[0, :5] = -100
    whole = token_nats(hidden, weight, labels)
    monkeypatch.setattr("mickle.evaluation.loss.CHUNK_BYTES", 100)
    assert torch.allclose(whole, token_nats(hidden, weight, labels))
    assert torch.allclose(whole, token_nats(hidden @ weight.T, None, labels), atol=1e-5)
    assert (whole[0, :5] == 0).all()
    expected = nn.functional.cross_entropy((hidden @ weight.T)[1], labels[1], reduction="none")
    assert torch.allclose(whole[1], expected, atol=1e-5)


def test_domains_add_up_and_positions_cover_every_token():
    found = score(decoder(), TOKENIZER, PAGES, length=16, stride=8)
    summary = summarise(found)
    parts = summary["by_domain"]
    assert set(parts) == {"even", "odd"}
    for name in ("documents", "tokens", "bytes"):
        assert sum(part[name] for part in parts.values()) == summary[name]
    assert sum(row["tokens"] for row in by_position(found)) == summary["tokens"]
    low, high = summary["bits_per_byte_interval"]
    assert low < summary["bits_per_byte"] < high


def test_positions_by_hand():
    rows = by_position([Scored("", 1, np.array([1.0, 2.0, 3.0, 5.0, 8.0])), Scored("", 1, np.array([3.0]))])
    assert rows == [
        {"from": 0, "to": 0, "nats_per_token": 2.0, "tokens": 2},
        {"from": 1, "to": 1, "nats_per_token": 2.0, "tokens": 1},
        {"from": 2, "to": 3, "nats_per_token": 4.0, "tokens": 2},
        {"from": 4, "to": 7, "nats_per_token": 8.0, "tokens": 1},
    ]


def test_the_interval_has_the_width_of_the_standard_error():
    values = np.random.default_rng(0).normal(10, 1, 400)
    low, high = bootstrap_ratio(values, np.ones(400))
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.15)
    skewed = np.random.default_rng(0).exponential(2.0, 4000)
    low, high = bootstrap_ratio(skewed, np.ones(4000))
    half = 1.96 * skewed.std(ddof=1) / math.sqrt(4000)
    assert (low, high) == pytest.approx((skewed.mean() - half, skewed.mean() + half), abs=0.15 * half)
    assert bootstrap_ratio(skewed, np.ones(4000), seed=0) == (low, high)


@pytest.mark.parametrize("stride", [0, 17])
def test_a_stride_out_of_range(stride):
    with pytest.raises(UsageError, match="stride"):
        score(decoder(), TOKENIZER, PAGES, length=16, stride=stride)


def test_an_answer_that_is_not_finite():
    model = Fixed(lambda ids: torch.full((*ids.shape, TOKENIZER.size), math.nan))
    with pytest.raises(NumericError):
        score(model, TOKENIZER, PAGES, length=16, stride=8)
