from __future__ import annotations

import errno
import os
import signal
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mickle import storage
from mickle.errors import MickleError, ResourceError, UsageError
from mickle.events import Event, ignore
from mickle.step import execute, identity_hash


def test_output_is_whole_and_done_once(toy: ModuleType, tmp_path: Path) -> None:
    step = toy.Write(words=["a", "b"])
    heard: list[Event] = []
    out = execute(step, tmp_path / "w", heard.append)
    execute(step, tmp_path / "w", ignore)
    assert toy.Write.calls == ["write"]
    manifest = storage.open_folder(out, kind="words", check="hashes")
    assert manifest.meta["summary"]["count"] == 2
    assert sorted(p.name for p in out.iterdir()) == ["letters", "manifest.json", "settings.yaml", "words.txt"]
    assert sorted(os.listdir(tmp_path)) == ["w"]
    assert len(heard) == 2


def test_a_manifest_cut_by_a_kill_never_becomes_content(toy: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ResourceError):
        execute(toy.Write(fail=True), tmp_path / "w", ignore)
    for name in (".tmp-manifest.json", "letters/.tmp-count.npy", ".tmp6ds1YO"):
        (tmp_path / "w.partial" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "w.partial" / name).write_text("{")
    out = execute(toy.Write(fail=True), tmp_path / "w", ignore)
    assert sorted(storage.open_folder(out, check="hashes").files) == ["letters/count.npy", "settings.yaml", "words.txt"]
    assert sorted(os.listdir(out)) == ["letters", "manifest.json", "settings.yaml", "words.txt"]


def test_a_folder_that_does_not_open_is_not_published(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = storage.seal

    def seal(folder: Path, **meta: Any) -> None:
        real(folder, **meta)
        (folder / "words.txt").write_text("cut")

    with monkeypatch.context() as patch, pytest.raises(UsageError, match="not whole"):
        patch.setattr(storage, "seal", seal)
        execute(toy.Write(), tmp_path / "w", ignore)
    assert (tmp_path / "w.partial" / ".scratch").is_dir()
    assert not (tmp_path / "w").exists()
    execute(toy.Write(), tmp_path / "w", ignore)


@pytest.mark.parametrize("what", ["long", "dangling", "file above", "read-only", "failing", "full"])
def test_a_place_that_cannot_be_written_is_told_at_once(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    out = tmp_path / ("n" * 250 if what == "long" else "w")
    if what == "dangling":
        out.symlink_to(tmp_path / "nowhere")
    if what == "file above":
        (tmp_path / "file").write_text("")
        out = tmp_path / "file" / "w"
    number = {"read-only": errno.EROFS, "failing": errno.EIO, "full": errno.ENOSPC}.get(what)
    if number:

        def refused(function: Any, *arguments: Any) -> Any:
            raise OSError(number, os.strerror(number), "w")

        monkeypatch.setattr(storage, "_call", refused)
    with pytest.raises(MickleError) as caught:
        execute(toy.Write(), out, ignore)
    assert caught.value.exit_code == (3 if what in ("failing", "full") else 2)
    assert "bug" not in str(caught.value)
    assert toy.Write.calls == []


def test_other_settings_never_pass_for_done(toy: ModuleType, tmp_path: Path) -> None:
    execute(toy.Write(), tmp_path / "w", ignore)
    with pytest.raises(UsageError, match=r"learning_rate 0.001 -> 0.5"):
        execute(toy.Write(learning_rate=0.5), tmp_path / "w", ignore)


def test_foreign_and_damaged_folders_are_refused(toy: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    with pytest.raises(UsageError, match="empty"):
        execute(toy.Write(), tmp_path / "f", ignore)
    (tmp_path / "f" / "mine.txt").write_text("x")
    with pytest.raises(UsageError, match="not a Mickle folder"):
        execute(toy.Write(), tmp_path / "f", ignore)
    execute(toy.Write(), tmp_path / "w", ignore)
    (tmp_path / "w" / "words.txt").write_text("cut")
    with pytest.raises(UsageError, match="not whole"):
        execute(toy.Write(), tmp_path / "w", ignore)


def test_a_stopped_step_goes_on(toy: ModuleType, tmp_path: Path) -> None:
    step = toy.Write(fail=True)
    with pytest.raises(ResourceError, match="half-way"):
        execute(step, tmp_path / "w", ignore)
    assert not (tmp_path / "w").exists()
    with pytest.raises(UsageError, match=r"unfinished run with other settings: seed 0 -> 1"):
        execute(toy.Write(fail=True, seed=1), tmp_path / "w", ignore)
    execute(toy.Write(fail=True, note="allowed to change"), tmp_path / "w", ignore)
    manifest = storage.open_folder(tmp_path / "w")
    assert manifest.meta["summary"]["resumed"]
    assert manifest.meta["resumed"]


def test_bad_data_leaves_nothing_in_the_way(toy: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="bad word"):
        execute(toy.Write(words=["bad"]), tmp_path / "w", ignore)
    assert list(tmp_path.iterdir()) == []
    execute(toy.Write(words=["good"]), tmp_path / "w", ignore)


@pytest.mark.parametrize("moment", ["before the scratch goes", "before the rename"])
def test_a_kill_after_the_work_never_loses_it(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    name = "remove" if moment == "before the scratch goes" else "publish"
    with monkeypatch.context() as patch:

        def killed(*arguments: object) -> None:
            raise KeyboardInterrupt

        if name == "publish":
            patch.setattr(storage, "publish", killed)
        else:
            real = storage.remove
            patch.setattr(storage, "remove", lambda p: killed() if Path(p).name == ".scratch" else real(p))
        with pytest.raises(KeyboardInterrupt):
            execute(toy.Write(), tmp_path / "w", ignore)
    assert not (tmp_path / "w").exists()
    execute(toy.Write(), tmp_path / "w", ignore)
    assert toy.Write.calls == ["write"]
    storage.open_folder(tmp_path / "w", check="hashes")


def test_identity_follows_content_not_paths(toy: ModuleType, tmp_path: Path) -> None:
    for name in ("a", "b"):
        execute(toy.Write(), tmp_path / name, ignore)
    execute(toy.Write(words=["other"]), tmp_path / "c", ignore)
    a, b, c = (identity_hash(toy.Count(data=tmp_path / n).identity()) for n in "abc")
    assert a == b != c


def test_missing_input_is_named(toy: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file or folder"):
        execute(toy.Count(data=tmp_path / "none"), tmp_path / "out", ignore)


def test_sigkill_in_the_middle_goes_on(toy: ModuleType, tmp_path: Path) -> None:
    """The child kills itself inside run(); the parent finishes the same step."""
    child = os.fork()
    if child == 0:
        real = toy.Write.run

        def run(self: object, work: Path, emit: object) -> dict[str, object]:
            (work / ".scratch" / "half").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
            return real(self, work, emit)

        toy.Write.run = run
        execute(toy.Write(), tmp_path / "w", ignore)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    execute(toy.Write(), tmp_path / "w", ignore)
    assert storage.open_folder(tmp_path / "w").meta["summary"]["resumed"]
