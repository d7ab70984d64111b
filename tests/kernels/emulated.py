"""Instructions that this processor lacks, by their definitions in plain LLVM, so that every program is tested anywhere.

Importing this module makes programs call them: those whose names the processor knows stay what they are.
"""

from __future__ import annotations

from collections.abc import Sequence

from mickle.kernels.assembly import BYTES, FLOATS, SHORTS, WORDS, Program, constant, has, same

BRAINS = "<32 x bfloat>"


class Body:
    """Lines of a function's text, with fresh names."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def let(self, text: str) -> str:
        self.lines.append(f"  %t{len(self.lines)} = {text}")
        return f"%t{len(self.lines) - 1}"

    def every(self, kind: str, value: str, step: int, first: int) -> str:
        """Lanes first, first + step, ... of a vector."""
        lanes = range(first, int(kind[1:3]), step)
        return self.let(
            f"shufflevector {kind} {value}, {kind} poison, <{len(lanes)} x i32> {constant('i32', list(lanes))}"
        )

    def function(self, name: str, result: str, arguments: Sequence[str], value: str) -> str:
        given = ", ".join(f"{kind} %{letter}" for kind, letter in zip(arguments, "abc"))
        return "\n".join(
            [f"define internal {result} @emulated.{name}({given}) {{", *self.lines, f"  ret {result} {value}", "}"]
        )


def permute(name: str, kind: str, index: str) -> str:
    """Of each lane the entry of the table a that the low bits of b number."""
    body, (lanes, element), found = Body(), kind[1:-1].split(" x "), "poison"
    number = index[1:-1].split(" x ")[1]
    low = body.let(f"and {index} %b, {same(index, int(lanes) - 1)}")
    for lane in range(int(lanes)):
        place = body.let(f"extractelement {index} {low}, i32 {lane}")
        entry = body.let(f"extractelement {kind} %a, {number} {place}")
        found = body.let(f"insertelement {kind} {found}, {element} {entry}, i32 {lane}")
    return body.function(name, kind, [kind, index], found)


def dot_bytes(name: str) -> str:
    """a + the sum over each word's four bytes of b without sign times c with it."""
    body, total = Body(), "%a"
    wide = "<64 x i32>"
    b, c = (body.let(f"bitcast {WORDS} %{letter} to {BYTES}") for letter in "bc")
    b, c = body.let(f"zext {BYTES} {b} to {wide}"), body.let(f"sext {BYTES} {c} to {wide}")
    products = body.let(f"mul {wide} {b}, {c}")
    for byte in range(4):
        total = body.let(f"add {WORDS} {total}, {body.every(wide, products, 4, byte)}")
    return body.function(name, WORDS, [WORDS, WORDS, WORDS], total)


def dot_pairs(name: str) -> str:
    """a + the sum over each lane's two bfloat16 of b times c, in float32."""
    body, total = Body(), "%a"
    wide = "<32 x float>"
    b, c = (body.let(f"fpext {BRAINS} %{letter} to {wide}") for letter in "bc")
    products = body.let(f"fmul {wide} {b}, {c}")
    for number in (1, 0):
        total = body.let(f"fadd {FLOATS} {total}, {body.every(wide, products, 2, number)}")
    return body.function(name, FLOATS, [FLOATS, BRAINS, BRAINS], total)


def product_of_bits(name: str) -> str:
    """Bit i of each byte: the parity of a and byte 7 - i of its eight bytes of b."""
    body, found = Body(), "zeroinitializer"
    for bit in range(8):
        rows = constant("i32", [lane // 8 * 8 + 7 - bit for lane in range(64)])
        row = body.let(f"shufflevector {BYTES} %b, {BYTES} poison, <64 x i32> {rows}")
        own = body.let(f"call {BYTES} @llvm.ctpop.v64i8({BYTES} {body.let(f'and {BYTES} %a, {row}')})")
        odd = body.let(f"and {BYTES} {own}, {same(BYTES, 1)}")
        found = body.let(f"or {BYTES} {found}, {body.let(f'shl {BYTES} {odd}, {same(BYTES, bit)}')}")
    count = f"declare {BYTES} @llvm.ctpop.v64i8({BYTES})\n"
    return count + body.function(name, BYTES, [BYTES, BYTES, "i8"], found)


WANTED = {
    "llvm.x86.avx512.permvar.sf.512": ("avx512f", lambda name: permute(name, FLOATS, WORDS)),
    "llvm.x86.avx512.permvar.hi.512": ("avx512bw", lambda name: permute(name, SHORTS, SHORTS)),
    "llvm.x86.avx512.vpdpbusd.512": ("avx512vnni", dot_bytes),
    "llvm.x86.avx512bf16.dpbf16ps.512": ("avx512bf16", dot_pairs),
    "llvm.x86.vgf2p8affineqb.512": ("gfni", product_of_bits),
}
LACKING = {name: define(name) for name, (feature, define) in WANTED.items() if not has("avx512f", feature)}
_text = Program.text.fget
assert _text is not None


def emulated_text(program: Program) -> str:
    """A program with what is lacking added."""
    text: str = _text(program)
    for name, definition in LACKING.items():
        if f"@{name}(" in text:
            lines = [line for line in text.splitlines() if not (line.startswith("declare") and f"@{name}(" in line)]
            text = "\n".join(lines).replace(f"@{name}(", f"@emulated.{name}(") + "\n" + definition
    return text


Program.text = property(emulated_text)  # type: ignore[assignment, method-assign]
