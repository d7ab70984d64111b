"""`mickle curate`: pages in, a corpus of main text out, with everything that was removed and why.

The pipeline of RefinedWeb (arXiv 2306.01116): ``refine.py`` says what happens to a page, ``comparing.py`` how pages are
compared, ``passes.py`` how both go over any number of pages in bounded memory. A killed run goes on and ends with the
same bytes, whatever the number of workers.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, field_validator, model_validator

from mickle import machine, storage
from mickle.config import Input, config_variants
from mickle.data import chunks, documentation
from mickle.data.card import corpus_lines, corpus_section, readable
from mickle.data.decontamination import index_of
from mickle.data.parallel import each
from mickle.data.records import Page, read_shards
from mickle.data.refine import refused
from mickle.data.rules import COMPARING, PLAIN, WEB, Rules, StageName
from mickle.data.sources import OTHER_FILE, Documentation, Files, Rows, Source, Warc, kind_of
from mickle.data.tally import Tally
from mickle.data.workers import Crew
from mickle.errors import UsageError
from mickle.events import Emit, Noted, Progressed, Started, Warned
from mickle.machine import Forecast
from mickle.results import Finding, Section
from mickle.step import Step, command

if TYPE_CHECKING:
    from mickle.data.passes import Scratch

WARC = "source.warc.gz"  # where documentation is written, and read back as any other crawl
# Measured on one core with all stages; for the forecast only.
MODULES_PER_SECOND, PAGES_PER_SECOND = 60.0, 120.0
BYTES_PER_SECOND, COMPRESSED_BYTES_PER_SECOND = 4e6, 8e5
MEMORY, WORKER_MEMORY = 450 << 20, 350 << 20  # bytes: of this process, of a worker
SAMPLED = 200  # records that a dry run looks at
CHAINED = 0.2  # share of near-duplicates removed through chains from which on a person should know

AnySource = Annotated[Documentation | Warc | Files | Rows, Field(discriminator="kind")]


class Curate(Rules, Step):
    """Pages to a corpus by the stages of RefinedWeb; whatever is removed is kept beside it with its reason."""

    version: ClassVar[int] = 7  # 6: undeclared Japanese, links to nothing; 7: more formulas, no line numbers of code
    kind: ClassVar[str] = "corpus"
    cpu_only: ClassVar[bool] = True
    positional: ClassVar[str] = "source"
    example: ClassVar[str] = "mickle curate crawl/ --out corpus"

    source: AnySource = Field(
        Documentation(), description="where the pages come from: a kind, or a file or folder, whose kind is seen"
    )
    earlier: list[Input] = Field(
        [], description="corpus folders: what is in them already is removed (texts, near-duplicates, addresses)"
    )
    workers: int = Field(
        0, ge=0, description="worker processes; 0 for one per core. The result does not depend on their number"
    )
    ray: str = Field(
        "",
        description="address of a Ray cluster to work on ('auto', HOST:PORT, 'local'); the result is the same",
    )

    @field_validator("source", mode="before")
    @classmethod
    def _seen(cls, value: Any) -> Any:
        """A path in the place of a kind is that of a file or folder whose kind is seen."""
        if isinstance(value, Path):
            value = {"kind": str(value)}
        known = {variant.model_fields["kind"].default for variant in config_variants(AnySource)}
        if not isinstance(value, dict) or value.get("kind") in known or "path" in value:
            return value
        path = Path(str(value.get("kind")))
        return {**value, "kind": kind_of(path), "path": path}

    @model_validator(mode="after")
    def _consistent(self) -> Curate:
        if self.decontamination.against and not self.runs("decontamination"):
            raise ValueError("decontamination.against is given, and 'decontamination' is not among the stages")
        return self

    def usual(self) -> tuple[StageName, ...]:
        """All of RefinedWeb for a crawl, the plain stages for pages that are chosen already."""
        return WEB if isinstance(self.source, Warc) else PLAIN

    def rules(self) -> Rules:
        """What happens to pages, the stages named."""
        shared = {name: getattr(self, name) for name in Rules.model_fields}
        return Rules(**shared | {"stages": list(self.chosen())})

    def identity(self) -> dict[str, Any]:
        """All but who works, on which no byte of the result depends."""
        identity = super().identity()
        for name in ("workers", "ray"):
            del identity["settings"][name]
        return identity

    def fingerprint(self) -> dict[str, Any]:
        """Versions of Python and of the packages documented."""
        return documentation.versions(self.source.packages) if isinstance(self.source, Documentation) else {}

    def run(self, work: Path, emit: Emit) -> dict[str, Any]:
        """Writes pages, removed pages and the card under ``work``; goes on where a killed run stopped."""
        from mickle.data import passes

        begun = time.monotonic()
        forecast = self._forecast()
        items = index_of(self.decontamination)  # before any worker asks for them: what is wrong with them is told here
        if items.warning():
            emit(Warned(items.warning()))
        scratch = passes.Scratch(work / storage.SCRATCH)
        if not scratch.pages.exists():
            storage.check_space(work, forecast.disk_bytes)
        scratch.pages.mkdir(parents=True, exist_ok=True)
        scratch.earlier.mkdir(exist_ok=True)
        undocumented: dict[str, list[str]] = {}
        if isinstance(self.source, Documentation):
            modules = documentation.list_modules(self.source.packages, self.source.tests)
            undocumented = documentation.write(modules, work / WARC, emit)
        passes.keep_earlier(self.earlier, scratch.earlier)
        fresh = self._refine(work, scratch, emit)
        refined = time.monotonic() - begun
        tally = self._compare(work, scratch, emit)
        card = tally.card(self.model_dump(mode="json", exclude={"workers", "ray"}), undocumented)
        card["evaluation_items"] = {"looked_for": len(items.names), "too_short": len(items.short)}
        storage.write_json(work / "card.json", card)
        storage.write_text(work / "README.md", readable(card))
        _say_what_is_left(tally, self._source_name(), emit)
        names = ("records", "skipped", "removed", "kept", "kept_bytes", "kept_words", "languages")
        asked = self._ask(work, emit)
        return (
            {name: card[name] for name in names}
            | asked
            | {
                "forecast": asdict(forecast) | {"derived": {}},
                "fresh_records": fresh,
                "records_per_second": round(fresh / max(refined, 1e-9), 2),
                "seconds_comparing": round(time.monotonic() - begun - refined, 2),
                "stage_seconds": {stage: round(taken, 3) for stage, taken in chunks.seconds_of(scratch.pages).items()},
            }
        )

    @classmethod
    def section(cls, folder: Path, summary: dict[str, Any]) -> Section:
        """The card's funnel, rules and examples."""
        return corpus_section(folder, summary.get("stage_seconds", {}))

    @classmethod
    def findings(cls, summary: dict[str, Any]) -> list[Finding]:
        """Pages and megabytes kept."""
        kept = Finding(f"{summary.get('kept', 0):,}", f"pages kept of {summary.get('records', 0):,}")
        return [kept, Finding(f"{summary.get('kept_bytes', 0) / 1e6:.1f} MB", "of main text")]

    @classmethod
    def shown(cls, folder: Path) -> list[str]:
        """The funnel."""
        return corpus_lines(folder)

    def dry_run(self) -> tuple[Forecast, str]:
        """What would be read, how long it takes, and what becomes of the first records, with examples."""
        warning = index_of(self.decontamination).warning()
        if isinstance(self.source, Documentation):
            modules = documentation.list_modules(self.source.packages, self.source.tests)
            names = ", ".join(self.source.packages)
            return self._forecast(), f"{len(modules)} modules of {names}, such as {modules[0].url}"
        files = self.source.files()
        size = sum(path.stat().st_size for path in files)
        names = "\n".join(f"  {path} ({path.stat().st_size:,} bytes)" for path in files[:10])
        more = f"\n  and {len(files) - 10} more" if len(files) > 10 else ""
        preview = f"{len(files)} files, {size / 1e6:,.1f} MB:\n{names}{more}\n{warning}\n{self._sample(self.source)}"
        return self._forecast(), preview

    def _forecast(self) -> Forecast:
        derived = {"stages": list(self.chosen())}
        if isinstance(self.source, Documentation):
            count = len(documentation.list_modules(self.source.packages, self.source.tests))
            seconds = count / PAGES_PER_SECOND / self._workers() + count / MODULES_PER_SECOND
            notes: tuple[str, ...] = ("pages are about 6 kB each",)
            return Forecast(self._memory(), seconds, 20_000 * count, notes, derived)
        size, seconds = 0, 0.0
        for path in self.source.files():
            compressed = path.suffix in (".gz", ".zst", ".parquet")
            size += path.stat().st_size
            seconds += path.stat().st_size / (COMPRESSED_BYTES_PER_SECOND if compressed else BYTES_PER_SECOND)
        return Forecast(self._memory(), seconds / self._workers(), size, derived=derived)

    def _sample(self, source: Source) -> str:
        """The funnel of the first records through the stages for one page, and examples of what each takes out."""
        tally = Tally(stage for stage in self.chosen() if stage not in COMPARING)
        with Crew(self.rules(), self._workers()) as crew:
            found = refused(source.read(source.parts()[0], self.largest_page, lambda count: None), crew.rules)
            for outcomes in islice(crew.process(found), SAMPLED):
                for outcome in outcomes:
                    tally.add(outcome)
        return f"the first {tally.records:,} records, before pages are compared:\n{tally.preview()}"

    def after(self, out: Path) -> str:
        """Training on the corpus comes next."""
        return command("pretrain", out, "--out", "model")

    def _ask(self, work: Path, emit: Emit) -> dict[str, int]:
        """Write questions on the documentation that was kept, where some are wanted; how many there are."""
        if not isinstance(self.source, Documentation) or not self.source.questions:
            return {}
        from mickle.data.documentation_questions import write_questions

        kept = {page.url for page in read_shards(work / "pages", Page)}
        modules = documentation.list_modules(self.source.packages, self.source.tests)
        names = [module.name for module in modules if module.url in kept]
        training, heldout = write_questions(names, self.source.questions, work)
        emit(Noted(f"{training:,} questions to learn, {heldout:,} held out, of modules that no other is about"))
        return {"questions": training, "heldout_questions": heldout}

    def _workers(self) -> int:
        return self.workers or machine.cores()

    def _source_name(self) -> str:
        return ", ".join(self.source.packages) if isinstance(self.source, Documentation) else str(self.source.path)

    def _memory(self) -> int:
        return MEMORY + self._workers() * WORKER_MEMORY

    def _refine(self, work: Path, scratch: Scratch, emit: Emit) -> int:
        """Takes every record through the stages for one page; returns how many were not done before."""
        from mickle.data import passes

        source: Source
        if isinstance(self.source, Documentation):
            source = Warc(path=work / WARC)
        else:
            source = self.source
        parts = source.parts()
        sizes = [sum(path.stat().st_size for path in files if path.exists()) for files in parts]
        emit(Started("extract and filter", sum(sizes) // 1000, "kB"))
        rules, fresh, done = self.rules(), 0, 0
        if self.ray:
            on_node = partial(passes.refine_part_alone, source=source, rules=rules, folder=scratch.pages)
            for number, count in enumerate(each(on_node, list(enumerate(parts)), ray=self.ray)):
                fresh, done = fresh + count, done + sizes[number]
                emit(Progressed(done // 1000, f"{fresh:,} records"))
        else:
            with Crew(rules, self._workers()) as crew:
                for number, files in enumerate(parts):
                    advance = _advancing(done, emit)
                    fresh += passes.refine_part(number, files, source, crew, scratch.pages, advance)
                    done += sizes[number]
                    emit(Progressed(done // 1000))
        if not any(chunks.records_of(scratch.pages, number) for number in range(len(parts))):
            raise UsageError("the source holds no records", where=str(parts[0][0]), expected="at least one page")
        return fresh

    def _compare(self, work: Path, scratch: Scratch, emit: Emit) -> Tally:
        """Signs all pages, decides between them, and writes the corpus."""
        from mickle.data import passes
        from mickle.data.comparing import decide

        rules, workers = self.rules(), self._workers()
        emit(Started("sign pages", len(scratch.all), "chunks"))
        sign = partial(passes.sign, rules=rules, seed=self.seed)
        for number, _ in enumerate(each(sign, scratch.all, workers, self.ray), start=1):
            emit(Progressed(number))
        keys = passes.stored_keys(scratch)
        verdicts = decide(keys, passes.stored_texts(scratch), rules, scratch.repeated, workers, self.ray, emit)
        tally = Tally(self.chosen())
        emit(Started("write the corpus", len(keys.content), "pages"))
        passes.write_corpus(scratch, work, keys, verdicts, rules, tally.add)
        count = sum(tally.removed.get("near duplicates", {}).values())
        if tally.chained > CHAINED * count:
            told = f"{tally.chained:,} of {count:,} near-duplicates are not half like the page kept for them: "
            emit(Warned(told + "clusters are chains; --near-duplicates.verify 0.8 asks for true likeness"))
        return tally


def _advancing(before: int, emit: Emit) -> Callable[[int], None]:
    """Hears of bytes read in a part, and says how many were read in all, now and then."""
    read = said = before

    def advance(count: int) -> None:
        nonlocal read, said
        read += count
        if read - said >= 1 << 18:
            said = read
            emit(Progressed(read // 1000))

    return advance


def _say_what_is_left(tally: Tally, source: str, emit: Emit) -> None:
    others = Counter({why: n for why, n in tally.skipped.items() if why.startswith(OTHER_FILE)})
    if others:
        named = ", ".join(f"*{why.removeprefix(OTHER_FILE)} ({n:,})" for why, n in others.most_common(8))
        emit(Noted(f"{others.total():,} files of {source} are not read by this kind of source: {named}"))
    if not tally.kept:
        raise UsageError(
            f"no page is left of {tally.records:,} records",
            where=f"{source}: {tally.commonest_removals()}",
            expected="at least one page kept",
            todo="check the source, or loosen the rule that took most",
        )
    if tally.kept == 1:
        emit(Warned(f"one page is left of {tally.records:,} records ({tally.commonest_removals() or 'none removed'})"))
    merged = f"; copies merged: {tally.copies:,}, into {tally.copied:,} of them" if tally.copies else ""
    emit(Noted(f"kept {tally.kept:,} of {tally.records:,} records, {tally.kept_bytes / 1e6:,.2f} MB of text{merged}"))
