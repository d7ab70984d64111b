"""Sophia's state from and to two other implementations: a run that changes sides goes on as it would have there.

Liuhong99/Sophia (the authors') keeps ``exp_avg``, ``step`` and ``hessian`` = h / B, and multiplies by B at
every step; its ``rho`` is gamma. ``pytorch_optimizer.SophiaH`` keeps ``momentum`` and ``hessian_moment`` = h,
counts steps by group, and writes the update as lr' clip(m / max(h, eps'), p): lr' = lr / gamma, p = gamma,
eps' = eps / gamma, and weight decay times gamma, since it is multiplied by lr'.

Each function takes and returns plain ``state_dict()`` values; tensors are new ones. Loading needs a Sophia of
the same parameters, which gives the settings that the other side does not store.
"""

from typing import Any

import torch

from mickle.errors import UsageError
from mickle.training.sophia import Sophia

State = dict[str, Any]


def to_authors(optimizer: Sophia, tokens: int) -> State:
    """The state as the authors' SophiaG would hold it with ``bs=tokens``, the loss terms of one step."""
    return _converted(
        optimizer,
        state=lambda own, group: {
            "step": own["step"].clone(),
            "exp_avg": own["momentum"].clone(),
            "hessian": own["curvature"] / tokens,
        },
        group=lambda own: {
            "lr": own["lr"], "betas": own["betas"], "rho": own["gamma"], "weight_decay": own["weight_decay"],
            "maximize": False, "capturable": False,
        },
    )  # fmt: skip


def from_authors(optimizer: Sophia, state_dict: State, tokens: int) -> State:
    """What ``optimizer.load_state_dict`` takes to go on from the authors' SophiaG run with ``bs=tokens``."""
    return _adopted(
        optimizer,
        state_dict,
        state=lambda theirs, group: (theirs["exp_avg"], theirs["hessian"] * tokens, float(theirs["step"])),
        group=lambda theirs: (
            {name: theirs[name] for name in ("lr", "betas", "weight_decay")} | {"gamma": theirs["rho"]}
        ),
    )


def to_pytorch_optimizer(optimizer: Sophia) -> State:
    """The state as ``pytorch_optimizer.SophiaH`` would hold it."""
    return _converted(
        optimizer,
        state=lambda own, group: {
            "momentum": own["momentum"].clone(), "hessian_moment": own["curvature"].clone(),
        },
        group=lambda own: {
            "lr": own["lr"] / own["gamma"], "betas": own["betas"],
            "p": own["gamma"], "eps": own["eps"] / own["gamma"],
            "weight_decay": own["weight_decay"] * own["gamma"], "weight_decouple": True, "fixed_decay": False,
            "foreach": None, "step": own["steps"],
        },
    )  # fmt: skip


def from_pytorch_optimizer(optimizer: Sophia, state_dict: State) -> State:
    """What ``optimizer.load_state_dict`` takes to go on from a ``pytorch_optimizer.SophiaH`` run."""
    if any(not group["weight_decouple"] or group["fixed_decay"] for group in state_dict["param_groups"]):
        raise UsageError(
            "This SophiaH run did not decay its weights in the decoupled way",
            expected="weight_decouple=True and fixed_decay=False",
        )
    return _adopted(
        optimizer,
        state_dict,
        state=lambda theirs, group: (theirs["momentum"], theirs["hessian_moment"], float(group["step"])),
        group=lambda theirs: {
            "lr": theirs["lr"] * theirs["p"], "betas": theirs["betas"], "gamma": theirs["p"],
            "eps": theirs["eps"] * theirs["p"], "weight_decay": theirs["weight_decay"] / theirs["p"],
        },
    )  # fmt: skip


def _converted(optimizer: Sophia, *, state: Any, group: Any) -> State:
    """The optimizer's state dictionary with every state and group translated."""
    if any(own["bias_correction"] for own in optimizer.param_groups):
        raise UsageError("The other implementation has no bias correction", expected="a run with bias_correction=False")
    own_state = optimizer.state_dict()
    groups = [{**group(own), "params": own["params"]} for own in own_state["param_groups"]]
    group_of = {key: own for own in groups for key in own["params"]}
    return {
        "state": {key: state(own, group_of[key]) for key, own in own_state["state"].items()},
        "param_groups": groups,
    }


def _adopted(optimizer: Sophia, state_dict: State, *, state: Any, group: Any) -> State:
    """Their state dictionary as ours. How often h was refreshed is not stored there; it follows from the steps."""
    groups, states = [], {}
    for own, theirs in zip(optimizer.state_dict()["param_groups"], state_dict["param_groups"], strict=True):
        steps = 0.0
        for key in (key for key in theirs["params"] if key in state_dict["state"]):
            momentum, curvature, step = state(state_dict["state"][key], theirs)
            states[key] = {
                "step": torch.tensor(step),
                "refreshes": torch.tensor(float(-(-step // optimizer.every))),
                "momentum": momentum.clone(),
                "curvature": curvature.clone(),
            }
            steps = max(steps, step)
        groups.append({**own, **group(theirs), "params": theirs["params"], "steps": int(steps)})
    return {"state": states, "param_groups": groups}
