"""Errors of a lockstep run by step, as a picture."""

import os
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# An error of zero has no place on a logarithmic axis; it is drawn at the bottom.
_FLOOR = 1e-18


def draw_errors(steps: list[dict[str, dict[str, float]]], tolerance: dict[str, float], title: str, path: Path) -> None:
    """Draws the worst tensor's error of each quantity by step into a PNG at `path`, replacing it in one step.

    Args:
      steps: of each step, errors by quantity and tensor.
      tolerance: by quantity; drawn dotted, in the quantity's colour unless all are the same.
      title: of the picture.
      path: its folder is made if need be.
    """
    figure = Figure(figsize=(9, 5), dpi=120, layout="constrained")
    axes = figure.subplots()
    names = [name for name in tolerance if any(step.get(name) for step in steps) and name not in ("images",)]
    one_bound = len({tolerance[name] for name in names}) == 1
    for name, color in zip(names, matplotlib.color_sequences["tab20"], strict=False):
        points = [(i, max(step[name].values())) for i, step in enumerate(steps, 1) if step.get(name)]
        places, errors = zip(*points, strict=True)
        axes.plot(
            places, [min(max(error, _FLOOR), 1e3) for error in errors], color=color, marker="o", markersize=3,
            linewidth=1.2, label=name.replace("_", " "),
        )  # fmt: skip
        if not one_bound and tolerance[name]:
            axes.axhline(tolerance[name], color=color, linestyle=":", linewidth=1)
    if one_bound:
        axes.axhline(tolerance[names[0]], color="black", linestyle=":", linewidth=1, label="tolerance")
    axes.set(xlabel="Step", ylabel="Error", yscale="log", title=title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.png")
    figure.savefig(partial)
    os.replace(partial, path)
