"""Measures every difference between PyTorch and JAX: torch's value, ours, and plain JAX's.

python -m cifar_jax ledger [--only=BN1,S1] [--json=FILE] [--html=FILE] [--markdown=FILE]
"""

import argparse
import json
import platform
from pathlib import Path

from cifar_jax.command_line import Parser, path
from cifar_jax.errors import InputError
from cifar_jax.files import write_whole
from cifar_jax.marked import fill


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser("ledger", __doc__)
    parser.add_argument("--only", metavar="IDS", help="rows, such as BN1,S1; all unless given")
    parser.add_argument("--json", metavar="FILE", type=path, help="write the rows and where they come from")
    parser.add_argument("--html", metavar="FILE", type=path, help="write a page with explanations and pictures")
    parser.add_argument("--markdown", metavar="FILE", type=path, help="renew the table between the marks of this file")
    arguments = parser.parse_args(argv)
    for flag in ("json", "html", "markdown"):
        file = getattr(arguments, flag)
        if file is not None and (file.is_dir() or not file.parent.is_dir()):
            raise InputError(f"--{flag} must be a file in a folder that exists, got {str(file)!r}.")
    if arguments.markdown is not None:
        if arguments.only is not None:
            raise InputError(f"--markdown takes all rows, got --only={arguments.only}.")
        if not arguments.markdown.is_file():
            raise InputError(f"--markdown must be a file that exists, got {str(arguments.markdown)!r}.")
    return arguments


def main(argv: list[str]) -> int:
    """Runs the rows and prints them; returns 0 if all pass, else 1.

    Raises:
      InputError: a flag that cannot be used; nothing has run by then.
    """
    arguments = _parse(argv)
    # Here, as they import torch, which --help does without.
    import torch

    from cifar_jax.devices.select import select_devices
    from cifar_jax.parity.ledger import run
    from cifar_jax.parity.ledger.catalogue import select
    from cifar_jax.parity.ledger.page import draw, render
    from cifar_jax.runs.provenance import provenance

    if arguments.markdown is not None:  # before anything is measured: are the marks there?
        _fill(arguments.markdown, "")
    ids = [] if arguments.only is None else [each.strip() for each in arguments.only.split(",")]
    rows = select(ids)
    select_devices("cpu")  # the sides are compared where all of them compute alike
    torch.set_num_threads(1)
    origin = provenance()
    origin["versions"]["torch"] = torch.__version__
    print(run.header())
    outcomes = []
    for outcome in run.run_rows(rows):
        print(run.lines(outcome), flush=True)
        outcomes.append(outcome)
    print(run.summary(outcomes))
    records = [run.record(outcome) for outcome in outcomes]
    if arguments.json:
        arguments.json.write_text(json.dumps({**origin, "rows": records}, indent=1, allow_nan=False) + "\n")
    if arguments.html:
        pictures = {o.row.id: draw(o.row.picture(), o.row.id) for o in outcomes if o.row.picture and o.passed}
        arguments.html.write_text(render(records, pictures, _foot(origin)))
    if arguments.markdown:
        write_whole(arguments.markdown, _fill(arguments.markdown, run.markdown(outcomes)))
    return 0 if all(outcome.passed for outcome in outcomes) else 1


def _fill(document: Path, table: str) -> str:
    try:
        return fill(document.read_text(), "ledger", table)
    except ValueError as error:
        raise InputError(f"--markdown takes a file with two markers, got {str(document)!r}: {error}.") from error


def _foot(origin: dict) -> dict[str, str]:
    versions = ", ".join(f"{name} {version}" for name, version in origin["versions"].items())
    return {
        "Command": origin["command"],
        "Commit": str(origin["commit"]),
        "Run": origin["started"],
        "Processor": f"{origin['hardware']['processor']} ({platform.machine()})",
        "Versions": versions,
    }
