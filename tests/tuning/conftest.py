"""Puts `tuning_folders` (small model folders and examples) where the tests of this folder can import it."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs without their figure and without measuring the machine's speed, each a good part of so short a run."""
    from mickle import machine
    from mickle.tuning import outcome

    monkeypatch.setattr(machine, "matmul_flops", lambda precision: 1e10)
    monkeypatch.setattr(outcome, "draw", lambda results, metrics: "<svg></svg>")
