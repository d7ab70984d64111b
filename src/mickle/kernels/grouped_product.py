"""One row times a grouped matrix, straight from its bits (`quantization/grouped.py` has the layout).

A strip's 16 rows are the 16 lanes of a register. The codes of four columns stand at the same place of the four bytes
of a word: a shift and a mask make them four bytes, and one instruction (`vpdpbusd`) multiplies them by four signed
bytes of x and adds. x of a group (32 columns at most) is a fixed-point number of that group: sigma times a whole
number of two bytes where x is bfloat16, of three where it is float32, so what is lost is below 2^-15 and 2^-23 of the
group's largest x, and sums of products are exact::

    x ~ sigma (256^2 n2 + 256 n1 + n0)
    y += s (sigma (256^2 sum q n2 + 256 sum q n1 + sum q n0) - z sum of x)

with the bytes, sigma and the group's sum of x made once for all strips. Without that instruction codes become floats
one by one.

The lines below are LLVM's own language, compiled once a process for each format by the compiler that Numba brings:
Python has no word for sixteen lanes, and Numba's 16-bit floats are for GPUs only. On a processor without registers of
512 bits LLVM splits them.

Outliers come in a second pass over their list, row by row. The plain version is `product_plain`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import llvmlite.binding as llvm
import numba
import numpy as np
import torch
from torch import Tensor

from mickle.kernels.strips import CHUNK, STRIP, places

SHARED = 1 << 19  # bytes of codes from which a product is worth sharing among threads
AHEAD = 8192  # bytes that are asked for before they are needed
_F, _I, _H = "<16 x float>", "<16 x i32>", "<16 x half>"


def product_plain(x: Tensor, weight: Tensor) -> Tensor:
    """x [n, in], dense weight [out, in] -> [n, out]."""
    return x @ weight.T


def segment_of(group: int) -> int:
    """Columns that a piece of code sums with one pair of statistics; 0 where there is no such code."""
    return (
        min(group, CHUNK)
        if group % 8 == 0 and ((group < CHUNK and CHUNK % group == 0) or group % CHUNK == 0)
        else 0
    )


def product(
    x: Tensor,
    codes: Tensor,
    statistics: Tensor,
    second: Tensor | None,
    outliers: tuple[Tensor, Tensor, Tensor] | None,
    outputs: int,
    group: int,
    threads: int,
) -> Tensor:
    """x float32 [n, in], its columns in the order of the codes -> [n, outputs] float32.

    Shapes as in `Grouped`; outliers: values, columns, rows. `group` is one that `segment_of` has a code for.
    """
    strips, chunks, bits, _ = codes.shape
    segment = segment_of(group)
    way = way_of(x)
    run = compiled(bits, segment, second is not None, way)
    padded = torch.zeros(len(x), chunks * CHUNK)
    padded[:, : x.shape[1]] = x
    sums = torch.empty(len(x), chunks * CHUNK // segment, 2)
    given = torch.empty(len(x), chunks * CHUNK * way, dtype=torch.int8) if way else padded
    for row in range(len(x)):
        fixed_point(padded[row].numpy(), segment, way, given[row].numpy(), sums[row].numpy())
    out = torch.empty(len(x), strips * STRIP)
    share = threads if codes.numel() * 4 >= SHARED else 1
    bounds = [strips * piece // share for piece in range(share + 1)]
    groups = statistics.shape[1]
    scratch = torch.empty(share, groups, 4)
    jobs = []
    for row in range(len(x)):
        places = [_at(t) for t in (codes, statistics, second, given[row], sums[row], out[row])]
        for piece, (first, last) in enumerate(pairwise(bounds)):
            jobs.append((run, *places, _at(scratch[piece]), first, last, chunks, groups, group))
        _together(jobs[-share:], share)
    if outliers is not None:
        values, columns, rows = outliers
        add = compiled_outliers(columns.element_size())
        for row in range(len(x)):
            add(*(_at(t) for t in (values, columns, rows, padded[row], out[row])), outputs)
    return out[:, :outputs]


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def way_of(x: Tensor) -> int:
    """Bytes of the whole numbers that stand for x; 0 for floats, where the processor cannot multiply bytes."""
    if not _multiplies_bytes():
        return 0
    return 2 if x.dtype == torch.bfloat16 else 3


@cache
def _multiplies_bytes() -> bool:
    return bool(llvm.get_host_cpu_features().get("avx512vnni"))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def fixed_point(x, segment, count, parts, sums):  # type: ignore[no-untyped-def]
    """x float32 [columns] as `count` signed bytes of each number: of every four columns the four highest bytes, then
    the four next ones. sums [segments, 2]: the sum of x and the unit of each segment. count 0: sums alone, unit 1.
    """
    largest = np.float32(0)
    for _ in range(count):
        largest = largest * np.float32(256) + np.float32(127)
    for number in range(len(sums)):
        own = x[number * segment : (number + 1) * segment]
        total, size = np.float32(0), np.float32(0)
        for value in own:
            total += value
            size = max(size, abs(value))
        sums[number, 0], sums[number, 1] = total, 1
        if count == 0:
            continue
        unit = max(size / largest, np.float32(1e-38))
        sums[number, 1] = unit
        inverse = np.float32(1) / unit
        for column in range(segment):
            near = min(max(np.rint(own[column] * inverse), -largest), largest)
            whole = np.int32(near)
            quad = (number * segment + column) // 4
            for part in range(count - 1, -1, -1):
                low = ((whole + np.int32(128)) & np.int32(255)) - np.int32(128)
                whole = (whole - low) >> np.int32(8)
                parts[(quad * count + part) * 4 + column % 4] = low


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(64)


def _together(jobs: Sequence[Any], share: int) -> None:
    """Foreign calls let go of Python's lock, so they run side by side; the last one here."""
    if share == 1:
        for function, *arguments in jobs:
            function(*arguments)
        return
    waiting = [_pool().submit(*job) for job in jobs[:-1]]
    jobs[-1][0](*jobs[-1][1:])
    for job in waiting:
        job.result()


@cache
def compiled(bits: int, segment: int, two_level: bool, way: int) -> Any:
    """The function of one format: (codes, statistics, second, x, sums, out, scratch, first strip, last, chunks, groups,
    group).
    """
    return _compile(program(bits, segment, two_level, way), 7, 5)


@cache
def compiled_outliers(index_bytes: int) -> Any:
    """(values, columns, rows, x, out, number of rows): out += the outliers' part."""
    return _compile(outlier_program(index_bytes), 5, 1)


_kept: list[Any] = []  # compiled code lives as long as its engine


def _compile(text: str, pointers: int, numbers: int) -> Any:
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


class _Lines:
    """Text of a program, with fresh names."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.count = 0

    def let(self, text: str) -> str:
        """A new value that `text` computes; its name."""
        self.count += 1
        self.lines.append(f"  %v{self.count} = {text}")
        return f"%v{self.count}"

    def splat(self, scalar: str) -> str:
        """A float in all lanes."""
        one = self.let(f"insertelement {_F} poison, float {scalar}, i32 0")
        return self.let(f"shufflevector {_F} {one}, {_F} poison, {_I} zeroinitializer")

    def at(self, base: str, index: str, size: int) -> str:
        """The address `size` bytes times `index` after `base`."""
        offset = self.let(f"mul i64 {index}, {size}")
        return self.let(f"getelementptr i8, ptr {base}, i64 {offset}")

    def fma(self, a: str, b: str, c: str) -> str:
        """a b + c, lane by lane."""
        return self.let(f"call {_F} @llvm.fma.v16f32({_F} {a}, {_F} {b}, {_F} {c})")


def program(bits: int, segment: int, two_level: bool, way: int) -> str:
    """The product of strips first to last with one row of x, as LLVM assembly."""
    t = _Lines()
    row = t.at("%codes.strip", "%chunk", 4 * STRIP * bits)
    words = []
    for word in range(bits):
        place = t.let(f"getelementptr i8, ptr {row}, i64 {64 * word}")
        ahead = t.let(f"getelementptr i8, ptr {place}, i64 {AHEAD}")
        t.lines.append(f"  call void @llvm.prefetch.p0(ptr {ahead}, i32 0, i32 3, i32 1)")
        words.append(t.let(f"load {_I}, ptr {place}, align 4"))
    xs = t.at("%x", "%chunk", (way or 4) * CHUNK)
    # The next strip's statistics are asked for a little with every chunk: their loops would wait for each line.
    for stream in ("statistics", "second") if two_level else ("statistics",):
        step = t.let(f"mul i64 %chunk, %{stream}.step")
        ahead = t.let(f"getelementptr i8, ptr %{stream}.next, i64 {step}")
        t.lines.append(f"  call void @llvm.prefetch.p0(ptr {ahead}, i32 0, i32 3, i32 1)")
    total = "%acc"
    for number in range(CHUNK // segment):
        total = _segment(t, number, bits, segment, two_level, way, words, xs, total)
    body, tile = "\n".join(t.lines), 12 if two_level else 4 * STRIP
    return f"""
declare {_F} @llvm.fma.v16f32({_F}, {_F}, {_F})
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)
declare i64 @llvm.umin.i64(i64, i64)
{f"declare {_I} @llvm.x86.avx512.vpdpbusd.512({_I}, {_I}, {_I})" if way else ""}
define void @run(ptr noalias %codes, ptr noalias %statistics, ptr noalias %second, ptr noalias %x, ptr noalias %sums,
                 ptr noalias %out, ptr noalias %scratch, i64 %first, i64 %last, i64 %chunks, i64 %groups, i64 %group)
{{ entry:
  %codes.size = mul i64 %chunks, {4 * STRIP * bits}
  %statistics.size = mul i64 %groups, {tile}
  %second.size = mul i64 %groups, 8
  %statistics.step = udiv i64 %statistics.size, %chunks
  %second.step = udiv i64 %second.size, %chunks
  %group.last = sub i64 %groups, 1
  %group.chunks = udiv i64 %group, 32
  br label %strips
strips:
  %strip = phi i64 [ %first, %entry ], [ %strip.next, %done ]
  %strip.more = icmp ult i64 %strip, %last
  br i1 %strip.more, label %begin, label %end
begin:
  %codes.offset = mul i64 %strip, %codes.size
  %codes.strip = getelementptr i8, ptr %codes, i64 %codes.offset
  %statistics.offset = mul i64 %strip, %statistics.size
  %statistics.strip = getelementptr i8, ptr %statistics, i64 %statistics.offset
  %second.offset = mul i64 %strip, %second.size
  %second.strip = getelementptr i8, ptr %second, i64 %second.offset
  %statistics.next = getelementptr i8, ptr %statistics.strip, i64 %statistics.size
  %second.next = getelementptr i8, ptr %second.strip, i64 %second.size
{_TILES if two_level else "  br label %ready"}
ready:
  br label %columns
columns:
  %chunk = phi i64 [ 0, %ready ], [ %chunk.next, %columns ]
  %acc = phi {_F} [ zeroinitializer, %ready ], [ {total}, %columns ]
{body}
  %chunk.next = add i64 %chunk, 1
  %chunk.more = icmp ult i64 %chunk.next, %chunks
  br i1 %chunk.more, label %columns, label %done
done:
  %out.offset = mul i64 %strip, {4 * STRIP}
  %out.strip = getelementptr i8, ptr %out, i64 %out.offset
  store {_F} {total}, ptr %out.strip, align 4
  %strip.next = add i64 %strip, 1
  br label %strips
end:
  ret void
}}
"""


def _segment(
    t: _Lines,
    number: int,
    bits: int,
    segment: int,
    two_level: bool,
    way: int,
    words: list[str],
    xs: str,
    total: str,
) -> str:
    """Add one segment of 8, 16 or 32 columns to `total`."""
    pieces = CHUNK // segment
    place = t.let(f"mul i64 %chunk, {pieces}")
    place = t.let(f"add i64 {place}, {number}")
    # Groups narrower than a chunk are segments themselves; a division would cost as much as the products.
    group = t.let(f"udiv i64 {place}, %group.chunks") if segment == CHUNK else place
    group = t.let(f"call i64 @llvm.umin.i64(i64 {group}, i64 %group.last)")
    scale, minus_zero = _planes(t, group) if two_level else _halves(t, group)
    sum_at = t.at("%sums", place, 8)
    sum_of_x = t.splat(t.let(f"load float, ptr {sum_at}, align 4"))
    unit_at = t.let(f"getelementptr i8, ptr {sum_at}, i64 4")
    unit = t.splat(t.let(f"load float, ptr {unit_at}, align 4"))
    quads = range(number * segment // 4, (number + 1) * segment // 4)
    dot = _bytes_dot(t, words, quads, bits, way, xs) if way else _float_dot(t, words, quads, bits, xs)
    shift = t.let(f"fmul {_F} {minus_zero}, {sum_of_x}")
    return t.fma(scale, t.fma(dot, unit, shift), total)


def _bytes_dot(t: _Lines, words: list[str], quads: range, bits: int, way: int, xs: str) -> str:
    """Sum of code times whole number over the quads, as floats."""
    parts = ["zeroinitializer"] * way
    for quad in quads:
        codes = _quad(t, words, quad, bits)
        for part in range(way):
            at = t.let(f"getelementptr i8, ptr {xs}, i64 {4 * (way * quad + part)}")
            x = t.let(f"insertelement {_I} poison, i32 {t.let(f'load i32, ptr {at}, align 4')}, i32 0")
            x = t.let(f"shufflevector {_I} {x}, {_I} poison, {_I} zeroinitializer")
            parts[part] = t.let(
                f"call {_I} @llvm.x86.avx512.vpdpbusd.512({_I} {parts[part]}, {_I} {codes}, {_I} {x})"
            )
    floats = [t.let(f"sitofp {_I} {part} to {_F}") for part in parts]
    dot = floats[0]
    for lower in floats[1:]:
        dot = t.fma(dot, _floats(256), lower)
    return dot


def _float_dot(t: _Lines, words: list[str], quads: range, bits: int, xs: str) -> str:
    """Sum of code times x over the quads, in floats."""
    dot = "zeroinitializer"
    for quad in quads:
        codes = _quad(t, words, quad, bits)
        for byte in range(4):
            one = t.let(f"lshr {_I} {codes}, {_all(8 * byte)}") if byte else codes
            one = t.let(f"and {_I} {one}, {_all(2**bits - 1)}")
            number = t.let(f"sitofp {_I} {one} to {_F}")
            at = t.let(f"getelementptr i8, ptr {xs}, i64 {4 * (4 * quad + byte)}")
            dot = t.fma(number, t.splat(t.let(f"load float, ptr {at}, align 4")), dot)
    return dot


def _quad(t: _Lines, words: list[str], quad: int, bits: int) -> str:
    """The codes of four columns as the four bytes of a word."""
    found = []
    for word, shift, own, mask in places(bits)[quad]:
        moved, down = words[word], shift - own
        if down:
            moved = t.let(f"{'lshr' if down > 0 else 'shl'} {_I} {moved}, {_all(abs(down))}")
        found.append(t.let(f"and {_I} {moved}, {_all((mask << own) * 0x01010101)}"))
    return found[0] if len(found) == 1 else t.let(f"or {_I} {found[0]}, {found[1]}")


# The strip's second level in float32: a, -a o, -a', a' o' of each group into the scratch.
_TILES = """  br label %tiles
tiles:
  %tile = phi i64 [ 0, %begin ], [ %tile.next, %tiles ]
  %tile.at = getelementptr <4 x half>, ptr %second.strip, i64 %tile
  %tile.half = load <4 x half>, ptr %tile.at, align 2
  %tile.four = fpext <4 x half> %tile.half to <4 x float>
  %tile.signed = fmul <4 x float> %tile.four, <float 1.0, float -1.0, float -1.0, float 1.0>
  %tile.steps = shufflevector <4 x float> %tile.four, <4 x float> <float 1.0, float 1.0, float 1.0, float 1.0>,
                              <4 x i32> <i32 4, i32 0, i32 4, i32 2>
  %tile.ready = fmul <4 x float> %tile.signed, %tile.steps
  %tile.to = getelementptr <4 x float>, ptr %scratch, i64 %tile
  store <4 x float> %tile.ready, ptr %tile.to, align 4
  %tile.next = add i64 %tile, 1
  %tile.more = icmp ult i64 %tile.next, %groups
  br i1 %tile.more, label %tiles, label %ready"""


def _planes(t: _Lines, group: str) -> tuple[str, str]:
    """s and -z of a tile, from bit planes and the scratch."""
    quad, planes = t.at("%scratch", group, 16), t.at("%statistics.strip", group, 12)
    found = []
    for level in range(2):
        code = "zeroinitializer"
        for plane in range(3):
            at = t.let(f"getelementptr i8, ptr {planes}, i64 {2 * (3 * level + plane)}")
            lanes = t.let(f"bitcast i16 {t.let(f'load i16, ptr {at}, align 2')} to <16 x i1>")
            more = _floats(2.0**plane)
            added = t.let(f"fadd {_F} {code}, {more}") if plane else more
            code = t.let(f"select <16 x i1> {lanes}, {_F} {added}, {_F} {code}")
        step, lowest = (
            t.splat(
                t.let(
                    f"load float, ptr {t.let(f'getelementptr i8, ptr {quad}, i64 {4 * (2 * level + k)}')}, align 4"
                )
            )
            for k in (0, 1)
        )
        found.append(t.fma(step, code, lowest))
    return found[0], found[1]


def _halves(t: _Lines, group: str) -> tuple[str, str]:
    """s and -z from 16-bit floats."""
    at = t.at("%statistics.strip", group, 4 * STRIP)
    scale, zero = (
        t.let(f"load {_H}, ptr {t.let(f'getelementptr i8, ptr {at}, i64 {2 * STRIP * level}')}, align 2")
        for level in (0, 1)
    )
    minus = t.let(f"fneg {_F} {t.let(f'fpext {_H} {zero} to {_F}')}")
    return t.let(f"fpext {_H} {scale} to {_F}"), minus


def _floats(value: float) -> str:
    return "<" + ", ".join(f"float {value:e}" for _ in range(STRIP)) + ">"


def _all(value: int) -> str:
    return "<" + ", ".join(f"i32 {value}" for _ in range(STRIP)) + ">"


def outlier_program(index_bytes: int) -> str:
    """out[row] += sum over the row's outliers of value x[column], as LLVM assembly; four at a time, then one by one."""
    kind = f"i{8 * index_bytes}"
    t = _Lines()
    values_at, columns_at = t.at("%values", "%k", 2), t.at("%columns", "%k", index_bytes)
    quad = t.let(f"fpext <4 x half> {t.let(f'load <4 x half>, ptr {values_at}, align 2')} to <4 x float>")
    gathered = "poison"
    for lane in range(4):
        at = t.let(f"getelementptr {kind}, ptr {columns_at}, i64 {lane}")
        column = t.let(f"zext {kind} {t.let(f'load {kind}, ptr {at}, align {index_bytes}')} to i64")
        x = t.let(f"load float, ptr {t.let(f'getelementptr float, ptr %x, i64 {column}')}, align 4")
        gathered = t.let(f"insertelement <4 x float> {gathered}, float {x}, i32 {lane}")
    four = t.let(
        f"call <4 x float> @llvm.fma.v4f32(<4 x float> {quad}, <4 x float> {gathered}, <4 x float> %sum4)"
    )
    body = "\n".join(t.lines)
    return f"""
declare <4 x float> @llvm.fma.v4f32(<4 x float>, <4 x float>, <4 x float>)
declare float @llvm.fma.f32(float, float, float)
define void @run(ptr noalias %values, ptr noalias %columns, ptr noalias %rows, ptr noalias %x, ptr noalias %out,
                 i64 %count) {{
entry:
  br label %next
next:
  %row = phi i64 [ 0, %entry ], [ %row.next, %store ]
  %row.more = icmp ult i64 %row, %count
  br i1 %row.more, label %begin, label %end
begin:
  %row.next = add i64 %row, 1
  %a.at = getelementptr i32, ptr %rows, i64 %row
  %b.at = getelementptr i32, ptr %rows, i64 %row.next
  %a.i = load i32, ptr %a.at, align 4
  %b.i = load i32, ptr %b.at, align 4
  %a = zext i32 %a.i to i64
  %b = zext i32 %b.i to i64
  br label %fours
fours:
  %k = phi i64 [ %a, %begin ], [ %k.four, %quad ]
  %sum4 = phi <4 x float> [ zeroinitializer, %begin ], [ {four}, %quad ]
  %k.four = add i64 %k, 4
  %whole = icmp ule i64 %k.four, %b
  br i1 %whole, label %quad, label %fold
quad:
{body}
  br label %fours
fold:
  %s0 = extractelement <4 x float> %sum4, i32 0
  %s1 = extractelement <4 x float> %sum4, i32 1
  %s2 = extractelement <4 x float> %sum4, i32 2
  %s3 = extractelement <4 x float> %sum4, i32 3
  %s01 = fadd float %s0, %s1
  %s23 = fadd float %s2, %s3
  %s = fadd float %s01, %s23
  br label %ones
ones:
  %r = phi i64 [ %k, %fold ], [ %r.next, %one ]
  %sum = phi float [ %s, %fold ], [ %sum.next, %one ]
  %r.more = icmp ult i64 %r, %b
  br i1 %r.more, label %one, label %store
one:
  %r.v.at = getelementptr half, ptr %values, i64 %r
  %r.v = load half, ptr %r.v.at, align 2
  %r.value = fpext half %r.v to float
  %r.c.at = getelementptr {kind}, ptr %columns, i64 %r
  %r.c = load {kind}, ptr %r.c.at, align {index_bytes}
  %r.column = zext {kind} %r.c to i64
  %r.x.at = getelementptr float, ptr %x, i64 %r.column
  %r.x = load float, ptr %r.x.at, align 4
  %sum.next = call float @llvm.fma.f32(float %r.value, float %r.x, float %sum)
  %r.next = add i64 %r, 1
  br label %ones
store:
  %out.at = getelementptr float, ptr %out, i64 %row
  %before = load float, ptr %out.at, align 4
  %after = fadd float %before, %sum
  store float %after, ptr %out.at, align 4
  br label %next
end:
  ret void
}}
"""
