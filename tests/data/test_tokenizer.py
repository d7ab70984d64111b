"""The tokenizer: lossless, deterministic, loadable by transformers, and not to be fooled by what a page says."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mickle.data.tokenizer import (
    END_OF_DOCUMENT,
    coloured,
    open_text_tokenizer,
    train_tokenizer,
)
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


def test_colours_tell_trained_from_untrained_and_markup_in_a_text_stays_text():
    from rich.text import Text

    (ids,) = TOKENIZER.encode(["a [bold]x[/bold] \\[ é"])
    markup = "".join(coloured(TOKENIZER, ids, [True] * len(ids)))
    plain = Text.from_markup(markup).plain
    assert plain.startswith("a [bold]x[/bold] \\[")
    assert "[dim]" in "".join(coloured(TOKENIZER, ids[:1], [False]))


@pytest.mark.parametrize(
    ("size", "said"),
    [(20, "too small"), (5000, "The pages allow")],
    ids=["below the bytes", "above the pages"],
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
        ({"tokenizer.json": "{"}, "cannot be read"),
        ({"tokenizer.json": "[" * 100_000}, "cannot be read"),
        ({"tokenizer.json": None, "tokenizer_config.json": "{]"}, "not JSON"),
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
