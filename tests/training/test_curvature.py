"""The curvature estimates against enumeration, closed forms, and each other."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from mickle.errors import UsageError
from mickle.kernels.losses import IGNORE, cross_entropy
from mickle.models.decoder import Decoder
from mickle.models.shape import DecoderConfig
from mickle.training import objectives
from mickle.training.curvature import (
    NotALikelihood,
    gauss_newton_bartlett,
    hessian_product,
    hutchinson,
    likelihood,
    undisturbed,
)


class Linear(nn.Module):
    """Logits x W' for W [C, D]."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ self.weight.T


def classify(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return cross_entropy(model(batch["inputs"]), None, batch["labels"])


def logits_model() -> tuple[Linear, dict[str, Tensor], Tensor]:
    """Three classes with probabilities (.5, .3, .2) for the input x = (2,), and what B g^2 averages to."""
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    model = Linear(p.log()[:, None] / 2)
    batch = {"inputs": torch.tensor([[2.0]], dtype=torch.float64), "labels": torch.tensor([0])}
    return model, batch, p


def test_oracle_4_hutchinson_on_a_quadratic_has_the_predicted_mean_and_error() -> None:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    matrix = root @ root.T
    model = nn.Module()
    model.theta = nn.Parameter(torch.ones(4, dtype=torch.float64))
    objective = lambda m, b: (0.5 * m.theta @ matrix @ m.theta, torch.tensor(1))  # noqa: E731
    count = 500
    draws = torch.stack(
        [hutchinson(model, [{}], [model.theta], generator, objective).diagonal[0] for _ in range(count)]
    )
    diagonal = matrix.diagonal()
    others = matrix.square().sum(1) - diagonal.square()
    error = ((2 * diagonal.square() + others) / count).sqrt()
    assert ((draws.mean(0) - diagonal).abs() <= 4 * error).all()
    assert ((draws.std(0) / (count**0.5) / error - 1).abs() <= 0.2).all()


def test_oracle_4_rademacher_probes_are_exact_where_nothing_stands_off_the_diagonal() -> None:
    model = nn.Module()
    model.theta = nn.Parameter(torch.ones(3, dtype=torch.float64))
    matrix = torch.tensor([1.0, -2.0, 30.0], dtype=torch.float64)
    objective = lambda m, b: (0.5 * (matrix * m.theta.square()).sum(), torch.tensor(1))  # noqa: E731
    generator = torch.Generator().manual_seed(0)
    estimate = hutchinson(model, [{}], [model.theta], generator, objective, probe="rademacher")
    torch.testing.assert_close(estimate.diagonal[0], matrix)


def test_oracle_5_gnb_enumerated_over_all_labels_is_the_gauss_newton_diagonal() -> None:
    model, batch, p = logits_model()
    expected = torch.zeros(3, 1, dtype=torch.float64)
    for label in range(3):
        total, _ = classify(model, {**batch, "labels": torch.tensor([label])})
        (gradient,) = torch.autograd.grad(total, [model.weight])
        expected += p[label] * gradient.square()
    torch.testing.assert_close(expected[:, 0], 4 * p * (1 - p), rtol=0, atol=1e-12)
    # The estimator's own draws average to it; standard error of each entry by its two-point distribution.
    generator = torch.Generator().manual_seed(1)
    draws = [gauss_newton_bartlett(model, [batch], [model.weight], generator, classify).diagonal[0] for _ in range(600)]
    found = torch.stack(draws)
    error = found.std(0) / 600**0.5
    assert ((found.mean(0) - expected).abs() <= 4 * error).all()
    # Each draw is the square for some label, and nothing else.
    assert len({tuple(draw[:, 0].tolist()) for draw in draws}) == 3


def test_oracle_5_and_6_with_more_rows_both_estimates_average_to_the_hessians_diagonal() -> None:
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    inputs = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    model, batch = Linear(weight), {"inputs": inputs, "labels": torch.randint(3, (6,), generator=generator)}
    p = (inputs @ weight.T).softmax(-1)
    expected = torch.einsum("bd,bc->cd", inputs.square(), p * (1 - p)) / 6
    for estimator in (gauss_newton_bartlett, hutchinson):
        found = torch.stack(
            [estimator(model, [batch], [model.weight], generator, classify).diagonal[0] for _ in range(300)]
        )
        error = found.std(0) / 300**0.5
        assert ((found.mean(0) - expected).abs() <= 4.5 * error).all(), estimator


def test_oracle_6_the_true_labels_would_give_something_else() -> None:
    model, batch, p = logits_model()
    (gradient,) = torch.autograd.grad(classify(model, batch)[0], [model.weight])
    torch.testing.assert_close(gradient.square()[:, 0], 4 * torch.tensor([0.25, 0.09, 0.04], dtype=torch.float64))
    torch.testing.assert_close(4 * p * (1 - p), 4 * torch.tensor([0.25, 0.21, 0.16], dtype=torch.float64))


def test_b_counts_the_terms_that_count() -> None:
    model, batch, _ = logits_model()
    many = {"inputs": batch["inputs"].expand(10, 1), "labels": torch.tensor([0] * 4 + [IGNORE] * 6)}
    generator = torch.Generator().manual_seed(0)
    assert gauss_newton_bartlett(model, [many, many], [model.weight], generator, classify).count == 8
    assert hutchinson(model, [many, many], [model.weight], generator, classify).count == 8


def test_the_estimate_does_not_depend_on_the_cut() -> None:
    model, _, _ = logits_model()
    inputs = torch.randn(12, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    whole = {"inputs": inputs, "labels": torch.tensor([0, 1, 2, IGNORE] * 3)}
    parts = [{name: value[i : i + 4] for name, value in whole.items()} for i in (0, 4, 8)]
    for estimator in (gauss_newton_bartlett, hutchinson):
        one, three = (
            estimator(model, cut, [model.weight], torch.Generator().manual_seed(9), classify)
            for cut in ([whole], parts)
        )
        torch.testing.assert_close(one.diagonal[0], three.diagonal[0], rtol=1e-12, atol=0)


def test_objectives_that_are_no_plain_likelihood_are_refused() -> None:
    model, batch, _ = logits_model()

    def weighted(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        total, count = classify(model, batch)
        return 2 * total, count

    def regression(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return model(batch["inputs"]).square().sum(), torch.tensor(1)

    for objective in (weighted, regression):
        with pytest.raises(NotALikelihood, match="hutchinson"):
            gauss_newton_bartlett(model, [batch], [model.weight], torch.Generator(), objective)


def decoder_batch() -> tuple[Decoder, dict[str, Tensor]]:
    shape = {"width": 16, "layers": 2, "heads": 2, "kv_heads": 2, "head_width": 8, "ffn_width": 24}
    config = DecoderConfig(vocab_size=17, max_length=12, **shape)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(17, (3, 12), generator=generator)
    documents = torch.tensor([0] * 5 + [1] * 7).expand(3, 12)
    return Decoder(config, seed=1), {"input_ids": ids, "labels": ids.roll(-1, 1), "documents": documents}


@pytest.mark.parametrize("objective", [None, objectives.next_token])
def test_the_decoder_has_both_estimates(objective: objectives.Objective | None) -> None:
    model, batch = decoder_batch()
    parameters = list(model.parameters())
    for estimator in (gauss_newton_bartlett, hutchinson):
        with undisturbed(model, parameters, 0):
            estimate = estimator(model, [batch], parameters, torch.Generator().manual_seed(0), objective)
        assert estimate.count == 36
        assert all(d is not None and torch.isfinite(d).all() for d in estimate.diagonal)
        assert all(p.grad is None for p in parameters)


def test_the_models_own_likelihood_is_the_objectives_loss() -> None:
    model, batch = decoder_batch()
    total, count = likelihood(model, batch)
    expected, terms = objectives.next_token(model, batch)
    assert (float(total), int(count)) == (pytest.approx(float(expected)), int(terms))


def test_hessian_products_of_the_decoder_agree_with_differences_of_gradients() -> None:
    model, batch = decoder_batch()
    model = model.double()
    parameters = list(model.parameters())
    vectors = [torch.randn(p.shape, generator=torch.Generator().manual_seed(4), dtype=p.dtype) for p in parameters]
    from mickle.kernels.dispatch import plain_kernels

    def gradient(shift: float) -> list[Tensor]:
        with torch.no_grad():
            for parameter, vector in zip(parameters, vectors):
                parameter.add_(vector, alpha=shift)
        found = torch.autograd.grad(objectives.next_token(model, batch)[0], parameters)
        with torch.no_grad():
            for parameter, vector in zip(parameters, vectors):
                parameter.sub_(vector, alpha=shift)
        return list(found)

    with plain_kernels(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        products = hessian_product(objectives.next_token(model, batch)[0], parameters, vectors)
    step = 1e-5
    for product, up, down in zip(products, gradient(step), gradient(-step)):
        difference = (up - down) / (2 * step)
        torch.testing.assert_close(product, difference, rtol=1e-4, atol=1e-5 * float(difference.abs().max()))


# Models of transformers


def tiny(kind: str, **settings: object) -> nn.Module:
    import transformers as hf

    small = {
        "vocab_size": 31,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 24,
    }
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    torch.manual_seed(0)
    if kind == "llama":
        return hf.LlamaForCausalLM(hf.LlamaConfig(**small, max_position_embeddings=32))
    if kind == "gpt2":
        config = hf.GPT2Config(vocab_size=31, n_embd=16, n_layer=1, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
        return hf.GPT2LMHeadModel(config)
    if kind == "t5":
        return hf.T5ForConditionalGeneration(
            hf.T5Config(vocab_size=31, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, dropout_rate=0,
                        decoder_start_token_id=0)
        )  # fmt: skip
    return getattr(hf, f"Bert{kind}")(hf.BertConfig(**small, **quiet, **settings))


ids = torch.randint(2, 31, (4, 6), generator=torch.Generator().manual_seed(1))
token_labels = ids.masked_fill(torch.tensor([0, 0, 1, 0, 0, 1], dtype=torch.bool), IGNORE)


@pytest.mark.parametrize(
    ("kind", "settings", "labels", "terms"),
    [
        ("llama", {}, token_labels, 12),  # the first label of each row has no position before it
        ("gpt2", {}, token_labels, 12),
        ("t5", {}, token_labels, 16),
        ("ForMaskedLM", {}, token_labels, 16),
        ("ForTokenClassification", {"num_labels": 31}, token_labels, 16),
        ("ForSequenceClassification", {"num_labels": 3}, torch.tensor([0, 1, 2, 1]), 4),
        ("ForSequenceClassification", {"num_labels": 1}, torch.tensor([0.5, -1.0, 2.0, 0.1]), 4),
        (
            "ForSequenceClassification",
            {"num_labels": 3, "problem_type": "multi_label_classification"},
            torch.tensor([[0.0, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1]]),
            4,
        ),
    ],
)
def test_transformers_heads(kind: str, settings: dict[str, object], labels: Tensor, terms: int) -> None:
    model = tiny(kind, **settings)
    batch = {"input_ids": ids, "labels": labels}
    total, count = likelihood(model, batch)
    assert int(count) == terms
    mean = float(model(**batch).loss)
    # transformers averages over elements where we sum over them; its regression has no factor one half.
    factor = 3 if "problem_type" in settings else 0.5 if settings.get("num_labels") == 1 else 1
    assert float(total) / terms == pytest.approx(factor * mean, rel=1e-5)
    parameters = [p for p in model.parameters() if p.requires_grad]
    for estimator in (gauss_newton_bartlett, partial(hutchinson, probe="rademacher")):
        with undisturbed(model, parameters, 0):
            estimate = estimator(model, [batch], parameters, torch.Generator().manual_seed(0), None)
        assert estimate.count == terms
        assert sum(float(d.abs().sum()) for d in estimate.diagonal if d is not None) > 0


def test_unknown_heads_and_missing_labels_are_refused() -> None:
    model = tiny("ForQuestionAnswering")
    with pytest.raises(UsageError, match="likelihood of a BertForQuestionAnswering"):
        likelihood(model, {"input_ids": ids, "labels": ids}, torch.Generator())
    with pytest.raises(UsageError, match="without labels"):
        likelihood(model, {"input_ids": ids})
