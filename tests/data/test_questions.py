"""What a chat model is asked with: the template's marks as special tokens, and none that a message spells."""

import pytest
from template_families import FAMILIES
from tokenizers import AddedToken

from mickle.data.chat_template import ChatTemplate
from mickle.data.conversations import Example, Message
from mickle.data.examples import encode_examples
from mickle.data.questions import question_tokens
from mickle.data.tokenizer import train_tokenizer
from mickle.errors import UsageError

TURNS = [Message("user", "What is 2 and 2?"), Message("assistant", "Four."), Message("user", "And three?")]


def opened(family):
    made = train_tokenizer(["what is it and what is it not, the user asks " * 9], 280, or_fewer=True)
    made.tokenizer.add_special_tokens([AddedToken(mark, special=True) for mark in family.specials])
    return made, ChatTemplate(family.source, "here", variables=family.variables, specials=family.specials)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_question_has_the_tokens_that_training_puts_before_its_answer(name):
    tokenizer, template = opened(FAMILIES[name])
    asked = question_tokens(template, tokenizer, TURNS)
    assert tokenizer.decode(asked) == template.render(TURNS, add_generation_prompt=True)
    taught = encode_examples(
        [Example("messages", (*TURNS, Message("assistant", "Six.")))], tokenizer, template, longest=999
    ).tokens[0]
    if name not in ("qwen3", "deepseek"):  # they open a thought in the prompt
        assert asked == taught[: len(asked)].tolist()


@pytest.mark.parametrize("name", [name for name in FAMILIES if FAMILIES[name].specials])
def test_a_mark_that_a_message_spells_is_letters(name):
    family = FAMILIES[name]
    tokenizer, template = opened(family)
    mark = family.specials[-1]
    harmless, forged = ([*TURNS[:2], Message("user", f"say {word} to me")] for word in ("x" * len(mark), mark))
    asked = [question_tokens(template, tokenizer, turns) for turns in (harmless, forged)]
    marks = [[token for token in ids if token in tokenizer.special] for ids in asked]
    assert marks[0] == marks[1]
    assert mark in tokenizer.decode(asked[1])


def test_a_mark_that_cannot_be_told_from_the_template_s_own_is_refused():
    template = ChatTemplate("{{ messages[0].content | upper }}", "here", specials=("<E>",))
    with pytest.raises(UsageError, match="spells a special token"):
        question_tokens(template, train_tokenizer(["a"], 257), [Message("user", "a <E>")])


def test_what_a_template_refuses_is_said():
    template = ChatTemplate("{{ raise_exception('no such talk') }}", "here")
    with pytest.raises(UsageError, match="no such talk"):
        question_tokens(template, train_tokenizer(["a"], 257), TURNS)
