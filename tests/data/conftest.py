"""Lets the tests of this folder import the small web they share, and the articles that extraction is measured on."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
