"""From repeated windows (``kernels.repeated_windows``) to the spans of tokens they cover, which a document loses.

``spans_plain`` is the definition of ``spans``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray


def spans_plain(
    others: Sequence[int] | NDArray[Any], start: int, end: int, length: int, keep_first: bool
) -> list[tuple[int, int, int]]:
    """``spans`` by its definition: a token at a time."""
    covered: dict[int, int] = {}
    for window in range(start, end):
        other = int(others[window]) - 1
        if other < 0 or (keep_first and other > window):
            continue
        for token in range(max(window, other + length) if keep_first else window, window + length):
            covered.setdefault(token, other)
    found: list[tuple[int, int, int]] = []
    for token in sorted(covered):
        if found and found[-1][1] == token:
            found[-1] = (found[-1][0], token + 1, found[-1][2])
        else:
            found.append((token, token + 1, covered[token]))
    return found


def spans(others: NDArray[Any], start: int, end: int, length: int, keep_first: bool) -> NDArray[np.int64]:
    """Tokens to cut from the document ``tokens[start:end]``: int64 [spans, 3] of first token, end, other place.

    All tokens of repeated windows, in spans that neither overlap nor touch. With ``keep_first`` those of every
    occurrence but the first, save what the first overlaps: at least one token of each occurrence goes, and the first
    stays but for what belongs to a later occurrence of another window. The third number is where the window
    occurs that the span's first token belongs to: its first occurrence, or the second where it is the first.
    """
    found: NDArray[np.int64] = _spans(np.asarray(others), start, end, length, keep_first)
    return found


# -- compiled ----------------------------------------------------------------------------------------------------
# At the top of the module, where numba's cache finds them again: nested ones are compiled in every process.

_jit = numba.njit(cache=True, nogil=True, error_model="numpy")


@_jit
def _spans(others, start, end, length, keep_first):  # type: ignore[no-untyped-def]
    found, count = np.empty((4, 3), np.int64), 0
    for window in range(start, end):
        if others[window] == 0:
            continue
        other = np.int64(others[window]) - 1
        if keep_first and other > window:
            continue
        first = max(window, other + length) if keep_first else window
        # A span that the first occurrence shortened may begin right of where a later one does.
        while count and found[count - 1, 1] >= first:
            count -= 1
            if found[count, 0] <= first:
                first, other = found[count, 0], found[count, 2]
        if count == len(found):
            grown = np.empty((2 * count, 3), np.int64)
            grown[:count] = found
            found = grown
        found[count] = (first, window + length, other)
        count += 1
    return found[:count].copy()
