"""Keep the tables in README and docs equal to the published results: ``python -m mickle.studies.table
--check``.

A table stands between the lines ``<!-- table: NAME -->`` and ``<!-- end of table -->``, where NAME is ``front`` (what
stands, for README), ``systems`` (all 23) or ``STUDY-SCALE`` (one study's comparisons). ``--write`` fills them,
``--check`` fails where one differs, ``--publish FOLDER`` first copies a study's result to docs/results.
The summaries that the package ships (``published.json``) are kept equal alike.
"""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from mickle import storage
from mickle.errors import MickleError, UsageError
from mickle.evaluation.compare import holm
from mickle.studies import markdown, results
from mickle.studies.declaration import page_names
from mickle.studies.systems import SYSTEMS, System

MARK = re.compile(r"^<!-- table: ", re.MULTILINE)
BLOCK = re.compile(r"^(<!-- table: ([\w-]+) -->\n)(.*?)(^<!-- end of table -->)", re.DOTALL | re.MULTILINE)
SHIPPED = Path("src", "mickle", "studies", results.SHIPPED.name)  # in a checkout
Published = dict[tuple[str, str], results.Result]


def front_table(known: Published) -> str:
    """README's table: claim, our figure in words, verdict of every system that is built; then which are not."""
    adjusted, built = corrected(known), set(page_names())
    lines = ["| paper | it claims | measured here (95 % interval) | verdict, and what speaks against it |"]
    lines.append("|---|---|---|---|")
    for system in SYSTEMS:
        if system.name in built:
            _, here, verdict = cells(system, known, adjusted)
            page = f"[{system.label}](docs/studies/{system.name}.md)"
            lines.append(f"| {page} | {system.claim} | {here} | {verdict} |")
    missing = [system.label for system in SYSTEMS if system.name not in built]
    return "\n".join([*lines, *(["", f"Not yet built: {', '.join(missing)}."] if missing else [])])


def systems_table(known: Published) -> str:
    """Every system, its claim, the paper's figure, ours, verdict, command; p corrected by Holm."""
    lines = [
        "| | system | what the paper claims | paper | here, 95 % interval | verdict, and what speaks against it | "
        "command |",
        "|---|---|---|---|---|---|---|",
    ]
    adjusted = corrected(known)
    built = set(page_names())
    rows = [system_row(system, system.name in built, known, adjusted) for system in SYSTEMS]
    return "\n".join(lines + [f"| {number} {row}" for number, row in enumerate(rows, start=1)])


def corrected(known: Published) -> dict[str, float]:
    """Holm's p-value of each valid headline at full scale, over all of them."""
    p_values = {
        name: row["p"]
        for (name, scale), result in known.items()
        if scale == "full" and not results.is_stale(result) and (row := results.headline(result)[1])["p"] is not None
    }
    return dict(zip(p_values, holm(list(p_values.values()))))


def system_row(system: System, built: bool, known: Published, adjusted: dict[str, float]) -> str:
    """One system's row without its number; says when it is not built, not measured, or measured before the study
    was changed.
    """
    paper = f"[{system.label}](https://arxiv.org/abs/{system.arxiv})"
    command = f"`mickle study {system.name} --scale full`" if built else ""
    told = cells(system, known, adjusted) if built else ("", "", "not yet built")
    return "| " + " | ".join([paper, system.claim, *told, command]) + " |"


def cells(system: System, known: Published, adjusted: dict[str, float]) -> tuple[str, str, str]:
    """The paper's figure, ours, and the verdict on a system that is built."""
    result = known.get((system.name, "full"))
    if result is None:
        return "", "", "built, not yet measured"
    declared, row = results.headline(result)
    effect = markdown.measured_effect(declared, row)
    measure = f"{row['seeds']} seeds" if declared["says"] else f"{declared['measure']}, {row['seeds']} seeds"
    verdict = front_verdict(declared, row, adjusted.get(system.name))
    if results.is_stale(result):
        verdict = f"stale: measured before the study was changed, then {verdict}"
    verdict += f"; but {system.but}" if system.but else ""
    return f"{markdown.paper_effect(declared, row)} ({declared['paper']})", f"{effect} ({measure})", verdict


def front_verdict(declared: dict[str, Any], row: dict[str, Any], p_front: float | None) -> str:
    """The verdict, marked when its effect does not survive Holm's correction over this table or within its study."""
    p_values = [p for p in (p_front, row.get("p_holm")) if p is not None]
    words = markdown.verdict_words(declared, {**row, "p_holm": max(p_values, default=None)})
    verdict, _, rest = words.partition(" (")
    return f"**{verdict}**" + (f" ({rest}" if rest else "")


def fill(text: str, where: Path, known: Published) -> str:
    """The text with every marked table made anew."""

    def replace(found: re.Match[str]) -> str:
        return f"{found[1]}{one_table(found[2], where, known)}\n{found[4]}"

    if len(MARK.findall(text)) != len(BLOCK.findall(text)):
        raise UsageError("A table's mark is not closed", where=str(where), expected="<!-- end of table -->")
    return BLOCK.sub(replace, text)


def one_table(name: str, where: Path, known: Published) -> str:
    """The table called ``name``: ``front``, ``systems``, or a study's as ``sophia-full``."""
    if name == "front":
        return front_table(known)
    if name == "systems":
        return systems_table(known)
    study, _, scale = name.rpartition("-")
    if (study, scale) not in known and study in page_names():
        return f"Not yet measured: `mickle study {study} --scale {scale}`."
    if (study, scale) not in known:
        raise UsageError(
            f"There is no published result {name!r}", where=str(where), todo=f"mickle study {study} --scale {scale}"
        )
    result = known[study, scale]
    stale = "**Stale: measured before the study was changed.**\n\n" if results.is_stale(result) else ""
    return f"{stale}{markdown.table(result)}\n\n{markdown.origin(result)}"


def keep_shipped(path: Path, known: Published, write: bool) -> int:
    """Hold the package's summaries to the published results; 1 where they differ (and are written, if asked)."""
    summaries = results.summaries(known)
    if path.exists() and storage.read_json(path) == summaries:
        return 0
    print(f"{'wrote' if write else 'differs'}: {path}")
    if write:
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.write_json(path, summaries)
    return 1


def main(arguments: list[str] | None = None) -> int:
    """Check or write all tables of a checkout; the exit code is 1 where ``--check`` finds a difference."""
    parser = argparse.ArgumentParser(prog="python -m mickle.studies.table", description=__doc__)
    parser.add_argument("--root", type=Path, default=Path(), help="the checkout (default: here)")
    parser.add_argument("--publish", type=Path, metavar="FOLDER", help="a study's output folder; implies --write")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--check", action="store_true", help="change nothing, fail where a table differs (default)")
    action.add_argument("--write", action="store_true", help="write the tables")
    options = parser.parse_args(arguments)
    folder = options.root / "docs" / "results"
    if options.publish:
        for path in results.publish(options.publish, folder):
            print(f"published {path}")
    write = options.write or options.publish is not None
    known = results.published(folder)
    different = 0
    for path in [options.root / "README.md", *sorted((options.root / "docs").rglob("*.md"))]:
        before = path.read_text(encoding="utf-8")
        after = fill(before, path, known)
        if after != before:
            different += 1
            print(f"{'wrote' if write else 'differs'}: {path}")
            if write:
                storage.write_text(path, after)
    different += keep_shipped(options.root / SHIPPED, known, write)
    return 1 if different and not write else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except MickleError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
