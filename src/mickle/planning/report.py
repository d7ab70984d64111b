"""A plan in words, as a table and as a figure: pure functions of what ``repeats.make_plan`` found."""

from __future__ import annotations

import math
from typing import Any

from mickle.figures import COLOURS, INK, Figure, Line, Panel, Rule
from mickle.results import Table
from mickle.training.repetition import Law, near_threshold, threshold_ratio

SMALLEST, LARGEST, FEWEST = 1e7, 9e9, 1e8  # parameters, and unique tokens, of the runs behind the paper's law
FEW_EPOCHS = 4.0  # that cost almost nothing beside fresh text (arXiv 2305.16264)
COPIES_SAID = 1.02  # tokens an epoch over distinct ones, from which on copies are worth a word


def notes(found: dict[str, Any], law: Law) -> list[str]:
    """What the law says, what the pilot says, what is recommended, and what it takes."""
    chosen, text = found["recommended"], found["text"]
    said = [
        f"text: {amount(text['distinct'])} different tokens" + (" (estimated)" if text["estimated"] else ""),
        _law_says(found["law_says"], law, text),
    ]
    if found["pilot_says"]:
        said.append(_pilot_says(found["pilot_says"]))
    epochs, read = f"{chosen['epochs']:.3g} epochs", amount(chosen["tokens"])
    worth = amount(law.effective_tokens(chosen["tokens"], text["distinct"]))
    said += [
        f"recommended: {amount(chosen['parameters'])} parameters, {epochs} (bound: {chosen['bound']}); {epochs} of "
        f"your {amount(text['distinct'])} tokens are worth {worth} fresh tokens of {read} read",
        f"by the law a further token is worth half of a fresh one after {law.paying_epochs(0.5):.1f} epochs, a tenth "
        f"after {law.paying_epochs(0.1):.1f}",
        _dropout_says(chosen["dropout"]),
        _forecast_says(chosen),
    ]
    if chosen["epochs"] > FEW_EPOCHS:
        said.append(
            "`pretrain` keeps the weights that are best on held-out pages: too many epochs cost time, not quality"
        )
    if (left := 1 - 6 * chosen["parameters"] * chosen["tokens"] / found["budget_flops"]) > 0.01:
        said.append(f"{left:.0%} of the budget is left: more of it would not pay on this text")
    if found["intervals"]:
        low, high = found["intervals"]["token_decay"]
        said.append(f"R_D* of your runs is {law.token_decay:.1f} (95 % over runs: {low:.1f} to {high:.1f})")
    return said


def warnings(found: dict[str, Any], law: Law) -> list[str]:
    """Where the plan is not to be trusted, or the training not to be done so."""
    chosen, text = found["recommended"], found["text"]
    size, said = amount(chosen["parameters"]), []
    if found["extrapolated"]:
        said.append(
            f"the law was fitted to 10M to 9B parameters of English web text; at {size} its loss is an extrapolation, "
            "only the worth of epochs is a guide. Measure some runs and give them as task.runs"
        )
    ratio = threshold_ratio(text["distinct"], chosen["parameters"], bits_a_token(law, chosen, text))
    if near_threshold(ratio) and chosen["epochs"] > 1:
        said.append(
            f"near the interpolation threshold: the text holds about {ratio:.2g} times the bits that {size} parameters "
            "can memorise (3.6 each); repeated, it overfits most here. Use dropout, or another size"
        )
    copies = text["tokens"] / text["distinct"]
    if copies > COPIES_SAID:
        said.append(
            f"pages stand in the corpus more than once: each epoch reads its text {copies:.2f} times, so "
            f"{chosen['epochs']:.3g} epochs of different text are {chosen['epochs'] / copies:.3g} of the corpus. "
            "Remove copies with `mickle curate`"
        )
    if chosen.get("too_large"):
        said.append(f"this machine: {chosen['too_large']}")
    return said


def extrapolates(law: Law, parameters: float) -> bool:
    """Whether the paper's law is asked about a size that its runs did not have."""
    return law.origin == "c4" and not SMALLEST <= parameters <= LARGEST


def bits_a_token(law: Law, chosen: dict[str, Any], text: dict[str, Any]) -> float:
    """What a token of the text carries: the loss that the law predicts after one epoch, in bits.

    The paper's law is asked at the nearest size and text that its runs knew: below, its loss is far too high.
    """
    parameters, tokens = chosen["parameters"], text["distinct"]
    if law.origin == "c4":
        parameters, tokens = min(max(parameters, SMALLEST), LARGEST), max(tokens, FEWEST)
    return min(law.loss(parameters, tokens, tokens), math.log(text["vocabulary"])) / math.log(2)


def _law_says(wanted: dict[str, float], law: Law, text: dict[str, Any]) -> str:
    return (
        f"the law ({law.origin}) says: {amount(wanted['parameters'])} parameters, {amount(wanted['tokens'])} tokens "
        f"read in {wanted['epochs']:.3g} epochs, loss {loss(wanted['loss'], text)} (nats a token); it cannot say that "
        "more epochs hurt"
    )


def loss(value: float, text: dict[str, Any]) -> str:
    """A predicted loss; none where it is worse than guessing among the tokens, which no training is."""
    return f"{value:.3f}" if value < math.log(text["vocabulary"]) else "unknown"


def _pilot_says(pilot: dict[str, Any]) -> str:
    best, tried = pilot["best_epochs"], pilot["epochs"]
    size = f"your pilot ({amount(pilot['parameters'])} parameters, {amount(pilot['unique'])} tokens) says: "
    if not pilot["at_edge"]:
        return size + f"best at {best:.3g} epochs (loss {pilot['best_loss']:.3f}); where both speak, it wins"
    if best == max(tried):
        return size + f"still better at {best:.3g} epochs, the most that were tried"
    return size + f"best at {best:.3g} epochs, the fewest that were tried"


def _dropout_says(dropout: dict[str, float]) -> str:
    if not dropout["rate"]:
        return "dropout: none (up to 16 epochs it cost accuracy in `mickle study token_crisis`)"
    return (
        f"dropout: {dropout['rate']:g} in the second half of the run (rule of thumb; `mickle study token_crisis` "
        "shows what it is worth)"
    )


def _forecast_says(chosen: dict[str, Any]) -> str:
    memory = chosen["memory_bytes"]
    shown = f"{memory / 1e9:.2f} GB of memory" if memory else "more memory than there is"
    hours = chosen["hours"]
    time = f"{hours:,.1f} hours" if hours >= 2 else f"{hours * 60:.1f} minutes"
    time = f"{hours * 3600:.0f} seconds" if hours < 1 / 30 else time
    return f"forecast on this machine: {time}, {shown} (steps of {amount(chosen['timed_parameters'])} parameters timed)"


def page(found: dict[str, Any]) -> list[str | Table]:
    """Epochs at the recommended size, then sizes for the same FLOP."""
    text, title = found["text"], "predicted loss" + (", extrapolated" if found["extrapolated"] else "")
    epochs = [
        [f"{row['epochs']:.3g}", amount(row["tokens"]), amount(row["worth"]), f"{row['next_token']:.2f}"]
        + [loss(row["loss"], text)]
        + (["{:.3f} to {:.3f}".format(*row["loss_interval"])] if row["loss_interval"] else [])
        + [f"{row['hours']:.3g}"]
        for row in found["epochs"]
    ]
    interval = ["95 % over runs"] if found["epochs"][0]["loss_interval"] else []
    headings = ["epochs", "tokens read", "worth in fresh tokens", "next token worth", title, *interval, "hours"]
    sizes = [
        (amount(row["parameters"]), amount(row["tokens"]), f"{row['epochs']:.3g}", loss(row["loss"], text))
        for row in found["sizes"]
    ]
    return [
        f"{amount(found['recommended']['parameters'])} parameters on {amount(text['distinct'])} tokens:",
        Table(headings, epochs),
        "For the same FLOP:",
        Table(("parameters", "tokens read", "epochs", title), sizes),
    ]


def picture(found: dict[str, Any]) -> Figure:
    """What epochs are worth beside fresh text; and, where the law's loss means something, the loss they lead to.

    A predicted loss worse than guessing is no prediction: the second part is then for the pilot alone, or left out.
    """
    lines = {"worth, in epochs of fresh text": _worth(found), "loss (nats per token)": _losses(found)}
    at = "epochs (dotted: recommended)"
    rule = [Rule(x=found["recommended"]["epochs"], style=":", width=0.8)]
    panels = [
        Panel(at, name, drawn, rules=rule, x_log=2, y_log=2 if name.startswith("worth") else 0, grid=True, legend=8)
        for name, drawn in lines.items()
        if drawn
    ]
    return Figure(tuple(panels), width=9 if len(panels) == 2 else 6, height=3.2)


def _worth(found: dict[str, Any]) -> list[Line]:
    epochs = [row["epochs"] for row in found["epochs"]]
    unique = found["epochs"][0]["tokens"] / found["epochs"][0]["epochs"]
    worth = [row["worth"] / unique for row in found["epochs"]]
    return [
        Line(epochs, epochs, "fresh text", "--", INK),
        Line(epochs, worth, "your text again", "o-", COLOURS[0]),
    ]


def _losses(found: dict[str, Any]) -> list[Line]:
    curves, pilot = found["curves"], found["pilot_says"]
    chance = math.log(found["text"]["vocabulary"])
    lines = []
    if any(min(losses) < chance for losses in curves["losses"]):
        lines = [
            Line(curves["epochs"], losses, f"{amount(size)} parameters", width=1.6)
            for size, losses in zip(curves["sizes"], curves["losses"], strict=True)
        ]
        lines.append(Line(curves["epochs"], curves["fresh"], "the same, all fresh", "--", COLOURS[1]))
    if pilot:
        lines.append(Line(pilot["epochs"], pilot["losses"], "your pilot, measured", "o", COLOURS[5]))
    return lines


def amount(number: float) -> str:
    """A count with three digits: 950, 2.1K, 16.8M, 1.2B, 3T."""
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= 0.9995 * limit:
            return f"{number / limit:.3g}{unit}"
    return f"{number:.3g}"
