"""What the folders say: how far each run is, what it measured, and where its figures come from.

The folders are all that a table is made from, so that it does not matter how often its command was stopped.
"""

from collections.abc import Sequence
from pathlib import Path

from cifar_jax.files import read_rows, write_whole
from cifar_jax.studies.table.document import Column, document
from cifar_jax.studies.table.plan import Group

_ORIGIN = ("commit", "hardware", "versions")


def is_done(folder: Path, epochs: int) -> bool:
    """Whether the run in `folder` has measured and saved all its epochs."""
    # Orbax gives a checkpoint its name when it is whole.
    return len(read_rows(folder / "metrics.jsonl")) >= epochs and (folder / "checkpoints" / str(epochs)).is_dir()


def unfinished(group: Group, workdir: Path) -> list[int]:
    """The seeds of the group whose runs are not done."""
    epochs = group.config.train.epochs
    return [seed for seed in range(group.seeds) if not is_done(workdir / group.run_folder(seed), epochs)]


def read_failures(folder: Path) -> dict[int, str]:
    """Why runs of the group in `folder` failed, by seed, at the last start of each."""
    paths = (folder / "failures").glob("seed*.txt")
    return {int(path.stem.removeprefix("seed")): path.read_text().strip() for path in paths}


def write_failure(folder: Path, seed: int, why: str) -> None:
    """Notes why this run of the group in `folder` failed; a file for each, as several processes may do so at once."""
    (folder / "failures").mkdir(parents=True, exist_ok=True)
    write_whole(folder / "failures" / f"seed{seed}.txt", why + "\n")


def forget_failures(folder: Path) -> None:
    """Takes back what was noted of the group in `folder`."""
    for path in (folder / "failures").glob("seed*.txt"):
        path.unlink()


def read_table(groups: Sequence[Group], workdir: Path, *, settings: dict, **written: str | None) -> dict:
    """`table.json` of the runs as they stand; `written` as `document.document` takes it."""
    runs, starts = [], []
    for group in groups:
        failures = read_failures(workdir / group.folder)
        for seed in range(group.seeds):
            run, last = _read_run(group, seed, workdir, failures.get(seed))
            runs.append(run)
            starts.append(last)
    origins = []
    for start in sorted((start for run in starts for start in run), key=lambda start: start["started"]):
        origin = {key: start[key] for key in _ORIGIN}
        if origin in origins:
            origins.remove(origin)  # the newest stands last
        origins.append(origin)
    for run, its_starts in zip(runs, starts, strict=True):
        run["origin"] = origins.index({key: its_starts[-1][key] for key in _ORIGIN}) if its_starts else None
    columns = [_column(group) for group in groups if not group.holdout]
    return document(columns, runs, origins=origins, settings=settings, **written)


def _read_run(group: Group, seed: int, workdir: Path, failure: str | None) -> tuple[dict, list[dict]]:
    folder, epochs = group.run_folder(seed), group.config.train.epochs
    history = read_rows(workdir / folder / "metrics.jsonl")
    status = "done" if is_done(workdir / folder, epochs) else "failed" if failure else "unfinished"
    run = {
        "config": group.name,
        "seed": seed,
        "holdout": group.holdout,
        "folder": str(folder),
        "epochs_done": len(history),
        "epochs": epochs,
        "status": status,
        "message": failure if status == "failed" else None,
        "seconds": sum(row["seconds"] for row in history),
        "origin": None,
        "history": history,
    }
    return run, read_rows(workdir / folder / "starts.jsonl")


def _column(group: Group) -> Column:
    config = group.config
    # Only what is the lecture's own work is compared with its figures.
    every = config.data.limit_train == config.data.limit_test == 0
    every = every and config.data.name == "cifar100" and not config.model.stages
    return Column(group.name, config.norm.rule, config.train.epochs, every)
