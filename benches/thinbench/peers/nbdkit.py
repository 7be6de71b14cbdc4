"""nbdkit: a file, nothing at all (the limit of client and socket), and a file under its copy-on-write filter."""

from ..jobs import Target
from ..world import server, sparse
from .base import EMPTY, FILLED, SNAPSHOT, Side


class Nbdkit(Side):
    """A plugin with its defaults (16 threads for each connection)."""

    def start(self, stack, run, data, state):
        target = self._serve(stack, run, data, "first", *self.plugin(data))
        if state == FILLED:
            self.fill(target, run)
        return target

    def plugin(self, data):
        """Command line of filters and plugin."""
        raise NotImplementedError

    def _serve(self, stack, run, data, name, *words):
        path = run / f"{name}.sock"
        command = ["nbdkit", "--foreground", "--unix", path, *words]
        # The cow filter keeps what is written in TMPDIR: on the backing, like everybody's.
        process = stack.enter_context(server(command, run / "nbdkit.log", path.exists, {"TMPDIR": str(data)}))
        return Target(uri=f"nbd+unix:///?socket={path}", pids=(process.pid,))


class File(Nbdkit):
    name = "nbdkit file"
    words = "nbdkit file, default threads"

    def plugin(self, data):
        return ["file", sparse(data / "disk", self.size)]


class Null(Nbdkit):
    name = "nbdkit null"
    words = "nbdkit null, default threads: no storage, the limit of client and socket"
    hollow = True

    def plugin(self, data):
        return ["null", f"size={self.size}"]


class Cow(Nbdkit):
    name = "nbdkit cow"
    words = "nbdkit, cow filter (64 KiB blocks) over a file"
    states = (EMPTY, FILLED, SNAPSHOT)

    def plugin(self, data):
        return ["--filter=cow", "file", sparse(data / "disk", self.size)]

    def start(self, stack, run, data, state):
        if state != SNAPSHOT:
            return super().start(stack, run, data, state)
        with type(stack)() as filling:
            disk = sparse(data / "disk", self.size)
            self.fill(self._serve(filling, run, data, "base", "file", disk), run)
        return self._serve(stack, run, data, "second", "--filter=cow", "file", disk)


SIDES = [File, Null, Cow]
