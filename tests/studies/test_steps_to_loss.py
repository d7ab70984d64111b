"""Steps to another arm's loss, by pencil."""

import pytest

from mickle.studies.steps_to_loss import FARTHEST, steps_ratio, with_steps


def test_steps_ratio_by_pencil() -> None:
    # 3.0 after S/2 and 2.8 after S: a doubling gains .2, so 2.8 takes S, 2.9 half a doubling less, 2.6 twice S.
    assert steps_ratio(3.0, 2.8, 2.8) == 1
    assert steps_ratio(3.0, 2.8, 2.9) == pytest.approx(2**-0.5)
    assert steps_ratio(3.0, 2.8, 2.6) == pytest.approx(2)
    assert steps_ratio(3.0, 2.8, 0.1) == FARTHEST
    assert steps_ratio(2.8, 2.9, 2.7) == FARTHEST  # longer was worse: no line leads there
    assert steps_ratio(2.8, 2.9, 2.9) == 1  # already there
    assert steps_ratio(3.0, 2.8, 9.0) == 1 / FARTHEST


def test_a_baseline_needs_its_own_steps_and_arms_without_two_runs_are_left() -> None:
    table = {
        "base": {"nats": 2.0, "nats_at_half": 2.2, "budget": 100},
        "better": {"nats": 1.9, "nats_at_half": 2.0, "budget": 100},
        "short": {"nats": 2.1, "budget": 100},
    }
    found = with_steps(table, "base", "needed", loss="nats")
    assert found["base"]["needed"] == 100
    assert found["better"] == {**table["better"], "needed": pytest.approx(50)}
    assert found["short"] == table["short"]
    assert with_steps(table, "none such") is table
