"""The tokenizer: lossless, deterministic, loadable by transformers, and not to be fooled by what a page says."""

import itertools
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, pre_tokenizers
from transformers import AutoTokenizer

from mickle.data import tokenizer as module
from mickle.data.masking import begins_word
from mickle.data.pieces import pieces
from mickle.data.preview import coloured
from mickle.data.tokenizer import END_OF_DOCUMENT, MASK, open_text_tokenizer, train_tokenizer
from mickle.errors import UsageError

TEXTS = [f"the quick brown fox number {i} jumps over the lazy dog and the {i * i} cats\n" for i in range(80)]
TOKENIZER = train_tokenizer(TEXTS, 300)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60))
def test_every_text_comes_back(text):
    (ids,) = TOKENIZER.encode([text])
    assert TOKENIZER.decode(ids) == text
    assert len(ids) <= len(text.encode("utf-8"))


def test_a_digit_is_a_token():
    (ids,) = TOKENIZER.encode(["1234567890"])
    assert len(ids) == 10


def test_a_page_cannot_forge_the_end_of_a_document():
    (ids,) = TOKENIZER.encode([f"before {END_OF_DOCUMENT} after"])
    assert TOKENIZER.end not in ids
    assert TOKENIZER.decode(ids) == f"before {END_OF_DOCUMENT} after"


AWKWARD = "ab Zé 中文。 \n\t's've  ,.!_-12٣\u0301 \u00a0\u3000\u200b\U0001f600\r\n"
LLAMA = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PRE_TOKENIZERS = {
    "ours": TOKENIZER.tokenizer.pre_tokenizer,
    "GPT-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "RoBERTa": pre_tokenizers.ByteLevel(add_prefix_space=True),
    "Llama 3": pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(LLAMA), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    ),
}


@pytest.mark.parametrize("kind", PRE_TOKENIZERS)
@settings(max_examples=150, deadline=None)
@given(text=st.text(AWKWARD, max_size=200), longest=st.integers(2, 60))
def test_pieces_of_a_text_give_the_tokens_of_the_whole(kind, text, longest):
    some = list(pieces(text, longest))
    assert "".join(some) == text
    assert all(map(len, some[1:]))
    assert max(map(len, some)) <= longest
    joins = list(itertools.pairwise(some))
    assume(
        all(two[0] == " " or (kind != "RoBERTa" and one[-1].isalnum() and not two[0].isalnum()) for one, two in joins)
    )
    read = Tokenizer.from_str(TOKENIZER.tokenizer.to_str())
    read.pre_tokenizer = PRE_TOKENIZERS[kind]
    ids = [i for piece in some for i in read.encode(piece, add_special_tokens=False).ids]
    assert ids == read.encode(text, add_special_tokens=False).ids


def test_a_library_is_given_a_bounded_text_at_a_time(monkeypatch):
    """A page of 50 MB would take it 6 GB, and a run of 50 million letters years to learn merges from."""
    whole = TOKENIZER.encode(TEXTS)
    monkeypatch.setattr(pieces, "__defaults__", (64,))
    monkeypatch.setattr("mickle.data.pieces.LONGEST", 64)
    given = []
    encode = Tokenizer.encode_batch_fast
    small = replace(
        TOKENIZER,
        tokenizer=SimpleNamespace(
            encode_batch_fast=lambda texts, **named: given.append(texts) or encode(TOKENIZER.tokenizer, texts, **named)
        ),
    )
    for one, other in zip(small.encode([*TEXTS, ""]), [*whole, []], strict=True):
        assert one.tolist() == list(other)
    assert max(sum(map(len, texts)) for texts in given) <= 64
    joined = " ".join(text.strip() for text in TEXTS)
    assert small.encode([joined])[0].tolist() == TOKENIZER.encode([joined])[0].tolist()
    monkeypatch.setattr(module, "LONGEST_WORD", 100)
    assert train_tokenizer(TEXTS, 300).tokenizer.to_str() == TOKENIZER.tokenizer.to_str()


def test_the_same_texts_give_the_same_bytes():
    assert train_tokenizer(TEXTS, 300).tokenizer.to_str() == TOKENIZER.tokenizer.to_str()


def test_merges_are_learnt():
    (ids,) = TOKENIZER.encode(["the quick brown fox"])
    assert len(ids) < 10
    assert TOKENIZER.size == 300


def test_transformers_loads_it_and_opens_texts_as_documents_open(tmp_path):
    from transformers import AutoTokenizer

    TOKENIZER.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    (ids,) = TOKENIZER.encode_documents(["the lazy dog"])
    assert theirs("the lazy dog")["input_ids"] == ids.tolist()
    assert theirs.bos_token_id == theirs.eos_token_id == TOKENIZER.end == TOKENIZER.start
    assert theirs.decode(ids[1:]) == "the lazy dog"
    assert len(theirs) == TOKENIZER.size


def test_saved_and_opened_again_it_is_the_same(tmp_path):
    TOKENIZER.save(tmp_path)
    again = open_text_tokenizer(tmp_path)
    assert again.encode(TEXTS[:2])[1].tolist() == TOKENIZER.encode(TEXTS[:2])[1].tolist()
    again.save(tmp_path / "..")
    assert (tmp_path / ".." / "tokenizer.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()


def test_start_and_end_of_their_own(tmp_path):
    TOKENIZER.save(tmp_path)
    configuration = {"bos_token": {"content": "the"}, "eos_token": "."}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(configuration))
    tokenizer = open_text_tokenizer(tmp_path / "tokenizer.json")
    (ids,) = tokenizer.encode_documents(["fox"])
    assert ids[0] == tokenizer.tokenizer.token_to_id("the")
    assert ids[-1] == tokenizer.tokenizer.token_to_id(".")


BOTH = {"bos_token": "<s>", "eos_token": {"content": "</s>"}}


@pytest.mark.parametrize(
    ("files", "start", "end"),
    [
        ({"special_tokens_map": BOTH}, "<s>", "</s>"),
        ({"special_tokens_map": BOTH, "tokenizer_config": {"eos_token": "<|endoftext|>"}}, "<s>", "</s>"),
        (
            {"special_tokens_map": BOTH, "tokenizer_config": {"eos_token": "</s>", "added_tokens_decoder": {}}},
            "</s>",
            "</s>",
        ),
        ({"config": {"bos_token_id": 301, "eos_token_id": [302, 0]}}, "<s>", "</s>"),
        (
            {"config": {"eos_token_id": None}, "generation_config": {"bos_token_id": 301, "eos_token_id": 302}},
            "<s>",
            "</s>",
        ),
        ({"config": {"bos_token_id": 1, "eos_token_id": 2}}, "<|endoftext|>", "<|endoftext|>"),  # letters by default
        ({"config": {"eos_token_id": [[]], "bos_token_id": {}}}, "<|endoftext|>", "<|endoftext|>"),
    ],
)
def test_marks_are_where_transformers_finds_them(tmp_path, files, start, end):
    """A vocabulary with several usual marks: `special_tokens_map.json` says which, or `config.json`'s ids do."""
    words = train_tokenizer(["the cat sat on the mat " * 9], 301, or_fewer=True)
    filled = words.size
    words.tokenizer.add_tokens([f"filler{n}" for n in range(301 - filled)])
    words.tokenizer.add_special_tokens(["<s>", "</s>"])
    words.save(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    for name, values in {"tokenizer_config": {"tokenizer_class": "PreTrainedTokenizerFast"}, **files}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(values))
    found = open_text_tokenizer(tmp_path)
    assert [found.tokenizer.id_to_token(mark) for mark in (found.start, found.end)] == [start, end]
    if "config" not in files:
        theirs = AutoTokenizer.from_pretrained(tmp_path)
        assert (theirs.bos_token or theirs.eos_token, theirs.eos_token) == (start, end)


def test_colours_tell_trained_from_untrained_and_markup_in_a_text_stays_text():
    from rich.text import Text

    (ids,) = TOKENIZER.encode(["a [bold]x[/bold] \\[ é"])
    markup = "".join(coloured(TOKENIZER, ids, [True] * len(ids)))
    plain = Text.from_markup(markup).plain
    assert plain.startswith("a [bold]x[/bold] \\[")
    assert "[dim]" in "".join(coloured(TOKENIZER, ids[:1], [False]))


@pytest.mark.parametrize(
    ("size", "said"), [(20, "too small"), (5000, "The pages allow")], ids=["below the bytes", "above the pages"]
)
def test_a_vocabulary_out_of_range(size, said):
    with pytest.raises(UsageError, match=said):
        train_tokenizer(TEXTS[:3], size)


def test_fewer_tokens_where_fewer_will_do():
    assert 257 <= train_tokenizer(TEXTS[:3], 5000, or_fewer=True).size < 5000


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "no tokenizer"),
        ({"tokenizer.json": "{"}, "not valid JSON"),
        ({"tokenizer.json": "[" * 100_000}, "not valid JSON"),
        ({"tokenizer.json": None, "tokenizer_config.json": "{]"}, "not valid JSON"),
        ({"tokenizer.json": None, "tokenizer_config.json": "[]"}, "no settings"),
        ({"tokenizer.json": None, "tokenizer_config.json": '{"eos_token": "<nowhere>"}'}, "lacks an end"),
    ],
)
def test_bad_files(tmp_path, files, said):
    for name, content in files.items():
        if content is None:
            TOKENIZER.save(tmp_path)
        else:
            (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=said):
        open_text_tokenizer(tmp_path)


MASKED = train_tokenizer(TEXTS, 300, mask=True)


def test_a_mask_token_is_one_more_special_token(tmp_path):
    from transformers import AutoTokenizer

    assert MASKED.special == {MASKED.start, MASKED.mask}
    assert TOKENIZER.special == {TOKENIZER.start}
    assert TOKENIZER.mask is None
    (ids,) = MASKED.encode([f"a {MASK} in a page"])
    assert MASKED.mask not in ids
    MASKED.save(tmp_path)
    assert open_text_tokenizer(tmp_path).mask == MASKED.mask
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.mask_token_id == MASKED.mask
    assert theirs.pad_token_id == MASKED.end
    assert theirs(f"the {MASK} dog")["input_ids"].count(MASKED.mask) == 1


def test_without_a_mask_nothing_of_it_is_written(tmp_path):
    TOKENIZER.save(tmp_path)
    assert MASK not in (tmp_path / "tokenizer.json").read_text()
    assert set(json.loads((tmp_path / "tokenizer_config.json").read_text())) == {
        "tokenizer_class",
        "bos_token",
        "eos_token",
        "clean_up_tokenization_spaces",
    }


def test_words_of_a_byte_level_vocabulary():
    text = "the quick fox, über 42\nthe dog"
    (ids,) = MASKED.encode([text])
    pieces = [MASKED.tokenizer.decode([i]) for i in ids]
    raw = [MASKED.tokenizer.id_to_token(i) for i in ids]
    opens = begins_word(MASKED)
    opened = [piece for piece, i in zip(raw, ids, strict=True) if opens[i]]
    # A space, a comma, a digit or a line's end opens a word; letters and the bytes of \u00fc go on with one.
    assert all(piece[0] in "\u0120\u010a,0123456789" for piece in opened)
    assert sum(piece.startswith("\u0120") for piece in opened) == text.count(" ")
    assert "".join(pieces).count("\n") == 1
    assert opens[[MASKED.start, MASKED.mask]].all()


def bert_folder(folder, configuration):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "play", "##ing", "the", "##s"]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(words[:5])
    tokenizer.save(str(folder / "tokenizer.json"))
    if configuration is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(configuration))
    return open_text_tokenizer(folder)


NAMED = {"cls_token": "[CLS]", "sep_token": {"content": "[SEP]"}, "mask_token": "[MASK]", "pad_token": "[PAD]"}


@pytest.mark.parametrize("configuration", [NAMED, {**NAMED, "tokenizer_class": "BertTokenizer"}, None])
def test_a_bert_tokenizer(tmp_path, configuration):
    tokenizer = bert_folder(tmp_path, configuration)
    assert [tokenizer.start, tokenizer.end, tokenizer.mask] == [2, 3, 4]
    assert tokenizer.special == {0, 1, 2, 3, 4}
    (ids,) = tokenizer.encode_documents(["the playing plays"])
    assert ids.tolist() == [2, 7, 5, 6, 5, 8, 3]
    assert np.flatnonzero(~begins_word(tokenizer)).tolist() == [6, 8]
    if configuration:
        tokenizer.save(tmp_path)
        kept = json.loads((tmp_path / "tokenizer_config.json").read_text())
        assert kept == {"tokenizer_class": "PreTrainedTokenizerFast", **configuration}


def test_a_mask_token_that_the_tokenizer_lacks_is_none(tmp_path):
    assert bert_folder(tmp_path, {**NAMED, "mask_token": "<gone>"}).mask is None


def test_a_mask_needs_room():
    with pytest.raises(UsageError, match="too small") as caught:
        train_tokenizer(TEXTS, 257, mask=True)
    assert "258" in caught.value.expected


@pytest.mark.parametrize("kind", ["WordLevel", "WordPiece", "Unigram", "BPE"])
def test_what_the_vocabulary_lacks_is_counted_by_its_bytes(tmp_path, kind):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<unk>": 0, "</s>": 1, "clay": 2, "a": 3, "b": 4}
    model = {
        "WordLevel": lambda: models.WordLevel(words, unk_token="<unk>"),
        "WordPiece": lambda: models.WordPiece(words, unk_token="<unk>"),
        "Unigram": lambda: models.Unigram([(word, -1.0) for word in words], unk_id=0),
        "BPE": lambda: models.BPE({**words, "ab": 5}, [("a", "b")], unk_token="<unk>", fuse_unk=True),
    }[kind]()
    made = Tokenizer(model)
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(["<unk>", "</s>"])
    made.save(str(tmp_path / "tokenizer.json"))
    tokenizer = open_text_tokenizer(tmp_path)
    known = {"BPE": "ab"}.get(kind, "clay")
    assert tokenizer.unknown == 0
    assert tokenizer.unknown_bytes(f"{known} ςυ {known} ж").tolist() == [0, 4, 0, 2]
    ids = tokenizer.encode([f"{known} ςυ {known} ж", f"{known} {known}"])
    assert tokenizer.unknown_line(ids, "data").startswith("33.3% of the tokens are <unk>")
    assert tokenizer.unknown_line(ids[1:], "data") == ""
    with pytest.raises(UsageError, match=r"100.0% of the tokens are <unk>") as caught:
        tokenizer.unknown_line(tokenizer.encode(["ςυ ж"]), "data")
    assert caught.value.expected == "at most 50%"


def test_a_byte_level_vocabulary_lacks_nothing():
    tokenizer = train_tokenizer(TEXTS, 300)
    assert tokenizer.unknown is None
    assert tokenizer.unknown_line(tokenizer.encode(["ςυ ж"]), "data") == ""
