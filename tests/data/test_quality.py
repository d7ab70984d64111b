"""Rules of quality: limits met exactly, and decisions and reasons as datatrove's for the same words."""

from __future__ import annotations

import random

import pytest

from mickle.data.quality import Quality, find_low_quality, find_low_quality_words
from mickle.data.records import Failure
from mickle.data.words import split_words

LOOSE = {
    "least_words": 0,
    "most_words": 10**9,
    "least_mean_length": 0.0,
    "most_mean_length": 1e9,
    "hash_signs": 1e9,
    "ellipses": 1e9,
    "bullet_lines": 1.0,
    "ellipsis_lines": 1.0,
    "words_with_letters": 0.0,
    "least_stop_words": 0,
}  # no rule can fail
PROSE = "The river runs past the old town and nobody who lives there remembers a winter that froze it over. " * 3


def only(**limits: object) -> Quality:
    """Settings in which the rules named are the only ones."""
    return Quality.model_validate(LOOSE | limits)


@pytest.mark.parametrize(
    ("kept", "removed", "limits", "reason"),
    [
        ("one two .", "one . .", {"least_words": 2}, "too few words"),
        ("one two .", "one two three", {"most_words": 2}, "too many words"),
        ("ab abcd !!!", "ab abc", {"least_mean_length": 3.0}, "words are short"),
        ("abcd ab !!!!!!", "abcd abc", {"most_mean_length": 3.0}, "words are long"),
        ("# a b c d e f g h i", "# a b c d e f g h", {"hash_signs": 0.1}, "hash signs"),
        ("… a b c d e f g h i", "a b c d e f g h...", {"ellipses": 0.1}, "ellipses"),
        ("- a\n  • b\nc\n• d", "- a\n  • b\n-c\n• d", {"bullet_lines": 0.75}, "lines that begin with a bullet"),
        ("a...\nb\nc", "a...\nb… \nc", {"ellipsis_lines": 1 / 3}, "lines that end in an ellipsis"),
        ("a b2 c d 5", "a b2 c 4 5", {"words_with_letters": 0.8}, "words without letters"),
        ("The end OF it", "The end the it", {"least_stop_words": 2}, "too few stop words"),
    ],
)
def test_each_rule_fails_only_past_its_limit(kept: str, removed: str, limits: dict[str, object], reason: str) -> None:
    assert find_low_quality(kept, only(**limits)) is None
    failure = find_low_quality(removed, only(**limits))
    assert failure is not None
    assert failure.reason == reason
    assert find_low_quality(removed, only()) is None


def test_prose_passes_in_any_letter_case_unless_case_must_match() -> None:
    assert find_low_quality(PROSE, Quality()) is None
    assert find_low_quality(PROSE.upper(), Quality()) is None
    assert find_low_quality(PROSE, Quality(match_case=True)) is None
    assert find_low_quality(PROSE.upper(), Quality(match_case=True)) == Failure("too few stop words", 0, 2)


def test_stop_words_of_another_language_are_the_users() -> None:
    german = "Der Fluss fließt an der alten Stadt vorbei, und niemand dort erinnert sich an einen Winter mit Eis. " * 4
    settings = Quality(stop_words=["der", "die", "und", "sich", "mit"])
    assert find_low_quality(german, Quality()) == Failure("too few stop words", 0, 2)
    assert find_low_quality(german, settings) is None


@pytest.mark.parametrize("text", ["", " ", "\n\n", "\0" * 100, "…", "\ud800", "#" * 1000, "x" * 100_000])
def test_awkward_texts_have_too_few_words_and_divide_by_nothing(text: str) -> None:
    assert find_low_quality(text, Quality()) == Failure("too few words", len(set(text) & set("x\ud800")), 50)
    assert find_low_quality(text, only()) is None


REASONS = {
    "too few words": "gopher_short_doc",
    "too many words": "gopher_long_doc",
    "words are short": "gopher_below_avg_threshold",
    "words are long": "gopher_above_avg_threshold",
    "hash signs": "gopher_too_many_hashes",
    "ellipses": "gopher_too_many_ellipsis",
    "lines that begin with a bullet": "gopher_too_many_bullets",
    "lines that end in an ellipsis": "gopher_too_many_end_ellipsis",
    "words without letters": "gopher_below_alpha_threshold",
    "too few stop words": "gopher_enough_stop_words",
}


def random_texts(count: int, seed: int) -> list[str]:
    """Texts whose words, marks and lines are drawn in proportions of their own: every rule fails somewhere."""
    drawn = random.Random(seed)
    kinds = (
        ["the", "and", "of", "have", "that"],
        ["river", "Town", "people’s", "winter"],
        ["a", "I", "x", "12"],
        ["internationalization", "counterrevolutionary"],
        ["12", "3.5", "&", "$", "§"],
        ["#", "...", "…", ",", "."],
    )
    texts = []
    for _ in range(count):
        weights = [drawn.choice([0, 0, 1, 3, 9]) for _ in kinds]
        weights[1] += 1
        lines = []
        for _ in range(drawn.choice([1, 5, 20])):
            pools = drawn.choices(kinds, weights, k=drawn.choice([1, 6, 15]))
            lines.append(" ".join(drawn.choice(pool) for pool in pools))
        start, end = drawn.choice(["", "", "- ", " • "]), drawn.choice(["", "", "...", "… "])
        texts.append("\n".join(start * (drawn.random() < 0.95) + line + end for line in lines))
    return texts


@pytest.mark.parametrize("split", [split_words, str.split])
@pytest.mark.parametrize("most", [100_000, 200])
def test_decisions_and_reasons_are_those_of_datatrove(split, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = pytest.importorskip("datatrove.pipeline.filters.gopher_quality_filter")
    data = pytest.importorskip("datatrove.data")
    monkeypatch.setattr(theirs, "split_into_words", lambda text, language: split(text))
    check = theirs.GopherQualityFilter(max_doc_words=most).filter
    settings, seen = Quality(match_case=True, most_words=most), set()
    for text in ["", " ", PROSE, PROSE.upper(), *random_texts(1500, seed=2)]:
        expected = check(data.Document(text=text, id=""))
        failure = find_low_quality_words(text, split(text), settings)
        assert (REASONS[failure.reason] if failure else True) == (expected[1] if expected is not True else True)
        seen.add(failure and failure.reason)
    assert len(seen) >= (11 if most == 200 else 10)  # a rule that is never reached proves nothing
