"""Pages in, and the split of training from held-out pages by what they say.

A page's side follows from a hash of its text alone (white space aside): adding pages moves none, and two copies
of a text can never lie on both sides. Pages of more than LONGEST_HELDOUT characters are trained on. Seeds of training
do not enter, so that runs with other seeds are measured on the same pages.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from mickle.data.arrow import is_saved, set_files
from mickle.data.parquet import open_parquet, read_batches
from mickle.data.pieces import single_spaced
from mickle.data.records import Page
from mickle.errors import UsageError
from mickle.storage import disk_errors, open_folder, read_manifest

LONGEST_HELDOUT = 1 << 22  # characters; a longer page would be most of a side, and take hours to measure
COLUMNS = ("url", "domain", "language", "text")


def page_files(source: Path) -> list[Path]:
    """The files of a corpus folder, of a model folder's held-out pages or of a saved set, or the one file given."""
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise UsageError(f"There is nothing at {source}.", where="data", expected="a corpus folder or a Parquet file")
    if is_saved(source):
        return set_files(source)
    # A folder of one's own Parquet files needs no manifest; a corpus that lacks it was not finished.
    if read_manifest(source) is not None or (source / ".scratch").is_dir() or (source / "card.json").is_file():
        open_folder(source)
    for candidates in (source / "pages", source):
        files = sorted(candidates.glob("*.parquet"))
        if files:
            return files
    raise UsageError(
        f"There are no pages in {source}.",
        where="data",
        expected="pages/*.parquet or *.parquet with a column `text`",
        todo="make a corpus with `mickle curate`",
    )


def read_pages(source: Path) -> Iterator[list[Page]]:
    """Pages in their stored order, some at a time. Pages without text are left out."""
    for file in page_files(source):
        with open_parquet(file) as parquet:
            schema = parquet.schema_arrow
        wanted = [name for name in COLUMNS if name in schema.names and _is_text(schema.field(name).type)]
        if "text" not in wanted:
            expected = f"columns {', '.join(COLUMNS)}"
            raise UsageError("These pages have no column `text` of strings.", where=str(file), expected=expected)
        for batch in read_batches(file, wanted):
            pages = [Page(*(str(row.get(name) or "") for name in COLUMNS)) for row in batch.to_pylist()]
            yield [page for page in pages if page.text.strip()]


def page_count(source: Path) -> int:
    """How many rows a source has, from its footers; rows without text count here."""
    count = 0
    for file in page_files(source):
        with open_parquet(file) as parquet:
            count += parquet.metadata.num_rows
    return count


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def content_hash(text: str) -> int:
    """64 bits of a text's words; white space does not count."""
    hashed = xxhash.xxh3_64()
    for piece in single_spaced(text):
        hashed.update(piece.encode("utf-8"))
    return hashed.intdigest()


def is_heldout(text: str, share: float) -> bool:
    """Whether a page is held out when ``share`` of all possible texts are; none longer than LONGEST_HELDOUT is."""
    return len(text) <= LONGEST_HELDOUT and content_hash(text) < share * 2**64


def least_share(pages: Iterable[list[Page]]) -> float:
    """The smallest share at which one of the pages is held out; of none, 1."""
    keys = (content_hash(page.text) for batch in pages for page in batch if len(page.text) <= LONGEST_HELDOUT)
    return math.nextafter(min(keys, default=2**64 - 1) / 2**64, 1.0)


@dataclass(frozen=True)
class Split:
    """Counts of a split, and the held-out pages themselves (they are few): copies of one are ``merged`` into it."""

    training_pages: int
    training_bytes: int
    heldout: tuple[Page, ...]
    distinct: int
    merged: int = 0

    @property
    def training_copies(self) -> int:
        """Training pages whose text another one has; they are trained on as often as they stand there."""
        return self.training_pages - (self.distinct - len(self.heldout))

    @property
    def heldout_bytes(self) -> int:
        """UTF-8 bytes of the held-out texts."""
        return sum(len(page.text.encode("utf-8")) for page in self.heldout)


def split(pages: Iterable[list[Page]], share: float) -> Split:
    """Sort pages by side, with every held-out text once, and check that no text is on both."""
    training: set[int] = set()
    heldout: dict[int, Page] = {}
    count = size = merged = 0
    for batch in pages:
        for page in batch:
            key = content_hash(page.text)
            if is_heldout(page.text, share):
                merged += key in heldout
                heldout.setdefault(key, page)
            else:
                training.add(key)
                count += 1
                size += len(page.text.encode("utf-8"))
    if training & heldout.keys():
        raise AssertionError("a text is on both sides of the split")
    return Split(count, size, tuple(heldout.values()), len(training) + len(heldout), merged)


def training_texts(source: Path, share: float) -> Iterator[list[str]]:
    """The texts of the training side, some at a time, in their stored order."""
    for batch in read_pages(source):
        yield [page.text for page in batch if not is_heldout(page.text, share)]


def write_pages(pages: Iterable[Page], path: Path) -> None:
    """Write pages to one Parquet file with the columns of a corpus; the same pages give the same bytes."""
    rows = list(pages)
    columns = {name: pa.array([getattr(page, name) for page in rows], pa.string()) for name in COLUMNS}
    with disk_errors(path):
        pq.write_table(pa.table(columns), path, compression="zstd")
