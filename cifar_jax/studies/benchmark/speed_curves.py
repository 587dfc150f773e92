"""Images per second by what makes a run larger, as a picture."""

import os
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

# Blue and orange of Okabe and Ito's palette, which colour-blind readers can tell apart.
_MEASURED, _CONSTANT = "#0072B2", "#D55E00"
# Of a panel's largest rate over its smallest, so that noise does not look like an effect.
_SMALLEST_RANGE = 8


def draw_speed_curves(curves: dict[str, list[dict]], title: str, path: Path) -> None:
    """Draws a panel for each curve into a PNG at `path`, replacing it in one step.

    Args:
      curves: by the name of what varies, points with `x`, `images_per_second`, `low`, `high` and `flops_per_image`. A
        dotted line shows what the first point's arithmetic per second would make of the others' arithmetic per image.
      title: of the picture.
      path: its folder is made if need be.
    """
    figure = Figure(figsize=(4 * len(curves), 4), dpi=120, layout="constrained")
    for axes, (name, points) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        xs = [point["x"] for point in points]
        rates = [point["images_per_second"] for point in points]
        around = [[abs(point[bound] - point["images_per_second"]) for point in points] for bound in ("low", "high")]
        axes.errorbar(xs, rates, around, color=_MEASURED, marker="o", markersize=4, capsize=3, label="measured")
        speed = rates[0] * points[0]["flops_per_image"]
        axes.plot(
            xs, [speed / point["flops_per_image"] for point in points], color=_CONSTANT, linestyle=":",
            label="the first point's FLOP/s",
        )  # fmt: skip
        axes.set(xlabel=name, xscale="log", yscale="log")
        axes.set_xticks(xs)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        low, high = axes.get_ylim()
        spare = max(_SMALLEST_RANGE * low / high, 1) ** 0.5
        axes.set_ylim(low / spare, high * spare)
        axes.tick_params(axis="x", labelrotation=45)
        axes.tick_params(labelsize=8, which="both")
        axes.grid(alpha=0.3, which="both")
    figure.axes[0].set_ylabel("Training images per second")
    figure.axes[0].legend(fontsize=8)
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.png")
    figure.savefig(partial)
    os.replace(partial, path)
