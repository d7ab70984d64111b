"""Sophia: A Scalable Stochastic Second-order Optimizer for Language Model Pre-training, arXiv 2305.14342.

Claim: on GPT models of 125M to 1.5B it reaches AdamW's loss in half the steps. Algorithm 3, at step t = 1, 2,
...:

    m_t = beta1 m_{t-1} + (1 - beta1) g_t
    h_t = beta2 h_{t-k} + (1 - beta2) estimate_t     if t mod k = 1, else h_{t-1}      (k is ``every``)
    theta <- theta - lr weight_decay theta
    theta <- theta - lr clip( m_t / max(gamma h_t, eps), -1, 1 )

The estimates are in ``training/curvature.py``, the update in ``kernels/sophia_update.py``.

Departures. ``bias_correction`` (off as in the paper) divides h by 1 - beta2^n after n estimates and m by 1 - beta1^t: h
starts at zero and in short runs stays a fraction of itself. The curvature of a parameter that an estimate does not
reach is left alone, not decayed. The authors' code keeps h / B instead of h and clips the drawn-label gradient to norm
1 before squaring it, which the paper does not say: ``sampled_clip=1.0`` does so too.
"""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from mickle.errors import UsageError
from mickle.kernels.sophia_update import SophiaRule, Tensors, sophia_update
from mickle.training import curvature
from mickle.training.closure import derived_seed
from mickle.training.curvature import Batch, Estimate, Estimator, Objective, undisturbed
from mickle.training.distributed import current, gathered, local
from mickle.training.guard import first_not_finite

ESTIMATORS: dict[str, Estimator] = {"gnb": curvature.gauss_newton_bartlett, "hutchinson": curvature.hutchinson}
GAMMA = {"gnb": 0.05, "hutchinson": 0.01}  # the paper's
BATCH_SHARE = {"gnb": 240 / 480, "hutchinson": 32 / 480}  # sequences of a batch in the estimate: the paper's
GOOD_UNCLIPPED = 0.3  # the middle of the paper's 0.1 to 0.5
WATCH = 100  # steps of an unclipped share out of all bounds after which the user is warned
_SAMPLE = 65536  # coordinates from which quantiles are read: off by .2 % of them, one standard error


class Sophia(torch.optim.Optimizer):
    """Clipped steps of momentum over curvature; see the equations at the head of this file.

    ``refresh(model, batch)`` makes the curvature; it is due before every ``every``-th step (``refresh_due``).
    ``step(closure)`` does so itself when the closure has ``model``, ``micro_batches`` and ``objective``, as
    that of ``training.loop.fit`` has. State a parameter: momentum (``momentum_dtype``, by default the
    curvature's) and curvature (float32, or float64 for float64 parameters), whatever the parameter's own
    dtype.

    Arguments: ``gamma`` None means the paper's (0.05 for gnb, 0.01 for hutchinson), found for 491,520 tokens
    a batch; with fewer it must grow (``suggest_gamma``). ``batch_share`` is the share of a batch's rows that
    the estimate reads (None: the paper's). ``seed`` with step and process number determines every random
    draw. ``estimator`` may be a function (``curvature.Estimator``). lr, betas, gamma, eps, weight_decay and
    bias_correction may differ by group.

    Raises ``UsageError`` for complex parameters, sparse gradients and settings out of range. A step whose gradient is
    not finite changes nothing and is counted (``statistics()``); so is an estimate that is not finite.

        optimizer = Sophia(model.named_parameters(), lr=6e-4)
        for batch in batches:
            if optimizer.refresh_due:
                optimizer.refresh(model, batch)
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor,
        betas: tuple[float, float] = (0.96, 0.99),
        gamma: float | None = None,
        eps: float = 1e-12,
        weight_decay: float = 0.2,
        *,
        estimator: Literal["gnb", "hutchinson"] | Estimator = "gnb",
        every: int = 10,
        bias_correction: bool = False,
        batch_share: float | None = None,
        sampled_clip: float | None = None,
        momentum_dtype: torch.dtype | None = None,
        seed: int = 0,
    ) -> None:
        if isinstance(estimator, str) and estimator not in ESTIMATORS:
            raise UsageError(f"No estimator {estimator!r}", expected=f"one of {', '.join(ESTIMATORS)}, or a function")
        named = estimator if isinstance(estimator, str) else "gnb"
        gamma = GAMMA[named] if gamma is None else gamma
        share = BATCH_SHARE[named] if batch_share is None else batch_share
        _check("every", every, every >= 1, "at least 1")
        _check("batch_share", share, 0 < share <= 1, "above 0 and at most 1")
        self.estimator = ESTIMATORS[estimator] if isinstance(estimator, str) else estimator
        self.every, self.batch_share, self.sampled_clip, self.seed = every, share, sampled_clip, seed
        self.momentum_dtype = momentum_dtype
        self._names: dict[int, str] = {}  # of parameters, by id, as the refreshed model calls them
        self._unclipped: list[tuple[str, Tensor | int, int]] = []  # name, count, size: of the last step
        self._watched: list[Tensor | float] = []  # unclipped shares of the last steps
        self._warned = False
        self._refresh_figures: dict[str, float] = {}
        self._totals = {"refreshes": 0, "clipped_refreshes": 0, "skipped_refreshes": 0, "skipped_steps": 0}
        defaults = {"lr": lr, "betas": betas, "gamma": gamma, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "bias_correction": bias_correction, "steps": 0})

    @classmethod
    def short(cls, params: Iterable[Any], lr: float, **options: Any) -> Self:
        """The preset for runs of hundreds of steps: faster averages, more estimates, bias correction."""
        return cls(params, lr, **{"betas": (0.9, 0.95), "every": 5, "bias_correction": True, **options})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """torch's, and checks the group's settings and dtypes."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        _check("lr", group["lr"], float(group["lr"]) >= 0, "at least 0")
        _check("betas", group["betas"], all(0 <= beta < 1 for beta in group["betas"]), "two numbers in [0, 1)")
        _check("gamma", group["gamma"], group["gamma"] >= 0, "at least 0")
        _check("eps", group["eps"], group["eps"] > 0, "above 0")
        _check("weight_decay", group["weight_decay"], group["weight_decay"] >= 0, "at least 0")
        if any(parameter.is_complex() for parameter in group["params"]):
            raise UsageError("Sophia has no rule for complex parameters", todo="Train torch.view_as_real of them.")

    @property
    def refresh_due(self) -> bool:
        """Whether the coming step should be preceded by ``refresh``: steps 1, 1 + every, 1 + 2 every, ..."""
        return bool(self.param_groups) and self.param_groups[0]["steps"] % self.every == 0

    def step(self, closure: Any = None) -> Any:
        """One update of every parameter that has a gradient; what ``closure`` returned.

        When the closure of ``fit`` raises because its numbers are bad, no parameter changes; an estimate that
        was due and finite has then moved the curvature.
        """
        from_fit = hasattr(closure, "micro_batches")
        if from_fit and self.refresh_due:
            # Before the gradients exist: the estimate needs the memory of one gradient, which is free now.
            with closure.forward_context(0):
                closure.fitting(lambda: self.refresh(closure.model, closure.micro_batches, closure.objective))
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            self._update(checked=from_fit)  # that closure never returns from a gradient that is not finite
        return loss

    def refresh(self, model: nn.Module, batch: Batch | Sequence[Batch], objective: Objective | None = None) -> None:
        """Estimate the curvature on a batch (or its micro-batches) and move h towards it.

        Without ``objective`` the loss is the model's own likelihood (``curvature.likelihood`` says which
        models). With one, ``(model, batch) -> (sum, count)``, Sophia-G draws labels where the objective is a
        cross-entropy of this package; for any other the optimizer warns and uses Hutchinson's estimate from
        then on. Leaves ``.grad``, buffers and torch's random generators as they were. Under torch.distributed
        every process must call it, each with its own part of the batch.
        """
        parameters = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
        if not parameters:
            return
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}
        micro_batches = [batch] if isinstance(batch, Mapping) else list(batch)
        shared = curvature.first_rows(micro_batches, self.batch_share)
        try:
            estimate = self._estimate(model, shared, parameters, objective)
        except curvature.NotALikelihood as reason:
            warnings.warn(f"{reason.what}; Hutchinson's estimate is used from here on", stacklevel=2)
            self.estimator = curvature.hutchinson
            estimate = self._estimate(model, shared, parameters, objective)
        self._absorb(parameters, estimate)

    def _estimate(
        self, model: nn.Module, micro_batches: list[Batch], parameters: list[nn.Parameter], objective: Objective | None
    ) -> Estimate:
        """The estimator's answer; its draws are a function of seed, step and process."""
        step = self.param_groups[0]["steps"]
        draw = derived_seed(self.seed, step, current().rank)
        generator = torch.Generator(parameters[0].device).manual_seed(draw)
        with undisturbed(model, parameters, draw):
            return self.estimator(model, micro_batches, parameters, generator, objective)

    @torch.no_grad()
    def _absorb(self, parameters: list[nn.Parameter], estimate: Estimate) -> None:
        """Move h of every parameter that the estimate reached, unless the estimate is not finite."""
        present = [diagonal for diagonal in estimate.diagonal if diagonal is not None]
        sums = [float(gathered(diagonal.sum(dtype=torch.float32))) for diagonal in present]
        if not all(map(math.isfinite, sums)):
            self._totals["skipped_refreshes"] += 1
            return
        factor = 1.0
        # The mean gradient's squared norm is sum(estimate) / B when the estimate is B times its square.
        norm = math.sqrt(max(0.0, sum(sums)) / estimate.count)
        if self.sampled_clip is not None and norm > self.sampled_clip:
            factor = (self.sampled_clip / norm) ** 2
            self._totals["clipped_refreshes"] += 1
        self._totals["refreshes"] += 1
        beta = {id(p): group["betas"][1] for group in self.param_groups for p in group["params"]}
        for parameter, diagonal in zip(parameters, estimate.diagonal):
            if diagonal is not None:
                state, decay = self._state_of(parameter), beta[id(parameter)]
                state["curvature"].mul_(decay).add_(diagonal, alpha=(1 - decay) * factor)
                state["refreshes"] += 1
        self._refresh_figures = self._curvature_figures() | {"sampled_gradient_norm": norm}

    def _update(self, checked: bool) -> None:
        """Apply the rule to every parameter with a gradient; skip all of it if a gradient is not finite."""
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        if any(gradient.is_sparse for gradient in gradients):
            raise UsageError("Sophia has no rule for sparse gradients", todo="Use nn.Embedding(..., sparse=False).")
        if not checked and first_not_finite(("", gradient) for gradient in gradients) is not None:
            self._totals["skipped_steps"] += 1
            return
        self._unclipped = []
        for index, group in enumerate(self.param_groups):
            group["steps"] += 1
            names = group.get("param_names") or [
                self._names.get(id(p), f"{index}.{place}") for place, p in enumerate(group["params"])
            ]
            chosen = [(name, p) for name, p in zip(names, group["params"]) if p.grad is not None]
            rule = SophiaRule(
                float(group["lr"]), group["betas"][0], group["gamma"], group["eps"], group["weight_decay"]
            )
            counts = sophia_update([self._tensors(p, group) for _, p in chosen], rule)
            self._unclipped += [(name, count, local(p).numel()) for (name, p), count in zip(chosen, counts)]
        self._watch()

    def _tensors(self, parameter: nn.Parameter, group: dict[str, Any]) -> Tensors:
        """One parameter's part of the coming update."""
        state = self._state_of(parameter)
        state["step"] += 1
        four = [local(t) for t in (parameter, parameter.grad, state["momentum"], state["curvature"])]
        return Tensors(four[0], four[1], four[2], four[3], *_scales(state, group))

    def _state_of(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        state = self.state[parameter]
        if not state:
            wide = torch.promote_types(parameter.dtype, torch.float32)
            empty = torch.zeros_like(parameter, dtype=wide, memory_format=torch.preserve_format)
            state["step"], state["refreshes"] = torch.tensor(0.0), torch.tensor(0.0)
            state["momentum"] = torch.zeros_like(empty, dtype=self.momentum_dtype or wide)
            state["curvature"] = empty
        return state

    def state_dict(self) -> dict[str, Any]:
        """torch's, and what the log says of the last refresh and of all: a run that goes on says it again."""
        return {**super().state_dict(), "figures": {"refresh": self._refresh_figures, "totals": self._totals}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """torch's, which casts states to the parameters' dtype: float32 states of bfloat16 weights are kept here."""
        super().load_state_dict({name: value for name, value in state_dict.items() if name != "figures"})
        figures = state_dict.get("figures", {"refresh": {}, "totals": self._totals})  # none in states of others
        self._refresh_figures, self._totals = dict(figures["refresh"]), dict(figures["totals"])
        saved = [key for group in state_dict["param_groups"] for key in group["params"]]
        own = [parameter for group in self.param_groups for parameter in group["params"]]
        for key, parameter in zip(saved, own):
            for name, value in state_dict["state"].get(key, {}).items():
                if isinstance(value, Tensor):
                    device = parameter.device if name in ("momentum", "curvature") else "cpu"
                    self.state[parameter][name] = value.detach().to(device, copy=True)

    # What is logged, and what is advised

    def statistics(self) -> dict[str, float]:
        """What the last step and the last refresh did, for the log; empty before the first step.

        ``unclipped``: share of coordinates with |m| < gamma h; healthy from 0.1 to 0.5. ``unclipped/LAYER``:
        the same by layer, in the step after a refresh only. ``curvature_p10``, ``_p50``, ``_p90``: quantiles
        of h. ``curvature_not_positive``: share of h <= 0, where a step is a sign step.
        ``sampled_gradient_norm``: of the mean loss at drawn labels; ``sampled_clip_rate``: share of refreshes
        that ``sampled_clip`` cut. ``skipped_steps`` and ``skipped_refreshes`` were not finite. With sharded
        parameters shares are those of this process's shards.
        """
        figures = self._refresh_figures | {
            name: float(self._totals[name]) for name in self._totals if "skipped" in name
        }
        if self.sampled_clip is not None:
            figures["sampled_clip_rate"] = self._totals["clipped_refreshes"] / max(1, self._totals["refreshes"])
        sizes: dict[str, list[float]] = {}
        after_refresh = bool(self.param_groups) and (self.param_groups[0]["steps"] - 1) % self.every == 0
        for name, count, size in self._unclipped:
            for label in ["unclipped", f"unclipped/{layer_of(name)}"] if after_refresh else ["unclipped"]:
                entry = sizes.setdefault(label, [0.0, 0.0])
                entry[0] += float(count)
                entry[1] += size
        return {label: inside / max(1.0, size) for label, (inside, size) in sizes.items()} | figures

    def suggest_gamma(
        self, model: nn.Module, data: Sequence[Batch], share: float = GOOD_UNCLIPPED, objective: Objective | None = None
    ) -> float:
        """The gamma with which a ``share`` of all coordinates would be unclipped; nothing is changed by asking.

        Closed form: a coordinate is unclipped when gamma > |m| / h, so gamma is the ``share``-quantile of |m| / h. m is
        the bias-corrected average of the gradients of ``data`` (whole batches of a step; 1 / (1 - beta1) of them bring
        its noise to what it will be in training), h one estimate on the last. Raises ``UsageError`` where so few
        coordinates have positive curvature that no gamma reaches the share.
        """
        parameters = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
        beta = self.param_groups[0]["betas"][0]
        averages = [torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for p in parameters]
        with undisturbed(model, parameters, self.seed):
            for batch in data:
                total, count = (objective or curvature.likelihood)(model, batch)
                gradients = torch.autograd.grad(total / count, parameters, allow_unused=True)
                for average, gradient in zip(averages, gradients):
                    average.mul_(beta)
                    if gradient is not None:
                        average.add_(gradient, alpha=1 - beta)
        diagonal = self._estimate(model, [data[-1]], parameters, objective).diagonal
        pairs = [(m / (1 - beta ** len(data)), h) for m, h in zip(averages, diagonal) if h is not None]
        return gamma_for(pairs, share)

    def _watch(self) -> None:
        """Warn once when the unclipped share stays out of bounds for ``WATCH`` steps; one look at the device."""
        if self._warned:
            return
        size = sum(size for _, _, size in self._unclipped)
        inside: Any = sum((count for _, count, _ in self._unclipped), start=0)
        self._watched.append(inside / max(1, size))
        if len(self._watched) < WATCH or not size:
            return
        shares = [float(share) for share in self._watched]
        self._watched = []
        self._warned = max(shares) < 0.01 or min(shares) > 0.95
        if self._warned:
            warnings.warn(
                f"For {WATCH} steps {100 * shares[-1]:.1f} % of Sophia's coordinates were unclipped (10 to 50 % "
                f"is healthy): gamma {self.param_groups[0]['gamma']:g} does not fit this batch size. "
                f"{self._advice()}",
                stacklevel=4,
            )

    def _advice(self) -> str:
        """What to do about the gamma, from the state as it is."""
        if not self._totals["refreshes"]:
            return "No curvature was ever estimated: call refresh(model, batch) whenever refresh_due is true."
        pairs = []
        for group in self.param_groups:
            for state in (self.state[p] for p in group["params"] if p in self.state):
                momentum_scale, curvature_scale = _scales(state, group)
                pairs.append((local(state["momentum"]) * momentum_scale, local(state["curvature"]) * curvature_scale))
        try:
            return f"Try gamma={gamma_for(pairs, GOOD_UNCLIPPED):.3g}."
        except UsageError as reason:
            return f"{reason.what}."

    def _curvature_figures(self) -> dict[str, float]:
        """Quantiles of h and the share of h <= 0, read from evenly spaced coordinates."""
        curvatures = [local(state["curvature"]) for state in self.state.values() if "curvature" in state]
        values = _spaced([c for c in curvatures if c.numel()])
        if not values.numel():
            return {}
        quantiles = torch.quantile(values.float(), torch.tensor([0.1, 0.5, 0.9], device=values.device)).tolist()
        names = ("curvature_p10", "curvature_p50", "curvature_p90")
        return dict(zip(names, quantiles)) | {"curvature_not_positive": float((values <= 0).float().mean())}


def gamma_for(pairs: Sequence[tuple[Tensor, Tensor]], share: float) -> float:
    """The gamma that leaves a ``share`` of the coordinates of (momentum, curvature) pairs unclipped."""
    _check("share", share, 0 < share < 1, "between 0 and 1")
    momenta, curvatures = _spaced([m for m, _ in pairs]).abs(), _spaced([h for _, h in pairs])
    if not momenta.numel():
        raise UsageError("No parameter has a curvature", todo="Give a model and data whose loss reaches them.")
    ratios = torch.where(curvatures > 0, momenta / curvatures, math.inf)
    # Strictly above the quantile, so that the coordinate standing at it is unclipped too.
    wanted = ratios.kthvalue(max(1, math.ceil(share * ratios.numel()))).values
    gamma = float(wanted) * (1 + 1e-6)
    if not math.isfinite(gamma) or gamma == 0:
        positive = float((curvatures > 0).float().mean())
        raise UsageError(
            f"No gamma leaves {share:.0%} of the coordinates unclipped: {positive:.0%} have curvature above 0",
            expected="a smaller share, or an estimate from more data",
        )
    return gamma


def gamma_for_batch(tokens: int, gamma: float = GAMMA["gnb"], published_tokens: int = 480 * 1024) -> float:
    """A published gamma for another batch size: m is mostly noise, and noise / h goes as 1 / sqrt(tokens)."""
    return gamma * math.sqrt(published_tokens / tokens)


def layer_of(name: str) -> str:
    """``layers.3.mlp.up_proj.weight`` -> ``layers.3``; a name without a number -> its first part."""
    parts = name.split(".")
    numbered = next((place for place, part in enumerate(parts) if part.isdigit()), 0)
    return ".".join(parts[: numbered + 1])


def _spaced(tensors: Sequence[Tensor]) -> Tensor:
    """About ``_SAMPLE`` evenly spaced coordinates of all tensors together, flat."""
    stride = max(1, sum(tensor.numel() for tensor in tensors) // _SAMPLE)
    return torch.cat([t.detach().reshape(-1)[::stride] for t in tensors]) if tensors else torch.empty(0)


def _scales(state: Mapping[str, Tensor], group: Mapping[str, Any]) -> tuple[float, float]:
    """What momentum and curvature are multiplied by to undo their start at zero: 1 and 1 without bias correction."""
    if not group["bias_correction"]:
        return 1.0, 1.0
    beta1, beta2 = group["betas"]
    steps, refreshes = float(state["step"]), float(state["refreshes"])
    return 1 / (1 - beta1**steps) if steps else 1.0, 1 / (1 - beta2**refreshes) if refreshes else 1.0


def _check(name: str, value: Any, right: bool, expected: str) -> None:
    if not right:
        raise UsageError(f"Sophia's {name} is {value}", where=name, expected=expected)
