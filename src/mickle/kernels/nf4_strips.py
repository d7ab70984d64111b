"""Weights in 4 bits made dense, and strips of them times rows, as programs in LLVM's language.

A table of 16 numbers of 32 bits fills one register of 512 bits, and one instruction (`vpermps`) picks 16 entries by the
low four bits of 16 words, whatever stands above them. With AVX2 alone the table takes two registers, and bit 3 chooses
between them. `vpermw` does the same for 32 words of 16 bits by the low five bits (the table stands there twice), and
`vdpbf16ps` multiplies pairs of bfloat16 and adds them in float32.

Layout of codes in strips: a word of 32 bits has 8 columns of one row, as bitsandbytes packs them: column c at bits
4 (c ^ 1). 16 words, those of 16 rows, stand side by side.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from mickle.kernels.assembly import FLOATS, SHORTS, WORDS, Program, constant, same
from mickle.kernels.strips import STRIP

COLUMNS = 64  # of a block, the numbers that have one scale
NESTED = 256  # scales of 8 bits that have one scale
AHEAD = 4096  # bytes of codes that are asked for before they are needed: the processor's own guesses end with a page
HALF, WHOLE = "<8 x i32>", "<8 x i64>"
BRAINS = "<32 x bfloat>"


@cache
def dense(kind: str, brains: bool) -> Any:
    """(packed, scales, table, out, first, stop, shift): out[i] = table[code i] scales[i >> shift] for i from `first`
    to below `stop`, both multiples of 16. out: float32, or bfloat16 rounded to the nearest, ties to even.
    """
    t = Program("ptr packed, ptr scales, ptr table, ptr out, i64 first, i64 stop, i64 shift")
    table = t.load(FLOATS, "%table")
    with t.loop("%first", "%stop", STRIP) as i:
        # Each byte becomes a pair of words: itself shifted down by four, and itself.
        eight = t.load("<8 x i8>", t.after("%packed", t.let(f"lshr i64 {i}, 1")), 1)
        pairs = t.let(f"zext <8 x i8> {eight} to {WHOLE}")
        high = t.let(f"lshr {WHOLE} {pairs}, {same(WHOLE, 4)}")
        low = t.let(f"shl {WHOLE} {pairs}, {same(WHOLE, 32)}")
        codes = t.let(f"bitcast {WHOLE} {t.let(f'or {WHOLE} {high}, {low}')} to {WORDS}")
        scale = t.load("float", t.at("%scales", t.let(f"lshr i64 {i}, %shift"), 4))
        found = t.let(f"fmul {FLOATS} {_lookup(t, kind, table, codes)}, {t.splat(scale)}")
        if brains:
            bits = t.let(f"bitcast {FLOATS} {found} to {WORDS}")
            odd = t.let(f"and {WORDS} {t.let(f'lshr {WORDS} {bits}, {same(WORDS, 16)}')}, {same(WORDS, 1)}")
            near = t.let(f"add {WORDS} {t.let(f'add {WORDS} {bits}, {odd}')}, {same(WORDS, 0x7FFF)}")
            top = t.let(f"trunc {WORDS} {t.let(f'lshr {WORDS} {near}, {same(WORDS, 16)}')} to <16 x i16>")
            t.store("<16 x i16>", top, t.at("%out", i, 2), 2)
        else:
            t.store(FLOATS, found, t.at("%out", i, 4))
    return t.compiled()


@cache
def product(kind: str, double: bool) -> Any:
    """(words, scales, lines, nested, x, table, out, scratch, first strip, last, blocks, rows, last of nested, offset):
    out [rows, strips, 16] = x W^T for the strips from first to below last. `nf4.rows_product` has the shapes; scratch:
    64 bytes for each block of a strip.
    """
    t = Program(
        "ptr words, ptr scales, ptr lines, ptr nested, ptr x, ptr table, ptr out, ptr scratch, "
        "i64 first, i64 last, i64 blocks, i64 rows, i64 strips, i64 nested.last, float offset"
    )
    pairs = kind == "bf16"
    table = t.load(SHORTS if pairs else FLOATS, "%table")
    total, near = t.place(FLOATS), t.place(FLOATS)
    x_size = t.let(f"mul i64 %blocks, {COLUMNS * (2 if pairs else 4)}")
    with t.loop("%first", "%last") as strip:
        begin = t.let(f"mul i64 {strip}, %blocks")
        with t.loop("0", "%rows") as row:  # after the first one the strip is in the first caches
            x = t.after("%x", t.let(f"mul i64 {row}, {x_size}"))
            t.store(FLOATS, "zeroinitializer", total)
            with t.loop("0", "%blocks") as block:
                number = t.let(f"add i64 {begin}, {block}")
                if double:  # scales are made where they are needed: meanwhile the codes arrive
                    with t.when(t.let(f"icmp eq i64 {row}, 0")):
                        made = _scales(t, kind, strip, block, number, near)
                        t.store(FLOATS, made, t.at("%scratch", block, 4 * STRIP))
                scale = t.at("%scratch", block, 4 * STRIP) if double else t.at("%scales", number, 4 * STRIP)
                codes = t.at("%words", number, COLUMNS // 8 * 4 * STRIP)
                sums = _dot(t, kind, table, codes, t.at(x, block, COLUMNS * 4 // (1 + pairs)))
                t.store(FLOATS, t.fma(sums, t.load(FLOATS, scale), t.load(FLOATS, total)), total)
            place = t.let(f"add i64 {t.let(f'mul i64 {row}, %strips')}, {strip}")
            t.store(FLOATS, t.load(FLOATS, total), t.at("%out", place, 4 * STRIP))
    return t.compiled()


def _lookup(t: Program, kind: str, table: str, codes: str) -> str:
    """table <16 x float>, codes <16 x i32> of which the low four bits count -> <16 x float>."""
    if kind != "avx2":
        return t.call(FLOATS, "llvm.x86.avx512.permvar.sf.512", (FLOATS, table), (WORDS, codes))
    halves = [list(range(8)), list(range(8, 16))]
    entries = [t.pick(FLOATS, table, "poison", half) for half in halves]
    found = []
    for half in halves:
        index = t.pick(WORDS, codes, "poison", half)
        low, high = (
            t.call("<8 x float>", "llvm.x86.avx2.permps", ("<8 x float>", part), (HALF, index)) for part in entries
        )
        third = t.let(f"shl {HALF} {index}, {same(HALF, 28)}")  # bit 3 becomes the sign
        upper = t.let(f"icmp slt {HALF} {third}, zeroinitializer")
        found.append(t.let(f"select <8 x i1> {upper}, <8 x float> {high}, <8 x float> {low}"))
    return t.pick("<8 x float>", found[0], found[1], list(range(STRIP)))


def _dot(t: Program, kind: str, table: str, codes: str, x: str) -> str:
    """Sum over 64 columns of table[code] x[column], in each lane. bf16: x as pairs of columns (c, c + 4), table uint16
    [32], the 16 values twice; a step is then a pair.
    """
    pairs = kind == "bf16"
    of_codes, of_x, a_word = (SHORTS, "i32", 4) if pairs else (WORDS, "float", 8)
    sums = ["zeroinitializer"] * 4  # they do not wait for one another
    for step in range(COLUMNS * a_word // 8):
        if step % a_word == 0:
            place = t.after(codes, 4 * STRIP * (step // a_word))
            t.prefetch(t.after(place, AHEAD), keep=3)
            word = t.load(of_codes, place)
        shift = 4 * (step % a_word ^ 1)
        own = t.let(f"lshr {of_codes} {word}, {same(of_codes, shift)}") if shift else word
        factor = t.splat(t.load(of_x, t.after(x, 4 * step)), of_x)
        total = sums[step % 4]
        add = (
            _added_pairs(t, table, own, factor, total) if pairs else t.fma(_lookup(t, kind, table, own), factor, total)
        )
        sums[step % 4] = add
    halves = [t.let(f"fadd {FLOATS} {sums[k]}, {sums[k + 1]}") for k in (0, 2)]
    return t.let(f"fadd {FLOATS} {halves[0]}, {halves[1]}")


def _added_pairs(t: Program, table: str, codes: str, x: str, total: str) -> str:
    """total + both values of each lane times its two bfloat16 of x."""
    found = t.call(SHORTS, "llvm.x86.avx512.permvar.hi.512", (SHORTS, table), (SHORTS, codes))
    pairs = [(BRAINS, t.let(f"bitcast {of} {value} to {BRAINS}")) for of, value in ((SHORTS, found), (WORDS, x))]
    return t.call(FLOATS, "llvm.x86.avx512bf16.dpbf16ps.512", (FLOATS, total), *pairs)


def _scales(t: Program, kind: str, strip: str, block: str, number: str, near: str) -> str:
    """value(code) nested + offset: a block's 16 scales of 8 bits in float32.

    The map of 8 bits is straight within each decade: with j = code - 127 and u = |j| + 1/2, value = +-(p + q u), p and
    q of the exponent of u as a float. `lines` holds the 16 p, then the 16 q (`quantization/codes.py:scale_lines`).
    """
    _nearest(t, strip, block, near)
    codes = t.load("<16 x i8>", t.at("%scales", number, STRIP), 1)
    signed = t.let(f"sub {WORDS} {t.let(f'zext <16 x i8> {codes} to {WORDS}')}, {same(WORDS, 127)}")
    signed = t.let(f"bitcast {FLOATS} {t.let(f'sitofp {WORDS} {signed} to {FLOATS}')} to {WORDS}")
    size = t.let(f"bitcast {WORDS} {t.let(f'and {WORDS} {signed}, {same(WORDS, 0x7FFFFFFF)}')} to {FLOATS}")
    u = t.let(f"fadd {FLOATS} {size}, {same(FLOATS, 0.5)}")
    decade = t.let(f"lshr {WORDS} {t.let(f'bitcast {FLOATS} {u} to {WORDS}')}, {same(WORDS, 23)}")
    p, q = (_lookup(t, kind, t.load(FLOATS, t.after("%lines", 4 * STRIP * k)), decade) for k in (0, 1))
    value = t.let(f"bitcast {FLOATS} {t.fma(q, u, p)} to {WORDS}")
    value = t.let(f"or {WORDS} {value}, {t.let(f'and {WORDS} {signed}, {same(WORDS, -(2**31))}')}")
    return t.fma(t.let(f"bitcast {WORDS} {value} to {FLOATS}"), t.load(FLOATS, near), t.splat("%offset"))


def _nearest(t: Program, strip: str, block: str, near: str) -> None:
    """Put the scales of scales of 16 rows at their block at `near`, where one of them is another than before."""
    row = t.let(f"mul i64 {t.let(f'mul i64 {strip}, {STRIP}')}, %blocks")
    first = t.splat(t.let(f"trunc i64 {t.let(f'add i64 {row}, {block}')} to i32"), "i32")
    each = t.splat(t.let("trunc i64 %blocks to i32"), "i32")
    lanes = constant("i32", range(STRIP))
    place = t.let(f"add {WORDS} {first}, {t.let(f'mul {WORDS} {each}, {lanes}')}")
    rest = t.let(f"and {WORDS} {place}, {same(WORDS, NESTED - 1)}")
    begins = t.let(f"bitcast <16 x i1> {t.let(f'icmp eq {WORDS} {rest}, zeroinitializer')} to i16")
    some = t.let(f"icmp ne i16 {begins}, 0")
    with t.when(t.let(f"or i1 {some}, {t.let(f'icmp eq i64 {block}, 0')}")):
        index = t.let(f"lshr {WORDS} {place}, {same(WORDS, NESTED.bit_length() - 1)}")
        last = t.splat(t.let("trunc i64 %nested.last to i32"), "i32")
        index = t.call(WORDS, "llvm.umin.v16i32", (WORDS, index), (WORDS, last))  # rows that fill up a strip have none
        at = t.let(f"getelementptr float, ptr %nested, {WORDS} {index}")
        every = ("<16 x i1>", same("<16 x i1>", 1))
        pointers = ("<16 x ptr>", at), ("i32", "4"), every, (FLOATS, "poison")
        t.store(FLOATS, t.call(FLOATS, "llvm.masked.gather.v16f32.v16p0", *pointers), near)
