"""All throughput benchmarks of one device, one after the other, each in a process of its own.

    python -m bench.run runs/bench                    on a CPU: at most 15 minutes
    python -m bench.run runs/bench --device cuda      on a GPU: at most 8 minutes

A benchmark that fails does not keep the others from running; the exit status is 1 then. At the end
the tables and the plot of docs/performance.md are made anew.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console

from bench import docs


def commands(folder: Path, device: str) -> list[list[str]]:
    """What to run, without the interpreter."""
    on = [str(folder), "--device", device]
    found = [["bench.pgd", *on], ["bench.aft_epoch", *on], ["bench.sizes", *on]]
    if device != "cpu":
        return [["bench.kernels"], *found]
    if "PBE_DATA" in os.environ:
        found.append(["bench.loading", str(folder)])
    return found


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    console, failed = Console(), []
    if options.device == "cpu" and "PBE_DATA" not in os.environ:
        console.print("bench.loading needs real images: set PBE_DATA. It is left out.")
    for command in commands(options.folder, options.device):
        console.rule(" ".join(command))
        began = time.monotonic()
        if subprocess.run([sys.executable, "-m", *command], check=False).returncode:
            failed.append(command[0])
        console.print(f"{command[0]}: {time.monotonic() - began:,.0f} s")
    docs.main()
    if failed:
        console.print(f"failed: {', '.join(failed)}")
        sys.exit(1)


if __name__ == "__main__":
    main()
