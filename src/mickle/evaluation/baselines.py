"""What a model must beat: codes for bytes that a person could write down in an evening, on the same pages.

All figures are bits per byte of UTF-8 text, so that they compare with any model under any tokenizer.

- uniform: every byte costs 8 bits.
- unigram: bytes by their frequency in the training pages, each count one higher (Laplace).
- n-gram: the last n - 1 bytes, interpolated by Witten and Bell 1991 ("The zero-frequency problem", method C), as in
  Chen and Goodman 1998 (section 2.4). With c the count after context h and d(h) the number of different bytes seen
  after it::

      P(b | h) = (c(h, b) + d(h) P(b | h')) / (c(h) + d(h)),   h' = h without its oldest byte

  and below no context at all stands 1 / 256.

- zlib, lzma: the bytes that a compressor adds for the held-out pages when it has just read the training pages,
  and the bytes it needs without them. It reads the held-out pages as one text and so may learn from one for the
  next, which no model here may; that is to its advantage.

- zlib after the question: of answers, each by itself, what stands around it read first.

A document begins without a context; the code of its length is left out for all.
"""

import lzma
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ORDER = 5
LARGEST_TRAINING_TEXT = 64 << 20  # bytes that the n-gram counts are taken from: about 6 GB of memory at order 5
LARGEST_LZMA_TEXT = 16 << 20  # bytes that lzma reads first: some ten seconds
ZLIB_REACH = 32 << 10  # how far back zlib can point


@dataclass(frozen=True)
class Level:
    """Counts of one order: sorted ``grams`` (context and byte in one integer) with ``counts``; sorted ``contexts`` with
    ``totals`` (how often) and ``kinds`` (how many different bytes followed)."""

    grams: np.ndarray
    counts: np.ndarray
    contexts: np.ndarray
    totals: np.ndarray
    kinds: np.ndarray


@dataclass(frozen=True)
class ByteNgram:
    """Witten-Bell counts for contexts of 0, 1, ... bytes."""

    levels: tuple[Level, ...]

    def probabilities(self, text: bytes) -> np.ndarray:
        """P of each byte of a document given the bytes before it: float64 [n]."""
        values = np.frombuffer(text, dtype=np.uint8)
        probability = np.full(len(values), 1 / 256)
        for length, level in enumerate(self.levels):
            contexts, grams = _grams(values, length)
            if not len(grams):
                break
            total = _look_up(level.contexts, level.totals, contexts)
            kinds = _look_up(level.contexts, level.kinds, contexts)
            count = _look_up(level.grams, level.counts, grams)
            lower = probability[length:]
            mixed = (count + kinds * lower) / np.maximum(total + kinds, 1)
            probability[length:] = np.where(total > 0, mixed, lower)
        return probability

    def bits(self, text: bytes) -> float:
        """The length of a document's ideal code, in bits."""
        return float(-np.log2(self.probabilities(text)).sum())


def count_ngrams(texts: Sequence[bytes], order: int = ORDER) -> ByteNgram:
    """Count contexts of 0 to ``order`` - 1 bytes (at most 7) inside each document."""
    if not 1 <= order <= 8:
        raise ValueError(f"order is {order}; a context and its byte must fit 64 bits")
    documents = [np.frombuffer(text, dtype=np.uint8) for text in texts]
    levels = []
    for length in range(order):
        seen = np.concatenate([_grams(document, length)[1] for document in documents] or [np.empty(0, np.uint64)])
        grams, counts = np.unique(seen, return_counts=True)
        contexts, first = np.unique(grams >> np.uint64(8), return_index=True)
        kinds = np.diff(np.append(first, len(grams)))
        totals = np.add.reduceat(counts, first) if len(first) else counts
        levels.append(Level(grams, counts, contexts, totals, kinds))
    return ByteNgram(tuple(levels))


def _grams(values: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """For each place with ``length`` bytes before it: those bytes as one integer, and the same with its own byte."""
    places = max(len(values) - length, 0)
    context = np.zeros(places, dtype=np.uint64)
    for back in range(length):
        context = (context << np.uint64(8)) | values[back : back + places].astype(np.uint64)
    return context, (context << np.uint64(8)) | values[length:].astype(np.uint64)


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The value of each wanted key, 0 where the key is not there."""
    if not len(keys):
        return np.zeros(len(wanted))
    at = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0).astype(np.float64)


def unigram_bits(training: Sequence[bytes], text: bytes) -> float:
    """Bits of ``text`` under the training bytes' frequencies, each count one higher."""
    counts = np.ones(256)
    for document in training:
        counts += np.bincount(np.frombuffer(document, dtype=np.uint8), minlength=256)
    cost = -np.log2(counts / counts.sum())
    return float(cost[np.frombuffer(text, dtype=np.uint8)].sum())


def zlib_bytes(text: bytes, before: bytes = b"") -> int:
    """Bytes of the deflate stream of ``text``, its window filled with the end of ``before``."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=before[-ZLIB_REACH:])
    return len(compressor.compress(text)) + len(compressor.flush())


def lzma_bytes(text: bytes, before: bytes = b"") -> int:
    """Bytes that lzma needs for ``before + text`` beyond what it needs for ``before``."""
    reach = min(max(1 << 16, 1 << (len(before) + len(text)).bit_length()), 1 << 29)
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": reach}]

    def size(content: bytes) -> int:
        return len(lzma.compress(content, format=lzma.FORMAT_RAW, filters=filters)) if content else 0

    return size(before + text) - size(before)


def after_its_question(pairs: Sequence[tuple[str, str]]) -> float:
    """Bits per byte of answers that zlib reads one by one, each after its question: (question, answer) of each."""
    coded = [(question.encode("utf-8"), answer.encode("utf-8")) for question, answer in pairs]
    size = sum(len(answer) for _, answer in coded)
    return 8 * sum(zlib_bytes(answer, question) for question, answer in coded) / max(1, size)


def measure(heldout: Sequence[str], training: Sequence[str] = (), order: int = ORDER) -> dict[str, float]:
    """Bits per byte of every baseline on the held-out texts; those that learn need the training texts."""
    texts = [text.encode("utf-8") for text in heldout]
    known = _up_to([text.encode("utf-8") for text in training], LARGEST_TRAINING_TEXT)
    whole, size = b"".join(texts), sum(len(text) for text in texts)
    figures = {"uniform bytes": 8.0, "zlib": 8 * zlib_bytes(whole) / size, "lzma": 8 * lzma_bytes(whole) / size}
    if known:
        model = count_ngrams(known, order)
        before = b"".join(_up_to(known, LARGEST_LZMA_TEXT))
        figures |= {
            "unigram bytes": unigram_bits(known, whole) / size,
            f"{order}-gram bytes": math.fsum(model.bits(text) for text in texts) / size,
            "zlib after training pages": 8 * zlib_bytes(whole, before) / size,
            "lzma after training pages": 8 * lzma_bytes(whole, before) / size,
        }
    return figures


def _up_to(texts: Sequence[bytes], limit: int) -> list[bytes]:
    """The first texts that together have at most ``limit`` bytes."""
    ends = np.cumsum([len(text) for text in texts])
    return list(texts[: int(np.searchsorted(ends, limit, side="right"))])
