"""The sides of a comparison. Each offers the same: see `base.Side`."""

from . import files, nbdkit, qemu, thick, thinmap

SIDES = {side.name: side for module in (thinmap, thick, qemu, nbdkit, files) for side in module.SIDES}
