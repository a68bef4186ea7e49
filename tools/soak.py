"""Injects faults into small runs, and compares what is left with runs to which nothing happened.

    python tools/soak.py signals --tries 50         SIGTERM, SIGINT, SIGUSR1 and SIGHUP at random moments
    python tools/soak.py kills --tries 100          SIGKILL at random moments
    python tools/soak.py operations                 SIGKILL before a file operation of each kind
    python tools/soak.py damage --tries 200         flipped bits; files that are cut, emptied or deleted
    python tools/soak.py divergence --tries 34      rates that nothing withstands
    python tools/soak.py data                       data, manifests, recipes and tables with faults
    python tools/soak.py disk --sizes 20            disks that become full; as root, on Linux
    python tools/soak.py readers --tries 500        models that are read while their run trains
    python tools/soak.py long --steps 10000         memory, open files and threads of a long training
    python tools/soak.py requests                   the same of a server that has 20,000 requests

A line of figures goes to stdout, and below it a line for each problem: something was lost, left behind or
silently wrong, or ended in another way than it should. The exit code is then 1.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import tyro
from soak_data import Data
from soak_faults import Damage, Divergence
from soak_long import Long
from soak_operations import Operations
from soak_processes import Disk, Kills, Readers, Signals
from soak_requests import Requests

Fault = Signals | Kills | Operations | Damage | Divergence | Data | Disk | Readers | Long | Requests


def main(args: Fault) -> None:
    """Run all tries and print what came out."""
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    try:
        figures, problems = args.run(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{figures}; {len(problems)} problems")
    print(*problems, sep="\n", end="\n" * bool(problems))
    sys.exit(bool(problems))


if __name__ == "__main__":
    main(tyro.cli(Fault))
