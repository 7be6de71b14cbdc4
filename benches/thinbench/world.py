"""What a run makes on this machine, and its end: directories, processes, loop devices, mounts.

Whatever is entered here is taken down again, last first, also when a measurement fails or the run is interrupted.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

START_TIMEOUT_S = 15
STOP_TIMEOUT_S = 30
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


class Failure(Exception):
    """A measurement cannot be had; the text says why."""


class World:
    """One run's directories. `data` is on the backing that is measured, `run` holds sockets, mount points and logs."""

    def __init__(self, backing):
        self.stack = contextlib.ExitStack()
        # Short, because a Unix socket's path is.
        self.run = Path(tempfile.mkdtemp(prefix="thinbench-", dir="/tmp"))
        self.stack.callback(shutil.rmtree, self.run, ignore_errors=True)
        self.data = Path(tempfile.mkdtemp(prefix="thinbench-", dir=backing))
        self.stack.callback(shutil.rmtree, self.data, ignore_errors=True)
        self._serial = 0

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.stack.close()

    def fresh(self, name):
        """A pair of new directories (run, data) for one side, removed by `discard`."""
        self._serial += 1
        pair = [base / f"{self._serial}-{name}" for base in (self.run, self.data)]
        for path in pair:
            path.mkdir()
        return pair

    @staticmethod
    def discard(*paths):
        """Removes directories of a side that is gone; memory is scarce where the backing is tmpfs."""
        for path in paths:
            shutil.rmtree(path, ignore_errors=True)


def interruptible():
    """Termination becomes an exception, so that everything is taken down."""

    def stop(number, _frame):
        raise KeyboardInterrupt(signal.Signals(number).name)

    # SIGINT too: whoever is started in the background has it ignored.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)


def run(*args, **options):
    """A program to its end; its output. Fails with what it said."""
    args = [str(arg) for arg in args]
    done = subprocess.run(args, capture_output=True, text=True, check=False, **options)
    if done.returncode != 0:
        raise Failure(f"{' '.join(args)}: exit {done.returncode}: {done.stderr.strip()[-400:]}")
    return done.stdout


def _in_child():
    # Interrupts from the terminal are ours to handle; should this process be killed, servers end too.
    os.setsid()
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@contextlib.contextmanager
def server(args, log, ready, env=None):
    """A server process: serves when `ready()` is true; ended by SIGTERM at the end of the context."""
    args = [str(arg) for arg in args]
    environment = {**os.environ, **(env or {})}
    with open(log, "wb") as out:
        process = subprocess.Popen(
            args, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment, preexec_fn=_in_child
        )
    try:
        wait_until(ready, f"{args[0]} to serve", lambda: _ended(process, log))
        yield process
        _ended(process, log)
    except Failure as failure:
        # What a client says of a server that fell is less than what the server said.
        if process.args[0] not in str(failure):
            _ended(process, log, f" (and: {failure})")
        raise
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _ended(process, log, more=""):
    if process.poll() is not None:
        said = Path(log).read_text(encoding="utf-8", errors="replace")[-400:]
        raise Failure(f"{process.args[0]} ended with {process.returncode}: {said}{more}")


def wait_until(condition, what, check=lambda: None):
    """Waits for `condition()`; `check` may raise to end the wait."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while not condition():
        check()
        if time.monotonic() > deadline:
            raise Failure(f"waited {START_TIMEOUT_S} s in vain for {what}")
        time.sleep(0.01)


def sparse(path, size):
    """A sparse file."""
    with open(path, "wb") as file:
        file.truncate(size)
    return path


@contextlib.contextmanager
def loop_device(path):
    """A loop device on a file, with direct I/O so that nothing is cached twice."""
    node = run("losetup", "--find", "--show", "--direct-io=on", path).strip()
    try:
        yield node
    finally:
        run("losetup", "--detach", node)


@contextlib.contextmanager
def mounted(node, kind, where, options="noatime"):
    """A file system mounted."""
    where.mkdir(exist_ok=True)
    run("mount", "-t", kind, "-o", options, node, where)
    try:
        yield where
    finally:
        _unmount(where)


def _unmount(where):
    # The kernel lets go of a detached loop device's file a moment late.
    for _ in range(50):
        if subprocess.run(["umount", str(where)], capture_output=True, check=False).returncode == 0:
            return
        time.sleep(0.1)
    raise Failure(f"cannot unmount {where}")


def _families(pids):
    """These processes and all that descend from them: a keeper's daemon is the one that works."""
    for pid in pids:
        yield pid
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            yield from _families(int(child) for child in children.read_text().split())


def cpu_seconds(pids):
    """Processor time that these processes and their descendants have used."""
    tick = os.sysconf("SC_CLK_TCK")
    total = 0
    for pid in _families(pids):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / tick
