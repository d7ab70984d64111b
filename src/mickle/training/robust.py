"""How DoReMi's weights move (arXiv 2305.10429; the equations stand in ``doremi.py``): settings that import no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mickle.config import Config

Score = Literal["excess", "hardest", "easiest"]


class RobustRule(Config):
    """How the proxy's weights move; the defaults are the paper's.

    ``score``: what counts as worst; the other two are the paper's controls (section 4). ``excess``: max(l_proxy -
    l_reference, 0). ``hardest``: l_proxy. ``easiest``: -l_reference.
    """

    eta: float = Field(1.0, gt=0, le=100, description="step size of the weights, on excess in nats")
    smoothing: float = Field(1e-3, ge=0, lt=1, description="share of the uniform distribution in every step (c)")
    score: Score = Field(
        "excess",
        description="what makes a domain hard: excess over the reference's loss; hardest and easiest are controls",
    )
    loss: Literal["token", "domain_mean"] = Field(
        "token", description="weights on tokens (the authors' code) or on each domain's mean (their equation)"
    )
    unseen: Literal["keep", "last"] = Field(
        "keep", description="a domain that a batch lacks: its weight stays, or its last excess counts again"
    )
    sampling: Literal["uniform", "reference"] = Field(
        "uniform", description="how the proxy's batches are drawn; its loss is corrected for it"
    )
    burn_in: float = Field(
        0.0, ge=0, lt=1, description="share of first steps left out of the mean (ours; the paper has 0)"
    )
