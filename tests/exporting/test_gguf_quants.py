"""Quantized types hold what they are given as llama.cpp's quantizer does or better, and stand where it puts them."""

import ctypes

import gguf
import numpy as np
import pytest
from llama_cpp import library, needs_llama_cpp

from mickle.exporting.gguf_quants import quantize, type_of

TYPES = {"Q4_K": (gguf.GGMLQuantizationType.Q4_K, 0.08), "Q6_K": (gguf.GGMLQuantizationType.Q6_K, 0.02)}


def numbers(kind: str) -> np.ndarray:
    random = np.random.default_rng(0)
    normal = random.normal(size=(64, 1024)).astype(np.float32)
    match kind:
        case "outliers":
            return normal * np.where(random.random(normal.shape) < 0.01, 20, 1).astype(np.float32)
        case "one side":
            return np.abs(normal) + 1
        case "below":
            return -np.abs(normal) - 3
        case "small":
            return normal * 1e-3
        case "uneven":
            return normal * np.exp(random.normal(size=(64, 1))).astype(np.float32)
        case "heavy":
            return random.standard_t(3, size=normal.shape).astype(np.float32)
    return normal


def error(rows: np.ndarray, stored: np.ndarray, kind: str) -> float:
    """Root mean square of what is off, in units of that of the numbers, by gguf's own reading."""
    off = gguf.quants.dequantize(stored, TYPES[kind][0]) - rows
    return float(np.sqrt((off**2).mean() / (rows**2).mean()))


@pytest.mark.parametrize("kind", TYPES)
def test_blocks_are_read_as_they_were_meant(kind: str) -> None:
    number, bound = TYPES[kind]
    rows = numbers("normal")
    stored = quantize(rows, kind)
    assert stored.shape == gguf.quants.quant_shape_to_byte_shape(rows.shape, number)
    assert error(rows, stored, kind) < bound
    halves = [quantize(part, kind) for part in (rows[:31], rows[31:])]
    assert np.array_equal(np.concatenate(halves), stored)
    grid = np.tile(np.arange(16, dtype=np.float32), 64).reshape(2, 512)  # sixteen steps from 0 are exact
    assert kind == "Q6_K" or np.allclose(gguf.quants.dequantize(quantize(grid, kind), number), grid, rtol=2e-3)
    plain = np.concatenate([np.zeros((1, 256)), np.full((1, 256), -2.0), np.full((1, 256), 3.0)]).astype(np.float32)
    np.testing.assert_allclose(gguf.quants.dequantize(quantize(plain, kind), number), plain, rtol=0.02)


def theirs(rows: np.ndarray, kind: str) -> np.ndarray:
    number = TYPES[kind][0]
    stored = np.zeros(gguf.quants.quant_shape_to_byte_shape(rows.shape, number), np.uint8)
    places = (rows.ctypes.data_as(ctypes.c_void_p), stored.ctypes.data_as(ctypes.c_void_p))
    sizes = (ctypes.c_int64(0), ctypes.c_int64(rows.shape[0]), ctypes.c_int64(rows.shape[1]))
    library().ggml_quantize_chunk(int(number), *places, *sizes, None)
    return stored


@needs_llama_cpp
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("what", ["normal", "outliers", "one side", "below", "small", "uneven", "heavy"])
def test_the_error_is_at_most_that_of_llama_cpp(what: str, kind: str) -> None:
    rows = numbers(what)
    assert error(rows, quantize(rows, kind), kind) <= error(rows, theirs(rows, kind), kind)


def test_q4_k_m_has_q6_k_where_it_matters() -> None:
    wide = (256, 512)
    fine = [layer for layer in range(32) if type_of(f"blk.{layer}.ffn_down.weight", wide, "Q4_K_M", 32, True) == "Q6_K"]
    assert fine == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
    assert type_of("token_embd.weight", wide, "Q4_K_M", 32, True) == "Q6_K"
    assert type_of("token_embd.weight", wide, "Q4_K_M", 32, False) == "Q4_K"
    assert type_of("blk.5.attn_k.weight", (64, 96), "Q4_K_M", 32, True) == "Q5_0"
    assert type_of("blk.5.attn_k.weight", (64, 40), "Q6_K", 32, True) == "F16"
    assert type_of("blk.5.attn_norm.weight", (256,), "Q6_K", 32, True) == "F32"
