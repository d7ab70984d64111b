"""The architectures that Mickle pretrains, and which of them a folder's settings are for.

A new one is a row of the union: its settings, as `models/decoder_settings.py` has them, and its model, an `OwnModel`,
whose `folders` reads and writes its folders. A folder that none of them takes is opened by transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mickle.config import config_variants
from mickle.errors import UsageError
from mickle.models.decoder_settings import DecoderArchitecture

if TYPE_CHECKING:
    from mickle.models.folder_check import ModelFiles
    from mickle.models.language import Description

Architecture = DecoderArchitecture  # with a second one: Annotated[A | B, Field(discriminator="kind")]


def architecture_of(config: dict[str, Any], folder: Path) -> tuple[Any, Any] | None:
    """The model class and the shape that the `config.json` of a folder describes, or None where it is not one of ours.

    UsageError for a shape that cannot be.
    """
    where = str(folder / "config.json")
    for model_class in _model_classes():
        try:
            shape = model_class.folders.from_settings(config)
        except UsageError as error:
            raise UsageError(error.what, where=where, expected=error.expected, todo=error.todo) from None
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise UsageError(f"config holds values of a wrong kind: {error}", where=where) from None
        if shape is not None:
            return model_class, shape
    return None


def shape_from(values: Mapping[str, Any]) -> Any:
    """The shape that `dataclasses.asdict` made `values` of: of the architecture that has just these fields."""
    classes = [model_class.shape_class for model_class in _model_classes()]
    return next(c for c in classes if {field.name for field in fields(c)} == values.keys())(**values)


def description_of(shape: Any) -> Description:
    """What there is to know of a model of this shape before it is built."""
    return next(one for one in _model_classes() if one.shape_class is type(shape)).folders.description(shape)


def _model_classes() -> list[Any]:
    return [variant.model_class() for variant in config_variants(Architecture)]  # type: ignore[attr-defined]


def checked_frame(files: ModelFiles) -> Any:
    """The model that a checked folder is for, without memory for its weights; None where it is not one of ours.

    Every weight the model needs must be in the files with its shape, and nothing else: UsageError before memory is
    taken.
    """
    import torch

    where = str(files.folder)
    found = architecture_of(files.config, files.folder)
    if found is None:
        return None
    model_class, shape = found
    if shape.parameters() > 2 * files.elements:
        raise UsageError(
            f"config describes {shape.parameters():,} parameters, the weight files hold {files.elements:,}",
            where=where,
        )
    shape.refuse_fewer_tensors(len(files.tensors), where)  # before that many modules are made
    with torch.device("meta"):
        frame = model_class(shape)
    wanted = {frame.folder_name(name): tuple(weight.shape) for name, weight in frame.state_dict().items()}
    extra = files.tensors.keys() - wanted.keys() - model_class.folders.ignored_tensors(shape)
    missing = sorted(wanted.keys() - files.tensors.keys())
    if missing or extra:
        name = missing[0] if missing else sorted(extra)[0]
        headless = "lm_head.weight" in missing
        raise UsageError(
            f"weights {'lack' if missing else 'have an unknown'} tensor {name[:100]!r}"
            f"{', the head that predicts tokens' if headless else ''}",
            where=where,
            todo="take the folder of the whole language model" if headless else "",
        )
    for name, size in wanted.items():
        entry = files.tensors[name][1]
        if entry.shape != size or entry.dtype not in ("F32", "F16", "BF16", "F64"):
            raise UsageError(
                f"tensor {name!r} is {entry.dtype} of shape {list(entry.shape)}",
                where=where,
                expected=f"floats of {list(size)}",
            )
    return frame
