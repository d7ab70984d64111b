"""The verb `sample`: let a model folder continue some prompts, and keep what it wrote."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from mickle import storage
from mickle.config import Input
from mickle.data.rows import value_of
from mickle.errors import UsageError
from mickle.events import Emit, Noted, Progressed, Started
from mickle.machine import Forecast
from mickle.results import Section, json_lines
from mickle.step import Step
from mickle.untrusted.values import read_text

if TYPE_CHECKING:
    from mickle.data.tokenizer import TextTokenizer
    from mickle.sampling.text import Completion

LARGEST_PROMPTS = 16 << 20  # bytes of a prompt file
PROMPT = '{"prompt": "..."}'  # a line
BATCH = 16  # prompts at a time
LONGEST_TEXT = 1_500  # characters that a report shows of a text


class Sample(Step):
    """Let a model continue prompts: greedy or drawn, with a seed of its own for every row."""

    kind: ClassVar[str] = "samples"
    title: ClassVar[str] = "Samples"
    lead: ClassVar[str] = "What the model writes. A small model writes the form of its pages before their sense."
    positional: ClassVar[str] = "model"
    example: ClassVar[str] = "mickle sample runs/model --prompts 'The file' --max-tokens 80"

    model: Input = Field(description="model folder: ours, or any transformers language model")
    prompts: tuple[str, ...] = Field((), description="texts to continue; an empty one begins a new document")
    prompt_file: Input | None = Field(
        None, description="file of prompts: JSON Lines with a field 'prompt', or one prompt a line"
    )
    max_tokens: int = Field(100, ge=1, le=1_000_000, description="tokens written after each prompt, at most")
    temperature: float = Field(0.8, ge=0, le=100, description="0 takes the likeliest token; 1 draws as the model says")
    top_k: int = Field(0, ge=0, description="draw among the k likeliest tokens only; 0 is off")
    top_p: float = Field(0.95, gt=0, le=1, description="draw among the likeliest tokens that reach this probability")
    stop: tuple[str, ...] = Field(
        (), description="strings that end a text, besides the end tokens that the folder names"
    )
    compare_untrained: bool = Field(False, description="also write what the same model wrote before training")

    def run(self, work: Path, emit: Emit) -> dict[str, Any]:
        """Write `samples.jsonl` (prompt, text, tokens, stopped; untrained) and a readable `samples.txt`."""
        from mickle.models.folder import open_model

        prompts = self._prompts()
        model: Any = open_model(self.model)
        tokenizer = self._tokenizer()
        arms = {"text": model}
        if self.compare_untrained:
            arms["untrained"] = model.untrained(self._training_seed())
        emit(Started("sample", len(prompts) * len(arms), "texts"))
        rows: list[dict[str, Any]] = [{"prompt": prompt} for prompt in prompts]
        for done, (name, arm) in enumerate(arms.items()):
            for begin in range(0, len(prompts), BATCH):
                written = self._continue(arm, tokenizer, prompts[begin : begin + BATCH], emit)
                for row, completion in zip(rows[begin:], written):
                    row[name] = completion.text
                    if name == "text":
                        row |= {"tokens": len(completion.tokens), "stopped": completion.stopped}
                emit(Progressed(done * len(prompts) + begin + len(written)))
        storage.write_text(work / "samples.jsonl", json_lines(rows))
        storage.write_text(work / "samples.txt", readable(rows))
        emit(Noted(readable(rows[:1]).strip()))
        return {"samples": rows[:20], "texts": len(rows), "tokens": sum(row["tokens"] for row in rows)}

    @classmethod
    def section(cls, folder: Path, summary: dict[str, Any]) -> Section:
        """The first texts, each under its prompt."""
        return Section(cls.title, cls.lead, texts=answers(folder / "samples.jsonl"))

    def dry_run(self) -> tuple[Forecast, str]:
        """What would be continued; memory is that of the weights, twice with `compare_untrained`."""
        from mickle.models.folder_check import inspect_folder

        prompts = self._prompts()
        weights = inspect_folder(self.model).elements * 4 * (2 if self.compare_untrained else 1)
        shown = "\n".join(f"{number}. {prompt[:100]!r}" for number, prompt in enumerate(prompts[:5], 1))
        return Forecast(memory_bytes=weights + 300_000_000), f"{len(prompts)} prompts:\n{shown}"

    def after(self, out: Path) -> str:
        """The next sensible command."""
        return f"mickle show {out}"

    def _continue(self, model: Any, tokenizer: TextTokenizer, prompts: list[str], emit: Emit) -> list[Completion]:
        """One batch. Special tokens spelt in a prompt are ordinary text; the start mark stands before each."""
        from mickle.sampling.text import generate

        ids = [[tokenizer.start, *encoded.tolist()] for encoded in tokenizer.encode(prompts)]
        return generate(
            model,
            ids,
            max_tokens=self.max_tokens,
            decode=tokenizer.decode,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            stop=(*self._ends(tokenizer), *self.stop),
            seed=self.seed,
            emit=emit,
        )

    def _ends(self, tokenizer: TextTokenizer) -> list[int]:
        """The tokens that end a text: those that transformers would stop at, and no others; the tokenizer's own end
        where no folder names one.
        """
        from mickle.models.adapters import adapter_base
        from mickle.models.folder import end_tokens
        from mickle.models.folder_check import is_adapter

        ends = end_tokens(self.model)
        if not ends and is_adapter(self.model):
            ends = end_tokens(adapter_base(self.model))
        return ends or [tokenizer.end]

    def _tokenizer(self) -> TextTokenizer:
        from mickle.data.tokenizer import open_text_tokenizer
        from mickle.models.adapters import tokenizer_folder
        from mickle.models.folder_check import check_tokenizer

        folder = tokenizer_folder(self.model)
        check_tokenizer(folder)
        return open_text_tokenizer(folder)

    def _training_seed(self) -> int:
        """The seed the model was trained from, where its manifest says; else this step's own."""
        manifest = storage.read_manifest(self.model)
        settings = manifest.meta.get("identity", {}).get("settings", {}) if manifest else {}
        return int(settings.get("seed", self.seed))

    def _prompts(self) -> list[str]:
        """Every prompt, from the settings and the file."""
        prompts = [*self.prompts, *(read_prompts(self.prompt_file) if self.prompt_file else [])]
        if not prompts:
            raise UsageError(
                "there are no prompts",
                where="prompts",
                todo="give --prompts 'Some text', or '' to begin a new document",
            )
        if any(mark == "" for mark in self.stop):
            raise UsageError("a stop string is empty: every text would end at once", where="stop")
        return prompts


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file: the field 'prompt' of each line of JSON Lines (.jsonl), else each line but empty ones."""
    # Cut at no other sign, which a text may hold.
    lines = read_text(path, "prompt file", LARGEST_PROMPTS).split("\n")
    if path.suffix != ".jsonl":
        return [line for line in lines if line.strip()]
    return [_prompt(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]


def _prompt(line: str, where: str) -> str:
    value = value_of(line, where, PROMPT)
    prompt = value.get("prompt") if isinstance(value, dict) else None
    if not isinstance(prompt, str):
        raise UsageError("record has no text under 'prompt'", where=where, expected=PROMPT)
    return prompt


def readable(rows: list[dict[str, Any]]) -> str:
    """The samples as a page of plain text: each prompt with what followed it.

    A model may write control characters, which a terminal would obey: they are shown by their pictures (U+2400 on).
    """
    parts = []
    for number, row in enumerate(rows, 1):
        parts.append(f"--- {number} ---\n[{row['prompt']}]{row['text']}")
        if "untrained" in row:
            parts.append(f"before training:\n[{row['prompt']}]{row['untrained']}")
    pictures = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
    harmless = pictures | dict.fromkeys([*range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)], 0xFFFD)
    return ("\n\n".join(parts) + "\n").translate(harmless)


def answers(file: Path) -> list[tuple[str, str, str]]:
    """The first texts of a file of samples, each under its prompt, for a section."""
    texts: list[tuple[str, str, str]] = []
    with open(file, encoding="utf-8") as lines:
        rows = [json.loads(line) for line in islice(lines, 6)]
    for row in rows:
        texts.append(("prompt", "prompt", row["prompt"] or "(a new document)"))
        if "untrained" in row:
            texts.append(("before training", "before", row["untrained"][:LONGEST_TEXT]))
        texts.append(("after training", "after", row["text"][:LONGEST_TEXT]))
    return texts
