"""Fixtures that several test files share."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Two toy verbs, `write` and `count`, known to the command line while the test runs."""
    from mickle import verbs

    spec = importlib.util.spec_from_file_location("mickle_toy", Path(__file__).parent / "toy.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "mickle_toy", module)
    spec.loader.exec_module(module)
    monkeypatch.setitem(verbs.STEPS, "write", ("mickle_toy:Write", "words"))
    monkeypatch.setitem(verbs.STEPS, "count", ("mickle_toy:Count", "letters"))
    return module
