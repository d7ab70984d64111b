"""Every verb on input that will not do: one clear error, the right exit code, nothing half-written."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mickle import cli, storage, verbs
from mickle.data.heldout import write_pages
from mickle.data.records import Page

Prepare = Callable[[Path], None]


def _main(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as leaving:
        cli.main(arguments)
    return leaving.value.code if isinstance(leaving.value.code, int) else 0


def _nothing(here: Path) -> None:
    pass


def _cut(name: str, keep: float = 0.5) -> Prepare:
    def prepare(here: Path) -> None:
        content = (here / name).read_bytes()
        (here / name).write_bytes(content[: int(len(content) * keep)])

    return prepare


def _write(name: str, content: str | bytes) -> Prepare:
    def prepare(here: Path) -> None:
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return prepare


def _remove(name: str) -> Prepare:
    return lambda here: (here / name).unlink()


def _pages(*texts: str) -> Prepare:
    """A file of rows with these texts."""
    return _write("rows.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in texts))


LONG = "The river runs past the old town, and nobody who lives there remembers a colder winter than this. " * 5
SHARD = "corpus/pages/00000.parquet"
WEIGHTS = "model/model.safetensors"
ROWS = "curate --source rows --source.path rows.jsonl"
CASES: list[tuple[str, Prepare, str]] = [
    # curate
    ("curate --source files --source.path none", _nothing, "none"),
    ("curate --source files --source.path empty", lambda here: (here / "empty").mkdir(), "empty"),
    ("curate --source files --source.path pages --languges en", _nothing, "did you mean --languages"),
    ("curate --source files --source.path pages --language-threshold 2", _nothing, "language_threshold"),
    ("curate --source warc --source.path x.warc.gz", _write("x.warc.gz", b""), "x.warc.gz"),
    ("curate --source warc --source.path x.warc.gz", _write("x.warc.gz", bytes(range(256)) * 40), "x.warc.gz"),
    ("curate --source documentation --source.packages no-such-package", _nothing, "no-such-package"),
    (ROWS, _write("rows.jsonl", ""), "rows.jsonl"),
    (ROWS, _write("rows.jsonl", '{"text": "a"\n' * 20), "rows.jsonl"),
    (ROWS, _write("rows.jsonl", '{"words": "a"}\n' * 20), "text"),
    # pretrain
    ("pretrain none", _nothing, "none"),
    ("pretrain empty", lambda here: (here / "empty").mkdir(), "empty"),
    ("pretrain corpus --sise tiny", _nothing, "did you mean --size"),
    ("pretrain corpus --learning-rate -1", _nothing, "learning_rate"),
    ("pretrain corpus --learning-rate 0", _nothing, "learning_rate"),
    ("pretrain corpus --size 5", _nothing, "size"),
    ("pretrain corpus --heldout-share 1.5", _nothing, "heldout_share"),
    ("pretrain corpus", _cut(SHARD), "not whole"),
    ("pretrain corpus", _remove(SHARD), "missing"),
    ("pretrain corpus/pages", _cut(SHARD), "parquet"),
    ("pretrain corpus/pages", _write(SHARD, b"PAR1"), "parquet"),
    ("pretrain pipe", lambda here: os.mkfifo(here / "pipe"), "neither a file nor a folder"),
    ("pretrain /dev/null", _nothing, "neither a file nor a folder"),
    ("pretrain corpus --tokenizer broken.json", _write("broken.json", "{"), "broken.json"),
    # evaluate
    ("evaluate none", _nothing, "none"),
    ("evaluate empty", lambda here: (here / "empty").mkdir(), "empty"),
    ("evaluate corpus", _nothing, "corpus"),
    ("evaluate model --task.stride 0", _nothing, "stride"),
    ("evaluate model --task length --task.task no-such-task", _nothing, "no-such-task"),
    ("evaluate model", _cut(WEIGHTS), "model.safetensors"),
    ("evaluate model", _write("model/config.json", "{"), "config.json"),
    ("evaluate model", _remove("model/tokenizer.json"), "tokenizer.json"),
    ("evaluate model --task.data none.parquet", _nothing, "none.parquet"),
    # sample
    ("sample none --prompts a", _nothing, "none"),
    ("sample model", _nothing, "prompt"),
    ("sample model --prompts a --temperature -1", _nothing, "temperature"),
    ("sample model --prompts a --top-p 2", _nothing, "top_p"),
    ("sample model --prompts a", _cut(WEIGHTS, 0.9), "model.safetensors"),
    ("sample model --prompts a", _cut(WEIGHTS, 0.0), "model.safetensors"),
    ("sample model --prompt-file none.txt", _nothing, "none.txt"),
    # study
    ("study sofia", _nothing, "did you mean"),
    ("study sophia --scale huge", _nothing, "scale"),
    ("study sophia --wrokers 1", _nothing, "did you mean --workers"),
    # run
    ("run none.yaml", _nothing, "none.yaml"),
    ("run empty.yaml", _write("empty.yaml", ""), "empty.yaml"),
    ("run cut.yaml", _write("cut.yaml", "steps:\n  a: {verb: cur"), "cut.yaml:2"),
    ("run wrong.yaml", _write("wrong.yaml", "steps:\n  a:\n    verb: curate\n    sorce: {}\n"), "wrong.yaml:4"),
    # show
    ("show none", _nothing, "none"),
    ("show empty", lambda here: (here / "empty").mkdir(), "empty"),
    ("show model", _cut(WEIGHTS), "model.safetensors"),
    ("show model", _write("model/manifest.json", "{"), "manifest.json:"),
]


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what `made` holds, to spoil, as the current folder."""
    for name in ("pages", "corpus", "model"):
        shutil.copytree(made / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("command", "prepare", "says"), CASES, ids=[f"{i}-{c[0][:50]}" for i, c in enumerate(CASES)])
def test_one_clear_error_and_nothing_half_written(
    here: Path, capsys: pytest.CaptureFixture[str], command: str, prepare: Prepare, says: str
) -> None:
    prepare(here)
    takes_out = command.split()[0] not in ("run", "show")
    code = _main([*command.split(), *(["--out", "out", "--quiet"] if takes_out else [])])
    said = capsys.readouterr().err
    assert code == 2, said
    assert says in said
    assert "Traceback" not in said
    assert 1 <= len(said.strip().splitlines()) <= 4
    assert not (here / "out").exists()
    assert not (here / "out.partial").exists()


@pytest.mark.parametrize("place", [0.3, 0.95])
@pytest.mark.parametrize(
    "command",
    [
        "pretrain corpus --size 40000 --steps 2",
        "plan corpus --task.size 40000 --task.epochs 2",
        "mix corpus --size 40000 --steps 2",
        "evaluate model --task.data corpus",
        "tune model --data corpus/pages --steps 2",
        "compress model --method gptq --data corpus",
        "curate --source rows --source.path corpus/pages --workers 1",
    ],
)
def test_a_flipped_bit_of_a_shard_is_named_by_every_verb(
    here: Path, capsys: pytest.CaptureFixture[str], command: str, place: float
) -> None:
    content = bytearray((here / SHARD).read_bytes())
    content[int(place * len(content))] ^= 4
    (here / SHARD).write_bytes(content)
    code = _main([*command.split(), "--out", "out", "--quiet"])
    said = capsys.readouterr().err
    assert code == 2, said
    assert "corrupt" in said
    assert "00000.parquet" in said
    assert not (here / "out").exists()


POOR = {
    "empty": [],
    "blank": ["", " \n"],
    "one row": [LONG],
    "one token": ["a", "b"],
    "one class": [f"{number}. {LONG}" for number in range(12)],
    "duplicates": [LONG] * 12,
}
NONE, SAME, ALONE = "no page with text", "the same text", "of one domain"
SAID_OF_POOR = {  # of each corpus, in their order; "" where there is a result
    "plan poor --task.size 40000 --task.epochs 2": (NONE, NONE, "", "", "", ""),
    "mix poor --size 40000 --steps 2": (NONE, NONE, SAME, ALONE, ALONE, SAME),
    "evaluate model --task.data poor": (NONE, NONE, "", "", "", ""),
    "pretrain poor --size 40000 --steps 2": (NONE, NONE, SAME, "", "", SAME),
}


@pytest.mark.parametrize("corpus", POOR)
@pytest.mark.parametrize("command", SAID_OF_POOR)
def test_a_poor_corpus_gives_a_result_or_one_sentence(
    here: Path, capsys: pytest.CaptureFixture[str], command: str, corpus: str
) -> None:
    (here / "poor").mkdir()
    write_pages([Page(str(row), "a", "en", text) for row, text in enumerate(POOR[corpus])], here / "poor/0.parquet")
    code = _main([*command.split(), "--out", "out", "--quiet"])
    said = capsys.readouterr().err
    refusal = SAID_OF_POOR[command][list(POOR).index(corpus)]
    assert (code, (here / "out").exists()) == ((2, False) if refusal else (0, True)), said
    assert refusal in said
    assert "Traceback" not in said
    assert not refusal or len(said.strip().splitlines()) <= 4


def test_a_corpus_of_one_token(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _pages("a")(here)
    assert _main([*ROWS.split(), "--out", "out", "--workers", "1"]) == 2
    said = capsys.readouterr().err
    assert "no page is left of 1 records" in said
    assert "rows.jsonl" in said
    assert not (here / "out").exists()


@pytest.mark.parametrize(
    ("command", "number"),
    [
        ("evaluate model", "nan"),
        ("sample model --prompts a", "inf"),
        ("tune model --data rows.jsonl", "nan"),
        ("compress model --method rtn", "inf"),
        ("export model --format gguf", "nan"),
        ("pretrain corpus --start model", "nan"),
    ],
)
def test_a_number_that_is_not_finite_ends_every_verb_with_code_5(
    here: Path, capsys: pytest.CaptureFixture[str], command: str, number: str
) -> None:
    _pages(*(f"Page {number}. {LONG}" for number in range(20)))(here)
    tensors = storage.load_tensors(here / WEIGHTS)
    next(iter(tensors.values())).view(-1)[3] = float(number)
    storage.save_tensors(here / WEIGHTS, tensors, {"format": "pt"})
    (here / "model" / "manifest.json").unlink()
    code = _main([*command.split(), "--out", "out", "--quiet"])
    said = capsys.readouterr().err
    assert code == 5, said
    assert "not finite" in said
    assert not (here / "out").exists()


@pytest.mark.parametrize(
    "command",
    [
        "curate --source files --source.path pages --workers 1",
        "pretrain corpus --size 40000 --steps 2",
        "tune model --data rows.jsonl",
        "compress model --method rtn",
        "export model --format gguf",
    ],
)
def test_a_disk_that_is_too_small_is_told_before_the_work(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    _pages(*(f"Page {number}. {LONG}" for number in range(20)))(here)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 3000))
    assert _main([*command.split(), "--out", "out", "--quiet"]) == 3
    said = capsys.readouterr().err
    assert re.search(r"not enough disk space: [\d.]+ MB needed, 0.0 MB free", said), said
    assert not list((here / "out.partial").rglob("step-*"))


@pytest.mark.parametrize("limit", [2_000, 60_000])
@pytest.mark.parametrize(
    "command",
    [
        "curate --source files --source.path pages --workers 1",
        "pretrain corpus --size 40000 --steps 2",
        "evaluate model --task loss",
        "sample model --prompts a b c --max-tokens 4",
    ],
)
def test_a_full_disk_stops_with_one_sentence_and_goes_on_later(here: Path, command: str, limit: int) -> None:
    """A file-size limit stands for the full disk; small outputs may pass under the larger one."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with open("said.txt", "w") as said:
            sys.stderr = said
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            try:
                cli.main([*command.split(), "--out", "out", "--quiet"])
            except SystemExit as leaving:
                said.flush()
                os._exit(leaving.code if isinstance(leaving.code, int) else 99)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    said = (here / "said.txt").read_text()
    if code == 0:
        assert (here / "out" / "manifest.json").is_file()
        return
    assert code == 3, said
    assert "disk" in said
    if (here / "out").exists():  # whole: the report beside it comes last, and is what did not fit
        assert "out.html" in said
        storage.open_folder(here / "out", check="hashes")
    assert not (here / "out.html").exists()
    assert _main([*command.split(), "--out", "out", "--quiet"]) == 0
    assert (here / "out.html").exists() == verbs.step_class(command.split()[0]).reported
