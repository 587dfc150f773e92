"""The frame that the pages share: one file that needs nothing else, for phone and desktop, light and dark, keyboard."""

import html

_CSS = """
:root { color-scheme: light dark; --text: #1b1b1b; --page: #fdfdfc; --soft: #f1f1ee; --line: #d4d4cf; --dim: #5c5c58;
  --link: #00558a; --good: #1c6b34; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --text: #e9e9e6; --page: #161617; --soft: #222224; --line: #3d3d40;
  --dim: #a9a9a4; --link: #7cc4f4; --good: #7ccf92; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 54rem; background: var(--page); color: var(--text);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { font-size: 1.15rem; margin: 0; }
a { color: var(--link); }
a:focus-visible, [tabindex]:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
.skip { position: absolute; left: -99rem; } .skip:focus { position: static; }
.dim { color: var(--dim); } .small { font-size: 0.875rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 0.9rem; }
th, td { text-align: left; padding: 0.3rem 0.6rem 0.3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.n, th.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
section { margin: 2.5rem 0; padding-top: 1rem; border-top: 2px solid var(--line); scroll-margin-top: 0.5rem; }
.verdict { font-weight: 600; } .good { color: var(--good); } .bad { color: var(--bad); }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: 0.6rem; margin: 1rem 0; }
dl > div { background: var(--soft); border-radius: 0.4rem; padding: 0.5rem 0.7rem; }
dt { font-size: 0.8rem; color: var(--dim); } dd { margin: 0; font-variant-numeric: tabular-nums; }
dd small { display: block; color: var(--dim); }
pre { background: var(--soft); border-radius: 0.4rem; padding: 0.6rem 0.8rem; font-size: 0.85rem;
  white-space: pre-wrap; }
figure { margin: 1rem 0; }
footer { border-top: 2px solid var(--line); padding-top: 1rem; }
"""


def page(title: str, body: str, *, css: str, skip_to: str, skip_text: str) -> str:
    """A whole page around `body`, which is HTML.

    Args:
      title: plain text.
      body: header, main and footer.
      css: what this page has beyond the shared rules.
      skip_to: id of the element that the first link of the page leads to.
      skip_text: what that link says.
    """
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<link rel="icon" href="data:,">
<style>{_CSS}{css}</style>
</head>
<body>
<a class="skip" href="#{skip_to}">{html.escape(skip_text)}</a>
{body}
</body>
</html>
"""
