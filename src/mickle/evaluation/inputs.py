"""What every measure of a model needs first: the pages, the longest text it reads, a vocabulary that fits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mickle.errors import UsageError

if TYPE_CHECKING:
    from mickle.data.records import Page
    from mickle.data.tokenizer import TextTokenizer

LENGTH_UNKNOWN = 2048  # tokens of a window for a causal model whose settings name no limit


def pages_to_measure(data: Path | None, folder: Path) -> list[Page]:
    """The pages of ``data``, or those the model's own training held out."""
    from mickle.data.heldout import read_pages

    source = data or folder / "heldout.parquet"
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
    from mickle import machine
    from mickle.data.tokenizer import open_text_tokenizer
    from mickle.models.adapters import tokenizer_folder
    from mickle.models.folder import open_model

    tokenizer = open_text_tokenizer(tokenizer_folder(folder))
    model = open_model(folder, device=machine.device())
    check_vocabulary(model, tokenizer, folder)
    return model, tokenizer


def longest_text(model: Any, unknown: int = LENGTH_UNKNOWN) -> int:
    """Tokens of the longest text that a model was made for; ``unknown`` where it does not say."""
    return unknown if model.trained_length is None else int(model.trained_length)


def check_vocabulary(model: Any, tokenizer: TextTokenizer, folder: Path) -> None:
    """Refuse a tokenizer that has tokens which the model does not know."""
    if tokenizer.size > model.vocab_size:
        raise UsageError(
            f"The tokenizer has ids up to {tokenizer.size - 1:,}, the model {model.vocab_size:,} tokens.",
            where=str(folder),
        )
