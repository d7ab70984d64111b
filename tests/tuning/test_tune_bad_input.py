"""`mickle tune` on what will not do: one clear error, the right exit code, nothing half-written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import tuning_folders as made

from mickle import cli, storage

pytestmark = pytest.mark.usefixtures("quick")

Prepare = Callable[[Path], object]
LONG = "word " * 200
CHOICE = {"prompt": "Who?", "chosen": "the cat", "rejected": "the dog"}


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders that each case gets a copy of."""
    folder = tmp_path_factory.mktemp("stock")
    made.decoder_folder(folder / "model")
    made.decoder_folder(folder / "encoder", causal=False)
    made.chats(folder / "chats.jsonl")
    made.texts(folder / "texts.jsonl")
    made.general(folder / "general.parquet")
    return folder


@pytest.fixture
def here(stock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(stock, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def _nothing(here: Path) -> None:
    pass


def _rows(name: str, *rows: object) -> Prepare:
    return lambda here: made.write_rows(here / name, rows)


def _adapter(here: Path) -> None:
    shutil.copytree(here / "model", here / "adapter")
    storage.write_json(here / "adapter" / "adapter_config.json", {"peft_type": "LORA"})


def _not_finite(here: Path) -> None:
    path = here / "model" / "model.safetensors"
    tensors = storage.load_tensors(path)
    tensors["model.norm.weight"] = torch.full_like(tensors["model.norm.weight"], torch.nan)
    storage.save_tensors(path, tensors, {"format": "pt"})


def _cut(name: str) -> Prepare:
    return lambda here: (here / name).write_bytes((here / name).read_bytes()[:-100])


def _template(text: str) -> Prepare:
    return lambda here: (here / "model" / "chat_template.jinja").write_text(text)


def _smaller_vocabulary(here: Path) -> None:
    path = here / "model" / "tokenizer.json"
    values = json.loads(path.read_text())
    values["added_tokens"].append({**values["added_tokens"][0], "id": 5000, "content": "<|extra|>"})
    path.write_text(json.dumps(values))


TUNE = "tune model --data chats.jsonl"


def _knows_no_word(here: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    size = json.loads((here / "model" / "config.json").read_text())["vocab_size"]
    words = Tokenizer(
        models.WordLevel({"<unk>": 0, "<|endoftext|>": 1, **{f"w{i}": i for i in range(2, size)}}, "<unk>")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.add_special_tokens(["<unk>", "<|endoftext|>"])
    words.save(str(here / "model" / "tokenizer.json"))
    rows = [{"prompt": "w2 w3 w4 w5 w6", "completion": f" savi odottaa {number}"} for number in range(20)]
    (here / "finnish.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


CASES: list[tuple[str, Prepare, str]] = [
    ("tune model --data finnish.jsonl --method full", _knows_no_word, "75.0% of the tokens are <unk>"),
    ("pretrain general.parquet --tokenizer model", _knows_no_word, "of the tokens are <unk>"),
    ("tune", _nothing, "model: this field is required"),
    ("tune model", _nothing, "data: this field is required"),
    ("tune none --data chats.jsonl", _nothing, "none"),
    ("tune model --data none.jsonl", _nothing, "none.jsonl"),
    ("tune chats.jsonl --data chats.jsonl", _nothing, "chats.jsonl"),
    ("tune adapter --data chats.jsonl", _adapter, "mickle export adapter"),
    (TUNE, lambda here: (here / "model" / "tokenizer.json").unlink(), "tokenizer"),
    (TUNE, lambda here: (here / "model" / "model.safetensors").unlink(), "model.safetensors"),
    (TUNE, _cut("model/model.safetensors"), "model.safetensors"),
    (TUNE, _not_finite, "model.norm.weight"),
    (TUNE, _smaller_vocabulary, "The tokenizer has 281 tokens, the model 280"),
    (TUNE, _template("{% for m in messages %}"), "chat_template.jinja"),
    (TUNE, _template("{{ messages[0].content.__class__ }}"), "no answer of this example can be trained"),
    ("tune model --data rows.jsonl", _rows("rows.jsonl"), "rows.jsonl"),
    ("tune model --data rows.jsonl", _rows("rows.jsonl", '{"text": "a"', "[", "{"), "rows.jsonl"),
    ("tune model --data rows.jsonl", _rows("rows.jsonl", {"question": "a", "answer": "b"}), "no known form"),
    (f"{TUNE} --columns question=user,answer=assistant", _nothing, "no column 'question'"),
    (f"{TUNE} --columns messages=said", _nothing, "'said' is no name of a column here"),
    (f"{TUNE} --columns messages", _nothing, "question=user,answer=assistant"),
    (f"{TUNE} texts.jsonl", _nothing, "of another form (text)"),
    (f"{TUNE} --method.trained-tokens <|new|>", _nothing, "The tokenizer has"),
    (f"{TUNE} --method.modules-to-save embed_tokens nothing", _nothing, "no layer is called 'nothing'"),
    (f"{TUNE} --method.modules-to-save q_proj", _nothing, "has adapters"),
    (f"{TUNE}:0", _nothing, "greater than 0"),
    (f"{TUNE} --heldout-share 0 --weights.patience 2", _nothing, "nothing is measured"),
    ("tune model --data rows.jsonl", _rows("rows.jsonl", *[{"text": ""}] * 9), "rows are bad"),
    ("tune model --data rows.jsonl", _rows("rows.jsonl", *[{"text": "a b"}] * 9), "All examples say the same"),
    ("tune model --data rows.jsonl", _rows("rows.jsonl", {"text": "one row"}), "two different examples"),
    (
        "tune model --data rows.jsonl --heldout-share 0 --sequence-length 16",
        _rows("rows.jsonl", {"prompt": LONG, "completion": "b"}),
        "nothing to learn",
    ),
    ("tune model --data rows.jsonl", _rows("rows.jsonl", CHOICE, {**CHOICE, "chosen": "a hen"}), "preferences"),
    (f"{TUNE} --heldout texts.jsonl", _nothing, "another form"),
    (f"{TUNE} --heldout texts.jsonl --heldout-share 0.1", _nothing, "leave heldout_share out"),
    ("tune encoder --data chats.jsonl", _nothing, "sees both sides"),
    (f"{TUNE} --sequence-length 100", _nothing, "at most 64 tokens"),
    (f"{TUNE} --steps 3 --epochs 2", _nothing, "not both"),
    (f"{TUNE} --method dora", _nothing, "method"),
    (f"{TUNE} --method lora --method.rank 0", _nothing, "rank"),
    (f"{TUNE} --method lora --method.targets c_attn", _nothing, "q_proj"),
    (f"{TUNE} --method full --method.rank 4", _nothing, "unknown"),
    (f"{TUNE} --general chats.jsonl", _nothing, "chats.jsonl"),
    (f"{TUNE} --general pages.parquet", lambda here: (here / "pages.parquet").write_text("no"), "pages.parquet"),
]


@pytest.mark.parametrize(("command", "prepare", "says"), CASES, ids=range(len(CASES)))
def test_one_sentence_and_nothing_left(
    here: Path, capsys: pytest.CaptureFixture[str], command: str, prepare: Prepare, says: str
) -> None:
    prepare(here)
    with pytest.raises(SystemExit) as leaving:
        cli.main([*command.split(), "--out", "out", "--quiet"])
    said = capsys.readouterr().err
    assert leaving.value.code == (5 if prepare is _not_finite else 2), said
    assert says in said
    assert "Traceback" not in said
    assert 1 <= len(said.strip().splitlines()) <= 4
    assert not (here / "out").exists()
    assert not (here / "out.partial").exists()


def test_weights_in_few_bits_cannot_all_learn(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor with forward passes; adapters on them can."""
    from mickle.data.tokenizer import open_text_tokenizer
    from mickle.models.folder import open_model
    from mickle.models.quantized import quantize_model, save_quantized

    model = open_model(here / "model")
    quantize_model(model)
    save_quantized(model, here / "small", open_text_tokenizer(here / "model"))
    command = ["tune", "small", "--data", "chats.jsonl", "--general", "general.parquet", "--steps", "2", "--quiet"]
    for method in ("full", "mezo"):
        with pytest.raises(SystemExit):
            cli.main([*command, "--out", "out", "--method", method])
        assert "stored in few bits" in capsys.readouterr().err
        assert not (here / "out").exists()
    for method in ("qlora", "lora"):
        with pytest.raises(SystemExit) as leaving:
            cli.main([*command, "--out", f"out-{method}", "--method", method])
        assert leaving.value.code in (None, 0), capsys.readouterr().err
        open_model(here / f"out-{method}")
