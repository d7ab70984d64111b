"""The verb: ``mickle study NAME --scale quick|full|gpu`` runs a study and writes its result, table and figure."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from mickle.config import Input
from mickle.errors import UsageError
from mickle.events import Emit, Warned
from mickle.machine import Forecast
from mickle.models.gguf_folder import Model
from mickle.step import Step, command
from mickle.storage import SCRATCH
from mickle.studies import results
from mickle.studies.declaration import Study, has_real, open_study, page_names
from mickle.studies.markdown import measured_effect, page, verdict_words
from mickle.studies.own import OWN, on_own
from mickle.studies.results import code_digest, declaration_hash, versions_read
from mickle.studies.runner import Place, run_study, scale_of, tuning_cells

ELSEWHERE = ("publish", "workers")  # where results go and how many processes share the cells change no number


class RunStudy(Step):
    """Does this paper's trick pay here? Method against a tuned baseline, equal budgets, several seeds, a verdict."""

    kind: ClassVar[str] = "study"
    title: ClassVar[str] = "The study"
    lead: ClassVar[str] = "A paper's claim, measured here."
    example: ClassVar[str] = "mickle study sophia --scale quick"
    positional: ClassVar[str] = "name"
    resumable_changes: ClassVar[frozenset[str]] = frozenset(
        {*ELSEWHERE, "fingerprint.code", "fingerprint.reads"}  # cells are kept under both of these
    )

    name: str = Field(
        "", description="which study to run: a name, or a page of your own (page.py); without it all are listed"
    )
    scale: Literal["quick", "full", "real", "gpu"] = Field(
        "quick",
        description="quick: 3 minutes, indicative; full: 30 minutes, gives the verdict; real: the same on a real model;"
        " gpu: one GPU",
    )
    data: Input | None = Field(
        None, description="run it on this instead: texts, conversations, a table or a crawl, as the study takes"
    )
    model: Model | None = Field(None, description="model folder to run scale real on")
    hours: float | None = Field(
        None, gt=0, le=10_000, description="how long a run may take on two cores; it then gives a verdict"
    )
    workers: int = Field(
        2, ge=0, le=256, description="one-thread processes that share the work; 0 for this process alone"
    )
    publish: Path | None = Field(
        None, description="folder that gets a copy of result and figure (docs/results); only from a clean commit"
    )

    @model_validator(mode="before")
    @classmethod
    def _largest(cls, values: Any) -> Any:
        """Hours or a model ask for a verdict, at real where the study has that scale, else at full; so do data of a
        study whose small scales take none. A scale that is named stays.
        """
        if not isinstance(values, dict) or "scale" in values:
            return values
        real = has_real(str(values.get("name", ""))) and any(values.get(name) for name in ("hours", *OWN))
        return {**values, "scale": "real" if real else "full"} if real or values.get("hours") else values

    @model_validator(mode="after")
    def _agree(self) -> RunStudy:
        if self.hours and self.scale == "quick":
            raise ValueError("hours: quick takes 3 minutes and gives no verdict; leave --scale out, or name full")
        return self

    def identity(self) -> dict[str, Any]:
        """Name, scale and declaration; not how many processes ran it nor where a copy went."""
        identity = super().identity()
        identity["settings"] = {k: v for k, v in identity["settings"].items() if k not in ELSEWHERE}
        identity["settings"]["name"] = Path(self.name).stem if self._is_own else self.name
        return identity

    def fingerprint(self) -> dict[str, Any]:
        """The declaration's hash, the code and what it reads: a changed rule, function or data is another step."""
        study = self._study()
        reads = ", ".join(f"{name} {version}" for name, version in versions_read(study).items())
        return {"declaration": declaration_hash(study, self.scale), "code": code_digest(study), "reads": reads}

    def answer(self) -> str:
        """The list of studies, when none is named: nothing is run then."""
        return "" if self.name else listing()

    def dry_run(self) -> tuple[Forecast, str]:
        """How many cells would run, the rule, and the time the scale is meant for."""
        study = self._study()
        sizes = study.scales[self.scale]
        tuning = len(tuning_cells(study, self.scale))
        reported = sizes.seeds * len(study.worlds) * len(study.arms)
        preview = (
            f"claim: {study.claim}\nrule: {study.rule}\n"
            f"{tuning} tuning cells and {reported} reported ones ({sizes.seeds} seeds, "
            f"{len(study.worlds)} world(s), {len(study.arms)} arms); "
            f"declaration {declaration_hash(study, self.scale)}"
        )
        seconds = 3600 * self.hours if self.hours else 60.0 * results.SCALE_MINUTES.get(self.scale, 0)
        note = "time: the hours asked for" if self.hours else "time: the scale's limit"
        return Forecast(seconds=seconds, notes=(f"{note}, on two cores",)), preview

    def run(self, work: Path, emit: Emit) -> dict[str, Any]:
        """Run the cells that are not kept yet, then write JSON, Markdown and SVG."""
        study = self._study()
        source = results.source_state()
        if self.publish is not None:
            self._refuse_to_publish_what_is_a_persons_own()
            results.require_clean(source)
        begun = time.monotonic()
        place = Place(work / SCRATCH / "study", emit, self.workers)
        result = run_study(study, self.scale, place, self.seed)
        if results.source_state() != source:
            source = {**source, "dirty": True}
            emit(Warned("the source changed while the study ran; its result cannot be published"))
        result = results.with_provenance(result | results.on_what(study, self.hours), begun, source, self.name)
        if self.hours is None and (late := results.overdue(study, result)):
            emit(Warned(late))
        results.write(result, work)
        if self.publish is not None:
            results.publish(work, self.publish)
        return {
            "study": self.name,
            "scale": self.scale,
            "verdict": results.headline(result)[1]["verdict"],
            "failures": result["failures"],
            "text": page(result),
        }

    def after(self, out: Path) -> str:
        """Publish, or look."""
        published = self.scale != "quick" and not self._is_own
        return f"python -m mickle.studies.table --publish {out}" if published else command("show", out)

    @property
    def _is_own(self) -> bool:
        return self.name.endswith(".py")

    def _refuse_to_publish_what_is_a_persons_own(self) -> None:
        for what, given in (("A page", self._is_own), ("Data", self.data), ("A budget", self.hours)):
            if given:
                raise UsageError(
                    f"{what} of your own has no place in Mickle's table", where="publish", todo="leave it out"
                )

    def _study(self) -> Study:
        if not self.name:
            raise UsageError(
                "No study is named",
                expected=f"one of: {', '.join(page_names()) or 'none is built yet'}",
                todo="mickle study NAME",
            )
        study = open_study(self.name, self.scale)
        scale_of(study, self.scale)  # or it says that there is none
        own = {name: path for name in OWN if (path := getattr(self, name)) is not None}
        return on_own(study, self.scale, own, self.hours)


def listing(known: dict[tuple[str, str], dict[str, Any]] | None = None) -> str:
    """Every study with its claim and the verdict published for it, newest declaration only."""
    known = results.shipped() if known is None else known
    lines = []
    for name in page_names():
        lines.append(f"{name:<24} {_last(known.get((name, 'full')))}")
        if (name, "real") in known:
            lines.append(f"    on a real model: {_last(known[name, 'real'])}")
        lines.append(f"    {open_study(name).claim}")
    return "\n".join(lines) or "No study is built yet."


def _last(result: dict[str, Any] | None) -> str:
    if result is None:
        return "not measured at full"
    if results.is_stale(result):
        return "stale: measured before the study was changed"
    pair = results.headline(result)
    versions = results.other_versions(result)
    return f"{verdict_words(*pair)}: {measured_effect(*pair)}" + (f" ({versions})" if versions else "")
