"""What data parallelism costs: counted from the compiled step, worked out on paper, measured on simulated devices.

    python -m cifar_jax scaling OUT.json

The counts are those of the program that XLA makes for simulated devices of the CPU; on GPUs the same sums travel. The
efficiencies are arithmetic on these counts and on the assumptions below, and no measurement. The measurement is of
simulated devices that share this machine's cores: it shows what cutting a batch costs, never a speedup.
"""

import json
import math
import re
import time
from typing import NamedTuple

import jax
import numpy as np

from cifar_jax.command_line import Parser, path
from cifar_jax.data.shapes import make_shapes
from cifar_jax.devices.select import compiler_options
from cifar_jax.devices.sharding import SYNCS, DataParallel, data_parallel, place, replicate
from cifar_jax.errors import InputError
from cifar_jax.files import write_whole
from cifar_jax.nn.batch_norm import torch_rule
from cifar_jax.nn.fused import fuse
from cifar_jax.nn.models import NETWORKS, create_model
from cifar_jax.nn.optimizers import sgd
from cifar_jax.nn.transforms import Transform
from cifar_jax.runs import steps
from cifar_jax.runs.provenance import provenance
from cifar_jax.runs.state import create_state

BATCH = 200
_BYTES = {"f64": 8, "s64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "pred": 1, "u8": 1}
DATA_SET_BYTES = 60_000 * (32 * 32 * 3 + 4)


class Link(NamedTuple):
    """What connects devices. bandwidth: bytes a second and direction of one; latency: seconds of a small all-reduce."""

    bandwidth: float
    latency: float


# H100: 18 NVLink 4 links of 25 GB/s each way; one port of 400 Gb/s for each GPU. Latencies are round figures for NCCL's
# small all-reduces within a machine and across some.
NVLINK = Link(450e9, 20e-6)
ETHERNET = Link(50e9, 50e-6)
PEAK = 790e12  # FLOP/s in bfloat16, as an H200 multiplies large matrices
UTILISATION = 0.3  # of the peak, in a training step
DEVICES_PER_MACHINE = 8
# Of the table in docs/devices.md: within a machine both links are NVLink.
_COLUMNS = tuple(
    (n, link) for n in (8, 64, 512) for link in ("NVLink", "400 Gb/s Ethernet") if n > 8 or link == "NVLink"
)


class Collective(NamedTuple):
    """One collective operation of a compiled step: its kind, and the bytes that a device puts in."""

    kind: str
    bytes: int


def collectives(text: str) -> list[Collective]:
    """The collective operations in a compiled program.

    >>> line = "  %r = (f32[4,2]{1,0}, s32[]) all-reduce(%a, %b), channel_id=1"
    >>> collectives(line)
    [Collective(kind='all-reduce', bytes=36)]
    """
    operation = r" = (\(.*?\)|\S+) (all-reduce|all-gather|all-to-all|reduce-scatter|collective-\w+)(?:-start)?\("
    return [
        Collective(kind, sum(_bytes(*array) for array in re.findall(r"(\w+)\[([\d,]*)\]", shapes)))
        for shapes, kind in re.findall(operation, text)
    ]


def _bytes(dtype: str, shape: str) -> int:
    return _BYTES[dtype] * math.prod(int(size) for size in shape.split(",") if size)


def training_flops(stages: tuple[tuple[int, ...], ...], size: int, num_classes: int = 100) -> int:
    """Floating-point operations to train on one image: a multiply-add is two, and the gradients cost two passes more.

    >>> round(training_flops(NETWORKS["cnn6"], 32) / 1e9, 2)
    0.91
    """
    macs, first, channels = 0, 0, 3
    for widths in stages:
        for width in widths:
            macs += size * size * 9 * channels * width
            first = first or macs
            channels = width
        size //= 2
    # The first convolution's input needs no gradient.
    return 2 * (3 * (macs + channels * num_classes) - first)


def seconds_on_paper(count: int, size: int, devices: int, link: Link) -> float:
    """Time of a step's `count` all-reduces of `size` bytes together, none of it hidden behind arithmetic.

    A ring: each device sends and receives `2 (n - 1) / n` of the bytes. Across machines the sums are first made within
    each, over NVLink, so that a device sends only its share of them over the network.
    """
    inside = min(devices, DEVICES_PER_MACHINE) if link is ETHERNET else devices
    machines = devices // inside
    seconds = count * NVLINK.latency + 2 * (inside - 1) / inside * size / NVLINK.bandwidth
    if machines > 1:
        seconds += count * link.latency + 2 * (machines - 1) / machines * (size / inside) / link.bandwidth
    return seconds


def efficiency(count: int, size: int, flops: int, devices: int, link: Link, *, images: int) -> float:
    """Share of a step's time that goes into arithmetic, with so many images on each device."""
    arithmetic = images * flops / (UTILISATION * PEAK)
    return arithmetic / (arithmetic + seconds_on_paper(count, size, devices, link))


def efficiencies(count: int, size: int, flops: int) -> dict[str, dict[str, float]]:
    """`efficiency` for 8, 64 and 512 devices, by images on each and by what connects them."""
    return {
        f"{images} images a device": {
            f"{devices} over {name}": round(efficiency(count, size, flops, devices, link, images=images), 3)
            for devices in (8, 64, 512)
            for name, link in (("NVLink", NVLINK), ("400 Gb/s Ethernet", ETHERNET))
        }
        for images in (BATCH // 8, BATCH, 2048)
    }


class Step(NamedTuple):
    """A training step, compiled, with what it takes; `state` is donated."""

    compiled: jax.stages.Compiled
    state: object
    images: jax.Array
    labels: jax.Array
    batch: steps.Batch


def compile_step(stages, size: int, parallel: DataParallel | None) -> Step:
    """The lecture's SGD step on a batch of 200 of the embedded shapes."""
    model = fuse(create_model("cnn6" if len(stages) == 3 else "cnn10", norm_rule=torch_rule(), stages=stages))
    tx = sgd(lambda count: 0.005, momentum=0.9, weight_decay=5e-4)
    key = jax.random.key(0)
    state = replicate(create_state(model, tx, init_key=key, key=key, image_size=size), parallel)
    images, labels = replicate(tuple(array[:1000] for array in make_shapes().train), parallel)
    batch = steps.Batch(np.arange(BATCH, dtype=np.int32), None)
    batch = place(batch, parallel and parallel.rows)
    lowered = steps.train_step.lower(
        state, images, labels, batch, model=model, tx=tx, transform=Transform(size, "flip", True), parallel=parallel
    )
    return Step(lowered.compile(compiler_options=compiler_options(model.dtype)), state, images, labels, batch)


def count(name: str, size: int, sync: str) -> dict:
    """Collectives and memory of a step of the lecture's network on two simulated devices."""
    parallel = data_parallel(jax.devices(), 2, sync)
    step = compile_step(NETWORKS[name], size, parallel)
    found = collectives(step.compiled.as_text())
    flops, size_of_all = training_flops(NETWORKS[name], size), sum(collective.bytes for collective in found)
    memory = step.compiled.memory_analysis()
    state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves((step.state.params, step.state.opt_state)))
    return {
        "network": name,
        "image_size": size,
        "norm_sync": sync,
        "training_flops_per_image": flops,
        "collectives": len(found),
        "kinds": sorted({collective.kind for collective in found}),
        "bytes_per_device": size_of_all,
        "largest_bytes": max(collective.bytes for collective in found),
        "memory_bytes_per_device": {
            "parameters_and_momentum": state_bytes,
            "data_set": DATA_SET_BYTES,
            "activations_of_100_images": memory.temp_size_in_bytes,
        },
        "efficiency_on_paper": efficiencies(len(found), size_of_all, flops),
    }


def measure(devices: int, sync: str, *, repeats: int = 5) -> float:
    """Median processor seconds of a step of 200 images of a narrow CNN6 on so many simulated devices.

    Processor time, as the devices share the cores of this machine: perfect scaling would leave it as it is.
    """
    parallel = data_parallel(jax.devices(), devices, sync)
    step = compile_step(((8, 8), (16, 16), (16, 16)), 32, parallel)
    state, seconds = step.state, []
    for _ in range(repeats + 1):
        begin = time.process_time()
        state, metrics = step.compiled(state, step.images, step.labels, step.batch)
        jax.block_until_ready(metrics)
        seconds.append(time.process_time() - begin)
    return round(float(np.median(seconds[1:])), 3)


def table(record: dict) -> str:
    """The counts and the efficiencies of 200 images a device, as docs/devices.md shows them."""
    head = "| network | `norm.sync` | sums a step | MB a step and device | " + " | ".join(
        f"{devices}, {link}" for devices, link in _COLUMNS
    )
    lines = [head + " |", "|" + "---|" * (4 + len(_COLUMNS))]
    for row in record["counted"]:
        paper = row["efficiency_on_paper"][f"{BATCH} images a device"]
        cells = [
            f"{row['network'].upper()}, {row['image_size']}x{row['image_size']}",
            f"`{row['norm_sync']}`",
            str(row["collectives"]),
            f"{row['bytes_per_device'] / 1e6:.1f}",
            *(f"{100 * paper[f'{devices} over {link}']:.0f} %" for devices, link in _COLUMNS),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> None:
    """Writes the figures to the file that `argv` names, and prints the table of docs/devices.md.

    Raises:
      InputError: it names no such file.
    """
    parser = Parser("scaling", __doc__)
    parser.add_argument("out", type=path, metavar="OUT.json", help="a file in a folder that exists")
    out = parser.parse_args(argv).out
    if not out.absolute().parent.is_dir():
        raise InputError(f"OUT.json must be a file in a folder that exists, got {str(out)!r}.")
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    record = {
        **provenance(),
        "assumptions": {
            "flop_per_second": UTILISATION * PEAK,
            "nvlink": NVLINK._asdict(),
            "ethernet_400_gb": ETHERNET._asdict(),
            "devices_per_machine": DEVICES_PER_MACHINE,
            "overlap": "none",
        },
        "counted": [
            count(name, size, sync) for name, size in (("cnn6", 32), ("cnn10", 32), ("cnn10", 64)) for sync in SYNCS
        ],
        "processor_seconds_a_step_on_simulated_devices": {
            sync: {str(devices): measure(devices, sync) for devices in (1, 2, 4, 8)} for sync in SYNCS
        },
    }
    write_whole(out, json.dumps(record, indent=1) + "\n")
    print(table(record), end="")
