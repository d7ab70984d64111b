"""Networks of one hidden layer on scikit-learn's digits with noisy labels: data, training, choice of a setting."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch.nn.functional import one_hot

from mickle.regression.networks import fresh_networks, losses, train_networks


@cache
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """scikit-learn's digits: 1797 images of 8 x 8 [n, 64], centred, of variance 1 on average; labels [n]."""
    images, labels = load_digits(return_X_y=True)
    images = (images - images.mean(0)) / images.std()
    return torch.tensor(images, dtype=torch.float32), torch.tensor(labels)


def digits_split(values: Any, seed: int, rows: int) -> dict[str, torch.Tensor]:
    """A replicate's training, validation and test rows. Training and validation labels are noisy, tests are not."""
    images, labels = digits()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=generator)
    noisy = labels.clone()
    wrong = torch.rand(len(labels), generator=generator) < values["label_noise"]
    noisy[wrong] = torch.randint(10, (int(wrong.sum()),), generator=generator)
    tests, validation = values["test_rows"], values["validation_rows"]
    test, valid, train = order[:tests], order[tests:][:validation], order[tests + validation :][:rows]
    return {
        "inputs": images[train], "targets": one_hot(noisy[train], 10).float(),
        "valid_inputs": images[valid], "valid_targets": one_hot(noisy[valid], 10).float(),
        "test_inputs": images[test], "test_targets": one_hot(labels[test], 10).float(),
    }  # fmt: skip


def train_nets(arm: str, values: Mapping[str, Any], seed: int, width: int, rows: int) -> list[tuple[float, float]]:
    """All replicates and all of the arm's settings of one shape at once; (test error, setting) of each replicate."""
    count = values["net_replicates"]
    tried = {"none": (0.0,), "half": (0.5,), "ridge": values["decays"]}.get(arm, values["net_rates"])
    splits = [digits_split(values, seed * 1000 + replicate, rows) for replicate in range(count)]
    data = {
        name: torch.stack([split[name] for split in splits for _ in tried]).to(values["device"]) for name in splits[0]
    }
    seeds = [seed * 1000 + replicate for replicate in range(count) for _ in tried]
    networks = fresh_networks(seeds, 64, width, 10, values["device"])
    settings = list(tried) * count
    plain = [0.0] * len(settings)
    train_networks(
        networks, data["inputs"], data["targets"], plain if arm == "ridge" else settings,
        steps=values["net_steps"], learning_rate=values["net_learning_rate"],
        decays=settings if arm == "ridge" else plain, seed=seed,
    )  # fmt: skip
    with torch.no_grad():
        squares = {
            name: losses(networks(data[f"{name}_inputs"]), data[f"{name}_targets"]).view(count, -1).cpu()
            for name in ("valid", "test")
        }
    places = (squares["test"] if arm == "oracle" else squares["valid"]).argmin(1)
    return [(float(squares["test"][row, place]), float(tried[int(place)])) for row, place in enumerate(places)]
