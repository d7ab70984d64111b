"""Strips of a grouped matrix times one row, as a program in LLVM's language (`quantization/grouped.py` has the layout).

A strip's 16 rows are the 16 lanes of a register. The codes of four columns stand at the same place of the four bytes
of a word: a shift and a mask make them four bytes, and one instruction (`vpdpbusd`) multiplies them by four signed
bytes of x and adds (`grouped_product.py` says which bytes). Without that instruction codes become floats one by one.

Before its columns, a strip's statistics are made ready, four tiles at a time: bit planes become a byte a row (its 3
bits of the scale, then 3 of the zero), 16-bit floats of the second level become floats of 32 bits. Where the processor
multiplies matrices of bits (`gf2p8affineqb`), one instruction turns planes into bytes, and another one collects the
bits of a quad that stands in two words.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from mickle.kernels.assembly import BYTES, FLOATS, HALVES, SHORTS, WORDS, Program, constant, has, same
from mickle.kernels.strips import CHUNK, STRIP, places

AHEAD = 8192  # bytes of codes that are asked for before they are needed
TILES = 4  # made ready at a time
READY = 32  # bytes of a tile made ready: 16 codes, 4 floats
FOUR = "<4 x float>"


def multiplies_bits() -> bool:
    """Whether the processor has an instruction for products of 8 x 8 bits."""
    return has("gfni", "avx512bw", "avx512vbmi")


@cache
def product(bits: int, segment: int, two_level: bool, way: int, turns: bool) -> Any:
    """The function of one format, the product of strips with one row of x: (codes, statistics, second, x, sums, out,
    scratch, first strip, last, chunks, groups, group). scratch: READY bytes for each group, groups rounded up to a
    multiple of TILES. turns: with products of bits.
    """
    t = Program(
        "ptr codes, ptr statistics, ptr second, ptr x, ptr sums, ptr out, ptr scratch, "
        "i64 first, i64 last, i64 chunks, i64 groups, i64 group"
    )
    total = t.place(FLOATS)
    stored = [("statistics", 12 if two_level else 4 * STRIP), ("second", 8)][: 1 + two_level]
    sizes = {name: t.let(f"mul i64 %groups, {size}") for name, size in stored}
    steps = {name: t.let(f"udiv i64 {size}, %chunks") for name, size in sizes.items()}
    group_chunks, group_last = t.let(f"udiv i64 %group, {CHUNK}"), t.let("sub i64 %groups, 1")
    tiles = t.let(f"and i64 {t.let(f'add i64 %groups, {TILES - 1}')}, -{TILES}")
    levels = t.at("%scratch", tiles, STRIP)  # behind the codes
    codes_size = t.let(f"mul i64 %chunks, {4 * STRIP * bits}")
    with t.loop("%first", "%last") as strip:
        codes = t.after("%codes", t.let(f"mul i64 {strip}, {codes_size}"))
        of = {name: t.after(f"%{name}", t.let(f"mul i64 {strip}, {size}")) for name, size in sizes.items()}
        following = {name: t.after(place, sizes[name]) for name, place in of.items()}
        if two_level:
            with t.loop("0", "%groups", TILES) as tile:
                _make_ready(t, of, tile, levels, turns)
        t.store(FLOATS, "zeroinitializer", total)
        with t.loop("0", "%chunks") as chunk:
            row = t.at(codes, chunk, 4 * STRIP * bits)
            loaded = [_ahead(t, t.after(row, 4 * STRIP * word)) for word in range(bits)]
            # The next strip's statistics are asked for a little with every chunk: their loops would wait for each line.
            for name, place in following.items():
                t.prefetch(t.after(place, t.let(f"mul i64 {chunk}, {steps[name]}")), keep=2)
            xs = t.at("%x", chunk, (way or 4) * CHUNK)
            for number in range(CHUNK // segment):
                quads = range(number * segment // 4, (number + 1) * segment // 4)
                own = [(quad, _quad(t, loaded, quad, bits, turns)) for quad in quads]
                dot = _bytes_dot(t, own, way, xs) if way else _float_dot(t, own, bits, xs)
                piece = t.let(f"add i64 {t.let(f'mul i64 {chunk}, {CHUNK // segment}')}, {number}")
                # Groups narrower than a chunk are segments themselves; a division would cost as much as the products.
                index = t.let(f"udiv i64 {piece}, {group_chunks}") if segment == CHUNK else piece
                index = t.call("i64", "llvm.umin.i64", ("i64", index), ("i64", group_last))
                pair = _two_levels(t, index, levels) if two_level else _halves(t, of["statistics"], index)
                t.store(FLOATS, _added(t, *pair, dot, t.at("%sums", piece, 8), t.load(FLOATS, total)), total)
        t.store(FLOATS, t.load(FLOATS, total), t.at("%out", strip, 4 * STRIP))
    return t.compiled()


@cache
def dense(bits: int) -> Any:
    """(codes, levels, of, to, out, first strip, last, chunks, size of a strip's levels): s (q - z) of every column to
    its place. levels: of each strip, s and z of a group in 16 floats each; of, to [columns of whole chunks]: where, in
    bytes, a column's group stands in them, and where the column stands in `out`.
    """
    t = Program("ptr codes, ptr levels, ptr of, ptr to, ptr out, i64 first, i64 last, i64 chunks, i64 size")
    codes_size = t.let(f"mul i64 %chunks, {4 * STRIP * bits}")
    with t.loop("%first", "%last") as strip:
        codes = t.after("%codes", t.let(f"mul i64 {strip}, {codes_size}"))
        levels = t.after("%levels", t.let(f"mul i64 {strip}, %size"))
        out = t.at("%out", strip, 4 * STRIP)
        with t.loop("0", "%chunks") as chunk:
            row = t.at(codes, chunk, 4 * STRIP * bits)
            loaded = [_ahead(t, t.after(row, 4 * STRIP * word)) for word in range(bits)]
            of, to = (t.at(f"%{name}", chunk, 8 * CHUNK) for name in ("of", "to"))
            for quad in range(CHUNK // 4):
                four = _quad(t, loaded, quad, bits, False)
                for byte in range(4):
                    here = 8 * (4 * quad + byte)
                    level = t.after(levels, t.load("i64", t.after(of, here), 8))
                    code = _code(t, four, byte, bits)
                    less = t.let(f"fsub {FLOATS} {code}, {t.load(FLOATS, t.after(level, 4 * STRIP))}")
                    weight = t.let(f"fmul {FLOATS} {less}, {t.load(FLOATS, level)}")
                    t.store(FLOATS, weight, t.after(out, t.load("i64", t.after(to, here), 8)))
    return t.compiled()


def _code(t: Program, four: str, byte: int, bits: int) -> str:
    """One of four columns' codes, in floats."""
    one = t.let(f"lshr {WORDS} {four}, {same(WORDS, 8 * byte)}") if byte else four
    one = t.let(f"and {WORDS} {one}, {same(WORDS, 2**bits - 1)}")
    return t.let(f"sitofp {WORDS} {one} to {FLOATS}")


def _ahead(t: Program, place: str) -> str:
    """Words of codes; those AHEAD of them are asked for."""
    t.prefetch(t.after(place, AHEAD), keep=2)
    return t.load(WORDS, place)


def _make_ready(t: Program, of: dict[str, str], tile: str, levels: str, turns: bool) -> None:
    """Statistics of TILES tiles: bytes of codes to the scratch; a, -a o, -a', a' o' of each tile to `levels`."""
    left = t.let(f"sub i64 %groups, {tile}")
    planes = _first_words(t, t.at(of["statistics"], tile, 12), left, 3)
    codes = (_turned if turns else _from_planes)(t, planes)
    t.store(BYTES, codes, t.at("%scratch", tile, STRIP))
    t.store(FLOATS, _levels(t, _first_words(t, t.at(of["second"], tile, 8), left, 2)), t.at(levels, tile, 16))


def _levels(t: Program, loaded: str) -> str:
    """a, o, a', o' of TILES tiles in 16 bits -> a, -a o, -a', a' o' in floats."""
    halves = t.let(f"bitcast {WORDS} {loaded} to <32 x half>")
    sixteen = t.pick("<32 x half>", halves, "poison", range(STRIP))
    four = t.let(f"fpext {HALVES} {sixteen} to {FLOATS}")
    signed = t.let(f"fmul {FLOATS} {four}, {constant('float', [1.0, -1.0, -1.0, 1.0] * TILES)}")
    by = [place for k in range(TILES) for place in (16, 4 * k, 16, 4 * k + 2)]
    steps = t.pick(FLOATS, four, same(FLOATS, 1.0), by)
    return t.let(f"fmul {FLOATS} {signed}, {steps}")


def _first_words(t: Program, place: str, tiles: str, each: int) -> str:
    """`each` words of 32 bits of TILES tiles, those past the last tile 0."""
    most = t.call("i64", "llvm.umin.i64", ("i64", tiles), ("i64", str(TILES)))
    count = t.splat(t.let(f"trunc i64 {t.let(f'mul i64 {most}, {each}')} to i32"), "i32")
    mask = t.let(f"icmp ult {WORDS} {constant('i32', range(STRIP))}, {count}")
    words = ("ptr", place), ("i32", "4"), ("<16 x i1>", mask), (WORDS, "zeroinitializer")
    return t.call(WORDS, "llvm.masked.load.v16i32.p0", *words)


def _turned(t: Program, planes: str) -> str:
    """Bit planes [4 tiles, 6, 16 bits] -> bytes [4 tiles, 16], plane p at bit p, by products of bits.

    Bit i of a product is the parity of x and the matrix's byte 7 - i: of x = 2^lane it is that byte's bit of the lane.
    """
    source = t.let(f"bitcast {WORDS} {planes} to {BYTES}")
    halves = [12 * tile + half for tile in range(TILES) for half in range(2)]
    places_ = [half + 2 * plane if plane < 6 else 64 for half in halves for plane in range(7, -1, -1)]
    matrix = t.pick(BYTES, source, "zeroinitializer", places_)
    lanes = constant("i8", [1 << lane if lane < 7 else -128 for _ in range(8) for lane in range(8)])
    return _multiplied_bits(t, lanes, matrix)


def _multiplied_bits(t: Program, x: str, matrix: str) -> str:
    """Products of each eight bytes and a matrix of 8 x 8 bits."""
    return t.call(BYTES, "llvm.x86.vgf2p8affineqb.512", (BYTES, x), (BYTES, matrix), ("i8", "0"))


def _from_planes(t: Program, planes: str) -> str:
    """The same, plane by plane."""
    source = t.let(f"bitcast {WORDS} {planes} to {SHORTS}")
    found = "zeroinitializer"
    for plane in range(6):
        four = t.pick(SHORTS, source, "poison", [6 * tile + plane for tile in range(TILES)])
        lanes = t.let(f"bitcast <4 x i16> {four} to <64 x i1>")
        own = t.let(f"select <64 x i1> {lanes}, {BYTES} {same(BYTES, 1 << plane)}, {BYTES} zeroinitializer")
        found = t.let(f"or {BYTES} {found}, {own}")
    return found


def _added(t: Program, scale: str, minus_zero: str, dot: str, sums: str, total: str) -> str:
    """`total` and a segment: `dot` is its sum of code times whole number, at `sums` stand its sum of x and its unit."""
    shift = t.let(f"fmul {FLOATS} {minus_zero}, {t.splat(t.load('float', sums))}")
    unit = t.splat(t.load("float", t.after(sums, 4)))
    return t.fma(scale, t.fma(dot, unit, shift), total)


def _bytes_dot(t: Program, codes: list[tuple[int, str]], way: int, xs: str) -> str:
    """Sum of code times whole number over the quads, as floats."""
    found, high = "zeroinitializer", ""
    for part in range(way):
        if part == way - 1:  # the two lowest stay below 2^24 together
            found = t.let(f"shl {WORDS} {found}, {same(WORDS, 8)}")
        for quad, four in codes:
            x = t.splat(t.load("i32", t.after(xs, 4 * (way * quad + part))), "i32")
            found = t.call(WORDS, "llvm.x86.avx512.vpdpbusd.512", (WORDS, found), (WORDS, four), (WORDS, x))
        if part < way - 2:
            high, found = t.let(f"sitofp {WORDS} {found} to {FLOATS}"), "zeroinitializer"
    dot = t.let(f"sitofp {WORDS} {found} to {FLOATS}")
    return t.fma(high, same(FLOATS, 65536), dot) if high else dot


def _float_dot(t: Program, codes: list[tuple[int, str]], bits: int, xs: str) -> str:
    """Sum of code times x over the quads, in floats."""
    dot = "zeroinitializer"
    for quad, four in codes:
        for byte in range(4):
            dot = t.fma(_code(t, four, byte, bits), t.splat(t.load("float", t.after(xs, 4 * (4 * quad + byte)))), dot)
    return dot


def _quad(t: Program, loaded: list[str], quad: int, bits: int, turns: bool) -> str:
    """The codes of four columns as the four bytes of a word."""
    pieces = places(bits)[quad]
    if turns and len(pieces) == 2:  # elsewhere it would stand in the way of the products, which it shares a unit with
        first, second = (_moved(t, loaded[word], *piece) for word, *piece in pieces)
        return t.let(f"or {WORDS} {first}, {second}")
    found = []
    for word, shift, own, mask in pieces:
        moved, down = loaded[word], shift - own
        if down:
            moved = t.let(f"{'lshr' if down > 0 else 'shl'} {WORDS} {moved}, {same(WORDS, abs(down))}")
        found.append(t.let(f"and {WORDS} {moved}, {same(WORDS, (mask << own) * 0x01010101)}"))
    return found[0] if len(found) == 1 else t.let(f"or {WORDS} {found[0]}, {found[1]}")


def _moved(t: Program, word: str, shift: int, own: int, mask: int) -> str:
    """Of each byte the bits of `mask` from `shift` on, at `own`, by a product of bits."""
    rows = [0] * 8
    for bit in range(mask.bit_length()):
        value = 1 << (shift + bit)
        rows[7 - (own + bit)] = value - 256 if value > 127 else value
    source = t.let(f"bitcast {WORDS} {word} to {BYTES}")
    found = _multiplied_bits(t, source, constant("i8", rows * 8))
    return t.let(f"bitcast {BYTES} {found} to {WORDS}")


def _two_levels(t: Program, group: str, levels: str) -> tuple[str, str]:
    """s and -z of a tile made ready."""
    code = t.load("<16 x i8>", t.at("%scratch", group, STRIP))
    wide = t.let(f"zext <16 x i8> {code} to {WORDS}")
    both = t.let(f"and {WORDS} {wide}, {same(WORDS, 7)}"), t.let(f"lshr {WORDS} {wide}, {same(WORDS, 3)}")
    four = t.at(levels, group, 16)
    found = []
    for level, own in enumerate(both):
        step, lowest = (t.splat(t.load("float", t.after(four, 4 * (2 * level + k)))) for k in (0, 1))
        found.append(t.fma(step, t.let(f"sitofp {WORDS} {own} to {FLOATS}"), lowest))
    return found[0], found[1]


def _halves(t: Program, statistics: str, group: str) -> tuple[str, str]:
    """s and -z from 16-bit floats."""
    at = t.at(statistics, group, 4 * STRIP)
    scale, zero = (t.load(HALVES, t.after(at, 2 * STRIP * level), 2) for level in (0, 1))
    minus = t.let(f"fneg {FLOATS} {t.let(f'fpext {HALVES} {zero} to {FLOATS}')}")
    return t.let(f"fpext {HALVES} {scale} to {FLOATS}"), minus


@cache
def outliers(index_bytes: int) -> Any:
    """A second pass, over the list of outliers: (values, columns, rows, x, out, number of rows): out[row] += sum over
    the row's outliers of value x[column], four at a time, then one by one. Columns are of `index_bytes`.
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
