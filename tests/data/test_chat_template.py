"""Chat templates: the mask of 14 families, equality with transformers, hostile templates, where they are found."""

# ruff: noqa: E501 - a template a line

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from template_families import FAMILIES, QWEN3, TURNS, Family

from mickle.data import template_sandbox
from mickle.data.answer_spans import (
    CUT,
    CUT_BEFORE,
    EARLIER,
    LEFT_OUT,
    MARKED,
    NO_END,
    NOT_SHOWN,
    NotLaidOut,
    lay_out,
)
from mickle.data.chat_template import PLAIN, ChatTemplate, open_template
from mickle.data.conversations import Message
from mickle.data.template_program import TODAY
from mickle.data.template_sandbox import Rendering
from mickle.data.tokenizer import END_OF_DOCUMENT, train_tokenizer
from mickle.errors import UsageError

CONVERSATION = [
    ("system", "Answer in few words."),
    ("user", "What is two and two?"),
    ("assistant", "Four.\n\nOr 4."),
    ("user", " And three and three?\n"),
    ("assistant", " \tSix, if <b>you</b> insist & {{ braces }} {% too %}. \n"),
    ("user", "4"),
    ("assistant", "4"),
]
TOKENIZER = train_tokenizer(["User and Assistant say so, and so on, and so forth"] * 3, 270)


def turns(pairs, family=None):
    kept = [pair for pair in pairs if family is None or family.system or pair[0] != "system"]
    return [Message(role, content) for role, content in kept]


def template_of(family: Family) -> ChatTemplate:
    return ChatTemplate(family.source, "here", variables=family.variables, specials=family.specials)


def answers(family, messages):
    said = [turn.content for turn in messages if turn.role == "assistant"]
    return [(content.strip() if family.strips else content) + family.end for content in said]


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_trained_is_the_answers_and_their_ends_exactly(name):
    family = FAMILIES[name]
    for upto in range(3, len(CONVERSATION) + 1, 2):
        messages = turns(CONVERSATION[:upto], family)
        found = lay_out(template_of(family), messages)
        lead = " " if name == "falcon" else ""  # its prompt ends with the colon: the space is the model's to write
        assert [found.text[a:b] for a, b in found.trained] == [lead + answer for answer in answers(family, messages)]
        assert found.contents is not None and len(found.contents) == len(messages)
        for (start, end), turn in zip(found.contents, messages, strict=True):
            assert found.text[start:end].strip() == turn.content.strip()
        assert found.notes == ([NO_END] if name == "falcon" else [])


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip), min_size=2, max_size=6
    ),
    name=st.sampled_from([name for name in FAMILIES if name not in ("deepseek", "falcon")]),
)
def test_whatever_people_write_it_is_the_answers_that_are_trained(texts, name):
    family = FAMILIES[name]
    texts = texts[: len(texts) // 2 * 2]
    messages = turns([(("user", "assistant")[n % 2], text) for n, text in enumerate(texts)])
    layout = lay_out(template_of(family), messages)
    text, spans = layout.text, layout.trained
    assert [text[a:b] for a, b in spans] == answers(family, messages)


def test_the_built_in_template_reads_well_and_trains_answers_and_end_marks():
    template = ChatTemplate(PLAIN, variables={"bos_token": "<s>", "eos_token": "</s>"}, specials=("<s>", "</s>"))
    layout = lay_out(template, turns(CONVERSATION[:5]))
    text, spans = layout.text, layout.trained
    assert text == (
        "<s>System:\nAnswer in few words.\n\nUser:\nWhat is two and two?\n\nAssistant:\nFour.\n\nOr 4.</s>\n\n"
        "User:\n And three and three?\n\n\nAssistant:\n" + CONVERSATION[4][1] + "</s>\n\n"
    )
    assert [text[a:b] for a, b in spans] == ["Four.\n\nOr 4.</s>", CONVERSATION[4][1] + "</s>"]
    question = turns(CONVERSATION[:2])
    assert template.render(question, add_generation_prompt=True) == template.render(question) + "Assistant:\n"


def test_reasoning_that_later_turns_do_not_show_leaves_the_last_answer_alone():
    template = ChatTemplate(QWEN3, specials=TURNS)
    first, last = "<think>\nA\n</think>\n\nFour.", "<think>\nB\n</think>\n\nSix."
    one = lay_out(template, turns([("user", "2+2?"), ("assistant", first)]))
    assert [one.text[a:b] for a, b in one.trained] == ["<think>\nA\n</think>\n\nFour.<|im_end|>"] and not one.notes
    both = turns([("user", "2+2?"), ("assistant", first), ("user", "3+3?"), ("assistant", last)])
    found = lay_out(template, both)
    assert [found.text[a:b] for a, b in found.trained] == ["<think>\nB\n</think>\n\nSix.<|im_end|>"]
    assert found.notes == [EARLIER] and found.contents is None
    without = lay_out(template, turns([("user", "2+2?"), ("assistant", "4"), ("user", "3+3?"), ("assistant", "6")]))
    assert [without.text[a:b] for a, b in without.trained] == ["<think>\n\n</think>\n\n6<|im_end|>"]
    assert without.notes == [EARLIER]


def test_a_template_that_leaves_a_turn_out_is_said():
    source = FAMILIES["chatml"].source.replace(
        "{% for message in messages %}", "{% for message in messages if message.role != 'system' %}"
    )
    found = lay_out(ChatTemplate(source, specials=TURNS), turns(CONVERSATION[:3]))
    assert found.notes == [LEFT_OUT] and [found.text[a:b] for a, b in found.trained] == ["Four.\n\nOr 4.<|im_end|>"]


THOUGHT = "<think>It is deep.</think>Deep."
TURN = "<s>{{ m.role }} {{ %s }}<e>"
EACH = "{%% for m in messages %s %%}" + TURN + "{%% endfor %%}"
LAST = "m.content.split('</think>')[-1].strip() if m.role == 'assistant' else m.content"
NO_SYSTEM = "if m.role != 'system'"


@pytest.mark.parametrize(
    ("source", "notes"),
    [
        (EACH % ("", "m.content"), []),
        (EACH % ("", "m.content | replace('.', ' .') | replace(' .', '.')"), []),
        (EACH % ("", LAST), [CUT]),
        (EACH % (NO_SYSTEM, LAST), [LEFT_OUT, CUT]),
        (EACH % ("", "m.content | truncate(30, true, '')"), [CUT]),
        (EACH % ("", "m.content | replace('<', '&lt;')"), [CUT]),
        (EACH % ("", "m.content | replace('soup', 'stew')"), [CUT_BEFORE]),
        (EACH % (NO_SYSTEM, "m.content | replace('soup', 'stew')"), [LEFT_OUT, CUT_BEFORE]),
    ],
)
def test_what_a_template_leaves_out_is_said(source, notes):
    messages = turns([("system", "One word."), ("user", "A bowl for soup?"), ("assistant", THOUGHT + " So it is.")])
    found = lay_out(ChatTemplate(source, specials=("<s>", "<e>")), messages)
    assert found.notes == notes
    assert found.text[slice(*found.trained[0])].endswith("<e>")


def test_an_answer_that_is_shown_twice_is_trained_as_it_is_written():
    source = FAMILIES["chatml"].source.replace("message.content +", "message.content + '|' + message.content +")
    layout = lay_out(ChatTemplate(source, specials=TURNS), turns(CONVERSATION[1:3]))
    text, spans = layout.text, layout.trained
    assert [text[a:b] for a, b in spans] == ["Four.\n\nOr 4.|Four.\n\nOr 4.<|im_end|>"]


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "falcon"])
def test_an_answer_marked_as_not_learnt_from_is_shown_and_not_trained(name):
    family = FAMILIES[name]
    said = turns([("user", "1 and 1?"), ("assistant", "3, WRONG."), ("user", "Again."), ("assistant", "2.")])
    said[1] = Message("assistant", "3, WRONG.", trained=False)
    found = lay_out(template_of(family), said)
    assert [found.text[a:b] for a, b in found.trained] == ["2." + family.end]
    assert "3, WRONG." in found.text and found.notes == [MARKED]


TOOLS = [{"type": "function", "function": {"name": "kiln_heat"}}]
TOLD = "{% if tools %}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{% endif %}"


def test_tools_and_documents_reach_the_template_and_one_that_does_not_show_them_is_said():
    plain = FAMILIES["chatml"].source
    both = {"tools": TOOLS, "documents": [{"title": "kilns", "text": "hot"}]}
    shown = lay_out(ChatTemplate(TOLD + "{{ documents }}" + plain, specials=TURNS), turns(CONVERSATION[:3]), "", both)
    assert shown.text.startswith('{"type": "function", "function": {"name": "kiln_heat"}}[{') and not shown.notes
    assert [shown.text[a:b] for a, b in shown.trained] == ["Four.\n\nOr 4.<|im_end|>"]
    half = lay_out(ChatTemplate(TOLD + plain, specials=TURNS), turns(CONVERSATION[:3]), "", both)
    assert half.notes == [NOT_SHOWN.format("documents")]
    none = lay_out(ChatTemplate(plain, specials=TURNS), turns(CONVERSATION[:3]), "", {"tools": TOOLS})
    assert none.notes == [NOT_SHOWN.format("tools")]


def test_an_answer_that_is_not_shown_is_refused_with_its_example():
    source = "{% for m in messages %}{{ m.role if m.role == 'assistant' else m.content }}\n{% endfor %}"
    with pytest.raises(NotLaidOut, match="no answer of this example") as found:
        lay_out(ChatTemplate(source), turns(CONVERSATION[:3]), "chats.jsonl:7")
    assert "chats.jsonl:7" in found.value.where


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            "{% generation %}{{ message['content'] + '<|im_end|>' }}",
            "{% generation %}{{ message['content'] }}{{ '<|im_end|>' }}",
        ),
        ("{{ '\\n' }}", "{{- '\\n' }}"),
    ],
)
def test_marks_that_say_the_same_are_fine(before, after):
    family = FAMILIES["chatml marked"]
    template = ChatTemplate(family.source.replace(before, after), specials=TURNS)
    assert template.marks_answers
    assert len(lay_out(template, turns(CONVERSATION)).trained) == 3


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("+ '<|im_end|>' }}{% endgeneration %}", "}}{% endgeneration %}{{ '<|im_end|>' }}"),
        ("{{- '<|im_start|>assistant\\n' }}{% generation %}", "{% generation %}{{- '<|im_start|>assistant\\n' }}"),
    ],
)
def test_marks_that_cover_something_else_are_refused(before, after):
    source = FAMILIES["chatml marked"].source
    assert before in source
    with pytest.raises(UsageError, match="generation marks do not cover") as found:
        lay_out(ChatTemplate(source.replace(before, after), "T", specials=TURNS), turns(CONVERSATION), "a:1")
    assert found.value.where == "T; a:1"


def test_renders_as_transformers_does(monkeypatch):
    from transformers.utils import chat_template_utils

    class Clock:
        @staticmethod
        def now():
            return TODAY

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)
    others = {
        "json": "{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}{{ {'b': 1, 'a': '<é>'} | tojson(sort_keys=true) }}",
        "filters": "{% for m in messages %}{{ m.content | trim | replace('a', 'bb') | upper | indent(2, true) }}"
        "{{ m.content.split(' ') | join('-') | length }}{{ loop.index ~ loop.last ~ m.get('x', 7) }}{% endfor %}",
        "macro": "{% macro turn(m) %}<{{ m.role }}>{{ caller() }}{% endmacro %}{% for m in messages %}{% if loop.index > 3 %}"
        "{% break %}{% endif %}{% call turn(m) %}{{ m['content'][::-1] }}{% endcall %}{% endfor %}",
        "sets": "{% set ns = namespace(n=0, x=[]) %}{% for m in messages | selectattr('role', 'equalto', 'user') %}"
        "{% set ns.n = ns.n + m.content | length %}{% set ns.x = ns.x + [m.role] %}{% endfor %}{{ ns.n }}{{ ns.x }}"
        "{% set block %}  {{ bos_token }} {{ undefined }} {{ none }}{% endset %}{{ block }}{{ dict(a=1) }}{{ range(3) | list }}"
        "{{ 7 // 2 }}{{ 7 % 4 }}{{ 2 * 'ab' }}{{ messages | map(attribute='role') | unique | list }}",
        "space": "  {% if true %}  \n  a  {%- if false %} b {% endif -%}\n\n c {# no #}\n {% endif %}\n{{ tools }} {{ documents }} ",
    }
    for name, source in [
        *((n, f.source) for n, f in FAMILIES.items()),
        ("qwen3", QWEN3),
        ("plain", PLAIN),
        *others.items(),
    ]:
        family = FAMILIES.get(name, Family("", "", ()))
        messages = turns(CONVERSATION, family)
        chat = [{"role": turn.role, "content": turn.content} for turn in messages]
        variables = {"bos_token": "<s>", "eos_token": "</s>", **family.variables}
        for prompt in (False, True):
            (wanted,), _ = chat_template_utils.render_jinja_template(
                [chat], chat_template=source, add_generation_prompt=prompt, **variables
            )
            found = ChatTemplate(source, variables=variables).render(messages, prompt)
            assert found == wanted, name


LOOP = "{% for i in range(99999) %}"
END = "{% endfor %}"
HOSTILE = {
    "endless": LOOP * 4 + END * 4,
    "empty loops": LOOP * 2 + "{% for i in range(99999) if false %}{% endfor %}" + END * 2,
    "output": LOOP + "a" * 1000 + END,
    "one output": "{{ 'a' * 99999999999 }}",
    "many": "{{ ['a'] * 99999999999 }}",
    "power": "{{ 10 ** (10 ** 10) }}",
    "product": "{% set ns = namespace(x=9) %}" + LOOP + "{% set ns.x = ns.x * ns.x %}" + END,
    "doubling": "{% set ns = namespace(x='ab') %}" + LOOP + "{% set ns.x = ns.x ~ ns.x %}" + END,
    "doubling by plus": "{% set ns = namespace(x='ab') %}" + LOOP + "{% set ns.x = ns.x + ns.x %}" + END,
    "doubling in a block": "{% set ns = namespace(x='ab') %}" + LOOP + "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}" + END,
    "doubling in a macro": "{% macro m(x) %}{{ x }}{{ x }}{% endmacro %}{% set ns = namespace(x='ab') %}"
    + LOOP + "{% set ns.x = m(ns.x) %}" + END,
    "nested lists": "{% set ns = namespace(x=[1]) %}" + LOOP + "{% set ns.x = [ns.x, ns.x] %}" + END + "{{ ns.x }}",
    "nested pairs": "{% set ns = namespace(x=(1,)) %}" + LOOP + "{% set ns.x = (ns.x, ns.x) %}" + END + "{{ {ns.x: 1} }}",
    "nested dicts": "{% set ns = namespace(x={}) %}" + LOOP + "{% set ns.x = {'a': ns.x, 'b': ns.x} %}" + END,
    "nested arguments": "{% macro m() %}{{ m(varargs, varargs) }}{% endmacro %}{{ m(1) }}",
    "views": "{% set d = {'a': 'x' * 99999} %}{{ [d.items()] * 9999 }}",
    "digits": "{{ [('9' * 4000) | int] * 99999 }}",
    "nested by a call": "{% set ns = namespace(x={}) %}{% for i in range(60) %}{% set ns.x = dict(a=ns.x, b=ns.x) %}{% endfor %}{{ ns.x }}",
    "a circle": "{% set ns = namespace() %}{% set ns.x = [ns, ns] %}{% set ns.x = ns.x * 99999 %}{{ ns.x * 99999 }}",
    "recursion": "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
    "recursive loop": "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "padding": "{{ 'a'.ljust(999999999) }}",
    "zeros": "{{ 'a'.zfill(999999999) }}",
    "percent": "{{ '%999999999d' % 1 }}",
    "format": "{{ '{:>999999999}'.format(1) }}",
    "format filter": "{{ '%999999999d' | format(1) }}",
    "center": "{{ 'a' | center(999999999) }}",
    "indent": "{{ 'a' | indent(999999999, true) }}",
    "wide json": "{{ messages | tojson(indent=999999999) }}",
    "long separators": "{{ range(9999) | list | tojson(separators=['a' * 9999, 'b']) }}",
    "replace": "{{ ('a' * 9999) | replace('a', 'b' * 9999) }}",
    "replace method": "{{ ('a' * 9999).replace('a', 'b' * 9999) }}",
    "join": "{{ range(99999) | list | join('a' * 99999) }}",
    "join lazily": "{{ range(99999) | map('string') | join('a' * 99999) }}",
    "join method": "{{ ('a' * 99999).join('b' * 99999) }}",
    "lorem": "{{ lipsum(n=99999) }}",
    "date": "{{ strftime_now('%A' * 99999) }}",
    "bytes": "{{ (1).to_bytes(999999999, 'big') }}",
    "rounding": "{{ 1|round(99999999,'ceil') }}",
    "rounding in a loop": LOOP + "{{ (7 + i)|round(9999999,'floor') }}" + END,
    "deep": "{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}",
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "class by attr": "{{ ('' | attr('__class__')).__mro__ }}",
    "class by map": "{{ [''] | map(attribute='__class__') | map(attribute='__mro__') | list }}",
    "globals": "{{ self.__init__.__globals__ }}",
    "raise": "{{ raise_exception.__globals__['json'] }}",
    "function": "{{ namespace.__init__.__globals__ }}",
    "namespace": "{{ namespace(__class__=1).__class__.__init__.__globals__ }}",
    "mutation": "{{ messages.append(1) }}{{ messages[0].update(role='x') }}",
    "include": "{% include 'config.json' %}",
    "import": "{% import 'os' as os %}{{ os }}",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_is_stopped_and_named(name):
    begun = time.thread_time()
    with pytest.raises(UsageError) as found:
        ChatTemplate(HOSTILE[name], "folder/chat_template.jinja").render(turns(CONVERSATION))
    assert "chat_template.jinja" in found.value.where and found.value.what.startswith("chat template ")
    assert len(str(found.value)) < 600
    if name not in ("deep", "recursion", "recursive loop", "nested arguments"):
        assert "too deep" not in found.value.what  # the memory was not even asked for
    assert time.thread_time() - begun < 5  # the limit is 0.1 s; the rest is for slow machines


HARMLESS = {
    "{{ 10 ** 10 ** 10 }}": "1" + "0" * 100,
    "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}": "<Namespace {'x': <Namespace {...}>}>",
    "{% set ns = namespace(x={}) %}{% for i in range(60) %}{% set ns.x = dict(a=ns.x, b=ns.x) %}{% endfor %}": "",
    "{{ namespace(__class__=1) }}": "<Namespace {'__class__': 1}>",
    "{{ '' | attr('__class__') }}": "",
}


@pytest.mark.parametrize("source", HARMLESS)
def test_what_looks_hostile_and_gets_nothing_is_rendered(source):
    assert ChatTemplate(source).render(turns(CONVERSATION)) == HARMLESS[source]


def test_a_template_that_was_stopped_costs_nothing_but_itself():
    fine, endless = ChatTemplate("{{ messages[0].content }}"), ChatTemplate(HOSTILE["endless"])
    for _ in range(2):
        with pytest.raises(UsageError, match="runs for too long"):
            endless.render(turns(CONVERSATION))
        assert fine.render(turns(CONVERSATION)) == CONVERSATION[0][1]


def test_a_template_that_is_stopped_again_and_again_is_asked_no_more(monkeypatch):
    monkeypatch.setattr(template_sandbox, "MOST_STOPS", 2)
    template = ChatTemplate("{# again #}" + HOSTILE["endless"])
    asked = [Rendering(0, 1)]
    for _ in range(2):
        assert len(template.render_all([turns(CONVERSATION)], asked)) == 1
    with pytest.raises(UsageError, match="stopped 2 times before"):
        template.render_all([turns(CONVERSATION)], asked)


def test_a_template_may_take_long_texts():
    long = turns([("user", "a" * 10), ("assistant", "word " * 400_000)])
    layout = lay_out(template_of(FAMILIES["chatml"]), long)
    text, ((start, end),) = layout.text, layout.trained
    assert end - start == 2_000_000 + len("<|im_end|>") and text.endswith("<|im_end|>\n")


def test_a_template_that_wants_more_than_a_question_can_be_opened():
    for wants in (
        "{% if messages | length < 2 %}{{ raise_exception('alone') }}{% endif %}",
        "{{ '' * messages[1].n }}",
    ):
        assert ChatTemplate(wants + FAMILIES["chatml"].source, specials=TURNS).prompts
    source = "{% if messages | length < 2 %}{{ raise_exception('alone') }}{% endif %}" + FAMILIES["chatml"].source
    assert ChatTemplate(source, specials=TURNS).prompts
    text = ChatTemplate(source).render(turns(CONVERSATION[:3]))
    assert text == ChatTemplate(FAMILIES["chatml"].source).render(turns(CONVERSATION[:3]))


def test_what_the_template_says_reaches_the_person():
    with pytest.raises(NotLaidOut, match="refuses the conversation: System role not supported") as found:
        lay_out(template_of(FAMILIES["gemma"]), turns(CONVERSATION), "a.jsonl:3")
    assert found.value.where == "here; a.jsonl:3"
    with pytest.raises(UsageError, match="cannot be read") as found:
        ChatTemplate("a\n{% if %}", "T").render([])
    assert found.value.where == "T, line 2"
    with pytest.raises(UsageError, match="chat template fails"):
        ChatTemplate("{{ messages[0].content + 1 }}", "T").render(turns(CONVERSATION))


def test_where_a_folder_s_template_is_found(tmp_path):
    TOKENIZER.save(tmp_path)
    plain = open_template(tmp_path)
    assert plain.builtin and plain.source == PLAIN
    assert plain.variables == {"bos_token": END_OF_DOCUMENT, "eos_token": END_OF_DOCUMENT}
    assert plain.specials == (END_OF_DOCUMENT,)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())

    def configured(template):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": template}))

    configured("A{{ eos_token }}")
    found = open_template(tmp_path)
    assert (found.render([]), found.builtin) == (f"A{END_OF_DOCUMENT}", False)
    assert found.where == str(tmp_path / "tokenizer_config.json")
    configured([{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}])
    assert open_template(tmp_path).source == "D"
    assert open_template(tmp_path, name="tool_use").source == "T"
    with pytest.raises(UsageError, match="no chat template 'rag'") as error:
        open_template(tmp_path, name="rag")
    assert error.value.expected == "default, tool_use"
    (tmp_path / "chat_template.jinja").write_text("J")
    assert (open_template(tmp_path).source, open_template(tmp_path).where) == (
        "J",
        str(tmp_path / "chat_template.jinja"),
    )
    (tmp_path / "chat_template.jinja").write_text("{{ ''.__class__.__mro__ }}")
    with pytest.raises(UsageError, match="may not"):
        open_template(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("x" * (300 << 10))
    with pytest.raises(UsageError, match="at most 65,536"):
        open_template(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(UsageError, match="UTF-8"):
        open_template(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    configured(5)
    with pytest.raises(UsageError, match="no text"):
        open_template(tmp_path)


def test_the_date_is_the_same_every_day():
    assert ChatTemplate("{{ strftime_now('%d %b %Y') }}").render([]) == "01 Jan 2026"
