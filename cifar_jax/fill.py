"""Writes figures from results/ into a document, between the markers that name them.

    python -m cifar_jax fill README.md

The folder `results` is looked for beside the document and above it. The markers are `<!-- NAME: ... -->` and
`<!-- end of NAME -->`; NAME is results (of table.json, in short), table (of table.json, all of it) or speed (of the
benchmark's records).
"""

import os
from pathlib import Path

from cifar_jax.command_line import Parser, path
from cifar_jax.errors import InputError
from cifar_jax.files import write_whole
from cifar_jax.marked import fill, has
from cifar_jax.studies.benchmark.speed_table import speed_tables
from cifar_jax.studies.table.markdown import markdown, recorded, short_markdown

# What makes each block, from the folder results and the document's link to it.
BLOCKS = {
    "results": lambda folder, link: short_markdown(recorded(folder)),
    "table": lambda folder, link: markdown(recorded(folder)),
    "speed": speed_tables,
}


def filled(text: str, results: Path, link: str = "results") -> str:
    """`text` with every block that it has markers for made anew from the folder `results`, which it links to by `link`.

    Raises:
      ValueError: it has none.
    """
    names = [name for name in BLOCKS if has(text, name)]
    if not names:
        raise ValueError(f"it must have markers such as '<!-- results: ... -->' of {', '.join(BLOCKS)}")
    for name in names:
        text = fill(text, name, BLOCKS[name](results, link))
    return text


def main(argv: list[str]) -> None:
    """Fills the document that the command line names.

    Raises:
      InputError: there is no such file, or it has no such markers.
    """
    parser = Parser("fill", __doc__)
    parser.add_argument("document", type=path, metavar="FILE", help="such as README.md")
    document = parser.parse_args(argv).document
    if not document.is_file():
        raise InputError(f"FILE must be a document such as README.md, got {str(document)!r}.")
    folders = [folder / "results" for folder in document.absolute().parents if (folder / "results").is_dir()]
    if not folders:
        raise InputError(f"FILE must have a folder results beside it or above it, got {str(document)!r}.")
    try:
        link = Path(os.path.relpath(folders[0], document.absolute().parent)).as_posix()
        write_whole(document, filled(document.read_text(), folders[0], link))
    except ValueError as error:
        raise InputError(f"{document} cannot be filled: {error}.") from error
