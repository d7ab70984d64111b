"""Near duplicates: clusters are those of brute force, the first page stays, and nothing depends on order or split."""

import math
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from mickle.config import validate
from mickle.data.comparing import compare_pages
from mickle.data.near_duplicates import clusters, match_probability, signatures, similarity
from mickle.data.records import Failure, Page, Removed, remove
from mickle.data.rules import NearDuplicates, Outcome, Rules
from mickle.errors import UsageError
from mickle.kernels.components import stars

SMALL = NearDuplicates(bands=20, rows=5)
COLUMNS = st.integers(0, 12).flatmap(
    lambda count: st.lists(st.lists(st.integers(0, 6), min_size=count, max_size=count), max_size=4).map(
        lambda columns: (count, [np.array(column, np.uint64) for column in columns])
    )
)


def page(number: int, text: str) -> Page:
    return Page(f"https://example.org/{number}", "example.org", "en", text)


def families(count: int = 12, seed: int = 0) -> list[tuple[int, str]]:
    """(family, text): of each family 1 to 4 versions of a text of 150 words, a few words apart; all mixed up."""
    draw = np.random.default_rng(seed)
    found = []
    for family in range(count):
        words = [f"w{number}" for number in draw.integers(0, 5000, 150)]
        for version in range(1 + family % 4):
            edited = words.copy()
            for place in draw.choice(150, 1 + version, replace=False):
                edited[place] = f"edit{family}x{version}"
            found.append((family, " ".join(edited)))
    return [found[place] for place in draw.permutation(len(found))]


def jaccard_of_words(one: str, other: str, n: int) -> float:
    """From the words themselves: no hash."""
    sets = [{tuple(text.split()[i : i + n]) for i in range(len(text.split()) - n + 1)} for text in (one, other)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def by_brute_force(columns: list[np.ndarray], count: int) -> list[int]:
    """The first member of each page's component over all equal pairs."""
    matrix = np.zeros((count, count), bool)
    for column in columns:
        matrix |= (column[:, None] == column[None, :]) & (column[:, None] != 0)
    _, names = connected_components(coo_array(matrix), directed=False)
    return [names.tolist().index(name) for name in names]


# -- similarity ------------------------------------------------------------------------------------------------------


def test_similarity_is_that_of_the_words() -> None:
    texts = [text for _, text in families(6)]
    for one, other in combinations(texts, 2):
        assert similarity(one, other) == pytest.approx(jaccard_of_words(one, other, 5), abs=1e-12)
    assert similarity("A b, c d e f", "a b c d e\nF") == 1
    assert similarity("", "") == similarity("", "a") == similarity("a b", "b a") == 0
    assert similarity("a b c", "b c d", shingle=1) == 0.5


# -- edges and clusters ----------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 5), max_size=30))
def test_stars_join_equal_hashes_to_their_first(values: list[int]) -> None:
    left, right = stars(np.array(values, np.uint64))
    expected = {(values.index(value), place) for place, value in enumerate(values) if value}
    assert sorted(zip(left.tolist(), right.tolist())) == sorted((a, b) for a, b in expected if a != b)


def test_a_band_shared_by_all_stays_linear() -> None:
    left, right = stars(np.full(100_000, 7, np.uint64))
    assert left.size == 99_999 and not left.any() and right[0] == 1
    assert stars(np.zeros(100_000, np.uint64))[0].size == 0


@hypothesis_settings(deadline=None)
@given(COLUMNS, st.randoms())
def test_clusters_are_the_components_of_all_equal_pairs(drawn, random) -> None:  # type: ignore[no-untyped-def]
    count, columns = drawn
    expected = by_brute_force(columns, count) if count else []
    assert clusters(columns, count).tolist() == expected
    random.shuffle(columns)
    assert clusters(iter(columns), count).tolist() == expected


def test_columns_may_be_memory_maps(tmp_path) -> None:  # type: ignore[no-untyped-def]
    texts = [text for _, text in families()]
    bands = signatures(texts, SMALL)
    np.save(tmp_path / "bands.npy", np.ascontiguousarray(bands.T))
    stored = np.load(tmp_path / "bands.npy", mmap_mode="r")
    assert clusters(stored, len(texts)).tolist() == clusters(bands.T, len(texts)).tolist()


def test_signatures_of_parts_are_parts_of_the_signatures() -> None:
    texts = [text for _, text in families(200)]  # more than go through the kernel at once
    whole = signatures(texts, SMALL, seed=3)
    with ThreadPoolExecutor(2) as pool:
        parts = list(pool.map(lambda part: signatures(part, SMALL, seed=3), (texts[:100], texts[100:])))
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert (signatures(texts[:5], SMALL, seed=4) != whole[:5]).all()
    assert signatures([], SMALL).shape == (0, 20)


def test_verification_drops_what_the_bands_brought_together_wrongly() -> None:
    # Bands of one row: whatever shares a shingle meets.
    loose = NearDuplicates(shingle=1, bands=60, rows=1)
    texts = ["a b c d e f g h", "a b c d e f g x", "h i j k l m n o", "z z z", ""]
    asked = Counter[int]()

    def text(index: int) -> str:
        asked[index] += 1
        return texts[index]

    bands = signatures(texts, loose)
    assert clusters(bands.T, 5).tolist() == [0, 0, 0, 3, 4]
    checked = clusters(bands.T, 5, verify=0.7, shingle=1, text=text)
    assert checked.tolist() == [0, 0, 2, 3, 4]
    assert asked[2] == 1  # sixty bands may bring the pair together: it is compared once
    assert clusters(bands.T, 5, verify=7 / 9, shingle=1, text=text)[1] == 0  # at the limit: similar enough
    with pytest.raises(ValueError):
        clusters(bands.T, 5, verify=0.5)


def test_chains_are_joined_to_their_first_page() -> None:
    words = [f"w{number}" for number in range(400)]
    chain = [" ".join(words[first : first + 200]) for first in range(0, 200, 10)]  # each like the next, ends unlike
    texts = [*chain, "another page of a few words", chain[0], "another page of a few words"]
    labels = clusters(signatures(texts, NearDuplicates(bands=100, rows=4)).T, len(texts))
    assert labels.tolist() == [0] * 20 + [20, 0, 20]


# -- the stage -------------------------------------------------------------------------------------------------------


def near_duplicates(pages: Sequence[Page], settings: NearDuplicates) -> list[Outcome]:
    return list(compare_pages(pages, Rules(stages=["near_duplicates"], near_duplicates=settings)))


@pytest.mark.parametrize("verify", [0.0, 0.5])
def test_one_of_each_family_stays_the_first(verify: float) -> None:
    planted = families()
    pages = [page(number, text) for number, (_, text) in enumerate(planted)]
    out = near_duplicates(pages, SMALL.model_copy(update={"verify": verify}))
    assert [one.url for one in out if isinstance(one, Page)] == [one.url for one in pages]
    first: dict[int, int] = {}
    for number, ((family, text), one) in enumerate(zip(planted, out)):
        if family not in first:
            first[family] = number
            assert one == replace(pages[number], copies=family % 4)
        else:
            assert isinstance(one, Removed)
            assert (one.stage, one.reason) == ("near duplicates", "nearly the same text as a kept page")
            assert one.twin == pages[first[family]].url and one.text == text
            assert one.value == pytest.approx(jaccard_of_words(text, planted[first[family]][1], 5), abs=6e-5)
            assert one.limit == (verify or (1 / 20) ** (1 / 5))


def test_a_second_pass_removes_nothing_and_order_does_not_matter() -> None:
    planted = families(30)
    pages = [page(number, text) for number, (_, text) in enumerate(planted)]
    kept = [one for one in near_duplicates(pages, SMALL) if type(one) is Page]
    assert near_duplicates(kept, SMALL) == kept

    def grouped(numbers: list[int]) -> set[frozenset[int]]:
        labels = clusters(signatures([planted[n][1] for n in numbers], SMALL).T, len(numbers))
        return {frozenset(np.array(numbers)[labels == label].tolist()) for label in np.unique(labels)}

    straight = list(range(len(planted)))
    shuffled = np.random.default_rng(1).permutation(len(planted)).tolist()
    assert grouped(straight) == grouped(shuffled)
    again = [one for one in near_duplicates([pages[n] for n in shuffled], SMALL) if type(one) is Page]
    assert len(again) == len(kept) == 30


def test_short_pages_and_pages_without_words_are_not_one_cluster() -> None:
    texts = ["", " ", "...", "Yes.", "no", "yes", "not found", "found not", "a b c d", "a b c d e", "a b c d f"]
    out = near_duplicates([page(n, text) for n, text in enumerate(texts)], SMALL)
    assert [n for n, one in enumerate(out) if isinstance(one, Removed)] == [5]
    assert isinstance(out[5], Removed) and out[5].twin.endswith("/3") and out[5].value == 1


def test_pages_removed_before_pass_untouched_and_count_for_nothing() -> None:
    text = families(1)[0][1]
    before = remove(page(0, text), "language", Failure("other language", 0.1, 0.65))
    pages = [before, replace(page(1, text), copies=2), before, page(2, text)]
    out = near_duplicates(pages, SMALL)
    assert out[0] is before and out[2] is before
    assert out[1] == replace(pages[1], copies=3)  # its two, and the page removed for it
    assert isinstance(out[3], Removed) and out[3].twin == pages[1].url
    assert near_duplicates([], SMALL) == []


def test_settings() -> None:
    assert NearDuplicates().threshold == pytest.approx(0.737, abs=5e-4)
    assert NearDuplicates(bands=14, rows=8).threshold == pytest.approx(0.719, abs=5e-4)
    assert match_probability(NearDuplicates().threshold, 450, 20) == pytest.approx(1 - math.exp(-1), abs=1e-3)
    for wrong in ({"bands": 0}, {"rows": 0}, {"shingle": 0}, {"verify": 1.5}, {"band": 3}):
        with pytest.raises(UsageError):
            validate(NearDuplicates, wrong)
