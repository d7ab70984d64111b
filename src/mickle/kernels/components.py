"""Edges between equal entries, and connected components by union-find (Tarjan 1975), the smallest member as the root.

Labels are int64 [N]: of each point the smallest index of its component, so the result does not depend on the order or
the direction of the edges, nor on how they are split between calls.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mickle.kernels.compiled import compiled

Indices = NDArray[np.int64]
Hashes = NDArray[np.uint64]


def stars_plain(column: Hashes) -> tuple[Indices, Indices]:
    """Edges (left, right) from the first place of each value to every later one, by the later one; none for 0.

    A million equal values make a million edges.
    """
    first: dict[int, int] = {}
    edges = [(first.setdefault(value, place), place) for place, value in enumerate(column.tolist()) if value]
    left, right = np.array([edge for edge in edges if edge[0] != edge[1]], np.int64).reshape(-1, 2).T
    return left, right


def stars(column: Hashes) -> tuple[Indices, Indices]:
    """``stars_plain`` by a table of two to four places for each entry, 8 bytes each; values must be well mixed."""
    table = np.full(1 << (2 * column.size).bit_length(), -1, np.int64)
    left, right = np.empty(column.size, np.int64), np.empty(column.size, np.int64)
    count = _stars_of(column, table, left, right)
    return left[:count].copy(), right[:count].copy()


def connected_plain(left: Indices, right: Indices, count: int) -> Indices:
    """Labels of ``count`` points joined by edges ``left[e] - right[e]``: the least label of both ends, until
    nothing changes.
    """
    labels = np.arange(count, dtype=np.int64)
    while True:
        least = np.minimum(labels[left], labels[right])
        before = labels.copy()
        np.minimum.at(labels, left, least)
        np.minimum.at(labels, right, least)
        if (labels == before).all():
            return labels


def connected(left: Indices, right: Indices, count: int) -> Indices:
    """``connected_plain`` in nearly linear time."""
    labels = np.arange(count, dtype=np.int64)
    merge(labels, left, right)
    return labels


def merge(labels: Indices, left: Indices, right: Indices) -> None:
    """Joins by more edges, in place, what labels of this module hold; O(N + E), no memory beside the arguments.

    ``ValueError`` for edges of unequal number or with an end that is none of the points.
    """
    if left.shape != right.shape or left.ndim != 1:
        raise ValueError(f"{left.shape} left ends of edges but {right.shape} right ends")
    if left.size == 0:
        return
    least, greatest = min(left.min(), right.min()), max(left.max(), right.max())
    if least < 0 or greatest >= labels.size:
        raise ValueError(f"edges between {least} and {greatest} among {labels.size} points")
    _join(labels, left, right)


# -- compiled ----------------------------------------------------------------------------------------------------


@compiled
def _stars_of(column, table, left, right):  # type: ignore[no-untyped-def]
    count, mask = 0, np.uint64(table.size - 1)
    for place in range(column.size):
        value = column[place]
        if value == 0:
            continue
        slot = value & mask
        while table[slot] >= 0 and column[table[slot]] != value:
            slot = (slot + np.uint64(1)) & mask
        if table[slot] < 0:
            table[slot] = place
        else:
            left[count], right[count] = table[slot], place
            count += 1
    return count


@compiled
def _root(labels, point):  # type: ignore[no-untyped-def]
    while labels[point] != point:
        labels[point] = labels[labels[point]]  # halves the path for whoever comes after
        point = labels[point]
    return point


@compiled
def _join(labels, left, right):  # type: ignore[no-untyped-def]
    for edge in range(left.size):
        one, other = _root(labels, left[edge]), _root(labels, right[edge])
        if one < other:
            labels[other] = one
        else:
            labels[one] = other
    for point in range(labels.size):  # a point's parent is never greater than itself, so it is done already
        labels[point] = labels[labels[point]]
