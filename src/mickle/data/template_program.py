"""Renders chat templates, run as a program: Jinja's immutable sandbox in a process whose time and memory are bounded.

A template is a program that came with a model. Jinja's sandbox keeps it from Python's internals; that it ends, and
does not fill the memory, the kernel sees to: each rendering has a limit on processor time, at which the process is
ended, and one on memory. What it prints is bounded here. One line of JSON asks for renderings of one template (the
arguments of :func:`answers`) and one gives them: for each ``[kind, text]``, where kind is "text", or what went wrong
(``template_sandbox.py`` says it to the person).

What templates may expect is what ``transformers`` gives them: trimmed blocks, ``break`` and ``continue``,
``raise_exception``, ``strftime_now``, ``tojson`` without escapes for HTML, ``{% generation %}``.

Little besides Jinja is imported, so that the process starts quickly.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError, TemplateRuntimeError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mickle.data.template_sandbox import CLOSES, OPENS
from mickle.untrusted.child import MEMORY_BYTES, allow, serve

READ_SECONDS = 0.2  # of processor time to read a template, and as much again for each 10,000 characters of it
SECONDS = 0.1  # of processor time for a rendering, and as much again for each megabyte of text in it
LARGEST = 1 << 20  # characters of output, four times the conversation's own text aside
LONGEST_FORMAT = 200  # characters of a date's format
# What a template that asks is told: the same command gives the same tokens on any day.
TODAY = datetime(2026, 1, 1)


class _Generation(Extension):
    """``{% generation %} ... {% endgeneration %}``: the text in it is what the assistant writes."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Callable[[], str]) -> str:
        text = caller()
        return f"{OPENS}{text}{CLOSES}" if self.environment.marking else text  # type: ignore[attr-defined]


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja as chat templates know it."""

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # constants are worked out within the limits of a rendering
            extensions=[_Generation, loopcontrols],
            cache_size=0,
        )
        self.marking = False
        self.filters["tojson"] = _to_json
        self.globals |= {"raise_exception": _refuse, "strftime_now": _today}
        del self.globals["lipsum"]  # text that is nobody's


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON without escapes for HTML, as templates expect it."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: Any) -> None:
    raise TemplateError(str(message)[:300])


def _today(form: Any) -> str:
    if len(str(form)) > LONGEST_FORMAT:
        raise SecurityError("a date's format is too long")
    return TODAY.strftime(str(form))


ENVIRONMENT = _Environment()


@lru_cache(16)
def _compiled(source: str) -> Template:
    allow(READ_SECONDS * (1 + len(source) / 1e4), MEMORY_BYTES)
    return ENVIRONMENT.from_string(source)


def answers(
    source: str, variables: dict[str, Any], chats: list[list[dict[str, str]]], asked: list[tuple[int, int, bool, bool]]
) -> list[tuple[str, str]]:
    """What there is to say of each rendering: ("text", the text), or the kind of what went wrong and words about it.

    asked: the place of the chat among ``chats``, how many of its turns are shown, whether the generation prompt is
    added, whether generation blocks are marked.
    """
    found = []
    for chat, count, prompt, marking in asked:
        values = variables | {"messages": chats[chat][:count], "add_generation_prompt": prompt}
        found.append(_answer(source, values, marking))
    return found


def _answer(source: str, values: dict[str, Any], marking: bool) -> tuple[str, str]:
    try:
        return "text", rendered(source, values, marking)
    except TemplateSyntaxError as error:
        return f"line {error.lineno}", str(error.message)
    except SecurityError as error:
        return "forbidden", str(error)
    except TemplateRuntimeError as error:
        return "failed", str(error.message)
    except TemplateError as error:
        return "refused", str(error.message)
    except OverflowError:
        return "stopped", "it makes more than 1 MB of text"
    except RecursionError:
        return "stopped", "it goes too deep"
    except MemoryError:
        return "stopped", "it takes too much memory"
    except Exception as error:  # a template can fail in any way that Python can
        return "failed", str(error)


def rendered(source: str, values: dict[str, Any], marking: bool) -> str:
    """The template's text for plain ``values``; whatever goes wrong is raised."""
    template = _compiled(source)
    own = sum(len(turn["content"]) for turn in values["messages"])  # what people and assistant wrote
    allow(SECONDS * (1 + own / 1e6), MEMORY_BYTES + 64 * own)
    ENVIRONMENT.marking = marking
    pieces, left = [], LARGEST + 4 * own
    for piece in template.generate(**values):
        pieces.append(piece)
        left -= len(piece)
        if left < 0:
            raise OverflowError
    return "".join(pieces)


if __name__ == "__main__":
    first = {"source": "{{ 1 }}", "variables": {}, "chats": [[]], "asked": [[0, 0, False, False]]}
    serve(lambda question: answers(**question), first)
