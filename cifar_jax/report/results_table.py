"""The README's table of results, made from the records in `results/`.

python -m cifar_jax.report.results_table README.md
"""

import json
import re
import sys
from pathlib import Path

# The lecture's maximum test accuracies in percent, and their epochs of 30.
LECTURE = {
    "cnn6_adam": (61.89, 27), "cnn6_step": (61.73, 21), "cnn6_cosine": (61.67, 28),
    "cnn10_adam": (60.62, 23), "cnn10_step": (66.58, 30), "cnn10_cosine": (66.56, 22),
    "cnn10_64_adam": (53.10, 30), "cnn10_64_step": (68.74, 23), "cnn10_64_cosine": (69.23, 28),
}  # fmt: skip
_NETWORKS = {"cnn6": "CNN6, 32x32", "cnn10": "CNN10, 32x32", "cnn10_64": "CNN10, 64x64"}
_RECIPES = {"adam": "Adam", "step": "SGD, StepLR", "cosine": "SGD, cosine"}


def results_table(folder: Path) -> str:
    """Markdown: a row for each of the lecture's cells, with what `folder/<config>.json` has measured of it."""
    lines = [
        "| network | recipe | lecture, 30 epochs | here | epochs | hardware |",
        "|---|---|---|---|---|---|",
    ]
    for name, (accuracy, epoch) in LECTURE.items():
        network, recipe = name.rsplit("_", 1)
        path = folder / f"{name}.json"
        here = ["", "", ""]
        if path.exists():
            record = json.loads(path.read_text())
            here = [
                f"[{record['maximum_test_accuracy']:.2f} ({record['maximum_at_epoch']})]({folder.name}/{path.name})",
                f"{record['epochs']} of {record['config']['train']['epochs']}",
                _hardware(record["starts"][-1]["hardware"]),
            ]
        cells = [_NETWORKS[network], _RECIPES[recipe], f"{accuracy:.2f} ({epoch})", *here]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _hardware(hardware: dict) -> str:
    devices = hardware["devices"]
    if devices[0] == "cpu":
        return f"{hardware['cores']} CPU cores ({hardware['processor']})"
    return f"{len(devices)} x {devices[0]}"


def with_results(text: str, table: str) -> str:
    """`text` with `table` between its two markers.

    Raises:
      ValueError: the markers are not there.
    """
    pattern = re.compile(r"(<!-- results:.*?-->\n).*?(<!-- end of results -->)", re.DOTALL)
    if not pattern.search(text):
        raise ValueError("The text must have the markers '<!-- results: ... -->' and '<!-- end of results -->'.")
    return pattern.sub(lambda markers: f"{markers[1]}\n{table}\n\n{markers[2]}", text)


def main(argv: list[str]) -> None:
    """Writes the table into the file `argv[1]`, from the folder `results` beside it."""
    if len(argv) != 2 or not Path(argv[1]).is_file():
        sys.exit("usage: python -m cifar_jax.report.results_table README.md")
    path = Path(argv[1])
    path.write_text(with_results(path.read_text(), results_table(path.parent / "results")))


if __name__ == "__main__":
    main(sys.argv)
