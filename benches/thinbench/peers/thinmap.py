"""thinmap itself: a daemon of its own, one pool of 64 KiB blocks in two files on the backing."""

import contextlib
import os
from pathlib import Path

from ..jobs import BLOCK, MIB, Target
from ..thinmap_control import Control
from ..world import Failure, run as run_program, server, sparse, wait_until
from .base import EMPTY, FILLED, SNAPSHOT, Side, connect

SECTOR = 512
NBD_ONLY = "[block_devices]\nenabled = false\n"


def program():
    """The program to measure: THINMAP_BIN, else this tree's release build."""
    built = Path(__file__).resolve().parents[3] / "target/release/thinmap"
    return Path(os.environ.get("THINMAP_BIN", built))


class Daemon:
    """A running daemon with a pool named `pool`. `nbd_only`: no block device is made for each volume."""

    def __init__(self, stack, run, data, data_bytes, metadata_bytes=256 * MIB, nbd_only=False):
        self.run, self.data = run, data
        self.dev = run / "dev"
        self.data_bytes = data_bytes
        self.metadata, self.blocks = data / "metadata", data / "blocks"
        if not self.metadata.exists():
            sparse(self.metadata, metadata_bytes)
        sparse(self.blocks, data_bytes)
        command = [program(), "--run-dir", run / "tm", "--dev-dir", self.dev, "daemon"]
        if nbd_only:
            (run / "thinmap.toml").write_text(NBD_ONLY)
            command += ["--config", run / "thinmap.toml"]
        self.control = None
        process = stack.enter_context(server(command, run / "thinmap.log", self._connected))
        self.pids = (process.pid,)
        stack.callback(self.control.close)

    def _connected(self):
        with contextlib.suppress(OSError):
            self.control = Control(self.run / "tm/control.sock")
        return self.control is not None

    def open_pool(self):
        """The pool, formatted if its metadata is empty."""
        arguments = f"thin-pool {self.metadata} {self.blocks} {BLOCK // SECTOR} 0"
        self.control.create("pool", self.data_bytes // SECTOR, arguments)

    def pool(self, text):
        """A message to the pool."""
        self.control.message("pool", text)

    def volume(self, name, number, size):
        """An active volume of `size` bytes."""
        self.control.create(name, size // SECTOR, f"thin {self.dev}/pool {number}")

    def uri(self, name):
        return f"nbd+unix:///{name}?socket={self.run}/tm/nbd.sock"

    def target(self, name, transport):
        if transport == "nbd":
            return Target(uri=self.uri(name), pids=self.pids)
        return Target(path=f"{self.dev}/{name}", pids=self.pids)


class Thinmap(Side):
    """A thin volume."""

    words = "thin volume, pool of 64 KiB blocks with zeroing, default configuration"
    states = (EMPTY, FILLED, SNAPSHOT)
    transport = "nbd"

    def start(self, stack, run, data, state):
        self.daemon = daemon = Daemon(stack, run, data, 2 * self.size + 64 * MIB)
        daemon.open_pool()
        daemon.pool("create_thin 0")
        daemon.volume("volume", 0, self.size)
        self.measured, self.before = "volume", 0
        if state != EMPTY:
            self.fill(daemon.target("volume", self.transport), run)
        if state == SNAPSHOT:
            daemon.control.suspend("volume")
            daemon.pool("create_snap 1 0")
            daemon.control.resume("volume")
            daemon.volume("snapshot", 1, self.size)
            self.measured = "snapshot"
        self.before = self._used()
        return daemon.target(self.measured, self.transport)

    def _used(self):
        return int(self.daemon.control.status("pool")[2].split("/")[0])

    def check_first_writes(self, count):
        used = self._used() - self.before
        if used != count:
            raise Failure(f"{count} first writes have provisioned {used} blocks")


class ThinmapNbd(Thinmap):
    name = "thinmap"


class ThinmapDevice(Thinmap):
    name = "thinmap device"
    words = Thinmap.words + "; its block device (FUSE + loop)"
    transport = "device"


class UnderSnapshots(Side):
    """A filled volume of which there are many snapshots, or which is the last of a chain of them."""

    states = (FILLED,)
    snapshots = 0
    depth = 0

    def start(self, stack, run, data, state):
        daemon = Daemon(stack, run, data, 2 * self.size + 256 * MIB, nbd_only=True)
        daemon.open_pool()
        daemon.pool("create_thin 0")
        daemon.volume("volume", 0, self.size)
        self.fill(daemon.target("volume", "nbd"), run)
        for number in range(1, self.snapshots + 1):
            daemon.pool(f"create_snap {number} 0")
        if self.depth:
            self._chain(daemon)
            return daemon.target("last", "nbd")
        return daemon.target("volume", "nbd")

    def _chain(self, daemon):
        """Each link is a snapshot of the one before and has a block of its own, so that no two are alike."""
        for number in range(1, self.depth + 1):
            daemon.pool(f"create_snap {number} {number - 1}")
            last = number == self.depth
            name = "last" if last else "link"
            daemon.volume(name, number, self.size)
            handle = connect(daemon.uri(name))
            handle.pwrite(bytes([number % 255 + 1]) * 4096, number * BLOCK % self.size)
            handle.shutdown()
            if not last:
                self._remove(daemon, name)

    @staticmethod
    def _remove(daemon, name):
        def removed():
            with contextlib.suppress(Failure):
                daemon.control.remove(name)
                return True
            return False

        # The client's end is seen by the daemon a moment later.
        wait_until(removed, f"{name} to be let go")


class NoSnapshot(UnderSnapshots):
    name = "no snapshot"
    words = "thinmap, a filled volume alone in its pool, NBD only"


class ManySnapshots(UnderSnapshots):
    name = "10,000 snapshots"
    words = "thinmap, the volume has 10,000 snapshots, NBD only"
    snapshots = 10_000


class DeepChain(UnderSnapshots):
    name = "chain of 1,000"
    words = "thinmap, the volume is the last of 1,000 snapshots of one another, each with a write of its own, NBD only"
    depth = 1_000


class OnOneFile(Side):
    """A mapped device of one line on a file."""

    states = (FILLED,)

    def start(self, stack, run, data, state):
        daemon = Daemon(stack, run, data, self.size, nbd_only=True)
        daemon.control.create("volume", self.size // SECTOR, self.arguments(daemon))
        self.fill(daemon.target("volume", "nbd"), run)
        return daemon.target("volume", "nbd")


class Crypt(OnOneFile):
    name = "thinmap crypt"
    words = "crypt on a file: aes-xts-plain64, 512 bit, sectors of 4096 bytes; NBD only"

    def arguments(self, daemon):
        return f"crypt aes-xts-plain64 {bytes(range(64)).hex()} 0 {daemon.blocks} 0 1 sector_size:4096"


class Raid5(OnOneFile):
    name = "thinmap raid5"
    words = "raid5_ls of five files, chunks of 64 KiB, no bitmap; NBD only"

    def arguments(self, daemon):
        members = [daemon.data / f"member{number}" for number in range(5)]
        for member in members:
            sparse(member, self.size // 4)
        # Holes are zeroes, whose parity is zeroes: nothing to sync.
        return f"raid raid5_ls 2 128 nosync 5 {' '.join(f'- {member}' for member in members)}"


class Linear(OnOneFile):
    name = "thinmap linear"
    words = "the same file under linear; NBD only"

    def arguments(self, daemon):
        return f"linear {daemon.blocks} 0"


class Multipath(OnOneFile):
    name = "thinmap multipath"
    words = "the same file by four paths in turn, multipath; NBD only"
    selector = "round-robin"

    def arguments(self, daemon):
        return f"multipath 0 0 1 1 {self.selector} 0 4 0 {' '.join([str(daemon.blocks)] * 4)}"


class MultipathByLoad(Multipath):
    name = "thinmap multipath by load"
    words = "the same, the least loaded of four paths (service-time); NBD only"
    selector = "service-time"


class Mirror(OnOneFile):
    name = "thinmap mirror"
    words = "mirror on two files with its log on a third, regions of 512 KiB, errors handled; NBD only"

    def arguments(self, daemon):
        leg, log = daemon.data / "leg", daemon.data / "log"
        sparse(leg, self.size)
        sparse(log, MIB)
        return f"mirror disk 3 {log} 1024 nosync 2 {daemon.blocks} 0 {leg} 0 1 handle_errors"


class Integrity(OnOneFile):
    name = "thinmap integrity"
    words = "integrity on a file: crc32c for each 4096 bytes, written directly (D); NBD only"
    mode = "D"

    def arguments(self, daemon):
        disk = daemon.data / "disk"
        # With room for tags (1 in 1,024), journal and superblock.
        sparse(disk, self.size + self.size // 256 + 64 * MIB)
        return f"integrity {disk} 0 - {self.mode} 2 internal_hash:crc32c block_size:4096"


class IntegrityJournal(Integrity):
    name = "thinmap integrity journal"
    words = "the same, data and tags by way of the journal (J); NBD only"
    mode = "J"


class Verity(OnOneFile):
    name = "thinmap verity"
    words = "verity on a file and its tree in another: SHA-256, blocks of 4096 bytes; NBD only"

    def start(self, stack, run, data, state):
        daemon = Daemon(stack, run, data, self.size, nbd_only=True)
        daemon.control.create("plain", self.size // SECTOR, f"linear {daemon.blocks} 0")
        self.fill(daemon.target("plain", "nbd"), run)
        daemon.control.remove("plain")
        said = run_program("veritysetup", "format", daemon.blocks, data / "tree")
        facts = dict(line.split(":", 1) for line in said.splitlines() if ":" in line)
        root, salt = facts["Root hash"].strip(), facts["Salt"].strip()
        blocks = self.size // 4096
        # The tree begins behind veritysetup's superblock.
        line = f"verity 1 {daemon.blocks} {data / 'tree'} 4096 4096 {blocks} 1 sha256 {root} {salt}"
        daemon.control.create("volume", self.size // SECTOR, line, read_only=True)
        return daemon.target("volume", "nbd")


class Writecache(OnOneFile):
    name = "thinmap writecache"
    words = "writecache of type s on two files, all of the data in the cache; NBD only"

    def arguments(self, daemon):
        cache = daemon.data / "cache"
        sparse(cache, 2 * self.size + 64 * MIB)
        return f"writecache s {daemon.blocks} {cache} 4096 2 high_watermark 100"


class Cache(OnOneFile):
    name = "thinmap cache"
    words = "cache on three files, writeback, smq, blocks of 256 KiB, as large as its origin; NBD only"

    def arguments(self, daemon):
        metadata, cache = daemon.data / "metadata", daemon.data / "cache"
        sparse(metadata, 16 * MIB)
        sparse(cache, self.size)
        return f"cache {metadata} {cache} {daemon.blocks} 512 1 writeback smq 0"


SIDES = [Cache, Crypt, Integrity, IntegrityJournal, Raid5, Linear, Mirror, Multipath, MultipathByLoad, Verity, Writecache, ThinmapNbd, ThinmapDevice, NoSnapshot, ManySnapshots, DeepChain]
