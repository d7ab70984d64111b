"""How many steps an arm needs for another arm's loss, from two whole runs of each.

Each cell makes a run of S and one of S/2 steps, each with its own schedules. A line through an arm's two final losses
over log2(steps) says how many steps it would need for the loss that the baseline has after S. So a baseline itself
needs S, and no schedule is cut off in its middle.
"""

import math
from typing import Any

Table = dict[str, dict[str, Any]]  # what each arm measured

FARTHEST = 8.0  # steps to a loss are not extrapolated beyond this many times S


def steps_ratio(loss_at_half: float, loss: float, target: float) -> float:
    """Steps for ``target`` as a multiple of S, by the line over log2(steps) through (S/2, loss_at_half), (S, loss)."""
    gained = loss_at_half - loss  # by the last doubling
    if gained <= 0:
        return 1.0 if loss <= target else FARTHEST
    doublings = (loss - target) / gained
    return 2.0 ** min(max(doublings, -math.log2(FARTHEST)), math.log2(FARTHEST))


def with_steps(table: Table, baseline: str, name: str = "steps_to_target", loss: str = "loss") -> Table:
    """The table with each arm's steps for the baseline's final loss added as ``name``; as it is where the baseline has
    no loss. An arm's measures ``loss`` and ``LOSS_at_half`` are those of its two runs, ``budget`` is S; an arm without
    a run of S/2 is left as it is.
    """
    target, half = table.get(baseline, {}).get(loss), f"{loss}_at_half"
    if target is None:
        return table
    return {
        arm: {**found, name: found["budget"] * steps_ratio(found[half], found[loss], target)}
        if half in found
        else found
        for arm, found in table.items()
    }
