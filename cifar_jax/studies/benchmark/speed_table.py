"""The tables of speed in docs/benchmark.md, made from the benchmark's records in `results/`.

python -m cifar_jax fill docs/benchmark.md
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# What `python -m cifar_jax benchmark --json` and `... suite --json` have written.
FILES = ("benchmark_gpu.json", "benchmark_cpu.json")

ARMS = {
    "P0": "P0: the lecture's program",
    "P1": "P1: PyTorch, data on the device",
    "P1L": "P1L: the same, channels last",
    "P2": "P2: PyTorch at its best",
    "J0": "J0: plain Flax",
    "J1": "**J1: this project**",
}


def speed_tables(folder: Path, link: str) -> str:
    """Markdown: for each record in `folder`, its hardware and versions and a row for each arm of each setting.

    link: the folder as the document that takes the tables names it.
    """
    parts = [
        _tables(json.loads((folder / name).read_text()), f"{link}/{name}") for name in FILES if (folder / name).exists()
    ]
    return "\n\n".join(parts) or "Not measured yet."


def _tables(record: Mapping[str, Any], path: str) -> str:
    hardware, versions = record["origin"]["hardware"], record["origin"]["versions"]
    on = hardware["devices"][0]
    if on == "cpu":
        on = f"{hardware['cores']} CPU cores ({hardware['processor']})"
    used = ", ".join(f"{name} {versions[name]}" for name in ("jax", "flax", "torch") if name in versions)
    lines = [
        f"On {on} with {used} ([all figures]({path})):",
        "",
        "| network | arm | training images/s | with compilation | evaluation images/s | first step, s | 30 epochs, s "
        "| memory, GiB | time over floor | J1's rate over this |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for setting in record["settings"]:
        lines += [_row(setting, name, arm) for name, arm in setting["arms"].items()]
    notes = [
        f"{_network(setting)}: {name} was not run{' again' if name in setting['arms'] else ''}: {reason}"
        for setting in record["settings"]
        for name, reason in setting["not_run"].items()
    ]
    notes += [
        f"{_network(setting)}: {sentence}"
        for setting in record["settings"]
        for sentence in (setting["agreement"] or {"disagree": []})["disagree"]
    ]
    if start := record["start"]:
        notes.append(
            f"From `python main.py --config=configs/quickstart.py` to its first finished step: {start['cold']:.1f} s "
            f"cold, {start['warm']:.1f} s warm."
        )
    return "\n".join(lines) + "".join(f"\n\n{note}" for note in notes)


def _row(setting: Mapping[str, Any], name: str, arm: Mapping[str, Any]) -> str:
    over, ratios = arm["train_over_floors"], setting["ratios"]
    cells = (
        _network(setting),
        ARMS[name],
        _rate(arm["train"]),
        f"{arm['train_with_compilation']:,.0f}",
        _rate(arm["test"]),
        _seconds(arm["first_step"]),
        _seconds(arm["run"]),
        f"{(arm['peak_device_memory'] or arm['peak_host_memory']) / 2**30:.2f}",
        f"{min(over.values()):.1f}" if over else "",
        f"{ratios['J1'][name]:.2f}" if name != "J1" and {"J1", name} <= set(ratios) else "",
    )
    return "| " + " | ".join(cells) + " |"


def _network(setting: Mapping[str, Any]) -> str:
    size, precision = setting["image_size"], setting["precision"]
    return f"{setting['model'].upper()}, {size}x{size}, batch {setting['batch_size']}, {precision}"


def _rate(spread: Mapping[str, float] | None) -> str:
    return f"{spread['median']:,.0f} ({spread['low']:,.0f} to {spread['high']:,.0f})" if spread else ""


def _seconds(of: Mapping[str, float | None]) -> str:
    return " / ".join("-" if value is None else f"{value:.1f}" for value in (of["cold"], of["warm"]))
