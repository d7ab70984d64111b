"""A plan in words, as a table and as a figure: pure functions of what ``repeats.make_plan`` found."""

from __future__ import annotations

import math
from typing import Any

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


def as_table(found: dict[str, Any]) -> str:
    """Epochs at the recommended size, then sizes for the same FLOP, in Markdown."""
    interval = any(row["loss_interval"] for row in found["epochs"])
    text, title = found["text"], "predicted loss" + (", extrapolated" if found["extrapolated"] else "")
    lines = [
        f"{amount(found['recommended']['parameters'])} parameters on {amount(found['text']['distinct'])} tokens:",
        "",
        f"| epochs | tokens read | worth in fresh tokens | next token worth | {title} |"
        + (" 95 % over runs |" if interval else "")
        + " hours |",
        "|---|---|---|---|---|" + ("---|" if interval else "") + "---|",
    ]
    for row in found["epochs"]:
        cells = [f"{row['epochs']:.3g}", amount(row["tokens"]), amount(row["worth"]), f"{row['next_token']:.2f}"]
        cells.append(loss(row["loss"], text))
        if interval:
            cells.append("{:.3f} to {:.3f}".format(*row["loss_interval"]))
        lines.append("| " + " | ".join([*cells, f"{row['hours']:.3g}"]) + " |")
    lines += ["", "For the same FLOP:", "", f"| parameters | tokens read | epochs | {title} |", "|---|---|---|---|"]
    for row in found["sizes"]:
        cells = [amount(row["parameters"]), amount(row["tokens"]), f"{row['epochs']:.3g}", loss(row["loss"], text)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(found: dict[str, Any]) -> str:
    """What epochs are worth beside fresh text; and, where the law's loss means something, the loss they lead to. SVG.

    A predicted loss worse than guessing is no prediction: the second part is then for the pilot alone, or left out.
    """
    from mickle import figures

    chance = math.log(found["text"]["vocabulary"])
    known = [losses for losses in found["curves"]["losses"] if min(losses) < chance]

    def paint(axes: Any, losses: Any = None) -> None:
        _paint_worth(axes, found)
        if losses is not None:
            _paint_losses(losses, found, bool(known))
        for each in filter(None, (axes, losses)):
            each.axvline(found["recommended"]["epochs"], color=figures.INK, linewidth=0.8, linestyle=":")
            each.set_xscale("log", base=2)
            each.set_xlabel("epochs (dotted: recommended)")
            each.grid(True)
            each.legend(fontsize=8)

    columns = 2 if known or found["pilot_says"] else 1
    return figures.draw(paint, width=9 if columns == 2 else 6, height=3.2, columns=columns)


def _paint_worth(axes: Any, found: dict[str, Any]) -> None:
    from mickle import figures

    epochs = [row["epochs"] for row in found["epochs"]]
    unique = found["epochs"][0]["tokens"] / found["epochs"][0]["epochs"]
    worth = [row["worth"] / unique for row in found["epochs"]]
    axes.plot(epochs, epochs, "--", color=figures.INK, label="fresh text")
    axes.plot(epochs, worth, "o-", color=figures.COLOURS[0], label="your text again")
    axes.set_yscale("log", base=2)
    axes.set_ylabel("worth, in epochs of fresh text")


def _paint_losses(axes: Any, found: dict[str, Any], known: bool) -> None:
    from mickle import figures

    curves, pilot = found["curves"], found["pilot_says"]
    if known:
        for size, losses in zip(curves["sizes"], curves["losses"], strict=True):
            axes.plot(curves["epochs"], losses, label=f"{amount(size)} parameters", linewidth=1.6)
        fresh = "the same, all fresh"
        axes.plot(curves["epochs"], curves["fresh"], "--", color=figures.COLOURS[1], label=fresh)
    if pilot:
        axes.plot(pilot["epochs"], pilot["losses"], "o", color=figures.COLOURS[5], label="your pilot, measured")
    axes.set_ylabel("loss (nats per token)")


def amount(number: float) -> str:
    """A count with three digits: 950, 2.1K, 16.8M, 1.2B, 3T."""
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= 0.9995 * limit:
            return f"{number / limit:.3g}{unit}"
    return f"{number:.3g}"
