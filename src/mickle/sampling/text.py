"""Text from a language model: greedy or drawn, in batches of unequal prompts, token by token.

A row's text depends on its prompt, the settings and the seed, not on the batch it stands in: prompts are padded on the
left as documents of their own, and each row draws from a generator of its own. (Logits of different batch shapes can
differ in the last bits, so a draw that falls within such a bit of a boundary may still differ.)
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mickle import machine
from mickle.errors import NumericError, ResourceError, UsageError
from mickle.events import Emit, Warned, as_warnings

Decode = Callable[[list[int]], str]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Temperature 0 takes the likeliest; `top_k` 0 and `top_p` 1 leave nothing out.

    `top_p`: the smallest set of tokens whose probabilities reach it (nucleus sampling, arXiv 1904.09751, section 3.1).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise UsageError(f"temperature is {self.temperature}", expected="0 (greedy) or a positive number")
        if self.top_k < 0:
            raise UsageError(f"top_k is {self.top_k}", expected="0 (off) or a positive number of tokens")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p is {self.top_p}", expected="above 0, at most 1")


@dataclass(frozen=True)
class Completion:
    """What a model wrote after one prompt. `tokens` include the stopping ones, `text` ends before them."""

    tokens: list[int]
    text: str
    stopped: Literal["stop", "length"]


def generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    decode: Decode,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    stop: Sequence[int | str] = (),
    seed: int | Sequence[int] = 0,
    emit: Emit = as_warnings,
) -> list[Completion]:
    """Continue each prompt until a stop token or string, or for `max_tokens` tokens.

    prompts: token ids of each row. stop: ids and strings. seed: one for all (rows then differ by their prompts, equal
    prompts by their order), or one for each row. Raises UsageError for prompts the model cannot read.
    """
    tokens: list[list[int]] = [[] for _ in prompts]
    sampling = Sampling(temperature, top_k, top_p)
    for row, token in stream(
        model, prompts, sampling, max_tokens=max_tokens, decode=decode, stop=stop, seed=seed, emit=emit
    ):
        tokens[row].append(token)
    return [_complete(row, decode, stop) for row in tokens]


def stream(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    max_tokens: int,
    decode: Decode,
    stop: Sequence[int | str] = (),
    seed: int | Sequence[int] = 0,
    emit: Emit = as_warnings,
) -> Iterator[tuple[int, int]]:
    """As `generate`, giving (row, token) as soon as each token is chosen. Closing the iterator ends the work.

    Where memory runs out, half as many rows go on, the others after them; four times at most, then ResourceError.
    """
    _check(model, prompts, max_tokens)
    generators = [torch.Generator().manual_seed(s) for s in _row_seeds(prompts, seed)]
    written: list[list[int]] = [[] for _ in prompts]
    done: set[int] = set()
    together, halvings = len(prompts), 0
    training = model.training
    model.eval()
    try:
        while rows := [row for row in range(len(prompts)) if row not in done][:together]:
            read = _reader(model, [[*prompts[row], *written[row]] for row in rows])
            chosen: list[int] | None = None
            while not done.issuperset(rows):
                chosen = _chosen(read, chosen, sampling, [generators[row] for row in rows])
                if chosen is None:
                    break
                for row, token in zip(rows, chosen, strict=True):
                    if row not in done:
                        written[row].append(token)
                        yield row, token
                        if len(written[row]) == max_tokens or _stopped(written[row], decode, stop):
                            done.add(row)
            else:
                continue
            together, halvings = len(rows) // 2, halvings + 1
            if not together or halvings > machine.RETRIES:
                raise ResourceError(
                    f"Memory ran out while {len(rows)} texts were written at a time.",
                    todo="end other programs, or ask for fewer tokens",
                )
            emit(Warned(f"memory ran out: {together} texts are written at a time from here on"))
    finally:
        model.train(training)


def _chosen(
    read: Callable[[list[int] | None], Tensor],
    last: list[int] | None,
    sampling: Sampling,
    generators: Sequence[torch.Generator],
) -> list[int] | None:
    """The next token of each row; None where memory ran out, and then no random number was drawn."""
    try:
        logits = read(last)
    except (MemoryError, RuntimeError) as error:
        if not machine.is_out_of_memory(error):
            raise
        return None
    found: list[int] = choose(logits, sampling, generators).tolist()
    return found


def choose(logits: Tensor, sampling: Sampling, generators: Sequence[torch.Generator]) -> Tensor:
    """The next token of each row: logits [B, V] -> [B] int64. Row b draws one number from generator b."""
    if not bool(logits.amax(dim=-1).isfinite().all()):  # -inf leaves a token out, but not all of them
        raise NumericError("the model's next-token scores are not numbers", todo="use an earlier checkpoint")
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    scores, order = (logits.double() / sampling.temperature).sort(dim=-1, descending=True, stable=True)
    probabilities = scores.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    left_out = before >= sampling.top_p
    if sampling.top_k:
        left_out[:, sampling.top_k :] = True
    left_out[:, 0] = False
    reached = probabilities.masked_fill(left_out, 0.0).cumsum(dim=-1)
    draws = torch.stack([torch.rand((), generator=generator, dtype=torch.float64) for generator in generators])
    target = draws.to(logits.device)[:, None] * reached[:, -1:]
    place = torch.searchsorted(reached, target, right=True).clamp(max=logits.shape[-1] - 1)
    return order.gather(1, place)[:, 0]


def _reader(model: nn.Module, prompts: Sequence[Sequence[int]]) -> Callable[[list[int] | None], Tensor]:
    """A function from the last token of each row (None: the prompts) to the next one's logits [B, V].

    Rows that have stopped are read on with the others, so that the batch keeps its shape; nobody sees them.
    """
    device = next(model.parameters()).device
    longest = max(map(len, prompts))
    padded = [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    documents = [[-1] * (longest - len(prompt)) + [0] * len(prompt) for prompt in prompts]
    unequal = any(len(prompt) != longest for prompt in prompts)
    cache = model.new_cache()

    @torch.inference_mode()
    def read(last: list[int] | None) -> Tensor:
        ids = torch.tensor(padded if last is None else [[token] for token in last], device=device)
        apart = torch.tensor(documents, device=device) if last is None and unequal else None
        scores: Tensor = model(ids, documents=apart, cache=cache, head=_last)
        return scores.float()

    return read


def _last(hidden: Tensor, weight: Tensor | None) -> Tensor:
    """Logits of the last position alone: hidden [B, T, D] -> [B, V]."""
    return hidden[:, -1] if weight is None else hidden[:, -1] @ weight.T


def _check(model: Any, prompts: Sequence[Sequence[int]], max_tokens: int) -> None:
    """Refuse what the model cannot continue. `model` has `causal`, `vocab_size` and `length_limit`."""
    if not prompts:
        raise UsageError("there are no prompts", expected="at least one")
    if max_tokens < 1:
        raise UsageError(f"max_tokens is {max_tokens}", expected="at least 1")
    if not model.causal:
        raise UsageError("this model fills in masks; it cannot continue a text", expected="a causal language model")
    for row, prompt in enumerate(prompts):
        if not prompt:
            raise UsageError("prompt has no tokens", where=f"prompt {row}", todo="begin it with the start mark")
        for token in prompt:
            if not 0 <= token < model.vocab_size:
                raise UsageError(f"token {token} is not among the model's {model.vocab_size}", where=f"prompt {row}")
    longest, limit = max(map(len, prompts)), model.length_limit
    if limit is not None and longest + max_tokens > limit:
        raise UsageError(
            f"{longest} prompt tokens and {max_tokens} new ones exceed the model's {limit}",
            where="max_tokens",
            todo="ask for fewer tokens, or shorten the prompt",
        )


def _row_seeds(prompts: Sequence[Sequence[int]], seed: int | Sequence[int]) -> list[int]:
    """One seed a row. From a single seed: a hash of it, the prompt, and how many equal prompts stood before."""
    if not isinstance(seed, int):
        if len(seed) != len(prompts):
            raise UsageError(f"{len(seed)} seeds are given for {len(prompts)} prompts")
        return list(seed)
    seen: Counter[tuple[int, ...]] = Counter()
    seeds = []
    for prompt in map(tuple, prompts):
        text = repr((seed, prompt, seen[prompt])).encode()
        seeds.append(int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "little"))
        seen[prompt] += 1
    return seeds


def _stopped(tokens: list[int], decode: Decode, stop: Sequence[int | str]) -> bool:
    """Whether the last token ends the text. Only as many tokens are decoded as a stop string can span."""
    strings = [mark for mark in stop if isinstance(mark, str)]
    if tokens[-1] in stop:
        return True
    span = 4 + 4 * max(map(len, strings), default=0)  # a character has at most 4 bytes, a token at least 1
    return bool(strings) and _first(decode(tokens[-span:]), strings) is not None


def _first(text: str, marks: Sequence[str]) -> int | None:
    """Where the first of `marks` begins in `text`."""
    return min((text.index(mark) for mark in marks if mark in text), default=None)


def _complete(tokens: list[int], decode: Decode, stop: Sequence[int | str]) -> Completion:
    ended = bool(tokens) and _stopped(tokens, decode, stop)
    text = decode(tokens[:-1] if tokens and tokens[-1] in stop else tokens)
    cut = _first(text, [mark for mark in stop if isinstance(mark, str)])
    return Completion(tokens, text if cut is None else text[:cut], "stop" if ended else "length")
