"""Finds what the command line names: `models.py:make_model` or `package.module:make_model`."""

import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from typing import Any

from cifar_jax.errors import InputError
from cifar_jax.parity.comparison.flax_side import explain


def find(target: str, field: str) -> Any:
    """The object that a target names; its file is run as an import does, with its folder importable.

    Args:
      target: "path/to/file.py:name" or "package.module:name".
      field: what to call the target in an error, such as "--loss".

    Raises:
      InputError: there is no such file, module or name, or its import raises.
    """
    place, colon, name = target.rpartition(":")
    if not colon or not place or not name:
        raise InputError(f"{field} must be file.py:name or package.module:name, got {target!r}.")
    module = _load_file(Path(place), field) if place.endswith(".py") else _load_module(place, field)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            names = ", ".join(each for each in vars(module) if not each.startswith("_")) or "nothing"
            raise InputError(f"{field} names {name!r}, which {place} does not have; it has {names}.")
        found = getattr(found, part)
    return found


def _load_file(path: Path, field: str) -> Any:
    if not path.is_file():
        raise InputError(f"{field} must name a file that exists, got {path}.")
    path = path.resolve()
    # Two files of one name must not be taken for each other.
    name = f"_compared_{abs(hash(str(path)))}_{path.stem}"
    if name in sys.modules:
        return sys.modules[name]
    specification = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent))
    try:
        specification.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise InputError(f"{field}: {path.name} raised {explain(error)} when it was imported.") from error
    finally:
        sys.path.remove(str(path.parent))
    return module


def _load_module(name: str, field: str) -> Any:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise InputError(f"{field}: module {name} raised {explain(error)} when it was imported.") from error


def make(found: Any, field: str, *, seed: int = 0) -> Any:
    """A model from what was found: an instance as it is; a class or a function called without arguments.

    A class or function that takes `rngs` gets `flax.nnx.Rngs(seed)`.

    Raises:
      InputError: it raises, or needs arguments.
    """
    if not (inspect.isclass(found) or inspect.isroutine(found)):
        return found
    name = getattr(found, "__name__", str(found))
    try:
        # A class of NNX hides its arguments behind its metaclass.
        parameters = dict(inspect.signature(found.__init__ if inspect.isclass(found) else found).parameters)
        if inspect.isclass(found):
            parameters.pop(next(iter(parameters)), None)
    except (TypeError, ValueError):
        parameters = {}
    keywords = {}
    if "rngs" in parameters:
        from flax import nnx

        keywords["rngs"] = nnx.Rngs(seed)
    needed = [
        each.name
        for each in parameters.values()
        if each.default is each.empty
        and each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
        and each.name not in keywords
    ]
    if needed:
        raise InputError(f"{field}: {name} must take no arguments, but needs {', '.join(needed)}.")
    try:
        return found(**keywords)
    except (Exception, SystemExit) as error:
        raise InputError(f"{field}: {name} raised {explain(error)}.") from error
