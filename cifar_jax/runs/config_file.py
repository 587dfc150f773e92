"""Config files: finding one by its path or by its name, reading it, and changing keys from a command line."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import ml_collections

from cifar_jax.errors import InputError
from cifar_jax.runs.config import set_from_text, shown

_PACKAGE = Path(__file__).parents[1]
# The installed package has its configs inside; a checkout has them beside it.
PRESETS = next(
    (folder for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if (folder / "default.py").is_file()),
    _PACKAGE / "configs",
)


def find_config(name: str) -> Path:
    """The config file at this path or, where there is none, the one of this name that comes with the package.

    Raises:
      InputError: there is neither.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    preset = PRESETS / f"{name}.py"
    if name and preset.parent == PRESETS and preset.is_file():
        return preset
    names = ", ".join(sorted(path.stem for path in PRESETS.glob("*.py") if path.stem != "__init__"))
    raise InputError(f"--config must name a config file or one of {names}, got {shown(name)}.")


def load_config(name: str, overrides: Sequence[tuple[str, str]] = ()) -> ml_collections.ConfigDict:
    """The config that `get_config()` of a file returns, with keys changed.

    Args:
      name: a path, or the name of a config that comes with the package; see `find_config`.
      overrides: keys and texts as `--config.KEY=TEXT` gives them, in this order; see `config.set_from_text`.

    Raises:
      InputError: the file cannot be read or fails, or a key or a value is wrong.
    """
    path = find_config(name)
    try:
        spec = importlib.util.spec_from_file_location(f"_config_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        config = module.get_config()
        config.to_dict()  # a reference to a key that is not set shows here
    except Exception as error:  # the file may raise anything
        reason = " ".join(str(error).split())
        raise InputError(
            f"--config must name a Python file with get_config(), got {shown(name)}: {type(error).__name__}: {reason}."
        ) from error
    for key, text in overrides:
        set_from_text(config, key, text)
    return config
