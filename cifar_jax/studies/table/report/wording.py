"""How the report words numbers and names."""


def spread(stat: dict | None, digits: int = 2) -> str:
    """Mean and deviation, the latter only of several values; '' where nothing was measured.

    >>> spread({"mean": 61.889, "sd": 0.21, "n": 5}), spread({"mean": 61.889, "sd": None, "n": 1}), spread(None)
    ('61.89 ± 0.21', '61.89', '')
    """
    if stat is None:
        return ""
    mean = f"{stat['mean']:.{digits}f}"
    return mean if stat["sd"] is None else f"{mean} ± {stat['sd']:.{digits}f}"


def plain(name: str) -> str:
    """A class's name in words.

    >>> plain("large_man-made_outdoor_things")
    'large man-made outdoor things'
    """
    return name.replace("_", " ")
