"""Tokenizers from strangers: patterns and replacements in use pass, those that never end or fill the memory do not."""

# ruff: noqa: E501 - a pattern a line

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from mickle.data.tokenizer import open_text_tokenizer
from mickle.errors import UsageError
from mickle.untrusted.tokenizer import check_tokenizer, open_tokenizer

Bounded = Callable[[Callable[[], object]], str]
MODEL = {"type": "WordLevel", "vocab": {"a": 0, "</s>": 1}, "unk_token": "a"}
END = {
    "id": 1,
    "content": "</s>",
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "special": True,
}


def written(folder: Path, **parts: Any) -> Path:
    """A tokenizer's file with these parts."""
    file = folder / "tokenizer.json"
    file.write_text(json.dumps({"version": "1.0", "added_tokens": [END], "model": MODEL, **parts}))
    return file


def split(pattern: str) -> dict[str, Any]:
    return {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}}


def replace(content: str, kind: str = "Regex", pattern: str = "a", times: int = 1) -> dict[str, Any]:
    one = {"type": "Replace", "pattern": {kind: pattern}, "content": content}
    return {"normalizer": {"type": "Sequence", "normalizers": [one] * times}}


HOSTILE: dict[str, dict[str, Any]] = {
    "padding": {"padding": {"strategy": {"Fixed": 2_000_000_000}, "direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "a"}},
    "padding to a multiple": {"padding": {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": 2_000_000_000, "pad_id": 0, "pad_type_id": 0, "pad_token": "a"}},
    "a letter that becomes a book": replace("b" * 4_000_000),
    "a letter that becomes a page": replace("b" * 40_000),
    "doublings of a rare word": replace("\u1234\u1234", "String", "\u1234", times=27),
    "doublings of an alphabet": replace("\u0e01\u0e01", "Regex", r"\p{Thai}", times=27),
    "doublings of nothing": replace("a", "Regex", "", times=27),
    "doublings backwards": {"decoder": {"type": "Sequence", "decoders": replace("aa", "String", times=27)["normalizer"]["normalizers"]}},
    "prefixes": {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "a" * 5000}] * 40}},
    "repeats in a repeat": split("(a+)+$"),
    "alternatives in a repeat": split("(a|aa)+$"),
    "words in a repeat": split("(foo|foofoo)+$"),
    "repeats of words": split(r"^(\w+\s?)*\d$"),
    "a pattern that is none": split("(a"),
    "a pattern of megabytes": split("|".join("a" * 100_000)),
    "a part that nobody knows": {"normalizer": {"type": "Evil"}},
    "a template of a megabyte": {"post_processor": {
        "type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "a", "type_id": 0}}], "pair": [],
        "special_tokens": {"a": {"id": "a", "ids": [0] * 50_000, "tokens": ["a"] * 50_000}}}},
    "a number of four billion": {"model": MODEL | {"vocab": {"a": 4_294_967_295}}},
    "a number that is text": {"model": MODEL | {"vocab": {"a": "0"}}},
    "a token of a megabyte": {"model": MODEL | {"vocab": {"a" * 1_000_000: 0, "a": 1}}},
    "an added token of a megabyte": {"added_tokens": [END, END | {"id": 2, "content": "b" * 1_000_000}]},
    "many added tokens": {"added_tokens": [{"content": str(number)} for number in range(100_001)]},
    "nested lists": {"decoder": json.loads("[" * 100 + "]" * 100)},
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_tokenizer_is_refused_in_bounds(name: str, tmp_path: Path, bounded: Bounded) -> None:
    file = written(tmp_path, **HOSTILE[name])
    assert str(file) in bounded(lambda: open_text_tokenizer(file))


SOUND: dict[str, dict[str, Any]] = {
    "GPT-2": split(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"),
    "Llama 3": split(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"),
    "DeepSeek": split("[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"),
    "thousands": split(r"\d{1,3}(?=(?:\d{3})*\b)"),
    "BLOOM": split("( ?[^(\\s|[.,!?…。，、।۔،])]+)"),
    "Gemma": replace("\u2581", "String", " ") | {"decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]}},
    "spaces": replace(" ", "Regex", " {2,}"),
    "padding": HOSTILE["padding"] | {"padding": HOSTILE["padding"]["padding"] | {"strategy": {"Fixed": 128}}},
    "truncation": {"truncation": {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 5}},
}  # fmt: skip


@pytest.mark.parametrize("name", SOUND)
def test_what_is_in_use_is_opened_and_does_as_the_library_does(name: str, tmp_path: Path) -> None:
    file = written(tmp_path, **SOUND[name])
    plain = Tokenizer.from_file(str(file))
    plain.no_padding()
    plain.no_truncation()
    assert open_tokenizer(file).encode("It's a  test, 1234.\n\n").ids == plain.encode("It's a  test, 1234.\n\n").ids


def test_a_pattern_that_was_not_found_out_is_one_error_when_it_fails(tmp_path: Path) -> None:
    """Only a run of just this letter is long to match; no text that tokenizers are tried on has one with this end."""
    file = written(tmp_path, **split("(?=\u10d0{30}\u10d1)(\u10d0+)+$"))
    tokenizer = open_text_tokenizer(file)
    with pytest.raises(UsageError, match="failed on a text"):
        tokenizer.encode(["\u10d0" * 30 + "\u10d1"])


def test_all_but_the_model_is_what_is_tried(tmp_path: Path) -> None:
    parts = replace(" ", "Regex", " {2,}") | {"decoder": {"type": "Fuse"}}
    assert check_tokenizer(written(tmp_path, **parts)) == parts
