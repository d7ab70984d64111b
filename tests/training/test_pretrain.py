"""The verb `pretrain` on a corpus of some kilobytes: what it writes, that it repeats, that it goes on after a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError

from mickle import storage
from mickle.config import validate
from mickle.data.heldout import content_hash, read_pages, write_pages
from mickle.data.records import Page
from mickle.errors import ResourceError, UsageError
from mickle.events import Evaluated, Noted, Trained, ignore
from mickle.flags import parse, parser, read_values
from mickle.models.architectures import DecoderArchitecture
from mickle.step import execute
from mickle.training.pretrain import Pretrain
from mickle.training.pretrain_plan import Fresh, derived_share, derived_vocabulary, resolve
from mickle.training.run import Asked

ANIMALS = ("cat", "dog", "owl", "hen", "fox", "cow", "ant")
SMALL = {
    "size": 36_000,
    "vocabulary_size": 280,
    "sequence_length": 32,
    "batch_tokens": 128,
    "steps": 12,
    "precision": "float32",
    "evaluate_every": 4,
    "save_every": 4,
}


def text(i):
    some = [ANIMALS[(i * k + k * k) % 7] for k in range(1, 20)]
    return f"Page {i}. The {some[0]} sees the {' and the '.join(some[1:])}.\nIt is number {i * i}."


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    pages = [Page(f"https://x.invalid/{i}", f"d{i % 3}", "en", text(i)) for i in range(80)]
    with storage.write_folder(folder / "corpus", kind="corpus") as work:
        (work / "pages").mkdir()
        write_pages(pages, work / "pages" / "00000.parquet")
    return folder / "corpus"


@pytest.fixture(scope="module")
def model(corpus, tmp_path_factory):
    events = []
    out = execute(Pretrain(data=corpus, **SMALL), tmp_path_factory.mktemp("run") / "model", events.append)
    return out, events


def test_it_writes_a_whole_folder_and_says_what_it_derived(model, corpus):
    out, events = model
    summary = storage.open_folder(out, "model", check="hashes").meta["summary"]
    assert {p.name for p in out.iterdir()} == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json",
        "settings.yaml", "metrics.jsonl", "heldout.parquet", "manifest.json",
    }  # fmt: skip
    assert summary["training_pages"] + summary["heldout_pages"] == 80
    assert summary["tokens_read"] == 12 * 128
    said = " ".join(event.message for event in events if isinstance(event, Noted))
    for word in ("parameters", "vocabulary", "epochs", "learning rate", "forecast", "texts on both sides: 0"):
        assert word in said
    assert [event.step for event in events if isinstance(event, Trained)] == list(range(1, 13))
    assert [event.step for event in events if isinstance(event, Evaluated)] == [4, 8, 12]


def test_heldout_pages_are_not_among_the_training_pages(model, corpus):
    out, _ = model
    held = {content_hash(p.text) for batch in read_pages(out / "heldout.parquet") for p in batch}
    everything = {content_hash(p.text) for batch in read_pages(corpus) for p in batch}
    assert held < everything
    assert pq.read_schema(out / "heldout.parquet").names == ["url", "domain", "language", "text"]


def test_it_learns(model):
    lines = [json.loads(line) for line in (model[0] / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["event"] == "trained"]
    assert losses[0] == pytest.approx(5.63, abs=0.2)  # log 280: a fresh model knows nothing
    assert losses[-1] < losses[0] - 0.5


def test_transformers_loads_it(model):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from mickle.models.folder import open_model

    theirs, tokenizer = (AutoModelForCausalLM.from_pretrained(model[0]), AutoTokenizer.from_pretrained(model[0]))
    ids = tokenizer("The cat sees", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert torch.allclose(theirs(ids).logits, open_model(model[0])(ids), atol=1e-4)


def test_the_same_command_gives_the_same_bytes(model, corpus, tmp_path):
    again = execute(Pretrain(data=corpus, **SMALL), tmp_path / "again", ignore)
    for name in ("model.safetensors", "metrics.jsonl", "tokenizer.json", "heldout.parquet", "config.json"):
        assert (again / name).read_bytes() == (model[0] / name).read_bytes(), name


def test_another_number_of_threads_moves_losses_by_1e_5_at_most(model, corpus, tmp_path):
    """RELIABILITY 12: sums are taken in another order, and nothing else."""
    before = torch.get_num_threads()
    torch.set_num_threads(3 - min(before, 2))
    try:
        again = execute(Pretrain(data=corpus, **SMALL), tmp_path / "again", ignore)
    finally:
        torch.set_num_threads(before)
    one, two = ((path / "metrics.jsonl").read_text().splitlines() for path in (model[0], again))
    losses = [[json.loads(line)["loss"] for line in lines if "trained" in line] for lines in (one, two)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert (again / "heldout.parquet").read_bytes() == (model[0] / "heldout.parquet").read_bytes()


def test_another_seed_gives_other_weights_and_the_same_heldout_pages(model, corpus, tmp_path):
    other = execute(Pretrain(data=corpus, seed=1, **SMALL), tmp_path / "other", ignore)
    assert (other / "model.safetensors").read_bytes() != (model[0] / "model.safetensors").read_bytes()
    assert (other / "heldout.parquet").read_bytes() == (model[0] / "heldout.parquet").read_bytes()


class Killed(BaseException):
    """Ends a run as abruptly as an exception can."""


@pytest.mark.parametrize("at", ["pages", "tokenizing", 3, 6, "saved 8", 12], ids=str)
def test_a_run_that_was_cut_off_ends_as_one_that_was_not(model, corpus, tmp_path, at):
    from mickle.events import Saved, Started

    def cut(event):
        moments = [
            at == "pages" and isinstance(event, Noted),
            at == "tokenizing" and isinstance(event, Started) and event.what == "tokenizing",
            isinstance(event, Trained) and event.step == at,
            isinstance(event, Saved) and f"saved {event.step}" == at,
        ]
        if any(moments):
            raise Killed

    step = Pretrain(data=corpus, **SMALL)
    with pytest.raises(Killed):
        execute(step, tmp_path / "model", cut)
    assert not (tmp_path / "model").exists()
    steps = []
    execute(step, tmp_path / "model", lambda e: steps.append(e.step) if isinstance(e, Trained) else None)
    assert len(steps) <= 12 - (int(str(at).split()[-1]) // 4 * 4 - 4 if str(at)[-1].isdigit() else 0)
    for name in ("model.safetensors", "metrics.jsonl", "heldout.parquet"):
        assert (tmp_path / "model" / name).read_bytes() == (model[0] / name).read_bytes(), name


def test_kill_minus_nine_and_the_same_command_again(model, corpus, tmp_path):
    settings = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    command = [sys.executable, "-m", "mickle.cli", "pretrain", str(corpus), *settings, "--out", str(tmp_path / "model")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    metrics = tmp_path / "model.partial" / "metrics.jsonl"
    begun = time.monotonic()
    while process.poll() is None and time.monotonic() - begun < 60:
        if metrics.is_file() and metrics.read_text().count("trained") >= 5:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.001)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "model").exists()
    with metrics.open("a") as file:
        file.write('{"event": "trai')  # a line cut in two, as a kill may leave it
    execute(Pretrain(data=corpus, **SMALL), tmp_path / "model", ignore)
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (tmp_path / "model" / name).read_bytes() == (model[0] / name).read_bytes(), name


def test_a_given_tokenizer_is_used_as_it_is(model, corpus, tmp_path):
    settings = {**SMALL, "vocabulary_size": None, "steps": 1, "tokenizer": model[0]}
    out = execute(Pretrain(data=corpus, **settings), tmp_path / "model", ignore)
    assert (out / "tokenizer.json").read_bytes() == (model[0] / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("position", ["none", "alibi"])
def test_other_positions_and_last_weights(corpus, tmp_path, position):
    settings = {
        **SMALL,
        "steps": 2,
        "architecture": {"position": position},
        "weights": "last",
        "optimizer": {"kind": "sophia"},
    }
    out = execute(Pretrain(data=corpus, **settings), tmp_path / "model", ignore)
    assert storage.open_folder(out).meta["summary"]["kept_step"] == 2


def test_a_dry_run_shows_the_trained_tokens_and_writes_nothing(corpus, tmp_path, monkeypatch):
    from rich.text import Text

    monkeypatch.chdir(tmp_path)
    forecast, preview = Pretrain(data=corpus, **SMALL).dry_run()
    assert "Page " in Text.from_markup(preview).plain
    assert "<|endoftext|>" in Text.from_markup(preview).plain
    assert forecast.memory_bytes > 0
    assert forecast.seconds > 0
    assert forecast.disk_bytes > 0
    assert any("parameters" in note for note in forecast.notes)
    assert list(tmp_path.iterdir()) == []


def test_derived_numbers():
    assert [derived_vocabulary(size) for size in ("tiny", "small", "base", 10**8)] == [2048, 4096, 8192, 16384]
    assert [derived_share(pages) for pages in (5, 1000, 2000, 10**6)] == [0.1, 0.1, 0.05, 0.01]


@pytest.mark.parametrize(
    ("training_tokens", "asked", "tokens"),
    [
        (10**7, {}, lambda plan: 20 * plan.parameters),  # arXiv 2203.15556: so many for each parameter
        (10_000, {}, lambda plan: 8 * 10_000),  # of few pages, the most epochs
        (10_000, {"epochs": 0.5}, lambda plan: 5_000),
    ],
)
def test_a_run_is_as_long_as_its_parameters_or_its_pages_ask(training_tokens, asked, tokens):
    plan = resolve(Asked(**asked), Fresh(36_000, DecoderArchitecture()), 280, training_tokens)
    assert plan.steps == -(-tokens(plan) // plan.batch_tokens)


def test_fewer_than_25_settings():
    assert len(Pretrain.model_fields) < 25


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"learning_rate": 0}, "learning_rate"),
        ({"learning_rate": -1e-3}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"heldout_share": 1.0}, "heldout_share"),
        ({"steps": 0}, "steps"),
        ({"steps": 3, "epochs": 1.0}, "steps or epochs"),
        ({"size": "tinny"}, "size"),
        ({"size": 12}, "size in parameters"),
        ({"vocabulary_size": 100}, "vocabulary_size"),
        ({"tokenizer": "t", "vocabulary_size": 300}, "vocabulary_size"),
        ({"dropout": {"rate": 1}}, "dropout"),
        ({"stepz": 1}, "did you mean 'steps'"),
    ],
)
def test_settings_out_of_range(values, field):
    with pytest.raises(ValidationError, match=field):
        Pretrain(data=Path("corpus"), **values)


def pages_in(folder, texts):
    write_pages([Page(f"u{i}", "d", "en", t) for i, t in enumerate(texts)], folder / "pages.parquet")
    return folder


MANY = [text(i) for i in range(30)]


@pytest.mark.parametrize(
    ("texts", "settings", "said"),
    [
        ([], {}, "no page with text"),
        (["", "  "], {}, "no page with text"),
        (MANY[:1], {}, "same text"),
        (["a"], {}, "same text"),
        (["a b c"] * 30, {}, "same text"),
        (MANY, {"heldout_share": 1e-9}, "None of the 30 pages"),
        (MANY, {"heldout_share": 0.999999}, "leaves none of the 30 pages"),
        (MANY, {"vocabulary_size": 50_000}, "pages allow"),
        (MANY, {"sequence_length": 100_000}, "too few for one sequence"),
        (MANY, {"size": 10_000, "vocabulary_size": None}, "no decoder with a vocabulary"),
    ],
)
def test_pages_that_will_not_do(tmp_path, texts, settings, said):
    step = Pretrain(data=pages_in(tmp_path, texts), **{**SMALL, **settings})
    with pytest.raises(UsageError, match=said) as caught:
        execute(step, tmp_path / "model", ignore)
    assert caught.value.exit_code == 2
    assert len(str(caught.value).splitlines()) <= 4
    assert not (tmp_path / "model").exists()


def test_pages_that_can_not_be_read(tmp_path):
    (tmp_path / "pages.parquet").write_bytes(b"PAR1 this is no Parquet PAR1")
    with pytest.raises(UsageError, match="not a whole Parquet file"):
        execute(Pretrain(data=tmp_path / "pages.parquet", **SMALL), tmp_path / "model", ignore)


def test_one_page_without_heldout_pages(tmp_path):
    settings = {**SMALL, "heldout_share": 0, "steps": 2, "vocabulary_size": None}
    out = execute(Pretrain(data=pages_in(tmp_path, MANY[:1]), **settings), tmp_path / "model", ignore)
    assert not (out / "heldout.parquet").exists()


def test_no_space(corpus, tmp_path, monkeypatch):
    def full(folder, needed):
        raise ResourceError(f"{needed} bytes needed, none free")

    monkeypatch.setattr("mickle.storage.check_space", full)
    trained = []
    with pytest.raises(ResourceError):
        execute(Pretrain(data=corpus, **SMALL), tmp_path / "m", lambda e: trained.append(isinstance(e, Trained)))
    assert not any(trained)


def test_an_architecture_is_a_choice_by_kind_whose_kind_may_be_left_out(corpus):
    said = [{"position": "alibi"}, {"kind": "decoder", "position": "alibi"}]
    left_out, named = (Pretrain(data=corpus, architecture=one) for one in said)
    assert left_out == named
    made = parser("mickle pretrain", Pretrain, "", "", "data")
    for flags in (
        ["--architecture.position", "alibi"],
        ["--architecture", "decoder", "--architecture.position", "alibi"],
    ):
        _, values = parse(made, [str(corpus), *flags])
        assert validate(Pretrain, read_values(Pretrain, values)) == named
    with pytest.raises(ValidationError, match="rwkw"):
        Pretrain(data=corpus, architecture={"kind": "rwkw"})
