"""The six forms and their outcomes: what good rows become, and a table of bad ones (RELIABILITY 26)."""

# ruff: noqa: E501 - a row of the table a line

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mickle.data.conversation_forms import FORMS, form_of
from mickle.data.conversations import Example, Message, Reading, read_conversations, write_messages
from mickle.errors import UsageError

U, A, S, T = "user", "assistant", "system", "tool"


def turns(*pairs, role="role", content="content"):
    return [{role: who, content: said} for who, said in pairs]


def messages(*pairs, **more):
    return {"messages": turns(*pairs), **more}


def sharegpt(*pairs, **more):
    return {"conversations": turns(*pairs, role="from", content="value"), **more}


CHAT = [(U, "Hi"), (A, "Hello")]
WANTED = (Message(U, "Hi"), Message(A, "Hello"))
GOOD = {  # a row of each form, used to make files in which a bad row is one of many
    "messages": messages(*CHAT),
    "sharegpt": sharegpt(("human", "Hi"), ("gpt", "Hello")),
    "alpaca": {"instruction": "Hi", "input": "", "output": "Hello"},
    "exchange": {"prompt": turns((U, "Hi")), "completion": turns((A, "Hello"))},
    "completion": {"prompt": "Hi", "completion": " Hello"},
    "preference": {"prompt": "Hi", "chosen": "Hello", "rejected": "No"},
    "text": {"text": "Hi"},
}


def written(folder, lines):
    path = folder / "rows.jsonl"
    content = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(b"\n".join(content))
    return path


def read_one(folder, row):
    (example,) = read_conversations(written(folder, [row])).examples
    return example


def marked(**more):
    """A conversation whose answer has more keys."""
    return {"messages": [*turns((U, "Hi")), {"role": A, "content": "x", **more}]}


# (form, row, what comes out): messages where the row is used in spite of what is odd about it, else the reason
IMAGE = [{"type": "text", "text": "see"}, {"type": "image_url", "image_url": "x"}]
MEGABYTE = "word " * 200_000
OUTCOMES = [
    # used
    ("messages", messages((S, "Be kind"), *CHAT), [(S, "Be kind"), *CHAT]),
    ("messages", messages(("developer", "Be kind"), *CHAT), [(S, "Be kind"), *CHAT]),
    ("messages", messages(*CHAT, system="Be kind"), [(S, "Be kind"), *CHAT]),
    ("messages", messages((S, "  "), *CHAT), CHAT),
    ("messages", messages(*CHAT, system=None, id=7, source="x"), CHAT),
    ("messages", messages(*CHAT, prompt="Hi"), CHAT),
    ("messages", messages(("USER ", "Hi"), ("Assistant", "Hello")), CHAT),
    ("messages", messages((U, "Hi"), (A, "look it up"), (T, "found"), (A, "Hello")),
     [(U, "Hi"), (A, "look it up"), (T, "found"), (A, "Hello")]),
    ("messages", messages((U, "a\r\nb"), (A, "  c\n")), [(U, "a\r\nb"), (A, "  c\n")]),
    ("messages", messages((U, "Hi"), (A, MEGABYTE)), [(U, "Hi"), (A, MEGABYTE)]),
    ("messages", messages((U, [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]), (A, "Hello")), CHAT),
    ("messages", messages((U, ["Hi"]), (A, "Hello")), CHAT),
    ("messages", {"messages": [{"role": U, "content": "Hi", "weight": 1}, {"role": A, "content": "Hello", "tool_calls": []}]}, CHAT),
    ("messages", b'\xef\xbb\xbf{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}\r', CHAT),
    ("messages", messages((U, "\ud83d\ude00"), (A, "Hello")), [(U, "\U0001f600"), (A, "Hello")]),
    ("messages", {"messages": json.dumps(turns(*CHAT))}, CHAT),
    ("sharegpt", sharegpt(("system", "Be kind"), ("human", "Hi"), ("gpt", "Hello")), [(S, "Be kind"), *CHAT]),
    ("sharegpt", {"conversation": turns(("user", "Hi"), ("bot", "Hello"))}, CHAT),
    ("alpaca", {"instruction": "Add", "input": "1 2", "output": "3"}, [(U, "Add\n\n1 2"), (A, "3")]),
    ("alpaca", {"instruction": "Hi", "output": "Hello", "input": None}, CHAT),
    ("alpaca", {"instruction": "Hi", "response": "Hello", "system": "S"}, [(S, "S"), *CHAT]),
    ("alpaca", {"instruction": "Hi", "input": "", "output": "Hello", "text": "Hi Hello"}, CHAT),
    ("messages", messages(*CHAT, tools=[], history=[], context="", weight=1, train=True, label=True), CHAT),
    ("messages", messages(*CHAT, history=[["q", "a"]]), [(U, "q"), (A, "a"), *CHAT]),
    ("messages", messages(*CHAT, history=turns((S, "S"), (U, "q"), (A, "a"))), [(S, "S"), (U, "q"), (A, "a"), *CHAT]),
    ("messages", {"messages": [{"role": U, "content": "Hi", "train": False, "weight": 1}, {"role": A, "content": "Hello", "weight": 1}]}, CHAT),
    ("sharegpt", sharegpt(("human", "Hi"), ("gpt", "Hello"), system_prompt="S"), [(S, "S"), *CHAT]),
    ("alpaca", {"instruction": "Hi", "output": "Hello", "system": "S", "history": [["q", "a"], ["r", "b"]]},
     [(S, "S"), (U, "q"), (A, "a"), (U, "r"), (A, "b"), *CHAT]),
    ("alpaca", {"instruction": "Add", "context": "1 2", "response": "3"}, [(U, "Add\n\n1 2"), (A, "3")]),
    ("exchange", {"prompt": turns((U, "Hi")), "completion": turns((A, "Hello")), "history": '[["q", "a"]]'},
     [(U, "q"), (A, "a"), *CHAT]),
    # messages that are not used
    ("messages", {"messages": [{"content": "Hi"}, {"role": A, "content": "Hello"}]}, "a message has no role"),
    ("messages", messages((None, "Hi"), (A, "Hello")), "a message has no role"),
    ("messages", messages(("narrator", "Hi"), (A, "Hello")), "a message has an unknown role"),
    ("messages", messages((7, "Hi"), (A, "Hello")), "a message has an unknown role"),
    ("messages", messages((U, "Hi"), (A, "a"), (A, "b")), "two answers in a row"),
    ("messages", messages((U, "Hi"), (U, "there"), (A, "b")), "two questions in a row"),
    ("messages", messages((U, "Hi"), (A, "a"), (T, "r"), (U, "x"), (A, "b")), "two questions in a row"),
    ("messages", messages((U, "Hi"), (T, "r"), (A, "b")), "a tool speaks without having been asked"),
    ("messages", messages((U, "Hi"), (A, "")), "an empty answer"),
    ("messages", messages((U, "Hi"), (A, " \n\t")), "an empty answer"),
    ("messages", messages((U, ""), (A, "Hello")), "an empty question"),
    ("messages", messages((U, "Hi")), "no answer"),
    ("messages", messages((S, "Hi")), "no answer"),
    ("messages", messages(), "no answer"),
    ("messages", messages((A, "Hello")), "begins with an answer"),
    ("messages", messages(*CHAT, (U, "Bye")), "ends without an answer"),
    ("messages", messages(*CHAT, (T, "r")), "ends without an answer"),
    ("messages", messages((U, "Hi"), (S, "Be kind"), (A, "Hello")), "a system turn stands inside the conversation"),
    ("messages", messages((S, "a"), *CHAT, system="b"), "a system turn stands inside the conversation"),
    ("messages", messages((U, 5), (A, "Hello")), "content is not text"),
    ("messages", messages((U, "Hi"), (A, None)), "content is not text"),
    ("messages", messages((U, {"text": "Hi"}), (A, "Hello")), "content is not text"),
    ("messages", {"messages": [{"role": U}, {"role": A, "content": "Hello"}]}, "content is not text"),
    ("messages", messages((U, IMAGE), (A, "Hello")), "content holds something else than text"),
    ("messages", messages((U, [{"type": "text"}]), (A, "Hello")), "content is not text"),
    ("messages", messages(*CHAT, system=5), "system is not text"),
    ("messages", {"messages": "Hi"}, "messages are no list"),
    ("messages", {"messages": "[{cut"}, "messages are no list"),
    ("messages", {"messages": {"role": U, "content": "Hi"}}, "messages are no list"),
    ("messages", {"messages": ["Hi", "Hello"]}, "a message is no object"),
    ("messages", marked(tool_calls=[{"id": 1}]), "a message with tool_calls, which is not kept"),
    ("messages", marked(reasoning_content="hm"), "a message with reasoning_content, which is not kept"),
    ("messages", marked(reasoning_details=[{"text": "hm"}]), "a message with reasoning_details, which is not kept"),
    ("messages", marked(train_detail=[{"train": False}]), "a message with train_detail, which is not kept"),
    ("messages", marked(weight=0.5), "a mark of what is learnt from is neither true nor false"),
    ("messages", marked(train="perhaps"), "a mark of what is learnt from is neither true nor false"),
    ("messages", {"messages": [{"role": U, "content": "Hi", "train": True}, *turns((A, "x"))]},
     "a turn that is no answer is marked as learnt from"),
    ("messages", messages(*CHAT, weight=0.5), "a weight other than 0 and 1 is not kept"),
    ("messages", messages(*CHAT, context="a passage"), "a row with context, which is not kept"),
    ("messages", messages(*CHAT, images=["a.png"]), "a row with images, which is not kept"),
    ("messages", messages(*CHAT, tools={"name": "f"}), "tools are no list of objects"),
    ("messages", messages(*CHAT, tools="f, g"), "tools are no list of objects"),
    ("messages", messages(*CHAT, documents=["a", "b"]), "documents are no list of objects"),
    ("messages", messages(*CHAT, history="before"), "history is no list"),
    ("messages", {"messages": None}, "no messages"),
    ("messages", messages((U, "Hi\0"), (A, "Hello")), "text holds a NUL"),
    ("messages", messages((U, "Hi \ud800"), (A, "Hello")), "text holds bytes that are no UTF-8, or half a surrogate pair"),
    ("messages", b'{"messages": [{"role": "user", "role": "user", "content": "Hi"}]}', "a key stands twice in one object"),
    ("messages", b'{"messages": [{"role": "user", "content": "Hi"}, {"ro', "not JSON"),
    ("messages", b'{"messages": [{"role": "user", "content": "\xff"}]}', "not UTF-8"),
    ("messages", b"[]", "row is a list, not an object"),
    # the other forms
    ("sharegpt", sharegpt(("human", "Hi"), ("chair", "Hello")), "a message has an unknown role"),
    ("sharegpt", sharegpt(("gpt", "Hello"), ("human", "Hi"), ("gpt", "x")), "begins with an answer"),
    ("sharegpt", sharegpt(("human", "Hi"), ("gpt", None)), "content is not text"),
    ("alpaca", {"instruction": "Hi", "input": "", "output": ""}, "an empty answer"),
    ("alpaca", {"instruction": " ", "input": "x", "output": "Hello"}, "an empty instruction"),
    ("alpaca", {"instruction": "Hi", "input": 3, "output": "Hello"}, "input is not text"),
    ("alpaca", {"instruction": "Hi", "input": "", "output": ["Hello"]}, "answer is not text"),
    ("alpaca", {"instruction": "Hi", "input": ""}, "no output or response"),
    ("alpaca", {"instruction": "Hi", "input": "a", "context": "b", "output": "Hello"}, "an input and a context"),
    ("alpaca", {"instruction": "Hi", "output": "Hello", "history": [["q", "a", "b"]]},
     "history is no list of questions with their answers"),
    ("alpaca", {"instruction": "Hi", "output": "Hello", "history": [["q", ""]]}, "an empty answer"),
    ("completion", {"prompt": "Hi", "completion": "Hello", "context": "a passage"}, "a row with context, which is not kept"),
    ("text", {"text": "Hi", "weight": 2.5}, "a weight other than 0 and 1 is not kept"),
    ("exchange", {"prompt": turns((U, "Hi")), "completion": turns((U, "Hello"))}, "no answer"),
    ("exchange", {"prompt": turns((U, "Hi"), (A, "x")), "completion": turns((A, "y"))}, "two answers in a row"),
    ("completion", {"prompt": "", "completion": "Hello"}, "an empty prompt"),
    ("completion", {"prompt": "Hi", "completion": "\n"}, "an empty answer"),
    ("completion", {"prompt": 3, "completion": "Hello"}, "prompt is not text"),
    ("completion", {"prompt": "Hi"}, "no completion or response"),
    ("preference", {"prompt": "Hi", "chosen": "Hello", "rejected": "Hello"}, "chosen and rejected are the same"),
    ("preference", {"prompt": "Hi", "chosen": "Hello", "rejected": ""}, "an empty answer"),
    ("preference", {"prompt": "Hi", "chosen": "Hello"}, "no rejected"),
    ("preference", {"chosen": "Hello", "rejected": "No"}, "no prompt"),
    ("preference", {"prompt": None, "chosen": turns(*CHAT), "rejected": turns(*CHAT)}, "chosen and rejected are the same"),
    ("preference", {"chosen": turns(*CHAT), "rejected": turns((U, "Hi"))}, "no answer"),
    ("preference", {"prompt": 5, "chosen": "Hello", "rejected": "No"}, "prompt is not text"),
    ("text", {"text": "  "}, "an empty text"),
    ("text", {"text": 5}, "text is not text"),
    ("text", {"other": "x"}, "no text"),
]  # fmt: skip


def test_the_table_is_as_large_as_it_must_be():
    assert sum(isinstance(outcome, str) for _, _, outcome in OUTCOMES) >= 60
    assert {form for form, _, _ in OUTCOMES} == FORMS.keys()


@pytest.mark.parametrize(("form", "row", "outcome"), OUTCOMES)
def test_each_odd_row_has_its_outcome(tmp_path, form, row, outcome):
    path = written(tmp_path, [*[GOOD[form]] * 10, row])
    reading = read_conversations(path)
    assert (reading.form, reading.rows) == (form, 11)
    assert len(reading.examples) + sum(reading.dropped.values()) == 11
    if isinstance(outcome, str):
        assert reading.dropped == {outcome: 1}
        assert len(reading.first) == 1 and reading.first[0].startswith(f"{path}:11: {outcome}")
    else:
        assert not reading.dropped
        assert reading.examples[-1].messages == tuple(Message(*pair) for pair in outcome)
        assert reading.examples[-1].where == f"{path}:11"


RIGHT = [(U, "1 and 1?"), (A, "3, WRONG."), (U, "Again."), (A, "2, RIGHT.")]
MARKS = [("train", False), ("training", False), ("trainable", 0), ("loss", False), ("loss_mask", 0), ("weight", 0),
         ("weight", 0.0), ("masked", True), ("ignore", "true"), ("train", "False")]  # fmt: skip


@pytest.mark.parametrize(("mark", "value"), MARKS)
def test_an_answer_that_is_marked_is_kept_and_not_learnt_from(tmp_path, mark, value):
    row = messages(*RIGHT)
    row["messages"][1][mark] = value
    example = read_one(tmp_path, row)
    assert [turn.trained for turn in example.messages] == [True, False, True, True]
    assert not example.unused and [turn.content for turn in example.messages] == [said for _, said in RIGHT]
    assert write_messages(tmp_path / "again.jsonl", [example]) == 1
    assert read_conversations(tmp_path / "again.jsonl").examples[0].messages == example.messages


@pytest.mark.parametrize(
    ("form", "mark", "value"),
    [
        ("completion", "label", False),
        ("completion", "label", "False"),
        ("alpaca", "kto_tag", "false"),
        ("messages", "label", False),
        ("messages", "train", False),
        ("sharegpt", "weight", 0),
        ("text", "masked", True),
    ],
)
def test_a_row_that_is_marked_is_left_out_and_counted(tmp_path, form, mark, value):
    rows = [GOOD[form], {**GOOD[form], mark: value}] * 6
    reading = read_conversations(written(tmp_path, rows))
    assert (reading.rows, len(reading.examples), reading.dropped) == (12, 6, {})
    reason = f"{mark} is {str(value).lower()}"
    assert reading.left_out == {reason: 6} and reading.lines()[-1] == f"left out, as the rows ask: {reason} (6)"
    with pytest.raises(UsageError, match=f"of 1 rows all ask to be left out: {reason}"):
        read_conversations(written(tmp_path, rows[1:2]))


def test_an_example_none_of_whose_answers_is_learnt_from_is_left_out(tmp_path):
    reading = read_conversations(written(tmp_path, [GOOD["messages"], marked(train=False)]))
    assert len(reading.examples) == 1 and reading.left_out == {"every answer is marked as not learnt from": 1}


def test_a_class_is_no_judgement(tmp_path):
    """Texts with the label 0, and prompts with classes, are examples like others."""
    for row in ({"text": "Hi", "label": False}, {**GOOD["completion"], "label": 0}, {**GOOD["alpaca"], "label": "cat"}):
        reading = read_conversations(written(tmp_path, [row]))
        assert len(reading.examples) == 1 and reading.unused == {"label": 1}


def test_what_nothing_was_done_with_is_said_once_with_its_count(tmp_path):
    named = {"role": U, "content": "Hi", "name": "Ann"}
    rows = [
        {"messages": [named, *turns((A, "Hello"))], "id": 0, "source": ""},
        messages(*CHAT, id=1, source="web", prompt="Hi", mask="user"),
    ]
    reading = read_conversations(written(tmp_path, rows))
    assert reading.unused == {"id": 2, "name of a message": 1, "source": 1, "prompt": 1, "mask": 1}
    assert reading.lines()[-1].startswith("not used: id (2); ")
    part = {"type": "text", "text": "Hi", "train": False}
    assert read_one(tmp_path, messages((U, [part]), (A, "Hello"))).unused == ("train of a content",)
    both = read_conversations(written(tmp_path, [{**GOOD["alpaca"], "response": "x"}, {**GOOD["alpaca"], "tools": []}]))
    assert both.unused == {"response": 1}
    assert read_conversations(written(tmp_path, [{"text": "Hi", "system": "x", "context": "y"}])).unused == {
        "system": 1,
        "context": 1,
    }


def test_prompts_with_a_system_turn_or_turns_before_are_conversations_all_of_them(tmp_path):
    rows = [{**GOOD["completion"], **more} for more in ({}, {"system": "S"}, {"system": ""}, {"history": [["q", "a"]]})]
    reading = read_conversations(written(tmp_path, rows))
    chat = (Message(U, "Hi"), Message(A, " Hello"))
    assert reading.form == "exchange" and {example.form for example in reading.examples} == {"messages"}
    assert [example.messages for example in reading.examples] == [
        chat, (Message(S, "S"), *chat), chat, (Message(U, "q"), Message(A, "a"), *chat)
    ]  # fmt: skip


@pytest.mark.parametrize("spelt", [list, json.dumps])
def test_tools_and_documents_are_kept_for_the_template(tmp_path, spelt):
    function, document = {"name": "heat", "parameters": {}}, {"title": "a", "text": "b"}
    tool = {"type": "function", "function": function}
    more = {"functions": spelt([function]), "tools": spelt([tool]), "documents": spelt([document])}
    found = read_one(tmp_path, messages(*CHAT, **more))
    assert (found.tools, found.documents, found.unused) == ((tool, tool), (document,), ())
    write_messages(tmp_path / "again.jsonl", [found])
    again = read_conversations(tmp_path / "again.jsonl").examples[0]
    assert (again.tools, again.documents) == (found.tools, found.documents)
    assert read_one(tmp_path, {**GOOD["completion"], "tools": more["tools"]}).form == "messages"


def test_what_good_rows_become(tmp_path):
    for form in ("messages", "sharegpt", "alpaca", "exchange"):
        assert read_one(tmp_path, GOOD[form]) == Example("messages", WANTED, where=f"{tmp_path}/rows.jsonl:1")
    found = read_one(tmp_path, GOOD["completion"])
    assert (found.form, found.prompt, found.completion, found.messages) == ("completion", "Hi", " Hello", ())
    assert (read_one(tmp_path, GOOD["text"]).form, read_one(tmp_path, GOOD["text"]).text) == ("text", "Hi")


PREFERRED = ((Message(U, "Hi"),), (Message(A, "Hello"),), (Message(A, "No"),))


@pytest.mark.parametrize(
    "row",
    [
        GOOD["preference"],
        {"prompt": turns((U, "Hi")), "chosen": turns((A, "Hello")), "rejected": turns((A, "No"))},
        {"chosen": turns(*CHAT), "rejected": turns((U, "Hi"), (A, "No"))},
        {"prompt": "Hi", "chosen": turns(*CHAT), "rejected": turns((U, "Hi"), (A, "No")), "messages": turns(*CHAT)},
    ],
)
def test_preferences_as_texts_and_as_messages(tmp_path, row):
    found = read_one(tmp_path, row)
    assert (found.form, found.messages, found.chosen, found.rejected) == ("preference", *PREFERRED)


def test_what_two_conversations_share_ends_with_a_question(tmp_path):
    longer = [*CHAT, (U, "Bye"), (A, "Bye!")]
    found = read_one(tmp_path, {"chosen": turns(*CHAT), "rejected": turns(*longer)})
    assert (found.messages, found.chosen) == (WANTED[:1], WANTED[1:]) and len(found.rejected) == 3


def test_the_same_rows_come_out_of_every_kind_of_file(tmp_path):
    rows = [messages((U, f"q{n}"), (A, f"a{n}")) for n in range(5)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    pq.write_table(pa.Table.from_pylist([{**row, "system": None} for row in rows]), tmp_path / "a.parquet")
    quoted = ['"' + json.dumps(row["messages"]).replace('"', '""') + '"' for row in rows]
    (tmp_path / "a.csv").write_text("id,messages\n" + "".join(f"{n},{q}\n" for n, q in enumerate(quoted)))
    found = [read_conversations(tmp_path / f"a.{end}") for end in ("jsonl", "json", "parquet", "csv")]
    for reading in found:
        assert reading.form == "messages" and not reading.dropped
        assert [e.messages for e in reading.examples] == [e.messages for e in found[0].examples]
    assert [e.where.rpartition("a.")[2] for e in (r.examples[1] for r in found)] == [
        "jsonl:2", "json, item 2", "parquet, row 2", "csv:3",
    ]  # fmt: skip


def test_more_bad_rows_than_allowed_are_refused_with_counts_and_places(tmp_path):
    bad = [messages((U, "Hi")), b"not json", messages((U, "Hi"), (A, "")), messages((A, "x"))]
    path = written(tmp_path, [GOOD["messages"]] * 16 + bad)
    with pytest.raises(UsageError, match="4 of 20 rows are bad") as found:
        read_conversations(path)
    assert f"{path}:17: no answer" in found.value.what and f"{path}:19: an empty answer" in found.value.what
    assert f"{path}:20" not in found.value.what and found.value.expected == "at most 10%"
    reading = read_conversations(path, most_bad=0.2)
    assert reading.dropped == {"no answer": 1, "not JSON": 1, "an empty answer": 1, "begins with an answer": 1}
    lines = reading.lines()
    assert lines[0] == "form messages (columns messages): 16 of 20 rows"
    assert lines[1].startswith("dropped 4: no answer (1); not JSON (1)") and len(lines) == 5
    assert lines[2] == f"  {path}:17: no answer"


def test_exactly_a_tenth_may_be_bad(tmp_path):
    assert read_conversations(written(tmp_path, [GOOD["text"]] * 9 + [{"text": ""}])).rows == 10
    with pytest.raises(UsageError, match="2 of 19"):
        read_conversations(written(tmp_path, [GOOD["text"]] * 17 + [{"text": ""}] * 2))


def test_mixed_forms_are_refused_by_line(tmp_path):
    names = list(GOOD)
    for form in names:
        for other in names:
            path = written(tmp_path, [GOOD[form], GOOD[form], GOOD[other]])
            if form == other or (form, other) == ("completion", "exchange"):  # its prompt is no text: a bad row
                continue
            with pytest.raises(UsageError, match=f"columns of {other}, those before it of {form}") as found:
                read_conversations(path)
            assert found.value.where == f"{path}:3"


def test_unknown_columns_no_rows_and_nothing_but_bad_rows(tmp_path):
    with pytest.raises(UsageError, match="'question', 'reply'") as found:
        read_conversations(written(tmp_path, [{"question": "Hi", "reply": "Hello"}] * 3))
    assert "instruction + output" in found.value.expected
    with pytest.raises(UsageError, match="no rows"):
        read_conversations(written(tmp_path, []))
    with pytest.raises(UsageError, match="no row of the first 3 can be read"):
        read_conversations(written(tmp_path, [b"x"] * 3))
    with pytest.raises(UsageError, match="2 of 2 rows are bad") as found:
        read_conversations(written(tmp_path, [{"text": ""}] * 2), most_bad=1)
    assert found.value.expected == "a row that can be used"


def test_unreadable_rows_before_the_first_good_one_are_counted(tmp_path):
    reading = read_conversations(written(tmp_path, [b"x", {"other": 1}, *[GOOD["text"]] * 20]))
    assert (reading.rows, len(reading.examples)) == (22, 20)
    assert reading.dropped == {"not JSON": 1, "no text": 1}


def test_messages_written_are_read_back(tmp_path):
    given = [
        Example("messages", (Message(S, "Be\u2028kind"), Message(U, 'a "b"\n'), Message(A, "é\U0001f600"))),
        Example("completion", prompt="Hi", completion="Hello"),
    ]
    assert write_messages(tmp_path / "out.jsonl", given) == 2
    found = read_conversations(tmp_path / "out.jsonl")
    assert [e.messages for e in found.examples] == [given[0].messages, WANTED]
    with pytest.raises(UsageError, match="no conversation"):
        write_messages(tmp_path / "no.jsonl", [Example("text", text="x", where="a:1")])
    assert not (tmp_path / "no.jsonl").exists()


def test_columns_are_read_by_the_names_that_are_given(tmp_path):
    rows = [{"q": f"Who {i}?", "a": "She.", "rules": "Be short.", "output": "x"} for i in range(3)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    found = read_conversations(path, columns={"q": "user", "a": "assistant", "rules": "system"})
    turns = [(turn.role, turn.content) for turn in found.examples[0].messages]
    assert turns == [("system", "Be short."), ("user", "Who 0?"), ("assistant", "She.")]
    assert found.unused == {"output of the file": 3}
    with pytest.raises(UsageError, match="no column 'z'") as error:
        read_conversations(path, columns={"q": "prompt", "z": "completion"})
    assert "'q', 'a', 'rules', 'output'" in str(error.value)


def test_a_null_column_is_no_column():
    assert form_of({"messages": None, "text": "x"}) == "text"
    assert form_of({"messages": [], "text": "x"}) == "messages"
    assert isinstance(Reading("text", [], 0).lines(), list)
