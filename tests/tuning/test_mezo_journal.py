"""A tuning's journal for a person: any step of a run from either end of it, and nothing from another folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import tuning_folders as made

from mickle import storage
from mickle.cli import run as command
from mickle.config import validate
from mickle.errors import UsageError
from mickle.events import Event, Noted, Saved, ignore
from mickle.exporting.export import Export
from mickle.models.decoder import Decoder
from mickle.models.folder import open_model, save_model
from mickle.models.quantized import quantize_model, save_quantized
from mickle.step import execute
from mickle.training.closure import Closure
from mickle.training.journal import Journal, cut, decode, encode, journal_of, merge, read_journal, write_journal
from mickle.training.objectives import next_token
from mickle.training.replay import fingerprint_for, replay, verify
from mickle.tuning.mezo import Mezo, build_mezo
from mickle.tuning.mezo_journal import open_at
from mickle.tuning.tune import Tune

pytestmark = pytest.mark.usefixtures("quick")

WAYS: dict[str, dict[str, Any]] = {
    "full": {"kind": "full"},
    "lora": {"kind": "lora", "rank": 2, "targets": "all-linear"},
    "prefix": {"kind": "prefix", "tokens": 3},
}
STEPS, KEPT_EVERY = 12, 4


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base in bfloat16, so that what is frozen, what learns and what is stored differ in type."""
    folder = tmp_path_factory.mktemp("journal")
    made.decoder_folder(folder / "wide")
    model, marks = open_model(folder / "wide"), made.tokenizer()
    save_model(model.to(torch.bfloat16), folder / "base", marks)
    made.chats(folder / "chats.jsonl")
    made.general(folder / "general.parquet")
    return folder


@pytest.fixture(scope="module")
def runs(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a run that tuned so and stopped at the best step, and its checkpoints beside it; each made once."""
    out = tmp_path_factory.mktemp("runs")

    def run(way: str) -> Path:
        if not (out / way).exists():
            _tune(home, out / way, WAYS[way])
        return out / way

    return run


def _tune(home: Path, out: Path, parameters: dict[str, Any], **more: Any) -> None:
    def keep(event: Event) -> None:
        if isinstance(event, Saved):
            shutil.copytree(event.path, out.with_name(f"{out.name}-checkpoints") / Path(event.path).name)

    settings: dict[str, Any] = {
        "steps": STEPS, "learning_rate": 1e-2, "precision": "bfloat16", "batch_tokens": 128, "save_every": KEPT_EVERY,
        "evaluate_every": KEPT_EVERY, "samples": 0, "method": {"kind": "mezo", "parameters": parameters}, **more,
    }  # fmt: skip
    given = {"model": home / "base", "data": home / "chats.jsonl", "general": home / "general.parquet"}
    execute(Tune(**{**given, **settings}), out, keep)


def checkpoint(run: Path, step: int) -> dict[str, torch.Tensor]:
    folder = run.with_name(f"{run.name}-checkpoints") / f"step-{step:08d}"
    return storage.load_tensors(folder / "model.safetensors")


def off(model: torch.nn.Module, wanted: dict[str, torch.Tensor]) -> float:
    """The largest difference over what the checkpoint holds."""
    found = model.state_dict()
    return max(float((found[name] - tensor).abs().max()) for name, tensor in wanted.items())


@pytest.mark.parametrize("way", WAYS)
def test_export_gives_any_step_from_either_end(
    way: str, home: Path, runs: Callable[[str], Path], tmp_path: Path
) -> None:
    """From the base bit for bit the weights of the checkpoint; from the tuned folder to rounding; 0 is the base."""
    run = runs(way)
    journal = run / "journal.mezo"
    kept = read_journal(journal).steps
    assert kept >= KEPT_EVERY
    heard: list[Event] = []
    out = execute(Export(model=home / "base", journal=journal, to_step=KEPT_EVERY), tmp_path / "base", heard.append)
    wanted = checkpoint(run, KEPT_EVERY)
    assert off(open_model(out), wanted) == 0.0
    assert off(open_model(run), wanted) > 0 or kept == KEPT_EVERY
    assert any("bit for bit" in e.message for e in heard if isinstance(e, Noted))
    assert (out / ("model.safetensors" if way == "full" else "adapter_config.json")).exists()
    assert (out / "tokenizer.json").exists()
    out = execute(Export(model=run, journal=journal, to_step=KEPT_EVERY), tmp_path / "tuned", ignore)
    assert off(open_model(out), wanted) < 2e-5
    begun, _ = open_at(home / "base", read_journal(journal), 0)
    out = execute(Export(model=run, journal=journal, to_step=0), tmp_path / "undone", ignore)
    names = wanted.keys()
    assert off(open_model(out), {n: t for n, t in begun.state_dict().items() if n in names}) < 2e-5
    if way == "full":
        assert off(open_model(out), open_model(home / "base", torch.float32).state_dict()) < 2e-5


@pytest.mark.parametrize("kind", ["nf4", "gpt2"])
def test_adapters_on_other_bases(kind: str, home: Path, tmp_path: Path) -> None:
    """A base stored in four bits, and one of transformers, are known and replayed as well."""
    base = tmp_path / "other"
    if kind == "gpt2":
        made.gpt2_folder(base)
    else:
        model = open_model(home / "wide")
        quantize_model(model)
        save_quantized(model, base, made.tokenizer())
    _tune(home, tmp_path / "run", WAYS["lora"], model=base)
    out = execute(
        Export(model=base, journal=tmp_path / "run" / "journal.mezo", to_step=KEPT_EVERY), tmp_path / "out", ignore
    )
    assert off(open_model(out), checkpoint(tmp_path / "run", KEPT_EVERY)) == 0.0


@pytest.mark.parametrize("way", WAYS)
def test_both_ends_are_known_and_the_end_is_the_tuned_folder(way: str, home: Path, runs: Callable[[str], Path]) -> None:
    journal = read_journal(runs(way) / "journal.mezo")
    model, end = open_at(home / "base", journal)
    assert (end, verify(model, journal)) == ("base", "tuned")
    model, end = open_at(home / "base", journal, 0)
    assert (end, verify(model, journal)) == ("base", "base")
    model, end = open_at(runs(way), journal)
    assert (end, verify(model, journal)) == ("tuned", "tuned")


def test_a_journal_cut_to_the_best_step_knows_its_end(home: Path, tmp_path: Path) -> None:
    """The rate makes the run worse after its first evaluations, so that the kept step is not the last."""
    rates = {"learning_rate": 1.0, "schedule": {"kind": "constant"}}
    _tune(home, tmp_path / "run", WAYS["lora"], **rates)
    summary = storage.open_folder(tmp_path / "run").meta["summary"]
    journal = read_journal(tmp_path / "run" / "journal.mezo")
    assert journal.steps == summary["kept_step"] < STEPS
    model, _ = open_at(home / "base", journal)
    assert verify(model, journal) == "tuned"


def test_batches_that_were_left_out_are_no_steps_of_the_journal(home: Path, tmp_path: Path) -> None:
    """Step 8 of a run that left two batches out is step 6 of its journal, as that step's checkpoint says."""
    settings = Mezo(parameters=validate(Mezo, {"parameters": WAYS["lora"]}).parameters, learning_rate=0.1)
    model = settings.learns.prepare(open_model(home / "base", torch.float32), seed=0)
    optimizer = build_mezo(settings, model, 0, 10)
    for step in range(10):
        if step == 6:
            history = optimizer.state_dict()["history"]
            kept = [p.detach().clone() for p in model.parameters() if p.requires_grad]
        optimizer.step(lambda: float(model(torch.tensor([[5, 6, 7]])).square().mean()))
    with torch.no_grad():
        for p, value in zip((p for p in model.parameters() if p.requires_grad), kept, strict=True):
            p.copy_(value)
    state = {"optimizer": {"rest": {"history": history}}}
    (tmp_path / "step-00000008").mkdir()
    storage.write_json(tmp_path / "step-00000008" / "state.json", state)
    told = settings.journal(optimizer, model, 8, home / "base", tmp_path, tmp_path)["journal"]
    assert told["steps"] == 6
    journal = read_journal(tmp_path / "journal.mezo")
    again, _ = open_at(home / "base", journal)
    assert verify(again, journal) == "tuned"


def test_another_base_is_refused_by_name(home: Path, runs: Callable[[str], Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    model = open_model(home / "base")
    assert isinstance(model, Decoder)
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1
    save_model(model, other, made.tokenizer())
    for way in WAYS:
        with pytest.raises(UsageError, match=r"journal is of another base than .*other"):
            execute(Export(model=other, journal=runs(way) / "journal.mezo"), tmp_path / "out", ignore)
    with pytest.raises(UsageError, match="is an adapter; this journal is of all weights"):
        execute(Export(model=runs("lora"), journal=runs("full") / "journal.mezo"), tmp_path / "out", ignore)
    with pytest.raises(UsageError, match="is a lora; this journal is of a prefix"):
        execute(Export(model=runs("lora"), journal=runs("prefix") / "journal.mezo"), tmp_path / "out", ignore)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_done_is_said(home: Path, runs: Callable[[str], Path], tmp_path: Path) -> None:
    journal = runs("lora") / "journal.mezo"
    short = tmp_path / "short.mezo"
    short.write_bytes(journal.read_bytes()[:-20])
    cases: list[tuple[dict[str, Any], str]] = [
        ({"journal": short}, "cut or changed"),
        ({"journal": journal, "to_step": 99}, "no step 99"),
        ({"journal": journal, "format": {"kind": "gguf"}}, "an adapter folder comes out"),
        ({"journal": journal, "format": {"dtype": "float16"}}, "an adapter folder comes out"),
        ({"journal": journal, "base_folder": home / "base"}, "is no adapter"),
    ]
    for settings, said in cases:
        with pytest.raises(UsageError, match=said):
            execute(Export(model=home / "base", **settings), tmp_path / "out", ignore)
    assert not (tmp_path / "out").exists()


def test_a_journal_that_asks_for_adapters_that_cannot_be(
    home: Path, runs: Callable[[str], Path], tmp_path: Path
) -> None:
    journal = read_journal(runs("lora") / "journal.mezo")
    run = journal.runs[0]
    assert run.added is not None
    for change, said in (
        ({"rank": 10**9}, "rank"),
        ({"targets": ["nothing"]}, "no linear layer"),
        ({"more": 1}, "more"),
        ({"seed": 5}, "another base"),
    ):
        hostile = Journal((replace(run, added={**run.added, **change}),))
        write_journal(hostile, tmp_path / "hostile.mezo")
        with pytest.raises(UsageError, match=said):
            open_at(home / "base", read_journal(tmp_path / "hostile.mezo"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"added": {"kind": "lora"}}, "no seed"),
        ({"added": {"kind": "ia3", "seed": 1}}, "none of lora, prefix"),
        ({"added": None}, "not the other"),
        ({"beneath": ""}, "not the other"),
        ({"beneath": "x" * 65}, "no short text"),
    ],
)
def test_hostile_headers(change: dict[str, Any], said: str, runs: Callable[[str], Path]) -> None:
    journal = read_journal(runs("lora") / "journal.mezo")
    with pytest.raises(UsageError, match=said):
        decode(encode(Journal((replace(journal.runs[0], **change),))))


def test_runs_of_different_adapters_do_not_follow_each_other(runs: Callable[[str], Path]) -> None:
    journal = read_journal(runs("lora") / "journal.mezo")
    run = journal.runs[0]
    follows = Journal((replace(run, base=run.tuned, beneath="f" * 64),))
    with pytest.raises(UsageError, match="different bases"):
        merge(journal, follows)
    with pytest.raises(UsageError, match="different adapters or bases"):
        decode(encode(Journal(journal.runs + follows.runs)))
    same = merge(journal, Journal((replace(run, base=run.tuned),)))
    assert decode(encode(same)) == same
    assert cut(journal, 2, "a" * 32).runs[-1].tuned == "a" * 32


def test_show_says_what_a_journal_is_and_where_to_use_it(
    home: Path, runs: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs("lora")
    command(["show", str(run / "journal.mezo")])
    said = capsys.readouterr().out
    journal = read_journal(run / "journal.mezo")
    for part in ("a journal of MeZO, whole", "a lora (rank 2", f"{journal.steps} steps", journal.runs[0].base):
        assert part in said
    assert f"mickle export {home / 'base'} --journal {run / 'journal.mezo'} --to-step" in said
    assert f"mickle export {run} --journal" in said
    shutil.copy(runs("full") / "journal.mezo", tmp_path / "alone.mezo")
    command(["show", str(tmp_path / "alone.mezo")])
    said = capsys.readouterr().out
    assert "all weights" in said
    assert "mickle export BASE --journal" in said


def test_the_fingerprint_of_adapters_sees_them_and_not_the_base(home: Path, runs: Callable[[str], Path]) -> None:
    journal = read_journal(runs("lora") / "journal.mezo")
    model, _ = open_at(runs("lora"), journal)
    before = fingerprint_for(model, journal.runs[0])
    assert fingerprint_for(model.to(torch.float32), journal.runs[0]) == before
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "lora_B" in name)[0, 0] += 1
    assert fingerprint_for(model, journal.runs[0]) != before
    with pytest.raises(UsageError, match="has no tensor"):
        verify(open_model(home / "base"), journal)
    assert json.loads((runs("lora") / "adapter_config.json").read_text())["r"] == 2


@pytest.mark.parametrize("way", ["lora", "prefix"])
def test_a_journal_that_names_no_adapter_replays_on_the_model_that_has_it(home: Path, way: str) -> None:
    """From Python, where the model is at hand: what its journal moves is a part of it, and known by that."""
    settings = validate(Mezo, {"parameters": WAYS[way], "learning_rate": 0.01}, where="test")
    model = settings.learns.prepare(open_model(home / "wide"), seed=0)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = build_mezo(settings, model, 0, 3)
    for step in range(3):
        optimizer.step(Closure(model, next_token, made_batch(), step=step))
    tuned = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(start)
    replay(model, journal_of(optimizer), exact=True)
    assert all(torch.equal(tensor, tuned[name]) for name, tensor in model.state_dict().items())


def made_batch() -> dict[str, torch.Tensor]:
    ids = torch.arange(24).reshape(2, 12)
    return {"input_ids": ids[:, :-1], "labels": ids[:, 1:]}
