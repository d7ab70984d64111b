"""Objectives over label words: cross-entropy, share of wrong answers, and word overlap of generated answers.

Source: arXiv 2305.17333, appendix E.2 and section 3.3. A class's score is the mean log-probability of its word's
tokens after the prompt (or at the mask); the loss is the cross-entropy of the softmax over the classes' scores. The
two others have no gradient and need none: forward-only tuning takes any number. Batches are those of
`data/label_batches.py`.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mickle.training.objectives import Batch, Objective

_ARTICLE = re.compile(r"\b(a|an|the)\b")


def class_scores(model: nn.Module, batch: Batch) -> Tensor:
    """Scores of the classes [B, C]: mean log-probabilities, up to one number a row that no softmax sees."""
    if "candidates" in batch:
        candidates = batch["candidates"]

        def chosen(hidden: Tensor, weight: Tensor | None) -> Tensor:
            if weight is None:  # logits already [B, V]
                return hidden.gather(1, candidates).float()
            return torch.einsum("bd,bcd->bc", hidden, weight[candidates].to(hidden.dtype)).float()

        answers = batch["answers"]
        found: Tensor = model(batch["input_ids"], documents=batch["documents"], positions=answers, head=chosen)
        return found
    ids, scored = batch["input_ids"].flatten(0, 1), batch["scored"].flatten(0, 1)  # [B C, T]
    places = scored >= 0
    logits = model(ids, documents=batch["documents"].flatten(0, 1), positions=places)  # [n, V]
    nats = F.cross_entropy(logits.float(), scored[places], reduction="none")
    rows = places.nonzero()[:, 0]
    sums = nats.new_zeros(len(ids)).index_add(0, rows, nats)
    return -(sums / places.sum(1)).view(batch["input_ids"].shape[:2])


def label_words(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Cross-entropy (nats) over the classes' scores. Differentiable."""
    scores = class_scores(model, batch)
    loss = F.cross_entropy(scores, batch["labels"], reduction="sum")
    return loss, torch.tensor(len(scores), device=scores.device)


def wrong_labels(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """How many examples' best class is a wrong one; no gradient. A mean of it falls in steps: eps and batch must
    be large.
    """
    scores = class_scores(model, batch)
    wrong = (scores.argmax(1) != batch["labels"]).sum()
    return wrong.float(), torch.tensor(len(scores), device=scores.device)


@torch.no_grad()
def evaluate_labels(model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
    """Mean loss (nats) and accuracy over batches."""
    loss, wrong, count = 0.0, 0.0, 0
    device = next(model.parameters()).device
    for batch in batches:
        scores = class_scores(model, {name: tensor.to(device) for name, tensor in batch.items()})
        labels = batch["labels"].to(device)
        loss += float(F.cross_entropy(scores, labels, reduction="sum"))
        wrong += float((scores.argmax(1) != labels).sum())
        count += len(labels)
    return {"loss": loss / count, "accuracy": 1 - wrong / count}


def answer_f1(decode: Callable[[Sequence[int]], str], tokens: int, end: int | None = None) -> Objective:
    """An objective without a gradient: 1 - F1 between the greedy answer and the right one, summed over rows.

    `batch`: `prompts` [B, T] and `answers` [B, A], both padded by -1 on the right. At most `tokens` are generated,
    until `end`.
    """

    def lost(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        total = 0.0
        for prompt, answer in zip(batch["prompts"], batch["answers"], strict=True):
            said = greedy(model, prompt[prompt >= 0], tokens, end)
            total += 1 - word_f1(decode(said), [decode(answer[answer >= 0].tolist())])
        return torch.tensor(total), torch.tensor(len(batch["prompts"]))

    return lost


@torch.no_grad()
def greedy(model: Any, prompt: Tensor, tokens: int, end: int | None) -> list[int]:
    """The likeliest next token, again and again: at most `tokens`, up to and without `end`."""
    cache, read, said = model.new_cache(), prompt[None], list[int]()
    while len(said) < tokens:
        scores = model(read, cache=cache)[0, -1]
        token = int(scores.argmax())
        if token == end:
            break
        said.append(token)
        read = torch.tensor([[token]], device=prompt.device)
    return said


def word_f1(answer: str, right: Sequence[str]) -> float:
    """F1 of words as multisets, the best over the right answers, as SQuAD scores it (arXiv 1606.05250, section 6.1).

    Case, punctuation and the articles a, an, the do not count.
    """
    return max(_overlap(_words(answer), _words(other)) for other in right)


def _words(text: str) -> list[str]:
    bare = "".join(c for c in text.lower() if c not in string.punctuation)
    return _ARTICLE.sub(" ", bare).split()


def _overlap(one: list[str], other: list[str]) -> float:
    if not one or not other:
        return float(one == other)
    shared = sum((Counter(one) & Counter(other)).values())
    return 2 * shared / (len(one) + len(other))
