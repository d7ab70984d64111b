"""What all ways to measure a model share: their settings' class, pages, model and tokenizer, the rows of one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mickle import machine
from mickle.config import Config
from mickle.errors import UsageError
from mickle.events import Emit, Progressed, Warned, as_warnings
from mickle.machine import Forecast
from mickle.results import Result
from mickle.step import command

if TYPE_CHECKING:
    from mickle.data.records import Page
    from mickle.data.tokenizer import TextTokenizer

Row = TypeVar("Row")
Found = TypeVar("Found")
LENGTH_UNKNOWN = 2048  # tokens of a window for a causal model whose settings name no limit


class Measure(Config):
    """One task of ``mickle evaluate``: its settings, and how it is done."""

    def run(self, folder: Path, emit: Emit, seed: int) -> Result:
        """Measure the model in ``folder``. UsageError where the question has no meaning for it."""
        raise NotImplementedError

    def forecast(self, folder: Path) -> Forecast:
        """What it will need."""
        return Forecast()

    def after(self, folder: Path, out: Path) -> str:
        """The next sensible command."""
        return command("show", out)


def in_batches(
    rows: Iterable[Row],
    length: Callable[[Row], int],
    most: int,
    work: Callable[[list[Row]], Found],
    emit: Emit = as_warnings,
    counts: Callable[[Row], int] = lambda row: 1,
) -> Iterator[tuple[list[Row], Found]]:
    """Rows from the longest to the shortest, as many at a time as have ``most`` tokens with padding, or one; and what
    ``work`` makes of them. Where memory runs out, half as many from there on (ResourceError where that is no help).

    When the next are asked for, ``emit`` hears how much is done: rows, or the sum of what ``counts`` says of each.
    """
    ordered = sorted(rows, key=lambda row: -length(row))
    first = done = 0

    def chosen() -> list[Row]:
        return ordered[first : first + max(1, most // length(ordered[first]))]

    def smaller() -> bool:
        nonlocal most
        half, longest = len(chosen()) // 2, length(ordered[first])
        most = half * longest
        if half:
            emit(Warned(f"memory ran out: {half} rows of {longest} tokens are measured at a time from here on"))
        return half > 0

    while first < len(ordered):
        found = machine.retried(lambda: work(chosen()), smaller)
        some = chosen()
        yield some, found
        first += len(some)
        done += sum(map(counts, some))
        emit(Progressed(done))


def pages_to_measure(data: Path | None, folder: Path) -> list[Page]:
    """The pages of ``data``, of its splits those of ``test``, or those the model's own training held out."""
    from mickle.data.arrow import HELDOUT, split_of
    from mickle.data.heldout import read_pages

    source = split_of(data, HELDOUT) if data else folder / "heldout.parquet"
    if data is None and not source.is_file():
        raise UsageError(
            "This model has no held-out pages of its own.",
            where=str(source),
            todo="name pages to measure on with --task.data",
        )
    pages = [page for batch in read_pages(source) for page in batch]
    if not pages:
        raise UsageError("There is no page with text to measure on.", where=str(source))
    return pages


def open_to_measure(folder: Path) -> tuple[Any, TextTokenizer]:
    """The model of a folder on the fastest device here, and its tokenizer, which fits it."""
    from mickle.data.tokenizer import open_text_tokenizer
    from mickle.models.adapters import tokenizer_folder
    from mickle.models.folder import open_to_run
    from mickle.models.language import check_vocabulary

    tokenizer = open_text_tokenizer(tokenizer_folder(folder))
    model = open_to_run(folder)
    check_vocabulary(model, tokenizer.size, folder)
    return model, tokenizer


def longest_text(model: Any, unknown: int = LENGTH_UNKNOWN) -> int:
    """Tokens of the longest text that a model was made for; ``unknown`` where it does not say."""
    return unknown if model.trained_length is None else int(model.trained_length)


def text_length(model: Any, asked: int | None, unknown: int = LENGTH_UNKNOWN) -> int:
    """Tokens of the texts that are measured: those asked for, or as many as the model was made for.

    UsageError where it has a table of positions, and not so many. Rotary positions go on beyond any length.
    """
    if asked is None:
        return longest_text(model, unknown)
    most = model.length_limit if learned_table(model) else None
    if most is not None and asked > most:
        raise UsageError(
            f"The model has positions for {most:,} tokens, not for {asked:,}.",
            where="task.length",
            expected=f"at most {most:,}",
        )
    return asked


def learned_table(model: Any) -> int | None:
    """How many positions a model with learned ones knows; None for a model whose positions have no end."""
    from torch import nn

    for name, module in model.named_modules():
        # Ours, GPT-2's and BERT's names for the table; OPT's has two rows that are no positions.
        is_table = name.rsplit(".", 1)[-1] in ("embed_positions", "wpe", "position_embeddings")
        if is_table and isinstance(module, nn.Embedding):
            return module.num_embeddings - int(getattr(module, "offset", 0))
    return None
