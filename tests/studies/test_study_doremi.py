"""The study's worlds, its arms' weights and its targets; and one small cell of every arm."""

import numpy as np
import pytest

from mickle.studies import domains
from mickle.studies import doremi as page
from mickle.studies.declaration import Cell, problems
from mickle.studies.doremi import study

SMALL = {
    **page.FULL, "width": 16, "layers": 1, "length": 16, "rows": 6, "steps": 6, "proxy_width": 16, "proxy_layers": 1,
    "proxy_rows": 12, "proxy_steps": 5, "held_out_rows": 4,
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def little_text():
    """The real domains from a few files each, made once."""
    every = domains.files_of
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(domains, "MOST_DOCUMENTATION", 20_000)
        patch.setattr(domains, "MOST_BYTES", 64_000)
        patch.setattr(domains, "files_of", lambda package, pattern: every(package, pattern)[:40])
        for cached in (domains.corpus, domains.held_out_windows):
            cached.cache_clear()
        yield
    for cached in (domains.corpus, domains.held_out_windows):
        cached.cache_clear()


def cell(arm: str, world: str = "planted") -> Cell:
    return Cell(arm, world, {}, 0, SMALL)


def test_the_declaration_is_sound() -> None:
    assert problems(study) == []
    assert study.headline.worlds == ("planted",)
    for values in (page.QUICK, page.FULL):
        models = [page.decoder(Cell("doremi", "planted", {}, 0, values), which) for which in ("", "proxy_")]
        large, small = (sum(p.numel() for p in model.parameters()) for model in models)
        assert small <= large / 4


def test_worlds_and_their_reference_weights() -> None:
    assert domains.domains_of("planted") == sorted(domains.domains_of("planted"))
    assert domains.reference_weights("planted") == (0.2, 0.15, 0.2, 0.15, 0.15, 0.15)
    natural = domains.reference_weights("natural")
    sizes = [domains.corpus("")[name][2] for name in domains.REAL]
    assert natural == pytest.approx([size / sum(sizes) for size in sizes])


def test_held_out_bytes_are_other_pieces() -> None:
    data = np.random.default_rng(1).integers(0, 256, 11 * domains.PIECE, dtype=np.uint8)
    training, held_out, size = domains.divided(data.tobytes())
    assert size == len(data)
    assert np.array_equal(
        held_out, np.concatenate([data[: domains.PIECE], data[10 * domains.PIECE :]])[: domains.MOST_BYTES]
    )
    assert np.array_equal(training, data[domains.PIECE : 10 * domains.PIECE][: domains.MOST_BYTES])


def test_weights_that_need_no_proxy() -> None:
    assert page.weights_of(cell("uniform"))["weights"] == pytest.approx([1 / 6] * 6)
    by_hand = page.weights_of(cell("by-hand"))["weights"]
    assert by_hand == pytest.approx([0, 0.25, 0, 0.25, 0.25, 0.25])
    assert page.weights_of(cell("by-hand", "natural"))["weights"] == pytest.approx(domains.reference_weights("natural"))


def test_the_baseline_needs_its_own_steps() -> None:
    table = {
        "reference": {"mean_real": 2.0, "mean_real_at_half": 2.2, "budget": 100},
        "doremi": {"mean_real": 1.9, "mean_real_at_half": 2.0, "budget": 100},
    }
    assert study.derive is not None
    found = study.derive(table)
    assert found["reference"]["steps_to_target"] == 100
    assert found["doremi"]["steps_to_target"] == pytest.approx(50)


@pytest.mark.parametrize("arm", [arm.name for arm in study.arms])
def test_a_small_cell_of_every_arm(arm: str) -> None:
    measured = page.run_cell(cell(arm), None)  # type: ignore[arg-type]
    assert {c.measure for c in study.comparisons} - {"steps_to_target"} <= set(measured)
    assert sum(measured["weights"]) == pytest.approx(1)
    assert measured["worst_real"] >= measured["mean_real"] > 0
    by_domain = dict(zip(domains.domains_of("planted"), measured["losses_by_domain"], strict=True))
    assert measured["mean_all"] == pytest.approx(sum(by_domain.values()) / 6)
    assert measured["mean_real"] == pytest.approx(sum(by_domain[name] for name in domains.REAL) / 4)
    assert measured["losses"][-1] == pytest.approx(measured["mean_real"])
    assert measured["proxy_steps"] == (5 if arm in ("doremi", "hardest") else 0)
    if arm == "doremi":
        assert page.run_cell(cell(arm), None) == measured  # type: ignore[arg-type]


def test_doremi_and_hardest_differ_in_the_reference_alone() -> None:
    excess, hardest = (page.weights_of(cell(arm))["weights"] for arm in ("doremi", "hardest"))
    assert excess != hardest
