"""The generator against Random123's known answers, and the in-place kernels against their plain definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mickle.kernels.perturb import add_draws, add_draws_numba, add_draws_plain
from mickle.kernels.philox import Kind, Moves, Stream, direction, philox4x32

KINDS: tuple[Kind, ...] = ("rademacher", "gaussian")


def words(text: str) -> np.ndarray:
    return np.array([int(word, 16) for word in text.split()], dtype=np.uint32)


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ("0 0 0 0", "0 0", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_known_answers(counter: str, key: str, answer: str) -> None:
    first, second = words(key).tolist()
    assert philox4x32(words(counter), (first, second)).tolist() == words(answer).tolist()


def test_signs_are_the_bits_of_the_words() -> None:
    stream = Stream(5)
    first = philox4x32(np.array([[1, *_hash("w"), 9]], dtype=np.uint32), stream.key)[0]
    bits = [(int(word) >> j) & 1 for word in first for j in range(32)]
    assert direction(stream, "w", 9, 128, 128).tolist() == [2.0 * bit - 1 for bit in bits]


def test_normal_numbers_are_box_and_muller() -> None:
    stream = Stream(5, "gaussian")
    x, y, _, _ = (int(w) for w in philox4x32(np.array([[2, *_hash("w"), 9]], dtype=np.uint32), stream.key)[0])
    radius = math.sqrt(-2 * math.log(((x >> 8) + 1) / 2**24))
    angle = ((y >> 30) + ((y >> 6) & 0xFFFFFF) / 2**24 - 0.5) * math.pi / 2
    made = direction(stream, "w", 9, 8, 2)
    assert made == pytest.approx([radius * math.cos(angle), radius * math.sin(angle)], abs=2e-6)


def _hash(name: str) -> tuple[int, int]:
    from mickle.kernels.philox import two_words

    return two_words(name)


@pytest.mark.parametrize("kind", KINDS)
def test_moments(kind: Kind) -> None:
    z = direction(Stream(1, kind), "w", 0, 0, 400_000).astype(np.float64)
    fourth = 1.0 if kind == "rademacher" else 3.0
    assert abs(z.mean()) < 4 / math.sqrt(len(z))
    assert (z**2).mean() == pytest.approx(1, abs=0.01)
    assert (z**4).mean() == pytest.approx(fourth, abs=0.06)
    other = direction(Stream(1, kind), "w", 1, 0, len(z)).astype(np.float64)
    for pair in (z[:-1] * z[1:], z * other):
        assert abs(pair.mean()) < 5 / math.sqrt(len(z))


@pytest.mark.parametrize("kind", KINDS)
def test_any_cut_gives_the_same_numbers(kind: Kind) -> None:
    whole = direction(Stream(1, kind), "w", 3, 0, 1000)
    for start, count in [(0, 1), (1, 3), (127, 2), (500, 500), (999, 1), (40, 0)]:
        assert direction(Stream(1, kind), "w", 3, start, count).tolist() == whole[start : start + count].tolist()


def test_name_seed_and_draw_all_matter() -> None:
    base = direction(Stream(1), "w", 0, 0, 512)
    others = [
        direction(Stream(2), "w", 0, 0, 512),
        direction(Stream(1), "v", 0, 0, 512),
        direction(Stream(1), "w", 1, 0, 512),
        direction(Stream(1), "w", 0, 128, 512),
    ]
    assert all(0.3 < (base == other).mean() < 0.7 for other in others)


@settings(deadline=None, max_examples=40)
@given(
    size=st.sampled_from([1, 2, 31, 127, 128, 129, 2047, 2048, 2049, 6000, 140_001]),
    kind=st.sampled_from(KINDS),
    draws=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=5),
    factor=st.sampled_from([1.0, 0.97]),
)
def test_fast_and_plain_agree_bit_for_bit(size: int, kind: Kind, draws: list[int], factor: float) -> None:
    start = torch.linspace(-1, 1, size)
    moves = Moves.of(draws, [0.01 * (i + 1) for i in range(len(draws))], [factor] * len(draws))
    fast, plain = start.clone(), start.clone()
    add_draws_numba(fast, "layer.weight", Stream(3, kind), moves)
    add_draws_plain(plain, "layer.weight", Stream(3, kind), moves)
    assert torch.equal(fast, plain)
    assert not torch.equal(fast, start)


@pytest.mark.parametrize("kind", KINDS)
def test_threads_do_not_matter(kind: Kind) -> None:
    one, two = torch.zeros(300_007), torch.zeros(300_007)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        add_draws(one, "w", Stream(1, kind), Moves.of([4, 5], [1.0, 2.0]))
        torch.set_num_threads(2)
        add_draws(two, "w", Stream(1, kind), Moves.of([4, 5], [1.0, 2.0]))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one, two)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_and_strides(dtype: torch.dtype) -> None:
    tensor = torch.zeros(7, 5, dtype=dtype).T  # not contiguous
    add_draws(tensor, "w", Stream(1), Moves.of([0], [0.5]))
    expected = torch.zeros(5, 7)
    add_draws(expected, "w", Stream(1), Moves.of([0], [0.5]))
    assert torch.equal(tensor.float(), expected)


def test_several_draws_are_the_same_one_by_one() -> None:
    together, apart = torch.ones(5000), torch.ones(5000)
    add_draws(together, "w", Stream(1), Moves.of([1, 2, 3], [0.1, -0.2, 0.3], [0.9, 1, 1]))
    for draw, scale, factor in [(1, 0.1, 0.9), (2, -0.2, 1), (3, 0.3, 1)]:
        add_draws(apart, "w", Stream(1), Moves.of([draw], [scale], [factor]))
    assert torch.equal(together, apart)


def test_nothing_is_added_to_nothing() -> None:
    add_draws(torch.empty(0), "w", Stream(1), Moves.of([1], [1.0]))
    tensor = torch.ones(3)
    add_draws(tensor, "w", Stream(1), Moves.of([], []))
    assert torch.equal(tensor, torch.ones(3))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("size", [1, 129, 5000, 300_007])
def test_gpu_and_cpu_agree(size: int) -> None:
    here, there = torch.ones(size), torch.ones(size, device="cuda")
    moves = Moves.of([1, 2**32 - 1, 7], [0.1, -0.2, 0.3], [0.9, 1, 1])
    for kind, bound in (("rademacher", 0.0), ("gaussian", 1e-5)):
        add_draws(here, "w", Stream(1, kind), moves)
        add_draws(there, "w", Stream(1, kind), moves)
        assert float((here - there.cpu()).abs().max()) <= bound
