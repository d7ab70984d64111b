"""Text of programs in LLVM's own language, and the functions that they become.

Python has no word for sixteen lanes, and Numba's 16-bit floats are for GPUs only. A program is compiled once a process
by the compiler that Numba brings; on a processor without registers of 512 bits LLVM splits them.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import llvmlite.binding as llvm

from mickle.kernels.strips import STRIP

FLOATS, WORDS, HALVES, BYTES = "<16 x float>", "<16 x i32>", "<16 x half>", "<64 x i8>"
_kept: list[Any] = []  # compiled code lives as long as its engine


@cache
def has(*features: str) -> bool:
    """Whether this processor has all of LLVM's `features`."""
    host = llvm.get_host_cpu_features()
    return all(host.get(feature) for feature in features)


def compile_program(text: str, pointers: int, numbers: int) -> Any:
    """The function "run" of a program, of so many pointers and then so many whole numbers of 64 bits."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3
    )
    module = llvm.parse_assembly(text)
    module.verify()
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    _kept.append((engine, module, machine))
    kinds = [ctypes.c_void_p] * pointers + [ctypes.c_int64] * numbers
    return ctypes.CFUNCTYPE(None, *kinds)(engine.get_function_address("run"))


class Lines:
    """Text of a program, with fresh names: those that follow `first`."""

    def __init__(self, first: int = 0) -> None:
        self.lines: list[str] = []
        self.count = first

    def let(self, text: str) -> str:
        """A new value that `text` computes; its name."""
        self.count += 1
        self.lines.append(f"  %v{self.count} = {text}")
        return f"%v{self.count}"

    def do(self, text: str) -> None:
        """A line without a value."""
        self.lines.append(f"  {text}")

    def splat(self, scalar: str, kind: str = "float") -> str:
        """A scalar in all lanes."""
        one = self.let(f"insertelement <16 x {kind}> poison, {kind} {scalar}, i32 0")
        return self.let(f"shufflevector <16 x {kind}> {one}, <16 x {kind}> poison, {WORDS} zeroinitializer")

    def at(self, base: str, index: str, size: int) -> str:
        """The address `size` bytes times `index` after `base`."""
        return self.after(base, self.let(f"mul i64 {index}, {size}"))

    def after(self, base: str, count: int | str) -> str:
        """The address `count` bytes after `base`."""
        return self.let(f"getelementptr i8, ptr {base}, i64 {count}")

    def load(self, kind: str, place: str, align: int = 4) -> str:
        """What stands at an address."""
        return self.let(f"load {kind}, ptr {place}, align {align}")

    def fma(self, a: str, b: str, c: str) -> str:
        """a b + c, lane by lane."""
        return self.let(f"call {FLOATS} @llvm.fma.v16f32({FLOATS} {a}, {FLOATS} {b}, {FLOATS} {c})")

    def prefetch(self, place: str) -> None:
        """Ask for a cache line, into the second cache: the first has no room. Past the end it does no harm."""
        self.do(f"call void @llvm.prefetch.p0(ptr {place}, i32 0, i32 2, i32 1)")

    @property
    def text(self) -> str:
        """All lines."""
        return "\n".join(self.lines)


def constant(kind: str, values: list[int] | list[float]) -> str:
    """A vector, number by number."""
    written = (f"{value:e}" if kind == "float" else str(value) for value in values)
    return "<" + ", ".join(f"{kind} {value}" for value in written) + ">"


def floats(value: float) -> str:
    """A number in all lanes."""
    return constant("float", [value] * STRIP)


def words(value: int) -> str:
    """A whole number in all lanes."""
    return constant("i32", [value] * STRIP)
