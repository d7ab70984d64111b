"""A study's result in words: effects in the declaration's units, the table of comparisons, one page."""

from typing import Any

from mickle.studies.analysis import as_declared, mean

Result = dict[str, Any]


def measured_effect(declared: dict[str, Any], row: dict[str, Any]) -> str:
    """Our effect with its interval, in the units of the declaration: ``0.71 [0.66, 0.77] x`` or ``+0.12
    [...]``.
    """
    if row["benefit"] is None:
        return "not measured"
    bounds = [row["benefit"], row["low"], row["high"]]
    values = [None if b is None else as_declared(b, declared["form"], declared["better"]) for b in bounds]
    pattern = "{:+.3g}" if declared["form"] == "difference" else "{:.3g}"
    mean, *ends = ["?" if value is None else pattern.format(value) for value in values]
    if declared["form"] == "ratio" and declared["better"] == "lower":
        ends.reverse()  # the larger benefit is the smaller ratio
    return f"{mean} [{ends[0]}, {ends[1]}]" + (" x" if declared["form"] == "ratio" else "")


def paper_effect(declared: dict[str, Any]) -> str:
    """The paper's effect in the same units, with its place in the paper."""
    value = declared["paper_effect"]
    return f"{value:+.3g}" if declared["form"] == "difference" else f"{value:.3g} x"


def table(result: Result) -> str:
    """The comparisons of one study as a Markdown table."""
    lines = [
        "| comparison | measure | paper | here, 95 % interval | seeds | smallest seen | p (Holm) | budget | verdict |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for declared, row in zip(result["declaration"]["comparisons"], result["comparisons"]):
        smallest = "?"
        if row["detectable"] is not None:
            seen = as_declared(row["detectable"], declared["form"], declared["better"])
            smallest = f"{seen:+.3g}" if declared["form"] == "difference" else f"{seen:.3g} x"
        p = "?" if row["p_holm"] is None else f"{row['p_holm']:.2g}"
        budget = "?" if row["budget_ratio"] is None else f"{row['budget_ratio']:.3g} x"
        name = f"**{row['name']}**" if declared["headline"] else row["name"]
        seeds = f"{row['seeds']}" + (f" ({row['missing_pairs']} failed)" if row["missing_pairs"] else "")
        lines.append(
            f"| {name} | {declared['measure']}, {declared['better']} is better | "
            f"{paper_effect(declared)} ({declared['paper']}) | {measured_effect(declared, row)} | {seeds} | "
            f"{smallest} | {p} | {budget} | {row['verdict']} |"
        )
    return "\n".join(lines)


def at_edge(chosen: dict[str, Any], grid: list[dict[str, Any]]) -> bool:
    """Whether tuning ended at the smallest or largest of at least three values tried: the arm may be under-tuned."""
    for name, value in chosen.items():
        tried = {setting[name] for setting in grid if isinstance(setting.get(name), int | float)}
        if len(tried) > 2 and value in (min(tried), max(tried)):
            return True
    return False


def arm_table(result: Result) -> str:
    """What each arm ran with in each world, and what a reported cell of it spent, as a Markdown table."""
    lines = [
        f"| world | arm | chosen setting | {result['declaration']['budget_unit']} a cell | seconds a cell |",
        "|---|---|---|---|---|",
    ]
    done = [run for run in result["runs"] if run["phase"] == "reported" and not run["failure"]]
    grids = {arm["name"]: arm["grid"] for arm in result["declaration"]["arms"]}
    for entry in result["chosen"]:
        place = entry["world"], entry["arm"]
        cells = [run for run in done if (run["cell"]["world"], run["cell"]["arm"]) == place]
        setting = ", ".join(f"{name} {value}" for name, value in entry["setting"].items()) or "none to choose"
        if at_edge(entry["setting"], grids[entry["arm"]]):
            setting += " (at the grid's edge: a wider grid might do better)"
        budget = mean([run["measured"]["budget"] for run in cells])
        seconds = mean([run["seconds"] for run in cells])
        lines.append(f"| {place[0]} | {place[1]} | {setting} | {budget:.4g} | {seconds:.3g} |")
    return "\n".join(lines)


def page(result: Result) -> str:
    """One study's result as a Markdown page: claim, rule, table, chosen settings, failures, where it was
    made.
    """
    declared = result["declaration"]
    failures = [
        f"- {run['phase']} {run['cell']['arm']} in {run['cell']['world']}, seed {run['cell']['seed']}: {run['failure']}"
        for run in result["runs"]
        if run["failure"]
    ]
    parts = [
        f"# {declared['title']} (arXiv {declared['paper']}): {result['scale']}",
        f"Claim: {declared['claim']}",
        f"Rule: {declared['rule']}",
    ]
    if result["indicative"]:
        parts.append("This is a quick run: indicative, never the row of a published table.")
    trials = len(declared["arms"][0]["grid"])
    parts += [table(result), f"Each arm had {trials} tuning trial(s).", arm_table(result)]
    if failures:
        parts += [f"Cells that failed: {len(failures)}", "\n".join(failures)]
    parts.append(origin(result))
    return "\n\n".join(parts) + "\n"


def origin(result: Result) -> str:
    """Where, when and from what a result was made, in one line."""
    source, place = result["source"], result["machine"]
    commit = (source["commit"][:12] or "no commit") + (" with uncommitted changes" if source["dirty"] else "")
    return (
        f"Made {result['date']} by `{result['command']}` in {result['seconds'] / 60:.1f} minutes "
        f"({result['cell_seconds'] / 60:.1f} of cells) on "
        f"{place['processor']}, {place['cores']} cores, torch {place['versions'].get('torch', '?')}, "
        f"commit {commit}, declaration {result['hash']}."
    )
