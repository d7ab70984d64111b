"""Signature to docstring: a task with a right answer that every installation has, far from the standard library.

From the sources of packages that Mickle itself needs (NumPy, Numba, PyTorch), each documented function gives one
example: its signature as the prompt, the first line of its docstring as the completion. Files are parsed, never
imported. Every fifth file is held out whole, and a completion that stands on both sides is taken out of the training
side: what is measured was not seen.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mickle.data.installed import SITE, held_out, package_files, package_folder, parsed

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mickle.data.tokenizer import TextTokenizer

PACKAGES = ("numba", "numpy", "torch")
SKIPPED = SITE | {"tests", "test", "testing", "_vendor"}
HELD_OUT_OF = 5  # one file in so many
LONGEST_PROMPT = 160  # characters
SHORTEST_LINE, LONGEST_LINE = 12, 100
ROWS_MEASURED = 64  # examples of a batch that is only measured
LONGEST = 72  # tokens of an example; longer ones are left out


@dataclass(frozen=True)
class Described:
    """A function: its signature up to the opening quotes, and the first line of its docstring with the closing ones."""

    prompt: str
    completion: str


@cache
def described_functions() -> tuple[tuple[Described, ...], tuple[Described, ...]]:
    """The training side and the held-out side, each example once, in the order of packages and files."""
    sides: tuple[dict[str, Described], dict[str, Described]] = ({}, {})
    for package in PACKAGES:
        root = package_folder(package)
        for path in package_files(package, SKIPPED):
            side = sides[held_out(path.relative_to(root.parent).as_posix(), HELD_OUT_OF)]
            for found in functions_of(path):
                side.setdefault(found.completion, found)  # a line that many functions share counts once
    training, heldout = sides
    return tuple(e for line, e in training.items() if line not in heldout), tuple(heldout.values())


def functions_of(path: Path) -> Iterator[Described]:
    """The documented functions and methods of one file; a file that does not parse has none."""
    tree = parsed(path)
    for node in ast.walk(tree) if tree else ():
        if isinstance(node, ast.FunctionDef) and (found := described(node)):
            yield found


def described(node: ast.FunctionDef) -> Described | None:
    """The example that a function makes; None where its docstring or signature is too short, too long or not a line."""
    text = (ast.get_docstring(node) or "").strip()
    line = text.partition("\n")[0].strip()
    prompt = f'{signature(node)}\n    """'
    fits = SHORTEST_LINE <= len(line) <= LONGEST_LINE and len(prompt) <= LONGEST_PROMPT
    plain = line.isascii() and not line.startswith((">>>", ":", "..", "@")) and '"' not in line
    return Described(prompt, f'{line}"""') if fits and plain else None


def signature(node: ast.FunctionDef) -> str:
    """``def name(arguments) -> result:``, without decorators."""
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"def {node.name}({ast.unparse(node.args)}){result}:"


Example = tuple[np.ndarray, int]  # its tokens, the start mark first; how many of them are the prompt


@cache
def encoded(folder: Path) -> tuple[list[Example], list[Example]]:
    """The task in a base's tokens, training side and held-out side; the end mark closes each completion."""
    from mickle.data.tokenizer import open_text_tokenizer

    tokenizer = open_text_tokenizer(folder)
    training, heldout = (encode(tokenizer, side) for side in described_functions())
    return training, heldout


def encode(tokenizer: TextTokenizer, side: tuple[Described, ...]) -> list[Example]:
    """Prompt and completion tokenized apart, so that the boundary is where the answer begins."""
    prompts = tokenizer.encode([e.prompt for e in side])
    completions = tokenizer.encode([e.completion for e in side])
    joined = [
        (np.concatenate([[tokenizer.start], prompt, completion, [tokenizer.end]]), 1 + len(prompt))
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    return [example for example in joined if len(example[0]) <= LONGEST + 1]


def batch(examples: list[Example], seed: int, rows: int, index: int) -> dict[str, Tensor]:
    """Batch ``index``, a function of (seed, index): every example once an epoch, each epoch in its own order."""
    from mickle.studies.training import in_epochs

    return padded([examples[i] for i in in_epochs(index, rows, len(examples), seed)])


def padded(examples: list[Example]) -> dict[str, Tensor]:
    """input_ids and labels [B, T], shifted; only completions are trained. What follows an end cannot reach it."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    from mickle.data.packing import NOT_TRAINED

    inputs = [torch.from_numpy(tokens[:-1]) for tokens, _ in examples]
    labels = [
        torch.from_numpy(np.where(np.arange(len(tokens)) < prompt, NOT_TRAINED, tokens)[1:])
        for tokens, prompt in examples
    ]
    return {
        "input_ids": pad_sequence(inputs, batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=NOT_TRAINED),
    }


def measure(model: nn.Module, examples: list[Example], count: int) -> dict[str, float]:
    """Loss (nats a token of the completion) and share of its tokens right, on held-out examples, the same for all."""
    from mickle.studies.training import predicted

    chosen = sorted(examples[:: max(1, len(examples) // count)][:count], key=lambda example: len(example[0]))
    parts = (chosen[first : first + ROWS_MEASURED] for first in range(0, len(chosen), ROWS_MEASURED))
    return predicted(model, map(padded, parts))
