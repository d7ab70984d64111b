"""Two models beside each other: KL by brute force, nothing between a model and itself, refusals, files."""

import json
import math

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from mickle.data.heldout import write_pages
from mickle.data.records import Page
from mickle.data.tokenizer import TextTokenizer, train_tokenizer
from mickle.errors import NumericError, UsageError
from mickle.evaluation import paired
from mickle.evaluation.comparison import Compare, differences, weight_bytes
from mickle.evaluation.paired import Sums, compare, refuse_other_tokens
from mickle.evaluation.texts import ScoredText, texts_to_score
from mickle.events import Noted, ignore
from mickle.models.decoder import Decoder
from mickle.models.folder import save_model
from mickle.models.shape import DecoderConfig

TEXTS = [f"the cats {verb} and {n} dogs {verb} the birds. " * (1 + n % 4) for n in range(9) for verb in ("see", "hear")]
TOKENIZER = train_tokenizer(TEXTS, 290, or_fewer=True)


def model(seed=0, tokenizer=TOKENIZER, **shape):
    given = {"max_length": 64, "initial_std": 0.3, **shape}
    return Decoder(DecoderConfig(tokenizer.size, 32, 2, 2, 2, 16, 64, **given), seed=seed).eval()


def perturbed(seed=0, scale=0.02):
    changed = model(seed)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for weight in changed.parameters():
            weight.add_(scale * torch.randn(weight.shape, generator=generator))
    return changed


def folder(tmp_path, name, made=None, tokenizer=TOKENIZER, pages=TEXTS):
    path = tmp_path / name
    save_model(made or model(), path, tokenizer)
    if pages:
        write_pages([Page(f"u{n}", "d", "en", text) for n, text in enumerate(pages)], path / "heldout.parquet")
    return path


def texts_of(texts):
    return [
        ScoredText(np.array([TOKENIZER.start, *ids]), np.array([False] + [True] * len(ids)), len(text.encode()))
        for text, ids in zip(texts, TOKENIZER.encode(texts))
    ]


@torch.no_grad()
def brute_force(first, second, tokens, scored, length):
    """nats of both, KL and changes, position by position: each token from the window that scores it."""
    rows = []
    stride = max(1, length // 2)
    for at in range(1, len(tokens)):
        end = next(e for e in [length, *range(length + stride, 10_000, stride)] if at <= e)  # last label of its window
        end = min(end, len(tokens) - 1)
        begin = max(0, end - length)
        inputs = torch.tensor(tokens[begin:at])[None]
        p, q = (m(inputs)[0, -1].double().softmax(-1).numpy() for m in (first, second))
        kl = sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q))
        rows.append([-math.log(p[tokens[at]]), -math.log(q[tokens[at]]), kl, float(p.argmax() != q.argmax())])
    return np.array(rows)[np.array(scored[1:])].sum(0)


@pytest.mark.parametrize("batch", [4096, 30])
def test_nats_kl_and_changes_are_those_of_brute_force(monkeypatch, batch):
    monkeypatch.setattr(paired, "BATCH_TOKENS", batch)
    monkeypatch.setattr(paired, "CHUNK_BYTES", 8 * TOKENIZER.size * 3)
    first, second = model(), perturbed()
    texts = texts_of([TEXTS[0], TEXTS[6], TEXTS[3][:20]])
    texts[1].scored[5:15] = False
    sums = compare(first, second, texts, length=12)
    for n, text in enumerate(texts):
        wanted = brute_force(first, second, text.tokens.tolist(), text.scored.tolist(), 12)
        found = [sums.reference[n], sums.other[n], sums.divergence[n], sums.changed[n]]
        assert found == pytest.approx(wanted, rel=1e-4)
        assert sums.tokens[n] == text.scored.sum()
    assert sums.divergence.min() > 0 and sums.changed.sum() > 0


def test_a_model_beside_itself_differs_in_nothing():
    sums = compare(model(), model(), texts_of(TEXTS), length=16)
    assert (sums.divergence == 0).all() and (sums.changed == 0).all()
    assert np.array_equal(sums.reference, sums.other)
    found = differences(sums)
    assert (found["difference"], found["kl"], found["changed"], found["perplexity_increase"]) == (0, 0, 0, 0)
    assert found["difference_interval"] == [0, 0]


def test_nats_agree_with_the_task_loss():
    from mickle.evaluation.loss import score

    scored = score(model(), TOKENIZER, [Page("", "", "", text) for text in TEXTS], length=16, stride=8)
    sums = compare(model(), perturbed(), texts_of(TEXTS), length=16)
    assert sums.reference == pytest.approx([found.nats.sum() for found in scored], rel=1e-5)


def test_a_model_whose_answer_is_not_finite_is_refused():
    broken = model()
    broken.norm.weight.data[0] = math.nan
    with pytest.raises(NumericError):
        compare(model(), broken, texts_of(TEXTS[:2]), length=16)


def test_the_difference_has_a_paired_interval():
    tokens = np.full(200, 10)
    generator = np.random.default_rng(0)
    hard = 20 + 15 * generator.random(200)  # texts differ far more than the two models
    sums = Sums(hard, hard + 0.5 + 0.1 * generator.standard_normal(200), np.full(200, 0.3), np.full(200, 2.0), tokens)
    found = differences(sums)
    low, high = found["difference_interval"]
    assert 0.045 < low < found["difference"] < high < 0.055 and high - low < 0.004  # not paired: 0.12
    assert found["kl"] == pytest.approx(0.03) and found["changed"] == pytest.approx(0.2)
    assert found["perplexity_increase"] == pytest.approx(math.exp(found["difference"]) - 1)


def test_a_run_writes_numbers_table_and_the_curve(tmp_path):
    reference = folder(tmp_path, "base")
    others = [folder(tmp_path, f"near{n}", perturbed(scale=0.01 * n), pages=None) for n in (1, 3)]
    work = tmp_path / "work"
    work.mkdir()
    said = []
    summary = Compare(others=others, tokens=100).run(reference, said.append).write(work, said.append)
    results = json.loads((work / "results.json").read_text())
    assert results["reference"]["name"] == "base" and results["reference"]["bits_per_weight"] is None
    assert results["reference"]["tokens"] >= 100
    assert results["reference"]["bytes"] == weight_bytes(reference) == (reference / "model.safetensors").stat().st_size
    near, far = results["others"]
    assert 0 < near["kl"] < far["kl"] and near["length"] == 64
    assert near["kl_interval"][0] < near["kl"] < near["kl_interval"][1]
    table = (work / "table.md").read_text()
    assert table.splitlines()[2].startswith("| model | MB |") and "| near3 |" in table
    assert [event.message for event in said if isinstance(event, Noted)] == table.splitlines()
    assert "<svg" in (work / "error_against_bytes.svg").read_text()
    assert [row["name"] for row in summary["others"]] == ["near1", "near3"]
    assert Compare(others=others).forecast(reference).memory_bytes > 2 * weight_bytes(reference)


def test_answers_of_conversations_are_what_is_scored(tmp_path):
    reference = folder(tmp_path, "base")
    rows = [{"prompt": "the cats see", "completion": " and 3 dogs"}, {"prompt": "the dogs", "completion": " hear"}]
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    found = texts_to_score(data, None, reference, TOKENIZER)
    assert [TOKENIZER.decode(text.tokens[text.scored]) for text in found] == [
        " and 3 dogs<|endoftext|>", " hear<|endoftext|>",
    ]  # fmt: skip
    chats = [{"messages": [{"role": "user", "content": "the cats"}, {"role": "assistant", "content": "see"}]}] * 2
    data.write_text("\n".join(map(json.dumps, chats)))
    said = []
    (first, _) = texts_to_score(data, None, reference, TOKENIZER, said.append)
    assert said[0].message == "form messages (columns messages): 2 of 2 rows"
    assert TOKENIZER.decode(first.tokens[first.scored]) == "see<|endoftext|>" and first.bytes == len("see")
    data.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    plain = texts_to_score(data, 20, reference, TOKENIZER)
    pages = texts_to_score(None, 20, reference, TOKENIZER)
    assert [text.tokens.tolist() for text in plain] == [text.tokens.tolist() for text in pages]


def test_models_that_do_not_compare_are_refused(tmp_path):
    reference = folder(tmp_path, "base")
    tokenizer = train_tokenizer(TEXTS, 280)
    cases = {
        "different tokens": folder(tmp_path, "other", model(tokenizer=tokenizer), tokenizer, None),
        "this model sees both sides": folder(tmp_path, "encoder", model(causal=False), pages=None),
    }
    larger = Decoder(DecoderConfig(TOKENIZER.size + 7, 32, 2, 2, 2, 16, 64, max_length=64)).eval()
    cases["this model knows .* tokens, the reference"] = folder(tmp_path, "larger", larger, pages=None)
    added = Tokenizer.from_str(TOKENIZER.tokenizer.to_str())
    added.add_tokens(["birds"])  # an ordinary token of its own, which cuts texts in another way
    cut = TextTokenizer(added, TOKENIZER.start, TOKENIZER.end, TOKENIZER.configuration)
    cases["different tokens "] = folder(tmp_path, "added", model(tokenizer=cut), cut, None)
    for what, other in cases.items():
        what = what.strip()
        with pytest.raises(UsageError, match=what) as found:
            Compare(others=[other]).run(reference, ignore)
        assert other.name in found.value.where
    with pytest.raises(UsageError, match="no held-out pages"):
        Compare(others=[reference]).run(folder(tmp_path, "bare", pages=None), ignore)
    with pytest.raises(UsageError, match="nothing to score|no page"):
        Compare(others=[reference]).run(folder(tmp_path, "empty", pages=[" "]), ignore)


def test_special_tokens_of_its_own_do_not_keep_a_model_from_being_compared(tmp_path):
    added = Tokenizer.from_str(TOKENIZER.tokenizer.to_str())
    added.add_special_tokens(["<|im_end|>"])
    other = TextTokenizer(added, TOKENIZER.start, TOKENIZER.end, TOKENIZER.configuration)
    refuse_other_tokens(TOKENIZER, other, tmp_path, tmp_path)


def test_a_model_of_transformers_beside_itself(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    from mickle.models.folder import open_model

    torch.manual_seed(0)
    inner = GPT2LMHeadModel(GPT2Config(vocab_size=TOKENIZER.size, n_positions=32, n_embd=16, n_layer=1, n_head=2))
    inner.save_pretrained(tmp_path / "gpt2")
    wrapped = open_model(tmp_path / "gpt2")
    with torch.no_grad():
        sums = compare(wrapped, wrapped, texts_of(TEXTS[:4]), length=16)
    assert (sums.divergence == 0).all() and sums.reference.min() > 0
