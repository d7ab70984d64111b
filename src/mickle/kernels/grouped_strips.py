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

from mickle.kernels.assembly import BYTES, FLOATS, HALVES, WORDS, Lines, compile_program, constant, floats, has, words
from mickle.kernels.strips import CHUNK, STRIP, places

AHEAD = 8192  # bytes of codes that are asked for before they are needed
TILES = 4  # made ready at a time
READY = 32  # bytes of a tile made ready: 16 codes, 4 floats


@cache
def compiled(bits: int, segment: int, two_level: bool, way: int, turns: bool) -> Any:
    """The function of one format, by :func:`program`: (codes, statistics, second, x, sums, out, scratch, first strip,
    last, chunks, groups, group). scratch: READY bytes for each group, groups rounded up to a multiple of TILES.
    """
    return compile_program(program(bits, segment, two_level, way, turns), 7, 5)


def multiplies_bits() -> bool:
    """Whether the processor has an instruction for products of 8 x 8 bits."""
    return has("gfni", "avx512bw", "avx512vbmi")


def program(bits: int, segment: int, two_level: bool, way: int, turns: bool) -> str:
    """The product of strips first to last with one row of x, as LLVM assembly. turns: with products of bits."""
    t = Lines()
    row = t.at("%codes.strip", "%chunk", 4 * STRIP * bits)
    loaded = []
    for word in range(bits):
        place = t.after(row, 64 * word)
        t.prefetch(t.after(place, AHEAD))
        loaded.append(t.load(WORDS, place))
    xs = t.at("%x", "%chunk", (way or 4) * CHUNK)
    # The next strip's statistics are asked for a little with every chunk: their loops would wait for each line.
    for stream in ("statistics", "second") if two_level else ("statistics",):
        t.prefetch(t.after(f"%{stream}.next", t.let(f"mul i64 %chunk, %{stream}.step")))
    total = "%acc"
    for number in range(CHUNK // segment):
        quads = range(number * segment // 4, (number + 1) * segment // 4)
        codes = [(quad, _quad(t, loaded, quad, bits, turns)) for quad in quads]
        dot = _bytes_dot(t, codes, way, xs) if way else _float_dot(t, codes, bits, xs)
        total = _segment(t, CHUNK // segment, number, two_level, dot, total)
    return f"""
declare {FLOATS} @llvm.fma.v16f32({FLOATS}, {FLOATS}, {FLOATS})
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)
declare i64 @llvm.umin.i64(i64, i64)
declare {WORDS} @llvm.masked.load.v16i32.p0(ptr, i32, <16 x i1>, {WORDS})
{f"declare {WORDS} @llvm.x86.avx512.vpdpbusd.512({WORDS}, {WORDS}, {WORDS})" if way else ""}
{f"declare {BYTES} @llvm.x86.vgf2p8affineqb.512({BYTES}, {BYTES}, i8)" if turns else ""}
define void @run(ptr noalias %codes, ptr noalias %statistics, ptr noalias %second, ptr noalias %x, ptr noalias %sums,
                 ptr noalias %out, ptr noalias %scratch, i64 %first, i64 %last, i64 %chunks, i64 %groups, i64 %group)
{{ entry:
  %codes.size = mul i64 %chunks, {4 * STRIP * bits}
  %statistics.size = mul i64 %groups, {12 if two_level else 4 * STRIP}
  %second.size = mul i64 %groups, 8
  %statistics.step = udiv i64 %statistics.size, %chunks
  %second.step = udiv i64 %second.size, %chunks
  %group.last = sub i64 %groups, 1
  %group.chunks = udiv i64 %group, {CHUNK}
  %groups.up = add i64 %groups, {TILES - 1}
  %groups.four = and i64 %groups.up, -{TILES}
  %scratch.size = mul i64 %groups.four, {STRIP}
  %levels = getelementptr i8, ptr %scratch, i64 %scratch.size
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
{_tiles(turns) if two_level else "  br label %ready"}
ready:
  br label %columns
columns:
  %chunk = phi i64 [ 0, %ready ], [ %chunk.next, %columns ]
  %acc = phi {FLOATS} [ zeroinitializer, %ready ], [ {total}, %columns ]
{t.text}
  %chunk.next = add i64 %chunk, 1
  %chunk.more = icmp ult i64 %chunk.next, %chunks
  br i1 %chunk.more, label %columns, label %done
done:
  %out.strip = getelementptr <16 x float>, ptr %out, i64 %strip
  store {FLOATS} {total}, ptr %out.strip, align 4
  %strip.next = add i64 %strip, 1
  br label %strips
end:
  ret void
}}
"""


def _tiles(turns: bool) -> str:
    """Make a strip's statistics ready: bytes of codes at %scratch; a, -a o, -a', a' o' of each tile at %levels."""
    t = Lines(1_000_000)  # names that the columns do not have
    left = t.let("sub i64 %groups, %tile")
    planes = _first_words(t, t.at("%statistics.strip", "%tile", 12), left, 3)
    codes = (_turned if turns else _from_planes)(t, planes)
    t.do(f"store {BYTES} {codes}, ptr {t.at('%scratch', '%tile', STRIP)}, align 4")
    levels = _levels(t, _first_words(t, t.at("%second.strip", "%tile", 8), left, 2))
    t.do(f"store {FLOATS} {levels}, ptr {t.at('%levels', '%tile', 16)}, align 4")
    return f"""  br label %tiles
tiles:
  %tile = phi i64 [ 0, %begin ], [ %tile.next, %tiles ]
{t.text}
  %tile.next = add i64 %tile, {TILES}
  %tile.more = icmp ult i64 %tile.next, %groups
  br i1 %tile.more, label %tiles, label %ready"""


def _levels(t: Lines, loaded: str) -> str:
    """a, o, a', o' of TILES tiles in 16 bits -> a, -a o, -a', a' o' in floats."""
    halves = t.let(f"bitcast {WORDS} {loaded} to <32 x half>")
    sixteen = t.let(
        f"shufflevector <32 x half> {halves}, <32 x half> poison, {WORDS} {constant('i32', list(range(16)))}"
    )
    four = t.let(f"fpext {HALVES} {sixteen} to {FLOATS}")
    signed = t.let(f"fmul {FLOATS} {four}, {constant('float', [1.0, -1.0, -1.0, 1.0] * TILES)}")
    by = [place for k in range(TILES) for place in (16, 4 * k, 16, 4 * k + 2)]
    steps = t.let(f"shufflevector {FLOATS} {four}, {FLOATS} {floats(1.0)}, {WORDS} {constant('i32', by)}")
    return t.let(f"fmul {FLOATS} {signed}, {steps}")


def _first_words(t: Lines, place: str, tiles: str, each: int) -> str:
    """`each` words of 32 bits of TILES tiles, those past the last tile 0."""
    most = t.let(f"call i64 @llvm.umin.i64(i64 {tiles}, i64 {TILES})")
    count = t.splat(t.let(f"trunc i64 {t.let(f'mul i64 {most}, {each}')} to i32"), "i32")
    mask = t.let(f"icmp ult {WORDS} {constant('i32', list(range(16)))}, {count}")
    return t.let(
        f"call {WORDS} @llvm.masked.load.v16i32.p0(ptr {place}, i32 4, <16 x i1> {mask}, {WORDS} zeroinitializer)"
    )


def _turned(t: Lines, planes: str) -> str:
    """Bit planes [4 tiles, 6, 16 bits] -> bytes [4 tiles, 16], plane p at bit p, by products of bits.

    Bit i of a product is the parity of x and the matrix's byte 7 - i: of x = 2^lane it is that byte's bit of the lane.
    """
    source = t.let(f"bitcast {WORDS} {planes} to {BYTES}")
    places_ = []
    for tile in range(TILES):
        for half in range(2):
            for byte in range(8):
                plane = 7 - byte
                places_.append(12 * tile + 2 * plane + half if plane < 6 else 64)
    matrix = t.let(f"shufflevector {BYTES} {source}, {BYTES} zeroinitializer, <64 x i32> {constant('i32', places_)}")
    lanes = constant("i8", [1 << lane if lane < 7 else -128 for _ in range(8) for lane in range(8)])
    return t.let(f"call {BYTES} @llvm.x86.vgf2p8affineqb.512({BYTES} {lanes}, {BYTES} {matrix}, i8 0)")


def _from_planes(t: Lines, planes: str) -> str:
    """The same, plane by plane."""
    source = t.let(f"bitcast {WORDS} {planes} to <32 x i16>")
    found = "zeroinitializer"
    for plane in range(6):
        of_tiles = constant("i32", [6 * tile + plane for tile in range(TILES)])
        four = t.let(f"shufflevector <32 x i16> {source}, <32 x i16> poison, <4 x i32> {of_tiles}")
        lanes = t.let(f"bitcast <4 x i16> {four} to <64 x i1>")
        bit = constant("i8", [1 << plane] * 64)
        own = t.let(f"select <64 x i1> {lanes}, {BYTES} {bit}, {BYTES} zeroinitializer")
        found = t.let(f"or {BYTES} {found}, {own}")
    return found


def _segment(t: Lines, pieces: int, number: int, two_level: bool, dot: str, total: str) -> str:
    """Add segment `number` of the chunk's `pieces` to `total`, `dot` being its sum of code times whole number."""
    place = t.let(f"add i64 {t.let(f'mul i64 %chunk, {pieces}')}, {number}")
    # Groups narrower than a chunk are segments themselves; a division would cost as much as the products.
    group = t.let(f"udiv i64 {place}, %group.chunks") if pieces == 1 else place
    group = t.let(f"call i64 @llvm.umin.i64(i64 {group}, i64 %group.last)")
    scale, minus_zero = (_two_levels if two_level else _halves)(t, group)
    sum_at = t.at("%sums", place, 8)
    shift = t.let(f"fmul {FLOATS} {minus_zero}, {t.splat(t.load('float', sum_at))}")
    unit = t.splat(t.load("float", t.after(sum_at, 4)))
    return t.fma(scale, t.fma(dot, unit, shift), total)


def _bytes_dot(t: Lines, codes: list[tuple[int, str]], way: int, xs: str) -> str:
    """Sum of code times whole number over the quads, as floats."""
    found, high = "zeroinitializer", ""
    for part in range(way):
        if part == way - 1:  # the two lowest stay below 2^24 together
            found = t.let(f"shl {WORDS} {found}, {words(8)}")
        for quad, four in codes:
            x = t.splat(t.load("i32", t.after(xs, 4 * (way * quad + part))), "i32")
            found = t.let(f"call {WORDS} @llvm.x86.avx512.vpdpbusd.512({WORDS} {found}, {WORDS} {four}, {WORDS} {x})")
        if part < way - 2:
            high, found = t.let(f"sitofp {WORDS} {found} to {FLOATS}"), "zeroinitializer"
    dot = t.let(f"sitofp {WORDS} {found} to {FLOATS}")
    return t.fma(high, floats(65536), dot) if high else dot


def _float_dot(t: Lines, codes: list[tuple[int, str]], bits: int, xs: str) -> str:
    """Sum of code times x over the quads, in floats."""
    dot = "zeroinitializer"
    for quad, four in codes:
        for byte in range(4):
            one = t.let(f"lshr {WORDS} {four}, {words(8 * byte)}") if byte else four
            one = t.let(f"and {WORDS} {one}, {words(2**bits - 1)}")
            number = t.let(f"sitofp {WORDS} {one} to {FLOATS}")
            dot = t.fma(number, t.splat(t.load("float", t.after(xs, 4 * (4 * quad + byte)))), dot)
    return dot


def _quad(t: Lines, loaded: list[str], quad: int, bits: int, turns: bool) -> str:
    """The codes of four columns as the four bytes of a word."""
    pieces = places(bits)[quad]
    if turns and len(pieces) == 2:  # elsewhere it would stand in the way of the products, which it shares a unit with
        first, second = (_moved(t, loaded[word], *piece) for word, *piece in pieces)
        return t.let(f"or {WORDS} {first}, {second}")
    found = []
    for word, shift, own, mask in pieces:
        moved, down = loaded[word], shift - own
        if down:
            moved = t.let(f"{'lshr' if down > 0 else 'shl'} {WORDS} {moved}, {words(abs(down))}")
        found.append(t.let(f"and {WORDS} {moved}, {words((mask << own) * 0x01010101)}"))
    return found[0] if len(found) == 1 else t.let(f"or {WORDS} {found[0]}, {found[1]}")


def _moved(t: Lines, word: str, shift: int, own: int, mask: int) -> str:
    """Of each byte the bits of `mask` from `shift` on, at `own`, by a product of bits."""
    rows = [0] * 8
    for bit in range(mask.bit_length()):
        value = 1 << (shift + bit)
        rows[7 - (own + bit)] = value - 256 if value > 127 else value
    source = t.let(f"bitcast {WORDS} {word} to {BYTES}")
    found = t.let(
        f"call {BYTES} @llvm.x86.vgf2p8affineqb.512({BYTES} {source}, {BYTES} {constant('i8', rows * 8)}, i8 0)"
    )
    return t.let(f"bitcast {BYTES} {found} to {WORDS}")


def _two_levels(t: Lines, group: str) -> tuple[str, str]:
    """s and -z of a tile made ready."""
    code = t.load("<16 x i8>", t.at("%scratch", group, STRIP))
    wide = t.let(f"zext <16 x i8> {code} to {WORDS}")
    both = t.let(f"and {WORDS} {wide}, {words(7)}"), t.let(f"lshr {WORDS} {wide}, {words(3)}")
    four = t.at("%levels", group, 16)
    found = []
    for level, own in enumerate(both):
        step, lowest = (t.splat(t.load("float", t.after(four, 4 * (2 * level + k)))) for k in (0, 1))
        found.append(t.fma(step, t.let(f"sitofp {WORDS} {own} to {FLOATS}"), lowest))
    return found[0], found[1]


def _halves(t: Lines, group: str) -> tuple[str, str]:
    """s and -z from 16-bit floats."""
    at = t.at("%statistics.strip", group, 4 * STRIP)
    scale, zero = (t.load(HALVES, t.after(at, 2 * STRIP * level), 2) for level in (0, 1))
    minus = t.let(f"fneg {FLOATS} {t.let(f'fpext {HALVES} {zero} to {FLOATS}')}")
    return t.let(f"fpext {HALVES} {scale} to {FLOATS}"), minus
