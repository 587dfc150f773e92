"""Data parallelism by placement: batches are cut over the devices, everything else lies on each of them.

JAX's compiler does the rest: a program over global arrays is one program, whatever number of devices it runs on. With
one device there is nothing to place, and nothing here is in the path.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cifar_jax.errors import InputError

AXIS = "data"
SYNCS = ("global", "per_replica")


class DataParallel(NamedTuple):
    """How a batch is spread.

    mesh: the devices, along one axis, "data".
    sync: over what BatchNorm takes its statistics in training: "global", the whole batch, as PyTorch's SyncBatchNorm
      does, or "per_replica", each device's share of it, as PyTorch's DistributedDataParallel does.
    """

    mesh: Mesh
    sync: str = "global"

    @property
    def devices(self) -> int:
        """Their number."""
        return self.mesh.size

    @property
    def everywhere(self) -> NamedSharding:
        """The placement of what every device holds whole."""
        return NamedSharding(self.mesh, P())

    @property
    def rows(self) -> NamedSharding:
        """The placement of what is cut along its first axis."""
        return NamedSharding(self.mesh, P(AXIS))


def data_parallel(devices: list[jax.Device], count: int, sync: str = "global") -> DataParallel | None:
    """The first `count` of the devices of all processes, -1 for all; None where that is a single one.

    Raises:
      InputError: there are not so many, or a process would be left without one.
    """
    processes = {device.process_index for device in devices}
    if len(processes) > 1 and count not in (-1, len(devices)):
        raise InputError(
            f"sharding.data must be -1 or the number of devices of all {len(processes)} processes, {len(devices)}, got "
            f"{count}."
        )
    if count > len(devices):
        raise InputError(f"sharding.data must be -1 or at most the number of devices, {len(devices)}, got {count}.")
    chosen = devices if count == -1 else devices[:count]
    return None if len(chosen) == 1 else DataParallel(Mesh(np.array(chosen), (AXIS,)), sync)


def place(tree: Any, sharding: NamedSharding | None) -> Any:
    """Arrays on the devices of `sharding`; None takes JAX's default device.

    Where other processes own some of the devices, each process passes the same arrays and fills its own devices.
    """
    if sharding is None:
        return jax.device_put(tree)
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def put(array):
        if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(jax.random.key_data(array)), impl=jax.random.key_impl(array))
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(put, tree)


def replicate(tree: Any, parallel: DataParallel | None) -> Any:
    """Arrays on every device."""
    return place(tree, parallel and parallel.everywhere)


def replicate_rows(tree: Any, parallel: DataParallel | None) -> Any:
    """Arrays with the same first axis, such as images and labels, on every device.

    Of several processes each reads and sends only the rows of its own devices, and the devices then pass them on to
    each other: the arrays may be memory-mapped files.
    """
    if parallel is None or parallel.everywhere.is_fully_addressable:
        return replicate(tree, parallel)

    def gather(array):
        n = len(array)
        padded = (n + -n % parallel.devices, *array.shape[1:])

        def read(index):
            start, stop, _ = index[0].indices(padded[0])
            rows = np.zeros((stop - start, *padded[1:]), array.dtype)
            rows[: max(n - start, 0)] = array[start:stop]
            return rows

        cut = jax.make_array_from_callback(padded, parallel.rows, read)
        return jax.jit(lambda rows: rows[:n], out_shardings=parallel.everywhere)(cut)

    return jax.tree.map(gather, tree)


def constrain(tree: Any, sharding: NamedSharding | None) -> Any:
    """Inside compiled code: lets the compiler place these arrays as told; None leaves it alone."""
    return tree if sharding is None else jax.lax.with_sharding_constraint(tree, sharding)


def over_devices(gradients: Callable[..., tuple], parallel: DataParallel) -> Callable[..., tuple]:
    """`gradients(params, batch_stats, x, labels, mask)` by each device on its own rows, put together for all.

    `gradients` gives the gradients of the summed loss divided by `count`, which it takes by keyword; running
    statistics; logits; and sums with a `count`. So does what is made of it, for the mean loss over the images of all
    devices: each image weighs the same, and a device whose rows only fill up the batch adds nothing.

    With `sync="global"`, `gradients` itself takes BatchNorm's statistics over all devices, along the axis `AXIS`.

    With `sync="per_replica"`, running statistics are the first replica's, which DDP copies to all before each forward
    pass; of a ragged batch, that replica has the most images. DDP's gradients are the mean over replicas of each one's
    mean, which is the same where all have as many images.

    Source: torch.nn.SyncBatchNorm; torch.nn.parallel.DistributedDataParallel (`broadcast_buffers=True`, its default).
    """

    def local(params, batch_stats, x, labels, mask):
        rows = len(labels)
        grads, batch_stats, logits, metrics = gradients(params, batch_stats, x, labels, mask, count=rows)
        if parallel.sync == "per_replica":
            first = jax.lax.axis_index(AXIS) == 0
            own = jax.tree.map(lambda value: jnp.where(first, value, jnp.zeros_like(value)), batch_stats)
            grads, metrics, batch_stats = jax.lax.psum((grads, metrics, own), AXIS)
        else:
            grads, metrics = jax.lax.psum((grads, metrics), AXIS)
        grads = jax.tree.map(lambda grad: grad * (rows / metrics.count.astype(grad.dtype)), grads)
        return grads, batch_stats, logits, metrics

    return jax.shard_map(
        local,
        mesh=parallel.mesh,
        in_specs=(P(), P(), P(AXIS), P(AXIS), P(AXIS)),
        out_specs=(P(), P(), P(AXIS), P()),
        check_vma=False,
    )
