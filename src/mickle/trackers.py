"""Where a run can be watched: TensorBoard, Weights & Biases and trackio, each where it is installed and asked for.

All of them write into a folder on this machine and send nothing: W&B runs offline whatever its environment says,
trackio without a Space or a server, neither reports errors or load. To send a run is their own command.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

from mickle.errors import UsageError
from mickle.events import Evaluated, Event, Started, Trained

Run = tuple[Callable[[dict[str, float], int], Any], Callable[[], Any]]  # writes the figures of a step; ends the run
PROJECT = "mickle"
SENDING = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_BUCKET_ID", "TRACKIO_WEBHOOK_URL")  # what trackio obeys


class Tracker:
    """A reader of events that writes each training as a run of the tracker ``name`` (``TRACKERS``) into ``folder``.

    UsageError where the tracker is not installed.
    """

    def __init__(self, name: str, folder: Path) -> None:
        if importlib.util.find_spec(name) is None:
            raise UsageError(f"{name} is not installed", todo=f"pip install 'mickle[{name}]', or leave --{name} out")
        self._begin = partial(TRACKERS[name][0], folder)
        self._run: Run | None = None

    def __call__(self, event: Event) -> None:
        if isinstance(event, Started) and event.what == "training":
            self.close()
        if isinstance(event, (Trained, Evaluated)):
            self._run = self._run or self._begin()
            self._run[0](figures_of(event), event.step)

    def close(self) -> None:
        """End the open run."""
        if self._run is not None:
            self._run[1]()
        self._run = None


def figures_of(event: Trained | Evaluated) -> dict[str, float]:
    """The figures of a step by the names they have in every tracker: train/loss, heldout/..."""
    if isinstance(event, Evaluated):
        return {f"heldout/{name}": value for name, value in event.values.items()}
    told = {name: getattr(event, name) for name in ("loss", "learning_rate", "gradient_norm")} | event.extra
    return {f"train/{name}": value for name, value in told.items()}


def tensorboard(folder: Path) -> Run:
    """Scalars for TensorBoard."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder))
    return lambda figures, step: [writer.add_scalar(name, value, step) for name, value in figures.items()], writer.close


def wandb(folder: Path) -> Run:
    """A run of Weights & Biases, offline; ``wandb sync`` sends it."""
    os.environ["WANDB_ERROR_REPORTING"] = "false"  # read when it is imported
    import wandb

    folder.mkdir(parents=True, exist_ok=True)
    quiet = wandb.Settings(console="off", silent=True, disable_git=True, disable_code=True, x_disable_stats=True)
    run = wandb.init(project=PROJECT, dir=str(folder), mode="offline", settings=quiet)
    run.define_metric("*", step_metric="step")  # its own count only grows; a run that goes back would lose figures
    return lambda figures, step: run.log(figures | {"step": step}), run.finish


def trackio(folder: Path) -> Run:
    """A run of trackio in a local database; ``trackio show`` draws it."""
    os.environ["TRACKIO_DIR"] = str(folder.resolve())  # read when it is imported
    for name in SENDING:
        os.environ.pop(name, None)
    import trackio

    with redirect_stdout(StringIO()):  # what it says of uploads is not so here
        run = trackio.init(project=PROJECT, embed=False, auto_log_gpu=False, auto_log_cpu=False)

    def close() -> None:
        with redirect_stdout(StringIO()):
            trackio.finish()

    return lambda figures, step: run.log(figures, step=step), close


TRACKERS: dict[str, tuple[Callable[[Path], Run], str]] = {
    "tensorboard": (tensorboard, "also write TensorBoard scalars there"),
    "wandb": (wandb, "also write a W&B run there, offline: nothing is sent"),
    "trackio": (trackio, "also write a trackio run there: nothing is sent"),
}
