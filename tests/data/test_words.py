"""Words: nothing is lost, and what counts as one word is as documented."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mickle.data.words import PUNCTUATION, letters_a_word, split_spaces, split_words


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
        ("陶工挖土。clay土", ["陶", "工", "挖", "土", "。", "clay", "土"]),
        ("ปั้นดิน don't", ["ปั้", "น", "ดิ", "น", "don't"]),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert split_words(text) == words


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters() | st.sampled_from(" .-'’@\n\u0301\u200d\ud800a漢かก\u0e34"), max_size=80))
def test_words_are_the_text_without_white_space(text: str) -> None:
    words = split_words(text)
    assert "".join(words) == "".join(split_spaces(text)) == "".join(text.split())
    assert "" not in words
    assert letters_a_word(text) in (1, 2, 4)


@pytest.mark.parametrize(
    ("text", "count", "letters"),
    [
        ("The old town, by the river.", 6, 1),
        ("Don't go (yet).", 3, 1),
        ("陶工每年春天到河边挖土。", 6, 2),
        ("使用 Python 3 编程，很好！", 5, 2),
        ("Die Bowle 碗", 3, 1),
        ("ช่างปั้นหม้อ", 2, 4),
        ("मिट्टी का बर्तन।", 3, 1),
        ("도자기를 굽는다.", 2, 1),
        ("هل هذا جيد؟", 3, 1),
    ],
)
def test_words_between_spaces_and_as_many_letters_where_there_are_none(text: str, count: int, letters: int) -> None:
    assert (len(split_spaces(text)), letters_a_word(text)) == (count, letters)


def test_a_long_run_is_one_word() -> None:
    assert len(split_words("a." * 500_000)) == 2  # and its last full stop


def test_punctuation_is_what_datatrove_takes_for_it() -> None:
    theirs = pytest.importorskip("datatrove.utils.text").PUNCTUATION_SET
    assert set(PUNCTUATION) ^ set(theirs) == {"１"}


def test_punctuation_is_no_letter_and_no_white_space_of_prose() -> None:
    assert not any(character.isalnum() for character in PUNCTUATION)
    assert PUNCTUATION.isdisjoint(" \n\t")
    assert set("!?.,;:()[]{}'\"“”’—…。؟।") <= PUNCTUATION
