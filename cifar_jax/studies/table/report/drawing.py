"""How charts look and are drawn: on the page, where they follow its colours and width, and as PNG pictures.

Colours are the page's CSS variables, which a browser resolves inside an SVG; a PNG gets their light values.
"""

import functools
import io
import json
from typing import NamedTuple

import altair as alt
import vl_convert
from PIL import Image

# Okabe and Ito's hues, which colour-blind readers can tell apart, as dark as the page's light ground asks for, and
# then as light as its dark one does.
SERIES = (("#0072b2", "#56b4e9"), ("#d55e00", "#ff8f3f"), ("#007f5f", "#2fc79b"), ("#a6517f", "#e6a3c8"))
SERIES += (("#8a6d00", "#f0c63c"), ("#555555", "#bbbbbb"))
_LIGHT = {"var(--text)": "#1b1b1b", "var(--page)": "#ffffff", "var(--line)": "#d4d4cf", "var(--dim)": "#5c5c58"}
_LIGHT |= {f"var(--series{i})": light for i, (light, _) in enumerate(SERIES)}
_CONFIG = {
    "background": "var(--page)", "font": "system-ui, sans-serif", "padding": 4, "view": {"stroke": None},
    "axis": {
        "labelColor": "var(--text)", "titleColor": "var(--text)", "gridColor": "var(--line)", "gridOpacity": 0.7,
        "domainColor": "var(--dim)", "tickColor": "var(--dim)", "labelFontSize": 12, "titleFontSize": 12,
        "titleFontWeight": "normal", "labelLimit": 230,
    },
    "legend": {
        "orient": "bottom", "labelColor": "var(--text)", "labelFontSize": 12, "labelLimit": 320, "symbolStrokeWidth": 2,
        "symbolOpacity": 1, "layout": {"bottom": {"direction": "vertical", "anchor": "start"}},
    },
    "title": {"color": "var(--text)", "subtitleColor": "var(--dim)"},
}  # fmt: skip
# Such as "6.4": the converter takes no patch number.
_VEGA_LITE = ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])


class Chart(NamedTuple):
    """A chart and what it shows.

    id: of its element, and the name of its PNG.
    title: for the PNG; on the page a heading says it.
    alternative: what it shows, in a sentence, for those who do not see it.
    data: the rows that it draws, by the names that it knows them by.
    subtitle: for the PNG too.
    """

    id: str
    title: str
    alternative: str
    chart: alt.TopLevelMixin
    data: dict[str, list[dict]]
    subtitle: str = ""


def for_page(chart: Chart) -> dict:
    """The Vega-Lite description that the page draws, as wide as its place."""
    fitted = chart.chart.properties(
        width="container", autosize=alt.AutoSizeParams(type="fit-x", contains="padding"), description=chart.alternative
    )  # fmt: skip
    return fitted.to_dict() | {"config": _CONFIG, "datasets": chart.data}


@functools.cache
def bundle() -> str:
    """The JavaScript that draws these descriptions, in one piece that loads nothing."""
    return vl_convert.javascript_bundle(vl_version=_VEGA_LITE)


def png(chart: Chart) -> bytes:
    """A picture for papers and slides: light, 1440 pixels wide and more for labels."""
    title = alt.Title(chart.title, subtitle=chart.subtitle, anchor="start", fontSize=15, subtitleFontSize=12, offset=10)
    drawn = chart.chart.properties(width=480, title=title).to_dict()
    spec = json.dumps(drawn | {"config": _CONFIG, "datasets": chart.data})
    for variable, color in _LIGHT.items():
        spec = spec.replace(variable, color)
    # Pillow's files are a quarter as large; the ground is opaque.
    file = io.BytesIO()
    drawing = io.BytesIO(vl_convert.vegalite_to_png(spec, vl_version=_VEGA_LITE, scale=3))
    Image.open(drawing).convert("RGB").save(file, "PNG", optimize=True)
    return file.getvalue()
