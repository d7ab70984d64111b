"""What tests of the studies of compressed weights share; sentinels.py can be imported by tests here."""

import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parents[1] / "regression"))  # for `gaussian_theory`


@pytest.fixture
def tiny_bases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache home of its own, and a corpus of a few modules, so that a tiny base takes seconds to make."""
    from mickle.data.records import Page, write_shards
    from mickle.storage import write_folder
    from mickle.studies import base_model, spqr

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    texts = [f"def function_{i}(x, y):\n    return x * {i} + y ** {i % 7}\n" * 12 for i in range(40)]
    pages = [Page(f"module_{i}", "sources", "", text) for i, text in enumerate(texts)]
    with write_folder(tmp_path / "corpus", kind="corpus") as folder:
        write_shards(pages[:32], folder / "pages", Page)
        write_shards(pages[32:], folder / base_model.HELDOUT, Page)
    monkeypatch.setattr(base_model, "corpus_folder", lambda: tmp_path / "corpus")
    monkeypatch.setattr(spqr, "corpus_folder", lambda: tmp_path / "corpus")
    tiny = base_model.Base("tiny", 40_000, 270, 32, 256, 12, 4e-3)
    monkeypatch.setattr(base_model, "all_processors", nullcontext)  # tests have one thread
    base_model.unrounded_nats.cache_clear()
    monkeypatch.setattr(base_model, "TINY", tiny, raising=False)
    return tmp_path
