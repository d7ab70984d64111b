"""Two toy verbs for the tests of steps, recipes and the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from mickle import storage
from mickle.config import Config, Input
from mickle.errors import ResourceError, UsageError
from mickle.events import Emit, Progressed, Started
from mickle.machine import Forecast
from mickle.step import Step


class Plain(Config):
    kind: Literal["plain"] = "plain"
    rate: float = Field(0.1, gt=0, description="a rate")


class Fancy(Config):
    kind: Literal["fancy"] = "fancy"
    gamma: float = Field(0.5, gt=0, le=1, description="how fancy")
    echo: int = Field(0, description="does nothing with a gamma of 1")

    def idle(self) -> set[str]:
        return {"echo"} if self.gamma == 1 else set()


class Write(Step):
    """Write some words."""

    kind: ClassVar[str] = "words"
    example: ClassVar[str] = "mickle write --words a b"
    resumable_changes: ClassVar[frozenset[str]] = frozenset({"note"})
    calls: ClassVar[list[str]] = []

    words: list[str] = Field(["many", "a", "little"], description="what to write")
    method: Plain | Fancy = Field(Plain(), discriminator="kind", description="how to write")
    learning_rate: float = Field(1e-3, gt=0, description="speed")
    note: str = Field("", description="may change between tries")
    fail: bool = Field(False, description="stop half-way")
    length: int | None = Field(None, description="letters (default: all)")

    def dry_run(self) -> tuple[Forecast, str]:
        return Forecast(derived={"length": sum(map(len, self.words)), "method.gamma": 0.5}), ""

    def run(self, work: Path, emit: Emit) -> dict[str, Any]:
        type(self).calls.append("write")
        emit(Started("writing", len(self.words), "words"))
        half = work / ".scratch" / "half"
        resumed = half.exists()
        half.write_text("half")
        if self.fail and not resumed:
            raise ResourceError("stopped half-way")
        if "bad" in self.words:
            raise UsageError("a bad word", where="words")
        storage.write_text(work / "words.txt", " ".join(self.words))
        (work / "letters").mkdir(exist_ok=True)
        storage.save_array(work / "letters" / "count.npy", np.array([len(word) for word in self.words]))
        emit(Progressed(len(self.words)))
        return {"count": len(self.words), "resumed": resumed, "text": "written"}


class Count(Step):
    """Count the letters of a folder of words."""

    kind: ClassVar[str] = "count"
    example: ClassVar[str] = "mickle count --data words"
    positional: ClassVar[str] = "data"

    data: Input = Field(description="a folder of words")

    def run(self, work: Path, emit: Emit) -> dict[str, Any]:
        Write.calls.append("count")
        letters = len((self.data / "words.txt").read_text())
        (work / "count.txt").write_text(str(letters))
        return {"letters": letters}
