"""Sampling: the batch changes nothing, the filters keep what they say, stops stop, bad input is explained."""

import math
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mickle.errors import NumericError, ResourceError, UsageError
from mickle.models.decoder import Decoder, DecoderConfig
from mickle.models.wrapped import WrappedModel
from mickle.sampling.text import Sampling, choose, generate, stream

PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11], [4], [2, 2]]
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMN"


def decode(tokens: list[int]) -> str:
    """Token i is the i-th letter."""
    return "".join(LETTERS[token] for token in tokens)


def decoder(position: Any) -> Decoder:
    return Decoder(DecoderConfig(40, 32, 2, 4, 2, 8, 48, 64, position=position, initial_std=0.3)).eval()


def gpt2() -> WrappedModel:
    torch.manual_seed(0)
    shape = {"vocab_size": 40, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.3}
    return WrappedModel(transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape))).eval()


MODELS = ["none", "learned", "sinusoidal", "rotary", "alibi", "t5", ("rotary", "none"), "gpt2"]


def make(name: Any) -> nn.Module:
    return gpt2() if name == "gpt2" else decoder(name)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_rows_text_does_not_depend_on_its_batch(name: Any, temperature: float) -> None:
    model, made = make(name), {"max_tokens": 12, "decode": decode, "temperature": temperature}
    together = generate(model, PROMPTS, seed=7, **made)  # type: ignore[arg-type]
    for row in (0, 1, 2, 4):
        assert generate(model, [PROMPTS[row]], seed=7, **made)[0] == together[row]  # type: ignore[arg-type]
    backwards = generate(model, PROMPTS[::-1], seed=7, **made)[::-1]  # type: ignore[arg-type]
    assert [backwards[row] for row in (0, 2, 4)] == [together[row] for row in (0, 2, 4)]
    assert (together[1] == together[3]) == (temperature == 0.0)  # equal prompts: drawn twice, each its own text


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(("rows", "after"), [(2, 0), (1, 4)])
def test_memory_that_runs_out_writes_fewer_texts_at_a_time(temperature: float, rows: int, after: int) -> None:
    """RELIABILITY 24: the same texts, in the middle of them too; told once for each halving."""
    model, made = decoder("rotary"), {"max_tokens": 12, "decode": decode, "temperature": temperature, "seed": 7}
    whole = generate(model, PROMPTS, **made)  # type: ignore[arg-type]
    plain, heard, calls = model.forward, [], iter(range(10**6))

    def short(ids: Tensor, **options: Any) -> Any:
        if next(calls) >= after and len(ids) > rows:
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes")
        return plain(ids, **options)

    model.forward = short  # type: ignore[method-assign]
    assert generate(model, PROMPTS, emit=heard.append, **made) == whole  # type: ignore[arg-type]
    assert len(heard) == {2: 1, 1: 2}[rows]
    rows = after = 0
    with pytest.raises(ResourceError, match="1 texts"):
        generate(model, PROMPTS, emit=heard.append, **made)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", MODELS)
def test_greedy_text_is_what_whole_forward_passes_give(name: Any) -> None:
    model = make(name)
    for prompt, completion in zip(PROMPTS, generate(model, PROMPTS, max_tokens=9, decode=decode, temperature=0)):
        whole = list(prompt)
        for token in completion.tokens:
            scores = model(torch.tensor([whole]))[0, -1]
            assert scores[token] >= scores.max() - 1e-5
            whole.append(token)


@pytest.mark.parametrize("name", MODELS)
def test_left_padding_and_cache_change_logits_by_rounding_alone(name: Any) -> None:
    model = make(name)
    longest = max(map(len, PROMPTS))
    padded = torch.tensor([[0] * (longest - len(p)) + p for p in PROMPTS])
    documents = torch.tensor([[-1] * (longest - len(p)) + [0] * len(p) for p in PROMPTS])
    cache = model.new_cache()  # type: ignore[operator]
    first = model(padded, documents=documents, cache=cache)[:, -1]
    second = model(torch.full((len(PROMPTS), 1), 3), cache=cache)[:, -1]
    for row, prompt in enumerate(PROMPTS):
        alone = model(torch.tensor([[*prompt, 3]]))[0]
        torch.testing.assert_close(first[row], alone[-2], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(second[row], alone[-1], atol=1e-5, rtol=1e-5)


def test_the_seed_decides_and_nothing_else() -> None:
    model = decoder("rotary")

    def draw(seed: Any) -> list[list[int]]:
        return [c.tokens for c in generate(model, PROMPTS, max_tokens=15, decode=decode, seed=seed)]

    torch.manual_seed(1)
    first = draw(3)
    torch.manual_seed(2)
    assert draw(3) == first
    assert draw(4) != first
    own = draw([11, 12, 13, 14, 15])
    assert generate(model, [PROMPTS[2]], max_tokens=15, decode=decode, seed=[13])[0].tokens == own[2]


def generators(rows: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed * 100_003 + row) for row in range(rows)]


@settings(max_examples=60, deadline=None)
@given(
    scores=st.lists(st.floats(-8, 8), min_size=2, max_size=12),
    top_k=st.integers(0, 14),
    top_p=st.floats(0.05, 1.0),
    temperature=st.floats(0.2, 5),
    seed=st.integers(0, 99),
)
def test_only_what_the_filters_keep_is_drawn(
    scores: list[float], top_k: int, top_p: float, temperature: float, seed: int
) -> None:
    logits = torch.tensor([scores] * 16)
    drawn = choose(logits, Sampling(temperature, top_k, top_p), generators(16, seed)).tolist()
    order = sorted(range(len(scores)), key=lambda i: (-logits[0, i].item(), i))
    probability = (logits[0].double() / temperature).softmax(0)
    kept, reached = [], 0.0
    for place, token in enumerate(order):
        if place and (reached >= top_p + 1e-9 or (top_k and place >= top_k)):
            break
        kept.append(token)
        reached += probability[token].item()
    assert set(drawn) <= set(kept)


def test_draws_have_the_models_probabilities() -> None:
    """4,000 draws of 4 tokens; chi-square with 3 degrees of freedom exceeds 16.3 once in a thousand."""
    probability = torch.tensor([0.5, 0.3, 0.15, 0.05])
    for temperature in (1.0, 2.0):
        expected = probability ** (1 / temperature)
        expected = 4000 * expected / expected.sum()
        logits = probability.log().expand(4000, 4)
        counts = choose(logits, Sampling(temperature), generators(4000)).bincount(minlength=4)
        assert ((counts - expected).square() / expected).sum() < 16.3


def test_by_pencil() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    assert choose(logits, Sampling(0), generators(1)).tolist() == [1]
    assert choose(logits, Sampling(1.0, top_k=1), generators(1)).tolist() == [1]
    assert choose(logits, Sampling(1.0, top_p=1e-9), generators(1)).tolist() == [1]
    impossible = torch.tensor([[-math.inf, 0.0, -math.inf]]).expand(50, 3)
    assert set(choose(impossible, Sampling(1.0), generators(50)).tolist()) == {1}
    with pytest.raises(NumericError):
        choose(torch.tensor([[math.nan, 1.0]]), Sampling(0), generators(1))


class Alphabet(nn.Module):
    """Writes the letter that follows the last one: a, b, c, ..."""

    causal, vocab_size, length_limit = True, 26, None

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))

    def new_cache(self) -> Any:
        return type("Cache", (), {"length": 0})()

    def forward(self, input_ids: Tensor, *, documents: Any, cache: Any, head: Any) -> Any:
        cache.length += input_ids.shape[1]
        return head(100 * nn.functional.one_hot((input_ids + 1) % 26, 26).float(), None)


@pytest.mark.parametrize(
    ("stop", "texts", "reasons"),
    [
        ((), ["bcdefg", "hijklm"], ["length", "length"]),
        ((4,), ["bcd", "hijklm"], ["stop", "length"]),
        (("de",), ["bc", "hijklm"], ["stop", "length"]),
        (("xyz", "efg", "j"), ["bcd", "hi"], ["stop", "stop"]),
        (("g",), ["bcdef", "hijklm"], ["stop", "length"]),
        ((1, 7), ["", ""], ["stop", "stop"]),
    ],
)
def test_texts_end_before_the_first_stop(stop: Any, texts: list[str], reasons: list[str]) -> None:
    done = generate(Alphabet(), [[0], [3, 6]], max_tokens=6, decode=decode, temperature=0, stop=stop)
    assert [completion.text for completion in done] == texts
    assert [completion.stopped for completion in done] == reasons


def test_a_stream_gives_each_token_as_it_is_made_and_rests_when_closed() -> None:
    model = Alphabet().train()
    tokens = stream(model, [[0], [6]], Sampling(0), max_tokens=1000, decode=decode, stop=(8,))
    assert [next(tokens) for _ in range(6)] == [(0, 1), (1, 7), (0, 2), (1, 8), (0, 3), (0, 4)]
    assert not model.training
    tokens.close()
    assert model.training


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompts": []}, "no prompts"),
        ({"prompts": [[1], []]}, "no tokens"),
        ({"prompts": [[1, 40]]}, "token 40"),
        ({"prompts": [[-1]]}, "token -1"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0.0}, "top_p is 0"),
        ({"max_tokens": 64}, "exceed the model's 64"),
        ({"seed": [1, 2]}, "2 seeds are given for 1 prompts"),
    ],
)
def test_bad_input_is_one_sentence(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        generate(decoder("learned"), **{"prompts": [[1]], "max_tokens": 3, "decode": decode, **change})


def test_a_masked_model_cannot_continue() -> None:
    model = Decoder(DecoderConfig(40, 32, 2, 4, 2, 8, 48, 64, causal=False))
    with pytest.raises(UsageError, match="fills in masks"):
        generate(model, [[1]], max_tokens=3, decode=decode)
