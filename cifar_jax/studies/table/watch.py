"""What is seen of runs in other processes: a line for each epoch, and a call for each run that is done."""

from collections.abc import Callable, Sequence
from pathlib import Path

from cifar_jax.files import read_rows
from cifar_jax.runs.progress import epoch_line
from cifar_jax.studies.table.cells import best
from cifar_jax.studies.table.plan import Group
from cifar_jax.studies.table.record import is_done, unfinished


class Watch:
    """Follows the runs of `groups` that are not done, by their files under `workdir`.

    on_done: called after a look that found runs newly done.
    """

    def __init__(self, groups: Sequence[Group], workdir: Path, on_done: Callable[[], None]):
        self._workdir, self._on_done = workdir, on_done
        self._runs = sum(group.seeds for group in groups)
        self._open = {group.run_folder(seed): group for group in groups for seed in unfinished(group, workdir)}
        self._rows = {folder: read_rows(workdir / folder / "metrics.jsonl") for folder in self._open}
        self._stamps = {folder: self._stamp(folder) for folder in self._open}

    def done(self) -> str:
        """Such as `7 of 90 runs are done`."""
        return f"{self._runs - len(self._open)} of {self._runs} runs are done"

    def look(self) -> None:
        """Prints what is new."""
        newly_done = []
        for folder, group in self._open.items():
            epochs, rows = group.config.train.epochs, self._renew(folder)
            if len(rows) >= epochs and is_done(self._workdir / folder, epochs):
                newly_done.append((folder, rows))
        for folder, rows in newly_done:
            del self._open[folder]
            row = best(rows, "test_accuracy")
            print(
                f"{folder}  maximum test accuracy {row['test_accuracy']:.2f} % (epoch {row['epoch']}), final "
                f"{rows[-1]['test_accuracy']:.2f} %; {self.done()}",
                flush=True,
            )
        if newly_done:
            self._on_done()

    def _renew(self, folder: Path) -> list[dict]:
        """The run's rows of metrics, of which new ones are printed."""
        if (stamp := self._stamp(folder)) != self._stamps[folder]:
            before = len(self._rows[folder])
            rows = read_rows(self._workdir / folder / "metrics.jsonl")
            epochs = self._open[folder].config.train.epochs
            for row in rows[before:]:
                left = (epochs - row["epoch"]) * row["seconds"]
                print(f"{folder}  {epoch_line(row, epochs, left)}", flush=True)
            # There may be fewer than before: a run that goes on takes back what it had not saved.
            self._rows[folder], self._stamps[folder] = rows, stamp
        return self._rows[folder]

    def _stamp(self, folder: Path) -> tuple[int, int] | None:
        """Changes when the run's metrics do."""
        try:
            status = (self._workdir / folder / "metrics.jsonl").stat()
        except FileNotFoundError:
            return None
        return status.st_size, status.st_mtime_ns
