"""Repetition rules: limits met exactly, and decisions and reasons as datatrove's for the same words."""

from __future__ import annotations

import ast
import os
import random
from pathlib import Path

import pytest

from mickle.config import validate
from mickle.data.records import Failure
from mickle.data.repetitions import Repetitions, find_repeated_words, find_repetition
from mickle.data.words import split_words

LOOSE = {
    "duplicate_paragraph_share": 9.0,
    "duplicate_paragraph_characters": 9.0,
    "duplicate_line_share": 9.0,
    "duplicate_line_characters": 9.0,
    "most_frequent_ngram": {},
    "repeated_ngrams": {},
}  # no rule can fail


def only(**limits: object) -> Repetitions:
    """Settings in which the rules named are the only ones."""
    return Repetitions.model_validate(LOOSE | limits)


@pytest.mark.parametrize(
    ("text", "limits", "value"),
    [
        # 3 lines of 10 stood before; 6 characters of 29 with their line breaks.
        ("\n".join("aabbcczdef"), {"duplicate_line_share": 0.3}, None),
        ("\n".join("aabbccccde"), {"duplicate_line_share": 0.3}, 0.5),
        ("\n\n".join("aabbcczdef"), {"duplicate_paragraph_share": 0.3}, None),
        ("\n\n".join("aabbccddef"), {"duplicate_paragraph_share": 0.3}, 0.4),
        # "xyz" again: 3 characters of 15, which is the limit, and of 14.
        ("xyz\nxyz\nabcdefg", {"duplicate_line_characters": 0.2}, None),
        ("xyz\nxyz\nabcdef", {"duplicate_line_characters": 0.2}, 3 / 14),
        ("xyz\n\nxyz\n\nabcde", {"duplicate_paragraph_characters": 0.2}, None),
        ("xyz\n\nxyz\n\nabcd", {"duplicate_paragraph_characters": 0.2}, 3 / 14),
        # "a b" twice: 6 characters.
        ("a b a b c d e f g h i j k l mn", {"most_frequent_ngram": {2: 0.2}}, None),
        ("a b a b c d e f g h i j k l m", {"most_frequent_ngram": {2: 0.2}}, 6 / 29),
        # 5 characters of words that stood before, without their spaces.
        ("a b c d e a b c d e 12345678", {"repeated_ngrams": {5: 5 / 28}}, None),
        ("a b c d e a b c d e 1234567", {"repeated_ngrams": {5: 5 / 28}}, 5 / 27),
    ],
)
def test_a_share_fails_only_above_its_limit(text: str, limits: dict[str, object], value: float | None) -> None:
    failure = find_repetition(text, only(**limits))
    if value is None:
        assert failure is None
    else:
        assert failure is not None
        assert failure.value == pytest.approx(value)
        assert failure.value > failure.limit


def test_the_first_rule_in_the_order_of_the_page_is_the_reason() -> None:
    text = "\n\n".join(["the same words in a row"] * 20)
    reasons = []
    loosened: dict[str, object] = {}
    for name, loose in LOOSE.items():
        failure = find_repetition(text, Repetitions.model_validate(loosened))
        assert failure is not None
        reasons.append(failure.reason)
        loosened[name] = loose
    assert reasons == [
        "duplicate paragraphs", "characters in duplicate paragraphs", "duplicate lines",
        "characters in duplicate lines", "most frequent 2-gram", "repeated 5-grams",
    ]  # fmt: skip
    assert find_repetition(text, Repetitions.model_validate(loosened)) is None


def test_overlap_decides_about_ngrams_inside_a_jump() -> None:
    words = ["p", "q", "r", "s", "p", "q", "r", "s"]  # see the kernel's test: 3 characters against 4
    for overlap, value in (("greedy", 3 / 15), ("mask", 4 / 15)):
        failure = find_repeated_words("x" * 15, words, only(repeated_ngrams={3: 0.0}, overlap=overlap))
        assert failure == Failure("repeated 3-grams", value, 0.0)


@pytest.mark.parametrize("text", [" ", "\n\n\n", "\0", "word", "\ud800 x", "x" * 100_000, "a\n" * 50_000])
def test_awkward_texts_have_an_answer(text: str) -> None:
    failure = find_repetition(text, Repetitions())
    assert (failure is None) == (text in (" ", "\0", "word", "x" * 100_000))


def test_an_empty_text_fails_and_a_very_short_one_by_its_only_ngram() -> None:
    assert find_repetition("", Repetitions()) == Failure("text is empty", 0.0, 0.0)
    assert find_repetition("two words", Repetitions()) == Failure("most frequent 2-gram", 1.0, 0.2)


def test_limits_by_n_are_read_as_from_a_file() -> None:
    settings = validate(Repetitions, {"most_frequent_ngram": {"2": 0.5}, "overlap": "mask"})
    assert settings.most_frequent_ngram == {2: 0.5}
    assert settings.repeated_ngrams == Repetitions().repeated_ngrams


def random_texts(count: int, seed: int) -> list[str]:
    """Texts of few words and of many, some of whose lines and paragraphs come again: every rule fails somewhere."""
    drawn = random.Random(seed)
    common = ["the", "of", "and", "can", "not", "cannot", "a", "...", "#", "-", "•", "word's", "é", "12"]
    texts = []
    for _ in range(count):
        words = common + [f"w{drawn.randrange(10**6)}" for _ in range(drawn.choice([2, 40, 400]))]
        lines = [" ".join(drawn.choices(words, k=drawn.choice([0, 1, 4, 20]))) for _ in range(drawn.choice([1, 4, 15]))]
        lines += drawn.choices(lines, k=drawn.choice([0, 0, 1, 5, 10]))
        drawn.shuffle(lines)
        texts.append("".join(line + drawn.choice(["\n", "\n\n", " ", "\n\n\n"]) for line in lines))
    return texts


def docstrings(count: int) -> list[str]:
    """Documentation of the standard library's modules and functions."""
    found: list[str] = []
    for path in sorted(Path(os.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                text = ast.get_docstring(node)
                if text and len(text) > 300:
                    found.append(text)
        if len(found) >= count:
            break
    return found[:count]


REASONS = {
    "text is empty": "empty",
    "duplicate paragraphs": "dup_para_frac",
    "characters in duplicate paragraphs": "dup_para_char_frac",
    "duplicate lines": "dup_line_frac",
    "characters in duplicate lines": "dup_line_char_frac",
    **{f"most frequent {n}-gram": f"top_{n}_gram" for n in (2, 3, 4)},
    **{f"repeated {n}-grams": f"duplicated_{n}_n_grams" for n in range(5, 11)},
}


@pytest.mark.parametrize("split", [split_words, str.split])
def test_decisions_and_reasons_are_those_of_datatrove(split, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = pytest.importorskip("datatrove.pipeline.filters.gopher_repetition_filter")
    data = pytest.importorskip("datatrove.data")
    monkeypatch.setattr(theirs, "split_into_words", lambda text, language: split(text))
    check = theirs.GopherRepetitionFilter().filter
    settings, seen = Repetitions(), set()
    for text in ["", " ", "\n", "a", *random_texts(1000, seed=1), *docstrings(200)]:
        expected = check(data.Document(text=text, id=""))
        failure = find_repetition(text, settings)
        if split is not split_words and text and (failure is None or "gram" in failure.reason):
            failure = find_repeated_words(text, split(text), settings)
        assert (REASONS[failure.reason] if failure else True) == (expected[1] if expected is not True else True)
        seen.add(failure and failure.reason)
    assert len(seen) >= 11  # a rule that is never reached proves nothing
