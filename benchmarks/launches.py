"""Launch the DDP example again and again under torchrun, and count the launches that do not exit 0.

    python benchmarks/launches.py [--launches 20] [--method "power_sgd(rank=2)"]

A process group that is not left in order aborts at the interpreter's exit, now and then, after all work is done.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[1] / "examples" / "ddp_digits.py"


def main() -> None:
    """Print one line per launch and the count."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--launches", type=int, default=20)
    parser.add_argument("--method", default="power_sgd(rank=2)")
    options = parser.parse_args()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(EXAMPLE), "--steps", "6", "--method", options.method]
    failed = 0
    for launch in range(1, options.launches + 1):
        code = subprocess.run(command, capture_output=True, check=False).returncode
        failed += code != 0
        print(f"launch {launch}: exit {code}", flush=True)
    print(f"{failed} of {options.launches} launches failed")


if __name__ == "__main__":
    main()
