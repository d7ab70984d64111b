"""Length tasks: every answer against an evaluator written from the format alone, never from the generator."""

import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mickle.data import length_tasks as lt
from mickle.data.tasks import orders, pcfg, scan
from mickle.data.tasks.problem import CLOSING, FULL, JOINT, MINIMAL, OPENING, PARTS, WorkStep
from mickle.errors import UsageError

TASKS = {name: lt.open_task(name) for name in lt.TASK_NAMES}
WITH_WORK = ("addition", "summation", "polynomial", "parity", "sort_single", "sort_multi", "lego")


def between(text, before, after):
    assert text.startswith(before), text
    assert text.endswith(after), text
    return text[len(before) : len(text) - len(after)]


def number(text):
    return int(text.replace(" ", ""))


def solve_copies(source, target, answer):
    if source.startswith("Replace"):
        _, old, _, new, _, *run, sep = source.split()
        assert sep == "[SEP]"
        assert set(run) == {old}
        assert old != new
        assert target.split() == [new] * len(run)
        return len(run)
    symbols = between(source, "Copy: " if source[0] == "C" else "Reverse: ", " [SEP]").split()
    parts = [part.split() for part in target.split(" [NEXT] ")]
    turned = symbols[::-1]
    allowed = (
        [[symbols], [symbols * 2], [symbols] * 2] if source[0] == "C" else [[turned], [turned] * 2, [turned, symbols]]
    )
    assert parts in allowed
    return len(symbols)


def solve_addition(source, target, answer):
    first, second = between(source, "Compute ", " ?").split(" + ")
    assert target == f"The answer is {answer}."
    assert number(first) + number(second) == number(answer)
    return max(len(first.split()), len(second.split()))


def solve_summation(source, target, answer):
    numbers = between(source, "Compute: ", " .").split(" + ")
    assert all(1 <= int(n) <= 9 for n in numbers)
    assert target == f"The answer is {answer} ."
    assert sum(map(int, numbers)) % 10 == int(answer)
    return len(numbers)


def solve_polynomial(source, target, answer):
    x, terms = re.fullmatch(r"Evaluate at x = (- \d|\d) in (.*) \?", source).groups()
    terms = [re.fullmatch(r"(- \d|\d) \* x \*\* (\d)", term).groups() for term in terms.split(" + ")]
    assert sum(number(c) * number(x) ** int(d) for c, d in terms) % 10 == int(answer)
    assert target == f"The answer is {answer}."
    assert all(-3 <= number(c) <= 3 and 0 <= int(d) <= 3 for c, d in terms)
    return len(terms)


def solve_parity(source, target, answer):
    bits = between(source, "Is the number of 1's even in the sequence [ ", " ] ?").split(", ")
    assert target == f"The answer is {answer}."
    assert answer == ("No" if bits.count("1") % 2 else "Yes")
    return len(bits)


def solve_sort(source, target, answer):
    items = between(source, "Sort the following list [ ", " ].").split(", ")
    ranks = dict(zip(orders.ORDERED, itertools.count()))
    rank = ranks.get if items[0] in ranks else number
    assert between(target, "The sorted list is [ ", " ].") == answer == ", ".join(sorted(items, key=rank))
    return len(items)


def solve_lego(source, target, answer):
    clauses, asked = re.fullmatch(r"If (.*)\. Then, what is the value of (\w)\?", source).groups()
    values = {}
    for clause in clauses.split(", "):
        name, sign, what = re.fullmatch(r"(\w) = ([+-]) ?(\w)", clause).groups()
        values[name] = (1 if sign == "+" else -1) * (1 if what == "1" else values[what])
    assert target == f"The answer is {answer}."
    assert values[asked] == int(answer)
    assert list(values).index(asked) >= (len(values) + 1) // 2  # a middle one belongs to the first half
    return len(values)


def solve_scan(source, target, answer):
    """Right to left on the words, as the SCAN paper's rules read."""
    turns = {"left": ["Left"], "right": ["Right"]}

    def phrase(words):
        if words[-1] in ("twice", "thrice"):
            return phrase(words[:-1]) * (2 if words[-1] == "twice" else 3)
        act = [] if words[0] == "turn" else [words[0].title()]
        if len(words) == 1:
            return act
        turn = turns[words[-1]]
        return {"around": (turn + act) * 4, "opposite": turn * 2 + act}.get(words[1], turn + act)

    command = between(source, "Solve: ", "[SEP]")
    if " and " in command:
        actions = [a for part in command.split(" and ") for a in phrase(part.split())]
    else:
        actions = [a for part in reversed(command.split(" after ")) for a in phrase(part.split())]
    assert target.split() == actions
    return len(actions)


def solve_pcfg(source, target, answer):
    """A recursive-descent reader of the prefix form."""
    words = between(source, "Solve: ", " [SEP]").split()
    used = 0

    def read():
        nonlocal used
        word = words.pop(0)
        if word in ("append", "prepend", "remove_first", "remove_second"):
            used += 1
            x = read()
            assert words.pop(0) == ","
            y = read()
            return {"append": x + y, "prepend": y + x, "remove_first": y, "remove_second": x}[word]
        if word in pcfg.ONE:
            used += 1
            x = read()
            swapped = [x[-1], *x[1:-1], x[0]] if len(x) > 1 else x
            return {
                "copy": x, "reverse": x[::-1], "shift": x[1:] + x[:1], "repeat": x + x, "echo": x + x[-1:],
                "swap_first_last": swapped,
            }[word]  # fmt: skip
        symbols = [word]
        while words and words[0] not in (",", *pcfg.ONE, *pcfg.TWO):
            symbols.append(words.pop(0))
        return symbols

    assert read() == target.split()
    assert not words
    return used


SOLVERS = {
    **dict.fromkeys(("rsc", "rsc2x", "rdc", "cmc", "cmc2x", "mc", "mc2x", "mcrv"), solve_copies),
    "addition": solve_addition,
    "summation": solve_summation,
    "polynomial": solve_polynomial,
    "parity": solve_parity,
    "sort_single": solve_sort,
    "sort_multi": solve_sort,
    "lego": solve_lego,
    "scan": solve_scan,
    "pcfg": solve_pcfg,
}


def test_every_task_has_a_solver_here():
    assert set(SOLVERS) == set(TASKS) == set(lt.TASK_NAMES)


@pytest.mark.parametrize("name", lt.TASK_NAMES)
def test_answers_lengths_and_symbols(name):
    task = TASKS[name]
    tokenizer = lt.symbol_tokenizer(task).tokenizer
    unknown = tokenizer.token_to_id(lt.UNKNOWN)
    assert not set(task.train) & set(task.test)
    assert max(task.train) < min(task.test)
    for record in lt.buckets(task, 3, task.train + task.test, 4):
        assert SOLVERS[name](record.source, record.target, record.answer) == record.length
        assert record.category == name
        for text in (record.source, record.target):
            encoding = tokenizer.encode(text, add_special_tokens=False)
            assert unknown not in encoding.ids
            assert "".join(encoding.tokens) == text.replace(" ", "")
            assert encoding.tokens == lt.pieces(text)


# A step is recognised by its markers alone, because a model's own text may lack any part or repeat it.
_STEP = re.compile(
    r"^(?:in (?P<input>.*?))?\s*(?:comp (?P<computation>.*?))?\s*(?:out (?P<output>.*?))?"
    r"\s*(?:\[ (?P<variables>[^\]]*?) \])?\s*(?:re(?P<remaining>(?: .*)?))?$"
)


def read_work(text: str) -> list[dict[str, str]]:
    """The steps found in a target or in a model's output, each as part name -> text (absent parts are left
    out).
    """
    body = text.removeprefix(OPENING).split(CLOSING.rstrip(), 1)[0]
    found = []
    for step in body.split(JOINT):
        match = _STEP.match(step.strip())
        found.append(
            {name: value.strip() for name, value in match.groupdict().items() if value is not None} if match else {}
        )
    return found


def score_work(predicted: str, expected: str) -> dict[str, float]:
    """Share of the expected steps in which each part is right, and ``all``: every part of the step is right.

    A missing step counts as wrong; steps beyond the expected ones are not counted (the final answer tells of
    them).
    """
    theirs, truth = read_work(predicted), read_work(expected)
    theirs += [{}] * (len(truth) - len(theirs))
    present = [part for part in PARTS if any(part in step for step in truth)]
    right: dict[str, Sequence[bool]] = {
        part: [a.get(part) == b.get(part) for a, b in zip(theirs, truth)] for part in present
    }
    right["all"] = [all(right[part][i] for part in present) for i in range(len(truth))]
    return {name: sum(values) / len(truth) for name, values in right.items()}


@pytest.mark.parametrize("name", WITH_WORK)
@pytest.mark.parametrize("parts", [FULL, MINIMAL, *(FULL - {part} for part in PARTS)])
def test_scratchpad_parts_and_answer(name, parts):
    task = TASKS[name]
    unknown = lt.symbol_tokenizer(task).tokenizer.token_to_id(lt.UNKNOWN)
    record = lt.example(task, 0, task.train[-1], 0, parts)
    work, answer = record.target.split(". Thus, ")
    assert answer == lt.example(task, 0, task.train[-1], 0).target
    assert work.startswith("Thinking step by step: ")
    steps = read_work(record.target)
    has_variables = name not in ("sort_single", "sort_multi", "lego")
    expected = set(parts) - (set() if has_variables else {"variables"})
    assert all(set(step) == expected for step in steps)
    assert unknown not in lt.symbol_tokenizer(task).tokenizer.encode(record.target).ids
    assert set(score_work(record.target, record.target).values()) == {1.0}


def test_addition_by_hand_with_full_scratchpad():
    step = WorkStep("7 + 6 + 0", "7 + 6 + 0 = 1 3", "3", "5 3 + 2", "C = 1")
    assert step.text(FULL) == "in 7 + 6 + 0 comp 7 + 6 + 0 = 1 3 out 3 [ C = 1 ] re 5 3 + 2"
    assert step.text(MINIMAL) == "comp 7 + 6 + 0 = 1 3 out 3"


def test_work_is_scored_part_by_part():
    truth = (
        "Thinking step by step: in 1 comp 0 + 1 = 1 out 1 [ A = 1 ] re 2"
        " # in 2 comp 1 + 2 = 3 out 3 [ A = 3 ] re. Thus, The answer is 3 ."
    )
    wrong = truth.replace("out 3", "out 4")
    assert score_work(wrong, truth) == {
        "input": 1, "computation": 1, "output": 0.5, "variables": 1, "remaining": 1, "all": 0.5,
    }  # fmt: skip
    first_only = truth.split(" # ")[0] + ". Thus, The answer is 3 ."
    assert set(score_work(first_only, truth).values()) == {0.5}
    assert set(score_work("nonsense", truth).values()) == {0.0}


def test_tasks_without_scratchpad_say_so():
    with pytest.raises(UsageError, match="no scratchpad"):
        lt.example(TASKS["cmc"], 0, 3, 0, FULL)


def test_scan_is_the_published_set():
    lengths = Counter(len(actions) for actions in scan.commands().values())
    assert sum(lengths.values()) == 20_910
    assert max(lengths) == 48
    assert sum(n for length, n in lengths.items() if length > 22) == 3_920
    assert sum(n for length, n in lengths.items() if length > 25) == 3_136
    beyond = {26: 512, 27: 448, 28: 448, 30: 576, 32: 448, 33: 256, 36: 64, 40: 256, 48: 128}
    assert {length: n for length, n in lengths.items() if length > 25} == beyond
    around = ["Left", "Walk"] * 4
    assert scan.commands()["jump opposite left after walk around left"] == (*around, "Left", "Left", "Jump")


def test_every_scan_command_against_the_other_reader():
    for command, actions in list(scan.commands().items())[::7]:
        assert solve_scan(f"Solve: {command}[SEP]", " ".join(actions), "") == len(actions)


def test_lego_and_parity_by_hand():
    assert solve_parity("Is the number of 1's even in the sequence [ 0, 1, 1 ] ?", "The answer is Yes.", "Yes") == 3
    source = "If a = +1, b = - a, c = + b. Then, what is the value of c?"
    assert solve_lego(source, "The answer is -1.", "-1") == 3


@pytest.mark.parametrize(("name", "values"), [("sort_single", 50), ("sort_multi", 9990)])
def test_sorting_draws_with_replacement_and_sorts_repeated_ones_one_by_one(name, values):
    """As the authors draw: of n values, k draws are all different with probability n (n - 1) .. (n - k + 1) / n^k."""
    length, drawn = 16, 400
    repeated = 0
    for record in lt.buckets(TASKS[name], 2, [length], drawn, FULL):
        items = between(record.source, "Sort the following list [ ", " ].").split(", ")
        steps = read_work(record.target)
        assert ", ".join(step["output"] for step in steps) == record.answer
        assert [step["input"].count(",") for step in steps] == list(range(length - 1, -1, -1))
        repeated += len(set(items)) < length
    assert repeated
    expected = 1 - math.prod((values - place) / values for place in range(length))
    assert repeated / drawn == pytest.approx(expected, abs=3.5 * math.sqrt(expected * (1 - expected) / drawn))


def test_lego_asks_every_variable_of_the_second_half():
    def asked(length):
        sources = [record.source for record in lt.buckets(TASKS["lego"], 0, [length], 200)]
        chains = [re.findall(r"(\w) = ", source) for source in sources]
        return {chain.index(source[-2]) for chain, source in zip(chains, sources, strict=True)}

    assert asked(6) == {3, 4, 5}
    assert asked(7) == {4, 5, 6}
    assert asked(2) == {1}


def test_addition_beyond_training_has_a_longer_operand():
    task = TASKS["addition"]
    for record in lt.buckets(task, 0, task.test, 20):
        counts = [len(part.split()) for part in between(record.source, "Compute ", " ?").split(" + ")]
        assert max(counts) > 8


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(lt.TASK_NAMES), st.integers(0, 1000))
def test_pure_function_of_its_arguments(seed, name, index):
    task = TASKS[name]
    length = (task.train + task.test)[index % len(task.train + task.test)]
    record = lt.example(task, seed, length, index)
    assert record == lt.example(task, seed, length, index)
    assert SOLVERS[name](record.source, record.target, record.answer) == length


def test_seeds_indices_and_steps_differ():
    task = TASKS["cmc"]
    records = [lt.example(task, seed, 12, index).source for seed in range(5) for index in range(5)]
    assert len(set(records)) == 25
    first, second = (lt.training_examples(task, 0, step, 8) for step in (0, 1))
    assert first == lt.training_examples(task, 0, 0, 8)
    assert first != second


def test_training_lengths_even_and_scan_by_share():
    drawn = Counter(r.length for step in range(60) for r in lt.training_examples(TASKS["rsc"], 1, step, 20))
    assert set(drawn) == set(range(2, 21))
    assert max(drawn.values()) < 2 * min(drawn.values())
    drawn = Counter(r.length for step in range(60) for r in lt.training_examples(TASKS["scan"], 1, step, 20))
    assert drawn[2] < drawn[24]


def test_files_there_and_back(tmp_path):
    path = tmp_path / "rsc.jsonl"
    records = list(lt.buckets(TASKS["rsc"], 0, (2, 30), 3))
    path.write_text(
        "".join(f"{json.dumps(asdict(record), ensure_ascii=False)}\n" for record in records), encoding="utf-8"
    )
    assert len(records) == 6
    assert lt.read_examples(path) == records


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("9" * 5000, "not JSON"),
        ("[]", "lacks a source"),
        ('{"source": "a"}', "lacks a source or a target"),
        ('{"source": "a", "target": "b", "length": -1}', "length is -1"),
        ('{"source": "a", "target": "b", "length": true}', "length is True"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, message):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"source": "a", "target": "b", "length": 1}\n' + line + "\n")
    with pytest.raises(UsageError, match=message) as error:
        lt.read_examples(path)
    assert f"{path}:2" in str(error.value)


def test_bad_files(tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    with pytest.raises(UsageError, match="no records"):
        lt.read_examples(empty)
    with pytest.raises(UsageError, match="no such file"):
        lt.read_examples(tmp_path / "none.jsonl")
    with pytest.raises(UsageError, match="no task 'copy'"):
        lt.open_task("copy")


def test_own_file_counts_its_tokens_where_no_length_is_given(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text('{"source": "a b c", "target": "c"}\n')
    assert lt.read_examples(path, lambda text: len(text.split()))[0].length == 3
