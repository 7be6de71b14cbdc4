"""Runs a row: its sides by turns, each as often as wanted; what fails is told in its place and does not end the run."""

import contextlib
import statistics
from dataclasses import asdict, dataclass, field

from . import cases
from .jobs import BLOCK, MIB, run_job
from .peers import SIDES
from .peers.base import FILLED
from .rows import CaseRow
from .world import Failure, cpu_seconds


@dataclass(frozen=True)
class Effort:
    """How much is done for a figure."""

    repeats: int = 5
    seconds: float = 3
    volume: int = 1 << 30
    # Requests of a listed job; each of a first write's takes a block of 64 KiB.
    requests: int = 16384


QUICK = Effort(repeats=2, seconds=1, volume=256 * MIB, requests=2048)


@dataclass
class Figures:
    """One side of a row."""

    side: str
    words: str
    values: list = field(default_factory=list)
    # Processor time of the server for each request, in µs, and what the clients used, in % of one processor.
    server_us: list = field(default_factory=list)
    client_cpu: list = field(default_factory=list)
    error: str = ""

    @property
    def median(self):
        return statistics.median(self.values) if self.values else None

    @property
    def spread(self):
        """From the least to the most, in parts of the median."""
        if not self.values or not self.median:
            return None
        return (max(self.values) - min(self.values)) / self.median

    def as_dict(self):
        return {**asdict(self), "median": self.median, "spread": self.spread}


def measure_row(world, row, effort, tell):
    """Figures of all sides of a row."""
    figures = [Figures(side, _words(row, side)) for side in row.sides]
    begin = _Cases if isinstance(row, CaseRow) else _Sides
    with contextlib.ExitStack() as stack:
        sides = begin(world, row, effort, stack)
        for turn in range(effort.repeats):
            # Another side begins each time, so that none always follows the same one.
            for step in range(len(figures)):
                figure = figures[(turn + step) % len(figures)]
                if figure.error:
                    continue
                try:
                    sides.measure(figure)
                    tell(f"{row.name}: {figure.side}: {figure.values[-1]:.4g} {row.unit[0]}")
                except (Failure, OSError, KeyError, ValueError) as error:
                    figure.error = " ".join(str(error).split())
                    figure.values.clear()
                    tell(f"{row.name}: {figure.side}: FAILED: {figure.error}")
    return figures


def _words(row, side):
    return SIDES[side].words if side in SIDES and not isinstance(row, CaseRow) else ""


class _Sides:
    """fio on each side. Sides whose disks are only filled stay open through the row; others are made anew each time."""

    def __init__(self, world, row, effort, stack):
        self.world, self.row, self.effort, self.stack = world, row, effort, stack
        self.volume = effort.volume
        if row.job.listed == "first":
            # Twice as many blocks as writes, so that not every block is written.
            self.volume = max(2 * effort.requests * BLOCK, 64 * MIB)
        self.opened = {}
        self.stays = row.state == FILLED and row.job.rw != "randtrim"

    def measure(self, figure):
        if self.stays:
            if figure.side not in self.opened:
                self.opened[figure.side] = self._open(self.stack, figure.side)
            return self._run(figure, *self.opened[figure.side])
        with contextlib.ExitStack() as stack:
            return self._run(figure, *self._open(stack, figure.side))

    def _open(self, stack, name):
        side = SIDES[name](self.world, self.volume)
        return side, stack.enter_context(side.open(self.row.state))

    def _run(self, figure, side, target):
        job, effort = self.row.job, self.effort
        before = cpu_seconds(target.pids)
        outcome = run_job(job, target, self.volume, self.world.run, effort.seconds, effort.requests)
        used = cpu_seconds(target.pids) - before
        if job.listed == "first":
            side.check_first_writes(effort.requests)
        value = {"IOPS": outcome.iops, "MiB/s": outcome.mib_s, "µs": outcome.lat_us}[self.row.unit[0]]
        figure.values.append(value)
        figure.client_cpu.append(outcome.client_cpu)
        if target.pids:
            figure.server_us.append(used * 1e6 / outcome.requests)


class _Cases:
    """Commands, timed."""

    def __init__(self, world, row, _effort, stack):
        self.world, self.stack = world, stack
        self.make = cases.CASES[row.measure]
        self.opened = {}

    def measure(self, figure):
        if figure.side not in self.opened:
            self.opened[figure.side] = self.stack.enter_context(self.make(self.world, figure.side))
        figure.values.append(self.opened[figure.side]())
