"""A step: settings and input folders in, one whole output folder out.

Every verb is a subclass of :class:`Step`. :func:`execute` runs one under a lock in ``NAME.partial``, seals it and
renames it. A step is known by a hash of its settings, its inputs' contents and its version: a finished one is not
done again, a killed one goes on, a changed one is never mistaken for the old.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

import mickle
from mickle import machine, storage
from mickle.config import Config, inputs, to_yaml
from mickle.errors import UsageError
from mickle.events import Emit, Noted
from mickle.machine import Forecast
from mickle.results import Finding, Section, Table, drawn, facts

LONGEST_NAME = 240  # bytes; what is unfinished has a longer name than the folder, and systems end at 255


class Step(Config):
    """Settings of a verb, and the verb itself.

    Class variables: ``version`` (raised by hand when results change), ``kind`` (what the output folder is),
    ``example`` (a command shown in the help), ``positional`` (the field that may stand without its flag),
    ``cpu_only`` (no other device is of use), ``resumable_changes`` (fields that may differ when an unfinished run goes
    on), ``reported`` (the command line writes a report page beside the folder), ``title`` and ``lead`` (heading and
    sentence of its part of a report).
    """

    version: ClassVar[int] = 1
    kind: ClassVar[str] = ""
    example: ClassVar[str] = ""
    positional: ClassVar[str] = ""
    cpu_only: ClassVar[bool] = False
    resumable_changes: ClassVar[frozenset[str]] = frozenset()
    reported: ClassVar[bool] = False
    title: ClassVar[str] = "The folder"
    lead: ClassVar[str] = ""

    seed: int = Field(0, ge=0, lt=2**32, description="all randomness follows from it")

    def run(self, work: Path, emit: Emit) -> dict[str, Any]:
        """Fill ``work`` with the output folder's content and return a JSON-able summary.

        ``work`` may hold what a killed try left; ``work/.scratch`` is deleted when the folder is sealed.
        """
        raise NotImplementedError

    def fingerprint(self) -> dict[str, Any]:
        """What else the result depends on beside settings and inputs."""
        return {}

    def dry_run(self) -> tuple[Forecast, str]:
        """A forecast of memory, time and disk, and a preview of what would be done."""
        return Forecast(), ""

    def together(self, out: Path, emit: Emit) -> Path:
        """Do the step as one of the processes that torchrun started."""
        name = type(self).__name__.lower()
        raise UsageError(f"{name} runs in one process; pretrain, tune and mix in several", todo="leave torchrun out")

    def answer(self) -> str:
        """What there is to say when these settings ask for no work (a list of choices); "" where they do."""
        return ""

    def after(self, out: Path) -> str:
        """The next sensible command."""
        return command("show", out)

    @classmethod
    def section(cls, folder: Path, summary: dict[str, Any]) -> Section:
        """A finished folder's part of a report: its figures, and what its summary says in short."""
        return Section(cls.title, cls.lead, drawn(folder), [Table(("", ""), facts(summary), frozenset({1}))])

    @classmethod
    def findings(cls, summary: dict[str, Any]) -> list[Finding]:
        """The numbers of a finished folder to see first."""
        return []

    @classmethod
    def shown(cls, folder: Path) -> list[str]:
        """What `mickle show` says of a finished folder besides what it says of all."""
        return []

    def identity(self) -> dict[str, Any]:
        """All that the result depends on. Input paths give way to the hashes of what they hold."""
        settings = self.model_dump(mode="json")
        for name, path in inputs(self):
            _replace(settings, name.split("."), storage.content_digest(path))
        return {
            "verb": type(self).__name__.lower(),
            "version": self.version,
            "settings": settings,
            "fingerprint": self.fingerprint(),
        }


def command(*words: object) -> str:
    """A command of Mickle's as a person can type it, paths with spaces in quotes."""
    return shlex.join(["mickle", *map(str, words)])


def identity_hash(identity: dict[str, Any]) -> str:
    """The step's name in ten hexadecimal digits."""
    text = json.dumps(identity, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def execute(step: Step, out: Path, emit: Emit) -> Path:
    """Do ``step`` and leave the whole folder ``out``; a finished one with the same identity is left as it is.

    Under torchrun every process calls this, and the step says how they share it.
    Raises :class:`LockedError` where another process is at it, :class:`UsageError` where ``out`` holds something else.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return step.together(Path(out), emit)
    return execute_alone(step, Path(out), emit)


def execute_alone(step: Step, out: Path, emit: Emit) -> Path:
    """:func:`execute` in the one process that writes."""
    if len(os.fsencode(out.name)) > LONGEST_NAME:
        raise UsageError(f"the folder's name is too long: {out.name}", expected=f"at most {LONGEST_NAME} bytes")
    identity = step.identity()
    if finished(out, identity):
        emit(Noted(f"{out} is done already"))
        return out
    with storage.disk_errors(out), storage.lock(out.parent / f".{out.name}.lock"):
        if finished(out, identity):
            return out
        work = out.parent / f"{out.name}.partial"
        if not _sealed(work, identity):
            _run_and_seal(step, identity, work, out, emit)
        # Sealed first, seen to open second, scratch gone third, renamed last: a kill between any two leaves a whole
        # folder to rename, and no work is thrown away for a folder that nobody can open.
        storage.open_folder(work)
        storage.remove(work / storage.SCRATCH)
        storage.remove_temporary(work)
        storage.publish(work, out)
    return out


def finished(out: Path, identity: dict[str, Any]) -> bool:
    """Whether ``out`` is whole and was made by exactly this step. Something else there is an error."""
    if out.is_symlink() and not out.exists():
        raise UsageError(f"{out} is a link to nowhere: {os.readlink(out)}", todo="remove it, or choose another --out")
    if not out.exists():
        return False
    manifest = storage.read_manifest(out) if out.is_dir() else None
    if manifest is None:
        if out.is_dir() and not any(out.iterdir()):
            raise UsageError(f"{out} exists and is empty", todo="remove it, or choose another --out")
        raise UsageError(f"{out} exists and is not a Mickle folder", todo="choose another --out")
    made_by = manifest.meta.get("identity", {})
    if made_by == _plain(identity):
        storage.open_folder(out)
        return True
    raise UsageError(
        f"{out} was made with other settings: {differences(made_by, identity)}",
        todo="choose another --out, or remove the folder",
    )


def _sealed(work: Path, identity: dict[str, Any]) -> bool:
    """Whether a kill came after the work was whole and before it had its name."""
    manifest = storage.whole(work)
    return manifest is not None and bool(manifest.meta.get("identity") == _plain(identity))


def differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Which fields differ between two identities, with both values."""
    before, after = flat(old), flat(new)
    shown = [f"{k.removeprefix('settings.')} {before.get(k)} -> {after.get(k)}" for k in _changed(old, new)]
    return "; ".join(shown[:6]) + (f"; and {len(shown) - 6} more" if len(shown) > 6 else "")


def _changed(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    before, after = flat(old), flat(_plain(new))
    return [name for name in sorted(before.keys() | after.keys()) if before.get(name) != after.get(name)]


def _plain(value: Any) -> Any:
    """The value as it comes back from JSON."""
    return json.loads(json.dumps(value, default=str))


def _prepare(work: Path, identity: dict[str, Any], may_change: frozenset[str]) -> bool:
    """Make or adopt the working folder; true where an earlier try left something to go on with."""
    note = work / storage.SCRATCH / "identity.json"
    if note.is_file():
        old = storage.read_json(note)
        changed = {name.removeprefix("settings.") for name in _changed(old, identity)}
        if changed - may_change:
            raise UsageError(
                f"{work} is an unfinished run with other settings: {differences(old, identity)}",
                todo=f"give the old settings to go on, or remove {work}",
            )
        return True
    storage.remove(work)  # killed before it had begun
    note.parent.mkdir(parents=True)
    storage.write_json(note, identity)
    return False


def _run_and_seal(step: Step, identity: dict[str, Any], work: Path, out: Path, emit: Emit) -> None:
    resumed = _prepare(work, identity, step.resumable_changes)
    if resumed:
        emit(Noted(f"going on with {work}"))
    begun = time.time()
    machine.reset_peak_memory()
    try:
        summary = step.run(work, emit)
    except UsageError:
        if not resumed:  # a corrected step is another step: what this one began is of no use to it
            storage.remove(work)
        raise
    storage.write_text(work / storage.SETTINGS, to_yaml(step))
    meta = {
        "identity": identity,
        "parents": {name: str(path) for name, path in inputs(step)},
        "summary": summary,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(begun)),
        "seconds": round(time.time() - begun, 2),
        "resumed": resumed,
        "peak_memory_bytes": machine.peak_memory(),
        "command": command_line(),
        "mickle": mickle.__version__,
        "machine": machine.describe(),
    }
    storage.seal(work, kind=step.kind, **meta)


def command_line() -> str:
    """The command that was given, without the path of its interpreter."""
    return " ".join(["mickle", *sys.argv[1:]]) if Path(sys.argv[0]).name in ("mickle", "__main__.py", "cli.py") else ""


def _replace(settings: Any, path: list[str], value: str) -> None:
    for part in path[:-1]:
        settings = settings[int(part)] if isinstance(settings, list) else settings[part]
    if isinstance(settings, list):
        settings[int(path[-1])] = value
    else:
        settings[path[-1]] = value


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Settings inside each other as one mapping, by names with dots."""
    if isinstance(value, dict) and value:
        return {k: v for name, item in value.items() for k, v in flat(item, f"{prefix}{name}.").items()}
    return {prefix.rstrip("."): value}
