"""Ten seconds of mutated crawls and pages; MICKLE_FUZZ_SECONDS asks for more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_mutated_files_and_pages_never_crash_and_their_counts_add_up() -> None:
    seconds = os.environ.get("MICKLE_FUZZ_SECONDS", "10")
    command = [sys.executable, str(Path(__file__).parent / "fuzz_pages.py"), "--seconds", seconds]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "'records': " in done.stdout
