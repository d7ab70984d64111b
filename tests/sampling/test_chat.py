"""`mickle chat`: several models answer what is typed, piece by piece, and remember it; what is wrong is said."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mickle import cli
from mickle.config import validate
from mickle.data.tokenizer import open_text_tokenizer, train_tokenizer
from mickle.errors import UsageError
from mickle.models.decoder import Decoder, DecoderConfig
from mickle.models.folder import save_model
from mickle.sampling.chat import Chat, converse, whole_lines

TEMPLATE = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}assistant:"
STRICT = "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}" + TEMPLATE


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat") / "model"
    tokenizer = train_tokenizer(["der Käse, die Maus — ünd söß, €uro " * 9], 280, or_fewer=True)
    shape = DecoderConfig(tokenizer.size, 32, 2, 4, 2, 8, 48, 128, initial_std=0.3)
    save_model(Decoder(shape, seed=5), folder, tokenizer)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture
def talk(model: Path) -> Callable[..., str]:
    """What is said when lines are typed."""

    def talk(*lines: str, models: tuple[Path, ...] = (model,), **settings: object) -> str:
        said: list[str] = []
        chat = validate(Chat, {"models": models, "max_tokens": 8, **settings})
        converse(chat, iter(lines), said.append)
        return "".join(said)

    return talk


def saved(path: Path) -> list[list[tuple[str, str]]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [[(turn["role"], turn["content"]) for turn in row["messages"]] for row in rows]


def test_two_models_answer_and_each_remembers_its_own(talk: Callable[..., str], model: Path, tmp_path: Path) -> None:
    file = tmp_path / "talk.jsonl"
    said = talk("one", "two", f"/save {file}", models=(model, model), system="Be kind.", temperature=0)
    first, second = saved(file)
    assert first == second
    assert [role for role, _ in first] == ["system", "user", "assistant", "user", "assistant"]
    assert [text for role, text in first if role == "user"] == ["one", "two"]
    assert all(f"{model}: {text}" in said for role, text in first if role == "assistant" and "\ufffd" not in text)


def test_what_was_said_can_be_taken_back_and_forgotten(talk: Callable[..., str], tmp_path: Path) -> None:
    kept, new, other = (tmp_path / f"{name}.jsonl" for name in ("kept", "new", "other"))
    talk(
        "one", "two", "/undo", f"/save {kept}", "/new", "three", f"/save {new}", "/system Hi", "four", f"/save {other}"
    )
    assert [text for role, text in saved(kept)[0] if role == "user"] == ["one"]
    assert [text for role, text in saved(new)[0] if role == "user"] == ["three"]
    assert [turn for turn in saved(other)[0] if turn[0] != "assistant"] == [("system", "Hi"), ("user", "four")]


def test_the_oldest_is_forgotten_where_a_talk_grows_too_long(talk: Callable[..., str], tmp_path: Path) -> None:
    file = tmp_path / "talk.jsonl"
    said = talk(*(f"question {n} of a long talk" for n in range(4)), f"/save {file}", system="S")
    assert "the oldest question is forgotten" in said
    (turns,) = saved(file)
    assert turns[0] == ("system", "S") and turns[1][0] == "user" and turns[1][1] != "question 0 of a long talk"


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("/help", "/save FILE.jsonl"),
        ("/nothing", "there is no /nothing"),
        ("/save talk.txt", "expected: /save FILE.jsonl"),
        ("/save new.jsonl", "nothing was answered yet"),
        ("/undo", "taken back"),
        ("word " * 200, "more than the 128 tokens the model was made for"),
    ],
)
def test_what_is_wrong_is_said_and_the_talk_goes_on(talk: Callable[..., str], line: str, answer: str) -> None:
    said = talk(line, "/new", "/quit", "never asked")
    assert answer in said and said.endswith("a new conversation\n")


def test_a_template_s_refusal_costs_the_question_alone(talk: Callable[..., str], model: Path, tmp_path: Path) -> None:
    strict = tmp_path / "strict"
    strict.mkdir()
    for file in model.iterdir():
        (strict / file.name).write_bytes(file.read_bytes())
    (strict / "chat_template.jinja").write_text(STRICT)
    said = talk("one", "/system", "two", f"/save {tmp_path / 'x.jsonl'}", models=(strict,), system="S")
    assert "no system here" in said
    assert [text for role, text in saved(tmp_path / "x.jsonl")[0] if role == "user"] == ["two"]


def test_an_answer_that_is_stopped_is_kept_as_far_as_it_came(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "talk.jsonl"
    said: list[str] = []

    def say(piece: str) -> None:
        said.append(piece)
        if len(said) == 5:
            raise KeyboardInterrupt

    converse(Chat(models=(model,), max_tokens=60, seed=3), iter(["one", f"/save {file}"]), say)
    assert " (stopped)" in said
    assert saved(file)[0][-1][0] == "assistant"


def test_a_question_without_an_answer_is_forgotten(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mickle.sampling.chat._written", lambda *_: iter(()))
    said: list[str] = []
    converse(Chat(models=(model,)), iter(["x", "/save talk.jsonl"]), said.append)
    assert "(no answer: the question is forgotten)\n" in said
    assert "nothing was answered yet" in said[-1]


def test_no_character_is_said_in_halves(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "日本 €"
    monkeypatch.setattr("mickle.sampling.chat._written", lambda *_: iter(open_text_tokenizer(model).encode([text])[0]))
    said: list[str] = []
    converse(Chat(models=(model,)), iter(["x"]), said.append)
    assert "".join(said).endswith(text + "\n") and "\ufffd" not in "".join(said)


def test_a_line_goes_on_after_a_backslash() -> None:
    assert list(whole_lines(iter(["a\\\n", "b\n", "c\r\n", "d\\"]))) == ["a\nb", "c", "d\n"]


def test_a_model_that_cannot_answer_is_refused(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["a b c " * 9], 270, or_fewer=True, mask=True)
    shape = DecoderConfig(tokenizer.size, 32, 2, 4, 4, 8, 48, 64, causal=False)
    save_model(Decoder(shape, seed=5), tmp_path / "masked", tokenizer)
    with pytest.raises(UsageError, match="fills in masks"):
        converse(Chat(models=(tmp_path / "masked",)), iter(["x"]), print)


def test_the_command_answers_lines_from_another_program(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n/quit\n"))
    cli.run(["chat", str(model), "--max-tokens", "3", "--temperature", "0"])
    assert capsys.readouterr().out.startswith(f"{model}: ask; /help")
    with pytest.raises(UsageError, match="required|at least 1"):
        cli.run(["chat"])
