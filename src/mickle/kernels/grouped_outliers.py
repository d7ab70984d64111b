"""The outliers of a grouped matrix times one row: a second pass over their list, as a program in LLVM's language."""

from __future__ import annotations

from functools import cache
from typing import Any

from mickle.kernels.assembly import Program

FOUR = "<4 x float>"


@cache
def compiled(index_bytes: int) -> Any:
    """(values, columns, rows, x, out, number of rows): out[row] += sum over the row's outliers of value x[column], four
    at a time, then one by one. Columns are of `index_bytes`.
    """
    t = Program("ptr values, ptr columns, ptr rows, ptr x, ptr out, i64 count")
    fours, ones = t.place(FOUR), t.place("float")
    with t.loop("0", "%count") as row:
        begin, end = (
            t.let(f"zext i32 {t.load('i32', t.after(t.at('%rows', row, 4), after))} to i64") for after in (0, 4)
        )
        count = t.let(f"sub i64 {end}, {begin}")
        whole = t.let(f"add i64 {begin}, {t.let(f'and i64 {count}, -4')}")
        t.store(FOUR, "zeroinitializer", fours)
        with t.loop(begin, whole, 4) as k:
            values = t.load("<4 x half>", t.at("%values", k, 2), 2)
            gathered = "poison"
            for lane in range(4):
                x = _x_of(t, k, lane, index_bytes)
                gathered = t.let(f"insertelement {FOUR} {gathered}, float {x}, i32 {lane}")
            values = t.let(f"fpext <4 x half> {values} to {FOUR}")
            added = (FOUR, values), (FOUR, gathered), (FOUR, t.load(FOUR, fours))
            t.store(FOUR, t.call(FOUR, "llvm.fma.v4f32", *added), fours)
        s = [t.let(f"extractelement {FOUR} {t.load(FOUR, fours)}, i32 {lane}") for lane in range(4)]
        pairs = t.let(f"fadd float {s[0]}, {s[1]}"), t.let(f"fadd float {s[2]}, {s[3]}")
        t.store("float", t.let(f"fadd float {pairs[0]}, {pairs[1]}"), ones)
        with t.loop(whole, end) as k:
            value = t.let(f"fpext half {t.load('half', t.at('%values', k, 2), 2)} to float")
            added = ("float", value), ("float", _x_of(t, k, 0, index_bytes)), ("float", t.load("float", ones))
            t.store("float", t.call("float", "llvm.fma.f32", *added), ones)
        place = t.at("%out", row, 4)
        t.store("float", t.let(f"fadd float {t.load('float', place)}, {t.load('float', ones)}"), place)
    return t.compiled()


def _x_of(t: Program, outlier: str, after: int, index_bytes: int) -> str:
    """x at the column of the outlier that stands `after` another."""
    kind = f"i{8 * index_bytes}"
    place = t.after(t.at("%columns", outlier, index_bytes), index_bytes * after)
    column = t.let(f"zext {kind} {t.load(kind, place, index_bytes)} to i64")
    return t.load("float", t.at("%x", column, 4))
