"""Whole-or-nothing folders: write to a temporary name, hash, fsync, manifest last, rename.

A folder is opened only if its manifest is there and every file in it has the size (or the hash) the manifest names,
so a killed, full-disk or powered-off run can never leave something that looks finished and is not.
Every call that changes the disk goes through :func:`_call`; the crash tests make the n-th one fail, for every n.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from mickle.errors import LockedError, ResourceError, UsageError
from mickle.untrusted.values import read_json as read_json

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "manifest.json"
SETTINGS = "settings.yaml"  # a record of what was asked, paths included; no part of a folder's content
SCRATCH = ".scratch"  # checkpoints and the like of unfinished work; never part of a manifest
FORMAT = 1
LARGEST_MANIFEST = 16 << 20  # bytes; some hundred thousand files
_UMASK = os.umask(0)
os.umask(_UMASK)


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    """The one place where the disk is changed."""
    return function(*arguments)


@dataclass(frozen=True)
class File:
    """Size in bytes and xxh3-128 of one file."""

    bytes: int
    xxh3: str


@dataclass(frozen=True)
class Manifest:
    """What a finished folder says of itself."""

    kind: str
    files: dict[str, File]
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 over names, sizes and hashes of the files, settings left out: the content in one word."""
        content = sorted(item for item in self.files.items() if item[0] != SETTINGS)
        lines = "\n".join(f"{name} {file.bytes} {file.xxh3}" for name, file in content)
        return hashlib.sha256(lines.encode()).hexdigest()


def seal(folder: Path, *, kind: str, **meta: Any) -> Manifest:
    """Hash and fsync every file under ``folder``, then write its manifest, last."""
    files = {}
    for path in _walk(folder):
        _call(os.chmod, path, 0o666 & ~_UMASK)  # safetensors leaves 0600: another user's server could not read it
        _fsync_path(path)
        files[path.relative_to(folder).as_posix()] = File(path.stat().st_size, hash_file(path))
    for directory in [p for p in folder.rglob("*") if p.is_dir()]:
        _fsync_path(directory)
    manifest = Manifest(kind, files, meta)
    write_json(
        folder / MANIFEST, {"kind": kind, "format": FORMAT, "files": {k: asdict(v) for k, v in files.items()}, **meta}
    )
    return manifest


@contextlib.contextmanager
def write_folder(path: Path, *, kind: str, **meta: Any) -> Iterator[Path]:
    """A temporary folder to fill; on leaving it becomes ``path``, whole, or on an error it is gone."""
    path = Path(path)
    if path.exists():
        raise UsageError(f"{path} exists already", todo="choose another folder, or remove it")
    _call(os.makedirs, path.parent, 0o777, True)
    temporary = path.parent / f".tmp-{path.name}"
    remove(temporary)  # what a killed run left
    with disk_errors(path):
        _call(os.mkdir, temporary)
        try:
            yield temporary
            seal(temporary, kind=kind, **meta)
            publish(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                remove(temporary)
            raise


def publish(folder: Path, path: Path) -> None:
    """Rename a sealed folder to its final name and make the name itself durable."""
    _fsync_path(folder)
    _call(os.rename, folder, path)
    _fsync_path(path.parent)


def read_manifest(path: Path) -> Manifest | None:
    """The manifest of a folder, or None where there is none. A torn one raises :class:`UsageError`."""
    file = Path(path) / MANIFEST
    if not file.is_file():
        return None
    values = read_json(file, LARGEST_MANIFEST)
    try:
        files = {str(name): File(int(f["bytes"]), str(f["xxh3"])) for name, f in values["files"].items()}
        kind = str(values["kind"])
        if int(values["format"]) > FORMAT:
            raise UsageError("folder was written by a newer Mickle", where=str(file), todo="upgrade mickle")
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UsageError("manifest lacks its kind, format or files", where=str(file)) from None
    meta = {k: v for k, v in values.items() if k not in ("kind", "format", "files")}
    return Manifest(kind, files, meta)


def open_folder(path: Path, kind: str | None = None, check: str = "sizes") -> Manifest:
    """The manifest of a whole folder; ``check`` compares "sizes" (fast) or "hashes" (reads every byte).

    Raises :class:`UsageError` naming the file that is missing, cut or changed.
    """
    path = Path(path)
    if not path.is_dir():
        raise UsageError(f"no such folder: {path}", todo="check the path")
    manifest = read_manifest(path)
    if manifest is None:
        raise UsageError(
            f"{path} is not a finished Mickle folder: it has no {MANIFEST}",
            todo="run the command that makes it again: it goes on where it stopped",
        )
    if kind is not None and manifest.kind != kind:
        raise UsageError(f"{path} holds a {manifest.kind}", expected=f"a {kind} folder")
    for name, file in manifest.files.items():
        _check_file(path / name, path, file, check)
    return manifest


def check_member(path: Path) -> None:
    """Refuse a file whose folder, or the folder above, has a manifest by which it has other bytes."""
    path = Path(path).absolute()
    for folder in path.parents[:2]:
        manifest = read_manifest(folder)
        file = manifest.files.get(path.relative_to(folder).as_posix()) if manifest else None
        if file is not None:
            _check_file(path, folder, file, "hashes")


def _check_file(path: Path, folder: Path, file: File, check: str) -> None:
    again = f"remove {folder} and make it again"
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UsageError("manifest names a file outside its folder", where=str(path))
    if not path.is_file():
        raise UsageError("folder is not whole: a file is missing", where=str(path), todo=again)
    size = path.stat().st_size
    if size != file.bytes:
        found = f"folder is not whole: file has {size:,} bytes"
        raise UsageError(found, where=str(path), expected=f"{file.bytes:,} bytes", todo=again)
    if check == "hashes" and hash_file(path) != file.xxh3:
        raise UsageError("file is corrupt: its content is not what was written", where=str(path), todo=again)


def hash_file(path: Path) -> str:
    """xxh3-128 of a file's content, in hex."""
    hasher = xxhash.xxh3_128()
    with open(path, "rb", buffering=0) as stream:
        while chunk := stream.read(1 << 22):
            hasher.update(chunk)
    return hasher.hexdigest()


def content_digest(path: Path) -> str:
    """One hash for what stands at ``path``: a Mickle folder by its manifest, anything else by its bytes."""
    path = Path(path)
    if not path.exists():
        raise UsageError(f"no such file or folder: {path}", todo="check the path")
    if path.is_file():
        return hash_file(path)
    manifest = read_manifest(path)
    if manifest is not None:
        return manifest.digest
    lines = [f"{p.relative_to(path).as_posix()} {hash_file(p)}" for p in _walk(path)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file atomically: the old content or the new one, never a part."""
    path = Path(path)
    temporary = path.parent / f".tmp-{path.name}"
    with disk_errors(path):
        descriptor = _call(os.open, temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            view = memoryview(content)
            while view:
                view = view[_call(os.write, descriptor, view) :]
            _call(os.fsync, descriptor)
        finally:
            os.close(descriptor)
        _call(os.rename, temporary, path)
        _fsync_path(path.parent)


def write_text(path: Path, text: str) -> None:
    """:func:`write_bytes` of UTF-8 text."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """:func:`write_bytes` of JSON; NaN and infinity are refused."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_bytes(path, text.encode("utf-8", "backslashreplace"))  # a lone surrogate becomes JSON's own escape


def read_state(path: Path) -> Any:
    """The value in a JSON file that an unfinished run left for itself: it may be as large as that run."""
    return read_json(path, largest=1 << 30, most=1 << 27)


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors, durable and readable by whoever the umask lets read."""
    from safetensors.torch import save_file

    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    temporary = path.parent / f".tmp-{path.name}"
    with disk_errors(path):
        check_space(path.parent, sum(t.numel() * t.element_size() for t in contiguous.values()))
        try:
            _call(save_file, contiguous, temporary, metadata)
        except OSError:
            raise
        except Exception as error:  # safetensors wraps the system's error in its own type
            if "os error 28" in str(error) or "os error 27" in str(error) or "I/O error" in str(error):
                raise OSError(errno.ENOSPC, str(error)) from None
            raise
        _call(os.chmod, temporary, 0o666 & ~_UMASK)
        _fsync_path(temporary)
        _call(os.rename, temporary, path)
        _fsync_path(path.parent)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file; :class:`UsageError` where it is not one."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not Path(path).is_file():
        raise UsageError(f"no such file: {path}", todo="check the path")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UsageError(f"not a whole safetensors file: {error}", where=str(path)) from None


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold ``path`` (a lock file) for this process; :class:`LockedError` at once if another holds it.

    The kernel drops the lock of a dead process, so a stale file never stands in the way.
    """
    path = Path(path)
    os.makedirs(path.parent, exist_ok=True)
    descriptor = _acquire(path)
    try:
        note = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(note).encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _acquire(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(descriptor, 4096, 0).decode(errors="replace")
            os.close(descriptor)
            raise LockedError(
                "another process is at work on this folder",
                where=str(path),
                expected=f"no holder; now {holder or 'unknown'}",
                todo="wait for it, or stop that process",
            ) from None
        # The holder may have unlinked the file between our open and our lock.
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(descriptor).st_ino == os.stat(path).st_ino:
                return descriptor
        os.close(descriptor)


def check_space(folder: Path, needed: int) -> None:
    """:class:`ResourceError` naming needed and free bytes when the disk under ``folder`` is too full."""
    free = shutil.disk_usage(existing_parent(folder)).free
    if free < needed:
        raise ResourceError(
            f"not enough disk space: {needed / 1e6:,.1f} MB needed, {free / 1e6:,.1f} MB free",
            where=str(folder),
            todo="free some space, or write elsewhere with --out",
        )


@contextlib.contextmanager
def disk_errors(path: Path | str = "") -> Iterator[None]:
    """Turn a full disk, quota or file-size limit into one clear :class:`ResourceError`."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            raise
        free = shutil.disk_usage(existing_parent(Path(path))).free
        raise ResourceError(
            f"the disk refused a write ({os.strerror(error.errno)}); {free / 1e6:,.1f} MB free",
            where=str(path),
            todo="free some space and run the same command again: it goes on",
        ) from None


def existing_parent(path: Path) -> Path:
    """``path`` or the nearest folder above it that exists."""
    path = Path(path).absolute()
    while not path.exists():
        path = path.parent
    return path


def remove(path: Path) -> None:
    """Delete a file or folder if it is there."""
    if path.is_dir() and not path.is_symlink():
        _call(shutil.rmtree, path)
    elif path.exists() or path.is_symlink():
        _call(os.unlink, path)


def _walk(folder: Path) -> list[Path]:
    """Every file of a folder in a stable order, its manifest and scratch left out."""
    scratch = folder / SCRATCH
    found = (p for p in folder.rglob("*") if p.is_file() and p != folder / MANIFEST)
    return sorted(p for p in found if scratch not in p.parents)


def _fsync_path(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _call(os.fsync, descriptor)
    finally:
        os.close(descriptor)
