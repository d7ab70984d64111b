"""Tokens and masks of examples, forged marks, and packing: examples apart, batch i a function of (seed, i) alone."""

import math
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from template_families import FAMILIES, QWEN3, TURNS
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from mickle.data import tokenizer as tokenizer_module
from mickle.data.chat_template import PLAIN, ChatTemplate
from mickle.data.conversations import Example, Message
from mickle.data.example_batches import first_fit, packed, rows_of
from mickle.data.examples import (
    FORGED,
    FORGED_BESIDE,
    NOT_TAKEN,
    PROMPT,
    SPELT,
    TOO_LONG,
    Encoded,
    ExampleBatches,
    encode_examples,
)
from mickle.data.pieces import pieces
from mickle.data.preview import preview
from mickle.data.tokenizer import TextTokenizer, train_tokenizer
from mickle.errors import UsageError
from mickle.models.decoder import Decoder
from mickle.models.shape import DecoderConfig
from mickle.training.objectives import next_token

WORDS = [f"the user asks {n} and the assistant answers {n + 1}, so it goes on.\n\n" for n in range(30)]


def byte_level(specials):
    made = train_tokenizer(WORDS, 320, or_fewer=True)
    made.tokenizer.add_special_tokens([AddedToken(mark, special=True) for mark in specials])
    return made


def sentence_piece(specials=("<s>", "</s>")):
    """A tokenizer in Llama 2's manner: spaces are marks at the beginning of words, unknown characters are bytes."""
    base = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    base.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    base.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
    marks = ["<unk>", *specials, *(f"<0x{n:02X}>" for n in range(256))]
    base.train_from_iterator(WORDS, trainers.BpeTrainer(vocab_size=420, special_tokens=marks, show_progress=False))
    made = Tokenizer.from_str(base.to_str())
    made.encode_special_tokens = True
    ids = {mark: made.token_to_id(mark) for mark in ("<s>", "</s>")}
    return TextTokenizer(made, ids["<s>"], ids["</s>"], {"bos_token": "<s>", "eos_token": "</s>"})


CHATML = byte_level(TURNS[:2])
LLAMA = sentence_piece()
TEMPLATES = {name: ChatTemplate(f.source, name, False, f.variables, f.specials) for name, f in FAMILIES.items()}
CHAT = TEMPLATES["chatml"]


def chat(*contents, where="chats.jsonl:1"):
    pairs = zip(("user", "assistant") * len(contents), contents)
    return Example("messages", tuple(Message(role, content) for role, content in pairs), where=where)


def encode(examples, tokenizer=CHATML, template=CHAT, longest=10_000, **more):
    return encode_examples(examples, tokenizer, template, longest=longest, **more)


def runs(tokenizer, tokens, trained):
    """The texts of the runs of trained tokens."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], trained, [False]]).astype(int)))
    return [tokenizer.decode(tokens[a:b]) for a, b in zip(edges[::2], edges[1::2])]


def test_a_conversation_by_hand():
    found = encode([chat("the user", "answers", "and", "so on")])
    (tokens,), (trained,) = found.tokens, found.trained
    assert runs(CHATML, tokens, trained) == ["answers<|im_end|>", "so on<|im_end|>"]
    start, end = (CHATML.tokenizer.token_to_id(mark) for mark in TURNS[:2])
    assert (tokens == start).sum() == (tokens == end).sum() == 4
    assert CHATML.decode(tokens) == CHAT.render(chat("the user", "answers", "and", "so on").messages)
    assert CHATML.tokenizer.encode_special_tokens  # as it was
    assert found.lines()[0] == f"1 examples, {len(tokens)} tokens, {trained.sum()} of them trained"


@pytest.mark.parametrize("family", [name for name, f in FAMILIES.items() if f.end and name != "chatml marked"])
def test_every_family_trains_its_answers_in_tokens_too(family):
    tokenizer = byte_level(FAMILIES[family].specials)
    said = ["asks 4 and", "so it goes.", "the user", "answers 7,"]
    found = encode([chat(*said)], tokenizer, TEMPLATES[family])
    end = FAMILIES[family].end
    got = [text.removeprefix(" ") for text in runs(tokenizer, found.tokens[0], found.trained[0])]
    assert got == [said[1] + end, said[3] + end]


@pytest.mark.parametrize(("tokenizer", "family"), [(CHATML, "chatml"), (LLAMA, "llama2"), (LLAMA, "vicuna")])
def test_tokens_are_those_of_the_whole_text_as_transformers_makes_them(tokenizer, family):
    from transformers import PreTrainedTokenizerFast

    plain = Tokenizer.from_str(tokenizer.tokenizer.to_str())
    theirs = PreTrainedTokenizerFast(tokenizer_object=plain, bos_token="<s>", eos_token="</s>")
    examples = [chat("the user\nasks", " so it  goes. "), chat("é 漢 \U0001f600", "on", "and", "\u00e9\u00e9 answers")]
    found = encode(examples, tokenizer, TEMPLATES[family])
    for example, tokens in zip(examples, found.tokens, strict=True):
        text = TEMPLATES[family].render(example.messages)
        assert tokens.tolist() == theirs(text, add_special_tokens=False)["input_ids"]


def test_a_long_example_is_given_to_the_tokenizer_in_pieces(monkeypatch):
    long = "the owl sees 4 hens, and 漢 " * 9
    forms = [
        Example("text", text=long),
        Example("completion", prompt=long, completion=" answers" + long),
        chat(long, long),
        chat(f"{long}<|im_end|>{long}", long),
    ]
    alone = [encode([example]) for example in forms]
    sizes, portions = [], tokenizer_module.portions

    def watched(texts):
        for some in portions(texts):
            sizes.append(sum(len(piece) for _, piece in some))
            yield some

    monkeypatch.setattr(tokenizer_module, "portions", watched)
    monkeypatch.setattr(pieces, "__defaults__", (64,))
    for module in ("pieces", "examples"):
        monkeypatch.setattr(f"mickle.data.{module}.LONGEST", 64)
    found = encode(forms)
    assert [t.tolist() for t in found.tokens] == [one.tokens[0].tolist() for one in alone]
    assert [t.tolist() for t in found.trained] == [one.trained[0].tolist() for one in alone]
    assert max(sizes) <= 64


def test_a_token_belongs_to_where_its_last_character_stands():
    found = encode([chat("the user", "answers")], LLAMA, TEMPLATES["llama2"])
    (tokens,), (trained,) = found.tokens, found.trained
    pieces = [LLAMA.tokenizer.id_to_token(int(token)) for token in tokens[trained]]
    assert "".join(pieces) == "\u2581answers\u2581</s>"  # the space before the answer comes with its first token


@pytest.mark.parametrize(("tokenizer", "family"), [(CHATML, "chatml"), (LLAMA, "llama2"), (LLAMA, "alpaca")])
def test_contents_cannot_forge_special_tokens(tokenizer, family):
    template = TEMPLATES[family]
    end = FAMILIES[family].specials[-2 if family == "chatml" else -1]
    opens = FAMILIES[family].specials[0]
    honest = encode([chat("asks", "answers", "asks", "on")], tokenizer, template)
    forged = chat(f"asks {end}\n{opens}", f"{end} answers {opens}", f"{end}", f"on{end[:-1]}")
    found = encode([forged], tokenizer, template)
    (tokens,), (trained,) = found.tokens, found.trained
    for mark in (opens, end):
        number = tokenizer.tokenizer.token_to_id(mark)
        assert (tokens == number).sum() == (honest.tokens[0] == number).sum()
    got = [text.replace(" ", "") for text in runs(tokenizer, tokens, trained)]
    assert got == [f"{end}answers{opens}{end}", f"on{end[:-1]}{end}"]
    assert found.notes == {SPELT: 1}


PIECES = ["<|im_start|>", "<|im_end|>", "<|", "im_end", "|>", " ", "a", "é", "\n"]
SPELLINGS = st.lists(st.sampled_from(PIECES), min_size=1, max_size=8).map("".join)


@settings(max_examples=100, deadline=None)
@given(st.lists(SPELLINGS.filter(str.strip), min_size=2, max_size=4))
def test_whatever_is_written_the_marks_are_the_template_s_alone(texts):
    texts = texts[: len(texts) // 2 * 2]
    found = encode([chat(*texts)])
    (tokens,), (trained,) = found.tokens, found.trained
    end = CHATML.tokenizer.token_to_id("<|im_end|>")
    assert (tokens == end).sum() == len(texts)
    # A line break that opens an answer may share its token with the one before it.
    assert [text.lstrip("\n") for text in runs(CHATML, tokens, trained)] == [
        text.lstrip("\n") + "<|im_end|>" for text in texts[1::2]
    ]
    assert CHATML.decode(tokens) == CHAT.render(chat(*texts).messages)


def test_a_forged_mark_where_the_template_changes_contents_drops_the_example():
    template = ChatTemplate(QWEN3, specials=TURNS)
    found = encode([chat("asks", "<think>a</think>b"), chat("asks <|im_end|>", "<think>a</think>b")], template=template)
    assert len(found.tokens) == 1 and found.dropped == {FORGED: 1}
    assert found.lines()[-2:] == [f"dropped 1: {FORGED}", f"  chats.jsonl:1: {FORGED}"]
    assert runs(CHATML, found.tokens[0], found.trained[0]) == ["<think>\na\n</think>\n\nb<|im_end|>"]


@pytest.mark.parametrize("tokenizer", [CHATML, LLAMA])
def test_texts_and_completions_stand_between_the_marks(tokenizer):
    examples = [Example("text", text="the user asks"), Example("completion", prompt="the user", completion=" asks 3")]
    found = encode(examples, tokenizer, None)
    for tokens, example in zip(found.tokens, examples, strict=True):
        (ids,) = tokenizer.encode([example.text or example.prompt + example.completion])
        assert tokens.tolist() == [tokenizer.start, *ids, tokenizer.end]
    assert found.trained[0].tolist() == [False] + [True] * (len(found.tokens[0]) - 1)
    trained = found.tokens[1][found.trained[1]]
    assert trained[-1] == tokenizer.end and tokenizer.decode(trained[:-1]).strip() == "asks 3"


def test_a_text_cannot_forge_the_end_of_its_document():
    found = encode([Example("text", text="a <|endoftext|> b <|im_end|>")], template=None)
    assert (found.tokens[0] == CHATML.end).sum() == 2 and (found.tokens[0][1:-1] != CHATML.end).all()


SPELLING = "<|im_start|>user\nIs it dry?<|im_end|>\n<|im_start|>assistant\nIt is.<|im_end|>\n"


@pytest.mark.parametrize(
    "example",
    [
        Example("text", text=SPELLING),
        Example("completion", prompt=SPELLING[:40], completion=" It is."),
        Example("completion", prompt="Is it dry?", completion=" It is.<|im_end|>"),
        Example("text", text="a<|endoftext|>b"),
        chat("Is it dry?<|im_end|>", "It is."),
    ],
)
def test_special_tokens_that_are_spelt_are_counted_and_the_preview_shows_what_they_became(example):
    found = encode([example] * 3 + [Example("text", text="dry < |> im_end")])
    assert found.notes == {SPELT: 3} and f"{SPELT} (in 3 examples)" in found.lines()
    shown = preview(found, CHATML, most=1)
    tokens = [int(token) for token in re.findall(r"\[red\](\d+) \[/\]", shown)]
    spelt = "".join(CHATML.decode([token]) for token in tokens)
    said = example.text + example.prompt + example.completion + "".join(turn.content for turn in example.messages)
    assert spelt == "".join(re.findall(r"<\|\w+\|>", said)) and not set(tokens) & CHATML.special
    assert "[red]" not in preview(encode([chat("Is it dry?", "It is.")]), CHATML)


@pytest.mark.parametrize(
    ("prompt", "completion", "merges"),
    [
        ("the user ", "asks", True),
        ("the user\n\n", "asks", True),
        ("the user as", "ks 3", True),
        ("the user", " asks", False),
        ("the user:", "asks", False),
    ],
)
def test_a_prompt_whose_own_tokens_do_not_begin_the_example_is_counted(prompt, completion, merges):
    found = encode([Example("completion", prompt=prompt, completion=completion)] * 4, template=None)
    assert found.notes == ({PROMPT: 4} if merges else {})
    source = "{% for m in messages %}{{ m.content if m.role == 'user' else m.content + '<|im_end|>' }}{% endfor %}"
    chats = encode([chat(prompt, completion)] * 4, template=ChatTemplate(source, specials=TURNS))
    assert chats.notes == found.notes


def test_tools_that_spell_a_special_token_drop_the_example():
    tools = ({"type": "function", "function": {"name": "x", "description": "<|im_end|>"}},)
    found = encode([chat("a", "b"), replace(chat("a", "b"), tools=tools)])
    assert len(found.tokens) == 1 and found.dropped == {FORGED_BESIDE: 1}


def test_what_is_too_long_is_cut_where_something_trained_remains_and_else_dropped():
    short, long = chat("the user", "so on"), chat("the user", "so it goes on and on " * 9)
    question = chat("the user asks " * 30, "on")
    found = encode([short, long, question], longest=40)
    assert (found.cut, found.dropped) == (1, {TOO_LONG: 1})
    whole = encode([short, long])
    assert len(found.tokens[1]) == 40
    assert found.tokens[1].tolist() == whole.tokens[1][:40].tolist()
    assert found.trained[1].tolist() == whole.trained[1][:40].tolist()


def test_what_cannot_be_encoded_is_refused_with_the_example():
    everything = ChatTemplate("{% for m in messages %}{{ m.content if m.role == 'assistant' }}{% endfor %}")
    with pytest.raises(UsageError, match="every token of this conversation would be trained: 'so on") as found:
        encode([chat("the user", "so on")], template=everything)
    assert found.value.where == "chats.jsonl:1"
    with pytest.raises(UsageError, match="needs a chat template"):
        encode([chat("the user", "so on")], template=None)
    with pytest.raises(UsageError, match="two answers"):
        encode([Example("preference", where="a:1")])
    with pytest.raises(UsageError, match="System role not supported") as found:
        encode(
            [Example("messages", (Message("system", "s"), *chat("a", "b").messages), where="x:9")],
            template=TEMPLATES["gemma"],
        )
    assert "x:9" in found.value.where


SYSTEM, TOOL = Message("system", "s"), Message("tool", "r")
ONLY_X = CHAT.source.replace("message.content +", "message.content.split('x')[1] + 'x' +")
NO_THOUGHT = CHAT.source.replace("message.content +", "message.content.split('</t>')[-1] +")


@pytest.mark.parametrize(
    ("template", "row", "says"),
    [
        (TEMPLATES["gemma"], (SYSTEM, *chat("a", "b").messages), "System role not supported"),
        (TEMPLATES["llama2"], (*chat("a", "b").messages, TOOL, Message("assistant", "d")), "alternate"),
        (ChatTemplate(ONLY_X, specials=TURNS), chat("a", "b").messages, "fails"),
        (ChatTemplate(NO_THOUGHT, specials=TURNS), chat("a", "b</t>").messages, "no answer"),
    ],
)
def test_a_row_that_the_template_does_not_take_is_counted_and_more_than_a_tenth_are_an_error(template, row, says):
    good, bad = [chat("a x q", "b x a")] * 9, Example("messages", row, where="chats.jsonl:99")
    found = encode([*good, bad], template=template)
    assert len(found.tokens) == 9 and found.dropped == {NOT_TAKEN: 1}
    counted, place = found.lines()[1:3]
    assert counted == f"dropped 1: {NOT_TAKEN}" and place.startswith("  chats.jsonl:99: ") and says in place
    with pytest.raises(UsageError, match=f"2 of 11 examples: .*{says}") as error:
        encode([*good, bad, bad], template=template)
    assert "chats.jsonl:99" in error.value.where
    assert len(encode([*good, bad, bad], template=template, most_bad=0.2).tokens) == 9


def test_notes_are_counted():
    found = encode([chat("a", "b"), chat("a", "b", "c", "d")], template=ChatTemplate(QWEN3, specials=TURNS))
    ((note, count),) = found.notes.items()
    assert count == 1 and found.lines()[-1] == f"{note} (in 1 examples)"


# -- packing


def numbered(lengths, seed=0):
    """Examples whose tokens say which example and which place they are of."""
    generator = np.random.default_rng(seed)
    tokens = [np.array([1000 * n + at for at in range(length)]) for n, length in enumerate(lengths, start=1)]
    trained = [generator.random(length) < 0.5 for length in lengths]
    return Encoded(tokens, trained)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 20), min_size=1, max_size=60),
    rows=st.integers(1, 5),
    length=st.integers(20, 50),
    seed=st.integers(0, 5),
)
def test_every_epoch_holds_every_example_once_and_whole(lengths, rows, length, seed):
    encoded = numbered(lengths)
    batches = ExampleBatches(encoded, length, rows, seed)
    seen = []
    for index in range(math.ceil(3 * batches.steps_an_epoch)):
        batch = {name: tensor.numpy() for name, tensor in batches(index).items()}
        assert batch["input_ids"].shape[0] == rows and batch["input_ids"].shape[1] <= length
        for inputs, labels, documents in zip(batch["input_ids"], batch["labels"], batch["documents"], strict=True):
            for number in range(documents.max() + 1):
                (places,) = np.nonzero(documents == number)
                example = inputs[places[0]] // 1000 - 1
                seen.append(example)
                assert places.tolist() == list(range(places[0], places[0] + lengths[example]))
                assert inputs[places].tolist() == encoded.tokens[example].tolist()
                after = np.where(encoded.trained[example], encoded.tokens[example], -100)[1:]
                assert labels[places].tolist() == [*after, -100]
            assert (labels[documents < 0] == -100).all() and (inputs[documents < 0] == 0).all()
    n = len(lengths)
    assert sorted(seen[:n]) == sorted(seen[n : 2 * n]) == sorted(seen[2 * n : 3 * n]) == list(range(n))


@pytest.mark.parametrize(("draw", "count", "seed"), [(4, 1100, 0), (0, 1500, 0), (7, 3000, 5)])
def test_three_epochs_are_every_example_three_times_whatever_the_seed(draw, count, seed):
    """Rows of an epoch follow from the lengths alone: the plan counts those of one epoch and one seed."""
    lengths = np.clip(np.random.default_rng(draw).lognormal(4, 0.8, count).astype(int), 2, 256)
    encoded = Encoded([np.arange(length) for length in lengths], [np.ones(length, bool) for length in lengths])
    planned = math.ceil(3 * ExampleBatches(encoded, 256, 2, 0).steps_an_epoch)
    batches = ExampleBatches(encoded, 256, 2, seed)
    places = (divmod(step, batches.epoch_rows) for step in range(2 * planned))
    read = Counter(example for epoch, row in places for example in batches._epoch(epoch)[row])
    assert min(read[example] for example in range(count)) == 3 and math.ceil(3 * batches.steps_an_epoch) == planned


@given(lengths=st.lists(st.integers(1, 30), max_size=60), length=st.integers(30, 60))
def test_first_fit_is_the_first_row_with_room(lengths, length):
    room = [length] * len(lengths)
    for needed, row in zip(lengths, first_fit(lengths, length), strict=True):
        assert row == next(at for at, left in enumerate(room) if left >= needed)
        room[row] -= needed


def test_batch_i_depends_on_seed_and_i_alone():
    encoded = numbered([5, 9, 3, 7, 12, 4, 6, 8] * 20)
    first = ExampleBatches(encoded, 24, 3, seed=1)
    wanted = [first(index) for index in range(200)]
    for index in (199, 0, 77, 76, 150):
        again = ExampleBatches(encoded, 24, 3, seed=1)(index)
        assert all(torch.equal(again[name], wanted[index][name]) for name in again)
    other = [ExampleBatches(encoded, 24, 3, seed=2)(index) for index in range(5)]
    assert not all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(other, wanted))
    single = ExampleBatches(encoded, 24, 1, seed=1)  # a row a batch, so that epochs begin with a batch
    epoch = math.ceil(single.steps_an_epoch)
    rows = [single(index)["input_ids"].tolist() for index in range(2 * epoch)]
    assert rows[:epoch] != rows[epoch : 2 * epoch]


def test_rows_are_well_filled():
    generator = np.random.default_rng(0)
    lengths = generator.integers(10, 300, 3000)
    rows = packed(lengths, 512, generator)
    assert lengths.sum() / (512 * len(rows)) > 0.97
    assert sorted(example for row in rows for example in row) == list(range(3000))


@torch.no_grad()
def test_the_packed_loss_is_the_sum_of_each_example_s_alone():
    shape = DecoderConfig(CHATML.size, 32, 2, 2, 2, 16, 64, max_length=128, initial_std=0.3)
    model = Decoder(shape, seed=0).double().eval()
    contents = [
        ("the user asks 3", "so it goes"),
        ("and", "on.\n\n", "the user", "answers 4"),
        ("a", "b"),
        ("é", "the " * 9),
    ]
    examples = [chat(*said) for said in contents] + [Example("text", text="the user asks " * 3)]
    encoded = encode(examples)
    alone = [next_token(model, batch) for batch in (only(encoded, n) for n in range(len(examples)))]
    total, count = (sum(float(pair[part]) for pair in alone) for part in (0, 1))
    batches = ExampleBatches(encoded, 96, 2, seed=3)
    for given_batches in (
        [batches(i) for i in range(math.ceil(batches.steps_an_epoch))],
        (rows_of(encoded, rows) for rows in ([[0, 1], [2]], [[3, 4]])),
    ):
        found = [next_token(model, batch) for batch in given_batches]
        assert sum(float(c) for _, c in found) >= count
        if not isinstance(given_batches, list):
            assert sum(float(loss) for loss, _ in found) == pytest.approx(total, rel=1e-5)
            assert sum(float(c) for _, c in found) == count
    epoch = ExampleBatches(encoded, 96, 1, seed=3)
    found = [next_token(model, epoch(i)) for i in range(math.ceil(epoch.steps_an_epoch))]
    assert sum(float(loss) for loss, _ in found) == pytest.approx(total, rel=1e-5)


def only(encoded, number):
    return rows_of(encoded, [[number]])


def test_examples_that_do_not_fit_a_row_and_no_examples_are_refused():
    with pytest.raises(UsageError, match="has 30 tokens, a row holds 20"):
        ExampleBatches(numbered([5, 30]), 20, 2)
    with pytest.raises(UsageError, match="no examples"):
        ExampleBatches(Encoded([], []), 20, 2)


def test_the_preview_shows_trained_tokens_on_a_ground():
    plain = ChatTemplate(
        PLAIN, variables={"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}, specials=("<|endoftext|>",)
    )
    shown = preview(encode([chat("the [user]", "so on")] * 4, template=plain), CHATML, most=2)
    first, second = shown.split("[dim]<|endoftext|>[/]")[1:]
    coloured = "".join(re.findall(r"\[black on [a-z_]+\](.*?)\[/\]", first))
    assert coloured == "so on<|endoftext|>" and "\\[" in first and second
    cut = preview(encode([chat("the user", "so on " * 99)]), CHATML, longest=10)
    assert cut.endswith("more tokens[/]")
