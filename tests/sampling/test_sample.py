"""The verb: whole folders in, samples out, the same bytes twice, one sentence for what is wrong."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mickle import storage
from mickle.config import validate
from mickle.data.tokenizer import train_tokenizer
from mickle.errors import UsageError
from mickle.events import ignore
from mickle.models.decoder import Decoder, DecoderConfig
from mickle.models.folder import save_model
from mickle.sampling.sample import Sample, answers, read_prompts, read_questions, readable
from mickle.step import execute


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sealed model folder, as pretrain leaves it: its manifest names the seed."""
    folder = tmp_path_factory.mktemp("sample") / "model"
    tokenizer = train_tokenizer(["the cat sat on the mat, the dog did not " * 9], 280, or_fewer=True)
    shape = DecoderConfig(tokenizer.size, 32, 2, 4, 2, 8, 48, 64, initial_std=0.3)
    save_model(Decoder(shape, seed=5), folder, tokenizer)
    storage.seal(folder, kind="model", identity={"settings": {"seed": 5}})
    return folder


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def test_samples_are_written_readable_and_twice_the_same(model: Path, tmp_path: Path) -> None:
    step = Sample(model=model, prompts=("the cat", "", "the"), max_tokens=7, seed=3)
    first, second = execute(step, tmp_path / "one", ignore), execute(step, tmp_path / "two", ignore)
    assert (first / "samples.jsonl").read_bytes() == (second / "samples.jsonl").read_bytes()
    rows = lines(first)
    assert [row["prompt"] for row in rows] == ["the cat", "", "the"]
    assert all(1 <= row["tokens"] <= 7 and row["stopped"] in ("stop", "length") for row in rows)
    assert readable(rows) == (first / "samples.txt").read_text()
    manifest = storage.open_folder(first, kind="samples")
    assert manifest.meta["summary"]["samples"] == rows


def test_a_prompts_text_does_not_depend_on_the_other_prompts(model: Path, tmp_path: Path) -> None:
    many = tuple(f"the {'cat ' * n}" for n in range(18))  # more than one batch
    together = lines(execute(Sample(model=model, prompts=many, max_tokens=5), tmp_path / "many", ignore))
    alone = lines(execute(Sample(model=model, prompts=many[4:5], max_tokens=5), tmp_path / "one", ignore))
    assert alone[0] == together[4]


def test_the_untrained_twin_is_the_model_at_its_own_seed(model: Path, tmp_path: Path) -> None:
    """This model was saved untrained, so its twin must write exactly the same."""
    step = Sample(model=model, prompts=("the", "a"), max_tokens=9, compare_untrained=True, seed=1)
    folder = execute(step, tmp_path / "out", ignore)
    assert all(row["untrained"] == row["text"] for row in lines(folder))
    assert "before training:" in (folder / "samples.txt").read_text()


def test_the_model_before_is_given_the_same(model: Path, tmp_path: Path) -> None:
    """Beside itself it writes the same; not both ways to have something beside."""
    folder = execute(Sample(model=model, prompts=("the", "a"), max_tokens=9, before=model), tmp_path / "out", ignore)
    assert all(row["untrained"] == row["text"] for row in lines(folder))
    with pytest.raises(UsageError, match="leave compare_untrained out"):
        validate(Sample, {"model": model, "prompts": ["a"], "before": model, "compare_untrained": True}, where="here")


def test_prompts_come_from_files_too(model: Path, tmp_path: Path) -> None:
    plain, records = tmp_path / "prompts.txt", tmp_path / "prompts.jsonl"
    plain.write_text("one\n\n  two\n")
    records.write_text('{"prompt": "on\\ne"}\n\n{"prompt": "", "id": 3}\n')
    assert read_prompts(plain) == [{"prompt": "one"}, {"prompt": "  two"}]
    assert read_prompts(records) == [{"prompt": "on\ne"}, {"prompt": ""}]
    step = Sample(model=model, prompts=("first",), prompt_file=plain, max_tokens=1)
    assert [row["prompt"] for row in lines(execute(step, tmp_path / "out", ignore))] == ["first", "one", "  two"]


def test_questions_are_asked_through_the_template(model: Path, tmp_path: Path) -> None:
    """The same texts as from prompts that hold what the template makes of them; answers of the file stand beside."""
    folder, file = tmp_path / "model", tmp_path / "questions.jsonl"
    shutil.copytree(model, folder)
    (folder / "manifest.json").unlink()
    (folder / "chat_template.jinja").write_text(
        "{{ bos_token }}{% for m in messages %}{{ m.role + ':' + m.content }}{% endfor %}a:"
    )
    user, answer = {"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat"}
    rows: list[dict[str, Any]] = [{"messages": [user]}, {"messages": [user, answer]}, {"prompt": "the dog"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    common: dict[str, Any] = {"model": folder, "max_tokens": 7, "temperature": 0}
    asked = lines(execute(Sample(chat=True, system="S", prompt_file=file, **common), tmp_path / "one", ignore))
    prompts = ("system:Suser:the cata:", "system:Suser:the doga:")
    cat, dog = lines(execute(Sample(prompts=prompts, **common), tmp_path / "two", ignore))
    assert [row["prompt"] for row in asked] == ["the cat", "the cat", "the dog"]
    assert [row.get("reference") for row in asked] == [None, "sat", None]
    assert all(row["messages"][0] == {"role": "system", "content": "S"} for row in asked)
    assert [row["text"] for row in asked] == [cat["text"], cat["text"], dog["text"]]
    assert cat["text"] != dog["text"]
    page = readable(asked)
    assert "system: S\nuser: the cat\nassistant: " in page and "the file's answer: sat" in page
    assert ("the file's answer", "reference", "sat") in answers(tmp_path / "one" / "samples.jsonl")


def test_what_a_prompt_loses_without_chat_is_said(model: Path, tmp_path: Path) -> None:
    said: list[str] = []
    step = Sample(model=model, prompts=("<|endoftext|>the",), max_tokens=1)
    execute(step, tmp_path / "out", lambda event: said.append(str(getattr(event, "text", event))))
    assert any("--chat writes them itself" in text for text in said)


def test_a_line_ends_at_a_line_feed_alone(tmp_path: Path) -> None:
    """U+2028, U+0085, form feeds and their kin stand inside lines of text and of JSON."""
    odd = "one\u2028two\x85three\x0cfour\x1cfive"
    plain, records, samples = tmp_path / "prompts.txt", tmp_path / "prompts.jsonl", tmp_path / "samples.jsonl"
    plain.write_text(f"{odd}\r\n{odd}\n", encoding="utf-8", newline="")
    assert read_prompts(plain) == [{"prompt": odd}, {"prompt": odd}]
    records.write_text(json.dumps({"prompt": odd}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_prompts(records) == [{"prompt": odd}]
    samples.write_text(json.dumps({"prompt": odd, "text": odd}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert [text for *_, text in answers(samples)] == [odd, odd]


def test_what_a_terminal_would_obey_is_shown_instead() -> None:
    page = readable([{"prompt": "a\tb", "text": "\x1b[31mred\x07\u202e\x9b\n", "untrained": "\x00"}])
    assert not any(ord(c) < 32 and c not in "\n\t" for c in page)
    assert "␛[31mred␇" in page
    assert "\u202e" not in page
    assert "\x9b" not in page


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "no prompts"),
        ({"prompts": ["x"], "stop": [""]}, "stop string is empty"),
        ({"prompts": ["x"], "system": "Be kind."}, "add --chat"),
        ({"prompts": [" "], "chat": True}, "question is empty"),
        ({"prompts": ["x"], "temperature": -1}, "temperature"),
        ({"prompts": ["x"], "top_p": 0}, "top_p"),
        ({"prompts": ["x"], "max_tokens": 0}, "max_tokens"),
        ({"prompts": ["x"], "temprature": 1}, "did you mean 'temperature'"),
        ({"prompt_file": "nothing.txt"}, "no such"),
    ],
)
def test_wrong_settings_are_one_sentence(settings: dict[str, Any], said: str, model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        execute(validate(Sample, {"model": str(model), **settings}), tmp_path / "out", ignore)
    assert len(str(caught.value).splitlines()) <= 4
    assert not (tmp_path / "out").exists()


def test_a_bad_prompt_file_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    for content, said in [
        ('{"prompt": "a"}\n{"text": "b"}\n', "no text under 'prompt'"),
        ('{"prompt": "a"}\n{', "not JSON"),
    ]:
        path.write_text(content)
        with pytest.raises(UsageError, match=said) as caught:
            read_prompts(path)
        assert f"{path}:2" in str(caught.value)
    path.write_text('{"messages": [{"role": "user", "content": "a"}]}\n{"messages": [{"role": "judge"}]}\n')
    with pytest.raises(UsageError, match="unknown role") as caught:
        read_questions(path)
    assert f"{path}:2" in str(caught.value)
    path.write_bytes(b"\xff\xff")
    with pytest.raises(UsageError, match="UTF-8"):
        read_prompts(path)


def test_a_missing_or_broken_model_folder_is_one_sentence(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file or folder"):
        execute(Sample(model=tmp_path / "nowhere", prompts=("x",)), tmp_path / "out", ignore)
    shutil.copytree(model, tmp_path / "cut")
    (tmp_path / "cut" / "model.safetensors").write_bytes(b"short")
    with pytest.raises(UsageError, match="not whole"):
        execute(Sample(model=tmp_path / "cut", prompts=("x",)), tmp_path / "out", ignore)
    assert not (tmp_path / "out").exists()


def test_a_dry_run_shows_the_prompts_and_writes_nothing(model: Path) -> None:
    forecast, preview = Sample(model=model, prompts=("the cat",)).dry_run()
    assert forecast.memory_bytes > 0
    assert "'the cat'" in preview


def test_the_settings_import_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'tokenizers', 'numpy', 'pyarrow'}"
    check = f"import sys, mickle.sampling.sample; assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)
