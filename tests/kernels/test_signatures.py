"""Signatures: the compiled pass is the definition, and the definition estimates Jaccard similarity as MinHash
should.
"""

import math
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mickle.data.near_duplicates import match_probability
from mickle.kernels import signatures as kernel

AWKWARD = st.text(
    st.sampled_from("aB z.,-\t\n\0\x1c\x7f éÉ\u0301ẞΣςİK\u00a0\u2028\u200b漢かが々ー한ไ🙂\ud800"), max_size=60
)
TEXTS = st.one_of(AWKWARD, st.text(max_size=40), st.text(st.sampled_from("ab "), max_size=200))


# -- one by one against known values ---------------------------------------------------------------------------------


def test_published_values_of_the_hashes() -> None:
    # SplitMix64's first two numbers from state 0; FNV-1a of "a" and "foobar" from its authors' list.
    assert kernel.mixed_plain(kernel._FOLD) == 0xE220A8397B1DCDAF
    assert kernel.mixed_plain(2 * kernel._FOLD % 2**64) == 0x6E789E6AA1B965F4
    for word, fnv in (("a", 0xAF63DC4C8601EC8C), ("foobar", 0x85944171F73967E8)):
        expected = kernel.mixed_plain(kernel.mixed_plain(fnv))  # a run of one word is folded to the word itself
        assert kernel.shingles(word, 1).tolist() == kernel.shingles_plain(word, 1).tolist() == [expected]


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("Ça, l'ÉTÉ\n… é!", "ca lete e"),
        (" \t--\0-- ", ""),
        ("state-of-the-art $5+3", "stateoftheart 53"),
        ("zero\u200bwidth non\u00a0breaking\x1cspaces", "zerowidth non breaking spaces"),
        ("漢字 カタカナ、abc語", "漢 字 カ タ カ ナ abc 語"),
        ("ΟΔΟΣ οδος", "οδοσ οδοσ"),
        ("İstanbul", "istanbul"),
        ("half \ud800pair", "half pair"),
    ],
)
def test_normal_form(text: str, normal: str) -> None:
    assert kernel.normalise(text) == normal
    np.testing.assert_array_equal(kernel.shingles(text, 1), kernel.shingles_plain(normal, 1))


def test_the_functions_do_not_depend_on_their_number() -> None:
    (a, b), (more_a, more_b) = kernel.functions(7, 3), kernel.functions(7, 50)
    assert (a == more_a[:3]).all() and (b == more_b[:3]).all() and (more_a % 2 == 1).all()
    # Fixed for ever: signatures of different machines and versions are compared.
    assert [int(one[0]) for one in kernel.functions(0, 1)] == [0xA706DD2F, 0xB382A305]
    assert np.unique(np.concatenate([kernel.functions(seed, 100)[1] for seed in range(100)])).size == 10_000


# -- compiled against plain ------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=300)
@given(TEXTS, st.integers(1, 7))
def test_shingles_are_the_plain_ones(text: str, shingle: int) -> None:
    np.testing.assert_array_equal(kernel.shingles(text, shingle), kernel.shingles_plain(text, shingle))


def test_every_character_does_what_its_kind_says() -> None:
    # Each stands inside a word, between words and at the end, in texts of a few hundred characters.
    codes = [*range(0x3200), *range(0x3200, sys.maxunicode + 1, 97)]
    for first in range(0, len(codes), 256):
        text = " ".join(f"x{chr(code)}Y {chr(code)} z{chr(code)}" for code in codes[first : first + 256])
        np.testing.assert_array_equal(kernel.shingles(text, 2), kernel.shingles_plain(text, 2))


@pytest.mark.parametrize("count", [0, 1, 7, 1023, 1024, 1025, 5000])
@pytest.mark.parametrize("k", [1, 9, 128])
def test_minima_are_the_plain_ones(count: int, k: int) -> None:
    drawn = np.random.default_rng(count).integers(0, 2**64, count, np.uint64)
    found = kernel.minima(drawn, *kernel.functions(3, k))
    if count == 0:
        assert (found == 2**32 - 1).all()
    else:
        np.testing.assert_array_equal(found, kernel.minima_plain(drawn, *kernel.functions(3, k)))


@settings(deadline=None)
@given(st.lists(TEXTS, max_size=5), st.integers(1, 6), st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**40))
def test_signatures_are_the_plain_ones(texts: list[str], shingle: int, bands: int, rows: int, seed: int) -> None:
    found = kernel.signatures(texts, shingle, bands, rows, seed)
    assert found.shape == (len(texts), bands) and found.dtype == np.uint64
    np.testing.assert_array_equal(found, kernel.signatures_plain(texts, shingle, bands, rows, seed))


def test_long_texts_with_repeats_span_blocks() -> None:
    drawn = np.random.default_rng(0).integers(0, 3000, 7000)
    texts = [
        " ".join(f"w{number}" for number in drawn),
        "again " * 5000,
        "漢abc字" * 2000,
        " ".join(f"é{n}" for n in range(3000)),
    ]
    np.testing.assert_array_equal(kernel.signatures(texts, 2, 3, 4, 5), kernel.signatures_plain(texts, 2, 3, 4, 5))


def test_short_and_empty_texts() -> None:
    texts = ["", " .. ", "one", "One!", "two one", "one two", "one one", "one two three four five"]
    bands = kernel.signatures(texts, 5, 6, 2, 0)
    assert (bands[:2] == kernel.EMPTY).all() and (bands[2:] != kernel.EMPTY).all()
    assert (bands[2] == bands[3]).all()  # the same once normalised
    for column in bands[3:].T:
        assert np.unique(column).size == 5


def test_threads_do_not_disturb_each_other() -> None:
    texts = [[f"{part} {number} is a page of some words" for number in range(200)] for part in range(8)]
    alone = [kernel.signatures(one, 2, 10, 4, 1) for one in texts]
    with ThreadPoolExecutor(4) as pool:
        together = pool.map(lambda one: kernel.signatures(one, 2, 10, 4, 1), texts)
        assert all((one == other).all() for one, other in zip(alone, together, strict=True))


# -- statistics ------------------------------------------------------------------------------------------------------


def pairs(count: int, common: int, union: int) -> Iterator[tuple[str, str]]:
    """Pairs of texts whose sets of words have similarity common / union exactly; no word is in two pairs."""
    for number in range(count):
        words = [f"{number}x{place}" for place in range(union)]
        half = (union - common) // 2
        yield " ".join(words[: common + half]), " ".join(words[:common] + words[common + half :])


@pytest.mark.parametrize(
    ("common", "union", "count"),
    [(5, 100, 600), (20, 100, 600), (50, 100, 600), (80, 100, 600), (95, 100, 600), (9, 12, 3000), (2000, 4000, 150)],
)
def test_the_estimate_has_the_mean_and_variance_of_ideal_functions(common: int, union: int, count: int) -> None:
    k, similarity = 500, common / union
    functions = kernel.functions(common, k)
    shares = np.array(
        [
            np.mean(np.equal(*(kernel.minima(kernel.shingles(text, 1), *functions) for text in pair)))
            for pair in pairs(count, common, union)
        ]
    )
    deviation = math.sqrt(similarity * (1 - similarity) / k)
    assert abs(shares.mean() - similarity) < 3 * deviation / math.sqrt(count)
    assert shares.var() / deviation**2 == pytest.approx(1, abs=3 * math.sqrt(2 / count))


def test_the_estimate_over_seeds_on_one_pair() -> None:
    count, k = 400, 200
    one, other = (kernel.shingles(text, 1) for text in next(pairs(1, 60, 100)))
    shares = []
    for seed in range(count):
        functions = kernel.functions(seed, k)
        shares.append(np.mean(kernel.minima(one, *functions) == kernel.minima(other, *functions)))
    deviation = math.sqrt(0.6 * 0.4 / k)
    assert abs(np.mean(shares) - 0.6) < 3 * deviation / math.sqrt(count)
    assert np.var(shares) / deviation**2 == pytest.approx(1, abs=3 * math.sqrt(2 / count))


@pytest.mark.parametrize(
    ("bands", "rows", "similarity", "expected"),
    [
        (450, 20, 0.5, 4.3e-4), (450, 20, 0.6, 0.0163), (450, 20, 0.7, 0.302), (450, 20, 0.75, 0.761),
        (450, 20, 0.8, 0.9946), (14, 8, 0.7, 0.564), (14, 8, 0.75, 0.772), (14, 8, 0.8, 0.924), (14, 8, 0.85, 0.988),
    ],
)  # fmt: skip
def test_bands_meet_as_often_as_the_curve_says(bands: int, rows: int, similarity: float, expected: float) -> None:
    assert match_probability(similarity, bands, rows) == pytest.approx(expected, rel=0.01)
    count = 2000
    both = list(pairs(count, round(similarity * 40), 40))
    left, right = (kernel.signatures([pair[side] for pair in both], 1, bands, rows, 11) for side in (0, 1))
    hits = int((left == right).any(axis=1).sum())
    probability = match_probability(similarity, bands, rows)
    assert abs(hits - count * probability) <= 3 * math.sqrt(count * probability * (1 - probability))
