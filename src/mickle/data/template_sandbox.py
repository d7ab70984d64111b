"""Chat templates run here: Jinja in its immutable sandbox, with every loop, call and string counted against a budget.

A template is a program that came with a model. Jinja's sandbox keeps it from Python's internals; it does not keep
it from running for ever or from filling the memory. Nothing can stop a thread from outside, so the template itself
asks:

* every round of a loop and every call goes through :meth:`_Sandbox.call`, which looks at the clock (the thread's
  processor time, so that a busy machine refuses nothing);
* whatever can grow is measured first: operands, arguments of calls and filters, lists as they are written down, what is
  joined and what is printed; operators that make much out of little (``*``, ``**``, ``%`` on text) are refused or
  bounded;
* filters are those that templates use, named in ``FILTERS``; methods of text that pad, format or translate are refused.

What templates may expect is what ``transformers`` gives them: trimmed blocks, ``break`` and ``continue``,
``raise_exception``, ``strftime_now``, ``tojson`` without escapes for HTML, ``{% generation %}``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError, TemplateRuntimeError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from mickle.data.template_limits import Budget, Space, TooMuch
from mickle.errors import UsageError

GREATEST = 1 << 53  # of an integer that a template calculates
LONGEST_FORMAT = 200  # characters of a date's format
# What a template that asks is told: the same command gives the same tokens on any day.
TODAY = datetime(2026, 1, 1)
FILTERS = (
    *("abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "groupby"),
    *("int", "items", "join", "last", "length", "list", "lower", "map", "max", "min", "reject"),
    *("rejectattr", "replace", "reverse", "round", "safe", "select", "selectattr", "sort", "string", "title", "trim"),
    *("unique", "upper"),
)  # fmt: skip
REFUSED_METHODS = {
    *("center", "ljust", "rjust", "zfill", "expandtabs", "format", "format_map", "translate", "maketrans", "encode"),
    *("from_bytes", "to_bytes"),
}  # fmt: skip
_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
OPENS, CLOSES = (
    "\ufdd0",
    "\ufdd1",
)  # noncharacters that stand around {% generation %} blocks where they are looked for


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


class _Counted(NodeTransformer):
    """Puts the questions into a template's tree: a call in every loop, a measure around what can grow."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_ask("tick", [], node.lineno), lineno=node.lineno))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _ask("joined", node.nodes, node.lineno)

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return _ask("measured", [node], node.lineno)

    visit_Dict = visit_List

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _ask("measured", [node], node.lineno) if node.ctx == "load" else node


def _ask(name: str, values: list[Any], line: int) -> nodes.Call:
    asked = nodes.EnvironmentAttribute(name, lineno=line)
    return nodes.Call(asked, values, [], None, None, lineno=line)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja as chat templates know it, where everything that could last or grow is asked for."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "**", "%"})

    def __init__(self) -> None:
        self.budget, self.marking = Budget(), False
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # constants are worked out when it runs, within the budget
            extensions=[_Generation, loopcontrols],
            finalize=self.measured,
            cache_size=0,
        )
        kept = {name: self.filters[name] for name in FILTERS}
        self.filters = {name: _asking(self, function) for name, function in kept.items()}
        self.filters |= {"tojson": self._to_json, "indent": self._indent}
        self.filters["replace"] = self._replace
        self.filters["join"] = _asking(self, self.filters["join"], self._fits_joined)
        self.tests = {name: _asking(self, function) for name, function in self.tests.items()}
        self.globals = {
            "range": self.globals["range"],  # the sandbox's own: at most 100,000
            "dict": _dictionary,
            "namespace": Space,
            "raise_exception": _refuse,
            "strftime_now": _today,
        }

    def tick(self) -> None:
        """Called in every round of a loop; :meth:`call` has looked at the clock."""

    def measured(self, value: Any) -> Any:
        """The value, if it is not too large."""
        self.budget.measure(value)
        return value

    def joined(self, *values: Any) -> str:
        """What ``~`` does."""
        self.budget.measure(values)
        return "".join(map(str, values))

    def concat(self, parts: Any) -> str:
        """Joins what a macro, a block or ``set`` wrote."""
        parts = list(parts)
        self.budget.check_size(sum(map(len, parts)))
        return "".join(parts)

    def call(self, context: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Every call of a template."""
        self.budget.check_time()
        self.budget.measure(args, kwargs)
        name = getattr(function, "__name__", "")
        owner = getattr(function, "__self__", None)
        if isinstance(owner, str):
            if name == "replace" and len(args) > 1:
                self._fits_replaced(owner, args[0], args[1])
            elif name == "join" and args:
                self._fits_joined(args[0], owner)
        return super().call(context, function, *args, **kwargs)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """No internals, and no method that makes much text out of little."""
        if attr in REFUSED_METHODS and not isinstance(obj, (dict, Namespace)):
            return False
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:
        """``str.format`` is not given at all."""
        return

    def getitem(self, obj: Any, argument: Any) -> Any:
        """``obj[argument]``."""
        self.budget.measure(argument)
        return super().getitem(obj, argument)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """An operator between two values, bounded before it is worked out."""
        size = self.budget.measure(left, right)
        numbers = isinstance(left, (int, float)) and isinstance(right, (int, float))
        if operator == "*" and not numbers:
            self.budget.check_size(size * max([1, *(v for v in (left, right) if isinstance(v, int))]))
        elif operator == "%" and not numbers:
            raise SecurityError("text is not formatted with %")
        elif operator == "**" and not (numbers and abs(left) < 1 << 16 and abs(right) < 4):
            raise SecurityError("powers are not worked out")
        found = super().call_binop(context, operator, left, right)
        if isinstance(found, int) and abs(found) > GREATEST:
            raise SecurityError("a number is too great")
        return found

    def _replace(self, text: Any, old: Any, new: Any, count: Any = -1) -> str:
        text, old, new = str(self.measured(text)), str(self.measured(old)), str(self.measured(new))
        self._fits_replaced(text, old, new)
        return text.replace(old, new, -1 if count is None else count)

    def _fits_replaced(self, text: str, old: Any, new: Any) -> None:
        if isinstance(old, str) and isinstance(new, str):
            self.budget.check_size(len(text) + text.count(old) * len(new))

    def _fits_joined(self, values: Any, glue: Any = "", *_: Any, **__: Any) -> None:
        if isinstance(values, (list, tuple, str, dict)):
            self.budget.check_size(len(values) * len(str(glue)))
        elif glue:
            raise SecurityError("only lists are joined with something between")

    def _to_json(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: Any = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        """JSON without escapes for HTML, as templates expect it."""
        self.budget.check_size(self.budget.measure(value) * (1 + _width(indent)))
        if any(len(str(part)) > 16 for part in separators or ()):
            raise SecurityError("separators are too long")
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def _indent(self, text: Any, width: Any = 4, first: bool = False, blank: bool = False) -> str:
        text = str(self.measured(text))
        self.budget.check_size(len(text) + (text.count("\n") + 1) * _width(width))
        space = width if isinstance(width, str) else " " * int(width)
        head, *rest = text.splitlines() or [""]
        lines = [space + line if line or blank else line for line in rest]
        return "\n".join([space + head if first else head, *lines])


def _width(value: Any) -> int:
    width = len(value) if isinstance(value, str) else int(value or 0)
    if width > 64:
        raise SecurityError("an indentation is too wide")
    return max(width, 0)


def _asking(sandbox: _Sandbox, function: Any, check: Callable[..., None] | None = None) -> Any:
    """A filter or test whose arguments are measured first; what Jinja passes to it before them stays as it is."""
    passed = 1 if hasattr(function, "jinja_pass_arg") else 0

    def asked(*args: Any, **kwargs: Any) -> Any:
        sandbox.budget.check_time()
        sandbox.budget.measure(args[passed:], kwargs)
        if check is not None:
            check(*args[passed:], **kwargs)
        return function(*args, **kwargs)

    if passed:
        asked.jinja_pass_arg = function.jinja_pass_arg  # type: ignore[attr-defined]
    return asked


def _dictionary(*args: Any, **kwargs: Any) -> dict[str, Any]:
    return dict(*args, **kwargs)


def _refuse(message: Any) -> None:
    raise TemplateError(str(message)[:300])


def _today(form: Any) -> str:
    if len(str(form)) > LONGEST_FORMAT:
        raise SecurityError("a date's format is too long")
    return TODAY.strftime(str(form))


class Refused(UsageError):
    """What a template says with ``raise_exception``: it is not made for such a conversation."""


class CompiledTemplate:
    """A template ready to be rendered; ``where`` names its file. Raises UsageError for what is no template."""

    def __init__(self, source: str, where: str) -> None:
        self.where, self._sandbox = where, _Sandbox()
        with self._explained():
            tree = _Counted().visit(self._sandbox.parse(source))
            tree.set_environment(self._sandbox)
            self._template = self._sandbox.from_string(tree)
        self.marks_answers = bool(_GENERATION.search(source))

    def render(self, text: int, *, marking: bool = False, **values: Any) -> str:
        """The text for plain ``values``, of which about ``text`` characters are the person's own.

        marking: put OPENS and CLOSES around what stands in generation blocks. Raises UsageError where the template
        refuses, fails, asks for what it may not, or asks for too much.
        """
        sandbox = self._sandbox
        with self._explained():
            sandbox.budget, sandbox.marking = Budget(text), marking
            pieces, size = [], 0
            for piece in self._template.generate(**values):
                size += len(piece)
                sandbox.budget.check_size(size)
                pieces.append(piece)
            return "".join(pieces)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except TemplateSyntaxError as error:
            raise UsageError(
                f"chat template cannot be read: {error.message}", where=f"{self.where}, line {error.lineno}"
            ) from None
        except TooMuch as error:
            raise UsageError(f"chat template was stopped: {error.message}", where=self.where) from None
        except (SecurityError, OverflowError) as error:
            raise UsageError(f"chat template asks for what it may not: {error}", where=self.where) from None
        except TemplateRuntimeError as error:
            raise UsageError(f"chat template fails: {str(error.message)[:200]}", where=self.where) from None
        except TemplateError as error:
            raise Refused(f"chat template refuses the conversation: {error.message}", where=self.where) from None
        except (RecursionError, MemoryError):
            raise UsageError("chat template was stopped: it goes too deep", where=self.where) from None
        except UsageError:
            raise
        except Exception as error:  # a template can fail in any way that Python can
            raise UsageError(f"chat template fails: {str(error)[:200]}", where=self.where) from None
