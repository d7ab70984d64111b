"""Labelled rows into prompts with words: tokens as a person would write them, and bad rows said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from mickle.config import validate
from mickle.data.label_batches import EncodedLabels, LabelBatches, batch_of, encode_labelled
from mickle.data.label_prompts import LabelledText, LabelPrompt, read_labelled
from mickle.data.tokenizer import TextTokenizer
from mickle.errors import UsageError

WORDS = ["<s>", "</s>", "<mask>", "?", "good", "bad", "it", "was", "fine", "film", "very", "not", "so", "."]
PROMPT = LabelPrompt(template="{text} it was {label}", labels=["bad", "good"])


@pytest.fixture
def tokenizer() -> TextTokenizer:
    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="?"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    return TextTokenizer(plain, 0, 1, {}, 2)


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


def ids(text: str) -> tuple[int, ...]:
    return tuple(WORDS.index(word) for word in text.split())


def test_reading(tmp_path: Path) -> None:
    rows = [{"text": f"film {i}", "label": i % 2} for i in range(20)]
    found = read_labelled(write(tmp_path / "a.jsonl", [*rows, {"text": "film", "label": 7}, {"label": 1}]), PROMPT)
    assert [e.label for e in found.examples] == [0, 1] * 10
    assert found.examples[3].before == "film 3 it was "
    assert found.examples[3].where.endswith("a.jsonl:4")
    assert found.dropped == {"label without a word": 1, "no field 'text'": 1}
    said = "\n".join(found.lines())
    assert "by class: 10, 10" in said
    assert "a.jsonl:21" in said and "not used" not in said
    weighted = [{**row, "weight": 0.5, "id": ""} for row in rows]
    assert list(read_labelled(write(tmp_path / "b.jsonl", weighted), PROMPT).lines())[-1] == "not used: weight (20)"


@pytest.mark.parametrize(
    ("labels", "value", "expected"),
    [
        (["bad", "good"], 1, 1),
        (["bad", "good"], "1", 1),
        (["bad", "good"], True, 1),
        (["bad", "good"], "good", 1),
        (["bad", "good"], 2, None),
        ({"neg": "bad", "pos": "good"}, "pos", 1),
        ({"neg": "bad", "pos": "good"}, " neg ", 0),
        ({"neg": "bad", "pos": "good"}, "good", None),
        ({"0": "bad", "1": "good"}, 0, 0),
    ],
)
def test_classes(labels: Any, value: Any, expected: int | None) -> None:
    assert LabelPrompt(labels=labels).class_of(value) == expected


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"labels": ["a"]}, "at least two"),
        ({"labels": ["a", "a"]}, "at least two"),
        ({"labels": ["a", " "]}, "at least two"),
        ({"labels": ["a", "b"], "template": "{text}"}, "exactly once"),
        ({"labels": ["a", "b"], "template": "{label}{label}{text}"}, "exactly once"),
        ({"labels": ["a", "b"], "template": "it was {label}"}, "names no field"),
        ({}, "required"),
    ],
)
def test_settings_that_cannot_be(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        validate(LabelPrompt, given)


@pytest.mark.parametrize(
    "row",
    [
        "{broken\n",
        {"text": "", "label": 1},
        {"text": ["a"], "label": 1},
        {"text": "a"},
        {"text": "a", "label": "x"},
        {"label": 1},
        "[1]\n",
    ],
)
def test_bad_rows_are_refused_above_a_tenth(row: Any, tmp_path: Path) -> None:
    good = [{"text": "film", "label": i % 2} for i in range(8)]
    path = write(tmp_path / "a.jsonl", [*good, row])
    with pytest.raises(UsageError, match="1 of 9 rows cannot be used") as caught:
        read_labelled(path, PROMPT)
    assert "a.jsonl:9" in str(caught.value)
    assert len(read_labelled(path, PROMPT, most_bad=0.2).examples) == 8


def test_one_class_is_nothing_to_learn(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one class"):
        read_labelled(write(tmp_path / "a.jsonl", [{"text": "film", "label": 1}] * 5), PROMPT)


def test_a_row_cannot_reach_beyond_itself() -> None:
    """What stands in a row is text, braces too; a template reads fields and nothing of an object."""
    assert (
        PROMPT.render({"text": "{label} {0} {text.__class__}", "label": 1})[0] == "{label} {0} {text.__class__} it was "
    )


def test_causal_tokens(tokenizer: TextTokenizer) -> None:
    examples = [LabelledText("very fine film it was ", "", 1, "a:1"), LabelledText("not so it was ", "", 0, "a:2")]
    found = encode_labelled(examples, PROMPT, tokenizer, longest=20)
    assert found.tokens == (ids("<s> very fine film it was"), ids("<s> not so it was"))
    assert found.words == ((ids("bad"), ids("good")),) * 2
    assert found.single
    batch = batch_of(found, [0, 1])
    assert batch["input_ids"].tolist() == [list(found.tokens[0]), [*found.tokens[1], 0]]
    assert batch["answers"].nonzero().tolist() == [[0, 5], [1, 4]]
    assert batch["documents"].tolist() == [[0] * 6, [0] * 5 + [-1]]
    assert batch["labels"].tolist() == [1, 0]


def test_words_of_several_tokens(tokenizer: TextTokenizer) -> None:
    prompt = LabelPrompt(template="{text} it was {label}", labels=["not so good", "good"])
    found = encode_labelled([LabelledText("film it was ", "", 1, "a:1")], prompt, tokenizer, longest=20)
    batch = batch_of(found, [0])
    assert batch["input_ids"].tolist() == [[[*ids("<s> film it was not so")], [*ids("<s> film it was"), 0, 0]]]
    assert batch["scored"].tolist() == [[[-100] * 3 + [*ids("not so good")], [-100] * 3 + [*ids("good"), -100, -100]]]


def test_masked_tokens(tokenizer: TextTokenizer) -> None:
    prompt = LabelPrompt(template="{text} was {label} .", labels=["bad", "good"])
    found = encode_labelled([LabelledText("film was ", " .", 1, "a:1")], prompt, tokenizer, longest=20, causal=False)
    assert found.tokens == (ids("<s> film was <mask> . </s>"),)
    assert batch_of(found, [0])["answers"].nonzero().tolist() == [[0, 3]]


def test_long_texts_lose_their_beginning(tokenizer: TextTokenizer) -> None:
    found = encode_labelled([LabelledText("very very very film it was ", "", 1, "a:1")], PROMPT, tokenizer, longest=6)
    assert found.tokens == (ids("<s> very film it was"),)
    with pytest.raises(UsageError, match="no room"):
        encode_labelled([LabelledText("film it was ", "", 1, "a:1")], PROMPT, tokenizer, longest=2)


def test_prompts_that_do_not_fit_the_model(tokenizer: TextTokenizer) -> None:
    example = [LabelledText("film ", " .", 1, "a:1")]
    after = LabelPrompt(template="{text} {label} .", labels=["bad", "good"])
    with pytest.raises(UsageError, match="text follows"):
        encode_labelled(example, after, tokenizer, longest=20)
    with pytest.raises(UsageError, match="a mask holds one"):
        encode_labelled(
            example,
            LabelPrompt(template="{text} {label} .", labels=["not so", "good"]),
            tokenizer,
            longest=20,
            causal=False,
        )
    with pytest.raises(UsageError, match="same tokens"):
        encode_labelled(
            example, LabelPrompt(template="{text} {label}", labels=["unknown", "strange"]), tokenizer, longest=20
        )
    with pytest.raises(UsageError, match="no mask token"):
        encode_labelled(example, after, TextTokenizer(tokenizer.tokenizer, 0, 1, {}), longest=20, causal=False)


def test_batches_are_a_function_of_seed_and_step() -> None:
    tokens = tuple((0, i + 3) for i in range(10))
    encoded = EncodedLabels(tokens, (((4,), (5,)),) * 10, (0, 1) * 5, None)
    batches = LabelBatches(encoded, 4, seed=1)
    seen = [int(row[1]) for step in range(5) for row in batches(step)["input_ids"]]
    assert sorted(seen[:10]) == sorted(seen[10:]) == [i + 3 for i in range(10)]
    assert seen[:10] != seen[10:]
    assert LabelBatches(encoded, 4, seed=1)(3)["input_ids"].tolist() == batches(3)["input_ids"].tolist()
    assert LabelBatches(encoded, 4, seed=2)(3)["input_ids"].tolist() != batches(3)["input_ids"].tolist()
