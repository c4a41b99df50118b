"""How much longer a clip takes beside one busy process.

    python benchmarks/busy_cpu.py
    python benchmarks/busy_cpu.py --rounds 5 --policy active    # what OpenMP does by itself

`baton generate` makes a clip of nano, alone and beside a process that computes without a pause, in turns. The fastest of each
are compared, so that other load of the machine counts little.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path


COMMAND = ("-m", "baton_diffusers.cli", "generate", "A red ball on the left bounces twice.", "-o")


def seconds(policy: str | None) -> float:
    """Seconds that the clip of one command takes, without the start of the process."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    environment |= {} if policy is None else {"OMP_WAIT_POLICY": policy}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *COMMAND, str(Path(folder) / "clip.mp4")]
        printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    return float(re.search(r"generated in ([\d.]+) s", printed)[1])


def main() -> None:
    """Measures, and prints one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="clips of each kind")
    parser.add_argument(
        "--policy", choices=("active", "passive"), help="OMP_WAIT_POLICY; default: the command line's own"
    )
    arguments = parser.parse_args()
    alone, beside = [], []
    for _ in range(arguments.rounds):
        alone.append(seconds(arguments.policy))
        busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        try:
            beside.append(seconds(arguments.policy))
        finally:
            busy.kill()
            busy.wait()
    load = os.getloadavg()[0]
    print(
        f"alone {min(alone):.1f} s, beside a busy process {min(beside):.1f} s: {min(beside) / min(alone):.2f} times as long "
        f"({os.cpu_count()} cores, load {load:.1f})"
    )


if __name__ == "__main__":
    main()
