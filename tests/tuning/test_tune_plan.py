"""What a tuning's plan takes from headers, by which rules it fills in numbers, and how near its memory comes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import tuning_folders as made
from hypothesis import given
from hypothesis import strategies as st

from mickle import machine, storage
from mickle.config import to_yaml
from mickle.data.heldout import write_pages
from mickle.data.records import Page
from mickle.errors import ResourceError, UsageError
from mickle.models.decoder import Decoder, DecoderConfig
from mickle.models.folder import describe, open_model, save_model
from mickle.models.language import described
from mickle.models.linear_layers import features, linear_layers
from mickle.training.run import Asked
from mickle.tuning import tune_plan, tune_run
from mickle.tuning.methods import Full, Lora, Qlora
from mickle.tuning.mezo import Mezo
from mickle.tuning.tune import Tune
from mickle.tuning.tune_plan import Batching, TunePlan, memory, resolve
from mickle.tuning.weights import Weights, weigh

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.decoder_folder(tmp_path_factory.mktemp("plan") / "model")


def settings(folder: Path, **more: Any) -> Tune:
    return Tune(**{"model": folder, "data": folder, **more})


@pytest.mark.parametrize("make", [made.decoder_folder, made.gpt2_folder, made.bert_folder])
def test_headers_tell_what_the_open_model_has(make: Any, tmp_path: Path) -> None:
    path = make(tmp_path / "model")
    model, weights = open_model(path), weigh(path)
    layers = linear_layers(model)
    numbers = [a * b for a, b in map(features, layers.values())]
    assert weights.linear == sum(numbers)
    assert weights.largest == max(numbers)
    assert weights.sides == sum(sum(features(layer)) for layer in layers.values())
    assert weights.linear + weights.rest == sum(p.numel() for p in model.parameters())
    some = [next(iter(layers)).rpartition(".")[2]]
    chosen = [layer for name, layer in layers.items() if name.endswith(some[0])]
    assert weigh(path, some).sides == sum(sum(features(layer)) for layer in chosen)


def test_dimensions_of_models_of_others_go_by_their_usual_names() -> None:
    found = described({"vocab_size": 100, "n_embd": 8, "n_layer": 3, "n_head": 2, "n_positions": 77})
    assert (found.vocab_size, found.width, found.layers, found.heads, found.ffn) == (100, 8, 3, 2, 32)
    assert found.longest == 77
    assert not found.ours


@pytest.mark.parametrize(
    ("kind", "parameters", "rate"), [("lora", 7e9, 2e-4), ("full", 7e9, 2e-5), ("full", 110e6, 5.65e-5)]
)
def test_rates_are_those_of_the_papers_at_their_sizes(kind: str, parameters: float, rate: float) -> None:
    method = {"lora": Lora(), "full": Full()}[kind]
    assert method.rate(int(parameters)) == pytest.approx(rate, rel=0.01)


@given(
    lengths=st.lists(st.integers(2, 300), min_size=1, max_size=200),
    asked=st.none() | st.integers(8, 400),
    tokens=st.none() | st.integers(1, 10_000),
)
def test_rows_hold_the_longest_example_and_the_rules(lengths: list[int], asked: int | None, tokens: int | None) -> None:
    longest = min(max(lengths), asked or 512)
    length = tune_plan.row_length(asked, longest, 512)
    assert length >= longest
    assert length == (asked or length)
    rows = tune_plan.batch_rows(tokens, length, lengths)
    assert rows >= 1
    if tokens:
        assert abs(rows * length - tokens) <= max(length / 2, length - tokens)
    else:
        examples = rows * length / (sum(lengths) / len(lengths))
        assert rows == 1 or examples <= 16 * 1.5


def test_a_row_longer_than_the_model_reads_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="at most 64"):
        tune_plan.longest_row(65, describe(folder))


def big(path: Path) -> Path:
    """A decoder of 5 million parameters."""
    shape = DecoderConfig(280, 256, 6, 4, 4, 64, 768, 256)
    save_model(Decoder(shape), path, made.tokenizer())
    return path


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return big(tmp_path_factory.mktemp("plan") / "larger")


def plan_of(path: Path, method: Any, recompute: bool | None = None, **more: Any) -> tuple[TunePlan, Any, Any]:
    weights, shape = weigh(path), describe(path)
    asked = Asked(precision="float32", **more)
    return resolve(asked, method, weights, shape, Batching(1024, 16, 10.0, 100), recompute), weights, shape


@pytest.mark.parametrize("name", ["embd_pdrop", "hidden_dropout_prob", "attention_dropout", "summary_first_dropout"])
def test_dropout_is_told_for_its_draws_go_with_the_parts(name: str, tmp_path: Path) -> None:
    """A model's own dropout makes `accumulate`, and so the free memory, a part of the result: the plan says so."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", name: 0.1, "resid_pdrop": 0.0}))
    assert tune_run.drops_units(tmp_path, Full()) is (name != "summary_first_dropout")
    assert not tune_run.drops_units(tmp_path, Mezo())
    assert tune_run.drops_units(tmp_path, Lora(dropout=0.1))
    plan = TunePlan(1, 8, 2, 1, 1, 0.1, "float32", 1, 1, 1, False, 1.0, 1, dropout=True)
    assert [line for line in plan.lines() if "another number of parts is another run" in line]


def test_a_batch_that_does_not_fit_is_made_in_parts_and_then_computed_twice(
    larger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The effective batch stays; with half the memory free that it takes, parts; with next to none, an error."""
    whole, weights, shape = plan_of(larger, Lora())
    assert (whole.accumulate, whole.recompute, whole.batch_size) == (1, False, 16)
    held = machine.peak_memory()
    monkeypatch.setattr(machine, "peak_memory", lambda: held)
    needed = memory(Lora(), whole, weights, shape)
    monkeypatch.setattr(machine, "available_memory", lambda: int((needed - held) * 0.5 / 0.9))
    parts, *_ = plan_of(larger, Lora())
    assert parts.accumulate > 1
    said = rf"memory: 16 rows at once need \d.\d GB, \d.\d GB are free: {parts.micro_rows} rows at a time in"
    assert any(re.match(said, line) for line in parts.lines())
    assert not whole.short
    assert parts.batch_size == 16
    assert memory(Lora(), parts, weights, shape) < 0.9 * (held + machine.available_memory())
    one_row = memory(Lora(), plan_of(larger, Lora(), accumulate=16)[0], weights, shape)
    monkeypatch.setattr(machine, "available_memory", lambda: int((one_row - 2e6) / 0.9 - held))
    assert plan_of(larger, Lora())[0].recompute
    monkeypatch.setattr(machine, "available_memory", lambda: 0)
    with pytest.raises(ResourceError, match="one row at a time"):
        plan_of(larger, Lora())


def test_less_is_forecast_where_less_is_held(larger: Path) -> None:
    """Full above LoRA, activations kept above those computed twice; and 7 billion weights in four bits take a sixth of
    what they take in float32, and with it the scales' share of 4.13 bits.
    """

    def needed(method: Any, weights: Any = None, **more: Any) -> int:
        plan, own, shape = plan_of(larger, method, accumulate=16, **more)
        return memory(method, plan, weights or own, shape, base=0)

    assert needed(Full()) > needed(Lora())
    assert needed(Lora(), recompute=None) > needed(Lora(), recompute=True)
    large = Weights(linear=7 * 10**9, rest=10**8, file_bytes=10**9, sides=10**6, largest=10**7, linear_bytes=28 * 10**9)
    small = needed(Lora(), large) - needed(Qlora(), large)
    assert small == pytest.approx(7e9 * (32 - 4.127) / 8, rel=0.01)


MEASURED = """
import sys
from pathlib import Path

import torch

from mickle import machine, storage
from mickle.config import load
from mickle.events import ignore
from mickle.step import execute
from mickle.tuning import outcome
from mickle.tuning.tune import Tune
from mickle.tuning.tune_plan import libraries

outcome.draw = lambda results, metrics: "<svg></svg>"  # matplotlib is not what is measured
folder = Path(sys.argv[1])
torch.set_num_threads(1)
execute(load(Tune, folder / "warm.yaml"), folder / "warm", ignore)
machine.reset_peak_memory()
before = machine.peak_memory()
chosen = load(Tune, folder / "chosen.yaml")
out = execute(chosen, folder / "out", ignore)
found = storage.read_json(out / "manifest.json")["summary"]["memory"]
forecast = found["forecast_bytes"] - before - libraries(chosen.method)
storage.write_json(folder / "added.json", (found["peak_bytes"] - before) / forecast)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are told apart on Linux alone")
@pytest.mark.parametrize(("kind", "rows"), [("full", 3), ("lora", 6), ("qlora", 6), ("mezo", 6)])
def test_the_forecast_is_near_the_measured_peak(
    kind: str, rows: int, folder: Path, larger: Path, tmp_path: Path
) -> None:
    """What the run adds to a fresh process that has its libraries, against the forecast, which has room for what the
    allocator keeps of freed blocks. That differs from run to run by tens of megabytes, so here freed blocks go back at
    once (`MALLOC_MMAP_THRESHOLD_`) and bytes that are in use are counted. `docs/tune.md` has whole commands.
    """
    made.write_rows(tmp_path / "data.jsonl", ({"text": f"{i} " + "the owl sees the hen and " * 20} for i in range(40)))
    pages = [Page(f"p{i}", "", "", f"Page {i} tells of a river. " * 40) for i in range(5)]
    write_pages(pages, tmp_path / "general.parquet")  # enough to fill the batches that the forecast counts
    method = {"kind": kind, **({"learning_rate": 1e-4} if kind == "mezo" else {})}
    chosen = settings(
        larger, data=tmp_path / "data.jsonl", general=tmp_path / "general.parquet", method=method, steps=2, samples=0,
        sequence_length=256, batch_tokens=256 * rows, precision="float32", accumulate=1, evaluate_every=2, save_every=2,
    )  # fmt: skip
    warm = settings(
        folder, data=tmp_path / "data.jsonl", samples=0, general=tmp_path / "general.parquet", method=method, steps=2
    )
    for step, name in ((warm, "warm"), (chosen, "chosen")):
        storage.write_text(tmp_path / f"{name}.yaml", to_yaml(step))
    exact = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    subprocess.run([sys.executable, "-c", MEASURED, str(tmp_path)], check=True, env=exact)
    assert 0.5 < storage.read_json(tmp_path / "added.json") < 1


def test_a_frozen_base_is_small_only_where_products_are(folder: Path) -> None:
    from mickle.tuning.tune_run import reduce_frozen

    model = open_model(folder)
    Lora(rank=2).prepare(model, 0)
    reduce_frozen(model, torch.bfloat16)
    kinds = {name: p.dtype for name, p in model.named_parameters()}
    assert {kind for name, kind in kinds.items() if "base_layer" in name} == {torch.bfloat16}
    assert {kind for name, kind in kinds.items() if "base_layer" not in name} == {torch.float32}
