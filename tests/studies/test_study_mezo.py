"""The study `mezo`: its world is what it says, its margins are what the rule says, its memory is counted right."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mickle.studies.mezo import margins, study
from mickle.studies.mezo_arms import peak_bytes
from mickle.studies.mezo_world import BAD, FIRST_WORD, GOOD, LENGTH, RIGHT, World, labelled, prompted


@pytest.fixture(scope="module")
def world() -> World:
    generator = np.random.default_rng(0)
    return World(0, np.arange(192) % 2, generator.normal(size=192), {})


def test_documents_have_two_moods(world: World) -> None:
    words, strengths = world.documents(1, 4000)
    assert words.shape == (4000, LENGTH)
    by_hand = [sum(world.strengths[w] for w in row if world.aspects[w] == 1) for row in words[:20]]
    assert strengths[:20, 1] == pytest.approx(by_hand)
    assert abs(np.corrcoef(strengths.T)[0, 1]) < 0.06  # the aspects tell nothing of each other
    agree = ((strengths.sum(1) > 0) == (strengths[:, 0] > 0)).mean()
    assert agree == pytest.approx(0.75, abs=0.03)  # of two independent equal parts, and what zero-shot can have
    assert np.array_equal(words, world.documents(1, 4000)[0])
    assert not np.array_equal(words, world.documents(2, 4000)[0])


def test_pretraining_ends_as_the_strengths_say(world: World) -> None:
    right = []
    for step in range(20):
        batch = world.pretraining_batch(step)
        words = batch["input_ids"][:, 1 : LENGTH + 1].numpy() - FIRST_WORD
        good = world.strengths[words].sum(1) > 0
        right += [int(end) == (GOOD if g else BAD) for end, g in zip(batch["labels"][:, -1], good)]
    assert np.mean(right) == pytest.approx(RIGHT, abs=0.03)


def test_labels_ask_for_one_aspect(world: World) -> None:
    batch = world.test(500, bare=False)
    words = batch["input_ids"][:, 1 : LENGTH + 1].numpy() - FIRST_WORD
    first = (world.strengths[words] * (world.aspects[words] == 0)).sum(1) > 0
    assert batch["labels"].tolist() == first.astype(int).tolist()
    assert batch["candidates"][0].tolist() == [BAD, GOOD]
    bare = labelled(words, first.astype(np.int64), bare=True)
    assert bare["input_ids"].shape[1] == prompted(words).shape[1] - 2
    few = [world.batch(16, False, 32, step) for step in range(8)]
    seen = {tuple(row) for batch in few for row in batch["input_ids"].tolist()}
    assert 16 < len(seen) <= 32


def test_margins() -> None:
    found = margins({
        "zero-shot": {"accuracy": 0.73}, "adam": {"accuracy": 0.97}, "mezo": {"accuracy": 0.96},
        "accuracy": {"accuracy": 0.80}, "fzoo": {},
    })  # fmt: skip
    assert found["mezo"]["margin"] == pytest.approx(0.01)
    assert found["accuracy"]["margin"] == pytest.approx(-0.15)
    assert found["zero-shot"]["margin"] == 0
    assert (found["adam"]["graced"], found["mezo"]["graced"]) == (0.97, pytest.approx(0.98))
    assert found["fzoo"] == {}
    assert margins({"mezo": {"accuracy": 0.9}}) == {"mezo": {"accuracy": 0.9}}


def test_memory_is_counted() -> None:
    kept = torch.nn.Linear(100, 100, bias=False)

    def work() -> None:
        a = torch.zeros(1000)  # 4,000 bytes
        b = a + 1  # 4,000 more
        del a
        del b
        torch.zeros(1500)  # fewer than both

    assert peak_bytes(work, kept) == 40_000 + 8_000


def test_every_arm_has_as_many_trials() -> None:
    assert {len(arm.grid) for arm in study.arms} == {3}
