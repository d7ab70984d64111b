"""Dropout before the head of any torch or transformers classifier, and its head fitted in closed form.

"Dropout Drops Double Descent" (arXiv 2305.16179): one dropout layer before the last linear layer takes the peak out
of the test error of networks too. :func:`put_dropout_before_head` puts it there. With the body frozen the head is a
linear model, so the equations of :mod:`mickle.regression.ridge` hold for it exactly (with ``raw=True``:
features are dropped as they are): :func:`fit_head` solves them for one-hot targets and squared loss, a linear probe
with the right dropout in one pass. Its logits aim at 0 and 1: their order is to be trusted, their softmax is no
probability.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mickle.errors import UsageError
from mickle.regression.moments import Moments
from mickle.regression.path import DEFAULT_RATES, choose_rate, trace_path
from mickle.regression.ridge import numbers, penalty

# The attribute that transformers' classifiers keep their head in.
HEADS = ("classifier", "score", "classification_head", "logits_proj", "head", "fc")
# Where their configurations keep the rate before the head.
CONFIGURED = ("classifier_dropout", "classifier_dropout_prob", "seq_classif_dropout")


class DroppedLinear(nn.Linear):
    """A linear layer whose inputs are dropped in training. It takes another's parameters, under the same names."""

    def __init__(self, linear: nn.Linear, rate: float) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.dropout = nn.Dropout(rate)
        self.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        """[..., out] for inputs [..., in]."""
        return super().forward(self.dropout(input))


def put_dropout_before_head(model: nn.Module, rate: float) -> nn.Module:
    """Drop the share ``rate`` of the head's inputs in training, in place; returns the model.

    A dropout that already stands directly before the head gets the rate instead of a second one beside it. Names and
    values of all weights stay. A transformers configuration that has a field for this rate keeps it, so that it is
    saved too; others (ViT, GPT-2) lose the dropout when loaded again, never the weights. UsageError where the model
    does not end in a linear layer.
    """
    penalty(rate)
    parent, name, head = find_head(model)
    present = head.dropout if isinstance(head, DroppedLinear) else dropout_before(model, parent, name)
    if present is not None:
        present.p = rate
    else:
        parent._modules[name] = DroppedLinear(head, rate)
    config = getattr(model, "config", None)
    for field in CONFIGURED:
        if hasattr(config, field):
            setattr(config, field, rate)
    return model


def find_head(model: nn.Module) -> tuple[nn.Module, str, nn.Linear]:
    """The last linear layer, the module that holds it, and its name there. UsageError where there is none."""
    kind = type(model).__name__
    inside: nn.Module = model
    if is_transformers(model):
        if callable(embeddings := getattr(model, "get_output_embeddings", None)) and embeddings() is not None:
            raise UsageError(
                f"{kind} predicts tokens: its last layer is the vocabulary's, not a classifier's head",
                expected="a classifier, such as AutoModelForSequenceClassification",
            )
        known = [name for name in HEADS if isinstance(getattr(model, name, None), nn.Module)]
        if not known:
            raise UsageError(f"{kind} has no head that is known", expected=f"one named {', '.join(HEADS)}")
        inside = getattr(model, known[0])
        if isinstance(inside, nn.Linear):
            return model, known[0], inside
    # A DroppedLinear's parameters are its own; its dropout child has none.
    leaves = [(name, m) for name, m in inside.named_modules() if next(m.parameters(recurse=False), None) is not None]
    if not leaves or not leaves[-1][0] or not isinstance(leaves[-1][1], nn.Linear):
        last = type(leaves[-1][1]).__name__ if leaves else "nothing with weights"
        raise UsageError(f"{kind} ends in {last}", expected="a last layer nn.Linear inside the model")
    path, _, name = leaves[-1][0].rpartition(".")
    return inside.get_submodule(path), name, leaves[-1][1]


def is_transformers(model: nn.Module) -> bool:
    """Whether the model is one of the transformers package's, told without importing it."""
    return any(cls.__name__ == "PreTrainedModel" for cls in type(model).__mro__)


def dropout_before(model: nn.Module, parent: nn.Module, name: str) -> nn.Dropout | None:
    """The dropout whose output is the head's input: read off the order, the names, or the traced graph."""
    siblings = list(parent.named_children())
    place = [key for key, _ in siblings].index(name)
    before = siblings[place - 1][1] if place else None
    if isinstance(parent, nn.Sequential) and place:
        return before if isinstance(before, nn.Dropout) else None
    if is_transformers(model):  # its classifiers have at most one dropout beside the head
        return next((child for _, child in siblings if isinstance(child, nn.Dropout)), None)
    try:
        graph = torch.fx.symbolic_trace(model).graph
    except Exception:  # the model's own code may raise anything on symbols; then registration order is all we know
        return before if isinstance(before, nn.Dropout) else None
    modules, head = dict(model.named_modules()), parent._modules[name]
    for node in graph.nodes:
        if node.op == "call_module" and modules[node.target] is head:
            source = node.args[0]
            found = modules.get(source.target) if source.op == "call_module" else None
            if source.target is nn.functional.dropout:
                raise UsageError("the model drops the head's inputs by a function call", expected="a module nn.Dropout")
            return found if isinstance(found, nn.Dropout) else None
    return None


# -- the head in closed form -----------------------------------------------------------------------------------------


def closed_form_head(
    features: Tensor, labels: Tensor, rate: float | str = "auto", classes: int | None = None, *, intercept: bool = True
) -> tuple[Tensor, Tensor, float]:
    """Weight [K, D], bias [K] and rate of the head that features [n, D] and labels [n] ask for.

    ``labels`` are class numbers, fitted as one-hot rows with squared loss; floating ones [n] or [n, K] are fitted as
    they are. "auto" takes the rate with the least leave-one-out error.
    """
    x, y = features.detach().double().cpu().numpy(), wanted(labels, classes).double().numpy()
    path = trace_path(x, y, fixed(rate), intercept=intercept, raw=True)
    place = choose_rate(path)
    weights = path.weights(place)
    bias = path.intercepts(weights)
    return torch.from_numpy(weights.T.copy()), torch.from_numpy(bias), float(path.rates[place])


def fit_head(model: nn.Module, batches: Iterable[Any], rate: float | str = "auto", *, criterion: str = "gcv") -> float:
    """Fit the head of ``model`` on its own frozen features, write it into the model, return the rate.

    A batch is a mapping with "labels" and the model's arguments, or a pair (inputs, labels). Labels as in
    :func:`closed_form_head`, or class numbers [n, T] of a token classifier (-100 is left out). The body runs in eval
    mode. With "gcv" or a given rate only sums are held, D x D in float64; "loo" holds all features. A head without
    bias is fitted without one. A fitted rate above 0 acts as if the head had been trained under that dropout.
    """
    if criterion not in ("gcv", "loo"):
        raise UsageError(f"criterion is {criterion!r}", expected="'gcv' or 'loo'")
    _, _, head = find_head(model)
    intercept, rates = head.bias is not None, fixed(rate)
    pairs = ((x, wanted(labels, head.out_features)) for x, labels in head_inputs(model, head, batches))
    if criterion == "loo" and rate == "auto":
        kept = [(x.cpu(), y.double()) for x, y in pairs]
        if not kept:
            raise UsageError("there are no batches to fit the head on")
        x, y = torch.cat([x for x, _ in kept]), torch.cat([y for _, y in kept])
        weight, bias, chosen = closed_form_head(x, y, rate, intercept=intercept)
    else:
        moments = Moments(intercept)
        for x, y in pairs:
            moments.add(numbers(x.double().cpu().numpy(), "the head's inputs"), y.double().numpy())
        found = moments.solve(rates)
        weight, bias, chosen = torch.from_numpy(found[0].T.copy()), torch.from_numpy(found[1]), found[2]
    with torch.no_grad():
        head.weight.copy_(weight)
        if head.bias is not None:
            head.bias.copy_(bias)
    return chosen


def fixed(rate: float | str) -> list[float]:
    """The rates to choose among: the given one, or all. UsageError for what is no rate."""
    if isinstance(rate, str):
        if rate != "auto":
            raise UsageError(f"rate is {rate!r}", expected="'auto' or a number in [0, 1)")
        return list(DEFAULT_RATES)
    penalty(rate)
    return [float(rate)]


def wanted(labels: Tensor, classes: int | None) -> Tensor:
    """Targets [n, K]: one-hot rows for class numbers, floating labels as they are."""
    labels = labels.detach().cpu()
    if labels.is_floating_point():
        return labels.reshape(len(labels), -1)
    if labels.dim() != 1 or len(labels) == 0:
        raise UsageError(f"labels have shape {tuple(labels.shape)}", expected="class numbers [n]")
    count = classes if classes is not None else int(labels.max()) + 1
    if int(labels.min()) < 0 or int(labels.max()) >= count:
        raise UsageError(f"labels go from {int(labels.min())} to {int(labels.max())}", expected=f"0 to {count - 1}")
    return nn.functional.one_hot(labels.long(), count)


@torch.no_grad()
def head_inputs(model: nn.Module, head: nn.Linear, batches: Iterable[Any]) -> Iterable[tuple[Tensor, Tensor]]:
    """(inputs of the head [n, D], labels [n]) of each batch, the model in eval mode meanwhile.

    A head that is called on every position answers with its inputs, so that the model's own choice of a position
    (the last token's, a mean) picks the features.
    """
    seen: list[Tensor] = []

    def catch(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        seen.append(arguments[0])
        return arguments[0] if arguments[0].dim() > 2 else output

    modes = [(module, module.training) for module in model.modules()]
    handle = head.register_forward_hook(catch)
    model.eval()
    try:
        for batch in batches:
            seen.clear()
            labels, output = run(model, batch)
            yield features_of(seen, output, labels)
    finally:
        handle.remove()
        for module, training in modes:
            module.training = training


def run(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    """The batch's labels and the model's logits."""
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        labels, output = batch[1], model(batch[0])
    elif hasattr(batch, "keys") and "labels" in batch:
        labels, output = batch["labels"], model(**{key: batch[key] for key in batch if key != "labels"})
    else:
        raise UsageError("a batch has no labels", expected='a mapping with "labels", or a pair (inputs, labels)')
    return labels, getattr(output, "logits", output)


def features_of(seen: list[Tensor], output: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Features [n, D] and labels [n] from what the head saw in one call of the model."""
    if len(seen) != 1:
        raise UsageError(f"the model calls its head {len(seen)} times a batch", expected="once")
    features = seen[0] if seen[0].dim() == 2 else output
    if features.dim() == 3 and labels.shape == features.shape[:2]:  # a token classifier
        kept = labels != -100
        return features[kept.to(features.device)], labels[kept]
    if features.dim() != 2 or len(features) != len(labels):
        raise UsageError(
            f"the head's inputs have shape {tuple(features.shape)} for {len(labels)} labels",
            expected="one row of features a label",
        )
    return features, labels
