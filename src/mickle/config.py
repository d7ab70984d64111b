"""Strict, typed settings: one frozen model per verb, read from YAML with errors that name the line.

The same model validates a recipe's step, makes the command's flags and its help, and is written beside the output.
Choices between methods are tagged unions on a literal field ``kind``.
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from mickle.errors import UsageError, shortened
from mickle.spellings import elsewhere
from mickle.yaml_files import Lines, as_yaml, read_yaml

_NUMBER = re.compile(r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?)([kKmMbBtT]?)")
_THOUSANDS = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}


class IsInput:
    """Marks a field as a file or folder whose content the result depends on."""


Input = Annotated[Path, IsInput()]


class Config(BaseModel):
    """Settings that cannot change once made and refuse what they do not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: Any) -> Any:
        """Refuse unknown fields; a union's settings without ``kind`` are those of its default, a text alone is a kind;
        a number may be written as people write it.
        """
        if not isinstance(values, Mapping):
            return values
        for name in values:
            if name not in cls.model_fields:
                raise _unknown_field(cls, str(name))
        return {name: _meant(cls.model_fields[name], value) for name, value in values.items()}

    def idle(self) -> set[str]:
        """Own fields that do nothing, as the others are."""
        return set()


def _meant(field: Any, value: Any) -> Any:
    kinds = [variant for variant in config_variants(field.annotation) if "kind" in variant.model_fields]
    if isinstance(value, str):
        return {"kind": value} if kinds else _number(members(field.annotation), value)
    if not isinstance(value, Mapping) or "kind" in value or field.is_required():
        return value
    kind = getattr(field.get_default(call_default_factory=True), "kind", None)
    return value if kind is None else {"kind": kind, **value}


def _number(kinds: list[Any], text: str) -> Any:
    """1e6, 7B or 20k as a number, where the field holds one and no text; else the text."""
    found = _NUMBER.fullmatch(text) if {int, float} & set(kinds) and not {str, Path} & set(kinds) else None
    if not found:
        return text
    value = float(found[1]) * _THOUSANDS.get((found[2] or "").lower(), 1.0)
    return int(value) if int in kinds and value.is_integer() else value


def _unknown_field(cls: type[Config], name: str) -> PydanticCustomError:
    known = list(cls.model_fields)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean '{near[0]}'?" if near else "known fields: " + ", ".join(known)
    hint = elsewhere(name, settings_and_kinds(cls)) or hint
    # Braces would be read as placeholders in the message template.
    safe = (name.replace("{", "(").replace("}", ")"))[:80]
    return PydanticCustomError("unknown_field", f"unknown field '{safe}'; {hint}", {"field": name})


C = TypeVar("C", bound=Config)


def load(cls: type[C], path: Path | str) -> C:
    """Read ``cls`` from a YAML file. Errors are :class:`UsageError` naming file, line and field."""
    values, lines = read_yaml(path)
    return validate(cls, values, where=str(path), lines=lines)


def validate(cls: type[C], values: Any, *, where: str = "", lines: Lines | None = None) -> C:
    """Build ``cls`` from plain values; every problem found is reported, each with its place."""
    if not isinstance(values, Mapping):
        raise UsageError(f"settings must be a mapping of fields to values, got {type(values).__name__}", where=where)
    try:
        return cls.model_validate(dict(values))
    except ValidationError as error:
        problems = [_problem(cls, some, where, lines) for some in _by_place(cls, error)]
    shown = problems[0][1]
    if len(problems) > 1:
        shown += f" (and {len(problems) - 1} more: " + "; ".join(text for _, text in problems[1:3]) + ")"
    raise UsageError(shown, where=problems[0][0], todo="correct the field; --help lists all of them")


def _by_place(cls: type[Config], error: ValidationError) -> list[list[Any]]:
    """Pydantic's errors, those together that say what one field may be instead."""
    found: dict[Any, list[Any]] = {}
    for number, item in enumerate(error.errors(include_url=False)):
        place = _without_tags(cls, item["loc"])
        found.setdefault(number if item["type"] == "unknown_field" else place, []).append(item)
    return list(found.values())


def _problem(cls: type[Config], items: list[Any], where: str, lines: Lines | None) -> tuple[str, str]:
    """Pydantic's errors of one field as (place, sentence)."""
    item = items[0]
    location = _without_tags(cls, item["loc"])
    if item["type"] == "unknown_field":
        location += (item["ctx"]["field"],)
    name = ".".join(map(str, location))
    message = str(item["msg"])
    if item["type"] == "missing":
        message = "this field is required"
    elif item["type"] == "union_tag_invalid":
        message = _unknown_kind(str(item["ctx"]["tag"]), item["ctx"]["expected_tags"].replace("'", "").split(", "))
    elif item["type"] not in ("unknown_field", "value_error"):
        message = " or ".join(dict.fromkeys(str(one["msg"]) for one in items)).replace(" or Input should be", " or")
        message = f"{message[0].lower()}{message[1:]}, got {shortened(repr(item.get('input')), 60)}"
    message = message.removeprefix("Value error, ")
    whole = not name or (item["type"] == "unknown_field" and len(location) == 1)
    text = message if whole else f"{name}: {message}"
    line = lines.find(location) if lines else None
    return (f"{where}:{line}" if line else where), text


def _unknown_kind(given: str, known: list[str]) -> str:
    near = difflib.get_close_matches(given, known, n=1)
    meant = f"; did you mean '{near[0]}'?" if near else ""
    return f"there is no kind '{shortened(given, 60)}'{meant} (known: {', '.join(known)})"


def _without_tags(cls: type[Config], location: tuple[Any, ...]) -> tuple[Any, ...]:
    """A place in the settings as a person writes it: Pydantic puts the tag of a union into it as well."""
    written: list[Any] = []
    here: list[type[Config]] = [cls]
    for part in location:
        chosen = [variant for variant in here if variant.model_fields.get("kind", _NO_KIND).default == part]
        if written and chosen:
            here = chosen
            continue
        written.append(part)
        if isinstance(part, str) and not here:
            written.pop()  # one of the types that a field may have
        fields = [variant.model_fields[part] for variant in here if part in variant.model_fields]
        here = [variant for field in fields for variant in config_variants(field.annotation)]
    return tuple(written)


_NO_KIND = FieldInfo()


def to_yaml(config: Config) -> str:
    """The resolved settings as YAML that :func:`load` reads back."""
    return as_yaml(config.model_dump(mode="json"))


def applying(config: Config) -> dict[str, Any]:
    """The settings that are set and do something, as plain values; those inside each other too."""
    given = config.model_dump(mode="json")
    values = {name: getattr(config, name) for name in given if name not in config.idle()}
    return {
        name: applying(value) if isinstance(value, Config) else given[name]
        for name, value in values.items()
        if value not in (None, "", (), [], {})
    }


def without_effect(config: Config, prefix: str = "") -> Iterator[str]:
    """Settings (dotted) that were given another value than their default, and do nothing as the others are."""
    for name in type(config).model_fields:
        value, idle = getattr(config, name), name in config.idle()
        if idle and value != type(config).model_fields[name].get_default(call_default_factory=True):
            yield prefix + name
        elif isinstance(value, Config) and not idle:
            yield from without_effect(value, f"{prefix}{name}.")


def leaves(cls: type[Config], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every settable field: (dotted name, annotation, FieldInfo). Unions contribute each variant's fields."""
    for name, field in cls.model_fields.items():
        variants = config_variants(field.annotation)
        yield prefix + name, field.annotation, field
        seen: set[str] = set()
        for variant in variants:
            for leaf in leaves(variant, f"{prefix}{name}."):
                if leaf[0] not in seen:
                    seen.add(leaf[0])
                    yield leaf


def settings_and_kinds(cls: type[Config]) -> dict[str, list[str]]:
    """Every settable field (dotted), and the kinds of those that hold a choice."""
    found: dict[str, list[str]] = {}
    for name, annotation, _ in leaves(cls):
        variants = [variant for variant in config_variants(annotation) if "kind" in variant.model_fields]
        found[name] = [kind for v in variants for kind in typing.get_args(v.model_fields["kind"].annotation)]
    return found


def config_variants(annotation: Any) -> list[type[Config]]:
    """The Config classes an annotation can hold: one for a nested config, several for a tagged union, else none."""
    return [kind for kind in members(annotation) if isinstance(kind, type) and issubclass(kind, Config)]


def members(annotation: Any) -> list[Any]:
    """The plain types (and literal values) that an annotation admits."""
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return members(typing.get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [kind for part in typing.get_args(annotation) for kind in members(part)]
    if origin is Literal:
        return list(typing.get_args(annotation))
    return [annotation]


def inputs(config: Config, prefix: str = "") -> Iterator[tuple[str, Path]]:
    """The files and folders a config names as inputs: (dotted field, path)."""
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, Config):
            yield from inputs(value, f"{prefix}{name}.")
        elif isinstance(value, (list, tuple)) and value and all(isinstance(item, Config) for item in value):
            for i, item in enumerate(value):
                yield from inputs(item, f"{prefix}{name}.{i}.")
        elif not any(map(_holds_input, (field.annotation, *field.metadata))):
            continue
        elif isinstance(value, Path):
            yield prefix + name, value
        elif isinstance(value, (list, tuple)):
            yield from ((f"{prefix}{name}.{i}", item) for i, item in enumerate(value) if isinstance(item, Path))


def _holds_input(part: Any) -> bool:
    """Whether an annotation, or a mark on it, says that a field holds an input."""
    return isinstance(part, IsInput) or any(map(_holds_input, typing.get_args(part)))
