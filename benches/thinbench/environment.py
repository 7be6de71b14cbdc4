"""Where a run took place: without it a figure means nothing."""

import datetime
import os
import platform
import re
import subprocess
import tempfile
from pathlib import Path

from .jobs import MIB
from .peers.thinmap import program

VERSIONS = {
    "thinmap": [str(program()), "--version"],
    "fio": ["fio", "--version"],
    "qemu-storage-daemon": ["qemu-storage-daemon", "--version"],
    "nbdkit": ["nbdkit", "--version"],
    "xfsprogs": ["mkfs.xfs", "-V"],
    "btrfs-progs": ["mkfs.btrfs", "--version"],
}

TOUCHED_MIB = 8 << 10


def look(backing):
    """Names and values, for a table."""
    memory = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text(encoding="utf-8"))
    found = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": f"{os.cpu_count()} x {_processor()}",
        "memory": f"{int(memory[1]) >> 20} GiB",
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "backing": f"{backing} ({_file_system(backing)})",
        "FUSE over io_uring": _first("/sys/module/fuse/parameters/enable_uring"),
        "load before": " ".join(f"{load:.2f}" for load in os.getloadavg()),
        "commit": _said(["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]),
    }
    found.update({name: _said(command) for name, command in VERSIONS.items()})
    return found


def touch_memory(backing):
    """Uses the memory that the sides will use, once. A virtual machine gets a page from its host at the first touch, which costs
    more than all that is measured here; without this it would fall on whichever side comes first."""
    available = re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text(encoding="utf-8"))
    chunk = bytes(MIB)
    with tempfile.TemporaryFile(dir=backing) as file:
        for _ in range(min(int(available[1]) // 2 // 1024, TOUCHED_MIB)):
            file.write(chunk)


def _processor():
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _file_system(path):
    return _said(["stat", "--file-system", "--format=%T", str(path)])


def _first(path):
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return "not there"


def _said(command):
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return "not installed"
    return (done.stdout or done.stderr).strip().partition("\n")[0]
