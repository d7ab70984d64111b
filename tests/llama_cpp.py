"""llama.cpp itself, where its prebuilt libraries lie in the folder that MICKLE_LLAMA_CPP names.

Structures go in and out of it by value and unseen: one that is larger than the library's own does no harm, since only
its beginning is written and read.
"""

import ctypes
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest

FOLDER = os.environ.get("MICKLE_LLAMA_CPP", "")
needs_llama_cpp = pytest.mark.skipif(
    not FOLDER, reason="MICKLE_LLAMA_CPP names no folder with libllama (npm pack @node-llama-cpp/linux-x64)"
)


class Unseen(ctypes.Structure):
    _fields_ = (("bytes", ctypes.c_uint64 * 64),)

    def exact(self) -> "Unseen":
        """Settings of a context, with all in 32 bits: the types of its cache (two 1s after two pointers that are none)
        are 0, and so is flash attention, the last of four -1s.
        """
        cache = [n for n in range(2, 64) if self.bytes[n] == 1 + (1 << 32) and not any(self.bytes[n - 2 : n])]
        open_choices = [n for n in range(63) if self.bytes[n] == self.bytes[n + 1] == (1 << 64) - 1]
        assert len(cache) == len(open_choices) == 1
        self.bytes[cache[0]], self.bytes[open_choices[0] + 1] = 0, (1 << 32) - 1
        return self


class Batch(ctypes.Structure):
    _fields_ = (("count", ctypes.c_int32), ("tokens", ctypes.c_void_p), ("others", ctypes.c_void_p * 5))


@cache
def library() -> Any:
    for stem in ("libggml-base", "libggml.", "libllama."):
        name = next(path for path in sorted(Path(FOLDER).glob(f"{stem}*.so*")))
        found = ctypes.CDLL(str(name), ctypes.RTLD_GLOBAL)
        if stem == "libggml.":
            found.ggml_backend_load_all_from_path(FOLDER.encode())
    for name, result in (
        ("llama_model_default_params", Unseen),
        ("llama_context_default_params", Unseen),
        ("llama_model_quantize_default_params", Unseen),
        ("llama_batch_get_one", Batch),
        ("llama_model_load_from_file", ctypes.c_void_p),
        ("llama_init_from_model", ctypes.c_void_p),
        ("llama_model_get_vocab", ctypes.c_void_p),
        ("llama_get_logits_ith", ctypes.POINTER(ctypes.c_float)),
    ):
        getattr(found, name).restype = result
    log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
    found.llama_log_set(log, None)
    found.kept = log
    return found


class Llama:
    """A GGUF file as llama.cpp has it."""

    def __init__(self, file: Path) -> None:
        self.library = library()
        settings = self.library.llama_model_default_params()
        opened = self.library.llama_model_load_from_file(str(file).encode(), settings)
        assert opened, file
        self.model = ctypes.c_void_p(opened)
        self.vocabulary = ctypes.c_void_p(self.library.llama_model_get_vocab(self.model))
        self.size = self.library.llama_vocab_n_tokens(self.vocabulary)

    def tokens(self, text: str, special: bool = False, marks: bool = False) -> list[int]:
        """The ids of a text; special: marks that it spells are those; marks: with those at its beginning and end."""
        data = text.encode()
        room = (ctypes.c_int32 * (len(data) + 8))()
        count = self.library.llama_tokenize(self.vocabulary, data, len(data), room, len(room), marks, special)
        assert count >= 0
        return list(room[:count])

    def greedy(self, ids: list[int], count: int) -> tuple[list[int], list[float]]:
        """The likeliest continuation of some ids, and the logits after them."""
        settings = self.library.llama_context_default_params().exact()
        context = ctypes.c_void_p(self.library.llama_init_from_model(self.model, settings))
        self.library.llama_set_n_threads(context, 1, 1)  # more would wait for each other
        written: list[int] = []
        first: list[float] = []
        feed = list(ids)
        for _ in range(count):
            room = (ctypes.c_int32 * len(feed))(*feed)
            assert self.library.llama_decode(context, self.library.llama_batch_get_one(room, len(feed))) == 0
            logits = self.library.llama_get_logits_ith(context, -1)[: self.size]
            first = first or logits
            feed = [max(range(self.size), key=logits.__getitem__)]
            written += feed
        self.library.llama_free(context)
        return written, first
