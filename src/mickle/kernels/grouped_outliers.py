"""The outliers of a grouped matrix times one row: a second pass over their list, as a program in LLVM's language."""

from __future__ import annotations

from functools import cache
from typing import Any

from mickle.kernels.assembly import Lines, compile_program


@cache
def compiled(index_bytes: int) -> Any:
    """(values, columns, rows, x, out, number of rows): out += the outliers' part. Columns are of `index_bytes`."""
    return compile_program(program(index_bytes), 5, 1)


def program(index_bytes: int) -> str:
    """out[row] += sum over the row's outliers of value x[column], as LLVM assembly; four at a time, then one by one."""
    kind = f"i{8 * index_bytes}"
    t = Lines()
    values_at, columns_at = t.at("%values", "%k", 2), t.at("%columns", "%k", index_bytes)
    quad = t.let(f"fpext <4 x half> {t.let(f'load <4 x half>, ptr {values_at}, align 2')} to <4 x float>")
    gathered = "poison"
    for lane in range(4):
        at = t.let(f"getelementptr {kind}, ptr {columns_at}, i64 {lane}")
        column = t.let(f"zext {kind} {t.let(f'load {kind}, ptr {at}, align {index_bytes}')} to i64")
        x = t.let(f"load float, ptr {t.let(f'getelementptr float, ptr %x, i64 {column}')}, align 4")
        gathered = t.let(f"insertelement <4 x float> {gathered}, float {x}, i32 {lane}")
    four = t.let(f"call <4 x float> @llvm.fma.v4f32(<4 x float> {quad}, <4 x float> {gathered}, <4 x float> %sum4)")
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
{t.text}
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
