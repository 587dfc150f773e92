"""Many processes as one run: agreements without processes, then real ones on the loopback device that are killed."""

import json
import signal
import threading
import time

import pytest
from processes import finish, free_port, start

from cifar_jax.devices.cluster import Place, find_place
from cifar_jax.devices.distributed import LOST, Job
from cifar_jax.devices.interrupt import Interrupted
from cifar_jax.errors import InputError

SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NODELIST": "gpu[007-008]",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
}
JOBSET = {
    "JAX_COORDINATOR_ADDRESS": "cifar-train-0-0.cifar:1234",
    "JAX_NUM_PROCESSES": "2",
    "JOB_COMPLETION_INDEX": "1",
}


@pytest.mark.parametrize(
    ("flags", "environment", "place"),
    [
        ((None, None, None), {}, None),
        ((None, None, None), {"JOB_COMPLETION_INDEX": "3"}, None),
        (("a:1", "2", "1"), {}, Place("a:1", 2, 1)),
        (("a:1", "2", "1"), SLURM, Place("a:1", 2, 1)),
        (("a:1", "1", "0"), {}, None),
        ((None, None, None), SLURM, Place("gpu007:61441", 8, 5, 1)),
        ((None, None, None), {**SLURM, "SLURM_STEP_TASKS_PER_NODE": "1(x8)"}, Place("gpu007:61441", 8, 5)),
        ((None, None, None), {**SLURM, "CUDA_VISIBLE_DEVICES": "1"}, Place("gpu007:61441", 8, 5)),
        ((None, None, None), {**SLURM, "SLURM_STEP_NODELIST": "a,b[1-2]"}, Place("a:61441", 8, 5, 1)),
        ((None, None, None), {**SLURM, "SLURM_STEP_NODELIST": "b[1,4-7],c"}, Place("b1:61441", 8, 5, 1)),
        ((None, None, None), {**SLURM, "SLURM_NTASKS": "1"}, None),
        ((None, None, None), {k: v for k, v in SLURM.items() if "STEP" not in k}, None),
        ((None, None, None), JOBSET, Place("cifar-train-0-0.cifar:1234", 2, 1)),
        ((None, None, None), {**JOBSET, "JAX_PROCESS_ID": "0"}, Place("cifar-train-0-0.cifar:1234", 2, 0)),
    ],
)
def test_where_a_process_belongs(flags, environment, place):
    assert find_place(*flags, environment) == place


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("a:1", None, "0"), "--processes must be given with the other two .* or JAX_NUM_PROCESSES be set"),
        (("a", "2", "0"), "--coordinator must be HOST:PORT, got 'a'"),
        (("a:99999", "2", "0"), "--coordinator must be HOST:PORT, got 'a:99999'"),
        (("http://a:1", "2", "0"), "--coordinator must be HOST:PORT, got 'http://a:1'"),
        (("a:²", "2", "0"), "--coordinator must be HOST:PORT, got 'a:²'"),
        (("", "", ""), "--coordinator must be HOST:PORT, got ''"),
        (("a:1", "2", "²"), "--process_id must be a whole number, got '²'"),
        (("a:1", "two", "0"), "--processes must be a whole number, got 'two'"),
        (("a:1", "2", "2"), "--process_id must be from 0 to below --processes=2, got 2"),
    ],
)
def test_a_place_that_does_not_fit_is_refused(flags, message):
    with pytest.raises(InputError, match=message):
        find_place(*flags, {})


class Memory:
    """JAX's key-value store, for threads of one process."""

    def __init__(self):
        self.texts, self.lock, self.broken = {}, threading.Lock(), False

    def key_value_set(self, key, value, allow_overwrite=False):
        with self.lock:
            if self.broken:
                raise RuntimeError("UNAVAILABLE")
            assert allow_overwrite or key not in self.texts, key
            self.texts[key] = value

    def key_value_dir_get(self, key):
        with self.lock:
            if self.broken:
                raise RuntimeError("UNAVAILABLE")
            return [(name, text) for name, text in sorted(self.texts.items()) if name.startswith(key)]

    def key_value_increment(self, key, increment):
        with self.lock:
            self.texts[key] = str(int(self.texts.get(key, "0")) + increment)
            return int(self.texts[key])


def together(count, work, **options):
    """`work(job)` for each of so many jobs, each in a thread; what each returned or raised, and how jobs were ended."""
    store, results, ends = Memory(), [None] * count, []
    options = {"beat": 0.01, "limit": 0.3} | options

    def run(i):
        job = Job(store, i, count, end=lambda text, code: ends.append((i, text, code)), **options)
        try:
            results[i] = work(job)
        except BaseException as error:
            results[i] = error

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    return results, ends


def test_one_refusal_is_everyones():
    def work(job):
        with job.agreement():
            pass
        with job.agreement():
            if job.process_id == 1:
                raise InputError("data.dir must be here.")
        return "went on"

    results, _ = together(3, work)
    assert [type(result) for result in results] == [InputError] * 3
    assert str(results[1]) == "data.dir must be here."
    assert str(results[0]) == str(results[2]) == "data.dir must be here. (Process 1 of 3 says so.)"


def test_other_values_in_one_process_are_refused_by_all():
    """With another seed, say, the processes would train, and come to nothing."""

    def work(job):
        with job.agreement({"dtype": "float32", "seed": 7 if job.process_id == 2 else 0}):
            pass

    results, _ = together(3, work)
    message = "seed must be the same in all 3 processes, got 0 in process 0 and 7 in process 2."
    assert [(type(result), str(result)) for result in results] == [(InputError, message)] * 3


@pytest.mark.parametrize("asker", [0, 2])
def test_all_stop_at_the_same_step(asker):
    """Steps that each need all processes, which run apart by up to two of them."""
    count, gate, passed = 3, threading.Condition(), [0] * 3

    def work(job):
        i = job.process_id
        for step in range(1000):
            with gate:  # a collective: done when all have taken part in it
                passed[i] = step + 1
                gate.notify_all()
                assert gate.wait_for(lambda step=step: min(passed) >= step - 1, timeout=10)
            if i == asker and step == 20:
                job.ask_to_stop(signal.SIGTERM)
            time.sleep(0.001 * i)
            try:
                job.after_step()
            except Interrupted as interrupted:
                passed[i] = 10**6  # the others still get what they were promised
                with gate:
                    gate.notify_all()
                return step, interrupted.signum
        return None

    results, ends = together(count, work)
    assert len(set(results)) == 1, results
    assert results[0][1] == signal.SIGTERM
    assert 20 <= results[0][0] < 1000
    assert not ends


def test_every_turn_is_one_process_s():
    all_here = threading.Barrier(3)

    def work(job):
        all_here.wait()
        turns = []
        while (turn := job.next_turn()) < 50:
            turns.append(turn)
            time.sleep(0.01)
        return turns

    results, _ = together(3, work, limit=30.0)
    assert sorted(turn for turns in results for turn in turns) == list(range(50))
    assert all(results), "each had some"


@pytest.mark.parametrize("waiting", [True, False])
def test_who_shares_work_only_stops_when_anyone_is_asked(waiting):
    def work(job):
        if job.process_id == 2:
            time.sleep(0.1)
            job.ask_to_stop(signal.SIGTERM)
        if waiting and job.process_id != 2:
            job.wait_for_others(lambda: None)
        for _ in range(1000):
            job.check_stop()
            time.sleep(0.01)

    results, _ = together(3, work, limit=30.0)
    assert [(type(result), result.signum) for result in results] == [(Interrupted, signal.SIGTERM)] * 3


def test_who_is_done_waits_for_the_others():
    looks, ends = [], []

    def work(job):
        time.sleep(0.2 * job.process_id)
        ends.append(job.process_id)
        job.wait_for_others(lambda: looks.append(job.process_id))
        return list(ends)

    results, _ = together(2, work, limit=30.0)
    assert results == [[0, 1], [0, 1]]
    assert 0 in looks


def test_who_shows_no_life_is_named():
    def work(job):
        if job.process_id == 2:
            job._closed.set()
        time.sleep(1.0)
        job._closed.set()

    _, ends = together(4, work)
    assert sorted({i for i, _, _ in ends}) == [0, 1, 3]
    assert {code for _, _, code in ends} == {LOST}
    assert {text for _, text, _ in ends} == {
        "Process 2 of 4 was lost: no sign of life for 0.3 s. The same command goes on from the last checkpoint."
    }


def test_one_failure_ends_all():
    def work(job):
        if job.process_id == 1:
            job.leave(OSError("disk full"))
        time.sleep(0.5)
        job._closed.set()

    _, ends = together(2, work)
    assert (0, "Process 1 of 2 failed: OSError: disk full", 1) in ends


def test_a_store_that_is_gone_is_the_first_process():
    def work(job):
        job._store.broken = True
        time.sleep(0.3)

    _, ends = together(2, work)
    assert any("Process 0 of 2, which coordinates the others, was lost" in text for _, text, _ in ends)


# Real processes

SMALL = (
    "main.py",
    "--config=configs/quickstart.py",
    "--config.model.stages=((4,4),(4,4),(4,4))",
    "--config.data.limit_train=200",
    "--config.data.limit_test=51",
    "--config.data.batch_size=50",
    "--config.dtype=float64",
    "--config.schedule.t_max=1000",
)
# Of one process alone: joins the others, then waits.
WAIT = """
import sys, time
from cifar_jax.devices.cluster import Place
from cifar_jax.devices.distributed import joined
from cifar_jax.devices.interrupt import Interrupt
with joined(Place(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])), Interrupt(), seconds=int(sys.argv[4])):
    print("joined", file=sys.stderr, flush=True)
    time.sleep(100)
"""


def start_job(places, *arguments):
    """A process for each of the environments that tell it its place."""
    return [start(*SMALL, *arguments, **variables) for variables in places]


def slurm(tasks):
    """What srun sets on a machine of its own, for this one's tasks."""
    port = free_port(range(61440, 65536))
    everyone = {"SLURM_JOB_ID": port - 61440, "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": tasks}
    everyone["SLURM_STEP_TASKS_PER_NODE"] = tasks
    return [{k: str(v) for k, v in {**everyone, "SLURM_PROCID": i, "SLURM_LOCALID": i}.items()} for i in range(tasks)]


def jobset(pods):
    """What the manifest and Kubernetes set."""
    everyone = {"JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}", "JAX_NUM_PROCESSES": str(pods)}
    return [{**everyone, "JOB_COMPLETION_INDEX": str(i)} for i in range(pods)]


def rows(workdir):
    path = workdir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_for_epochs(processes, workdir, count, timeout=900):
    end = time.monotonic() + timeout
    while len(rows(workdir)) < count:
        assert all(process.poll() is None for process in processes), [finish(process) for process in processes]
        assert time.monotonic() < end
        time.sleep(0.05)


def checkpoints(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


@pytest.mark.slow
def test_a_job_that_is_killed_and_stopped_goes_on_with_fewer_processes(tmp_path):
    """Four tasks of SLURM, of which one is killed; then two pods, of which one is asked to stop; then one, to the end.

    1e-10 against a run of one process that nobody stopped: two programs may add in another order.
    """
    endless = (f"--workdir={tmp_path / 'run'}", "--config.train.epochs=10000")
    job = start_job(slurm(4), *endless)
    wait_for_epochs(job, tmp_path / "run", 2)
    killed = time.monotonic()
    job[2].kill()
    ended = [finish(process) for process in job]
    assert time.monotonic() - killed < 60
    assert [code for code, _, _ in ended] == [LOST, LOST, -signal.SIGKILL, LOST]
    for i in (0, 1, 3):
        assert "Error: Process 2 of 4 was lost: no sign of life for 20 s." in ended[i][2]
    assert "epoch" in ended[0][1]
    assert all("epoch" not in out for _, out, _ in ended[1:])  # one process writes
    done = len(rows(tmp_path / "run"))

    job = start_job(jobset(2), *endless)
    wait_for_epochs(job, tmp_path / "run", done + 1)
    job[1].terminate()
    ended = [finish(process) for process in job]
    assert [code for code, _, _ in ended] == [128 + signal.SIGTERM] * 2, ended
    newest = checkpoints(tmp_path / "run")[-1]
    assert newest == len(rows(tmp_path / "run"))
    for _, _, err in ended:
        assert f"Stopped; the checkpoint of epoch {newest} is kept" in err
    assert "Resuming the run" in ended[0][1]

    last = f"--config.train.epochs={newest + 1}"
    for folder in ("run", "whole"):
        code, _, err = finish(start(*SMALL, f"--workdir={tmp_path / folder}", last))
        assert code == 0, err
    here, there = (rows(tmp_path / folder) for folder in ("run", "whole"))
    assert len(here) == len(there) == newest + 1
    for row, expected in zip(here, there, strict=True):
        assert row == {
            **{key: pytest.approx(value, rel=0, abs=1e-10) for key, value in expected.items()},
            "seconds": row["seconds"],
            "images_per_second": row["images_per_second"],
        }
    assert len((tmp_path / "run" / "starts.jsonl").read_text().splitlines()) == 3


def test_a_first_process_that_is_killed_ends_the_others():
    """By JAX itself, at once, and in its words."""
    address = f"127.0.0.1:{free_port()}"
    job = [start("-c", WAIT, address, 2, i, 60) for i in range(2)]
    for process in job:
        assert process.stderr.readline() == "joined\n"
    job[0].kill()
    code, _, err = finish(job[1], timeout=60)
    assert code not in (0, None)
    assert (
        "the leader task was preempted/died" in err or "Process 0 of 2, which coordinates the others, was lost" in err
    )
    finish(job[0])


def test_a_process_that_waits_for_the_others_can_be_stopped():
    script = """
import sys
from cifar_jax.devices.cluster import Place
from cifar_jax.devices.distributed import joined
from cifar_jax.devices.interrupt import interruptible
with interruptible() as interrupt:
    print("waits", file=sys.stderr, flush=True)
    with joined(Place(sys.argv[1], 2, 0), interrupt, seconds=60):
        pass
"""
    process = start("-c", script, f"127.0.0.1:{free_port()}")
    assert process.stderr.readline() == "waits\n"
    time.sleep(1)
    process.terminate()
    assert finish(process, timeout=10)[0] == -signal.SIGTERM


def test_a_coordinator_that_does_not_answer_ends_in_bounded_time():
    begun = time.monotonic()
    process = start("-c", WAIT, f"127.0.0.1:{free_port()}", 2, 1, 2)
    code, _, err = finish(process, timeout=60)
    assert code == 2
    assert time.monotonic() - begun < 60
    assert err.count("\n") == 1
    assert (
        "Error: --coordinator must be where a first process can be reached and all 2 processes meet within 2 s" in err
    )
    assert "where no process answers" in err


# Three runs by one pair of processes: an epoch as one call, as on accelerators; images in host memory; statistics of
# each device's own images. One process has a device for the first two, and two for the last.
RUNS = """
import sys
from pathlib import Path
import cifar_jax.runs.train
from cifar_jax.devices.cluster import Place
from cifar_jax.devices.distributed import joined
from cifar_jax.devices.interrupt import Interrupt
from configs.quickstart import get_config

def run(folder, job=None):
    for name, whole, placement in (("whole", True, "device"), ("host", False, "host"), ("replicas", False, "device")):
        config = get_config()
        config.dtype, config.data.placement, config.data.batch_size = "float64", placement, 33
        if name == "replicas":
            config.norm.sync, config.sharding.data = "per_replica", 2
        elif job is None:
            config.sharding.data = 1
        config.data.limit_train, config.data.limit_test = 100, 51
        config.model.stages, config.train.epochs = ((4, 4), (4, 4), (4, 4)), 2
        cifar_jax.runs.train.train_and_evaluate(config, Path(folder) / name, job=job, whole_epochs=whole)

if len(sys.argv) == 2:
    run(sys.argv[1])
else:
    with joined(Place(sys.argv[2], 2, int(sys.argv[3])), Interrupt()) as job:
        run(sys.argv[1], job)
"""


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(tmp_path):
    """1e-10: two programs may add in another order."""
    address = f"127.0.0.1:{free_port()}"
    processes = [start("-c", RUNS, tmp_path / "two", address, i) for i in range(2)]
    processes.append(start("-c", RUNS, tmp_path / "one", JAX_NUM_CPU_DEVICES="2"))
    for process in processes:
        code, _, err = finish(process)
        assert code == 0, err
    for name in ("whole", "host", "replicas"):
        for row, expected in zip(*(rows(tmp_path / folder / name) for folder in ("two", "one")), strict=True):
            for key in ("train_loss", "train_accuracy", "test_loss", "test_accuracy"):
                assert row[key] == pytest.approx(expected[key], rel=0, abs=1e-10), (name, key)
        assert checkpoints(tmp_path / "two" / name)[-1] == 2
    losses = [rows(tmp_path / "two" / name)[0]["train_loss"] for name in ("whole", "replicas")]
    assert abs(losses[0] - losses[1]) > 1e-6, "statistics of half a batch are others"
