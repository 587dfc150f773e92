"""Many processes as one run: finding each other, agreeing on errors and on where to stop, noticing who is lost.

Numbers travel between devices, by what JAX compiles. What is here is between the hosts, over the key-value store of
JAX's coordination service, which the first process serves. With one process there is no job, and nothing of this runs.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import jax

from cifar_jax.devices.cluster import Place
from cifar_jax.devices.interrupt import Interrupt, Interrupted
from cifar_jax.errors import DivergedError, InputError

LOST = 3  # the exit code of a run that lost a process

_SECONDS_TO_START = 300  # until all processes are there
_SECONDS_BETWEEN_BEATS = 2.0
_SECONDS_UNTIL_LOST = 20.0


@runtime_checkable
class Store(Protocol):
    """What is used of JAX's key-value store."""

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None:
        """Writes a text; without `allow_overwrite` only where there is none."""

    def key_value_dir_get(self, key: str) -> list[tuple[str, str]]:
        """All keys that begin like this, with their texts."""

    def key_value_increment(self, key: str, increment: int) -> int:
        """Adds to a number, 0 at first, and gives the sum; no two processes get the same."""


@contextlib.contextmanager
def joined(place: Place | None, interrupt: Interrupt, *, seconds: int = _SECONDS_TO_START) -> "Iterator[Job | None]":
    """This process as one of a job, from before JAX starts a backend; None where `place` is None.

    While inside, a signal asks all processes to stop, and only the first one writes to standard output. Where they have
    not all been there within `seconds`, this process ends with exit code 2.
    """
    if place is None:
        yield None
        return
    # Its handler of SIGTERM would replace ours, and it does not know Ctrl-C.
    jax.config.update("jax_enable_preemption_service", False)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # JAX knows a time limit, too, at which it aborts the process with a stack trace.
    deadline = threading.Timer(seconds, _end_alone, [place, seconds])
    deadline.daemon = True
    deadline.start()
    # Python's own handlers would have to wait until it returns; there is nothing to save yet.
    handlers = {name: signal.signal(name, signal.SIG_DFL) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        jax.distributed.initialize(
            place.coordinator, place.processes, place.process_id, local_device_ids=place.device,
            cluster_detection_method="deactivate", initialization_timeout=seconds + 60,
        )  # fmt: skip
    finally:
        deadline.cancel()
        for name, handler in handlers.items():
            signal.signal(name, handler)
    # JAX offers the store to no one, and has nothing else that works while a process is lost.
    from jax._src.distributed import global_state

    job = Job(global_state.client, global_state.process_id, global_state.num_processes)
    interrupt.ask = job.ask_to_stop
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere if job.process_id else sys.stdout):
            yield job
    except BaseException as error:
        job.leave(error)
        raise
    job.close()
    # A signal that came too late to stop the job must not be lost on what follows it.
    interrupt.ask, interrupt.signum = None, job.signum


class Job:
    """This process among those of a run.

    A thread shows the others that this process lives, and ends it when another does not.
    """

    def __init__(
        self,
        store: Store,
        process_id: int,
        processes: int,
        *,
        beat: float = _SECONDS_BETWEEN_BEATS,
        limit: float = _SECONDS_UNTIL_LOST,
        end: Callable[[str, int], None] | None = None,
    ):
        self.process_id, self.processes = process_id, processes
        self._store, self._beat, self._limit, self._end = store, beat, limit, end or _end
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._agreements, self._agreed = 0, False
        self._points, self.signum, self._last_point = 0, None, None
        self._seen: dict[str, tuple[str, float]] = {}
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    # Errors

    @contextlib.contextmanager
    def agreement(self, values: Mapping[str, Any] | None = None) -> Iterator[None]:
        """All processes leave this block together, or with the InputError that one of them met inside.

        They also refuse `values`, ready for JSON, that are not the same in all: such runs would not fit together.
        """
        error = None
        try:
            yield
        except InputError as raised:
            error = raised
        self._agreements += 1
        folder = f"agreement{self._agreements}/"
        said = json.dumps([str(error or ""), values])
        self._store.key_value_set(f"{folder}{self.process_id}", said)
        everyone = {i: json.loads(text) for i, text in sorted(self._wait_for_all(folder).items())}
        different = next((i for i in everyone if everyone[i][1] != everyone[0][1]), None)
        self._agreed = different is not None or any(text for text, _ in everyone.values())
        if error is not None:
            raise error
        for process_id, (text, _) in everyone.items():
            if text:
                raise InputError(f"{text} (Process {process_id} of {self.processes} says so.)")
        if different is not None:
            first, other = everyone[0][1], everyone[different][1]
            key = next(key for key in {**first, **other} if first.get(key) != other.get(key))
            raise InputError(
                f"{key} must be the same in all {self.processes} processes, got {first.get(key)!r} in process 0 and "
                f"{other.get(key)!r} in process {different}."
            )

    def fail(self, text: str, code: int) -> None:
        """Ends all other processes, with this text: this one met an error that they have not."""
        with contextlib.suppress(Exception):
            text = f"{code} Process {self.process_id} of {self.processes} failed: {text}"
            self._store.key_value_set("verdict/all", text, allow_overwrite=True)
            time.sleep(2 * self._beat)

    # Work that is shared out

    def next_turn(self) -> int:
        """0, 1, 2, ...: each number goes to one process, whichever asks next."""
        return self._store.key_value_increment("turn", 1) - 1

    def wait_for_others(self, meanwhile: Callable[[], None]) -> None:
        """Waits until all processes are here; calls `meanwhile` again and again, and raises as `check_stop`."""
        self._store.key_value_set(f"here/{self.process_id}", "")

        def look():
            self.check_stop()
            meanwhile()

        self._wait_for_all("here/", look, nap=1.0)

    # Stopping

    def check_stop(self) -> None:
        """Raises Interrupted if any process was asked to stop: for processes that compute nothing together."""
        if self.signum is not None:
            raise Interrupted(self.signum)

    def ask_to_stop(self, signum: int) -> None:
        """Asks all processes to stop at their next common point; safe in a signal handler."""
        self.signum = signum

    def after_step(self) -> None:
        """A point that all processes reach equally often; where they have agreed to stop, this raises Interrupted.

        No point is a place to wait unless someone asked to stop. Then each process names the next point that it can
        reach without passing another, all wait until they know what all have named, and stop at the last of these: up
        to there, every process still takes part in what the others compute and save.
        """
        with self._lock:
            self._points += 1
            waiting = self._last_point is not None
        if waiting and self._points >= max(int(point) for point in self._wait_for_all("stop/at/").values()):
            raise Interrupted(self.signum)

    def _name_next_point(self) -> None:
        """Once a stop was asked for, here or elsewhere. On the watching thread, as the main one may wait for others."""
        if self._last_point is not None:
            return
        asked = self._store.key_value_dir_get("stop/signal/")
        if self.signum is not None and not asked:
            self._store.key_value_set(f"stop/signal/{self.process_id}", str(self.signum))
            asked = [("", str(self.signum))]
        if asked:
            self.signum = self.signum or int(asked[0][1])
            with self._lock:
                self._last_point = self._points + 1
            self._store.key_value_set(f"stop/at/{self.process_id}", str(self._last_point))

    # Watching

    def close(self) -> None:
        """Leaves the job in good order: waits until all others leave it, too."""
        self._store.key_value_set(f"leaving/{self.process_id}", "")
        self._wait_for_all("leaving/")
        self._closed.set()
        self._thread.join()
        # The first process must not end, and the service with it, before the others have left that.
        jax.distributed.shutdown()

    def leave(self, error: BaseException) -> None:
        """Leaves it on an error; where that is not an error of all processes, ends the others, and this one."""
        if isinstance(error, Interrupted | DivergedError) or (isinstance(error, InputError) and self._agreed):
            self.close()
            return
        if isinstance(error, RuntimeError | ValueError) and not isinstance(error, InputError):
            # What JAX raises when a collective breaks: the watching thread needs time to find out who is lost.
            time.sleep(self._limit + 5 * self._beat)
        code, text = (2, str(error)) if isinstance(error, InputError) else (1, f"{type(error).__name__}: {error}")
        if code == 1:
            traceback.print_exception(error)
        self.fail(text, code)
        self._end(text, code)  # not by an exception: on its way out, JAX would wait for the others

    def _watch(self) -> None:
        count = 0
        while not self._closed.wait(self._beat):
            count += 1
            try:
                self._store.key_value_set(f"alive/{self.process_id}", str(count), allow_overwrite=True)
                self._name_next_point()
                verdict = self._store.key_value_dir_get("verdict/") or self._find_lost()
            except Exception as error:  # the service is gone, in whatever words; mostly JAX ends the process first
                if not self._closed.is_set():
                    self._end(f"Process 0 of {self.processes}, which coordinates the others, was lost: {error}", LOST)
                return
            if verdict and not self._closed.is_set():
                code, text = verdict[0][1].split(" ", 1)
                if self.process_id == 0:  # it serves the store: the others must have read this before it ends
                    time.sleep(3 * self._beat)
                self._end(text, int(code))
                return

    def _find_lost(self) -> list[tuple[str, str]]:
        """Looks for processes that show no life: the first one for all, so that a large job asks little of it."""
        if self.process_id != 0:
            return []
        now, beats = time.monotonic(), dict(self._store.key_value_dir_get("alive/"))
        for process_id in range(1, self.processes):
            key = f"alive/{process_id}"
            if self._seen.get(key, ("?", 0))[0] != beats.get(key):
                self._seen[key] = (beats.get(key), now)
            elif now - self._seen[key][1] > self._limit:
                text = (
                    f"{LOST} Process {process_id} of {self.processes} was lost: no sign of life for {self._limit:g} s. "
                    "The same command goes on from the last checkpoint."
                )
                self._store.key_value_set("verdict/all", text, allow_overwrite=True)
                return [(key, text)]
        return []

    def _wait_for_all(
        self, folder: str, meanwhile: Callable[[], None] = lambda: None, nap: float = 0.05
    ) -> dict[int, str]:
        while len(texts := dict(self._store.key_value_dir_get(folder))) < self.processes:
            time.sleep(nap)
            meanwhile()
        return {int(key.rsplit("/", 1)[1]): text for key, text in texts.items()}


def _end_alone(place: Place, seconds: float) -> None:
    """Ends a process whose neighbours did not come, with what can be found out about it."""
    host, port = place.coordinator.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
        reason = "where the first process answers, but others are missing"
    except OSError as error:
        reason = f"where no process answers: {error}"
    _end(
        f"--coordinator must be where a first process can be reached and all {place.processes} processes meet within "
        f"{seconds:g} s, got {place.coordinator}, {reason}.",
        2,
    )


def _end(text: str, code: int) -> None:
    """Ends this process whatever its other threads wait for."""
    print(f"Error: {text}", file=sys.stderr, flush=True)
    os._exit(code)
