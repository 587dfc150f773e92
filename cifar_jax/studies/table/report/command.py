"""Writes the report of a table anew.

    python -m cifar_jax report --table=runs/table/table.json

`python -m cifar_jax table` writes it at its end; this is for another place, for a table whose runs lie elsewhere, or
for a page with the test images that must not be published.
"""

import json
from pathlib import Path

from cifar_jax.command_line import Parser, path
from cifar_jax.errors import InputError
from cifar_jax.studies.table.report.write import require_libraries, write_report


def main(argv: list[str]) -> None:
    """Writes what the flags say.

    Raises:
      InputError: a flag that cannot be used.
    """
    parser = Parser("report", __doc__)
    parser.add_argument("--table", metavar="FILE", type=path, required=True, help="a table.json")
    parser.add_argument("--workdir", metavar="DIR", type=path, help="where its runs lie; beside it unless given")
    parser.add_argument("--out", metavar="FILE", type=path, help="DIR/report.html unless given")
    parser.add_argument("--pictures", action="store_true", help="show test images; for your own disk only")
    flags = parser.parse_args(argv)
    workdir = flags.workdir or flags.table.parent
    out = flags.out or workdir / "report.html"
    table = _read(flags.table)
    if not workdir.is_dir():
        raise InputError(f"--workdir must be the folder that the table's runs lie in, got {str(workdir)!r}.")
    if out.is_dir():
        raise InputError(f"--out must be a file, got {str(out)!r}.")
    require_libraries()
    write_report(table, workdir, out, pictures=flags.pictures)


def _read(file: Path) -> dict:
    try:
        table = json.loads(file.read_text())
        for key in ("cells", "runs", "origins", "settings", "command", "commit", "date"):
            table[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"--table must be a table.json written by python -m cifar_jax table, got {str(file)!r} "
            f"({type(error).__name__}: {error})."
        ) from error
    return table
