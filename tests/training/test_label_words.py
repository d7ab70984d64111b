"""Scores of label words against log-probabilities computed one by one; F1 by hand."""

from __future__ import annotations

import pytest
import torch
from tiny_training import VOCABULARY, decoder
from torch import Tensor, nn

from mickle.data.label_batches import EncodedLabels, batch_of
from mickle.training.label_words import (
    answer_f1,
    class_scores,
    evaluate_labels,
    greedy,
    label_words,
    word_f1,
    wrong_labels,
)

ROWS = ((1, 4, 5), (1, 6, 7, 8, 2), (1, 3))


def encoded(words: tuple[tuple[int, ...], ...], mask: int | None = None) -> EncodedLabels:
    tokens = ROWS if mask is None else tuple((*row, mask, 3) for row in ROWS)
    return EncodedLabels(tokens, (words,) * 3, (0, 1, 0), mask)


def by_hand(model: nn.Module, rows: tuple[tuple[int, ...], ...], words: tuple[tuple[int, ...], ...]) -> Tensor:
    """Mean log-probability of each word's tokens, one text at a time."""
    scores = []
    for row in rows:
        for word in words:
            logits = model(torch.tensor([row + word]))[0].log_softmax(-1)
            places = range(len(row) - 1, len(row) + len(word) - 1)
            scores.append(sum(logits[p, t] for p, t in zip(places, word)) / len(word))
    return torch.stack(scores).view(len(rows), len(words))


@pytest.mark.parametrize("words", [((9,), (10,)), ((9, 11), (10,)), ((9, 11, 2), (10, 3), (4,))])
def test_scores_are_mean_log_probabilities(words: tuple[tuple[int, ...], ...]) -> None:
    model = decoder(dropout=0.0).eval()
    batch = batch_of(encoded(words), range(3))
    expected = by_hand(model, ROWS, words).log_softmax(1)
    assert torch.allclose(class_scores(model, batch).log_softmax(1), expected, atol=1e-5)
    total, count = label_words(model, batch)
    assert int(count) == 3
    assert total.item() == pytest.approx(-expected[[0, 1, 2], [0, 1, 0]].sum().item(), rel=1e-5)
    total.backward()
    assert float(model.embed_tokens.weight.grad.norm()) > 0
    wrong, _ = wrong_labels(model, batch)
    assert float(wrong) == float((expected.argmax(1) != torch.tensor([0, 1, 0])).sum())


def test_masked_scores() -> None:
    model = decoder(causal=False, dropout=0.0).eval()
    found = encoded(((9,), (10,)), mask=12)
    for i, row in enumerate(found.tokens):
        logits = model(torch.tensor([row]))[0, row.index(12), [9, 10]]
        scores = class_scores(model, batch_of(found, [i, (i + 1) % 3]))[0]
        assert torch.allclose(scores.log_softmax(0), logits.log_softmax(0), atol=1e-5)


def test_evaluation_does_not_depend_on_the_cut() -> None:
    model = decoder(dropout=0.0).eval()
    rows = encoded(((9,), (10,)))
    cuts = ([[0], [1], [2]], [[0, 1], [2]], [[0, 1, 2]])
    found = [evaluate_labels(model, [batch_of(rows, some) for some in cut]) for cut in cuts]
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-5)
    assert found[0]["accuracy"] in (0.0, pytest.approx(1 / 3), pytest.approx(2 / 3), 1.0)


@pytest.mark.parametrize(
    ("answer", "right", "f1"),
    [
        ("the Cat!", ["a cat"], 1.0),
        ("", [""], 1.0),
        ("cat", [""], 0.0),
        ("black cat sat", ["cat sat down here"], 4 / 7),
        ("cat cat", ["cat"], 2 / 3),
        ("dog", ["cat", "dog"], 1.0),
        ("anthem", ["them"], 0.0),
    ],
)
def test_f1(answer: str, right: list[str], f1: float) -> None:
    assert word_f1(answer, right) == pytest.approx(f1)


def test_f1_of_what_the_model_says() -> None:
    model = decoder(dropout=0.0).eval()
    prompt = [3, 0, 9]  # token 0 is a token; what pads is below it
    said = greedy(model, torch.tensor(prompt), 3, None)
    text = torch.tensor([prompt])
    for token in said:
        assert token == int(model(text)[0, -1].argmax())
        text = torch.cat([text, torch.tensor([[token]])], 1)
    assert greedy(model, torch.tensor(prompt[::2]), 3, None) != said
    decode = lambda ids: " ".join(f"w{int(i)}" for i in ids)  # noqa: E731
    other = [0, (said[0] + 1) % VOCABULARY]
    batch = {"prompts": torch.tensor([prompt] * 2), "answers": torch.tensor([[*said], [*other, -1]])}
    lost, count = answer_f1(decode, 3)(model, {name: part[:1] for name, part in batch.items()})
    assert (float(lost), int(count)) == (0.0, 1)
    right = [said[0], 0, -1]
    for answer in ([*other, -1], right):
        batch["answers"][1] = torch.tensor(answer)
        lost, count = answer_f1(decode, 3)(model, batch)
        assert int(count) == 2
        assert float(lost) == pytest.approx(1 - word_f1(decode(said), [decode([t for t in answer if t >= 0])]))
        assert float(lost) > 0
    assert greedy(model, torch.tensor(prompt), 3, said[0]) == []
