"""A study on a person's own data and model: the same arms, tuning, measures and rule, on what the page says it takes.

    study = on_own(open_study("sophia"), "full", {"data": Path("corpus")}, hours=2.0)

What is given stands in ``study.own`` and reaches cells as paths in their values; what the study is known by are the
contents. Pages read texts by :func:`own_texts`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mickle.errors import UsageError
from mickle.studies.declaration import Scale, Study

if TYPE_CHECKING:
    from mickle.data.records import Page

OWN = ("data", "model")
TEXTS = (
    "texts: a corpus folder, a folder of pages or text files, WARC files, a table with a column `text`, conversations"
)
MODEL = "a folder of a causal language model, or a GGUF file"
USUAL_MODEL = Path("build/models/SmolLM2-135M-Instruct")  # where `make model` writes it
LEAST_SHARE = 0.1  # of the dials' usual size: shorter runs teach nothing
HELD_OUT = 0.1  # of the texts
LEAST_TEXTS = 50  # fewer are cut into pieces, of which some are held out
PIECE = 4096  # characters
LARGEST_PAGE = 1 << 24  # bytes
Sides = tuple[tuple[str, ...], tuple[str, ...]]


def on_own(study: Study, scale: str, own: Mapping[str, Path], hours: float | None = None) -> Study:
    """The study on what is given, ``scale`` stretched to ``hours``. UsageError where the study does not take it, says
    what it takes instead, or cannot work with it; where a model is needed and none is there.
    """
    takes = study.takes
    for name in own:
        if not getattr(takes, name):
            raise _not_taken(study, scale, name)
    if takes.model:
        own = {**own, "model": _causal(own["model"] if "model" in own else _usual_model(study))}
    if "data" in own:
        asked = takes.comparisons or tuple(c for c in study.comparisons if set(c.worlds) <= set(takes.worlds))
        if not any(comparison.headline for comparison in asked):
            asked = (replace(asked[0], headline=True), *asked[1:])
        study = replace(study, worlds=takes.worlds, comparisons=asked)
    sizes = study.scales[scale] if hours is None else stretched(study, scale, hours)
    study = replace(study, own=dict(own), scales={**study.scales, scale: sizes})
    if "data" in own and takes.check:
        takes.check({**sizes.values, **{name: str(path) for name, path in own.items()}})
    return study


def _not_taken(study: Study, scale: str, name: str) -> UsageError:
    taken = [f"--{each} {words}" for each in OWN if (words := getattr(study.takes, each))]
    return UsageError(
        f"Study {study.name} at scale {scale} takes no {name} of yours" + (f": {study.takes.instead}" * (not taken)),
        where=f"--{name}",
        expected="; ".join(taken) or f"mickle study {study.name} alone, on what it has itself",
    )


def _usual_model(study: Study) -> Path:
    if not (USUAL_MODEL / "config.json").is_file():
        raise UsageError(
            f"Study {study.name} needs a model folder at scale real",
            expected=f"--model {study.takes.model}",
            todo=f"name one, or make {USUAL_MODEL} with: make model",
        )
    return USUAL_MODEL


def _causal(folder: Path) -> Path:
    from mickle.models.folder import describe

    if not describe(folder).causal:
        raise UsageError("This model sees both sides of a token", where=str(folder), expected=MODEL)
    return folder


def stretched(study: Study, scale: str, hours: float) -> Scale:
    """The scale with its dials grown or shrunk, so that a run takes about so many hours on two cores."""
    sizes, factor = study.scales[scale], 60.0 * hours / study.takes.minutes
    if factor < LEAST_SHARE:
        raise UsageError(
            f"{hours:g} hours are too few for study {study.name} with {sizes.seeds} seeds",
            where="hours",
            expected=f"{LEAST_SHARE * study.takes.minutes / 60:.2g} or more",
            todo="leave hours out with --scale quick, which is indicative",
        )

    def grown(values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: _times(value, factor) if name in study.takes.dials else value for name, value in values.items()}

    return replace(sizes, values=grown(sizes.values), tuning_values=grown(sizes.tuning_values))


def _times(value: Any, factor: float) -> Any:
    if isinstance(value, Mapping):
        return {name: _times(one, factor) for name, one in value.items()}
    return max(8, 8 * round(value * factor / 8))  # runs of half the steps, and rows, divide it


# -- texts ---------------------------------------------------------------------------------------------------------


@cache
def own_texts(data: str) -> Sides:
    """Texts to train on and to hold out, in the order they stand. A text's side follows from a hash of its words, so
    that copies are on one side; few long texts are cut into pieces first.
    """
    from mickle.tuning.task import split

    texts = [page.text for page in own_pages(Path(data)) if page.text.strip()]
    if len(texts) < LEAST_TEXTS:
        texts = [text[at : at + PIECE] for text in texts for at in range(0, len(text), PIECE)]
    if len(set(texts)) < 2:
        size = sum(map(len, texts))
        raise UsageError(f"There is too little text: {size:,} characters in {len(texts):,} pieces", where=data)
    training, held_out = split(texts, HELD_OUT, data, str)
    return tuple(training), tuple(held_out)


def own_pages(path: Path) -> Iterator[Page]:
    """A corpus as it is, pages and text files by their main text, rows by what is said in them."""
    from mickle.data import sources
    from mickle.data.conversations import read_conversations
    from mickle.data.heldout import read_pages
    from mickle.data.pages import extract
    from mickle.data.records import Page

    names = [path.name] if path.is_file() else [file.name for file in path.rglob("*")]
    kinds = (sources.Warc, sources.Files)
    kind = next((kind for kind in kinds if any(name.lower().endswith(kind.endings) for name in names)), None)
    if any((path / "pages").glob("*.parquet")):
        yield from (page for batch in read_pages(path) for page in batch)
    elif kind is None:
        try:
            examples = read_conversations(path).examples
        except UsageError as error:  # tune's advice names settings that a study has not
            raise UsageError(error.what, where=error.where, expected=TEXTS) from None
        yield from (Page("", "", "", example.own_text()) for example in examples)
    else:
        source: Any = kind(path=path)
        found = (raw for part in source.parts() for raw in source.read(part, LARGEST_PAGE, lambda size: None))
        pages = (extract(raw, LARGEST_PAGE) if isinstance(raw, sources.RawPage) else raw for raw in found)
        yield from (page for page in pages if isinstance(page, Page))
