"""Measurements that are no fio job: how long commands take, on pools with few and with many mapped blocks.

Each gives a context with a function that measures once, in milliseconds, so that the cases of a row can take turns.
Sixteen million mapped blocks are 1 TiB of data: the mappings come from thin_restore, the data file is sparse.
"""

import contextlib
import os
import statistics
import time

from . import jobs
from .jobs import BLOCK, MIB
from .peers import SIDES, base
from .peers.files import clone
from .peers.thinmap import SECTOR, Daemon
from .rows import FEW, MANY
from .world import Failure, run as execute, sparse

BLOCKS = {FEW: 16, MANY: 16 << 20}
METADATA_BYTES = 1 << 30
FORKS = 1_000
SHORT_ONES = 21
CLONE_BYTES = 1 << 30


def _timed(action):
    start = time.perf_counter()
    action()
    return (time.perf_counter() - start) * 1000


def _middle(one):
    """The median of many, for what takes so short that one is chance."""
    return statistics.median(one() for _ in range(SHORT_ONES))


@contextlib.contextmanager
def _restored(world, side):
    """Directories with a pool's metadata: volume 1 has as many mapped blocks as the side's name says."""
    run, data = world.fresh("restored")
    blocks = BLOCKS[side]
    # One mapping: a run of as many blocks.
    xml = f"""<superblock uuid="" time="0" transaction="0" data_block_size="{BLOCK // SECTOR}" nr_data_blocks="{2 * blocks}">
  <device dev_id="1" mapped_blocks="{blocks}" transaction="0" creation_time="0" snap_time="0">
    <range_mapping origin_begin="0" data_begin="0" length="{blocks}" time="0"/>
  </device>
</superblock>
"""
    (data / "pool.xml").write_text(xml)
    metadata = sparse(data / "metadata", METADATA_BYTES)
    execute("thin_restore", "--input", data / "pool.xml", "--output", metadata)
    try:
        yield run, data, 2 * blocks * BLOCK
    finally:
        world.discard(run, data)


@contextlib.contextmanager
def _restored_pool(world, side):
    with _restored(world, side) as (run, data, size), contextlib.ExitStack() as stack:
        daemon = Daemon(stack, run, data, size, nbd_only=True)
        daemon.open_pool()
        yield daemon


@contextlib.contextmanager
def snap_create(world, side):
    """A snapshot of a volume whose mappings are all there."""
    with _restored_pool(world, side) as daemon:
        daemon.volume("volume", 1, BLOCKS[side] * BLOCK)
        taken = iter(range(2, 1 << 20))

        def one():
            number = next(taken)
            daemon.control.suspend("volume")
            spent = _timed(lambda: daemon.pool(f"create_snap {number} 1"))
            daemon.control.resume("volume")
            daemon.volume("snapshot", number, BLOCKS[side] * BLOCK)
            mapped = int(daemon.control.status("snapshot")[0]) * SECTOR // BLOCK
            daemon.control.remove("snapshot")
            if mapped != BLOCKS[side]:
                raise Failure(f"the snapshot has {mapped} blocks of {BLOCKS[side]}")
            return spent

        yield lambda: _middle(one)


@contextlib.contextmanager
def _deleting(world, side, what):
    """Measures `what` does with a pool whose volume 1 is there to be deleted; each time on metadata as thin_restore made it."""
    with _restored(world, side) as (run, data, size):
        pristine = data / "pristine"
        (data / "metadata").rename(pristine)

        def measure():
            execute("cp", "--sparse=always", pristine, data / "metadata")
            with contextlib.ExitStack() as stack:
                daemon = Daemon(stack, run, data, size, nbd_only=True)
                daemon.open_pool()
                return what(daemon)

        yield measure


def volume_delete(world, side):
    """Until the message is answered."""
    return _deleting(world, side, lambda daemon: _timed(lambda: daemon.pool("delete 1")))


def _used_blocks(daemon):
    return int(daemon.control.status("pool")[2].split("/")[0])


def volume_delete_space(world, side):
    """Until no data block is in use."""

    def what(daemon):
        def until_free():
            daemon.pool("delete 1")
            # Each status is a commit; often enough for this, too seldom to be what is measured.
            while _used_blocks(daemon):
                time.sleep(0.01)

        return _timed(until_free)

    return _deleting(world, side, what)


def volume_delete_beside(world, side):
    """The longest of the first writes, a flush behind each, that another volume gets while the space returns."""

    def what(daemon):
        daemon.pool("create_thin 2")
        daemon.volume("volume", 2, 1 << 40)
        handle = base.connect(daemon.uri("volume"))
        daemon.pool("delete 1")
        spent, offset = [], 0

        def first_write():
            handle.pwrite(b"x" * 4096, offset)
            handle.flush()

        while not spent or _used_blocks(daemon) > len(spent):
            spent.append(_timed(first_write))
            offset += BLOCK
        handle.shutdown()
        return max(spent)

    return _deleting(world, side, what)


@contextlib.contextmanager
def activate_volume(world, side):
    """The pool is open already."""
    with _restored_pool(world, side) as daemon:

        def one():
            spent = _timed(lambda: daemon.volume("volume", 1, BLOCKS[side] * BLOCK))
            base.read(daemon.target("volume", "nbd"), 0, 4096)
            _removed(daemon, "volume")
            return spent

        yield lambda: _middle(one)


@contextlib.contextmanager
def activate_pool(world, side):
    """The daemon runs already."""
    with _restored(world, side) as (run, data, size), contextlib.ExitStack() as stack:
        daemon = Daemon(stack, run, data, size, nbd_only=True)

        def measure():
            spent = _timed(daemon.open_pool)
            if len(daemon.control.status("pool")) < 8:
                raise Failure("the pool has no status")
            daemon.control.remove("pool")
            return spent

        yield measure


@contextlib.contextmanager
def forks(world, _side):
    """Snapshots of one volume of 64 MiB, each made a device; then every hundredth is read over NBD."""
    size = 64 * MIB

    def measure():
        run, data = world.fresh("forks")
        try:
            with contextlib.ExitStack() as stack:
                daemon = Daemon(stack, run, data, 1 << 30, nbd_only=True)
                daemon.open_pool()
                daemon.pool("create_thin 0")
                daemon.volume("volume", 0, size)
                jobs.fill(daemon.target("volume", "nbd"), size, run)
                wanted = base.read(daemon.target("volume", "nbd"), MIB, 4096)
                daemon.control.suspend("volume")
                daemon.control.resume("volume")
                spent = _timed(lambda: _fork(daemon, size))
                for number in range(1, FORKS + 1, 100):
                    if base.read(daemon.target(f"fork{number}", "nbd"), MIB, 4096) != wanted:
                        raise Failure(f"fork {number} reads something else than its origin")
                return spent
        finally:
            world.discard(run, data)

    yield measure


def _fork(daemon, size):
    for number in range(1, FORKS + 1):
        daemon.pool(f"create_snap {number} 0")
        daemon.volume(f"fork{number}", number, size)


def _removed(daemon, name):
    for _ in range(100):
        with contextlib.suppress(Failure):
            return daemon.control.remove(name)
        time.sleep(0.01)
    return daemon.control.remove(name)


@contextlib.contextmanager
def _clones(world, side):
    """(make, spoil, delete) of a clone of a filled disk, each by number."""
    front = SIDES[side](world, CLONE_BYTES)
    run, data = world.fresh("clones")
    try:
        with contextlib.ExitStack() as stack:
            yield (_thinmap_clones if side == "thinmap" else _file_clones)(stack, front, run, data)
    finally:
        world.discard(run, data)


def _thinmap_clones(stack, front, run, data):
    daemon = Daemon(stack, run, data, 3 * CLONE_BYTES, nbd_only=True)
    daemon.open_pool()
    daemon.pool("create_thin 0")
    daemon.volume("volume", 0, CLONE_BYTES)
    front.fill(daemon.target("volume", "nbd"), run)

    def spoil(number):
        daemon.volume("clone", number, CLONE_BYTES)
        handle = base.connect(daemon.uri("clone"))
        for offset in range(0, CLONE_BYTES, 2 * BLOCK):
            handle.pwrite(b"x" * BLOCK, offset)
        handle.shutdown()
        _removed(daemon, "clone")

    return lambda number: daemon.pool(f"create_snap {number} 0"), spoil, lambda number: daemon.pool(f"delete {number}")


def _file_clones(stack, front, run, data):
    where = front.file_system(stack, run, data)
    disk = front.filled_file(run, where)

    def spoil(number):
        with open(where / f"clone{number}", "r+b", buffering=0) as file:
            for offset in range(0, CLONE_BYTES, 2 * BLOCK):
                os.pwrite(file.fileno(), b"x" * BLOCK, offset)
            os.fsync(file.fileno())

    return lambda number: clone(disk, where / f"clone{number}"), spoil, lambda number: os.unlink(where / f"clone{number}")


@contextlib.contextmanager
def clone_create(world, side):
    """Of 1 GiB that was written in order."""
    with _clones(world, side) as (make, _, delete):
        numbers = iter(range(1, 1 << 20))

        def one():
            number = next(numbers)
            spent = _timed(lambda: make(number))
            delete(number)
            return spent

        yield lambda: _middle(one)


@contextlib.contextmanager
def clone_delete(world, side):
    """Of a clone that has 512 MiB of its own, in 8,192 pieces."""
    with _clones(world, side) as (make, spoil, delete):
        numbers = iter(range(1, 1 << 20))

        def measure():
            number = next(numbers)
            make(number)
            spoil(number)
            return _timed(lambda: delete(number))

        yield measure


CASES = {
    case.__name__: case
    for case in (
        snap_create,
        volume_delete,
        volume_delete_space,
        volume_delete_beside,
        activate_volume,
        activate_pool,
        forks,
        clone_create,
        clone_delete,
    )
}
