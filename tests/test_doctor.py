from __future__ import annotations

import pytest

from mickle import doctor as page
from mickle.kernels import components, losses


def test_doctor_names_machine_speed_and_sound_kernels() -> None:
    said = page.doctor()
    for expected in ("machine ", "versions ", "torch 2.", "GFLOP/s float32", "GB/s copy"):
        assert expected in said
    assert said.count("as their plain twins") == 6
    assert "OFF" not in said


def test_doctor_finds_a_kernel_that_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    right = losses._product
    monkeypatch.setattr(losses, "_product", lambda *given, **named: right(*given, **named) * 1.01)
    assert "OFF from their plain twins" in page._kernels()[0]


def test_doctor_finds_a_curation_kernel_that_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(components, "connected", lambda left, right, count: left)
    assert "OFF from their plain twins" in page._kernels()[2]
