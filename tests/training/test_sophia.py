"""Sophia against pencil, closed forms, two peers, and the promises of an optimizer."""

import copy
import math
import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mickle.errors import UsageError
from mickle.kernels.losses import cross_entropy
from mickle.training import sophia
from mickle.training.curvature import Estimate, gauss_newton_bartlett
from mickle.training.sophia import Sophia, gamma_for, gamma_for_batch, layer_of


def given(values: list[Tensor], count: int = 1):  # type: ignore[no-untyped-def]
    """An estimator that answers what it is told."""
    return lambda model, micro_batches, parameters, generator, objective: Estimate([v.clone() for v in values], count)


def point(*values: float, dtype: torch.dtype = torch.float64) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=dtype))


NOTHING = nn.Linear(1, 1)
BATCH = {"labels": torch.zeros(1)}


class Softmax(nn.Module):
    """Logits W x of inputs x [B, D]."""

    def __init__(self, width: int, classes: int, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.weight = nn.Parameter(torch.randn(classes, width, generator=generator, dtype=dtype) * 0.5)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ self.weight.T


def classify(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return cross_entropy(model(batch["inputs"]), None, batch["labels"])


def classes_batch(rows: int, width: int = 4, classes: int = 3, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(rows, width, generator=generator, dtype=dtype)
    return {"inputs": inputs, "labels": torch.randint(classes, (rows,), generator=generator)}


# The rule


def test_oracle_1_one_step_by_pencil() -> None:
    theta = point(1.0, 1.0, 1.0)
    h = torch.tensor([4.0, 0.1, -1.0], dtype=torch.float64)
    optimizer = Sophia([theta], lr=0.01, betas=(0.9, 0.0), gamma=0.05, weight_decay=0.0, estimator=given([h]))
    optimizer.refresh(NOTHING, BATCH)
    theta.grad = torch.full((3,), 0.2, dtype=torch.float64)
    optimizer.step()
    torch.testing.assert_close(theta.data, 1 - torch.tensor([0.001, 0.01, 0.01], dtype=torch.float64))
    assert optimizer.statistics()["unclipped"] == pytest.approx(1 / 3)


def test_oracle_2_pytorch_optimizer_with_its_settings_walks_the_same_path() -> None:
    peers = pytest.importorskip("pytorch_optimizer")
    lr, gamma, eps, decay = 0.02, 0.3, 1e-6, 0.1
    ours, theirs = point(1.0, -2.0, 3.0), point(1.0, -2.0, 3.0)
    hessians = torch.randn(100, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    optimizer = Sophia([ours], lr=lr, gamma=gamma, eps=eps, weight_decay=decay)
    peer = peers.SophiaH(
        [theirs],
        lr=lr / gamma,
        p=gamma,
        eps=eps / gamma,
        weight_decay=decay * gamma,
        betas=(0.96, 0.99),
        update_period=10,
    )  # fmt: skip
    for step in range(100):
        for parameter in (ours, theirs):
            parameter.grad = parameter.detach() * torch.tensor([1.0, 5.0, 0.1], dtype=torch.float64)
        due = optimizer.refresh_due
        assert due == (step % 10 == 0)
        if due:
            optimizer.estimator = given([hessians[step]])
            optimizer.refresh(NOTHING, BATCH)
        optimizer.step()
        peer.step(hessian=[hessians[step]] if due else None)
        assert (ours - theirs).abs().max() <= 1e-12


def authors_step(
    theta: Tensor, average: Tensor, hessian: Tensor, gradient: Tensor, lr: float, rho: float, bs: int
) -> None:
    """The authors' update as they describe it: h kept without B, the factor B in the denominator, decay 0.2."""
    theta.mul_(1 - lr * 0.2)
    average.mul_(0.96).add_(gradient, alpha=0.04)
    ratio = (average.abs() / (rho * bs * hessian + 1e-15)).clamp(max=1)
    theta.add_(average.sign() * ratio, alpha=-lr)


def test_oracle_3_the_authors_scaling_of_h_is_the_same_rule() -> None:
    tokens = 640
    model, batch = Softmax(4, 3, torch.float32), classes_batch(tokens, dtype=torch.float32)
    optimizer = Sophia(model.parameters(), lr=0.01, batch_share=1.0, seed=3)
    theta = model.weight.detach().clone()
    average, hessian = torch.zeros_like(theta), torch.zeros_like(theta)
    for _ in range(35):
        if optimizer.refresh_due:
            optimizer.refresh(model, batch, classify)
            # The average of B g^2 is B times the average of g^2, which is what the authors keep.
            hessian = optimizer.state[model.weight]["curvature"] / tokens
        model.weight.grad = None
        total, count = classify(model, batch)
        (total / count).backward()
        authors_step(theta, average, hessian, model.weight.grad, 0.01, 0.05, tokens)
        optimizer.step()
        assert (theta - model.weight).abs().max() <= 1e-6


def test_oracle_7_separable_quadratic_takes_as_many_steps_as_its_largest_coordinate_whatever_the_conditioning() -> None:
    for condition in (1.0, 1e2, 1e6):
        curvature = torch.logspace(0, math.log10(condition), 5, dtype=torch.float64)
        theta = point(2.5, -1.0, 0.3, -2.0, 1.7)
        optimizer = Sophia(
            [theta], lr=1.0, betas=(0.0, 0.0), gamma=1.0, weight_decay=0.0, every=1, estimator=given([curvature])
        )
        for _ in range(3):
            theta.grad = curvature * theta.detach()
            optimizer.refresh(NOTHING, BATCH)
            optimizer.step()
        assert theta.abs().max() <= 1e-12, condition


def test_oracle_7_gamma_zero_is_sign_momentum_and_no_clipping_is_newton() -> None:
    curvature = torch.tensor([3.0, 0.5], dtype=torch.float64)
    sign, newton = point(0.4, -0.2), point(0.4, -0.2)
    for theta, gamma, lr in ((sign, 0.0, 0.01), (newton, 1.0, 1.0)):
        optimizer = Sophia(
            [theta], lr=lr, betas=(0.0, 0.0), gamma=gamma, weight_decay=0.0, estimator=given([curvature])
        )
        optimizer.refresh(NOTHING, BATCH)
        theta.grad = curvature * theta.detach()
        optimizer.step()
    torch.testing.assert_close(sign.data, torch.tensor([0.39, -0.19], dtype=torch.float64))
    torch.testing.assert_close(newton.data, torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("factor", [1e-3, 7.0])
def test_oracle_8_the_size_of_the_loss_does_not_matter(factor: float) -> None:
    ends = []
    for scale in (1.0, factor):
        theta = point(1.0, -2.0)
        optimizer = Sophia([theta], lr=0.1, weight_decay=0.0, estimator=given([scale * torch.tensor([9.0, 0.1])]))
        for _ in range(25):
            if optimizer.refresh_due:
                optimizer.refresh(NOTHING, BATCH)
            theta.grad = scale * theta.detach().sin()
            optimizer.step()
        ends.append(theta.detach())
    torch.testing.assert_close(ends[0], ends[1])


def test_oracle_8_an_unclipped_step_does_not_depend_on_a_coordinates_units() -> None:
    ends = []
    for units in (1.0, 50.0):  # theta = inside / units; gradients scale by units' inverse, curvature by its square
        inside = point(0.3 * units)
        curvature = torch.tensor([2.0 / units**2], dtype=torch.float64)
        optimizer = Sophia(
            [inside], lr=0.5, betas=(0.0, 0.0), gamma=100.0, weight_decay=0.0, estimator=given([curvature])
        )
        optimizer.refresh(NOTHING, BATCH)
        inside.grad = 2.0 * inside.detach() / units**2
        optimizer.step()
        ends.append(inside.item() / units)
    assert ends[0] == pytest.approx(ends[1], abs=1e-12)


def test_bias_correction_makes_the_first_averages_whole() -> None:
    # After one estimate and one gradient: m and h are exactly what was seen, so the step is lr g / (gamma h).
    theta = point(1.0)
    h = torch.tensor([8.0], dtype=torch.float64)
    optimizer = Sophia([theta], lr=0.1, gamma=0.5, weight_decay=0.0, bias_correction=True, estimator=given([h]))
    optimizer.refresh(NOTHING, BATCH)
    theta.grad = torch.tensor([2.0], dtype=torch.float64)
    optimizer.step()
    assert float(theta) == pytest.approx(1 - 0.1 * 2 / (0.5 * 8))


def test_the_short_preset() -> None:
    optimizer = Sophia.short([point(1.0)], lr=0.1, gamma=0.3)
    group = optimizer.param_groups[0]
    assert (group["betas"], optimizer.every, group["bias_correction"], group["gamma"]) == ((0.9, 0.95), 5, True, 0.3)


# The contract of every optimizer


def quadratic(theta: Tensor) -> Tensor:
    return (theta * torch.tensor([1.0, 100.0], dtype=theta.dtype)).square().sum() / 2


def curved_valley(theta: Tensor) -> Tensor:
    """Rosenbrock's function with a gentle valley: its minimum is 0 at (1, 1)."""
    return (1 - theta[0]) ** 2 + (theta[1] - theta[0] ** 2) ** 2


@pytest.mark.parametrize(
    ("function", "start", "best"), [(quadratic, (2.0, -3.0), (0, 0)), (curved_valley, (-0.5, 1.0), (1, 1))]
)
def test_minimises_known_functions(function, start, best) -> None:  # type: ignore[no-untyped-def]
    theta = point(*start)
    holder = nn.Module()
    holder.theta = theta
    loss = lambda model, batch: (function(model.theta), torch.tensor(1))  # noqa: E731
    optimizer = Sophia(
        [theta],
        lr=0.1,
        betas=(0.9, 0.9),
        gamma=0.2,
        weight_decay=0.0,
        every=1,
        estimator="hutchinson",
        bias_correction=True,
    )  # fmt: skip
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, total_iters=250)
    for _ in range(250):
        optimizer.zero_grad()
        optimizer.refresh(holder, BATCH, loss)
        optimizer.step(lambda: function(theta).backward())
        schedule.step()
    torch.testing.assert_close(theta.data, torch.tensor(best, dtype=torch.float64), atol=0.02, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_keeps_dtypes_and_its_curvature_in_float32_at_least(dtype: torch.dtype) -> None:
    theta = point(1.0, 2.0, dtype=dtype)
    optimizer = Sophia([theta], lr=0.1, estimator=given([torch.full((2,), 1e-10)]))
    optimizer.refresh(NOTHING, BATCH)
    theta.grad = torch.ones(2, dtype=dtype)
    optimizer.step()
    assert theta.dtype == dtype
    for restored in (optimizer, Sophia([theta], lr=0.1)):
        restored.load_state_dict(optimizer.state_dict())
        state = restored.state[theta]
        assert state["curvature"].dtype == state["momentum"].dtype == torch.promote_types(dtype, torch.float32)
        # 1e-12, which float16 could not hold
        torch.testing.assert_close(state["curvature"], torch.full_like(state["curvature"], 1e-12))


def test_momentum_may_be_kept_in_bfloat16() -> None:
    theta = point(1.0, 2.0, dtype=torch.float32)
    optimizer = Sophia([theta], lr=0.1, momentum_dtype=torch.bfloat16)
    theta.grad = torch.ones(2)
    optimizer.step()
    assert optimizer.state[theta]["momentum"].dtype == torch.bfloat16
    torch.testing.assert_close(theta.data, torch.tensor([1.0, 2.0]) * 0.98 - 0.1)


def trained(model: nn.Module, optimizer: Sophia, first: int, last: int) -> nn.Module:
    for step in range(first, last):
        batch = {name: value.roll(step, 0)[:16] for name, value in classes_batch(64, dtype=torch.float32).items()}
        if optimizer.refresh_due:
            optimizer.refresh(model, batch, classify)
        optimizer.zero_grad()
        total, count = classify(model, batch)
        (total / count).backward()
        optimizer.step()
    return model


def test_oracle_10_a_state_dict_round_trip_continues_bit_for_bit() -> None:
    make = partial(Sophia, lr=0.02, every=3, seed=4)
    straight = Softmax(4, 3, torch.float32)
    trained(straight, make(straight.parameters()), 0, 20)
    for stop in (1, 3, 7, 9):
        model = Softmax(4, 3, torch.float32)
        first = make(model.parameters())
        trained(model, first, 0, stop)
        resumed = copy.deepcopy(model)
        second = make(resumed.parameters())
        second.load_state_dict(copy.deepcopy(first.state_dict()))
        figures = {k: v for k, v in first.statistics().items() if not k.startswith("unclipped")}  # of the step itself
        assert {"curvature_p50", "sampled_gradient_norm", "skipped_steps"} <= figures.keys()
        assert figures == second.statistics()
        trained(resumed, second, stop, 20)
        assert torch.equal(resumed.weight, straight.weight), stop


# Hard cases


def test_oracle_10_parameters_without_gradient_empty_ones_and_scalars() -> None:
    idle, empty, scalar = point(1.0), nn.Parameter(torch.empty(0, 3)), nn.Parameter(torch.tensor(2.0))
    optimizer = Sophia([{"params": [idle, empty, scalar]}, {"params": []}], lr=0.1, weight_decay=0.0)
    empty.grad, scalar.grad = torch.empty(0, 3), torch.tensor(1.0)
    optimizer.step()
    assert (float(idle), float(scalar)) == (1.0, pytest.approx(1.9))
    assert idle not in optimizer.state
    Sophia([{"params": []}], lr=0.1).step()


def test_oracle_10_sparse_gradients_and_complex_parameters_are_refused() -> None:
    table = nn.Embedding(5, 2, sparse=True)
    optimizer = Sophia(table.parameters(), lr=0.1)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(UsageError, match="sparse"):
        optimizer.step()
    with pytest.raises(UsageError, match="complex"):
        Sophia([nn.Parameter(torch.ones(2, dtype=torch.complex64))], lr=0.1)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_oracle_10_a_gradient_that_is_not_finite_changes_nothing_and_is_counted(bad: float) -> None:
    theta, other = point(1.0, 2.0), point(3.0)
    optimizer = Sophia([theta, other], lr=0.1)
    theta.grad, other.grad = torch.tensor([1.0, bad], dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    optimizer.step()
    assert theta.tolist() == [1.0, 2.0]
    assert other.tolist() == [3.0]
    assert optimizer.statistics()["skipped_steps"] == 1
    optimizer.estimator = given([theta.grad, other.grad])
    optimizer.refresh(NOTHING, BATCH)
    assert optimizer.statistics()["skipped_refreshes"] == 1
    assert not optimizer.state


def test_finite_gradients_whose_sum_overflows_are_no_reason_to_skip() -> None:
    theta = point(1.0, 1.0, dtype=torch.float32)
    optimizer = Sophia([theta], lr=0.1, weight_decay=0.0)
    theta.grad = torch.full((2,), 3e38)
    optimizer.step()
    torch.testing.assert_close(theta.data, torch.full((2,), 0.9))


def test_oracle_10_curvature_does_not_decay_where_an_estimate_does_not_reach() -> None:
    used, unused = point(1.0), point(1.0)
    answers = [[torch.ones(1), torch.ones(1)], [torch.ones(1), None]]
    optimizer = Sophia([used, unused], lr=0.1, betas=(0.9, 0.5))
    for answer in answers:
        optimizer.estimator = lambda *_, answer=answer: Estimate(list(answer), 1)
        optimizer.refresh(NOTHING, BATCH)
    assert float(optimizer.state[used]["curvature"]) == 0.75
    assert float(optimizer.state[unused]["curvature"]) == 0.5
    assert float(optimizer.state[unused]["refreshes"]) == 1


@pytest.mark.parametrize(
    "wrong", [{"lr": -1.0}, {"betas": (1.0, 0.5)}, {"gamma": -0.1}, {"eps": 0.0}, {"every": 0}, {"batch_share": 0.0},
              {"estimator": "fisher"}, {"weight_decay": -1.0}]
)  # fmt: skip
def test_settings_out_of_range_are_refused(wrong: dict) -> None:  # type: ignore[type-arg]
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Sophia([point(1.0)], **{"lr": 0.1, **wrong})


# Refreshing


class Disturbable(nn.Module):
    """Dropout and batch norm: what a careless extra pass would leave traces in."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(F.dropout(self.norm(self.first(inputs)), 0.5, self.training))


@pytest.mark.parametrize("estimator", ["gnb", "hutchinson"])
def test_a_refresh_leaves_no_trace_but_the_curvature(estimator: str) -> None:
    torch.manual_seed(0)
    model, batch = Disturbable(), classes_batch(16, dtype=torch.float32)
    optimizer = Sophia(model.parameters(), lr=0.1, estimator=estimator, batch_share=1.0)  # type: ignore[arg-type]
    classify(model, batch)[0].backward()  # an accumulation in flight
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = {name: (p.grad, p.grad.clone()) for name, p in model.named_parameters()}
    random = torch.get_rng_state()
    optimizer.refresh(model, batch, classify)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for name, parameter in model.named_parameters():
        assert parameter.grad is gradients[name][0]
        assert torch.equal(parameter.grad, gradients[name][1])
    assert optimizer.state[model.first.weight]["curvature"].abs().sum() > 0


def test_oracle_9_cutting_the_batch_does_not_change_the_estimate() -> None:
    model, batch = Softmax(4, 3), classes_batch(64)
    found = []
    for parts in (1, 4):
        optimizer = Sophia(model.parameters(), lr=0.1, batch_share=0.5, betas=(0.9, 0.0))
        pieces = [{name: value.chunk(parts)[i] for name, value in batch.items()} for i in range(parts)]
        optimizer.refresh(model, pieces, classify)
        found.append(optimizer.state[model.weight]["curvature"])
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=0)


def test_only_the_asked_share_of_rows_is_read() -> None:
    seen: list[int] = []

    def spy(model, micro_batches, parameters, generator, objective) -> Estimate:  # type: ignore[no-untyped-def]
        seen.extend(len(batch["labels"]) for batch in micro_batches)
        return gauss_newton_bartlett(model, micro_batches, parameters, generator, objective)

    model = Softmax(4, 3)
    for share, parts, rows in ((1.0, 1, [60]), (0.5, 1, [30]), (1 / 15, 1, [4]), (0.5, 4, [15, 15]), (1 / 15, 4, [4])):
        seen.clear()
        batch = classes_batch(60)
        pieces = [{name: value.chunk(parts)[i] for name, value in batch.items()} for i in range(parts)]
        Sophia(model.parameters(), lr=0.1, estimator=spy, batch_share=share).refresh(model, pieces, classify)
        assert seen == rows, (share, parts)


def test_sampled_clip_shrinks_the_curvature_by_the_square_of_the_norm() -> None:
    model, batch = Softmax(4, 3), classes_batch(8)
    clipped, free = (Sophia(model.parameters(), lr=0.1, sampled_clip=c, batch_share=1.0) for c in (1e-3, None))
    for optimizer in (clipped, free):
        optimizer.refresh(model, batch, classify)
    norm = free.statistics()["sampled_gradient_norm"]
    ratio = clipped.state[model.weight]["curvature"] / free.state[model.weight]["curvature"]
    torch.testing.assert_close(ratio, torch.full_like(ratio, (1e-3 / norm) ** 2))
    assert clipped.statistics()["sampled_clip_rate"] == 1
    # The norm is that of the mean loss at the drawn labels: sqrt(sum of B g^2 / B).
    drawn = free.state[model.weight]["curvature"].sum() / 0.01
    assert norm == pytest.approx(math.sqrt(float(drawn) / 8))


def test_an_own_loss_is_refreshed_by_hutchinson_and_says_so() -> None:
    theta = point(1.0, 2.0)
    holder = nn.Module()
    holder.theta = theta
    optimizer = Sophia([theta], lr=0.1, betas=(0.9, 0.0), seed=1)
    with pytest.warns(UserWarning, match="Hutchinson"):
        optimizer.refresh(holder, BATCH, lambda model, batch: (quadratic(model.theta), torch.tensor(1)))
    ratio = optimizer.state[theta]["curvature"] / torch.tensor([1.0, 1e4], dtype=torch.float64)
    assert (ratio > 0).all()  # u^2, up to the zero off-diagonals
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.refresh(holder, BATCH, lambda model, batch: (quadratic(model.theta), torch.tensor(1)))


def test_step_refreshes_itself_from_the_loops_closure() -> None:
    from mickle.training.closure import Closure

    model, batch = Softmax(4, 3, torch.float32), classes_batch(8, dtype=torch.float32)
    optimizer = Sophia(model.parameters(), lr=0.1, every=2)
    for step in range(5):
        loss = optimizer.step(Closure(model, classify, batch, step=step, accumulate=2))
    assert isinstance(loss, float)
    assert float(optimizer.state[model.weight]["refreshes"]) == 3


# Figures and advice


def test_statistics_by_layer_appear_after_a_refresh() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)).float()
    batch = classes_batch(8, dtype=torch.float32)
    optimizer = Sophia(model.parameters(), lr=0.1, every=2)
    seen = []
    for _ in range(2):
        if optimizer.refresh_due:
            optimizer.refresh(model, batch, classify)
        optimizer.zero_grad()
        classify(model, batch)[0].backward()
        optimizer.step()
        seen.append({name for name in optimizer.statistics() if "/" in name})
    assert seen == [{"unclipped/0", "unclipped/1"}, set()]
    figures = optimizer.statistics()
    assert 0 <= figures["unclipped"] <= 1
    assert figures["curvature_p10"] <= figures["curvature_p50"] <= figures["curvature_p90"]
    assert figures["curvature_not_positive"] == 0


def test_layer_names() -> None:
    assert layer_of("layers.3.mlp.up_proj.weight") == "layers.3"
    assert layer_of("embed_tokens.weight") == "embed_tokens"


def test_gamma_for_is_the_quantile_that_leaves_the_share_unclipped() -> None:
    generator = torch.Generator().manual_seed(0)
    m, h = torch.randn(10_000, generator=generator), torch.rand(10_000, generator=generator) + 0.01
    for share in (0.1, 0.3, 0.9):
        gamma = gamma_for([(m[:4000], h[:4000]), (m[4000:], h[4000:])], share)
        assert float((m.abs() < gamma * h).float().mean()) == pytest.approx(share, abs=2e-4)
    with pytest.raises(UsageError, match="No gamma"):
        gamma_for([(m, -h)], 0.3)
    assert gamma_for_batch(480 * 1024) == 0.05
    assert gamma_for_batch(480 * 1024 // 4) == pytest.approx(0.1)


def test_suggested_gamma_gives_the_asked_share_and_changes_nothing() -> None:
    model = Softmax(50, 20)
    batch = classes_batch(200, 50, 20)
    optimizer = Sophia(model.parameters(), lr=1e-9, gamma=1.0, batch_share=1.0, bias_correction=True, weight_decay=0.0)
    before = copy.deepcopy(optimizer.state_dict())
    gamma = optimizer.suggest_gamma(model, [batch], 0.4, classify)
    assert optimizer.state_dict() == before
    assert model.weight.grad is None
    optimizer.param_groups[0]["gamma"] = gamma
    optimizer.refresh(model, batch, classify)
    total, count = classify(model, batch)
    (total / count).backward()
    optimizer.step()
    assert optimizer.statistics()["unclipped"] == pytest.approx(0.4, abs=0.01)


@pytest.mark.parametrize(("gamma", "share"), [(1e-9, "0.0"), (1e9, "100.0")])
def test_a_gamma_far_off_is_noticed_and_a_better_one_named(
    gamma: float, share: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sophia, "WATCH", 10)
    model = Softmax(4, 3, torch.float32)
    optimizer = Sophia(model.parameters(), lr=1e-6, gamma=gamma)
    with pytest.warns(UserWarning, match=rf"{share} % .* Try gamma=\d"):
        trained(model, optimizer, 0, 10)


def test_never_refreshing_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sophia, "WATCH", 5)
    theta = point(1.0)
    optimizer = Sophia([theta], lr=0.1, every=1000, estimator=given([torch.zeros(1)]))
    optimizer.param_groups[0]["steps"] = 1  # as if nobody had asked refresh_due
    with pytest.warns(UserWarning, match="No curvature was ever estimated"):
        run(optimizer, theta, 5)


def test_a_state_without_figures_as_others_write_it_goes_on() -> None:
    theta = point(1.0, -2.0)
    optimizer = Sophia([theta], lr=0.02, every=2, estimator=given([torch.tensor([3.0, 0.1])]))
    run(optimizer, theta, 5)
    state = copy.deepcopy(optimizer.state_dict())
    del state["figures"]
    twin = nn.Parameter(theta.detach().clone())
    other = Sophia([twin], lr=9.0, every=2, estimator=optimizer.estimator)
    other.load_state_dict(state)
    run(optimizer, theta, 6)
    run(other, twin, 6)
    torch.testing.assert_close(theta.data, twin.data)


def run(optimizer: Sophia, theta: nn.Parameter, steps: int) -> None:
    for _ in range(steps):
        if optimizer.refresh_due:
            optimizer.refresh(NOTHING, BATCH)
        theta.grad = theta.detach().sin()
        optimizer.step()
