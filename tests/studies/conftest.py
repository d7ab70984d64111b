"""What tests of the studies of compressed weights share; sentinels.py can be imported by tests here."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parents[1] / "regression"))  # for `gaussian_theory`


@pytest.fixture
def tiny_bases(tmp_path: Path) -> Iterator[Path]:
    """A cache home of its own, and a corpus of a few modules, so that a tiny base takes seconds to make."""
    from sentinels import tiny_base

    with tiny_base(tmp_path):
        yield tmp_path
