"""The ledger as one HTML page that needs nothing else: no script, no font, no network."""

import html
import io
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib
from matplotlib.figure import Figure

from cifar_jax.page_frame import page


class Picture(NamedTuple):
    """Curves of several sides over one axis.

    lines: values of each curve by its name; the name's first word, "torch", "ours" or "naive", chooses the colour.
    steps: whether values hold until the next x, as learning rates do.
    """

    title: str
    xlabel: str
    ylabel: str
    x: Sequence[float]
    lines: Mapping[str, Sequence[float]]
    xlog: bool = False
    ylog: bool = False
    steps: bool = False


# Written into the drawing and then replaced by the page's own variables, so that it follows light and dark.
_PLACEHOLDERS = {"#010101": "currentColor", "#020202": "var(--torch)", "#030303": "var(--ours)"}
_PLACEHOLDERS |= {"#040404": "var(--naive)", "#050505": "var(--other)", "#060606": "var(--line)"}
_INK, _TORCH, _OURS, _NAIVE, _OTHER, _GRID = _PLACEHOLDERS
# torch's curve is broad and ours narrow on top of it, since the two coincide.
_STYLES = {
    "torch": {"color": _TORCH, "linewidth": 5, "alpha": 0.45},
    "ours": {"color": _OURS, "linewidth": 1.6},
    "naive": {"color": _NAIVE, "linewidth": 1.6, "linestyle": "--"},
}
_OTHER_STYLE = {"color": _OTHER, "linewidth": 1.2, "linestyle": ":"}


def draw(picture: Picture, name: str) -> str:
    """The picture as an SVG element; `name` keeps its ids apart from those of other pictures on the page."""
    settings = {"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif", "font.size": 10}
    settings |= {f"{part}.color": _INK for part in ("text", "xtick", "ytick")}
    settings |= {"axes.edgecolor": _INK, "axes.labelcolor": _INK, "axes.titlesize": 11}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(4.8, 3.5), layout="constrained")
        axes = figure.subplots()
        figure.patch.set_alpha(0)
        axes.patch.set_alpha(0)
        for label, values in picture.lines.items():
            style = _STYLES.get(re.split(r"\W", label)[0], _OTHER_STYLE)
            drawstyle = "steps-post" if picture.steps else "default"
            axes.plot(picture.x, values, label=label, drawstyle=drawstyle, **style)
        axes.set(title=picture.title, xlabel=picture.xlabel, ylabel=picture.ylabel)
        axes.set_xscale("log" if picture.xlog else "linear")
        axes.set_yscale("log" if picture.ylog else "linear")
        if not picture.xlog:
            axes.ticklabel_format(axis="x", useOffset=False)
        axes.grid(color=_GRID)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _inline(file.getvalue(), picture, name)


def _inline(svg: str, picture: Picture, name: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for placeholder, color in _PLACEHOLDERS.items():
        svg = svg.replace(placeholder, color)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="|url\()#', rf"\1#{name}-", svg)
    label = html.escape(f"{picture.title}: {picture.ylabel} by {picture.xlabel}, {', '.join(picture.lines)}")
    return re.sub(
        r'<svg [^>]*viewBox="([^"]*)"[^>]*>', rf'<svg viewBox="\1" role="img" aria-label="{label}">', svg, count=1
    )


_CSS = """
:root { --torch: #c25400; --ours: #0063a6; --naive: #8b2f6b; --other: #6a6a66; }
@media (prefers-color-scheme: dark) { :root { --torch: #ff9d4d; --ours: #6cbcf5; --naive: #e79ac6; --other: #a9a9a4; } }
.torch { border-left: 4px solid var(--torch); } .ours { border-left: 4px solid var(--ours); }
.naive { border-left: 4px solid var(--naive); }
svg { width: 100%; max-width: 34rem; height: auto; }
"""


def render(rows: Sequence[Mapping], pictures: Mapping[str, str], origin: Mapping[str, str]) -> str:
    """The page.

    Args:
      rows: what `--json` writes of each row, as text and numbers.
      pictures: SVG elements by the id of their row, as `draw` makes them.
      origin: what stands at the foot of the page, such as the command and the versions.
    """
    passed = sum(row["passed"] for row in rows)
    overview = "\n".join(
        f'<tr><td><a href="#{row["id"]}">{row["id"]}</a></td><td>{_text(row["title"])}</td>'
        f'<td class="n">{_text(row["naive_error"])}</td><td class="n">{_text(row["error"])}</td>'
        f"<td>{_verdict(row)}</td></tr>"
        for row in rows
    )
    foot = "<br>".join(f"{_text(name)}: {_text(value)}" for name, value in origin.items())
    body = f"""<header>
<h1>From PyTorch to JAX: the ledger</h1>
<p>Where PyTorch and JAX, Flax or optax quietly mean different things. Each row measures real PyTorch, this project and
the plain JAX code that one would write first. A row passes if this project stays within the tolerance, and the plain
code does not.</p>
<p class="verdict {"good" if passed == len(rows) else "bad"}">{passed} of {len(rows)} rows pass.</p>
</header>
<main id="rows">
<div class="scroll" role="region" aria-label="All rows" tabindex="0">
<table>
<thead><tr><th scope="col">Row</th><th scope="col">What differs</th><th scope="col" class="n">Error, naive</th>
<th scope="col" class="n">Error, ours</th><th scope="col">Verdict</th></tr></thead>
<tbody>
{overview}
</tbody>
</table>
</div>
{"".join(_section(row, pictures.get(row["id"], "")) for row in rows)}
</main>
<footer class="dim small">{foot}</footer>"""
    return page(
        "From PyTorch to JAX: the ledger", body, css=_CSS, skip_to="rows", skip_text="Skip to the rows"
    )  # fmt: skip


def _section(row: Mapping, picture: str) -> str:
    sides = "".join(
        f'<div class="{side}"><dt>{name}</dt><dd>{_text(row[side])}{_error(row, key)}</dd></div>'
        for side, name, key in (
            ("torch", "PyTorch", ""),
            ("ours", "ours", "error"),
            ("naive", "plain JAX", "naive_error"),
        )
    )
    note = f"<p>Also measured: {_text(row['note'])}.</p>" if row["note"] else ""
    figure = f"<figure>{picture}</figure>" if picture else ""
    return f"""
<section id="{row["id"]}" aria-labelledby="{row["id"]}-title">
<h2 id="{row["id"]}-title">{row["id"]} · {_text(row["title"])}</h2>
<p>{_verdict(row)} <span class="dim">Compared: {_text(row["compared"])}.</span></p>
<p>{_text(row["explanation"])}</p>
<dl>{sides}<div><dt>tolerance</dt><dd>{row["tolerance"]:g}<small>{_text(row["reason"])}</small></dd></div></dl>
{_code(row, "wrong", "Goes wrong" if row["naive_fails"] else "Also right")}
{_code(row, "right", "Means what PyTorch means")}
{note}{figure}
<p class="small"><a href="#rows">All rows</a></p>
</section>
"""


def _code(row: Mapping, key: str, name: str) -> str:
    return f'<div class="small dim">{name}</div><pre><code>{_text(row[key])}</code></pre>'


def _error(row: Mapping, key: str) -> str:
    return f"<small>error {_text(row[key])}</small>" if key else ""


def _verdict(row: Mapping) -> str:
    return f'<span class="verdict {"good" if row["passed"] else "bad"}">{_text(row["verdict"])}</span>'


def _text(value) -> str:
    return html.escape(short(value) if isinstance(value, float) else str(value))


def short(value: float) -> str:
    """An error in two digits, or as a whole number from a hundred on."""
    return f"{value:.0f}" if 100 <= abs(value) < 1e6 else f"{value:.2g}"
