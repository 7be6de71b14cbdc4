#!/usr/bin/python3
"""`make bench`: measures thinmap beside its peers, by turns in one run, and writes a table, its data and pictures.

Needs root (loop devices, mounts). What it makes is gone when it ends.
"""

import argparse
import fnmatch
import os
import sys
from pathlib import Path

from thinbench import environment, pictures, report
from thinbench.measure import QUICK, Effort, measure_row
from thinbench.peers.thinmap import program
from thinbench.rows import ROWS, TUNING
from thinbench.world import World, interruptible


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--row", default="", help="rows to measure, comma-separated: part of a name, or a pattern with *")
    parser.add_argument("--list", action="store_true", help="print the rows and measure nothing")
    parser.add_argument("--quick", action="store_true", help="two short repeats on less data: to see that it works")
    parser.add_argument("--repeats", type=int, help="repeats of each side")
    parser.add_argument("--seconds", type=float, help="length of a timed job")
    parser.add_argument("--backing", default="/dev/shm", type=Path, help="directory for the data: a tmpfs, or a disk's")
    parser.add_argument("--out", default="target/bench", type=Path, help="directory for table.md, results.json and the pictures")
    return parser.parse_args()


def selected(wanted):
    """Rows of those names. Rows for tuning peers only when they are named."""
    patterns = [pattern.strip() for pattern in wanted.split(",") if pattern.strip()]
    if not patterns:
        return ROWS
    patterns = [pattern if "*" in pattern else f"*{pattern}*" for pattern in patterns]
    return [row for row in [*ROWS, *TUNING] if any(fnmatch.fnmatch(row.name, pattern) for pattern in patterns)]


def main():
    """Runs what was asked for; 0 when nothing failed. A demand that is not met is told, and no failure."""
    options = arguments()
    rows = selected(options.row)
    if options.list or not rows:
        for row in [*ROWS, *TUNING]:
            print(f"{row.name:28} {row.title}")
        return 0 if options.list else 2
    if os.geteuid() != 0:
        print("bench needs root, for loop devices and mounts", file=sys.stderr)
        return 2
    if not program().exists():
        print(f"{program()} is not there: make build, or set THINMAP_BIN", file=sys.stderr)
        return 2
    effort = QUICK if options.quick else Effort()
    changes = {"repeats": options.repeats, "seconds": options.seconds}
    effort = Effort(**{**vars(effort), **{name: value for name, value in changes.items() if value}})
    interruptible()
    results = []
    try:
        with World(options.backing) as world:
            around = environment.look(options.backing)
            environment.touch_memory("/dev/shm")
            for number, row in enumerate(rows, 1):
                print(f"[{number}/{len(rows)}] {row.name}: {row.title}", flush=True)
                results.append(report.Result(row, measure_row(world, row, effort, _tell)))
    except KeyboardInterrupt:
        print("interrupted: what was measured so far is reported", file=sys.stderr)
    if not results:
        return 130
    options.out.mkdir(parents=True, exist_ok=True)
    drawn = pictures.draw(results, options.out)
    text = report.markdown(around, effort, results, drawn)
    (options.out / "table.md").write_text(text, encoding="utf-8")
    report.write_json(options.out / "results.json", around, effort, results)
    print(text)
    print(f"in {options.out}: table.md, results.json, {len(drawn)} pictures")
    failed = any(figure.error for result in results for figure in result.figures)
    return 1 if failed or len(results) < len(rows) else 0


def _tell(text):
    print(f"    {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
