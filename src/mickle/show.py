"""What is this folder, GGUF file or journal, where is it from, is it whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mickle import storage, verbs
from mickle.errors import UsageError, shortened
from mickle.models.gguf_folder import SUFFIX, about, gguf_file
from mickle.step import command

LEFT_OUT = ("text", "forecast", "removed", "skipped", "stage_seconds")  # shown elsewhere, or too long for a line


def show(folder: Path, check: str = "hashes") -> str:
    """A few lines on a folder: kind, size, parents, settings, summary, and whether every byte is as written.

    Of a GGUF file what its header says. Of a journal of MeZO, a file: what it moves, how far, between which weights,
    and how to use it.
    """
    folder = Path(folder)
    if folder.is_file():
        return about(folder) if folder.suffix == SUFFIX else _journal(folder)
    if not folder.is_dir():
        raise UsageError(f"no such folder: {folder}", todo="check the path")
    if (folder / storage.SCRATCH).is_dir():
        with _nonsense(folder):
            return f"{folder}: an unfinished run\n{_unfinished(folder)}"
    if storage.read_manifest(folder) is None:
        return _foreign(folder)
    manifest = storage.open_folder(folder, check=check)
    with _nonsense(folder):
        return "\n".join(_finished(folder, manifest, "every byte checked" if check == "hashes" else "sizes checked"))


@contextmanager
def _nonsense(folder: Path) -> Iterator[None]:
    """What is not of the type that Mickle writes is no bug of Mickle's."""
    try:
        yield
    except (TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
        said = f"{type(error).__name__}: {str(error)[:100]}"
        raise UsageError(f"this folder says of itself what Mickle never writes ({said})", where=str(folder)) from None


def _finished(folder: Path, manifest: storage.Manifest, how: str) -> list[str]:
    meta = manifest.meta
    size = sum(file.bytes for file in manifest.files.values())
    lines = [
        f"{folder}: {_with_article(manifest.kind)}, whole ({how})",
        f"  content   {manifest.digest[:16]}, {len(manifest.files)} files, {size / 1e6:,.2f} MB",
        f"  made      {meta.get('created', '?')} by mickle {meta.get('mickle', '?')} in {meta.get('seconds', '?')} s"
        f", peak memory {meta.get('peak_memory_bytes', 0) / 1e9:.2f} GB",
    ]
    if meta.get("command"):
        lines.append(f"  command   {meta['command']}")
    lines += [f"  from      {name}: {path}" for name, path in meta.get("parents", {}).items()]
    settings = meta.get("identity", {}).get("settings", {}).items()
    given = [item for item in settings if item[0] not in meta.get("parents", {}) and item[1] is not None]
    lines += [f"  setting   {name}: {_cut(value)}" for name, value in given]
    results = [item for item in meta.get("summary", {}).items() if item[0] not in LEFT_OUT]
    lines += [f"  result    {name}: {_cut(value)}" for name, value in results]
    return [*lines, *verbs.made_by(meta.get("identity", {})).shown(folder)]


def _journal(path: Path) -> str:
    """What a journal moves, by which rule, from where to where; the commands that use it."""
    from mickle.training.journal import describe, read_journal

    journal = read_journal(path)
    added = journal.runs[0].added
    base, tuned = _ends(path)
    moves, comes_out = "all weights", "model"
    if added is not None:
        settings = ", ".join(f"{name} {_cut(value)}" for name, value in added.items() if name != "kind")
        moves, comes_out = f"a {added['kind']} ({settings})", "adapter"
    lines = [
        f"{path}: a journal of MeZO, whole, {path.stat().st_size:,} bytes",
        f"  moves     {moves}",
        *(f"  {line}" for line in describe(journal).splitlines()),
    ]
    if added is not None:
        lines.append(f"  base      weights with the hash {journal.runs[0].beneath[:16]}")
    return "\n".join([
        *lines,
        f"  the {comes_out} of any step, up to {journal.steps:,}: {_use(base or 'BASE', path, 'STEP')}",
        f"  undo it: {_use(tuned or 'TUNED', path, '0')}",
    ])  # fmt: skip


def _with_article(noun: str) -> str:
    return f"an {noun}" if noun[:1] in "aeiou" else f"a {noun}"


def _use(folder: str, journal: Path, step: str) -> str:
    return command("export", folder, "--journal", journal, "--to-step", step, "--out", "OUT")


def _ends(path: Path) -> tuple[str, str]:
    """The folders that a journal leads between, where it stands in the one that its run made; else nothing."""
    manifest = storage.read_manifest(path.parent)
    if manifest is None or path.name not in manifest.files or manifest.kind != "tuned":
        return "", ""
    return str(manifest.meta.get("parents", {}).get("model", "")), str(path.parent)


def _unfinished(folder: Path) -> str:
    identity = storage.read_json(folder / storage.SCRATCH / "identity.json")
    settings = identity.get("settings", {}).items()
    return "\n".join(
        [
            f"  verb      {identity.get('verb')}",
            *(f"  setting   {k}: {_cut(v)}" for k, v in settings),
            "  the same command goes on from here",
        ]
    )


def _foreign(folder: Path) -> str:
    if (file := gguf_file(folder)) is not None:
        return about(file)
    if not (folder / "config.json").is_file():
        raise UsageError(
            f"{folder} is neither a Mickle folder nor a model folder", expected="manifest.json or config.json in it"
        )
    config = storage.read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise UsageError("config.json must hold an object", where=str(folder / "config.json"))
    names = ("model_type", "architectures", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    lines = [f"{folder}: a model folder of another tool (no manifest: nothing says whether it is whole)"]
    lines += [f"  {name:<20} {_cut(config[name])}" for name in names if name in config]
    weights = sorted(folder.glob("*.safetensors"))
    lines.append(f"  {'weights':<20} {', '.join(p.name for p in weights) or 'no safetensors file'}")
    return "\n".join(lines)


def _cut(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else shortened(" ".join(str(value).split()), 90)
