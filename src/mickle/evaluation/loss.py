"""How well a model predicts pages: perplexity per token and bits per byte, by domain and by position.

    perplexity = exp(nats / tokens),   bits per byte = nats / (ln 2 x UTF-8 bytes)

Bits per byte do not depend on the tokenizer, so they compare with any other model and with compressors. Every
token of a text is predicted from the start mark and the tokens before it; the end mark is not counted.

A text longer than the model's length is read in windows that slide by ``stride`` tokens. Each token is scored
once, by the first window that reaches it, with at least length - stride tokens of context or all of the text
before it. A smaller stride costs more time, in proportion, and finds a little less loss.

A token for text that the vocabulary lacks (<unk>) costs what its bytes do besides, 8 bits each: else a tokenizer that
knows nothing would predict everything.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mickle.errors import NumericError, UsageError
from mickle.evaluation.measure import in_batches
from mickle.evaluation.texts import ScoredText, page_texts
from mickle.events import Emit, Started, Warned, as_warnings

if TYPE_CHECKING:
    from mickle.data.records import Page
    from mickle.data.tokenizer import TextTokenizer

CHUNK_BYTES = 32 << 20  # of float32 logits held at a time
RESAMPLES = 1000


@dataclass(frozen=True)
class Scored:
    """One document: its domain, the UTF-8 bytes of what counts in it, and the nats of each token that does [n]."""

    domain: str
    bytes: int
    nats: np.ndarray


@dataclass(frozen=True)
class Window:
    """Tokens to read, of which the last ``scored`` are scored for document ``document`` from its place ``at`` on."""

    document: int
    tokens: np.ndarray
    scored: int
    at: int


def token_nats(hidden: Tensor, weight: Tensor | None, labels: Tensor) -> Tensor:
    """-log p(label) of every position, nats: hidden [B, T, D], weight [V, D] or None, labels [B, T] -> [B, T] float32.

    A head for the decoder's call; positions with label -100 give 0. Logits are held some positions at a time.
    """
    flat, targets = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1)  # [N, D], [N]
    vocabulary = hidden.shape[-1] if weight is None else len(weight)
    rows = max(1, CHUNK_BYTES // (4 * vocabulary))
    nats = torch.zeros(len(targets), dtype=torch.float32, device=hidden.device)
    for part in torch.arange(len(targets), device=hidden.device).split(rows):
        part = part[targets[part] >= 0]
        if len(part):
            logits = flat[part] if weight is None else flat[part] @ weight.T
            nats[part] = nn.functional.cross_entropy(logits.float(), targets[part], reduction="none")
    return nats.reshape(labels.shape)


def windows_of(document: int, tokens: np.ndarray, length: int, stride: int) -> Iterator[Window]:
    """Windows of at most ``length`` inputs over [start, text] that score every text token once.

    Token i (i >= 1) of ``tokens`` is predicted from those before it; a window of inputs a..b scores labels up to b + 1.
    """
    scored = 1  # the start mark is not predicted
    while scored < len(tokens):
        end = min(len(tokens), length + 1 if scored == 1 else scored + stride)  # labels go up to here
        begin = max(0, end - 1 - length)
        yield Window(document, tokens[begin:end], end - scored, scored)
        scored = end


def score(
    model: nn.Module,
    tokenizer: TextTokenizer,
    pages: Sequence[Page],
    *,
    length: int,
    stride: int,
    batch_tokens: int = 8192,
    emit: Emit = as_warnings,
) -> list[Scored]:
    """Nats of every token of every page.

    Raises UsageError for a stride that is not within 1..length, NumericError where the model's answer is not finite.
    """
    texts = page_texts(pages, tokenizer)
    return score_texts(model, tokenizer, texts, length=length, stride=stride, batch_tokens=batch_tokens, emit=emit)


def score_texts(
    model: nn.Module,
    tokenizer: TextTokenizer,
    texts: Sequence[ScoredText],
    *,
    length: int,
    stride: int,
    batch_tokens: int = 8192,
    emit: Emit = as_warnings,
) -> list[Scored]:
    """:func:`score` for texts of which not every token may count: nats of those that do."""
    if not 1 <= stride <= length:
        raise UsageError(f"A stride of {stride} does not go with windows of {length}.", expected=f"1 to {length}")
    nats = [np.zeros(len(text.tokens)) for text in texts]
    windows = [w for number, text in enumerate(texts) for w in windows_of(number, text.tokens, length, stride)]
    windows = [w for w in windows if texts[w.document].scored[w.at : w.at + w.scored].any()]
    emit(Started("scoring", sum(window.scored for window in windows), "tokens"))
    model.eval()
    work = partial(_score_batch, model, texts)
    for rows, found in in_batches(windows, lambda w: len(w.tokens), batch_tokens, work, emit, lambda w: w.scored):
        for window, values in zip(rows, found, strict=True):
            nats[window.document][window.at : window.at + window.scored] = values
    nats = [values[text.scored] for values, text in zip(nats, texts, strict=True)]
    if unknown := tokenizer.unknown_line([text.tokens[text.scored] for text in texts], "data", most=1.0):
        pages = not any(text.around for text in texts)
        counted = "counted at 8 bits each" if pages else "not counted: bits per byte are too few"
        emit(Warned(f"{unknown}; its bytes are {counted}"))
        if pages:
            lost = [math.log(256) * tokenizer.unknown_bytes(text.text) for text in texts]
            nats = [values + more for values, more in zip(nats, lost, strict=True)]
    return [Scored(text.domain, text.bytes, values) for text, values in zip(texts, nats, strict=True)]


def window_batch(windows: Sequence[Window], texts: Sequence[ScoredText]) -> tuple[Tensor, Tensor]:
    """Inputs and labels [B, T] of windows of ``texts``; -100 where nothing is scored.

    Rows are padded on the right, where a causal model cannot look.
    """
    rows = [torch.from_numpy(window.tokens.astype(np.int64)) for window in windows]
    labels = [row[1:].clone() for row in rows]
    for row, window in zip(labels, windows, strict=True):
        row[: -window.scored] = -100
        counts = torch.from_numpy(texts[window.document].scored[window.at : window.at + window.scored])
        row[-window.scored :].masked_fill_(~counts, -100)
    inputs = pad_sequence([row[:-1] for row in rows], batch_first=True)
    return inputs, pad_sequence(labels, batch_first=True, padding_value=-100)


@torch.no_grad()
def _score_batch(model: nn.Module, texts: Sequence[ScoredText], windows: Sequence[Window]) -> list[np.ndarray]:
    """Nats of each window's tokens that it is the first to reach; 0 where they do not count."""
    inputs, labels = window_batch(windows, texts)
    device = next(model.parameters()).device
    nats = model(inputs.to(device), head=partial(token_nats, labels=labels.to(device))).cpu().numpy()  # [B, T]
    if not np.isfinite(nats).all():
        raise NumericError("The model's answer is not finite.", where="evaluation")
    ends = [len(window.tokens) - 1 for window in windows]
    return [nats[row, end - window.scored : end] for row, (window, end) in enumerate(zip(windows, ends))]


def summarise(scored: Sequence[Scored], seed: int = 0) -> dict[str, Any]:
    """Figures over all documents, by domain, and by position in the document.

    The interval is the 95 % percentile bootstrap over documents (a ratio of sums, so long pages weigh more): how
    much the figure would move with other pages of this kind, not with another training seed.
    """
    nats = np.array([document.nats.sum() for document in scored])
    sizes = np.array([document.bytes for document in scored])
    tokens = np.array([len(document.nats) for document in scored])
    low, high = bootstrap_ratio(nats / math.log(2), sizes, seed)
    domains = sorted({document.domain for document in scored})
    rows = {name: np.array([document.domain == name for document in scored]) for name in domains}
    return {
        **figures(nats, sizes, tokens),
        "bits_per_byte_interval": [low, high],
        "by_domain": {name: figures(nats[chosen], sizes[chosen], tokens[chosen]) for name, chosen in rows.items()},
        "by_position": by_position(scored),
    }


def figures(nats: np.ndarray, sizes: np.ndarray, tokens: np.ndarray) -> dict[str, float]:
    """Perplexity and bits per byte of documents with these sums of nats, sizes in bytes and numbers of tokens [n]."""
    mean = float(nats.sum() / tokens.sum())
    return {
        "bits_per_byte": float(nats.sum() / math.log(2) / max(1, sizes.sum())),
        "perplexity": perplexity(mean),
        "nats_per_token": mean,
        "documents": len(nats),
        "tokens": int(tokens.sum()),
        "bytes": int(sizes.sum()),
    }


def perplexity(nats: float) -> float:
    """Of a mean loss in nats."""
    return math.exp(min(nats, 700.0))  # e^700 is near the largest float64


def by_position(scored: Sequence[Scored]) -> list[dict[str, float]]:
    """Mean nats of tokens with 0, 1, 2-3, 4-7, 8-15, ... tokens of their text before them."""
    longest = max(len(document.nats) for document in scored)
    edges = [0, *(1 << power for power in range(longest.bit_length() + 1))]
    result = []
    for low, high in itertools.pairwise(edges):
        values = np.concatenate([document.nats[low:high] for document in scored])
        if len(values):
            result.append({"from": low, "to": high - 1, "nats_per_token": float(values.mean()), "tokens": len(values)})
    return result


def bootstrap_ratio(numerators: np.ndarray, denominators: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of sum(numerators) / sum(denominators), resampling pairs."""
    generator = np.random.default_rng(seed)
    ratios = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        rows = generator.integers(0, len(numerators), len(numerators))
        ratios[i] = numerators[rows].sum() / denominators[rows].sum()
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(low), float(high)
