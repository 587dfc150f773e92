"""Generated text inside a hand-written document, between two markers that name it."""

import re


def has(text: str, name: str) -> bool:
    """Whether `text` has the first marker of `name`."""
    return f"<!-- {name}:" in text


def fill(text: str, name: str, content: str) -> str:
    """`text` with `content` between its markers, `<!-- NAME: ... -->` and `<!-- end of NAME -->`.

    Raises:
      ValueError: the markers are not there, once each and in this order.
    """
    pattern = re.compile(rf"(<!-- {name}:.*?-->\n).*?(<!-- end of {name} -->)", re.DOTALL)
    if text.count(f"<!-- {name}:") != 1 or text.count(f"<!-- end of {name} -->") != 1 or not pattern.search(text):
        raise ValueError(f"it must have '<!-- {name}: ... -->' and then '<!-- end of {name} -->', once each")
    return pattern.sub(lambda markers: f"{markers[1]}\n{content}\n\n{markers[2]}", text)
