"""Looking 4-bit codes up in a table that stays in a vector register: pieces of machine code for Numba functions.

A table of 16 numbers of 32 bits fills one register of 512 bits, and one instruction (`vpermps`) picks 16 entries by the
low four bits of 16 words, whatever stands above them. Numba cannot say so in Python: each function here is an
`@intrinsic` of a few lines of LLVM. With AVX2 alone the table takes two registers, and bit 3 chooses between them.
`vpermw` does the same for 32 words of 16 bits by the low five bits (the table stands there twice), and `vdpbf16ps`
multiplies pairs of bfloat16 and adds them in float32.

All take addresses as integers (`array.ctypes.data`), which is unsafe: only kernels in this package call them. Numba's
cache looks at the kernel's own file alone: after a change here, touch the kernels that use it.

Layout of codes: a 32-bit word has 8 columns of one row, as bitsandbytes packs them: column c at bits 4 (c ^ 1).
16 words, those of 16 rows, stand side by side.
"""

from typing import Any

import llvmlite.binding as llvm
import numba
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

COLUMNS = 64  # of a block: what one piece of code multiplies
LANES = 16
AHEAD = 4096  # bytes of codes that are asked for before they are needed: the processor's own guesses end with a page

_i16, _i32, _i64, _f32 = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
_words, _floats = ir.VectorType(_i32, LANES), ir.VectorType(_f32, LANES)
_halves = ir.VectorType(_i16, 2 * LANES)


class _BFloat(ir.Type):
    """llvmlite has no name for LLVM's bfloat16."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


_brains = ir.VectorType(_BFloat(), 2 * LANES)


def features() -> frozenset[str]:
    """Of "avx2", "avx512" and "bf16" (with AVX-512), those this processor has and Numba compiles for."""
    if numba.config.CPU_NAME or numba.config.CPU_FEATURES:
        return frozenset()  # somebody chose another target
    host = llvm.get_host_cpu_features()
    found = {"avx2"} if host.get("avx2") and host.get("fma") else set()
    if found and host.get("avx512f") and host.get("avx512bw"):
        found |= {"avx512"} | ({"bf16"} if host.get("avx512bf16") else set())
    return frozenset(found)


def _load(builder: Any, address: Any, offset: int, kind: Any) -> Any:
    place = builder.inttoptr(builder.add(address, _i64(offset)), kind.as_pointer())
    return builder.load(place, align=1)


def _store(builder: Any, value: Any, address: Any, offset: int = 0) -> None:
    place = builder.inttoptr(builder.add(address, _i64(offset)), value.type.as_pointer())
    builder.store(value, place, align=1)


def _prefetch(builder: Any, address: Any, offset: int) -> None:
    """Ask for the cache line that is AHEAD bytes on; past the end it does no harm."""
    byte, number = ir.IntType(8).as_pointer(), _i32
    kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
    name = "llvm.prefetch.p0"
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    place = builder.inttoptr(builder.add(address, _i64(offset + AHEAD)), byte)
    builder.call(function, [place, number(0), number(3), number(1)])  # read, keep, data


def _splat(builder: Any, value: Any, lanes: int = LANES) -> Any:
    kind = ir.VectorType(value.type, lanes)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), value, _i32(0))
    zeros = ir.Constant(ir.VectorType(_i32, lanes), [0] * lanes)
    return builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), zeros)


def _constant(value: int, kind: Any) -> Any:
    return ir.Constant(kind, [value] * kind.count)


def _call(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    kind = ir.FunctionType(result, [a.type for a in arguments])
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    return builder.call(function, arguments)


def _lookup_avx512(builder: Any, table: Any, codes: Any) -> Any:
    """table <16 x float>, codes <16 x i32> of which the low four bits count -> <16 x float>."""
    return _call(builder, "llvm.x86.avx512.permvar.sf.512", _floats, table, codes)


def _lookup_avx2(builder: Any, table: Any, codes: Any) -> Any:
    """The same by two permutes of eight entries each and a choice, for each half of the lanes."""
    eight_floats, eight = ir.VectorType(_f32, 8), ir.VectorType(_i32, 8)

    def half(vector: Any, first: int) -> Any:
        places = ir.Constant(eight, list(range(first, first + 8)))
        return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), places)

    found = []
    for first in (0, 8):
        index = half(codes, first)
        low, high = (
            _call(builder, "llvm.x86.avx2.permps", eight_floats, half(table, entries), index) for entries in (0, 8)
        )
        upper = builder.icmp_signed("<", builder.shl(index, _constant(28, eight)), _constant(0, eight))
        found.append(builder.select(upper, high, low))
    places = ir.Constant(_words, list(range(LANES)))
    return builder.shuffle_vector(found[0], found[1], places)


def _multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    return _call(builder, "llvm.fma.v16f32", _floats, a, b, c)


def _product(lookup: Any) -> Any:
    """acc[16] += scales[16] * sum over 64 columns of table[code] x[column]."""

    def typed(context: Any, words: Any, x: Any, table: Any, scales: Any, acc: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            words, x, table, scales, acc = arguments
            values = _load(builder, table, 0, _floats)
            sums = [ir.Constant(_floats, [0.0] * LANES)] * 4  # the sums do not wait for one another
            for column in range(COLUMNS):
                if column % 8 == 0:
                    word = _load(builder, words, column // 8 * 4 * LANES, _words)
                    _prefetch(builder, words, column // 8 * 4 * LANES)
                shift = 4 * (column % 8 ^ 1)
                codes = builder.lshr(word, _constant(shift, _words)) if shift else word
                factor = _splat(builder, _load(builder, x, 4 * column, _f32))
                sums[column % 4] = _multiply_add(builder, lookup(builder, values, codes), factor, sums[column % 4])
            total = builder.fadd(builder.fadd(sums[0], sums[1]), builder.fadd(sums[2], sums[3]))
            before = _load(builder, acc, 0, _floats)
            _store(builder, _multiply_add(builder, total, _load(builder, scales, 0, _floats), before), acc)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 5), build

    return typed


def _product_bf16(context: Any, words: Any, x: Any, table: Any, scales: Any, acc: Any) -> Any:
    """The same of bfloat16: x as pairs of columns (c, c + 4), table uint16 [32], the 16 values twice."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        words, x, table, scales, acc = arguments
        values = _load(builder, table, 0, _halves)
        sums = [ir.Constant(_floats, [0.0] * LANES)] * 4
        for step in range(COLUMNS // 2):
            if step % 4 == 0:
                word = builder.bitcast(_load(builder, words, step // 4 * 4 * LANES, _words), _halves)
                _prefetch(builder, words, step // 4 * 4 * LANES)
            shift = 4 * (step % 4 ^ 1)
            codes = builder.lshr(word, _constant(shift, _halves)) if shift else word
            found = _call(builder, "llvm.x86.avx512.permvar.hi.512", _halves, values, codes)
            pair = _splat(builder, _load(builder, x, 4 * step, _i32))
            sums[step % 4] = _call(
                builder,
                "llvm.x86.avx512bf16.dpbf16ps.512",
                _floats,
                sums[step % 4],
                builder.bitcast(found, _brains),
                builder.bitcast(pair, _brains),
            )
        total = builder.fadd(builder.fadd(sums[0], sums[1]), builder.fadd(sums[2], sums[3]))
        before = _load(builder, acc, 0, _floats)
        _store(builder, _multiply_add(builder, total, _load(builder, scales, 0, _floats), before), acc)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), build


def _scales(lookup: Any) -> Any:
    """out[16] = value(codes[16]) nested[16] + offset: 16 scales of 8 bits in float32.

    The map of 8 bits is straight within each decade: with j = code - 127 and t = |j| + 1/2, value = +-(p + q t), p and
    q of the exponent of t as a float. `lines` holds the 16 p, then the 16 q (`quantization/codes.py:scale_lines`).
    """

    def typed(context: Any, codes: Any, lines: Any, nested: Any, offset: Any, out: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            codes, lines, nested, offset, out = arguments
            index = builder.zext(_load(builder, codes, 0, ir.VectorType(ir.IntType(8), LANES)), _words)
            signed = builder.bitcast(builder.sitofp(builder.sub(index, _constant(127, _words)), _floats), _words)
            size = builder.bitcast(builder.and_(signed, _constant(0x7FFFFFFF, _words)), _floats)
            t = builder.fadd(size, ir.Constant(_floats, [0.5] * LANES))
            decade = builder.lshr(builder.bitcast(t, _words), _constant(23, _words))
            p = lookup(builder, _load(builder, lines, 0, _floats), decade)
            q = lookup(builder, _load(builder, lines, 4 * LANES, _floats), decade)
            value = builder.bitcast(_multiply_add(builder, q, t, p), _words)
            value = builder.or_(value, builder.and_(signed, _constant(1 << 31, _words)))
            near = _load(builder, nested, 0, _floats)
            scale = _multiply_add(builder, builder.bitcast(value, _floats), near, _splat(builder, offset))
            _store(builder, scale, out)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 3, types.float32, types.int64), build

    return typed


def _values(lookup: Any) -> Any:
    """out[16] = table[code] scale of 8 bytes, two codes in each, the first in its high half; float32."""

    def typed(context: Any, packed: Any, table: Any, scale: Any, out: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            packed, table, scale, out = arguments
            _store(builder, _sixteen(builder, lookup, packed, table, scale), out)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.float32, types.int64), build

    return typed


def _values_bf16(lookup: Any) -> Any:
    """The same, rounded to the nearest bfloat16, ties to even."""

    def typed(context: Any, packed: Any, table: Any, scale: Any, out: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            packed, table, scale, out = arguments
            bits = builder.bitcast(_sixteen(builder, lookup, packed, table, scale), _words)
            odd = builder.and_(builder.lshr(bits, _constant(16, _words)), _constant(1, _words))
            rounded = builder.add(builder.add(bits, odd), _constant(0x7FFF, _words))
            top = builder.lshr(rounded, _constant(16, _words))
            _store(builder, builder.trunc(top, ir.VectorType(_i16, LANES)), out)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.float32, types.int64), build

    return typed


def _sixteen(builder: Any, lookup: Any, packed: Any, table: Any, scale: Any) -> Any:
    """Each byte becomes a pair of words: itself shifted down by four, and itself."""
    wide = ir.VectorType(_i64, 8)
    pairs = builder.zext(_load(builder, packed, 0, ir.VectorType(ir.IntType(8), 8)), wide)
    both = builder.or_(builder.lshr(pairs, _constant(4, wide)), builder.shl(pairs, _constant(32, wide)))
    found = lookup(builder, _load(builder, table, 0, _floats), builder.bitcast(both, _words))
    return builder.fmul(found, _splat(builder, scale))


product_avx512 = intrinsic(_product(_lookup_avx512))
product_avx2 = intrinsic(_product(_lookup_avx2))
product_bf16 = intrinsic(_product_bf16)
scales_avx512 = intrinsic(_scales(_lookup_avx512))
scales_avx2 = intrinsic(_scales(_lookup_avx2))
values_avx512 = intrinsic(_values(_lookup_avx512))
values_avx2 = intrinsic(_values(_lookup_avx2))
bfloats_avx512 = intrinsic(_values_bf16(_lookup_avx512))
bfloats_avx2 = intrinsic(_values_bf16(_lookup_avx2))
