"""Dropout before heads and heads in closed form, over plain torch models and transformers' own classifiers."""

import copy

import numpy as np
import pytest
import torch
import transformers as t
from one_solve import solve
from torch import nn

from mickle.errors import UsageError
from mickle.regression.heads import closed_form_head, find_head, fit_head, put_dropout_before_head
from mickle.regression.moments import Moments
from mickle.regression.path import DEFAULT_RATES, choose_rate, trace_path
from mickle.training.dropout import set_dropout

TEXT = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
IMAGE = {"image_size": 8, "patch_size": 4, **{k: v for k, v in TEXT.items() if k != "vocab_size"}}


def distilbert() -> t.DistilBertConfig:
    return t.DistilBertConfig(vocab_size=50, dim=16, n_layers=1, n_heads=2, hidden_dim=16, num_labels=3)


CLASSIFIERS = {
    "bert": lambda: t.BertForSequenceClassification(t.BertConfig(**TEXT, num_labels=3)),
    "roberta": lambda: t.RobertaForSequenceClassification(t.RobertaConfig(**TEXT, num_labels=3, pad_token_id=1)),
    "distilbert": lambda: t.DistilBertForSequenceClassification(distilbert()),
    "electra": lambda: t.ElectraForSequenceClassification(t.ElectraConfig(**TEXT, embedding_size=16, num_labels=3)),
    "gpt2": lambda: t.GPT2ForSequenceClassification(
        t.GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, num_labels=3, pad_token_id=0)
    ),
    "llama": lambda: t.LlamaForSequenceClassification(t.LlamaConfig(**TEXT, num_labels=3, pad_token_id=0)),
    "vit": lambda: t.ViTForImageClassification(t.ViTConfig(**IMAGE, num_labels=3)),
    "resnet": lambda: t.ResNetForImageClassification(
        t.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3)
    ),
}
PLAIN = {
    "sequential": lambda: nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)),
    "with dropout": lambda: nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 3)),
    "nested": lambda: nn.Sequential(nn.Linear(6, 16), nn.Sequential(nn.ReLU(), nn.Linear(16, 3)), nn.LogSoftmax(-1)),
}


class Net(nn.Module):
    """Two dropouts in an order that only the code of forward tells."""

    def __init__(self) -> None:
        super().__init__()
        self.late, self.early = nn.Dropout(0.1), nn.Dropout(0.2)
        self.body, self.out = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.late(self.body(self.early(x)).relu()))


def batch(name: str, rows: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % 3
    if name in ("vit", "resnet"):
        side = 8 if name == "vit" else 32
        return {"pixel_values": torch.randn(rows, 3, side, side, generator=generator), "labels": labels}
    ids = torch.randint(2, 50, (rows, 7), generator=generator)
    mask = torch.ones_like(ids)
    ids[1, 4:], mask[1, 4:] = 0, 0
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def logits(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model(**{key: value for key, value in inputs.items() if key != "labels"}).logits


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_dropout_stands_once_before_a_transformers_head(name: str, tmp_path) -> None:
    torch.manual_seed(0)
    model = CLASSIFIERS[name]()
    inputs = batch(name, 64)
    before, keys = logits(model.eval(), inputs), set(model.state_dict())
    set_dropout(model, 0.0)
    zeros = dropped_share(model, lambda: logits(model, inputs))  # of a ReLU
    left = 1 - 0.25 * (1 - zeros)
    before = logits(model.eval(), inputs)  # batch norms have seen a batch
    assert put_dropout_before_head(model, 0.5) is model
    put_dropout_before_head(model, 0.75)  # a second call replaces the first
    assert set(model.state_dict()) == keys
    assert torch.equal(logits(model.eval(), inputs), before)
    assert dropped_share(model, lambda: logits(model, inputs)) == pytest.approx(left, abs=0.04)
    before = logits(model.eval(), inputs)
    model.eval().save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits(again, inputs), before, rtol=0, atol=1e-6)
    if name in ("bert", "roberta", "distilbert", "electra"):  # their configuration knows the rate
        assert dropped_share(again, lambda: logits(again, inputs)) == pytest.approx(left, abs=0.04)


def dropped_share(model: nn.Module, run) -> float:
    """Share of zeros among what the head's weights are multiplied with in training."""
    head = find_head(model)[2]
    seen = []
    functional = nn.functional.linear

    def watched(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        if weight is head.weight:
            seen.append((inputs == 0).float().mean())
        return functional(inputs, weight, bias)

    model.train()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.functional, "linear", watched)
        run()
    model.eval()
    return float(seen[0])


@pytest.mark.parametrize("name", [*PLAIN, "net"])
def test_dropout_stands_once_before_a_plain_head(name: str) -> None:
    torch.manual_seed(0)
    model = Net() if name == "net" else PLAIN[name]()
    inputs = torch.rand(2000, 6)
    set_dropout(model, 0.0)
    positive = dropped_share(model, lambda: model(inputs))
    put_dropout_before_head(model, 0.3)
    assert dropped_share(model, lambda: model(inputs)) == pytest.approx(1 - 0.7 * (1 - positive), abs=0.02)
    if name == "net":
        assert (model.late.p, model.early.p) == (0.3, 0.0)
    if name == "with dropout":
        assert model[2].p == 0.3
        assert type(model[3]) is nn.Linear
    set_dropout(model, 0.0)  # the training loop's schedule finds it
    assert dropped_share(model, lambda: model(inputs)) == pytest.approx(positive)
    copied = copy.deepcopy(model).eval()
    assert torch.equal(copied(inputs), model.eval()(inputs))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), "ends in BatchNorm1d"),
        (nn.ReLU(), "nothing with weights"),
        (nn.Linear(3, 3), "inside the model"),
        (t.GPT2LMHeadModel(t.GPT2Config(vocab_size=9, n_embd=4, n_layer=1, n_head=1)), "predicts tokens"),
        (t.BertModel(t.BertConfig(**TEXT)), "no head that is known"),
    ],
    ids=["norm", "relu", "bare", "language model", "body"],
)
def test_a_model_without_a_linear_head_is_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        put_dropout_before_head(model, 0.5)


def test_a_rate_of_one_and_a_functional_dropout_are_refused() -> None:
    class Functional(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(nn.functional.dropout(self.body(x), 0.5, self.training))

    with pytest.raises(UsageError, match="not in"):
        put_dropout_before_head(PLAIN["sequential"](), 1.0)
    with pytest.raises(UsageError, match="function call"):
        put_dropout_before_head(Functional(), 0.5)


# -- the head in closed form


def test_the_closed_form_is_the_linear_models() -> None:
    generator = np.random.default_rng(0)
    features, labels = generator.normal(size=(50, 12)), generator.integers(0, 4, 50)
    weight, bias, rate = closed_form_head(torch.tensor(features), torch.tensor(labels), 0.3)
    found = solve(features, np.eye(4)[labels], 0.3, raw=True)
    np.testing.assert_allclose(weight.numpy().T, found.weights, atol=1e-10)
    np.testing.assert_allclose(bias.numpy(), found.intercepts, atol=1e-10)
    assert rate == 0.3
    weight, _, rate = closed_form_head(torch.tensor(features), torch.tensor(labels), classes=6)
    assert weight.shape == (6, 12)
    assert rate in DEFAULT_RATES
    assert (weight[4:] == 0).all()


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_fitted_head_is_in_the_model_and_in_its_folder(name: str, tmp_path) -> None:
    torch.manual_seed(0)
    model = CLASSIFIERS[name]()
    model.train()
    batches = [batch(name, 10, seed) for seed in range(4)]
    rate = fit_head(model, batches)
    assert model.training
    head = find_head(model)[2]
    features, labels = features_by_hand(model.eval(), head, batches, name)
    path = trace_path(features, np.eye(3)[labels], DEFAULT_RATES[1:], intercept=head.bias is not None, raw=True)
    place = choose_rate(path, "gcv")
    assert rate == pytest.approx(path.rates[place])
    exact = features @ path.weights(place) + path.intercepts(path.weights(place))
    ours = torch.cat([logits(model, one) for one in batches]).numpy()
    np.testing.assert_allclose(ours, exact, atol=1e-4)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    np.testing.assert_allclose(torch.cat([logits(again, one) for one in batches]).numpy(), ours, atol=1e-6)


def features_by_hand(model, head, batches, name) -> tuple[np.ndarray, np.ndarray]:
    """Pooled inputs of the head, each architecture's rule written out."""
    features = []
    for one in batches:
        seen = []
        handle = head.register_forward_pre_hook(lambda module, arguments, seen=seen: seen.append(arguments[0]))
        logits(model, one)
        handle.remove()
        found = seen[0].detach()
        if name in ("gpt2", "llama"):  # the last token that is no padding
            found = found[torch.arange(len(found)), one["attention_mask"].sum(1) - 1]
        features.append(found.double())
    return torch.cat(features).numpy(), np.concatenate([one["labels"].numpy() for one in batches])


def test_leave_one_out_and_given_rates_of_a_plain_model() -> None:
    torch.manual_seed(1)
    model = PLAIN["with dropout"]()
    x, labels = torch.randn(60, 6), torch.randint(3, (60,))
    features = model[:2](x).detach()
    chosen = fit_head(model, [(x[:25], labels[:25]), (x[25:], labels[25:])], criterion="loo")
    weight, _, rate = closed_form_head(features, labels)
    assert chosen == rate
    torch.testing.assert_close(model[3].weight.data, weight.float())
    for given in (0.4, 0.0):
        assert fit_head(model, [(x, labels)], given) == given
        exact = solve(features.double().numpy(), np.eye(3)[labels], given, raw=True)
        np.testing.assert_allclose(model[3].weight.detach().numpy().T, exact.weights, atol=1e-4)
        np.testing.assert_allclose(model[3].bias.detach().numpy(), exact.intercepts, atol=1e-4)


def test_token_classifiers_leave_ignored_positions_out() -> None:
    torch.manual_seed(0)
    model = t.BertForTokenClassification(t.BertConfig(**TEXT, num_labels=3)).eval()
    inputs = batch("bert", 8)
    labels = inputs["input_ids"] % 3
    labels[:, 5:] = -100
    fit_head(model, [{**inputs, "labels": labels}], 0.2)
    with torch.no_grad():
        hidden = model.bert(inputs["input_ids"], inputs["attention_mask"]).last_hidden_state[:, :5].reshape(-1, 16)
    exact = solve(hidden.double().numpy(), np.eye(3)[labels[:, :5].reshape(-1)], 0.2, raw=True)
    np.testing.assert_allclose(model.classifier.weight.detach().numpy().T, exact.weights, atol=1e-4)


def test_regression_heads_take_floating_labels() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))
    x, y = torch.randn(40, 5), torch.randn(40)
    fit_head(model, [(x, y)], 0.1)
    exact = solve(model[:2](x).detach().double().numpy(), y.double().numpy(), 0.1, raw=True)
    np.testing.assert_allclose(model(x).detach().numpy(), exact.predict(model[:2](x).detach().numpy()), atol=1e-5)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "0 rows"),
        ([{"input": torch.zeros(2, 6)}], "no labels"),
        ([(torch.randn(2, 6), torch.tensor([0, 3]))], "0 to 2"),
        ([(torch.randn(2, 6), torch.tensor([[0, 1], [1, 1]]))], "class numbers"),
        ([(torch.full((2, 6), torch.nan), torch.tensor([0, 1]))], "row 0, column 0"),
        ([(torch.randn(3, 6), torch.tensor([0, 1]))], "one row of features a label"),
    ],
)
def test_bad_batches_are_one_sentence(batches: list, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        fit_head(nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3)), batches)


def test_bad_choices_are_one_sentence() -> None:
    model, batches = PLAIN["sequential"](), [(torch.randn(4, 6), torch.tensor([0, 1, 2, 0]))]
    with pytest.raises(UsageError, match="'auto'"):
        fit_head(model, batches, "best")
    with pytest.raises(UsageError, match="criterion"):
        fit_head(model, batches, criterion="aic")


@pytest.mark.parametrize(("rows", "columns"), [(90, 12), (15, 30)])
@pytest.mark.parametrize("intercept", [True, False])
def test_sums_alone_give_what_all_rows_give(rows: int, columns: int, intercept: bool) -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(rows, columns)) + 1e3 * intercept
    x[:, 3] = 7 * intercept  # a constant column
    y = x[:, :2] @ generator.normal(size=(2, 2)) + generator.normal(size=(rows, 2))
    moments = Moments(intercept)
    for start in range(0, rows, 7):
        moments.add(x[start : start + 7], y[start : start + 7])
    weights, intercepts, rate = moments.solve(DEFAULT_RATES)
    path = trace_path(x, y, DEFAULT_RATES[1:], intercept=intercept, raw=True)
    place = choose_rate(path, "gcv")
    assert rate == pytest.approx(path.rates[place])
    np.testing.assert_allclose(weights, path.weights(place), atol=1e-9)
    np.testing.assert_allclose(intercepts, path.intercepts(path.weights(place)), atol=1e-6)
    assert (weights[3] == 0).all()
