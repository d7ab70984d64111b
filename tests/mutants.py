"""Whether the tests notice a fault: changes one small thing at a time and runs the tests that name the changed module.

    python tests/mutants.py --count 200 --seed 0        # or: make mutants

A mutant is a comparison, sign, condition, constant or statement that is changed, at a place drawn from the packages
below. It is killed where a test that passes without it fails or does not end. Mutants that change nothing that can be
seen (a progress line, a bound never met) survive rightly; the share asked for leaves room for them.
"""

import argparse
import ast
import copy
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLACE = ROOT / "build" / "mutants"  # a copy of the checkout, so that numba's cache serves all mutants
PACKAGES = ("kernels", "compression", "training", "quantization", "data")
LIMIT = 300  # seconds for the tests of one mutant
ASKED = 0.85
SWAPPED: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.Add: ast.Sub, ast.Sub: ast.Add,
    ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.And: ast.Or, ast.Or: ast.And,
    ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
Change = Callable[[], None]


def changes(tree: ast.Module) -> Iterator[tuple[int, str, Change]]:
    """Line, words and deed of every change that can be made to a module."""
    for node in running(tree):
        if isinstance(node, ast.BinOp | ast.AugAssign | ast.BoolOp) and type(node.op) in SWAPPED:
            swapped = SWAPPED[type(node.op)]()
            yield node.lineno, f"{name(node.op)} -> {name(swapped)}", lambda n=node, s=swapped: setattr(n, "op", s)
        if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPPED:
            swapped = SWAPPED[type(node.ops[0])]()
            words = f"{name(node.ops[0])} -> {name(swapped)}"
            yield node.lineno, words, lambda n=node, s=swapped: n.ops.__setitem__(0, s)
        if isinstance(node, ast.If | ast.IfExp | ast.While):
            test = ast.UnaryOp(ast.Not(), node.test)
            yield node.lineno, "condition negated", lambda n=node, t=test: setattr(n, "test", t)
        if isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
            value = not node.value if isinstance(node.value, bool) else node.value + 1
            yield node.lineno, f"{node.value} -> {value}", lambda n=node, v=value: setattr(n, "value", v)


def running(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those of types, decorators and raised errors: their words are not what is tested here."""
    for field, value in ast.iter_fields(tree):
        if field in ("annotation", "returns", "decorator_list") or isinstance(tree, ast.Raise):
            continue
        for node in value if isinstance(value, list) else [value]:
            if isinstance(node, ast.AST):
                yield node
                yield from running(node)


def name(operator: ast.AST) -> str:
    return type(operator).__name__


def drawn(count: int, seed: int) -> Iterator[tuple[Path, int, str, str]]:
    """Module, line, words and changed source of so many mutants."""
    paths = sorted(path for package in PACKAGES for path in (ROOT / "src" / "mickle" / package).rglob("*.py"))
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in paths}
    places = [(path, number) for path, tree in trees.items() for number, _ in enumerate(changes(tree))]
    for path, number in random.Random(seed).sample(places, count):
        tree = copy.deepcopy(trees[path])
        line, words, change = list(changes(tree))[number]
        change()
        yield path.relative_to(ROOT), line, words, ast.unparse(ast.fix_missing_locations(tree))


@cache
def tests_of(module: Path) -> tuple[str, ...]:
    """The test files that name a module, that of its own name first; those of its package where none does."""
    dotted = ".".join(module.relative_to("src").with_suffix("").parts)
    package, _, last = dotted.rpartition(".")
    spelled = (f"{dotted} import", f"import {dotted}", f"{dotted}.", f"from {package} import {last}")
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    naming = [file for file in files if any(words in file.read_text(encoding="utf-8") for words in spelled)]
    found = naming or sorted((ROOT / "tests" / package.rpartition(".")[2]).glob("test_*.py"))
    first = sorted(found, key=lambda file: (last not in file.stem, file.stat().st_size))
    return tuple(str(file.relative_to(ROOT)) for file in first)


def passes(tests: tuple[str, ...]) -> bool:
    """Whether tests pass in the copy within the limit."""
    environment = os.environ | {"PYTHONPATH": str(PLACE / "src"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(command, cwd=PLACE, env=environment, capture_output=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


pass_unchanged = cache(passes)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    for file in filter(None, tracked.split("\0")):
        (PLACE / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / file, PLACE / file)  # with its time, by which numba knows what it compiled before
    killed = judged = 0
    for module, line, words, source in drawn(options.count, options.seed):
        tests = tests_of(module)
        if not pass_unchanged(tests):
            print(f"not judged, its tests fail unchanged: {module}:{line}", flush=True)
            continue
        (PLACE / module).write_text(source, encoding="utf-8")
        survived = passes(tests)
        shutil.copy2(ROOT / module, PLACE / module)
        judged, killed = judged + 1, killed + (not survived)
        print(f"{'SURVIVED' if survived else 'killed'}: {module}:{line}: {words}", flush=True)
    print(f"{killed} of {judged} mutants killed, {killed / max(judged, 1):.0%}; asked for: {ASKED:.0%}")
    return 0 if killed >= ASKED * judged else 1


if __name__ == "__main__":
    sys.exit(main())
