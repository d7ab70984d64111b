"""Documents as one stream of tokens on disk, and the windows that a model reads from it.

The stream is every document's tokens, one document after the other, in a memory-mapped ``tokens.npy`` (uint16
while the vocabulary allows it), with ``starts.npy`` holding where each document begins. Nothing is padded and
nothing is cut away. It is a sealed folder like any other: opened only if every byte is as it was written.

A window is T + 1 tokens: T inputs, and the T tokens after them as labels. Attention stays inside a document
(``documents``), and a label stays too: the last token of a document predicts the document's end and never the
first word of an unrelated text. Where end and start are one token, the label that closes one document is the
input that opens the next, and every label counts.
"""

import io
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mickle.data.tokenizer import TextTokenizer
from mickle.storage import SCRATCH, check_space, disk_errors, open_folder, remove, save_array, seal, whole, write_bytes

DOCUMENTS_AT_A_TIME = 512
KIND = "tokens"
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
        nearest = np.searchsorted(self.starts, at).clip(max=len(self.starts) - 1)
        opens = self.starts[nearest] == at  # a document
        opens[:, 0] = False
        documents = np.cumsum(opens, axis=1)  # [B, T + 1]
        labels = np.where(opens[:, 1:] & (tokens[:, 1:] != self.end), NOT_TRAINED, tokens[:, 1:])
        return {
            "input_ids": torch.from_numpy(tokens[:, :-1].copy()),
            "labels": torch.from_numpy(labels),
            "documents": torch.from_numpy(documents[:, :-1].copy()),
        }


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
    if whole(folder, KIND) is None:
        parts = folder / SCRATCH
        parts.mkdir(parents=True, exist_ok=True)
        check_space(folder, expected_bytes)  # about two bytes a token, twice, at some four bytes of text a token
        with disk_errors(folder):
            written = _write_parts(texts, tokenizer, parts, progressed)
            lengths = np.concatenate([np.empty(0, np.int64), *(_member(part, "lengths") for part in written)])
            write_stream(folder, (_member(part, "tokens") for part in written), lengths, _dtype(tokenizer.size))
        remove(parts)
    return open_stream(folder, tokenizer.end)


def write_stream(folder: Path, pieces: Iterable[np.ndarray], lengths: np.ndarray, dtype: Any) -> None:
    """Leave the stream of documents of these ``lengths``, whose tokens come in ``pieces``, in ``folder``, sealed."""
    starts = np.cumsum(lengths) - lengths
    header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (int(lengths.sum()),)}
    with open(folder / "tokens.npy", "wb") as file:  # a mapped file would end a full disk with a signal
        np.lib.format.write_array_header_1_0(file, header)
        for piece in pieces:
            file.write(np.ascontiguousarray(piece, dtype).data)
    save_array(folder / "starts.npy", starts)
    seal(folder, kind=KIND)


def open_stream(folder: Path, end: int) -> TokenStream:
    """The stream that ``write_stream`` left in ``folder``, memory-mapped; UsageError where a byte of it differs."""
    open_folder(folder, KIND, check="hashes")
    tokens = np.load(folder / "tokens.npy", mmap_mode="r", allow_pickle=False)
    starts = np.load(folder / "starts.npy", allow_pickle=False)
    return TokenStream(tokens, starts, end)


def _write_parts(
    texts: Iterable[list[str]], tokenizer: TextTokenizer, folder: Path, progressed: Callable[[int], None]
) -> list[Path]:
    """Tokens and lengths of each batch in a file of its own, in order; what is there and whole is not made again."""
    done, parts = 0, []
    for index, batch in enumerate(texts):
        parts.append(folder / f"part-{index:06d}.npz")
        if not _is_whole(parts[-1]):
            documents = tokenizer.encode_documents(batch)
            lengths = np.array([len(document) for document in documents], dtype=np.int64)
            tokens = np.concatenate([*documents, []], dtype=_dtype(tokenizer.size), casting="unsafe")
            buffer = io.BytesIO()
            np.savez(buffer, tokens=tokens, lengths=lengths)
            write_bytes(parts[-1], buffer.getvalue())
        done += len(batch)
        progressed(done)
    return parts


def _is_whole(part: Path) -> bool:
    """Whether a part is there and its checksums, which a zip file has, are right."""
    try:
        with zipfile.ZipFile(part) as file:
            return file.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def _member(part: Path, name: str) -> np.ndarray:
    with np.load(part, allow_pickle=False) as arrays:
        return arrays[name]


def _dtype(vocabulary_size: int) -> type[np.unsignedinteger]:
    return np.uint16 if vocabulary_size <= 1 << 16 else np.uint32
