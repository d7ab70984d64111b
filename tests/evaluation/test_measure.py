"""What all measures share: where memory runs out, fewer rows are measured at a time, with the same figures
(RELIABILITY 24).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mickle.data.label_batches import EncodedLabels
from mickle.data.length_tasks import buckets, open_task, symbol_tokenizer
from mickle.data.records import Page
from mickle.data.tokenizer import train_tokenizer
from mickle.errors import ResourceError
from mickle.evaluation import length_scores, masked, paired, pairs
from mickle.models.decoder import Decoder
from mickle.models.shape import DecoderConfig
from mickle.tuning import tune_labels

TEXTS = [f"page {i} tells of {i * i} birds " + "and a tree " * (i % 7) for i in range(12)]
TOKENIZER = train_tokenizer(TEXTS, 270, or_fewer=True, mask=True)
TASK = open_task("rsc")
SYMBOLS = symbol_tokenizer(TASK)
NO_MEMORY = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")


def decoder(vocabulary: int = TOKENIZER.size, causal: bool = True, seed: int = 0) -> Decoder:
    shape = DecoderConfig(vocabulary, 32, 1, 2, 2, 16, 64, max_length=64, causal=causal, initial_std=0.3)
    return Decoder(shape, seed=seed).eval()


def lengths(model: nn.Module) -> Any:
    instances = length_scores.encode_examples(list(buckets(TASK, 0, (2, 5), 4)), SYMBOLS.encode, 1, SYMBOLS.end)
    return [(found.kind == "exact", found.tokens) for found in length_scores.judge(model, instances, SYMBOLS.end)]


def hidden(model: nn.Module) -> Any:
    return masked.score(model, TOKENIZER, [Page("", "", "", text) for text in TEXTS], rate=0.3, length=40)


def sentences(model: nn.Module) -> Any:
    return pairs.pseudo_log_likelihoods(model, TOKENIZER, TEXTS)


def comparison(model: nn.Module) -> Any:
    texts = [
        paired.ScoredText(np.array([TOKENIZER.start, *ids]), np.array([False] + [True] * len(ids)), 1)
        for ids in TOKENIZER.encode(TEXTS)
    ]
    sums = paired.compare(decoder(seed=1), model, texts, length=16)
    return np.stack([sums.reference, sums.other, sums.divergence, sums.changed])


def labels(model: nn.Module) -> Any:
    """Words of two tokens, so that rows are classes of examples."""
    tokens = tuple(tuple(map(int, ids)) for ids in TOKENIZER.encode(TEXTS))
    encoded = EncodedLabels(tokens, (((5, 6), (7, 8)),) * len(tokens), (0,) * len(tokens), None)
    return tune_labels._scores(model, encoded, len(tokens))


MEASURES: dict[str, tuple[Callable[[nn.Module], Any], Decoder]] = {
    "length": (lengths, decoder(SYMBOLS.size)),
    "masked": (hidden, decoder(causal=False)),
    "pairs": (sentences, decoder(causal=False)),
    "comparison": (comparison, decoder()),
    "labels": (labels, decoder()),
}


def failing(model: nn.Module, monkeypatch: pytest.MonkeyPatch, fails: Callable[[int], bool]) -> list[int]:
    """Let the model's n-th pass find no memory where ``fails(n)``; the list grows by the rows of each pass."""
    plain, passes = model.forward, []

    def forward(ids: torch.Tensor, *rest: Any, **options: Any) -> Any:
        passes.append(len(ids))
        if fails(len(passes)):
            raise NO_MEMORY
        return plain(ids, *rest, **options)

    monkeypatch.setattr(model, "forward", forward)
    return passes


@pytest.fixture(params=MEASURES)
def case(request: pytest.FixtureRequest) -> tuple[Callable[[nn.Module], Any], Decoder]:
    return MEASURES[request.param]


def test_memory_that_runs_out_is_told_and_changes_no_figure(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    measure, model = case
    with monkeypatch.context() as patch:
        whole = failing(model, patch, lambda n: False)
        wanted = torch.as_tensor(np.array(measure(model)))
    for n in (1, len(whole)):
        with monkeypatch.context() as patch:
            passes = failing(model, patch, lambda m, n=n: m == n)
            with pytest.warns(UserWarning, match="memory ran out: .* at a time"):
                found = torch.as_tensor(np.array(measure(model)))
        assert passes[n] == passes[n - 1] // 2
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:memory ran out")
def test_memory_that_is_never_enough_is_an_error_after_four_halvings(
    case: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure, model = case
    passes = failing(model, monkeypatch, lambda n: True)
    with pytest.raises(ResourceError, match="can't allocate memory"):
        measure(model)
    assert len(passes) <= 5
