"""What an unfinished curation leaves in its scratch folder, so that a killed one goes on where it was.

A source is read in parts (a file, or many small ones), a part in chunks of records. ``000003-000012.parquet`` is a
chunk: all outcomes of its records, and in the file's metadata the seconds that each stage took. ``000003.json`` says
that part 3 is done. A chunk is there whole or not at all.
"""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path

from mickle import storage
from mickle.data.pages import Skipped
from mickle.data.records import Failure, Page, Removed, read_rows, remove, schema_of
from mickle.data.rules import Outcome

RECORDS = 500  # of one chunk
SKIPPED = "skipped"  # the stage under which a record stands that is no page
SECONDS = b"seconds"


def chunk_path(folder: Path, part: int, chunk: int) -> Path:
    """Where a chunk is kept."""
    return folder / f"{part:06d}-{chunk:06d}.parquet"


def chunk_paths(folder: Path) -> list[Path]:
    """All chunks in reading order."""
    return sorted(folder.glob("*.parquet"))


def finished_chunks(folder: Path, part: int) -> int:
    """How many chunks of a part, from its first on, are there."""
    count = 0
    while chunk_path(folder, part, count).exists():
        count += 1
    return count


def finish_part(folder: Path, part: int, records: int) -> None:
    """Notes that a part is done."""
    storage.write_json(folder / f"{part:06d}.json", {"records": records})


def records_of(folder: Path, part: int) -> int | None:
    """How many records a finished part held; None for one that is not done."""
    note = folder / f"{part:06d}.json"
    return int(storage.read_json(note)["records"]) if note.exists() else None


def write_chunk(path: Path, outcomes: Iterable[Outcome], seconds: Mapping[str, float]) -> None:
    """One row per outcome: kept pages without a stage, records that are no pages with the stage ``SKIPPED``."""
    import pyarrow
    from pyarrow import parquet

    rows = [asdict(_as_row(outcome)) for outcome in outcomes]
    schema = schema_of(Removed).with_metadata({SECONDS: json.dumps(dict(seconds)).encode()})
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), buffer, compression="zstd")
    storage.write_bytes(path, buffer.getvalue())


def read_chunk(path: Path) -> Iterator[Outcome]:
    """The outcomes of a chunk, in order."""
    for row in read_rows(path, Removed):
        if row.stage == SKIPPED:
            yield Skipped(row.reason)
        else:
            yield row if row.stage else Page(**{f.name: getattr(row, f.name) for f in fields(Page)})


def read_kept(path: Path) -> list[Page]:
    """The pages of a chunk that no stage has taken out yet."""
    return [o for o in read_chunk(path) if isinstance(o, Page) and not isinstance(o, Removed)]


def seconds_of(folder: Path) -> dict[str, float]:
    """Seconds that the stages took for all chunks, by stage in the order of their names."""
    from pyarrow import parquet

    total: dict[str, float] = defaultdict(float)
    for path in chunk_paths(folder):
        for stage, taken in json.loads((parquet.read_schema(path).metadata or {}).get(SECONDS, b"{}")).items():
            total[stage] += taken
    return dict(sorted(total.items()))


def _as_row(outcome: Outcome) -> Removed:
    if isinstance(outcome, Skipped):
        return Removed("", "", "", "", SKIPPED, outcome.reason, 0.0)
    return outcome if isinstance(outcome, Removed) else remove(outcome, "", Failure("", 0.0, 0.0))
