"""Where a process stands among those of a job: what flags, SLURM and Kubernetes say of it."""

import os
import re
from collections.abc import Mapping
from typing import NamedTuple

from cifar_jax.errors import InputError


class Place(NamedTuple):
    """A process's place among those of a job.

    coordinator: address of the first process, "host:port".
    device: the one of the machine's devices that is this process's; None for all of them.
    """

    coordinator: str
    processes: int
    process_id: int
    device: int | None = None


def find_place(
    coordinator: str | None, processes: str | None, process_id: str | None, environment: Mapping[str, str] = os.environ
) -> Place | None:
    """The place that flags or the environment give; None for a process on its own.

    Flags come first, then `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`, whose last one may also
    be the `JOB_COMPLETION_INDEX` of Kubernetes' indexed jobs, then a SLURM step of several tasks.

    Raises:
      InputError: some of the three are missing, or they do not fit together.
    """
    given = {"--coordinator": coordinator, "--processes": processes, "--process_id": process_id}
    sources = {
        "--coordinator": ("JAX_COORDINATOR_ADDRESS",),
        "--processes": ("JAX_NUM_PROCESSES",),
        "--process_id": ("JAX_PROCESS_ID", "JOB_COMPLETION_INDEX"),
    }
    # Any indexed job has a completion index, also one whose processes do not belong together.
    if all(value is None for value in given.values()) and not {"JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES"} & set(
        environment
    ):
        return _find_slurm_place(environment)
    for flag, names in sources.items():
        found = next((environment[name] for name in names if name in environment), None)
        if given[flag] is None:
            given[flag] = found
    missing = [flag for flag, value in given.items() if value is None]
    if missing:
        flag = missing[0]
        raise InputError(
            f"{flag} must be given with the other two of {', '.join(given)}, or {' or '.join(sources[flag])} be set, "
            "got neither."
        )
    coordinator, processes, process_id = given.values()
    if not re.fullmatch(r"[^/]+:[0-9]{1,5}", coordinator) or int(coordinator.rsplit(":", 1)[1]) > 65535:
        raise InputError(f"--coordinator must be HOST:PORT, got {coordinator!r}.")
    for flag in ("--processes", "--process_id"):
        if not re.fullmatch("[0-9]+", given[flag]):
            raise InputError(f"{flag} must be a whole number, got {given[flag]!r}.")
    processes, process_id = int(processes), int(process_id)
    if not process_id < processes:
        raise InputError(f"--process_id must be from 0 to below --processes={processes}, got {process_id}.")
    return Place(coordinator, processes, process_id) if processes > 1 else None


def _find_slurm_place(environment: Mapping[str, str]) -> Place | None:
    """The place of a task of a SLURM step; None outside one, or where the step has one task.

    Source: srun's manual page, output environment variables.
    """
    # A batch script also has SLURM_NTASKS; only what srun starts has a step.
    if "SLURM_STEP_NODELIST" not in environment or int(environment.get("SLURM_NTASKS", "1")) < 2:
        return None
    # Such as node7, node7,node9 or node[07-12,31],other3.
    name, first = re.match(r"([^,\[]+)(?:\[(\d+))?", environment["SLURM_STEP_NODELIST"]).groups()
    port = 61440 + int(environment["SLURM_JOB_ID"]) % 4096  # another for each job, as JAX itself chooses it
    alone = re.match(r"1(\D|$)", environment.get("SLURM_STEP_TASKS_PER_NODE", ""))  # such as 1(x4)
    bound = len(environment.get("CUDA_VISIBLE_DEVICES", "0,1").split(",")) == 1
    return Place(
        f"{name}{first or ''}:{port}",
        int(environment["SLURM_NTASKS"]),
        int(environment["SLURM_PROCID"]),
        None if alone or bound else int(environment["SLURM_LOCALID"]),
    )
