"""A study's result: what it is bound to; on disk, where it was made and from what; published only from a commit; stale
or not.
"""

import hashlib
import inspect
import json
import platform
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mickle import machine, storage
from mickle.errors import UsageError
from mickle.machine import installed_version
from mickle.studies.declaration import Study, open_study, page_names
from mickle.studies.figure import draw
from mickle.studies.markdown import page

Result = dict[str, Any]
SOURCE = Path(__file__).resolve().parents[1]
NO_SOURCE = (":(top,exclude)docs", ":(top,exclude)README.md")  # results and tables are written there
SHIPPED = Path(__file__).with_name("published.json")  # what the published results come to, in the package
SCALE_MINUTES = {"quick": 3, "full": 30, "real": 40}


def declaration(study: Study, scale: str) -> dict[str, Any]:
    """The declaration at one scale as JSON values, as it is stored in the result."""
    return without(asdict(study), NOT_STORED) | {"scale": scale, "sizes": asdict(study.scales[scale])}


NOT_STORED = ("scales", "run_cell", "derive", "reads", "takes", "own")
PROSE = ("title", "claim", "departures")
PROSE_OF_AN_ARM = ("what",)
PROSE_OF_A_COMPARISON = ("paper", "says")


def declaration_hash(study: Study, scale: str) -> str:
    """What a result is bound to: version, arms, measures, rule and this scale of the study as it is declared now."""
    return declared_hash(declaration(study, scale))


def declared_hash(declared: dict[str, Any]) -> str:
    """The hash of a declaration, also of one that is read from a result's JSON.

    Wording does not enter: correcting it leaves a result valid, changing what is run, measured or counted as success
    makes it stale. The code does not enter either: whoever moves its numbers raises the study's ``version``, and a
    test that runs a small cell of every study (``tests/studies/test_sentinels.py``) fails until they do.
    """
    return digest(
        without(declared, PROSE)
        | {
            "arms": [without(arm, PROSE_OF_AN_ARM) for arm in declared["arms"]],
            "comparisons": [without(comparison, PROSE_OF_A_COMPARISON) for comparison in declared["comparisons"]],
        }
    )


def without(values: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """A mapping less some of its keys."""
    return {name: value for name, value in values.items() if name not in names}


def digest(value: Any) -> str:
    """Sixteen hexadecimal digits that stand for a JSON value."""
    text = json.dumps(value, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def versions_read(study: Study) -> dict[str, str]:
    """The version of each package that the cells read, the hash of each file or folder of data; ``own data`` and ``own
    model`` are a person's.
    """
    own = {f"own {name}": version_read(path) for name, path in study.own.items()}
    return {str(name): version_read(name) for name in study.reads} | own


def version_read(name: str | Path) -> str:
    """One package's version, or the hash of a path's contents; "none" for a package that is not installed."""
    if isinstance(name, Path):
        return storage.content_digest(name)
    if name == "python":
        return platform.python_version()
    return installed_version(name) or "none"


def code_digest(study: Study) -> str:
    """One hash for the source of this package and of the study's page, as it stands on the disk.

    Cells are kept under it, so that none is ever taken for what other code would compute, committed or not.
    """
    files = sorted({*Path(__file__).parents[1].rglob("*.py"), Path(inspect.getfile(study.run_cell))})
    return digest([[path.name, path.read_text(encoding="utf-8")] for path in files])


# -- on disk, and published ----------------------------------------------------------------------------------------


def source_state() -> dict[str, Any]:
    """The commit of Mickle's own source, and whether anything but documentation differs from it.

    An installed package without a repository has no commit; such a result can be read but not published.
    """
    try:
        commit = git("rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(git("status", "--porcelain", "--", ":/", *NO_SOURCE))}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": "", "dirty": True}


def git(*arguments: str) -> str:
    """What git says about the repository that holds this package."""
    done = subprocess.run(
        ["git", "-C", str(SOURCE), *arguments], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.strip()


def with_provenance(result: Result, begun: float, source: dict[str, Any], name: str = "") -> Result:
    """The result with source, machine, date, wall seconds and the command that makes it again.

    name: what the study was asked by, where it is a page that lies elsewhere; its content is hashed into the source.
    """
    declared = result["declaration"]
    command = f"mickle study {name or declared['name']} --scale {declared['scale']}"
    if name.endswith(".py"):
        source = {**source, "page": storage.hash_file(Path(name))}
    command += "".join(f" --{what} {each['name']}" for what, each in result.get("own", {}).items())
    for what in ("hours", "seed"):
        command += f" --{what} {result[what]:g}" if result.get(what) else ""
    return {
        "study": declared["name"],
        "scale": declared["scale"],
        "command": command,
        "source": source,
        "machine": machine.describe(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "seconds": round(time.monotonic() - begun, 1),
        **result,
    }


def on_what(study: Study, hours: float | None) -> Result:
    """What to add to a result on a person's own data or model, or on the usual model: names and hashes of what was
    given, the hours asked for, and the headlines published for the same study.
    """
    own = {name: {"name": path.resolve().name, "hash": version_read(path)} for name, path in study.own.items()}
    known = [result for (name, _), result in shipped().items() if name == study.name and not is_stale(result)]
    published = [{"command": result["command"], "pair": list(headline(result))} for result in known if own]
    return {"own": own, "hours": hours, "published": published} if own or hours else {}


def write(result: Result, folder: Path) -> None:
    """Write NAME-SCALE.json, .md and .svg into ``folder``."""
    name = f"{result['study']}-{result['scale']}"
    storage.write_json(folder / f"{name}.json", result)
    storage.write_text(folder / f"{name}.md", page(result))
    storage.write_text(folder / f"{name}.svg", draw(result))


def publish(folder: Path, target: Path) -> list[Path]:
    """Copy a study folder's JSON and figure to ``target``, the evidence that is committed.

    Raises ``UsageError`` when the result was made from uncommitted source: nobody could make it again.
    """
    results = sorted(folder.glob("*-*.json"))
    if not results:
        raise UsageError(f"There is no study result in {folder}", expected="the output folder of mickle study")
    written = []
    for path in results:
        result = storage.read_json(path)
        if not isinstance(result, dict) or "study" not in result:
            continue
        require_clean(result["source"])
        if "data" in result.get("own", {}) or result.get("hours"):
            raise UsageError("A result on data or hours of one's own cannot be published", where=str(path))
        if result["seed"]:
            raise UsageError(
                "A replication cannot be published", where=f"seed {result['seed']}", expected="seed 0, as declared"
            )
        target.mkdir(parents=True, exist_ok=True)
        for source in (path, path.with_suffix(".svg")):
            storage.write_text(target / source.name, source.read_text(encoding="utf-8"))
            written.append(target / source.name)
    return written


def require_clean(source: dict[str, Any]) -> None:
    """Raise ``UsageError`` when a result's source is not exactly one commit."""
    if source["dirty"]:
        raise UsageError(
            "A result made from uncommitted source cannot be published",
            where=f"commit {source['commit'][:12] or 'unknown'} with changes outside docs/",
            todo="Commit the changes (or work in a fresh clone) and run the study again.",
        )


def published(folder: Path) -> dict[tuple[str, str], Result]:
    """All results in a folder of published ones, by (study, scale), in the wording of the pages as they are now."""
    results = [reworded(storage.read_json(path)) for path in sorted(folder.glob("*-*.json"))]
    return {(result["study"], result["scale"]): result for result in results}


def reworded(result: Result) -> Result:
    """A result with the declaration of today, the same but for its wording; a stale one with what it declared, and in
    today's words where a comparison's name is still the same.
    """
    if is_stale(result):
        declared = result["declaration"]
        now = (
            {c.name: asdict(c) for c in open_study(result["study"], result["scale"]).comparisons}
            if result["study"] in page_names()
            else {}
        )
        known = [{**LATER, **now.get(old["name"], {}), **old} for old in declared["comparisons"]]
        return {**result, "declaration": {**declared, "comparisons": known}}
    return {**result, "declaration": declaration(open_study(result["study"], result["scale"]), result["scale"])}


LATER = {"says": "", "no_gain": False}  # fields that older declarations lack


def summaries(known: dict[tuple[str, str], Result]) -> list[Result]:
    """What published results come to, as it is shipped with the package: comparisons, verdicts and identity."""
    short = [
        {name: result[name] for name in ("study", "scale", "hash", "reads", "date", "command")}
        | {"declaration": {"comparisons": result["declaration"]["comparisons"]}}
        | {"comparisons": [without(row, ("pairs",)) for row in result["comparisons"]]}
        for result in known.values()
    ]
    plain: list[Result] = json.loads(json.dumps(short))
    return plain


def shipped(path: Path = SHIPPED) -> dict[tuple[str, str], Result]:
    """The summaries that are in the package, by (study, scale)."""
    return {(result["study"], result["scale"]): result for result in storage.read_json(path)}


def other_versions(result: Result) -> str:
    """What a result read in other versions than are installed here, in words; "" where all are the same."""
    here = versions_read(open_study(result["study"], result["scale"]))
    then = {name: version for name, version in result["reads"].items() if name in here}
    changed = [f"{name} {version}, here {here[name]}" for name, version in then.items() if here[name] != version]
    return f"made with {'; '.join(changed)}" if changed else ""


def is_stale(result: Result) -> bool:
    """Whether the study was declared differently when this result was made (or is gone)."""
    if result["study"] not in page_names():
        return True
    study = open_study(result["study"], result["scale"])
    return result["scale"] not in study.scales or declaration_hash(study, result["scale"]) != result["hash"]


def headline(result: Result) -> tuple[dict[str, Any], dict[str, Any]]:
    """The headline comparison as declared and as measured."""
    for declared, row in zip(result["declaration"]["comparisons"], result["comparisons"]):
        if declared["headline"]:
            return declared, row
    raise UsageError(f"The result of study {result['study']} has no headline", todo="Run the study again.")


def overdue(study: Study, result: Result) -> str:
    """A warning when a run took longer than its scale allows, or nothing."""
    limit = SCALE_MINUTES.get(result["scale"])
    if limit is None or result["seconds"] <= 60 * limit:
        return ""
    minutes = result["seconds"] / 60
    return f"{study.name} took {minutes:.1f} minutes; {result['scale']} is meant for at most {limit}"
