"""A study's result in words: figures as their comparison reads them, the table of comparisons, one page."""

from dataclasses import dataclass
from typing import Any

from mickle.studies.analysis import as_declared, mean

Result = dict[str, Any]
SAYS = {"ratio": "{ratio:.3g} x", "difference": "{change:+.3g}"}  # where a comparison does not say it in words
SEEN = ("reproduced", "partly", "opposite")  # verdicts that rest on an effect
FRAGILE = 0.05  # a corrected p-value above it is marked


MEANS = {  # a verdict to somebody who asks whether to do it
    "reproduced": "It holds here: the gain is at least half of the paper's.",
    "partly": "It helps here, by less than half of what the paper gains.",
    "no effect seen": "It does not pay here: half of the paper's gain would have been seen.",
    "too small to tell": "This run cannot say: what there is, is smaller than its noise. More hours may.",
    "opposite": "It does not hold here: the difference goes the other way.",
    "indicative": "A hint and no answer: a quick run has too few seeds for a verdict.",
}


@dataclass(frozen=True)
class Spread:
    """A number, or a number and its interval, as one word of a sentence: ``f"{it:.0%}"`` is ``17 % [-7 %, 40 %]``."""

    values: tuple[float | None, ...]

    def __format__(self, spec: str) -> str:
        number, *ends = ["?" if v is None else format(v, spec).replace("%", " %") for v in self.values]
        return f"{number} [{', '.join(ends)}]" if ends else number


def said(declared: dict[str, Any], benefits: list[float | None], baseline: float | None) -> str:
    """A benefit, or one with the ends of its interval, as the comparison says it (``Comparison.says``)."""
    form, lower = declared["form"], declared["better"] == "lower"
    signed = [None if b is None else as_declared(b, form, declared["better"]) for b in benefits]
    if form == "difference" and lower:
        signed = [None if s is None else -s for s in signed]
    if lower:
        signed[1:] = signed[:0:-1]  # the larger benefit is the smaller measure
    words = {"gain": Spread(tuple(benefits)), "ratio" if form == "ratio" else "change": Spread(tuple(signed))}
    if form == "difference":
        words["points"] = Spread(tuple(None if s is None else 100 * s for s in signed))
        words["value"] = Spread(tuple(None if s is None or baseline is None else baseline + s for s in signed))
    return (declared.get("says") or SAYS[form]).format(**words)


def measured_effect(declared: dict[str, Any], row: dict[str, Any]) -> str:
    """Our figure with its interval: ``0.71 [0.66, 0.77] x``, ``-0.12 [-0.15, -0.09]``, or as the comparison says it."""
    if row["benefit"] is None:
        return "not measured"
    return said(declared, [row["benefit"], row["low"], row["high"]], row.get("baseline"))


def paper_effect(declared: dict[str, Any], row: dict[str, Any]) -> str:
    """The paper's figure, said alike."""
    return ("no gain of " if declared["no_gain"] else "") + said(
        declared, [row["claimed_benefit"]], row.get("baseline")
    )


def verdict_words(declared: dict[str, Any], row: dict[str, Any]) -> str:
    """The verdict, what its upper side adds, and a mark where it does not survive Holm's correction in its study."""
    words = str(row["verdict"])
    if declared["no_gain"] and words == "opposite":
        words += ": a gain where the paper has none"
    if row["larger"] and words == "reproduced":
        words += ", by more than twice the paper's margin"
    fragile = row["verdict"] in SEEN and row["p_holm"] is not None and row["p_holm"] > FRAGILE
    return words + (f" (not after Holm's correction: p {row['p_holm']:.2g})" if fragile else "")


def table(result: Result) -> str:
    """The comparisons of one study as a Markdown table."""
    lines = [
        "| comparison | measure | paper | here, 95 % interval | seeds | smallest benefit seen | p (Holm) | budget | "
        "verdict |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for declared, row in zip(result["declaration"]["comparisons"], result["comparisons"]):
        smallest = "?"
        if row["detectable"] is not None:
            seen = as_declared(row["detectable"], declared["form"], declared["better"])
            smallest = f"{seen:.3g}" if declared["form"] == "difference" else f"{seen:.3g} x"
        p = "?" if row["p_holm"] is None else f"{row['p_holm']:.2g}"
        budget = "?" if row["budget_ratio"] is None else f"{row['budget_ratio']:.3g} x"
        name = f"**{row['name']}**" if declared["headline"] else row["name"]
        seeds = f"{row['seeds']}" + (f" ({row['missing_pairs']} failed)" if row["missing_pairs"] else "")
        lines.append(
            f"| {name} | {declared['measure']}, {declared['better']} is better | "
            f"{paper_effect(declared, row)} ({declared['paper']}) | {measured_effect(declared, row)} | {seeds} | "
            f"{smallest} | {p} | {budget} | {verdict_words(declared, row)} |"
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
    """One study's result as a Markdown page: claim, rule, table, chosen settings, failures, where it was made."""
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
    if result.get("own"):
        parts.insert(1, on_yours(result))
    if result["indicative"]:
        parts.append("This is a quick run: indicative. It gives no verdict and is never the row of a published table.")
    trials = len(declared["arms"][0]["grid"])
    parts += [table(result), f"Each arm had {trials} tuning trial(s).", arm_table(result)]
    if failures:
        parts += [f"Cells that failed: {len(failures)}", "\n".join(failures)]
    parts.append(origin(result))
    return "\n\n".join(parts) + "\n"


def on_yours(result: Result) -> str:
    """What a run on a person's own data or model came to, beside the published result and the paper's."""
    declared, row = next(
        pair for pair in zip(result["declaration"]["comparisons"], result["comparisons"]) if pair[0]["headline"]
    )
    given = ", ".join(f"{name} `{each['name']}` ({each['hash'][:12]})" for name, each in result["own"].items())
    lines = [
        f"## On {given}",
        f"**{MEANS[row['verdict']]}**\n",
        f"- here, {declared['name']}: {measured_effect(declared, row)} ({verdict_words(declared, row)})",
    ]
    for known in result["published"]:
        then, found = known["pair"]
        effect = f"{measured_effect(then, found)} ({verdict_words(then, found)})"
        lines.append(f"- as published, `{known['command']}`, {then['name']}: {effect}")
    lines.append(f"- in the paper: {paper_effect(declared, row)} ({declared['paper']})")
    return "\n".join(lines)


def origin(result: Result) -> str:
    """Where, when and from what a result was made, in one line."""
    source, place = result["source"], result["machine"]
    commit = (source["commit"][:12] or "no commit") + (" with uncommitted changes" if source["dirty"] else "")
    reads = ", ".join(f"{name} {version}" for name, version in result["reads"].items())
    return (
        f"Made {result['date']} by `{result['command']}` in {result['seconds'] / 60:.1f} minutes "
        f"({result['cell_seconds'] / 60:.1f} of cells) on "
        f"{place['processor']}, {place['cores']} cores, {reads}, "
        f"commit {commit}, declaration {result['hash']}."
    )
