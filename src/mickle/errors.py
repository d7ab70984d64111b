"""Errors a person meets: what happened, where, what was expected, what to do. At most four lines."""

import json
import re

# What a terminal obeys or that hides text: control characters, line separators, marks that turn the direction of
# writing; and halves of surrogate pairs, which no terminal takes.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """``text`` as it may go to a terminal, whoever wrote it: lines and tabs stay, what terminals obey is spelt out."""
    return _OBEYED.sub(lambda found: ascii(found.group())[1:-1], text)


def shortened(text: str, most: int) -> str:
    """``text``, or of a longer one the beginning and three dots."""
    return text if len(text) <= most else text[: most - 3] + "..."


def first_line(error: BaseException, most: int = 200) -> str:
    """What a library's error says, cut: its first line, or, where it says nothing, its type."""
    return str(error).strip().split("\n")[0][:most] or type(error).__name__


class MickleError(Exception):
    """A failure that can be explained to the person at the keyboard.

    ``what`` is one sentence; ``where`` names file, line, field or record; ``expected`` what would have been right;
    ``todo`` the one thing to do next. ``exit_code`` is what the command line ends with.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", expected: str = "", todo: str = "") -> None:
        super().__init__(what)
        self.what, self.where, self.expected, self.todo = what, where, expected, todo

    def __str__(self) -> str:
        parts = [self.what]
        if self.where:
            parts.append(f"  where: {self.where}")
        if self.expected:
            parts.append(f"  expected: {self.expected}")
        if self.todo:
            parts.append(f"  to do: {self.todo}")
        return printable("\n".join(" ".join(part.splitlines()) for part in parts))


class UsageError(MickleError):
    """Wrong settings, wrong files, wrong data."""

    exit_code = 2


class ResourceError(MickleError):
    """Not enough memory, disk or time."""

    exit_code = 3


class LockedError(MickleError):
    """Another process is at work on the same folder."""

    exit_code = 4


class NumericError(MickleError):
    """A number that is not finite, or a loss that jumped."""

    exit_code = 5


class SpoiledError(NumericError, UsageError):
    """A number that is not finite in what was given: what was begun on it is of no use."""


class ToldError(MickleError):
    """How the first of several processes ended, in another one: said and shown there already."""

    def __init__(self, what: str, *, exit_code: int) -> None:
        super().__init__(what)
        self.exit_code = exit_code


def bug(error: Exception) -> MickleError:
    """What only a fault of ours can have raised."""
    what = f"this is a bug in Mickle: {type(error).__name__}: {first_line(error)}"
    return MickleError(what, todo="run again with --debug and report what it prints")


def written(error: Exception) -> str:
    """An error as a line of JSON, for another process to raise; one of another kind as the fault of ours that it is."""
    error = error if isinstance(error, MickleError) else bug(error)
    return json.dumps([type(error).__name__, error.what, error.where, error.expected, error.todo])


def read(line: str | bytes) -> MickleError:
    """The error of a line from :func:`written`."""
    name, what, where, expected, todo = json.loads(line)
    kinds = {kind.__name__: kind for kind in (UsageError, ResourceError, LockedError, NumericError)}
    return kinds.get(name, MickleError)(what, where=where, expected=expected, todo=todo)
