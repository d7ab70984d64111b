from __future__ import annotations

import errno
import multiprocessing
import os
import random
import re
import resource
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mickle import storage
from mickle.errors import LockedError, NumericError, ResourceError, UsageError


def _save(path: Path, value: float) -> None:
    with storage.write_folder(path, kind="test", note="n") as folder:
        storage.save_tensors(folder / "model.safetensors", {"w": torch.full((64, 64), value)})
        (folder / "inner").mkdir()
        (folder / "inner" / "text.txt").write_text("words " * 100)


def test_a_written_folder_opens_whole(tmp_path: Path) -> None:
    _save(tmp_path / "a", 1.0)
    manifest = storage.open_folder(tmp_path / "a", kind="test", check="hashes")
    assert sorted(manifest.files) == ["inner/text.txt", "model.safetensors"]
    assert manifest.meta["note"] == "n"
    assert not list(tmp_path.glob(".tmp*"))


def test_digest_is_content_only(tmp_path: Path) -> None:
    for name, value in (("a", 1.0), ("b", 1.0), ("c", 2.0)):
        _save(tmp_path / name, value)
    a, b, c = (storage.content_digest(tmp_path / n) for n in "abc")
    assert a == b != c


def test_modes_follow_the_umask(tmp_path: Path) -> None:
    _save(tmp_path / "a", 1.0)
    expected = 0o666 & ~storage._UMASK
    assert stat.S_IMODE((tmp_path / "a" / "model.safetensors").stat().st_mode) == expected


def _count_calls(monkeypatch: pytest.MonkeyPatch, fail_at: int | None) -> list[str]:
    calls: list[str] = []
    real = storage._call

    def counting(function: Callable[..., Any], *arguments: Any) -> Any:
        calls.append(getattr(function, "__name__", "?"))
        if fail_at is not None and len(calls) >= fail_at:  # a dead machine makes no further call
            raise OSError(errno.EIO, "injected")
        return real(function, *arguments)

    monkeypatch.setattr(storage, "_call", counting)
    return calls


def test_failure_at_every_disk_call_leaves_old_or_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        calls = _count_calls(patch, None)
        _save(tmp_path / "probe", 0.0)
        total = len(calls)
    assert total > 12
    _save(tmp_path / "step-1", 1.0)
    for n in range(1, total + 1):
        target = tmp_path / f"step-2-{n}"
        with monkeypatch.context() as patch:
            _count_calls(patch, n)
            with pytest.raises(ResourceError, match="the disk failed"):
                _save(target, 2.0)
        assert storage.open_folder(tmp_path / "step-1", check="hashes").kind == "test"
        if target.exists():  # renamed already: then it must be whole
            storage.open_folder(target, check="hashes")
        _save(tmp_path / f"again-{n}", 3.0)
        storage.remove(tmp_path / f".tmp-step-2-{n}")


def test_torn_and_flipped_files_are_named(tmp_path: Path) -> None:
    _save(tmp_path / "a", 1.0)
    file = tmp_path / "a" / "model.safetensors"
    content = file.read_bytes()
    draw = random.Random(0)
    spoiled = [content[: draw.randrange(len(content))] for _ in range(50)]
    for _ in range(200):
        bit = draw.randrange(len(content) * 8)
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << (bit % 8)
        spoiled.append(bytes(flipped))
    page = 4096 * draw.randrange(len(content) // 4096)
    spoiled.append(content[:page] + bytes(4096) + content[page + 4096 :])
    for wrong in spoiled:
        if wrong == content:
            continue
        file.write_bytes(wrong)
        with pytest.raises(UsageError, match="whole|corrupt") as caught:
            storage.open_folder(tmp_path / "a", check="hashes")
        assert "model.safetensors" in caught.value.where


WHOLE = '{"kind":"x","format":1,"files":{}}'
ONE = '{"kind":"x","format":1,"files":{"a":{"bytes":1,"xxh3":""}}}'


@pytest.mark.parametrize(
    "manifest",
    [
        "{", "", "[]", '{"kind": "x"}', ONE.replace('{"bytes":1,"xxh3":""}', "{}"), WHOLE.replace("1", "99"),
        WHOLE.replace('"x"', "7"), WHOLE.replace("1", "true"), WHOLE.replace("{}", "[]"),
        ONE.replace('"bytes":1', '"bytes":1e400'), ONE.replace('"bytes":1', '"bytes":"1"'), ONE.replace('""', "1"),
        ONE.replace('""', r'"\ud800"'), ONE.replace('"a"', r'"\u0000"'), ONE.replace('"a"', r'"\ud800"'),
        WHOLE[:-1] + ',"identity":[]}', WHOLE[:-1] + ',"seconds":"1"}',
    ],
)  # fmt: skip
def test_a_bad_manifest_is_an_error(tmp_path: Path, manifest: str) -> None:
    (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(UsageError, match="JSON|manifest|newer"):
        storage.open_folder(tmp_path)


def test_a_manifest_may_name_what_no_system_can_hold(tmp_path: Path) -> None:
    file = {"n" * 5000: {"bytes": 1, "xxh3": "0"}}
    storage.write_json(tmp_path / "manifest.json", {"kind": "x", "format": 1, "files": file})
    with pytest.raises(UsageError, match="missing"):
        storage.open_folder(tmp_path)


def test_a_manifest_cannot_point_outside(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "secret").write_text("s")
    storage.write_json(
        tmp_path / "a" / "manifest.json", {"kind": "x", "format": 1, "files": {"../secret": {"bytes": 1, "xxh3": "0"}}}
    )
    with pytest.raises(UsageError, match="outside"):
        storage.open_folder(tmp_path / "a")


def test_missing_folder_missing_manifest_wrong_kind(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        storage.open_folder(tmp_path / "none")
    with pytest.raises(UsageError, match="not a finished"):
        storage.open_folder(tmp_path)
    _save(tmp_path / "a", 1.0)
    with pytest.raises(UsageError, match="holds a test"):
        storage.open_folder(tmp_path / "a", kind="model")


def test_json_takes_any_text(tmp_path: Path) -> None:
    text = "\ud800 lone, \U0001f600 whole, \x00"
    storage.write_json(tmp_path / "x.json", [text])
    assert storage.read_json(tmp_path / "x.json") == [text]


def test_json_refuses_nan(tmp_path: Path) -> None:
    with pytest.raises(NumericError, match="JSON"):
        storage.write_json(tmp_path / "x.json", float("nan"))
    assert not (tmp_path / "x.json").exists()


def _hold(path: Path, ready: Any, seconds: float) -> None:
    with storage.lock(path):
        ready.set()
        time.sleep(seconds)


def test_second_process_is_refused_and_a_dead_ones_lock_is_free(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=_hold, args=(tmp_path / "lock", ready, 60))
    process.start()
    assert ready.wait(20)
    with pytest.raises(LockedError) as caught, storage.lock(tmp_path / "lock"):
        pass
    assert str(process.pid) in caught.value.expected
    assert caught.value.exit_code == 4
    process.kill()
    process.join()
    with storage.lock(tmp_path / "lock"):
        assert (tmp_path / "lock").exists()
    assert not (tmp_path / "lock").exists()


def _save_under_limit(path: Path, limit: int, queue: Any) -> None:
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        _save(path, 1.0)
        queue.put("written")
    except ResourceError as error:
        queue.put(f"refused: {error.what}")
    except BaseException as error:
        queue.put(repr(error))


@pytest.mark.parametrize("limit", [0, 100, 5000, 16384])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path, limit: int) -> None:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_save_under_limit, args=(tmp_path / "a", limit, queue))
    process.start()
    said = queue.get(timeout=30)
    process.join()
    assert said.startswith("refused: "), said
    assert "MB free" in said
    assert os.listdir(tmp_path) == []


def test_space_is_checked_before_writing(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="needed"):
        storage.check_space(tmp_path / "not" / "there", 1 << 60)


def test_a_name_of_the_hub_is_answered_with_how_to_fetch_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    said = "nothing is downloaded here; fetch it first: hf download Qwen/Qwen3-0.6B --local-dir Qwen3-0.6B"
    with pytest.raises(UsageError, match=re.escape(said)):
        storage.content_digest(Path("Qwen/Qwen3-0.6B"))
    for path in ("runs/model", "/a/b", "model"):
        with pytest.raises(UsageError, match="to do: check the path"):
            storage.content_digest(Path(path))
