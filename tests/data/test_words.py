"""Words: nothing is lost, and what counts as one word is as documented."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mickle.data.words import PUNCTUATION, split_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        (" \t\n ", []),
        ("Don't stop...", ["Don't", "stop", "..."]),
        ("the dogs’ bone’s end’", ["the", "dogs", "’", "bone’s", "end", "’"]),
        ("3.14, 1,024", ["3.14", ",", "1", ",", "024"]),
        ("see example.com. Now", ["see", "example.com", ".", "Now"]),
        ("me@example.com", ["me@example.com"]),
        ("state-of-the-art -- yes", ["state", "-", "of", "-", "the", "-", "art", "--", "yes"]),
        ("snake_case ##", ["snake_case", "#", "#"]),
        ("cafe\u0301s", ["cafe\u0301s"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("می\u200cخواهم क्\u200dष", ["می\u200cخواهم", "क्\u200dष"]),
        ("\u0301alone\0", ["\u0301", "alone", "\0"]),
        ("•one", ["•", "one"]),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert split_words(text) == words


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters() | st.sampled_from(" .-'’@\n\u0301\u200d\ud800a"), max_size=80))
def test_words_are_the_text_without_white_space(text: str) -> None:
    words = split_words(text)
    assert "".join(words) == "".join(text.split())
    assert "" not in words


def test_a_long_run_is_one_word() -> None:
    assert len(split_words("a." * 500_000)) == 2  # and its last full stop


def test_punctuation_is_what_datatrove_takes_for_it() -> None:
    theirs = pytest.importorskip("datatrove.utils.text").PUNCTUATION_SET
    assert set(PUNCTUATION) ^ set(theirs) == {"１"}


def test_punctuation_is_no_letter_and_no_white_space_of_prose() -> None:
    assert not any(character.isalnum() for character in PUNCTUATION)
    assert PUNCTUATION.isdisjoint(" \n\t")
    assert set("!?.,;:()[]{}'\"“”’—…。؟।") <= PUNCTUATION
