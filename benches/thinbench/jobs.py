"""fio jobs: what is done to a side, how fio is called for it, and whether it did the work.

Two kinds. A timed job repeats for some seconds over what is written already. A listed job has a list of single requests
(an iolog of fio's): each of its first writes goes to another 64 KiB block, in random order, which no option of fio's gives.
Both sides of a row get the same list.
"""

import json
import random
import subprocess
from dataclasses import dataclass

from .world import Failure

KIB = 1 << 10
MIB = 1 << 20
BLOCK = 64 * KIB
SEED = 20240


@dataclass(frozen=True)
class Job:
    """One measurement's load. `depth` is that of each of `jobs` clients, each with its own connection."""

    rw: str
    bs: int = 4 * KIB
    depth: int = 32
    jobs: int = 1
    # Listed jobs: "first" (one write to each block), "mixed" (reads and writes, half and half).
    listed: str = ""
    flush_every: int = 0
    # Timed jobs end with the time, others with the work.
    timed: bool = True

    @property
    def words(self):
        """For people."""
        size = f"{self.bs // MIB} MiB" if self.bs >= MIB else f"{self.bs // KIB} KiB"
        kind = {"first": "first write to each block", "mixed": "reads and writes"}.get(self.listed, self.rw)
        many = f", {self.jobs} jobs" if self.jobs > 1 else ""
        flush = f", flush every {self.flush_every} writes" if self.flush_every else ""
        return f"{size} {kind}, depth {self.depth}{many}{flush}"


@dataclass
class Target:
    """Where a load goes: an NBD URI, or a block device's path. `pids` are the server's processes."""

    uri: str = ""
    path: str = ""
    pids: tuple = ()

    @property
    def options(self):
        if self.uri:
            return ["--ioengine=nbd", f"--uri={self.uri}"]
        return ["--ioengine=io_uring", "--direct=1"]

    @property
    def name(self):
        """What a list of requests calls it."""
        return self.path or "nbd"


@dataclass
class Outcome:
    """What one run of a job gave, all clients together."""

    iops: float
    mib_s: float
    lat_us: float
    client_cpu: float
    requests: int


def fill(target, size, workdir):
    """Writes all of a target once, in order, through its own front."""
    job = Job("write", bs=MIB, depth=8, timed=False)
    run_job(job, target, size, workdir, 0)


def run_job(job, target, size, workdir, seconds, count=0):
    """Runs fio; fails unless it did all of the work without an error. `count`: requests of a listed job."""
    out = workdir / "fio.json"
    command = ["fio", "--output-format=json", f"--output={out}", "--allrandrepeat=1", "--norandommap=1"]
    command += target.options + [f"--rw={job.rw}", f"--bs={job.bs}", f"--iodepth={job.depth}", "--thread=0"]
    expected = 0
    if job.listed:
        # fio leaves at the end of a list with requests in flight, which servers take badly: nbdkit 1.32 ends with a failed
        # assertion. Their replies come in meanwhile.
        command += ["--exec_postrun=sleep 0.1"]
        # A list names its file itself.
        for number, requests in enumerate(_lists(job, size, count)):
            log = workdir / f"list-{number}"
            log.write_text(_iolog(target.name, requests))
            expected += sum(request != FLUSH for request in requests)
            command += [f"--name=client{number}", f"--read_iolog={log}", "--replay_no_stall=1", f"--size={size}"]
    else:
        command += [f"--size={size}"]
        command += [f"--filename={target.path}"] if target.path else []
        if job.timed:
            command += ["--time_based=1", f"--runtime={seconds}"]
        else:
            command[command.index("--norandommap=1")] = "--norandommap=0"
            expected = size // job.bs
        command += [f"--numjobs={job.jobs}", "--name=client"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=workdir)
    if done.returncode != 0:
        raise Failure(f"fio: exit {done.returncode}: {done.stderr.strip()[-400:]}")
    return _outcome(json.loads(_from_brace(out.read_text())), job, expected)


def _from_brace(text):
    # fio writes its warnings in front.
    return text[max(text.find("{"), 0) :]


def _outcome(result, job, expected):
    directions = ("read", "write", "trim")
    clients = result["jobs"]
    if len(clients) != job.jobs:
        raise Failure(f"fio ran {len(clients)} of {job.jobs} clients")
    for client in clients:
        if client["error"] != 0:
            raise Failure(f"fio: client error {client['error']}")
    parts = [client[direction] for client in clients for direction in directions]
    requests = sum(part["total_ios"] for part in parts)
    done = sum(part["io_bytes"] for part in parts) // job.bs
    if requests == 0 or done == 0:
        raise Failure("fio did nothing")
    # At the end of a list fio does not count what is still in flight.
    if expected and (requests < expected or done < expected - job.jobs * job.depth):
        raise Failure(f"fio did {done} of {expected} requests")
    if job.timed and not job.listed:
        iops = sum(part["iops"] for part in parts)
    else:
        iops = done / (max(client["job_runtime"] for client in clients) / 1000)
    lat = sum(part["lat_ns"]["mean"] * part["total_ios"] for part in parts) / requests
    cpu = sum(client["usr_cpu"] + client["sys_cpu"] for client in clients)
    return Outcome(iops, iops * job.bs / MIB, lat / 1000, cpu, requests)


def _lists(job, size, count):
    """Requests of each client, as (what, offset); the same for every side."""
    dice = random.Random(SEED)
    pages = BLOCK // job.bs
    if job.listed == "first":
        blocks = dice.sample(range(size // BLOCK), count)
        requests = [("write", block * BLOCK + dice.randrange(pages) * job.bs) for block in blocks]
    else:
        end = size // job.bs
        requests = [(dice.choice(("read", "write")), dice.randrange(end) * job.bs) for _ in range(count)]
    share = len(requests) // job.jobs
    return [_with_flushes(requests[n * share : (n + 1) * share], job) for n in range(job.jobs)]


def _with_flushes(requests, job):
    """Requests as (what, offset, bytes), with a flush behind every so many writes and at the end."""
    result, writes = [], 0
    for what, offset in requests:
        result.append((what, offset, job.bs))
        writes += what == "write"
        if what == "write" and job.flush_every and writes % job.flush_every == 0:
            result.append(FLUSH)
    return [*result, FLUSH] if job.flush_every else result


FLUSH = ("sync", 0, 0)


def _iolog(name, requests):
    lines = ["fio version 2 iolog", f"{name} add", f"{name} open"]
    lines += [f"{name} {what} {offset} {length}" for what, offset, length in requests]
    return "\n".join([*lines, f"{name} close", ""])
