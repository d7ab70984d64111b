"""How loops over NumPy arrays are compiled here, and the one function that several of them share.

Compiled functions stand at the top of their modules, where numba's cache finds them again: nested ones are compiled in
every process. Unsigned 64-bit numbers wrap around in them, as they are meant to.
"""

from typing import Any

import numba
import numpy as np

MASK = (1 << 64) - 1

compiled = numba.njit(cache=True, nogil=True, error_model="numpy")
inlined = numba.njit(inline="always")  # for functions so short that a call would cost more than they do


def mixed_plain(value: Any) -> Any:
    """The last step of SplitMix64 (Steele et al. 2014): a permutation of 64-bit integers that stirs all bits.

    value: a whole number, or an array of uint64.
    """
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & MASK
    return value ^ (value >> 31)


@inlined
def mixed(value):  # type: ignore[no-untyped-def]
    """:func:`mixed_plain` of one uint64."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
