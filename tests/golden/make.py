"""Write the golden files from the code that is installed: ``python -m tests.golden.make``.

They hold what the library answered before it was rewritten; make them anew only where an answer is
meant to change.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.golden import cases

HERE = Path(__file__).parent


def main() -> None:
    """Measure everything, and write it."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {"exits": {}, "training": {}}
    outputs = {}
    for name in cases.MODELS:
        measured = cases.exits(name)
        found["exits"][name] = {policy: steps for policy, (steps, _) in measured.items()}
        outputs |= {
            f"{name}.{policy}": values.contiguous() for policy, (_, values) in measured.items()
        }
        found["training"][name] = cases.training(name)
    found["certificates"] = cases.certificates()
    found["distributions"] = cases.distributions()
    (HERE / "golden.json").write_text(json.dumps(found, indent=1) + "\n")
    save_file(outputs, HERE / "outputs.safetensors")


if __name__ == "__main__":
    main()
