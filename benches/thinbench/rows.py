"""The rows of the table: which load on which sides, and what the figures must show."""

from dataclasses import dataclass, field

from .jobs import MIB, Job
from .peers.base import EMPTY, FILLED, SNAPSHOT

# What a row is measured in, and whether more of it is better.
IOPS = ("IOPS", True)
MIB_S = ("MiB/s", True)
LATENCY = ("µs", False)


@dataclass(frozen=True)
class Must:
    """Against `peer`, the ratio (above 1: the first side is better) must be at least this."""

    peer: str
    ratio: float


@dataclass(frozen=True)
class Row:
    """A load on several sides; the first side is the one that is judged."""

    name: str
    job: Job
    sides: tuple
    state: str = FILLED
    unit: tuple = IOPS
    must: tuple = ()
    words: str = ""

    @property
    def title(self):
        return self.words or self.job.words


@dataclass(frozen=True)
class CaseRow:
    """Something that is no fio job, timed in several cases by `measure` (a name in `cases.CASES`); milliseconds."""

    name: str
    words: str
    measure: str
    sides: tuple
    must: tuple = ()
    # The first side's median must be under this, in milliseconds.
    under_ms: float = 0
    unit: tuple = field(default=("ms", False))

    @property
    def title(self):
        return self.words


NBD = ("thinmap", "qemu qcow2", "qemu raw", "nbdkit file", "nbdkit cow", "nbdkit null")
NBD_COW = ("thinmap", "qemu qcow2", "nbdkit cow")
DEVICE = ("thinmap device", "qemu raw device", "qemu qcow2 device", "loop", "xfs reflink", "btrfs reflink")
DEVICE_COW = ("thinmap device", "qemu qcow2 device", "xfs reflink", "btrfs reflink")
# First writes: nothing to compare where nothing is ever stored.
NBD_STORED = NBD[:-1]

READ, WRITE = Job("randread"), Job("randwrite")
FIRST = Job("randwrite", listed="first")
MIXED = Job("randrw", listed="mixed", flush_every=32)
FIRST_FLUSHED = Job("randwrite", listed="first", jobs=2, depth=16, flush_every=32)
SEQUENTIAL_DEPTH = 8


def _like(job, **changes):
    return Job(**{**job.__dict__, **changes})


def _four(job):
    """The same depth in all, over four connections."""
    return _like(job, jobs=4, depth=max(1, job.depth // 4))


def _front(front, sides, cow, stored, must):
    """Rows that NBD and block devices have alike; `must` by row."""
    loads = [
        ("randread-d1", _like(READ, depth=1), sides, FILLED, LATENCY),
        ("randwrite-d1", _like(WRITE, depth=1), sides, FILLED, LATENCY),
        ("randread-d32", READ, sides, FILLED, IOPS),
        ("randwrite-d32", WRITE, sides, FILLED, IOPS),
        ("seqread", Job("read", bs=MIB, depth=SEQUENTIAL_DEPTH), sides, FILLED, MIB_S),
        ("seqwrite", Job("write", bs=MIB, depth=SEQUENTIAL_DEPTH), sides, FILLED, MIB_S),
        ("firstwrite", FIRST, stored, EMPTY, IOPS),
        ("snapwrite", FIRST, cow, SNAPSHOT, IOPS),
        ("mixed-flush", MIXED, stored, FILLED, IOPS),
        ("discard", Job("randtrim", bs=64 << 10, timed=False), stored, FILLED, IOPS),
    ]
    rows = []
    for name, job, who, state, unit in loads:
        full = f"{front}-{name}"
        rows.append(Row(full, job, who, state, unit, must.get(name, ())))
    return rows


def _nbd_rows():
    must = {
        "randread-d1": (Must("qemu raw", 1.0),),
        "randread-d32": (Must("qemu qcow2", 3.0), Must("nbdkit null", 0.9)),
        "randwrite-d32": (Must("qemu qcow2", 3.0),),
        "firstwrite": (Must("qemu qcow2", 3.0),),
        "snapwrite": (Must("qemu qcow2", 2.5),),
        "seqread": (Must("nbdkit file", 1.0),),
        "seqwrite": (Must("nbdkit file", 1.0),),
    }
    rows = _front("nbd", NBD, NBD_COW, NBD_STORED, must)
    four = [
        ("randread-d32", READ, NBD, FILLED, IOPS),
        ("randwrite-d32", WRITE, NBD, FILLED, IOPS),
        ("seqread", Job("read", bs=MIB, depth=SEQUENTIAL_DEPTH), NBD, FILLED, MIB_S),
        ("seqwrite", Job("write", bs=MIB, depth=SEQUENTIAL_DEPTH), NBD, FILLED, MIB_S),
        ("firstwrite", FIRST, NBD_STORED, EMPTY, IOPS),
        ("snapwrite", FIRST, NBD_COW, SNAPSHOT, IOPS),
        ("mixed-flush", MIXED, NBD_STORED, FILLED, IOPS),
    ]
    rows += [Row(f"nbd4-{name}", _four(job), who, state, unit) for name, job, who, state, unit in four]
    return rows


def _device_rows():
    deep = (Must("qemu raw device", 2.5), Must("loop", 0.6))
    rows = _front("device", DEVICE, DEVICE_COW, DEVICE, {"randread-d32": deep, "randwrite-d32": deep})
    reflink = (Must("xfs reflink", 1.0),)
    rows.append(Row("device-firstwrite-flush", FIRST_FLUSHED, DEVICE, EMPTY, IOPS, reflink))
    rows.append(Row("device-snapwrite-flush", FIRST_FLUSHED, DEVICE_COW, SNAPSHOT, IOPS, reflink))
    return rows


UNDER = "4 KiB randread, depth 32, NBD: with snapshots beside none"
SCALE = [
    Row("scale-10000-snapshots", READ, ("10,000 snapshots", "no snapshot"), must=(Must("no snapshot", 0.95),), words=UNDER),
    Row("scale-chain-1000", READ, ("chain of 1,000", "no snapshot"), must=(Must("no snapshot", 0.95),), words=UNDER),
]  # fmt: skip

# The limit of an origin is the device without snapshots: where all is copied, but for looking that up; at a chunk's first write a read
# and three writes (copy, slots, the write itself) where there is one.
BESIDE = "NBD: an origin with a snapshot beside the device without"
THICK = [
    Row("origin-randwrite", WRITE, ("origin", "linear"), must=(Must("linear", 0.8),), words=f"{WRITE.words}, all copied, {BESIDE}"),
    Row("origin-firstwrite", FIRST, ("origin", "linear"), EMPTY, must=(Must("linear", 0.25),), words=f"{FIRST.words}, {BESIDE}"),
]  # fmt: skip
# The limit is the same file without encryption. At 6 GB/s a core, 4 KiB cost 0.7 microseconds of some five.
ENCRYPTED = ("thinmap crypt", "thinmap linear")
CRYPT = [
    Row("crypt-randread-d32", READ, ENCRYPTED, must=(Must("thinmap linear", 0.8),)),
    Row("crypt-randwrite-d32", WRITE, ENCRYPTED, must=(Must("thinmap linear", 0.8),)),
    Row("crypt-seqread", Job("read", bs=MIB, depth=SEQUENTIAL_DEPTH), ENCRYPTED, unit=MIB_S),
    Row("crypt-seqwrite", Job("write", bs=MIB, depth=SEQUENTIAL_DEPTH), ENCRYPTED, unit=MIB_S),
]
# The limit is the same file by one path: choosing one of four costs a compare-and-swap.
PATHS = ("thinmap multipath", "thinmap multipath by load", "thinmap linear")
MULTIPATH = [
    Row("multipath-randread-d32", READ, PATHS, must=(Must("thinmap linear", 0.95),)),
    Row("multipath4-randread-d32", _four(READ), PATHS, must=(Must("thinmap linear", 0.95),)),
    Row("multipath-randwrite-d32", WRITE, PATHS, must=(Must("thinmap linear", 0.95),)),
]  # fmt: skip
# A write goes to two files instead of one: half as many are the limit where the files are all that counts.
MIRRORED = ("thinmap mirror", "thinmap linear")
MIRROR = [
    Row("mirror-randread-d32", READ, MIRRORED, must=(Must("thinmap linear", 0.9),)),
    Row("mirror-randwrite-d32", WRITE, MIRRORED, must=(Must("thinmap linear", 0.5),)),
    Row("mirror-seqwrite", Job("write", bs=MIB, depth=SEQUENTIAL_DEPTH), MIRRORED, unit=MIB_S),
]

# A small write is two reads and two writes one after the other, a whole row is five quarters of its data; reads are the files'.
PARITY = ("thinmap raid5", "thinmap linear")
RAID = [
    Row("raid5-randread-d32", READ, PARITY, must=(Must("thinmap linear", 0.8),)),
    Row("raid5-randwrite-d32", WRITE, PARITY),
    Row("raid5-seqread", Job("read", bs=MIB, depth=SEQUENTIAL_DEPTH), PARITY, unit=MIB_S),
    Row("raid5-seqwrite", Job("write", bs=MIB, depth=SEQUENTIAL_DEPTH), PARITY, unit=MIB_S),
]

# A tag for each block read or written; a write by way of the journal is two.
TAGGED = ("thinmap integrity", "thinmap integrity journal", "thinmap linear")
INTEGRITY = [
    Row("integrity-randread-d32", READ, TAGGED),
    Row("integrity-randwrite-d32", WRITE, TAGGED),
    Row("integrity-seqread", Job("read", bs=MIB, depth=SEQUENTIAL_DEPTH), TAGGED, unit=MIB_S),
    Row("integrity-seqwrite", Job("write", bs=MIB, depth=SEQUENTIAL_DEPTH), TAGGED, unit=MIB_S),
]
# SHA-256 of all that is read.
VERIFIED = ("thinmap verity", "thinmap linear")
VERITY = [
    Row("verity-randread-d32", READ, VERIFIED),
    Row("verity-seqread", Job("read", bs=MIB, depth=SEQUENTIAL_DEPTH), VERIFIED, unit=MIB_S),
]
# Cache and origin are equally fast here: the price of looking, never the gain.
CACHED = ("thinmap writecache", "thinmap cache", "thinmap linear")
CACHES = [
    Row("cache-randread-d32", READ, CACHED),
    Row("cache-randwrite-d32", WRITE, CACHED),
]

MANY, FEW = "16 million mapped", "16 mapped"
REFLINKS = ("thinmap", "xfs reflink", "btrfs reflink")
CASES = [
    CaseRow("snap-create", "create_snap", "snap_create", (MANY, FEW), (Must(FEW, 1 / 1.5),), under_ms=2),
    CaseRow("snap-delete", "delete of a volume that shares nothing, until it is answered", "volume_delete", (MANY, FEW), under_ms=5),
    CaseRow("snap-delete-space", "the same: until all of its space is back", "volume_delete_space", (MANY, FEW)),
    CaseRow("snap-delete-beside", "the same: the longest flushed first write of another volume meanwhile", "volume_delete_beside", (MANY,)),
    CaseRow("activate-volume", "create and activate a volume", "activate_volume", (MANY, FEW)),
    CaseRow("activate-pool", "create and activate the pool", "activate_pool", (MANY, FEW)),
    CaseRow("forks-1000", "1,000 forks of one volume, created and activated for NBD, in all", "forks", ("thinmap",), under_ms=1000),
    CaseRow("clone-create", "snapshot of a filled volume, beside a reflink of a filled file", "clone_create", REFLINKS),
    CaseRow("clone-delete", "its deletion after every second block was written", "clone_delete", REFLINKS),
]  # fmt: skip

# Which of its settings is a peer's fastest: looked at when a peer or machine changes, not part of a plain run.
TUNING = [
    Row("tuning-raw-randread", READ, ("qemu raw", "qemu raw threads", "qemu raw buffered")),
    Row("tuning-raw-d1", _like(READ, depth=1), ("qemu raw", "qemu raw threads", "qemu raw buffered"), unit=LATENCY),
    Row("tuning-qcow2-randread", READ, ("qemu qcow2", "qemu qcow2 threads", "qemu qcow2 buffered")),
    Row("tuning-qcow2-randwrite", WRITE, ("qemu qcow2", "qemu qcow2 threads", "qemu qcow2 buffered")),
    Row("tuning-qcow2-firstwrite", FIRST, ("qemu qcow2", "qemu qcow2 threads", "qemu qcow2 buffered"), EMPTY),
    Row("tuning-qcow2-snapwrite", FIRST, ("qemu qcow2", "qemu qcow2 threads", "qemu qcow2 buffered"), SNAPSHOT),
]

ROWS = [*_nbd_rows(), *_device_rows(), *SCALE, *THICK, *CRYPT, *RAID, *MIRROR, *MULTIPATH, *INTEGRITY, *VERITY, *CACHES, *CASES]
