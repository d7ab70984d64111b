"""Programs in LLVM's own language, written line by line, and the functions that they become.

Python has no word for sixteen lanes, and Numba none for instructions that permute registers, multiply bytes or read
16-bit floats. A program is compiled once a process by the compiler that Numba brings, for the processor it runs on;
without registers of 512 bits LLVM splits them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any

import llvmlite.binding as llvm

from mickle.kernels.strips import STRIP

FLOATS, WORDS, SHORTS, HALVES, BYTES = "<16 x float>", "<16 x i32>", "<32 x i16>", "<16 x half>", "<64 x i8>"
KINDS = {"ptr": ctypes.c_void_p, "i64": ctypes.c_int64, "float": ctypes.c_float}
_kept: list[Any] = []  # compiled code lives as long as its engine


@cache
def has(*features: str) -> bool:
    """Whether this processor has all of LLVM's `features`."""
    host = llvm.get_host_cpu_features()
    return all(host.get(feature) for feature in features)


class Program:
    """The function "run" of some parameters, as lines that methods add; values are named by what they return."""

    def __init__(self, parameters: str) -> None:
        """parameters: kinds and names, "ptr x, i64 count"; no two pointers lead to the same memory."""
        self.parameters = [parameter.split() for parameter in parameters.split(", ")]
        self.declared: set[str] = set()
        self.places: list[str] = []
        self.lines: list[str] = []
        self.count, self.block = 0, "entry"

    @property
    def text(self) -> str:
        """The whole program."""
        given = ", ".join(f"{kind}{' noalias' if kind == 'ptr' else ''} %{name}" for kind, name in self.parameters)
        start = [f"define void @run({given}) {{", "entry:", *self.places]
        return "\n".join([*sorted(self.declared), *start, *self.lines, "  ret void", "}"])

    def compiled(self) -> Any:
        """The function, for this processor; it runs without Python's lock."""
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        machine = llvm.Target.from_default_triple().create_target_machine(
            cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3
        )
        module = llvm.parse_assembly(self.text)
        module.verify()
        passes = llvm.create_new_module_pass_manager()
        passes.add_sroa_pass()  # places become registers; all else is left in the order it was written in
        passes.run(module, llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options()))
        engine = llvm.create_mcjit_compiler(module, machine)
        engine.finalize_object()
        _kept.append((engine, module, machine))
        kinds = [KINDS[kind] for kind, _ in self.parameters]
        return ctypes.CFUNCTYPE(None, *kinds)(engine.get_function_address("run"))

    # -- values and places ---------------------------------------------------------------------------------------------

    def let(self, text: str) -> str:
        """A new value that `text` computes; its name."""
        self.count += 1
        self.lines.append(f"  %v{self.count} = {text}")
        return f"%v{self.count}"

    def do(self, text: str) -> None:
        """A line without a value."""
        self.lines.append(f"  {text}")

    def call(self, result: str, name: str, *arguments: tuple[str, str]) -> str:
        """What a function of LLVM's returns; arguments with their kinds."""
        self.declared.add(f"declare {result} @{name}({', '.join(kind for kind, _ in arguments)})")
        text = f"call {result} @{name}({', '.join(f'{kind} {value}' for kind, value in arguments)})"
        if result != "void":
            return self.let(text)
        self.do(text)
        return ""

    def place(self, kind: str, value: str = "zeroinitializer") -> str:
        """A place for values that change, with its first."""
        name = f"%place{len(self.places)}"
        self.places.append(f"  {name} = alloca {kind}")
        self.store(kind, value, name)
        return name

    def load(self, kind: str, place: str, align: int = 4) -> str:
        """What stands at an address."""
        return self.let(f"load {kind}, ptr {place}, align {align}")

    def store(self, kind: str, value: str, place: str, align: int = 4) -> None:
        """Put a value at an address."""
        self.do(f"store {kind} {value}, ptr {place}, align {align}")

    def at(self, base: str, index: str, size: int) -> str:
        """The address `size` bytes times `index` after `base`."""
        return self.after(base, self.let(f"mul i64 {index}, {size}"))

    def after(self, base: str, count: int | str) -> str:
        """The address `count` bytes after `base`."""
        return self.let(f"getelementptr i8, ptr {base}, i64 {count}")

    def prefetch(self, place: str, keep: int) -> None:
        """Ask for a cache line; keep 3: into the first cache, 2: into the second. Past the end it does no harm."""
        self.call("void", "llvm.prefetch.p0", ("ptr", place), ("i32", "0"), ("i32", str(keep)), ("i32", "1"))

    # -- lanes ---------------------------------------------------------------------------------------------------------

    def splat(self, scalar: str, kind: str = "float", lanes: int = STRIP) -> str:
        """A scalar in all lanes."""
        one = self.let(f"insertelement <{lanes} x {kind}> poison, {kind} {scalar}, i32 0")
        return self.pick(f"<{lanes} x {kind}>", one, "poison", [0] * lanes)

    def pick(self, kind: str, first: str, second: str, lanes: Sequence[int]) -> str:
        """Lanes of two vectors of one kind, numbered through both."""
        places = constant("i32", lanes)
        return self.let(f"shufflevector {kind} {first}, {kind} {second}, <{len(lanes)} x i32> {places}")

    def fma(self, a: str, b: str, c: str) -> str:
        """a b + c, lane by lane."""
        return self.call(FLOATS, "llvm.fma.v16f32", (FLOATS, a), (FLOATS, b), (FLOATS, c))

    # -- order ---------------------------------------------------------------------------------------------------------

    @contextmanager
    def loop(self, first: str, stop: str, step: int = 1) -> Iterator[str]:
        """Lines for whole numbers from `first` to below `stop`; the number's name."""
        name = f"loop{self._mark()}"
        before = self.block
        some = self.let(f"icmp ult i64 {first}, {stop}")
        self.do(f"br i1 {some}, label %{name}, label %{name}.after")
        self._begin(name)
        self.do(f"%{name}.i = phi i64 [ {first}, %{before} ], [ %{name}.next, %{name}.again ]")
        yield f"%{name}.i"
        self.do(f"br label %{name}.again")
        self._begin(f"{name}.again")
        self.do(f"%{name}.next = add i64 %{name}.i, {step}")
        more = self.let(f"icmp ult i64 %{name}.next, {stop}")
        self.do(f"br i1 {more}, label %{name}, label %{name}.after")
        self._begin(f"{name}.after")

    @contextmanager
    def when(self, condition: str) -> Iterator[None]:
        """Lines for where a condition holds."""
        name = f"when{self._mark()}"
        self.do(f"br i1 {condition}, label %{name}, label %{name}.after")
        self._begin(name)
        yield
        self.do(f"br label %{name}.after")
        self._begin(f"{name}.after")

    def _mark(self) -> int:
        self.count += 1
        return self.count

    def _begin(self, block: str) -> None:
        self.block = block
        self.lines.append(f"{block}:")


def constant(kind: str, values: Sequence[float]) -> str:
    """A vector, number by number."""
    written = (f"{value:e}" if kind == "float" else str(value) for value in values)
    return "<" + ", ".join(f"{kind} {value}" for value in written) + ">"


def same(kind: str, value: float) -> str:
    """A number in all lanes of a vector of some kind, FLOATS or WORDS, say."""
    count, element = kind[1:-1].split(" x ")
    return constant(element, [value] * int(count))


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(64, "mickle-strips")


def side_by_side(jobs: Sequence[Any]) -> None:
    """Calls (function, *arguments) of compiled code at the same time, the last one in this thread."""
    waiting = [_pool().submit(*job) for job in jobs[:-1]]
    jobs[-1][0](*jobs[-1][1:])
    for job in waiting:
        job.result()
