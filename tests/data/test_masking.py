"""Masked batches: schedules by pencil, agreement with transformers' collator in distribution, resume, refusals."""

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from mickle.config import load, to_yaml, validate
from mickle.data.masking import (
    Constant,
    Cosine,
    Linear,
    MaskedBatches,
    Masking,
    OneStep,
    Piecewise,
    fixed_masks,
    mask_batch,
    vocabulary_of,
)
from mickle.data.tokenizer import train_tokenizer
from mickle.errors import UsageError
from mickle.kernels.masking import Vocabulary
from mickle.models.decoder import Decoder
from mickle.models.shape import DecoderConfig
from mickle.training.loop import fit
from mickle.training.objectives import masked_token

TEXTS = [f"the quick brown fox number {i} jumps over the lazy dog, and the {i * i} cats\n" for i in range(80)]
TOKENIZER = train_tokenizer(TEXTS, 300, mask=True)
WORDS = vocabulary_of(TOKENIZER)


def batches(index: int, rows: int = 8, length: int = 32):
    generator = torch.Generator().manual_seed(index)
    tokens = torch.randint(2, TOKENIZER.size, (rows, length), generator=generator)
    return {"input_ids": tokens, "documents": torch.zeros_like(tokens)}


def test_the_paper_s_rates_by_pencil():
    linear = Linear(start=0.3, end=0.15)
    rates = [linear(t, 1000) for t in range(1000)]
    assert rates[0] == 0.3
    assert rates[250] == pytest.approx(0.2625)
    assert rates[500] == pytest.approx(0.225)
    assert rates[999] == pytest.approx(0.15015)
    assert np.mean(rates) == pytest.approx(0.225 + 0.15 / 2000)
    cosine = Cosine(start=0.3, end=0.15)
    assert cosine(0, 1000) == pytest.approx(0.3)
    assert cosine(250, 1000) == pytest.approx(0.15 + 0.075 * (1 + math.sqrt(0.5)))
    assert cosine(500, 1000) == pytest.approx(0.225)
    assert [OneStep()(t, 10) for t in (0, 4, 5, 9)] == [0.3, 0.3, 0.15, 0.15]
    assert Constant()(7, 10) == 0.15


def test_piecewise_is_linear_between_its_points_and_constant_outside():
    rate = Piecewise(points=((0.2, 0.4), (0.6, 0.2), (0.8, 0.1)))
    asked = [rate(t, 10) for t in (0, 2, 3, 4, 6, 7, 8, 9)]
    assert asked == pytest.approx([0.4, 0.4, 0.35, 0.3, 0.2, 0.15, 0.1, 0.1])
    line, straight = Piecewise(), Linear()
    assert [line(t, 7) for t in range(7)] == pytest.approx([straight(t, 7) for t in range(7)])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"rate": {"kind": "linear", "start": 1.5}}, "rate.*start: .*less than 1"),
        ({"rate": {"kind": "constant", "rate": 0}}, "rate: .*greater than 0"),
        ({"rate": {"kind": "exponential"}}, "rate: "),
        ({"rate": {"kind": "step", "at": 1}}, "at: "),
        ({"rate": {"kind": "piecewise", "points": [[0.5, 0.3], [0.5, 0.2]]}}, "increasing numbers"),
        ({"rate": {"kind": "piecewise", "points": [[0.5, 1.3]]}}, "less than 1"),
        ({"rate": {"kind": "piecewise", "points": []}}, "at least 1"),
        ({"mask_share": 0.95, "random_share": 0.1}, "sum to more than 1"),
        ({"subset": 0}, "subset: "),
        ({"evaluation_rate": 1.0}, "evaluation_rate: "),
        ({"unit": "sentence"}, "unit: "),
        ({"rates": 1}, "did you mean 'rate'"),
    ],
)
def test_bad_settings_are_refused_by_name(values, said):
    with pytest.raises(UsageError, match=said):
        validate(Masking, values)


def test_settings_survive_a_file(tmp_path):
    for rate in (Constant(rate=0.4), Linear(), Cosine(), OneStep(at=0.3), Piecewise(points=((0, 0.4), (1, 0.2)))):
        masking = Masking(rate=rate, unit="span", subset=0.15)
        (tmp_path / "masking.yaml").write_text(to_yaml(masking))
        assert load(Masking, tmp_path / "masking.yaml") == masking


def test_a_rising_rate_is_allowed_and_remarked_upon():
    assert Masking().remarks() == []
    assert "rises from 0.15 to 0.3" in Masking(rate=Linear(start=0.15, end=0.3)).remarks()[0]


def test_the_rate_is_that_of_the_step_and_resuming_gives_the_same_masks():
    masking = Masking(rate=Linear(start=0.6, end=0.1))
    made = MaskedBatches(batches, WORDS, masking, 100, seed=3)
    whole = [made(index) for index in range(100)]
    again = MaskedBatches(batches, WORDS, masking, 100, seed=3)(60)
    assert all(torch.equal(whole[60][name], again[name]) for name in again)
    shares = [float((batch["labels"] >= 0).float().mean()) for batch in whole]
    for start in (0, 25, 50, 75):
        wanted = np.mean([masking.rate(t, 100) for t in range(start, start + 25)])
        n = 25 * whole[0]["labels"].numel()
        assert abs(np.mean(shares[start : start + 25]) - wanted) < 4 * math.sqrt(wanted * (1 - wanted) / n)
    assert made.identity != MaskedBatches(batches, WORDS, masking, 200, seed=3).identity
    assert json.loads(json.dumps(made.identity)) == made.identity


def test_labels_are_the_hidden_tokens_and_are_not_shifted():
    made = MaskedBatches(batches, WORDS, Masking(), 10, seed=1)(4)
    tokens, hidden = batches(4)["input_ids"], made["labels"] >= 0
    assert torch.equal(made["labels"][hidden], tokens[hidden])
    assert torch.equal(made["input_ids"][~hidden], tokens[~hidden])


def test_arms_with_one_seed_share_their_masks():
    def chosen(rate):
        return MaskedBatches(batches, WORDS, Masking(rate=rate), 10, seed=5)(2)["labels"] >= 0

    sets = [chosen(Constant(rate=rate)) for rate in (0.1, 0.15, 0.3)]
    assert all(bool((lower <= higher).all()) for lower, higher in pairwise(sets))
    assert bool((sets[1] <= chosen(Linear())).all())


def test_every_batch_trains_something():
    masking = Masking(rate=Constant(rate=0.001), subset=0.0005)
    made = MaskedBatches(lambda i: batches(i, 1, 12), WORDS, masking, 40, seed=0)
    counts = [int((made(i)["labels"] >= 0).sum()) for i in range(40)]
    assert min(counts) >= 1
    assert np.mean(counts) < 2.5  # the nearest ones only, not the whole row
    marks = MaskedBatches(lambda i: {"input_ids": torch.zeros(2, 5, dtype=torch.int64)}, WORDS, masking, 40, 0)
    assert int((marks(0)["labels"] >= 0).sum()) == 0  # nothing but document marks: the loop says so


def test_padding_is_never_chosen_whatever_stands_there():
    batch = batches(0)
    batch["documents"][:, 20:] = -1
    made = mask_batch(batch, np.arange(8), 1.0, Masking(), WORDS, 0)
    assert bool((made["labels"][:, 20:] == -100).all())
    assert torch.equal(made["input_ids"][:, 20:], batch["input_ids"][:, 20:])
    assert bool((made["labels"][:, :20] >= 0).all())


def test_evaluation_masks_are_fixed_and_no_run_trains_on_them():
    masking = Masking(rate=Constant(rate=0.15))
    fixed = fixed_masks(batches(0), 0, masking, WORDS)
    assert torch.equal(fixed["labels"], fixed_masks(batches(0), 0, masking, WORDS)["labels"])
    assert not torch.equal(fixed["labels"], fixed_masks(batches(0), 8, masking, WORDS)["labels"])
    more = fixed_masks(batches(0), 0, masking, WORDS, rate=0.5)
    assert bool(((fixed["labels"] >= 0) <= (more["labels"] >= 0)).all())
    for seed in range(3):
        assert not torch.equal(MaskedBatches(batches, WORDS, masking, 10, seed)(0)["labels"], fixed["labels"])


def test_as_transformers_collator_in_distribution(tmp_path):
    from transformers import AutoTokenizer, DataCollatorForLanguageModeling

    TOKENIZER.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    collate = DataCollatorForLanguageModeling(theirs, mlm_probability=0.3, seed=1)
    tokens = torch.randint(0, TOKENIZER.size, (2000, 512), generator=torch.Generator().manual_seed(0))
    batch = collate([{"input_ids": row.tolist()} for row in tokens])
    ours = mask_batch({"input_ids": tokens}, np.arange(2000), 0.3, Masking(), WORDS, 7)

    def outcomes(made):
        hidden = made["labels"] >= 0
        masked, same = hidden & (made["input_ids"] == WORDS.mask), hidden & (made["input_ids"] == tokens)
        return np.array([int(part.sum()) for part in (~hidden, masked, same, hidden & ~masked & ~same)])

    table = np.array([outcomes(batch), outcomes(ours)], dtype=float)
    expected = table.sum(axis=0) / 2
    assert (((table - expected) ** 2 / expected).sum()) < 16.27  # chi-square, 3 degrees, 1 in 1000


def encoder() -> Decoder:
    shape = DecoderConfig(TOKENIZER.size, 16, 1, 2, 2, 8, 16, max_length=32, causal=False, initial_std=0.2)
    return Decoder(shape, seed=0)


def test_the_gathered_head_has_the_loss_and_gradients_of_all_logits():
    made = MaskedBatches(batches, WORDS, Masking(), 10, seed=1)(0)
    gathered, whole = encoder(), encoder()
    total, count = masked_token(gathered, made)
    logits = whole(made["input_ids"], documents=made["documents"])
    wanted = torch.nn.functional.cross_entropy(logits.flatten(0, 1), made["labels"].flatten(), reduction="sum")
    assert int(count) == int((made["labels"] >= 0).sum())
    assert float(total.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
    total.backward()
    wanted.backward()
    for one, other in zip(gathered.parameters(), whole.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, atol=1e-4, rtol=1e-4)


def test_nothing_hidden_is_a_loss_of_zero_and_no_gradient():
    model = encoder()
    total, count = masked_token(model, mask_batch(batches(0), np.arange(8), 0.0, Masking(), WORDS, 0))
    assert (float(total.detach()), int(count)) == (0.0, 0)
    total.backward()
    assert all(p.grad is None or not p.grad.abs().any() for p in model.parameters())


def test_parts_of_a_batch_change_neither_masks_nor_weights():
    def trained(accumulate):
        model = encoder()
        made = MaskedBatches(batches, WORDS, Masking(), 4, seed=2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for _ in fit(model, masked_token, made, optimizer, steps=4, accumulate=accumulate):
            pass
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    whole = trained(1)
    assert torch.allclose(whole, trained(4), atol=1e-5)
    assert torch.allclose(whole, trained(8), atol=1e-5)  # rows with hardly a hidden token
    assert not torch.allclose(whole, torch.cat([p.detach().flatten() for p in encoder().parameters()]), atol=1e-2)


def test_what_masking_knows_of_a_tokenizer():
    assert isinstance(WORDS, Vocabulary)
    assert WORDS.mask == TOKENIZER.mask
    assert set(np.flatnonzero(WORDS.special)) == {TOKENIZER.end, TOKENIZER.mask}
    assert len(WORDS.ordinary) == TOKENIZER.size - 2
    with pytest.raises(UsageError, match="no mask token"):
        vocabulary_of(train_tokenizer(TEXTS, 300))
