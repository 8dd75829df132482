"""`python -m benchmarks.gallery [FOLDER] [NAME …]` draws the figures of README and documentation, into docs/figures."""

import sys
from pathlib import Path

from benchmarks.gallery.drawing import FIGURES, draw

folder, *names = sys.argv[1:] or [str(Path(__file__).parents[2] / "docs" / "figures")]
for path in draw(Path(folder), names or tuple(FIGURES)):
    print(path)
