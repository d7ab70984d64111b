"""Mickle: more model from less. Every verb of the command line is a function here with the same name.

>>> import mickle
>>> corpus = mickle.curate(source={"kind": "files", "path": "pages"}, out="corpus")    # doctest: +SKIP
>>> model = mickle.pretrain(data=corpus, size="tiny", out="model")                     # doctest: +SKIP
"""

from __future__ import annotations

import os
from typing import Any

# Threads of a product that wait for each other by spinning take the processor from the one that is waited for: beside
# one other busy process a step takes twice as long (docs/performance.md). libgomp reads it when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """The verbs, made when first asked for, so that importing mickle costs nothing."""
    if name.startswith("_"):
        raise AttributeError(name)
    verbs = _verbs()
    if name not in verbs.STEPS:
        raise AttributeError(f"module 'mickle' has no attribute '{name}'")
    return verbs.function(name)


def __dir__() -> list[str]:
    """The verbs beside what stands here."""
    return sorted({*globals(), *_verbs().STEPS})


def _verbs() -> Any:
    import importlib

    return importlib.import_module("mickle.verbs")  # `from mickle import verbs` would ask `__getattr__` again
