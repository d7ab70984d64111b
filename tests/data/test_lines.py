"""Line-wise corrections: each rule on lines whose fate is known, and nothing lost in any text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mickle.data.lines import Corrected, Lines, correct_lines

PROSE = "The river runs past the old town, and nobody who lives there remembers a winter in which it froze over.\n"
LENIENT = Lines(flagged_words=1.0)


def put_back(corrected: Corrected) -> str:
    """The text as it was, from what is left and the pieces."""
    text = corrected.text
    for start, piece, _ in corrected.pieces:
        text = text[:start] + piece + text[start:]
    return text


@pytest.mark.parametrize(
    ("line", "left", "reason"),
    [
        ("PRIVACY POLICY and terms", "", "line in upper case"),
        ("ABcd EFgh", "ABcd EFgh", None),  # 4 characters of 9
        ("ABC def", "ABC def", None),
        ("ABC de", "ABC de", None),  # half is not more than half
        ("ÄÖÜ ß", "", "line in upper case"),
        ("2023 10 11", "", "line of digits"),
        ("2023 10 11 a", "2023 10 11 a", None),
        ("3 likes", "", "line is a counter"),
        ("1 Comment", "", "line is a counter"),
        ("1,024 views", "", "line is a counter"),
        ("1.2k Followers", "", "line is a counter"),
        ("3 likes and counting", "3 likes and counting", None),
        ("3 apples", "3 apples", None),
        ("Home", "", "line of one word"),
        ("首页", "", "line of one word"),
        ("陶工每年春天到河边挖土。", "陶工每年春天到河边挖土。", None),
        ("ช่างปั้นหม้อขุดดิน", "ช่างปั้นหม้อขุดดิน", None),
        ("  »  ", "", "line of one word"),
        ("Sign in to read the whole story", "to read the whole story", "phrase at a line's start"),
        ("sign-in | The whole story", "The whole story", "phrase at a line's start"),
        ("He had to sign in there", "He had to sign in there", None),
        ("Sign inside the box here", "Sign inside the box here", None),
        ("What the town was like. Read more...", "What the town was like.", "phrase at a line's end"),
        ("What the town was like READ  MORE »", "What the town was like", "phrase at a line's end"),
        ("They read more than we did", "They read more than we did", None),
        ("Welcome back (3 items in cart) dear reader", "Welcome back () dear reader", "phrase in a line"),
        ("items in cart", "", "phrase in a line"),
        ("Sign in | Home | Read more", "", "phrase at a line's start"),  # one word would be left
        ("Here it is: read more read more", "", "phrase at a line's end"),  # what is left would be cut again
        ("a b c d e f g h read more", "a b c d e f g h", "phrase at a line's end"),  # ten words
        ("a b c d e f g h i read more", "a b c d e f g h i read more", None),  # eleven
    ],
)
def test_what_becomes_of_a_line(line: str, left: str, reason: str | None) -> None:
    for end in ("\n", ""):
        text = PROSE + line + end
        corrected = correct_lines(text, LENIENT)
        kept = left + end if left else ""
        assert corrected.text == PROSE + kept
        assert [failure.reason for _, _, failure in corrected.pieces][:1] == ([reason] if reason else [])
        assert put_back(corrected) == text


def test_the_share_of_flagged_words_decides_about_the_page() -> None:
    # 2 words in flagged lines: of 40 exactly 5 %, of 39 more.
    long = " ".join(["word"] * 38) + "\n"
    assert correct_lines(long + "3 likes\n", Lines()) == (
        long, correct_lines(long + "3 likes\n", LENIENT).pieces, 0.05, None
    )  # fmt: skip
    corrected = correct_lines(long.removeprefix("word ") + "3 likes\n", Lines())
    assert corrected.failure == ("flagged lines", 2 / 39, 0.05)
    # An edited line counts with all its words.
    assert correct_lines(long + "Read more of this\nNow read more\n", LENIENT).share == 3 / 45


def test_empty_lines_are_not_judged_and_do_not_pile_up() -> None:
    text = f"{PROSE}\nMENU\n\nHOME\n\n{PROSE}\n\n{PROSE}"
    corrected = correct_lines(text, LENIENT)
    assert corrected.text == f"{PROSE}\n{PROSE}\n\n{PROSE}"
    assert [piece for _, piece, _ in corrected.pieces] == ["MENU\n\n", "HOME\n\n"]
    assert put_back(corrected) == text
    assert correct_lines(f"MENU\n\n{PROSE}", LENIENT).text == PROSE
    assert correct_lines(f"{PROSE}MENU\n\n{PROSE}", LENIENT).text == f"{PROSE}\n{PROSE}"


FRAGMENTS = st.sampled_from(
    ["Sign in", "sign-in", "read more", "Read more...", "items in cart", "3 items in cart", "3", "likes", "a", "b c",
     "MENU", "Ä", "ß", "|", "»", "…", " ", "  ", "\t", "\r", "\n", "\n", "\n\n", "\0", "\u2028", "\ud800", "in",
     "The river runs past the old town"]
)  # fmt: skip


@settings(max_examples=500, deadline=None)
@given(
    parts=st.lists(FRAGMENTS | st.text(max_size=5), max_size=40),
    joint=st.sampled_from(["", " "]),
    upper=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_nothing_is_lost_and_twice_is_once(parts: list[str], joint: str, upper: float) -> None:
    text, rules = joint.join(parts), Lines(upper_case=upper)
    corrected = correct_lines(text, rules)
    assert put_back(corrected) == text
    assert len(corrected.text) + sum(len(piece) for _, piece, _ in corrected.pieces) == len(text)
    assert 0 <= corrected.share <= 1
    assert (corrected.failure is not None) == (corrected.share > 0.05)
    assert correct_lines(corrected.text, rules) == (corrected.text, [], 0.0, None)


@pytest.mark.parametrize(
    "text",
    ["", "\n" * 1000, " " * 10**6, "-" * 10**6, "- " * 500_000, "sign in " * 100_000, "1" * 10**6 + " likes",
     "A " * 10**6, "read more" + "." * 10**6, "x" + "\0" * 10**6, "a b\n" * 20_000, "MENU\n" + "\n" * 10**5],
)  # fmt: skip
def test_hostile_texts_are_corrected_and_nothing_is_lost(text: str) -> None:
    corrected = correct_lines(text, LENIENT)
    assert put_back(corrected) == text


def test_phrases_are_text_and_lists_may_be_empty() -> None:
    none = Lines(flagged_words=1.0, counters=[], at_start=[], at_end=["", " "], anywhere=["(a+)+", ".* b"])
    text = f"{PROSE}3 likes\nSign in here\nany line at all b\nthe (a+)+ was there\n"
    corrected = correct_lines(text, none)
    assert corrected.text == f"{PROSE}3 likes\nSign in here\nany line at all b\nthe  was there\n"
