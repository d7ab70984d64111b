"""Puts `one_solve` and `gaussian_theory` (what the closed forms are held to) where these tests can import them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
