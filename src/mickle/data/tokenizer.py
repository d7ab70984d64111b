"""Byte-level BPE: text to token ids and back without loss, trained on the pages or taken from a model folder.

Byte pair encoding for text: Sennrich et al. 2016 (arXiv 1508.07909); on bytes: Radford et al. 2019 ("Language models
are unsupervised multitask learners", section 2.2). The 256 bytes are always in the vocabulary, so every string has an
encoding. Each decimal digit stays a token of its own, so that a number's tokens do not depend on its neighbours.

A document is [start, text ..., end]. Where the two marks are one token, as in the tokenizers trained here, the end of
one document is also the start of the next, and the first token of a text is predicted from it. BERT's [CLS] and [SEP]
are such marks too. A tokenizer for masked training has a mask token besides.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from mickle.data.pieces import pieces, portions
from mickle.errors import UsageError
from mickle.storage import read_json, write_json, write_text
from mickle.untrusted.tokenizer import failures, open_tokenizer

END_OF_DOCUMENT = "<|endoftext|>"
MASK = "<|mask|>"
MOST_UNKNOWN = 0.5  # share of the tokens to train on
SMALLEST_VOCABULARY = 257  # the bytes and the document mark
LARGEST_SETTINGS = 4 << 20  # bytes
LONGEST_WORD = 1 << 10  # characters of a run to learn merges from: their time grows with its square
USUAL_END_MARKS = (END_OF_DOCUMENT, "<|end_of_text|>", "</s>", "<eos>", "<|end|>", "[SEP]")
USUAL_MASKS = (MASK, "[MASK]", "<mask>")


@dataclass(frozen=True)
class TextTokenizer:
    """A tokenizer with its document marks. ``start`` may equal ``end`` (one token serves as both).

    ``mask``: the token that stands for a hidden one; None where there is none.
    """

    tokenizer: Tokenizer
    start: int
    end: int
    configuration: dict
    mask: int | None = None

    @property
    def size(self) -> int:
        """One more than the largest token id: the rows that an embedding needs (V)."""
        return max(self.tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def special(self) -> frozenset[int]:
        """Ids that no text is made of: document marks, mask, padding and the like."""
        added = self.tokenizer.get_added_tokens_decoder()
        named = {self.start, self.end, *(() if self.mask is None else (self.mask,))}
        return frozenset(named | {number for number, token in added.items() if token.special})

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids of each text, int64 [n], without document marks.

        A text that spells a special token, such as a page about tokenizers, gets ordinary tokens: data cannot forge
        the end of a document. Texts of more than a million characters are read in pieces (``pieces.py``): byte-level
        BPE gives the tokens of the whole, other tokenizers may give another one or two at each cut.
        """
        found: list[list[np.ndarray]] = [[] for _ in texts]
        for some in portions(texts):
            with failures("tokenizer.json", "the tokenizer failed on a text"):
                encodings = self.tokenizer.encode_batch_fast([piece for _, piece in some], add_special_tokens=False)
            for (number, _), encoding in zip(some, encodings, strict=True):
                found[number].append(np.asarray(encoding.ids, dtype=np.int32))
        return [np.concatenate(ids, dtype=np.int64) for ids in found]

    def encode_with_ends(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """:meth:`encode`, and for each token the place in its text where it ends, int64 [n]."""
        found: list[tuple[list[np.ndarray], list[np.ndarray]]] = [([], []) for _ in texts]
        begun = [0] * len(texts)
        for some in portions(texts):
            with failures("tokenizer.json", "the tokenizer failed on a text"):
                encodings = self.tokenizer.encode_batch([piece for _, piece in some], add_special_tokens=False)
            for (number, piece), encoding in zip(some, encodings, strict=True):
                ids, ends = found[number]
                ids.append(np.asarray(encoding.ids, dtype=np.int64))
                ends.append(begun[number] + np.array([end for _, end in encoding.offsets], dtype=np.int64))
                begun[number] += len(piece)
        return [(np.concatenate(ids), np.concatenate(ends)) for ids, ends in found]

    def encode_documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        """[start, text] of each text, with the end appended where it is a token of its own."""
        close = [] if self.start == self.end else [self.end]
        whole = partial(np.concatenate, dtype=np.int64, casting="unsafe")  # [] alone would be floats
        return [whole([[self.start], ids, close]) for ids in self.encode(texts)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ``ids``; document marks are shown as they are spelt."""
        return self.tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)

    @cached_property
    def unknown(self) -> int | None:
        """The id that stands for text which the vocabulary lacks ("<unk>"); None where there is none."""
        model = self.tokenizer.model
        if isinstance(model, models.Unigram):
            return json.loads(self.tokenizer.to_str())["model"]["unk_id"]
        return None if model.unk_token is None else self.tokenizer.token_to_id(model.unk_token)

    def unknown_bytes(self, text: str) -> np.ndarray:
        """UTF-8 bytes of ``text`` that each of its tokens stands for without spelling them, int64 [n]: 0 but for
        unknown ones.
        """
        lost: list[str] = []
        for piece in pieces(text):
            encoding = self.tokenizer.encode(piece, add_special_tokens=False)
            spans = zip(encoding.ids, encoding.offsets, strict=True)
            lost += [piece[first:last] if number == self.unknown else "" for number, (first, last) in spans]
        return np.array([len(part.encode("utf-8", "replace")) for part in lost], dtype=np.int64)

    def unknown_line(self, tokens: Sequence[np.ndarray], where: str, most: float = MOST_UNKNOWN) -> str:
        """How many tokens to train on are unknown, in a sentence; "" for none. UsageError where their share is
        greater than ``most``.
        """
        if self.unknown is None:
            return ""
        count = sum(int(np.count_nonzero(ids == self.unknown)) for ids in tokens)
        if not count:
            return ""
        share = count / sum(map(len, tokens))
        mark = self.tokenizer.id_to_token(self.unknown)
        said = f"{share:.1%} of the tokens are {mark}: text that the tokenizer does not know"
        if share > most:
            raise UsageError(
                said, where=where, expected=f"at most {most:.0%}", todo="take a model that was made for such text"
            )
        return said

    def save(self, folder: Path) -> None:
        """Write ``tokenizer.json`` and ``tokenizer_config.json``, which transformers' AutoTokenizer loads."""
        write_text(folder / "tokenizer.json", self.tokenizer.to_str(pretty=True))
        write_json(folder / "tokenizer_config.json", self.configuration)


def train_tokenizer(
    texts: Iterable[str], vocabulary_size: int, *, or_fewer: bool = False, mask: bool = False
) -> TextTokenizer:
    """Learn the merges that ``vocabulary_size`` allows from ``texts``; the same texts give the same bytes.

    ``mask`` adds a mask token (one of ``vocabulary_size``) and names the document mark as padding, for encoders.

    Raises UsageError where the texts hold fewer pairs worth merging than asked for, unless ``or_fewer``: the missing
    tokens would be rows of the embedding that nothing ever trains.
    """
    marks = [END_OF_DOCUMENT, MASK] if mask else [END_OF_DOCUMENT]
    smallest = SMALLEST_VOCABULARY - 1 + len(marks)
    if vocabulary_size < smallest:
        raise UsageError(
            f"A byte-level vocabulary of {vocabulary_size} is too small.",
            where="vocabulary_size",
            expected=f"at least {smallest}: 256 bytes and the document mark" + (", and the mask token" if mask else ""),
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        min_frequency=2,
        special_tokens=marks,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=32,
        show_progress=False,
    )
    tokenizer.train_from_iterator((piece for text in texts for piece in pieces(text, LONGEST_WORD)), trainer)
    size = tokenizer.get_vocab_size()
    if size < vocabulary_size and not or_fewer:
        raise UsageError(
            f"The pages allow {size:,} tokens, not the {vocabulary_size:,} asked for.",
            where="vocabulary_size",
            expected=f"at most {size} for these pages",
            todo=f"set vocabulary_size to {size} or less, or leave it out",
        )
    end = tokenizer.token_to_id(END_OF_DOCUMENT)
    # What users encode begins like a document of the training data; `encode` above adds its marks itself.
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single=f"{END_OF_DOCUMENT} $A", special_tokens=[(END_OF_DOCUMENT, end)]),
        ]
    )
    masks = {"mask_token": MASK, "pad_token": END_OF_DOCUMENT} if mask else {}
    configuration = {**configuration_of(END_OF_DOCUMENT, END_OF_DOCUMENT), **masks}
    return _for_documents(tokenizer, END_OF_DOCUMENT, END_OF_DOCUMENT, configuration, MASK if mask else None)


def open_text_tokenizer(path: Path) -> TextTokenizer:
    """Open ``tokenizer.json``, alone or in a model folder, with the document marks its configuration names.

    Where it names no start and end, as BERT's, the classifier and separator tokens ([CLS], [SEP]) are taken for them.
    """
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise UsageError(
            "There is no tokenizer here.", where=str(file), expected="tokenizer.json, or a folder that holds one"
        )
    tokenizer = open_tokenizer(file)
    configuration = _read_configuration(file.parent, tokenizer)
    end = _named(tokenizer, configuration, ("eos_token", "sep_token"), USUAL_END_MARKS)
    if end is None:
        raise UsageError(
            "This tokenizer lacks an end-of-document token.",
            where=str(file),
            expected="eos_token in tokenizer_config.json, and the token in tokenizer.json",
            todo="name it in tokenizer_config.json, or leave `tokenizer` out to train one",
        )
    start = _named(tokenizer, configuration, ("bos_token", "cls_token"), ("[CLS]",) if end == "[SEP]" else ()) or end
    mask = _named(tokenizer, configuration, ("mask_token",), USUAL_MASKS)
    stated = {name for name in ("cls_token", "sep_token") if mark_of(configuration, name) in (start, end)}
    added = {"tokenizer_class": "PreTrainedTokenizerFast"} if stated else configuration_of(start, end)
    return _for_documents(tokenizer, start, end, {**added, **configuration}, mask)


def _named(tokenizer: Tokenizer, configuration: dict, names: Sequence[str], usual: Sequence[str]) -> str | None:
    """The spelling of a mark: the first that the settings name, else the first usual one; None where the tokenizer
    does not have it.
    """
    spellings = [mark for mark in (mark_of(configuration, name) for name in names) if mark is not None]
    candidates = spellings[:1] or [mark for mark in usual if tokenizer.token_to_id(mark) is not None]
    return next((mark for mark in candidates[:1] if tokenizer.token_to_id(mark) is not None), None)


def _for_documents(tokenizer: Tokenizer, start: str, end: str, configuration: dict, mask: str | None) -> TextTokenizer:
    tokenizer.encode_special_tokens = True
    first, last = tokenizer.token_to_id(start), tokenizer.token_to_id(end)
    assert first is not None
    assert last is not None
    return TextTokenizer(tokenizer, first, last, configuration, tokenizer.token_to_id(mask) if mask else None)


def configuration_of(start: str, end: str, **others: str) -> dict:
    """What ``tokenizer_config.json`` says of a tokenizer with these marks, ``others`` by their names."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": start,
        "eos_token": end,
        **others,
        "clean_up_tokenization_spaces": False,
    }


def _read_configuration(folder: Path, tokenizer: Tokenizer) -> dict:
    """`tokenizer_config.json` with the marks that other files name, taken as transformers takes them.

    `special_tokens_map.json` counts where there is no `added_tokens_decoder`. Where neither names a start or an end,
    the ids of `config.json` or `generation_config.json` do, if they are special tokens: defaults are letters in most
    vocabularies.
    """
    stated = _read_settings(folder / "tokenizer_config.json")
    stated.pop("auto_map", None)  # it names code to run
    if "added_tokens_decoder" not in stated:
        marks = _read_settings(folder / "special_tokens_map.json")
        stated |= marks_of(marks)
    if any(mark_of(stated, name) for name in ("bos_token", "eos_token", "cls_token", "sep_token")):
        return stated
    added = tokenizer.get_added_tokens_decoder()
    model = {name: number for name, number in _read_settings(folder / "config.json").items() if number is not None}
    ids = _read_settings(folder / "generation_config.json") | model
    for name in ("bos_token", "eos_token"):
        named = ids.get(f"{name}_id")
        number = named[0] if isinstance(named, list) and named else named
        token = added.get(number) if type(number) is int else None
        if token is not None and token.special:
            stated[name] = token.content
    return stated


def _read_settings(path: Path) -> dict:
    if not path.is_file():
        return {}
    values = read_json(path, LARGEST_SETTINGS)
    if not isinstance(values, dict):
        raise UsageError("This file holds no settings.", where=str(path), expected="a JSON object")
    return values


def marks_of(configuration: dict) -> dict[str, str]:
    """The spellings of all special tokens that settings name."""
    names = (name for name in configuration if name.endswith("_token"))
    return {name: mark for name in names if (mark := mark_of(configuration, name))}


def mark_of(configuration: dict, name: str) -> str | None:
    """A special token's spelling: older files give a string, newer ones {"content": ...}."""
    value = configuration.get(name)
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None
