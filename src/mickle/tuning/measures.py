"""What is measured before and after a tuning, with the same function on the same texts: nats of every held-out example
and of every page of general text, and what the model writes.

Each measure gives one row a text: (nats, tokens counted, of which the best guess was right), so that two of them can be
compared text by text (``outcome.py``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import dropwhile, islice
from typing import Any

import numpy as np
import torch
from torch import nn

from mickle.data.example_batches import Encoded, rows_of
from mickle.data.masking import EVALUATION_SEED, Constant, Masking, mask_batch, vocabulary_of
from mickle.data.records import Page
from mickle.data.tokenizer import TextTokenizer
from mickle.errors import NumericError
from mickle.evaluation import loss, masked
from mickle.evaluation.measure import in_batches
from mickle.tuning.tune_plan import EVALUATION_TOKENS

MASKING = Masking(rate=Constant(rate=0.15))  # of an encoder that is tuned on text
LONGEST_ANSWER, SHORTEST_ANSWER = 64, 16  # tokens of a sample
MOST_LOOKED_AT = 10_000  # examples, for the tokens that end them
OPENING = 16  # tokens of a text that a sample goes on from


@contextmanager
def measuring(model: nn.Module, precision: str) -> Iterator[None]:
    """Evaluation mode, no gradients, and the products' precision of the run."""
    training, device = model.training, next(model.parameters()).device
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            yield
    finally:
        model.train(training)


def hidden_scores(model: nn.Module, pages: Sequence[Page], tokenizer: TextTokenizer, length: int) -> np.ndarray:
    """Of each page, [n, 3]: of tokens hidden with fixed masks, for a model that sees both sides."""
    found = masked.score(model, tokenizer, pages, rate=MASKING.evaluation_rate, length=length)
    return found[:, [0, 2, 1]]


def page_scores(model: nn.Module, pages: Sequence[Page], tokenizer: TextTokenizer, length: int) -> np.ndarray:
    """Of each page of general text, [n, 3]; a causal model's right guesses are not counted (nan)."""
    if not model.causal:
        return hidden_scores(model, pages, tokenizer, length)
    scored = loss.score(
        model, tokenizer, pages, length=length, stride=max(1, length // 2), batch_tokens=EVALUATION_TOKENS
    )
    return np.array([[page.nats.sum(), len(page.nats), np.nan] for page in scored])


@torch.no_grad()
def answer_scores(model: nn.Module, encoded: Encoded, count: int) -> np.ndarray:
    """Nats, number and right guesses of the trained tokens of the first ``count`` examples, one a row."""
    found = np.zeros((min(count, len(encoded.tokens)), 3))

    def scored(some: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """The example that each trained token is of, and [n, 3]: its nats, 1, whether the best guess is right."""
        rows = rows_of(encoded, [[example] for example in some])
        batch = {name: tensor[:, :-1] for name, tensor in rows.items()}  # the last token predicts nothing
        chosen = (batch["labels"] >= 0).nonzero()[:, 0].numpy()
        nats, right = masked.token_scores(model, batch)
        return np.array(some)[chosen], np.stack([nats, np.ones_like(nats), right], axis=1)

    for _, (of_example, values) in in_batches(
        range(len(found)), lambda i: len(encoded.tokens[i]), EVALUATION_TOKENS, scored
    ):
        np.add.at(found, of_example, values)
    if not np.isfinite(found).all():
        raise NumericError("The model's answer is not finite.", where="held-out examples")
    return found


def written(
    model: nn.Module, heldout: Encoded, tokenizer: TextTokenizer, count: int, ends: Sequence[int], limit: int
) -> list[dict[str, str]]:
    """What the model writes for the first ``count`` examples, likeliest token by likeliest token: prompt, reference and
    text of each. ``ends``: tokens that end a text, and no others do; ``limit``: tokens of prompt and answer at most.
    """
    from mickle.sampling.text import generate

    cut = [_cut(heldout, i) for i in range(min(count, len(heldout.tokens)))]
    longest = min(LONGEST_ANSWER, max(SHORTEST_ANSWER, 2 * max(len(answer) for _, answer in cut)), limit // 2)
    prompts = [prompt[-(limit - longest) :] for prompt, _ in cut]
    texts = generate(model, prompts, max_tokens=longest, decode=tokenizer.decode, temperature=0, stop=tuple(ends))
    return [
        {"prompt": tokenizer.decode(prompt), "reference": tokenizer.decode(answer), "text": completion.text}
        for prompt, (_, answer), completion in zip(prompts, cut, texts, strict=True)
    ]


def spelt(encoded: Encoded, tokenizer: TextTokenizer, sides: Sequence[bool]) -> bytes:
    """UTF-8 of the tokens that are trained (True) or not (False), marks left out."""
    texts = []
    for tokens, trained in zip(encoded.tokens, encoded.trained, strict=True):
        chosen = (int(token) for token in tokens[np.isin(trained, sides)])
        texts.append(tokenizer.decode(token for token in chosen if token not in tokenizer.special))
    return "".join(texts).encode("utf-8", "replace")


def ends_taught(encoded: Encoded, tokenizer: TextTokenizer) -> list[int]:
    """The tokens that end what is trained, white space aside: special ones, in one run of a hundred at least, and those
    that were added to the vocabulary without being called special, in half of them.
    """
    added = dict.fromkeys(tokenizer.tokenizer.get_added_tokens_decoder(), 2)
    shares = added | dict.fromkeys(tokenizer.special, 100)
    counts: Counter[int] = Counter()
    runs = 0
    for tokens, trained in zip(encoded.tokens[:MOST_LOOKED_AT], encoded.trained, strict=False):
        places = np.flatnonzero(trained)
        last = places[np.diff(places, append=len(tokens) + 1) > 1]
        runs += len(last)
        for place in last:
            written = (int(token) for token in tokens[max(0, place - 3) : place + 1][::-1])
            counts.update(token for token in islice(dropwhile(lambda t: _blank(t, tokenizer), written), 1))
    return sorted(token for token, count in counts.items() if count * shares.get(token, 0) >= max(runs, 1))


def _blank(token: int, tokenizer: TextTokenizer) -> bool:
    return token not in tokenizer.special and not tokenizer.decode([token]).strip()


def _cut(encoded: Encoded, index: int) -> tuple[list[int], list[int]]:
    """The tokens before an example's last answer, and the answer; of a text, its opening and the rest."""
    tokens = [int(token) for token in encoded.tokens[index]]
    trained = np.flatnonzero(encoded.trained[index])
    gaps = np.flatnonzero(np.diff(trained) > 1)
    begin = int(trained[gaps[-1] + 1] if len(gaps) else trained[0])
    end = int(trained[-1]) + 1
    if begin <= 1:
        begin = max(1, min(OPENING, len(tokens) // 2))
    return tokens[:begin], tokens[begin:end]


def filled(model: nn.Module, heldout: Encoded, tokenizer: TextTokenizer, count: int) -> list[dict[str, str]]:
    """The first ``count`` texts with tokens hidden, and with the model's best guesses in their place."""
    vocabulary, found = vocabulary_of(tokenizer), []
    device = next(model.parameters()).device
    for number in range(min(count, len(heldout.tokens))):
        tokens = torch.from_numpy(np.asarray(heldout.tokens[number], dtype=np.int64))[None]
        batch = mask_batch(
            {"input_ids": tokens}, np.array([number]), MASKING.evaluation_rate, MASKING, vocabulary, EVALUATION_SEED
        )
        guesses = model(batch["input_ids"].to(device)).argmax(-1).cpu()
        guessed = torch.where(batch["labels"] >= 0, guesses, tokens)
        texts = {"prompt": batch["input_ids"], "reference": tokens, "text": guessed}
        found.append({name: tokenizer.decode(ids[0].tolist()) for name, ids in texts.items()})
    return found


def as_lists(scores: np.ndarray) -> list[list[Any]]:
    """Scores as JSON holds them: nan as None."""
    return [[None if np.isnan(value) else float(value) for value in row] for row in scores]


def from_lists(rows: list[list[Any]]) -> np.ndarray:
    """What :func:`as_lists` was made of."""
    return np.array([[np.nan if value is None else value for value in row] for row in rows]).reshape(-1, 3)
