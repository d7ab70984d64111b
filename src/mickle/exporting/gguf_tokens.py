"""A byte-level vocabulary as a GGUF file says it: tokens, their kinds, merges, and how text is cut before merging.

GGUF names the cutting (`tokenizer.ggml.pre`) and llama.cpp has the regular expressions in its source, so a tokenizer
whose cutting has no name there would be read wrongly without a word. Names, by what llama.cpp does under each:

    gpt-2      the expression of GPT-2
    smollm     each numeral by itself, then the expression of GPT-2: what Mickle's own tokenizers do
    llama-bpe  the expression of Llama 3; a word that is a token is taken whole, merges or not
    qwen2      the expression of Qwen 2

Any other is written as "default", and said.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mickle.errors import UsageError
from mickle.models.folder_files import open_tokenizer
from mickle.untrusted.tokenizer import read_tokenizer

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # kinds of tokens in the format
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3, QWEN2 = CONTRACTIONS + r"\p{N}{1,3}" + REST, CONTRACTIONS + r"\p{N}" + REST
DEFAULT = "default"
MARKS = {
    "bos": "bos",
    "eos": "eos",
    "eot": "eot",
    "pad": "padding",
}  # as the tokenizer's files and as this one call them


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says of a tokenizer; `note`: in what llama.cpp would differ, "" where in nothing."""

    tokens: list[str]
    kinds: list[int]
    merges: list[str]
    pre: str
    begins: bool  # whether an encoded text begins with the start mark
    ends: bool
    marks: dict[str, int]  # bos, eos, eot, pad: ids
    note: str
    template: str = ""  # of conversations; "" where the folder has none


def read_vocabulary(tokenizer: Path, size: int, marks: dict[str, int]) -> Vocabulary:
    """The vocabulary of a folder's `tokenizer.json` for a model of `size` tokens, whose ids it must be.

    marks: ids of bos, eos, eot and pad. UsageError for what is no byte-level BPE.
    """
    path = tokenizer / "tokenizer.json"
    opened = open_tokenizer(tokenizer)
    values = read_tokenizer(path)
    model, added = values["model"], values.get("added_tokens") or []
    if model.get("type") != "BPE" or model.get("byte_fallback") or "ByteLevel" not in str(values.get("decoder")):
        raise UsageError(
            f"this tokenizer is no byte-level BPE ({model.get('type')}); its GGUF form is not written",
            where=str(path),
            todo="export with --format huggingface and use llama.cpp's own converter on that folder",
        )
    texts = {number: token for token, number in opened.get_vocab(with_added_tokens=True).items()}
    kinds = dict.fromkeys(texts, NORMAL)
    kinds |= {int(t["id"]): CONTROL if t.get("special") else USER_DEFINED for t in added}
    read = opened.encode("a").ids
    pre, note = _pre(values)
    return Vocabulary(
        tokens=[texts.get(number, f"[PAD{number}]") for number in range(size)],
        kinds=[kinds.get(number, UNUSED) for number in range(size)],
        merges=[merge if isinstance(merge, str) else " ".join(merge) for merge in model.get("merges") or []],
        pre=pre,
        begins=bool(read) and read[0] == marks.get("bos"),
        ends=len(read) > 1 and read[-1] == marks.get("eos"),
        marks=marks,
        note=note,
    )


def _pre(values: dict[str, Any]) -> tuple[str, str]:
    """llama.cpp's name for how this tokenizer cuts text, and what does not agree with it."""
    cut, ignores = values.get("pre_tokenizer") or {}, bool(values["model"].get("ignore_merges"))
    parts = cut.get("pretokenizers", []) if cut.get("type") == "Sequence" else [cut]
    names = [part.get("type") for part in parts]
    last = parts[-1] if parts else {}
    plain = last.get("type") == "ByteLevel" and not last.get("add_prefix_space")
    by_regex = plain and last.get("use_regex", True)
    name = DEFAULT
    if by_regex and names == ["ByteLevel"]:
        name = "gpt-2"
    elif by_regex and names == ["Digits", "ByteLevel"] and parts[0].get("individual_digits"):
        name = "smollm"
    elif plain and not by_regex and names == ["Split", "ByteLevel"] and _isolates(parts[0]):
        name = {LLAMA3: "llama-bpe", QWEN2: "qwen2"}.get(parts[0]["pattern"].get("Regex"), DEFAULT)
    if name != DEFAULT and ignores != (name == "llama-bpe"):
        name = DEFAULT
    if name == DEFAULT:
        return (name, "llama.cpp has no name for how this tokenizer cuts text: it will read some texts as other tokens")
    if values.get("normalizer"):
        return (
            name,
            "llama.cpp does not normalize text as this tokenizer does: unusual characters may become other tokens",
        )
    return name, ""


def _isolates(part: dict[str, Any]) -> bool:
    pattern = part.get("pattern")
    return part.get("behavior") == "Isolated" and not part.get("invert") and isinstance(pattern, dict)


def rebuilt(vocabulary: Vocabulary) -> Any:
    """The tokenizer that a reader of the file would build under its name for the cutting, as `tokenizers` has it.

    UsageError for "default".
    """
    from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

    level = pre_tokenizers.ByteLevel
    cuts: dict[str, list[Any]] = {
        "gpt-2": [level(add_prefix_space=False)],
        "smollm": [pre_tokenizers.Split(Regex(r"\p{N}"), "isolated"), level(add_prefix_space=False)],
        "llama-bpe": [pre_tokenizers.Split(Regex(LLAMA3), "isolated"), level(False, use_regex=False)],
        "qwen2": [pre_tokenizers.Split(Regex(QWEN2), "isolated"), level(False, use_regex=False)],
    }
    if vocabulary.pre not in cuts:
        raise UsageError(f"no reader knows how {vocabulary.pre!r} cuts text")
    pairs: list[Any] = [tuple(merge.split(" ", 1)) for merge in vocabulary.merges]
    kinds = dict(zip(vocabulary.tokens, vocabulary.kinds, strict=True))
    ids = {token: number for number, token in enumerate(vocabulary.tokens)}
    tokenizer = Tokenizer(models.BPE(ids, pairs, ignore_merges=vocabulary.pre == "llama-bpe"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts[vocabulary.pre])
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t, kind in kinds.items() if kind == CONTROL])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t, kind in kinds.items() if kind == USER_DEFINED])
    return tokenizer
