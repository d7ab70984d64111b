"""Pieces of text held to their regular expression, and to examples a person can check."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mickle.kernels.word_pieces import PIECE, hash_plain, pieces, pieces_plain

AWKWARD = st.one_of(
    st.text(alphabet=" \n\tab19_,.'é²٣\u0301\u00a0\u3000漢字กก\u0e31\U0001f600\U00020000\ud800", max_size=40),
    st.text(alphabet=st.characters(), max_size=40),
)


@settings(max_examples=500, deadline=None)
@given(AWKWARD)
def test_the_pass_makes_the_pieces_of_the_expression(text: str) -> None:
    hashes, starts = pieces(text)
    expected = pieces_plain(text)
    assert hashes.tolist() == expected[0].tolist()
    assert starts.tolist() == expected[1].tolist()
    assert "".join(PIECE.findall(text)) == text


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The cat's 42 mice_", ["The", " cat", "'", "s", " 42", " mice", "_"]),
        ("end.\n\n  Next  one", ["end", ".", "\n\n ", " Next", " ", " one"]),
        ("漢字 かな text", ["漢", "字", " か", "な", " text"]),
        ("  ", ["  "]),
        ("", []),
    ],
)
def test_pieces_of_known_texts(text: str, found: list[str]) -> None:
    hashes, starts = pieces(text)
    ends = [*starts.tolist()[1:], len(text)]
    assert [text[a:b] for a, b in zip(starts, ends)] == found
    assert hashes.tolist() == [hash_plain(piece) for piece in found]


def test_hashes_have_63_bits_that_differ_and_are_used() -> None:
    words = [chr(97 + a) + chr(97 + b) + c for a in range(26) for b in range(26) for c in ("", "x", " ")]
    hashes = np.array([hash_plain(word) for word in words], dtype=np.uint64)
    assert len(set(hashes.tolist())) == len(words)
    shares = [((hashes >> np.uint64(bit)) & np.uint64(1)).mean() for bit in range(64)]
    assert shares[63] == 0
    assert all(0.45 < share < 0.55 for share in shares[:63])  # 2028 fair coins stay within 4.5 sigma
