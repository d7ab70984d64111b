"""The settings that say which files a tuning reads: several with weights, and what their columns are called."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from mickle.config import Config, Input

_WEIGHTED = re.compile(r"(.+):([0-9]+(?:\.[0-9]+)?)")


def _as_list(value: Any) -> Any:
    return value if isinstance(value, (list, tuple)) else [value]


def _as_pairs(value: Any) -> Any:
    """``question=user,answer=assistant`` as a mapping."""
    if not isinstance(value, str):
        return value
    pairs = [pair.partition("=") for pair in value.split(",")]
    if not all(own.strip() and mark and ours.strip() for own, mark, ours in pairs):
        raise ValueError("is no list of pairs such as question=user,answer=assistant")
    return {own.strip(): ours.strip() for own, _, ours in pairs}


def _known(columns: dict[str, str]) -> dict[str, str]:
    from mickle.data.conversation_forms import NAMES

    for ours in columns.values():
        if ours not in NAMES or list(columns.values()).count(ours) > 1:
            what = f"two columns are {ours!r}" if ours in NAMES else f"{ours!r} is no name of a column here"
            raise ValueError(f"{what}; known: {', '.join(NAMES)}")
    return columns


Columns = Annotated[dict[str, str], BeforeValidator(_as_pairs), AfterValidator(_known)]


class DataFile(Config):
    """A file or folder of examples, and how often an epoch reads each: 2 is twice, 0.5 half of them, always the same.

    As a text it is ``PATH`` or ``PATH:WEIGHT``.
    """

    metavar: ClassVar[str] = "FILE[:WEIGHT]"

    path: Input = Field(description="file or folder of examples")
    weight: float = Field(1.0, gt=0, le=1000, description="how often an epoch reads each example")
    columns: Columns = Field(default_factory=dict, description="what its columns are, where not as in other files")

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if not isinstance(value, (str, Path)):
            return value
        found = _WEIGHTED.fullmatch(str(value))
        if found is None or os.path.exists(value):
            return {"path": value}
        return {"path": found[1], "weight": float(found[2])}


DataFiles = Annotated[list[DataFile], BeforeValidator(_as_list), Field(min_length=1)]
