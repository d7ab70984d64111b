"""Overlap of training and held-out texts: planted twins are found every time, and nothing else is."""

import random

import pytest

from mickle.data.conversation_forms import Example, Message
from mickle.data.overlap import Overlap, overlap

WORDS = [f"word{n}" for n in range(5000)]


def text(generator, count=60):
    return " ".join(generator.choices(WORDS, k=count))


@pytest.mark.parametrize("way", ["exact", "spaces", "run", "case"])
def test_a_planted_duplicate_is_found_100_times_of_100(way):
    for seed in range(100):
        generator = random.Random(f"{way} {seed}")
        training = [text(generator) for _ in range(20)]
        heldout = [text(generator) for _ in range(10)]
        place, twin = generator.randrange(10), generator.choice(training)
        words = twin.split()
        begin = generator.randrange(len(words) - 13)
        heldout[place] = {
            "exact": twin,
            "spaces": f"  {twin} \n".replace(" ", "\n  ", 3),
            "run": " ".join(["before", *words[begin : begin + 13], "after"]),
            "case": twin.upper().replace(" ", ", ") + "!",
        }[way]
        found = overlap(training, heldout)
        exact = way in ("exact", "spaces")
        assert found == Overlap(int(exact), int(not exact), [place], 10)


def test_twelve_words_are_not_enough_and_thirteen_are():
    words = text(random.Random(0), 40).split()
    for count, near in ((12, 0), (13, 1)):
        held = " ".join(["x", *words[5 : 5 + count], "y"]) + " other words that are only here for the length"
        assert overlap([" ".join(words)], [held]).near == near


def test_short_texts_overlap_only_with_the_same_words():
    found = overlap(["Yes, please!", "no", "two words here"], ["yes please", "No.", "two words", "no"])
    assert (found.exact, found.near, found.places) == (1, 2, [0, 1, 3])


def test_nothing_overlaps_with_nothing():
    assert overlap([], ["a b"]) == Overlap(0, 0, [], 1)
    assert overlap(["a b"], []) == Overlap(0, 0, [], 0)
    assert overlap(["...", ""], ["!!!", "  "]).near == 0  # texts without words


def test_the_line_says_counts_and_places():
    found = Overlap(1, 4, [0, 3, 7, 8, 9], 50)
    assert found.line() == (
        "overlap of training and held-out texts: 1 the same, 4 others share 13 words, of 50 (held-out 1, 4, 8, ...)"
    )
    assert overlap(["a"], ["b"]).line().endswith("0 the same, 0 others share 13 words, of 1")


def test_a_shared_system_turn_is_no_overlap():
    system = Message("system", text(random.Random(1)))
    examples = [Example("messages", (system, Message("user", f"q{n}"), Message("assistant", f"a{n}"))) for n in "ab"]
    assert examples[0].own_text() == "qa\naa"
    assert overlap([examples[0].own_text()], [examples[1].own_text()]).places == []
    assert Example("completion", prompt="p", completion="c").own_text() == "p\nc"
    assert Example("text", text="t").own_text() == "t"
