"""The NoPE study: the theory holds exactly, arms are pairs, the declaration is fair, one cell runs."""

from dataclasses import replace

import pytest
import torch

from mickle.evaluation.length_scores import Encoded
from mickle.models.decoder import Attention, Decoder, DecoderConfig, Sight
from mickle.studies import nope
from mickle.studies.declaration import Cell, open_study
from mickle.training.objectives import next_token

TINY = {
    **nope.VALUES,
    "width": 16,
    "heads": 2,
    "layers": dict.fromkeys(nope.WORLDS, 1),
    "batch": 4,
    "symbols": 5,
    "longest": {"rsc": 3, "rdc": 3, "cmc": 3, "mc": 3},
    "steps": {"rsc": 3, "rdc": 3, "cmc": 3, "mc": 3},
    "evaluate_every": 2,
    "validation": 2,
    "test": 2,
}


def cell(arm, world="rsc", seed=0):
    return Cell(arm, world, {}, seed, TINY)


def shape(layers=1, width=4, heads=1, **settings):
    sizes = {"kv_heads": heads, "head_width": width // heads, "ffn_width": 4 * width, "vocab_size": 11}
    return DecoderConfig(width=width, layers=layers, heads=heads, max_length=8, position="none", **sizes, **settings)


def causal_sight():
    return Sight(masks={"": None}, triangular=True, documents=None, rotation=None)


@torch.no_grad()
def test_a_head_that_looks_evenly_writes_the_absolute_position():
    """Theorem 1 of arXiv 2305.19466: constant scores, value 1 for BOS and 0 otherwise, give exactly 1/t."""
    head = Attention(shape(), 0)
    for matrix in (head.q_proj, head.k_proj):
        matrix.weight.zero_()
    head.v_proj.weight.copy_(torch.eye(4))
    head.o_proj.weight.copy_(torch.eye(4))
    stream = torch.zeros(1, 4096, 4)
    stream[0, 0, 0] = 1.0  # BOS is the only token with feature 0
    written = head(stream, causal_sight(), None)
    torch.testing.assert_close(written[0, :, 0], 1 / torch.arange(1, 4097), atol=1e-7, rtol=0)
    assert written[0, :, 1:].abs().max() == 0


@torch.no_grad()
def test_a_second_layer_then_reads_relative_positions():
    """Theorem 2: with t in the stream, queries (content, 1, -t) and keys (content, i, 1) score content + i - t."""
    places = torch.arange(1.0, 33.0)
    content = torch.randn(32, 2, generator=torch.Generator().manual_seed(0))
    stream = torch.cat([content, places[:, None], torch.ones(32, 1)], dim=1)  # [T, 4]
    to_queries = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1], [0, 0, -1, 0]])
    to_keys = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    scores = (stream @ to_queries.T) @ (stream @ to_keys.T).T
    torch.testing.assert_close(scores, content @ content.T + places[None, :] - places[:, None])


@torch.no_grad()
def test_equal_tokens_look_equal_without_positions():
    model = Decoder(shape(layers=3, width=16, heads=2), seed=3)
    logits = model(torch.full((1, 20), 5))[0]
    torch.testing.assert_close(logits, logits[:1].expand_as(logits), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_order_of_the_prefix_is_seen_from_the_second_layer_on():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 11, (1, 12), generator=generator)
    shuffled = torch.cat([ids[:, torch.randperm(11, generator=generator)], ids[:, -1:]], dim=1)
    assert not torch.equal(ids, shuffled)
    for layers in (1, 2):
        model = Decoder(replace(shape(layers=layers, width=16, heads=2), initial_std=0.5), seed=1)
        same = torch.allclose(model(ids)[0, -1], model(shuffled)[0, -1], atol=1e-5)
        assert same == (layers == 1)


def test_arms_start_from_equal_weights_and_see_equal_batches():
    models = {arm: nope.decoder(cell(arm), 30) for arm in nope.POSITIONS}
    reference = dict(models["none"].named_parameters())
    for model in models.values():
        shared = {name: p for name, p in model.named_parameters() if name in reference}
        assert shared.keys() == reference.keys()
        assert all(torch.equal(p, reference[name]) for name, p in shared.items())
    other_seed = nope.decoder(cell("none", seed=1), 30)
    assert not torch.equal(other_seed.embed_tokens.weight, models["none"].embed_tokens.weight)


@pytest.mark.parametrize("world", nope.WORLDS)
def test_worlds_train_short_and_test_long(world):
    task = nope.task_of(cell("none", world))
    assert max(task.train) < min(task.test)


def test_one_cell_measures_what_is_declared(tmp_path):
    measured = nope.run_cell(cell("rotary"), tmp_path)
    assert measured == nope.run_cell(cell("rotary"), tmp_path), "a cell must be a function of its declaration"
    assert measured["lengths"] == [1, 2, 3, 4, 5, 6]
    assert len(measured["exact"]) == 6
    assert measured["budget"] == 3
    names = {comparison.measure for comparison in nope.study.comparisons}
    table = nope.add_ranks({arm: dict(measured) for arm in nope.POSITIONS})
    assert names <= set(table["none"])
    assert table["none"]["reciprocal_rank"] == pytest.approx(1 / 3.5), "six equal arms share rank 3.5"


def test_a_run_ends_when_the_training_lengths_are_learned():
    checks = iter([0.5, 0.005, 0.0])
    model = nope.decoder(cell("none"), 30)
    batch = {"input_ids": torch.ones(2, 4, dtype=torch.long), "labels": torch.ones(2, 4, dtype=torch.long)}
    long = replace(cell("none"), values={**TINY, "steps": {"rsc": 100}})
    steps, reached = nope.learn(model, lambda step: batch, lambda model: {"missed": next(checks)}, long)
    assert (steps, reached) == (4, True)


def test_prompts_are_not_trained_and_rows_are_filled():
    rows = [Encoded((1, 5, 2), 2, 1), Encoded((1, 5, 6, 7, 2), 3, 1), Encoded((1, 8, 2), 2, 1)]
    batch = nope.packed(rows, 0)
    assert batch["input_ids"].tolist() == [[1, 5, 6, 7], [1, 5, 1, 8]]
    assert batch["labels"].tolist() == [[-100, -100, 7, 2], [-100, 2, -100, 2]]
    assert batch["documents"].tolist() == [[0, 0, 0, 0], [0, 0, 1, 1]]


@pytest.mark.parametrize("arm", nope.POSITIONS)
def test_packing_changes_neither_loss_nor_gradient(arm):
    """Oracle: the instances one by one, each a row of its own."""
    model = nope.decoder(cell(arm), 30)
    generator = torch.Generator().manual_seed(0)
    lengths = [3, 9, 4, 4, 6, 2, 8]
    rows = [Encoded((1, *torch.randint(4, 30, (n,), generator=generator).tolist(), 2), n // 2 + 1, n) for n in lengths]
    batch = nope.packed(rows, 2)
    assert len(batch["input_ids"]) < len(rows)
    total, count = next_token(model, batch)
    packed = torch.autograd.grad(total, model.embed_tokens.weight)[0]
    alone = [
        torch.nn.functional.cross_entropy(
            model(torch.tensor([row.ids[:-1]]))[0, row.prompt - 1 :],
            torch.tensor(row.ids[row.prompt :]),
            reduction="sum",
        )
        for row in rows
    ]
    assert int(count) == sum(len(row.ids) - row.prompt for row in rows)
    torch.testing.assert_close(total, sum(alone), atol=1e-4, rtol=1e-5)
    expected = torch.autograd.grad(sum(alone), model.embed_tokens.weight)[0]
    torch.testing.assert_close(packed, expected, atol=1e-4, rtol=1e-4)


def test_the_declaration_is_found_and_sound():
    study = open_study("nope")
    assert study.headline.method == "none"
    assert study.headline.baseline == "rotary"
    assert set(study.scales) == {"quick", "full", "gpu"}
    assert study.scales["full"].seeds >= 5
