"""The verb `sample`: let a model folder continue some prompts, or answer questions, and keep what it wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from mickle import storage
from mickle.config import Config, Input
from mickle.data.conversation_columns import BadRow
from mickle.data.conversation_forms import Message, read_question
from mickle.errors import UsageError
from mickle.events import Emit, Noted, Progressed, Started, Warned
from mickle.machine import Forecast
from mickle.models.gguf_folder import Model
from mickle.results import Section, json_lines
from mickle.step import Step, command
from mickle.untrusted.values import good_lines, read_text

if TYPE_CHECKING:
    from mickle.data.chat_template import ChatTemplate
    from mickle.data.tokenizer import TextTokenizer
    from mickle.sampling.text import Completion

LARGEST_PROMPTS = 16 << 20  # bytes of a prompt file
PROMPT = '{"prompt": "..."}'  # a line
QUESTION = '{"messages": [{"role": "user", "content": "..."}]}, or ' + PROMPT
BATCH = 16  # prompts at a time
SHOWN = 5  # texts that the terminal shows
PLAINLY = "it is asked as 'User: ...', 'Assistant: ...'"
LONGEST_TEXT = 1_500  # characters that a report shows of a text


class Writing(Config):
    """How each next token is chosen, and how many there may be."""

    max_tokens: int = Field(100, ge=1, le=1_000_000, description="tokens written after each prompt, at most")
    temperature: float = Field(0.8, ge=0, le=100, description="0 takes the likeliest token; 1 draws as the model says")
    top_k: int = Field(0, ge=0, description="draw among the k likeliest tokens only; 0 is off")
    top_p: float = Field(0.95, gt=0, le=1, description="draw among the likeliest tokens that reach this probability")

    def idle(self) -> set[str]:
        return set() if self.temperature else {"top_k", "top_p"}


class Sample(Writing, Step):
    """Let a model continue prompts, or answer them: greedy or drawn, with a seed of its own for every row."""

    kind: ClassVar[str] = "samples"
    version: ClassVar[int] = 2  # 2: weights in 16 bits compute in float32 where the processor has no such products
    title: ClassVar[str] = "Samples"
    lead: ClassVar[str] = "What the model writes. A small model writes the form of its pages before their sense."
    positional: ClassVar[str] = "model"
    example: ClassVar[str] = "mickle sample model --chat --prompts 'What is the capital of France?' --temperature 0"

    model: Model = Field(description="model folder: ours, or any transformers language model; or GGUF file")
    prompts: tuple[str, ...] = Field((), description="texts to continue; an empty one begins a new document")
    prompt_file: Input | None = Field(
        None,
        description="file of prompts: one a line, or JSON Lines with a field 'prompt' (with `chat`: or 'messages')",
    )
    chat: bool = Field(False, description="ask the prompts as questions, through the folder's chat template")
    system: str = Field("", description="with `chat`: what a system message tells the model before each question")
    stop: tuple[str, ...] = Field(
        (), description="strings that end a text, besides the end tokens that the folder names"
    )
    compare_untrained: bool = Field(False, description="also write what the same model wrote before training")
    before: Model | None = Field(
        None, description="the model that this one was tuned from: it is given the same, and shown beside"
    )

    @model_validator(mode="after")
    def _agree(self) -> Sample:
        if self.before is not None and self.compare_untrained:
            raise ValueError("before names what the model is shown beside; leave compare_untrained out")
        return self

    def run(self, work: Path, emit: Emit) -> dict[str, Any]:
        """Write `samples.jsonl` (prompt, text, tokens, stopped; untrained) and a readable `samples.txt`."""
        from mickle.models.folder import open_to_run

        rows = self._rows()
        arms = 1 + self.compare_untrained + (self.before is not None)
        emit(Started("sample", len(rows) * arms, "texts"))
        model: Any = open_to_run(self.model)
        self._write(rows, "text", self.model, model, emit)
        if self.compare_untrained:
            self._write(rows, "untrained", self.model, model.untrained(self._training_seed()), emit)
        if self.before is not None:
            del model
            self._write(rows, "untrained", self.before, open_to_run(self.before), emit)
        storage.write_text(work / "samples.jsonl", json_lines(rows))
        storage.write_text(work / "samples.txt", readable(rows))
        emit(Noted(readable(rows[:SHOWN]).strip()))
        return {"samples": rows[:20], "texts": len(rows), "tokens": sum(row["tokens"] for row in rows)}

    @classmethod
    def section(cls, folder: Path, summary: dict[str, Any]) -> Section:
        """The first texts, each under its prompt."""
        return Section(cls.title, cls.lead, texts=answers(folder / "samples.jsonl"))

    def dry_run(self) -> tuple[Forecast, str]:
        """What would be continued; memory is that of the weights, twice with `compare_untrained`."""
        from mickle.models.folder_check import inspect_folder

        rows = self._rows()
        # The model of `before` comes after this one is gone.
        weights = inspect_folder(self.model).elements * 4 * (2 if self.compare_untrained else 1)
        shown = "\n".join(f"{number}. {row['prompt'][:100]!r}" for number, row in enumerate(rows[:SHOWN], 1))
        return Forecast(memory_bytes=weights + 300_000_000), f"{len(rows)} prompts:\n{shown}"

    def after(self, out: Path) -> str:
        """The next sensible command."""
        return command("chat", self.model) if self.chat else command("show", out)

    def _write(self, rows: list[dict[str, Any]], name: str, folder: Path, model: Any, emit: Emit) -> None:
        """What the model, with the words and marks of ``folder``, writes for each row, into the row."""
        tokenizer = tokenizer_of(folder)
        asked = self._tokens(rows, folder, tokenizer, emit)
        ends: tuple[int | str, ...] = (*ends_of(folder, tokenizer), *self.stop)
        for begin in range(0, len(rows), BATCH):
            written = self._continue(model, tokenizer, asked[begin : begin + BATCH], ends, emit)
            for row, completion in zip(rows[begin:], written):
                row[name] = completion.text
                if name == "text":
                    row |= {"tokens": len(completion.tokens), "stopped": completion.stopped}
            emit(Progressed((name != "text") * len(rows) + begin + len(written)))

    def _tokens(
        self, rows: list[dict[str, Any]], folder: Path, tokenizer: TextTokenizer, emit: Emit
    ) -> list[list[int]]:
        """What the model is given of each row. Special tokens spelt in a prompt are ordinary text."""
        from mickle.data.chat_template import has_template, pattern_of, spellings_of
        from mickle.data.questions import question_tokens
        from mickle.models.adapters import tokenizer_folder

        if self.chat:
            template = template_of(folder, tokenizer)
            if template.builtin:
                emit(Warned(f"the folder has no chat template: {PLAINLY}"))
            chats = [[Message(turn["role"], turn["content"]) for turn in row["messages"]] for row in rows]
            return [question_tokens(template, tokenizer, messages) for messages in chats]
        marks = pattern_of(spellings_of(tokenizer))
        if marks and any(marks.search(row["prompt"]) for row in rows):
            emit(Warned("a prompt spells special tokens, which are letters to the model; --chat writes them itself"))
        elif has_template(tokenizer_folder(folder), tokenizer):
            emit(Noted("this folder has a chat template: --chat asks the prompts as questions"))
        return [[tokenizer.start, *ids.tolist()] for ids in tokenizer.encode([row["prompt"] for row in rows])]

    def _continue(
        self, model: Any, tokenizer: TextTokenizer, asked: list[list[int]], ends: tuple[int | str, ...], emit: Emit
    ) -> list[Completion]:
        """One batch."""
        from mickle.sampling.text import generate

        return generate(
            model,
            asked,
            max_tokens=self.max_tokens,
            decode=tokenizer.decode,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            stop=ends,
            seed=self.seed,
            emit=emit,
        )

    def _training_seed(self) -> int:
        """The seed the model was trained from, where its manifest says; else this step's own."""
        manifest = storage.read_manifest(self.model)
        settings = manifest.meta.get("identity", {}).get("settings", {}) if manifest else {}
        return int(settings.get("seed", self.seed))

    def _rows(self) -> list[dict[str, Any]]:
        """Every prompt, from the settings and the file; with `chat` as the messages of a conversation."""
        read = read_questions if self.chat else read_prompts
        rows = [{"prompt": prompt} for prompt in self.prompts] + (read(self.prompt_file) if self.prompt_file else [])
        if not rows:
            raise UsageError(
                "there are no prompts",
                where="prompts",
                todo="give --prompts 'Some text'" + ("" if self.chat else ", or '' to begin a new document"),
            )
        if any(mark == "" for mark in self.stop):
            raise UsageError("a stop string is empty: every text would end at once", where="stop")
        if self.system and not self.chat:
            raise UsageError("a system message belongs to a conversation", where="system", todo="add --chat")
        return [self._question(row) for row in rows] if self.chat else rows

    def _question(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row whose `messages` say all that the model is told: of a prompt it is the user's."""
        if not row["prompt"].strip():
            raise UsageError("a question is empty", where="prompts", todo="write one, or leave --chat out")
        messages = row.get("messages") or [{"role": "user", "content": row["prompt"]}]
        told = messages[0]["role"] == "system" or not self.system
        return row | {"messages": messages if told else [{"role": "system", "content": self.system}, *messages]}


def ends_of(folder: Path, tokenizer: TextTokenizer) -> list[int]:
    """The tokens that end a text of a model folder: those that transformers would stop at, and no others; the
    tokenizer's own end where no folder names one.
    """
    from mickle.models.adapters import adapter_base
    from mickle.models.folder import end_tokens
    from mickle.models.folder_check import is_adapter

    ends = end_tokens(folder)
    if not ends and is_adapter(folder):
        ends = end_tokens(adapter_base(folder))
    return ends or [tokenizer.end]


def tokenizer_of(folder: Path) -> TextTokenizer:
    """The tokenizer of a model folder, of an adapter that has none its base's."""
    from mickle.data.tokenizer import open_text_tokenizer
    from mickle.models.adapters import tokenizer_folder
    from mickle.models.folder_check import check_tokenizer

    if not folder.exists():
        raise storage.no_such(folder, "model folder")
    home = tokenizer_folder(folder)
    check_tokenizer(home)
    return open_text_tokenizer(home)


def template_of(folder: Path, tokenizer: TextTokenizer) -> ChatTemplate:
    """The chat template of a model folder, from where its tokenizer is."""
    from mickle.data.chat_template import open_template
    from mickle.models.adapters import tokenizer_folder

    return open_template(tokenizer_folder(folder), tokenizer)


def read_prompts(path: Path) -> list[dict[str, Any]]:
    """The prompts of a file: the field 'prompt' of each line of JSON Lines (.jsonl), else each line but empty ones."""
    return [{"prompt": _prompt(value, where, PROMPT)} for value, where in _lines(path)]


def read_questions(path: Path) -> list[dict[str, Any]]:
    """The questions of a file: 'messages' of each line of JSON Lines, or prompts as :func:`read_prompts` has them.

    A conversation that ends with an answer is asked up to before it, and that is its 'reference'.
    """
    return [_question(value, where) for value, where in _lines(path)]


def _lines(path: Path) -> Iterator[tuple[Any, str]]:
    """What each line holds, and its place."""
    if path.suffix == ".jsonl":
        lines = good_lines(path, "prompt file", LARGEST_PROMPTS, PROMPT)
    else:  # cut at no other sign, which a text may hold
        texts = enumerate(read_text(path, "prompt file", LARGEST_PROMPTS).split("\n"), 1)
        lines = ((number, {"prompt": line}) for number, line in texts if line.strip())
    return ((value, f"{path}:{number}") for number, value in lines)


def _prompt(value: Any, where: str, expected: str) -> str:
    prompt = value.get("prompt") if isinstance(value, dict) else None
    if not isinstance(prompt, str):
        raise UsageError("record has no text under 'prompt'", where=where, expected=expected)
    return prompt


def _question(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict) or "messages" not in value:
        return {"prompt": _prompt(value, where, QUESTION)}
    try:
        messages, reference = read_question(value, where)
    except BadRow as problem:
        raise UsageError(f"this is no question: {problem}", where=where, expected=QUESTION) from None
    told = [{"role": turn.role, "content": turn.content} for turn in messages]
    return {"prompt": told[-1]["content"], "messages": told} | ({"reference": reference} if reference else {})


def readable(rows: list[dict[str, Any]]) -> str:
    """The samples as a page of plain text: each prompt with what followed it.

    A model may write control characters, which a terminal would obey: they are shown by their pictures (U+2400 on).
    """
    parts = []
    for number, row in enumerate(rows, 1):
        turns = (f"{turn['role']}: {turn['content']}\n" for turn in row.get("messages", ()))
        before = "".join(turns) + "assistant: " if "messages" in row else f"[{row['prompt']}]"
        parts.append(f"--- {number} ---\n{before}{row['text']}")
        if "reference" in row:
            parts.append(f"the file's answer: {row['reference']}")
        if "untrained" in row:
            parts.append(f"before training:\n{before}{row['untrained']}")
    pictures = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
    harmless = pictures | dict.fromkeys([*range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)], 0xFFFD)
    return ("\n\n".join(parts) + "\n").translate(harmless)


def answers(file: Path) -> list[tuple[str, str, str]]:
    """The first texts of a file of samples, each under its prompt, for a section."""
    texts: list[tuple[str, str, str]] = []
    with open(file, encoding="utf-8") as lines:
        rows = [json.loads(line) for line in islice(lines, 6)]
    for row in rows:
        asked = row.get("question") or row["prompt"] or "(a new document)"
        texts.append(("question" if "question" in row or "messages" in row else "prompt", "prompt", asked))
        if "reference" in row:
            texts.append(("the file's answer", "reference", row["reference"][:LONGEST_TEXT]))
        if "untrained" in row:
            texts.append(("before training", "before", row["untrained"][:LONGEST_TEXT]))
        texts.append(("after training", "after", row["text"][:LONGEST_TEXT]))
    return texts
