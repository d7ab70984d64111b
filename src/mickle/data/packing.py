"""Documents as one stream of tokens on disk, and the windows that a model reads from it.

The stream is every document's tokens, one document after the other, in a memory-mapped ``tokens.npy`` (uint16
while the vocabulary allows it), with ``starts.npy`` holding where each document begins. Nothing is padded and
nothing is cut away.

A window is T + 1 tokens: T inputs, and the T tokens after them as labels. Attention stays inside a document
(``documents``), and a label stays too: the last token of a document predicts the document's end and never the
first word of an unrelated text. Where end and start are one token, the label that closes one document is the
input that opens the next, and every label counts.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mickle.data.tokenizer import TextTokenizer
from mickle.storage import check_space, disk_errors, remove, write_json

DOCUMENTS_AT_A_TIME = 512
NOT_TRAINED = -100


@dataclass(frozen=True)
class TokenStream:
    """``tokens`` [N] and ``starts`` [documents], both of them usually memory-mapped; ``end`` is the token that ends a
    document."""

    tokens: np.ndarray
    starts: np.ndarray
    end: int

    def __len__(self) -> int:
        return len(self.tokens)

    def windows(self, positions: np.ndarray, length: int) -> dict[str, Tensor]:
        """The windows of ``length`` T that begin at ``positions`` [B]; the stream is a ring.

        input_ids [B, T], labels [B, T] (-100 where a label lies across a document's boundary and is not its end),
        documents [B, T] (numbered from 0 in each window).
        """
        at = (positions[:, None] + np.arange(length + 1)) % len(self.tokens)  # [B, T + 1]
        tokens = self.tokens[at].astype(np.int64)
        opens = self._opens(at)
        opens[:, 0] = False
        documents = np.cumsum(opens, axis=1)  # [B, T + 1]
        labels = np.where(opens[:, 1:] & (tokens[:, 1:] != self.end), NOT_TRAINED, tokens[:, 1:])
        return {
            "input_ids": torch.from_numpy(tokens[:, :-1].copy()),
            "labels": torch.from_numpy(labels),
            "documents": torch.from_numpy(documents[:, :-1].copy()),
        }

    def _opens(self, at: np.ndarray) -> np.ndarray:
        """Which of the stream positions ``at`` begin a document."""
        nearest = np.searchsorted(self.starts, at).clip(max=len(self.starts) - 1)
        return self.starts[nearest] == at


def stream_of(documents: Iterable[np.ndarray], tokenizer: TextTokenizer) -> TokenStream:
    """A stream in memory, for a few documents."""
    pieces = list(documents)
    lengths = np.array([len(piece) for piece in pieces], dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
    return TokenStream(np.concatenate(pieces).astype(_dtype(tokenizer.size)), starts, tokenizer.end)


def pack(
    texts: Iterable[list[str]],
    tokenizer: TextTokenizer,
    folder: Path,
    expected_bytes: int = 0,
    progressed: Callable[[int], None] = lambda documents: None,
) -> TokenStream:
    """Tokenize batches of texts into a stream on disk; a killed call, made again, goes on after its last whole batch.

    ``texts`` must give the same batches each time. ``expected_bytes`` of text is what the space check assumes.
    """
    if not (folder / "stream.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        check_space(folder, expected_bytes)  # about two bytes a token, twice, at some four bytes of text a token
        with disk_errors(folder):
            _write_parts(texts, tokenizer, folder, progressed)
            _join_parts(folder, tokenizer.size)
        for part in folder.glob("part-*.npz"):
            remove(part)
    return open_stream(folder, tokenizer.end)


def open_stream(folder: Path, end: int) -> TokenStream:
    """The stream that ``pack`` left in ``folder``, memory-mapped."""
    tokens = np.load(folder / "tokens.npy", mmap_mode="r", allow_pickle=False)
    starts = np.load(folder / "starts.npy", allow_pickle=False)
    return TokenStream(tokens, starts, end)


def _write_parts(
    texts: Iterable[list[str]], tokenizer: TextTokenizer, folder: Path, progressed: Callable[[int], None]
) -> None:
    done = 0
    for index, batch in enumerate(texts):
        part = folder / f"part-{index:06d}.npz"
        if not part.is_file():
            documents = tokenizer.encode_documents(batch)
            lengths = np.array([len(document) for document in documents], dtype=np.int64)
            temporary = folder / ".tmp-part.npz"
            tokens = np.concatenate([*documents, np.empty(0, np.int64)]).astype(_dtype(tokenizer.size))
            np.savez(temporary, tokens=tokens, lengths=lengths)
            temporary.rename(part)  # scratch: a kill must not leave half a part; a power cut may cost the parts
        done += len(batch)
        progressed(done)


def _join_parts(folder: Path, vocabulary_size: int) -> None:
    parts = sorted(folder.glob("part-*.npz"))
    lengths = np.concatenate([_member(part, "lengths") for part in parts] or [np.empty(0, np.int64)])
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    whole = np.lib.format.open_memmap(folder / "tokens.npy", mode="w+", dtype=_dtype(vocabulary_size), shape=(total,))
    filled = 0
    for part in parts:
        tokens = _member(part, "tokens")
        whole[filled : filled + len(tokens)] = tokens
        filled += len(tokens)
    whole.flush()
    np.save(folder / "starts.npy", ends - lengths)
    write_json(folder / "stream.json", {"tokens": total, "documents": len(lengths)})


def _member(part: Path, name: str) -> np.ndarray:
    with np.load(part, allow_pickle=False) as arrays:
        return arrays[name]


def _dtype(vocabulary_size: int) -> type[np.unsignedinteger]:
    return np.uint16 if vocabulary_size <= 1 << 16 else np.uint32
