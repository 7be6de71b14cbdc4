"""Snapshots of any device (targets snapshot-origin and snapshot): what they cost the origin's writes. NBD only."""

from ..jobs import MIB
from ..world import Failure, sparse
from .base import EMPTY, FILLED, Side
from .thinmap import SECTOR, Daemon

CHUNK_SECTORS = 8


class Origin(Side):
    """The device alone: a linear volume on a file, filled."""

    name = "linear"
    words = "thinmap, a linear volume on a filled file, NBD only"
    states = (EMPTY, FILLED)

    def start(self, stack, run, data, state):
        # Its pool is not used.
        self.daemon = daemon = Daemon(stack, run, data, MIB, nbd_only=True)
        self.base = sparse(data / "base", self.size)
        daemon.control.create("base", self.size // SECTOR, f"linear {self.base} 0")
        self.fill(daemon.target("base", "nbd"), run)
        self.before = 0
        name = self.mapped(daemon, data)
        if state == FILLED and name != "base":
            # Every chunk is copied by this.
            self.fill(daemon.target(name, "nbd"), run)
        return daemon.target(name, "nbd")

    def mapped(self, daemon, data):
        """What is measured."""
        return "base"


class OriginWithSnapshot(Origin):
    """Under a snapshot with chunks of 4 KiB. empty: nothing was copied yet; filled: all was."""

    name = "origin"
    words = "thinmap, snapshot-origin with a persistent snapshot of 4 KiB chunks, NBD only; filled: every chunk was copied before"

    def mapped(self, daemon, data):
        cow = sparse(data / "cow", self.size + self.size // 4)
        sectors = self.size // SECTOR
        daemon.control.create("origin", sectors, f"snapshot-origin {self.base}")
        daemon.control.create("snapshot", sectors, f"snapshot {self.base} {cow} P {CHUNK_SECTORS}")
        self.before = self._used()
        return "origin"

    def _used(self):
        return int(self.daemon.control.status("snapshot")[0].split("/")[0])

    def check_first_writes(self, count):
        used = (self._used() - self.before) // CHUNK_SECTORS
        if used < count:
            raise Failure(f"{count} first writes have made {used} exceptions")


SIDES = [Origin, OriginWithSnapshot]
