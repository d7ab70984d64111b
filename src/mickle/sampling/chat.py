"""`mickle chat`: questions typed in a terminal, answered by one model or by several side by side, word by word."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from mickle.config import validate
from mickle.data.conversation_forms import Example, Message
from mickle.errors import MickleError, UsageError, printable
from mickle.models.gguf_folder import Model
from mickle.sampling.sample import PLAINLY, Writing, ends_of, template_of, tokenizer_of

if TYPE_CHECKING:
    from mickle.data.chat_template import ChatTemplate
    from mickle.data.tokenizer import TextTokenizer
    from mickle.models.language import LanguageModel

HELP = """\
/new              forget what was said
/undo             take the last question back
/system TEXT      from here on with this system message (without TEXT: with none), and nothing said before
/save FILE.jsonl  the conversation as a line of `messages` for each model, as `mickle tune` reads them
/quit             leave (or Ctrl-D); Ctrl-C stops an answer
A line that ends in \\ goes on in the next."""

Say = Callable[[str], None]  # without a line end of its own


class Chat(Writing):
    """Ask a chat model through its own template, and be answered as it writes."""

    example: ClassVar[str] = "mickle chat model --system 'Answer in one sentence.'"

    models: tuple[Model, ...] = Field(min_length=1, description="model folders or GGUF files; several answer in turn")
    system: str = Field("", description="what a system message tells the model before your first question")
    max_tokens: int = Field(512, ge=1, le=1_000_000, description="tokens of an answer, at most")
    seed: int = Field(0, ge=0, lt=2**32, description="all randomness follows from it")


@dataclass
class Speaker:
    """One model with what it was told and asked, and what it answered."""

    name: str
    model: LanguageModel
    tokenizer: TextTokenizer
    template: ChatTemplate
    ends: list[int]
    messages: list[Message] = field(default_factory=list)

    def without_oldest(self) -> bool:
        """Forget the oldest question and what follows it up to the next; False where there is only one."""
        asked = [at for at, turn in enumerate(self.messages) if turn.role == "user"]
        if len(asked) > 1:
            del self.messages[asked[0] : asked[1]]
        return len(asked) > 1

    def without_last(self) -> None:
        """Forget the last question and its answer."""
        asked = [at for at, turn in enumerate(self.messages) if turn.role == "user"]
        del self.messages[asked[-1] if asked else len(self.messages) :]


def converse(chat: Chat, questions: Iterator[str], say: Say, *, timed: bool = False) -> None:
    """Answer each of ``questions``, lines as a person types them, until they end or one is /quit.

    say: is given the answers piece by piece, as they are written, and harmless for a terminal. timed: say after an
    answer how fast it came. Raises UsageError for a folder that is no causal language model's. What is wrong with a
    question is said, and the next is waited for.
    """
    speakers = [open_speaker(chat, folder) for folder in chat.models]
    for speaker in speakers:
        if speaker.template.builtin:
            say(f"{speaker.name} has no chat template: {PLAINLY}\n")
    say(f"{', '.join(speaker.name for speaker in speakers)}: ask; /help shows what else can be typed\n")
    for question in whole_lines(questions):
        if question.startswith("/"):
            if question == "/quit":
                return
            try:
                chat = _command(question, chat, speakers, say)
            except MickleError as error:
                say(f"{error}\n")
        elif question.strip():
            for speaker in speakers:
                _answer(chat, speaker, question, say, f"{speaker.name}: " if len(speakers) > 1 else "", timed)


def open_speaker(chat: Chat, folder: Path) -> Speaker:
    """A model folder, ready to be asked."""
    from mickle.models.folder import open_to_run

    tokenizer = tokenizer_of(folder)
    template = template_of(folder, tokenizer)
    model = open_to_run(folder)
    if not model.causal:
        raise UsageError("this model fills in masks; it cannot answer", where=str(folder), expected="a causal one")
    return Speaker(str(folder), model, tokenizer, template, ends_of(folder, tokenizer), _opening(chat))


def whole_lines(lines: Iterator[str]) -> Iterator[str]:
    """Lines without their ends; one that ends in a backslash is joined with the next."""
    begun = ""
    for line in lines:
        line = line.rstrip("\r\n")
        if line.endswith("\\"):
            begun += line[:-1] + "\n"
            continue
        yield begun + line
        begun = ""
    if begun:
        yield begun


def _opening(chat: Chat) -> list[Message]:
    return [Message("system", chat.system)] if chat.system else []


def _command(line: str, chat: Chat, speakers: list[Speaker], say: Say) -> Chat:
    """Do what a line with a slash asks for; the settings from here on."""
    name, _, rest = line.partition(" ")
    if name == "/system":
        chat = validate(Chat, {**chat.model_dump(), "system": rest.strip()})
    if name in ("/new", "/system"):
        for speaker in speakers:
            speaker.messages[:] = _opening(chat)
        say("a new conversation\n")
    elif name == "/undo":
        for speaker in speakers:
            speaker.without_last()
        say("the last question is taken back\n")
    elif name == "/save":
        say(f"saved: {_save(Path(rest.strip()), speakers)}\n")
    else:
        say(HELP + "\n" if name == "/help" else f"there is no {name}; /help shows what there is\n")
    return chat


def _save(path: Path, speakers: list[Speaker]) -> Path:
    """The conversations as JSON Lines of messages. A file that is there stays as it is."""
    from mickle.data.conversations import write_messages

    if path.suffix != ".jsonl":
        raise UsageError("a conversation is saved as JSON Lines", expected="/save FILE.jsonl")
    if path.exists():
        raise UsageError(f"{path} is there already", todo="give another name")
    spoken = [speaker.messages for speaker in speakers if speaker.messages and speaker.messages[-1].role == "assistant"]
    if not spoken:
        raise UsageError("nothing was answered yet", todo="ask something first")
    write_messages(path, [Example("messages", tuple(messages)) for messages in spoken])
    return path


def _answer(chat: Chat, speaker: Speaker, question: str, say: Say, before: str, timed: bool) -> None:
    """Ask one model, and keep what it answers; a question that cannot be asked is said and forgotten."""
    speaker.messages.append(Message("user", question))
    say(before)
    begun, tokens, text = time.perf_counter(), list[int](), ""
    try:
        prompt = _prompt(chat, speaker, say)
        for token in _written(chat, speaker, prompt):
            tokens.append(token)
            whole = speaker.tokenizer.decode(tokens)
            if not whole.endswith("\ufffd"):  # part of a character
                say(printable(whole[len(text) :]))
                text = whole
    except KeyboardInterrupt:
        say(" (stopped)")
    except MickleError as error:
        say(f"{error}\n")
        speaker.without_last()
        return
    whole = speaker.tokenizer.decode(tokens)
    say(printable(whole[len(text) :]) + "\n")
    if not whole.strip():  # nothing to remember, and most templates take no empty turn
        say("(no answer: the question is forgotten)\n")
        speaker.without_last()
        return
    speaker.messages.append(Message("assistant", whole))
    if timed and tokens:
        seconds = time.perf_counter() - begun
        say(f"({len(tokens)} tokens in {seconds:.1f} s, {len(tokens) / seconds:.1f} a second)\n")


def _written(chat: Chat, speaker: Speaker, prompt: list[int]) -> Iterator[int]:
    """The tokens of an answer as they are chosen, without the one that ends it."""
    from mickle.sampling.text import Sampling, stream

    written = stream(
        speaker.model,
        [prompt],
        Sampling(chat.temperature, chat.top_k, chat.top_p),
        max_tokens=chat.max_tokens,
        decode=speaker.tokenizer.decode,
        stop=speaker.ends,
        seed=chat.seed,
    )
    return (token for _, token in written if token not in speaker.ends)


def _prompt(chat: Chat, speaker: Speaker, say: Say) -> list[int]:
    """The conversation as tokens; of one that has grown too long for the model, without its oldest questions."""
    from mickle.data.questions import question_tokens

    limit = speaker.model.trained_length or speaker.model.length_limit
    prompt = question_tokens(speaker.template, speaker.tokenizer, speaker.messages)
    while limit is not None and len(prompt) + chat.max_tokens > limit:
        if not speaker.without_oldest():
            say(f"(the question and an answer may have more than the {limit:,} tokens the model was made for)\n")
            break
        say("(the oldest question is forgotten: the conversation is longer than the model was made for)\n")
        prompt = question_tokens(speaker.template, speaker.tokenizer, speaker.messages)
    return prompt


def typed(prompt: str = "> ") -> Iterator[str]:
    """What a person types, line by line, with the arrow keys at work, until Ctrl-D or Ctrl-C."""
    with suppress(ImportError):
        import readline  # noqa: F401 - makes input() editable
    while True:
        try:
            yield input(prompt)
        except (EOFError, KeyboardInterrupt):
            print()
            return


def run(settings: dict[str, Any]) -> None:
    """The command: ask at a terminal, or answer the lines that another program gives."""
    import sys

    def say(piece: str) -> None:
        print(piece, end="", flush=True)

    at_terminal = sys.stdin.isatty()
    converse(validate(Chat, settings), typed() if at_terminal else iter(sys.stdin), say, timed=at_terminal)
