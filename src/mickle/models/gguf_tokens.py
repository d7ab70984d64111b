"""A vocabulary as a GGUF file says it: tokens, their kinds, merges, and how text is cut before merging.

GGUF names the cutting (`tokenizer.ggml.pre`) and llama.cpp has the regular expressions in its source, so a tokenizer
whose cutting has no name there would be read wrongly without a word. Names, by what llama.cpp does under each:

    gpt-2      the expression of GPT-2
    smollm     each numeral by itself, then the expression of GPT-2: what Mickle's own tokenizers do
    llama-bpe  the expression of Llama 3; a word that is a token is taken whole, merges or not
    qwen2      the expression of Qwen 2
    tekken     the expression of Mistral Nemo; a word that is a token is taken whole
    gpt-4o     the expression of GPT-4o, which Phi-4-mini has

Any other is written as "default", and said. Read are also the other names that llama.cpp has for these, and those whose
expressions transformers has; a name that neither knows is refused.

Vocabularies of SentencePiece (Llama 2, Mistral, Gemma, Phi-3) have no merges in the file but a score for each token:
of all neighbours whose text together is a token, those with the highest score are joined first. Folders have them as
merges, so a token's score is the place of its first merge, below 0.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mickle.errors import UsageError
from mickle.models.folder_files import open_tokenizer
from mickle.untrusted.tokenizer import failures, read_tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # kinds of tokens in the format
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3, QWEN2 = CONTRACTIONS + r"\p{N}{1,3}" + REST, CONTRACTIONS + r"\p{N}" + REST
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
NUMERAL = r"\p{N}"
CUTS = {"gpt-2": (GPT2,), "smollm": (NUMERAL, GPT2), "llama-bpe": (LLAMA3,), "qwen2": (QWEN2,)}  # one after the other
DEFAULT, SENTENCEPIECE = "default", "llama"  # a name for cutting; a kind of vocabulary
ALIASES = {
    **dict.fromkeys(("phi-2", "mpt", "olmo", "jais", "a.x-4.0", "mellum", "modern-bert"), "gpt-2"),
    **dict.fromkeys(("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), "smollm"),
    **dict.fromkeys(("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"), "llama-bpe"),
    **dict.fromkeys(("deepseek-r1-qwen", "stablelm2"), "qwen2"),
}
LOOSE = ("tekken", "gpt-4o")  # transformers' expressions, of which llama.cpp's do not know marks
WHOLE = ("llama-bpe", "tekken")  # take a word that is a token whole, and begin texts with the start mark
MARKS = {  # as the tokenizer's files and as this one call them
    "bos": "bos",
    "eos": "eos",
    "eot": "eot",
    "pad": "padding",
}


TURNS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>")  # ends of turns


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
    note: str = ""
    template: str = ""  # of conversations; "" where the folder has none
    kind: str = "gpt2"  # tokenizer.ggml.model: pairs of bytes
    scores: tuple[float, ...] = ()  # of tokens, where the kind is SentencePiece
    prefix: bool = False  # whether a space is put before each text, where it is SentencePiece

    @property
    def stops(self) -> list[int]:
        """The tokens that end a text. Where a file names no end of a turn, llama.cpp goes by how tokens are spelt."""
        turns = [self.marks["eot"]] if "eot" in self.marks else []
        spelt = [] if turns else [n for n, text in enumerate(self.tokens) if text in TURNS and self.kinds[n] == CONTROL]
        return list(dict.fromkeys([*([self.marks["eos"]] if "eos" in self.marks else []), *turns, *spelt]))


def read_vocabulary(tokenizer: Path, size: int, marks: dict[str, int]) -> Vocabulary:
    """The vocabulary of a folder's `tokenizer.json` for a model of `size` tokens, whose ids it must be.

    marks: ids of bos, eos, eot and pad. UsageError for what is neither a byte-level BPE nor of SentencePiece.
    """
    path = tokenizer / "tokenizer.json"
    opened = open_tokenizer(tokenizer)
    values = read_tokenizer(path)
    model, added = values["model"], values.get("added_tokens") or []
    pieces = bool(model.get("byte_fallback"))
    if model.get("type") != "BPE" or (not pieces and "ByteLevel" not in str(values.get("decoder"))):
        raise UsageError(
            f"this tokenizer is no byte-level BPE and none of SentencePiece's ({model.get('type')}); its GGUF form is "
            "not written",
            where=str(path),
            todo="export with --format huggingface and use llama.cpp's own converter on that folder",
        )
    texts = {number: token for token, number in opened.get_vocab(with_added_tokens=True).items()}
    kinds = dict.fromkeys(texts, NORMAL)
    kinds |= {int(t["id"]): CONTROL if t.get("special") else USER_DEFINED for t in added}
    read = opened.encode("a").ids
    found = Vocabulary(
        tokens=[texts.get(number, f"[PAD{number}]") for number in range(size)],
        kinds=[kinds.get(number, UNUSED) for number in range(size)],
        merges=[merge if isinstance(merge, str) else " ".join(merge) for merge in model.get("merges") or []],
        pre=DEFAULT,
        begins=bool(read) and read[0] == marks.get("bos"),
        ends=len(read) > 1 and read[-1] == marks.get("eos"),
        marks=marks,
    )
    if pieces:
        return _pieces(found, values, str(path))
    pre, note = _pre(values)
    return replace(found, pre=pre, note=note)


def _pieces(found: Vocabulary, values: dict[str, Any], where: str) -> Vocabulary:
    """A vocabulary of SentencePiece with the scores that its merges come from."""
    unknown = values["model"].get("unk_token")
    if unknown not in found.tokens:
        raise UsageError("a vocabulary of SentencePiece has a token for what it does not know", where=where)
    kinds = [BYTE if re.fullmatch("<0x[0-9A-F]{2}>", t) else k for t, k in zip(found.tokens, found.kinds, strict=True)]
    kinds[found.tokens.index(unknown)] = UNKNOWN
    scores: dict[str, float] = {}
    for place, (left, right) in enumerate(merge.split(" ", 1) for merge in found.merges):
        scores.setdefault(left + right, float(-place))
    prefix, note = _spaces(values)
    scored = tuple(scores.get(token, 0.0) for token in found.tokens)
    return replace(found, kinds=kinds, kind=SENTENCEPIECE, merges=[], scores=scored, prefix=prefix, note=note)


def _spaces(values: dict[str, Any]) -> tuple[bool, str]:
    """Whether a tokenizer of SentencePiece puts a space before each text, and what does not agree with llama.cpp."""
    stated = json.dumps([values.get("normalizer"), values.get("pre_tokenizer")])
    scheme = re.search(r'"prepend_scheme": "(\w+)"', stated)
    if scheme is None or scheme[1] == "never":
        return "Prepend" in stated, ""
    only = ", this tokenizer before the first only" if scheme[1] == "first" else ""
    return (
        True,
        f"llama.cpp puts a space before every text between marks{only}, also before one that begins with a space",
    )


def vocabulary_in(metadata: Mapping[str, Any], where: str) -> Vocabulary:
    """The vocabulary that a file's metadata hold; UsageError where a part is missing or of another kind."""

    def value(name: str, kind: type, default: Any = None) -> Any:
        found = metadata.get(f"tokenizer.{name}", default)
        if type(found) is not kind:
            raise UsageError(f"GGUF file holds no sound tokenizer.{name}", where=where, expected=kind.__name__)
        return found

    tokens, merges = value("ggml.tokens", list), value("ggml.merges", list, [])
    kinds = value("ggml.token_type", list, [NORMAL] * len(tokens))
    if not all(type(text) is str for text in (*tokens, *merges)) or len(kinds) != len(tokens):
        raise UsageError("GGUF file holds tokens that are no texts, or not a kind for each", where=where)
    if len(set(tokens)) != len(tokens):
        raise UsageError("GGUF file holds a token twice", where=where)
    kind, pre = value("ggml.model", str), value("ggml.pre", str, DEFAULT)
    pre = ALIASES.get(pre, pre)
    marks = {name: value(f"ggml.{long}_token_id", int, -1) for name, long in MARKS.items()}
    return Vocabulary(
        tokens,
        kinds,
        merges,
        pre,
        begins=value("ggml.add_bos_token", bool, pre in WHOLE or kind == SENTENCEPIECE),
        ends=value("ggml.add_eos_token", bool, False),
        marks={name: number for name, number in marks.items() if 0 <= number < len(tokens)},
        template=value("chat_template", str, ""),
        kind=kind,
        prefix=kind == SENTENCEPIECE and value("ggml.add_space_prefix", bool, True),
    )


def _pre(values: dict[str, Any]) -> tuple[str, str]:
    """llama.cpp's name for how this tokenizer cuts text, and what does not agree with it."""
    cut, whole = _expressions(values.get("pre_tokenizer") or {}), bool(values["model"].get("ignore_merges"))
    known = CUTS | {name: _cuts(name) for name in LOOSE}
    name = next((name for name, parts in known.items() if cut == parts and whole == (name in WHOLE)), DEFAULT)
    if name == DEFAULT:
        return (name, "llama.cpp has no name for how this tokenizer cuts text: it will read some texts as other tokens")
    if values.get("normalizer"):
        return (
            name,
            "llama.cpp does not normalize text as this tokenizer does: unusual characters may become other tokens",
        )
    if name in LOOSE:
        return name, f"llama.cpp cuts accents that are characters of their own otherwise under {name!r}"
    return name, ""


def _expressions(cut: dict[str, Any]) -> tuple[str | None, ...]:
    """The regular expressions that a tokenizer cuts text by before it is spelt in bytes; None: in another way."""
    parts = cut.get("pretokenizers", []) if cut.get("type") == "Sequence" else [cut]
    if [place for place, part in enumerate(parts) if part.get("type") == "ByteLevel"] != [len(parts) - 1]:
        return (None,)
    return tuple(expression for part in parts if (expression := _expression(part)) != "")


def _expression(part: dict[str, Any]) -> str | None:
    match part:
        case {"type": "Digits", "individual_digits": True}:
            return NUMERAL
        case {"type": "Split", "behavior": "Isolated", "invert": False, "pattern": {"Regex": str(expression)}}:
            return expression
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return GPT2 if part.get("use_regex", True) else ""
    return None


def rebuilt(vocabulary: Vocabulary) -> Any:
    """The tokenizer that a reader of the file builds under its name for the cutting, as `tokenizers` has it.

    UsageError for a name that is not known.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    cuts = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in _cuts(vocabulary.pre)]
    pairs: list[Any] = [tuple(merge.split(" ", 1)) for merge in vocabulary.merges]
    kinds = dict(zip(vocabulary.tokens, vocabulary.kinds, strict=True))
    ids = {token: number for number, token in enumerate(vocabulary.tokens)}
    with failures("merges", "vocabulary cannot be read"):
        tokenizer = Tokenizer(models.BPE(ids, pairs, ignore_merges=vocabulary.pre in WHOLE))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cuts, level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t, kind in kinds.items() if kind == CONTROL])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t, kind in kinds.items() if kind == USER_DEFINED])
    return tokenizer


def mark_spaces(tokenizer: Any, prefix: bool) -> None:
    """Let a SentencePiece vocabulary read spaces as llama.cpp does: none is lost; with `prefix` one comes first."""
    from tokenizers import normalizers

    spaces = normalizers.Replace(" ", "\u2581")
    tokenizer.normalizer = normalizers.Sequence([*([normalizers.Prepend("\u2581")] if prefix else []), spaces])
    tokenizer.pre_tokenizer = None


def framed(tokenizer: Any, words: Vocabulary) -> None:
    """Let texts begin and end with the marks that the file asks for."""
    from tokenizers.processors import TemplateProcessing

    asked = {"bos": words.begins and "bos" in words.marks, "eos": words.ends and "eos" in words.marks}
    marks = {name: words.tokens[words.marks[name]] for name, wanted in asked.items() if wanted}
    parts = [part for part in (marks.get("bos"), "$A", marks.get("eos")) if part]
    if marks:
        ids = [(mark, words.marks[name]) for name, mark in marks.items()]
        tokenizer.post_processor = TemplateProcessing(single=parts, special_tokens=list(dict(ids).items()))


def _cuts(name: str) -> tuple[str, ...]:
    """The expressions that go by a name."""
    if name in CUTS:
        return CUTS[name]
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    if name not in GGUF_PRE_TOKENIZER_SPLITS:
        raise UsageError(
            f"no reader here knows how {name[:60]!r} cuts text (tokenizer.ggml.pre)",
            todo="take the model's own folder, with its tokenizer.json",
        )
    return (GGUF_PRE_TOKENIZER_SPLITS[name],)
