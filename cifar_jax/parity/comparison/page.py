"""The page of a comparison: causes on top, then both models side by side, layer by layer."""

from pathlib import Path
from typing import Any


def render(result: Any) -> str:
    """One HTML page that needs no other file, of a `result.Result` (which calls this, so it is not imported here)."""
    import jinja2

    folder = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    rows = [
        {"layer": layer, "state": _state(layer), "error": _number(layer.error), "gradient": _number(layer.gradient)}
        for layer in result.layers
    ]
    verdicts = [("Spec", result.spec), ("Numeric", result.numeric), ("Behavioral", result.behavioral)]
    pairs = [(piece.where(), piece.flax or "zeros", piece.layout.name, piece.proved) for piece in result.mapping.pieces]
    return environment.get_template("page.html.jinja").render(
        result=result, rows=rows, verdicts=verdicts, pairs=pairs, number=_number, equal="equal", different="different"
    )


def _state(layer: Any) -> str:
    words = {"elsewhere": "other steps, same result", "explained": "differs, explained"}
    return words.get(layer.state, layer.state)


def _number(value: float | None) -> str:
    return "" if value is None or value != value else "0" if value == 0 else f"{value:.1e}"
