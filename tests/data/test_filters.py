"""Language and length: texts whose language is known, limits met exactly."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from mickle.data.filters import apply, identify_language, language_of, long_enough
from mickle.data.records import Failure, Page, Removed, piece

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


def test_length_is_compared_with_less_than() -> None:
    assert long_enough(page("x" * 10), 10) == page("x" * 10)
    gone = long_enough(page("x" * 9), 10)
    assert isinstance(gone, Removed)
    assert (gone.stage, gone.value) == ("length", 9.0)


def test_stages_stop_at_the_first_that_removes() -> None:
    stages = (partial(long_enough, minimum=5), partial(identify_language, languages=["en"], threshold=0.0))
    short, kept = apply([page("x"), page(ENGLISH)], *stages)
    assert isinstance(short, Removed)
    assert short.stage == "length"
    assert isinstance(kept, Page)
    assert (kept.language, kept.text) == ("en", ENGLISH)
    assert list(apply([short], *stages)) == [short]


def test_pieces_come_just_before_their_page() -> None:
    def behead(page: Page) -> list[Page | Removed]:
        cut = piece(page, "lines", Failure("first letter", 1, 0), 0, page.text[:1])
        return [cut, replace(page, text=page.text[1:])]

    cut, again, kept = apply([page("abc")], behead, behead)
    assert [(c.text, c.start) for c in (cut, again) if isinstance(c, Removed)] == [("a", 0), ("b", 0)]
    assert kept.text == "c"
