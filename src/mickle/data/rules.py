"""The stages that pages go through, and their settings: those of RefinedWeb, in the paper's order.

"The RefinedWeb Dataset for Falcon LLM: Outperforming Curated Corpora with Web Data, and Web Data Only" (arXiv
2306.01116), section 3 and appendix G. What the stages do is in ``refine.py`` and ``comparing.py``.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mickle.config import Config
from mickle.data.decontamination import Decontamination
from mickle.data.extraction import Extraction
from mickle.data.lines import Lines
from mickle.data.pages import Skipped
from mickle.data.quality import Quality
from mickle.data.records import Page, Removed
from mickle.data.repeated_text import RepeatedText
from mickle.data.repetitions import Repetitions
from mickle.data.urls import Urls

Outcome = Page | Removed | Skipped

StageName = Literal[
    "urls", "length", "language", "repetitions", "quality", "lines", "decontamination",
    "exact_duplicates", "near_duplicates", "repeated_text", "url_duplicates",
]  # fmt: skip
STAGES: tuple[StageName, ...] = StageName.__args__  # type: ignore[attr-defined]
WEB: tuple[StageName, ...] = (
    "urls", "language", "repetitions", "quality", "lines", "decontamination",
    "near_duplicates", "repeated_text", "url_duplicates",
)  # fmt: skip
COMPARING: tuple[StageName, ...] = ("exact_duplicates", "near_duplicates", "repeated_text", "url_duplicates")
PLAIN: tuple[StageName, ...] = ("length", "language", "decontamination", "exact_duplicates")


class NearDuplicates(Config):
    """Which pages are near duplicates."""

    shingle: int = Field(5, ge=1, le=100, description="words to a shingle; texts are sets of these")
    bands: int = Field(
        450,
        ge=1,
        le=5000,
        description="groups of minima; pages that agree in one are near duplicates: similarity s is found with "
        "probability 1 - (1 - s^rows)^bands, 63% at the threshold (1/bands)^(1/rows). 450 x 20 finds 76% at 0.75 and "
        "99% at 0.8; 14 x 8 (FineWeb) 77% and 92%, and more of what is less alike",
    )
    rows: int = Field(20, ge=1, le=200, description="minima to a band; more rows find only what is more alike")
    verify: float = Field(
        0.0,
        ge=0,
        le=1,
        description="least true similarity of the pages that a band brings together; 0, as in the paper, trusts the "
        "bands",
    )

    @property
    def threshold(self) -> float:
        """The similarity that is found with probability 0.63: (1/bands)^(1/rows)."""
        return float((1 / self.bands) ** (1 / self.rows))


class Rules(Config):
    """Which stages pages go through, and the thresholds of each."""

    stages: list[StageName] | None = Field(
        None,
        description="stages to run, whatever their order here; for a web crawl all of RefinedWeb, for other sources"
        f" {', '.join(PLAIN)}. All: {', '.join(STAGES)}",
    )
    extraction: Extraction = Field(Extraction(), description="how the main text of a page is taken from its HTML")
    urls: Urls = Field(Urls(), description="addresses that are refused unread")
    minimum_characters: int = Field(
        200,
        ge=1,
        description="stage length: shorter texts are removed; a letter of Han counts as 3, of Kana and Hangul as 2",
    )
    languages: list[str] = Field(["en"], description="ISO 639-1 codes to keep; none given keeps all")
    language_threshold: float = Field(
        0.65, ge=0, le=1, description="least probability of the languages to keep, together"
    )
    repetitions: Repetitions = Field(Repetitions(), description="lines, paragraphs and n-grams that recur")
    quality: Quality = Field(Quality(), description="what running text looks like")
    lines: Lines = Field(Lines(), description="lines that are no text: counters, menus, upper case")
    decontamination: Decontamination = Field(
        Decontamination(), description="evaluation sets that no page may share n-grams with"
    )
    near_duplicates: NearDuplicates = Field(NearDuplicates(), description="near-duplicate pages, found by MinHash")
    repeated_text: RepeatedText = Field(
        RepeatedText(), description="text that stands in several places word for word (exact substrings)"
    )
    largest_page: int = Field(10 << 20, ge=1024, description="largest page in bytes; larger ones are removed unread")
    page_seconds: float = Field(20.0, gt=0, description="CPU time one page may take to extract")

    def runs(self, stage: StageName) -> bool:
        """Whether ``stage`` is among those chosen."""
        return stage in self.chosen()

    def chosen(self) -> tuple[StageName, ...]:
        """The stages that run, in the order in which they run; decontamination only where there are sets."""
        named = self.usual() if self.stages is None else self.stages
        idle = () if self.decontamination.against else ("decontamination",)
        return tuple(stage for stage in STAGES if stage in named and stage not in idle)

    def idle(self) -> set[str]:
        stages = {"minimum_characters": "length", "languages": "language", "language_threshold": "language"}
        stages |= {stage: stage for stage in STAGES if stage in type(self).model_fields}
        return {name for name, stage in stages.items() if stage not in self.chosen()}

    def usual(self) -> tuple[StageName, ...]:
        """The stages where none are named."""
        return WEB


def name_of(stage: str) -> str:
    """A stage's name as it stands beside what it removed."""
    return stage.replace("_", " ")
