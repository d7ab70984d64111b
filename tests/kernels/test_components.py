"""Stars are those of a dictionary; components are those of scipy, by any order and split of the edges."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from mickle.kernels.components import connected, connected_plain, merge, stars, stars_plain

GRAPHS = st.integers(1, 40).flatmap(
    lambda count: st.tuples(
        st.just(count), st.lists(st.tuples(st.integers(0, count - 1), st.integers(0, count - 1)), max_size=60)
    )
)


def ends(edges: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    array = np.array(edges, np.int64).reshape(-1, 2)
    return array[:, 0].copy(), array[:, 1].copy()


def by_scipy(left: np.ndarray, right: np.ndarray, count: int) -> np.ndarray:
    """The smallest index of each point's component."""
    graph = coo_array((np.ones(left.size), (left, right)), shape=(count, count))
    _, names = connected_components(graph, directed=False)
    _, first, inverse = np.unique(names, return_index=True, return_inverse=True)
    return first[inverse]


@settings(deadline=None)
@given(GRAPHS)
def test_both_are_scipys(graph: tuple[int, list[tuple[int, int]]]) -> None:
    count, edges = graph
    left, right = ends(edges)
    expected = by_scipy(left, right, count)
    np.testing.assert_array_equal(connected_plain(left, right, count), expected)
    np.testing.assert_array_equal(connected(left, right, count), expected)


@settings(deadline=None)
@given(GRAPHS, st.integers(0, 60), st.randoms())
def test_order_direction_and_split_do_not_matter(graph, cut, random) -> None:  # type: ignore[no-untyped-def]
    count, edges = graph
    expected = connected(*ends(edges), count)
    turned = [edge[::-1] if random.random() < 0.5 else edge for edge in edges]
    random.shuffle(turned)
    labels = np.arange(count)
    for part in (turned[:cut], turned[cut:], turned[:cut]):  # the last adds nothing
        merge(labels, *ends(part))
    np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize("count", [1, 2, 100_000])
def test_long_chains(count: int) -> None:
    points = np.arange(count)
    for left, right in ((points[:-1], points[1:]), (points[1:][::-1], points[:-1][::-1])):
        assert not connected(left, right, count).any()


def test_a_large_sparse_graph() -> None:
    drawn = np.random.default_rng(0).integers(0, 50_000, (2, 30_000))
    np.testing.assert_array_equal(connected(*drawn, 50_000), by_scipy(*drawn, 50_000))


def test_edges_must_fit() -> None:
    labels = np.arange(3)
    for left, right in (([0], [3]), ([-1], [0]), ([0, 1], [2])):
        with pytest.raises(ValueError):
            merge(labels, np.array(left), np.array(right))
    assert labels.tolist() == [0, 1, 2]


@settings(deadline=None)
@given(st.lists(st.one_of(st.integers(0, 8), st.sampled_from([2**64 - 1, 2**63, 1 << 40])), max_size=70))
def test_stars_are_the_plain_ones(values: list[int]) -> None:
    # Small values and such with equal low bits lie side by side in the table, so that places are taken.
    column = np.array(values, np.uint64)
    for found, plain in zip(stars(column), stars_plain(column), strict=True):
        np.testing.assert_array_equal(found, plain)
        assert found.dtype == np.int64


def test_stars_by_hand() -> None:
    left, right = stars_plain(np.array([5, 0, 7, 5, 7, 0, 5, 9], np.uint64))
    assert left.tolist() == [0, 2, 0] and right.tolist() == [3, 4, 6]
    drawn = np.random.default_rng(0).integers(0, 40_000, 50_000).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for found, plain in zip(stars(drawn), stars_plain(drawn), strict=True):
        np.testing.assert_array_equal(found, plain)
