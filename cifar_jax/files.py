"""Small files that others may read at any moment, and that a killed process leaves whole."""

import json
import os
from pathlib import Path


def read_rows(path: Path) -> list[dict]:
    """The objects of a file with one a line; none where there is no file. A line that was not finished is left out."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(partial, path)
