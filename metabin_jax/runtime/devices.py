"""Several devices, of one process or of many: where arrays lie, and how the processes find each other.

Data parallel: each device has an equal share of a batch's rows and a whole copy of everything else. Programs are
written for the whole batch, so batch statistics, losses and hard mining equal a single device's. XLA inserts the
communication that this needs. See docs/devices.md.
"""

import itertools
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint import multihost

from metabin_jax.runtime.errors import UserError

T = TypeVar("T")

# JAX itself reads only the first.
ADDRESS, COUNT, INDEX = BY_HAND = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
PATIENCE = 24 * 3600  # seconds that processes wait for process 0, which may have to decode all images
SHARED_WITHIN = 60  # seconds until every process must see a new file: NFS looks again after 30
ENDED_WITHIN = 60  # seconds until the other processes are ended after one has failed

_waits = itertools.count()


class Placement(NamedTuple):
    """Where arrays lie: whole on every device, or split by rows, one part per device."""

    whole: NamedSharding
    by_rows: NamedSharding

    @classmethod
    def over(cls, devices: Sequence[jax.Device]) -> "Placement":
        """Over these devices, real or of a topology. The rows of one process are next to each other."""
        ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
        mesh = Mesh(np.array(ordered), ("data",), axis_types=(AxisType.Auto,))
        return cls(NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data")))

    def filled(self, num_rows: int) -> int:
        """The smallest number of rows, at least `num_rows`, that divides over the devices."""
        return -(-num_rows // self.whole.num_devices) * self.whole.num_devices

    def own(self, row_N: np.ndarray) -> np.ndarray:
        """The rows of a batch that this process's devices hold. N must divide over all devices."""
        process_of_device = [device.process_index for device in self.whole.mesh.devices.flat]
        part_of_row = np.arange(len(row_N)) * len(process_of_device) // len(row_N)
        mine = np.flatnonzero(np.take(process_of_device, part_of_row) == jax.process_index())
        return row_N[mine[0] : mine[-1] + 1]

    def put(self, own: Any) -> Any:
        """A batch on all devices; `own` is a tree of arrays with the rows that this process's devices hold."""
        return jax.make_array_from_process_local_data(self.by_rows, own)


def shapes_on(sharding: NamedSharding, tree: Any) -> Any:
    """The shapes and dtypes of a tree of arrays, with this sharding."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


def start() -> None:
    """Makes this process one of several, as the environment says. Must run before JAX does anything else.

    Raises UserError if the environment lacks the number of processes, this one's index or the first one's address.
    """
    settings: dict[str, Any] = {}
    which = "this process"
    if os.environ.get(COUNT) or os.environ.get(INDEX):
        address, count, index = (os.environ.get(name, "") for name in BY_HAND)
        numbers = count.isdecimal() and index.isdecimal() and int(index) < int(count)
        if not numbers or not address.rpartition(":")[2].isdecimal():
            raise UserError(
                f"{ADDRESS}={address}, {COUNT}={count} and {INDEX}={index} must be HOST:PORT of process 0, the number "
                "of processes, and the number of this process, counted from 0"
            )
        which = f"process {index} of {count}, the first at {address},"
        settings = {"num_processes": int(count), "process_id": int(index), "cluster_detection_method": "deactivate"}
    # If they do not come, JAX ends the process with a message of its own.
    print(f"{which} waits for the others, up to 5 minutes", file=sys.stderr)
    try:
        jax.distributed.initialize(shutdown_timeout_seconds=ENDED_WITHIN, **settings)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"--distributed found no other processes ({str(error).splitlines()[0]}): start by srun, or set "
            f"{', '.join(BY_HAND)}, as docs/devices.md shows"
        ) from error


def is_first() -> bool:
    """Whether this is process 0. It alone prints and writes, except checkpoints, which all processes write."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Prints a line on stderr, in process 0 only."""
    if is_first():
        print(text, file=sys.stderr)


def first_before_others(work: Callable[[], T]) -> T:
    """What `work` returns. The others start after process 0 has finished, so that they find the files it wrote."""
    if not is_first():
        _wait_for_all()
        return work()
    try:
        return work()
    finally:  # after an error too: the others will meet it themselves
        _wait_for_all()


def check_shared(file: Path) -> None:
    """Raises UserError in all processes if one of them does not see this file of process 0."""
    _wait_for_all()
    until = time.monotonic() + SHARED_WITHIN
    while not file.exists() and time.monotonic() < until:
        time.sleep(1)
    _wait_for_all()
    blind = np.flatnonzero(~multihost_utils.process_allgather(np.array(file.exists())))
    if len(blind):
        raise UserError(
            f"process {blind[0]} does not see {file} of process 0: --workdir must name a folder that all share"
        )


def _wait_for_all() -> None:
    """Waits through the coordinator: the devices' collectives would time out on a slow process."""
    if jax.process_count() > 1:
        multihost.get_barrier_sync_fn()(key=f"metabin_jax {next(_waits)}", timeout_ms=1000 * PATIENCE)
