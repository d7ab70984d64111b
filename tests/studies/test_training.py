"""The studies' one trainer: what it tells of a run that ends, of one that is good enough, and of one that blows up."""

from functools import partial

import numpy as np
import pytest
import torch

from mickle.errors import NumericError
from mickle.studies.training import Course, in_epochs, small_decoder, train
from mickle.training.objectives import next_token

SIZES = {"width": 8, "layers": 1, "heads": 2, "ffn_width": 8, "steps": 99}
BATCH = {"input_ids": torch.arange(6)[None], "labels": torch.arange(1, 7)[None]}


def run(rate: float = 1e-2, **options: object) -> Course:
    model = small_decoder(SIZES, 8, 6, seed=0)
    values = iter([{"loss": 3.0}, {"loss": 2.0}, {"loss": 1.0}])
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    given = {"steps": 6, "evaluate": lambda model: next(values), "evaluate_every": 2, "clip_norm": None, **options}
    return train(model, next_token, lambda step: BATCH, optimizer, **given)  # type: ignore[arg-type]


def test_a_run_tells_its_curve_and_all_its_losses() -> None:
    course = run()
    assert (course.evaluated, course.curve("loss")) == ([2, 4, 6], [3.0, 2.0, 1.0])
    assert len(course.losses) == 6
    assert course.losses[-1] < course.losses[0]
    assert course.seconds > 0
    assert not course.diverged


def test_a_run_ends_where_it_is_good_enough() -> None:
    course = run(until=lambda values: values["loss"] <= 2)
    assert (course.evaluated, len(course.losses)) == ([2, 4], 4)


def test_a_run_that_blows_up_is_the_worst_or_an_error() -> None:
    diverged = run(rate=1e30, worst={"loss": 99.0}, on_bad_numbers="skip")
    assert diverged.diverged
    assert (diverged.evaluated[-1], diverged.curve("loss")[-1]) == (6, 99.0)
    assert Course(measured=[{"loss": 1.0, "right": 0.5}, {"loss": 9.0}]).curve("right") == [0.5]
    with pytest.raises(NumericError):
        run(rate=1e30)


def test_every_sample_comes_once_an_epoch_in_an_order_of_its_own() -> None:
    draw = partial(in_epochs, rows=4, count=6, seed=5)
    samples = np.concatenate([draw(step) for step in range(3)])
    assert sorted(samples[:6]) == sorted(samples[6:]) == list(range(6))
    assert samples[:6].tolist() != samples[6:].tolist()
    later = np.concatenate([draw(step, first=1) for step in range(3)])
    assert later[:6].tolist() == samples[6:].tolist()
