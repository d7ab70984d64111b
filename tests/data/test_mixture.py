"""Batches as a pure function of (seed, i), and the keyed permutation under them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mickle.data.mixture import Mixture, permute
from mickle.data.packing import TokenStream
from mickle.errors import UsageError


def stream(tokens=1000):
    return TokenStream(np.arange(tokens, dtype=np.uint16), np.array([0]), end=tokens)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 700), st.integers(0, 2**32 - 1), st.integers(0, 1000))
def test_a_permutation_is_one(size, seed, epoch):
    places = permute(np.arange(size), size, seed, epoch)
    assert sorted(places.tolist()) == list(range(size))


def test_a_place_does_not_depend_on_what_else_is_asked():
    whole = permute(np.arange(100), 100, 3, 4)
    assert permute(np.array([57]), 100, 3, 4)[0] == whole[57]


def test_orders_look_shuffled():
    """The mean of |place - i| of a random order of n is n / 3; neighbours land next to each other about twice."""
    order = permute(np.arange(3000), 3000, 0, 0)
    assert abs(np.abs(order - np.arange(3000)).mean() - 1000) < 60
    assert (np.abs(np.diff(order)) == 1).sum() < 12
    assert (permute(np.arange(3000), 3000, 0, 1) == order).sum() < 12
    assert (permute(np.arange(3000), 3000, 1, 0) == order).sum() < 12


def test_an_epoch_reads_every_token_once():
    mixture = Mixture(stream(1000), batch_size=5, length=20, seed=7)
    assert mixture.windows == 50
    inputs = np.concatenate([mixture(i)["input_ids"].numpy().ravel() for i in range(10)])
    assert sorted(inputs.tolist()) == list(range(1000))


def test_labels_follow_inputs():
    batch = Mixture(stream(), batch_size=4, length=8, seed=0)(3)
    assert ((batch["input_ids"] + 1) % 1000 == batch["labels"]).all()


def test_batch_i_is_the_same_in_any_order_and_differs_between_seeds_and_epochs():
    mixture = Mixture(stream(), batch_size=4, length=8, seed=1)
    forward = [mixture.positions(i).tolist() for i in range(100)]
    assert [mixture.positions(i).tolist() for i in reversed(range(100))] == forward[::-1]
    assert Mixture(stream(), 4, 8, seed=2).positions(0).tolist() != forward[0]
    one_epoch = mixture.windows // 4
    assert {p % 8 for p in mixture.positions(one_epoch + 1)} != {p % 8 for p in mixture.positions(0)}


@pytest.mark.parametrize("tokens", [0, 1, 8])
def test_a_sequence_longer_than_the_pages(tokens):
    with pytest.raises(UsageError, match="too few for one sequence"):
        Mixture(stream(tokens), batch_size=1, length=8, seed=0)


def test_one_window_is_enough():
    assert Mixture(stream(9), batch_size=3, length=8, seed=0)(5)["input_ids"].shape == (3, 8)
