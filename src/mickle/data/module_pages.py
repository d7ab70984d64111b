"""One HTML page for one Python module, made from its docstrings; run as a program, for many modules, each in
a bounded child.

Importing a module runs it, and a module may hang, print, exit, fork, open a browser or eat all memory. So the
program reads a job (JSON) from its standard input and forks a child for every module. The child has limits on
address space, CPU seconds and wall seconds, an empty standard input, its output thrown away, no search path
for programs, and an audit hook that refuses connections and other programs. One line per finished module,
``index<TAB>reason`` (the reason is empty when a page was written to ``folder/index.html``), goes to standard
output. This stops accidents; it is no boundary against a package that means harm.

The file imports the standard library alone, so that a child starts with nothing of Mickle's or its libraries
loaded.
"""

import contextlib
import ctypes
import html
import importlib
import inspect
import json
import os
import re
import resource
import signal
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path

FORBIDDEN = ("socket.connect", "socket.bind", "socket.getaddrinfo", "subprocess.Popen", "os.system", "os.exec",
             "os.posix_spawn", "webbrowser.open")  # fmt: skip
LONGEST_SIGNATURE = 1000
LONGEST_PAGE = 8 << 20
DISK_REFUSED = 75  # exit code of a child whose page could not be written
ADDRESS = re.compile(r"\s+at 0x[0-9a-fA-F]+")
ENVIRONMENT = re.compile(r"environ\(\{.*?\}\)")  # a default argument that shows this machine's settings
BULLET = re.compile(r"^[-*] ")
UNDERLINE = re.compile(r"^[-=~]{3,}$")
RULE = re.compile(r"^[-=+|][-=+| ]{2,}$")


# ---------------------------------------------------------------------------------------------------------- one page


def render_module(module: types.ModuleType, name: str, siblings: list[str], origin: str) -> str:
    """HTML page of ``module``: its docstring, then its public classes and functions with theirs.

    ``siblings`` become the page's navigation and ``origin`` its footer: what a reader of pages must tell from
    main text. Names that the module only passes on from another public module are left to that module's page.
    """
    parts = [f"<h1>{html.escape(name)}</h1>", *docstring_blocks(module)]
    for label, value in public_members(module, name):
        if inspect.isclass(value):
            parts += class_blocks(label, value)
        else:
            parts += [f"<h2>{html.escape(signature(label, value))}</h2>", *docstring_blocks(value)]
    links = "".join(f'<li><a href="{html.escape(other)}.html">{html.escape(other)}</a></li>' for other in siblings)
    title = html.escape(name)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title></head><body>\n'
        f"<nav><ul>{links}</ul></nav>\n<main><article>\n" + "\n".join(parts) + "\n</article></main>\n"
        f"<footer>{html.escape(origin)}</footer>\n</body></html>\n"
    )


def public_members(module: types.ModuleType, name: str) -> Iterator[tuple[str, object]]:
    """Documented classes and functions that have their home in the module, in the order they are defined."""
    exported = getattr(module, "__all__", None)
    for label, value in list(vars(module).items()):
        if not isinstance(label, str) or label.startswith("_"):
            continue
        if not (inspect.isclass(value) or inspect.isroutine(value)):
            continue
        home = getattr(value, "__module__", None) or name
        private_home = isinstance(home, str) and any(part.startswith("_") for part in home.split("."))
        at_home = home == name or (isinstance(exported, list | tuple) and label in exported and private_home)
        if at_home and (own_docstring(value) or inspect.isclass(value)):
            yield label, value


def class_blocks(label: str, value: type) -> list[str]:
    """Heading, docstring and documented public methods and properties of a class (those it defines itself)."""
    bases = ", ".join(base.__qualname__ for base in value.__bases__ if base is not object)
    parts = [f"<h2>class {html.escape(label)}{'(' + html.escape(bases) + ')' if bases else ''}</h2>"]
    parts += docstring_blocks(value)
    for method, raw in list(vars(value).items()):
        if method.startswith("_") and method not in ("__init__", "__call__"):
            continue
        target = raw.__func__ if isinstance(raw, classmethod | staticmethod) else raw
        blocks = docstring_blocks(target)
        if blocks and (inspect.isroutine(target) or inspect.isdatadescriptor(target)):
            heading = signature(method, target) if inspect.isroutine(target) else method
            parts += [f"<h3>{html.escape(heading)}</h3>", *blocks]
    return parts if len(parts) > 1 else []


def signature(label: str, value: object) -> str:
    try:
        text = str(inspect.signature(value))  # type: ignore[arg-type]
    except Exception:  # built-in functions without a signature; defaults whose repr fails
        return f"{label}(...)"
    return label + (text if len(text) <= LONGEST_SIGNATURE else "(...)")


def own_docstring(value: object) -> str:
    """The docstring as written, without indentation; empty where there is none of its own."""
    text = getattr(value, "__doc__", None)
    return inspect.cleandoc(text).strip() if isinstance(text, str) else ""


def docstring_blocks(value: object) -> list[str]:
    """HTML of a docstring: paragraphs, lists and headings where it has them, ``pre`` where its layout carries
    meaning.
    """
    blocks: list[str] = []
    verbatim: list[str] = []
    for block in [*re.split(r"\n(?:[ \t]*\n)+", own_docstring(value)), ""]:
        lines = block.rstrip().split("\n")
        if block.strip() and has_layout(lines):
            verbatim.append(block.rstrip())
            continue
        if verbatim:
            blocks.append("<pre>" + html.escape("\n\n".join(verbatim)) + "</pre>")
            verbatim = []
        if not block.strip():
            continue
        if len(lines) > 1 and UNDERLINE.match(lines[1]):
            blocks.append(f"<h4>{html.escape(lines[0])}</h4>")
            lines = lines[2:]
        if lines and all(BULLET.match(line) for line in lines):
            blocks.append("<ul>" + "".join(f"<li>{html.escape(line[2:])}</li>" for line in lines) + "</ul>")
        elif lines:
            blocks.append(f"<p>{html.escape(' '.join(lines))}</p>")
    return blocks


def has_layout(lines: list[str]) -> bool:
    """Whether line breaks and spaces mean something: indented lines, interpreter sessions, tables drawn with
    rules.
    """
    drawn = sum(bool(RULE.match(line)) for line in lines) > 1
    return drawn or any(line[:1].isspace() or line.startswith(">>>") for line in lines)


def without_traces(page: str, places: list[tuple[str, str]]) -> str:
    """The page without object addresses and without paths of this machine, so that its bytes are the same
    every time.
    """
    page = ENVIRONMENT.sub("environ", ADDRESS.sub("", page))
    for place, name in places:
        page = page.replace(place, name)
    return page


# ------------------------------------------------------------------------------------------------ one child per module


def render_in_child(job: dict, index: int, name: str) -> None:
    """Runs in the forked child: confine, import, render, write, and end without running anyone's exit
    handlers.
    """
    silence()
    confine(job)
    try:
        page = without_traces(
            render_module(importlib.import_module(name), name, job["siblings"][index], job["origin"]), job["places"]
        )
        if len(page) > LONGEST_PAGE:
            raise ValueError("page is too long")
        content, reason = page.encode("utf-8", "replace"), ""
    except MemoryError:
        content, reason = b"", "ran out of memory"
    except BaseException as error:  # SystemExit and KeyboardInterrupt too: a module may raise what it likes
        content, reason = b"", f"raised {type(error).__name__}"
    target = Path(job["folder"]) / f"{index}.{'failed' if reason else 'html'}"
    temporary = target.with_suffix(".part")
    try:
        temporary.write_bytes(reason.encode() if reason else content)
        temporary.rename(target)
    except OSError:
        os._exit(DISK_REFUSED)
    os._exit(0)


def silence() -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    os.closerange(3, 256)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115


def confine(job: dict) -> None:
    os.setsid()
    end_with_parent(signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_AS, (job["memory_bytes"], job["memory_bytes"]))
    resource.setrlimit(resource.RLIMIT_CPU, (job["cpu_seconds"], job["cpu_seconds"] + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def refuse(event: str, _: tuple) -> None:
        if event in FORBIDDEN:
            raise PermissionError(f"{event} is not allowed while a module is documented")

    sys.addaudithook(refuse)


def become_guardian() -> None:
    """Linux: orphans of a child that forked come to this process, which ends them; and this process ends with
    its parent.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    end_with_parent(signal.SIGTERM)


def end_with_parent(number: signal.Signals) -> None:
    """Linux: this process gets the signal when its parent is gone, however that ended."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, number, 0, 0, 0)  # PR_SET_PDEATHSIG


def end_family(pid: int) -> None:
    """Ends the child's process group: whatever it forked and did not move elsewhere."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def end_orphans(running: dict[int, tuple[int, float]]) -> None:
    """Ends processes that came to this one as orphans: they left their group before their parent ended."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    if children.exists():
        for pid in map(int, children.read_text().split()):
            if pid not in running:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def verdict(folder: Path, index: int, status: int, overdue: bool) -> str:
    """Why there is no page; empty when there is one."""
    if (folder / f"{index}.html").exists():
        return ""
    failed = folder / f"{index}.failed"
    if not failed.exists():
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == DISK_REFUSED:
            raise OSError("the disk refused a page")
        if overdue:
            reason = "ran out of time"
        elif os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            cause = f"was ended by signal {number} ({signal.strsignal(number)})"
            reason = "ran out of time" if number == signal.SIGXCPU else cause
        else:
            reason = "ended the process"
        failed.write_text(reason)
    return failed.read_text()


def serve(job: dict) -> None:
    """Forks a child for every module of the job, ``concurrency`` at a time."""
    become_guardian()
    folder = Path(job["folder"])
    waiting = list(reversed(job["modules"]))
    running: dict[int, tuple[int, float]] = {}  # process -> (index, deadline)
    overdue: set[int] = set()
    while waiting or running:
        while waiting and len(running) < job["concurrency"]:
            index, name = waiting.pop()
            pid = os.fork()
            if pid == 0:
                render_in_child(job, index, name)
            running[pid] = (index, time.monotonic() + job["wall_seconds"])
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid in running:
            index, _ = running.pop(pid)
            end_family(pid)
            print(index, verdict(folder, index, status, pid in overdue), sep="\t", flush=True)
        elif pid == 0:
            time.sleep(0.002)
            for late in [pid for pid, (_, deadline) in running.items() if time.monotonic() > deadline]:
                overdue.add(late)
                end_family(late)
                os.kill(late, signal.SIGKILL)
            end_orphans(running)


if __name__ == "__main__":
    serve(json.load(sys.stdin))
