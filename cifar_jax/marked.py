"""Generated text inside a hand-written document, between two markers that name it."""

import re
from collections.abc import Callable
from pathlib import Path

from cifar_jax.errors import InputError


def fill(text: str, name: str, content: str) -> str:
    """`text` with `content` between its markers, `<!-- NAME: ... -->` and `<!-- end of NAME -->`.

    Raises:
      ValueError: the markers are not there.
    """
    pattern = re.compile(rf"(<!-- {name}:.*?-->\n).*?(<!-- end of {name} -->)", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"The text must have the markers '<!-- {name}: ... -->' and '<!-- end of {name} -->'.")
    return pattern.sub(lambda markers: f"{markers[1]}\n{content}\n\n{markers[2]}", text)


def fill_file(argv: list[str], fill_text: Callable[[str, Path], str]) -> None:
    """What a command does that writes figures into a document: the file `argv[0]` as `fill_text` gives it.

    `fill_text` takes the file's text and the folder `results` beside it, and raises as `fill`.

    Raises:
      InputError: there is no such file, or it has no such markers.
    """
    if len(argv) != 1 or not Path(argv[0]).is_file():
        raise InputError(f"The file to fill must be one such as README.md, got {' '.join(argv)!r}.")
    path = Path(argv[0])
    try:
        path.write_text(fill_text(path.read_text(), path.parent / "results"))
    except ValueError as error:
        raise InputError(f"{path} cannot be filled: {error}") from error
