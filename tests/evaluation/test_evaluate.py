"""The verb `evaluate`: what it writes, that baselines see no measured page, any folder, and what it refuses."""

import json
import math

import pytest

import mickle
from mickle.data.heldout import write_pages
from mickle.data.records import Page
from mickle.data.tokenizer import train_tokenizer
from mickle.errors import UsageError
from mickle.evaluation.evaluate import Evaluate, training_texts_for
from mickle.evaluation.texts import page_texts
from mickle.events import Noted, Warned, ignore
from mickle.models.decoder import Decoder
from mickle.models.folder import save_model
from mickle.models.shape import DecoderConfig
from mickle.step import execute
from mickle.storage import read_manifest

PAGES = [
    Page(f"u{i}", "even" if i % 2 == 0 else "odd|one", "en", f"page {i} tells of {i * i} birds and {i + 1} trees")
    for i in range(24)
]
TOKENIZER = train_tokenizer([page.text for page in PAGES], 265)


@pytest.fixture
def model(tmp_path):
    shape = DecoderConfig(TOKENIZER.size, 32, 2, 2, 2, 16, 64, max_length=64)
    save_model(Decoder(shape, seed=0), tmp_path / "model", TOKENIZER)
    write_pages(PAGES[:6], tmp_path / "model" / "heldout.parquet")
    (tmp_path / "corpus").mkdir()
    write_pages(PAGES, tmp_path / "corpus" / "pages.parquet")
    return tmp_path / "model"


def test_numbers_table_and_figure(model, tmp_path):
    said = []
    step = Evaluate(model=model, task={"kind": "loss", "baselines_from": tmp_path / "corpus"})
    out = execute(step, tmp_path / "out", lambda e: said.append(e.message) if isinstance(e, Noted) else None)
    results = json.loads((out / "results.json").read_text())
    measured = results["model"]
    assert measured["bytes"] == sum(len(page.text) for page in PAGES[:6])
    # Fresh weights are small: every token has a chance of about 1 / V.
    assert measured["perplexity"] == pytest.approx(TOKENIZER.size, rel=0.1)
    bits = measured["nats_per_token"] * measured["tokens"] / math.log(2) / measured["bytes"]
    assert measured["bits_per_byte"] == pytest.approx(bits)
    assert results["pages_left_out_of_baselines"] == 6
    assert results["baseline_pages"] == 18
    assert results["baselines"]["5-gram bytes"] < results["baselines"]["unigram bytes"] < 8
    table = (out / "table.md").read_text()
    assert "| **this model** |" in table
    assert "odd\\|one" in table
    assert any("6 that are measured were left out" in line for line in said)
    assert (out / "loss.svg").read_text().count("<svg") == 1
    assert storage_kind(out) == "evaluation"


def storage_kind(folder):
    return json.loads((folder / "manifest.json").read_text())["kind"]


def test_the_same_command_gives_the_same_bytes(model, tmp_path):
    for name in ("a", "b"):
        execute(Evaluate(model=model), tmp_path / name, ignore)
    for file in ("results.json", "table.md", "loss.svg"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_baselines_never_learn_from_a_measured_page_whatever_its_white_space(model, tmp_path):
    spaced = [Page("v", "d", "en", PAGES[0].text.replace(" ", "\n "))]
    measured = page_texts(spaced, TOKENIZER)
    texts, left_out = training_texts_for(tmp_path / "corpus", measured, model, TOKENIZER, ignore)
    assert left_out == 1
    assert PAGES[0].text not in texts


def test_a_folder_of_transformers(model, tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    theirs = GPT2LMHeadModel(GPT2Config(vocab_size=TOKENIZER.size, n_embd=32, n_layer=1, n_head=2, n_positions=16))
    theirs.save_pretrained(tmp_path / "gpt2")
    TOKENIZER.save(tmp_path / "gpt2")
    task = {"kind": "loss", "data": tmp_path / "corpus"}
    out = execute(Evaluate(model=tmp_path / "gpt2", task=task), tmp_path / "out", ignore)
    results = json.loads((out / "results.json").read_text())
    assert results["length"] == 16
    assert results["model"]["perplexity"] == pytest.approx(TOKENIZER.size, rel=0.1)


def test_answers_cost_what_tuning_says_and_baselines_read_the_same_answers(model, tmp_path):
    """The loss of a file of conversations is the one that tune measures on it; a tuned folder has it by default."""
    ask = "how many birds tells page {} of"
    rows = [[{"role": "user", "content": ask.format(i)}, {"role": "assistant", "content": f"{i * i} of them"}]
            for i in range(24)]  # fmt: skip
    files = {"train": rows[:16], "held": rows[16:]}
    for name, some in files.items():
        lines = "".join(json.dumps({"messages": turns}) + "\n" for turns in some)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    tuned = mickle.tune(
        model=model, data=tmp_path / "train.jsonl", heldout=tmp_path / "held.jsonl", steps=2, samples=0,
        weights="last", learning_rate=1e-2, out=tmp_path / "tuned", emit=ignore,
    )  # fmt: skip
    said = read_manifest(tuned).meta["summary"]["task"]
    task = {"kind": "loss", "data": tmp_path / "held.jsonl", "baselines_from": tmp_path / "train.jsonl"}
    found = {
        "before": mickle.evaluate(model, task=task, out=tmp_path / "before", emit=ignore),
        "after": mickle.evaluate(tuned, out=tmp_path / "after", emit=ignore),
    }
    for name, out in found.items():
        results = json.loads((out / "results.json").read_text())
        assert results["model"]["nats_per_token"] == pytest.approx(said[name], rel=1e-4)
        assert results["model"]["tokens"] == said["tokens"]
        assert results["model"]["bytes"] == sum(len(turns[1]["content"]) for turns in rows[16:])
    baselines = json.loads((found["before"] / "results.json").read_text())["baselines"]
    assert baselines["5-gram bytes"] < baselines["unigram bytes"] < baselines["zlib after the question"]
    assert Evaluate(model=tuned).after(found["after"]) == f"mickle chat {tuned}"
    assert "8 conversations, their answers" in (found["before"] / "table.md").read_text()


@pytest.mark.parametrize("data", ["corpus", "heldout"])
def test_it_warns_of_texts_that_the_model_was_trained_on(data, made, tmp_path):
    """Those of its own step, by content; of what it held out it says how the training measured it."""
    heard = []
    task = {"kind": "loss"} if data == "heldout" else {"kind": "loss", "data": made / data}
    mickle.evaluate(made / "model", task=task, out=tmp_path / "out", emit=heard.append)
    warned = [event.message for event in heard if isinstance(event, Warned)]
    told = [event.message for event in heard if isinstance(event, Noted) and "another measure" in event.message]
    assert (len(warned), len(told)) == ((0, 1) if data == "heldout" else (1, 0))


def test_length_is_a_task_of_the_same_verb():
    assert Evaluate(model="m", task={"kind": "length", "task": "cmc"}).task.kind == "length"


def _no_pages(model):
    (model / "heldout.parquet").unlink()


def _empty(model):
    write_pages([], model / "heldout.parquet")


def _corrupt(model):
    (model / "heldout.parquet").write_bytes(b"PAR1")


def _no_end_mark(model):
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**settings, "eos_token": "<gone>"}))


def _larger_vocabulary(model):
    train_tokenizer([page.text for page in PAGES], 275).save(model)


def _cut_weights(model):
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _not_sealed(model):
    (model / "config.json").unlink()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_no_pages, "no held-out pages"),
        (_empty, "no page with text"),
        (_corrupt, "not a whole Parquet file"),
        (_no_end_mark, "lacks an end"),
        (_larger_vocabulary, "The tokenizer has .* tokens, the model"),
        (_cut_weights, "."),
        (_not_sealed, "."),
    ],
)
def test_what_it_refuses(model, tmp_path, spoil, said):
    spoil(model)
    with pytest.raises(UsageError, match=said) as caught:
        execute(Evaluate(model=model), tmp_path / "out", ignore)
    assert len(str(caught.value).splitlines()) <= 4
    assert not (tmp_path / "out").exists()


def test_a_missing_model(tmp_path):
    with pytest.raises(UsageError):
        execute(Evaluate(model=tmp_path / "nowhere"), tmp_path / "out", ignore)


def test_a_stride_longer_than_the_window(model, tmp_path):
    with pytest.raises(UsageError, match="stride"):
        execute(Evaluate(model=model, task={"kind": "loss", "length": 8, "stride": 9}), tmp_path / "out", ignore)


@pytest.mark.parametrize("task", [{"kind": "loss"}, {"kind": "masked"}, {"kind": "compare"}])
@pytest.mark.parametrize("ours", [True, False])
def test_a_length_beyond_a_table_of_positions_is_refused(task, ours, tmp_path):
    """Ours with learned positions, and a GPT-2 or BERT of transformers, at one token more than they have."""
    causal, folder = task["kind"] != "masked", tmp_path / "model"
    tokenizer = train_tokenizer([page.text for page in PAGES], 265, mask=True)
    if ours:
        shape = DecoderConfig(tokenizer.size, 16, 1, 2, 2, 8, 32, 32, position="learned", causal=causal)
        save_model(Decoder(shape), folder, tokenizer)
    else:
        import transformers

        common = {"vocab_size": tokenizer.size, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                  "max_position_embeddings": 32, "intermediate_size": 32}  # fmt: skip
        kind = "GPT2" if causal else "Bert"
        config = getattr(transformers, f"{kind}Config")(**common)
        getattr(transformers, "GPT2LMHeadModel" if causal else "BertForMaskedLM")(config).save_pretrained(folder)
        tokenizer.save(folder)
    write_pages([Page("u", "", "en", "birds and trees " * 40)], folder / "heldout.parquet")
    others = {"others": [folder]} if task["kind"] == "compare" else {}
    with pytest.raises(UsageError, match="positions for 32 tokens, not for 33"):
        execute(Evaluate(model=folder, task={**task, **others, "length": 33}), tmp_path / "out", ignore)
    execute(Evaluate(model=folder, task={**task, **others, "length": 32}), tmp_path / "out", ignore)
