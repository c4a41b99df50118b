"""Tests of the recipes that nano alone needs; they import one another by name, as their scripts do."""

import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "nano"))
