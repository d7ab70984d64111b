"""`mickle curate`: pages in, a corpus of main text out, with everything that was removed and why.

The pipeline is that of RefinedWeb (arXiv 2306.01116) as far as it is built: reading, main text, language,
length, exact duplicates. Pages go through in a stream, in chunks that are kept in the scratch folder, so a
killed run goes on with the chunk it was at and ends with the same bytes.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from mickle import machine, storage
from mickle.data import documentation
from mickle.data.card import Tally, readable
from mickle.data.duplicates import exact_duplicates
from mickle.data.pages import Skipped
from mickle.data.records import Page, Removed, Shards, read_shards, remove, schema_of
from mickle.data.sources import Documentation, Files, Found, Rows, Warc, read_warc
from mickle.data.warc import write_warc
from mickle.data.workers import Outcome, Rules, process_all
from mickle.errors import UsageError
from mickle.events import Emit, Noted, Progressed, Started, Warned
from mickle.machine import Forecast
from mickle.step import Step

WARC = "source.warc.gz"  # where documentation is written, and read back as any other crawl
SKIPPED = "skipped"
CHUNK = 200  # records per chunk of kept work
MODULES_PER_SECOND, PAGES_PER_SECOND, BYTES_PER_SECOND = 25.0, 40.0, 1e6  # one core; for the forecast only

Source = Annotated[Documentation | Warc | Files | Rows, Field(discriminator="kind")]


class Curate(Step):
    """Pages to a corpus: main text, language, length and exact duplicates; removed pages are kept with their
    reason.
    """

    kind: ClassVar[str] = "corpus"
    example: ClassVar[str] = "mickle curate --source.kind warc --source.path crawl/ --out corpus"

    source: Source = Field(Documentation(), description="where the pages come from")
    languages: list[str] = Field(["en"], description="ISO 639-1 codes to keep; none given keeps all")
    language_threshold: float = Field(0.65, ge=0, le=1, description="least probability of the language")
    minimum_characters: int = Field(200, ge=1, description="shorter texts are removed")
    largest_page: int = Field(10 << 20, ge=1024, description="bytes; larger pages are removed unread")
    page_seconds: float = Field(20.0, gt=0, description="CPU time one page may take to extract")
    workers: int = Field(
        0, ge=0, description="processes; 0 for one per core. The result does not depend on it"
    )

    def identity(self) -> dict[str, Any]:
        """All but the number of workers, on which no byte of the result depends."""
        identity = super().identity()
        del identity["settings"]["workers"]
        return identity

    def fingerprint(self) -> dict[str, Any]:
        """Versions of Python and of the packages documented."""
        return documentation.versions(self.source.packages) if isinstance(self.source, Documentation) else {}

    def run(self, work: Path, emit: Emit) -> dict[str, Any]:
        """Writes pages, removed pages and the card under ``work``; goes on where a killed run stopped."""
        begun = time.monotonic()
        forecast = self.dry_run()[0]
        chunks = work / storage.SCRATCH / "chunks"
        chunks.mkdir(parents=True, exist_ok=True)
        undocumented: dict[str, list[str]] = {}
        if isinstance(self.source, Documentation):
            undocumented = self._write_documentation(self.source, work, emit)
        fresh = self._process(work, chunks, emit)
        tally = _write_corpus(chunks, work)
        card = tally.card(self.model_dump(mode="json", exclude={"workers"}), undocumented)
        storage.write_json(work / "card.json", card)
        storage.write_text(work / "README.md", readable(card))
        _say_what_is_left(tally, self._source_name(), emit)
        seconds = time.monotonic() - begun
        counts = {
            name: card[name] for name in ("records", "skipped", "removed", "kept", "kept_bytes", "languages")
        }
        return counts | {
            "forecast": asdict(forecast),
            "fresh_records": fresh,
            "records_per_second": round(fresh / seconds, 2),
        }

    def dry_run(self) -> tuple[Forecast, str]:
        """What would be read, and about how long it takes."""
        speed = PAGES_PER_SECOND * self._workers()
        if isinstance(self.source, Documentation):
            modules = documentation.list_modules(self.source.packages, self.source.tests)
            seconds = len(modules) / speed + len(modules) / (MODULES_PER_SECOND * self._workers())
            forecast = Forecast(
                self._memory(), seconds, 20_000 * len(modules), ("pages are about 6 kB each",)
            )
            return (
                forecast,
                f"{len(modules)} modules of {', '.join(self.source.packages)}, such as {modules[0].url}",
            )
        files = self.source.files()
        size = sum(path.stat().st_size for path in files)
        seconds = size / (BYTES_PER_SECOND * self._workers())
        names = "\n".join(f"  {path} ({path.stat().st_size:,} bytes)" for path in files[:10])
        more = f"\n  and {len(files) - 10} more" if len(files) > 10 else ""
        return Forecast(
            self._memory(), seconds, size
        ), f"{len(files)} files, {size / 1e6:,.1f} MB:\n{names}{more}"

    def after(self, out: Path) -> str:
        """Training on the corpus comes next."""
        return f"mickle pretrain --data {out} --out model"

    def _workers(self) -> int:
        return self.workers or machine.cores()

    def _source_name(self) -> str:
        return (
            ", ".join(self.source.packages)
            if isinstance(self.source, Documentation)
            else str(self.source.path)
        )

    def _memory(self) -> int:
        return (200 << 20) + self._workers() * (250 << 20)

    def _rules(self) -> Rules:
        return Rules(
            largest_page=self.largest_page,
            languages=tuple(self.languages),
            language_threshold=self.language_threshold,
            minimum_characters=self.minimum_characters,
            page_seconds=self.page_seconds,
        )

    def _write_documentation(self, source: Documentation, work: Path, emit: Emit) -> dict[str, list[str]]:
        """Renders the packages' modules into ``source.warc.gz``; returns the modules without a page by
        reason.
        """
        modules = documentation.list_modules(source.packages, source.tests)
        folder = work / storage.SCRATCH / "modules"
        emit(Started("document modules", len(modules), "modules"))
        limits = documentation.Limits(
            source.module_seconds, max(1, int(source.module_seconds)), source.module_megabytes << 20
        )
        outcomes = documentation.render(
            modules, folder, limits, self._workers(), lambda done: emit(Progressed(done))
        )
        warc, partial = work / WARC, work / f"{WARC}.partial"
        if not warc.exists():
            pages = (
                (m.url, (folder / f"{i}.html").read_bytes())
                for i, (m, failed) in enumerate(outcomes)
                if not failed
            )
            write_warc(partial, pages)
            partial.rename(warc)
        undocumented: dict[str, list[str]] = {}
        for module, failed in outcomes:
            if failed:
                undocumented.setdefault(failed, []).append(module.name)
        if undocumented:
            count = sum(map(len, undocumented.values()))
            emit(Noted(f"{count} of {len(modules)} modules could not be documented: the card says why"))
        return undocumented

    def _process(self, work: Path, chunks: Path, emit: Emit) -> int:
        """Takes every record through the rules for one page, chunk by chunk; returns how many were not done
        before.
        """
        position = Position()
        if isinstance(self.source, Documentation):
            files = [work / WARC]
            found: Iterator[Found] = read_warc(files[0], self.largest_page, position.advance)
        else:
            files = self.source.files()
            found = self.source.read(self.largest_page, position.advance)
        emit(Started("extract and filter", sum(path.stat().st_size for path in files) // 1000, "kB"))
        done = _finished_chunks(chunks)
        before = sum(1 for _ in islice(found, done * CHUNK))
        outcomes = process_all(found, self._rules(), self._workers())
        fresh = 0
        for number, chunk in enumerate(_grouped(outcomes, CHUNK), start=done):
            _write_chunk(chunks / f"{number:06d}.parquet", chunk)
            fresh += len(chunk)
            emit(Progressed(position.bytes // 1000, f"{before + fresh:,} records"))
        if before + fresh == 0:
            raise UsageError("the source holds no records", where=str(files[0]), expected="at least one page")
        return fresh


class Position:
    """How many bytes of the source have been read."""

    def __init__(self) -> None:
        self.bytes = 0

    def advance(self, count: int) -> None:
        self.bytes += count


def _grouped(outcomes: Iterator[Outcome], size: int) -> Iterator[list[Outcome]]:
    while group := list(islice(outcomes, size)):
        yield group


def _finished_chunks(chunks: Path) -> int:
    """How many chunks from the first on a killed run has left; each is there whole or not at all."""
    count = 0
    while (chunks / f"{count:06d}.parquet").exists():
        count += 1
    return count


def _write_chunk(path: Path, outcomes: list[Outcome]) -> None:
    """One row per record: kept pages without a stage, records that are no pages with the stage ``SKIPPED``."""
    import pyarrow
    from pyarrow import parquet

    rows = [asdict(_as_row(outcome)) for outcome in outcomes]
    buffer = io.BytesIO()
    parquet.write_table(
        pyarrow.Table.from_pylist(rows, schema=schema_of(Removed)), buffer, compression="zstd"
    )
    storage.write_bytes(path, buffer.getvalue())


def _as_row(outcome: Outcome) -> Removed:
    if isinstance(outcome, Skipped):
        return Removed("", "", "", "", SKIPPED, outcome.reason, 0.0)
    return outcome if isinstance(outcome, Removed) else remove(outcome, "", "", 0.0)


def _read_chunks(chunks: Path) -> Iterator[Outcome]:
    for row in read_shards(chunks, Removed):
        if row.stage == SKIPPED:
            yield Skipped(row.reason)
        else:
            yield row if row.stage else Page(row.url, row.domain, row.language, row.text)


def _write_corpus(chunks: Path, work: Path) -> Tally:
    """The chunks in order, through duplicates, into the two folders of shards."""
    tally = Tally()
    with Shards(work / "pages", Page) as pages, Shards(work / "removed", Removed) as removed:
        for page in exact_duplicates(_without_skipped(_read_chunks(chunks), tally)):
            tally.add(page)
            (removed if isinstance(page, Removed) else pages).add(page)
    return tally


def _without_skipped(outcomes: Iterable[Outcome], tally: Tally) -> Iterator[Page | Removed]:
    for outcome in outcomes:
        if isinstance(outcome, Skipped):
            tally.skip(outcome)
        else:
            yield outcome


def _say_what_is_left(tally: Tally, source: str, emit: Emit) -> None:
    if not tally.kept:
        raise UsageError(
            f"no page is left of {tally.records:,} records",
            where=f"{source}: {tally.commonest_removals()}",
            expected="at least one page kept",
            todo="check the source, or loosen the rule that took most",
        )
    if tally.kept == 1:
        emit(
            Warned(
                f"one page is left of {tally.records:,} records ({tally.commonest_removals() or 'none removed'})"
            )
        )
    emit(Noted(f"kept {tally.kept:,} of {tally.records:,} records, {tally.kept_bytes / 1e6:,.2f} MB of text"))
