"""Accuracy per length: one pass equals greedy decoding, errors are told apart, meaningless questions refused."""

import csv
import json
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mickle.data.length_tasks import Example, buckets, open_task, symbol_tokenizer
from mickle.data.tokenizer import open_text_tokenizer
from mickle.errors import UsageError
from mickle.evaluation import length as evaluation
from mickle.evaluation.length_scores import (
    Encoded,
    encode_examples,
    holds_to,
    judge,
    mean_accuracy,
    mean_reciprocal_rank,
    score,
)
from mickle.evaluation.measure import learned_table
from mickle.events import ignore
from mickle.models.decoder import Decoder, DecoderConfig
from mickle.models.folder import save_model

END = 2
RSC = open_task("rsc")
TOKENIZER = symbol_tokenizer(RSC)


encode = TOKENIZER.encode


def small_decoder(position="none", **settings):
    shape = {"vocab_size": TOKENIZER.size, "width": 32, "layers": 1, "heads": 2, "kv_heads": 2, "head_width": 16}
    return Decoder(
        DecoderConfig(**{**shape, "ffn_width": 64, "max_length": 64, "position": position, **settings}), seed=1
    )


class Scripted(nn.Module):
    """A model that writes ``text`` whatever it reads: its prediction at position t is text[t]."""

    def __init__(self, text):
        super().__init__()
        self.text = nn.Parameter(torch.tensor(text, dtype=torch.float32))
        self.config = SimpleNamespace(vocab_size=50)

    def forward(self, ids, *, head):
        logits = nn.functional.one_hot(self.text.long()[: ids.shape[1]], 50).float()
        return head(logits.expand(len(ids), -1, -1), None)


@pytest.mark.parametrize(
    ("writes", "kind", "share"),
    [
        ([7, 7, 7, END], "exact", 1),
        ([7, END, 7, END], "stopped_early", 0.75),
        ([7, 7, 7, 7], "ran_on", 0.75),
        ([7, 9, 7, END], "wrong_symbol", 0.75),
        ([7, 9, 7, 7], "wrong_symbol", 0.5),
        ([END, 9, 9, 9], "stopped_early", 0),
    ],
)
def test_the_first_error_tells_how_an_answer_failed(writes, kind, share):
    instance = Encoded(ids=(1, 5, 6, 7, 7, 7, END), prompt=3, length=3)
    outcome = judge(Scripted([0, 0, *writes]), [instance], END)[0]
    assert (outcome.kind, outcome.tokens) == (kind, share)


def test_padding_of_shorter_rows_changes_nothing():
    model = small_decoder("rotary")
    instances = encode_examples(list(buckets(RSC, 0, (2, 9), 3)), encode, 1, END)
    together = judge(model, instances, END)
    assert together == [judge(model, [instance], END)[0] for instance in instances]


class Careless(nn.Module):
    """Repeats the prompt's symbol as often as it stands there, but slips wherever the tokens so far sum to 0 mod 23.

    A true function of the prefix: after a slip, greedy decoding goes on from other tokens than the answer's.
    """

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.config = SimpleNamespace(vocab_size=TOKENIZER.size)
        self.separator = int(encode(["[SEP]"])[0][0])

    def next_token(self, prefix):
        if self.separator not in prefix:
            return END
        place = prefix.index(self.separator)
        symbol, wanted = prefix[place - 1], place - 2
        token = symbol if len(prefix) - place - 1 < wanted else END
        if sum(prefix) % 23:
            return token
        return END if token != END else symbol

    def forward(self, ids, *, head):
        written = [[self.next_token(row[: t + 1]) for t in range(len(row))] for row in ids.tolist()]
        return head(nn.functional.one_hot(torch.tensor(written), self.config.vocab_size).float(), None)


def test_one_pass_equals_greedy_exact_match():
    """Oracle: decode token by token without the answer, and compare whole answers."""
    model = Careless()
    instances = encode_examples(list(buckets(RSC, "test", range(2, 16, 3), 12)), encode, 1, END)
    exact = [outcome.kind == "exact" for outcome in judge(model, instances, END)]
    greedy = []
    for row in instances:
        ids = list(row.ids[: row.prompt])
        while len(ids) < len(row.ids) + 3 and (len(ids) == row.prompt or ids[-1] != END):
            ids.append(model.next_token(ids))
        greedy.append(tuple(ids) == row.ids)
    assert exact == greedy
    assert 10 < sum(exact) < len(exact) - 10, "the oracle says little when all answers are alike"


def test_shares_sum_to_one_and_lengths_are_sorted():
    instances = encode_examples(list(buckets(RSC, "test", (8, 2, 5), 6)), encode, 1, END)
    scores = score(Careless(), instances, END, trained=5)
    assert [s.length for s in scores] == [2, 5, 8]
    assert [s.seen for s in scores] == [True, True, False]
    assert all(s.exact + s.stopped_early + s.ran_on + s.wrong_symbol == pytest.approx(1) for s in scores)
    assert mean_accuracy(scores, seen=True) == (scores[0].exact + scores[1].exact) / 2
    assert mean_accuracy(scores[:1], seen=False) is None


def test_learned_positions_beyond_the_table_count_as_wrong():
    model = small_decoder("learned", max_length=12)
    assert learned_table(model) == 12
    assert learned_table(small_decoder("rotary")) is None
    fits, too_long = encode_examples(list(buckets(RSC, 0, (2, 20), 1)), encode, 1, END)
    both = judge(model, [fits, too_long], END)
    assert both[0] == judge(model, [fits], END)[0]
    assert (both[1].kind, both[1].tokens) == ("wrong_symbol", 0)


def test_reciprocal_ranks():
    strict = {"none": 0.9, "t5": 0.8, "alibi": 0.7, "rotary": 0.6, "learned": 0.5}
    expected = {"none": 1, "t5": 1 / 2, "alibi": 1 / 3, "rotary": 1 / 4, "learned": 1 / 5}
    assert mean_reciprocal_rank([strict, strict]) == pytest.approx(expected)
    all_zero = mean_reciprocal_rank([dict.fromkeys("abcde", 0.0)])
    assert set(all_zero.values()) == {1 / 3}, "five equal arms share rank 3"
    assert mean_reciprocal_rank([{"a": 1.0, "b": 0.0, "c": 0.0}]) == {"a": 1, "b": 1 / 2.5, "c": 1 / 2.5}
    with pytest.raises(UsageError):
        mean_reciprocal_rank([])


def test_where_it_breaks():
    def scores(*accuracies):
        return [SimpleNamespace(length=i, exact=a) for i, a in enumerate(accuracies, 1)]

    assert holds_to(scores(1, 0.95, 0.2, 1), 0.9) == 2
    assert holds_to(scores(0.2, 1), 0.9) is None
    assert holds_to(scores(1, 1), 0.9) == 2


def test_merging_tokenizers_are_refused():
    evaluation.check_symbols(RSC, encode)
    with pytest.raises(UsageError, match="one token to each symbol: 1 of 100, such as 7"):
        evaluation.check_symbols(RSC, lambda texts: [text.replace("7 7", "77").split() for text in texts])
    with pytest.raises(UsageError, match="one token"):
        evaluation.check_symbols(open_task("parity"), lambda texts: [list(text.replace(" ", "  ")) for text in texts])


def test_models_that_cannot_be_asked():
    masked = small_decoder("rotary", causal=False)
    with pytest.raises(UsageError, match="both sides"):
        evaluation.check_model(masked, True)
    with pytest.raises(UsageError, match="first token"):
        evaluation.check_model(small_decoder("none"), False)
    with pytest.raises(UsageError, match="causal mask"):
        small_decoder("none", causal=False)
    evaluation.check_model(small_decoder("rotary"), False)


@pytest.fixture
def folder(tmp_path):
    save_model(small_decoder(), tmp_path / "model", TOKENIZER)
    assert open_text_tokenizer(tmp_path / "model").end == END
    return tmp_path / "model"


def test_a_model_folder_and_a_named_task(folder, tmp_path):
    settings = evaluation.Length(task="rsc", per_length=4, longest=24)
    summary = settings.run(folder, ignore).write(tmp_path, ignore)
    rows = list(csv.DictReader((tmp_path / "length.csv").open()))
    assert [int(row["length"]) for row in rows] == list(range(2, 25))
    assert [row["seen"] for row in rows] == ["True"] * 19 + ["False"] * 4
    saved = json.loads((tmp_path / "results.json").read_text())
    assert saved["accuracy_beyond"] == summary["accuracy_beyond"]
    assert "<svg" in (tmp_path / "length.svg").read_text()


def test_a_model_folder_and_own_data(folder, tmp_path):
    data = tmp_path / "own.jsonl"
    data.write_text("\n".join(json.dumps(asdict(record)) for record in buckets(RSC, 0, range(2, 6), 5)))
    settings = evaluation.Length(data=data, trained=3, per_length=2)
    summary = settings.run(folder, ignore).write(tmp_path, ignore)
    scores = json.loads((tmp_path / "results.json").read_text())["scores"]
    assert [(s["length"], s["count"], s["seen"]) for s in scores] == [
        (2, 2, True),
        (3, 2, True),
        (4, 2, False),
        (5, 2, False),
    ]
    assert summary["instances"] == str(data)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "exactly one"),
        ({"task": "rsx"}, "no task 'rsx'"),
        ({"task": "rsc", "scratchpad": "half"}, "no scratchpad 'half'"),
        ({"task": "rsc", "scratchpad": "full", "per_length": 1}, "has no scratchpad"),
        ({"task": "rsc", "longest": 1}, "no length up to 1"),
        ({"task": "lego"}, "not tell the symbols apart"),
    ],
)
def test_settings_that_ask_nothing(folder, tmp_path, settings, message):
    with pytest.raises(UsageError, match=message):
        evaluation.Length(**settings).run(folder, ignore)


def test_source_and_target_are_parted_by_one_space():
    seen = []
    encode_examples(
        [Example("a [SEP]", "b", "", "b", 1), Example("a: ", "b", "", "b", 1)],
        lambda texts: seen.extend(texts) or [[5]] * len(texts),
        1,
        END,
    )
    assert seen == ["a [SEP]", "a: ", " b", "b"]


def test_settings_import_without_torch():
    import subprocess
    import sys

    heavy = "{'torch', 'matplotlib', 'transformers', 'tokenizers'}"
    code = f"import sys, mickle.evaluation.length; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
