"""The report as one HTML page: it opens from disk, and loads nothing."""

import html
import json
import re
from collections.abc import Sequence

from cifar_jax.page_frame import page
from cifar_jax.studies.table.report import charts, drawing
from cifar_jax.studies.table.report.sections import Section

TITLE = "The BatchNorm lecture's table, in JAX"
# Sections whose charts and blocks show one recipe, which the reader chooses.
_CHOOSABLE = ("classes", "confusion", "mistakes", "calibration")


def _variables(place: int) -> str:
    return " ".join(f"--series{i}: {colors[place]};" for i, colors in enumerate(drawing.SERIES))


_CSS = (
    f"""
:root {{ {_variables(0)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_variables(1)} }} }}
"""
    + """
body { max-width: 72rem; }
p, dl { max-width: 46rem; } h3 { font-size: 1rem; margin: 1rem 0 0.5rem; }
nav ul { display: flex; flex-wrap: wrap; gap: 0.2rem 1rem; padding: 0; list-style: none; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 1rem 2rem; }
.charts.one { max-width: 46rem; }
.chart { width: 100%; min-width: 0; } .chart svg { display: block; max-width: 100%; }
figure { min-width: 0; }
.scroll { margin: 0.5rem 0; } .scroll table { width: auto; min-width: 100%; }
thead th { vertical-align: bottom; } td, tbody th { white-space: nowrap; } th.n { white-space: normal; }
th, td { padding: 0.3rem 1rem 0.3rem 0; }
tbody th:first-child { position: sticky; left: 0; background: var(--page); font-weight: normal; }
@media (max-width: 40rem) { tbody th:first-child { white-space: normal; min-width: 8.4rem; } }
summary { cursor: pointer; padding: 0.3rem 0; color: var(--link); }
summary:focus-visible, select:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
[hidden] { display: none !important; }
.choice { position: sticky; top: 0; z-index: 2; background: var(--page); padding: 0.6rem 0; margin-top: 2.5rem;
  border-bottom: 1px solid var(--line); display: flex; flex-wrap: wrap; gap: 0.2rem 0.6rem; align-items: center; }
.choice ~ section { scroll-margin-top: 5rem; }
select { font: inherit; color: inherit; background: var(--soft); border: 1px solid var(--line); border-radius: 0.3rem;
  padding: 0.3rem; max-width: 100%; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: 1rem; padding: 0;
  list-style: none; }
.pictures img { display: block; border-radius: 0.3rem; } .pictures span { display: block; line-height: 1.3; }
.origin { grid-template-columns: minmax(0, 1fr); }
#vg-tooltip-element { visibility: hidden; position: fixed; z-index: 9; padding: 0.4rem 0.6rem; pointer-events: none;
  font-size: 0.8rem; color: var(--text); background: var(--soft); border: 1px solid var(--line);
  border-radius: 0.3rem; }
@media (max-width: 40rem) { #vg-tooltip-element { left: 1rem !important; max-width: calc(100vw - 2rem); } }
#vg-tooltip-element.visible { visibility: visible; }
#vg-tooltip-element table { width: auto; font-size: inherit; }
#vg-tooltip-element td { border: 0; padding: 0 0.3rem 0 0; white-space: normal; }
#vg-tooltip-element td.key { color: var(--dim); text-align: right; }
#vg-tooltip-element td.value { white-space: nowrap; }
"""
)

# Charts take the page's colours through CSS variables, which only an SVG resolves.
_SCRIPT = """
const specs = JSON.parse(document.getElementById("specs").textContent);
const options = { renderer: "svg", actions: false, defaultStyle: false, tooltip: { disableDefaultStyle: true } };
const select = document.getElementById("recipe");
const views = [];
function choose() {
  for (const block of document.querySelectorAll("[data-recipe]")) block.hidden = block.dataset.recipe !== select.value;
  for (const view of views) view.signal("CHOSEN", select.value).runAsync();
}
if (select) {
  document.querySelector(".choice").hidden = false;
  select.addEventListener("change", choose);
  choose();
}
for (const [id, spec] of Object.entries(specs)) {
  vegaEmbed("#chart-" + id, spec, options).then(({ view }) => {
    if (!(spec.params ?? []).some((parameter) => parameter.name === "CHOSEN")) return;
    views.push(view);
    view.signal("CHOSEN", select.value).runAsync();
  });
}
""".replace("CHOSEN", charts.CHOSEN)


def render(parts: Sequence[Section], *, summary: str, titles: dict[str, str], chosen: str | None) -> str:
    """The page.

    Args:
      parts: in order; those that show a chosen recipe stand together.
      summary: the first paragraph, plain text.
      titles: of the configs that can be chosen.
      chosen: the first of them to be shown; None where there are none.
    """
    links = "".join(f'<li><a href="#{each.id}">{html.escape(each.title)}</a></li>' for each in parts)
    body, choice = [], _choice(titles, chosen) if chosen else ""
    for each in parts:
        if each.id in _CHOOSABLE and choice:
            body.append(choice)
            choice = ""
        body.append(_section(each))
    specs = {chart.id: drawing.for_page(chart) for each in parts for chart in each.charts}
    content = f"""<header>
<h1>{html.escape(TITLE)}</h1>
<p>{html.escape(summary)}</p>
<nav aria-label="Sections"><ul>{links}</ul></nav>
</header>
<main id="main">
{"".join(body)}
</main>
<script type="application/json" id="specs">{_json(specs)}</script>
<script>{_javascript(drawing.bundle())}</script>
<script>{_SCRIPT}</script>"""
    return page(TITLE, content, css=_CSS, skip_to="main", skip_text="Skip to the table")


def _json(value) -> str:
    """JSON that cannot end its element."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def _javascript(text: str) -> str:
    """JavaScript that cannot end its element: what could stands inside strings and regular expressions only."""
    return re.sub("</(?=script)", r"<\\/", text, flags=re.IGNORECASE)


def _choice(titles: dict[str, str], chosen: str) -> str:
    entries = "".join(
        f'<option value="{html.escape(config)}"{" selected" if config == chosen else ""}>{html.escape(title)}</option>'
        for config, title in titles.items()
    )
    return (
        '<div class="choice" hidden><label for="recipe">The four sections below show</label>'
        f'<select id="recipe">{entries}</select></div>'
    )


def _section(section: Section) -> str:
    drawn = "\n".join(
        f'<figure>{_heading(chart, section)}<div class="chart" id="chart-{chart.id}">{html.escape(chart.alternative)}'
        "</div></figure>"
        for chart in section.charts
    )
    grid = f'<div class="charts{" one" if len(section.charts) == 1 else ""}">{drawn}</div>' if drawn else ""
    return f"""
<section id="{section.id}" aria-labelledby="{section.id}-title">
<h2 id="{section.id}-title">{html.escape(section.title)}</h2>
{section.text}
{grid}
{section.after}
</section>
"""


def _heading(chart: drawing.Chart, section: Section) -> str:
    return f"<h3>{html.escape(chart.title)}</h3>" if len(section.charts) > 1 else ""
