"""The study's own arithmetic, its task, its batches, and one small cell of every arm on a tiny base."""

import ast
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from mickle.studies import base_model, docstrings
from mickle.studies import qlora as page
from mickle.studies.analysis import compare_all
from mickle.studies.declaration import Cell, problems
from mickle.studies.qlora import study

TINY = base_model.Base("tiny", 40_000, 270, 32, 256, 12, 4e-3)
EXAMPLES = tuple(
    docstrings.Described(f'def function_{i}(x, y):\n    """', f'Return x * {i} + y ** {i % 7}."""') for i in range(40)
)


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task of a few examples: parsing three packages takes ten seconds."""
    monkeypatch.setattr(docstrings, "described_functions", lambda: (EXAMPLES[:30], EXAMPLES[30:]))
    page.encoded.cache_clear()
    page.tuned.cache_clear()


def small(arm: str, **values: object) -> Cell:
    sizes = {
        **page.SIZES,
        "base": asdict(TINY),
        "bases": 1,
        "steps": 4,
        "rows": 3,
        "heldout_examples": 8,
        "heldout_pages": 4,
    }
    return Cell(arm, "default", {"rate": 1}, 0, {**sizes, **values})


def test_the_declaration_is_sound_and_fair() -> None:
    assert problems(study) == []
    assert {arm.name for arm in study.arms} == set(page.ARMS)
    assert {len(rates) for rates in page.RATES.values()} == {len(page.GRID)}
    assert study.scales["full"].seeds == page.SIZES["bases"]  # every seed has a base of its own


def test_costs_by_pencil() -> None:
    names = ("lora", "full", "int3", "nf4-dq")
    losses = {"lora": 2.0, "full": 1.9, "int3": 2.4, "nf4-dq": 2.05}
    table = {name: {"loss": losses[name], "loss_before": 3.0, "budget": 1} for name in names}
    found = page.costs(table)
    assert found["nf4-dq"]["cost"] == pytest.approx(0.125)  # .05 of .4 nats
    assert found["lora"]["cost"] == 0
    assert found["int3"]["cost"] == page.ALLOWED  # what is allowed stands in the control's place
    assert found["int3"]["cost_nats"] == pytest.approx(0.4)
    assert found["nf4-dq"]["gained"] == pytest.approx(0.95 / 1.1)
    assert found["full"]["gained"] == pytest.approx(1)
    tuning = {"lora": {"score": 1.0}}
    assert page.costs(tuning) is tuning


def test_where_three_bits_cost_nothing_shares_are_of_the_least_cost() -> None:
    losses = {"lora": 2.0, "full": 1.9, "int3": 1.99, "nf4-dq": 2.0 + page.LEAST_COST}
    table = {name: {"loss": loss, "loss_before": 3.0} for name, loss in losses.items()}
    assert page.costs(table)["nf4-dq"]["cost"] == pytest.approx(1)


def test_only_completions_are_trained() -> None:
    first, second = (np.array([1, 5, 6, 7, 2]), 3), (np.array([1, 8, 2]), 1)
    rows = docstrings.padded([first, second])
    assert rows["input_ids"].tolist() == [[1, 5, 6, 7], [1, 8, 0, 0]]
    assert rows["labels"].tolist() == [[-100, -100, 7, 2], [8, 2, -100, -100]]


def test_every_example_comes_once_an_epoch_in_another_order() -> None:
    examples = [(np.array([1, place, 2]), 1) for place in range(10, 22)]
    epochs = [
        [row for step in steps for row in page.batch(examples, 7, 4, step)["input_ids"][:, 1].tolist()]
        for steps in (range(3), range(3, 6))
    ]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10, 22))
    assert epochs[0] != epochs[1]
    assert page.batch(examples, 8, 4, 0)["input_ids"].tolist() != page.batch(examples, 7, 4, 0)["input_ids"].tolist()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            'def f(a, *, b=1) -> int:\n    """Count the words of a text.\n\n    More."""',
            ('def f(a, *, b=1) -> int:\n    """', 'Count the words of a text."""'),
        ),
        ('def f():\n    """Too short"""', None),
        ('def f():\n    """>>> a session, not a line of text"""', None),
        ("def f():\n    return 1", None),
    ],
)
def test_examples_by_pencil(source: str, expected: tuple[str, str] | None) -> None:
    (node,) = ast.parse(source).body
    assert isinstance(node, ast.FunctionDef)
    found = docstrings.described(node)
    assert (None if found is None else (found.prompt, found.completion)) == expected


def test_sides_share_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docstrings, "PACKAGES", ("safetensors", "jinja2"))
    training, heldout = docstrings.described_functions.__wrapped__()
    assert len(training) > 100
    assert len(heldout) > 5
    assert not {e.completion for e in training} & {e.completion for e in heldout}
    assert all(e.completion.endswith('"""') for e in (*training, *heldout))


@pytest.mark.usefixtures("tiny_bases", "task")
def test_a_small_cell_of_every_arm_measures_what_is_declared(tmp_path: Path) -> None:
    table = {name: page.run_cell(small(name), tmp_path) for name in page.ARMS}
    for found in page.costs(table).values():
        assert {"loss", "accuracy", "loss_before", "rounding_z", "rounding_cost", "cost", "gained", "budget"} <= set(
            found
        )
    rows = compare_all(study, {("default", seed): table for seed in range(2)})
    assert len(rows) == len(study.comparisons)
    assert table["lora"]["rounding_cost"] == 0
    assert table["int3"]["rounding_cost"] != table["nf4"]["rounding_cost"] != 0
    assert table["nf4-dq-none"]["loss"] == table["nf4-dq-none"]["loss_before"] == table["nf4-dq"]["loss_before"]
    assert table["nf4-dq"]["loss"] < table["nf4-dq"]["loss_before"]
    assert table["nf4"]["bits_per_weight"] == 4.5
    assert 4.125 < table["nf4-dq"]["bits_per_weight"] < 4.2
    assert table["nf4-dq-r4"]["trained"] * 16 == table["nf4-dq-r64"]["trained"]
    assert table["full"]["trained"] > table["lora"]["trained"] > table["nf4-dq-qv"]["trained"]


@pytest.mark.usefixtures("tiny_bases", "task")
def test_in_the_tuning_phase_adapters_share_the_run_over_the_unrounded_base(tmp_path: Path) -> None:
    lora, nf4, qv = (page.run_cell(small(arm, tuning=True), tmp_path) for arm in ("lora", "nf4-dq", "nf4-dq-qv"))
    assert lora == nf4
    assert lora["score"] != qv["score"]
    assert page.run_cell(small("nf4-dq-none", tuning=True), tmp_path)["budget"] == 1
