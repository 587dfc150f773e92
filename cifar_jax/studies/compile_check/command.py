"""Compiles training and evaluation for GPUs and TPUs that need not be there, and counts what a step would do.

    python -m cifar_jax compile-check [TARGET ...] [--quick] [--out=results/compile.json]

TARGET is h100, a100, v5e or v6e. For each, an epoch of training and one of evaluation of the three networks (cnn6,
cnn10, cnn10_64) in float32 and bfloat16, on one device and on eight, at batches of 200: 96 programs, of which one takes
5 to 30 s for a GPU and 10 to 120 for a TPU.

XLA compiles for a device from its description, so this needs the compilers, but no device, driver or CUDA library:

    pip install --no-deps jax-cuda12-plugin==VERSION jax-cuda12-pjrt==VERSION    (for the GPUs; VERSION is jax's own)
    pip install 'jax[tpu]'                                                       (for the TPUs)

For each program the file has: whether it compiled, XLA's warnings, and of one step: kernels, megabytes they read and
write, collectives, kernels that only transpose, and elements that are looked up one by one; and the peak memory. It is
written anew after each program. Exits with 0 where all compiled, else with 1.
"""

import dataclasses
import importlib.metadata
import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from cifar_jax.command_line import Parser, path
from cifar_jax.errors import InputError
from cifar_jax.files import write_whole
from cifar_jax.runs.provenance import command, commit

GPUS = ("h100", "a100")
TPUS = ("v5e", "v6e")
NETWORKS = {"cnn6": ("cnn6", 32), "cnn10": ("cnn10", 32), "cnn10_64": ("cnn10", 64)}
DTYPES = ("float32", "bfloat16")
DEVICES = (1, 8)
PROGRAMS = ("train_epoch", "eval_epoch")
BATCH = 200
IMAGES = {"train_epoch": 50_000, "eval_epoch": 10_000}
_PACKAGES = ("jax", "jaxlib", "jax-cuda12-plugin", "libtpu", "flax", "optax")


@dataclasses.dataclass(frozen=True)
class Program:
    """One program for one kind of device."""

    target: str
    network: str
    dtype: str
    devices: int
    name: str

    def __str__(self):
        return f"{self.target} x{self.devices} {self.network} {self.dtype} {self.name}"


def programs(targets, *, quick: bool) -> list[Program]:
    """Those to compile, in the order of the file."""
    every = itertools.product(targets, ("cnn6",) if quick else NETWORKS, DTYPES, DEVICES, PROGRAMS)
    return [p for p in itertools.starmap(Program, every) if not (quick and p.devices > 1 and p.name == "eval_epoch")]


def missing(target: str) -> str | None:
    """Which package this Python lacks to compile for `target`."""
    package = "jax-cuda12-plugin" if target in GPUS else "libtpu"
    return None if _installed(package) else package


def describe_gpu(target: str) -> str:
    """What XLA must know of a GPU, in the text form of its `GpuTargetConfigProto`. Source: NVIDIA's data sheets."""
    differs = {
        "h100": {
            "name": "NVIDIA H100 80GB HBM3", "capability": "major: 9 feature_extension: ACCELERATED_FEATURES",
            "cores": 132, "units": 128, "clock": 1.98, "bandwidth": 3_352_320_000_000, "memory": 84_942_979_072,
            "cache": 52_428_800, "shared_per_core": 233_472, "shared_per_block": 232_448,
        },
        "a100": {
            "name": "NVIDIA A100-SXM4-80GB", "capability": "major: 8",
            "cores": 108, "units": 64, "clock": 1.41, "bandwidth": 2_039_040_000_000, "memory": 85_100_068_864,
            "cache": 41_943_040, "shared_per_core": 167_936, "shared_per_block": 166_912,
        },
    }[target]  # fmt: skip
    return """
        gpu_device_info {{
          threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
          shared_memory_per_block: 49152 shared_memory_per_core: {shared_per_core}
          shared_memory_per_block_optin: {shared_per_block}
          core_count: {cores} fpus_per_core: {units} clock_rate_ghz: {clock}
          block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
          thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
          memory_bandwidth: {bandwidth} l2_cache_size: {cache} device_memory_size: {memory}
          cuda_compute_capability {{ {capability} }}
          registers_per_core_limit: 65536 registers_per_block_limit: 65536
          driver_version: "13.0.0" runtime_version: "12.9.0" compile_time_toolkit_version: "12.9.0"
          dnn_version: "9.10.0"
        }}
        platform_name: "CUDA"
        dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
        runtime_version {{ major: 12 minor: 9 patch: 0 }}
        device_description_str: "{name}"
    """.format(**differs)


def find_devices(target: str, count: int):
    """Devices of a machine that is not there."""
    from jax.experimental import topologies

    if target in GPUS:
        description = topologies.get_topology_desc(
            "", "cuda", target_config=describe_gpu(target), topology=f"1x1x{count}"
        )
    else:
        description = topologies.get_topology_desc(f"{target}:{'1x1' if count == 1 else '2x4'}", "tpu")
    return description.devices[:count]


def compile_program(program: Program):
    """The compiled program, as a run on such devices would compile it."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import Mesh, SingleDeviceSharding

    from cifar_jax.devices.sharding import AXIS, DataParallel
    from cifar_jax.nn import optimizers
    from cifar_jax.nn.batch_norm import torch_rule
    from cifar_jax.nn.fused import fuse
    from cifar_jax.nn.models import create_model
    from cifar_jax.nn.transforms import Transform
    from cifar_jax.runs import steps
    from cifar_jax.runs.state import TrainState

    network, size = NETWORKS[program.network]
    devices = find_devices(program.target, program.devices)
    parallel = None if len(devices) == 1 else DataParallel(Mesh(np.array(devices), (AXIS,)))
    everywhere = SingleDeviceSharding(devices[0]) if parallel is None else parallel.everywhere

    def on_devices(tree):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), tree)

    model = fuse(create_model(network, norm_rule=torch_rule(), dtype=jnp.dtype(program.dtype)))
    tx = optimizers.sgd(0.1, momentum=0.9, weight_decay=5e-4)

    def fresh(key):
        variables = model.init(key, jnp.zeros((2, size, size, 3)), train=False)
        params, batch_stats = variables["params"], variables["batch_stats"]
        return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, tx.init(params), key)

    state = on_devices(jax.eval_shape(lambda: fresh(jax.random.key(0))))
    n = IMAGES[program.name]
    images = on_devices(jax.ShapeDtypeStruct((n, 32, 32, 3), jnp.uint8))
    labels = order = on_devices(jax.ShapeDtypeStruct((n,), jnp.int32))
    parts = {"model": model, "transform": Transform(size), "parallel": parallel, "batch_size": BATCH}
    if program.name == "train_epoch":
        traced = steps.train_epoch.trace(state, images, labels, order, None, sampler="shuffle", tx=tx, **parts)
    else:
        traced = steps.eval_epoch.trace(state.params, state.batch_stats, images, labels, **parts)
    return traced.lower(lowering_platforms=("cuda" if program.target in GPUS else "tpu",)).compile()


def examine(program: Program) -> dict:
    """The row of a program that compiles, but for its warnings."""
    from cifar_jax.studies.compile_check import hlo

    start = time.perf_counter()
    compiled = compile_program(program)
    seconds, memory = time.perf_counter() - start, compiled.memory_analysis()
    peak = getattr(memory, "peak_memory_in_bytes", 0) or (
        memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
    )
    row = {"compiles": True, **hlo.count(compiled.as_text())._asdict(), "peak_megabytes": round(peak / 1e6, 1)}
    return {**row, "compile_seconds": round(seconds, 1)}


def check(program: Program) -> dict:
    """The row of a program, compiled in a process of its own: a compiler that fails may abort."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    if program.target in TPUS:  # else libtpu asks the network what machine this is
        environment |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}
        environment |= {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    arguments = json.dumps(dataclasses.asdict(program))
    code = "from cifar_jax.studies.compile_check import command; command.print_row()"
    done = subprocess.run([sys.executable, "-c", code, arguments], capture_output=True, text=True, env=environment)
    log = [re.sub(r"^([WEF])\d{4} [\d:.]+ +\d+ ", r"\1 ", line) for line in done.stderr.splitlines()]
    if done.returncode == 0:
        row = json.loads(done.stdout.splitlines()[-1])
    else:
        row = {"compiles": False, "error": log[-1] if log else f"exit code {done.returncode}"}
    warnings = [line[:200] for line in log if re.match(r"[WE] ", line)]
    return {**dataclasses.asdict(program), **row, "warnings": list(dict.fromkeys(warnings))}


def print_row() -> None:
    """What a process of `check` does."""
    print(json.dumps(examine(Program(**json.loads(sys.argv[1])))))


def main(argv: list[str]) -> int:
    """`python -m cifar_jax compile-check`."""
    parser = Parser("compile-check", __doc__)
    parser.add_argument(
        "targets", nargs="*", metavar="TARGET", help=f"some of {', '.join(GPUS + TPUS)}; all without one"
    )
    parser.add_argument("--quick", action="store_true", help="CNN6 alone, and no evaluation on eight devices")
    parser.add_argument("--out", type=path, default=Path("results/compile.json"), help="the file to write")
    given = parser.parse_args(argv)
    if unknown := sorted(set(given.targets) - {*GPUS, *TPUS}):
        raise InputError(f"TARGET must be one of {', '.join(GPUS + TPUS)}, got {unknown[0]}.")
    targets = given.targets or [*GPUS, *TPUS]
    if lacking := sorted({package for target in targets if (package := missing(target))}):
        raise InputError(f"compile-check for {', '.join(targets)} needs {', '.join(lacking)}; see its --help.")
    if not given.out.parent.is_dir():
        raise InputError(f"--out must be a file in a folder that exists, got {str(given.out)!r}.")
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES if _installed(name)}
    record = {"command": command(), "commit": commit(), "versions": versions, "batch_size": BATCH, "programs": []}
    for program in programs(targets, quick=given.quick):
        row = check(program)
        record["programs"].append(row)
        write_whole(given.out, json.dumps(record, indent=1) + "\n")
        what = f"{row['kernels']} kernels, {row['megabytes']} MB a step" if row["compiles"] else row["error"]
        print(f"{program}: {what}", flush=True)
    return 0 if all(row["compiles"] for row in record["programs"]) else 1


def _installed(package):
    return importlib.util.find_spec(package.replace("-", "_")) is not None
