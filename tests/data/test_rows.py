"""Rows of every kind of file, and each way in which a row or a file can be wrong."""

import contextlib
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mickle import storage
from mickle.data import rows as module
from mickle.data.rows import Row, read_rows
from mickle.errors import UsageError

VALUES = [{"text": "one\r\n", "n": 1}, {"text": "two é 漢", "n": 2.5}, {"text": "", "list": [{"a": None}]}]


def written(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\n\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_json_lines_with_any_line_end_and_mark(tmp_path, ends, mark):
    content = mark + ends.join(json.dumps(value) for value in VALUES).encode()
    found = list(read_rows(written(tmp_path, "a.jsonl", content)))
    assert [row.values for row in found] == VALUES
    step = ends.count("\n")
    assert [row.where for row in found] == [f"{tmp_path}/a.jsonl:{1 + step * n}" for n in range(3)]


def test_json_as_an_array_as_lines_as_an_object_with_a_list_and_as_one_conversation(tmp_path):
    several = {
        "array": json.dumps(VALUES, indent=1),
        "lines": "\n".join(map(json.dumps, VALUES)),
        "object": json.dumps({"version": 1, "data": VALUES}),
    }
    for name, content in several.items():
        found = list(read_rows(written(tmp_path, f"{name}.json", content)))
        assert [row.values for row in found] == VALUES, name
    assert found[1].where.endswith("object.json, item 2")
    single = {"text": "a", "tags": ["x", "y"]}
    assert [row.values for row in read_rows(written(tmp_path, "single.json", json.dumps(single)))] == [single]
    one = {"messages": [{"role": "user", "content": "x"}]}
    assert [row.values for row in read_rows(written(tmp_path, "one.json", json.dumps(one, indent=1)))] == [one]


def test_parquet_and_csv(tmp_path):
    table = pa.table({"text": ["a", None, "c" * 3], "parts": [[{"x": 1}], [], None]})
    pq.write_table(table, tmp_path / "t.parquet")
    assert [row.values for row in read_rows(tmp_path / "t.parquet")] == table.to_pylist()
    content = '\ufefftext,answer\r\n"two\r\nlines, quoted ""so""",yes\r\n\r\nplain,\r\n' + "x" * 200_000 + ",long\n"
    found = list(read_rows(written(tmp_path, "t.csv", content)))
    assert [list(row.values.values()) for row in found] == [
        ['two\r\nlines, quoted "so"', "yes"],
        ["plain", ""],
        ["x" * 200_000, "long"],
    ]
    assert [row.where.rpartition(":")[2] for row in found] == ["2", "5", "6"]


BAD_LINES = [
    (b'{"text": "cut', "not JSON: it is cut off"),
    (b'{"text": "a"', "not JSON: it is cut off"),
    (b"{\"text\": 'a'}", "not JSON: Expecting value"),
    (b'{"text": "a"} {"text": "b"}', "not JSON: Extra data"),
    (b'{"text": "raw \x01 control"}', "not JSON: Invalid control character at"),
    (b'{"text": "\xff\xfe"}', "not UTF-8"),
    (b'{"text": "a", "text": "b"}', "a key stands twice in one object"),
    (b'{"m": [{"role": "a", "role": "b"}]}', "a key stands twice in one object"),
    (b'{"text": "\\ud800 half"}', "text holds bytes that are no UTF-8, or half a surrogate pair"),
    (b'{"\\udfff": 1}', "text holds bytes that are no UTF-8, or half a surrogate pair"),
    (b'{"text": "a\\u0000b"}', "text holds a NUL"),
    (b"[1, 2]", "row is a list, not an object"),
    (b'"text"', "row is text, not an object"),
    (b"null", "row is null, not an object"),
    (b'{"a": NaN}', "not JSON: NaN and Infinity are no numbers there"),
    (b'{"a": ' + b"[" * 40 + b"]" * 40 + b"}", "more than 32 lists and objects inside each other"),
    (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "more than 32 lists and objects inside each other"),
    (b'{"a": ' + b"9" * 5000 + b"}", "not JSON: Exceeds the limit"),
]


@pytest.mark.parametrize(("line", "problem"), BAD_LINES)
def test_a_bad_line_is_said_and_the_next_is_read(tmp_path, line, problem):
    path = written(tmp_path, "a.jsonl", b'{"text": "first"}\n' + line + b'\n{"text": "last"}')
    first, bad, last = read_rows(path)
    assert (first.values, last.values) == ({"text": "first"}, {"text": "last"})
    assert bad.values == {} and bad.problem.startswith(problem) and bad.where == f"{path}:2"


def test_surrogate_pairs_are_characters(tmp_path):
    (row,) = read_rows(written(tmp_path, "a.jsonl", b'{"text": "\\ud83d\\ude00"}'))
    assert row.values == {"text": "\U0001f600"}


def test_a_row_that_is_too_large_is_skipped_in_bounded_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LARGEST_ROW", 1000)
    line = json.dumps({"text": "x" * 5000})
    lines = [json.dumps({"text": "a"}), line, json.dumps({"text": "b"})]
    found = list(read_rows(written(tmp_path, "a.jsonl", "\n".join(lines))))
    assert [row.problem for row in found] == ["", "row is larger than 16 MB", ""]
    (row,) = read_rows(written(tmp_path, "a.json", json.dumps([{"text": "x" * 5000}])))
    assert row.problem == "row is larger than 16 MB"
    pq.write_table(pa.table({"text": ["a", "x" * 5000]}), tmp_path / "t.parquet")
    assert [row.problem for row in read_rows(tmp_path / "t.parquet")] == ["", "row is larger than 16 MB"]
    found = list(read_rows(written(tmp_path, "t.csv", "text\na\n" + "x" * 5000 + "\nb\n")))
    assert [row.problem for row in found] == ["", "row is larger than 16 MB", ""]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"only one", "1 fields where the columns are 2"),
        (b"a,b,c", "3 fields where the columns are 2"),
        (b"a,\xff", "text holds bytes that are no UTF-8"),
        (b"a,\x00", "text holds a NUL"),
        (b'a,"never closed', "not CSV: a quote is never closed"),
        (b'a,"closed" early"', "not CSV: ',' expected after '\"'"),
    ],
)
def test_a_bad_line_of_csv(tmp_path, line, problem):
    found = list(read_rows(written(tmp_path, "t.csv", b"one,two\n1,2\n" + line + b"\n")))
    assert found[0].values == {"one": "1", "two": "2"}
    assert found[1].problem.startswith(problem) and found[1].where.endswith("t.csv:3")


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("a.json", b'[{"a": 1}, {"a"', "not valid JSON"),
        ("a.json", b"", "not valid JSON"),
        ("a.json", b'[{"a": "\xff"}]', "not UTF-8"),
        ("a.json", b"[" * 200_000, "not valid JSON"),
        ("a.json", b'{"a": [{}], "b": [{}]}', "no list of rows"),
        ("a.json", b"3", "no list of rows"),
        ("a.jsonl", '{"a": 1}'.encode("utf-16"), "UTF-16"),
        ("a.csv", b"one,one\n1,2\n", "stands twice"),
        ("a.parquet", b"PAR1 no", "not a whole Parquet file"),
        ("a.bin", b"", "no rows can be read from a .bin file"),
        ("rows", b"", "nameless"),
    ],
)
def test_a_file_that_cannot_be_read_as_a_whole_is_refused(tmp_path, name, content, what):
    with pytest.raises(UsageError, match=what) as found:
        list(read_rows(written(tmp_path, name, content)))
    assert name in found.value.where


def test_a_corpus_gives_the_rows_of_its_pages(tmp_path):
    with storage.write_folder(tmp_path / "corpus", kind="corpus") as work:
        (work / "pages").mkdir()
        pq.write_table(pa.table({"text": ["one", "two"]}), work / "pages" / "00000.parquet")
        written(work, "card.json", "{}")
    assert [row.values for row in read_rows(tmp_path / "corpus")] == [{"text": "one"}, {"text": "two"}]


def test_a_folder_gives_the_rows_of_its_files_in_order(tmp_path):
    with pytest.raises(UsageError, match="no rows"):
        list(read_rows(tmp_path))
    with pytest.raises(UsageError, match="no such file"):
        list(read_rows(tmp_path / "none"))
    written(tmp_path, "info.json", '[{"text": "settings"}]')
    assert [row.values["text"] for row in read_rows(tmp_path)] == ["settings"]
    written(tmp_path, "b.jsonl", '{"text": "b"}')
    written(tmp_path, "a.csv", "text\na\n")
    assert [row.values["text"] for row in read_rows(tmp_path)] == ["a", "b"]


def test_empty_files_have_no_rows(tmp_path):
    assert list(read_rows(written(tmp_path, "a.jsonl", b"\n\n  \n"))) == []
    assert list(read_rows(written(tmp_path, "a.csv", b""))) == []
    assert list(read_rows(written(tmp_path, "a.json", b"[]"))) == []


@settings(max_examples=150, deadline=None)
@given(content=st.binary(max_size=300), suffix=st.sampled_from([".jsonl", ".json", ".csv", ".parquet"]))
def test_no_bytes_at_all_break_the_reader(tmp_path_factory, content, suffix):
    path = tmp_path_factory.getbasetemp() / f"fuzz{suffix}"
    path.write_bytes(content)
    found: list[Row] = []
    with contextlib.suppress(UsageError):
        found += read_rows(path)
    assert all(not (row.problem and row.values) for row in found)
