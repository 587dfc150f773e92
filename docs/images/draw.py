"""Draws the pictures of the documents from the figures in results/.

python docs/images/draw.py [FOLDER]    # into docs/images unless another folder is given
"""

import json
import sys
from pathlib import Path

from matplotlib.figure import Figure

HERE = Path(__file__).parent
RESULTS = HERE.parent.parent / "results"
# Okabe and Ito's palette, which colour-blind readers can tell apart; markers and dashes differ as well.
BLUE, ORANGE, GREEN, PURPLE, SKY, BLACK = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#000000"


def record(name):
    """A file of results/."""
    return json.loads((RESULTS / name).read_text())


def figure(size=(9, 4)):
    """A picture without pyplot: no display is needed."""
    return Figure(figsize=size, dpi=120, layout="constrained")


def curves():
    """Loss and accuracy of the quickstart's run."""
    rows = record("quickstart.json")["metrics"]
    epochs = [row["epoch"] for row in rows]
    drawing = figure()
    for axes, quantity, name in zip(
        drawing.subplots(1, 2), ("loss", "accuracy"), ("Cross-entropy loss (nats)", "Accuracy (%)"), strict=True
    ):
        for phase, color, style in (("train", BLUE, "o-"), ("test", ORANGE, "s--")):
            axes.plot(epochs, [row[f"{phase}_{quantity}"] for row in rows], style, color=color, label=phase)
        axes.set(xlabel="Epoch", ylabel=name, xticks=epochs)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend()
    drawing.suptitle("A narrow CNN6 on the embedded shapes: python main.py --config=configs/quickstart.py")
    return drawing


def batch_norm_rules():
    """Test accuracy of one training run, evaluated with the running averages of three rules."""
    (run,) = [run for run in record("table.json")["runs"] if run["config"] == "cnn6_adam" and run["seed"] == 0][:1]
    rows = run["history"]
    epochs = [row["epoch"] for row in rows]
    drawing = figure((9, 4.5))
    axes = drawing.subplots()
    axes.plot(
        epochs, [row["train_accuracy"] for row in rows], color="0.6", linewidth=1.2, label="training accuracy"
    )  # the same for all rules
    for name, key, color, style in (
        ("lecture: 0.1 old + 0.9 batch", "test_accuracy_lecture", GREEN, "^-."),
        ("torch: 0.9 old + 0.1 batch", "test_accuracy", BLUE, "o-"),
        ("flax: 0.99 old + 0.01 batch", "test_accuracy_flax", ORANGE, "s--"),
    ):
        axes.plot(epochs, [row[key] for row in rows], style, color=color, markersize=5, label=f"test, {name}")
    axes.set(xlabel="Epoch", ylabel="Accuracy (%)", xticks=epochs)
    axes.set_ylim(0, 90)
    axes.set_title("One training run, three rules for BatchNorm's running averages (CNN6, Adam, CIFAR-100)")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return drawing


def lockstep_errors():
    """The largest error of each quantity at each step of a run in PyTorch and in JAX."""
    run = record("lockstep_narrow_cnn6_adam.json")
    steps = [step["step"] for step in run["steps"]]
    drawing = figure((9, 4.5))
    axes = drawing.subplots()
    for name, color, style in (
        ("gradient", BLUE, "o-"),
        ("moment", ORANGE, "s--"),
        ("logits", GREEN, "^-."),
        ("parameter", PURPLE, "v-"),
        ("running_mean", SKY, "D--"),
        ("running_var", BLACK, "x:"),
    ):
        errors = [step["errors"][name] for step in run["steps"]]
        axes.plot(steps, errors, style, color=color, markersize=5, linewidth=1.3, label=name.replace("_", " "))
    axes.axhline(run["tolerance"]["gradient"], color="0.3", linewidth=1.5, linestyle=(0, (6, 3)), label="tolerance")
    axes.set(xlabel="Step of training", ylabel="Largest error", yscale="log", xticks=steps)
    axes.set_ylim(1e-16, 1e-9)
    axes.set_title("PyTorch and JAX in float64, from the same weights, on the same images (CNN6, Adam)")
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return drawing


def ledger():
    """Of each row of the ledger with two finite numbers: how far this project and plain JAX are from PyTorch."""
    rows = [
        row
        for row in record("ledger.json")["rows"]
        if row["naive_fails"] and isinstance(row["naive_error"], float) and row["tolerance"] and row["id"] != "D2C"
    ]
    drawing = figure((9, 5.5))
    axes = drawing.subplots()
    places = range(len(rows))
    floor = 1e-17
    axes.vlines(places, 1e-18, [row["naive_error"] for row in rows], color="0.9", linewidth=3)
    axes.plot(places, [row["naive_error"] for row in rows], "s", color=ORANGE, label="plain JAX against PyTorch")
    axes.plot(
        places,
        [row["tolerance"] for row in rows],
        "_",
        color="0.3",
        markersize=11,
        markeredgewidth=2,
        label="tolerance",
    )
    axes.plot(places, [max(row["error"], floor) for row in rows], "o", color=BLUE, label="this project against PyTorch")
    axes.set(
        yscale="log", ylabel="Error (in the row's own unit)", xlabel="Row of the ledger", xlim=(-0.7, len(rows) - 0.3)
    )
    axes.set_ylim(3e-18, 1e4)
    axes.set_xticks(list(places), [row["id"] for row in rows], rotation=90)
    axes.set_title("Distance from PyTorch in the ledger, where plain JAX differs (0 is drawn at 1e-17)")
    axes.grid(alpha=0.3, axis="y")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=3)
    return drawing


PICTURES = {
    "quickstart_curves": curves,
    "batch_norm_rules": batch_norm_rules,
    "lockstep_errors": lockstep_errors,
    "ledger": ledger,
}

if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    for name, draw in PICTURES.items():
        draw().savefig(folder / f"{name}.png")
        print(folder / f"{name}.png")
