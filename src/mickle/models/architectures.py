"""The architectures that Mickle pretrains, and which of them a folder's settings are for.

A new one is a row of the union: its settings, as `models/decoder_settings.py` has them, and its model, which offers
what `LanguageModel` says and reads and writes its own folders (`shape_in`, `folder_name`, `save`). A folder that none
of them takes is opened by transformers (`models/dense.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mickle.config import config_variants
from mickle.errors import UsageError
from mickle.models.decoder_settings import DecoderArchitecture

Architecture = DecoderArchitecture  # with a second one: Annotated[A | B, Field(discriminator="kind")]


def architecture_of(config: dict[str, Any], where: str | Path) -> tuple[Any, Any] | None:
    """The model class and the shape that a `config.json` describes, or None where it is not one of ours.

    `where`: the file, for the UsageError that says what of it cannot be.
    """
    for variant in config_variants(Architecture):
        model_class = variant.model_class()  # type: ignore[attr-defined]
        try:
            shape = model_class.shape_in(config)
        except UsageError as error:
            raise UsageError(error.what, where=str(where), expected=error.expected, todo=error.todo) from None
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise UsageError(f"config holds values of a wrong kind: {error}", where=str(where)) from None
        if shape is not None:
            return model_class, shape
    return None
