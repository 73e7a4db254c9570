"""Measure one part: python benchmarks/gpu PART [options]; see README.md in this folder."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gpu.command import main

if __name__ == "__main__":
    sys.exit(main())
