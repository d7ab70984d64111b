"""The domains of a corpus: which pages belong to which, a token stream for each, and the file of their weights.

A page's domain is the value of one of its columns (``domain`` is the host or the folder it came from) or a group
of values. Domains always stand in the order of their names, so that the order of files, flags or YAML lines
changes nothing.
"""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import yaml

from mickle.data.heldout import is_heldout, read_pages
from mickle.data.parquet import BATCH_ROWS
from mickle.data.records import Page, grouped
from mickle.errors import UsageError
from mickle.events import Emit, Progressed, Started
from mickle.storage import check_space, disk_errors, read_json, remove, whole, write_json, write_text
from mickle.yaml_files import read_yaml

if TYPE_CHECKING:
    from mickle.data.packing import TokenStream
    from mickle.data.tokenizer import TextTokenizer

NAMELESS = "(none)"  # the domain of pages whose column is empty
TOLERANCE = 1e-3  # how far weights may sum from 1
LEAST_PAGES = 2  # of a domain: a single page is memorised, and its weight says nothing
DOCUMENTS_AT_A_TIME = 1 << 16


@dataclass(frozen=True)
class Grouping:
    """How pages fall into domains: the column, and patterns (``*.org``) of its values for each named group.

    The first group with a pattern that fits gives the name; a value that fits none is a domain by itself.
    """

    by: Literal["domain", "language"] = "domain"
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def name(self, page: Page) -> str:
        """The page's domain."""
        value: str = getattr(page, self.by) or NAMELESS
        for name, patterns in self.groups.items():
            if any(fnmatch.fnmatchcase(value, pattern) for pattern in patterns):
                return name
        return value


@dataclass(frozen=True)
class Weights:
    """Shares of the training tokens, by domain in the order of names; they sum to 1."""

    names: tuple[str, ...]
    weights: tuple[float, ...]
    grouping: Grouping = field(default_factory=Grouping)

    def as_dict(self) -> dict[str, float]:
        """Name to share."""
        return dict(zip(self.names, self.weights, strict=True))


@dataclass(frozen=True)
class Size:
    """What one domain has for training."""

    pages: int
    bytes: int


def read_weights(path: Path) -> Weights:
    """Domain weights from what `mickle mix` wrote, a plain mapping of names to shares, or the reference code's JSON.

    The last is ``{"train_domain_weights": {...}}``, whose shares need not sum to 1. Raises UsageError for a share that
    is no number or negative, and where the sum is not 1 within 1e-3.
    """
    path = Path(path)
    if path.is_dir() and (path / "weights.yaml").is_file():
        path = path / "weights.yaml"
    found: Any = read_json(path) if path.suffix == ".json" else read_yaml(path)[0]
    grouping, shares, scaled = Grouping(), found, False
    if not isinstance(found, dict):
        shares = None
    elif "train_domain_weights" in found:
        shares, scaled = found["train_domain_weights"], True
    elif isinstance(found.get("weights"), dict):
        shares, grouping = found["weights"], _grouping(found, path)
    if not isinstance(shares, dict) or not shares:
        raise UsageError("This file holds no domain weights.", where=str(path), expected="name: share, a line each")
    return checked_weights({str(k): v for k, v in shares.items()}, grouping, str(path), scaled)


def checked_weights(
    shares: Mapping[str, Any], grouping: Grouping | None = None, where: str = "weights", scaled: bool = False
) -> Weights:
    """Weights from shares by name; with ``scaled`` any positive sum will do. UsageError names a share that is wrong."""
    numbers = {}
    for name, value in shares.items():
        try:
            number = float(value) if not isinstance(value, bool) else math.nan
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number) or number < 0:
            raise UsageError(
                f"The weight of the domain '{name}' is {value!r}.", where=where, expected="a number from 0 to 1"
            )
        numbers[name] = number
    total = math.fsum(numbers.values())
    if total <= 0 or (abs(total - 1) > TOLERANCE and not scaled):
        raise UsageError(
            f"The weights sum to {total:.6g}.", where=where, expected="1, within 0.001", todo="divide them by their sum"
        )
    names = tuple(sorted(numbers))
    return Weights(names, tuple(numbers[name] / total for name in names), grouping or Grouping())


def write_weights(path: Path, weights: Weights) -> None:
    """The YAML file that `mickle pretrain --mixture` and :func:`read_weights` read."""
    grouping = weights.grouping
    values = {
        "by": grouping.by,
        "groups": {name: list(patterns) for name, patterns in grouping.groups.items()},
        "unit": "tokens",
        "weights": weights.as_dict(),
    }
    write_text(path, yaml.safe_dump(values, sort_keys=False))


def refuse_other_names(weights: Weights, names: Sequence[str], where: str) -> None:
    """UsageError where weights and a corpus do not have the same domains; it names the nearest one."""
    for unknown, known, what in (
        (set(weights.names) - set(names), names, "The weights name a domain that the pages do not have"),
        (set(names) - set(weights.names), weights.names, "The pages have a domain that the weights do not name"),
    ):
        if unknown:
            first = min(unknown)
            near = difflib.get_close_matches(first, list(known), n=1)
            raise UsageError(
                f"{what}: '{first}'" + (f" and {len(unknown) - 1} more." if len(unknown) > 1 else "."),
                where=where,
                expected=f"one of: {', '.join(sorted(known)[:8])}" + (" ..." if len(known) > 8 else ""),
                todo=f"did you mean '{near[0]}'?" if near else "a share of 0 leaves a domain out",
            )


def domain_sizes(data: Path, share: float, grouping: Grouping) -> dict[str, Size]:
    """Training pages and their UTF-8 bytes by domain, in the order of names.

    Raises UsageError for a group without pages, a domain with a single one, and where all pages are one domain.
    """
    pages, size = Counter[str](), Counter[str]()
    for name, text in _training_pages(data, share, grouping):
        pages[name] += 1
        size[name] += len(text.encode("utf-8"))
    for name in grouping.groups:
        if name not in pages:
            raise UsageError(
                f"No page belongs to the domain '{name}'.",
                where=f"groups.{name}: {', '.join(grouping.groups[name])}",
                expected=f"patterns of the pages' {grouping.by}s: {', '.join(sorted(pages)[:6])}",
            )
    if len(pages) < 2:
        raise UsageError(
            f"All pages are of one domain ('{next(iter(pages), NAMELESS)}'): there is nothing to weigh.",
            where=str(data),
            todo="use by: language, or give pages from several folders or hosts",
        )
    single = sorted(name for name, count in pages.items() if count < LEAST_PAGES)
    if single:
        raise UsageError(
            f"The domain '{single[0]}' has one page for training"
            + (f", and so have {len(single) - 1} others of {len(pages)}." if len(single) > 1 else "."),
            where=str(data),
            expected=f"at least {LEAST_PAGES} pages in a domain",
            todo="put small domains into groups, say groups: {rest: ['*']} last",
        )
    return {name: Size(pages[name], size[name]) for name in sorted(pages)}


def domain_streams(
    data: Path, share: float, tokenizer: TextTokenizer, folder: Path, grouping: Grouping | Weights, emit: Emit
) -> dict[str, TokenStream]:
    """A token stream of the training pages of each domain, in the order of names; a killed call goes on.

    Given :class:`Weights`, their grouping is used and their names must be those of the pages. The corpus is tokenized
    once, as a whole, and then dealt out document by document.
    """
    from mickle.data.packing import KIND, open_stream, pack

    index = folder / "domains.json"  # written last
    places = range(len(read_json(index))) if index.is_file() else ()
    if not places or not all(whole(folder / f"{place:05d}", KIND) for place in places):
        remove(index)
        asked = grouping.grouping if isinstance(grouping, Weights) else grouping
        sizes = domain_sizes(data, share, asked)
        if isinstance(grouping, Weights):
            refuse_other_names(grouping, list(sizes), str(data))
        total = sum(size.bytes for size in sizes.values())
        emit(Started("tokenizing", sum(size.pages for size in sizes.values()), "pages"))
        texts = grouped((text for _, text in _training_pages(data, share, asked)), BATCH_ROWS)
        everything = pack(texts, tokenizer, folder / "whole", total, lambda pages: emit(Progressed(pages)))
        names = list(sizes)
        number = {name: place for place, name in enumerate(names)}
        owners = np.array([number[name] for name, _ in _training_pages(data, share, asked)], dtype=np.int32)
        check_space(folder, everything.tokens.nbytes)
        with disk_errors(folder):
            _deal_out(everything, owners, len(names), folder)
        write_json(index, names)
        remove(folder / "whole")
    kept = read_json(index)
    return {name: open_stream(folder / f"{place:05d}", tokenizer.end) for place, name in enumerate(kept)}


def _deal_out(everything: TokenStream, owners: np.ndarray, domains: int, folder: Path) -> None:
    """Copy each document of ``everything`` to the stream of its owner (int [documents])."""
    from mickle.data.packing import write_stream

    ends = np.append(everything.starts[1:], len(everything.tokens)) if len(owners) else everything.starts
    lengths = ends - everything.starts

    def pieces(mine: np.ndarray) -> Iterator[np.ndarray]:
        for first in range(0, len(owners), DOCUMENTS_AT_A_TIME):
            some = slice(first, min(first + DOCUMENTS_AT_A_TIME, len(owners)))
            begin, end = int(everything.starts[first]), int(ends[some.stop - 1])
            yield everything.tokens[begin:end][np.repeat(mine[some], lengths[some])]

    for domain in range(domains):
        target = folder / f"{domain:05d}"
        target.mkdir(exist_ok=True)
        mine = owners == domain
        write_stream(target, pieces(mine), lengths[mine], everything.tokens.dtype)


def _training_pages(data: Path, share: float, grouping: Grouping) -> Iterator[tuple[str, str]]:
    """Domain and text of each page of the training side, in their stored order."""
    names: dict[str, str] = {}  # patterns are tried once for each value
    for batch in read_pages(data):
        for page in batch:
            if is_heldout(page.text, share):
                continue
            value = getattr(page, grouping.by)
            if value not in names:
                names[value] = grouping.name(page)
            yield names[value], page.text


def _grouping(found: Mapping[str, Any], path: Path) -> Grouping:
    by, groups = found.get("by", "domain"), found.get("groups") or {}
    lists = isinstance(groups, dict) and all(
        isinstance(patterns, list) and all(isinstance(p, str) for p in patterns) for patterns in groups.values()
    )
    if by not in ("domain", "language") or not lists:
        raise UsageError(
            "The weights' grouping cannot be read.",
            where=str(path),
            expected="by: domain or language; groups: a list of patterns for each name",
        )
    return Grouping(by, {str(name): tuple(patterns) for name, patterns in groups.items()})
