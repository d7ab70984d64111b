"""How long a person waits for help: `mickle --help` and each verb's help, as whole processes.

    python benchmarks/startup.py [--repeats 5]

Prints the median of the wall times and of the processor times (the second does not suffer from other work on the
machine) beside the limits of 0.4 s and 0.8 s, and, for what is over its limit, the imports that cost most. Writes
`benchmarks/results/startup.json`; ends with 1 when a processor time is over its limit.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

RESULT = Path(__file__).parent / "results" / "startup.json"
LIMIT, VERB_LIMIT = 0.4, 0.8  # seconds
RUN = "import sys; from mickle.cli import main; sys.argv[0] = 'mickle'; main()"


def seconds(arguments: list[str], repeats: int) -> tuple[float, float]:
    """Median wall and processor seconds of a whole `mickle` process, after one run that warms the disk cache."""
    walls, processors = [], []
    for _ in range(repeats + 1):
        before, begun = os.times(), time.perf_counter()
        done = subprocess.run([sys.executable, "-c", RUN, *arguments], capture_output=True, text=True)
        walls.append(time.perf_counter() - begun)
        after = os.times()
        processors.append(after.children_user + after.children_system - before.children_user - before.children_system)
        if done.returncode:
            raise SystemExit(f"mickle {' '.join(arguments)} ended with {done.returncode}: {done.stderr[-300:]}")
    return statistics.median(walls[1:]), statistics.median(processors[1:])


def heaviest_imports(arguments: list[str], most: int = 8) -> list[str]:
    """The modules whose import took longest, with what they import themselves: "0.31 s torch"."""
    command = [sys.executable, "-X", "importtime", "-c", RUN, *arguments]
    lines = subprocess.run(command, capture_output=True, text=True).stderr.splitlines()
    times = []
    for line in lines:
        parts = line.removeprefix("import time:").split("|")
        if len(parts) == 3 and parts[1].strip().isdigit():
            times.append((int(parts[1]) / 1e6, parts[2].strip()))
    return [f"{spent:.2f} s {name}" for spent, name in sorted(times, reverse=True)[:most]]


def main() -> int:
    """Time every help, print the table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULT)
    chosen = parser.parse_args()
    from mickle import machine
    from mickle.verbs import STEPS

    rows = []
    print(f"{'command':28} {'wall s':>7} {'cpu s':>7} {'limit':>6}")
    for verb in ["", *STEPS]:
        arguments, limit = [verb, "--help"] if verb else ["--help"], VERB_LIMIT if verb else LIMIT
        wall, processor = seconds(arguments, chosen.repeats)
        command = " ".join(["mickle", *arguments])
        rows.append({"command": command, "wall_seconds": wall, "processor_seconds": processor, "limit": limit})
        print(f"{command:28} {wall:7.2f} {processor:7.2f} {limit:6.1f}{'  over' if processor > limit else ''}")
        if processor > limit:
            print("\n".join(f"    {line}" for line in heaviest_imports(arguments)))
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    result = {"machine": machine.describe(), "repeats": chosen.repeats, "rows": rows}
    chosen.out.write_text(json.dumps(result, indent=2) + "\n")
    return int(any(row["processor_seconds"] > row["limit"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
