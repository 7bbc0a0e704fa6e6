"""The small models and data of `toys.py`, importable by all tests of this folder."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
