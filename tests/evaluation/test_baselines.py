"""Baselines against closed forms: probabilities sum to one, uniform costs eight bits, a pencil example."""

import math
import zlib

import numpy as np
import pytest

from mickle.evaluation import baselines

TEXT = b"the cat sat on the mat; the dog sat on the log. "


@pytest.mark.parametrize("context", [b"", b"t", b"th", b"the c", b"zzzz", "né".encode()])
def test_ngram_probabilities_sum_to_one(context):
    model = baselines.count_ngrams([TEXT, b"other text, thence"], 5)
    total = sum(model.probabilities(context + bytes([last]))[-1] for last in range(256))
    assert total == pytest.approx(1, abs=1e-12)


def test_witten_bell_by_hand():
    """Trained on "aab": P(a) = (2 + 2/256) / 5, P(b) = (1 + 2/256) / 5; after a: (c + 2 P) / (2 + 2).

    The unigram has three letters of two kinds: (c + 2 / 256) / (3 + 2)."""
    model = baselines.count_ngrams([b"aab"], 2)
    a, b = (2 + 2 / 256) / 5, (1 + 2 / 256) / 5
    after_a, unseen = (1 + 2 * b) / 4, (0 + 2 / 256) / 5  # nothing was seen after b: the unigram stands
    assert model.probabilities(b"abc") == pytest.approx([a, after_a, unseen], rel=1e-12)


def test_an_order_of_one_without_data_is_uniform():
    assert baselines.count_ngrams([], 3).bits(b"any bytes") == pytest.approx(8 * 9)


def test_contexts_stay_inside_a_document():
    apart = baselines.count_ngrams([b"ab", b"cd"], 2)
    assert b"bc" not in {bytes([g >> 8, g & 255]) for g in apart.levels[1].grams.tolist()}


def test_unigram_is_the_entropy_with_laplace():
    known = [b"aaab"]
    cost = baselines.unigram_bits(known, b"ab")
    assert cost == pytest.approx(-math.log2(4 / 260) - math.log2(2 / 260))


def test_compressors():
    assert baselines.zlib_bytes(TEXT) == len(zlib.compress(TEXT, 9, wbits=-15))
    assert baselines.zlib_bytes(TEXT, before=TEXT) < baselines.zlib_bytes(TEXT) / 2
    assert baselines.lzma_bytes(TEXT, before=TEXT) < baselines.lzma_bytes(TEXT) / 2


def test_measure_orders_the_baselines_as_their_knowledge():
    rng = np.random.default_rng(0)
    words = [b"alpha", b"beta", b"gamma", b"delta", b"epsilon"]
    pages = [b" ".join(words[i] for i in rng.integers(0, 5, 200)).decode() for _ in range(12)]
    figures = baselines.measure(pages[:2], pages[2:])
    assert figures["uniform bytes"] == 8.0
    assert figures["5-gram bytes"] < figures["unigram bytes"] < 8
    # Five equally likely words of 5.2 bytes and a space: the source has log2(5) / 6.2 = 0.375 bits a byte.
    assert 0.35 < figures["5-gram bytes"] < 0.45
    assert set(baselines.measure(pages[:2])) == {"uniform bytes", "zlib", "lzma"}
