"""The verb `mix` on a corpus of three small domains: what it writes, that it repeats, that it goes on after a kill."""

import csv
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from mickle import storage
from mickle.config import validate
from mickle.data.domains import Weights, read_weights, write_weights
from mickle.data.heldout import write_pages
from mickle.data.records import Page
from mickle.errors import UsageError
from mickle.events import Noted, Saved, Started, Trained, Warned, ignore
from mickle.step import execute
from mickle.training.mix import Mix
from mickle.training.mix_plan import limited
from mickle.training.mix_results import change_between_halves, effective_domains

ANIMALS = ("cat", "dog", "owl", "hen", "fox", "cow", "ant")
SMALL = {
    "size": 36_000,
    "vocabulary_size": 280,
    "sequence_length": 16,
    "batch_tokens": 192,
    "steps": 12,
    "precision": "float32",
    "save_every": 4,
    "heldout_share": 0.05,
}


def text(domain, i):
    some = [ANIMALS[(i * k + k * k) % 7] for k in range(1, 12)]
    if domain == "sums.net":
        return " ".join(f"{i * k % 97} + {k} = {i * k % 97 + k};" for k in range(1, 12))
    if domain == "same.net":
        return f"{i}: " + "abcabcabc " * 9
    return f"Page {i}. The {some[0]} sees the {' and the '.join(some[1:])}."


def write_corpus(folder, rows):
    with storage.write_folder(folder, kind="corpus") as work:
        (work / "pages").mkdir()
        write_pages([Page(f"https://{d}/{i}", d, "en", t) for d, i, t in rows], work / "pages" / "0.parquet")
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    rows = [(d, i, text(d, i)) for i in range(40) for d in ("words.org", "sums.net", "same.net")]
    return write_corpus(tmp_path_factory.mktemp("corpus") / "corpus", rows)


@pytest.fixture(scope="module")
def mixture(corpus, tmp_path_factory):
    events = []
    out = execute(Mix(data=corpus, **SMALL), tmp_path_factory.mktemp("run") / "mixture", events.append)
    return out, events


FILES = (
    "weights.yaml", "weights.csv", "trajectory.csv", "results.json", "table.md", "weights.svg", "probabilities.json",
    "doremi.json", "round-1/reference.jsonl", "round-1/proxy.jsonl",
)  # fmt: skip


def test_it_writes_what_it_says(mixture):
    out, events = mixture
    summary = storage.open_folder(out, "mixture", check="hashes").meta["summary"]
    found = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert found == {*FILES, "settings.yaml", "manifest.json"}
    weights = read_weights(out / "weights.yaml")
    assert weights.names == ("same.net", "sums.net", "words.org")
    assert weights == read_weights(out)
    assert sum(weights.weights) == pytest.approx(1, abs=1e-12)
    assert summary["weights"] == pytest.approx(weights.as_dict())
    assert read_weights(out / "doremi.json").weights == pytest.approx(weights.weights)
    probabilities = json.loads((out / "probabilities.json").read_text())
    assert dict(zip(probabilities["domains"], probabilities["probabilities"], strict=True)) == pytest.approx(
        weights.as_dict()
    )
    said = " ".join(event.message for event in events if isinstance(event, Noted))
    for word in ("3 domains, tokens (reference weight)", "round 1: reference", "round 1: proxy", "weights: "):
        assert word in said
    assert [e.step for e in events if isinstance(e, Trained)] == [*range(1, 13), *range(1, 13)]


def test_the_weights_are_the_mean_of_the_trajectory(mixture):
    out, _ = mixture
    rows = list(csv.DictReader((out / "trajectory.csv").open()))
    assert [int(row.pop("step")) for row in rows] == list(range(1, 13))
    for name, weight in read_weights(out).as_dict().items():
        assert weight == pytest.approx(sum(float(row[name]) for row in rows) / 12, abs=1e-12)
    assert all(sum(map(float, row.values())) == pytest.approx(1) for row in rows)
    assert all(min(map(float, row.values())) >= 1e-3 / 3 for row in rows)


def test_its_rows_add_up(mixture, corpus):
    out, _ = mixture
    results = json.loads((out / "results.json").read_text())
    rows = {row["domain"]: row for row in results["domain_rows"]}
    total = sum(row["tokens"] for row in rows.values())
    for row in rows.values():
        assert row["reference"] == pytest.approx(row["tokens"] / total)
        assert row["epochs"] == pytest.approx(row["weight"] * 12 * 192 / row["tokens"])
    entropy = -sum(row["weight"] * math.log(row["weight"]) for row in rows.values())
    assert results["effective_domains_after"] == pytest.approx(math.exp(entropy))
    assert sum(row["pages"] for row in rows.values()) < 120  # held-out pages are left alone


def test_doubts_are_told(mixture):
    said = " ".join(event.message for event in mixture[1] if isinstance(event, Warned))
    assert "12 steps are few" in said
    assert "sequences a step" not in said  # four of each
    results = json.loads((mixture[0] / "results.json").read_text())
    assert any("12 steps are few" in warning for warning in results["warnings"])


class Killed(BaseException):
    """Ends a run as abruptly as an exception can."""


def cut(at):
    """An emit that kills at a moment: ("reference" or "proxy", step), or the beginning of a piece of work."""
    phase = []

    def emit(event):
        if isinstance(event, Noted) and event.message.startswith("round "):
            phase.append(event.message.split(": ")[1])
        moments = [
            isinstance(event, Started) and event.what == at,
            isinstance(event, Trained) and phase and (phase[-1], event.step) == at,
            isinstance(event, Saved) and phase and (phase[-1], "saved", event.step) == at,
        ]
        if any(moments):
            raise Killed

    return emit


@pytest.mark.parametrize(
    ("at", "made"), [("tokenizing", 24), (("reference", 6), 20), (("proxy", 6), 8), (("proxy", "saved", 8), 4)], ids=str
)
def test_a_run_that_was_cut_off_ends_as_one_that_was_not(mixture, corpus, tmp_path, at, made):
    step = Mix(data=corpus, **SMALL)
    with pytest.raises(Killed):
        execute(step, tmp_path / "mixture", cut(at))
    assert not (tmp_path / "mixture").exists()
    steps = []
    execute(step, tmp_path / "mixture", lambda e: steps.append(e.step) if isinstance(e, Trained) else None)
    assert len(steps) == made
    for name in FILES:
        assert (tmp_path / "mixture" / name).read_bytes() == (mixture[0] / name).read_bytes(), name


def test_parts_of_a_batch_change_nothing_and_rounds_go_on(mixture, corpus, tmp_path):
    out = execute(Mix(data=corpus, accumulate=3, rounds=2, **SMALL), tmp_path / "again", ignore)
    results = json.loads((out / "results.json").read_text())
    first, second = results["round_rows"]
    assert first["weights"] == pytest.approx(read_weights(mixture[0]).as_dict(), abs=1e-5)
    assert second["reference"] == pytest.approx(first["weights"])
    assert results["weights"] == pytest.approx(second["weights"])


def test_groups_cap_and_floor(corpus, tmp_path):
    settings = {"groups": {"nets": ["*.net"]}, "budget_tokens": 10_000, "max_repeats": 1.5, "floor": 0.3}
    out = execute(Mix(data=corpus, **{**SMALL, "steps": 2}, **settings), tmp_path / "m", ignore)
    weights = read_weights(out)
    assert weights.names == ("nets", "words.org")
    assert weights.grouping.groups == {"nets": ("*.net",)}
    rows = json.loads((out / "results.json").read_text())["domain_rows"]
    assert all(row["epochs"] <= 1.5 + 1e-9 for row in rows)
    assert all(row["weight"] >= 0.3 for row in rows)


def test_reference_weights_from_a_file(corpus, tmp_path):
    given = Weights(("same.net", "sums.net", "words.org"), (0.2, 0.3, 0.5))
    write_weights(tmp_path / "w.yaml", given)
    settings = {**SMALL, "steps": 2, "reference_weights": tmp_path / "w.yaml", "robust": {"sampling": "reference"}}
    out = execute(Mix(data=corpus, **settings), tmp_path / "m", ignore)
    reference = json.loads((out / "results.json").read_text())["round_rows"][0]["reference"]
    assert reference == pytest.approx(given.as_dict())
    write_weights(tmp_path / "w.yaml", Weights(("same.net", "sum.net", "words.org"), (0.2, 0.3, 0.5)))
    with pytest.raises(UsageError, match="do not have: 'sum.net'") as caught:
        execute(Mix(data=corpus, **settings), tmp_path / "n", ignore)
    assert "did you mean 'sums.net'?" in str(caught.value)


def test_a_dry_run_says_what_would_be_done(corpus):
    forecast, shown = Mix(data=corpus, **SMALL).dry_run()
    assert forecast.memory_bytes > 0
    assert forecast.seconds > 0
    assert forecast.disk_bytes > 0
    for name in ("words.org", "sums.net", "same.net"):
        assert name in shown
    assert "4.0" in shown  # sequences a step


def test_left_out_steps_read_the_corpus_once(corpus, tmp_path):
    small = {name: value for name, value in SMALL.items() if name not in ("steps", "sequence_length")}
    events = []
    out = execute(Mix(data=corpus, **{**small, "batch_tokens": 1024}), tmp_path / "m", events.append)
    summary = storage.open_folder(out).meta["summary"]
    rows = json.loads((out / "results.json").read_text())["domain_rows"]
    total = sum(row["tokens"] for row in rows)
    assert total <= summary["budget_tokens"] <= total + 1024
    said = " ".join(event.message for event in events if isinstance(event, Warned))
    assert "more than once" in said  # drawn uniformly, the smaller ones are


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"steps": 3, "epochs": 1.0}, "give steps or epochs"),
        ({"max_repeats": 2.0}, "max_repeats needs budget_tokens"),
        ({"size": 12}, "at least 10000"),
        ({"robust": {"smoothing": 1.0}}, "smoothing"),
        ({"robust": {"eta": 0}}, "eta"),
        ({"robust": {"sampeling": "uniform"}}, "did you mean 'sampling'"),
        ({"groups": {"a": "*"}}, "groups"),
    ],
)
def test_settings_that_cannot_be(settings, said, corpus):
    with pytest.raises((UsageError, ValidationError), match=said):
        validate(Mix, {"data": corpus, **settings})


@pytest.mark.parametrize(
    ("rows", "settings", "said"),
    [
        ([("a", i, text("a", i)) for i in range(9)], {}, "All pages are of one domain ('a')"),
        ([("ab"[i == 8], i, text("a", i)) for i in range(9)], {}, "The domain 'b' has one page for training."),
        ([("ab"[i % 2], i, text("a", i)) for i in range(9)], {"groups": {"c": ["x*"]}}, "No page belongs to"),
        ([("ab"[i % 2], i, text("a", i)) for i in range(9)], {"by": "language"}, "All pages are of one domain ('en')"),
        ([("ab"[i % 2], i, f"x{i}" if i % 2 else text("a", i)) for i in range(9)], {"sequence_length": 64},
         "The domain 'b' holds 12 tokens, too few for one sequence of 64."),
        ([("ab"[i % 2], i, text("a", i)) for i in range(9)],
         {"budget_tokens": 10**6, "max_repeats": 2.0, "steps": 1}, "repeat no domain more than 2 times"),
    ],
)  # fmt: skip
def test_a_corpus_that_cannot_be_mixed(rows, settings, said, tmp_path):
    corpus = write_corpus(tmp_path / "corpus", rows)
    small = {**SMALL, "heldout_share": 0.0, "vocabulary_size": 257, **settings}
    with pytest.raises(UsageError) as caught:
        execute(Mix(data=corpus, **small), tmp_path / "m", ignore)
    assert said in str(caught.value)


# -- around the weights ------------------------------------------------------------------------------------------------


def test_effective_domains():
    assert effective_domains([0.25] * 4) == pytest.approx(4)
    assert effective_domains([1.0, 0.0]) == pytest.approx(1)
    assert effective_domains([0.5, 0.25, 0.25]) == pytest.approx(2**1.5)


def test_change_between_halves():
    trajectory = np.array([[0.5, 0.5], [0.7, 0.3], [0.8, 0.2], [1.0, 0.0]])
    assert change_between_halves(trajectory) == pytest.approx(0.3)
    assert change_between_halves(trajectory[:1]) == 0


def test_limits_by_pencil():
    # .6 is cut to .4; the .2 that is left goes to the others in their proportion, 3 : 1.
    assert limited([0.6, 0.3, 0.1], [0.0] * 3, [0.4, 1.0, 1.0]) == pytest.approx([0.4, 0.45, 0.15])
    assert limited([0.6, 0.3, 0.1], [0.2] * 3, [1.0] * 3) == pytest.approx([0.8 * 2 / 3, 0.8 / 3, 0.2])
    with pytest.raises(ValueError):
        limited([0.6, 0.4], [0.0] * 2, [0.4, 0.5])
    with pytest.raises(ValueError):
        limited([0.6, 0.4], [0.6] * 2, [1.0, 1.0])


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.0, 0.1), st.floats(0.2, 1)), min_size=5, max_size=9))
def test_limits_hold(rows):
    weights, low, high = (np.array(column) for column in zip(*rows, strict=True))
    found = np.array(limited(weights, low, high))
    assert found.sum() == pytest.approx(1, abs=1e-9)
    assert (found >= low - 1e-9).all()
    assert (found <= high + 1e-9).all()
    free = (found > low + 1e-9) & (found < high - 1e-9) & (weights > 1e-9)
    ratios = found[free] / weights[free]
    assert ratios == pytest.approx(np.full(len(ratios), ratios.mean() if len(ratios) else 0), rel=1e-6)
