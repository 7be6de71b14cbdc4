"""What all sides have in common."""

import contextlib
import os

from .. import jobs
from ..world import Failure

EMPTY = "empty"
FILLED = "filled"
SNAPSHOT = "snapshot"


class Side:
    """One way to a disk. `open` gives a `jobs.Target` of `size` bytes in a state:

    empty: nothing was ever written; filled: all of it was; snapshot: it was, and what is written now is shared with a
    snapshot (or is the snapshot), so that a block's first write breaks the sharing.
    """

    name = ""
    # How it is set up, for the table.
    words = ""
    states = (EMPTY, FILLED)
    # Has no storage: what it reads is zeroes.
    hollow = False

    def __init__(self, world, size):
        self.world = world
        self.size = size

    @contextlib.contextmanager
    def open(self, state):
        if state not in self.states:
            raise Failure(f"{self.name} has no {state} state")
        run, data = self.world.fresh(self.name.replace(" ", "-"))
        try:
            with contextlib.ExitStack() as stack:
                yield self.start(stack, run, data, state)
        finally:
            self.world.discard(run, data)

    def start(self, stack, run, data, state):
        """Sets it up; what must end is entered into `stack`."""
        raise NotImplementedError

    def fill(self, target, run):
        """Writes all of it, and looks whether that is there."""
        jobs.fill(target, self.size, run)
        if not self.hollow:
            for offset in (0, self.size // 2, self.size - jobs.BLOCK):
                if not any(read(target, offset, 4096)):
                    raise Failure(f"{self.name}: what was written at {offset} reads as zeroes")

    def check_first_writes(self, count):
        """After `count` first writes; fails if they did not arrive. Sides without such a count trust fio."""


def read(target, offset, length):
    """A few bytes of a target."""
    if target.path:
        with open(target.path, "rb", buffering=0) as file:
            return os.pread(file.fileno(), length, offset)
    handle = connect(target.uri)
    try:
        return bytes(handle.pread(length, offset))
    finally:
        handle.shutdown()


def connect(uri):
    """An NBD connection."""
    # Debian's python3-libnbd; only its own Python has it.
    import nbd  # pylint: disable=import-outside-toplevel

    handle = nbd.NBD()
    handle.connect_uri(uri)
    return handle
