"""The data-constrained law against the figures of its authors, closed forms and their grid search; epoch accounting."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_training import decoder, losses, train, weights

from mickle.data.mixture import Mixture
from mickle.data.packing import TokenStream
from mickle.errors import UsageError
from mickle.training.repetition import C4, Law, near_threshold, threshold_ratio

LOG = st.floats(0.0, 1.0)


def between(low: float, high: float, share: float) -> float:
    return math.exp(math.log(low) + share * (math.log(high) - math.log(low)))


def chinchilla(parameters: float, tokens: float) -> float:
    return C4.floor + C4.parameter_factor / parameters**C4.parameter_power + C4.token_factor / tokens**C4.token_power


def test_losses_of_the_authors() -> None:
    assert C4.loss(6.34e9, 242e9, 25e9) == pytest.approx(2.2256440889984477, rel=1e-12)
    assert C4.loss(8.67e9, 178e9, 25e9) == pytest.approx(2.2269634075087867, rel=1e-12)
    assert C4.ratio == pytest.approx(0.225802, abs=1e-6)
    assert C4.fitting_parameters(1e9) == pytest.approx(0.0509865e9, rel=1e-6)


def authors_grid(flops: float, unique: float) -> tuple[float, float, float, float]:
    """Their search: 500 factors from 1.0001 to 3 away from the Chinchilla optimum, to both sides."""
    start = C4.unlimited(flops)
    candidates = []
    for factor in np.linspace(1.0001, 3, 500):
        for parameters, tokens in (
            (start.parameters / factor, start.tokens * factor),
            (start.parameters * factor, start.tokens / factor),
        ):
            candidates.append((C4.loss(parameters, tokens, unique), parameters, tokens, tokens / unique))
    return min(candidates)


def test_the_best_split_of_a_budget_is_the_grids_and_better() -> None:
    loss, parameters, tokens, epochs = authors_grid(1e22, 25e9)
    assert (tokens, epochs) == (pytest.approx(237336955477.55, rel=1e-9), pytest.approx(9.4934782, rel=1e-7))
    assert (parameters, loss) == (pytest.approx(7022364735.88, rel=1e-9), pytest.approx(2.2221293, abs=1e-7))
    best = C4.best(1e22, 25e9)
    assert best.loss <= loss
    assert best.loss == pytest.approx(loss, abs=1e-8)
    assert best.epochs == pytest.approx(epochs, rel=2e-3)
    assert 6 * best.parameters * best.tokens == pytest.approx(1e22, rel=1e-9)


@given(LOG, LOG)
@settings(max_examples=15, deadline=None)
def test_no_other_split_beats_the_best(flops_share: float, unique_share: float) -> None:
    flops, unique = between(1e14, 1e24, flops_share), between(1e5, 1e12, unique_share)
    best = C4.best(flops, unique)
    sizes = best.parameters * np.geomspace(1e-3, 1e3, 301)
    others = [C4.loss(size, flops / 6 / size, unique) for size in sizes if flops / 6 / size > 1]
    assert best.loss <= min(others) + 1e-12


def test_with_enough_text_the_best_is_chinchillas() -> None:
    best, closed = C4.best(1e20, 1e13), C4.unlimited(1e20)
    assert best.parameters == pytest.approx(closed.parameters, rel=1e-4)
    assert best.loss == pytest.approx(closed.loss, abs=1e-10)


@given(LOG, LOG)
@settings(deadline=None)
def test_one_epoch_of_a_model_that_is_not_too_large_is_chinchilla(size_share: float, token_share: float) -> None:
    tokens = between(1e8, 1e12, token_share)
    parameters = between(1e5, C4.fitting_parameters(tokens), size_share)
    assert C4.loss(parameters, tokens, tokens) == pytest.approx(chinchilla(parameters, tokens), rel=1e-12)


def test_the_worth_of_repeats() -> None:
    known = {2: 0.984, 4: 0.931, 8: 0.828, 16: 0.661, 40: 0.379, 100: 0.164}
    assert {e: round(C4.fresh_equivalent(e) / e, 3) for e in known} == known
    assert C4.fresh_equivalent(1e9) == pytest.approx(16.387756, rel=1e-9)
    forever = Law(**{**vars(C4), "token_decay": math.inf})
    assert forever.effective_tokens(7e9, 1e9) == 7e9
    assert C4.effective_tokens(3e8, 1e9) == 3e8  # fewer read than there are: none is repeated


def test_the_worth_of_the_next_token_is_the_slope() -> None:
    assert C4.epoch_value(1) == 1
    for epochs in (1.5, 4.0, 40.0):
        slope = (C4.fresh_equivalent(epochs + 1e-5) - C4.fresh_equivalent(epochs - 1e-5)) / 2e-5
        assert C4.epoch_value(epochs) == pytest.approx(slope, rel=1e-6)
    assert C4.epoch_value(C4.paying_epochs(0.5)) == pytest.approx(0.5)
    assert C4.paying_epochs(0.1) == pytest.approx(36.43, abs=0.01)


@given(LOG, LOG, LOG, st.floats(1.01, 4.0))
@settings(deadline=None)
def test_more_of_anything_never_hurts_and_repeats_fade(
    size_share: float, token_share: float, unique_share: float, more: float
) -> None:
    parameters, tokens = between(1e6, 1e11, size_share), between(1e7, 1e12, token_share)
    unique = between(1e6, 1e12, unique_share)
    loss = C4.loss(parameters, tokens, unique)
    assert C4.loss(parameters * more, tokens, unique) <= loss + 1e-12
    assert C4.loss(parameters, tokens * more, unique) <= loss + 1e-12
    gains = np.diff([C4.fresh_equivalent(epochs) for epochs in (more, 2 * more, 3 * more)])
    assert 0 <= gains[1] <= gains[0]


def test_the_threshold() -> None:
    assert threshold_ratio(3.6e9, 1e9, 1.0) == 1
    assert threshold_ratio(60_000, 60_000 * 10) == 0.1
    assert [near_threshold(ratio) for ratio in (0.4, 0.5, 1.0, 2.0, 2.1)] == [False, True, True, True, False]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: C4.loss(0, 1e9, 1e9),
        lambda: C4.loss(1e9, math.nan, 1e9),
        lambda: C4.best(-1, 1e9),
        lambda: C4.best(1e20, math.inf),
        lambda: C4.paying_epochs(1.0),
        lambda: C4.refuse_more_epochs(1501),
        lambda: Law(**{**vars(C4), "floor": 0.0}),
        lambda: threshold_ratio(1e6, 0),
    ],
)
def test_amounts_that_cannot_be(wrong: object) -> None:
    with pytest.raises(UsageError):
        wrong()  # type: ignore[operator]


@given(st.integers(1, 9), st.integers(2, 40), st.integers(1, 7), st.integers(0, 99), st.integers(1, 90))
@settings(max_examples=40, deadline=None)
def test_every_token_is_read_floor_or_ceil_times(length: int, windows: int, rows: int, seed: int, steps: int) -> None:
    """Token crisis, oracle 8: after any number of steps no token was read twice more often than another."""
    text = TokenStream(np.arange(windows * length), np.array([0]), end=-1)
    batches = Mixture(text, rows, length, seed)
    read = Counter(np.concatenate([batches(step)["input_ids"].flatten() for step in range(steps)]).tolist())
    whole, rest = divmod(steps * rows, windows)
    assert sorted(Counter(read[token] for token in range(windows * length)).items()) == sorted(
        (times, count * length) for times, count in ((whole, windows - rest), (whole + 1, rest)) if count
    )


def test_as_many_unique_tokens_as_are_read_is_ordinary_training() -> None:
    """Token crisis, oracles 8 and 10: with U = D no window repeats, and the run is that on the windows as a list."""
    tokens = np.random.default_rng(0).integers(0, 12, 6 * 5 * 10)
    batches = Mixture(TokenStream(tokens, np.array([0]), end=12), batch_size=5, length=10, seed=3)
    listed = [batches(step) for step in range(6)]
    assert len({row.numpy().tobytes() for batch in listed for row in batch["input_ids"]}) == 30
    repeated, told = train("next_token", model=decoder(dropout=0.2), steps=6, batches=batches)
    ordinary, told_ordinary = train("next_token", model=decoder(dropout=0.2), steps=6, batches=listed.__getitem__)
    assert losses(told) == losses(told_ordinary)
    assert all(torch.equal(a, weights(ordinary)[name]) for name, a in weights(repeated).items())
