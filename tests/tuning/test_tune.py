"""The verb `tune` on models of some thousand weights: what it writes, that it learns, repeats and goes on."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import tuning_folders as made

from mickle import storage
from mickle.errors import ResourceError, UsageError
from mickle.events import Event, Noted, Saved, Trained, Warned, ignore
from mickle.models.folder import open_model
from mickle.step import execute
from mickle.tuning.tune import Tune

pytestmark = pytest.mark.usefixtures("quick")

SMALL: dict[str, Any] = {
    "steps": 12,
    "learning_rate": 0.02,
    "precision": "float32",
    "batch_tokens": 128,
    "evaluate_every": 4,
    "save_every": 4,
    "samples": 2,
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tune")
    made.decoder_folder(folder / "ours")
    made.decoder_folder(folder / "encoder", causal=False)
    made.chats(folder / "chats.jsonl")
    made.texts(folder / "texts.jsonl")
    made.general(folder / "general.parquet")
    made.labelled(folder / "labels.jsonl")
    return folder


def step(home: Path, **settings: Any) -> Tune:
    given = {"model": home / "ours", "data": home / "chats.jsonl", "general": home / "general.parquet"}
    return Tune(**{**given, **SMALL, **settings})


def tune(home: Path, out: Path, emit: Any = ignore, **settings: Any) -> Path:
    return execute(step(home, **settings), out, emit)


def summary(folder: Path) -> dict[str, Any]:
    return storage.open_folder(folder, "tuned", check="hashes").meta["summary"]


@pytest.fixture(scope="module")
def adapter(home: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Event]]:
    """Whole runs, their figures too, of the same command twice; what the first one said."""
    heard: list[Event] = []
    runs = tmp_path_factory.mktemp("runs")
    tune(home, runs / "again")
    return tune(home, runs / "adapter", heard.append), heard


def test_an_adapter_folder_with_everything_said(adapter: tuple[Path, list[Event]]) -> None:
    out, heard = adapter
    assert {p.name for p in out.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "base.json", "tokenizer.json", "tokenizer_config.json",
        "generation_config.json", "chat_template.jinja", "metrics.jsonl", "samples.jsonl", "table.md", "tune.svg",
        "settings.yaml", "manifest.json", "heldout.jsonl",
    }  # fmt: skip
    found = summary(out)
    assert found["training_examples"] == 36
    assert found["data"][0] == "form messages (columns messages): 40 of 40 rows"
    assert found["heldout_examples"] == 4
    assert found["trained_parameters"] == 16 * 2 * (4 * (16 + 16) + 3 * (16 + 32))  # rank, layers, in + out
    assert found["task"]["texts"] == 4
    assert found["general"]["texts"] == 8
    said = " ".join(event.message for event in heard if isinstance(event, (Noted, Warned)))
    for words in (
        "form messages",
        "held out",
        "overlap",
        "learn",
        "forecast",
        "task: loss",
        "general text: loss",
        "peak",
    ):
        assert words in said
    rows = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert [set(row) for row in rows] == [{"prompt", "question", "reference", "text", "untrained"}] * 2
    assert "Who comes after" in rows[0]["prompt"] and rows[0]["question"] in rows[0]["prompt"]
    assert rows[0]["reference"].startswith("the ")
    assert "| general text |" in (out / "table.md").read_text()
    assert (out / "tune.svg").read_text().count("<svg") == 1


def test_bits_are_of_the_bytes_that_were_answered(adapter: tuple[Path, list[Event]], home: Path) -> None:
    """Nats over ln 2 and the answers' bytes; lzma packs the same bytes, and has read the rest before."""
    found = summary(adapter[0])
    rows = [json.loads(line)["messages"] for line in (home / "chats.jsonl").read_text().splitlines()]
    answers = {row[0]["content"]: row[1]["content"] for row in rows}
    held = [json.loads(line) for line in (adapter[0] / "samples.jsonl").read_text().splitlines()]
    assert all(answers[row["question"]] == row["reference"] for row in held)
    bits, nats = found["task"]["bits_per_byte"], found["task"]["after"] * found["task"]["tokens"]
    size = nats / math.log(2) / bits["after"]
    assert size == pytest.approx(4 * 7)  # four answers such as "the cat"
    assert 0 < bits["lzma"] < 20
    texts = [f"Page {i} of the book tells of a river and its {i} old mills." for i in range(8)]
    general = found["general"]
    per_byte = general["before"] * general["tokens"] / math.log(2) / len("".join(texts))
    assert general["bits_per_byte"]["before"] == pytest.approx(per_byte)
    assert "lzma needs" in (adapter[0] / "table.md").read_text()


@pytest.mark.parametrize("kind", ["full", "lora", "qlora"])
@pytest.mark.parametrize("model", ["ours", "encoder"])
def test_every_method_lowers_the_loss_of_its_task(kind: str, model: str, home: Path, tmp_path: Path) -> None:
    more: dict[str, Any] = {"learning_rate": 0.01 if kind == "full" else 0.02}
    if model == "encoder":  # few tokens are hidden
        more |= {"data": home / "texts.jsonl", "steps": 25, "batch_tokens": 512, "heldout_share": 0.3}
    settings = step(home, model=home / model, method={"kind": kind}, **more)
    out = execute(settings, tmp_path / "out", ignore)
    found = summary(out)
    assert found["task"]["interval"][1] < 0
    assert found["task"]["after"] < found["task"]["before"] - 0.2
    opened = open_model(out)
    logits = opened(torch.tensor([[1, 2, 3]]))
    assert logits.shape == (1, 3, opened.vocab_size)
    assert (out / ("model.safetensors" if settings.method.learns.whole else "adapter_config.json")).exists()


MEZO_RUN = {"steps": 30, "learning_rate": None, "evaluate_every": 15, "save_every": 15}


def test_forward_passes_alone_tune_and_leave_a_journal(home: Path, tmp_path: Path) -> None:
    """The journal, replayed on the base, gives the tuned folder's weights; the rate is found where none is given."""
    from mickle.training.journal import read_journal
    from mickle.training.replay import replay

    out = tune(home, tmp_path / "out", method={"kind": "mezo"}, **MEZO_RUN)
    assert summary(out)["task"]["after"] < summary(out)["task"]["before"] - 0.05
    journal = read_journal(out / "journal.mezo")
    assert journal.steps == summary(out)["kept_step"]
    base, tuned = open_model(home / "ours"), open_model(out)
    replay(base, journal)
    for (name, ours), theirs in zip(base.named_parameters(), tuned.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5), name


def test_forward_passes_alone_tune_adapters_and_go_on_after_a_kill(home: Path, tmp_path: Path) -> None:
    method = {"kind": "mezo", "parameters": {"kind": "lora", "targets": "all-linear"}}
    whole = tune(home, tmp_path / "whole", method=method, **MEZO_RUN)
    assert (whole / "adapter_config.json").exists()
    with pytest.raises(KeyboardInterrupt):
        tune(home, tmp_path / "cut", _interrupt_at(20), method=method, **MEZO_RUN)
    cut = tune(home, tmp_path / "cut", method=method, **MEZO_RUN)
    assert storage.open_folder(cut).digest == storage.open_folder(whole).digest


PROMPT = {"template": "{text} So {label}", "labels": {"few": "a", "many": "t"}, "label_field": "kind"}


@pytest.mark.parametrize("model", ["ours", "encoder"])
def test_labels_are_learnt_by_their_words(model: str, home: Path, tmp_path: Path) -> None:
    prompt = PROMPT if model == "ours" else {**PROMPT, "template": "{text}{label}."}
    more = {
        "data": home / "labels.jsonl",
        "prompt": prompt,
        "method": {"kind": "full"},
        "learning_rate": 0.01,
        "steps": 30,
    }
    heard: list[Event] = []
    out = tune(home, tmp_path / "out", heard.append, model=home / model, **more)
    found = summary(out)
    assert found["form"] == "labels"
    assert found["task"]["accuracy_after"] == 1.0
    assert found["task"]["after"] < 0.2 < found["task"]["before"]
    assert "nats a label" in (out / "table.md").read_text()
    rows = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert all(row["text"].startswith(row["reference"]) for row in rows)
    assert "[black on green]a[/]" in step(home, model=home / model, **more).dry_run()[1]


@pytest.mark.parametrize("parameters", ["full", "prefix"])
def test_wrong_labels_themselves_can_fall(parameters: str, home: Path, tmp_path: Path) -> None:
    """Accuracy as the objective has no gradient: forward passes alone. A prefix is saved as PEFT's."""
    method = {
        "kind": "mezo",
        "objective": "accuracy",
        "eps": 0.05,
        "learning_rate": 0.05,
        "parameters": {"kind": parameters},
    }
    given: dict[str, Any] = {"data": home / "labels.jsonl", "prompt": PROMPT, "weights": "last", **MEZO_RUN}
    out = tune(home, tmp_path / "out", method=method, **given)  # the best may be those before the first step
    assert summary(out)["journal"]["steps"] > 0
    events = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    wrong = [event["loss"] for event in events if event["event"] == "trained"]
    assert all(0 <= share <= 1 for share in wrong)
    if parameters == "full":
        assert sum(wrong[-10:]) < sum(wrong[:10])
    assert (out / ("model.safetensors" if parameters == "full" else "adapter_config.json")).exists()
    assert open_model(out)(torch.tensor([[1, 2]])).shape[:2] == (1, 2)


@pytest.mark.parametrize("kind", ["full", "lora", "qlora"])
def test_the_folder_measures_as_the_run_said(kind: str, home: Path, tmp_path: Path) -> None:
    """Opened anew, the folder has the loss on general text that the run ended with: nothing is lost in saving."""
    from mickle.data.heldout import read_pages
    from mickle.data.tokenizer import open_text_tokenizer
    from mickle.tuning.measures import page_scores

    out = tune(home, tmp_path / "out", method={"kind": kind}, steps=4)
    pages = [page for batch in read_pages(home / "general.parquet") for page in batch]
    length = summary(out)["plan"]["sequence_length"]
    with torch.no_grad():
        scores = page_scores(open_model(out), pages, open_text_tokenizer(out), min(length, made.LENGTH))
    nats, tokens, _ = scores.sum(0)
    assert nats / tokens == pytest.approx(summary(out)["general"]["after"], rel=1e-6)


@pytest.mark.parametrize(
    ("after", "kind", "special"), [("\n", "full", True), ("", "full", False), ("\n", "lora", True)]
)
def test_transformers_ends_an_answer_where_the_examples_end(
    after: str, kind: str, special: bool, home: Path, tmp_path: Path
) -> None:
    """The mark that tuning taught is an end of texts in the folder, and in what is exported of it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from mickle.exporting.export import Export

    base, heard = made.chat_folder(tmp_path / "base", after, special=special), []
    out = tune(home, tmp_path / "out", heard.append, model=base, method={"kind": kind}, steps=40)
    assert not [event for event in heard if isinstance(event, Warned) and "generate" in event.message]
    if kind == "lora":
        out = execute(Export(model=out), tmp_path / "merged", ignore)
    words = AutoTokenizer.from_pretrained(out)
    end = words.convert_tokens_to_ids("<|im_end|>")
    settings = json.loads((out / "generation_config.json").read_text())
    assert settings["eos_token_id"] == [words.convert_tokens_to_ids("<|endoftext|>"), end]
    prompt = words.apply_chat_template(
        [{"role": "user", "content": made.chat(3)["messages"][0]["content"]}], add_generation_prompt=True,
        return_tensors="pt", return_dict=True,
    )  # fmt: skip
    theirs = AutoModelForCausalLM.from_pretrained(out)
    written = theirs.generate(**prompt, max_new_tokens=25, do_sample=False)[0, prompt["input_ids"].shape[1] :].tolist()
    assert end in written and written.index(end) == len(written) - 1


def test_an_end_that_transformers_would_not_take_is_warned_of(home: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from mickle.models import folder_files

    monkeypatch.setattr(folder_files, "write_end_tokens", lambda *_: None)
    heard: list[Event] = []
    tune(home, tmp_path / "out", heard.append, model=made.chat_folder(tmp_path / "base"), method={"kind": "full"})
    assert any("does not end a text at [" in event.message for event in heard if isinstance(event, Warned))


def test_a_generate_that_goes_on_behind_the_end_is_warned_of(home: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from mickle.models import transformers_bridge
    from mickle.models.folder import end_tokens

    def goes_on(folder: Path, texts: Any, tokens: int) -> Any:
        ends = end_tokens(folder)
        return transformers_bridge.Read([], [[5, *ends, 5]], ends)

    monkeypatch.setattr(transformers_bridge, "read_by_transformers", goes_on)
    heard: list[Event] = []
    base = made.chat_folder(tmp_path / "base")
    tune(home, tmp_path / "out", heard.append, model=base, method={"kind": "full"}, steps=2)
    assert any("does not end a text at [" in event.message for event in heard if isinstance(event, Warned))


def test_a_model_that_transformers_does_not_know_is_not_asked_of_it(home: Path, tmp_path: Path) -> None:
    heard: list[Event] = []
    base = made.chat_folder(tmp_path / "base", position="alibi")
    out = tune(home, tmp_path / "out", heard.append, model=base, method={"kind": "full"}, steps=2)
    assert len(json.loads((out / "generation_config.json").read_text())["eos_token_id"]) == 2
    assert not any("transformers" in event.message for event in heard if isinstance(event, Warned))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_all_weights_go_out_in_the_type_they_came_in(dtype: torch.dtype, home: Path, tmp_path: Path) -> None:
    base = made.chat_folder(tmp_path / "base", dtype=dtype)
    out = tune(home, tmp_path / "out", model=base, method={"kind": "full"}, steps=2)
    assert {tensor.dtype for tensor in storage.load_tensors(out / "model.safetensors").values()} == {dtype}
    assert json.loads((out / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    assert (out / "tokenizer.model").read_bytes() == b"sentencepiece"
    again = open_model(out)
    assert again.embed_tokens.weight.dtype == dtype


@pytest.mark.parametrize(("model", "data"), [(made.gpt2_folder, "chats.jsonl"), (made.bert_folder, "texts.jsonl")])
def test_models_of_transformers(model: Any, data: str, home: Path, tmp_path: Path) -> None:
    """LoRA on Conv1D layers and on BERT's; the adapter opens in PEFT with the same logits; all weights learn too."""
    folder = model(tmp_path / "model")
    out = tune(home, tmp_path / "lora", model=folder, data=home / data)
    assert summary(out)["task"]["after"] < summary(out)["task"]["before"] - 0.1
    import peft
    import transformers

    auto = transformers.AutoModelForCausalLM if "gpt2" in model.__name__ else transformers.AutoModelForMaskedLM
    theirs = peft.PeftModel.from_pretrained(auto.from_pretrained(folder), out).eval()
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        assert torch.allclose(theirs(input_ids=ids).logits, open_model(out)(ids), atol=1e-5)
    whole = tune(home, tmp_path / "full", model=folder, data=home / data, method={"kind": "full"}, learning_rate=0.003)
    assert summary(whole)["task"]["after"] < summary(whole)["task"]["before"] - 0.1
    auto.from_pretrained(whole)


def test_the_same_command_twice_gives_the_same_bytes(adapter: tuple[Path, list[Event]]) -> None:
    again = storage.open_folder(adapter[0].parent / "again")
    assert again.digest == storage.open_folder(adapter[0]).digest


def _interrupt_at(step: int) -> Callable[[Event], None]:
    """As from Ctrl-C after so many steps."""

    def interrupt(event: Event) -> None:
        if isinstance(event, Trained) and event.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    return interrupt


def test_files_are_read_by_their_weights_and_columns_and_the_run_goes_on(home: Path, tmp_path: Path) -> None:
    """Twelve questions twice, half of forty chats; no text is on both sides; a killed run has the same bytes."""
    table = tmp_path / "faq.csv"
    table.write_text(
        "question,answer\n" + "".join(f"Who is number {i}?,the {made.ANIMALS[i % 6]}\n" for i in range(12))
    )
    data = [{"path": table, "weight": 2, "columns": "question=user,answer=assistant"}, f"{home / 'chats.jsonl'}:0.5"]
    given: dict[str, Any] = {"data": data, "samples": 0, "steps": 4, "evaluate_every": 2, "save_every": 4}
    found = summary(whole := tune(home, tmp_path / "whole", **given))
    shares = [(Path(share["file"]).name, share["weight"], share["read"]) for share in found["shares"]]
    held = found["heldout_examples"]
    kept = [share["examples"] for share in found["shares"]]
    assert sum(kept) + held == 52 and held == 5
    assert shares == [("faq.csv", 2, 2 * kept[0]), ("chats.jsonl", 0.5, round(kept[1] / 2))]
    assert found["training_examples"] == shares[0][2] + shares[1][2]
    assert found["overlap"] == {"exact": 0, "near": 0}
    assert any("faq.csv: an epoch reads" in line for line in found["data"])
    assert "each" not in Tune.section(whole, found).lead and Tune.section(whole, found).tables[1].rows[0][2] == "2"
    with pytest.raises(KeyboardInterrupt):
        tune(home, tmp_path / "cut", _interrupt_at(2), **given)
    assert storage.open_folder(tune(home, tmp_path / "cut", **given)).digest == storage.open_folder(whole).digest


def test_marks_that_the_model_lacks_learn_beside_adapters(home: Path, tmp_path: Path) -> None:
    """A chat template's new mark has a spare row, which learns, as a norm does; killed it has the same bytes; merged it
    is proven equal.
    """
    from mickle.exporting.export import Export

    base = made.decoder_folder(tmp_path / "base", spare=1)
    (base / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role }}: {% generation %}{{ m.content }}<|new|>{% endgeneration %}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    method = {"kind": "lora", "rank": 2, "trained_tokens": ["<|new|>"], "modules_to_save": ["norm"]}
    given: dict[str, Any] = {"model": base, "method": method, "steps": 6, "samples": 0}
    found = summary(whole := tune(home, tmp_path / "whole", **given))
    tensors = storage.load_tensors(whole / "adapter_model.safetensors")
    mark = json.loads((whole / "adapter_config.json").read_text())["trainable_token_indices"]["model.embed_tokens"]
    assert mark == [json.loads((base / "config.json").read_text())["vocab_size"] - 1]
    row = tensors["base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"]
    before = open_model(base)
    assert not torch.allclose(row, before.embed_tokens.weight[mark], atol=1e-3)
    assert not torch.allclose(tensors["base_model.model.model.norm.weight"], before.norm.weight, atol=1e-3)
    assert (
        found["trained_parameters"] == found["plan"]["learning"] == sum(tensor.numel() for tensor in tensors.values())
    )
    assert found["task"]["after"] < found["task"]["before"]
    with pytest.raises(KeyboardInterrupt):
        tune(home, tmp_path / "cut", _interrupt_at(3), **given)
    assert storage.open_folder(tune(home, tmp_path / "cut", **given)).digest == storage.open_folder(whole).digest
    merged = open_model(execute(Export(model=whole), tmp_path / "merged", ignore))
    assert torch.allclose(merged.embed_tokens.weight[mark], row)


def test_patience_ends_a_run_that_becomes_no_better(home: Path, tmp_path: Path) -> None:
    """A rate at which the held-out loss soon rises; stopped and gone on from after its last step too."""
    given: dict[str, Any] = {"weights": {"patience": 2}, "learning_rate": 0.3, "steps": 40, "samples": 0}
    given["evaluate_every"] = 2
    found = summary(whole := tune(home, tmp_path / "whole", **given))
    events = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    held = {event["step"]: event["values"]["heldout_loss"] for event in events if event["event"] == "evaluated"}
    best, last = min(held, key=lambda step: held[step]), max(held)
    assert last == best + 4 < 40
    assert found["steps_made"] == last and max(event["step"] for event in events) == last
    assert found["kept_step"] in (0, best)
    assert f"stopped at step {last} of 40: the last 2 evaluations" in Tune.section(whole, found).lead
    with pytest.raises(KeyboardInterrupt):
        tune(home, tmp_path / "cut", _interrupt_at(last), **given)
    assert storage.open_folder(tune(home, tmp_path / "cut", **given)).digest == storage.open_folder(whole).digest


@pytest.mark.parametrize("kind", ["full", "qlora"])
def test_a_killed_run_goes_on_bit_for_bit(kind: str, home: Path, tmp_path: Path) -> None:
    """SIGINT after step 6: the last checkpoint is of step 6, and the end is what it would have been."""
    method = {"kind": kind, **({"dropout": 0.1} if kind == "qlora" else {})}
    whole = tune(home, tmp_path / "whole", method=method)

    with pytest.raises(KeyboardInterrupt):
        tune(home, tmp_path / "cut", _interrupt_at(6), method=method)
    assert not (tmp_path / "cut").exists()
    heard: list[Event] = []
    cut = tune(home, tmp_path / "cut", heard.append, method=method)
    assert [e.step for e in heard if isinstance(e, Trained)] == list(range(7, 13))
    assert storage.open_folder(cut).digest == storage.open_folder(whole).digest


def test_checkpoints_of_adapters_do_not_hold_the_base(home: Path, tmp_path: Path) -> None:
    sizes: list[int] = []

    def weigh(event: Event) -> None:
        if isinstance(event, Saved):
            sizes.append((event.path / "model.safetensors").stat().st_size)

    out = tune(home, tmp_path / "out", weigh, method={"kind": "lora", "rank": 1})
    assert 0 < max(sizes) < (out / "adapter_model.safetensors").stat().st_size + 2000
    assert max(sizes) < (home / "ours" / "model.safetensors").stat().st_size / 4


def test_parts_of_a_batch_and_activations_computed_twice_change_nothing(home: Path, tmp_path: Path) -> None:
    """The loss of every step is the same to 1e-6, relative (RELIABILITY 11)."""
    losses: dict[str, list[float]] = {}
    for name, more in (("one", {"accumulate": 1}), ("parts", {"accumulate": 2}), ("twice", {"recompute": True})):
        out = tune(home, tmp_path / name, **more)
        events = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        losses[name] = [event["loss"] for event in events if event["event"] == "trained"]
        assert summary(out)["plan"]["batch_size"] == 2
    assert losses["parts"] == pytest.approx(losses["one"], rel=1e-6)
    assert losses["twice"] == pytest.approx(losses["one"], rel=1e-6)


def test_paged_averages_and_other_spellings_change_nothing(home: Path, tmp_path: Path) -> None:
    method = {"kind": "qlora", "dropout": 0.1}
    one = tune(home, tmp_path / "one", method=method)
    other = tune(home, tmp_path / "other", method={**method, "paged": True, "targets": ["all-linear"]})
    pair = [storage.load_tensors(out / "adapter_model.safetensors") for out in (one, other)]
    assert pair[0].keys() == pair[1].keys()
    assert all(torch.allclose(pair[0][name], pair[1][name], atol=1e-6) for name in pair[0])


def test_bfloat16_halves_the_frozen_base(home: Path, tmp_path: Path) -> None:
    from mickle.models.lora import lora_layers
    from mickle.tuning.tune_run import open_model_to_tune

    settings = step(home, precision="bfloat16")
    known, plan, _ = settings._ready(tmp_path, ignore)
    layers = lora_layers(open_model_to_tune(known, plan, 0))
    assert {layer.weight.dtype for layer in layers.values()} == {torch.bfloat16}
    assert {layer.lora_A.dtype for layer in layers.values()} == {torch.float32}
    found = summary(tune(home, tmp_path / "out", precision="bfloat16"))
    assert found["task"]["after"] < found["task"]["before"] - 0.2


def test_given_heldout_examples_that_were_trained_on_are_told(home: Path, tmp_path: Path) -> None:
    made.chats(tmp_path / "heldout.jsonl", 5)
    heard: list[Event] = []
    out = tune(home, tmp_path / "out", heard.append, heldout=tmp_path / "heldout.jsonl", steps=2)
    assert summary(out)["overlap"]["exact"] == 5
    assert summary(out)["training_examples"] == 40
    assert any("among the training examples" in e.message for e in heard if isinstance(e, Warned))


def test_nothing_held_out(home: Path, tmp_path: Path) -> None:
    general = made.write_rows(tmp_path / "general.jsonl", [{"text": "Page 1."}, {"text": "A river."}])
    found = summary(tune(home, tmp_path / "out", heldout_share=0.0, steps=2, general=general))
    assert found["task"] is None
    assert found["general"]["texts"] == 2
    made.write_rows(general, [{"text": "Page 1."}, {"txt": "A river."}])
    with pytest.raises(UsageError, match="has no `text`"):
        tune(home, tmp_path / "bad", heldout_share=0.0, steps=2, general=general)
    assert found["kept_step"] == 2


def test_forgetting_is_warned_of(home: Path, tmp_path: Path) -> None:
    """A model that knows the general text, tuned hard on something else, loses it: measured and said."""
    pages = tmp_path / "pages.jsonl"
    made.write_rows(
        pages, ({"text": f"Page {i} of the book tells of a river and its {i} old mills."} for i in range(8))
    )
    learnt = tune(home, tmp_path / "learnt", data=pages, method={"kind": "full"}, steps=25, batch_tokens=512)
    assert summary(learnt)["general"]["after"] < summary(learnt)["general"]["before"] - 1
    heard: list[Event] = []
    out = tune(home, tmp_path / "out", heard.append, model=learnt, method={"kind": "full"}, steps=25)
    assert summary(out)["general"]["interval"][0] > 0.02
    assert any("forgot" in event.message for event in heard if isinstance(event, Warned))


@pytest.mark.parametrize(("kind", "rate"), [("full", 30.0), ("lora", 30.0), ("mezo", 3.0)])
def test_a_tuning_that_only_ruins_keeps_the_model_as_it_came(
    kind: str, rate: float, home: Path, tmp_path: Path
) -> None:
    """No step is better than none: then those are the best weights, the journal has no step, and it is said."""
    method = {"kind": kind, **({"learning_rate": rate} if kind == "mezo" else {})}
    more = {"method": method, "learning_rate": rate, "steps": 2, "evaluate_every": 1, "save_every": 1, "samples": 0}
    heard: list[Event] = []
    out = tune(home, tmp_path / "out", heard.append, **more)
    found = summary(out)
    assert found["kept_step"] == 0
    assert found["task"]["before"] == found["task"]["after"]
    assert any(e.message.startswith("no step was better") for e in heard if isinstance(e, Warned))
    assert "no step was better" in Tune.section(out, found).lead
    assert kind != "mezo" or found["journal"]["steps"] == 0


def test_general_text_is_the_models_own_held_out_pages(home: Path, tmp_path: Path) -> None:
    made.general(made.decoder_folder(tmp_path / "model") / "heldout.parquet")
    found = summary(tune(home, tmp_path / "out", model=tmp_path / "model", general=None, steps=1))
    assert found["general_text"] == "the model's own held-out pages"
    assert found["general"]["texts"] == 8


def test_documentation_is_general_text_where_there_is_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mickle.tuning import general

    monkeypatch.setattr(general, "MODULES", 3)
    pages, whence = general.general_pages(None, tmp_path)
    assert "documentation" in whence
    assert pages
    assert all(general.SHORTEST <= len(page.text) <= general.MOST_CHARACTERS for page in pages)


def test_a_dry_run_says_what_would_be_done(home: Path) -> None:
    forecast, shown = step(home).dry_run()
    assert forecast.memory_bytes > 10**7
    said = " ".join(forecast.notes)
    for words in ("form messages", "36", "learn", "batch: 2 rows", "learning rate 0.02"):
        assert words in said
    assert "on green" in shown or "bright_green" in shown


def test_memory_that_is_not_there_is_said_before_the_model_is_opened(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mickle import machine

    monkeypatch.setattr(machine, "available_memory", lambda: 0)
    with pytest.raises(ResourceError, match="even one row at a time"):
        tune(home, tmp_path / "out")
    assert list(tmp_path.glob("out/*")) == []
