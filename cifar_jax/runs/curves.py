"""Learning curves as a picture."""

import os
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Blue and orange of Okabe and Ito's palette, which colour-blind readers can tell apart.
_COLORS = {"train": "#0072B2", "test": "#D55E00"}


def draw_curves(history: list[dict], title: str, path: Path) -> None:
    """Draws loss and accuracy of both phases by epoch into a PNG at `path`, replacing it in one step."""
    # A Figure of its own rather than pyplot: no global state, no display, nothing to close.
    figure = Figure(figsize=(10, 4), dpi=120, layout="constrained")
    epochs = [row["epoch"] for row in history]
    best = max(history, key=lambda row: row["test_accuracy"])
    for axes, quantity, label in zip(
        figure.subplots(1, 2), ("loss", "accuracy"), ("Cross-entropy loss", "Accuracy (%)"), strict=True
    ):
        for phase, color in _COLORS.items():
            values = [row[f"{phase}_{quantity}"] for row in history]
            axes.plot(epochs, values, color=color, marker="o", markersize=3, linewidth=1.5, label=phase)
        axes.set(xlabel="Epoch", ylabel=label)
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if quantity == "accuracy":
            text = f"best test {best['test_accuracy']:.2f} % (epoch {best['epoch']})"
            axes.axhline(best["test_accuracy"], color="0.5", linestyle=":", linewidth=1, label=text)
        axes.legend()
    figure.suptitle(title)
    partial = path.with_suffix(".partial.png")
    figure.savefig(partial)
    os.replace(partial, path)
