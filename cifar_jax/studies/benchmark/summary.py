"""From what the processes of a setting measured to its record and its table."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from cifar_jax.studies.benchmark import agreement, floors
from cifar_jax.studies.benchmark.recipe import Recipe
from cifar_jax.studies.benchmark.settings import Images

# What a run of the lecture's length takes is added up from this many epochs.
RUN_EPOCHS = 30


def summarize(processes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One arm's figures from its processes, the first of which began with no compiled program.

    Returns:
      train, test: images per second by epoch, the first left out: `median`, `low`, `high`, `epochs` (how many); None
        where there is no such epoch.
      train_with_compilation, test_with_compilation: images per second of the first process's first epoch, with what it
        compiled for it. An arm that compiles both ahead has it all counted as training.
      first_step: seconds from the start of the process to the end of the first step, `cold` (the first process) and
        `warm` (the median of the others; None where there are none).
      run: seconds from the start of the process to the end of 30 epochs with evaluation, `cold` and `warm`: to the end
        of the first epoch, and 29 times the median of the others.
      peak_host_memory, peak_device_memory: bytes, the largest; the second None on the CPU.
    """
    first, *others = processes
    later = [row for process in processes for row in process["epochs"][1:]]
    opening = first["epochs"][0]
    device = [p["peak_device_memory"] for p in processes if p["peak_device_memory"] is not None]
    train = _spread([row["train_images"] / row["train_seconds"] for row in later])
    test = _spread([row["test_images"] / row["test_seconds"] for row in later])

    def cold_and_warm(value):
        return {"cold": value(first), "warm": statistics.median(map(value, others)) if others else None}

    if train and test:
        epoch = opening["train_images"] / train["median"] + opening["test_images"] / test["median"]
        run = cold_and_warm(lambda process: process["first_epoch"] + (RUN_EPOCHS - 1) * epoch)
    else:
        run = {"cold": None, "warm": None}
    return {
        "train": train,
        "test": test,
        "train_with_compilation": opening["train_images"] / (first["build"] + opening["train_seconds"]),
        "test_with_compilation": opening["test_images"] / opening["test_seconds"],
        "first_step": cold_and_warm(lambda process: process["first_step"]),
        "run": run,
        "peak_host_memory": max(process["peak_host_memory"] for process in processes),
        "peak_device_memory": max(device) if device else None,
    }


def _spread(rates: Sequence[float]) -> dict[str, float] | None:
    if not rates:
        return None
    return {"median": statistics.median(rates), "low": min(rates), "high": max(rates), "epochs": len(rates)}


def over_floors(work: floors.Work, images_per_second: float, ceilings: Mapping[str, float]) -> dict[str, float]:
    """Measured time as a multiple of what the arithmetic and what the bytes would take at the device's own ceilings."""
    return {
        "arithmetic": ceilings["flops_per_second"] / (work.flops * images_per_second),
        "bytes": ceilings["bytes_per_second"] / (work.bytes * images_per_second),
    }


def works(recipe: Recipe) -> dict[str, floors.Work]:
    """The floors of a recipe's training and evaluation."""
    shared = {
        "image_size": recipe.image_size, "classes": recipe.classes, "batch_size": recipe.batch_size,
        "value_bytes": 2 if recipe.half else 4,
    }  # fmt: skip
    optimizer = recipe.config["optimizer"]
    moments = 2 if optimizer["name"] == "adam" else int(optimizer["momentum"] > 0)
    return {
        "train": floors.training(recipe.stages, moments=moments, **shared),
        "test": floors.evaluation(recipe.stages, **shared),
    }


def to_record(
    recipe: Recipe,
    images: Images,
    *,
    runs: Mapping[str, Sequence[dict[str, Any]]],
    not_run: Mapping[str, str],
    ceilings: Mapping[str, dict[str, float]],
) -> dict[str, Any]:
    """Everything about one setting, ready for JSON.

    Args:
      recipe: what was trained.
      images: on what.
      runs: by arm, what its processes measured, in the order in which they ran.
      not_run: by arm, why it, or one of its processes, did not run.
      ceilings: by framework; the device's are the larger of each.
    """
    config = recipe.config
    best = {kind: max(each[kind] for each in ceilings.values()) for kind in next(iter(ceilings.values()), {})}
    work = works(recipe)
    arms = {arm: summarize(processes) for arm, processes in runs.items()}
    for arm in arms.values():
        for phase in ("train", "test"):
            known = best and arm[phase]
            arm[f"{phase}_over_floors"] = over_floors(work[phase], arm[phase]["median"], best) if known else None
    rounding = agreement.rounding(config["dtype"], recipe.device, recipe.precision)
    bounds = agreement.bounds_of(rounding, resized=recipe.image_size != 32)
    losses = {arm: [process["epochs"] for process in processes] for arm, processes in runs.items()}
    return {
        "model": config["model"]["name"],
        "stages": recipe.stages,
        "image_size": recipe.image_size,
        "batch_size": recipe.batch_size,
        "dtype": config["dtype"],
        "precision": rounding if config["dtype"] == "float32" else config["dtype"],
        "optimizer": config["optimizer"]["name"],
        "device": recipe.device,
        "data": images.source,
        "classes": recipe.classes,
        "train_images": images.train,
        "test_images": images.test,
        "work_per_image": {phase: each._asdict() for phase, each in work.items()},
        "ceilings": {"device": best, **ceilings},
        "arms": arms,
        "origins": {arm: processes[0]["origin"] for arm, processes in runs.items()},
        "ratios": ratios(arms),
        "not_run": dict(not_run),
        "agreement": agreement.compare(losses, bounds) if losses else None,
        "processes": [
            {"arm": arm, **{key: value for key, value in process.items() if key != "origin"}, "epochs": _rows(process)}
            for arm, processes in runs.items()
            for process in processes
        ],
    }


def _rows(process: dict[str, Any]) -> list[dict[str, Any]]:
    """A process's epochs, of whose losses the first few stay, and the mean."""
    return [
        {
            **{key: value for key, value in row.items() if key != "losses"},
            "steps": len(row["losses"]),
            "first_losses": row["losses"][: agreement.EARLY_STEPS],
            "train_loss": sum(row["losses"]) / len(row["losses"]),
        }
        for row in process["epochs"]
    ]


def ratios(arms: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Images per second of training of each arm over those of each other one."""
    rates = {name: arm["train"]["median"] for name, arm in arms.items() if arm["train"]}
    return {name: {other: rate / rates[other] for other in rates} for name, rate in rates.items()}


def heading(record: Mapping[str, Any]) -> str:
    """A setting in one line.

    >>> heading({"model": "cnn6", "image_size": 32, "batch_size": 100, "dtype": "float32", "precision": "float32",
    ...          "device": "cpu", "train_images": 600, "test_images": 100, "data": "drawn shapes"})
    'CNN6 at 32x32, batch 100, float32, on the cpu, 600 + 100 images (drawn shapes)'
    """
    types = record["dtype"] if record["precision"] == record["dtype"] else f"{record['dtype']} ({record['precision']})"
    return (
        f"{record['model'].upper()} at {record['image_size']}x{record['image_size']}, batch {record['batch_size']}, "
        f"{types}, on the {record['device']}, {record['train_images']:,} + {record['test_images']:,} images "
        f"({record['data']})"
    )


_COLUMNS = (
    ("arm", 4), ("train images/s", 24), ("with compiling", 15), ("test images/s", 24), ("first step s", 14),
    ("30 epochs s", 14), ("memory GiB", 11), ("over floor", 11), ("J1 / arm", 9),
)  # fmt: skip


def table(record: Mapping[str, Any]) -> str:
    """A setting's figures, for people."""
    lines = [heading(record), "".join(title.rjust(width) for title, width in _COLUMNS)]
    for name, arm in record["arms"].items():
        floor = arm["train_over_floors"]
        cells = (
            name,
            _rate(arm["train"]),
            f"{arm['train_with_compilation']:,.0f}",
            _rate(arm["test"]),
            _pair(arm["first_step"]),
            _pair(arm["run"]),
            f"{(arm['peak_device_memory'] or arm['peak_host_memory']) / 2**30:.2f}",
            f"{min(floor.values()):.1f}" if floor else "-",
            f"{record['ratios']['J1'][name]:.2f}" if {"J1", name} <= set(record["ratios"]) else "-",
        )
        lines.append("".join(cell.rjust(width) for cell, (_, width) in zip(cells, _COLUMNS, strict=True)))
    best = record["ceilings"]["device"]
    if best:
        lines.append(
            f"Ceilings measured: {best['flops_per_second'] / 1e9:,.0f} GFLOP/s, {best['bytes_per_second'] / 1e9:,.1f} "
            f"GB/s; an image's training needs {record['work_per_image']['train']['flops'] / 1e9:.3f} GFLOP and "
            f"{record['work_per_image']['train']['bytes'] / 1e6:.2f} MB."
        )
    lines += [
        f"{name} was not run{' again' if name in record['arms'] else ''}: {reason}"
        for name, reason in record["not_run"].items()
    ]
    if record["agreement"]:
        said = record["agreement"]["disagree"]
        lines += said or [f"All arms train alike: {_largest(record['agreement'])}."]
    return "\n".join(lines)


def _rate(spread: dict[str, float] | None) -> str:
    return f"{spread['median']:,.0f} ({spread['low']:,.0f}-{spread['high']:,.0f})" if spread else "-"


def _pair(seconds: dict[str, float | None]) -> str:
    return "/".join("-" if value is None else f"{value:.1f}" for value in (seconds["cold"], seconds["warm"]))


def _largest(found: Mapping[str, Any]) -> str:
    worst = {kind: max(arm[kind] for arm in found["largest"].values()) for kind in found["bounds"]}
    return f"losses against {found['reference']}'s differ by " + ", ".join(
        f"{worst[kind]:.1e} ({where}, {bound:g} allowed)"
        for (kind, bound), where in zip(
            found["bounds"].items(), ("first step", "early steps", "an epoch's mean", "test"), strict=True
        )
    )
