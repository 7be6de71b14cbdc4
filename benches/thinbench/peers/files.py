"""Files under loop devices: on the backing itself, and reflinked ones on XFS and btrfs."""

import fcntl

from ..jobs import MIB, Target
from ..world import loop_device, mounted, run as execute, sparse
from .base import EMPTY, FILLED, SNAPSHOT, Side

FICLONE = 0x40049409


def clone(source, to):
    """A reflinked copy."""
    with open(source, "rb") as old, open(to, "wb") as new:
        fcntl.ioctl(new, FICLONE, old.fileno())


class PlainLoop(Side):
    name = "loop"
    words = "loop device (direct I/O) on a file: the limit"

    def start(self, stack, run, data, state):
        target = Target(path=stack.enter_context(loop_device(sparse(data / "disk", self.size))))
        if state == FILLED:
            self.fill(target, run)
        return target


class Reflink(Side):
    """A file on a file system that shares blocks; the file system stands on a loop device on the backing."""

    kind = ""
    states = (EMPTY, FILLED, SNAPSHOT)

    def file_system(self, stack, run, data):
        """The file system, mounted."""
        image = sparse(data / "image", 3 * self.size + 512 * MIB)
        lower = stack.enter_context(loop_device(image))
        execute(f"mkfs.{self.kind}", "-q", lower)
        return stack.enter_context(mounted(lower, self.kind, run / "mount"))

    def filled_file(self, run, where):
        """A file of the side's size, written through a loop device."""
        disk = sparse(where / "disk", self.size)
        with loop_device(disk) as node:
            self.fill(Target(path=node), run)
        return disk

    def start(self, stack, run, data, state):
        where = self.file_system(stack, run, data)
        if state == EMPTY:
            disk = sparse(where / "disk", self.size)
        else:
            disk = self.filled_file(run, where)
        if state == SNAPSHOT:
            clone(disk, where / "clone")
            disk = where / "clone"
        return Target(path=stack.enter_context(loop_device(disk)))


class Xfs(Reflink):
    name = "xfs reflink"
    words = "file on XFS (reflink) on a loop device, and a loop device on the file, both direct I/O"
    kind = "xfs"


class Btrfs(Reflink):
    name = "btrfs reflink"
    words = "file on btrfs on a loop device, and a loop device on the file, both direct I/O"
    kind = "btrfs"


SIDES = [PlainLoop, Xfs, Btrfs]
