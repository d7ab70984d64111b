"""What repeated tokens are still worth: the data-constrained scaling law, and the threshold near which models overfit.

"Scaling Data-Constrained Language Models" (Muennighoff et al., arXiv 2305.16264), sections 3 and 6, on 400 runs of 10
million to 9 billion parameters: up to 4 epochs are almost as good as fresh text, and by about 40 the value is gone.
With N parameters, D tokens read, U of them unique, and N*(U) the compute-optimal size for U tokens::

    U_N = min(N, N*(U))   R_D = D / U - 1    R_N = N / U_N - 1
    D'  = U + U R_D* (1 - exp(-R_D / R_D*))
    N'  = U_N + U_N R_N* (1 - exp(-R_N / R_N*))
    L   = E + A / N'^alpha + B / D'^beta
    N*(D) = G (G D)^(beta / alpha)    G = (alpha A / (beta B))^(1 / (alpha + beta))

The paper searches the best split of a budget C = 6 N D on a grid; here it is a bounded minimisation over ln N.

The law falls with every epoch, so it can never say that more epochs hurt. They do ("To Repeat or Not To Repeat",
arXiv 2305.13230, and our study ``token_crisis``): measure it (``repetition_fit.py``, :class:`Pilot`), and believe that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from mickle.errors import UsageError

BITS_A_PARAMETER = 3.6  # what a language model memorises at most (Morris et al., arXiv 2505.24832, abstract)
FACTOR_NEAR = 2.0  # within this factor of the threshold a plan warns
WIDEST = math.log(1000)  # how far from the compute-optimal size the best one is looked for
PLACES = 240


@dataclass(frozen=True)
class Allocation:
    """A budget spent: parameters N, tokens read D, epochs D / U, and the loss that the law predicts (nats a token)."""

    parameters: float
    tokens: float
    epochs: float
    loss: float


@dataclass(frozen=True)
class Law:
    """The law with its constants. ``most_epochs``: how many the runs behind them knew; ``origin``: what these were."""

    floor: float  # E, nats a token
    parameter_factor: float  # A
    token_factor: float  # B
    parameter_power: float  # alpha
    token_power: float  # beta
    token_decay: float  # R_D*, epochs
    parameter_decay: float  # R_N*
    most_epochs: float = 1500.0
    origin: str = "c4"

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name != "origin" and not value > 0:
                raise UsageError(f"{name} of a law is {value}", where="law", expected="a number above 0")

    def loss(self, parameters: float, tokens: float, unique: float) -> float:
        """Predicted loss (nats a token) of N ``parameters`` after D ``tokens``, of which ``unique`` are different."""
        size = self.effective_parameters(parameters, min(unique, tokens))
        read = self.effective_tokens(tokens, unique)
        return (
            self.floor + self.parameter_factor / size**self.parameter_power + self.token_factor / read**self.token_power
        )

    def effective_tokens(self, tokens: float, unique: float) -> float:
        """D': how many fresh tokens do what ``tokens`` read from ``unique`` do."""
        _refuse_none(tokens=tokens, unique=unique)
        unique = min(unique, tokens)
        return unique + unique * _saturated(tokens / unique - 1, self.token_decay)

    def effective_parameters(self, parameters: float, unique: float) -> float:
        """N': how many parameters are of use where the ``unique`` tokens are enough for fewer."""
        _refuse_none(parameters=parameters, unique=unique)
        fitting = min(parameters, self.fitting_parameters(unique))
        return fitting + fitting * _saturated(parameters / fitting - 1, self.parameter_decay)

    @property
    def ratio(self) -> float:
        """G of the equations above."""
        odds = self.parameter_power * self.parameter_factor / (self.token_power * self.token_factor)
        return float(odds ** (1 / (self.parameter_power + self.token_power)))

    def fitting_parameters(self, tokens: float) -> float:
        """N*(D): the size for which ``tokens`` fresh tokens are compute-optimal."""
        return float(self.ratio * (self.ratio * tokens) ** (self.token_power / self.parameter_power))

    def unlimited(self, flops: float) -> Allocation:
        """The best allocation of C = 6 N D where all text is fresh (Chinchilla, arXiv 2203.15556, equation 4)."""
        _refuse_none(flops=flops)
        parameters = self.ratio * (flops / 6) ** (self.token_power / (self.parameter_power + self.token_power))
        tokens = flops / 6 / parameters
        return Allocation(parameters, tokens, 1.0, self.loss(parameters, tokens, tokens))

    def spent(self, parameters: float, tokens: float, unique: float) -> Allocation:
        """The allocation that was chosen by hand, with its loss."""
        return Allocation(parameters, tokens, tokens / unique, self.loss(parameters, tokens, unique))

    def best(self, flops: float, unique: float) -> Allocation:
        """The best allocation of C = 6 N D where only ``unique`` tokens are there to be read.

        A scan finds the valley (the law has a kink where repetition begins), a section into thirds its bottom.
        """
        _refuse_none(flops=flops, unique=unique)

        def loss(log_size: float) -> float:
            size = math.exp(log_size)
            return self.loss(size, flops / 6 / size, unique)

        middle = math.log(self.unlimited(flops).parameters)
        width = 2 * WIDEST / PLACES
        places = [middle - WIDEST + width * place for place in range(PLACES + 1)]
        lowest = min(places, key=loss)
        size = math.exp(_lowest(loss, lowest - width, lowest + width))
        return self.spent(size, flops / 6 / size, unique)

    def fresh_equivalent(self, epochs: float) -> float:
        """How many fresh epochs' worth ``epochs`` of the same tokens are: D' / U. 3.73 for 4, 6.62 for 8."""
        return self.effective_tokens(epochs, 1.0)

    def epoch_value(self, epochs: float) -> float:
        """What the next token is worth after ``epochs``, where a fresh one is worth 1: dD'/dD = exp(-R_D / R_D*)."""
        return math.exp(-max(0.0, epochs - 1) / self.token_decay)

    def paying_epochs(self, least: float) -> float:
        """After how many epochs the next token is worth no more than ``least`` (0 to 1) of a fresh one."""
        if not 0 < least < 1:
            raise UsageError(f"a share of a fresh token's worth is between 0 and 1, not {least}", where="least")
        return 1 - self.token_decay * math.log(least)

    def refuse_more_epochs(self, epochs: float, where: str = "epochs") -> None:
        """Raise UsageError for more epochs than the runs behind the law knew."""
        if epochs > self.most_epochs:
            raise UsageError(
                f"This law knows at most {self.most_epochs:g} epochs, not {epochs:g}.",
                where=where,
                expected=f"up to {self.most_epochs:g}, what the runs behind it had ({self.origin})",
                todo="ask for fewer epochs, or add runs with more of them to the law",
            )


C4 = Law(
    floor=math.exp(0.6254804),
    parameter_factor=math.exp(6.255414),
    token_factor=math.exp(7.3049974),
    parameter_power=0.3526596,
    token_power=0.3526596,
    token_decay=15.387756,
    parameter_decay=5.309743,
)


def threshold_ratio(observations: float, parameters: float, bits: float | None = None) -> float:
    """What there is to fit, over what a model can hold: near 1 lies the interpolation threshold, where models overfit.

    A head on fixed features fits rows x outputs equations with its parameters, and is at its worst where they are
    equally many (Hastie et al., arXiv 1903.08560). For a language model give the unique tokens and the ``bits`` that
    each carries (loss / ln 2): it holds 3.6 bits a parameter, and double descent begins where the text has as many
    (Morris et al., arXiv 2505.24832, section 4).
    """
    _refuse_none(observations=observations, parameters=parameters)
    if bits is None:
        return observations / parameters
    _refuse_none(bits=bits)
    return observations * bits / (BITS_A_PARAMETER * parameters)


def near_threshold(ratio: float) -> bool:
    """Whether a ratio of :func:`threshold_ratio` is within a factor of two of the threshold."""
    return 1 / FACTOR_NEAR <= ratio <= FACTOR_NEAR


def _saturated(more: float, decay: float) -> float:
    """decay (1 - exp(-more / decay)): ``more`` while it is small, never above ``decay``."""
    return more if math.isinf(decay) else -decay * math.expm1(-more / decay)


def _lowest(loss: Callable[[float], float], low: float, high: float) -> float:
    """Where ``loss``, which has one valley between ``low`` and ``high``, is lowest (to 1e-9)."""
    while high - low > 1e-9:
        third = (high - low) / 3
        low, high = (low, high - third) if loss(low + third) <= loss(high - third) else (low + third, high)
    return (low + high) / 2


def _refuse_none(**amounts: float) -> None:
    for name, amount in amounts.items():
        if not 0 < amount < math.inf:
            raise UsageError(f"{name} is {amount}", where=name, expected="a number above 0")
