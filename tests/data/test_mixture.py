"""Batches as a pure function of (seed, i), and the keyed permutation under them."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mickle.data.mixture import BLOCK, DomainMixture, Mixture, permute, permute_each
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


def test_golden_positions():
    """What runs of earlier versions read: a change would make them other runs."""
    assert Mixture(stream(1000), 5, 20, seed=7).positions(203).tolist() == [697, 397, 897, 917, 257]
    assert Mixture(stream(65), 32, 9, seed=0).positions(0)[:6].tolist() == [14, 23, 50, 32, 41, 59]


# -- several domains -----------------------------------------------------------------------------------------------


def domains(weights, sizes=None, batch_size=32, length=8, seed=0, **options):
    """Domain d holds the tokens 10,000 d, 10,000 d + 1, ..."""
    sizes = sizes or [400 + 100 * d for d in range(len(weights))]
    streams = tuple(
        TokenStream(np.arange(n, dtype=np.uint16) + 10_000 * d, np.array([0]), end=65_535) for d, n in enumerate(sizes)
    )
    return DomainMixture(streams, tuple(weights), batch_size, length, seed, **options)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 700), min_size=1, max_size=8), st.integers(0, 2**63))
def test_permutations_of_many_sizes_at_once(sizes, key):
    places = np.concatenate([np.arange(n) for n in sizes])
    which = np.repeat(np.arange(len(sizes)), sizes)
    moved = permute_each(places, np.array(sizes)[which], np.uint64(key) + which.astype(np.uint64))
    for domain, size in enumerate(sizes):
        assert sorted(moved[which == domain].tolist()) == list(range(size))


def test_rows_come_from_their_domain_and_labels_follow():
    batch = domains([0.5, 0.2, 0.3])(7)
    assert batch["input_ids"].shape == (32, 8)
    assert (batch["input_ids"] // 10_000 == batch["domains"][:, None]).all()
    inner = batch["labels"] != -100
    assert (batch["labels"] - batch["input_ids"] == 1)[inner].all()
    assert inner.float().mean() > 0.9


weightings = st.lists(st.floats(0, 1), min_size=1, max_size=6).filter(lambda w: sum(w) > 0.1)


@settings(max_examples=60, deadline=None)
@given(weightings, st.integers(0, 2**32 - 1), st.integers(0, 10**4))
def test_a_block_holds_each_weight_within_one_sample(weights, seed, block):
    weights = np.array(weights) / sum(weights)
    mixture = domains(weights, seed=seed)
    drawn, numbers = mixture.draws(block * BLOCK + np.arange(BLOCK))
    counts = np.bincount(drawn, minlength=len(weights))
    assert (np.abs(counts - BLOCK * weights) < 1 + 1e-9).all()
    assert (counts[weights == 0] == 0).all()
    _, following = mixture.draws((block + 1) * BLOCK + np.arange(BLOCK))
    for domain in range(len(weights)):  # numbers of a domain run on without a gap
        mine = np.sort(numbers[drawn == domain])
        assert (np.diff(mine) == 1).all()
    assert following.min() >= 0


def test_numbers_of_a_domain_count_its_samples_from_the_first():
    """By counting one by one, over borders of blocks, batches and kept counts."""
    mixture = domains([0.37, 0.0, 0.05, 0.58], seed=5)
    drawn, numbers = mixture.draws(np.arange(70 * BLOCK))
    seen = [0, 0, 0, 0]
    for domain in drawn.tolist():
        seen[domain] += 1
    for domain in range(4):
        assert sorted(numbers[drawn == domain].tolist()) == list(range(seen[domain]))


def test_frequencies_by_chi_square():
    """Over a million draws; systematic sampling scatters less than independent draws, for which the test is made."""
    from scipy.stats import chi2

    weights = np.array([0.6057, 0.0046, 0.0224, 0.1019, 0.2654])
    counts = np.bincount(domains(weights, seed=11).draws(np.arange(1_000_000))[0], minlength=5)
    statistic = ((counts - 1e6 * weights) ** 2 / (1e6 * weights)).sum()
    assert chi2.sf(statistic, 4) > 0.001


def test_counts_of_a_block_are_unbiased():
    """A domain with a tenth of a sample in each block: its mean count is a tenth, not 0."""
    weights = [0.1 / BLOCK, 1 - 0.1 / BLOCK]
    counts = [np.count_nonzero(domains(weights, seed=s).draws(np.arange(BLOCK))[0] == 0) for s in range(3000)]
    assert abs(np.mean(counts) - 0.1) < 4 * np.sqrt(0.1 * 0.9 / 3000)


def test_the_order_of_domains_is_shuffled():
    """In random order a row's domain says nothing of the next one's: their product has mean w1 w2."""
    drawn, _ = domains([0.5, 0.5], seed=2).draws(np.arange(40 * BLOCK))
    assert abs((drawn[1:] & drawn[:-1]).mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / len(drawn))
    other, _ = domains([0.5, 0.5], seed=3).draws(np.arange(40 * BLOCK))
    assert 0.45 < (drawn == other).mean() < 0.55


@pytest.mark.parametrize("shift", [True, False])
def test_an_epoch_of_a_domain_reads_every_token_once(shift):
    mixture = domains([0.5, 0.2, 0.3], sizes=[400, 160, 1600], shift=shift)
    samples = np.arange(64 * 32)  # whole blocks: of each domain the first numbers without a gap
    drawn, numbers = mixture.draws(samples)
    at = np.concatenate([mixture.positions(i)[1] for i in range(64)])
    for domain, windows in enumerate(mixture.windows):
        orders = []
        for epoch in range(numbers[drawn == domain].max() // windows):
            mine = (drawn == domain) & (numbers // windows == epoch)
            read = (at[mine, None] + np.arange(8)) % len(mixture.streams[domain])
            assert sorted(read.ravel().tolist()) == list(range(len(mixture.streams[domain])))
            assert shift or (at[mine] % 8 == 0).all()
            orders.append((at[mine][np.argsort(numbers[mine])] // 8).tolist())
        assert len(orders) >= 2
        assert all(one != two for one, two in pairwise(orders))


def test_windows_are_named_where_they_repeat():
    mixture = domains([0.5, 0.5], sizes=[80, 160], shift=False)
    batches = [mixture(i) for i in range(10)]
    of = {}
    for batch in batches:
        for window, row in zip(batch["windows"].tolist(), batch["input_ids"].tolist(), strict=True):
            assert of.setdefault(window, row) == row
    assert set(of) == set(range(10 + 20))
    assert len({tuple(row) for row in of.values()}) == 30
    assert "windows" not in domains([0.5, 0.5])(0)


def test_a_batch_is_a_function_of_seed_and_index_alone():
    fresh = domains([0.4, 0.6], seed=4)(900)
    asked = domains([0.4, 0.6], seed=4)
    for index in (0, 2000, 3):
        asked(index)
    again = asked(900)
    assert all((fresh[name] == again[name]).all() for name in fresh)
    assert (domains([0.4, 0.6], seed=5)(900)["input_ids"] != fresh["input_ids"]).any()


def test_batch_size_moves_no_sample():
    small, large = domains([0.4, 0.6], batch_size=16), domains([0.4, 0.6], batch_size=32)
    joined = np.concatenate([small.positions(6), small.positions(7)], axis=1)
    assert (joined == np.stack(large.positions(3))).all()


@pytest.mark.parametrize(
    ("weights", "sizes", "said"),
    [
        ([0.5, 0.4], [100, 100], "the domains' weights are shares"),
        ([1.5, -0.5], [100, 100], "the domains' weights are shares"),
        ([float("nan"), 1.0], [100, 100], "the domains' weights are shares"),
        ([0.5, 0.5], [100, 8], "The domain 'b' holds 8 tokens, too few for one sequence of 8."),
    ],
)
def test_domains_that_cannot_be_mixed(weights, sizes, said):
    with pytest.raises(UsageError, match=said):
        domains(weights, sizes=sizes, names=("a", "b"))


def test_a_domain_of_weight_zero_may_be_empty():
    assert (domains([1.0, 0.0], sizes=[100, 0])(3)["domains"] == 0).all()
