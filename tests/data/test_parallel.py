"""Order, failures and a real Ray cluster of two nodes: the same corpus row for row."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import small_web as web

from mickle import storage
from mickle.config import validate
from mickle.data.curate import Curate
from mickle.data.parallel import each
from mickle.data.records import read_corpus, read_removed
from mickle.data.warc import write_warc
from mickle.errors import UsageError
from mickle.events import ignore
from mickle.step import execute


def slow_first(number: int) -> int:
    time.sleep(0.02 if number == 0 else 0.0)
    return number * number


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_order(workers: int) -> None:
    assert list(each(slow_first, range(20), workers)) == [n * n for n in range(20)]
    assert list(each(slow_first, [], workers)) == []


def test_a_failure_is_raised_and_ends_the_rest() -> None:
    begun = []

    def work(number: int) -> int:
        begun.append(number)
        if number == 3:
            raise UsageError("the third is bad")
        return number

    with pytest.raises(UsageError, match="third"):
        list(each(work, range(1000), 2))
    assert len(begun) < 20


def test_leaving_early_ends_the_threads() -> None:
    before = threading.active_count()
    results = each(slow_first, range(1000), 4)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Two nodes on this machine, each with one core."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.add_node(num_cpus=1)
    yield made.address
    import ray

    ray.shutdown()
    made.shutdown()


def test_a_cluster_of_two_nodes_gives_the_same_corpus_row_for_row(cluster: str, tmp_path: Path) -> None:
    import ray

    pages = web.pages(24)
    for part in range(4):
        chosen = [(url, content) for url, content, _ in pages[part::4]]
        (tmp_path / "crawl").mkdir(exist_ok=True)
        write_warc(tmp_path / "crawl" / f"{part}.warc.gz", chosen)
    settings = {"source": {"kind": "warc", "path": str(tmp_path / "crawl")}}
    local = execute(validate(Curate, {**settings, "workers": 2}), tmp_path / "local", ignore)
    spread = execute(validate(Curate, {**settings, "ray": cluster}), tmp_path / "spread", ignore)
    assert len([node for node in ray.nodes() if node["Alive"]]) == 2
    assert list(read_corpus(spread)) == list(read_corpus(local))
    assert list(read_removed(spread)) == list(read_removed(local))
    for name in ("card.json", "pages/00000.parquet", "removed/00000.parquet"):
        assert (spread / name).read_bytes() == (local / name).read_bytes()
    assert storage.open_folder(spread).digest == storage.open_folder(local).digest


def test_bad_input_on_a_cluster_is_the_same_sentence(cluster: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": 1}\n' * 5)
    step = validate(Curate, {"source": {"kind": "rows", "path": str(tmp_path / "a.jsonl")}, "ray": cluster})
    with pytest.raises(UsageError, match="5 of 5 rows are bad"):
        execute(step, tmp_path / "out", ignore)


def test_a_cluster_that_is_not_there_is_one_sentence() -> None:
    """In a process of its own: one that has joined a cluster asks for no other."""
    code = (
        "from mickle.data.parallel import each\n"
        "from mickle.errors import UsageError\n"
        "try: list(each(str, [1], ray='127.0.0.1:1'))\n"
        "except UsageError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("no Ray cluster answers: "), done.stdout + done.stderr
    assert "where: --ray 127.0.0.1:1" in done.stdout
