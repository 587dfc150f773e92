"""Generated text inside a hand-written document, between two markers that name it."""

import re


def fill(text: str, name: str, content: str) -> str:
    """`text` with `content` between its markers, `<!-- NAME: ... -->` and `<!-- end of NAME -->`.

    Raises:
      ValueError: the markers are not there.
    """
    pattern = re.compile(rf"(<!-- {name}:.*?-->\n).*?(<!-- end of {name} -->)", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"The text must have the markers '<!-- {name}: ... -->' and '<!-- end of {name} -->'.")
    return pattern.sub(lambda markers: f"{markers[1]}\n{content}\n\n{markers[2]}", text)
