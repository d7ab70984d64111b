"""The command line: ``mickle VERB ...``. Verbs are imported when used, so that ``--help`` answers at once."""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from mickle import __version__
from mickle.errors import MickleError, ResourceError, ToldError, UsageError, bug, first_line, printable
from mickle.machine import DEVICES, computing_on, is_out_of_memory

OTHERS = {
    "chat": ("ask a chat model, or several side by side, in this terminal", "mickle chat model"),
    "run": ("a recipe: all steps from raw pages to a report", "mickle run recipes/laptop.yaml"),
    "show": ("what is this folder or journal, where from, is it whole", "mickle show runs/laptop/model"),
    "doctor": ("this machine: versions, kernels, speed", "mickle doctor"),
}


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point: run, then leave with the exit code of what happened."""
    warnings.formatwarning = lambda message, *_, **__: f"warning: {printable(str(message))}\n"
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    code = 0
    try:
        run([a for a in given if a != "--debug"])
        sys.stdout.flush()  # a pipe that is closed or a disk that is full is told here, not after the end
    except SystemExit as leaving:  # argparse's --help
        code = leaving.code if isinstance(leaving.code, int) else 0
    except KeyboardInterrupt:
        if _speaks():
            print("stopped; the same command goes on from here", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # the reader of our output left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        if debug:
            raise
        failure = explain(error)
        if not isinstance(failure, ToldError):
            print(f"error: {failure}", file=sys.stderr)
        code = failure.exit_code
    sys.exit(code)


def run(arguments: list[str]) -> None:
    """Do what the arguments say; errors are raised."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview())
    elif arguments[0] in ("-V", "--version"):
        print(f"mickle {__version__}")
    elif arguments[0] == "chat":
        _chat(arguments[1:])
    elif arguments[0] in OTHERS:
        _other(arguments[0], arguments[1:])
    else:
        _verb(arguments[0], arguments[1:])


def overview() -> str:
    """The first page of help."""
    from mickle.verbs import STEPS

    rows = {**{name: line for name, (_, line) in STEPS.items()}, **{name: line for name, (line, _) in OTHERS.items()}}
    verbs = "\n".join(f"  {name:<10} {line}" for name, line in rows.items())
    return (
        "mickle: more model from less. Any folder in, any folder out, on the machine you have.\n\n"
        f"verbs (mickle VERB --help tells more):\n{verbs}\n\n"
        "every verb takes --out FOLDER, --config FILE.yaml, --seed N, --dry-run, --debug\n\n"
        "example:\n  mickle run recipes/laptop.yaml"
    )


def explain(error: Exception) -> MickleError:
    """Any failure as one that can be read: what, where, expected, to do."""
    if isinstance(error, MickleError):
        return error
    if is_out_of_memory(error):
        todo = "choose a smaller size or batch (--dry-run forecasts both)"
        return ResourceError(f"out of memory: {first_line(error)}", todo=todo)
    refused = _explain_disk(error) if isinstance(error, OSError) and error.errno else None
    return refused or bug(error)


def _explain_disk(error: OSError) -> MickleError | None:
    """What the system refused; None for what only a bug can have asked."""
    from mickle import storage

    path = str(error.filename or "")
    try:
        with storage.disk_errors(path):
            raise error
    except MickleError as known:
        return known
    except OSError:
        if isinstance(error, (FileNotFoundError, FileExistsError)) or not path:
            return None
    why = (error.strerror or str(error)).lower()
    return UsageError(f"{why}: {path}", todo="check the path; results go to a folder you may write to with --out")


def _say(text: str) -> None:
    print(printable(text))


def _speaks() -> bool:
    """Whether this process prints: of those that torchrun starts the first speaks for all."""
    return os.environ.get("RANK", "0") == "0"


def _verb(name: str, arguments: list[str]) -> None:
    from mickle import flags, verbs
    from mickle.config import validate
    from mickle.events import ignore
    from mickle.step import execute
    from mickle.yaml_files import Lines, read_yaml

    cls = verbs.step_class(name, others=OTHERS)
    parser = flags.parser(f"mickle {name}", cls, (cls.__doc__ or "").strip(), cls.example, cls.positional)
    _common(parser)
    options, given = flags.parse(parser, arguments)
    if options.schema:
        print(json.dumps(cls.model_json_schema(), indent=2))
        return
    values: dict[str, Any] = {}
    lines: Lines | None = None
    where = ""
    if options.config:
        values, lines = read_yaml(options.config)
        where = str(options.config)
        if not isinstance(values, dict):
            raise UsageError("settings must be a mapping of fields to values", where=where)
    step = validate(cls, flags.merge(values, flags.read_values(cls, given)), where=where, lines=lines)
    if text := step.answer():
        _say(text)
        return
    out = options.out or verbs.default_out(name, step)
    with verbs.prepared(name, step, options.device):
        if options.dry_run:
            _show_dry_run(step, out)
        elif not _speaks():
            execute(step, out, ignore)
        else:
            _say(_with_console(options, lambda emit: _execute(step, out, emit)))


def _common(parser: Any) -> None:
    group = parser.add_argument_group("every verb")
    group.add_argument("--out", type=Path, metavar="FOLDER", help="where the result goes (default: runs/VERB-HASH)")
    group.add_argument("--config", type=Path, metavar="FILE", help="settings as YAML; flags stand over it")
    group.add_argument(
        "--dry-run", action="store_true", help="show resolved settings, forecast and a preview; do nothing"
    )
    _device(group)
    _trackers(group)
    group.add_argument("--quiet", action="store_true", help="no progress, warnings only")
    group.add_argument("--schema", action="store_true", help="print the JSON Schema of the settings, for editors")
    group.add_argument("--debug", action="store_true", help="full traceback on errors")


def _device(parser: Any) -> None:
    parser.add_argument("--device", metavar="NAME", help=f"where to compute: {DEVICES} (default auto, the fastest)")


def _trackers(group: Any) -> None:
    from mickle.trackers import TRACKERS

    for name, (_, what) in TRACKERS.items():
        group.add_argument(f"--{name}", type=Path, metavar="FOLDER", help=what)


def _with_console(options: Any, work: Callable[[Any], str]) -> str:
    """What ``work`` has to say in the end, when the live lines are finished."""
    from mickle.events import Console, several
    from mickle.trackers import TRACKERS, Tracker

    console = Console(quiet=options.quiet)
    trackers = [Tracker(name, getattr(options, name)) for name in TRACKERS if getattr(options, name)]
    try:
        return work(several(console, *trackers))
    finally:
        console.close()
        for tracker in trackers:
            tracker.close()


def _execute(step: Any, out: Path, emit: Any) -> str:
    from mickle.step import execute
    from mickle.storage import read_manifest

    folder = execute(step, out, emit)
    manifest = read_manifest(folder)
    text = manifest.meta.get("summary", {}).get("text", "") if manifest else ""
    lines = [text] if text else []
    if step.reported:
        lines.append(f"report: {_report_beside(step, folder)}")
    return "\n".join([*lines, f"done: {folder}", f"next: {step.after(folder)}"])


def _report_beside(step: Any, folder: Path) -> Path:
    """The page of one finished folder, written next to it: in it, it would not be what was sealed."""
    from mickle.report import write_report

    command = f"mickle {type(step).__name__.lower()} --config {folder / 'settings.yaml'}"
    return write_report(folder.with_name(f"{folder.name}.html"), folder.name, {folder.name: folder}, command)


def _show_dry_run(step: Any, out: Path) -> None:
    from rich.console import Console

    from mickle.config import applying
    from mickle.step import flat
    from mickle.yaml_files import as_yaml

    forecast, preview = step.dry_run()
    console = Console(highlight=False)
    given = flat(applying(step))
    derived = {
        name: float(f"{value:.4g}") if isinstance(value, float) else value
        for name, value in forecast.derived.items()
        if name not in given and name not in step.idle()
    }
    for name, values in (("settings", applying(step)), ("derived", derived)):
        if values:
            console.print(f"[bold]{name}[/]")
            console.print(printable(as_yaml(values).rstrip()), markup=False, soft_wrap=True)
    console.print(printable(f"[bold]output[/] {out}"))
    console.print(f"[bold]forecast[/] {printable(str(forecast))}")
    for note in forecast.notes:
        console.print(printable(f"  {note}"), markup=False, soft_wrap=True)
    if preview:
        console.print(printable(preview), soft_wrap=True)


def _chat(arguments: list[str]) -> None:
    from mickle import flags
    from mickle.sampling import chat

    parser = flags.parser("mickle chat", chat.Chat, (chat.Chat.__doc__ or "").strip(), chat.Chat.example, "models", "")
    _device(parser)
    parser.add_argument("--debug", action="store_true", help="full traceback on errors")
    options, given = flags.parse(parser, arguments)
    with computing_on(options.device):
        chat.run(flags.read_values(chat.Chat, given))


def _other(name: str, arguments: list[str]) -> None:
    from mickle.flags import Help, Parser

    line, example = OTHERS[name]
    parser = Parser(
        prog=f"mickle {name}",
        description=line,
        epilog=f"example:\n  {example}",
        formatter_class=Help,
        allow_abbrev=False,
    )
    parser.add_argument("--debug", action="store_true", help="full traceback on errors")
    if name == "run":
        parser.add_argument("recipe", type=Path, help="a YAML file of steps")
        parser.add_argument(
            "--out", type=Path, metavar="FOLDER", help="where the steps' folders go (default: the recipe's)"
        )
        parser.add_argument("--seed", type=int, metavar="N", help="seed of every step that names none")
        parser.add_argument("--dry-run", action="store_true", help="each step with its state and forecast; do nothing")
        _device(parser)
        _trackers(parser)
        parser.add_argument("--quiet", action="store_true", help="no progress, warnings only")
        options = parser.parse_args(arguments)
        with computing_on(options.device):
            _run_recipe(options)
    elif name == "show":
        parser.add_argument(
            "folder", type=Path, help="a folder that Mickle made, any model folder, or a journal of MeZO"
        )
        parser.add_argument("--quick", action="store_true", help="compare sizes only, not every byte")
        parser.add_argument("--url", help="of a corpus: why is this page gone, and which kept page is its twin")
        options = parser.parse_args(arguments)
        from mickle.show import show

        if options.url is not None:
            from mickle.data.lookup import explain_url

            _say(explain_url(options.folder, options.url))
        else:
            _say(show(options.folder, check="sizes" if options.quick else "hashes"))
    else:
        parser.parse_args(arguments)
        from mickle.doctor import doctor

        print(doctor())


def _run_recipe(options: Any) -> None:
    from mickle import recipe

    plan = recipe.read(options.recipe, out=options.out, seed=options.seed)
    if options.dry_run:
        _say(recipe.preview(plan))
        return
    _say(_with_console(options, lambda emit: recipe.run(plan, emit)))


if __name__ == "__main__":
    main()
