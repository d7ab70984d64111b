"""One function over many items, results in the order of the items: threads here, or a Ray cluster.

On a cluster the work goes through Ray Data (the extra ``cluster``), which schedules, retries and balances it. The
nodes must see the working folder under the same path: functions leave what they make there, and answer small things.
"""

from __future__ import annotations

import logging
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from mickle import errors
from mickle.errors import MickleError, UsageError, first_line

T = TypeVar("T")
R = TypeVar("R")
CONNECT_SECONDS = 5.0
AHEAD = 2  # items in flight per thread


def each(work: Callable[[T], R], items: Sequence[T], workers: int = 1, ray: str = "") -> Iterator[R]:
    """``work(item)`` for every item, in order. ``workers`` threads, or the cluster at address ``ray``.

    What ``work`` raises is raised here, and ends the rest.
    """
    if ray:
        yield from _on_ray(work, items, ray)
        return
    with ThreadPoolExecutor(workers) as pool:
        try:
            for begun in taken_ahead((pool.submit(work, item) for item in items), AHEAD * workers):
                yield begun.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def taken_ahead(items: Iterable[T], count: int) -> Iterator[T]:
    """The same items, of which so many more have been taken than are given out."""
    waiting: deque[T] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > count:
            yield waiting.popleft()
    yield from waiting


def connect(address: str) -> None:
    """Joins the cluster. :class:`UsageError` where Ray is missing or nobody answers."""
    try:
        import ray
    except ImportError:
        raise UsageError("Ray is not installed", todo="pip install 'mickle[cluster]'") from None
    if ray.is_initialized():
        return
    try:
        _knock(address)
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"no Ray cluster answers: {first_line(error)}", where=f"--ray {address}",
            expected="'auto' on a node of a cluster, HOST:PORT, or 'local' for one started here",
        ) from None  # fmt: skip


def _knock(address: str) -> None:
    """``OSError`` where nobody listens at HOST:PORT: Ray itself would try for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()


def _on_ray(work: Callable[[T], R], items: Sequence[T], address: str) -> Iterator[R]:
    connect(address)
    import ray
    from ray.data import DataContext

    if not items:
        return
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    logging.getLogger("ray.data").setLevel(logging.ERROR)

    def row(batch: dict[str, Any]) -> dict[str, Any]:
        # A failure comes back as data: Ray would wrap the exception in others of its own.
        results, failures = [], []
        for number in batch["number"]:
            try:
                results.append(work(items[int(number)]))
                failures.append("")
            except MickleError as error:
                results.append(None)  # type: ignore[arg-type]
                failures.append(errors.written(error))
        return {"result": results, "failure": failures}

    numbers = [{"number": number} for number in range(len(items))]
    data = ray.data.from_items(numbers, override_num_blocks=len(items)).map_batches(row, batch_size=1)
    for found in data.iter_rows():
        if found["failure"]:
            raise errors.read(found["failure"])
        yield found["result"]
