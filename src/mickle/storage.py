"""Whole-or-nothing folders: write to a temporary name, hash, fsync, manifest last, rename.

A folder is opened only if its manifest is there and every file in it has the size (or the hash) the manifest names,
so a killed, full-disk or powered-off run can never leave something that looks finished and is not.
Every call that changes the disk goes through :func:`_call`; the crash tests make the n-th one fail, for every n.
What is being written has a temporary name until it is whole; temporary names are never content.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from mickle.errors import LockedError, NumericError, ResourceError, UsageError
from mickle.untrusted.values import read_json as read_json

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

MANIFEST = "manifest.json"
SETTINGS = "settings.yaml"  # a record of what was asked, paths included; no part of a folder's content
HELDOUT = "heldout.parquet"  # in a model folder of ours: pages that it was never trained on
HELDOUT_EXAMPLES = "heldout.jsonl"  # in a tuned one: examples that it was never tuned on
SCRATCH = ".scratch"  # checkpoints and the like of unfinished work; never part of a manifest
TEMPORARY = ".tmp"  # what such a name begins with; safetensors' own do too
FORMAT = 1
_HUB_NAME = re.compile(  # ORGANISATION/NAME, and the oldest names
    r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*|(?:distil)?(?:gpt2|bert|roberta|albert|electra|t5)(?:-[\w.-]+)?"
)
ANY_SIZE, MOST_HOLES = 64 << 20, 200  # bytes that may be a hole; beyond that, bytes to one that was written
LARGEST_HEADER = 8 << 20  # bytes at the beginning of a safetensors file
LARGEST_MANIFEST = 16 << 20  # bytes; some hundred thousand files
FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
# What a manifest may say besides kind, format and files, and of which type.
META: dict[str, type | tuple[type, ...]] = {
    "identity": dict, "parents": dict, "summary": dict, "created": str, "seconds": (int, float), "resumed": bool,
    "peak_memory_bytes": int, "command": str, "mickle": str, "machine": dict,
}  # fmt: skip
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
    """Hash and fsync every file under ``folder``, then write its manifest, last; what a kill left half-written goes."""
    remove_temporary(folder)
    files = {}
    for path in _walk(folder):
        _call(os.chmod, path, 0o666 & ~_UMASK)  # safetensors leaves 0600: another user's server could not read it
        fsync_path(path)
        files[path.relative_to(folder).as_posix()] = File(path.stat().st_size, hash_file(path))
    for directory in [p for p in folder.rglob("*") if p.is_dir()]:
        fsync_path(directory)
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
    temporary = _temporary(path)
    with disk_errors(path):
        _call(os.makedirs, path.parent, 0o777, True)
        remove(temporary)  # what a killed run left
        _call(os.mkdir, temporary)
        try:
            yield temporary
            seal(temporary, kind=kind, **meta)
            publish(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                remove(temporary)
            raise


def _temporary(path: Path) -> Path:
    return path.with_name(f"{TEMPORARY}-{path.name}")


def publish(folder: Path, path: Path) -> None:
    """Rename a sealed folder to its final name and make the name itself durable."""
    fsync_path(folder)
    _call(os.rename, folder, path)
    fsync_path(path.parent)


def read_manifest(path: Path) -> Manifest | None:
    """The manifest of a folder, or None where there is none. A torn one, or one of a stranger that says what none can
    say, raises :class:`UsageError`.
    """
    file = Path(path) / MANIFEST
    if not file.is_file():
        return None
    values = read_json(file, LARGEST_MANIFEST)
    if not isinstance(values, dict) or type(values.get("format")) is not int or type(values.get("kind")) is not str:
        raise UsageError("manifest lacks its kind, format or files", where=str(file))
    if values["format"] > FORMAT:
        raise UsageError("folder was written by a newer Mickle", where=str(file), todo="upgrade mickle")
    meta = {k: v for k, v in values.items() if k not in ("kind", "format", "files")}
    for name, kind in META.items():
        if name in meta and not isinstance(meta[name], kind):
            raise UsageError(f"manifest holds what Mickle never writes: a {name} of another type", where=str(file))
    return Manifest(values["kind"], _files(values.get("files"), file), meta)


def _files(values: Any, file: Path) -> dict[str, File]:
    if not isinstance(values, dict):
        raise UsageError("manifest lacks its kind, format or files", where=str(file))
    found = {}
    for name, said in values.items():
        size, xxh3 = (said.get("bytes"), said.get("xxh3")) if isinstance(said, dict) else (None, None)
        if type(size) is not int or type(xxh3) is not str or not xxh3.isascii() or not _nameable(name):
            raise UsageError("manifest lacks the size or hash of a file, or a name that can be one", where=str(file))
        found[name] = File(size, xxh3)
    return found


def _nameable(name: str) -> bool:
    try:
        return b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:
        return False


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


def whole(path: Path, kind: str | None = None) -> Manifest | None:
    """The manifest of a folder of which every byte is as it was written; None where that is not so."""
    try:
        return open_folder(path, kind, check="hashes")
    except UsageError:
        return None


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
    if not os.path.isfile(path):  # of a name that is too long too
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
        _refuse_holes(stream.fileno(), path)
        while chunk := stream.read(1 << 22):
            hasher.update(chunk)
    return hasher.hexdigest()


def _refuse_holes(descriptor: int, path: Path) -> None:
    """A file of gigabytes that takes none of the disk would be read for hours before anyone looks at what it says."""
    size, place, written = os.fstat(descriptor).st_size, 0, 0
    try:
        while place < size and size > ANY_SIZE + MOST_HOLES * written:
            start = os.lseek(descriptor, place, os.SEEK_DATA)
            place = os.lseek(descriptor, start, os.SEEK_HOLE)
            written += place - start
    except OSError as error:
        place = size if error.errno == errno.ENXIO else 0  # no more data; or a disk that does not say
    os.lseek(descriptor, 0, os.SEEK_SET)
    if place >= size > ANY_SIZE + MOST_HOLES * written:
        raise UsageError(f"this file has {size:,} bytes, of which {written:,} were written", where=str(path))


def no_such(path: Path, what: str = "file or folder", *, where: str = "", expected: str = "") -> UsageError:
    """The error of a path at which nothing is; for a name of the Hugging Face hub with how to fetch it."""
    todo = "check the path"
    if _HUB_NAME.fullmatch(str(path)) and (len(Path(path).parts) == 1 or not Path(path).parent.exists()):
        todo = f"nothing is downloaded here; fetch it first: hf download {path} --local-dir {Path(path).name}"
    return UsageError(f"no such {what}: {path}", where=where, expected=expected, todo=todo)


def content_digest(path: Path) -> str:
    """One hash for what stands at ``path``: a Mickle folder by its manifest, anything else by its bytes."""
    path = Path(path)
    if not path.exists():
        raise no_such(path)
    if path.is_file():
        return hash_file(path)
    if not path.is_dir():
        raise UsageError(f"neither a file nor a folder: {path}", todo="write what comes through it to a file first")
    manifest = read_manifest(path)
    if manifest is not None:
        return manifest.digest
    lines = [f"{p.relative_to(path).as_posix()} {hash_file(p)}" for p in _walk(path)]
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file atomically: the old content or the new one, never a part."""
    path = Path(path)
    temporary = _temporary(path)
    with disk_errors(path, len(content)):
        descriptor = _call(os.open, temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            view = memoryview(content)
            while view:
                view = view[_call(os.write, descriptor, view) :]
            _call(os.fsync, descriptor)
        finally:
            os.close(descriptor)
        _call(os.rename, temporary, path)
        fsync_path(path.parent)


def write_text(path: Path, text: str) -> None:
    """:func:`write_bytes` of UTF-8 text."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """:func:`write_bytes` of JSON; :class:`NumericError` for a number in it that is not finite."""
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except ValueError as error:
        raise NumericError(f"a number to be written is not finite: {error}", where=str(path)) from None
    write_bytes(path, text.encode("utf-8", "backslashreplace"))  # a lone surrogate becomes JSON's own escape


def read_state(path: Path) -> Any:
    """The value in a JSON file that an unfinished run left for itself: it may be as large as that run."""
    return read_json(path, largest=1 << 30, most=1 << 27)


def save_array(path: Path, array: NDArray[Any]) -> None:
    """:func:`write_bytes` of an array as ``.npy``."""
    import numpy as np

    buffer = io.BytesIO()
    np.save(buffer, array)
    write_bytes(path, buffer.getvalue())


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors, durable and readable by whoever the umask lets read."""
    from safetensors.torch import save_file

    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    temporary, size = _temporary(path), sum(t.numel() * t.element_size() for t in contiguous.values())
    with disk_errors(path, size):
        check_space(path.parent, size)
        try:
            _call(save_file, contiguous, temporary, metadata)
        except OSError:
            raise
        except Exception as error:  # safetensors wraps the system's error in its own type
            if number := re.search(r"os error (\d+)", str(error)):
                raise OSError(int(number[1]), str(error), str(path)) from None
            raise
        _call(os.chmod, temporary, 0o666 & ~_UMASK)
        fsync_path(temporary)
        _call(os.rename, temporary, path)
        fsync_path(path.parent)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file; :class:`UsageError` where it is not one."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not Path(path).is_file():
        raise UsageError(f"no such file: {path}", todo="check the path")
    with open(path, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
    if length > LARGEST_HEADER:
        raise UsageError(f"not a whole safetensors file: its header claims {length:,} bytes", where=str(path))
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UsageError(f"not a whole safetensors file: {error}", where=str(path)) from None


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold ``path`` (a lock file) for this process; :class:`LockedError` at once if another holds it.

    The kernel drops the lock of a dead process, so a stale file never stands in the way. Whoever works in a folder
    locks it first: here it shows whether the place can be written at all. :class:`UsageError` where it cannot.
    """
    path = Path(path)
    try:
        with disk_errors(path):
            descriptor = _acquire(path)
    except OSError as error:
        why = error.strerror or str(error)
        todo = "choose another folder with --out"
        raise UsageError(f"cannot write here: {why}", where=str(path.parent), todo=todo) from None
    with open(descriptor, "rb"):  # closed in any case, which frees the lock
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # of a disk that died at work, the first failure is the one to tell
                _call(os.unlink, path)


def _acquire(path: Path) -> int:
    """A descriptor of the lock file that holds the lock, with a note in it of who has it."""
    _call(os.makedirs, path.parent, 0o777, True)
    descriptor = _locked(path)
    note = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    try:
        _call(os.ftruncate, descriptor, 0)
        _call(os.pwrite, descriptor, json.dumps(note).encode(), 0)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _locked(path: Path) -> int:
    while True:
        descriptor = _call(os.open, path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
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
def disk_errors(path: Path | str = "", needed: int = 0) -> Iterator[None]:
    """Turn a full disk, quota or file-size limit, and a disk that fails, into one clear :class:`ResourceError`.

    needed: bytes that were to be written, where they are known.
    """
    try:
        yield
    except OSError as error:
        if error.errno == errno.EIO:
            raise ResourceError(
                f"the disk failed ({os.strerror(errno.EIO)})",
                where=str(error.filename or path),
                todo="look at the disk (dmesg), then run the same command again: it goes on",
            ) from None
        if error.errno not in FULL:
            raise
        free = shutil.disk_usage(existing_parent(Path(path))).free
        wanted = f"{needed:,} bytes needed, " if needed else ""
        raise ResourceError(
            f"the disk refused a write ({os.strerror(error.errno)}); {wanted}{free / 1e6:,.1f} MB free",
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
    """Delete a file or folder if it is there. A folder loses its name first: half of one is never found under it."""
    if path.is_dir() and not path.is_symlink():
        if not path.name.startswith(TEMPORARY):
            remove(_temporary(path))
            publish(path, _temporary(path))
            path = _temporary(path)
        _call(shutil.rmtree, path)
    elif path.exists() or path.is_symlink():
        _call(os.unlink, path)


def remove_temporary(folder: Path) -> None:
    """Delete what a kill left under a temporary name, the scratch left alone."""
    for leftover in [path for path in folder.rglob(f"{TEMPORARY}*") if folder / SCRATCH not in path.parents]:
        remove(leftover)


def _walk(folder: Path) -> list[Path]:
    """Every file of a folder in a stable order, its manifest, scratch and temporary names left out."""
    found = (p for p in folder.rglob("*") if p.is_file() and p != folder / MANIFEST)
    return sorted(p for p in found if not _passing(p.relative_to(folder).parts))


def _passing(parts: tuple[str, ...]) -> bool:
    return parts[0] == SCRATCH or any(part.startswith(TEMPORARY) for part in parts)


def fsync_path(path: Path) -> None:
    """Make a file's content, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _call(os.fsync, descriptor)
    finally:
        os.close(descriptor)
