"""Golden runs (RELIABILITY 41): a change of these losses is a decision, to be told in the commit message.

Stored are the losses of steps 1, 10 and 50 to 6 digits. A run in float64 arithmetic must agree as well, so they do not
hang on rounding, and neither on the number of threads or the machine.
"""

from __future__ import annotations

import pytest
import torch
from tiny_training import CASES, losses, still, train

from mickle.training.objectives import Batch

GOLDEN = {
    ("next_token", "adamw"): (2.887162, 2.572280, 2.623766),
    ("next_token", "sophia_g"): (2.887162, 2.597109, 2.527529),
    ("next_token", "sophia_h"): (2.887162, 2.593773, 2.533832),
    ("masked_token", "adamw"): (2.802293, 2.507251, 2.489081),
    ("masked_token", "sgd"): (2.802293, 2.500388, 2.424412),
    ("classification", "adamw"): (1.073738, 0.825860, 0.745809),
    ("classification", "sophia_g"): (1.073738, 0.783407, 0.671686),
    ("classification", "sgd"): (1.073738, 0.529677, 0.375619),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("case", "optimizer"), GOLDEN)
def test_golden_run(case: str, optimizer: str, dtype: torch.dtype) -> None:
    def batches(step: int) -> Batch:
        batch = CASES[case].batches(step)
        return {name: t.to(dtype) if t.is_floating_point() else t for name, t in batch.items()}

    _, events = train(case, optimizer, model=still(case).to(dtype), steps=50, batches=batches)
    told = losses(events)
    assert [told[0], told[9], told[49]] == pytest.approx(GOLDEN[case, optimizer], rel=1e-5)
