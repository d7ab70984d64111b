"""Where a benchmark's figures come from: machine, versions, commit, command and date."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from mickle import machine


def provenance(script: str) -> dict[str, Any]:
    """What a result names beside its figures; ``script`` is the benchmark's ``__file__``."""
    path = Path(script)
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=path.parent)
    return {
        "machine": machine.describe(),
        "commit": done.stdout.strip(),
        "command": " ".join(["python", f"benchmarks/{path.name}", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
    }
