from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import mickle
from mickle import cli, flags, machine, verbs
from mickle.config import leaves, validate
from mickle.errors import UsageError
from mickle.spellings import OURS
from mickle.trackers import TRACKERS


def _main(*arguments: str) -> int:
    with pytest.raises(SystemExit) as leaving:
        cli.main(list(arguments))
    return leaving.value.code if isinstance(leaving.value.code, int) else 0


def test_a_verb_runs_and_says_what_is_next(toy: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "w"
    code = _main(
        "write",
        "--words",
        "a",
        "b",
        "--method",
        "fancy",
        "--method.gamma",
        "0.25",
        "--learning_rate=0.5",
        "--out",
        str(out),
    )
    said = capsys.readouterr()
    assert code == 0
    assert (out / "words.txt").read_text() == "a b"
    settings = (out / "settings.yaml").read_text()
    assert "gamma: 0.25" in settings
    assert "learning_rate: 0.5" in settings
    assert "written\ndone:" in said.out
    assert "next: mickle show" in said.out


def test_flags_stand_over_the_file(toy: ModuleType, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("words: [x]\nmethod: {kind: fancy, gamma: 0.5}\nlearning_rate: 0.25\n")
    _main("write", "--config", str(config), "--method.gamma", "0.75", "--out", str(tmp_path / "w"), "--quiet")
    settings = (tmp_path / "w" / "settings.yaml").read_text()
    assert "gamma: 0.75" in settings
    assert "learning_rate: 0.25" in settings
    _main("write", "--config", str(config), "--method", "plain", "--out", str(tmp_path / "v"), "--quiet")
    assert "gamma" not in (tmp_path / "v" / "settings.yaml").read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("wrte",), "did you mean 'write'"),
        (("write", "--lerning-rate", "1"), "did you mean --learning-rate"),
        (("write", "--learning-rate", "fast"), "learning_rate"),
        (("write", "--learning-rate", "-1"), "greater than 0"),
        (("write", "--method", "fanzy"), "fanzy"),
        (("write", "--method.gamma", "0.5"), "gamma"),
        (("write", "--config", "none.yaml"), "no such settings file"),
        (("count",), "required"),
        (("count", "none"), "no such file or folder"),
        (("run", "none.yaml"), "no such settings file"),
        (("run",), "recipe"),
        (("show", "none"), "no such"),
    ],
)
def test_bad_usage_is_one_clear_error(
    toy: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert _main(*arguments) == 2
    said = capsys.readouterr().err
    assert says in said
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) <= 4
    assert not list(tmp_path.rglob("*.partial"))


def test_bugs_and_signals_have_their_own_codes(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for error, code in ((ZeroDivisionError("x"), 1), (KeyboardInterrupt(), 130), (MemoryError(), 3)):

        def run(self: object, work: Path, emit: object, error: BaseException = error) -> dict[str, object]:
            raise error

        monkeypatch.setattr(toy.Write, "run", run)
        assert _main("write", "--out", str(tmp_path / f"w{code}")) == code
        assert "Traceback" not in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):
        monkeypatch.setattr(toy.Write, "run", lambda self, work, emit: 1 // 0)
        cli.main(["write", "--out", str(tmp_path / "w"), "--debug"])


def test_dry_run_writes_nothing(toy: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _main("write", "--dry-run", "--out", str(tmp_path / "w")) == 0
    assert "learning_rate: 0.001" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_dry_run_shows_what_does_something_and_what_was_left_out_as_it_will_be(
    toy: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    """A setting that does nothing beside the others is not shown; one that was given all the same is told."""
    chosen = ["write", "--dry-run", "--method", "fancy", "--method.gamma", "1", "--words", "ab", "c"]
    assert _main(*chosen) == 0
    said = capsys.readouterr().out
    assert "settings\nseed: 0\nwords:\n- ab\n- c\nmethod:\n  kind: fancy\n  gamma: 1.0\nlearning_rate" in said
    assert "derived\nlength: 3\noutput" in said and "echo" not in said
    assert not recwarn
    assert _main(*chosen, "--method.echo", "2", "--length", "4") == 0
    said = capsys.readouterr().out
    assert "echo" not in said and "length: 4" in said and "derived" not in said
    assert [str(warning.message) for warning in recwarn] == ["method.echo does nothing beside the other settings"]


@pytest.mark.parametrize(
    ("arguments", "devices", "says"),
    [
        (["write", "--device", "gpu"], 2, "expected: auto, cpu, cuda or cuda:1"),
        (["write", "--device", "cuda"], 0, "(?s)CUDA.*to do: .*leave --device out, or take --device cpu"),
        (["write", "--device", "cuda:2"], 2, "expected: cuda:0 to cuda:1"),
        (["curate", "--device", "cuda"], 2, "curate computes on the CPU"),
        (["chat", "m", "--device", "cuda:7"], 1, "expected: cuda:0"),
    ],
)
def test_a_device_that_is_not_here_is_refused_with_what_to_do(
    toy: ModuleType, monkeypatch: pytest.MonkeyPatch, arguments: list[str], devices: int, says: str
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: devices)
    with pytest.raises(UsageError) as caught:
        cli.run(arguments)
    assert re.search(says, str(caught.value))
    assert machine.DEVICE not in os.environ


def test_the_chosen_device_is_where_models_are_also_in_processes_that_begin_there(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    asked = "import os; from mickle.machine import DEVICE; print(os.environ[DEVICE])"

    def run(self: object, work: Path, emit: object) -> dict[str, object]:
        seen.extend([str(machine.device()), subprocess.check_output([sys.executable, "-c", asked], text=True).strip()])
        return {}

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(toy.Write, "run", run)
    mickle.write(device="cpu", out=tmp_path / "w")
    assert seen == ["cpu", "cpu"]
    assert machine.device().type == "cuda"
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.set_device", lambda device: seen.append(f"set {device}"))
    with machine.computing_on("cuda:1"):
        assert str(machine.device()) == "cuda:1" and seen[-1] == "set cuda:1"
        with machine.computing_on(None):  # a verb that calls another
            assert str(machine.device()) == "cuda:1"


def test_schema_and_version(toy: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert _main("write", "--schema") == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["additionalProperties"] is False
    assert schema["properties"]["learning_rate"]["exclusiveMinimum"] == 0
    assert _main("--version") == 0
    assert capsys.readouterr().out.startswith("mickle 0.")


def test_python_call_has_the_same_names(toy: ModuleType, tmp_path: Path) -> None:
    out = mickle.write(words=["x"], method=toy.Fancy(gamma=1.0), out=tmp_path / "w")
    assert (out / "words.txt").read_text() == "x"
    with pytest.raises(UsageError, match="did you mean 'words'"):
        mickle.write(wrds=["x"], out=tmp_path / "v")
    with pytest.raises(AttributeError):
        mickle.nothing_of_the_kind  # noqa: B018


def test_a_verb_s_function_tells_of_itself(toy: ModuleType, tmp_path: Path) -> None:
    assert {"write", "count", "chat"} & set(dir(mickle)) == {"write", "count"}
    assert next(iter(inspect.signature(mickle.count).parameters)) == "data"
    assert "words: what to write" in mickle.write.__doc__ and mickle.write.__name__ == "write"
    words = mickle.write(words=["x"], out=tmp_path / "w", method="fancy")
    assert mickle.count(words, out=tmp_path / "c") == tmp_path / "c"
    for first, settings in [((words, words), {}), ((words,), {"data": words})]:
        with pytest.raises(UsageError, match="without a name"):
            mickle.count(*first, **settings)
    with pytest.raises(UsageError, match="expected: none at most"):
        mickle.write(["x"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tune", "m", "--lr", "1"], "here it is --learning-rate"),
        (["tune", "m", "--lora_r", "8"], "here it is --method.rank"),
        (["tune", "m", "--load-in-4bit"], "here it is --method qlora"),
        (["pretrain", "c", "--output-dir", "x"], "here it is --out"),
        (["tune", "m", "--no_cuda"], "here it is --device cpu"),
        (["compress", "m", "--load-in-4bit"], "here it is --method nf4"),
        (["compress", "m", "--lora-r", "8"], "unknown argument --lora-r\n"),
        (["tune", "m", "--resume"], "the same command goes on where it was"),
        (["evaluate", "m", "--batch-size", "4"], "as many at a time as memory takes"),
        (["sample", "m", "--n", "4"], "unknown argument --n\n"),
        (["tune", "m", "--data", "d", "--method", "qlra"], "no kind 'qlra'; did you mean 'qlora'. .known: full, lora"),
        (["pretrain", "c", "--size", "huge"], "size: input should be 'tiny', 'small' or 'base' or a valid int.*'huge'"),
        (["chat", "Qwen/Qwen2.5-0.5B-Instruct"], "nothing is downloaded here; fetch it first: hf download Qwen/"),
        (["evaluate", "gpt2"], "hf download gpt2 --local-dir gpt2"),
        (["cht", "m"], "did you mean 'chat'"),
        (["frobnicate"], "expected: curate, mix, plan, .*show, doctor"),
    ],
)
def test_what_people_know_from_elsewhere_is_answered_with_ours(arguments: list[str], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        cli.run(arguments)
    assert re.search(said, str(caught.value))


def test_every_answer_is_a_setting_of_some_verb() -> None:
    fields = {name for verb in verbs.STEPS for name, _, _ in leaves(verbs.step_class(verb))}
    known = fields | {"out", "device", *TRACKERS}
    assert {one.partition(" ")[0] for ours in OURS.values() for one in ours.split(" or ")} <= known
    with pytest.raises(UsageError, match=r"unknown field 'lora_r'; here it is rank"):
        validate(verbs.step_class("tune"), {"model": "m", "data": "d", "method": {"kind": "lora", "lora_r": 8}})


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--learning-rate", "1e-3"], {"learning_rate": 1e-3}),
        (["--steps", "2k"], {"steps": 2000}),
        (["--batch-tokens", "1e4"], {"batch_tokens": 10_000}),
        (["--method", "lora", "--method.rank", "8"], {"method": {"kind": "lora", "rank": 8}}),
        (["--model", "m"], {"model": "m"}),
    ],
)
def test_numbers_and_names_as_people_type_them(arguments: list[str], wanted: dict[str, object]) -> None:
    cls = verbs.step_class("tune")
    _, given = flags.parse(flags.parser("mickle tune", cls, "", "", cls.positional), arguments)
    step = validate(cls, {"model": "x", "data": "y"} | flags.read_values(cls, given))
    dumped = step.model_dump(mode="json", include=set(wanted))
    for name, value in wanted.items():
        assert dumped[name] == value if not isinstance(value, dict) else value.items() <= dumped[name].items()


def test_negative_numbers_are_no_flags() -> None:
    cls = verbs.step_class("sample")
    made = flags.parser("mickle sample", cls, "", "", cls.positional)
    with pytest.raises(UsageError, match="temperature.*got -0.001"):
        validate(cls, {"model": "m"} | flags.read_values(cls, flags.parse(made, ["--temperature", "-1e-3"])[1]))


def test_help_says_which_kind_has_a_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert _main("tune", "--help") == 0
    said = capsys.readouterr().out
    assert "[lora, qlora] inner dimension" in said and "[mezo] random directions" in said
    assert "[mezo: prefix] tokens of the prefix" in said
    assert re.search(r"--schedule.warmup FLOAT .*\s+from 0 to its peak \(default\s+0.03\)", said)  # tune's own


@pytest.mark.parametrize("name", [*verbs.STEPS, *cli.OTHERS])
def test_every_help_ends_in_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _main(name, "--help") == 0
    text = capsys.readouterr().out.rstrip()
    assert text.splitlines()[-2] == "example:"
    assert text.splitlines()[-1].startswith(f"  mickle {name}")


@pytest.mark.parametrize("name", list(verbs.STEPS))
def test_every_verb_has_few_described_fields(name: str) -> None:
    cls = verbs.step_class(name)
    assert len(cls.model_fields) <= 25
    assert all(field.description for field in cls.model_fields.values())
    assert cls.kind


@pytest.mark.parametrize("arguments", [["--help"], *[[name, "--help"] for name in [*verbs.STEPS, *cli.OTHERS]]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys\nfrom mickle.cli import run\n"
        f"try:\n    run({arguments!r})\nexcept SystemExit: pass\n"
        "slow = {'torch', 'transformers', 'pyarrow', 'matplotlib', 'numba', 'trafilatura', 'tokenizers'}\n"
        "heavy = slow & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
