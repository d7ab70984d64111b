"""Language and length: texts whose language is known, limits met exactly."""

from __future__ import annotations

import pytest

from mickle.data.filters import identify_language, language_of, long_enough
from mickle.data.records import Page, Removed

ENGLISH = "The river runs past the old town, and nobody who lives there remembers a winter when it froze over."
GERMAN = "Der Fluss fließt an der alten Stadt vorbei, und niemand erinnert sich an einen Winter, in dem er zufror."
FRENCH = "La rivière coule devant la vieille ville, et personne ne se souvient d'un hiver où elle aurait gelé."


def page(text: str) -> Page:
    return Page("u", "d", "", text)


@pytest.mark.parametrize(("text", "code"), [(ENGLISH, "en"), (GERMAN, "de"), (FRENCH, "fr")])
def test_languages_are_told_apart_with_a_probability(text: str, code: str) -> None:
    found, probability = language_of(text)
    assert found == code
    assert 0.65 < probability <= 1.0


def test_line_breaks_do_not_change_the_language() -> None:
    assert language_of(ENGLISH.replace(" ", "\n")) == language_of(ENGLISH)


def test_kept_languages_are_set_and_others_removed() -> None:
    kept = identify_language(page(ENGLISH), ["en"], 0.65)
    assert kept == Page("u", "d", "en", ENGLISH, language_score=language_of(ENGLISH)[1])
    gone = identify_language(page(GERMAN), ["en"], 0.65)
    assert isinstance(gone, Removed)
    assert (gone.language, gone.reason) == ("de", "other language")
    assert not isinstance(identify_language(page(GERMAN), [], 0.65), Removed)


def test_an_unclear_language_is_removed_with_its_probability() -> None:
    probability = language_of(ENGLISH)[1]
    gone = identify_language(page(ENGLISH), ["en"], min(1.0, probability + 1e-9))
    assert not isinstance(identify_language(page(ENGLISH), ["en"], probability), Removed)
    assert isinstance(gone, Removed) == (probability < 1.0)


CROATIAN = (
    "Nova radionica u selu radi od danas. U njoj se prave posude i lampe, a ulaz je slobodan. "
    "Majstor kaže da ima mnogo posla. Cijena ostaje ista."
)
CHINESE = "陶工每年春天到河边挖土。"


@pytest.mark.parametrize(
    ("text", "languages", "kept"),
    [
        (CROATIAN, ["hr", "sr", "bs"], "hr"),
        (CROATIAN, ["sr", "hr", "bs", "en"], "hr"),
        (CROATIAN, ["sh"], "sh"),
        (CROATIAN, ["hr"], ""),
        (CROATIAN, ["en"], ""),
        (CROATIAN, [], "hr"),  # all are wanted
        (CHINESE, ["zh"], "zh"),  # Wu and Cantonese are Chinese too
        (CHINESE, ["ja"], ""),
    ],
)
def test_what_is_wanted_counts_together(text: str, languages: list[str], kept: str) -> None:
    found = identify_language(page(text), languages, 0.65)
    assert (found.language if not isinstance(found, Removed) else "") == kept
    if kept and languages:
        assert 0.99 < found.language_score <= 1.0


def test_a_letter_that_says_more_counts_for_more() -> None:
    assert long_enough(page("陶工" * 4), 24).text == "陶工" * 4
    assert isinstance(long_enough(page("陶工" * 4), 25), Removed)
    assert isinstance(long_enough(page("도자기" + "かな"), 11), Removed)
    assert not isinstance(long_enough(page("도자기" + "かな"), 10), Removed)


def test_length_is_compared_with_less_than() -> None:
    assert long_enough(page("x" * 10), 10) == page("x" * 10)
    gone = long_enough(page("x" * 9), 10)
    assert isinstance(gone, Removed)
    assert (gone.stage, gone.value) == ("length", 9.0)
