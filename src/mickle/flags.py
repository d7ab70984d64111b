"""Command-line flags made from settings: ``--field``, ``--union kind``, ``--union.field``; as in YAML and Python.

Values go through the same validation as a settings file, so a wrong one gets the same sentence. This is argparse and
not tyro because flags may complete a partial ``--config`` file, unions read as they stand in YAML, and help stays fast.
"""

from __future__ import annotations

import argparse
import difflib
import itertools
import re
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from pydantic_core import PydanticUndefined

from mickle.config import Config, config_variants, leaves, members, settings_and_kinds
from mickle.errors import UsageError
from mickle.spellings import elsewhere

_NEGATIVE = re.compile(r"-\.?[0-9].*")
MOST_SHOWN = 5  # items of a default that is a list


class Parser(argparse.ArgumentParser):
    """argparse that raises :class:`UsageError`, with the nearest flag for a misspelt one.

    settings: those that its flags are made from, with the kinds of those that hold a choice.
    """

    settings: dict[str, list[str]] = {}

    def error(self, message: str) -> NoReturn:
        known = [flag for action in self._actions for flag in action.option_strings]
        if message.startswith("unrecognized arguments:"):
            wrong = message.split(":", 1)[1].split()[0]
            others = {flag[2:].replace("-", "_"): list[str]() for flag in known}
            bare = [flag.lstrip("-") for flag in known]
            near = difflib.get_close_matches(wrong.split("=")[0].lstrip("-"), bare, n=1)
            hint = elsewhere(wrong.split("=")[0], others | self.settings, "--")
            hint = hint or (f"did you mean --{near[0]}?" if near else "")
            message = f"unknown argument {wrong}" + (f"; {hint}" if hint else "")
        raise UsageError(message, todo=f"{self.prog} --help")


class Help(argparse.RawDescriptionHelpFormatter):
    """Help of a fixed width, so that it reads the same everywhere."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=118)


def parser(
    prog: str, cls: type[Config], description: str, example: str, positional: str = "", more: str = " [--out FOLDER]"
) -> Parser:
    """A parser with one flag for every field of ``cls``; the help ends in an example. more: the end of its usage."""
    several = bool(positional) and _item(cls.model_fields[positional].annotation) is not None
    shown = f"[{positional.upper()}{' ...' if several else ''}] " if positional else ""
    made = Parser(
        prog=prog,
        usage=f"{prog} {shown}[--setting value ...]{more}",
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=Help,
        allow_abbrev=False,
    )
    made.settings = settings_and_kinds(cls)
    if positional:
        made.add_argument(
            f"field:{positional}",
            nargs="*" if several else "?",
            metavar=positional.upper(),
            default=argparse.SUPPRESS,
            help=_describe(
                cls.model_fields[positional], cls.model_fields[positional].annotation, _default(cls, positional)
            ),
        )
    settings = made.add_argument_group("settings")
    groups: dict[str, Any] = {}
    for name, annotation, field in leaves(cls):
        if name.endswith(".kind"):
            continue
        flag = "--" + name.replace("_", "-")
        if _is_plain_config(annotation):  # its fields follow, each with a flag of its own
            groups[name] = made.add_argument_group(f"{flag[2:]}: {field.description} (as {flag}.setting)")
            continue
        group = settings
        if "." in name:
            top = name.split(".")[0]
            if top not in groups:
                groups[top] = made.add_argument_group(f"{top} (as {top}.field)")
            group = groups[top]
        truth = [kind for kind in members(annotation) if kind is not type(None)] == [bool]
        made_flag: dict[str, Any] = {"nargs": "+" if _item(annotation) else "?" if truth else None}
        if truth:
            made_flag["const"] = "true"
        group.add_argument(
            *([flag, f"{flag}.kind"] if config_variants(annotation) else [flag]),
            dest=f"field:{name}",
            default=argparse.SUPPRESS,
            metavar=_metavar(annotation),
            help=_only_for(cls, name) + _describe(field, annotation, _default(cls, name)),
            **made_flag,
        )
    return made


def _only_for(cls: type[Config], name: str) -> str:
    """The kinds of each union on the way that have a setting (dotted), where not all do."""
    marks, here = list[str](), [cls]
    for part, inner in itertools.pairwise(name.split(".")):
        fields = [variant.model_fields[part] for variant in here if part in variant.model_fields]
        variants = [kind for field in fields for kind in config_variants(field.annotation)]
        here = [kind for kind in variants if inner in kind.model_fields]
        if len(here) < len(variants):
            marks.append(", ".join(str(kind.model_fields["kind"].default) for kind in here))
    return f"[{': '.join(marks)}] " if marks else ""


def _is_plain_config(annotation: Any) -> bool:
    """Whether a field holds settings of one kind, and not a choice between kinds."""
    variants = config_variants(annotation)
    return len(variants) == 1 and "kind" not in variants[0].model_fields


def parse(made: Parser, arguments: Sequence[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """(other options, nested settings given on the command line). Underscores in flags are read as hyphens."""
    tidy = _joined([_hyphens(a) for a in arguments])
    options = made.parse_args(tidy)
    values: dict[str, Any] = {}
    for key, value in vars(options).items():
        if key.startswith("field:"):
            _put(values, key.removeprefix("field:").split("."), value)
    return options, values


def read_values(cls: type[Config], values: dict[str, Any]) -> dict[str, Any]:
    """Turn the strings of the command line into what the fields hold: text stays text, the rest is read as YAML."""
    out: dict[str, Any] = {}
    for name, value in values.items():
        field = cls.model_fields[name]
        variants = config_variants(field.annotation)
        if variants and isinstance(value, dict):
            kind = value.get("kind")
            chosen = [v for v in variants if kind is None or kind in typing.get_args(v.model_fields["kind"].annotation)]
            merged: dict[str, Any] = {}
            for variant in chosen or variants:
                known = {k: v for k, v in value.items() if k in variant.model_fields}
                merged.update(read_values(variant, known))
            out[name] = {**value, **merged}
        elif variants:
            out[name] = {"kind": value}
        else:
            out[name] = _scalar(field.annotation, value)
    return out


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """``over`` laid on ``base``, field by field; another ``kind`` starts a union afresh."""
    out = dict(base)
    for name, value in over.items():
        old = out.get(name)
        same = isinstance(old, dict) and isinstance(value, dict) and value.get("kind") in (None, old.get("kind"))
        out[name] = merge(old, value) if same and isinstance(old, dict) else value
    return out


def _put(values: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        inner = values.get(part)
        if not isinstance(inner, dict):  # "--optimizer sophia --optimizer.gamma 0.1"
            inner = {} if inner is None else {"kind": inner}
        values[part] = inner
        values = inner
    if isinstance(values.get(path[-1]), dict):  # "--optimizer.gamma 0.1 --optimizer sophia"
        values[path[-1]]["kind"] = value
    else:
        values[path[-1]] = value


def _joined(arguments: list[str]) -> list[str]:
    """A negative number stands with its flag in one argument: argparse takes -1e-3 alone for a flag."""
    found: list[str] = []
    for argument in arguments:
        if _NEGATIVE.fullmatch(argument) and found and found[-1].startswith("--") and "=" not in found[-1]:
            argument = f"{found.pop()}={argument}"
        found.append(argument)
    return found


def _hyphens(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    flag, mark, value = argument.partition("=")
    return flag.replace("_", "-") + mark + value


def _scalar(annotation: Any, value: Any) -> Any:
    if isinstance(value, list):
        return [_scalar(_item(annotation), item) for item in value]
    if config_variants(annotation):  # an item of a list, which reads its text itself
        return value
    kinds = members(annotation)
    if any(kind in (str, Path) or isinstance(kind, str) for kind in kinds) and not any(
        kind in (int, float, bool) for kind in kinds
    ):
        return value
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        return value


def _item(annotation: Any) -> Any:
    """What a list or tuple holds; None for an annotation that admits neither."""
    return next(
        (typing.get_args(kind)[0] for kind in members(annotation) if typing.get_origin(kind) in (list, tuple)), None
    )


def _metavar(annotation: Any) -> str:
    kinds = [variant.model_fields["kind"] for variant in config_variants(annotation) if "kind" in variant.model_fields]
    if kinds:
        return "{" + ",".join(str(value) for kind in kinds for value in typing.get_args(kind.annotation)) + "}"
    names = [
        repr(k) if isinstance(k, str) else getattr(k, "__name__", str(k))
        for k in members(annotation)
        if k is not type(None)
    ]
    if item := _item(annotation):
        first = members(item)[0]
        plain = {"Path": "FILE", "str": "TEXT", "float": "FLOAT", "int": "INT"}
        return str(getattr(first, "metavar", plain.get(getattr(first, "__name__", ""), "NAME")))
    text = "|".join(name.strip("'") for name in names)
    return "FILE" if text == "Path" else text.upper() if len(text) < 12 and "|" not in text else text


def _default(cls: type[Config], name: str) -> Any:
    """What a setting (dotted) is by default, in the default of what holds it; undefined where it is required."""
    top, _, rest = name.partition(".")
    field = cls.model_fields[top]
    default = field.get_default(call_default_factory=True)
    if not rest:
        return default
    kinds = [variant for variant in config_variants(field.annotation) if rest.partition(".")[0] in variant.model_fields]
    if type(default) in kinds and "." not in rest:
        return getattr(default, rest)
    return _default(kinds[0], rest)


def _describe(field: Any, annotation: Any, default: Any) -> str:
    text = (field.description or "").replace("%", "%%")
    if default is PydanticUndefined:
        return f"{text} (required)"
    if default in (None, "", [], (), {}):
        return text
    if isinstance(default, Config):
        default = getattr(default, "kind", default)
    return f"{text} (default {_short_default(default).replace('%', '%%')})"


def _short_default(value: Any) -> str:
    """A default as it is typed; of a long list the beginning."""
    if not isinstance(value, (list, tuple)):
        return str(value)
    texts = [f"'{item}'" if " " in str(item) else str(item) for item in value]
    shown = texts if len(texts) <= MOST_SHOWN + 1 else texts[:MOST_SHOWN]
    more = f" and {len(texts) - len(shown)} more" if len(shown) < len(texts) else ""
    return " ".join(shown) + more
