"""Splitting, scoring, comparing: each held to its definition, worked out another way."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tuning_folders as made
from hypothesis import given
from hypothesis import strategies as st

from mickle.data.conversations import Example
from mickle.data.example_batches import ExampleBatches, rows_of
from mickle.errors import UsageError
from mickle.models.folder import open_model
from mickle.training.objectives import next_token, trained_tokens
from mickle.tuning import measures, outcome
from mickle.tuning.data_files import DataFile
from mickle.tuning.methods import Full, Lora, Qlora
from mickle.tuning.mezo import LowRank, Mezo
from mickle.tuning.task import Sources, split
from mickle.tuning.tune_data import ExampleTask, read_task


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.decoder_folder(tmp_path_factory.mktemp("measures") / "model")


@pytest.fixture(scope="module")
def task(folder: Path) -> ExampleTask:
    data = made.chats(folder.parent / "chats.jsonl")
    return read_task(Sources([DataFile(path=data)]), folder, made.tokenizer(), made.LENGTH, True)


def test_a_system_turn_that_all_examples_share_is_no_overlap(folder: Path, tmp_path: Path) -> None:
    shared = "You answer in one short word and never say more than what was asked of you here."
    rows = [
        [{"role": r, "content": c} for r, c in (("system", shared), ("user", f"w{i}"), ("assistant", f"a{i}"))]
        for i in range(40)
    ]
    data = tmp_path / "chats.jsonl"
    data.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    found = read_task(Sources([DataFile(path=data)]), folder, made.tokenizer(), 512, True)
    assert found.overlap == {"exact": 0, "near": 0}
    assert found.heldout_examples


def examples(texts: list[str]) -> list[Example]:
    return [Example("text", text=text) for text in texts]


@given(
    texts=st.lists(st.text("ab ", min_size=1, max_size=4), max_size=30),
    share=st.none() | st.floats(0, 0.99),
    seed=st.randoms(),
)
def test_a_text_is_never_on_both_sides_and_order_does_not_matter(
    texts: list[str], share: float | None, seed: Any
) -> None:
    words = {" ".join(text.split()) for text in texts}
    if share != 0 and len(words) < 2:
        with pytest.raises(UsageError):
            split(examples(texts), share, "d", Example.own_text)
        return
    training, heldout = split(examples(texts), share, "d", Example.own_text)
    said = [{" ".join(e.text.split()) for e in side} for side in (training, heldout)]
    assert not said[0] & said[1]
    assert said[0] | said[1] == words
    assert bool(heldout) == (share != 0)
    assert training or not texts
    seed.shuffle(texts)
    again = split(examples(texts), share, "d", Example.own_text)[1]
    assert {" ".join(e.text.split()) for e in again} == said[1]


def test_the_objective_is_next_token_where_labels_are(folder: Path, task: ExampleTask) -> None:
    """The same sum, count and gradients as the loss over all positions, of which most have no label."""
    model = open_model(folder)
    batch = ExampleBatches(task.training, made.LENGTH, 3)(0)
    assert 0 < (batch["labels"] >= 0).float().mean() < 0.6
    found: list[Any] = []
    for objective in (trained_tokens, next_token):
        model.zero_grad()
        total, count = objective(model, batch)
        total.backward()
        found.append((total.detach(), count, [p.grad.clone() for p in model.parameters()]))
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-6)
    assert found[0][1] == found[1][1]
    for ours, theirs in zip(found[0][2], found[1][2], strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_each_example_has_the_loss_it_has_alone(folder: Path, task: ExampleTask) -> None:
    """Rows of many lengths against one example at a time by cross-entropy; and their sum against the packed batches."""
    model = open_model(folder)
    scores = task.scores(model, made.LENGTH)
    assert len(scores) == len(task.heldout.tokens) == 4
    for tokens, trained, row in zip(task.heldout.tokens, task.heldout.trained, scores, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor(tokens)[None])[0, :-1]
        wanted = torch.tensor(np.flatnonzero(trained[1:]))
        targets = torch.tensor(tokens)[1:][wanted]
        nats = torch.nn.functional.cross_entropy(logits[wanted], targets, reduction="sum")
        right = (logits[wanted].argmax(-1) == targets).sum()
        assert row == pytest.approx([float(nats), len(wanted), int(right)], rel=1e-5)
    with torch.no_grad():
        sums = [next_token(model, rows_of(task.heldout, rows)) for rows in ([[0], [1, 2]], [[3]])]
    assert scores[:, 0].sum() == pytest.approx(sum(float(total) for total, _ in sums), rel=1e-5)
    assert scores[:, 1].sum() == sum(int(count) for _, count in sums)
    some = task.scores(model, made.LENGTH, most=1)
    assert some == pytest.approx(scores[:1])


def test_a_sample_begins_where_the_answer_does(folder: Path, task: ExampleTask) -> None:
    rows = task.samples(open_model(folder), 2, (), made.LENGTH)
    assert [row["prompt"].endswith("Assistant:\n") for row in rows] == [True, True]
    assert rows[0]["reference"].startswith("the ")


def test_scores_survive_json() -> None:
    scores = np.array([[1.5, 2.0, np.nan], [0.1, 1.0, 1.0]])
    again = measures.from_lists(json.loads(json.dumps(measures.as_lists(scores))))
    np.testing.assert_array_equal(again, scores)
    assert measures.from_lists([]).shape == (0, 3)


def test_before_and_after_by_hand() -> None:
    """Two texts of 1 and 3 tokens: means weigh tokens, and the interval covers only what resampling pairs can give."""
    before, after = np.array([[2.0, 1, 0], [9.0, 3, 1]]), np.array([[1.0, 1, 1], [6.0, 3, 3]])
    found = outcome.compared(before, after, 0)
    assert (found["before"], found["after"], found["difference"]) == (11 / 4, 7 / 4, -1)
    assert found["interval"] == [-1, -1]  # each text fell by exactly one nat a token
    assert (found["accuracy_before"], found["accuracy_after"]) == (0.25, 1.0)
    unequal = outcome.compared(before, np.array([[2.0, 1, 1], [6.0, 3, 3]]), 0)
    assert unequal["interval"] == [-1, 0]


def test_the_interval_of_paired_differences_covers_the_truth() -> None:
    """80 worlds of 40 texts that fall by .1 nats on average: near 95 % of intervals hold it, and pairing is what makes
    them narrow: texts differ ten times as much from each other.
    """
    draw = np.random.default_rng(0)
    held, widths = 0, []
    for world in range(80):
        tokens = draw.integers(20, 60, 40).astype(float)
        level = draw.normal(3, 1, 40)
        change = draw.normal(-0.1, 0.1, 40)
        before = np.stack([level * tokens, tokens, np.full(40, np.nan)], 1)
        after = np.stack([(level + change) * tokens, tokens, np.full(40, np.nan)], 1)
        low, high = outcome.compared(before, after, world)["interval"]
        held += low <= -0.1 <= high
        widths.append(high - low)
    assert 0.87 <= held / 80 <= 1
    assert np.mean(widths) < 0.08


@pytest.mark.parametrize(("low", "warned"), [(0.03, True), (0.02, False), (-0.1, False)])
def test_only_a_clear_loss_on_general_text_is_a_warning(low: float, warned: bool) -> None:
    assert bool(outcome.warnings({"general": {"interval": [low, 0.5], "difference": 0.2}}, 4, Full())) is warned
    assert outcome.warnings({"general": None, "task": None}, 4, Full()) == []


@pytest.mark.parametrize(("low", "warned"), [(0.001, True), (0.0, False), (-0.1, False)])
def test_a_task_that_became_worse_is_a_warning(low: float, warned: bool, tmp_path: Path) -> None:
    """Wherever the whole interval is above 0, on the screen and in the report."""
    task = {"before": 5.8, "after": 7.6, "difference": 1.8, "interval": [low, 2.0], "texts": 3, "tokens": 9}
    said = outcome.warnings({"task": task, "general": None, "unit": "label"}, 4, Full())
    assert [message[:64] for message in said] == [
        "the tuning made the task worse: loss 5.8000 -> 7.6000 nats a lab"
    ] * warned
    made.write_rows(tmp_path / "samples.jsonl", [])
    assert ("task worse" in outcome.tuning_section(tmp_path, {"warnings": said}).lead) is warned


@pytest.mark.parametrize(
    ("method", "said", "unsaid"),
    [
        (Full(), "--method lora", "rank"),
        (Lora(), "--method.rank", "--method lora"),
        (Qlora(), "--method.rank", "--method lora"),
        (Mezo(), "--method.parameters lora", "epochs"),
        (Mezo(parameters=LowRank()), "fewer steps", "--method"),
    ],
)
def test_the_warning_names_what_the_method_can_change(method: Any, said: str, unsaid: str) -> None:
    (message,) = outcome.warnings({"general": {"interval": [0.3, 0.5], "difference": 0.4}}, 4, method)
    assert said in message
    assert unsaid not in message


def test_the_figure_and_the_table_say_both(tmp_path: Path) -> None:
    part = partial(dict, before=2.0, after=1.5, difference=-0.5, texts=3, tokens=40, interval=[-0.6, -0.4])
    results = {"task": part(), "general": None, "unit": "label", "memory": {"peak_bytes": 1, "forecast_bytes": 2}}
    metrics = tmp_path / "metrics.jsonl"
    events = [{"event": "trained", "step": s, "loss": 2.0 - s} for s in (1, 2)]
    made.write_rows(metrics, [*events, {"event": "evaluated", "step": 2, "values": {"heldout_loss": 1.0}}])
    outcome.write(tmp_path, results, metrics, [{"prompt": "lone \udc80", "text": "x"}])
    assert "| task, held out | 2.0000 | 1.5000 | -0.5000 |" in (tmp_path / "table.md").read_text()
    assert "general" not in (tmp_path / "table.md").read_text()
    assert "before" in (tmp_path / "tune.svg").read_text()
    assert json.loads((tmp_path / "samples.jsonl").read_text())["prompt"] == "lone ?"
