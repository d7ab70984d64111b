"""SCAN (arXiv 1711.00350), enumerated from its grammar: commands such as ``walk around left twice`` and their actions.

    U = walk | look | run | jump          D = (U | turn) (left | right)
    V = U | D | (U | turn) opposite d | (U | turn) around d        (34)
    S = V | V twice | V thrice                                     (102)
    C = S | S and S | S after S                                    (20,910)

``u d`` turns and then acts, ``opposite`` turns twice, ``around`` is four times turn and act; ``turn`` alone adds no
action; ``x after y`` does y first. The length of a command is the number of its actions, as in the length split.
"""

import random
from functools import cache

from mickle.data.tasks.problem import Problem

WORDS = (
    "Solve: [SEP] walk look run jump turn left right opposite around twice thrice and after"
    " Walk Look Run Jump Left Right"
)
_VERBS = ("walk", "look", "run", "jump")
_REPEATS = {"": 1, " twice": 2, " thrice": 3}


def _phrases() -> dict[str, list[str]]:
    """The 102 phrases S, each with its actions."""
    verbs: dict[str, list[str]] = {verb: [verb.capitalize()] for verb in _VERBS}
    for verb in (*_VERBS, "turn"):
        act = [] if verb == "turn" else [verb.capitalize()]
        for side in ("left", "right"):
            turn = [side.capitalize()]
            verbs[f"{verb} {side}"] = turn + act
            verbs[f"{verb} opposite {side}"] = turn * 2 + act
            verbs[f"{verb} around {side}"] = (turn + act) * 4
    return {verb + word: actions * n for verb, actions in verbs.items() for word, n in _REPEATS.items()}


@cache
def commands() -> dict[str, tuple[str, ...]]:
    """All 20,910 commands, each with its actions."""
    phrases = _phrases()
    found = {text: tuple(actions) for text, actions in phrases.items()}
    for first, one in phrases.items():
        for second, two in phrases.items():
            found[f"{first} and {second}"] = tuple(one + two)
            found[f"{first} after {second}"] = tuple(two + one)
    return found


@cache
def commands_by_length() -> dict[int, tuple[str, ...]]:
    """The commands of each number of actions, shortest first."""
    buckets: dict[int, list[str]] = {}
    for command, actions in commands().items():
        buckets.setdefault(len(actions), []).append(command)
    return {length: tuple(buckets[length]) for length in sorted(buckets)}


def scan(rng: random.Random, length: int) -> Problem:
    """A command of exactly ``length`` actions, drawn evenly. Raises KeyError for a length that SCAN does not have."""
    command = rng.choice(commands_by_length()[length])
    answer = " ".join(commands()[command])
    return Problem(f"Solve: {command}[SEP]", answer, answer, "scan")
